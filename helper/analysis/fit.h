/* Fit: would a request of so many bytes find room in memory that the heap already has? If not, which
 * parts miss it by how much, and which block is in the way. */
#ifndef KARST_ANALYSIS_FIT_H
#define KARST_ANALYSIS_FIT_H

#include "best.h"
#include "runs.h"

/* A part that is too small. */
struct karst_near_miss {
    uint64_t address;  /* of the part's first byte */
    uint64_t size;     /* of the part */
    uint64_t needed;   /* what the block takes, header and rounding included */
    uint64_t short_by; /* needed - size */
    uint32_t arena;
    uint16_t heap;
    bool has_blocker;
    struct karst_block blocker; /* right behind the part */
    uint64_t behind_blocker;    /* bytes of the part that begins right behind blocker */
};

/* What one heap (allocator) makes of the request. */
struct karst_fit_need {
    uint64_t block;    /* 0: it can't be met at all */
    uint64_t smallest; /* what the top keeps for itself */
    bool mapped;       /* what finds no room gets a mapping of its own */
    bool *arenas;      /* those that have room */
    size_t arena_count;
};

struct karst_fit {
    uint64_t request;
    bool fits;
    uint64_t fitting_parts;
    uint64_t fitting_arenas;
    struct karst_part best;       /* the smallest part it fits in, if fits */
    struct karst_fit_need *needs; /* by heap */
    size_t need_count;
    struct karst_best nearest;  /* struct karst_near_miss without tops, the largest first */
    struct karst_near_miss top; /* the largest top, with what is free under it; size 0: none, or it fits */
    /* The near miss that ended at the block before the part to come. */
    bool has_previous;
    uint64_t previous_address;
};

/* count: near misses kept. */
bool karst_fit_open(struct karst_fit *fit, struct karst *session, uint64_t request, size_t count,
                    struct karst_error *error);
void karst_fit_part(struct karst_fit *fit, const struct karst_part *part);
/* Puts the answer in order. */
void karst_fit_finish(struct karst_fit *fit);
void karst_fit_close(struct karst_fit *fit);
/* Bytes in one piece if the block in the way went. */
uint64_t karst_near_miss_joined(const struct karst_near_miss *miss);

#endif
