/* Does to a heap of jemalloc what programs do wrong, one kind a run, then says which addresses are concerned
 * and waits; or, with "abort" behind the kind, leaves a core. Run it with jemalloc preloaded. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
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

static const struct {
    const char *name;
    void (*function)(void);
} kinds[] = {
    {"nothing", nothing},   {"double-free", double_free}, {"flushed", flushed},   {"threads", threads},
    {"interior", interior}, {"wrong-size", wrong_size},   {"past-end", past_end}, {"own-arena", own_arena},
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
