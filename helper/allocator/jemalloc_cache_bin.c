/* jemalloc: what is in the bins of a thread's cache. Facts: include/jemalloc/internal/tcache_structs.h,
 * cache_bin.h (5.x), tcache.h (3.x, 4.x). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jemalloc.h"

#define NONE16          (JEMALLOC_NOT_THERE & 0xffff)
#define PAGE            4096u
#define SMALL_CLASSES   36u
#define STACK_BYTES_MAX 65535u /* 5.3: of one bin */

/* Bytes of the blocks in bin index of a tcache. */
static uint64_t class_size(const struct jemalloc_heap *jemalloc, uint32_t index) {
    /* 3.x: 28 small classes, then pages. */
    return jemalloc->layout.major == 3 && index >= 28 ? 4096ull * (index - 27) : jemalloc_class_size(index);
}

/* ---- one bin ----------------------------------------------------------------------------------------- */

/* Address of bin index in the tcache; 0: it has no such bin. */
static uint64_t bin_at(const struct jemalloc_heap *jemalloc, const struct jemalloc_tcache *tcache,
                       uint32_t index) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    if (index >= tcache->classes) {
        return 0;
    }
    if (layout->tcache_large != NONE16 && index >= SMALL_CLASSES) {
        return tcache->address + layout->tcache_large +
               (uint64_t)(index - SMALL_CLASSES) * layout->tcache_bin_size;
    }
    return tcache->address + layout->tcache_bins + (uint64_t)index * layout->tcache_bin_size;
}

/* Does any of the thread's registers lead into [start, end)? True, too, where they are not known. */
static bool registers_reach(const struct karst_thread *thread, uint64_t start, uint64_t end) {
    bool reach = thread->register_count == 0;
    for (uint32_t i = 0; i < thread->register_count && i < KARST_REGISTERS_MAX; i++) {
        reach = reach || thread->registers[i] - start < end - start;
    }
    return reach;
}

/* A free moves a bin's head (or count) and writes the block's address there in another instruction. In
 * between, what is on top is what was there before: most likely a block that was handed out, and is in use. A
 * thread that is at it has the bin or its stack in a register. Facts: cache_bin.h (5.3),
 * cache_bin_dalloc_easy(); tcache_inlines.h (5.1, 5.2), tcache.h (3.x, 4.x), tcache_dalloc_small(). */
static void leave_out_top(const struct jemalloc_heap *jemalloc, const struct jemalloc_tcache *tcache,
                          uint64_t bin, uint64_t *from, uint32_t *count) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    bool on_top_is_last = layout->major < 5 && !layout->stack_below;
    if (*count == 0 || !tcache->inside ||
        (!registers_reach(tcache->inside, bin, bin + layout->tcache_bin_size) &&
         !registers_reach(tcache->inside, *from - 8, *from + 8ull * *count + 8))) {
        return;
    }
    *from += on_top_is_last ? 0 : 8;
    --*count;
}

/* Where the pointers of a bin are: [*from, *from + 8 * *count). False: not there, or no sense. */
static bool stack_of(struct jemalloc_heap *jemalloc, const struct jemalloc_tcache *tcache, uint32_t index,
                     uint64_t *from, uint32_t *count) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    uint64_t address = bin_at(jemalloc, tcache, index);
    const uint8_t *bin = address ? jemalloc_at(jemalloc, address, layout->tcache_bin_size) : NULL;
    bool sensible;
    *count = 0;
    if (!bin) {
        return false;
    }
    *from = jemalloc_word(bin + layout->tcache_bin_stack);
    if (layout->stack_by_head) {
        uint16_t empty, full;
        memcpy(&empty, bin + layout->tcache_bin_count, sizeof empty); /* low_bits_empty */
        memcpy(&full, bin + layout->tcache_bin_full, sizeof full);    /* low_bits_full */
        *count = (uint16_t)(empty - *from) / 8u;
        sensible = *from % 8 == 0 && empty % 8 == 0 && full % 8 == 0 &&
                   *count <= (uint16_t)(empty - full) / 8u &&
                   (*from != 0 || index >= SMALL_CLASSES); /* each small class has a stack, if of no slot */
    } else {
        *count = jemalloc_half(bin + layout->tcache_bin_count);
        /* avail is the stack's end there */
        *from -= layout->major == 5 || layout->stack_below ? 8ull * *count : 0;
        sensible = *count <= JEMALLOC_STACK_MAX;
    }
    leave_out_top(jemalloc, tcache, address, from, count);
    return sensible;
}

/* Blocks in bin index (class) of a tcache, as its stack has them now: *count in items, which has room for
 * JEMALLOC_STACK_MAX. *end: of the stack. */
static bool items_of(struct jemalloc_heap *jemalloc, const struct jemalloc_tcache *tcache, uint32_t index,
                     uint64_t *items, uint32_t *count, uint64_t *end) {
    uint64_t from;
    if (!stack_of(jemalloc, tcache, index, &from, count)) {
        return false;
    }
    *end = from + 8ull * *count;
    return *count == 0 || karst_target_read_all(jemalloc->heap.target, from, items, 8ull * *count);
}

uint64_t jemalloc_cache_bin(struct jemalloc_heap *jemalloc, uint32_t row) {
    for (size_t i = 0; i < jemalloc->tcache_count; i++) {
        const struct jemalloc_tcache *tcache = &jemalloc->tcaches[i];
        for (uint32_t index = 0; row - tcache->first_bin < tcache->bins && index < tcache->classes; index++) {
            if (class_size(jemalloc, index) == jemalloc->heap.bins[row].smallest) {
                return bin_at(jemalloc, tcache, index);
            }
        }
    }
    return 0;
}

