/* Which mappings of a process hold pages that others map, too: a fork's, or the kernel's merged ones.
 *
 * process_vm_readv() takes half the time of /proc/PID/mem, but pins what it reads: of a page that a fork
 * shares the kernel makes the process a copy of its own first (Linux 5.18 and later, gup_must_unshare() in
 * mm/gup.c). Looking at a worker would cost the memory that it shares with its parent. */
#include "process.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text for so many takes the kernel longer than it can save. */
#define MAPPINGS_MOST 4096u

static bool add_shared(struct process *process, uint64_t start, uint64_t end) {
    if (process->shared_count && process->shared[process->shared_count - 1].start == start) {
        return true;
    }
    struct process_range *shared = realloc(process->shared, (process->shared_count + 1) * sizeof *shared);
    if (!shared) {
        return false;
    }
    process->shared = shared;
    shared[process->shared_count++] = (struct process_range){start, end};
    return true;
}

/* Does a line of smaps count pages that others map, too? */
static bool counts_shared(const char *line) {
    static const char *const names[] = {"Shared_Clean:", "Shared_Dirty:", "KSM:"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t length = strlen(names[i]);
        if (strncmp(line, names[i], length) == 0) {
            return strtoull(line + length, NULL, 10) != 0;
        }
    }
    return false;
}

/* false: can't be told. */
static bool find_shared(struct process *process) {
    size_t size;
    char *text =
        process->target.mapping_count <= MAPPINGS_MOST ? process_file(process->task, "smaps", &size) : NULL;
    bool fine = text != NULL;
    uint64_t start = 0, end = 0;
    for (const char *line = text; fine && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (*line < 'A' || *line > 'Z') {
            fine = sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) == 2;
        } else if (counts_shared(line)) {
            fine = add_shared(process, start, end);
        }
    }
    free(text);
    return fine;
}

bool process_has_alone(struct process *process, uint64_t start, uint64_t end) {
    if (!process->target.stopped) {
        return false; /* it may fork at any time */
    }
    if (!process->shared_searched) {
        process->shared_searched = true;
        process->shared_known = find_shared(process);
    }
    size_t low = 0, high = process->shared_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (process->shared[middle].end <= start) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return process->shared_known && (low == process->shared_count || process->shared[low].start >= end);
}
