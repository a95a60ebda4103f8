/* The karst command: a thin front end of karst_run(). */
#ifndef KARST_CLI_CLI_H
#define KARST_CLI_CLI_H

#include <signal.h>
#include <stdio.h>

#include "karst.h"
#include "verb.h"

enum { EXIT_ANSWERED = 0, EXIT_FOUND = 1, EXIT_NOT_ANSWERED = 2 };

enum color_mode { COLOR_AUTO, COLOR_ALWAYS, COLOR_NEVER };

/* The command line, taken apart: options of the target, and what goes to the verb. */
struct command_line {
    int64_t pid;       /* 0: not given */
    const char *core;  /* NULL: not given */
    const char *files; /* `history --files`: the recorder's directory; NULL: not given */
    int64_t process;   /* and the process in it; 0: not given */
    struct karst_options options;
    enum color_mode color;
    bool version;
    bool help;
    bool json;
    const char **verb; /* the verb, its options and arguments; owned */
    int verb_count;    /* 0: none was given */
};

/* False with an error; verb has to be freed in any case. */
bool parse_command_line(struct command_line *line, int argc, char **argv, struct karst_error *error);

/* Standard output as a karst_output, and progress on standard error. */
struct terminal {
    struct karst_output output;
    FILE *spool; /* takes the text until it is handed on; NULL: it goes out at once */
    bool color;
    bool progress; /* standard error is a terminal, so show it */
    bool tty;      /* standard output is one */
    bool in_line;  /* and the last line on it has no end yet */
    size_t shown;  /* columns of progress to be wiped */
    uint64_t start_ns;
    int write_error; /* errno of what went wrong on standard output, 0: nothing */
};

void terminal_open(struct terminal *terminal, enum color_mode color);
/* Keeps text back, in a file without a name, so that a stopped process does not wait for whoever reads it;
 * terminal_hand_on() writes it out. Without room for such a file text goes out at once. */
void terminal_keep_back(struct terminal *terminal);
void terminal_hand_on(struct terminal *terminal);
/* For karst_options.poll; context is the terminal. */
bool terminal_poll(void *context, const char *what, uint64_t done, uint64_t total);
void terminal_wipe_progress(struct terminal *terminal);
/* Flushes; false with an error if what was written did not arrive for another reason than a reader who had
 * enough. */
bool terminal_close(struct terminal *terminal, struct karst_error *error);

/* `karst run ...`, argv[0] being "run": becomes the command, or returns the exit status. */
int run_command(int argc, char **argv);

/* `karst --complete WORD...`, for the shell; the words are those behind `karst`, up to the one being typed.
 * Returns the exit status. */
int complete_words(int count, char **words);

/* Set by SIGINT. */
extern volatile sig_atomic_t interrupted;

#endif
