/* A session: a target and the heaps that were found in it. */
#ifndef KARST_ALLOCATOR_SESSION_H
#define KARST_ALLOCATOR_SESSION_H

#include "allocator.h"

struct cpython_set;
struct karst_marker;

struct karst {
    struct karst_target *target;
    struct karst_options options;
    bool searched; /* heaps were looked for */
    struct karst_heap **heaps;
    size_t heap_count;
    struct karst_extent *extents; /* of all heaps, in address order */
    size_t extent_count;
    bool bins_loaded;
    struct cpython_set *cpython; /* the Python runtimes in the target; NULL: not looked for */
    struct karst_marker *marker; /* of the preload library; NULL: not looked for */
    /* Progress of the work under way. */
    const char *work;
    uint64_t work_done, work_total;
    uint64_t next_poll_ns;
    bool interrupted;
};

/* A process whose memory may not be read: for verbs that need no more than its number (KARST_NEEDS_PROCESS).
 * As karst_open_process() otherwise; a remark says why, after what is already in error. */
struct karst *karst_open_unread(int64_t pid, struct karst_error *error);

/* A process that is gone, by the files of its flight recorder; see karst_recorded_open(). */
struct karst *karst_open_recorded(const char *directory, int64_t pid, const struct karst_options *options,
                                  struct karst_error *error);

/* Looks for heaps, once; true and no heaps when there are none. Every verb that needs heaps calls it. */
bool karst_session_find_heaps(struct karst *session, struct karst_error *error);
/* The same, and an error that says what was tried when there is no heap at all. */
bool karst_session_need_heaps(struct karst *session, struct karst_error *error);
/* Takes over heap and gives it its index; for allocators' find(). false: out of memory, not taken. */
bool karst_session_add_heap(struct karst *session, struct karst_heap *heap);
/* Fills the bins' counts in all heaps, once. */
bool karst_session_load_bins(struct karst *session, struct karst_error *error);

/* Streams all extents that touch [start, end) of all heaps to sink, in address order; whole extents, so
 * the sink drops what lies outside. true also when the sink had enough. */
bool karst_session_walk(struct karst *session, uint64_t start, uint64_t end, struct karst_sink *sink,
                        struct karst_error *error);
/* Bytes of all extents. */
uint64_t karst_session_bytes(const struct karst *session);
/* Begins a piece of work of total bytes (0: unknown) that `poll` is told about as what. */
void karst_session_begin(struct karst *session, const char *what, uint64_t total);
/* Says that bytes more were read; false and error KARST_ERROR_INTERRUPTED: stop. Cheap enough for every
 * few KiB: it looks at the clock at most once per 4 MiB. */
bool karst_session_progress(struct karst *session, uint64_t bytes, struct karst_error *error);
/* The heap's extent that holds address, NULL: none. */
const struct karst_extent *karst_heap_extent(const struct karst_heap *heap, uint64_t address);
/* The extent of any heap that holds address, the innermost of nested ones; NULL: none. */
const struct karst_extent *karst_session_extent(const struct karst *session, uint64_t address);

/* "main", "mapped" for KARST_NONE; with the heap's name in front where there are several heaps. */
struct karst_arena_text {
    char text[80];
};
struct karst_arena_text karst_arena_text(const struct karst *session, uint16_t heap, uint32_t arena);

#endif
