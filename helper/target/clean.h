/* Text from a target may hold anything; what is shown holds nothing a terminal would take for a command. */
#ifndef KARST_TARGET_CLEAN_H
#define KARST_TARGET_CLEAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one character of UTF-8 from size bytes; its length in bytes, 0: invalid there. */
size_t karst_utf8_decode(const char *text, size_t size, uint32_t *character);
/* Copies size bytes of text to clean, which has room for 3 bytes for each, and returns how many bytes were
 * written. Control characters (but newlines, if allowed) and what is no UTF-8 become '?'; without unicode
 * so does all beyond ASCII, but for a few signs that ASCII can spell. */
size_t karst_clean(const char *text, size_t size, bool unicode, bool newlines, char *clean);
/* The same in place, for text of one line that stays UTF-8. */
void karst_clean_line(char *text);
/* Columns that clean text takes on a terminal: its characters, wide ones not told apart. */
size_t karst_columns(const char *text, size_t size);

#endif
