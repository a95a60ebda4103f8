/* Maps: what each mapping is for, and why it is a mapping of its own. */
#ifndef KARST_ANALYSIS_MAPS_H
#define KARST_ANALYSIS_MAPS_H

#include "session.h"

enum karst_map_owner {
    KARST_MAP_EXECUTABLE_TEXT,
    KARST_MAP_EXECUTABLE_CONSTANTS, /* read-only, or protected after start */
    KARST_MAP_EXECUTABLE_DATA,
    KARST_MAP_EXECUTABLE_BSS,
    KARST_MAP_LIBRARY_TEXT,
    KARST_MAP_LIBRARY_CONSTANTS,
    KARST_MAP_LIBRARY_DATA,
    KARST_MAP_LIBRARY_BSS,
    KARST_MAP_FILE, /* another file, private */
    KARST_MAP_BRK,
    KARST_MAP_ARENA,      /* heaps of thread arenas */
    KARST_MAP_ARENA_TAIL, /* what such a heap has reserved behind */
    KARST_MAP_SEGMENT,    /* other memory that an allocator tiles */
    KARST_MAP_BLOCKS,     /* blocks with mappings of their own */
    KARST_MAP_PAGES,      /* what an allocator cuts into page runs: jemalloc's chunks, pymalloc's arenas */
    KARST_MAP_STACK,
    KARST_MAP_GUARD,
    KARST_MAP_SHARED,   /* shared memory, shared file mappings */
    KARST_MAP_RESERVED, /* anonymous without any permission */
    KARST_MAP_ANONYMOUS,
    KARST_MAP_KERNEL, /* vdso, vvar, vsyscall */
    KARST_MAP_OWNERS
};

enum karst_map_reason {
    KARST_MAP_OF_FILE,  /* a mapping each for text, constants, data ... of a file */
    KARST_MAP_OF_STACK, /* a thread's stack */
    KARST_MAP_OF_GUARD, /* the page that guards a stack, or other memory, against overflow */
    KARST_MAP_OF_ARENA, /* an arena's heap, and its reserved tail of other permissions */
    KARST_MAP_OF_KERNEL,
    KARST_MAP_SHARED_MEMORY,
    KARST_MAP_PROTECTED, /* its permissions differ from the anonymous memory right before it (mprotect) */
    KARST_MAP_GAP,       /* alike, but not adjacent: sizes that leave gaps, or what lay between is gone */
    KARST_MAP_NAMED,     /* adjacent and alike but for its name */
    KARST_MAP_HIDDEN,    /* adjacent and alike: differs in what mappings don't show (madvise, mlock, fork) */
    KARST_MAP_FIRST,     /* nothing before it that it could be one with */
    KARST_MAP_REASONS
};

/* "library text", ...; as a key for JSON: the same with '_' for ' '. */
const char *karst_map_owner_name(enum karst_map_owner owner);
const char *karst_map_reason_name(enum karst_map_reason reason);

struct karst_map {
    const struct karst_mapping *mapping;
    enum karst_map_owner owner;
    enum karst_map_reason reason;
    const struct karst_thread *thread; /* of a stack, or of the one above a guard; may be NULL */
    const struct karst_module *module; /* may be NULL */
    uint64_t extents;                  /* of allocators, in it or in part */
    uint32_t heap;                     /* the session's heap that has most of it; KARST_NONE: none */
    uint64_t resident;                 /* bytes; UINT64_MAX: unknown */
};

struct karst_map_count {
    uint64_t mappings, bytes;
    uint64_t resident; /* UINT64_MAX: unknown */
};

struct karst_maps {
    struct karst_map_count total;
    struct karst_map_count owners[KARST_MAP_OWNERS];
    uint64_t reasons[KARST_MAP_REASONS];
    uint64_t gap_bytes;  /* of all gaps counted under KARST_MAP_GAP */
    uint64_t limit;      /* vm.max_map_count */
    bool limit_is_known; /* else it is the kernel's default */
};

/* Counts the mappings of the session's target; each is told to `each`, if not NULL, in address order until
 * that returns false. False with error. */
bool karst_maps_count(struct karst *session, struct karst_maps *maps,
                      bool (*each)(void *context, const struct karst_map *map), void *context,
                      struct karst_error *error);

#endif
