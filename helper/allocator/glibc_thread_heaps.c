/* glibc malloc: the heaps that thread arenas are made of. An arena stands in its first heap, behind the
 * header; each heap's header names the arena and the heap before it, and the last one holds top. */
#include "glibc.h"

#include <stdlib.h>

#define HEAPS_MAX    65536u
#define HEAP_LARGEST (1ull << 34)

/* ---- headers ---------------------------------------------------------------------------------------- */

/* Where the next heap of a thread arena may be, at address or behind it: where memory was touched, for what a
 * mapping reserves may be vast. mapping->end: nowhere. */
static uint64_t next_heap(struct karst_target *target, const struct karst_mapping *mapping, uint64_t address,
                          bool here) {
    uint64_t at = here ? address : address + GLIBC_HEAP_ALIGNMENT;
    for (;;) {
        at = (at + GLIBC_HEAP_ALIGNMENT - 1) & ~(GLIBC_HEAP_ALIGNMENT - 1);
        if (at < address || at >= mapping->end) {
            return mapping->end;
        }
        uint64_t word, nothing = karst_target_untouched(target, at, mapping->end);
        if (nothing == 0) {
            if (karst_target_read_u64(target, at, &word)) {
                return at;
            }
            nothing = karst_target_missing(target, at);
        }
        at = nothing < mapping->end - at ? at + nothing : mapping->end;
    }
}

/* Could word be the address of an arena? It stands behind the header of its first heap, of either size that
 * headers have had. */
static bool may_be_arena(uint64_t word) {
    uint64_t offset = word % GLIBC_HEAP_ALIGNMENT;
    return word > GLIBC_HEAP_ALIGNMENT && (offset == 32 || offset == 48);
}

static bool add_header(struct glibc_heap *glibc, uint64_t heap) {
    struct karst_target *target = glibc->heap.target;
    uint64_t words[3];
    if (!karst_target_read_all(target, heap, words, sizeof words) || !may_be_arena(words[0])) {
        return true;
    }
    size_t count = glibc->header_count;
    if ((count & (count - 1)) == 0) {
        struct glibc_heap_header *headers =
            realloc(glibc->headers, (count ? 2 * count : 1) * sizeof *headers);
        if (!headers) {
            return false;
        }
        glibc->headers = headers;
    }
    glibc->headers[glibc->header_count++] = (struct glibc_heap_header){
        .address = heap, .arena = words[0], .previous = words[1], .size = words[2]};
    return true;
}

