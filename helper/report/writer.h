/* Text and JSON for a karst_output: what every verb says goes through here, so that the command line,
 * GDB and drgn say the same words. Errors latch: a verb prints on and asks once, at the end. */
#ifndef KARST_REPORT_WRITER_H
#define KARST_REPORT_WRITER_H

#include <jansson.h>

#include "karst.h"

#define KARST_WRAP_PIECES 8

struct karst_wrap_piece {
    enum karst_style style;
    size_t size;
};

/* The line under way, on an output with a width; see wrap.c. */
struct karst_wrap {
    size_t column;       /* what stands on the line */
    size_t indent;       /* the blanks that its paragraph began with */
    size_t hang;         /* where what follows the line begins; 0: a little behind that */
    size_t blanks;       /* owed before the word */
    bool split;          /* the word goes on from what was too long to be kept */
    size_t word_columns; /* of the word that did not end yet */
    size_t word_size, piece_count;
    struct karst_wrap_piece pieces[KARST_WRAP_PIECES];
    char word[512];
};

struct karst_writer {
    const struct karst_output *output;
    bool exact;         /* sizes as plain numbers of bytes (--bytes) */
    bool closed;        /* output->write said that nobody reads any more */
    bool out_of_memory; /* some of the answer could not be made */
    enum karst_style style;
    struct karst_wrap wrap;
    size_t used;
    char buffer[16384]; /* text of one style that was not handed on yet */
};

/* No memory is taken. The writer holds output until karst_writer_finish(). */
void karst_writer_open(struct karst_writer *writer, const struct karst_output *output, bool exact);
/* Hands on what is left. False with error when the answer is not whole for lack of memory; a reader that
 * went away is no error. */
bool karst_writer_finish(struct karst_writer *writer, struct karst_error *error) KARST_CHECKED;

/* Text as it is, which has to be karst's own: control characters pass. Lines that are longer than the output
 * is wide are broken at a blank; all that is printed goes this way. */
void karst_write(struct karst_writer *writer, enum karst_style style, const char *text, size_t size);
/* The same without a look at its lines: JSON. */
void karst_write_raw(struct karst_writer *writer, enum karst_style style, const char *text, size_t size);
/* Hands on what of that is waiting. */
void karst_write_flush(struct karst_writer *writer);
/* For writer.c: as karst_write(), on an output with a width; and at the end what was kept back. */
void karst_wrap_write(struct karst_writer *writer, enum karst_style style, const char *text, size_t size);
void karst_wrap_finish(struct karst_writer *writer);
/* Where the line under way goes on if it is too long; until it ends. */
void karst_wrap_hang(struct karst_writer *writer, size_t column);
/* printf. Characters that a terminal could take for commands, as names in a hostile target may hold, are
 * replaced; so are those beyond ASCII where the output takes none. Newlines pass. */
