/* glibc malloc: what is damaged.
 *
 * First the lists: every bin, fastbin and tcache is followed and each chunk on it marked, in a bitmap of one
 * bit for 16 bytes of heap; a chunk marked twice was freed twice. Then the chunks in address order, held
 * against the marks: free ones have to be marked, and no mark may lie inside a chunk. Then the arenas' own
 * fields. Codes and their meaning: docs/verbs/check.md. */
#include "glibc.h"
#include "marks.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Lists are followed again to name the other one a chunk is in; so often at the most. */
#define NAMED_MAX 100u

struct check {
    struct glibc_heap *glibc;
    struct karst_findings *findings;
    struct karst_error *error;
    struct karst_marks *marks; /* per extent of the heap */
    uint8_t *seen;             /* per entry of the cached set: met while its list was followed */
    unsigned named;            /* lists named so far */
    bool in_flux;              /* what is looked at right now may be half changed */
    /* the list being followed */
    const struct glibc_arena *arena;
    const struct glibc_tcache *tcache;
    unsigned index;
    uint32_t bin;
    uint64_t previous; /* the node before, the head for the first */
    uint64_t previous_size;
    uint64_t repeated; /* the node at which a list came back to itself */
    /* the extent being walked */
    const struct karst_extent *extent;
    uint64_t last_free; /* the chunk before, if it is free */
    uint64_t bytes;     /* since progress was last told */
    uint64_t foreign;   /* bytes in extents that are not malloc's */
    struct glibc_hunt *hunt;
};

/* ---- saying it -------------------------------------------------------------------------------------- */

/* What a thread stopped in the middle of malloc could explain is only suspect. */
static enum karst_severity torn(const struct check *check) {
    return check->in_flux ? KARST_SEVERITY_SUSPECT : KARST_SEVERITY_CORRUPT;
}

#define REPORT(check, code, severity, address, size, ...)                                                    \
    karst_findings_add((check)->findings, KARST_FINDING_##code, severity, (check)->glibc->heap.index,        \
                       address, size, __VA_ARGS__)
#define CORRUPT KARST_SEVERITY_CORRUPT
#define SUSPECT KARST_SEVERITY_SUSPECT

static const char *bin_name(const struct check *check, uint32_t bin) {
    return bin < check->glibc->heap.bin_count ? check->glibc->heap.bins[bin].name : "a list";
}

static uint64_t user(uint64_t chunk) {
    return chunk + GLIBC_HEADER;
}

/* ---- marks ------------------------------------------------------------------------------------------ */

static bool make_marks(struct check *check) {
    const struct karst_heap *heap = &check->glibc->heap;
    check->marks = calloc(heap->extent_count + 1, sizeof *check->marks);
    check->seen = calloc(check->glibc->cached_count / 8 + 1, 1);
    if (!check->marks || !check->seen) {
        return karst_fail_memory(check->error);
    }
    for (size_t i = 0; i < heap->extent_count; i++) {
        check->marks[i].start = heap->extents[i].start;
    }
    return true;
}

static void free_marks(struct check *check) {
    for (size_t i = 0; check->marks && i < check->glibc->heap.extent_count; i++) {
        karst_marks_close(&check->marks[i]);
    }
    free(check->marks);
    free(check->seen);
}

static struct karst_marks *marks_of(const struct check *check, const struct karst_extent *extent) {
    return &check->marks[extent - check->glibc->heap.extents];
}

static bool is_marked(const struct check *check, const struct karst_extent *extent, uint64_t chunk) {
    return karst_marks_has(marks_of(check, extent), chunk);
}

/* false: it was marked before. */
static bool mark(const struct check *check, const struct karst_extent *extent, uint64_t chunk) {
    if (is_marked(check, extent, chunk)) {
        return false;
    }
    if (!karst_marks_add(marks_of(check, extent), chunk)) {
        check->findings->out_of_memory = true;
    }
    return true;
}

/* The first marked place in [from, to), 0: none. */
static uint64_t marked_between(const struct check *check, const struct karst_extent *extent, uint64_t from,
                               uint64_t to) {
    return karst_marks_first(marks_of(check, extent), from, to);
}

/* ---- which list ------------------------------------------------------------------------------------- */

struct search {
    uint64_t chunk;
    bool found;
};

static bool search_node(void *context, uint64_t chunk, uint64_t size_word) {
    (void)size_word;
    struct search *search = context;
    search->found = chunk == search->chunk;
    return !search->found;
}

