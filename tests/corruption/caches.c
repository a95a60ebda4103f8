/* Damaged tcache entries and bins, and chunks that are cached where they do not belong. */
#include "catalogue.h"

#include <string.h>

enum { SIZE = 48 };

/* Two blocks in one bin of the main thread's tcache; the second one comes first and links to the first. */
struct two {
    uint64_t *first, *second;
};

static struct two two_in_tcache(void) {
    struct two two = {allocate(SIZE), allocate(SIZE)};
    allocated();
    release(two.first);
    release(two.second);
    return two;
}

static void next_written(void) {
    struct two two = two_in_tcache();
    if (damage("write-after-free", two.second)) {
        memcpy(two.second, "a string", 8);
    }
}

static void key_written(void) {
    struct two two = two_in_tcache();
    if (damage("write-after-free", two.second)) {
        two.second[1] = 12345;
    }
}

static void misaligned(void) {
    struct two two = two_in_tcache();
    void *inside = (char *)two.first + 8;
    if (damage("misaligned", inside)) {
        two.second[0] = (uintptr_t)mangled(two.second, inside);
    }
}

static void count_wrong(void) {
    (void)two_in_tcache();
    uint16_t *counter = tcache_counter(SIZE);
    if (damage("bad-count", counter)) {
        *counter += 3;
    }
}

/* The size word says something else at the time of free() than before and after. */
static void freed_as(uint64_t *block, size_t size) {
    size_t honest = chunk_of(block)->size;
    chunk_of(block)->size = size | PREV_INUSE;
    release(block);
    chunk_of(block)->size = honest;
}

static void wrong_tcache_bin(void) {
    uint64_t *block = allocate(SIZE);
    allocated();
    if (damage("wrong-bin", block)) {
        freed_as(block, 0x60);
    }
}

/* Forged so that the chunk after it is one, too: free() looks at that one's size. */
static void wrong_fastbin(void) {
    struct filler filler = tcache_filler(0x68);
    uint64_t *block = allocate(SIZE);
    (void)allocate(0x70 - 0x40 - 8);
    (void)allocate(SIZE);
    allocated();
    fill_tcache(&filler);
    if (damage("wrong-bin", block)) {
        freed_as(block, 0x70);
    }
}

/* A struct in the stack, with a plausible size in front, is freed. */
static void fake_on_stack(void) {
    allocated();
    stack_room[1] = 0x40 | PREV_INUSE;
    if (damage("bad-link", &stack_room[2])) {
        release(&stack_room[2]);
    }
}

const struct case_ cache_cases[] = {
    {"write-after-free-tcache-next", next_written, false},
    {"write-after-free-tcache-key", key_written, false},
    {"misaligned-tcache-entry", misaligned, false},
    {"bad-count-tcache", count_wrong, false},
    {"wrong-bin-tcache", wrong_tcache_bin, false},
    {"wrong-bin-fastbin", wrong_fastbin, true},
    {"bad-link-fake-chunk-on-stack", fake_on_stack, false},
    {0},
};
