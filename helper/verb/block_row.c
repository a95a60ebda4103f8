#include "block_row.h"
#include "marker_report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- objects and rows ---------------------------------------------------------------------------- */

json_t *karst_block_json(struct karst_call *call, const struct karst_block *block) {
    struct karst_writer *writer = &call->writer;
    const struct karst_heap *heap = call->session->heaps[block->heap];
    json_t *one = karst_json_object(writer);
    karst_json_set_address(writer, one, "address", block->address);
    karst_json_set_number(writer, one, "size", block->size);
    karst_json_set_number(writer, one, "usable", block->usable);
    karst_json_set_text(writer, one, "state", karst_state_name(block->state));
    karst_json_set_text(writer, one, "allocator", heap->name);
    karst_json_set_text(writer, one, "arena",
                        block->arena < heap->arena_count ? heap->arenas[block->arena].name : NULL);
    karst_json_set_text(writer, one, "bin",
                        block->bin < heap->bin_count ? heap->bins[block->bin].name : NULL);
    karst_marker_set_json(call, block, one);
    return one;
}

struct karst_table *karst_block_table(struct karst_call *call) {
    static const struct karst_column columns[] = {
        {"address", KARST_LEFT},
        {"size", KARST_RIGHT},
        {"usable", KARST_RIGHT | KARST_SPARE},
        {"state", KARST_LEFT | KARST_NEED_6},
        {"arena", KARST_LEFT | KARST_SPARE},
        {"bin", KARST_FLEXIBLE | KARST_NEED_8},
        {"asked", KARST_RIGHT | KARST_NEED_7},
        {"site", KARST_FLEXIBLE},
    };
    size_t count = sizeof columns / sizeof *columns;
    return karst_table_open(&call->writer, columns,
                            karst_marker_has_marks(call->session) ? count : count - 2);
}

static void add_asked(struct karst_call *call, struct karst_table *table, struct karst_site_names *names,
                      const struct karst_block *block) {
    struct karst_mark_of mark;
    if (!karst_marker_asked(call->session, block, &mark)) {
        karst_table_empty(table);
        karst_table_empty(table);
        return;
    }
    const struct karst_site_name *name = karst_site_names_get(names, mark.site);
    call->writer.out_of_memory |= !name;
    karst_table_size(table, mark.size);
    karst_table_text(table, mark.whole ? KARST_STYLE_PLAIN : KARST_STYLE_BAD, "%s%s", name ? name->text : "",
                     mark.whole ? "" : ", written beyond its end");
}

void karst_block_row(struct karst_call *call, struct karst_table *table, struct karst_site_names *names,
                     const struct karst_block *block) {
    const struct karst_heap *heap = call->session->heaps[block->heap];
    karst_table_address(table, block->address);
    karst_table_size(table, block->size);
    karst_table_size(table, block->usable);
    karst_table_text(table, karst_state_style(block->state), "%s", karst_state_name(block->state));
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     karst_arena_text(call->session, block->heap, block->arena).text);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                     block->bin < heap->bin_count ? heap->bins[block->bin].name : "");
    if (karst_marker_has_marks(call->session)) {
        add_asked(call, table, names, block);
    }
}

/* ---- lines --------------------------------------------------------------------------------------- */

/* The ends of a heap's lines: ',"allocator":"glibc","arena":' for each arena with its name, and the last
 * one for none; '"..."' for each bin, with the line's end unless what marks say follows. */
struct karst_line_names {
    struct line_end {
        char *text;
        size_t size;
    } * arenas, *bins;
    size_t arena_count, bin_count;
};

/* before, name as JSON (null for NULL), after. */
static bool make_end(struct line_end *end, const char *before, const char *name, const char *after) {
    json_t *value = name ? karst_json_text(name) : json_null();
    char *quoted = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    json_decref(value);
    if (!quoted) {
        return false;
    }
    int size = asprintf(&end->text, "%s%s%s", before, quoted, after);
    free(quoted);
    if (size < 0) {
        end->text = NULL;
        return false;
    }
    end->size = (size_t)size;
    return true;
}

static bool make_names(struct karst_line_names *names, const struct karst_heap *heap, const char *last) {
    struct line_end allocator = {0};
    names->arenas = calloc(heap->arena_count + 1, sizeof *names->arenas);
    names->bins = calloc(heap->bin_count + 1, sizeof *names->bins);
    if (!names->arenas || !names->bins) {
        return false;
    }
    names->arena_count = heap->arena_count;
    names->bin_count = heap->bin_count;
    if (!make_end(&allocator, ",\"allocator\":", heap->name, ",\"arena\":")) {
        return false;
    }
    bool made = true;
    for (size_t i = 0; made && i <= heap->arena_count; i++) {
        const char *name = i < heap->arena_count ? heap->arenas[i].name : NULL;
        made = make_end(&names->arenas[i], allocator.text, name, ",\"bin\":");
    }
    for (size_t i = 0; made && i <= heap->bin_count; i++) {
        made = make_end(&names->bins[i], "", i < heap->bin_count ? heap->bins[i].name : NULL, last);
    }
    free(allocator.text);
    return made;
}

