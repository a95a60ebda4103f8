/* Blocks that reach over others, and pointers into the middle of one. */
#include "catalogue.h"

static void swallows_free(void) {
    void *block = allocate(200);
    void *victim = allocate(1500);
    allocated();
    release(victim);
    if (damage("overlap", block)) {
        chunk_of(block)->size += chunk_size(victim);
    }
}

static void swallows_cached(void) {
    void *block = allocate(200);
    void *victim = allocate(300);
    allocated();
    release(victim);
    if (damage("overlap", block)) {
        chunk_of(block)->size += chunk_size(victim);
    }
}

static void *volatile kept; /* the program still knows the victim */

/* Looks like one larger block, but for the headers inside and the pointer to what they head. */
static void swallows_live(void) {
    void *block = allocate(200);
    kept = allocate(300);
    allocated();
    if (damage_suspected("overlap", block)) {
        chunk_of(block)->size += chunk_size(kept);
    }
}

/* The program frees a pointer into a block, where its data happen to look like a header. */
static void interior_freed(void) {
    uint64_t *block = allocate(400);
    allocated();
    block[7] = 0x41;
    if (damage("overlap", block)) {
        release(&block[8]);
    }
}

const struct case_ overlap_cases[] = {
    {"overlap-swallows-free", swallows_free, false},
    {"overlap-swallows-cached", swallows_cached, false},
    {"overlap-swallows-live", swallows_live, false},
    {"overlap-interior-pointer-freed", interior_freed, false},
    {0},
};
