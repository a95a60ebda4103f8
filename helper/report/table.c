#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clean.h"
#include "writer.h"

#define GAP         2  /* spaces between columns */
#define FLEXIBLE_AT 12 /* what a flexible column keeps at least */

struct cell {
    size_t offset, size; /* in the table's text */
    enum karst_style style;
};

struct layout {
    size_t width;  /* of the widest cell so far */
    size_t shown;  /* what it gets */
    bool left_out; /* a spare column for which there is no room */
};

struct karst_table {
    struct karst_writer *writer;
    const struct karst_column *columns;
    size_t column_count;
    struct layout *layout; /* of each column */
    struct cell *cells;    /* row by row */
    size_t cell_count, cell_room;
    char *text;
    size_t text_size, text_room;
    bool headed;    /* the header row was printed */
    bool shortened; /* some cell was cut */
    size_t blanks;  /* owed: written only when something follows on the line */
};

struct karst_table *karst_table_open(struct karst_writer *writer, const struct karst_column *columns,
                                     size_t count) {
    struct karst_table *table = calloc(1, sizeof *table);
    struct layout *layout = calloc(count, sizeof *layout);
    if (!table || !layout) {
        free(table);
        free(layout);
        writer->out_of_memory = true;
        return NULL;
    }
    *table =
        (struct karst_table){.writer = writer, .columns = columns, .column_count = count, .layout = layout};
    for (size_t i = 0; i < count; i++) {
        layout[i].width = karst_columns(columns[i].title, strlen(columns[i].title));
    }
    return table;
}

/* Room for one more cell and size more bytes of text. */
static bool make_room(struct karst_table *table, size_t size) {
    if (table->cell_count == table->cell_room) {
        size_t room = table->cell_room ? table->cell_room * 2 : 64;
        struct cell *cells = realloc(table->cells, room * sizeof *cells);
        if (!cells) {
            return false;
        }
        table->cells = cells;
        table->cell_room = room;
    }
    if (table->text_room - table->text_size < size) {
        size_t room = table->text_room * 2 + size;
        char *text = realloc(table->text, room);
        if (!text) {
            return false;
        }
        table->text = text;
        table->text_room = room;
    }
    return true;
}

static void add_cell(struct karst_table *table, enum karst_style style, const char *text) {
    size_t size = strlen(text);
    if (!make_room(table, size * 3)) {
        table->writer->out_of_memory = true;
        return;
    }
    struct cell *cell = &table->cells[table->cell_count];
    cell->offset = table->text_size;
    cell->style = style;
    cell->size =
        karst_clean(text, size, table->writer->output->unicode, false, table->text + table->text_size);
    table->text_size += cell->size;
    size_t *width = &table->layout[table->cell_count % table->column_count].width;
    size_t columns = karst_columns(table->text + cell->offset, cell->size);
    if (*width < columns) {
        *width = columns;
    }
    table->cell_count++;
}

void karst_table_text(struct karst_table *table, enum karst_style style, const char *format, ...) {
    if (!table) {
        return;
    }
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0) {
        table->writer->out_of_memory = true;
        return;
    }
    add_cell(table, style, text);
    free(text);
}

void karst_table_size(struct karst_table *table, uint64_t size) {
    if (table) {
        add_cell(table, KARST_STYLE_PLAIN, karst_size_text(table->writer, size).text);
    }
}

void karst_table_known_size(struct karst_table *table, uint64_t size) {
    if (size == UINT64_MAX) {
        karst_table_text(table, KARST_STYLE_DIM, "?");
    } else {
        karst_table_size(table, size);
    }
}

void karst_table_count(struct karst_table *table, uint64_t count) {
    if (table) {
        add_cell(table, KARST_STYLE_PLAIN, karst_count_text(count).text);
    }
}

void karst_table_address(struct karst_table *table, uint64_t address) {
    karst_table_text(table, KARST_STYLE_ADDRESS, "0x%" PRIx64, address);
}

void karst_table_empty(struct karst_table *table) {
    if (table) {
        add_cell(table, KARST_STYLE_PLAIN, "");
    }
}

static size_t total_width(const struct karst_table *table) {
    size_t total = 0;
    for (size_t i = 0; i < table->column_count; i++) {
        if (!table->layout[i].left_out) {
            total += table->layout[i].shown + (total ? GAP : 0);
        }
    }
    return total;
}

/* The rightmost spare column that is still there; false: there is none. */
static bool leave_one_out(struct karst_table *table) {
    for (size_t i = table->column_count; i-- > 0;) {
        enum karst_align align = table->columns[i].align;
        if ((align == KARST_SPARE_LEFT || align == KARST_SPARE_RIGHT) && !table->layout[i].left_out) {
            table->layout[i].left_out = true;
            return true;
        }
    }
    return false;
}

