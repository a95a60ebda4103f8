/* The workloads of call_cost.c, turns.c and phases.c.
 *
 * tight: malloc and free of the block at once, 24 to 87 bytes. mixed: 118,000 blocks live; of those that come
 * nine in ten live for less than 64 events, the rest for long; 8 bytes to 512 KiB, most of them small; the
 * first bytes of each block are written. */
#ifndef BENCH_WORKLOADS_H
#define BENCH_WORKLOADS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LONG_LIVED = 118000, SHORT_LIVED = 64 };

/* CPU time of the thread. */
static double cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

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

static void tight(size_t events) {
    for (size_t i = 0; i < events / 2; i++) {
        void *volatile block = malloc(24 + (i & 63));
        free(block);
    }
}

static void mixed(size_t events, void **slots, uint64_t *state) {
    for (size_t i = 0; i < events / 2; i++) {
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
