#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <unistd.h>

#include "preload.h"

/* The functions that programs call. Each is a load, a branch and a jump while its gate says that nothing is
 * wanted; the long way begins in a function of its own, which is jumped to, so that the way past it needs no
 * stack frame and the caller's return address and stack pointer are still where they were. */

/* How the allocator behind us is asked. */
enum way {
    BY_MALLOC,
    BY_CALLOC,
    BY_MEMALIGN,
    BY_ALIGNED_ALLOC,
    BY_VALLOC,
    BY_PVALLOC,
    BY_NEW,
    BY_NEW_ARRAY,
    BY_NEW_ALIGNED,
    BY_NEW_ARRAY_ALIGNED,
    BY_FREE,
    BY_DELETE,
    BY_DELETE_ARRAY,
    BY_DELETE_ALIGNED,
    BY_DELETE_ARRAY_ALIGNED
};

static inline __attribute__((always_inline)) void *ask(enum way way, size_t size, size_t alignment) {
    switch (way) {
    case BY_CALLOC:
        return next.calloc(1, size);
    case BY_MEMALIGN:
        return next.memalign(alignment, size);
    case BY_ALIGNED_ALLOC:
        return next.aligned_alloc(alignment, size);
    case BY_VALLOC:
        return next.valloc(size);
    case BY_PVALLOC:
        return next.pvalloc(size);
    case BY_NEW:
        return next.new(size);
    case BY_NEW_ARRAY:
        return next.new_array(size);
    case BY_NEW_ALIGNED:
        return next.new_aligned(size, alignment);
    case BY_NEW_ARRAY_ALIGNED:
        return next.new_array_aligned(size, alignment);
    default:
        return next.malloc(size);
    }
}

static inline __attribute__((always_inline)) void give_back(enum way way, void *block, size_t alignment) {
    switch (way) {
    case BY_DELETE:
        next.delete(block);
        break;
    case BY_DELETE_ARRAY:
        next.delete_array(block);
        break;
    case BY_DELETE_ALIGNED:
        next.delete_aligned(block, alignment);
        break;
    case BY_DELETE_ARRAY_ALIGNED:
        next.delete_array_aligned(block, alignment);
        break;
    default:
        next.free(block);
        break;
    }
}

/* ---- the long way ----------------------------------------------------------------------------------- */

static void *ask_any(enum way way, size_t size, size_t alignment) {
    return ask(way, size, alignment);
}

static void give_back_any(enum way way, void *block, size_t alignment) {
    give_back(way, block, alignment);
}

/* Takes in changes first; returns the gate as it is then. */
static uint32_t current_gate(enum karst_function function) {
    uint32_t gate = gate_of(function);
    if (gate & KARST_GATE_CHANGED || !(gate & KARST_GATE_READY)) {
        control_update();
        gate = gate_of(function);
    }
    return gate;
}

static bool size_passes(enum karst_function function, uint64_t size) {
    const struct karst_control *control = &karst_control;
    return size - __atomic_load_n(&control->size_low[function], __ATOMIC_RELAXED) <=
           __atomic_load_n(&control->size_span[function], __ATOMIC_RELAXED);
}

static bool traps_concern(uint32_t gate, const struct call *call) {
    return gate & KARST_GATE_TRAP || (gate & KARST_GATE_SIZE && size_passes(call->function, call->size));
}

/* Around the allocator's own work. errno is the program's: a call that succeeds leaves it alone. */
struct around {
    bool trapped, growth;
    uint64_t system_before;
    int saved_errno;
};

static void begin(struct around *around, struct call *call, uint32_t gate) {
    around->saved_errno = errno;
    around->trapped = traps_concern(gate, call);
    if (around->trapped) {
        traps_before(call);
        around->growth = traps_want_growth();
        around->system_before = around->growth ? growth_now() : 0;
    }
    errno = around->saved_errno;
}

static void end(struct around *around, struct call *call, const void *address) {
    call->address = (uint64_t)(uintptr_t)address;
    if (around->trapped) {
        int saved = errno;
        uint64_t now = around->growth ? growth_now() : 0;
        traps_after(call, now > around->system_before ? now - around->system_before : 0);
        errno = saved;
    }
}

