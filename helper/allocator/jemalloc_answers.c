/* jemalloc: its page runs and totals as verbs show them, and what can be said of one block. */
#include "jemalloc.h"

#include <inttypes.h>
#include <stdio.h>

#define PAGE 4096u

/* ---- page runs and totals --------------------------------------------------------------------------- */

struct run_stream {
    struct jemalloc_heap *jemalloc;
    bool (*visit)(void *context, const struct karst_page_run *run);
    void *context;
    struct karst_error *error;
    size_t cached;
    bool interrupted;
};

static void count_regions(struct run_stream *stream, const struct jemalloc_run *run,
                          struct karst_page_run *page_run) {
    const struct jemalloc_heap *jemalloc = stream->jemalloc;
    uint64_t end = run->address + run->size;
    while (stream->cached < jemalloc->cached_count &&
           jemalloc->cached[stream->cached].address < run->address) {
        stream->cached++;
    }
    page_run->free = run->kind == JEMALLOC_SLAB ? jemalloc_count_free(run) : 0;
    uint64_t last = 0;
    for (size_t i = stream->cached; i < jemalloc->cached_count && jemalloc->cached[i].address < end; i++) {
        uint64_t offset = jemalloc->cached[i].address - run->block;
        bool is_start = run->kind == JEMALLOC_LARGE && offset < (jemalloc->layout.major == 4 ? PAGE : 1);
        uint32_t region = 0;
        if (run->kind == JEMALLOC_SLAB) {
            region = jemalloc_region_of(run, jemalloc->cached[i].address, &is_start);
        }
        if (is_start && jemalloc->cached[i].address != last &&
            (run->kind == JEMALLOC_LARGE || !jemalloc_is_free(run, region))) {
            bool own = jemalloc->cached[i].bin == KARST_NONE; /* the memory of a cache itself */
            page_run->own += own;
            page_run->cached += !own;
            last = jemalloc->cached[i].address;
        }
    }
    page_run->live = page_run->regions - page_run->free - page_run->cached - page_run->own;
}

static bool pass_run(void *context, const struct jemalloc_run *run) {
    struct run_stream *stream = context;
    struct jemalloc_heap *jemalloc = stream->jemalloc;
    struct karst_page_run page_run = {.address = run->address,
                                      .size = run->size,
                                      .arena = run->arena,
                                      .bin = jemalloc_bin_of(jemalloc, run),
                                      .heap = jemalloc->heap.index,
                                      .kind = jemalloc_run_kind_name(jemalloc, run->kind)};
    if (run->kind == JEMALLOC_SLAB) {
        page_run.region_size = run->region_size;
        page_run.first_region = run->first_region;
        page_run.regions = run->regions;
        page_run.header = run->header;
        page_run.damaged = jemalloc_count_free(run) != run->nfree || run->problems;
        count_regions(stream, run, &page_run);
    } else if (run->kind == JEMALLOC_LARGE) {
        page_run.region_size = run->usable;
        page_run.first_region = run->block;
        page_run.regions = 1;
        count_regions(stream, run, &page_run);
    }
    page_run.damaged |= run->kind == JEMALLOC_BAD;
    if (!karst_session_progress(jemalloc->heap.session, run->size, stream->error)) {
        stream->interrupted = true;
        return false;
    }
    return stream->visit(stream->context, &page_run);
}

bool jemalloc_runs(struct karst_heap *heap, bool (*run)(void *context, const struct karst_page_run *run),
                   void *context, struct karst_error *error) {
    struct run_stream stream = {
        .jemalloc = (struct jemalloc_heap *)heap, .visit = run, .context = context, .error = error};
    for (size_t i = 0; i < heap->extent_count; i++) {
        if (heap->extents[i].kind == KARST_EXTENT_PAGES &&
            !jemalloc_walk_runs(stream.jemalloc, heap->extents[i].start, heap->extents[i].end, pass_run,
                                &stream)) {
            break;
        }
    }
    return !stream.interrupted;
}

struct totals {
    struct jemalloc_heap *jemalloc;
    struct karst_error *error;
    uint64_t small, large, huge, active, dirty, muzzy, retained;
    bool interrupted;
};

/* What profiling sampled counts as what it was made, if that is large; else 5.3.1 has it in no total
 * (src/arena.c, arena_large_malloc_stats_update()). */
static uint64_t large_allocated(const struct jemalloc_heap *jemalloc, const struct jemalloc_run *run) {
    if (jemalloc->layout.major < 5) {
        return run->sampled;
    }
    if (run->class_ >= JEMALLOC_SMALL_BINS) {
        return run->usable;
    }
    uint64_t size = jemalloc_sampled_size(&jemalloc->layout, run->class_);
    return size >= jemalloc_class_size(JEMALLOC_SMALL_BINS) ? size : 0;
}

