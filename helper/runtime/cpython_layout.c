/* Offsets in 64-bit CPython's structures by minor version: offsetof() over the headers of 3.9.2, 3.9.18,
 * 3.10.13, 3.11.2, 3.11.7, 3.12.1, 3.13.0, 3.13.5, 3.14.0, 3.14.10 and 3.15.2
 * (Include/internal/pycore_runtime.h, pycore_interp.h, pycore_gc.h, pycore_frame.h, Include/cpython/code.h,
 * pystate.h, object.h). They agree within a minor version in all that is here but for one place of 3.14; what
 * a target says of itself (_Py_DebugOffsets, 3.13 and later) comes first. */
#include "cpython.h"

#include <string.h>

#define NONE CPYTHON_NONE

#define CODE_WITH_TABLES                                                                                     \
    .filename = 112, .name = 120, .qualname = 128, .names = 96, .kinds = 104, .lines = 136, .flags = 48,     \
    .variables = NONE, .cells = NONE, .frees = NONE
#define CODE_WITH_TUPLES                                                                                     \
    .filename = 104, .name = 112, .qualname = NONE, .first_line = 40, .bytes = 48, .lines = 120,             \
    .first_traceable = NONE, .names = NONE, .kinds = NONE, .flags = 36, .variables = 72, .cells = 88,        \
    .frees = 80
#define FRAME_OBJECT                                                                                         \
    .code = 32, .previous = 24, .locals = 56, .globals = 48, .owner = NONE, .entry = NONE, .shim = NONE
#define FRAME_WITH_SHIMS                                                                                     \
    .code = 0, .previous = 8, .instruction = 56, .locals = 40, .globals = 24, .entry = NONE, .shim = 3

