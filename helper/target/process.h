/* A live process; private to this folder. process.c reads it, process_stop.c stops and lets go of it,
 * process_refusal.c says why it can't. */
#ifndef KARST_TARGET_PROCESS_H
#define KARST_TARGET_PROCESS_H

#include "parts.h"

#include <sys/types.h>

/* A thread under our trace. */
struct process_tracee {
    pid_t tid;
    bool stopped;   /* its stop was seen */
    bool gone;      /* it ended */
    int pending;    /* the signal whose delivery was interrupted: given back when we let go */
    int group_stop; /* the signal that had stopped the process before us; 0: it ran */
};

struct process {
    struct karst_target target;
    pid_t pid;
    pid_t task;          /* whose /proc folder to use: pid, or another thread where the first one ended */
    int memory;          /* /proc/PID/mem, -1: none */
    int pagemap;         /* /proc/PID/pagemap, -1: none */
    bool by_system_call; /* process_vm_readv() may be used: the process can't go away under us */
    struct process_tracee *tracees;
    size_t tracee_count;
    uint64_t *pages;      /* a window of the page map */
    uint64_t pages_first; /* page numbers [pages_first, pages_first + page_count) */
    size_t page_count;
};

/* What /proc/PID/status says. */
struct process_status {
    char name[64];
    char state; /* 'R', 'S', 'Z' ... */
    int64_t thread_group;
    int64_t parent;
    int64_t tracer; /* 0: none */
    int64_t user;   /* real user id */
    bool has_memory;
    int64_t threads;
};

/* Reads a file of /proc/ID; false with errno set. Text is terminated and the caller's to free. */
char *process_file(int64_t id, const char *name, size_t *size);
/* false: there is no such task (or errno says why not). */
bool process_read_status(int64_t id, struct process_status *status);

/* Stops all threads and adds them, with registers, to the target. */
bool process_stop(struct process *process, const struct process_status *status, struct karst_error *error);
/* Lets all go as they were. */
void process_release(struct process *process);
/* A thread that still has the process's memory, 0: none. */
pid_t process_live_thread(pid_t pid);
/* Adds the threads as /proc lists them, without registers. false: out of memory or gone. */
bool process_list_threads(struct process *process, struct karst_error *error);
/* Fills name of thread from /proc. */
void process_thread_name(pid_t pid, struct karst_thread *thread);

/* Explains why the system refused; always false. */
bool process_refused(int64_t pid, const struct process_status *status, int errno_value,
                     struct karst_error *error);

#endif
