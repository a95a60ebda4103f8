#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpython_census.h"
#include "cpython_pools.h"
#include "pools_pages.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_CLASSES, OPTION_BLOCKS, OPTION_PAGES, OPTION_SORT, OPTION_LIMIT, OPTION_ALL };

#define DEFAULT_LIMIT 20
#define KINDS_MAX     64

static const struct karst_verb_option options[] = {
    [OPTION_CLASSES] = {"classes", 0, KARST_VALUE_FLAG, NULL, "one row a size class instead of an arena",
                        NULL},
    [OPTION_BLOCKS] = {"blocks", 0, KARST_VALUE_ADDRESS, "ADDR",
                       "the live blocks of the arena that holds ADDR, and what they are", NULL},
    [OPTION_PAGES] =
        {"pages", 0, KARST_VALUE_FLAG, NULL,
         "which pages of all heaps a fork still shares, which are the process's own, and what is "
         "on them",
         NULL},
    [OPTION_SORT] = {"sort", 0, KARST_VALUE_TEXT, "KEY",
                     "the least that is live first (what pins an arena), or by address", "live|address"},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N rows (20)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all", NULL},
    {0},
};

struct pools {
    struct karst_call *call;
    struct pymalloc_heap *pymalloc;
    struct cpython_pool_count counted;
};

static size_t limit_of(const struct karst_call *call) {
    const struct karst_value *limit = &call->options[OPTION_LIMIT];
    return call->options[OPTION_ALL].given ? SIZE_MAX : limit->given ? (size_t)limit->number : DEFAULT_LIMIT;
}

/* ---- what is live in an arena -----------------------------------------------------------------------------
 */

/* Live blocks by what they hold. */
struct kinds {
    struct cpython *python;
    struct kind {
        const struct cpython_type *type; /* NULL: no object */
        uint64_t blocks, bytes;
    } items[KINDS_MAX];
    size_t count;
    uint64_t other; /* blocks of further kinds */
};

static bool add_kind(void *context, const struct karst_block *block) {
    struct kinds *kinds = context;
    struct cpython_object object;
    const struct cpython_type *type = cpython_object_in(kinds->python, block, &object) ? object.type : NULL;
    size_t i = 0;
    while (i < kinds->count && kinds->items[i].type != type) {
        i++;
    }
    if (i == KINDS_MAX) {
        kinds->other++;
        return true;
    }
    if (i == kinds->count) {
        kinds->items[kinds->count++] = (struct kind){.type = type};
    }
    kinds->items[i].blocks++;
    kinds->items[i].bytes += block->size;
    return true;
}

static int most_blocks(const void *a, const void *b) {
    const struct kind *x = a, *y = b;
    return x->blocks != y->blocks ? (x->blocks > y->blocks ? -1 : 1) : x->bytes < y->bytes;
}

static bool find_kinds(struct pools *pools, const struct cpython_pool_row *row, struct kinds *kinds) {
    *kinds = (struct kinds){.python = pools->pymalloc->python};
    if (!cpython_pools_each_live(pools->pymalloc, row->arena, add_kind, kinds, pools->call->error)) {
        return false;
    }
    if (kinds->count) {
        qsort(kinds->items, kinds->count, sizeof *kinds->items, most_blocks);
    }
    return true;
}

static const char *kind_name(const struct kind *kind) {
    return kind->type ? kind->type->name : "no object";
}

/* "3 str, 1 dict, 2 others" */
static void kinds_text(const struct kinds *kinds, char *text, size_t size) {
    size_t used = 0, i = 0;
    uint64_t others = kinds->other;
    text[0] = '\0';
    for (; i < kinds->count && i < 3; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%" PRIu64 " %.40s", i ? ", " : "",
                                 kinds->items[i].blocks, kind_name(&kinds->items[i]));
    }
    for (; i < kinds->count; i++) {
        others += kinds->items[i].blocks;
    }
    if (others) {
        snprintf(text + used, size - used, ", %" PRIu64 " other%s", others, karst_plural(others));
    }
}

/* ---- text -------------------------------------------------------------------------------------------------
 */

