/* Why the system does not let us look at a process, and what would help. */
#include "process.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CAPABILITY_SYS_PTRACE 19

/* kernel.yama.ptrace_scope, 0 where there is no Yama. */
static long ptrace_scope(void) {
    FILE *file = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
    long scope = 0;
    if (file) {
        if (fscanf(file, "%ld", &scope) != 1) {
            scope = 0;
        }
        fclose(file);
    }
    return scope;
}

static bool may_trace_all(void) {
    size_t size;
    char *text = process_file(getpid(), "status", &size);
    const char *line = text ? strstr(text, "\nCapEff:") : NULL;
    uint64_t capabilities = line ? strtoull(line + strlen("\nCapEff:"), NULL, 16) : 0;
    free(text);
    return (capabilities >> CAPABILITY_SYS_PTRACE & 1) != 0;
}

static bool other_user_namespace(int64_t pid) {
    char path[64], here[64], there[64];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/ns/user", pid);
    ssize_t there_size = readlink(path, there, sizeof there);
    ssize_t here_size = readlink("/proc/self/ns/user", here, sizeof here);
    return here_size > 0 && there_size > 0 &&
           (here_size != there_size || memcmp(here, there, (size_t)here_size) != 0);
}

static const char *advice(int64_t pid, const struct process_status *status) {
    long scope = ptrace_scope();
    if (scope >= 3) {
        return "kernel.yama.ptrace_scope is 3, which forbids tracing until the next boot; take a core "
               "instead";
    }
    if (other_user_namespace(pid)) {
        return "it is in another user namespace (a container); run karst as root outside, or inside with it";
    }
    if (geteuid() == 0 && !may_trace_all()) {
        return "root lacks CAP_SYS_PTRACE here; a container needs --cap-add=SYS_PTRACE";
    }
    if (status->user != (int64_t)getuid()) {
        return "it belongs to another user; run karst as root or as that user";
    }
    if (scope == 2) {
        return "kernel.yama.ptrace_scope is 2: only root may trace; run karst as root";
    }
    if (scope == 1) {
        return "kernel.yama.ptrace_scope is 1: only a parent or root may trace; run karst as root, or "
               "sysctl kernel.yama.ptrace_scope=0";
    }
    return "it may be protected (set-user-id, file capabilities, prctl) or a seccomp filter forbids it; run "
           "karst as root";
}

bool process_refused(int64_t pid, const struct process_status *status, int errno_value,
                     struct karst_error *error) {
    if (errno_value == ESRCH || errno_value == ENOENT) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND, "process %" PRId64 " (%s) ended just now", pid,
                          status->name);
    }
    if (errno_value != EPERM && errno_value != EACCES) {
        return karst_fail_errno(error, errno_value, "cannot trace process %" PRId64 " (%s)", pid,
                                status->name);
    }
    return karst_fail(error, KARST_ERROR_PERMISSION, "may not look into process %" PRId64 " (%s): %s", pid,
                      status->name, advice(pid, status));
}
