/* jemalloc: what its parts share. jemalloc_layout.c has the layouts of its versions as data, which
 * jemalloc_debug_info.c corrects. Of 5.x jemalloc_root.c finds the radix tree, jemalloc_arenas.c the arenas,
 * and jemalloc_find.c chooses the layout; jemalloc_extents.c reads the extents. Of 3.x and 4.x
 * jemalloc_find_chunks.c finds the chunks, jemalloc_chunks.c reads them, and jemalloc_counters.c finds what
 * no walk can tell. jemalloc_tcache.c finds the threads' caches, jemalloc_cache_bin.c reads them; jemalloc.c
 * walks, jemalloc_answers.c tells of runs, totals and one block, jemalloc_check*.c check. Facts:
 * docs/allocators/jemalloc.md.
 *
 * All versions come down to page runs (struct jemalloc_run): what 5.x calls extents and slabs, 3.x and 4.x
 * runs. Everything but the finding and the two walks over them knows runs only. */
#ifndef KARST_ALLOCATOR_JEMALLOC_H
#define KARST_ALLOCATOR_JEMALLOC_H

#include "session.h"

#define JEMALLOC_REGIONS_MAX  2048u /* of a run, 3.x: RUN_MAXREGS */
#define JEMALLOC_BITMAP_WORDS (JEMALLOC_REGIONS_MAX / 64)
#define JEMALLOC_SLAB_REGIONS                                                                                \
    512u /* the same since 4.0: LG_SLAB_MAXREGS is LG_PAGE - LG_TINY_MIN, 4 KiB pages */
#define JEMALLOC_SLAB_BITMAP (JEMALLOC_SLAB_REGIONS / 8) /* bytes */
#define JEMALLOC_CLASSES     232u
#define JEMALLOC_ARENAS_MAX  4096u /* MALLOCX_ARENA_BITS is 12 */
#define JEMALLOC_NOT_THERE   UINT32_MAX

