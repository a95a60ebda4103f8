#include "pins_report.h"

#include <inttypes.h>

/* ---- text ---------------------------------------------------------------------------------------- */

/* "live", "cached", "live, cached" */
static const char *blocks_text(uint64_t blocks, uint64_t cached) {
    return cached == 0 ? "live" : cached == blocks ? "cached" : "live, cached";
}

/* "1 live", "3 cached", "9, 2 cached" */
static void write_blocks(struct karst_table *table, uint64_t blocks, uint64_t cached, const char *state) {
    if (cached && cached != blocks) {
        karst_table_text(table, KARST_STYLE_PLAIN, "%s, %s cached", karst_count_text(blocks).text,
                         karst_count_text(cached).text);
    } else {
        karst_table_text(table, KARST_STYLE_PLAIN, "%s %s", karst_count_text(blocks).text, state);
    }
}

static void write_pin(struct karst_call *call, struct karst_table *table, const struct karst_pin *pin) {
    karst_table_address(table, pin->first.address);
    karst_table_size(table, pin->taken);
    write_blocks(table, pin->blocks, pin->cached, blocks_text(pin->blocks, pin->cached));
    karst_table_size(table, pin->before_bytes);
    karst_table_size(table, pin->after_bytes);
    karst_table_size(table, pin->joined);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     karst_arena_text(call->session, pin->first.heap, pin->first.arena).text);
    call->last_address = pin->first.address;
}

void karst_pins_write_between(struct karst_call *call, const struct karst_pins *pins) {
    static const struct karst_column columns[] = {{"pin", KARST_LEFT},
                                                  {"size", KARST_RIGHT},
                                                  {"blocks", KARST_LEFT | KARST_NEED_5},
                                                  {"before", KARST_RIGHT | KARST_NEED_6},
                                                  {"behind", KARST_RIGHT | KARST_NEED_7},
                                                  {"joined", KARST_RIGHT},
                                                  {"arena", KARST_FLEXIBLE | KARST_NEED_8}};
    struct karst_writer *writer = &call->writer;
    if (pins->pins.count == 0) {
        karst_print(writer, "no pins: no free memory is kept apart by just a few small blocks\n");
        return;
    }
    karst_print_title(writer, "pins: few blocks that keep much free memory apart");
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < pins->pins.count; i++) {
        write_pin(call, table, karst_best_item(&pins->pins, i));
    }
    karst_table_close(table);
    if (pins->pin_count > 1) {
        karst_print(writer, "%s pins in all, %s, keep %s of free memory in pieces\n",
                    karst_count_text(pins->pin_count).text, karst_size_text(writer, pins->pin_bytes).text,
                    karst_size_text(writer, pins->pinned_bytes).text);
    }
}

static const char *top_pin_state(const struct karst_top_pin *pin) {
    return pin->metadata ? karst_state_name((enum karst_state)pin->last.state)
                         : blocks_text(pin->blocks, pin->cached);
}

static uint64_t top_pin_size(const struct karst_top_pin *pin) {
    return pin->last.start + pin->last.size - pin->first.start;
}

static void write_top(struct karst_call *call, struct karst_table *table, const struct karst_top_pins *top,
                      size_t depth) {
    for (size_t i = 0; i < top->count && i < depth; i++) {
        const struct karst_top_pin *pin = &top->pins[i];
        karst_table_address(table, pin->last.address);
        karst_table_size(table, top_pin_size(pin));
        write_blocks(table, pin->blocks, pin->cached, top_pin_state(pin));
        karst_table_size(table, pin->to_top);
        karst_table_size(table, pin->to_system);
        karst_table_known_size(table, pin->resident);
        karst_table_text(table, i ? KARST_STYLE_DIM : KARST_STYLE_PLAIN, "%s",
                         i ? "then" : karst_arena_text(call->session, pin->last.heap, pin->last.arena).text);
        call->last_address = pin->last.address;
    }
}

void karst_pins_write_tops(struct karst_call *call, const struct karst_pins *pins, size_t depth) {
    static const struct karst_column columns[] = {{"under the top", KARST_LEFT},
                                                  {"size", KARST_RIGHT | KARST_NEED_6},
                                                  {"blocks", KARST_LEFT | KARST_NEED_7},
                                                  {"to the top", KARST_RIGHT | KARST_SPARE},
                                                  {"to system", KARST_RIGHT},
                                                  {"resident", KARST_RIGHT | KARST_NEED_4},
                                                  {"arena", KARST_FLEXIBLE | KARST_NEED_8}};
    struct karst_writer *writer = &call->writer;
    if (pins->tops.count == 0) {
        karst_print(writer, "nothing lies under a heap's top\n");
        return;
    }
    karst_print_title(writer, "what keeps heaps from shrinking, and what it would release if it went");
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < pins->tops.count; i++) {
        write_top(call, table, karst_best_item(&pins->tops, i), depth);
    }
    karst_table_close(table);
}

