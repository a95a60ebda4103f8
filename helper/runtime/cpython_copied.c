#include "cpython_copied.h"

#include <stdlib.h>

#include "cpython_census.h"

#define COLLECTOR_HEADER 16u
/* A mapping of its own is made for blocks beyond malloc's threshold, which is never less. */
#define BUFFER_LEAST 4096u

/* A stretch of an extent that no other extent has. */
struct piece {
    uint64_t first, end; /* pages */
    size_t row;
    uint8_t *marks; /* of each page; owned */
};

enum { MARK_COLLECTOR = 1, MARK_COUNTS = 2 };

struct finder {
    struct cpython *python;
    struct karst *session;
    struct cpython_copied *copied;
    struct piece *pieces; /* in address order */
    size_t count, room;
    const struct piece *last; /* that was asked for */
    uint64_t page_size;
};

const char *cpython_copied_name(enum cpython_copied_by by) {
    static const char *const names[] = {"collector", "counts", "writes"};
    return names[by];
}

void cpython_copied_add(struct cpython_copied_bytes *sum, const struct cpython_copied_bytes *more) {
    sum->resident += more->resident;
    sum->own += more->own;
    for (unsigned i = 0; i < CPYTHON_COPIED_KINDS; i++) {
        sum->own_by[i] += more->own_by[i];
        sum->shared_by[i] += more->shared_by[i];
    }
}

/* ---- pieces -------------------------------------------------------------------------------------- */

/* A page belongs to where its first byte is; the first page of memory that begins within it, to that. */
static bool add_piece(struct finder *finder, uint64_t start, uint64_t end, size_t row, bool whole_first) {
    uint64_t size = finder->page_size;
    uint64_t first = start / size + (!whole_first && start % size != 0),
             last = end / size + (end % size != 0);
    if (first >= last) {
        return true;
    }
    if (finder->count == finder->room) {
        size_t room = finder->room ? 2 * finder->room : 64;
        struct piece *pieces = realloc(finder->pieces, room * sizeof *pieces);
        if (!pieces) {
            return false;
        }
        finder->pieces = pieces;
        finder->room = room;
    }
    struct piece *piece = &finder->pieces[finder->count];
    *piece = (struct piece){.first = first, .end = last, .row = row, .marks = calloc(last - first, 1)};
    if (!piece->marks) {
        return false;
    }
    finder->count++;
    return true;
}

/* What extent number index has for itself: all but the extents right in it. */
static bool add_extent(struct finder *finder, size_t index) {
    const struct karst *session = finder->session;
    const struct karst_extent *extent = &session->extents[index];
    uint64_t at = extent->start;
    bool outermost = extent->outer == 0 && (index == 0 || session->extents[index - 1].end <=
                                                              at / finder->page_size * finder->page_size);
    for (size_t i = index + 1; i < session->extent_count && session->extents[i].start < extent->end; i++) {
        if (session->extents[i].outer != index + 1) {
            continue;
        }
        if (!add_piece(finder, at, session->extents[i].start, index, outermost && at == extent->start)) {
            return false;
        }
        at = session->extents[i].end;
    }
    return add_piece(finder, at, extent->end, index, outermost && at == extent->start);
}

static int by_address(const void *a, const void *b) {
    const struct piece *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

static bool make_pieces(struct finder *finder) {
    const struct karst *session = finder->session;
    finder->copied->rows = calloc(session->extent_count + 1, sizeof *finder->copied->rows);
    if (!finder->copied->rows) {
        return false;
    }
    finder->copied->count = session->extent_count;
    for (size_t i = 0; i < session->extent_count; i++) {
        finder->copied->rows[i].extent = &session->extents[i];
        if (!add_extent(finder, i)) {
            return false;
        }
    }
    if (finder->count) {
        qsort(finder->pieces, finder->count, sizeof *finder->pieces, by_address);
    }
    return true;
}

static const struct piece *piece_of(struct finder *finder, uint64_t page) {
    if (finder->last && page >= finder->last->first && page < finder->last->end) {
        return finder->last;
    }
    size_t low = 0, high = finder->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (finder->pieces[middle].end <= page) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == finder->count || page < finder->pieces[low].first) {
        return NULL;
    }
    return finder->last = &finder->pieces[low];
}

/* ---- what is on them ----------------------------------------------------------------------------- */

static void mark(struct finder *finder, uint64_t address, uint8_t bit) {
    uint64_t page = address / finder->page_size;
    const struct piece *piece = piece_of(finder, page);
    if (piece) {
        piece->marks[page - piece->first] |= bit;
    }
}

/* The row of the block with a mapping of its own that address is in; NULL: it is in none. */
static struct cpython_copied_row *mapped_row(struct finder *finder, uint64_t address) {
    const struct piece *piece = piece_of(finder, address / finder->page_size);
    struct cpython_copied_row *row = piece ? &finder->copied->rows[piece->row] : NULL;
    return row && row->extent->kind == KARST_EXTENT_MAPPED ? row : NULL;
}

