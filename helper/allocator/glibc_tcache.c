/* glibc malloc: the threads' caches, which are found by what the threads' local words point at.
 *
 * No symbol tells where a thread keeps its tcache pointer, so every word of its static TLS is tried: it is
 * the offset that leads to a tcache in most threads. */
#include "glibc_find.h"
#include "threads.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TLS_SPAN        8192u       /* how far from the thread pointer libc's thread-local words may be */
#define MODULE_DATA_MAX (16u << 20) /* how much of a libc's variables is searched for the key */
#define KEYS_TRIED      16u
#define VOTES_NEEDED    4u /* for a key that libc's variables cannot confirm */

enum tcache_quality { TCACHE_NOT, TCACHE_EMPTY, TCACHE_SURE };

/* Does address stand in a chunk of the size that a tcache_perthread_struct takes? */
static bool has_tcache_size(struct glibc_heap *glibc, uint64_t address) {
    uint64_t size_word;
    if (address % GLIBC_ALIGN != 0 || !glibc_chunk_extent(glibc, address - GLIBC_HEADER) ||
        !karst_target_read_u64(glibc->heap.target, address - 8, &size_word)) {
        return false;
    }
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
    uint64_t needed = (glibc->layout.tcache_size + 8ull + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1);
    return size == needed || size == needed + GLIBC_ALIGN;
}

/* Is there a tcache_perthread_struct? In a chunk of its size, each list empty where its count is: but for
 * one, in which its thread is just putting or taking a chunk. */
static enum tcache_quality tcache_quality(struct glibc_heap *glibc, uint64_t address) {
    const struct glibc_layout *layout = &glibc->layout;
    uint8_t bytes[1024];
    if (!has_tcache_size(glibc, address) || layout->tcache_size > sizeof bytes ||
        !karst_target_read_all(glibc->heap.target, address, bytes, layout->tcache_size)) {
        return TCACHE_NOT;
    }
    unsigned good = 0, bad = 0;
    for (unsigned i = 0; i < layout->tcache_bins; i++) {
        uint16_t count;
        memcpy(&count, bytes + 2 * i, 2);
        uint64_t entry = glibc_word(bytes + layout->tcache_entries + 8 * i);
        bool empty = layout->tcache_counts_slots ? count == glibc->tcache_count : count == 0;
        bool sensible = entry == 0 ? empty : !empty && entry % GLIBC_ALIGN == 0;
        bad += !sensible;
        good += sensible && (entry != 0 || (layout->tcache_counts_slots && count));
    }
    if (bad > 2 || (bad > 1 && good < 4 * bad)) {
        return TCACHE_NOT;
    }
    return good ? TCACHE_SURE : TCACHE_EMPTY;
}

bool glibc_may_be_tcache(struct glibc_heap *glibc, uint64_t chunk) {
    return has_tcache_size(glibc, chunk + GLIBC_HEADER) &&
           tcache_quality(glibc, chunk + GLIBC_HEADER) != TCACHE_NOT;
}

/* How many words of each thread's static TLS are looked at: not the frames of its stack behind, where calls
 * that returned long ago left pointers to caches of threads that are gone. */
static unsigned slots_of_storage(struct karst_target *target) {
    uint64_t storage = karst_thread_storage(target);
    return (unsigned)(storage && storage < TLS_SPAN ? storage / 8 + 2 : TLS_SPAN / 8);
}

/* The offset from the thread pointer at which the threads keep their tcache pointer: the one that leads to
 * a tcache in most threads. */