/* Offsets of one version in one configuration; x86-64. JEMALLOC_NOT_THERE: it has no such thing. */
struct jemalloc_layout {
    const char *version; /* as the library's version string begins: "5.3.0" */
    const char *configuration;
    uint8_t major;
    /* 5.x: the radix tree from pages to extents */
    uint8_t lg_vaddr;    /* 48: two levels, leaf elements of one word; 57: three, and a pointer and a word */
    bool leaf_has_state; /* beside slab and class */
    bool sampled_in_pages; /* 5.3.1: see jemalloc_sampled_size() */
    bool muzzy_resident;   /* stats.resident has muzzy pages, too: until 5.2, arena_stats_merge() */
    bool page_classes;     /* large blocks may take any number of pages (opt.disable_large_size_classes) */
    uint32_t rtree_root;   /* in struct rtree_s */
    /* e_bits of extent_t, edata_t: where fields begin */
    uint8_t state_shift, state_bits, szind_shift, nfree_shift, shard_shift;
    uint16_t extent_address, extent_size, extent_bitmap; /* in extent_t, edata_t; e_bits is at its start */
    uint16_t lru_link;                                   /* of unused extents, in their ring */
    uint16_t heap_link; /* of slabs, in their bin's heap: previous, next, leftmost child */
    uint16_t full_link; /* of slabs, in the ring of full ones */
    /* arena_t */
    uint32_t arena_threads; /* how many are attached; behind it, how many for the allocator's own use */
    uint32_t arena_internal, arena_tcaches, arena_index, arena_base;
    uint32_t arena_lru[3], arena_npages[3], arena_mutex[3]; /* of the dirty, muzzy and retained extents */
    uint16_t
        to_guarded; /* 5.3: from those lists and counts to those of extents between guard pages; 0: none */
    /* base_t; the blocks are struct base_block_s {size, next, ...} */
    uint16_t base_blocks, base_allocated, base_mapped; /* what is resident stands before what is mapped */
    uint16_t mutex_locked; /* in malloc_mutex_t: a byte; JEMALLOC_NOT_THERE & 0xffff: none */
    /* bin_t: its mutex is its first member; 5.2: the arena has pointers to each class's, else the bins */
    uint16_t bin_slabcur, bin_nonfull, bin_full;
    bool bins_apart;
    /* the ring of tcaches of an arena: the element's first word is its next */
    uint16_t ring_link;  /* in what the arena's tcache list points to */
    uint16_t ring_arena; /* in the same, a pointer to the arena */
    uint16_t
        ring_to_tcache;   /* 5.3: in tcache_slow_t, a pointer to tcache_t; else JEMALLOC_NOT_THERE & 0xffff */
    int16_t own_data;     /* before 5.3: from tcache_t to a pointer to the thread's own table; 0: none */
    uint16_t own_stack;   /* 5.3: in tcache_slow_t, the pointer to the memory of the bins' stacks */
    uint16_t tcache_self; /* before 5.3: in tcache_t, a pointer to its own small bins; 0: none */
    uint16_t tcache_bins; /* in tcache_t, of small classes */
    uint16_t tcache_large; /* in tcache_t, of large ones; those of 5.3 follow the small ones */
    uint16_t tcache_bin_size;
    uint16_t tcache_bin_stack, tcache_bin_count; /* 5.3: the stack's head, and the low bits of its end */
    uint16_t tcache_bin_full;                    /* 5.3: the low bits of the stack's lowest slot */
    uint16_t tcache_classes;                     /* how many bins it has room for */
    /* 3.x, 4.x: chunks */
    uint8_t lg_chunk;
    uint16_t map, map_entry, map_bits;            /* of the page map: in the chunk, of an entry, in it */
    uint8_t flag_dirty, class_shift, pages_shift; /* in an entry's bits; used is 1, large 2 */
    uint16_t misc, misc_run;              /* 4.x: bytes a page behind the map; in them, the run's header */
    uint16_t chunk_self, chunk_is_arenas; /* 4.x: in the chunk, its address, and a flag; 0: none */
    uint32_t arena_bins, arena_bin_size;  /* bin_t, arena_bin_t; 3.x: what a run's header leads to */
    uint32_t arena_huge, huge_link;       /* 4.x: list of huge blocks */
    /* In arena_t, what it counts: bytes, and pages. 5.x: what is mapped alone */
    uint16_t arena_mapped, arena_retained, arena_metadata_mapped, arena_metadata_allocated, arena_dirty;
    bool stack_below;   /* before 5.0: the pointer to the stack is its end, not its start */
    bool stack_by_head; /* 5.3: the bin has the stack's head and the low bits of its end */
};

extern const struct jemalloc_layout jemalloc_layouts[];
extern const size_t jemalloc_layout_count;
extern const struct jemalloc_layout
    jemalloc_chunk_layouts[]; /* 3.x and 4.x: where chunks are the default size */
extern const size_t jemalloc_chunk_layout_count;

/* Overwrites what the module's debug info tells; the number of members it told, 0: none, or they make no
 * sense. */
unsigned jemalloc_layout_from_debug_info(struct karst_target *target, struct karst_module *module,
                                         struct jemalloc_layout *layout);

/* Bytes of a region or block of size class index; UINT64_MAX: there is no such class. All versions, 4 classes
 * a doubling and 16-byte quantum. */
uint64_t jemalloc_class_size(uint32_t index);
/* 5.x: bytes of the block that stands for one of a small class where profiling samples it: of the smallest
 * large class, and since 5.3.1 of the next class that is whole pages (src/jemalloc.c, imalloc_body(); sz.h,
 * sz_sa2u()). */
uint64_t jemalloc_sampled_size(const struct jemalloc_layout *layout, uint32_t class_);
/* The class for a request of so many bytes; JEMALLOC_CLASSES: none. */
uint32_t jemalloc_class_of(uint64_t size);

enum jemalloc_run_kind {
    JEMALLOC_SLAB,     /* cut into regions: a slab (5.x), a small run (3.x, 4.x) */
    JEMALLOC_LARGE,    /* one block; huge ones, too */
    JEMALLOC_DIRTY,    /* unused, its pages as the program left them */
    JEMALLOC_MUZZY,    /* unused, lazily given back (MADV_FREE) */
    JEMALLOC_RETAINED, /* unused and given back: address space only */
    JEMALLOC_MOVING,   /* 5.3: on its way from one state to another */
    JEMALLOC_HELD,   /* 5.x: the page allocator keeps it, in no class: opt.hpa's cache (SEC), and what guarded
                        slabs are cut from (san_bump_alloc()) */
    JEMALLOC_HEADER, /* 3.x, 4.x: a chunk's header */
    JEMALLOC_BAD,    /* what should say what it is makes no sense */
    JEMALLOC_RUN_KINDS
};

