/* Live processes: what is read of them, and that they go on unharmed whatever happens to the reader. */
#include <fcntl.h>

#include "check.h"
#include "process.h"
#include "victim.h"

#include <sys/ptrace.h>

static struct karst_target *open_victim(const struct victim *victim, const struct karst_options *options) {
    struct karst_error error = {0};
    struct karst_target *target = karst_process_open(victim->pid, options, &error);
    if (!CHECK(target != NULL)) {
        fprintf(stderr, "    %s\n", error.text);
    }
    return target;
}

static void check_pattern(struct karst_target *target, const struct victim_facts *facts) {
    uint8_t bytes[2 * VICTIM_PAGE];
    for (uint64_t i = 0; i + 2 <= VICTIM_PAGES; i += 2) {
        uint64_t address = facts->pattern + i * VICTIM_PAGE;
        CHECK_EQUAL(karst_target_read(target, address, bytes, sizeof bytes), sizeof bytes);
        CHECK(bytes[0] == i + 1 && bytes[VICTIM_PAGE - 1] == i + 1 && bytes[VICTIM_PAGE] == 0);
    }
}

/* Reads end where memory does. The page of PROT_NONE was never touched: nothing is there. */
static void check_edges(struct karst_target *target, const struct victim_facts *facts) {
    static uint8_t bytes[1 << 20];
    uint64_t last = facts->pattern + (VICTIM_PAGES - 1) * VICTIM_PAGE;
    size_t got = karst_target_read(target, last + 100, bytes, 3 * VICTIM_PAGE);
    CHECK(got >= VICTIM_PAGE - 100);
    CHECK_EQUAL(karst_target_read(target, 16, bytes, 16), 0);
    CHECK_EQUAL(karst_target_read(target, UINT64_MAX - 8, bytes, 64), 0);
    CHECK_EQUAL(karst_target_read(target, (uint64_t)1 << 62, bytes, 64), 0);
    CHECK(!karst_target_read_all(target, facts->pattern, bytes, sizeof bytes) ||
          karst_target_mapping(target, facts->pattern + sizeof bytes - 1));
}

static void check_threads(const struct karst_target *target, const struct victim_facts *facts) {
    CHECK_EQUAL(target->thread_count, 1 + VICTIM_THREADS);
    CHECK_EQUAL((uint64_t)target->threads[0].tid, (uint64_t)facts->tids[0]);
    for (size_t i = 0; i <= VICTIM_THREADS; i++) {
        bool found = false;
        for (size_t k = 0; k < target->thread_count; k++) {
            const struct karst_thread *thread = &target->threads[k];
            if (thread->tid == facts->tids[i]) {
                found = true;
                CHECK_EQUAL(thread->thread_pointer, facts->thread_pointers[i]);
                CHECK(thread->register_count >= 27 && thread->program_counter != 0);
                CHECK(karst_target_mapping(target, thread->stack_pointer) != NULL);
                CHECK_EQUAL((uint64_t)thread->signal, 0);
                CHECK(i == 0 || thread->name[7] == (char)('0' + i));
            }
        }
        CHECK(found);
    }
}

static void test_reading(struct victim *victim) {
    struct karst_target *target = open_victim(victim, NULL);
    if (!target) {
        return;
    }
    CHECK(target->stopped);
    CHECK_EQUAL((uint64_t)victim_state(victim->pid), 't');
    check_pattern(target, &victim->facts);
    check_edges(target, &victim->facts);
    check_threads(target, &victim->facts);
    const struct karst_mapping *mapping = karst_target_mapping(target, victim->facts.pattern);
    CHECK(mapping && karst_mapping_is_anonymous(mapping));
    CHECK(target->executable_module &&
          karst_target_module(target, victim->facts.function) == target->executable_module);
    uint64_t start = victim->facts.pattern, half = VICTIM_PAGES / 2 * VICTIM_PAGE;
    CHECK_EQUAL(karst_target_resident(target, start, start + 2 * half), half);
    CHECK_EQUAL(karst_target_resident(target, start + 10, start + 20), 10);
    CHECK_EQUAL(karst_target_resident(target, start + VICTIM_PAGE, start + VICTIM_PAGE + 8), 0);
    CHECK_EQUAL(karst_target_resident(target, start + VICTIM_PAGE - 1, start + 2 * VICTIM_PAGE + 2), 3);
    karst_target_close(target);
    CHECK(victim_ping(victim));
}

