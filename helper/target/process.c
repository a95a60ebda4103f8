/* Live processes. Stopped by PTRACE_SEIZE, without PTRACE_O_EXITKILL: whatever happens to us, the kernel
 * lets the process go on. Memory comes by /proc/PID/mem, and by
 * process_vm_readv() where that changes nothing for the process. */
#include "process.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define LARGE_PIECE ((size_t)65536) /* worth asking how it may be read */

/* ---- /proc ------------------------------------------------------------------------------------- */

static int open_proc(int64_t id, const char *name, int flags) {
    char path[PATH_MAX + 64];
    if (snprintf(path, sizeof path, "/proc/%" PRId64 "/%s", id, name) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return open(path, flags | O_CLOEXEC);
}

/* Reads to the end; NULL with errno set. */
static char *read_to_end(int descriptor, size_t *size) {
    size_t capacity = 16384, used = 0;
    char *text = malloc(capacity);
    while (text) {
        ssize_t got = read(descriptor, text + used, capacity - used - 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            if (got == 0) {
                text[used] = '\0';
                *size = used;
                return text;
            }
            break;
        }
        used += (size_t)got;
        if (capacity - used < 4096) {
            char *larger = realloc(text, capacity *= 2);
            if (!larger) {
                break;
            }
            text = larger;
        }
    }
    free(text);
    return NULL;
}

char *process_file(int64_t id, const char *name, size_t *size) {
    int descriptor = open_proc(id, name, O_RDONLY);
    if (descriptor < 0) {
        return NULL;
    }
    char *text = read_to_end(descriptor, size);
    int saved = errno;
    close(descriptor);
    errno = saved;
    return text;
}

static const char *field(const char *text, const char *name) {
    size_t length = strlen(name);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, length) == 0 && line[length] == ':') {
            line += length + 1;
            return line + strspn(line, " \t");
        }
    }
    return NULL;
}

static int64_t number_field(const char *text, const char *name) {
    const char *value = field(text, name);
    return value ? strtoll(value, NULL, 10) : 0;
}

bool process_read_status(int64_t id, struct process_status *status) {
    memset(status, 0, sizeof *status);
    size_t size;
    char *text = process_file(id, "status", &size);
    if (!text) {
        return false;
    }
    const char *name = field(text, "Name"), *state = field(text, "State");
    if (name) {
        size_t length = strcspn(name, "\n");
        length = length < sizeof status->name ? length : sizeof status->name - 1;
        memcpy(status->name, name, length);
    }
    status->state = state ? *state : '?';
    status->thread_group = number_field(text, "Tgid");
    status->parent = number_field(text, "PPid");
    status->tracer = number_field(text, "TracerPid");
    status->user = number_field(text, "Uid");
    status->has_memory = field(text, "VmSize") != NULL;
    status->threads = number_field(text, "Threads");
    free(text);
    return true;
}

void process_thread_name(pid_t pid, struct karst_thread *thread) {
    char path[64];
    snprintf(path, sizeof path, "task/%" PRId64 "/comm", thread->tid);
    size_t size;
    char *text = process_file(pid, path, &size);
    if (text) {
        size_t length = strcspn(text, "\n");
        length = length < sizeof thread->name ? length : sizeof thread->name - 1;
        memcpy(thread->name, text, length);
        free(text);
    }
}

/* ---- mappings ---------------------------------------------------------------------------------- */

/* Undoes the kernel's "\012" for a newline in a path, in place; returns the new length. */
static size_t unescape(char *text, size_t size) {
    size_t to = 0;
    for (size_t from = 0; from < size; to++) {
        if (size - from >= 4 && memcmp(text + from, "\\012", 4) == 0) {
            text[to] = '\n';
            from += 4;
        } else {
            text[to] = text[from++];
        }
    }
    return to;
}

