/* What an address is in, said to a person. */
#ifndef KARST_ANALYSIS_PLACE_H
#define KARST_ANALYSIS_PLACE_H

#include "session.h"

/* "the stack of thread 12", "main_arena+0x60 in /lib/libc.so.6", "unmapped memory" ...: what holds an address
 * that is in no heap. Always terminated. */
void karst_place_text(struct karst *session, uint64_t address, char *text, size_t size);
/* The blocks around an address that is in a heap's extent. */
struct karst_neighbourhood {
    const struct karst_extent *extent;
    struct karst_block before, block, after;
    bool has_before, has_block, has_after;
    bool has_outer; /* the extent lies in a block of another heap: */
    struct karst_block outer;
};
/* KARST_ERROR_NOT_FOUND says what address is in if it is in no heap. One walk through one
 * extent, or a part of it where the allocator knows the way. */
bool karst_find_neighbourhood(struct karst *session, uint64_t address, struct karst_neighbourhood *found,
                              struct karst_error *error);

#endif
