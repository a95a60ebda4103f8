/* Mapped blocks dealt by count and bytes: small sets against every choice there is, large ones that once took
 * a search too long. */
#include "check.h"
#include "fake_heap.h"
#include "glibc.h"

#include <stdlib.h>

#define PAGE  4096u
#define COUNT 6000u

static uint64_t state = 1;

static int largest_first(const void *a, const void *b) {
    const uint64_t *x = a, *y = b;
    return *x > *y ? -1 : *x < *y;
}

/* Was a choice found? What was chosen has to be one. */
static bool choose(const uint64_t *sizes, size_t count, size_t wanted, uint64_t bytes) {
    bool *chosen = calloc(count + 1, sizeof *chosen), found = false;
    if (!CHECK(chosen && glibc_choose_blocks(sizes, count, wanted, bytes, chosen, &found))) {
        free(chosen);
        return false;
    }
    size_t blocks = 0;
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        blocks += chosen[i];
        sum += chosen[i] ? sizes[i] : 0;
    }
    CHECK_EQUAL(blocks, found ? wanted : 0);
    CHECK_EQUAL(sum, found ? bytes : 0);
    free(chosen);
    return found;
}

/* ---- every choice of a few blocks ------------------------------------------------------------------- */

static bool any_choice(const uint64_t *sizes, size_t count, size_t wanted, uint64_t bytes) {
    for (uint64_t choice = 0; choice < UINT64_C(1) << count; choice++) {
        size_t blocks = 0;
        uint64_t sum = 0;
        for (size_t i = 0; i < count; i++) {
            blocks += choice >> i & 1;
            sum += choice >> i & 1 ? sizes[i] : 0;
        }
        if (blocks == wanted && sum == bytes) {
            return true;
        }
    }
    return false;
}

static void test_few(void) {
    unsigned there = 0;
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t sizes[8];
        size_t count = fake_random(&state) % 9, wanted = fake_random(&state) % 10;
        uint64_t kinds = 1 + fake_random(&state) % 12, step = 1 + fake_random(&state) % 3;
        for (size_t k = 0; k < count; k++) {
            sizes[k] = (1 + fake_random(&state) % kinds * step) * PAGE;
        }
        qsort(sizes, count, sizeof *sizes, largest_first);
        uint64_t bytes = fake_random(&state) % (1 + wanted * (kinds * step / 2 + 2)) * PAGE;
        bool any = any_choice(sizes, count, wanted, bytes);
        there += any;
        CHECK_EQUAL(choose(sizes, count, wanted, bytes), any);
    }
    CHECK(there > 300 && there < 2700);
}

/* ---- sets too large to try it all ------------------------------------------------------------------- */

static uint64_t uniform(size_t index) {
    (void)index;
    return 32 + fake_random(&state) % 968;
}

static uint64_t of_all_orders(size_t index) {
    (void)index;
    uint64_t size = UINT64_C(32) << fake_random(&state) % 9;
    return size + fake_random(&state) % size;
}

static uint64_t even_but_one(size_t index) {
    return 2 * (16 + fake_random(&state) % 500) + (index == 5);
}

static uint64_t of_few_kinds(size_t index) {
    (void)index;
    return (UINT64_C(32) << fake_random(&state) % 6) + 1;
}

static uint64_t gigabytes(size_t index) {
    (void)index;
    return 262144 + fake_random(&state) % 2000000;
}

/* The first so many of the blocks are one libc's, the rest another's. */
static void test_many(uint64_t (*size)(size_t), size_t wanted, size_t others) {
    static uint64_t sizes[COUNT];
    for (unsigned turn = 0; turn < 20; turn++) {
        uint64_t bytes = 0;
        for (size_t i = 0; i < wanted + others; i++) {
            sizes[i] = size(i) * PAGE;
            bytes += i < wanted ? sizes[i] : 0;
        }
        qsort(sizes, wanted + others, sizeof *sizes, largest_first);
        CHECK(choose(sizes, wanted + others, wanted, bytes));
    }
}

int main(void) {
    test_few();
    uint64_t (*const distributions[])(size_t) = {uniform, of_all_orders, even_but_one, of_few_kinds};
    for (size_t i = 0; i < sizeof distributions / sizeof *distributions; i++) {
        test_many(distributions[i], 40, 124);
        test_many(distributions[i], 7, 500);
        test_many(distributions[i], 2000, 4000);
    }
    test_many(gigabytes, 3, 100);
    test_many(gigabytes, 200, 300);
    return checks_done();
}
