#include <inttypes.h>

#include "nested.h"
#include "rows.h"
#include "verb.h"
#include "verbs.h"

static uint64_t attached_threads(const struct karst_heap *heap) {
    uint64_t threads = 0;
    for (size_t i = 0; i < heap->arena_count; i++) {
        threads += heap->arenas[i].attached_threads;
    }
    return threads;
}

/* ---- text ---------------------------------------------------------------------------------------- */

static void write_state(struct karst_table *table, const struct karst_summary_row *row,
                        enum karst_state state) {
    const struct karst_tally *tally = &row->states[state];
    karst_table_text(table, karst_state_style(state), "%s", karst_state_name(state));
    karst_table_count(table, tally->blocks);
    karst_table_size(table, tally->bytes);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_share_text(tally->bytes, row->system_bytes).text);
    if (state == KARST_STATE_LIVE) {
        karst_table_known_size(table, karst_row_live_resident(row));
    } else if (state <= KARST_STATE_TOP) {
        karst_table_known_size(table, row->resident[state]);
    } else {
        karst_table_empty(table);
    }
}

static void write_mapped(struct karst_table *table, const struct karst_summary_row *row) {
    karst_table_text(table, KARST_STYLE_DIM, "  mapped");
    karst_table_count(table, row->mapped.blocks);
    karst_table_size(table, row->mapped.bytes);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     karst_share_text(row->mapped.bytes, row->system_bytes).text);
    karst_table_empty(table);
}

static void write_states(struct karst_writer *writer, const struct karst_summary_row *row) {
    static const struct karst_column columns[] = {{"state", KARST_LEFT},
                                                  {"blocks", KARST_RIGHT | KARST_NEED_1},
                                                  {"bytes", KARST_RIGHT},
                                                  {"share", KARST_RIGHT | KARST_SPARE},
                                                  {"resident", KARST_RIGHT}};
    static const enum karst_state order[] = {KARST_STATE_LIVE, KARST_STATE_CACHED,   KARST_STATE_FREE,
                                             KARST_STATE_TOP,  KARST_STATE_METADATA, KARST_STATE_UNKNOWN};
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    uint64_t blocks = 0;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        blocks += row->states[order[i]].blocks;
        if (order[i] <= KARST_STATE_TOP || row->states[order[i]].blocks) {
            write_state(table, row, order[i]);
        }
        if (order[i] == KARST_STATE_LIVE && row->mapped.blocks) {
            write_mapped(table, row);
        }
    }
    karst_table_text(table, KARST_STYLE_TITLE, "system");
    karst_table_count(table, blocks);
    karst_table_size(table, row->system_bytes);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     karst_share_text(row->system_bytes, row->system_bytes).text);
    karst_table_known_size(table, row->resident_bytes);
    karst_table_close(table);
    if (row->resident_bytes != UINT64_MAX) {
        karst_print_styled(writer, KARST_STYLE_DIM,
                           "resident: pages wholly free, cached or top there; all others with live\n");
    }
}

static void write_holes(struct karst_call *call, const struct karst_summary_row *row) {
    struct karst_writer *writer = &call->writer;
    if (row->holes == 0) {
        karst_print(writer, "no holes\n");
        return;
    }
    karst_print(writer, "%s hole%s of %s in all", karst_count_text(row->holes).text, karst_plural(row->holes),
                karst_size_text(writer, row->hole_bytes).text);
    if (row->largest.usable) {
        karst_print(writer, "; the largest offers %s at ", karst_size_text(writer, row->largest.usable).text);
        karst_print_address(writer, row->largest.usable_start);
    } else {
        karst_print(writer, "; what is in them is cached, not free");
    }
    karst_print(writer, "\n");
}

static void write_row(struct karst_call *call, const struct karst_summary_row *row) {
    write_states(&call->writer, row);
    write_holes(call, row);
}

/* The totals in the allocator's own terms; how many, 0 without a word where it has none or was interrupted.
 */
static int find_figures(struct karst_heap *heap, struct karst_figure *figures) {
    int count = heap->allocator->figures ? heap->allocator->figures(heap, figures, NULL) : 0;
    return count > 0 ? count : 0;
}

static void write_figures(struct karst_writer *writer, struct karst_heap *heap) {
    struct karst_figure figures[KARST_FIGURES_MAX];
    int count = find_figures(heap, figures);
    char text[KARST_FIGURES_MAX * 64];
    size_t used = 0;
    for (int i = 0; i < count; i++) {
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%.30s %.30s",
                                 i ? ", " : "as it counts itself: ", figures[i].name,
                                 figures[i].is_count ? karst_count_text(figures[i].value).text
                                                     : karst_size_text(writer, figures[i].value).text);
    }
    if (count) {
        karst_print_wrapped(writer, 0, 0, text);
    }
}

