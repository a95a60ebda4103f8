#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "verb.h"

static const char *const group_titles[KARST_GROUPS] = {[KARST_GROUP_OVERVIEW] = "Overview",
                                                       [KARST_GROUP_BLOCKS] = "Blocks",
                                                       [KARST_GROUP_HOLES] = "Holes and mappings",
                                                       [KARST_GROUP_DAMAGE] = "Damage",
                                                       [KARST_GROUP_PYTHON] = "CPython"};

static const char *const kind_names[KARST_VALUE_KINDS] = {"flag",  "count", "size",  "range", "address",
                                                          "arena", "bin",   "state", "file",  "text"};

/* "karst block ADDRESS [OPTION ...]" */
static void write_usage(const struct karst_verb *verb, const char *program, struct karst_writer *writer) {
    karst_print_styled(writer, KARST_STYLE_TITLE, "%s%s", program, verb->name);
    for (size_t i = 0; verb->arguments && verb->arguments[i].name; i++) {
        const struct karst_verb_argument *argument = &verb->arguments[i];
        karst_print(writer, argument->required ? " %s" : " [%s]", argument->name);
    }
    karst_print(writer, " [OPTIONS]\n\n");
}

/* A term at column 2, its explanation from column at. */
static void write_item(struct karst_writer *writer, const char *term, const char *help, size_t at) {
    size_t column = 2 + strlen(term);
    karst_print_styled(writer, KARST_STYLE_SYMBOL, "  %s", term);
    if (column + 2 > at) {
        karst_print(writer, "\n");
        column = 0;
    }
    karst_print_wrapped(writer, column, at, help);
}

static void write_option(struct karst_writer *writer, const struct karst_verb_option *option) {
    char term[80], help[400];
    char letter[8] = "    ";
    if (option->letter) {
        snprintf(letter, sizeof letter, "-%c, ", option->letter);
    }
    snprintf(term, sizeof term, "%s--%s%s%s", letter, option->name, option->value ? " " : "",
             option->value ? option->value : "");
    size_t used = (size_t)snprintf(help, sizeof help, "%s%s", option->help, option->choices ? ": " : "");
    for (const char *at = option->choices; at && *at && used + 3 < sizeof help; at++) {
        help[used++] = *at == '|' ? ',' : *at;
        if (*at == '|') {
            help[used++] = ' ';
        }
        help[used] = '\0';
    }
    write_item(writer, term, help, 26);
}

void karst_verb_write_help(const struct karst_verb *verb, const char *program, struct karst_writer *writer) {
    write_usage(verb, program, writer);
    char summary[200];
    snprintf(summary, sizeof summary, "%c%s.", toupper((unsigned char)verb->summary[0]), verb->summary + 1);
    karst_print_wrapped(writer, 0, 0, summary);
    karst_print(writer, "\n");
    karst_print_wrapped(writer, 0, 0, verb->help);
    if (verb->arguments && verb->arguments[0].name) {
        karst_print(writer, "\n");
        karst_print_title(writer, "Arguments");
        for (size_t i = 0; verb->arguments[i].name; i++) {
            write_item(writer, verb->arguments[i].name, verb->arguments[i].help, 26);
        }
    }
    karst_print(writer, "\n");
    karst_print_title(writer, "Options");
    for (size_t i = 0; verb->options && verb->options[i].name; i++) {
        write_option(writer, &verb->options[i]);
    }
    for (size_t i = 0; karst_common_options[i].name; i++) {
        write_option(writer, &karst_common_options[i]);
    }
    if (verb->json) {
        karst_print(writer, "\n");
        karst_print_title(writer, "JSON");
        karst_print_wrapped(writer, 0, 0, verb->json);
    }
}

void karst_verb_write_list(struct karst_writer *writer) {
    for (int group = 0; group < KARST_GROUPS; group++) {
        karst_print_title(writer, "%s", group_titles[group]);
        for (size_t i = 0; karst_verbs[i]; i++) {
            const struct karst_verb *verb = karst_verbs[i];
            if ((int)verb->group != group) {
                continue;
            }
            char term[80];
            const struct karst_verb_argument *argument = verb->arguments;
            bool has = argument && argument->name, required = has && argument->required;
            snprintf(term, sizeof term, "%s%s%s%s", verb->name,
                     !has       ? ""
                     : required ? " "
                                : " [",
                     has ? argument->name : "", has && !required ? "]" : "");
            write_item(writer, term, verb->summary, 18);
        }
        karst_print(writer, "\n");
    }
}

/* ---- the table as JSON --------------------------------------------------------------------------- */

static void add_options(struct karst_writer *writer, json_t *list, const struct karst_verb_option *options) {
    for (; options && options->name; options++) {
        char letter[2] = {options->letter, '\0'};
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "name", options->name);
        karst_json_set_text(writer, one, "letter", options->letter ? letter : NULL);
        karst_json_set_text(writer, one, "kind", kind_names[options->kind]);
        karst_json_set_text(writer, one, "value", options->value);
        karst_json_set_text(writer, one, "choices", options->choices);
        karst_json_set_text(writer, one, "help", options->help);
        karst_json_append(writer, list, one);
    }
}

static json_t *verb_json(struct karst_writer *writer, const struct karst_verb *verb) {
    json_t *root = karst_json_object(writer), *arguments = karst_json_array(writer),
           *options = karst_json_array(writer);
    karst_json_set_text(writer, root, "name", verb->name);
    karst_json_set_text(writer, root, "group", group_titles[verb->group]);
    karst_json_set_text(writer, root, "summary", verb->summary);
    karst_json_set_text(writer, root, "help", verb->help);
    karst_json_set_text(writer, root, "json", verb->json);
    for (size_t i = 0; verb->arguments && verb->arguments[i].name; i++) {
        const struct karst_verb_argument *argument = &verb->arguments[i];
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "name", argument->name);
        karst_json_set_text(writer, one, "kind", kind_names[argument->kind]);
        karst_json_set_flag(writer, one, "required", argument->required);
        karst_json_set_text(writer, one, "help", argument->help);
        karst_json_append(writer, arguments, one);
    }
    karst_json_set(writer, root, "arguments", arguments);
    add_options(writer, options, verb->options);
    add_options(writer, options, karst_common_options);
    karst_json_set(writer, root, "options", options);
    return root;
}

static char *verbs_json;

static void make_verbs_json(void) {
    struct karst_writer *latch = calloc(1, sizeof *latch); /* only notes a failure, writes nothing */
    json_t *root = latch ? karst_json_array(latch) : NULL;
    for (size_t i = 0; root && karst_verbs[i]; i++) {
        karst_json_append(latch, root, verb_json(latch, karst_verbs[i]));
    }
    if (root && !latch->out_of_memory) {
        verbs_json = json_dumps(root, JSON_COMPACT);
    }
    json_decref(root);
    free(latch);
}

const char *karst_verbs_json(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_verbs_json);
    return verbs_json;
}

const char *karst_nearest_word(const char *typed, const char *const *words, size_t count) {
    struct karst_nearest nearest = {.word = typed};
    for (size_t i = 0; i < count; i++) {
        karst_nearest_offer(&nearest, words[i]);
    }
    return nearest.nearest;
}