/* One line: "start-end rwxp offset device inode   path". false: out of memory. */
static bool add_line(struct karst_target *target, char *line, size_t size) {
    char permissions[5] = "";
    struct karst_mapping parsed = {0};
    int name_at = 0;
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*s %" SCNu64 " %n", &parsed.start, &parsed.end,
               permissions, &parsed.file_offset, &parsed.inode, &name_at) < 5 ||
        parsed.start >= parsed.end) {
        return true;
    }
    parsed.permissions = (permissions[0] == 'r' ? KARST_MAPPING_READ : 0u) |
                         (permissions[1] == 'w' ? KARST_MAPPING_WRITE : 0u) |
                         (permissions[2] == 'x' ? KARST_MAPPING_EXECUTE : 0u) |
                         (permissions[3] == 's' ? KARST_MAPPING_SHARED : 0u);
    if (name_at > 0 && (size_t)name_at < size) {
        size_t length = unescape(line + name_at, size - (size_t)name_at);
        parsed.name = karst_target_string(target, line + name_at, length);
        if (!parsed.name) {
            return false;
        }
    }
    struct karst_mapping *mapping = karst_target_add_mapping(target);
    if (mapping) {
        *mapping = parsed;
    }
    return mapping != NULL;
}

bool process_parse_maps(struct karst_target *target, char *text) {
    bool enough_memory = true;
    for (char *line = text; *line && enough_memory;) {
        size_t length = strcspn(line, "\n");
        char *next = line + length + (line[length] == '\n');
        line[length] = '\0';
        enough_memory = add_line(target, line, length);
        line = next;
    }
    return enough_memory;
}

static bool read_mappings(struct process *process, const struct process_status *status,
                          struct karst_error *error) {
    size_t size;
    char *text = process_file(process->task, "maps", &size);
    if (!text) {
        return process_refused(process->pid, status, errno, error);
    }
    bool enough_memory = process_parse_maps(&process->target, text);
    free(text);
    if (!enough_memory) {
        return karst_fail_memory(error);
    }
    if (process->target.mapping_count == 0) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          "process %d (%s) has no memory any more: it is ending", process->pid, status->name);
    }
    karst_target_sort_mappings(&process->target);
    return true;
}

/* ---- memory ------------------------------------------------------------------------------------ */

/* Through the page tables of the process: also what it has no permission to read itself. */
static size_t read_by_file(const struct process *process, uint64_t address, uint8_t *buffer, size_t size) {
    size_t done = 0;
    while (process->memory >= 0 && done < size && address + done <= INT64_MAX) {
        ssize_t got = pread(process->memory, buffer + done, size - done, (off_t)(address + done));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            break;
        }
        done += (size_t)got;
    }
    return done;
}

/* Only of memory that the process has alone: see process_shared.c. */
static size_t read_by_call(struct process *process, uint64_t address, uint8_t *buffer, size_t size) {
    struct iovec local = {buffer, size};
    struct iovec remote = {(void *)(uintptr_t)address, size};
    ssize_t got = process->no_system_call ? -1 : process_vm_readv(process->task, &local, 1, &remote, 1, 0);
    if (got < 0 && (errno == ENOSYS || errno == EPERM)) {
        process->no_system_call = true;
    }
    return got > 0 ? (size_t)got : 0;
}

/* Large pieces by the quicker way; what that does not reach by the one which can do more. */
static size_t read_touched(struct process *process, const struct karst_mapping *mapping, uint64_t address,
                           uint8_t *bytes, size_t size) {
    size_t done = 0;
    if (size >= LARGE_PIECE && process_has_alone(process, mapping->start, mapping->end)) {
        done = read_by_call(process, address, bytes, size);
    }
    return done + read_by_file(process, address + done, bytes + done, size - done);
}

