/* Errors are values with text; see struct karst_error. */
#ifndef KARST_TARGET_ERROR_H
#define KARST_TARGET_ERROR_H

#include "karst.h"

/* Fills error (which may be NULL) with code and text. Always returns false, so that `return
 * karst_fail(...)` reads as what it is. */
bool karst_fail(struct karst_error *error, enum karst_error_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with ": " and the text of errno_value appended; EPERM and EACCES become PERMISSION, ENOENT
 * and ESRCH become NOT_FOUND, ENOMEM becomes MEMORY. */
bool karst_fail_errno(struct karst_error *error, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool karst_fail_memory(struct karst_error *error);

#ifdef __clang_analyzer__
/* Which sees one file at a time and has to be told that these return false. */
#define karst_fail(...)        ((void)(karst_fail)(__VA_ARGS__), false)
#define karst_fail_errno(...)  ((void)(karst_fail_errno)(__VA_ARGS__), false)
#define karst_fail_memory(...) ((void)(karst_fail_memory)(__VA_ARGS__), false)
#endif

#endif
