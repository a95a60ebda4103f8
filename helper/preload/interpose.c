#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <unistd.h>

#include "calls.h"

/* The functions that programs call. Each is a load, a branch and a jump while its gate says that nothing is
 * wanted; the long way begins in a function of its own, which is jumped to, so that the way past it needs no
 * stack frame and the caller's return address and stack pointer are still where they were. */

/* Every function has up to three steps, each jumped to from the one before: as quick as can be; traps on
 * other sizes, marks and records; everything. */

/* ---- malloc and its kin ------------------------------------------------------------------------------ */

static COLD void *malloc_slow(size_t size) {
    struct call call = {.function = KARST_MALLOC, .size = size, .caller = CALLER, .stack = STACK};
    return call_allocate(BY_MALLOC, &call);
}

static GATED void *malloc_recorded(size_t size) {
    void *block = next.malloc(size);
    FORGET(block); /* else the caller would be read before, and kept over the call */
    recorder_write(KARST_EVENT_ALLOCATE, (uint64_t)(uintptr_t)block, size, CALLER);
    return block;
}

static GATED void *malloc_marked_else(size_t size) {
    return ask_and_note(BY_MALLOC, KARST_MALLOC, size, 0, GATE_MARK, CALLER, CALLER);
}

/* Within malloc() itself, whose frame is made here and not on the ways that are jumped to. */
static ALWAYS_INLINE void *malloc_marked(size_t wanted) {
    size_t size = wanted;
    FORGET(size);
    if (UNLIKELY(!marks_are_usual(size))) {
        return malloc_marked_else(size);
    }
    void *block = next.malloc(marks_usual_offset(size) + KARST_FOOTER_BYTES);
    FORGET(size);
    return UNLIKELY(!block) || LIKELY(marks_put_usual(block, size, CALLER, KARST_MALLOC))
               ? block
               : marks_put(block, size, CALLER, KARST_MALLOC);
}

static GATED void *malloc_noted(size_t size) {
    return ask_and_note(BY_MALLOC, KARST_MALLOC, size, 0, GATE_BOTH, CALLER, CALLER);
}

static GATED void *malloc_gated(size_t size, uint32_t gate) {
    if (only_other_sizes(KARST_MALLOC, gate, size)) {
        return next.malloc(size);
    }
    return gate == GATE_BOTH ? malloc_noted(size) : malloc_slow(size);
}

EXPORT void *malloc(size_t size) {
    uint32_t gate = gate_of(KARST_MALLOC);
    if (LIKELY(gate == GATE_MARK)) { /* asked first: it has the most to do and can least spare a jump */
        return malloc_marked(size);
    }
    if (LIKELY(gate == KARST_GATE_READY)) {
        return next.malloc(size);
    }
    return gate == GATE_RECORD ? malloc_recorded(size) : malloc_gated(size, gate);
}

static COLD void *calloc_slow(size_t count, size_t each) {
    struct call call = {.function = KARST_CALLOC, .caller = CALLER, .stack = STACK};
    if (__builtin_mul_overflow(count, each, &call.size)) {
        call_gate(KARST_CALLOC);
        return next.calloc(count, each); /* which refuses */
    }
    return call_allocate(BY_CALLOC, &call);
}

static GATED void *calloc_noted(size_t size, uint32_t gate) {
    return ask_and_note(BY_CALLOC, KARST_CALLOC, size, 0, gate, CALLER, CALLER);
}

