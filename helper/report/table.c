#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clean.h"
#include "format.h"
#include "table_fit.h"
#include "writer.h"

struct cell {
    size_t offset, size; /* in the table's text */
    enum karst_style style;
};

struct karst_table {
    struct karst_writer *writer;
    const struct karst_column *columns;
    size_t column_count;
    struct karst_column_fit *fits; /* of each column */
    struct cell *cells;            /* row by row */
    size_t cell_count, cell_room;
    char *text;
    size_t text_size, text_room;
    bool headed;    /* the header row was printed */
    bool in_lines;  /* no row fits: a line for each of its cells */
    bool shortened; /* some cell was cut */
    size_t column;  /* where on the line, blanks counted */
    size_t blanks;  /* owed: written only when something follows on the line */
};

struct karst_table *karst_table_open(struct karst_writer *writer, const struct karst_column *columns,
                                     size_t count) {
    struct karst_table *table = calloc(1, sizeof *table);
    struct karst_column_fit *fits = calloc(count, sizeof *fits);
    if (!table || !fits) {
        free(table);
        free(fits);
        writer->out_of_memory = true;
        return NULL;
    }
    *table = (struct karst_table){.writer = writer, .columns = columns, .column_count = count, .fits = fits};
    for (size_t i = 0; i < count; i++) {
        fits[i].width = karst_columns(columns[i].title, strlen(columns[i].title));
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
    size_t *width = &table->fits[table->cell_count % table->column_count].width;
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
    char *text;
    KARST_FORMAT(text, format);
    if (!text) {
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
    size_t width = table->fits[column].shown, columns = karst_columns(text, size);
    bool right = karst_column_align(&table->columns[column]) == KARST_RIGHT, shorten = columns > width;
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
    table->blanks += KARST_TABLE_GAP;
    table->column += width + KARST_TABLE_GAP;
}

static void write_cell(struct karst_table *table, size_t column, enum karst_style style, const char *text,
                       size_t size) {
    bool wrapped =
        karst_column_align(&table->columns[column]) == KARST_WRAPPED && table->writer->output->width;
    if (wrapped && size) {
        write_after_blanks(table, style, "", 0);
        karst_wrap_hang(table->writer, table->column);
        karst_write(table->writer, style, text, size);
    } else if (!table->fits[column].left_out) {
        write_text(table, column, style, text, size);
    }
    if (column + 1 == table->column_count) {
        table->blanks = table->column = 0;
        karst_write(table->writer, KARST_STYLE_PLAIN, "\n", 1);
    }
}

/* A row as lines, each a title and what stands under it; all but the first are set in. */
static void write_lines(struct karst_table *table, const struct cell *row) {
    size_t widest = 0;
    for (size_t i = 0; i < table->column_count; i++) {
        size_t width = strlen(table->columns[i].title);
        widest = width > widest ? width : widest;
    }
    for (size_t i = 0; i < table->column_count; i++) {
        if (row[i].size == 0) {
            continue;
        }
        const char *title = table->columns[i].title;
        karst_print_styled(table->writer, KARST_STYLE_TITLE, "%s%s", i ? "  " : "", title);
        karst_print(table->writer, "%*s", (int)(widest - strlen(title)) + (i ? 2 : 4), "");
        karst_wrap_hang(table->writer, widest + 4);
        karst_write(table->writer, row[i].style, table->text + row[i].offset, row[i].size);
        karst_write(table->writer, KARST_STYLE_PLAIN, "\n", 1);
    }
}

/* Nothing is left away without a word. */
static void write_note(const struct karst_table *table) {
    struct karst_writer *writer = table->writer;
    const char *before = "(left out to fit: ";
    for (size_t i = 0; i < table->column_count; i++) {
        if (table->fits[i].left_out && *table->columns[i].title) {
            karst_print_styled(writer, KARST_STYLE_DIM, "%s%s", before, table->columns[i].title);
            before = ", ";
        }
    }
    if (before[0] == ',' || table->shortened) {
        karst_print_styled(writer, KARST_STYLE_DIM, "%s--json has all)\n",
                           before[0] == ',' ? "; " : "(shortened to fit; ");
    }
}

/* Columns that were in a header that was printed stay. */
static void fit(struct karst_table *table) {
    size_t limit = table->writer->output->width;
    bool first = !table->headed;
    if (!karst_table_fit(table->columns, table->fits, table->column_count, limit, first) && first) {
        table->in_lines = true;
        for (size_t i = 0; i < table->column_count; i++) {
            table->fits[i].left_out = false;
        }
    }
    for (size_t i = 0; first && !table->in_lines && i < table->column_count; i++) {
        const char *title = table->columns[i].title;
        write_cell(table, i, KARST_STYLE_TITLE, title, strlen(title));
    }
    table->headed = true;
}

void karst_table_flush(struct karst_table *table) {
    if (!table || table->cell_count == 0 || table->column_count == 0) {
        return;
    }
    fit(table);
    for (size_t row = 0; row + table->column_count <= table->cell_count; row += table->column_count) {
        const struct cell *cells = table->cells + row;
        if (table->in_lines) {
            write_lines(table, cells);
            continue;
        }
        for (size_t i = 0; i < table->column_count; i++) {
            write_cell(table, i, cells[i].style, table->text + cells[i].offset, cells[i].size);
        }
    }
    table->cell_count = table->text_size = 0;
}

void karst_table_close(struct karst_table *table) {
    if (!table) {
        return;
    }
    karst_table_flush(table);
    write_note(table);
    free(table->fits);
    free(table->cells);
    free(table->text);
    free(table);
}
