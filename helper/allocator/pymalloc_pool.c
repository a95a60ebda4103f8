/* One pool of pymalloc: its header and its list of free blocks. */
#include "pymalloc.h"

#include <stdlib.h>
#include <string.h>

/* struct pool_header */
#define POOL_USED        0
#define POOL_FREE_BLOCK  8
#define POOL_NEXT        16
#define POOL_PREVIOUS    24
#define POOL_ARENA_INDEX 32
#define POOL_CLASS       36
#define POOL_NEXT_OFFSET 40

static uint32_t half(const uint8_t *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static void blame(struct pymalloc_pool *pool, enum pymalloc_problem problem, uint64_t at, uint64_t word) {
    if (pool->problem == PYMALLOC_FINE) {
        pool->problem = problem;
        pool->problem_at = at;
        pool->problem_word = word;
    }
}

/* Each step marks a block that was not marked yet, so that it ends. */
static void follow_list(struct pymalloc_pool *pool, uint32_t pool_size) {
    uint64_t place = pool->address + POOL_FREE_BLOCK, link = pool->head;
    while (link) {
        uint64_t offset = link - pool->address;
        if (offset >= pool_size || offset < PYMALLOC_HEADER ||
            (offset - PYMALLOC_HEADER) / pool->block_size >= pool->cut) {
            blame(pool, PYMALLOC_LINK_LEAVES, place, link);
            return;
        }
        if ((offset - PYMALLOC_HEADER) % pool->block_size != 0) {
            blame(pool, PYMALLOC_LINK_MISALIGNED, place, link);
            return;
        }
        uint32_t block = (uint32_t)(offset - PYMALLOC_HEADER) / pool->block_size;
        if (pymalloc_is_free(pool, block)) {
            blame(pool, PYMALLOC_TWICE, link, place);
            return;
        }
        pool->free[block / 64] |= (uint64_t)1 << (block % 64);
        pool->listed++;
        place = link;
        link = cpython_word(pool->bytes + offset);
    }
}

static void read_header(struct pymalloc_heap *pymalloc, const struct pymalloc_arena *arena,
                        struct pymalloc_pool *pool) {
    const uint8_t *bytes = pool->bytes;
    uint32_t class = half(bytes + POOL_CLASS), offset = half(bytes + POOL_NEXT_OFFSET),
             index = half(bytes + POOL_ARENA_INDEX);
    pool->used = half(bytes + POOL_USED);
    pool->head = cpython_word(bytes + POOL_FREE_BLOCK);
    pool->next = cpython_word(bytes + POOL_NEXT);
    pool->previous = cpython_word(bytes + POOL_PREVIOUS);
    if (index != arena->index) {
        blame(pool, PYMALLOC_BAD_INDEX, pool->address + POOL_ARENA_INDEX, index);
    }
    if (pool->used == 0) {
        return;
    }
    if (class >= PYMALLOC_CLASSES) {
        blame(pool, PYMALLOC_BAD_CLASS, pool->address + POOL_CLASS, class);
        return;
    }
    pool->block_size = (class + 1) * PYMALLOC_STEP;
    pool->capacity = (pymalloc->pool_size - PYMALLOC_HEADER) / pool->block_size;
    if (offset < PYMALLOC_HEADER + pool->block_size || (offset - PYMALLOC_HEADER) % pool->block_size != 0 ||
        (offset - PYMALLOC_HEADER) / pool->block_size > pool->capacity) {
        blame(pool, PYMALLOC_BAD_OFFSET, pool->address + POOL_NEXT_OFFSET, offset);
        pool->cut = pool->capacity;
    } else {
        pool->cut = (offset - PYMALLOC_HEADER) / pool->block_size;
    }
    follow_list(pool, pymalloc->pool_size);
    if (pool->used + (uint64_t)pool->listed != pool->cut) {
        blame(pool, PYMALLOC_BAD_COUNT, pool->address, pool->used);
    }
}

bool pymalloc_load_pool(struct pymalloc_heap *pymalloc, const struct pymalloc_arena *arena, uint64_t address,
                        struct pymalloc_pool *pool) {
    *pool = (struct pymalloc_pool){.address = address};
    if (!pymalloc->buffer && !(pymalloc->buffer = malloc(PYMALLOC_POOL_MAX))) {
        return false;
    }
    if (!karst_target_read_all(pymalloc->heap.target, address, pymalloc->buffer, pymalloc->pool_size)) {
        blame(pool, PYMALLOC_UNREADABLE, address, 0);
        return true;
    }
    pool->bytes = pymalloc->buffer;
    read_header(pymalloc, arena, pool);
    if (pool->problem != PYMALLOC_FINE && pymalloc_in_hand(pymalloc, address)) {
        pymalloc_settle(pool);
    }
    return true;
}

uint32_t pymalloc_live(const struct pymalloc_pool *pool) {
    return pool->cut - pool->listed;
}
