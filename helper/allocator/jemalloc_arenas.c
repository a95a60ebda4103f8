/* jemalloc 5.x: the arenas, which are found by what they are: each knows its number and the memory it came
 * from. Facts: include/jemalloc/internal/arena_structs.h, base.h (5.1, 5.2: arena_structs_b.h,
 * base_structs.h). */
#include <stdio.h>
#include <stdlib.h>

#include "jemalloc.h"

#define PAGE            4096u
#define BASE_BLOCKS_MAX 65536u
#define ALL_ADDRESSES   (1ull << 47)

/* Base blocks of an arena with hooks of the program's are what those hand out: files' and shared memory, too.
 */
static bool is_writable(const struct karst_target *target, uint64_t address, uint64_t size) {
    const uint32_t needed = KARST_MAPPING_READ | KARST_MAPPING_WRITE;
    const struct karst_mapping *mapping = karst_target_mapping(target, address);
    uint64_t end = address + size;
    while (end >= address && mapping && (mapping->permissions & needed) == needed) {
        if (mapping->end >= end) {
            return true;
        }
        mapping = karst_target_mapping(target, mapping->end);
    }
    return false;
}

/* The arena at address: its number, and the memory it came from, or false. */
static bool arena_at(struct jemalloc_heap *jemalloc, uint64_t address, uint32_t *index, uint64_t *base) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t block, size;
    const uint8_t *bytes;
    if (address % 64 != 0 || !jemalloc_read(jemalloc, address + layout->arena_base, base) || *base % 8 != 0 ||
        *base == 0 || !(bytes = jemalloc_at(jemalloc, *base, 4))) {
        return false;
    }
    *index = jemalloc_half(bytes);
    if (layout->arena_index != JEMALLOC_NOT_THERE) {
        bytes = jemalloc_at(jemalloc, address + layout->arena_index, 4);
        if (!bytes || jemalloc_half(bytes) != *index) {
            return false;
        }
    }
    return *index < JEMALLOC_ARENAS_MAX && jemalloc_read(jemalloc, *base + layout->base_blocks, &block) &&
           block != 0 && block % PAGE == 0 && jemalloc_read(jemalloc, block, &size) && size != 0 &&
           size % PAGE == 0 && is_writable(jemalloc->heap.target, block, size);
}

struct votes {
    uint64_t table[16];
    unsigned count[16];
    size_t used;
};

static void vote(struct votes *votes, uint64_t table) {
    size_t i = 0;
    while (i < votes->used && votes->table[i] != table) {
        i++;
    }
    if (i == sizeof votes->table / sizeof *votes->table) {
        return;
    }
    if (i == votes->used) {
        votes->table[votes->used++] = table;
        votes->count[i] = 0;
    }
    votes->count[i]++;
}

/* Most words of the module's data that lead to an arena are in the table. */
uint64_t jemalloc_search_arenas(struct jemalloc_heap *jemalloc, unsigned *count) {
    struct karst_target *target = jemalloc->heap.target;
    struct votes votes = {.used = 0};
    struct karst_window window;
    karst_window_open(&window, target, 1u << 18);
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->start >= jemalloc->module->end || mapping->end <= jemalloc->module->start ||
            !jemalloc_is_data(mapping)) {
            continue;
        }
        for (uint64_t at = mapping->start; at + 8 <= mapping->end && at < jemalloc->module->end;) {
            const uint8_t *bytes = karst_window_at(&window, at, 8);
            uint64_t word = bytes ? jemalloc_word(bytes) : 0, base;
            if (word == 0 && at % PAGE == 0) {
                uint64_t nothing = bytes ? karst_target_untouched(target, at, mapping->end)
                                         : karst_target_missing(target, at);
                if (nothing >= PAGE) {
                    at = nothing < mapping->end - at ? at + nothing : mapping->end;
                    continue;
                }
            }
            uint32_t index;
            if (word && word % 64 == 0 && word < ALL_ADDRESSES && arena_at(jemalloc, word, &index, &base)) {
                vote(&votes, at - 8ull * index);
            }
            at += 8;
        }
    }
    karst_window_close(&window);
    *count = 0;
    uint64_t best = 0;
    for (size_t i = 0; i < votes.used; i++) {
        if (votes.count[i] > *count) {
            *count = votes.count[i];
            best = votes.table[i];
        }
    }
    return best;
}

