/* What is wrong in pymalloc's arenas: each pool by itself, each arena's account, the rings of used pools. */
#include "pymalloc.h"

#include <inttypes.h>
#include <stdlib.h>

#define POOL_NEXT     16
#define POOL_PREVIOUS 24
#define POOL_CLASS    36

struct checker {
    struct pymalloc_heap *pymalloc;
    struct karst_findings *findings;
    enum karst_severity severity;           /* of what an unfinished operation could explain */
    uint64_t partly_used[PYMALLOC_CLASSES]; /* pools with blocks in use and free ones: what the rings should
                                               hold */
};

static const char *why_suspected(enum karst_severity severity) {
    return severity == KARST_SEVERITY_SUSPECT
               ? "; a thread was in the interpreter, which may have been in the middle of it"
               : "";
}

/* Of what no half of an operation explains, in a pool that a thread was at work on all the same. */
static enum karst_severity severity_of(const struct checker *checker, const struct pymalloc_pool *pool) {
    return pymalloc_in_hand(checker->pymalloc, pool->address) ? KARST_SEVERITY_SUSPECT
                                                              : KARST_SEVERITY_CORRUPT;
}

/* ---- pools ------------------------------------------------------------------------------------------------
 */

static void report_links(struct checker *checker, const struct pymalloc_pool *pool) {
    uint16_t heap = checker->pymalloc->heap.index;
    enum karst_severity severity = severity_of(checker, pool);
    if (pool->problem == PYMALLOC_TWICE) {
        karst_findings_add(checker->findings, KARST_FINDING_DOUBLE_FREE, severity, heap, pool->problem_at,
                           pool->block_size,
                           "block is in the free list of its pool twice: freed twice%s\tpool 0x%" PRIx64
                           ", linked again from 0x%" PRIx64,
                           why_suspected(severity), pool->address, pool->problem_word);
        return;
    }
    bool leaves = pool->problem == PYMALLOC_LINK_LEAVES;
    karst_findings_add(
        checker->findings, KARST_FINDING_BAD_LINK, severity, heap, pool->problem_at, pool->block_size,
        "free list %s: the first word of a freed block was overwritten, after its free or from the block "
        "before%s\t0x%" PRIx64 " in pool 0x%" PRIx64 " (blocks of %u, cut up to 0x%" PRIx64 ")",
        leaves ? "leaves the blocks of its pool" : "leads into the middle of a block",
        why_suspected(severity), pool->problem_word, pool->address, pool->block_size,
        pool->address + PYMALLOC_HEADER + (uint64_t)pool->cut * pool->block_size);
}

static void report_header(struct checker *checker, const struct pymalloc_pool *pool) {
    uint16_t heap = checker->pymalloc->heap.index;
    enum karst_severity severity = severity_of(checker, pool);
    switch (pool->problem) {
    case PYMALLOC_BAD_CLASS:
        karst_findings_add(
            checker->findings, KARST_FINDING_BAD_SIZE, severity, heap, pool->problem_at, 4,
            "pool has no size class that there is: its header was overwritten%s\tclass %" PRIu64
            " of 0 to %u, pool 0x%" PRIx64,
            why_suspected(severity), pool->problem_word, PYMALLOC_CLASSES - 1, pool->address);
        break;
    case PYMALLOC_BAD_OFFSET:
        karst_findings_add(checker->findings, KARST_FINDING_BAD_SIZE, severity, heap, pool->problem_at, 4,
                           "pool says its blocks are cut up to where no block ends: its header was "
                           "overwritten%s\toffset %" PRIu64 ", blocks of %u, pool 0x%" PRIx64,
                           why_suspected(severity), pool->problem_word, pool->block_size, pool->address);
        break;
    case PYMALLOC_BAD_INDEX:
        karst_findings_add(checker->findings, KARST_FINDING_BAD_ROOT, severity, heap, pool->problem_at, 4,
                           "pool says it belongs to another arena: its header was overwritten%s\tarena "
                           "%" PRIu64 ", pool 0x%" PRIx64,
                           why_suspected(severity), pool->problem_word, pool->address);
        break;
    default:
        karst_findings_add(
            checker->findings, KARST_FINDING_BAD_COUNT, checker->severity, heap, pool->address, 4,
            "blocks in use and free ones do not add up to those cut%s\t%u in use and %u in the free "
            "list, %u cut",
            why_suspected(checker->severity), pool->used, pool->listed, pool->cut);
    }
}

/* A pool with blocks in use and free ones stands in the ring of its class: its neighbours lead back to it,
 * unless it or one of them is being put there or taken out. */
