/* glibc malloc: the walk over chunks in address order, and the stream of blocks made of it. Written from the
 * published layout (malloc/malloc.c, malloc/arena.c of glibc 2.31 to 2.43); see docs/allocators/glibc.md. */
#include "glibc.h"

/* A chain of so many sane headers is taken for the real one after damage. */
#define RESYNC_STEPS 32
#define WALK_WINDOW  (1u << 20)

/* ---- reading ---------------------------------------------------------------------------------------- */

bool glibc_read(struct glibc_heap *glibc, uint64_t address, uint64_t *word) {
    const uint8_t *bytes = karst_window_at(&glibc->lists, address, sizeof *word);
    if (!bytes) {
        return false;
    }
    *word = glibc_word(bytes);
    return true;
}

uint64_t glibc_next_place(struct karst_window *window, uint64_t at, uint64_t end, uint64_t step) {
    bool there = karst_window_at(window, at, 1) != NULL;
    uint64_t empty =
        there ? karst_target_untouched(window->target, at, end) : karst_target_missing(window->target, at);
    uint64_t next = empty < end - at ? at + empty : end;
    next = next > at ? next & ~(step - 1) : at;
    return next > at ? next : at <= UINT64_MAX - step ? (at & ~(step - 1)) + step : end;
}

const struct karst_extent *glibc_chunk_extent(const struct glibc_heap *glibc, uint64_t chunk) {
    const struct karst_extent *extent = karst_heap_extent(&glibc->heap, chunk);
    return extent && extent->kind != KARST_EXTENT_MAPPED && extent->end - chunk >= GLIBC_MIN_CHUNK ? extent
                                                                                                   : NULL;
}

/* Is chunk, that has the bin index of arena, linked in a list whose neighbours point back? */
static bool is_linked(struct glibc_heap *glibc, uint64_t chunk) {
    uint64_t fd, bk, back, forth;
    return glibc_read(glibc, chunk + 16, &fd) && glibc_read(glibc, chunk + 24, &bk) && fd && bk &&
           fd % GLIBC_ALIGN == 0 && bk % GLIBC_ALIGN == 0 && glibc_read(glibc, fd + 24, &back) &&
           back == chunk && glibc_read(glibc, bk + 16, &forth) && forth == chunk;
}

/* Where the first chunk of an arena's extent begins; what is before it is metadata. */
static uint64_t first_chunk(const struct glibc_heap *glibc, const struct karst_extent *extent) {
    if (extent->kind != KARST_EXTENT_HEAP) {
        return (extent->start + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1);
    }
    uint64_t first = extent->start + glibc->layout.heap_info_size;
    if (glibc->arenas[extent->arena].address == first) {
        first += glibc->layout.state_size;
    }
    return (first + GLIBC_ALIGN - 1) & ~(uint64_t)(GLIBC_ALIGN - 1);
}

/* ---- the walk --------------------------------------------------------------------------------------- */

struct walk {
    struct glibc_heap *glibc;
    const struct karst_extent *extent;
    struct karst_window window;
    uint64_t limit; /* where chunks end: top, or the end of the extent */
    uint64_t top;   /* in this extent, else 0 */
    uint64_t end;
    bool main_arena;
    bool top_damaged;
    bool in_flux;       /* a thread was at work in the arena */
    bool lists_missing; /* lists that chunks in use may be in, by the headers behind them */
    size_t cached;      /* the next entry of the cached set */
};

typedef bool chunk_fn(void *context, const struct glibc_chunk *chunk);

/* from: where it is to begin, 0: at the start of the extent. */
static void walk_open(struct walk *walk, struct glibc_heap *glibc, const struct karst_extent *extent,
                      uint64_t from) {
    const struct glibc_arena *arena = &glibc->arenas[extent->arena];
    *walk = (struct walk){.glibc = glibc,
                          .extent = extent,
                          .end = extent->end,
                          .in_flux = arena->in_flux || glibc->heap.in_flux};
    karst_window_open(&walk->window, glibc->heap.target, WALK_WINDOW);
    walk->main_arena = extent->arena == 0;
    walk->top_damaged = arena->top_damaged;
    walk->lists_missing = arena->fastbins_unknown || glibc->tcaches_unknown;
    bool holds_top = !arena->top_damaged && arena->top >= extent->start && arena->top < extent->end;
    walk->top = holds_top ? arena->top : 0;
    walk->limit = holds_top ? arena->top : extent->end;
    walk->cached = glibc_cached_from(glibc, from ? from : extent->start);
}

