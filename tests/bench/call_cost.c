/* What a call of malloc or free costs: call_cost tight|mixed THREADS EVENTS. Prints the nanoseconds of an
 * event, in each thread the least of its 20 parts (by its own CPU clock), as one number a thread.
 *
 * tight: malloc and free of the block at once, 24 to 87 bytes.
 * mixed: 118,000 blocks live; of those that come nine in ten live for less than 64 events, the rest for long;
 * 8 bytes to 512 KiB, most of them small; the first bytes of each block are written. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PARTS = 20, LONG_LIVED = 118000, SHORT_LIVED = 64, THREADS_MAX = 16 };

static size_t events;
static int is_tight;
static double results[THREADS_MAX];

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

static void tight(size_t count) {
    for (size_t i = 0; i < count / 2; i++) {
        void *volatile block = malloc(24 + (i & 63));
        free(block);
    }
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

static void *work(void *result) {
    uint64_t state = 1;
    void **slots = calloc(LONG_LIVED + SHORT_LIVED, sizeof *slots);
    for (size_t i = 0; slots && !is_tight && i < LONG_LIVED + SHORT_LIVED; i++) {
        replace(&slots[i], random_next(&state));
    }
    double least = 1e9;
    for (int part = 0; slots && part < PARTS; part++) {
        double start = cpu_ns();
        if (is_tight) {
            tight(events / PARTS);
        } else {
            mixed(events / PARTS, slots, &state);
        }
        double each = (cpu_ns() - start) / ((double)events / PARTS);
        least = each < least ? each : least;
    }
    *(double *)result = least;
    return NULL;
}

int main(int argc, char **argv) {
    size_t threads = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
    pthread_t ids[THREADS_MAX];
    is_tight = argc > 1 && strcmp(argv[1], "tight") == 0;
    events = argc > 3 ? strtoul(argv[3], NULL, 0) : 20000000;
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    for (size_t i = 1; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, work, &results[i])) {
            return 1;
        }
    }
    work(&results[0]);
    for (size_t i = 1; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    for (size_t i = 0; i < threads; i++) {
        printf("%.3f\n", results[i]);
    }
    return 0;
}
