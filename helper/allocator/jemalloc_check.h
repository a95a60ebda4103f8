/* jemalloc: what the parts of its check share. jemalloc_check.c has runs, jemalloc_check_caches.c the
 * threads' caches, jemalloc_check_bins.c the arenas' bins. */
#ifndef KARST_ALLOCATOR_JEMALLOC_CHECK_H
#define KARST_ALLOCATOR_JEMALLOC_CHECK_H

#include "jemalloc.h"
#include "marks.h"

struct jemalloc_unused {
    uint64_t extents, pages;
};

struct jemalloc_checking {
    struct jemalloc_heap *jemalloc;
    struct karst_findings *findings;
    struct karst_error *error;
    bool interrupted, out_of_memory;
    unsigned slow_looks;
    struct jemalloc_unused *unused; /* of each arena: dirty, muzzy, retained */
    struct karst_marks in_bins;     /* 5.x: extents of the slabs that bins lead to, if bins_read */
    bool bins_read;
    struct karst_marks
        cut_bins;            /* of them, by number: those whose heap of slabs can't be followed to its end */
    bool locked, any_locked; /* the bin at hand; any bin: somebody was at work in it */
    struct jemalloc_run before; /* the run met last, if has_before */
    bool has_before;
    struct jemalloc_run bad; /* the pages met last whose extent is none, if has_bad: told once they end */
    bool has_bad;
    struct jemalloc_element stray; /* the element met last that leads to an extent elsewhere, if stray_pages:
                                      so many pages in a row, up to there, lead to that one */
    uint64_t stray_pages;
    bool blocks_known; /* 5.x: the allocator's own memory, all of it */
};

#define REPORT(check, code, address, size, ...)                                                              \
    karst_findings_add((check)->findings, KARST_FINDING_##code, jemalloc_torn(check),                        \
                       (check)->jemalloc->heap.index, address, size, __VA_ARGS__)

/* What a thread stopped in the middle of malloc could explain is only suspect. */
enum karst_severity jemalloc_torn(const struct jemalloc_checking *check);

struct jemalloc_name {
    char text[160];
};

/* "the 224-byte run at 0x7f... (72 regions)" */
struct jemalloc_name jemalloc_name_run(const struct jemalloc_checking *check, const struct jemalloc_run *run);

/* The run that address is in, or that there is none. */
struct jemalloc_name jemalloc_name_place(struct jemalloc_checking *check, uint64_t address);
/* Is address where a region of the small run would start, were it longer? *region: which. */
bool jemalloc_would_be_region(const struct jemalloc_run *run, uint64_t address, uint64_t *region);

/* 5.x: does the element lead to an extent that is elsewhere? That is told of the element: what else leads to
 * its page is no finding of its own. */
bool jemalloc_leads_astray(struct jemalloc_checking *check, const struct jemalloc_element *element);

/* What the threads' caches hold, and their bins. */
void jemalloc_check_caches(struct jemalloc_checking *check);

/* 5.x: each bin's current slab and its heap of others with free regions. To be called before the runs are
 * looked at: a slab with free regions that no bin leads to is lost. */
void jemalloc_check_bins(struct jemalloc_checking *check);
void jemalloc_check_listed(struct jemalloc_checking *check, const struct jemalloc_run *run);

#endif
