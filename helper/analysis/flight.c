#include "flight.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RINGS_MAX     (1u << 16)
#define LOOK_FOR      256 /* rings whose events may go before one that does not fit */
#define GROUP         KARST_GROUP_BYTES
#define GROUP_RECORDS (GROUP / KARST_RECORD_BYTES)
#define TICKS_MASK    ((UINT64_C(1) << 60) - 1)
#define INDEX_BITS    40
#define GROUP_EVENTS  (GROUP_RECORDS - 2) /* of a full one: it has a clock and an end too */

/* ---- groups ----------------------------------------------------------------------------------------- */

/* Where a ring's data comes from: the target, or a file that is mapped here. */
struct source {
    struct karst_window *window; /* NULL: bytes */
    uint64_t address;
    const uint8_t *bytes;
    uint64_t groups;
};

static const uint8_t *group_at(const struct source *source, uint64_t index) {
    if (source->window) {
        return karst_window_at(source->window, source->address + index * GROUP, GROUP);
    }
    return source->bytes + index * GROUP;
}

static struct karst_record record_at(const uint8_t *group, size_t index) {
    struct karst_record record;
    memcpy(&record, group + index * sizeof record, sizeof record);
    return record;
}

/* The number of a group, 0: it was not begun. */
static uint64_t group_number(const struct source *source, uint64_t index, uint64_t *ticks) {
    const uint8_t *group = group_at(source, index);
    if (!group) {
        return 0;
    }
    struct karst_record clock = record_at(group, 0);
    *ticks = clock.first & TICKS_MASK;
    return clock.first >> 60 == KARST_EVENT_CLOCK ? clock.second : 0;
}

/* The newest group; false: the ring is empty. In a ring that was not filled yet nothing comes behind it. */
static bool find_newest(struct karst *session, const struct source *source, uint64_t *newest,
                        uint64_t *number, struct karst_error *error) {
    *number = 0;
    for (uint64_t i = 0; i < source->groups; i++) {
        uint64_t ticks, here = group_number(source, i, &ticks);
        if (here > *number) {
            *number = here;
            *newest = i;
        } else if (here == 0 && *number == i) {
            break; /* the first lap */
        }
        if (session && !karst_session_progress(session, GROUP, error)) {
            return false;
        }
    }
    return *number != 0;
}

/* ---- events ----------------------------------------------------------------------------------------- */

static struct karst_flight_event *add_event(struct karst_flight_ring *ring) {
    if (ring->count == ring->capacity) {
        size_t capacity = ring->capacity ? ring->capacity * 2 : 1024;
        struct karst_flight_event *events = realloc(ring->events, capacity * sizeof *events);
        if (!events) {
            return NULL;
        }
        ring->events = events;
        ring->capacity = capacity;
    }
    struct karst_flight_event *event = &ring->events[ring->count++];
    *event = (struct karst_flight_event){0};
    return event;
}

/* The event of a record; false: it is none that is known. */
static bool take_record(struct karst_record record, struct karst_record wide,
                        struct karst_flight_event *event) {
    static const int8_t kinds[KARST_EVENT_KINDS] = {
        [KARST_EVENT_NONE] = -1,
        [KARST_EVENT_CLOCK] = -1,
        [KARST_EVENT_ALLOCATE] = KARST_FLIGHT_ALLOCATE,
        [KARST_EVENT_FREE] = KARST_FLIGHT_FREE,
        [KARST_EVENT_MOVE] = KARST_FLIGHT_MOVE,
        [KARST_EVENT_MOVED] = KARST_FLIGHT_MOVED,
        [KARST_EVENT_RELEASED] = KARST_FLIGHT_RELEASED,
        [KARST_EVENT_WIDE] = -1,
    };
    uint64_t kind = record.first >> 60;
    if (kind >= KARST_EVENT_KINDS || kinds[kind] < 0) {
        return false;
    }
    event->kind = (uint8_t)kinds[kind];
    event->address = (record.first & KARST_SITE_MASK) | (wide.first & 0xffff) << KARST_SITE_BITS;
    event->size = record.second >> 48 | (record.first >> 48 & 0xfff) << 16 | wide.second << 28;
    event->site = record.second & KARST_SITE_MASK;
    return true;
}

/* The events from first on lie between two clocks. Where the second one is not there, they are taken to lie
 * as close together as those before: spacing. */
