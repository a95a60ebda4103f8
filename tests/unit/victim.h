/* A process to look into: the test's own program run again, with memory, threads and signals whose
 * contents are known. It answers one letter at a time on its standard input. */
#ifndef KARST_TESTS_VICTIM_H
#define KARST_TESTS_VICTIM_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define VICTIM_PAGE    4096
#define VICTIM_PAGES   64
#define VICTIM_THREADS 3

/* What the victim says of itself. */
struct victim_facts {
    uint64_t pattern; /* VICTIM_PAGES pages: even ones hold their number + 1 in each byte, odd ones were never
                       * touched; behind them a page of PROT_NONE */
    uint64_t thread_pointers[1 + VICTIM_THREADS];
    int64_t tids[1 + VICTIM_THREADS];
    uint64_t variable, function, thread_variable;
};

struct victim {
    pid_t pid;
    int to, from;
    struct victim_facts facts;
};

/* Names that symbols.c is asked for. */
struct victim_inner {
    int32_t a;
    union {
        uint64_t wide;
        uint8_t bytes[8];
    };
};
struct victim_layout {
    char name[24];
    struct victim_inner inner;
    uint16_t last;
};
__attribute__((used)) static struct victim_layout victim_layout_instance;
__attribute__((used)) static uint64_t victim_variable __asm__("victim_variable.lto_priv.0") = 42;
__attribute__((used)) static __thread uint64_t victim_thread_variable = 7;

__attribute__((used, noinline)) static int victim_function(int value) {
    __asm__ volatile("");
    return value + 1;
}

static volatile sig_atomic_t victim_signals;

static void victim_count_signal(int signal) {
    (void)signal;
    victim_signals++;
}

static struct victim_facts victim_own;
static pthread_barrier_t victim_barrier;

static void *victim_thread(void *context) {
    size_t number = (size_t)(uintptr_t)context;
    char name[16];
    snprintf(name, sizeof name, "victim %zu", number);
    prctl(PR_SET_NAME, name);
    victim_own.thread_pointers[number] = (uint64_t)(uintptr_t)pthread_self();
    victim_own.tids[number] = syscall(SYS_gettid);
    pthread_barrier_wait(&victim_barrier);
    for (;;) {
        pause();
    }
    return NULL;
}

static void *victim_short_thread(void *context) {
    return context;
}

/* Threads come and go until the next letter. */
static void *victim_spawner(void *stop) {
    while (!*(volatile bool *)stop) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, victim_short_thread, NULL) == 0) {
            pthread_join(thread, NULL);
        }
    }
    return NULL;
}

