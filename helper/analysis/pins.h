/* Pins: the few blocks that keep the most free memory from becoming one piece, and those under a heap's
 * top that keep it from shrinking; and what the allocator's trim would give back as things are. */
#ifndef KARST_ANALYSIS_PINS_H
#define KARST_ANALYSIS_PINS_H

#include "best.h"
#include "runs.h"

/* A pin is at most so many blocks, which take at most 1/KARST_PIN_SHARE of what would become one piece and
 * no more than the lesser of the two sides. */
#define KARST_PIN_BLOCKS 16u
#define KARST_PIN_SHARE  8u

struct karst_pin {
    struct karst_block first, last;      /* the same block if blocks is 1 */
    uint64_t blocks;                     /* live or cached ones */
    uint64_t cached;                     /* how many of them are cached */
    uint64_t size;                       /* from the first to the end of the last */
    uint64_t taken;                      /* of size, by these blocks */
    uint64_t before_start, before_bytes; /* free memory on both sides */
    uint64_t after_start, after_bytes;
    uint64_t joined; /* bytes in one piece if it went */
    uint64_t gained; /* how much more that is than the larger side */
};

/* What lies under a heap's top; the first in the list directly, the next one further down. */
struct karst_top_pin {
    struct karst_block first, last;
    uint64_t blocks, cached;
    bool metadata; /* the allocator's own: no program can free it */
    const struct karst_extent *extent;
    uint64_t top_start;    /* where the top begins now */
    uint64_t to_top;       /* bytes it releases to the top, once those above it are gone */
    uint64_t to_system;    /* of these, bytes that a trim then gives back to the system */
    uint64_t resident;     /* of these, resident now; UINT64_MAX: unknown */
    uint64_t total_to_top; /* with those above it */
    uint64_t total_to_system, total_resident;
};

struct karst_trim {
    bool possible;     /* some allocator has a trim */
    uint64_t bytes;    /* of address space, whole pages */
    uint64_t resident; /* of these: what the resident set would lose; UINT64_MAX: unknown */
    uint64_t ranges;
    uint64_t top_bytes; /* of bytes, at the heap's end */
};

#define KARST_TOP_PIN_DEPTH 8u

/* The pins under one top, from the top down. */
struct karst_top_pins {
    size_t count;
    struct karst_top_pin pins[KARST_TOP_PIN_DEPTH];
};

/* A part met before, and what had been counted in its extent when it ended. */
struct karst_pin_step {
    uint64_t start, size;
    struct karst_block behind;
    uint64_t blocks, cached, other, usable;
};

struct karst_pins {
    struct karst *session;
    struct karst_best pins; /* struct karst_pin, the greatest gain first */
    struct karst_best tops; /* struct karst_top_pins, by what would be released in all */
    struct karst_trim trim;
    /* All pins between neighbouring parts of at least a page, listed or not. */
    uint64_t pin_count, pin_bytes, pinned_bytes;
    /* Under way: parts of this extent that a later one may be kept from, larger ones first ... */
    struct karst_pin_step steps[KARST_PIN_BLOCKS + 1];
    size_t step_count;
    uint64_t blocks, cached, other, usable;
    bool counted_previous;
    /* ... and the last few, in a ring. */
    struct karst_part recent[KARST_TOP_PIN_DEPTH];
    uint64_t recent_count;
};

/* count: pins kept; tops: heaps' ends kept. No memory is taken before it is needed. */
void karst_pins_open(struct karst_pins *pins, struct karst *session, size_t count, size_t tops);
void karst_pins_part(struct karst_pins *pins, const struct karst_part *part);
void karst_pins_finish(struct karst_pins *pins);
void karst_pins_close(struct karst_pins *pins);

#endif
