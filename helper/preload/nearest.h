/* What was meant by a mistyped word. Used by the preload library, for traps, and by the engine; takes no
 * memory. */
#ifndef KARST_PRELOAD_NEAREST_H
#define KARST_PRELOAD_NEAREST_H

#include <stddef.h>

/* The word nearest to word so far. */
struct karst_nearest {
    const char *word;
    const char *nearest; /* NULL: none is near enough */
    size_t distance;
};

void karst_nearest_offer(struct karst_nearest *nearest, const char *candidate);

#endif
