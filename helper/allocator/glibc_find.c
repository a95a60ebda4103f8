/* glibc malloc: finding the heaps of a target, with or without symbols.
 *
 * main_arena: by symbol, else by its content: an empty bin points at itself, the ring of arenas closes.
 * mp_: by symbol, else beside main_arena by its defaults and sums. What the arenas consist of is found in
 * glibc_extents.c, the threads' caches in glibc_bins.c. */
#include "glibc.h"
#include "inside.h"
#include "marker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENAS_MAX  65536u
#define BINS_NEEDED 120u /* of 127, for an arena to be taken for one although some were damaged */

/* ---- arenas ----------------------------------------------------------------------------------------- */

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
    const char *how; /* NULL: by structure */
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
                at = glibc_next_place(&window, at, end, target->page_size) - 8;
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

/* glibc's checking malloc (mtrace, MALLOC_CHECK_): a whole malloc of its own. */
static bool is_debug_malloc(const struct karst_module *module) {
    return strncmp(base_name(module->path), "libc_malloc_debug", 17) == 0;
}

/* The executable of a program without a libc of its own, or a libc: where symbols are worth opening. */
static bool symbols_worth(const struct karst_target *target, const struct karst_module *module) {
    if (is_libc(module) || is_debug_malloc(module)) {
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
            *root = (struct root){symbol.address, rows[g], !ring_closes(&window, symbol.address, rows[g]),
                                  "by symbol"};
            found = true;
        }
    }
    karst_window_close(&window);
    return found;
}

/* Where the preload library's marker says that main_arena is, if one is there. */
static bool root_by_marker(struct karst *session, const struct karst_module *module, struct root *root) {
    uint64_t arena = karst_marker_root(session, module, KARST_ROOT_MAIN_ARENA);
    const struct glibc_layout *const *rows = generations();
    struct karst_window window;
    karst_window_open(&window, session->target, 4096);
    bool found = false;
    for (unsigned g = 0; rows[g] && arena && !found; g++) {
        uint64_t bins = arena + rows[g]->state_bins;
        found = (arena_at_bins(&window, bins, root) ||
                 damaged_arena_at_bins(session->target, &window, bins, root)) &&
                root->arena == arena;
    }
    karst_window_close(&window);
    root->how = found ? "by the marker" : NULL;
    return found;
}

/* ---- versions and layouts --------------------------------------------------------------------------- */

