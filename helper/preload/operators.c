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

#define NEW_CALL(number, bytes, aligned_to)                                                                  \
    { .function = (number), .size = (bytes), .alignment = (aligned_to), .caller = CALLER, .stack = STACK }
#define DELETE_CALL(number, block, aligned_to)                                                               \
    {                                                                                                        \
        .function = (number), .old_address = (uint64_t)(uintptr_t)(block), .alignment = (aligned_to),        \
        .caller = CALLER, .stack = STACK                                                                     \
    }

/* ---- new --------------------------------------------------------------------------------------------- */

#define DEFINE_NEW(name, symbol, number, member)                                                             \
    static COLD void *name##_slow(size_t size) {                                                             \
        struct call call = NEW_CALL(number, size, 0);                                                        \
        void *block = allocate(&call);                                                                       \
        return block || !next.member ? block : next.member(size);                                            \
    }                                                                                                        \
    static GATED void *name##_noted(size_t size, uint32_t gate) {                                            \
        void *block = ask_and_note(BY_MALLOC, number, size, 0, gate, CALLER, CALLER);                        \
        return LIKELY(block) ? block : next.member(size);                                                    \
    }                                                                                                        \
    static GATED void *name##_gated(size_t size, uint32_t gate) {                                            \
        if (next.member && only_other_sizes(number, gate, size)) {                                           \
            return next.member(size);                                                                        \
        }                                                                                                    \
        return only_notes(gate) && gate != KARST_GATE_READY && next_operators == OPERATORS_MALLOC            \
                   ? name##_noted(size, gate)                                                                \
                   : name##_slow(size);                                                                      \
    }                                                                                                        \
    EXPORT void *name(size_t size) __asm__(symbol);                                                          \
    void *name(size_t size) {                                                                                \
        uint32_t gate = gate_of(number);                                                                     \
        return is_straight(gate, (void *)next.member) ? next.member(size) : name##_gated(size, gate);        \
    }

DEFINE_NEW(operator_new, "_Znwm", KARST_NEW, new)
DEFINE_NEW(operator_new_array, "_Znam", KARST_NEW_ARRAY, new_array)

#define DEFINE_NEW_NOTHROW(name, symbol, number, member)                                                     \
    static COLD void *name##_slow(size_t size, const void *tag) {                                            \
        struct call call = NEW_CALL(number, size, 0);                                                        \
        void *block = allocate(&call);                                                                       \
        return block || !next.member ? block : next.member(size, tag);                                       \
    }                                                                                                        \
    EXPORT void *name(size_t size, const void *tag) __asm__(symbol);                                         \
    void *name(size_t size, const void *tag) {                                                               \
        return is_straight(gate_of(number), (void *)next.member) ? next.member(size, tag)                    \
                                                                 : name##_slow(size, tag);                   \
    }

DEFINE_NEW_NOTHROW(operator_new_nothrow, "_ZnwmRKSt9nothrow_t", KARST_NEW, new_nothrow)
DEFINE_NEW_NOTHROW(operator_new_array_nothrow, "_ZnamRKSt9nothrow_t", KARST_NEW_ARRAY, new_array_nothrow)

#define DEFINE_NEW_ALIGNED(name, symbol, number, member)                                                     \
    static COLD void *name##_slow(size_t size, size_t alignment) {                                           \
        struct call call = NEW_CALL(number, size, alignment);                                                \
        void *block = allocate(&call);                                                                       \
        return block || !next.member ? block : next.member(size, alignment);                                 \
    }                                                                                                        \
    EXPORT void *name(size_t size, size_t alignment) __asm__(symbol);                                        \
    void *name(size_t size, size_t alignment) {                                                              \
        return is_straight(gate_of(number), (void *)next.member) ? next.member(size, alignment)              \
                                                                 : name##_slow(size, alignment);             \
    }

DEFINE_NEW_ALIGNED(operator_new_aligned, "_ZnwmSt11align_val_t", KARST_NEW, new_aligned)
DEFINE_NEW_ALIGNED(operator_new_array_aligned, "_ZnamSt11align_val_t", KARST_NEW_ARRAY, new_array_aligned)

