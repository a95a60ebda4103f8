/* jemalloc: extents, bins and the block stream, over runs, which come from extents (5.x) or chunks
 * (3.x, 4.x). See docs/allocators/jemalloc.md. */
#include "jemalloc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE           4096u
#define PROGRESS_BYTES (256u << 10)

/* ---- runs ------------------------------------------------------------------------------------------- */

const char *jemalloc_run_kind_name(const struct jemalloc_heap *jemalloc, enum jemalloc_run_kind kind) {
    static const char *const names[JEMALLOC_RUN_KINDS] = {"slab",   "large", "dirty",  "muzzy",  "retained",
                                                          "moving", "held",  "header", "damaged"};
    if (jemalloc->layout.major < 5 && (kind == JEMALLOC_SLAB || kind == JEMALLOC_RETAINED)) {
        return kind == JEMALLOC_SLAB ? "run" : "clean";
    }
    return kind < JEMALLOC_RUN_KINDS ? names[kind] : "?";
}

bool jemalloc_walk_runs(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end, jemalloc_run_fn *visit,
                        void *context) {
    return jemalloc->layout.major >= 5 ? jemalloc_walk_extents(jemalloc, start, end, visit, context)
                                       : jemalloc_walk_chunks(jemalloc, start, end, visit, context);
}

/* Large and unused extents are in the tree with their first page (and mostly the last), so the one that holds
 * an address begins at the last element at or before it; karst's own extents bound how far back that is. */
struct look {
    uint64_t address;
    struct jemalloc_run *run;
    bool found;
};

static bool look_at(void *context, const struct jemalloc_run *run) {
    struct look *look = context;
    if (look->address - run->address < run->size) {
        *look->run = *run;
        look->found = true;
    }
    return !look->found && run->address <= look->address;
}

bool jemalloc_run_of(struct jemalloc_heap *jemalloc, uint64_t address, struct jemalloc_run *run) {
    struct jemalloc_element element;
    if (jemalloc->layout.major < 5) {
        return jemalloc_chunk_run_of(jemalloc, address, run);
    }
    if (jemalloc_element_of(jemalloc, address, &element) && jemalloc_read_extent(jemalloc, &element, run) &&
        address - run->address < run->size) {
        return true;
    }
    const struct karst_extent *extent = karst_heap_extent(&jemalloc->heap, address);
    if (!extent || extent->kind != KARST_EXTENT_PAGES) {
        return false;
    }
    struct look look = {.address = address, .run = run};
    jemalloc_walk_runs(jemalloc, extent->start, extent->end, look_at, &look);
    return look.found && run->kind != JEMALLOC_BAD;
}

uint32_t jemalloc_count_free(const struct jemalloc_run *run) {
    uint32_t count = 0;
    for (uint32_t word = 0; word * 64 < run->regions; word++) {
        uint64_t bits = run->bitmap[word];
        if (run->regions - word * 64 < 64) {
            bits &= (1ull << (run->regions - word * 64)) - 1;
        }
        count += (uint32_t)__builtin_popcountll(bits);
    }
    return count;
}

uint32_t jemalloc_region_of(const struct jemalloc_run *run, uint64_t address, bool *is_start) {
    uint64_t first = jemalloc_block_start(run, 0);
    *is_start = false;
    if (address < first || run->stride == 0 || (address - first) / run->stride >= run->regions) {
        return JEMALLOC_NOT_THERE;
    }
    *is_start = (address - first) % run->stride == run->redzone;
    return (uint32_t)((address - first) / run->stride);
}

/* ---- extents ---------------------------------------------------------------------------------------- */

bool jemalloc_add_extent(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end, uint32_t arena,
                         enum karst_extent_kind kind) {
    size_t count = jemalloc->heap.extent_count;
    if ((count & (count - 1)) == 0) {
        struct karst_extent *extents =
            realloc(jemalloc->heap.extents, (count ? 2 * count : 1) * sizeof *extents);
        if (!extents) {
            return false;
        }
        jemalloc->heap.extents = extents;
    }
    jemalloc->heap.extents[count] = (struct karst_extent){
        .start = start, .end = end, .arena = arena, .heap = jemalloc->heap.index, .kind = (uint8_t)kind};
    jemalloc->heap.extent_count++;
    return true;
}

