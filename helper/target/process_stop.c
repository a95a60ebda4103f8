/* Stopping a process and letting it go unharmed.
 *
 * Every thread is seized and interrupted. What its stop turns out to be decides how it is let go: an
 * interrupt, with nothing; the delivery of a signal, with that signal; a stop of the whole process by
 * SIGSTOP and its like that was there before us, with nothing, which leaves it stopped (ptrace(2),
 * "Group-stop"). The kernel ties a trace to the thread that began it: a session is closed by the thread
 * that opened it. */
#include "process.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How long a thread may take to stop. One in an uninterruptible wait may never do; one that only waits for a
 * processor, on a machine with much to do, will. */
#define STOP_TIMEOUT_NS 3000000000u
#define STOP_LONGEST_NS 60000000000u
/* New threads may appear between two looks at the list; a fork bomb of threads ends this. */
#define ROUNDS_MAX 1000

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the list of threads ----------------------------------------------------------------------- */

/* Calls take for each thread; false if it does, or when the list can't be read. */
static bool each_thread(pid_t pid, bool (*take)(void *context, pid_t tid), void *context) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *directory = opendir(path);
    if (!directory) {
        return false;
    }
    bool good = true;
    for (struct dirent *entry; good && (entry = readdir(directory)) != NULL;) {
        char *end;
        long tid = strtol(entry->d_name, &end, 10);
        if (*end == '\0' && tid > 0 && tid <= INT32_MAX) {
            good = take(context, (pid_t)tid);
        }
    }
    int saved = errno;
    closedir(directory);
    errno = saved;
    return good;
}

static bool list_one(void *context, pid_t tid) {
    struct process *process = context;
    struct karst_thread *thread = karst_target_add_thread(&process->target);
    if (!thread) {
        errno = ENOMEM;
        return false;
    }
    thread->tid = tid;
    process_thread_name(process->pid, thread);
    return true;
}

bool process_list_threads(struct process *process, struct karst_error *error) {
    return each_thread(process->pid, list_one, process) ||
           karst_fail_errno(error, errno, "cannot list the threads of process %d", process->pid);
}

static bool has_memory(void *context, pid_t tid) {
    struct process_status status;
    pid_t *found = context;
    if (process_read_status(tid, &status) && status.has_memory) {
        *found = tid;
    }
    return *found == 0;
}

pid_t process_live_thread(pid_t pid) {
    pid_t found = 0;
    each_thread(pid, has_memory, &found);
    return found;
}

/* ---- stopping ---------------------------------------------------------------------------------- */

static bool is_known(const struct process *process, pid_t tid) {
    for (size_t i = process->tracee_count; i-- > 0;) {
        if (process->tracees[i].tid == tid) {
            return true;
        }
    }
    return false;
}

/* The kernel also answers EPERM for a thread that ended and was not waited for. */
static bool has_ended(pid_t tid) {
    struct process_status status;
    return !process_read_status(tid, &status) || status.state == 'Z' || status.state == 'X';
}

static void pause_a_little(unsigned tries) {
    struct timespec pause = {0, tries < 100 ? 20000 : 1000000};
    nanosleep(&pause, NULL);
}

static bool waits_for_kernel(pid_t tid) {
    struct process_status status;
    return process_read_status(tid, &status) && status.state == 'D';
}

/* Waits until the thread can stop; false: it waits for the kernel all the time. Seized there it could not be
 * let go of, and would stand still, once it came out, for as long as we live. */
static bool can_stop(pid_t tid) {
    uint64_t deadline = now_ns() + STOP_TIMEOUT_NS;
    for (unsigned tries = 0; waits_for_kernel(tid); tries++) {
        if (now_ns() > deadline) {
            return false;
        }
        pause_a_little(tries);
    }
    return true;
}

/* Seizes a thread that is not known yet. A thread that ended meanwhile is no failure. */
static bool seize(void *context, pid_t tid) {
    struct process *process = context;
    if (is_known(process, tid)) {
        return true;
    }
    size_t count = process->tracee_count;
    if ((count & (count - 1)) == 0) {
        struct process_tracee *tracees = realloc(process->tracees, (count ? 2 * count : 1) * sizeof *tracees);
        if (!tracees) {
            errno = ENOMEM;
            return false;
        }
        process->tracees = tracees;
    }
    if (!can_stop(tid)) {
        process->unstoppable = tid;
        return false;
    }
    if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) != 0) {
        int refused = errno;
        bool ended = refused == ESRCH || (refused == EPERM && has_ended(tid));
        errno = refused;
        return ended;
    }
    process->tracees[process->tracee_count++] = (struct process_tracee){.tid = tid};
    ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
    return true;
}

static void note_stop(struct process_tracee *tracee, int status) {
    if (!WIFSTOPPED(status)) {
        tracee->gone = true;
        return;
    }
    tracee->stopped = true;
    int signal = WSTOPSIG(status);
    if (status >> 16 != PTRACE_EVENT_STOP) {
        tracee->pending = signal;
    } else if (signal != SIGTRAP) {
        tracee->group_stop = signal;
    }
}

