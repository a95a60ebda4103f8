/* jemalloc 3.x and 4.x: what it counts in variables, for no walk can tell it: chunks that are mapped but in
 * no arena, and the base allocator's memory. 4.x has most of it in its arenas (arena_t.stats), the rest, and
 * all that 3.x has, in its module's data: by symbol, or by what the words there have to be. And the table of
 * arenas, which leads to those that have no chunk. Facts: src/base.c, chunk.c, ctl.c, jemalloc.c
 * of 3.5.1, 3.6.0, 4.0.4, 4.1.1, 4.2.1, 4.5.0. */
#include <string.h>

#include "jemalloc.h"

#define PAGE            4096u
#define NEIGHBOURHOOD   512u  /* bytes: how far apart variables of one source file may be */
#define OWN_CHUNKS_MOST 4096u /* of the base allocator */
#define CHUNKS_EVER     (1ull << 40)
#define PLACES_MAX      16u

/* ---- the module's data ------------------------------------------------------------------------------- */

struct data_scan {
    struct jemalloc_heap *jemalloc;
    struct karst_window window;
};

/* Calls visit for each aligned word of the module's writable data, until it returns false. */
static void scan_data(struct data_scan *scan, bool (*visit)(void *context, uint64_t at, uint64_t word),
                      void *context) {
    struct karst_target *target = scan->jemalloc->heap.target;
    const struct karst_module *module = scan->jemalloc->module;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint64_t start = mapping->start > module->start ? mapping->start : module->start;
        uint64_t end = mapping->end < module->end ? mapping->end : module->end;
        if (!(mapping->permissions & KARST_MAPPING_WRITE) || (mapping->permissions & KARST_MAPPING_SHARED)) {
            continue;
        }
        for (uint64_t at = start; at < end && end - at >= 8;) {
            const uint8_t *bytes = karst_window_at(&scan->window, at, 8);
            uint64_t nothing = bytes ? 0 : karst_target_missing(target, at);
            if (bytes && at % PAGE == 0 && jemalloc_word(bytes) == 0) {
                nothing = karst_target_untouched(target, at, end);
            }
            if (bytes && nothing == 0 && !visit(context, at, jemalloc_word(bytes))) {
                return;
            }
            nothing = nothing ? nothing : 8;
            at = nothing < end - at ? at + nothing : end;
        }
    }
}

static bool read_words(struct jemalloc_heap *jemalloc, uint64_t at, uint64_t words[3]) {
    const uint8_t *bytes = jemalloc_at(jemalloc, at, 24);
    for (size_t i = 0; bytes && i < 3; i++) {
        words[i] = jemalloc_word(bytes + 8 * i);
    }
    return bytes != NULL;
}

/* ---- the table of arenas ------------------------------------------------------------------------------ */

struct table_search {
    struct jemalloc_heap *jemalloc;
    uint64_t table;
};

static bool is_table(void *context, uint64_t at, uint64_t word) {
    struct table_search *search = context;
    const struct jemalloc_heap *jemalloc = search->jemalloc;
    unsigned known = 0;
    (void)at;
    if (word == 0 || word % 64 != 0) { /* base_alloc() hands out lines of the cache */
        return true;
    }
    for (uint32_t i = 0; i < jemalloc->heap.arena_count; i++) {
        uint64_t arena = jemalloc->arenas[i].address, entry;
        if (arena == 0) {
            continue;
        }
        if (!jemalloc_read(search->jemalloc, word + 8ull * i, &entry) || entry != arena) {
            return true;
        }
        known++;
    }
    search->table = known ? word : 0;
    return !known;
}

/* The base allocator's chunk that address is in. */
static bool add_base_chunk(struct jemalloc_heap *jemalloc, uint64_t address, uint32_t arena) {
    uint64_t size = 1ull << jemalloc->layout.lg_chunk, start = address & ~(size - 1);
    for (size_t i = 0; i < jemalloc->heap.extent_count; i++) {
        if (jemalloc->heap.extents[i].start == start) {
            return true;
        }
    }
    for (size_t i = 0; i < jemalloc->chunk_count; i++) {
        const struct jemalloc_chunk *chunk = &jemalloc->chunks[i];
        if (chunk->address < start + size && start < chunk->address + chunk->size) {
            return true;
        }
    }
    return !jemalloc_has_room(jemalloc->heap.target, start, size) ||
           jemalloc_add_extent(jemalloc, start, start + size, arena, KARST_EXTENT_OWN);
}

