/* The map of marks' large entries: any offset comes back, and no byte of it looks like the first of an entry.
 */
#include "check.h"
#include "karst-abi.h"

static void test_number(uint32_t number) {
    uint64_t word = karst_map_spread(number);
    CHECK_EQUAL(karst_map_gather(word), number);
    for (unsigned bit = 0; bit < 64; bit += 8) {
        CHECK_EQUAL(word >> bit & KARST_MAP_STATE, KARST_MARK_NONE);
    }
}

int main(void) {
    for (unsigned bit = 0; bit < 32; bit++) {
        test_number(UINT32_C(1) << bit);
        test_number(UINT32_MAX >> bit);
        test_number(UINT32_C(0x9e3779b9) >> bit);
    }
    test_number(0);
    return checks_done();
}