static COLD void *allocate_slow(enum way way, struct call *call) {
    struct around around = {0};
    uint32_t gate = current_gate(call->function);
    begin(&around, call, gate);
    void *block = ask_any(way, call->size, call->alignment);
    end(&around, call, block);
    return block;
}

static COLD void free_slow(enum way way, struct call *call) {
    struct around around = {0};
    uint32_t gate = current_gate(call->function);
    begin(&around, call, gate);
    give_back_any(way, (void *)(uintptr_t)call->old_address, call->alignment);
}

static COLD void *move_slow(struct call *call) {
    struct around around = {0};
    uint32_t gate = current_gate(call->function);
    begin(&around, call, gate);
    void *block = next.realloc((void *)(uintptr_t)call->old_address, call->size);
    end(&around, call, block);
    return block;
}

/* Of the function that this is expanded in, which was jumped to. */
#define CALLER ((uint64_t)(uintptr_t)__builtin_return_address(0))
#define STACK  ((uint64_t)(uintptr_t)__builtin_frame_address(0) + 2 * sizeof(void *))

/* True: a trap on sizes is all there is, and this size is none of them. */
static inline __attribute__((always_inline)) bool only_other_sizes(enum karst_function function,
                                                                   uint32_t gate, size_t size) {
    return gate == (KARST_GATE_READY | KARST_GATE_SIZE) && !size_passes(function, size);
}

/* ---- malloc and its kin ------------------------------------------------------------------------------ */

#define GATED __attribute__((noinline))

static COLD void *malloc_slow(size_t size) {
    struct call call = {.function = KARST_MALLOC, .size = size, .caller = CALLER, .stack = STACK};
    return allocate_slow(BY_MALLOC, &call);
}

static GATED void *malloc_gated(size_t size, uint32_t gate) {
    if (only_other_sizes(KARST_MALLOC, gate, size)) {
        return next.malloc(size);
    }
    return malloc_slow(size);
}

EXPORT void *malloc(size_t size) {
    uint32_t gate = gate_of(KARST_MALLOC);
    return LIKELY(gate == KARST_GATE_READY) ? next.malloc(size) : malloc_gated(size, gate);
}

static COLD void *calloc_slow(size_t count, size_t each) {
    struct call call = {.function = KARST_CALLOC, .caller = CALLER, .stack = STACK};
    if (__builtin_mul_overflow(count, each, &call.size)) {
        current_gate(KARST_CALLOC);
        return next.calloc(count, each); /* which refuses */
    }
    return allocate_slow(BY_CALLOC, &call);
}

static GATED void *calloc_gated(size_t count, size_t each, uint32_t gate) {
    size_t size;
    if (!__builtin_mul_overflow(count, each, &size) && only_other_sizes(KARST_CALLOC, gate, size)) {
        return next.calloc(count, each);
    }
    return calloc_slow(count, each);
}

EXPORT void *calloc(size_t count, size_t each) {
    uint32_t gate = gate_of(KARST_CALLOC);
    return LIKELY(gate == KARST_GATE_READY) ? next.calloc(count, each) : calloc_gated(count, each, gate);
}

static COLD void *realloc_slow(void *old, size_t size) {
    struct call call = {.function = KARST_REALLOC,
                        .size = size,
                        .old_address = (uint64_t)(uintptr_t)old,
                        .caller = CALLER,
                        .stack = STACK};
    return move_slow(&call);
}

static GATED void *realloc_gated(void *old, size_t size, uint32_t gate) {
    if (only_other_sizes(KARST_REALLOC, gate, size)) {
        return next.realloc(old, size);
    }
    return realloc_slow(old, size);
}

EXPORT void *realloc(void *old, size_t size) {
    uint32_t gate = gate_of(KARST_REALLOC);
    return LIKELY(gate == KARST_GATE_READY) ? next.realloc(old, size) : realloc_gated(old, size, gate);
}

static COLD void *reallocarray_slow(void *old, size_t count, size_t each) {
    struct call call = {.function = KARST_REALLOCARRAY,
                        .old_address = (uint64_t)(uintptr_t)old,
                        .caller = CALLER,
                        .stack = STACK};
    if (__builtin_mul_overflow(count, each, &call.size)) {
        current_gate(KARST_REALLOCARRAY);
        errno = ENOMEM;
        return NULL;
    }
    return move_slow(&call);
}

