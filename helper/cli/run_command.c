/* `karst run`: starts a command with the preload library in it. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "error.h"
#include "trap_spec.h"

#define LIBRARY      "libkarst-preload.so"
#define EXIT_NO_EXEC 126
#define EXIT_NO_FILE 127
#define TRAPS_TEXT   4096
#define RING_USUAL   "1M"

static const char help[] = "usage: karst run [OPTIONS] [--] COMMAND [ARGUMENTS]\n"
                           "\n"
                           "Starts a command, and whatever it starts, with karst's preload library in it.\n"
                           "Each part is off until it is asked for, and costs next to nothing then.\n"
                           "\n"
                           "  -m, --mark               mark each block: `sites` says where live blocks come\n"
                           "                           from; double free, overflow, foreign and interior\n"
                           "                           pointers are caught at the call\n"
                           "  -r, --recorder[=SIZE]    keep the last events of each thread in SIZE bytes\n"
                           "                           (1M): `history` lists them\n"
                           "      --recorder-dir DIR   in files there, which are left when the program is\n"
                           "                           killed\n"
                           "  -s, --stacks=DEPTH       keep DEPTH frames of each call, not the return\n"
                           "                           address only; slow\n"
                           "  -t, --trap SPEC          stop where a call meets SPEC; may be given more than\n"
                           "                           once\n"
                           "  -a, --action ACTION      what a trap does when no debugger is attached: log\n"
                           "                           (as it is), stop, core, abort\n"
                           "  -h, --help\n"
                           "\n"
                           "SPEC, one argument: [FUNCTION[,FUNCTION ...]] [SIZE | MIN:MAX | A/B/C] [WORDS]\n"
                           "  FUNCTION                 malloc, calloc, realloc, reallocarray, memalign,\n"
                           "                           posix_memalign, aligned_alloc, valloc, pvalloc, new,\n"
                           "                           new[], free, delete, delete[]; any, alloc, frees,\n"
                           "                           operators\n"
                           "  returned=A, freed=A, address=A\n"
                           "                           the address returned, freed, either one; A or\n"
                           "                           LOW:HIGH\n"
                           "  thread=TID, caller=MODULE\n"
                           "                           who calls: a thread, code of libfoo.so or LOW:HIGH\n"
                           "  event=N, skip=N, count=N\n"
                           "                           the Nth event; let N matches pass; be done after N\n"
                           "  growth                   the heap obtains memory from the system\n"
                           "  double-free, foreign, interior, overflow, faults\n"
                           "  action=ACTION, before    as above for this trap; stop before the allocator is\n"
                           "                           called\n"
                           "\n"
                           "  karst run --trap 'realloc 8880819' -- python3 service.py\n"
                           "  karst run --trap 'malloc,calloc 1M: skip=10 action=core' -- ./server\n"
                           "\n"
                           "Exit status: that of the command; 2 it was not started, 126 or 127 it could not\n"
                           "be.\n";

struct run {
    const char *mark, *recorder, *directory, *stacks, *action;
    char traps[TRAPS_TEXT];
    bool traps_mark; /* there is one that turns marks on */
};

/* ---- the command line ------------------------------------------------------------------------------- */

static bool add_trap(struct run *run, const char *text, struct karst_error *error) {
    struct karst_trap trap;
    size_t used = strlen(run->traps);
    if (!karst_read_trap(text, &trap, sizeof trap, error)) {
        return false;
    }
    if (strchr(text, ';') || used + strlen(text) + 2 > sizeof run->traps) {
        return karst_fail(error, KARST_ERROR_USAGE,
                          "a trap without ';' is wanted, and all of them in %u characters", TRAPS_TEXT);
    }
    snprintf(run->traps + used, sizeof run->traps - used, "%s%s", used ? ";" : "", text);
    run->traps_mark |= !!(trap.conditions & KARST_IF_FAULT);
    return true;
}

static const struct option options[] = {{"mark", no_argument, NULL, 'm'},
                                        {"recorder", optional_argument, NULL, 'r'},
                                        {"recorder-dir", required_argument, NULL, 'd'},
                                        {"stacks", required_argument, NULL, 's'},
                                        {"trap", required_argument, NULL, 't'},
                                        {"action", required_argument, NULL, 'a'},
                                        {"help", no_argument, NULL, 'h'},
                                        {0}};

/* An option that is none, by its name. */
static bool fail_unknown(const char *name, struct karst_error *error) {
    struct karst_nearest nearest = {.word = name + strspn(name, "-")};
    for (size_t i = 0; options[i].name; i++) {
        karst_nearest_offer(&nearest, options[i].name);
    }
    return nearest.nearest && strncmp(name, "--", 2) == 0
               ? karst_fail(error, KARST_ERROR_USAGE, "run has no option %s; did you mean --%s?", name,
                            nearest.nearest)
               : karst_fail(error, KARST_ERROR_USAGE, "run has no option %s; see `karst run --help`", name);
}

