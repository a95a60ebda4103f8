/* The bitmap of `check`, against a plain array. */
#include <stdlib.h>

#include "../programs/splitmix.h"
#include "check.h"
#include "marks.h"

#define START  0x7f0000000010ull
#define PLACES 400000u /* a place is 16 bytes here, and 400 pieces apart elsewhere */

static uint64_t state = 1;

static uint64_t address_of(uint64_t place, uint64_t step) {
    return START + place * step;
}

/* step: how far apart places are; a multiple of 16. */
static void test_against_array(uint64_t step, unsigned count) {
    struct karst_marks marks = {.start = START};
    bool *is = calloc(PLACES, sizeof *is);
    CHECK(is != NULL);
    for (unsigned i = 0; i < count && is; i++) {
        uint64_t place = next_random(&state) % PLACES;
        CHECK(karst_marks_has(&marks, address_of(place, step)) == is[place]);
        CHECK(karst_marks_add(&marks, address_of(place, step)));
        is[place] = true;
    }
    uint64_t next = 0; /* the first mark from place on */
    for (uint64_t place = PLACES; place-- > 0 && is;) {
        next = is[place] ? address_of(place, step) : next;
        if (place % 7 == 0 || is[place]) {
            CHECK(karst_marks_has(&marks, address_of(place, step)) == is[place]);
            CHECK_EQUAL(karst_marks_first(&marks, address_of(place, step), UINT64_MAX), next);
            CHECK_EQUAL(karst_marks_first(&marks, address_of(place, step), next), 0);
            CHECK_EQUAL(karst_marks_first(&marks, address_of(place, step), next + 16), next);
        }
    }
    free(is);
    karst_marks_close(&marks);
}

static void test_ends(void) {
    struct karst_marks marks = {.start = START};
    CHECK(!karst_marks_has(&marks, START));
    CHECK_EQUAL(karst_marks_first(&marks, START, UINT64_MAX), 0);
    CHECK(karst_marks_add(&marks, UINT64_MAX - 15));
    CHECK(karst_marks_has(&marks, UINT64_MAX - 15));
    CHECK_EQUAL(karst_marks_first(&marks, START, UINT64_MAX - 15), 0);
    CHECK(karst_marks_add(&marks, START));
    CHECK_EQUAL(karst_marks_first(&marks, START, UINT64_MAX), START);
    CHECK_EQUAL(karst_marks_first(&marks, START, START), 0);
    CHECK_EQUAL(marks.used, 2);
    karst_marks_close(&marks);
}

int main(void) {
    test_ends();
    test_against_array(16, 5000);
    test_against_array(16, 200);
    test_against_array(16 << 16, 700); /* a mebibyte: hundreds of pieces */
    test_against_array((uint64_t)16 << 26, 60);
    return checks_done();
}
