#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "best.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_CLASSES, OPTION_ARENA, OPTION_SORT, OPTION_LIMIT, OPTION_ALL };

#define DEFAULT_LIMIT 20
#define SORT_MAX      1000000 /* runs that --sort free keeps */
#define FLUSH_ROWS    1000
#define CLASSES_MAX   2048 /* rows of --classes; a damaged heap may make up any number of sizes */

static const struct karst_verb_argument arguments[] = {
    {"BIN", KARST_VALUE_BIN, false,
     "only runs of this class: a size, a bin, or a kind (slab, run, pool, large, dirty ...)"},
    {0},
};

static const struct karst_verb_option options[] = {
    [OPTION_CLASSES] = {"classes", 0, KARST_VALUE_FLAG, NULL, "one row a kind and class, not a run", NULL},
    [OPTION_ARENA] = {"arena", 'A', KARST_VALUE_ARENA, "ARENA",
                      "only runs of this arena (name, index or address)", NULL},
    [OPTION_SORT] = {"sort", 0, KARST_VALUE_TEXT, "KEY",
                     "the lowest address first, or the most free bytes in regions", "address|free"},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N runs (20)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all; with --json one object a line", NULL},
    {0},
};

/* All runs of one kind and class. */
struct class_row {
    const char *kind;
    uint64_t region_size;
    uint16_t heap;
    uint64_t runs, bytes, regions, live, cached, free, own, damaged;
};

struct listing {
    struct karst_call *call;
    bool by_free, classes;
    bool as_lines; /* JSON, unbounded */
    uint64_t limit;
    uint64_t matched, matched_bytes, shown, other_classes;
    struct class_row total;
    struct class_row *rows;
    size_t row_count;
    bool out_of_memory;
    struct karst_best best; /* for --sort free */
    struct karst_table *table;
    json_t *list;
};

/* ---- which ---------------------------------------------------------------------------------------- */

static bool is_wanted(const struct karst_call *call, const struct karst_page_run *run) {
    const struct karst_heap *heap = call->session->heaps[run->heap];
    const struct karst_value *bin = &call->arguments[0], *arena = &call->options[OPTION_ARENA];
    struct karst_value size;
    if (arena->given && !karst_arena_matches(heap, run->arena, arena->text)) {
        return false;
    }
    return !bin->given || strcmp(bin->text, run->kind) == 0 || karst_bin_matches(heap, run->bin, bin->text) ||
           (karst_parse_value(KARST_VALUE_SIZE, bin->text, &size, NULL) && size.number == run->region_size);
}

/* Nothing matched: is it a word that can't match in any heap like this? */
static bool check_word(struct karst_call *call) {
    static const char *const kinds[] = {"slab",  "run",      "pool",   "large",  "dirty", "muzzy",
                                        "clean", "retained", "header", "moving", "held",  "damaged"};
    const struct karst_value *bin = &call->arguments[0];
    struct karst_value size;
    if (!bin->given || karst_parse_value(KARST_VALUE_SIZE, bin->text, &size, NULL)) {
        return true;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(bin->text, kinds[i]) == 0) {
            return true;
        }
    }
    return karst_call_check_bin(call, bin);
}

/* ---- rows ----------------------------------------------------------------------------------------- */

static void write_fill(struct karst_table *table, uint64_t used, uint64_t regions) {
    if (regions) {
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_share_text(used, regions).text);
    } else {
        karst_table_empty(table);
    }
}

static void write_counts(struct karst_table *table, uint64_t region_size, uint64_t regions, uint64_t live,
                         uint64_t cached, uint64_t unused) {
    if (regions == 0) {
        for (int i = 0; i < 6; i++) {
            karst_table_empty(table);
        }
        return;
    }
    karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_count_text(region_size).text);
    karst_table_count(table, regions);
    karst_table_count(table, live);
    karst_table_count(table, cached);
    karst_table_count(table, unused);
    write_fill(table, live, regions);
}

static void write_run(struct listing *listing, const struct karst_page_run *run) {
    struct karst_table *table = listing->table;
    karst_table_address(table, run->address);
    karst_table_size(table, run->size);
    karst_table_text(table, run->regions ? KARST_STYLE_PLAIN : KARST_STYLE_DIM, "%s", run->kind);
    write_counts(table, run->region_size, run->regions, run->live, run->cached, run->free);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     karst_arena_text(listing->call->session, run->heap, run->arena).text);
    karst_table_text(table, KARST_STYLE_BAD, "%s", run->damaged ? "damaged" : "");
    if (listing->shown % FLUSH_ROWS == FLUSH_ROWS - 1) {
        karst_table_flush(table);
    }
}

