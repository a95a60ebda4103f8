/* Does to a heap of jemalloc what programs do wrong, one kind a run, then says which addresses are concerned
 * and waits; or, with "abort" behind the kind, leaves a core. Run it with jemalloc preloaded. */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern int mallctl(const char *name, void *old, size_t *old_size, void *fresh, size_t fresh_size)
    __attribute__((weak));
extern void sdallocx(void *block, size_t size, int flags) __attribute__((weak));
extern void *mallocx(size_t size, int flags) __attribute__((weak));

#define REGIONS 600 /* of one size: several slabs full */

static void *blocks[REGIONS];

static void say(const char *name, const void *address) {
    printf("%s %p\n", name, address);
}

static void fill(size_t size) {
    for (size_t i = 0; i < REGIONS; i++) {
        blocks[i] = malloc(size);
        memset(blocks[i], 'x', size);
    }
}

static void flush_cache(void) {
    mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
}

static void nothing(void) {
    fill(224);
    free(blocks[100]);
    say("block", blocks[100]);
}

static void double_free(void) {
    fill(224);
    void *volatile block = blocks[100];
    free(block);
    free(block);
    say("block", blocks[100]);
}

static void flushed(void) {
    fill(224);
    free(blocks[100]);
    flush_cache();
    free(blocks[100]);
    say("block", blocks[100]);
}

/* extent_hooks_t; those that are NULL are not there. */
struct hooks {
    void *(*alloc)(struct hooks *hooks, void *address, size_t size, size_t alignment, bool *zero,
                   bool *commit, unsigned arena);
    bool (*dalloc)(void);
    void (*destroy)(void);
    bool (*commit)(void), (*decommit)(void), (*purge_lazy)(void), (*purge_forced)(void);
    bool (*split)(struct hooks *hooks, void *address, size_t size, size_t first, size_t second,
                  bool committed, unsigned arena);
    bool (*merge)(void);
};

#define LENT (64u << 20)
static char *lent, *lent_end;

static void *lend(struct hooks *hooks, void *address, size_t size, size_t alignment, bool *zero, bool *commit,
                  unsigned arena) {
    char *start = (char *)(((uintptr_t)lent + alignment - 1) & ~(uintptr_t)(alignment - 1));
    (void)hooks, (void)arena;
    if (address || size > (size_t)(lent_end - start)) {
        return NULL;
    }
    lent = start + size;
    *zero = *commit = true;
    return start;
}

static bool may_split(struct hooks *hooks, void *address, size_t size, size_t first, size_t second,
                      bool committed, unsigned arena) {
    (void)hooks, (void)address, (void)size, (void)first, (void)second, (void)committed, (void)arena;
    return false;
}

#define LENT_STACK (256u << 10)
#define LENT_ALIGN (2u << 20) /* of what an arena has for itself */

/* An arena in one anonymous mapping with the memory for a stack, which is in front of it: returned. */
static char *lend_beside_stack(void) {
    static struct hooks hooks = {.alloc = lend, .split = may_split};
    struct hooks *told = &hooks;
    unsigned arena = 0;
    size_t size = sizeof arena;
    char *memory = mmap(NULL, LENT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        _exit(3);
    }
    lent = (char *)(((uintptr_t)memory + 2 * LENT_ALIGN - 1) & ~(uintptr_t)(LENT_ALIGN - 1));
    lent_end = memory + LENT;
    char *stack = lent - LENT_STACK;
    if (mallctl("arenas.create", &arena, &size, &told, sizeof told)) {
        _exit(3);
    }
    return stack;
}

static pthread_barrier_t freed, done;

static void *free_there(void *block) {
    void *volatile other = malloc(1000); /* only so has the thread a cache */
    free(other);
    free(block);
    pthread_barrier_wait(&freed);
    pthread_barrier_wait(&done);
    return NULL;
}

static void threads(void) {
    pthread_t thread;
    fill(224);
    pthread_barrier_init(&freed, NULL, 2);
    pthread_barrier_init(&done, NULL, 2);
    pthread_create(&thread, NULL, free_there, blocks[100]);
    pthread_barrier_wait(&freed);
    free(blocks[100]);
    say("block", blocks[100]);
}

/* Nothing wrong: the child of a fork, whose mapping of the other thread's stack goes on with the heap's own
 * memory. */
