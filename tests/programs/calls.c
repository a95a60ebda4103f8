/* calls: known calls of malloc and its kin, for traps, marks and the flight recorder.
 *
 * calls sizes            malloc of 100 to 199 bytes, calloc, realloc, memalign, two threads, frees
 * calls fault KIND       one fault: double, foreign, global, interior, overflow, moved, wild, healthy
 * calls bounds KIND      blocks of all sizes where marks change: healthy, beyond (a byte is written), twice
 *                        (freed)
 * calls leftovers       frees blocks of many sizes that are full of what looks like footers, and waits
 * calls overrun         overwrites the whole marks of blocks of 24 and 3000 bytes, and waits
 * calls own LIBRARY      does what a debugger does: arms "malloc 150" in the library's control block
 * calls hand THREADS N   blocks go from thread to thread; writes `truth` (address, thread, a or f) and waits
 * calls swap THREADS N   the same without a lock or a truth: blocks are swapped in and out of boxes
 * calls fork             forks, by fork() and by clone(); both children and the parent wait
 * calls hammer SECONDS   16 threads allocate while forks go on; ends with 0
 */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../helper/include/karst-abi.h"

static char global[64];
static void *volatile kept; /* what the compiler must not see through */

__attribute__((noinline)) static void *make(size_t size) {
    void *block = malloc(size);
    kept = block;
    return block;
}

__attribute__((noinline)) static void drop(void *block) {
    free(block);
    kept = NULL;
}

static _Noreturn void wait_here(void) {
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    for (;;) {
        pause();
    }
}

/* ---- sizes ----------------------------------------------------------------------------------------- */

static void *in_thread(void *unused) {
    drop(make(777));
    return unused;
}

static int sizes(void) {
    void *blocks[100];
    for (size_t i = 0; i < 100; i++) {
        blocks[i] = make(100 + i);
    }
    printf("malloc_150 %p\n", blocks[50]);
    errno = 77;
    void *zeroed = calloc(10, 33), *moved = realloc(make(20), 5000);
    moved = realloc(moved, 1 << 20);
    void *aligned = memalign(4096, 3000);
    if (errno != 77) {
        puts("errno changed");
    }
    pthread_t thread;
    pthread_create(&thread, NULL, in_thread, NULL);
    pthread_join(thread, NULL);
    for (size_t i = 0; i < 100; i++) {
        drop(blocks[i]);
    }
    drop(zeroed);
    drop(moved);
    drop(aligned);
    puts("done");
    return 0;
}

/* ---- faults ---------------------------------------------------------------------------------------- */

static int fault(const char *kind) {
    char local[64];
    char *block = make(20), *other = make(500);
    memset(block, 1, 20);
    memset(other, 2, 500);
    kept = local;
    if (strcmp(kind, "double") == 0) {
        drop(block);
        drop(block);
    } else if (strcmp(kind, "foreign") == 0) {
        drop((char *)kept + 16);
    } else if (strcmp(kind, "global") == 0) {
        drop(global + 16);
    } else if (strcmp(kind, "interior") == 0) {
        drop(other + 64);
    } else if (strcmp(kind, "overflow") == 0) {
        block[20] = 3;
        drop(block);
    } else if (strcmp(kind, "moved") == 0) {
        other[500] = 3;
        other = realloc(other, 5000);
    } else if (strcmp(kind, "wild") == 0) {
        drop((void *)(uintptr_t)0x123456789000);
    } else {
        drop(block);
    }
    drop(other);
    puts("done");
    return 0;
}

/* Blocks of each size at which a mark takes another form, all of their bytes written. */
static int bounds(const char *kind) {
    static const size_t from[] = {0, 1510, 65504, 1 << 20};
    size_t beyond = strcmp(kind, "beyond") == 0;
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        for (size_t size = from[i]; size < from[i] + 32; size++) {
            char *block = make(size);
            memset(block, 1, size + beyond);
            drop(block);
            if (strcmp(kind, "twice") == 0) {
                drop(block);
            }
        }
    }
    puts("done");
    return 0;
}

