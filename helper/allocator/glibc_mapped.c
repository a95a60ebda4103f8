/* glibc malloc: the blocks with a mapping of their own.
 *
 * They are in no list, so they are looked for in the mappings and held against mp_ (n_mmaps, mmapped_mem).
 * Nothing in such a block says which of several libcs in the process made it: all are looked for at once,
 * then dealt out so that each libc has as many blocks and bytes as it counts. */
#include "glibc.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAPPED_HUGE 1u /* in prev_size of a mapped chunk, glibc 2.43: it is of huge pages */

/* ---- headers ---------------------------------------------------------------------------------------- */

/* Is the header at chunk that of a block mapped from start on? Its bytes from start to its end, 0: no. */
static uint64_t mapped_size(struct glibc_heap *glibc, uint64_t start, uint64_t chunk, uint64_t limit) {
    const uint8_t *bytes = karst_window_at(&glibc->lists, chunk, GLIBC_HEADER);
    if (!bytes) {
        return 0;
    }
    uint64_t offset = glibc_word(bytes), word = glibc_word(bytes + 8);
    uint64_t left_out = 0;
    if (glibc->layout.mapped_size_excludes_header) {
        offset &= ~(uint64_t)MAPPED_HUGE;
        left_out = GLIBC_HEADER;
    }
    uint64_t size = (word & ~(uint64_t)GLIBC_FLAGS) + left_out;
    if (offset != chunk - start || (word & GLIBC_FLAGS) != GLIBC_IS_MMAPPED || size < GLIBC_MIN_CHUNK ||
        size > limit - chunk || (offset + size) % glibc->heap.target->page_size != 0) {
        return 0;
    }
    return offset + size;
}

uint64_t glibc_mapped_chunk(struct glibc_heap *glibc, uint64_t start, uint64_t limit, bool thorough,
                            uint64_t *total) {
    const uint8_t *bytes = karst_window_at(&glibc->lists, start, GLIBC_HEADER);
    if (!bytes || (glibc_word(bytes) & ~(uint64_t)MAPPED_HUGE) != 0 ||
        (glibc_word(bytes + 8) & (GLIBC_FLAGS | 8)) != GLIBC_IS_MMAPPED) {
        return 0;
    }
    /* An aligned block has its header further in, and leaves the first one behind as it was at first. */
    uint64_t first_total = (glibc_word(bytes + 8) & ~(uint64_t)GLIBC_FLAGS) + GLIBC_HEADER;
    for (unsigned power = 5; power < 48; power++) {
        uint64_t alignment = 1ull << power;
        uint64_t chunk = ((start + GLIBC_HEADER + alignment - 1) & ~(alignment - 1)) - GLIBC_HEADER;
        if (chunk >= limit || limit - chunk < GLIBC_MIN_CHUNK) {
            break;
        }
        if (chunk > start && (*total = mapped_size(glibc, start, chunk, limit)) != 0) {
            return chunk;
        }
    }
    /* One that realloc moved elsewhere is no longer aligned as it was: it may begin before any page. */
    const uint64_t page = glibc->heap.target->page_size;
    uint64_t last = limit - start < first_total ? limit : start + first_total;
    for (uint64_t chunk = start + page - GLIBC_HEADER; thorough && chunk + GLIBC_MIN_CHUNK <= last;
         chunk = glibc_next_place(&glibc->lists, chunk + GLIBC_HEADER, last, page) - GLIBC_HEADER) {
        if ((*total = mapped_size(glibc, start, chunk, limit)) != 0) {
            return chunk;
        }
    }
    *total = mapped_size(glibc, start, start, limit);
    return *total ? start : 0;
}

/* ---- the search ------------------------------------------------------------------------------------- */

struct mapped {
    uint64_t start, end;
    bool sure;                /* stands at the start of a mapping, or right behind another one */
    struct glibc_heap *owner; /* NULL: not dealt yet */
};

/* Where blocks are looked for; each is slower than the one before. */
enum depth {
    STARTS,    /* at the start of each mapping and behind each block found */
    PAGES,     /* and at every page: other mappings may have merged with a block's */
    EVERYWHERE /* and with their headers at any page of theirs, as realloc may have moved them */
};

struct mapped_list {
    struct mapped *items;
    size_t count, capacity;
};

/* All libcs of the process, and what those that have an account count. */
struct makers {
    struct glibc_heap **heaps;
    size_t count;
    struct karst_target *target;
    struct karst *session;
    struct karst_window *window; /* for looks that are nobody's */
    uint64_t blocks, bytes;
    bool uncounted;            /* one of them has no account */
    struct karst_error *error; /* set by what returns false */
};

/* Nothing tells how many blocks a libc has whose variables are missing. */
static bool counts_any(const struct glibc_heap *glibc) {
    return glibc->par != 0 ? glibc->n_mmaps != 0 : glibc->data_missing;
}

/* Mappings are whole pages; glibc 2.43's sum drifts by 16 bytes with each block that realloc resized. */
static uint64_t counted_bytes(const struct glibc_heap *glibc) {
    return glibc->mmapped_mem - glibc->mmapped_mem % glibc->heap.target->page_size;
}

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
    list->items[list->count++] = (struct mapped){.start = start, .end = end, .sure = sure};
    return true;
}

