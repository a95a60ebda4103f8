#include "holes.h"

#include <inttypes.h>

#include "fit_report.h"
#include "pins_report.h"
#include "verb.h"
#include "verbs.h"

#define DEFAULT_COUNT 10
#define SHOWN_PINS    5
#define BAR_WIDTH     20u

enum { OPTION_LIMIT, OPTION_FIT, OPTION_ARENA };

/* ---- text ---------------------------------------------------------------------------------------- */

static void write_headline(struct karst_call *call, const struct karst_holes *holes) {
    struct karst_writer *writer = &call->writer;
    karst_print_title(writer, "%s", call->session->target->name);
    if (holes->holes == 0) {
        karst_print(writer, "no holes\n");
        return;
    }
    bool known = holes->resident_bytes != UINT64_MAX;
    karst_print(writer, "%s hole%s, %s in all: %s free, %s cached; %s%s\n",
                karst_count_text(holes->holes).text, karst_plural(holes->holes),
                karst_size_text(writer, holes->bytes).text, karst_size_text(writer, holes->free_bytes).text,
                karst_size_text(writer, holes->cached_bytes).text,
                known ? karst_size_text(writer, holes->resident_bytes).text : "what is resident is unknown",
                known ? " resident" : "");
    if (holes->region_holes) {
        karst_print(
            writer, "%s of them, %s, are regions inside page runs: each good for its class alone (runs)\n",
            karst_count_text(holes->region_holes).text, karst_size_text(writer, holes->region_bytes).text);
    }
    if (holes->edge_free_bytes + holes->edge_cached_bytes) {
        karst_print(writer, "outside holes, at the edges of heaps: %s free, %s cached\n",
                    karst_size_text(writer, holes->edge_free_bytes).text,
                    karst_size_text(writer, holes->edge_cached_bytes).text);
    }
}

/* A bar of length eighths in BAR_WIDTH characters. */
static void write_bar(struct karst_writer *writer, struct karst_table *table, uint64_t part, uint64_t whole) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    char text[BAR_WIDTH * 3 + 4];
    size_t used = 0;
    unsigned filled = (unsigned)((double)part / (double)whole * BAR_WIDTH * 8 + 0.5);
    filled = filled == 0 && part ? 1 : filled;
    for (unsigned i = 0; i < filled / 8 && i < BAR_WIDTH; i++) {
        const char *cell = writer->output->unicode ? "█" : "#";
        while (*cell) {
            text[used++] = *cell++;
        }
    }
    const char *rest = writer->output->unicode ? eighths[filled % 8] : filled < 8 ? "." : "";
    while (*rest && filled / 8 < BAR_WIDTH) {
        text[used++] = *rest++;
    }
    text[used] = '\0';
    karst_table_text(table, KARST_STYLE_GOOD, "%s", text);
}

static void write_census(struct karst_call *call, const struct karst_holes *holes) {
    static const struct karst_column columns[] = {
        {"of size", KARST_RIGHT}, {"to", KARST_RIGHT | KARST_NEED_5},       {"holes", KARST_RIGHT},
        {"bytes", KARST_RIGHT},   {"resident", KARST_RIGHT | KARST_NEED_4}, {"", KARST_LEFT | KARST_SPARE}};
    struct karst_writer *writer = &call->writer;
    uint64_t most = 1;
    for (size_t i = 0; i < KARST_HOLE_CLASSES; i++) {
        most = holes->census[i].bytes > most ? holes->census[i].bytes : most;
    }
    karst_print(writer, "\n");
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < KARST_HOLE_CLASSES; i++) {
        const struct karst_hole_class *of = &holes->census[i];
        if (of->holes == 0) {
            continue;
        }
        karst_table_size(table, UINT64_C(1) << i);
        karst_table_size(table, (UINT64_C(2) << i) - 1);
        karst_table_count(table, of->holes);
        karst_table_size(table, of->bytes);
        karst_table_known_size(table, of->resident_bytes);
        write_bar(writer, table, of->bytes, most);
    }
    karst_table_close(table);
}

static void write_hole(struct karst_call *call, struct karst_table *table,
                       const struct karst_listed_hole *one) {
    karst_table_address(table, one->hole.start);
    karst_table_size(table, one->hole.end - one->hole.start);
    karst_table_size(table, one->hole.usable);
    karst_table_size(table, one->hole.cached_bytes);
    karst_table_known_size(table, one->resident_bytes);
    karst_table_address(table, one->before.address);
    karst_table_address(table, one->after.address);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     karst_arena_text(call->session, one->heap, one->arena).text);
    call->last_address = one->hole.start;
}

