/* pymalloc: the walk over pools, bins, page runs, and what can be said of one block. */
#include "pymalloc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct pymalloc_arena *pymalloc_arena_of(const struct pymalloc_heap *pymalloc, uint64_t address) {
    size_t low = 0, high = pymalloc->arena_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pymalloc->arenas[middle].address + pymalloc->arena_size <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < pymalloc->arena_count && pymalloc->arenas[low].address <= address ? &pymalloc->arenas[low]
                                                                                   : NULL;
}

/* ---- the walk -------------------------------------------------------------------------------------------
 */

struct stream {
    struct pymalloc_heap *pymalloc;
    struct karst_batch batch;
};

static bool emit(struct stream *stream, uint64_t start, uint64_t size, enum karst_state state, uint32_t bin,
                 unsigned flags) {
    struct karst_block *block = size ? karst_batch_next(&stream->batch) : NULL;
    if (!block) {
        return size == 0;
    }
    bool dressed = stream->pymalloc->debug && state == KARST_STATE_LIVE && size > PYMALLOC_DEBUG_BYTES;
    *block = (struct karst_block){.start = start,
                                  .size = size,
                                  .address = dressed ? start + PYMALLOC_DEBUG_HEAD : start,
                                  .usable = dressed ? size - PYMALLOC_DEBUG_BYTES : size,
                                  .arena = 0,
                                  .bin = bin,
                                  .heap = stream->pymalloc->heap.index,
                                  .state = (uint8_t)state,
                                  .flags = (uint8_t)flags};
    return true;
}

static bool is_free(const struct pymalloc_pool *pool) {
    return pool->bytes && pool->used == 0;
}

/* A used pool whose class makes no sense, or that can't be read, has none. */
static bool has_class(const struct pymalloc_pool *pool) {
    return pool->block_size != 0;
}

static bool emit_pool(struct stream *stream, const struct pymalloc_pool *pool) {
    uint32_t pool_size = stream->pymalloc->pool_size;
    if (!has_class(pool) && !is_free(pool)) {
        return emit(stream, pool->address, pool_size, KARST_STATE_UNKNOWN, KARST_NONE, KARST_BLOCK_RUN);
    }
    if (is_free(pool)) {
        /* Free pools side by side are one stretch: what goes back to the system, if the whole arena does. */
        return emit(stream, pool->address, pool_size, KARST_STATE_FREE, PYMALLOC_FREE_POOLS, 0);
    }
    uint32_t bin = pool->block_size / PYMALLOC_STEP - 1;
    uint64_t at = pool->address + PYMALLOC_HEADER;
    bool fine = emit(stream, pool->address, PYMALLOC_HEADER, KARST_STATE_METADATA, KARST_NONE,
                     KARST_BLOCK_REGION | KARST_BLOCK_RUN);
    for (uint32_t i = 0; i < pool->capacity && fine; i++, at += pool->block_size) {
        bool live = i < pool->cut && !pymalloc_is_free(pool, i);
        fine = emit(stream, at, pool->block_size, live ? KARST_STATE_LIVE : KARST_STATE_FREE,
                    live ? KARST_NONE : bin, KARST_BLOCK_REGION);
    }
    /* What is too little for one more block. */
    return fine && emit(stream, at, pool->address + pool_size - at, KARST_STATE_METADATA, KARST_NONE,
                        KARST_BLOCK_REGION);
}

