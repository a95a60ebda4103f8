/* ledger: a program that knows what it holds. It works its heap over in several threads, keeps the list of
 * its live blocks in memory that is not malloc's, writes that list (and what malloc itself has to say at the
 * same point) into files, says "ready PID" and waits to be looked at, or aborts for a core.
 *
 * Files, in the directory given: `ledger` (a line a block: origin, address, requested, malloc_usable_size),
 * `malloc_info.xml`, `mallinfo2`. Origins: "own" (the program's), "libc" (made by libc on its behalf: a FILE,
 * a thread's dtv) and "second" (the heap of a second libc). */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "splitmix.h"

#define WORKERS_MAX  64
#define HAMMERS_MAX  16
#define HAMMER_SLOTS 32
#define STACK_BYTES  (256u << 10)

/* Not in every libc this is linked with: NULL there. */
extern __typeof__(mallinfo2) mallinfo2 __attribute__((weak));
extern __typeof__(dlmopen) dlmopen __attribute__((weak));
extern __typeof__(dlsym) dlsym __attribute__((weak));

enum profile { PROFILE_MIXED, PROFILE_SMALL, PROFILE_LARGE };

struct settings {
    const char *directory;
    uint64_t seed;
    enum profile profile;
    unsigned workers, leavers, young, hammers;
    size_t slots, operations, rounds;
    long brk_room; /* bytes the break may still grow, -1: not blocked */
    bool foreign_sbrk, second, fork, abort;
};

static struct settings settings = {
    .directory = ".",
    .seed = 1,
    .workers = 4,
    .slots = 3000,
    .operations = 6000,
    .rounds = 3,
    .brk_room = -1,
};

/* One libc's malloc. */
struct functions {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void *(*memalign)(size_t, size_t);
    int (*posix_memalign)(void **, size_t, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    void (*free)(void *);
    size_t (*usable)(void *);
};

#ifdef LEDGER_PREFIXED
/* A jemalloc that was built with --with-jemalloc-prefix=je_ beside libc's malloc. */
#define OWN(name) je_##name
void *je_malloc(size_t);
void *je_calloc(size_t, size_t);
void *je_realloc(void *, size_t);
void *je_memalign(size_t, size_t);
int je_posix_memalign(void **, size_t, size_t);
void *je_aligned_alloc(size_t, size_t);
void je_free(void *);
size_t je_malloc_usable_size(void *);
#else
#define OWN(name) name
#endif

static const struct functions own_functions = {
    OWN(malloc),         OWN(calloc),        OWN(realloc), OWN(memalign),
    OWN(posix_memalign), OWN(aligned_alloc), OWN(free),    OWN(malloc_usable_size)};

struct slot {
    unsigned char *block; /* NULL: empty */
    size_t requested;
};

struct worker {
    pthread_t thread;
    unsigned index;
    uint64_t random;
    const struct functions *functions;
    struct slot *slots;
    size_t slot_count;
    void *dtv; /* the block that holds the thread's dtv; NULL: not malloc's */
};

static struct worker workers[WORKERS_MAX];
static struct worker second_worker, young_workers[WORKERS_MAX], hammers[HAMMERS_MAX];
static pthread_barrier_t barrier;
static atomic_uint young_started, hammers_started;
static FILE *information;
static char information_buffer[1 << 16];

static _Noreturn void give_up(const char *what) {
    char text[300];
    int length = snprintf(text, sizeof text, "ledger: %s: %s\n", what, strerror(errno));
    (void)!write(STDERR_FILENO, text, (size_t)length);
    _exit(3);
}

static size_t random_between(uint64_t *state, size_t low, size_t high) {
    return low + next_random(state) % (high - low + 1);
}

static size_t random_size(uint64_t *random) {
    if (settings.profile == PROFILE_SMALL) {
        return random_between(random, 1, 120);
    }
    if (settings.profile == PROFILE_LARGE) {
        return random_between(random, 30000, 125000);
    }
    unsigned kind = (unsigned)(next_random(random) % 1000);
    return kind < 500   ? random_between(random, 1, 128)
           : kind < 760 ? random_between(random, 129, 1040)
           : kind < 920 ? random_between(random, 1041, 16384)
           : kind < 985 ? random_between(random, 16385, 131072)
           : kind < 997 ? random_between(random, 131073, 1048576)
                        : random_between(random, 1048577, 4194304);
}

/* ---- working the heap over ---- */

static void *take_memory(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        give_up("mmap");
    }
    return memory;
}

