/* jemalloc 3.x and 4.x: chunks and their page maps, as runs.
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

#define PAGE        4096u
#define NONE16      (JEMALLOC_NOT_THERE & 0xffff)
#define HUGE_MAX    262144u
#define TREES_MAX   64u
#define CHUNKS_MAX  (1u << 20)
#define BITS_USED   1u
#define BITS_LARGE  2u
#define INVALID_BIN 0xffu

struct jemalloc_chunk {
    uint64_t address, size;
    uint64_t arena_address;
    uint32_t arena;
    bool huge;
};

/* ---- the shapes ------------------------------------------------------------------------------------- */

#define SHAPE_4(name, misc_offset_of_run, tcaches, huge_list, huge_next, self, below, bins)                  \
    {                                                                                                        \
        .version = (name), .major = 4, .arena_tcaches = (tcaches), .ring_to_tcache = NONE16,                 \
        .own_stack = NONE16, .mutex_locked = NONE16, .tcache_bins = (bins), .tcache_large = NONE16,          \
        .tcache_bin_size = 32, .tcache_classes = 41, .stack_below = (below), .arena_index = 0,               \
        .lg_chunk = 21, .map = (self), .map_entry = 8, .map_bits = 0, .flag_dirty = 0x10, .class_shift = 5,  \
        .pages_shift = 13, .misc = 96, .misc_run = (misc_offset_of_run), .chunk_self = 8,                    \
        .chunk_is_arenas = (self) >= 120 ? 34 : 26, .arena_huge = (huge_list), .huge_link = (huge_next)      \
    }

static const struct jemalloc_layout shapes[] = {
    {.version = "3.6.0",
     .major = 3,
     .arena_tcaches = 120,
     .ring_to_tcache = NONE16,
     .own_stack = NONE16,
     .mutex_locked = NONE16,
     .tcache_bins = 40,
     .tcache_large = NONE16,
     .tcache_bin_size = 32,
     .tcache_classes = 36,
     .lg_chunk = 22,
     .map = 48,
     .map_entry = 24,
     .map_bits = 16,
     .flag_dirty = 8,
     .class_shift = 4,
     .pages_shift = 12,
     .arena_bins = 288,
     .arena_bin_size = 152},
    SHAPE_4("4.5.0", 24, 224, 2088, 80, 120, true, 40),
    SHAPE_4("4.2.1", 24, 224, 2080, 72, 104, true, 40),
    SHAPE_4("4.0.4", 16, 168, 464, 72, 104, false, 32),
};

/* 3.x: arena_bin_info[] without redzones and profiling: pages of a run, and regions, which are at its end. */
static const struct {
    uint16_t pages, regions;
} bins_3[28] = {
    {1, 501}, {1, 252}, {1, 126}, {1, 84},  {1, 63},  {1, 50},  {2, 84},  {2, 72},  {2, 63}, {2, 51},
    {3, 63},  {4, 72},  {4, 63},  {5, 63},  {6, 63},  {7, 63},  {8, 63},  {8, 51},  {9, 47}, {10, 45},
    {16, 63}, {16, 51}, {16, 42}, {17, 38}, {33, 65}, {33, 52}, {33, 43}, {35, 39},
};

/* What a small run of a class is: pages, regions, offset of the first; false: no such class. */
static bool bin_shape(const struct jemalloc_layout *layout, uint32_t class_, uint64_t *size,
                      uint32_t *regions, uint32_t *first) {
    if (layout->major == 3) {
        if (class_ >= sizeof bins_3 / sizeof *bins_3) {
            return false;
        }
        *size = (uint64_t)bins_3[class_].pages * PAGE;
        *regions = bins_3[class_].regions;
        *first = (uint32_t)(*size - *regions * jemalloc_class_size(class_));
        return true;
    }
    if (class_ >= JEMALLOC_SMALL_BINS) {
        return false;
    }
    uint64_t region = jemalloc_class_size(class_);
    *size = PAGE;
    while (*size % region != 0) { /* bin_info_run_size_calc() */
        *size += PAGE;
    }
    *regions = (uint32_t)(*size / region);
    *first = 0;
    return true;
}

/* Pages of a chunk's header, arena_boot(). */
static uint32_t header_pages(const struct jemalloc_layout *layout) {
    uint64_t pages = 1ull << (layout->lg_chunk - 12), bias = 0;
    for (int i = 0; i < 3; i++) {
        bias =
            (layout->map + (uint64_t)(layout->map_entry + layout->misc) * (pages - bias) + PAGE - 1) / PAGE;
    }
    return (uint32_t)bias;
}

