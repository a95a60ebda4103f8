/* The story of the pinned hole: a buffer was let go and left a hole of 8,880,480 bytes; a later realloc to
 * 8,880,819 bytes can't use it, because a block of 232 bytes was placed right behind.
 *
 * A hole's size is a block's, header included: malloc(8,880,472) takes 8,880,480 bytes, malloc(8,880,819)
 * takes 8,880,832. Prints "name value" lines (addresses of blocks; of the hole, where its header begins),
 * then "ready", and waits to be looked at. By write(), since even dprintf() has its buffer in the heap. */
#include <inttypes.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "say.h"

enum { HOLE = 8880480, PIN = 232, BEHIND = 16384, GUARD = 1200, HEADER = 8 };

static uintptr_t allocate(size_t size) {
    void *block = malloc(size);
    if (!block) {
        exit(1);
    }
    memset(block, 0x5a, size);
    return (uintptr_t)block;
}

int main(void) {
    /* Let the heap take what would get a mapping of its own; 32 MiB is the most that can be asked for. */
    if (!mallopt(M_MMAP_THRESHOLD, 32 << 20)) {
        return 1;
    }
    uintptr_t before = allocate(GUARD);
    uintptr_t buffer = allocate(HOLE - HEADER);
    uintptr_t pin = allocate(PIN);
    uintptr_t behind = allocate(BEHIND); /* free later, too: without the pin it would fit */
    uintptr_t after = allocate(GUARD);
    free((void *)buffer);
    free((void *)behind);
    uintptr_t hole = buffer - 2 * sizeof(size_t);
    say("before %#" PRIxPTR "\nhole %#" PRIxPTR "\npin %#" PRIxPTR "\nafter %#" PRIxPTR "\njoined %" PRIuPTR
        "\nready\n",
        before, hole, pin, after, after - 2 * sizeof(size_t) - hole);
    for (;;) {
        pause();
    }
}
