/* jemalloc 5.x: what is damaged in bins. A bin (of an arena, a class and a shard) has a current slab, whose
 * regions malloc hands out, and a pairing heap of its other slabs with free regions; full ones are in a list
 * in the arenas that a program made, and else in none. Facts: src/arena.c, include/jemalloc/internal/bin.h,
 * bin_info.h, ph.h, arena_inlines_b.h (arena_get_bin()). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jemalloc_check.h"

#define BIN_INFO      40u /* bytes of bin_info_t: region's and slab's size, regions (4 bytes), shards (4) */
#define DAMAGED_BINS  4u  /* by as many the good ones need not be more */
#define SHARDS_MAX    64u
#define WORDS_PENDING 65536u /* of a heap of slabs: brothers of those on the way down */

/* How many shards each class has, 5.1: one. */
struct shards {
    uint32_t count[JEMALLOC_SMALL_BINS];
    uint32_t before[JEMALLOC_SMALL_BINS]; /* bins of smaller classes */
};

struct bin {
    uint64_t address;
    uint64_t current, nonfull, full; /* its slab; the root of the heap, the first of the list */
    uint32_t arena, class_, shard;
    char name[64];
};

/* ---- shards ----------------------------------------------------------------------------------------- */

/* Is bin_infos there? Its classes' sizes are what they are. */
static bool read_shards(struct karst_window *window, uint64_t at, bool sharded, struct shards *shards) {
    uint32_t before = 0;
    for (uint32_t i = 0; i < JEMALLOC_SMALL_BINS; i++) {
        const uint8_t *bytes = karst_window_at(window, at + (uint64_t)i * BIN_INFO, BIN_INFO);
        uint64_t size = jemalloc_class_size(i);
        if (!bytes || jemalloc_word(bytes) != size || jemalloc_word(bytes + 8) % size != 0 ||
            jemalloc_word(bytes + 8) / size != jemalloc_half(bytes + 16)) {
            return false;
        }
        shards->count[i] = sharded ? jemalloc_half(bytes + 20) : 1;
        shards->before[i] = before;
        before += shards->count[i];
        if (shards->count[i] == 0 || shards->count[i] > SHARDS_MAX) {
            return false;
        }
    }
    return true;
}

/* In the module's writable data, or where what boots it leaves it for good. */
static bool find_shards(struct jemalloc_heap *jemalloc, struct shards *shards) {
    struct karst_target *target = jemalloc->heap.target;
    const struct karst_module *module = jemalloc->module;
    struct karst_window window;
    bool found = false;
    karst_window_open(&window, target, 1u << 16);
    for (size_t i = 0; i < target->mapping_count && !found; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->start >= module->end || mapping->end <= module->start) {
            continue;
        }
        uint64_t end = mapping->end < module->end ? mapping->end : module->end;
        for (uint64_t at = mapping->start; at + 8 <= end && !found;) {
            const uint8_t *bytes = karst_window_at(&window, at, 8);
            uint64_t nothing = 0;
            if (!bytes) {
                nothing = karst_target_missing(target, at);
            } else if (at % 4096 == 0 && jemalloc_word(bytes) == 0) {
                nothing = karst_target_untouched(target, at, end);
            }
            found = bytes && jemalloc_word(bytes) == jemalloc_class_size(0) &&
                    read_shards(&window, at, jemalloc->layout.shard_shift != 0, shards);
            nothing = nothing & ~7ull ? nothing & ~7ull : 8;
            at = nothing < end - at ? at + nothing : end;
        }
    }
    karst_window_close(&window);
    return found;
}

/* ---- bins ------------------------------------------------------------------------------------------- */

/* false: it can't be read. */
static bool read_bin(struct jemalloc_heap *jemalloc, const struct shards *shards, struct bin *bin) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t bins = jemalloc->arenas[bin->arena].address + layout->arena_bins;
    uint64_t before = (uint64_t)shards->before[bin->class_] + bin->shard;
    if (layout->bins_apart) {
        if (!jemalloc_read(jemalloc, bins + 8ull * bin->class_, &bins)) {
            return false;
        }
        before = bin->shard;
    }
    bin->address = bins + before * layout->arena_bin_size;
    snprintf(bin->name, sizeof bin->name, "the %" PRIu64 "-byte bin of arena %" PRIu32,
             jemalloc_class_size(bin->class_), bin->arena);
    if (shards->count[bin->class_] > 1) {
        size_t used = strlen(bin->name);
        snprintf(bin->name + used, sizeof bin->name - used, ", shard %" PRIu32, bin->shard);
    }
    return jemalloc_read(jemalloc, bin->address + layout->bin_slabcur, &bin->current) &&
           jemalloc_read(jemalloc, bin->address + layout->bin_nonfull, &bin->nonfull) &&
           jemalloc_read(jemalloc, bin->address + layout->bin_full, &bin->full);
}

static bool read_slab(struct jemalloc_heap *jemalloc, uint64_t extent, struct jemalloc_run *run) {
    struct jemalloc_element element = {.extent = extent, .szind = JEMALLOC_CLASSES};
    return extent != 0 && extent % 64 == 0 && jemalloc_read_extent(jemalloc, &element, run);
}

