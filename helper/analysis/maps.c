#include "maps.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Documentation/admin-guide/sysctl/vm.rst: DEFAULT_MAX_MAP_COUNT. */
#define DEFAULT_LIMIT 65530u
/* Larger anonymous memory without permissions is a reservation, not a guard. */
#define GUARD_MAX (1u << 20)

const char *karst_map_owner_name(enum karst_map_owner owner) {
    static const char *const names[KARST_MAP_OWNERS] = {"executable text",
                                                        "executable constants",
                                                        "executable data",
                                                        "executable bss",
                                                        "library text",
                                                        "library constants",
                                                        "library data",
                                                        "library bss",
                                                        "file",
                                                        "brk heap",
                                                        "arena heaps",
                                                        "arena tails",
                                                        "heap segments",
                                                        "mapped blocks",
                                                        "page runs",
                                                        "stacks",
                                                        "guards",
                                                        "shared memory",
                                                        "reserved",
                                                        "other anonymous",
                                                        "kernel"};
    return owner < KARST_MAP_OWNERS ? names[owner] : "?";
}

const char *karst_map_reason_name(enum karst_map_reason reason) {
    static const char *const names[KARST_MAP_REASONS] = {"files",  "stacks", "guards",     "arenas",
                                                         "kernel", "shared", "protection", "gaps",
                                                         "names",  "hidden", "first"};
    return reason < KARST_MAP_REASONS ? names[reason] : "?";
}

struct stack_pointer {
    uint64_t address;
    const struct karst_thread *thread;
};

struct mapper {
    struct karst *session;
    struct stack_pointer *stacks; /* sorted */
    size_t stack_count;
    const char *executable;
    size_t extent;              /* the first that may touch what is to come */
    enum karst_map_owner owner; /* of the mapping before */
};

/* ---- what a mapping is ------------------------------------------------------------------------------ */

static int compare_stacks(const void *a, const void *b) {
    const struct stack_pointer *x = a, *y = b;
    return x->address < y->address ? -1 : x->address > y->address;
}

static bool sort_stacks(struct mapper *mapper) {
    const struct karst_target *target = mapper->session->target;
    mapper->stacks = calloc(target->thread_count + 1, sizeof *mapper->stacks);
    if (!mapper->stacks) {
        return false;
    }
    for (size_t i = 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        /* A thread whose registers are unknown still has its thread pointer at the end of its stack. */
        uint64_t pointer = thread->stack_pointer ? thread->stack_pointer : thread->thread_pointer;
        if (pointer) {
            mapper->stacks[mapper->stack_count++] = (struct stack_pointer){pointer, thread};
        }
    }
    qsort(mapper->stacks, mapper->stack_count, sizeof *mapper->stacks, compare_stacks);
    return true;
}

static const struct karst_thread *thread_in(const struct mapper *mapper,
                                            const struct karst_mapping *mapping) {
    size_t low = 0, high = mapper->stack_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (mapper->stacks[middle].address < mapping->start) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found = low < mapper->stack_count && mapper->stacks[low].address < mapping->end;
    return found ? mapper->stacks[low].thread : NULL;
}

