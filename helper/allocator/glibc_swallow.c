/* glibc malloc: live blocks swallowed by a neighbour whose size was forged.
 *
 * Such a heap still tiles, and no list knows the block inside. What gives it away: within a live block stand
 * headers that lead, each marked as in use, exactly to the block's end, and something still points at what
 * the first of them would be. A block that was cut out of a bigger free one may hold old headers, too: those
 * of chunks that were merged have lost their flag or still carry the links of the bin they were in (malloc.c,
 * _int_free() and unlink_chunk()), so they are told apart. A block that the program hands out in pieces of
 * its own (perl's arenas of values) is pointed at all over, and is no suspect. What is left is suspect, never
 * proven. */
#include "glibc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SWALLOWED_MAX 65536u
#define INNER_CHAIN   64u
#define SCAN_WINDOW   (1u << 20)
#define OTHERS_MAX    4u         /* pointers to elsewhere in a block that make it one handed out in pieces */
#define IN_REGISTER   UINT64_MAX /* the place of a pointer that is in no memory */

struct swallowed {
    uint64_t outer, inner, end;
    uint64_t pointer; /* where a pointer at inner was found; 0: nowhere */
    unsigned others;  /* pointers found to other places inside, up to OTHERS_MAX */
};

struct glibc_hunt {
    struct glibc_heap *glibc;
    struct karst_error *error;
    struct karst_window window;
    struct swallowed *items; /* by inner, once sorted */
    size_t count, capacity;
    bool overfull, out_of_memory;
    uint64_t bytes;
};

static bool tell_progress(struct glibc_hunt *hunt, uint64_t bytes) {
    hunt->bytes += bytes;
    if (hunt->bytes < SCAN_WINDOW) {
        return true;
    }
    bytes = hunt->bytes;
    hunt->bytes = 0;
    return karst_session_progress(hunt->glibc->heap.session, bytes, hunt->error);
}

/* A link as bins leave it: into an arena, or to a chunk of the heap. (A pointer that the program has leads 16
 * bytes further, where no size word is expected.) */
static bool is_bin_link(struct glibc_heap *glibc, uint64_t word) {
    if (word % GLIBC_ALIGN != 0) {
        return false;
    }
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        if (word - glibc->arenas[i].address < glibc->layout.state_size) {
            return true;
        }
    }
    const struct karst_extent *extent = glibc_chunk_extent(glibc, word);
    uint64_t size_word;
    if (!extent || !glibc_read(glibc, word + 8, &size_word)) {
        return false;
    }
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS;
    return size >= GLIBC_MIN_CHUNK && size % GLIBC_ALIGN == 0 && size <= extent->end - word;
}

/* Do chunks in use tile [at, end) exactly? */
static bool tiles(struct glibc_hunt *hunt, uint64_t at, uint64_t end, uint64_t flags) {
    for (unsigned step = 0; step < INNER_CHAIN && at < end; step++) {
        const uint8_t *bytes = karst_window_at(&hunt->window, at + 8, 8);
        uint64_t word = bytes ? glibc_word(bytes) : 0, size = word & ~(uint64_t)GLIBC_FLAGS;
        if ((word & (GLIBC_FLAGS | 8)) != flags || size < GLIBC_MIN_CHUNK || size > end - at) {
            return false;
        }
        at += size;
    }
    return at == end;
}

static void add_swallowed(struct glibc_hunt *hunt, uint64_t outer, uint64_t inner, uint64_t end) {
    if (hunt->count == SWALLOWED_MAX) {
        hunt->overfull = true;
        return;
    }
    if (hunt->count == hunt->capacity) {
        size_t capacity = hunt->capacity ? hunt->capacity * 2 : 64;
        struct swallowed *items = realloc(hunt->items, capacity * sizeof *items);
        if (!items) {
            hunt->out_of_memory = true;
            return;
        }
        hunt->items = items;
        hunt->capacity = capacity;
    }
    hunt->items[hunt->count++] = (struct swallowed){outer, inner, end, 0, 0};
}