/* glibc's reallocarray() calls its own realloc; here that is ours, which must not see the call a second time.
 */
EXPORT void *reallocarray(void *old, size_t count, size_t each) {
    uint32_t gate = gate_of(KARST_REALLOCARRAY);
    if (LIKELY(gate == KARST_GATE_READY)) {
        return next.reallocarray(old, count, each);
    }
    return reallocarray_slow(old, count, each);
}

static COLD void free_slow_way(void *block) {
    struct call call = {
        .function = KARST_FREE, .old_address = (uint64_t)(uintptr_t)block, .caller = CALLER, .stack = STACK};
    free_slow(BY_FREE, &call);
}

EXPORT void free(void *block) {
    if (LIKELY(gate_of(KARST_FREE) == KARST_GATE_READY)) {
        next.free(block);
        return;
    }
    free_slow_way(block);
}

static COLD void *memalign_slow(size_t alignment, size_t size) {
    struct call call = {
        .function = KARST_MEMALIGN, .size = size, .alignment = alignment, .caller = CALLER, .stack = STACK};
    return allocate_slow(BY_MEMALIGN, &call);
}

EXPORT void *memalign(size_t alignment, size_t size) {
    uint32_t gate = gate_of(KARST_MEMALIGN);
    if (LIKELY(gate == KARST_GATE_READY) || only_other_sizes(KARST_MEMALIGN, gate, size)) {
        return next.memalign(alignment, size);
    }
    return memalign_slow(alignment, size);
}

static COLD void *aligned_alloc_slow(size_t alignment, size_t size) {
    struct call call = {.function = KARST_ALIGNED_ALLOC,
                        .size = size,
                        .alignment = alignment,
                        .caller = CALLER,
                        .stack = STACK};
    return allocate_slow(BY_ALIGNED_ALLOC, &call);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size) {
    uint32_t gate = gate_of(KARST_ALIGNED_ALLOC);
    if (LIKELY(gate == KARST_GATE_READY) || only_other_sizes(KARST_ALIGNED_ALLOC, gate, size)) {
        return next.aligned_alloc(alignment, size);
    }
    return aligned_alloc_slow(alignment, size);
}

static COLD int posix_memalign_slow(void **block, size_t alignment, size_t size) {
    struct call call = {.function = KARST_POSIX_MEMALIGN,
                        .size = size,
                        .alignment = alignment,
                        .caller = CALLER,
                        .stack = STACK};
    struct around around = {0};
    void *got = NULL;
    begin(&around, &call, current_gate(call.function));
    int status = next.posix_memalign(&got, alignment, size);
    end(&around, &call, status == 0 ? got : NULL);
    if (status == 0) {
        *block = got;
    }
    return status;
}

EXPORT int posix_memalign(void **block, size_t alignment, size_t size) {
    uint32_t gate = gate_of(KARST_POSIX_MEMALIGN);
    if (LIKELY(gate == KARST_GATE_READY) || only_other_sizes(KARST_POSIX_MEMALIGN, gate, size)) {
        return next.posix_memalign(block, alignment, size);
    }
    return posix_memalign_slow(block, alignment, size);
}

static COLD void *valloc_slow(size_t size) {
    struct call call = {.function = KARST_VALLOC, .size = size, .caller = CALLER, .stack = STACK};
    return allocate_slow(BY_VALLOC, &call);
}

EXPORT void *valloc(size_t size) {
    return LIKELY(gate_of(KARST_VALLOC) == KARST_GATE_READY) ? next.valloc(size) : valloc_slow(size);
}

static COLD void *pvalloc_slow(size_t size) {
    struct call call = {.function = KARST_PVALLOC, .size = size, .caller = CALLER, .stack = STACK};
    return allocate_slow(BY_PVALLOC, &call);
}

EXPORT void *pvalloc(size_t size) {
    return LIKELY(gate_of(KARST_PVALLOC) == KARST_GATE_READY) ? next.pvalloc(size) : pvalloc_slow(size);
}