static void check_ring_links(struct checker *checker, const struct pymalloc_pool *pool) {
    const struct pymalloc_heap *pymalloc = checker->pymalloc;
    struct cpython *python = pymalloc->python;
    uint64_t forth = 0, back = 0;
    if (cpython_read(python, pool->next + POOL_PREVIOUS, &back) && back == pool->address &&
        cpython_read(python, pool->previous + POOL_NEXT, &forth) && forth == pool->address) {
        return;
    }
    if (pymalloc_in_hand(pymalloc, pool->address) || pymalloc_in_hand(pymalloc, pool->next) ||
        pymalloc_in_hand(pymalloc, pool->previous) || pymalloc_in_hand(pymalloc, back) ||
        pymalloc_in_hand(pymalloc, forth)) {
        return;
    }
    karst_findings_add(
        checker->findings, KARST_FINDING_BAD_LINK, checker->severity, checker->pymalloc->heap.index,
        pool->address + POOL_NEXT, 16,
        "pool with free blocks is not in the ring of its class: its links do not lead back%s\tnext "
        "0x%" PRIx64 ", previous 0x%" PRIx64 ", class of %u",
        why_suspected(checker->severity), pool->next, pool->previous, pool->block_size);
}

/* ---- what the debug hooks leave --------------------------------------------------------------------------
 */

/* Objects/obmalloc.c, _PyMem_DebugRawAlloc(): before a block's bytes its size, most significant byte first, a
 * letter and seven FORBIDDENBYTEs; behind them eight more. A block that was freed is filled with DEADBYTEs.
 */
#define FORBIDDEN  0xfdu
#define DEAD       0xddu
#define FILLED_MAX 80u

static bool all_are(const uint8_t *bytes, size_t size, uint8_t value) {
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != value) {
            return false;
        }
    }
    return true;
}

/* Of a block in hand: it was not dressed yet since it was free, or has never been; or it is being filled as a
 * free one, from its start on. */
static bool is_undressed(const uint8_t *block) {
    return all_are(block + 8, 8, DEAD) || all_are(block + 8, 8, 0) || all_are(block, 8, DEAD);
}

static void check_guards(struct checker *checker, uint64_t address, const uint8_t *block,
                         uint32_t block_size) {
    uint64_t size = __builtin_bswap64(cpython_word(block));
    bool before = all_are(block + 9, 7, FORBIDDEN) && size <= block_size - PYMALLOC_DEBUG_BYTES;
    if (before && all_are(block + PYMALLOC_DEBUG_HEAD + size, 8, FORBIDDEN)) {
        return;
    }
    bool in_hand = pymalloc_block_in_hand(checker->pymalloc, address, block_size);
    if (in_hand && is_undressed(block)) {
        return;
    }
    enum karst_severity severity = in_hand ? KARST_SEVERITY_SUSPECT : KARST_SEVERITY_CORRUPT;
    karst_findings_add(
        checker->findings, KARST_FINDING_OVERFLOW, severity, checker->pymalloc->heap.index,
        address + PYMALLOC_DEBUG_HEAD, before ? size : block_size,
        before ? "written beyond its end: the guard bytes behind it are overwritten%s\tblock of %" PRIu64
                 " bytes, 0x%" PRIx64 " behind it instead of 0xfdfdfdfdfdfdfdfd"
               : "the guard bytes before it are overwritten: the block before was written beyond its end, or "
                 "this one before its start%s\tsize word %" PRIu64 ", 0x%" PRIx64 " behind it",
        in_hand ? "; or a thread, which was at it, has not written them yet" : "", size,
        cpython_word(before ? block + PYMALLOC_DEBUG_HEAD + size : block + 8));
}

/* The first word is the link of the free list. A block fills all but 15 bytes of its class or, when it was
 * made smaller, more than three quarters (pymalloc_realloc()); of one that was moved only the first 80 bytes
 * are filled for sure
 * (_PyMem_DebugRawRealloc()). */
static void check_dead(struct checker *checker, uint64_t address, const uint8_t *block, uint32_t block_size) {
    uint32_t filled =
        block_size / 4 * 3 < block_size - PYMALLOC_STEP ? block_size / 4 * 3 : block_size - PYMALLOC_STEP;
    filled = filled < FILLED_MAX ? filled : FILLED_MAX;
    if (filled <= 8 || all_are(block + 8, filled - 8, DEAD)) {
        return;
    }
    karst_findings_add(
        checker->findings, KARST_FINDING_WRITE_AFTER_FREE, KARST_SEVERITY_CORRUPT,
        checker->pymalloc->heap.index, address + PYMALLOC_DEBUG_HEAD, block_size,
        "written to after its free: not all of it is as the debug hooks fill a freed block\tpool block "
        "0x%" PRIx64 " of %u bytes should be 0xdd from its second word on",
        address, block_size);
}