static void date_events(struct karst_flight_ring *ring, size_t first, uint64_t ticks, uint64_t next_ticks,
                        uint64_t *spacing) {
    size_t count = ring->count - first;
    if (next_ticks != UINT64_MAX && count) {
        *spacing = next_ticks > ticks ? (next_ticks - ticks) / count : 0;
    }
    for (size_t i = 0; i < count; i++) {
        struct karst_flight_event *event = &ring->events[first + i];
        event->earliest = ticks;
        event->latest = next_ticks;
        event->guess = ticks + *spacing * i;
    }
}

/* The events of one group. */
static bool take_group(struct karst_flight_ring *ring, uint32_t number, const uint8_t *group,
                       uint64_t next_ticks, uint64_t *spacing) {
    size_t first = ring->count;
    uint64_t ticks = record_at(group, 0).first & TICKS_MASK;
    struct karst_record wide = {0, 0};
    for (size_t i = 1; i < GROUP_RECORDS; i++) {
        struct karst_record record = record_at(group, i);
        uint64_t kind = record.first >> 60;
        if (kind == KARST_EVENT_NONE) {
            break;
        }
        if (kind == KARST_EVENT_CLOCK) {
            uint64_t here = record.first & TICKS_MASK;
            date_events(ring, first, ticks, here, spacing);
            first = ring->count;
            ticks = here;
        } else if (kind == KARST_EVENT_WIDE) {
            wide = record;
        } else {
            struct karst_flight_event *event = add_event(ring);
            if (!event) {
                return false;
            }
            if (take_record(record, wide, event)) {
                event->ring = number;
            } else {
                ring->count--;
            }
            wide = (struct karst_record){0, 0};
        }
    }
    date_events(ring, first, ticks, next_ticks, spacing);
    return true;
}

/* realloc's second half does not say which block it was: the first half does, the event before in its
 * thread. */
static void pair_moves(struct karst_flight_ring *ring) {
    struct karst_flight_event *first = NULL;
    for (size_t i = 0; i < ring->count; i++) {
        struct karst_flight_event *event = &ring->events[i];
        if (event->kind == KARST_FLIGHT_MOVED || event->kind == KARST_FLIGHT_RELEASED) {
            event->old = first ? first->address : 0;
            if (first) {
                first->ended = true;
            }
            first = NULL;
        } else if (event->kind == KARST_FLIGHT_MOVE) {
            first = event;
        }
    }
}

static bool take_ring(struct karst *session, const struct source *source, struct karst_flight_ring *ring,
                      uint32_t number, struct karst_error *error) {
    uint64_t newest = 0, newest_number = 0, ticks = 0, kept = 0, spacing = 50, whole = 0;
    struct karst_error own = {0};
    if (!find_newest(session, source, &newest, &newest_number, &own)) {
        if (own.code && error) {
            *error = own;
        }
        return own.code == KARST_ERROR_NONE;
    }
    /* Back from the newest as far as numbers are consecutive. */
    while (kept < source->groups && kept < newest_number) {
        uint64_t index = (newest + source->groups - kept) % source->groups;
        if (group_number(source, index, &ticks) != newest_number - kept) {
            break;
        }
        kept++;
    }
    for (uint64_t i = kept; i-- > 0;) {
        uint64_t index = (newest + source->groups - i) % source->groups, next_ticks = UINT64_MAX;
        if (i > 0 && group_number(source, (index + 1) % source->groups, &next_ticks) == 0) {
            next_ticks = UINT64_MAX;
        }
        const uint8_t *group = group_at(source, index);
        whole = ring->count; /* events of all groups but the newest */
        if (group && !take_group(ring, number, group, next_ticks, &spacing)) {
            return karst_fail_memory(error);
        }
        if (session && !karst_session_progress(session, GROUP, error)) {
            return false;
        }
    }
    ring->overwritten = (newest_number - kept) * (kept > 1 ? whole / (kept - 1) : GROUP_EVENTS);
    pair_moves(ring);
    return true;
}

/* ---- rings ------------------------------------------------------------------------------------------ */

static struct karst_flight_ring *add_ring(struct karst_flight *flight) {
    if ((flight->ring_count & (flight->ring_count - 1)) == 0) {
        size_t capacity = flight->ring_count ? flight->ring_count * 2 : 1;
        struct karst_flight_ring *rings = realloc(flight->rings, capacity * sizeof *rings);
        if (!rings) {
            return NULL;
        }
        flight->rings = rings;
    }
    struct karst_flight_ring *ring = &flight->rings[flight->ring_count++];
    *ring = (struct karst_flight_ring){0};
    return ring;
}

