#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "preload.h"

/* ---- gates ----------------------------------------------------------------------------------------- */

/* A trap on sizes alone is looked for by a compare; these conditions come on top of it. */
#define NEEDS_SIZE (KARST_IF_SIZE | KARST_IF_SIZES)

/* The sizes a trap can fire for, as one range. False: any. */
static bool size_range(const struct karst_trap *trap, uint64_t *low, uint64_t *high) {
    if (trap->conditions & KARST_IF_SIZE) {
        *low = trap->size_low;
        *high = trap->size_high;
        return true;
    }
    *low = UINT64_MAX;
    *high = 0;
    for (uint32_t i = 0; trap->conditions & KARST_IF_SIZES && i < trap->size_count && i < KARST_TRAP_SIZES;
         i++) {
        *low = trap->sizes[i] < *low ? trap->sizes[i] : *low;
        *high = trap->sizes[i] > *high ? trap->sizes[i] : *high;
    }
    return *low <= *high;
}

static uint32_t trap_state(const struct karst_trap *trap) {
    return __atomic_load_n(&trap->state, __ATOMIC_ACQUIRE);
}

void traps_gates(uint32_t *gates) {
    struct karst_control *control = &karst_control;
    uint64_t lows[KARST_GATES], highs[KARST_GATES];
    for (uint32_t i = 0; i < KARST_GATES; i++) {
        lows[i] = UINT64_MAX;
        highs[i] = 0;
    }
    for (uint32_t i = 0; i < KARST_TRAPS; i++) {
        const struct karst_trap *trap = &control->traps[i];
        if (trap_state(trap) != KARST_TRAP_ARMED || trap->conditions & KARST_IF_FAULT) {
            continue; /* marks find faults */
        }
        uint64_t low, high;
        bool sized = size_range(trap, &low, &high);
        for (uint32_t function = 0; function < KARST_FUNCTIONS; function++) {
            if (!(trap->functions & 1u << function)) {
                continue;
            }
            gates[function] |= sized ? KARST_GATE_SIZE : KARST_GATE_TRAP;
            if (sized) {
                lows[function] = low < lows[function] ? low : lows[function];
                highs[function] = high > highs[function] ? high : highs[function];
            }
        }
    }
    for (uint32_t i = 0; i < KARST_GATES; i++) {
        __atomic_store_n(&control->size_low[i], lows[i], __ATOMIC_RELAXED);
        __atomic_store_n(&control->size_span[i], highs[i] - lows[i], __ATOMIC_RELEASE);
    }
}

bool traps_want_growth(void) {
    for (uint32_t i = 0; i < KARST_TRAPS; i++) {
        const struct karst_trap *trap = &karst_control.traps[i];
        if (trap_state(trap) == KARST_TRAP_ARMED && trap->conditions & KARST_IF_GROWTH) {
            return true;
        }
    }
    return false;
}

/* ---- matching -------------------------------------------------------------------------------------- */

static bool size_matches(const struct karst_trap *trap, uint64_t size) {
    if (trap->conditions & KARST_IF_SIZE && (size < trap->size_low || size > trap->size_high)) {
        return false;
    }
    if (!(trap->conditions & KARST_IF_SIZES)) {
        return true;
    }
    for (uint32_t i = 0; i < trap->size_count && i < KARST_TRAP_SIZES; i++) {
        if (trap->sizes[i] == size) {
            return true;
        }
    }
    return false;
}

static bool address_matches(const struct karst_trap *trap, const struct call *call) {
    uint64_t low = trap->address_low, high = trap->address_high;
    if (!(trap->conditions & (KARST_IF_RETURNED | KARST_IF_FREED))) {
        return true;
    }
    return (trap->conditions & KARST_IF_RETURNED && call->address && call->address >= low &&
            call->address <= high) ||
           (trap->conditions & KARST_IF_FREED && call->old_address && call->old_address >= low &&
            call->old_address <= high);
}

static bool matches(const struct karst_trap *trap, const struct call *call, uint64_t grown) {
    return trap->functions & 1u << call->function && size_matches(trap, call->size) &&
           address_matches(trap, call) &&
           (!(trap->conditions & KARST_IF_THREAD) || trap->thread == thread_id()) &&
           (!(trap->conditions & KARST_IF_CALLER) ||
            (call->caller >= trap->caller_low && call->caller < trap->caller_high)) &&
           (!(trap->conditions & KARST_IF_EVENT) || trap->event == call->event) &&
           (!(trap->conditions & KARST_IF_GROWTH) || grown);
}