static bool find_tcache_offset(struct glibc_heap *glibc, const struct glibc_tcb_list *tcbs) {
    const bool below = glibc->heap.target->machine != 183; /* EM_AARCH64 has its TLS above */
    const unsigned slots = slots_of_storage(glibc->heap.target);
    uint32_t *votes = calloc(slots, sizeof *votes);
    if (!votes) {
        return false;
    }
    for (size_t t = 0; t < tcbs->count; t++) {
        for (unsigned slot = 0; slot < slots; slot++) {
            uint64_t at =
                below ? tcbs->items[t].address - 8 * (slot + 1ull) : tcbs->items[t].address + 8ull * slot;
            uint64_t word;
            if (!glibc_read(glibc, at, &word)) {
                break;
            }
            enum tcache_quality quality = word ? tcache_quality(glibc, word) : TCACHE_NOT;
            votes[slot] += quality == TCACHE_SURE ? 256 : quality == TCACHE_EMPTY ? 1 : 0;
        }
    }
    unsigned best = 0;
    for (unsigned slot = 1; slot < slots; slot++) {
        best = votes[slot] > votes[best] ? slot : best;
    }
    if (votes[best]) {
        glibc->tcache_tls_offset = below ? -8 * ((int64_t)best + 1) : 8 * (int64_t)best;
    }
    free(votes);
    return true;
}

/* Keys of cached chunks: the majority has the right one (Boyer and Moore's vote). */
struct key_vote {
    uint64_t key;
    uint64_t weight;
};

struct tcache_collect {
    struct glibc_collect collect;
    struct key_vote *vote;
};

static bool collect_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct tcache_collect *collect = context;
    struct key_vote *vote = collect->vote;
    uint64_t key;
    if (glibc_read(collect->collect.glibc, chunk + 24, &key)) {
        if (vote->weight == 0) {
            *vote = (struct key_vote){key, 1};
        } else {
            vote->weight += vote->key == key ? 1 : UINT64_MAX;
        }
    }
    return glibc_collect_node(&collect->collect, chunk, size_word);
}

static bool add_tcache_bin(struct glibc_heap *glibc, const struct glibc_tcache *tcache, unsigned index,
                           struct key_vote *vote) {
    struct karst_bin *bin = glibc_add_bins(glibc, 1);
    if (!bin) {
        return false;
    }
    *bin = (struct karst_bin){.arena = KARST_NONE, .owner = tcache->tid, .cache = true};
    glibc_tcache_range(&glibc->layout, index, &bin->smallest, &bin->largest);
    char of[32];
    if (tcache->tid < 0) {
        snprintf(of, sizeof of, "no thread");
    } else if (tcache->tid == 0) {
        snprintf(of, sizeof of, "0x%" PRIx64, tcache->address);
    } else {
        snprintf(of, sizeof of, "thread %" PRId64, tcache->tid);
    }
    glibc_name_bin(bin, "tcache", of);
    uint32_t row = (uint32_t)(glibc->heap.bin_count - 1);
    struct tcache_collect collect = {{glibc, row, false}, vote};
    struct glibc_list_result result = glibc_follow_tcache(glibc, tcache, index, collect_node, &collect);
    glibc->heap.bins[row].damaged = result.end != GLIBC_LIST_END;
    glibc->tcaches_unknown |= glibc_goes_on_missing(glibc, &result);
    return !collect.collect.out_of_memory;
}

/* The thread's word for its cache; false: it is not in the target, or not known where it is. */
static bool read_tcache_word(struct glibc_heap *glibc, const struct glibc_tcb *tcb, uint64_t *address) {
    return glibc->tcache_tls_offset != 0 &&
           glibc_read(glibc, tcb->address + (uint64_t)glibc->tcache_tls_offset, address);
}

static bool know_tcache(const struct glibc_heap *glibc, uint64_t address) {
    for (size_t i = 0; i < glibc->tcache_count_found; i++) {
        if (glibc->tcaches[i].address == address) {
            return true;
        }
    }
    return false;
}

