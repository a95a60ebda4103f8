/* jemalloc 3.x and 4.x: finding the heap, without symbols.
 *
 * No list has all chunks of 3.x, so they are found as what they are, at each multiple of their size: a header
 * that names an arena (3.x) or itself (4.x), and a page map that parses from its first entry to its last.
 * Huge blocks are in a tree (3.x, found by its shape) or in the arenas' lists (4.x). Facts:
 * include/jemalloc/internal/arena.h, extent.h, tcache.h, rb.h and src/arena.c, huge.c
 * of 3.5.1, 3.6.0, 4.0.4, 4.2.1, 4.4.0, 4.5.0. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jemalloc.h"

#define PAGE       4096u
#define HUGE_MAX   262144u
#define TREES_MAX  64u
#define CHUNKS_MAX (1u << 20)

/* ---- chunks ----------------------------------------------------------------------------------------- */

static bool add_chunk(struct jemalloc_heap *jemalloc, const struct jemalloc_chunk *chunk) {
    size_t count = jemalloc->chunk_count;
    if ((count & (count - 1)) == 0) {
        struct jemalloc_chunk *chunks = realloc(jemalloc->chunks, (count ? 2 * count : 1) * sizeof *chunks);
        if (!chunks) {
            return false;
        }
        jemalloc->chunks = chunks;
    }
    jemalloc->chunks[jemalloc->chunk_count++] = *chunk;
    return true;
}

/* Does the header at address look like a chunk's? *arena: the address of its arena. */
static bool is_header(struct jemalloc_heap *jemalloc, uint64_t address, uint64_t *arena) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t self;
    if (!jemalloc_read(jemalloc, address, arena) || *arena == 0 || *arena % 8 != 0 || *arena == address) {
        return false;
    }
    const uint8_t *index = jemalloc_at(jemalloc, *arena, 4);
    if (!index || jemalloc_half(index) >= JEMALLOC_ARENAS_MAX) {
        return false;
    }
    if (layout->chunk_self == 0) {
        return true;
    }
    const uint8_t *flag;
    return jemalloc_read(jemalloc, address + layout->chunk_self, &self) && self == address &&
           (flag = jemalloc_at(jemalloc, address + layout->chunk_is_arenas, 1)) && *flag == 1;
}

#define LG_CHUNK_LEAST 19 /* 4.x: 21, and two less */

/* Where a chunk may begin, whatever its version and size. */
struct places {
    uint64_t *items;
    size_t count, capacity;
};

static bool add_place(struct places *places, uint64_t address) {
    if (places->count == places->capacity) {
        size_t capacity = places->capacity ? 2 * places->capacity : 64;
        uint64_t *items = realloc(places->items, capacity * sizeof *items);
        if (!items) {
            return false;
        }
        places->items = items;
        places->capacity = capacity;
    }
    places->items[places->count++] = address;
    return true;
}

#define SMALL (1u << 20)

/* Does an arena begin there? One is handed out in whole lines of the cache. First are its number, how many
 * threads it has, and how many for the allocator's own use (4.x) or a lock's first word: all small. */
static bool may_be_arena(struct karst_target *target, uint64_t address) {
    uint8_t bytes[12];
    const struct karst_mapping *mapping = address % 64 == 0 ? karst_target_mapping(target, address) : NULL;
    return mapping && karst_mapping_is_anonymous(mapping) &&
           karst_target_peek(target, address, bytes, sizeof bytes) &&
           jemalloc_half(bytes) < JEMALLOC_ARENAS_MAX && jemalloc_half(bytes + 4) < SMALL &&
           jemalloc_half(bytes + 8) < SMALL;
}

/* Do a header's first two words look like one's of any version? */
static bool may_be_header(struct karst_target *target, uint64_t at, const uint64_t words[2]) {
    return words[0] != 0 && words[0] % 8 == 0 && words[0] != at &&
           (words[1] == at || may_be_arena(target, words[0]));
}

/* How many bytes from at on need no look: 0 at a place. */
static uint64_t nothing_from(struct karst_target *target, uint64_t at, uint64_t end, bool *may_be) {
    uint64_t words[2];
    *may_be = false;
    if (!karst_target_peek(target, at, words, sizeof words)) {
        return karst_target_missing(target, at);
    }
    *may_be = may_be_header(target, at, words);
    return words[0] == 0 ? karst_target_untouched(target, at, end) : 0;
}

