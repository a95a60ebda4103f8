#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "maps.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_LIST };

struct listing {
    struct karst_call *call;
    struct karst_table *table; /* text */
    json_t *list;              /* JSON */
    uint64_t unflushed;
};

/* ---- the list -------------------------------------------------------------------------------------- */

static void permissions_text(const struct karst_mapping *mapping, char text[5]) {
    text[0] = mapping->permissions & KARST_MAPPING_READ ? 'r' : '-';
    text[1] = mapping->permissions & KARST_MAPPING_WRITE ? 'w' : '-';
    text[2] = mapping->permissions & KARST_MAPPING_EXECUTE ? 'x' : '-';
    text[3] = mapping->permissions & KARST_MAPPING_SHARED ? 's' : 'p';
    text[4] = '\0';
}

/* The mapping's file, or which of many it is. */
static void detail_text(const struct karst *session, const struct karst_map *map, bool whole_path, char *text,
                        size_t size) {
    const struct karst_heap *heap = map->heap < session->heap_count ? session->heaps[map->heap] : NULL;
    const char *name = map->mapping->name && *map->mapping->name ? map->mapping->name
                       : map->module                             ? map->module->path
                                                                 : NULL;
    if (map->thread) {
        snprintf(text, size, "thread %" PRId64 "%s%s", map->thread->tid, *map->thread->name ? " " : "",
                 map->thread->name);
    } else if (name) {
        const char *slash = whole_path ? NULL : strrchr(name, '/');
        snprintf(text, size, "%s", slash ? slash + 1 : name);
    } else if (heap && map->extents > 1) {
        snprintf(text, size, "%s, %s of them", heap->name, karst_count_text(map->extents).text);
    } else if (heap) {
        snprintf(text, size, "%s", heap->name);
    } else {
        *text = '\0';
    }
}

static void write_row(struct listing *listing, const struct karst_map *map) {
    struct karst_table *table = listing->table;
    uint32_t width = listing->call->writer.output->width;
    bool whole_path = width == 0 || width >= 110;
    char permissions[5], detail[400];
    permissions_text(map->mapping, permissions);
    detail_text(listing->call->session, map, whole_path, detail, sizeof detail);
    karst_table_address(table, map->mapping->start);
    karst_table_address(table, map->mapping->end);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s", permissions);
    karst_table_size(table, map->mapping->end - map->mapping->start);
    karst_table_known_size(table, map->resident);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_map_owner_name(map->owner));
    karst_table_text(table, KARST_STYLE_FILE, "%s", detail);
    if (++listing->unflushed == 1000) {
        karst_table_flush(table);
        listing->unflushed = 0;
    }
}

/* A name as a key: "brk heap" is "brk_heap". */
static json_t *key_json(const char *name) {
    char key[40];
    size_t size = 0;
    for (; size < sizeof key - 1 && name[size]; size++) {
        key[size] = name[size] == ' ' ? '_' : name[size];
    }
    key[size] = '\0';
    return karst_json_text(key);
}

static void append_mapping(struct listing *listing, const struct karst_map *map) {
    const struct karst *session = listing->call->session;
    struct karst_writer *writer = &listing->call->writer;
    char permissions[5];
    permissions_text(map->mapping, permissions);
    json_t *one = karst_json_object(writer);
    karst_json_set_address(writer, one, "start", map->mapping->start);
    karst_json_set_address(writer, one, "end", map->mapping->end);
    karst_json_set_number(writer, one, "bytes", map->mapping->end - map->mapping->start);
    karst_json_set_text(writer, one, "permissions", permissions);
    karst_json_set_text(writer, one, "name", map->mapping->name);
    karst_json_set_known(writer, one, "resident_bytes", map->resident);
    karst_json_set(writer, one, "owner", key_json(karst_map_owner_name(map->owner)));
    karst_json_set(writer, one, "reason", key_json(karst_map_reason_name(map->reason)));
    karst_json_set(writer, one, "thread", map->thread ? json_integer(map->thread->tid) : json_null());
    karst_json_set_text(writer, one, "module", map->module ? map->module->path : NULL);
    karst_json_set_number(writer, one, "extents", map->extents);
    karst_json_set_text(writer, one, "allocator",
                        map->heap < session->heap_count ? session->heaps[map->heap]->name : NULL);
    karst_json_append(writer, listing->list, one);
}

static bool take_mapping(void *context, const struct karst_map *map) {
    struct listing *listing = context;
    if (listing->list) {
        append_mapping(listing, map);
    } else {
        write_row(listing, map);
    }
    return !listing->call->writer.closed;
}

