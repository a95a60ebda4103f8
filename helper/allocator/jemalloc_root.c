/* jemalloc 5.x: the root of the radix tree from pages to extents, which stands in the module's writable data:
 * by symbol, else by its content. A word leads to a leaf whose elements lead to extents (extent_t, edata_t)
 * whose addresses are the elements' own places in the tree. Facts: include/jemalloc/internal/rtree.h. */
#include "jemalloc.h"

#include <stdio.h>
#include <string.h>

#define PAGE            4096u
#define LEAF_ENTRIES_48 (1u << 18) /* RTREE_NSB 36, in two levels */
#define NODE_ENTRIES_57 (1u << 15) /* RTREE_NSB 45, in three */
#define ELEMENTS_TRIED  64u
#define ALL_ADDRESSES   (1ull << 47)

static uint64_t extend_sign(uint64_t pointer) {
    return (uint64_t)((int64_t)(pointer << 16) >> 16);
}

bool jemalloc_is_data(const struct karst_mapping *mapping) {
    return (mapping->permissions & KARST_MAPPING_WRITE) && (mapping->permissions & KARST_MAPPING_READ) &&
           !(mapping->permissions & KARST_MAPPING_SHARED);
}

bool jemalloc_has_room(const struct karst_target *target, uint64_t address, uint64_t size) {
    const struct karst_mapping *mapping = karst_target_mapping(target, address);
    uint64_t end = address + size;
    if (end < address) {
        return false;
    }
    while (mapping && karst_mapping_is_anonymous(mapping)) {
        if (mapping->end >= end) {
            return true;
        }
        mapping = karst_target_mapping(target, mapping->end);
    }
    return false;
}

/* Is page, which is told but for its high bits (those that mask lacks), in the extent at address? *whole:
 * with them, which are the extent's own. One that would not end in the address space is none, such as where
 * two pointers stand. */
static bool extent_holds(struct karst_window *window, uint64_t address, uint64_t page, uint64_t mask,
                         uint64_t *whole) {
    const uint8_t *bytes = karst_window_at(window, address, 24);
    if (!bytes) {
        return false;
    }
    uint64_t base = jemalloc_word(bytes + 8) & ~(uint64_t)(PAGE - 1);
    uint64_t size = jemalloc_word(bytes + 16) & ~(uint64_t)(PAGE - 1);
    uint64_t offset = (page - base) & mask;
    *whole = base + offset;
    return base != 0 && base < ALL_ADDRESSES && size <= ALL_ADDRESSES - base && offset < size;
}

bool jemalloc_is_lacking(struct jemalloc_heap *jemalloc, uint64_t address) {
    uint8_t byte;
    const struct karst_mapping *mapping = karst_target_mapping(jemalloc->heap.target, address);
    return mapping && (mapping->permissions & KARST_MAPPING_WRITE) &&
           !karst_target_peek(jemalloc->heap.target, address, &byte, 1);
}

/* The same, by way of a window: so it is with the extents of an arena whose hooks hand out a file's memory.
 */
static bool is_left_out(const struct karst_target *target, struct karst_window *window, uint64_t address) {
    const struct karst_mapping *mapping = karst_target_mapping(target, address);
    return mapping && (mapping->permissions & KARST_MAPPING_WRITE) && !karst_window_at(window, address, 8);
}

/* Looks at a leaf: do its elements lead to extents of the pages they stand for? The bits of the key above
 * those that the leaf tells are the extents' own, and all have the same: *key. entry: bytes of an element. */
static bool is_leaf(struct karst_target *target, struct karst_window *leaf, struct karst_window *window,
                    uint64_t address, unsigned lg_entries, unsigned entry, uint64_t *key) {
    uint64_t end = address + ((uint64_t)entry << lg_entries), mask = ((uint64_t)PAGE << lg_entries) - 1;
    unsigned good = 0, bad = 0;
    *key = 0;
    for (uint64_t at = address; at < end && good + bad < ELEMENTS_TRIED && bad <= good + 3;) {
        const uint8_t *bytes = karst_window_at(leaf, at, 8);
        uint64_t word = bytes ? jemalloc_word(bytes) : 0;
        if (!bytes || (word == 0 && at % PAGE == 0)) {
            uint64_t nothing =
                bytes ? karst_target_untouched(target, at, end) : karst_target_missing(target, at);
            if (nothing >= PAGE) {
                at += (nothing < end - at ? nothing : end - at) / entry * entry;
                continue;
            }
        }
        uint64_t page = (at - address) / entry * PAGE, whole = 0;
        uint64_t extent = entry == 8 ? extend_sign(word) & ~63ull : word;
        if (extent != 0 && !is_left_out(target, window, extent)) { /* what was cleared keeps a class */
            bool holds = extent % 64 == 0 && extent_holds(window, extent, page, mask, &whole);
            *key = holds && good == 0 ? whole >> (12 + lg_entries) : *key;
            holds = holds && whole >> (12 + lg_entries) == *key;
            good += holds;
            bad += !holds;
        }
        at += entry;
    }
    return good > 0 && good >= 4 * bad;
}

/* The first child of an inner node that is a leaf. */
static bool is_inner(struct karst_target *target, struct karst_window *node, struct karst_window *leaf,
                     struct karst_window *window, uint64_t address, uint64_t *key) {
    for (unsigned i = 0; i < NODE_ENTRIES_57; i++) {
        const uint8_t *bytes = karst_window_at(node, address + 8ull * i, 8);
        if (!bytes) {
            return false;
        }
        uint64_t child = jemalloc_word(bytes), below;
        if (child == 0) {
            continue;
        }
        if (child % 64 != 0 || !jemalloc_has_room(target, child, 16ull * NODE_ENTRIES_57) ||
            !is_leaf(target, leaf, window, child, 15, 16, &below) || below % NODE_ENTRIES_57 != i) {
            return false;
        }
        *key = below / NODE_ENTRIES_57;
        return true;
    }
    return false;
}

