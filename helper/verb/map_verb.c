#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "draw.h"
#include "picture.h"
#include "verb.h"
#include "verbs.h"

#define DEFAULT_ROWS  32u
#define ROWS_MAX      10000u
#define DEFAULT_WIDTH 80u
#define WIDTH_MAX     1000u
#define AROUND_CELLS  24u /* address, share of live bytes, gaps */

enum { OPTION_OUTPUT, OPTION_ROWS, OPTION_FROM, OPTION_TO, OPTION_ARENA };

/* ---- cells ------------------------------------------------------------------------------------------- */

struct glyph {
    const char *unicode;
    const char *ascii;
    enum karst_style style;
    const char *meaning; /* in the legend */
};

enum glyph_kind {
    GLYPH_FULL,
    GLYPH_MOST,
    GLYPH_SOME,
    GLYPH_FEW,
    GLYPH_FREE,
    GLYPH_ABSENT,
    GLYPH_CACHED,
    GLYPH_TOP,
    GLYPH_METADATA,
    GLYPH_UNKNOWN,
    GLYPH_BETWEEN,
    GLYPHS
};

static const struct glyph glyphs[GLYPHS] = {
    [GLYPH_FULL] = {"█", "#", KARST_STYLE_PLAIN, "live"},
    [GLYPH_MOST] = {"▓", "%", KARST_STYLE_PLAIN, "half live or more"},
    [GLYPH_SOME] = {"▒", "+", KARST_STYLE_GOOD, "a quarter live"},
    [GLYPH_FEW] = {"░", ":", KARST_STYLE_GOOD, "less live"},
    [GLYPH_FREE] = {"·", ".", KARST_STYLE_GOOD, "free"},
    [GLYPH_ABSENT] = {" ", " ", KARST_STYLE_GOOD, "blank: free and not resident"},
    [GLYPH_CACHED] = {"c", "c", KARST_STYLE_WARNING, "cached"},
    [GLYPH_TOP] = {"-", "-", KARST_STYLE_DIM, "top"},
    [GLYPH_METADATA] = {"m", "m", KARST_STYLE_DIM, "metadata"},
    [GLYPH_UNKNOWN] = {"?", "?", KARST_STYLE_BAD, "damaged or missing"},
    [GLYPH_BETWEEN] = {"│", "|", KARST_STYLE_DIM, "the next segment"},
};

/* What a cell is shown as. Damage shows however little it is, and so does what is live. */
static enum glyph_kind glyph_of(const struct karst_picture_cell *cell) {
    const uint32_t *bytes = cell->bytes;
    uint64_t total = karst_picture_cell_bytes(cell), live = bytes[KARST_STATE_LIVE];
    uint64_t unused = (uint64_t)bytes[KARST_STATE_FREE] + bytes[KARST_PICTURE_ABSENT];
    if (total == 0) {
        return GLYPH_BETWEEN;
    }
    if (bytes[KARST_STATE_UNKNOWN]) {
        return GLYPH_UNKNOWN;
    }
    if (bytes[KARST_STATE_METADATA] * UINT64_C(2) > total) {
        return GLYPH_METADATA;
    }
    if (live * 2 >= total) {
        return live * 8 >= total * 7 ? GLYPH_FULL : GLYPH_MOST;
    }
    if (bytes[KARST_STATE_TOP] > unused && bytes[KARST_STATE_TOP] > live) {
        return GLYPH_TOP;
    }
    if (live) {
        return live * 4 >= total ? GLYPH_SOME : GLYPH_FEW;
    }
    if (bytes[KARST_STATE_CACHED] > unused) {
        return GLYPH_CACHED;
    }
    return bytes[KARST_PICTURE_ABSENT] > bytes[KARST_STATE_FREE] ? GLYPH_ABSENT : GLYPH_FREE;
}

static void sum_row(const struct karst_picture *picture, size_t row, uint64_t sum[KARST_PICTURE_STATES]) {
    memset(sum, 0, KARST_PICTURE_STATES * sizeof *sum);
    for (size_t column = 0; column < picture->columns; column++) {
        for (size_t state = 0; state < KARST_PICTURE_STATES; state++) {
            sum[state] += karst_picture_cell(picture, row, column)->bytes[state];
        }
    }
}

static uint64_t total_of(const uint64_t bytes[KARST_PICTURE_STATES]) {
    uint64_t total = 0;
    for (size_t state = 0; state < KARST_PICTURE_STATES; state++) {
        total += bytes[state];
    }
    return total;
}

/* ---- the terminal ------------------------------------------------------------------------------------ */

static void write_glyph(struct karst_writer *writer, enum glyph_kind kind) {
    const char *text = writer->output->unicode ? glyphs[kind].unicode : glyphs[kind].ascii;
    karst_write(writer, glyphs[kind].style, text, strlen(text));
}

