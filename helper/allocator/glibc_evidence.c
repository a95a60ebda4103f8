/* glibc malloc: which layout it has, when libc's variables are missing and no file tells the version: the one
 * that the heap fits. Heap headers, the arenas behind them, and the first tcache of the break are looked at.
 */
#include "glibc_find.h"

#include <string.h>

#define BINS_NEEDED   120u          /* of 127, for an arena to be taken for one */
#define PLACES_LOOKED (64ull << 10) /* bytes at the start of a heap in which a tcache is looked for */
#define LIST_MOST     65535u        /* a tcache's counters have 16 bits */

/* What a row of the table was held against; and whether it was found wrong. */
struct evidence {
    bool headers; /* there are heaps of thread arenas */
    bool tcache;  /* a tcache was found whose lists agree with the row */
    bool contradicted;
};

bool glibc_arena_fits(struct glibc_heap *glibc, const struct glibc_layout *layout,
                      const struct glibc_heap_header *header) {
    return header->previous == 0 && header->arena == header->address + layout->heap_info_size &&
           glibc_consistent_bins(&glibc->lists, header->arena + layout->state_bins) >= BINS_NEEDED;
}

/* Is it the first heap's header, or that of a later one, of an arena whose memory is missing? */
static bool is_of_missing_arena(struct glibc_heap *glibc, const struct glibc_heap_header *header) {
    return header->previous % GLIBC_HEAP_ALIGNMENT == 0 && header->size <= GLIBC_HEAP_ALIGNMENT &&
           header->size % glibc->heap.target->page_size == 0 && header->size != 0 &&
           glibc_is_missing(glibc->heap.target, header->arena);
}

static void look_at_headers(struct glibc_heap *glibc, const struct glibc_layout *layout,
                            struct evidence *evidence) {
    bool fits = false;
    for (size_t i = 0; i < glibc->header_count; i++) {
        const struct glibc_heap_header *header = &glibc->headers[i];
        if (is_of_missing_arena(glibc, header)) {
            evidence->headers = true;
            fits = fits || header->arena % GLIBC_HEAP_ALIGNMENT == layout->heap_info_size;
        }
        for (size_t row = 0; row < glibc_layout_count; row++) {
            bool arena = glibc_arena_fits(glibc, &glibc_layouts[row], header);
            evidence->headers = evidence->headers || arena;
            fits = fits || (arena && glibc_layouts[row].heap_info_size == layout->heap_info_size &&
                            glibc_layouts[row].state_bins == layout->state_bins);
        }
    }
    evidence->contradicted = evidence->contradicted || (evidence->headers && !fits);
}

/* ---- a tcache --------------------------------------------------------------------------------------- */

struct tcache_bytes {
    struct glibc_heap *glibc;
    const struct glibc_layout *layout;
    uint64_t address;
    uint64_t key;     /* of the entries met so far, 0: none */
    uint16_t most;    /* entries that a list takes, where it counts free slots */
    uint64_t longest; /* list that was followed to its end */
    uint8_t bytes[1024];
};

/* Does the entry belong into the list? *next: the one behind it. Sets *cut where memory is missing. */
static bool entry_fits(struct tcache_bytes *tcache, unsigned bin, uint64_t entry, uint64_t *next, bool *cut) {
    struct glibc_heap *glibc = tcache->glibc;
    uint64_t size_word, link, key;
    if (entry % GLIBC_ALIGN != 0) {
        return false;
    }
    if (!glibc_read(glibc, entry - 8, &size_word) || !glibc_read(glibc, entry, &link) ||
        !glibc_read(glibc, entry + 8, &key)) {
        *cut = glibc_is_missing(glibc->heap.target, entry);
        return *cut;
    }
    uint64_t size = size_word & ~(uint64_t)GLIBC_FLAGS,
             wanted = tcache->layout->tcache_key_random ? tcache->key : tcache->address;
    *next = tcache->layout->safe_linking ? link ^ (entry >> 12) : link;
    tcache->key = key;
    return size >= GLIBC_MIN_CHUNK && glibc_tcache_index(tcache->layout, size) == bin &&
           (!wanted || key == wanted);
}

static bool list_agrees(struct tcache_bytes *tcache, unsigned bin) {
    uint16_t count;
    memcpy(&count, tcache->bytes + 2 * bin, sizeof count);
    uint64_t entry = glibc_word(tcache->bytes + tcache->layout->tcache_entries + 8ull * bin), met = 0;
    uint64_t said = tcache->layout->tcache_counts_slots ? (uint64_t)(tcache->most - count) : count;
    for (bool cut = false; entry && met <= said && met < LIST_MOST; met++) {
        if (!entry_fits(tcache, bin, entry, &entry, &cut)) {
            return false;
        }
        if (cut) {
            return true;
        }
    }
    tcache->longest = met > tcache->longest ? met : tcache->longest;
    return met == said;
}

