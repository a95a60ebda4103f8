#include "sizes.h"

#include <stdlib.h>

/* Open addressing; a slot with no blocks is empty. */
struct counter {
    struct karst_size_class *slots;
    size_t room, used; /* room is a power of two */
    bool exact;
    bool out_of_memory;
};

static uint64_t smallest_of_class(const struct counter *counter, uint64_t size) {
    return counter->exact || size < 2 ? size : UINT64_C(1) << (63 - __builtin_clzll(size));
}

static struct karst_size_class *slot_of(struct karst_size_class *slots, size_t room, uint64_t smallest) {
    size_t at = (size_t)((smallest * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (room - 1);
    while (slots[at].blocks && slots[at].smallest != smallest) {
        at = (at + 1) & (room - 1);
    }
    return &slots[at];
}

static bool grow(struct counter *counter) {
    size_t room = counter->room * 2;
    struct karst_size_class *slots = calloc(room, sizeof *slots);
    if (!slots) {
        return false;
    }
    for (size_t i = 0; i < counter->room; i++) {
        if (counter->slots[i].blocks) {
            *slot_of(slots, room, counter->slots[i].smallest) = counter->slots[i];
        }
    }
    free(counter->slots);
    counter->slots = slots;
    counter->room = room;
    return true;
}

static bool count_block(void *context, const struct karst_block *block) {
    struct counter *counter = context;
    uint64_t smallest = smallest_of_class(counter, block->size);
    struct karst_size_class *slot = slot_of(counter->slots, counter->room, smallest);
    if (slot->blocks == 0) {
        if (counter->used * 4 >= counter->room * 3) {
            if (!grow(counter)) {
                counter->out_of_memory = true;
                return false;
            }
            slot = slot_of(counter->slots, counter->room, smallest);
        }
        counter->used++;
        slot->smallest = smallest;
        slot->largest = counter->exact || smallest == 0 ? smallest : smallest + (smallest - 1);
    }
    slot->blocks++;
    slot->bytes += block->size;
    return true;
}

static int compare_classes(const void *a, const void *b) {
    const struct karst_size_class *x = a, *y = b;
    return x->smallest < y->smallest ? -1 : x->smallest > y->smallest;
}

static void take_classes(struct counter *counter, struct karst_sizes *sizes) {
    size_t count = 0;
    for (size_t i = 0; i < counter->room; i++) {
        if (counter->slots[i].blocks) {
            counter->slots[count++] = counter->slots[i];
        }
    }
    if (count) {
        qsort(counter->slots, count, sizeof *counter->slots, compare_classes);
    }
    sizes->classes = counter->slots;
    sizes->count = count;
}

bool karst_count_sizes(struct karst_filter *filter, bool exact, struct karst_sizes *sizes,
                       struct karst_error *error) {
    struct counter counter = {.room = 256, .exact = exact};
    *sizes = (struct karst_sizes){0};
    counter.slots = calloc(counter.room, sizeof *counter.slots);
    if (!counter.slots) {
        return karst_fail_memory(error);
    }
    filter->block = count_block;
    filter->block_context = &counter;
    bool walked = karst_filter_walk(filter, error);
    filter->block_context = NULL;
    take_classes(&counter, sizes);
    return walked && (!counter.out_of_memory || karst_fail_memory(error));
}

void karst_sizes_clear(struct karst_sizes *sizes) {
    free(sizes->classes);
    *sizes = (struct karst_sizes){0};
}
