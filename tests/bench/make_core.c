/* Makes the heap that `make bench-heap` measures with, and its core.
 *
 *   make_core --blocks N --core FILE --layout FILE   build the heap, dump the core, say where the heaps are
 *   make_core --blocks N --live                      build the heap and stay; measure the longest pause
 *
 * The heap is glibc's: a sixteenth of the blocks in the main arena, the rest in four thread arenas, a
 * mix of sizes, and as many frees again as leave about one free chunk to four live ones. It is the same
 * at every run, but for where the kernel puts it.
 */
#include "../programs/splitmix.h"
#include "dump_core.h"

#include <errno.h>
#include <getopt.h>
#include <gnu/libc-version.h>
#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define WORKERS     4
#define MAPPED      16 /* blocks with a mapping of their own, of the main thread */
#define MAPPED_SIZE (1u << 20)
#define HEAP_MAX    ((uintptr_t)64 << 20)

struct share {
    unsigned index; /* 0: the main thread */
    uint64_t live;  /* blocks to be left */
    uint64_t random;
    void *any; /* one of its blocks, to find the arena by */
};

static pthread_barrier_t built;
static pthread_mutex_t in_turn = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *what) {
    fprintf(stderr, "make_core: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* Half the requests up to 128 bytes, a third up to 512, few above 1 KiB: 320 bytes on average. */
static size_t next_size(uint64_t *state) {
    uint64_t r = next_random(state), kind = r % 1000, low = r >> 32;
    if (kind < 500) {
        return 8 + low % 120;
    }
    if (kind < 825) {
        return 128 + low % 384;
    }
    if (kind < 975) {
        return 512 + low % 512;
    }
    return kind < 999 ? 1024 + low % 3072 : 4096 + low % 28672;
}

static void *allocate(uint64_t *state) {
    size_t size = next_size(state);
    unsigned char *block = malloc(size);
    if (!block) {
        die("malloc");
    }
    memset(block, (int)(size & 0xff), size < 64 ? size : 64);
    return block;
}

/* Frees count of the total blocks, chosen at random, one in 32 of them with what follows it so that
 * there are larger holes too; in random order. The rest is moved to the front. */
static void free_some(void **blocks, uint64_t total, uint64_t count, uint64_t *state) {
    uint64_t kept = 0, chosen = 0, run = 0, *order = malloc((count + 1) * sizeof *order);
    if (!order) {
        die("malloc");
    }
    for (uint64_t i = 0; i < total; i++) {
        uint64_t left = total - i, wanted = count - chosen;
        if (run == 0 && next_random(state) % left < wanted * 4 / 5) {
            run = next_random(state) % 32 ? 1 : 1 + next_random(state) % 16;
        }
        if (wanted > 0 && (run > 0 || wanted == left)) {
            run -= run > 0;
            order[chosen++] = (uint64_t)(uintptr_t)blocks[i];
        } else {
            blocks[kept++] = blocks[i];
        }
    }
    for (uint64_t i = chosen; i > 1; i--) {
        uint64_t other = next_random(state) % i, swapped = order[i - 1];
        order[i - 1] = order[other];
        order[other] = swapped;
    }
    for (uint64_t i = 0; i < chosen; i++) {
        free((void *)(uintptr_t)order[i]);
    }
    free(order);
}

/* The table of pointers is mapped, not allocated, and given back: the heap holds the blocks only. */
static void build(struct share *share) {
    uint64_t late = share->live / 64, freed = share->live * 30 / 100;
    uint64_t early = share->live - late + freed, bytes = (early + 1) * sizeof(void *);
    void **blocks = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (blocks == MAP_FAILED) {
        die("mmap");
    }
    for (uint64_t i = 0; i < early; i++) {
        blocks[i] = allocate(&share->random);
    }
    share->any = early ? blocks[early - 1] : NULL;
    free_some(blocks, early, freed, &share->random);
    /* A request this large makes malloc merge what waits in the fastbins. */
    free(malloc(100000));
    for (uint64_t i = 0; i < late; i++) {
        void *block = allocate(&share->random);
        share->any = block;
    }
    munmap(blocks, bytes);
}

static void *work(void *argument) {
    struct share *share = argument;
    pthread_mutex_lock(&in_turn); /* so that the arenas are made one after the other */
    free(malloc(1));
    pthread_mutex_unlock(&in_turn);
    build(share);
    pthread_barrier_wait(&built);
    for (;;) {
        pause();
    }
    return NULL;
}

static void build_all(struct share shares[WORKERS + 1], uint64_t blocks) {
    pthread_barrier_init(&built, NULL, WORKERS + 1);
    uint64_t each = blocks / 16 * 15 / WORKERS;
    for (unsigned i = 1; i <= WORKERS; i++) {
        pthread_t thread;
        shares[i] = (struct share){.index = i, .live = each, .random = i};
        if (pthread_create(&thread, NULL, work, &shares[i]) != 0) {
            die("pthread_create");
        }
    }
    uint64_t rest = blocks - each * WORKERS;
    shares[0] = (struct share){.live = rest > MAPPED ? rest - MAPPED : 0};
    build(&shares[0]);
    pthread_barrier_wait(&built);
}

/* ---- where it all is: for bare_loop ------------------------------------------------------------- */

/* The parts of glibc's structs that are needed: sysdeps of 2.31 to 2.42, malloc/malloc.c and arena.c. */
struct heap_info {
    uintptr_t arena;
    struct heap_info *previous;
    size_t size;
};
#define TOP_IN_ARENA 96
#define ARENA_SIZE   2200

static size_t heap_info_size(void) {
    unsigned major = 0, minor = 0;
    if (sscanf(gnu_get_libc_version(), "%u.%u", &major, &minor) != 2 || major != 2 || minor < 26 ||
        minor > 42) {
        fprintf(stderr, "make_core: only knows glibc 2.26 to 2.42, this is %s\n", gnu_get_libc_version());
        exit(2);
    }
    return minor < 35 ? 32 : 48;
}

static void write_thread_arena(FILE *layout, const void *block) {
    size_t header = heap_info_size();
    uintptr_t arena = ((const struct heap_info *)((uintptr_t)block & ~(HEAP_MAX - 1)))->arena;
    uintptr_t top = *(const uintptr_t *)(arena + TOP_IN_ARENA);
    const struct heap_info *heap = (const struct heap_info *)(top & ~(HEAP_MAX - 1));
    for (; heap; heap = heap->previous) {
        uintptr_t start = (uintptr_t)heap + header;
        if (!heap->previous) {
            start = (start + ARENA_SIZE + 15) & ~(uintptr_t)15;
        }
        fprintf(layout, "heap %" PRIxPTR " %" PRIxPTR "\n", start, (uintptr_t)heap + heap->size);
    }
}

static void write_break(FILE *layout) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    bool found = false;
    while (maps && fgets(line, sizeof line, maps)) {
        uintptr_t start = 0, end = 0;
        if (strstr(line, "[heap]") && sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &start, &end) == 2) {
            fprintf(layout, "brk %" PRIxPTR " %" PRIxPTR "\n", start, end);
            found = true;
        }
    }
    if (!found) {
        die("no [heap] in /proc/self/maps");
    }
    fclose(maps);
}

