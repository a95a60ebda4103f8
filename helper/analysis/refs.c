#include "refs.h"

#include <stdlib.h>
#include <string.h>

#include "place.h"
#include "scan.h"
#include "threads.h"

/* Near a thread pointer lies the thread's own data: its thread-local storage and the thread library's
 * descriptor, which is no larger than this. */
#define THREAD_ABOVE (4u << 10)

struct stack_pointer {
    uint64_t address;
    const struct karst_thread *thread;
};

struct finder {
    struct karst_sink sink; /* first */
    struct karst_refs *refs;
    struct karst_scan scan;
    struct karst_error *error;
    bool failed;                            /* error says why */
    struct stack_pointer *stacks, *threads; /* sorted by address */
    size_t stack_count, thread_count;
    uint64_t storage;                    /* thread-local, below a thread pointer */
    const struct karst_mapping *mapping; /* under way */
    const struct karst_block *blocks;    /* of the batch under way */
    size_t block_count, block_index;
    struct karst_block last; /* of the batch before; all zero: none */
    uint64_t first_hit;      /* of the extent under way */
    uint64_t scanned_to;
};

const char *karst_ref_kind_name(enum karst_ref_kind kind) {
    static const char *const names[KARST_REF_KINDS] = {"register",   "stack",    "thread", "global",
                                                       "block",      "metadata", "other",  "freed block",
                                                       "dead stack", "damaged"};
    return kind < KARST_REF_KINDS ? names[kind] : "?";
}

/* ---- keeping --------------------------------------------------------------------------------------- */

static void count_ref(struct karst_refs *refs, enum karst_ref_kind kind, uint64_t value) {
    bool exact = value == (refs->has_block ? refs->block.address : refs->address);
    if (exact) {
        refs->counts[kind].exact++;
    } else {
        refs->counts[kind].interior++;
    }
}

/* A place for a reference, NULL: only counted. Kinds in their order, in each what was met first. */
static struct karst_ref *add(struct karst_refs *refs, enum karst_ref_kind kind, uint64_t address,
                             uint64_t value) {
    count_ref(refs, kind, value);
    struct karst_ref *ref = karst_best_offer(&refs->refs, (uint64_t)(KARST_REF_KINDS - kind));
    if (ref) {
        ref->kind = (uint8_t)kind;
        ref->address = address;
        ref->value = value;
    }
    return ref;
}

/* ---- threads --------------------------------------------------------------------------------------- */

static void look_at_registers(struct karst_refs *refs) {
    const struct karst_target *target = refs->session->target;
    for (size_t i = 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        for (uint32_t k = 0; k < thread->register_count && k < KARST_REGISTERS_MAX; k++) {
            uint64_t value = thread->registers[k];
            struct karst_ref *ref =
                value - refs->low < refs->size ? add(refs, KARST_REF_REGISTER, 0, value) : NULL;
            if (ref) {
                ref->tid = thread->tid;
                ref->reg = k;
            }
        }
    }
}

static int compare_pointers(const void *a, const void *b) {
    const struct stack_pointer *x = a, *y = b;
    return x->address < y->address ? -1 : x->address > y->address;
}

static bool sort_threads(struct finder *finder) {
    const struct karst_target *target = finder->refs->session->target;
    finder->stacks = calloc(target->thread_count + 1, sizeof *finder->stacks);
    finder->threads = calloc(target->thread_count + 1, sizeof *finder->threads);
    if (!finder->stacks || !finder->threads) {
        return false;
    }
    for (size_t i = 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        if (thread->stack_pointer) {
            finder->stacks[finder->stack_count++] = (struct stack_pointer){thread->stack_pointer, thread};
        }
        if (thread->thread_pointer) {
            finder->threads[finder->thread_count++] = (struct stack_pointer){thread->thread_pointer, thread};
        }
    }
    qsort(finder->stacks, finder->stack_count, sizeof *finder->stacks, compare_pointers);
    qsort(finder->threads, finder->thread_count, sizeof *finder->threads, compare_pointers);
    return true;
}