static void check_dressed(struct checker *checker, const struct pymalloc_pool *pool) {
    for (uint32_t i = 0; i < pool->cut && pool->block_size > PYMALLOC_DEBUG_BYTES; i++) {
        uint64_t offset = PYMALLOC_HEADER + (uint64_t)i * pool->block_size;
        if (pymalloc_is_free(pool, i) &&
            i + 1 < pool->cut) { /* the last one cut may not have been used yet */
            check_dead(checker, pool->address + offset, pool->bytes + offset, pool->block_size);
        } else if (!pymalloc_is_free(pool, i)) {
            check_guards(checker, pool->address + offset, pool->bytes + offset, pool->block_size);
        }
    }
}

static void check_pool(struct checker *checker, const struct pymalloc_pool *pool) {
    switch (pool->problem) {
    case PYMALLOC_FINE:
        if (checker->pymalloc->debug) {
            check_dressed(checker, pool);
        }
        break;
    case PYMALLOC_UNREADABLE:
        return; /* not damaged, but missing: the target's remarks say so */
    case PYMALLOC_TWICE:
    case PYMALLOC_LINK_LEAVES:
    case PYMALLOC_LINK_MISALIGNED:
        report_links(checker, pool);
        break;
    default:
        report_header(checker, pool);
    }
    if (pool->block_size && pool->used < pool->capacity) {
        checker->partly_used[pool->block_size / PYMALLOC_STEP - 1]++;
        check_ring_links(checker, pool);
    }
    checker->findings->blocks_checked += pool->capacity ? pool->capacity : 1;
}

/* ---- arenas -----------------------------------------------------------------------------------------------
 */

/* Pools that may be half way from one list to another, or from one account to another: of an arena. */
static uint64_t at_work_in(const struct pymalloc_heap *pymalloc, const struct pymalloc_arena *arena) {
    uint64_t count = arena->in_hand;
    for (size_t i = 0; i < pymalloc->in_hand_count; i++) {
        count += pymalloc_arena_of(pymalloc, pymalloc->in_hand[i]) == arena;
    }
    return count;
}

static bool differs(uint64_t count, uint64_t should_be, uint64_t at_most) {
    return count > should_be + at_most || should_be > count + at_most;
}

/* The list of pools that were handed back: each in its arena, unused, and none twice (there are at most as
 * many as the arena has). */
static void check_free_pools(struct checker *checker, const struct pymalloc_arena *arena, uint32_t unused) {
    struct pymalloc_heap *pymalloc = checker->pymalloc;
    uint32_t listed = 0;
    uint64_t place = arena->object + 24, at = arena->free_list;
    while (at) {
        uint64_t offset = at - arena->first_pool;
        if (at < arena->first_pool || at >= arena->pools_end || offset % pymalloc->pool_size != 0 ||
            (cpython_u32(pymalloc->python, at) != 0 && !pymalloc_in_hand(pymalloc, at)) ||
            listed > arena->total_pools) {
            karst_findings_add(checker->findings, KARST_FINDING_BAD_LINK, checker->severity,
                               pymalloc->heap.index, place, 8,
                               "list of free pools %s%s\t0x%" PRIx64 " in arena %u at 0x%" PRIx64,
                               listed > arena->total_pools ? "does not end: it has a cycle"
                                                           : "leads to what is no free pool of its arena",
                               why_suspected(checker->severity), at, arena->index, arena->address);
            return;
        }
        listed++;
        place = at + POOL_NEXT;
        at = cpython_u64(pymalloc->python, place);
    }
    uint64_t never = (pymalloc_arena_end(pymalloc, arena) - arena->pools_end) / pymalloc->pool_size;
    uint64_t at_work = at_work_in(pymalloc, arena);
    if (differs(listed, unused, at_work) || differs(arena->free_pools, unused + never, at_work)) {
        karst_findings_add(
            checker->findings, KARST_FINDING_BAD_COUNT, checker->severity, pymalloc->heap.index,
            arena->object, 48,
            "arena's account of free pools is not what there is%s\tit says %u; %u have no block in use, "
            "%u of them are in its list, %" PRIu64 " were never used",
            why_suspected(checker->severity), arena->free_pools, unused, listed, never);
    }
}

static bool check_arena(struct checker *checker, const struct pymalloc_arena *arena,
                        struct karst_error *error) {
    struct pymalloc_heap *pymalloc = checker->pymalloc;
    uint32_t unused = 0;
    bool whole = true;
    for (uint64_t at = arena->first_pool; at < arena->pools_end; at += pymalloc->pool_size) {
        struct pymalloc_pool pool;
        if (!pymalloc_load_pool(pymalloc, arena, at, &pool)) {
            return karst_fail_memory(error);
        }
        check_pool(checker, &pool);
        whole &= pool.bytes != NULL;
        unused += pool.bytes && pool.used == 0;
        if (!karst_session_progress(pymalloc->heap.session, pymalloc->pool_size, error)) {
            return false;
        }
    }
    if (whole) {
        check_free_pools(checker, arena, unused);
    }
    return true;
}