static void test_symbols(struct victim *victim) {
    struct karst_target *target = open_victim(victim, NULL);
    struct karst_symbol symbol;
    char text[100];
    uint64_t offset = 0, size = 0;
    if (!target) {
        return;
    }
    struct karst_module *module = target->executable_module;
    CHECK(karst_module_symbol(target, module, "victim_variable", &symbol));
    CHECK_EQUAL(symbol.address, victim->facts.variable);
    CHECK_EQUAL(symbol.size, 8);
    CHECK(!karst_module_symbol(target, module, "victim_variabl", &symbol));
    CHECK(!karst_module_symbol(target, module, "", &symbol));
    CHECK(karst_module_symbol(target, module, "victim_thread_variable", &symbol) && symbol.thread_local_);
    CHECK(karst_target_symbolize(target, victim->facts.function, KARST_SYMBOL_READABLE, text, sizeof text));
    CHECK_HAS(text, "victim_function");
    CHECK(strchr(text, '+') == NULL);
    CHECK(
        karst_target_symbolize(target, victim->facts.function + 1, KARST_SYMBOL_READABLE, text, sizeof text));
    CHECK_HAS(text, "victim_function+0x1");
    CHECK(!karst_target_symbolize(target, victim->facts.pattern, KARST_SYMBOL_READABLE, text, sizeof text));
    CHECK(karst_module_member(target, module, "victim_layout", "inner", &offset, &size));
    CHECK_EQUAL(offset, offsetof(struct victim_layout, inner));
    CHECK_EQUAL(size, sizeof(struct victim_inner));
    CHECK(karst_module_member(target, module, "victim_inner", "bytes", &offset, &size));
    CHECK_EQUAL(offset, offsetof(struct victim_inner, bytes));
    CHECK_EQUAL(size, 8);
    CHECK(!karst_module_member(target, module, "victim_layout", "nothing", &offset, &size));
    CHECK(!karst_module_member(target, module, "no_such_type", "inner", &offset, &size));
    char needle[] = "?eedle in a "; /* not a copy of what it shall find */
    needle[0] = 'n';
    CHECK(karst_module_find_text(target, module, needle, text, sizeof text));
    CHECK_HAS(text, "a haystack");
    CHECK_EQUAL(strlen(text), 20);
    karst_target_close(target);
}

static void test_no_symbols(struct victim *victim) {
    struct karst_options options = {.no_symbols = true};
    struct karst_target *target = open_victim(victim, &options);
    struct karst_symbol symbol;
    uint64_t offset, size;
    if (!target) {
        return;
    }
    CHECK(!karst_module_symbol(target, target->executable_module, "victim_variable", &symbol));
    CHECK(!karst_module_member(target, target->executable_module, "victim_layout", "inner", &offset, &size));
    bool found = false;
    for (size_t i = 0; i < target->module_count; i++) {
        if (strstr(target->modules[i].path, "libc.so.6")) {
            found = karst_module_symbol(target, &target->modules[i], "malloc", &symbol) &&
                    !karst_module_symbol(target, &target->modules[i], "main_arena", &symbol);
        }
    }
    CHECK(found);
    karst_target_close(target);
}

static void test_no_stop(struct victim *victim) {
    struct karst_options options = {.no_stop = true};
    struct karst_target *target = open_victim(victim, &options);
    if (!target) {
        return;
    }
    CHECK(!target->stopped);
    CHECK(victim_ping(victim));
    check_pattern(target, &victim->facts);
    check_edges(target, &victim->facts);
    CHECK_EQUAL(target->thread_count, 1 + VICTIM_THREADS);
    CHECK_EQUAL(target->threads[1].thread_pointer, 0);
    CHECK(target->remark_count == 1);
    CHECK(victim_ping(victim));
    karst_target_close(target);
}

/* A process that was stopped by a signal stays so, and continues when told. */
static void test_group_stop(struct victim *victim) {
    kill(victim->pid, SIGSTOP);
    while (victim_state(victim->pid) != 'T') {
        usleep(1000);
    }
    for (int i = 0; i < 3; i++) {
        struct karst_target *target = open_victim(victim, NULL);
        if (target) {
            CHECK_EQUAL((uint64_t)target->threads[0].signal, SIGSTOP);
            check_pattern(target, &victim->facts);
            karst_target_close(target);
        }
        /* Let go of, it runs for a moment inside the kernel, which stops it again. */
        for (int tries = 0; tries < 10000 && victim_state(victim->pid) != 'T'; tries++) {
            usleep(1000);
        }
        usleep(20000);
        CHECK_EQUAL((uint64_t)victim_state(victim->pid), 'T');
    }
    kill(victim->pid, SIGCONT);
    CHECK(victim_ping(victim));
}

