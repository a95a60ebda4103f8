/* jemalloc 5.x: finding the heap, with or without symbols.
 *
 * It hangs from the root of a radix tree (jemalloc_root.c). The version is the one that the library names, if
 * what was found agrees; else the row of the table that fits best. */
#include "inside.h"
#include "jemalloc.h"
#include "marker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE           4096u
#define EXTENTS_SCORED 4096u
#define UNREAD_MAX     (1u << 18)
#define ALL_ADDRESSES  (1ull << 47)
#define ROOTS_TRIED    16u

/* ---- the version ------------------------------------------------------------------------------------ */

/* JEMALLOC_VERSION, "5.3.0-0-g54eaed1d...", which stays in a stripped library. */
static bool version_of(struct karst_target *target, struct karst_module *module, char *text, size_t size) {
    static const char *const needles[] = {"5.3.1-", "5.3.0-", "5.2.1-", "5.2.0-",
                                          "5.1.0-", "5.0.1-", "5.0.0-"};
    for (size_t i = 0; i < sizeof needles / sizeof *needles; i++) {
        unsigned major, minor, patch, more;
        if (karst_module_find_text(target, module, needles[i], text, size) &&
            sscanf(text, "%u.%u.%u-%u-g", &major, &minor, &patch, &more) == 4) {
            *strchr(text, '-') = '\0';
            return true;
        }
    }
    return false;
}

/* Has any large block a page more than its class, or does it not begin with a page? */
static bool has_large_pad(struct jemalloc_heap *jemalloc) {
    uint64_t from = 0;
    unsigned large = 0;
    struct jemalloc_element element;
    while (large < EXTENTS_SCORED && jemalloc_next_element(jemalloc, from, ALL_ADDRESSES, &element)) {
        struct jemalloc_run run;
        bool sensible = jemalloc_read_extent(jemalloc, &element, &run) && run.address == element.page;
        if (sensible && run.kind == JEMALLOC_LARGE) {
            large++;
            if (run.block != run.address ||
                (run.class_ >= JEMALLOC_SMALL_BINS && run.size - jemalloc_class_size(run.class_) == PAGE)) {
                return true;
            }
        }
        from = element.page + (sensible ? run.size : PAGE);
    }
    return large == 0;
}

/* How well the first extents fit the layout in use, of 1000: their own fields agree with the tree's, and,
 * which damage may change, a slab's count of free regions with its bitmap. */
static unsigned score_extents(struct jemalloc_heap *jemalloc) {
    unsigned good = 0, met = 0, unread = 0;
    uint64_t from = 0;
    struct jemalloc_element element;
    while (met < EXTENTS_SCORED && unread < UNREAD_MAX &&
           jemalloc_next_element(jemalloc, from, ALL_ADDRESSES, &element)) {
        struct jemalloc_run run;
        from = element.page + PAGE;
        if (!jemalloc_at(jemalloc, element.extent,
                         8)) { /* no layout's fault: most likely a core has it not */
            unread++;
            continue;
        }
        met++;
        if (!jemalloc_read_extent(jemalloc, &element, &run) || run.address != element.page) {
            continue;
        }
        from = run.address + run.size;
        bool slab = run.kind == JEMALLOC_SLAB, used = slab || run.kind == JEMALLOC_LARGE;
        bool agrees = slab == element.slab && (!used || run.class_ == element.szind);
        good += agrees ? 3 : 0;
        good += agrees && (!slab || jemalloc_count_free(&run) == run.nfree);
    }
    return met ? good * 250 / met : 0;
}

/* ---- the layout ------------------------------------------------------------------------------------- */

static bool fits_version(const struct jemalloc_layout *layout, const char *version) {
    /* 5.2.0 and 5.2.1 agree in what is used here. */
    return version && strncmp(layout->version, version, strcmp(layout->version, "5.2.1") == 0 ? 4 : 5) == 0;
}

struct choice {
    struct jemalloc_layout layout;
    unsigned score; /* 0: none yet */
    unsigned told;  /* members that debug info told */
    uint64_t arenas_at;
    bool of_version;
};

/* Takes layout, if it fits what was found better than what was chosen before. */
static void try_layout(struct jemalloc_heap *jemalloc, const struct jemalloc_layout *layout, unsigned told,
                       const char *version, struct choice *choice) {
    unsigned arenas = 0;
    jemalloc->layout = *layout;
    unsigned score = score_extents(jemalloc);
    if (score < 500) {
        return;
    }
    uint64_t table = jemalloc_search_arenas(jemalloc, &arenas);
    bool of_version = fits_version(layout, version);
    score += (table ? 2000 : 0) + (of_version ? 1000 : 0) + (told ? 500 : 0);
    if (score > choice->score) {
        *choice = (struct choice){*layout, score, told, table, of_version};
    }
}

