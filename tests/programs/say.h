/* How the programs under test speak. */
#ifndef KARST_TEST_SAY_H
#define KARST_TEST_SAY_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* By write(): printf(), and even dprintf(), have a buffer in the heap. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (write(1, text, (size_t)size) != size) {
        exit(1);
    }
}

#endif
