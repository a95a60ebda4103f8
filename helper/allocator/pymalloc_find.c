/* Finding pymalloc's arenas. From 3.12 on its state hangs on the interpreter; before, it is static, without a
 * symbol in .dynsym, and told by its content: an array of arena_objects whose first pools lead back to them,
 * and the table of used pools, whose rings close. */
#include "pymalloc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* struct arena_object */
#define ARENA_ADDRESS     0
#define ARENA_POOLS_END   8
#define ARENA_FREE_POOLS  16
#define ARENA_TOTAL_POOLS 20
#define ARENA_FREE_LIST   24
#define ARENA_NEXT        32
#define ARENA_PREVIOUS    40
#define POOL_ARENA_INDEX  32

#define FIRST_ARENAS 16u        /* INITIAL_PYMALLOC_ARENA_OBJECTS */
#define ARENAS_MAX   (1u << 24) /* 16 TiB */
/* struct _obmalloc_state (3.12 and later): pools, then mgmt */
#define STATE_ARENAS     512
#define STATE_MAX_ARENAS 520
#define RINGS_DAMAGED    3u
#define ENTRIES_TRIED    4096u
/* Words in an interpreter's state that are tried when it is not where the table says. */
#define STATE_SEARCH (512u << 10)

/* ---- arenas -------------------------------------------------------------------------------------------- */

/* Reads entry index of the array; false: it is no arena (not allocated, or something else). */
static bool read_arena(struct cpython *python, uint64_t array, uint32_t index, struct pymalloc_arena *arena) {
    uint64_t pool_size = 1u << python->layout.pool_bits, arena_size = 1u << python->layout.arena_bits;
    uint64_t object = array + (uint64_t)index * PYMALLOC_ARENA_OBJECT;
    const uint8_t *bytes = karst_cache_at(&python->cache, object, PYMALLOC_ARENA_OBJECT);
    if (!bytes) {
        return false;
    }
    uint32_t counts[2];
    memcpy(counts, bytes + ARENA_FREE_POOLS, sizeof counts);
    *arena = (struct pymalloc_arena){
        .address = cpython_word(bytes + ARENA_ADDRESS),
        .pools_end = cpython_word(bytes + ARENA_POOLS_END),
        .object = object,
        .free_list = cpython_word(bytes + ARENA_FREE_LIST),
        .next = cpython_word(bytes + ARENA_NEXT),
        .previous = cpython_word(bytes + ARENA_PREVIOUS),
        .index = index,
        .free_pools = counts[0],
        .total_pools = counts[1],
    };
    if (arena->address == 0 || arena->address % 16 != 0 || arena->address > UINT64_MAX - 2 * arena_size) {
        return false;
    }
    arena->first_pool = (arena->address + pool_size - 1) & ~(pool_size - 1);
    uint64_t most = (arena->address + arena_size - arena->first_pool) / pool_size;
    if (arena->total_pools != most || arena->free_pools > most || arena->pools_end < arena->first_pool ||
        arena->pools_end > arena->first_pool + most * pool_size ||
        (arena->pools_end - arena->first_pool) % pool_size != 0) {
        return false;
    }
    uint64_t cut = (arena->pools_end - arena->first_pool) / pool_size;
    /* What was never handed out is free. Its first pool leads back to it. */
    return arena->free_pools >= most - cut &&
           (cut == 0 || cpython_u32(python, arena->first_pool + POOL_ARENA_INDEX) == index);
}

/* How many of the first entries are arenas. */
static unsigned count_arenas(struct cpython *python, uint64_t array, uint32_t entries) {
    struct pymalloc_arena arena;
    unsigned count = 0;
    for (uint32_t i = 0; i < entries; i++) {
        count += read_arena(python, array, i, &arena) && arena.pools_end > arena.first_pool;
    }
    return count;
}

static int compare_arenas(const void *a, const void *b) {
    const struct pymalloc_arena *x = a, *y = b;
    return x->address < y->address ? -1 : x->address > y->address;
}

