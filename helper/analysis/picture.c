#include "picture.h"

#include <stdlib.h>

#define SMALLEST_CELL 16u
#define LARGEST_CELL  (UINT64_C(1) << 31) /* the counts of a cell are 32 bits wide */

/* ---- layout -------------------------------------------------------------------------------------- */

static uint64_t cells_of(const struct karst_picture_extent *of, uint64_t cell_size) {
    return (of->end - 1) / cell_size - of->start / cell_size + 1;
}

static uint64_t rows_of(const struct karst_picture *picture, const struct karst_picture_band *band,
                        uint64_t cell_size) {
    uint64_t cells = band->extent_count - 1;
    for (size_t i = 0; i < band->extent_count; i++) {
        cells += cells_of(&picture->extents[band->first_extent + i], cell_size);
    }
    return (cells + picture->columns - 1) / picture->columns;
}

static uint64_t rows_of_all(const struct karst_picture *picture, uint64_t cell_size) {
    uint64_t rows = 0;
    for (size_t i = 0; i < picture->band_count; i++) {
        rows += rows_of(picture, &picture->bands[i], cell_size);
    }
    return rows;
}

static bool is_drawn(const struct karst_picture_options *options, const struct karst_extent *extent) {
    return extent->kind != KARST_EXTENT_MAPPED && extent->end > options->from &&
           extent->start < options->to && extent->end > extent->start &&
           (!options->wanted || options->wanted(options->wanted_context, extent));
}

static int compare_extents(const void *a, const void *b) {
    const struct karst_picture_extent *x = a, *y = b;
    if (x->extent->heap != y->extent->heap) {
        return x->extent->heap < y->extent->heap ? -1 : 1;
    }
    if (x->extent->arena != y->extent->arena) {
        return x->extent->arena < y->extent->arena ? -1 : 1;
    }
    return x->extent < y->extent ? -1 : x->extent > y->extent;
}

static bool find_extents(struct karst_picture *picture, const struct karst_picture_options *options) {
    const struct karst *session = picture->session;
    picture->extents = calloc(session->extent_count + 1, sizeof *picture->extents);
    if (!picture->extents) {
        return false;
    }
    for (size_t i = 0; i < session->extent_count; i++) {
        const struct karst_extent *extent = &session->extents[i];
        if (extent->kind == KARST_EXTENT_MAPPED && extent->end > options->from &&
            extent->start < options->to) {
            picture->mapped++;
            picture->mapped_bytes += extent->end - extent->start;
        }
        if (is_drawn(options, extent)) {
            picture->extents[picture->extent_count++] = (struct karst_picture_extent){
                .extent = extent,
                .start = extent->start > options->from ? extent->start : options->from,
                .end = extent->end < options->to ? extent->end : options->to};
        }
    }
    qsort(picture->extents, picture->extent_count, sizeof *picture->extents, compare_extents);
    return true;
}

static uint64_t band_bytes(const struct karst_picture *picture, const struct karst_picture_band *band) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < band->extent_count; i++) {
        const struct karst_picture_extent *of = &picture->extents[band->first_extent + i];
        bytes += of->end - of->start;
    }
    return bytes;
}

/* The band that begins at extents[first]; returns the next one's first extent. */
static size_t take_band(const struct karst_picture *picture, size_t first, struct karst_picture_band *band) {
    const struct karst_extent *of = picture->extents[first].extent;
    *band = (struct karst_picture_band){.heap = of->heap, .arena = of->arena, .first_extent = first};
    size_t end = first;
    while (end < picture->extent_count && picture->extents[end].extent->heap == of->heap &&
           picture->extents[end].extent->arena == of->arena) {
        end++;
    }
    band->extent_count = end - first;
    return end;
}

static int compare_bands(const void *a, const void *b) {
    const struct karst_picture_band *x = a, *y = b;
    return x->first_extent < y->first_extent ? -1 : x->first_extent > y->first_extent;
}