struct joining {
    struct jemalloc_heap *jemalloc;
    uint64_t start, end; /* of the extent under way; end 0: none */
    uint32_t arena;
    bool out_of_memory;
};

static bool end_extent(struct joining *joining) {
    bool fine = joining->end == 0 || jemalloc_add_extent(joining->jemalloc, joining->start, joining->end,
                                                         joining->arena, KARST_EXTENT_PAGES);
    joining->end = 0;
    joining->out_of_memory |= !fine;
    return fine;
}

/* Runs side by side in one arena are one extent: holes in it may span several. */
static bool join_run(void *context, const struct jemalloc_run *run) {
    struct joining *joining = context;
    if (run->kind == JEMALLOC_BAD && joining->jemalloc->layout.major >= 5) {
        return end_extent(joining);
    }
    if (!jemalloc_make_arenas(joining->jemalloc, run->arena + 1ull)) {
        joining->out_of_memory = true;
        return false;
    }
    joining->jemalloc->arenas[run->arena].seen = true;
    if (joining->end != run->address || joining->arena != run->arena) {
        if (!end_extent(joining)) {
            return false;
        }
        joining->start = run->address;
        joining->arena = run->arena;
    }
    joining->end = run->address + run->size;
    return true;
}

static int compare_extents(const void *a, const void *b) {
    const struct karst_extent *x = a, *y = b;
    return x->start != y->start ? (x->start < y->start ? -1 : 1)
           : x->end < y->end    ? 1
           : x->end > y->end    ? -1
                                : 0;
}

/* Sorts, and takes from those that overlap (a damaged heap's) what an earlier one has. */
static void part_extents(struct jemalloc_heap *jemalloc) {
    struct karst_extent *extents = jemalloc->heap.extents;
    size_t kept = 0;
    uint64_t end = 0;
    if (jemalloc->heap.extent_count == 0) {
        return;
    }
    qsort(extents, jemalloc->heap.extent_count, sizeof *extents, compare_extents);
    for (size_t i = 0; i < jemalloc->heap.extent_count; i++) {
        struct karst_extent extent = extents[i];
        extent.start = extent.start < end ? end : extent.start;
        if (extent.start < extent.end) {
            extents[kept++] = extent;
            end = extent.end;
        }
    }
    jemalloc->heap.extent_count = kept;
}

bool jemalloc_make_extents(struct jemalloc_heap *jemalloc) {
    struct joining joining = {.jemalloc = jemalloc};
    jemalloc_walk_runs(jemalloc, 0, UINT64_MAX, join_run, &joining);
    if (!end_extent(&joining) || joining.out_of_memory) {
        return false;
    }
    part_extents(jemalloc);
    for (size_t i = 0; i < jemalloc->heap.extent_count; i++) {
        struct karst_extent *extent = &jemalloc->heap.extents[i];
        struct karst_arena *arena = &jemalloc->heap.arenas[extent->arena];
        arena->extents++;
        arena->system_bytes += extent->end - extent->start;
        arena->max_system_bytes = arena->system_bytes;
        jemalloc->arenas[extent->arena].seen = true;
    }
    return true;
}

/* ---- bins ------------------------------------------------------------------------------------------- */

