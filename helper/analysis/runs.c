#include "runs.h"

#include <string.h>

static uint64_t block_end(const struct karst_block *block) {
    return block->start + block->size;
}

/* A cached block that the allocator merges with its free neighbours before it asks the system. */
static bool is_merged_on_demand(const struct karst *session, const struct karst_block *block) {
    if (block->heap >= session->heap_count) {
        return false;
    }
    const struct karst_heap *heap = session->heaps[block->heap];
    return block->bin < heap->bin_count && heap->bins[block->bin].trimmed;
}

/* A free region of a page run: no other request can have it, nor does it keep anything from coalescing. */
static bool is_free_region(const struct karst_block *block) {
    return block->state == KARST_STATE_FREE && (block->flags & KARST_BLOCK_REGION);
}

/* Of a page run's own: it goes with the last block in there. */
static bool is_run_metadata(const struct karst_block *block) {
    return block->state == KARST_STATE_METADATA && (block->flags & KARST_BLOCK_REGION);
}

static bool gap_is_empty(const struct karst_gap *gap) {
    return gap->live + gap->cached + gap->other == 0;
}

static void open_part(struct karst_run_reader *reader, const struct karst_block *block,
                      const struct karst_block *previous) {
    reader->part_open = true;
    reader->part = (struct karst_part){.extent = reader->extent, .start = block->start};
    if (previous) {
        bool aside = is_free_region(previous) || is_run_metadata(previous);
        reader->gap.last = aside && !gap_is_empty(&reader->gap) ? reader->last_counted : *previous;
    }
    reader->gap.end = block->start;
    reader->part.gap = reader->gap;
}

/* behind: NULL at the end of the extent. */
static void close_part(struct karst_run_reader *reader, const struct karst_block *behind) {
    reader->part_open = false;
    if (behind) {
        reader->part.has_behind = true;
        reader->part.behind = *behind;
        reader->gap = (struct karst_gap){.after_part = true, .start = reader->part.end, .first = *behind};
    }
    reader->consumer->part(reader->consumer, &reader->part);
}

static void open_run(struct karst_run_reader *reader, const struct karst_block *block,
                     const struct karst_block *previous) {
    reader->run_open = true;
    reader->run = (struct karst_run){.extent = reader->extent};
    karst_hole_begin_extent(&reader->tracker);
    reader->tracker.hole.start = block->start;
    if (previous) {
        reader->run.has_before = true;
        reader->run.before = *previous;
    } else if (block->flags & KARST_BLOCK_REGION) {
        /* A page run's own beginning bounds it. */
        reader->run.has_before = true;
        reader->run.before = *block;
    }
}

static void close_run(struct karst_run_reader *reader, const struct karst_block *after) {
    if (reader->part_open) {
        close_part(reader, after);
    }
    reader->run_open = false;
    reader->run.hole = reader->tracker.hole;
    if (after) {
        reader->run.has_after = true;
        reader->run.after = *after;
    }
    reader->consumer->run(reader->consumer, &reader->run);
}

static void count_unused(struct karst_run_reader *reader, const struct karst_block *block) {
    karst_hole_add(&reader->tracker, block);
    reader->tracker.hole.end = block_end(block);
    switch (block->state) {
    case KARST_STATE_FREE:
        reader->run.blocks++;
        reader->totals.free_bytes += block->size;
        reader->totals.free_blocks++;
        break;
    case KARST_STATE_CACHED:
        reader->run.blocks++;
        reader->totals.cached_bytes += block->size;
        reader->totals.cached_blocks++;
        break;
    default:
        reader->run.top_bytes += block->size;
        reader->totals.top_bytes += block->size;
    }
}

