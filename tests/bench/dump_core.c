#include "dump_core.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static bool pattern_is_plain(void) {
    char pattern[256] = "";
    int file = open("/proc/sys/kernel/core_pattern", O_RDONLY);
    ssize_t got = file < 0 ? 0 : read(file, pattern, sizeof pattern - 1);
    if (file >= 0) {
        close(file);
    }
    return got > 0 && strcmp(pattern, "core\n") == 0;
}

static void run_child(bool kernel, void (*build)(void *context), void *context) {
    build(context);
    if (!kernel) {
        raise(SIGSTOP);
    }
    struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
    if (setrlimit(RLIMIT_CORE, &unlimited) == 0 || getrlimit(RLIMIT_CORE, &unlimited) == 0) {
        unlimited.rlim_cur = unlimited.rlim_max;
        setrlimit(RLIMIT_CORE, &unlimited);
    }
    abort();
}

/* gcore names its file PREFIX.PID. */
static bool run_gcore(pid_t child) {
    char number[32];
    snprintf(number, sizeof number, "%d", (int)child);
    pid_t gcore = fork();
    if (gcore == 0) {
        execlp("gcore", "gcore", "-o", "core", number, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    return gcore > 0 && waitpid(gcore, &status, 0) == gcore && status == 0;
}

bool dump_core(const char *path, void (*build)(void *context), void *context) {
    bool kernel = pattern_is_plain();
    pid_t child = fork();
    if (child == 0) {
        run_child(kernel, build, context);
        _exit(2);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, WUNTRACED) != child) {
        perror("fork");
        return false;
    }
    bool dumped = false;
    if (WIFSTOPPED(status)) {
        dumped = run_gcore(child);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    } else {
        dumped = WIFSIGNALED(status) && WCOREDUMP(status);
    }
    if (!dumped) {
        fprintf(stderr, "no core was dumped: a hard core limit of 0, a full disk, or gcore is missing where "
                        "core_pattern hands cores to somebody else\n");
        return false;
    }
    char made[64];
    snprintf(made, sizeof made, "core.%d", (int)child); /* gcore, or kernel.core_uses_pid */
    if (rename(made, path) != 0 && rename("core", path) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return false;
    }
    return true;
}
