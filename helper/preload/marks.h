/* Marks: a footer in each block and a map of where blocks begin; see karst-abi.h. What most calls take is
 * here, the rest in marks.c. */
#ifndef KARST_PRELOAD_MARKS_H
#define KARST_PRELOAD_MARKS_H

#include <string.h>

#include "preload.h"

/* Most of what a call takes. */
#define MARKS_INLINE inline __attribute__((always_inline))

#define MARKS_FILL (UINT64_C(0x0101010101010101) * KARST_FOOTER_FILL)
/* Room behind a leaf for an entry that begins in its last bytes. */
#define MARKS_LEAF_MORE 4096u
/* Sizes that most blocks have: behind none are more than 7 bytes to fill, and the map has a short entry. It
 * does not hurt that others go a longer way: allocators take longer for them, too. */
#define MARKS_USUAL_LEAST 9u
#define MARKS_USUAL_MOST  (KARST_MAP_SHORT - 8u)

/* Sequence numbers: threads count on by themselves as far as a horizon that all share, and who reaches it, or
 * is far behind it, moves it on and goes on from there. A move takes its line of memory from all other
 * threads. */
#define MARKS_PIECE  1024u
#define MARKS_BEHIND 4096u

struct marks_thread {
    uint64_t next; /* as it stands in footers, with the thread's id; 0: not known yet, far behind */
};
extern _Thread_local struct marks_thread marks_thread
    __attribute__((visibility("hidden"), tls_model("initial-exec")));
/* Its lower 32 bits, which alone are compared, are never such that 0 were not far behind. */
extern uint64_t marks_horizon __attribute__((visibility("hidden")));

/* The thread may not use this number. One that slept through a multiple of 2^32 blocks, give or take
 * MARKS_BEHIND, may for a while. */
static MARKS_INLINE bool marks_is_used_up(uint64_t number) {
    return UNLIKELY((uint32_t)__atomic_load_n(&marks_horizon, __ATOMIC_RELAXED) - (uint32_t)number >
                    MARKS_BEHIND);
}

/* Prepares the map. */
void marks_open(void);
/* What is wrong with a block that is to be freed and did not pass marks_release(). KARST_FAULT_NONE: nothing,
 * it was never marked. Fills what why says of the block. */
enum karst_fault marks_judge(const struct call *call, struct karst_why *why);
/* The size asked for; false: not a marked live block. */
bool marks_size(const void *block, size_t *size);

static MARKS_INLINE uint64_t marks_footer_offset(uint64_t size) {
    uint64_t whole = (size + 7) & ~UINT64_C(7);
    return whole < 16 ? 16 : whole;
}

static MARKS_INLINE bool marks_are_usual(uint64_t size) {
    return size - MARKS_USUAL_LEAST <= MARKS_USUAL_MOST - MARKS_USUAL_LEAST;
}

/* marks_footer_offset() of a usual size. */
static MARKS_INLINE uint64_t marks_usual_offset(uint64_t size) {
    return (size + 7) & ~UINT64_C(7);
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

extern uint64_t marks_directory[KARST_MAP_ENTRIES] __attribute__((visibility("hidden")));

/* What leads from a place to its entry; 0: it has no leaf, or is beyond the map's end. */
static MARKS_INLINE uint64_t marks_base(uint64_t place) {
    uint64_t number = place / KARST_MAP_LEAF;
    FORGET(number); /* or it would be worked out a second time for the comparison */
    return LIKELY(number < KARST_MAP_ENTRIES) ? __atomic_load_n(&marks_directory[number], __ATOMIC_ACQUIRE)
                                              : 0;
}

/* A short entry, where the other state's stood or behind all that it speaks of: what a stopped process shows
 * is one or the other. Entries are little endian and lie anywhere. */
static MARKS_INLINE void marks_set_short_entry(uint8_t *at, uint64_t entry) {
    uint16_t bytes = (uint16_t)entry;
    __atomic_signal_fence(__ATOMIC_RELEASE);
    memcpy(at, &bytes, sizeof bytes);
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
    footer->size = size;
    footer->site = site | (uint64_t)function << KARST_SITE_BITS;
    footer->sequence = number;
}

/* Marks a fresh block of a usual size that the allocator just gave for marks_room(size) bytes. False, and
 * nothing done: marks_put() has to do it. */
static MARKS_INLINE bool marks_put_usual(void *block, uint64_t size, uint64_t site,
                                         enum karst_function function) {
    uint64_t place = marks_place((uint64_t)(uintptr_t)block), offset = marks_usual_offset(size);
    uint64_t base = marks_base(place), number = marks_thread.next;
    if (UNLIKELY(!base) || marks_is_used_up(number)) {
        return false;
    }
    marks_thread.next = number + 1;
    uint64_t fill = MARKS_FILL;
    memcpy((uint8_t *)block + offset - 8, &fill, sizeof fill); /* a whole word may be filled: it is fresh */
    marks_write(block, size, offset, site, function, number);
    marks_set_short_entry((uint8_t *)(uintptr_t)(base + place), offset + KARST_MARK_LIVE);
    return true;
}

/* ---- taking back ------------------------------------------------------------------------------------- */

/* Marks a live block as freed at site. False, and nothing done: it is no block that may be freed, or was
 * written beyond its end, or is not marked; marks_judge() tells. */
bool marks_release(void *block, uint64_t site);

/* The bytes of a word that are not the program's, when so many are not. */
extern const uint64_t marks_gaps[8] __attribute__((visibility("hidden")));

/* The same for blocks of usual sizes. False, and nothing done: marks_release() has to do it. */
static MARKS_INLINE bool marks_release_usual(void *block, uint64_t site) {
    uint64_t address = (uint64_t)(uintptr_t)block, place = marks_place(address), base = marks_base(place),
             word;
    if (UNLIKELY(!base)) {
        return false;
    }
    uint8_t *at = (uint8_t *)(uintptr_t)(base + place);
    uint16_t entry;
    memcpy(&entry, at, sizeof entry);
    uint64_t offset = entry - (uint64_t)KARST_MARK_LIVE;
    FORGET(offset); /* or its narrow self would be kept beside it */
    if (UNLIKELY(offset & (KARST_MAP_STATE | KARST_MAP_LARGE))) {
        return false;
    }
    struct karst_footer *footer = (struct karst_footer *)((uint8_t *)block + offset);
    uint64_t gap = offset - footer->size;
    if (UNLIKELY(footer->canary != (karst_control.canary ^ address) || gap >= 8)) {
        return false;
    }
    memcpy(&word, (uint8_t *)footer - 8, sizeof word);
    if (UNLIKELY((word ^ MARKS_FILL) & marks_gaps[gap])) {
        return false;
    }
    footer->canary = KARST_FOOTER_FREED | site;
    marks_set_short_entry(at, offset + KARST_MARK_FREED);
    return true;
}

/* Takes marks_release() and marks_release_damaged() back. */
void marks_restore(void *block);
/* Marks a block as freed although its footer was damaged; where none is, nothing. */
void marks_release_damaged(void *block);

#endif
