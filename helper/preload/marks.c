#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "marks.h"

_Thread_local struct marks_thread marks_thread;
uint64_t marks_horizon __attribute__((aligned(64))) = 2 * MARKS_BEHIND;
uint64_t marks_directory[KARST_MAP_ENTRIES] __attribute__((aligned(4096)));

/* How far back to look for the block around a pointer: where all blocks are marked, where some are not. */
#define LOOK_BACK       (UINT64_C(1) << 30)
#define LOOK_BACK_SHORT (UINT64_C(64) << 10)

void marks_open(void) {
    struct karst_control *control = &karst_control;
    if (control->map) {
        return;
    }
    /* Any number that programs don't happen to have in their memory; the first thread's, if two come here. */
    uint64_t none = 0,
             canary = (uint64_t)(uintptr_t)control * UINT64_C(0x9e3779b97f4a7c15) ^ system_clock_ns() << 20;
    __atomic_compare_exchange_n(&control->canary, &none, canary, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    __atomic_store_n(&control->map, (uint64_t)(uintptr_t)marks_directory, __ATOMIC_RELEASE);
}

/* ---- entries of the map ------------------------------------------------------------------------------ */

static void set_entry(uint8_t *at, uint64_t offset, enum karst_mark state) {
    if (offset < KARST_MAP_SHORT) {
        marks_set_short_entry(at, offset | state);
        return;
    }
    uint64_t words[2] = {karst_map_spread((uint32_t)(offset >> 3)),
                         karst_map_spread((uint32_t)(offset >> 35))};
    memcpy(at + 2, words, sizeof words);
    marks_set_short_entry(at, KARST_MAP_LARGE | state);
}

static enum karst_mark read_entry(const uint8_t *at, uint64_t *offset) {
    uint16_t entry;
    uint64_t words[2];
    memcpy(&entry, at, sizeof entry);
    *offset = entry & ~(uint64_t)KARST_MAP_STATE;
    if (*offset == KARST_MAP_LARGE) {
        memcpy(words, at + 2, sizeof words);
        *offset = (uint64_t)karst_map_gather(words[0]) << 3 | (uint64_t)karst_map_gather(words[1]) << 35;
    }
    return entry & KARST_MAP_STATE;
}

/* ---- marking ----------------------------------------------------------------------------------------- */

/* The entry of a place; NULL: it has no leaf, or is beyond the map's end. */
static uint8_t *entry_of(uint64_t place) {
    uint64_t base = marks_base(place);
    return base ? (uint8_t *)(uintptr_t)(base + place) : NULL;
}

/* The same, but the leaf is made if it is not there; NULL: no memory, or beyond the map's end. */
static uint8_t *make_entry(uint64_t place) {
    if (place >= MARKS_PLACES || marks_base(place)) {
        return entry_of(place);
    }
    uint8_t *leaf = system_map(KARST_MAP_LEAF + MARKS_LEAF_MORE);
    uint64_t base = (uint64_t)(uintptr_t)leaf - (place - place % KARST_MAP_LEAF), none = 0;
    if (leaf && (!base || !__atomic_compare_exchange_n(&marks_directory[place / KARST_MAP_LEAF], &none, base,
                                                       false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))) {
        system_unmap(leaf, KARST_MAP_LEAF + MARKS_LEAF_MORE);
    }
    return entry_of(place);
}

/* The bytes of the last word before the footer that are not the program's. */
static uint64_t gap_mask(uint64_t gap) {
    return gap == 0 ? 0 : gap >= 8 ? UINT64_MAX : UINT64_MAX << (64 - 8 * gap);
}

static void fill_word(uint8_t *at, uint64_t mask) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    word = (word & ~mask) | (MARKS_FILL & mask);
    memcpy(at, &word, sizeof word);
}

static void fill_gap(uint8_t *block, uint64_t size, uint64_t offset) {
    fill_word(block + offset - 8, gap_mask(offset - size));
    if (size < 8) {
        fill_word(block, gap_mask(8 - size));
    }
}

static uint64_t next_number(struct marks_thread *thread) {
    if (marks_is_used_up(thread->next)) {
        uint64_t from;
        do {
            from = __atomic_fetch_add(&marks_horizon, MARKS_PIECE, __ATOMIC_RELAXED);
        } while ((uint32_t)(from + MARKS_PIECE) <= MARKS_BEHIND);
        thread->next = (uint64_t)(uint32_t)thread_id() << KARST_FOOTER_SEQUENCE_BITS |
                       ((from + 1) & KARST_FOOTER_SEQUENCE);
    }
    return thread->next++;
}

void *marks_put(void *block, uint64_t size, uint64_t site, enum karst_function function) {
    uint64_t place = marks_place((uint64_t)(uintptr_t)block), offset = marks_footer_offset(size);
    uint8_t *at = make_entry(place);
    if (at) {
        uint64_t number = next_number(&marks_thread);
        fill_gap(block, size, offset);
        marks_write(block, size, offset, site, function, number);
        set_entry(at, offset, KARST_MARK_LIVE);
    }
    return block;
}