static bool begins(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

/* Reading a device may do something, and the kernel's own data for the vdso is not the program's. */
static bool is_untouchable(const struct karst_mapping *mapping) {
    const char *name = mapping->name;
    return name && (begins(name, "[vvar") || begins(name, "/sys/") || begins(name, "anon_inode:") ||
                    (begins(name, "/dev/") && !begins(name, "/dev/shm/") && !begins(name, "/dev/zero")));
}

static bool is_private_anonymous(const struct karst_mapping *mapping) {
    return !(mapping->permissions & KARST_MAPPING_SHARED) && mapping->inode == 0 &&
           (!mapping->name || strcmp(mapping->name, "[heap]") == 0 || strcmp(mapping->name, "[stack]") == 0 ||
            begins(mapping->name, "[anon:"));
}

/* Private anonymous memory that was never touched is not read, which would make the kernel provide pages
 * for it: it holds zeros if the program may read it, and nothing if not. */
static size_t read_anonymous(struct process *process, const struct karst_mapping *mapping, uint64_t address,
                             uint8_t *bytes, size_t size) {
    size_t done = 0;
    while (done < size) {
        bool touched;
        uint64_t page_size = process->target.page_size, at = address + done;
        uint64_t pages =
            process_same_pages(process, at / page_size, (address + size - 1) / page_size + 1, &touched);
        if (pages == 0) {
            return done + read_touched(process, mapping, at, bytes + done, size - done);
        }
        uint64_t reach = (at / page_size + pages) * page_size - at;
        size_t piece = reach < size - done ? (size_t)reach : size - done, got = 0;
        if (touched) {
            got = read_touched(process, mapping, at, bytes + done, piece);
        } else if (mapping->permissions & KARST_MAPPING_READ) {
            memset(bytes + done, 0, piece);
            got = piece;
        }
        done += got;
        if (got < piece) {
            break;
        }
    }
    return done;
}

static size_t process_read(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    struct process *process = (struct process *)target;
    uint8_t *bytes = buffer;
    size_t done = 0;
    while (done < size) {
        const struct karst_mapping *mapping = karst_target_mapping(target, address + done);
        if (!mapping || is_untouchable(mapping)) {
            break;
        }
        uint64_t left = mapping->end - (address + done);
        size_t piece = left < size - done ? (size_t)left : size - done;
        size_t got = is_private_anonymous(mapping)
                         ? read_anonymous(process, mapping, address + done, bytes + done, piece)
                         : read_by_file(process, address + done, bytes + done, piece);
        done += got;
        if (got < piece) {
            break;
        }
    }
    return done;
}

/* At most a few GB at a time: who asks may want to tell how far it is. */
static uint64_t process_untouched(struct karst_target *target, uint64_t address, uint64_t end) {
    struct process *process = (struct process *)target;
    const struct karst_mapping *mapping = karst_target_mapping(target, address);
    if (!mapping || !is_private_anonymous(mapping)) {
        return 0;
    }
    uint64_t page_size = target->page_size, page = address / page_size;
    uint64_t last = (end < mapping->end ? end : mapping->end) / page_size;
    for (unsigned region = 0; region < 64 && page < last; region++) {
        bool touched = true;
        uint64_t same = process_same_pages(process, page, last, &touched);
        if (same == 0 || touched) {
            break;
        }
        page += same;
    }
    return page * page_size > address ? page * page_size - address : 0;
}

static uint64_t process_own(struct karst_target *target, uint64_t start, uint64_t end) {
    uint64_t page_size = target->page_size;
    uint64_t pages =
        process_own_pages((struct process *)target, start / page_size, (end + page_size - 1) / page_size);
    return pages == UINT64_MAX ? UINT64_MAX : pages * page_size;
}

static uint64_t process_resident(struct karst_target *target, uint64_t start, uint64_t end) {
    struct process *process = (struct process *)target;
    uint64_t page_size = target->page_size, first = start / page_size, last = (end - 1) / page_size;
    uint64_t pages = process_present_pages(process, first, last + 1);
    if (pages == UINT64_MAX) {
        return UINT64_MAX;
    }
    /* The parts of the first and the last page that were not asked for. */
    uint64_t beside = process_page_present(process, first) == 1 ? start % page_size : 0;
    if (process_page_present(process, last) == 1 && end % page_size) {
        beside += page_size - end % page_size;
    }
    return pages * page_size - beside;
}

/* Works for deleted files and other mount namespaces: the kernel's own link to the mapped file, which
 * may need more rights, then the path below the process's root. */
static int process_open_module(struct karst_target *target, const struct karst_module *module) {
    const struct process *process = (const struct process *)target;
    const struct karst_mapping *mapping = karst_target_mapping(target, module->start);
    char name[PATH_MAX + 8];
    if (mapping) {
        snprintf(name, sizeof name, "map_files/%" PRIx64 "-%" PRIx64, mapping->start, mapping->end);
        int descriptor = open_proc(process->task, name, O_RDONLY);
        if (descriptor >= 0) {
            return descriptor;
        }
    }
    if (module == target->executable_module) {
        int descriptor = open_proc(process->task, "exe", O_RDONLY);
        if (descriptor >= 0) {
            return descriptor;
        }
    }
    if (snprintf(name, sizeof name, "root%s", module->path) >= (int)sizeof name) {
        return -1;
    }
    return open_proc(process->task, name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
}

static void process_close(struct karst_target *target) {
    struct process *process = (struct process *)target;
    process_release(process);
    karst_target_free_parts(target);
    if (process->memory >= 0) {
        close(process->memory);
    }
    if (process->pagemap >= 0) {
        close(process->pagemap);
    }
    free(process->tracees);
    process_free_pages(process);
    free(process);
}

static const struct karst_target_ops process_ops = {.read = process_read,
                                                    .resident = process_resident,
                                                    .own = process_own,
                                                    .untouched = process_untouched,
                                                    .open_module = process_open_module,
                                                    .close = process_close};

/* ---- opening ----------------------------------------------------------------------------------- */

/* Is there something to look at, and is it a process? */
static bool check_process(int64_t pid, struct process_status *status, struct karst_error *error) {
    if (pid <= 0 || pid > INT32_MAX) {
        return karst_fail(error, KARST_ERROR_USAGE, "%" PRId64 " is no process id", pid);
    }
    if (pid == getpid()) {
        return karst_fail(error, KARST_ERROR_USAGE, "process %" PRId64 " is karst itself: name another", pid);
    }
    if (!process_read_status(pid, status)) {
        return errno == ENOENT || errno == ESRCH
                   ? karst_fail(error, KARST_ERROR_NOT_FOUND, "there is no process %" PRId64, pid)
                   : karst_fail_errno(error, errno, "cannot look at process %" PRId64, pid);
    }
    if (status->thread_group != pid) {
        return karst_fail(error, KARST_ERROR_USAGE,
                          "%" PRId64 " is a thread of process %" PRId64 " (%s): name the process", pid,
                          status->thread_group, status->name);
    }
    if ((status->state == 'Z' && status->threads <= 1) || status->state == 'X') {
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          "process %" PRId64
                          " (%s) has ended (a zombie its parent has not waited for): its memory is gone",
                          pid, status->name);
    }
    if (!status->has_memory && status->state != 'Z') {
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          "%" PRId64
                          " (%s) is a thread of the kernel or is ending: it has no memory of its own",
                          pid, status->name);
    }
    return true;
}