static void write_layout(const char *path, const struct share shares[WORKERS + 1],
                         void *const mapped[MAPPED]) {
    /* Its buffer may not come from the heap that is being described. */
    static char buffer[1 << 16];
    FILE *layout = fopen(path, "w");
    if (!layout) {
        die(path);
    }
    setvbuf(layout, buffer, _IOFBF, sizeof buffer);
    write_break(layout);
    for (unsigned i = 1; i <= WORKERS; i++) {
        if (shares[i].any) {
            write_thread_arena(layout, shares[i].any);
        }
    }
    for (unsigned i = 0; i < MAPPED; i++) {
        uintptr_t chunk = (uintptr_t)mapped[i] - 16, size = *(const size_t *)(chunk + 8) & ~(size_t)7;
        fprintf(layout, "mapped %" PRIxPTR " %" PRIxPTR "\n", chunk, chunk + size);
    }
    if (fclose(layout) != 0) {
        die(path);
    }
}

/* ---- the core ----------------------------------------------------------------------------------- */

struct dump {
    uint64_t blocks;
    const char *layout;
};

/* With a threshold that does not move when the tables that building needs are freed. */
static void build_to_dump(void *context) {
    const struct dump *dump = context;
    struct share shares[WORKERS + 1];
    void *mapped[MAPPED];
    mallopt(M_MMAP_THRESHOLD, MAPPED_SIZE);
    build_all(shares, dump->blocks);
    for (unsigned i = 0; i < MAPPED; i++) {
        mapped[i] = malloc(MAPPED_SIZE);
        if (!mapped[i]) {
            die("malloc");
        }
    }
    write_layout(dump->layout, shares, mapped);
}

/* ---- the live process --------------------------------------------------------------------------- */

static atomic_uint_fast64_t longest_gap, looks;

static void *measure_gaps(void *unused) {
    struct timespec before, now;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        uint64_t gap = (uint64_t)((now.tv_sec - before.tv_sec) * 1000000000 + (now.tv_nsec - before.tv_nsec));
        if (gap > atomic_load_explicit(&longest_gap, memory_order_relaxed)) {
            atomic_store_explicit(&longest_gap, gap, memory_order_relaxed);
        }
        before = now;
        atomic_fetch_add(&looks, 1);
    }
    return unused;
}

/* A line on standard input: prints the longest time the process stood still since the last line, in
 * nanoseconds, and forgets it. The end of input ends the process. */
static void stay(uint64_t blocks) {
    struct share shares[WORKERS + 1];
    pthread_t thread;
    char line[64];
    build_all(shares, blocks);
    if (pthread_create(&thread, NULL, measure_gaps, NULL) != 0) {
        die("pthread_create");
    }
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        /* The other thread may not have had a processor yet since the process went on. */
        for (uint64_t look = atomic_load(&looks); atomic_load(&looks) < look + 2;) {
            sched_yield();
        }
        printf("%" PRIu64 "\n", (uint64_t)atomic_exchange(&longest_gap, 0));
        fflush(stdout);
    }
    _exit(0);
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"blocks", required_argument, NULL, 'b'},
                                            {"core", required_argument, NULL, 'c'},
                                            {"layout", required_argument, NULL, 'l'},
                                            {"live", no_argument, NULL, 'p'},
                                            {NULL, 0, NULL, 0}};
    uint64_t blocks = 12000000;
    const char *core = NULL, *layout = NULL;
    bool live = false;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'b':
            blocks = strtoull(optarg, NULL, 0);
            break;
        case 'c':
            core = optarg;
            break;
        case 'l':
            layout = optarg;
            break;
        case 'p':
            live = true;
            break;
        default:
            return 2;
        }
    }
    if (live) {
        stay(blocks);
    } else if (core && layout) {
        struct dump dump = {blocks, layout};
        return dump_core(core, build_to_dump, &dump) ? 0 : 2;
    } else {
        fprintf(stderr, "usage: make_core --blocks N (--core FILE --layout FILE | --live)\n");
        return 2;
    }
    return 0;
}
