/* The engine's own walk with the least possible consumer, to hold against bare_loop: the same chunks have
 * to come out.
 *
 *   count_blocks CORE LAYOUT      prints: chunks in-use
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "karst.h"

#define SEGMENTS 4096

struct counter {
    uint64_t starts[SEGMENTS], ends[SEGMENTS];
    size_t segments, segment;
    uint64_t chunks, in_use;
};

/* A heap's bookkeeping before its first chunk and the fences at its end are no chunks: see bare_loop.c.
 * The layout is sorted, as the blocks are. */
static bool count(void *context, const struct karst_block *blocks, size_t count) {
    struct counter *counter = context;
    for (size_t i = 0; i < count; i++) {
        const struct karst_block *block = &blocks[i];
        while (counter->segment < counter->segments && block->start >= counter->ends[counter->segment]) {
            counter->segment++;
        }
        if (counter->segment == counter->segments || block->start < counter->starts[counter->segment] ||
            (block->state == KARST_STATE_METADATA && block->size <= 48)) {
            continue;
        }
        counter->chunks++;
        counter->in_use += block->state == KARST_STATE_LIVE || block->state == KARST_STATE_CACHED ||
                           block->state == KARST_STATE_METADATA;
    }
    return true;
}

static bool read_layout(struct counter *counter, const char *path) {
    FILE *layout = fopen(path, "r");
    if (!layout) {
        return false;
    }
    uint64_t start, end;
    while (counter->segments < SEGMENTS && fscanf(layout, "%*15s %" SCNx64 " %" SCNx64, &start, &end) == 2) {
        size_t at = counter->segments++;
        for (; at > 0 && counter->starts[at - 1] > start; at--) {
            counter->starts[at] = counter->starts[at - 1];
            counter->ends[at] = counter->ends[at - 1];
        }
        counter->starts[at] = start;
        counter->ends[at] = end;
    }
    fclose(layout);
    return counter->segments > 0;
}

int main(int argc, char **argv) {
    static struct counter counter;
    struct karst_error error = {0};
    if (argc != 3 || !read_layout(&counter, argv[2])) {
        fprintf(stderr, "usage: count_blocks CORE LAYOUT\n");
        return 2;
    }
    struct karst *session = karst_open_core(argv[1], NULL, &error);
    bool done = session && karst_for_each_block(session, count, &counter, &error);
    karst_close(session);
    if (!done) {
        fprintf(stderr, "count_blocks: %s\n", error.text);
        return 2;
    }
    printf("%" PRIu64 " %" PRIu64 "\n", counter.chunks, counter.in_use);
    return 0;
}