/* Contents that might lead a walker astray: chunk headers, pointers into the heap, text. */
static void scribble(struct worker *worker, const struct slot *slot) {
    const struct slot *other = &worker->slots[next_random(&worker->random) % worker->slot_count];
    uint64_t words[4] = {0, 0x21, (uint64_t)(uintptr_t)other->block, (uint64_t)(uintptr_t)other->block - 16};
    uint64_t kind = next_random(&worker->random) % 4;
    if (kind == 0) {
        memset(words, 'A', sizeof words);
    } else if (kind == 1) {
        words[1] = 0x21002; /* as of an mmapped chunk */
    }
    size_t size = slot->requested < sizeof words ? slot->requested : sizeof words;
    if (kind != 3) {
        memcpy(slot->block, words, size);
        memcpy(slot->block + slot->requested - size, words, size);
    }
}

static void *allocate(struct worker *worker, size_t size) {
    const struct functions *functions = worker->functions;
    size_t alignment = (size_t)16 << next_random(&worker->random) % 13;
    void *block = NULL;
    switch (next_random(&worker->random) % 8) {
    case 0:
        return functions->calloc(1, size);
    case 1:
        return functions->memalign(alignment, size);
    case 2:
        return functions->posix_memalign(&block, alignment, size) == 0 ? block : NULL;
    case 3:
        return functions->aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    case 4:
        return functions->realloc(NULL, size);
    default:
        return functions->malloc(size);
    }
}

static void empty_slot(const struct functions *functions, struct slot *slot) {
    functions->free(slot->block);
    slot->block = NULL;
}

static void fill_slot(struct worker *worker, struct slot *slot) {
    slot->requested = random_size(&worker->random);
    slot->block = allocate(worker, slot->requested);
    if (slot->block == NULL) {
        give_up("malloc");
    }
    scribble(worker, slot);
}

static void work_step(struct worker *worker) {
    struct slot *slot = &worker->slots[next_random(&worker->random) % worker->slot_count];
    if (slot->block == NULL) {
        fill_slot(worker, slot);
    } else if (next_random(&worker->random) % 4 != 0) {
        empty_slot(worker->functions, slot);
    } else {
        slot->requested = random_size(&worker->random);
        slot->block = worker->functions->realloc(slot->block, slot->requested);
        if (slot->block == NULL) {
            give_up("realloc");
        }
        scribble(worker, slot);
    }
}

/* Somebody else's use of the break, of a size that is no multiple of anything; but for whole pages when the
 * break will run into what blocks it: malloc (glibc 2.36) asserts that its old top ends on a page then. */
static void move_break(uint64_t *random) {
    size_t size = random_between(random, 1, 20000);
    if (settings.brk_room >= 0) {
        size = (size + 4095) / 4096 * 4096;
    }
    if (sbrk((intptr_t)size) == (void *)-1 && settings.brk_room < 0) {
        give_up("sbrk");
    }
}

static void work_round(struct worker *worker) {
    for (size_t i = 0; i < settings.operations; i++) {
        work_step(worker);
        if (settings.foreign_sbrk && worker->index == 0 && i % 500 == 499) {
            move_break(&worker->random);
        }
    }
}

/* Frees a third of what another thread allocated. */
static void free_of_others(const struct worker *worker) {
    struct worker *other = &workers[(worker->index + 1) % settings.workers];
    for (size_t i = worker->index % 3; i < other->slot_count; i += 3) {
        if (other->slots[i].block != NULL) {
            empty_slot(other->functions, &other->slots[i]);
        }
    }
}

