/* glibc malloc: what is damaged in its caches, fastbins and tcaches. */
#include "glibc_check.h"

#include <inttypes.h>

size_t glibc_cached_at(const struct glibc_checking *check, uint64_t chunk, uint32_t bin) {
    const struct glibc_heap *glibc = check->glibc;
    size_t low = 0, high = glibc->cached_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct glibc_cached *entry = &glibc->cached[middle];
        if (entry->chunk < chunk || (entry->chunk == chunk && entry->bin < bin)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* false: the list has been here before. */
static bool note_seen(struct glibc_checking *check, uint64_t chunk) {
    size_t i = glibc_cached_at(check, chunk, check->bin);
    if (i >= check->glibc->cached_count) {
        return true;
    }
    bool fresh = !(check->seen[i / 8] & (1u << (i % 8)));
    check->seen[i / 8] |= (uint8_t)(1u << (i % 8));
    if (!fresh) {
        check->repeated = chunk;
    }
    return fresh;
}

static bool check_fast_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct glibc_checking *check = context;
    if (!note_seen(check, chunk)) {
        return false;
    }
    struct glibc_heap *glibc = check->glibc;
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
    const struct karst_extent *extent = glibc_chunk_extent(glibc, chunk);
    if (size != GLIBC_MIN_CHUNK + (uint64_t)check->index * GLIBC_ALIGN) {
        REPORT(check, WRONG_BIN, CORRUPT, glibc_user(chunk), size,
               "a freed block whose size word says %" PRIu64
               " is in %s; its header was overwritten\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
               size, glibc_checked_bin(check, check->bin), size_word, chunk + 8);
    }
    if (extent && &glibc->arenas[extent->arena] != check->arena) {
        REPORT(check, WRONG_BIN, CORRUPT, glibc_user(chunk), size,
               "a block of arena %s is in %s\tchunk 0x%" PRIx64, glibc->heap.arenas[extent->arena].name,
               glibc_checked_bin(check, check->bin), chunk);
    }
    return true;
}

static bool check_tcache_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct glibc_checking *check = context;
    if (!note_seen(check, chunk)) {
        return false;
    }
    const struct glibc_heap *glibc = check->glibc;
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS, key;
    if (size < GLIBC_MIN_CHUNK || glibc_tcache_index(&glibc->layout, size) != check->index) {
        REPORT(check, WRONG_BIN, CORRUPT, glibc_user(chunk), size,
               "a freed block whose size word says %" PRIu64
               " is in %s; its header was overwritten before or after "
               "it was freed\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
               size, glibc_checked_bin(check, check->bin), size_word, chunk + 8);
    }
    uint64_t expected = glibc->layout.tcache_key_random ? glibc->tcache_key : check->tcache->address;
    if (expected && glibc_read(check->glibc, chunk + 24, &key) && key != expected) {
        REPORT(check, WRITE_AFTER_FREE, CORRUPT, glibc_user(chunk), size,
               "a freed block in %s was written to: its key is overwritten\t0x%" PRIx64 " at 0x%" PRIx64
               ", not 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), key, chunk + 24, expected);
    }
    return true;
}

/* A singly linked list came back to itself: one of its blocks was freed twice. */
static void report_cycle(struct glibc_checking *check, uint64_t chunk) {
    REPORT(check, DOUBLE_FREE, CORRUPT, glibc_user(chunk), 0,
           "freed twice: %s comes back to it, so it will be handed out again and again\tthe list is a cycle "
           "through "
           "chunk 0x%" PRIx64,
           glibc_checked_bin(check, check->bin), chunk);
}

/* Says what is wrong with the last link of a cache's list. expected_size: what its chunks have. */
static void report_bad_cache_link(struct glibc_checking *check, const struct glibc_list_result *result,
                                  uint64_t head_at) {
    struct glibc_heap *glibc = check->glibc;
    uint64_t size_word;
    if (result->link % GLIBC_ALIGN == 0 &&
        (glibc_chunk_extent(glibc, result->link) || glibc_is_missing(glibc->heap.target, result->link))) {
        return; /* memory that is missing, not damage */
    }
    bool mapped = karst_target_mapping(glibc->heap.target, result->link) != NULL;
    uint64_t at = result->from ? result->from + GLIBC_HEADER : head_at;
    if (mapped && result->link % GLIBC_ALIGN != 0) {
        REPORT(check, MISALIGNED, CORRUPT, glibc_user(result->link), 0,
               "an entry of %s is not aligned as blocks are; a link was overwritten\t0x%" PRIx64
               " at 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), result->raw, at);
    } else if (mapped && glibc_read(glibc, result->link + 8, &size_word)) {
        /* With a header for this list it was freed as it is; without, a link was made to lead to it. */
        const struct karst_bin *bin = &glibc->heap.bins[check->bin];
        uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
        bool freed = !result->from || (size >= bin->smallest && size <= bin->largest);
        REPORT(check, BAD_LINK, CORRUPT, glibc_user(freed ? result->link : result->from), 0,
               "%s of %s is in no heap: %s\t0x%" PRIx64 " at 0x%" PRIx64 " leads to 0x%" PRIx64
               ", where the size word is 0x%" PRIx64,
               freed ? "an entry" : "what a link", bin->name,
               freed ? "memory that malloc never gave was freed" : "the link was overwritten", result->raw,
               at, result->link, size_word);
    } else if (result->from) {
        REPORT(check, WRITE_AFTER_FREE, CORRUPT, glibc_user(result->from), 0,
               "a freed block in %s was written to: its link leads nowhere\t0x%" PRIx64 " at 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), result->raw, at);
    } else {
        REPORT(check, BAD_LINK, CORRUPT, head_at, 0,
               "%s starts with a link that leads nowhere; its head was overwritten\t0x%" PRIx64
               " at 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), result->raw, at);
    }
}

static void judge_cache_list(struct glibc_checking *check, const struct glibc_list_result *result,
                             uint64_t head_at) {
    if (check->repeated || result->end == GLIBC_LIST_CYCLE) {
        report_cycle(check, check->repeated ? check->repeated : result->link);
    } else if (result->end == GLIBC_LIST_BAD) {
        report_bad_cache_link(check, result, head_at);
    }
}

void glibc_check_fastbin(struct glibc_checking *check, const struct glibc_arena *arena, unsigned index) {
    check->arena = arena;
    check->in_flux = arena->in_flux;
    check->index = index;
    check->bin = arena->first_bin + GLIBC_BINS - 1 + index;
    check->repeated = 0;
    struct glibc_list_result result =
        glibc_follow_fastbin(check->glibc, arena, index, check_fast_node, check);
    judge_cache_list(check, &result, arena->address + check->glibc->layout.state_fastbins + 8ull * index);
}

static void check_tcache_bin(struct glibc_checking *check, const struct glibc_tcache *tcache,
                             unsigned index) {
    struct glibc_heap *glibc = check->glibc;
    check->tcache = tcache;
    check->in_flux = tcache->in_flux;
    check->index = index;
    check->repeated = 0;
    struct glibc_list_result result = glibc_follow_tcache(glibc, tcache, index, check_tcache_node, check);
    judge_cache_list(check, &result, tcache->address + glibc->layout.tcache_entries + 8ull * index);
    uint64_t said = glibc_tcache_said(glibc, tcache, index);
    if (result.end == GLIBC_LIST_END && result.count != said) {
        REPORT(check, BAD_COUNT, glibc_torn(check), tcache->address + 2ull * index, 0,
               "%s holds %" PRIu64 " blocks, but its counter says %" PRId64
               "; the tcache or a link in the list was overwritten\tcounter at 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), result.count, (int64_t)said,
               tcache->address + 2 * (uint64_t)index);
    }
}

void glibc_check_tcaches(struct glibc_checking *check) {
    struct glibc_heap *glibc = check->glibc;
    for (size_t t = 0; t < glibc->tcache_count_found; t++) {
        const struct glibc_tcache *tcache = &glibc->tcaches[t];
        for (uint32_t i = 0; i < tcache->bins; i++) {
            check->bin = tcache->first_bin + i;
            check_tcache_bin(check, tcache,
                             glibc_tcache_index(&glibc->layout, glibc->heap.bins[check->bin].smallest));
        }
    }
}

void glibc_check_caches_against_each_other(struct glibc_checking *check) {
    const struct glibc_heap *glibc = check->glibc;
    for (size_t i = 0; i < glibc->cached_count; i++) {
        const struct glibc_cached *entry = &glibc->cached[i];
        if (i > 0 && entry[-1].chunk == entry->chunk) {
            const char *first =
                entry[-1].bin == KARST_NONE ? "in use as a tcache" : glibc_checked_bin(check, entry[-1].bin);
            const char *second =
                entry->bin == KARST_NONE ? "in use as a tcache" : glibc_checked_bin(check, entry->bin);
            REPORT(check, DOUBLE_FREE, CORRUPT, glibc_user(entry->chunk), 0,
                   "freed twice: it is in %s and in %s\tboth lists lead to chunk 0x%" PRIx64, first, second,
                   entry->chunk);
        }
        const struct karst_extent *extent = glibc_chunk_extent(glibc, entry->chunk);
        if (extent && entry->bin != KARST_NONE && glibc_is_marked(check, extent, entry->chunk)) {
            REPORT(check, DOUBLE_FREE, CORRUPT, glibc_user(entry->chunk), 0,
                   "freed twice: it is in %s and in %s\tboth lists lead to chunk 0x%" PRIx64,
                   glibc_checked_bin(check, entry->bin),
                   glibc_checked_bin(check, glibc_bin_of_chunk(check, entry->chunk, KARST_NONE)),
                   entry->chunk);
        }
    }
}