/* Is there a tcache at address, by the row? It has to have a list of two, for links to tell how they are
 * stored. */
static bool tcache_agrees(struct glibc_heap *glibc, const struct glibc_layout *layout, uint64_t address) {
    struct tcache_bytes tcache = {.glibc = glibc, .layout = layout, .address = address};
    if (layout->tcache_size > sizeof tcache.bytes ||
        !karst_target_read_all(glibc->heap.target, address, tcache.bytes, layout->tcache_size)) {
        return false;
    }
    for (unsigned i = 0; i < layout->tcache_bins; i++) {
        uint16_t count;
        memcpy(&count, tcache.bytes + 2 * i, sizeof count);
        tcache.most = count > tcache.most ? count : tcache.most;
    }
    for (unsigned i = 0; i < layout->tcache_bins; i++) {
        if (!list_agrees(&tcache, i)) {
            return false;
        }
    }
    return tcache.longest > 1;
}

/* Is there one near start? Whoever allocates first in an arena has its cache there; in a static program the
 * break begins with what was taken of it before malloc. */
static bool has_tcache(struct glibc_heap *glibc, const struct glibc_layout *layout, uint64_t start,
                       uint64_t end) {
    uint64_t wanted = (layout->tcache_size + 8ull + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1), word;
    start = (start + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1);
    end = end - start < PLACES_LOOKED ? end : start + PLACES_LOOKED;
    for (uint64_t at = start; at < end && glibc_read(glibc, at + 8, &word); at += GLIBC_ALIGN) {
        uint64_t size = word & ~(uint64_t)GLIBC_FLAGS;
        if ((size == wanted || size == wanted + GLIBC_ALIGN) &&
            tcache_agrees(glibc, layout, at + GLIBC_HEADER)) {
            return true;
        }
    }
    return false;
}

/* ---- judging ---------------------------------------------------------------------------------------- */

static struct evidence look(struct glibc_heap *glibc, const struct glibc_layout *layout) {
    struct evidence evidence = {0};
    struct glibc_range ranges[GLIBC_BREAKS_MAX];
    size_t count = glibc_break_candidates(glibc->heap.target, ranges);
    look_at_headers(glibc, layout, &evidence);
    for (size_t i = 0; i < count && !evidence.contradicted; i++) {
        evidence.tcache = evidence.tcache || has_tcache(glibc, layout, ranges[i].start, ranges[i].end);
    }
    for (size_t i = 0; i < glibc->header_count && !evidence.contradicted && !evidence.tcache; i++) {
        const struct glibc_heap_header *header = &glibc->headers[i];
        evidence.tcache = glibc_arena_fits(glibc, layout, header) &&
                          has_tcache(glibc, layout, header->arena + layout->state_size,
                                     header->address + GLIBC_HEAP_ALIGNMENT);
    }
    return evidence;
}

/* Do two rows differ in nothing that the rest of the search uses? headers: the size of theirs matters. */
static bool are_alike(const struct glibc_layout *a, const struct glibc_layout *b, bool headers) {
    return a->state_bins == b->state_bins && a->safe_linking == b->safe_linking &&
           a->tcache_key_random == b->tcache_key_random && a->tcache_size == b->tcache_size &&
           a->mapped_size_excludes_header == b->mapped_size_excludes_header &&
           (!headers || a->heap_info_size == b->heap_info_size);
}

bool glibc_layout_by_heaps(struct glibc_heap *glibc, struct glibc_layout *layout) {
    const struct glibc_layout *found = NULL;
    uint16_t first = 0;
    bool any_tcache = false;
    for (unsigned pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < glibc_layout_count; i++) {
            const struct glibc_layout *row = &glibc_layouts[i];
            struct evidence evidence = look(glibc, row);
            if (pass == 0) {
                any_tcache = any_tcache || (evidence.tcache && !evidence.contradicted);
            } else if (!evidence.contradicted && (evidence.tcache || (!any_tcache && evidence.headers))) {
                if (found && !are_alike(found, row, evidence.headers)) {
                    return false;
                }
                first = found ? first : row->first;
                found = row;
            }
        }
    }
    if (found) {
        *layout = *found;
        layout->first = first;
    }
    return found != NULL;
}
