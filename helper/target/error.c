#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "clean.h"

/* What the analyzer is told of them in other files. */
#undef karst_fail
#undef karst_fail_errno
#undef karst_fail_memory

static void set_text(struct karst_error *error, enum karst_error_code code, const char *format,
                     va_list arguments) {
    error->code = code;
    vsnprintf(error->text, sizeof error->text, format, arguments);
    karst_clean_line(error->text);
}

bool karst_fail(struct karst_error *error, enum karst_error_code code, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        set_text(error, code, format, arguments);
        va_end(arguments);
    }
    return false;
}

static enum karst_error_code code_of_errno(int errno_value) {
    switch (errno_value) {
    case EPERM:
    case EACCES:
        return KARST_ERROR_PERMISSION;
    case ENOENT:
    case ESRCH:
        return KARST_ERROR_NOT_FOUND;
    case ENOMEM:
        return KARST_ERROR_MEMORY;
    default:
        return KARST_ERROR_SYSTEM;
    }
}

bool karst_fail_errno(struct karst_error *error, int errno_value, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        set_text(error, code_of_errno(errno_value), format, arguments);
        va_end(arguments);
        size_t used = strlen(error->text);
        snprintf(error->text + used, sizeof error->text - used, ": %s", strerror(errno_value));
    }
    return false;
}

bool karst_fail_memory(struct karst_error *error) {
    return karst_fail(error, KARST_ERROR_MEMORY, "out of memory");
}
