#include "session.h"
#include "cpython.h"
#include "marker.h"
#include "recorded.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const struct karst_allocator *const karst_allocators[] = {&karst_glibc, &karst_jemalloc, &karst_pymalloc,
                                                          NULL};
#define ALLOCATORS (sizeof karst_allocators / sizeof *karst_allocators - 1)

#define POLL_EVERY_BYTES (4u << 20)
#define POLL_EVERY_NS    250000000u

const char *karst_extent_kind_name(enum karst_extent_kind kind) {
    static const char *const names[KARST_EXTENT_KINDS] = {"brk", "heap", "segment", "mapped", "pages", "own"};
    return kind < KARST_EXTENT_KINDS ? names[kind] : "?";
}

const char *karst_state_name(enum karst_state state) {
    static const char *const names[KARST_STATES] = {"live", "free", "cached", "top", "metadata", "unknown"};
    return state < KARST_STATES ? names[state] : "?";
}

const char *karst_version(void) {
    return KARST_VERSION;
}

uint32_t karst_api_version(void) {
    return KARST_API_VERSION;
}

/* Takes over target, also when it fails. */
static struct karst *open_session(struct karst_target *target, const struct karst_options *options,
                                  struct karst_error *error) {
    if (!target) {
        return NULL;
    }
    struct karst *session = calloc(1, sizeof *session);
    if (!session) {
        karst_target_close(target);
        karst_fail_memory(error);
        return NULL;
    }
    session->target = target;
    if (options) {
        session->options = *options;
        /* The target copied what it needs of the strings; ours would dangle. */
        session->options.executable = session->options.sysroot = session->options.debug_directory = NULL;
    }
    return session;
}

struct karst *karst_open_core(const char *path, const struct karst_options *options,
                              struct karst_error *error) {
    return open_session(karst_core_open(path, options, error), options, error);
}

struct karst *karst_open_process(int64_t pid, const struct karst_options *options,
                                 struct karst_error *error) {
    return open_session(karst_process_open(pid, options, error), options, error);
}

struct karst *karst_open_unread(int64_t pid, struct karst_error *error) {
    return open_session(karst_process_open_unread(pid, error), NULL, error);
}

struct karst *karst_open_recorded(const char *directory, int64_t pid, const struct karst_options *options,
                                  struct karst_error *error) {
    return open_session(karst_recorded_open(directory, pid, options, error), options, error);
}

struct karst *karst_open_callbacks(const struct karst_callbacks *callbacks,
                                   const struct karst_options *options, struct karst_error *error) {
    return open_session(karst_callbacks_open(callbacks, options, error), options, error);
}

void karst_close(struct karst *session) {
    if (!session) {
        return;
    }
    for (size_t i = 0; i < session->heap_count; i++) {
        session->heaps[i]->allocator->close(session->heaps[i]);
    }
    free(session->heaps);
    free(session->extents);
    cpython_set_close(session->cpython);
    karst_marker_close(session->marker);
    karst_target_close(session->target);
    free(session);
}

bool karst_session_add_heap(struct karst *session, struct karst_heap *heap) {
    if (session->heap_count >= UINT16_MAX) {
        return false;
    }
    struct karst_heap **heaps = realloc(session->heaps, (session->heap_count + 1) * sizeof *heaps);
    if (!heaps) {
        return false;
    }
    session->heaps = heaps;
    heap->index = (uint16_t)session->heap_count;
    heap->session = session;
    for (size_t i = 0; i < heap->extent_count; i++) {
        heap->extents[i].heap = heap->index;
    }
    heaps[session->heap_count++] = heap;
    return true;
}

static int compare_extents(const void *a, const void *b) {
    const struct karst_extent *x = a, *y = b;
    if (x->start != y->start) {
        return x->start < y->start ? -1 : 1;
    }
    return x->end < y->end ? 1 : x->end > y->end ? -1 : 0;
}

/* Extents are sorted, larger ones first: those that one lies in as a whole are before it. */
static void find_outer(struct karst *session) {
    size_t around = 0; /* 1 + index */
    for (size_t i = 0; i < session->extent_count; i++) {
        struct karst_extent *extent = &session->extents[i];
        while (around && session->extents[around - 1].end <= extent->start) {
            around = session->extents[around - 1].outer;
        }
        bool inside = around && extent->end <= session->extents[around - 1].end &&
                      extent->heap != session->extents[around - 1].heap;
        extent->outer = inside ? around : 0;
        around = inside || !around ? i + 1 : around;
    }
}

/* As karst_allocators has them; those of one allocator as they were found. */
static void order_heaps(struct karst *session) {
    size_t ordered = 0;
    for (size_t i = 0; i < ALLOCATORS; i++) {
        for (size_t k = ordered; k < session->heap_count; k++) {
            struct karst_heap *heap = session->heaps[k];
            if (heap->allocator == karst_allocators[i]) {
                memmove(&session->heaps[ordered + 1], &session->heaps[ordered],
                        (k - ordered) * sizeof(struct karst_heap *));
                session->heaps[ordered++] = heap;
            }
        }
    }
    for (size_t i = 0; i < session->heap_count; i++) {
        session->heaps[i]->index = (uint16_t)i;
        for (size_t k = 0; k < session->heaps[i]->extent_count; k++) {
            session->heaps[i]->extents[k].heap = (uint16_t)i;
        }
    }
}