/* ---- taking back ------------------------------------------------------------------------------------- */

const uint64_t marks_gaps[8] = {
    0,
    UINT64_MAX << 56,
    UINT64_MAX << 48,
    UINT64_MAX << 40,
    UINT64_MAX << 32,
    UINT64_MAX << 24,
    UINT64_MAX << 16,
    UINT64_MAX << 8,
};

static uint8_t *entry_at(uint64_t address) {
    return entry_of(marks_place(address));
}

static bool word_is_whole(const uint8_t *at, uint64_t mask) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return !((word ^ MARKS_FILL) & mask);
}

/* Nothing was written behind the block's end. */
static bool is_whole(const uint8_t *block, const struct karst_footer *footer, uint64_t offset) {
    uint64_t size = footer->size;
    return footer->canary == (karst_control.canary ^ (uint64_t)(uintptr_t)block) &&
           marks_footer_offset(size) == offset &&
           word_is_whole(block + offset - 8, gap_mask(offset - size)) &&
           (size >= 8 || word_is_whole(block, gap_mask(8 - size)));
}

bool marks_release(void *block, uint64_t site) {
    uint64_t offset;
    uint8_t *at = entry_at((uint64_t)(uintptr_t)block);
    if (!at || read_entry(at, &offset) != KARST_MARK_LIVE) {
        return false;
    }
    struct karst_footer *footer = (struct karst_footer *)((uint8_t *)block + offset);
    if (!is_whole(block, footer, offset)) {
        return false;
    }
    footer->canary = KARST_FOOTER_FREED | site;
    set_entry(at, offset, KARST_MARK_FREED);
    return true;
}

bool marks_size(const void *block, size_t *size) {
    uint64_t address = (uint64_t)(uintptr_t)block, offset;
    const uint8_t *at = entry_at(address);
    if (!at || read_entry(at, &offset) != KARST_MARK_LIVE) {
        return false;
    }
    const struct karst_footer *footer = (const struct karst_footer *)((const uint8_t *)block + offset);
    if (footer->canary != (karst_control.canary ^ address)) {
        return false;
    }
    *size = footer->size;
    return true;
}

void marks_restore(void *block) {
    uint64_t address = (uint64_t)(uintptr_t)block, offset;
    uint8_t *at = entry_at(address);
    if (at && read_entry(at, &offset) == KARST_MARK_FREED) {
        struct karst_footer *footer = (struct karst_footer *)((uint8_t *)block + offset);
        if ((footer->canary & ~KARST_SITE_MASK) == KARST_FOOTER_FREED) { /* a damaged one stays damaged */
            footer->canary = karst_control.canary ^ address;
        }
        set_entry(at, offset, KARST_MARK_LIVE);
    }
}

void marks_release_damaged(void *block) {
    uint64_t offset;
    uint8_t *at = entry_at((uint64_t)(uintptr_t)block);
    if (at && read_entry(at, &offset) == KARST_MARK_LIVE) {
        set_entry(at, offset, KARST_MARK_FREED);
    }
}

/* ---- judging what can't be freed -------------------------------------------------------------------- */

static bool read_footer(uint64_t address, uint64_t offset, struct karst_footer *footer) {
    return address + offset >= address && system_peek(address + offset, footer, sizeof *footer);
}

/* The live block that begins at address by the map; proved by its footer. */
static bool live_block(uint64_t address, struct karst_footer *footer) {
    uint64_t offset;
    const uint8_t *at = entry_at(address);
    return at && read_entry(at, &offset) == KARST_MARK_LIVE && read_footer(address, offset, footer) &&
           footer->canary == (karst_control.canary ^ address);
}

/* The marked live block that address points into the middle of; 0: none was found. */
static uint64_t block_around(uint64_t address, struct karst_footer *footer) {
    uint64_t back = karst_control.marked_from ? LOOK_BACK : LOOK_BACK_SHORT;
    uint64_t last = address > back ? address - back : 0;
    uint64_t at = address & ~(uint64_t)(KARST_MAP_GRAIN - 1);
    for (at -= at == address ? KARST_MAP_GRAIN : 0; at > last; at -= KARST_MAP_GRAIN) {
        if (!entry_at(at)) {
            at &= ~(KARST_MAP_SPAN - 1); /* none begins in its span */
            continue;
        }
        if (live_block(at, footer)) {
            return address < at + footer->size ? at : 0;
        }
    }
    return 0;
}

static void tell_block(struct karst_why *why, uint64_t address, const struct karst_footer *footer) {
    why->block = address;
    why->block_size = footer->size;
    why->allocated_by = (int32_t)(footer->sequence >> KARST_FOOTER_SEQUENCE_BITS);
    why->allocated_at = stacks_caller(footer->site & KARST_SITE_MASK);
}

