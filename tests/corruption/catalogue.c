/* catalogue NAME [DIRECTORY [healthy]]: runs a case, prints "expect CODE SEVERITY ADDRESS" lines and
 * "ready PID", then waits. DIRECTORY/bystanders gets the blocks that have nothing to do with the damage:
 * address and usable size. Without a name: lists the cases. */
#include "catalogue.h"

#include <fcntl.h>
#include <gnu/libc-version.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define BYSTANDERS 6000
#define WORKERS    2

static void **bystanders; /* in a mapping of its own */
static size_t bystander_count;
static void *first_block;
static bool healthy;
uint64_t *stack_room;

static _Noreturn void give_up(const char *what) {
    (void)!write(STDERR_FILENO, what, strlen(what));
    (void)!write(STDERR_FILENO, "\n", 1);
    _exit(3);
}

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...) {
    char line[200];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    (void)!write(STDOUT_FILENO, line, (size_t)length);
}

static int glibc_minor(void) {
    return (int)strtol(strchr(gnu_get_libc_version(), '.') + 1, NULL, 10);
}

void *allocate(size_t size) {
    void *block = malloc(size);
    if (block == NULL) {
        give_up("catalogue: out of memory");
    }
    memset(block, 0, size);
    return block;
}

void release(void *block) {
    free(block);
}

bool damage(const char *code, const void *address) {
    if (!healthy) {
        say("expect %s corrupt %p\n", code, address);
    }
    return !healthy;
}

bool damage_suspected(const char *code, const void *address) {
    if (!healthy) {
        say("expect %s suspect %p\n", code, address);
    }
    return !healthy;
}

/* ---- the heap around ---- */

static void add_bystander(size_t size) {
    char *block = allocate(size);
    memset(block, 'b', size);
    bystanders[__atomic_fetch_add(&bystander_count, 1, __ATOMIC_RELAXED)] = block;
}

static void add_bystanders(size_t count, unsigned random) {
    for (size_t i = 0; i < count; i++) {
        random = random * 1103515245u + 12345;
        add_bystander(1 + (random >> 16) % 2500);
    }
}

void stand_by(size_t count) {
    add_bystanders(count, (unsigned)count);
}

/* What is freed here goes to large bins that the cases do not use. */
void allocated(void) {
    void *freed[40];
    for (size_t i = 0; i < sizeof freed / sizeof *freed; i++) {
        add_bystanders(10, (unsigned)i + 77);
        freed[i] = allocate(5000 + i * 16);
    }
    add_bystanders(100, 7);
    for (size_t i = 0; i < sizeof freed / sizeof *freed; i++) {
        release(freed[i]);
    }
    add_bystander(20000); /* sorts them */
}

struct task {
    void (*function)(void *);
    void *argument;
    pthread_barrier_t done;
};

static void *task_main(void *argument) {
    struct task *task = argument;
    task->function(task->argument);
    pthread_barrier_wait(&task->done);
    for (;;) {
        pause();
    }
    return NULL;
}

/* The task's memory is static: its thread never ends. */
void in_thread(void (*function)(void *), void *argument) {
    static struct task tasks[16];
    static size_t task_count;
    struct task *task = &tasks[task_count++];
    task->function = function;
    task->argument = argument;
    pthread_barrier_init(&task->done, NULL, 2);
    pthread_t thread;
    if (pthread_create(&thread, NULL, task_main, task) != 0) {
        give_up("catalogue: no thread");
    }
    pthread_barrier_wait(&task->done);
}

static void *worker_block;

static void populate_worker(void *argument) {
    worker_block = allocate(100);
    add_bystanders(300, *(unsigned *)argument);
}

void *block_of_other_arena(void) {
    return worker_block;
}

static void populate(void) {
    static unsigned seeds[WORKERS] = {4711, 815};
    add_bystanders(1000, 42);
    for (size_t i = 0; i < WORKERS; i++) {
        in_thread(populate_worker, &seeds[i]);
    }
}

/* ---- what glibc's versions differ in ---- */

