#include "table_fit.h"

#define SHORTENED      12 /* what a flexible column keeps while anything can be left out */
#define SHORTENED_MORE 8  /* and at the very last */

static size_t total_width(const struct karst_column_fit *fits, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        if (!fits[i].left_out && (fits[i].shown || i + 1 < count)) {
            total += fits[i].shown + (total ? KARST_TABLE_GAP : 0);
        }
    }
    return total;
}

static bool gives(const struct karst_column *column) {
    return karst_column_align(column) == KARST_FLEXIBLE || karst_column_align(column) == KARST_WRAPPED;
}

/* The widest flexible column gives one character; false: none can. */
static bool narrow_one(const struct karst_column *columns, struct karst_column_fit *fits, size_t count,
                       size_t least) {
    struct karst_column_fit *widest = NULL;
    for (size_t i = 0; i < count; i++) {
        if (gives(&columns[i]) && !fits[i].left_out && fits[i].shown > least &&
            (!widest || fits[i].shown > widest->shown)) {
            widest = &fits[i];
        }
    }
    if (widest) {
        widest->shown--;
    }
    return widest != NULL;
}

/* With flexible columns as wide as the limit allows, least characters at least. */
static bool try_fit(const struct karst_column *columns, struct karst_column_fit *fits, size_t count,
                    size_t limit, size_t least) {
    for (size_t i = 0; i < count; i++) {
        fits[i].shown = fits[i].width;
    }
    while (total_width(fits, count) > limit) {
        if (!narrow_one(columns, fits, count, least)) {
            return false;
        }
    }
    return true;
}

/* The least needed column that is still there goes, of several the rightmost; false: all are needed. */
static bool leave_one_out(const struct karst_column *columns, struct karst_column_fit *fits, size_t count,
                          unsigned need) {
    size_t found = count;
    for (size_t i = 0; i < count; i++) {
        unsigned than = found < count ? karst_column_need(&columns[found]) : need;
        if (!fits[i].left_out && karst_column_need(&columns[i]) >= than) {
            found = i;
        }
    }
    if (found < count) {
        fits[found].left_out = true;
    }
    return found < count;
}

bool karst_table_fit(const struct karst_column *columns, struct karst_column_fit *fits, size_t count,
                     size_t limit, bool may_leave_out) {
    if (limit == 0) {
        return try_fit(columns, fits, count, SIZE_MAX, 0);
    }
    while (may_leave_out && !try_fit(columns, fits, count, limit, SIZE_MAX) &&
           leave_one_out(columns, fits, count, KARST_SPARE)) {
    }
    do {
        if (try_fit(columns, fits, count, limit, SHORTENED)) {
            return true;
        }
    } while (may_leave_out && leave_one_out(columns, fits, count, KARST_NEED_1));
    return try_fit(columns, fits, count, limit, SHORTENED_MORE);
}
