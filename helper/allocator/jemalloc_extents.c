/* jemalloc 5.x: the radix tree and the extents it leads to, as runs. Facts:
 * include/jemalloc/internal/rtree.h, extent_structs.h (5.1, 5.2), edata.h (5.3). */
#include <stdlib.h>
#include <string.h>

#include "jemalloc.h"

#define PAGE 4096u
#define ALL  (1ull << 47)

enum { STATE_ACTIVE, STATE_DIRTY, STATE_MUZZY, STATE_RETAINED, STATE_TRANSITION, STATE_MERGING };

/* ---- memory read lately ----------------------------------------------------------------------------- */

#define PAGES_KEPT 1024u

static bool make_pages(struct jemalloc_pages *pages) {
    pages->tags = calloc(PAGES_KEPT, sizeof *pages->tags);
    pages->bytes = malloc((size_t)PAGES_KEPT * PAGE);
    pages->at = malloc(PAGES_KEPT * sizeof *pages->at);
    if (pages->tags && pages->bytes && pages->at) {
        return true;
    }
    free(pages->tags);
    free(pages->bytes);
    free((void *)pages->at);
    *pages = (struct jemalloc_pages){.tags = NULL};
    return false;
}

static const uint8_t *read_page(struct jemalloc_heap *jemalloc, uint64_t page, size_t slot) {
    struct jemalloc_pages *pages = &jemalloc->pages;
    struct karst_target *target = jemalloc->heap.target;
    if (!pages->tags && !make_pages(pages)) {
        return NULL;
    }
    size_t there = 0;
    uint8_t *bytes = pages->bytes + slot * PAGE;
    const uint8_t *view = target->ops->view ? target->ops->view(target, page, &there) : NULL;
    bool is_view = view && there >= PAGE;
    pages->tags[slot] = 0;
    if (!is_view && !karst_target_read_all(target, page, bytes, PAGE)) {
        return NULL;
    }
    pages->at[slot] = is_view ? view : bytes;
    pages->tags[slot] = page | 1;
    return pages->at[slot];
}

static inline const uint8_t *page_at(struct jemalloc_heap *jemalloc, uint64_t page) {
    const struct jemalloc_pages *pages = &jemalloc->pages;
    size_t slot = page / PAGE % PAGES_KEPT;
    return pages->tags && pages->tags[slot] == (page | 1) ? pages->at[slot] : read_page(jemalloc, page, slot);
}

static const uint8_t *gather(struct jemalloc_heap *jemalloc, uint64_t address, size_t size) {
    uint8_t *scratch = jemalloc->pages.scratch;
    if (size > sizeof jemalloc->pages.scratch || address + size < address) {
        return NULL;
    }
    for (size_t done = 0; done < size;) {
        uint64_t at = address + done;
        size_t part = PAGE - at % PAGE < size - done ? PAGE - at % PAGE : size - done;
        const uint8_t *bytes = page_at(jemalloc, at & ~(uint64_t)(PAGE - 1));
        if (!bytes) {
            return NULL;
        }
        memcpy(scratch + done, bytes + at % PAGE, part);
        done += part;
    }
    return scratch;
}

static inline const uint8_t *bytes_at(struct jemalloc_heap *jemalloc, uint64_t address, size_t size) {
    size_t offset = address % PAGE;
    if (offset + size > PAGE) {
        return gather(jemalloc, address, size);
    }
    const uint8_t *bytes = page_at(jemalloc, address - offset);
    return bytes ? bytes + offset : NULL;
}

const uint8_t *jemalloc_at(struct jemalloc_heap *jemalloc, uint64_t address, size_t size) {
    return bytes_at(jemalloc, address, size);
}

bool jemalloc_read(struct jemalloc_heap *jemalloc, uint64_t address, uint64_t *word) {
    const uint8_t *bytes = jemalloc_at(jemalloc, address, sizeof *word);
    if (bytes) {
        *word = jemalloc_word(bytes);
    }
    return bytes != NULL;
}

/* ---- the radix tree --------------------------------------------------------------------------------- */

struct level {
    uint8_t shift, bits, entry;
};

/* rtree_levels[]: how many bits of an address each level takes, 4 KiB pages. */
static unsigned levels_of(const struct jemalloc_heap *jemalloc, const struct level **levels) {
    static const struct level two[] = {{30, 18, 8}, {12, 18, 8}};
    static const struct level three[] = {{42, 15, 8}, {27, 15, 8}, {12, 15, 16}};
    *levels = jemalloc->layout.lg_vaddr == 48 ? two : three;
    return jemalloc->layout.lg_vaddr == 48 ? 2 : 3;
}