static const struct cpython_layout layouts[] = {
    {
        .minor = 9,
        .lines = CPYTHON_LNOTAB,
        .frames = CPYTHON_FRAME_OBJECTS,
        .runtime_interpreters = 32,
        .runtime_current = 568,
        .interp = {.next = 0,
                   .id = 24,
                   .threads = 8,
                   .runtime = 16,
                   .modules = 856,
                   .gc = 616,
                   .obmalloc = NONE,
                   .gil = NONE,
                   .size = 5648},
        .gc = {.generations = 24, .permanent = 104},
        .thread = {.next = 8, .interp = 16, .thread_id = 176, .native_id = NONE, .frame = 24},
        .cframe_current = NONE,
        .frame = {FRAME_OBJECT, .instruction = 104, .localsplus = 360},
        .code = {CODE_WITH_TUPLES},
        .heap_type_qualname = 856,
        .heap_type_keys = 864,
        .ascii_size = 48,
        .compact_size = 72,
        .tuple_items = 24,
        .pool_bits = 12,
        .arena_bits = 18,
    },
    {
        .minor = 10,
        .lines = CPYTHON_LINETABLE,
        .frames = CPYTHON_FRAME_OBJECTS,
        .runtime_interpreters = 32,
        .runtime_current = 568,
        .interp = {.next = 0,
                   .id = 24,
                   .threads = 8,
                   .runtime = 16,
                   .modules = 856,
                   .gc = 616,
                   .obmalloc = NONE,
                   .gil = NONE,
                   .size = 113528},
        .gc = {.generations = 24, .permanent = 104},
        .thread = {.next = 8, .interp = 16, .thread_id = 176, .native_id = NONE, .frame = 24},
        .cframe_current = NONE,
        .frame = {FRAME_OBJECT, .instruction = 96, .localsplus = 352},
        .code = {CODE_WITH_TUPLES},
        .heap_type_qualname = 864,
        .heap_type_keys = 872,
        .ascii_size = 48,
        .compact_size = 72,
        .tuple_items = 24,
        .pool_bits = 14,
        .arena_bits = 20,
    },
    {
        .minor = 11,
        .lines = CPYTHON_LOCATIONS,
        .frames = CPYTHON_BY_CFRAME,
        .runtime_interpreters = 40,
        .runtime_current = 576,
        .interp = {.next = 0,
                   .id = 48,
                   .threads = 16,
                   .runtime = 40,
                   .modules = 888,
                   .gc = 648,
                   .obmalloc = NONE,
                   .gil = NONE,
                   .size = 107752},
        .gc = {.generations = 24, .permanent = 104},
        .thread = {.next = 8, .interp = 16, .thread_id = 152, .native_id = 160, .frame = 56},
        .cframe_current = 8,
        .frame = {.code = 32,
                  .previous = 48,
                  .instruction = 56,
                  .locals = 24,
                  .globals = 8,
                  .localsplus = 72,
                  .owner = 69,
                  .entry = 68,
                  .shim = NONE},
        .code = {CODE_WITH_TABLES, .first_line = 72, .bytes = 184, .first_traceable = 168},
        .heap_type_qualname = 864,
        .heap_type_keys = 872,
        .ascii_size = 48,
        .compact_size = 72,
        .tuple_items = 24,
        .packed_keys = true,
        .pool_bits = 14,
        .arena_bits = 20,
    },
    {
        .minor = 12,
        .lines = CPYTHON_LOCATIONS,
        .frames = CPYTHON_BY_CFRAME,
        .runtime_interpreters = 40,
        .runtime_current = NONE,
        .interp = {.next = 0,
                   .id = 8,
                   .threads = 72,
                   .runtime = 96,
                   .modules = 944,
                   .gc = 112,
                   .obmalloc = 3960,
                   .gil = 384,
                   .size = 383552},
        .gc = {.generations = 24, .permanent = 104},
        .thread = {.next = 8, .interp = 16, .thread_id = 136, .native_id = 144, .frame = 56},
        .cframe_current = 0,
        .frame = {FRAME_WITH_SHIMS, .owner = 70, .localsplus = 72},
        .code = {CODE_WITH_TABLES, .first_line = 68, .bytes = 192, .first_traceable = 176},
        .heap_type_qualname = 872,
        .heap_type_keys = 880,
        .ascii_size = 40,
        .compact_size = 56,
        .tuple_items = 24,
        .tagged_int = true,
        .packed_keys = true,
        .pool_bits = 14,
        .arena_bits = 20,
    },
    {
        .minor = 13,
        .lines = CPYTHON_LOCATIONS,
        .frames = CPYTHON_BY_THREAD,
        .runtime_interpreters = 632,
        .runtime_current = NONE,
        .interp = {.next = 7264,
                   .id = 7272,
                   .threads = 7344,
                   .runtime = 7376,
                   .modules = 7656,
                   .gc = 7400,
                   .obmalloc = 10800,
                   .obmalloc_pointer = true,
                   .gil = 16,
                   .size = 194968},
        .gc = {.generations = 24, .permanent = 104},
        .thread = {.next = 8, .interp = 16, .thread_id = 152, .native_id = 160, .frame = 72},
        .cframe_current = NONE,
        .frame = {FRAME_WITH_SHIMS, .owner = 70, .localsplus = 72},
        .code = {CODE_WITH_TABLES, .first_line = 68, .bytes = 200, .first_traceable = 184},
        .heap_type_qualname = 872,
        .heap_type_keys = 880,
        .ascii_size = 40,
        .compact_size = 56,
        .tuple_items = 24,
        .tagged_int = true,
        .packed_keys = true,
        .pool_bits = 14,
        .arena_bits = 20,
    },
    {
        /* 3.14.0 has a young and two old generations where others, and 3.14.10 again, have three: at the same
         * offsets. Behind them it has 32 bytes less (interp.obmalloc is 10872 there), for which pymalloc's
         * state is searched. */
        .minor = 14,
        .lines = CPYTHON_LOCATIONS,
        .frames = CPYTHON_BY_THREAD,
        .runtime_interpreters = 808,
        .runtime_current = NONE,
        .interp = {.next = 7272,
                   .id = 7280,
                   .threads = 7344,
                   .runtime = 7384,
                   .modules = 7688,
                   .gc = 7408,
                   .obmalloc = 10904,
                   .obmalloc_pointer = true,
                   .gil = 16,
                   .size = 225864},
        .gc = {.generations = 24, .permanent = 96},
        .thread = {.next = 8, .interp = 16, .thread_id = 152, .native_id = 160, .frame = 72},
        .cframe_current = NONE,
        .frame = {FRAME_WITH_SHIMS, .owner = 74, .localsplus = 80},
        .code = {CODE_WITH_TABLES, .first_line = 68, .bytes = 208, .first_traceable = 192},
        .heap_type_qualname = 872,
        .heap_type_keys = 880,
        .ascii_size = 40,
        .compact_size = 56,
        .tuple_items = 32,
        .tagged_int = true,
        .packed_keys = true,
        .pool_bits = 14,
        .arena_bits = 20,
    },
    {
        .minor = 15,
        .lines = CPYTHON_LOCATIONS,
        .frames = CPYTHON_BY_THREAD,
        .runtime_interpreters = 936,
        .runtime_current = NONE,
        .interp = {.next = 7264,
                   .id = 7272,
                   .threads = 7336,
                   .runtime = 7376,
                   .modules = 7592,
                   .gc = 7400,
                   .obmalloc = 10880,
                   .obmalloc_pointer = true,
                   .gil = 16,
                   .size = 226232},
        .gc = {.generations = 8, .permanent = 80},
        .thread = {.next = 8, .interp = 16, .thread_id = 176, .native_id = 184, .frame = 72},
        .cframe_current = NONE,
        .frame = {FRAME_WITH_SHIMS, .owner = 74, .localsplus = 80},
        .code = {CODE_WITH_TABLES, .first_line = 68, .bytes = 208, .first_traceable = 192},
        .heap_type_qualname = 880,
        .heap_type_keys = 888,
        .ascii_size = 40,
        .compact_size = 56,
        .tuple_items = 32,
        .tagged_int = true,
        .packed_keys = true,
        .pool_bits = 14,
        .arena_bits = 20,
    },
};

