/* jemalloc 3.x and 4.x: chunks and their page maps, as runs. Facts: include/jemalloc/internal/arena.h and
 * src/arena.c of 3.5.1, 3.6.0, 4.0.4, 4.2.1, 4.4.0, 4.5.0. */
#include <stdlib.h>
#include <string.h>

#include "jemalloc.h"

#define PAGE        4096u
#define BITS_USED   1u
#define BITS_LARGE  2u
#define INVALID_BIN 0xffu
#define FIT_OF_RUN  64u /* a run that agrees counts as much as so many bad entries */

/* ---- the shapes of runs ----------------------------------------------------------------------------- */

#define RUN_HEADER      16u   /* 3.x: sizeof(arena_run_t) */
#define RUN_MAXREGS     2048u /* 3.x */
#define RUN_MAX_OVRHD   0x3du
#define RUN_BFP         12u
#define OVRHD_RELAX     0x1800u
#define REDZONE_MINSIZE 16u

/* arena_boot() */
uint32_t jemalloc_header_pages(const struct jemalloc_layout *layout) {
    uint64_t pages = 1ull << (layout->lg_chunk - 12), bias = 0;
    for (int i = 0; i < 3; i++) {
        bias =
            (layout->map + (uint64_t)(layout->map_entry + layout->misc) * (pages - bias) + PAGE - 1) / PAGE;
    }
    return (uint32_t)bias;
}

/* 3.x: bytes in front of so many regions: the header, the bitmap's levels, a pointer for each region's
 * profile. */
static uint32_t header_bytes(uint32_t regions, bool profiled) {
    uint32_t bytes = RUN_HEADER, groups = regions;
    do {
        groups = (groups + 63) / 64;
        bytes += 8 * groups;
    } while (groups > 1);
    return profiled ? (bytes + 15) / 16 * 16 + 8 * regions : bytes;
}

/* 3.x: as many regions as a run of that size has room for, and where they begin. */
static void fill_run(struct jemalloc_run_shape *shape, uint32_t pad, bool profiled) {
    uint32_t regions = (shape->size - RUN_HEADER) / shape->stride;
    regions = regions < RUN_MAXREGS ? regions : RUN_MAXREGS;
    while (regions && (regions * shape->stride + pad > shape->size ||
                       header_bytes(regions, profiled) > shape->size - regions * shape->stride - pad)) {
        regions--;
    }
    shape->regions = regions;
    shape->first = shape->size - regions * shape->stride - pad;
}

/* 3.x, bin_info_run_size_calc(): a run grows until what is in front of its regions is little enough of it. */
static void shape_run_3(struct jemalloc_run_shape *shape, const struct jemalloc_layout *layout,
                        uint32_t least, uint32_t pad, bool profiled) {
    uint32_t largest = (1u << layout->lg_chunk) - jemalloc_header_pages(layout) * PAGE;
    struct jemalloc_run_shape next = *shape;
    next.size = least;
    fill_run(&next, pad, profiled);
    do {
        *shape = next;
        next.size += PAGE;
        fill_run(&next, pad, profiled);
    } while (next.size <= largest && RUN_MAX_OVRHD * (next.stride << 3) > OVRHD_RELAX &&
             (uint64_t)next.first << RUN_BFP > (uint64_t)RUN_MAX_OVRHD * next.size &&
             next.regions < RUN_MAXREGS);
}

/* 4.x: the fewest pages that regions without redzones would fill to the end. */
static void shape_run_4(struct jemalloc_run_shape *shape, uint32_t region_size, uint32_t pad) {
    shape->size = PAGE;
    while (shape->size % region_size != 0) {
        shape->size += PAGE;
    }
    while (shape->size < pad + shape->stride) {
        shape->size += PAGE;
    }
    shape->regions = (shape->size - pad) / shape->stride;
    shape->first = shape->size - shape->regions * shape->stride - pad;
}