static json_t *run_json(struct listing *listing, const struct karst_page_run *run) {
    struct karst_writer *writer = &listing->call->writer;
    const struct karst_heap *heap = listing->call->session->heaps[run->heap];
    json_t *one = karst_json_object(writer);
    karst_json_set_address(writer, one, "address", run->address);
    karst_json_set_number(writer, one, "size", run->size);
    karst_json_set_text(writer, one, "kind", run->kind);
    karst_json_set_number(writer, one, "region_size", run->region_size);
    karst_json_set_known_address(writer, one, "first_region", run->regions ? run->first_region : 0);
    karst_json_set_known_address(writer, one, "header", run->header);
    karst_json_set_number(writer, one, "regions", run->regions);
    karst_json_set_number(writer, one, "live", run->live);
    karst_json_set_number(writer, one, "cached", run->cached);
    karst_json_set_number(writer, one, "free", run->free);
    karst_json_set_number(writer, one, "own", run->own);
    karst_json_set_flag(writer, one, "damaged", run->damaged);
    karst_json_set_text(writer, one, "allocator", heap->name);
    karst_json_set_text(writer, one, "arena",
                        run->arena < heap->arena_count ? heap->arenas[run->arena].name : NULL);
    karst_json_set_text(writer, one, "bin", run->bin < heap->bin_count ? heap->bins[run->bin].name : NULL);
    return one;
}

static void show(struct listing *listing, const struct karst_page_run *run) {
    if (listing->as_lines) {
        karst_json_write(&listing->call->writer, run_json(listing, run));
    } else if (listing->list) {
        karst_json_append(&listing->call->writer, listing->list, run_json(listing, run));
    } else {
        write_run(listing, run);
    }
    listing->shown++;
    listing->call->last_address = run->regions ? run->first_region : run->address;
}

/* ---- counting ------------------------------------------------------------------------------------- */

static void add_to_row(struct class_row *row, const struct karst_page_run *run) {
    row->runs++;
    row->bytes += run->size;
    row->regions += run->regions;
    row->live += run->live;
    row->cached += run->cached;
    row->free += run->free;
    row->own += run->own;
    row->damaged += run->damaged;
}

static void add_to_class(struct listing *listing, const struct karst_page_run *run) {
    struct class_row *row = NULL;
    for (size_t i = 0; i < listing->row_count && !row; i++) {
        struct class_row *of = &listing->rows[i];
        if (of->region_size == run->region_size && of->heap == run->heap &&
            strcmp(of->kind, run->kind) == 0) {
            row = of;
        }
    }
    if (!row && listing->row_count == CLASSES_MAX) {
        listing->other_classes++;
        return;
    }
    if (!row) {
        struct class_row *rows = realloc(listing->rows, (listing->row_count + 1) * sizeof *rows);
        if (!rows) {
            listing->out_of_memory = true;
            return;
        }
        listing->rows = rows;
        row = &rows[listing->row_count++];
        *row = (struct class_row){.kind = run->kind, .region_size = run->region_size, .heap = run->heap};
    }
    add_to_row(row, run);
}

static bool take_run(void *context, const struct karst_page_run *run) {
    struct listing *listing = context;
    if (!is_wanted(listing->call, run)) {
        return true;
    }
    listing->matched++;
    listing->matched_bytes += run->size;
    add_to_row(&listing->total, run);
    if (listing->classes) {
        add_to_class(listing, run);
    } else if (listing->by_free) {
        uint64_t bytes = run->free * run->region_size;
        struct karst_page_run *kept = bytes ? karst_best_offer(&listing->best, bytes) : NULL;
        if (kept) {
            *kept = *run;
        }
    } else if (listing->shown < listing->limit) {
        show(listing, run);
    }
    return !listing->call->writer.closed && !listing->out_of_memory;
}

/* ---- classes -------------------------------------------------------------------------------------- */

static int compare_rows(const void *a, const void *b) {
    const struct class_row *x = a, *y = b;
    if (x->heap != y->heap) {
        return x->heap < y->heap ? -1 : 1;
    }
    int kinds = strcmp(x->kind, y->kind);
    if (kinds) {
        return kinds;
    }
    return x->region_size < y->region_size ? -1 : x->region_size > y->region_size;
}

