#include "writer.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
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

static void hand_on(struct karst_writer *writer, const char *text, size_t size) {
    if (size && !writer->closed &&
        !writer->output->write(writer->output->context, writer->style, text, size)) {
        writer->closed = true;
    }
}

static void flush(struct karst_writer *writer) {
    hand_on(writer, writer->buffer, writer->used);
    writer->used = 0;
}

bool karst_writer_finish(struct karst_writer *writer, struct karst_error *error) {
    karst_wrap_finish(writer);
    flush(writer);
    return !writer->out_of_memory || karst_fail_memory(error);
}

void karst_write_raw(struct karst_writer *writer, enum karst_style style, const char *text, size_t size) {
    if (style != writer->style || size > sizeof writer->buffer - writer->used) {
        flush(writer);
        writer->style = style;
    }
    if (size > sizeof writer->buffer) {
        hand_on(writer, text, size);
        return;
    }
    memcpy(writer->buffer + writer->used, text, size);
    writer->used += size;
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

struct karst_text karst_count_text(uint64_t count) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, count);
    struct karst_text result;
    size_t used = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            result.text[used++] = ',';
        }
        result.text[used++] = digits[i];
    }
    result.text[used] = '\0';
    return result;
}

struct karst_text karst_size_text(const struct karst_writer *writer, uint64_t size) {
    static const char *const units[] = {"KB", "MB", "GB", "TB", "PB", "EB"};
    if (writer->exact) {
        return karst_count_text(size);
    }
    struct karst_text result;
    if (size < 1024) {
        snprintf(result.text, sizeof result.text, "%" PRIu64 " B", size);
        return result;
    }
    double value = (double)size / 1024;
    size_t unit = 0;
    /* 1023.95 would be shown as 1024.0. */
    while (value >= 1023.95 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        unit++;
    }
    snprintf(result.text, sizeof result.text, "%.1f %s", value, units[unit]);
    return result;
}

struct karst_text karst_share_text(uint64_t part, uint64_t whole) {
    struct karst_text result = {"-"};
    if (whole == 0) {
        return result;
    }
    double percent = 100 * (double)part / (double)whole;
    if (part == 0) {
        snprintf(result.text, sizeof result.text, "0 %%");
    } else if (percent < 0.1) {
        snprintf(result.text, sizeof result.text, "<0.1 %%");
    } else if (percent < 10) {
        snprintf(result.text, sizeof result.text, "%.1f %%", percent);
    } else {
        snprintf(result.text, sizeof result.text, "%.0f %%", percent);
    }
    return result;
}

const char *karst_plural(uint64_t count) {
    return count == 1 ? "" : "s";
}
