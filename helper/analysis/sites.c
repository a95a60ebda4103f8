#include "sites.h"

#include <stdlib.h>
#include <string.h>

static size_t slot_of(const struct karst_sites *sites, uint64_t site, uint32_t function) {
    uint64_t hash = (site * 31 + function) * UINT64_C(0x9e3779b97f4a7c15);
    size_t at = (size_t)(hash >> 32) & (sites->slot_count - 1);
    while (sites->slots[at]) {
        const struct karst_site *item = &sites->items[sites->slots[at] - 1];
        if (item->site == site && item->function == function) {
            break;
        }
        at = (at + 1) & (sites->slot_count - 1);
    }
    return at;
}

/* At most half of the slots are used. */
static bool make_room(struct karst_sites *sites) {
    if (sites->count * 2 < sites->slot_count) {
        return true;
    }
    size_t slot_count = sites->slot_count ? sites->slot_count * 2 : 1024, capacity = slot_count / 2 + 1;
    if (capacity > UINT32_MAX) {
        return false;
    }
    struct karst_site *items = realloc(sites->items, capacity * sizeof *items);
    if (!items) {
        return false;
    }
    sites->items = items;
    uint32_t *slots = calloc(slot_count, sizeof *slots);
    if (!slots) {
        return false;
    }
    free(sites->slots);
    sites->slots = slots;
    sites->slot_count = slot_count;
    sites->capacity = capacity;
    for (size_t i = 0; i < sites->count; i++) {
        slots[slot_of(sites, items[i].site, items[i].function)] = (uint32_t)i + 1;
    }
    return true;
}

struct counting {
    struct karst_sites *sites;
    bool out_of_memory;
};

static bool count_block(void *context, uint64_t address, const struct karst_mark_of *mark) {
    struct counting *counting = context;
    struct karst_sites *sites = counting->sites;
    if (!mark->readable) {
        sites->lost++;
        return true;
    }
    if (mark->size < sites->least || mark->size > sites->greatest ||
        (sites->thread && mark->thread != sites->thread)) {
        return true;
    }
    if (!make_room(sites)) {
        counting->out_of_memory = true;
        return false;
    }
    size_t slot = slot_of(sites, mark->site, mark->function);
    if (!sites->slots[slot]) {
        sites->items[sites->count] = (struct karst_site){
            .site = mark->site, .function = mark->function, .oldest = mark->sequence, .sample = address};
        sites->slots[slot] = (uint32_t)++sites->count;
    }
    struct karst_site *item = &sites->items[sites->slots[slot] - 1];
    item->blocks++;
    item->bytes += mark->size;
    item->damaged += !mark->whole;
    item->oldest = mark->sequence < item->oldest ? mark->sequence : item->oldest;
    item->newest = mark->sequence > item->newest ? mark->sequence : item->newest;
    if (mark->size > item->largest) {
        item->largest = mark->size;
        item->sample = address;
    }
    sites->blocks++;
    sites->bytes += mark->size;
    return true;
}

bool karst_count_sites(struct karst_marker *marker, struct karst *session, struct karst_sites *sites,
                       struct karst_error *error) {
    struct counting counting = {.sites = sites};
    if (!karst_marker_each(marker, session, count_block, &counting, error)) {
        return false;
    }
    return !counting.out_of_memory || karst_fail_memory(error);
}

void karst_sites_clear(struct karst_sites *sites) {
    free(sites->items);
    free(sites->slots);
    memset(sites, 0, sizeof *sites);
}