#define DEFINE_NEW_ALIGNED_NOTHROW(name, symbol, number, member)                                             \
    static COLD void *name##_slow(size_t size, size_t alignment, const void *tag) {                          \
        struct call call = NEW_CALL(number, size, alignment);                                                \
        void *block = allocate(&call);                                                                       \
        return block || !next.member ? block : next.member(size, alignment, tag);                            \
    }                                                                                                        \
    EXPORT void *name(size_t size, size_t alignment, const void *tag) __asm__(symbol);                       \
    void *name(size_t size, size_t alignment, const void *tag) {                                             \
        return is_straight(gate_of(number), (void *)next.member) ? next.member(size, alignment, tag)         \
                                                                 : name##_slow(size, alignment, tag);        \
    }

DEFINE_NEW_ALIGNED_NOTHROW(operator_new_aligned_nothrow, "_ZnwmSt11align_val_tRKSt9nothrow_t", KARST_NEW,
                           new_aligned_nothrow)
DEFINE_NEW_ALIGNED_NOTHROW(operator_new_array_aligned_nothrow, "_ZnamSt11align_val_tRKSt9nothrow_t",
                           KARST_NEW_ARRAY, new_array_aligned_nothrow)

/* ---- delete ------------------------------------------------------------------------------------------ */

#define DEFINE_DELETE(name, symbol, number, member)                                                          \
    static COLD void name##_slow(void *block) {                                                              \
        struct call call = DELETE_CALL(number, block, 0);                                                    \
        if (block && !release(&call) && next.member) {                                                       \
            next.member(block);                                                                              \
        }                                                                                                    \
    }                                                                                                        \
    static GATED void name##_gated(void *block, uint32_t gate) {                                             \
        if (!block) {                                                                                        \
            return;                                                                                          \
        }                                                                                                    \
        if (only_notes(gate) && gate != KARST_GATE_READY && next_operators == OPERATORS_MALLOC &&            \
            note_freed(block, gate, CALLER)) {                                                               \
            next.free(block);                                                                                \
        } else {                                                                                             \
            name##_slow(block);                                                                              \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void name(void *block) __asm__(symbol);                                                           \
    void name(void *block) {                                                                                 \
        uint32_t gate = gate_of(number);                                                                     \
        if (is_straight(gate, (void *)next.member)) {                                                        \
            next.member(block);                                                                              \
        } else {                                                                                             \
            name##_gated(block, gate);                                                                       \
        }                                                                                                    \
    }

DEFINE_DELETE(operator_delete, "_ZdlPv", KARST_DELETE, delete)
DEFINE_DELETE(operator_delete_array, "_ZdaPv", KARST_DELETE_ARRAY, delete_array)

/* With a size, which the allocator must not be told of a marked block. */
#define DEFINE_DELETE_SIZED(name, symbol, number, member)                                                    \
    static COLD void name##_slow(void *block, size_t size) {                                                 \
        struct call call = DELETE_CALL(number, block, 0);                                                    \
        if (block && !release(&call) && next.member) {                                                       \
            next.member(block, size);                                                                        \
        }                                                                                                    \
    }                                                                                                        \
    static GATED void name##_gated(void *block, size_t size, uint32_t gate) {                                \
        if (!block) {                                                                                        \
            return;                                                                                          \
        }                                                                                                    \
        if (only_notes(gate) && gate != KARST_GATE_READY && next_operators == OPERATORS_MALLOC &&            \
            note_freed(block, gate, CALLER)) {                                                               \
            next.free(block);                                                                                \
        } else {                                                                                             \
            name##_slow(block, size);                                                                        \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void name(void *block, size_t size) __asm__(symbol);                                              \
    void name(void *block, size_t size) {                                                                    \
        uint32_t gate = gate_of(number);                                                                     \
        if (is_straight(gate, (void *)next.member)) {                                                        \
            next.member(block, size);                                                                        \
        } else {                                                                                             \
            name##_gated(block, size, gate);                                                                 \
        }                                                                                                    \
    }

DEFINE_DELETE_SIZED(operator_delete_sized, "_ZdlPvm", KARST_DELETE, delete_sized)
DEFINE_DELETE_SIZED(operator_delete_array_sized, "_ZdaPvm", KARST_DELETE_ARRAY, delete_array_sized)

#define DEFINE_DELETE_NOTHROW(name, symbol, number, member)                                                  \
    static COLD void name##_slow(void *block, const void *tag) {                                             \
        struct call call = DELETE_CALL(number, block, 0);                                                    \
        if (block && !release(&call) && next.member) {                                                       \
            next.member(block, tag);                                                                         \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void name(void *block, const void *tag) __asm__(symbol);                                          \
    void name(void *block, const void *tag) {                                                                \
        if (is_straight(gate_of(number), (void *)next.member)) {                                             \
            next.member(block, tag);                                                                         \
        } else {                                                                                             \
            name##_slow(block, tag);                                                                         \
        }                                                                                                    \
    }

DEFINE_DELETE_NOTHROW(operator_delete_nothrow, "_ZdlPvRKSt9nothrow_t", KARST_DELETE, delete_nothrow)
DEFINE_DELETE_NOTHROW(operator_delete_array_nothrow, "_ZdaPvRKSt9nothrow_t", KARST_DELETE_ARRAY,
                      delete_array_nothrow)

#define DEFINE_DELETE_ALIGNED(name, symbol, number, member)                                                  \
    static COLD void name##_slow(void *block, size_t alignment) {                                            \
        struct call call = DELETE_CALL(number, block, alignment);                                            \
        if (block && !release(&call) && next.member) {                                                       \
            next.member(block, alignment);                                                                   \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void name(void *block, size_t alignment) __asm__(symbol);                                         \
    void name(void *block, size_t alignment) {                                                               \
        if (is_straight(gate_of(number), (void *)next.member)) {                                             \
            next.member(block, alignment);                                                                   \
        } else {                                                                                             \
            name##_slow(block, alignment);                                                                   \
        }                                                                                                    \
    }

DEFINE_DELETE_ALIGNED(operator_delete_aligned, "_ZdlPvSt11align_val_t", KARST_DELETE, delete_aligned)
DEFINE_DELETE_ALIGNED(operator_delete_array_aligned, "_ZdaPvSt11align_val_t", KARST_DELETE_ARRAY,
                      delete_array_aligned)

#define DEFINE_DELETE_SIZED_ALIGNED(name, symbol, number, member)                                            \
    static COLD void name##_slow(void *block, size_t size, size_t alignment) {                               \
        struct call call = DELETE_CALL(number, block, alignment);                                            \
        if (block && !release(&call) && next.member) {                                                       \
            next.member(block, size, alignment);                                                             \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void name(void *block, size_t size, size_t alignment) __asm__(symbol);                            \
    void name(void *block, size_t size, size_t alignment) {                                                  \
        if (is_straight(gate_of(number), (void *)next.member)) {                                             \
            next.member(block, size, alignment);                                                             \
        } else {                                                                                             \
            name##_slow(block, size, alignment);                                                             \
        }                                                                                                    \
    }

DEFINE_DELETE_SIZED_ALIGNED(operator_delete_sized_aligned, "_ZdlPvmSt11align_val_t", KARST_DELETE,
                            delete_sized_aligned)
DEFINE_DELETE_SIZED_ALIGNED(operator_delete_array_sized_aligned, "_ZdaPvmSt11align_val_t", KARST_DELETE_ARRAY,
                            delete_array_sized_aligned)

#define DEFINE_DELETE_ALIGNED_NOTHROW(name, symbol, number, member)                                          \
    static COLD void name##_slow(void *block, size_t alignment, const void *tag) {                           \
        struct call call = DELETE_CALL(number, block, alignment);                                            \
        if (block && !release(&call) && next.member) {                                                       \
            next.member(block, alignment, tag);                                                              \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void name(void *block, size_t alignment, const void *tag) __asm__(symbol);                        \
    void name(void *block, size_t alignment, const void *tag) {                                              \
        if (is_straight(gate_of(number), (void *)next.member)) {                                             \
            next.member(block, alignment, tag);                                                              \
        } else {                                                                                             \
            name##_slow(block, alignment, tag);                                                              \
        }                                                                                                    \
    }

DEFINE_DELETE_ALIGNED_NOTHROW(operator_delete_aligned_nothrow, "_ZdlPvSt11align_val_tRKSt9nothrow_t",
                              KARST_DELETE, delete_aligned_nothrow)
DEFINE_DELETE_ALIGNED_NOTHROW(operator_delete_array_aligned_nothrow, "_ZdaPvSt11align_val_tRKSt9nothrow_t",
                              KARST_DELETE_ARRAY, delete_array_aligned_nothrow)
