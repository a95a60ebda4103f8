/* glibc malloc: its lists, followed: fastbins and tcaches, which are singly linked, and the bins, which are
 * doubly linked; the set of chunks that caches hold; and the chunk starts that any list knows. No list is
 * trusted: it may be a cycle or lead nowhere. */
#include "glibc.h"

#include <stdlib.h>
#include <string.h>

/* Lists beyond this give no more anchors: resynchronising needs the next one, not all. */
#define ANCHORS_MAX (4u << 20)

/* ---- the cached set --------------------------------------------------------------------------------- */

bool glibc_add_cached(struct glibc_heap *glibc, uint64_t chunk, uint32_t bin) {
    if (glibc->cached_count == glibc->cached_capacity) {
        size_t capacity = glibc->cached_capacity ? glibc->cached_capacity * 2 : 256;
        struct glibc_cached *cached = realloc(glibc->cached, capacity * sizeof *cached);
        if (!cached) {
            return false;
        }
        glibc->cached = cached;
        glibc->cached_capacity = capacity;
    }
    glibc->cached[glibc->cached_count++] = (struct glibc_cached){chunk, bin};
    return true;
}

static int compare_cached(const void *a, const void *b) {
    const struct glibc_cached *x = a, *y = b;
    if (x->chunk != y->chunk) {
        return x->chunk < y->chunk ? -1 : 1;
    }
    return x->bin < y->bin ? -1 : x->bin > y->bin;
}

void glibc_sort_cached(struct glibc_heap *glibc) {
    if (glibc->cached_count == 0) {
        return;
    }
    qsort(glibc->cached, glibc->cached_count, sizeof *glibc->cached, compare_cached);
    /* A list with a cycle gave its chunks more than once. */
    size_t kept = 1;
    for (size_t i = 1; i < glibc->cached_count; i++) {
        if (compare_cached(&glibc->cached[i], &glibc->cached[kept - 1]) != 0) {
            glibc->cached[kept++] = glibc->cached[i];
        }
    }
    glibc->cached_count = kept;
}