void karst_pins_write_trim(struct karst_call *call, const struct karst_pins *pins) {
    struct karst_writer *writer = &call->writer;
    const struct karst_trim *trim = &pins->trim;
    if (!trim->possible) {
        karst_print(writer, "the allocator offers no trim\n");
    } else if (trim->bytes == 0) {
        karst_print(writer, "a trim now (glibc: malloc_trim(0)) would return nothing\n");
    } else {
        struct karst_text bytes = karst_size_text(writer, trim->bytes);
        bool known = trim->resident != UINT64_MAX;
        karst_print(writer, "a trim now (glibc: malloc_trim(0)) would return %s", known ? "" : "up to ");
        karst_print_styled(writer, KARST_STYLE_GOOD, "%s",
                           known ? karst_size_text(writer, trim->resident).text : bytes.text);
        karst_print(writer, "%s,\nthe whole pages in %s free piece%s", known ? " of resident memory" : "",
                    karst_count_text(trim->ranges).text, karst_plural(trim->ranges));
        if (known) {
            karst_print(writer, " (%s)\n", bytes.text);
        } else {
            karst_print(writer, "; how much of that is resident is unknown\n");
        }
    }
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static json_t *side_json(struct karst_writer *writer, uint64_t address, uint64_t size) {
    json_t *one = karst_json_object(writer);
    karst_json_set_address(writer, one, "address", address);
    karst_json_set_number(writer, one, "size", size);
    return one;
}

static json_t *stretch_json(struct karst_call *call, const char *kind, const struct karst_block *first,
                            const struct karst_block *last, uint64_t blocks, const char *state) {
    struct karst_writer *writer = &call->writer;
    json_t *one = karst_json_object(writer);
    karst_json_set_text(writer, one, "kind", kind);
    karst_json_set_address(writer, one, "address", first->address);
    karst_json_set_address(writer, one, "last", last->address);
    karst_json_set_number(writer, one, "size", last->start + last->size - first->start);
    karst_json_set_number(writer, one, "blocks", blocks);
    karst_json_set_text(writer, one, "state", state);
    karst_json_set_text(writer, one, "arena",
                        karst_arena_text(call->session, first->heap, first->arena).text);
    return one;
}

static json_t *pin_json(struct karst_call *call, const struct karst_pin *pin) {
    struct karst_writer *writer = &call->writer;
    json_t *one = stretch_json(call, "between", &pin->first, &pin->last, pin->blocks,
                               blocks_text(pin->blocks, pin->cached));
    karst_json_set_number(writer, one, "taken_bytes", pin->taken);
    karst_json_set(writer, one, "before", side_json(writer, pin->before_start, pin->before_bytes));
    karst_json_set(writer, one, "after", side_json(writer, pin->after_start, pin->after_bytes));
    karst_json_set_number(writer, one, "joined_bytes", pin->joined);
    karst_json_set_number(writer, one, "gained_bytes", pin->gained);
    return one;
}

static json_t *top_pin_json(struct karst_call *call, const struct karst_top_pin *pin, size_t depth) {
    struct karst_writer *writer = &call->writer;
    json_t *one = stretch_json(call, "top", &pin->first, &pin->last, pin->blocks, top_pin_state(pin));
    karst_json_set_number(writer, one, "depth", depth);
    karst_json_set_address(writer, one, "top", pin->top_start);
    karst_json_set_number(writer, one, "to_top_bytes", pin->to_top);
    karst_json_set_number(writer, one, "to_system_bytes", pin->to_system);
    karst_json_set_known(writer, one, "resident_bytes", pin->resident);
    karst_json_set_number(writer, one, "total_to_top_bytes", pin->total_to_top);
    karst_json_set_number(writer, one, "total_to_system_bytes", pin->total_to_system);
    karst_json_set_known(writer, one, "total_resident_bytes", pin->total_resident);
    return one;
}

void karst_pins_set_json(struct karst_call *call, json_t *root, const struct karst_pins *pins) {
    struct karst_writer *writer = &call->writer;
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < pins->tops.count; i++) {
        const struct karst_top_pins *top = karst_best_item(&pins->tops, i);
        for (size_t k = 0; k < top->count; k++) {
            karst_json_append(writer, list, top_pin_json(call, &top->pins[k], k + 1));
        }
    }
    for (size_t i = 0; i < pins->pins.count; i++) {
        karst_json_append(writer, list, pin_json(call, karst_best_item(&pins->pins, i)));
    }
    karst_json_set(writer, root, "pins", list);
    json_t *pinned = karst_json_object(writer);
    karst_json_set_number(writer, pinned, "pins", pins->pin_count);
    karst_json_set_number(writer, pinned, "bytes", pins->pin_bytes);
    karst_json_set_number(writer, pinned, "free_bytes", pins->pinned_bytes);
    karst_json_set(writer, root, "pinned", pinned);
    json_t *trim = json_null();
    if (pins->trim.possible) {
        trim = karst_json_object(writer);
        karst_json_set_number(writer, trim, "bytes", pins->trim.bytes);
        karst_json_set_known(writer, trim, "resident_bytes", pins->trim.resident);
        karst_json_set_number(writer, trim, "pieces", pins->trim.ranges);
        karst_json_set_number(writer, trim, "top_bytes", pins->trim.top_bytes);
    }
    karst_json_set(writer, root, "trim", trim);
}
