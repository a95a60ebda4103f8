/* The picture's cells against a slow and plain count, byte by byte of 16. */
#include "check.h"
#include "fake_heap.h"
#include "picture.h"

static struct fake_heap fake;

static bool make(struct karst_picture *picture, size_t columns, size_t rows, uint64_t from, uint64_t to) {
    struct karst_picture_options options = {
        .columns = columns, .rows = rows, .from = from, .to = to, .marks = 3};
    struct karst_error error = {0};
    bool made = karst_picture_make(&fake.session, &options, picture, &error);
    if (!CHECK(made)) {
        fprintf(stderr, "    %s\n", error.text);
    }
    return made;
}

/* What the 16 bytes at address are drawn as. */
static unsigned state_at(const struct karst_block *block, uint64_t address) {
    uint64_t page = address / FAKE_PAGE * FAKE_PAGE;
    bool whole = page >= block->start && page + FAKE_PAGE <= block->start + block->size;
    bool absent = block->state == KARST_STATE_FREE && whole && !fake.residency_unknown &&
                  !fake_page_is_resident(address / FAKE_PAGE);
    return absent ? KARST_PICTURE_ABSENT : block->state;
}

static void check_cells(const struct karst_picture *picture, uint64_t from, uint64_t to) {
    struct karst_picture_cell *cells = calloc(picture->rows * picture->columns + 1, sizeof *cells);
    if (!CHECK(cells != NULL)) {
        return;
    }
    for (size_t i = 0; i < fake.block_count; i++) {
        const struct karst_block *block = &fake.blocks[i];
        for (uint64_t at = block->start; at < block->start + block->size; at += 16) {
            size_t row, column;
            bool inside = at >= from && at < to && !(block->flags & KARST_BLOCK_MAPPED);
            if (inside && karst_picture_locate(picture, at, &row, &column)) {
                cells[row * picture->columns + column].bytes[state_at(block, at)] += 16;
            }
        }
    }
    CHECK(memcmp(cells, picture->cells, picture->rows * picture->columns * sizeof *cells) == 0);
    free(cells);
}

/* Rows belong to one band each, and begin where they say. */
static void check_rows(const struct karst_picture *picture) {
    size_t row = 0;
    uint64_t sums[KARST_PICTURE_STATES] = {0};
    for (size_t i = 0; i < picture->band_count; i++) {
        const struct karst_picture_band *band = &picture->bands[i];
        CHECK_EQUAL(band->first_row, row);
        for (; row < band->first_row + band->rows; row++) {
            size_t at_row, at_column;
            uint64_t address = karst_picture_row_address(picture, band, row);
            CHECK(karst_picture_locate(picture, address, &at_row, &at_column));
            CHECK(at_row == row && at_column <= 1);
            size_t count = karst_picture_row_cells(picture, band, row);
            CHECK(count > 0 && count <= picture->columns);
            CHECK(row + 1 == band->first_row + band->rows || count == picture->columns);
            for (size_t column = 0; column < picture->columns; column++) {
                uint64_t bytes = karst_picture_cell_bytes(karst_picture_cell(picture, row, column));
                CHECK(bytes <= picture->cell_size && (column < count || bytes == 0));
                for (size_t state = 0; state < KARST_PICTURE_STATES; state++) {
                    sums[state] += karst_picture_cell(picture, row, column)->bytes[state];
                }
            }
        }
    }
    CHECK_EQUAL(row, picture->rows);
    for (size_t state = 0; state < KARST_PICTURE_STATES; state++) {
        CHECK_EQUAL(sums[state], picture->bytes[state]);
    }
}

static void test_random(void) {
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct karst_picture picture;
        size_t rows = 2 + seed % 40, columns = 1 + seed * 7 % 90;
        fake_random_heap(&fake, seed);
        fake.residency_unknown = seed % 5 == 0;
        if (make(&picture, columns, rows, 0, UINT64_MAX)) {
            CHECK(picture.rows <= rows);
            CHECK_EQUAL(picture.residency_known, !fake.residency_unknown);
            CHECK_EQUAL(picture.mapped, 1);
            check_cells(&picture, 0, UINT64_MAX);
            check_rows(&picture);
            karst_picture_close(&picture);
        }
    }
}

static void test_zoom(void) {
    struct karst_picture picture;
    fake_random_heap(&fake, 9);
    uint64_t from = fake.extents[1].start + 0x330, to = fake.extents[2].start + 0x1010;
    if (make(&picture, 40, 30, from, to)) {
        CHECK_EQUAL(picture.band_count, 2);
        CHECK_EQUAL(picture.bytes[0] + picture.bytes[1] + picture.bytes[2] + picture.bytes[3] +
                        picture.bytes[4] + picture.bytes[5] + picture.bytes[6],
                    fake.extents[1].end - from + 0x1010);
        check_cells(&picture, from, to);
        check_rows(&picture);
        /* Holes are told of all, not of what is looked at only. */
        CHECK(picture.holes.holes > 0);
        karst_picture_close(&picture);
    }
    struct karst_picture_options options = {.columns = 8, .rows = 8, .from = 16, .to = 4096};
    struct karst_error error = {0};
    CHECK(!karst_picture_make(&fake.session, &options, &picture, &error));
    CHECK_EQUAL(error.code, KARST_ERROR_NOT_FOUND);
}

/* Extents larger than any cells allow, as a damaged target may claim: left out, and said so. */
static void test_huge(void) {
    struct karst_picture picture;
    fake_begin(&fake);
    fake_extent(&fake, 0x1000, KARST_EXTENT_BRK, 0);
    fake_live(&fake, UINT64_C(1) << 60);
    fake_extent(&fake, UINT64_C(1) << 61, KARST_EXTENT_HEAP, 1);
    fake_live(&fake, 0x1000);
    if (make(&picture, 10, 40, 0, UINT64_MAX)) {
        CHECK_EQUAL(picture.band_count, 1);
        CHECK_EQUAL(picture.left_out, 1);
        CHECK_EQUAL(picture.cell_size, 16);
        karst_picture_close(&picture);
    }
    fake.extents[1].arena = 0;
    struct karst_picture_options options = {.columns = 10, .rows = 1, .to = UINT64_MAX};
    struct karst_error error = {0};
    CHECK(!karst_picture_make(&fake.session, &options, &picture, &error));
    CHECK_EQUAL(error.code, KARST_ERROR_NOT_FOUND);
}

/* More arenas than rows: the largest are drawn. */
static void test_left_out(void) {
    struct karst_picture picture;
    fake_begin(&fake);
    fake_extent(&fake, 0x10000, KARST_EXTENT_HEAP, 0);
    fake_live(&fake, 0x1000);
    fake_extent(&fake, 0x20000, KARST_EXTENT_HEAP, 1);
    fake_live(&fake, 0x2000);
    if (make(&picture, 10, 1, 0, UINT64_MAX)) {
        CHECK_EQUAL(picture.band_count, 1);
        CHECK_EQUAL(picture.bands[0].arena, 1);
        CHECK_EQUAL(picture.left_out, 1);
        CHECK_EQUAL(picture.left_out_bytes, 0x1000);
        karst_picture_close(&picture);
    }
}

int main(void) {
    test_random();
    test_zoom();
    test_huge();
    test_left_out();
    return checks_done();
}