/* One look at each, of two words: where there is no jemalloc this is all that the search costs. false: out of
 * memory. */
static bool find_places(struct karst_target *target, struct places *places) {
    const uint64_t step = 1ull << LG_CHUNK_LEAST;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint64_t at = (mapping->start + step - 1) & ~(step - 1);
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        while (at >= mapping->start && at < mapping->end && places->count < CHUNKS_MAX) {
            bool may_be;
            uint64_t nothing = nothing_from(target, at, mapping->end, &may_be);
            if (may_be && !add_place(places, at)) {
                return false;
            }
            nothing = nothing ? nothing : 1;
            at = nothing < mapping->end - at ? (at + nothing + step - 1) & ~(step - 1) : mapping->end;
        }
    }
    return true;
}

/* The chunks among the places; *score: how sure it is that they are. */
static bool take_chunks(struct jemalloc_heap *jemalloc, const struct places *places, uint64_t *score) {
    const uint64_t size = 1ull << jemalloc->layout.lg_chunk;
    *score = 0;
    for (size_t i = 0; i < places->count; i++) {
        struct jemalloc_chunk chunk = {.address = places->items[i], .size = size};
        if (chunk.address % size != 0 || !is_header(jemalloc, chunk.address, &chunk.arena_address)) {
            continue;
        }
        unsigned good = jemalloc_chunk_fit(jemalloc, &chunk);
        *score += good;
        if (good && !add_chunk(jemalloc, &chunk)) {
            return false;
        }
    }
    return true;
}

/* A chunk of a known arena whose map is damaged somewhere: it is one all the same. */
static bool add_damaged_chunks(struct jemalloc_heap *jemalloc, const struct places *places) {
    const uint64_t size = 1ull << jemalloc->layout.lg_chunk;
    size_t known = jemalloc->chunk_count;
    for (size_t i = 0; i < places->count; i++) {
        struct jemalloc_chunk chunk = {.address = places->items[i], .size = size};
        bool same_arena = false, is_known = false;
        if (chunk.address % size != 0 || !is_header(jemalloc, chunk.address, &chunk.arena_address)) {
            continue;
        }
        for (size_t k = 0; k < known; k++) {
            same_arena |= jemalloc->chunks[k].arena_address == chunk.arena_address;
            is_known |= jemalloc->chunks[k].address == chunk.address;
        }
        if (same_arena && !is_known && !add_chunk(jemalloc, &chunk)) {
            return false;
        }
    }
    return true;
}

/* ---- finding chunks --------------------------------------------------------------------------------- */

static int compare_chunks(const void *a, const void *b) {
    const struct jemalloc_chunk *x = a, *y = b;
    return x->address != y->address ? (x->address < y->address ? -1 : 1)
                                    : (x->size < y->size ? -1 : x->size > y->size);
}

/* Sorted, and without those that overlap. A huge block that is listed wins over a chunk that is there by its
 * looks: what was a chunk keeps its header when it becomes (the inside of) a huge block, until the program
 * writes there. */
static void sort_chunks(struct jemalloc_heap *jemalloc) {
    size_t kept = 0;
    uint64_t end = 0;
    if (jemalloc->chunk_count) {
        qsort(jemalloc->chunks, jemalloc->chunk_count, sizeof *jemalloc->chunks, compare_chunks);
    }
    for (size_t i = 0; i < jemalloc->chunk_count; i++) {
        struct jemalloc_chunk chunk = jemalloc->chunks[i];
        if (chunk.address < end && chunk.huge && !jemalloc->chunks[kept - 1].huge) {
            kept--;
            end = chunk.address;
        }
        if (chunk.address >= end) {
            jemalloc->chunks[kept++] = chunk;
            end = chunk.address + chunk.size;
        }
    }
    jemalloc->chunk_count = kept;
}