bool jemalloc_find_arenas(struct jemalloc_heap *jemalloc) {
    struct table_search search = {.jemalloc = jemalloc};
    if (!jemalloc->module) {
        return true;
    }
    struct data_scan scan = {.jemalloc = jemalloc};
    karst_window_open(&scan.window, jemalloc->heap.target, 1u << 16);
    scan_data(&scan, is_table, &search);
    karst_window_close(&scan.window);
    for (uint32_t i = 0; search.table && i < JEMALLOC_ARENAS_MAX; i++) {
        uint64_t address;
        if (!jemalloc_read(jemalloc, search.table + 8ull * i, &address)) {
            break;
        }
        if (address == 0) {
            continue;
        }
        const uint8_t *bytes = address % 64 == 0 ? jemalloc_at(jemalloc, address, 8) : NULL;
        if (!bytes || jemalloc_half(bytes) != i) {
            break; /* behind the table's end */
        }
        uint32_t threads = jemalloc_half(bytes + 4);
        if (!jemalloc_make_arenas(jemalloc, i + 1ull)) {
            return false;
        }
        jemalloc->arenas[i].address = jemalloc->heap.arenas[i].address = address;
        jemalloc->heap.arenas[i].attached_threads = threads;
    }
    jemalloc->arenas_at = search.table;
    return true;
}

/* ---- 4.x: the base allocator's counts ------------------------------------------------------------------ */

struct base_search {
    struct jemalloc_heap *jemalloc;
    struct jemalloc_counters found;
    uint64_t chunks; /* at least so many are the base allocator's */
    bool several;    /* places that say different things */
};

/* base_alloc() counts whole lines of the cache, the pages that they reach into, and chunks. */
static bool are_base_counts(const struct base_search *search, uint64_t allocated, uint64_t resident,
                            uint64_t mapped) {
    uint64_t chunk = 1ull << search->jemalloc->layout.lg_chunk;
    return allocated != 0 && allocated % 64 == 0 && resident % PAGE == 0 && mapped % chunk == 0 &&
           allocated <= resident && resident <= mapped && mapped / chunk >= search->chunks &&
           mapped / chunk <= OWN_CHUNKS_MOST && resident - allocated <= 2 * PAGE * (mapped / chunk);
}

static bool take_base_counts(void *context, uint64_t at, uint64_t word) {
    struct base_search *search = context;
    uint64_t words[3], size = 1ull << search->jemalloc->layout.lg_chunk;
    if (word == 0 || word > OWN_CHUNKS_MOST * size || !read_words(search->jemalloc, at, words)) {
        return true;
    }
    /* In the order in which they are declared, or the other way round: compilers do either. */
    bool up = are_base_counts(search, words[0], words[1], words[2]);
    bool down = are_base_counts(search, words[2], words[1], words[0]);
    if (!up && !down) {
        return true;
    }
    struct jemalloc_counters counters = {.known = true,
                                         .base_allocated = up ? words[0] : words[2],
                                         .base_resident = words[1],
                                         .base_mapped = up ? words[2] : words[0]};
    search->several |= search->found.known && (search->found.base_allocated != counters.base_allocated ||
                                               search->found.base_mapped != counters.base_mapped);
    search->found = counters;
    return true;
}

static bool base_by_symbols(struct jemalloc_heap *jemalloc, struct jemalloc_counters *counters) {
    struct karst_target *target = jemalloc->heap.target;
    struct karst_symbol allocated, resident, mapped;
    counters->known = jemalloc_symbol(target, jemalloc->module, "base_allocated", &allocated) &&
                      jemalloc_symbol(target, jemalloc->module, "base_resident", &resident) &&
                      jemalloc_symbol(target, jemalloc->module, "base_mapped", &mapped) &&
                      jemalloc_read(jemalloc, allocated.address, &counters->base_allocated) &&
                      jemalloc_read(jemalloc, resident.address, &counters->base_resident) &&
                      jemalloc_read(jemalloc, mapped.address, &counters->base_mapped);
    return counters->known;
}

/* ---- 3.x: how many chunks there are ---------------------------------------------------------------------
 */

struct chunk_search {
    struct jemalloc_heap *jemalloc;
    uint64_t size;               /* of a chunk */
    uint64_t least, most;        /* how many there are */
    uint64_t places[PLACES_MAX]; /* of words that are the size */
    size_t count;
};

static bool take_chunk_size(void *context, uint64_t at, uint64_t word) {
    struct chunk_search *search = context;
    if (word == search->size && search->count < PLACES_MAX) {
        search->places[search->count++] = at;
    }
    return true;
}

/* chunk_stats_t: how many there ever were, at most at once, and are now. */
static bool are_chunk_stats(const struct chunk_search *search, uint64_t at, uint64_t words[3]) {
    return read_words(search->jemalloc, at, words) && words[2] >= search->least && words[2] <= search->most &&
           words[1] >= words[2] && words[0] >= words[1] && words[0] < CHUNKS_EVER;
}

/* chunk.c has more variables that are no pointers: chunksize, its mask, how many pages that is, how many of
 * them the header has, and the largest class. */
static bool is_of_chunk_size(const struct chunk_search *search, uint64_t word) {
    uint64_t header = jemalloc_header_pages(&search->jemalloc->layout);
    return word == search->size || word == search->size - 1 || word == search->size / PAGE ||
           word == header || word == search->size - header * PAGE;
}

/* One word too early, or too late? */
static bool is_beside(const struct chunk_search *search, uint64_t at, const uint64_t words[3]) {
    uint64_t others[3];
    return (is_of_chunk_size(search, words[0]) && are_chunk_stats(search, at + 8, others)) ||
           (is_of_chunk_size(search, words[2]) && are_chunk_stats(search, at - 8, others));
}