static bool carries_bin_links(struct glibc_hunt *hunt, uint64_t chunk) {
    const uint8_t *bytes = karst_window_at(&hunt->window, chunk + GLIBC_HEADER, 16);
    return bytes &&
           (is_bin_link(hunt->glibc, glibc_word(bytes)) || is_bin_link(hunt->glibc, glibc_word(bytes + 8)));
}

/* Looks for the first header inside a live chunk from which chunks in use lead to its end. */
void glibc_look_inside(struct glibc_hunt *hunt, bool main_arena, const struct glibc_chunk *chunk) {
    uint64_t end = chunk->address + chunk->size;
    if (chunk->state != KARST_STATE_LIVE || chunk->size < 2 * GLIBC_MIN_CHUNK || hunt->overfull) {
        return;
    }
    uint64_t flags = GLIBC_PREV_INUSE | (main_arena ? 0 : GLIBC_NON_MAIN_ARENA);
    const uint64_t page = hunt->glibc->heap.target->page_size;
    uint64_t at = chunk->address + GLIBC_MIN_CHUNK;
    while (at + GLIBC_MIN_CHUNK <= end) {
        const uint8_t *bytes = karst_window_at(&hunt->window, at + 8, 8);
        if (!bytes || (at % page == 0 && glibc_word(bytes) == 0)) {
            at = glibc_next_place(&hunt->window, at, end, GLIBC_ALIGN);
            continue;
        }
        /* As far as the window goes without another look. */
        uint64_t stop = hunt->window.end - 8 < end - 8 ? hunt->window.end - 8 : end - 8;
        for (; at + 8 <= stop; at += GLIBC_ALIGN, bytes += GLIBC_ALIGN) {
            uint64_t word = glibc_word(bytes);
            if (__builtin_expect((word & 15) == flags &&
                                     word - flags - GLIBC_MIN_CHUNK <= end - at - GLIBC_MIN_CHUNK,
                                 0)) {
                break;
            }
        }
        if (at + 8 > stop) {
            continue;
        }
        if (tiles(hunt, at, end, flags) && !carries_bin_links(hunt, at)) {
            add_swallowed(hunt, chunk->address, at, end);
            return;
        }
        at += GLIBC_ALIGN;
    }
}

static int compare_inner(const void *a, const void *b) {
    const struct swallowed *x = a, *y = b;
    return x->inner < y->inner ? -1 : x->inner > y->inner;
}

