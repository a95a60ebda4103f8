/* glibc malloc: what its parts share. glibc_layout.c has the layouts of its versions as data, glibc_find.c
 * finds the heaps (glibc_find.h), glibc_extents.c their memory, glibc_mapped.c mapped blocks, glibc_bins.c
 * the bins, glibc_tcache.c the threads' caches; glibc_lists.c follows lists, glibc_walk.c walks,
 * glibc_check.c checks (glibc_check.h). Facts: docs/allocators/glibc.md. */
#ifndef KARST_ALLOCATOR_GLIBC_H
#define KARST_ALLOCATOR_GLIBC_H

#include "session.h"

/* malloc/malloc.c, all versions of 64-bit glibc. */
#define GLIBC_PREV_INUSE        1u
#define GLIBC_IS_MMAPPED        2u
#define GLIBC_NON_MAIN_ARENA    4u
#define GLIBC_FLAGS             7u
#define GLIBC_HEADER            16u /* prev_size and size; what the program holds is this far behind the chunk */
#define GLIBC_MIN_CHUNK         32u
#define GLIBC_ALIGN             16u
#define GLIBC_BINS              127u /* bin 1: unsorted, 2..63: small, 64..126: large; 0 does not exist */
#define GLIBC_FASTBINS          10u
#define GLIBC_NONCONTIGUOUS     2u  /* malloc_state.flags */
#define GLIBC_FENCEPOST         16u /* size of the artificial chunks at the end of a closed segment */
#define GLIBC_HEAP_ALIGNMENT    (64ull << 20) /* HEAP_MAX_SIZE without huge pages, all 64-bit versions */
#define GLIBC_TCACHE_SMALL_BINS 64u

struct glibc_layout {
    uint16_t first, last; /* minor versions it is for */
    /* malloc_state */
    uint16_t state_size, state_mutex, state_flags;
    uint16_t state_fastbins; /* 0: has none */
    uint16_t state_top, state_last_remainder, state_bins, state_next, state_attached;
    uint16_t state_system_mem, state_max_system_mem;
    /* malloc_par */
    uint16_t par_size, par_top_pad, par_mmap_threshold, par_arena_test, par_n_mmaps, par_n_mmaps_max;
    uint16_t par_mmapped_mem, par_max_mmapped_mem, par_sbrk_base;
    uint16_t par_tcache_bins, par_tcache_max_bytes, par_tcache_count;
    uint16_t heap_info_size;
    /* tcache_perthread_struct: 16-bit counts at 0, then the entries */
    uint16_t tcache_size, tcache_bins, tcache_entries;
    bool tcache_counts_slots; /* counts[] says how many more it takes, not how many it has */
    bool tcache_key_random;   /* else the key is the address of the tcache */
    bool safe_linking;
    bool mapped_size_excludes_header; /* an mmapped chunk's size leaves its header out */
};

#define GLIBC_NEWEST_MINOR 44u /* the last that the table was made for */

extern const struct glibc_layout glibc_layouts[];
extern const size_t glibc_layout_count;

/* The row for 2.minor; NULL: not known. */
const struct glibc_layout *glibc_layout_for(unsigned minor);
/* Overwrites what the module's debug info tells; the number of members it told. */
unsigned glibc_layout_from_debug_info(struct karst_target *target, struct karst_module *module,
                                      struct glibc_layout *layout);
/* malloc/malloc.c largebin_index_64(), smallbin_index(): the bin for a chunk of so many bytes, 2..126. */
unsigned glibc_bin_index(uint64_t chunk_size);
/* The smallest chunk size of bin index (2..126); of 127: beyond the last. */
uint64_t glibc_bin_smallest(unsigned index);
/* The tcache bin for a chunk size; may be beyond what the layout has. */
unsigned glibc_tcache_index(const struct glibc_layout *layout, uint64_t chunk_size);
void glibc_tcache_range(const struct glibc_layout *layout, unsigned index, uint64_t *smallest,
                        uint64_t *largest);

