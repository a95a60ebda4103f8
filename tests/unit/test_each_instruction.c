/* Stops a program behind each machine instruction of malloc, free and the like that changed the heap, and
 * looks: every block that the program holds is there, with its size, and nothing is called corrupt. */
#include "../programs/stepped.h"
#include "check.h"
#include "karst-abi.h"
#include "karst.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define STEPPED_HELD_MAX 512
/* Blocks that an operation may have in its hands: neither the program's nor free. In jemalloc those of a run
 * that is being made look as if all were in use, and a cache is filled with many at once. */
#define IN_FLIGHT          2
#define IN_FLIGHT_JEMALLOC 520
#define KIB                1024ul
#define WORDS_MAX          16 /* of the command that runs the program */

static struct stepped *shared;

struct watch {
    pid_t pid;
    pid_t tids[2]; /* the first thread, and the one that works if it is another */
    size_t threads;
    int pagemap;
    uint64_t sum; /* over the heap's memory, as it was when it was last looked at */
    size_t in_flight;
    bool marked;   /* the preload library marks the blocks: usable is what was asked for */
    size_t before; /* live blocks beside those the program holds, when the operation began */
    unsigned steps, looks, suspicions;
};

#define PAGE        4096ul
#define WORDS       (PAGE / sizeof(uint64_t))
#define PIECE_PAGES 64ul

#define TLS                                                                                                  \
    (3 * KIB) /* below a thread pointer: more than libjemalloc's and libc's variables, less than all */

/* Adds a thread's own variables, which may be in its stack's mapping. */
static void add_variables(const struct watch *watch, uint64_t thread_pointer, uint64_t sums[4]) {
    uint64_t words[TLS / sizeof(uint64_t)];
    struct iovec here = {words, sizeof words}, there = {(void *)(uintptr_t)(thread_pointer - TLS), TLS};
    if (process_vm_readv(watch->pid, &here, 1, &there, 1, 0) == TLS) {
        for (size_t i = 0; i < TLS / sizeof *words; i++) {
            sums[i % 4] = (sums[i % 4] ^ words[i]) * 0x9e3779b97f4a7c15;
        }
    }
}

/* Adds the pages of [start, stop) that are there: to read others would make them. */
static void add_pages(const struct watch *watch, uint64_t start, uint64_t stop, uint64_t sums[4]) {
    static uint64_t words[PIECE_PAGES * WORDS];
    uint64_t entries[PIECE_PAGES];
    struct iovec here = {words, 0}, there[PIECE_PAGES];
    for (; start < stop; start += PIECE_PAGES * PAGE) {
        size_t pages = stop - start < PIECE_PAGES * PAGE ? (stop - start) / PAGE : PIECE_PAGES, count = 0;
        ssize_t got = pread(watch->pagemap, entries, pages * 8, (off_t)(start / PAGE * 8));
        for (size_t i = 0; got > 0 && i < (size_t)got / 8; i++) {
            if (entries[i] >> 63) {
                there[count++] = (struct iovec){(void *)(uintptr_t)(start + i * PAGE), PAGE};
            }
        }
        here.iov_len = count * PAGE;
        if (count && process_vm_readv(watch->pid, &here, 1, there, count, 0) == (ssize_t)here.iov_len) {
            for (size_t i = 0; i < count * WORDS; i++) {
                sums[i % 4] = (sums[i % 4] ^ words[i]) * 0x9e3779b97f4a7c15;
                sums[i % 4] ^= sums[i % 4] >> 29;
            }
        }
    }
}

/* The heap's memory is what is private, writable and neither the stack nor the program's own. */
static uint64_t sum_of_heap(const struct watch *watch) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/maps", watch->pid);
    FILE *maps = fopen(path, "r");
    uint64_t sums[4] = {0}, start, stop;
    struct user_regs_struct registers = {0};
    ptrace(PTRACE_GETREGS, watch->tids[watch->threads - 1], NULL, &registers);
    while (maps && fgets(line, sizeof line, maps)) {
        char permissions[8], name[256] = "";
        sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %*s %*s %*s %255s", &start, &stop, permissions, name);
        bool heap = strcmp(name, "[heap]") == 0 || strstr(name, "/libc") || strstr(name, "/libjemalloc") ||
                    strstr(name, "python") || (name[0] == 0 && registers.rsp - start >= stop - start);
        if (heap && strcmp(permissions, "rw-p") == 0) {
            sums[0] = (sums[0] ^ start ^ stop << 1) * 0x9e3779b97f4a7c15;
            add_pages(watch, start, stop, sums);
        }
    }
    if (maps) {
        fclose(maps);
    }
    add_variables(watch, registers.fs_base, sums);
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