static bool is_of_bin(const struct bin *bin, const struct jemalloc_run *run) {
    return run->kind == JEMALLOC_SLAB && run->arena == bin->arena && run->class_ == bin->class_ &&
           run->shard == bin->shard;
}

/* Calls visit for each bin of the heap; false: visit had enough. */
static bool each_bin(struct jemalloc_checking *check, const struct shards *shards,
                     bool (*visit)(struct jemalloc_checking *check, const struct bin *bin, void *context),
                     void *context) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    for (uint32_t arena = 0; arena < jemalloc->heap.arena_count; arena++) {
        for (uint32_t class_ = 0; jemalloc->arenas[arena].address && class_ < JEMALLOC_SMALL_BINS; class_++) {
            for (uint32_t shard = 0; shard < shards->count[class_]; shard++) {
                struct bin bin = {.arena = arena, .class_ = class_, .shard = shard};
                if (read_bin(jemalloc, shards, &bin) && !visit(check, &bin, context)) {
                    return false;
                }
            }
        }
    }
    return true;
}

struct fit {
    uint64_t good, bad;
};

/* Do the bins lead to slabs of theirs? Then they are where they were looked for. */
static bool count_fit(struct jemalloc_checking *check, const struct bin *bin, void *context) {
    struct fit *fit = context;
    const uint64_t slabs[] = {bin->current, bin->nonfull};
    for (size_t i = 0; i < sizeof slabs / sizeof *slabs; i++) {
        struct jemalloc_run run;
        if (slabs[i]) {
            bool good = read_slab(check->jemalloc, slabs[i], &run) && is_of_bin(bin, &run);
            fit->good += good;
            fit->bad += !good;
        }
    }
    return true;
}

enum place { CURRENT, NONFULL, FULL };

/* A number for each bin, as a set takes it. */
static uint64_t number_of(uint32_t arena, uint32_t class_, uint32_t shard) {
    return (((uint64_t)arena * JEMALLOC_SMALL_BINS + class_) * SHARDS_MAX + shard) * KARST_MARK_BYTES;
}

/* The bin's heap of slabs ends here, as far as can be told: that what comes behind is out of reach is no
 * finding of its own. */
static void cut(struct jemalloc_checking *check, const struct bin *bin, enum place place) {
    check->out_of_memory |=
        place == NONFULL &&
        !karst_marks_add(&check->cut_bins, number_of(bin->arena, bin->class_, bin->shard));
}

/* ---- what is in them -------------------------------------------------------------------------------- */

/* What a bin has in a place: a slab of its own, which the radix tree has, too. from: where it says so. false:
 * no extent, so nothing leads on from there. */
static bool check_slab(struct jemalloc_checking *check, const struct bin *bin, enum place place,
                       uint64_t extent, uint64_t from) {
    static const char *const names[] = {"current slab", "heap of slabs with free regions",
                                        "list of full slabs"};
    struct jemalloc_run run;
    struct jemalloc_element here;
    if (!read_slab(check->jemalloc, extent, &run)) {
        REPORT(check, BAD_LINK, from, 8,
               "the %s of %s leads to 0x%" PRIx64
               ", which is no extent: overwritten; the next malloc(%" PRIu64
               ") may go wrong there%s\tbin at 0x%" PRIx64 ", word at 0x%" PRIx64,
               names[place], bin->name, extent, jemalloc_class_size(bin->class_),
               place == NONFULL ? ", and slabs behind it are out of reach" : "", bin->address, from);
        cut(check, bin, place);
        return false;
    }
    struct jemalloc_name name = jemalloc_name_run(check, &run);
    if (!is_of_bin(bin, &run)) {
        REPORT(check, WRONG_BIN, run.address, run.size,
               "the %s of %s has %s, of arena %" PRIu32 ", shard %" PRIu32 ": malloc(%" PRIu64
               ") hands out what is not of that size, or not its own\tbin at 0x%" PRIx64
               ", extent at 0x%" PRIx64 ", word at 0x%" PRIx64,
               names[place], bin->name, name.text, run.arena, run.shard, jemalloc_class_size(bin->class_),
               bin->address, extent, from);
        return true;
    }
    if (!jemalloc_element_of(check->jemalloc, run.address, &here) ||
        (here.extent != extent && !jemalloc_leads_astray(check, &here))) {
        REPORT(check, BAD_LINK, run.address, run.size,
               "the %s of %s has %s, and the radix tree has another there: given back, and still in the bin"
               "\tbin at 0x%" PRIx64 ", extent at 0x%" PRIx64,
               names[place], bin->name, name.text, bin->address, extent);
    }
    if ((place == NONFULL && run.nfree == 0) || (place == FULL && run.nfree != 0)) {
        REPORT(check, BAD_COUNT, run.address, run.size,
               "%s is in the %s of %s, and has %" PRIu32 " free\tbin at 0x%" PRIx64 ", extent at 0x%" PRIx64,
               name.text, names[place], bin->name, run.nfree, bin->address, extent);
    }
    if (karst_marks_has(&check->in_bins, extent)) {
        REPORT(check, BAD_LINK, run.address, run.size,
               "%s is in %s twice: %s: its regions would be handed out by both\tbin at 0x%" PRIx64
               ", extent at 0x%" PRIx64 ", word at 0x%" PRIx64,
               name.text, bin->name,
               extent == bin->current
                   ? "its current slab, and in its heap of slabs with free regions"
                   : "its heap of slabs with free regions goes in a circle, or meets itself",
               bin->address, extent, from);
        return false;
    }
    check->out_of_memory |= !karst_marks_add(&check->in_bins, extent);
    return !check->out_of_memory;
}

