/* The parts of karst.h about traps, for front ends that put them into processes. */
#include <string.h>

#include "error.h"
#include "karst.h"
#include "trap_spec.h"

bool karst_read_trap(const char *text, void *trap, size_t size, struct karst_error *error) {
    struct karst_trap parsed;
    char reason[300];
    if (size != sizeof parsed) {
        return karst_fail(error, KARST_ERROR_USAGE, "a trap has %zu bytes, not %zu", sizeof parsed, size);
    }
    if (!karst_trap_parse(text, &parsed, reason, sizeof reason)) {
        return karst_fail(error, KARST_ERROR_USAGE, "%s", reason);
    }
    memcpy(trap, &parsed, sizeof parsed);
    return true;
}

bool karst_say_why(const void *why, size_t size, char *text, size_t text_size) {
    struct karst_why said;
    if (size != sizeof said || text_size == 0) {
        return false;
    }
    memcpy(&said, why, sizeof said);
    struct karst_line line = {text, text_size, 0};
    text[0] = '\0';
    karst_why_describe(&said, &line, NULL);
    return true;
}
