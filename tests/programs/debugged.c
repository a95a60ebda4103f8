/* What the tests of the debugger plugins look at: three threads with heaps of their own, frames whose
 * variables hold blocks in different ways, and a little of every state. `debugged` prints "ready" and waits
 * in work(); `debugged fork` forks a child whose heap then differs; `debugged loop` allocates in a loop, for
 * breakpoints and interrupts; `debugged many N` makes N blocks first. */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct request {
    int number;
    char *buffer;
    struct request *next;
};

static pthread_barrier_t all_there;
static struct request *volatile kept;
static void *volatile freed_list;
int fork_result;

__attribute__((noinline)) static void work(void) {
    for (;;) {
        pause();
    }
}

__attribute__((noinline)) static void wait_for_input(struct request *request, bool first) {
    pthread_barrier_wait(&all_there);
    if (first) {
        usleep(100000); /* the others come to rest, too: what lies below their stacks is then the same each
                           time */
        dprintf(1, "ready\n");
    }
    work();
    memset(request->buffer, 0, 1);
}

__attribute__((noinline)) static void handle_request(int number, bool first) {
    char *volatile buf = malloc(1000 + 100 * (size_t)number);
    struct request request = {.number = number, .buffer = malloc(5000)};
    char *list[4] = {NULL, NULL, malloc(300), NULL};
    if (!buf || !request.buffer || !list[2]) {
        exit(1);
    }
    snprintf(buf, 100, "request %d", number);
    memset(request.buffer, 'b', 5000);
    snprintf(list[2], 100, "listed %d", number);
    wait_for_input(&request, first);
    free(list[2]);
    free(buf);
}

static void *serve(void *number) {
    handle_request((int)(intptr_t)number, false);
    return NULL;
}

/* Blocks in every state, then the hole that nothing bounds but the program's own blocks. */
static void fill(void) {
    enum { COUNT = 200 };
    static void *blocks[COUNT];
    for (int i = 0; i < COUNT; i++) {
        blocks[i] = malloc(24 + 40 * (size_t)(i % 40));
    }
    for (int i = 0; i < COUNT; i += 3) {
        free(blocks[i]);
        blocks[i] = NULL;
    }
    kept = malloc(sizeof *kept);
    if (!kept) {
        exit(1);
    }
    *kept = (struct request){.number = 77, .buffer = malloc(200)};
    freed_list = malloc(300000);
}

__attribute__((noinline)) void *use_block(void *block, size_t size) {
    freed_list = block;
    return (void *)((uintptr_t)block + size);
}

static void loop(void) {
    dprintf(1, "ready\n");
    for (size_t size = 100;; size = size % 5000 + 100) {
        void *block = malloc(size);
        use_block(block, size);
        free(block);
    }
}

int main(int argc, char **argv) {
    fill();
    if (argc > 2 && strcmp(argv[1], "many") == 0) {
        for (long left = atol(argv[2]); left > 0; left--) {
            freed_list = malloc(16);
        }
        dprintf(1, "ready\n");
        work();
    }
    if (argc > 1 && strcmp(argv[1], "loop") == 0) {
        loop();
    }
    if (argc > 1 && strcmp(argv[1], "fork") == 0) {
        fork_result = (int)fork();
        void *volatile own = malloc(fork_result ? 11111 : 22222);
        use_block(own, 0);
        work();
    }
    pthread_t threads[2];
    pthread_barrier_init(&all_there, NULL, 3);
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, serve, (void *)(intptr_t)(i + 2));
    }
    handle_request(1, true);
    return 0;
}
