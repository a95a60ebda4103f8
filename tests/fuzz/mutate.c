/* Runs the engine, all verbs, on damaged cores: it may be wrong about them, but it may not crash, hang,
 * leak, take memory without bound, write half a JSON document or let through control characters.
 *
 *   mutate [--seed N] [--from K] [-n CASES] [--jobs J] CORE...     so many cases from case K (0) on
 *   mutate [--seed N] --case K CORE...                  one again, verbosely
 *
 * To be built with AddressSanitizer. Case K with seed N is the same damage to the same core each time.
 * The core of a case that went wrong is saved in the working directory, for `karst -c`. Exit status 1: at
 * least one case went wrong.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core_image.h"
#include "karst.h"

/* From sanitizer/allocator_interface.h, which gcc does not install. */
int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void *, size_t),
                                              void (*free_hook)(const volatile void *));
size_t __sanitizer_get_allocated_size(const volatile void *block);

#define IMAGES_MAX   64
#define JOBS_MAX     16
#define FAILURES_MAX 20
#define SECONDS_MAX  20             /* CPU, a verb, with sanitizers */
#define MEMORY_MAX   (256ull << 20) /* allocated at one time, by one session */
#define OUTPUT_MAX   (256ull << 20) /* text of one verb */
#define JSON_MAX     (8u << 20)     /* checked; what is longer is taken as it is */
#define NO_CASE      UINT64_MAX

/* A request for this much is a find by itself. The quarantine is small to keep the machine's memory small. */
KARST_EXPORT const char *__asan_default_options(void);
KARST_EXPORT const char *__ubsan_default_options(void);

const char *__asan_default_options(void) {
    return "max_allocation_size_mb=512:quarantine_size_mb=16:detect_leaks=1:detect_stack_use_after_return=0:"
           "print_suppressions=0";
}

const char *__ubsan_default_options(void) {
    return "print_stacktrace=1";
}

/* The caches of the libraries that draw stay until the process ends. */
KARST_EXPORT const char *__lsan_default_suppressions(void);

const char *__lsan_default_suppressions(void) {
    return "leak:libfontconfig\nleak:libcairo\n";
}

/* What is under way; shared with the parent, who tells of it should this process die. */
struct progress {
    uint64_t next;     /* case to do */
    uint64_t failures; /* in cases that went to their end */
    uint64_t hash;     /* of all that was written */
    char doing[200];
};

static struct {
    uint64_t seed;
    bool verbose;
    char *const *paths;
    struct core_image images[IMAGES_MAX];
    size_t image_count;
    struct progress *progress; /* of this process */
    const struct core_image *image;
    bool drew;         /* in this case */
    int64_t allocated; /* bytes, all of this process */
    int64_t allocated_before;
} run;

/* ---- complaints ---------------------------------------------------------------------------------- */

/* Usable while the process is dying. */
static void tell(const char *what) {
    char text[512];
    char number[40] = "undamaged";
    if (run.progress->next != NO_CASE) {
        snprintf(number, sizeof number, "case %" PRIu64, run.progress->next);
    }
    int length = snprintf(text, sizeof text, "mutate: seed %" PRIu64 " %s (%s), %s: %s\n", run.seed, number,
                          run.image ? run.image->name : "-", run.progress->doing, what);
    if (write(STDERR_FILENO, text, (size_t)length) != length) {
        return;
    }
    bool enough = run.progress->failures > FAILURES_MAX;
    if (run.image && !enough && run.image->change_count + run.image->truncated > 0) {
        snprintf(text, sizeof text, "failed-%" PRIu64 "-%" PRIu64 ".core", run.seed, run.progress->next);
        image_save(run.image, text);
    }
}

static void complain(const char *what) {
    run.progress->failures++;
    tell(what);
}

static void on_death(void) {
    tell("a sanitizer ended it");
}

static void on_signal(int number) {
    tell(number == SIGPROF ? "hangs" : "takes memory without bound");
    __sanitizer_print_stack_trace();
    _exit(3);
}

