#include "writer.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "clean.h"
#include "error.h"
#include "format.h"

void karst_writer_open(struct karst_writer *writer, const struct karst_output *output, bool exact) {
    writer->output = output;
    writer->exact = exact;
    writer->closed = writer->out_of_memory = false;
    writer->style = KARST_STYLE_PLAIN;
    writer->wrap = (struct karst_wrap){0};
    writer->used = 0;
}

bool karst_writer_finish(struct karst_writer *writer, struct karst_error *error) {
    karst_wrap_finish(writer);
    karst_write_flush(writer);
    return !writer->out_of_memory || karst_fail_memory(error);
}

void karst_write(struct karst_writer *writer, enum karst_style style, const char *text, size_t size) {
    if (writer->output->width) {
        karst_wrap_write(writer, style, text, size);
    } else {
        karst_write_raw(writer, style, text, size);
    }
}

static void print(struct karst_writer *writer, enum karst_style style, const char *format,
                  va_list arguments) {
    char *text = karst_format_list(format, arguments);
    if (!text) {
        writer->out_of_memory = true;
        return;
    }
    char few[600];
    size_t size = strlen(text);
    char *clean = size <= sizeof few / 3 ? few : malloc(size * 3);
    if (clean) {
        karst_write(writer, style, clean, karst_clean(text, size, writer->output->unicode, true, clean));
    } else {
        writer->out_of_memory = true;
    }
    if (clean != few) {
        free(clean);
    }
    free(text);
}

void karst_print(struct karst_writer *writer, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print(writer, KARST_STYLE_PLAIN, format, arguments);
    va_end(arguments);
}

void karst_print_styled(struct karst_writer *writer, enum karst_style style, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print(writer, style, format, arguments);
    va_end(arguments);
}

void karst_print_title(struct karst_writer *writer, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print(writer, KARST_STYLE_TITLE, format, arguments);
    va_end(arguments);
    karst_write(writer, KARST_STYLE_PLAIN, "\n", 1);
}

void karst_print_address(struct karst_writer *writer, uint64_t address) {
    karst_print_styled(writer, KARST_STYLE_ADDRESS, "0x%" PRIx64, address);
}

static void start_line(struct karst_writer *writer, size_t indent) {
    karst_print(writer, "\n%*s", (int)indent, "");
}

void karst_print_wrapped(struct karst_writer *writer, size_t column, size_t indent, const char *text) {
    size_t width = writer->output->width ? writer->output->width : 78;
    if (column < indent) {
        karst_print(writer, "%*s", (int)(indent - column), "");
        column = indent;
    }
    bool first = true;
    while (*text) {
        if (*text == '\n') {
            start_line(writer, indent);
            column = indent;
            first = true;
            text++;
            continue;
        }
        size_t size = strcspn(text, " \n");
        size_t columns = karst_columns(text, size);
        if (!first && column + 1 + columns > width) {
            start_line(writer, indent);
            column = indent;
        } else if (!first) {
            karst_print(writer, " ");
            column++;
        }
        karst_print(writer, "%.*s", (int)size, text);
        column += columns;
        first = false;
        text += size;
        text += *text == ' ';
    }
    karst_print(writer, "\n");
}
