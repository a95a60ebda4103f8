/* Text as printf() makes it, in memory of its own. */
#ifndef KARST_TARGET_FORMAT_H
#define KARST_TARGET_FORMAT_H

#include <stdarg.h>
#include <stdio.h>

/* As vasprintf(); NULL: no memory. The caller frees it. */
static inline char *karst_format_list(const char *format, va_list arguments) {
    char *text = NULL;
    return vasprintf(&text, format, arguments) < 0 ? NULL : text;
}

/* In a function whose last arguments are format and what belongs to it: sets text to what they say; NULL: no
 * memory. */
#define KARST_FORMAT(text, format)                                                                           \
    do {                                                                                                     \
        va_list arguments;                                                                                   \
        va_start(arguments, format);                                                                         \
        (text) = karst_format_list(format, arguments);                                                       \
        va_end(arguments);                                                                                   \
    } while (0)

#endif