/* Adds the tcache at address and what it holds, unless it is known. */
static bool add_tcache_at(struct glibc_heap *glibc, uint64_t address, int64_t tid, struct key_vote *vote) {
    if (know_tcache(glibc, address)) {
        return true;
    }
    struct glibc_tcache *tcaches = realloc(glibc->tcaches, (glibc->tcache_count_found + 1) * sizeof *tcaches);
    if (!tcaches) {
        return false;
    }
    glibc->tcaches = tcaches;
    struct glibc_tcache *tcache = &tcaches[glibc->tcache_count_found++];
    *tcache =
        (struct glibc_tcache){.address = address, .tid = tid, .first_bin = (uint32_t)glibc->heap.bin_count};
    if (!glibc_add_cached(glibc, address - GLIBC_HEADER, KARST_NONE)) {
        return false;
    }
    for (unsigned i = 0; i < glibc->layout.tcache_bins; i++) {
        uint64_t entry;
        bool used = glibc_tcache_said(glibc, tcache, i) != 0;
        if (!glibc_read(glibc, address + glibc->layout.tcache_entries + 8ull * i, &entry)) {
            break;
        }
        if (used || entry) {
            tcache->bins++;
            if (!add_tcache_bin(glibc, tcache, i, vote)) {
                return false;
            }
        }
    }
    return true;
}

static bool add_tcache(struct glibc_heap *glibc, const struct glibc_tcb *tcb, struct key_vote *vote) {
    uint64_t address;
    if (!read_tcache_word(glibc, tcb, &address) || address == 0 || address % GLIBC_ALIGN != 0 ||
        !glibc_chunk_extent(glibc, address - GLIBC_HEADER)) {
        return true; /* just started, exiting, or (2.43) on the shared dummy */
    }
    if (tcb->tid < 0 ? tcache_quality(glibc, address) != TCACHE_SURE : !has_tcache_size(glibc, address)) {
        return true;
    }
    return add_tcache_at(glibc, address, tcb->tid, vote);
}

/* ---- caches whose threads' words are missing -------------------------------------------------------- */

struct tcache_search {
    struct glibc_heap *glibc;
    struct glibc_addresses found;
};

/* Counts a list's nodes as long as they have the size of its bin. */
struct tcache_list {
    struct glibc_heap *glibc;
    unsigned bin;
};

static bool fits_tcache_list(void *context, uint64_t chunk, uint64_t size_word) {
    const struct tcache_list *list = context;
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
    (void)chunk;
    return size >= GLIBC_MIN_CHUNK && glibc_tcache_index(&list->glibc->layout, size) == list->bin;
}

/* A struct that no thread's word leads to is a tcache if each of its lists is as long as it says, and leads
 * through blocks of its size: or as far as memory is there. */
static bool lists_agree(struct glibc_heap *glibc, uint64_t address) {
    struct glibc_tcache tcache = {.address = address};
    uint64_t nodes = 0;
    for (unsigned i = 0; i < glibc->layout.tcache_bins; i++) {
        struct tcache_list list = {glibc, i};
        struct glibc_list_result result = glibc_follow_tcache(glibc, &tcache, i, fits_tcache_list, &list);
        uint64_t said = glibc_tcache_said(glibc, &tcache, i);
        bool cut = glibc_goes_on_missing(glibc, &result) && result.count < said;
        if (!cut && (result.end != GLIBC_LIST_END || result.count != said)) {
            return false;
        }
        nodes += result.count;
    }
    return nodes != 0;
}

static bool note_tcache_chunk(void *context, const struct glibc_chunk *chunk) {
    struct tcache_search *search = context;
    uint64_t address = chunk->address + GLIBC_HEADER;
    if (chunk->next_size_word & GLIBC_PREV_INUSE && has_tcache_size(search->glibc, address) &&
        tcache_quality(search->glibc, address) == TCACHE_SURE && lists_agree(search->glibc, address)) {
        return glibc_add_address(&search->found, address, 0);
    }
    return true;
}

/* Each list that is empty has all its slots free, each other one fewer: how many that are, 0: this is no
 * tcache. */
static uint16_t slots_of(const struct glibc_layout *layout, const uint8_t *bytes) {
    uint16_t most = 0, count;
    for (unsigned i = 0; i < layout->tcache_bins; i++) {
        memcpy(&count, bytes + 2 * i, sizeof count);
        most = count > most ? count : most;
    }
    for (unsigned i = 0; i < layout->tcache_bins; i++) {
        memcpy(&count, bytes + 2 * i, sizeof count);
        if ((glibc_word(bytes + layout->tcache_entries + 8 * i) == 0) != (count == most)) {
            return 0;
        }
    }
    return most;
}

