/* Reads all over a target: what follows pointers from object to object goes through here. */
#ifndef KARST_TARGET_CACHE_H
#define KARST_TARGET_CACHE_H

#include "target.h"

#define KARST_CACHE_PIECE (16u << 10) /* bytes, aligned to as many */
#define KARST_CACHE_SLOTS 1024u
#define KARST_CACHE_READ  4096u /* bytes that can be asked for at once */

struct karst_cache_slot {
    uint64_t piece;       /* its address, divided by KARST_CACHE_PIECE */
    const uint8_t *bytes; /* of [start, end) */
    uint64_t start, end;  /* what could be had; empty: nothing */
    uint8_t *buffer;      /* owned; NULL while views served */
};

struct karst_cache {
    struct karst_target *target;
    struct karst_cache_slot *slots; /* NULL until something was asked for */
    uint8_t joint[KARST_CACHE_READ];
};

/* No memory is taken before it is needed, and at most 16 MiB. */
void karst_cache_open(struct karst_cache *cache, struct karst_target *target);
void karst_cache_close(struct karst_cache *cache);
/* The slow path of karst_cache_at(). */
const uint8_t *karst_cache_fill(struct karst_cache *cache, uint64_t address, size_t size);

/* size bytes at address, at most KARST_CACHE_READ; NULL if not all of them are there, or there is no memory.
 * Valid until the next call. */
static inline const uint8_t *karst_cache_at(struct karst_cache *cache, uint64_t address, size_t size) {
    if (cache->slots) {
        uint64_t piece = address / KARST_CACHE_PIECE;
        const struct karst_cache_slot *slot = &cache->slots[piece % KARST_CACHE_SLOTS];
        if (slot->piece == piece && address >= slot->start && address < slot->end &&
            slot->end - address >= size) {
            return slot->bytes + (address - slot->start);
        }
    }
    return karst_cache_fill(cache, address, size);
}

#endif