/* Rows of the arenas, by the number that each has. */
static bool number_arenas(struct jemalloc_heap *jemalloc) {
    for (size_t i = 0; i < jemalloc->chunk_count; i++) {
        struct jemalloc_chunk *chunk = &jemalloc->chunks[i];
        const uint8_t *bytes = jemalloc_at(jemalloc, chunk->arena_address, 8);
        uint32_t index = bytes ? jemalloc_half(bytes) : 0, threads = bytes ? jemalloc_half(bytes + 4) : 0;
        if (index >= JEMALLOC_ARENAS_MAX || !jemalloc_make_arenas(jemalloc, index + 1ull)) {
            return index >= JEMALLOC_ARENAS_MAX;
        }
        chunk->arena = index;
        jemalloc->arenas[index].address = jemalloc->heap.arenas[index].address = chunk->arena_address;
        jemalloc->heap.arenas[index].attached_threads = threads;
    }
    return true;
}

/* ---- huge blocks ------------------------------------------------------------------------------------ */

static bool add_huge(struct jemalloc_heap *jemalloc, uint64_t address, uint64_t size, uint32_t arena) {
    const struct karst_mapping *mapping = karst_target_mapping(jemalloc->heap.target, address);
    if (address == 0 || address % PAGE != 0 || size == 0 || size % PAGE != 0 || size > (1ull << 47) ||
        !mapping || !karst_mapping_is_anonymous(mapping)) {
        return true;
    }
    struct jemalloc_chunk chunk = {.address = address,
                                   .size = size,
                                   .arena = arena,
                                   .arena_address = jemalloc->arenas[arena].address,
                                   .huge = true};
    return add_chunk(jemalloc, &chunk);
}

/* 4.x: a ring of each arena. */
static bool add_huge_of_arena(struct jemalloc_heap *jemalloc, uint32_t arena) {
    uint64_t first, node;
    if (!jemalloc_read(jemalloc, jemalloc->arenas[arena].address + jemalloc->layout.arena_huge, &first)) {
        return true;
    }
    node = first;
    for (unsigned i = 0; node != 0 && i < HUGE_MAX; i++) {
        uint64_t address, size;
        /* A chunk begins with a node, too. */
        const uint64_t addr = node + jemalloc->layout.chunk_self;
        if (!jemalloc_read(jemalloc, addr, &address) || !jemalloc_read(jemalloc, addr + 8, &size)) {
            return true;
        }
        /* The node is a block of the heap, the allocator's own. */
        if (!add_huge(jemalloc, address, size, arena) || !jemalloc_add_cached(jemalloc, node, KARST_NONE)) {
            return false;
        }
        if (!jemalloc_read(jemalloc, node + jemalloc->layout.huge_link, &node) || node == first) {
            return true;
        }
    }
    return true;
}

/* 3.x: extent_tree_t is a root and a node that stands for none, whose links lead to itself: by address (the
 * second pair) in the trees of huge blocks and of recycled chunks; these have a twin by size (the first
 * pair). */
struct tree {
    uint64_t address;
    unsigned link; /* of its nodes: 0 by size, 16 by address */
};

/* Visits the nodes of a tree; false: visit had enough. */
static bool walk_tree(struct jemalloc_heap *jemalloc, const struct tree *tree,
                      bool (*visit)(void *context, uint64_t node), void *context) {
    uint64_t stack[64], node;
    unsigned depth = 0, met = 0;
    if (!jemalloc_read(jemalloc, tree->address, &node)) {
        return true;
    }
    stack[depth++] = node;
    while (depth && met++ < HUGE_MAX) {
        uint64_t left, right;
        node = stack[--depth] & ~1ull;
        if (node == tree->address + 8 || node == 0 || !jemalloc_read(jemalloc, node + tree->link, &left) ||
            !jemalloc_read(jemalloc, node + tree->link + 8, &right)) {
            continue;
        }
        if (!visit(context, node)) {
            return false;
        }
        if (depth + 2 <= sizeof stack / sizeof *stack) {
            stack[depth++] = left;
            stack[depth++] = right;
        }
    }
    return true;
}

static bool is_other(void *context, uint64_t node) {
    return node != *(const uint64_t *)context;
}

struct huge_visit {
    struct jemalloc_heap *jemalloc;
    bool out_of_memory;
    bool nonsense; /* no tree of huge blocks */
};

