/* What is in pymalloc's arenas: pools, live blocks, what is unused, by arena and by size class. */
#ifndef KARST_RUNTIME_CPYTHON_POOLS_H
#define KARST_RUNTIME_CPYTHON_POOLS_H

#include "pymalloc.h"

/* What is in one arena, or in all. */
struct cpython_pool_row {
    const struct pymalloc_arena *arena;
    uint64_t address;
    uint64_t pools, free_pools, live_blocks, live_bytes, unused_bytes;
    uint64_t resident, own; /* UINT64_MAX: can't be told */
};

struct cpython_pool_class {
    uint64_t pools, live, unused, lost; /* blocks; lost: bytes of headers and rests */
};

struct cpython_pool_count {
    struct pymalloc_heap *pymalloc;
    struct cpython_pool_row *rows; /* of each arena */
    struct cpython_pool_class classes[PYMALLOC_CLASSES];
    struct cpython_pool_row total;
    uint64_t pinned, pin_blocks, pin_bytes; /* arenas that few live blocks keep from going back, and those */
};

/* Rows are in order of address, or those with the least live first. The caller frees count->rows in any case.
 */
bool cpython_count_pools(struct cpython_pool_count *count, struct pymalloc_heap *pymalloc, bool by_address,
                         struct karst_error *error);
/* Calls visit for each live block of the arena; false from it ends it. False: error. */
bool cpython_pools_each_live(struct pymalloc_heap *pymalloc, const struct pymalloc_arena *arena,
                             bool (*visit)(void *context, const struct karst_block *block), void *context,
                             struct karst_error *error);

#endif
