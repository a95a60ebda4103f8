#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "error.h"
#include "session.h"

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* A core is read in place: if somebody cuts the file in the midst of a walk, what was there is gone
 * (mmap(2)). */
static void on_lost_page(int signal_number) {
    static const char text[] = "karst: " KARST_CORE_CHANGED "\n";
    (void)signal_number;
    ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
    (void)written;
    _exit(EXIT_NOT_ANSWERED);
}

/* The first SIGINT ends the work in good order, a second one at once. A reader that goes away is told by
 * write(). */
static void handle_signals(void) {
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART | (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    action = (struct sigaction){.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &action, NULL);
    action = (struct sigaction){.sa_handler = on_lost_page};
    sigaction(SIGBUS, &action, NULL);
}

static const char usage[] = "usage: karst -p PID VERB [ARGUMENTS]\n"
                            "       karst -c CORE [-e EXECUTABLE] VERB [ARGUMENTS]\n"
                            "       karst run [--mark] [--recorder] [--trap SPEC] COMMAND [ARGUMENTS]\n\n";

static const char purpose[] =
    "Walks the heap of a process or a core dump: what is live, free or cached, where the holes are and what "
    "pins them, what is corrupt. `karst VERB --help` tells more of one verb.\n";

static const char target_help[] =
    "  -p, --pid PID         a live process; it stops while it is read, goes on after\n"
    "  -c, --core FILE       a core dump\n"
    "  -e, --exe FILE        the core's executable, if it is not where it was\n"
    "      --sysroot DIR     where the files are that a core from elsewhere names\n"
    "      --debug-dir DIRS  where separate debug files are (default /usr/lib/debug)\n"
    "      --no-stop         read the process while it runs: what is told may be torn\n"
    "      --no-symbols      find everything by structure, as on a stripped system\n"
    "      --color WHEN      auto, always or never\n"
    "      --version\n\n";

static const char status_help[] =
    "Every verb has --json, --bytes (exact sizes) and --help. Options may stand before or after the verb.\n"
    "Exit status: 0 done and healthy, 1 check found something, 2 not answered (standard error says why).";

static struct karst_writer writer; /* too large for some stacks */

static void write_help(struct terminal *terminal) {
    karst_writer_open(&writer, &terminal->output, false);
    karst_print(&writer, "%s", usage);
    karst_print_wrapped(&writer, 0, 0, purpose);
    karst_print_title(&writer, "Target");
    karst_print(&writer, "%s", target_help);
    karst_verb_write_list(&writer);
    karst_print_wrapped(&writer, 0, 0, status_help);
}

static void write_verb_help(struct terminal *terminal, const struct karst_verb *verb) {
    karst_writer_open(&writer, &terminal->output, false);
    karst_verb_write_help(verb, "karst ", &writer);
}

/* Answers --version and --help, which need no target. *answered: there was nothing more to do. */
static bool answer_help(struct command_line *line, struct terminal *terminal, bool *answered,
                        struct karst_error *error) {
    *answered = true;
    const char *name = line->verb_count ? line->verb[0] : NULL;
    bool asked = line->help;
    if (name && strcmp(name, "help") == 0) {
        asked = true;
        name = line->verb_count > 1 && line->verb[1][0] != '-' ? line->verb[1] : NULL;
    }
    if (line->version) {
        karst_writer_open(&writer, &terminal->output, false);
        karst_print(&writer, "karst %s\n", karst_version());
    } else if (asked && name) {
        const struct karst_verb *verb = karst_verb_find(name, error);
        if (!verb) {
            return false;
        }
        write_verb_help(terminal, verb);
    } else if (asked) {
        write_help(terminal);
    } else {
        *answered = false;
        return true;
    }
    return karst_writer_finish(&writer, error);
}

static struct karst *open_target(const struct command_line *line, struct karst_error *error) {
    if (line->pid && line->core) {
        karst_fail(error, KARST_ERROR_USAGE, "-p and -c name two targets; which one?");
        return NULL;
    }
    if (line->core) {
        return karst_open_core(line->core, &line->options, error);
    }
    if (line->pid) {
        struct karst *session = karst_open_process(line->pid, &line->options, error);
        const struct karst_verb *verb = karst_verb_find(line->verb[0], NULL);
        bool unread = !session && error->code == KARST_ERROR_PERMISSION && verb->needs == KARST_NEEDS_PROCESS;
        return unread ? karst_open_unread(line->pid, error) : session;
    }
    if (line->files) {
        return karst_open_recorded(line->files, line->process, &line->options, error);
    }
    karst_fail(error, KARST_ERROR_USAGE, "which target? Give -p PID or -c CORE; see `karst --help`");
    return NULL;
}

/* `history --files DIR` has a target of its own. */
static void take_files(struct command_line *line, const struct karst_call *call) {
    const struct karst_verb_option *options = call->verb->options;
    for (size_t i = 0; options && options[i].name; i++) {
        if (strcmp(options[i].name, "files") == 0) {
            line->files = call->options[i].text;
        } else if (strcmp(options[i].name, "process") == 0) {
            line->process = (int64_t)call->options[i].number;
        }
    }
}

/* Where no target is named, a number or a file among the words was meant to be it. */
static bool is_target_word(const struct command_line *line, const char *word) {
    bool is_number = *word && strspn(word, "0123456789") == strlen(word);
    return !line->pid && !line->core && (is_number || access(word, F_OK) == 0);
}

static bool fail_target_word(const char *verb, const char *word, struct karst_error *error) {
    bool is_file = access(word, F_OK) == 0;
    return karst_fail(error, KARST_ERROR_USAGE, "'%s' is no verb's; did you mean `karst %s %s %s`?", word,
                      is_file ? "-c" : "-p", word, verb);
}

static const char *meant_verb(const struct command_line *line) {
    for (int i = 1; i < line->verb_count; i++) {
        if (karst_verb_find(line->verb[i], NULL)) {
            return line->verb[i];
        }
    }
    return "summary";
}

/* Parses the verb's words before the target is opened, which may take a while. */
static bool check_verb(struct command_line *line, struct karst_error *error) {
    if (line->verb_count == 0) {
        return karst_fail(error, KARST_ERROR_USAGE, "no verb; try summary, or see `karst --help`");
    }
    const struct karst_verb *verb = karst_verb_find(line->verb[0], error);
    if (!verb && is_target_word(line, line->verb[0])) {
        return fail_target_word(meant_verb(line), line->verb[0], error);
    }
    struct karst_call *call = verb ? calloc(1, sizeof *call) : NULL;
    if (!call) {
        return verb && karst_fail_memory(error);
    }
    call->verb = verb;
    call->error = error;
    bool parsed = karst_call_parse(call, line->verb_count, line->verb);
    const char *last = line->verb[line->verb_count - 1];
    if (parsed) {
        take_files(line, call);
    } else if (line->verb_count > 1 && !verb->arguments && is_target_word(line, last)) {
        fail_target_word(verb->name, last, error);
    }
    free(call);
    return parsed;
}

/* What a reader of any answer has to know; in JSON it is under target.remarks. */
static size_t write_remarks(const struct karst *session, const struct command_line *line, size_t from) {
    const struct karst_target *target = session->target;
    for (size_t i = from; i < target->remark_count && !line->json; i++) {
        fprintf(stderr, "note: %s\n", target->remarks[i]);
    }
    return target->remark_count;
}

static int answer(struct command_line *line, struct terminal *terminal, struct karst_error *error) {
    bool answered = false;
    if (!answer_help(line, terminal, &answered, error)) {
        return EXIT_NOT_ANSWERED;
    }
    if (answered) {
        return EXIT_ANSWERED;
    }
    if (!check_verb(line, error)) {
        return EXIT_NOT_ANSWERED;
    }
    line->options.poll = terminal_poll;
    line->options.poll_context = terminal;
    struct karst *session = open_target(line, error);
    if (!session) {
        return EXIT_NOT_ANSWERED;
    }
    if (line->pid && !line->options.no_stop) {
        terminal_keep_back(terminal);
    }
    size_t told = write_remarks(session, line, 0);
    int status = karst_run(session, line->verb_count, line->verb, &terminal->output, NULL, error);
    terminal_wipe_progress(terminal);
    write_remarks(session, line, told);
    karst_close(session);
    terminal_hand_on(terminal);
    return status;
}

int main(int argc, char **argv) {
    struct command_line line = {0};
    struct terminal terminal;
    struct karst_error error = {0};
    if (argc > 1 && strcmp(argv[1], "run") == 0) {
        return run_command(argc - 1, argv + 1);
    }
    if (argc > 1 && strcmp(argv[1], "--complete") == 0) {
        return complete_words(argc - 2, argv + 2);
    }
    handle_signals();
    bool parsed = parse_command_line(&line, argc, argv, &error);
    terminal_open(&terminal, line.color);
    int status = parsed ? answer(&line, &terminal, &error) : EXIT_NOT_ANSWERED;
    if (!terminal_close(&terminal, &error)) {
        status = EXIT_NOT_ANSWERED;
    }
    if (interrupted && status != EXIT_NOT_ANSWERED) {
        karst_fail(&error, KARST_ERROR_INTERRUPTED, "interrupted");
        status = EXIT_NOT_ANSWERED;
    }
    if (status == EXIT_NOT_ANSWERED) {
        fprintf(stderr, "karst: %s\n", error.text);
    }
    free(line.verb);
    return status;
}
