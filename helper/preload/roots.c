#include <string.h>

#include "preload.h"

/* Addresses of the allocator's own data, for the marker: what can be learned without taking or changing
 * anything of it. karst-abi.h has their names. */

static void add_root(const char *name, uint64_t address) {
    struct karst_control *control = &karst_control;
    if (address && control->root_count < sizeof control->roots / sizeof *control->roots) {
        struct karst_line line = {control->roots[control->root_count].name,
                                  sizeof control->roots[control->root_count].name, 0};
        karst_line_add(&line, name);
        control->roots[control->root_count++].address = address;
    }
}

/* ---- glibc ------------------------------------------------------------------------------------------- */

/* malloc_state of glibc 2.27 to 2.43 (malloc/malloc.c): 127 bins of two pointers each, which are that of the
 * bin itself less 16 where it is empty, and zero before the first malloc; a map of bins of 16 bytes; `next`,
 * which leads to the state itself as long as there is one arena; `next_free`, and how many threads use the
 * arena. What is ahead of the bins differs. */
#define BIN_BYTES   16u
#define BINS        127u
#define BEHIND_BINS (BINS * BIN_BYTES + 16u)
#define BEFORE_BINS 160u /* at most */
#define BINS_EMPTY  64u  /* at least, of a heap in use */

static bool is_state(uint64_t link) {
    const uint64_t *behind = (const uint64_t *)(uintptr_t)link;
    uint64_t bin = link - BEHIND_BINS, empty = 0, unused = 0;
    for (uint32_t i = 0; i < BINS; i++, bin += BIN_BYTES) {
        const uint64_t *links = (const uint64_t *)(uintptr_t)bin;
        empty += links[0] == bin - BIN_BYTES && links[1] == bin - BIN_BYTES;
        unused += links[0] == 0 && links[1] == 0;
    }
    return empty >= BINS_EMPTY || (unused == BINS && behind[1] == 0 && behind[2] == 1);
}

/* glibc exports nothing of it. It is found now, while hardly a bin is in use and nothing is damaged. 0: there
 * are more arenas already, or it is of another shape. */
static uint64_t main_arena(const struct module *module) {
    uint64_t start, end;
    if (!module_data(module, &start, &end) || end - start < BEHIND_BINS + BEFORE_BINS + 24) {
        return 0;
    }
    for (uint64_t at = (start + BEHIND_BINS + BEFORE_BINS + 7) & ~UINT64_C(7); at + 24 <= end; at += 8) {
        uint64_t state = *(const uint64_t *)(uintptr_t)at;
        if (at - state > BEHIND_BINS && at - state <= BEHIND_BINS + BEFORE_BINS && is_state(at)) {
            return state;
        }
    }
    return 0;
}

/* ---- the others -------------------------------------------------------------------------------------- */

/* jemalloc 5.1 and later: where arena 0 counts its active pages, a field of the arena (src/ctl.c,
 * experimental.arenas.<i>.pactivep). */
static uint64_t arena_count(const struct module *module) {
    void *function = module_export(module, "mallctl");
    uint64_t address = 0;
    size_t size = sizeof address;
    if (!function || ((int (*)(const char *, void *, size_t *, void *, size_t))function)(
                         "experimental.arenas.0.pactivep", &address, &size, NULL, 0) != 0) {
        return 0;
    }
    return size == sizeof address ? address : 0;
}

/* mimalloc: this thread's heap. */
static uint64_t default_heap(const struct module *module) {
    void *function = module_export(module, "mi_heap_get_default");
    return function ? (uint64_t)(uintptr_t)((void *(*)(void))function)() : 0;
}

void roots_learn(const struct module *module) {
    const char *allocator = karst_control.allocator;
    if (strcmp(allocator, "glibc") == 0) {
        add_root(KARST_ROOT_MAIN_ARENA, main_arena(module));
    } else if (strcmp(allocator, "jemalloc") == 0) {
        add_root(KARST_ROOT_ARENA_ACTIVE, arena_count(module));
    } else if (strcmp(allocator, "mimalloc") == 0) {
        add_root(KARST_ROOT_DEFAULT_HEAP, default_heap(module));
    }
}
