/* A loop of malloc and free, in phases that a debugger looks in between of: phase_end() gets the nanoseconds
 * of CPU time that a pair took in the phase, the least of its rounds. phases: the tight loop, phases mixed:
 * the mixed one, of workloads.h. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "workloads.h"

volatile uint64_t pairs_in_round = 2000000, rounds_in_phase = 15;

void phase_end(double least_per_pair);

__attribute__((noinline, noipa)) void phase_end(double least_per_pair) {
    printf("%.3f\n", least_per_pair);
}

int main(int argc, char **argv) {
    bool is_mixed = argc > 1 && strcmp(argv[1], "mixed") == 0;
    uint64_t state = 1;
    void **slots = is_mixed ? calloc(LONG_LIVED + SHORT_LIVED, sizeof *slots) : NULL;
    if (is_mixed && !slots) {
        return 1;
    }
    if (is_mixed) {
        fill_slots(slots, &state);
    }
    for (;;) {
        double least = 1e18;
        uint64_t pairs = pairs_in_round;
        for (uint64_t round = 0; round < rounds_in_phase; round++) {
            double start = cpu_ns();
            if (is_mixed) {
                mixed(2 * pairs, slots, &state);
            } else {
                tight(2 * pairs);
            }
            double per_pair = (cpu_ns() - start) / (double)pairs;
            least = per_pair < least ? per_pair : least;
        }
        phase_end(least);
    }
}
