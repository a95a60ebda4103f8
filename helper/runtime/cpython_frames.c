/* CPython's threads and frames (Include/internal/pycore_frame.h, Python/traceback.c, Objects/codeobject.c).
 */
#include "cpython.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX    65536u
#define FRAMES_MAX     (1u << 20)
#define TABLE_MAX      (4u << 20) /* bytes of a line table */
#define LOCALS_MAX     65536u
#define OB_SIZE        16
#define BYTES_DATA     32
#define CELL_VALUE     16
#define CODE_OPTIMIZED 1    /* of co_flags: names are in slots, not in a dict */
#define KIND_CELL      0x40 /* of co_localspluskinds */
#define KIND_FREE      0x80

/* ---- threads ------------------------------------------------------------------------------------------- */

static const struct karst_thread *native_thread(const struct karst_target *target, uint64_t thread_pointer,
                                                int64_t tid) {
    for (size_t i = 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        /* glibc's pthread_t is the thread pointer. */
        if ((tid && thread->tid == tid) ||
            (thread_pointer && thread->thread_pointer && thread->thread_pointer == thread_pointer)) {
            return thread;
        }
    }
    return NULL;
}

/* The thread state that holds the GIL of an interpreter; 0: none. */
static uint64_t gil_holder(struct cpython *python, uint64_t interpreter) {
    const struct cpython_layout *layout = &python->layout;
    if (layout->runtime_current != CPYTHON_NONE) {
        return cpython_u64(python, python->runtime + layout->runtime_current);
    }
    uint64_t gil = layout->interp.gil != CPYTHON_NONE && python->layout_known
                       ? cpython_u64(python, interpreter + layout->interp.gil)
                       : 0;
    return gil && cpython_u32(python, gil + 16) == 1 ? cpython_u64(python, gil + 8) : 0;
}

static uint64_t newest_frame(struct cpython *python, uint64_t state) {
    uint64_t at = cpython_u64(python, state + python->layout.thread.frame);
    return python->layout.frames == CPYTHON_BY_CFRAME && at
               ? cpython_u64(python, at + python->layout.cframe_current)
               : at;
}

static bool add_thread(struct cpython *python, struct cpython_threads *threads,
                       const struct cpython_interpreter *of, uint64_t state) {
    const struct cpython_layout *layout = &python->layout;
    struct cpython_thread *items = threads->items;
    if ((threads->count & (threads->count - 1)) == 0) {
        items = realloc(items, (threads->count ? threads->count * 2 : 1) * sizeof *items);
    }
    if (!items) {
        return false;
    }
    threads->items = items;
    uint64_t pointer = cpython_u64(python, state + layout->thread.thread_id);
    int64_t tid = layout->thread.native_id == CPYTHON_NONE
                      ? 0
                      : (int64_t)cpython_u64(python, state + layout->thread.native_id);
    const struct karst_thread *native = native_thread(python->target, pointer, tid);
    items[threads->count++] = (struct cpython_thread){
        .state = state,
        .interpreter = of->address,
        .interpreter_id = of->id,
        .tid = native ? native->tid : tid,
        .thread = native,
        .holds_gil = gil_holder(python, of->address) == state,
        .frame = newest_frame(python, state),
    };
    return true;
}

static int compare_threads(const void *a, const void *b) {
    const struct cpython_thread *x = a, *y = b;
    if (x->interpreter_id != y->interpreter_id) {
        return x->interpreter_id < y->interpreter_id ? -1 : 1;
    }
    return x->tid < y->tid ? -1 : x->tid > y->tid;
}

bool cpython_list_threads(struct cpython *python, struct cpython_threads *threads,
                          struct karst_error *error) {
    *threads = (struct cpython_threads){0};
    const struct cpython_layout *layout = &python->layout;
    for (size_t i = 0; i < python->interpreter_count; i++) {
        const struct cpython_interpreter *of = &python->interpreters[i];
        uint64_t first = cpython_u64(python, of->address + layout->interp.threads), state = first;
        while (state) {
            if (threads->count >= THREADS_MAX ||
                cpython_u64(python, state + layout->thread.interp) != of->address) {
                threads->damaged = true;
                break;
            }
            if (!add_thread(python, threads, of, state)) {
                cpython_threads_clear(threads);
                return karst_fail_memory(error);
            }
            if (!cpython_read(python, state + layout->thread.next, &state) || state == first) {
                threads->damaged = true;
                break;
            }
        }
    }
    if (threads->count) {
        qsort(threads->items, threads->count, sizeof *threads->items, compare_threads);
    }
    return true;
}

void cpython_threads_clear(struct cpython_threads *threads) {
    free(threads->items);
    threads->items = NULL;
    threads->count = 0;
}

/* ---- frames -------------------------------------------------------------------------------------------- */

