/* jemalloc: what is damaged in the threads' caches: what they hold, against the runs, and their bins. Facts:
 * include/jemalloc/internal/cache_bin.h, san.h (5.3). */
#include <inttypes.h>
#include <stdio.h>

#include "jemalloc_check.h"

#define PAGE       4096u
#define SLOW_LOOKS 1000u /* items of caches that lead where no page leads: each costs a walk */
#define JUNK       0x5b5b5b5b5b5b5b5bull /* uaf_detect_junk */

static const char *bin_name(const struct jemalloc_checking *check, uint32_t bin) {
    return bin < check->jemalloc->heap.bin_count ? check->jemalloc->heap.bins[bin].name : "a cache";
}

static void check_item_class(struct jemalloc_checking *check, const struct jemalloc_cached *item,
                             const struct jemalloc_run *run, bool is_start) {
    const struct karst_bin *bin = &check->jemalloc->heap.bins[item->bin];
    struct jemalloc_run before;
    char more[260] = "";
    uint64_t region;
    if (jemalloc_run_of(check->jemalloc, run->address - 1, &before) &&
        jemalloc_would_be_region(&before, item->address, &region)) {
        snprintf(more, sizeof more, "; it would be region %" PRIu64 " of %s, %" PRIu64 " past its last",
                 region, jemalloc_name_run(check, &before).text, region - before.regions + 1);
    }
    REPORT(check, WRONG_BIN, item->address, bin->smallest,
           "%s holds 0x%" PRIx64
           ", which %s of %s%s: freed with a wrong size, or never a block of that class\toffset 0x%" PRIx64
           " in that run, page map class %" PRIu32 " of %" PRIu64 " bytes",
           bin->name, item->address, is_start ? "is a region" : "is no region's start",
           jemalloc_name_run(check, run).text, more, item->address - run->address, run->map_class,
           jemalloc_class_size(run->map_class));
}

/* What use-after-free detection filled with junk: its first word, its last, and the one in the middle
 * (san.h, san_junk_ptr_locations()). It stops the program when it meets what was written there since. */
static void check_junk(struct jemalloc_checking *check, const struct jemalloc_cached *item,
                       const struct jemalloc_run *run) {
    const uint64_t size = run->region_size, places[] = {0, size / 2 & ~7ull, size - 8};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        uint64_t word, at = item->address + places[i];
        if (jemalloc_read(check->jemalloc, at, &word) && word != JUNK) {
            REPORT(check, WRITE_AFTER_FREE, item->address, size,
                   "0x%" PRIx64
                   ", in %s, was written to after it was freed: use-after-free detection had filled it "
                   "with junk, and will stop the program for it\t0x%" PRIx64 " at 0x%" PRIx64
                   ", not 0x%" PRIx64,
                   item->address, bin_name(check, item->bin), word, at, (uint64_t)JUNK);
            return;
        }
    }
}

static void check_small_item(struct jemalloc_checking *check, const struct jemalloc_cached *item,
                             const struct jemalloc_run *run) {
    const struct karst_bin *bin = &check->jemalloc->heap.bins[item->bin];
    bool is_start;
    uint32_t region = jemalloc_region_of(run, item->address, &is_start);
    if (bin->smallest != run->region_size) {
        check_item_class(check, item, run, is_start);
    } else if (!is_start) {
        REPORT(check, MISALIGNED, item->address, bin->smallest,
               "%s holds 0x%" PRIx64 ", which is %s of %s: the address freed was not the one that malloc "
               "returned\toffset 0x%" PRIx64 " in the run",
               bin->name, item->address, region == JEMALLOC_NOT_THERE ? "in no region" : "inside a region",
               jemalloc_name_run(check, run).text, item->address - run->address);
    } else if (jemalloc_is_free(run, region)) {
        REPORT(check, DOUBLE_FREE, item->address, run->region_size,
               "%s holds 0x%" PRIx64 ", region %" PRIu32
               " of %s, which is free in its bitmap too: freed twice, the "
               "first time past or out of a cache\tbitmap word %" PRIu32 " 0x%" PRIx64,
               bin->name, item->address, region, jemalloc_name_run(check, run).text, region / 64,
               run->bitmap[region / 64]);
    } else if (item->stashed) {
        check_junk(check, item, run);
    }
}

static void check_large_item(struct jemalloc_checking *check, const struct jemalloc_cached *item,
                             const struct jemalloc_run *run) {
    const struct karst_bin *bin = &check->jemalloc->heap.bins[item->bin];
    uint64_t size = run->class_ < JEMALLOC_CLASSES ? jemalloc_class_size(run->class_) : run->usable;
    if (bin->smallest != size && bin->smallest != run->usable && bin->smallest != run->sampled) {
        check_item_class(check, item, run, item->address == run->block);
    } else if (item->address - run->block >= (check->jemalloc->layout.major == 4 ? PAGE : 1)) {
        REPORT(check, MISALIGNED, item->address, bin->smallest,
               "%s holds 0x%" PRIx64 ", which is inside %s: the address freed was not the one that malloc "
               "returned\toffset 0x%" PRIx64 " in its pages",
               bin->name, item->address, jemalloc_name_run(check, run).text, item->address - run->address);
    }
}

