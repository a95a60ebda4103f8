/* jemalloc: what is damaged.
 *
 * First (5.x) the bins, in jemalloc_check_bins.c. Then the runs, in address order: each against its own
 * header and bitmap, against the tree or page map that leads to it, and against its neighbours. Then what the
 * threads' caches hold, against the runs (jemalloc_check_caches.c). Then (5.x) the lists of unused extents. A
 * run is named by its address and class, a cache by its thread. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jemalloc_check.h"

#define PAGE 4096u
#define ALL  (1ull << 47)

enum karst_severity jemalloc_torn(const struct jemalloc_checking *check) {
    return check->jemalloc->inside || check->locked ? KARST_SEVERITY_SUSPECT : KARST_SEVERITY_CORRUPT;
}

/* ---- naming ----------------------------------------------------------------------------------------- */

struct jemalloc_name jemalloc_name_run(const struct jemalloc_checking *check,
                                       const struct jemalloc_run *run) {
    struct jemalloc_name name;
    const char *kind = jemalloc_run_kind_name(check->jemalloc, run->kind);
    if (run->kind == JEMALLOC_SLAB) {
        snprintf(name.text, sizeof name.text,
                 "the %" PRIu64 "-byte %s at 0x%" PRIx64 " (%" PRIu32 " regions)", run->region_size, kind,
                 run->address, run->regions);
    } else if (run->kind == JEMALLOC_LARGE) {
        snprintf(name.text, sizeof name.text, "the large block at 0x%" PRIx64 " (%" PRIu64 " bytes)",
                 run->block, run->usable);
    } else {
        snprintf(name.text, sizeof name.text, "the %s pages at 0x%" PRIx64 " (%" PRIu64 " bytes)", kind,
                 run->address, run->size);
    }
    return name;
}

struct jemalloc_name jemalloc_name_place(struct jemalloc_checking *check, uint64_t address) {
    struct jemalloc_run run;
    struct jemalloc_name name;
    if (jemalloc_run_of(check->jemalloc, address, &run)) {
        return jemalloc_name_run(check, &run);
    }
    snprintf(name.text, sizeof name.text, "memory of no run");
    return name;
}

static uint64_t region_at(const struct jemalloc_run *run, uint64_t region) {
    return run->first_region + region * run->stride;
}

bool jemalloc_would_be_region(const struct jemalloc_run *run, uint64_t address, uint64_t *region) {
    if (run->kind != JEMALLOC_SLAB || address < run->first_region || run->stride == 0 ||
        (address - run->first_region) % run->stride != 0) {
        return false;
    }
    *region = (address - run->first_region) / run->stride;
    return *region >= run->regions;
}

/* ---- one run ---------------------------------------------------------------------------------------- */

/* Bits for regions that are not there: in the group of the last one, for those behind it are not initialised.
 */
static void check_beyond(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    uint32_t end = (run->regions + 63) / 64 * 64;
    for (uint32_t region = run->regions; region < end; region++) {
        if (!jemalloc_is_free(run, region)) {
            continue;
        }
        uint64_t address = region_at(run, region);
        struct jemalloc_name other = jemalloc_name_place(check, address);
        REPORT(check, RUN_OVERLAP, address, run->region_size,
               "region %" PRIu32 " of %s is free in its bitmap, %" PRIu32
               " past its last: the next malloc(%" PRIu64 ") may hand out 0x%" PRIx64
               ", in %s\tbitmap word %" PRIu32 " 0x%" PRIx64 ", header at 0x%" PRIx64,
               region, jemalloc_name_run(check, run).text, region - run->regions + 1, run->region_size,
               address, other.text, region / 64, run->bitmap[region / 64], run->header);
    }
}

static void check_count(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    uint32_t bits = jemalloc_count_free(run);
    if (bits == run->nfree) {
        return;
    }
    char cause[200];
    if (run->nfree > bits) {
        snprintf(
            cause, sizeof cause,
            "%" PRIu32
            " more frees than regions: one was freed twice past the caches, which sets its bit and clears "
            "it again, or by a wrong size or address",
            run->nfree - bits);
    } else {
        snprintf(cause, sizeof cause, "a bit was set, or the header overwritten, by somebody else");
    }
    REPORT(check, BAD_COUNT, run->address, run->size,
           "%s: nfree says %" PRIu32 " free, its bitmap %" PRIu32 ": %s\tnfree %" PRIu32
           ", bitmap 0x%016" PRIx64 "..., header at 0x%" PRIx64,
           jemalloc_name_run(check, run).text, run->nfree, bits, cause, run->nfree, run->bitmap[0],
           run->header);
}

