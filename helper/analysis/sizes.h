/* How many blocks there are of which size. */
#ifndef KARST_ANALYSIS_SIZES_H
#define KARST_ANALYSIS_SIZES_H

#include "filter.h"

/* Blocks of smallest to largest bytes, both included. */
struct karst_size_class {
    uint64_t smallest, largest;
    uint64_t blocks, bytes;
};

/* Classes by size, without empty ones. */
struct karst_sizes {
    struct karst_size_class *classes;
    size_t count;
};

/* Counts the blocks that filter lets pass: classes of powers of two, or one for each size. Sets filter's
 * block. Memory: a word for each different size, of which a heap of n bytes can have no more
 * than about the square root of n. False with error; sizes has to be cleared in any case. */
bool karst_count_sizes(struct karst_filter *filter, bool exact, struct karst_sizes *sizes,
                       struct karst_error *error);
void karst_sizes_clear(struct karst_sizes *sizes);

#endif
