/* The mixed workload of call_cost.c and phases.c: 118,000 blocks live; of those that come nine in ten live
 * for less than 64 events, the rest for long; 8 bytes to 512 KiB, most of them small; the first bytes of each
 * block are written. */
#ifndef BENCH_MIXED_H
#define BENCH_MIXED_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LONG_LIVED = 118000, SHORT_LIVED = 64 };

static uint64_t random_next(uint64_t *state) {
    uint64_t word = *state += 0x9e3779b97f4a7c15u;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    return word ^ (word >> 27);
}

static size_t size_of(uint64_t random) {
    unsigned kind = random & 1023;
    uint64_t rest = random >> 10;
    return kind < 700    ? 8 + (rest & 127)
           : kind < 960  ? 128 + (rest & 1023)
           : kind < 1020 ? 1024 + (rest & 16383)
                         : 16384 + rest % 507904;
}

static void replace(void **slot, uint64_t random) {
    free(*slot);
    *slot = malloc(size_of(random));
    memcpy(*slot, &random, sizeof random);
}

static void mixed(size_t count, void **slots, uint64_t *state) {
    for (size_t i = 0; i < count / 2; i++) {
        uint64_t random = random_next(state);
        size_t slot =
            random >> 44 & 7 ? LONG_LIVED + (random >> 48 & (SHORT_LIVED - 1)) : (random >> 47) % LONG_LIVED;
        replace(&slots[slot], random);
    }
}

static void fill_slots(void **slots, uint64_t *state) {
    for (size_t i = 0; i < LONG_LIVED + SHORT_LIVED; i++) {
        replace(&slots[i], random_next(state));
    }
}

#endif