static void write_row(struct karst_call *call, const struct karst_picture *picture,
                      const struct karst_picture_band *band, size_t row) {
    struct karst_writer *writer = &call->writer;
    uint64_t sum[KARST_PICTURE_STATES];
    size_t count = karst_picture_row_cells(picture, band, row);
    sum_row(picture, row, sum);
    karst_print_styled(writer, KARST_STYLE_ADDRESS, "0x%-12" PRIx64,
                       karst_picture_row_address(picture, band, row));
    karst_print(writer, "  ");
    for (size_t column = 0; column < count; column++) {
        write_glyph(writer, glyph_of(karst_picture_cell(picture, row, column)));
    }
    karst_print(writer, "%*s  %6s\n", (int)(picture->columns - count), "",
                karst_share_text(sum[KARST_STATE_LIVE], total_of(sum)).text);
}

static void write_band(struct karst_call *call, const struct karst_picture *picture,
                       const struct karst_picture_band *band) {
    struct karst_writer *writer = &call->writer;
    const struct karst_picture_extent *first = &picture->extents[band->first_extent];
    uint64_t unused = band->bytes[KARST_STATE_FREE] + band->bytes[KARST_PICTURE_ABSENT];
    karst_print(writer, "\n");
    struct karst_arena_text name = karst_arena_text(call->session, band->heap, band->arena);
    bool is_number = name.text[0] >= '0' && name.text[0] <= '9'; /* jemalloc's have no names */
    karst_print_styled(writer, KARST_STYLE_TITLE, "%s%s", is_number ? "arena " : "", name.text);
    if (band->extent_count == 1) {
        karst_print(writer, ", %s", karst_extent_kind_name(first->extent->kind));
    } else {
        karst_print(writer, ", %zu segments", band->extent_count);
    }
    karst_print(writer, ": %s, %s of it live, %s free\n", karst_size_text(writer, total_of(band->bytes)).text,
                karst_size_text(writer, band->bytes[KARST_STATE_LIVE]).text,
                karst_size_text(writer, unused).text);
    for (size_t row = band->first_row; row < band->first_row + band->rows; row++) {
        write_row(call, picture, band, row);
    }
    call->last_address = first->start;
}

static void write_legend(struct karst_writer *writer, const struct karst_picture *picture) {
    bool used[GLYPHS] = {false};
    for (size_t i = 0; i < picture->band_count; i++) {
        const struct karst_picture_band *band = &picture->bands[i];
        for (size_t row = band->first_row; row < band->first_row + band->rows; row++) {
            for (size_t k = 0; k < karst_picture_row_cells(picture, band, row); k++) {
                used[glyph_of(karst_picture_cell(picture, row, k))] = true;
            }
        }
    }
    karst_print(writer, "\n");
    size_t width = writer->output->width ? writer->output->width : DEFAULT_WIDTH, column = 0;
    for (enum glyph_kind kind = 0; kind < GLYPHS; kind++) {
        size_t room = strlen(glyphs[kind].meaning) + (kind == GLYPH_ABSENT ? 0 : 2);
        if (!used[kind]) {
            continue;
        }
        if (column) {
            karst_print(writer, column + 2 + room > width ? "\n" : "  ");
            column = column + 2 + room > width ? 0 : column + 2;
        }
        if (kind != GLYPH_ABSENT) {
            write_glyph(writer, kind);
            karst_print(writer, " ");
        }
        karst_print(writer, "%s", glyphs[kind].meaning);
        column += room;
    }
    karst_print(writer, "\n");
    karst_print(writer, "a row is %s, a character %s; on the right: how much of the row is live\n",
                karst_size_text(writer, picture->cell_size * picture->columns).text,
                karst_size_text(writer, picture->cell_size).text);
}

static void write_not_drawn(struct karst_writer *writer, const struct karst_picture *picture) {
    if (picture->mapped) {
        karst_print(writer, "not drawn: %s live block%s with mappings of their own, %s\n",
                    karst_count_text(picture->mapped).text, karst_plural(picture->mapped),
                    karst_size_text(writer, picture->mapped_bytes).text);
    }
    if (picture->left_out) {
        karst_print(writer, "no room for %s smaller arena%s, %s; --rows makes room\n",
                    karst_count_text(picture->left_out).text, karst_plural(picture->left_out),
                    karst_size_text(writer, picture->left_out_bytes).text);
    }
}

static void write_text(struct karst_call *call, const struct karst_picture *picture) {
    struct karst_writer *writer = &call->writer;
    karst_print_title(writer, "%s", call->session->target->name);
    for (size_t i = 0; i < picture->band_count; i++) {
        write_band(call, picture, &picture->bands[i]);
    }
    write_legend(writer, picture);
    write_not_drawn(writer, picture);
    karst_call_write_caution(call);
}