/* What a footer looks like, but for its canary: at each place, one in two is of a block of no bytes. */
static void fill_with_footers(uint64_t *words, size_t bytes) {
    const struct karst_footer footer = {
        .canary = 1, .size = 0, .site = (uint64_t)(uintptr_t)&fault, .sequence = UINT64_C(77) << 42 | 9};
    for (size_t i = 0; i + sizeof footer <= bytes; i += sizeof footer) {
        memcpy(&words[i / sizeof *words], &footer, sizeof footer);
    }
}

/* Sizes whose footers' offsets have all there is in their second byte, and in the third. */
static int leftovers(void) {
    enum { BLOCKS = 640 };
    static void *blocks[BLOCKS];
    for (size_t i = 0; i < BLOCKS; i++) {
        size_t size = 200 + i * 192;
        blocks[i] = make(size);
        fill_with_footers(blocks[i], size);
    }
    void *last = make(1000); /* so that nothing goes back to the system */
    for (size_t i = 0; i < BLOCKS; i++) {
        drop(blocks[i]);
    }
    kept = last;
    wait_here();
}

static int overrun(void) {
    static const size_t sizes[] = {24, 3000};
    for (size_t i = 0; i < 2; i++) {
        memset(make(sizes[i]), 'x', sizes[i] + KARST_FOOTER_BYTES);
    }
    wait_here();
}

/* ---- own ------------------------------------------------------------------------------------------- */

static int own(void) {
    struct karst_control *control = dlsym(RTLD_DEFAULT, "karst_control");
    if (!control || control->magic != KARST_ABI_MAGIC || control->self != (uint64_t)(uintptr_t)control) {
        return 3;
    }
    struct karst_trap *trap = &control->traps[3];
    trap->number = 9;
    trap->functions = 1u << KARST_MALLOC;
    trap->conditions = KARST_IF_SIZE;
    trap->size_low = trap->size_high = 150;
    __atomic_store_n(&trap->state, KARST_TRAP_ARMED, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < KARST_GATES; i++) {
        __atomic_or_fetch(&control->gates[i], KARST_GATE_CHANGED, __ATOMIC_SEQ_CST);
    }
    uint64_t before = control->generation;
    int status = sizes();
    printf("hits %d\ntaken %d\n", (int)trap->hits, control->generation > before);
    return status;
}

/* ---- hand ------------------------------------------------------------------------------------------ */