/* Frees fire before the block is gone, and so do traps that only ask what is handed to realloc. */
static bool fires_before(const struct karst_trap *trap, const struct call *call) {
    bool freed_only = (trap->conditions & (KARST_IF_FREED | KARST_IF_RETURNED)) == KARST_IF_FREED;
    return trap->before || 1u << call->function & KARST_FREEING || freed_only;
}

/* ---- firing ---------------------------------------------------------------------------------------- */

/* On aarch64 brk leaves the program counter where it is; debuggers know its number 0xf000 as theirs and step
 * over. */
#if defined(__x86_64__)
#define TRAP_INSTRUCTION "int3"
#elif defined(__aarch64__)
#define TRAP_INSTRUCTION "brk #0xf000"
#else
#error "no trap instruction for this machine"
#endif

__asm__(".text\n"
        ".globl karst_trap_stop\n"
        ".type karst_trap_stop, @function\n"
        ".balign 16\n"
        "karst_trap_stop:\n"
        ".cfi_startproc\n"
        "    " TRAP_INSTRUCTION "\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size karst_trap_stop, . - karst_trap_stop\n"
        ".globl karst_trap_stop_end\n"
        ".hidden karst_trap_stop_end\n"
        "karst_trap_stop_end:\n");

static void send_signal(int number) {
    long pid = system_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
    system_call(SYS_tgkill, pid, system_thread(), number, 0, 0, 0);
}

/* Ends this process with a core of it, whatever the program does with SIGABRT. */
static _Noreturn void die(void) {
    struct {
        void (*handler)(int);
        unsigned long flags;
        void (*restorer)(void);
        unsigned long mask;
    } action = {NULL, 0, NULL, 0};
    uint64_t set = UINT64_C(1) << (SIGABRT - 1);
    system_call(SYS_rt_sigaction, SIGABRT, (long)&action, 0, sizeof action.mask, 0, 0);
    system_call(SYS_rt_sigprocmask, SIG_UNBLOCK, (long)&set, 0, sizeof set, 0, 0);
    for (;;) {
        send_signal(SIGABRT);
        system_call(SYS_exit_group, 134, 0, 0, 0, 0, 0);
    }
}

/* A forked copy, which has this thread only and all the memory, dies for the core. Without SIGCHLD, so that
 * the program's own children are not mixed up with it. */
static void write_core(void) {
    struct rlimit limit = {0, 0};
    system_call(SYS_prlimit64, 0, RLIMIT_CORE, 0, (long)&limit, 0, 0);
    if (limit.rlim_max == 0) {
        system_say("no core: the limit is 0 (ulimit -c)");
        return;
    }
    long child = system_call(SYS_clone, 0, 0, 0, 0, 0, 0);
    if (child == 0) {
        limit.rlim_cur = limit.rlim_max;
        system_call(SYS_prlimit64, 0, RLIMIT_CORE, (long)&limit, 0, 0, 0);
        die();
    }
    if (child < 0) {
        system_say("no core: the process could not be forked");
        return;
    }
    int status = 0;
    while (system_call(SYS_wait4, child, (long)&status, __WALL, 0, 0, 0) == -4) {
    }
    char text[80];
    struct karst_line line = {text, sizeof text, 0};
    karst_line_add(&line, WCOREDUMP(status) ? "core written, of a copy with process id "
                                            : "no core was written, of a copy with process id ");
    karst_line_add_number(&line, (uint64_t)child);
    system_say(text);
}

/* Lines a process may fill its standard error with. */
#define LINES_MAX 1000

static void say_why(const struct karst_why *why, const struct karst_trap *trap) {
    static uint32_t lines;
    uint32_t number = __atomic_add_fetch(&lines, 1, __ATOMIC_RELAXED);
    if (number > LINES_MAX) {
        if (number == LINES_MAX + 1) {
            system_say("1000 lines were written; there will be no more, traps count on");
        }
        return;
    }
    char text[900];
    struct karst_line line = {text, sizeof text, 0};
    if (trap) {
        karst_line_add(&line, "trap ");
        karst_line_add_number(&line, trap->number);
        karst_line_add(&line, ": ");
    }
    karst_why_describe(why, &line, module_symbolize);
    system_say(text);
}

