/* `karst --complete WORD...`: what the last word may become, a line each, for the shell's completion
 * (karst.bash). */
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

/* What the shell itself completes is asked for by a line that no word can be. */
#define FILES    ":files"
#define COMMANDS ":commands"

static const struct karst_verb_option target_options[] = {
    {"pid", 'p', KARST_VALUE_COUNT, "PID", "", NULL},
    {"core", 'c', KARST_VALUE_FILE, "FILE", "", NULL},
    {"exe", 'e', KARST_VALUE_FILE, "FILE", "", NULL},
    {"sysroot", 0, KARST_VALUE_FILE, "DIR", "", NULL},
    {"debug-dir", 0, KARST_VALUE_FILE, "DIRS", "", NULL},
    {"no-stop", 0, KARST_VALUE_FLAG, NULL, "", NULL},
    {"no-symbols", 0, KARST_VALUE_FLAG, NULL, "", NULL},
    {"color", 0, KARST_VALUE_TEXT, "WHEN", "", "auto|always|never"},
    {"version", 0, KARST_VALUE_FLAG, NULL, "", NULL},
    {0},
};

static const struct karst_verb_option run_options[] = {
    {"mark", 'm', KARST_VALUE_FLAG, NULL, "", NULL},
    {"recorder", 'r', KARST_VALUE_FLAG, NULL, "", NULL}, /* its value is optional, and behind a '=' */
    {"recorder-dir", 0, KARST_VALUE_FILE, "DIR", "", NULL},
    {"stacks", 's', KARST_VALUE_COUNT, "DEPTH", "", NULL},
    {"trap", 't', KARST_VALUE_TEXT, "SPEC", "", NULL},
    {"action", 'a', KARST_VALUE_TEXT, "ACTION", "", "log|stop|core|abort"},
    {"help", 'h', KARST_VALUE_FLAG, NULL, "", NULL},
    {0},
};

/* ---- offers ----------------------------------------------------------------------------------------- */

static void offer(const char *typed, const char *before, const char *text, size_t size) {
    size_t head = strlen(before), length = strlen(typed);
    if (strncmp(typed, before, length < head ? length : head) == 0 &&
        (length <= head || (length - head <= size && strncmp(typed + head, text, length - head) == 0))) {
        printf("%s%.*s\n", before, (int)size, text);
    }
}

static void offer_choices(const char *typed, const char *choices) {
    while (*choices) {
        size_t size = strcspn(choices, "|");
        offer(typed, "", choices, size);
        choices += size + (choices[size] == '|');
    }
}

static void offer_options(const char *typed, const struct karst_verb_option *options) {
    for (; options && options->name; options++) {
        offer(typed, "--", options->name, strlen(options->name));
    }
}

/* Processes that we may look into; the kernel's threads have no executable. */
static void offer_processes(const char *typed) {
    DIR *directory = opendir("/proc");
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char path[300], executable[4];
        snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
        if (isdigit((unsigned char)entry->d_name[0]) && readlink(path, executable, sizeof executable) > 0) {
            offer(typed, "", entry->d_name, strlen(entry->d_name));
        }
    }
    if (directory) {
        closedir(directory);
    }
}

static void offer_value(const char *typed, const struct karst_verb_option *option) {
    if (option->kind == KARST_VALUE_FILE) {
        puts(FILES);
    } else if (option->kind == KARST_VALUE_STATE) {
        for (enum karst_state state = 0; state < KARST_STATES; state++) {
            offer(typed, "", karst_state_name(state), strlen(karst_state_name(state)));
        }
    } else if (option->choices) {
        offer_choices(typed, option->choices);
    } else if (strcmp(option->name, "pid") == 0) {
        offer_processes(typed);
    }
}

/* ---- what stands before ------------------------------------------------------------------------------- */

static const struct karst_verb_option *find_in(const struct karst_verb_option *options, const char *word) {
    for (; options && options->name; options++) {
        bool is_long = word[1] == '-' && strcmp(word + 2, options->name) == 0;
        if (is_long || (options->letter && word[1] == options->letter && !word[2])) {
            return options;
        }
    }
    return NULL;
}

/* A verb's option may stand before the verb: then it is looked for in all of them. */
static const struct karst_verb_option *find_option(const char *word, const struct karst_verb *verb) {
    const struct karst_verb_option *found = word[0] == '-' ? find_in(target_options, word) : NULL;
    for (size_t i = 0; word[0] == '-' && karst_verbs[i] && !found; i++) {
        if (!verb || karst_verbs[i] == verb) {
            found = find_in(karst_verbs[i]->options, word);
        }
    }
    return found;
}

/* Whether the word behind is its value. bash makes a word of its own of a '=' between them. */
static bool waits_for_value(const struct karst_verb_option *option) {
    return option && option->kind != KARST_VALUE_FLAG;
}

static void offer_verbs(const char *typed, bool all_words) {
    for (size_t i = 0; karst_verbs[i]; i++) {
        offer(typed, "", karst_verbs[i]->name, strlen(karst_verbs[i]->name));
    }
    if (all_words) {
        offer(typed, "", "run", 3);
        offer(typed, "", "help", 4);
    }
}

/* ---- the two kinds of command lines ------------------------------------------------------------------ */

static void complete_run(int count, char **words, const char *typed) {
    const struct karst_verb_option *option = NULL;
    for (int i = 0; i < count; i++) {
        if (waits_for_value(option)) {
            option = strcmp(words[i], "=") == 0 ? option : NULL;
        } else if (words[i][0] == '-' && strcmp(words[i], "--") != 0) {
            option = find_in(run_options, words[i]);
        } else { /* the command's own words, or the command comes next */
            puts(i + 1 == count && words[i][0] == '-' ? COMMANDS : FILES);
            return;
        }
    }
    if (waits_for_value(option)) {
        offer_value(typed, option);
    } else if (typed[0] == '-') {
        offer_options(typed, run_options);
    } else {
        puts(COMMANDS);
    }
}

static void complete_verb(int count, char **words, const char *typed) {
    const struct karst_verb_option *option = NULL;
    const struct karst_verb *verb = NULL;
    bool help = false;
    for (int i = 0; i < count; i++) {
        if (waits_for_value(option)) {
            option = strcmp(words[i], "=") == 0 ? option : NULL;
        } else if (words[i][0] == '-') {
            option = find_option(words[i], verb);
        } else if (!verb) {
            help = help || strcmp(words[i], "help") == 0;
            verb = karst_verb_find(words[i], NULL);
        }
    }
    if (waits_for_value(option)) {
        offer_value(typed, option);
    } else if (typed[0] == '-') {
        offer_options(typed, target_options);
        offer_options(typed, karst_common_options);
        offer_options(typed, verb ? verb->options : NULL);
    } else if (!verb) {
        offer_verbs(typed, !help);
    }
}

int complete_words(int count, char **words) {
    const char *typed = count > 0 ? words[count - 1] : "";
    int before = count > 0 ? count - 1 : 0;
    if (strcmp(typed, "=") == 0) {
        typed = "";
    }
    if (before > 0 && strcmp(words[0], "run") == 0) {
        complete_run(before - 1, words + 1, typed);
    } else {
        complete_verb(before, words, typed);
    }
    return fflush(stdout) == 0 ? EXIT_ANSWERED : EXIT_NOT_ANSWERED;
}
