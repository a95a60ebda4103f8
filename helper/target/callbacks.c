/* A target that a debugger lends through struct karst_callbacks. */
#include "parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct lent {
    struct karst_target target;
    struct karst_callbacks callbacks; /* a copy: the caller's struct need not outlive the call */
    uint64_t refused_end;             /* behind the last page that could not be read */
    unsigned refused;                 /* how many pages in a row before there could not be read */
    unsigned refused_apart;           /* how many, with others between them that nobody asked for */
};

static size_t lent_read(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    const struct karst_callbacks *callbacks = &((struct lent *)target)->callbacks;
    size_t got = callbacks->read(callbacks->context, address, buffer, size);
    if (got != 0) {
        ((struct lent *)target)->refused_apart = 0;
    }
    return got < size ? got : size;
}

static uint64_t lent_resident(struct karst_target *target, uint64_t start, uint64_t end) {
    const struct karst_callbacks *callbacks = &((struct lent *)target)->callbacks;
    if (!callbacks->resident) {
        return UINT64_MAX;
    }
    uint64_t bytes = callbacks->resident(callbacks->context, start, end);
    return bytes == UINT64_MAX || bytes < end - start ? bytes : end - start;
}

/* A debugger can't tell where memory begins again, and each try may cost a round trip: when so many pages in
 * a row can't be read, the rest of the mapping is taken for missing too. So it is when, in a search that
 * looks at few places of a mapping, so many one after the other can't be read: it may claim to be vast. */
#define REFUSED_MAX       256
#define REFUSED_APART_MAX 16384

static uint64_t lent_missing(struct karst_target *target, uint64_t address) {
    struct lent *lent = (struct lent *)target;
    const struct karst_mapping *mapping = karst_target_mapping(target, address);
    bool further = mapping && lent->refused_end > mapping->start && address >= lent->refused_end;
    lent->refused = address == lent->refused_end ? lent->refused + 1 : 1;
    lent->refused_apart = further ? lent->refused_apart + 1 : 1;
    lent->refused_end = (address / target->page_size + 1) * target->page_size;
    bool gone = lent->refused >= REFUSED_MAX || lent->refused_apart >= REFUSED_APART_MAX;
    return mapping && gone ? mapping->end - address : 0;
}

static void lent_close(struct karst_target *target) {
    karst_target_free_parts(target);
    free(target);
}

static const struct karst_target_ops lent_ops = {
    .read = lent_read, .resident = lent_resident, .missing = lent_missing, .close = lent_close};

/* Copies the mappings that make sense; false: out of memory. */
static bool take_mappings(struct lent *lent) {
    struct karst_mapping mapping;
    for (size_t i = 0; i < KARST_MAPPINGS_MAX; i++) {
        memset(&mapping, 0, sizeof mapping);
        if (!lent->callbacks.mapping(lent->callbacks.context, i, &mapping)) {
            break;
        }
        if (mapping.start >= mapping.end) {
            continue;
        }
        const char *name = NULL;
        if (mapping.name && mapping.name[0] != '\0' &&
            !(name = karst_target_string(&lent->target, mapping.name, strlen(mapping.name)))) {
            return false;
        }
        struct karst_mapping *added = karst_target_add_mapping(&lent->target);
        if (!added) {
            return false;
        }
        *added = mapping;
        added->name = name;
    }
    size_t overlaps = karst_target_sort_mappings(&lent->target);
    if (overlaps) {
        karst_target_remark(&lent->target,
                            "%zu of the debugger's mappings overlap others: the first one counts", overlaps);
    }
    return true;
}

/* A lent program's executable is the one that the options name, as the mappings call it. */
static bool open_lent(struct lent *lent, const struct karst_options *options, struct karst_error *error) {
    struct karst_target *target = &lent->target;
    const struct karst_callbacks *callbacks = &lent->callbacks;
    if (!karst_target_init(target, &lent_ops, KARST_TARGET_CALLBACKS, options, error)) {
        return false;
    }
    uint64_t page_size = callbacks->page_size ? callbacks->page_size : 4096;
    if (page_size < 4096 || page_size > 65536 || (page_size & (page_size - 1)) != 0) {
        return karst_fail(error, KARST_ERROR_USAGE, "a page size of %llu bytes is not possible",
                          (unsigned long long)page_size);
    }
    target->page_size = page_size;
    target->pid = callbacks->pid;
    if (options && options->executable && !(target->executable = strdup(options->executable))) {
        return karst_fail_memory(error);
    }
    target->callbacks = callbacks;
    target->stopped = !options || !options->no_stop;
    bool taken =
        take_mappings(lent) &&
        (!callbacks->thread || karst_target_lent_threads(target, callbacks->thread, callbacks->context));
    if (!taken || !karst_target_find_modules(target)) {
        return karst_fail_memory(error);
    }
    karst_target_find_executable(target);
    if (target->mapping_count == 0) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          "the debugger knows no memory: is the program running?");
    }
    int length = target->pid > 0
                     ? asprintf(&target->name, "process %lld of the debugger", (long long)target->pid)
                     : asprintf(&target->name, "the debugger's program");
    if (length < 0) {
        target->name = NULL;
        return karst_fail_memory(error);
    }
    return true;
}

struct karst_target *karst_callbacks_open(const struct karst_callbacks *callbacks,
                                          const struct karst_options *options, struct karst_error *error) {
    if (!callbacks || !callbacks->read || !callbacks->mapping) {
        karst_fail(error, KARST_ERROR_USAGE, "callbacks need at least read and mapping");
        return NULL;
    }
    struct lent *lent = calloc(1, sizeof *lent);
    if (!lent) {
        karst_fail_memory(error);
        return NULL;
    }
    lent->callbacks = *callbacks;
    if (!open_lent(lent, options, error)) {
        lent_close(&lent->target);
        return NULL;
    }
    return &lent->target;
}