static void limit_time(unsigned seconds) {
    struct itimerval timer = {.it_value.tv_sec = seconds};
    setitimer(ITIMER_PROF, &timer, NULL);
}

static void on_malloc(const volatile void *block, size_t size) {
    (void)block;
    run.allocated += (int64_t)size;
    if (run.allocated - run.allocated_before > (int64_t)MEMORY_MAX) {
        run.allocated_before = INT64_MAX / 2; /* once */
        raise(SIGUSR1);
    }
}

static void on_free(const volatile void *block) {
    if (block) {
        run.allocated -= (int64_t)__sanitizer_get_allocated_size(block);
    }
}

/* ---- output --------------------------------------------------------------------------------------- */

struct text {
    bool json;
    bool dirty; /* control characters */
    uint64_t size;
    size_t kept;
    char *json_text; /* JSON_MAX */
};

static bool take(void *context, enum karst_style style, const char *text, size_t size) {
    struct text *taken = context;
    taken->dirty |= (unsigned)style >= KARST_STYLES;
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];
        taken->dirty |= (byte < ' ' && byte != '\n') || byte >= 0x7f; /* nothing beyond ASCII was allowed */
        run.progress->hash = (run.progress->hash ^ byte) * 0x100000001b3u;
    }
    taken->size += size;
    if (taken->json && size <= JSON_MAX - taken->kept) {
        memcpy(taken->json_text + taken->kept, text, size);
        taken->kept += size;
    }
    if (run.verbose && run.progress->next != NO_CASE) {
        fwrite(text, 1, size, stdout);
    }
    return taken->size <= OUTPUT_MAX;
}

/* One document, or one a line. */
static bool is_json(const char *text, size_t size) {
    size_t at = 0;
    bool any = false;
    for (;;) {
        while (at < size && (text[at] == '\n' || text[at] == ' ')) {
            at++;
        }
        if (at == size) {
            return any;
        }
        json_error_t error;
        json_t *value =
            json_loadb(text + at, size - at, JSON_DISABLE_EOF_CHECK | JSON_REJECT_DUPLICATES, &error);
        if (!value) {
            if (run.verbose) {
                printf("JSON: %s at byte %zu\n", error.text, at + (size_t)error.position);
            }
            return false;
        }
        json_decref(value);
        any = true;
        at += (size_t)error.position;
    }
}

static void check_output(struct text *taken, int status, const struct karst_error *error) {
    if (taken->dirty) {
        complain("characters in the output that may not be there");
    }
    if (taken->size > OUTPUT_MAX) {
        complain("output without bound");
    }
    if (status < 0 || status > 2) {
        complain("a status that is none");
    }
    if (status == 2 && (error->code == KARST_ERROR_NONE || error->text[0] == 0)) {
        complain("no answer, and no error");
    }
    for (const char *c = error->text; status == 2 && *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f) {
            complain("control characters in the error");
            break;
        }
    }
    if (taken->json && status != 2 && taken->size == taken->kept && !is_json(taken->json_text, taken->kept)) {
        complain("not JSON");
    }
}

/* ---- a case ---------------------------------------------------------------------------------------- */

#define WORDS_MAX 8

/* ADDRESS and NUMBER are replaced by one that is chosen for the case, PICTURE by a file's name. */
static const char *const verbs[][WORDS_MAX] = {
    {"info"},
    {"summary"},
    {"arenas"},
    {"bins"},
    {"sizes"},
    {"maps"},
    {"check"},
    {"holes"},
    {"holes", "--fit", "NUMBER"},
    {"pins"},
    {"blocks", "--all"},
    {"blocks", "--state", "free"},
    {"block", "ADDRESS"},
    {"block", "ADDRESS"},
    {"refs", "ADDRESS"},
    {"map"},
    {"sizes", "--exact", "--all"},
    {"blocks", "--sort", "size", "--limit", "NUMBER"},
    {"blocks", "--from", "ADDRESS", "--to", "ADDRESS"},
    {"block", "ADDRESS", "--dump", "NUMBER"},
    {"holes", "--limit", "NUMBER"},
    {"map", "--rows", "NUMBER", "--from", "ADDRESS"},
    {"pools"},
    {"pools", "--classes"},
    {"pools", "--blocks", "ADDRESS"},
    {"py-stack", "--locals", "--limit", "NUMBER"},
    {"py-objects"},
    {"py-objects", "--where", "ADDRESS"},
    {"py-objects", "--largest", "--limit", "NUMBER"},
    {"sites", "--all"},
    {"sites", "--stacks", "--limit", "NUMBER"},
    {"history", "--all"},
    {"history", "ADDRESS"},
    {"map", "--output", "PICTURE"},
};
#define VERBS (sizeof verbs / sizeof *verbs)