/* What a walk over the runs found wrong, for check. */
enum {
    JEMALLOC_BAD_HEADER = 1, /* a run's own header is no header */
};

struct jemalloc_run {
    uint64_t address, size; /* of its pages */
    uint64_t header;        /* where nfree and bitmap come from: extent_t, edata_t, arena_run_t */
    uint64_t block;         /* large: the address that the program has */
    uint64_t usable;        /* large: bytes */
    uint64_t sampled; /* 3.x, 4.x, large: as jemalloc counts it, though profiling sampled a small block */
    uint64_t first_region; /* small: address */
    uint64_t region_size;  /* small: as the program may use */
    uint64_t stride;       /* small: from one region to the next */
    uint32_t redzone;      /* 3.x, 4.x: bytes before and behind each that nobody has */
    uint64_t element;      /* 5.x: where the tree's leaf has it; 3.x, 4.x: its first entry in the page map */
    uint64_t bin_pointer;  /* 3.x: the header's pointer to its bin */
    uint32_t regions;
    uint32_t nfree;     /* small: as its header says */
    uint32_t class_;    /* size class index, as the header says */
    uint32_t map_class; /* as the tree or page map says; JEMALLOC_CLASSES: it says none */
    uint32_t arena;     /* index in heap.arenas */
    uint32_t shard;
    uint32_t next_region; /* 3.x: the header's nextind; JEMALLOC_NOT_THERE: has none */
    uint8_t kind;
    uint8_t problems;
    bool huge;                              /* 3.x, 4.x: chunks of its own */
    uint64_t bitmap[JEMALLOC_BITMAP_WORDS]; /* small: 1 is free; as it is, beyond the last region too */
};

typedef bool jemalloc_run_fn(void *context, const struct jemalloc_run *run);

struct jemalloc_arena {
    uint64_t address;
    uint64_t internal;                                   /* bytes that the allocator took of itself */
    uint64_t base_allocated, base_resident, base_mapped; /* 5.x */
    uint64_t mapped;                   /* bytes, by its own account; 5.x: its base's left out */
    uint64_t retained, dirty, headers; /* 4.x: the same; headers: of chunks */
    uint32_t first_bin; /* of its rows in heap.bins: the small classes, then dirty, muzzy, retained */
    bool seen;          /* something is in it */
    /* 5.x: a word of its ring of caches, or of its list of base blocks, that leads to none; 0: none such. And
     * whether the target lacks a base block. */
    uint64_t bad_ring, bad_block;
    bool block_left_out;
};

#define JEMALLOC_SMALL_BINS_3 28u
#define JEMALLOC_SMALL_BINS                                                                                  \
    36u /* 28 in 3.x; rows of an arena: these, then the three lists of unused runs                           \
         */
#define JEMALLOC_ARENA_BINS (JEMALLOC_SMALL_BINS + 3)

struct jemalloc_tcache {
    uint64_t address; /* of tcache_t */
    int64_t tid;      /* 0: can't be told, -1: its thread is gone */
    uint32_t arena;
    const struct karst_thread *inside; /* its thread, if that is inside and did not die there; else NULL */
    uint32_t classes;                  /* how many bins it has */
    uint32_t first_bin, bins;          /* of its rows in heap.bins */
    uint64_t stacks_end; /* 5.3, as its bins are read: where the stack of the one before ends; 0: not known */
};

#define JEMALLOC_TCACHE_CLASSES_MAX 2048u

/* A block in a tcache, or (bin KARST_NONE) the allocator's own. */
struct jemalloc_cached {
    uint64_t address;
    uint32_t bin;
    bool stashed; /* 5.3: filled with junk, which is to stay so until it is handed out again */
};