/* ---- JSON -------------------------------------------------------------------------------------------- */

static void set_states(struct karst_writer *writer, json_t *object, const struct karst_picture *picture,
                       const uint64_t bytes[KARST_PICTURE_STATES]) {
    for (enum karst_state state = 0; state < KARST_STATES; state++) {
        char key[40];
        uint64_t value = bytes[state] + (state == KARST_STATE_FREE ? bytes[KARST_PICTURE_ABSENT] : 0);
        snprintf(key, sizeof key, "%s_bytes", karst_state_name(state));
        karst_json_set_number(writer, object, key, value);
    }
    karst_json_set_known(writer, object, "free_absent_bytes",
                         picture->residency_known ? bytes[KARST_PICTURE_ABSENT] : UINT64_MAX);
}

static json_t *rows_json(struct karst_writer *writer, const struct karst_picture *picture,
                         const struct karst_picture_band *band) {
    json_t *rows = karst_json_array(writer);
    for (size_t row = band->first_row; row < band->first_row + band->rows; row++) {
        char cells[WIDTH_MAX + 1];
        uint64_t sum[KARST_PICTURE_STATES];
        size_t count = karst_picture_row_cells(picture, band, row);
        for (size_t column = 0; column < count; column++) {
            cells[column] = glyphs[glyph_of(karst_picture_cell(picture, row, column))].ascii[0];
        }
        cells[count] = '\0';
        sum_row(picture, row, sum);
        json_t *one = karst_json_object(writer);
        karst_json_set_address(writer, one, "address", karst_picture_row_address(picture, band, row));
        karst_json_set_text(writer, one, "cells", cells);
        set_states(writer, one, picture, sum);
        karst_json_append(writer, rows, one);
    }
    return rows;
}

static json_t *band_json(struct karst_call *call, const struct karst_picture *picture,
                         const struct karst_picture_band *band, bool rows) {
    struct karst_writer *writer = &call->writer;
    json_t *one = karst_json_object(writer), *segments = karst_json_array(writer);
    karst_json_set_text(writer, one, "arena", karst_arena_text(call->session, band->heap, band->arena).text);
    set_states(writer, one, picture, band->bytes);
    for (size_t i = 0; i < band->extent_count; i++) {
        const struct karst_picture_extent *of = &picture->extents[band->first_extent + i];
        json_t *segment = karst_json_object(writer);
        karst_json_set_text(writer, segment, "kind", karst_extent_kind_name(of->extent->kind));
        karst_json_set_address(writer, segment, "start", of->start);
        karst_json_set_address(writer, segment, "end", of->end);
        karst_json_append(writer, segments, segment);
    }
    karst_json_set(writer, one, "segments", segments);
    if (rows) {
        karst_json_set(writer, one, "rows", rows_json(writer, picture, band));
    }
    return one;
}

static void write_json(struct karst_call *call, const struct karst_picture *picture,
                       const struct karst_drawing *drawing) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *arenas = karst_json_array(writer);
    for (size_t i = 0; i < picture->band_count; i++) {
        karst_json_append(writer, arenas, band_json(call, picture, &picture->bands[i], !drawing));
    }
    if (drawing) {
        karst_json_set_text(writer, root, "file", drawing->path);
        karst_json_set_number(writer, root, "width", (uint64_t)drawing->width);
        karst_json_set_number(writer, root, "height", (uint64_t)drawing->height);
    }
    karst_json_set_number(writer, root, "cell_bytes", picture->cell_size);
    karst_json_set_number(writer, root, "columns", picture->columns);
    set_states(writer, root, picture, picture->bytes);
    karst_json_set(writer, root, "arenas", arenas);
    karst_json_set_number(writer, root, "mapped_blocks", picture->mapped);
    karst_json_set_number(writer, root, "mapped_bytes", picture->mapped_bytes);
    karst_json_set_number(writer, root, "left_out_arenas", picture->left_out);
    karst_json_set_number(writer, root, "left_out_bytes", picture->left_out_bytes);
    karst_call_write_json(call, root);
}

/* ---- the verb ---------------------------------------------------------------------------------------- */

static bool is_wanted(void *context, const struct karst_extent *extent) {
    const struct karst_call *call = context;
    const struct karst_value *arena = &call->options[OPTION_ARENA];
    return karst_arena_matches(call->session->heaps[extent->heap], extent->arena, arena->text);
}

