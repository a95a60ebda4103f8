/* glibc malloc: its arenas, by the ring that they make, and by their heaps where the ring is broken. */
#include "glibc_find.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool add_arena(struct glibc_heap *glibc, uint64_t address, bool outside_ring) {
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

/* The arena whose first heap is at heap and that links to one that is known; 0: none. */
static uint64_t arena_of_heap(struct glibc_heap *glibc, uint64_t heap) {
    struct karst_target *target = glibc->heap.target;
    uint64_t arena, previous, next;
    if (!karst_target_read_u64(target, heap, &arena) || !karst_target_read_u64(target, heap + 8, &previous) ||
        previous != 0 || arena != heap + glibc->layout.heap_info_size || know_arena(glibc, arena) ||
        !karst_target_read_u64(target, arena + glibc->layout.state_next, &next)) {
        return 0;
    }
    return know_arena(glibc, next) ? arena : 0;
}

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

/* Heaps of thread arenas stand at multiples of 64 MiB, so their arenas are found even if the ring is broken:
 * each that is found may be what another one links to. */
static bool add_arenas_of_heaps(struct glibc_heap *glibc) {
    struct karst_target *target = glibc->heap.target;
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < target->mapping_count; i++) {
            const struct karst_mapping *mapping = &target->mappings[i];
            if (!karst_mapping_is_anonymous(mapping)) {
                continue;
            }
            uint64_t heap = next_heap(target, mapping, mapping->start, true);
            for (; heap < mapping->end; heap = next_heap(target, mapping, heap, false)) {
                uint64_t arena = arena_of_heap(glibc, heap);
                if (arena && !add_arena(glibc, arena, true)) {
                    return false;
                }
                more = more || arena;
            }
        }
    }
    return true;
}

bool glibc_read_arenas(struct glibc_heap *glibc) {
    uint64_t arena = glibc->main_arena;
    for (unsigned i = 0; i < GLIBC_ARENAS_MAX; i++) {
        if (!add_arena(glibc, arena, false)) {
            return false;
        }
        uint64_t next, behind;
        bool readable = karst_target_read_u64(glibc->heap.target, arena + glibc->layout.state_next, &next);
        if (readable && next == glibc->main_arena) {
            break;
        }
        if (!readable || next % 8 != 0 || know_arena(glibc, next) ||
            !karst_target_read_u64(glibc->heap.target, next + glibc->layout.state_next, &behind)) {
            glibc->ring_broken = true;
            break;
        }
        arena = next;
    }
    if (!add_arenas_of_heaps(glibc)) {
        return false;
    }
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        read_arena(glibc, i);
    }
    return true;
}