static bool bin_holds(struct glibc_heap *glibc, const struct glibc_arena *arena, unsigned index,
                      uint64_t chunk) {
    struct search search = {.chunk = chunk};
    glibc_follow_bin(glibc, arena, index, false, search_node, &search);
    if (!search.found) {
        glibc_follow_bin(glibc, arena, index, true, search_node, &search);
    }
    return search.found;
}

/* The bin (not fastbin, not tcache) other than except that holds chunk; KARST_NONE: none. */
static uint32_t bin_of_chunk(struct check *check, uint64_t chunk, uint32_t except) {
    struct glibc_heap *glibc = check->glibc;
    if (check->named++ >= NAMED_MAX) {
        return KARST_NONE;
    }
    for (size_t a = 0; a < glibc->heap.arena_count; a++) {
        const struct glibc_arena *arena = &glibc->arenas[a];
        for (unsigned i = 1; !arena->uninitialized && i < GLIBC_BINS; i++) {
            uint32_t bin = arena->first_bin + i - 1;
            if (bin != except && bin_holds(glibc, arena, i, chunk)) {
                return bin;
            }
        }
    }
    return KARST_NONE;
}

/* No address of a program: data. (User space ends at 2^47, with larger page tables at 2^56.) */
static bool is_no_pointer(uint64_t word) {
    return word >> 56 != 0 || word % 8 != 0;
}

/* ---- doubly linked bins ----------------------------------------------------------------------------- */

static void check_binned_sizes(struct check *check, const struct karst_extent *extent, uint64_t chunk,
                               uint64_t size) {
    uint64_t next_prev_size, next_word;
    if (size < GLIBC_MIN_CHUNK || size % GLIBC_ALIGN || size > extent->end - chunk) {
        REPORT(check, BAD_SIZE, torn(check), user(chunk), 0,
               "a free block has an impossible size; it was written to after it was freed, or the block "
               "before it "
               "ran over\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
               size, chunk + 8);
        return;
    }
    if (check->index > 1 && glibc_bin_index(size) != check->index) {
        REPORT(check, WRONG_BIN, CORRUPT, user(chunk), size,
               "a free block of %" PRIu64
               " bytes is in %s; its size was changed after it was put there\tsize word at "
               "0x%" PRIx64,
               size, bin_name(check, check->bin), chunk + 8);
    }
    if (!glibc_read(check->glibc, chunk + size, &next_prev_size) ||
        !glibc_read(check->glibc, chunk + size + 8, &next_word)) {
        return;
    }
    if (next_word & GLIBC_PREV_INUSE) {
        REPORT(
            check, OVERFLOW, torn(check), user(chunk + size), 0,
            "the block before is free (in %s), but this header says it is in use; the header was overwritten"
            "\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
            bin_name(check, check->bin), next_word, chunk + size + 8);
    } else if (next_prev_size != size) {
        REPORT(check, BAD_SIZE, torn(check), user(chunk), size,
               "a free block's size and the copy of it behind the block differ; one of them was overwritten"
               "\t%" PRIu64 " at 0x%" PRIx64 ", %" PRIu64 " at 0x%" PRIx64,
               size, chunk + 8, next_prev_size, chunk + size);
    }
}

/* Large bins are sorted, largest first, and the first chunk of each size is in a second ring. */
static void check_large_links(struct check *check, uint64_t chunk, uint64_t size) {
    struct glibc_heap *glibc = check->glibc;
    uint64_t forward, backward, back, forth;
    if (check->previous_size && size > check->previous_size) {
        REPORT(check, BAD_LINK, torn(check), user(chunk), size,
               "the list of %s is not in order of size; a size or link in it was changed\t%" PRIu64
               " follows %" PRIu64,
               bin_name(check, check->bin), size, check->previous_size);
    }
    if (!glibc_read(glibc, chunk + 32, &forward) || !glibc_read(glibc, chunk + 40, &backward) ||
        forward == 0 || size == check->previous_size) {
        return;
    }
    if (!glibc_chunk_extent(glibc, forward) || !glibc_read(glibc, forward + 40, &back) || back != chunk ||
        !glibc_chunk_extent(glibc, backward) || !glibc_read(glibc, backward + 32, &forth) || forth != chunk) {
        REPORT(check, BAD_LINK, torn(check), user(chunk), size,
               "the size links of a block in %s do not point back; written to after it was "
               "freed\tfd_nextsize 0x%" PRIx64 ", bk_nextsize 0x%" PRIx64 " at 0x%" PRIx64,
               bin_name(check, check->bin), forward, backward, chunk + 32);
    }
}

