#include "target.h"

#include "clean.h"
#include "format.h"
#include "parts.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- building ---------------------------------------------------------------------------------- */

static bool copy_option(char **copy, const char *text) {
    if (text && *text) {
        *copy = strdup(text);
        return *copy != NULL;
    }
    return true;
}

bool karst_target_init(struct karst_target *target, const struct karst_target_ops *ops,
                       enum karst_target_kind kind, const struct karst_options *options,
                       struct karst_error *error) {
    target->ops = ops;
    target->kind = kind;
    target->page_size = 4096;
    if (!options) {
        return true;
    }
    target->no_symbols = options->no_symbols;
    target->callbacks = options->lent;
    if (!copy_option(&target->sysroot, options->sysroot) ||
        !copy_option(&target->debug_directory, options->debug_directory) ||
        !copy_option(&target->executable_file, options->executable)) {
        return karst_fail_memory(error);
    }
    return true;
}

void karst_target_free_parts(struct karst_target *target) {
    for (size_t i = 0; i < target->module_count; i++) {
        karst_module_close(&target->modules[i]);
    }
    for (size_t i = 0; i < target->remark_count; i++) {
        free(target->remarks[i]);
    }
    for (size_t i = 0; i < target->string_count; i++) {
        free(target->strings[i]);
    }
    free(target->modules);
    free(target->remarks);
    free(target->strings);
    free(target->mappings);
    free(target->threads);
    free(target->name);
    free(target->executable);
    free(target->sysroot);
    free(target->debug_directory);
    free(target->executable_file);
}

bool karst_target_is_whole(struct karst_target *target, struct karst_error *error) {
    int reason = target->read_error;
    if (reason != 0 && reason != ENODATA) {
        return karst_fail_errno(error, reason, "cannot read the core file");
    }
    if (reason == 0 && (!target->ops->unchanged || target->ops->unchanged(target))) {
        return true;
    }
    return karst_fail(error, KARST_ERROR_SYSTEM, KARST_CORE_CHANGED);
}

void karst_target_close(struct karst_target *target) {
    if (target) {
        target->ops->close(target);
    }
}

/* Makes room for one more item in an array that grows by doubling. */
static bool grow(void *items_pointer, size_t count, size_t item_size) {
    if (count != 0 && (count & (count - 1)) != 0) {
        return true;
    }
    void *items;
    memcpy(&items, items_pointer, sizeof items);
    size_t capacity = count == 0 ? 1 : 2 * count;
    void *larger = capacity > SIZE_MAX / item_size ? NULL : realloc(items, capacity * item_size);
    if (!larger) {
        return false;
    }
    memcpy(items_pointer, &larger, sizeof larger);
    return true;
}

const char *karst_target_string(struct karst_target *target, const char *text, size_t size) {
    if (target->string_count > 0) {
        const char *last = target->strings[target->string_count - 1];
        if (strlen(last) == size && memcmp(last, text, size) == 0) {
            return last;
        }
    }
    if (!grow(&target->strings, target->string_count, sizeof *target->strings)) {
        return NULL;
    }
    char *copy = strndup(text, size);
    if (copy) {
        target->strings[target->string_count++] = copy;
    }
    return copy;
}

struct karst_mapping *karst_target_add_mapping(struct karst_target *target) {
    if (target->mapping_count >= KARST_MAPPINGS_MAX ||
        !grow(&target->mappings, target->mapping_count, sizeof *target->mappings)) {
        return NULL;
    }
    struct karst_mapping *mapping = &target->mappings[target->mapping_count++];
    memset(mapping, 0, sizeof *mapping);
    return mapping;
}

struct karst_thread *karst_target_add_thread(struct karst_target *target) {
    if (target->thread_count >= KARST_THREADS_MAX ||
        !grow(&target->threads, target->thread_count, sizeof *target->threads)) {
        return NULL;
    }
    struct karst_thread *thread = &target->threads[target->thread_count++];
    memset(thread, 0, sizeof *thread);
    return thread;
}

static int compare_mappings(const void *a, const void *b) {
    const struct karst_mapping *x = a, *y = b;
    if (x->start != y->start) {
        return x->start < y->start ? -1 : 1;
    }
    return x->end < y->end ? 1 : x->end > y->end ? -1 : 0;
}

size_t karst_target_sort_mappings(struct karst_target *target) {
    if (target->mapping_count == 0) {
        return 0;
    }
    qsort(target->mappings, target->mapping_count, sizeof *target->mappings, compare_mappings);
    size_t kept = 0, overlaps = 0;
    uint64_t end = 0;
    for (size_t i = 0; i < target->mapping_count; i++) {
        struct karst_mapping mapping = target->mappings[i];
        if (mapping.start < end) {
            overlaps++;
            mapping.file_offset += end - mapping.start;
            mapping.start = end;
        }
        if (mapping.start < mapping.end) {
            end = mapping.end;
            target->mappings[kept++] = mapping;
        }
    }
    target->mapping_count = kept;
    return overlaps;
}

uint16_t karst_host_machine(void) {
#if defined(__x86_64__)
    return EM_X86_64;
#elif defined(__aarch64__)
    return EM_AARCH64;
#else
    return EM_NONE;
#endif
}