bool jemalloc_make_bins(struct jemalloc_heap *jemalloc) {
    size_t seen = 0;
    for (size_t i = 0; i < jemalloc->heap.arena_count; i++) {
        seen += jemalloc->arenas[i].seen;
    }
    struct karst_bin *bins = calloc(seen * JEMALLOC_ARENA_BINS + 1, sizeof *bins);
    if (!bins) {
        return false;
    }
    jemalloc->heap.bins = bins;
    const char *kind = jemalloc_run_kind_name(jemalloc, JEMALLOC_SLAB);
    for (uint32_t i = 0; i < jemalloc->heap.arena_count; i++) {
        if (!jemalloc->arenas[i].seen) {
            continue;
        }
        jemalloc->arenas[i].first_bin = (uint32_t)jemalloc->heap.bin_count;
        for (uint32_t class_ = 0; class_ < JEMALLOC_ARENA_BINS; class_++) {
            struct karst_bin *bin = &bins[jemalloc->heap.bin_count++];
            bin->arena = i;
            if (class_ < JEMALLOC_SMALL_BINS) {
                bin->smallest = bin->largest = jemalloc_class_size(class_);
                snprintf(bin->kind, sizeof bin->kind, "%s", kind);
                snprintf(bin->name, sizeof bin->name, "%s 0x%" PRIx64 " arena %" PRIu32, kind, bin->smallest,
                         i);
            } else {
                bin->smallest = PAGE;
                bin->largest = UINT64_MAX;
                snprintf(bin->kind, sizeof bin->kind, "%s",
                         jemalloc_run_kind_name(jemalloc, JEMALLOC_DIRTY + class_ - JEMALLOC_SMALL_BINS));
                snprintf(bin->name, sizeof bin->name, "%s arena %" PRIu32, bin->kind, i);
            }
        }
    }
    return true;
}

uint32_t jemalloc_bin_of(const struct jemalloc_heap *jemalloc, const struct jemalloc_run *run) {
    uint32_t first =
        run->arena < jemalloc->heap.arena_count ? jemalloc->arenas[run->arena].first_bin : KARST_NONE;
    if (first == KARST_NONE) {
        return KARST_NONE;
    }
    switch (run->kind) {
    case JEMALLOC_SLAB:
        return run->class_ < JEMALLOC_SMALL_BINS ? first + run->class_ : KARST_NONE;
    case JEMALLOC_DIRTY:
    case JEMALLOC_MUZZY:
    case JEMALLOC_RETAINED:
        return first + JEMALLOC_SMALL_BINS + run->kind - JEMALLOC_DIRTY;
    default:
        return KARST_NONE;
    }
}

bool jemalloc_add_cached(struct jemalloc_heap *jemalloc, uint64_t address, uint32_t bin) {
    if (jemalloc->cached_count == jemalloc->cached_capacity) {
        size_t capacity = jemalloc->cached_capacity ? jemalloc->cached_capacity * 2 : 256;
        struct jemalloc_cached *cached = realloc(jemalloc->cached, capacity * sizeof *cached);
        if (!cached) {
            return false;
        }
        jemalloc->cached = cached;
        jemalloc->cached_capacity = capacity;
    }
    jemalloc->cached[jemalloc->cached_count++] = (struct jemalloc_cached){.address = address, .bin = bin};
    return true;
}

