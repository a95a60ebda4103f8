/* The flight recorder: one ring of records for each thread, written by that thread alone. */
#ifndef KARST_PRELOAD_RECORDER_H
#define KARST_PRELOAD_RECORDER_H

#include "preload.h"

/* Where a thread writes next. In memory that a forked child finds zeroed (MADV_WIPEONFORK), whichever way it
 * was forked: a cursor on a group's boundary, as 0 is, takes the slow path, which looks closer. */
struct ring_head {
    uint64_t cursor;         /* behind the next record: where the group's end will be marked */
    struct karst_ring *ring; /* NULL: none yet */
    uint64_t data_end;
    uint64_t group;      /* number of the current one */
    uint64_t calibrated; /* ticks when the header's second moment was taken */
    uint64_t tag;        /* of the thread, in recorder_tags */
    uint64_t unused[2];
};

extern _Thread_local struct ring_head *recorder_head
    __attribute__((visibility("hidden"), tls_model("initial-exec")));

/* Which thread's event was last about a place of 64 KiB; by its number. Plain loads and stores: what orders
 * two events about one address in the program orders them here. Places that share a tag cost clocks, no more.
 */
#define RECORDER_TAGS  65536u
#define RECORDER_SHIFT 16
extern uint16_t recorder_tags[RECORDER_TAGS] __attribute__((visibility("hidden")));

/* Opens the next group, or a ring for the thread if it has none, and writes one record in there. */
COLD void recorder_write_slow(enum karst_event_kind kind, uint64_t address, uint64_t size, uint64_t site);
/* The calling thread is about to forbid itself the clock, which it would die of at its next event: it has no
 * more. */
void recorder_lose_clock(void);
/* A forked child has no rings. */
void recorder_in_child(void);

/* Writes one record, and behind it the end of the group: what is left there of the ring's last lap is not of
 * it. */
static inline __attribute__((always_inline)) void recorder_put(struct ring_head *head, uint64_t cursor,
                                                               uint64_t first, uint64_t second) {
    struct karst_record *end = (struct karst_record *)(uintptr_t)cursor, *record = end - 1;
    __atomic_store_n(&end->first, 0, __ATOMIC_RELAXED);
    record->second = second;
    __atomic_store_n(&record->first, first, __ATOMIC_RELEASE);
    head->cursor = cursor + KARST_RECORD_BYTES;
}

/* What most events take: sizes of more than 16 bits go the long way. */
static inline __attribute__((always_inline)) void recorder_write(enum karst_event_kind kind, uint64_t address,
                                                                 uint64_t size, uint64_t site) {
    struct ring_head *head = recorder_head;
    uint64_t cursor = head->cursor;
    if (UNLIKELY(cursor % KARST_GROUP_BYTES == 0 || size >> 16 || address >> KARST_SITE_BITS ||
                 recorder_tags[address >> RECORDER_SHIFT & (RECORDER_TAGS - 1)] != head->tag)) {
        recorder_write_slow(kind, address, size, site);
        return;
    }
    recorder_put(head, cursor, (uint64_t)kind << 60 | address, size << 48 | site);
}

#endif
