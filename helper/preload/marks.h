/* Marks: a footer in each block and a map of where blocks begin; see karst-abi.h. What most calls take is
 * here, the rest in marks.c. */
#ifndef KARST_PRELOAD_MARKS_H
#define KARST_PRELOAD_MARKS_H

#include <string.h>

#include "preload.h"

/* Most of what a call takes. */
#define MARKS_INLINE inline __attribute__((always_inline))

#define MARKS_FILL      (UINT64_C(0x0101010101010101) * KARST_FOOTER_FILL)
#define MARKS_SIZE_MASK ((UINT64_C(1) << KARST_FOOTER_SIZE_BITS) - 1)
/* Bits that are set in no block's address: the map reaches to 2^48. */
#define MARKS_NEVER (~KARST_SITE_MASK | (KARST_MAP_GRAIN - 1))
/* Room behind a leaf for an entry that begins in its last bytes. */
#define MARKS_LEAF_MORE 4096u

/* Sequence numbers are dealt to threads in pieces, and a thread that is far behind takes a new piece. */
#define MARKS_PIECE  64u
#define MARKS_BEHIND 4096u

struct marks_thread {
    uint64_t next, end;
    uint64_t thread_bits; /* the thread's id, as it stands in footers */
};
extern _Thread_local struct marks_thread marks_thread
    __attribute__((visibility("hidden"), tls_model("initial-exec")));
extern uint64_t marks_dealt __attribute__((visibility("hidden")));

/* Prepares the map; false: no memory. */
bool marks_open(void);
/* marks_put() where a leaf is missing or the thread has no sequence numbers left. */
COLD void marks_put_slow(void *block, uint64_t size, uint64_t site, enum karst_function function, bool fresh);
/* What is wrong with a block that is to be freed and did not pass marks_release(). KARST_FAULT_NONE: nothing,
 * it was never marked. Fills what why says of the block. */
enum karst_fault marks_judge(const struct call *call, struct karst_why *why);
/* The size asked for; false: not a marked live block. */
bool marks_size(const void *block, size_t *size);

static inline uint64_t marks_footer_offset(uint64_t size) {
    return size < 16 ? 16 : (size + 7) & ~UINT64_C(7);
}

/* What to ask the allocator for; a size that can't be met stays one. */
static inline size_t marks_room(size_t size) {
    return LIKELY(size < PTRDIFF_MAX - 64) ? marks_footer_offset(size) + KARST_FOOTER_BYTES : size;
}

static MARKS_INLINE uint8_t *marks_leaf(uint64_t address) {
    const uint64_t *directory = (const uint64_t *)(uintptr_t)karst_control.map;
    return (uint8_t *)(uintptr_t)__atomic_load_n(&directory[address / KARST_MAP_SPAN % KARST_MAP_ENTRIES],
                                                 __ATOMIC_ACQUIRE);
}

static MARKS_INLINE uint8_t *marks_place_in(uint8_t *leaf, uint64_t address) {
    return leaf + address % KARST_MAP_SPAN / KARST_MAP_GRAIN;
}

/* Entries are little endian and lie anywhere. */
static MARKS_INLINE void marks_set_entry(uint8_t *at, uint64_t offset, enum karst_mark state) {
    if (LIKELY(offset / 8 < KARST_MAP_LARGE)) {
        uint16_t entry = (uint16_t)(offset / 8 << 2 | state);
        memcpy(at, &entry, sizeof entry);
    } else {
        uint64_t entry = offset << 16 | KARST_MAP_LARGE << 2 | state;
        memcpy(at, &entry, sizeof entry);
    }
}

static MARKS_INLINE enum karst_mark marks_entry(const uint8_t *at, uint64_t *offset) {
    uint16_t entry;
    memcpy(&entry, at, sizeof entry);
    *offset = (uint64_t)(entry >> 2) * 8;
    if (UNLIKELY(entry >> 2 == KARST_MAP_LARGE)) {
        uint64_t large;
        memcpy(&large, at, sizeof large);
        *offset = large >> 16;
    }
    return entry & 3;
}

/* The bytes of the last word before the footer that are not the program's. */
static inline uint64_t marks_gap(uint64_t size, uint64_t offset) {
    uint64_t gap = offset - size;
    return gap == 0 ? 0 : gap >= 8 ? UINT64_MAX : UINT64_MAX << (64 - 8 * gap);
}

static inline void marks_fill_word(uint8_t *at, uint64_t mask) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    word = (word & ~mask) | (MARKS_FILL & mask);
    memcpy(at, &word, sizeof word);
}

