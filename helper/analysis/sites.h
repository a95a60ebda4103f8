/* Live blocks by call site, from their marks. */
#ifndef KARST_ANALYSIS_SITES_H
#define KARST_ANALYSIS_SITES_H

#include "marker.h"

struct karst_site {
    uint64_t site;
    uint32_t function; /* enum karst_function */
    uint64_t blocks;
    uint64_t bytes;           /* asked for */
    uint64_t damaged;         /* blocks written beyond their end */
    uint64_t oldest, newest;  /* sequence numbers */
    uint64_t largest, sample; /* the largest block and its address */
};

struct karst_sites {
    struct karst_site *items;
    size_t count, capacity;
    uint32_t *slots; /* index + 1 by hash */
    size_t slot_count;
    uint64_t blocks, bytes;
    uint64_t lost;            /* live blocks that nothing is known of: their marks were written over */
    uint64_t least, greatest; /* only blocks of these sizes */
    int64_t thread;           /* only blocks that this thread allocated; 0: all */
};

/* Counts; sites is all zeros but for the filters. Those met are in no order. */
bool karst_count_sites(struct karst_marker *marker, struct karst *session, struct karst_sites *sites,
                       struct karst_error *error) KARST_CHECKED;
void karst_sites_clear(struct karst_sites *sites);

#endif
