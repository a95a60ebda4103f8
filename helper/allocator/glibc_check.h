/* glibc malloc: what the parts of its check share. glibc_check_bins.c follows the doubly linked bins,
 * glibc_check_caches.c fastbins and tcaches, glibc_check.c looks at the chunks in address order and the
 * arenas. */
#ifndef KARST_ALLOCATOR_GLIBC_CHECK_H
#define KARST_ALLOCATOR_GLIBC_CHECK_H

#include "glibc.h"
#include "marks.h"

struct glibc_checking {
    struct glibc_heap *glibc;
    struct karst_findings *findings;
    struct karst_error *error;
    struct karst_marks *marks; /* per extent of the heap */
    uint8_t *seen;             /* per entry of the cached set: met while its list was followed */
    unsigned named;            /* lists named so far */
    bool in_flux;              /* what is looked at right now may be half changed */
    /* the list being followed */
    const struct glibc_arena *arena;
    const struct glibc_tcache *tcache;
    unsigned index;
    uint32_t bin;
    uint64_t previous; /* the node before, the head for the first */
    uint64_t previous_size;
    uint64_t repeated; /* the node at which a list came back to itself */
    /* the extent being walked */
    const struct karst_extent *extent;
    uint64_t last_free; /* the chunk before, if it is free */
    uint64_t bytes;     /* since progress was last told */
    uint64_t foreign;   /* bytes in extents that are not malloc's */
    struct glibc_hunt *hunt;
};

/* What a thread stopped in the middle of malloc could explain is only suspect. */
static inline enum karst_severity glibc_torn(const struct glibc_checking *check) {
    return check->in_flux ? KARST_SEVERITY_SUSPECT : KARST_SEVERITY_CORRUPT;
}

#define REPORT(check, code, severity, address, size, ...)                                                    \
    karst_findings_add((check)->findings, KARST_FINDING_##code, severity, (check)->glibc->heap.index,        \
                       address, size, __VA_ARGS__)
#define CORRUPT KARST_SEVERITY_CORRUPT
#define SUSPECT KARST_SEVERITY_SUSPECT

/* What the program holds of a chunk. */
static inline uint64_t glibc_user(uint64_t chunk) {
    return chunk + GLIBC_HEADER;
}

/* The name of a row of bins, for a finding. */
const char *glibc_checked_bin(const struct glibc_checking *check, uint32_t bin);
bool glibc_is_marked(const struct glibc_checking *check, const struct karst_extent *extent, uint64_t chunk);
/* Marks chunk as one that a bin has. false: it was marked before. */
bool glibc_mark(const struct glibc_checking *check, const struct karst_extent *extent, uint64_t chunk);
/* The bin (not fastbin, not tcache) other than except that holds chunk; KARST_NONE: none. */
uint32_t glibc_bin_of_chunk(struct glibc_checking *check, uint64_t chunk, uint32_t except);
/* Where (chunk, bin) is in the cached set. */
size_t glibc_cached_at(const struct glibc_checking *check, uint64_t chunk, uint32_t bin);

/* The lists, followed; their chunks marked. */
void glibc_check_bin(struct glibc_checking *check, const struct glibc_arena *arena, unsigned index);
void glibc_check_fastbin(struct glibc_checking *check, const struct glibc_arena *arena, unsigned index);
void glibc_check_tcaches(struct glibc_checking *check);
/* Chunks that are in two caches, or in a cache and a bin; needs all lists followed. */
void glibc_check_caches_against_each_other(struct glibc_checking *check);

#endif
