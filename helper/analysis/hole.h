/* Holes: maximal runs of free and cached blocks between two blocks in use of one extent. The one place
 * where that is decided, for every analysis that counts, lists or draws them. In use is what is live, the
 * allocator's own, or damaged (not known to be free). The top is no hole, nor is what lies under it or at
 * an extent's edge. The ends of a page run bound holes too: free regions in it are no use to others. */
#ifndef KARST_ANALYSIS_HOLE_H
#define KARST_ANALYSIS_HOLE_H

#include <stdbool.h>
#include <string.h>

#include "karst.h"

struct karst_hole {
    uint64_t start, end;   /* of its bytes: where the block before ends, where the one behind starts */
    uint64_t free_bytes;   /* of free blocks, headers included */
    uint64_t cached_bytes; /* of cached blocks: trapped */
    uint64_t usable_start; /* its largest contiguous free part, which is its usable size; size 0: none */
    uint64_t usable;
    bool regions; /* of one page run: usable is then a region, for that is as much as anybody gets */
};

/* Follows the blocks of one extent at a time. */
struct karst_hole_tracker {
    uint64_t used_end; /* of the last block in use, 0: none in this extent yet */
    uint64_t run_end;  /* of the run of free blocks under way */
    uint64_t run_start;
    bool regions;           /* it is made of regions of a page run */
    struct karst_hole hole; /* under way */
};

static inline void karst_hole_begin_extent(struct karst_hole_tracker *tracker) {
    memset(tracker, 0, sizeof *tracker);
}

/* Whether a block in this state bounds holes. */
static inline bool karst_hole_bounded_by(enum karst_state state) {
    return state == KARST_STATE_LIVE || state == KARST_STATE_METADATA || state == KARST_STATE_UNKNOWN;
}

/* Whether an unused block begins something that the unused block before it, in regions or not, is no part of:
 * a page run after another, or after unused pages, or these after it. */
static inline bool karst_hole_parted(bool after_regions, const struct karst_block *block) {
    return (block->flags & KARST_BLOCK_RUN) || after_regions != !!(block->flags & KARST_BLOCK_REGION);
}

static inline void karst_hole_add(struct karst_hole_tracker *tracker, const struct karst_block *block) {
    struct karst_hole *hole = &tracker->hole;
    hole->regions = block->flags & KARST_BLOCK_REGION;
    if (block->state == KARST_STATE_CACHED) {
        hole->cached_bytes += block->size;
    } else if (block->state == KARST_STATE_FREE) {
        hole->free_bytes += block->size;
        if (tracker->run_end != block->start) {
            tracker->run_start = block->start;
        }
        tracker->run_end = block->start + block->size;
        uint64_t usable = hole->regions ? block->size : tracker->run_end - tracker->run_start;
        if (usable > hole->usable) {
            hole->usable = usable;
            hole->usable_start = hole->regions ? block->start : tracker->run_start;
        }
    } else {
        tracker->used_end = 0;
    }
}

/* Ends the hole under way, if there is one, at end; what follows begins at next. */
static inline bool karst_hole_end(struct karst_hole_tracker *tracker, uint64_t end, uint64_t next,
                                  struct karst_hole *hole) {
    uint64_t before = tracker->used_end;
    tracker->used_end = next;
    if (before == end) {
        return false;
    }
    bool ends_hole = before != 0 && before < end;
    if (ends_hole) {
        *hole = tracker->hole;
        hole->start = before;
        hole->end = end;
    }
    memset(&tracker->hole, 0, sizeof tracker->hole);
    tracker->run_start = tracker->run_end = 0;
    return ends_hole;
}

/* Takes the next block. True: it ends a hole, which is in *hole. */
static inline bool karst_hole_next(struct karst_hole_tracker *tracker, const struct karst_block *block,
                                   struct karst_hole *hole) {
    bool regions = block->flags & KARST_BLOCK_REGION;
    if (!karst_hole_bounded_by((enum karst_state)block->state)) {
        bool parted = karst_hole_parted(tracker->regions, block);
        bool ends_hole = parted && karst_hole_end(tracker, block->start, block->start, hole);
        tracker->regions = regions;
        karst_hole_add(tracker, block);
        return ends_hole;
    }
    tracker->regions = regions;
    return karst_hole_end(tracker, block->start, block->start + block->size, hole);
}

/* What lies before start was looked at otherwise, and a block in use ends there. */
static inline void karst_hole_skip(struct karst_hole_tracker *tracker, uint64_t start) {
    memset(tracker, 0, sizeof *tracker);
    tracker->used_end = start;
    tracker->regions = true;
}

#endif