/* An address in or close to a block, mostly. */
static uint64_t some_address(const struct core_image *image, uint64_t *random) {
    if (image->block_count == 0 || below(random, 16) == 0) {
        return next_random(random);
    }
    const struct image_block *block = &image->blocks[below(random, image->block_count)];
    return below(random, 2) ? block->address : block->start + below(random, block->size + 16);
}

static int run_verb(struct karst *session, const struct core_image *image, size_t verb, uint64_t *random,
                    struct text *taken, struct karst_error *error) {
    const char *words[WORDS_MAX + 1];
    char address[32], number[32], picture[64];
    int count = 0;
    snprintf(picture, sizeof picture, "picture-%d.%s", (int)getpid(), below(random, 2) ? "svg" : "png");
    snprintf(address, sizeof address, "0x%" PRIx64, some_address(image, random));
    snprintf(number, sizeof number, "%" PRIu64, next_random(random) >> below(random, 64));
    size_t used = (size_t)snprintf(run.progress->doing, sizeof run.progress->doing, "karst");
    for (; count < WORDS_MAX && verbs[verb][count]; count++) {
        const char *word = verbs[verb][count];
        words[count] = strcmp(word, "ADDRESS") == 0   ? address
                       : strcmp(word, "NUMBER") == 0  ? number
                       : strcmp(word, "PICTURE") == 0 ? picture
                                                      : word;
        used += (size_t)snprintf(run.progress->doing + used, sizeof run.progress->doing - used, " %s",
                                 words[count]);
    }
    if (taken->json) {
        words[count++] = "--json";
        snprintf(run.progress->doing + used, sizeof run.progress->doing - used, " --json");
    }
    struct karst_output output = {.context = taken, .write = take, .width = below(random, 2) ? 100 : 0};
    uint64_t last = 0;
    limit_time(SECONDS_MAX);
    int status = karst_run(session, count, words, &output, &last, error);
    limit_time(0);
    unlink(picture);
    if (run.verbose && run.progress->next != NO_CASE) {
        printf("== %s: %d %s\n", run.progress->doing, status, status == 2 ? error->text : "");
    }
    return status;
}

static bool check_blocks(void *context, const struct karst_block *blocks, size_t count) {
    (void)context;
    for (size_t i = 0; i < count; i++) {
        if (blocks[i].size == 0 || blocks[i].start + blocks[i].size < blocks[i].start ||
            blocks[i].state >= KARST_STATES) {
            complain("a block that cannot be");
            return false;
        }
    }
    return true;
}

static void run_verbs(struct karst *session, const struct core_image *image, uint64_t *random,
                      bool pristine) {
    static char json_text[JSON_MAX];
    struct karst_error error = {0};
    size_t first = below(random, VERBS); /* the first verb finds the heaps: not always the same one */
    for (size_t i = 0; i < VERBS; i++) {
        size_t verb = (first + i) % VERBS;
        if (verb == VERBS - 1) {
            if (below(random, 64) && !pristine) {
                continue; /* drawing takes long */
            }
            run.drew = true;
        }
        struct text taken = {.json = below(random, 2), .json_text = json_text};
        error = (struct karst_error){0};
        int status = run_verb(session, image, verb, random, &taken, &error);
        check_output(&taken, status, &error);
        if (pristine && status == 2 && error.code != KARST_ERROR_NOT_FOUND &&
            error.code != KARST_ERROR_USAGE) {
            complain(error.text);
        }
    }
    snprintf(run.progress->doing, sizeof run.progress->doing, "karst_for_each_block");
    limit_time(SECONDS_MAX);
    bool walked = karst_for_each_block(session, check_blocks, NULL, &error);
    struct karst_block block;
    walked &= karst_find_block(session, some_address(image, random), &block, &error);
    limit_time(0);
    (void)walked; /* either is fine */
}

