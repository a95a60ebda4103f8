/* Calls every function of the allocator with sizes that are known, from two threads, and counts what it does.
 * Usage: callers [FILE]: with FILE it waits until that is there. Prints "ready", then stops in done(), where
 * its counts are in `counts`. */
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ROUNDS 1000

struct {
    int malloc_100, malloc_100_to_200, calloc_4096, realloc_huge, realloc_777, memalign_640,
        posix_memalign_640, aligned_alloc_640, valloc_999, pvalloc_998, reallocarray_4096, set, freed_kept,
        second_thread_malloc_100;
} counts;

static void *kept;
static volatile size_t huge = (size_t)5 << 30, zero, most = SIZE_MAX;
static void *volatile sink;

#define COUNT(member, number) __atomic_add_fetch(&counts.member, number, __ATOMIC_RELAXED)

static void take(void *block) {
    sink = block;
    free(block);
}

static void mallocs(int is_second) {
    for (size_t size = 90; size <= 210; size += 10) {
        take(malloc(size));
        COUNT(malloc_100_to_200, size >= 100 && size <= 200);
        COUNT(malloc_100, size == 100);
        COUNT(second_thread_malloc_100, is_second && size == 100);
        COUNT(set, size == 90 || size == 150 || size == 210);
    }
}

static void callocs(void) {
    take(calloc(64, 64));
    take(calloc(1, 4096));
    take(calloc(4096, 1));
    take(calloc(4095, 1));
    sink = calloc(most, 2);                            /* overflows */
    sink = calloc(most / 4096 + 2, 4096 + (zero + 1)); /* the product's lower bits would do */
    sink = calloc(((size_t)1 << 52) + zero, 4097);
    COUNT(calloc_4096, 3);
}

static void reallocs(void) {
    void *block = realloc(NULL, 776);
    block = realloc(block, 777);
    block = realloc(block, 778);
    void *large = realloc(block, huge);
    block = realloc(large ? large : block, 777);
    block = reallocarray(block, 512, 8);
    take(block);
    COUNT(realloc_777, 2);
    COUNT(realloc_huge, 1);
    COUNT(reallocarray_4096, 1);
}

static void aligned(void) {
    void *block = NULL;
    take(memalign(64, 640));
    take(aligned_alloc(64, 640));
    if (posix_memalign(&block, 64, 640) == 0) {
        take(block);
    }
    take(valloc(999));
    if (!getenv("LD_PRELOAD")) { /* jemalloc has none, and libc's is no block of its */
        take(pvalloc(998));
        COUNT(pvalloc_998, 1);
    }
    COUNT(memalign_640, 1);
    COUNT(aligned_alloc_640, 1);
    COUNT(posix_memalign_640, 1);
    COUNT(valloc_999, 1);
}

static void *work(void *argument) {
    for (int i = 0; i < ROUNDS; i++) {
        mallocs(argument != NULL);
        callocs();
        reallocs();
        aligned();
    }
    return NULL;
}

static void *second(void *argument) {
    while (!__atomic_load_n((int *)argument, __ATOMIC_ACQUIRE)) {
        usleep(1000);
    }
    return work(argument);
}

__attribute__((noinline, noipa)) void done(void) {
    write(1, "done\n", 5);
}

int main(int argc, char **argv) {
    static int go;
    pthread_t thread;
    kept = malloc(5000);
    if (pthread_create(&thread, NULL, second, &go) != 0) {
        return 2;
    }
    printf("kept %p\nready\n", kept);
    fflush(stdout);
    while (argc > 1 && access(argv[1], F_OK) != 0) {
        usleep(1000);
    }
    __atomic_store_n(&go, 1, __ATOMIC_RELEASE);
    work(NULL);
    pthread_join(thread, NULL);
    free(kept);
    counts.freed_kept = 1;
    done();
    return 0;
}