/* In a fresh block whole words may be filled. */
static MARKS_INLINE void marks_fill(uint8_t *block, uint64_t size, uint64_t offset, bool fresh) {
    if (offset == size) {
        return;
    }
    if (fresh) {
        uint64_t fill = MARKS_FILL;
        memcpy(block + offset - 8, &fill, sizeof fill);
        if (UNLIKELY(size < 8)) {
            memcpy(block, &fill, sizeof fill);
        }
        return;
    }
    marks_fill_word(block + offset - 8, marks_gap(size, offset));
    if (size < 8) {
        marks_fill_word(block, marks_gap(size, 8));
    }
}

static MARKS_INLINE void marks_write(void *block, uint64_t size, uint64_t offset, uint64_t site,
                                     enum karst_function function, bool fresh, uint8_t *leaf,
                                     uint64_t number) {
    uint64_t address = (uint64_t)(uintptr_t)block;
    struct karst_footer *footer = (struct karst_footer *)((uint8_t *)block + offset);
    marks_fill(block, size, offset, fresh);
    footer->canary = karst_control.canary ^ address;
    footer->size = size | marks_thread.thread_bits;
    footer->site = (site & KARST_SITE_MASK) | (uint64_t)function << KARST_SITE_BITS;
    footer->sequence = number;
    marks_set_entry(marks_place_in(leaf, address), offset, KARST_MARK_LIVE);
}

/* Marks a block that the allocator just gave for marks_room(size) bytes. What the program is to find in its
 * bytes stays, unless it is fresh: of no use yet. A block that is not aligned to 16 stays unmarked, and so do
 * all without memory for the map. */
static MARKS_INLINE void marks_put(void *block, uint64_t size, uint64_t site, enum karst_function function,
                                   bool fresh) {
    uint64_t address = (uint64_t)(uintptr_t)block, offset = marks_footer_offset(size);
    uint8_t *leaf = marks_leaf(address);
    struct marks_thread *thread = &marks_thread;
    uint64_t number = thread->next;
    if (UNLIKELY(!leaf || address & MARKS_NEVER || size > MARKS_SIZE_MASK || number == thread->end ||
                 __atomic_load_n(&marks_dealt, __ATOMIC_RELAXED) - number > MARKS_BEHIND)) {
        marks_put_slow(block, size, site, function, fresh);
        return;
    }
    thread->next = number + 1;
    marks_write(block, size, offset, site, function, fresh, leaf, number);
}

/* Nothing was written behind the block's end. */
static MARKS_INLINE bool marks_whole(const uint8_t *block, const struct karst_footer *footer,
                                     uint64_t offset) {
    uint64_t address = (uint64_t)(uintptr_t)block, size = footer->size & MARKS_SIZE_MASK, word;
    if (UNLIKELY(footer->canary != (karst_control.canary ^ address) || marks_footer_offset(size) != offset)) {
        return false;
    }
    if (offset == size) {
        return true;
    }
    memcpy(&word, block + offset - 8, sizeof word);
    if (UNLIKELY((word ^ MARKS_FILL) & marks_gap(size, offset))) {
        return false;
    }
    if (size >= 8) {
        return true;
    }
    memcpy(&word, block, sizeof word);
    return !((word ^ MARKS_FILL) & marks_gap(size, 8));
}

/* Marks a live block as freed at site. False, and nothing done: it is no block that may be freed, or was
 * written beyond its end, or is not marked; marks_judge() tells. */
static MARKS_INLINE bool marks_release(void *block, uint64_t site) {
    uint64_t address = (uint64_t)(uintptr_t)block, offset;
    uint8_t *leaf = marks_leaf(address);
    if (UNLIKELY(!leaf || address & MARKS_NEVER)) {
        return false;
    }
    uint8_t *at = marks_place_in(leaf, address);
    if (UNLIKELY(marks_entry(at, &offset) != KARST_MARK_LIVE)) {
        return false;
    }
    struct karst_footer *footer = (struct karst_footer *)((uint8_t *)block + offset);
    if (UNLIKELY(!marks_whole(block, footer, offset))) {
        return false;
    }
    footer->canary = KARST_FOOTER_FREED | (site & KARST_SITE_MASK);
    marks_set_entry(at, offset, KARST_MARK_FREED);
    return true;
}

/* Takes marks_release() back. */
void marks_restore(void *block);
/* Marks a block as freed although its footer was damaged; where none is, nothing. */
void marks_release_damaged(void *block);

#endif