/* Symbols and debug information are the same for all cases and take most of the time where they are found:
 * one case in eight looks for them. */
static void run_session(const struct core_image *image, uint64_t *random, bool pristine) {
    uint64_t way = below(random, 8);
    struct karst_options options = {.no_symbols = way != 0, .sysroot = way > 5 ? "/nonexistent" : NULL};
    struct karst_error error = {0};
    snprintf(run.progress->doing, sizeof run.progress->doing, "karst_open_core");
    limit_time(SECONDS_MAX);
    struct karst *session = karst_open_core(image->path, &options, &error);
    limit_time(0);
    if (!session) {
        struct text none = {0};
        check_output(&none, 2, &error);
        if (pristine) {
            complain(error.text);
        }
        return;
    }
    run_verbs(session, image, random, pristine);
    karst_close(session);
}

static int free_descriptor(void) {
    int descriptor = dup(STDERR_FILENO);
    close(descriptor);
    return descriptor;
}

/* pristine: one of the images as it is, which every verb has to answer for. */
static void run_case(uint64_t number, bool pristine) {
    uint64_t random = run.seed * 0x9e3779b97f4a7c15u + number;
    next_random(&random);
    struct core_image *image =
        &run.images[pristine ? number % run.image_count : below(&random, run.image_count)];
    run.image = image;
    if (!pristine) {
        image_damage(image, &random);
    }
    int descriptor = free_descriptor();
    run.drew = false;
    run.allocated_before = run.allocated;
    run_session(image, &random, pristine);
    if (free_descriptor() != descriptor) {
        complain("leaves a file open");
    }
    int64_t left = run.allocated - run.allocated_before;
    if (left != 0 && !pristine && !run.drew) {
        char text[64];
        snprintf(text, sizeof text, "leaves %" PRId64 " bytes", left);
        complain(text);
    }
    image_mend(image);
    run.image = NULL;
}

/* ---- all cases -------------------------------------------------------------------------------------- */

static bool learn_blocks(void *context, const struct karst_block *blocks, size_t count) {
    struct core_image *image = context;
    for (size_t i = 0; i < count; i++) {
        struct image_block block = {blocks[i].start, blocks[i].address, blocks[i].size};
        if (!image_add_block(image, &block)) {
            return false;
        }
    }
    return true;
}

static bool open_images(char *const *paths) {
    for (size_t i = 0; paths[i] && run.image_count < IMAGES_MAX; i++) {
        struct core_image *image = &run.images[run.image_count++];
        struct karst_options options = {.no_symbols = true};
        struct karst_error error = {0};
        if (!image_open(image, paths[i])) {
            return false;
        }
        struct karst *session = karst_open_core(image->path, &options, &error);
        bool learned = session && karst_for_each_block(session, learn_blocks, image, &error);
        karst_close(session);
        if (!learned || image->block_count == 0) {
            fprintf(stderr, "mutate: %s: %s\n", paths[i], learned ? "no blocks" : error.text);
            return false;
        }
    }
    return run.image_count > 0;
}

static void close_images(void) {
    for (size_t i = 0; i < run.image_count; i++) {
        image_close(&run.images[i]);
    }
    run.image_count = 0;
}