const struct cpython_layout *cpython_layout_for(uint32_t minor) {
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        if (layouts[i].minor == minor) {
            return &layouts[i];
        }
    }
    return NULL;
}

/* ---- what an interpreter says of itself -----------------------------------------------------------------
 */

/* Words of _Py_DebugOffsets (Include/internal/pycore_runtime.h of 3.13, pycore_debug_offsets.h of 3.14 and
 * 3.15). */
struct told {
    size_t field;    /* in struct cpython_layout */
    uint8_t word[3]; /* in 3.13, 3.14, 3.15 */
};

#define FIELD(path, in_13, in_14, in_15)                                                                     \
    {                                                                                                        \
        offsetof(struct cpython_layout, path), {                                                             \
            in_13, in_14, in_15                                                                              \
        }                                                                                                    \
    }

static const struct told told[] = {
    FIELD(runtime_interpreters, 5, 5, 5),
    FIELD(interp.size, 6, 6, 6),
    FIELD(interp.id, 7, 7, 7),
    FIELD(interp.next, 8, 8, 8),
    FIELD(interp.threads, 9, 9, 9),
    FIELD(interp.gc, 10, 11, 11),
    FIELD(interp.modules, 11, 12, 12),
    FIELD(thread.next, 21, 24, 24),
    FIELD(thread.interp, 22, 25, 25),
    FIELD(thread.frame, 23, 26, 26),
    FIELD(thread.thread_id, 24, 27, 30),
    FIELD(thread.native_id, 25, 28, 31),
    FIELD(frame.previous, 29, 32, 40),
    FIELD(frame.code, 30, 33, 41),
    FIELD(frame.instruction, 31, 34, 42),
    FIELD(frame.localsplus, 32, 35, 43),
    FIELD(frame.owner, 33, 36, 44),
    FIELD(code.filename, 35, 40, 48),
    FIELD(code.name, 36, 41, 49),
    FIELD(code.qualname, 37, 42, 50),
    FIELD(code.lines, 38, 43, 51),
    FIELD(code.first_line, 39, 44, 52),
    FIELD(code.names, 41, 46, 54),
    FIELD(code.kinds, 42, 47, 55),
    FIELD(code.bytes, 43, 48, 56),
};

#define WORDS       57
#define MOST_OFFSET (4u << 20)
#define COOKIE      "xdebugpy"

bool cpython_layout_told(struct karst_target *target, uint64_t runtime, struct cpython_layout *layout,
                         uint32_t *version, bool *free_threaded) {
    uint64_t words[WORDS];
    if (!karst_target_read_all(target, runtime, words, sizeof words) ||
        memcmp(&words[0], COOKIE, sizeof words[0]) != 0 || words[1] >> 24 != 3) {
        return false;
    }
    uint32_t minor = (uint32_t)(words[1] >> 16 & 0xff);
    const struct cpython_layout *base = cpython_layout_for(minor <= CPYTHON_LAST ? minor : CPYTHON_LAST);
    if (!base || minor < 13) {
        return false;
    }
    struct cpython_layout own = *base;
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        uint64_t offset = words[told[i].word[base->minor - 13]];
        if (offset > MOST_OFFSET) {
            return false;
        }
        uint32_t field = (uint32_t)offset;
        memcpy((uint8_t *)&own + told[i].field, &field, sizeof field);
    }
    *layout = own;
    *version = (uint32_t)words[1];
    *free_threaded = words[2] != 0;
    return true;
}
