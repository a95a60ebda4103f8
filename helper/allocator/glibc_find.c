/* glibc malloc: finding the heaps of a target, with or without symbols.
 *
 * main_arena: by symbol, else by its content: an empty bin points at itself, the ring of arenas closes.
 * mp_: by symbol, else beside main_arena by its defaults and sums. The threads' caches: by what their
 * thread-local words point at. Blocks with mappings of their own: in the mappings, held against mp_. */
#include "glibc.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENAS_MAX   65536u
#define BINS_NEEDED  120u  /* of 127, for an arena to be taken for one although some were damaged */
#define RING_TO_BINS 2048u /* malloc_state.next - malloc_state.bins, all versions */

/* ---- arenas ------------------------------------------------------------------------------------- */

static bool bin_is_consistent(struct karst_window *window, uint64_t head) {
    const uint8_t *links = karst_window_at(window, head + 16, 16);
    if (!links) {
        return false;
    }
    uint64_t fd = glibc_word(links), bk = glibc_word(links + 8);
    if (fd == head && bk == head) {
        return true;
    }
    const uint8_t *bytes = karst_window_at(window, fd + 24, 8);
    if (!bytes || glibc_word(bytes) != head) {
        return false;
    }
    bytes = karst_window_at(window, bk + 16, 8);
    return bytes && glibc_word(bytes) == head;
}

static unsigned consistent_bins(struct karst_window *window, uint64_t bins) {
    unsigned good = 0;
    for (unsigned i = 0; i < GLIBC_BINS - 1; i++) {
        good += bin_is_consistent(window, bins + 16ull * i - 16);
        if (good + (GLIBC_BINS - 1 - i) < BINS_NEEDED) {
            return 0;
        }
    }
    return good;
}

/* Does the ring of arenas from base come back to it? */
static bool ring_closes(struct karst_window *window, uint64_t base, const struct glibc_layout *layout) {
    uint64_t arena = base;
    for (unsigned i = 0; i < ARENAS_MAX; i++) {
        const uint8_t *bytes = karst_window_at(window, arena + layout->state_next, 8);
        if (!bytes) {
            return false;
        }
        arena = glibc_word(bytes);
        if (arena == base) {
            return true;
        }
        if (arena % 8 != 0 || arena == 0) {
            return false;
        }
    }
    return false;
}

/* A main arena found: where, and which generation of malloc_state it is (an index of glibc_layouts). */
struct root {
    uint64_t arena;
    const struct glibc_layout *generation;
    bool ring_broken;
    bool by_symbol;
};

/* The two shapes malloc_state has had since 2.26. */
static const struct glibc_layout *const *generations(void) {
    static const struct glibc_layout *rows[3];
    rows[0] = glibc_layout_for(36);
    rows[1] = glibc_layout_for(43);
    return rows;
}

static bool arena_at_bins(struct karst_window *window, uint64_t bins, struct root *root) {
    const struct glibc_layout *const *rows = generations();
    for (unsigned g = 0; rows[g]; g++) {
        uint64_t base = bins - rows[g]->state_bins;
        if (ring_closes(window, base, rows[g]) && consistent_bins(window, bins)) {
            *root = (struct root){.arena = base, .generation = rows[g]};
            return true;
        }
    }
    return false;
}

/* An arena whose ring is damaged: told by its bins alone and a top that leads to the end of its mapping. */
static bool damaged_arena_at_bins(struct karst_target *target, struct karst_window *window, uint64_t bins,
                                  struct root *root) {
    if (consistent_bins(window, bins) < BINS_NEEDED + 4) {
        return false;
    }
    const uint8_t *bytes = karst_window_at(window, bins - 16, 8);
    uint64_t top = bytes ? glibc_word(bytes) : 0;
    bytes = top ? karst_window_at(window, top + 8, 8) : NULL;
    if (!bytes || (top + (glibc_word(bytes) & ~(uint64_t)GLIBC_FLAGS)) % target->page_size != 0) {
        return false;
    }
    /* Before `top` stand the fastbins, or (2.43) mutex and flags, which are small. */
    uint64_t before = (bytes = karst_window_at(window, bins - 24, 8)) ? glibc_word(bytes) : 0;
    const struct glibc_layout *const *rows = generations();
    bool small = before < (1ull << 34) && (before & 0xffffffff) < 4;
    const struct glibc_layout *row = small && before != 0 ? rows[1] : rows[0];
    *root = (struct root){.arena = bins - row->state_bins, .generation = row, .ring_broken = true};
    return true;
}

/* Scans [start, end) for a main arena. */
static bool scan_for_arena(struct karst_target *target, uint64_t start, uint64_t end, struct root *root) {
    struct karst_window window, chase;
    karst_window_open(&window, target, 1u << 20);
    karst_window_open(&chase, target, 4096);
    bool found = false;
    for (unsigned pass = 0; pass < 2 && !found; pass++) {
        for (uint64_t at = (start + 7) & ~7ull; at + 16 <= end && !found; at += 8) {
            const uint8_t *bytes = karst_window_at(&window, at, 16);
            if (!bytes) {
                at = (at & ~(target->page_size - 1)) + target->page_size - 8;
                continue;
            }
            if (glibc_word(bytes) != at - 16 || glibc_word(bytes + 8) != at - 16) {
                continue;
            }
            for (unsigned i = 0; i < GLIBC_BINS - 1 && !found; i++) {
                uint64_t bins = at - 16ull * i;
                found = pass == 0 ? arena_at_bins(&chase, bins, root)
                                  : damaged_arena_at_bins(target, &chase, bins, root);
            }
        }
    }
    karst_window_close(&window);
    karst_window_close(&chase);
    return found;
}

