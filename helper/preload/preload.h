/* The preload library, inside. It lives in other people's programs: nothing here allocates, takes a lock that
 * a thread could be stopped in, changes errno, or calls into libc but for what can't block or allocate.
 * Everything visible outside is in karst-abi.h; only the allocator's functions, prctl (clock.c),
 * karst_control and karst_trap_stop are exported. */
#ifndef KARST_PRELOAD_PRELOAD_H
#define KARST_PRELOAD_PRELOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "karst-abi.h"
#include "trap_spec.h"

#define LIKELY(condition)   __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
/* The compiler no longer knows what the variable is worth, and so works out anew what follows from it:
 * cheaper than to keep that over a call. */
#define FORGET(variable) __asm__("" : "+r"(variable))
#define COLD             __attribute__((noinline, cold))
#define EXPORT           __attribute__((visibility("default")))

/* The marker. For the library itself it is hidden, so that its fields are addressed directly; control.c
 * exports it under the name that it has in C. */
extern struct karst_control karst_control __asm__("karst_control_within")
    __attribute__((visibility("hidden")));
/* Holds the trap instruction. At the stop its argument is in the first argument register. */
EXPORT void karst_trap_stop(const struct karst_why *why);
extern const char karst_trap_stop_end[] __attribute__((visibility("hidden")));

static inline uint32_t gate_of(enum karst_function function) {
    return __atomic_load_n(&karst_control.gates[function], __ATOMIC_RELAXED);
}

/* ---- the allocator behind us, next.c ---------------------------------------------------------------- */