struct search {
    struct karst_target *target;
    const struct karst_module *module;
    struct karst_window words, node, leaf, extents;
};

/* Is the word at address, with this value, an element of a radix tree's root? */
static bool root_at(struct search *search, uint64_t address, uint64_t value, struct jemalloc_root *root) {
    uint64_t key;
    if (value == 0 || value % 64 != 0 || value >= ALL_ADDRESSES || value == address) {
        return false;
    }
    uint64_t size = 8;
    if (jemalloc_has_room(search->target, value, 8ull * LEAF_ENTRIES_48) &&
        is_leaf(search->target, &search->leaf, &search->extents, value, 18, 8, &key)) {
        root->lg_vaddr = 48;
        size *= LEAF_ENTRIES_48;
    } else if (jemalloc_has_room(search->target, value, 8ull * NODE_ENTRIES_57) &&
               is_inner(search->target, &search->node, &search->leaf, &search->extents, value, &key)) {
        root->lg_vaddr = 57;
        size *= NODE_ENTRIES_57;
    } else {
        return false;
    }
    root->address = address - 8 * key;
    return root->address <= address && root->address >= search->module->start &&
           size <= search->module->end - root->address;
}

/* The first word of [start, end) that is one. */
static bool scan_words(struct search *search, uint64_t start, uint64_t end, struct jemalloc_root *root) {
    for (uint64_t at = (start + 7) & ~7ull; at + 8 <= end;) {
        const uint8_t *bytes = karst_window_at(&search->words, at, 8);
        if (!bytes || (at % PAGE == 0 && jemalloc_word(bytes) == 0)) {
            uint64_t nothing = bytes ? karst_target_untouched(search->target, at, end)
                                     : karst_target_missing(search->target, at);
            if (nothing >= PAGE) {
                at = nothing < end - at ? at + nothing : end;
                continue;
            }
        }
        if (bytes && root_at(search, at, jemalloc_word(bytes), root)) {
            root->word = at;
            return true;
        }
        at += 8;
    }
    return false;
}

static void open_search(struct search *search, struct karst_target *target,
                        const struct karst_module *module) {
    *search = (struct search){.target = target, .module = module};
    karst_window_open(&search->words, target, 1u << 18);
    karst_window_open(&search->node, target, 1u << 16);
    karst_window_open(&search->leaf, target, 1u << 16);
    karst_window_open(&search->extents, target, PAGE);
}

static void close_search(struct search *search) {
    karst_window_close(&search->words);
    karst_window_close(&search->node);
    karst_window_close(&search->leaf);
    karst_window_close(&search->extents);
}

static bool search_root(struct karst_target *target, const struct karst_module *module, uint64_t from,
                        struct jemalloc_root *root) {
    struct search search;
    open_search(&search, target, module);
    bool found = false;
    for (size_t i = 0; i < target->mapping_count && !found; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint64_t start = mapping->start > from ? mapping->start : from;
        uint64_t end = mapping->end < module->end ? mapping->end : module->end;
        found = start < end && jemalloc_is_data(mapping) && scan_words(&search, start, end, root);
    }
    close_search(&search);
    return found;
}

/* --with-private-namespace, --with-jemalloc-prefix */
bool jemalloc_symbol(struct karst_target *target, struct karst_module *module, const char *name,
                     struct karst_symbol *symbol) {
    static const char *const prefixes[] = {"je_", "", "_rjem_je_", "jemalloc_je_", "je_je_"};
    char text[80];
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        snprintf(text, sizeof text, "%s%s", prefixes[i], name);
        if (karst_module_symbol(target, module, text, symbol) && !symbol->thread_local_) {
            return true;
        }
    }
    return false;
}

const char *jemalloc_file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Where symbols are worth opening a file: a library of that name, or what it may be linked into. */
static bool symbols_worth(const struct karst_target *target, const struct karst_module *module) {
    return strstr(jemalloc_file_name(module->path), "jemalloc") || module == target->executable_module;
}

/* The tree by its symbol, if it leads to one. */
static bool root_by_symbol(struct karst_target *target, struct karst_module *module,
                           struct jemalloc_root *root) {
    struct karst_symbol symbol;
    uint32_t before = 0;
    if (!symbols_worth(target, module)) {
        return false;
    }
    if (jemalloc_symbol(target, module, "arena_emap_global", &symbol)) {
        before = 120;
    } else if (jemalloc_symbol(target, module, "extents_rtree", &symbol)) {
        uint64_t size = symbol.size - 8ull * LEAF_ENTRIES_48;
        before = size < 256 ? (uint32_t)size : (uint32_t)(symbol.size - 8ull * NODE_ENTRIES_57);
    } else {
        return false;
    }
    struct search search;
    open_search(&search, target, module);
    bool found = scan_words(&search, symbol.address, symbol.address + symbol.size, root) &&
                 root->address == symbol.address + before;
    close_search(&search);
    root->by_symbol = found;
    return found;
}

bool jemalloc_find_root(struct karst_target *target, struct karst_module *module, uint64_t from,
                        struct jemalloc_root *root) {
    *root = (struct jemalloc_root){0};
    return (from == 0 && root_by_symbol(target, module, root)) ||
           search_root(target, module, from > module->start ? from : module->start, root);
}
