/* Makes the small cores that mutate starts from, into the working directory: single.core, threads.core,
 * mapped.core, fragmented.core, two-libcs.core, python.core; with jemalloc preloaded only jemalloc.core, of
 * that, with libkarst-preload.so and KARST_MARK=1 only marked.core; and the smallest ones that a fuzzer's
 * seeds are cut from (cut_seeds.py): tiny.core, tiny-threads.core. Addresses are not randomised, so that a
 * case number means the same core on the same system. */
#include "../bench/dump_core.h"
#include "../programs/splitmix.h"

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <unistd.h>

#define THREADS 3
#define BLOCKS  600

static uint64_t state;

/* Blocks of all kinds, a third of them freed: some stay in the tcache, in fastbins and unsorted. */
static void churn(size_t largest) {
    void *blocks[BLOCKS];
    for (size_t i = 0; i < BLOCKS; i++) {
        size_t size = 1 + next_random(&state) % (i % 4 ? 120 : largest);
        blocks[i] = i % 50 == 49 ? aligned_alloc(256, size) : malloc(size);
        if (!blocks[i]) {
            abort();
        }
        memset(blocks[i], (int)i, size < 32 ? size : 32);
        if (i > 0) { /* a pointer to follow */
            memcpy(blocks[i - 1], &blocks[i], 1 + (malloc_usable_size(blocks[i - 1]) > 8 ? 7 : 0));
        }
    }
    for (size_t i = 0; i < BLOCKS; i += 1 + next_random(&state) % 5) {
        free(blocks[i]);
        blocks[i] = NULL;
        if (i > BLOCKS / 2 && i < BLOCKS / 2 + 6) {
            free(malloc(5000));
        }
    }
}

static void single(void *unused) {
    (void)unused;
    churn(2000);
}

static pthread_barrier_t done;

static void *work(void *largest) {
    churn((size_t)(uintptr_t)largest);
    pthread_barrier_wait(&done);
    for (;;) {
        pause();
    }
    return NULL;
}

static void threads(void *unused) {
    (void)unused;
    pthread_attr_t small_stack;
    pthread_attr_init(&small_stack);
    pthread_attr_setstacksize(&small_stack, 64 << 10);
    pthread_barrier_init(&done, NULL, 2);
    for (uintptr_t i = 0; i < THREADS; i++) { /* one after the other: state is shared */
        pthread_t thread;
        if (pthread_create(&thread, &small_stack, work, (void *)(600 + 400 * i)) != 0) {
            abort();
        }
        pthread_barrier_wait(&done);
    }
    churn(1000);
}

static void mapped(void *unused) {
    (void)unused;
    mallopt(M_MMAP_THRESHOLD, 20000);
    for (size_t i = 0; i < 12; i++) {
        void *block = i % 4 == 3 ? aligned_alloc(8192, 20480) : malloc(20000 + i * 1000);
        if (!block) {
            abort();
        }
        if (i % 5 == 4) {
            free(block);
        }
    }
    churn(600);
}

/* Both have blocks with mappings of their own, which are told apart only by what each libc counts. */
static void two_libcs(void *unused) {
    mapped(unused);
    void *library = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
    if (!library) {
        abort();
    }
    void *(*second_malloc)(size_t);
    int (*second_mallopt)(int, int);
    *(void **)&second_malloc = dlsym(library, "malloc");
    *(void **)&second_mallopt = dlsym(library, "mallopt");
    if (!second_malloc || !second_mallopt || !second_mallopt(M_MMAP_THRESHOLD, 20000)) {
        abort();
    }
    /* Its first piece is of 1 MiB: what that takes gets no mapping. */
    if (!second_malloc(1000000)) {
        abort();
    }
    for (size_t i = 0; i < 60; i++) {
        if (!second_malloc(i % 10 == 0 ? 60000 + 1000 * i : 24 + 8 * i)) {
            abort();
        }
    }
}

/* Large and small in turn; the large ones go, and are sorted into the bins. */
static void fragmented(void *unused) {
    (void)unused;
    void *large[200];
    mallopt(M_MXFAST, 0);
    for (size_t i = 0; i < 200; i++) {
        large[i] = malloc(300 + next_random(&state) % 2200);
        if (!large[i] || !malloc(24)) {
            abort();
        }
    }
    for (size_t i = 0; i < 200; i++) {
        free(large[i]);
        if (i % 30 == 29) {
            free(malloc(3000));
        }
    }
    if (!malloc(3000)) {
        abort();
    }
}

static void few(void) {
    void *blocks[40];
    for (size_t i = 0; i < 40; i++) {
        blocks[i] = malloc(i % 4 == 0 ? 100 * i : 8 * i);
    }
    for (size_t i = 0; i < 40; i += 1 + i % 3) {
        free(blocks[i]);
    }
    free(malloc(4000));
}

/* Without the usual reserve at the top, a heap is a few pages. */
static void tiny(void *unused) {
    (void)unused;
    mallopt(M_TOP_PAD, 0);
    few();
}

static void *few_in_thread(void *unused) {
    few();
    pthread_barrier_wait(&done);
    for (;;) {
        pause();
    }
    return unused;
}

static void tiny_threads(void *unused) {
    pthread_t thread;
    pthread_attr_t small_stack;
    tiny(unused);
    pthread_attr_init(&small_stack);
    pthread_attr_setstacksize(&small_stack, 16 << 10);
    pthread_barrier_init(&done, NULL, 2);
    if (pthread_create(&thread, &small_stack, few_in_thread, NULL) != 0) {
        abort();
    }
    pthread_barrier_wait(&done);
}

/* An interpreter with as little as can be in it, in a few frames; it stops itself, and GDB takes the core. */
static void python(void *unused) {
    static const char script[] =
        "import os, signal\n"
        "class Kept:\n"
        "    def __init__(self, number):\n"
        "        self.number, self.items = number, [number] * 5\n"
        "kept = {number: Kept(number) for number in range(300)}\n"
        "for number in range(0, 300, 3):\n"
        "    del kept[number]\n"
        "def stop(depth):\n"
        "    held = 'held' * depth\n"
        "    return stop(depth - 1) if depth else os.kill(os.getpid(), signal.SIGSTOP)\n"
        "list(map(stop, [4]))\n";
    (void)unused;
    setenv("PYTHONHASHSEED", "0", 1);
    execl("/usr/bin/python3", "python3", "-E", "-s", "-S", "-c", script, (char *)NULL);
    abort();
}

extern int mallctl(const char *name, void *old, size_t *old_size, void *fresh, size_t fresh_size)
    __attribute__((weak));

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*build)(void *);
    } kinds[] = {{"single.core", single},       {"threads.core", threads},
                 {"mapped.core", mapped},       {"fragmented.core", fragmented},
                 {"two-libcs.core", two_libcs}, {"python.core", python},
                 {"tiny.core", tiny},           {"tiny-threads.core", tiny_threads}};
    int now = personality(0xffffffff);
    if (argc == 1 && now != -1 && !(now & ADDR_NO_RANDOMIZE) && personality(now | ADDR_NO_RANDOMIZE) != -1) {
        execl("/proc/self/exe", argv[0], "fixed", (char *)NULL);
    }
    if (mallctl) {
        return dump_core("jemalloc.core", threads, NULL) ? 0 : 2;
    }
    if (getenv("KARST_MARK")) {
        return dump_core("marked.core", threads, NULL) ? 0 : 2;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        state = i;
        if (!dump_core(kinds[i].name, kinds[i].build, NULL)) {
            return 2;
        }
    }
    return 0;
}
