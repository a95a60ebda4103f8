/* What a call of malloc or free costs: call_cost tight|mixed THREADS EVENTS. Prints the nanoseconds of an
 * event, in each thread the least of its 20 parts (by its own CPU clock), as one number a thread.
 *
 * What tight and mixed are: workloads.h. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workloads.h"

enum { PARTS = 20, THREADS_MAX = 16 };

static size_t events;
static int is_tight;
static double results[THREADS_MAX];

static void *work(void *result) {
    uint64_t state = 1;
    void **slots = calloc(LONG_LIVED + SHORT_LIVED, sizeof *slots);
    if (slots && !is_tight) {
        fill_slots(slots, &state);
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
