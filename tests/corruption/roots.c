/* Damaged arenas and heap headers. */
#include "catalogue.h"

#include <string.h>

static char *main_arena(void) {
    void *block = allocate(1496);
    allocated();
    release(block);
    return main_arena_by(block);
}

static void system_mem(void) {
    char *field = main_arena() + arena_offsets().system_mem;
    if (damage("bad-root", field)) {
        memset(field, 'A', 8);
    }
}

static void next(void) {
    char *field = main_arena() + arena_offsets().next;
    if (damage("bad-root", field)) {
        memset(field, 'A', 8);
    }
}

static void top(void) {
    char *field = main_arena() + arena_offsets().top;
    if (damage("bad-root", field)) {
        memset(field, 'A', 8);
    }
}

/* The first word of a thread arena's heap says whose it is. */
static void heap_header(void) {
    allocated();
    char *heap = (char *)((uintptr_t)block_of_other_arena() & ~(uintptr_t)0x3ffffff);
    if (damage("bad-root", heap)) {
        memset(heap, 'A', 8);
    }
}

const struct case_ root_cases[] = {
    {"bad-root-system-mem", system_mem, false},
    {"bad-root-next", next, false},
    {"bad-root-top", top, false},
    {"bad-root-heap-header", heap_header, false},
    {0},
};
