/* What finding the block at an address costs: find_blocks CORE [LOOKUPS]. Addresses are of blocks all over
 * the heap, in no order. Prints the CPU seconds of the first lookup, of all, and the microseconds of one of
 * the rest in the mean. */
#include "karst.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct sample {
    uint64_t *addresses;
    size_t wanted;
    uint64_t met, random;
};

static uint64_t random_next(uint64_t *state) {
    uint64_t word = *state += 0x9e3779b97f4a7c15u;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
    return word ^ (word >> 31);
}

/* Each block has the same chance to be among those wanted. */
static bool take(void *context, const struct karst_block *blocks, size_t count) {
    struct sample *sample = context;
    for (size_t i = 0; i < count; i++, sample->met++) {
        uint64_t place =
            sample->met < sample->wanted ? sample->met : random_next(&sample->random) % (sample->met + 1);
        if (place < sample->wanted) {
            sample->addresses[place] = blocks[i].address;
        }
    }
    return true;
}

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    struct karst_error error = {0};
    struct karst_block block;
    struct sample sample = {.wanted = argc > 2 ? strtoul(argv[2], NULL, 0) : 1000, .random = 1};
    struct karst *session = argc > 1 ? karst_open_core(argv[1], NULL, &error) : NULL;
    sample.addresses = calloc(sample.wanted + 1, sizeof *sample.addresses);
    if (!session || !sample.addresses || !karst_for_each_block(session, take, &sample, &error)) {
        fprintf(stderr, "find_blocks: %s\n", error.text);
        return 1;
    }
    double start = cpu_seconds(), first = 0;
    for (size_t i = 0; i < sample.wanted && i < sample.met; i++) {
        if (!karst_find_block(session, sample.addresses[i], &block, &error) ||
            sample.addresses[i] - block.start >= block.size) {
            fprintf(stderr, "find_blocks: 0x%" PRIx64 ": %s\n", sample.addresses[i], error.text);
            return 1;
        }
        first = i == 0 ? cpu_seconds() - start : first;
    }
    double all = cpu_seconds() - start;
    printf("first %.4f all %.4f each %.2f\n", first, all, (all - first) / (double)(sample.wanted - 1) * 1e6);
    karst_close(session);
    free(sample.addresses);
    return 0;
}