enum { SIGNALS = 3000 };

static pid_t send_signals(pid_t to) {
    pid_t sender = fork();
    if (sender == 0) {
        for (int i = 0; i < SIGNALS; i++) {
            while (sigqueue(to, SIGRTMIN, (union sigval){0}) != 0) {
                usleep(100);
            }
            if (i % 16 == 0) {
                usleep(50);
            }
        }
        _exit(0);
    }
    return sender;
}

/* Signals that arrive while we come and go are neither lost nor doubled. Returns how often we came while
 * one was being delivered. */
static int check_signals(struct victim *victim) {
    int32_t before = 0, after = 0;
    int interrupted = 0;
    CHECK(victim_ask(victim, 's', &before, sizeof before));
    pid_t sender = send_signals(victim->pid);
    while (waitpid(sender, NULL, WNOHANG) == 0) {
        struct karst_target *target = open_victim(victim, NULL);
        if (!target) {
            break;
        }
        interrupted += target->threads[0].signal != 0;
        karst_target_close(target);
    }
    /* Waiting signals are taken before the next letter is read or while it is. */
    for (int i = 0; i < 50 && after - before < SIGNALS; i++) {
        CHECK(victim_ask(victim, 's', &after, sizeof after));
        usleep(1000);
    }
    CHECK_EQUAL((uint64_t)(after - before), SIGNALS);
    return interrupted;
}

static void test_signals(struct victim *victim) {
    int interrupted = 0;
    for (int i = 0; i < 40 && interrupted == 0; i++) {
        interrupted = check_signals(victim);
    }
    CHECK(interrupted > 0);
}

/* The reader is killed while it holds the process. */
static void test_reader_killed(struct victim *victim) {
    for (int i = 0; i < 5; i++) {
        int ready[2];
        CHECK(pipe(ready) == 0);
        pid_t reader = fork();
        if (reader == 0) {
            struct karst_target *target = karst_process_open(victim->pid, NULL, NULL);
            char answer = target && target->stopped ? 'y' : 'n';
            (void)!write(ready[1], &answer, 1);
            pause();
            _exit(0);
        }
        char answer = 0;
        CHECK(read(ready[0], &answer, 1) == 1 && answer == 'y');
        CHECK_EQUAL((uint64_t)victim_state(victim->pid), 't');
        kill(victim->pid, SIGCONT); /* whatever is pending has to get through afterwards */
        kill(reader, SIGKILL);
        waitpid(reader, NULL, 0);
        CHECK(victim_ping(victim));
        close(ready[0]);
        close(ready[1]);
    }
}

/* Every thread is held, however fast they come and go. */
static void test_thread_storm(struct victim *victim) {
    char answer;
    CHECK(victim_ask(victim, 't', &answer, 1));
    for (int i = 0; i < 30; i++) {
        struct karst_target *target = open_victim(victim, NULL);
        if (!target) {
            break;
        }
        CHECK(target->thread_count >= 2 + VICTIM_THREADS);
        for (size_t k = 0; k < target->thread_count; k++) {
            CHECK(target->threads[k].register_count > 0);
        }
        CHECK_EQUAL((uint64_t)victim_state(victim->pid), 't');
        karst_target_close(target);
    }
    CHECK(victim_ask(victim, 'u', &answer, 1));
}

static void refuse(int64_t pid, enum karst_error_code code, const char *text) {
    struct karst_error error = {0};
    struct karst_target *target = karst_process_open(pid, NULL, &error);
    CHECK(target == NULL);
    CHECK_EQUAL(error.code, code);
    CHECK_HAS(error.text, text);
    CHECK(strchr(error.text, '\n') == NULL);
    karst_target_close(target);
}

static void test_refusals(struct victim *victim) {
    refuse(0, KARST_ERROR_USAGE, "no process id");
    refuse(-5, KARST_ERROR_USAGE, "no process id");
    refuse(INT64_MAX, KARST_ERROR_USAGE, "no process id");
    refuse(getpid(), KARST_ERROR_USAGE, "karst itself");
    refuse(victim->facts.tids[1], KARST_ERROR_USAGE, "is a thread of process");
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    refuse(child, KARST_ERROR_NOT_FOUND, "zombie");
    waitpid(child, NULL, 0);
    refuse(child, KARST_ERROR_NOT_FOUND, "there is no process");
    FILE *file = fopen("/proc/2/comm", "re");
    char name[32] = "";
    if (file && fgets(name, sizeof name, file) && strcmp(name, "kthreadd\n") == 0) {
        refuse(2, KARST_ERROR_NOT_FOUND, "thread of the kernel");
    }
    if (file) {
        fclose(file);
    }
}

