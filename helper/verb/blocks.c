#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block_row.h"
#include "filter.h"
#include "largest.h"
#include "verb.h"
#include "verbs.h"

enum {
    OPTION_STATE,
    OPTION_SIZE,
    OPTION_ARENA,
    OPTION_BIN,
    OPTION_REQUEST,
    OPTION_WORD,
    OPTION_FROM,
    OPTION_TO,
    OPTION_LIMIT,
    OPTION_SKIP,
    OPTION_ALL,
    OPTION_SORT
};

static const struct karst_verb_option options[] = {
    [OPTION_STATE] = {"state", 's', KARST_VALUE_STATE, "STATE",
                      "only blocks that are live, free, cached, top, metadata or unknown", NULL},
    [OPTION_SIZE] = {"size", 0, KARST_VALUE_RANGE, "MIN:MAX",
                     "only blocks of this size, header included: 64, 1M:, :4K, 64:128", NULL},
    [OPTION_ARENA] = {"arena", 'A', KARST_VALUE_ARENA, "ARENA",
                      "only blocks of this arena (name, index or address; mapped: own mappings)", NULL},
    [OPTION_BIN] = {"bin", 0, KARST_VALUE_BIN, "BIN", "only blocks in this bin, or in bins of this kind",
                    NULL},
    [OPTION_REQUEST] = {"request", 0, KARST_VALUE_SIZE, "N", "only blocks as large as malloc(N) makes them",
                        NULL},
    [OPTION_WORD] = {"first-word", 0, KARST_VALUE_ADDRESS, "VALUE",
                     "only blocks that begin with this word: objects of one class with the address of its "
                     "vtable",
                     NULL},
    [OPTION_FROM] = {"from", 0, KARST_VALUE_ADDRESS, "ADDRESS", "only blocks that reach beyond ADDRESS",
                     NULL},
    [OPTION_TO] = {"to", 0, KARST_VALUE_ADDRESS, "ADDRESS", "only blocks that begin before ADDRESS", NULL},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N blocks (20)", NULL},
    [OPTION_SKIP] = {"skip", 0, KARST_VALUE_COUNT, "N", "leave out the first N", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all; with --json one object a line", NULL},
    [OPTION_SORT] = {"sort", 0, KARST_VALUE_TEXT, "KEY", "the lowest address first, or the largest size",
                     "address|size"},
    {0},
};

#define DEFAULT_LIMIT 20
#define SORT_MAX      1000000 /* blocks that --sort size keeps */
#define LIST_MAX      100000  /* blocks in one JSON object */
#define FLUSH_ROWS    1000

struct listing {
    struct karst_call *call;
    struct karst_filter filter;
    struct karst_largest largest; /* for --sort size */
    bool by_size;
    uint64_t skip, limit;
    uint64_t passed, shown;
    struct karst_table *table; /* text */
    json_t *list;              /* JSON, bounded */
    struct karst_block_lines lines;
    struct karst_site_names sites; /* text */
    bool as_lines;                 /* JSON, unbounded */
};

static bool arena_passes(void *context, const struct karst_heap *heap, uint32_t arena) {
    const struct listing *listing = context;
    return karst_arena_matches(heap, arena, listing->call->options[OPTION_ARENA].text);
}

static bool bin_passes(void *context, const struct karst_heap *heap, uint32_t bin) {
    const struct listing *listing = context;
    return karst_bin_matches(heap, bin, listing->call->options[OPTION_BIN].text);
}

static void show(struct listing *listing, const struct karst_block *block) {
    struct karst_call *call = listing->call;
    if (listing->as_lines) {
        karst_block_line(&listing->lines, &call->writer, block);
    } else if (listing->list) {
        karst_json_append(&call->writer, listing->list, karst_block_json(call, block));
    } else {
        karst_block_row(call, listing->table, &listing->sites, block);
        if (listing->shown % FLUSH_ROWS == FLUSH_ROWS - 1) {
            karst_table_flush(listing->table);
        }
    }
    listing->shown++;
    call->last_address = block->address;
}

static bool take_block(void *context, const struct karst_block *block) {
    struct listing *listing = context;
    if (listing->by_size) {
        karst_largest_offer(&listing->largest, block);
    } else if (listing->passed++ >= listing->skip && listing->shown < listing->limit) {
        show(listing, block);
    }
    return !listing->call->writer.closed;
}

static void set_filter(struct listing *listing) {
    const struct karst_value *values = listing->call->options;
    struct karst_filter *filter = &listing->filter;
    karst_filter_open(filter, listing->call->session);
    filter->context = listing;
    filter->block = take_block;
    filter->block_context = listing;
    filter->arena = values[OPTION_ARENA].given ? arena_passes : NULL;
    filter->bin = values[OPTION_BIN].given ? bin_passes : NULL;
    if (values[OPTION_STATE].given) {
        filter->states = 1u << values[OPTION_STATE].number;
    }
    if (values[OPTION_SIZE].given) {
        filter->smallest = values[OPTION_SIZE].number;
        filter->largest = values[OPTION_SIZE].greatest;
    }
    filter->by_request = values[OPTION_REQUEST].given;
    filter->request = values[OPTION_REQUEST].number;
    filter->by_word = values[OPTION_WORD].given;
    filter->word = values[OPTION_WORD].number;
    if (values[OPTION_FROM].given) {
        filter->from = values[OPTION_FROM].number;
    }
    if (values[OPTION_TO].given) {
        filter->to = values[OPTION_TO].number;
    }
}

/* What stands in the way of the options given together. */
static bool check_options(struct karst_call *call) {
    const struct karst_value *values = call->options;
    const char *sort = values[OPTION_SORT].text;
    bool by_size = sort && strcmp(sort, "size") == 0;
    if (values[OPTION_ALL].given && values[OPTION_LIMIT].given) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--all and --limit contradict each other");
    }
    if (by_size && values[OPTION_ALL].given) {
        return karst_fail(call->error, KARST_ERROR_USAGE,
                          "--all lists in address order; with --sort size give --limit N");
    }
    if (by_size && (values[OPTION_LIMIT].number > SORT_MAX || values[OPTION_SKIP].number > SORT_MAX)) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--sort size keeps %s blocks at most",
                          karst_count_text(SORT_MAX).text);
    }
    if (call->json && values[OPTION_LIMIT].number > LIST_MAX) {
        return karst_fail(call->error, KARST_ERROR_USAGE,
                          "--json lists %s blocks at most; --json --all writes them line by line",
                          karst_count_text(LIST_MAX).text);
    }
    if (values[OPTION_FROM].given && values[OPTION_TO].given &&
        values[OPTION_FROM].number >= values[OPTION_TO].number) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--from has to lie below --to");
    }
    return karst_call_check_arena(call, &values[OPTION_ARENA]) &&
           karst_call_check_bin(call, &values[OPTION_BIN]);
}