enum { BOXES = 32 };
static void *boxes[BOXES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t rounds, truth_count;
static struct event {
    void *address;
    int thread;
    char kind;
} * truth;

static void note(void *address, char kind) {
    truth[truth_count++] = (struct event){address, (int)syscall(SYS_gettid), kind};
}

/* Each call and its line in the truth are under one lock: the truth is the order. */
static void *hand(void *argument) {
    unsigned random = (unsigned)(uintptr_t)argument;
    for (size_t i = 0; i < rounds; i++) {
        random = random * 1103515245 + 12345;
        size_t box = random >> 16 & (BOXES - 1);
        pthread_mutex_lock(&lock);
        if (boxes[box]) {
            note(boxes[box], 'f');
            free(boxes[box]);
        }
        boxes[box] = malloc(24 + (random >> 8 & 31));
        note(boxes[box], 'a');
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void *swap(void *argument) {
    unsigned random = (unsigned)(uintptr_t)argument;
    for (size_t i = 0; i < rounds; i++) {
        random = random * 1103515245 + 12345;
        void *block = malloc(24 + (random >> 8 & 31));
        free(__atomic_exchange_n(&boxes[random >> 16 & (BOXES - 1)], block, __ATOMIC_ACQ_REL));
    }
    return NULL;
}

static int swap_around(size_t threads) {
    pthread_t ids[16];
    for (size_t i = 0; i < threads; i++) {
        pthread_create(&ids[i], NULL, swap, (void *)(uintptr_t)(i + 1));
    }
    for (size_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    wait_here();
}

static int hand_around(size_t threads) {
    pthread_t ids[16];
    truth = calloc(2 * rounds * threads + 1, sizeof *truth);
    for (size_t i = 0; i < threads; i++) {
        pthread_create(&ids[i], NULL, hand, (void *)(uintptr_t)(i + 1));
    }
    for (size_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    FILE *file = fopen("truth", "w");
    for (size_t i = 0; i < truth_count; i++) {
        fprintf(file, "%p %d %c\n", truth[i].address, truth[i].thread, truth[i].kind);
    }
    fclose(file);
    wait_here();
}

/* ---- fork ------------------------------------------------------------------------------------------ */

static _Noreturn void child(void) {
    for (size_t i = 0; i < 5; i++) {
        drop(make(3000 + i));
    }
    printf("child %d\n", (int)syscall(SYS_getpid));
    fflush(stdout);
    for (;;) {
        pause();
    }
}

static int forks(void) {
    for (size_t i = 0; i < 100; i++) {
        drop(make(2000 + i));
    }
    if (fork() == 0) {
        child();
    }
    if (syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0) {
        child();
    }
    drop(make(4000));
    sleep(1);
    wait_here();
}

/* ---- hammer ---------------------------------------------------------------------------------------- */

static volatile int stop;

static void *pound(void *argument) {
    uint64_t random = (uintptr_t)argument * 977;
    void *blocks[64] = {0};
    while (!stop) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t slot = random >> 40 & 63, size = random >> 50 & 1023;
        if (random >> 33 & 1) {
            free(blocks[slot]);
            blocks[slot] = malloc(size);
        } else {
            blocks[slot] = realloc(blocks[slot], size + 1);
        }
        if (blocks[slot]) {
            memset(blocks[slot], 7, size);
        }
    }
    for (size_t i = 0; i < 64; i++) {
        free(blocks[i]);
    }
    return NULL;
}

static void on_alarm(int number) {
    (void)number;
}

static int hammer(unsigned seconds) {
    pthread_t ids[16];
    time_t end = time(NULL) + seconds;
    signal(SIGALRM, on_alarm);
    for (size_t i = 0; i < 16; i++) {
        pthread_create(&ids[i], NULL, pound, (void *)(uintptr_t)(i + 1));
    }
    while (time(NULL) < end) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            drop(make(100));
            execl("/bin/true", "true", (char *)NULL);
            _exit(1);
        }
        kill(getpid(), SIGALRM);
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
            return 1;
        }
    }
    stop = 1;
    for (size_t i = 0; i < 16; i++) {
        pthread_join(ids[i], NULL);
    }
    puts("done");
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "sizes") == 0) {
        return sizes();
    }
    if (strcmp(what, "fault") == 0 && argc > 2) {
        return fault(argv[2]);
    }
    if (strcmp(what, "bounds") == 0 && argc > 2) {
        return bounds(argv[2]);
    }
    if (strcmp(what, "leftovers") == 0) {
        return leftovers();
    }
    if (strcmp(what, "overrun") == 0) {
        return overrun();
    }
    if (strcmp(what, "own") == 0) {
        return own();
    }
    if (strcmp(what, "hand") == 0 && argc > 3) {
        rounds = strtoul(argv[3], NULL, 0);
        return hand_around(strtoul(argv[2], NULL, 0));
    }
    if (strcmp(what, "swap") == 0 && argc > 3) {
        rounds = strtoul(argv[3], NULL, 0);
        return swap_around(strtoul(argv[2], NULL, 0));
    }
    if (strcmp(what, "fork") == 0) {
        return forks();
    }
    if (strcmp(what, "hammer") == 0 && argc > 2) {
        return hammer((unsigned)strtoul(argv[2], NULL, 0));
    }
    return 2;
}