/* The last one at or below address, or NULL. */
static const struct stack_pointer *at_or_below(const struct stack_pointer *pointers, size_t count,
                                               uint64_t address) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pointers[middle].address <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low ? &pointers[low - 1] : NULL;
}

/* The thread whose own data address is in. */
static const struct stack_pointer *thread_near(const struct finder *finder, uint64_t address) {
    const struct karst_mapping *mapping = finder->mapping;
    const struct stack_pointer *below = at_or_below(finder->threads, finder->thread_count, address);
    if (below && address - below->address < THREAD_ABOVE && below->address >= mapping->start) {
        return below;
    }
    const struct stack_pointer *above = below ? below + 1 : finder->threads;
    if (above < finder->threads + finder->thread_count && above->address - address <= finder->storage &&
        above->address < mapping->end) {
        return above;
    }
    return NULL;
}

/* A pointer in a mapping that holds stack pointers: in use from the nearest of them below on, up to that
 * thread's own data, which lies at the upper end of the stacks that pthread_create() makes. */
static bool add_in_stack(struct finder *finder, uint64_t address, uint64_t value) {
    const struct karst_mapping *mapping = finder->mapping;
    const struct stack_pointer *last = finder->stacks + finder->stack_count;
    const struct stack_pointer *stack = at_or_below(finder->stacks, finder->stack_count, address);
    bool is_used = stack && stack->address >= mapping->start;
    const struct stack_pointer *next = is_used ? stack : stack ? stack + 1 : finder->stacks;
    if (!is_used && (next == last || next->address >= mapping->end)) {
        return false; /* no stack at all */
    }
    uint64_t bottom = next->thread->thread_pointer;
    if (is_used && bottom > stack->address && bottom < mapping->end && address >= bottom + THREAD_ABOVE) {
        return false; /* behind the stack */
    }
    struct karst_ref *ref =
        add(finder->refs, is_used ? KARST_REF_STACK : KARST_REF_DEAD_STACK, address, value);
    if (ref) {
        ref->tid = next->thread->tid;
        ref->offset = (int64_t)(address - next->address);
    }
    return true;
}

static bool take_outside(void *context, uint64_t address, uint64_t value) {
    struct finder *finder = context;
    const struct stack_pointer *thread = thread_near(finder, address);
    /* Above a stack pointer and below the thread pointer of one mapping it can be either: stack. */
    const struct stack_pointer *stack = at_or_below(finder->stacks, finder->stack_count, address);
    bool may_be_stack =
        stack && stack->address >= finder->mapping->start && thread && address < thread->address;
    if (thread && !may_be_stack && !karst_target_module(finder->refs->session->target, address)) {
        struct karst_ref *ref = add(finder->refs, KARST_REF_THREAD, address, value);
        if (ref) {
            ref->tid = thread->thread->tid;
            ref->offset = (int64_t)(address - thread->address);
        }
    } else if (!add_in_stack(finder, address, value)) {
        bool global = karst_target_module(finder->refs->session->target, address) != NULL;
        add(finder->refs, global ? KARST_REF_GLOBAL : KARST_REF_OTHER, address, value);
    }
    return true;
}

/* ---- heaps ----------------------------------------------------------------------------------------- */

static bool take_first(void *context, uint64_t address, uint64_t value) {
    struct finder *finder = context;
    (void)value;
    finder->first_hit = address;
    return false;
}

/* The block that the word at address belongs to: in a header it may still be the program's, as the last word
 * that it may use of the block before. */
static const struct karst_block *holder(const struct finder *finder, uint64_t address) {
    const struct karst_block *block = &finder->blocks[finder->block_index];
    const struct karst_block *before = finder->block_index ? block - 1 : &finder->last;
    bool is_before = address < block->address && before->state == KARST_STATE_LIVE &&
                     address - before->address < before->usable;
    return is_before ? before : block;
}