/* The largest arenas, as many as there can be rows for. */
static bool choose_bands(struct karst_picture *picture, size_t rows) {
    struct karst_best best;
    uint64_t seen = 0, seen_bytes = 0, kept_bytes = 0;
    karst_best_open(&best, sizeof(struct karst_picture_band), rows);
    for (size_t i = 0; i < picture->extent_count;) {
        struct karst_picture_band band;
        i = take_band(picture, i, &band);
        uint64_t bytes = band_bytes(picture, &band);
        struct karst_picture_band *kept = karst_best_offer(&best, bytes);
        seen++;
        seen_bytes += bytes;
        if (kept) {
            *kept = band;
        }
    }
    picture->bands = calloc(best.count + 1, sizeof *picture->bands);
    bool enough = picture->bands && !best.out_of_memory;
    for (size_t i = 0; enough && i < best.count; i++) {
        picture->bands[picture->band_count++] = *(struct karst_picture_band *)karst_best_item(&best, i);
        kept_bytes += band_bytes(picture, &picture->bands[i]);
    }
    picture->left_out = seen - best.count;
    picture->left_out_bytes = seen_bytes - kept_bytes;
    karst_best_close(&best);
    if (enough) {
        qsort(picture->bands, picture->band_count, sizeof *picture->bands, compare_bands);
    }
    return enough;
}

static void place_extents(struct karst_picture *picture, struct karst_picture_band *band) {
    size_t cell = picture->rows * picture->columns;
    band->first_row = picture->rows;
    band->rows = rows_of(picture, band, picture->cell_size);
    for (size_t i = 0; i < band->extent_count; i++) {
        struct karst_picture_extent *of = &picture->extents[band->first_extent + i];
        of->base = of->start & ~(picture->cell_size - 1);
        of->first_cell = cell;
        of->cells = cells_of(of, picture->cell_size);
        cell += of->cells + 1;
    }
    picture->rows += band->rows;
}

/* Leaves out bands for which even the largest cells do not suffice: a damaged target may claim extents of
 * any size. */
static void drop_hopeless(struct karst_picture *picture, size_t rows) {
    size_t kept = 0;
    for (size_t i = 0; i < picture->band_count; i++) {
        uint64_t wanted = rows_of(picture, &picture->bands[i], LARGEST_CELL);
        if (wanted <= rows) {
            rows -= wanted;
            picture->bands[kept++] = picture->bands[i];
        } else {
            picture->left_out++;
            picture->left_out_bytes += band_bytes(picture, &picture->bands[i]);
        }
    }
    picture->band_count = kept;
}

/* Cells as small as the rows allow. */
static bool lay_out(struct karst_picture *picture, size_t rows) {
    drop_hopeless(picture, rows);
    picture->cell_size = SMALLEST_CELL;
    while (picture->cell_size < LARGEST_CELL && rows_of_all(picture, picture->cell_size) > rows) {
        picture->cell_size *= 2;
    }
    for (size_t i = 0; i < picture->band_count; i++) {
        place_extents(picture, &picture->bands[i]);
    }
    picture->cells = calloc(picture->rows * picture->columns + 1, sizeof *picture->cells);
    return picture->cells != NULL;
}

/* ---- the walk ---------------------------------------------------------------------------------------- */

struct painter {
    struct karst_sink sink; /* first */
    struct karst_picture *picture;
    struct karst_sink *holes;            /* sees the same blocks */
    struct karst_picture_band *band;     /* under way; NULL: not drawn */
    struct karst_picture_extent *extent; /* under way */
    struct karst_picture_cell *cells;    /* its first */
    unsigned shift;                      /* cell_size is 1 << shift */
    uint64_t page_size;
    bool resident_known; /* of the extent under way */
};