static bool note_slots(void *context, const struct glibc_chunk *chunk) {
    struct glibc_heap *glibc = context;
    const struct glibc_layout *layout = &glibc->layout;
    uint8_t bytes[1024];
    if (layout->tcache_size <= sizeof bytes && has_tcache_size(glibc, chunk->address + GLIBC_HEADER) &&
        karst_target_read_all(glibc->heap.target, chunk->address + GLIBC_HEADER, bytes,
                              layout->tcache_size)) {
        glibc->tcache_count = slots_of(layout, bytes);
    }
    return glibc->tcache_count == 0;
}

/* How many a list takes, where it counts free slots and mp_, which has that, is missing: what the first
 * tcache says. */
static void find_tcache_count(struct glibc_heap *glibc) {
    for (size_t i = 0; i < glibc->heap.extent_count && glibc->tcache_count == 0; i++) {
        if (glibc->heap.extents[i].kind != KARST_EXTENT_MAPPED) {
            glibc_walk_chunks(glibc, &glibc->heap.extents[i], note_slots, glibc);
        }
    }
}

/* Looks through all chunks for tcaches. */
static bool find_tcaches_by_chunks(struct glibc_heap *glibc, struct key_vote *vote) {
    struct tcache_search search = {.glibc = glibc};
    for (size_t i = 0; i < glibc->heap.extent_count; i++) {
        if (glibc->heap.extents[i].kind != KARST_EXTENT_MAPPED) {
            glibc_walk_chunks(glibc, &glibc->heap.extents[i], note_tcache_chunk, &search);
        }
    }
    bool fine = !search.found.out_of_memory;
    for (size_t i = 0; i < search.found.count && fine; i++) {
        fine = add_tcache_at(glibc, search.found.items[i], 0, vote);
    }
    free(search.found.items);
    return fine;
}

/* Does the thread's word say which its cache is, if it has one? Before it has one there is nothing, or (2.43)
 * a dummy of libc's. */
static bool knows_its_tcache(struct glibc_heap *glibc, const struct glibc_tcb *tcb) {
    uint64_t address;
    return read_tcache_word(glibc, tcb, &address) &&
           (address == 0 || know_tcache(glibc, address) ||
            (address >= glibc->module->start && address < glibc->module->end));
}

static bool all_tcaches_known(struct glibc_heap *glibc, const struct glibc_tcb_list *tcbs) {
    const struct karst_target *target = glibc->heap.target;
    for (size_t t = 0; t < target->thread_count; t++) {
        bool known = false;
        for (size_t i = 0; i < tcbs->count && !known; i++) {
            known = tcbs->items[i].tid == target->threads[t].tid && knows_its_tcache(glibc, &tcbs->items[i]);
        }
        if (!known) {
            return false;
        }
    }
    return target->thread_count != 0;
}

/* Does value stand in the module's writable data or the anonymous memory (its .bss) right behind? */
static bool in_module_data(struct glibc_heap *glibc, uint64_t value) {
    struct karst_target *target = glibc->heap.target;
    struct karst_window window;
    karst_window_open(&window, target, 1u << 16);
    bool found = false;
    for (size_t i = 0; i < target->mapping_count && !found; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        bool data = mapping->start >= glibc->module->start && mapping->start < glibc->module->end;
        bool bss = i > 0 && mapping->start == target->mappings[i - 1].end &&
                   mapping->start >= glibc->module->end &&
                   target->mappings[i - 1].start < glibc->module->end &&
                   target->mappings[i - 1].start >= glibc->module->start;
        if ((!data && !bss) || !(mapping->permissions & KARST_MAPPING_WRITE)) {
            continue;
        }
        uint64_t end =
            mapping->end - mapping->start > MODULE_DATA_MAX ? mapping->start + MODULE_DATA_MAX : mapping->end;
        for (uint64_t at = mapping->start; at + 8 <= end && !found; at += 8) {
            const uint8_t *bytes = karst_window_at(&window, at, 8);
            if (!bytes) {
                break;
            }
            found = glibc_word(bytes) == value;
        }
    }
    karst_window_close(&window);
    return found;
}