static void report_second_mark(struct check *check, uint64_t chunk) {
    if (bin_holds(check->glibc, check->arena, check->index, chunk)) {
        uint32_t other = bin_of_chunk(check, chunk, check->bin);
        if (other == KARST_NONE) {
            REPORT(check, BAD_LINK, CORRUPT, user(check->previous), 0,
                   "the list of %s comes back to a block that it already passed: a cycle\tfd of 0x%" PRIx64
                   " is 0x%" PRIx64,
                   bin_name(check, check->bin), check->previous, chunk);
            return;
        }
        REPORT(check, DOUBLE_FREE, CORRUPT, user(chunk), 0,
               "freed twice: it is in %s and in %s\tboth lists lead to chunk 0x%" PRIx64,
               bin_name(check, other), bin_name(check, check->bin), chunk);
    }
}

static bool check_bin_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct check *check = context;
    struct glibc_heap *glibc = check->glibc;
    const struct karst_extent *extent = glibc_chunk_extent(glibc, chunk);
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS, back;
    if (&glibc->arenas[extent->arena] != check->arena) {
        REPORT(check, WRONG_BIN, CORRUPT, user(chunk), size, "a block of arena %s is in %s\tchunk 0x%" PRIx64,
               glibc->heap.arenas[extent->arena].name, bin_name(check, check->bin), chunk);
    }
    if (!mark(check, extent, chunk)) {
        report_second_mark(check, chunk);
        return false;
    }
    bool has_back = glibc_read(glibc, chunk + 24, &back);
    if (has_back && is_no_pointer(back)) {
        REPORT(check, WRITE_AFTER_FREE, torn(check), user(chunk), size,
               "a freed block in %s was written to: where its back link was there is none\t0x%" PRIx64
               " at 0x%" PRIx64 ", not 0x%" PRIx64,
               bin_name(check, check->bin), back, chunk + 24, check->previous);
    } else if (has_back && back != check->previous) {
        REPORT(check, BAD_LINK, torn(check), user(chunk), size,
               "the back link of a block in %s does not point back; written to after it was freed"
               "\tbk is 0x%" PRIx64 " at 0x%" PRIx64 ", not 0x%" PRIx64,
               bin_name(check, check->bin), back, chunk + 24, check->previous);
    }
    check_binned_sizes(check, extent, chunk, size);
    if (check->index >= 64) {
        check_large_links(check, chunk, size);
    }
    check->previous = chunk;
    check->previous_size = size;
    return true;
}

/* The rest of a list whose forward links are broken, from its other end. */
static bool mark_bin_node(void *context, uint64_t chunk, uint64_t size_word) {
    (void)size_word;
    struct check *check = context;
    return mark(check, glibc_chunk_extent(check->glibc, chunk), chunk);
}

static void report_bad_bin_link(struct check *check, const struct glibc_list_result *result) {
    if (glibc_chunk_extent(check->glibc, result->link) && result->link % GLIBC_ALIGN == 0) {
        return; /* memory that is missing, not damage */
    }
    if (!result->from) {
        REPORT(check, BAD_LINK, torn(check), glibc_bin_head(check->glibc, check->arena, check->index) + 16, 0,
               "%s starts with a link that leads to no block; the arena was overwritten\tfd is 0x%" PRIx64,
               bin_name(check, check->bin), result->raw);
    } else if (is_no_pointer(result->raw)) {
        REPORT(check, WRITE_AFTER_FREE, torn(check), user(result->from), 0,
               "a freed block in %s was written to: where its link was there is none\t0x%" PRIx64
               " at 0x%" PRIx64,
               bin_name(check, check->bin), result->raw, result->from + 16);
    } else {
        REPORT(check, BAD_LINK, torn(check), user(result->from), 0,
               "the link of a block in %s leads to no block of the heap; written to after it was freed"
               "\tfd is 0x%" PRIx64 " at 0x%" PRIx64,
               bin_name(check, check->bin), result->raw, result->from + 16);
    }
}

static void check_bin(struct check *check, const struct glibc_arena *arena, unsigned index) {
    check->arena = arena;
    check->in_flux = arena->in_flux;
    check->index = index;
    check->bin = arena->first_bin + index - 1;
    check->previous = glibc_bin_head(check->glibc, arena, index);
    check->previous_size = 0;
    struct glibc_list_result result =
        glibc_follow_bin(check->glibc, arena, index, false, check_bin_node, check);
    if (result.end == GLIBC_LIST_BAD) {
        report_bad_bin_link(check, &result);
    }
    if (result.end == GLIBC_LIST_END) {
        uint64_t last;
        if (glibc_read(check->glibc, glibc_bin_head(check->glibc, arena, index) + 24, &last) &&
            last != check->previous) {
            REPORT(check, BAD_LINK, torn(check), glibc_bin_head(check->glibc, arena, index) + 24, 0,
                   "%s ends elsewhere than its list does; the arena or the last block's link was overwritten"
                   "\tbk is 0x%" PRIx64 ", not 0x%" PRIx64,
                   bin_name(check, check->bin), last, check->previous);
        }
        return;
    }
    glibc_follow_bin(check->glibc, arena, index, true, mark_bin_node, check);
}

