/* The corruption catalogue: small programs that break their heap in one known way each. A case allocates,
 * calls allocated(), works on, and does its damage only where damage() says so; run as the healthy twin it
 * does everything else. What damage() is told is the truth that the test holds `karst check` against. */
#ifndef CATALOGUE_H
#define CATALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* glibc's chunk, malloc/malloc.c; a block begins at fd. */
struct chunk {
    size_t prev_size;
    size_t size; /* low bits: flags */
    struct chunk *fd, *bk;
    struct chunk *fd_nextsize, *bk_nextsize;
};

enum { PREV_INUSE = 1, FLAGS = 7 };

static inline struct chunk *chunk_of(void *block) {
    return (struct chunk *)((char *)block - 16);
}

static inline void *block_of(struct chunk *chunk) {
    return (char *)chunk + 16;
}

static inline size_t chunk_size(void *block) {
    return chunk_of(block)->size & ~(size_t)FLAGS;
}

static inline struct chunk *chunk_after(void *block) {
    return (struct chunk *)((char *)chunk_of(block) + chunk_size(block));
}

/* malloc and free, out of the compiler's sight. allocate() zeroes the block, and gives up on NULL. */
void *allocate(size_t size);
void release(void *block);

/* So many more blocks that have nothing to do with the damage, and have to be reported in spite of it. */
void stand_by(size_t count);

/* Ends a case's own allocations: bystanders are put behind them, so that the damage lies amid a heap. */
void allocated(void);

/* Says that the heap is to be damaged here, and that `code` is to be found for the block at address. false:
 * this is the healthy twin. */
bool damage(const char *code, const void *address);
/* As damage(), where karst cannot be sure: severity `suspect`. */
bool damage_suspected(const char *code, const void *address);

/* Blocks that fill the tcache bin of their size when they are freed. */
struct filler {
    void *blocks[16];
    size_t count;
};
struct filler tcache_filler(size_t size);
void fill_tcache(const struct filler *filler);

/* Runs function in a new thread, returns when it is done; the thread stays, with its tcache. */
void in_thread(void (*function)(void *), void *argument);

/* A link as it is stored at position: glibc 2.32 and later mangle it. */
void *mangled(const void *position, const void *pointer);

/* The main thread's tcache, and how its struct is laid out. */
char *main_tcache(void);
uint16_t *tcache_counter(size_t block_size);

/* main_arena, told from a block that is alone in the unsorted bin; and the offsets of its fields. */
char *main_arena_by(void *unsorted_block);
struct arena_offsets {
    size_t top, next, system_mem;
};
struct arena_offsets arena_offsets(void);

/* Sixteen-byte aligned memory in the main thread's stack that lasts, 128 bytes. */
extern uint64_t *stack_room;
/* A block of a thread's own arena. */
void *block_of_other_arena(void);

struct case_ {
    const char *name;
    void (*run)(void);
    bool needs_fastbins; /* gone in glibc 2.43 */
};

extern const struct case_ double_free_cases[], overlap_cases[], header_cases[], link_cases[], cache_cases[],
    root_cases[];

#endif
