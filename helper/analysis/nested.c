#include "nested.h"

#include <inttypes.h>

#define NAMED_MAX 3u

struct karst_nested_count karst_count_nested(const struct karst *session, const struct karst_heap *heap) {
    struct karst_nested_count count = {0};
    for (size_t i = 0; i < session->extent_count; i++) {
        const struct karst_extent *extent = &session->extents[i];
        if (extent->outer && extent->heap == heap->index) {
            count.extents++;
            count.bytes += extent->end - extent->start;
        }
    }
    return count;
}

bool karst_describe_nested(const struct karst *session, const struct karst_block *block,
                           struct karst_facts *facts) {
    uint64_t met = 0, end = block->start + block->size;
    for (size_t i = 0; i < session->extent_count; i++) {
        const struct karst_extent *extent = &session->extents[i];
        if (!extent->outer || extent->heap == block->heap || extent->start < block->start ||
            extent->end > end) {
            continue;
        }
        const struct karst_heap *heap = session->heaps[extent->heap];
        if (++met <= NAMED_MAX &&
            !karst_facts_add(facts, "is", extent->start, "%s of %s %s, %" PRIu64 " bytes",
                             karst_extent_kind_name(extent->kind), heap->name, heap->version,
                             extent->end - extent->start)) {
            return false;
        }
    }
    return met <= NAMED_MAX ||
           karst_facts_add(facts, "is", 0, "and %" PRIu64 " more such extents", met - NAMED_MAX);
}

/* ---- check ----------------------------------------------------------------------------------------------
 */

struct nested_sink {
    struct karst_sink sink;
    struct karst *session;
    struct karst_findings *findings;
    size_t outer;  /* of the extent under way */
    size_t nested; /* the next in it to come */
};

static bool begin_extent(struct karst_sink *base, const struct karst_extent *extent) {
    struct nested_sink *sink = (struct nested_sink *)base;
    sink->outer = (size_t)(extent - sink->session->extents);
    sink->nested = sink->outer + 1;
    return true;
}

static void report(struct nested_sink *sink, const struct karst_extent *extent,
                   const struct karst_block *block) {
    const struct karst_heap *heap = sink->session->heaps[extent->heap],
                            *around = sink->session->heaps[block->heap];
    karst_findings_add(
        sink->findings, KARST_FINDING_OVERLAP,
        around->in_flux ? KARST_SEVERITY_SUSPECT : KARST_SEVERITY_CORRUPT, extent->heap, extent->start,
        extent->end - extent->start,
        "%s uses memory that it does not have from %s: no live block holds all of it\t%s 0x%" PRIx64
        " to 0x%" PRIx64 ", %s block 0x%" PRIx64 " (%s), %" PRIu64 " bytes",
        heap->name, around->name, heap->name, extent->start, extent->end, around->name, block->address,
        karst_state_name(block->state), block->size);
}

static bool take_blocks(struct karst_sink *base, const struct karst_block *blocks, size_t count) {
    struct nested_sink *sink = (struct nested_sink *)base;
    const struct karst *session = sink->session;
    for (size_t i = 0; i < count; i++) {
        uint64_t end = blocks[i].start + blocks[i].size;
        for (; sink->nested < session->extent_count; sink->nested++) {
            const struct karst_extent *extent = &session->extents[sink->nested];
            if (extent->outer != sink->outer + 1 || extent->start >= end) {
                break;
            }
            bool held =
                blocks[i].state == KARST_STATE_LIVE && extent->start >= blocks[i].start && extent->end <= end;
            if (!held) {
                report(sink, extent, &blocks[i]);
            }
        }
    }
    return true;
}

bool karst_check_nested(struct karst *session, struct karst_findings *findings, struct karst_error *error) {
    struct nested_sink sink = {
        .sink = {.extent = begin_extent, .blocks = take_blocks}, .session = session, .findings = findings};
    size_t last = SIZE_MAX;
    for (size_t i = 0; i < session->extent_count; i++) {
        size_t outer = session->extents[i].outer;
        if (outer == 0 || outer == last) {
            continue;
        }
        last = outer;
        const struct karst_extent *around = &session->extents[outer - 1];
        struct karst_heap *heap = session->heaps[around->heap];
        struct karst_error own = {0};
        begin_extent(&sink.sink, around);
        if (!heap->allocator->walk(heap, around, &sink.sink, &own) && own.code != KARST_ERROR_NONE) {
            if (error) {
                *error = own;
            }
            return false;
        }
    }
    return true;
}
