/* A live process; private to this folder. process.c reads it, process_stop.c stops and lets go of it,
 * process_pages.c knows its pages, process_refusal.c says why it can't. */
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

/* What is known of 64 MiB of pages (of 4 KiB): 4 KiB; of all that are kept at a time: 4 MiB. */
#define PROCESS_REGION_PAGES 16384u
#define PROCESS_REGIONS      1024u

struct process_region {
    uint64_t first; /* page number */
    bool known;
    uint64_t touched[PROCESS_REGION_PAGES / 64]; /* present or swapped out: contents of their own */
    uint64_t present[PROCESS_REGION_PAGES / 64];
};

struct process_range {
    uint64_t start, end;
};

struct process {
    struct karst_target target;
    pid_t pid;
    pid_t task;  /* whose /proc folder to use: pid, or another thread where the first one ended */
    int memory;  /* /proc/PID/mem, -1: none */
    int pagemap; /* /proc/PID/pagemap, -1: none */
    struct process_tracee *tracees;
    size_t tracee_count;
    pid_t unstoppable; /* a thread that was left alone, for it would not have stopped; 0: none */
    bool no_scan;      /* the kernel has no PAGEMAP_SCAN */
    struct process_region *regions[PROCESS_REGIONS];
    bool no_system_call; /* a sandbox forbids process_vm_readv() */
    bool shared_searched, shared_known;
    struct process_range *shared; /* mappings with pages that others map, too; in address order */
    size_t shared_count;
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

/* How many of the pages [page, end) are like the first one; *touched: they have contents of their own. At
 * least 1 and at most up to the region's end; 0: can't be told. */
uint64_t process_same_pages(struct process *process, uint64_t page, uint64_t end, bool *touched);
/* Is the page in memory? -1: can't be told. */
int process_page_present(struct process *process, uint64_t page);
/* How many of [page, end) are; UINT64_MAX: can't be told. */
uint64_t process_present_pages(struct process *process, uint64_t page, uint64_t end);
/* Pages in memory from page up to end that only this process maps; UINT64_MAX: can't be told. */
uint64_t process_own_pages(struct process *process, uint64_t page, uint64_t end);
/* Is nothing of [start, end) mapped by another process, and will not be while we look? false also where that
 * can't be told. */
bool process_has_alone(struct process *process, uint64_t start, uint64_t end);
void process_free_pages(struct process *process);

/* Explains why the system refused; always false. */
bool process_refused(int64_t pid, const struct process_status *status, int errno_value,
                     struct karst_error *error);

/* Adds the mappings of a text as /proc/PID/maps has it, which is changed. False: out of memory. */
bool process_parse_maps(struct karst_target *target, char *text);

#endif
