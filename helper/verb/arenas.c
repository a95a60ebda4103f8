#include <inttypes.h>

#include "rows.h"
#include "verb.h"
#include "verbs.h"

static void write_resident(struct karst_table *table, const struct karst_summary_row *row) {
    uint64_t waste = 0;
    for (enum karst_state state = KARST_STATE_FREE; state <= KARST_STATE_TOP && waste != UINT64_MAX;
         state++) {
        waste = row->resident[state] == UINT64_MAX ? UINT64_MAX : waste + row->resident[state];
    }
    karst_table_known_size(table, row->resident_bytes);
    karst_table_known_size(table, waste);
}

static void write_row(struct karst_table *table, const struct karst_arena_text *name,
                      const struct karst_arena *arena, const struct karst_summary_row *row) {
    karst_table_text(table, arena ? KARST_STYLE_SYMBOL : KARST_STYLE_DIM, "%s", name->text);
    if (arena && arena->state_missing) {
        karst_table_text(table, KARST_STYLE_DIM, "missing");
        karst_table_text(table, KARST_STYLE_DIM, "?");
    } else if (arena) {
        karst_table_address(table, arena->address);
        karst_table_count(table, arena->attached_threads);
    } else {
        karst_table_empty(table);
        karst_table_empty(table);
    }
    karst_table_count(table, row->extents);
    karst_table_size(table, row->system_bytes);
    karst_table_size(table, row->states[KARST_STATE_LIVE].bytes);
    karst_table_size(table, row->states[KARST_STATE_CACHED].bytes);
    karst_table_size(table, row->states[KARST_STATE_FREE].bytes);
    karst_table_size(table, row->states[KARST_STATE_TOP].bytes);
    karst_table_size(table, row->largest.usable);
    write_resident(table, row);
    karst_table_text(table, KARST_STYLE_WARNING, "%s",
                     !arena                 ? ""
                     : arena->state_missing ? "no lists"
                     : arena->locked        ? "locked"
                                            : "");
}

static void write_text(struct karst_call *call, const struct karst_summary *summary) {
    static const struct karst_column columns[] = {
        {"arena", KARST_FLEXIBLE},
        {"address", KARST_LEFT | KARST_SPARE},
        {"threads", KARST_RIGHT | KARST_SPARE},
        {"extents", KARST_RIGHT | KARST_SPARE},
        {"system", KARST_RIGHT},
        {"live", KARST_RIGHT},
        {"cached", KARST_RIGHT | KARST_NEED_7},
        {"free", KARST_RIGHT},
        {"top", KARST_RIGHT | KARST_SPARE},
        {"largest", KARST_RIGHT | KARST_NEED_8},
        {"resident", KARST_RIGHT | KARST_NEED_6},
        {"not live", KARST_RIGHT | KARST_SPARE},
        {"", KARST_LEFT},
    };
    struct karst_table *table = karst_table_open(&call->writer, columns, sizeof columns / sizeof *columns);
    for (uint16_t i = 0; i < summary->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        for (uint32_t arena = 0; arena <= heap->arena_count; arena++) {
            const struct karst_summary_row *row = &summary->arenas[i][arena];
            bool mapped = arena == heap->arena_count;
            struct karst_arena_text name = karst_arena_text(call->session, i, arena);
            if (!mapped || row->extents) {
                write_row(table, &name, mapped ? NULL : &heap->arenas[arena], row);
            }
        }
    }
    karst_table_close(table);
}

static void set_own_account(struct karst_writer *writer, json_t *one, const struct karst_arena *arena) {
    bool known = !arena->state_missing;
    karst_json_set_flag(writer, one, "state_missing", !known);
    karst_json_set_known(writer, one, "threads", known ? arena->attached_threads : UINT64_MAX);
    karst_json_set(writer, one, "locked", known ? json_boolean(arena->locked) : json_null());
    karst_json_set_known(writer, one, "claimed_bytes", known ? arena->system_bytes : UINT64_MAX);
    karst_json_set_known(writer, one, "claimed_bytes_most", known ? arena->max_system_bytes : UINT64_MAX);
}