/* ---- page maps -------------------------------------------------------------------------------------- */

struct page_map {
    const struct jemalloc_layout *layout;
    const uint8_t *bytes; /* from the first entry on */
    uint64_t chunk;
    uint32_t first, pages; /* of the chunk: where the map begins, and all */
};

static uint64_t bits_of(const struct page_map *map, uint32_t page) {
    return jemalloc_word(map->bytes + (uint64_t)(page - map->first) * map->layout->map_entry +
                         map->layout->map_bits);
}

/* Pages that a used large run or an unused one takes, 0: the entry makes no sense. */
static uint64_t pages_of(const struct page_map *map, uint32_t page) {
    uint64_t pages = bits_of(map, page) >> map->layout->pages_shift;
    return pages <= map->pages - page ? pages : 0;
}

/* A small run: every page has its offset in the run and the class. */
static bool parse_small(const struct page_map *map, uint32_t page, uint64_t bits, struct jemalloc_run *run) {
    uint32_t first;
    run->class_ = run->map_class = (uint32_t)(bits >> map->layout->class_shift & INVALID_BIN);
    if (bits >> map->layout->pages_shift != 0 ||
        !bin_shape(map->layout, run->class_, &run->size, &run->regions, &first) ||
        run->size / PAGE > map->pages - page) {
        return false;
    }
    for (uint32_t i = 1; i < run->size / PAGE; i++) {
        uint64_t other = bits_of(map, page + i);
        if ((other & (BITS_USED | BITS_LARGE)) != BITS_USED || other >> map->layout->pages_shift != i ||
            (other >> map->layout->class_shift & INVALID_BIN) != run->class_) {
            return false;
        }
    }
    run->kind = JEMALLOC_SLAB;
    run->region_size = jemalloc_class_size(run->class_);
    run->first_region = run->address + first;
    return true;
}

/* The run that begins at page, by the map alone; false: the map makes no sense there. */
static bool parse_run(const struct page_map *map, uint32_t page, struct jemalloc_run *run) {
    uint64_t bits = bits_of(map, page);
    *run = (struct jemalloc_run){.address = map->chunk + (uint64_t)page * PAGE,
                                 .size = PAGE,
                                 .class_ = JEMALLOC_CLASSES,
                                 .map_class = JEMALLOC_CLASSES,
                                 .next_region = JEMALLOC_NOT_THERE,
                                 .kind = JEMALLOC_BAD};
    run->element = map->chunk + map->layout->map + (uint64_t)(page - map->first) * map->layout->map_entry +
                   map->layout->map_bits;
    run->header = bits;
    if ((bits & (BITS_USED | BITS_LARGE)) == BITS_USED) {
        bool sensible = parse_small(map, page, bits, run);
        run->size = sensible ? run->size : PAGE;
        run->regions = sensible ? run->regions : 0;
        return sensible;
    }
    uint64_t pages = pages_of(map, page);
    if (pages == 0) {
        return false;
    }
    run->size = pages * PAGE;
    run->header = run->element;
    if (bits & BITS_USED) {
        run->kind = JEMALLOC_LARGE;
        run->block = run->address;
        run->usable = run->size - (map->layout->major == 4 && pages > 1 ? PAGE : 0);
        return true;
    }
    run->kind = bits & map->layout->flag_dirty ? JEMALLOC_DIRTY : JEMALLOC_RETAINED;
    return !(bits & BITS_LARGE);
}

/* Entries of the map at which no run can begin. */
static unsigned bad_entries(const struct page_map *map) {
    struct jemalloc_run run;
    unsigned bad = 0;
    for (uint32_t page = map->first; page < map->pages; page += (uint32_t)(run.size / PAGE)) {
        if (!parse_run(map, page, &run)) {
            run.size = PAGE;
            bad++;
        }
    }
    return bad;
}

/* Reads the map of the chunk at address; NULL: not there. The one read last is kept. */
static const uint8_t *read_map(struct jemalloc_heap *jemalloc, uint64_t chunk) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t size = ((1ull << (layout->lg_chunk - 12)) - header_pages(layout)) * layout->map_entry;
    if (jemalloc->map && jemalloc->map_of == chunk) {
        return jemalloc->map;
    }
    if (!jemalloc->map) {
        jemalloc->map = malloc(size);
    }
    jemalloc->map_of = 0;
    if (!jemalloc->map ||
        !karst_target_read_all(jemalloc->heap.target, chunk + layout->map, jemalloc->map, size)) {
        return NULL;
    }
    jemalloc->map_of = chunk;
    return jemalloc->map;
}

