#include <ctype.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "verb.h"

#define COMMON_COUNT 3
#define LETTERS      (2 * (KARST_OPTIONS_MAX + COMMON_COUNT) + 3)

/* getopt_long() keeps its state in globals; sessions on other threads may be parsing too. */
static pthread_mutex_t getopt_lock = PTHREAD_MUTEX_INITIALIZER;

/* The tables as getopt_long() wants them. Long options give FIRST_LONG + index: the verb's own first, the
 * common ones from KARST_OPTIONS_MAX on. */
#define FIRST_LONG 256

struct getopt_tables {
    struct option longs[KARST_OPTIONS_MAX + COMMON_COUNT + 1];
    char letters[LETTERS];
};

static void add_option(struct getopt_tables *tables, size_t *count, const struct karst_verb_option *option,
                       int value) {
    tables->longs[(*count)++] = (struct option){
        option->name, option->kind == KARST_VALUE_FLAG ? no_argument : required_argument, NULL, value};
    if (option->letter) {
        char *end = tables->letters + strlen(tables->letters);
        *end++ = option->letter;
        if (option->kind != KARST_VALUE_FLAG) {
            *end = ':';
        }
    }
}

static void make_tables(struct getopt_tables *tables, const struct karst_verb *verb) {
    *tables = (struct getopt_tables){.letters = "-:"};
    size_t count = 0;
    for (int i = 0; verb->options && verb->options[i].name && i < KARST_OPTIONS_MAX; i++) {
        add_option(tables, &count, &verb->options[i], FIRST_LONG + i);
    }
    for (int i = 0; karst_common_options[i].name; i++) {
        add_option(tables, &count, &karst_common_options[i], FIRST_LONG + KARST_OPTIONS_MAX + i);
    }
}

/* The index, as in FIRST_LONG, of the option with a letter; -1: none. */
static int index_of_letter(const struct karst_verb *verb, int letter) {
    for (int i = 0; verb->options && verb->options[i].name; i++) {
        if (verb->options[i].letter == letter) {
            return i;
        }
    }
    for (int i = 0; karst_common_options[i].name; i++) {
        if (karst_common_options[i].letter == letter) {
            return KARST_OPTIONS_MAX + i;
        }
    }
    return -1;
}

static bool fail_unknown_option(struct karst_call *call, const char *typed) {
    const struct karst_verb *verb = call->verb;
    char name[64];
    size_t size = strcspn(typed + 2, "=");
    size = size < sizeof name ? size : sizeof name - 1;
    memcpy(name, typed + 2, size);
    name[size] = '\0';
    struct karst_nearest nearest = {.word = name};
    size_t beginnings = 0;
    for (int table = 0; table < 2; table++) {
        const struct karst_verb_option *options = table ? karst_common_options : verb->options;
        for (; options && options->name; options++) {
            karst_nearest_offer(&nearest, options->name);
            beginnings += strncmp(name, options->name, size) == 0;
        }
    }
    if (beginnings > 1) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--%s may be any of %zu options of %s", name,
                          beginnings, verb->name);
    }
    if (nearest.nearest) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "%s has no option --%s; did you mean --%s?",
                          verb->name, name, nearest.nearest);
    }
    return karst_fail(call->error, KARST_ERROR_USAGE, "%s has no option --%s; see `karst %s --help`",
                      verb->name, name, verb->name);
}

/* Whether text is one of the words of an option's choices; else the error names the nearest, or all. */
static bool check_choice(const struct karst_verb_option *option, const char *text,
                         struct karst_error *error) {
    char words[200], all[220] = "";
    struct karst_nearest nearest = {.word = text};
    snprintf(words, sizeof words, "%s", option->choices);
    char *kept = NULL;
    for (char *word = strtok_r(words, "|", &kept); word; word = strtok_r(NULL, "|", &kept)) {
        if (strcmp(word, text) == 0) {
            return true;
        }
        karst_nearest_offer(&nearest, word);
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", used ? ", " : "", word);
    }
    if (nearest.nearest) {
        return karst_fail(error, KARST_ERROR_USAGE, "--%s takes no '%s'; did you mean %s?", option->name,
                          text, nearest.nearest);
    }
    return karst_fail(error, KARST_ERROR_USAGE, "--%s takes one of %s, not '%s'", option->name, all, text);
}

