/* awkward: a program in circumstances that the preload library's code for rare cases is for.
 *
 * awkward handlers   a signal handler runs, and makes events, behind each instruction of other calls
 * awkward frames     the unwinder allocates while it holds the lock of code that was registered at run time
 * awkward shrunk     a realloc that fails of a block that was written beyond its end, and its free
 * awkward alignments what aligned_alloc makes of some
 * awkward clock      forbids itself the processor's clock in the middle, and then starts a thread
 * awkward strict     goes into seccomp's strict mode in the middle
 * awkward forks      a child allocates 3000 and 3001 bytes and ends, its parent then 4000
 * awkward signals    threads that allocate, and get SIGUSR1 all the time
 * awkward lent       frees memory of many kinds of mappings, which its allocator (lender.so) takes
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

/* An event that leaves the allocator alone, so that it may be made anywhere. */
__attribute__((noinline)) static void fail(void) {
    static const volatile size_t too_much = PTRDIFF_MAX + 1ul;
    void *volatile block = malloc(too_much);
    if (block) {
        abort();
    }
}

/* ---- handlers -------------------------------------------------------------------------------------- */

#define TRAP_FLAG 0x100ul

static volatile unsigned long instructions, made;

/* So many events that each place of a ring is behind one of them. */
static void on_instruction(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)info;
    ucontext_t *interrupted = context;
    instructions++;
    for (unsigned long i = 0; i < instructions % 71; i++) {
        fail();
        made++;
    }
    if (instructions > 30000) {
        interrupted->uc_mcontext.gregs[REG_EFL] &= (greg_t)~TRAP_FLAG;
    }
}

static _Noreturn int handlers(void) {
    struct sigaction action = {.sa_sigaction = on_instruction, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    __asm__ volatile("pushfq\n orq %0, (%%rsp)\n popfq" : : "i"(TRAP_FLAG) : "memory", "cc");
    while (instructions <= 30000) {
        fail();
    }
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    for (;;) {
        pause();
    }
}

/* ---- frames ---------------------------------------------------------------------------------------- */

/* A CIE, one FDE of no code in particular, and the end (LSB 5.0, .eh_frame). */
static struct {
    uint8_t cie[24], fde_head[8];
    uint64_t start, bytes;
    uint8_t fde_rest[8], end[4];
} frame __attribute__((aligned(8))) = {
    .cie = {20, 0, 0, 0, 0, 0, 0, 0, 1, 'z', 'R', 0, 1, 0x78, 16, 1, 0, 0x0c, 7, 8, 0x90, 1},
    .fde_head = {28, 0, 0, 0, 28},
    .bytes = 16};

static int frames(void) {
    void *found[8];
    int before = backtrace(found, 8); /* which loads it */
    void *library = dlopen("libgcc_s.so.1", RTLD_NOW);
    void (*add)(void *) = library ? (void (*)(void *))dlsym(library, "__register_frame") : NULL;
    if (!add) {
        return 77;
    }
    frame.start = (uint64_t)(uintptr_t)&frame;
    add(&frame);
    printf("as many: %d\n", backtrace(found, 8) == before);
    return 0;
}

/* ---- shrunk ---------------------------------------------------------------------------------------- */

static int shrunk(void) {
    char *volatile block = malloc(500);
    block[500] = 3;
    printf("refused: %d\n", realloc(block, PTRDIFF_MAX - 4096) == NULL);
    free(block);
    return 0;
}

/* ---- forks ----------------------------------------------------------------------------------------- */

__attribute__((noinline)) static void make(size_t size) {
    void *volatile block = malloc(size);
    free(block);
}

static int forks(void) {
    pid_t child = fork();
    if (child == 0) {
        make(3000);
        make(3001);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    make(4000);
    return 0;
}

/* ---- alignments -------------------------------------------------------------------------------------- */

static int try_alignments(void) {
    const size_t alignments[] = {3, 24, 16, 4096, SIZE_MAX};
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        volatile size_t alignment = alignments[i];
        errno = 0;
        void *block = aligned_alloc(alignment, 64);
        printf("%zu: %s, errno %d\n", alignment, block ? "a block" : "refused", block ? 0 : errno);
        free(block);
    }
    return 0;
}

/* ---- a thread without the processor's clock --------------------------------------------------------- */

static void *make_many(void *unused) {
    for (size_t i = 0; i < 20000; i++) {
        make(100 + i % 2000);
    }
    return unused;
}

static int lose_clock(void) {
    pthread_t thread;
    make(3000);
    if (prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) != 0) {
        return 77;
    }
    make_many(NULL);
    if (pthread_create(&thread, NULL, make_many, NULL) != 0 || pthread_join(thread, NULL) != 0) {
        return 1;
    }
    puts("good");
    return prctl(-1, 0, 0, 0, 0) == -1 && errno == EINVAL ? 0 : 1;
}

