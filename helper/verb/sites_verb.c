#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "call_site.h"
#include "sites.h"
#include "trap_spec.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_SIZE, OPTION_THREAD, OPTION_SORT, OPTION_STACKS, OPTION_LIMIT, OPTION_ALL };

#define DEFAULT_LIMIT 20

static const struct karst_verb_option options[] = {
    [OPTION_SIZE] = {"size", 0, KARST_VALUE_RANGE, "RANGE", "only blocks of these sizes, as asked for", NULL},
    [OPTION_THREAD] = {"thread", 't', KARST_VALUE_COUNT, "TID", "only blocks that this thread allocated",
                       NULL},
    [OPTION_SORT] = {"sort", 0, KARST_VALUE_TEXT, "KEY",
                     "the most bytes first (as it is), the most blocks, the oldest", "bytes|blocks|age"},
    [OPTION_STACKS] = {"stacks", 0, KARST_VALUE_FLAG, NULL, "show all frames of a site, where they were kept",
                       NULL},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N sites (20)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all", NULL},
    {0},
};

static int by_site(const struct karst_site *x, const struct karst_site *y) {
    if (x->site != y->site) {
        return x->site < y->site ? -1 : 1;
    }
    return x->function < y->function ? -1 : x->function > y->function;
}

static int by_bytes(const void *a, const void *b) {
    const struct karst_site *x = a, *y = b;
    return x->bytes != y->bytes ? (x->bytes > y->bytes ? -1 : 1) : by_site(x, y);
}

static int by_blocks(const void *a, const void *b) {
    const struct karst_site *x = a, *y = b;
    return x->blocks != y->blocks ? (x->blocks > y->blocks ? -1 : 1) : by_bytes(a, b);
}

static int by_age(const void *a, const void *b) {
    const struct karst_site *x = a, *y = b;
    return x->oldest != y->oldest ? (x->oldest < y->oldest ? -1 : 1) : by_site(x, y);
}

static size_t count_shown(const struct karst_call *call, const struct karst_sites *sites) {
    uint64_t limit = call->options[OPTION_ALL].given     ? UINT64_MAX
                     : call->options[OPTION_LIMIT].given ? call->options[OPTION_LIMIT].number
                                                         : DEFAULT_LIMIT;
    return limit < sites->count ? (size_t)limit : sites->count;
}

static void write_stack(struct karst_call *call, const struct karst_site *item) {
    struct karst_writer *writer = &call->writer;
    karst_print(writer, "%s in %s block%s from %s\n", karst_size_text(writer, item->bytes).text,
                karst_count_text(item->blocks).text, karst_plural(item->blocks),
                karst_function_name(item->function));
    karst_site_write_stack(call, item->site);
}

static void write_table(struct karst_call *call, const struct karst_marker *marker,
                        const struct karst_sites *sites, size_t shown) {
    static const struct karst_column columns[] = {{"bytes", KARST_RIGHT},
                                                  {"share", KARST_RIGHT | KARST_SPARE},
                                                  {"blocks", KARST_RIGHT},
                                                  {"largest", KARST_RIGHT | KARST_SPARE},
                                                  {"function", KARST_LEFT | KARST_SPARE},
                                                  {"site", KARST_FLEXIBLE}};
    struct karst_table *table = karst_table_open(&call->writer, columns, 6);
    for (size_t i = 0; i < shown; i++) {
        const struct karst_site *item = &sites->items[i];
        char text[400];
        karst_site_summary(marker, call->session, item->site, KARST_SYMBOL_READABLE, text, sizeof text);
        karst_table_size(table, item->bytes);
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_share_text(item->bytes, sites->bytes).text);
        karst_table_count(table, item->blocks);
        karst_table_size(table, item->largest);
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_function_name(item->function));
        karst_table_text(table, KARST_STYLE_SYMBOL, "%s", text);
    }
    karst_table_close(table);
}

static void write_text(struct karst_call *call, const struct karst_marker *marker,
                       const struct karst_sites *sites) {
    struct karst_writer *writer = &call->writer;
    size_t shown = count_shown(call, sites);
    uint64_t damaged = 0;
    if (call->options[OPTION_STACKS].given) {
        for (size_t i = 0; i < shown; i++) {
            write_stack(call, &sites->items[i]);
        }
    } else {
        write_table(call, marker, sites, shown);
    }
    for (size_t i = 0; i < sites->count; i++) {
        damaged += sites->items[i].damaged;
    }
    karst_print(writer, "%s of %s site%s shown; %s marked live block%s, %s asked for\n",
                karst_count_text(shown).text, karst_count_text(sites->count).text, karst_plural(sites->count),
                karst_count_text(sites->blocks).text, karst_plural(sites->blocks),
                karst_size_text(writer, sites->bytes).text);
    if (damaged) {
        karst_print_styled(writer, KARST_STYLE_BAD, "%s of them", karst_count_text(damaged).text);
        karst_print(writer, " %s written beyond the end; see `check`\n", damaged == 1 ? "was" : "were");
    }
    if (sites->lost) {
        karst_print_styled(writer, KARST_STYLE_BAD, "%s more block%s", karst_count_text(sites->lost).text,
                           karst_plural(sites->lost));
        karst_print(writer, " lost their marks: something was written over them; see `check`\n");
    }
}

