/* What an allocator has to offer: find its heaps in a target, stream their blocks, name its arenas and
 * bins, check itself. One file per allocator; adding one: docs/adding-an-allocator.md. */
#ifndef KARST_ALLOCATOR_ALLOCATOR_H
#define KARST_ALLOCATOR_ALLOCATOR_H

#include "facts.h"
#include "finding.h"
#include "karst.h"
#include "target.h"

struct karst_heap;
struct karst_sink;

enum karst_extent_kind {
    KARST_EXTENT_BRK,     /* the part of the address space that sbrk grows */
    KARST_EXTENT_HEAP,    /* a heap of a thread arena */
    KARST_EXTENT_SEGMENT, /* memory from mmap or a foreign sbrk that an arena uses as its heap */
    KARST_EXTENT_MAPPED,  /* one block in a mapping of its own */
    KARST_EXTENT_PAGES,   /* cut into page runs: slabs, large blocks, unused pages */
    KARST_EXTENT_OWN,     /* the allocator's own: headers, tables */
    KARST_EXTENT_KINDS
};

/* "brk", "heap", "segment", "mapped", "pages", "own" */
const char *karst_extent_kind_name(enum karst_extent_kind kind);

/* Memory that an allocator got from the system and tiles with blocks: [start, end). */
struct karst_extent {
    uint64_t start;
    uint64_t end;
    uint32_t arena; /* index in the heap's table, KARST_NONE for mapped blocks */
    uint16_t heap;  /* index in the session's table */
    uint8_t kind;
    /* In the session's table: 1 + the index there of the extent of another heap that it lies in; 0: in none.
     */
    size_t outer;
};

struct karst_arena {
    char name[32]; /* "main", "thread 1", ...; what --arena takes, besides the index and address */
    uint64_t address;
    uint64_t system_bytes; /* by the allocator's own account */
    uint64_t max_system_bytes;
    uint64_t attached_threads;
    uint32_t extents;
    bool locked; /* somebody was inside: what follows may be in between two states */
    /* What it keeps of itself is not in the target: its account, threads and lists are not known. */
    bool state_missing;
};

/* A list or cache of blocks that were freed. */
struct karst_bin {
    char name[48];              /* unique in its heap: "tcache 0x40 thread 1234", "small 0x40 main" */
    char kind[12];              /* "tcache", "fast", "unsorted", "small", "large" */
    uint32_t arena;             /* KARST_NONE: belongs to no arena */
    int64_t owner;              /* thread id, for a thread's cache; 0: none, -1: a thread that is gone */
    uint64_t smallest, largest; /* sizes of the blocks it takes, as in karst_block.size */
    bool cache;                 /* its blocks are KARST_STATE_CACHED, else KARST_STATE_FREE */
    bool trimmed; /* the allocator's trim gives its blocks back to the heap first (glibc's fastbins) */
    /* Filled by load_bins(). */
    uint64_t blocks;
    uint64_t bytes;
    bool damaged; /* the list could not be followed to its end: blocks and bytes are what was met */
};

/* A page run: whole pages that an allocator keeps together. Cut into regions of one size (jemalloc's runs and
 * slabs, pymalloc's pools), one large block, or unused. */
struct karst_page_run {
    uint64_t address; /* of its first byte, header included */
    uint64_t size;
    uint64_t region_size;        /* 0: unused, or the allocator's own */
    uint64_t first_region;       /* address */
    uint64_t header;             /* where its count and bitmap of free regions are; 0: none, or elsewhere */
    uint64_t regions;            /* 1: a large block */
    uint64_t live, cached, free; /* regions: with own these add up to regions, unless it is damaged */
    uint64_t own;                /* regions that the allocator has for itself: the memory of caches */
    uint32_t arena;              /* KARST_NONE: none */
    uint32_t bin;                /* the row of its class in the heap's bins, KARST_NONE: none */
    uint16_t heap;
    bool damaged;     /* its header or bitmap makes no sense: see check */
    const char *kind; /* "slab", "run", "pool", "large", "dirty" ...: static text */
};

/* A total in the allocator's own terms, for comparison with what it says of itself. */
struct karst_figure {
    const char *name; /* static: "allocated", "free_pools" ...; the JSON key */
    uint64_t value;
    bool is_count; /* else bytes */
};
#define KARST_FIGURES_MAX 16