/* most: entries of the array, 0: not known; then it ends where no entry follows for a long while. */
static bool load_arenas(struct pymalloc_heap *pymalloc, uint32_t most) {
    struct pymalloc_arena arena;
    uint32_t limit = most ? most : 4 * FIRST_ARENAS;
    size_t capacity = 0;
    for (uint32_t i = 0; i < limit && i < ARENAS_MAX; i++) {
        if (!read_arena(pymalloc->python, pymalloc->array, i, &arena)) {
            continue;
        }
        if (!most && limit < 4 * (i + 1)) {
            limit = 4 * (i + 1);
        }
        if (pymalloc->arena_count == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            struct pymalloc_arena *arenas = realloc(pymalloc->arenas, capacity * sizeof *arenas);
            if (!arenas) {
                return false;
            }
            pymalloc->arenas = arenas;
        }
        pymalloc->arenas[pymalloc->arena_count++] = arena;
    }
    if (pymalloc->arena_count) {
        qsort(pymalloc->arenas, pymalloc->arena_count, sizeof *pymalloc->arenas, compare_arenas);
    }
    /* Of two that overlap, which no healthy state has, the first one counts: each byte belongs to one. */
    size_t kept = 0;
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        if (kept == 0 ||
            pymalloc->arenas[i].address >= pymalloc->arenas[kept - 1].address + pymalloc->arena_size) {
            pymalloc->arenas[kept++] = pymalloc->arenas[i];
        }
    }
    pymalloc->arena_count = kept;
    return true;
}

/* ---- static state (to 3.11) ---------------------------------------------------------------------------- */

struct search {
    struct cpython *python;
    uint64_t array, used; /* the best so far */
    unsigned arenas;
};

/* Whether the pair of links at place is that of an empty ring, or of one of pools. */
static bool is_ring(struct cpython *python, uint64_t place, uint64_t next, uint64_t previous) {
    uint64_t head = place - 16, pool_size = 1u << python->layout.pool_bits;
    if (next == head && previous == head) {
        return true;
    }
    return next && previous && next % pool_size == 0 && previous % pool_size == 0 &&
           cpython_u64(python, next + 24) == head && cpython_u64(python, previous + 16) == head;
}

/* usedpools: 32 pairs, one a class, and no more (a bin array of malloc goes on). A few rings may be damaged.
 */
static bool is_used_table(struct cpython *python, uint64_t place) {
    unsigned good = 0;
    for (unsigned i = 0; i < PYMALLOC_CLASSES; i++) {
        uint64_t next, previous;
        good += cpython_read(python, place + 16 * i, &next) &&
                cpython_read(python, place + 16 * i + 8, &previous) &&
                is_ring(python, place + 16 * i, next, previous);
        if (i + 1 - good > RINGS_DAMAGED) {
            return false;
        }
    }
    uint64_t behind = place + 16 * PYMALLOC_CLASSES;
    return !is_ring(python, behind, cpython_u64(python, behind), cpython_u64(python, behind + 8)) &&
           !is_ring(python, place - 16, cpython_u64(python, place - 16), cpython_u64(python, place - 8));
}

static void look_at(struct search *search, uint64_t word, uint64_t next, uint64_t place) {
    if (word == place - 16 || (word && word % (1u << search->python->layout.pool_bits) == 0 && next)) {
        if (!search->used && is_ring(search->python, place, word, next) &&
            is_used_table(search->python, place)) {
            search->used = place;
        }
    }
    if (word && word % 16 == 0) {
        const struct karst_mapping *mapping = karst_target_mapping(search->python->target, word);
        unsigned arenas = mapping && karst_mapping_is_anonymous(mapping)
                              ? count_arenas(search->python, word, FIRST_ARENAS)
                              : 0;
        if (arenas > search->arenas) {
            search->arenas = arenas;
            search->array = word;
        }
    }
}