static bool visit_huge(void *context, uint64_t node) {
    struct huge_visit *visit = context;
    uint64_t address, size;
    uint64_t chunk = 1ull << visit->jemalloc->layout.lg_chunk;
    if (!jemalloc_read(visit->jemalloc, node + 40, &address) ||
        !jemalloc_read(visit->jemalloc, node + 48, &size) || address % chunk != 0 || size % chunk != 0 ||
        size == 0) {
        visit->nonsense = true;
        return false;
    }
    visit->out_of_memory |= !add_huge(visit->jemalloc, address, size, 0);
    return !visit->out_of_memory;
}

/* All such trees in writable data of modules. */
static size_t find_trees(struct jemalloc_heap *jemalloc, struct tree *trees) {
    struct karst_target *target = jemalloc->heap.target;
    struct karst_window window;
    size_t count = 0;
    karst_window_open(&window, target, 1u << 16);
    for (size_t m = 0; m < target->module_count; m++) {
        for (size_t i = 0; i < target->mapping_count; i++) {
            const struct karst_mapping *mapping = &target->mappings[i];
            if (mapping->start < target->modules[m].start || mapping->start >= target->modules[m].end ||
                !(mapping->permissions & KARST_MAPPING_WRITE)) {
                continue;
            }
            for (uint64_t at = mapping->start; at + 40 <= mapping->end && count < TREES_MAX; at += 8) {
                const uint8_t *bytes = karst_window_at(&window, at, 40);
                uint64_t nil = at + 8;
                if (!bytes) {
                    break;
                }
                /* An empty tree is of no use, and looks like glibc's empty bins. */
                if (karst_target_module(target, jemalloc_word(bytes))) {
                    continue;
                }
                for (unsigned link = 0; link <= 16 && count < TREES_MAX; link += 16) {
                    if (jemalloc_word(bytes + 8 + link) == nil && jemalloc_word(bytes + 16 + link) == nil) {
                        trees[count++] = (struct tree){at, link};
                    }
                }
            }
        }
    }
    karst_window_close(&window);
    return count;
}

static bool add_huge_of_trees(struct jemalloc_heap *jemalloc) {
    struct tree trees[TREES_MAX];
    struct huge_visit visit = {.jemalloc = jemalloc};
    size_t count = find_trees(jemalloc, trees);
    for (size_t i = 0; i < count; i++) {
        uint64_t root;
        bool twin = false;
        if (trees[i].link != 16 || !jemalloc_read(jemalloc, trees[i].address, &root) ||
            root == trees[i].address + 8) {
            continue;
        }
        for (size_t k = 0; k < count && !twin; k++) {
            twin = trees[k].link == 0 && !walk_tree(jemalloc, &trees[k], is_other, &root);
        }
        size_t before = jemalloc->chunk_count;
        if (!twin) {
            visit.nonsense = false;
            walk_tree(jemalloc, &trees[i], visit_huge, &visit);
            jemalloc->chunk_count = visit.nonsense ? before : jemalloc->chunk_count;
        }
    }
    return !visit.out_of_memory;
}

/* ---- putting it together ---------------------------------------------------------------------------- */

/* The module that says it is a jemalloc of that generation. *version: as it says; "" if none does. */
static struct karst_module *find_module(struct karst_target *target, unsigned generation, char *version,
                                        size_t size) {
    static const char *const needles[] = {"3.6.0-", "3.5.1-", "3.5.0-", "3.4.1-", "3.4.0-", "3.3.1-",
                                          "4.5.0-", "4.4.0-", "4.3.1-", "4.3.0-", "4.2.1-", "4.2.0-",
                                          "4.1.1-", "4.1.0-", "4.0.4-", "4.0.3-"};
    for (size_t i = 0; i < target->module_count; i++) {
        for (size_t n = 0; n < sizeof needles / sizeof *needles; n++) {
            unsigned major, minor, patch, more;
            if ((unsigned)(needles[n][0] - '0') == generation &&
                karst_module_find_text(target, &target->modules[i], needles[n], version, size) &&
                sscanf(version, "%u.%u.%u-%u-g", &major, &minor, &patch, &more) == 4) {
                *strchr(version, '-') = '\0';
                return &target->modules[i];
            }
        }
    }
    snprintf(version, size, "%s", "");
    return NULL;
}