struct karst_allocator {
    const char *name;
    /* Finds every instance in the session's target and hands each to karst_session_add_heap(). Finding
     * none is no error. */
    bool (*find)(struct karst *session, struct karst_error *error);
    /* Streams the blocks of one of the heap's extents: they tile [extent->start, extent->end) without a
     * gap, damaged or missing parts as KARST_STATE_UNKNOWN. Free blocks carry their bin only if
     * load_bins() was called before. false: error, or the sink had enough (error->code is then NONE). */
    bool (*walk)(struct karst_heap *heap, const struct karst_extent *extent, struct karst_sink *sink,
                 struct karst_error *error);
    /* As walk, for who looks for the block that holds address: it may leave out blocks at the extent's start,
     * as long as the one before that block is met. NULL: it has no faster way than walk. */
    bool (*walk_near)(struct karst_heap *heap, const struct karst_extent *extent, uint64_t address,
                      struct karst_sink *sink, struct karst_error *error);
    /* Follows all lists and fills blocks and bytes of each bin. */
    bool (*load_bins)(struct karst_heap *heap, struct karst_error *error);
    /* Adds what is wrong to findings, and the number of blocks looked at to findings->blocks_checked. */
    bool (*check)(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error);
    /* Bytes that a block for a request of so many bytes takes, header and rounding included; 0: no
     * request of that size can be met. *mapped: it would get a mapping of its own. */
    uint64_t (*block_size)(struct karst_heap *heap, uint64_t request, bool *mapped);
    /* The bytes [*start, *end) that a trim by the program (malloc_trim(0)) returns to the system out of
     * a coalesced stretch of unused memory [block_start, block_start + size) in extent; is_top: it
     * reaches the unused end. false: none. NULL: the allocator has no trim. */
    bool (*trim)(struct karst_heap *heap, const struct karst_extent *extent, uint64_t block_start,
                 uint64_t size, bool is_top, uint64_t *start, uint64_t *end);
    /* What can be said about one block beyond its struct: header words, links, key. */
    bool (*describe)(struct karst_heap *heap, const struct karst_block *block, struct karst_facts *facts,
                     struct karst_error *error);
    /* Streams the heap's page runs in address order; run returning false ends it, which is no error. NULL: it
     * has none. Live and cached are told apart only if load_bins() was called before. */
    bool (*runs)(struct karst_heap *heap, bool (*run)(void *context, const struct karst_page_run *run),
                 void *context, struct karst_error *error);
    /* Fills figures and returns how many, at most KARST_FIGURES_MAX, or -1: error. NULL: it has none. */
    int (*figures)(struct karst_heap *heap, struct karst_figure *figures, struct karst_error *error);
    /* Why address, which lies in block, is no block's start: one line, "" if there is nothing to say. NULL:
     * the same always. */
    void (*explain)(struct karst_heap *heap, const struct karst_block *block, uint64_t address, char *text,
                    size_t size);
    void (*close)(struct karst_heap *heap);
};

/* The first member of each allocator's own struct. Tables belong to the heap and stay as they are until
 * it is closed. */
struct karst_heap {
    const struct karst_allocator *allocator;
    struct karst *session;
    struct karst_target *target;
    uint16_t index;           /* in the session's table */
    char name[40];            /* "glibc", "glibc #2 (libc_malloc_debug.so.0)" */
    char version[40];         /* "2.36", "2.35 to 2.41" */
    struct karst_facts facts; /* for `info`: where roots and layouts came from, what can't be told */
    struct karst_arena *arenas;
    size_t arena_count;
    struct karst_bin *bins;
    size_t bin_count;
    struct karst_extent *extents; /* in address order */
    size_t extent_count;
    bool in_flux; /* a thread was inside the allocator, or the target is not stopped */
};

/* All allocators, NULL at the end. They are shown in this order and looked for from the last one back: who
 * gets its memory from another comes behind it, so that the other need not look for its blocks in there. */
extern const struct karst_allocator *const karst_allocators[];
extern const struct karst_allocator karst_glibc;
extern const struct karst_allocator karst_jemalloc;
extern const struct karst_allocator karst_pymalloc;

/* ---- the stream ------------------------------------------------------------------------------------- */

#define KARST_REGIONS_MAX   512u
#define KARST_REGIONS_WORDS (KARST_REGIONS_MAX / 64)

/* Equal blocks side by side in a page run, for who only counts: one call for a run instead of a block for
 * each of its regions. A bit a region, from the lowest of the first word on; what is in none of the sets is
 * live. Words beyond those that count needs are not set. */
struct karst_regions {
    uint64_t start, size; /* of the first one */
    uint32_t count;       /* at most KARST_REGIONS_MAX */
    uint8_t flags;        /* of the first one, as in karst_block; the others have KARST_BLOCK_REGION alone */
    uint64_t free[KARST_REGIONS_WORDS], cached[KARST_REGIONS_WORDS], own[KARST_REGIONS_WORDS];
};

/* A consumer of blocks; the first member of each analysis's own struct. Returning false ends the walk. */
struct karst_sink {
    bool (*extent)(struct karst_sink *sink, const struct karst_extent *extent); /* may be NULL */
    bool (*blocks)(struct karst_sink *sink, const struct karst_block *blocks, size_t count);
    /* Regions smaller than regions_below, in their place between the blocks; allocators need not use it. May
     * be NULL: all come as blocks. */
    bool (*regions)(struct karst_sink *sink, const struct karst_regions *regions);
    uint64_t regions_below;
};

#define KARST_BATCH 256

/* Blocks gathered for a sink; for the use of walkers. */
struct karst_batch {
    struct karst_sink *sink;
    size_t count;
    struct karst_block blocks[KARST_BATCH];
};

static inline bool karst_batch_flush(struct karst_batch *batch) {
    size_t count = batch->count;
    batch->count = 0;
    return count == 0 || batch->sink->blocks(batch->sink, batch->blocks, count);
}

/* Room for one more block, NULL: the sink had enough. */
static inline struct karst_block *karst_batch_next(struct karst_batch *batch) {
    if (batch->count == KARST_BATCH && !karst_batch_flush(batch)) {
        return NULL;
    }
    return &batch->blocks[batch->count++];
}

#endif