static bool is_option(int value) {
    size_t i = 0;
    while (options[i].name && options[i].val != value) {
        i++;
    }
    return options[i].name;
}

/* An option that getopt_long() did not take. word: the last one it has done with, which is another than the
 * option's where that is one letter of several ("-mx"). */
static bool fail_option(const char *word, bool lacks_value, struct karst_error *error) {
    char name[64];
    if (optopt && !is_option(optopt)) {
        snprintf(name, sizeof name, "-%c", optopt);
        return fail_unknown(name, error);
    }
    if (lacks_value && strncmp(word, "--", 2) != 0) {
        snprintf(name, sizeof name, "-%c", optopt);
    } else {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    }
    if (lacks_value) {
        return karst_fail(error, KARST_ERROR_USAGE, "%s needs a value; see `karst run --help`", name);
    }
    return optopt ? karst_fail(error, KARST_ERROR_USAGE, "%s takes no value", name)
                  : fail_unknown(name, error);
}

static bool take_option(struct run *run, int option, const char *word, struct karst_error *error) {
    uint64_t bytes;
    uint32_t depth;
    switch (option) {
    case 'm':
        run->mark = "1";
        return true;
    case 'r':
        run->recorder = optarg ? optarg : RING_USUAL;
        return karst_read_ring_bytes(run->recorder, &bytes, error);
    case 'd':
        run->directory = optarg;
        run->recorder = run->recorder ? run->recorder : RING_USUAL;
        return true;
    case 's':
        run->stacks = optarg;
        return karst_read_stack_depth(optarg, &depth, error);
    case 't':
        return add_trap(run, optarg, error);
    case 'a':
        run->action = optarg;
        return karst_check_action(optarg, error);
    default:
        return fail_option(word, option == ':', error);
    }
}

static bool check_options(const struct run *run, struct karst_error *error) {
    if (run->stacks && !run->mark && !run->recorder && !run->traps_mark) {
        return karst_fail(error, KARST_ERROR_USAGE,
                          "--stacks is for marks and the recorder, and none is on: give --mark or --recorder "
                          "with it");
    }
    return true;
}

/* ---- what is started -------------------------------------------------------------------------------- */

/* The file that execvp() will start; false: it will say why it can't. */
static bool find_command(const char *name, char path[PATH_MAX]) {
    const char *directories = getenv("PATH");
    if (strchr(name, '/') || !directories) {
        return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    }
    while (*directories) {
        size_t length = strcspn(directories, ":");
        int used = snprintf(path, PATH_MAX, "%.*s/%s", (int)length, length ? directories : ".", name);
        if (used > 0 && used < PATH_MAX && access(path, X_OK) == 0) {
            return true;
        }
        directories += length + (directories[length] == ':');
    }
    return false;
}

/* Programs that the loader puts no library into are refused, with the reason. */
static bool check_program(const char *path, struct karst_error *error) {
    Elf64_Ehdr header;
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    bool is_elf = file >= 0 && read(file, &header, sizeof header) == (ssize_t)sizeof header &&
                  memcmp(header.e_ident, ELFMAG, SELFMAG) == 0;
    bool is_secure = file >= 0 && fstat(file, &status) == 0 &&
                     ((status.st_mode & S_ISUID && status.st_uid != geteuid()) ||
                      (status.st_mode & S_ISGID && status.st_mode & S_IXGRP && status.st_gid != getegid()));
    bool has_loader = !is_elf, is_wide = !is_elf || header.e_ident[EI_CLASS] == ELFCLASS64;
    for (size_t i = 0; is_elf && is_wide && i < header.e_phnum; i++) {
        Elf64_Phdr part;
        off_t at = (off_t)(header.e_phoff + i * sizeof part);
        has_loader |= pread(file, &part, sizeof part, at) == (ssize_t)sizeof part && part.p_type == PT_INTERP;
    }
    if (file >= 0) {
        close(file);
    }
    if (is_secure) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s is setuid or setgid: the loader puts no library into it", path);
    }
    if (!is_wide) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s is a 32-bit program: the library is for 64 bits", path);
    }
    if (!has_loader) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s is statically linked: no library can be put into it", path);
    }
    return true;
}