/* Where in the kernel's register set (user_regs_struct, user_pt_regs) the ones we need are. */
enum { X86_64_RIP = 16, X86_64_RSP = 19, X86_64_FS_BASE = 21, AARCH64_SP = 31, AARCH64_PC = 32 };

void karst_thread_set_registers(struct karst_thread *thread, uint16_t machine, const void *words,
                                size_t size) {
    size_t count = size / sizeof(uint64_t);
    count = count < KARST_REGISTERS_MAX ? count : KARST_REGISTERS_MAX;
    memcpy(thread->registers, words, count * sizeof(uint64_t));
    thread->register_count = (uint32_t)count;
    if (machine == EM_X86_64 && count > X86_64_FS_BASE) {
        thread->thread_pointer = thread->registers[X86_64_FS_BASE];
        thread->stack_pointer = thread->registers[X86_64_RSP];
        thread->program_counter = thread->registers[X86_64_RIP];
    } else if (machine == EM_AARCH64 && count > AARCH64_PC) {
        thread->stack_pointer = thread->registers[AARCH64_SP];
        thread->program_counter = thread->registers[AARCH64_PC];
    }
}

bool karst_target_lent_threads(struct karst_target *target,
                               bool (*next)(void *context, size_t index, struct karst_thread *thread),
                               void *context) {
    struct karst_thread thread;
    for (size_t i = 0; i < KARST_THREADS_MAX; i++) {
        memset(&thread, 0, sizeof thread);
        if (!next(context, i, &thread)) {
            break;
        }
        struct karst_thread *added = karst_target_add_thread(target);
        if (!added) {
            return false;
        }
        *added = thread;
        added->name[sizeof added->name - 1] = '\0';
        if (added->register_count > KARST_REGISTERS_MAX) {
            added->register_count = KARST_REGISTERS_MAX;
        }
    }
    return true;
}

void karst_target_remark(struct karst_target *target, const char *format, ...) {
    char *text;
    KARST_FORMAT(text, format);
    if (!text) {
        return;
    }
    if (!grow(&target->remarks, target->remark_count, sizeof *target->remarks)) {
        free(text);
        return;
    }
    karst_clean_line(text);
    target->remarks[target->remark_count++] = text;
}

const char *karst_base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