static bool look_at_piece(void *context, const uint8_t *bytes, size_t size, uint64_t start) {
    for (size_t i = 0; i + 16 <= size; i += 8) {
        look_at(context, cpython_word(bytes + i), cpython_word(bytes + i + 8), start + i);
    }
    return false;
}

static bool by_symbol(struct cpython *python, const char *name, uint64_t *address) {
    struct karst_symbol symbol;
    bool found = karst_module_symbol(python->target, python->module, name, &symbol) && !symbol.thread_local_;
    *address = found ? symbol.address : 0;
    return found;
}

static bool find_static(struct pymalloc_heap *pymalloc, const char **how, struct karst_error *error) {
    struct cpython *python = pymalloc->python;
    struct search search = {.python = python};
    uint64_t address;
    if (by_symbol(python, "arenas", &address) &&
        count_arenas(python, cpython_u64(python, address), FIRST_ARENAS)) {
        pymalloc->array = cpython_u64(python, address);
        *how = "by symbol";
    }
    if (by_symbol(python, "usedpools", &address) && is_used_table(python, address)) {
        pymalloc->used = address;
    }
    if (!pymalloc->array || !pymalloc->used) {
        cpython_each_piece(python, python->module, look_at_piece, &search);
        *how = pymalloc->array ? *how : "by structural search";
        pymalloc->array = pymalloc->array ? pymalloc->array : search.array;
        pymalloc->used = pymalloc->used ? pymalloc->used : search.used;
    }
    if (python->out_of_memory || (pymalloc->array && !load_arenas(pymalloc, 0))) {
        return karst_fail_memory(error);
    }
    return true;
}

/* ---- states of interpreters (3.12 and later) -------------------------------------------------------------
 */

/* Entries of the array of the state at address; 0: there is no state, or none that has arenas. */
static uint32_t state_arenas(struct cpython *python, uint64_t address) {
    uint64_t array = cpython_u64(python, address + STATE_ARENAS);
    uint32_t most = cpython_u32(python, address + STATE_MAX_ARENAS);
    bool sane = address % 8 == 0 && array && array % 8 == 0 && most >= FIRST_ARENAS && most <= ARENAS_MAX &&
                (most & (most - 1)) == 0;
    return sane && count_arenas(python, array, most < ENTRIES_TRIED ? most : ENTRIES_TRIED) ? most : 0;
}

/* Where a state is in an interpreter that has it elsewhere than the table says: of a version that is not
 * known, or of one of 3.14's that differ. */
static uint64_t search_state(struct cpython *python, uint64_t interpreter) {
    uint64_t size = python->layout.interp.size < STATE_SEARCH ? python->layout.interp.size : STATE_SEARCH;
    for (uint64_t at = interpreter; at + 8 <= interpreter + size; at += 8) {
        uint64_t word = cpython_u64(python, at);
        if (word && word % 8 == 0 && state_arenas(python, word)) {
            return word;
        }
    }
    return 0;
}

static bool find_state(struct pymalloc_heap *pymalloc, uint64_t interpreter, const char **how,
                       struct karst_error *error) {
    struct cpython *python = pymalloc->python;
    uint64_t at = interpreter + python->layout.interp.obmalloc;
    uint64_t state = python->layout.interp.obmalloc_pointer ? cpython_u64(python, at) : at;
    uint32_t most = state_arenas(python, state);
    *how = "by the interpreter";
    if (!most && python->layout.interp.obmalloc_pointer) {
        state = search_state(python, interpreter);
        most = state_arenas(python, state);
        *how = "by a search through the interpreter";
    }
    if (most) {
        pymalloc->state = pymalloc->used = state;
        pymalloc->array = cpython_u64(python, state + STATE_ARENAS);
        if (!load_arenas(pymalloc, most)) {
            return karst_fail_memory(error);
        }
    }
    return true;
}

/* ---- heaps -----------------------------------------------------------------------------------------------
 */