static void write_head(struct pools *pools) {
    struct karst_writer *writer = &pools->call->writer;
    const struct pymalloc_heap *pymalloc = pools->pymalloc;
    const struct cpython_pool_row *total = &pools->counted.total;
    uint64_t system = (uint64_t)pymalloc->arena_count * pymalloc->arena_size;
    uint64_t free_pools = total->free_pools * pymalloc->pool_size;
    karst_print_title(writer, "%s of CPython %s in %s", pymalloc->heap.name, pymalloc->heap.version,
                      pools->call->session->target->name);
    karst_print(writer, "%s arena%s of %s, %s pools of %s; %s live in %s blocks, %s\n",
                karst_count_text(pymalloc->arena_count).text, karst_plural(pymalloc->arena_count),
                karst_size_text(writer, pymalloc->arena_size).text, karst_count_text(total->pools).text,
                karst_size_text(writer, pymalloc->pool_size).text,
                karst_size_text(writer, total->live_bytes).text, karst_count_text(total->live_blocks).text,
                karst_share_text(total->live_bytes, system).text);
    karst_print(writer, "unused: %s in %s free pools, %s in pools of a class, %s in headers and rests\n",
                karst_size_text(writer, free_pools).text, karst_count_text(total->free_pools).text,
                karst_size_text(writer, total->unused_bytes).text,
                karst_size_text(writer, system - free_pools - total->live_bytes - total->unused_bytes).text);
    if (total->own != UINT64_MAX && total->resident != UINT64_MAX) {
        uint64_t own = total->own < total->resident ? total->own : total->resident;
        karst_print(writer, "resident: %s, of it %s this process's own, %s shared with other processes\n",
                    karst_size_text(writer, total->resident).text, karst_size_text(writer, own).text,
                    karst_size_text(writer, total->resident - own).text);
    }
    if (pools->counted.pinned) {
        karst_print(writer,
                    "%s arena%s could go back to the system, were it not for %s block%s of %s in all\n",
                    karst_count_text(pools->counted.pinned).text, karst_plural(pools->counted.pinned),
                    karst_count_text(pools->counted.pin_blocks).text, karst_plural(pools->counted.pin_blocks),
                    karst_size_text(writer, pools->counted.pin_bytes).text);
    }
    karst_print(writer, "\n");
}

static bool write_arenas(struct pools *pools) {
    static const struct karst_column columns[] = {{"arena", KARST_LEFT},
                                                  {"pools", KARST_RIGHT | KARST_SPARE},
                                                  {"free", KARST_RIGHT | KARST_NEED_6},
                                                  {"blocks", KARST_RIGHT | KARST_NEED_8},
                                                  {"live", KARST_RIGHT},
                                                  {"fill", KARST_RIGHT},
                                                  {"resident", KARST_RIGHT | KARST_NEED_7},
                                                  {"own", KARST_RIGHT | KARST_SPARE},
                                                  {"what is live", KARST_FLEXIBLE | KARST_NEED_5}};
    struct karst_writer *writer = &pools->call->writer;
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    size_t shown = 0, count = pools->pymalloc->arena_count;
    bool fine = true;
    for (; shown < count && shown < limit_of(pools->call) && fine; shown++) {
        const struct cpython_pool_row *row = &pools->counted.rows[shown];
        struct kinds kinds;
        char text[200];
        fine = find_kinds(pools, row, &kinds);
        kinds_text(&kinds, text, sizeof text);
        karst_table_address(table, row->address);
        karst_table_count(table, row->pools);
        karst_table_count(table, row->free_pools);
        karst_table_count(table, row->live_blocks);
        karst_table_size(table, row->live_bytes);
        karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                         karst_share_text(row->live_bytes, pools->pymalloc->arena_size).text);
        karst_table_known_size(table, row->resident);
        karst_table_known_size(table, row->own);
        karst_table_text(table, KARST_STYLE_SYMBOL, "%s", text);
        pools->call->last_address = row->address;
    }
    karst_table_close(table);
    if (shown < count) {
        karst_print(writer, "%s of %s arenas shown; --all shows the others\n", karst_count_text(shown).text,
                    karst_count_text(count).text);
    }
    return fine;
}

static void write_classes(struct pools *pools) {
    static const struct karst_column columns[] = {{"size", KARST_RIGHT},
                                                  {"pools", KARST_RIGHT | KARST_NEED_6},
                                                  {"blocks", KARST_RIGHT},
                                                  {"live", KARST_RIGHT},
                                                  {"free", KARST_RIGHT | KARST_NEED_5},
                                                  {"fill", KARST_RIGHT},
                                                  {"unused", KARST_RIGHT | KARST_NEED_7},
                                                  {"lost", KARST_RIGHT | KARST_NEED_8}};
    struct karst_writer *writer = &pools->call->writer;
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (uint32_t i = 0; i < PYMALLOC_CLASSES; i++) {
        const struct cpython_pool_class *class = &pools->counted.classes[i];
        uint64_t size = (i + 1) * PYMALLOC_STEP;
        if (class->pools == 0) {
            continue;
        }
        karst_table_count(table, size);
        karst_table_count(table, class->pools);
        karst_table_count(table, class->live + class->unused);
        karst_table_count(table, class->live);
        karst_table_count(table, class->unused);
        karst_table_text(table, KARST_STYLE_PLAIN, "%s",
                         karst_share_text(class->live, class->live + class->unused).text);
        karst_table_size(table, class->unused * size);
        karst_table_size(table, class->lost);
    }
    karst_table_close(table);
    karst_print_styled(writer, KARST_STYLE_DIM,
                       "lost: headers of pools, and what is too little for one more block\n");
}