/* The debugger that has it may be the process we are loaded into. */
static bool traced_by_us(const struct process_status *status) {
    struct process_status tracer;
    return status->tracer != 0 && process_read_status(status->tracer, &tracer) &&
           tracer.thread_group == getpid();
}

/* Is it a program whose memory we can make sense of? */
static bool check_program(const struct process *process, const struct process_status *status,
                          struct karst_error *error) {
    unsigned char start[EI_NIDENT] = {0};
    int descriptor = open_proc(process->task, "exe", O_RDONLY);
    ssize_t got = descriptor >= 0 ? read(descriptor, start, sizeof start) : 0;
    if (descriptor >= 0) {
        close(descriptor);
    }
    if (got == sizeof start && memcmp(start, ELFMAG, SELFMAG) == 0 && start[EI_CLASS] == ELFCLASS32) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "process %d (%s) is a 32-bit program; only 64-bit ones can be read", process->pid,
                          status->name);
    }
    return true;
}

/* Stops it, or takes it as it is, whatever the options say. */
static bool take_hold(struct process *process, const struct process_status *status,
                      const struct karst_options *options, struct karst_error *error) {
    struct karst_target *target = &process->target;
    if (options && options->thread) {
        target->stopped = true;
        return karst_target_lent_threads(target, options->thread, options->thread_context) ||
               karst_fail_memory(error);
    }
    if (traced_by_us(status)) {
        target->stopped = true;
        return process_list_threads(process, error);
    }
    if (options && options->no_stop) {
        target->stopped = false;
        karst_target_remark(target,
                            "the process runs while it is read: what changes meanwhile may look torn");
        return process_list_threads(process, error);
    }
    if (!process_stop(process, status, error)) {
        return false;
    }
    target->stopped = true;
    return true;
}

