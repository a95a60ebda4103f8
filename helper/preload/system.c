#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "preload.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA           0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

/* libc's syscall() sets errno, which is the program's. */
long system_call(long number, long a, long b, long c, long d, long e, long f) {
    int saved = errno;
    long result = syscall(number, a, b, c, d, e, f);
    long told = result == -1 ? -errno : result;
    errno = saved;
    return told;
}

int32_t system_thread(void) {
    return (int32_t)system_call(SYS_gettid, 0, 0, 0, 0, 0, 0);
}

void *system_map(size_t bytes) {
    long address = system_call(SYS_mmap, 0, (long)bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address < 0 && address > -4096) {
        return NULL;
    }
    system_name((void *)address, bytes);
    return (void *)address;
}

void system_name(void *memory, size_t bytes) {
    system_call(SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, (long)memory, (long)bytes, (long)KARST_ABI_NAME,
                0);
}

void system_unmap(void *memory, size_t bytes) {
    system_call(SYS_munmap, (long)memory, (long)bytes, 0, 0, 0, 0);
}

/* The kernel's set of signals, whatever libc's is. */
#define SET_BYTES sizeof(uint64_t)

void system_hold_signals(struct signals_held *held, uint64_t set) {
    *held = (struct signals_held){0, 0};
    system_call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&set, (long)&held->mask, SET_BYTES, 0, 0);
    if (held->mask & set) { /* the program's own blocked ones may wait already */
        system_call(SYS_rt_sigpending, (long)&held->pending, SET_BYTES, 0, 0, 0, 0);
    }
}

void system_release_signals(const struct signals_held *held, uint64_t raised) {
    uint64_t drop = raised & ~held->pending;
    struct timespec at_once = {0, 0};
    if (drop) {
        system_call(SYS_rt_sigtimedwait, (long)&drop, 0, (long)&at_once, SET_BYTES, 0, 0);
    }
    system_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&held->mask, 0, SET_BYTES, 0, 0);
}

void system_say(const char *text) {
    char buffer[1024];
    struct karst_line line = {buffer, sizeof buffer - 1, 0};
    karst_line_add(&line, "karst: ");
    karst_line_add(&line, text);
    buffer[line.used++] = '\n';
    /* Who reads it may be gone, or it is a file of the most bytes that are allowed: the program, which wrote
     * nothing, must not die of that. */
    struct signals_held held;
    uint64_t raised = 0;
    system_hold_signals(&held, SIGNAL_BIT(SIGPIPE) | SIGNAL_BIT(SIGXFSZ));
    size_t done = 0;
    while (done < line.used) {
        long written =
            system_call(SYS_write, STDERR_FILENO, (long)(buffer + done), (long)(line.used - done), 0, 0, 0);
        if (written <= 0 && written != -EINTR) {
            raised = written == -EPIPE ? SIGNAL_BIT(SIGPIPE) : written == -EFBIG ? SIGNAL_BIT(SIGXFSZ) : 0;
            break;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    system_release_signals(&held, raised);
}

long system_read_file(const char *path, void *buffer, size_t size) {
    long file = system_call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (file < 0) {
        return -1;
    }
    size_t used = 0;
    while (used < size) {
        long part = system_call(SYS_read, file, (long)((char *)buffer + used), (long)(size - used), 0, 0, 0);
        if (part <= 0 && part != -EINTR) {
            break;
        }
        used += part > 0 ? (size_t)part : 0;
    }
    system_call(SYS_close, file, 0, 0, 0, 0, 0);
    return (long)used;
}

void system_program(char *path, size_t size) {
    long length =
        system_call(SYS_readlinkat, AT_FDCWD, (long)"/proc/self/exe", (long)path, (long)(size - 1), 0, 0);
    path[length > 0 ? length : 0] = '\0';
}

/* The tracer's process id out of /proc/self/status; 0: none. */
static uint64_t tracer(void) {
    char text[4096];
    long size = system_read_file("/proc/thread-self/status", text, sizeof text - 1);
    if (size <= 0) {
        return 0;
    }
    text[size] = '\0';
    const char *at = strstr(text, "TracerPid:");
    uint64_t pid = 0;
    for (at = at ? at + 10 : ""; *at == '\t' || *at == ' ' || (*at >= '0' && *at <= '9'); at++) {
        pid = *at >= '0' ? pid * 10 + (uint64_t)(*at - '0') : pid;
    }
    return pid;
}

/* strace and ltrace hand a SIGTRAP on to the program, which dies of it. */
bool system_debugged(void) {
    uint64_t pid = tracer();
    if (!pid) {
        return false;
    }
    char path[64], name[32];
    struct karst_line line = {path, sizeof path, 0};
    karst_line_add(&line, "/proc/");
    karst_line_add_number(&line, pid);
    karst_line_add(&line, "/comm");
    long size = system_read_file(path, name, sizeof name - 1);
    name[size > 0 ? size : 0] = '\0';
    return strcmp(name, "strace\n") != 0 && strcmp(name, "ltrace\n") != 0 && strcmp(name, "perf\n") != 0;
}

bool system_peek(uint64_t address, void *buffer, size_t size) {
    struct iovec here = {buffer, size}, there = {(void *)(uintptr_t)address, size};
    long pid = system_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
    return system_call(SYS_process_vm_readv, pid, (long)&here, 1, (long)&there, 1, 0) == (long)size;
}

uint64_t system_clock_ns(void) {
    struct timespec now = {0, 0};
    system_call(SYS_clock_gettime, CLOCK_REALTIME, (long)&now, 0, 0, 0, 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