static bool thread_of(void *context, size_t index, struct karst_thread *thread) {
    const struct watch *watch = context;
    struct user_regs_struct registers;
    if (index >= watch->threads || ptrace(PTRACE_GETREGS, watch->tids[index], NULL, &registers) != 0) {
        return false;
    }
    *thread = (struct karst_thread){.tid = watch->tids[index],
                                    .thread_pointer = registers.fs_base,
                                    .stack_pointer = registers.rsp,
                                    .program_counter = registers.rip,
                                    .register_count = sizeof registers / 8};
    memcpy(thread->registers, &registers, sizeof registers);
    return true;
}

struct comparison {
    bool marked;
    bool found[STEPPED_HELD_MAX];
    size_t right, others;
};

static int compare_held(const void *a, const void *b) {
    const struct stepped_block *x = a, *y = b;
    return x->address < y->address ? -1 : x->address > y->address;
}

static bool compare_blocks(void *context, const struct karst_block *blocks, size_t count) {
    struct comparison *comparison = context;
    for (size_t i = 0; i < count; i++) {
        if (blocks[i].state != KARST_STATE_LIVE) {
            continue;
        }
        struct stepped_block key = {blocks[i].address, 0};
        const struct stepped_block *match =
            bsearch(&key, shared->held, shared->held_count, sizeof key, compare_held);
        bool sized = match && (comparison->marked ? match->usable + KARST_FOOTER_BYTES <= blocks[i].usable
                                                  : match->usable == blocks[i].usable);
        bool right = sized && !comparison->found[match - shared->held];
        if (right) {
            comparison->found[match - shared->held] = true;
        }
        comparison->right += right;
        comparison->others += !right;
    }
    return true;
}

struct text {
    char bytes[4096];
    size_t size;
};

static bool keep_text(void *context, enum karst_style style, const char *bytes, size_t size) {
    (void)style;
    struct text *text = context;
    size_t room = sizeof text->bytes - 1 - text->size;
    size = size < room ? size : room;
    memcpy(text->bytes + text->size, bytes, size);
    text->size += size;
    return true;
}

static void complain(const struct watch *watch, const struct comparison *comparison, const char *why) {
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, watch->tids[watch->threads - 1], NULL, &registers);
    fprintf(stderr, "    %s in %s, at 0x%llx: %s\n", watch->threads > 1 ? "thread" : "main",
            shared->operation, registers.rip, why);
    for (size_t i = 0; comparison && i < shared->held_count; i++) {
        if (!comparison->found[i]) {
            fprintf(stderr, "    not there: 0x%" PRIx64 ", usable %" PRIu64 "\n", shared->held[i].address,
                    shared->held[i].usable);
        }
    }
}

static void look_at_blocks(struct watch *watch, struct karst *session, bool begins) {
    struct comparison comparison = {.marked = watch->marked};
    struct karst_error error;
    if (!CHECK(karst_for_each_block(session, compare_blocks, &comparison, &error))) {
        complain(watch, NULL, error.text);
        return;
    }
    if (!CHECK_EQUAL(comparison.right, shared->held_count)) {
        complain(watch, &comparison, "blocks are missing");
    }
    if (begins) {
        watch->before = comparison.others;
    } else if (!CHECK(comparison.others <= watch->before + watch->in_flight)) {
        complain(watch, NULL, "there are live blocks that nobody holds");
    }
}

static void look_for_damage(struct watch *watch, struct karst *session) {
    static const char *const check[] = {"check"};
    struct text text = {.size = 0};
    struct karst_output output = {.context = &text, .write = keep_text};
    struct karst_error error;
    int status = karst_run(session, 1, check, &output, NULL, &error);
    text.bytes[text.size] = 0;
    watch->suspicions += status == 1;
    if (!CHECK(status == 0 || (status == 1 && !strstr(text.bytes, "\ncorrupt ")))) {
        complain(watch, NULL, status == 1 ? text.bytes : error.text);
    } else if (status == 1 && getenv("KARST_TEST_SUSPECT")) {
        complain(watch, NULL, text.bytes);
    }
}

static void look(struct watch *watch, bool begins) {
    struct karst_options options = {.no_symbols = true, .thread = thread_of, .thread_context = watch};
    struct karst_error error;
    struct karst *session = karst_open_process(watch->pid, &options, &error);
    if (!CHECK(session != NULL)) {
        complain(watch, NULL, error.text);
        return;
    }
    look_at_blocks(watch, session, begins);
    look_for_damage(watch, session);
    karst_close(session);
    watch->looks++;
}