/* [start, end) lies in what is drawn of the extent. */
static void paint(struct painter *painter, uint64_t start, uint64_t end, unsigned state) {
    const uint64_t base = painter->extent->base, cell_size = UINT64_C(1) << painter->shift;
    uint64_t cell = (start - base) >> painter->shift;
    painter->band->bytes[state] += end - start;
    while (start < end) {
        uint64_t reach = base + (cell + 1) * cell_size;
        reach = reach < end ? reach : end;
        painter->cells[cell].bytes[state] += (uint32_t)(reach - start);
        start = reach;
        cell++;
    }
}

/* Free memory: resident or not, page by page where it covers whole pages, in pieces of at most a cell. */
static void paint_free(struct painter *painter, uint64_t start, uint64_t end) {
    const uint64_t page = painter->page_size, size = UINT64_C(1) << painter->shift;
    uint64_t first = (start + page - 1) & ~(page - 1), last = end & ~(page - 1);
    if (!painter->resident_known || first >= last || first < start) {
        paint(painter, start, end, KARST_STATE_FREE);
        return;
    }
    paint(painter, start, first, KARST_STATE_FREE);
    uint64_t step = size > page ? size : page;
    for (uint64_t at = first; at < last;) {
        uint64_t reach = (at & ~(step - 1)) + step;
        reach = reach < last ? reach : last;
        uint64_t resident = karst_target_resident(painter->picture->session->target, at, reach);
        resident = resident < reach - at ? resident : reach - at;
        paint(painter, at, at + resident, KARST_STATE_FREE);
        paint(painter, at + resident, reach, KARST_PICTURE_ABSENT);
        at = reach;
    }
    paint(painter, last, end, KARST_STATE_FREE);
}

static void paint_block(struct painter *painter, const struct karst_block *block) {
    const struct karst_picture_extent *extent = painter->extent;
    uint64_t start = block->start > extent->start ? block->start : extent->start;
    uint64_t end = block->start + block->size;
    end = end < extent->end ? end : extent->end;
    if (start >= end) {
        return;
    }
    if (block->state == KARST_STATE_FREE && block->size >= painter->page_size) {
        paint_free(painter, start, end);
    } else {
        paint(painter, start, end, block->state < KARST_STATES ? block->state : KARST_STATE_UNKNOWN);
    }
}

/* Where the extent is drawn. */
static void find_place(struct painter *painter, const struct karst_extent *extent) {
    struct karst_picture *picture = painter->picture;
    painter->band = NULL;
    for (size_t i = 0; i < picture->band_count; i++) {
        struct karst_picture_band *band = &picture->bands[i];
        if (band->heap != extent->heap || band->arena != extent->arena) {
            continue;
        }
        size_t low = band->first_extent, end = low + band->extent_count, high = end;
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (picture->extents[middle].extent < extent) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low < end && picture->extents[low].extent == extent) {
            painter->band = band;
            painter->extent = &picture->extents[low];
            painter->cells = picture->cells + painter->extent->first_cell;
        }
        return;
    }
}

static bool take_extent(struct karst_sink *sink, const struct karst_extent *extent) {
    struct painter *painter = (struct painter *)sink;
    struct karst_picture *picture = painter->picture;
    painter->holes->extent(painter->holes, extent);
    find_place(painter, extent);
    painter->resident_known = painter->band && karst_target_resident(picture->session->target, extent->start,
                                                                     extent->end) != UINT64_MAX;
    picture->residency_known |= painter->resident_known;
    return true;
}

static bool take_blocks(struct karst_sink *sink, const struct karst_block *blocks, size_t count) {
    struct painter *painter = (struct painter *)sink;
    for (size_t i = 0; painter->band && i < count; i++) {
        paint_block(painter, &blocks[i]);
    }
    return painter->holes->blocks(painter->holes, blocks, count);
}

