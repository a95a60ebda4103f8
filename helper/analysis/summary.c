#include "summary.h"

#include <stdlib.h>

struct summary_sink {
    struct karst_sink sink;
    struct karst *session;
    struct karst_summary *summary;
    struct karst_summary_row *row; /* of the extent under way */
    struct karst_hole_tracker tracker;
    uint64_t page_size;
    bool resident_known; /* of the extent under way */
};

/* Adds what may be UINT64_MAX, "can't be told", which stays. */
static void add_known(uint64_t *sum, uint64_t more) {
    *sum = *sum == UINT64_MAX || more == UINT64_MAX ? UINT64_MAX : *sum + more;
}

static bool begin_extent(struct karst_sink *base, const struct karst_extent *extent) {
    struct summary_sink *sink = (struct summary_sink *)base;
    const struct karst_heap *heap = sink->session->heaps[extent->heap];
    size_t arena = extent->arena < heap->arena_count ? extent->arena : heap->arena_count;
    struct karst_summary_row *row = &sink->summary->arenas[extent->heap][arena];
    uint64_t resident = karst_target_resident(sink->session->target, extent->start, extent->end);
    sink->row = row;
    sink->resident_known = resident != UINT64_MAX;
    row->system_bytes += extent->end - extent->start;
    row->extents++;
    add_known(&row->resident_bytes, resident);
    karst_hole_begin_extent(&sink->tracker);
    return true;
}

/* The pages that lie in the block as a whole; asked for only where there can be one. */
static void add_resident(struct summary_sink *sink, const struct karst_block *block) {
    uint64_t mask = sink->page_size - 1;
    uint64_t first = (block->start + mask) & ~mask, last = (block->start + block->size) & ~mask;
    if (last <= first) {
        return;
    }
    uint64_t resident =
        sink->resident_known ? karst_target_resident(sink->session->target, first, last) : UINT64_MAX;
    add_known(&sink->row->resident[block->state], resident);
}

static void add_hole(struct karst_summary_row *row, const struct karst_hole *hole) {
    row->holes++;
    row->hole_bytes += hole->end - hole->start;
    if (row->largest.end == 0 || hole->usable > row->largest.usable) {
        row->largest = *hole;
    }
}

static bool take_blocks(struct karst_sink *base, const struct karst_block *blocks, size_t count) {
    struct summary_sink *sink = (struct summary_sink *)base;
    struct karst_summary_row *row = sink->row;
    struct karst_hole hole;
    for (size_t i = 0; i < count; i++) {
        const struct karst_block *block = &blocks[i];
        row->states[block->state].blocks++;
        row->states[block->state].bytes += block->size;
        if (block->state == KARST_STATE_LIVE) {
            if (block->flags & KARST_BLOCK_MAPPED) {
                row->mapped.blocks++;
                row->mapped.bytes += block->size;
            }
        } else if (block->size >= sink->page_size && block->state <= KARST_STATE_TOP) {
            add_resident(sink, block);
        }
        if (karst_hole_next(&sink->tracker, block, &hole)) {
            add_hole(row, &hole);
        }
    }
    return true;
}

/* ---- page runs as a whole --------------------------------------------------------------------------- */

static bool is_set(const uint64_t *set, uint32_t region) {
    return set[region / 64] >> (region % 64) & 1;
}

static enum karst_state state_of(const struct karst_regions *regions, uint32_t region) {
    return is_set(regions->free, region)     ? KARST_STATE_FREE
           : is_set(regions->cached, region) ? KARST_STATE_CACHED
           : is_set(regions->own, region)    ? KARST_STATE_METADATA
                                             : KARST_STATE_LIVE;
}

/* The holes' part of regions from to end, one by one. */
static void follow_regions(struct summary_sink *sink, const struct karst_regions *regions, uint32_t from,
                           uint32_t end) {
    struct karst_hole hole;
    for (uint32_t i = from; i < end; i++) {
        struct karst_block block = {.start = regions->start + i * regions->size,
                                    .size = regions->size,
                                    .state = (uint8_t)state_of(regions, i),
                                    .flags = i ? KARST_BLOCK_REGION : regions->flags};
        if (karst_hole_next(&sink->tracker, &block, &hole)) {
            add_hole(sink->row, &hole);
        }
    }
}

/* The first and last region that bounds holes: false: none does. */
static bool find_bounds(const struct karst_regions *regions, uint32_t *first, uint32_t *last) {
    bool found = false;
    for (uint32_t word = 0; word * 64 < regions->count; word++) {
        uint32_t rest = regions->count - word * 64;
        uint64_t used =
            ~(regions->free[word] | regions->cached[word]) & (rest < 64 ? (1ull << rest) - 1 : UINT64_MAX);
        if (used) {
            *first = found ? *first : word * 64 + (uint32_t)__builtin_ctzll(used);
            *last = word * 64 + 63 - (uint32_t)__builtin_clzll(used);
            found = true;
        }
    }
    return found;
}

/* The holes between two regions that bound them, by their bits. None of them offers more than a region, and
 * so none is the largest. */
static void count_holes(struct summary_sink *sink, const struct karst_regions *regions, uint32_t first,
                        uint32_t last) {
    struct karst_summary_row *row = sink->row;
    uint64_t before = 0, holes = 0, unused = 0;
    for (uint32_t word = first / 64; word <= last / 64; word++) {
        uint64_t bits = regions->free[word] | regions->cached[word];
        bits &= word == first / 64 ? UINT64_MAX << first % 64 : UINT64_MAX;
        bits &= word == last / 64 ? UINT64_MAX >> (63 - last % 64) : UINT64_MAX;
        holes += (uint64_t)__builtin_popcountll(bits & ~(bits << 1 | before));
        unused += (uint64_t)__builtin_popcountll(bits);
        before = bits >> 63;
    }
    row->holes += holes;
    row->hole_bytes += unused * regions->size;
}

