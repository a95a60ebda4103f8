/* A block, and pointers to it in every kind of place; and mappings of every kind.
 *
 * Prints "name value" lines, then "ready", and waits to be looked at. By write(), since even dprintf() has
 * its buffer in the heap. */
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "say.h"

#define PAGE ((size_t)4096)
enum { SIZE = 3000, HOLDER = 5000, GUARDED = 3, LARGE = 4 << 20 };

char *pointer_in_data = (char *)1;
char *pointer_in_bss;
static __thread char *pointer_in_thread_storage;
static pthread_barrier_t set, looked_at;

static void *must(void *memory) {
    if (!memory || memory == MAP_FAILED) {
        exit(1);
    }
    return memory;
}

/* Holds the pointer, and a heap of its own. */
static void *hold(void *block) {
    char *volatile on_stack = block;
    void *volatile own = must(malloc(100));
    say("stack %#" PRIxPTR "\nthread %ld\n", (uintptr_t)&on_stack, (long)syscall(SYS_gettid));
    pthread_barrier_wait(&set);
    pthread_barrier_wait(&looked_at);
    free(own);
    return on_stack;
}

static char *map(size_t size, int protection) {
    return must(mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/* Pages that can be written between pages that can't: each change is a mapping more. */
static char *map_guarded(void) {
    char *pages = map((2 * GUARDED + 1) * PAGE, PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < GUARDED; i++) {
        mprotect(pages + (2 * i + 1) * PAGE, PAGE, PROT_READ);
    }
    return pages;
}

int main(void) {
    char *block = must(malloc(SIZE));
    static char **holder, **mapped;
    holder = must(calloc(1, HOLDER));
    uintptr_t freed = (uintptr_t)must(calloc(1, HOLDER));
    say("guard %#" PRIxPTR "\n", (uintptr_t)must(malloc(16))); /* keeps freed from the top */
    mapped = must(malloc(LARGE));
    char **anonymous = (char **)map(2 * PAGE, PROT_READ | PROT_WRITE);
    pointer_in_data = pointer_in_bss = pointer_in_thread_storage = block;
    holder[7] = block + 40;
    ((char **)freed)[600] = block; /* so far in that nobody overwrites it */
    mapped[3] = anonymous[5] = block;
    free((void *)freed);
    pthread_t thread;
    pthread_barrier_init(&set, NULL, 2);
    pthread_barrier_init(&looked_at, NULL, 2);
    if (pthread_create(&thread, NULL, hold, block)) {
        return 1;
    }
    pthread_barrier_wait(&set);
    say("block %#" PRIxPTR "\nholder %#" PRIxPTR "\nfreed %#" PRIxPTR "\nmapped %#" PRIxPTR
        "\nanonymous %#" PRIxPTR "\n",
        (uintptr_t)block, (uintptr_t)holder, freed, (uintptr_t)mapped, (uintptr_t)anonymous);
    say("data %#" PRIxPTR "\nbss %#" PRIxPTR "\nstorage %#" PRIxPTR "\nguarded %#" PRIxPTR "\nready\n",
        (uintptr_t)&pointer_in_data, (uintptr_t)&pointer_in_bss, (uintptr_t)&pointer_in_thread_storage,
        (uintptr_t)map_guarded());
    for (;;) {
        pause();
    }
}