/* Memory read lately, by page: for structs that are strewn, but not far. */
struct jemalloc_pages {
    uint64_t *tags; /* page address | 1 */
    uint8_t *bytes;
    const uint8_t **at; /* in bytes, or in the target's own mapping of itself */
    uint8_t scratch[512];
};

/* 3.x, 4.x */
struct jemalloc_chunk {
    uint64_t address, size;
    uint64_t arena_address;
    uint32_t arena;
    bool huge;
};

/* 3.x, 4.x: the totals that jemalloc keeps in variables of its module. */
struct jemalloc_counters {
    bool known;
    uint64_t chunks;                                     /* 3.x: stats_chunks.curchunks */
    uint64_t base_allocated, base_resident, base_mapped; /* 4.x */
};

/* 3.x, 4.x: what a small run of a class is made of. */
struct jemalloc_run_shape {
    uint32_t size, regions, first; /* first: offset of the first region; regions 0: not known */
    uint32_t stride, redzone;
};

/* 5.x: a leaf of the radix tree; [start, end) are pages that it has elements for, and that are mapped. */
struct jemalloc_leaf {
    uint64_t node, key; /* its address; the first page it could have */
    uint64_t start, end;
};

/* 5.x: of slabs of a class, as one was met: a division less for each that is like it. */
struct jemalloc_slab_shape {
    uint64_t size, region_size;
    uint32_t regions;
};

struct jemalloc_heap {
    struct karst_heap heap;
    struct jemalloc_layout layout;
    struct karst_module *module; /* NULL: not known (a heap found by its chunks) */
    uint64_t rtree_root;
    uint64_t arenas_at; /* je_arenas; 0: not found */
    struct jemalloc_arena *arenas;
    struct jemalloc_tcache *tcaches;
    size_t tcache_count;
    struct jemalloc_cached *cached; /* sorted by address once loaded */
    size_t cached_count, cached_capacity;
    uint64_t cached_bytes, cached_most; /* of all caches; there can't be more: each block is in one place */
    bool caches_forged;                 /* they hold more than that */
    struct jemalloc_pages pages;
    struct karst_window nodes, leaves; /* of the radix tree */
    struct jemalloc_leaf leaf;         /* that was met last */
    struct jemalloc_slab_shape slab_shapes[JEMALLOC_SMALL_BINS];
    bool large_pad;       /* 5.x: large blocks have a page more, and begin anywhere in the first
                             (opt.cache_oblivious) */
    uint64_t entries;     /* of the radix tree that a walk looked at */
    bool gave_up;         /* on a tree that makes no sense */
    bool left_out;        /* memory that the target lacks, with what describes it */
    bool inside;          /* a thread is inside, and did not die there */
    bool *threads_inside; /* which */
    /* 3.x, 4.x */
    struct jemalloc_run_shape shapes[JEMALLOC_SMALL_BINS];
    unsigned told;             /* members of the layout that debug info told */
    const char *configuration; /* opt.redzone and so on, in words that end a sentence */
    struct jemalloc_chunk *chunks;
    size_t chunk_count;
    struct jemalloc_counters counters;
    uint8_t *map; /* the page map read last, of the chunk map_of */
    uint64_t map_of;
};

static inline uint64_t jemalloc_word(const uint8_t *bytes) {
    uint64_t word;
    __builtin_memcpy(&word, bytes, sizeof word);
    return word;
}

static inline uint32_t jemalloc_half(const uint8_t *bytes) {
    uint32_t half;
    __builtin_memcpy(&half, bytes, sizeof half);
    return half;
}

/* size (at most 512) bytes at address, NULL: not there. Valid until the next call. */
const uint8_t *jemalloc_at(struct jemalloc_heap *jemalloc, uint64_t address, size_t size);
bool jemalloc_read(struct jemalloc_heap *jemalloc, uint64_t address, uint64_t *word);

/* ---- runs ------------------------------------------------------------------------------------------- */

/* All runs that begin in [start, end), in address order. false: the visitor had enough. */
bool jemalloc_walk_runs(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end, jemalloc_run_fn *visit,
                        void *context);