/* Another user may not look, and is told why. */
static void test_other_user(struct victim *victim) {
    int answer[2];
    struct karst_error error = {0};
    if (getuid() != 0 || pipe(answer) != 0) {
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        if (setgid(65534) == 0 && setuid(65534) == 0) {
            karst_target_close(karst_process_open(victim->pid, NULL, &error));
        }
        (void)!write(answer[1], &error, sizeof error);
        _exit(0);
    }
    CHECK(read(answer[0], &error, sizeof error) == sizeof error);
    CHECK_EQUAL(error.code, KARST_ERROR_PERMISSION);
    CHECK_HAS(error.text, "belongs to another user");
    waitpid(child, NULL, 0);
    close(answer[0]);
    close(answer[1]);
    CHECK(victim_ping(victim));
}

static void test_traced_by_another(struct victim *victim) {
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t tracer = fork();
    if (tracer == 0) {
        bool seized = ptrace(PTRACE_SEIZE, victim->pid, NULL, NULL) == 0;
        (void)!write(ready[1], seized ? "y" : "n", 1);
        pause();
        _exit(0);
    }
    char answer = 0, name[40];
    CHECK(read(ready[0], &answer, 1) == 1 && answer == 'y');
    snprintf(name, sizeof name, "already traced by process %d", tracer);
    refuse(victim->pid, KARST_ERROR_PERMISSION, name);
    kill(tracer, SIGKILL);
    waitpid(tracer, NULL, 0);
    CHECK(victim_ping(victim));
    close(ready[0]);
    close(ready[1]);
}

static bool one_thread(void *context, size_t index, struct karst_thread *thread) {
    thread->tid = *(const int64_t *)context;
    thread->thread_pointer = 0x1234;
    return index == 0;
}

/* We are inside the debugger that has it: nothing is stopped or let go by us. */
static void test_traced_by_us(struct victim *victim) {
    int status;
    CHECK(ptrace(PTRACE_SEIZE, victim->pid, NULL, NULL) == 0);
    CHECK(ptrace(PTRACE_INTERRUPT, victim->pid, NULL, NULL) == 0);
    CHECK(waitpid(victim->pid, &status, __WALL) == victim->pid);
    struct karst_target *target = open_victim(victim, NULL);
    if (target) {
        CHECK(target->stopped);
        check_pattern(target, &victim->facts);
        karst_target_close(target);
    }
    int64_t tid = victim->pid;
    struct karst_options options = {.thread = one_thread, .thread_context = &tid};
    target = open_victim(victim, &options);
    if (target) {
        CHECK(target->stopped);
        CHECK_EQUAL(target->thread_count, 1);
        CHECK_EQUAL(target->threads[0].thread_pointer, 0x1234);
        karst_target_close(target);
    }
    CHECK_EQUAL((uint64_t)victim_state(victim->pid), 't');
    CHECK(ptrace(PTRACE_DETACH, victim->pid, NULL, NULL) == 0);
    CHECK(victim_ping(victim));
}

/* A process whose program was deleted still has its file. */
static void test_deleted_program(void) {
    char folder[] = "/tmp/karst-test-XXXXXX", program[64], command[200];
    struct victim victim;
    CHECK(mkdtemp(folder) != NULL);
    snprintf(program, sizeof program, "%s/program", folder);
    snprintf(command, sizeof command, "cp /proc/%d/exe %s", getpid(), program);
    CHECK(system(command) == 0);
    if (CHECK(victim_start(&victim, program, NULL))) {
        unlink(program);
        struct karst_target *target = open_victim(&victim, NULL);
        struct karst_symbol symbol;
        if (target) {
            CHECK_HAS(target->executable, "(deleted)");
            CHECK(target->executable_module &&
                  karst_module_symbol(target, target->executable_module, "victim_variable", &symbol));
            CHECK_EQUAL(target->remark_count, 0);
            karst_target_close(target);
        }
        victim_end(&victim);
    }
    rmdir(folder);
}

