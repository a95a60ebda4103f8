#include "largest.h"

#include <stdlib.h>

bool karst_largest_open(struct karst_largest *largest, size_t room) {
    *largest = (struct karst_largest){.room = room};
    largest->blocks = calloc(room + 1, sizeof *largest->blocks);
    return largest->blocks != NULL;
}

/* Which one goes first when there is no room. */
static bool goes_before(const struct karst_block *a, const struct karst_block *b) {
    return a->size != b->size ? a->size < b->size : a->start > b->start;
}

static void sink_down(struct karst_largest *largest, size_t at) {
    struct karst_block *blocks = largest->blocks;
    for (;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < largest->count; child++) {
            if (goes_before(&blocks[child], &blocks[least])) {
                least = child;
            }
        }
        if (least == at) {
            return;
        }
        struct karst_block swapped = blocks[at];
        blocks[at] = blocks[least];
        blocks[least] = swapped;
        at = least;
    }
}

static void rise(struct karst_largest *largest, size_t at) {
    struct karst_block *blocks = largest->blocks;
    while (at > 0 && goes_before(&blocks[at], &blocks[(at - 1) / 2])) {
        struct karst_block swapped = blocks[at];
        blocks[at] = blocks[(at - 1) / 2];
        blocks[(at - 1) / 2] = swapped;
        at = (at - 1) / 2;
    }
}

void karst_largest_offer(struct karst_largest *largest, const struct karst_block *block) {
    if (largest->count < largest->room) {
        largest->blocks[largest->count++] = *block;
        rise(largest, largest->count - 1);
    } else if (largest->room && goes_before(&largest->blocks[0], block)) {
        largest->blocks[0] = *block;
        sink_down(largest, 0);
    }
}

static int compare_blocks(const void *a, const void *b) {
    return goes_before(a, b) ? 1 : -1;
}

void karst_largest_sort(struct karst_largest *largest) {
    if (largest->count) {
        qsort(largest->blocks, largest->count, sizeof *largest->blocks, compare_blocks);
    }
}

void karst_largest_close(struct karst_largest *largest) {
    free(largest->blocks);
    *largest = (struct karst_largest){0};
}
