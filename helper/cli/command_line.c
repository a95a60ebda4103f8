#include <dirent.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "error.h"

enum target_option {
    OPTION_PID = 1000,
    OPTION_CORE,
    OPTION_EXE,
    OPTION_SYSROOT,
    OPTION_DEBUG_DIRECTORY,
    OPTION_NO_STOP,
    OPTION_NO_SYMBOLS,
    OPTION_COLOR,
    OPTION_VERSION,
    OPTION_OF_VERB /* and on: those of the verbs */
};

static const struct option target_options[] = {
    {"pid", required_argument, NULL, OPTION_PID},
    {"core", required_argument, NULL, OPTION_CORE},
    {"exe", required_argument, NULL, OPTION_EXE},
    {"sysroot", required_argument, NULL, OPTION_SYSROOT},
    {"debug-dir", required_argument, NULL, OPTION_DEBUG_DIRECTORY},
    {"no-stop", no_argument, NULL, OPTION_NO_STOP},
    {"no-symbols", no_argument, NULL, OPTION_NO_SYMBOLS},
    {"color", required_argument, NULL, OPTION_COLOR},
    {"version", no_argument, NULL, OPTION_VERSION},
};

#define TARGET_COUNT (sizeof target_options / sizeof *target_options)
#define LONGS_MAX    200
#define LETTERS_MAX  120

/* All options of the target and of all verbs: where a verb's option ends can be told before the verb is
 * known. The verb itself parses them again, and complains of those it does not have. */
struct all_options {
    struct option longs[LONGS_MAX + 1];
    size_t count;
    char letters[LETTERS_MAX];
};

static void add_verb_options(struct all_options *all, const struct karst_verb_option *options) {
    for (; options && options->name; options++) {
        bool known = all->count == LONGS_MAX;
        for (size_t i = 0; i < all->count && !known; i++) {
            known = strcmp(all->longs[i].name, options->name) == 0;
        }
        int has_value = options->kind == KARST_VALUE_FLAG ? no_argument : required_argument;
        if (!known) {
            all->longs[all->count] =
                (struct option){options->name, has_value, NULL, OPTION_OF_VERB + (int)all->count};
            all->count++;
        }
        size_t used = strlen(all->letters);
        if (options->letter && !strchr(all->letters, options->letter) && used + 3 < LETTERS_MAX) {
            all->letters[used] = options->letter;
            all->letters[used + 1] = has_value == required_argument ? ':' : '\0';
        }
    }
}

static void collect_options(struct all_options *all) {
    *all = (struct all_options){.letters = "-:p:c:e:"};
    memcpy(all->longs, target_options, sizeof target_options);
    all->count = TARGET_COUNT;
    add_verb_options(all, karst_common_options);
    for (size_t i = 0; karst_verbs[i]; i++) {
        add_verb_options(all, karst_verbs[i]->options);
    }
}

static bool take_color(struct command_line *line, const char *text, struct karst_error *error) {
    static const char *const names[] = {"auto", "always", "never"};
    struct karst_nearest nearest = {.word = text};
    for (size_t i = 0; i < 3; i++) {
        karst_nearest_offer(&nearest, names[i]);
        if (strcmp(text, names[i]) == 0) {
            line->color = (enum color_mode)i;
            return true;
        }
    }
    return karst_fail(error, KARST_ERROR_USAGE,
                      nearest.nearest ? "--color takes no '%s'; did you mean %s?"
                                      : "--color takes auto, always or never, not '%s'",
                      text, nearest.nearest);
}

/* How many processes have this name, as the kernel keeps it (proc(5), comm: 15 characters), and one of them.
 */
static size_t processes_named(const char *name, long long *found) {
    DIR *folder = *name ? opendir("/proc") : NULL;
    size_t count = 0;
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char path[64], comm[17] = "", *end = NULL;
        long long pid = strtoll(entry->d_name, &end, 10);
        snprintf(path, sizeof path, "/proc/%lld/comm", pid);
        FILE *file = pid > 0 && *end == '\0' ? fopen(path, "r") : NULL;
        if (file && fgets(comm, sizeof comm, file)) {
            comm[strcspn(comm, "\n")] = '\0';
            bool same = strncmp(comm, name, 15) == 0;
            count += same;
            *found = same ? pid : *found;
        }
        if (file) {
            fclose(file);
        }
    }
    if (folder) {
        closedir(folder);
    }
    return count;
}

static bool fail_pid(const char *text, struct karst_error *error) {
    long long found = 0;
    size_t count = processes_named(text, &found);
    if (count == 1) {
        return karst_fail(error, KARST_ERROR_USAGE, "'%s' is no process id; did you mean -p %lld?", text,
                          found);
    }
    if (count) {
        return karst_fail(error, KARST_ERROR_USAGE,
                          "'%s' is no process id; %zu processes have that name (pgrep %s)", text, count,
                          text);
    }
    return karst_fail(error, KARST_ERROR_USAGE, "'%s' is no process id", text);
}

static bool take_pid(struct command_line *line, const char *text, struct karst_error *error) {
    char *end = NULL;
    long long pid = strtoll(text, &end, 10);
    if (end == text || *end || pid <= 0 || pid > INT32_MAX) {
        return fail_pid(text, error);
    }
    line->pid = pid;
    return true;
}