static void name_mapped(struct finder *finder, uint64_t address, const struct cpython_object *object,
                        const char *what) {
    struct cpython_copied_row *row = mapped_row(finder, address);
    if (row) {
        row->object = object->address;
        row->what = what;
    }
}

static bool take_object(void *context, const struct karst_block *block, const struct cpython_object *object) {
    struct finder *finder = context;
    struct cpython_buffer buffers[CPYTHON_BUFFERS_MAX];
    (void)block;
    if (!object) {
        return true;
    }
    if (object->references < UINT32_MAX) { /* counts of immortal ones stay as they are */
        mark(finder, object->address, MARK_COUNTS);
    }
    name_mapped(finder, object->address, object, NULL);
    unsigned count = object->kept ? 0 : cpython_buffers(finder->python, object, buffers);
    for (unsigned i = 0; i < count; i++) {
        if (buffers[i].size >= BUFFER_LEAST) {
            name_mapped(finder, buffers[i].start, object, buffers[i].what);
        }
    }
    return true;
}

/* Those of gc.freeze() are in no list that a collection goes through. */
static bool take_tracked(void *context, uint64_t object) {
    mark(context, object - COLLECTOR_HEADER, MARK_COLLECTOR);
    return true;
}

/* ---- whose they are ------------------------------------------------------------------------------ */

static enum cpython_copied_by kind_of(uint8_t marks) {
    return marks & MARK_COLLECTOR ? CPYTHON_COPIED_COLLECTOR
           : marks & MARK_COUNTS  ? CPYTHON_COPIED_COUNTS
                                  : CPYTHON_COPIED_WRITES;
}

/* Pages with the same on them are asked for together. */
static bool count_piece(struct finder *finder, const struct piece *piece) {
    struct karst_target *target = finder->session->target;
    struct cpython_copied_bytes *bytes = &finder->copied->rows[piece->row].bytes;
    for (uint64_t page = piece->first, next; page < piece->end; page = next) {
        enum cpython_copied_by by = kind_of(piece->marks[page - piece->first]);
        next = page + 1;
        while (next < piece->end && kind_of(piece->marks[next - piece->first]) == by) {
            next++;
        }
        uint64_t start = page * finder->page_size, end = next * finder->page_size;
        uint64_t resident = karst_target_resident(target, start, end),
                 own = karst_target_own(target, start, end);
        if (resident == UINT64_MAX || own == UINT64_MAX) {
            return false;
        }
        own = own < resident ? own : resident; /* the page of zeros, and a process that runs */
        bytes->resident += resident;
        bytes->own += own;
        bytes->own_by[by] += own;
        bytes->shared_by[by] += resident - own;
    }
    return true;
}

static bool fail_untold(const struct finder *finder, struct karst_error *error) {
    return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                      "which pages are shared can't be told of %s: ask a live process on this machine "
                      "(-p PID), as its user or root",
                      finder->session->target->name);
}

static bool count_pages(struct finder *finder, struct karst_error *error) {
    for (size_t i = 0; i < finder->count; i++) {
        if (!count_piece(finder, &finder->pieces[i])) {
            return fail_untold(finder, error);
        }
    }
    return true;
}

static bool mark_pages(struct finder *finder, struct karst_error *error) {
    struct cpython_tracked tracked;
    if (finder->python->free_threaded) {
        return karst_fail(
            error, KARST_ERROR_UNSUPPORTED,
            "CPython %s without GIL keeps its objects in mimalloc's pages, which karst does not "
            "read; `rss --tree` has the sums",
            finder->python->version);
    }
    if (!finder->session->target->ops->own) {
        return fail_untold(finder, error);
    }
    return cpython_each_block(finder->python, take_object, finder, error) &&
           cpython_each_tracked(finder->python, take_tracked, finder, &tracked, error);
}

bool cpython_copied_find(struct cpython *python, struct cpython_copied *copied, struct karst_error *error) {
    struct finder finder = {.python = python,
                            .session = python->session,
                            .copied = copied,
                            .page_size = python->target->page_size};
    *copied = (struct cpython_copied){0};
    bool done = make_pieces(&finder) || karst_fail_memory(error);
    done = done && mark_pages(&finder, error) && count_pages(&finder, error);
    for (size_t i = 0; i < finder.count; i++) {
        free(finder.pieces[i].marks);
    }
    free(finder.pieces);
    if (!done) {
        cpython_copied_clear(copied);
    }
    return done;
}

void cpython_copied_clear(struct cpython_copied *copied) {
    free(copied->rows);
    *copied = (struct cpython_copied){0};
}