/* Is word the size word of a chunk at address that can stand here? Fenceposts are not. */
static inline bool sane(const struct walk *walk, uint64_t address, uint64_t word) {
    uint64_t size = word & ~(uint64_t)GLIBC_FLAGS;
    return size >= GLIBC_MIN_CHUNK && size <= walk->limit - address && size % GLIBC_ALIGN == 0 &&
           !(word & GLIBC_IS_MMAPPED);
}

/* The artificial chunks that close a segment, sysmalloc(): one of 16 bytes and a size of 0 at the very end of
 * a thread arena's heap, two of 16 bytes elsewhere. The first loses its flag when the chunk before it is
 * free. The bytes of what stands here, 0: no such thing. */
static uint64_t fencepost(struct walk *walk, uint64_t address, uint64_t word) {
    uint64_t size = word & ~(uint64_t)GLIBC_FLAGS;
    if (walk->extent->kind != KARST_EXTENT_HEAP) {
        return (word & ~(uint64_t)GLIBC_PREV_INUSE) == GLIBC_FENCEPOST ? size : 0;
    }
    if (size > GLIBC_FENCEPOST || walk->end - address != size + GLIBC_FENCEPOST) {
        return 0;
    }
    const uint8_t *bytes = karst_window_at(&walk->window, address + size + 8, 8);
    return bytes && glibc_word(bytes) == GLIBC_PREV_INUSE ? size + GLIBC_FENCEPOST : 0;
}

/* Could the chunk at address with this size word begin a chain of chunks? Follows it for a while. */
static bool begins_chain(struct walk *walk, uint64_t address, uint64_t word) {
    uint64_t expected = walk->main_arena ? 0 : GLIBC_NON_MAIN_ARENA;
    for (unsigned step = 0; step < RESYNC_STEPS; step++) {
        if (address == walk->top || address == walk->end) {
            return step > 0;
        }
        if (fencepost(walk, address, word)) {
            return step > 0;
        }
        if (!sane(walk, address, word)) {
            return false;
        }
        uint64_t size = word & ~(uint64_t)GLIBC_FLAGS;
        const uint8_t *bytes = karst_window_at(&walk->window, address + size, GLIBC_HEADER);
        if (!bytes) {
            return step > 0;
        }
        uint64_t next_word = glibc_word(bytes + 8);
        bool in_use = next_word & GLIBC_PREV_INUSE;
        if (!in_use && glibc_word(bytes) != size) {
            return false;
        }
        /* free() leaves the flag as it was; only chunks cut from bins or top lose it. */
        if (in_use && (word & GLIBC_NON_MAIN_ARENA) != expected) {
            return false;
        }
        address += size;
        word = next_word;
    }
    return true;
}

/* Does the free chunk before at begin, by the size that stands there, at bad? Where a thread was at work in
 * the arena it may have been split or merged just now: then further back will do. */
static bool reaches_back(const struct walk *walk, uint64_t at, uint64_t bad, uint64_t size) {
    return size == at - bad || (walk->in_flux && size > at - bad && size <= at - walk->extent->start);
}

/* The first place at or behind from where the chain of chunks goes on, walk->end if there is none. bad is
 * the chunk whose header is no good. */
static uint64_t resync(struct walk *walk, uint64_t bad, uint64_t from) {
    const uint64_t limit = walk->limit, page = walk->glibc->heap.target->page_size;
    for (uint64_t at = from; at < limit; at += GLIBC_ALIGN) {
        const uint8_t *bytes = karst_window_at(&walk->window, at, GLIBC_HEADER);
        if (!bytes || (at % page == 0 && glibc_word(bytes + 8) == 0)) {
            at = glibc_next_place(&walk->window, at, limit, GLIBC_ALIGN) - GLIBC_ALIGN;
            continue;
        }
        uint64_t word = glibc_word(bytes + 8);
        if (!sane(walk, at, word)) {
            continue;
        }
        if (!(word & GLIBC_PREV_INUSE) && !reaches_back(walk, at, bad, glibc_word(bytes))) {
            continue;
        }
        if (begins_chain(walk, at, word)) {
            return at;
        }
    }
    uint64_t anchor = glibc_anchor_between(walk->glibc, from, limit);
    return anchor ? anchor : walk->top ? walk->top : walk->end;
}

