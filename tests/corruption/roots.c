/* Damaged arenas and heap headers. */
#include "catalogue.h"

#include <malloc.h>
#include <stdlib.h>
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

/* malloc/arena.c: what stands at the start of a heap of a thread arena. */
struct heap {
    void *arena;
    struct heap *previous;
};

#define HEAP_MAX ((size_t)64 << 20)

static void fill_heaps(void *argument) {
    struct heap **newest = argument;
    void *last = NULL;
    for (int i = 0; i < 12; i++) {
        last = malloc(HEAP_MAX / 3 - 100000); /* two and what stands by go into a heap; never touched */
        stand_by(20);
    }
    *newest = (struct heap *)((uintptr_t)last & ~(uintptr_t)(HEAP_MAX - 1));
}

/* The heaps of a thread arena are chained, each to the one before it; the second last one. */
static struct heap *heap_in_chain(void) {
    static struct heap *newest;
    mallopt(M_MMAP_THRESHOLD, (int)(HEAP_MAX / 2)); /* or large blocks would not be in heaps */
    allocated();
    in_thread(fill_heaps, &newest);
    if (newest->previous == NULL || newest->previous->previous == NULL ||
        newest->previous->previous->previous == NULL) {
        abort();
    }
    return newest->previous;
}

static void heap_link(void) {
    struct heap *heap = heap_in_chain();
    if (damage("bad-link", heap)) {
        memset(&heap->previous, 'A', sizeof heap->previous);
    }
}

static void heap_link_zero(void) {
    struct heap *heap = heap_in_chain();
    if (damage("bad-link", heap)) {
        heap->previous = NULL;
    }
}

/* Leads into the memory of another heap, where none begins. */
static void heap_link_elsewhere(void) {
    struct heap *heap = heap_in_chain();
    if (damage("bad-link", heap)) {
        heap->previous = (struct heap *)((char *)heap + 4096);
    }
}

const struct case_ root_cases[] = {
    {"bad-root-system-mem", system_mem, false},
    {"bad-root-next", next, false},
    {"bad-root-top", top, false},
    {"bad-root-heap-header", heap_header, false},
    {"bad-link-heap", heap_link, false},
    {"bad-link-heap-zero", heap_link_zero, false},
    {"bad-link-heap-elsewhere", heap_link_elsewhere, false},
    {0},
};