struct filler tcache_filler(size_t size) {
    struct filler filler = {.count = glibc_minor() >= 43 ? 16 : 7};
    for (size_t i = 0; i < filler.count; i++) {
        filler.blocks[i] = allocate(size);
    }
    return filler;
}

void fill_tcache(const struct filler *filler) {
    for (size_t i = 0; i < filler->count; i++) {
        release(filler->blocks[i]);
    }
}

void *mangled(const void *position, const void *pointer) {
    uintptr_t key = glibc_minor() >= 32 ? (uintptr_t)position >> 12 : 0;
    return (void *)(key ^ (uintptr_t)pointer);
}

/* Before 2.42 it is made before the first block, from 2.43 on at the first free, so behind it. */
char *main_tcache(void) {
    static const struct {
        ptrdiff_t distance;
        size_t size;
    } places[] = {{-0x290, 0x290}, {-0x300, 0x300}, {-0x310, 0x310}, {0x20, 0x300}, {0x20, 0x310}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char *tcache = (char *)first_block + places[i].distance;
        /* The heap begins where the first block's page does. */
        bool in_heap = (uintptr_t)tcache >> 12 == (uintptr_t)first_block >> 12;
        if (in_heap && chunk_size(tcache) == places[i].size) {
            return tcache;
        }
    }
    give_up("catalogue: no tcache");
}

uint16_t *tcache_counter(size_t block_size) {
    return (uint16_t *)main_tcache() + (block_size + 8 - 17) / 16;
}

char *main_arena_by(void *unsorted_block) {
    struct chunk *head = chunk_of(unsorted_block)->fd;
    if (head != chunk_of(unsorted_block)->bk) {
        give_up("catalogue: not alone in the unsorted bin");
    }
    return (char *)head - arena_offsets().top;
}

/* The unsorted bin's head, as a chunk, begins at top. */
struct arena_offsets arena_offsets(void) {
    if (glibc_minor() >= 43) {
        return (struct arena_offsets){.top = 8, .next = 2072, .system_mem = 2096};
    }
    return (struct arena_offsets){.top = 96, .next = 2160, .system_mem = 2184};
}

/* ---- running a case ---- */

static const struct case_ *const groups[] = {double_free_cases, overlap_cases, header_cases,
                                             link_cases,        cache_cases,   root_cases};

static const struct case_ *find_case(const char *name) {
    for (size_t group = 0; group < sizeof groups / sizeof *groups; group++) {
        for (const struct case_ *entry = groups[group]; entry->name != NULL; entry++) {
            if (name == NULL) {
                say("%s\n", entry->name);
            } else if (strcmp(entry->name, name) == 0) {
                return entry;
            }
        }
    }
    return NULL;
}

static void write_bystanders(const char *directory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/bystanders", directory);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (size_t i = 0; file >= 0 && i < bystander_count; i++) {
        char line[80];
        int length =
            snprintf(line, sizeof line, "%p %zu\n", bystanders[i], malloc_usable_size(bystanders[i]));
        if (write(file, line, (size_t)length) != length) {
            give_up("catalogue: cannot write");
        }
    }
    close(file);
}

int main(int argc, char **argv) {
    _Alignas(16) uint64_t room[16] = {0};
    stack_room = room;
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    const struct case_ *entry = find_case(argc > 1 ? argv[1] : NULL);
    if (entry == NULL) {
        return argc > 1 ? 2 : 0;
    }
    healthy = argc > 3 && strcmp(argv[3], "healthy") == 0;
    bystanders = mmap(NULL, BYSTANDERS * sizeof *bystanders, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bystanders == MAP_FAILED) {
        give_up("catalogue: mmap");
    }
    first_block = allocate(24);
    release(first_block);
    if (entry->needs_fastbins && glibc_minor() >= 43) {
        say("skip this glibc has no fastbins\n");
    } else {
        populate();
        entry->run();
        write_bystanders(argc > 2 ? argv[2] : ".");
    }
    say("ready %d\n", (int)getpid());
    for (;;) {
        pause();
    }
}