static bool find_executable(struct process *process, struct karst_error *error) {
    struct karst_target *target = &process->target;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/%d/exe", process->task);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) {
        return true;
    }
    path[length] = '\0';
    target->executable = strdup(path);
    if (!target->executable) {
        return karst_fail_memory(error);
    }
    karst_target_find_executable(target);
    return true;
}

static bool open_process(struct process *process, const struct karst_options *options,
                         struct karst_error *error) {
    struct karst_target *target = &process->target;
    struct process_status status;
    if (!karst_target_init(target, &process_ops, KARST_TARGET_PROCESS, options, error) ||
        !check_process(process->pid, &status, error)) {
        return false;
    }
    target->pid = process->pid;
    target->machine = karst_host_machine();
    target->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    if (asprintf(&target->name, "process %d (%s)", process->pid, status.name) < 0) {
        target->name = NULL;
        return karst_fail_memory(error);
    }
    process->task = status.has_memory ? process->pid : process_live_thread(process->pid);
    if (!check_program(process, &status, error) || !take_hold(process, &status, options, error)) {
        return false;
    }
    process->memory = process->task ? open_proc(process->task, "mem", O_RDONLY) : -1;
    if (process->memory < 0) {
        return process_refused(process->pid, &status, errno, error);
    }
    process->pagemap = open_proc(process->task, "pagemap", O_RDONLY);
    if (!read_mappings(process, &status, error)) {
        return false;
    }
    if (!karst_target_find_modules(target)) {
        return karst_fail_memory(error);
    }
    return find_executable(process, error);
}

struct karst_target *karst_process_open(int64_t pid, const struct karst_options *options,
                                        struct karst_error *error) {
    struct process *process = calloc(1, sizeof *process);
    if (!process) {
        karst_fail_memory(error);
        return NULL;
    }
    process->memory = process->pagemap = -1;
    process->pid = pid > 0 && pid <= INT32_MAX ? (pid_t)pid : 0;
    process->target.ops = &process_ops;
    if (!open_process(process, options, error)) {
        process_close(&process->target);
        return NULL;
    }
    return &process->target;
}

struct karst_target *karst_process_open_unread(int64_t pid, struct karst_error *error) {
    struct karst_error why = *error;
    struct process *process = calloc(1, sizeof *process);
    struct process_status status;
    if (!process) {
        karst_fail_memory(error);
        return NULL;
    }
    struct karst_target *target = &process->target;
    target->ops = &process_ops;
    process->memory = process->pagemap = -1;
    process->pid = pid > 0 && pid <= INT32_MAX ? (pid_t)pid : 0;
    if (!karst_target_init(target, &process_ops, KARST_TARGET_PROCESS, NULL, error) ||
        !check_process(pid, &status, error) ||
        (asprintf(&target->name, "process %d (%s)", process->pid, status.name) < 0 &&
         !karst_fail_memory(error))) {
        process_close(target);
        return NULL;
    }
    target->pid = pid;
    target->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    karst_target_remark(target, "%s", why.text);
    return target;
}
