/* A set of places in an extent, one bit for 16 bytes. The bits come in pieces that are made when they are
 * first needed, and are found by hash: what a damaged target says about the size of a heap costs nothing. */
#ifndef KARST_ALLOCATOR_MARKS_H
#define KARST_ALLOCATOR_MARKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KARST_MARK_BYTES  16u
#define KARST_MARK_PIECE  (16u << 20) /* bytes of the extent that one piece is for */
#define KARST_MARK_PLACES (KARST_MARK_PIECE / KARST_MARK_BYTES)

struct karst_mark_piece {
    uint64_t number;
    uint64_t *bits; /* NULL: the slot is empty */
};

/* All zeros but for start is an empty set. */
struct karst_marks {
    uint64_t start;
    struct karst_mark_piece *slots; /* open addressing */
    size_t slot_count, used;        /* a power of two, at most half of it used */
    struct karst_mark_piece last;   /* the piece that was looked at last; bits NULL: it is not there */
};

void karst_marks_close(struct karst_marks *marks);
/* Marks the place of an address at or above start; false: out of memory. */
bool karst_marks_add(struct karst_marks *marks, uint64_t address);
/* The first marked place in [from, to), 0: none. */
uint64_t karst_marks_first(const struct karst_marks *marks, uint64_t from, uint64_t to);
/* Makes piece number the one that was looked at last. */
void karst_marks_look(struct karst_marks *marks, uint64_t number);

static inline bool karst_marks_has(struct karst_marks *marks, uint64_t address) {
    uint64_t place = (address - marks->start) / KARST_MARK_BYTES, number = place / KARST_MARK_PLACES;
    if (number != marks->last.number || !marks->last.bits) {
        karst_marks_look(marks, number);
    }
    const uint64_t *bits = marks->last.bits;
    return bits && bits[place % KARST_MARK_PLACES / 64] & (uint64_t)1 << (place % 64);
}

#endif