/* The state of a chunk whose header and next header are both there and sane. */
static inline void set_state(struct walk *walk, struct glibc_chunk *chunk) {
    struct glibc_heap *glibc = walk->glibc;
    chunk->bin = KARST_NONE;
    while (walk->cached < glibc->cached_count && glibc->cached[walk->cached].chunk < chunk->address) {
        walk->cached++;
    }
    if (walk->cached < glibc->cached_count && glibc->cached[walk->cached].chunk == chunk->address) {
        chunk->bin = glibc->cached[walk->cached].bin;
        chunk->state = chunk->bin == KARST_NONE ? KARST_STATE_METADATA : KARST_STATE_CACHED;
        return;
    }
    chunk->state = KARST_STATE_LIVE;
    if (!(chunk->next_size_word & GLIBC_PREV_INUSE)) {
        /* A cleared bit alone makes no chunk free: a stray zero byte does that too. */
        if (chunk->next_prev_size == chunk->size || is_linked(glibc, chunk->address)) {
            chunk->state = KARST_STATE_FREE;
        }
    }
    if (__builtin_expect(walk->lists_missing, 0) && chunk->state == KARST_STATE_LIVE &&
        glibc_may_be_cached(glibc, walk->extent->arena, chunk->address, chunk->size)) {
        chunk->state = KARST_STATE_UNKNOWN;
        chunk->flags = KARST_BLOCK_UNDECIDED;
    }
}

/* The header behind chunk makes no sense, so its bit tells nothing: ask the lists. */
static void set_state_by_lists(struct walk *walk, struct glibc_chunk *chunk) {
    chunk->next_size_word = GLIBC_PREV_INUSE;
    set_state(walk, chunk);
    bool in_use = chunk->state == KARST_STATE_LIVE || chunk->flags & KARST_BLOCK_UNDECIDED;
    if (in_use && is_linked(walk->glibc, chunk->address)) {
        chunk->state = KARST_STATE_FREE;
        chunk->flags = 0;
    }
}

static struct glibc_chunk unknown_chunk(uint64_t start, uint64_t end, uint64_t damage_at, uint64_t previous) {
    return (struct glibc_chunk){.address = start,
                                .size = end - start,
                                .state = KARST_STATE_UNKNOWN,
                                .bin = KARST_NONE,
                                .damage_at = damage_at,
                                .previous = previous};
}

/* Is the chunk at `at` the one that a thread is just cutting from top, or merging into it? Then one of top
 * and the chunk's own size is still as it was: it reaches to the end of the segment. */
static bool reaches_over_top(const struct walk *walk, uint64_t at, uint64_t word) {
    return walk->in_flux && walk->top && !(word & GLIBC_IS_MMAPPED) &&
           (word & ~(uint64_t)GLIBC_FLAGS) == walk->end - at;
}

/* What to do at a place where no chunk can begin: a fencepost, missing memory or damage. Emits what it
 * skips and returns where to go on; 0: the visitor had enough. */
