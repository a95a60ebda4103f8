#include "cpython_pools.h"

#include <stdlib.h>

#include "error.h"

/* An arena with less of it live than this is pinned by what is live. */
#define PINNED_SHARE 16

static void add_known(uint64_t *sum, uint64_t more) {
    *sum = *sum == UINT64_MAX || more == UINT64_MAX ? UINT64_MAX : *sum + more;
}

static void count_pool(struct cpython_pool_count *count, struct cpython_pool_row *row,
                       const struct pymalloc_pool *pool) {
    uint32_t live = pymalloc_live(pool);
    if (pool->used == 0) {
        row->free_pools += pool->bytes != NULL;
        return;
    }
    row->live_blocks += live;
    row->live_bytes += (uint64_t)live * pool->block_size;
    row->unused_bytes += (uint64_t)(pool->capacity - live) * pool->block_size;
    if (pool->block_size) {
        struct cpython_pool_class *class = &count->classes[pool->block_size / PYMALLOC_STEP - 1];
        class->pools++;
        class->live += live;
        class->unused += pool->capacity - live;
        class->lost += count->pymalloc->pool_size - (uint64_t)pool->capacity * pool->block_size;
    }
}

static bool count_arena(struct cpython_pool_count *count, size_t index, struct karst_error *error) {
    struct pymalloc_heap *pymalloc = count->pymalloc;
    const struct pymalloc_arena *arena = &pymalloc->arenas[index];
    struct cpython_pool_row *row = &count->rows[index];
    uint64_t end = arena->address + pymalloc->arena_size;
    *row = (struct cpython_pool_row){.arena = arena, .address = arena->address, .pools = arena->total_pools};
    row->resident = karst_target_resident(pymalloc->heap.target, arena->address, end);
    row->own = karst_target_own(pymalloc->heap.target, arena->address, end);
    row->free_pools = (pymalloc_arena_end(pymalloc, arena) - arena->pools_end) / pymalloc->pool_size;
    for (uint64_t at = arena->first_pool; at < arena->pools_end; at += pymalloc->pool_size) {
        struct pymalloc_pool pool;
        if (!pymalloc_load_pool(pymalloc, arena, at, &pool)) {
            return karst_fail_memory(error);
        }
        count_pool(count, row, &pool);
        if (!karst_session_progress(pymalloc->heap.session, pymalloc->pool_size, error)) {
            return false;
        }
    }
    if (row->live_blocks && row->live_bytes < pymalloc->arena_size / PINNED_SHARE) {
        count->pinned++;
        count->pin_blocks += row->live_blocks;
        count->pin_bytes += row->live_bytes;
    }
    return true;
}

static int by_live(const void *a, const void *b) {
    const struct cpython_pool_row *x = a, *y = b;
    if (x->live_bytes != y->live_bytes) {
        return x->live_bytes < y->live_bytes ? -1 : 1;
    }
    return x->address < y->address ? -1 : x->address > y->address;
}

bool cpython_count_pools(struct cpython_pool_count *count, struct pymalloc_heap *pymalloc, bool by_address,
                         struct karst_error *error) {
    *count = (struct cpython_pool_count){.pymalloc = pymalloc};
    count->rows = calloc(pymalloc->arena_count + 1, sizeof *count->rows);
    if (!count->rows) {
        return karst_fail_memory(error);
    }
    karst_session_begin(pymalloc->heap.session, "walking the pools",
                        (uint64_t)pymalloc->arena_count * pymalloc->arena_size);
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        if (!count_arena(count, i, error)) {
            return false;
        }
        struct cpython_pool_row *total = &count->total, *row = &count->rows[i];
        total->pools += row->pools;
        total->free_pools += row->free_pools;
        total->live_blocks += row->live_blocks;
        total->live_bytes += row->live_bytes;
        total->unused_bytes += row->unused_bytes;
        add_known(&total->resident, row->resident);
        add_known(&total->own, row->own);
    }
    if (!by_address) {
        qsort(count->rows, pymalloc->arena_count, sizeof *count->rows, by_live);
    }
    return true;
}

bool cpython_pools_each_live(struct pymalloc_heap *pymalloc, const struct pymalloc_arena *arena,
                             bool (*visit)(void *context, const struct karst_block *block), void *context,
                             struct karst_error *error) {
    for (uint64_t at = arena ? arena->first_pool : 0; arena && at < arena->pools_end;
         at += pymalloc->pool_size) {
        struct pymalloc_pool pool;
        if (!pymalloc_load_pool(pymalloc, arena, at, &pool)) {
            return karst_fail_memory(error);
        }
        for (uint32_t i = 0; i < pool.cut; i++) {
            uint64_t start = at + PYMALLOC_HEADER + (uint64_t)i * pool.block_size;
            struct karst_block block = {.start = start,
                                        .size = pool.block_size,
                                        .address = start + (pymalloc->debug ? PYMALLOC_DEBUG_HEAD : 0),
                                        .usable = pool.block_size,
                                        .heap = pymalloc->heap.index,
                                        .bin = KARST_NONE,
                                        .state = KARST_STATE_LIVE};
            if (!pymalloc_is_free(&pool, i) && !visit(context, &block)) {
                return true;
            }
        }
    }
    return true;
}