/* The run that holds address; false: none. */
bool jemalloc_run_of(struct jemalloc_heap *jemalloc, uint64_t address, struct jemalloc_run *run);
const char *jemalloc_run_kind_name(const struct jemalloc_heap *jemalloc, enum jemalloc_run_kind kind);
/* Free regions by the bitmap, those past the last left out. */
uint32_t jemalloc_count_free(const struct jemalloc_run *run);
/* Where region's block begins: with its redzone, which the program does not know of. */
static inline uint64_t jemalloc_block_start(const struct jemalloc_run *run, uint32_t region) {
    return run->first_region - run->redzone + region * run->stride;
}
static inline bool jemalloc_is_free(const struct jemalloc_run *run, uint32_t region) {
    return run->bitmap[region / 64] >> (region % 64) & 1;
}
/* Index of the region that holds address, and whether address is where it starts. JEMALLOC_NOT_THERE: it lies
 * in none: before the first (the header) or behind the last. */
uint32_t jemalloc_region_of(const struct jemalloc_run *run, uint64_t address, bool *is_start);

/* ---- 5.x -------------------------------------------------------------------------------------------- */

/* The next page at or behind from, below end, that the radix tree has an extent for; its element. false:
 * none. */
struct jemalloc_element {
    uint64_t page;    /* address */
    uint64_t address; /* of the element */
    uint64_t extent;  /* extent_t, edata_t */
    uint32_t szind;
    bool slab;
};
bool jemalloc_next_element(struct jemalloc_heap *jemalloc, uint64_t from, uint64_t end,
                           struct jemalloc_element *element);
/* The element of one page; false: the tree has none, or no extent there. */
bool jemalloc_element_of(struct jemalloc_heap *jemalloc, uint64_t page, struct jemalloc_element *element);
/* Makes a run of the extent that an element leads to; its address may differ from the element's page. false:
 * it makes no sense. */
bool jemalloc_read_extent(struct jemalloc_heap *jemalloc, const struct jemalloc_element *element,
                          struct jemalloc_run *run);
bool jemalloc_walk_extents(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end,
                           jemalloc_run_fn *visit, void *context);
/* Does an element lead to an extent that its page is not in? No healthy tree has such. */
bool jemalloc_is_stray(const struct jemalloc_element *element, const struct jemalloc_run *run);
typedef void jemalloc_stray_fn(void *context, const struct jemalloc_element *element,
                               const struct jemalloc_run *run);
/* jemalloc_walk_extents() that calls stray for each of those. */
bool jemalloc_walk_elements(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end,
                            jemalloc_run_fn *visit, jemalloc_stray_fn *stray, void *context);

/* ---- 3.x, 4.x --------------------------------------------------------------------------------------- */

bool jemalloc_walk_chunks(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end,
                          jemalloc_run_fn *visit, void *context);
bool jemalloc_chunk_run_of(struct jemalloc_heap *jemalloc, uint64_t address, struct jemalloc_run *run);
/* Of a chunk's header, page map included. */
uint32_t jemalloc_header_pages(const struct jemalloc_layout *layout);
/* What runs are made of by the layout in use, with opt.redzone, and (3.x) with profiling's table in each run,
 * which is there where opt.lg_prof_sample is no more than a page's. */
void jemalloc_shape_runs(struct jemalloc_heap *jemalloc, bool redzones, bool profiled);
/* How many of a chunk's first runs have headers that agree with its map: what tells layouts apart. 0: its map
 * makes no sense by the layout in use. */
unsigned jemalloc_chunk_fit(struct jemalloc_heap *jemalloc, const struct jemalloc_chunk *chunk);

/* The arenas' own counts, and those of the module, which it needs: found by symbol or structure, for which
 * the chunks have to be known. False: out of memory. */
bool jemalloc_find_counters(struct jemalloc_heap *jemalloc);
/* Arenas that have no chunk, by the table of arenas in the module's data, and the memory that they are in.
 * False: out of memory. */
bool jemalloc_find_arenas(struct jemalloc_heap *jemalloc);

/* ---- finding, over files; each false: out of memory ------------------------------------------------- */

