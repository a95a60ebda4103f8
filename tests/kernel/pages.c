/* pages: memory of every kind that page tables tell apart, each page of it with its own address in its first
 * word. Prints "region NAME START END" for each kind and "ready PID", then does nothing. Runs in the guest.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#define PAGE    4096u
#define HUGE    (2u << 20)
#define THREADS 6

/* How long each thread faults by itself: an odd number, so that no batch is ever full. */
#define PAGES_OF_THREAD 37

static void give_up(const char *what) {
    perror(what);
    exit(1);
}

static uint8_t *map(size_t size, int flags, int file) {
    /* Aligned, so that huge pages fit; a page that may not be touched on both sides keeps regions apart. */
    uint8_t *room =
        mmap(NULL, size + 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        give_up("mmap");
    }
    uint8_t *start = (uint8_t *)(((uintptr_t)room + HUGE) & ~(uintptr_t)(HUGE - 1));
    int how = flags | (file < 0 ? MAP_ANONYMOUS : 0) | MAP_FIXED;
    if (mmap(start, size, PROT_READ | PROT_WRITE, how, file, 0) == MAP_FAILED) {
        give_up("mmap");
    }
    return start;
}

static void fill(uint8_t *start, size_t size, size_t step) {
    for (size_t at = 0; at < size; at += step) {
        *(uint64_t *)(start + at) = (uintptr_t)start + at;
    }
}

static void say(const char *name, const uint8_t *start, size_t size) {
    printf("region %s %p %p\n", name, (const void *)start, (const void *)(start + size));
}

static void make_anonymous(void) {
    uint8_t *huge = map(4 * HUGE, MAP_PRIVATE, -1);
    madvise(huge, 4 * HUGE, MADV_HUGEPAGE);
    fill(huge, 4 * HUGE, PAGE);
    say("huge", huge, 4 * HUGE);

    uint8_t *small = map(16u << 20, MAP_PRIVATE, -1);
    madvise(small, 16u << 20, MADV_NOHUGEPAGE);
    fill(small, 16u << 20, PAGE);
    say("small", small, 16u << 20);

    uint8_t *holes = map(300 * PAGE, MAP_PRIVATE, -1);
    madvise(holes, 300 * PAGE, MADV_NOHUGEPAGE);
    fill(holes, 300 * PAGE, 3 * PAGE);
    say("holes", holes, 300 * PAGE);

    uint8_t *zero = map(100 * PAGE, MAP_PRIVATE, -1);
    madvise(zero, 100 * PAGE, MADV_NOHUGEPAGE);
    unsigned sum = 0;
    for (size_t at = 0; at < 100 * PAGE; at += PAGE) {
        sum += *(volatile uint8_t *)(zero + at);
    }
    fill(zero, sum + 10 * PAGE, PAGE);
    say("zero", zero, 100 * PAGE);
}

/* Read, not written to, and aligned: a huge page of zeros that all share. */
static void make_huge_zeros(void) {
    const uint8_t *zeros = map(2 * HUGE, MAP_PRIVATE, -1);
    madvise((void *)zeros, 2 * HUGE, MADV_HUGEPAGE);
    unsigned sum = 0;
    for (size_t at = 0; at < 2 * HUGE; at += PAGE) {
        sum += *(volatile const uint8_t *)(zeros + at);
    }
    if (sum == 0) {
        say("hugezero", zeros, 2 * HUGE);
    }
}

/* What has no access is still there; what is swapped out is not. */
static void make_hidden(void) {
    uint8_t *none = map(200 * PAGE, MAP_PRIVATE, -1);
    madvise(none, 200 * PAGE, MADV_NOHUGEPAGE);
    fill(none, 150 * PAGE, PAGE);
    mprotect(none, 200 * PAGE, PROT_NONE);
    say("none", none, 200 * PAGE);

    uint8_t *swapped = map(400 * PAGE, MAP_PRIVATE, -1);
    madvise(swapped, 400 * PAGE, MADV_NOHUGEPAGE);
    fill(swapped, 400 * PAGE, PAGE);
    madvise(swapped + 100 * PAGE, 200 * PAGE, MADV_PAGEOUT);
    say("swapped", swapped, 400 * PAGE);
}

static void make_shared(const char *path) {
    uint8_t *shared = map(120 * PAGE, MAP_SHARED, -1);
    fill(shared, 80 * PAGE, PAGE);
    say("shared", shared, 120 * PAGE);

    int file = open(path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 100 * PAGE) != 0) {
        give_up(path);
    }
    for (uint64_t page = 0; page < 100; page++) {
        if (pwrite(file, &page, sizeof page, (off_t)(page * PAGE)) != sizeof page) {
            give_up(path);
        }
    }
    uint8_t *private = map(100 * PAGE, MAP_PRIVATE, file);
    unsigned sum = 0;
    for (size_t at = 0; at < 60 * PAGE; at += PAGE) {
        sum += private[at];
    }
    fill(private, 20 * PAGE + (sum ? 0 : PAGE), PAGE);
    say("file", private, 100 * PAGE);
}

/* Each thread leaves some pages in the part of the count that its CPU (or the thread itself) holds back. */
static pthread_barrier_t barrier;
static uint8_t *of_threads;
static atomic_uint counted;

static _Noreturn void wait_forever(void) {
    for (;;) {
        pause();
    }
}

static void *fault_few(void *index) {
    uint8_t *mine = of_threads + (uintptr_t)index * 2 * HUGE;
    pthread_barrier_wait(&barrier);
    fill(mine, PAGES_OF_THREAD * PAGE, PAGE);
    atomic_fetch_add(&counted, 1);
    wait_forever();
}

static void start_threads(void) {
    of_threads = map(THREADS * 2 * HUGE, MAP_PRIVATE, -1);
    madvise(of_threads, THREADS * 2 * HUGE, MADV_NOHUGEPAGE);
    pthread_barrier_init(&barrier, NULL, THREADS);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64u << 10);
    for (uintptr_t index = 0; index < THREADS; index++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, fault_few, (void *)index) != 0) {
            give_up("pthread_create");
        }
    }
    while (atomic_load(&counted) < THREADS) {
        usleep(1000);
    }
    say("threads", of_threads, THREADS * 2 * HUGE);
}

/* A child that ends and is never waited for. */
static void make_zombie(void) {
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    printf("zombie %d\n", (int)child);
}

int main(int argc, char **argv) {
    make_zombie();
    make_anonymous();
    make_huge_zeros();
    make_hidden();
    make_shared(argc > 1 ? argv[1] : "/tmp/pages");
    start_threads();
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    wait_forever();
}