static void write_heap(struct karst_call *call, struct karst_heap *heap,
                       const struct karst_summary_row *row) {
    uint64_t threads = attached_threads(heap);
    char attached[48] = ""; /* not every allocator ties threads to arenas */
    if (threads) {
        snprintf(attached, sizeof attached, ", %" PRIu64 " thread%s attached", threads,
                 karst_plural(threads));
    }
    karst_print_title(&call->writer, "%s %s: %zu arena%s%s", heap->name, heap->version, heap->arena_count,
                      karst_plural(heap->arena_count), attached);
    struct karst_nested_count nested = karst_count_nested(call->session, heap);
    if (nested.extents) {
        karst_print(
            &call->writer,
            "%s of it in %s extent%s within blocks of another allocator: `all` counts each byte once\n",
            karst_size_text(&call->writer, nested.bytes).text, karst_count_text(nested.extents).text,
            karst_plural(nested.extents));
    }
    write_row(call, row);
    write_figures(&call->writer, heap);
}

static void write_text(struct karst_call *call, const struct karst_summary *summary) {
    struct karst_writer *writer = &call->writer;
    const struct karst *session = call->session;
    karst_print_title(writer, "%s", session->target->name);
    for (size_t i = 0; i < summary->heap_count; i++) {
        karst_print(writer, "\n");
        write_heap(call, session->heaps[i], &summary->heaps[i]);
    }
    if (summary->heap_count > 1) {
        karst_print(writer, "\n");
        karst_print_title(writer, "all %zu allocators", summary->heap_count);
        write_row(call, &summary->total);
    }
    karst_call_write_caution(call);
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static json_t *figures_json(struct karst_writer *writer, struct karst_heap *heap) {
    struct karst_figure figures[KARST_FIGURES_MAX];
    int count = find_figures(heap, figures);
    json_t *own = karst_json_object(writer);
    for (int i = 0; i < count; i++) {
        karst_json_set_number(writer, own, figures[i].name, figures[i].value);
    }
    return own;
}

static void write_json(struct karst_call *call, const struct karst_summary *summary) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *heaps = karst_json_array(writer),
           *total = karst_json_object(writer);
    size_t arenas = 0;
    for (size_t i = 0; i < summary->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "name", heap->name);
        karst_json_set_text(writer, one, "version", heap->version);
        karst_json_set_number(writer, one, "arenas", heap->arena_count);
        karst_json_set_number(writer, one, "threads", attached_threads(heap));
        karst_json_set_flag(writer, one, "in_flux", heap->in_flux);
        karst_row_set_json(writer, one, &summary->heaps[i]);
        karst_json_set_number(writer, one, "nested_bytes", karst_count_nested(call->session, heap).bytes);
        karst_json_set(writer, one, "own", figures_json(writer, call->session->heaps[i]));
        karst_json_append(writer, heaps, one);
        arenas += heap->arena_count;
    }
    karst_json_set_number(writer, total, "arenas", arenas);
    karst_row_set_json(writer, total, &summary->total);
    karst_json_set(writer, root, "allocators", heaps);
    karst_json_set(writer, root, "total", total);
    karst_call_write_json(call, root);
}

static bool run(struct karst_call *call) {
    struct karst_summary summary;
    bool summarized = karst_summarize(call->session, &summary, call->error);
    if (summarized && call->json) {
        write_json(call, &summary);
    } else if (summarized) {
        write_text(call, &summary);
    }
    karst_summary_clear(&summary);
    return summarized;
}

const struct karst_verb karst_verb_summary = {
    .name = "summary",
    .group = KARST_GROUP_OVERVIEW,
    .summary = "what is live, cached, free and unused, in all; read it first",
    .help = "For each allocator, and in all: how many blocks and bytes are live (the program holds them), "
            "cached (freed, but set aside for one size class or one thread), free (reusable for any request "
            "that fits), top (the unused end of a heap) and metadata (the allocator's own). Sizes include "
            "the blocks' headers, so that they add up to `system`, what the allocator got from the kernel. "
            "`mapped` are live blocks with a mapping of their own.\n"
            "\n"
            "`resident` is backed by memory now. For free, cached and top it counts the pages that lie in "
            "one block as a whole, which is what could be given back; all other resident pages count as "
            "live. `?` is what the target can't tell.\n"
            "\n"
            "A hole is a stretch of free and cached blocks between two blocks in use. What it offers is its "
            "largest free part in one piece. `karst holes` tells more of them.",
    .json =
        "{\"allocators\": [...], \"total\", \"target\"}. Each of allocators has name, version, arenas, "
        "threads, nested_bytes (in blocks of other allocators; total counts each byte once), in_flux "
        "(somebody was inside), own (totals as the allocator itself counts them, by the names it gives them: "
        "jemalloc's allocated, active, metadata, mapped, retained) and, as has total: "
        "extents, system_bytes; live, cached, free, top, metadata, unknown, mapped: {\"blocks\", "
        "\"bytes\"} (mapped counts in live too); metadata_bytes, unknown_bytes; holes, hole_bytes, "
        "largest_hole: {\"address\", \"size\", \"usable_bytes\", \"usable_address\", "
        "\"free_bytes\", \"cached_bytes\"} or null; resident_bytes, live_resident_bytes, "
        "free_resident_bytes, cached_resident_bytes, top_resident_bytes: null where it can't be told.",
    .needs = KARST_NEEDS_HEAPS,
    .run = run,
};
