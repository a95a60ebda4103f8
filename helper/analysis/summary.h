/* How many blocks and bytes are in which state: by arena, by allocator, and in all. One pass, and memory
 * for a row an arena. */
#ifndef KARST_ANALYSIS_SUMMARY_H
#define KARST_ANALYSIS_SUMMARY_H

#include "hole.h"
#include "session.h"

struct karst_tally {
    uint64_t blocks, bytes; /* headers included: the states' bytes add up to system_bytes */
};

struct karst_summary_row {
    uint64_t system_bytes; /* of all its extents */
    uint64_t extents;
    struct karst_tally states[KARST_STATES];
    struct karst_tally mapped; /* live blocks in mappings of their own; in states too */
    uint64_t holes, hole_bytes;
    struct karst_hole largest; /* by usable size */
    /* Bytes in resident pages, UINT64_MAX: can't be told. Of the states: of the pages that lie in one block
     * as a whole, which is what could be given back. */
    uint64_t resident_bytes;
    uint64_t resident[KARST_STATES]; /* free, cached and top only */
};

/* Rows of heap i: arenas[i][0 ... arena_count - 1], and mapped blocks in arenas[i][arena_count]. */
struct karst_summary {
    struct karst_summary_row total;
    struct karst_summary_row *heaps;
    struct karst_summary_row **arenas;
    size_t heap_count;
};

/* False with error; summary has to be cleared in any case. */
bool karst_summarize(struct karst *session, struct karst_summary *summary, struct karst_error *error);
void karst_summary_clear(struct karst_summary *summary);

#endif
