/* glibc malloc: what is left of it when libc's variables, main_arena and mp_ among them, are not in the
 * target: in a core that was cut off before them, or filtered.
 *
 * Thread arenas stand in their own heaps, whose headers lead to them, and are as good as ever. Of the main
 * arena there are its chunks: they tile the break from its start to top, and say which of them are free. What
 * was in its fastbins cannot be told, nor can what is in the cache of a thread whose local words are missing,
 * too. */
#include "glibc_find.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define BINS_NEEDED      120u         /* of 127, for an arena to be taken for one */
#define BRK_DISTANCE     (1ull << 30) /* how far behind the executable the kernel may put the break at first */
#define BREAK_CANDIDATES 4u           /* mappings behind the executable that may be the break */
#define BREAK_HEAD       (64ull << 10) /* what a static program may have taken of the break before malloc did */

bool glibc_variables_missing(struct karst_target *target, const struct karst_module *module) {
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        bool data = mapping->start >= module->start && mapping->start < module->end &&
                    mapping->permissions & KARST_MAPPING_WRITE &&
                    !(mapping->permissions & KARST_MAPPING_SHARED);
        if (data && (glibc_is_missing(target, mapping->start) ||
                     glibc_is_missing(target, mapping->end - target->page_size))) {
            return true;
        }
    }
    return false;
}

/* ---- arenas ----------------------------------------------------------------------------------------- */

/* The arenas that stand behind headers, sorted by address; *count of them. NULL: out of memory. */
static uint64_t *arenas_of_headers(struct glibc_heap *glibc, size_t *count) {
    uint64_t *arenas = calloc(glibc->header_count + 1, sizeof *arenas);
    *count = 0;
    for (size_t i = 0; arenas && i < glibc->header_count; i++) {
        if (glibc_arena_fits(glibc, &glibc->layout, &glibc->headers[i])) {
            arenas[(*count)++] = glibc->headers[i].arena;
        }
    }
    return arenas;
}

static size_t index_of(const uint64_t *arenas, size_t count, uint64_t address) {
    size_t first = glibc_first_from(arenas, count, address);
    return first < count && arenas[first] == address ? first : count;
}

/* Where the arena at address leads in the ring; 0: not to be read. */
static uint64_t next_arena(struct glibc_heap *glibc, uint64_t address) {
    uint64_t next;
    return karst_target_read_u64(glibc->heap.target, address + glibc->layout.state_next, &next) ? next : 0;
}

/* The arena that the ring goes on with behind main_arena: no other one that is there leads to it; count:
 * there is none. */
static size_t newest_arena(struct glibc_heap *glibc, const uint64_t *arenas, size_t count, bool *led_to) {
    for (size_t i = 0; i < count; i++) {
        size_t next = index_of(arenas, count, next_arena(glibc, arenas[i]));
        led_to[next] = true;
    }
    size_t newest = 0;
    while (newest < count && led_to[newest]) {
        newest++;
    }
    return newest;
}

/* main_arena is what the ring leads to in libc's variables. */
static bool is_main_arena(const struct glibc_heap *glibc, uint64_t address) {
    const struct karst_mapping *mapping = karst_target_mapping(glibc->heap.target, address);
    return mapping && address % 8 == 0 && address >= glibc->module->start && address < glibc->module->end &&
           mapping->permissions & KARST_MAPPING_WRITE;
}

static bool add_in_order_of_ring(struct glibc_heap *glibc, uint64_t *arenas, size_t count, bool *taken) {
    size_t at = newest_arena(glibc, arenas, count, taken);
    memset(taken, 0, count + 1);
    for (size_t added = 0; added < count; added++) {
        if (at == count || taken[at]) {
            /* The ring is broken, or leads through one that is missing. */
            for (at = 0; taken[at]; at++) {
            }
        }
        taken[at] = true;
        if (!glibc_add_arena(glibc, arenas[at], false)) {
            return false;
        }
        at = index_of(arenas, count, next_arena(glibc, arenas[at]));
    }
    return true;
}

bool glibc_add_arenas_without_main(struct glibc_heap *glibc) {
    size_t count;
    uint64_t *arenas = arenas_of_headers(glibc, &count);
    bool *taken = calloc(glibc->header_count + 1, sizeof *taken);
    for (size_t i = 0; arenas && i < count && !glibc->main_arena; i++) {
        uint64_t next = next_arena(glibc, arenas[i]);
        glibc->main_arena = is_main_arena(glibc, next) ? next : 0;
    }
    bool fine = arenas && taken && glibc_add_arena(glibc, glibc->main_arena, false) &&
                add_in_order_of_ring(glibc, arenas, count, taken);
    free(arenas);
    free(taken);
    return fine;
}

/* ---- the break -------------------------------------------------------------------------------------- */

/* Where chunks of the main arena begin in [start, end), near its start; 0: nowhere. */
static uint64_t first_chunk(struct glibc_heap *glibc, uint64_t start, uint64_t end) {
    struct karst_extent extent = {.start = start, .end = end, .kind = KARST_EXTENT_BRK};
    start = (start + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1);
    for (uint64_t at = start; at < end && at - start < BREAK_HEAD; at += GLIBC_ALIGN) {
        uint64_t word;
        if (!glibc_read(glibc, at + 8, &word)) {
            return 0;
        }
        if (word & GLIBC_PREV_INUSE && !(word & GLIBC_NON_MAIN_ARENA) &&
            glibc_begins_chain(glibc, &extent, at)) {
            return at;
        }
    }
    return 0;
}