static bool take_options(struct karst_call *call, struct karst_picture_options *options) {
    const struct karst_value *given = call->options;
    uint32_t width = call->writer.output->width ? call->writer.output->width : DEFAULT_WIDTH;
    width = width < WIDTH_MAX ? width : WIDTH_MAX;
    *options = (struct karst_picture_options){
        .columns = width > AROUND_CELLS + 32 ? (width - AROUND_CELLS) & ~15u : 16,
        .rows = DEFAULT_ROWS,
        .to = UINT64_MAX,
        .wanted = given[OPTION_ARENA].given ? is_wanted : NULL,
        .wanted_context = call,
    };
    if (given[OPTION_OUTPUT].given) {
        options->columns = KARST_DRAW_COLUMNS;
        options->rows = KARST_DRAW_ROWS;
        options->marks = KARST_DRAW_MARKS;
    }
    if (given[OPTION_ROWS].given) {
        options->rows = given[OPTION_ROWS].number;
    }
    if (options->rows == 0 || options->rows > ROWS_MAX) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--rows: from 1 to %u", ROWS_MAX);
    }
    if (given[OPTION_FROM].given) {
        options->from = given[OPTION_FROM].number;
    }
    if (given[OPTION_TO].given) {
        options->to = given[OPTION_TO].number;
    }
    return options->from < options->to ||
           karst_fail(call->error, KARST_ERROR_USAGE, "--from has to be below --to");
}

static bool draw(struct karst_call *call, const struct karst_picture *picture) {
    struct karst_drawing drawing = {.path = call->options[OPTION_OUTPUT].text};
    if (!karst_draw(picture, &drawing, call->error)) {
        return false;
    }
    if (call->json) {
        write_json(call, picture, &drawing);
        return true;
    }
    karst_print(&call->writer, "wrote ");
    karst_print_styled(&call->writer, KARST_STYLE_FILE, "%s", drawing.path);
    karst_print(&call->writer, ", %d x %d\n", drawing.width, drawing.height);
    write_not_drawn(&call->writer, picture);
    karst_call_write_caution(call);
    return true;
}

static bool run(struct karst_call *call) {
    const struct karst_value *output = &call->options[OPTION_OUTPUT];
    struct karst_picture_options options;
    struct karst_picture picture;
    if (!take_options(call, &options) || !karst_call_check_arena(call, &call->options[OPTION_ARENA]) ||
        (output->given && !karst_draw_check(output->text, call->error)) ||
        !karst_picture_make(call->session, &options, &picture, call->error)) {
        return false;
    }
    bool done = true;
    if (output->given) {
        done = draw(call, &picture);
    } else if (call->json) {
        write_json(call, &picture, NULL);
    } else {
        write_text(call, &picture);
    }
    karst_picture_close(&picture);
    return done;
}

static const struct karst_verb_option map_options[] = {
    [OPTION_OUTPUT] = {"output", 'o', KARST_VALUE_FILE, "FILE", "draw to FILE, a .png or .svg", NULL},
    [OPTION_ROWS] = {"rows", 'r', KARST_VALUE_COUNT, "N", "at most N rows (32; 48 in a file)", NULL},
    [OPTION_FROM] = {"from", 0, KARST_VALUE_ADDRESS, "ADDRESS", "what lies at ADDRESS and above", NULL},
    [OPTION_TO] = {"to", 0, KARST_VALUE_ADDRESS, "ADDRESS", "what lies below ADDRESS", NULL},
    [OPTION_ARENA] = {"arena", 'A', KARST_VALUE_ARENA, "ARENA", "of this arena only", NULL},
    {0},
};

const struct karst_verb karst_verb_map = {
    .name = "map",
    .group = KARST_GROUP_HOLES,
    .summary = "the picture: the heaps' address space by state, in the terminal or as a PNG or SVG",
    .help = "Draws the heaps, arena by arena, in rows of address order. A character stands for as many bytes "
            "as the "
            "rows allow: "
            "a full one for what is live, lighter ones for less of it, and others for what is free, cached, "
            "top or "
            "damaged where nothing is live. Blank is free and not resident: it costs no memory. --from and "
            "--to look "
            "closer, --rows finer.\n"
            "\n"
            "With --output a page is drawn: each column of pixels is filled from the bottom by what is live, "
            "cached and "
            "free in it, and the biggest holes and the pins are marked and listed. Blocks with mappings of "
            "their own are "
            "not drawn.",
    .json =
        "{\"cell_bytes\", \"columns\", BYTES, \"arenas\": [{\"arena\", BYTES, \"segments\": [{\"kind\", "
        "\"start\", "
        "\"end\"}], \"rows\": [{\"address\", \"cells\" (a letter for each, as in the text without Unicode; | "
        "is between segments), BYTES}]}], \"mapped_blocks\", \"mapped_bytes\", \"left_out_arenas\", "
        "\"left_out_bytes\", \"target\"}; with a file no rows, but \"file\", \"width\", \"height\". BYTES "
        "are the "
        "keys live_bytes, free_bytes, cached_bytes, top_bytes, metadata_bytes, unknown_bytes and "
        "free_absent_bytes (free and not resident; null: can't be told).",
    .options = map_options,
    .needs = KARST_NEEDS_HEAPS,
    .run = run,
};
