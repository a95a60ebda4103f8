/* glibc malloc: what is damaged.
 *
 * First the lists: every bin, fastbin and tcache is followed and each chunk on it marked, in a bitmap of one
 * bit for 16 bytes of heap; a chunk marked twice was freed twice. Then the chunks in address order, held
 * against the marks: free ones have to be marked, and no mark may lie inside a chunk. Then the arenas' own
 * fields. Codes and their meaning: docs/verbs/check.md. */
#include "glibc_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

const char *glibc_checked_bin(const struct glibc_checking *check, uint32_t bin) {
    return bin < check->glibc->heap.bin_count ? check->glibc->heap.bins[bin].name : "a list";
}

/* ---- marks ------------------------------------------------------------------------------------------ */

static bool make_marks(struct glibc_checking *check) {
    const struct karst_heap *heap = &check->glibc->heap;
    check->marks = calloc(heap->extent_count + 1, sizeof *check->marks);
    check->seen = calloc(check->glibc->cached_count / 8 + 1, 1);
    if (!check->marks || !check->seen) {
        return karst_fail_memory(check->error);
    }
    for (size_t i = 0; i < heap->extent_count; i++) {
        check->marks[i].start = heap->extents[i].start;
    }
    return true;
}

static void free_marks(struct glibc_checking *check) {
    for (size_t i = 0; check->marks && i < check->glibc->heap.extent_count; i++) {
        karst_marks_close(&check->marks[i]);
    }
    free(check->marks);
    free(check->seen);
}

static struct karst_marks *glibc_marks_of(const struct glibc_checking *check,
                                          const struct karst_extent *extent) {
    return &check->marks[extent - check->glibc->heap.extents];
}

bool glibc_is_marked(const struct glibc_checking *check, const struct karst_extent *extent, uint64_t chunk) {
    return karst_marks_has(glibc_marks_of(check, extent), chunk);
}

bool glibc_mark(const struct glibc_checking *check, const struct karst_extent *extent, uint64_t chunk) {
    if (glibc_is_marked(check, extent, chunk)) {
        return false;
    }
    if (!karst_marks_add(glibc_marks_of(check, extent), chunk)) {
        check->findings->out_of_memory = true;
    }
    return true;
}

/* The first marked place in [from, to), 0: none. */
static uint64_t marked_between(const struct glibc_checking *check, const struct karst_extent *extent,
                               uint64_t from, uint64_t to) {
    return karst_marks_first(glibc_marks_of(check, extent), from, to);
}

/* ---- chunks in address order ---- */

/* Do the last bytes of the block before run on into the size word: one byte repeated, or text? */
static bool runs_over(struct glibc_checking *check, uint64_t chunk) {
    uint8_t bytes[GLIBC_HEADER];
    if (!karst_target_read_all(check->glibc->heap.target, chunk, bytes, sizeof bytes)) {
        return false;
    }
    bool same = bytes[0] != 0, text = true;
    for (size_t i = 0; i < sizeof bytes; i++) {
        same = same && bytes[i] == bytes[0];
        text = text && ((bytes[i] >= ' ' && bytes[i] < 127) || bytes[i] == '\n' || bytes[i] == '\t');
    }
    return same || text;
}

static void check_damage(struct glibc_checking *check, const struct glibc_chunk *chunk) {
    if (chunk->flags & KARST_BLOCK_FOREIGN) {
        check->foreign += chunk->size;
        return;
    }
    if (!chunk->damage_at) {
        return;
    }
    bool over = runs_over(check, chunk->address);
    char culprit[160] = "";
    if (chunk->previous) {
        snprintf(culprit, sizeof culprit, "; the block before it, 0x%" PRIx64 ", most likely ran over",
                 glibc_user(chunk->previous));
    }
    karst_findings_add(
        check->findings, over ? KARST_FINDING_OVERFLOW : KARST_FINDING_BAD_SIZE, glibc_torn(check),
        check->glibc->heap.index, glibc_user(chunk->address), chunk->size,
        "the header of this block is overwritten: no block can have its size%s. The walk goes on "
        "%" PRIu64 " bytes behind\tsize word 0x%" PRIx64 " at 0x%" PRIx64,
        culprit, chunk->size, chunk->size_word, chunk->address + 8);
}