/* ---- caches: fastbins and tcaches
 * ---------------------------------------------------------------------------- */

/* Where (chunk, bin) is in the cached set. */
static size_t cached_index(const struct check *check, uint64_t chunk, uint32_t bin) {
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
static bool note_seen(struct check *check, uint64_t chunk) {
    size_t i = cached_index(check, chunk, check->bin);
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
    struct check *check = context;
    if (!note_seen(check, chunk)) {
        return false;
    }
    struct glibc_heap *glibc = check->glibc;
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
    const struct karst_extent *extent = glibc_chunk_extent(glibc, chunk);
    if (size != GLIBC_MIN_CHUNK + (uint64_t)check->index * GLIBC_ALIGN) {
        REPORT(check, WRONG_BIN, CORRUPT, user(chunk), size,
               "a freed block whose size word says %" PRIu64
               " is in %s; its header was overwritten\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
               size, bin_name(check, check->bin), size_word, chunk + 8);
    }
    if (extent && &glibc->arenas[extent->arena] != check->arena) {
        REPORT(check, WRONG_BIN, CORRUPT, user(chunk), size, "a block of arena %s is in %s\tchunk 0x%" PRIx64,
               glibc->heap.arenas[extent->arena].name, bin_name(check, check->bin), chunk);
    }
    return true;
}

static bool check_tcache_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct check *check = context;
    if (!note_seen(check, chunk)) {
        return false;
    }
    const struct glibc_heap *glibc = check->glibc;
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS, key;
    if (size < GLIBC_MIN_CHUNK || glibc_tcache_index(&glibc->layout, size) != check->index) {
        REPORT(check, WRONG_BIN, CORRUPT, user(chunk), size,
               "a freed block whose size word says %" PRIu64
               " is in %s; its header was overwritten before or after "
               "it was freed\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
               size, bin_name(check, check->bin), size_word, chunk + 8);
    }
    uint64_t expected = glibc->layout.tcache_key_random ? glibc->tcache_key : check->tcache->address;
    if (expected && glibc_read(check->glibc, chunk + 24, &key) && key != expected) {
        REPORT(check, WRITE_AFTER_FREE, CORRUPT, user(chunk), size,
               "a freed block in %s was written to: its key is overwritten\t0x%" PRIx64 " at 0x%" PRIx64
               ", not 0x%" PRIx64,
               bin_name(check, check->bin), key, chunk + 24, expected);
    }
    return true;
}

/* A singly linked list came back to itself: one of its blocks was freed twice. */
static void report_cycle(struct check *check, uint64_t chunk) {
    REPORT(check, DOUBLE_FREE, CORRUPT, user(chunk), 0,
           "freed twice: %s comes back to it, so it will be handed out again and again\tthe list is a cycle "
           "through "
           "chunk 0x%" PRIx64,
           bin_name(check, check->bin), chunk);
}