static void write_json(struct karst_call *call, const struct karst_sites *sites) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *list = karst_json_array(writer);
    size_t shown = count_shown(call, sites);
    for (size_t i = 0; i < shown; i++) {
        const struct karst_site *item = &sites->items[i];
        json_t *one = karst_json_object(writer);
        karst_json_set(writer, one, "stack", karst_site_stack_json(call, item->site));
        karst_json_set_text(writer, one, "function", karst_function_name(item->function));
        karst_json_set_number(writer, one, "blocks", item->blocks);
        karst_json_set_number(writer, one, "bytes", item->bytes);
        karst_json_set_number(writer, one, "largest", item->largest);
        karst_json_set_address(writer, one, "sample", item->sample);
        karst_json_set_number(writer, one, "damaged", item->damaged);
        karst_json_set_number(writer, one, "oldest", item->oldest);
        karst_json_set_number(writer, one, "newest", item->newest);
        karst_json_append(writer, list, one);
    }
    karst_json_set(writer, root, "sites", list);
    karst_json_set_number(writer, root, "shown", shown);
    karst_json_set_number(writer, root, "matched", sites->count);
    karst_json_set_number(writer, root, "blocks", sites->blocks);
    karst_json_set_number(writer, root, "bytes", sites->bytes);
    karst_json_set_number(writer, root, "lost", sites->lost);
    karst_call_write_json(call, root);
}

static bool run(struct karst_call *call) {
    const struct karst_value *values = call->options;
    struct karst_marker *marker = karst_session_marker(call->session);
    if (!marker || !marker->control.map) {
        return karst_fail(
            call->error, KARST_ERROR_NOT_FOUND,
            "%s: blocks say where they come from if the program was started with `karst run --mark`",
            marker ? "no block is marked in this target" : "the preload library is not in this target");
    }
    struct karst_sites sites = {.greatest = UINT64_MAX, .thread = (int64_t)values[OPTION_THREAD].number};
    if (values[OPTION_SIZE].given) {
        sites.least = values[OPTION_SIZE].number;
        sites.greatest = values[OPTION_SIZE].greatest;
    }
    bool counted = karst_count_sites(marker, call->session, &sites, call->error);
    if (counted) {
        const char *key = values[OPTION_SORT].given ? values[OPTION_SORT].text : "bytes";
        if (sites.count) {
            qsort(sites.items, sites.count, sizeof *sites.items,
                  strcmp(key, "bytes") == 0    ? by_bytes
                  : strcmp(key, "blocks") == 0 ? by_blocks
                                               : by_age);
        }
        if (call->json) {
            write_json(call, &sites);
        } else {
            write_text(call, marker, &sites);
        }
    }
    karst_sites_clear(&sites);
    return counted;
}

const struct karst_verb karst_verb_sites = {
    .name = "sites",
    .group = KARST_GROUP_BLOCKS,
    .summary = "live bytes by call site, in a program started with `karst run --mark`",
    .help = "Where the live blocks come from: for each place in the program that called malloc or its kin, "
            "how many of "
            "its blocks are live and how many bytes they asked for. The marks that the preload library "
            "leaves in each "
            "block say it, so it works for any allocator, in a live process and in a core, without symbols "
            "too: a "
            "site is then a module and an offset.\n"
            "\n"
            "With `karst run --mark --stacks=DEPTH` sites are stacks, and --stacks shows them. Blocks that "
            "were there "
            "before marks were on are not in the sums.",
    .json =
        "{\"sites\": [{\"stack\": [{\"address\", \"text\", \"demangled\" (text, of C++ and Rust too as "
        "people read it)}] (innermost first), \"function\", \"blocks\", "
        "\"bytes\" "
        "(asked for), \"largest\", \"sample\" (address of the largest), \"damaged\" (blocks written beyond "
        "their "
        "end), \"oldest\", \"newest\" (sequence numbers)}], \"shown\", \"matched\", \"blocks\", \"bytes\", "
        "\"lost\" (live blocks whose marks were written over: in no site), \"target\"}.",
    .options = options,
    .needs = KARST_NEEDS_MEMORY,
    .run = run,
};