/* Every page of a slab leads to it. */
static void check_slab_pages(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    for (uint64_t page = run->address; page < run->address + run->size; page += PAGE) {
        struct jemalloc_element element;
        if (!jemalloc_element_of(check->jemalloc, page, &element)) {
            REPORT(check, BAD_LINK, page, PAGE,
                   "page of %s that the radix tree has nothing for\textent at 0x%" PRIx64,
                   jemalloc_name_run(check, run).text, run->header);
        } else if (element.extent != run->header) {
            struct jemalloc_run other;
            bool sensible = jemalloc_read_extent(check->jemalloc, &element, &other);
            if (sensible && jemalloc_is_stray(&element, &other) && element.address < run->element) {
                continue; /* met before the slab, and told */
            }
            REPORT(check, RUN_OVERLAP, page, PAGE,
                   "page of %s that the radix tree has for %s\telement 0x%" PRIx64 " leads to 0x%" PRIx64
                   ", not 0x%" PRIx64,
                   jemalloc_name_run(check, run).text, jemalloc_name_run(check, &other).text, element.address,
                   element.extent, run->header);
        } else if (element.szind != run->class_ || !element.slab) {
            REPORT(check, WRONG_BIN, page, PAGE,
                   "page of %s, class %" PRIu32
                   " by its extent, that the radix tree has as %s of class %" PRIu32 "\telement 0x%" PRIx64,
                   jemalloc_name_run(check, run).text, run->class_, element.slab ? "a slab" : "no slab",
                   element.szind, element.address);
        }
    }
}

bool jemalloc_leads_astray(struct jemalloc_checking *check, const struct jemalloc_element *element) {
    struct jemalloc_run run;
    return jemalloc_read_extent(check->jemalloc, element, &run) && jemalloc_is_stray(element, &run);
}

static void tell_stray(struct jemalloc_checking *check) {
    const struct jemalloc_element *stray = &check->stray;
    const uint64_t size = check->stray_pages * PAGE, first = stray->page + PAGE - size;
    struct jemalloc_run run;
    check->stray_pages = 0;
    if (jemalloc_read_extent(check->jemalloc, stray, &run)) {
        REPORT(
            check, BAD_LINK, first, size,
            "the radix tree leads from %s to %s, which %s not in: an element overwritten, or exchanged with "
            "another\telement 0x%" PRIx64 " leads to 0x%" PRIx64,
            size > PAGE ? "these pages" : "this page", jemalloc_name_run(check, &run).text,
            size > PAGE ? "they are" : "it is", stray->address, stray->extent);
    }
}

static void note_stray(void *context, const struct jemalloc_element *element,
                       const struct jemalloc_run *run) {
    struct jemalloc_checking *check = context;
    (void)run;
    if (check->stray_pages &&
        (check->stray.extent != element->extent || check->stray.page + PAGE != element->page)) {
        tell_stray(check);
    }
    check->stray = *element;
    check->stray_pages++;
}

/* Inside a large or unused extent no other begins, and no element there leads elsewhere. */
static void check_inside(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    uint64_t from = run->address + PAGE, end = run->address + run->size;
    struct jemalloc_element element;
    struct jemalloc_run other;
    while (from < end && jemalloc_next_element(check->jemalloc, from, end, &element)) {
        from = element.page + PAGE;
        if (element.extent == run->header || !jemalloc_read_extent(check->jemalloc, &element, &other)) {
            continue;
        }
        if (jemalloc_is_stray(&element, &other) && element.address > run->element) {
            note_stray(check, &element, &other);
        }
        if (other.address != element.page) {
            continue;
        }
        struct jemalloc_name first = jemalloc_name_run(check, run), second = jemalloc_name_run(check, &other);
        REPORT(check, RUN_OVERLAP, other.address, other.size,
               "%s begins inside %s: both claim 0x%" PRIx64 " and on\textents at 0x%" PRIx64
               " and 0x%" PRIx64,
               second.text, first.text, other.address, other.header, run->header);
        from = other.address + other.size;
    }
}