/* The pristine cores first: they show that the verbs answer at all, and fill what libraries keep for good. */
static void run_share(uint64_t end, uint64_t step) {
    signal(SIGPROF, on_signal);
    signal(SIGUSR1, on_signal);
    __sanitizer_set_death_callback(on_death);
    uint64_t next = run.progress->next;
    run.progress->next = NO_CASE;
    for (size_t i = 0; i < 8 * run.image_count; i++) {
        run_case(i, true);
    }
    for (; next < end; next += step) {
        run.progress->next = next;
        run_case(next, false);
    }
    run.progress->next = next;
    snprintf(run.progress->doing, sizeof run.progress->doing, "the leak check at the end");
}

/* In a process of its own, with copies of the cores of its own. */
static pid_t start(struct progress *progress, uint64_t end, uint64_t step) {
    pid_t child = fork();
    if (child == 0) {
        run.progress = progress;
        if (!open_images(run.paths)) {
            _exit(2);
        }
        run_share(end, step);
        close_images();
        fflush(stdout);
        if (__lsan_do_recoverable_leak_check() != 0) {
            complain("leaks");
        }
        _exit(0);
    }
    return child;
}

/* Starts a share again behind the case that ended it. */
static uint64_t run_all(struct progress *shares, uint64_t first, uint64_t end, uint64_t jobs) {
    pid_t children[JOBS_MAX];
    uint64_t deaths = 0, failures = 0;
    for (uint64_t i = 0; i < jobs; i++) {
        shares[i].next = first + i;
        children[i] = start(&shares[i], end, jobs);
    }
    for (uint64_t running = jobs; running > 0;) {
        int status = 0;
        pid_t ended = wait(&status);
        uint64_t i = 0;
        while (i < jobs && children[i] != ended) {
            i++;
        }
        if (i == jobs) {
            continue;
        }
        running--;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            continue;
        }
        fprintf(stderr, "mutate: the process ended with %s %d, at %s\n",
                WIFSIGNALED(status) ? "signal" : "status",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), shares[i].doing);
        if (++deaths < FAILURES_MAX && shares[i].next != NO_CASE) {
            shares[i].next += jobs;
            children[i] = start(&shares[i], end, jobs);
            running++;
        }
    }
    for (uint64_t i = 0; i < jobs; i++) {
        failures += shares[i].failures;
    }
    return failures + deaths;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"seed", required_argument, NULL, 's'},
                                            {"case", required_argument, NULL, 'k'},
                                            {"from", required_argument, NULL, 'f'},
                                            {"jobs", required_argument, NULL, 'j'},
                                            {NULL, 0, NULL, 0}};
    uint64_t first = 0, cases = 1000, jobs = 1;
    for (int option; (option = getopt_long(argc, argv, "n:", options, NULL)) != -1;) {
        switch (option) {
        case 's':
            run.seed = strtoull(optarg, NULL, 0);
            break;
        case 'k':
            first = strtoull(optarg, NULL, 0);
            cases = 1;
            run.verbose = true;
            break;
        case 'f':
            first = strtoull(optarg, NULL, 0);
            break;
        case 'n':
            cases = strtoull(optarg, NULL, 0);
            break;
        case 'j':
            jobs = strtoull(optarg, NULL, 0);
            break;
        default:
            return 2;
        }
    }
    struct progress *shares =
        mmap(NULL, JOBS_MAX * sizeof *shares, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (optind == argc || jobs < 1 || jobs > JOBS_MAX || shares == MAP_FAILED) {
        fprintf(stderr,
                "usage: mutate [--seed N] [[--from K] [-n CASES] | --case K] [--jobs 1..%d] CORE...\n",
                JOBS_MAX);
        return 2;
    }
    run.paths = argv + optind;
    if (!__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free)) {
        return 2;
    }
    uint64_t failures = run_all(shares, first, first + cases, jobs), hash = 0;
    for (uint64_t i = 0; i < jobs; i++) {
        hash ^= shares[i].hash;
    }
    printf("%" PRIu64 " cases, seed %" PRIu64 ": %" PRIu64 " went wrong (output %016" PRIx64 ")\n", cases,
           run.seed, failures, hash);
    return failures > 0;
}