void karst_print(struct karst_writer *writer, const char *format, ...) __attribute__((format(printf, 2, 3)));
void karst_print_styled(struct karst_writer *writer, enum karst_style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A paragraph, broken between words at the output's width (78 columns when that is unlimited), each line
 * after indent spaces. The first line begins at column: what was already printed on it. */
void karst_print_wrapped(struct karst_writer *writer, size_t column, size_t indent, const char *text);
/* "0x7f12..." */
void karst_print_address(struct karst_writer *writer, uint64_t address);
/* A line in the style of titles. */
void karst_print_title(struct karst_writer *writer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- numbers as people read them ---------------------------------------------------------------- */

struct karst_text {
    char text[40];
};

/* "8.5 MB", "232 bytes" (1 KB = 1024 bytes); with writer->exact "8,880,480". */
struct karst_text karst_size_text(const struct karst_writer *writer, uint64_t size);
/* "39,332" */
struct karst_text karst_count_text(uint64_t count);
/* "61 %", "0.3 %", "<0.1 %"; "-" of nothing. */
struct karst_text karst_share_text(uint64_t part, uint64_t whole);
/* "s" unless count is 1. */
const char *karst_plural(uint64_t count);

/* ---- tables ------------------------------------------------------------------------------------- */

enum karst_align {
    KARST_LEFT,
    KARST_RIGHT,
    KARST_FLEXIBLE, /* left, and shortened with an ellipsis where the output is too narrow */
    KARST_WRAPPED   /* left, of the last column: goes on below itself */
};

/* On an output that is too narrow columns are left out, which is said under the table: first the spare ones;
 * then, if it does not help to shorten those that can be, the others, NEED_8 before NEED_7. Of equal ones the
 * rightmost goes first. If it is too narrow for those that are needed, each row becomes a few lines. The JSON
 * has to have all of what may be left out or shortened. */
enum karst_need {
    KARST_NEED_1 = 1 << 4,
    KARST_NEED_2 = 2 << 4,
    KARST_NEED_3 = 3 << 4,
    KARST_NEED_4 = 4 << 4,
    KARST_NEED_5 = 5 << 4,
    KARST_NEED_6 = 6 << 4,
    KARST_NEED_7 = 7 << 4,
    KARST_NEED_8 = 8 << 4,
    KARST_SPARE = 9 << 4
};

struct karst_column {
    const char *title;
    unsigned layout; /* an enum karst_align; | an enum karst_need where it may be left out */
};

static inline enum karst_align karst_column_align(const struct karst_column *column) {
    return (enum karst_align)(column->layout & 0xf);
}

static inline unsigned karst_column_need(const struct karst_column *column) {
    return column->layout & ~0xfu;
}

struct karst_table;

/* Columns as wide as what is in them. NULL (latched in writer) when there is no memory; all functions
 * below take that NULL and do nothing. columns has to outlive the table. */
struct karst_table *karst_table_open(struct karst_writer *writer, const struct karst_column *columns,
                                     size_t count);
/* The next cell; a row is begun by its first cell and ended by its last. */
void karst_table_text(struct karst_table *table, enum karst_style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void karst_table_size(struct karst_table *table, uint64_t size);
void karst_table_count(struct karst_table *table, uint64_t count);
void karst_table_address(struct karst_table *table, uint64_t address);
void karst_table_empty(struct karst_table *table);
/* The same, "?" for UINT64_MAX: what can't be told. */
void karst_table_known_size(struct karst_table *table, uint64_t size);
/* Prints the rows so far; more may follow under the same header, in columns at least as wide. For lists
 * without a bound. */
void karst_table_flush(struct karst_table *table);
/* Prints what was not flushed and frees the table. A table without rows prints nothing. */
void karst_table_close(struct karst_table *table);

/* ---- JSON --------------------------------------------------------------------------------------- */

/* Jansson's objects, with failures latched in the writer instead of checked at each step. Objects and
 * values may be NULL. Values given are taken over. */
json_t *karst_json_object(struct karst_writer *writer);
json_t *karst_json_array(struct karst_writer *writer);
void karst_json_set(struct karst_writer *writer, json_t *object, const char *key, json_t *value);
void karst_json_append(struct karst_writer *writer, json_t *array, json_t *value);
void karst_json_set_address(struct karst_writer *writer, json_t *object, const char *key, uint64_t address);
/* null for 0: there is none. */
void karst_json_set_known_address(struct karst_writer *writer, json_t *object, const char *key,
                                  uint64_t address);
/* Sizes and counts are integers. */
void karst_json_set_number(struct karst_writer *writer, json_t *object, const char *key, uint64_t number);
/* null for UINT64_MAX: what can't be told. */
void karst_json_set_known(struct karst_writer *writer, json_t *object, const char *key, uint64_t number);
/* null for NULL; bytes that are no UTF-8 become U+FFFD. */
void karst_json_set_text(struct karst_writer *writer, json_t *object, const char *key, const char *text);
void karst_json_set_flag(struct karst_writer *writer, json_t *object, const char *key, bool flag);
/* A string value as for karst_json_set_text(); for arrays. */
json_t *karst_json_text(const char *text);
/* Writes root on one line and lets it go. */
void karst_json_write(struct karst_writer *writer, json_t *root);

#endif