bool glibc_load_heap_headers(struct glibc_heap *glibc) {
    struct karst_target *target = glibc->heap.target;
    for (size_t i = 0; i < target->mapping_count && !glibc->headers_loaded; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        uint64_t heap = next_heap(target, mapping, mapping->start, true);
        for (; heap < mapping->end && glibc->header_count < HEAPS_MAX;
             heap = next_heap(target, mapping, heap, false)) {
            if (!add_header(glibc, heap)) {
                return false;
            }
        }
    }
    glibc->headers_loaded = true;
    return true;
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

/* The heap that holds top although its header does not say so: the first one of the arena, or the one where
 * top's mapping starts. */
static uint64_t heap_by_mapping(struct glibc_heap *glibc, const struct glibc_arena *arena) {
    uint64_t first = arena->address - glibc->layout.heap_info_size;
    uint64_t end = glibc_run_end(glibc->heap.target, first);
    if (arena->top >= first && arena->top < end) {
        return first;
    }
    const struct karst_mapping *mapping = karst_target_mapping(glibc->heap.target, arena->top);
    bool aligned =
        mapping && mapping->start % GLIBC_HEAP_ALIGNMENT == 0 && karst_mapping_is_anonymous(mapping);
    return aligned ? mapping->start : 0;
}

static struct glibc_heap_header *header_at(const struct glibc_heap *glibc, uint64_t address) {
    size_t low = 0, high = glibc->header_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (glibc->headers[middle].address < address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < glibc->header_count && glibc->headers[low].address == address ? &glibc->headers[low] : NULL;
}

/* ---- the heaps of an arena -------------------------------------------------------------------------- */

static bool size_is_possible(struct glibc_heap *glibc, uint64_t heap, uint64_t size) {
    uint64_t end = glibc_run_end(glibc->heap.target, heap);
    return size > glibc->layout.heap_info_size && size <= HEAP_LARGEST && (!end || size <= end - heap);
}

/* Adds the heap at heap; *previous: the one before it as its header has it, 0: it is the first, or its header
 * is no good. */
static bool add_thread_heap(struct glibc_heap *glibc, uint32_t index, uint64_t heap, uint64_t *previous) {
    struct glibc_arena *arena = &glibc->arenas[index];
    uint64_t size;
    if (!heap_info(glibc, heap, arena->address, previous, &size) || !size_is_possible(glibc, heap, size)) {
        uint64_t end = glibc_run_end(glibc->heap.target, heap);
        arena->bad_heap = glibc_is_missing(glibc->heap.target, heap) ? arena->bad_heap : heap;
        size = end > heap ? end - heap : 0;
        *previous = 0;
    }
    bool holds_top = arena->top >= heap && arena->top - heap < size;
    if (holds_top && !glibc_settle_top(glibc, index, heap + size)) {
        return false;
    }
    return glibc_add_extent(glibc, heap, heap + size, index, KARST_EXTENT_HEAP);
}

/* May a heap of the arena be at address, which another one's header leads to? It says so, or it stands where
 * one can, its header overwritten or missing. */
static bool may_be_heap(struct glibc_heap *glibc, const struct glibc_arena *arena, uint64_t address) {
    const struct karst_mapping *mapping = karst_target_mapping(glibc->heap.target, address);
    uint64_t previous, size;
    return heap_info(glibc, address, arena->address, &previous, &size) ||
           (address % GLIBC_HEAP_ALIGNMENT == 0 && mapping && karst_mapping_is_anonymous(mapping));
}

/* Adds the heaps from heap back along their headers, until one leads to none. *last: that one; *link: where
 * it leads. */
static bool add_chain(struct glibc_heap *glibc, uint32_t index, uint64_t heap, uint64_t *last,
                      uint64_t *link) {
    uint64_t behind;
    *last = *link = 0;
    for (unsigned i = 0; i < HEAPS_MAX; i++) {
        uint64_t previous = 0;
        if (!heap || !may_be_heap(glibc, &glibc->arenas[index], heap) ||
            glibc_overlaps_extent(glibc, heap, heap + 1, &behind)) {
            break;
        }
        if (!add_thread_heap(glibc, index, heap, &previous)) {
            return false;
        }
        *last = heap;
        *link = heap = previous;
    }
    return true;
}

static bool is_unused(const struct glibc_heap_header *header, const struct glibc_arena *arena) {
    return header && !header->used && header->arena == arena->address;
}

/* Of an arena's heaps that are not known yet, the one that no other of them leads to; 0: all are known. */
static uint64_t lost_heap(struct glibc_heap *glibc, const struct glibc_arena *arena) {
    struct glibc_heap_header *headers = glibc->headers, *found = NULL;
    uint64_t behind;
    for (size_t i = 0; i < glibc->header_count; i++) {
        headers[i].led_to = false;
        headers[i].used = headers[i].used ||
                          glibc_overlaps_extent(glibc, headers[i].address, headers[i].address + 1, &behind);
    }
    for (size_t i = 0; i < glibc->header_count; i++) {
        struct glibc_heap_header *other =
            is_unused(&headers[i], arena) ? header_at(glibc, headers[i].previous) : NULL;
        if (other && other != &headers[i]) {
            other->led_to = true;
        }
    }
    for (size_t i = 0; i < glibc->header_count; i++) {
        bool better = !found || (found->led_to && !headers[i].led_to);
        found = is_unused(&headers[i], arena) && better ? &headers[i]
                                                        : found; /* led_to: they lead round in a ring */
    }
    return found ? found->address : 0;
}

/* Is the chain broken at last, which leads to link, though it ought to lead on? The first heap of an arena
 * rightly leads nowhere, and nothing is known of what is missing. */
static bool is_broken(struct glibc_heap *glibc, uint64_t first, uint64_t last, uint64_t link) {
    struct karst_target *target = glibc->heap.target;
    return last != 0 && (last != first || link != 0) && !glibc_is_missing(target, last) &&
           !glibc_is_missing(target, link);
}

/* Adds the arena's heaps that its chain does not lead to, and notes where the chain is broken. last is where
 * it ended, by a header that leads to link. */
static bool add_lost_heaps(struct glibc_heap *glibc, uint32_t index, uint64_t last, uint64_t link) {
    struct glibc_arena *arena = &glibc->arenas[index];
    uint64_t first = arena->address - glibc->layout.heap_info_size, behind, lost;
    if (last == first && glibc->header_count == 0) {
        return true;
    }
    for (unsigned i = 0; i < HEAPS_MAX; i++) {
        lost = lost_heap(glibc, arena);
        if (!lost && !glibc_overlaps_extent(glibc, first, first + 1, &behind)) {
            lost = first; /* an arena is always in its first heap, whatever the header says */
        }
        if (!lost) {
            return true;
        }
        if (!arena->broken_link && last != arena->bad_heap && is_broken(glibc, first, last, link)) {
            arena->broken_link = last;
            arena->lost_heap = lost;
            arena->link = link;
        }
        if (!add_chain(glibc, index, lost, &last, &link)) {
            return false;
        }
        if (last == 0) {
            return true;
        }
    }
    return true;
}

bool glibc_add_thread_heaps(struct glibc_heap *glibc, uint32_t index) {
    struct glibc_arena *arena = &glibc->arenas[index];
    uint64_t heap = heap_of_top(glibc, arena), last, link;
    if (!heap) {
        heap = heap_by_mapping(glibc, arena);
        arena->top_damaged = arena->top_damaged || !heap;
    }
    return add_chain(glibc, index, heap, &last, &link) && add_lost_heaps(glibc, index, last, link);
}

bool glibc_add_heaps_by_headers(struct glibc_heap *glibc, uint32_t index) {
    struct glibc_arena *arena = &glibc->arenas[index];
    uint64_t behind;
    for (size_t i = 0; i < glibc->header_count; i++) {
        const struct glibc_heap_header *header = &glibc->headers[i];
        struct karst_extent extent = {.start = header->address,
                                      .end = header->address + header->size,
                                      .arena = index,
                                      .kind = KARST_EXTENT_HEAP};
        if (header->arena != arena->address || !size_is_possible(glibc, header->address, header->size) ||
            glibc_overlaps_extent(glibc, extent.start, extent.end, &behind)) {
            continue;
        }
        if (!glibc_add_extent(glibc, extent.start, extent.end, index, KARST_EXTENT_HEAP)) {
            return false;
        }
        glibc_find_top(glibc, &extent);
    }
    return true;
}
