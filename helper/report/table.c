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

struct karst_table {
    struct karst_writer *writer;
    const struct karst_column *columns;
    size_t column_count;
    size_t *widths;
    struct cell *cells; /* row by row */
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
    size_t *widths = calloc(count, sizeof *widths);
    if (!table || !widths) {
        free(table);
        free(widths);
        writer->out_of_memory = true;
        return NULL;
    }
    *table =
        (struct karst_table){.writer = writer, .columns = columns, .column_count = count, .widths = widths};
    for (size_t i = 0; i < count; i++) {
        widths[i] = karst_columns(columns[i].title, strlen(columns[i].title));
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
    size_t *width = &table->widths[table->cell_count % table->column_count];
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

/* Narrows flexible columns, the widest first, until the table fits the output or none can give more. */
static void fit_widths(const struct karst_table *table, size_t *shown) {
    size_t total = 0;
    for (size_t i = 0; i < table->column_count; i++) {
        shown[i] = table->widths[i];
        total += shown[i] + (i ? GAP : 0);
    }
    size_t limit = table->writer->output->width;
    while (limit && total > limit) {
        size_t widest = table->column_count;
        for (size_t i = 0; i < table->column_count; i++) {
            if (table->columns[i].align == KARST_FLEXIBLE && shown[i] > FLEXIBLE_AT &&
                (widest == table->column_count || shown[i] > shown[widest])) {
                widest = i;
            }
        }
        if (widest == table->column_count) {
            return;
        }
        shown[widest]--;
        total--;
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

static void write_cell(struct karst_table *table, size_t column, size_t width, enum karst_style style,
                       const char *text, size_t size) {
    struct karst_writer *writer = table->writer;
    const char *ellipsis = writer->output->unicode ? "\xe2\x80\xa6" : "...";
    size_t columns = karst_columns(text, size);
    bool shorten = columns > width;
    if (shorten) {
        size = prefix_size(text, size, width - karst_columns(ellipsis, strlen(ellipsis)));
        columns = width;
    }
    if (table->columns[column].align == KARST_RIGHT) {
        table->blanks += width - columns;
    }
    if (size) {
        write_after_blanks(table, style, text, size);
    }
    if (shorten) {
        write_after_blanks(table, style, ellipsis, strlen(ellipsis));
        table->shortened = true;
    }
    if (table->columns[column].align != KARST_RIGHT) {
        table->blanks += width - columns;
    }
    table->blanks += GAP;
    if (column + 1 == table->column_count) {
        table->blanks = 0;
        karst_write(writer, KARST_STYLE_PLAIN, "\n", 1);
    }
}

void karst_table_flush(struct karst_table *table) {
    if (!table || table->cell_count == 0 || table->column_count == 0) {
        return;
    }
    size_t *shown = calloc(table->column_count, sizeof *shown);
    if (!shown) {
        table->writer->out_of_memory = true;
        return;
    }
    fit_widths(table, shown);
    for (size_t i = 0; !table->headed && i < table->column_count; i++) {
        const char *title = table->columns[i].title;
        write_cell(table, i, shown[i], KARST_STYLE_TITLE, title, strlen(title));
    }
    table->headed = true;
    for (size_t i = 0; i < table->cell_count; i++) {
        const struct cell *cell = &table->cells[i];
        size_t column = i % table->column_count;
        write_cell(table, column, shown[column], cell->style, table->text + cell->offset, cell->size);
    }
    free(shown);
    table->cell_count = table->text_size = 0;
}

void karst_table_close(struct karst_table *table) {
    if (!table) {
        return;
    }
    karst_table_flush(table);
    if (table->shortened) {
        karst_print_styled(table->writer, KARST_STYLE_DIM, "(shortened to fit; --json has all of it)\n");
    }
    free(table->widths);
    free(table->cells);
    free(table->text);
    free(table);
}