/* ---- all of a cache ----------------------------------------------------------------------------------- */

/* 5.3, built with use-after-free detection (--enable-uaf-detection, opt.lg_san_uaf_align): what is freed and
 * begins a page (of 4 KiB or more) is filled with junk and kept ("stashed") at the low end of the bin's
 * stack, below the place down to which blocks are cached, which moves up by as much. The stacks stand one
 * behind the other, so each begins where the one before ends; that of a bin that is switched off is
 * elsewhere, of no slot. Facts: cache_bin.h (cache_bin_stash()), cache_bin.c, tcache.c (tcache_init()).
 *
 * end: of the bin's stack. *count: how many blocks, in items. False: it makes no sense. */
static bool stash_of(struct jemalloc_heap *jemalloc, struct jemalloc_tcache *tcache, uint32_t index,
                     uint64_t end, uint64_t *items, uint32_t *count) {
    const struct jemalloc_layout *layout = &jemalloc->layout;
    const uint8_t *bin = jemalloc_at(jemalloc, bin_at(jemalloc, tcache, index), layout->tcache_bin_size);
    uint64_t start = tcache->stacks_end;
    uint16_t empty, full;
    *count = 0;
    if (!bin || (start != 0 && (end <= start || end - start > STACK_BYTES_MAX))) {
        return true;
    }
    tcache->stacks_end = end;
    memcpy(&empty, bin + layout->tcache_bin_count, sizeof empty);
    memcpy(&full, bin + layout->tcache_bin_full, sizeof full);
    uint64_t cached_from = end - (uint16_t)(empty - full);
    if (start == 0 || cached_from < start) {
        return start == 0; /* not known, for the one before is damaged */
    }
    *count = (uint32_t)(cached_from - start) / 8;
    bool sensible = *count == 0 || karst_target_read_all(jemalloc->heap.target, start, items, 8ull * *count);
    for (uint32_t i = 0; sensible && i < *count; i++) {
        sensible = items[i] != 0 && items[i] % PAGE == 0;
    }
    return sensible;
}

static struct karst_bin *add_bin(struct jemalloc_heap *jemalloc) {
    size_t count = jemalloc->heap.bin_count;
    struct karst_bin *bins = realloc(jemalloc->heap.bins, (count + 1) * sizeof *bins);
    if (!bins) {
        return NULL;
    }
    jemalloc->heap.bins = bins;
    jemalloc->heap.bin_count++;
    return &bins[count];
}

static struct karst_bin *name_bin(struct jemalloc_heap *jemalloc, const struct jemalloc_tcache *tcache,
                                  uint32_t index) {
    struct karst_bin *bin = add_bin(jemalloc);
    if (!bin) {
        return NULL;
    }
    *bin = (struct karst_bin){.arena = tcache->arena, .owner = tcache->tid, .cache = true};
    bin->smallest = bin->largest = class_size(jemalloc, index);
    snprintf(bin->kind, sizeof bin->kind, "tcache");
    if (tcache->tid > 0) {
        snprintf(bin->name, sizeof bin->name, "tcache 0x%" PRIx64 " thread %" PRId64, bin->smallest,
                 tcache->tid);
    } else {
        snprintf(bin->name, sizeof bin->name, "tcache 0x%" PRIx64 " at 0x%" PRIx64, bin->smallest,
                 tcache->address);
    }
    return bin;
}

/* What is in the bin: in items, first what is cached. False: it makes no sense. */
static bool read_items(struct jemalloc_heap *jemalloc, struct jemalloc_tcache *tcache, uint32_t index,
                       uint64_t *items, uint32_t *cached, uint32_t *stashed) {
    uint64_t end;
    *stashed = 0;
    if (!items_of(jemalloc, tcache, index, items, cached, &end)) {
        tcache->stacks_end = 0;
        return false;
    }
    return !jemalloc->layout.stack_by_head || index >= SMALL_CLASSES ||
           stash_of(jemalloc, tcache, index, end, items + *cached, stashed);
}

bool jemalloc_load_cache_bin(struct jemalloc_heap *jemalloc, struct jemalloc_tcache *tcache, uint32_t index,
                             uint64_t *items) {
    uint32_t cached, stashed;
    bool sensible = read_items(jemalloc, tcache, index, items, &cached, &stashed);
    uint32_t count = cached + stashed, row = (uint32_t)jemalloc->heap.bin_count;
    if (sensible && count == 0) {
        return true;
    }
    struct karst_bin *bin = name_bin(jemalloc, tcache, index);
    if (!bin) {
        return false;
    }
    tcache->bins++;
    bin->damaged = !sensible;
    if (!sensible) {
        return true;
    }
    jemalloc->cached_bytes += count * bin->smallest;
    jemalloc->caches_forged |= jemalloc->cached_bytes > jemalloc->cached_most;
    if (jemalloc->caches_forged) {
        return true;
    }
    bin->blocks = count;
    bin->bytes = count * bin->smallest;
    for (uint32_t i = 0; i < count; i++) {
        if (!jemalloc_add_cached(jemalloc, items[i], row)) {
            return false;
        }
        jemalloc->cached[jemalloc->cached_count - 1].stashed = i >= cached;
    }
    return true;
}