/* The first entry of a node from index on whose first word is not zero; count if there is none. */
static uint64_t next_entry(struct karst_target *target, struct karst_window *window, uint64_t node,
                           uint64_t index, uint64_t count, unsigned entry, uint64_t *word) {
    uint64_t end = node + count * entry;
    while (index < count) {
        uint64_t at = node + index * entry;
        uint64_t part = PAGE - at % PAGE;
        part = part < end - at ? part : end - at;
        part = part < entry ? entry : part / entry * entry;
        const uint8_t *bytes = karst_window_at(window, at, part);
        if (!bytes) {
            uint64_t missing = karst_target_missing(target, at) / entry;
            index += missing ? missing : 1;
            continue;
        }
        for (uint64_t offset = 0; offset < part; offset += entry) {
            *word = jemalloc_word(bytes + offset);
            if (*word) {
                return index + offset / entry;
            }
        }
        index += part / entry;
        uint64_t next = node + index * entry;
        uint64_t untouched = index < count ? karst_target_untouched(target, next, end) / entry : 0;
        index += untouched;
    }
    return count;
}

static bool decode(struct jemalloc_heap *jemalloc, uint64_t address, uint64_t word,
                   struct jemalloc_element *element) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    element->address = address;
    if (layout->lg_vaddr == 48) {
        element->extent = (uint64_t)((int64_t)(word << 16) >> 16) & ~63ull;
        element->szind = (uint32_t)(word >> 48 & 0xff);
        element->slab = word & 1;
        return element->extent != 0;
    }
    const uint8_t *bytes = karst_window_at(&jemalloc->leaves, address, 16);
    if (!bytes) {
        return false;
    }
    element->extent = word;
    uint32_t metadata = jemalloc_half(bytes + 8);
    if (layout->leaf_has_state) {
        element->szind = metadata >> 5 & 0xff;
        element->slab = metadata & 1;
    } else {
        element->szind = metadata;
        element->slab = bytes[12] & 1;
    }
    return true;
}

/* What a damaged or forged tree may cost a walk: entries looked at (8 TiB of heap), and extents met that are
 * none. */
#define ENTRIES_MAX  (1ull << 31)
#define NONSENSE_MAX (1u << 20)

static bool give_up(struct jemalloc_heap *jemalloc) {
    if (!jemalloc->gave_up) {
        jemalloc->gave_up = true;
        karst_target_remark(
            jemalloc->heap.target,
            "the radix tree of %s makes no sense in large parts: what follows there is left out",
            jemalloc->module ? jemalloc->module->path : "jemalloc");
    }
    return false;
}

/* One descent from the root, for the pages [from, limit), which are mapped. *next: where to go on if it found
 * none. */
static bool descend(struct jemalloc_heap *jemalloc, uint64_t from, uint64_t limit, uint64_t *next,
                    struct jemalloc_element *element) {
    const struct level *levels;
    const unsigned height = levels_of(jemalloc, &levels);
    uint64_t node = jemalloc->rtree_root, key = 0, word = 0;
    for (unsigned depth = 0; depth < height; depth++) {
        const struct level *level = &levels[depth];
        struct karst_window *window = depth + 1 < height ? &jemalloc->nodes : &jemalloc->leaves;
        uint64_t count = 1ull << level->bits, covers = count << level->shift;
        uint64_t index = (from - key) >> level->shift;
        uint64_t end = limit - key < covers ? limit - key : covers; /* in this node */
        count = (end + (1ull << level->shift) - 1) >> level->shift;
        if (index >= count) {
            *next = limit;
            return false;
        }
        uint64_t found = next_entry(jemalloc->heap.target, window, node, index, count, level->entry, &word);
        jemalloc->entries += found - index;
        if (found == count) {
            *next = key + end;
            return false;
        }
        if (depth + 1 == height) {
            jemalloc->leaf = (struct jemalloc_leaf){.node = node, .key = key, .end = key + covers};
        }
        key += found << level->shift;
        from = found == index ? from : key;
        if (depth + 1 == height) {
            element->page = key;
            *next = key + PAGE;
            return decode(jemalloc, node + found * level->entry, word, element);
        }
        node = word;
    }
    return false;
}

