/* Waits until a file `go` is there, then frees a block twice, another one allocated in between. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *volatile first, *volatile second;

__attribute__((noinline, noipa)) static void allocate(void) {
    first = malloc(777);
    second = malloc(55);
}

__attribute__((noinline, noipa)) static void release(void) {
    free(first);
    first = first;
}

__attribute__((noinline, noipa)) static void release_again(void) {
    free(first);
    first = first;
}

int main(void) {
    void *before = malloc(100);
    printf("ready\n");
    fflush(stdout);
    while (access("go", F_OK) != 0) {
        usleep(1000);
    }
    allocate();
    free(before);
    release();
    second = malloc(99);
    release_again();
    for (;;) {
        second = realloc(second, 100 + (size_t)usleep(1000));
    }
}