/* Notes word, read at address, if it points into a block that may have swallowed one, from outside it. */
static void note_pointer(struct glibc_hunt *hunt, uint64_t address, uint64_t word) {
    size_t low = 0, high = hunt->count;
    while (low < high) { /* the first one that ends behind word */
        size_t middle = low + (high - low) / 2;
        if (hunt->items[middle].end <= word) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    struct swallowed *item = &hunt->items[low];
    if (low == hunt->count || word <= item->outer + GLIBC_HEADER ||
        (address >= item->outer && address < item->end)) {
        return;
    }
    if (word == item->inner + GLIBC_HEADER) {
        item->pointer = item->pointer ? item->pointer : address;
    } else if (item->others < OTHERS_MAX) {
        item->others++;
    }
}

static bool scan_words(struct glibc_hunt *hunt, uint64_t start, uint64_t end) {
    uint64_t first = hunt->items[0].outer;
    uint64_t span = hunt->items[hunt->count - 1].end - first;
    for (uint64_t at = (start + 7) & ~7ull; at + 8 <= end;) {
        const uint8_t *bytes = karst_window_at(&hunt->window, at, 8);
        if (!bytes) {
            at = glibc_next_place(&hunt->window, at, end, 8);
            continue;
        }
        uint64_t stop = hunt->window.end < end ? hunt->window.end : end;
        uint64_t from = at;
        for (; at + 8 <= stop; at += 8, bytes += 8) {
            uint64_t word = glibc_word(bytes);
            if (__builtin_expect(word - first <= span, 0)) {
                note_pointer(hunt, at, word);
            }
        }
        if (!tell_progress(hunt, at - from)) {
            return false;
        }
    }
    return true;
}

/* Pointers from the modules' variables (their .bss included) and from registers. Not from stacks and other
 * blocks: what was never written there since it was last used is full of pointers at blocks that are gone. */
static bool scan_for_pointers(struct glibc_hunt *hunt) {
    const struct karst_target *target = hunt->glibc->heap.target;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint32_t wanted = KARST_MAPPING_READ | KARST_MAPPING_WRITE;
        bool of_file = mapping->name && mapping->name[0] != '[';
        bool bss = i > 0 && mapping->start == target->mappings[i - 1].end && target->mappings[i - 1].name &&
                   target->mappings[i - 1].name[0] != '[' && karst_mapping_is_anonymous(mapping) &&
                   !karst_session_extent(hunt->glibc->heap.session, mapping->start);
        if ((mapping->permissions & (wanted | KARST_MAPPING_SHARED)) == wanted && (of_file || bss) &&
            !scan_words(hunt, mapping->start, mapping->end)) {
            return false;
        }
    }
    for (size_t t = 0; t < target->thread_count; t++) {
        for (uint32_t r = 0; r < target->threads[t].register_count; r++) {
            note_pointer(hunt, IN_REGISTER, target->threads[t].registers[r]);
        }
    }
    return true;
}

static void report(const struct glibc_hunt *hunt, struct karst_findings *findings) {
    for (size_t i = 0; i < hunt->count; i++) {
        const struct swallowed *item = &hunt->items[i];
        if (!item->pointer || item->others >= OTHERS_MAX) {
            continue;
        }
        char holder[32] = "a register";
        if (item->pointer != IN_REGISTER) {
            snprintf(holder, sizeof holder, "0x%" PRIx64, item->pointer);
        }
        karst_findings_add(
            findings, KARST_FINDING_OVERLAP, KARST_SEVERITY_SUSPECT, hunt->glibc->heap.index,
            item->outer + GLIBC_HEADER, item->end - item->outer,
            "this block may have swallowed its live neighbour 0x%" PRIx64
            ": headers in use stand inside it and lead exactly to its end, and %s points at the "
            "first. Was the size of the block forged?\theader at 0x%" PRIx64 ", block 0x%" PRIx64
            " to 0x%" PRIx64,
            item->inner + GLIBC_HEADER, holder, item->inner, item->outer, item->end);
    }
    if (hunt->overfull) {
        karst_findings_add(
            findings, KARST_FINDING_OVERLAP, KARST_SEVERITY_SUSPECT, hunt->glibc->heap.index, 0, 0,
            "more than %u blocks look as if they had swallowed a neighbour; the rest was not looked at\t",
            SWALLOWED_MAX);
    }
}

struct glibc_hunt *glibc_hunt_open(struct glibc_heap *glibc) {
    struct glibc_hunt *hunt = calloc(1, sizeof *hunt);
    if (hunt) {
        hunt->glibc = glibc;
        karst_window_open(&hunt->window, glibc->heap.target, SCAN_WINDOW);
    }
    return hunt;
}

bool glibc_hunt_finish(struct glibc_hunt *hunt, struct karst_findings *findings, struct karst_error *error) {
    hunt->error = error;
    if (hunt->out_of_memory) {
        return karst_fail_memory(error);
    }
    if (hunt->count) {
        qsort(hunt->items, hunt->count, sizeof *hunt->items, compare_inner);
        if (!scan_for_pointers(hunt)) {
            return false;
        }
    }
    report(hunt, findings);
    return true;
}

void glibc_hunt_close(struct glibc_hunt *hunt) {
    if (hunt) {
        karst_window_close(&hunt->window);
        free(hunt->items);
        free(hunt);
    }
}