struct pending {
    uint64_t *words; /* where the words are that lead on */
    size_t count;
    bool too_many;
};

static void push(struct jemalloc_heap *jemalloc, struct pending *pending, uint64_t from) {
    uint64_t extent;
    if (!jemalloc_read(jemalloc, from, &extent) || extent == 0) {
        return;
    }
    pending->too_many |= pending->count == WORDS_PENDING;
    if (!pending->too_many) {
        pending->words[pending->count++] = from;
    }
}

/* A pairing heap: each node leads to its next brother and its first child. */
static void check_heap(struct jemalloc_checking *check, const struct bin *bin) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    const uint16_t link = jemalloc->layout.heap_link;
    struct pending pending = {.words = malloc(WORDS_PENDING * sizeof *pending.words)};
    if (!pending.words) {
        check->out_of_memory = true;
        return;
    }
    push(jemalloc, &pending, bin->address + jemalloc->layout.bin_nonfull);
    while (pending.count) {
        uint64_t from = pending.words[--pending.count], extent;
        if (jemalloc_read(jemalloc, from, &extent) && check_slab(check, bin, NONFULL, extent, from)) {
            push(jemalloc, &pending, extent + link + 8);
            push(jemalloc, &pending, extent + link + 16);
        }
    }
    check->bins_read &= !pending.too_many; /* what was left out is not lost */
    free(pending.words);
}

static void check_full(struct jemalloc_checking *check, const struct bin *bin) {
    uint64_t from = bin->address + check->jemalloc->layout.bin_full, extent = bin->full;
    while (extent && check_slab(check, bin, FULL, extent, from)) {
        from = extent + check->jemalloc->layout.full_link;
        if (!jemalloc_read(check->jemalloc, from, &extent) || extent == bin->full) {
            return;
        }
    }
}

static bool is_locked(struct jemalloc_heap *jemalloc, const struct bin *bin) {
    const uint16_t locked = jemalloc->layout.mutex_locked;
    const uint8_t *byte;
    return locked != (JEMALLOC_NOT_THERE & 0xffff) &&
           (byte = jemalloc_at(jemalloc, bin->address + locked, 1)) && *byte == 1;
}

static bool check_bin(struct jemalloc_checking *check, const struct bin *bin, void *context) {
    (void)context;
    uint64_t bytes = (uint64_t)check->jemalloc->layout.arena_bin_size;
    if (!karst_session_progress(check->jemalloc->heap.session, bytes, check->error)) {
        check->interrupted = true;
        return false;
    }
    check->locked = is_locked(check->jemalloc, bin);
    check->any_locked |= check->locked;
    if (bin->current) {
        check_slab(check, bin, CURRENT, bin->current, bin->address + check->jemalloc->layout.bin_slabcur);
    }
    if (bin->nonfull) {
        check_heap(check, bin);
    }
    check_full(check, bin);
    check->locked = false;
    return !check->out_of_memory;
}

void jemalloc_check_bins(struct jemalloc_checking *check) {
    struct shards shards = {0};
    struct fit fit = {0};
    if (!check->jemalloc->arenas_at) {
        return;
    }
    if (find_shards(check->jemalloc, &shards)) {
        each_bin(check, &shards, count_fit, &fit);
        check->bins_read = fit.bad <= 2 * fit.good + DAMAGED_BINS;
        if (fit.good + fit.bad == 0) { /* no slabs, or a place where there is nothing */
            check->bins_read = false;
            return;
        }
    }
    if (!check->bins_read) {
        karst_target_remark(check->jemalloc->heap.target,
                            "the bins of the jemalloc of %s were not found: they are not checked",
                            check->jemalloc->module->path);
        return;
    }
    each_bin(check, &shards, check_bin, NULL);
}

void jemalloc_check_listed(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    /* All free: on its way into its bin, or from there. */
    if (!check->bins_read || run->nfree == 0 || run->nfree >= run->regions || !jemalloc_count_free(run) ||
        !check->jemalloc->arenas[run->arena].address || karst_marks_has(&check->in_bins, run->header) ||
        karst_marks_has(&check->cut_bins, number_of(run->arena, run->class_, run->shard))) {
        return;
    }
    check->locked = check->any_locked;
    REPORT(check, LOST_FREE, run->address, run->size,
           "%s has %" PRIu32 " free, and its bin (arena %" PRIu32
           ") does not lead to it: they will never be handed out again\textent at 0x%" PRIx64,
           jemalloc_name_run(check, run).text, run->nfree, run->arena, run->header);
    check->locked = false;
}
