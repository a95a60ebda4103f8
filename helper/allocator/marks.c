#include "marks.h"

#include <stdlib.h>

void karst_marks_close(struct karst_marks *marks) {
    for (size_t i = 0; i < marks->slot_count; i++) {
        free(marks->slots[i].bits);
    }
    free(marks->slots);
    *marks = (struct karst_marks){0};
}

/* Where piece number is, or the empty slot where it would be; NULL: there are no slots. */
static struct karst_mark_piece *find_slot(const struct karst_marks *marks, uint64_t number) {
    if (marks->slot_count == 0) {
        return NULL;
    }
    size_t slot = (size_t)(number * 0x9e3779b97f4a7c15u >> 32) & (marks->slot_count - 1);
    while (marks->slots[slot].bits && marks->slots[slot].number != number) {
        slot = (slot + 1) & (marks->slot_count - 1);
    }
    return &marks->slots[slot];
}

void karst_marks_look(struct karst_marks *marks, uint64_t number) {
    const struct karst_mark_piece *slot = find_slot(marks, number);
    marks->last = (struct karst_mark_piece){number, slot ? slot->bits : NULL};
}

static bool grow(struct karst_marks *marks) {
    struct karst_marks larger = {.slot_count = marks->slot_count ? 2 * marks->slot_count : 16};
    larger.slots = calloc(larger.slot_count, sizeof *larger.slots);
    if (!larger.slots) {
        return false;
    }
    for (size_t i = 0; i < marks->slot_count; i++) {
        if (marks->slots[i].bits) {
            *find_slot(&larger, marks->slots[i].number) = marks->slots[i];
        }
    }
    free(marks->slots);
    marks->slots = larger.slots;
    marks->slot_count = larger.slot_count;
    return true;
}

bool karst_marks_add(struct karst_marks *marks, uint64_t address) {
    uint64_t place = (address - marks->start) / KARST_MARK_BYTES, number = place / KARST_MARK_PLACES;
    if (2 * (marks->used + 1) > marks->slot_count && !grow(marks)) {
        return false;
    }
    struct karst_mark_piece *slot = find_slot(marks, number);
    if (!slot->bits) {
        slot->bits = calloc(KARST_MARK_PLACES / 64, sizeof *slot->bits);
        if (!slot->bits) {
            return false;
        }
        slot->number = number;
        marks->used++;
    }
    marks->last = *slot;
    slot->bits[place % KARST_MARK_PLACES / 64] |= (uint64_t)1 << (place % 64);
    return true;
}

/* The first piece from number on, NULL: none. */
static const struct karst_mark_piece *piece_from(const struct karst_marks *marks, uint64_t number) {
    const struct karst_mark_piece *first = find_slot(marks, number);
    if (first && first->bits) {
        return first;
    }
    first = NULL;
    for (size_t i = 0; i < marks->slot_count; i++) {
        const struct karst_mark_piece *piece = &marks->slots[i];
        if (piece->bits && piece->number > number && (!first || piece->number < first->number)) {
            first = piece;
        }
    }
    return first;
}

uint64_t karst_marks_first(const struct karst_marks *marks, uint64_t from, uint64_t to) {
    uint64_t place = (from - marks->start) / KARST_MARK_BYTES, end = (to - marks->start) / KARST_MARK_BYTES;
    while (place < end) {
        const struct karst_mark_piece *piece = piece_from(marks, place / KARST_MARK_PLACES);
        if (!piece || piece->number > end / KARST_MARK_PLACES) {
            return 0;
        }
        uint64_t first = piece->number * KARST_MARK_PLACES, behind = first + KARST_MARK_PLACES;
        place = place > first ? place : first;
        while (place < end && place < behind) {
            uint64_t word = piece->bits[place % KARST_MARK_PLACES / 64] >> (place % 64);
            if (word) {
                place += (uint64_t)__builtin_ctzll(word);
                return place < end ? marks->start + place * KARST_MARK_BYTES : 0;
            }
            place = (place / 64 + 1) * 64;
        }
    }
    return 0;
}