static bool collect_extents(struct karst *session, struct karst_error *error) {
    size_t total = 0;
    for (size_t i = 0; i < session->heap_count; i++) {
        total += session->heaps[i]->extent_count;
    }
    if (total == 0) {
        return true;
    }
    session->extents = malloc(total * sizeof *session->extents);
    if (!session->extents) {
        return karst_fail_memory(error);
    }
    for (size_t i = 0; i < session->heap_count; i++) {
        const struct karst_heap *heap = session->heaps[i];
        for (size_t k = 0; k < heap->extent_count; k++) {
            session->extents[session->extent_count++] = heap->extents[k];
        }
    }
    qsort(session->extents, total, sizeof *session->extents, compare_extents);
    find_outer(session);
    return true;
}

bool karst_session_find_heaps(struct karst *session, struct karst_error *error) {
    if (session->searched) {
        return true;
    }
    for (size_t i = ALLOCATORS; i-- > 0;) {
        if (!karst_allocators[i]->find(session, error)) {
            return false;
        }
    }
    order_heaps(session);
    if (!collect_extents(session, error)) {
        return false;
    }
    session->searched = true;
    return true;
}

bool karst_session_need_heaps(struct karst *session, struct karst_error *error) {
    if (!karst_session_find_heaps(session, error)) {
        return false;
    }
    if (session->heap_count == 0) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          "no heap found in %s: looked for glibc's malloc and jemalloc in the writable data "
                          "of %zu modules%s",
                          session->target->name, session->target->module_count,
                          session->target->missing_memory ? "; parts of the target's memory are missing"
                                                          : "");
    }
    return true;
}

bool karst_session_load_bins(struct karst *session, struct karst_error *error) {
    if (session->bins_loaded) {
        return true;
    }
    karst_session_begin(session, "following the bins", 0);
    for (size_t i = 0; i < session->heap_count; i++) {
        if (!session->heaps[i]->allocator->load_bins(session->heaps[i], error)) {
            return false;
        }
    }
    session->bins_loaded = true;
    return true;
}

const struct karst_extent *karst_heap_extent(const struct karst_heap *heap, uint64_t address) {
    size_t low = 0, high = heap->extent_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (heap->extents[middle].end <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < heap->extent_count && heap->extents[low].start <= address ? &heap->extents[low] : NULL;
}

const struct karst_extent *karst_session_extent(const struct karst *session, uint64_t address) {
    size_t low = 0, high = session->extent_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (session->extents[middle].start <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    /* The last one that begins at or before address, or one around it: the innermost. */
    while (low > 0 && session->extents[low - 1].end <= address) {
        low = session->extents[low - 1].outer;
    }
    return low > 0 ? &session->extents[low - 1] : NULL;
}

bool karst_session_walk(struct karst *session, uint64_t start, uint64_t end, struct karst_sink *sink,
                        struct karst_error *error) {
    for (size_t i = 0; i < session->extent_count; i++) {
        const struct karst_extent *extent = &session->extents[i];
        if (extent->end <= start || extent->start >= end) {
            continue;
        }
        if (sink->extent && !sink->extent(sink, extent)) {
            return true;
        }
        struct karst_heap *heap = session->heaps[extent->heap];
        struct karst_error own = {0};
        if (!heap->allocator->walk(heap, extent, sink, &own)) {
            if (own.code == KARST_ERROR_NONE) {
                return true;
            }
            if (error) {
                *error = own;
            }
            return false;
        }
    }
    return true;
}

uint64_t karst_session_bytes(const struct karst *session) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < session->extent_count; i++) {
        bytes += session->extents[i].end - session->extents[i].start;
    }
    return bytes;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void karst_session_begin(struct karst *session, const char *what, uint64_t total) {
    session->work = what;
    session->work_done = 0;
    session->work_total = total;
    if (session->options.poll) {
        session->next_poll_ns = now_ns() + POLL_EVERY_NS;
    }
}

bool karst_session_progress(struct karst *session, uint64_t bytes, struct karst_error *error) {
    uint64_t before = session->work_done;
    session->work_done += bytes;
    if (!session->options.poll || before / POLL_EVERY_BYTES == session->work_done / POLL_EVERY_BYTES) {
        return true;
    }
    uint64_t now = now_ns();
    if (now < session->next_poll_ns) {
        return true;
    }
    session->next_poll_ns = now + POLL_EVERY_NS;
    if (session->options.poll(session->options.poll_context, session->work ? session->work : "",
                              session->work_done, session->work_total)) {
        return true;
    }
    return karst_fail(error, KARST_ERROR_INTERRUPTED, "interrupted");
}

struct karst_arena_text karst_arena_text(const struct karst *session, uint16_t heap, uint32_t arena) {
    struct karst_arena_text result; /* a heap that nobody uses, glibc's beside jemalloc, confuses no one */
    const struct karst_heap *of = session->heaps[heap];
    const char *name = arena < of->arena_count ? of->arenas[arena].name : "mapped";
    size_t used = 0;
    for (size_t i = 0; i < session->heap_count; i++) {
        used += session->heaps[i]->extent_count != 0;
    }
    if (used > 1) {
        snprintf(result.text, sizeof result.text, "%s/%s", of->name, name);
    } else {
        snprintf(result.text, sizeof result.text, "%s", name);
    }
    return result;
}