static void take_unused(struct karst_run_reader *reader, const struct karst_block *block,
                        const struct karst_block *previous) {
    bool parted = previous && karst_hole_parted(previous->flags & KARST_BLOCK_REGION, block);
    if (reader->run_open && parted) {
        close_run(reader, block);
    }
    if (!reader->run_open) {
        open_run(reader, block, previous);
    }
    count_unused(reader, block);
    if (is_free_region(block)) {
        if (reader->part_open) {
            close_part(reader, block);
        }
        return;
    }
    if (block->state == KARST_STATE_CACHED && !is_merged_on_demand(reader->session, block)) {
        if (reader->part_open) {
            close_part(reader, block);
        } else if (gap_is_empty(&reader->gap)) {
            reader->gap.first = *block;
        }
        reader->gap.cached++;
        reader->last_counted = *block;
        return;
    }
    if (!reader->part_open) {
        open_part(reader, block, previous);
    }
    reader->part.end = block_end(block);
    reader->part.top += block->state == KARST_STATE_TOP ? block->size : 0;
}

static void take_used(struct karst_run_reader *reader, const struct karst_block *block) {
    if (reader->run_open) {
        close_run(reader, block);
    }
    if (gap_is_empty(&reader->gap)) {
        reader->gap.first = *block;
    }
    if (is_run_metadata(block)) {
        reader->totals.metadata_bytes += block->size;
        return;
    }
    reader->last_counted = *block;
    switch (block->state) {
    case KARST_STATE_LIVE:
        reader->gap.live++;
        reader->totals.live_blocks++;
        return;
    case KARST_STATE_METADATA:
        reader->totals.metadata_bytes += block->size;
        break;
    default:
        if (block->flags & KARST_BLOCK_FOREIGN) {
            reader->totals.foreign_bytes += block->size;
        } else {
            reader->totals.unknown_bytes += block->size;
            reader->totals.unknown_ranges++;
        }
    }
    reader->gap.other++;
}

static bool take_blocks(struct karst_sink *sink, const struct karst_block *blocks, size_t count) {
    struct karst_run_reader *reader = (struct karst_run_reader *)sink;
    if (!reader->extent || count == 0) {
        return true;
    }
    size_t i = 0;
    while (i < count) {
        const struct karst_block *block = &blocks[i];
        const struct karst_block *previous = i ? block - 1 : reader->has_last ? &reader->last : NULL;
        if (!karst_hole_bounded_by((enum karst_state)block->state)) {
            take_unused(reader, block, previous);
            i++;
            continue;
        }
        take_used(reader, block);
        /* Most blocks are live and follow another one: these cost a compare. */
        size_t first = ++i;
        while (i < count && blocks[i].state == KARST_STATE_LIVE) {
            i++;
        }
        reader->last_counted = i > first ? blocks[i - 1] : reader->last_counted;
        reader->gap.live += i - first;
        reader->totals.live_blocks += i - first;
    }
    reader->last = blocks[count - 1];
    reader->has_last = true;
    return true;
}

static bool take_extent(struct karst_sink *sink, const struct karst_extent *extent) {
    struct karst_run_reader *reader = (struct karst_run_reader *)sink;
    karst_run_reader_finish(reader);
    bool wanted = extent->kind != KARST_EXTENT_MAPPED &&
                  (!reader->wanted || reader->wanted(reader->wanted_context, extent));
    reader->extent = wanted ? extent : NULL;
    reader->gap = (struct karst_gap){.start = extent->start};
    if (wanted) {
        reader->totals.bytes += extent->end - extent->start;
    }
    return true;
}

void karst_run_reader_open(struct karst_run_reader *reader, struct karst *session,
                           struct karst_run_consumer *consumer) {
    memset(reader, 0, sizeof *reader);
    reader->sink.extent = take_extent;
    reader->sink.blocks = take_blocks;
    reader->session = session;
    reader->consumer = consumer;
}

void karst_run_reader_finish(struct karst_run_reader *reader) {
    if (reader->extent && reader->run_open) {
        close_run(reader, NULL);
    }
    reader->extent = NULL;
    reader->has_last = reader->run_open = reader->part_open = false;
}