static bool header_is_sane(struct karst_ring *header) {
    header->name[sizeof header->name - 1] = '\0';
    header->executable[sizeof header->executable - 1] = '\0';
    return header->magic == KARST_RING_MAGIC && header->version == KARST_ABI_VERSION &&
           header->group_bytes == GROUP && header->header_bytes >= sizeof *header &&
           header->header_bytes <= 65536 && header->data_bytes >= GROUP &&
           header->data_bytes < UINT64_C(1) << 46;
}

static bool was_read(const struct karst_flight *flight, uint64_t address) {
    for (size_t i = 0; i < flight->ring_count; i++) {
        if (flight->rings[i].address == address) {
            return true;
        }
    }
    return false;
}

/* A ring that is a file's shared memory is not in a core; the file may still be there. */
static bool take_lost_ring(struct karst *session, const struct karst_marker *marker, uint64_t address,
                           struct karst_flight *flight) {
    const struct karst_mapping *mapping = karst_target_mapping(session->target, address);
    struct karst_error own = {0};
    if (!*marker->control.directory || !mapping || !mapping->name || mapping->start != address) {
        return false;
    }
    return karst_flight_read_file(mapping->name, flight, &own);
}

/* *left: bytes of rings that may still be read; rings that lie upon each other would have no end. */
static bool take_target_ring(struct karst *session, struct karst_window *window, uint64_t address,
                             uint64_t *left, struct karst_flight *flight, struct karst_error *error) {
    struct karst_flight_ring *ring = add_ring(flight);
    if (!ring) {
        return karst_fail_memory(error);
    }
    ring->address = address;
    if (!karst_target_read_all(session->target, address, &ring->header, sizeof ring->header) ||
        !header_is_sane(&ring->header)) {
        flight->ring_count--;
        return true;
    }
    const struct karst_mapping *mapping = karst_target_mapping(session->target, address);
    uint64_t start = address + ring->header.header_bytes, end = mapping ? mapping->end : start;
    uint64_t bytes =
        end > start && end - start < ring->header.data_bytes ? end - start : ring->header.data_bytes;
    struct source source = {.window = window, .address = start, .groups = bytes / GROUP};
    if (bytes > *left) {
        return karst_fail(error, KARST_ERROR_FORMAT,
                          "the flight recorder's rings are damaged: they lie upon each other");
    }
    *left -= bytes;
    return take_ring(session, &source, ring, (uint32_t)(flight->ring_count - 1), error);
}

bool karst_flight_read(struct karst *session, struct karst_marker *marker, struct karst_flight *flight,
                       struct karst_error *error) {
    struct karst_window window;
    uint64_t address = marker->control.rings, left = 0;
    bool done = true;
    for (size_t i = 0; i < session->target->mapping_count; i++) {
        left += session->target->mappings[i].end - session->target->mappings[i].start;
    }
    karst_window_open(&window, session->target, 1u << 20);
    karst_session_begin(session, "reading the flight recorder", 0);
    while (done && address && flight->ring_count < RINGS_MAX && !was_read(flight, address)) {
        struct karst_ring header;
        if (!karst_target_read_all(session->target, address, &header, sizeof header)) {
            /* A ring in a file leads to the next one in its own header. */
            if (!take_lost_ring(session, marker, address, flight)) {
                karst_target_remark(
                    session->target,
                    "the flight recorder's rings are files of %s, which are not in the core and not "
                    "there any more: what follows is without them",
                    *marker->control.directory ? marker->control.directory : "its directory");
                break;
            }
            flight->rings[flight->ring_count - 1].address = address;
            address = flight->rings[flight->ring_count - 1].header.next;
            continue;
        }
        done = take_target_ring(session, &window, address, &left, flight, error);
        address = header.next;
    }
    karst_window_close(&window);
    return done;
}