static void work(struct worker *worker) {
    for (size_t round = 0; round < settings.rounds; round++) {
        work_round(worker);
        pthread_barrier_wait(&barrier);
        free_of_others(worker);
        pthread_barrier_wait(&barrier);
    }
}

/* ---- threads ---- */

static void note_dtv(struct worker *worker) {
#ifdef __x86_64__
    /* glibc sysdeps/x86_64/nptl/tls.h tcbhead_t: the second word is the dtv, whose block begins one
     * 16-byte entry before (elf/dl-tls.c allocate_dtv). */
    worker->dtv = (char *)((void **)pthread_self())[1] - 16;
#else
    worker->dtv = NULL;
#endif
}

static _Noreturn void wait_forever(void) {
    for (;;) {
        pause();
    }
}

static void *worker_main(void *argument) {
    struct worker *worker = argument;
    note_dtv(worker);
    work(worker);
    if (worker->index < settings.workers - settings.leavers) {
        wait_forever();
    }
    return NULL;
}

/* A thread that has just started: every other one has not asked for memory yet. */
static void *young_main(void *argument) {
    struct worker *worker = argument;
    note_dtv(worker);
    if (worker->index % 2 == 1) {
        worker->slots[0].requested = 24;
        worker->slots[0].block = malloc(24);
    }
    atomic_fetch_add(&young_started, 1);
    wait_forever();
}

/* Never stops; holds at most HAMMER_SLOTS blocks, and one in flight. */
static _Noreturn void *hammer_main(void *argument) {
    struct worker *worker = argument;
    note_dtv(worker);
    atomic_fetch_add(&hammers_started, 1);
    for (;;) {
        work_step(worker);
    }
}

static void start_thread(struct worker *worker, void *(*main)(void *)) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    if (pthread_create(&worker->thread, &attributes, main, worker) != 0) {
        give_up("pthread_create");
    }
    pthread_attr_destroy(&attributes);
}

static void prepare(struct worker *worker, unsigned index, size_t slots, const struct functions *functions) {
    worker->index = index;
    worker->random = settings.seed * 1000 + index;
    worker->functions = functions;
    worker->slot_count = slots;
    worker->slots = take_memory(slots * sizeof *worker->slots);
}

static void start_group(struct worker *group, unsigned count, size_t slots, void *(*main)(void *)) {
    for (unsigned i = 0; i < count; i++) {
        prepare(&group[i], i, slots, &own_functions);
        start_thread(&group[i], main);
    }
}

static void run_workers(void) {
    pthread_barrier_init(&barrier, NULL, settings.workers);
    for (unsigned i = 0; i < settings.workers; i++) {
        prepare(&workers[i], i, settings.slots, &own_functions);
    }
    for (unsigned i = 1; i < settings.workers; i++) {
        start_thread(&workers[i], worker_main);
    }
    work(&workers[0]);
    for (unsigned i = settings.workers - settings.leavers; i < settings.workers; i++) {
        pthread_join(workers[i].thread, NULL);
    }
}

/* ---- a second libc beside the first ---- */

static void *second_function(void *library, const char *name) {
    void *function = dlsym(library, name);
    if (function == NULL) {
        give_up(name);
    }
    return function;
}

static void run_second(void) {
    static struct functions functions;
    void *library = NULL;
#ifndef LEDGER_STATIC
    if (dlmopen != NULL) {
        library = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
    }
#endif
    if (library == NULL) {
        give_up("dlmopen");
    }
    *(void **)&functions.malloc = second_function(library, "malloc");
    *(void **)&functions.calloc = second_function(library, "calloc");
    *(void **)&functions.realloc = second_function(library, "realloc");
    *(void **)&functions.memalign = second_function(library, "memalign");
    *(void **)&functions.posix_memalign = second_function(library, "posix_memalign");
    *(void **)&functions.aligned_alloc = second_function(library, "aligned_alloc");
    *(void **)&functions.free = second_function(library, "free");
    *(void **)&functions.usable = second_function(library, "malloc_usable_size");
    prepare(&second_worker, WORKERS_MAX, settings.slots, &functions);
    work_round(&second_worker);
}