static bool take_target_option(struct command_line *line, int option, const char *text,
                               struct karst_error *error) {
    switch (option) {
    case 'p':
    case OPTION_PID:
        return take_pid(line, text, error);
    case 'c':
    case OPTION_CORE:
        line->core = text;
        return true;
    case 'e':
    case OPTION_EXE:
        line->options.executable = text;
        return true;
    case OPTION_SYSROOT:
        line->options.sysroot = text;
        return true;
    case OPTION_DEBUG_DIRECTORY:
        line->options.debug_directory = text;
        return true;
    case OPTION_NO_STOP:
        line->options.no_stop = true;
        return true;
    case OPTION_NO_SYMBOLS:
        line->options.no_symbols = true;
        return true;
    case OPTION_COLOR:
        return take_color(line, text, error);
    default:
        line->version = true;
        return true;
    }
}

static bool is_target_option(int option) {
    return option == 'p' || option == 'c' || option == 'e' ||
           (option >= OPTION_PID && option < OPTION_OF_VERB);
}

/* The verb comes first, whatever stood before it on the command line. rest holds one word fewer than
 * words then. */
struct words {
    const char **items; /* items[0] is kept for the verb */
    char *letters;      /* "-x" for each letter option met, three bytes each */
    size_t count, letter_count;
};

static void add_word(struct words *words, const char *word) {
    words->items[words->count++] = word;
}

/* Hands an option on to the verb as it was typed: its long name, or its letter, and its value. */
static void pass_option(struct words *words, const struct all_options *all, int option, char **argv) {
    if (option >= OPTION_OF_VERB) {
        const struct option *known = &all->longs[option - OPTION_OF_VERB];
        bool apart = known->has_arg == required_argument && optarg == argv[optind - 1];
        if (apart) {
            add_word(words, argv[optind - 2]);
        }
        add_word(words, argv[optind - 1]);
        return;
    }
    char *letter = words->letters + 3 * words->letter_count++;
    letter[0] = '-';
    letter[1] = (char)option;
    letter[2] = '\0';
    add_word(words, letter);
    if (optarg) {
        add_word(words, optarg);
    }
}

/* An unknown long option before the verb: whether a value of its own follows can't be told. */
static bool fail_unknown_option(const struct all_options *all, const char *typed, struct karst_error *error) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(typed + 2, "="), typed + 2);
    struct karst_nearest nearest = {.word = name};
    for (size_t i = 0; i < all->count; i++) {
        karst_nearest_offer(&nearest, all->longs[i].name);
    }
    if (nearest.nearest) {
        return karst_fail(error, KARST_ERROR_USAGE, "no verb has an option --%s; did you mean --%s?", name,
                          nearest.nearest);
    }
    return karst_fail(error, KARST_ERROR_USAGE, "no verb has an option --%s; see `karst --help`", name);
}

static bool take_word(struct command_line *line, struct words *words, const struct all_options *all,
                      int option, char **argv, struct karst_error *error) {
    if (option == 1 && !words->items[0]) {
        words->items[0] = optarg;
    } else if (option == 1) {
        add_word(words, optarg);
    } else if (is_target_option(option)) {
        return take_target_option(line, option, optarg ? optarg : "", error);
    } else if (option == ':' && is_target_option(optopt)) {
        return karst_fail(error, KARST_ERROR_USAGE, "%s needs a value; see `karst --help`", argv[optind - 1]);
    } else if (option == '?' && is_target_option(optopt)) {
        return karst_fail(error, KARST_ERROR_USAGE, "%s takes no value", argv[optind - 1]);
    } else if (option == '?' && optopt && optopt < OPTION_PID) {
        optarg = NULL;
        pass_option(words, all, optopt, argv);
    } else if (option == '?' && !words->items[0]) {
        return fail_unknown_option(all, argv[optind - 1], error);
    } else if (option == ':' || option == '?') {
        add_word(words, argv[optind - 1]); /* the verb complains */
    } else {
        line->json |= option == 'j' || (option >= OPTION_OF_VERB &&
                                        strcmp(all->longs[option - OPTION_OF_VERB].name, "json") == 0);
        line->help |= option == 'h' || (option >= OPTION_OF_VERB &&
                                        strcmp(all->longs[option - OPTION_OF_VERB].name, "help") == 0);
        pass_option(words, all, option, argv);
    }
    return true;
}

bool parse_command_line(struct command_line *line, int argc, char **argv, struct karst_error *error) {
    size_t most = 0;
    for (int i = 0; i < argc; i++) {
        most += strlen(argv[i]) + 1; /* letters in clusters, and words */
    }
    struct all_options all;
    collect_options(&all);
    /* One block: the words, then the letters. */
    struct words words = {.items = calloc(most + 3, sizeof(char *) + 3), .count = 1};
    if (!words.items) {
        return karst_fail_memory(error);
    }
    words.letters = (char *)(words.items + most + 3);
    line->verb = words.items;
    opterr = 0;
    for (;;) {
        int option = getopt_long(argc, argv, all.letters, all.longs, NULL);
        if (option == -1) {
            break;
        }
        if (!take_word(line, &words, &all, option, argv, error)) {
            return false;
        }
    }
    if (optind < argc) {
        if (words.items[0]) {
            add_word(&words, "--");
        } else {
            words.items[0] = argv[optind++];
        }
        while (optind < argc) {
            add_word(&words, argv[optind++]);
        }
    }
    line->verb_count = words.items[0] ? (int)words.count : 0;
    return true;
}