static bool open_map(struct jemalloc_heap *jemalloc, uint64_t chunk, struct page_map *map) {
    *map = (struct page_map){.layout = &jemalloc->layout,
                             .bytes = read_map(jemalloc, chunk),
                             .chunk = chunk,
                             .first = header_pages(&jemalloc->layout),
                             .pages = 1u << (jemalloc->layout.lg_chunk - 12)};
    return map->bytes != NULL;
}

/* ---- runs ------------------------------------------------------------------------------------------- */

/* nfree and bitmap: in front of the regions (3.x) or in the chunk's header (4.x). */
static void read_header(struct jemalloc_heap *jemalloc, const struct jemalloc_chunk *chunk,
                        struct jemalloc_run *run) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint32_t words = (run->regions + 63) / 64;
    const uint8_t *header;
    if (layout->major == 3) {
        run->header = run->address;
        header = jemalloc_at(jemalloc, run->header, 16 + 8 * words);
        if (!header) {
            run->problems |= JEMALLOC_BAD_HEADER;
            return;
        }
        run->bin_pointer = jemalloc_word(header);
        run->next_region = jemalloc_half(header + 8);
        run->nfree = jemalloc_half(header + 12);
        memcpy(run->bitmap, header + 16, 8 * words);
        uint64_t bin =
            chunk->arena_address + layout->arena_bins + (uint64_t)run->class_ * layout->arena_bin_size;
        bool sensible =
            run->bin_pointer == bin && run->next_region <= run->regions && run->nfree <= run->regions;
        run->problems |= sensible ? 0 : JEMALLOC_BAD_HEADER;
        return;
    }
    uint64_t pages = 1ull << (layout->lg_chunk - 12), bias = header_pages(layout);
    uint64_t index = (run->address - chunk->address) / PAGE - bias;
    run->header = chunk->address + layout->map + layout->map_entry * (pages - bias) + index * layout->misc +
                  layout->misc_run;
    header = jemalloc_at(jemalloc, run->header, 8 + 8 * words);
    if (!header) {
        run->problems |= JEMALLOC_BAD_HEADER;
        return;
    }
    run->class_ = jemalloc_half(header);
    run->nfree = jemalloc_half(header + 4);
    memcpy(run->bitmap, header + 8, 8 * words);
    run->problems |= run->class_ == run->map_class && run->nfree <= run->regions ? 0 : JEMALLOC_BAD_HEADER;
    run->class_ = run->map_class;
}

/* A whole run at page; what makes no sense is one of kind BAD, a page long. */
static void read_run(struct jemalloc_heap *jemalloc, const struct jemalloc_chunk *chunk,
                     const struct page_map *map, uint32_t page, struct jemalloc_run *run) {
    if (!parse_run(map, page, run)) {
        run->kind = JEMALLOC_BAD;
        run->size = PAGE;
    }
    run->arena = chunk->arena;
    if (run->kind == JEMALLOC_SLAB) {
        read_header(jemalloc, chunk, run);
    }
}

static bool walk_chunk(struct jemalloc_heap *jemalloc, const struct jemalloc_chunk *chunk,
                       jemalloc_run_fn *visit, void *context) {
    struct page_map map;
    struct jemalloc_run run = {.address = chunk->address,
                               .size = chunk->size,
                               .arena = chunk->arena,
                               .class_ = JEMALLOC_CLASSES,
                               .map_class = JEMALLOC_CLASSES,
                               .block = chunk->address,
                               .usable = chunk->size,
                               .kind = JEMALLOC_LARGE};
    if (chunk->huge) {
        return visit(context, &run);
    }
    if (!open_map(jemalloc, chunk->address, &map)) {
        run.kind = JEMALLOC_BAD;
        return visit(context, &run);
    }
    run.kind = JEMALLOC_HEADER;
    run.size = (uint64_t)map.first * PAGE;
    if (!visit(context, &run)) {
        return false;
    }
    for (uint32_t page = map.first; page < map.pages;) {
        if (!open_map(jemalloc, chunk->address, &map)) { /* the visitor may have looked elsewhere */
            return true;
        }
        read_run(jemalloc, chunk, &map, page, &run);
        page += (uint32_t)(run.size / PAGE);
        if (!visit(context, &run)) {
            return false;
        }
    }
    return true;
}

