/* The few largest of many blocks. */
#ifndef KARST_ANALYSIS_LARGEST_H
#define KARST_ANALYSIS_LARGEST_H

#include "karst.h"

struct karst_largest {
    struct karst_block *blocks; /* a heap in the sense of a priority queue, the smallest first */
    size_t count, room;
};

/* Room for so many blocks; false: no memory. */
bool karst_largest_open(struct karst_largest *largest, size_t room);
/* Blocks have to come in address order: of equal sizes the first ones are kept. */
void karst_largest_offer(struct karst_largest *largest, const struct karst_block *block);
/* Sorts: the largest first, equal sizes by address. */
void karst_largest_sort(struct karst_largest *largest);
void karst_largest_close(struct karst_largest *largest);

#endif