static bool make_tables(struct pymalloc_heap *pymalloc, int64_t interpreter) {
    struct karst_heap *heap = &pymalloc->heap;
    heap->arenas = calloc(1, sizeof *heap->arenas);
    heap->bins = calloc(PYMALLOC_CLASSES + 1, sizeof *heap->bins);
    heap->extents = calloc(pymalloc->arena_count + 1, sizeof *heap->extents);
    if (!heap->arenas || !heap->bins || !heap->extents) {
        return false;
    }
    if (interpreter == 0) {
        snprintf(heap->arenas[0].name, sizeof heap->arenas[0].name, "main");
    } else {
        snprintf(heap->arenas[0].name, sizeof heap->arenas[0].name, "interpreter %" PRId64, interpreter);
    }
    heap->arena_count = 1;
    heap->arenas[0].address = pymalloc->state ? pymalloc->state : pymalloc->used;
    heap->arenas[0].extents = (uint32_t)pymalloc->arena_count;
    heap->arenas[0].system_bytes = (uint64_t)pymalloc->arena_count * pymalloc->arena_size;
    heap->extent_count = pymalloc->arena_count;
    for (size_t i = 0; i < pymalloc->arena_count; i++) {
        heap->extents[i] = (struct karst_extent){.start = pymalloc->arenas[i].address,
                                                 .end = pymalloc->arenas[i].address + pymalloc->arena_size,
                                                 .kind = KARST_EXTENT_PAGES};
    }
    heap->bin_count = PYMALLOC_CLASSES + 1;
    for (uint32_t i = 0; i < PYMALLOC_CLASSES; i++) {
        uint64_t size = (i + 1) * PYMALLOC_STEP;
        heap->bins[i] = (struct karst_bin){.kind = "pool", .smallest = size, .largest = size};
        snprintf(heap->bins[i].name, sizeof heap->bins[i].name, "pool %" PRIu64, size);
    }
    heap->bins[PYMALLOC_FREE_POOLS] = (struct karst_bin){.name = "free pools",
                                                         .kind = "free pools",
                                                         .smallest = pymalloc->pool_size,
                                                         .largest = pymalloc->pool_size};
    return true;
}

/* The debug hooks (PYTHONMALLOC=debug, -X dev) put size, a letter and seven bytes 0xFD before each block. */
static bool is_dressed(struct pymalloc_heap *pymalloc) {
    struct pymalloc_pool pool;
    unsigned dressed = 0, seen = 0;
    for (size_t i = 0; i < pymalloc->arena_count && seen < 64; i++) {
        const struct pymalloc_arena *arena = &pymalloc->arenas[i];
        for (uint64_t at = arena->first_pool; at < arena->pools_end && seen < 64; at += pymalloc->pool_size) {
            if (!pymalloc_load_pool(pymalloc, arena, at, &pool) || !pool.bytes || !pool.block_size) {
                continue;
            }
            for (uint32_t k = 0; k < pool.cut && seen < 64; k++) {
                const uint8_t *block = pool.bytes + PYMALLOC_HEADER + k * pool.block_size;
                if (!pymalloc_is_free(&pool, k)) {
                    seen++;
                    dressed += (cpython_word(block + 8) | 0xff) == UINT64_C(0xfdfdfdfdfdfdfdff) &&
                               (block[8] == 'r' || block[8] == 'm' || block[8] == 'o');
                }
            }
        }
    }
    return seen && 2 * dressed > seen;
}

static bool say_what(struct pymalloc_heap *pymalloc, const char *how) {
    struct karst_heap *heap = &pymalloc->heap;
    if (!karst_facts_add(&heap->facts, "arenas", pymalloc->array,
                         "array of arenas, %s: %zu of %u KiB, pools of %u KiB", how, pymalloc->arena_count,
                         pymalloc->arena_size >> 10, pymalloc->pool_size >> 10) ||
        !karst_facts_add(&heap->facts, "used pools", pymalloc->used,
                         pymalloc->used ? "table of pools with free blocks" : "not found: not checked")) {
        return false;
    }
    if (pymalloc->debug &&
        !karst_facts_add(&heap->facts, "debug hooks", 0,
                         "on: 24 bytes of each block are theirs (PYTHONMALLOC=debug, -X dev)")) {
        return false;
    }
    return true;
}