struct next_functions {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void *(*reallocarray)(void *, size_t, size_t);
    void *(*memalign)(size_t, size_t);
    int (*posix_memalign)(void **, size_t, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    void *(*valloc)(size_t);
    void *(*pvalloc)(size_t);
    void (*free)(void *);
    size_t (*malloc_usable_size)(void *);
    /* C++'s operators; NULL where there are none. */
    void *(*new)(size_t);
    void *(*new_array)(size_t);
    void *(*new_nothrow)(size_t, const void *);
    void *(*new_array_nothrow)(size_t, const void *);
    void *(*new_aligned)(size_t, size_t);
    void *(*new_array_aligned)(size_t, size_t);
    void *(*new_aligned_nothrow)(size_t, size_t, const void *);
    void *(*new_array_aligned_nothrow)(size_t, size_t, const void *);
    void (*delete)(void *);
    void (*delete_array)(void *);
    void (*delete_nothrow)(void *, const void *);
    void (*delete_array_nothrow)(void *, const void *);
    void (*delete_sized)(void *, size_t);
    void (*delete_array_sized)(void *, size_t);
    void (*delete_aligned)(void *, size_t);
    void (*delete_array_aligned)(void *, size_t);
    void (*delete_sized_aligned)(void *, size_t, size_t);
    void (*delete_array_sized_aligned)(void *, size_t, size_t);
    void (*delete_aligned_nothrow)(void *, size_t, const void *);
    void (*delete_array_aligned_nothrow)(void *, size_t, const void *);
};

/* What C++'s operators behind us are. */
enum operators {
    OPERATORS_NONE,   /* not looked for yet, or not there */
    OPERATORS_MALLOC, /* the C++ library's own, or the allocator's: malloc and free do in their place */
    OPERATORS_FOREIGN /* somebody else's, maybe with a pool of their own: what they ask malloc for is seen
                         there */
};

extern struct next_functions next __attribute__((visibility("hidden")));
extern enum operators next_operators __attribute__((visibility("hidden")));
/* realloc(block, 0) frees the block and gives none. */
extern bool next_frees_at_zero __attribute__((visibility("hidden")));

/* Finds the functions behind us; safe before libc is initialized. False: there is no malloc. */
bool next_find(void);
/* Finds C++'s operators if they were not there before; called before each use of one that is NULL. */
void next_find_operators(void);
/* Fills what the marker says of the allocator; may call into it. */
void next_describe(void);

/* ---- modules, modules.c: ELF files as loaded, read without libc's help ------------------------------ */

struct module {
    const char *path; /* "" for the program itself */
    uint64_t bias;
    uint64_t start, end; /* as mapped */
    const void *dynamic;
    const uint8_t *build_id; /* NULL: none */
    uint32_t build_id_bytes;
};

/* The module that address is in. False: none. */
bool module_at(uint64_t address, struct module *module);
/* The first module whose path ends in name. */
bool module_named(const char *name, struct module *module);
/* The first function of that name in load order that is not ours, and where it is; NULL: none. */
void *module_find(const char *name, struct module *module);
/* A function that module itself exports; NULL: none. */
void *module_export(const struct module *module, const char *name);
/* A module's writable data, as far as its file has it. False: none. */
bool module_data(const struct module *module, uint64_t *start, uint64_t *end);
/* " (name+0x12 in libfoo.so)" for a code address, as well as exported symbols tell. */
void module_symbolize(struct karst_line *line, uint64_t address);

/* ---- roots, roots.c ---------------------------------------------------------------------------------- */

/* Fills the marker's roots with what can be learned of the allocator, which is module; its name is there. */
void roots_learn(const struct module *module);

/* ---- the system, system.c: raw calls, errno untouched ------------------------------------------------ */

long system_call(long number, long a, long b, long c, long d, long e, long f);
int32_t system_thread(void);
/* Zeroed private memory, with the kernel's name "karst" where it has names; NULL: none. */
void *system_map(size_t bytes);
/* Gives memory the kernel's name "karst". */
void system_name(void *memory, size_t bytes);
void system_unmap(void *memory, size_t bytes);
/* Signals as they were before system_hold_signals(). */
struct signals_held {
    uint64_t mask, pending;
};

#define SIGNAL_BIT(number) (UINT64_C(1) << ((number)-1))

/* The calling thread takes none of the signals in set until it releases them. raised: those that what it did
 * meanwhile has sent it, which the program never gets. */
void system_hold_signals(struct signals_held *held, uint64_t set);
void system_release_signals(const struct signals_held *held, uint64_t raised);
/* One line on standard error, "karst: ..." */
void system_say(const char *text);
/* Reads up to size bytes of a file; -1: can't. */
long system_read_file(const char *path, void *buffer, size_t size);
/* The path of the program's file; "" where it can't be had. */
void system_program(char *path, size_t size);
/* A debugger that takes a SIGTRAP is attached. */
bool system_debugged(void);
/* Copies memory that may not be there; false: it is not. */
bool system_peek(uint64_t address, void *buffer, size_t size);
uint64_t system_clock_ns(void); /* since 1970 */

/* ---- the control block, control.c -------------------------------------------------------------------- */

/* Brings everything up as far as it can be by now, and takes in changes of the control block. Any number of
 * times, from any thread. */
void control_update(void);

/* ---- one call ---------------------------------------------------------------------------------------- */

/* What the program asked for. */
struct call {
    enum karst_function function;
    uint64_t size; /* in all */
    uint64_t alignment;
    uint64_t old_address;
    uint64_t caller, stack;
    uint64_t site;    /* what stands for the caller in records and footers */
    uint64_t address; /* returned */
    uint64_t event;
};

/* ---- traps, traps.c ---------------------------------------------------------------------------------- */

/* Works out gates and size ranges from the traps; gates has KARST_GATES of them. */
void traps_gates(uint32_t *gates);
/* True: some armed trap wants to know whether the heap grew. */
bool traps_want_growth(void);
/* Holds a call against all traps: those that fire before it, those that fire after. grown: bytes. */
void traps_before(struct call *call);
void traps_after(struct call *call, uint64_t grown);
/* A fault was found at call; why has fault, block and sites filled. */
void traps_fault(const struct call *call, struct karst_why *why);

/* ---- growth, growth.c: what the allocator has from the system ---------------------------------------- */

/* A figure that rises when the process obtains memory; taken before and after a call. */
uint64_t growth_now(void);

/* ---- call sites, stacks.c ------------------------------------------------------------------------------ */

/* Prepares the table of stacks; false: no memory. */
bool stacks_open(void);
/* The number of the stack of this call, which was made at caller; see karst_stack. */
uint64_t stacks_site(uint64_t caller);
/* The return address that a site begins with, which may come out of damaged memory; 0: unknown. */
uint64_t stacks_caller(uint64_t site);

struct thread_state {
    int32_t thread; /* id; 0: not asked for yet */
};
extern _Thread_local struct thread_state thread_state
    __attribute__((visibility("hidden"), tls_model("initial-exec")));

/* The calling thread's id. */
static inline int32_t thread_id(void) {
    if (UNLIKELY(!thread_state.thread)) {
        thread_state.thread = system_thread();
    }
    return thread_state.thread;
}

#endif