static bool walk(struct karst_picture *picture, const struct karst_picture_options *options,
                 struct karst_error *error) {
    uint64_t page = picture->session->target->page_size;
    struct karst_holes_options wanted = {.count = options->marks,
                                         .pins = options->marks,
                                         .tops = options->marks,
                                         .wanted = options->wanted,
                                         .wanted_context = options->wanted_context};
    struct painter painter = {.sink = {.extent = take_extent, .blocks = take_blocks},
                              .picture = picture,
                              .shift = (unsigned)__builtin_ctzll(picture->cell_size),
                              .page_size = page ? page : 4096};
    struct karst_holes_finder finder;
    painter.holes = karst_holes_begin(&finder, picture->session, &wanted, &picture->holes);
    karst_session_begin(picture->session, "walking the heap", karst_session_bytes(picture->session));
    if (!karst_session_walk(picture->session, 0, UINT64_MAX, &painter.sink, error)) {
        return false;
    }
    return karst_holes_finish(&finder, error);
}

bool karst_picture_make(struct karst *session, const struct karst_picture_options *options,
                        struct karst_picture *picture, struct karst_error *error) {
    *picture = (struct karst_picture){.session = session, .columns = options->columns ? options->columns : 1};
    if (!find_extents(picture, options) || !choose_bands(picture, options->rows) ||
        !lay_out(picture, options->rows)) {
        karst_picture_close(picture);
        return karst_fail_memory(error);
    }
    if (picture->band_count == 0) {
        karst_picture_close(picture);
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          "there is nothing to draw: no part of a heap lies in this range");
    }
    if (!walk(picture, options, error)) {
        karst_picture_close(picture);
        return false;
    }
    for (size_t i = 0; i < picture->band_count; i++) {
        for (size_t state = 0; state < KARST_PICTURE_STATES; state++) {
            picture->bytes[state] += picture->bands[i].bytes[state];
        }
    }
    return true;
}

void karst_picture_close(struct karst_picture *picture) {
    free(picture->bands);
    free(picture->extents);
    free(picture->cells);
    karst_holes_close(&picture->holes);
    picture->bands = NULL;
    picture->extents = NULL;
    picture->cells = NULL;
}

const struct karst_picture_cell *karst_picture_cell(const struct karst_picture *picture, size_t row,
                                                    size_t column) {
    return &picture->cells[row * picture->columns + column];
}

uint64_t karst_picture_cell_bytes(const struct karst_picture_cell *cell) {
    uint64_t sum = 0;
    for (size_t state = 0; state < KARST_PICTURE_STATES; state++) {
        sum += cell->bytes[state];
    }
    return sum;
}

static size_t last_cell(const struct karst_picture *picture, const struct karst_picture_band *band) {
    const struct karst_picture_extent *last = &picture->extents[band->first_extent + band->extent_count - 1];
    return last->first_cell + last->cells - 1;
}

size_t karst_picture_row_cells(const struct karst_picture *picture, const struct karst_picture_band *band,
                               size_t row) {
    size_t left = last_cell(picture, band) + 1 - row * picture->columns;
    return left < picture->columns ? left : picture->columns;
}

uint64_t karst_picture_row_address(const struct karst_picture *picture, const struct karst_picture_band *band,
                                   size_t row) {
    size_t cell = row * picture->columns;
    for (size_t i = 0; i < band->extent_count; i++) {
        const struct karst_picture_extent *of = &picture->extents[band->first_extent + i];
        if (cell < of->first_cell + of->cells) {
            size_t skip = cell > of->first_cell ? cell - of->first_cell : 0;
            return skip ? of->base + skip * picture->cell_size : of->start;
        }
    }
    return 0;
}

bool karst_picture_locate(const struct karst_picture *picture, uint64_t address, size_t *row,
                          size_t *column) {
    for (size_t k = 0; k < picture->band_count; k++) {
        const struct karst_picture_band *band = &picture->bands[k];
        for (size_t i = 0; i < band->extent_count; i++) {
            const struct karst_picture_extent *of = &picture->extents[band->first_extent + i];
            if (address >= of->start && address < of->end) {
                size_t cell = of->first_cell + (size_t)((address - of->base) / picture->cell_size);
                *row = cell / picture->columns;
                *column = cell % picture->columns;
                return true;
            }
        }
    }
    return false;
}
