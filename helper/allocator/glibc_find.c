/* glibc malloc: finding the heaps of a target, with or without symbols: each libc's root, its layout, its
 * arenas, their memory (glibc_extents.c), mapped blocks (glibc_mapped.c), bins and caches (glibc_bins.c,
 * glibc_tcache.c). */
#include "glibc_find.h"

#include <stdio.h>
#include <stdlib.h>

/* The libcs met so far; each belongs to this list until the session takes it over. */
struct libcs {
    struct glibc_heap **items;
    size_t count;
};

/* Its arenas and their memory. */
static bool fill_arenas(struct glibc_heap *glibc, struct karst_error *error) {
    glibc_read_par(glibc);
    if (!glibc_read_arenas(glibc) || !glibc_note_arenas_in_flux(glibc)) {
        return karst_fail_memory(error);
    }
    if (glibc->arenas[0].state_missing) {
        if (!glibc_add_break_by_chunks(glibc)) {
            return karst_fail_memory(error);
        }
    } else if (!glibc_add_main_extents(glibc, error)) {
        return false;
    }
    for (uint32_t i = 1; i < glibc->heap.arena_count; i++) {
        const struct glibc_arena *arena = &glibc->arenas[i];
        bool fine = arena->state_missing ? glibc_add_heaps_by_headers(glibc, i)
                                         : arena->uninitialized || glibc_add_thread_heaps(glibc, i);
        if (!fine) {
            return karst_fail_memory(error);
        }
    }
    glibc_sort_extents(glibc);
    return true;
}

/* What takes all its memory to be known. */
static bool fill_lists(struct glibc_heap *glibc) {
    glibc_sort_extents(glibc);
    for (uint32_t i = 0; i < glibc->heap.arena_count; i++) {
        if (!glibc->arenas[i].state_missing && !glibc_add_arena_bins(glibc, i)) {
            return false;
        }
    }
    if (!glibc_find_tcaches(glibc)) {
        return false;
    }
    glibc_sort_cached(glibc);
    glibc_note_tcaches_in_flux(glibc);
    glibc_forget_anchors(glibc);
    return !glibc->data_missing || glibc_tell_missing(glibc);
}

static bool know_root(const struct libcs *libcs, uint64_t arena) {
    for (size_t i = 0; i < libcs->count; i++) {
        if (libcs->items[i]->main_arena == arena) {
            return true;
        }
    }
    return false;
}

static bool add_libc(struct libcs *libcs, struct glibc_heap *glibc) {
    struct glibc_heap **items = realloc(libcs->items, (libcs->count + 1) * sizeof(struct glibc_heap *));
    if (!items) {
        return false;
    }
    libcs->items = items;
    items[libcs->count++] = glibc;
    return true;
}

static void remark_unknown(struct karst_target *target, const struct karst_module *module,
                           const struct glibc_root *root) {
    if (!root->data_missing) {
        karst_target_remark(
            target, "%s has a malloc of a version that is not known (known: glibc 2.30 to 2.%u): left out",
            module->path, GLIBC_NEWEST_MINOR);
    } else if (glibc_is_libc(module)) {
        karst_target_remark(
            target,
            "the variables of %s are missing, and its file, which would tell the version, is not "
            "here (--sysroot says where it is): its heap is left out",
            module->path);
    }
}

/* Makes a heap of a root. */
static bool add_root(struct karst *session, struct libcs *libcs, struct karst_module *module,
                     const struct glibc_root *root, struct karst_error *error) {
    if (know_root(libcs, root->arena)) {
        return true;
    }
    struct glibc_heap *glibc = calloc(1, sizeof *glibc);
    if (!glibc) {
        return karst_fail_memory(error);
    }
    glibc->heap.allocator = &karst_glibc;
    glibc->heap.session = session;
    glibc->heap.target = session->target;
    glibc->module = module;
    glibc->main_arena = root->arena;
    glibc->data_missing = root->data_missing;
    karst_window_open(&glibc->lists, session->target, session->target->page_size);
    if (!glibc_choose_layout(glibc, root)) {
        bool unknown = glibc->layout.state_size == 0;
        glibc_close(&glibc->heap);
        if (!unknown) {
            return karst_fail_memory(error);
        }
        remark_unknown(session->target, module, root);
        return true;
    }
    if (!fill_arenas(glibc, error)) {
        glibc_close(&glibc->heap);
        return false;
    }
    if (!add_libc(libcs, glibc)) {
        glibc_close(&glibc->heap);
        return karst_fail_memory(error);
    }
    return true;
}

static bool find_in_module(struct karst *session, struct libcs *libcs, struct karst_module *module,
                           struct karst_error *error) {
    struct glibc_root root;
    return !glibc_find_root(session, module, &root) || add_root(session, libcs, module, &root, error);
}

/* The libc first, so that it gets the plain name. */
static bool find_libcs(struct karst *session, struct libcs *libcs, struct karst_error *error) {
    struct karst_target *target = session->target;
    for (unsigned pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < target->module_count; i++) {
            if (glibc_is_libc(&target->modules[i]) == (pass == 0) &&
                !find_in_module(session, libcs, &target->modules[i], error)) {
                return false;
            }
        }
    }
    return true;
}

/* When no libc has its variables: what is left of the first one's heap. */
static bool find_missing_libc(struct karst *session, struct libcs *libcs, struct karst_error *error) {
    struct karst_target *target = session->target;
    for (size_t i = 0; i < target->module_count && libcs->count == 0; i++) {
        struct glibc_root root;
        if (glibc_find_missing_root(target, &target->modules[i], &root) &&
            !add_root(session, libcs, &target->modules[i], &root, error)) {
            return false;
        }
    }
    return true;
}

static void name_heap(struct glibc_heap *glibc, unsigned number) {
    if (number == 1) {
        snprintf(glibc->heap.name, sizeof glibc->heap.name, "glibc");
    } else {
        snprintf(glibc->heap.name, sizeof glibc->heap.name, "glibc #%u (%.24s)", number,
                 glibc_base_name(glibc->module->path));
    }
}

/* Hands a libc's heap to the session; one that nobody used yet stays in the list, to be closed. */
static bool hand_over(struct karst *session, struct glibc_heap **libc, unsigned *number,
                      struct karst_error *error) {
    if ((*libc)->heap.extent_count == 0) {
        return true;
    }
    if (!fill_lists(*libc)) {
        return karst_fail_memory(error);
    }
    name_heap(*libc, ++*number);
    if (!karst_session_add_heap(session, &(*libc)->heap)) {
        return karst_fail_memory(error);
    }
    *libc = NULL;
    return true;
}

bool glibc_find(struct karst *session, struct karst_error *error) {
    struct libcs libcs = {0};
    unsigned number = 0;
    bool fine = find_libcs(session, &libcs, error) && find_missing_libc(session, &libcs, error) &&
                glibc_add_mapped_extents(libcs.items, libcs.count, error);
    for (size_t i = 0; i < libcs.count && fine; i++) {
        fine = hand_over(session, &libcs.items[i], &number, error);
    }
    for (size_t i = 0; i < libcs.count; i++) {
        if (libcs.items[i]) {
            glibc_close(&libcs.items[i]->heap);
        }
    }
    free(libcs.items);
    return fine;
}
