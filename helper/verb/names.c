/* What arenas, bins, states and targets are called, by verbs and by whoever asks. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "verb.h"

enum karst_style karst_state_style(enum karst_state state) {
    static const enum karst_style styles[KARST_STATES] = {
        [KARST_STATE_LIVE] = KARST_STYLE_PLAIN,   [KARST_STATE_FREE] = KARST_STYLE_GOOD,
        [KARST_STATE_CACHED] = KARST_STYLE_GOOD,  [KARST_STATE_TOP] = KARST_STYLE_DIM,
        [KARST_STATE_METADATA] = KARST_STYLE_DIM, [KARST_STATE_UNKNOWN] = KARST_STYLE_WARNING,
    };
    return state < KARST_STATES ? styles[state] : KARST_STYLE_PLAIN;
}

bool karst_arena_matches(const struct karst_heap *heap, uint32_t arena, const char *text) {
    size_t prefix = strlen(heap->name);
    if (strncmp(text, heap->name, prefix) == 0 && text[prefix] == '/') {
        text += prefix + 1;
    }
    if (arena >= heap->arena_count) {
        return strcmp(text, "mapped") == 0;
    }
    if (strcmp(text, heap->arenas[arena].name) == 0) {
        return true;
    }
    struct karst_value value;
    return text[0] >= '0' && text[0] <= '9' && karst_parse_value(KARST_VALUE_ADDRESS, text, &value, NULL) &&
           (value.number == arena || value.number == heap->arenas[arena].address);
}

bool karst_bin_matches(const struct karst_heap *heap, uint32_t bin, const char *text) {
    if (bin >= heap->bin_count) {
        return false;
    }
    const struct karst_bin *of = &heap->bins[bin];
    if (strcmp(text, of->name) == 0 || strcmp(text, of->kind) == 0) {
        return true;
    }
    size_t kind = strlen(of->kind);
    struct karst_value size;
    return strncmp(text, of->kind, kind) == 0 && text[kind] == ' ' &&
           karst_parse_value(KARST_VALUE_SIZE, text + kind + 1, &size, NULL) && size.number >= of->smallest &&
           size.number <= of->largest;
}

/* Appends name to a list that is cut short with an ellipsis once it is long. */
static void list_name(char *list, size_t room, const char *name) {
    size_t used = strlen(list);
    if (used + strlen(name) + 10 < room) {
        snprintf(list + used, room - used, "%s%s", used ? ", " : "", name);
    } else if (strcmp(list + used - 3, "...") != 0) {
        snprintf(list + used, room - used, ", ...");
    }
}

bool karst_call_check_arena(struct karst_call *call, const struct karst_value *value) {
    struct karst_nearest nearest = {.word = value->text};
    char names[300] = "";
    if (!value->given) {
        return true;
    }
    for (size_t i = 0; i < call->session->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        for (uint32_t arena = 0; arena < heap->arena_count; arena++) {
            if (karst_arena_matches(heap, arena, value->text)) {
                return true;
            }
            karst_nearest_offer(&nearest, heap->arenas[arena].name);
            list_name(names, sizeof names, karst_arena_text(call->session, (uint16_t)i, arena).text);
        }
        if (karst_arena_matches(heap, KARST_NONE, value->text)) {
            return true;
        }
    }
    karst_nearest_offer(&nearest, "mapped");
    if (nearest.nearest) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND, "no arena '%s'; did you mean %s?", value->text,
                          nearest.nearest);
    }
    return karst_fail(call->error, KARST_ERROR_NOT_FOUND, "no arena '%s'; there are: %s, mapped", value->text,
                      names);
}

bool karst_call_check_bin(struct karst_call *call, const struct karst_value *value) {
    struct karst_nearest nearest = {.word = value->text};
    char kinds[200] = "";
    if (!value->given) {
        return true;
    }
    for (size_t i = 0; i < call->session->heap_count; i++) {
        const struct karst_heap *heap = call->session->heaps[i];
        for (uint32_t bin = 0; bin < heap->bin_count; bin++) {
            if (karst_bin_matches(heap, bin, value->text)) {
                return true;
            }
            karst_nearest_offer(&nearest, heap->bins[bin].name);
            karst_nearest_offer(&nearest, heap->bins[bin].kind);
            if (!strstr(kinds, heap->bins[bin].kind)) {
                list_name(kinds, sizeof kinds, heap->bins[bin].kind);
            }
        }
    }
    if (nearest.nearest) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND, "no bin '%s'; did you mean '%s'?", value->text,
                          nearest.nearest);
    }
    return karst_fail(call->error, KARST_ERROR_NOT_FOUND,
                      "no bin '%s'; kinds: %s; `bins --all` lists the names", value->text, kinds);
}

/* {"name", "kind", "pid", "remarks", ...} */
static json_t *target_json(struct karst_writer *writer, const struct karst_target *target) {
    static const char *const kinds[] = {"core", "process", "callbacks"};
    json_t *root = karst_json_object(writer);
    karst_json_set_text(writer, root, "kind", kinds[target->kind]);
    karst_json_set_text(writer, root, "name", target->name);
    karst_json_set(writer, root, "pid", target->pid ? json_integer(target->pid) : json_null());
    karst_json_set_text(writer, root, "executable", target->executable);
    karst_json_set(writer, root, "signal", target->signal ? json_integer(target->signal) : json_null());
    karst_json_set_number(writer, root, "threads", target->thread_count);
    karst_json_set_flag(writer, root, "stopped", target->stopped);
    karst_json_set_flag(writer, root, "missing_memory", target->missing_memory);
    json_t *remarks = karst_json_array(writer);
    for (size_t i = 0; i < target->remark_count; i++) {
        karst_json_append(writer, remarks, karst_json_text(target->remarks[i]));
    }
    karst_json_set(writer, root, "remarks", remarks);
    return root;
}

void karst_call_write_json(struct karst_call *call, json_t *root) {
    karst_json_set(&call->writer, root, "target", target_json(&call->writer, call->session->target));
    karst_json_write(&call->writer, root);
}
