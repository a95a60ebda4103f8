/* The parts of karst.h that hand out blocks; verbs are in run.c, sessions in session.c. */
#include "place.h"
#include "session.h"

static bool prepare(struct karst *session, struct karst_error *error) {
    return karst_target_is_whole(session->target, error) && karst_session_need_heaps(session, error) &&
           karst_session_load_bins(session, error);
}

struct lend_sink {
    struct karst_sink sink;
    bool (*blocks)(void *context, const struct karst_block *blocks, size_t count);
    void *context;
};

static bool lend_blocks(struct karst_sink *base, const struct karst_block *blocks, size_t count) {
    struct lend_sink *sink = (struct lend_sink *)base;
    return sink->blocks(sink->context, blocks, count);
}

bool karst_for_each_block(struct karst *session,
                          bool (*blocks)(void *context, const struct karst_block *blocks, size_t count),
                          void *context, struct karst_error *error) {
    if (!prepare(session, error)) {
        return false;
    }
    struct lend_sink sink = {.sink = {.blocks = lend_blocks}, .blocks = blocks, .context = context};
    karst_session_begin(session, "walking the heap", karst_session_bytes(session));
    return karst_session_walk(session, 0, UINT64_MAX, &sink.sink, error) &&
           karst_target_is_whole(session->target, error);
}

bool karst_find_block(struct karst *session, uint64_t address, struct karst_block *block,
                      struct karst_error *error) {
    struct karst_neighbourhood found;
    if (!karst_target_is_whole(session->target, error) || !karst_session_need_heaps(session, error) ||
        !karst_find_neighbourhood(session, address, &found, error)) {
        return false;
    }
    /* Only the bin of a free block needs the lists, and following them all takes its time. */
    if (found.block.state == KARST_STATE_FREE && found.block.bin == KARST_NONE &&
        (!prepare(session, error) || !karst_find_neighbourhood(session, address, &found, error))) {
        return false;
    }
    *block = found.block;
    return true;
}

static const struct karst_heap *heap_of(const struct karst *session, const struct karst_block *block) {
    return block->heap < session->heap_count ? session->heaps[block->heap] : NULL;
}

const char *karst_allocator_name(struct karst *session, const struct karst_block *block) {
    const struct karst_heap *heap = heap_of(session, block);
    return heap ? heap->name : "";
}

const char *karst_arena_name(struct karst *session, const struct karst_block *block) {
    const struct karst_heap *heap = heap_of(session, block);
    return heap && block->arena < heap->arena_count ? heap->arenas[block->arena].name : "";
}

const char *karst_bin_name(struct karst *session, const struct karst_block *block) {
    const struct karst_heap *heap = heap_of(session, block);
    return heap && block->bin < heap->bin_count ? heap->bins[block->bin].name : "";
}