/* The widest flexible column gives one character; false: none can. */
static bool narrow_one(struct karst_table *table) {
    struct layout *widest = NULL;
    for (size_t i = 0; i < table->column_count; i++) {
        struct layout *layout = &table->layout[i];
        if (table->columns[i].align == KARST_FLEXIBLE && layout->shown > FLEXIBLE_AT &&
            (!widest || layout->shown > widest->shown)) {
            widest = layout;
        }
    }
    if (widest) {
        widest->shown--;
    }
    return widest != NULL;
}

/* Makes the table fit the output, as far as it can: first spare columns go, then flexible ones shrink.
 * Columns that were in a header that was printed stay. */
static void fit_widths(struct karst_table *table) {
    size_t limit = table->writer->output->width;
    for (size_t i = 0; i < table->column_count; i++) {
        table->layout[i].shown = table->layout[i].width;
    }
    while (limit && !table->headed && total_width(table) > limit && leave_one_out(table)) {
    }
    while (limit && total_width(table) > limit && narrow_one(table)) {
    }
}

/* The bytes of the first columns characters of text. */
static size_t prefix_size(const char *text, size_t size, size_t columns) {
    size_t end = 0;
    for (size_t seen = 0; end < size; end++) {
        if (((unsigned char)text[end] & 0xc0) != 0x80 && seen++ == columns) {
            break;
        }
    }
    return end;
}

/* What is owed in blanks, then text. */
static void write_after_blanks(struct karst_table *table, enum karst_style style, const char *text,
                               size_t size) {
    static const char blanks[] = "                                ";
    while (table->blanks) {
        size_t part = table->blanks < sizeof blanks - 1 ? table->blanks : sizeof blanks - 1;
        karst_write(table->writer, KARST_STYLE_PLAIN, blanks, part);
        table->blanks -= part;
    }
    karst_write(table->writer, style, text, size);
}

static void write_text(struct karst_table *table, size_t column, enum karst_style style, const char *text,
                       size_t size) {
    const char *ellipsis = table->writer->output->unicode ? "\xe2\x80\xa6" : "...";
    size_t width = table->layout[column].shown, columns = karst_columns(text, size);
    enum karst_align align = table->columns[column].align;
    bool right = align == KARST_RIGHT || align == KARST_SPARE_RIGHT, shorten = columns > width;
    if (shorten) {
        size = prefix_size(text, size, width - karst_columns(ellipsis, strlen(ellipsis)));
        columns = width;
        table->shortened = true;
    }
    table->blanks += right ? width - columns : 0;
    if (size) {
        write_after_blanks(table, style, text, size);
    }
    if (shorten) {
        write_after_blanks(table, style, ellipsis, strlen(ellipsis));
    }
    table->blanks += right ? 0 : width - columns;
    table->blanks += GAP;
}

static void write_cell(struct karst_table *table, size_t column, enum karst_style style, const char *text,
                       size_t size) {
    if (!table->layout[column].left_out) {
        write_text(table, column, style, text, size);
    }
    if (column + 1 == table->column_count) {
        table->blanks = 0;
        karst_write(table->writer, KARST_STYLE_PLAIN, "\n", 1);
    }
}

/* Nothing is left away without a word. */
static void write_note(const struct karst_table *table) {
    struct karst_writer *writer = table->writer;
    const char *before = "(left out to fit: ";
    for (size_t i = 0; i < table->column_count; i++) {
        if (table->layout[i].left_out) {
            karst_print_styled(writer, KARST_STYLE_DIM, "%s%s", before, table->columns[i].title);
            before = ", ";
        }
    }
    if (before[0] == ',' || table->shortened) {
        karst_print_styled(writer, KARST_STYLE_DIM, "%s--json has all)\n",
                           before[0] == ',' ? "; " : "(shortened to fit; ");
    }
}

void karst_table_flush(struct karst_table *table) {
    if (!table || table->cell_count == 0 || table->column_count == 0) {
        return;
    }
    fit_widths(table);
    for (size_t i = 0; !table->headed && i < table->column_count; i++) {
        const char *title = table->columns[i].title;
        write_cell(table, i, KARST_STYLE_TITLE, title, strlen(title));
    }
    table->headed = true;
    for (size_t i = 0, column = 0; i < table->cell_count; i++) {
        const struct cell *cell = &table->cells[i];
        write_cell(table, column, cell->style, table->text + cell->offset, cell->size);
        column = column + 1 < table->column_count ? column + 1 : 0;
    }
    table->cell_count = table->text_size = 0;
}

void karst_table_close(struct karst_table *table) {
    if (!table) {
        return;
    }
    karst_table_flush(table);
    write_note(table);
    free(table->layout);
    free(table->cells);
    free(table->text);
    free(table);
}