bool jemalloc_make_arenas(struct jemalloc_heap *jemalloc, size_t count) {
    size_t before = jemalloc->heap.arena_count;
    if (count <= before) {
        return true;
    }
    struct karst_arena *rows = realloc(jemalloc->heap.arenas, count * sizeof *rows);
    if (rows) {
        jemalloc->heap.arenas = rows;
    }
    struct jemalloc_arena *arenas = realloc(jemalloc->arenas, count * sizeof *arenas);
    if (arenas) {
        jemalloc->arenas = arenas;
    }
    if (!rows || !arenas) {
        return false;
    }
    for (size_t i = before; i < count; i++) {
        rows[i] = (struct karst_arena){0};
        arenas[i] = (struct jemalloc_arena){.first_bin = KARST_NONE};
        snprintf(rows[i].name, sizeof rows[i].name, "%zu", i);
    }
    jemalloc->heap.arena_count = count;
    return true;
}

static bool is_locked(struct jemalloc_heap *jemalloc, uint64_t mutex) {
    const uint8_t *bytes;
    uint16_t locked = jemalloc->layout.mutex_locked;
    return locked != (JEMALLOC_NOT_THERE & 0xffff) && (bytes = jemalloc_at(jemalloc, mutex + locked, 1)) &&
           *bytes == 1;
}

static void read_arena(struct jemalloc_heap *jemalloc, uint64_t address, uint32_t index, uint64_t base) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    struct jemalloc_arena *arena = &jemalloc->arenas[index];
    struct karst_arena *row = &jemalloc->heap.arenas[index];
    arena->address = row->address = address;
    const uint8_t *threads = jemalloc_at(jemalloc, address + layout->arena_threads, 4);
    row->attached_threads = threads ? jemalloc_half(threads) : 0;
    jemalloc_read(jemalloc, address + layout->arena_internal, &arena->internal);
    jemalloc_read(jemalloc, address + layout->arena_mapped, &arena->mapped);
    jemalloc_read(jemalloc, base + layout->base_allocated, &arena->base_allocated);
    jemalloc_read(jemalloc, base + layout->base_mapped - 8, &arena->base_resident);
    jemalloc_read(jemalloc, base + layout->base_mapped, &arena->base_mapped);
    for (int i = 0; i < 3; i++) {
        row->locked |= is_locked(jemalloc, address + layout->arena_mutex[i]);
    }
}

/* The memory that an arena has for itself. */
static bool add_base_blocks(struct jemalloc_heap *jemalloc, uint32_t index, uint64_t base) {
    uint64_t block, size;
    if (!jemalloc_read(jemalloc, base + jemalloc->layout.base_blocks, &block)) {
        return true;
    }
    uint64_t from = base + jemalloc->layout.base_blocks, before = 0;
    for (unsigned i = 0; block != 0 && i < BASE_BLOCKS_MAX; i++) {
        bool circle = block == before;
        if (circle || block % PAGE != 0 || !jemalloc_read(jemalloc, block, &size) || size == 0 ||
            size % PAGE != 0 || !is_writable(jemalloc->heap.target, block, size)) {
            bool lacking = jemalloc_is_lacking(jemalloc, block);
            jemalloc->arenas[index].block_left_out = lacking;
            jemalloc->arenas[index].bad_block = lacking ? 0 : from;
            return true;
        }
        if (!jemalloc_add_extent(jemalloc, block, block + size, index, KARST_EXTENT_OWN)) {
            return false;
        }
        before = (i & (i + 1)) == 0 ? block : before; /* Brent: a circle comes back to one of these */
        from = block + 8;
        jemalloc_read(jemalloc, from, &block);
    }
    return true;
}

bool jemalloc_read_arenas(struct jemalloc_heap *jemalloc) {
    for (uint32_t i = 0; i < JEMALLOC_ARENAS_MAX - 1 && jemalloc->arenas_at; i++) {
        uint64_t address, base;
        uint32_t index;
        if (!jemalloc_read(jemalloc, jemalloc->arenas_at + 8ull * i, &address)) {
            break;
        }
        if (address == 0 || !arena_at(jemalloc, address, &index, &base) || index != i) {
            continue;
        }
        if (!jemalloc_make_arenas(jemalloc, i + 1)) {
            return false;
        }
        read_arena(jemalloc, address, i, base);
        if (!add_base_blocks(jemalloc, i, base)) {
            return false;
        }
    }
    return true;
}
