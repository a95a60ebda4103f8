#include <inttypes.h>
#include <string.h>

#include "verb.h"
#include "verbs.h"

enum { OPTION_ALL, OPTION_KIND };

/* More rows than that, and nothing asked for in particular: neighbours of one kind share a row. */
#define FOLDED_BEYOND 40

static const struct karst_verb_argument arguments[] = {
    {"ARENA", KARST_VALUE_ARENA, false, "only the bins of this arena"},
    {0},
};

static const struct karst_verb_option options[] = {
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "also those that are empty", NULL},
    [OPTION_KIND] = {"bin", 0, KARST_VALUE_BIN, "BIN",
                     "only this bin, or bins of this kind: tcache, fast, unsorted, small, large", NULL},
    {0},
};

static bool is_wanted(const struct karst_call *call, const struct karst_heap *heap, uint32_t index) {
    const struct karst_bin *bin = &heap->bins[index];
    const struct karst_value *arena = &call->arguments[0], *kind = &call->options[OPTION_KIND];
    if (arena->given && !(bin->arena != KARST_NONE && karst_arena_matches(heap, bin->arena, arena->text))) {
        return false;
    }
    if (kind->given && !karst_bin_matches(heap, index, kind->text)) {
        return false;
    }
    return call->options[OPTION_ALL].given || bin->blocks || bin->damaged;
}

static void write_owner(struct karst_table *table, const struct karst_bin *bin) {
    if (bin->owner > 0) {
        karst_table_text(table, KARST_STYLE_PLAIN, "thread %" PRId64, bin->owner);
    } else {
        karst_table_text(table, KARST_STYLE_DIM, "%s", bin->owner < 0 ? "a thread that is gone" : "");
    }
}

static void write_bin(struct karst_call *call, struct karst_table *table, const struct karst_heap *heap,
                      const struct karst_bin *bin) {
    karst_table_text(table, KARST_STYLE_SYMBOL, "%s", bin->name);
    karst_table_text(
        table, KARST_STYLE_PLAIN, "%s",
        bin->arena == KARST_NONE ? "" : karst_arena_text(call->session, heap->index, bin->arena).text);
    karst_table_size(table, bin->smallest);
    if (bin->largest == UINT64_MAX) {
        karst_table_text(table, KARST_STYLE_PLAIN, "any");
    } else {
        karst_table_size(table, bin->largest);
    }
    karst_table_count(table, bin->blocks);
    karst_table_size(table, bin->bytes);
    write_owner(table, bin);
    karst_table_text(table, KARST_STYLE_BAD, "%s", bin->damaged ? "damaged" : "");
}

/* One row for neighbours of the table that are alike: a thread's tcache, an arena's small bins. */
static bool are_alike(const struct karst_bin *bin, const struct karst_bin *other) {
    return bin->arena == other->arena && bin->owner == other->owner && strcmp(bin->kind, other->kind) == 0;
}

static void write_folded(struct karst_call *call, struct karst_table *table, const struct karst_heap *heap,
                         const struct karst_bin *bin, uint64_t lists) {
    karst_table_text(table, KARST_STYLE_SYMBOL, "%s", bin->kind);
    karst_table_text(
        table, KARST_STYLE_PLAIN, "%s",
        bin->arena == KARST_NONE ? "" : karst_arena_text(call->session, heap->index, bin->arena).text);
    karst_table_count(table, lists);
    karst_table_count(table, bin->blocks);
    karst_table_size(table, bin->bytes);
    write_owner(table, bin);
    karst_table_text(table, KARST_STYLE_BAD, "%s", bin->damaged ? "damaged" : "");
}

static void fold_heap(struct karst_call *call, struct karst_table *table, const struct karst_heap *heap) {
    struct karst_bin sum = {0};
    uint64_t lists = 0;
    for (uint32_t index = 0; index < heap->bin_count; index++) {
        const struct karst_bin *bin = &heap->bins[index];
        if (!is_wanted(call, heap, index)) {
            continue;
        }
        if (lists && !are_alike(bin, &sum)) {
            write_folded(call, table, heap, &sum, lists);
            lists = 0;
        }
        if (lists++ == 0) {
            sum = *bin;
            continue;
        }
        sum.blocks += bin->blocks;
        sum.bytes += bin->bytes;
        sum.damaged |= bin->damaged;
    }
    if (lists) {
        write_folded(call, table, heap, &sum, lists);
    }
}

static void write_folded_table(struct karst_call *call) {
    static const struct karst_column columns[] = {
        {"kind", KARST_LEFT},    {"arena", KARST_FLEXIBLE}, {"lists", KARST_RIGHT | KARST_NEED_5},
        {"blocks", KARST_RIGHT}, {"bytes", KARST_RIGHT},    {"owner", KARST_LEFT | KARST_SPARE},
        {"", KARST_LEFT},
    };
    struct karst_table *table = karst_table_open(&call->writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < call->session->heap_count; i++) {
        fold_heap(call, table, call->session->heaps[i]);
    }
    karst_table_close(table);
}

