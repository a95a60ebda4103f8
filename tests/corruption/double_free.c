/* Blocks freed twice, in ways that free() itself does not notice. */
#include "catalogue.h"

enum { SMALL = 48 /* of a fastbin */, MIDDLE = 200 /* of a small bin */ };

/* Two threads free the same block: neither finds it in its own tcache. */
static void tcache_of_two_threads(void) {
    void *block = allocate(SMALL);
    void *other = allocate(SMALL);
    allocated();
    in_thread(release, block);
    release(damage("double-free", block) ? block : other);
}

/* The program writes into what it freed, over tcache's key, and frees it again. */
static void tcache_twice(void) {
    uint64_t *block = allocate(SMALL);
    allocated();
    release(block);
    if (damage("double-free", block)) {
        block[1] = 0;
        release(block);
    }
}

static void tcache_and_fastbin(void) {
    struct filler filler = tcache_filler(SMALL);
    void *block = allocate(SMALL);
    allocated();
    fill_tcache(&filler);
    release(block);
    (void)allocate(SMALL); /* makes room in the tcache */
    if (damage("double-free", block)) {
        release(block);
    }
}

static void tcache_and_unsorted(void) {
    struct filler filler = tcache_filler(MIDDLE);
    void *block = allocate(MIDDLE);
    allocated();
    fill_tcache(&filler);
    release(block);
    (void)allocate(MIDDLE);
    if (damage("double-free", block)) {
        release(block);
    }
}

static void tcache_and_small(void) {
    struct filler filler = tcache_filler(MIDDLE);
    void *block = allocate(MIDDLE);
    allocated();
    fill_tcache(&filler);
    release(block);
    (void)allocate(2000); /* sorts the unsorted bin */
    (void)allocate(MIDDLE);
    if (damage("double-free", block)) {
        release(block);
    }
}

static void fastbin_between(void) {
    struct filler filler = tcache_filler(SMALL);
    void *block = allocate(SMALL);
    void *other = allocate(SMALL);
    allocated();
    fill_tcache(&filler);
    release(block);
    release(other);
    if (damage("double-free", block)) {
        release(block);
    }
}

static void fastbin_and_other_tcache(void) {
    struct filler filler = tcache_filler(SMALL);
    void *block = allocate(SMALL);
    void *other = allocate(SMALL);
    allocated();
    fill_tcache(&filler);
    release(block);
    in_thread(release, damage("double-free", block) ? block : other);
}

static void unsorted_and_other_tcache(void) {
    struct filler filler = tcache_filler(MIDDLE);
    void *block = allocate(MIDDLE);
    allocated();
    fill_tcache(&filler);
    in_thread(release, block);
    if (damage("double-free", block)) {
        release(block);
    }
}

/* Freed a second time the block becomes part of the free chunk before it. */
static void merged_and_other_tcache(void) {
    struct filler filler = tcache_filler(MIDDLE);
    void *before = allocate(1500);
    void *block = allocate(MIDDLE);
    allocated();
    fill_tcache(&filler);
    release(before);
    in_thread(release, block);
    if (damage("double-free", block)) {
        release(block);
    }
}

static void *thread_block;

static void take_thread_block(void *argument) {
    (void)argument;
    thread_block = allocate(SMALL);
    stand_by(50);
}

/* A block of a thread's arena, freed by two other threads. */
static void of_thread_arena(void) {
    void *other = allocate(SMALL);
    in_thread(take_thread_block, NULL);
    allocated();
    in_thread(release, thread_block);
    release(damage("double-free", thread_block) ? thread_block : other);
}

const struct case_ double_free_cases[] = {
    {"double-free-tcache-of-two-threads", tcache_of_two_threads, false},
    {"double-free-tcache-twice", tcache_twice, false},
    {"double-free-tcache-and-fastbin", tcache_and_fastbin, true},
    {"double-free-tcache-and-unsorted", tcache_and_unsorted, false},
    {"double-free-tcache-and-small", tcache_and_small, false},
    {"double-free-fastbin-a-b-a", fastbin_between, true},
    {"double-free-fastbin-and-other-tcache", fastbin_and_other_tcache, true},
    {"double-free-unsorted-and-other-tcache", unsorted_and_other_tcache, false},
    {"double-free-merged-and-other-tcache", merged_and_other_tcache, false},
    {"double-free-in-thread-arena", of_thread_arena, false},
    {0},
};