/* ---- the ledger ---- */

static int ledger_file;

static void ledger_write(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void ledger_write(const char *format, ...) {
    char line[200];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (write(ledger_file, line, (size_t)length) != length) {
        give_up("ledger");
    }
}

static void write_block(const char *origin, void *block, size_t requested, size_t usable) {
    ledger_write("%s %p %zu %zu\n", origin, block, requested, usable);
}

static void write_worker(const char *origin, const struct worker *worker) {
    for (size_t i = 0; i < worker->slot_count; i++) {
        const struct slot *slot = &worker->slots[i];
        if (slot->block != NULL) {
            write_block(origin, slot->block, slot->requested, worker->functions->usable(slot->block));
        }
    }
    if (worker->dtv != NULL) {
        write_block("libc", worker->dtv, 16, malloc_usable_size(worker->dtv));
    }
}

static int open_file(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", settings.directory, name);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) {
        give_up(path);
    }
    return file;
}

static void write_ledger(void) {
    ledger_file = open_file("ledger");
    write_block("libc", information, 1, malloc_usable_size(information));
    for (unsigned i = 0; i < settings.workers; i++) {
        write_worker("own", &workers[i]);
    }
    for (unsigned i = 0; i < settings.young; i++) {
        write_worker("own", &young_workers[i]);
    }
    write_worker("second", &second_worker);
    for (unsigned i = 0; i < settings.hammers; i++) {
        if (hammers[i].dtv != NULL) {
            write_block("libc", hammers[i].dtv, 16, malloc_usable_size(hammers[i].dtv));
        }
    }
    close(ledger_file);
}

static void write_information(void) {
    malloc_info(0, information);
    fflush(information);
    if (mallinfo2 == NULL) {
        return;
    }
    struct mallinfo2 info = mallinfo2();
    ledger_file = open_file("mallinfo2");
    ledger_write("arena %zu\nordblks %zu\nsmblks %zu\nhblks %zu\nhblkhd %zu\n", info.arena, info.ordblks,
                 info.smblks, info.hblks, info.hblkhd);
    ledger_write("fsmblks %zu\nuordblks %zu\nfordblks %zu\nkeepcost %zu\n", info.fsmblks, info.uordblks,
                 info.fordblks, info.keepcost);
    close(ledger_file);
}

/* jemalloc's own totals, where it serves malloc; last of all, for nothing may move afterwards. */
extern int OWN(mallctl)(const char *name, void *old, size_t *old_size, void *fresh, size_t fresh_size)
    __attribute__((weak));

/* Of all arenas: "stats.arenas.<MALLCTL_ARENAS_ALL>" since 5.0, before that the one behind the last. */
static size_t jemalloc_says(const char *format, unsigned arenas, unsigned index) {
    char name[80];
    size_t value = 0, size = sizeof value;
    snprintf(name, sizeof name, format, arenas, index);
    return OWN(mallctl)(name, &value, &size, NULL, 0) == 0 ? value : (size_t)-1;
}

static unsigned jemalloc_count(const char *name) {
    unsigned count = 0;
    size_t size = sizeof count;
    return OWN(mallctl)(name, &count, &size, NULL, 0) == 0 ? count : 0;
}

#define UNTOLD ((size_t)-1)

static void write_jemalloc_bin(unsigned arenas, unsigned bin) {
    size_t region = jemalloc_says("arenas.bin.%u.size", bin, 0);
    size_t slabs = jemalloc_says("stats.arenas.%u.bins.%u.curslabs", arenas, bin);
    size_t regions = jemalloc_says("stats.arenas.%u.bins.%u.curregs", arenas, bin);
    if (slabs == UNTOLD) { /* before 5.0 */
        slabs = jemalloc_says("stats.arenas.%u.bins.%u.curruns", arenas, bin);
    }
    if (regions == UNTOLD) { /* 3.x */
        size_t bytes = jemalloc_says("stats.arenas.%u.bins.%u.allocated", arenas, bin);
        regions = bytes == UNTOLD ? UNTOLD : bytes / region;
    }
    ledger_write("bin-%zu %zu %zu\n", region, slabs, regions);
}

