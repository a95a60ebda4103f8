/* jemalloc: the threads' caches. Each arena has a ring of those of its threads (tcache_ql), so no thread's
 * own memory need be looked at to find them; which thread it is tells the thread pointer behind it. Facts:
 * include/jemalloc/internal/tcache_structs.h, cache_bin.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jemalloc.h"

#define NONE16      (JEMALLOC_NOT_THERE & 0xffff)
#define TCACHES_MAX 65536u
#define CACHED_MORE (16u << 20)
#define TLS_SPAN    (64u << 10) /* how far below its thread pointer a thread's cache may be */
#define TLS_WORDS   (8u << 10)  /* and how far below one what leads to it */

static bool know(const struct jemalloc_heap *jemalloc, uint64_t address) {
    for (size_t i = 0; i < jemalloc->tcache_count; i++) {
        if (jemalloc->tcaches[i].address == address) {
            return true;
        }
    }
    return false;
}

/* 3.x, 4.x: a tcache is a block of the heap that a thread-local word leads to. */
static int64_t owner_by_word(struct karst_target *target, uint64_t address) {
    struct karst_window window;
    int64_t owner = 0;
    karst_window_open(&window, target, 4096);
    for (size_t i = 0; i < target->thread_count && !owner; i++) {
        uint64_t end = target->threads[i].thread_pointer & ~7ull;
        for (uint64_t at = end; end && at > end - TLS_WORDS && !owner;) {
            at -= 8;
            const uint8_t *bytes = karst_window_at(&window, at, 8);
            if (!bytes) {
                break;
            }
            owner = jemalloc_word(bytes) == address ? target->threads[i].tid : 0;
        }
    }
    karst_window_close(&window);
    return owner;
}

/* The thread whose thread-local memory address is in: x86-64 has it below the thread pointer. */
static int64_t owner_of(const struct karst_target *target, uint64_t address) {
    int64_t owner = 0;
    uint64_t nearest = TLS_SPAN;
    for (size_t i = 0; i < target->thread_count; i++) {
        uint64_t distance = target->threads[i].thread_pointer - address;
        if (distance < nearest) {
            nearest = distance;
            owner = target->threads[i].tid;
        }
    }
    return owner;
}

/* ---- finding ---------------------------------------------------------------------------------------- */

/* The memory of the bins' stacks is a block of the heap, but no program's. */
static bool add_stack(struct jemalloc_heap *jemalloc, const struct jemalloc_tcache *tcache, uint64_t ring) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t address;
    if (layout->major < 5) {
        return jemalloc_add_cached(jemalloc, tcache->address,
                                   KARST_NONE); /* the stacks are behind it, in its block */
    }
    if (layout->own_stack != NONE16) {
        return !jemalloc_read(jemalloc, ring + layout->own_stack, &address) || address == 0 ||
               jemalloc_add_cached(jemalloc, address, KARST_NONE);
    }
    if (layout->own_data &&
        jemalloc_read(jemalloc, tcache->address + (uint64_t)(int64_t)layout->own_data, &address) && address &&
        !jemalloc_add_cached(jemalloc, address, KARST_NONE)) {
        return false;
    }
    /* Before 5.3: the first bin's stack begins where the memory does, and avail is its end. */
    struct jemalloc_run run;
    const uint8_t *bin =
        jemalloc_at(jemalloc, tcache->address + layout->tcache_bins, layout->tcache_bin_size);
    uint64_t avail = bin ? jemalloc_word(bin + layout->tcache_bin_stack) : 0;
    bool is_start;
    if (avail < 8 || !jemalloc_run_of(jemalloc, avail - 8, &run)) {
        return true;
    }
    if (run.kind == JEMALLOC_LARGE) {
        return jemalloc_add_cached(jemalloc, run.block, KARST_NONE);
    }
    uint32_t region =
        run.kind == JEMALLOC_SLAB ? jemalloc_region_of(&run, avail - 8, &is_start) : JEMALLOC_NOT_THERE;
    return region == JEMALLOC_NOT_THERE ||
           jemalloc_add_cached(jemalloc, run.first_region + region * run.stride, KARST_NONE);
}

/* 3.x, 4.x: the stacks stand behind the bins, so where the first begins tells how many bins there are
 * (nhbins, opt.lg_tcache_max). From 4.1 on its pointer is its end, 200 blocks (TCACHE_NSLOTS_SMALL_MAX)
 * further. */
static uint32_t classes_of(struct jemalloc_heap *jemalloc, uint64_t address) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t bins = address + layout->tcache_bins, stack;
    if (layout->major >= 5 || !jemalloc_read(jemalloc, bins + layout->tcache_bin_stack, &stack)) {
        return layout->tcache_classes;
    }
    uint64_t count = (stack - (layout->stack_below ? 200 * 8 : 0) - bins) / layout->tcache_bin_size;
    return count > 28 && count <= JEMALLOC_TCACHE_CLASSES_MAX ? (uint32_t)count : layout->tcache_classes;
}

