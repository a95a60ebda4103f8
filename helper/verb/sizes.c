#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sizes.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_EXACT, OPTION_STATE, OPTION_ARENA, OPTION_SORT, OPTION_LIMIT, OPTION_ALL };

#define DEFAULT_LIMIT 20

static const struct karst_verb_option options[] = {
    [OPTION_EXACT] = {"exact", 'x', KARST_VALUE_FLAG, NULL,
                      "each size by itself, those with most bytes first", NULL},
    [OPTION_STATE] = {"state", 's', KARST_VALUE_STATE, "STATE", "blocks of this state (live)", NULL},
    [OPTION_ARENA] = {"arena", 'A', KARST_VALUE_ARENA, "ARENA",
                      "only blocks of this arena (name, index or address; mapped: own mappings)", NULL},
    [OPTION_SORT] = {"sort", 0, KARST_VALUE_TEXT, "KEY",
                     "the smallest size first, or the most bytes, or the most blocks", "size|bytes|blocks"},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N sizes (20 with --exact)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all", NULL},
    {0},
};

static bool arena_passes(void *context, const struct karst_heap *heap, uint32_t arena) {
    const struct karst_call *call = context;
    return karst_arena_matches(heap, arena, call->options[OPTION_ARENA].text);
}

static bool count(struct karst_call *call, struct karst_filter *filter, struct karst_sizes *sizes) {
    const struct karst_value *values = call->options;
    filter->context = call;
    filter->arena = values[OPTION_ARENA].given ? arena_passes : NULL;
    filter->states =
        1u << (values[OPTION_STATE].given ? values[OPTION_STATE].number : (uint64_t)KARST_STATE_LIVE);
    return karst_count_sizes(filter, values[OPTION_EXACT].given, sizes, call->error);
}

static int by_bytes(const void *a, const void *b) {
    const struct karst_size_class *x = a, *y = b;
    if (x->bytes != y->bytes) {
        return x->bytes > y->bytes ? -1 : 1;
    }
    return x->smallest < y->smallest ? -1 : x->smallest > y->smallest;
}

static int by_blocks(const void *a, const void *b) {
    const struct karst_size_class *x = a, *y = b;
    if (x->blocks != y->blocks) {
        return x->blocks > y->blocks ? -1 : 1;
    }
    return by_bytes(a, b);
}

/* They come sorted by size. */
static void sort_classes(const struct karst_call *call, struct karst_sizes *sizes) {
    const char *key = call->options[OPTION_SORT].given    ? call->options[OPTION_SORT].text
                      : call->options[OPTION_EXACT].given ? "bytes"
                                                          : "size";
    if (sizes->count && strcmp(key, "size") != 0) {
        qsort(sizes->classes, sizes->count, sizeof *sizes->classes,
              strcmp(key, "bytes") == 0 ? by_bytes : by_blocks);
    }
}

static size_t count_shown(const struct karst_call *call, const struct karst_sizes *sizes) {
    uint64_t limit = call->options[OPTION_LIMIT].given ? call->options[OPTION_LIMIT].number : DEFAULT_LIMIT;
    bool all = call->options[OPTION_ALL].given ||
               (!call->options[OPTION_EXACT].given && !call->options[OPTION_LIMIT].given);
    return all || limit > sizes->count ? sizes->count : (size_t)limit;
}

