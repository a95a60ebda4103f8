/* glibc malloc: chunks from which a walk may begin in the middle of an extent.
 *
 * Chunks lead forwards only, so the block at an address is found by walking up to it. Walks that look for one
 * block leave a chunk behind every so many bytes, from which the next one goes on: a heap is walked once,
 * however many blocks are asked for. Chunks do not move while a target stands still; of one that runs none
 * are kept. */
#include "glibc.h"

#include <stdlib.h>

#define SPACING   (16ull << 10) /* bytes between them at first */
#define WAYPOINTS (128u << 10)  /* of an extent; then every second one is dropped, and the spacing doubles */

static void thin_out(struct glibc_waypoints *waypoints) {
    size_t kept = 0;
    for (size_t i = 0; i < waypoints->count; i += 2) {
        waypoints->chunks[kept++] = waypoints->chunks[i];
    }
    waypoints->count = kept;
    waypoints->spacing *= 2;
}

void glibc_leave_waypoint(struct glibc_waypoints *waypoints, uint64_t chunk) {
    if (waypoints->count == WAYPOINTS) {
        thin_out(waypoints);
    }
    if (waypoints->count == waypoints->capacity) {
        size_t capacity = waypoints->capacity ? 2 * waypoints->capacity : 64;
        uint64_t *chunks = realloc(waypoints->chunks, capacity * sizeof *chunks);
        if (!chunks) {
            waypoints->next = UINT64_MAX; /* without memory for more, walks are longer */
            return;
        }
        waypoints->chunks = chunks;
        waypoints->capacity = capacity;
    }
    waypoints->chunks[waypoints->count++] = chunk;
    waypoints->next = chunk + waypoints->spacing;
}

struct glibc_waypoints *glibc_waypoints_of(struct glibc_heap *glibc, const struct karst_extent *extent) {
    const struct karst_heap *heap = &glibc->heap;
    const struct karst_extent *own = karst_heap_extent(heap, extent->start);
    if (!heap->target->stopped || !own || own->start != extent->start || own->end != extent->end) {
        return NULL;
    }
    if (!glibc->waypoints) {
        glibc->waypoints = calloc(heap->extent_count, sizeof *glibc->waypoints);
    }
    struct glibc_waypoints *waypoints = glibc->waypoints ? &glibc->waypoints[own - heap->extents] : NULL;
    if (waypoints && waypoints->spacing == 0) {
        waypoints->spacing = SPACING;
        waypoints->next = extent->start + SPACING;
    }
    return waypoints;
}

/* So that the block before the one that holds address is met, too, it is the last but one before it. */
uint64_t glibc_waypoint_before(const struct glibc_waypoints *waypoints, uint64_t address) {
    size_t behind = glibc_first_from(waypoints->chunks, waypoints->count, address + 1);
    return behind > 1 ? waypoints->chunks[behind - 2] : 0;
}

void glibc_waypoints_close(struct glibc_heap *glibc) {
    for (size_t i = 0; glibc->waypoints && i < glibc->heap.extent_count; i++) {
        free(glibc->waypoints[i].chunks);
    }
    free(glibc->waypoints);
}