static bool add_break_of(struct glibc_heap *glibc, struct glibc_range range, bool *found) {
    uint64_t end = range.end, chunk = end ? first_chunk(glibc, range.start, end) : 0;
    *found = chunk != 0;
    if (!chunk) {
        return true;
    }
    struct karst_extent extent = {.start = chunk, .end = end, .kind = KARST_EXTENT_BRK};
    glibc->sbrk_base = chunk;
    if (!glibc_add_extent(glibc, chunk, end, 0, KARST_EXTENT_BRK)) {
        return false;
    }
    glibc_find_top(glibc, &extent);
    return true;
}

/* Adds a mapping, from start on, if it may be the break. */
static void add_candidate(const struct karst_target *target, const struct karst_mapping *mapping,
                          uint64_t start, struct glibc_range *ranges, size_t *count) {
    if (*count < GLIBC_BREAKS_MAX && karst_mapping_is_anonymous(mapping)) {
        ranges[(*count)++] = (struct glibc_range){start, glibc_run_end(target, start)};
    }
}

/* Behind the executable, as far as the kernel may put it. */
static void add_behind_executable(const struct karst_target *target, struct glibc_range *ranges,
                                  size_t *count) {
    const struct karst_mapping *last = target->mappings + target->mapping_count;
    const struct karst_module *below = target->executable_module;
    below = below ? below : &target->modules[0];
    const struct karst_mapping *mapping = karst_target_mapping_after(target, below->end);
    for (; mapping && mapping < last && karst_mapping_is_anonymous(mapping); mapping++) {
        uint64_t start = mapping->start > below->end ? mapping->start : below->end;
        if (start - below->end > BRK_DISTANCE) {
            break;
        }
        add_candidate(target, mapping, start, ranges, count);
    }
}

/* A program that was started by naming the dynamic linker has it far below all modules, where programs else
 * are. */
static void add_far_below(const struct karst_target *target, struct glibc_range *ranges, size_t *count) {
    for (size_t i = 0; i + 1 < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->start >= target->modules[0].start) {
            break;
        }
        if (mapping[1].start - mapping->end > BRK_DISTANCE) {
            add_candidate(target, mapping, mapping->start, ranges, count);
        }
    }
}

size_t glibc_break_candidates(const struct karst_target *target, struct glibc_range *ranges) {
    size_t count = 0;
    for (size_t i = 0; i < target->mapping_count && count == 0; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->name && strcmp(mapping->name, "[heap]") == 0) {
            add_candidate(target, mapping, mapping->start, ranges, &count);
        }
    }
    if (count == 0 && target->module_count != 0) {
        add_behind_executable(target, ranges, &count);
        add_far_below(target, ranges, &count);
    }
    return count;
}

bool glibc_add_break_by_chunks(struct glibc_heap *glibc) {
    struct glibc_range ranges[GLIBC_BREAKS_MAX];
    size_t count = glibc_break_candidates(glibc->heap.target, ranges);
    bool found = false;
    for (size_t i = 0; i < count && !found; i++) {
        if (!add_break_of(glibc, ranges[i], &found)) {
            return false;
        }
    }
    return true;
}

struct last_chunk {
    uint64_t address, size;
    enum karst_state state;
};

static bool note_last(void *context, const struct glibc_chunk *chunk) {
    *(struct last_chunk *)context = (struct last_chunk){chunk->address, chunk->size, chunk->state};
    return true;
}

void glibc_find_top(struct glibc_heap *glibc, const struct karst_extent *extent) {
    struct glibc_arena *arena = &glibc->arenas[extent->arena];
    struct last_chunk last = {0};
    if (!arena->top_damaged) {
        return;
    }
    glibc_walk_chunks(glibc, extent, note_last, &last);
    if (last.state == KARST_STATE_TOP && last.address + last.size == extent->end) {
        arena->top = last.address;
        arena->top_size = last.size;
        arena->top_damaged = false;
    }
}

/* ---- telling it ------------------------------------------------------------------------------------- */

bool glibc_tell_missing(struct glibc_heap *glibc) {
    struct karst_target *target = glibc->heap.target;
    struct karst_facts *facts = &glibc->heap.facts;
    const char *fast = glibc->layout.state_fastbins ? "fastbins" : NULL;
    const char *caches = glibc->tcaches_unknown ? "some threads' caches" : NULL;
    const char *both = fast && caches ? " and " : "";
    target->missing_memory = true;
    if (!fast && !caches) {
        karst_target_remark(target,
                            "libc's variables are missing: the main arena is told by its chunks alone, "
                            "mapped blocks by their headers; of neither is there an account");
    } else {
        karst_target_remark(
            target,
            "libc's variables are missing: the main arena is told by its chunks alone, mapped "
            "blocks by their headers, of neither is there an account; what may be in its %s%s%s "
            "is unknown",
            fast ? fast : "", both, caches ? caches : "");
    }
    return karst_facts_add(
               facts, "missing", 0,
               "libc's variables (main_arena, mp_): the main arena has no lists here, no account of "
               "its size and of mapped blocks; its free blocks are told by the headers behind them") &&
           karst_facts_add(facts, "top of main", glibc->arenas[0].top,
                           glibc->arenas[0].top_damaged ? "not found: it is missing, or in a part elsewhere"
                                                        : "the chunk that ends where the break does");
}