static bool walk(struct karst_heap *heap, const struct karst_extent *extent, struct karst_sink *sink,
                 struct karst_error *error) {
    struct pymalloc_heap *pymalloc = (struct pymalloc_heap *)heap;
    const struct pymalloc_arena *arena = pymalloc_arena_of(pymalloc, extent->start);
    struct stream stream = {.pymalloc = pymalloc, .batch = {.sink = sink}};
    if (!arena) {
        return emit(&stream, extent->start, extent->end - extent->start, KARST_STATE_UNKNOWN, KARST_NONE,
                    0) &&
               karst_batch_flush(&stream.batch);
    }
    /* An arena that is not aligned loses what is before its first pool and behind its last. */
    bool more = emit(&stream, arena->address, arena->first_pool - arena->address, KARST_STATE_METADATA,
                     KARST_NONE, 0);
    for (uint64_t at = arena->first_pool; at < arena->pools_end && more; at += pymalloc->pool_size) {
        struct pymalloc_pool pool;
        if (!pymalloc_load_pool(pymalloc, arena, at, &pool)) {
            return karst_fail_memory(error);
        }
        more = emit_pool(&stream, &pool);
        if (!karst_session_progress(heap->session, pymalloc->pool_size, error)) {
            return false;
        }
    }
    uint64_t end = pymalloc_arena_end(pymalloc, arena), rest = arena->address + pymalloc->arena_size - end;
    for (uint64_t at = arena->pools_end; at < end && more; at += pymalloc->pool_size) {
        more = emit(&stream, at, pymalloc->pool_size, KARST_STATE_FREE, PYMALLOC_FREE_POOLS, 0);
    }
    return more && emit(&stream, end, rest, KARST_STATE_METADATA, KARST_NONE, 0) &&
           karst_batch_flush(&stream.batch);
}

/* ---- bins and runs ----------------------------------------------------------------------------------------
 */

static void count_pool(struct pymalloc_heap *pymalloc, const struct pymalloc_pool *pool) {
    struct karst_bin *bins = pymalloc->heap.bins;
    if (!has_class(pool) && !is_free(pool)) {
        return;
    }
    if (is_free(pool)) {
        pymalloc->pools_of[PYMALLOC_FREE_POOLS]++;
        bins[PYMALLOC_FREE_POOLS].blocks++;
        bins[PYMALLOC_FREE_POOLS].bytes += pymalloc->pool_size;
        return;
    }
    uint32_t class = pool->block_size / PYMALLOC_STEP - 1, unused = pool->capacity - pymalloc_live(pool);
    pymalloc->pools_of[class]++;
    bins[class].blocks += unused;
    bins[class].bytes += (uint64_t)unused * pool->block_size;
    bins[class].damaged |= pool->problem != PYMALLOC_FINE;
}

static bool load_bins(struct karst_heap *heap, struct karst_error *error) {
    struct pymalloc_heap *pymalloc = (struct pymalloc_heap *)heap;
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        const struct pymalloc_arena *arena = &pymalloc->arenas[i];
        for (uint64_t at = arena->first_pool; at < arena->pools_end; at += pymalloc->pool_size) {
            struct pymalloc_pool pool;
            if (!pymalloc_load_pool(pymalloc, arena, at, &pool)) {
                return karst_fail_memory(error);
            }
            count_pool(pymalloc, &pool);
            if (!karst_session_progress(heap->session, pymalloc->pool_size, error)) {
                return false;
            }
        }
        uint64_t never = (pymalloc_arena_end(pymalloc, arena) - arena->pools_end) / pymalloc->pool_size;
        pymalloc->pools_of[PYMALLOC_FREE_POOLS] += never;
        heap->bins[PYMALLOC_FREE_POOLS].blocks += never;
        heap->bins[PYMALLOC_FREE_POOLS].bytes += never * pymalloc->pool_size;
    }
    return true;
}

static struct karst_page_run run_of(const struct pymalloc_heap *pymalloc, const struct pymalloc_pool *pool) {
    struct karst_page_run run = {.address = pool->address,
                                 .size = pymalloc->pool_size,
                                 .arena = 0,
                                 .bin = KARST_NONE,
                                 .heap = pymalloc->heap.index,
                                 .damaged = pool->problem != PYMALLOC_FINE,
                                 .kind = "pool"};
    if (is_free(pool)) {
        run.kind = "free pool";
        run.bin = PYMALLOC_FREE_POOLS;
    } else if (pool->block_size) {
        run.region_size = pool->block_size;
        run.first_region = pool->address + PYMALLOC_HEADER;
        run.regions = pool->capacity;
        run.live = pymalloc_live(pool);
        run.free = run.regions - run.live;
        run.bin = pool->block_size / PYMALLOC_STEP - 1;
    }
    return run;
}