/* Puts the name of the option or argument in front of an error's text. */
static bool blame(struct karst_error *error, const char *dashes, const char *name) {
    if (error) {
        struct karst_error told = *error;
        karst_fail(error, told.code, "%s%s: %.900s", dashes, name, told.text);
    }
    return false;
}

static bool take_option(struct karst_call *call, int index, const char *text) {
    if (index >= KARST_OPTIONS_MAX) {
        switch (karst_common_options[index - KARST_OPTIONS_MAX].letter) {
        case 'j':
            call->json = true;
            break;
        case 'b':
            call->writer.exact = true;
            break;
        default:
            call->help = true;
        }
        return true;
    }
    const struct karst_verb_option *option = &call->verb->options[index];
    struct karst_value *value = &call->options[index];
    if (option->kind == KARST_VALUE_FLAG) {
        value->given = true;
        return true;
    }
    if (option->choices && !check_choice(option, text, call->error)) {
        return false;
    }
    return karst_parse_value(option->kind, text, value, call->error) ||
           blame(call->error, "--", option->name);
}

/* Arguments are moved to the front of argv as they are met, so that options may stand before, between and
 * behind them whatever the environment says; *count is how many. */
static bool parse_options(struct karst_call *call, int argc, char **argv, int *count) {
    struct getopt_tables tables;
    make_tables(&tables, call->verb);
    opterr = 0;
    optind = 0; /* glibc: begin anew */
    for (;;) {
        int got = getopt_long(argc, argv, tables.letters, tables.longs, NULL);
        if (got == -1) {
            while (optind < argc) { /* behind -- */
                argv[(*count)++] = argv[optind++];
            }
            return true;
        }
        if (got == 1) {
            argv[(*count)++] = optarg;
            continue;
        }
        if (got == '?' && optopt && optopt < FIRST_LONG) {
            return karst_fail(call->error, KARST_ERROR_USAGE, "%s has no option -%c; see `karst %s --help`",
                              call->verb->name, isprint(optopt) ? optopt : '?', call->verb->name);
        }
        if (got == '?' && optopt) {
            return karst_fail(call->error, KARST_ERROR_USAGE, "%s takes no value", argv[optind - 1]);
        }
        if (got == '?') {
            return fail_unknown_option(call, argv[optind - 1]);
        }
        if (got == ':') {
            return karst_fail(call->error, KARST_ERROR_USAGE, "%s needs a value; see `karst %s --help`",
                              argv[optind - 1], call->verb->name);
        }
        int index = got >= FIRST_LONG ? got - FIRST_LONG : index_of_letter(call->verb, got);
        if (!take_option(call, index, optarg)) {
            return false;
        }
    }
}

static bool take_arguments(struct karst_call *call, int argc, char *const *argv) {
    const struct karst_verb *verb = call->verb;
    int taken = 0;
    for (int i = 0; verb->arguments && verb->arguments[i].name; i++) {
        const struct karst_verb_argument *argument = &verb->arguments[i];
        if (taken < argc) {
            if (!karst_parse_value(argument->kind, argv[taken++], &call->arguments[i], call->error)) {
                return blame(call->error, "", verb->name);
            }
        } else if (argument->required) {
            return karst_fail(call->error, KARST_ERROR_USAGE, "%s needs %s: %s", verb->name, argument->name,
                              argument->help);
        }
    }
    if (taken < argc) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "%s: what is '%s'? See `karst %s --help`",
                          verb->name, argv[taken], verb->name);
    }
    return true;
}

bool karst_call_parse(struct karst_call *call, int argc, const char *const *argv) {
    char **copy = calloc((size_t)argc + 1, sizeof *copy);
    if (!copy) {
        return karst_fail_memory(call->error);
    }
    for (int i = 0; i < argc; i++) {
        copy[i] = (char *)argv[i];
    }
    pthread_mutex_lock(&getopt_lock);
    int count = 0;
    bool parsed = parse_options(call, argc, copy, &count);
    pthread_mutex_unlock(&getopt_lock);
    if (parsed && !call->help) {
        parsed = take_arguments(call, count, copy);
    }
    free(copy);
    return parsed;
}
