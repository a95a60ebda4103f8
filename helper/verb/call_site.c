#include "call_site.h"

#include <stdlib.h>
#include <string.h>

#define NAME_SLOTS 4096u

void karst_site_write_stack(struct karst_call *call, uint64_t site) {
    uint64_t frames[KARST_SITE_FRAMES];
    size_t depth = karst_marker_frames(karst_session_marker(call->session), call->session, site, frames);
    for (size_t i = 0; i < depth; i++) {
        char text[400];
        karst_site_text(call->session, frames[i], KARST_SYMBOL_READABLE, text, sizeof text);
        karst_print(&call->writer, "    ");
        karst_print_address(&call->writer, frames[i]);
        karst_print(&call->writer, " %s\n", text);
    }
}

json_t *karst_site_stack_json(struct karst_call *call, uint64_t site) {
    struct karst_writer *writer = &call->writer;
    json_t *stack = karst_json_array(writer);
    uint64_t frames[KARST_SITE_FRAMES];
    size_t depth = karst_marker_frames(karst_session_marker(call->session), call->session, site, frames);
    for (size_t i = 0; i < depth; i++) {
        char text[400];
        json_t *frame = karst_json_object(writer);
        karst_json_set_address(writer, frame, "address", frames[i]);
        karst_site_text(call->session, frames[i], KARST_SYMBOL_LINKED, text, sizeof text);
        karst_json_set_text(writer, frame, "text", text);
        karst_site_text(call->session, frames[i], KARST_SYMBOL_READABLE, text, sizeof text);
        karst_json_set_text(writer, frame, "demangled", text);
        karst_json_append(writer, stack, frame);
    }
    return stack;
}

/* ---- names ------------------------------------------------------------------------------------------- */

static void clear_name(struct karst_site_name *name) {
    free(name->text);
    free(name->quoted);
    *name = (struct karst_site_name){0};
}

static bool make_name(struct karst_site_name *name, struct karst *session, uint64_t site) {
    const struct karst_marker *marker = karst_session_marker(session);
    char text[400];
    karst_site_summary(marker, session, site, KARST_SYMBOL_READABLE, text, sizeof text);
    name->text = strdup(text);
    karst_site_summary(marker, session, site, KARST_SYMBOL_LINKED, text, sizeof text);
    json_t *value = karst_json_text(text);
    name->quoted = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    name->site = site;
    json_decref(value);
    return name->text && name->quoted;
}

const struct karst_site_name *karst_site_names_get(struct karst_site_names *names, uint64_t site) {
    if (!names->slots) {
        names->slots = calloc(NAME_SLOTS, sizeof *names->slots);
        if (!names->slots) {
            return NULL;
        }
    }
    struct karst_site_name *name =
        &names->slots[site * UINT64_C(0x9e3779b97f4a7c15) >> 32 & (NAME_SLOTS - 1)];
    if (name->site == site && name->text) {
        return name;
    }
    clear_name(name);
    if (!make_name(name, names->session, site)) {
        clear_name(name);
        return NULL;
    }
    return name;
}

void karst_site_names_close(struct karst_site_names *names) {
    for (size_t i = 0; names->slots && i < NAME_SLOTS; i++) {
        clear_name(&names->slots[i]);
    }
    free(names->slots);
    *names = (struct karst_site_names){0};
}