static bool add_facts(struct jemalloc_heap *jemalloc, bool named) {
    struct karst_facts *facts = &jemalloc->heap.facts;
    return (!jemalloc->module || karst_facts_add(facts, "library", 0, "%s", jemalloc->module->path)) &&
           (jemalloc->told
                ? karst_facts_add(facts, "layout", 0,
                                  "debug info, %u members, with which page maps and run headers agree%s",
                                  jemalloc->told, jemalloc->configuration)
                : karst_facts_add(facts, "layout", 0,
                                  "the row of the table whose page maps and run headers agree%s%s%s",
                                  named ? "" : "; no module names its version",
                                  jemalloc->layout.configuration, jemalloc->configuration)) &&
           (!jemalloc->arenas_at ||
            karst_facts_add(facts, "arenas", jemalloc->arenas_at, "found by structure")) &&
           karst_facts_add(facts, "chunks", 0, "%zu of %llu KB found by structure, huge blocks included",
                           jemalloc->chunk_count, (1ull << jemalloc->layout.lg_chunk) / 1024) &&
           (jemalloc->layout.major == 3 ||
            karst_facts_add(facts, "large blocks", 0,
                            "known by their pages: where in the first page each begins is recorded nowhere"));
}

/* What may be in effect: opt.lg_chunk (as exponent, besides the default), opt.redzone, and 3.x's profiling.
 */
static const struct configuration {
    int8_t lg_chunk;
    bool redzones, profiled;
    const char *text;
} configurations[] = {
    {0, false, false, ""},
    {-1, false, false, ""},
    {1, false, false, ""},
    {-2, false, false, ""},
    {2, false, false, ""},
    {0, true, false, "; with redzones"},
    {0, false, true, "; with a profile of each region"},
    {0, true, true, "; with redzones, and a profile of each region"},
};
#define CONFIGURATIONS (sizeof configurations / sizeof *configurations)

/* Tries one layout in a configuration; *score: how well it fits. */
static struct jemalloc_heap *try_shape(struct karst *session, const struct jemalloc_layout *shape,
                                       const struct configuration *configuration, const struct places *places,
                                       uint64_t *score) {
    struct jemalloc_heap *jemalloc = jemalloc_open(session, NULL);
    *score = 0;
    if (!jemalloc) {
        return NULL;
    }
    jemalloc->layout = *shape;
    jemalloc->layout.lg_chunk = (uint8_t)(shape->lg_chunk + configuration->lg_chunk);
    jemalloc->configuration = configuration->text;
    jemalloc_shape_runs(jemalloc, configuration->redzones, configuration->profiled);
    if (!take_chunks(jemalloc, places, score)) {
        jemalloc_close(&jemalloc->heap);
        return NULL;
    }
    return jemalloc;
}

/* Versions whose page maps are alike differ in their arenas: of those rows, the one of the version named.
 * What debug info told stays so. */
static void prefer_version(struct jemalloc_heap *jemalloc, struct karst_module *debugged,
                           const char *version) {
    struct jemalloc_layout *layout = &jemalloc->layout;
    for (size_t i = 0; i < jemalloc_chunk_layout_count; i++) {
        struct jemalloc_layout other = jemalloc_chunk_layouts[i];
        unsigned told =
            jemalloc->told ? jemalloc_layout_from_debug_info(jemalloc->heap.target, debugged, &other) : 0;
        if (other.major == layout->major && other.map == layout->map &&
            other.map_entry == layout->map_entry && other.misc == layout->misc &&
            other.misc_run == layout->misc_run && told == jemalloc->told &&
            strncmp(other.version, version, 3) == 0) {
            other.lg_chunk = layout->lg_chunk;
            *layout = other;
            return;
        }
    }
}