/* They stand near chunksize and chunksize_mask: the nearest are taken, those of other files are further away.
 */
static void look_around(struct chunk_search *search, uint64_t place, struct jemalloc_counters *counters) {
    uint64_t word, nearest = NEIGHBOURHOOD + 1, words[3];
    bool has_mask = false;
    for (uint64_t at = place - NEIGHBOURHOOD; at <= place + NEIGHBOURHOOD && !has_mask; at += 8) {
        has_mask = jemalloc_read(search->jemalloc, at, &word) && word == search->size - 1;
    }
    for (uint64_t at = place - NEIGHBOURHOOD; has_mask && at <= place + NEIGHBOURHOOD; at += 8) {
        uint64_t distance = at > place ? at - place : place - at;
        if (distance < nearest && are_chunk_stats(search, at, words) && words[0] != search->size &&
            words[0] != search->size - 1 && !is_beside(search, at, words)) {
            nearest = distance;
            *counters = (struct jemalloc_counters){.known = true, .chunks = words[2]};
        }
    }
}

/* At least the arenas' chunks, the huge blocks' and the base allocator's are there. */
static void bound_chunks(struct chunk_search *search) {
    const struct jemalloc_heap *jemalloc = search->jemalloc;
    for (size_t i = 0; i < jemalloc->chunk_count; i++) {
        search->least += jemalloc->chunks[i].size / search->size;
    }
    for (size_t i = 0; i < jemalloc->heap.extent_count; i++) {
        search->least += jemalloc->heap.extents[i].kind == KARST_EXTENT_OWN;
    }
    search->most = search->least + 64 + search->least / 8;
}

static void find_chunk_stats(struct jemalloc_heap *jemalloc, struct data_scan *scan) {
    struct jemalloc_counters *counters = &jemalloc->counters;
    struct chunk_search search = {.jemalloc = jemalloc, .size = 1ull << jemalloc->layout.lg_chunk};
    struct karst_symbol symbol;
    uint64_t words[3];
    bound_chunks(&search);
    if (jemalloc_symbol(jemalloc->heap.target, jemalloc->module, "stats_chunks", &symbol) &&
        are_chunk_stats(&search, symbol.address, words)) {
        *counters = (struct jemalloc_counters){.known = true, .chunks = words[2]};
        return;
    }
    scan_data(scan, take_chunk_size, &search);
    for (size_t i = 0; i < search.count && !counters->known; i++) {
        look_around(&search, search.places[i], counters);
    }
}

/* ---- all of it ------------------------------------------------------------------------------------------
 */

static void read_arena_counts(struct jemalloc_heap *jemalloc, struct jemalloc_arena *arena) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    jemalloc_read(jemalloc, arena->address + layout->arena_mapped, &arena->mapped);
    if (layout->arena_retained != (JEMALLOC_NOT_THERE & 0xffff)) {
        jemalloc_read(jemalloc, arena->address + layout->arena_retained, &arena->retained);
    }
    jemalloc_read(jemalloc, arena->address + layout->arena_metadata_mapped, &arena->headers);
    jemalloc_read(jemalloc, arena->address + layout->arena_metadata_allocated, &arena->internal);
    jemalloc_read(jemalloc, arena->address + layout->arena_dirty, &arena->dirty);
    arena->dirty *= PAGE;
}

static void find_base_counts(struct jemalloc_heap *jemalloc, struct data_scan *scan) {
    struct base_search search = {.jemalloc = jemalloc};
    for (size_t i = 0; i < jemalloc->heap.extent_count; i++) {
        search.chunks += jemalloc->heap.extents[i].kind == KARST_EXTENT_OWN;
    }
    if (!base_by_symbols(jemalloc, &search.found)) {
        search.found = (struct jemalloc_counters){.known = false};
        scan_data(scan, take_base_counts, &search);
    }
    jemalloc->counters = search.found;
    jemalloc->counters.known = search.found.known && !search.several;
}

bool jemalloc_find_counters(struct jemalloc_heap *jemalloc) {
    struct data_scan scan = {.jemalloc = jemalloc};
    for (uint32_t i = 0; i < jemalloc->heap.arena_count; i++) {
        struct jemalloc_arena *arena = &jemalloc->arenas[i];
        if (arena->address && !add_base_chunk(jemalloc, arena->address, i)) {
            return false;
        }
        if (arena->address && jemalloc->layout.major == 4) {
            read_arena_counts(jemalloc, arena);
        }
    }
    if (!jemalloc->module) {
        return true;
    }
    karst_window_open(&scan.window, jemalloc->heap.target, 1u << 16);
    if (jemalloc->layout.major == 4) {
        find_base_counts(jemalloc, &scan);
    } else {
        find_chunk_stats(jemalloc, &scan);
    }
    karst_window_close(&scan.window);
    return jemalloc->counters.known ? karst_facts_add(&jemalloc->heap.facts, "own counts", 0,
                                                      "of what is mapped: in the module's data")
                                    : karst_facts_add(&jemalloc->heap.facts, "own counts", 0,
                                                      "not found: how much is mapped is not told");
}