static bool open_listing(struct listing *listing) {
    struct karst_call *call = listing->call;
    const struct karst_value *values = call->options;
    set_filter(listing);
    listing->by_size = values[OPTION_SORT].given && strcmp(values[OPTION_SORT].text, "size") == 0;
    listing->skip = values[OPTION_SKIP].number;
    listing->limit = values[OPTION_ALL].given     ? UINT64_MAX
                     : values[OPTION_LIMIT].given ? values[OPTION_LIMIT].number
                                                  : DEFAULT_LIMIT;
    listing->as_lines = call->json && values[OPTION_ALL].given;
    if (listing->as_lines) {
        return karst_block_lines_open(&listing->lines, call->session);
    }
    if (call->json) {
        listing->list = karst_json_array(&call->writer);
    } else {
        listing->table = karst_block_table(call);
    }
    return !listing->by_size || karst_largest_open(&listing->largest, listing->skip + listing->limit);
}

static void write_footer(struct listing *listing) {
    struct karst_writer *writer = &listing->call->writer;
    const struct karst_filter *filter = &listing->filter;
    if (filter->matched == 0) {
        karst_print(writer, "no such block\n");
        return;
    }
    karst_print(writer, "%s of %s block%s shown, %s in all", karst_count_text(listing->shown).text,
                karst_count_text(filter->matched).text, karst_plural(filter->matched),
                karst_size_text(writer, filter->matched_bytes).text);
    if (listing->shown && listing->skip + listing->shown < filter->matched) {
        karst_print(writer, "; --skip %" PRIu64 " goes on", listing->skip + listing->shown);
    }
    karst_print(writer, "\n");
}