static uint64_t step_over(struct walk *walk, uint64_t at, uint64_t previous, bool *after_fence,
                          chunk_fn *visit, void *context) {
    const uint8_t *bytes = karst_window_at(&walk->window, at, GLIBC_HEADER);
    uint64_t post = bytes ? fencepost(walk, at, glibc_word(bytes + 8)) : 0;
    if (post && !(*after_fence && post != GLIBC_FENCEPOST)) {
        *after_fence = true;
        struct glibc_chunk chunk = {.address = at,
                                    .size = post,
                                    .size_word = glibc_word(bytes + 8),
                                    .state = KARST_STATE_METADATA,
                                    .bin = KARST_NONE,
                                    .previous = previous};
        return visit(context, &chunk) ? at + post : 0;
    }
    if (bytes && reaches_over_top(walk, at, glibc_word(bytes + 8))) {
        struct glibc_chunk chunk = {.address = at,
                                    .size = walk->top - at,
                                    .size_word = glibc_word(bytes + 8),
                                    .state = KARST_STATE_LIVE,
                                    .bin = KARST_NONE,
                                    .previous = previous};
        return visit(context, &chunk) ? walk->top : 0;
    }
    uint64_t from = at + (*after_fence ? 0 : GLIBC_ALIGN);
    uint64_t next = resync(walk, at, from);
    struct glibc_chunk chunk = unknown_chunk(at, next, bytes && !*after_fence ? at : 0, previous);
    chunk.size_word = bytes ? glibc_word(bytes + 8) : 0;
    chunk.flags = *after_fence ? KARST_BLOCK_FOREIGN : 0;
    *after_fence = false;
    return visit(context, &chunk) ? next : 0;
}

static bool emit_top(struct walk *walk, uint64_t previous, uint64_t word, chunk_fn *visit, void *context) {
    struct glibc_chunk chunk = {.address = walk->top,
                                .size = walk->end - walk->top,
                                .size_word = word,
                                .state = KARST_STATE_TOP,
                                .bin = KARST_NONE,
                                .previous = previous};
    return visit(context, &chunk);
}

/* The chunk at `at` is sane; finds out about it by the header behind it. False: its own size must be
 * wrong, for it swallows chunks that lists know and leads nowhere. */
static inline bool look_at_chunk(struct walk *walk, struct glibc_chunk *chunk) {
    uint64_t next = chunk->address + chunk->size;
    const uint8_t *bytes = next < walk->end ? karst_window_at(&walk->window, next, GLIBC_HEADER) : NULL;
    if (__builtin_expect(bytes != NULL, 1)) {
        chunk->next_prev_size = glibc_word(bytes);
        chunk->next_size_word = glibc_word(bytes + 8);
        if (__builtin_expect(next == walk->top || sane(walk, next, chunk->next_size_word), 1)) {
            set_state(walk, chunk);
            return true;
        }
        if (fencepost(walk, next, chunk->next_size_word)) {
            set_state(walk, chunk);
            if (chunk->next_size_word == GLIBC_PREV_INUSE) {
                chunk->state =
                    KARST_STATE_METADATA; /* all that a nearly full heap had left for its fencepost */
            }
            return true;
        }
        if (glibc_anchor_between(walk->glibc, chunk->address + GLIBC_ALIGN, next)) {
            return false;
        }
        set_state_by_lists(walk, chunk);
        return true;
    }
    chunk->next_size_word = 0;
    chunk->bin = KARST_NONE;
    chunk->state = next == walk->end && walk->top_damaged ? KARST_STATE_TOP : KARST_STATE_UNKNOWN;
    return true;
}

/* from: a chunk that an earlier walk came to as to any other, 0: all of the extent. */
static inline __attribute__((always_inline)) bool walk_chunks(struct glibc_heap *glibc,
                                                              const struct karst_extent *extent,
                                                              uint64_t from, chunk_fn *visit, void *context) {
    struct walk walk;
    walk_open(&walk, glibc, extent, from);
    uint64_t at = from ? from : first_chunk(glibc, extent), previous = 0;
    bool more = true, after_fence = false;
    if (at > extent->start && !from) {
        struct glibc_chunk head = {.address = extent->start,
                                   .size = at - extent->start,
                                   .state = KARST_STATE_METADATA,
                                   .bin = KARST_NONE};
        more = visit(context, &head);
    }
    while (more && at < walk.end) {
        const uint8_t *bytes = karst_window_at(&walk.window, at, GLIBC_HEADER);
        uint64_t word = bytes ? glibc_word(bytes + 8) : 0;
        if (at == walk.top) {
            more = emit_top(&walk, previous, word, visit, context);
            break;
        }
        if (__builtin_expect(!sane(&walk, at, word), 0)) {
            uint64_t next = step_over(&walk, at, previous, &after_fence, visit, context);
            more = next != 0;
            previous = 0;
            at = next;
            continue;
        }
        struct glibc_chunk chunk = {
            .address = at, .size_word = word, .size = word & ~(uint64_t)GLIBC_FLAGS, .previous = previous};
        if (__builtin_expect(!look_at_chunk(&walk, &chunk), 0)) {
            uint64_t next = resync(&walk, at, at + GLIBC_MIN_CHUNK);
            chunk = unknown_chunk(at, next, at, previous);
            chunk.size_word = word;
        }
        after_fence = false;
        more = visit(context, &chunk);
        previous = at;
        at += chunk.size;
    }
    karst_window_close(&walk.window);
    return more;
}