static bool may_hold_root(const struct karst_mapping *mapping) {
    return mapping->name && mapping->name[0] != '[' && (mapping->permissions & KARST_MAPPING_WRITE) &&
           (mapping->permissions & KARST_MAPPING_READ) && !(mapping->permissions & KARST_MAPPING_SHARED);
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_libc(const struct karst_module *module) {
    const char *name = base_name(module->path);
    return strncmp(name, "libc.so", 7) == 0 || strncmp(name, "libc-2.", 7) == 0;
}

/* The executable of a program without a libc of its own, or a libc: where symbols are worth opening. */
static bool symbols_worth(const struct karst_target *target, const struct karst_module *module) {
    if (is_libc(module) || strncmp(base_name(module->path), "libc_malloc_debug", 17) == 0) {
        return true;
    }
    for (size_t i = 0; i < target->module_count; i++) {
        if (is_libc(&target->modules[i])) {
            return false;
        }
    }
    return module == &target->modules[0] || target->module_count <= 2;
}

static bool root_by_symbol(struct karst_target *target, struct karst_module *module, struct root *root) {
    struct karst_symbol symbol;
    if (!symbols_worth(target, module) || !karst_module_symbol(target, module, "main_arena", &symbol) ||
        symbol.thread_local_) {
        return false;
    }
    struct karst_window window;
    karst_window_open(&window, target, 4096);
    const struct glibc_layout *const *rows = generations();
    bool found = false;
    for (unsigned g = 0; rows[g] && !found; g++) {
        if (symbol.size == rows[g]->state_size || ring_closes(&window, symbol.address, rows[g])) {
            *root =
                (struct root){symbol.address, rows[g], !ring_closes(&window, symbol.address, rows[g]), true};
            found = true;
        }
    }
    karst_window_close(&window);
    return found;
}

/* ---- versions and layouts ------------------------------------------------------------------------- */

static unsigned version_of(struct karst_target *target, struct karst_module *module, char *text,
                           size_t size) {
    static const char *const banners[] = {"GNU C Library (", "stable release version 2.", "glibc 2."};
    for (size_t i = 0; i < sizeof banners / sizeof *banners; i++) {
        unsigned minor;
        if (!karst_module_find_text(target, module, banners[i], text, size)) {
            continue;
        }
        const char *number = strstr(text, "version 2.");
        number = number ? number + 10 : strncmp(text, "glibc 2.", 8) == 0 ? text + 8 : NULL;
        if (number && sscanf(number, "%u", &minor) == 1 && minor > 0 && minor < 200) {
            return minor;
        }
    }
    return 0;
}

/* How well a malloc_par at address fits, by its defaults and sums; 0: not at all. */
static unsigned par_score(struct glibc_heap *glibc, const struct glibc_layout *layout, uint64_t address) {
    uint8_t bytes[160];
    if (layout->par_size > sizeof bytes ||
        !karst_target_read_all(glibc->heap.target, address, bytes, layout->par_size)) {
        return 0;
    }
    uint32_t n_mmaps, n_mmaps_max;
    memcpy(&n_mmaps, bytes + layout->par_n_mmaps, 4);
    memcpy(&n_mmaps_max, bytes + layout->par_n_mmaps_max, 4);
    uint64_t sbrk_base = glibc_word(bytes + layout->par_sbrk_base);
    uint64_t mapped = glibc_word(bytes + layout->par_mmapped_mem);
    uint64_t max_mapped = glibc_word(bytes + layout->par_max_mmapped_mem);
    uint64_t tcache_bins = glibc_word(bytes + layout->par_tcache_bins);
    uint64_t tcache_count = glibc_word(bytes + layout->par_tcache_count);
    uint64_t page = glibc->heap.target->page_size;
    if (n_mmaps > 1u << 28 || mapped % page != 0 || (n_mmaps == 0) != (mapped == 0) ||
        (sbrk_base != 0 && !karst_target_mapping(glibc->heap.target, sbrk_base)) ||
        tcache_count > UINT16_MAX) {
        return 0;
    }
    unsigned score = 0;
    score += 3 * (glibc_word(bytes + layout->par_top_pad) == 0x20000);
    score += 3 * (glibc_word(bytes + layout->par_arena_test) == 8);
    score += 3 * (n_mmaps_max == 65536);
    score += 4 * (tcache_bins == GLIBC_TCACHE_SMALL_BINS);
    score += 2 * (tcache_count == 7 || tcache_count == 16);
    uint64_t max_bytes = glibc_word(bytes + layout->par_tcache_max_bytes);
    score += 2 * (max_bytes == (layout->tcache_bins == GLIBC_TCACHE_SMALL_BINS ? 1032 : 1041));
    score += mapped <= max_mapped;
    score += 3 * (sbrk_base != 0);
    return score;
}

#define PAR_SCORE_NEEDED 9u
#define PAR_DISTANCE     0x4000u

/* Finds mp_ beside the main arena, for one layout. */
static uint64_t search_par(struct glibc_heap *glibc, const struct glibc_layout *layout, unsigned *best) {
    uint64_t found = 0;
    *best = 0;
    uint64_t low = glibc->main_arena > PAR_DISTANCE ? glibc->main_arena - PAR_DISTANCE : 0;
    for (uint64_t at = low; at < glibc->main_arena + PAR_DISTANCE; at += 8) {
        unsigned score = par_score(glibc, layout, at);
        if (score > *best) {
            *best = score;
            found = at;
        }
    }
    return *best >= PAR_SCORE_NEEDED ? found : 0;
}

/* Chooses the layout by the version the module tells, else by what fits best; finds mp_. */
static bool choose_layout(struct glibc_heap *glibc, const struct root *root) {
    struct karst_target *target = glibc->heap.target;
    char text[160];
    unsigned minor = version_of(target, glibc->module, text, sizeof text);
    const struct glibc_layout *layout = minor ? glibc_layout_for(minor) : NULL;
    unsigned score = 0;
    const char *how = "table, by the version the library names";
    if (minor && !layout) {
        /* Newer (or much older) than the table: the nearest row, if it fits the target. */
        layout = minor > 43 ? glibc_layout_for(43) : NULL;
        if (!layout || layout->state_bins != root->generation->state_bins) {
            return false;
        }
        how = "the newest known: the version is newer, but what was found fits";
    }
    if (!layout) {
        for (size_t i = 0; i < glibc_layout_count; i++) {
            unsigned fits;
            if (glibc_layouts[i].state_bins == root->generation->state_bins &&
                search_par(glibc, &glibc_layouts[i], &fits) && fits >= score) {
                score = fits;
                layout = &glibc_layouts[i];
            }
        }
        layout = layout ? layout : root->generation;
        how = "the one of the table that fits what was found";
    }
    glibc->layout = *layout;
    if (minor) {
        snprintf(glibc->heap.version, sizeof glibc->heap.version, "2.%u", minor);
    } else if (layout->first == layout->last) {
        snprintf(glibc->heap.version, sizeof glibc->heap.version, "2.%u", layout->first);
    } else {
        snprintf(glibc->heap.version, sizeof glibc->heap.version, "2.%u to 2.%u", layout->first,
                 layout->last);
    }
    unsigned told = glibc_layout_from_debug_info(target, glibc->module, &glibc->layout);
    if (told) {
        how = "debug info";
    }
    struct karst_symbol symbol;
    bool by_symbol = karst_module_symbol(target, glibc->module, "mp_", &symbol) && !symbol.thread_local_;
    glibc->par = by_symbol ? symbol.address : search_par(glibc, &glibc->layout, &score);
    return karst_facts_add(&glibc->heap.facts, "library", 0, "%s", glibc->module->path) &&
           karst_facts_add(&glibc->heap.facts, "layout", 0, "%s", how) &&
           karst_facts_add(&glibc->heap.facts, "main_arena", glibc->main_arena, "%s",
                           root->by_symbol ? "by symbol" : "found by structure") &&
           (glibc->par ? karst_facts_add(&glibc->heap.facts, "mp_", glibc->par, "%s",
                                         by_symbol ? "by symbol" : "found by structure")
                       : karst_facts_add(&glibc->heap.facts, "mp_", 0,
                                         "not found: blocks with mappings of their own can't be counted"));
}

static void read_par(struct glibc_heap *glibc) {
    const struct glibc_layout *layout = &glibc->layout;
    uint8_t bytes[256];
    if (!glibc->par || layout->par_size > sizeof bytes ||
        !karst_target_read_all(glibc->heap.target, glibc->par, bytes, layout->par_size)) {
        return;
    }
    uint32_t n_mmaps;
    memcpy(&n_mmaps, bytes + layout->par_n_mmaps, 4);
    glibc->n_mmaps = n_mmaps;
    glibc->mmapped_mem = glibc_word(bytes + layout->par_mmapped_mem);
    glibc->sbrk_base = glibc_word(bytes + layout->par_sbrk_base);
    glibc->mmap_threshold = glibc_word(bytes + layout->par_mmap_threshold);
    glibc->top_pad = glibc_word(bytes + layout->par_top_pad);
    glibc->tcache_count = glibc_word(bytes + layout->par_tcache_count);
    glibc->tcache_max_bytes = glibc_word(bytes + layout->par_tcache_max_bytes);
}

/* ---- the arenas' tables ----------------------------------------------------------------------------- */

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

/* Heaps of thread arenas stand at multiples of 64 MiB; their arenas are known even if the ring is not. */
static bool add_arenas_of_heaps(struct glibc_heap *glibc) {
    const uint64_t alignment = 64ull << 20;
    struct karst_target *target = glibc->heap.target;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint64_t arena, previous;
        if (mapping->start % alignment != 0 || !karst_mapping_is_anonymous(mapping) ||
            !karst_target_read_u64(target, mapping->start, &arena) ||
            !karst_target_read_u64(target, mapping->start + 8, &previous) || previous != 0 ||
            arena != mapping->start + glibc->layout.heap_info_size || know_arena(glibc, arena)) {
            continue;
        }
        uint64_t next;
        bool in_ring = karst_target_read_u64(target, arena + glibc->layout.state_next, &next) &&
                       (know_arena(glibc, next) || next == glibc->main_arena);
        if (in_ring && !add_arena(glibc, arena, true)) {
            return false;
        }
    }
    return true;
}