static unsigned version_in(struct karst_target *target, struct karst_module *module, char *text,
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

/* The minor version that the module names, or, for what comes with a libc, the libc's. 0: not told. */
static unsigned version_of(struct karst_target *target, struct karst_module *module) {
    char text[160];
    unsigned minor = version_in(target, module, text, sizeof text);
    for (size_t i = 0; i < target->module_count && !minor && is_debug_malloc(module); i++) {
        if (is_libc(&target->modules[i])) {
            minor = version_in(target, &target->modules[i], text, sizeof text);
        }
    }
    return minor;
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
    /* From 2.43 on mremap_chunk() leaves the header out of what it adds: the sum drifts with each block
     * resized. */
    bool drifts = layout->mapped_size_excludes_header;
    if (n_mmaps > 1u << 28 || mapped % (drifts ? GLIBC_ALIGN : page) != 0 ||
        (!drifts && (n_mmaps == 0) != (mapped == 0)) ||
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
    unsigned minor = version_of(target, glibc->module);
    const struct glibc_layout *layout = minor ? glibc_layout_for(minor) : NULL;
    unsigned score = 0;
    const char *how = "table, by the version the library names";
    if (minor && !layout) {
        /* Newer (or much older) than the table: the nearest row, if it fits the target. */
        layout = minor > GLIBC_NEWEST_MINOR ? glibc_layout_for(GLIBC_NEWEST_MINOR) : NULL;
        if (!layout || (!root->ring_broken && layout->state_bins != root->generation->state_bins)) {
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
    if (root->ring_broken) {
        /* Its shape was guessed, from what is the same in all: where the bins are. */
        glibc->main_arena = root->arena + root->generation->state_bins - layout->state_bins;
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
                           root->how ? root->how : "found by structure") &&
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

/* ---- threads inside --------------------------------------------------------------------------------- */

#define STATIC_TEXT     0x5000u  /* how much of malloc's text is before its first public function, at most */
#define MALLOC_TEXT_MAX 0x20000u /* more than all of it: what has that name here is not malloc/malloc.c's */

/* Where a libc's malloc is: malloc/malloc.c makes one piece of text, its public functions behind the static
 * ones that they call (or, in some versions, jump to), which no dynamic symbol names. False: not known. */
static bool text_of_malloc(struct glibc_heap *glibc, uint64_t *start, uint64_t *end) {
    static const char *const functions[] = {"malloc",      "free",           "calloc",        "realloc",
                                            "memalign",    "posix_memalign", "aligned_alloc", "malloc_trim",
                                            "malloc_info", "mallinfo2"};
    *start = UINT64_MAX;
    *end = 0;
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        struct karst_symbol symbol;
        if (!karst_module_symbol(glibc->heap.target, glibc->module, functions[f], &symbol) ||
            symbol.size == 0) {
            continue;
        }
        *start = symbol.address < *start ? symbol.address : *start;
        *end = symbol.address + symbol.size > *end ? symbol.address + symbol.size : *end;
    }
    *start -= *start > STATIC_TEXT ? STATIC_TEXT : 0;
    return *end > *start && *end - *start <= MALLOC_TEXT_MAX;
}

/* A thread that is, or may be, inside malloc. */
static bool thread_inside(struct glibc_heap *glibc, const struct karst_thread *thread) {
    uint64_t start, end;
    return text_of_malloc(glibc, &start, &end) &&
           karst_thread_in_text(glibc->heap.target, thread, start, end);
}

static bool died_inside(struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    return karst_died_of_signal(target) && thread_inside(glibc, &target->threads[0]);
}

/* How many threads are inside, the one that died left out, each told among the facts. false: out of memory.
 */
static bool count_threads_inside(struct glibc_heap *glibc, bool died, size_t *inside) {
    const struct karst_target *target = glibc->heap.target;
    *inside = 0;
    for (size_t i = died ? 1 : 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        if (!thread_inside(glibc, thread)) {
            continue;
        }
        ++*inside;
        if (!karst_facts_add(&glibc->heap.facts, "inside malloc", 0,
                             "thread %" PRId64 " is, or was a moment ago, inside the allocator",
                             thread->tid)) {
            return false;
        }
    }
    return true;
}

static bool is_running(const struct karst_target *target) {
    return !target->stopped && target->kind == KARST_TARGET_PROCESS;
}

/* Which arenas may be half changed. A single thread takes no locks (SINGLE_THREAD_P), so its being inside
 * counts for the arenas. */
static bool note_arenas_in_flux(struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    bool running = is_running(target), died = died_inside(glibc);
    size_t inside, locked = 0;
    if (!count_threads_inside(glibc, died, &inside) ||
        (died &&
         !karst_facts_add(&glibc->heap.facts, "died", 0, "inside malloc, most likely of damage it met"))) {
        return false;
    }
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        locked += glibc->heap.arenas[i].locked;
    }
    glibc->heap.in_flux = running || inside;
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        struct glibc_arena *arena = &glibc->arenas[i];
        bool others = glibc->heap.arenas[i].locked && !(died && locked == 1);
        arena->in_flux = running || others || (inside && target->thread_count == 1);
        glibc->heap.in_flux = glibc->heap.in_flux || arena->in_flux;
        if (others && !karst_facts_add(&glibc->heap.facts, "locked", arena->address,
                                       "arena %s: a thread was at work in it", glibc->heap.arenas[i].name)) {
            return false;
        }
    }
    return true;
}

/* Which caches may be half changed: those of threads inside. */
static void note_tcaches_in_flux(struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    bool running = is_running(target);
    for (size_t t = 0; t < glibc->tcache_count_found; t++) {
        glibc->tcaches[t].in_flux = running;
    }
    for (size_t i = died_inside(glibc) ? 1 : 0; i < target->thread_count && glibc->heap.in_flux; i++) {
        if (!thread_inside(glibc, &target->threads[i])) {
            continue;
        }
        for (size_t t = 0; t < glibc->tcache_count_found; t++) {
            glibc->tcaches[t].in_flux |= glibc->tcaches[t].tid == target->threads[i].tid;
        }
    }
}

/* ---- putting it together ---------------------------------------------------------------------------- */

/* The libcs met so far; each belongs to this list until the session takes it over. */
struct libcs {
    struct glibc_heap **items;
    size_t count;
};

/* Its arenas and their memory. */
static bool fill_arenas(struct glibc_heap *glibc, struct karst_error *error) {
    read_par(glibc);
    if (!read_arenas(glibc) || !note_arenas_in_flux(glibc)) {
        return karst_fail_memory(error);
    }
    if (!glibc_add_main_extents(glibc, error)) {
        return false;
    }
    for (uint32_t i = 1; i < glibc->heap.arena_count; i++) {
        if (!glibc->arenas[i].uninitialized && !glibc_add_thread_heaps(glibc, i)) {
            return karst_fail_memory(error);
        }
    }
    glibc_sort_extents(glibc);
    return true;
}

/* What takes all its memory to be known. */
static bool fill_lists(struct glibc_heap *glibc) {
    glibc_sort_extents(glibc);
    for (uint32_t i = 0; i < glibc->heap.arena_count; i++) {
        if (!glibc_add_arena_bins(glibc, i)) {
            return false;
        }
    }
    if (!glibc_find_tcaches(glibc)) {
        return false;
    }
    glibc_sort_cached(glibc);
    note_tcaches_in_flux(glibc);
    return true;
}

static bool know_root(const struct libcs *libcs, uint64_t arena) {
    for (size_t i = 0; i < libcs->count; i++) {
        if (libcs->items[i]->main_arena == arena) {
            return true;
        }
    }
    return false;
}

static bool add_libc(struct libcs *libcs, struct glibc_heap *glibc) {
    struct glibc_heap **items = realloc(libcs->items, (libcs->count + 1) * sizeof(struct glibc_heap *));
    if (!items) {
        return false;
    }
    libcs->items = items;
    items[libcs->count++] = glibc;
    return true;
}

/* Makes a heap of a root. */
static bool add_root(struct karst *session, struct libcs *libcs, struct karst_module *module,
                     const struct root *root, struct karst_error *error) {
    if (know_root(libcs, root->arena)) {
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
    if (!choose_layout(glibc, root)) {
        bool unknown = glibc->layout.state_size == 0;
        glibc_close(&glibc->heap);
        if (!unknown) {
            return karst_fail_memory(error);
        }
        karst_target_remark(
            session->target,
            "%s has a malloc of a version that is not known (known: glibc 2.30 to 2.%u): left out",
            module->path, GLIBC_NEWEST_MINOR);
        return true;
    }
    if (!fill_arenas(glibc, error)) {
        glibc_close(&glibc->heap);
        return false;
    }
    if (!add_libc(libcs, glibc)) {
        glibc_close(&glibc->heap);
        return karst_fail_memory(error);
    }
    return true;
}

/* Looks in one module: by symbol, then in its writable data. */
static bool find_in_module(struct karst *session, struct libcs *libcs, struct karst_module *module,
                           struct karst_error *error) {
    struct karst_target *target = session->target;
    struct root root;
    if (root_by_marker(session, module, &root) || root_by_symbol(target, module, &root)) {
        return add_root(session, libcs, module, &root, error);
    }
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->start < module->start || mapping->start >= module->end || !may_hold_root(mapping)) {
            continue;
        }
        if (scan_for_arena(target, mapping->start, mapping->end, &root)) {
            return add_root(session, libcs, module, &root, error);
        }
    }
    return true;
}

/* The libc first, so that it gets the plain name. */
static bool find_libcs(struct karst *session, struct libcs *libcs, struct karst_error *error) {
    struct karst_target *target = session->target;
    for (unsigned pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < target->module_count; i++) {
            if (is_libc(&target->modules[i]) == (pass == 0) &&
                !find_in_module(session, libcs, &target->modules[i], error)) {
                return false;
            }
        }
    }
    return true;
}