/* The same in the leaf that was met last, which most elements of a walk are in. */
static bool next_in_leaf(struct jemalloc_heap *jemalloc, uint64_t from, uint64_t end, uint64_t *next,
                         struct jemalloc_element *element) {
    const unsigned entry = jemalloc->layout.lg_vaddr == 48 ? 8 : 16;
    const struct jemalloc_leaf *leaf = &jemalloc->leaf;
    end = end < leaf->end ? end : leaf->end;
    uint64_t index = (from - leaf->key) / PAGE, count = (end - leaf->key + PAGE - 1) / PAGE, word = 0;
    const uint8_t *first = karst_window_at(&jemalloc->leaves, leaf->node + index * entry, sizeof word);
    uint64_t found = index;
    if (index >= count || !first ||
        (word = jemalloc_word(first)) == 0) { /* after most extents is another one */
        found = next_entry(jemalloc->heap.target, &jemalloc->leaves, leaf->node, index, count, entry, &word);
    }
    jemalloc->entries += found - index;
    *next = end;
    if (found == count) {
        return false;
    }
    element->page = leaf->key + found * PAGE;
    *next = element->page + PAGE;
    return decode(jemalloc, leaf->node + found * entry, word, element);
}

bool jemalloc_next_element(struct jemalloc_heap *jemalloc, uint64_t from, uint64_t end,
                           struct jemalloc_element *element) {
    end = end < ALL ? end : ALL;
    from &= ~(uint64_t)(PAGE - 1);
    while (from < end) {
        struct jemalloc_leaf *leaf = &jemalloc->leaf;
        if (from >= leaf->start && from < leaf->end) {
            if (next_in_leaf(jemalloc, from, end, &from, element)) {
                return true;
            }
            continue;
        }
        const struct karst_mapping *mapping = karst_target_mapping_after(jemalloc->heap.target, from);
        if (!mapping || mapping->start >= end) {
            return false;
        }
        from = mapping->start > from ? mapping->start : from;
        uint64_t start = from;
        *leaf = (struct jemalloc_leaf){0};
        bool found = descend(jemalloc, from, mapping->end < end ? mapping->end : end, &from, element);
        leaf->start = start > leaf->key ? start : leaf->key;
        leaf->end = mapping->end < leaf->end ? mapping->end : leaf->end;
        if (found) {
            return true;
        }
        if (jemalloc->entries > ENTRIES_MAX) {
            return give_up(jemalloc);
        }
    }
    return false;
}

bool jemalloc_element_of(struct jemalloc_heap *jemalloc, uint64_t page, struct jemalloc_element *element) {
    page &= ~(uint64_t)(PAGE - 1);
    return jemalloc_next_element(jemalloc, page, page + PAGE, element) && element->page == page;
}

/* ---- extents ---------------------------------------------------------------------------------------- */

static bool read_slab(struct jemalloc_heap *jemalloc, const uint8_t *bitmap, struct jemalloc_run *run) {
    run->kind = JEMALLOC_SLAB;
    if (run->class_ >= JEMALLOC_SMALL_BINS) {
        return false;
    }
    struct jemalloc_slab_shape *shape = &jemalloc->slab_shapes[run->class_];
    if (shape->size != run->size) {
        uint64_t region_size = jemalloc_class_size(run->class_);
        if (run->size / region_size > JEMALLOC_SLAB_REGIONS || run->size < region_size) {
            return false;
        }
        *shape = (struct jemalloc_slab_shape){run->size, region_size, (uint32_t)(run->size / region_size)};
    }
    run->region_size = shape->region_size;
    run->first_region = run->address;
    run->stride = run->region_size;
    run->redzone = 0;
    run->regions = shape->regions;
    memcpy(run->bitmap, bitmap, JEMALLOC_SLAB_BITMAP);
    return true;
}

static bool read_large(struct jemalloc_heap *jemalloc, struct jemalloc_run *run, uint64_t address) {
    run->kind = JEMALLOC_LARGE;
    run->block = address;
    run->usable = jemalloc_class_size(run->class_);
    uint64_t pages = run->size - (jemalloc->large_pad && run->size > PAGE ? PAGE : 0);
    if (jemalloc->layout.page_classes && run->class_ >= JEMALLOC_SMALL_BINS && run->usable > pages) {
        run->usable = pages; /* its class is the next larger one */
    }
    return run->class_ < JEMALLOC_CLASSES && run->usable <= run->size - (address - run->address);
}

