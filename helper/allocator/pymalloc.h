/* pymalloc, CPython's allocator of small blocks (Objects/obmalloc.c, Include/internal/pycore_obmalloc.h
 * of 3.9 to 3.15), of the allocator's own files: pymalloc_find.c (states and arenas), pymalloc_pool.c (one
 * pool), pymalloc_inside.c (what a thread had in hand), pymalloc.c (walk, bins, runs, what is said of a
 * block), pymalloc_check.c (check).
 *
 * Arenas of 1 MiB (3.9: 256 KiB) are cut into pools of 16 KiB (4 KiB), each for blocks of one of 32 sizes. A
 * pool begins with a header of 48 bytes: blocks in use, the list of blocks freed, how far blocks were cut
 * yet. */
#ifndef KARST_ALLOCATOR_PYMALLOC_H
#define KARST_ALLOCATOR_PYMALLOC_H

#include "cpython.h"

#define PYMALLOC_CLASSES     32u
#define PYMALLOC_STEP        16u /* bytes between two classes */
#define PYMALLOC_HEADER      48u
#define PYMALLOC_FREE_POOLS  PYMALLOC_CLASSES /* the bin of pools without a class */
#define PYMALLOC_POOL_MAX    (16u << 10)
#define PYMALLOC_BLOCKS_MAX  (PYMALLOC_POOL_MAX / PYMALLOC_STEP)
#define PYMALLOC_DEBUG_HEAD  16u /* what the debug hooks put in front of a block's bytes ... */
#define PYMALLOC_DEBUG_BYTES 24u /* ... and around them in all */

#define PYMALLOC_IN_HAND_MAX 256u

struct pymalloc_arena {
    uint64_t address;
    uint64_t first_pool;
    uint64_t pools_end;      /* pools up to here were handed out at least once */
    uint64_t object;         /* address of its arena_object */
    uint64_t free_list;      /* of pools */
    uint64_t next, previous; /* in the list of arenas that have free pools */
    uint32_t index;
    uint32_t free_pools, total_pools; /* by its own account */
    bool in_hand;                     /* a thread may have been at work on its arena_object */
};

/* What is wrong with a pool; the first of these that was met. */
enum pymalloc_problem {
    PYMALLOC_FINE,
    PYMALLOC_UNREADABLE,
    PYMALLOC_BAD_CLASS,
    PYMALLOC_BAD_OFFSET,      /* how far blocks were cut */
    PYMALLOC_BAD_INDEX,       /* it says that it belongs to another arena */
    PYMALLOC_LINK_LEAVES,     /* a link of the free list leads out of the pool, or to what was not cut yet */
    PYMALLOC_LINK_MISALIGNED, /* into the middle of a block, or of the header */
    PYMALLOC_TWICE,           /* a block stands in the free list twice */
    PYMALLOC_BAD_COUNT        /* blocks in use and free ones do not add up */
};

struct pymalloc_pool {
    uint64_t address;
    const uint8_t *bytes; /* of the whole pool; NULL: unreadable */
    uint32_t used;        /* blocks in use by its own account; 0: no class, free for any */
    uint32_t block_size;  /* 0 unless used */
    uint32_t capacity, cut;
    uint32_t listed; /* blocks met in its free list */
    uint64_t head;   /* of its free list */
    uint64_t next, previous;
    enum pymalloc_problem problem;
    uint64_t problem_at;                     /* the link's place, or the block's */
    uint64_t problem_word;                   /* what stands there */
    uint64_t free[PYMALLOC_BLOCKS_MAX / 64]; /* a bit for each block in the list */
};

struct pymalloc_heap {
    struct karst_heap heap;
    struct cpython *python;
    uint64_t state; /* of 3.12 and later: address of its struct _obmalloc_state; 0: static variables */
    uint64_t used;  /* usedpools; 0: not found */
    uint64_t array; /* of arena_objects */
    uint32_t pool_size, arena_size;
    bool debug;        /* blocks are dressed by the debug hooks (PYTHONMALLOC=debug, -X dev) */
    bool maybe_inside; /* a thread may stand in the middle of an operation */
    /* Pools that a thread may be at work on, and the addresses in them that its registers held. */
    uint64_t in_hand[PYMALLOC_IN_HAND_MAX], registers[PYMALLOC_IN_HAND_MAX];
    size_t in_hand_count, register_count;
    struct pymalloc_arena *arenas; /* by address, as the extents */
    size_t arena_count;
    uint64_t pools_of[PYMALLOC_CLASSES + 1]; /* filled by load_bins(): pools by class, free ones at the end */
    uint8_t *buffer;                         /* the pool being looked at */
};

static inline bool pymalloc_is_free(const struct pymalloc_pool *pool, uint32_t block) {
    return pool->free[block / 64] >> (block % 64) & 1;
}

/* The whole of a pool; false: no memory. What is wrong with it is in its problem. */
bool pymalloc_load_pool(struct pymalloc_heap *pymalloc, const struct pymalloc_arena *arena, uint64_t address,
                        struct pymalloc_pool *pool);
#define PYMALLOC_ARENA_OBJECT 48u /* bytes of a struct arena_object */
/* Sets maybe_inside and what is in hand; when the arenas are known. */
void pymalloc_find_inside(struct pymalloc_heap *pymalloc);
bool pymalloc_in_hand(const struct pymalloc_heap *pymalloc, uint64_t pool);
bool pymalloc_block_in_hand(const struct pymalloc_heap *pymalloc, uint64_t address, uint32_t size);
/* For a pool in hand with a problem: if half an operation explains it, it is none. */
void pymalloc_settle(struct pymalloc_pool *pool);
/* A pool's blocks that the program holds: what was cut and is not in the list. */
uint32_t pymalloc_live(const struct pymalloc_pool *pool);
/* The end of an arena's last pool. */
static inline uint64_t pymalloc_arena_end(const struct pymalloc_heap *pymalloc,
                                          const struct pymalloc_arena *arena) {
    return arena->first_pool + (uint64_t)arena->total_pools * pymalloc->pool_size;
}
/* The arena that holds address; NULL: none. */
const struct pymalloc_arena *pymalloc_arena_of(const struct pymalloc_heap *pymalloc, uint64_t address);

bool pymalloc_find(struct karst *session, struct karst_error *error);
bool pymalloc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error);

#endif
