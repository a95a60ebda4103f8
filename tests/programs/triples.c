/* A program that is no Python, whose static data look like the beginning of an interpreter's list again and
 * again: two pointers and a small number, the pointers all over its heap. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ENTRIES 20000
#define BLOCK   20000

static struct {
    void *head, *main;
    long next_id;
} table[ENTRIES];

int main(void) {
    for (int i = 0; i < ENTRIES; i++) {
        char *block = malloc(BLOCK);
        if (!block) {
            return 1;
        }
        block[0] = 1;
        table[i].head = block;
        table[i].main = block;
        table[i].next_id = 1 + i % 100;
    }
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    pause();
    return table[0].head == NULL;
}
