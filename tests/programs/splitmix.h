/* The random numbers of all programs here: splitmix64. */
#ifndef KARST_TESTS_SPLITMIX_H
#define KARST_TESTS_SPLITMIX_H

#include <stdint.h>

static inline uint64_t next_random(uint64_t *state) {
    uint64_t word = *state += 0x9e3779b97f4a7c15u;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
    word = (word ^ word >> 27) * 0x94d049bb133111ebu;
    return word ^ word >> 31;
}

#endif
