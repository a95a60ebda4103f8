#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clean.h"
#include "writer.h"

static json_t *checked(struct karst_writer *writer, json_t *value) {
    if (!value) {
        writer->out_of_memory = true;
    }
    return value;
}

json_t *karst_json_object(struct karst_writer *writer) {
    return checked(writer, json_object());
}

json_t *karst_json_array(struct karst_writer *writer) {
    return checked(writer, json_array());
}

void karst_json_set(struct karst_writer *writer, json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value)) {
        writer->out_of_memory = true;
    }
}

void karst_json_append(struct karst_writer *writer, json_t *array, json_t *value) {
    if (json_array_append_new(array, value)) {
        writer->out_of_memory = true;
    }
}

static json_t *address_json(uint64_t address) {
    char text[24];
    snprintf(text, sizeof text, "0x%" PRIx64, address);
    return json_string(text);
}

/* JSON's integers here are signed; a greater number can only come from damage. */
static json_t *json_number(uint64_t number) {
    return json_integer(number > INT64_MAX ? INT64_MAX : (json_int_t)number);
}

json_t *karst_json_text(const char *text) {
    static const char replacement[] = "\xef\xbf\xbd";
    size_t size = strlen(text), used = 0;
    char *valid = malloc(size * 3 + 1);
    if (!valid) {
        return NULL;
    }
    for (size_t i = 0; i < size;) {
        uint32_t character = 0;
        size_t length = karst_utf8_decode(text + i, size - i, &character);
        /* DEL is the one control character that JSON writers leave as it is. */
        length = character == 0x7f ? 0 : length;
        memcpy(valid + used, length ? text + i : replacement, length ? length : 3);
        used += length ? length : 3;
        i += length ? length : 1;
    }
    json_t *value = json_stringn(valid, used);
    free(valid);
    return value;
}

void karst_json_set_address(struct karst_writer *writer, json_t *object, const char *key, uint64_t address) {
    karst_json_set(writer, object, key, address_json(address));
}

void karst_json_set_known_address(struct karst_writer *writer, json_t *object, const char *key,
                                  uint64_t address) {
    karst_json_set(writer, object, key, address ? address_json(address) : json_null());
}

void karst_json_set_number(struct karst_writer *writer, json_t *object, const char *key, uint64_t number) {
    karst_json_set(writer, object, key, json_number(number));
}

void karst_json_set_known(struct karst_writer *writer, json_t *object, const char *key, uint64_t number) {
    karst_json_set(writer, object, key, number == UINT64_MAX ? json_null() : json_number(number));
}

void karst_json_set_text(struct karst_writer *writer, json_t *object, const char *key, const char *text) {
    karst_json_set(writer, object, key, text ? karst_json_text(text) : json_null());
}

void karst_json_set_flag(struct karst_writer *writer, json_t *object, const char *key, bool flag) {
    karst_json_set(writer, object, key, json_boolean(flag));
}

static int write_piece(const char *text, size_t size, void *data) {
    struct karst_writer *writer = data;
    karst_write_raw(writer, KARST_STYLE_PLAIN, text, size);
    return writer->closed ? -1 : 0;
}

/* ASCII only: a terminal may take more than C0 for controls. */
void karst_json_write(struct karst_writer *writer, json_t *root) {
    if (!writer->out_of_memory) {
        if (json_dump_callback(root, write_piece, writer, JSON_COMPACT | JSON_ENSURE_ASCII) &&
            !writer->closed) {
            writer->out_of_memory = true;
        }
        karst_write_raw(writer, KARST_STYLE_PLAIN, "\n", 1);
    }
    json_decref(root);
}