static bool take_in_heap(void *context, uint64_t address, uint64_t value) {
    static const enum karst_ref_kind kinds[KARST_STATES] = {
        [KARST_STATE_LIVE] = KARST_REF_LIVE,         [KARST_STATE_FREE] = KARST_REF_FREED,
        [KARST_STATE_CACHED] = KARST_REF_FREED,      [KARST_STATE_TOP] = KARST_REF_FREED,
        [KARST_STATE_METADATA] = KARST_REF_METADATA, [KARST_STATE_UNKNOWN] = KARST_REF_UNKNOWN};
    struct finder *finder = context;
    while (finder->block_index + 1 < finder->block_count &&
           finder->blocks[finder->block_index + 1].start <= address) {
        finder->block_index++;
    }
    const struct karst_block *block = holder(finder, address);
    enum karst_ref_kind kind = block->state < KARST_STATES ? kinds[block->state] : KARST_REF_UNKNOWN;
    struct karst_ref *ref = add(finder->refs, kind, address, value);
    if (ref) {
        ref->has_block = true;
        ref->block = *block;
        ref->offset = (int64_t)(address - block->address);
    }
    return true;
}

static bool take_blocks(struct karst_sink *sink, const struct karst_block *blocks, size_t count) {
    struct finder *finder = (struct finder *)sink;
    uint64_t start = blocks[0].start, end = blocks[count - 1].start + blocks[count - 1].size;
    start = start > finder->scanned_to ? start : finder->scanned_to;
    if (end <= start) {
        finder->last = blocks[count - 1];
        return true;
    }
    finder->blocks = blocks;
    finder->block_count = count;
    finder->block_index = 0;
    finder->scanned_to = end;
    if (!karst_scan_range(&finder->scan, start, end, false, finder->error)) {
        finder->failed = true;
        return false;
    }
    finder->last = blocks[count - 1];
    return true;
}

/* Tells progress of what is left of the work on an extent, which is to read it and to walk it. */
static bool end_extent(struct finder *finder, uint64_t expected) {
    struct karst *session = finder->refs->session;
    return session->work_done >= expected ||
           karst_session_progress(session, expected - session->work_done, finder->error);
}

/* Most extents have no hit: they are scanned, but not walked. */
static bool look_at_extent(struct finder *finder, const struct karst_extent *extent) {
    struct karst_scan *scan = &finder->scan;
    uint64_t unreadable = scan->unreadable;
    uint64_t expected = finder->refs->session->work_done + 2 * (extent->end - extent->start);
    finder->first_hit = 0;
    scan->found = take_first;
    scan->stopped = false;
    bool scanned = karst_scan_range(scan, extent->start, extent->end, true, finder->error);
    scan->stopped = false;
    if (!scanned || finder->first_hit == 0) {
        return scanned && end_extent(finder, expected);
    }
    scan->unreadable = unreadable;
    scan->found = take_in_heap;
    finder->scanned_to = finder->first_hit;
    finder->last = (struct karst_block){0};
    struct karst_heap *heap = finder->refs->session->heaps[extent->heap];
    struct karst_error own = {0};
    if (!heap->allocator->walk(heap, extent, &finder->sink, &own) && !finder->failed &&
        own.code != KARST_ERROR_NONE) {
        *finder->error = own;
        return false;
    }
    return !finder->failed && end_extent(finder, expected);
}

/* ---- all of it --------------------------------------------------------------------------------------- */

static bool is_looked_at(const struct karst_mapping *mapping) {
    const uint32_t needed = KARST_MAPPING_READ | KARST_MAPPING_WRITE;
    bool kernel = mapping->name &&
                  (strncmp(mapping->name, "[vvar", 5) == 0 || strncmp(mapping->name, "[vsyscall", 9) == 0);
    return (mapping->permissions & needed) == needed && !(mapping->permissions & KARST_MAPPING_SHARED) &&
           !kernel;
}

