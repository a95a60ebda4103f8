#include "cache.h"

#include <stdlib.h>
#include <string.h>

void karst_cache_open(struct karst_cache *cache, struct karst_target *target) {
    *cache = (struct karst_cache){.target = target};
}

void karst_cache_close(struct karst_cache *cache) {
    for (size_t i = 0; cache->slots && i < KARST_CACHE_SLOTS; i++) {
        free(cache->slots[i].buffer);
    }
    free(cache->slots);
    cache->slots = NULL;
}

static bool make_slots(struct karst_cache *cache) {
    cache->slots = calloc(KARST_CACHE_SLOTS, sizeof *cache->slots);
    for (size_t i = 0; cache->slots && i < KARST_CACHE_SLOTS; i++) {
        cache->slots[i].piece = UINT64_MAX;
    }
    return cache->slots != NULL;
}

/* Without a copy where the target can lend its memory. */
static bool fill_by_view(struct karst_cache *cache, struct karst_cache_slot *slot, uint64_t start) {
    size_t size = 0;
    const uint8_t *bytes =
        cache->target->ops->view ? cache->target->ops->view(cache->target, start, &size) : NULL;
    if (!bytes || size == 0) {
        return false;
    }
    slot->bytes = bytes;
    slot->start = start;
    slot->end = start + (size < KARST_CACHE_PIECE ? size : KARST_CACHE_PIECE);
    return true;
}

static bool fill_by_reading(struct karst_cache *cache, struct karst_cache_slot *slot, uint64_t start,
                            size_t size) {
    if (!slot->buffer && !(slot->buffer = malloc(KARST_CACHE_PIECE))) {
        return false;
    }
    slot->bytes = slot->buffer;
    slot->start = start;
    slot->end = start + karst_target_read(cache->target, start, slot->buffer, size);
    return slot->end > start;
}

/* The part of one piece from address on, *there bytes of it. */
static const uint8_t *part_at(struct karst_cache *cache, uint64_t address, size_t *there) {
    uint64_t piece = address / KARST_CACHE_PIECE, start = piece * KARST_CACHE_PIECE;
    struct karst_cache_slot *slot = &cache->slots[piece % KARST_CACHE_SLOTS];
    if (slot->piece != piece || address < slot->start || address >= slot->end) {
        uint64_t page = address & ~((uint64_t)KARST_CACHE_READ - 1);
        size_t rest = (size_t)(start + KARST_CACHE_PIECE - page);
        slot->piece = piece;
        slot->start = slot->end = 0;
        /* Where the piece's beginning is missing, what follows address may still be there. */
        if (!(fill_by_view(cache, slot, start) && address < slot->end) &&
            !(fill_by_reading(cache, slot, start, KARST_CACHE_PIECE) && address < slot->end) &&
            !fill_by_reading(cache, slot, page, rest)) {
            slot->piece = UINT64_MAX;
            return NULL;
        }
    }
    if (address < slot->start || address >= slot->end) {
        return NULL;
    }
    *there = (size_t)(slot->end - address);
    return slot->bytes + (address - slot->start);
}

const uint8_t *karst_cache_fill(struct karst_cache *cache, uint64_t address, size_t size) {
    if (size > KARST_CACHE_READ || address > UINT64_MAX - size || (!cache->slots && !make_slots(cache))) {
        return NULL;
    }
    size_t there = 0, have = 0;
    const uint8_t *bytes = part_at(cache, address, &there);
    if (bytes && there >= size) {
        return bytes;
    }
    while (have < size) {
        bytes = part_at(cache, address + have, &there);
        if (!bytes) {
            return NULL;
        }
        size_t more = there < size - have ? there : size - have;
        memcpy(cache->joint + have, bytes, more);
        have += more;
    }
    return cache->joint;
}
