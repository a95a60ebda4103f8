#include "clean.h"

#include <string.h>

size_t karst_utf8_decode(const char *text, size_t size, uint32_t *character) {
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = (const unsigned char *)text;
    if (size == 0) {
        return 0;
    }
    if (bytes[0] < 0x80) {
        *character = bytes[0];
        return 1;
    }
    size_t length = bytes[0] >= 0xf0 ? 4 : bytes[0] >= 0xe0 ? 3 : 2;
    if (bytes[0] < 0xc2 || bytes[0] > 0xf4 || length > size) {
        return 0;
    }
    uint32_t value = bytes[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80) {
            return 0;
        }
        value = value << 6 | (bytes[i] & 0x3f);
    }
    if (value < smallest[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) {
        return 0;
    }
    *character = value;
    return length;
}

/* C0 and C1 controls, and the marks that turn the direction of writing. */
static bool is_control(uint32_t character) {
    return character < 0x20 || (character >= 0x7f && character < 0xa0) || character == 0x200e ||
           character == 0x200f || (character >= 0x2028 && character <= 0x202e) ||
           (character >= 0x2066 && character <= 0x2069);
}

static const char *ascii_spelling(uint32_t character) {
    switch (character) {
    case 0x2026:
        return "...";
    case 0x2013:
    case 0x2014:
        return "-";
    case 0x00d7:
        return "x";
    case 0x2192:
        return "->";
    default:
        return "?";
    }
}

size_t karst_clean(const char *text, size_t size, bool unicode, bool newlines, char *clean) {
    size_t used = 0;
    for (size_t i = 0; i < size;) {
        uint32_t character = 0;
        size_t length = karst_utf8_decode(text + i, size - i, &character);
        if (length == 0 || (is_control(character) && !(newlines && character == '\n'))) {
            clean[used++] = '?';
            i += length ? length : 1;
        } else if (length > 1 && !unicode) {
            for (const char *letter = ascii_spelling(character); *letter; letter++) {
                clean[used++] = *letter;
            }
            i += length;
        } else {
            memmove(clean + used, text + i, length);
            used += length;
            i += length;
        }
    }
    return used;
}

void karst_clean_line(char *text) {
    text[karst_clean(text, strlen(text), true, false, text)] = 0; /* as UTF-8 it does not grow */
}

size_t karst_columns(const char *text, size_t size) {
    size_t columns = 0;
    for (size_t i = 0; i < size; i++) {
        columns += ((unsigned char)text[i] & 0xc0) != 0x80;
    }
    return columns;
}
