/* Line tables of code objects, by the descriptions that come with CPython: Objects/lnotab_notes.txt (3.9),
 * PEP 626 and Objects/lnotab_notes.txt of 3.10, Objects/locations.md (3.11 and later). */
#include "cpython.h"

/* Pairs of how many bytes of code, and by how many lines then. */
static int64_t line_by_lnotab(const uint8_t *table, size_t size, int64_t line, int64_t offset) {
    int64_t at = 0;
    for (size_t i = 0; i + 2 <= size; i += 2) {
        at += table[i];
        if (at > offset) {
            break;
        }
        line += (int8_t)table[i + 1];
    }
    return line;
}

/* Pairs of by how many lines, and how many bytes of code are there; -128: those belong to no line. */
static int64_t line_by_linetable(const uint8_t *table, size_t size, int64_t line, int64_t offset) {
    int64_t at = 0;
    for (size_t i = 0; i + 2 <= size; i += 2) {
        int8_t step = (int8_t)table[i + 1];
        if (step != -128) {
            line += step;
        }
        at += table[i];
        if (at > offset) {
            return step == -128 ? 0 : line;
        }
    }
    return 0;
}

/* Six bits a byte, the lowest first; bit 6 says that there is more. */
static uint64_t read_number(const uint8_t *table, size_t size, size_t *at) {
    uint64_t value = 0;
    for (unsigned shift = 0; *at < size; shift += 6) {
        uint8_t byte = table[(*at)++];
        if (shift < 60) {
            value |= (uint64_t)(byte & 63) << shift;
        }
        if (!(byte & 64)) {
            break;
        }
    }
    return value;
}

static int64_t read_signed(const uint8_t *table, size_t size, size_t *at) {
    uint64_t value = read_number(table, size, at);
    int64_t magnitude = (int64_t)(value >> 1 & INT32_MAX);
    return value & 1 ? -magnitude : magnitude;
}

enum { SHORT_FORMS = 10, ONE_LINE_FORMS = 13, NO_COLUMNS = 13, LONG_FORM = 14, NO_LINE = 15 };

/* Entries of a byte 1cccclll (code c, l + 1 code units) and what the code asks for, which is below 128. */
static int64_t line_by_locations(const uint8_t *table, size_t size, int64_t line, int64_t offset) {
    int64_t at = 0;
    size_t i = 0;
    while (i < size) {
        uint8_t first = table[i++];
        unsigned code = first >> 3 & 15;
        if (code >= SHORT_FORMS && code < ONE_LINE_FORMS) {
            line += code - SHORT_FORMS;
        } else if (code == NO_COLUMNS || code == LONG_FORM) {
            line += read_signed(table, size, &i);
        }
        at += 2 * ((first & 7) + 1);
        if (at > offset) {
            return code == NO_LINE ? 0 : line;
        }
        while (i < size && !(table[i] & 128)) {
            i++;
        }
    }
    return 0;
}

int64_t cpython_line(enum cpython_lines kind, const uint8_t *table, size_t size, int64_t first_line,
                     int64_t offset) {
    if (offset < 0) {
        return first_line;
    }
    switch (kind) {
    case CPYTHON_LNOTAB:
        return line_by_lnotab(table, size, first_line, offset);
    case CPYTHON_LINETABLE:
        return line_by_linetable(table, size, first_line, offset);
    default:
        return line_by_locations(table, size, first_line, offset);
    }
}