bool karst_flight_read_file(const char *path, struct karst_flight *flight, struct karst_error *error) {
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0) {
        int saved = errno;
        if (file >= 0) {
            close(file);
        }
        return karst_fail_errno(error, saved, "%s", path);
    }
    uint64_t size = status.st_size > 0 ? (uint64_t)status.st_size : 0;
    void *bytes =
        size >= sizeof(struct karst_ring) ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    close(file);
    if (bytes == MAP_FAILED) {
        return karst_fail(error, KARST_ERROR_FORMAT, "%s is no ring of the flight recorder", path);
    }
    struct karst_flight_ring *ring = add_ring(flight);
    bool done = ring != NULL || karst_fail_memory(error);
    if (ring) {
        memcpy(&ring->header, bytes, sizeof ring->header);
        ring->file = strdup(path);
        if (!header_is_sane(&ring->header) || ring->header.header_bytes > size) {
            done = karst_fail(error, KARST_ERROR_FORMAT,
                              "%s is no ring of the flight recorder, or of another version", path);
        }
    }
    if (done) {
        uint64_t most = size - ring->header.header_bytes;
        uint64_t data = ring->header.data_bytes < most ? ring->header.data_bytes : most;
        struct source source = {.bytes = (const uint8_t *)bytes + ring->header.header_bytes,
                                .groups = data / GROUP};
        done = take_ring(NULL, &source, ring, (uint32_t)(flight->ring_count - 1), error);
    }
    munmap(bytes, size);
    if (!done && ring) {
        free(ring->file);
        free(ring->events);
        flight->ring_count--;
    }
    return done;
}

/* ---- one order -------------------------------------------------------------------------------------- */

/* What is known of an address: handed out, given back, or nothing. */
struct known {
    uint64_t *slots; /* address << 2 | state; 0: empty. Addresses fit in 62 bits */
    size_t slot_count, used;
};

enum { UNKNOWN_STATE, TAKEN, GIVEN_BACK };

static size_t known_slot(const struct known *known, uint64_t address) {
    size_t at = (size_t)(address * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (known->slot_count - 1);
    while (known->slots[at] && known->slots[at] >> 2 != address) {
        at = (at + 1) & (known->slot_count - 1);
    }
    return at;
}

static bool known_make_room(struct known *known) {
    if (known->used * 2 < known->slot_count) {
        return true;
    }
    struct known larger = {.slot_count = known->slot_count ? known->slot_count * 2 : 4096,
                           .used = known->used};
    larger.slots = calloc(larger.slot_count, sizeof *larger.slots);
    if (!larger.slots) {
        return false;
    }
    for (size_t i = 0; i < known->slot_count; i++) {
        if (known->slots[i]) {
            larger.slots[known_slot(&larger, known->slots[i] >> 2)] = known->slots[i];
        }
    }
    free(known->slots);
    *known = larger;
    return true;
}

static int known_state(const struct known *known, uint64_t address) {
    return known->slot_count ? (int)(known->slots[known_slot(known, address)] & 3) : UNKNOWN_STATE;
}

static void known_set(struct known *known, uint64_t address, int state) {
    size_t slot = known_slot(known, address);
    known->used += known->slots[slot] == 0;
    known->slots[slot] = address << 2 | (uint64_t)state;
}

/* An event takes an address or gives one back. A failed realloc takes its block again. */
static uint64_t concerned(const struct karst_flight_event *event, bool *takes) {
    *takes = event->kind == KARST_FLIGHT_ALLOCATE || event->kind == KARST_FLIGHT_MOVED;
    if (event->kind == KARST_FLIGHT_MOVED && event->address == 0) {
        return event->old;
    }
    return event->kind == KARST_FLIGHT_RELEASED ? 0 : event->address;
}

static bool fits(const struct known *known, const struct karst_flight_event *event) {
    bool takes;
    uint64_t address = concerned(event, &takes);
    return address == 0 || known_state(known, address) != (takes ? TAKEN : GIVEN_BACK);
}

/* The rings that have events left, as a heap: by the last clock before the next event, see karst-abi.h. */
struct queue {
    struct karst_flight *flight;
    uint32_t *rings;
    size_t count;
};

static const struct karst_flight_event *head_of(const struct queue *queue, size_t place) {
    const struct karst_flight_ring *ring = &queue->flight->rings[queue->rings[place]];
    return &ring->events[ring->next];
}

static bool before(const struct queue *queue, size_t a, size_t b) {
    const struct karst_flight_event *x = head_of(queue, a), *y = head_of(queue, b);
    if (x->earliest != y->earliest) {
        return x->earliest < y->earliest;
    }
    return queue->rings[a] < queue->rings[b];
}

static void swap(struct queue *queue, size_t a, size_t b) {
    uint32_t ring = queue->rings[a];
    queue->rings[a] = queue->rings[b];
    queue->rings[b] = ring;
}

static void sink_down(struct queue *queue, size_t at) {
    for (;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < queue->count; child++) {
            least = before(queue, child, least) ? child : least;
        }
        if (least == at) {
            return;
        }
        swap(queue, at, least);
        at = least;
    }
}