size_t glibc_cached_from(const struct glibc_heap *glibc, uint64_t chunk) {
    size_t low = 0, high = glibc->cached_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (glibc->cached[middle].chunk < chunk) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* ---- lists ------------------------------------------------------------------------------------------ */

/* Brent's cycle detection: remembers a node and moves it on at each power of two. */
struct cycle {
    uint64_t tortoise;
    uint64_t steps, limit;
};

static bool cycle_met(struct cycle *cycle, uint64_t node) {
    if (node == cycle->tortoise) {
        return true;
    }
    if (++cycle->steps >= cycle->limit) {
        cycle->tortoise = node;
        cycle->steps = 0;
        cycle->limit = cycle->limit ? cycle->limit * 2 : 1;
    }
    return false;
}

/* A chunk that a tcache may hold: in an arena's extent, or (2.43) a whole mapped block. */
static bool may_be_chunk(const struct glibc_heap *glibc, uint64_t chunk, bool mapped_too) {
    if (chunk % GLIBC_ALIGN != 0) {
        return false;
    }
    if (glibc_chunk_extent(glibc, chunk)) {
        return true;
    }
    const struct karst_extent *extent = mapped_too ? karst_heap_extent(&glibc->heap, chunk) : NULL;
    return extent && extent->end - chunk >= GLIBC_MIN_CHUNK;
}

/* Singly linked lists: each word that links is at link_at, holds chunk + bias, mangled by its own address
 * except for the head (glibc 2.32 and later, PROTECT_PTR). */
static struct glibc_list_result follow_single(struct glibc_heap *glibc, uint64_t head_at, uint64_t bias,
                                              bool mapped_too, glibc_list_fn *visit, void *context) {
    struct glibc_list_result result = {.end = GLIBC_LIST_END};
    struct cycle cycle = {0};
    uint64_t link_at = head_at;
    for (bool head = true;; head = false) {
        if (!glibc_read(glibc, link_at, &result.raw)) {
            result.end = GLIBC_LIST_BAD;
            return result;
        }
        uint64_t value = result.raw;
        if (!head && glibc->layout.safe_linking) {
            value ^= link_at >> 12;
        }
        if (value == 0) {
            return result;
        }
        result.link = value - bias;
        uint64_t size_word;
        if (!may_be_chunk(glibc, result.link, mapped_too) ||
            !glibc_read(glibc, result.link + 8, &size_word)) {
            result.end = GLIBC_LIST_BAD;
            return result;
        }
        if (cycle_met(&cycle, result.link)) {
            result.end = GLIBC_LIST_CYCLE;
            return result;
        }
        if (!visit(context, result.link, size_word)) {
            result.end = GLIBC_LIST_STOPPED;
            return result;
        }
        result.count++;
        result.from = result.link;
        link_at = result.link + GLIBC_HEADER;
    }
}

struct glibc_list_result glibc_follow_fastbin(struct glibc_heap *glibc, const struct glibc_arena *arena,
                                              unsigned index, glibc_list_fn *visit, void *context) {
    return follow_single(glibc, arena->address + glibc->layout.state_fastbins + 8ull * index, 0, false, visit,
                         context);
}

struct glibc_list_result glibc_follow_tcache(struct glibc_heap *glibc, const struct glibc_tcache *tcache,
                                             unsigned index, glibc_list_fn *visit, void *context) {
    return follow_single(glibc, tcache->address + glibc->layout.tcache_entries + 8ull * index, GLIBC_HEADER,
                         glibc->layout.tcache_counts_slots, visit, context);
}

uint64_t glibc_tcache_said(struct glibc_heap *glibc, const struct glibc_tcache *tcache, unsigned index) {
    uint16_t count;
    const uint8_t *bytes = karst_window_at(&glibc->lists, tcache->address + 2ull * index, sizeof count);
    if (!bytes) {
        return 0;
    }
    memcpy(&count, bytes, sizeof count);
    if (!glibc->layout.tcache_counts_slots) {
        return count;
    }
    return glibc->tcache_count >= count ? glibc->tcache_count - count : UINT64_MAX;
}

uint64_t glibc_bin_head(const struct glibc_heap *glibc, const struct glibc_arena *arena, unsigned index) {
    return arena->address + glibc->layout.state_bins + 16ull * (index - 1) - GLIBC_HEADER;
}

struct glibc_list_result glibc_follow_bin(struct glibc_heap *glibc, const struct glibc_arena *arena,
                                          unsigned index, bool backwards, glibc_list_fn *visit,
                                          void *context) {
    struct glibc_list_result result = {.end = GLIBC_LIST_END};
    struct cycle cycle = {0};
    uint64_t head = glibc_bin_head(glibc, arena, index);
    uint64_t node = head;
    for (;;) {
        if (!glibc_read(glibc, node + (backwards ? 24 : 16), &result.raw)) {
            result.end = GLIBC_LIST_BAD;
            return result;
        }
        result.from = node == head ? 0 : node;
        node = result.link = result.raw;
        if (node == head) {
            return result;
        }
        uint64_t size_word;
        if (!may_be_chunk(glibc, node, false) || !glibc_read(glibc, node + 8, &size_word)) {
            result.end = GLIBC_LIST_BAD;
            return result;
        }
        if (cycle_met(&cycle, node)) {
            result.end = GLIBC_LIST_CYCLE;
            return result;
        }
        if (!visit(context, node, size_word)) {
            result.end = GLIBC_LIST_STOPPED;
            return result;
        }
        result.count++;
    }
}

/* ---- anchors: chunk starts that lists know ---------------------------------------------------------- */

bool glibc_add_address(void *context, uint64_t chunk, uint64_t size_word) {
    (void)size_word;
    struct glibc_addresses *list = context;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 1024;
        uint64_t *items = realloc(list->items, capacity * sizeof *items);
        if (!items) {
            list->out_of_memory = true;
            return false;
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = chunk;
    return list->count < ANCHORS_MAX;
}

static int compare_addresses(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void glibc_sort_addresses(struct glibc_addresses *list) {
    if (list->count) {
        qsort(list->items, list->count, sizeof *list->items, compare_addresses);
    }
}

static void load_anchors(struct glibc_heap *glibc) {
    struct glibc_addresses list = {0};
    for (size_t a = 0; a < glibc->heap.arena_count; a++) {
        if (glibc->arenas[a].uninitialized) {
            continue;
        }
        for (unsigned i = 1; i < GLIBC_BINS; i++) {
            glibc_follow_bin(glibc, &glibc->arenas[a], i, false, glibc_add_address, &list);
        }
    }
    for (size_t i = 0; i < glibc->cached_count; i++) {
        if (!glibc_add_address(&list, glibc->cached[i].chunk, 0)) {
            break;
        }
    }
    glibc_sort_addresses(&list);
    /* Without memory for them the walk goes on with what it has: headers alone. */
    glibc->anchors = list.items;
    glibc->anchor_count = list.count;
    glibc->anchors_loaded = true;
}

uint64_t glibc_anchor_between(struct glibc_heap *glibc, uint64_t from, uint64_t to) {
    if (!glibc->anchors_loaded) {
        load_anchors(glibc);
    }
    size_t first = glibc_first_from(glibc->anchors, glibc->anchor_count, from);
    return first < glibc->anchor_count && glibc->anchors[first] < to ? glibc->anchors[first] : 0;
}

void glibc_forget_anchors(struct glibc_heap *glibc) {
    free(glibc->anchors);
    glibc->anchors = NULL;
    glibc->anchor_count = 0;
    glibc->anchors_loaded = false;
}

bool glibc_goes_on_missing(const struct glibc_heap *glibc, const struct glibc_list_result *result) {
    return result->end == GLIBC_LIST_BAD && result->link % GLIBC_ALIGN == 0 &&
           (glibc_chunk_extent(glibc, result->link) || glibc_is_missing(glibc->heap.target, result->link));
}

/* ---- lists that are missing ------------------------------------------------------------------------- */

/* May link, the chunk that a list's link leads to, be in it? bin: of the list, by its chunks' size. */
static bool may_be_linked(struct glibc_heap *glibc, uint64_t link, bool tcache, unsigned bin) {
    uint64_t word;
    if (link % GLIBC_ALIGN != 0) {
        return false;
    }
    const struct karst_extent *extent = karst_heap_extent(&glibc->heap, link);
    if (!extent) {
        const struct karst_mapping *mapping = karst_target_mapping(glibc->heap.target, link);
        return mapping && karst_mapping_is_anonymous(mapping);
    }
    if (!glibc_read(glibc, link + 8, &word)) {
        return true;
    }
    uint64_t size = word & ~(uint64_t)GLIBC_FLAGS;
    return size >= GLIBC_MIN_CHUNK && (tcache ? glibc_tcache_index(&glibc->layout, size) == bin
                                              : (size - GLIBC_MIN_CHUNK) / GLIBC_ALIGN == bin);
}

bool glibc_may_be_cached(struct glibc_heap *glibc, uint32_t arena, uint64_t chunk, uint64_t size) {
    const struct glibc_layout *layout = &glibc->layout;
    uint64_t word, key;
    if (!glibc_read(glibc, chunk + GLIBC_HEADER, &word) || !glibc_read(glibc, chunk + 24, &key)) {
        return true;
    }
    uint64_t link = layout->safe_linking ? word ^ ((chunk + GLIBC_HEADER) >> 12) : word;
    unsigned fast = (unsigned)((size - GLIBC_MIN_CHUNK) / GLIBC_ALIGN);
    bool has_fastbins =
        layout->state_fastbins && arena != KARST_NONE && glibc->arenas[arena].fastbins_unknown;
    if (has_fastbins && fast < GLIBC_FASTBINS && (link == 0 || may_be_linked(glibc, link, false, fast))) {
        return true;
    }
    if (glibc->tcaches_unknown && glibc_may_be_tcache(glibc, chunk)) {
        return true;
    }
    unsigned bin = glibc_tcache_index(layout, size);
    return glibc->tcaches_unknown && bin < layout->tcache_bins &&
           (!glibc->tcache_key || !layout->tcache_key_random || key == glibc->tcache_key) &&
           (link == 0 || may_be_linked(glibc, link - GLIBC_HEADER, true, bin));
}
