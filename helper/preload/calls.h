/* One call on its way through the library; what interpose.c and operators.c share. */
#ifndef KARST_PRELOAD_CALLS_H
#define KARST_PRELOAD_CALLS_H

#include "marks.h"
#include "preload.h"
#include "recorder.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
/* The second step of a call, which is jumped to. */
#define GATED __attribute__((noinline))

/* In a function that was jumped to from one that the program called: where it was called. */
#define CALLER ((uint64_t)(uintptr_t)__builtin_return_address(0))
#define STACK  ((uint64_t)(uintptr_t)__builtin_frame_address(0) + 2 * sizeof(void *))

/* How the allocator behind us is asked. */
enum way { BY_MALLOC, BY_CALLOC, BY_MEMALIGN, BY_ALIGNED_ALLOC, BY_VALLOC, BY_PVALLOC };

static ALWAYS_INLINE void *ask(enum way way, size_t size, size_t alignment) {
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
    default:
        return next.malloc(size);
    }
}

/* True: a trap on sizes is all there is, and this size is none of them. */
static ALWAYS_INLINE bool only_other_sizes(enum karst_function function, uint32_t gate, size_t size) {
    const struct karst_control *control = &karst_control;
    return gate == (KARST_GATE_READY | KARST_GATE_SIZE) &&
           size - __atomic_load_n(&control->size_low[function], __ATOMIC_RELAXED) >
               __atomic_load_n(&control->size_span[function], __ATOMIC_RELAXED);
}

/* What stands for a call site in records: in files it is the return address, for a table of stacks is gone
 * when the process is. */
static inline uint64_t record_site_of(const struct call *call) {
    return *karst_control.directory ? call->caller : call->site;
}

/* Marks and records what the allocator gave, if the gate says so. */
static ALWAYS_INLINE void note_allocated(void *block, enum karst_function function, size_t size,
                                         uint32_t gate, uint64_t site, uint64_t record_site) {
    if (gate & KARST_GATE_MARK && LIKELY(block) &&
        (function == KARST_CALLOC || UNLIKELY(!marks_are_usual(size)) ||
         UNLIKELY(!marks_put_usual(block, size, site, function)))) {
        marks_put(block, size, site, function);
    }
    if (gate & KARST_GATE_RECORD) {
        recorder_write(KARST_EVENT_ALLOCATE, (uint64_t)(uintptr_t)block, size, record_site);
    }
}

/* The allocator's work, noted. */
static ALWAYS_INLINE void *ask_and_note(enum way way, enum karst_function function, size_t size,
                                        size_t alignment, uint32_t gate, uint64_t site,
                                        uint64_t record_site) {
    void *block = ask(way, gate & KARST_GATE_MARK ? marks_room(size) : size, alignment);
    note_allocated(block, function, size, gate, site, record_site);
    return block;
}

/* Nothing is asked for but marks and records, with the return address for the call site. */
static ALWAYS_INLINE bool only_notes(uint32_t gate) {
    return (gate & ~(uint32_t)(KARST_GATE_RECORD | KARST_GATE_MARK)) == KARST_GATE_READY;
}

/* Notes that a block is given back. False, and nothing done: call_free() has to look at it. */
static ALWAYS_INLINE bool note_freed(void *block, uint32_t gate, uint64_t site) {
    if (gate & KARST_GATE_MARK && UNLIKELY(!marks_release_usual(block, site)) &&
        !marks_release(block, site)) {
        return false;
    }
    if (gate & KARST_GATE_RECORD) {
        recorder_write(KARST_EVENT_FREE, (uint64_t)(uintptr_t)block, 0, site);
    }
    return true;
}

/* The gates of each of the combinations. */
#define GATE_RECORD (KARST_GATE_READY | KARST_GATE_RECORD)
#define GATE_MARK   (KARST_GATE_READY | KARST_GATE_MARK)
#define GATE_BOTH   (KARST_GATE_READY | KARST_GATE_RECORD | KARST_GATE_MARK)

/* Takes in changes first; returns the gate as it is then. */
uint32_t call_gate(enum karst_function function);

/* Around the allocator's work, for a call that traps may concern. errno is left alone. */
struct around {
    uint32_t gate;
    bool trapped, growth;
    uint64_t system_before;
};
void call_begin(struct around *around, struct call *call);
void call_end(struct around *around, struct call *call, const void *address);

/* All that is wanted of a call that allocates, and the call; NULL: it failed. */
void *call_allocate(enum way way, struct call *call);
/* The same of one that frees, and of one that moves. */
void call_free(struct call *call);
void *call_move(struct call *call);

#endif