static void write_jemalloc(void) {
    static const char *const names[] = {"allocated", "active", "metadata", "mapped", "retained", "resident"};
    static const char *const kinds[] = {"small", "large", "huge"};
    uint64_t epoch = 1;
    size_t size = sizeof epoch;
    if (OWN(mallctl) == NULL || OWN(mallctl)("epoch", &epoch, &size, &epoch, size) != 0) {
        return;
    }
    ledger_file = open_file("mallctl");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[40];
        snprintf(name, sizeof name, "stats.%s", names[i]);
        ledger_write("%s %zu\n", names[i], jemalloc_says(name, 0, 0));
    }
    unsigned arenas = 4096;
    if (jemalloc_says("stats.arenas.%u.small.allocated", arenas, 0) == UNTOLD) {
        arenas = jemalloc_count("arenas.narenas");
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char name[60];
        snprintf(name, sizeof name, "stats.arenas.%%u.%s.allocated", kinds[i]);
        size_t bytes = jemalloc_says(name, arenas, 0);
        if (bytes == UNTOLD) { /* 3.x: huge blocks are no arena's */
            snprintf(name, sizeof name, "stats.%s.allocated", kinds[i]);
            bytes = jemalloc_says(name, 0, 0);
        }
        ledger_write("%s_allocated %zu\n", kinds[i], bytes);
    }
    for (unsigned bin = 0; bin < jemalloc_count("arenas.nbins"); bin++) {
        write_jemalloc_bin(arenas, bin);
    }
    close(ledger_file);
}

/* ---- set-up ---- */

static void block_break(size_t room) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t end = ((uintptr_t)sbrk(0) + room + page - 1) / page * page;
    if (mmap((void *)end, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
        MAP_FAILED) {
        give_up("mmap behind the heap");
    }
}

static void open_information(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s/malloc_info.xml", settings.directory);
    information = fopen(path, "we");
    if (information == NULL) {
        give_up(path);
    }
    setvbuf(information, information_buffer, _IOFBF, sizeof information_buffer);
}

enum {
    OPTION_SEED = 1,
    OPTION_THREADS,
    OPTION_EXITED,
    OPTION_YOUNG,
    OPTION_HAMMERS,
    OPTION_SLOTS,
    OPTION_SMALL,
    OPTION_LARGE,
    OPTION_BRK,
    OPTION_SBRK,
    OPTION_ARENAS,
    OPTION_THRESHOLD,
    OPTION_PERTURB,
    OPTION_SECOND,
    OPTION_FORK,
    OPTION_ABORT,
};

static const struct option options[] = {
    {"seed", required_argument, NULL, OPTION_SEED},
    {"threads", required_argument, NULL, OPTION_THREADS},          /* the main one included */
    {"exited", required_argument, NULL, OPTION_EXITED},            /* of them, how many are gone at the end */
    {"young", required_argument, NULL, OPTION_YOUNG},              /* threads that have just started */
    {"hammers", required_argument, NULL, OPTION_HAMMERS},          /* threads that never stop allocating */
    {"slots", required_argument, NULL, OPTION_SLOTS},              /* blocks a thread holds at most */
    {"small", no_argument, NULL, OPTION_SMALL},                    /* sizes of fastbins */
    {"large", no_argument, NULL, OPTION_LARGE},                    /* sizes that fill heaps */
    {"block-brk", required_argument, NULL, OPTION_BRK},            /* so many bytes behind the break */
    {"foreign-sbrk", no_argument, NULL, OPTION_SBRK},              /* moves the break now and then */
    {"arenas", required_argument, NULL, OPTION_ARENAS},            /* M_ARENA_MAX */
    {"mmap-threshold", required_argument, NULL, OPTION_THRESHOLD}, /* M_MMAP_THRESHOLD */
    {"perturb", required_argument, NULL, OPTION_PERTURB},          /* M_PERTURB */
    {"second-libc", no_argument, NULL, OPTION_SECOND},
    {"fork", no_argument, NULL, OPTION_FORK}, /* a child of one thread is the one to look at */
    {"abort", no_argument, NULL, OPTION_ABORT},
    {NULL, 0, NULL, 0},
};