/* ---- text -------------------------------------------------------------------------------------------- */

static void write_count(struct karst_table *table, enum karst_style style, const char *name,
                        const struct karst_map_count *count) {
    karst_table_text(table, style, "%s", name);
    karst_table_count(table, count->mappings);
    karst_table_size(table, count->bytes);
    karst_table_known_size(table, count->resident);
}

static void write_owners(struct karst_writer *writer, const struct karst_maps *maps) {
    static const struct karst_column columns[] = {{"owner", KARST_FLEXIBLE},
                                                  {"mappings", KARST_RIGHT | KARST_NEED_5},
                                                  {"bytes", KARST_RIGHT},
                                                  {"resident", KARST_RIGHT}};
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < KARST_MAP_OWNERS; i++) {
        if (maps->owners[i].mappings) {
            write_count(table, KARST_STYLE_PLAIN, karst_map_owner_name(i), &maps->owners[i]);
        }
    }
    write_count(table, KARST_STYLE_TITLE, "in all", &maps->total);
    karst_table_close(table);
}

static void write_limit(struct karst_writer *writer, const struct karst_maps *maps) {
    /* The kernel refuses the next one once there are as many as the limit. */
    enum karst_style style = maps->total.mappings * 10 >= maps->limit * 9 ? KARST_STYLE_BAD
                             : maps->total.mappings * 2 >= maps->limit    ? KARST_STYLE_WARNING
                                                                          : KARST_STYLE_GOOD;
    karst_print(writer, "%s mapping%s of %s allowed by vm.max_map_count: ",
                karst_count_text(maps->total.mappings).text, karst_plural(maps->total.mappings),
                karst_count_text(maps->limit).text);
    karst_print_styled(writer, style, "%s", karst_share_text(maps->total.mappings, maps->limit).text);
    karst_print(writer, "%s\n",
                maps->limit_is_known ? ""
                                     : "\n(the limit is not in the target; this is the kernel's default)");
}

static void write_reasons(struct karst_writer *writer, const struct karst_maps *maps) {
    static const char *const texts[KARST_MAP_REASONS] = {
        [KARST_MAP_OF_FILE] = "parts of files: text, constants, data and bss of each",
        [KARST_MAP_OF_STACK] = "stacks of threads",
        [KARST_MAP_OF_GUARD] = "guard pages, which split what is around them",
        [KARST_MAP_OF_ARENA] = "arenas' heaps, whose reserved tails have other permissions (mprotect)",
        [KARST_MAP_OF_KERNEL] = "the kernel's own (vdso, vvar)",
        [KARST_MAP_SHARED_MEMORY] = "shared memory",
        [KARST_MAP_PROTECTED] = "other permissions than the anonymous memory right before (mprotect)",
        [KARST_MAP_GAP] = "alike, but with a gap between: odd-sized mmaps, or one was unmapped",
        [KARST_MAP_NAMED] = "adjacent and alike but for their names",
        [KARST_MAP_HIDDEN] = "adjacent and alike, but split by madvise, mlock, fork or memory policy",
        [KARST_MAP_FIRST] = "anonymous memory with nothing before it to be one with",
    };
    static const struct karst_column columns[] = {{"mappings", KARST_RIGHT},
                                                  {"are there because of", KARST_WRAPPED}};
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < KARST_MAP_REASONS; i++) {
        if (maps->reasons[i]) {
            karst_table_count(table, maps->reasons[i]);
            karst_table_text(table, KARST_STYLE_PLAIN, "%s", texts[i]);
        }
    }
    karst_table_close(table);
    if (maps->reasons[KARST_MAP_GAP]) {
        karst_print(writer, "the gaps are %s in all\n", karst_size_text(writer, maps->gap_bytes).text);
    }
}