static void check_large(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    struct jemalloc_element first; /* that of the last page need not have the class */
    if (jemalloc_element_of(jemalloc, run->address, &first) && first.extent == run->header &&
        first.szind != run->class_) {
        REPORT(check, WRONG_BIN, run->block, run->usable,
               "%s: class %" PRIu32 " by its extent, %" PRIu32 " by the radix tree\textent at 0x%" PRIx64
               ", element 0x%" PRIx64,
               jemalloc_name_run(check, run).text, run->class_, first.szind, run->header, first.address);
    }
    uint64_t pages = run->size - (jemalloc->large_pad ? PAGE : 0);
    bool small = run->class_ < JEMALLOC_SMALL_BINS;
    uint64_t size =
        small ? jemalloc_sampled_size(&jemalloc->layout, run->class_) : jemalloc_class_size(run->class_);
    bool fits =
        pages == size || (jemalloc->layout.page_classes && !small && jemalloc_class_of(pages) == run->class_);
    if (!fits) {
        REPORT(check, BAD_SIZE, run->block, run->usable,
               "%s: %" PRIu64 " bytes of pages are no size of its class %" PRIu32 "\textent at 0x%" PRIx64,
               jemalloc_name_run(check, run).text, run->size, run->class_, run->header);
    }
}

static bool in_own_memory(const struct jemalloc_heap *jemalloc, uint64_t address) {
    const struct karst_extent *extent = karst_heap_extent(&jemalloc->heap, address);
    return extent && extent->kind == KARST_EXTENT_OWN;
}

/* 5.x: what leads to the run, and what is said of it beside its own header. */
static void check_extent(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    if (check->blocks_known && !in_own_memory(jemalloc, run->header)) {
        REPORT(check, BAD_LINK, run->address, run->size,
               "the radix tree has an extent for this page that is outside the allocator's own memory: an "
               "element "
               "overwritten, or forged\telement 0x%" PRIx64 " leads to 0x%" PRIx64,
               run->element, run->header);
    }
    if (jemalloc->arenas_at && jemalloc->arenas[run->arena].address == 0) {
        REPORT(check, BAD_LINK, run->address, run->size,
               "%s belongs to arena %" PRIu32 " by its extent, and there is none\textent at 0x%" PRIx64,
               jemalloc_name_run(check, run).text, run->arena, run->header);
    }
    if (run->kind == JEMALLOC_SLAB) {
        check_slab_pages(check, run);
        jemalloc_check_listed(check, run);
    } else {
        check_inside(check, run);
    }
    if (run->kind == JEMALLOC_LARGE) {
        check_large(check, run);
    }
    if (run->kind >= JEMALLOC_DIRTY && run->kind <= JEMALLOC_RETAINED) {
        struct jemalloc_unused *unused = &check->unused[3 * (size_t)run->arena + run->kind - JEMALLOC_DIRTY];
        unused->extents++;
        unused->pages += run->size / PAGE;
    }
}

/* 3.x, 4.x: the run's header stands in front of its regions (3.x), where a write past the end of the run
 * before lands, or in the chunk's header. */
static void check_header(struct jemalloc_checking *check, const struct jemalloc_run *run) {
    uint64_t region;
    if (!(run->problems & JEMALLOC_BAD_HEADER)) {
        return;
    }
    if (check->has_before && check->before.address + check->before.size == run->address &&
        jemalloc_would_be_region(&check->before, run->address, &region)) {
        REPORT(check, RUN_OVERLAP, run->address, run->first_region - run->address,
               "the header of %s is overwritten, just where region %" PRIu64 " of %s would be, %" PRIu64
               " past its last: that run was used past its end\tbin 0x%" PRIx64 ", nextind %" PRIu32
               ", nfree %" PRIu32,
               jemalloc_name_run(check, run).text, region, jemalloc_name_run(check, &check->before).text,
               region - check->before.regions + 1, run->bin_pointer, run->next_region, run->nfree);
        return;
    }
    REPORT(check, OVERFLOW, run->address, run->first_region - run->address,
           "the header of %s is overwritten, most likely past the end of %s\tbin 0x%" PRIx64
           ", nextind %" PRIu32 ", nfree %" PRIu32,
           jemalloc_name_run(check, run).text,
           check->has_before ? jemalloc_name_run(check, &check->before).text : "what is before it",
           run->bin_pointer, run->next_region, run->nfree);
}

/* 5.x: pages, one behind the other, that the radix tree has for the same: an extent's that was overwritten,
 * most likely, and then they are the first and the last that it knows of. */
