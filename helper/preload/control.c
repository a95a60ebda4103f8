#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "marks.h"
#include "preload.h"
#include "recorder.h"

/* On a page of its own, wherever pages are up to 64 KiB. */
struct karst_control karst_control __attribute__((aligned(65536)));
EXPORT extern struct karst_control karst_control_exported __asm__("karst_control")
    __attribute__((alias("karst_control_within")));
_Thread_local struct thread_state thread_state;

extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
extern char **environ;

enum progress { NOTHING, FOUND, SET_UP };

static uint32_t progress; /* enum progress */
static bool secure;       /* a setuid program: do nothing */

/* ---- the environment -------------------------------------------------------------------------------- */

static const char *variable(const char *name) {
    size_t length = strlen(name);
    for (char **entry = environ; entry && *entry; entry++) {
        if (strncmp(*entry, name, length) == 0 && (*entry)[length] == '=') {
            return *entry + length + 1;
        }
    }
    return NULL;
}

static void complain(const char *name, const char *text, const char *what) {
    char buffer[500];
    struct karst_line line = {buffer, sizeof buffer, 0};
    karst_line_add(&line, name);
    karst_line_add(&line, "=");
    karst_line_add(&line, text);
    karst_line_add(&line, ": ");
    karst_line_add(&line, what);
    system_say(buffer);
}

/* KARST_TRAP: traps, separated by semicolons. A wrong one is told of, the others are armed. */
static void take_traps(const char *text) {
    uint32_t used = 0;
    for (const char *at = text; *at;) {
        char one[256], error[300];
        size_t length = strcspn(at, ";");
        if (length >= sizeof one) {
            complain("KARST_TRAP", text, "a trap may have 255 characters");
            return;
        }
        memcpy(one, at, length);
        one[length] = '\0';
        at += length + (at[length] == ';');
        if (strspn(one, " \t") == length) {
            continue;
        }
        if (used == KARST_TRAPS) {
            complain("KARST_TRAP", one, "there is room for 16 traps");
            return;
        }
        struct karst_trap *trap = &karst_control.traps[used];
        if (karst_trap_parse(one, trap, error, sizeof error)) {
            trap->number = ++used;
        } else {
            memset(trap, 0, sizeof *trap);
            complain("KARST_TRAP", one, error);
        }
    }
}

static void take_action(const char *text) {
    for (uint32_t i = 0; i < KARST_ACTIONS; i++) {
        if (strcmp(text, karst_action_name(i)) == 0) {
            karst_control.action = i;
            return;
        }
    }
    complain("KARST_ACTION", text, "actions are log, stop, core and abort");
}

/* KARST_RECORDER: bytes of each thread's ring. */
static void take_recorder(const char *text) {
    const char *end = text;
    uint64_t bytes = 0;
    if (!karst_trap_parse_size(text, &bytes, &end) || *end || bytes > UINT64_C(1) << 40) {
        complain("KARST_RECORDER", text, "a size is wanted, like 1M: each thread keeps so much of its past");
        return;
    }
    karst_control.recorder_bytes = bytes;
    karst_control.wanted |= bytes ? KARST_GATE_RECORD : 0;
}

/* KARST_RECORDER_DIRECTORY: where rings are files. Programs change directory: it has to be absolute. */
static void take_directory(const char *text) {
    if (*text != '/' || strlen(text) >= sizeof karst_control.directory - 64) {
        complain("KARST_RECORDER_DIRECTORY", text, "an absolute path is wanted, of up to 191 characters");
        return;
    }
    memcpy(karst_control.directory, text, strlen(text) + 1);
}

/* KARST_STACKS: frames of each call. */
static void take_stacks(const char *text) {
    const char *end = text;
    uint64_t depth = 0;
    if (!karst_trap_parse_size(text, &depth, &end) || *end || depth > 64) {
        complain("KARST_STACKS", text, "a number of frames is wanted, up to 64");
        return;
    }
    karst_control.stack_depth = (uint32_t)depth;
}

static void take_environment(void) {
    const char *text;
    if ((text = variable("KARST_RECORDER_DIRECTORY")) && *text) {
        take_directory(text);
    }
    if ((text = variable("KARST_RECORDER"))) {
        take_recorder(text);
    }
    if ((text = variable("KARST_STACKS"))) {
        take_stacks(text);
    }
    if ((text = variable("KARST_MARK")) && strcmp(text, "1") == 0) {
        karst_control.wanted |= KARST_GATE_MARK;
    }
    if ((text = variable("KARST_TRAP"))) {
        take_traps(text);
    }
    if ((text = variable("KARST_ACTION"))) {
        take_action(text);
    }
}

/* ---- gates ----------------------------------------------------------------------------------------- */

/* What a trap needs besides itself. */
static void prepare_traps(void) {
    for (uint32_t i = 0; i < KARST_TRAPS; i++) {
        struct karst_trap *trap = &karst_control.traps[i];
        struct module module;
        if (trap->state != KARST_TRAP_ARMED) {
            continue;
        }
        if (trap->conditions & KARST_IF_EVENT) {
            karst_control.count_events = 1;
        }
        if (trap->conditions & KARST_IF_FAULT) {
            karst_control.wanted |= KARST_GATE_MARK;
        }
        trap->caller[sizeof trap->caller - 1] = '\0';
        if (trap->conditions & KARST_IF_CALLER && *trap->caller && module_named(trap->caller, &module)) {
            trap->caller_low = module.start;
            trap->caller_high = module.end;
        }
    }
}

