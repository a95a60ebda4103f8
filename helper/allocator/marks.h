/* A set of places in an extent, one bit for 16 bytes. The bits come in pieces that are made when they are
 * first needed: what a damaged target says about the size of a heap costs next to nothing. */
#ifndef KARST_ALLOCATOR_MARKS_H
#define KARST_ALLOCATOR_MARKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KARST_MARK_BYTES  16u
#define KARST_MARK_PIECE  (16u << 20) /* bytes of the extent that one piece is for */
#define KARST_MARK_PLACES (KARST_MARK_PIECE / KARST_MARK_BYTES)

struct karst_marks {
    uint64_t start;
    uint64_t **pieces; /* NULL where nothing is marked */
    size_t piece_count;
};

/* An empty set for [start, end); false: out of memory. Closed with karst_marks_close() in either case. */
bool karst_marks_open(struct karst_marks *marks, uint64_t start, uint64_t end);
void karst_marks_close(struct karst_marks *marks);
/* Marks the place of an address in the extent; false: out of memory. */
bool karst_marks_add(struct karst_marks *marks, uint64_t address);
/* The first marked place in [from, to), 0: none. */
uint64_t karst_marks_first(const struct karst_marks *marks, uint64_t from, uint64_t to);

/* What lies outside the extent is not marked. */
static inline bool karst_marks_has(const struct karst_marks *marks, uint64_t address) {
    uint64_t place = (address - marks->start) / KARST_MARK_BYTES;
    if (place / KARST_MARK_PLACES >= marks->piece_count) {
        return false;
    }
    const uint64_t *piece = marks->pieces[place / KARST_MARK_PLACES];
    return piece && piece[place % KARST_MARK_PLACES / 64] & (uint64_t)1 << (place % 64);
}

#endif
