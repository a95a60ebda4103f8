/* glibc malloc: what the parts of the search for its heaps share. glibc_root.c finds main_arena,
 * glibc_version.c the version and layout and mp_, glibc_arenas.c the arenas, glibc_inside.c which of them a
 * thread is at work in; glibc_find.c puts it together. */
#ifndef KARST_ALLOCATOR_GLIBC_FIND_H
#define KARST_ALLOCATOR_GLIBC_FIND_H

#include "glibc.h"

#define GLIBC_ARENAS_MAX 65536u

/* A main arena found: where, and which generation of malloc_state it is. */
struct glibc_root {
    uint64_t arena;
    const struct glibc_layout *generation; /* a row of glibc_layouts that has its shape */
    bool ring_broken;
    bool data_missing; /* the variables are not in the target; arena: 0, or where it was by symbol */
    const char *how;   /* NULL: by structure */
};

const char *glibc_base_name(const char *path);
bool glibc_is_libc(const struct karst_module *module);
/* glibc's checking malloc (mtrace, MALLOC_CHECK_): a whole malloc of its own. */
bool glibc_is_debug_malloc(const struct karst_module *module);
/* How many of an arena's bins, which begin at bins, agree with their lists; 0: too few for an arena. */
unsigned glibc_consistent_bins(struct karst_window *window, uint64_t bins);
/* Looks for a main arena in one module: by the marker, by symbol, then in its writable data. */
bool glibc_find_root(struct karst *session, struct karst_module *module, struct glibc_root *root);
/* Is the module a libc, or a program with one in it, whose variables are not in the target? */
bool glibc_find_missing_root(struct karst_target *target, struct karst_module *module,
                             struct glibc_root *root);

/* Chooses the layout by the version the module tells, else by what fits best; finds mp_. false: out of
 * memory, or (layout.state_size still 0) a version that is not known. */
bool glibc_choose_layout(struct glibc_heap *glibc, const struct glibc_root *root);
/* Fills what mp_ tells, if it was found. */
void glibc_read_par(struct glibc_heap *glibc);

/* Fills the tables of arenas: those of the ring, and those that only their heaps lead to. false: out of
 * memory. */
bool glibc_read_arenas(struct glibc_heap *glibc);
bool glibc_add_arena(struct glibc_heap *glibc, uint64_t address, bool outside_ring);

/* A thread control block: what the thread pointer points at. */
struct glibc_tcb {
    uint64_t address;
    int64_t tid; /* -1: no thread of the target has it */
};

struct glibc_tcb_list {
    struct glibc_tcb *items; /* the caller's to free */
    size_t count;
};

/* All control blocks: of the threads, and of those whose thread is gone (the child of a fork has its parent's
 * other threads' caches in its heap, and nobody will ever use them). Needs the arenas' extents. false: out of
 * memory. */
bool glibc_find_tcbs(struct glibc_heap *glibc, struct glibc_tcb_list *list);

/* ---- what is left when libc's variables are missing, glibc_partial.c ---- */

/* Are variables of the module not in the target (a core that is cut off, or was filtered)? */
bool glibc_variables_missing(struct karst_target *target, const struct karst_module *module);
/* Where the break may be: by its name, which a live process has, else by its place, behind the executable.
 * Fills ranges and returns how many. */
#define GLIBC_BREAKS_MAX 4u
struct glibc_range {
    uint64_t start, end;
};
size_t glibc_break_candidates(const struct karst_target *target, struct glibc_range *ranges);
/* The main arena, and those that their heaps lead to, in the order of the ring. false: out of memory. */
bool glibc_add_arenas_without_main(struct glibc_heap *glibc);
/* Says among the facts, and to every reader of an answer, what is missing. false: out of memory. */
bool glibc_tell_missing(struct glibc_heap *glibc);

/* ---- and no file tells the version, glibc_evidence.c ---- */

/* The layout that what is left of the heap fits, and no other that differs; false: there is none. Needs the
 * heaps' headers. */
bool glibc_layout_by_heaps(struct glibc_heap *glibc, struct glibc_layout *layout);
/* Does an arena of that layout stand behind the header, which is that of its first heap? */
bool glibc_arena_fits(struct glibc_heap *glibc, const struct glibc_layout *layout,
                      const struct glibc_heap_header *header);

/* Which arenas, and which caches, may be half changed: a thread was at work in them. false: out of memory. */
bool glibc_note_arenas_in_flux(struct glibc_heap *glibc);
void glibc_note_tcaches_in_flux(struct glibc_heap *glibc);

#endif
