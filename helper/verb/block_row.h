/* A block as a row of a table, as a JSON object, as a line of JSON. */
#ifndef KARST_VERB_BLOCK_ROW_H
#define KARST_VERB_BLOCK_ROW_H

#include "call_site.h"
#include "verb.h"

/* {"address", "size", "usable", "state", "allocator", "arena", "bin"}, where blocks are marked also
 * "requested", "site" and "sequence". */
json_t *karst_block_json(struct karst_call *call, const struct karst_block *block);

/* A table of blocks, and its rows; as for karst_table_open(). Where blocks are marked it has what was asked
 * for and the site of live ones; names is of the call's session. */
struct karst_table *karst_block_table(struct karst_call *call);
void karst_block_row(struct karst_call *call, struct karst_table *table, struct karst_site_names *names,
                     const struct karst_block *block);

/* The same object as karst_block_json() on a line of its own, millions of times. What does not change from
 * block to block is put together once. */
struct karst_block_lines {
    struct karst *session;
    struct karst_line_names *heaps;
    size_t heap_count;
    bool marked; /* lines say what was asked for, and where */
    struct karst_site_names sites;
};

/* False: no memory. It has to be closed in any case. */
bool karst_block_lines_open(struct karst_block_lines *lines, struct karst *session);
void karst_block_line(struct karst_block_lines *lines, struct karst_writer *writer,
                      const struct karst_block *block);
void karst_block_lines_close(struct karst_block_lines *lines);

#endif
