/* Runs: the block stream condensed to what is not in use. A sink that hands its consumer each run of
 * unused blocks, and each contiguous part of it that can be reused as one piece; holes, pins, fits and
 * trims are all told from these, so that a live block costs no more than a counter. */
#ifndef KARST_ANALYSIS_RUNS_H
#define KARST_ANALYSIS_RUNS_H

#include "hole.h"
#include "session.h"

/* What lies between two parts of one extent, or between its start and its first part. */
struct karst_gap {
    bool after_part;                /* false: begins with the extent */
    uint64_t start, end;            /* bytes */
    uint64_t live, cached, other;   /* blocks; other: metadata but page runs' own, damaged */
    struct karst_block first, last; /* valid unless the gap is empty */
};

/* Memory that malloc could hand out as one piece: free blocks, those cached ones that the allocator itself
 * merges with them before it asks the system for more (glibc's fastbins), and the top. */
struct karst_part {
    const struct karst_extent *extent;
    uint64_t start, end;
    uint64_t top; /* bytes of the heap's top in it, at its end; 0: none */
    struct karst_gap gap;
    bool has_behind;           /* false: it ends with the extent */
    struct karst_block behind; /* the block behind it */
};

/* A maximal run of blocks that are free, cached or top; it ends with the page run it lies in. */
struct karst_run {
    const struct karst_extent *extent;
    struct karst_hole hole; /* a hole if karst_run_is_hole() */
    uint64_t top_bytes;
    uint64_t blocks;                  /* free and cached ones */
    bool has_before, has_after;       /* false: it begins, ends with the extent */
    struct karst_block before, after; /* live, metadata or damaged; at the end of a page run also unused */
};

/* A run is a hole if something in use bounds it on both sides and it is not the end of the heap. */
static inline bool karst_run_is_hole(const struct karst_run *run) {
    return run->has_before && run->has_after && run->top_bytes == 0;
}

/* Bytes and blocks of what was read; live bytes are what the others leave of bytes. */
struct karst_run_totals {
    uint64_t bytes; /* of the extents */
    uint64_t live_blocks, free_blocks, cached_blocks;
    uint64_t free_bytes, cached_bytes, top_bytes, metadata_bytes;
    uint64_t unknown_bytes, unknown_ranges; /* damaged or missing */
    uint64_t foreign_bytes;                 /* in between, but not the allocator's */
};

struct karst_run_consumer {
    /* In address order; a run comes behind its parts. */
    void (*part)(struct karst_run_consumer *consumer, const struct karst_part *part);
    void (*run)(struct karst_run_consumer *consumer, const struct karst_run *run);
};

struct karst_run_reader {
    struct karst_sink sink; /* the first member: what karst_session_walk() is given */
    struct karst *session;
    struct karst_run_consumer *consumer;
    /* Whether an extent is asked for; NULL: all. Those with one mapped block have no runs. */
    bool (*wanted)(void *context, const struct karst_extent *extent);
    void *wanted_context;
    struct karst_run_totals totals;
    const struct karst_extent *extent; /* NULL: left out */
    bool run_open, part_open;
    bool has_last;
    struct karst_block last;         /* of the batch before */
    struct karst_block last_counted; /* in a gap: the last one live, cached or other */
    struct karst_gap gap;            /* since the last part */
    struct karst_part part;
    struct karst_run run;
    struct karst_hole_tracker tracker;
};

void karst_run_reader_open(struct karst_run_reader *reader, struct karst *session,
                           struct karst_run_consumer *consumer);
/* Hands on what the end of the last extent bounds; to be called after the walk. */
void karst_run_reader_finish(struct karst_run_reader *reader);

#endif