static void tell_freed(struct karst_why *why, uint64_t address, uint64_t offset) {
    struct karst_footer footer = {0};
    why->block = address;
    if (read_footer(address, offset, &footer) && (footer.canary & ~KARST_SITE_MASK) == KARST_FOOTER_FREED &&
        marks_footer_offset(footer.size) == offset) {
        tell_block(why, address, &footer);
        why->freed_at = stacks_caller(footer.canary & KARST_SITE_MASK);
    } else {
        why->block_size = offset; /* about: its footer was written over since */
    }
}

/* A hexadecimal number of /proc/self/maps. */
static const char *parse_hex(const char *text, const char *end, uint64_t *number) {
    for (*number = 0; text < end; text++) {
        int digit = *text >= '0' && *text <= '9'   ? *text - '0'
                    : *text >= 'a' && *text <= 'f' ? *text - 'a' + 10
                                                   : -1;
        if (digit < 0) {
            break;
        }
        *number = *number << 4 | (uint64_t)digit;
    }
    return text;
}

/* Where the blanks at text end, or what is none of them. */
static const char *skip(const char *text, const char *end, bool blanks) {
    while (text < end && (*text == ' ') == blanks) {
        text++;
    }
    return text;
}

/* What one line of maps says of address: 1 its mapping is anonymous memory or a "[heap]", 2 it is a file's, a
 * stack's or the kernel's, 0 another mapping. */
static int judge_line(const char *line, const char *end, uint64_t address, uint64_t stack) {
    uint64_t start, stop;
    const char *at = parse_hex(line, end, &start);
    at = parse_hex(at + 1, end, &stop);
    if (address < start || address >= stop) {
        return 0;
    }
    if (stack >= start && stack < stop) {
        return 2;
    }
    /* Behind four more fields; it may have blanks in it, and " (deleted)" behind it. */
    const char *name = at;
    for (int field = 0; field < 5; field++) {
        name = skip(skip(name, end, false), end, true);
    }
    static const char *const heaps[] = {"[heap]", "[anon", "/dev/zero", "/memfd:", "/anon_hugepage", "/SYSV"};
    bool heap = name == end;
    for (size_t i = 0; i < sizeof heaps / sizeof *heaps; i++) {
        size_t length = strlen(heaps[i]);
        heap |= (size_t)(end - name) >= length && memcmp(name, heaps[i], length) == 0;
    }
    return heap ? 1 : 2;
}

/* True: address can't be an allocator's block: it is not mapped, or it is a stack, a file, a module's data.
 */
static bool is_foreign(uint64_t address, uint64_t stack) {
    char buffer[8192];
    struct module module;
    if (address % 8 || module_at(address, &module)) {
        return true;
    }
    long file = system_call(SYS_openat, AT_FDCWD, (long)"/proc/self/maps", O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (file < 0) {
        return false;
    }
    int judged = 0;
    size_t used = 0;
    long part = 1;
    while (!judged && part > 0) {
        part = system_call(SYS_read, file, (long)(buffer + used), (long)(sizeof buffer - used), 0, 0, 0);
        used += part > 0 ? (size_t)part : 0;
        const char *line = buffer, *end;
        while (!judged && (end = memchr(line, '\n', used - (size_t)(line - buffer)))) {
            judged = judge_line(line, end, address, stack);
            line = end + 1;
        }
        used -= (size_t)(line - buffer);
        memmove(buffer, line, used);
        if (used == sizeof buffer) {
            used = 0; /* a line of this length can't be: names have at most 4 KiB */
        }
    }
    system_call(SYS_close, file, 0, 0, 0, 0, 0);
    return judged != 1;
}

enum karst_fault marks_judge(const struct call *call, struct karst_why *why) {
    uint64_t address = call->old_address, offset = 0;
    struct karst_footer footer = {0};
    const uint8_t *at = entry_at(address);
    enum karst_mark state = at ? read_entry(at, &offset) : KARST_MARK_NONE;
    if (state == KARST_MARK_LIVE) {
        why->block = address;
        if (read_footer(address, offset, &footer) && marks_footer_offset(footer.size) == offset) {
            tell_block(why, address, &footer);
        } else {
            why->block_size = offset;
        }
        return KARST_FAULT_OVERFLOW;
    }
    uint64_t around = block_around(address, &footer);
    if (around) {
        tell_block(why, around, &footer);
        return KARST_FAULT_INTERIOR;
    }
    if (state == KARST_MARK_FREED) {
        tell_freed(why, address, offset);
        return KARST_FAULT_DOUBLE_FREE;
    }
    return is_foreign(address, call->stack) ? KARST_FAULT_FOREIGN : KARST_FAULT_NONE;
}