static void write_biggest(struct karst_call *call, const struct karst_holes *holes) {
    static const struct karst_column columns[] = {{"hole", KARST_LEFT},
                                                  {"size", KARST_RIGHT},
                                                  {"usable", KARST_RIGHT | KARST_NEED_6},
                                                  {"cached", KARST_RIGHT | KARST_SPARE},
                                                  {"resident", KARST_RIGHT | KARST_NEED_5},
                                                  {"block before", KARST_LEFT | KARST_NEED_7},
                                                  {"block behind", KARST_LEFT | KARST_NEED_1},
                                                  {"arena", KARST_FLEXIBLE | KARST_SPARE}};
    struct karst_writer *writer = &call->writer;
    if (holes->biggest.count == 0) {
        return;
    }
    karst_print(writer, "\n");
    karst_print_title(writer, "the biggest");
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < holes->biggest.count; i++) {
        write_hole(call, table, karst_best_item(&holes->biggest, i));
    }
    karst_table_close(table);
    if (holes->holes > holes->biggest.count) {
        karst_print(writer, "%zu of %s shown\n", holes->biggest.count, karst_count_text(holes->holes).text);
    }
}

static void write_damage(struct karst_call *call, const struct karst_holes *holes) {
    if (holes->totals.unknown_ranges) {
        karst_print_styled(&call->writer, KARST_STYLE_WARNING,
                           "\n%s damaged or missing range%s, %s, count as neither free nor live, and end "
                           "holes; see `karst check`\n",
                           karst_count_text(holes->totals.unknown_ranges).text,
                           karst_plural(holes->totals.unknown_ranges),
                           karst_size_text(&call->writer, holes->totals.unknown_bytes).text);
    }
}

static void write_text(struct karst_call *call, const struct karst_holes *holes) {
    write_headline(call, holes);
    if (holes->has_fit) {
        karst_fit_write(call, &holes->fit);
    } else {
        if (holes->holes) {
            write_census(call, holes);
            write_biggest(call, holes);
        }
        karst_print(&call->writer, "\n");
        karst_pins_write_between(call, &holes->pins);
        karst_print(&call->writer, "\n");
        karst_pins_write_tops(call, &holes->pins, 1);
        karst_print(&call->writer, "\n");
        karst_pins_write_trim(call, &holes->pins);
    }
    write_damage(call, holes);
    karst_call_write_caution(call);
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static json_t *census_json(struct karst_writer *writer, const struct karst_holes *holes) {
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < KARST_HOLE_CLASSES; i++) {
        const struct karst_hole_class *of = &holes->census[i];
        if (of->holes == 0) {
            continue;
        }
        json_t *one = karst_json_object(writer);
        karst_json_set_number(writer, one, "min", UINT64_C(1) << i);
        karst_json_set_number(writer, one, "max", (UINT64_C(2) << i) - 1);
        karst_json_set_number(writer, one, "holes", of->holes);
        karst_json_set_number(writer, one, "bytes", of->bytes);
        karst_json_set_known(writer, one, "resident_bytes", of->resident_bytes);
        karst_json_append(writer, list, one);
    }
    return list;
}

static json_t *biggest_json(struct karst_call *call, const struct karst_holes *holes) {
    struct karst_writer *writer = &call->writer;
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < holes->biggest.count; i++) {
        const struct karst_listed_hole *kept = karst_best_item(&holes->biggest, i);
        const struct karst_hole *hole = &kept->hole;
        json_t *one = karst_json_object(writer);
        karst_json_set_address(writer, one, "address", hole->start);
        karst_json_set_number(writer, one, "size", hole->end - hole->start);
        karst_json_set_number(writer, one, "blocks", kept->blocks);
        karst_json_set_number(writer, one, "free_bytes", hole->free_bytes);
        karst_json_set_number(writer, one, "cached_bytes", hole->cached_bytes);
        karst_json_set_number(writer, one, "usable_bytes", hole->usable);
        karst_json_set_known_address(writer, one, "usable_address", hole->usable ? hole->usable_start : 0);
        karst_json_set_known(writer, one, "resident_bytes", kept->resident_bytes);
        karst_json_set_address(writer, one, "before", kept->before.address);
        karst_json_set_address(writer, one, "after", kept->after.address);
        karst_json_set_text(writer, one, "arena",
                            karst_arena_text(call->session, kept->heap, kept->arena).text);
        karst_json_set_flag(writer, one, "in_run", hole->regions);
        karst_json_append(writer, list, one);
    }
    return list;
}

static void write_json(struct karst_call *call, const struct karst_holes *holes) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer);
    karst_json_set_number(writer, root, "holes", holes->holes);
    karst_json_set_number(writer, root, "bytes", holes->bytes);
    karst_json_set_number(writer, root, "free_bytes", holes->free_bytes);
    karst_json_set_number(writer, root, "cached_bytes", holes->cached_bytes);
    karst_json_set_known(writer, root, "resident_bytes", holes->resident_bytes);
    karst_json_set_number(writer, root, "largest", holes->largest);
    karst_json_set_number(writer, root, "largest_usable", holes->largest_usable);
    json_t *in_runs = karst_json_object(writer);
    karst_json_set_number(writer, in_runs, "holes", holes->region_holes);
    karst_json_set_number(writer, in_runs, "bytes", holes->region_bytes);
    karst_json_set(writer, root, "in_runs", in_runs);
    karst_json_set(writer, root, "census", census_json(writer, holes));
    karst_json_set(writer, root, "biggest", biggest_json(call, holes));
    json_t *outside = karst_json_object(writer);
    karst_json_set_number(writer, outside, "free_bytes", holes->edge_free_bytes);
    karst_json_set_number(writer, outside, "cached_bytes", holes->edge_cached_bytes);
    karst_json_set_number(writer, outside, "top_bytes", holes->totals.top_bytes);
    karst_json_set(writer, root, "outside", outside);
    json_t *damaged = karst_json_object(writer);
    karst_json_set_number(writer, damaged, "ranges", holes->totals.unknown_ranges);
    karst_json_set_number(writer, damaged, "bytes", holes->totals.unknown_bytes);
    karst_json_set(writer, root, "damaged", damaged);
    karst_pins_set_json(call, root, &holes->pins);
    if (holes->has_fit) {
        karst_json_set(writer, root, "fit", karst_fit_json(call, &holes->fit));
    }
    karst_call_write_json(call, root);
}

