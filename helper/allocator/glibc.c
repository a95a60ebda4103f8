/* glibc malloc: what an analysis may ask about blocks, and all that glibc malloc has to offer. */
#include "glibc.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static uint64_t block_size(struct karst_heap *heap, uint64_t request, bool *mapped) {
    const struct glibc_heap *glibc = (const struct glibc_heap *)heap;
    uint64_t page = heap->target->page_size;
    if (request > INT64_MAX - page) {
        return 0;
    }
    uint64_t size = (request + 8 + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1);
    size = size < GLIBC_MIN_CHUNK ? GLIBC_MIN_CHUNK : size;
    *mapped = glibc->mmap_threshold && size >= glibc->mmap_threshold;
    return size;
}

/* mtrim() and systrim(): whole pages of a free chunk behind its links, and of main's top all but what a
 * smallest chunk needs. */
static bool trim(struct karst_heap *heap, const struct karst_extent *extent, uint64_t block_start,
                 uint64_t size, bool is_top, uint64_t *start, uint64_t *end) {
    uint64_t page = heap->target->page_size;
    if (extent->kind == KARST_EXTENT_MAPPED) {
        return false;
    }
    if (is_top) {
        if (extent->kind != KARST_EXTENT_BRK || size <= GLIBC_MIN_CHUNK + 1) {
            return false;
        }
        *end = block_start + size;
        *start = *end - (size - GLIBC_MIN_CHUNK - 1) / page * page;
        return *start < *end;
    }
    *start = (block_start + 48 + page - 1) & ~(page - 1);
    *end = (block_start + size) & ~(page - 1);
    return *start < *end;
}

static bool describe_links(struct glibc_heap *glibc, const struct karst_block *block,
                           struct karst_facts *facts) {
    uint64_t first, second;
    if (!glibc_read(glibc, block->start + 16, &first) || !glibc_read(glibc, block->start + 24, &second)) {
        return karst_facts_add(facts, "links", 0, "not readable");
    }
    if (block->state == KARST_STATE_FREE) {
        return karst_facts_add(facts, "fd", first, "next in the bin") &&
               karst_facts_add(facts, "bk", second, "previous in the bin");
    }
    uint64_t next = glibc->layout.safe_linking ? first ^ ((block->start + 16) >> 12) : first;
    if (next ? !karst_facts_add(facts, "next", next, "next in the cache")
             : !karst_facts_add(facts, "next", 0, "none: last in the cache")) {
        return false;
    }
    const struct karst_bin *bin = block->bin < glibc->heap.bin_count ? &glibc->heap.bins[block->bin] : NULL;
    if (bin && strcmp(bin->kind, "tcache") == 0) {
        return karst_facts_add(facts, "key", 0, "0x%" PRIx64 "%s", second,
                               glibc->tcache_key && second == glibc->tcache_key ? " (the tcache key)" : "");
    }
    return true;
}

static bool describe_flags(struct glibc_heap *glibc, const struct karst_block *block,
                           struct karst_facts *facts) {
    uint64_t word;
    if (!glibc_read(glibc, block->start + 8, &word)) {
        return karst_facts_add(facts, "size word", 0, "not readable");
    }
    return karst_facts_add(facts, "chunk", block->start, "where its header begins") &&
           karst_facts_add(facts, "size word", 0, "0x%" PRIx64 ":%s%s%s", word,
                           word & GLIBC_PREV_INUSE ? " PREV_INUSE" : "",
                           word & GLIBC_IS_MMAPPED ? " IS_MMAPPED" : "",
                           word & GLIBC_NON_MAIN_ARENA ? " NON_MAIN_ARENA" : "");
}

static bool describe(struct karst_heap *heap, const struct karst_block *block, struct karst_facts *facts,
                     struct karst_error *error) {
    struct glibc_heap *glibc = (struct glibc_heap *)heap;
    bool done = true;
    if (block->flags & KARST_BLOCK_MAPPED) {
        struct karst_block chunk = *block;
        chunk.start = block->address - GLIBC_HEADER;
        done = describe_flags(glibc, &chunk, facts);
    } else if (block->address != block->start) {
        done = describe_flags(glibc, block, facts);
    }
    if (done && block->state == KARST_STATE_METADATA) {
        const char *what = block->address != block->start       ? "a thread's cache (tcache)"
                           : block->size <= 2 * GLIBC_FENCEPOST ? "fencepost: closes this segment"
                                                                : "the header of an arena's heap";
        done = karst_facts_add(facts, "is", 0, "%s", what);
    } else if (done && block->flags & KARST_BLOCK_FOREIGN) {
        done = karst_facts_add(facts, "is", 0,
                               "memory that something else took by sbrk between two parts of the heap");
    } else if (done && block->flags & KARST_BLOCK_UNDECIDED) {
        done = karst_facts_add(facts, "is", 0,
                               "live, or freed and cached: the lists that would tell are missing");
    } else if (done && (block->state == KARST_STATE_FREE || block->state == KARST_STATE_CACHED)) {
        done = describe_links(glibc, block, facts);
    }
    return done || karst_fail_memory(error);
}

void glibc_close(struct karst_heap *heap) {
    struct glibc_heap *glibc = (struct glibc_heap *)heap;
    karst_facts_clear(&heap->facts);
    karst_window_close(&glibc->lists);
    free(heap->arenas);
    free(heap->bins);
    free(heap->extents);
    free(glibc->arenas);
    glibc_waypoints_close(glibc);
    free(glibc->headers);
    free(glibc->tcaches);
    free(glibc->cached);
    free(glibc->unsorted);
    free(glibc->anchors);
    free(glibc);
}

const struct karst_allocator karst_glibc = {
    .name = "glibc",
    .find = glibc_find,
    .walk = glibc_walk,
    .walk_near = glibc_walk_near,
    .load_bins = glibc_load_bins,
    .check = glibc_check,
    .block_size = block_size,
    .trim = trim,
    .describe = describe,
    .close = glibc_close,
};