static bool add_totals(void *context, const struct jemalloc_run *run) {
    struct totals *totals = context;
    switch (run->kind) {
    case JEMALLOC_SLAB:
        totals->small += (run->regions - jemalloc_count_free(run)) * run->region_size;
        totals->active += run->size;
        break;
    case JEMALLOC_LARGE:
        *(run->huge ? &totals->huge : &totals->large) += large_allocated(totals->jemalloc, run);
        totals->active += run->size;
        break;
    case JEMALLOC_DIRTY:
        totals->dirty += run->size;
        break;
    case JEMALLOC_MUZZY:
        totals->muzzy += run->size;
        break;
    case JEMALLOC_RETAINED:
        totals->retained += run->size;
        break;
    default:
        break;
    }
    totals->interrupted = !karst_session_progress(totals->jemalloc->heap.session, run->size, totals->error);
    return !totals->interrupted;
}

struct figures {
    struct karst_figure *items;
    int count;
};

static void add_figure(struct figures *figures, const char *name, uint64_t bytes) {
    figures->items[figures->count++] = (struct karst_figure){name, bytes, false};
}

/* 5.x: what is mapped is the base's, and what the arenas count: the radix tree has it, too, but for guard
 * pages (5.3's san_guard_*), while opt.hpa's pages are not counted, and what hooks refused to split or to
 * merge is counted otherwise. Without statistics (--disable-stats) it is what the tree has. */
static void figures_of_extents(const struct jemalloc_heap *jemalloc, const struct totals *totals,
                               struct figures *figures) {
    uint64_t metadata = 0, resident = 0, mapped = 0, counted = 0;
    for (size_t i = 0; i < jemalloc->heap.arena_count; i++) {
        const struct jemalloc_arena *arena = &jemalloc->arenas[i];
        counted += arena->mapped;
        metadata += arena->base_allocated + arena->internal;
        resident += arena->base_resident;
        mapped += arena->base_mapped;
    }
    if (jemalloc->arenas_at) {
        add_figure(figures, "metadata", metadata);
        resident += totals->active + totals->dirty + (jemalloc->layout.muzzy_resident ? totals->muzzy : 0);
        add_figure(figures, "resident", resident);
        add_figure(figures, "mapped",
                   mapped + (counted ? counted : totals->active + totals->dirty + totals->muzzy));
    }
    add_figure(figures, "retained", totals->retained);
}

/* 4.x: chunks that an arena keeps for later have no page map that says whether they are dirty, so it is its
 * own counts that tell. */
static void figures_of_chunks(const struct jemalloc_heap *jemalloc, const struct totals *totals,
                              struct figures *figures) {
    const struct jemalloc_counters *counters = &jemalloc->counters;
    uint64_t headers = 0, internal = 0, dirty = 0, mapped = 0, retained = 0;
    for (size_t i = 0; i < jemalloc->heap.arena_count; i++) {
        const struct jemalloc_arena *arena = &jemalloc->arenas[i];
        headers += arena->headers;
        internal += arena->internal;
        dirty += arena->dirty;
        mapped += arena->mapped;
        retained += arena->retained;
    }
    if (counters->known) {
        add_figure(figures, "metadata", counters->base_allocated + headers + internal);
        add_figure(figures, "resident", totals->active + dirty + counters->base_resident + headers);
        add_figure(figures, "mapped", counters->base_mapped + mapped);
    }
    if (jemalloc->layout.arena_retained != (JEMALLOC_NOT_THERE & 0xffff) && mapped) {
        add_figure(figures, "retained", retained);
    }
}

/* As mallctl("stats....") tells them, src/ctl.c ctl_refresh(): what is in tcaches counts as allocated there.
 */
int jemalloc_figures(struct karst_heap *heap, struct karst_figure *items, struct karst_error *error) {
    struct jemalloc_heap *jemalloc = (struct jemalloc_heap *)heap;
    struct totals totals = {.jemalloc = jemalloc, .error = error};
    struct figures figures = {.items = items};
    for (size_t i = 0; i < heap->extent_count && !totals.interrupted; i++) {
        if (heap->extents[i].kind == KARST_EXTENT_PAGES) {
            jemalloc_walk_runs(jemalloc, heap->extents[i].start, heap->extents[i].end, add_totals, &totals);
        }
    }
    if (totals.interrupted) {
        return -1;
    }
    add_figure(&figures, "allocated", totals.small + totals.large + totals.huge);
    add_figure(&figures, "small_allocated", totals.small);
    add_figure(&figures, "large_allocated", totals.large);
    if (jemalloc->layout.major < 5) {
        add_figure(&figures, "huge_allocated", totals.huge);
    }
    add_figure(&figures, "active", totals.active);
    if (jemalloc->layout.major >= 5) {
        figures_of_extents(jemalloc, &totals, &figures);
    } else if (jemalloc->layout.major == 4) {
        figures_of_chunks(jemalloc, &totals, &figures);
    } else if (jemalloc->counters.known) {
        add_figure(&figures, "mapped", jemalloc->counters.chunks << jemalloc->layout.lg_chunk);
    }
    return figures.count;
}

/* ---- one block -------------------------------------------------------------------------------------- */

