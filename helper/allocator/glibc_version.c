/* glibc malloc: which version it is, with which layout; and mp_, its parameters: by symbol, else beside
 * main_arena by its defaults and sums. */
#include "glibc_find.h"

#include <stdio.h>
#include <string.h>

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
    for (size_t i = 0; i < target->module_count && !minor && glibc_is_debug_malloc(module); i++) {
        if (glibc_is_libc(&target->modules[i])) {
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

/* The row of the table whose numbers fit mp_ best, of those with the root's shape. */
static const struct glibc_layout *layout_that_fits(struct glibc_heap *glibc, const struct glibc_root *root) {
    const struct glibc_layout *layout = root->generation;
    unsigned score = 0, fits;
    for (size_t i = 0; i < glibc_layout_count; i++) {
        if (glibc_layouts[i].state_bins == root->generation->state_bins &&
            search_par(glibc, &glibc_layouts[i], &fits) && fits >= score) {
            score = fits;
            layout = &glibc_layouts[i];
        }
    }
    return layout;
}

/* The row for the version that the module names (0: none), else the one that fits what was found. NULL: not
 * known. */
static const struct glibc_layout *pick_layout(struct glibc_heap *glibc, const struct glibc_root *root,
                                              unsigned minor, const char **how) {
    const struct glibc_layout *layout = minor ? glibc_layout_for(minor) : NULL;
    if (layout) {
        *how = "table, by the version the library names";
        return layout;
    }
    if (minor > GLIBC_NEWEST_MINOR && !root->data_missing) {
        layout = glibc_layout_for(GLIBC_NEWEST_MINOR);
        *how = "the newest known: the version is newer, but what was found fits";
        return root->ring_broken || layout->state_bins == root->generation->state_bins ? layout : NULL;
    }
    *how = "the one of the table that fits what was found";
    if (root->data_missing) {
        return !minor && glibc_layout_by_heaps(glibc, &glibc->layout) ? &glibc->layout : NULL;
    }
    return minor ? NULL : layout_that_fits(glibc, root);
}

static void name_version(struct glibc_heap *glibc, unsigned minor, const struct glibc_layout *layout) {
    char *text = glibc->heap.version;
    const size_t size = sizeof glibc->heap.version;
    if (minor) {
        snprintf(text, size, "2.%u", minor);
    } else if (layout->first == layout->last) {
        snprintf(text, size, "2.%u", layout->first);
    } else {
        snprintf(text, size, "2.%u to 2.%u", layout->first, layout->last);
    }
}

/* Finds mp_. *how: by what, "": it was not found. */
static void find_par(struct glibc_heap *glibc, const char **how) {
    struct karst_symbol symbol;
    unsigned score;
    uint64_t word;
    bool told = karst_module_symbol(glibc->heap.target, glibc->module, "mp_", &symbol) &&
                !symbol.thread_local_ && karst_target_read_u64(glibc->heap.target, symbol.address, &word);
    glibc->par = told ? symbol.address : search_par(glibc, &glibc->layout, &score);
    *how = told ? "by symbol" : glibc->par ? "found by structure" : "";
}

bool glibc_choose_layout(struct glibc_heap *glibc, const struct glibc_root *root) {
    struct karst_target *target = glibc->heap.target;
    unsigned minor = version_of(target, glibc->module);
    const char *how, *par_how;
    if (root->data_missing && !glibc_load_heap_headers(glibc)) {
        return false;
    }
    const struct glibc_layout *layout = pick_layout(glibc, root, minor, &how);
    if (!layout) {
        return false;
    }
    if (root->ring_broken) {
        /* Its shape was guessed, from what is the same in all: where the bins are. */
        glibc->main_arena = root->arena + root->generation->state_bins - layout->state_bins;
    }
    glibc->layout = *layout;
    name_version(glibc, minor, layout);
    if (glibc_layout_from_debug_info(target, glibc->module, &glibc->layout)) {
        how = "debug info";
    }
    find_par(glibc, &par_how);
    struct karst_facts *facts = &glibc->heap.facts;
    return karst_facts_add(facts, "library", 0, "%s", glibc->module->path) &&
           karst_facts_add(facts, "layout", 0, "%s", how) &&
           (root->data_missing || karst_facts_add(facts, "main_arena", glibc->main_arena, "%s",
                                                  root->how ? root->how : "found by structure")) &&
           (*par_how ? karst_facts_add(facts, "mp_", glibc->par, "%s", par_how)
            : root->data_missing
                ? true
                : karst_facts_add(facts, "mp_", 0,
                                  "not found: blocks with mappings of their own can't be counted"));
}

void glibc_read_par(struct glibc_heap *glibc) {
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
