#include "filter.h"

#include <stdlib.h>
#include <string.h>

static bool load_bins_that_pass(struct karst_filter *filter, const struct karst_heap *heap) {
    if (filter->bins_of == heap->index) {
        return true;
    }
    free(filter->bins);
    filter->bins = calloc(heap->bin_count + 1, sizeof *filter->bins);
    if (!filter->bins) {
        filter->out_of_memory = true;
        return false;
    }
    for (uint32_t bin = 0; bin < heap->bin_count; bin++) {
        filter->bins[bin] = filter->bin(filter->context, heap, bin);
    }
    filter->bins_of = heap->index;
    return true;
}

static bool begin_extent(struct karst_sink *base, const struct karst_extent *extent) {
    struct karst_filter *filter = (struct karst_filter *)base;
    struct karst_heap *heap = filter->session->heaps[extent->heap];
    bool mapped;
    if (filter->by_request) {
        filter->request_size = heap->allocator->block_size(heap, filter->request, &mapped);
    }
    filter->extent_passes = !filter->arena || filter->arena(filter->context, heap, extent->arena);
    return !filter->bin || load_bins_that_pass(filter, heap);
}

static bool begins_with_word(struct karst_filter *filter, const struct karst_block *block) {
    uint64_t word;
    const uint8_t *bytes = NULL;
    if (block->usable >= sizeof word) {
        bytes = karst_window_at(&filter->window, block->address, sizeof word);
    }
    if (!bytes) {
        return false;
    }
    memcpy(&word, bytes, sizeof word);
    return word == filter->word;
}

static bool passes(struct karst_filter *filter, const struct karst_block *block) {
    if (!(filter->states & (1u << block->state)) || block->size < filter->smallest ||
        block->size > filter->largest || block->start >= filter->to ||
        block->start + (block->size - 1) < filter->from) {
        return false;
    }
    if ((filter->by_request && block->size != filter->request_size) ||
        (filter->by_word && !begins_with_word(filter, block))) {
        return false;
    }
    return !filter->bin || (block->bin != KARST_NONE && filter->bins[block->bin]);
}

static bool take_blocks(struct karst_sink *base, const struct karst_block *blocks, size_t count) {
    struct karst_filter *filter = (struct karst_filter *)base;
    if (!filter->extent_passes) {
        return true;
    }
    for (size_t i = 0; i < count; i++) {
        if (passes(filter, &blocks[i])) {
            filter->matched++;
            filter->matched_bytes += blocks[i].size;
            if (!filter->block(filter->block_context, &blocks[i])) {
                return false;
            }
        }
    }
    return true;
}

void karst_filter_open(struct karst_filter *filter, struct karst *session) {
    *filter = (struct karst_filter){.sink = {.extent = begin_extent, .blocks = take_blocks},
                                    .session = session,
                                    .largest = UINT64_MAX,
                                    .to = UINT64_MAX,
                                    .bins_of = KARST_NONE};
    karst_window_open(&filter->window, session->target, 1 << 20);
}

bool karst_filter_walk(struct karst_filter *filter, struct karst_error *error) {
    if (!filter->states) {
        filter->states = (1u << KARST_STATES) - 1;
    }
    karst_session_begin(filter->session, "walking the heap", karst_session_bytes(filter->session));
    if (!karst_session_walk(filter->session, filter->from, filter->to, &filter->sink, error)) {
        return false;
    }
    return !filter->out_of_memory || karst_fail_memory(error);
}

void karst_filter_close(struct karst_filter *filter) {
    karst_window_close(&filter->window);
    free(filter->bins);
    filter->bins = NULL;
}
