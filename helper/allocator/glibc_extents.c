/* glibc malloc: which memory its arenas are made of, and the blocks with a mapping of their own.
 *
 * The main arena is what sbrk gave, or (no room at the break) segments from mmap; a thread arena is a chain
 * of heaps; a mapped block is in no list, so it is looked for in the mappings and held against mp_. */
#include "glibc.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HEAPS_MAX 65536u

/* ---- extents ---------------------------------------------------------------------------------------- */

static bool add_extent(struct glibc_heap *glibc, uint64_t start, uint64_t end, uint32_t arena,
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

/* The end of the readable private memory that goes on without a gap from address. */
static uint64_t run_end(const struct karst_target *target, uint64_t address) {
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

static bool heap_info(struct glibc_heap *glibc, uint64_t heap, uint64_t arena, uint64_t *previous,
                      uint64_t *size) {
    uint64_t owner;
    return karst_target_read_u64(glibc->heap.target, heap, &owner) && owner == arena &&
           karst_target_read_u64(glibc->heap.target, heap + 8, previous) &&
           karst_target_read_u64(glibc->heap.target, heap + 16, size);
}

/* The heap that holds top: HEAP_MAX is not told anywhere (it follows the size of huge pages from 2.35 on),
 * so every power of two is tried; the right one leads to a heap_info that names the arena. */
static uint64_t heap_of_top(struct glibc_heap *glibc, const struct glibc_arena *arena) {
    for (unsigned power = 20; power < 34; power++) {
        uint64_t heap = arena->top & ~((1ull << power) - 1);
        uint64_t previous, size;
        if (heap_info(glibc, heap, arena->address, &previous, &size) && size > arena->top - heap) {
            return heap;
        }
    }
    return 0;
}

bool glibc_add_thread_heaps(struct glibc_heap *glibc, uint32_t index) {
    struct glibc_arena *arena = &glibc->arenas[index];
    uint64_t first = arena->address - glibc->layout.heap_info_size;
    uint64_t heap = arena->top_damaged ? 0 : heap_of_top(glibc, arena);
    uint64_t previous, size;
    if (!heap) {
        /* top is damaged: at least the first heap can be told. */
        arena->top_damaged = true;
        heap = first;
    }
    for (unsigned i = 0; i < HEAPS_MAX && heap; i++) {
        if (!heap_info(glibc, heap, arena->address, &previous, &size)) {
            arena->top_damaged = arena->top_damaged || i == 0;
            break;
        }
        uint64_t end = run_end(glibc->heap.target, heap);
        bool sane = size > glibc->layout.heap_info_size && size <= 1ull << 34;
        if (!sane || (end && heap + size > end && karst_target_mapping(glibc->heap.target, heap))) {
            size = end > heap ? end - heap : 0;
        }
        if (!add_extent(glibc, heap, heap + size, index, KARST_EXTENT_HEAP)) {
            return false;
        }
        if (!arena->top_damaged && arena->top >= heap && arena->top < heap + size &&
            arena->top + arena->top_size != heap + size) {
            arena->top_damaged = true;
        }
        heap = previous;
    }
    return true;
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
        if (!post && (size < GLIBC_MIN_CHUNK || size % GLIBC_ALIGN || post_before ||
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

/* Looks in anonymous memory for segments of a main arena that is in several pieces (no room at the break:
 * sysmalloc() maps them), until they make up what the arena says it has. */
static bool search_segments(struct glibc_heap *glibc) {
    struct karst_target *target = glibc->heap.target;
    struct glibc_arena *arena = &glibc->arenas[0];
    uint64_t found = 0, bytes = 0, behind;
    for (size_t i = 0; i < target->mapping_count; i++) {
        bytes += karst_mapping_is_anonymous(&target->mappings[i])
                     ? target->mappings[i].end - target->mappings[i].start
                     : 0;
    }
    bytes = bytes < arena->system_mem ? bytes : arena->system_mem;
    uint64_t budget = 64 + bytes / GLIBC_MIN_CHUNK * 4;
    struct karst_window window;
    karst_window_open(&window, target, 1u << 16);
    bool fine = true;
    uint64_t page = target->page_size;
    for (size_t i = 0; i < target->mapping_count && fine && found < arena->system_mem && budget; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        uint64_t limit = run_end(target, mapping->start), at = mapping->start;
        while (fine && at < mapping->end && found < arena->system_mem && budget) {
            if (glibc_overlaps_extent(glibc, at, at + page, &behind)) {
                at = (behind + page - 1) & ~(page - 1);
                continue;
            }
            /* Segments begin with a page, but for the first one of a break that was in use before. */
            uint64_t start = glibc->sbrk_base - at < page ? glibc->sbrk_base : at;
            uint64_t end = segment_end(glibc, &window, start, limit, &budget);
            if (!end) {
                at += page;
                continue;
            }
            at = start;
            bool brk = glibc->sbrk_base == at && mapping->name && strcmp(mapping->name, "[heap]") == 0;
            fine = add_extent(glibc, at, end, 0, brk ? KARST_EXTENT_BRK : KARST_EXTENT_SEGMENT);
            found += end - at;
            at = end;
        }
    }
    karst_window_close(&window);
    if (fine && found != arena->system_mem) {
        fine = karst_facts_add(&glibc->heap.facts, "segments", 0,
                               "the main arena is in pieces: %" PRIu64 " of its %" PRIu64 " bytes were found",
                               found, arena->system_mem);
    }
    return fine;
}

bool glibc_add_main_extents(struct glibc_heap *glibc) {
    struct karst_target *target = glibc->heap.target;
    struct glibc_arena *arena = &glibc->arenas[0];
    if (arena->uninitialized) {
        return true;
    }
    uint64_t start = glibc->sbrk_base;
    uint64_t top_run = run_end(target, arena->top);
    uint64_t top_end = arena->top + arena->top_size;
    if (!arena->top_damaged &&
        (top_end <= arena->top || top_end > top_run || top_end % target->page_size != 0)) {
        arena->top_damaged = true;
    }
    if (!start) {
        /* mp_ is not known: a heap that began where its mapping does. */
        const struct karst_mapping *mapping = karst_target_mapping(target, arena->top);
        start = mapping ? mapping->start : 0;
    }
    uint64_t run = start ? run_end(target, start) : 0;
    if (run && start <= arena->top && arena->top < run && !(arena->flags & GLIBC_NONCONTIGUOUS)) {
        return add_extent(glibc, start, arena->top_damaged ? run : top_end, 0, KARST_EXTENT_BRK);
    }
    if (run && arena->top_damaged) {
        return add_extent(glibc, start, run, 0, KARST_EXTENT_BRK);
    }
    if (!run && start && !top_run) {
        /* The heap's memory is missing (a truncated core): what is known of it is where it was. */
        return add_extent(glibc, start, top_end > start ? top_end : start, 0, KARST_EXTENT_BRK);
    }
    return search_segments(glibc);
}

/* ---- blocks with a mapping of their own ------------------------------------------------------------- */

struct mapped {
    uint64_t start, end;
    bool sure; /* stands at the start of a mapping, or right behind another one */
};

struct mapped_list {
    struct mapped *items;
    size_t count, capacity;
};

static bool add_mapped(struct mapped_list *list, uint64_t start, uint64_t end, bool sure) {
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        struct mapped *items = realloc(list->items, capacity * sizeof *items);
        if (!items) {
            return false;
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = (struct mapped){start, end, sure};
    return true;
}

/* The bytes of the mapped chunk whose header is at the page start, 0: there is none. */
static uint64_t mapped_total(struct glibc_heap *glibc, uint64_t at, uint64_t limit) {
    const uint8_t *bytes = karst_window_at(&glibc->lists, at, GLIBC_HEADER);
    if (!bytes) {
        return 0;
    }
    uint64_t previous = glibc_word(bytes), word = glibc_word(bytes + 8);
    bool excludes = glibc->layout.mapped_size_excludes_header;
    uint64_t total = (word & ~(uint64_t)GLIBC_FLAGS) + (excludes ? GLIBC_HEADER : 0);
    if ((word & GLIBC_FLAGS) != GLIBC_IS_MMAPPED || previous > (excludes ? 1 : 0) ||
        total < GLIBC_MIN_CHUNK || total % glibc->heap.target->page_size != 0 || total > limit - at) {
        return 0;
    }
    return total;
}

/* Looks at the start of each mapping and behind each block found; everywhere: at every page. */
static bool scan_mapped(struct glibc_heap *glibc, bool everywhere, struct mapped_list *list) {
    struct karst_target *target = glibc->heap.target;
    const uint64_t page = target->page_size, stretch = 2ull << 20;
    uint64_t done = 0, behind;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        uint64_t limit = run_end(target, mapping->start);
        uint64_t at = mapping->start > done ? mapping->start : done;
        bool sure = true;
        while (at < mapping->end) {
            if (glibc_overlaps_extent(glibc, at, at + page, &behind)) {
                at = (behind + page - 1) & ~(page - 1);
                sure = true;
                continue;
            }
            if (at % stretch == 0 && mapping->end - at >= stretch &&
                karst_target_resident(target, at, at + stretch) == 0) {
                at += stretch; /* never touched: no header there */
                continue;
            }
            uint64_t total = mapped_total(glibc, at, limit);
            if (total) {
                if (!add_mapped(list, at, at + total, sure)) {
                    return false;
                }
                at += total;
                sure = true;
                continue;
            }
            if (!everywhere) {
                break;
            }
            at += page;
            sure = false;
        }
        done = at;
    }
    return true;
}

static bool adds_up(const struct glibc_heap *glibc, const struct mapped_list *list, bool sure_only) {
    uint64_t count = 0, bytes = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].sure || !sure_only) {
            count++;
            bytes += list->items[i].end - list->items[i].start;
        }
    }
    return count == glibc->n_mmaps && bytes == glibc->mmapped_mem;
}

/* Of more candidates than there are blocks, the sure ones are taken; of too few, all. */
bool glibc_add_mapped_extents(struct glibc_heap *glibc) {
    if (!glibc->par || glibc->n_mmaps == 0) {
        return true;
    }
    struct mapped_list list = {0};
    bool fine = scan_mapped(glibc, false, &list);
    bool exact = fine && adds_up(glibc, &list, false);
    bool sure_only = false;
    if (fine && !exact) {
        list.count = 0;
        fine = scan_mapped(glibc, true, &list);
        exact = fine && adds_up(glibc, &list, false);
        if (fine && !exact && (adds_up(glibc, &list, true) || list.count > glibc->n_mmaps)) {
            exact = adds_up(glibc, &list, true);
            sure_only = true;
        }
    }
    uint64_t taken = 0, bytes = 0;
    for (size_t i = 0; i < list.count && fine; i++) {
        if (list.items[i].sure || !sure_only) {
            taken++;
            bytes += list.items[i].end - list.items[i].start;
            fine = add_extent(glibc, list.items[i].start, list.items[i].end, KARST_NONE, KARST_EXTENT_MAPPED);
        }
    }
    free(list.items);
    if (fine && !exact) {
        fine = karst_facts_add(&glibc->heap.facts, "mapped blocks", 0,
                               "found %" PRIu64 " (%" PRIu64 " bytes), but mp_ counts %" PRIu64 " (%" PRIu64
                               " bytes)",
                               taken, bytes, glibc->n_mmaps, glibc->mmapped_mem);
    }
    return fine;
}
