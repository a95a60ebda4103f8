/* glibc malloc: its arenas, by the ring that they make, and by their heaps where the ring is broken. */
#include "glibc_find.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool glibc_add_arena(struct glibc_heap *glibc, uint64_t address, bool outside_ring) {
    size_t count = glibc->heap.arena_count;
    struct karst_arena *rows = realloc(glibc->heap.arenas, (count + 1) * sizeof *rows);
    if (rows) {
        glibc->heap.arenas = rows;
    }
    struct glibc_arena *arenas = realloc(glibc->arenas, (count + 1) * sizeof *arenas);
    if (arenas) {
        glibc->arenas = arenas;
    }
    if (!rows || !arenas) {
        return false;
    }
    rows[count] = (struct karst_arena){.address = address};
    arenas[count] = (struct glibc_arena){.address = address, .outside_ring = outside_ring};
    if (count == 0) {
        snprintf(rows[count].name, sizeof rows[count].name, "main");
    } else {
        snprintf(rows[count].name, sizeof rows[count].name, "thread %zu", count);
    }
    glibc->heap.arena_count++;
    return true;
}

static bool know_arena(const struct glibc_heap *glibc, uint64_t address) {
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        if (glibc->arenas[i].address == address) {
            return true;
        }
    }
    return false;
}

static void read_arena(struct glibc_heap *glibc, size_t index) {
    const struct glibc_layout *layout = &glibc->layout;
    struct glibc_arena *arena = &glibc->arenas[index];
    struct karst_arena *row = &glibc->heap.arenas[index];
    uint8_t bytes[2304];
    uint64_t size_word;
    if (layout->state_size > sizeof bytes ||
        !karst_target_read_all(glibc->heap.target, arena->address, bytes, layout->state_size)) {
        arena->uninitialized = true;
        arena->state_missing = row->state_missing =
            glibc->data_missing || glibc_is_missing(glibc->heap.target, arena->address);
        arena->top_damaged = arena->fastbins_unknown = arena->state_missing;
        return;
    }
    uint32_t mutex;
    memcpy(&mutex, bytes + layout->state_mutex, 4);
    memcpy(&arena->flags, bytes + layout->state_flags, 4);
    arena->top = glibc_word(bytes + layout->state_top);
    arena->last_remainder = glibc_word(bytes + layout->state_last_remainder);
    arena->system_mem = row->system_bytes = glibc_word(bytes + layout->state_system_mem);
    row->max_system_bytes = glibc_word(bytes + layout->state_max_system_mem);
    row->attached_threads = glibc_word(bytes + layout->state_attached);
    row->locked = mutex != 0;
    arena->uninitialized = arena->top == 0 || arena->top == glibc_bin_head(glibc, arena, 1);
    if (!arena->uninitialized) {
        bool readable = karst_target_read_u64(glibc->heap.target, arena->top + 8, &size_word);
        arena->top_size = readable ? size_word & ~(uint64_t)GLIBC_FLAGS : 0;
        arena->top_damaged = !readable || arena->top % GLIBC_ALIGN != 0;
    }
}

/* Is the header that of the first heap of an arena that is not known yet, and links to one that is? */
static bool leads_into_ring(struct glibc_heap *glibc, const struct glibc_heap_header *header) {
    uint64_t next;
    return header->previous == 0 && header->arena == header->address + glibc->layout.heap_info_size &&
           !know_arena(glibc, header->arena) &&
           karst_target_read_u64(glibc->heap.target, header->arena + glibc->layout.state_next, &next) &&
           know_arena(glibc, next);
}

/* Heaps of thread arenas stand at multiples of 64 MiB, so their arenas are found even if the ring is broken:
 * each that is found may be what another one links to. */
static bool add_arenas_of_heaps(struct glibc_heap *glibc) {
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < glibc->header_count; i++) {
            if (!leads_into_ring(glibc, &glibc->headers[i])) {
                continue;
            }
            if (!glibc_add_arena(glibc, glibc->headers[i].arena, true)) {
                return false;
            }
            more = true;
        }
    }
    return true;
}

/* Arenas that are missing, of whose heaps some are there: the last ones, in a core that is cut off. */
static bool add_missing_arenas(struct glibc_heap *glibc) {
    for (size_t i = 0; i < glibc->header_count; i++) {
        const struct glibc_heap_header *header = &glibc->headers[i];
        if (header->previous == 0 || header->previous % GLIBC_HEAP_ALIGNMENT != 0 ||
            header->arena % GLIBC_HEAP_ALIGNMENT != glibc->layout.heap_info_size ||
            header->size % glibc->heap.target->page_size != 0 || know_arena(glibc, header->arena) ||
            !glibc_is_missing(glibc->heap.target, header->arena)) {
            continue;
        }
        if (!glibc_add_arena(glibc, header->arena, true)) {
            return false;
        }
    }
    return true;
}

/* Where the arena at address leads in the ring; 0: nowhere that an arena can be. */
static uint64_t next_in_ring(struct glibc_heap *glibc, uint64_t address) {
    uint64_t next, behind;
    return karst_target_read_u64(glibc->heap.target, address + glibc->layout.state_next, &next) &&
                   next % 8 == 0 &&
                   karst_target_read_u64(glibc->heap.target, next + glibc->layout.state_next, &behind)
               ? next
               : 0;
}

/* Does the arena at address lead to one that the target only lacks? */
static bool next_is_missing(struct glibc_heap *glibc, uint64_t address) {
    uint64_t next;
    return karst_target_read_u64(glibc->heap.target, address + glibc->layout.state_next, &next) &&
           glibc_is_missing(glibc->heap.target, next + glibc->layout.state_next);
}

static bool add_ring(struct glibc_heap *glibc) {
    uint64_t arena = glibc->main_arena;
    for (unsigned i = 0; i < GLIBC_ARENAS_MAX; i++) {
        if (!glibc_add_arena(glibc, arena, false)) {
            return false;
        }
        uint64_t next = next_in_ring(glibc, arena);
        if (next == glibc->main_arena) {
            break;
        }
        if (!next || know_arena(glibc, next)) {
            glibc->ring_broken = !next_is_missing(glibc, arena);
            break;
        }
        arena = next;
    }
    return true;
}

bool glibc_read_arenas(struct glibc_heap *glibc) {
    if (!glibc_load_heap_headers(glibc) ||
        !(glibc->data_missing ? glibc_add_arenas_without_main(glibc) : add_ring(glibc)) ||
        !add_arenas_of_heaps(glibc) || !add_missing_arenas(glibc)) {
        return false;
    }
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        read_arena(glibc, i);
    }
    return true;
}