/* Says what is wrong with the last link of a cache's list. expected_size: what its chunks have. */
static void report_bad_cache_link(struct check *check, const struct glibc_list_result *result,
                                  uint64_t head_at) {
    struct glibc_heap *glibc = check->glibc;
    uint64_t size_word;
    if (result->link % GLIBC_ALIGN == 0 && glibc_chunk_extent(glibc, result->link)) {
        return; /* memory that is missing, not damage */
    }
    bool mapped = karst_target_mapping(glibc->heap.target, result->link) != NULL;
    uint64_t at = result->from ? result->from + GLIBC_HEADER : head_at;
    if (mapped && result->link % GLIBC_ALIGN != 0) {
        REPORT(check, MISALIGNED, CORRUPT, user(result->link), 0,
               "an entry of %s is not aligned as blocks are; a link was overwritten\t0x%" PRIx64
               " at 0x%" PRIx64,
               bin_name(check, check->bin), result->raw, at);
    } else if (mapped && glibc_read(glibc, result->link + 8, &size_word)) {
        /* With a header for this list it was freed as it is; without, a link was made to lead to it. */
        const struct karst_bin *bin = &glibc->heap.bins[check->bin];
        uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
        bool freed = !result->from || (size >= bin->smallest && size <= bin->largest);
        REPORT(check, BAD_LINK, CORRUPT, user(freed ? result->link : result->from), 0,
               "%s of %s is in no heap: %s\t0x%" PRIx64 " at 0x%" PRIx64 " leads to 0x%" PRIx64
               ", where the size word is 0x%" PRIx64,
               freed ? "an entry" : "what a link", bin->name,
               freed ? "memory that malloc never gave was freed" : "the link was overwritten", result->raw,
               at, result->link, size_word);
    } else if (result->from) {
        REPORT(check, WRITE_AFTER_FREE, CORRUPT, user(result->from), 0,
               "a freed block in %s was written to: its link leads nowhere\t0x%" PRIx64 " at 0x%" PRIx64,
               bin_name(check, check->bin), result->raw, at);
    } else {
        REPORT(check, BAD_LINK, CORRUPT, head_at, 0,
               "%s starts with a link that leads nowhere; its head was overwritten\t0x%" PRIx64
               " at 0x%" PRIx64,
               bin_name(check, check->bin), result->raw, at);
    }
}

static void judge_cache_list(struct check *check, const struct glibc_list_result *result, uint64_t head_at) {
    if (check->repeated || result->end == GLIBC_LIST_CYCLE) {
        report_cycle(check, check->repeated ? check->repeated : result->link);
    } else if (result->end == GLIBC_LIST_BAD) {
        report_bad_cache_link(check, result, head_at);
    }
}

static void check_fastbin(struct check *check, const struct glibc_arena *arena, unsigned index) {
    check->arena = arena;
    check->in_flux = arena->in_flux;
    check->index = index;
    check->bin = arena->first_bin + GLIBC_BINS - 1 + index;
    check->repeated = 0;
    struct glibc_list_result result =
        glibc_follow_fastbin(check->glibc, arena, index, check_fast_node, check);
    judge_cache_list(check, &result, arena->address + check->glibc->layout.state_fastbins + 8ull * index);
}

static void check_tcache_bin(struct check *check, const struct glibc_tcache *tcache, unsigned index) {
    struct glibc_heap *glibc = check->glibc;
    check->tcache = tcache;
    check->in_flux = tcache->in_flux;
    check->index = index;
    check->repeated = 0;
    struct glibc_list_result result = glibc_follow_tcache(glibc, tcache, index, check_tcache_node, check);
    judge_cache_list(check, &result, tcache->address + glibc->layout.tcache_entries + 8ull * index);
    uint64_t said = glibc_tcache_said(glibc, tcache, index);
    if (result.end == GLIBC_LIST_END && result.count != said) {
        REPORT(check, BAD_COUNT, torn(check), tcache->address + 2ull * index, 0,
               "%s holds %" PRIu64 " blocks, but its counter says %" PRId64
               "; the tcache or a link in the list was overwritten\tcounter at 0x%" PRIx64,
               bin_name(check, check->bin), result.count, (int64_t)said,
               tcache->address + 2 * (uint64_t)index);
    }
}

