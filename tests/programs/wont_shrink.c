/* The story of the heap that will not shrink: 300 MB in blocks of about 1.5 KB, of which all are freed but
 * one in 64, and one at the top, under which the break can't sink.
 *
 * Prints "name value" lines and "ready"; upon SIGUSR1 it calls malloc_trim(0) and prints its resident bytes
 * before and after. By write(), since even dprintf() has its buffer in the heap. */
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "say.h"

enum { BLOCKS = 200000, KEPT = 64 };

static uint64_t resident_bytes(void) {
    char text[128] = "";
    uint64_t pages = 0;
    int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (file < 0 || read(file, text, sizeof text - 1) <= 0 || sscanf(text, "%*u %" SCNu64, &pages) != 1) {
        exit(1);
    }
    close(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

int main(void) {
    size_t bytes = BLOCKS * sizeof(void *);
    void **blocks = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (blocks == MAP_FAILED || !mallopt(M_MMAP_THRESHOLD, 32 << 20)) {
        return 1;
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        size_t size = 1200 + i * 7919 % 700;
        blocks[i] = malloc(size);
        if (!blocks[i]) {
            return 1;
        }
        memset(blocks[i], 0x5a, size);
    }
    for (size_t i = 0; i + 1 < BLOCKS; i++) {
        if (i % KEPT) {
            free(blocks[i]);
        }
    }
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    say("last %#" PRIxPTR "\nlast_usable %zu\n", (uintptr_t)blocks[BLOCKS - 1],
        malloc_usable_size(blocks[BLOCKS - 1]));
    say("kept %d\nready\n", (BLOCKS - 1 + KEPT - 1) / KEPT + 1);
    for (;;) {
        int got;
        sigwait(&signals, &got);
        uint64_t before = resident_bytes();
        malloc_trim(0);
        uint64_t after = resident_bytes();
        say("trimmed %" PRIu64 " %" PRIu64 "\n", before, after);
    }
}