/* ---- JSON -------------------------------------------------------------------------------------------------
 */

static void set_row(struct karst_writer *writer, json_t *one, const struct cpython_pool_row *row) {
    karst_json_set_number(writer, one, "pools", row->pools);
    karst_json_set_number(writer, one, "free_pools", row->free_pools);
    karst_json_set_number(writer, one, "live_blocks", row->live_blocks);
    karst_json_set_number(writer, one, "live_bytes", row->live_bytes);
    karst_json_set_number(writer, one, "unused_bytes", row->unused_bytes);
    karst_json_set_known(writer, one, "resident_bytes", row->resident);
    karst_json_set_known(writer, one, "own_bytes", row->own);
}

static json_t *kinds_json(struct karst_writer *writer, const struct kinds *kinds) {
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < kinds->count; i++) {
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "type", kinds->items[i].type ? kinds->items[i].type->name : NULL);
        karst_json_set_number(writer, one, "blocks", kinds->items[i].blocks);
        karst_json_set_number(writer, one, "bytes", kinds->items[i].bytes);
        karst_json_append(writer, list, one);
    }
    return list;
}

static bool set_arenas(struct pools *pools, json_t *root) {
    struct karst_writer *writer = &pools->call->writer;
    json_t *list = karst_json_array(writer);
    size_t shown = 0, count = pools->pymalloc->arena_count;
    bool fine = true;
    for (; shown < count && shown < limit_of(pools->call) && fine; shown++) {
        struct kinds kinds;
        json_t *one = karst_json_object(writer);
        karst_json_set_address(writer, one, "address", pools->counted.rows[shown].address);
        set_row(writer, one, &pools->counted.rows[shown]);
        fine = find_kinds(pools, &pools->counted.rows[shown], &kinds);
        karst_json_set(writer, one, "live", kinds_json(writer, &kinds));
        karst_json_append(writer, list, one);
    }
    karst_json_set(writer, root, "arenas", list);
    karst_json_set_number(writer, root, "shown", shown);
    karst_json_set_number(writer, root, "matched", count);
    return fine;
}

static void set_classes(struct pools *pools, json_t *root) {
    struct karst_writer *writer = &pools->call->writer;
    json_t *list = karst_json_array(writer);
    for (uint32_t i = 0; i < PYMALLOC_CLASSES; i++) {
        const struct cpython_pool_class *class = &pools->counted.classes[i];
        json_t *one = karst_json_object(writer);
        karst_json_set_number(writer, one, "size", (i + 1) * PYMALLOC_STEP);
        karst_json_set_number(writer, one, "pools", class->pools);
        karst_json_set_number(writer, one, "live", class->live);
        karst_json_set_number(writer, one, "free", class->unused);
        karst_json_set_number(writer, one, "unused_bytes",
                              (uint64_t) class->unused * (i + 1) * PYMALLOC_STEP);
        karst_json_set_number(writer, one, "lost_bytes", class->lost);
        karst_json_append(writer, list, one);
    }
    karst_json_set(writer, root, "classes", list);
}

static json_t *head_json(struct pools *pools) {
    struct karst_writer *writer = &pools->call->writer;
    json_t *root = karst_json_object(writer), *pinned = karst_json_object(writer),
           *total = karst_json_object(writer);
    karst_json_set_text(writer, root, "name", pools->pymalloc->heap.name);
    karst_json_set_text(writer, root, "version", pools->pymalloc->heap.version);
    karst_json_set_number(writer, root, "arena_size", pools->pymalloc->arena_size);
    karst_json_set_number(writer, root, "pool_size", pools->pymalloc->pool_size);
    set_row(writer, total, &pools->counted.total);
    karst_json_set(writer, root, "total", total);
    karst_json_set_number(writer, pinned, "arenas", pools->counted.pinned);
    karst_json_set_number(writer, pinned, "blocks", pools->counted.pin_blocks);
    karst_json_set_number(writer, pinned, "bytes", pools->counted.pin_bytes);
    karst_json_set(writer, root, "pinned", pinned);
    return root;
}