static void forked_beside(void) {
    pthread_t thread;
    pthread_attr_t attributes;
    char *stack = lend_beside_stack();
    fill(224);
    pthread_barrier_init(&freed, NULL, 2);
    pthread_barrier_init(&done, NULL, 2);
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack, LENT_STACK);
    pthread_create(&thread, &attributes, free_there, blocks[100]);
    pthread_barrier_wait(&freed);
    if (fork() != 0) {
        wait(NULL);
        _exit(0);
    }
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    say("block", blocks[100]);
}

static void interior(void) {
    fill(224);
    char *volatile inside = (char *)blocks[100] + 32;
    free(inside);
    say("block", inside);
}

static void wrong_size(void) {
    fill(32);
    sdallocx(blocks[100], 224, 0);
    say("block", blocks[100]);
}

/* The block with the highest offset in its slab of slab_size bytes, which its address is no multiple of: the
 * lowest address of a run of neighbours is where a slab begins. */
static void *far_into_slab(size_t size, size_t regions) {
    size_t in_row = 1;
    for (size_t i = 1; i < REGIONS; i++) {
        in_row = (char *)blocks[i] == (char *)blocks[i - 1] + size ? in_row + 1 : 1;
        if (in_row >= regions - 4 && (uintptr_t)blocks[i + 1 - in_row] % 4096 == 0) {
            return blocks[i];
        }
    }
    return NULL;
}

/* Freed as of half its size: the bit set is at twice its region's number, past the last one. */
static void past_end(void) {
    fill(384);
    void *block = far_into_slab(384, 32);
    say("block", block);
    flush_cache();
    sdallocx(block, 192, 0);
    flush_cache();
}

/* Nothing wrong: an arena that the program made, in which full slabs are listed. */
static void own_arena(void) {
    unsigned arena = 0;
    size_t size = sizeof arena;
    mallctl("arenas.create", &arena, &size, NULL, 0);
    int flags = (int)(arena + 1) << 20 | 1 << 8; /* MALLOCX_ARENA(arena) | MALLOCX_TCACHE_NONE */
    for (size_t i = 0; i < REGIONS; i++) {
        blocks[i] = mallocx(224, flags);
    }
    sdallocx(blocks[100], 224, 1 << 8);
    say("block", blocks[100]);
}

/* Nothing wrong: an arena, what it has for itself included, in memory that is not anonymous. */
static void lent_arena(int file) {
    static struct hooks hooks = {.alloc = lend, .split = may_split};
    struct hooks *told = &hooks;
    unsigned arena = 0;
    size_t size = sizeof arena;
    lent = mmap(NULL, LENT, PROT_READ | PROT_WRITE, MAP_SHARED | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);
    lent_end = lent == MAP_FAILED ? lent : lent + LENT;
    fill(224);
    free(blocks[100]);
    say("block", blocks[100]);
    if (mallctl("arenas.create", &arena, &size, &told, sizeof told)) {
        return;
    }
    int flags = (int)(arena + 1) << 20 | 1 << 8; /* MALLOCX_ARENA(arena) | MALLOCX_TCACHE_NONE */
    for (size_t i = 0; i < REGIONS; i++) {
        blocks[i] = mallocx(i % 10 ? 224 : 40000, flags);
    }
    sdallocx(blocks[101], 224, 1 << 8);
}

static void shared_arena(void) {
    lent_arena(-1);
}

static void file_arena(void) {
    int file = open("pool", O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file >= 0 && ftruncate(file, LENT) == 0) {
        lent_arena(file);
    }
}

static const struct {
    const char *name;
    void (*function)(void);
} kinds[] = {
    {"nothing", nothing},       {"double-free", double_free},     {"flushed", flushed},
    {"threads", threads},       {"interior", interior},           {"wrong-size", wrong_size},
    {"past-end", past_end},     {"own-arena", own_arena},         {"shared-arena", shared_arena},
    {"file-arena", file_arena}, {"forked-beside", forked_beside},
};

int main(int argc, char **argv) {
    static char buffer[4096];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    if (mallctl == NULL || sdallocx == NULL) {
        fputs("no jemalloc here\n", stderr);
        return 1;
    }
    for (size_t i = 0; argc > 1 && i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(argv[1], kinds[i].name) == 0) {
            kinds[i].function();
            printf("ready %d\n", (int)getpid());
            fflush(stdout);
            if (argc > 2) {
                abort();
            }
            pause();
        }
    }
    return 2;
}
