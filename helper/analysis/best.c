#include "best.h"

#include <stdlib.h>
#include <string.h>

void karst_best_open(struct karst_best *best, size_t item_size, size_t limit) {
    *best = (struct karst_best){.item_size = item_size, .limit = limit};
}

void karst_best_close(struct karst_best *best) {
    free(best->entries);
    free(best->items);
    best->entries = NULL;
    best->items = NULL;
    best->count = best->room = 0;
}

static bool less(const struct karst_best_entry *a, const struct karst_best_entry *b) {
    return a->key != b->key ? a->key < b->key : a->order > b->order;
}

static bool grow(struct karst_best *best) {
    size_t room = best->room ? best->room * 2 : 16;
    room = room < best->limit ? room : best->limit;
    struct karst_best_entry *entries = reallocarray(best->entries, room, sizeof *entries);
    if (!entries) {
        return false;
    }
    best->entries = entries;
    unsigned char *items = reallocarray(best->items, room, best->item_size);
    if (!items) {
        return false;
    }
    best->items = items;
    best->room = room;
    return true;
}

static void sift_up(struct karst_best *best, size_t index) {
    struct karst_best_entry entry = best->entries[index];
    while (index > 0 && less(&entry, &best->entries[(index - 1) / 2])) {
        best->entries[index] = best->entries[(index - 1) / 2];
        index = (index - 1) / 2;
    }
    best->entries[index] = entry;
}

static void sift_down(struct karst_best *best, size_t index) {
    struct karst_best_entry entry = best->entries[index];
    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= best->count) {
            break;
        }
        if (child + 1 < best->count && less(&best->entries[child + 1], &best->entries[child])) {
            child++;
        }
        if (!less(&best->entries[child], &entry)) {
            break;
        }
        best->entries[index] = best->entries[child];
        index = child;
    }
    best->entries[index] = entry;
}

void *karst_best_offer(struct karst_best *best, uint64_t key) {
    uint64_t order = best->offered++;
    if (best->limit == 0 || (best->count == best->limit && key <= best->entries[0].key)) {
        return NULL;
    }
    size_t slot = best->count;
    if (best->count < best->limit) {
        if (best->count == best->room && !grow(best)) {
            best->out_of_memory = true;
            return NULL;
        }
        best->entries[best->count++] = (struct karst_best_entry){key, order, slot};
        sift_up(best, best->count - 1);
    } else {
        slot = best->entries[0].slot;
        best->entries[0] = (struct karst_best_entry){key, order, slot};
        sift_down(best, 0);
    }
    void *item = best->items + slot * best->item_size;
    memset(item, 0, best->item_size);
    return item;
}

static int compare(const void *a, const void *b) {
    return less(a, b) ? 1 : less(b, a) ? -1 : 0;
}

void karst_best_sort(struct karst_best *best) {
    if (best->count) {
        qsort(best->entries, best->count, sizeof *best->entries, compare);
    }
}

void *karst_best_item(const struct karst_best *best, size_t index) {
    return best->items + best->entries[index].slot * best->item_size;
}