struct glibc_arena {
    uint64_t address;
    uint64_t top;
    uint64_t top_size;
    uint64_t top_change; /* what its header says more than that, modulo 2^64: a thread is about to write it */
    uint64_t last_remainder;
    uint64_t system_mem;
    uint32_t flags;
    uint32_t first_bin;    /* of its rows in heap.bins: unsorted, small, large, then fastbins */
    bool uninitialized;    /* nobody allocated from it yet, or state_missing: it has no lists to follow */
    bool state_missing;    /* its malloc_state is not in the target: what is known is what its chunks tell */
    bool fastbins_unknown; /* state_missing, or memory is missing that they lead through */
    bool top_damaged;      /* top or its size is out of any segment; or it is not known */
    bool in_flux;          /* a thread was at work in it */
    bool lists_cut;        /* found by check: memory that its bins lead through is missing */
    bool outside_ring;     /* found by its heap, not in the ring of arenas */
    uint64_t bad_heap;     /* a heap whose header is overwritten; 0: none */
    /* A heap that does not lead to the one before it, which that is, and where it leads; 0: none. */
    uint64_t broken_link, lost_heap, link;
};

/* heap_info, malloc/arena.c, in all versions: what stands at the start of a heap of a thread arena. */
struct glibc_heap_header {
    uint64_t address;
    uint64_t arena, previous, size; /* as they stand there */
    bool used;                      /* the heap is an extent by now, or cannot be one */
    bool led_to;                    /* another one's header leads to it */
};

struct glibc_tcache {
    uint64_t address;   /* of the struct, as the thread's pointer has it */
    int64_t tid;        /* -1: its thread is gone; 0: whose it is is not known */
    uint32_t first_bin; /* of its rows in heap.bins, one for each of its lists that is not empty */
    uint32_t bins;
    bool in_flux; /* its thread was inside malloc */
};

/* A chunk in a tcache or fastbin, or (bin KARST_NONE) a tcache struct itself. */
struct glibc_cached {
    uint64_t chunk;
    uint32_t bin;
};

/* Chunks of an extent from which a walk may begin, in address order; glibc_waypoints.c. */
struct glibc_waypoints {
    uint64_t *chunks;
    size_t count, capacity;
    uint64_t spacing; /* bytes between them, 0: not used yet */
    uint64_t next;    /* from where on the next one is left */
};

struct glibc_heap {
    struct karst_heap heap;
    struct glibc_layout layout;
    struct karst_module *module;
    uint64_t main_arena;
    uint64_t par; /* mp_; 0: not found */
    uint64_t sbrk_base, n_mmaps, mmapped_mem, mmap_threshold, top_pad, tcache_count, tcache_max_bytes;
    struct glibc_arena *arenas; /* beside heap.arenas, [0] is the main one */
    bool ring_broken;
    bool data_missing;    /* its variables, main_arena and mp_ among them, are not in the target */
    bool tcaches_unknown; /* memory is missing, and with it (parts of) the caches of some threads */
    struct glibc_heap_header *headers; /* by address; see glibc_load_heap_headers() */
    size_t header_count;
    bool headers_loaded;
    struct glibc_tcache *tcaches;
    size_t tcache_count_found;
    int64_t tcache_tls_offset;   /* from the thread pointer; 0: not found */
    uint64_t tcache_key;         /* 0: unknown */
    struct glibc_cached *cached; /* sorted by chunk */
    size_t cached_count, cached_capacity;
    uint64_t *unsorted; /* chunks in unsorted lists, sorted; filled by load_bins */
    size_t unsorted_count;
    bool bins_loaded;
    uint64_t *anchors; /* chunk starts that lists know, sorted; made at the first damage */
    size_t anchor_count;
    bool anchors_loaded;
    struct glibc_waypoints *waypoints; /* of each extent; NULL: none yet */
    struct karst_window lists;         /* for pointer chasing */
};