/* Which ring's event comes next: the first by its clock. If it does not fit what is known of its address (two
 * threads met the same place of recorder_tags within nanoseconds, or a ring lost its past), others that may
 * have come before it and do fit go first. Where none fits, history was lost: the first by its clock. */
static size_t choose(const struct queue *queue, const struct known *known, bool *fitting) {
    *fitting = fits(known, head_of(queue, 0));
    if (*fitting) {
        return 0;
    }
    size_t best = 0;
    uint64_t latest = head_of(queue, 0)->latest;
    for (size_t i = 1; i < queue->count && i < LOOK_FOR; i++) {
        const struct karst_flight_event *event = head_of(queue, i);
        if (event->earliest <= latest && fits(known, event) && (!*fitting || before(queue, i, best))) {
            best = i;
            *fitting = true;
        }
    }
    return best;
}

static bool merge(struct queue *queue, struct known *known) {
    struct karst_flight *flight = queue->flight;
    while (queue->count) {
        bool fitting, takes;
        size_t place = choose(queue, known, &fitting);
        struct karst_flight_ring *ring = &flight->rings[queue->rings[place]];
        const struct karst_flight_event *event = &ring->events[ring->next];
        uint64_t address = concerned(event, &takes);
        flight->disorder += !fitting;
        if (!known_make_room(known)) {
            return false;
        }
        if (address) {
            known_set(known, address, takes ? TAKEN : GIVEN_BACK);
        }
        flight->order[flight->count++] = (uint64_t)queue->rings[place] << INDEX_BITS | ring->next;
        ring->next++;
        if (ring->next == ring->count) {
            queue->rings[place] = queue->rings[--queue->count];
        }
        /* A ring that was not the first sank or rose: its place is found from where it is, then from the top.
         */
        for (size_t at = place; at > 0 && at < queue->count && before(queue, at, (at - 1) / 2);
             at = (at - 1) / 2) {
            swap(queue, at, (at - 1) / 2);
        }
        sink_down(queue, place < queue->count ? place : 0);
    }
    return true;
}

bool karst_flight_merge(struct karst_flight *flight, struct karst_error *error) {
    struct known known = {0};
    size_t total = 0;
    for (size_t i = 0; i < flight->ring_count; i++) {
        total += flight->rings[i].count;
    }
    struct queue queue = {.flight = flight, .rings = calloc(flight->ring_count + 1, sizeof *queue.rings)};
    flight->order = malloc((total + 1) * sizeof *flight->order);
    bool done = queue.rings && flight->order;
    for (size_t i = 0; done && i < flight->ring_count; i++) {
        if (flight->rings[i].count) {
            queue.rings[queue.count++] = (uint32_t)i;
        }
    }
    for (size_t i = queue.count / 2 + 1; done && queue.count && i-- > 0;) {
        sink_down(&queue, i);
    }
    done = done && merge(&queue, &known);
    free(queue.rings);
    free(known.slots);
    return done || karst_fail_memory(error);
}

const struct karst_flight_event *karst_flight_at(const struct karst_flight *flight, size_t number) {
    uint64_t place = flight->order[number];
    return &flight->rings[place >> INDEX_BITS].events[place & ((UINT64_C(1) << INDEX_BITS) - 1)];
}

uint64_t karst_flight_time(const struct karst_flight *flight, const struct karst_flight_event *event) {
    const struct karst_ring *header = &flight->rings[event->ring].header;
    double ticks = (double)(header->ticks[1] - header->ticks[0]);
    double nanoseconds = (double)(header->nanoseconds[1] - header->nanoseconds[0]);
    if (header->ticks[1] <= header->ticks[0] || header->nanoseconds[1] <= header->nanoseconds[0]) {
        return header->nanoseconds[0];
    }
    double since = ((double)event->guess - (double)header->ticks[0]) * (nanoseconds / ticks);
    double most = 1e18; /* thirty years: a damaged header */
    since = since > most ? most : since < -most ? -most : since;
    return (uint64_t)((int64_t)header->nanoseconds[0] + (int64_t)since);
}

void karst_flight_clear(struct karst_flight *flight) {
    for (size_t i = 0; i < flight->ring_count; i++) {
        free(flight->rings[i].events);
        free(flight->rings[i].file);
    }
    free(flight->rings);
    free(flight->order);
    memset(flight, 0, sizeof *flight);
}