static void name_heap(struct glibc_heap *glibc, unsigned number) {
    if (number == 1) {
        snprintf(glibc->heap.name, sizeof glibc->heap.name, "glibc");
    } else {
        snprintf(glibc->heap.name, sizeof glibc->heap.name, "glibc #%u (%.24s)", number,
                 base_name(glibc->module->path));
    }
}

/* Hands a libc's heap to the session; one that nobody used yet stays in the list, to be closed. */
static bool hand_over(struct karst *session, struct glibc_heap **libc, unsigned *number,
                      struct karst_error *error) {
    if ((*libc)->heap.extent_count == 0) {
        return true;
    }
    if (!fill_lists(*libc)) {
        return karst_fail_memory(error);
    }
    name_heap(*libc, ++*number);
    if (!karst_session_add_heap(session, &(*libc)->heap)) {
        return karst_fail_memory(error);
    }
    *libc = NULL;
    return true;
}

bool glibc_find(struct karst *session, struct karst_error *error) {
    struct libcs libcs = {0};
    unsigned number = 0;
    bool fine =
        find_libcs(session, &libcs, error) && glibc_add_mapped_extents(libcs.items, libcs.count, error);
    for (size_t i = 0; i < libcs.count && fine; i++) {
        fine = hand_over(session, &libcs.items[i], &number, error);
    }
    for (size_t i = 0; i < libcs.count; i++) {
        if (libcs.items[i]) {
            glibc_close(&libcs.items[i]->heap);
        }
    }
    free(libcs.items);
    return fine;
}
