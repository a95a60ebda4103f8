/* Numbers as people read them. */
#include <inttypes.h>
#include <stdio.h>

#include "writer.h"

struct karst_text karst_count_text(uint64_t count) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, count);
    struct karst_text result;
    size_t used = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            result.text[used++] = ',';
        }
        result.text[used++] = digits[i];
    }
    result.text[used] = '\0';
    return result;
}

struct karst_text karst_size_text(const struct karst_writer *writer, uint64_t size) {
    static const char *const units[] = {"KB", "MB", "GB", "TB", "PB", "EB"};
    if (writer->exact) {
        return karst_count_text(size);
    }
    struct karst_text result;
    if (size < 1024) {
        snprintf(result.text, sizeof result.text, "%" PRIu64 " B", size);
        return result;
    }
    double value = (double)size / 1024;
    size_t unit = 0;
    /* 1023.95 would be shown as 1024.0. */
    while (value >= 1023.95 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        unit++;
    }
    snprintf(result.text, sizeof result.text, "%.1f %s", value, units[unit]);
    return result;
}

struct karst_text karst_share_text(uint64_t part, uint64_t whole) {
    struct karst_text result = {"-"};
    if (whole == 0) {
        return result;
    }
    double percent = 100 * (double)part / (double)whole;
    if (part == 0) {
        snprintf(result.text, sizeof result.text, "0 %%");
    } else if (percent < 0.1) {
        snprintf(result.text, sizeof result.text, "<0.1 %%");
    } else if (percent < 10) {
        snprintf(result.text, sizeof result.text, "%.1f %%", percent);
    } else {
        snprintf(result.text, sizeof result.text, "%.0f %%", percent);
    }
    return result;
}

const char *karst_plural(uint64_t count) {
    return count == 1 ? "" : "s";
}