static void write_full_table(struct karst_call *call) {
    static const struct karst_column columns[] = {
        {"bin", KARST_FLEXIBLE},
        {"arena", KARST_LEFT | KARST_SPARE},
        {"from", KARST_RIGHT | KARST_NEED_4},
        {"to", KARST_RIGHT | KARST_NEED_5},
        {"blocks", KARST_RIGHT},
        {"bytes", KARST_RIGHT},
        {"owner", KARST_LEFT | KARST_SPARE},
        {"", KARST_LEFT},
    };
    struct karst_table *table = karst_table_open(&call->writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < call->session->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        for (uint32_t index = 0; index < heap->bin_count; index++) {
            if (is_wanted(call, heap, index)) {
                write_bin(call, table, heap, &heap->bins[index]);
            }
        }
    }
    karst_table_close(table);
}

static void write_text(struct karst_call *call) {
    struct karst_writer *writer = &call->writer;
    uint64_t shown = 0, hidden = 0, blocks = 0, bytes = 0;
    for (size_t i = 0; i < call->session->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        for (uint32_t index = 0; index < heap->bin_count; index++) {
            bool wanted = is_wanted(call, heap, index);
            shown += wanted;
            hidden += !wanted;
            blocks += wanted ? heap->bins[index].blocks : 0;
            bytes += wanted ? heap->bins[index].bytes : 0;
        }
    }
    bool all = call->options[OPTION_ALL].given;
    bool narrowed = call->arguments[0].given || call->options[OPTION_KIND].given;
    bool folded = !all && !narrowed && shown > FOLDED_BEYOND;
    if (folded) {
        write_folded_table(call);
    } else {
        write_full_table(call);
    }
    karst_print(writer, "%s block%s, %s, in %s bin%s", karst_count_text(blocks).text, karst_plural(blocks),
                karst_size_text(writer, bytes).text, karst_count_text(shown).text, karst_plural(shown));
    if (!all && !narrowed) {
        karst_print(writer, "; %s more are empty", karst_count_text(hidden).text);
    }
    karst_print(writer, folded ? "\neach of them: karst bins ARENA, or --bin KIND, or --all\n" : "\n");
}

static json_t *bin_json(struct karst_call *call, const struct karst_heap *heap, uint32_t index) {
    struct karst_writer *writer = &call->writer;
    const struct karst_bin *bin = &heap->bins[index];
    json_t *one = karst_json_object(writer);
    karst_json_set_text(writer, one, "name", bin->name);
    karst_json_set_text(writer, one, "kind", bin->kind);
    karst_json_set_text(writer, one, "allocator", heap->name);
    karst_json_set_text(writer, one, "arena",
                        bin->arena < heap->arena_count ? heap->arenas[bin->arena].name : NULL);
    karst_json_set(writer, one, "owner", bin->owner > 0 ? json_integer(bin->owner) : json_null());
    karst_json_set_flag(writer, one, "owner_gone", bin->owner < 0);
    karst_json_set_number(writer, one, "smallest", bin->smallest);
    karst_json_set(writer, one, "largest",
                   bin->largest > INT64_MAX ? json_null() : json_integer((json_int_t)bin->largest));
    karst_json_set_text(writer, one, "state", bin->cache ? "cached" : "free");
    karst_json_set_number(writer, one, "blocks", bin->blocks);
    karst_json_set_number(writer, one, "bytes", bin->bytes);
    karst_json_set_flag(writer, one, "damaged", bin->damaged);
    return one;
}

static void write_json(struct karst_call *call) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *list = karst_json_array(writer);
    for (size_t i = 0; i < call->session->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        for (uint32_t index = 0; index < heap->bin_count; index++) {
            if (is_wanted(call, heap, index)) {
                karst_json_append(writer, list, bin_json(call, heap, index));
            }
        }
    }
    karst_json_set(writer, root, "bins", list);
    karst_call_write_json(call, root);
}

static bool run(struct karst_call *call) {
    if (!karst_call_check_arena(call, &call->arguments[0]) ||
        !karst_call_check_bin(call, &call->options[OPTION_KIND])) {
        return false;
    }
    if (call->json) {
        write_json(call);
    } else {
        write_text(call);
    }
    return true;
}

const struct karst_verb karst_verb_bins = {
    .name = "bins",
    .group = KARST_GROUP_OVERVIEW,
    .summary = "one row a list of freed blocks: its sizes, blocks, bytes, owner",
    .help =
        "One row for each bin or cache that is not empty; more than forty are folded, neighbours of one kind "
        "into a row, unless an arena, a kind or --all is given. `from` and `to` are the sizes of the blocks "
        "it "
        "takes, headers included; `owner` is the thread a cache belongs to. `damaged` marks a list that "
        "could not be followed to its end: blocks and bytes are what was met until there, and `karst "
        "check` says what is wrong.",
    .json = "{\"bins\": [...], \"target\"}. Each bin has name (unique in its allocator), kind, allocator, "
            "arena (null: of "
            "none), owner (a thread's id, or null), owner_gone, smallest, largest (null: any), state (of its "
            "blocks: free or cached), blocks, bytes, damaged.",
    .arguments = arguments,
    .options = options,
    .needs = KARST_NEEDS_BINS,
    .run = run,
};
