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
/* Room behind a leaf for an entry that begins in its last bytes. */
#define MARKS_LEAF_MORE 4096u
/* Blocks up to this size have a short entry in the map. */
#define MARKS_SHORT ((KARST_MAP_LARGE - 1) * UINT64_C(8))

/* Sequence numbers are dealt to threads in pieces, and a thread that is far behind takes a new piece. A
 * multiple of a piece is nobody's number: it says that the thread's piece is used up. */
#define MARKS_PIECE  64u
#define MARKS_BEHIND 4096u

struct marks_thread {
    uint64_t next;
    uint64_t thread_bits; /* the thread's id, as it stands in footers */
};
extern _Thread_local struct marks_thread marks_thread
    __attribute__((visibility("hidden"), tls_model("initial-exec")));
extern uint64_t marks_dealt __attribute__((visibility("hidden")));

/* Prepares the map; false: no memory. */
bool marks_open(void);
/* What is wrong with a block that is to be freed and did not pass marks_release(). KARST_FAULT_NONE: nothing,
 * it was never marked. Fills what why says of the block. */
enum karst_fault marks_judge(const struct call *call, struct karst_why *why);
/* The size asked for; false: not a marked live block. */
bool marks_size(const void *block, size_t *size);

static MARKS_INLINE uint64_t marks_footer_offset(uint64_t size) {
    uint64_t whole = (size + 7) & ~UINT64_C(7);
    return whole < 16 ? 16 : whole;
}

/* What to ask the allocator for; a size that can't be met stays one. */
static inline size_t marks_room(size_t size) {
    return LIKELY(size < PTRDIFF_MAX - 64) ? marks_footer_offset(size) + KARST_FOOTER_BYTES : size;
}

/* ---- the map ----------------------------------------------------------------------------------------- */

/* The number of an address's place in the map; what is not aligned to a place, or beyond 2^48, where the map
 * ends, has one of MARKS_PLACES and more. */
#define MARKS_PLACES (KARST_MAP_ENTRIES * KARST_MAP_LEAF)

static MARKS_INLINE uint64_t marks_place(uint64_t address) {
    return address >> 4 | address << 60;
}

/* The leaf of a place, which has to be in the map; NULL: none was made. */
static MARKS_INLINE uint8_t *marks_leaf(uint64_t place) {
    const uint64_t *directory = (const uint64_t *)(uintptr_t)karst_control.map;
    return (uint8_t *)(uintptr_t)__atomic_load_n(&directory[place / KARST_MAP_LEAF], __ATOMIC_ACQUIRE);
}

/* Entries are little endian and lie anywhere. */
static inline void marks_set_entry(uint8_t *at, uint64_t offset, enum karst_mark state) {
    if (LIKELY(offset / 8 < KARST_MAP_LARGE)) {
        uint16_t entry = (uint16_t)(offset / 8 << 2 | state);
        memcpy(at, &entry, sizeof entry);
    } else {
        uint64_t entry = offset << 16 | KARST_MAP_LARGE << 2 | state;
        memcpy(at, &entry, sizeof entry);
    }
}

static inline enum karst_mark marks_entry(const uint8_t *at, uint64_t *offset) {
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

/* ---- marking ----------------------------------------------------------------------------------------- */

/* Marks a block that the allocator gave for marks_room(size) bytes, and returns it. One that is not aligned
 * to a place stays unmarked, and so do all without memory for the map. */
void *marks_put(void *block, uint64_t size, uint64_t site, enum karst_function function);

/* A site is a return address or the number of a stack: less than 2^48. */
static MARKS_INLINE void marks_write(void *block, uint64_t size, uint64_t offset, uint64_t site,
                                     enum karst_function function, uint64_t number) {
    struct karst_footer *footer = (struct karst_footer *)((uint8_t *)block + offset);
    footer->canary = karst_control.canary ^ (uint64_t)(uintptr_t)block;
    footer->size = size | marks_thread.thread_bits;
    footer->site = site | (uint64_t)function << KARST_SITE_BITS;
    footer->sequence = number;
}

/* Marks a fresh block that the allocator just gave for marks_room(size) bytes, of MARKS_SHORT at most: what
 * most calls take. False, and nothing done: marks_put() has to do it. */
static MARKS_INLINE bool marks_put_fresh(void *block, uint64_t size, uint64_t site,
                                         enum karst_function function) {
    uint64_t place = marks_place((uint64_t)(uintptr_t)block), offset = marks_footer_offset(size);
    if (UNLIKELY(place >= MARKS_PLACES)) {
        return false;
    }
    uint8_t *leaf = marks_leaf(place);
    uint64_t number = marks_thread.next;
    if (UNLIKELY(!leaf || number % MARKS_PIECE == 0 ||
                 __atomic_load_n(&marks_dealt, __ATOMIC_RELAXED) - number > MARKS_BEHIND)) {
        return false;
    }
    marks_thread.next = number + 1;
    uint64_t fill = MARKS_FILL;
    uint16_t entry = (uint16_t)(offset / 2 | KARST_MARK_LIVE);
    memcpy((uint8_t *)block + offset - 8, &fill, sizeof fill); /* whole words may be filled: it is fresh */
    if (UNLIKELY(size < 8)) {
        memcpy(block, &fill, sizeof fill);
    }
    marks_write(block, size, offset, site, function, number);
    memcpy(leaf + place % KARST_MAP_LEAF, &entry, sizeof entry);
    return true;
}

/* ---- taking back ------------------------------------------------------------------------------------- */

/* Marks a live block as freed at site. False, and nothing done: it is no block that may be freed, or was
 * written beyond its end, or is not marked; marks_judge() tells. */
bool marks_release(void *block, uint64_t site);

/* The bytes of a word that are not the program's, when so many are not. */
extern const uint64_t marks_gaps[8] __attribute__((visibility("hidden")));

/* The same for most blocks. False, and nothing done: marks_release() has to do it. */
static MARKS_INLINE bool marks_release_most(void *block, uint64_t site) {
    uint64_t address = (uint64_t)(uintptr_t)block, place = marks_place(address), word;
    uint8_t *leaf = LIKELY(place < MARKS_PLACES) ? marks_leaf(place) : NULL;
    if (UNLIKELY(!leaf)) {
        return false;
    }
    uint16_t entry;
    uint8_t *at = leaf + place % KARST_MAP_LEAF;
    memcpy(&entry, at, sizeof entry);
    uint16_t live = (uint16_t)(entry - KARST_MARK_LIVE), units = (uint16_t)(live >> 2 | live << 14);
    if (UNLIKELY(units >= KARST_MAP_LARGE)) {
        return false; /* not live, or with a long entry */
    }
    struct karst_footer *footer = (struct karst_footer *)((uint8_t *)block + (uint64_t)units * 8);
    uint64_t gap = (uint64_t)units * 8 - (footer->size & MARKS_SIZE_MASK);
    if (UNLIKELY(footer->canary != (karst_control.canary ^ address) || gap >= 8)) {
        return false;
    }
    memcpy(&word, (uint8_t *)footer - 8, sizeof word);
    if (UNLIKELY((word ^ MARKS_FILL) & marks_gaps[gap])) {
        return false;
    }
    footer->canary = KARST_FOOTER_FREED | site;
    entry = (uint16_t)(entry + (KARST_MARK_FREED - KARST_MARK_LIVE));
    memcpy(at, &entry, sizeof entry);
    return true;
}

/* Takes marks_release() back. */
void marks_restore(void *block);
/* Marks a block as freed although its footer was damaged; where none is, nothing. */
void marks_release_damaged(void *block);

#endif
