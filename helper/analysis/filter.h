/* Which blocks are meant: by state, size, arena, bin, address. A sink that hands what passes to another. */
#ifndef KARST_ANALYSIS_FILTER_H
#define KARST_ANALYSIS_FILTER_H

#include "session.h"

/* What a block has to be; the zero struct with ranges set by karst_filter_open() passes all. */
struct karst_filter {
    struct karst_sink sink; /* to be given to karst_session_walk() */
    struct karst *session;
    unsigned states;            /* a bit for each state, 0: all */
    uint64_t smallest, largest; /* of karst_block.size, both included */
    uint64_t from, to;          /* blocks with a byte in [from, to) */
    bool by_request;            /* only those as large as a request of so many bytes takes */
    uint64_t request;
    bool by_word; /* only those whose first word is this one */
    uint64_t word;
    bool (*arena)(void *context, const struct karst_heap *heap, uint32_t arena); /* NULL: all */
    bool (*bin)(void *context, const struct karst_heap *heap, uint32_t bin);     /* NULL: all */
    void *context;                                                               /* of both */
    /* Gets each block that passes; false ends the walk. */
    bool (*block)(void *block_context, const struct karst_block *block);
    void *block_context;
    /* Of what passed. */
    uint64_t matched, matched_bytes;
    /* Under way. */
    bool extent_passes;
    uint64_t request_size;      /* of a block for request in the extent's heap */
    struct karst_window window; /* for first words */
    bool *bins;                 /* of heap bins_of: which pass; owned */
    uint32_t bins_of;
    bool out_of_memory;
};

void karst_filter_open(struct karst_filter *filter, struct karst *session);
/* Walks the blocks in address order. False with error. */
bool karst_filter_walk(struct karst_filter *filter, struct karst_error *error);
void karst_filter_close(struct karst_filter *filter);

#endif