static void victim_prepare(void) {
    uint8_t *pattern = mmap(NULL, (VICTIM_PAGES + 1) * VICTIM_PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(pattern, (VICTIM_PAGES + 1) * VICTIM_PAGE, MADV_NOHUGEPAGE);
    for (int i = 0; i < VICTIM_PAGES; i += 2) {
        memset(pattern + i * VICTIM_PAGE, i + 1, VICTIM_PAGE);
    }
    mprotect(pattern + VICTIM_PAGES * VICTIM_PAGE, VICTIM_PAGE, PROT_NONE);
    victim_own.pattern = (uint64_t)(uintptr_t)pattern;
    victim_own.thread_pointers[0] = (uint64_t)(uintptr_t)pthread_self();
    victim_own.tids[0] = getpid();
    victim_own.variable = (uint64_t)(uintptr_t)&victim_variable;
    victim_own.function = (uint64_t)(uintptr_t)&victim_function;
    victim_own.thread_variable = (uint64_t)(uintptr_t)&victim_thread_variable;
    struct sigaction action = {.sa_handler = victim_count_signal, .sa_flags = SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    pthread_barrier_init(&victim_barrier, NULL, 1 + VICTIM_THREADS);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    for (size_t i = 1; i <= VICTIM_THREADS; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, victim_thread, (void *)(uintptr_t)i);
    }
    pthread_sigmask(SIG_UNBLOCK, &blocked, NULL);
    pthread_barrier_wait(&victim_barrier);
}

/* Lives on when the first thread has ended; answers "x". */
static void *victim_survivor(void *context) {
    (void)context;
    while (access("/proc/self/stat", R_OK) == 0) {
        char path[64], text[256] = "";
        snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
        FILE *file = fopen(path, "re");
        bool ended = !file || !fgets(text, sizeof text, file) || strstr(text, ") Z ");
        if (file) {
            fclose(file);
        }
        if (ended) {
            break;
        }
        usleep(1000);
    }
    (void)!write(STDOUT_FILENO, "x", 1);
    for (;;) {
        pause();
    }
    return NULL;
}

static void victim_answer(const void *bytes, size_t size) {
    if (write(STDOUT_FILENO, bytes, size) != (ssize_t)size) {
        _exit(1);
    }
}

/* 'p' answers "p"; 's' how many signals came; 't' and 'u' begin and end the coming and going of threads;
 * 'z' reads one of the pages that were never touched; 'x' ends the first thread, but not the process;
 * 'a' aborts, with a core in the current folder. */
static int victim_main(void) {
    static bool stop;
    pthread_t spawner;
    victim_prepare();
    victim_answer(&victim_own, sizeof victim_own);
    for (;;) {
        char letter;
        ssize_t got = read(STDIN_FILENO, &letter, 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return 0;
        }
        int32_t count = victim_signals;
        struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
        switch (letter) {
        case 's':
            victim_answer(&count, sizeof count);
            break;
        case 't':
            stop = false;
            pthread_create(&spawner, NULL, victim_spawner, &stop);
            victim_answer("t", 1);
            break;
        case 'u':
            stop = true;
            pthread_join(spawner, NULL);
            victim_answer("u", 1);
            break;
        case 'z':
            letter = (char)('z' + ((volatile uint8_t *)(uintptr_t)victim_own.pattern)[VICTIM_PAGE]);
            victim_answer(&letter, 1);
            break;
        case 'x':
            pthread_create(&spawner, NULL, victim_survivor, NULL);
            pthread_exit(NULL);
        case 'a':
            setrlimit(RLIMIT_CORE, &unlimited);
            signal(SIGABRT, SIG_DFL);
            abort();
        default:
            victim_answer("p", 1);
        }
    }
}

/* For the start of main(): does not return in the victim. */
static inline void victim_here(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "victim") == 0) {
        exit(victim_main());
    }
}

static inline bool victim_read(struct victim *victim, void *bytes, size_t size) {
    size_t done = 0;
    while (done < size) {
        ssize_t got = read(victim->from, (char *)bytes + done, size - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return false;
        }
        done += (size_t)got;
    }
    return true;
}

/* Runs program (NULL: this one) as the victim, in folder if that is not NULL. */
static inline bool victim_start(struct victim *victim, const char *program, const char *folder) {
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) {
        return false;
    }
    victim->pid = fork();
    if (victim->pid == 0) {
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!folder || chdir(folder) == 0) {
            execl(program ? program : "/proc/self/exe", "victim", "victim", (char *)NULL);
        }
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    victim->to = to[1];
    victim->from = from[0];
    return victim->pid > 0 && victim_read(victim, &victim->facts, sizeof victim->facts);
}

static inline bool victim_ask(struct victim *victim, char letter, void *answer, size_t size) {
    return write(victim->to, &letter, 1) == 1 && victim_read(victim, answer, size);
}

/* Is it alive and well? */
static inline bool victim_ping(struct victim *victim) {
    char answer = 0;
    return victim_ask(victim, 'p', &answer, 1) && answer == 'p';
}

static inline void victim_end(struct victim *victim) {
    close(victim->to);
    close(victim->from);
    kill(victim->pid, SIGKILL);
    waitpid(victim->pid, NULL, 0);
}

/* 'R', 'S', 'T', 't' ...; '?' when it is gone. */
static inline char victim_state(pid_t pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    size_t got = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file) {
        fclose(file);
    }
    const char *name_end = got ? strrchr(text, ')') : NULL;
    return name_end && name_end[1] ? name_end[2] : '?';
}

#endif