static void write_classes(struct listing *listing) {
    static const struct karst_column columns[] = {{"kind", KARST_LEFT},
                                                  {"runs", KARST_RIGHT | KARST_NEED_4},
                                                  {"size", KARST_RIGHT | KARST_NEED_7},
                                                  {"class", KARST_RIGHT},
                                                  {"regions", KARST_RIGHT | KARST_NEED_6},
                                                  {"live", KARST_RIGHT},
                                                  {"cached", KARST_RIGHT | KARST_NEED_8},
                                                  {"free", KARST_RIGHT | KARST_NEED_5},
                                                  {"fill", KARST_RIGHT},
                                                  {"", KARST_LEFT}};
    struct karst_table *table = karst_table_open(&listing->call->writer, columns, 10);
    for (size_t i = 0; i < listing->row_count; i++) {
        const struct class_row *row = &listing->rows[i];
        karst_table_text(table, row->regions ? KARST_STYLE_PLAIN : KARST_STYLE_DIM, "%s", row->kind);
        karst_table_count(table, row->runs);
        karst_table_size(table, row->bytes);
        write_counts(table, row->region_size, row->regions, row->live, row->cached, row->free);
        karst_table_text(table, KARST_STYLE_BAD, "%s", row->damaged ? "damaged" : "");
    }
    karst_table_close(table);
}

static void set_counts(struct karst_writer *writer, json_t *one, const struct class_row *row) {
    karst_json_set_number(writer, one, "runs", row->runs);
    karst_json_set_number(writer, one, "bytes", row->bytes);
    karst_json_set_number(writer, one, "regions", row->regions);
    karst_json_set_number(writer, one, "live", row->live);
    karst_json_set_number(writer, one, "cached", row->cached);
    karst_json_set_number(writer, one, "free", row->free);
    karst_json_set_number(writer, one, "own", row->own);
    karst_json_set_number(writer, one, "damaged", row->damaged);
}

static json_t *classes_json(struct listing *listing) {
    struct karst_writer *writer = &listing->call->writer;
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < listing->row_count; i++) {
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "allocator",
                            listing->call->session->heaps[listing->rows[i].heap]->name);
        karst_json_set_text(writer, one, "kind", listing->rows[i].kind);
        karst_json_set_number(writer, one, "region_size", listing->rows[i].region_size);
        set_counts(writer, one, &listing->rows[i]);
        karst_json_append(writer, list, one);
    }
    return list;
}

/* ---- the verb ------------------------------------------------------------------------------------- */

static void write_footer(struct listing *listing) {
    struct karst_writer *writer = &listing->call->writer;
    const struct class_row *total = &listing->total;
    if (listing->matched == 0) {
        karst_print(writer, "no such run\n");
        return;
    }
    bool rows = !listing->classes;
    karst_print(writer, "%s%s%s run%s%s, %s in all; %s of %s regions live, %s cached, %s free",
                rows ? karst_count_text(listing->shown).text : "", rows ? " of " : "",
                karst_count_text(listing->matched).text, karst_plural(listing->matched), rows ? " shown" : "",
                karst_size_text(writer, listing->matched_bytes).text, karst_count_text(total->live).text,
                karst_count_text(total->regions).text, karst_count_text(total->cached).text,
                karst_count_text(total->free).text);
    if (total->own) {
        karst_print(writer, ", %s the allocator's own", karst_count_text(total->own).text);
    }
    karst_print(writer, "\n");
    if (listing->other_classes) {
        karst_print_styled(writer, KARST_STYLE_WARNING, "%s runs of further classes: see check\n",
                           karst_count_text(listing->other_classes).text);
    }
}

static void finish(struct listing *listing) {
    struct karst_call *call = listing->call;
    struct karst_writer *writer = &call->writer;
    if (listing->by_free) {
        karst_best_sort(&listing->best);
        for (size_t i = 0; i < listing->best.count; i++) {
            show(listing, karst_best_item(&listing->best, i));
        }
    }
    if (listing->row_count) {
        qsort(listing->rows, listing->row_count, sizeof *listing->rows, compare_rows);
    }
    if (listing->as_lines) {
        return;
    }
    if (!call->json) {
        karst_table_close(listing->table);
        listing->table = NULL;
        if (listing->classes) {
            write_classes(listing);
        }
        write_footer(listing);
        return;
    }
    json_t *root = karst_json_object(writer), *total = karst_json_object(writer);
    if (listing->classes) {
        karst_json_set(writer, root, "classes", classes_json(listing));
    } else {
        karst_json_set(writer, root, "runs", listing->list);
        listing->list = NULL;
        karst_json_set_number(writer, root, "shown", listing->shown);
    }
    karst_json_set_number(writer, root, "matched", listing->matched);
    set_counts(writer, total, &listing->total);
    karst_json_set(writer, root, "total", total);
    karst_call_write_json(call, root);
}

