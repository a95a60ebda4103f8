#include <string.h>

#include "error.h"
#include "trap_spec.h"

bool karst_trap_from_text(const char *text, void *trap, size_t trap_bytes, struct karst_error *error) {
    struct karst_trap parsed;
    char why[300];
    if (trap_bytes != sizeof parsed) {
        return karst_fail(error, KARST_ERROR_USAGE, "a trap has %zu bytes, not %zu", sizeof parsed,
                          trap_bytes);
    }
    if (!karst_trap_parse(text, &parsed, why, sizeof why)) {
        return karst_fail(error, KARST_ERROR_USAGE, "%s", why);
    }
    memcpy(trap, &parsed, sizeof parsed);
    return true;
}

bool karst_why_to_text(const void *why, size_t why_bytes, char *text, size_t text_bytes,
                       struct karst_error *error) {
    struct karst_why record;
    if (why_bytes < sizeof record || text_bytes == 0) {
        return karst_fail(error, KARST_ERROR_USAGE, "a record of a stop has %zu bytes, not %zu",
                          sizeof record, why_bytes);
    }
    memcpy(&record, why, sizeof record);
    if (record.magic != KARST_WHY_MAGIC) {
        return karst_fail(error, KARST_ERROR_FORMAT, "no record of a stop: its first word is 0x%llx",
                          (unsigned long long)record.magic);
    }
    struct karst_line line = {text, text_bytes, 0};
    text[0] = '\0';
    karst_why_describe(&record, &line, NULL);
    return true;
}
