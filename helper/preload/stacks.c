#include <execinfo.h>
#include <string.h>

#include "preload.h"

/* Stacks of calls, each kept once: a table that only grows, and an index by hash. Nothing is moved or taken
 * out, so no lock is needed. */
#define TABLE_BYTES (UINT64_C(512) << 20) /* of address space; used is what is written */
#define INDEX_SLOTS (UINT64_C(1) << 21)
#define PROBES_MAX  64u
#define DEPTH_MAX   64u
#define OWN_FRAMES  8u /* of the library above the caller's, at most */

static uint32_t *index_slots; /* offset in the table / 8; 0: empty */
static struct module unwinder;
static _Thread_local bool unwinding __attribute__((tls_model("initial-exec")));

bool stacks_open(void) {
    struct karst_control *control = &karst_control;
    void *frames[2];
    if (control->sites) {
        return true;
    }
    /* libc loads the unwinder at the first use, which allocates: better now than in the middle of a malloc.
     */
    backtrace(frames, 2);
    module_named("libgcc_s.so.1", &unwinder);
    uint32_t *slots = system_map(INDEX_SLOTS * sizeof *slots);
    void *table = system_map(TABLE_BYTES);
    if (!slots || !table) {
        return false;
    }
    index_slots = slots;
    control->sites_bytes = TABLE_BYTES;
    control->sites_used = 8; /* 0 means unknown */
    __atomic_store_n(&control->sites, (uint64_t)(uintptr_t)table, __ATOMIC_RELEASE);
    control->site_kind = KARST_SITE_STACK;
    return true;
}

uint64_t stacks_caller(uint64_t site) {
    const struct karst_control *control = &karst_control;
    uint64_t offset = (site & ~KARST_SITE_STACK_BIT) * 8;
    if (control->site_kind != KARST_SITE_STACK || !(site & KARST_SITE_STACK_BIT)) {
        return site;
    }
    const struct karst_stack *stack = (const struct karst_stack *)(uintptr_t)(control->sites + offset);
    return offset && offset < TABLE_BYTES - sizeof *stack - sizeof *stack->frames && stack->depth
               ? stack->frames[0]
               : 0;
}

static uint32_t hash_frames(const uint64_t *frames, uint32_t depth) {
    uint64_t hash = depth;
    for (uint32_t i = 0; i < depth; i++) {
        hash = (hash ^ frames[i]) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return (uint32_t)(hash >> 32 | 1);
}

static struct karst_stack *stack_at(uint64_t number) {
    return (struct karst_stack *)(uintptr_t)(karst_control.sites + number * 8);
}

static bool is_stack(uint64_t number, uint32_t hash, const uint64_t *frames, uint32_t depth) {
    const struct karst_stack *stack = stack_at(number);
    return stack->hash == hash && stack->depth == depth &&
           memcmp(stack->frames, frames, depth * sizeof *frames) == 0;
}

/* A new entry; 0: the table is full. */
static uint64_t add_stack(uint32_t hash, const uint64_t *frames, uint32_t depth) {
    uint64_t bytes = sizeof(struct karst_stack) + depth * sizeof *frames;
    uint64_t offset = __atomic_fetch_add(&karst_control.sites_used, bytes, __ATOMIC_RELAXED);
    if (offset + bytes > TABLE_BYTES) {
        __atomic_fetch_sub(&karst_control.sites_used, bytes, __ATOMIC_RELAXED);
        return 0;
    }
    struct karst_stack *stack = stack_at(offset / 8);
    memcpy(stack->frames, frames, depth * sizeof *frames);
    stack->depth = depth;
    stack->hash = hash;
    return offset / 8;
}

static uint64_t intern(const uint64_t *frames, uint32_t depth) {
    uint32_t hash = hash_frames(frames, depth);
    uint64_t added = 0;
    for (uint32_t probe = 0; probe < PROBES_MAX; probe++) {
        uint32_t *slot = &index_slots[(hash + probe) % INDEX_SLOTS];
        uint32_t number = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
        if (!number) {
            added = added ? added : add_stack(hash, frames, depth);
            if (!added) {
                break;
            }
            if (__atomic_compare_exchange_n(slot, &number, (uint32_t)added, false, __ATOMIC_RELEASE,
                                            __ATOMIC_ACQUIRE)) {
                return added;
            }
        }
        if (is_stack(number, hash, frames, depth)) {
            return number;
        }
    }
    __atomic_fetch_add(&karst_control.site_drops, 1, __ATOMIC_RELAXED);
    return 0;
}

/* The library's own frames come first; the caller's is the first that counts. Where the unwinder does not
 * come by it (code without unwind tables), it is all that is known. */
uint64_t stacks_site(uint64_t caller) {
    void *found[DEPTH_MAX + OWN_FRAMES];
    uint64_t frames[DEPTH_MAX];
    uint32_t depth = karst_control.stack_depth < DEPTH_MAX ? karst_control.stack_depth : DEPTH_MAX, kept = 0;
    int count = 0;
    if (caller - unwinder.start < unwinder.end - unwinder.start) {
        return caller; /* it holds its lock, of code that was registered at run time, over such calls */
    }
    if (!unwinding) {
        unwinding = true;
        count = backtrace(found, (int)(depth + OWN_FRAMES));
        unwinding = false;
    }
    int first = 0;
    while (first < count && (uint64_t)(uintptr_t)found[first] != caller) {
        first++;
    }
    for (int i = first; i < count && kept < depth; i++) {
        frames[kept++] = (uint64_t)(uintptr_t)found[i];
    }
    if (kept == 0) {
        frames[kept++] = caller;
    }
    uint64_t number = intern(frames, kept);
    return number ? number | KARST_SITE_STACK_BIT : caller;
}
