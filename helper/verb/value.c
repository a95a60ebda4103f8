#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "verb.h"

/* The digits at text, thousands separated by commas or not, and where they end. False: none, or too many.
 */
static bool parse_digits(const char *text, uint64_t *number, const char **end) {
    int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
    const char *at = base == 16 ? text + 2 : text;
    const char *first = at;
    uint64_t value = 0;
    for (;; at++) {
        char one[2] = {*at, '\0'};
        if (*at == ',' && base == 10 && at != first && at[1] >= '0' && at[1] <= '9') {
            continue;
        }
        char *stop = NULL;
        uint64_t digit = strtoull(one, &stop, base);
        if (stop == one || *at == '-' || *at == '+' || *at == ' ') {
            break;
        }
        if (__builtin_mul_overflow(value, (uint64_t)base, &value) ||
            __builtin_add_overflow(value, digit, &value)) {
            return false;
        }
    }
    *number = value;
    *end = at;
    return at != first;
}

/* A size with its unit: "", "B", "K", "KB", "KiB" ... */
static bool parse_size(const char *text, uint64_t *size, const char **end) {
    static const char units[] = "KMGT";
    if (!parse_digits(text, size, end)) {
        return false;
    }
    if (**end == 'b' || **end == 'B') {
        ++*end;
        return true;
    }
    int upper = toupper((unsigned char)**end);
    const char *unit = upper ? strchr(units, upper) : NULL;
    if (!unit) {
        return true;
    }
    if (__builtin_mul_overflow(*size, UINT64_C(1) << (10 * (unit - units + 1)), size)) {
        return false;
    }
    ++*end;
    *end += (*end)[0] == 'i' && ((*end)[1] == 'B' || (*end)[1] == 'b');
    *end += (*end)[0] == 'B' || (*end)[0] == 'b';
    return true;
}

static bool parse_range(const char *text, struct karst_value *value) {
    const char *at = text;
    value->number = 0;
    value->greatest = UINT64_MAX;
    if (*at != ':') {
        if (!parse_size(at, &value->number, &at)) {
            return false;
        }
        if (*at == '\0') {
            value->greatest = value->number;
            return true;
        }
        if (*at != ':') {
            return false;
        }
    }
    at++;
    if (*at == '\0') {
        return at != text + 1; /* ":" alone says nothing */
    }
    return parse_size(at, &value->greatest, &at) && *at == '\0' && value->number <= value->greatest;
}

static bool parse_state(const char *text, uint64_t *state, struct karst_error *error) {
    struct karst_nearest nearest = {.word = text};
    for (enum karst_state i = 0; i < KARST_STATES; i++) {
        if (strcmp(text, karst_state_name(i)) == 0) {
            *state = i;
            return true;
        }
        karst_nearest_offer(&nearest, karst_state_name(i));
    }
    if (nearest.nearest) {
        return karst_fail(error, KARST_ERROR_USAGE, "no state '%s'; did you mean %s?", text, nearest.nearest);
    }
    return karst_fail(error, KARST_ERROR_USAGE,
                      "no state '%s'; a block is live, free, cached, top, metadata or unknown", text);
}

static bool parse_number(enum karst_value_kind kind, const char *text, struct karst_value *value,
                         struct karst_error *error) {
    const char *end = text;
    if (kind == KARST_VALUE_SIZE) {
        if (parse_size(text, &value->number, &end) && *end == '\0') {
            return true;
        }
        return karst_fail(error, KARST_ERROR_USAGE, "'%s' is no size; sizes are like 4096, 0x1000, 64K or 8M",
                          text);
    }
    if (parse_digits(text, &value->number, &end) && *end == '\0') {
        return true;
    }
    if (kind == KARST_VALUE_COUNT) {
        return karst_fail(error, KARST_ERROR_USAGE, "'%s' is no count; counts are like 100", text);
    }
    if (strspn(text, "0123456789abcdefABCDEF") == strlen(text) && *text) {
        return karst_fail(error, KARST_ERROR_USAGE, "'%s' is no address; did you mean 0x%s?", text, text);
    }
    return karst_fail(error, KARST_ERROR_USAGE, "'%s' is no address; addresses are like 0x7f0123456780",
                      text);
}

bool karst_parse_value(enum karst_value_kind kind, const char *text, struct karst_value *value,
                       struct karst_error *error) {
    *value = (struct karst_value){.given = true, .text = text};
    switch (kind) {
    case KARST_VALUE_COUNT:
    case KARST_VALUE_SIZE:
    case KARST_VALUE_ADDRESS:
        return parse_number(kind, text, value, error);
    case KARST_VALUE_RANGE:
        return parse_range(text, value) ||
               karst_fail(error, KARST_ERROR_USAGE,
                          "'%s' is no range of sizes; ranges are like 64, 64:128, 1M: or :4K", text);
    case KARST_VALUE_STATE:
        return parse_state(text, &value->number, error);
    default:
        return *text != '\0' || karst_fail(error, KARST_ERROR_USAGE, "an empty value");
    }
}