/* The offset in bytes of the instruction that a frame stands at in its code; -1: before the first. */
static int64_t instruction_offset(struct cpython *python, uint64_t frame, uint64_t code) {
    const struct cpython_layout *layout = &python->layout;
    if (layout->frames == CPYTHON_FRAME_OBJECTS) {
        int64_t offset = (int32_t)cpython_u32(python, frame + layout->frame.instruction);
        /* Counted in bytes by 3.9, in units of two bytes by 3.10. */
        return offset < 0 ? -1 : layout->lines == CPYTHON_LINETABLE ? 2 * offset : offset;
    }
    uint64_t at = cpython_u64(python, frame + layout->frame.instruction), first = code + layout->code.bytes;
    return at >= first && at - first < INT32_MAX ? (int64_t)(at - first) : -1;
}

static int64_t line_of(struct cpython *python, uint64_t code, int64_t offset) {
    const struct cpython_layout *layout = &python->layout;
    uint64_t bytes = cpython_u64(python, code + layout->code.lines),
             size = cpython_u64(python, bytes + OB_SIZE);
    const struct cpython_type *type = cpython_type_of(python, bytes);
    int64_t first = (int32_t)cpython_u32(python, code + layout->code.first_line);
    if (!type || !(type->flags & CPYTHON_TYPE_BYTES) || size > TABLE_MAX) {
        return 0;
    }
    uint8_t *table = malloc(size + 1);
    int64_t line = 0;
    if (table && karst_target_read_all(python->target, bytes + BYTES_DATA, table, (size_t)size)) {
        line = cpython_line(layout->lines, table, (size_t)size, first, offset);
    }
    free(table);
    return line;
}

/* Frames that are no Python function's, or that only begin: traceback leaves them out too
 * (_PyFrame_IsIncomplete). */
static bool is_shown(struct cpython *python, uint64_t frame, uint64_t code, unsigned owner) {
    const struct cpython_layout *layout = &python->layout;
    if (layout->frame.owner == CPYTHON_NONE) {
        return true;
    }
    if (layout->frame.shim != CPYTHON_NONE && owner >= layout->frame.shim) {
        return false;
    }
    if (owner == 1 /* a generator's */ || layout->code.first_traceable == CPYTHON_NONE ||
        !python->layout_known) {
        return true;
    }
    int64_t first = (int32_t)cpython_u32(python, code + layout->code.first_traceable);
    uint64_t at = cpython_u64(python, frame + layout->frame.instruction);
    return at >= code + layout->code.bytes + 2 * (uint64_t)(first > 0 ? first : 0);
}

/* By its type's name or, where that is missing with the file it stands in, by a file and a name that are
 * text. */
static bool is_code(struct cpython *python, uint64_t code) {
    const struct cpython_type *type = cpython_type_of(python, code);
    char text[8];
    if (!type || !type->unnamed) {
        return type && strcmp(type->name, "code") == 0;
    }
    return cpython_text(python, cpython_u64(python, code + python->layout.code.filename), text,
                        sizeof text) &&
           cpython_text(python, cpython_u64(python, code + python->layout.code.name), text, sizeof text);
}

static void fill_frame(struct cpython *python, uint64_t address, uint64_t code, struct cpython_frame *frame) {
    const struct cpython_layout *layout = &python->layout;
    *frame = (struct cpython_frame){.address = address, .code = code};
    frame->line = line_of(python, code, instruction_offset(python, address, code));
    uint32_t name = layout->code.qualname != CPYTHON_NONE ? layout->code.qualname : layout->code.name;
    cpython_text(python, cpython_u64(python, code + name), frame->function, sizeof frame->function);
    cpython_text(python, cpython_u64(python, code + layout->code.filename), frame->file, sizeof frame->file);
}

bool cpython_frame_object(struct cpython *python, uint64_t address, struct cpython_frame *frame) {
    uint64_t code = cpython_u64(python, address + python->layout.frame.code);
    if (python->layout.frames != CPYTHON_FRAME_OBJECTS || !is_code(python, code)) {
        return false;
    }
    fill_frame(python, address, code, frame);
    return true;
}

static unsigned owner_of(struct cpython *python, uint64_t frame) {
    const uint8_t *byte = python->layout.frame.owner == CPYTHON_NONE
                              ? NULL
                              : karst_cache_at(&python->cache, frame + python->layout.frame.owner, 1);
    return byte ? *byte : 0;
}

/* Whether C code called the Python function of this frame: each of the older versions' is called from C, 3.11
 * notes it, and later ones have a frame of another owner before it. */
static bool is_entry(struct cpython *python, uint64_t frame, uint64_t previous) {
    const struct cpython_layout *layout = &python->layout;
    if (layout->frames == CPYTHON_FRAME_OBJECTS || previous == 0) {
        return true;
    }
    if (layout->frame.entry != CPYTHON_NONE) {
        const uint8_t *byte = karst_cache_at(&python->cache, frame + layout->frame.entry, 1);
        return byte && *byte != 0;
    }
    return owner_of(python, previous) >= layout->frame.shim;
}