static bool read_arenas(struct glibc_heap *glibc) {
    uint64_t arena = glibc->main_arena;
    for (unsigned i = 0; i < ARENAS_MAX; i++) {
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

/* ---- extents ------------------------------------------------------------------------------------------ */

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

static void sort_extents(struct glibc_heap *glibc) {
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

static bool add_thread_heaps(struct glibc_heap *glibc, uint32_t index) {
    struct glibc_arena *arena = &glibc->arenas[index];
    uint64_t first = arena->address - glibc->layout.heap_info_size;
    uint64_t heap = arena->top_damaged ? 0 : heap_of_top(glibc, arena);
    uint64_t previous, size;
    if (!heap) {
        /* top is damaged: at least the first heap can be told. */
        arena->top_damaged = true;
        heap = first;
    }
    for (unsigned i = 0; i < ARENAS_MAX && heap; i++) {
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

/* Follows chunks from start to where a segment of the main arena ends: behind top, or behind a double
 * fencepost. 0: this is no segment. budget bounds all such walks together. */
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
        bool post = word == (GLIBC_FENCEPOST | GLIBC_PREV_INUSE);
        if (post && post_before) {
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

static bool overlaps_extent(const struct glibc_heap *glibc, uint64_t start, uint64_t end, uint64_t *behind) {
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
    uint64_t found = 0, budget = 64 + arena->system_mem / GLIBC_MIN_CHUNK * 4, behind;
    struct karst_window window;
    karst_window_open(&window, target, 1u << 16);
    bool fine = true;
    uint64_t page = target->page_size;
    for (size_t i = 0; i < target->mapping_count && fine && found < arena->system_mem && budget; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        uint64_t limit = run_end(target, mapping->start);
        uint64_t at = glibc->sbrk_base >= mapping->start && glibc->sbrk_base < mapping->end ? glibc->sbrk_base
                                                                                            : mapping->start;
        while (fine && at < mapping->end && found < arena->system_mem && budget) {
            if (overlaps_extent(glibc, at, at + page, &behind)) {
                at = (behind + page - 1) & ~(page - 1);
                continue;
            }
            uint64_t end = segment_end(glibc, &window, at, limit, &budget);
            if (!end) {
                at = (at & ~(page - 1)) + page;
                continue;
            }
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

static bool add_main_extents(struct glibc_heap *glibc) {
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

/* ---- blocks with a mapping of their own -----------------------------------------------------------------
 */

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
            if (overlaps_extent(glibc, at, at + page, &behind)) {
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
static bool add_mapped_extents(struct glibc_heap *glibc) {
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

/* ---- the threads' caches --------------------------------------------------------------------------------
 */

#define TLS_SPAN        8192u /* how far below the thread pointer libc's thread-local words are looked for */
#define MODULE_DATA_MAX (16u << 20) /* how much of a libc's variables is searched for the key */
#define KEYS_TRIED      16u
#define TCB_SPAN        16384u /* how far into a mapping thread control blocks are looked for */

/* A thread control block: what the thread pointer points at. */
struct tcb {
    uint64_t address;
    int64_t tid; /* -1: no thread of the target has it */
};

struct tcb_list {
    struct tcb *items;
    size_t count;
};

static bool add_tcb(struct tcb_list *list, uint64_t address, int64_t tid) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].address == address) {
            return true;
        }
    }
    struct tcb *items = realloc(list->items, (list->count + 1) * sizeof *items);
    if (!items) {
        return false;
    }
    list->items = items;
    items[list->count++] = (struct tcb){address, tid};
    return true;
}

/* Which thread a control block belongs to, when its registers are not known: struct pthread keeps the
 * thread id about 0x2d0 bytes in (nptl/descr.h). */
static int64_t tid_of_tcb(struct karst_target *target, uint64_t address) {
    uint32_t words[0x100 / 4];
    if (!karst_target_read_all(target, address + 0x240, words, sizeof words)) {
        return -1;
    }
    for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
        for (size_t t = 0; t < target->thread_count; t++) {
            if (words[w] == (uint32_t)target->threads[t].tid && !target->threads[t].thread_pointer) {
                return target->threads[t].tid;
            }
        }
    }
    return -1;
}

/* x86-64: tcbhead_t points at itself at 0 and 16 (sysdeps/x86_64/nptl/tls.h), 64-byte aligned. */
static bool scan_for_tcbs(struct glibc_heap *glibc, uint64_t start, uint64_t end, struct tcb_list *list) {
    for (uint64_t at = (start + 63) & ~63ull; at + 24 <= end; at += 64) {
        const uint8_t *bytes = karst_window_at(&glibc->lists, at, 24);
        if (!bytes) {
            return true;
        }
        if (glibc_word(bytes) == at && glibc_word(bytes + 16) == at &&
            !add_tcb(list, at, tid_of_tcb(glibc->heap.target, at))) {
            return false;
        }
    }
    return true;
}

/* All control blocks: of the threads, and of those whose thread is gone (the child of a fork has its
 * parent's other threads' caches in its heap, and nobody will ever use them). */
static bool find_tcbs(struct glibc_heap *glibc, struct tcb_list *list) {
    struct karst_target *target = glibc->heap.target;
    for (size_t i = 0; i < target->thread_count; i++) {
        if (target->threads[i].thread_pointer &&
            !add_tcb(list, target->threads[i].thread_pointer, target->threads[i].tid)) {
            return false;
        }
    }
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint64_t behind;
        if (!karst_mapping_is_anonymous(mapping) ||
            overlaps_extent(glibc, mapping->start, mapping->start + 1, &behind)) {
            continue;
        }
        uint64_t size = mapping->end - mapping->start;
        uint64_t head = size < 2 * TCB_SPAN ? size : TCB_SPAN;
        if (!scan_for_tcbs(glibc, mapping->start, mapping->start + head, list) ||
            (size > head && !scan_for_tcbs(glibc, mapping->end - TCB_SPAN, mapping->end, list))) {
            return false;
        }
    }
    return true;
}

enum tcache_quality { TCACHE_NOT, TCACHE_EMPTY, TCACHE_SURE };

/* Is there a tcache_perthread_struct? In a chunk of its size, each list empty where its count is. */
static enum tcache_quality tcache_quality(struct glibc_heap *glibc, uint64_t address) {
    const struct glibc_layout *layout = &glibc->layout;
    uint64_t size_word;
    if (address % GLIBC_ALIGN != 0 || !glibc_chunk_extent(glibc, address - GLIBC_HEADER) ||
        !karst_target_read_u64(glibc->heap.target, address - 8, &size_word)) {
        return TCACHE_NOT;
    }
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
    uint64_t needed = (layout->tcache_size + 8ull + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1);
    uint8_t bytes[1024];
    if ((size != needed && size != needed + GLIBC_ALIGN) || layout->tcache_size > sizeof bytes ||
        !karst_target_read_all(glibc->heap.target, address, bytes, layout->tcache_size)) {
        return TCACHE_NOT;
    }
    unsigned good = 0, bad = 0;
    for (unsigned i = 0; i < layout->tcache_bins; i++) {
        uint16_t count;
        memcpy(&count, bytes + 2 * i, 2);
        uint64_t entry = glibc_word(bytes + layout->tcache_entries + 8 * i);
        bool empty = layout->tcache_counts_slots ? count == glibc->tcache_count : count == 0;
        bool sensible = entry == 0 ? empty : !empty && entry % GLIBC_ALIGN == 0;
        bad += !sensible;
        good += sensible && (entry != 0 || (layout->tcache_counts_slots && count));
    }
    if (bad > 2 || (bad && good < 4 * bad)) {
        return TCACHE_NOT;
    }
    return good ? TCACHE_SURE : TCACHE_EMPTY;
}

/* The offset from the thread pointer at which the threads keep their tcache pointer: the one that leads to
 * a tcache in most threads. */
static bool find_tcache_offset(struct glibc_heap *glibc, const struct tcb_list *tcbs) {
    const bool below = glibc->heap.target->machine != 183; /* EM_AARCH64 has its TLS above */
    uint32_t *votes = calloc(TLS_SPAN / 8, sizeof *votes);
    if (!votes) {
        return false;
    }
    for (size_t t = 0; t < tcbs->count; t++) {
        for (unsigned slot = 0; slot < TLS_SPAN / 8; slot++) {
            uint64_t at =
                below ? tcbs->items[t].address - 8 * (slot + 1ull) : tcbs->items[t].address + 8ull * slot;
            uint64_t word;
            if (!glibc_read(glibc, at, &word)) {
                break;
            }
            enum tcache_quality quality = word ? tcache_quality(glibc, word) : TCACHE_NOT;
            votes[slot] += quality == TCACHE_SURE ? 256 : quality == TCACHE_EMPTY ? 1 : 0;
        }
    }
    unsigned best = 0;
    for (unsigned slot = 1; slot < TLS_SPAN / 8; slot++) {
        best = votes[slot] > votes[best] ? slot : best;
    }
    if (votes[best]) {
        glibc->tcache_tls_offset = below ? -8 * ((int64_t)best + 1) : 8 * (int64_t)best;
    }
    free(votes);
    return true;
}

/* Keys of cached chunks: the majority has the right one (Boyer and Moore's vote). */
struct key_vote {
    uint64_t key;
    uint64_t weight;
};

struct collect {
    struct glibc_heap *glibc;
    uint32_t bin;
    struct key_vote *vote; /* NULL: no keys in this list */
    bool out_of_memory;
};

static bool collect_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct collect *collect = context;
    uint64_t key;
    if (collect->vote && glibc_read(collect->glibc, chunk + 24, &key)) {
        if (collect->vote->weight == 0) {
            *collect->vote = (struct key_vote){key, 1};
        } else {
            collect->vote->weight += collect->vote->key == key ? 1 : UINT64_MAX;
        }
    }
    struct karst_bin *bin = &collect->glibc->heap.bins[collect->bin];
    bin->blocks++;
    bin->bytes += size_word & ~(uint64_t)GLIBC_FLAGS;
    if (!glibc_add_cached(collect->glibc, chunk, collect->bin)) {
        collect->out_of_memory = true;
        return false;
    }
    return true;
}

static struct karst_bin *add_bins(struct glibc_heap *glibc, size_t count) {
    struct karst_bin *bins = realloc(glibc->heap.bins, (glibc->heap.bin_count + count) * sizeof *bins);
    if (!bins) {
        return NULL;
    }
    glibc->heap.bins = bins;
    bins += glibc->heap.bin_count;
    memset(bins, 0, count * sizeof *bins);
    glibc->heap.bin_count += count;
    return bins;
}

static void name_bin(struct karst_bin *bin, const char *kind, const char *of) {
    snprintf(bin->kind, sizeof bin->kind, "%s", kind);
    snprintf(bin->name, sizeof bin->name, "%s 0x%" PRIx64 " %s", kind, bin->smallest, of);
}

static bool add_tcache_bin(struct glibc_heap *glibc, const struct glibc_tcache *tcache, unsigned index,
                           struct key_vote *vote) {
    struct karst_bin *bin = add_bins(glibc, 1);
    if (!bin) {
        return false;
    }
    *bin = (struct karst_bin){.arena = KARST_NONE, .owner = tcache->tid, .cache = true};
    glibc_tcache_range(&glibc->layout, index, &bin->smallest, &bin->largest);
    char of[32];
    if (tcache->tid < 0) {
        snprintf(of, sizeof of, "no thread");
    } else {
        snprintf(of, sizeof of, "thread %" PRId64, tcache->tid);
    }
    name_bin(bin, "tcache", of);
    struct collect collect = {glibc, (uint32_t)(glibc->heap.bin_count - 1), vote, false};
    struct glibc_list_result result = glibc_follow_tcache(glibc, tcache, index, collect_node, &collect);
    glibc->heap.bins[collect.bin].damaged = result.end != GLIBC_LIST_END;
    return !collect.out_of_memory;
}

static bool add_tcache(struct glibc_heap *glibc, const struct tcb *tcb, struct key_vote *vote) {
    uint64_t address;
    if (!glibc_read(glibc, tcb->address + (uint64_t)glibc->tcache_tls_offset, &address) || address == 0 ||
        address % GLIBC_ALIGN != 0 || !glibc_chunk_extent(glibc, address - GLIBC_HEADER)) {
        return true; /* just started, exiting, or (2.43) on the shared dummy */
    }
    if (tcb->tid < 0 && tcache_quality(glibc, address) != TCACHE_SURE) {
        return true;
    }
    for (size_t i = 0; i < glibc->tcache_count_found; i++) {
        if (glibc->tcaches[i].address == address) {
            return true;
        }
    }
    struct glibc_tcache *tcaches = realloc(glibc->tcaches, (glibc->tcache_count_found + 1) * sizeof *tcaches);
    if (!tcaches) {
        return false;
    }
    glibc->tcaches = tcaches;
    struct glibc_tcache *tcache = &tcaches[glibc->tcache_count_found++];
    *tcache = (struct glibc_tcache){address, tcb->tid, (uint32_t)glibc->heap.bin_count, 0};
    if (!glibc_add_cached(glibc, address - GLIBC_HEADER, KARST_NONE)) {
        return false;
    }
    for (unsigned i = 0; i < glibc->layout.tcache_bins; i++) {
        uint64_t entry;
        bool used = glibc_tcache_said(glibc, tcache, i) != 0;
        if (!glibc_read(glibc, address + glibc->layout.tcache_entries + 8ull * i, &entry)) {
            break;
        }
        if (used || entry) {
            tcache->bins++;
            if (!add_tcache_bin(glibc, tcache, i, vote)) {
                return false;
            }
        }
    }
    return true;
}

/* Does value stand in the module's writable data or the anonymous memory (its .bss) right behind? */
static bool in_module_data(struct glibc_heap *glibc, uint64_t value) {
    struct karst_target *target = glibc->heap.target;
    struct karst_window window;
    karst_window_open(&window, target, 1u << 16);
    bool found = false;
    for (size_t i = 0; i < target->mapping_count && !found; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        bool data = mapping->start >= glibc->module->start && mapping->start < glibc->module->end;
        bool bss = i > 0 && mapping->start == target->mappings[i - 1].end &&
                   mapping->start >= glibc->module->end &&
                   target->mappings[i - 1].start < glibc->module->end &&
                   target->mappings[i - 1].start >= glibc->module->start;
        if ((!data && !bss) || !(mapping->permissions & KARST_MAPPING_WRITE)) {
            continue;
        }
        uint64_t end =
            mapping->end - mapping->start > MODULE_DATA_MAX ? mapping->start + MODULE_DATA_MAX : mapping->end;
        for (uint64_t at = mapping->start; at + 8 <= end && !found; at += 8) {
            const uint8_t *bytes = karst_window_at(&window, at, 8);
            if (!bytes) {
                break;
            }
            found = glibc_word(bytes) == value;
        }
    }
    karst_window_close(&window);
    return found;
}

/* The key that free() leaves in cached chunks: by symbol, else the cached chunks' most frequent word if libc
 * has it among its variables, else any of their words that libc has. 0: can't be told. */
static uint64_t find_tcache_key(struct glibc_heap *glibc, const struct key_vote *vote) {
    struct karst_symbol symbol;
    uint64_t key;
    if (!glibc->layout.tcache_key_random) {
        return 0;
    }
    if (karst_module_symbol(glibc->heap.target, glibc->module, "tcache_key", &symbol) &&
        !symbol.thread_local_ && karst_target_read_u64(glibc->heap.target, symbol.address, &key)) {
        return key;
    }
    if (vote->weight && vote->key && in_module_data(glibc, vote->key)) {
        return vote->key;
    }
    unsigned tried = 0;
    for (size_t i = 0; i < glibc->cached_count && tried < KEYS_TRIED; i++) {
        uint32_t bin = glibc->cached[i].bin;
        if (bin != KARST_NONE && strcmp(glibc->heap.bins[bin].kind, "tcache") == 0 &&
            glibc_read(glibc, glibc->cached[i].chunk + 24, &key) && key > UINT32_MAX) {
            tried++;
            if (in_module_data(glibc, key)) {
                return key;
            }
        }
    }
    return 0;
}

static bool find_tcaches(struct glibc_heap *glibc) {
    struct tcb_list tcbs = {0};
    struct key_vote vote = {0};
    bool fine = find_tcbs(glibc, &tcbs) && find_tcache_offset(glibc, &tcbs);
    for (size_t i = 0; fine && glibc->tcache_tls_offset && i < tcbs.count; i++) {
        fine = add_tcache(glibc, &tcbs.items[i], &vote);
    }
    glibc->tcache_key = fine ? find_tcache_key(glibc, &vote) : 0;
    size_t unknown = 0;
    for (size_t t = 0; t < glibc->heap.target->thread_count; t++) {
        bool known = false;
        for (size_t i = 0; i < tcbs.count && !known; i++) {
            known = tcbs.items[i].tid == glibc->heap.target->threads[t].tid;
        }
        unknown += !known;
    }
    free(tcbs.items);
    if (!fine) {
        return false;
    }
    if (glibc->tcache_tls_offset == 0) {
        return karst_facts_add(&glibc->heap.facts, "tcache", 0,
                               "none found: switched off, not used yet, or not to be told");
    }
    if (unknown &&
        !karst_facts_add(&glibc->heap.facts, "threads unknown", 0,
                         "the thread pointers of %zu threads are not known; what their caches hold "
                         "counts as live",
                         unknown)) {
        return false;
    }
    return karst_facts_add(&glibc->heap.facts, "tcache", 0, "%zu found, at thread pointer %+" PRId64,
                           glibc->tcache_count_found, glibc->tcache_tls_offset);
}

/* ---- the arenas' bins
 * -------------------------------------------------------------------------------------- */

static bool add_arena_bins(struct glibc_heap *glibc, uint32_t index) {
    struct glibc_arena *arena = &glibc->arenas[index];
    unsigned fastbins = glibc->layout.state_fastbins ? GLIBC_FASTBINS : 0;
    struct karst_bin *bins = add_bins(glibc, GLIBC_BINS - 1 + fastbins);
    if (!bins) {
        return false;
    }
    const char *of = glibc->heap.arenas[index].name;
    arena->first_bin = (uint32_t)(bins - glibc->heap.bins);
    for (unsigned i = 1; i < GLIBC_BINS; i++) {
        struct karst_bin *bin = &bins[i - 1];
        *bin = (struct karst_bin){.arena = index, .smallest = GLIBC_MIN_CHUNK, .largest = UINT64_MAX};
        if (i > 1) {
            bin->smallest = glibc_bin_smallest(i);
            uint64_t next = glibc_bin_smallest(i + 1);
            bin->largest = next == UINT64_MAX ? next : next - GLIBC_ALIGN;
        }
        name_bin(bin, i == 1 ? "unsorted" : i < 64 ? "small" : "large", of);
        if (i == 1) {
            snprintf(bin->name, sizeof bin->name, "unsorted %s", of);
        }
    }
    struct collect collect = {.glibc = glibc};
    for (unsigned i = 0; i < fastbins; i++) {
        collect.bin = arena->first_bin + GLIBC_BINS - 1 + i;
        struct karst_bin *bin = &glibc->heap.bins[collect.bin];
        *bin = (struct karst_bin){.arena = index, .cache = true, .trimmed = true};
        bin->smallest = bin->largest = GLIBC_MIN_CHUNK + (uint64_t)i * GLIBC_ALIGN;
        name_bin(bin, "fast", of);
        if (!arena->uninitialized) {
            bin->damaged =
                glibc_follow_fastbin(glibc, arena, i, collect_node, &collect).end != GLIBC_LIST_END;
        }
    }
    return !collect.out_of_memory;
}

/* ---- threads inside
 * ------------------------------------------------------------------------------------------ */

bool glibc_thread_inside(struct glibc_heap *glibc, const struct karst_thread *thread) {
    static const char *const functions[] = {"malloc",      "free",           "calloc",        "realloc",
                                            "memalign",    "posix_memalign", "aligned_alloc", "malloc_trim",
                                            "malloc_info", "mallinfo2"};
    struct karst_target *target = glibc->heap.target;
    uint64_t words[256];
    size_t bytes =
        thread->stack_pointer ? karst_target_read(target, thread->stack_pointer, words, sizeof words) : 0;
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        struct karst_symbol symbol;
        if (!karst_module_symbol(target, glibc->module, functions[f], &symbol) || symbol.size == 0) {
            continue;
        }
        if (thread->program_counter - symbol.address < symbol.size) {
            return true;
        }
        /* Called from there: a return address into it on top of the stack. */
        for (size_t i = 0; i < bytes / 8; i++) {
            if (words[i] - symbol.address - 1 < symbol.size) {
                return true;
            }
        }
    }
    return false;
}

/* malloc aborts the program when it finds damage, with its lock held, before it changes anything: a thread
 * that died so left no torn state. */
static bool aborted_inside(struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    for (size_t i = 0; i < target->thread_count; i++) {
        if (target->threads[i].signal == SIGABRT && glibc_thread_inside(glibc, &target->threads[i])) {
            return true;
        }
    }
    return false;
}

static bool note_flux(struct glibc_heap *glibc) {
    struct karst_target *target = glibc->heap.target;
    glibc->heap.in_flux = !target->stopped && target->kind == KARST_TARGET_PROCESS;
    bool aborted = aborted_inside(glibc);
    if (aborted &&
        !karst_facts_add(&glibc->heap.facts, "aborted", 0, "by malloc itself, over damage that it met")) {
        return false;
    }
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        if (glibc->heap.arenas[i].locked && !aborted) {
            glibc->heap.in_flux = true;
            if (!karst_facts_add(&glibc->heap.facts, "locked", glibc->arenas[i].address,
                                 "arena %s: a thread was at work in it", glibc->heap.arenas[i].name)) {
                return false;
            }
        }
    }
    for (size_t i = 0; i < target->thread_count; i++) {
        if (target->threads[i].signal != SIGABRT && glibc_thread_inside(glibc, &target->threads[i])) {
            glibc->heap.in_flux = true;
            if (!karst_facts_add(&glibc->heap.facts, "inside malloc", 0,
                                 "thread %" PRId64 " is, or was a moment ago, inside the allocator",
                                 target->threads[i].tid)) {
                return false;
            }
        }
    }
    return true;
}

/* ---- putting it together
 * ---------------------------------------------------------------------------------------- */

static bool fill(struct glibc_heap *glibc, const struct root *root) {
    if (!choose_layout(glibc, root)) {
        return false;
    }
    read_par(glibc);
    if (!read_arenas(glibc) || !add_main_extents(glibc)) {
        return false;
    }
    for (uint32_t i = 1; i < glibc->heap.arena_count; i++) {
        if (!glibc->arenas[i].uninitialized && !add_thread_heaps(glibc, i)) {
            return false;
        }
    }
    sort_extents(glibc);
    if (!add_mapped_extents(glibc)) {
        return false;
    }
    sort_extents(glibc);
    for (uint32_t i = 0; i < glibc->heap.arena_count; i++) {
        if (!add_arena_bins(glibc, i)) {
            return false;
        }
    }
    if (!find_tcaches(glibc)) {
        return false;
    }
    glibc_sort_cached(glibc);
    return note_flux(glibc);
}

static bool know_root(const struct karst *session, uint64_t arena) {
    for (size_t i = 0; i < session->heap_count; i++) {
        const struct karst_heap *heap = session->heaps[i];
        if (heap->allocator == &karst_glibc && ((const struct glibc_heap *)heap)->main_arena == arena) {
            return true;
        }
    }
    return false;
}

static void name_heap(struct karst *session, struct glibc_heap *glibc) {
    unsigned count = 1;
    for (size_t i = 0; i < session->heap_count; i++) {
        count += session->heaps[i]->allocator == &karst_glibc;
    }
    if (count == 1) {
        snprintf(glibc->heap.name, sizeof glibc->heap.name, "glibc");
    } else {
        snprintf(glibc->heap.name, sizeof glibc->heap.name, "glibc #%u (%.24s)", count,
                 base_name(glibc->module->path));
    }
}

/* Makes a heap of a root; an allocator that nobody used yet is left out. */
static bool add_root(struct karst *session, struct karst_module *module, const struct root *root,
                     struct karst_error *error) {
    if (know_root(session, root->arena)) {
        return true;
    }
    struct glibc_heap *glibc = calloc(1, sizeof *glibc);
    if (!glibc) {
        return karst_fail_memory(error);
    }
    glibc->heap.allocator = &karst_glibc;
    glibc->heap.session = session;
    glibc->heap.target = session->target;
    glibc->module = module;
    glibc->main_arena = root->arena;
    glibc->ring_broken = root->ring_broken;
    karst_window_open(&glibc->lists, session->target, session->target->page_size);
    if (!fill(glibc, root)) {
        bool unknown = glibc->layout.state_size == 0;
        glibc_close(&glibc->heap);
        if (!unknown) {
            return karst_fail_memory(error);
        }
        karst_target_remark(
            session->target,
            "%s has a malloc of a version that is not known (known: glibc 2.30 to 2.43): left out",
            module->path);
        return true;
    }
    if (glibc->heap.extent_count == 0) {
        glibc_close(&glibc->heap);
        return true;
    }
    name_heap(session, glibc);
    if (!karst_session_add_heap(session, &glibc->heap)) {
        glibc_close(&glibc->heap);
        return karst_fail_memory(error);
    }
    return true;
}

/* Looks in one module: by symbol, then in its writable data. */
static bool find_in_module(struct karst *session, struct karst_module *module, struct karst_error *error) {
    struct karst_target *target = session->target;
    struct root root;
    if (root_by_symbol(target, module, &root)) {
        return add_root(session, module, &root, error);
    }
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->start < module->start || mapping->start >= module->end || !may_hold_root(mapping)) {
            continue;
        }
        if (scan_for_arena(target, mapping->start, mapping->end, &root)) {
            return add_root(session, module, &root, error);
        }
    }
    return true;
}

bool glibc_find(struct karst *session, struct karst_error *error) {
    struct karst_target *target = session->target;
    /* The libc first, so that it gets the plain name. */
    for (unsigned pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < target->module_count; i++) {
            if (is_libc(&target->modules[i]) == (pass == 0) &&
                !find_in_module(session, &target->modules[i], error)) {
                return false;
            }
        }
    }
    return true;
}