static void check_tcaches(struct check *check) {
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

/* Chunks that are in two caches, or in a cache and a bin. */
static void check_caches_against_each_other(struct check *check) {
    const struct glibc_heap *glibc = check->glibc;
    for (size_t i = 0; i < glibc->cached_count; i++) {
        const struct glibc_cached *entry = &glibc->cached[i];
        if (i > 0 && entry[-1].chunk == entry->chunk) {
            const char *first =
                entry[-1].bin == KARST_NONE ? "in use as a tcache" : bin_name(check, entry[-1].bin);
            const char *second =
                entry->bin == KARST_NONE ? "in use as a tcache" : bin_name(check, entry->bin);
            REPORT(check, DOUBLE_FREE, CORRUPT, user(entry->chunk), 0,
                   "freed twice: it is in %s and in %s\tboth lists lead to chunk 0x%" PRIx64, first, second,
                   entry->chunk);
        }
        const struct karst_extent *extent = glibc_chunk_extent(glibc, entry->chunk);
        if (extent && entry->bin != KARST_NONE && is_marked(check, extent, entry->chunk)) {
            REPORT(check, DOUBLE_FREE, CORRUPT, user(entry->chunk), 0,
                   "freed twice: it is in %s and in %s\tboth lists lead to chunk 0x%" PRIx64,
                   bin_name(check, entry->bin),
                   bin_name(check, bin_of_chunk(check, entry->chunk, KARST_NONE)), entry->chunk);
        }
    }
}

/* ---- chunks in address order
 * -------------------------------------------------------------------------------------- */

/* Do the last bytes of the block before run on into the size word: one byte repeated, or text? */
static bool runs_over(struct check *check, uint64_t chunk) {
    uint8_t bytes[GLIBC_HEADER];
    if (!karst_target_read_all(check->glibc->heap.target, chunk, bytes, sizeof bytes)) {
        return false;
    }
    bool same = bytes[0] != 0, text = true;
    for (size_t i = 0; i < sizeof bytes; i++) {
        same = same && bytes[i] == bytes[0];
        text = text && ((bytes[i] >= ' ' && bytes[i] < 127) || bytes[i] == '\n' || bytes[i] == '\t');
    }
    return same || text;
}

static void check_damage(struct check *check, const struct glibc_chunk *chunk) {
    if (chunk->flags & KARST_BLOCK_FOREIGN) {
        check->foreign += chunk->size;
        return;
    }
    if (!chunk->damage_at) {
        return;
    }
    bool over = runs_over(check, chunk->address);
    char culprit[160] = "";
    if (chunk->previous) {
        snprintf(culprit, sizeof culprit, "; the block before it, 0x%" PRIx64 ", most likely ran over",
                 user(chunk->previous));
    }
    karst_findings_add(
        check->findings, over ? KARST_FINDING_OVERFLOW : KARST_FINDING_BAD_SIZE, torn(check),
        check->glibc->heap.index, user(chunk->address), chunk->size,
        "the header of this block is overwritten: no block can have its size%s. The walk goes on "
        "%" PRIu64 " bytes behind\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
        culprit, chunk->size, chunk->size_word, chunk->address + 8);
}

/* Chunks that lists know, inside another chunk. True: there are some. */
static bool check_inside(struct check *check, const struct glibc_chunk *chunk) {
    const struct glibc_heap *glibc = check->glibc;
    uint64_t end = chunk->address + chunk->size;
    uint64_t inside = marked_between(check, check->extent, chunk->address + GLIBC_ALIGN, end);
    size_t i = cached_index(check, chunk->address + 1, 0);
    bool cached = i < glibc->cached_count && glibc->cached[i].chunk < end;
    if (!inside && !cached) {
        return false;
    }
    uint32_t bin = cached ? glibc->cached[i].bin : bin_of_chunk(check, inside, KARST_NONE);
    inside = cached ? glibc->cached[i].chunk : inside;
    if (cached && bin == KARST_NONE && chunk->state == KARST_STATE_UNKNOWN) {
        return false;
    }
    if (chunk->state == KARST_STATE_FREE || chunk->state == KARST_STATE_TOP) {
        REPORT(check, DOUBLE_FREE, torn(check), user(inside), 0,
               "freed twice: it is in %s, and merged into %s 0x%" PRIx64 "\tchunk 0x%" PRIx64
               " lies inside 0x%" PRIx64 " to 0x%" PRIx64,
               bin == KARST_NONE ? "use as a tcache" : bin_name(check, bin),
               chunk->state == KARST_STATE_TOP ? "the top of the heap" : "the free block",
               user(chunk->address), inside, chunk->address, end);
        return true;
    }
    REPORT(check, OVERLAP, torn(check), user(chunk->address), chunk->size,
           "this block overlaps the block 0x%" PRIx64
           " that is in %s; its size was forged, or a pointer into it was freed"
           "\tsize word 0x%" PRIx64 " at 0x%" PRIx64 " reaches to 0x%" PRIx64,
           user(inside), bin == KARST_NONE ? "use as a tcache" : bin_name(check, bin), chunk->size_word,
           chunk->address + 8, end);
    return true;
}

static void check_free(struct check *check, const struct glibc_chunk *chunk) {
    if (!is_marked(check, check->extent, chunk->address)) {
        REPORT(check, LOST_FREE, torn(check), user(chunk->address), chunk->size,
               "free by the header behind it, but in no list: lost, or that header was overwritten\tsize "
               "word 0x%" PRIx64 " at 0x%" PRIx64,
               chunk->next_size_word, chunk->address + chunk->size + 8);
    }
    if (check->last_free) {
        REPORT(check, UNCOALESCED, torn(check), user(chunk->address), chunk->size,
               "free, and so is the block before it, 0x%" PRIx64
               ": they should be one; a header between them was overwritten\tsize word 0x%" PRIx64
               " at 0x%" PRIx64,
               user(check->last_free), chunk->size_word, chunk->address + 8);
    }
}

/* A chunk in use (live or cached): the header behind it has to say so, and its own flags have to fit. */
static void check_in_use(struct check *check, const struct glibc_chunk *chunk) {
    uint64_t expected = check->extent->arena == 0 ? 0 : GLIBC_NON_MAIN_ARENA;
    if (!(chunk->next_size_word & GLIBC_PREV_INUSE) && chunk->next_size_word) {
        REPORT(check, OVERFLOW, torn(check), user(chunk->address + chunk->size), 0,
               "this header says that the block before it is free, which it is not: its flag was cleared, "
               "most likely "
               "by 0x%" PRIx64 " running over\tsize word 0x%" PRIx64 " at 0x%" PRIx64 ", prev_size %" PRIu64
               " where the block before has %" PRIu64,
               user(chunk->address), chunk->next_size_word, chunk->address + chunk->size + 8,
               chunk->next_prev_size, chunk->size);
    }
    if ((chunk->size_word & GLIBC_NON_MAIN_ARENA) != expected && chunk->size >= GLIBC_MIN_CHUNK) {
        REPORT(check, BAD_SIZE, torn(check), user(chunk->address), chunk->size,
               "the arena flag of this block is wrong: its header was overwritten\tsize word 0x%" PRIx64
               " at 0x%" PRIx64,
               chunk->size_word, chunk->address + 8);
    }
}

static bool check_chunk(void *context, const struct glibc_chunk *chunk) {
    struct check *check = context;
    check->findings->blocks_checked++;
    bool inside = false;
    if (chunk->state == KARST_STATE_UNKNOWN) {
        check_damage(check, chunk);
    } else if (chunk->size >= GLIBC_MIN_CHUNK && chunk->size_word) {
        inside = check_inside(check, chunk);
        if (!inside) {
            glibc_look_inside(check->hunt, check->extent->arena == 0, chunk);
        }
    }
    if (chunk->state == KARST_STATE_FREE) {
        check_free(check, chunk);
    } else if ((chunk->state == KARST_STATE_LIVE || chunk->state == KARST_STATE_CACHED) && !inside &&
               !is_marked(check, check->extent, chunk->address)) {
        check_in_use(check, chunk);
    }
    check->last_free = chunk->state == KARST_STATE_FREE ? chunk->address : 0;
    check->bytes += chunk->size;
    if (check->bytes >= 1u << 18) {
        uint64_t bytes = check->bytes;
        check->bytes = 0;
        return karst_session_progress(check->glibc->heap.session, bytes, check->error);
    }
    return true;
}

static bool check_extents(struct check *check) {
    struct karst_heap *heap = &check->glibc->heap;
    for (size_t i = 0; i < heap->extent_count; i++) {
        check->extent = &heap->extents[i];
        check->in_flux =
            check->extent->arena != KARST_NONE && check->glibc->arenas[check->extent->arena].in_flux;
        check->last_free = 0;
        if (check->extent->kind == KARST_EXTENT_MAPPED) {
            check->findings->blocks_checked++;
        } else if (!glibc_walk_chunks(check->glibc, check->extent, check_chunk, check)) {
            return false;
        }
    }
    return true;
}

/* ---- the arenas' own fields
 * -------------------------------------------------------------------------------------------- */

static void check_arena(struct check *check, uint32_t index) {
    const struct glibc_heap *glibc = check->glibc;
    const struct glibc_arena *arena = &glibc->arenas[index];
    const struct karst_arena *row = &glibc->heap.arenas[index];
    if (arena->uninitialized) {
        return;
    }
    check->in_flux = arena->in_flux;
    if (arena->bad_heap) {
        REPORT(check, BAD_ROOT, torn(check), arena->bad_heap, 0,
               "the header of a heap of arena %s is overwritten: it does not name its arena, or its size is "
               "impossible\theap_info at 0x%" PRIx64,
               row->name, arena->bad_heap);
    }
    const struct karst_extent *holder = glibc_chunk_extent(glibc, arena->top);
    if (arena->top_damaged && (!holder || holder->arena != index)) {
        REPORT(check, BAD_ROOT, torn(check), arena->address + glibc->layout.state_top, 0,
               "the top of arena %s is in none of its heaps: the arena was overwritten\ttop is 0x%" PRIx64
               " at 0x%" PRIx64,
               row->name, arena->top, arena->address + glibc->layout.state_top);
    } else if (arena->top_damaged) {
        REPORT(check, BAD_SIZE, torn(check), user(arena->top), arena->top_size,
               "the top of arena %s does not end where its heap does; the last block most likely ran over"
               "\ttop 0x%" PRIx64 " with size %" PRIu64,
               row->name, arena->top, arena->top_size);
    }
    uint64_t bytes = 0;
    for (size_t i = 0; i < glibc->heap.extent_count; i++) {
        const struct karst_extent *extent = &glibc->heap.extents[i];
        bytes += extent->arena == index ? extent->end - extent->start : 0;
    }
    if (arena->system_mem > row->max_system_bytes) {
        REPORT(check, BAD_ROOT, torn(check), arena->address + glibc->layout.state_system_mem, 0,
               "the size of arena %s is impossible: the arena was overwritten\tsystem_mem %" PRIu64
               ", max_system_mem %" PRIu64,
               row->name, arena->system_mem, row->max_system_bytes);
    } else if (!arena->top_damaged &&
               (arena->system_mem > bytes || arena->system_mem < bytes - (index == 0 ? check->foreign : 0)) &&
               !glibc->heap.target->missing_memory) {
        REPORT(
            check, BAD_ROOT, SUSPECT, arena->address + glibc->layout.state_system_mem, 0,
            "arena %s says it has %" PRIu64 " bytes, but %" PRIu64
            " were found: it was overwritten, or a part of it is not to be found\tsystem_mem at 0x%" PRIx64,
            row->name, arena->system_mem, bytes, arena->address + glibc->layout.state_system_mem);
    }
}

/* Mapped blocks of several libcs are only told apart by what each counts, so their sum is held against the
 * sum of the counts, once. */
static void check_mapped(struct check *check) {
    const struct glibc_heap *first = NULL;
    const struct karst *session = check->glibc->heap.session;
    uint64_t mapped = 0, counted = 0;
    for (size_t i = 0; i < session->heap_count; i++) {
        if (session->heaps[i]->allocator != &karst_glibc) {
            continue;
        }
        const struct glibc_heap *glibc = (const struct glibc_heap *)session->heaps[i];
        for (size_t k = 0; k < glibc->heap.extent_count && glibc->par; k++) {
            mapped += glibc->heap.extents[k].kind == KARST_EXTENT_MAPPED;
        }
        counted += glibc->par ? glibc->n_mmaps : 0;
        first = first || !glibc->par ? first : glibc;
    }
    if (check->glibc == first && mapped != counted && !first->heap.target->missing_memory) {
        REPORT(check, BAD_COUNT, SUSPECT, first->par + first->layout.par_n_mmaps, 0,
               "%" PRIu64 " blocks with mappings of their own were found, but malloc counts %" PRIu64
               ": a header was overwritten, or a mapping was taken away\tn_mmaps at 0x%" PRIx64,
               mapped, counted, first->par + first->layout.par_n_mmaps);
    }
}

static void check_roots(struct check *check) {
    const struct glibc_heap *glibc = check->glibc;
    if (glibc->ring_broken) {
        REPORT(check, BAD_ROOT, CORRUPT, glibc->main_arena + glibc->layout.state_next, 0,
               "the ring of arenas does not close: an arena was overwritten; arenas may be missing here"
               "\tmain_arena.next at 0x%" PRIx64,
               glibc->main_arena + glibc->layout.state_next);
    }
    for (uint32_t i = 0; i < glibc->heap.arena_count; i++) {
        check_arena(check, i);
    }
    check_mapped(check);
}

static void check_lists(struct check *check) {
    struct glibc_heap *glibc = check->glibc;
    for (size_t a = 0; a < glibc->heap.arena_count; a++) {
        const struct glibc_arena *arena = &glibc->arenas[a];
        if (arena->uninitialized) {
            continue;
        }
        for (unsigned i = 1; i < GLIBC_BINS; i++) {
            check_bin(check, arena, i);
        }
        for (unsigned i = 0; glibc->layout.state_fastbins && i < GLIBC_FASTBINS; i++) {
            check_fastbin(check, arena, i);
        }
    }
    check_tcaches(check);
    check_caches_against_each_other(check);
}

bool glibc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error) {
    struct check check = {.glibc = (struct glibc_heap *)heap, .findings = findings, .error = error};
    check.hunt = glibc_hunt_open(check.glibc);
    bool done = check.hunt ? make_marks(&check) : karst_fail_memory(error);
    if (done) {
        check_lists(&check);
        done = check_extents(&check);
    }
    if (done) {
        check_roots(&check);
    }
    done = done && glibc_hunt_finish(check.hunt, findings, error);
    glibc_hunt_close(check.hunt);
    free_marks(&check);
    if (done && findings->out_of_memory) {
        return karst_fail_memory(error);
    }
    return done;
}