bool jemalloc_find(struct karst *session, struct karst_error *error);
bool jemalloc_find_chunks(struct karst *session, struct karst_error *error);
/* 5.x: the root of a radix tree in a module's data. */
struct jemalloc_root {
    uint64_t address; /* of its first element */
    uint64_t word;    /* where the element is by which it was found */
    uint8_t lg_vaddr; /* bits of addresses that it is for: 48, 57 */
    bool by_symbol;
};
/* from 0: by symbol, else the first that a word has the looks of; else the first such word at or behind from.
 * false: none. */
bool jemalloc_find_root(struct karst_target *target, struct karst_module *module, uint64_t from,
                        struct jemalloc_root *root);
/* A module's own: writable, and no other process's. */
bool jemalloc_is_data(const struct karst_mapping *mapping);
/* The last part of a path; in it. */
const char *jemalloc_file_name(const char *path);
/* A local name, with the prefixes that builds give them. */
bool jemalloc_symbol(struct karst_target *target, struct karst_module *module, const char *name,
                     struct karst_symbol *symbol);
/* Are there size bytes of anonymous memory at address? Neighbouring mappings count as one. */
bool jemalloc_has_room(const struct karst_target *target, uint64_t address, uint64_t size);
/* Is address in memory that there was, and that the target (a core) lacks? */
bool jemalloc_is_lacking(struct jemalloc_heap *jemalloc, uint64_t address);
struct jemalloc_heap *jemalloc_open(struct karst *session, struct karst_module *module);
void jemalloc_close(struct karst_heap *heap);
/* 5.x: the table of arenas (je_arenas), by the layout in use. *count: arenas in it. 0: not found. */
uint64_t jemalloc_search_arenas(struct jemalloc_heap *jemalloc, unsigned *count);
/* 5.x: the arenas in the table (arenas_at) and the memory they have for themselves. */
bool jemalloc_read_arenas(struct jemalloc_heap *jemalloc);
/* The arenas' rows up to index count - 1. */
bool jemalloc_make_arenas(struct jemalloc_heap *jemalloc, size_t count);
bool jemalloc_make_bins(struct jemalloc_heap *jemalloc);
/* Which threads are inside; before the tcaches. */
bool jemalloc_note_flux(struct jemalloc_heap *jemalloc);
bool jemalloc_find_tcaches(struct jemalloc_heap *jemalloc);
/* Extents out of the runs; needs the arenas. */
bool jemalloc_make_extents(struct jemalloc_heap *jemalloc);
bool jemalloc_add_extent(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end, uint32_t arena,
                         enum karst_extent_kind kind);
/* Gives it its name and hands it to the session, or closes it; false: out of memory. */
bool jemalloc_hand_over(struct karst *session, struct jemalloc_heap *jemalloc, struct karst_error *error);
bool jemalloc_add_cached(struct jemalloc_heap *jemalloc, uint64_t address, uint32_t bin);

/* Reads a bin of a cache: its row, if it is not empty, and the blocks in it. items: room for
 * JEMALLOC_STACK_MAX. In the order of the bins. False: out of memory. */
bool jemalloc_load_cache_bin(struct jemalloc_heap *jemalloc, struct jemalloc_tcache *tcache, uint32_t index,
                             uint64_t *items);
/* Where the bin of a cache is that has this row of heap.bins; 0: it can't be told. */
uint64_t jemalloc_cache_bin(struct jemalloc_heap *jemalloc, uint32_t row);

#define JEMALLOC_STACK_MAX 8192u /* of one bin: the low 16 bits of its address tell where it ends */

/* The row of the bin that a run's free regions, or an unused run itself, are in; KARST_NONE: none. */
uint32_t jemalloc_bin_of(const struct jemalloc_heap *jemalloc, const struct jemalloc_run *run);

/* ---- what struct karst_allocator asks for, over files ------------------------------------------------ */

bool jemalloc_runs(struct karst_heap *heap, bool (*run)(void *context, const struct karst_page_run *run),
                   void *context, struct karst_error *error);
int jemalloc_figures(struct karst_heap *heap, struct karst_figure *figures, struct karst_error *error);
bool jemalloc_describe(struct karst_heap *heap, const struct karst_block *block, struct karst_facts *facts,
                       struct karst_error *error);
void jemalloc_explain(struct karst_heap *heap, const struct karst_block *block, uint64_t address, char *text,
                      size_t size);
bool jemalloc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error);

#endif
