#include "nearest.h"

#include <stdbool.h>
#include <string.h>

#define WORD_MAX 40

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Letters to insert, drop, change, or swap with the next one, to make a of b. */
static size_t edit_distance(const char *a, size_t a_size, const char *b, size_t b_size) {
    size_t rows[3][WORD_MAX + 1];
    size_t *before = rows[0], *last = rows[1], *row = rows[2];
    for (size_t k = 0; k <= b_size; k++) {
        last[k] = k;
        before[k] = 0;
    }
    for (size_t i = 1; i <= a_size; i++) {
        row[0] = i;
        for (size_t k = 1; k <= b_size; k++) {
            size_t change = last[k - 1] + (a[i - 1] != b[k - 1]);
            row[k] = least(change, 1 + least(last[k], row[k - 1]));
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1]) {
                row[k] = least(row[k], before[k - 2] + 1);
            }
        }
        size_t *reuse = before;
        before = last;
        last = row;
        row = reuse;
    }
    return last[b_size];
}

/* Whether letters were only forgotten: limt, limit. */
static bool is_within(const char *word, const char *candidate) {
    for (; *candidate && *word; candidate++) {
        word += *word == *candidate;
    }
    return *word == '\0';
}

void karst_nearest_offer(struct karst_nearest *nearest, const char *candidate) {
    size_t size = strlen(nearest->word), candidate_size = strlen(candidate);
    if (size == 0 || size > WORD_MAX || candidate_size > WORD_MAX) {
        return;
    }
    /* In half letters, so that of two that are as near the one with letters forgotten is nearer. */
    size_t distance = 2 * edit_distance(nearest->word, size, candidate, candidate_size);
    if (size >= 3 && strncmp(nearest->word, candidate, size) == 0) {
        distance = 1; /* a beginning */
    } else if (distance && is_within(nearest->word, candidate)) {
        distance--;
    }
    if (distance <= 2 + size / 2 && (!nearest->nearest || distance < nearest->distance)) {
        nearest->nearest = candidate;
        nearest->distance = distance;
    }
}