/* Waits until the thread stops or ends, at least until deadline; false: it does neither. */
static bool wait_for(struct process_tracee *tracee, uint64_t deadline) {
    for (unsigned tries = 0; !tracee->stopped && !tracee->gone; tries++) {
        int status;
        pid_t got = waitpid(tracee->tid, &status, __WALL | WNOHANG);
        if (got == tracee->tid) {
            note_stop(tracee, status);
        } else if (got < 0 && errno != EINTR) {
            tracee->gone = true;
        } else if (now_ns() > deadline &&
                   (waits_for_kernel(tracee->tid) || now_ns() > deadline + STOP_LONGEST_NS)) {
            return false;
        } else {
            pause_a_little(tries);
        }
    }
    return true;
}

static bool cannot_stop(const struct process *process, pid_t tid, struct karst_error *error) {
    const char *why =
        waits_for_kernel(tid) ? ": it waits for the kernel (a disk, NFS, or the end of a vfork)" : "";
    return karst_fail(error, KARST_ERROR_SYSTEM,
                      "thread %d of process %d does not stop%s; --no-stop reads it while it runs", tid,
                      process->pid, why);
}

static bool seize_all(struct process *process, const struct process_status *status,
                      struct karst_error *error) {
    size_t before;
    int rounds = 0;
    do {
        before = process->tracee_count;
        if (!each_thread(process->pid, seize, process)) {
            return process->unstoppable ? cannot_stop(process, process->unstoppable, error)
                                        : process_refused(process->pid, status, errno, error);
        }
        uint64_t deadline = now_ns() + STOP_TIMEOUT_NS;
        for (size_t i = before; i < process->tracee_count; i++) {
            if (!wait_for(&process->tracees[i], deadline)) {
                return cannot_stop(process, process->tracees[i].tid, error);
            }
        }
    } while (process->tracee_count > before && ++rounds < ROUNDS_MAX);
    return true;
}

/* Adds a stopped thread with its registers. */
static bool add_stopped(struct process *process, const struct process_tracee *tracee) {
    struct karst_thread *thread = karst_target_add_thread(&process->target);
    if (!thread) {
        return false;
    }
    thread->tid = tracee->tid;
    thread->signal = tracee->pending ? tracee->pending : tracee->group_stop;
    process_thread_name(process->pid, thread);
    uint64_t registers[KARST_REGISTERS_MAX];
    struct iovec set = {registers, sizeof registers};
    if (ptrace(PTRACE_GETREGSET, tracee->tid, (void *)(uintptr_t)NT_PRSTATUS, &set) == 0) {
        karst_thread_set_registers(thread, process->target.machine, registers, set.iov_len);
    }
    if (process->target.machine == EM_AARCH64) {
        set = (struct iovec){registers, sizeof registers};
        if (ptrace(PTRACE_GETREGSET, tracee->tid, (void *)(uintptr_t)NT_ARM_TLS, &set) == 0 &&
            set.iov_len >= sizeof *registers) {
            thread->thread_pointer = registers[0];
        }
    }
    return true;
}

bool process_stop(struct process *process, const struct process_status *status, struct karst_error *error) {
    if (status->tracer != 0) {
        struct process_status tracer;
        if (!process_read_status(status->tracer, &tracer)) {
            tracer.name[0] = '\0';
        }
        return karst_fail(error, KARST_ERROR_PERMISSION,
                          "process %d (%s) is already traced by process %" PRId64
                          " (%s): detach that, use karst inside it, or --no-stop",
                          process->pid, status->name, status->tracer, tracer.name);
    }
    if (!seize_all(process, status, error)) {
        return false;
    }
    for (size_t i = 0; i < process->tracee_count; i++) {
        if (!process->tracees[i].gone && !add_stopped(process, &process->tracees[i])) {
            return karst_fail_memory(error);
        }
    }
    return process->target.thread_count > 0 ||
           karst_fail(error, KARST_ERROR_NOT_FOUND, "process %d (%s) ended just now", process->pid,
                      status->name);
}

/* A thread that was killed while we held it stays until its tracer has waited for it, and its process
 * with it. The end of a process that is our own child is for its owner in this program to wait for. */
static void bury(const struct process *process, struct process_tracee *tracee, uint64_t deadline) {
    struct process_status status;
    if (tracee->tid == process->pid && process_read_status(tracee->tid, &status) &&
        status.parent == getpid()) {
        return;
    }
    tracee->stopped = false;
    wait_for(tracee, deadline);
}

void process_release(struct process *process) {
    uint64_t deadline = now_ns() + STOP_TIMEOUT_NS;
    /* The first thread last: its end is told when the others are gone. */
    for (size_t i = process->tracee_count; i-- > 0;) {
        struct process_tracee *tracee = &process->tracees[i];
        /* After a failure half-way some are on their way to a stop; only there can they be let go. */
        if (!wait_for(tracee, deadline) || tracee->gone) {
            continue;
        }
        if (ptrace(PTRACE_DETACH, tracee->tid, NULL, (void *)(intptr_t)tracee->pending) != 0) {
            bury(process, tracee, deadline);
        }
    }
    process->tracee_count = 0;
}
