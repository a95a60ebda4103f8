/* glibc malloc: the rows of its bins, and what they hold. */
#include "glibc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct karst_bin *glibc_add_bins(struct glibc_heap *glibc, size_t count) {
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

void glibc_name_bin(struct karst_bin *bin, const char *kind, const char *of) {
    snprintf(bin->kind, sizeof bin->kind, "%s", kind);
    snprintf(bin->name, sizeof bin->name, "%s 0x%" PRIx64 " %s", kind, bin->smallest, of);
}

bool glibc_collect_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct glibc_collect *collect = context;
    struct karst_bin *bin = &collect->glibc->heap.bins[collect->bin];
    bin->blocks++;
    bin->bytes += size_word & ~(uint64_t)GLIBC_FLAGS;
    if (!glibc_add_cached(collect->glibc, chunk, collect->bin)) {
        collect->out_of_memory = true;
        return false;
    }
    return true;
}

bool glibc_add_arena_bins(struct glibc_heap *glibc, uint32_t index) {
    struct glibc_arena *arena = &glibc->arenas[index];
    unsigned fastbins = glibc->layout.state_fastbins ? GLIBC_FASTBINS : 0;
    struct karst_bin *bins = glibc_add_bins(glibc, GLIBC_BINS - 1 + fastbins);
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
        glibc_name_bin(bin, i == 1 ? "unsorted" : i < 64 ? "small" : "large", of);
        if (i == 1) {
            snprintf(bin->name, sizeof bin->name, "unsorted %s", of);
        }
    }
    struct glibc_collect collect = {.glibc = glibc};
    for (unsigned i = 0; i < fastbins; i++) {
        collect.bin = arena->first_bin + GLIBC_BINS - 1 + i;
        struct karst_bin *bin = &glibc->heap.bins[collect.bin];
        *bin = (struct karst_bin){.arena = index, .cache = true, .trimmed = true};
        bin->smallest = bin->largest = GLIBC_MIN_CHUNK + (uint64_t)i * GLIBC_ALIGN;
        glibc_name_bin(bin, "fast", of);
        if (!arena->uninitialized) {
            struct glibc_list_result result =
                glibc_follow_fastbin(glibc, arena, i, glibc_collect_node, &collect);
            bin->damaged = result.end != GLIBC_LIST_END;
            arena->fastbins_unknown |= glibc_goes_on_missing(glibc, &result);
        }
    }
    return !collect.out_of_memory;
}

struct bin_count {
    struct karst_bin *bin;
    struct glibc_addresses *unsorted; /* NULL: counts only */
    struct karst *session;
    struct karst_error *error;
    bool interrupted;
};

static bool count_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct bin_count *count = context;
    count->bin->blocks++;
    count->bin->bytes += size_word & ~(uint64_t)GLIBC_FLAGS;
    if (count->unsorted) {
        glibc_add_address(count->unsorted, chunk, 0);
    }
    /* A node costs about what a page of a walk does. */
    count->interrupted = !karst_session_progress(count->session, 4096, count->error);
    return !count->interrupted && !(count->unsorted && count->unsorted->out_of_memory);
}

/* The caches were counted when they were found; here follow the doubly linked bins. false: interrupted. */
static bool load_arena_bins(struct glibc_heap *glibc, const struct glibc_arena *arena,
                            struct glibc_addresses *unsorted, struct karst_error *error) {
    for (unsigned i = 1; i < GLIBC_BINS; i++) {
        struct karst_bin *bin = &glibc->heap.bins[arena->first_bin + i - 1];
        struct bin_count count = {bin, i == 1 ? unsorted : NULL, glibc->heap.session, error, false};
        bin->blocks = bin->bytes = 0;
        bin->damaged = glibc_follow_bin(glibc, arena, i, false, count_node, &count).end != GLIBC_LIST_END;
        if (count.interrupted) {
            return false;
        }
    }
    return true;
}

bool glibc_load_bins(struct karst_heap *heap, struct karst_error *error) {
    struct glibc_heap *glibc = (struct glibc_heap *)heap;
    if (glibc->bins_loaded) {
        return true;
    }
    struct glibc_addresses unsorted = {0};
    for (size_t a = 0; a < heap->arena_count; a++) {
        if (!glibc->arenas[a].uninitialized && !load_arena_bins(glibc, &glibc->arenas[a], &unsorted, error)) {
            free(unsorted.items);
            return false;
        }
    }
    if (unsorted.out_of_memory) {
        free(unsorted.items);
        return karst_fail_memory(error);
    }
    glibc_sort_addresses(&unsorted);
    glibc->unsorted = unsorted.items;
    glibc->unsorted_count = unsorted.count;
    glibc->bins_loaded = true;
    return true;
}