static bool finish(struct karst *session, struct jemalloc_heap *jemalloc, struct karst_module *debugged,
                   const struct places *places, struct karst_error *error) {
    char version[64];
    jemalloc->module = find_module(session->target, jemalloc->layout.major, version, sizeof version);
    snprintf(jemalloc->heap.version, sizeof jemalloc->heap.version, "%.20s",
             *version ? version : jemalloc->layout.version);
    prefer_version(jemalloc, debugged, version);
    bool fine =
        add_damaged_chunks(jemalloc, places) && number_arenas(jemalloc) && jemalloc_find_arenas(jemalloc);
    if (fine && jemalloc->layout.major == 3) {
        fine = add_huge_of_trees(jemalloc);
    }
    for (uint32_t i = 0; fine && jemalloc->layout.major == 4 && i < jemalloc->heap.arena_count; i++) {
        fine = jemalloc->arenas[i].address == 0 || add_huge_of_arena(jemalloc, i);
    }
    sort_chunks(jemalloc);
    fine = fine && jemalloc_find_counters(jemalloc);
    if (!fine || !add_facts(jemalloc, *version != '\0') || !jemalloc_make_extents(jemalloc) ||
        !jemalloc_make_bins(jemalloc) || !jemalloc_note_flux(jemalloc) || !jemalloc_find_tcaches(jemalloc)) {
        jemalloc_close(&jemalloc->heap);
        return karst_fail_memory(error);
    }
    return jemalloc_hand_over(session, jemalloc, error);
}

/* A module that may have debug info of a jemalloc: one of that name, or the executable if it has a jemalloc's
 * symbols. */
static struct karst_module *find_debugged(struct karst_target *target) {
    struct karst_symbol symbol;
    for (size_t i = 0; i < target->module_count; i++) {
        if (strstr(jemalloc_file_name(target->modules[i].path), "jemalloc")) {
            return &target->modules[i];
        }
    }
    return target->executable_module &&
                   jemalloc_symbol(target, target->executable_module, "arena_bin_info", &symbol)
               ? target->executable_module
               : NULL;
}

struct choice {
    struct karst *session;
    const struct places *places;
    struct jemalloc_heap *best; /* NULL: none fits */
    uint64_t score;
};

/* Tries a layout in each configuration, and keeps what fits better than what was tried before. told: members
 * that debug info told of it; it wins where it fits as well as the table. false: out of memory. */
static bool try_layout(struct choice *choice, const struct jemalloc_layout *layout, unsigned told) {
    for (size_t i = 0; i < CONFIGURATIONS; i++) {
        uint64_t score;
        struct jemalloc_heap *jemalloc =
            try_shape(choice->session, layout, &configurations[i], choice->places, &score);
        if (!jemalloc) {
            return false;
        }
        jemalloc->told = told;
        bool better = score > choice->score ||
                      (told && choice->best && !choice->best->told && score != 0 && score == choice->score);
        struct jemalloc_heap *worse = better ? choice->best : jemalloc;
        choice->best = better ? jemalloc : choice->best;
        choice->score = better ? score : choice->score;
        if (worse) {
            jemalloc_close(&worse->heap);
        }
    }
    return true;
}

/* The layout and chunk size that fit best. false: out of memory. */
static bool choose_layout(struct choice *choice, struct karst_module *debugged) {
    for (size_t i = 0; i < jemalloc_chunk_layout_count; i++) {
        struct jemalloc_layout layout = jemalloc_chunk_layouts[i];
        if (!try_layout(choice, &layout, 0)) {
            return false;
        }
        unsigned told =
            debugged ? jemalloc_layout_from_debug_info(choice->session->target, debugged, &layout) : 0;
        if (told && !try_layout(choice, &layout, told)) {
            return false;
        }
    }
    return true;
}

bool jemalloc_find_chunks(struct karst *session, struct karst_error *error) {
    struct places places = {0};
    struct choice choice = {.session = session, .places = &places};
    struct karst_module *debugged = NULL;
    bool fine = find_places(session->target, &places);
    if (fine && places.count) {
        debugged = find_debugged(session->target);
        fine = choose_layout(&choice, debugged);
    }
    if (!fine && choice.best) {
        jemalloc_close(&choice.best->heap);
    }
    fine = fine ? !choice.best || finish(session, choice.best, debugged, &places, error)
                : karst_fail_memory(error);
    free(places.items);
    return fine;
}