static GATED void *calloc_gated(size_t count, size_t each, uint32_t gate) {
    size_t size;
    if (__builtin_mul_overflow(count, each, &size)) {
        return calloc_slow(count, each);
    }
    if (only_other_sizes(KARST_CALLOC, gate, size)) {
        return next.calloc(count, each);
    }
    return only_notes(gate) ? calloc_noted(size, gate) : calloc_slow(count, each);
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
    return call_move(&call);
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

/* glibc's and others' reallocarray() calls realloc, by a way that may lead here again: what is noted
 * goes to realloc at once. */
static COLD void *reallocarray_slow(void *old, size_t count, size_t each) {
    struct call call = {.function = KARST_REALLOCARRAY,
                        .old_address = (uint64_t)(uintptr_t)old,
                        .caller = CALLER,
                        .stack = STACK};
    if (__builtin_mul_overflow(count, each, &call.size)) {
        call_gate(KARST_REALLOCARRAY);
        errno = ENOMEM;
        return NULL;
    }
    return call_move(&call);
}

EXPORT void *reallocarray(void *old, size_t count, size_t each) {
    if (LIKELY(gate_of(KARST_REALLOCARRAY) == KARST_GATE_READY)) {
        return next.reallocarray(old, count, each);
    }
    return reallocarray_slow(old, count, each);
}

static COLD void free_slow(void *block) {
    struct call call = {
        .function = KARST_FREE, .old_address = (uint64_t)(uintptr_t)block, .caller = CALLER, .stack = STACK};
    call_free(&call);
}

static GATED void free_recorded(void *block) {
    if (block) {
        note_freed(block, GATE_RECORD, CALLER);
        next.free(block);
    }
}

static GATED void free_marked_else(void *block) {
    if (block && marks_release(block, CALLER)) {
        next.free(block);
    } else if (block) {
        free_slow(block);
    }
}

static GATED void free_noted(void *block, uint32_t gate) {
    if (block) {
        if (note_freed(block, gate, CALLER)) {
            next.free(block);
        } else {
            free_slow(block);
        }
    }
}

static GATED void free_gated(void *block, uint32_t gate) {
    if (only_notes(gate)) {
        free_noted(block, gate);
    } else {
        free_slow(block);
    }
}

static ALWAYS_INLINE void free_marked(void *block) {
    __builtin_prefetch((const char *)block - 16); /* the allocator's header, while the map is looked at */
    __builtin_prefetch((const char *)block + 48);
    if (LIKELY(marks_release_usual(block, CALLER))) {
        next.free(block);
    } else {
        free_marked_else(block);
    }
}

EXPORT void free(void *block) {
    uint32_t gate = gate_of(KARST_FREE);
    if (LIKELY(gate == GATE_MARK)) {
        free_marked(block);
    } else if (LIKELY(gate == KARST_GATE_READY)) {
        next.free(block);
    } else if (gate == GATE_RECORD) {
        free_recorded(block);
    } else {
        free_gated(block, gate);
    }
}

/* ---- aligned ----------------------------------------------------------------------------------------- */

static COLD void *memalign_slow(size_t alignment, size_t size) {
    struct call call = {
        .function = KARST_MEMALIGN, .size = size, .alignment = alignment, .caller = CALLER, .stack = STACK};
    return call_allocate(BY_MEMALIGN, &call);
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
    return call_allocate(BY_ALIGNED_ALLOC, &call);
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
    call_begin(&around, &call);
    bool mark = around.gate & KARST_GATE_MARK;
    int status = next.posix_memalign(&got, alignment, mark ? marks_room(size) : size);
    got = status == 0 ? got : NULL;
    note_allocated(got, KARST_POSIX_MEMALIGN, size, around.gate, call.site, record_site_of(&call));
    call_end(&around, &call, got);
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
    return call_allocate(BY_VALLOC, &call);
}

EXPORT void *valloc(size_t size) {
    return LIKELY(gate_of(KARST_VALLOC) == KARST_GATE_READY) ? next.valloc(size) : valloc_slow(size);
}

/* All of the pages that are given are the program's. */
static COLD void *pvalloc_slow(size_t size) {
    size_t page = karst_control.page_size ? karst_control.page_size : 4096,
           whole = (size + page - 1) & ~(page - 1);
    struct call call = {
        .function = KARST_PVALLOC, .size = whole < size ? size : whole, .caller = CALLER, .stack = STACK};
    return call_allocate(BY_PVALLOC, &call);
}

EXPORT void *pvalloc(size_t size) {
    return LIKELY(gate_of(KARST_PVALLOC) == KARST_GATE_READY) ? next.pvalloc(size) : pvalloc_slow(size);
}

/* ---- what a block holds ----------------------------------------------------------------------------- */

/* Of a marked block what was asked for: the rest is the mark's. */
static COLD size_t usable_slow(void *block) {
    size_t size;
    uint32_t gate = call_gate(KARST_FREE);
    (void)gate;
    return karst_control.map && marks_size(block, &size) ? size : next.malloc_usable_size(block);
}

EXPORT size_t malloc_usable_size(void *block) {
    if (LIKELY(gate_of(KARST_FREE) == KARST_GATE_READY) && !karst_control.map) {
        return next.malloc_usable_size(block);
    }
    return usable_slow(block);
}