/* What a program only reads takes no memory of its own. The page map of Linux before 6.7 can't tell. */
static void test_page_of_zeros(void) {
    struct victim victim;
    char answer = 0;
    if (!CHECK(victim_start(&victim, NULL, NULL))) {
        return;
    }
    CHECK(victim_ask(&victim, 'z', &answer, 1) && answer == 'z');
    struct karst_target *target = open_victim(&victim, NULL);
    if (target) {
        uint64_t page = victim.facts.pattern + VICTIM_PAGE;
        uint64_t resident = karst_target_resident(target, page, page + VICTIM_PAGE);
        CHECK(resident == 0 || ((const struct process *)target)->no_scan);
        karst_target_close(target);
    }
    victim_end(&victim);
}

#define SHARED_PAGES 64

/* A fork's memory is shared until one of the two writes; that somebody looks at it may not change that. */
static void test_fork_shares(void) {
    const size_t size = SHARED_PAGES * VICTIM_PAGE;
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t copy[SHARED_PAGES * VICTIM_PAGE];
    memset(memory, 0x5a, size);
    pid_t child = fork();
    if (child == 0) {
        for (;;) {
            pause();
        }
    }
    for (int alone = 0; alone < 2; alone++) {
        struct karst_error error = {0};
        struct karst_target *target = karst_process_open(child, NULL, &error);
        uint64_t start = (uintptr_t)memory, page = start / VICTIM_PAGE;
        if (!CHECK(target != NULL)) {
            break;
        }
        struct process *process = (struct process *)target;
        CHECK_EQUAL(process_own_pages(process, page, page + SHARED_PAGES), alone ? SHARED_PAGES : 0);
        CHECK(process_has_alone(process, start, start + size) == (alone == 1));
        CHECK_EQUAL(karst_target_read(target, start, copy, size), size);
        CHECK(copy[0] == 0x5a && memcmp(copy, copy + 1, size - 1) == 0);
        CHECK_EQUAL(process_own_pages(process, page, page + SHARED_PAGES), alone ? SHARED_PAGES : 0);
        karst_target_close(target);
        munmap(memory, size); /* the child has it alone now */
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

/* The first thread has ended, the others go on. */
static void test_first_thread_gone(void) {
    struct victim victim;
    char answer = 0;
    if (!CHECK(victim_start(&victim, NULL, NULL))) {
        return;
    }
    CHECK(victim_ask(&victim, 'x', &answer, 1) && answer == 'x');
    CHECK_EQUAL((uint64_t)victim_state(victim.pid), 'Z');
    for (int i = 0; i < 2; i++) {
        struct karst_options options = {.no_stop = i == 1};
        struct karst_target *target = open_victim(&victim, &options);
        if (target) {
            check_pattern(target, &victim.facts);
            CHECK(target->thread_count >= 1 + VICTIM_THREADS);
            CHECK(target->executable_module != NULL);
            karst_target_close(target);
        }
    }
    victim_end(&victim);
}

/* A process that ends while it is held: reads fail, nothing hangs. */
static void test_killed_while_held(void) {
    struct victim victim;
    if (!CHECK(victim_start(&victim, NULL, NULL))) {
        return;
    }
    struct karst_target *target = open_victim(&victim, NULL);
    kill(victim.pid, SIGKILL);
    while (victim_state(victim.pid) == 't') {
        usleep(1000);
    }
    uint8_t byte;
    if (target) {
        for (int i = 0; i < 3000 && karst_target_read(target, victim.facts.pattern, &byte, 1) != 0; i++) {
            usleep(10000);
        }
        CHECK_EQUAL(karst_target_read(target, victim.facts.pattern, &byte, 1), 0);
        karst_target_close(target);
    }
    victim_end(&victim);
}

__attribute__((used)) static const char haystack[] = "needle in a haystack\nnext line";

int main(int argc, char **argv) {
    victim_here(argc, argv);
    struct victim victim;
    if (!CHECK(victim_start(&victim, NULL, NULL))) {
        return checks_done();
    }
    CHECK(victim_ping(&victim));
    test_reading(&victim);
    test_reading(&victim); /* reading has not touched what was not touched */
    test_symbols(&victim);
    test_no_symbols(&victim);
    test_no_stop(&victim);
    test_group_stop(&victim);
    test_signals(&victim);
    test_reader_killed(&victim);
    test_thread_storm(&victim);
    test_refusals(&victim);
    test_other_user(&victim);
    test_traced_by_another(&victim);
    test_traced_by_us(&victim);
    test_deleted_program();
    test_page_of_zeros();
    test_fork_shares();
    test_first_thread_gone();
    test_killed_while_held();
    CHECK(victim_ping(&victim));
    victim_end(&victim);
    return checks_done();
}
