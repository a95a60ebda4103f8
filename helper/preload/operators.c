#include "calls.h"

/* C++'s operators. The C++ library's own call malloc and free, and what an allocator's own give may be freed
 * with its free: what is wanted of them is done here, where the caller is known, with malloc and free; what
 * they do when there is no memory is left to them. Somebody else's are gone past. The names are those of the
 * Itanium C++ ABI for 64-bit size_t. A std::nothrow_t is never looked at. */

/* Where operators are not known yet (their library came later), this looks for them first. */
static ALWAYS_INLINE bool is_straight(uint32_t gate, const void *function) {
    return LIKELY(gate == KARST_GATE_READY && function);
}

static void find_operators(void) {
    if (!next.new) {
        next_find_operators();
    }
}

/* NULL: the operator behind us has to be called, for want of memory or because it is nobody's we know. */
static void *allocate(struct call *call) {
    call_gate(call->function); /* the allocator is known from here on */
    find_operators();
    if (next_operators == OPERATORS_FOREIGN) {
        return NULL;
    }
    return call_allocate(call->alignment ? BY_MEMALIGN : BY_MALLOC, call);
}

static bool release(struct call *call) {
    call_gate(call->function);
    find_operators();
    if (next_operators == OPERATORS_FOREIGN) {
        return false;
    }
    call_free(call);
    return true;
}

/* Nothing but marks and records is wanted of a call, and malloc and free do. */
static ALWAYS_INLINE bool is_noted(uint32_t gate) {
    return only_notes(gate) && gate != KARST_GATE_READY && next_operators == OPERATORS_MALLOC;
}

/* Each operator is three functions, as in interpose.c, of the same parameters, which are given in brackets:
 * what programs call; marks and records; everything. `size`, `block` and `alignment` are what the parameters
 * of these meanings have to be called. */

/* ---- new --------------------------------------------------------------------------------------------- */

#define DEFINE_NEW(name, symbol, number, member, aligned_to, parameters, arguments)                          \
    static COLD void *name##_slow parameters {                                                               \
        struct call call = {.function = (number),                                                            \
                            .size = size,                                                                    \
                            .alignment = (aligned_to),                                                       \
                            .caller = CALLER,                                                                \
                            .stack = STACK};                                                                 \
        void *block = allocate(&call);                                                                       \
        return block || !next.member ? block : next.member arguments;                                        \
    }                                                                                                        \
    static GATED void *name##_noted parameters {                                                             \
        void *block = ask_and_note((aligned_to) ? BY_MEMALIGN : BY_MALLOC, number, size, aligned_to,         \
                                   gate_of(number), CALLER, CALLER);                                         \
        return LIKELY(block) ? block : next.member arguments;                                                \
    }                                                                                                        \
    EXPORT void *name parameters __asm__(symbol);                                                            \
    void *name parameters {                                                                                  \
        uint32_t gate = gate_of(number);                                                                     \
        if (LIKELY(next.member) &&                                                                           \
            (LIKELY(gate == KARST_GATE_READY) || only_other_sizes(number, gate, size))) {                    \
            return next.member arguments;                                                                    \
        }                                                                                                    \
        return is_noted(gate) ? name##_noted arguments : name##_slow arguments;                              \
    }

DEFINE_NEW(new, "_Znwm", KARST_NEW, new, 0, (size_t size), (size))
DEFINE_NEW(new_array, "_Znam", KARST_NEW_ARRAY, new_array, 0, (size_t size), (size))
DEFINE_NEW(new_nothrow, "_ZnwmRKSt9nothrow_t", KARST_NEW, new_nothrow, 0, (size_t size, const void *tag),
           (size, tag))
DEFINE_NEW(new_array_nothrow, "_ZnamRKSt9nothrow_t", KARST_NEW_ARRAY, new_array_nothrow, 0,
           (size_t size, const void *tag), (size, tag))
DEFINE_NEW(new_aligned, "_ZnwmSt11align_val_t", KARST_NEW, new_aligned, alignment,
           (size_t size, size_t alignment), (size, alignment))
DEFINE_NEW(new_array_aligned, "_ZnamSt11align_val_t", KARST_NEW_ARRAY, new_array_aligned, alignment,
           (size_t size, size_t alignment), (size, alignment))