void jemalloc_shape_runs(struct jemalloc_heap *jemalloc, bool redzones, bool profiled) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint32_t least = PAGE, classes = layout->major == 3 ? JEMALLOC_SMALL_BINS_3 : JEMALLOC_SMALL_BINS;
    memset(jemalloc->shapes, 0, sizeof jemalloc->shapes);
    for (uint32_t i = 0; i < classes; i++) {
        struct jemalloc_run_shape *shape = &jemalloc->shapes[i];
        uint32_t region_size = (uint32_t)jemalloc_class_size(i), pad = 0;
        if (redzones) {
            uint32_t alignment = region_size & -region_size;
            shape->redzone = alignment <= REDZONE_MINSIZE ? REDZONE_MINSIZE : alignment / 2;
            pad = alignment <= REDZONE_MINSIZE ? 0 : shape->redzone;
        }
        shape->stride = region_size + 2 * shape->redzone;
        if (layout->major == 3) {
            shape_run_3(shape, layout, least, pad, profiled);
        } else {
            shape_run_4(shape, region_size, pad);
        }
        least = shape->size;
        shape->first += shape->redzone;
        shape->regions = shape->regions <= JEMALLOC_REGIONS_MAX ? shape->regions : 0; /* none: not known */
    }
}

/* ---- page maps -------------------------------------------------------------------------------------- */

struct page_map {
    const struct jemalloc_layout *layout;
    const struct jemalloc_run_shape *shapes;
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
    run->class_ = run->map_class = (uint32_t)(bits >> map->layout->class_shift & INVALID_BIN);
    const struct jemalloc_run_shape *shape =
        run->class_ < JEMALLOC_SMALL_BINS ? &map->shapes[run->class_] : NULL;
    if (bits >> map->layout->pages_shift != 0 || !shape || shape->regions == 0 ||
        shape->size / PAGE > map->pages - page) {
        return false;
    }
    run->size = shape->size;
    for (uint32_t i = 1; i < run->size / PAGE; i++) {
        uint64_t other = bits_of(map, page + i);
        if ((other & (BITS_USED | BITS_LARGE)) != BITS_USED || other >> map->layout->pages_shift != i ||
            (other >> map->layout->class_shift & INVALID_BIN) != run->class_) {
            return false;
        }
    }
    run->kind = JEMALLOC_SLAB;
    run->region_size = jemalloc_class_size(run->class_);
    run->first_region = run->address + shape->first;
    run->stride = shape->stride;
    run->redzone = shape->redzone;
    run->regions = shape->regions;
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
        run->sampled = run->usable;
        uint32_t class_ = (uint32_t)(bits >> map->layout->class_shift & INVALID_BIN);
        if (class_ < JEMALLOC_SMALL_BINS && map->shapes[class_].size) { /* small, but profiling sampled it */
            run->usable = jemalloc_class_size(class_);
        }
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
    uint64_t size = ((1ull << (layout->lg_chunk - 12)) - jemalloc_header_pages(layout)) * layout->map_entry;
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
                             .shapes = jemalloc->shapes,
                             .bytes = read_map(jemalloc, chunk),
                             .chunk = chunk,
                             .first = jemalloc_header_pages(&jemalloc->layout),
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
    uint64_t pages = 1ull << (layout->lg_chunk - 12), bias = jemalloc_header_pages(layout);
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
                               .sampled = chunk->size,
                               .huge = chunk->huge,
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

/* ---- finding ---------------------------------------------------------------------------------------- */

unsigned jemalloc_chunk_fit(struct jemalloc_heap *jemalloc, const struct jemalloc_chunk *chunk) {
    struct page_map map;
    unsigned good = 0, bad = 0;
    struct jemalloc_run run;
    if (!open_map(jemalloc, chunk->address, &map)) {
        return 0;
    }
    for (uint32_t page = map.first; page < map.pages && good + bad < 64;
         page += (uint32_t)(run.size / PAGE)) {
        read_run(jemalloc, chunk, &map, page, &run);
        if (run.kind == JEMALLOC_SLAB) {
            bool agrees = !run.problems && jemalloc_count_free(&run) == run.nfree;
            good += agrees;
            bad += !agrees;
        }
    }
    /* A map that is damaged somewhere has to have runs whose headers are good. */
    unsigned bad_places = bad_entries(&map), needed = bad_places ? 2 + bad_places / 8 : 0;
    if (good < bad || good < needed) {
        return 0;
    }
    return 1 + FIT_OF_RUN * good - (bad_places < FIT_OF_RUN * good ? bad_places : FIT_OF_RUN * good);
}
