/* Holes: maximal runs of unused blocks between two blocks in use of one extent. Told in one pass: how many
 * of which size, the biggest, what of them is resident, what pins them, whether a request would fit, and
 * what a trim would give back.
 *
 * Free and cached blocks that are in no hole (see hole.h) are counted apart. */
#ifndef KARST_ANALYSIS_HOLES_H
#define KARST_ANALYSIS_HOLES_H

#include "best.h"
#include "fit.h"
#include "pins.h"
#include "runs.h"

#define KARST_HOLE_CLASSES 64u

struct karst_listed_hole {
    struct karst_hole hole;
    uint64_t blocks;         /* free and cached ones */
    uint64_t resident_bytes; /* UINT64_MAX: unknown */
    uint32_t arena;
    uint16_t heap;
    struct karst_block before, after;
};

/* Holes of 2^k to 2^(k+1) - 1 bytes. */
struct karst_hole_class {
    uint64_t holes, bytes;
    uint64_t resident_bytes; /* UINT64_MAX: unknown */
};

struct karst_holes_options {
    size_t count; /* biggest holes and near misses kept */
    size_t pins;  /* pins kept */
    size_t tops;  /* heaps' ends whose pins are kept */
    bool fit;     /* answer for request */
    uint64_t request;
    /* Whether an extent is asked for; NULL: all. */
    bool (*wanted)(void *context, const struct karst_extent *extent);
    void *wanted_context;
};

struct karst_holes {
    struct karst *session;
    struct karst_run_totals totals;
    uint64_t holes, bytes, free_bytes, cached_bytes, largest, largest_usable;
    uint64_t resident_bytes;                     /* UINT64_MAX: unknown */
    uint64_t region_holes, region_bytes;         /* of these: inside page runs, of regions */
    uint64_t edge_free_bytes, edge_cached_bytes; /* outside holes: at extents' edges, under tops */
    struct karst_hole_class census[KARST_HOLE_CLASSES];
    struct karst_best biggest; /* struct karst_listed_hole, by size */
    struct karst_pins pins;
    bool has_fit;
    struct karst_fit fit;
};

/* Walks the heaps. On success holes is to be closed by the caller. The bins need not be loaded. */
bool karst_holes_find(struct karst *session, const struct karst_holes_options *options,
                      struct karst_holes *holes, struct karst_error *error);
void karst_holes_close(struct karst_holes *holes);

/* The same as a sink, for a walk with others. */
struct karst_holes_finder {
    struct karst_run_consumer consumer; /* first */
    struct karst_run_reader reader;
    struct karst_holes *holes;
};

/* The sink to be fed; options->fit is ignored. holes is to be closed whatever happens. */
struct karst_sink *karst_holes_begin(struct karst_holes_finder *finder, struct karst *session,
                                     const struct karst_holes_options *options, struct karst_holes *holes);
/* After the walk: puts what was found in order. False: some was lost for lack of memory. */
bool karst_holes_finish(struct karst_holes_finder *finder, struct karst_error *error);

#endif