static unsigned count_option(unsigned most) {
    unsigned long count = strtoul(optarg, NULL, 0);
    if (count > most) {
        errno = ERANGE;
        give_up(optarg);
    }
    return (unsigned)count;
}

static void set_allocator(int parameter) {
    if (mallopt(parameter, (int)strtol(optarg, NULL, 0)) != 1) {
        give_up("mallopt");
    }
}

static void take_flag(int option) {
    switch (option) {
    case OPTION_SMALL:
        settings.profile = PROFILE_SMALL;
        break;
    case OPTION_LARGE:
        settings.profile = PROFILE_LARGE;
        break;
    case OPTION_SBRK:
        settings.foreign_sbrk = true;
        break;
    case OPTION_SECOND:
        settings.second = true;
        break;
    case OPTION_FORK:
        settings.fork = true;
        break;
    case OPTION_ABORT:
        settings.abort = true;
        break;
    default:
        _exit(2);
    }
}

static void take_option(int option) {
    switch (option) {
    case OPTION_SEED:
        settings.seed = strtoull(optarg, NULL, 0);
        break;
    case OPTION_THREADS:
        settings.workers = count_option(WORKERS_MAX);
        break;
    case OPTION_EXITED:
        settings.leavers = count_option(WORKERS_MAX);
        break;
    case OPTION_YOUNG:
        settings.young = count_option(WORKERS_MAX);
        break;
    case OPTION_HAMMERS:
        settings.hammers = count_option(HAMMERS_MAX);
        break;
    case OPTION_SLOTS:
        settings.slots = count_option(10000000);
        settings.operations = settings.slots * 2;
        break;
    case OPTION_BRK:
        settings.brk_room = (long)count_option(1u << 30);
        break;
    case OPTION_ARENAS:
        set_allocator(M_ARENA_MAX);
        break;
    case OPTION_THRESHOLD:
        set_allocator(M_MMAP_THRESHOLD);
        break;
    case OPTION_PERTURB:
        set_allocator(M_PERTURB);
        break;
    default:
        take_flag(option);
    }
}

static void take_options(int argc, char **argv) {
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        take_option(option);
    }
    if (optind < argc) {
        settings.directory = argv[optind];
    }
    if (settings.workers == 0 || settings.leavers >= settings.workers) {
        errno = EINVAL;
        give_up("--threads must be more than --exited");
    }
}

/* In the parent returns only when the child is gone. */
static void become_child(void) {
    pid_t child = fork();
    if (child > 0) {
        waitpid(child, NULL, 0);
        _exit(0);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void wait_for(const atomic_uint *started, unsigned count) {
    while (atomic_load(started) < count) {
        usleep(1000);
    }
}

static void say_ready(void) {
    char line[40];
    int length = snprintf(line, sizeof line, "ready %d\n", (int)getpid());
    (void)!write(STDOUT_FILENO, line, (size_t)length);
}

int main(int argc, char **argv) {
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    take_options(argc, argv);
    if (settings.brk_room >= 0) {
        block_break((size_t)settings.brk_room);
    }
    open_information();
    run_workers();
    if (settings.second) {
        run_second();
    }
    start_group(young_workers, settings.young, 1, young_main);
    wait_for(&young_started, settings.young);
    write_information();
    start_group(hammers, settings.hammers, HAMMER_SLOTS, hammer_main);
    wait_for(&hammers_started, settings.hammers);
    write_ledger();
    write_jemalloc();
    if (settings.fork) {
        become_child();
    }
    say_ready();
    if (settings.abort) {
        abort();
    }
    wait_forever();
}