/* The first chunk that ends behind address. */
static size_t chunk_from(const struct jemalloc_heap *jemalloc, uint64_t address) {
    size_t low = 0, high = jemalloc->chunk_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (jemalloc->chunks[middle].address + jemalloc->chunks[middle].size <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool jemalloc_walk_chunks(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end,
                          jemalloc_run_fn *visit, void *context) {
    size_t from = chunk_from(jemalloc, start);
    for (size_t i = from; i < jemalloc->chunk_count && jemalloc->chunks[i].address < end; i++) {
        if (!walk_chunk(jemalloc, &jemalloc->chunks[i], visit, context)) {
            return false;
        }
    }
    return true;
}

struct look {
    uint64_t address;
    struct jemalloc_run *run;
    bool found;
};

static bool look_at(void *context, const struct jemalloc_run *run) {
    struct look *look = context;
    look->found = look->address - run->address < run->size;
    if (look->found) {
        *look->run = *run;
    }
    return !look->found;
}

bool jemalloc_chunk_run_of(struct jemalloc_heap *jemalloc, uint64_t address, struct jemalloc_run *run) {
    size_t index = chunk_from(jemalloc, address);
    struct look look = {.address = address, .run = run};
    if (index < jemalloc->chunk_count && jemalloc->chunks[index].address <= address) {
        walk_chunk(jemalloc, &jemalloc->chunks[index], look_at, &look);
    }
    return look.found && run->kind != JEMALLOC_BAD;
}

/* ---- finding chunks --------------------------------------------------------------------------------- */

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

/* How many of a chunk's first runs have headers that agree with the map: what tells shapes apart. */
static unsigned good_headers(struct jemalloc_heap *jemalloc, const struct jemalloc_chunk *chunk,
                             const struct page_map *map) {
    unsigned good = 0, bad = 0;
    struct jemalloc_run run;
    for (uint32_t page = map->first; page < map->pages && good + bad < 64;
         page += (uint32_t)(run.size / PAGE)) {
        read_run(jemalloc, chunk, map, page, &run);
        if (run.kind == JEMALLOC_SLAB) {
            bool agrees = !run.problems && jemalloc_count_free(&run) == run.nfree;
            good += agrees;
            bad += !agrees;
        }
    }
    /* A map that is damaged somewhere has to have runs whose headers are good. */
    unsigned needed = bad_entries(map) ? 2 + bad_entries(map) / 8 : 0;
    return good >= bad && good >= needed ? good + 1 : 0;
}

static uint64_t next_place(struct karst_target *target, uint64_t at, uint64_t end, uint64_t step) {
    uint8_t byte;
    bool there = karst_target_read(target, at, &byte, 1) == 1;
    uint64_t nothing = there ? karst_target_untouched(target, at, end) : karst_target_missing(target, at);
    uint64_t next = nothing < end - at ? at + nothing : end;
    next = (next + step - 1) & ~(step - 1);
    return next > at ? next : at + step > at ? at + step : end;
}

/* The chunks at multiples of their size; *score: how sure it is that they are. */
static bool scan_for_chunks(struct jemalloc_heap *jemalloc, uint64_t *score) {
    struct karst_target *target = jemalloc->heap.target;
    const uint64_t size = 1ull << jemalloc->layout.lg_chunk;
    *score = 0;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        uint64_t at = (mapping->start + size - 1) & ~(size - 1);
        while (at >= mapping->start && at < mapping->end && jemalloc->chunk_count < CHUNKS_MAX) {
            struct jemalloc_chunk chunk = {.address = at, .size = size};
            struct page_map map;
            if (is_header(jemalloc, at, &chunk.arena_address) && open_map(jemalloc, at, &map)) {
                unsigned good = good_headers(jemalloc, &chunk, &map);
                *score += good;
                if (good && !add_chunk(jemalloc, &chunk)) {
                    return false;
                }
            }
            at = next_place(target, at, mapping->end, size);
        }
    }
    return true;
}

/* A chunk of a known arena whose map is damaged somewhere: it is one all the same. */
static bool add_damaged_chunks(struct jemalloc_heap *jemalloc) {
    struct karst_target *target = jemalloc->heap.target;
    const uint64_t size = 1ull << jemalloc->layout.lg_chunk;
    size_t known = jemalloc->chunk_count;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        uint64_t at = (mapping->start + size - 1) & ~(size - 1);
        while (at >= mapping->start && at < mapping->end && jemalloc->chunk_count < CHUNKS_MAX) {
            struct jemalloc_chunk chunk = {.address = at, .size = size};
            bool same_arena = false, is_known = false;
            if (is_header(jemalloc, at, &chunk.arena_address)) {
                for (size_t k = 0; k < known; k++) {
                    same_arena |= jemalloc->chunks[k].arena_address == chunk.arena_address;
                    is_known |= jemalloc->chunks[k].address == at;
                }
            }
            if (same_arena && !is_known && !add_chunk(jemalloc, &chunk)) {
                return false;
            }
            at = next_place(target, at, mapping->end, size);
        }
    }
    return true;
}

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
        if (!jemalloc_read(jemalloc, node + 8, &address) || !jemalloc_read(jemalloc, node + 16, &size)) {
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
           karst_facts_add(facts, "layout", 0, "the row of the table whose page maps and run headers agree%s",
                           named ? "" : "; no module names its version") &&
           karst_facts_add(facts, "chunks", 0, "%zu of %llu KB found by structure, huge blocks included",
                           jemalloc->chunk_count, (1ull << jemalloc->layout.lg_chunk) / 1024) &&
           (jemalloc->layout.major == 3 ||
            karst_facts_add(facts, "large blocks", 0,
                            "known by their pages: where in the first page each begins is recorded nowhere"));
}

