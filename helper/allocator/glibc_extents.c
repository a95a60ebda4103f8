/* glibc malloc: which memory the main arena is made of: what sbrk gave, or (no room at the break) segments
 * from mmap. The heaps of thread arenas: glibc_thread_heaps.c. */
#include "glibc.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- extents ---------------------------------------------------------------------------------------- */

bool glibc_add_extent(struct glibc_heap *glibc, uint64_t start, uint64_t end, uint32_t arena,
                      enum karst_extent_kind kind) {
    if (start >= end) {
        return true;
    }
    struct karst_extent *extents =
        realloc(glibc->heap.extents, (glibc->heap.extent_count + 1) * sizeof *extents);
    if (!extents) {
        return false;
    }
    glibc->heap.extents = extents;
    extents[glibc->heap.extent_count++] =
        (struct karst_extent){.start = start, .end = end, .arena = arena, .kind = (uint8_t)kind};
    if (arena != KARST_NONE) {
        glibc->heap.arenas[arena].extents++;
    }
    return true;
}

static int compare_extents(const void *a, const void *b) {
    const struct karst_extent *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

void glibc_sort_extents(struct glibc_heap *glibc) {
    if (glibc->heap.extent_count) {
        qsort(glibc->heap.extents, glibc->heap.extent_count, sizeof *glibc->heap.extents, compare_extents);
    }
}

uint64_t glibc_run_end(const struct karst_target *target, uint64_t address) {
    const struct karst_mapping *mapping = karst_target_mapping(target, address);
    uint64_t end = 0;
    const struct karst_mapping *last = target->mappings + target->mapping_count;
    for (; mapping && mapping < last && (end == 0 || mapping->start == end); mapping++) {
        if (!(mapping->permissions & KARST_MAPPING_READ) || (mapping->permissions & KARST_MAPPING_SHARED)) {
            break;
        }
        end = mapping->end;
    }
    return end;
}

bool glibc_is_missing(struct karst_target *target, uint64_t address) {
    uint64_t word;
    return karst_target_mapping(target, address) && !karst_target_read_u64(target, address, &word);
}

/* Is the header of top, which ought to end at end, only being changed by a thread in the middle of malloc?
 * When a chunk is cut from top, top moves first and gets its size last (malloc/malloc.c, _int_malloc():
 * use_top), and that store waits for a page where memory is fresh; when memory comes from the system or goes
 * back there, the size follows the system call (sysmalloc(), systrim(), heap_trim()). */
static bool top_is_being_changed(const struct glibc_heap *glibc, const struct glibc_arena *arena,
                                 uint64_t end) {
    return arena->in_flux && arena->top % GLIBC_ALIGN == 0 && arena->top < end &&
           (arena->top_size == 0 || (arena->top + arena->top_size) % glibc->heap.target->page_size == 0);
}

bool glibc_settle_top(struct glibc_heap *glibc, uint32_t index, uint64_t end) {
    struct glibc_arena *arena = &glibc->arenas[index];
    if (arena->top + arena->top_size == end) {
        return true;
    }
    if (!top_is_being_changed(glibc, arena, end)) {
        arena->top_damaged = true;
        return true;
    }
    arena->top_change = arena->top_size - (end - arena->top);
    arena->top_size = end - arena->top;
    return karst_facts_add(&glibc->heap.facts, "half done", arena->top,
                           "the top of arena %s: a thread is about to write its size",
                           glibc->heap.arenas[index].name);
}

/* Follows chunks from start to where a segment of the main arena ends: behind top, or behind the two
 * fenceposts (three, where 16 bytes were left before them) that end with its last page. 0: this is no
 * segment. budget bounds all such walks together. */
static uint64_t segment_end(struct glibc_heap *glibc, struct karst_window *window, uint64_t start,
                            uint64_t limit, uint64_t *budget) {
    const struct glibc_arena *arena = &glibc->arenas[0];
    bool post_before = false;
    uint64_t at = start;
    while (at + GLIBC_HEADER <= limit && *budget) {
        (*budget)--;
        if (at == arena->top) {
            return at + arena->top_size <= limit ? at + arena->top_size : 0;
        }
        const uint8_t *bytes = karst_window_at(window, at, GLIBC_HEADER);
        if (!bytes) {
            return 0;
        }
        uint64_t word = glibc_word(bytes + 8), size = word & ~(uint64_t)GLIBC_FLAGS;
        if (at == start && !(word & GLIBC_PREV_INUSE)) {
            return 0;
        }
        bool post = (word & ~(uint64_t)GLIBC_PREV_INUSE) == GLIBC_FENCEPOST;
        if (post && post_before && (at + GLIBC_FENCEPOST) % glibc->heap.target->page_size == 0) {
            return at + GLIBC_FENCEPOST;
        }
        if (!post && (size < GLIBC_MIN_CHUNK || size % GLIBC_ALIGN || post_before || size > limit - at ||
                      (word & (GLIBC_IS_MMAPPED | GLIBC_NON_MAIN_ARENA)))) {
            return 0;
        }
        post_before = post;
        at += size;
    }
    return 0;
}

bool glibc_overlaps_extent(const struct glibc_heap *glibc, uint64_t start, uint64_t end, uint64_t *behind) {
    for (size_t i = 0; i < glibc->heap.extent_count; i++) {
        if (glibc->heap.extents[i].start < end && start < glibc->heap.extents[i].end) {
            *behind = glibc->heap.extents[i].end;
            return true;
        }
    }
    return false;
}

#define BREAK_PAGES  (1u << 20)   /* how far from the end of the break its last fenceposts are looked for */
#define BRK_DISTANCE (1ull << 30) /* how far behind the executable the kernel may put the break at first */

/* Is what sbrk_base points at really the break, and not (no room there) a mapping that took its place? */
static bool is_break(const struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    const struct karst_mapping *mapping = karst_target_mapping(target, glibc->sbrk_base);
    if (!mapping || (mapping->name && strcmp(mapping->name, "[heap]") == 0)) {
        return mapping != NULL;
    }
    const struct karst_module *below = NULL;
    for (size_t i = 0; i < target->module_count; i++) {
        below = target->modules[i].start < glibc->sbrk_base ? &target->modules[i] : below;
    }
    return below && below == &target->modules[0] && glibc->sbrk_base - below->end < BRK_DISTANCE;
}

/* Where the main arena's part at the break ends, when its top is elsewhere: behind the last two fenceposts
 * that end with a page. Between its start and there may be parts that are not malloc's (a foreign sbrk); the
 * walk tells them apart. 0: there are none. */
static uint64_t break_end(struct glibc_heap *glibc, uint64_t start, uint64_t run) {
    const uint64_t page = glibc->heap.target->page_size;
    uint64_t end = run & ~(page - 1);
    for (uint64_t pages = 0; end > start + page && pages < BREAK_PAGES; end -= page, pages++) {
        const uint8_t *bytes = karst_window_at(&glibc->lists, end - 2 * GLIBC_HEADER, 2 * GLIBC_HEADER);
        if (bytes && (glibc_word(bytes + 8) & ~(uint64_t)GLIBC_PREV_INUSE) == GLIBC_FENCEPOST &&
            glibc_word(bytes + 24) == (GLIBC_FENCEPOST | GLIBC_PREV_INUSE)) {
            return end;
        }
    }
    return 0;
}

static bool count_foreign(void *context, const struct glibc_chunk *chunk) {
    *(uint64_t *)context += chunk->flags & KARST_BLOCK_FOREIGN ? chunk->size : 0;
    return true;
}

/* The main arena's part at the break, when it has others. *bytes: what of it is the arena's for sure (whether
 * it counts foreign parts as its own depends on when they came). */
static bool add_break(struct glibc_heap *glibc, uint64_t *bytes) {
    const struct glibc_arena *arena = &glibc->arenas[0];
    *bytes = 0;
    if (!is_break(glibc)) {
        return true;
    }
    uint64_t run = glibc_run_end(glibc->heap.target, glibc->sbrk_base);
    bool holds_top = arena->top >= glibc->sbrk_base && arena->top < run && !arena->top_damaged;
    uint64_t end = holds_top ? arena->top + arena->top_size : break_end(glibc, glibc->sbrk_base, run);
    if (!end) {
        return true;
    }
    struct karst_extent extent = {.start = glibc->sbrk_base, .end = end, .kind = KARST_EXTENT_BRK};
    uint64_t foreign = 0;
    glibc_walk_chunks(glibc, &extent, count_foreign, &foreign);
    *bytes = end - glibc->sbrk_base - foreign;
    return glibc_add_extent(glibc, extent.start, extent.end, 0, KARST_EXTENT_BRK);
}

/* The search for the pieces of a main arena. */
struct segments {
    struct glibc_heap *glibc;
    struct karst_window window;
    uint64_t found;  /* bytes of its pieces */
    uint64_t wanted; /* bytes that the arena says it has */
    uint64_t budget; /* chunks that may still be looked at: no damage makes the search long */
    struct karst_error *error;
};

static bool search_mapping(struct segments *segments, const struct karst_mapping *mapping) {
    struct glibc_heap *glibc = segments->glibc;
    struct karst_target *target = glibc->heap.target;
    const uint64_t page = target->page_size, limit = glibc_run_end(target, mapping->start);
    uint64_t at = mapping->start, behind;
    while (at < mapping->end && segments->found < segments->wanted && segments->budget) {
        uint64_t from = at, end;
        if (glibc_overlaps_extent(glibc, at, at + page, &behind)) {
            at = (behind + page - 1) & ~(page - 1);
        } else if ((end = segment_end(glibc, &segments->window, at, limit, &segments->budget)) != 0) {
            if (!glibc_add_extent(glibc, at, end, 0, KARST_EXTENT_SEGMENT)) {
                return karst_fail_memory(segments->error);
            }
            segments->found += end - at;
            at = end;
        } else {
            at = glibc_next_place(&segments->window, at, mapping->end, page);
        }
        if (!karst_session_progress(glibc->heap.session, at - from, segments->error)) {
            return false;
        }
    }
    return true;
}

/* Looks in anonymous memory for segments of a main arena that is in several pieces (no room at the break:
 * sysmalloc() maps them), until they make up what the arena says it has. */
static bool search_segments(struct glibc_heap *glibc, struct karst_error *error) {
    const struct karst_target *target = glibc->heap.target;
    struct segments segments = {.glibc = glibc, .wanted = glibc->arenas[0].system_mem, .error = error};
    uint64_t bytes = 0;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        bytes += karst_mapping_is_anonymous(mapping) ? mapping->end - mapping->start : 0;
    }
    segments.budget = 64 + (bytes < segments.wanted ? bytes : segments.wanted) / GLIBC_MIN_CHUNK * 4;
    if (!add_break(glibc, &segments.found)) {
        return karst_fail_memory(error);
    }
    karst_session_begin(glibc->heap.session, "looking for the main arena's pieces", bytes);
    karst_window_open(&segments.window, glibc->heap.target, 1u << 16);
    bool fine = true;
    for (size_t i = 0; i < target->mapping_count && fine; i++) {
        if (karst_mapping_is_anonymous(&target->mappings[i])) {
            fine = search_mapping(&segments, &target->mappings[i]);
        }
    }
    karst_window_close(&segments.window);
    uint64_t found = segments.found < segments.wanted ? segments.found : segments.wanted;
    if (fine &&
        !karst_facts_add(&glibc->heap.facts, "segments", 0,
                         "the main arena is in pieces: %" PRIu64 " of its %" PRIu64 " bytes were found",
                         found, segments.wanted)) {
        return karst_fail_memory(error);
    }
    return fine;
}

