/* A process whose threads take long to stop.
 *
 *   wont_stop vfork    waits for the end of its child by vfork(), which never comes
 *   wont_stop busy N   N threads that only run when nobody else wants to, and on each processor some do
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static void wait_in_vfork(void) {
    static char ready[32];
    int size = snprintf(ready, sizeof ready, "ready %d\n", getpid());
    if (vfork() == 0) {                   /* NOLINT: that is what it is for */
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* NOLINT */
        if (write(1, ready, (size_t)size) == size) {
            sleep(600);
        }
        _exit(0);
    }
}

static void *spin(void *unused) {
    (void)unused;
    for (;;) {
        __asm__ volatile("");
    }
    return NULL;
}

static void spin_in_threads(long count) {
    for (long i = 0; i < count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, spin, NULL) != 0) {
            perror("pthread_create");
            exit(1);
        }
    }
    printf("ready\n");
    fflush(stdout);
    pause();
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "busy") == 0) {
        spin_in_threads(atol(argv[2]));
    }
    wait_in_vfork();
    return 0;
}