/* The key that free() leaves in cached chunks: by symbol, else the cached chunks' most frequent word if libc
 * has it among its variables, else any of their words that libc has. 0: can't be told. */
static uint64_t find_tcache_key(struct glibc_heap *glibc, const struct key_vote *vote) {
    struct karst_symbol symbol;
    uint64_t key;
    if (!glibc->layout.tcache_key_random) {
        return 0;
    }
    if (karst_module_symbol(glibc->heap.target, glibc->module, "tcache_key", &symbol) &&
        !symbol.thread_local_ && karst_target_read_u64(glibc->heap.target, symbol.address, &key)) {
        return key;
    }
    if (vote->weight && vote->key && in_module_data(glibc, vote->key)) {
        return vote->key;
    }
    if (glibc->data_missing) {
        return vote->weight >= VOTES_NEEDED ? vote->key : 0;
    }
    unsigned tried = 0;
    for (size_t i = 0; i < glibc->cached_count && tried < KEYS_TRIED; i++) {
        uint32_t bin = glibc->cached[i].bin;
        if (bin != KARST_NONE && strcmp(glibc->heap.bins[bin].kind, "tcache") == 0 &&
            glibc_read(glibc, glibc->cached[i].chunk + 24, &key) && key > UINT32_MAX) {
            tried++;
            if (in_module_data(glibc, key)) {
                return key;
            }
        }
    }
    return 0;
}

/* How many threads have no control block that is known. */
static size_t count_unknown(const struct karst_target *target, const struct glibc_tcb_list *tcbs) {
    size_t unknown = 0;
    for (size_t t = 0; t < target->thread_count; t++) {
        bool known = false;
        for (size_t i = 0; i < tcbs->count && !known; i++) {
            known = tcbs->items[i].tid == target->threads[t].tid;
        }
        unknown += !known;
    }
    return unknown;
}

/* What `info` says of them. false: out of memory. */
static bool tell_tcaches(struct glibc_heap *glibc, size_t unknown) {
    struct karst_facts *facts = &glibc->heap.facts;
    if (glibc->tcaches_unknown) {
        return karst_facts_add(
            facts, "tcache", 0,
            "%zu found; memory that leads to others, or that they lead through, is missing",
            glibc->tcache_count_found);
    }
    if (glibc->tcache_tls_offset == 0) {
        return karst_facts_add(facts, "tcache", 0,
                               "none found: switched off, not used yet, or not to be told");
    }
    if (unknown &&
        !karst_facts_add(facts, "threads unknown", 0,
                         "the thread pointers of %zu threads are not known; what their caches hold "
                         "counts as live",
                         unknown)) {
        return false;
    }
    return karst_facts_add(facts, "tcache", 0, "%zu found, at thread pointer %+" PRId64,
                           glibc->tcache_count_found, glibc->tcache_tls_offset);
}

bool glibc_find_tcaches(struct glibc_heap *glibc) {
    struct glibc_tcb_list tcbs = {0};
    struct key_vote vote = {0};
    if (glibc->data_missing && glibc->layout.tcache_counts_slots) {
        find_tcache_count(glibc);
    }
    bool fine = glibc_find_tcbs(glibc, &tcbs) && find_tcache_offset(glibc, &tcbs);
    for (size_t i = 0; fine && glibc->tcache_tls_offset && i < tcbs.count; i++) {
        fine = add_tcache(glibc, &tcbs.items[i], &vote);
    }
    if (fine && glibc->data_missing) {
        glibc->tcaches_unknown |= !all_tcaches_known(glibc, &tcbs);
        fine = !glibc->tcaches_unknown || find_tcaches_by_chunks(glibc, &vote);
    }
    glibc->tcache_key = fine ? find_tcache_key(glibc, &vote) : 0;
    size_t unknown = count_unknown(glibc->heap.target, &tcbs);
    free(tcbs.items);
    return fine && tell_tcaches(glibc, unknown);
}
