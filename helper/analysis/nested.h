/* Extents that lie in a block of another allocator: an arena that pymalloc got from malloc, say. */
#ifndef KARST_ANALYSIS_NESTED_H
#define KARST_ANALYSIS_NESTED_H

#include "session.h"

/* How many of heap's extents are nested, and their bytes. */
struct karst_nested_count {
    uint64_t extents, bytes;
};
struct karst_nested_count karst_count_nested(const struct karst *session, const struct karst_heap *heap);

/* Adds the nested extents inside a block to facts, at most a few by name. False: no memory. */
bool karst_describe_nested(const struct karst *session, const struct karst_block *block,
                           struct karst_facts *facts);

/* Finds nested extents that do not lie in one live block of the heap around them. One walk through the
 * extents around. False with error. */
bool karst_check_nested(struct karst *session, struct karst_findings *findings, struct karst_error *error);

#endif