static bool runs(struct karst_heap *heap, bool (*visit)(void *context, const struct karst_page_run *run),
                 void *context, struct karst_error *error) {
    struct pymalloc_heap *pymalloc = (struct pymalloc_heap *)heap;
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        const struct pymalloc_arena *arena = &pymalloc->arenas[i];
        for (uint64_t at = arena->first_pool; at < pymalloc_arena_end(pymalloc, arena);
             at += pymalloc->pool_size) {
            struct pymalloc_pool pool = {.address = at, .bytes = (const uint8_t *)""};
            if (at < arena->pools_end && !pymalloc_load_pool(pymalloc, arena, at, &pool)) {
                return karst_fail_memory(error);
            }
            struct karst_page_run run = run_of(pymalloc, &pool);
            if (!visit(context, &run)) {
                return true;
            }
            if (!karst_session_progress(heap->session, pymalloc->pool_size, error)) {
                return false;
            }
        }
    }
    return true;
}

/* ---- questions --------------------------------------------------------------------------------------------
 */

static uint64_t block_size(struct karst_heap *heap, uint64_t request, bool *mapped) {
    const struct pymalloc_heap *pymalloc = (const struct pymalloc_heap *)heap;
    uint64_t wanted = request + (pymalloc->debug ? PYMALLOC_DEBUG_BYTES : 0);
    *mapped = false;
    if (request > PYMALLOC_CLASSES * PYMALLOC_STEP || wanted > PYMALLOC_CLASSES * PYMALLOC_STEP) {
        return 0; /* malloc's business */
    }
    wanted = (wanted + PYMALLOC_STEP - 1) & ~(uint64_t)(PYMALLOC_STEP - 1);
    return wanted ? wanted : PYMALLOC_STEP;
}

static bool describe(struct karst_heap *heap, const struct karst_block *block, struct karst_facts *facts,
                     struct karst_error *error) {
    struct pymalloc_heap *pymalloc = (struct pymalloc_heap *)heap;
    const struct pymalloc_arena *arena = pymalloc_arena_of(pymalloc, block->start);
    if (!arena || block->start < arena->first_pool || block->start >= arena->pools_end) {
        return true;
    }
    uint64_t address =
        arena->first_pool + (block->start - arena->first_pool) / pymalloc->pool_size * pymalloc->pool_size;
    struct pymalloc_pool pool;
    if (!pymalloc_load_pool(pymalloc, arena, address, &pool)) {
        return karst_fail_memory(error);
    }
    bool fine;
    if (!pool.bytes) {
        fine = karst_facts_add(facts, "pool", address, "can't be read");
    } else if (pool.used == 0) {
        fine = karst_facts_add(facts, "pool", address, "free: it may be used for any size");
    } else {
        fine = karst_facts_add(facts, "pool", address, "for blocks of %u bytes: %u of %u live%s",
                               pool.block_size, pymalloc_live(&pool), pool.capacity,
                               pool.problem != PYMALLOC_FINE ? "; damaged, see check" : "");
    }
    fine = fine && karst_facts_add(facts, "arena", arena->address, "number %u: %u of %u pools free",
                                   arena->index, arena->free_pools, arena->total_pools);
    return fine || karst_fail_memory(error);
}

static int figures(struct karst_heap *heap, struct karst_figure *list, struct karst_error *error) {
    (void)error;
    const struct pymalloc_heap *pymalloc = (const struct pymalloc_heap *)heap;
    uint64_t free_pools = 0, pools = 0;
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        free_pools += pymalloc->arenas[i].free_pools;
        pools += pymalloc->arenas[i].total_pools;
    }
    list[0] = (struct karst_figure){"arenas", pymalloc->arena_count, true};
    list[1] = (struct karst_figure){"pools", pools, true};
    list[2] = (struct karst_figure){"free_pools", free_pools, true};
    return 3;
}

static void close_heap(struct karst_heap *heap) {
    struct pymalloc_heap *pymalloc = (struct pymalloc_heap *)heap;
    karst_facts_clear(&heap->facts);
    free(heap->arenas);
    free(heap->bins);
    free(heap->extents);
    free(pymalloc->arenas);
    free(pymalloc->buffer);
    free(pymalloc);
}

const struct karst_allocator karst_pymalloc = {
    .name = "pymalloc",
    .find = pymalloc_find,
    .walk = walk,
    .load_bins = load_bins,
    .check = pymalloc_check,
    .block_size = block_size,
    .describe = describe,
    .runs = runs,
    .figures = figures,
    .close = close_heap,
};
