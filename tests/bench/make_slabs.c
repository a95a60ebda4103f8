/* Makes the heap of small regions that `make bench-slabs` measures jemalloc's reader with, and its core: run
 * it with jemalloc preloaded.
 *
 *   make_slabs N CORE      N live regions of 8 to 256 bytes, and a quarter as many freed again
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../programs/splitmix.h"
#include "dump_core.h"

static uint64_t state;

static void build(void *context) {
    uint64_t live = *(const uint64_t *)context, count = live + live / 4;
    void **blocks = malloc(count * sizeof *blocks);
    for (uint64_t i = 0; blocks && i < count; i++) {
        uint64_t random = next_random(&state);
        blocks[i] = malloc(8 + (random % 4 ? random >> 32 & 63 : random >> 32 & 255));
        if (!blocks[i]) {
            abort();
        }
        *(uint64_t *)blocks[i] = i;
    }
    for (uint64_t i = 0; blocks && i < count; i += 5) {
        free(blocks[i]);
    }
}

int main(int argc, char **argv) {
    uint64_t live = argc == 3 ? strtoull(argv[1], NULL, 10) : 0;
    if (live == 0) {
        fprintf(stderr, "usage: make_slabs N CORE\n");
        return 2;
    }
    return dump_core(argv[2], build, &live) ? 0 : 2;
}