static bool describe_region(struct jemalloc_heap *jemalloc, const struct jemalloc_run *run,
                            const struct karst_block *block, struct karst_facts *facts) {
    bool is_start;
    const char *kind = jemalloc_run_kind_name(jemalloc, run->kind);
    uint32_t region = jemalloc_region_of(run, block->start, &is_start);
    if (!karst_facts_add(facts, kind, run->address,
                         "%" PRIu64 " bytes, %" PRIu32 " regions of %" PRIu64 ", %" PRIu32
                         " free by its bitmap (nfree %" PRIu32 ")",
                         run->size, run->regions, run->region_size, jemalloc_count_free(run), run->nfree)) {
        return false;
    }
    if (region != JEMALLOC_NOT_THERE &&
        !karst_facts_add(facts, "region", 0, "%" PRIu32 " of 0 to %" PRIu32 "; class %" PRIu32, region,
                         run->regions - 1, run->class_)) {
        return false;
    }
    return karst_facts_add(facts, jemalloc->layout.major >= 5 ? "extent" : "header", run->header,
                           "its header%s", run->shard ? ", of a bin shard other than the first" : "");
}

bool jemalloc_describe(struct karst_heap *heap, const struct karst_block *block, struct karst_facts *facts,
                       struct karst_error *error) {
    struct jemalloc_heap *jemalloc = (struct jemalloc_heap *)heap;
    struct jemalloc_run run;
    bool fine = true;
    if (!jemalloc_run_of(jemalloc, block->start, &run)) {
        return true;
    }
    if (run.kind == JEMALLOC_SLAB) {
        fine = describe_region(jemalloc, &run, block, facts);
    } else if (run.kind == JEMALLOC_LARGE) {
        fine = karst_facts_add(facts, "large", run.address,
                               "%" PRIu64 " bytes of pages; class %" PRIu32 ", %" PRIu64 " bytes", run.size,
                               run.class_, run.usable) &&
               karst_facts_add(facts, "extent", run.header, "its header");
    } else if (run.kind != JEMALLOC_BAD) {
        fine = karst_facts_add(facts, jemalloc_run_kind_name(jemalloc, run.kind), run.address,
                               "%" PRIu64 " bytes of pages, no block's", run.size) &&
               (run.header == 0 || karst_facts_add(facts, "extent", run.header, "its header"));
    }
    return fine || karst_fail_memory(error);
}

/* Would address start a region of the run before, if that went on? The run that a bad one extends into. */
static bool explain_by_run_before(struct jemalloc_heap *jemalloc, const struct jemalloc_run *run,
                                  uint64_t address, char *text, size_t size) {
    struct jemalloc_run before;
    if (!jemalloc_run_of(jemalloc, run->address - 1, &before) || before.kind != JEMALLOC_SLAB ||
        address < before.first_region || (address - before.first_region) % before.stride != 0) {
        return false;
    }
    uint64_t region = (address - before.first_region) / before.stride;
    snprintf(text, size,
             "; it would be region %" PRIu64 " of the %" PRIu64 "-byte %s at 0x%" PRIx64 ", %" PRIu64
             " past the last of its %" PRIu32,
             region, before.region_size, jemalloc_run_kind_name(jemalloc, before.kind), before.address,
             region - before.regions + 1, before.regions);
    return true;
}

void jemalloc_explain(struct karst_heap *heap, const struct karst_block *block, uint64_t address, char *text,
                      size_t size) {
    struct jemalloc_heap *jemalloc = (struct jemalloc_heap *)heap;
    struct jemalloc_run run;
    bool is_start;
    text[0] = '\0';
    if ((address == block->address && block->state != KARST_STATE_METADATA &&
         block->state != KARST_STATE_UNKNOWN) ||
        !jemalloc_run_of(jemalloc, address, &run) || run.kind != JEMALLOC_SLAB) {
        return;
    }
    uint32_t region = jemalloc_region_of(&run, address, &is_start);
    if (is_start && !run.problems) {
        return;
    }
    const char *kind = jemalloc_run_kind_name(jemalloc, run.kind);
    int used =
        snprintf(text, size, "offset 0x%" PRIx64 " of the %s at 0x%" PRIx64 " (%" PRIu64 "-byte regions) ",
                 address - run.address, kind, run.address, run.region_size);
    if (used < 0 || (size_t)used >= size) {
        return;
    }
    text += used;
    size -= (size_t)used;
    if (is_start) {
        used =
            snprintf(text, size, "is region %" PRIu32 " there, but the run's header is overwritten", region);
    } else if (region != JEMALLOC_NOT_THERE) {
        used = snprintf(text, size, "is not a region start, but 0x%" PRIx64 " bytes into region %" PRIu32,
                        address - (run.first_region + region * run.stride), region);
    } else {
        used = snprintf(text, size, "is in no region: %s",
                        address < run.first_region ? "in the run's header" : "behind the last one");
    }
    if (used > 0 && (size_t)used < size) {
        explain_by_run_before(jemalloc, &run, address, text + used, size - (size_t)used);
    }
}
