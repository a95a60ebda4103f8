/* What the program stepped tells the test that watches it at each instruction. */
#ifndef KARST_TESTS_STEPPED_H
#define KARST_TESTS_STEPPED_H

#include <stdint.h>

#define STEPPED_HELD_MAX  512
#define STEPPED_SHARED_FD 100 /* struct stepped in shared memory */

struct stepped_block {
    uint64_t address, usable;
};

struct stepped {
    volatile uint32_t go, inside; /* it may begin; it is in the middle of the operation */
    char operation[64];
    uint32_t held_count;
    struct stepped_block held[STEPPED_HELD_MAX]; /* blocks it has before, during and after the operation */
};

#endif