bool glibc_walk_chunks(struct glibc_heap *glibc, const struct karst_extent *extent, chunk_fn *chunk,
                       void *context) {
    return walk_chunks(glibc, extent, 0, chunk, context);
}

bool glibc_begins_chain(struct glibc_heap *glibc, const struct karst_extent *extent, uint64_t address) {
    struct walk walk;
    walk_open(&walk, glibc, extent, 0);
    const uint8_t *bytes = karst_window_at(&walk.window, address, GLIBC_HEADER);
    bool begins = bytes && begins_chain(&walk, address, glibc_word(bytes + 8));
    karst_window_close(&walk.window);
    return begins;
}

/* ---- the block stream ------------------------------------------------------------------------------- */

struct stream {
    struct glibc_heap *glibc;
    const struct karst_extent *extent;
    struct karst_error *error;
    uint64_t bytes; /* since progress was last told */
    size_t unsorted;
    struct karst_batch batch;
};

#define PROGRESS_BYTES (256u << 10)

/* The bin of a free chunk: the unsorted list if it is there, else the one for its size. */
static uint32_t bin_of_free(struct stream *stream, const struct glibc_chunk *chunk) {
    struct glibc_heap *glibc = stream->glibc;
    if (!glibc->bins_loaded || glibc->arenas[stream->extent->arena].state_missing) {
        return KARST_NONE;
    }
    while (stream->unsorted < glibc->unsorted_count && glibc->unsorted[stream->unsorted] < chunk->address) {
        stream->unsorted++;
    }
    bool unsorted =
        stream->unsorted < glibc->unsorted_count && glibc->unsorted[stream->unsorted] == chunk->address;
    unsigned index = unsorted ? 1 : glibc_bin_index(chunk->size);
    return glibc->arenas[stream->extent->arena].first_bin + index - 1;
}

static inline bool stream_chunk(void *context, const struct glibc_chunk *chunk) {
    struct stream *stream = context;
    struct karst_block *block = karst_batch_next(&stream->batch);
    if (!block) {
        return false;
    }
    block->start = chunk->address;
    block->size = chunk->size;
    block->address = chunk->address + GLIBC_HEADER;
    block->usable = chunk->size - 8;
    block->arena = stream->extent->arena;
    block->bin = chunk->bin;
    block->heap = stream->glibc->heap.index;
    block->state = (uint8_t)chunk->state;
    block->flags = chunk->flags;
    if (chunk->state != KARST_STATE_LIVE && chunk->state != KARST_STATE_CACHED) {
        if (chunk->state == KARST_STATE_FREE) {
            block->bin = bin_of_free(stream, chunk);
        } else if ((chunk->state == KARST_STATE_UNKNOWN && !(chunk->flags & KARST_BLOCK_UNDECIDED)) ||
                   chunk->size < GLIBC_MIN_CHUNK || chunk->size_word == 0) {
            block->address = chunk->address;
            block->usable = 0;
        } else if (chunk->state == KARST_STATE_TOP) {
            block->usable = 0;
        }
    }
    stream->bytes += chunk->size;
    if (stream->bytes >= PROGRESS_BYTES) {
        uint64_t bytes = stream->bytes;
        stream->bytes = 0;
        return karst_session_progress(stream->glibc->heap.session, bytes, stream->error);
    }
    return true;
}