/* 5.x: has the radix tree something for address that is no extent, or one elsewhere? */
static bool is_misled(struct jemalloc_checking *check, uint64_t address) {
    struct jemalloc_element element;
    struct jemalloc_run run;
    return jemalloc_element_of(check->jemalloc, address, &element) &&
           (!jemalloc_read_extent(check->jemalloc, &element, &run) || jemalloc_is_stray(&element, &run));
}

static void check_item(struct jemalloc_checking *check, const struct jemalloc_cached *item) {
    struct jemalloc_run run;
    struct jemalloc_element element;
    struct jemalloc_heap *jemalloc = check->jemalloc;
    if (jemalloc->layout.major >= 5 && !jemalloc_element_of(jemalloc, item->address, &element) &&
        check->slow_looks++ >= SLOW_LOOKS) {
        return;
    }
    if (jemalloc->layout.major >= 5 && is_misled(check, item->address)) {
        return; /* told of the extent, or the element */
    }
    if (!jemalloc_run_of(jemalloc, item->address, &run)) {
        REPORT(check, BAD_LINK, item->address, 0,
               "%s holds 0x%" PRIx64
               ", which is in no run: the cache is overwritten, or it was never jemalloc's\t",
               bin_name(check, item->bin), item->address);
        return;
    }
    switch (run.kind) {
    case JEMALLOC_SLAB:
        check_small_item(check, item, &run);
        return;
    case JEMALLOC_LARGE:
        check_large_item(check, item, &run);
        return;
    default:
        REPORT(check, DOUBLE_FREE, item->address, 0,
               "%s holds 0x%" PRIx64 ", which is in %s: freed twice, and its pages were given back in "
               "between\theader at 0x%" PRIx64,
               bin_name(check, item->bin), item->address, jemalloc_name_run(check, &run).text, run.header);
    }
}

/* The rows of a cache whose bins have overwritten stacks: one finding, where several have, for it was one
 * write that did it. */
static void check_bins_of(struct jemalloc_checking *check, const struct jemalloc_tcache *tcache) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    const uint16_t size = jemalloc->layout.tcache_bin_size;
    const struct karst_bin *first = NULL, *last = NULL;
    uint64_t from = 0, to = 0, stack = 0;
    unsigned damaged = 0;
    for (uint32_t row = tcache->first_bin; row < tcache->first_bin + tcache->bins; row++) {
        const struct karst_bin *bin = &jemalloc->heap.bins[row];
        if (!bin->damaged) {
            continue;
        }
        damaged++;
        last = bin;
        to = jemalloc_cache_bin(jemalloc, row) + size;
        if (!first) {
            first = bin;
            from = to - size;
        }
    }
    if (!first) {
        return;
    }
    jemalloc_read(jemalloc, from + jemalloc->layout.tcache_bin_stack, &stack);
    if (damaged == 1) {
        REPORT(check, BAD_COUNT, from, size,
               "%s: where its stack of pointers is makes no sense: it is overwritten, and what it holds "
               "counts as "
               "live\tbin at 0x%" PRIx64 ", stack 0x%" PRIx64,
               first->name, from, stack);
        return;
    }
    REPORT(
        check, BAD_COUNT, from, to - from,
        "%u bins of one cache, %s to 0x%" PRIx64
        ": where their stacks of pointers are makes no sense: the cache is overwritten, and what they hold "
        "counts as live\tcache at 0x%" PRIx64 ", bins from 0x%" PRIx64 ", the first with stack 0x%" PRIx64,
        damaged, first->name, last->smallest, tcache->address, from, stack);
}

void jemalloc_check_caches(struct jemalloc_checking *check) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    const struct jemalloc_cached *before = NULL;
    for (size_t i = 0; i < jemalloc->cached_count; i++) {
        const struct jemalloc_cached *item = &jemalloc->cached[i];
        if (item->bin == KARST_NONE) {
            continue;
        }
        if (before && before->address == item->address) {
            REPORT(check, DOUBLE_FREE, item->address, jemalloc->heap.bins[item->bin].smallest,
                   "0x%" PRIx64
                   " is cached twice: %s%s%s: freed twice, and the next two mallocs of that size "
                   "return it both\tin %s",
                   item->address, item->bin == before->bin ? "both times in " : "in ",
                   bin_name(check, before->bin), item->bin == before->bin ? "" : " and in another",
                   jemalloc_name_place(check, item->address).text);
            if (item->bin != before->bin) {
                REPORT(check, DOUBLE_FREE, item->address, jemalloc->heap.bins[item->bin].smallest,
                       "0x%" PRIx64 " is cached twice: in %s, too\tin %s", item->address,
                       bin_name(check, item->bin), jemalloc_name_place(check, item->address).text);
            }
            continue;
        }
        check_item(check, item);
        before = item;
    }
    for (size_t i = 0; i < jemalloc->tcache_count; i++) {
        check_bins_of(check, &jemalloc->tcaches[i]);
    }
}
