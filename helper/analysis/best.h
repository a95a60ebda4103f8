/* The greatest few of many: keeps at most so many items by key, in memory for those only. */
#ifndef KARST_ANALYSIS_BEST_H
#define KARST_ANALYSIS_BEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct karst_best_entry {
    uint64_t key;
    uint64_t order; /* of equal keys the one offered first is the greater */
    size_t slot;
};

struct karst_best {
    size_t item_size;
    size_t limit; /* items kept; 0: none */
    size_t count;
    size_t room;
    uint64_t offered;
    struct karst_best_entry *entries; /* a heap, the least first; sorted by karst_best_sort() */
    unsigned char *items;             /* in slots */
    bool out_of_memory;               /* an item was lost */
};

/* limit items of item_size bytes; no memory is taken before it is needed. */
void karst_best_open(struct karst_best *best, size_t item_size, size_t limit);
void karst_best_close(struct karst_best *best);
/* Room for an item with this key, zeroed, valid until the next offer; NULL: it is not among the best. */
void *karst_best_offer(struct karst_best *best, uint64_t key);
/* Puts the greatest first; nothing may be offered afterwards. */
void karst_best_sort(struct karst_best *best);
/* Item number index, below best->count: in order once sorted. */
void *karst_best_item(const struct karst_best *best, size_t index);

#endif