/* ---- the live blocks of one arena -------------------------------------------------------------------------
 */

struct block_list {
    struct pools *pools;
    struct karst_table *table;
    json_t *list; /* NULL: text */
    uint64_t shown, count;
};

static bool take_block(void *context, const struct karst_block *block) {
    struct block_list *list = context;
    struct cpython *python = list->pools->pymalloc->python;
    struct karst_writer *writer = &list->pools->call->writer;
    struct cpython_object object;
    if (list->count++ >= limit_of(list->pools->call)) {
        return true;
    }
    bool is_object = cpython_object_in(python, block, &object);
    char text[300] = "no object";
    if (is_object) {
        cpython_describe(python, object.address, text, sizeof text);
    }
    list->shown++;
    list->pools->call->last_address = is_object ? object.address : block->address;
    if (list->list) {
        json_t *one = karst_json_object(writer);
        karst_json_set_address(writer, one, "address", block->address);
        karst_json_set_number(writer, one, "size", block->size);
        karst_json_set_known_address(writer, one, "object", is_object ? object.address : 0);
        karst_json_set_text(writer, one, "type", is_object ? object.type->name : NULL);
        karst_json_set_text(writer, one, "text", text);
        karst_json_append(writer, list->list, one);
    } else {
        karst_table_address(list->table, block->address);
        karst_table_size(list->table, block->size);
        karst_table_text(list->table, KARST_STYLE_SYMBOL, "%s%s", text,
                         is_object && object.kept ? " (kept for reuse)" : "");
    }
    return true;
}

static bool list_blocks(struct pools *pools, const struct pymalloc_arena *arena, json_t *root) {
    static const struct karst_column columns[] = {
        {"address", KARST_LEFT}, {"size", KARST_RIGHT}, {"object", KARST_FLEXIBLE}};
    struct karst_writer *writer = &pools->call->writer;
    struct block_list list = {.pools = pools, .list = root ? karst_json_array(writer) : NULL};
    list.table = root ? NULL : karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    bool fine = cpython_pools_each_live(pools->pymalloc, arena, take_block, &list, pools->call->error);
    karst_table_close(list.table);
    if (root) {
        karst_json_set_address(writer, root, "arena", arena->address);
        karst_json_set(writer, root, "blocks", list.list);
        karst_json_set_number(writer, root, "shown", list.shown);
        karst_json_set_number(writer, root, "matched", list.count);
    } else if (list.shown < list.count) {
        karst_print(writer, "%s of %s live blocks shown; --all shows the others\n",
                    karst_count_text(list.shown).text, karst_count_text(list.count).text);
    } else {
        karst_print(writer, "%s live block%s\n", karst_count_text(list.count).text, karst_plural(list.count));
    }
    return fine;
}

/* ---- the verb ---------------------------------------------------------------------------------------------
 */

static bool run_one(struct karst_call *call, struct pymalloc_heap *pymalloc, json_t *heaps) {
    struct pools pools = {.call = call, .pymalloc = pymalloc};
    const struct karst_value *blocks = &call->options[OPTION_BLOCKS];
    const struct pymalloc_arena *arena = blocks->given ? pymalloc_arena_of(pymalloc, blocks->number) : NULL;
    const struct karst_value *sort = &call->options[OPTION_SORT];
    bool by_address = sort->given && strcmp(sort->text, "address") == 0;
    if (!cpython_count_pools(&pools.counted, pymalloc, by_address, call->error)) {
        free(pools.counted.rows);
        return false;
    }
    bool fine = true;
    json_t *root = heaps ? head_json(&pools) : NULL;
    if (!heaps) {
        write_head(&pools);
    }
    if (arena) {
        fine = list_blocks(&pools, arena, root);
    } else if (call->options[OPTION_CLASSES].given) {
        if (root) {
            set_classes(&pools, root);
        } else {
            write_classes(&pools);
        }
    } else {
        fine = root ? set_arenas(&pools, root) : write_arenas(&pools);
    }
    if (root) {
        karst_json_append(&call->writer, heaps, root);
    }
    free(pools.counted.rows);
    return fine;
}

/* Heaps that are pymalloc's, and with --blocks have that arena. */
static bool is_meant(const struct karst_call *call, const struct karst_heap *heap) {
    const struct karst_value *blocks = &call->options[OPTION_BLOCKS];
    return heap->allocator == &karst_pymalloc &&
           (!blocks->given ||
            pymalloc_arena_of((const struct pymalloc_heap *)(const void *)heap, blocks->number));
}