static bool is_wanted(void *context, const struct karst_extent *extent) {
    const struct karst_call *call = context;
    const struct karst_value *arena = &call->options[OPTION_ARENA];
    return karst_arena_matches(call->session->heaps[extent->heap], extent->arena, arena->text);
}

static bool run(struct karst_call *call) {
    const struct karst_value *count = &call->options[OPTION_LIMIT], *fit = &call->options[OPTION_FIT],
                             *arena = &call->options[OPTION_ARENA];
    struct karst_holes_options options = {.count = count->given ? count->number : DEFAULT_COUNT,
                                          .pins = SHOWN_PINS,
                                          .tops = SHOWN_PINS,
                                          .fit = fit->given,
                                          .request = fit->number,
                                          .wanted = arena->given ? is_wanted : NULL,
                                          .wanted_context = call};
    struct karst_holes holes;
    if (!karst_call_check_arena(call, arena) ||
        !karst_holes_find(call->session, &options, &holes, call->error)) {
        return false;
    }
    if (call->json) {
        write_json(call, &holes);
    } else {
        write_text(call, &holes);
    }
    karst_holes_close(&holes);
    return true;
}

static const struct karst_verb_option holes_options[] = {
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show the N biggest (10)", NULL},
    [OPTION_FIT] = {"fit", 'f', KARST_VALUE_SIZE, "SIZE",
                    "would a request of SIZE bytes fit, and if not, what is in the way", NULL},
    [OPTION_ARENA] = {"arena", 'A', KARST_VALUE_ARENA, "ARENA", "of this arena only", NULL},
    {0},
};

const struct karst_verb karst_verb_holes = {
    .name = "holes",
    .group = KARST_GROUP_HOLES,
    .summary = "holes by size, the biggest, what pins them, and whether a request would fit",
    .help =
        "A hole is a stretch of free and cached blocks between two blocks in use. Its usable size is its "
        "largest free part in one piece; cached blocks (freed, but set aside for one size class or one "
        "thread) are trapped in it. The top, what lies directly under it, and free memory at an edge of a "
        "heap are no holes. Blocks with a mapping of their own have none. Regions of one page run "
        "(jemalloc's slabs) make "
        "holes of their own, of which a region is usable; unused pages between page runs make others.\n"
        "\n"
        "`resident` is backed by memory now; `?` is what the target can't tell.\n"
        "\n"
        "With --fit, whether a request of so many bytes would fit in memory that the heap already has: the "
        "block's header and the rounding of its size count. If it does not, the nearest misses, each with "
        "the block behind it that is in the way, and how much would be in one piece without that. Cached "
        "blocks that the allocator merges before it asks the system for more (glibc's fastbins) count as "
        "free there.",
    .json = "{\"holes\", \"bytes\", \"free_bytes\", \"cached_bytes\", \"resident_bytes\", \"largest\" (size "
            "of the largest hole), \"largest_usable\", "
            "\"census\": [{\"min\", \"max\", \"holes\", \"bytes\", \"resident_bytes\"}], \"biggest\": "
            "[{\"address\", \"size\", \"blocks\", \"free_bytes\", "
            "\"cached_bytes\", \"usable_bytes\", \"usable_address\", \"resident_bytes\", \"before\", "
            "\"after\" (the blocks that bound it), \"arena\", \"in_run\"}], \"in_runs\" (those of regions "
            "inside page "
            "runs): {\"holes\", \"bytes\"}, "
            "\"outside\" (what is free but in no hole): {\"free_bytes\", \"cached_bytes\", \"top_bytes\"}, "
            "\"damaged\": {\"ranges\", \"bytes\"}, "
            "\"pins\", \"pinned\", \"trim\" (as in `pins`), \"fit\" (with --fit), \"target\"}.\n\n"
            "fit: {\"request\", \"fits\", \"fitting_places\", \"fitting_arenas\", \"best\": {\"address\", "
            "\"size\", \"state\", \"arena\"} or null, "
            "\"mapped\" (it would get a mapping of its own), \"nearest\": [MISS], \"top\": MISS or null}. "
            "MISS: {\"address\", \"size\", \"needed\" "
            "(header and rounding counted), \"short_by\", \"blocked_by\" (a block or null), "
            "\"size_without_blocker\", \"arena\"}.",
    .options = holes_options,
    .needs = KARST_NEEDS_HEAPS,
    .run = run,
};