static bool run_text(struct karst_call *call) {
    static const struct karst_column columns[] = {{"start", KARST_LEFT},
                                                  {"end", KARST_LEFT | KARST_SPARE},
                                                  {"", KARST_LEFT | KARST_NEED_8},
                                                  {"size", KARST_RIGHT},
                                                  {"resident", KARST_RIGHT | KARST_NEED_7},
                                                  {"owner", KARST_LEFT | KARST_NEED_6},
                                                  {"what", KARST_FLEXIBLE}};
    struct karst_writer *writer = &call->writer;
    struct listing listing = {.call = call};
    bool list = call->options[OPTION_LIST].given;
    struct karst_maps maps;
    karst_print_title(writer, "%s", call->session->target->name);
    if (list) {
        listing.table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    }
    bool done = karst_maps_count(call->session, &maps, list ? take_mapping : NULL, &listing, call->error);
    karst_table_close(listing.table);
    if (!done) {
        return false;
    }
    karst_print(writer, list ? "\n" : "");
    write_owners(writer, &maps);
    karst_print(writer, "\n");
    write_limit(writer, &maps);
    karst_print(writer, "\n");
    write_reasons(writer, &maps);
    return true;
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static void set_count(struct karst_writer *writer, json_t *object, const struct karst_map_count *count) {
    karst_json_set_number(writer, object, "mappings", count->mappings);
    karst_json_set_number(writer, object, "bytes", count->bytes);
    karst_json_set_known(writer, object, "resident_bytes", count->resident);
}

static bool run_json(struct karst_call *call) {
    struct karst_writer *writer = &call->writer;
    struct listing listing = {.call = call};
    struct karst_maps maps;
    if (call->options[OPTION_LIST].given) {
        listing.list = karst_json_array(writer);
    }
    if (!karst_maps_count(call->session, &maps, listing.list ? take_mapping : NULL, &listing, call->error)) {
        json_decref(listing.list);
        return false;
    }
    json_t *root = karst_json_object(writer), *owners = karst_json_array(writer),
           *reasons = karst_json_array(writer);
    set_count(writer, root, &maps.total);
    karst_json_set_number(writer, root, "limit", maps.limit);
    karst_json_set_flag(writer, root, "limit_known", maps.limit_is_known);
    for (size_t i = 0; i < KARST_MAP_OWNERS; i++) {
        if (maps.owners[i].mappings) {
            json_t *one = karst_json_object(writer);
            karst_json_set(writer, one, "owner", key_json(karst_map_owner_name(i)));
            set_count(writer, one, &maps.owners[i]);
            karst_json_append(writer, owners, one);
        }
    }
    for (size_t i = 0; i < KARST_MAP_REASONS; i++) {
        if (maps.reasons[i]) {
            json_t *one = karst_json_object(writer);
            karst_json_set_text(writer, one, "reason", karst_map_reason_name(i));
            karst_json_set_number(writer, one, "mappings", maps.reasons[i]);
            karst_json_append(writer, reasons, one);
        }
    }
    karst_json_set(writer, root, "owners", owners);
    karst_json_set(writer, root, "reasons", reasons);
    karst_json_set_number(writer, root, "gap_bytes", maps.gap_bytes);
    if (listing.list) {
        karst_json_set(writer, root, "list", listing.list);
    }
    karst_call_write_json(call, root);
    return true;
}

static bool run(struct karst_call *call) {
    return call->json ? run_json(call) : run_text(call);
}

static const struct karst_verb_option maps_options[] = {
    [OPTION_LIST] = {"list", 'l', KARST_VALUE_FLAG, NULL, "each mapping, with its owner", NULL},
    {0},
};

const struct karst_verb karst_verb_maps = {
    .name = "maps",
    .group = KARST_GROUP_OVERVIEW,
    .summary = "mappings by owner, their number against vm.max_map_count, and what splits them",
    .help = "Counts the target's mappings by what they are for: text, constants (read-only, or protected "
            "after start), "
            "data and bss of the executable and the libraries, the heap that the break grows, heaps of "
            "thread arenas "
            "and the tails they reserve, blocks with mappings of their own, stacks, guard pages, shared "
            "memory, and "
            "what no allocator claims. A mapping that several share counts for the one that has most of it.\n"
            "\n"
            "A process may have no more mappings than vm.max_map_count; then mmap, and so malloc, fails "
            "though memory "
            "is left. The second table tells why each mapping is one of its own.",
    .json =
        "{\"mappings\", \"bytes\", \"resident_bytes\", \"limit\" (vm.max_map_count), \"limit_known\" "
        "(false: the kernel's default is taken), "
        "\"owners\": [{\"owner\", \"mappings\", \"bytes\", \"resident_bytes\"}], \"reasons\": "
        "[{\"reason\", \"mappings\"}], \"gap_bytes\", \"target\"}; with --list also "
        "\"list\": [{\"start\", \"end\", \"bytes\", \"permissions\", \"name\", \"resident_bytes\", "
        "\"owner\", \"reason\", \"thread\", \"module\", \"extents\", \"allocator\" (that has most of it)}].",
    .options = maps_options,
    .needs = KARST_NEEDS_TARGET,
    .run = run,
};