/* Tries one shape and chunk size; *score: how well it fits. */
static struct jemalloc_heap *try_shape(struct karst *session, const struct jemalloc_layout *shape,
                                       uint8_t lg_chunk, uint64_t *score) {
    struct jemalloc_heap *jemalloc = jemalloc_open(session, NULL);
    *score = 0;
    if (!jemalloc) {
        return NULL;
    }
    jemalloc->layout = *shape;
    jemalloc->layout.lg_chunk = lg_chunk;
    if (!scan_for_chunks(jemalloc, score)) {
        jemalloc_close(&jemalloc->heap);
        return NULL;
    }
    return jemalloc;
}

static bool finish(struct karst *session, struct jemalloc_heap *jemalloc, struct karst_error *error) {
    char version[64];
    jemalloc->module = find_module(session->target, jemalloc->layout.major, version, sizeof version);
    snprintf(jemalloc->heap.version, sizeof jemalloc->heap.version, "%.20s",
             *version ? version : jemalloc->layout.version);
    jemalloc->layout.configuration = "";
    bool fine = add_damaged_chunks(jemalloc) && number_arenas(jemalloc);
    if (fine && jemalloc->layout.major == 3) {
        fine = add_huge_of_trees(jemalloc);
    }
    for (uint32_t i = 0; fine && jemalloc->layout.major == 4 && i < jemalloc->heap.arena_count; i++) {
        fine = jemalloc->arenas[i].address == 0 || add_huge_of_arena(jemalloc, i);
    }
    sort_chunks(jemalloc);
    if (!fine || !add_facts(jemalloc, *version != '\0') || !jemalloc_make_extents(jemalloc) ||
        !jemalloc_make_bins(jemalloc) || !jemalloc_find_tcaches(jemalloc)) {
        jemalloc_close(&jemalloc->heap);
        return karst_fail_memory(error);
    }
    return jemalloc_hand_over(session, jemalloc, error);
}

bool jemalloc_find_chunks(struct karst *session, struct karst_error *error) {
    /* opt.lg_chunk: the default, and what builds for other machines and habits have. */
    static const int8_t others[] = {0, -1, 1, -2};
    struct jemalloc_heap *best = NULL;
    uint64_t best_score = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t k = 0; k < sizeof others; k++) {
            uint64_t score;
            struct jemalloc_heap *jemalloc =
                try_shape(session, &shapes[s], (uint8_t)(shapes[s].lg_chunk + others[k]), &score);
            if (!jemalloc) {
                if (best) {
                    jemalloc_close(&best->heap);
                }
                return karst_fail_memory(error);
            }
            struct jemalloc_heap *worse = score > best_score ? best : jemalloc;
            best = score > best_score ? jemalloc : best;
            best_score = score > best_score ? score : best_score;
            if (worse) {
                jemalloc_close(&worse->heap);
            }
        }
    }
    return !best || finish(session, best, error);
}
