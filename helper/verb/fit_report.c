#include "fit_report.h"

#include "block_row.h"

static void write_where_it_fits(struct karst_call *call, const struct karst_fit *fit) {
    struct karst_writer *writer = &call->writer;
    const struct karst_part *best = &fit->best;
    karst_print_styled(writer, KARST_STYLE_GOOD, "fits");
    karst_print(writer, ": in %s place%s of %s arena%s; ", karst_count_text(fit->fitting_parts).text,
                karst_plural(fit->fitting_parts), karst_count_text(fit->fitting_arenas).text,
                karst_plural(fit->fitting_arenas));
    karst_print(writer, "%s has %s bytes at ", best->top ? "only a top has room: it" : "the tightest",
                karst_count_text(best->end - best->start).text);
    karst_print_address(writer, best->start);
    karst_print(writer, " (%s)\n",
                karst_arena_text(call->session, best->extent->heap, best->extent->arena).text);
    call->last_address = best->start;
}

static void write_blocker(struct karst_call *call, const struct karst_near_miss *miss) {
    struct karst_writer *writer = &call->writer;
    karst_print(writer, "  hole        ");
    karst_print_address(writer, miss->address);
    karst_print(writer, " (%s)\n", karst_arena_text(call->session, miss->heap, miss->arena).text);
    call->last_address = miss->address;
    if (!miss->has_blocker) {
        karst_print(writer, "  blocked by  the end of the heap, right behind it\n");
        return;
    }
    const struct karst_block *blocker = &miss->blocker;
    uint64_t joined = karst_near_miss_joined(miss);
    karst_print(writer, "  blocked by  the ");
    if (blocker->state != KARST_STATE_LIVE) {
        karst_print(writer, "%s ", karst_state_name(blocker->state));
    }
    karst_print(writer, "%s-byte block at ",
                karst_count_text(blocker->usable ? blocker->usable : blocker->size).text);
    karst_print_address(writer, blocker->address);
    karst_print(writer, ", right behind it\n  without it  %s bytes would be in one piece: ",
                karst_count_text(joined).text);
    if (joined >= miss->needed) {
        karst_print_styled(writer, KARST_STYLE_GOOD, "enough\n");
    } else {
        karst_print(writer, "%s too few\n", karst_count_text(miss->needed - joined).text);
    }
    call->last_address = blocker->address;
}

static void write_nearest(struct karst_call *call, const struct karst_fit *fit) {
    struct karst_writer *writer = &call->writer;
    const struct karst_near_miss *miss = karst_best_item(&fit->nearest, 0);
    karst_print(writer, "the nearest hole has ");
    karst_print_styled(writer, KARST_STYLE_WARNING, "%s bytes", karst_count_text(miss->size).text);
    if (miss->size < fit->request) {
        karst_print(writer, ", %s fewer than asked\n", karst_count_text(fit->request - miss->size).text);
    } else {
        karst_print(writer, ", as many as asked\n");
    }
    karst_print(writer,
                "  (%s fewer than the chunk it needs, header and rounding counted)\n"
                "  needed      %s bytes in one piece\n",
                karst_count_text(miss->short_by).text, karst_count_text(miss->needed).text);
    write_blocker(call, miss);
}

static void write_miss(struct karst_call *call, struct karst_table *table,
                       const struct karst_near_miss *miss) {
    uint64_t joined = karst_near_miss_joined(miss);
    karst_table_address(table, miss->address);
    karst_table_count(table, miss->size);
    karst_table_count(table, miss->short_by);
    if (miss->has_blocker) {
        karst_table_address(table, miss->blocker.address);
        karst_table_count(table, miss->blocker.size);
    } else {
        karst_table_text(table, KARST_STYLE_DIM, "end of heap");
        karst_table_empty(table);
    }
    karst_table_text(table, joined >= miss->needed ? KARST_STYLE_GOOD : KARST_STYLE_PLAIN, "%s",
                     karst_count_text(joined).text);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     miss->has_blocker ? karst_state_name((enum karst_state)miss->blocker.state) : "");
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     karst_arena_text(call->session, miss->heap, miss->arena).text);
}