static bool explain_choice(struct jemalloc_heap *jemalloc, const struct choice *choice, const char *version,
                           bool has_debug_info) {
    const char *row = !version             ? "the row of the table that fits what was found"
                      : choice->of_version ? "table, by the version the library names"
                                           : "the row that fits best: the version named is not in the table";
    if (choice->told) {
        return karst_facts_add(&jemalloc->heap.facts, "layout", 0,
                               "debug info, %u members; bit fields: %s; %s", choice->told, row,
                               choice->layout.configuration);
    }
    return karst_facts_add(&jemalloc->heap.facts, "layout", 0, "%s; %s%s", row, choice->layout.configuration,
                           has_debug_info ? "; the debug info does not fit what was found" : "");
}

/* Chooses the layout that fits what was found best: of the rows of the table, as they are and with what debug
 * info says. One that is for the version that the library names counts more, and so does debug info, if it
 * fits as well as any. *choice: score 0: none does. False: out of memory. */
static bool choose_layout(struct jemalloc_heap *jemalloc, const struct jemalloc_root *root,
                          const char *version, struct choice *choice) {
    bool has_debug_info = false;
    *choice = (struct choice){.score = 0};
    for (size_t i = 0; i < jemalloc_layout_count; i++) {
        struct jemalloc_layout layout = jemalloc_layouts[i];
        if (layout.lg_vaddr != root->lg_vaddr) {
            continue;
        }
        try_layout(jemalloc, &layout, 0, version, choice);
        unsigned told = jemalloc_layout_from_debug_info(jemalloc->heap.target, jemalloc->module, &layout);
        if (told) {
            has_debug_info = true;
            try_layout(jemalloc, &layout, told, version, choice);
        }
    }
    if (!choice->score) {
        return true;
    }
    jemalloc->layout = choice->layout;
    jemalloc->large_pad = has_large_pad(jemalloc);
    jemalloc->arenas_at = choice->arenas_at;
    snprintf(jemalloc->heap.version, sizeof jemalloc->heap.version, "%.20s",
             version ? version : choice->layout.version);
    return explain_choice(jemalloc, choice, version, has_debug_info);
}

/* ---- threads inside --------------------------------------------------------------------------------- */

static bool thread_inside(struct jemalloc_heap *jemalloc, const struct karst_thread *thread) {
    static const char *const functions[] = {
        "malloc",        "free",    "calloc",   "realloc", "memalign", "mallocx", "posix_memalign",
        "aligned_alloc", "rallocx", "sdallocx", "dallocx", "mallctl",  NULL};
    const struct karst_module *module = jemalloc->module;
    /* Its functions call one another: anywhere in a library of that name is inside. */
    bool library = module && strstr(jemalloc_file_name(module->path), "jemalloc");
    return karst_thread_inside(jemalloc->heap.target, jemalloc->module, thread, functions, library);
}

bool jemalloc_note_flux(struct jemalloc_heap *jemalloc) {
    const struct karst_target *target = jemalloc->heap.target;
    bool running = !target->stopped && target->kind == KARST_TARGET_PROCESS;
    jemalloc->threads_inside = calloc(target->thread_count + 1, sizeof *jemalloc->threads_inside);
    if (!jemalloc->threads_inside) {
        return false;
    }
    for (size_t i = 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        bool died = i == 0 && karst_died_of_signal(target);
        if (!thread_inside(jemalloc, thread)) {
            continue;
        }
        jemalloc->inside |= !died;
        jemalloc->threads_inside[i] = !died;
        if (!karst_facts_add(&jemalloc->heap.facts, died ? "died" : "inside malloc", 0,
                             died ? "thread %" PRId64
                                    " died inside the allocator, most likely of damage it met"
                                  : "thread %" PRId64 " is, or was a moment ago, inside the allocator",
                             thread->tid)) {
            return false;
        }
    }
    jemalloc->heap.in_flux = running || jemalloc->inside;
    jemalloc->inside = jemalloc->heap.in_flux;
    return true;
}

/* ---- putting it together ---------------------------------------------------------------------------- */

struct jemalloc_heap *jemalloc_open(struct karst *session, struct karst_module *module) {
    struct jemalloc_heap *jemalloc = calloc(1, sizeof *jemalloc);
    if (!jemalloc) {
        return NULL;
    }
    jemalloc->heap.allocator = &karst_jemalloc;
    jemalloc->heap.session = session;
    jemalloc->heap.target = session->target;
    jemalloc->module = module;
    karst_window_open(&jemalloc->nodes, session->target, 1u << 16);
    karst_window_open(&jemalloc->leaves, session->target, 1u << 16);
    return jemalloc;
}

