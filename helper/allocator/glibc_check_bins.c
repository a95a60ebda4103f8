/* glibc malloc: what is damaged in its doubly linked bins. */
#include "glibc_check.h"

#include <inttypes.h>

/* Lists are followed again to name the other one a chunk is in; so often at the most. */
#define NAMED_MAX 100u

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

uint32_t glibc_bin_of_chunk(struct glibc_checking *check, uint64_t chunk, uint32_t except) {
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

/* (User space ends at 2^47, with larger page tables at 2^56.) */
static bool is_no_pointer(uint64_t word) {
    return word >> 56 != 0 || word % 8 != 0;
}

static void check_binned_sizes(struct glibc_checking *check, const struct karst_extent *extent,
                               uint64_t chunk, uint64_t size) {
    uint64_t next_prev_size, next_word;
    if (size < GLIBC_MIN_CHUNK || size % GLIBC_ALIGN || size > extent->end - chunk) {
        REPORT(check, BAD_SIZE, glibc_torn(check), glibc_user(chunk), 0,
               "a free block has an impossible size; it was written to after it was freed, or the block "
               "before it "
               "ran over\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
               size, chunk + 8);
        return;
    }
    if (check->index > 1 && glibc_bin_index(size) != check->index) {
        REPORT(check, WRONG_BIN, CORRUPT, glibc_user(chunk), size,
               "a free block of %" PRIu64
               " bytes is in %s; its size was changed after it was put there\tsize word at "
               "0x%" PRIx64,
               size, glibc_checked_bin(check, check->bin), chunk + 8);
    }
    if (!glibc_read(check->glibc, chunk + size, &next_prev_size) ||
        !glibc_read(check->glibc, chunk + size + 8, &next_word)) {
        return;
    }
    if (next_word & GLIBC_PREV_INUSE) {
        REPORT(
            check, OVERFLOW, glibc_torn(check), glibc_user(chunk + size), 0,
            "the block before is free (in %s), but this header says it is in use; the header was overwritten"
            "\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
            glibc_checked_bin(check, check->bin), next_word, chunk + size + 8);
    } else if (next_prev_size != size) {
        REPORT(check, BAD_SIZE, glibc_torn(check), glibc_user(chunk), size,
               "a free block's size and the copy of it behind the block differ; one of them was overwritten"
               "\t%" PRIu64 " at 0x%" PRIx64 ", %" PRIu64 " at 0x%" PRIx64,
               size, chunk + 8, next_prev_size, chunk + size);
    }
}

/* Does the word at `at`, in the chunk that a size link leads to, lead back to chunk? What is missing does not
 * lead elsewhere. */
static bool leads_back(struct glibc_heap *glibc, uint64_t other, uint64_t at, uint64_t chunk) {
    uint64_t back;
    return glibc_chunk_extent(glibc, other) &&
           (glibc_read(glibc, at, &back) ? back == chunk : glibc_is_missing(glibc->heap.target, at));
}

/* Large bins are sorted, largest first, and the first chunk of each size is in a second ring. */
static void check_large_links(struct glibc_checking *check, uint64_t chunk, uint64_t size) {
    struct glibc_heap *glibc = check->glibc;
    uint64_t forward, backward;
    if (check->previous_size && size > check->previous_size) {
        REPORT(check, BAD_LINK, glibc_torn(check), glibc_user(chunk), size,
               "the list of %s is not in order of size; a size or link in it was changed\t%" PRIu64
               " follows %" PRIu64,
               glibc_checked_bin(check, check->bin), size, check->previous_size);
    }
    if (!glibc_read(glibc, chunk + 32, &forward) || !glibc_read(glibc, chunk + 40, &backward) ||
        forward == 0 || size == check->previous_size) {
        return;
    }
    if (!leads_back(glibc, forward, forward + 40, chunk) ||
        !leads_back(glibc, backward, backward + 32, chunk)) {
        REPORT(check, BAD_LINK, glibc_torn(check), glibc_user(chunk), size,
               "the size links of a block in %s do not point back; written to after it was "
               "freed\tfd_nextsize 0x%" PRIx64 ", bk_nextsize 0x%" PRIx64 " at 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), forward, backward, chunk + 32);
    }
}

static void report_second_mark(struct glibc_checking *check, uint64_t chunk) {
    if (bin_holds(check->glibc, check->arena, check->index, chunk)) {
        uint32_t other = glibc_bin_of_chunk(check, chunk, check->bin);
        if (other == KARST_NONE) {
            REPORT(check, BAD_LINK, CORRUPT, glibc_user(check->previous), 0,
                   "the list of %s comes back to a block that it already passed: a cycle\tfd of 0x%" PRIx64
                   " is 0x%" PRIx64,
                   glibc_checked_bin(check, check->bin), check->previous, chunk);
            return;
        }
        REPORT(check, DOUBLE_FREE, CORRUPT, glibc_user(chunk), 0,
               "freed twice: it is in %s and in %s\tboth lists lead to chunk 0x%" PRIx64,
               glibc_checked_bin(check, other), glibc_checked_bin(check, check->bin), chunk);
    }
}

static bool check_bin_node(void *context, uint64_t chunk, uint64_t size_word) {
    struct glibc_checking *check = context;
    struct glibc_heap *glibc = check->glibc;
    const struct karst_extent *extent = glibc_chunk_extent(glibc, chunk);
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS, back;
    if (&glibc->arenas[extent->arena] != check->arena) {
        REPORT(check, WRONG_BIN, CORRUPT, glibc_user(chunk), size,
               "a block of arena %s is in %s\tchunk 0x%" PRIx64, glibc->heap.arenas[extent->arena].name,
               glibc_checked_bin(check, check->bin), chunk);
    }
    if (!glibc_mark(check, extent, chunk)) {
        report_second_mark(check, chunk);
        return false;
    }
    bool has_back = glibc_read(glibc, chunk + 24, &back);
    if (has_back && is_no_pointer(back)) {
        REPORT(check, WRITE_AFTER_FREE, glibc_torn(check), glibc_user(chunk), size,
               "a freed block in %s was written to: where its back link was there is none\t0x%" PRIx64
               " at 0x%" PRIx64 ", not 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), back, chunk + 24, check->previous);
    } else if (has_back && back != check->previous) {
        REPORT(check, BAD_LINK, glibc_torn(check), glibc_user(chunk), size,
               "the back link of a block in %s does not point back; written to after it was freed"
               "\tbk is 0x%" PRIx64 " at 0x%" PRIx64 ", not 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), back, chunk + 24, check->previous);
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
    struct glibc_checking *check = context;
    return glibc_mark(check, glibc_chunk_extent(check->glibc, chunk), chunk);
}

static void report_bad_bin_link(struct glibc_checking *check, const struct glibc_list_result *result) {
    if (result->link % GLIBC_ALIGN == 0 && (glibc_chunk_extent(check->glibc, result->link) ||
                                            glibc_is_missing(check->glibc->heap.target, result->link))) {
        return; /* memory that is missing, not damage */
    }
    if (!result->from) {
        REPORT(check, BAD_LINK, glibc_torn(check),
               glibc_bin_head(check->glibc, check->arena, check->index) + 16, 0,
               "%s starts with a link that leads to no block; the arena was overwritten\tfd is 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), result->raw);
    } else if (is_no_pointer(result->raw)) {
        REPORT(check, WRITE_AFTER_FREE, glibc_torn(check), glibc_user(result->from), 0,
               "a freed block in %s was written to: where its link was there is none\t0x%" PRIx64
               " at 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), result->raw, result->from + 16);
    } else {
        REPORT(check, BAD_LINK, glibc_torn(check), glibc_user(result->from), 0,
               "the link of a block in %s leads to no block of the heap; written to after it was freed"
               "\tfd is 0x%" PRIx64 " at 0x%" PRIx64,
               glibc_checked_bin(check, check->bin), result->raw, result->from + 16);
    }
}

void glibc_check_bin(struct glibc_checking *check, const struct glibc_arena *arena, unsigned index) {
    check->arena = arena;
    check->in_flux = arena->in_flux;
    check->index = index;
    check->bin = arena->first_bin + index - 1;
    check->previous = glibc_bin_head(check->glibc, arena, index);
    check->previous_size = 0;
    struct glibc_list_result result =
        glibc_follow_bin(check->glibc, arena, index, false, check_bin_node, check);
    if (glibc_goes_on_missing(check->glibc, &result)) {
        check->glibc->arenas[arena - check->glibc->arenas].lists_cut = true;
    } else if (result.end == GLIBC_LIST_BAD) {
        report_bad_bin_link(check, &result);
    }
    if (result.end == GLIBC_LIST_END) {
        uint64_t last;
        if (glibc_read(check->glibc, glibc_bin_head(check->glibc, arena, index) + 24, &last) &&
            last != check->previous) {
            REPORT(check, BAD_LINK, glibc_torn(check), glibc_bin_head(check->glibc, arena, index) + 24, 0,
                   "%s ends elsewhere than its list does; the arena or the last block's link was overwritten"
                   "\tbk is 0x%" PRIx64 ", not 0x%" PRIx64,
                   glibc_checked_bin(check, check->bin), last, check->previous);
        }
        return;
    }
    glibc_follow_bin(check->glibc, arena, index, true, mark_bin_node, check);
}