static void write_nearest_table(struct karst_call *call, const struct karst_fit *fit) {
    static const struct karst_column columns[] = {{"free at", KARST_LEFT},
                                                  {"bytes", KARST_RIGHT | KARST_NEED_5},
                                                  {"short by", KARST_RIGHT},
                                                  {"blocked by", KARST_LEFT | KARST_NEED_1},
                                                  {"its size", KARST_RIGHT | KARST_NEED_7},
                                                  {"without it", KARST_RIGHT | KARST_NEED_6},
                                                  {"it is", KARST_LEFT | KARST_SPARE},
                                                  {"arena", KARST_FLEXIBLE | KARST_SPARE}};
    struct karst_table *table = karst_table_open(&call->writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < fit->nearest.count; i++) {
        write_miss(call, table, karst_best_item(&fit->nearest, i));
    }
    karst_table_close(table);
}

/* What malloc would do for want of room. */
static void write_instead(struct karst_call *call, const struct karst_fit *fit) {
    struct karst_writer *writer = &call->writer;
    bool mapped = false;
    for (size_t i = 0; i < fit->need_count; i++) {
        mapped |= fit->needs[i].mapped;
    }
    if (mapped) {
        karst_print(writer, "a request of this size then gets a mapping of its own\n");
    } else if (fit->top.size) {
        karst_print(writer, "the heap would have to grow: the largest top has %s bytes, %s too few\n",
                    karst_count_text(fit->top.size).text, karst_count_text(fit->top.short_by).text);
    } else {
        karst_print(writer, "the heap would have to grow\n");
    }
}

void karst_fit_write(struct karst_call *call, const struct karst_fit *fit) {
    struct karst_writer *writer = &call->writer;
    karst_print(writer, "\n");
    karst_print_title(writer, "does a request of %s bytes fit?", karst_count_text(fit->request).text);
    bool possible = false;
    for (size_t i = 0; i < fit->need_count; i++) {
        possible |= fit->needs[i].block != 0;
    }
    if (!possible) {
        karst_print(writer, "no: no request of that size can be met\n");
        return;
    }
    if (fit->fits) {
        write_where_it_fits(call, fit);
        return;
    }
    karst_print_styled(writer, KARST_STYLE_WARNING, "does not fit");
    karst_print(writer, "; ");
    if (fit->nearest.count) {
        write_nearest(call, fit);
    } else {
        karst_print(writer, "there is no free memory but at the end of heaps\n");
    }
    write_instead(call, fit);
    if (fit->nearest.count > 1) {
        karst_print(writer, "\n");
        write_nearest_table(call, fit);
    }
}

static json_t *miss_json(struct karst_call *call, const struct karst_near_miss *miss) {
    struct karst_writer *writer = &call->writer;
    json_t *one = karst_json_object(writer);
    karst_json_set_address(writer, one, "address", miss->address);
    karst_json_set_number(writer, one, "size", miss->size);
    karst_json_set_number(writer, one, "needed", miss->needed);
    karst_json_set_number(writer, one, "short_by", miss->short_by);
    karst_json_set(writer, one, "blocked_by",
                   miss->has_blocker ? karst_block_json(call, &miss->blocker) : json_null());
    karst_json_set_number(writer, one, "size_without_blocker", karst_near_miss_joined(miss));
    karst_json_set_text(writer, one, "arena", karst_arena_text(call->session, miss->heap, miss->arena).text);
    return one;
}

json_t *karst_fit_json(struct karst_call *call, const struct karst_fit *fit) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *nearest = karst_json_array(writer), *best = json_null();
    bool mapped = false;
    for (size_t i = 0; i < fit->need_count; i++) {
        mapped |= fit->needs[i].mapped;
    }
    if (fit->fits) {
        best = karst_json_object(writer);
        karst_json_set_address(writer, best, "address", fit->best.start);
        karst_json_set_number(writer, best, "size", fit->best.end - fit->best.start);
        karst_json_set_text(writer, best, "state", fit->best.top ? "top" : "free");
        karst_json_set_text(
            writer, best, "arena",
            karst_arena_text(call->session, fit->best.extent->heap, fit->best.extent->arena).text);
    }
    for (size_t i = 0; !fit->fits && i < fit->nearest.count; i++) {
        karst_json_append(writer, nearest, miss_json(call, karst_best_item(&fit->nearest, i)));
    }
    karst_json_set_number(writer, root, "request", fit->request);
    karst_json_set_flag(writer, root, "fits", fit->fits);
    karst_json_set_number(writer, root, "fitting_places", fit->fitting_parts);
    karst_json_set_number(writer, root, "fitting_arenas", fit->fitting_arenas);
    karst_json_set(writer, root, "best", best);
    karst_json_set_flag(writer, root, "mapped", mapped);
    karst_json_set(writer, root, "nearest", nearest);
    karst_json_set(writer, root, "top", fit->top.size ? miss_json(call, &fit->top) : json_null());
    return root;
}
