/* pymalloc in the middle of an operation. It has no lock: who holds the GIL may have been stopped anywhere in
 * it, and a register then holds an address in the pool that is at work, be it the pool's or a block's, or in
 * the arena_object.
 *
 * What such a pool looks like between two stores of pymalloc_alloc(), pymalloc_free() and what they call
 * (Objects/obmalloc.c of 3.9 to 3.14; compilers change the order of stores) is no damage. Everything else is.
 */
#include "inside.h"
#include "pymalloc.h"

#include <string.h>

#define DUMMY_CLASS 0xffffu /* DUMMY_SIZE_IDX: of a pool that was never used */

bool pymalloc_in_hand(const struct pymalloc_heap *pymalloc, uint64_t pool) {
    for (size_t i = 0; i < pymalloc->in_hand_count; i++) {
        if (pymalloc->in_hand[i] == pool) {
            return true;
        }
    }
    return false;
}

static void add_pool(struct pymalloc_heap *pymalloc, uint64_t pool) {
    if (!pymalloc_in_hand(pymalloc, pool) && pymalloc->in_hand_count < PYMALLOC_IN_HAND_MAX) {
        pymalloc->in_hand[pymalloc->in_hand_count++] = pool;
    }
}

static void look_at_register(struct pymalloc_heap *pymalloc, uint64_t value) {
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        struct pymalloc_arena *arena = &pymalloc->arenas[i];
        arena->in_hand = arena->in_hand || value - arena->object < PYMALLOC_ARENA_OBJECT;
    }
    const struct pymalloc_arena *arena = pymalloc_arena_of(pymalloc, value);
    if (arena && value >= arena->first_pool && value < pymalloc_arena_end(pymalloc, arena)) {
        add_pool(pymalloc, value - (value - arena->first_pool) % pymalloc->pool_size);
        if (pymalloc->register_count < PYMALLOC_IN_HAND_MAX) {
            pymalloc->registers[pymalloc->register_count++] = value;
        }
    }
}

/* Of functions of libc that pymalloc calls, none while an arena or a ring is half done, but the debug hooks
 * have it fill blocks. What died did not stop half way: its pool is damaged. */
void pymalloc_find_inside(struct pymalloc_heap *pymalloc) {
    struct karst_target *target = pymalloc->heap.target;
    const struct karst_module *module = pymalloc->python->module;
    bool died = karst_died_of_signal(target);
    pymalloc->maybe_inside = !target->stopped;
    for (size_t i = 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        uint64_t at = thread->program_counter - module->start;
        pymalloc->maybe_inside = pymalloc->maybe_inside || at < module->end - module->start;
        if (karst_thread_in_text(target, thread, module->start, module->end)) {
            for (uint32_t k = 0; k < thread->register_count && !died; k++) {
                look_at_register(pymalloc, thread->registers[k]);
            }
        }
    }
}

bool pymalloc_block_in_hand(const struct pymalloc_heap *pymalloc, uint64_t address, uint32_t size) {
    for (size_t i = 0; i < pymalloc->register_count; i++) {
        if (pymalloc->registers[i] - address < size) {
            return true;
        }
    }
    return false;
}

/* ---- one pool -------------------------------------------------------------------------------------------
 */

static void set_free(struct pymalloc_pool *pool, uint32_t block) {
    memset(pool->free, 0, sizeof pool->free);
    pool->free[block / 64] = (uint64_t)1 << (block % 64);
    pool->listed = 1;
}

/* It is cut for the first time, or for another size: none of its blocks is anybody's yet. */
static bool is_being_made(struct pymalloc_pool *pool) {
    bool classless = pool->problem == PYMALLOC_BAD_CLASS && pool->problem_word == DUMMY_CLASS;
    if (!(pool->problem == PYMALLOC_BAD_INDEX && pool->used == 0) &&
        !(pool->used == 1 && (classless || pool->problem == PYMALLOC_BAD_OFFSET))) {
        return false;
    }
    pool->used = pool->block_size = pool->capacity = pool->cut = pool->listed = 0;
    return true;
}

/* One more block was cut off for the list, which was empty (pymalloc_pool_extend()): the head leads to where
 * the next one begins, and how far blocks are cut is not written yet; or its own link is not. So, too, the
 * second block of a new pool, before the head of the list is written. */
static bool is_being_extended(struct pymalloc_pool *pool) {
    uint64_t offset = pool->head - pool->address - PYMALLOC_HEADER;
    if (pool->head < pool->address + PYMALLOC_HEADER || pool->cut == 0) {
        return false;
    }
    bool at_block = offset % pool->block_size == 0;
    if (at_block && offset / pool->block_size == pool->cut && pool->used == pool->cut) {
        return true;
    }
    bool last = at_block && offset / pool->block_size == pool->cut - 1;
    if ((last || pool->cut == 2) && pool->used + 1 == pool->cut) {
        set_free(pool, pool->cut - 1);
        return true;
    }
    return false;
}

/* A block was counted and is not out of the list yet, or the other way round; or counted off and not in it.
 */
static bool is_miscounted(const struct pymalloc_pool *pool) {
    uint64_t sum = (uint64_t)pool->used + pool->listed;
    return pool->problem == PYMALLOC_BAD_COUNT && (sum == pool->cut + 1u || sum + 1 == pool->cut);
}

void pymalloc_settle(struct pymalloc_pool *pool) {
    bool list = pool->problem == PYMALLOC_LINK_LEAVES || pool->problem == PYMALLOC_LINK_MISALIGNED ||
                pool->problem == PYMALLOC_TWICE || pool->problem == PYMALLOC_BAD_COUNT;
    if (is_being_made(pool) || (list && is_being_extended(pool)) || is_miscounted(pool)) {
        pool->problem = PYMALLOC_FINE;
    }
}
