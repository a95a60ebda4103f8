/* The program that the pages in docs/verbs look at: a mailbox in small, the same in each run. Messages come
 * and most are deleted; an attachment was let go and left a large hole, with a small block behind it; a
 * second thread has an arena of its own. `mailbox damaged` then writes past a message's end.
 *
 * Prints "name address" lines for blocks of interest, then "ready", and waits. */
#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGES = 400, ATTACHMENT = 8880472, LABEL = 232, THREAD_MESSAGES = 50 };

struct message {
    struct message *next;
    char subject[40];
    char *text;
};

static struct message *inbox;
static void *thread_messages[THREAD_MESSAGES];
static pthread_barrier_t thread_is_done;

static void *allocate(size_t size) {
    void *block = malloc(size);
    if (!block) {
        exit(1);
    }
    return memset(block, 0, size);
}

static void receive(int number) {
    struct message *message = allocate(sizeof *message);
    snprintf(message->subject, sizeof message->subject, "message %d", number);
    message->text = allocate(200 + (size_t)number % 7 * 300);
    memcpy(message->text, "Dear reader,", 12);
    message->next = inbox;
    inbox = message;
}

static void delete_most(void) {
    int number = 0;
    for (struct message **link = &inbox; *link;) {
        struct message *message = *link;
        if (++number % 5 == 0) {
            link = &message->next;
            continue;
        }
        *link = message->next;
        free(message->text);
        free(message);
    }
}

static void *serve(void *unused) {
    for (int i = 0; i < THREAD_MESSAGES; i++) {
        thread_messages[i] = allocate(400);
    }
    for (int i = 0; i < THREAD_MESSAGES; i += 2) {
        free(thread_messages[i]);
        thread_messages[i] = NULL;
    }
    pthread_barrier_wait(&thread_is_done);
    for (;;) {
        pause();
    }
    return unused;
}

/* Leaves nothing below the stack pointer that `refs` would find one time and not the next. */
__attribute__((noinline)) static void wipe_stack(void) {
    volatile char below[65536];
    for (size_t i = 0; i < sizeof below; i++) {
        below[i] = 0;
    }
}

int main(int argc, char **argv) {
    pthread_t thread;
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    pthread_barrier_init(&thread_is_done, NULL, 2);
    for (int i = 0; i < MESSAGES; i++) {
        receive(i);
    }
    char *attachment = allocate(ATTACHMENT);
    char *label = allocate(LABEL);
    char *archive = allocate(3000000);
    memcpy(label, "label", 5);
    delete_most();
    free(attachment);
    free(archive);
    pthread_create(&thread, NULL, serve, NULL);
    pthread_barrier_wait(&thread_is_done);
    if (argc > 1 && strcmp(argv[1], "damaged") == 0) {
        memset(inbox->text, '!', malloc_usable_size(inbox->text) + 8);
    }
    dprintf(1, "message %#" PRIxPTR "\ntext %#" PRIxPTR "\nlabel %#" PRIxPTR "\n", (uintptr_t)inbox,
            (uintptr_t)inbox->text, (uintptr_t)label);
    wipe_stack();
    if (write(1, "ready\n", 6) != 6) {
        return 1;
    }
    for (;;) {
        pause();
    }
}
