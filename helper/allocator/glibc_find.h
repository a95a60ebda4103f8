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
    const char *how; /* NULL: by structure */
};

const char *glibc_base_name(const char *path);
bool glibc_is_libc(const struct karst_module *module);
/* glibc's checking malloc (mtrace, MALLOC_CHECK_): a whole malloc of its own. */
bool glibc_is_debug_malloc(const struct karst_module *module);
/* Looks for a main arena in one module: by the marker, by symbol, then in its writable data. */
bool glibc_find_root(struct karst *session, struct karst_module *module, struct glibc_root *root);

/* Chooses the layout by the version the module tells, else by what fits best; finds mp_. false: out of
 * memory, or (layout.state_size still 0) a version that is not known. */
bool glibc_choose_layout(struct glibc_heap *glibc, const struct glibc_root *root);
/* Fills what mp_ tells, if it was found. */
void glibc_read_par(struct glibc_heap *glibc);

/* Fills the tables of arenas: those of the ring, and those that only their heaps lead to. false: out of
 * memory. */
bool glibc_read_arenas(struct glibc_heap *glibc);

/* Which arenas, and which caches, may be half changed: a thread was at work in them. false: out of memory. */
bool glibc_note_arenas_in_flux(struct glibc_heap *glibc);
void glibc_note_tcaches_in_flux(struct glibc_heap *glibc);

#endif
