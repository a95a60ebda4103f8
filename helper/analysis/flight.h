/* The flight recorder's rings as read from a target or from the files they are, and all their events in one
 * order. */
#ifndef KARST_ANALYSIS_FLIGHT_H
#define KARST_ANALYSIS_FLIGHT_H

#include "marker.h"

enum karst_flight_kind {
    KARST_FLIGHT_ALLOCATE, /* address was handed out; 0: the request failed */
    KARST_FLIGHT_FREE,     /* address was given back */
    KARST_FLIGHT_MOVE,     /* address was handed to realloc for size bytes: the first half */
    KARST_FLIGHT_MOVED,    /* realloc gave address, 0: it failed; old is where the block was */
    KARST_FLIGHT_RELEASED  /* realloc of old to nothing freed it */
};

struct karst_flight_event {
    uint64_t address;
    uint64_t old; /* of MOVED and RELEASED, 0: unknown, its first half was overwritten */
    uint64_t size;
    uint64_t site;
    uint64_t earliest, latest; /* ticks between which it was recorded; latest UINT64_MAX: not known */
    uint64_t guess;            /* in between, by its place in its group */
    uint32_t ring;
    uint8_t kind; /* enum karst_flight_kind */
    bool ended;   /* a MOVE whose second half is there */
};

struct karst_flight_ring {
    struct karst_ring header;
    uint64_t address;                  /* in the target; 0: read from a file */
    char *file;                        /* NULL: read from the target */
    uint64_t overwritten;              /* events that were, about */
    struct karst_flight_event *events; /* in the thread's order */
    size_t count, capacity;
    size_t next; /* while merging */
};

struct karst_flight {
    struct karst_flight_ring *rings;
    size_t ring_count;
    /* All events in one order: what each number stands for is karst_flight_at(). */
    uint64_t *order; /* ring << 40 | index */
    size_t count;
    uint64_t
        disorder; /* events that contradict what was there of their address: history lost, or a torn read */
};

/* Reads the rings of a target that has a marker. flight is all zeros; clear it in any case. */
bool karst_flight_read(struct karst *session, struct karst_marker *marker, struct karst_flight *flight,
                       struct karst_error *error) KARST_CHECKED;
/* Adds the ring in a file; false with error KARST_ERROR_FORMAT: it is none. */
bool karst_flight_read_file(const char *path, struct karst_flight *flight,
                            struct karst_error *error) KARST_CHECKED;
/* Puts all events in one order. */
bool karst_flight_merge(struct karst_flight *flight, struct karst_error *error) KARST_CHECKED;
const struct karst_flight_event *karst_flight_at(const struct karst_flight *flight, size_t number);
/* When an event was recorded, in nanoseconds since 1970, as well as it is known. */
uint64_t karst_flight_time(const struct karst_flight *flight, const struct karst_flight_event *event);
void karst_flight_clear(struct karst_flight *flight);

#endif