static _Noreturn void go_strict(void) {
    static const char good[] = "good\n";
    make_many(NULL);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
    make_many(NULL);
    syscall(SYS_write, STDOUT_FILENO, good, sizeof good - 1);
    for (;;) {
        syscall(SYS_exit, 0);
    }
}

/* ---- signals --------------------------------------------------------------------------------------- */

static void on_signal(int number) {
    (void)number;
}

static _Noreturn void *allocate(void *unused) {
    (void)unused;
    for (;;) {
        make(100);
    }
}

static _Noreturn int signals(void) {
    pthread_t ids[2];
    signal(SIGUSR1, on_signal);
    for (size_t i = 0; i < 2; i++) {
        pthread_create(&ids[i], NULL, allocate, NULL);
    }
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    for (size_t i = 0;; i++) {
        pthread_kill(ids[i % 2], SIGUSR1);
        usleep(200);
    }
}

/* ---- lent ------------------------------------------------------------------------------------------ */

static void give_back(const char *kind, void *memory, int *taken) {
    void *volatile block = (char *)memory + 64; /* as far as the compiler can see, it may be one */
    *taken = 0;
    free(block);
    printf("%s %d\n", kind, *taken);
}

static int lent(void) {
    int *taken = dlsym(RTLD_DEFAULT, "lender_taken");
    void **low = dlsym(RTLD_DEFAULT, "lender_low"), **high = dlsym(RTLD_DEFAULT, "lender_high");
    int named = memfd_create("two words", 0), file = open("/proc/self/exe", O_RDONLY);
    const int both = PROT_READ | PROT_WRITE;
    if (!taken || ftruncate(named, 4096) != 0) {
        return 1;
    }
    void *memory[] = {mmap(NULL, 4096, both, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                      mmap(NULL, 4096, both, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
                      mmap(NULL, 4096, both, MAP_SHARED, named, 0),
                      mmap(NULL, 4096, both, MAP_PRIVATE, file, 0)};
    const char *const kinds[] = {"anonymous", "shared", "memfd", "file"};
    for (size_t i = 0; i < 4; i++) {
        if (memory[i] == MAP_FAILED) {
            return 1;
        }
        *low = memory[i];
        *high = (char *)memory[i] + 4096;
        give_back(kinds[i], memory[i], taken);
    }
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "handlers") == 0) {
        return handlers();
    }
    if (strcmp(what, "frames") == 0) {
        return frames();
    }
    if (strcmp(what, "shrunk") == 0) {
        return shrunk();
    }
    if (strcmp(what, "alignments") == 0) {
        return try_alignments();
    }
    if (strcmp(what, "clock") == 0) {
        return lose_clock();
    }
    if (strcmp(what, "strict") == 0) {
        go_strict();
    }
    if (strcmp(what, "forks") == 0) {
        return forks();
    }
    if (strcmp(what, "signals") == 0) {
        return signals();
    }
    return strcmp(what, "lent") == 0 ? lent() : 2;
}
