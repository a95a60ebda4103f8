#include <errno.h>

#include "calls.h"
#include "marks.h"

uint32_t call_gate(enum karst_function function) {
    uint32_t gate = gate_of(function);
    if (gate & KARST_GATE_CHANGED || !(gate & KARST_GATE_READY)) {
        control_update();
        gate = gate_of(function);
    }
    return gate;
}

static bool traps_concern(uint32_t gate, const struct call *call) {
    return gate & KARST_GATE_TRAP ||
           (gate & KARST_GATE_SIZE &&
            !only_other_sizes(call->function, KARST_GATE_READY | KARST_GATE_SIZE, call->size));
}

void call_begin(struct around *around, struct call *call) {
    int saved = errno;
    around->gate = call_gate(call->function);
    around->trapped = traps_concern(around->gate, call);
    if (around->trapped) {
        traps_before(call);
        around->growth = traps_want_growth();
        around->system_before = around->growth ? growth_now() : 0;
    }
    call->site = around->gate & KARST_GATE_STACK ? stacks_site(call->caller) : call->caller;
    errno = saved;
}

void call_end(struct around *around, struct call *call, const void *address) {
    call->address = (uint64_t)(uintptr_t)address;
    if (around->trapped) {
        int saved = errno;
        uint64_t now = around->growth ? growth_now() : 0;
        traps_after(call, now > around->system_before ? now - around->system_before : 0);
        errno = saved;
    }
}

COLD void *call_allocate(enum way way, struct call *call) {
    struct around around = {0};
    call_begin(&around, call);
    enum way asked = way;
    if (around.gate & KARST_GATE_MARK && (way == BY_ALIGNED_ALLOC || way == BY_PVALLOC)) {
        /* Room for a mark is no multiple of the alignment, and pvalloc would round it up to a page. */
        call->alignment = way == BY_PVALLOC ? karst_control.page_size : call->alignment;
        way = BY_MEMALIGN;
    }
    void *block = ask_and_note(way, call->function, call->size, call->alignment, around.gate, call->site,
                               record_site_of(call));
    if (!block && way != asked && asked == BY_ALIGNED_ALLOC) {
        /* jemalloc's memalign leaves errno alone when it refuses an alignment, its aligned_alloc does not. */
        next.free(next.aligned_alloc(call->alignment, call->size));
    }
    call_end(&around, call, block);
    return block;
}

/* True: nothing is wrong with the block that is given back, or it was told and the allocator may have it.
 * False: the allocator must not see it. */
static bool release(const struct call *call) {
    void *block = (void *)(uintptr_t)call->old_address;
    if (marks_release(block, call->site)) {
        return true;
    }
    struct karst_why why = {0};
    why.fault = marks_judge(call, &why);
    if (why.fault == KARST_FAULT_NONE) {
        return true;
    }
    int saved = errno;
    traps_fault(call, &why);
    errno = saved;
    if (why.fault == KARST_FAULT_OVERFLOW) {
        marks_release_damaged(block);
        return true;
    }
    return false;
}

COLD void call_free(struct call *call) {
    struct around around = {0};
    void *block = (void *)(uintptr_t)call->old_address;
    if (!block) {
        return;
    }
    call_begin(&around, call);
    if (around.gate & KARST_GATE_MARK && !release(call)) {
        return;
    }
    if (around.gate & KARST_GATE_RECORD) {
        recorder_write(KARST_EVENT_FREE, call->old_address, 0, record_site_of(call));
    }
    next.free(block);
}

/* realloc(old, 0) frees in some allocators; in the others it gives a small block, which is marked like any.
 */
static bool frees_now(const struct call *call) {
    return call->old_address && call->size == 0 && next_frees_at_zero;
}

static void *move_marked(struct call *call, void *old) {
    if (old && !release(call)) {
        errno = ENOMEM;
        return NULL; /* it was told; no allocator could make anything of it */
    }
    void *block = next.realloc(old, frees_now(call) ? 0 : marks_room(call->size));
    if (block && !frees_now(call)) {
        marks_put(block, call->size, call->site, call->function);
    } else if (!block && old && !frees_now(call)) {
        marks_restore(old);
    }
    return block;
}

COLD void *call_move(struct call *call) {
    struct around around = {0};
    void *old = (void *)(uintptr_t)call->old_address;
    call_begin(&around, call);
    bool record = around.gate & KARST_GATE_RECORD;
    if (record && old) {
        recorder_write(KARST_EVENT_MOVE, call->old_address, call->size, record_site_of(call));
    }
    void *block = around.gate & KARST_GATE_MARK ? move_marked(call, old) : next.realloc(old, call->size);
    if (record) {
        enum karst_event_kind kind = !old              ? KARST_EVENT_ALLOCATE
                                     : frees_now(call) ? KARST_EVENT_RELEASED
                                                       : KARST_EVENT_MOVED;
        recorder_write(kind, (uint64_t)(uintptr_t)block, call->size, record_site_of(call));
    }
    call_end(&around, call, block);
    return block;
}