/* Memory without a gap: start to end, which may be a guess where top is damaged or memory is missing. */
static bool add_break_whole(struct glibc_heap *glibc, uint64_t start, uint64_t end,
                            struct karst_error *error) {
    return glibc_add_extent(glibc, start, end, 0, KARST_EXTENT_BRK) || karst_fail_memory(error);
}

bool glibc_add_main_extents(struct glibc_heap *glibc, struct karst_error *error) {
    struct karst_target *target = glibc->heap.target;
    struct glibc_arena *arena = &glibc->arenas[0];
    if (arena->uninitialized) {
        return true;
    }
    uint64_t start = glibc->sbrk_base;
    uint64_t top_run = glibc_run_end(target, arena->top);
    uint64_t top_end = arena->top + arena->top_size;
    uint64_t told = start + arena->system_mem;
    bool possible = start && told % target->page_size == 0 && told > arena->top && told <= top_run;
    /* What came at the end of the break is counted before it is added to top (sysmalloc()). */
    bool grew = arena->in_flux && possible && told == top_run && top_end < told;
    if (!arena->top_damaged &&
        (grew || top_end <= arena->top || top_end > top_run || top_end % target->page_size != 0)) {
        if (!glibc_settle_top(glibc, 0, possible ? told : top_run)) {
            return karst_fail_memory(error);
        }
        top_end = arena->top + arena->top_size;
    }
    if (!start) {
        /* mp_ is not known: a heap that began where its mapping does. */
        const struct karst_mapping *mapping = karst_target_mapping(target, arena->top);
        start = mapping ? mapping->start : 0;
    }
    uint64_t run = start ? glibc_run_end(target, start) : 0;
    if (run && start <= arena->top && arena->top < run && !(arena->flags & GLIBC_NONCONTIGUOUS)) {
        return add_break_whole(glibc, start, arena->top_damaged ? run : top_end, error);
    }
    if (run && arena->top_damaged) {
        return add_break_whole(glibc, start, run, error);
    }
    if (!run && start && !top_run) {
        /* The heap's memory is missing (a truncated core): what is known of it is where it was. */
        return add_break_whole(glibc, start, top_end > start ? top_end : start, error);
    }
    return search_segments(glibc, error);
}