/* The first of count sorted addresses that is not below address; count: none. */
static inline size_t glibc_first_from(const uint64_t *sorted, size_t count, uint64_t address) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (sorted[middle] < address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* ---- reading ---------------------------------------------------------------------------------------- */

static inline uint64_t glibc_word(const uint8_t *bytes) {
    uint64_t word;
    __builtin_memcpy(&word, bytes, sizeof word);
    return word;
}

/* A word through the window for lists; false: not there. */
bool glibc_read(struct glibc_heap *glibc, uint64_t address, uint64_t *word);
/* Where to look next behind at, on multiples of step (a power of two) and up to end: memory that is missing
 * or was never touched is passed as a whole, however much a damaged or sparse target says there is. */
uint64_t glibc_next_place(struct karst_window *window, uint64_t at, uint64_t end, uint64_t step);
/* Is there memory at an address, but not in the target? */
bool glibc_is_missing(struct karst_target *target, uint64_t address);
/* The arena extent that holds [chunk, chunk + 32), NULL: outside all. */
const struct karst_extent *glibc_chunk_extent(const struct glibc_heap *glibc, uint64_t chunk);
/* Does a chain of chunks begin at address, in an arena's extent? */
bool glibc_begins_chain(struct glibc_heap *glibc, const struct karst_extent *extent, uint64_t address);

/* ---- lists ------------------------------------------------------------------------------------------ */

enum glibc_list_end {
    GLIBC_LIST_END,    /* came to its end */
    GLIBC_LIST_CYCLE,  /* came back to a node it had met: link */
    GLIBC_LIST_BAD,    /* link leads nowhere a chunk can be */
    GLIBC_LIST_STOPPED /* the visitor had enough */
};

/* How following a list ended: at the word that holds the bad link, with the value it has. */
struct glibc_list_result {
    enum glibc_list_end end;
    uint64_t count; /* nodes visited */
    uint64_t from;  /* node (chunk) whose link is bad; 0: the head's */
    uint64_t link;  /* the chunk it leads to, revealed */
    uint64_t raw;   /* the word as it stands */
};

/* One node of a list, in list order; size is the chunk's size word. false ends it. */
typedef bool glibc_list_fn(void *context, uint64_t chunk, uint64_t size_word);

/* Does the list go on in memory that is missing? Then it is no damage that it could not be followed. */
bool glibc_goes_on_missing(const struct glibc_heap *glibc, const struct glibc_list_result *result);

/* Follow one fastbin, tcache bin or doubly linked bin. Nodes are visited only while they lie on chunk
 * alignment inside the heap's extents (tcache: also in mapped blocks). */
struct glibc_list_result glibc_follow_fastbin(struct glibc_heap *glibc, const struct glibc_arena *arena,
                                              unsigned index, glibc_list_fn *visit, void *context);
struct glibc_list_result glibc_follow_tcache(struct glibc_heap *glibc, const struct glibc_tcache *tcache,
                                             unsigned index, glibc_list_fn *visit, void *context);
/* backwards: along bk instead of fd. */
struct glibc_list_result glibc_follow_bin(struct glibc_heap *glibc, const struct glibc_arena *arena,
                                          unsigned index, bool backwards, glibc_list_fn *visit,
                                          void *context);
/* The chunk that is a bin's own head. */
uint64_t glibc_bin_head(const struct glibc_heap *glibc, const struct glibc_arena *arena, unsigned index);
/* Entries that tcache's bin index says it has. */
uint64_t glibc_tcache_said(struct glibc_heap *glibc, const struct glibc_tcache *tcache, unsigned index);

/* Visits a node of a list (context: struct glibc_collect): counts it at its bin, adds it to the cached set.
 */
struct glibc_collect {
    struct glibc_heap *glibc;
    uint32_t bin;
    bool out_of_memory;
};
bool glibc_collect_node(void *context, uint64_t chunk, uint64_t size_word);

/* Chunks in a growing array. */
struct glibc_addresses {
    uint64_t *items;
    size_t count, capacity;
    bool out_of_memory;
};
/* Visits a node of a list: adds it to the struct glibc_addresses that context points to. */
bool glibc_add_address(void *context, uint64_t chunk, uint64_t size_word);
void glibc_sort_addresses(struct glibc_addresses *list);
/* The first chunk in [from, to) that a list knows, 0: none. */
uint64_t glibc_anchor_between(struct glibc_heap *glibc, uint64_t from, uint64_t to);
/* They are looked for anew when they are next needed: not all lists were known before. */
void glibc_forget_anchors(struct glibc_heap *glibc);

/* ---- walking ---------------------------------------------------------------------------------------- */

/* Could a chunk that is in use by the header behind it be in a list that is missing? Where caches of threads
 * are not all known, or its arena's fastbins are missing; by its first word, which would be the list's link.
 */
bool glibc_may_be_cached(struct glibc_heap *glibc, uint32_t arena, uint64_t chunk, uint64_t size);

/* One chunk as the walk met it. */
struct glibc_chunk {
    uint64_t address;
    uint64_t size_word;
    uint64_t size;
    uint64_t next_size_word; /* 0: next is out of the extent */
    uint64_t next_prev_size;
    enum karst_state state;
    uint32_t bin;
    uint8_t flags;
    uint64_t damage_at; /* state UNKNOWN: the chunk whose header makes no sense; 0: the bytes are missing */
    uint64_t previous;  /* the chunk before it; 0: none */
};

/* Streams the chunks of an arena's extent: the one walk, under the block stream and under check. */
bool glibc_walk_chunks(struct glibc_heap *glibc, const struct karst_extent *extent,
                       bool (*chunk)(void *context, const struct glibc_chunk *chunk), void *context);

/* An extent's waypoints; NULL: none are kept of it. */
struct glibc_waypoints *glibc_waypoints_of(struct glibc_heap *glibc, const struct karst_extent *extent);
/* Where a walk may begin to meet the block that holds address, and the one before it; 0: at the extent's
 * start. */
uint64_t glibc_waypoint_before(const struct glibc_waypoints *waypoints, uint64_t address);
/* Remembers a chunk behind all others that are remembered, at waypoints->next or behind. */
void glibc_leave_waypoint(struct glibc_waypoints *waypoints, uint64_t chunk);
void glibc_waypoints_close(struct glibc_heap *glibc);

/* ---- finding, over files; each false: out of memory, or what error says ------------------------------ */

/* What the main arena, and a thread arena, are made of; needs mp_ and the arenas read. */
bool glibc_add_main_extents(struct glibc_heap *glibc, struct karst_error *error);
bool glibc_add_thread_heaps(struct glibc_heap *glibc, uint32_t index);
/* The same of arenas whose state is missing: by their chunks, and their heaps' headers. */
bool glibc_add_break_by_chunks(struct glibc_heap *glibc);
bool glibc_add_heaps_by_headers(struct glibc_heap *glibc, uint32_t index);
/* Finds the top of an arena whose state is missing, if it is in extent: the chunk that ends with it. */
void glibc_find_top(struct glibc_heap *glibc, const struct karst_extent *extent);
/* Holds an arena's top against where it ought to end. */
bool glibc_settle_top(struct glibc_heap *glibc, uint32_t index, uint64_t end);
/* Looks for heap headers wherever one may stand, once: glibc->headers. They are candidates, each names an
 * arena by an address that one can have. */
bool glibc_load_heap_headers(struct glibc_heap *glibc);
/* The blocks with a mapping of their own, of all libcs of the process; needs their arenas' extents. */
bool glibc_add_mapped_extents(struct glibc_heap **heaps, size_t count, struct karst_error *error);
#define GLIBC_CHOOSE_MOST 4096u
/* Chooses wanted of count blocks that make up bytes, all multiples of what the sizes, sorted from the largest
 * down, are counted in; sets chosen[i], false before, of each. *found: there is such a choice, and it was met
 * within some 50 ms; never for more than GLIBC_CHOOSE_MOST blocks. false: out of memory. */
bool glibc_choose_blocks(const uint64_t *sizes, size_t count, size_t wanted, uint64_t bytes, bool *chosen,
                         bool *found);
/* Adds memory to the heap; nothing when it is empty. false: out of memory. */
bool glibc_add_extent(struct glibc_heap *glibc, uint64_t start, uint64_t end, uint32_t arena,
                      enum karst_extent_kind kind);
/* The end of the readable private memory that goes on without a gap from address; 0: none there. */
uint64_t glibc_run_end(const struct karst_target *target, uint64_t address);
/* The chunk of the block that is mapped from start on and ends at or before limit, 0: there is none; *total:
 * its bytes from start on. thorough: also where no alignment explains it, at a look into each page. */
uint64_t glibc_mapped_chunk(struct glibc_heap *glibc, uint64_t start, uint64_t limit, bool thorough,
                            uint64_t *total);
void glibc_sort_extents(struct glibc_heap *glibc);
/* Does any extent touch [start, end)? *behind: where the one that does ends. */
bool glibc_overlaps_extent(const struct glibc_heap *glibc, uint64_t start, uint64_t end, uint64_t *behind);
/* Room for so many more rows of bins, all zeros; NULL: out of memory. */
struct karst_bin *glibc_add_bins(struct glibc_heap *glibc, size_t count);
/* Its kind, and its name: kind, smallest size and whose it is. */
void glibc_name_bin(struct karst_bin *bin, const char *kind, const char *of);
/* The rows of an arena's bins, and what its fastbins hold. */
bool glibc_add_arena_bins(struct glibc_heap *glibc, uint32_t index);
/* Does what stands in a chunk look like a thread's cache? */
bool glibc_may_be_tcache(struct glibc_heap *glibc, uint64_t chunk);
/* The threads' caches and what they hold; needs all extents. */
bool glibc_find_tcaches(struct glibc_heap *glibc);

/* ---- live blocks swallowed by a neighbour, glibc_swallow.c ---- */

struct glibc_hunt;
/* NULL: out of memory. Belongs to the caller until glibc_hunt_close(). */
struct glibc_hunt *glibc_hunt_open(struct glibc_heap *glibc);
/* Looks into one chunk of the walk. */
void glibc_look_inside(struct glibc_hunt *hunt, bool main_arena, const struct glibc_chunk *chunk);
/* Looks for pointers at what was seen, if anything was, and adds findings. false: interrupted, or no memory.
 */
bool glibc_hunt_finish(struct glibc_hunt *hunt, struct karst_findings *findings, struct karst_error *error);
void glibc_hunt_close(struct glibc_hunt *hunt);

/* ---- the ops, over files ---------------------------------------------------------------------------- */
bool glibc_find(struct karst *session, struct karst_error *error);
bool glibc_walk(struct karst_heap *heap, const struct karst_extent *extent, struct karst_sink *sink,
                struct karst_error *error);
bool glibc_walk_near(struct karst_heap *heap, const struct karst_extent *extent, uint64_t address,
                     struct karst_sink *sink, struct karst_error *error);
bool glibc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error);
bool glibc_load_bins(struct karst_heap *heap, struct karst_error *error);
void glibc_close(struct karst_heap *heap);
/* Adds to the cached set; false: out of memory. */
bool glibc_add_cached(struct glibc_heap *glibc, uint64_t chunk, uint32_t bin);
void glibc_sort_cached(struct glibc_heap *glibc);
/* The index of the first entry of the sorted set at or above chunk; cached_count: there is none. */
size_t glibc_cached_from(const struct glibc_heap *glibc, uint64_t chunk);

#endif