bool jemalloc_read_extent(struct jemalloc_heap *jemalloc, const struct jemalloc_element *element,
                          struct jemalloc_run *run) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    const uint8_t *extent = element->extent % 64 == 0 ? bytes_at(jemalloc, element->extent,
                                                                 layout->extent_bitmap + JEMALLOC_SLAB_BITMAP)
                                                      : NULL;
    run->header = element->extent;
    run->element = element->address;
    run->address = element->page;
    run->size = PAGE;
    run->kind = JEMALLOC_BAD;
    run->problems = 0;
    run->huge = false;
    run->map_class = element->szind;
    run->bin_pointer = 0;
    run->next_region = JEMALLOC_NOT_THERE;
    run->class_ = JEMALLOC_CLASSES;
    run->arena = KARST_NONE;
    run->regions = 0;
    if (!extent) {
        return false;
    }
    uint64_t bits = jemalloc_word(extent), address = jemalloc_word(extent + layout->extent_address);
    uint64_t size = jemalloc_word(extent + layout->extent_size) & ~(uint64_t)(PAGE - 1);
    uint64_t start = address & ~(uint64_t)(PAGE - 1);
    if (size == 0 || start == 0 || start >= ALL || size > ALL - start) {
        return false;
    }
    run->class_ = bits >> layout->szind_shift & 0xff;
    run->nfree = bits >> layout->nfree_shift & 0x3ff;
    run->shard = layout->shard_shift ? bits >> layout->shard_shift & 0x3f : 0;
    run->arena = (uint32_t)(bits & (JEMALLOC_ARENAS_MAX - 1));
    if (run->arena == JEMALLOC_ARENAS_MAX - 1) {
        return false;
    }
    run->address = start;
    run->size = size;
    unsigned state = bits >> layout->state_shift & ((1u << layout->state_bits) - 1);
    switch (state) {
    case STATE_ACTIVE:
        if (run->class_ == JEMALLOC_CLASSES) {
            run->kind = JEMALLOC_HELD;
            return true;
        }
        return bits >> 12 & 1 ? address == start && read_slab(jemalloc, extent + layout->extent_bitmap, run)
                              : read_large(jemalloc, run, address);
    case STATE_DIRTY:
        run->kind = JEMALLOC_DIRTY;
        break;
    case STATE_MUZZY:
        run->kind = JEMALLOC_MUZZY;
        break;
    case STATE_RETAINED:
        run->kind = JEMALLOC_RETAINED;
        break;
    default:
        run->kind = JEMALLOC_MOVING;
        return state <= STATE_MERGING;
    }
    return true;
}

/* The extent can't be read, and was there: of an arena whose hooks hand out a file's memory, say, which a
 * core has not, or behind a truncated core's end. That is no damage. */
static bool is_left_out(struct jemalloc_heap *jemalloc, const struct jemalloc_element *element) {
    uint8_t byte;
    struct karst_target *target = jemalloc->heap.target;
    if (jemalloc_at(jemalloc, element->extent, 8) || (karst_target_peek(target, element->page, &byte, 1) &&
                                                      !jemalloc_is_lacking(jemalloc, element->extent))) {
        return false;
    }
    if (!jemalloc->left_out) {
        jemalloc->left_out = true;
        karst_target_remark(
            target, "what describes some blocks of the jemalloc of %s can't be read: they are left out",
            jemalloc->module ? jemalloc->module->path : "the target");
    }
    return true;
}

bool jemalloc_is_stray(const struct jemalloc_element *element, const struct jemalloc_run *run) {
    return element->page - run->address >= run->size;
}

bool jemalloc_walk_elements(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end,
                            jemalloc_run_fn *visit, jemalloc_stray_fn *stray, void *context) {
    struct jemalloc_element element;
    struct jemalloc_run run
        __attribute__((aligned(64))); /* its bitmap is copied: not over lines of the cache */
    uint64_t from = start, told = start;
    unsigned nonsense = 0;
    jemalloc->entries = 0;
    while (jemalloc_next_element(jemalloc, from, end, &element)) {
        bool sensible = jemalloc_read_extent(jemalloc, &element, &run);
        from = element.page + PAGE;
        if (!sensible && is_left_out(jemalloc, &element)) {
            continue;
        }
        if ((!sensible || run.address != element.page) && ++nonsense > NONSENSE_MAX) {
            give_up(jemalloc);
            return true;
        }
        if (sensible && jemalloc_is_stray(&element, &run)) {
            if (stray) {
                stray(context, &element, &run);
            }
            continue;
        }
        if (sensible && run.address < told) { /* one that was passed, or that begins in such */
            continue;
        }
        if (!sensible) {
            run.kind = JEMALLOC_BAD;
            run.address = element.page;
            run.size = PAGE;
        }
        if (!visit(context, &run)) {
            return false;
        }
        from = told = run.address + run.size;
    }
    return true;
}

bool jemalloc_walk_extents(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end,
                           jemalloc_run_fn *visit, void *context) {
    return jemalloc_walk_elements(jemalloc, start, end, visit, NULL, context);
}