static const struct karst_thread *thread_inside(const struct jemalloc_heap *jemalloc, int64_t tid) {
    const struct karst_target *target = jemalloc->heap.target;
    for (size_t i = 0; i < target->thread_count; i++) {
        if (jemalloc->threads_inside[i] && target->threads[i].tid == tid) {
            return &target->threads[i];
        }
    }
    return NULL;
}

static bool add_tcache(struct jemalloc_heap *jemalloc, uint64_t address, uint64_t ring, uint32_t arena,
                       uint64_t *items) {
    struct jemalloc_tcache *tcaches =
        realloc(jemalloc->tcaches, (jemalloc->tcache_count + 1) * sizeof *tcaches);
    if (!tcaches) {
        return false;
    }
    jemalloc->tcaches = tcaches;
    struct jemalloc_tcache *tcache = &tcaches[jemalloc->tcache_count++];
    *tcache = (struct jemalloc_tcache){.address = address,
                                       .tid = jemalloc->layout.major < 5
                                                  ? owner_by_word(jemalloc->heap.target, address)
                                                  : owner_of(jemalloc->heap.target, address),
                                       .arena = arena,
                                       .first_bin = (uint32_t)jemalloc->heap.bin_count};
    tcache->inside = thread_inside(jemalloc, tcache->tid);
    tcache->classes = classes_of(jemalloc, address);
    uint64_t stacks;
    if (jemalloc->layout.own_stack != NONE16 &&
        jemalloc_read(jemalloc, ring + jemalloc->layout.own_stack, &stacks) && stacks != 0) {
        tcache->stacks_end = stacks + 8; /* cache_bin_preincrement() */
    }
    for (uint32_t i = 0; i < tcaches[jemalloc->tcache_count - 1].classes; i++) {
        if (!jemalloc_load_cache_bin(jemalloc, tcache, i, items)) {
            return false;
        }
    }
    return add_stack(jemalloc, tcache, ring);
}

/* Is there at address what the ring of an arena leads to, and was not met yet? *tcache: its cache. */
static bool is_in_ring(struct jemalloc_heap *jemalloc, uint32_t arena, uint64_t address, uint64_t *tcache) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t of;
    *tcache = address;
    if (address == 0 || address % 8 != 0 || !jemalloc_read(jemalloc, address + layout->ring_arena, &of) ||
        (layout->major >= 5 && of != jemalloc->arenas[arena].address)) {
        return false;
    }
    return (layout->ring_to_tcache == NONE16 ||
            jemalloc_read(jemalloc, address + layout->ring_to_tcache, tcache)) &&
           *tcache != 0 && *tcache % 8 == 0 && !know(jemalloc, *tcache);
}

static bool follow_ring(struct jemalloc_heap *jemalloc, uint32_t arena, uint64_t *items) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t first, at, from = jemalloc->arenas[arena].address + layout->arena_tcaches, tcache;
    if (!jemalloc_read(jemalloc, from, &first) || first == 0) {
        return true;
    }
    at = first;
    for (unsigned i = 0; i < TCACHES_MAX && !jemalloc->caches_forged; i++) {
        if (!is_in_ring(jemalloc, arena, at, &tcache)) {
            jemalloc->arenas[arena].bad_ring = jemalloc_is_lacking(jemalloc, at) ? 0 : from;
            return true;
        }
        if (!add_tcache(jemalloc, tcache, at, arena, items)) {
            return false;
        }
        from = at + layout->ring_link;
        if (!jemalloc_read(jemalloc, from, &at) || at == first) {
            return true;
        }
    }
    return true;
}

/* Is a tcache_t at address? One points back at itself. *ring: what the ring would lead to. */
static bool is_tcache(struct jemalloc_heap *jemalloc, struct karst_window *window, uint64_t address,
                      uint64_t *ring) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    const uint8_t *bytes;
    if (layout->ring_to_tcache != NONE16) {
        bytes = karst_window_at(window, address, 8);
        *ring = bytes ? jemalloc_word(bytes) : 0;
        if (*ring % 8 != 0 || *ring == 0 || (address - *ring > TLS_SPAN && *ring - address > TLS_SPAN)) {
            return false;
        }
        bytes = karst_window_at(window, *ring + layout->ring_to_tcache, 8);
        return bytes && jemalloc_word(bytes) == address;
    }
    *ring = address;
    bytes = layout->tcache_self ? karst_window_at(window, address + layout->tcache_self, 8) : NULL;
    return bytes && jemalloc_word(bytes) == address + layout->tcache_bins;
}

/* The arena that a tcache found outside the rings belongs to; KARST_NONE: none of this heap's, but another
 * jemalloc's. */