/* The part of the mapping outside all extents; *next: the first extent that may still touch it. */
static bool look_at_mapping(struct finder *finder, const struct karst_mapping *mapping, size_t *next) {
    const struct karst *session = finder->refs->session;
    uint64_t at = mapping->start;
    finder->mapping = mapping;
    finder->scan.found = take_outside;
    for (; *next < session->extent_count && at < mapping->end; ++*next) {
        const struct karst_extent *extent = &session->extents[*next];
        if (extent->start >= mapping->end) {
            break;
        }
        if (extent->start > at && !karst_scan_range(&finder->scan, at, extent->start, true, finder->error)) {
            return false;
        }
        at = extent->end > at ? extent->end : at;
        if (extent->end > mapping->end) {
            return true; /* reaches into the next mapping, too */
        }
    }
    return at >= mapping->end || karst_scan_range(&finder->scan, at, mapping->end, true, finder->error);
}

static bool look_everywhere(struct finder *finder) {
    struct karst *session = finder->refs->session;
    const struct karst_target *target = session->target;
    uint64_t total = 0, heap_end = 0;
    for (size_t i = 0; i < target->mapping_count; i++) {
        total += is_looked_at(&target->mappings[i]) ? target->mappings[i].end - target->mappings[i].start : 0;
    }
    finder->refs->scanned = total;
    karst_session_begin(session, "looking for pointers", total + karst_session_bytes(session));
    size_t next = 0;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (is_looked_at(mapping) && !look_at_mapping(finder, mapping, &next)) {
            return false;
        }
    }
    for (size_t i = 0; i < session->extent_count; i++) {
        struct karst_extent extent = session->extents[i];
        /* Of extents that overlap, in a damaged target, each byte once. */
        if (extent.end <= heap_end) {
            continue;
        }
        heap_end = extent.end;
        if (!look_at_extent(finder, &session->extents[i])) {
            return false;
        }
    }
    return true;
}

static bool find_block(struct karst_refs *refs, struct karst_error *error) {
    struct karst_neighbourhood found;
    struct karst_error own = {0};
    if (karst_find_neighbourhood(refs->session, refs->address, &found, &own)) {
        refs->has_block = true;
        refs->block = found.block;
        refs->low = found.block.start;
        refs->size = found.block.size;
        return true;
    }
    if (own.code != KARST_ERROR_NOT_FOUND) {
        *error = own;
        return false;
    }
    refs->low = refs->address;
    refs->size = 1;
    return true;
}

bool karst_refs_find(struct karst *session, uint64_t address, size_t limit, struct karst_refs *refs,
                     struct karst_error *error) {
    struct karst_error own = {0};
    *refs = (struct karst_refs){.session = session, .address = address};
    if (!find_block(refs, &own)) {
        if (error) {
            *error = own;
        }
        return false;
    }
    karst_best_open(&refs->refs, sizeof(struct karst_ref), limit);
    struct finder finder = {.sink = {.blocks = take_blocks}, .refs = refs, .error = &own};
    karst_scan_open(&finder.scan, session, refs->low, refs->size);
    finder.scan.context = &finder;
    bool done = sort_threads(&finder) || karst_fail_memory(&own);
    if (done) {
        finder.storage = karst_thread_storage(session->target);
        look_at_registers(refs);
        done = look_everywhere(&finder);
    }
    refs->unreadable = finder.scan.unreadable;
    karst_scan_close(&finder.scan);
    free(finder.stacks);
    free(finder.threads);
    if (done && refs->refs.out_of_memory) {
        done = karst_fail_memory(&own);
    }
    if (!done) {
        karst_refs_close(refs);
        if (error) {
            *error = own;
        }
        return false;
    }
    karst_best_sort(&refs->refs);
    return true;
}

void karst_refs_close(struct karst_refs *refs) {
    karst_best_close(&refs->refs);
}