static bool say_none(struct karst_call *call) {
    struct cpython_set *set = cpython_need(call->session, call->error);
    if (!set) {
        return false;
    }
    if (call->options[OPTION_BLOCKS].given) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND,
                          "0x%" PRIx64 " is in no arena of pymalloc; `karst pools` "
                          "lists them",
                          call->options[OPTION_BLOCKS].number);
    }
    return karst_fail(call->error, KARST_ERROR_NOT_FOUND, "CPython %s here has no arenas: %s",
                      set->items[0].version,
                      set->items[0].free_threaded ? "without GIL it uses mimalloc"
                                                  : "PYTHONMALLOC=malloc, or they were not found");
}

static bool run(struct karst_call *call) {
    if (call->options[OPTION_PAGES].given) {
        return karst_pools_write_pages(call, limit_of(call));
    }
    json_t *heaps = call->json ? karst_json_array(&call->writer) : NULL;
    size_t count_met = 0;
    for (size_t i = 0; i < call->session->heap_count; i++) {
        struct karst_heap *heap = call->session->heaps[i];
        if (!is_meant(call, heap)) {
            continue;
        }
        if (count_met++ && !heaps) {
            karst_print(&call->writer, "\n");
        }
        if (!run_one(call, (struct pymalloc_heap *)heap, heaps)) {
            json_decref(heaps);
            return false;
        }
    }
    if (count_met == 0) {
        json_decref(heaps);
        return say_none(call);
    }
    if (heaps) {
        json_t *root = karst_json_object(&call->writer);
        karst_json_set(&call->writer, root, "heaps", heaps);
        karst_call_write_json(call, root);
    } else {
        karst_call_write_caution(call);
    }
    return true;
}

const struct karst_verb karst_verb_pools = {
    .name = "pools",
    .group = KARST_GROUP_PYTHON,
    .summary = "pymalloc's arenas: how full they are, and what keeps them from going back to the system",
    .help =
        "CPython's allocator of small blocks gets arenas (1 MiB, 3.9: 256 KiB) from the system and cuts them "
        "into pools "
        "(16 KiB, 4 KiB) of one size each. An arena goes back only when all its pools are free, so that one "
        "live "
        "block pins it. Shown are the arenas with the least live first, with the types of what is live in "
        "them; "
        "--blocks ADDR lists those blocks one by one, and `karst py-objects --where` who refers to them. "
        "--classes "
        "has a row a size class instead.\n"
        "\n"
        "`free` are free pools, `own` the resident bytes that no other process has: after a fork, what the "
        "child "
        "copied. Counting references writes to the pages of objects that are only looked at, so that shared "
        "arenas become a process's own little by little. --pages goes through all heaps, malloc's too, and "
        "sorts the "
        "process's own pages by what is on them: headers that a collection writes to, counts of references, "
        "or "
        "neither.",
    .json =
        "{\"heaps\": [...], \"target\"}. Each of heaps: {\"name\", \"version\", \"arena_size\", "
        "\"pool_size\", \"total\": "
        "{\"pools\", \"free_pools\", \"live_blocks\", \"live_bytes\", \"unused_bytes\" (in pools of a "
        "class), "
        "\"resident_bytes\", \"own_bytes\" (null: can't be told)}, \"pinned\": {\"arenas\", \"blocks\", "
        "\"bytes\"}} and "
        "{\"arenas\": [as total, and \"address\", \"live\": [{\"type\" (null: no object), \"blocks\", "
        "\"bytes\"}]], "
        "\"shown\", \"matched\"}; with --classes {\"classes\": [{\"size\", \"pools\", \"live\", "
        "\"free\", \"unused_bytes\", "
        "\"lost_bytes\"}]}; with --blocks {\"arena\", \"blocks\": [{\"address\", \"size\", \"object\", "
        "\"type\", "
        "\"text\"}], \"shown\", \"matched\"}. With --pages {\"runtimes\", \"target\"}; each of runtimes: "
        "{\"version\", \"total\": {\"resident_bytes\", \"shared_bytes\", \"own_bytes\", \"own\": "
        "{\"collector\", "
        "\"counts\", \"writes\"}, \"shared\": {same}}, \"groups\": [as total, and \"memory\", "
        "\"extents\"], "
        "\"extents\": [as total, and \"address\", \"size\", \"allocator\", \"kind\", \"text\" (of a block "
        "with a mapping "
        "of its own, or null)], \"shown\", \"matched\"}.",
    .options = options,
    .needs = KARST_NEEDS_TARGET,
    .run = run,
};
