/* Which pages of a process are there: a table of two bits a page, filled when asked for. PAGEMAP_SCAN
 * (Linux 6.7) tells runs of pages in a walk over the page tables alone; the entries of /proc/PID/pagemap,
 * which older kernels have, cost a look at each page's own record, half a second for 4 GB. */
#include "process.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Of linux/fs.h, which Debian 12 has without them. */
struct scan_run {
    uint64_t start, end, categories;
};
struct scan_request {
    uint64_t size, flags, start, end, walk_end, runs, run_count, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_PAGES   _IOWR('f', 16, struct scan_request)
#define SCAN_PRESENT ((uint64_t)1 << 3)
#define SCAN_SWAPPED ((uint64_t)1 << 4)
#define SCAN_ZERO    ((uint64_t)1 << 5) /* the page of zeros that all processes share: takes no memory */

#define ENTRY_PRESENT   ((uint64_t)1 << 63)
#define ENTRY_SWAPPED   ((uint64_t)1 << 62)
#define ENTRY_EXCLUSIVE ((uint64_t)1 << 56) /* mapped by this process alone (Linux 4.2 and later) */

static void set_bits(uint64_t *bits, uint64_t from, uint64_t to) {
    for (; from < to && from % 64; from++) {
        bits[from / 64] |= (uint64_t)1 << (from % 64);
    }
    for (; to - from >= 64; from += 64) {
        bits[from / 64] = UINT64_MAX;
    }
    for (; from < to; from++) {
        bits[from / 64] |= (uint64_t)1 << (from % 64);
    }
}

static void note_run(struct process_region *region, uint64_t from, uint64_t to, bool present) {
    if (from < region->first || to > region->first + PROCESS_REGION_PAGES || from >= to) {
        return;
    }
    set_bits(region->touched, from - region->first, to - region->first);
    if (present) {
        set_bits(region->present, from - region->first, to - region->first);
    }
}

/* false: this kernel can't, or not here. */
static bool scan(struct process *process, struct process_region *region) {
    struct scan_run runs[128];
    uint64_t page_size = process->target.page_size, end = (region->first + PROCESS_REGION_PAGES) * page_size;
    struct scan_request request = {.size = sizeof request,
                                   .start = region->first * page_size,
                                   .end = end,
                                   .runs = (uintptr_t)runs,
                                   .run_count = sizeof runs / sizeof *runs,
                                   .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
                                   .return_mask = SCAN_PRESENT | SCAN_SWAPPED | SCAN_ZERO};
    while (request.start < end) {
        int count = ioctl(process->pagemap, SCAN_PAGES, &request);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0 || request.walk_end <= request.start) {
            process->no_scan |= count < 0 && errno == ENOTTY;
            return false;
        }
        for (int i = 0; i < count && i < (int)(sizeof runs / sizeof *runs); i++) {
            note_run(region, runs[i].start / page_size, runs[i].end / page_size,
                     (runs[i].categories & (SCAN_PRESENT | SCAN_ZERO)) == SCAN_PRESENT);
        }
        request.start = request.walk_end;
    }
    return true;
}

/* false: nothing can be told about the region's first pages. */
static bool read_entries(struct process *process, struct process_region *region) {
    uint64_t entries[1024], first = region->first, end = first + PROCESS_REGION_PAGES;
    while (first < end && end <= INT64_MAX / sizeof *entries) {
        ssize_t got = pread(process->pagemap, entries, sizeof entries, (off_t)(first * sizeof *entries));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        size_t count = got > 0 ? (size_t)got / sizeof *entries : 0;
        if (count == 0) {
            break;
        }
        for (size_t i = 0; i < count; i++) {
            if (entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) {
                note_run(region, first + i, first + i + 1, entries[i] & ENTRY_PRESENT);
            }
        }
        first += count;
    }
    return first > region->first;
}

/* A process that runs touches pages meanwhile: what was learned of it serves the region at hand only. */
static struct process_region *region_of(struct process *process, uint64_t page) {
    uint64_t number = page / PROCESS_REGION_PAGES;
    struct process_region **slot = &process->regions[process->target.stopped ? number % PROCESS_REGIONS : 0];
    if (process->pagemap < 0 || (!*slot && !(*slot = calloc(1, sizeof **slot)))) {
        return NULL;
    }
    struct process_region *region = *slot;
    if (region->known && region->first == number * PROCESS_REGION_PAGES) {
        return region;
    }
    memset(region, 0, sizeof *region);
    region->first = number * PROCESS_REGION_PAGES;
    region->known = (!process->no_scan && scan(process, region)) || read_entries(process, region);
    return region->known ? region : NULL;
}

static bool bit(const uint64_t *bits, uint64_t index) {
    return bits[index / 64] >> (index % 64) & 1;
}

uint64_t process_same_pages(struct process *process, uint64_t page, uint64_t end, bool *touched) {
    const struct process_region *region = region_of(process, page);
    if (!region) {
        return 0;
    }
    uint64_t from = page - region->first, at = from + 1;
    uint64_t limit = end - region->first < PROCESS_REGION_PAGES ? end - region->first : PROCESS_REGION_PAGES;
    *touched = bit(region->touched, from);
    uint64_t same = *touched ? UINT64_MAX : 0;
    while (at < limit) {
        if (at % 64 == 0 && region->touched[at / 64] == same) {
            at += 64;
        } else if (bit(region->touched, at) == *touched) {
            at++;
        } else {
            break;
        }
    }
    return (at < limit ? at : limit) - from;
}

int process_page_present(struct process *process, uint64_t page) {
    const struct process_region *region = region_of(process, page);
    return region ? bit(region->present, page - region->first) : -1;
}

uint64_t process_present_pages(struct process *process, uint64_t page, uint64_t end) {
    uint64_t present = 0;
    while (page < end) {
        const struct process_region *region = region_of(process, page);
        if (!region) {
            return UINT64_MAX;
        }
        uint64_t at = page - region->first, limit = end - region->first;
        limit = limit < PROCESS_REGION_PAGES ? limit : PROCESS_REGION_PAGES;
        while (at < limit) {
            if (at % 64 == 0 && limit - at >= 64) {
                present += (uint64_t)__builtin_popcountll(region->present[at / 64]);
                at += 64;
            } else {
                present += bit(region->present, at++);
            }
        }
        page = region->first + limit;
    }
    return present;
}

uint64_t process_own_pages(struct process *process, uint64_t page, uint64_t end) {
    uint64_t entries[512], own = 0;
    while (page < end) {
        uint64_t left = end - page, wanted = left < 512 ? left : 512;
        ssize_t got = process->pagemap < 0 || page > INT64_MAX / sizeof *entries
                          ? -1
                          : pread(process->pagemap, entries, (size_t)wanted * sizeof *entries,
                                  (off_t)(page * sizeof *entries));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        size_t count = got > 0 ? (size_t)got / sizeof *entries : 0;
        if (count == 0) {
            return UINT64_MAX;
        }
        for (size_t i = 0; i < count; i++) {
            own += (entries[i] & (ENTRY_PRESENT | ENTRY_EXCLUSIVE)) == (ENTRY_PRESENT | ENTRY_EXCLUSIVE);
        }
        page += count;
    }
    return own;
}

void process_free_pages(struct process *process) {
    for (size_t i = 0; i < PROCESS_REGIONS; i++) {
        free(process->regions[i]);
    }
    free(process->shared);
}