DEFINE_NEW(new_aligned_nothrow, "_ZnwmSt11align_val_tRKSt9nothrow_t", KARST_NEW, new_aligned_nothrow,
           alignment, (size_t size, size_t alignment, const void *tag), (size, alignment, tag))
DEFINE_NEW(new_array_aligned_nothrow, "_ZnamSt11align_val_tRKSt9nothrow_t", KARST_NEW_ARRAY,
           new_array_aligned_nothrow, alignment, (size_t size, size_t alignment, const void *tag),
           (size, alignment, tag))

/* ---- delete ------------------------------------------------------------------------------------------ */

/* A size is nothing the allocator may be told of a marked block. */
#define DEFINE_DELETE(name, symbol, number, member, aligned_to, parameters, arguments)                       \
    static COLD void name##_slow parameters {                                                                \
        struct call call = {.function = (number),                                                            \
                            .old_address = (uint64_t)(uintptr_t)block,                                       \
                            .alignment = (aligned_to),                                                       \
                            .caller = CALLER,                                                                \
                            .stack = STACK};                                                                 \
        if (block && !release(&call) && next.member) {                                                       \
            next.member arguments;                                                                           \
        }                                                                                                    \
    }                                                                                                        \
    static GATED void name##_noted parameters {                                                              \
        if (block && note_freed(block, gate_of(number), CALLER)) {                                           \
            next.free(block);                                                                                \
        } else if (block) {                                                                                  \
            name##_slow arguments;                                                                           \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void name parameters __asm__(symbol);                                                             \
    void name parameters {                                                                                   \
        uint32_t gate = gate_of(number);                                                                     \
        if (is_straight(gate, (void *)next.member)) {                                                        \
            next.member arguments;                                                                           \
        } else if (is_noted(gate)) {                                                                         \
            name##_noted arguments;                                                                          \
        } else {                                                                                             \
            name##_slow arguments;                                                                           \
        }                                                                                                    \
    }

DEFINE_DELETE(delete, "_ZdlPv", KARST_DELETE, delete, 0, (void *block), (block))
DEFINE_DELETE(delete_array, "_ZdaPv", KARST_DELETE_ARRAY, delete_array, 0, (void *block), (block))
DEFINE_DELETE(delete_sized, "_ZdlPvm", KARST_DELETE, delete_sized, 0, (void *block, size_t size),
              (block, size))
DEFINE_DELETE(delete_array_sized, "_ZdaPvm", KARST_DELETE_ARRAY, delete_array_sized, 0,
              (void *block, size_t size), (block, size))
DEFINE_DELETE(delete_nothrow, "_ZdlPvRKSt9nothrow_t", KARST_DELETE, delete_nothrow, 0,
              (void *block, const void *tag), (block, tag))
DEFINE_DELETE(delete_array_nothrow, "_ZdaPvRKSt9nothrow_t", KARST_DELETE_ARRAY, delete_array_nothrow, 0,
              (void *block, const void *tag), (block, tag))
DEFINE_DELETE(delete_aligned, "_ZdlPvSt11align_val_t", KARST_DELETE, delete_aligned, alignment,
              (void *block, size_t alignment), (block, alignment))
DEFINE_DELETE(delete_array_aligned, "_ZdaPvSt11align_val_t", KARST_DELETE_ARRAY, delete_array_aligned,
              alignment, (void *block, size_t alignment), (block, alignment))
DEFINE_DELETE(delete_sized_aligned, "_ZdlPvmSt11align_val_t", KARST_DELETE, delete_sized_aligned, alignment,
              (void *block, size_t size, size_t alignment), (block, size, alignment))
DEFINE_DELETE(delete_array_sized_aligned, "_ZdaPvmSt11align_val_t", KARST_DELETE_ARRAY,
              delete_array_sized_aligned, alignment, (void *block, size_t size, size_t alignment),
              (block, size, alignment))
DEFINE_DELETE(delete_aligned_nothrow, "_ZdlPvSt11align_val_tRKSt9nothrow_t", KARST_DELETE,
              delete_aligned_nothrow, alignment, (void *block, size_t alignment, const void *tag),
              (block, alignment, tag))
DEFINE_DELETE(delete_array_aligned_nothrow, "_ZdaPvSt11align_val_tRKSt9nothrow_t", KARST_DELETE_ARRAY,
              delete_array_aligned_nothrow, alignment, (void *block, size_t alignment, const void *tag),
              (block, alignment, tag))
