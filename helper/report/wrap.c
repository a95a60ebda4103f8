/* Lines that fit a terminal: what is too long for one goes on in the next, at a blank. */
#include <string.h>

#include "writer.h"

#define LEAST_WIDTH 12 /* of what is set in */

static void put_blanks(struct karst_writer *writer, size_t count) {
    static const char blanks[] = "                                ";
    while (count) {
        size_t part = count < sizeof blanks - 1 ? count : sizeof blanks - 1;
        karst_write_raw(writer, KARST_STYLE_PLAIN, blanks, part);
        count -= part;
    }
}

static void put_word(struct karst_writer *writer) {
    struct karst_wrap *wrap = &writer->wrap;
    const char *at = wrap->word;
    for (size_t i = 0; i < wrap->piece_count; i++) {
        karst_write_raw(writer, wrap->pieces[i].style, at, wrap->pieces[i].size);
        at += wrap->pieces[i].size;
    }
    wrap->column += wrap->word_columns;
    wrap->word_size = wrap->word_columns = wrap->piece_count = 0;
}

/* Where what follows the first line of a paragraph begins: a little behind that, where it is set in itself.
 */
static size_t hanging(const struct karst_wrap *wrap, size_t width) {
    size_t indent = wrap->hang ? wrap->hang : wrap->indent ? wrap->indent + 2 : 0;
    return indent + LEAST_WIDTH <= width ? indent : 0;
}

static void end_word(struct karst_writer *writer) {
    struct karst_wrap *wrap = &writer->wrap;
    size_t width = writer->output->width, indent = hanging(wrap, width);
    if (wrap->word_size == 0) {
        return;
    }
    if (wrap->column == 0) {
        wrap->indent = wrap->blanks;
    } else if (!wrap->split && wrap->column > indent &&
               wrap->column + wrap->blanks + wrap->word_columns > width) {
        karst_write_raw(writer, KARST_STYLE_PLAIN, "\n", 1);
        wrap->column = 0;
        wrap->blanks = indent;
    }
    put_blanks(writer, wrap->blanks);
    wrap->column += wrap->blanks;
    wrap->blanks = 0;
    wrap->split = false;
    put_word(writer);
}

static void end_line(struct karst_writer *writer) {
    end_word(writer);
    karst_write_raw(writer, KARST_STYLE_PLAIN, "\n", 1);
    writer->wrap.column = writer->wrap.indent = writer->wrap.hang = writer->wrap.blanks = 0;
    writer->wrap.split = false;
}

static void add_byte(struct karst_writer *writer, enum karst_style style, char byte) {
    struct karst_wrap *wrap = &writer->wrap;
    struct karst_wrap_piece *piece = wrap->pieces + wrap->piece_count - 1;
    bool other = wrap->piece_count == 0 || piece->style != style;
    if (wrap->word_size == sizeof wrap->word || (other && wrap->piece_count == KARST_WRAP_PIECES)) {
        end_word(writer);
        wrap->split = true;
        other = true;
    }
    if (other) {
        piece = &wrap->pieces[wrap->piece_count++];
        *piece = (struct karst_wrap_piece){style, 0};
    }
    wrap->word[wrap->word_size++] = byte;
    wrap->word_columns += ((unsigned char)byte & 0xc0) != 0x80;
    piece->size++;
}

void karst_wrap_write(struct karst_writer *writer, enum karst_style style, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '\n') {
            end_line(writer);
        } else if (text[i] == ' ') {
            end_word(writer);
            writer->wrap.blanks++;
        } else {
            add_byte(writer, style, text[i]);
        }
    }
}

void karst_wrap_hang(struct karst_writer *writer, size_t column) {
    end_word(writer);
    writer->wrap.hang = column;
}

void karst_wrap_finish(struct karst_writer *writer) {
    end_word(writer);
    put_blanks(writer, writer->wrap.blanks);
    writer->wrap.blanks = 0;
}