static struct pymalloc_heap *make_heap(struct cpython *python) {
    struct pymalloc_heap *pymalloc = calloc(1, sizeof *pymalloc);
    if (pymalloc) {
        pymalloc->python = python;
        pymalloc->heap.allocator = &karst_pymalloc;
        pymalloc->heap.session = python->session;
        pymalloc->heap.target = python->target;
        pymalloc->heap.in_flux = !python->target->stopped;
        pymalloc->pool_size = 1u << python->layout.pool_bits;
        pymalloc->arena_size = 1u << python->layout.arena_bits;
        snprintf(pymalloc->heap.version, sizeof pymalloc->heap.version, "%s", python->version);
    }
    return pymalloc;
}

static size_t count_heaps(const struct karst *session) {
    size_t count = 0;
    for (size_t i = 0; i < session->heap_count; i++) {
        count += session->heaps[i]->allocator == &karst_pymalloc;
    }
    return count;
}

/* Interpreters may share a state. */
static bool is_known(const struct karst *session, uint64_t array) {
    for (size_t i = 0; i < session->heap_count; i++) {
        const struct karst_heap *heap = session->heaps[i];
        if (heap->allocator == &karst_pymalloc &&
            ((const struct pymalloc_heap *)(const void *)heap)->array == array) {
            return true;
        }
    }
    return false;
}

/* Takes the heap over; one without arenas is none (PYTHONMALLOC=malloc). */
static bool hand_over(struct karst *session, struct pymalloc_heap *pymalloc, int64_t interpreter,
                      const char *how, struct karst_error *error) {
    if (pymalloc->arena_count == 0 || is_known(session, pymalloc->array)) {
        karst_pymalloc.close(&pymalloc->heap);
        return true;
    }
    size_t others = count_heaps(session);
    pymalloc_find_inside(pymalloc);
    pymalloc->debug = pymalloc->python->dressed = is_dressed(pymalloc);
    if (others) {
        snprintf(pymalloc->heap.name, sizeof pymalloc->heap.name, "pymalloc #%zu", others + 1);
    } else {
        snprintf(pymalloc->heap.name, sizeof pymalloc->heap.name, "pymalloc");
    }
    if (make_tables(pymalloc, interpreter) && say_what(pymalloc, how) &&
        karst_session_add_heap(session, &pymalloc->heap)) {
        return true;
    }
    karst_pymalloc.close(&pymalloc->heap);
    return karst_fail_memory(error);
}

static bool find_one(struct karst *session, struct cpython *python,
                     const struct cpython_interpreter *interpreter, struct karst_error *error) {
    struct pymalloc_heap *pymalloc = make_heap(python);
    const char *how = "";
    if (!pymalloc) {
        return karst_fail_memory(error);
    }
    bool found = interpreter ? find_state(pymalloc, interpreter->address, &how, error)
                             : find_static(pymalloc, &how, error);
    if (!found) {
        karst_pymalloc.close(&pymalloc->heap);
        return false;
    }
    return hand_over(session, pymalloc, interpreter ? interpreter->id : 0, how, error);
}

bool pymalloc_find(struct karst *session, struct karst_error *error) {
    struct cpython_set *set = cpython_find(session, error);
    for (size_t i = 0; set && i < set->count; i++) {
        struct cpython *python = &set->items[i];
        if (python->free_threaded) {
            continue;
        }
        if (python->layout.interp.obmalloc == CPYTHON_NONE) {
            if (!find_one(session, python, NULL, error)) {
                return false;
            }
            continue;
        }
        for (size_t k = 0; k < python->interpreter_count; k++) {
            if (!find_one(session, python, &python->interpreters[k], error)) {
                return false;
            }
        }
    }
    return set != NULL;
}
