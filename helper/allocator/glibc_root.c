/* glibc malloc: finding main_arena, by the preload library's marker, by symbol, else by its content: an empty
 * bin points at itself, the ring of arenas closes. */
#include "glibc_find.h"
#include "marker.h"

#include <string.h>

#define BINS_NEEDED 120u /* of 127, for an arena to be taken for one although some were damaged */

/* Does the word at `at` lead back to head? Where memory is missing, nothing says that it does not. */
static bool leads_back(struct karst_window *window, uint64_t at, uint64_t head) {
    const uint8_t *bytes = karst_window_at(window, at, 8);
    return bytes ? glibc_word(bytes) == head : glibc_is_missing(window->target, at);
}

static bool bin_is_consistent(struct karst_window *window, uint64_t head) {
    const uint8_t *links = karst_window_at(window, head + 16, 16);
    if (!links) {
        return false;
    }
    uint64_t fd = glibc_word(links), bk = glibc_word(links + 8);
    return (fd == head && bk == head) ||
           (leads_back(window, fd + 24, head) && leads_back(window, bk + 16, head));
}

unsigned glibc_consistent_bins(struct karst_window *window, uint64_t bins) {
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
    for (unsigned i = 0; i < GLIBC_ARENAS_MAX; i++) {
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

/* The two shapes malloc_state has had since 2.26. */
static const struct glibc_layout *const *generations(void) {
    static const struct glibc_layout *rows[3];
    rows[0] = glibc_layout_for(36);
    rows[1] = glibc_layout_for(43);
    return rows;
}

static bool arena_at_bins(struct karst_window *window, uint64_t bins, struct glibc_root *root) {
    const struct glibc_layout *const *rows = generations();
    for (unsigned g = 0; rows[g]; g++) {
        uint64_t base = bins - rows[g]->state_bins;
        if (ring_closes(window, base, rows[g]) && glibc_consistent_bins(window, bins)) {
            *root = (struct glibc_root){.arena = base, .generation = rows[g]};
            return true;
        }
    }
    return false;
}

/* An arena whose ring is damaged: told by its bins alone and a top that leads to the end of its mapping. */
static bool damaged_arena_at_bins(struct karst_target *target, struct karst_window *window, uint64_t bins,
                                  struct glibc_root *root) {
    if (glibc_consistent_bins(window, bins) < BINS_NEEDED + 4) {
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
    *root = (struct glibc_root){.arena = bins - row->state_bins, .generation = row, .ring_broken = true};
    return true;
}

/* Scans [start, end) for a main arena. */
static bool scan_for_arena(struct karst_target *target, uint64_t start, uint64_t end,
                           struct glibc_root *root) {
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

const char *glibc_base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool glibc_is_libc(const struct karst_module *module) {
    const char *name = glibc_base_name(module->path);
    return strncmp(name, "libc.so", 7) == 0 || strncmp(name, "libc-2.", 7) == 0;
}

bool glibc_is_debug_malloc(const struct karst_module *module) {
    return strncmp(glibc_base_name(module->path), "libc_malloc_debug", 17) == 0;
}

/* The executable of a program without a libc of its own, or a libc: where symbols are worth opening. */
static bool symbols_worth(const struct karst_target *target, const struct karst_module *module) {
    if (glibc_is_libc(module) || glibc_is_debug_malloc(module)) {
        return true;
    }
    for (size_t i = 0; i < target->module_count; i++) {
        if (glibc_is_libc(&target->modules[i])) {
            return false;
        }
    }
    return module == &target->modules[0] || target->module_count <= 2;
}

static bool root_by_symbol(struct karst_target *target, struct karst_module *module,
                           struct glibc_root *root) {
    struct karst_symbol symbol;
    if (!symbols_worth(target, module) || !karst_module_symbol(target, module, "main_arena", &symbol) ||
        symbol.thread_local_ || glibc_is_missing(target, symbol.address)) {
        return false;
    }
    struct karst_window window;
    karst_window_open(&window, target, 4096);
    const struct glibc_layout *const *rows = generations();
    bool found = false;
    for (unsigned g = 0; rows[g] && !found; g++) {
        if (symbol.size == rows[g]->state_size || ring_closes(&window, symbol.address, rows[g])) {
            *root = (struct glibc_root){.arena = symbol.address,
                                        .generation = rows[g],
                                        .ring_broken = !ring_closes(&window, symbol.address, rows[g]),
                                        .how = "by symbol"};
            found = true;
        }
    }
    karst_window_close(&window);
    return found;
}

/* Where the preload library's marker says that main_arena is, if one is there. */
static bool root_by_marker(struct karst *session, const struct karst_module *module,
                           struct glibc_root *root) {
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

bool glibc_find_root(struct karst *session, struct karst_module *module, struct glibc_root *root) {
    struct karst_target *target = session->target;
    if (root_by_marker(session, module, root) || root_by_symbol(target, module, root)) {
        return true;
    }
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->start >= module->start && mapping->start < module->end && may_hold_root(mapping) &&
            scan_for_arena(target, mapping->start, mapping->end, root)) {
            return true;
        }
    }
    return false;
}

bool glibc_find_missing_root(struct karst_target *target, struct karst_module *module,
                             struct glibc_root *root) {
    if (glibc_is_debug_malloc(module) || !symbols_worth(target, module) ||
        !glibc_variables_missing(target, module)) {
        return false;
    }
    struct karst_symbol symbol;
    bool told = karst_module_symbol(target, module, "main_arena", &symbol) && !symbol.thread_local_;
    *root = (struct glibc_root){.arena = told ? symbol.address : 0,
                                .data_missing = true,
                                .how = told ? "by symbol; it is missing" : NULL};
    return true;
}