static void tell_bad(struct jemalloc_checking *check) {
    const struct jemalloc_run *bad = &check->bad;
    check->has_bad = false;
    if (check->jemalloc->layout.major < 5) {
        REPORT(check, BAD_LINK, bad->address, bad->size,
               "the chunk's page map makes no sense from here on\tentry 0x%" PRIx64 ", bits 0x%" PRIx64,
               bad->element, bad->header);
        return;
    }
    REPORT(check, BAD_LINK, bad->address, bad->size,
           "the radix tree leads to what is no extent, for %s: %s\telement 0x%" PRIx64 " leads to 0x%" PRIx64,
           bad->size > PAGE ? "these pages" : "this page",
           in_own_memory(check->jemalloc, bad->header) ? "one that is overwritten"
                                                       : "the element is overwritten",
           bad->element, bad->header);
}

static bool check_run(void *context, const struct jemalloc_run *run) {
    struct jemalloc_checking *check = context;
    struct jemalloc_heap *jemalloc = check->jemalloc;
    if (!karst_session_progress(jemalloc->heap.session, run->size, check->error)) {
        check->interrupted = true;
        return false;
    }
    if (check->has_bad && (run->kind != JEMALLOC_BAD || run->header != check->bad.header)) {
        tell_bad(check);
    }
    if (run->kind == JEMALLOC_BAD) {
        if (!check->has_bad) {
            check->bad = *run;
        }
        check->bad.size = run->address + run->size - check->bad.address;
        check->has_bad = true;
        check->has_before = false;
        return true;
    }
    if (jemalloc->layout.major >= 5) {
        check_extent(check, run);
    } else {
        check_header(check, run);
    }
    if (run->kind == JEMALLOC_SLAB) {
        check->findings->blocks_checked += run->regions;
        if (!(run->problems & JEMALLOC_BAD_HEADER)) {
            check_beyond(check, run);
            check_count(check, run);
        }
    } else {
        check->findings->blocks_checked += run->kind == JEMALLOC_LARGE;
    }
    check->before = *run;
    check->has_before = true;
    return true;
}

/* ---- the lists of unused extents -------------------------------------------------------------------- */

struct list {
    uint32_t arena;
    unsigned state; /* 0: dirty, 1: muzzy, 2: retained */
    uint64_t extents, pages;
};

static const char *const list_names[] = {"dirty", "muzzy", "retained"};

/* One extent of a list; false: the list can't be followed further. */
static bool check_listed(struct jemalloc_checking *check, struct list *list, uint64_t extent, uint64_t from) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    struct jemalloc_element element = {.extent = extent, .szind = JEMALLOC_CLASSES};
    struct jemalloc_run run;
    struct jemalloc_element here;
    if (extent % 64 != 0 || !jemalloc_read_extent(jemalloc, &element, &run)) {
        REPORT(check, BAD_LINK, from, 0,
               "the list of %s extents of arena %" PRIu32 " goes on at 0x%" PRIx64
               ", which is none\tlink at 0x%" PRIx64,
               list_names[list->state], list->arena, extent, from + jemalloc->layout.lru_link);
        return false;
    }
    if (run.kind != JEMALLOC_DIRTY + list->state || run.arena != list->arena) {
        REPORT(check, BAD_LINK, run.address, run.size,
               "%s (arena %" PRIu32 ") is in the list of %s extents of arena %" PRIu32
               ": in two lists, or in use and still listed\textent at 0x%" PRIx64,
               jemalloc_name_run(check, &run).text, run.arena, list_names[list->state], list->arena, extent);
    } else if (!jemalloc_element_of(jemalloc, run.address, &here) ||
               (here.extent != extent && !jemalloc_leads_astray(check, &here))) {
        REPORT(check, BAD_LINK, run.address, run.size,
               "%s is in the list of %s extents of arena %" PRIu32
               ", and the radix tree has another there\textent at 0x%" PRIx64,
               jemalloc_name_run(check, &run).text, list_names[list->state], list->arena, extent);
    }
    list->extents++;
    list->pages += run.size / PAGE;
    return true;
}

/* Follows one list from its first extent on; false: to no end. */
static bool follow_list(struct jemalloc_checking *check, struct list *list, uint64_t first) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    const struct jemalloc_unused *found = &check->unused[3 * (size_t)list->arena + list->state];
    for (uint64_t at = first, from = 0; at != 0;) {
        if (list->extents > found->extents + 64) {
            REPORT(check, BAD_LINK, at, 0,
                   "the list of %s extents of arena %" PRIu32
                   " has more than there are: it goes in a circle\t",
                   list_names[list->state], list->arena);
            return false;
        }
        if (!check_listed(check, list, at, from)) {
            return false;
        }
        from = at;
        if (!jemalloc_read(jemalloc, at + jemalloc->layout.lru_link, &at) || at == first) {
            break;
        }
    }
    return true;
}