static bool begins_with(const char *text, const char *beginning) {
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

static bool is_file(const struct karst_mapping *mapping) {
    return mapping->name && mapping->name[0] == '/';
}

static bool is_kernel(const struct karst_mapping *mapping) {
    return mapping->name && (begins_with(mapping->name, "[v") || strcmp(mapping->name, "[uprobes]") == 0);
}

/* Anonymous memory that can't be written: a guard, or reserved. (gcore saves memory without any permission
 * as if it could be read.) */
static bool is_barrier(const struct karst_mapping *mapping) {
    return (mapping->permissions & (KARST_MAPPING_WRITE | KARST_MAPPING_EXECUTE | KARST_MAPPING_SHARED)) ==
               0 &&
           !mapping->name;
}

static enum karst_map_owner module_part(const struct mapper *mapper, const struct karst_map *map) {
    const struct karst_mapping *mapping = map->mapping;
    bool executable = mapper->executable && strcmp(map->module->path, mapper->executable) == 0;
    enum karst_map_owner first = executable ? KARST_MAP_EXECUTABLE_TEXT : KARST_MAP_LIBRARY_TEXT;
    if (mapping->permissions & KARST_MAPPING_EXECUTE) {
        return first;
    }
    if (!(mapping->permissions & KARST_MAPPING_WRITE)) {
        return first + 1;
    }
    return first + (is_file(mapping) ? 2 : 3);
}

/* Which kind of extents covers most of the mapping; KARST_MAP_OWNERS: none is in it. */
static enum karst_map_owner heap_owner(struct mapper *mapper, struct karst_map *map) {
    static const enum karst_map_owner owners[KARST_EXTENT_KINDS] = {
        [KARST_EXTENT_BRK] = KARST_MAP_BRK,         [KARST_EXTENT_HEAP] = KARST_MAP_ARENA,
        [KARST_EXTENT_SEGMENT] = KARST_MAP_SEGMENT, [KARST_EXTENT_MAPPED] = KARST_MAP_BLOCKS,
        [KARST_EXTENT_PAGES] = KARST_MAP_PAGES,     [KARST_EXTENT_OWN] = KARST_MAP_PAGES,
    };
    const struct karst *session = mapper->session;
    const struct karst_mapping *mapping = map->mapping;
    uint64_t bytes[KARST_EXTENT_KINDS] = {0}, most = 0;
    enum karst_map_owner owner = KARST_MAP_OWNERS;
    map->heap = KARST_NONE;
    while (mapper->extent < session->extent_count && session->extents[mapper->extent].end <= mapping->start) {
        mapper->extent++;
    }
    for (size_t i = mapper->extent; i < session->extent_count && session->extents[i].start < mapping->end;
         i++) {
        const struct karst_extent *extent = &session->extents[i];
        uint64_t start = extent->start > mapping->start ? extent->start : mapping->start;
        uint64_t end = extent->end < mapping->end ? extent->end : mapping->end;
        if (extent->kind < KARST_EXTENT_KINDS && start < end) {
            map->extents++;
            bytes[extent->kind] += end - start;
            if (bytes[extent->kind] > most) {
                most = bytes[extent->kind];
                owner = owners[extent->kind];
                map->heap = extent->heap;
            }
        }
    }
    return owner;
}

static bool is_adjacent(const struct karst_mapping *before, const struct karst_mapping *mapping) {
    return before && before->end == mapping->start;
}

static enum karst_map_owner barrier_owner(struct mapper *mapper, const struct karst_mapping *before,
                                          struct karst_map *map, const struct karst_mapping *after) {
    const struct karst_mapping *mapping = map->mapping;
    bool readable = (mapping->permissions & KARST_MAPPING_READ) != 0;
    bool guards = after && is_adjacent(mapping, after) && karst_mapping_is_anonymous(after) &&
                  mapping->end - mapping->start <= GUARD_MAX;
    if (is_adjacent(before, mapping) && mapper->owner == KARST_MAP_ARENA) {
        return KARST_MAP_ARENA_TAIL;
    }
    const struct karst_thread *thread = guards ? thread_in(mapper, after) : NULL;
    if (guards && (thread || !readable)) {
        map->thread = thread;
        return KARST_MAP_GUARD;
    }
    return readable ? KARST_MAP_ANONYMOUS : KARST_MAP_RESERVED;
}

static enum karst_map_owner find_owner(struct mapper *mapper, const struct karst_mapping *before,
                                       struct karst_map *map, const struct karst_mapping *after) {
    const struct karst_mapping *mapping = map->mapping;
    enum karst_map_owner heap = heap_owner(mapper, map);
    if (heap != KARST_MAP_OWNERS) {
        return heap;
    }
    if (is_kernel(mapping)) {
        return KARST_MAP_KERNEL;
    }
    if (mapping->permissions & KARST_MAPPING_SHARED) {
        return KARST_MAP_SHARED;
    }
    map->thread = thread_in(mapper, mapping);
    if (map->thread || (mapping->name && begins_with(mapping->name, "[stack"))) {
        return KARST_MAP_STACK;
    }
    if (mapping->name && strcmp(mapping->name, "[heap]") == 0) {
        return KARST_MAP_BRK;
    }
    map->module = karst_target_module(mapper->session->target, mapping->start);
    if (map->module) {
        return module_part(mapper, map);
    }
    if (is_file(mapping)) {
        return KARST_MAP_FILE;
    }
    return is_barrier(mapping) ? barrier_owner(mapper, before, map, after) : KARST_MAP_ANONYMOUS;
}

/* ---- why it is one of its own --------------------------------------------------------------------- */

/* Anonymous memory that the kernel could join with its like. */
static bool could_join(const struct karst_mapping *mapping) {
    return mapping && !is_file(mapping) && !is_kernel(mapping) &&
           !(mapping->permissions & KARST_MAPPING_SHARED) &&
           (!mapping->name || !begins_with(mapping->name, "[stack"));
}

static bool same_name(const struct karst_mapping *a, const struct karst_mapping *b) {
    return strcmp(a->name ? a->name : "", b->name ? b->name : "") == 0;
}

static enum karst_map_reason find_reason(const struct karst_mapping *before, const struct karst_map *map) {
    const struct karst_mapping *mapping = map->mapping;
    switch (map->owner) {
    case KARST_MAP_STACK:
        return KARST_MAP_OF_STACK;
    case KARST_MAP_GUARD:
        return KARST_MAP_OF_GUARD;
    case KARST_MAP_ARENA:
    case KARST_MAP_ARENA_TAIL:
        return KARST_MAP_OF_ARENA;
    case KARST_MAP_KERNEL:
        return KARST_MAP_OF_KERNEL;
    case KARST_MAP_SHARED:
        return KARST_MAP_SHARED_MEMORY;
    default:
        break;
    }
    if (is_file(mapping) || map->module) {
        return KARST_MAP_OF_FILE;
    }
    if (!could_join(before)) {
        return KARST_MAP_FIRST;
    }
    if (is_adjacent(before, mapping)) {
        return before->permissions != mapping->permissions ? KARST_MAP_PROTECTED
               : !same_name(before, mapping)               ? KARST_MAP_NAMED
                                                           : KARST_MAP_HIDDEN;
    }
    return before->permissions == mapping->permissions && same_name(before, mapping) ? KARST_MAP_GAP
                                                                                     : KARST_MAP_FIRST;
}

/* ---- counting --------------------------------------------------------------------------------------- */

static void find_limit(const struct karst_target *target, struct karst_maps *maps) {
    maps->limit = DEFAULT_LIMIT;
    FILE *file = target->kind == KARST_TARGET_PROCESS ? fopen("/proc/sys/vm/max_map_count", "re") : NULL;
    unsigned long long limit;
    if (file) {
        if (fscanf(file, "%llu", &limit) == 1) {
            maps->limit = limit;
            maps->limit_is_known = true;
        }
        fclose(file);
    }
}

/* A page that every process has, listed in /proc/PID/maps but no mapping of the process. */
static bool is_outside_limit(const struct karst_mapping *mapping) {
    return mapping->name && strcmp(mapping->name, "[vsyscall]") == 0;
}

static void add(struct karst_map_count *count, const struct karst_map *map) {
    count->mappings++;
    count->bytes += map->mapping->end - map->mapping->start;
    count->resident = count->resident == UINT64_MAX || map->resident == UINT64_MAX
                          ? UINT64_MAX
                          : count->resident + map->resident;
}

bool karst_maps_count(struct karst *session, struct karst_maps *maps,
                      bool (*each)(void *context, const struct karst_map *map), void *context,
                      struct karst_error *error) {
    struct karst_target *target = session->target;
    struct mapper mapper = {.session = session, .executable = target->executable, .owner = KARST_MAP_OWNERS};
    *maps = (struct karst_maps){0};
    find_limit(target, maps);
    if (!sort_stacks(&mapper)) {
        return karst_fail_memory(error);
    }
    bool more = true, done = true;
    karst_session_begin(session, "looking at mappings", 0);
    for (size_t i = 0; more && done && i < target->mapping_count; i++) {
        const struct karst_mapping *before = i ? &target->mappings[i - 1] : NULL;
        const struct karst_mapping *after = i + 1 < target->mapping_count ? &target->mappings[i + 1] : NULL;
        struct karst_map map = {.mapping = &target->mappings[i]};
        map.owner = mapper.owner = find_owner(&mapper, before, &map, after);
        map.reason = find_reason(before, &map);
        /* The kernel's own pages are in nobody's resident set. */
        map.resident = map.owner == KARST_MAP_KERNEL
                           ? 0
                           : karst_target_resident(target, map.mapping->start, map.mapping->end);
        more = !each || each(context, &map);
        if (is_outside_limit(map.mapping)) {
            continue;
        }
        maps->gap_bytes += before && map.reason == KARST_MAP_GAP ? map.mapping->start - before->end : 0;
        maps->reasons[map.reason]++;
        add(&maps->owners[map.owner], &map);
        add(&maps->total, &map);
        done = karst_session_progress(session, map.mapping->end - map.mapping->start, error);
    }
    free(mapper.stacks);
    return done;
}