bool karst_block_lines_open(struct karst_block_lines *lines, struct karst *session) {
    lines->session = lines->sites.session = session;
    lines->marked = karst_marker_has_marks(session);
    lines->heaps = calloc(session->heap_count + 1, sizeof *lines->heaps);
    if (!lines->heaps) {
        return false;
    }
    lines->heap_count = session->heap_count;
    for (size_t i = 0; i < session->heap_count; i++) {
        if (!make_names(&lines->heaps[i], session->heaps[i], lines->marked ? "" : "}\n")) {
            return false;
        }
    }
    return true;
}

void karst_block_lines_close(struct karst_block_lines *lines) {
    for (size_t i = 0; i < lines->heap_count; i++) {
        struct karst_line_names *names = &lines->heaps[i];
        for (size_t k = 0; names->arenas && k <= names->arena_count; k++) {
            free(names->arenas[k].text);
        }
        for (size_t k = 0; names->bins && k <= names->bin_count; k++) {
            free(names->bins[k].text);
        }
        free(names->arenas);
        free(names->bins);
    }
    free(lines->heaps);
    karst_site_names_close(&lines->sites);
    *lines = (struct karst_block_lines){0};
}

static char *put_hex(char *at, uint64_t value) {
    static const char digits[] = "0123456789abcdef";
    int shift = 60;
    while (shift > 0 && !(value >> shift)) {
        shift -= 4;
    }
    for (; shift >= 0; shift -= 4) {
        *at++ = digits[value >> shift & 15];
    }
    return at;
}

static char *put_decimal(char *at, uint64_t value) {
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count) {
        *at++ = digits[--count];
    }
    return at;
}

/* As json.c has numbers: a mark that was written over may say anything, and readers take 63 bits. */
static char *put_number(char *at, uint64_t value) {
    return put_decimal(at, value > INT64_MAX ? INT64_MAX : value);
}

static void write_asked(struct karst_block_lines *lines, struct karst_writer *writer,
                        const struct karst_block *block) {
    struct karst_mark_of mark;
    const struct karst_site_name *name = NULL;
    char text[80];
    char *at = stpcpy(text, ",\"requested\":");
    if (karst_marker_asked(lines->session, block, &mark)) {
        name = karst_site_names_get(&lines->sites, mark.site);
        writer->out_of_memory |= !name;
    }
    if (!name) {
        static const char none[] = "null,\"site\":null,\"sequence\":null}\n";
        karst_write_raw(writer, KARST_STYLE_PLAIN, text, (size_t)(at - text));
        karst_write_raw(writer, KARST_STYLE_PLAIN, none, sizeof none - 1);
        return;
    }
    at = put_number(at, mark.size);
    at = stpcpy(at, ",\"site\":");
    karst_write_raw(writer, KARST_STYLE_PLAIN, text, (size_t)(at - text));
    karst_write_raw(writer, KARST_STYLE_PLAIN, name->quoted, strlen(name->quoted));
    at = stpcpy(text, ",\"sequence\":");
    at = put_number(at, mark.sequence);
    at = stpcpy(at, "}\n");
    karst_write_raw(writer, KARST_STYLE_PLAIN, text, (size_t)(at - text));
}

void karst_block_line(struct karst_block_lines *lines, struct karst_writer *writer,
                      const struct karst_block *block) {
    const struct karst_line_names *names = &lines->heaps[block->heap];
    const struct line_end *arena =
        &names->arenas[block->arena < names->arena_count ? block->arena : names->arena_count];
    const struct line_end *bin = &names->bins[block->bin < names->bin_count ? block->bin : names->bin_count];
    char line[160];
    char *at = stpcpy(line, "{\"address\":\"0x");
    at = put_hex(at, block->address);
    at = stpcpy(at, "\",\"size\":");
    at = put_decimal(at, block->size);
    at = stpcpy(at, ",\"usable\":");
    at = put_decimal(at, block->usable);
    at = stpcpy(at, ",\"state\":\"");
    at = stpcpy(at, karst_state_name(block->state));
    *at++ = '"';
    karst_write_raw(writer, KARST_STYLE_PLAIN, line, (size_t)(at - line));
    karst_write_raw(writer, KARST_STYLE_PLAIN, arena->text, arena->size);
    karst_write_raw(writer, KARST_STYLE_PLAIN, bin->text, bin->size);
    if (lines->marked) {
        write_asked(lines, writer, block);
    }
}
