/* Calls malloc and its like in each way that changes a heap differently, and traps before each call, so that
 * who traces it can go on by single instructions and look.
 *
 *   stepped [small | OPERATIONS SEED] main|thread
 *
 * main, thread: which arena does the work. small: small blocks alone, which threads' caches have. OPERATIONS:
 * so many random ones instead. stepped.h says how it talks to its watcher. */
#include "stepped.h"

#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB 1024ul

/* How many blocks are kept by random operations, about. */
#define HELD_AT_ONCE 40

static struct stepped *shared;
static long random_operations;
static bool small_alone;
static void *held[STEPPED_HELD_MAX];

static void *hold(void *block) {
    for (size_t i = 0; i < STEPPED_HELD_MAX; i++) {
        if (!held[i]) {
            held[i] = block;
            return block;
        }
    }
    abort();
}

static void *let_go(void *block) {
    for (size_t i = 0; i < STEPPED_HELD_MAX; i++) {
        if (held[i] == block) {
            held[i] = NULL;
            return block;
        }
    }
    abort();
}

static void begin(const char *operation) {
    snprintf(shared->operation, sizeof shared->operation, "%s", operation);
    shared->held_count = 0;
    for (size_t i = 0; i < STEPPED_HELD_MAX; i++) {
        if (held[i]) {
            shared->held[shared->held_count++] =
                (struct stepped_block){(uintptr_t)held[i], malloc_usable_size(held[i])};
        }
    }
    shared->inside = 1;
    __asm__ volatile("int3");
}

static void *end(void *block) {
    shared->inside = 0;
    return block;
}

#define OPERATION(call) (begin(#call), hold(end(call)))

static void free_block(void *block, const char *what) {
    let_go(block);
    begin(what);
    free(block);
    end(NULL);
}

static void *resize(void *block, size_t size, const char *what) {
    let_go(block);
    begin(what);
    return hold(end(realloc(block, size)));
}

static void from_top(void) {
    OPERATION(malloc(3 * KIB));
    OPERATION(malloc(20 * KIB)); /* the first touch of a page */
    OPERATION(calloc(1, 9 * KIB));
    OPERATION(malloc(100 * KIB)); /* more than top has */
    OPERATION(memalign(4 * KIB, 5 * KIB));
}

static void from_bins(void) {
    void *row[12];
    for (size_t i = 0; i < 12; i++) {
        row[i] = hold(malloc(2 * KIB + 16 * i));
    }
    free_block(row[1], "free between live blocks");
    free_block(row[3], "free");
    free_block(row[2], "free between free blocks");
    OPERATION(malloc(3 * KIB)); /* sorts, and splits a block of a large bin */
    OPERATION(malloc(1100));    /* splits what was left over */
    free_block(row[6], "free");
    free_block(row[7], "free behind a free block");
    free_block(row[5], "free before a free block");
    OPERATION(memalign(512, 1500));
    row[8] = resize(row[8], 1200, "realloc, smaller");
    row[9] = resize(row[9], 5 * KIB, "realloc that moves");
    OPERATION(malloc(50 * KIB)); /* sorts the rest */
}

static void resized(void) {
    void *first = hold(malloc(2 * KIB)), *second = hold(malloc(3 * KIB)), *third = hold(malloc(2 * KIB));
    free_block(second, "free");
    first = resize(first, 3 * KIB, "realloc into a part of the free block behind");
    first = resize(first, 4 * KIB + 900, "realloc into the rest of it");
    third = resize(third, 40 * KIB, "realloc into top");
    free_block(third, "free into top");
    free_block(first, "free");
}

static void small_blocks(void) {
    void *row[20];
    for (size_t i = 0; i < 20; i++) {
        row[i] = hold(malloc(40));
    }
    for (size_t i = 0; i < 10; i++) {
        free_block(row[2 * i], i < 7 ? "free to the tcache" : "free to a fastbin");
    }
    for (size_t i = 0; i < 9; i++) {
        OPERATION(malloc(40)); /* the last ones fill the tcache from the fastbin */
    }
    free_block(row[1], "free");
    void *large = hold(malloc(80 * KIB));
    hold(malloc(1500));
    free_block(large, "free that consolidates the fastbins");
}

static void given_back(void) {
    void *block = hold(malloc(127 * KIB)), *other = hold(malloc(127 * KIB));
    free_block(block, "free");
    free_block(other, "free that gives memory back");
}

static void mapped(void) {
    void *block = OPERATION(malloc(600 * KIB));
    block = resize(block, 900 * KIB, "realloc of a mapped block");
    free_block(block, "free of a mapped block");
}

/* Sizes that end in each kind of bin, mostly small. */
static size_t random_size(void) {
    static const size_t most[] = {60, 120, 600, 1500, 4 * KIB, 20 * KIB, 70 * KIB};
    return 1 + (size_t)random() % most[(size_t)random() % (sizeof most / sizeof *most)];
}

static void random_operation(void) {
    size_t at = (size_t)random() % HELD_AT_ONCE, size = random_size();
    void *block = held[at];
    long kind = random() % 10;
    if (!block) {
        block = kind < 8 ? OPERATION(malloc(size)) : OPERATION(memalign(16ul << random() % 6, size));
        memset(block, (int)random(), size);
    } else if (kind < 8) {
        free_block(block, "free");
    } else {
        resize(block, size, "realloc");
    }
}

static void *operations(void *unused) {
    (void)unused;
    for (size_t i = 0; i < 5; i++) {
        hold(malloc(1500 + 100 * i));
    }
    for (long i = 0; i < random_operations; i++) {
        random_operation();
    }
    if (small_alone) {
        small_blocks();
    }
    if (small_alone || random_operations) {
        return NULL;
    }
    from_top();
    from_bins();
    resized();
    small_blocks();
    given_back();
    mapped();
    return NULL;
}

int main(int argc, char **argv) {
    bool in_thread = argc > 1 && strcmp(argv[argc - 1], "thread") == 0;
    small_alone = argc > 2 && strcmp(argv[1], "small") == 0;
    if (argc > 3) {
        random_operations = atol(argv[1]);
        srandom((unsigned)atol(argv[2]));
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, STEPPED_SHARED_FD, 0);
    while (!shared->go) {
        usleep(1000);
    }
    pthread_t thread;
    if (in_thread) {
        pthread_create(&thread, NULL, operations, NULL);
        pthread_join(thread, NULL);
    } else {
        operations(NULL);
    }
    return 0;
}