/* A block with a mapping of its own: one block over the whole extent. */
static bool stream_mapped(struct glibc_heap *glibc, const struct karst_extent *extent,
                          struct karst_batch *batch) {
    uint64_t total, chunk = glibc_mapped_chunk(glibc, extent->start, extent->end, false, &total);
    if (!chunk || extent->start + total != extent->end) {
        chunk = glibc_mapped_chunk(glibc, extent->start, extent->end, true, &total);
    }
    if (!chunk) {
        chunk = extent->start; /* a running process overwrote it since it was found */
    }
    struct karst_block *block = karst_batch_next(batch);
    if (!block) {
        return false;
    }
    size_t cached = glibc_cached_from(glibc, chunk);
    bool is_cached = cached < glibc->cached_count && glibc->cached[cached].chunk == chunk &&
                     glibc->cached[cached].bin != KARST_NONE;
    /* 2.43's malloc_usable_size() leaves out a word more than the header (malloc/malloc.c, memsize()). */
    uint64_t kept = GLIBC_HEADER + (glibc->layout.mapped_size_excludes_header ? 8 : 0);
    *block = (struct karst_block){.start = extent->start,
                                  .size = extent->end - extent->start,
                                  .address = chunk + GLIBC_HEADER,
                                  .usable = extent->end - chunk - kept,
                                  .arena = KARST_NONE,
                                  .bin = is_cached ? glibc->cached[cached].bin : KARST_NONE,
                                  .heap = glibc->heap.index,
                                  .state = is_cached ? KARST_STATE_CACHED : KARST_STATE_LIVE,
                                  .flags = KARST_BLOCK_MAPPED};
    /* Only tcaches that count free slots take such blocks, 2.42 and later. */
    if (!is_cached && glibc->tcaches_unknown && glibc->layout.tcache_counts_slots &&
        glibc_may_be_cached(glibc, KARST_NONE, chunk, extent->end - chunk)) {
        block->state = KARST_STATE_UNKNOWN;
        block->flags |= KARST_BLOCK_UNDECIDED;
    }
    return true;
}

bool glibc_walk(struct karst_heap *heap, const struct karst_extent *extent, struct karst_sink *sink,
                struct karst_error *error) {
    struct glibc_heap *glibc = (struct glibc_heap *)heap;
    struct stream stream = {.glibc = glibc, .extent = extent, .error = error};
    stream.batch.sink = sink;
    bool more = extent->kind == KARST_EXTENT_MAPPED ? stream_mapped(glibc, extent, &stream.batch)
                                                    : walk_chunks(glibc, extent, 0, stream_chunk, &stream);
    return more && karst_batch_flush(&stream.batch);
}

/* ---- looking for one block -------------------------------------------------------------------------- */

struct near_walk {
    struct stream stream;
    struct glibc_waypoints *waypoints;
};

/* As stream_chunk(), leaving waypoints behind: at chunks that the walk came to by a sound header, and so
 * would come to the same way from anywhere before them. */
static bool stream_near(void *context, const struct glibc_chunk *chunk) {
    struct near_walk *near = context;
    bool sound =
        chunk->state != KARST_STATE_UNKNOWN && chunk->size >= GLIBC_MIN_CHUNK && chunk->size_word != 0;
    if (chunk->address >= near->waypoints->next && sound) {
        glibc_leave_waypoint(near->waypoints, chunk->address);
    }
    return stream_chunk(&near->stream, chunk);
}

bool glibc_walk_near(struct karst_heap *heap, const struct karst_extent *extent, uint64_t address,
                     struct karst_sink *sink, struct karst_error *error) {
    struct glibc_heap *glibc = (struct glibc_heap *)heap;
    struct glibc_waypoints *waypoints =
        extent->kind == KARST_EXTENT_MAPPED ? NULL : glibc_waypoints_of(glibc, extent);
    if (!waypoints) {
        return glibc_walk(heap, extent, sink, error);
    }
    struct near_walk near = {.stream = {.glibc = glibc, .extent = extent, .error = error},
                             .waypoints = waypoints};
    uint64_t from = glibc_waypoint_before(waypoints, address);
    near.stream.batch.sink = sink;
    near.stream.unsorted = from ? glibc_first_from(glibc->unsorted, glibc->unsorted_count, from) : 0;
    return walk_chunks(glibc, extent, from, stream_near, &near) && karst_batch_flush(&near.stream.batch);
}
