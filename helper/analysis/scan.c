#include "scan.h"

#include <string.h>

#define WINDOW_BYTES (1u << 20)
#define PIECE_WORDS  (1u << 15) /* between two looks at the clock */
#define GROUP_WORDS  32u

void karst_scan_open(struct karst_scan *scan, struct karst *session, uint64_t low, uint64_t size) {
    *scan = (struct karst_scan){.session = session, .low = low, .size = size};
    karst_window_open(&scan->window, session->target, WINDOW_BYTES);
}

void karst_scan_close(struct karst_scan *scan) {
    karst_window_close(&scan->window);
}

static inline uint64_t word_at(const uint8_t *bytes, size_t index) {
    uint64_t word;
    memcpy(&word, bytes + index * sizeof word, sizeof word);
    return word;
}

static bool tell_group(struct karst_scan *scan, const uint8_t *bytes, size_t words, uint64_t address) {
    for (size_t i = 0; i < words; i++) {
        uint64_t word = word_at(bytes, i);
        if (word - scan->low < scan->size &&
            !scan->found(scan->context, address + i * sizeof(uint64_t), word)) {
            scan->stopped = true;
            return false;
        }
    }
    return true;
}

/* Nearly no group has a hit, so groups are only counted: three instructions a word. */
static bool scan_bytes(struct karst_scan *scan, const uint8_t *bytes, size_t words, uint64_t address) {
    const uint64_t low = scan->low, size = scan->size;
    size_t i = 0;
    for (; i + GROUP_WORDS <= words; i += GROUP_WORDS) {
        uint64_t hits = 0;
        for (size_t k = 0; k < GROUP_WORDS; k++) {
            hits += word_at(bytes, i + k) - low < size;
        }
        if (__builtin_expect(hits != 0, 0) &&
            !tell_group(scan, bytes + i * sizeof(uint64_t), GROUP_WORDS, address + i * sizeof(uint64_t))) {
            return false;
        }
    }
    return tell_group(scan, bytes + i * sizeof(uint64_t), words - i, address + i * sizeof(uint64_t));
}

/* Where to go on behind what can't be read at address. */
static uint64_t step_over(struct karst_scan *scan, uint64_t address, uint64_t end) {
    uint64_t missing = karst_target_missing(scan->session->target, address);
    missing = missing < end - address ? missing : end - address;
    scan->unreadable += missing;
    return address + missing;
}

bool karst_scan_range(struct karst_scan *scan, uint64_t start, uint64_t end, bool progress,
                      struct karst_error *error) {
    uint64_t address = start + (-start & 7);
    if (address < start || end < sizeof(uint64_t) || scan->stopped) {
        return true;
    }
    while (address <= end - sizeof(uint64_t)) {
        uint64_t before = address, piece = end - address;
        piece = piece < PIECE_WORDS * sizeof(uint64_t) ? piece : PIECE_WORDS * sizeof(uint64_t);
        /* Nothing points anywhere from pages that were never touched. */
        uint64_t untouched = karst_target_untouched(scan->session->target, address, end) & ~(uint64_t)7;
        const uint8_t *bytes = untouched ? NULL : karst_window_at(&scan->window, address, sizeof(uint64_t));
        if (bytes) {
            uint64_t there = scan->window.end - address;
            size_t words = (size_t)((there < piece ? there : piece) / sizeof(uint64_t));
            if (!scan_bytes(scan, bytes, words, address)) {
                return true;
            }
            address += words * sizeof(uint64_t);
        } else {
            address = untouched ? address + untouched : step_over(scan, address, end);
        }
        if (progress && !karst_session_progress(scan->session, address - before, error)) {
            return false;
        }
        if (address < before) {
            return true;
        }
    }
    return true;
}