static uint32_t arena_of(struct jemalloc_heap *jemalloc, uint64_t ring) {
    uint64_t address;
    if (!jemalloc_read(jemalloc, ring + jemalloc->layout.ring_arena, &address) || address == 0) {
        return KARST_NONE;
    }
    for (uint32_t i = 0; i < jemalloc->heap.arena_count; i++) {
        if (jemalloc->arenas[i].address == address) {
            return i;
        }
    }
    return KARST_NONE;
}

static bool scan_for_tcaches(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end, uint64_t *items) {
    struct karst_window window;
    karst_window_open(&window, jemalloc->heap.target, 1u << 16);
    bool fine = true;
    for (uint64_t at = start; fine && at + 8 <= end; at += 8) {
        uint64_t ring;
        uint32_t arena;
        if (is_tcache(jemalloc, &window, at, &ring) && !know(jemalloc, at) &&
            (arena = arena_of(jemalloc, ring)) != KARST_NONE) {
            fine = add_tcache(jemalloc, at, ring, arena, items);
            struct jemalloc_tcache *tcache = &jemalloc->tcaches[jemalloc->tcache_count - 1];
            for (uint32_t i = tcache->first_bin; fine && tcache->tid == 0 && i < jemalloc->heap.bin_count;
                 i++) {
                jemalloc->heap.bins[i].owner = -1;
            }
            tcache->tid = tcache->tid ? tcache->tid : -1;
        }
    }
    karst_window_close(&window);
    return fine;
}

/* The end of what is there, where a thread's own memory would be. */
static bool scan_end(struct jemalloc_heap *jemalloc, uint64_t start, uint64_t end, uint64_t *items) {
    uint64_t from = end - start > TLS_SPAN ? end - TLS_SPAN : start;
    return scan_for_tcaches(jemalloc, from, end, items);
}

/* The child of a fork has its parent's other threads' caches in their stacks' mappings, and nobody will ever
 * use what is in them: the rings forgot them (src/tcache.c, tcache_postfork_child()). A stack may share its
 * mapping with the heap's own memory: what lies between counts as one. */
static bool find_lost(struct jemalloc_heap *jemalloc, uint64_t *items) {
    const struct karst_target *target = jemalloc->heap.target;
    const struct karst_extent *extent = jemalloc->heap.extents;
    const struct karst_extent *last = extent + jemalloc->heap.extent_count;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint64_t start = mapping->start;
        if (!karst_mapping_is_anonymous(mapping)) {
            continue;
        }
        while (extent < last && extent->end <= start) {
            extent++;
        }
        for (; extent < last && extent->start < mapping->end; extent++) {
            if (extent->start > start && !scan_end(jemalloc, start, extent->start, items)) {
                return false;
            }
            start = extent->end;
            if (start >= mapping->end) { /* it may go on in the next one */
                break;
            }
        }
        if (start < mapping->end && !scan_end(jemalloc, start, mapping->end, items)) {
            return false;
        }
    }
    return true;
}

static int compare_cached(const void *a, const void *b) {
    const struct jemalloc_cached *x = a, *y = b;
    return x->address != y->address ? (x->address < y->address ? -1 : 1)
                                    : (x->bin < y->bin ? -1 : x->bin > y->bin);
}

/* Twice what there is: slots that were overwritten may say what others do. */
static void bound_cached(struct jemalloc_heap *jemalloc) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < jemalloc->heap.extent_count; i++) {
        bytes += jemalloc->heap.extents[i].end - jemalloc->heap.extents[i].start;
    }
    jemalloc->cached_most = 2 * bytes + CACHED_MORE;
}

bool jemalloc_find_tcaches(struct jemalloc_heap *jemalloc) {
    uint64_t *items = malloc(JEMALLOC_STACK_MAX * sizeof *items);
    bool fine = items != NULL;
    bound_cached(jemalloc);
    for (uint32_t i = 0; fine && i < jemalloc->heap.arena_count; i++) {
        fine = jemalloc->arenas[i].address == 0 || follow_ring(jemalloc, i, items);
    }
    fine = fine && find_lost(jemalloc, items);
    free(items);
    if (jemalloc->cached_count) {
        qsort(jemalloc->cached, jemalloc->cached_count, sizeof *jemalloc->cached, compare_cached);
    }
    if (!fine) {
        return false;
    }
    if (jemalloc->caches_forged) {
        karst_target_remark(
            jemalloc->heap.target,
            "the threads' caches of the jemalloc of %s hold more blocks than there can be: those that "
            "follow are left out",
            jemalloc->module ? jemalloc->module->path : "the target");
    }
    return jemalloc->tcache_count
               ? karst_facts_add(&jemalloc->heap.facts, "tcache", 0,
                                 "%zu found, in the rings of their arenas", jemalloc->tcache_count)
               : karst_facts_add(&jemalloc->heap.facts, "tcache", 0,
                                 "none found: switched off, or not used yet");
}
