/* A heap made up here: extents, and blocks that tile them, as a session that analyses can walk. It sizes
 * blocks and trims as glibc does. */
#ifndef KARST_TESTS_FAKE_HEAP_H
#define KARST_TESTS_FAKE_HEAP_H

#include <stdlib.h>
#include <string.h>

#include "session.h"

#define FAKE_BLOCKS_MAX  20000
#define FAKE_EXTENTS_MAX 8
#define FAKE_PAGE        4096u
#define FAKE_FASTBIN     0u /* index of the bin that a trim empties first */
#define FAKE_TCACHE      1u
#define FAKE_MAPPED      (UINT64_C(64) << 20) /* from this size on, blocks get mappings of their own */

struct fake_heap {
    struct karst_heap heap; /* first */
    struct karst session;
    struct karst_target target;
    struct karst_heap *heaps[1];
    struct karst_arena arenas[2];
    struct karst_bin bins[2];
    struct karst_extent extents[FAKE_EXTENTS_MAX];
    struct karst_block blocks[FAKE_BLOCKS_MAX];
    size_t block_count;
    uint64_t next; /* where the next block begins */
    bool residency_unknown;
    size_t batch; /* blocks handed over at once, 0: as many as go into a batch */
};

/* Every third page is not resident. */
static inline bool fake_page_is_resident(uint64_t page) {
    return page % 3 != 0;
}

static uint64_t fake_resident(struct karst_target *target, uint64_t start, uint64_t end) {
    const struct fake_heap *fake =
        (const struct fake_heap *)((const char *)target - offsetof(struct fake_heap, target));
    uint64_t sum = 0;
    if (fake->residency_unknown) {
        return UINT64_MAX;
    }
    for (uint64_t at = start; at < end;) {
        uint64_t next = (at / FAKE_PAGE + 1) * FAKE_PAGE;
        next = next < end ? next : end;
        sum += fake_page_is_resident(at / FAKE_PAGE) ? next - at : 0;
        at = next;
    }
    return sum;
}

static size_t fake_read(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    (void)target;
    (void)address;
    (void)buffer;
    (void)size;
    return 0;
}

static bool fake_walk(struct karst_heap *heap, const struct karst_extent *extent, struct karst_sink *sink,
                      struct karst_error *error) {
    const struct fake_heap *fake = (const struct fake_heap *)heap;
    size_t most = fake->batch ? fake->batch : KARST_BATCH;
    (void)error;
    for (size_t i = 0; i < fake->block_count;) {
        size_t count = 0;
        while (i + count < fake->block_count && count < most &&
               fake->blocks[i + count].start >= extent->start &&
               fake->blocks[i + count].start < extent->end) {
            count++;
        }
        if (count && !sink->blocks(sink, &fake->blocks[i], count)) {
            return false;
        }
        i += count ? count : 1;
    }
    return true;
}

static uint64_t fake_block_size(struct karst_heap *heap, uint64_t request, bool *mapped) {
    (void)heap;
    if (request > INT64_MAX) {
        return 0;
    }
    uint64_t size = (request + 8 + 15) & ~UINT64_C(15);
    *mapped = size >= FAKE_MAPPED;
    return size < 32 ? 32 : size;
}

static bool fake_trim(struct karst_heap *heap, const struct karst_extent *extent, uint64_t start,
                      uint64_t size, bool is_top, uint64_t *from, uint64_t *to) {
    (void)heap;
    if (is_top) {
        *to = start + size;
        *from = size > 33 ? *to - (size - 33) / FAKE_PAGE * FAKE_PAGE : *to;
        return extent->kind == KARST_EXTENT_BRK && *from < *to;
    }
    *from = (start + 48 + FAKE_PAGE - 1) / FAKE_PAGE * FAKE_PAGE;
    *to = (start + size) / FAKE_PAGE * FAKE_PAGE;
    return *from < *to;
}

static const struct karst_allocator fake_allocator = {
    .name = "fake", .walk = fake_walk, .block_size = fake_block_size, .trim = fake_trim};
static const struct karst_target_ops fake_ops = {.read = fake_read, .resident = fake_resident};