/* The first entry of the cached set at or above address. */
static size_t cached_from(const struct jemalloc_heap *jemalloc, uint64_t address) {
    size_t low = 0, high = jemalloc->cached_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (jemalloc->cached[middle].address < address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

struct counting {
    struct jemalloc_heap *jemalloc;
    struct karst_error *error;
    bool interrupted;
};

static bool count_bin(void *context, const struct jemalloc_run *run) {
    struct counting *counting = context;
    uint32_t index = jemalloc_bin_of(counting->jemalloc, run);
    if (!karst_session_progress(counting->jemalloc->heap.session, run->size, counting->error)) {
        counting->interrupted = true;
        return false;
    }
    if (index == KARST_NONE) {
        return true;
    }
    struct karst_bin *bin = &counting->jemalloc->heap.bins[index];
    uint32_t free_regions = run->kind == JEMALLOC_SLAB ? jemalloc_count_free(run) : 1;
    bin->blocks += free_regions;
    bin->bytes += run->kind == JEMALLOC_SLAB ? free_regions * run->stride : run->size;
    return true;
}

static bool load_bins(struct karst_heap *heap, struct karst_error *error) {
    struct counting counting = {.jemalloc = (struct jemalloc_heap *)heap, .error = error};
    for (size_t i = 0; i < heap->extent_count && !counting.interrupted; i++) {
        if (heap->extents[i].kind == KARST_EXTENT_PAGES) {
            jemalloc_walk_runs(counting.jemalloc, heap->extents[i].start, heap->extents[i].end, count_bin,
                               &counting);
        }
    }
    return !counting.interrupted;
}

/* ---- the block stream ------------------------------------------------------------------------------- */

struct stream {
    struct jemalloc_heap *jemalloc;
    const struct karst_extent *extent;
    struct karst_error *error;
    uint64_t at; /* where the next block begins */
    uint64_t bytes;
    size_t cached; /* the next entry of the cached set */
    struct karst_batch batch;
    struct karst_regions regions; /* of the slab at hand; the sets of what caches have are empty between */
};

static bool emit(struct stream *stream, uint64_t size, enum karst_state state, uint32_t bin, uint8_t flags) {
    struct karst_block *block = karst_batch_next(&stream->batch);
    if (!block) {
        return false;
    }
    *block = (struct karst_block){.start = stream->at,
                                  .size = size,
                                  .address = stream->at,
                                  .usable = state == KARST_STATE_FREE ? size : 0,
                                  .arena = stream->extent->arena,
                                  .bin = bin,
                                  .heap = stream->jemalloc->heap.index,
                                  .state = (uint8_t)state,
                                  .flags = flags};
    stream->at += size;
    return true;
}

/* The next entry of the cached set at or behind address; its address, UINT64_MAX: none. */
static uint64_t next_cached(struct stream *stream, uint64_t address) {
    const struct jemalloc_heap *jemalloc = stream->jemalloc;
    while (stream->cached < jemalloc->cached_count && jemalloc->cached[stream->cached].address < address) {
        stream->cached++;
    }
    return stream->cached < jemalloc->cached_count ? jemalloc->cached[stream->cached].address : UINT64_MAX;
}

/* The state of a block that the allocator has handed out, by the caches: stream->cached stands at it. */
static enum karst_state state_of_cached(const struct stream *stream, uint32_t *bin) {
    *bin = stream->jemalloc->cached[stream->cached].bin;
    return *bin == KARST_NONE ? KARST_STATE_METADATA : KARST_STATE_CACHED;
}

static bool stream_regions(struct stream *stream, const struct jemalloc_run *run) {
    const uint64_t size = run->stride;
    const uint32_t free_bin = jemalloc_bin_of(stream->jemalloc, run);
    uint64_t cached = next_cached(stream, stream->at);
    struct karst_block block = {.start = jemalloc_block_start(run, 0),
                                .size = size,
                                .usable = run->region_size,
                                .arena = stream->extent->arena,
                                .heap = stream->jemalloc->heap.index,
                                .flags = KARST_BLOCK_REGION};
    block.flags |= block.start == run->address ? KARST_BLOCK_RUN : 0;
    for (uint32_t i = 0; i < run->regions; i++) {
        struct karst_block *next = karst_batch_next(&stream->batch);
        if (!next) {
            return false;
        }
        block.state = run->problems & JEMALLOC_BAD_HEADER ? KARST_STATE_UNKNOWN : KARST_STATE_LIVE;
        block.bin = KARST_NONE;
        if (block.state == KARST_STATE_UNKNOWN) {
            /* nothing to tell of it */
        } else if (jemalloc_is_free(run, i)) {
            block.state = KARST_STATE_FREE;
            block.bin = free_bin;
        } else if (__builtin_expect(cached < block.start + size, 0)) {
            cached = next_cached(stream, block.start + run->redzone);
            if (cached == block.start + run->redzone) {
                block.state = (uint8_t)state_of_cached(stream, &block.bin);
            }
        }
        block.address = block.start + run->redzone;
        *next = block;
        block.start += size;
        block.flags = KARST_BLOCK_REGION;
    }
    stream->at = block.start;
    return true;
}

/* The regions that caches have: of the first word on, as the run's bitmap. False: none. */
static bool mark_cached(struct stream *stream, const struct jemalloc_run *run) {
    struct karst_regions *regions = &stream->regions;
    uint64_t end = jemalloc_block_start(run, run->regions);
    bool any = false;
    for (uint64_t at = next_cached(stream, run->first_region); at < end; at = next_cached(stream, at + 1)) {
        uint32_t bin;
        bool is_start;
        uint32_t region = jemalloc_region_of(run, at, &is_start);
        if (is_start && !jemalloc_is_free(run, region)) {
            uint64_t *set =
                state_of_cached(stream, &bin) == KARST_STATE_CACHED ? regions->cached : regions->own;
            set[region / 64] |= 1ull << region % 64;
            any = true;
        }
    }
    return any;
}

static bool hand_regions(struct stream *stream, const struct jemalloc_run *run) {
    struct karst_sink *sink = stream->batch.sink;
    struct karst_regions *regions = &stream->regions;
    regions->start = jemalloc_block_start(run, 0);
    regions->size = run->stride;
    regions->count = run->regions;
    regions->flags = KARST_BLOCK_REGION | (regions->start == run->address ? KARST_BLOCK_RUN : 0);
    /* All words, whatever the count: sizes that are known take a few instructions. */
    memcpy(regions->free, run->bitmap, sizeof regions->free);
    if (run->regions % 64) {
        regions->free[run->regions / 64] &= (1ull << run->regions % 64) - 1;
    }
    bool any_cached = mark_cached(stream, run);
    stream->at = regions->start + run->regions * run->stride;
    bool more = karst_batch_flush(&stream->batch) && sink->regions(sink, regions);
    if (any_cached) {
        memset(regions->cached, 0, sizeof regions->cached);
        memset(regions->own, 0, sizeof regions->own);
    }
    return more;
}

static bool stream_slab(struct stream *stream, const struct jemalloc_run *run) {
    const struct karst_sink *sink = stream->batch.sink;
    bool in_bulk = sink->regions && run->stride < sink->regions_below && run->regions <= KARST_REGIONS_MAX &&
                   !run->problems;
    uint64_t first = jemalloc_block_start(run, 0), end = run->address + run->size;
    if (first > run->address && !emit(stream, first - run->address, KARST_STATE_METADATA, KARST_NONE,
                                      KARST_BLOCK_REGION | KARST_BLOCK_RUN)) {
        return false;
    }
    if (!(in_bulk ? hand_regions(stream, run) : stream_regions(stream, run))) {
        return false;
    }
    return stream->at >= end ||
           emit(stream, end - stream->at, KARST_STATE_METADATA, KARST_NONE, KARST_BLOCK_REGION);
}

static bool stream_large(struct stream *stream, const struct jemalloc_run *run) {
    uint32_t bin = KARST_NONE;
    enum karst_state state = KARST_STATE_LIVE;
    uint64_t cached = next_cached(stream, run->address), address = run->block;
    /* 4.x: which address of its first page it has is recorded nowhere but in a cache. */
    if (cached == run->block || (stream->jemalloc->layout.major == 4 && cached - run->address < PAGE)) {
        state = state_of_cached(stream, &bin);
        address = cached;
    }
    if (!emit(stream, run->size, state, bin, 0)) {
        return false;
    }
    struct karst_block *block = &stream->batch.blocks[stream->batch.count - 1];
    block->address = address;
    block->usable = run->usable;
    return true;
}

static bool stream_run(struct stream *stream, const struct jemalloc_run *run) {
    switch (run->kind) {
    case JEMALLOC_SLAB:
        return stream_slab(stream, run);
    case JEMALLOC_LARGE:
        return stream_large(stream, run);
    case JEMALLOC_HEADER:
        return emit(stream, run->size, KARST_STATE_METADATA, KARST_NONE, 0);
    case JEMALLOC_BAD:
        return emit(stream, run->size, KARST_STATE_UNKNOWN, KARST_NONE, 0);
    default:
        return emit(stream, run->size, KARST_STATE_FREE, jemalloc_bin_of(stream->jemalloc, run), 0);
    }
}

static bool take_run(void *context, const struct jemalloc_run *run) {
    struct stream *stream = context;
    uint64_t end = stream->extent->end;
    if (run->address < stream->at || run->address >= end) {
        return true; /* a damaged heap's: it reaches into what was told already */
    }
    if (run->address > stream->at &&
        !emit(stream, run->address - stream->at, KARST_STATE_UNKNOWN, KARST_NONE, 0)) {
        return false;
    }
    if (run->size > end - run->address) {
        return emit(stream, end - stream->at, KARST_STATE_UNKNOWN, KARST_NONE, 0);
    }
    if (!stream_run(stream, run)) {
        return false;
    }
    stream->bytes += run->size;
    if (stream->bytes < PROGRESS_BYTES) {
        return true;
    }
    uint64_t bytes = stream->bytes;
    stream->bytes = 0;
    return karst_session_progress(stream->jemalloc->heap.session, bytes, stream->error);
}

static bool walk(struct karst_heap *heap, const struct karst_extent *extent, struct karst_sink *sink,
                 struct karst_error *error) {
    struct jemalloc_heap *jemalloc = (struct jemalloc_heap *)heap;
    struct stream stream = {.jemalloc = jemalloc, .extent = extent, .error = error, .at = extent->start};
    stream.batch.sink = sink;
    bool more = true;
    if (extent->kind == KARST_EXTENT_OWN) {
        more = emit(&stream, extent->end - extent->start, KARST_STATE_METADATA, KARST_NONE, 0);
    } else {
        stream.cached = cached_from(jemalloc, extent->start);
        more = jemalloc_walk_runs(jemalloc, extent->start, extent->end, take_run, &stream);
        more = more && (stream.at >= extent->end ||
                        emit(&stream, extent->end - stream.at, KARST_STATE_UNKNOWN, KARST_NONE, 0));
    }
    return more && karst_batch_flush(&stream.batch);
}

/* ---- the rest of the ops ---------------------------------------------------------------------------- */

/* A block for a request: of a small class, its region; else its pages. 5.x adds a page to large ones, in
 * which the block begins at a random line of the cache (cache_oblivious, the default). */
static uint64_t block_size(struct karst_heap *heap, uint64_t request, bool *mapped) {
    const struct jemalloc_heap *jemalloc = (const struct jemalloc_heap *)heap;
    uint32_t small = jemalloc->layout.major == 3 ? 28 : JEMALLOC_SMALL_BINS;
    uint32_t class_ = jemalloc_class_of(request ? request : 1);
    uint64_t size = jemalloc_class_size(class_);
    *mapped = false;
    if (class_ >= JEMALLOC_CLASSES) {
        return 0;
    }
    if (class_ < small) {
        return size;
    }
    if (jemalloc->layout.major == 3) {
        return (request + PAGE - 1) & ~(uint64_t)(PAGE - 1);
    }
    return size + (jemalloc->large_pad ? PAGE : 0);
}

void jemalloc_close(struct karst_heap *heap) {
    struct jemalloc_heap *jemalloc = (struct jemalloc_heap *)heap;
    karst_facts_clear(&heap->facts);
    free(heap->arenas);
    free(heap->bins);
    free(heap->extents);
    free(jemalloc->arenas);
    free(jemalloc->tcaches);
    free(jemalloc->threads_inside);
    free(jemalloc->cached);
    free(jemalloc->chunks);
    free(jemalloc->map);
    free(jemalloc->pages.tags);
    free(jemalloc->pages.bytes);
    free((void *)jemalloc->pages.at);
    karst_window_close(&jemalloc->nodes);
    karst_window_close(&jemalloc->leaves);
    free(jemalloc);
}

const struct karst_allocator karst_jemalloc = {
    .name = "jemalloc",
    .find = jemalloc_find,
    .walk = walk,
    .load_bins = load_bins,
    .check = jemalloc_check,
    .block_size = block_size,
    .describe = jemalloc_describe,
    .runs = jemalloc_runs,
    .figures = jemalloc_figures,
    .explain = jemalloc_explain,
    .close = jemalloc_close,
};