static void finish(struct listing *listing) {
    struct karst_call *call = listing->call;
    struct karst_writer *writer = &call->writer;
    if (listing->by_size) {
        karst_largest_sort(&listing->largest);
        for (size_t i = listing->skip; i < listing->largest.count; i++) {
            show(listing, &listing->largest.blocks[i]);
        }
    }
    if (listing->list) {
        json_t *root = karst_json_object(writer);
        karst_json_set(writer, root, "blocks", listing->list);
        listing->list = NULL;
        karst_json_set_number(writer, root, "shown", listing->shown);
        karst_json_set_number(writer, root, "skipped",
                              listing->skip < listing->filter.matched ? listing->skip
                                                                      : listing->filter.matched);
        karst_json_set_number(writer, root, "matched", listing->filter.matched);
        karst_json_set_number(writer, root, "matched_bytes", listing->filter.matched_bytes);
        karst_call_write_json(call, root);
    } else if (!listing->as_lines) {
        karst_table_close(listing->table);
        listing->table = NULL;
        write_footer(listing);
    }
}

static bool run(struct karst_call *call) {
    if (!check_options(call)) {
        return false;
    }
    struct listing listing = {.call = call, .sites = {.session = call->session}};
    bool done = open_listing(&listing) || karst_fail_memory(call->error);
    done = done && karst_filter_walk(&listing.filter, call->error);
    if (done) {
        finish(&listing);
    }
    karst_table_close(listing.table);
    json_decref(listing.list);
    karst_largest_close(&listing.largest);
    karst_block_lines_close(&listing.lines);
    karst_site_names_close(&listing.sites);
    karst_filter_close(&listing.filter);
    return done;
}

const struct karst_verb karst_verb_blocks = {
    .name = "blocks",
    .group = KARST_GROUP_BLOCKS,
    .summary = "blocks, filtered by state, size, arena, bin or address",
    .help =
        "One row for each block, in the order of their addresses: the address that the program holds (or "
        "held), the bytes it takes with its header, the bytes the program may use, and for a block that "
        "was freed the bin it is in. Without --all only the first are shown, but all that match are "
        "counted. In a program started with `karst run --mark` rows of live blocks also say what was asked "
        "for and where.\n"
        "\n"
        "--json --all writes one object a line, {\"address\", \"size\", \"usable\", \"state\", "
        "\"allocator\", \"arena\", \"bin\"}, for millions of blocks; --json alone one object with a "
        "bounded list.",
    .json = "{\"blocks\": [...], \"shown\", \"skipped\", \"matched\", \"matched_bytes\", \"target\"}; with "
            "--all one "
            "block a line and nothing else. A block: {\"address\", \"size\", \"usable\", \"state\", "
            "\"allocator\", \"arena\", \"bin\"}; arena and bin are null where it has none. In a program "
            "started with `karst run --mark` a block also has \"requested\" (bytes asked for), "
            "\"site\" and \"sequence\" (it rises with time), null where it is not live or not marked.",
    .options = options,
    .needs = KARST_NEEDS_BINS,
    .run = run,
};