static inline void fake_begin(struct fake_heap *fake) {
    memset(fake, 0, sizeof *fake);
    fake->target.ops = &fake_ops;
    fake->target.page_size = FAKE_PAGE;
    fake->target.stopped = true;
    fake->heap = (struct karst_heap){.allocator = &fake_allocator,
                                     .session = &fake->session,
                                     .target = &fake->target,
                                     .name = "fake",
                                     .arenas = fake->arenas,
                                     .arena_count = 2,
                                     .bins = fake->bins,
                                     .bin_count = 2,
                                     .extents = fake->extents};
    strcpy(fake->arenas[0].name, "main");
    strcpy(fake->arenas[1].name, "thread 1");
    fake->bins[FAKE_FASTBIN] =
        (struct karst_bin){.name = "fast", .kind = "fast", .cache = true, .trimmed = true};
    fake->bins[FAKE_TCACHE] = (struct karst_bin){.name = "tcache", .kind = "tcache", .cache = true};
    fake->heaps[0] = &fake->heap;
    fake->session = (struct karst){.target = &fake->target,
                                   .searched = true,
                                   .heaps = fake->heaps,
                                   .heap_count = 1,
                                   .extents = fake->extents,
                                   .bins_loaded = true};
}

static inline void fake_extent(struct fake_heap *fake, uint64_t start, enum karst_extent_kind kind,
                               uint32_t arena) {
    fake->extents[fake->session.extent_count++] =
        (struct karst_extent){.start = start, .end = start, .arena = arena, .kind = (uint8_t)kind};
    fake->heap.extent_count = fake->session.extent_count;
    fake->next = start;
}

/* The next block of the last extent. bin: for cached ones. Returns the block. */
static inline const struct karst_block *fake_add(struct fake_heap *fake, enum karst_state state,
                                                 uint64_t size, uint32_t bin) {
    struct karst_extent *extent = &fake->extents[fake->session.extent_count - 1];
    struct karst_block *block = &fake->blocks[fake->block_count++];
    *block = (struct karst_block){.start = fake->next,
                                  .size = size,
                                  .address = fake->next + 16,
                                  .usable = size - 8,
                                  .arena = extent->arena,
                                  .bin = state == KARST_STATE_CACHED ? bin : KARST_NONE,
                                  .state = (uint8_t)state};
    fake->next += size;
    extent->end = fake->next;
    return block;
}

static inline const struct karst_block *fake_live(struct fake_heap *fake, uint64_t size) {
    return fake_add(fake, KARST_STATE_LIVE, size, KARST_NONE);
}

static inline const struct karst_block *fake_free(struct fake_heap *fake, uint64_t size) {
    return fake_add(fake, KARST_STATE_FREE, size, KARST_NONE);
}

/* xorshift; the same in every run. */
static inline uint64_t fake_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A heap of several extents with blocks of any state in any order. */
static inline void fake_random_heap(struct fake_heap *fake, uint64_t seed) {
    uint64_t random = seed * 2654435761u + 1;
    fake_begin(fake);
    for (unsigned extent = 0; extent < 4; extent++) {
        fake_extent(fake, 0x10000000u * (extent + 1) + 16 * extent,
                    extent == 0   ? KARST_EXTENT_BRK
                    : extent == 3 ? KARST_EXTENT_MAPPED
                                  : KARST_EXTENT_HEAP,
                    extent == 3 ? KARST_NONE : extent % 2);
        unsigned count = extent == 3 ? 1 : (unsigned)(fake_random(&random) % 600);
        for (unsigned i = 0; i < count; i++) {
            static const enum karst_state states[] = {
                KARST_STATE_LIVE,   KARST_STATE_LIVE,     KARST_STATE_LIVE,
                KARST_STATE_FREE,   KARST_STATE_FREE,     KARST_STATE_CACHED,
                KARST_STATE_CACHED, KARST_STATE_METADATA, KARST_STATE_UNKNOWN};
            uint64_t draw = fake_random(&random);
            enum karst_state state =
                extent == 3 ? KARST_STATE_LIVE : states[draw % (draw >> 40 & 15 ? 7 : 9)];
            uint64_t size = 32 + ((draw >> 8) % (1u << ((draw >> 24) % 18))) / 16 * 16;
            fake_add(fake, state, size, (uint32_t)(draw >> 50 & 1));
        }
        if (extent != 3 && fake_random(&random) % 4) {
            fake_add(fake, KARST_STATE_TOP, 32 + fake_random(&random) % 100000 / 16 * 16, KARST_NONE);
        }
    }
    fake->batch = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 7 : 0;
}

#endif