const char *karst_rounded_size(uint64_t bytes, char text[24]) {
    static const char *const units[] = {"bytes", "KB", "MB", "GB", "TB", "PB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        unit++;
    }
    snprintf(text, 24, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

/* ---- asking ------------------------------------------------------------------------------------ */

size_t karst_target_read(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    /* The last byte has to have an address. */
    if (size == 0) {
        return 0;
    }
    if (size - 1 > UINT64_MAX - address) {
        size = (size_t)(UINT64_MAX - address) + 1;
    }
    return target->ops->read(target, address, buffer, size);
}

bool karst_target_peek(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    if (size == 0 || size - 1 > UINT64_MAX - address || !target->ops->peek) {
        return karst_target_read_all(target, address, buffer, size);
    }
    return target->ops->peek(target, address, buffer, size) == size;
}

bool karst_target_read_all(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    return karst_target_read(target, address, buffer, size) == size;
}

bool karst_target_read_u64(struct karst_target *target, uint64_t address, uint64_t *value) {
    return karst_target_read_all(target, address, value, sizeof *value);
}

bool karst_target_read_u32(struct karst_target *target, uint64_t address, uint32_t *value) {
    return karst_target_read_all(target, address, value, sizeof *value);
}

const struct karst_mapping *karst_target_mapping_after(const struct karst_target *target, uint64_t address) {
    size_t low = 0, high = target->mapping_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (target->mappings[middle].end > address) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low < target->mapping_count ? &target->mappings[low] : NULL;
}

const struct karst_mapping *karst_target_mapping(const struct karst_target *target, uint64_t address) {
    const struct karst_mapping *mapping = karst_target_mapping_after(target, address);
    return mapping && mapping->start <= address ? mapping : NULL;
}

uint64_t karst_target_untouched(struct karst_target *target, uint64_t address, uint64_t end) {
    uint64_t bytes =
        target->ops->untouched && address < end ? target->ops->untouched(target, address, end) : 0;
    return bytes < end - address ? bytes : end - address;
}

uint64_t karst_target_missing(struct karst_target *target, uint64_t address) {
    uint64_t page = target->page_size ? target->page_size : 4096, left = page - address % page;
    uint64_t missing = target->ops->missing ? target->ops->missing(target, address) : 0;
    const struct karst_mapping *next = karst_target_mapping_after(target, address);
    if (!next || next->start > address) {
        missing = (next ? next->start : UINT64_MAX) - address;
    }
    missing = missing > left ? missing : left;
    return missing <= UINT64_MAX - address ? missing : UINT64_MAX - address;
}

struct karst_module *karst_target_module(const struct karst_target *target, uint64_t address) {
    size_t low = 0, high = target->module_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (target->modules[middle].end > address) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low < target->module_count && target->modules[low].start <= address ? &target->modules[low] : NULL;
}

bool karst_mapping_is_anonymous(const struct karst_mapping *mapping) {
    const uint32_t needed = KARST_MAPPING_READ | KARST_MAPPING_WRITE;
    if ((mapping->permissions & needed) != needed || mapping->permissions & KARST_MAPPING_SHARED) {
        return false;
    }
    return !mapping->name || mapping->name[0] == '\0' || strcmp(mapping->name, "[heap]") == 0 ||
           strncmp(mapping->name, "[anon:", strlen("[anon:")) == 0;
}

uint64_t karst_target_resident(struct karst_target *target, uint64_t start, uint64_t end) {
    if (start >= end) {
        return 0;
    }
    return target->ops->resident ? target->ops->resident(target, start, end) : UINT64_MAX;
}

/* ---- windows ----------------------------------------------------------------------------------- */

/* A buffer holds at least this much, so that any request of up to half of it fits behind an address
 * that was aligned down. */
#define PAGE         4096
#define WINDOW_LEAST ((size_t)(2 * PAGE))
/* From this capacity on a window is for walks. They copy even where views can be had: a copy runs at the
 * speed of memory and leaves the bytes in the processor's cache, while looking at a header every few
 * hundred bytes of a mapping waits for memory each time (2 GB core, 6 million chunks: 0.12 s against
 * 0.90 s). */
#define WINDOW_WALK ((size_t)65536)
/* More than this at once no longer fits that cache. */
#define WINDOW_MOST ((size_t)262144)
/* Steps up to this long still are a walk. */
#define WALK_STEP 32768

uint64_t karst_target_own(struct karst_target *target, uint64_t start, uint64_t end) {
    return start >= end ? 0 : target->ops->own ? target->ops->own(target, start, end) : UINT64_MAX;
}

void karst_window_open(struct karst_window *window, struct karst_target *target, size_t capacity) {
    memset(window, 0, sizeof *window);
    window->target = target;
    window->capacity = capacity < WINDOW_LEAST  ? WINDOW_LEAST
                       : capacity < WINDOW_MOST ? capacity
                                                : WINDOW_MOST;
    window->ahead = WINDOW_LEAST;
}

void karst_window_close(struct karst_window *window) {
    free(window->buffer);
    memset(window, 0, sizeof *window);
}

/* Tries to make the window a view from address on. */
static bool view_from(struct karst_window *window, uint64_t from, uint64_t address, size_t size) {
    size_t covered = 0;
    const uint8_t *bytes = window->target->ops->view(window->target, from, &covered);
    /* Words that are aligned in the target have to be so here: a damaged core may place them anyhow. */
    if (!bytes || (((uintptr_t)bytes ^ from) & 15) != 0 || covered < size ||
        covered - size < address - from) {
        return false;
    }
    window->start = from;
    window->end = from + covered;
    window->bytes = bytes;
    return true;
}

/* The whole mapping in one view serves walks in both directions. */
static bool fill_by_view(struct karst_window *window, uint64_t address, size_t size) {
    if (!window->target->ops->view || window->capacity >= WINDOW_WALK) {
        return false;
    }
    const struct karst_mapping *mapping = karst_target_mapping(window->target, address);
    return (mapping && view_from(window, mapping->start, address, size)) ||
           view_from(window, address, address, size);
}

/* Reads on from `from`, so far ahead as the window has learnt to. */
static bool buffer_from(struct karst_window *window, uint64_t from, uint64_t address, size_t size) {
    size_t skip = from & 15; /* keeps aligned what is aligned in the target */
    size_t got = karst_target_read(window->target, from, window->buffer + skip, window->ahead - skip);
    window->start = from;
    window->end = from + got;
    window->bytes = window->buffer + skip;
    return got >= size && got - size >= address - from;
}

/* Reads more at once with each step of a walk, and little again after a leap: the page, or two where
 * that is not all of it. */
static void learn(struct karst_window *window, uint64_t address, size_t size) {
    bool step = window->end != 0 && address + size > window->end && address <= window->end + WALK_STEP &&
                window->capacity >= WINDOW_WALK;
    size_t ahead = step ? 4 * window->ahead : address % PAGE + size <= PAGE ? (size_t)PAGE : WINDOW_LEAST;
    window->ahead = ahead < window->capacity ? ahead : window->capacity;
}

const uint8_t *karst_window_fill(struct karst_window *window, uint64_t address, size_t size) {
    if (size > WINDOW_LEAST / 2 || size > UINT64_MAX - address) {
        return NULL;
    }
    if (fill_by_view(window, address, size)) {
        return window->bytes + (address - window->start);
    }
    if (!window->buffer && !(window->buffer = malloc(window->capacity))) {
        return NULL;
    }
    learn(window, address, size);
    /* From the page's start, so that the neighbours of address are there too; where the target is so odd
     * that only the rest of the page can be read, from address itself. */
    uint64_t from = address & ~(uint64_t)(PAGE - 1);
    if (buffer_from(window, from, address, size) || buffer_from(window, address, address, size)) {
        return window->bytes + (address - window->start);
    }
    window->start = window->end = 0;
    return NULL;
}