/* Chunks that lists know, inside another chunk. True: there are some. */
static bool check_inside(struct glibc_checking *check, const struct glibc_chunk *chunk) {
    const struct glibc_heap *glibc = check->glibc;
    uint64_t end = chunk->address + chunk->size;
    uint64_t inside = marked_between(check, check->extent, chunk->address + GLIBC_ALIGN, end);
    size_t i = glibc_cached_at(check, chunk->address + 1, 0);
    bool cached = i < glibc->cached_count && glibc->cached[i].chunk < end;
    if (!inside && !cached) {
        return false;
    }
    uint32_t bin = cached ? glibc->cached[i].bin : glibc_bin_of_chunk(check, inside, KARST_NONE);
    inside = cached ? glibc->cached[i].chunk : inside;
    if (cached && bin == KARST_NONE && chunk->state == KARST_STATE_UNKNOWN) {
        return false;
    }
    if (chunk->state == KARST_STATE_FREE || chunk->state == KARST_STATE_TOP) {
        REPORT(check, DOUBLE_FREE, glibc_torn(check), glibc_user(inside), 0,
               "freed twice: it is in %s, and merged into %s 0x%" PRIx64 "\tchunk 0x%" PRIx64
               " lies inside 0x%" PRIx64 " to 0x%" PRIx64,
               bin == KARST_NONE ? "use as a tcache" : glibc_checked_bin(check, bin),
               chunk->state == KARST_STATE_TOP ? "the top of the heap" : "the free block",
               glibc_user(chunk->address), inside, chunk->address, end);
        return true;
    }
    REPORT(check, OVERLAP, glibc_torn(check), glibc_user(chunk->address), chunk->size,
           "this block overlaps the block 0x%" PRIx64
           " that is in %s; its size was forged, or a pointer into it was freed"
           "\tsize word 0x%" PRIx64 " at 0x%" PRIx64 " reaches to 0x%" PRIx64,
           glibc_user(inside), bin == KARST_NONE ? "use as a tcache" : glibc_checked_bin(check, bin),
           chunk->size_word, chunk->address + 8, end);
    return true;
}

static void check_free(struct glibc_checking *check, const struct glibc_chunk *chunk) {
    const struct glibc_arena *arena = &check->glibc->arenas[check->extent->arena];
    bool lists = !arena->state_missing && !arena->lists_cut;
    if (lists && !glibc_is_marked(check, check->extent, chunk->address)) {
        REPORT(check, LOST_FREE, glibc_torn(check), glibc_user(chunk->address), chunk->size,
               "free by the header behind it, but in no list: lost, or that header was overwritten\tsize "
               "word 0x%" PRIx64 " at 0x%" PRIx64,
               chunk->next_size_word, chunk->address + chunk->size + 8);
    }
    if (check->last_free) {
        REPORT(check, UNCOALESCED, glibc_torn(check), glibc_user(chunk->address), chunk->size,
               "free, and so is the block before it, 0x%" PRIx64
               ": they should be one; a header between them was overwritten\tsize word 0x%" PRIx64
               " at 0x%" PRIx64,
               glibc_user(check->last_free), chunk->size_word, chunk->address + 8);
    }
}

/* A chunk in use (live or cached): the header behind it has to say so, and its own flags have to fit. */
static void check_in_use(struct glibc_checking *check, const struct glibc_chunk *chunk) {
    uint64_t expected = check->extent->arena == 0 ? 0 : GLIBC_NON_MAIN_ARENA;
    if (!(chunk->next_size_word & GLIBC_PREV_INUSE) && chunk->next_size_word) {
        REPORT(check, OVERFLOW, glibc_torn(check), glibc_user(chunk->address + chunk->size), 0,
               "this header says that the block before it is free, which it is not: its flag was cleared, "
               "most likely "
               "by 0x%" PRIx64 " running over\tsize word 0x%" PRIx64 " at 0x%" PRIx64 ", prev_size %" PRIu64
               " where the block before has %" PRIu64,
               glibc_user(chunk->address), chunk->next_size_word, chunk->address + chunk->size + 8,
               chunk->next_prev_size, chunk->size);
    }
    if ((chunk->size_word & GLIBC_NON_MAIN_ARENA) != expected && chunk->size >= GLIBC_MIN_CHUNK) {
        REPORT(check, BAD_SIZE, glibc_torn(check), glibc_user(chunk->address), chunk->size,
               "the arena flag of this block is wrong: its header was overwritten\tsize word 0x%" PRIx64
               " at 0x%" PRIx64,
               chunk->size_word, chunk->address + 8);
    }
}

