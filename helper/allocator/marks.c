#include "marks.h"

#include <stdlib.h>

bool karst_marks_open(struct karst_marks *marks, uint64_t start, uint64_t end) {
    marks->start = start;
    marks->piece_count = (size_t)((end - start) / KARST_MARK_PIECE + 1);
    marks->pieces = calloc(marks->piece_count, sizeof *marks->pieces);
    return marks->pieces != NULL;
}

void karst_marks_close(struct karst_marks *marks) {
    for (size_t i = 0; marks->pieces && i < marks->piece_count; i++) {
        free(marks->pieces[i]);
    }
    free(marks->pieces);
    *marks = (struct karst_marks){0};
}

bool karst_marks_add(struct karst_marks *marks, uint64_t address) {
    uint64_t place = (address - marks->start) / KARST_MARK_BYTES;
    uint64_t **piece = &marks->pieces[place / KARST_MARK_PLACES];
    if (!*piece) {
        *piece = calloc(KARST_MARK_PLACES / 64, sizeof **piece);
        if (!*piece) {
            return false;
        }
    }
    (*piece)[place % KARST_MARK_PLACES / 64] |= (uint64_t)1 << (place % 64);
    return true;
}

uint64_t karst_marks_first(const struct karst_marks *marks, uint64_t from, uint64_t to) {
    uint64_t place = (from - marks->start) / KARST_MARK_BYTES;
    uint64_t end = (to - marks->start) / KARST_MARK_BYTES;
    while (place < end) {
        const uint64_t *piece = marks->pieces[place / KARST_MARK_PLACES];
        if (!piece) {
            place = (place / KARST_MARK_PLACES + 1) * KARST_MARK_PLACES;
            continue;
        }
        uint64_t word = piece[place % KARST_MARK_PLACES / 64] >> (place % 64);
        if (word) {
            place += (uint64_t)__builtin_ctzll(word);
            return place < end ? marks->start + place * KARST_MARK_BYTES : 0;
        }
        place = (place / 64 + 1) * 64;
    }
    return 0;
}