/* Does an extent of any libc touch the page at address, or one of another allocator hold its start? Where
 * another allocator's memory begins further in, it may lie in a block that is looked for. *behind: where
 * that ends. */
static bool is_taken(const struct makers *makers, uint64_t address, uint64_t *behind) {
    for (size_t i = 0; i < makers->session->heap_count; i++) {
        const struct karst_extent *extent = karst_heap_extent(makers->session->heaps[i], address);
        if (extent) {
            *behind = extent->end;
            return true;
        }
    }
    for (size_t i = 0; i < makers->count; i++) {
        if (glibc_overlaps_extent(makers->heaps[i], address, address + makers->target->page_size, behind)) {
            return true;
        }
    }
    return false;
}

/* Is there a block at start, by the headers that any of the libcs writes? There are two ways to write them.
 */
static bool is_block(const struct makers *makers, uint64_t start, uint64_t limit, bool thorough,
                     uint64_t *total) {
    bool tried[2] = {false, false};
    for (size_t i = 0; i < makers->count; i++) {
        bool way = makers->heaps[i]->layout.mapped_size_excludes_header;
        if (!tried[way] && counts_any(makers->heaps[i]) &&
            glibc_mapped_chunk(makers->heaps[i], start, limit, thorough, total)) {
            return true;
        }
        tried[way] = tried[way] || counts_any(makers->heaps[i]);
    }
    return false;
}

/* Looks in one mapping from *at on; leaves *at where it stopped, which a block may put behind the mapping. */
static bool search_mapping(const struct makers *makers, const struct karst_mapping *mapping, enum depth depth,
                           uint64_t *at, struct mapped_list *list) {
    struct karst_target *target = makers->target;
    const uint64_t page = target->page_size, stretch = 2ull << 20;
    uint64_t limit = glibc_run_end(target, mapping->start), behind, total;
    bool sure = true;
    while (*at < mapping->end) {
        uint64_t from = *at;
        if (is_taken(makers, *at, &behind)) {
            *at = (behind + page - 1) & ~(page - 1);
            sure = true;
        } else if (*at % stretch == 0 && mapping->end - *at >= stretch &&
                   karst_target_resident(target, *at, *at + stretch) == 0) {
            *at += stretch; /* never touched: no header there */
        } else if (is_block(makers, *at, limit, depth == EVERYWHERE || makers->uncounted, &total)) {
            if (!add_mapped(list, *at, *at + total, sure)) {
                return karst_fail_memory(makers->error);
            }
            *at += total;
            sure = true;
        } else if (depth > STARTS) {
            *at = glibc_next_place(makers->window, *at, mapping->end, page);
            sure = false;
        } else {
            break;
        }
        if (!karst_session_progress(makers->session, *at - from, makers->error)) {
            return false;
        }
    }
    return true;
}

static bool search(const struct makers *makers, enum depth depth, struct mapped_list *list) {
    uint64_t done = 0;
    for (size_t i = 0; i < makers->target->mapping_count; i++) {
        const struct karst_mapping *mapping = &makers->target->mappings[i];
        if (karst_mapping_is_anonymous(mapping)) {
            done = mapping->start > done ? mapping->start : done;
            if (!search_mapping(makers, mapping, depth, &done, list)) {
                return false;
            }
        }
    }
    return true;
}

static bool adds_up(const struct makers *makers, const struct mapped_list *list, bool sure_only) {
    uint64_t count = 0, bytes = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].sure || !sure_only) {
            count++;
            bytes += list->items[i].end - list->items[i].start;
        }
    }
    return count == makers->blocks && bytes == makers->bytes;
}

static void drop_unsure(struct mapped_list *list) {
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].sure) {
            list->items[kept++] = list->items[i];
        }
    }
    list->count = kept;
}

/* Of more candidates than there are blocks, the sure ones are taken; of too few, all. Without an account,
 * those that stand where nothing but a block would. */
static bool find_blocks(const struct makers *makers, struct mapped_list *list, bool *exact) {
    if (makers->uncounted) {
        *exact = true;
        return search(makers, STARTS, list);
    }
    for (enum depth depth = STARTS; depth <= EVERYWHERE; depth++) {
        list->count = 0;
        if (!search(makers, depth, list)) {
            return false;
        }
        if (adds_up(makers, list, false)) {
            *exact = true;
            return true;
        }
        if (adds_up(makers, list, true)) {
            drop_unsure(list);
            *exact = true;
            return true;
        }
    }
    if (list->count > makers->blocks) {
        drop_unsure(list);
    }
    return true;
}

/* ---- whose they are --------------------------------------------------------------------------------- */

/* Largest first, so that a sum that can't be reached any more shows at once. */
static int compare_sizes(const void *a, const void *b) {
    const struct mapped *x = a, *y = b;
    uint64_t size = x->end - x->start, other = y->end - y->start;
    return size != other ? (size > other ? -1 : 1) : x->start < y->start ? -1 : x->start > y->start;
}

