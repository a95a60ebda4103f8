/* A connection pool with a planted bug: resetting a connection frees its buffer but keeps the pointer, and
 * closing the connection frees it again. In between a note is written through that pointer, over the mark by
 * which glibc would have noticed. The second free() goes through in silence; later the pool finds that its
 * counts disagree and gives up, far from the bug. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS 6

struct buffer {
    char note[16];
    char text[80];
};

struct connection {
    int number;
    struct buffer *buffer;
};

static struct connection pool[CONNECTIONS];
static int buffers_in_use;

static void open_connection(struct connection *connection, int number) {
    connection->number = number;
    connection->buffer = malloc(sizeof *connection->buffer);
    if (!connection->buffer) {
        exit(EXIT_FAILURE);
    }
    buffers_in_use++;
    snprintf(connection->buffer->text, sizeof connection->buffer->text, "connection %d", number);
}

static void release(struct connection *connection) {
    free(connection->buffer);
    buffers_in_use--;
}

static void reset_connection(struct connection *connection) {
    release(connection); /* the bug: connection->buffer still points there */
    memset(connection->buffer->note, 'r', sizeof connection->buffer->note);
}

static void close_connection(struct connection *connection) {
    release(connection);
    connection->buffer = NULL;
}

static void verify_pool(void) {
    int open_connections = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        open_connections += pool[i].buffer != NULL;
    }
    if (open_connections != buffers_in_use) {
        fprintf(stderr, "%d connections are open, %d buffers in use\n", open_connections, buffers_in_use);
        abort();
    }
}

int main(void) {
    for (int i = 0; i < CONNECTIONS; i++) {
        open_connection(&pool[i], i);
    }
    reset_connection(&pool[2]);
    close_connection(&pool[4]);
    close_connection(&pool[2]);
    verify_pool();
    return 0;
}
