/* Which pages of a program's heaps a fork still shares and which are its own by now, and what is on them that
 * makes CPython write to a page though nobody changes anything: the collector's headers and counts of
 * references. */
#ifndef KARST_RUNTIME_CPYTHON_COPIED_H
#define KARST_RUNTIME_CPYTHON_COPIED_H

#include "cpython.h"

/* What is on a page, the first that applies. */
enum cpython_copied_by {
    CPYTHON_COPIED_COLLECTOR, /* headers of objects that a collection goes through: it writes to them */
    CPYTHON_COPIED_COUNTS, /* else counts of references, but no immortal ones: who looks at an object writes
                              there */
    CPYTHON_COPIED_WRITES, /* else no object begins there: buffers, free blocks; only a change writes there */
    CPYTHON_COPIED_KINDS
};
/* "collector", "counts", "writes" */
const char *cpython_copied_name(enum cpython_copied_by by);

/* Bytes in resident pages. */
struct cpython_copied_bytes {
    uint64_t resident, own; /* what is not own is shared with other processes */
    uint64_t own_by[CPYTHON_COPIED_KINDS], shared_by[CPYTHON_COPIED_KINDS];
};

/* An extent, but for what other extents have in it. A page belongs to where its first byte is. */
struct cpython_copied_row {
    const struct karst_extent *extent;
    struct cpython_copied_bytes bytes;
    uint64_t
        object; /* of a block with a mapping of its own: the object in it, or whose it is; 0: not known */
    const char *what; /* "items", "table": what of the object it is; NULL: the object itself. Static */
};

struct cpython_copied {
    struct cpython_copied_row *rows; /* owned; in address order */
    size_t count;
};

/* Looks at all heaps. UNSUPPORTED where the target does not know which pages are shared: a core. */
bool cpython_copied_find(struct cpython *python, struct cpython_copied *copied, struct karst_error *error);
void cpython_copied_clear(struct cpython_copied *copied);
void cpython_copied_add(struct cpython_copied_bytes *sum, const struct cpython_copied_bytes *more);

#endif