bool jemalloc_hand_over(struct karst *session, struct jemalloc_heap *jemalloc, struct karst_error *error) {
    unsigned count = 1;
    for (size_t i = 0; i < session->heap_count; i++) {
        count += session->heaps[i]->allocator == &karst_jemalloc;
    }
    if (count == 1) {
        snprintf(jemalloc->heap.name, sizeof jemalloc->heap.name, "jemalloc");
    } else {
        snprintf(jemalloc->heap.name, sizeof jemalloc->heap.name, "jemalloc #%u (%.20s)", count,
                 jemalloc->module ? jemalloc_file_name(jemalloc->module->path) : "?");
    }
    if (!karst_session_add_heap(session, &jemalloc->heap)) {
        jemalloc_close(&jemalloc->heap);
        return karst_fail_memory(error);
    }
    return true;
}

#define ARENA_MOST (UINT64_C(1) << 18) /* bytes of an arena_t, in any version */

/* The preload library's marker has the address of a field of arena 0. */
static const char *how_arenas(struct karst *session, struct jemalloc_heap *jemalloc,
                              const struct karst_module *module) {
    uint64_t field = karst_marker_root(session, module, KARST_ROOT_ARENA_ACTIVE), arena = 0;
    if (!field || !jemalloc_read(jemalloc, jemalloc->arenas_at, &arena)) {
        return "found by structure";
    }
    return field > arena && field - arena < ARENA_MOST
               ? "found by structure; the marker says the same of arena 0"
               : "found by structure; the marker has arena 0 elsewhere";
}

static bool add_facts(struct karst *session, struct jemalloc_heap *jemalloc,
                      const struct karst_module *module, const struct jemalloc_root *root) {
    struct karst_facts *facts = &jemalloc->heap.facts;
    if (!jemalloc->arenas_at) {
        karst_target_remark(session->target,
                            "the arenas of the jemalloc of %s were not found: what threads' caches hold "
                            "counts as live, and neither bins nor caches are checked",
                            module->path);
    }
    return karst_facts_add(facts, "radix tree", root->address, "%s",
                           root->by_symbol ? "by symbol" : "found by structure") &&
           (jemalloc->arenas_at
                ? karst_facts_add(facts, "arenas", jemalloc->arenas_at, "%s",
                                  how_arenas(session, jemalloc, module))
                : karst_facts_add(facts, "arenas", 0,
                                  "not found: threads' caches count as live, metadata is not counted"));
}

/* Makes a heap of a tree's root. *fits: one of the layouts does; else there is none, and no error. */
static bool add_root(struct karst *session, struct karst_module *module, const struct jemalloc_root *root,
                     bool *fits, struct karst_error *error) {
    char version[64];
    struct choice choice;
    struct jemalloc_heap *jemalloc = jemalloc_open(session, module);
    if (!jemalloc) {
        return karst_fail_memory(error);
    }
    jemalloc->rtree_root = root->address;
    jemalloc->large_pad = true;
    bool named = version_of(session->target, module, version, sizeof version);
    if (!karst_facts_add(&jemalloc->heap.facts, "library", 0, "%s", module->path) ||
        !choose_layout(jemalloc, root, named ? version : NULL, &choice)) {
        jemalloc_close(&jemalloc->heap);
        return karst_fail_memory(error);
    }
    *fits = choice.score != 0;
    if (!*fits) {
        jemalloc_close(&jemalloc->heap);
        return true;
    }
    if (!add_facts(session, jemalloc, module, root) || !jemalloc_read_arenas(jemalloc) ||
        !jemalloc_make_extents(jemalloc) || !jemalloc_make_bins(jemalloc) || !jemalloc_note_flux(jemalloc) ||
        !jemalloc_find_tcaches(jemalloc)) {
        jemalloc_close(&jemalloc->heap);
        return karst_fail_memory(error);
    }
    return jemalloc_hand_over(session, jemalloc, error);
}

/* What has the looks of a root may be none: then it is looked for further on. */
static bool find_in_module(struct karst *session, struct karst_module *module, struct karst_error *error) {
    struct jemalloc_root root = {0};
    uint64_t from = 0, before = 0;
    unsigned tried = 0;
    bool fits = false;
    while (!fits && tried < ROOTS_TRIED && jemalloc_find_root(session->target, module, from, &root)) {
        if (root.address != before && (tried++, !add_root(session, module, &root, &fits, error))) {
            return false;
        }
        before = root.address;
        from = root.by_symbol ? module->start : root.word + 8;
    }
    if (tried && !fits) {
        karst_target_remark(session->target,
                            "%s has a jemalloc of a version that is not known (known: 5.1 to 5.3): left out",
                            module->path);
    }
    return true;
}

bool jemalloc_find(struct karst *session, struct karst_error *error) {
    for (size_t i = 0; i < session->target->module_count; i++) {
        if (!find_in_module(session, &session->target->modules[i], error)) {
            return false;
        }
    }
    return jemalloc_find_chunks(session, error);
}