static void write_text(struct karst_call *call, const struct karst_filter *filter,
                       const struct karst_sizes *sizes) {
    static const struct karst_column columns[] = {{"from", KARST_RIGHT},
                                                  {"to", KARST_RIGHT},
                                                  {"blocks", KARST_RIGHT},
                                                  {"bytes", KARST_RIGHT},
                                                  {"share", KARST_RIGHT | KARST_SPARE}};
    struct karst_writer *writer = &call->writer;
    bool exact = call->options[OPTION_EXACT].given;
    const char *state = call->options[OPTION_STATE].given ? call->options[OPTION_STATE].text : "live";
    static const struct karst_column exact_columns[] = {{"size", KARST_RIGHT},
                                                        {"blocks", KARST_RIGHT},
                                                        {"bytes", KARST_RIGHT},
                                                        {"share", KARST_RIGHT | KARST_SPARE}};
    struct karst_table *table =
        exact ? karst_table_open(writer, exact_columns, 4) : karst_table_open(writer, columns, 5);
    size_t shown = count_shown(call, sizes);
    for (size_t i = 0; i < shown; i++) {
        const struct karst_size_class *class = &sizes->classes[i];
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_count_text(class->smallest).text);
        if (!exact) {
            karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_count_text(class->largest).text);
        }
        karst_table_count(table, class->blocks);
        karst_table_size(table, class->bytes);
        karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                         karst_share_text(class->bytes, filter->matched_bytes).text);
    }
    karst_table_close(table);
    if (shown < sizes->count) {
        karst_print(writer, "%s of %s sizes shown; ", karst_count_text(shown).text,
                    karst_count_text(sizes->count).text);
    }
    karst_print(writer, "%s %s block%s, %s in all\n", karst_count_text(filter->matched).text, state,
                karst_plural(filter->matched), karst_size_text(writer, filter->matched_bytes).text);
}

static void write_json(struct karst_call *call, const struct karst_filter *filter,
                       const struct karst_sizes *sizes) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *list = karst_json_array(writer);
    size_t shown = count_shown(call, sizes);
    for (size_t i = 0; i < shown; i++) {
        const struct karst_size_class *class = &sizes->classes[i];
        json_t *one = karst_json_object(writer);
        karst_json_set_number(writer, one, "min", class->smallest);
        karst_json_set_number(writer, one, "max", class->largest);
        karst_json_set_number(writer, one, "blocks", class->blocks);
        karst_json_set_number(writer, one, "bytes", class->bytes);
        karst_json_append(writer, list, one);
    }
    karst_json_set_text(writer, root, "state",
                        call->options[OPTION_STATE].given ? call->options[OPTION_STATE].text : "live");
    karst_json_set(writer, root, "sizes", list);
    karst_json_set_number(writer, root, "shown", shown);
    karst_json_set_number(writer, root, "matched", sizes->count);
    karst_json_set_number(writer, root, "blocks", filter->matched);
    karst_json_set_number(writer, root, "bytes", filter->matched_bytes);
    karst_call_write_json(call, root);
}

static bool run(struct karst_call *call) {
    if (!karst_call_check_arena(call, &call->options[OPTION_ARENA])) {
        return false;
    }
    struct karst_filter filter;
    struct karst_sizes sizes;
    karst_filter_open(&filter, call->session);
    bool counted = count(call, &filter, &sizes);
    if (counted) {
        sort_classes(call, &sizes);
        if (call->json) {
            write_json(call, &filter, &sizes);
        } else {
            write_text(call, &filter, &sizes);
        }
    }
    karst_sizes_clear(&sizes);
    karst_filter_close(&filter);
    return counted;
}

const struct karst_verb karst_verb_sizes = {
    .name = "sizes",
    .group = KARST_GROUP_BLOCKS,
    .summary = "live blocks by size class, or by exact size",
    .help = "How many live blocks there are from 16 to 31 bytes, from 32 to 63, and so on; with --exact, of "
            "each size by itself. Sizes are those of the blocks, header and rounding included: a program "
            "that asks glibc for 24 bytes gets a block of 32.",
    .json = "{\"state\", \"sizes\": [{\"min\", \"max\", \"blocks\", \"bytes\"}], \"shown\", \"matched\" (of "
            "sizes), "
            "\"blocks\", \"bytes\" (of all that match), \"target\"}. min and max are both included.",
    .options = options,
    .needs = KARST_NEEDS_HEAPS,
    .run = run,
};