/* Beside the command, as built, or in ../lib, as installed. */
static bool find_library(char path[PATH_MAX], struct karst_error *error) {
    static const char *const places[] = {"", "../lib/"};
    char self[PATH_MAX], candidate[PATH_MAX + 64];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        slash[1] = '\0';
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(candidate, sizeof candidate, "%s%s" LIBRARY, self, places[i]);
        if (access(candidate, R_OK) == 0 && realpath(candidate, path)) {
            break;
        }
        *path = '\0';
    }
    if (!*path) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          LIBRARY " is neither beside karst nor in ../lib of it");
    }
    if (strpbrk(path, ": ")) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s can't be preloaded: the loader takes no path with a blank or colon", path);
    }
    return true;
}

/* ---- the environment -------------------------------------------------------------------------------- */

static bool set(const char *name, const char *value, struct karst_error *error) {
    if (value ? setenv(name, value, 1) : unsetenv(name)) {
        return karst_fail_errno(error, errno, "setting %s", name);
    }
    return true;
}

static bool set_directory(const char *directory, struct karst_error *error) {
    char path[PATH_MAX];
    if (!directory) {
        return set("KARST_RECORDER_DIRECTORY", NULL, error);
    }
    return karst_prepare_ring_directory(directory, path, sizeof path, error) &&
           set("KARST_RECORDER_DIRECTORY", path, error);
}

static bool set_preload(const char *library, struct karst_error *error) {
    const char *others = getenv("LD_PRELOAD");
    char *all = NULL;
    if (asprintf(&all, "%s%s%s", library, others && *others ? ":" : "", others ? others : "") < 0) {
        return karst_fail_memory(error);
    }
    bool done = set("LD_PRELOAD", all, error);
    free(all);
    return done;
}

static bool set_environment(const struct run *run, struct karst_error *error) {
    char library[PATH_MAX];
    return find_library(library, error) && set_preload(library, error) &&
           set("KARST_MARK", run->mark, error) && set("KARST_RECORDER", run->recorder, error) &&
           set_directory(run->directory, error) && set("KARST_STACKS", run->stacks, error) &&
           set("KARST_ACTION", run->action, error) &&
           set("KARST_TRAP", *run->traps ? run->traps : NULL, error);
}

static int fail(const struct karst_error *error, int status) {
    fprintf(stderr, "karst: %s\n", error->text);
    return status;
}

/* What execvp() said; word: the one before the command. Returns the shell's exit status for it. */
static int fail_exec(int why, const char *command, const char *word) {
    struct karst_error error = {0}, none;
    struct stat status;
    uint64_t bytes;
    bool has_path = strchr(command, '/');
    if (why == ENOENT && (strcmp(word, "-r") == 0 || strcmp(word, "--recorder") == 0) &&
        karst_read_ring_bytes(command, &bytes, &none)) {
        karst_fail(&error, KARST_ERROR_USAGE,
                   "%s: there is no such command; a size is written --recorder=%s or -r%s", command, command,
                   command);
    } else if (why == ENOENT && !has_path) {
        karst_fail(&error, KARST_ERROR_NOT_FOUND, "'%s': there is no such command in PATH", command);
    } else if (why == ENOENT && access(command, F_OK) == 0) {
        karst_fail(&error, KARST_ERROR_NOT_FOUND, "%s: the interpreter or loader that it names is not there",
                   command);
    } else if (why == EACCES && has_path && stat(command, &status) == 0 && S_ISDIR(status.st_mode)) {
        karst_fail(&error, KARST_ERROR_USAGE, "%s is a directory, not a command", command);
    } else {
        karst_fail_errno(&error, why, "%s can't be started", command);
    }
    return fail(&error, why == ENOENT ? EXIT_NO_FILE : EXIT_NO_EXEC);
}

int run_command(int argc, char **argv) {
    struct run run = {0};
    struct karst_error error = {0};
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "+:mr::s:t:a:h", options, NULL)) != -1;) {
        if (option == 'h') {
            return fputs(help, stdout) < 0 ? EXIT_NOT_ANSWERED : EXIT_ANSWERED;
        }
        if (!take_option(&run, option, argv[optind - 1], &error)) {
            return fail(&error, EXIT_NOT_ANSWERED);
        }
    }
    char path[PATH_MAX];
    if (optind == argc) {
        karst_fail(&error, KARST_ERROR_USAGE, "run which command? See `karst run --help`");
        return fail(&error, EXIT_NOT_ANSWERED);
    }
    if (!check_options(&run, &error) || (find_command(argv[optind], path) && !check_program(path, &error)) ||
        !set_environment(&run, &error)) {
        return fail(&error, EXIT_NOT_ANSWERED);
    }
    execvp(argv[optind], argv + optind);
    return fail_exec(errno, argv[optind], argv[optind - 1]);
}