static json_t *arena_json(struct karst_call *call, uint16_t heap_index, uint32_t index,
                          const struct karst_summary_row *row) {
    struct karst_writer *writer = &call->writer;
    const struct karst_heap *heap = call->session->heaps[heap_index];
    const struct karst_arena *arena = index < heap->arena_count ? &heap->arenas[index] : NULL;
    json_t *one = karst_json_object(writer);
    karst_json_set_text(writer, one, "name", arena ? arena->name : "mapped");
    karst_json_set_text(writer, one, "allocator", heap->name);
    karst_json_set(writer, one, "index", arena ? json_integer(index) : json_null());
    karst_json_set_known_address(writer, one, "address", arena ? arena->address : 0);
    if (arena) {
        set_own_account(writer, one, arena);
    }
    karst_row_set_json(writer, one, row);
    return one;
}

static void write_json(struct karst_call *call, const struct karst_summary *summary) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *list = karst_json_array(writer),
           *total = karst_json_object(writer);
    for (uint16_t i = 0; i < summary->heap_count; i++) {
        for (uint32_t arena = 0; arena <= call->session->heaps[i]->arena_count; arena++) {
            const struct karst_summary_row *row = &summary->arenas[i][arena];
            if (arena < call->session->heaps[i]->arena_count || row->extents) {
                karst_json_append(writer, list, arena_json(call, i, arena, row));
            }
        }
    }
    karst_row_set_json(writer, total, &summary->total);
    karst_json_set(writer, root, "arenas", list);
    karst_json_set(writer, root, "total", total);
    karst_call_write_json(call, root);
}

/* The allocator's own account of what it got from the system, against what was found. */
static void write_disagreements(struct karst_call *call, const struct karst_summary *summary) {
    struct karst_writer *writer = &call->writer;
    for (uint16_t i = 0; i < summary->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        for (uint32_t arena = 0; arena < heap->arena_count; arena++) {
            uint64_t claimed = heap->arenas[arena].system_bytes,
                     found = summary->arenas[i][arena].system_bytes;
            if (claimed != found && !heap->arenas[arena].state_missing) {
                karst_print_styled(writer, KARST_STYLE_WARNING,
                                   "%s: the allocator counts %s from the system, %s were found\n",
                                   karst_arena_text(call->session, i, arena).text,
                                   karst_count_text(claimed).text, karst_count_text(found).text);
            }
        }
    }
}

static bool run(struct karst_call *call) {
    struct karst_summary summary;
    bool summarized = karst_summarize(call->session, &summary, call->error);
    if (summarized && call->json) {
        write_json(call, &summary);
    } else if (summarized) {
        write_text(call, &summary);
        write_disagreements(call, &summary);
    }
    karst_summary_clear(&summary);
    return summarized;
}

const struct karst_verb karst_verb_arenas = {
    .name = "arenas",
    .group = KARST_GROUP_OVERVIEW,
    .summary = "one row an arena: the columns of summary, and threads, extents, lock",
    .help = "One row for each arena, and one, `mapped`, for the blocks with mappings of their own. "
            "`threads` are attached now, `extents` the pieces of memory it uses, `largest` the free part of "
            "its largest hole: what fits "
            "into it without growing it. `not live` are the resident bytes in whole pages of free, cached "
            "and unused memory. `locked` says that a thread was inside when the target stopped; "
            "`no lists` that what the arena keeps of itself is missing from the target.\n"
            "\n"
            "Where --arena is asked for, an arena is named by its name, its index from 0 on in this list, "
            "or its address.",
    .json = "{\"arenas\": [...], \"total\", \"target\"}. Each arena has name, allocator, index and address "
            "(null for "
            "mapped), state_missing (what it keeps of itself is not in the target: the next four are null), "
            "threads, locked, claimed_bytes (by its own account), claimed_bytes_most and, as has "
            "total, the keys of `summary`.",
    .needs = KARST_NEEDS_HEAPS,
    .run = run,
};