/* 5.3 has two lists of each state: extents between guard pages (san_guard_small) have their own. */
static void check_list(struct jemalloc_checking *check, uint32_t arena, unsigned state) {
    struct jemalloc_heap *jemalloc = check->jemalloc;
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t address = jemalloc->arenas[arena].address, counted = 0;
    const struct jemalloc_unused *found = &check->unused[3 * (size_t)arena + state];
    struct list list = {.arena = arena, .state = state};
    for (unsigned list_index = 0; list_index < (layout->to_guarded ? 2 : 1); list_index++) {
        uint64_t offset = list_index * layout->to_guarded, first, npages;
        if (!jemalloc_read(jemalloc, address + layout->arena_lru[state] + offset, &first) ||
            !jemalloc_read(jemalloc, address + layout->arena_npages[state] + offset, &npages) ||
            !follow_list(check, &list, first)) {
            return;
        }
        counted += npages;
    }
    if (jemalloc->heap.arenas[arena].locked) {
        return;
    }
    if (list.pages != counted || list.pages != found->pages) {
        karst_findings_add(check->findings, KARST_FINDING_BAD_COUNT, jemalloc_torn(check),
                           jemalloc->heap.index, address, 0,
                           "arena %" PRIu32 ": %" PRIu64 " %s pages in its list, %" PRIu64
                           " by its own count, %" PRIu64 " in the radix tree\tcount at 0x%" PRIx64,
                           arena, list.pages, list_names[state], counted, found->pages,
                           address + layout->arena_npages[state]);
    }
}

/* ---- arenas ---------------------------------------------------------------------------------------- */

static void tell_word(struct jemalloc_checking *check, uint32_t arena, uint64_t from, const char *what,
                      const char *consequence) {
    uint64_t word = 0;
    if (from && jemalloc_read(check->jemalloc, from, &word)) {
        REPORT(check, BAD_LINK, from, 8,
               "%s of arena %" PRIu32 " leads to 0x%" PRIx64
               ", which is none, or was met before: %s\tword at 0x%" PRIx64,
               what, arena, word, consequence, from);
    }
}

/* What an arena leads to, of its own. */
static void check_arenas(struct jemalloc_checking *check) {
    check->blocks_known = check->jemalloc->arenas_at != 0;
    for (uint32_t i = 0; i < check->jemalloc->heap.arena_count; i++) {
        const struct jemalloc_arena *arena = &check->jemalloc->arenas[i];
        check->blocks_known &= !arena->bad_block && !arena->block_left_out;
        tell_word(check, i, arena->bad_block, "the list of blocks for its own use",
                  "what is in those that follow is not checked");
        tell_word(check, i, arena->bad_ring, "the ring of threads' caches",
                  "what those that follow hold counts as live");
    }
}

/* ---- the whole -------------------------------------------------------------------------------------- */

static void walk(struct jemalloc_checking *check) {
    if (check->jemalloc->layout.major >= 5) {
        jemalloc_walk_elements(check->jemalloc, 0, ALL, check_run, note_stray, check);
    } else {
        jemalloc_walk_chunks(check->jemalloc, 0, ALL, check_run, check);
    }
    if (check->stray_pages) {
        tell_stray(check);
    }
}

bool jemalloc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error) {
    struct jemalloc_checking check = {
        .jemalloc = (struct jemalloc_heap *)heap, .findings = findings, .error = error};
    check.unused = calloc(3 * heap->arena_count + 3, sizeof *check.unused);
    if (!check.unused) {
        return karst_fail_memory(error);
    }
    check_arenas(&check);
    if (check.jemalloc->layout.major >= 5) {
        jemalloc_check_bins(&check);
    }
    if (!check.interrupted) {
        walk(&check);
    }
    if (check.has_bad) {
        tell_bad(&check);
    }
    if (!check.interrupted) {
        jemalloc_check_caches(&check);
    }
    for (uint32_t arena = 0; !check.interrupted && arena < heap->arena_count; arena++) {
        for (unsigned state = 0; check.jemalloc->layout.major >= 5 && state < 3; state++) {
            if (check.jemalloc->arenas[arena].address) {
                check_list(&check, arena, state);
            }
        }
    }
    free(check.unused);
    karst_marks_close(&check.in_bins);
    karst_marks_close(&check.cut_bins);
    return !check.interrupted && (!check.out_of_memory || karst_fail_memory(error));
}