/* The parts that are wanted and can be had; marks stay on once there are any: what is marked has to be taken
 * back as such. */
static uint32_t parts_on(void) {
    struct karst_control *control = &karst_control;
    uint32_t parts = control->wanted & (KARST_GATE_RECORD | KARST_GATE_MARK);
    if (control->map) {
        parts |= KARST_GATE_MARK;
    }
    if (parts & KARST_GATE_MARK) {
        marks_open();
    }
    if (parts & KARST_GATE_RECORD && !control->recorder_bytes) {
        control->recorder_bytes = UINT64_C(1) << 20;
    }
    if (parts && control->site_kind == KARST_SITE_STACK) {
        parts |= KARST_GATE_STACK;
    }
    return parts;
}

static void clear_changed(void) {
    for (uint32_t i = 0; i < KARST_GATES; i++) {
        __atomic_and_fetch(&karst_control.gates[i], ~(uint32_t)KARST_GATE_CHANGED, __ATOMIC_ACQ_REL);
    }
}

/* Works the gates out anew; again if they were changed meanwhile. Two threads that do so at a time come to
 * the same result. */
static void set_gates(void) {
    struct karst_control *control = &karst_control;
    bool changed = true;
    while (changed) {
        uint32_t gates[KARST_GATES];
        clear_changed();
        prepare_traps();
        uint32_t parts = parts_on();
        for (uint32_t i = 0; i < KARST_GATES; i++) {
            gates[i] = KARST_GATE_READY | parts | (control->count_events ? KARST_GATE_TRAP : 0);
        }
        traps_gates(gates);
        changed = false;
        for (uint32_t i = 0; i < KARST_GATES; i++) {
            uint32_t seen = __atomic_load_n(&control->gates[i], __ATOMIC_RELAXED);
            changed |= seen & KARST_GATE_CHANGED ||
                       !__atomic_compare_exchange_n(&control->gates[i], &seen, gates[i], false,
                                                    __ATOMIC_RELEASE, __ATOMIC_RELAXED);
        }
    }
    __atomic_add_fetch(&control->generation, 1, __ATOMIC_RELEASE);
}

/* ---- bringing up ------------------------------------------------------------------------------------ */

static void fill_header(void) {
    struct karst_control *control = &karst_control;
    control->version = KARST_ABI_VERSION;
    control->size = sizeof *control;
    control->self = (uint64_t)(uintptr_t)control;
    control->pid = (int32_t)system_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
    control->page_size = (uint32_t)getauxval(AT_PAGESZ);
    control->gates_offset = offsetof(struct karst_control, gates);
    control->gate_count = KARST_GATES;
    control->traps_offset = offsetof(struct karst_control, traps);
    control->trap_count = KARST_TRAPS;
    control->trap_bytes = sizeof(struct karst_trap);
    control->why_bytes = sizeof(struct karst_why);
    control->library_start = (uint64_t)(uintptr_t)__ehdr_start;
    control->library_end = (uint64_t)(uintptr_t)_end;
    control->trap_stop = (uint64_t)(uintptr_t)karst_trap_stop;
    control->trap_stop_end = (uint64_t)(uintptr_t)karst_trap_stop_end;
    system_name(control, sizeof *control);
    __atomic_store_n(&control->magic, KARST_ABI_MAGIC, __ATOMIC_RELEASE);
}

/* Two steps: the allocator behind us as soon as it is asked for, the environment once libc has it. */
void control_update(void) {
    uint32_t reached = __atomic_load_n(&progress, __ATOMIC_ACQUIRE);
    if (reached == NOTHING) {
        if (!next_find()) {
            system_say("no allocator was found behind libkarst-preload.so");
            system_call(SYS_exit_group, 127, 0, 0, 0, 0, 0);
        }
        secure = getauxval(AT_SECURE);
        fill_header();
        reached = FOUND;
        __atomic_store_n(&progress, FOUND, __ATOMIC_RELEASE);
    }
    if (reached == FOUND && environ && !secure) {
        uint32_t found = FOUND;
        if (__atomic_compare_exchange_n(&progress, &found, SET_UP, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED)) {
            take_environment();
            karst_control.marked_from = !!(karst_control.wanted & KARST_GATE_MARK);
        }
    }
    set_gates();
}

static void in_child(void) {
    thread_state.thread = 0;
    karst_control.pid = (int32_t)system_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
    karst_control.events = 0;
    marks_thread.next = 0; /* takes the thread's new id with the next piece */
    recorder_in_child();
}

/* What needs a libc that is up. Stacks are taken from here on: before, a call's site is not known in that
 * mode. */
static void begin_stacks(void) {
    if (karst_control.stack_depth && karst_control.wanted && !stacks_open()) {
        system_say("no memory for stacks: call sites are return addresses only");
    }
    set_gates();
}

static __attribute__((constructor)) void constructed(void) {
    control_update();
    if (!secure) {
        next_describe();
        karst_control.begin_stacks = (uint64_t)(uintptr_t)begin_stacks;
        begin_stacks();
        pthread_atfork(NULL, NULL, in_child);
    }
}