static bool check_chunk(void *context, const struct glibc_chunk *chunk) {
    struct glibc_checking *check = context;
    check->findings->blocks_checked++;
    bool inside = false;
    if (chunk->state == KARST_STATE_UNKNOWN) {
        check_damage(check, chunk);
    } else if (chunk->size >= GLIBC_MIN_CHUNK && chunk->size_word) {
        inside = check_inside(check, chunk);
        if (!inside) {
            glibc_look_inside(check->hunt, check->extent->arena == 0, chunk);
        }
    }
    if (chunk->state == KARST_STATE_FREE) {
        check_free(check, chunk);
    } else if ((chunk->state == KARST_STATE_LIVE || chunk->state == KARST_STATE_CACHED) && !inside &&
               !glibc_is_marked(check, check->extent, chunk->address)) {
        check_in_use(check, chunk);
    }
    check->last_free = chunk->state == KARST_STATE_FREE ? chunk->address : 0;
    check->bytes += chunk->size;
    if (check->bytes >= 1u << 18) {
        uint64_t bytes = check->bytes;
        check->bytes = 0;
        return karst_session_progress(check->glibc->heap.session, bytes, check->error);
    }
    return true;
}

static bool check_extents(struct glibc_checking *check) {
    struct karst_heap *heap = &check->glibc->heap;
    for (size_t i = 0; i < heap->extent_count; i++) {
        check->extent = &heap->extents[i];
        check->in_flux =
            check->extent->arena != KARST_NONE && check->glibc->arenas[check->extent->arena].in_flux;
        check->last_free = 0;
        if (check->extent->kind == KARST_EXTENT_MAPPED) {
            check->findings->blocks_checked++;
        } else if (!glibc_walk_chunks(check->glibc, check->extent, check_chunk, check)) {
            return false;
        }
    }
    return true;
}

/* ---- the arenas' own fields ---- */

static void check_heap_headers(struct glibc_checking *check, uint32_t index) {
    const struct glibc_arena *arena = &check->glibc->arenas[index];
    const char *name = check->glibc->heap.arenas[index].name;
    if (arena->bad_heap) {
        REPORT(check, BAD_ROOT, glibc_torn(check), arena->bad_heap, 0,
               "the header of a heap of arena %s is overwritten: it does not name its arena, or its size is "
               "impossible\theap_info at 0x%" PRIx64,
               name, arena->bad_heap);
    }
    if (arena->broken_link) {
        REPORT(check, BAD_LINK, glibc_torn(check), arena->broken_link, 0,
               "this heap of arena %s does not lead to the one before it, 0x%" PRIx64
               ", which was found by its header: its own was overwritten\tprev is 0x%" PRIx64
               " at 0x%" PRIx64,
               name, arena->lost_heap, arena->link, arena->broken_link + 8);
    }
}

static void check_top(struct glibc_checking *check, uint32_t index) {
    const struct glibc_heap *glibc = check->glibc;
    const struct glibc_arena *arena = &glibc->arenas[index];
    const char *name = glibc->heap.arenas[index].name;
    if (!arena->top_damaged || glibc_is_missing(glibc->heap.target, arena->top + 8)) {
        return;
    }
    const struct karst_extent *holder = glibc_chunk_extent(glibc, arena->top);
    if (!holder || holder->arena != index) {
        REPORT(check, BAD_ROOT, glibc_torn(check), arena->address + glibc->layout.state_top, 0,
               "the top of arena %s is in none of its heaps: the arena was overwritten\ttop is 0x%" PRIx64
               " at 0x%" PRIx64,
               name, arena->top, arena->address + glibc->layout.state_top);
    } else {
        REPORT(check, BAD_SIZE, glibc_torn(check), glibc_user(arena->top), arena->top_size,
               "the top of arena %s does not end where its heap does; the last block most likely ran over"
               "\ttop 0x%" PRIx64 " with size %" PRIu64,
               name, arena->top, arena->top_size);
    }
}

/* Memory that comes or goes shows at once, in the account a little later, and in top's header last
 * (malloc/malloc.c, sysmalloc(), systrim(), heap_trim()): a thread in between waits for the system. */
static bool agrees(const struct glibc_arena *arena, uint64_t bytes, uint64_t foreign) {
    uint64_t missing = bytes - arena->system_mem, half_done = missing + arena->top_change;
    return missing <= foreign || (arena->in_flux && half_done <= foreign);
}