/* The next stop of one of its threads; -1: it ended. */
static pid_t wait_for_stop(int *status) {
    pid_t tid = waitpid(-1, status, __WALL);
    return tid > 0 && WIFSTOPPED(*status) ? tid : -1;
}

static void watch_operation(struct watch *watch, pid_t tid) {
    int status;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/pagemap", watch->pid);
    watch->pagemap = watch->pagemap >= 0 ? watch->pagemap : open(path, O_RDONLY);
    if (!CHECK(watch->pagemap >= 0)) {
        return;
    }
    qsort(shared->held, shared->held_count, sizeof *shared->held, compare_held);
    look(watch, true);
    watch->sum = sum_of_heap(watch);
    while (shared->inside) {
        ptrace(PTRACE_SINGLESTEP, tid, NULL, NULL);
        if (!CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status) &&
                   WSTOPSIG(status) == SIGTRAP)) {
            return;
        }
        watch->steps++;
        uint64_t sum = sum_of_heap(watch);
        if (sum != watch->sum) {
            watch->sum = sum;
            look(watch, false);
        }
    }
}

/* Stops the first thread, which waits for the other. */
static void stop_first(struct watch *watch) {
    int status;
    ptrace(PTRACE_INTERRUPT, watch->pid, NULL, NULL);
    CHECK(waitpid(watch->pid, &status, __WALL) == watch->pid && WIFSTOPPED(status));
}

static void watch_program(struct watch *watch) {
    int status;
    for (pid_t tid; (tid = wait_for_stop(&status)) > 0;) {
        if (WSTOPSIG(status) == SIGTRAP && status >> 16 == 0) {
            if (tid != watch->pid) {
                watch->tids[1] = tid;
                watch->threads = 2;
                stop_first(watch);
            }
            watch_operation(watch, tid);
            if (tid != watch->pid) {
                ptrace(PTRACE_CONT, watch->pid, NULL, NULL);
            }
        }
        ptrace(PTRACE_CONT, tid, NULL, NULL);
    }
    while (waitpid(-1, &status, __WALL) > 0) {
    }
}

/* command: what runs the program, and the program; where is added. */
static void test_each_instruction(const char *const *command, const char *where) {
    const char *words[WORDS_MAX + 2];
    size_t count = 0, in_flight = IN_FLIGHT;
    bool marked = false, few = false;
    while (command[count] && count < WORDS_MAX) {
        words[count] = command[count];
        in_flight = strstr(command[count], "jemalloc") ? IN_FLIGHT_JEMALLOC : in_flight;
        marked |= strncmp(command[count], "KARST_MARK", strlen("KARST_MARK")) == 0;
        few |= strcmp(command[count], "small") == 0 || strstr(command[count], "python");
        count++;
    }
    words[count] = where;
    words[count + 1] = NULL;
    memset(shared, 0, sizeof *shared);
    pid_t pid = fork();
    if (pid == 0) {
        execv(words[0], (char *const *)words);
        _exit(127);
    }
    struct watch watch = {
        .pid = pid, .tids = {pid}, .threads = 1, .in_flight = in_flight, .marked = marked, .pagemap = -1};
    if (CHECK(ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL) == 0)) {
        shared->go = 1;
        watch_program(&watch);
    }
    close(watch.pagemap);
    CHECK(watch.looks > (few ? 50 : 300));
    printf("%s: %u instructions, %u states of the heap, %u of them suspect\n", where, watch.steps,
           watch.looks, watch.suspicions);
}

/* Without arguments: the program stepped, that is built beside the unit tests; else the command that runs it,
 * with another libc for one. */
int main(int argc, char **argv) {
    char beside[512];
    const char *words[] = {beside, NULL};
    const char *slash = strrchr(argv[0], '/');
    snprintf(beside, sizeof beside, "%.*s/../stepped", slash ? (int)(slash - argv[0]) : 1,
             slash ? argv[0] : ".");
    const char *const *command = argc > 1 ? (const char *const *)argv + 1 : words;
    int fd = memfd_create("shared", 0);
    if (fd < 0 || ftruncate(fd, sizeof *shared) != 0 || dup2(fd, STEPPED_SHARED_FD) < 0) {
        perror("shared memory");
        return 1;
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, STEPPED_SHARED_FD, 0);
    test_each_instruction(command, "main");
    test_each_instruction(command, "thread");
    return checks_done();
}
