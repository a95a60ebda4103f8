/* Threads that are in the allocator all the time, and check what it gives them. With --signals a timer's
 * handler allocates nothing but interrupts them there; with --alternate it runs on a stack of its own.
 * Usage: hammer THREADS [--signals|--alternate]. Ends at SIGTERM with "good CALLS", with status 1 when a
 * block was not what it should be. */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#define SLOTS 64

static volatile sig_atomic_t ended, ticks;
static uint64_t calls[64];

/* Where the debugger's traps are sure to be met, once in a while. */
__attribute__((noinline, noipa)) static void *asked_for(size_t size) {
    void *block = malloc(size);
    *(volatile char *)block = 1;
    return block;
}

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

static void fill(unsigned char *block, size_t size) {
    block[0] = (unsigned char)size;
    block[size - 1] = (unsigned char)(size >> 8);
}

static void check(const unsigned char *block, size_t size) {
    unsigned char last = (unsigned char)(size >> 8);
    if ((size > 1 && block[0] != (unsigned char)size) || block[size - 1] != last) {
        fprintf(stderr, "hammer: a block of %zu bytes was overwritten\n", size);
        _exit(1);
    }
}

static void *hammer(void *argument) {
    size_t self = (size_t)argument;
    uint32_t state = (uint32_t)self * 7919 + 1;
    unsigned char *blocks[SLOTS] = {0};
    size_t sizes[SLOTS] = {0};
    while (!ended) {
        uint32_t random = next_random(&state);
        unsigned slot = random % SLOTS;
        size_t size = 1 + (random >> 6) % 3000;
        if (blocks[slot]) {
            check(blocks[slot], sizes[slot]);
        }
        if (random & 1 << 20 && blocks[slot]) {
            blocks[slot] = realloc(blocks[slot], size);
        } else {
            free(blocks[slot]);
            blocks[slot] = random & 1 << 21 ? calloc(1, size) : malloc(size);
        }
        fill(blocks[slot], size);
        sizes[slot] = size;
        if (++calls[self] % 20000 == 0) {
            free(asked_for(424242));
        }
    }
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        free(blocks[slot]);
    }
    return NULL;
}

static void on_term(int number) {
    (void)number;
    ended = 1;
}

static void on_timer(int number) {
    volatile char room[512];
    room[0] = (char)number;
    for (int i = 0; i < 2000; i++) {
        ticks += room[0] ? 1 : 0;
    }
}

static void interrupt_often(int flags) {
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART | flags};
    struct itimerval every = {{0, 1000}, {0, 1000}};
    sigaltstack(&alternate, NULL);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
}

int main(int argc, char **argv) {
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    struct sigaction action = {.sa_handler = on_term};
    pthread_t threads[64];
    if (count < 1 || count > 64) {
        return 2;
    }
    sigaction(SIGTERM, &action, NULL);
    if (argc > 2) {
        interrupt_often(strcmp(argv[2], "--alternate") == 0 ? SA_ONSTACK : 0);
    }
    printf("ready\n");
    fflush(stdout);
    for (size_t i = 1; i < count; i++) {
        if (pthread_create(&threads[i], NULL, hammer, (void *)i) != 0) {
            return 2;
        }
    }
    hammer((void *)0);
    for (size_t i = 1; i < count; i++) {
        pthread_join(threads[i], NULL);
    }
    uint64_t all = 0;
    for (size_t i = 0; i < count; i++) {
        all += calls[i];
    }
    printf("good %llu\n", (unsigned long long)all);
    return 0;
}