/* ---- rings
 * ------------------------------------------------------------------------------------------------- */

/* The same of a ring. What is not there yet, or not taken out yet, has its class already. */
static uint64_t at_work_on(const struct pymalloc_heap *pymalloc, uint32_t class) {
    uint64_t count = 0;
    for (size_t i = 0; i < pymalloc->in_hand_count; i++) {
        count += cpython_u32(pymalloc->python, pymalloc->in_hand[i] + POOL_CLASS) == class;
    }
    return count;
}

/* The ring of one class: pools of that class only, and all that have blocks in use and free ones. */
static void check_ring(struct checker *checker, uint32_t class, uint64_t pools) {
    struct pymalloc_heap *pymalloc = checker->pymalloc;
    uint64_t head = pymalloc->used + 16ull * class - POOL_NEXT,
             at = cpython_u64(pymalloc->python, head + POOL_NEXT), met = 0;
    uint64_t at_work = at_work_on(pymalloc, class);
    while (at != head) {
        const struct pymalloc_arena *arena = pymalloc_arena_of(pymalloc, at);
        if (!arena || at % pymalloc->pool_size != 0 || met > pools) {
            karst_findings_add(checker->findings, KARST_FINDING_BAD_LINK, checker->severity,
                               pymalloc->heap.index, pymalloc->used + 16ull * class, 16,
                               "ring of pools with free blocks of %u bytes %s%s\t0x%" PRIx64 " after %" PRIu64
                               " pools",
                               (class + 1) * PYMALLOC_STEP,
                               met > pools ? "does not end: it has a cycle" : "leads to what is no pool",
                               why_suspected(checker->severity), at, met);
            return;
        }
        uint32_t own = cpython_u32(pymalloc->python, at + POOL_CLASS);
        bool in_hand = pymalloc_in_hand(pymalloc, at);
        at_work += in_hand && own != class;
        if (own != class && !in_hand) {
            karst_findings_add(
                checker->findings, KARST_FINDING_WRONG_BIN, checker->severity, pymalloc->heap.index, at,
                pymalloc->pool_size,
                "pool is in the ring of another class: blocks of the wrong size are handed out%s\tring "
                "of %u bytes, pool for class %u",
                why_suspected(checker->severity), (class + 1) * PYMALLOC_STEP, own);
        }
        met++;
        at = cpython_u64(pymalloc->python, at + POOL_NEXT);
    }
    if (differs(met, checker->partly_used[class], at_work)) {
        karst_findings_add(
            checker->findings, KARST_FINDING_BAD_COUNT, checker->severity, pymalloc->heap.index,
            pymalloc->used + 16ull * class, 16,
            "ring of pools for blocks of %u bytes has not all that have free blocks, or more%s\t%" PRIu64
            " in the ring, %" PRIu64 " have blocks in use and free ones",
            (class + 1) * PYMALLOC_STEP, why_suspected(checker->severity), met, checker->partly_used[class]);
    }
}

/* Arenas with free pools form a list: those before and behind lead back. */
static void check_list_of_arenas(struct checker *checker) {
    struct pymalloc_heap *pymalloc = checker->pymalloc;
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        const struct pymalloc_arena *arena = &pymalloc->arenas[i];
        bool broken = arena->free_pools && arena->next &&
                      cpython_u64(pymalloc->python, arena->next + 40) != arena->object;
        if (broken || (arena->free_pools && arena->previous &&
                       cpython_u64(pymalloc->python, arena->previous + 32) != arena->object)) {
            karst_findings_add(checker->findings, KARST_FINDING_BAD_LINK, checker->severity,
                               pymalloc->heap.index, arena->object + 32, 16,
                               "list of arenas with free pools: its links do not lead back%s\tnext 0x%" PRIx64
                               ", previous 0x%" PRIx64,
                               why_suspected(checker->severity), arena->next, arena->previous);
        }
    }
}

bool pymalloc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error) {
    struct pymalloc_heap *pymalloc = (struct pymalloc_heap *)heap;
    struct checker checker = {
        .pymalloc = pymalloc,
        .findings = findings,
        .severity = pymalloc->maybe_inside ? KARST_SEVERITY_SUSPECT : KARST_SEVERITY_CORRUPT,
    };
    uint64_t pools = 0;
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        if (!check_arena(&checker, &pymalloc->arenas[i], error)) {
            return false;
        }
        pools += pymalloc->arenas[i].total_pools;
    }
    check_list_of_arenas(&checker);
    for (uint32_t class = 0; pymalloc->used && class < PYMALLOC_CLASSES && !heap->target->missing_memory;
         class ++) {
        check_ring(&checker, class, pools);
    }
    return true;
}