/* Gives owner as many of the blocks that nobody has yet as it counts, so that they make up its bytes. Equal
 * blocks are as good as one another. *dealt: a choice that does was found. */
static bool deal(struct mapped_list *list, struct glibc_heap *owner, bool *dealt) {
    uint64_t *sizes = calloc(list->count + 1, sizeof *sizes);
    size_t *places = calloc(list->count + 1, sizeof *places);
    bool *chosen = calloc(list->count + 1, sizeof *chosen);
    size_t count = 0;
    bool fine = sizes && places && chosen;
    for (size_t i = 0; fine && i < list->count; i++) {
        if (!list->items[i].owner) {
            sizes[count] = list->items[i].end - list->items[i].start;
            places[count++] = i;
        }
    }
    fine = fine && glibc_choose_blocks(sizes, count, owner->n_mmaps, counted_bytes(owner), chosen, dealt);
    for (size_t i = 0; fine && *dealt && i < count; i++) {
        if (chosen[i]) {
            list->items[places[i]].owner = owner;
        }
    }
    free(sizes);
    free(places);
    free(chosen);
    return fine;
}

static int compare_counts(const void *a, const void *b) {
    const struct glibc_heap *x = *(struct glibc_heap *const *)a, *y = *(struct glibc_heap *const *)b;
    return x->n_mmaps < y->n_mmaps ? -1 : x->n_mmaps > y->n_mmaps;
}

/* Who has few is served first; who has most gets the rest. *unsure: somebody's could not be told. */
static bool deal_out(const struct makers *makers, struct mapped_list *list, bool *unsure) {
    struct glibc_heap **order = calloc(makers->count, sizeof(struct glibc_heap *));
    if (!order) {
        return false;
    }
    size_t count = 0;
    for (size_t i = 0; i < makers->count; i++) {
        if (counts_any(makers->heaps[i])) {
            order[count++] = makers->heaps[i];
        }
    }
    qsort(order, count, sizeof *order, compare_counts);
    if (count > 1) {
        qsort(list->items, list->count, sizeof *list->items, compare_sizes);
    }
    bool fine = true;
    for (size_t i = 0; i + 1 < count && fine; i++) {
        bool dealt = false;
        fine = deal(list, order[i], &dealt);
        *unsure = *unsure || !dealt;
    }
    for (size_t i = 0; i < list->count && fine; i++) {
        list->items[i].owner = list->items[i].owner ? list->items[i].owner : order[count - 1];
    }
    free(order);
    return fine;
}

/* What `info` says at each libc whose account is not met, or whose blocks may be another's. */
static bool note(const struct makers *makers, const struct mapped_list *list, bool exact, bool unsure) {
    if (makers->uncounted) {
        return karst_facts_add(
            &makers->heaps[0]->heap.facts, "mapped blocks", 0,
            "%zu found by their headers, at the starts of mappings; nothing says how many there are",
            list->count);
    }
    uint64_t bytes = 0;
    for (size_t i = 0; i < list->count; i++) {
        bytes += list->items[i].end - list->items[i].start;
    }
    bool fine = true;
    for (size_t i = 0; i < makers->count && fine; i++) {
        struct karst_facts *facts = &makers->heaps[i]->heap.facts;
        if (!counts_any(makers->heaps[i])) {
            continue;
        }
        if (!exact) {
            fine = karst_facts_add(facts, "mapped blocks", 0,
                                   "found %zu (%" PRIu64 " bytes), but mp_ counts %" PRIu64 " (%" PRIu64
                                   " bytes)",
                                   list->count, bytes, makers->blocks, makers->bytes);
        }
        if (unsure && fine) {
            fine = karst_facts_add(facts, "whose mapped blocks", 0,
                                   "not to be told: no choice of the %zu that were found was met that makes "
                                   "up what each libc counts",
                                   list->count);
        }
    }
    return fine;
}

bool glibc_add_mapped_extents(struct glibc_heap **heaps, size_t count, struct karst_error *error) {
    struct makers makers = {.heaps = heaps, .count = count, .error = error};
    for (size_t i = 0; i < count; i++) {
        if (counts_any(heaps[i])) {
            makers.target = heaps[i]->heap.target;
            makers.session = heaps[i]->heap.session;
            makers.window = &heaps[i]->lists;
            makers.blocks += heaps[i]->n_mmaps;
            makers.bytes += counted_bytes(heaps[i]);
            makers.uncounted = makers.uncounted || heaps[i]->par == 0;
        }
    }
    if (!makers.target) {
        return true;
    }
    struct mapped_list list = {0};
    bool exact = false, unsure = false;
    karst_session_begin(makers.session, "looking for mapped blocks", 0);
    if (!find_blocks(&makers, &list, &exact)) {
        free(list.items);
        return false;
    }
    bool fine = deal_out(&makers, &list, &unsure) && note(&makers, &list, exact, unsure);
    for (size_t i = 0; i < list.count && fine; i++) {
        const struct mapped *block = &list.items[i];
        fine = glibc_add_extent(block->owner, block->start, block->end, KARST_NONE, KARST_EXTENT_MAPPED);
    }
    free(list.items);
    return fine || karst_fail_memory(error);
}