/* What the arena says it has, against what was found of it. */
static void check_system_mem(struct glibc_checking *check, uint32_t index) {
    const struct glibc_heap *glibc = check->glibc;
    const struct glibc_arena *arena = &glibc->arenas[index];
    const struct karst_arena *row = &glibc->heap.arenas[index];
    uint64_t bytes = 0, field = arena->address + glibc->layout.state_system_mem;
    for (size_t i = 0; i < glibc->heap.extent_count; i++) {
        const struct karst_extent *extent = &glibc->heap.extents[i];
        bytes += extent->arena == index ? extent->end - extent->start : 0;
    }
    bool right = agrees(arena, bytes, index == 0 ? check->foreign : 0);
    if (arena->system_mem > row->max_system_bytes && !(right && arena->in_flux)) {
        REPORT(check, BAD_ROOT, glibc_torn(check), field, 0,
               "the size of arena %s is impossible: the arena was overwritten\tsystem_mem %" PRIu64
               ", max_system_mem %" PRIu64,
               row->name, arena->system_mem, row->max_system_bytes);
    } else if (!arena->top_damaged && !right && !glibc->heap.target->missing_memory) {
        REPORT(
            check, BAD_ROOT, SUSPECT, field, 0,
            "arena %s says it has %" PRIu64 " bytes, but %" PRIu64
            " were found: it was overwritten, or a part of it is not to be found\tsystem_mem at 0x%" PRIx64,
            row->name, arena->system_mem, bytes, field);
    }
}

static void check_arena(struct glibc_checking *check, uint32_t index) {
    const struct glibc_arena *arena = &check->glibc->arenas[index];
    if (!arena->uninitialized) {
        check->in_flux = arena->in_flux;
        check_heap_headers(check, index);
        check_top(check, index);
        check_system_mem(check, index);
    }
}

/* Mapped blocks of several libcs are only told apart by what each counts, so their sum is held against the
 * sum of the counts, once. */
static void check_mapped(struct glibc_checking *check) {
    const struct glibc_heap *first = NULL;
    const struct karst *session = check->glibc->heap.session;
    uint64_t mapped = 0, counted = 0;
    for (size_t i = 0; i < session->heap_count; i++) {
        if (session->heaps[i]->allocator != &karst_glibc) {
            continue;
        }
        const struct glibc_heap *glibc = (const struct glibc_heap *)session->heaps[i];
        for (size_t k = 0; k < glibc->heap.extent_count && glibc->par; k++) {
            mapped += glibc->heap.extents[k].kind == KARST_EXTENT_MAPPED;
        }
        counted += glibc->par ? glibc->n_mmaps : 0;
        first = first || !glibc->par ? first : glibc;
    }
    if (check->glibc == first && mapped != counted && !first->heap.target->missing_memory) {
        REPORT(check, BAD_COUNT, SUSPECT, first->par + first->layout.par_n_mmaps, 0,
               "%" PRIu64 " blocks with mappings of their own were found, but malloc counts %" PRIu64
               ": a header was overwritten, or a mapping was taken away\tn_mmaps at 0x%" PRIx64,
               mapped, counted, first->par + first->layout.par_n_mmaps);
    }
}

static void check_roots(struct glibc_checking *check) {
    const struct glibc_heap *glibc = check->glibc;
    if (glibc->ring_broken) {
        REPORT(check, BAD_ROOT, CORRUPT, glibc->main_arena + glibc->layout.state_next, 0,
               "the ring of arenas does not close: an arena was overwritten; arenas may be missing here"
               "\tmain_arena.next at 0x%" PRIx64,
               glibc->main_arena + glibc->layout.state_next);
    }
    for (uint32_t i = 0; i < glibc->heap.arena_count; i++) {
        check_arena(check, i);
    }
    check_mapped(check);
}

static void check_lists(struct glibc_checking *check) {
    struct glibc_heap *glibc = check->glibc;
    for (size_t a = 0; a < glibc->heap.arena_count; a++) {
        const struct glibc_arena *arena = &glibc->arenas[a];
        if (arena->uninitialized) {
            continue;
        }
        for (unsigned i = 1; i < GLIBC_BINS; i++) {
            glibc_check_bin(check, arena, i);
        }
        for (unsigned i = 0; glibc->layout.state_fastbins && i < GLIBC_FASTBINS; i++) {
            glibc_check_fastbin(check, arena, i);
        }
    }
    glibc_check_tcaches(check);
    glibc_check_caches_against_each_other(check);
}

bool glibc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error) {
    struct glibc_checking check = {.glibc = (struct glibc_heap *)heap, .findings = findings, .error = error};
    check.hunt = glibc_hunt_open(check.glibc);
    bool done = check.hunt ? make_marks(&check) : karst_fail_memory(error);
    if (done) {
        check_lists(&check);
        done = check_extents(&check);
    }
    if (done) {
        check_roots(&check);
    }
    done = done && glibc_hunt_finish(check.hunt, findings, error);
    glibc_hunt_close(check.hunt);
    free_marks(&check);
    if (done && findings->out_of_memory) {
        return karst_fail_memory(error);
    }
    return done;
}
