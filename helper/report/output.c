/* Text as it is, handed on in pieces of one style. */
#include <string.h>

#include "writer.h"

static void hand_on(struct karst_writer *writer, const char *text, size_t size) {
    if (size && !writer->closed &&
        !writer->output->write(writer->output->context, writer->style, text, size)) {
        writer->closed = true;
    }
}

void karst_write_flush(struct karst_writer *writer) {
    hand_on(writer, writer->buffer, writer->used);
    writer->used = 0;
}

void karst_write_raw(struct karst_writer *writer, enum karst_style style, const char *text, size_t size) {
    if (style != writer->style || size > sizeof writer->buffer - writer->used) {
        karst_write_flush(writer);
        writer->style = style;
    }
    if (size > sizeof writer->buffer) {
        hand_on(writer, text, size);
        return;
    }
    memcpy(writer->buffer + writer->used, text, size);
    writer->used += size;
}
