/* What the flight recorder costs an event, in one process and one heap: turns mixed|tight THREADS EVENTS, run
 * with the recorder on. It is switched off and on again between one part of the work and the next, by the
 * control block as a debugger does; the parts are alike but for it. Prints, for each thread, the median of
 * the nanoseconds of an event without, and the median of the differences between a part with it and the one
 * without beside it.
 *
 * Between processes such figures scatter by more than what is measured: each has another layout of memory. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "karst-abi.h"
#include "workloads.h"

enum { PAIRS = 200, THREADS_MAX = 16 };

struct result {
    double without, more;
};

static size_t events;
static int is_tight;
static struct karst_control *control;
static pthread_barrier_t barrier;
static struct result results[THREADS_MAX];

static void record(int on) {
    if (on) {
        __atomic_or_fetch(&control->wanted, KARST_GATE_RECORD, __ATOMIC_RELAXED);
    } else {
        __atomic_and_fetch(&control->wanted, ~(uint32_t)KARST_GATE_RECORD, __ATOMIC_RELAXED);
    }
    for (unsigned i = 0; i < KARST_GATES; i++) {
        __atomic_or_fetch(&control->gates[i], KARST_GATE_CHANGED, __ATOMIC_SEQ_CST);
    }
    free(malloc(1)); /* takes it in */
}

/* One part with the recorder on or off, which the first thread sees to: nanoseconds of an event. */
static double part(int on, int first, void **slots, uint64_t *state) {
    pthread_barrier_wait(&barrier);
    if (first) {
        record(on);
    }
    pthread_barrier_wait(&barrier);
    double start = cpu_ns();
    if (is_tight) {
        tight(events);
    } else {
        mixed(events, slots, state);
    }
    return (cpu_ns() - start) / (double)events;
}

static int compare(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *figures) {
    qsort(figures, PAIRS, sizeof *figures, compare);
    return figures[PAIRS / 2];
}

static void *work(void *argument) {
    struct result *result = argument;
    static _Thread_local double without[PAIRS], more[PAIRS];
    uint64_t state = 1;
    int first = result == results;
    void **slots = calloc(LONG_LIVED + SHORT_LIVED, sizeof *slots);
    if (!slots) {
        exit(1);
    }
    fill_slots(slots, &state);
    for (int pair = 0; pair < PAIRS; pair++) {
        double figures[2];
        for (int turn = 0; turn < 2; turn++) {
            int on = (turn ^ pair) & 1; /* as often before as after the other */
            figures[on] = part(on, first, slots, &state);
        }
        without[pair] = figures[0];
        more[pair] = figures[1] - figures[0];
    }
    *result = (struct result){median(without), median(more)};
    return NULL;
}

int main(int argc, char **argv) {
    size_t threads = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
    pthread_t ids[THREADS_MAX];
    is_tight = argc > 1 && strcmp(argv[1], "tight") == 0;
    events = (argc > 3 ? strtoul(argv[3], NULL, 0) : 20000000) / PAIRS / 2;
    threads = threads < 1 ? 1 : threads < THREADS_MAX ? threads : THREADS_MAX;
    control = dlsym(RTLD_DEFAULT, "karst_control");
    if (!control || !control->recorder_bytes || pthread_barrier_init(&barrier, NULL, (unsigned)threads)) {
        fprintf(stderr, "turns: run it by karst run --recorder\n");
        return 1;
    }
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
        printf("%.3f %.3f\n", results[i].without, results[i].more);
    }
    return 0;
}