void cpython_each_frame(struct cpython *python, const struct cpython_thread *thread,
                        bool (*visit)(void *context, const struct cpython_frame *frame), void *context,
                        bool *damaged) {
    const struct cpython_layout *layout = &python->layout;
    uint64_t at = thread->frame, tortoise = 0, limit = 1, steps = 0;
    *damaged = false;
    for (uint32_t i = 0; at; i++) {
        uint64_t previous, code = cpython_u64(python, at + layout->frame.code) & ~(uint64_t)3;
        unsigned owner = owner_of(python, at);
        bool shim = layout->frame.shim != CPYTHON_NONE && owner >= layout->frame.shim;
        if (at % 8 != 0 || at == tortoise || i >= FRAMES_MAX ||
            !cpython_read(python, at + layout->frame.previous, &previous) ||
            (!shim && !is_code(python, code))) {
            *damaged = true;
            return;
        }
        if (!shim && is_shown(python, at, code, owner)) {
            struct cpython_frame frame;
            fill_frame(python, at, code, &frame);
            frame.entry = is_entry(python, at, previous);
            if (!visit(context, &frame)) {
                return;
            }
        }
        if (++steps == limit) {
            tortoise = at;
            steps = 0;
            limit *= 2;
        }
        at = previous;
    }
}

/* ---- locals -------------------------------------------------------------------------------------------- */

static uint64_t cell_content(struct cpython *python, uint64_t value, bool may_be_cell) {
    const struct cpython_type *type = may_be_cell ? cpython_type_of(python, value) : NULL;
    return type && strcmp(type->name, "cell") == 0 ? cpython_u64(python, value + CELL_VALUE) : value;
}

/* Of a frame at the level of a module or class. */
static void each_name(struct cpython *python, uint64_t names,
                      bool (*visit)(void *context, const struct cpython_local *local), void *context) {
    struct cpython_dict dict;
    if (!cpython_dict_open(python, names, &dict)) {
        return;
    }
    for (uint64_t i = 0; i < dict.count && i < LOCALS_MAX; i++) {
        struct cpython_local local = {0};
        uint64_t key;
        if (cpython_dict_entry(python, &dict, i, &key, &local.value) &&
            cpython_text(python, key, local.name, sizeof local.name) && !visit(context, &local)) {
            return;
        }
    }
}

struct locals {
    struct cpython *python;
    const struct cpython_frame *frame;
    bool (*visit)(void *context, const struct cpython_local *local);
    void *context;
    uint64_t slot; /* of the next one in the frame */
};

static bool tell_local(struct locals *locals, uint64_t name, bool may_be_cell) {
    struct cpython *python = locals->python;
    struct cpython_local local = {0};
    uint64_t value =
        cpython_u64(python, locals->frame->address + python->layout.frame.localsplus + 8 * locals->slot++);
    /* Since 3.14 the lowest bits are a tag: 3 is a small number, not an object. */
    local.value = (value & 3) == 3 ? 0 : cell_content(python, value & ~(uint64_t)3, may_be_cell);
    return !cpython_text(python, name, local.name, sizeof local.name) ||
           locals->visit(locals->context, &local);
}

static bool each_in_tuple(struct locals *locals, uint64_t tuple, bool may_be_cell) {
    uint64_t count = cpython_tuple_size(locals->python, tuple);
    for (uint64_t i = 0; i < count && i < LOCALS_MAX; i++) {
        if (!tell_local(locals, cpython_tuple_item(locals->python, tuple, i), may_be_cell)) {
            return false;
        }
    }
    return true;
}

void cpython_each_local(struct cpython *python, const struct cpython_frame *frame,
                        bool (*visit)(void *context, const struct cpython_local *local), void *context) {
    const struct cpython_layout *layout = &python->layout;
    struct locals locals = {python, frame, visit, context, 0};
    if (!(cpython_u32(python, frame->code + layout->code.flags) & CODE_OPTIMIZED)) {
        each_name(python, cpython_u64(python, frame->address + layout->frame.locals), visit, context);
        return;
    }
    if (layout->code.names == CPYTHON_NONE) {
        (void)(each_in_tuple(&locals, cpython_u64(python, frame->code + layout->code.variables), false) &&
               each_in_tuple(&locals, cpython_u64(python, frame->code + layout->code.cells), true) &&
               each_in_tuple(&locals, cpython_u64(python, frame->code + layout->code.frees), true));
        return;
    }
    uint64_t tuple = cpython_u64(python, frame->code + layout->code.names),
             kinds = cpython_u64(python, frame->code + layout->code.kinds),
             count = cpython_tuple_size(python, tuple);
    for (uint64_t i = 0; i < count && i < LOCALS_MAX; i++) {
        const uint8_t *kind = karst_cache_at(&python->cache, kinds + BYTES_DATA + i, 1);
        bool may_be_cell = kind && *kind & (KIND_CELL | KIND_FREE);
        if (!tell_local(&locals, cpython_tuple_item(python, tuple, i), may_be_cell)) {
            return;
        }
    }
}
