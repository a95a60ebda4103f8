/* glibc malloc: which blocks make up a sum. A block with a mapping of its own doesn't say which of several
 * libcs made it; each counts how many it has, and their bytes.
 *
 * A search in depth, the largest block first, that turns back where the rest can't make up what is missing:
 * even the largest of it are too few bytes, even the smallest too many, or the sum is not one that sizes with
 * their common divisor have. What is left is quick where there are many blocks, as many choices then fit, and
 * where there are few, as there are few choices. */
#include "glibc.h"

#include <stdlib.h>

#define STEPS (1u << 22) /* looks at a block, some 10 ns each */

struct choice {
    const uint64_t *sizes; /* the largest first */
    size_t count;
    uint64_t *before;  /* [i]: the bytes of the blocks before i */
    uint64_t *divisor; /* [i]: what divides each difference of sizes from i on; 0: they are equal */
    bool *chosen;
    unsigned steps;
};

static uint64_t common_divisor(uint64_t a, uint64_t b) {
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Can so many of the blocks from index on make up bytes, as far as bounds tell? */
static bool may_fit(const struct choice *choice, size_t index, size_t blocks, uint64_t bytes) {
    size_t count = choice->count;
    if (count - index < blocks) {
        return false;
    }
    uint64_t least = choice->before[count] - choice->before[count - blocks];
    uint64_t most = choice->before[index + blocks] - choice->before[index];
    if (bytes < least || bytes > most || blocks == 0) {
        return blocks == 0 && bytes == 0;
    }
    uint64_t divisor = choice->divisor[index];
    uint64_t above = bytes - blocks * choice->sizes[count - 1];
    return divisor != 0 ? above % divisor == 0 : above == 0;
}

/* Calls itself as deep as there are blocks to choose. */
static bool choose_from(struct choice *choice, size_t index, size_t blocks, uint64_t bytes) {
    if (blocks == 0) {
        return bytes == 0;
    }
    uint64_t failed = 0;
    for (size_t i = index; may_fit(choice, i, blocks, bytes) && choice->steps != 0; i++) {
        uint64_t size = choice->sizes[i];
        choice->steps--;
        if (size > bytes || size == failed) {
            continue;
        }
        if (may_fit(choice, i + 1, blocks - 1, bytes - size) &&
            choose_from(choice, i + 1, blocks - 1, bytes - size)) {
            choice->chosen[i] = true;
            return true;
        }
        failed = size;
    }
    return false;
}

bool glibc_choose_blocks(const uint64_t *sizes, size_t count, size_t wanted, uint64_t bytes, bool *chosen,
                         bool *found) {
    *found = false;
    if (wanted > GLIBC_CHOOSE_MOST || wanted > count) {
        return true;
    }
    struct choice choice = {.sizes = sizes, .count = count, .chosen = chosen, .steps = STEPS};
    choice.before = calloc(count + 1, sizeof *choice.before);
    choice.divisor = calloc(count + 1, sizeof *choice.divisor);
    bool fine = choice.before && choice.divisor;
    if (fine) {
        for (size_t i = 0; i < count; i++) {
            choice.before[i + 1] = choice.before[i] + sizes[i];
        }
        for (size_t i = count; i-- > 0;) {
            choice.divisor[i] = common_divisor(choice.divisor[i + 1], sizes[i] - sizes[count - 1]);
        }
        *found = may_fit(&choice, 0, wanted, bytes) && choose_from(&choice, 0, wanted, bytes);
    }
    free(choice.before);
    free(choice.divisor);
    return fine;
}
