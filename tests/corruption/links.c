/* Damaged lists of free chunks: unsorted, small, large and fast bins. */
#include "catalogue.h"

#include <string.h>

enum { FAST = 48, MIDDLE = 200, LARGE = 1496 };

#define NOWHERE ((struct chunk *)0x5a5a5a5a5a50) /* not mapped */

/* Three blocks of a small bin; in the order of fd: [2], [1], [0]. */
struct three {
    void *blocks[3];
};

static struct three three_in_small_bin(void) {
    struct three three;
    struct filler filler = tcache_filler(MIDDLE);
    for (size_t i = 0; i < 3; i++) {
        three.blocks[i] = allocate(MIDDLE);
        (void)allocate(MIDDLE);
    }
    allocated();
    fill_tcache(&filler);
    for (size_t i = 0; i < 3; i++) {
        release(three.blocks[i]);
    }
    (void)allocate(2000); /* sorts */
    return three;
}

static void *one_in_unsorted_bin(void) {
    void *block = allocate(LARGE);
    allocated();
    release(block);
    return block;
}

static void *one_in_fastbin(void) {
    struct filler filler = tcache_filler(FAST);
    void *block = allocate(FAST);
    allocated();
    fill_tcache(&filler);
    release(block);
    return block;
}

static void unsorted_fd_nowhere(void) {
    void *block = one_in_unsorted_bin();
    if (damage("bad-link", block)) {
        chunk_of(block)->fd = NOWHERE;
    }
}

static void unsorted_bk_written(void) {
    char *block = one_in_unsorted_bin();
    if (damage("write-after-free", block)) {
        memcpy(block + 8, "a string", 8);
    }
}

static void small_bk_elsewhere(void) {
    struct three three = three_in_small_bin();
    if (damage("bad-link", three.blocks[1])) {
        chunk_of(three.blocks[1])->bk = chunk_of(main_tcache());
    }
}

static void small_cycle(void) {
    struct three three = three_in_small_bin();
    if (damage("bad-link", three.blocks[0])) {
        chunk_of(three.blocks[0])->fd = chunk_of(three.blocks[2]);
    }
}

static void large_nextsize(void) {
    void *blocks[3];
    for (size_t i = 0; i < 3; i++) {
        blocks[i] = allocate(LARGE + 32 + i * 16);
        (void)allocate(100);
    }
    allocated();
    for (size_t i = 0; i < 3; i++) {
        release(blocks[i]);
    }
    (void)allocate(30000); /* sorts */
    if (damage("bad-link", blocks[1])) {
        chunk_of(blocks[1])->fd_nextsize = chunk_of(main_tcache());
    }
}

static void fastbin_outside(void) {
    uint64_t **block = one_in_fastbin();
    if (damage("bad-link", block)) {
        block[0] = mangled(block, stack_room);
    }
}

static void fastbin_written(void) {
    char *block = one_in_fastbin();
    if (damage("write-after-free", block)) {
        memcpy(block, "a string", 8);
    }
}

static void unlink_chunk(struct chunk *chunk) {
    chunk->fd->bk = chunk->bk;
    chunk->bk->fd = chunk->fd;
}

static void lost(void) {
    struct three three = three_in_small_bin();
    if (damage("lost-free", three.blocks[1])) {
        unlink_chunk(chunk_of(three.blocks[1]));
    }
}

static void wrong_small_bin(void) {
    void *other = allocate(700);
    struct filler filler = tcache_filler(700);
    struct three three = three_in_small_bin();
    fill_tcache(&filler);
    release(other);
    (void)allocate(2000);
    struct chunk *stray = chunk_of(three.blocks[1]);
    struct chunk *home = chunk_of(other);
    if (damage("wrong-bin", three.blocks[1])) {
        unlink_chunk(stray);
        stray->fd = home->fd;
        stray->bk = home;
        stray->fd->bk = stray;
        home->fd = stray;
    }
}

/* free() is made to believe that the block before is in use. */
static void uncoalesced(void) {
    void *block = allocate(LARGE);
    void *after = allocate(LARGE);
    allocated();
    release(block);
    if (damage("uncoalesced", after)) {
        chunk_of(after)->size |= PREV_INUSE;
        release(after);
        chunk_of(after)->size &= ~(size_t)PREV_INUSE;
    }
}

const struct case_ link_cases[] = {
    {"bad-link-unsorted-fd-nowhere", unsorted_fd_nowhere, false},
    {"bad-link-small-bk-elsewhere", small_bk_elsewhere, false},
    {"bad-link-small-cycle", small_cycle, false},
    {"bad-link-large-nextsize", large_nextsize, false},
    {"bad-link-fastbin-outside", fastbin_outside, true},
    {"write-after-free-unsorted-bk", unsorted_bk_written, false},
    {"write-after-free-fastbin", fastbin_written, true},
    {"lost-free-small", lost, false},
    {"wrong-bin-small", wrong_small_bin, false},
    {"uncoalesced", uncoalesced, false},
    {0},
};