static bool walk(struct listing *listing) {
    const struct karst *session = listing->call->session;
    bool any = false;
    for (size_t i = 0; i < session->heap_count; i++) {
        struct karst_heap *heap = session->heaps[i];
        any |= heap->allocator->runs != NULL;
        if (heap->allocator->runs && !heap->allocator->runs(heap, take_run, listing, listing->call->error)) {
            return false;
        }
    }
    if (!any) {
        return karst_fail(listing->call->error, KARST_ERROR_NOT_FOUND,
                          "no allocator here keeps page runs: glibc's blocks stand one behind the other, see "
                          "blocks and holes");
    }
    return !listing->out_of_memory || karst_fail_memory(listing->call->error);
}

static bool open_listing(struct listing *listing) {
    static const struct karst_column columns[] = {{"address", KARST_LEFT},
                                                  {"size", KARST_RIGHT},
                                                  {"kind", KARST_LEFT | KARST_NEED_6},
                                                  {"class", KARST_RIGHT},
                                                  {"regions", KARST_RIGHT | KARST_NEED_8},
                                                  {"live", KARST_RIGHT},
                                                  {"cached", KARST_RIGHT | KARST_NEED_7},
                                                  {"free", KARST_RIGHT | KARST_NEED_5},
                                                  {"fill", KARST_RIGHT | KARST_NEED_4},
                                                  {"arena", KARST_LEFT | KARST_SPARE},
                                                  {"", KARST_LEFT}};
    struct karst_call *call = listing->call;
    const struct karst_value *values = call->options;
    listing->classes = values[OPTION_CLASSES].given;
    listing->by_free = values[OPTION_SORT].given && strcmp(values[OPTION_SORT].text, "free") == 0;
    listing->limit = values[OPTION_ALL].given     ? UINT64_MAX
                     : values[OPTION_LIMIT].given ? values[OPTION_LIMIT].number
                                                  : DEFAULT_LIMIT;
    if (values[OPTION_ALL].given && values[OPTION_LIMIT].given) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--all and --limit contradict each other");
    }
    if (listing->by_free && (values[OPTION_ALL].given || listing->limit > SORT_MAX)) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "with --sort free give --limit N, %s at most",
                          karst_count_text(SORT_MAX).text);
    }
    if (!karst_call_check_arena(call, &values[OPTION_ARENA])) {
        return false;
    }
    karst_best_open(&listing->best, sizeof(struct karst_page_run), listing->by_free ? listing->limit : 0);
    listing->as_lines = call->json && values[OPTION_ALL].given && !listing->classes;
    if (listing->as_lines) {
        return true;
    }
    if (call->json) {
        listing->list = karst_json_array(&call->writer);
    } else if (!listing->classes) {
        listing->table = karst_table_open(&call->writer, columns, sizeof columns / sizeof *columns);
    }
    return true;
}

static bool run(struct karst_call *call) {
    struct listing listing = {.call = call};
    bool done = open_listing(&listing) && walk(&listing);
    done = done && (!listing.best.out_of_memory || karst_fail_memory(call->error));
    done = done && (listing.matched || check_word(call));
    if (done) {
        finish(&listing);
    }
    karst_table_close(listing.table);
    json_decref(listing.list);
    karst_best_close(&listing.best);
    free(listing.rows);
    return done;
}

const struct karst_verb karst_verb_runs = {
    .name = "runs",
    .group = KARST_GROUP_BLOCKS,
    .summary = "page runs, slabs, pools: class, regions, how full",
    .help =
        "One row for each page run: whole pages that an allocator keeps together. Most are cut into "
        "regions of one class (jemalloc's runs and slabs); others hold one large block, or are unused "
        "(dirty, muzzy, retained). `free` regions are good for their class alone; `cached` ones were freed "
        "and are in a thread's cache; `fill` is the share of live ones. What is none of them the allocator "
        "has for itself: the memory of caches. With BIN only runs of that class, that bin or that kind. "
        "Without --all only the first are shown, but all that match are counted.",
    .json = "{\"runs\": [{\"address\", \"size\", \"kind\", \"region_size\", \"first_region\", \"header\" "
            "(where its count and bitmap are), \"regions\", \"live\", \"cached\", \"free\", \"own\" (the "
            "allocator's), \"damaged\", \"allocator\", "
            "\"arena\", \"bin\"}], \"shown\", "
            "\"matched\", \"total\", \"target\"}; with --classes, instead of runs and shown, \"classes\": "
            "[{\"allocator\", \"kind\", \"region_size\", \"runs\", \"bytes\", \"regions\", \"live\", "
            "\"cached\", \"free\", \"own\", \"damaged\"}]. total has the counts of all that match. --all "
            "writes one run a line and nothing else.",
    .arguments = arguments,
    .options = options,
    .needs = KARST_NEEDS_BINS,
    .run = run,
};