static void stop_here(void) {
    char text[100];
    struct karst_line line = {text, sizeof text, 0};
    karst_line_add(&line, "stopped for a debugger: gdb -p ");
    karst_line_add_number(&line, (uint64_t)system_call(SYS_getpid, 0, 0, 0, 0, 0, 0));
    karst_line_add(&line, ", or kill -CONT to go on");
    system_say(text);
    send_signal(SIGSTOP);
}

static void act(const struct karst_why *why, const struct karst_trap *trap) {
    if (system_debugged()) {
        karst_trap_stop(why);
        return;
    }
    uint32_t action = trap && trap->action ? trap->action : karst_control.action;
    say_why(why, trap);
    if (action == KARST_ACTION_STOP) {
        stop_here();
    } else if (action == KARST_ACTION_CORE) {
        write_core();
    } else if (action == KARST_ACTION_ABORT) {
        die();
    }
}

/* Counts a hit. True: the trap fires. */
static bool count_hit(struct karst_trap *trap, uint64_t *hits) {
    *hits = __atomic_add_fetch(&trap->hits, 1, __ATOMIC_RELAXED);
    if (*hits <= trap->skip) {
        return false;
    }
    uint64_t fired = __atomic_add_fetch(&trap->fired, 1, __ATOMIC_RELAXED);
    if (trap->count && fired >= trap->count) {
        uint32_t armed = KARST_TRAP_ARMED;
        __atomic_compare_exchange_n(&trap->state, &armed, KARST_TRAP_SPENT, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED);
        for (uint32_t i = 0; i < KARST_GATES; i++) {
            __atomic_or_fetch(&karst_control.gates[i], KARST_GATE_CHANGED, __ATOMIC_RELAXED);
        }
        return fired == trap->count;
    }
    return true;
}

static void fill_why(struct karst_why *why, const struct call *call) {
    why->magic = KARST_WHY_MAGIC;
    why->size_of = sizeof *why;
    why->trap = KARST_WHY_NO_TRAP;
    why->function = call->function;
    why->thread = thread_id();
    why->size = call->size;
    why->address = call->address;
    why->old_address = call->old_address;
    why->alignment = call->alignment;
    why->event = call->event;
    why->caller = call->caller;
    why->stack = call->stack;
}

static COLD void fire(struct karst_trap *trap, const struct call *call, bool before, uint64_t grown) {
    struct karst_why why = {0};
    if (!count_hit(trap, &why.hits)) {
        return;
    }
    fill_why(&why, call);
    why.trap = (uint32_t)(trap - karst_control.traps);
    why.before = before;
    why.grown = grown;
    act(&why, trap);
}

static void hold_against_all(const struct call *call, bool before, uint64_t grown) {
    for (uint32_t i = 0; i < KARST_TRAPS; i++) {
        struct karst_trap *trap = &karst_control.traps[i];
        if (trap_state(trap) == KARST_TRAP_ARMED && !(trap->conditions & KARST_IF_FAULT) &&
            fires_before(trap, call) == before && matches(trap, call, grown)) {
            fire(trap, call, before, grown);
        }
    }
}

void traps_before(struct call *call) {
    if (karst_control.count_events) {
        call->event = __atomic_add_fetch(&karst_control.events, 1, __ATOMIC_RELAXED);
    }
    hold_against_all(call, true, 0);
}

void traps_after(struct call *call, uint64_t grown) {
    hold_against_all(call, false, grown);
}

void traps_fault(const struct call *call, struct karst_why *why) {
    fill_why(why, call);
    why->before = 1;
    bool asked = false;
    for (uint32_t i = 0; i < KARST_TRAPS; i++) {
        struct karst_trap *trap = &karst_control.traps[i];
        if (trap_state(trap) == KARST_TRAP_ARMED && trap->conditions & KARST_IF_FAULT &&
            trap->faults & 1u << why->fault && matches(trap, call, 1)) {
            asked = true;
            if (count_hit(trap, &why->hits)) {
                why->trap = i;
                act(why, trap);
            }
        }
    }
    if (!asked) {
        why->trap = KARST_WHY_NO_TRAP;
        why->hits = 1;
        act(why, NULL);
    }
}