static bool take_regions(struct karst_sink *base, const struct karst_regions *regions) {
    struct summary_sink *sink = (struct summary_sink *)base;
    struct karst_summary_row *row = sink->row;
    uint64_t counts[KARST_STATES] = {0};
    for (uint32_t word = 0; word * 64 < regions->count; word++) {
        counts[KARST_STATE_FREE] += (uint64_t)__builtin_popcountll(regions->free[word]);
        counts[KARST_STATE_CACHED] += (uint64_t)__builtin_popcountll(regions->cached[word]);
        counts[KARST_STATE_METADATA] += (uint64_t)__builtin_popcountll(regions->own[word]);
    }
    counts[KARST_STATE_LIVE] =
        regions->count - counts[KARST_STATE_FREE] - counts[KARST_STATE_CACHED] - counts[KARST_STATE_METADATA];
    for (int state = 0; state < KARST_STATES; state++) {
        row->states[state].blocks += counts[state];
        row->states[state].bytes += counts[state] * regions->size;
    }
    uint32_t first, last;
    bool may_be_largest = row->largest.end == 0 || regions->size > row->largest.usable;
    if (may_be_largest || !find_bounds(regions, &first, &last)) {
        follow_regions(sink, regions, 0, regions->count);
        return true;
    }
    follow_regions(sink, regions, 0, first + 1);
    if (last > first) {
        count_holes(sink, regions, first, last);
        karst_hole_skip(&sink->tracker, regions->start + last * regions->size);
        follow_regions(sink, regions, last, last + 1);
    }
    follow_regions(sink, regions, last + 1, regions->count);
    return true;
}

/* ---- putting it together ---------------------------------------------------------------------------- */

static void add_row(struct karst_summary_row *sum, const struct karst_summary_row *row) {
    sum->system_bytes += row->system_bytes;
    sum->extents += row->extents;
    for (int state = 0; state < KARST_STATES; state++) {
        sum->states[state].blocks += row->states[state].blocks;
        sum->states[state].bytes += row->states[state].bytes;
        add_known(&sum->resident[state], row->resident[state]);
    }
    sum->mapped.blocks += row->mapped.blocks;
    sum->mapped.bytes += row->mapped.bytes;
    sum->holes += row->holes;
    sum->hole_bytes += row->hole_bytes;
    if (row->largest.end && (sum->largest.end == 0 || row->largest.usable > sum->largest.usable)) {
        sum->largest = row->largest;
    }
    add_known(&sum->resident_bytes, row->resident_bytes);
}

static bool make_rows(const struct karst *session, struct karst_summary *summary) {
    summary->heaps = calloc(session->heap_count + 1, sizeof *summary->heaps);
    summary->arenas = calloc(session->heap_count + 1, sizeof *summary->arenas);
    if (!summary->heaps || !summary->arenas) {
        return false;
    }
    summary->heap_count = session->heap_count;
    for (size_t i = 0; i < session->heap_count; i++) {
        summary->arenas[i] = calloc(session->heaps[i]->arena_count + 1, sizeof **summary->arenas);
        if (!summary->arenas[i]) {
            return false;
        }
    }
    return true;
}

static void take_off(uint64_t *sum, uint64_t bytes) {
    *sum -= bytes < *sum ? bytes : *sum;
}

/* What lies in a block of another heap counts once in all: as what the inner heap says it is, and not as part
 * of the live block around it. */
static void count_once(struct karst *session, struct karst_summary_row *total) {
    for (size_t i = 0; i < session->extent_count; i++) {
        const struct karst_extent *extent = &session->extents[i];
        uint64_t bytes = extent->end - extent->start;
        if (!extent->outer) {
            continue;
        }
        uint64_t resident = karst_target_resident(session->target, extent->start, extent->end);
        take_off(&total->system_bytes, bytes);
        take_off(&total->states[KARST_STATE_LIVE].bytes, bytes);
        if (session->extents[extent->outer - 1].kind == KARST_EXTENT_MAPPED) {
            take_off(&total->mapped.bytes, bytes);
        }
        if (total->resident_bytes != UINT64_MAX && resident != UINT64_MAX) {
            take_off(&total->resident_bytes, resident);
        }
    }
}

bool karst_summarize(struct karst *session, struct karst_summary *summary, struct karst_error *error) {
    *summary = (struct karst_summary){0};
    if (!make_rows(session, summary)) {
        return karst_fail_memory(error);
    }
    struct summary_sink sink = {
        .sink = {.extent = begin_extent, .blocks = take_blocks, .regions = take_regions},
        .session = session,
        .summary = summary,
        .page_size = session->target->page_size ? session->target->page_size : 4096,
    };
    sink.sink.regions_below = sink.page_size; /* of larger ones it is asked which pages are resident */
    karst_session_begin(session, "walking the heap", karst_session_bytes(session));
    if (!karst_session_walk(session, 0, UINT64_MAX, &sink.sink, error)) {
        return false;
    }
    for (size_t i = 0; i < session->heap_count; i++) {
        for (size_t arena = 0; arena <= session->heaps[i]->arena_count; arena++) {
            add_row(&summary->heaps[i], &summary->arenas[i][arena]);
        }
        add_row(&summary->total, &summary->heaps[i]);
    }
    count_once(session, &summary->total);
    return true;
}

void karst_summary_clear(struct karst_summary *summary) {
    for (size_t i = 0; i < summary->heap_count && summary->arenas; i++) {
        free(summary->arenas[i]);
    }
    free(summary->heaps);
    free(summary->arenas);
    *summary = (struct karst_summary){0};
}
