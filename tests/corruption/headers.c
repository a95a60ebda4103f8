/* Damaged headers: sizes, flags, and what an overflow does to them. */
#include "catalogue.h"

#include <malloc.h>
#include <string.h>

static void *block_in_the_middle(void) {
    (void)allocate(100);
    void *block = allocate(200);
    (void)allocate(100);
    allocated();
    return block;
}

static void size_huge(void) {
    void *block = block_in_the_middle();
    if (damage("bad-size", block)) {
        chunk_of(block)->size = 0x7ffffff000 | PREV_INUSE;
    }
}

static void size_zero(void) {
    void *block = block_in_the_middle();
    if (damage("bad-size", block)) {
        chunk_of(block)->size = 0;
    }
}

static void size_misaligned(void) {
    void *block = block_in_the_middle();
    if (damage("bad-size", block)) {
        chunk_of(block)->size |= 8;
    }
}

/* A string too long for its block. */
static void header_smashed(void) {
    char *before = allocate(104);
    void *block = allocate(200);
    (void)allocate(100);
    allocated();
    size_t more = damage("overflow", block) ? 24 : 0;
    memset(before, 'A', malloc_usable_size(before) + more);
}

/* The terminating zero of a string that fills its block: the next header's low byte is gone. */
static void off_by_one(void) {
    char *before = allocate(0xf8);
    void *block = allocate(0xf8);
    (void)allocate(100);
    allocated();
    memset(before, 'A', 0xf8);
    if (damage("overflow", block)) {
        before[0xf8] = 0;
    }
}

/* The end of a freed block is written to: there stands, now, how far back it begins. */
static void prev_size_wrong(void) {
    char *block = allocate(1496);
    (void)allocate(100);
    allocated();
    release(block);
    if (damage("bad-size", block)) {
        memcpy(block + 1488, "the end", 8);
    }
}

static void top_size_huge(void) {
    allocated();
    void *last = allocate(100000);
    struct chunk *top = chunk_after(last);
    if (damage("bad-size", block_of(top))) {
        top->size = ~(size_t)FLAGS | PREV_INUSE;
    }
}

static void top_smashed(void) {
    allocated();
    char *last = allocate(100000);
    struct chunk *top = chunk_after(last);
    size_t more = damage("overflow", block_of(top)) ? 24 : 0;
    memset(last, 'A', malloc_usable_size(last) + more);
}

/* memset() with the length of another buffer. */
static void several_smashed(void) {
    char *before = allocate(104);
    void *block = allocate(200);
    for (size_t i = 0; i < 8; i++) {
        (void)allocate(100);
    }
    allocated();
    size_t more = damage("overflow", block) ? 800 : 0;
    memset(before, 'A', malloc_usable_size(before) + more);
}

/* Damage in many places; between them all is as it was. */
static void many_smashed(void) {
    enum { PLACES = 30, BETWEEN = 40 };
    char *before[PLACES];
    void *blocks[PLACES];
    for (size_t i = 0; i < PLACES; i++) {
        before[i] = allocate(120);
        blocks[i] = allocate(90);
        (void)allocate(50);
        stand_by(BETWEEN);
    }
    allocated();
    for (size_t i = 0; i < PLACES; i++) {
        size_t more = damage("overflow", blocks[i]) ? 16 : 0;
        memset(before[i], 'x', malloc_usable_size(before[i]) + more);
    }
}

static void *thread_block;

static void take_thread_block(void *argument) {
    (void)argument;
    (void)allocate(100);
    thread_block = allocate(200);
    stand_by(100);
}

static void size_in_thread_arena(void) {
    in_thread(take_thread_block, NULL);
    allocated();
    if (damage("bad-size", thread_block)) {
        chunk_of(thread_block)->size = 0x123456780 | PREV_INUSE;
    }
}

const struct case_ header_cases[] = {
    {"bad-size-huge", size_huge, false},
    {"bad-size-zero", size_zero, false},
    {"bad-size-misaligned", size_misaligned, false},
    {"bad-size-top", top_size_huge, false},
    {"overflow-into-header", header_smashed, false},
    {"bad-size-in-thread-arena", size_in_thread_arena, false},
    {"overflow-into-several", several_smashed, false},
    {"overflow-in-many-places", many_smashed, false},
    {"overflow-by-one-zero", off_by_one, false},
    {"overflow-into-top", top_smashed, false},
    {"bad-size-prev-size", prev_size_wrong, false},
    {0},
};
