/* The picture of the heaps: their address space cut into rows of cells, and for each cell how many of its
 * bytes are in which state. Drawn by the verb `map`, in a terminal or a file. */
#ifndef KARST_ANALYSIS_PICTURE_H
#define KARST_ANALYSIS_PICTURE_H

#include "holes.h"
#include "session.h"

/* Free memory in whole pages that are not resident: it costs nothing. Beside the states of blocks. */
#define KARST_PICTURE_ABSENT KARST_STATES
#define KARST_PICTURE_STATES (KARST_STATES + 1)

struct karst_picture_cell {
    uint32_t bytes[KARST_PICTURE_STATES]; /* what is left to cell_size lies outside the extent */
};

/* An extent as drawn: cells in address order. */
struct karst_picture_extent {
    const struct karst_extent *extent;
    uint64_t start, end; /* what of it is drawn */
    uint64_t base;       /* where its first cell begins: a multiple of cell_size */
    size_t first_cell, cells;
};

/* The extents of one arena, drawn one behind the other from the beginning of a row on, an empty cell
 * between any two. */
struct karst_picture_band {
    uint16_t heap;
    uint32_t arena;
    size_t first_extent, extent_count; /* in karst_picture.extents */
    size_t first_row, rows;
    uint64_t bytes[KARST_PICTURE_STATES];
};

struct karst_picture_options {
    size_t columns;    /* cells in a row */
    size_t rows;       /* at most, all bands together */
    uint64_t from, to; /* what is looked at; 0, UINT64_MAX: all */
    size_t marks;      /* biggest holes, and pins, to be found along with it */
    bool (*wanted)(void *context, const struct karst_extent *extent); /* NULL: all */
    void *wanted_context;
};

struct karst_picture {
    struct karst *session;
    size_t columns, rows;
    uint64_t cell_size;               /* a power of two */
    struct karst_picture_band *bands; /* arena by arena */
    size_t band_count;
    struct karst_picture_extent *extents; /* of the bands, one after the other */
    size_t extent_count;
    struct karst_picture_cell *cells;     /* rows * columns */
    uint64_t bytes[KARST_PICTURE_STATES]; /* of what is drawn */
    uint64_t left_out, left_out_bytes;    /* arenas for which there were no rows */
    uint64_t mapped, mapped_bytes;        /* blocks with mappings of their own: live, not drawn */
    bool residency_known;
    struct karst_holes holes; /* of all heaps */
};

/* One walk. On success picture is to be closed. KARST_ERROR_NOT_FOUND: nothing is in the range. */
bool karst_picture_make(struct karst *session, const struct karst_picture_options *options,
                        struct karst_picture *picture, struct karst_error *error);
void karst_picture_close(struct karst_picture *picture);

const struct karst_picture_cell *karst_picture_cell(const struct karst_picture *picture, size_t row,
                                                    size_t column);
/* Bytes of a cell that lie in its extent; 0: it only keeps two extents apart. */
uint64_t karst_picture_cell_bytes(const struct karst_picture_cell *cell);
/* The cells of a row that are in use, from its first on. */
size_t karst_picture_row_cells(const struct karst_picture *picture, const struct karst_picture_band *band,
                               size_t row);
/* The address that a row begins with. */
uint64_t karst_picture_row_address(const struct karst_picture *picture, const struct karst_picture_band *band,
                                   size_t row);
/* Where address is drawn; false: nowhere. */
bool karst_picture_locate(const struct karst_picture *picture, uint64_t address, size_t *row, size_t *column);

#endif
