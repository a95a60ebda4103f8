#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "best.h"
#include "cpython_census.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_TYPE, OPTION_WHERE, OPTION_LARGEST, OPTION_SORT, OPTION_LIMIT, OPTION_ALL };

#define DEFAULT_LIMIT 20
#define LARGEST_MAX   1000000u
#define REFERRERS_MAX 10000u

static const struct karst_verb_option options[] = {
    [OPTION_TYPE] = {"type", 't', KARST_VALUE_TEXT, "TYPE",
                     "the objects of this type, the largest first: str, service.Record", NULL},
    [OPTION_WHERE] = {"where", 'w', KARST_VALUE_ADDRESS, "ADDR",
                      "who refers to the object at ADDR: containers, instances, locals of frames", NULL},
    [OPTION_LARGEST] = {"largest", 0, KARST_VALUE_FLAG, NULL, "the largest objects of all types", NULL},
    [OPTION_SORT] = {"sort", 0, KARST_VALUE_TEXT, "KEY", "types with most bytes first, or with most objects",
                     "bytes|objects"},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N rows (20)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all", NULL},
    {0},
};

struct type_row {
    const struct cpython_type *type;
    uint64_t objects, bytes, buffers, kept;
    uint64_t tracked; /* in the collector's lists */
};

/* An object kept for --type and --largest. */
struct found {
    uint64_t address, bytes, buffers, references;
    const struct cpython_type *type;
    bool kept;
};

struct census {
    struct karst_call *call;
    struct cpython *python;
    struct type_row *rows;
    size_t row_count, row_room;
    const char *wanted; /* of --type; NULL: all */
    struct karst_best best;
    uint64_t matched, matched_bytes;
    struct type_row total;
    uint64_t other_blocks, other_bytes; /* in pymalloc's pools, but no objects */
    struct cpython_tracked tracked;
    uint64_t tracked_elsewhere; /* in the lists, but of no type that can be told */
};

static size_t limit_of(const struct karst_call *call) {
    const struct karst_value *limit = &call->options[OPTION_LIMIT];
    return call->options[OPTION_ALL].given ? SIZE_MAX : limit->given ? (size_t)limit->number : DEFAULT_LIMIT;
}

/* ---- counting ---------------------------------------------------------------------------------------------
 */

static struct type_row *row_of(struct census *census, struct cpython_type *type) {
    if (type->slot) {
        return &census->rows[type->slot - 1];
    }
    if (census->row_count == census->row_room) {
        size_t room = census->row_room ? 2 * census->row_room : 256;
        struct type_row *rows = realloc(census->rows, room * sizeof *rows);
        if (!rows) {
            census->python->out_of_memory = true;
            return NULL;
        }
        census->rows = rows;
        census->row_room = room;
    }
    census->rows[census->row_count++] = (struct type_row){.type = type};
    type->slot = census->row_count;
    return &census->rows[type->slot - 1];
}

static uint64_t buffer_bytes(struct census *census, const struct cpython_object *object) {
    struct cpython_buffer buffers[CPYTHON_BUFFERS_MAX];
    unsigned count = cpython_buffers(census->python, object, buffers);
    uint64_t bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        bytes += buffers[i].size;
    }
    return bytes;
}

static void offer(struct census *census, const struct cpython_object *object, uint64_t buffers) {
    uint64_t bytes = object->block.size;
    census->matched++;
    census->matched_bytes += bytes + buffers;
    struct found *found = karst_best_offer(&census->best, bytes + buffers);
    if (found) {
        *found = (struct found){.address = object->address,
                                .bytes = bytes,
                                .buffers = buffers,
                                .references = object->references,
                                .type = object->type,
                                .kept = object->kept};
    }
}

static bool take_block(void *context, const struct karst_block *block, const struct cpython_object *object) {
    struct census *census = context;
    const struct karst_heap *heap = census->call->session->heaps[block->heap];
    if (!object) {
        if (block->flags & KARST_BLOCK_REGION && strcmp(heap->allocator->name, "pymalloc") == 0) {
            census->other_blocks++;
            census->other_bytes += block->size;
        }
        return true;
    }
    struct type_row *row = row_of(census, object->type);
    uint64_t buffers = object->kept ? 0 : buffer_bytes(census, object);
    if (!row) {
        return false;
    }
    row->objects++;
    row->bytes += block->size;
    row->buffers += buffers;
    row->kept += object->kept;
    if (census->best.limit && (!census->wanted || strcmp(census->wanted, object->type->name) == 0)) {
        offer(census, object, buffers);
    }
    return true;
}

static bool take_tracked(void *context, uint64_t address) {
    struct census *census = context;
    struct cpython_type *type = cpython_type_of(census->python, address);
    struct type_row *row = type ? row_of(census, type) : NULL;
    if (row) {
        row->tracked++;
    } else {
        census->tracked_elsewhere++;
    }
    return !census->python->out_of_memory;
}

static int by_bytes(const void *a, const void *b) {
    const struct type_row *x = a, *y = b;
    uint64_t left = x->bytes + x->buffers, right = y->bytes + y->buffers;
    if (left != right) {
        return left > right ? -1 : 1;
    }
    return strcmp(x->type->name, y->type->name);
}

static int by_objects(const void *a, const void *b) {
    const struct type_row *x = a, *y = b;
    return x->objects != y->objects ? (x->objects > y->objects ? -1 : 1) : by_bytes(a, b);
}

static bool count(struct census *census) {
    struct karst_call *call = census->call;
    const struct karst_value *sort = &call->options[OPTION_SORT];
    for (size_t i = 0; i < census->python->types.capacity; i++) {
        if (census->python->types.slots[i]) {
            census->python->types.slots[i]->slot = 0;
        }
    }
    if (!cpython_each_block(census->python, take_block, census, call->error) ||
        !cpython_each_tracked(census->python, take_tracked, census, &census->tracked, call->error)) {
        return false;
    }
    if (census->python->out_of_memory || census->best.out_of_memory) {
        return karst_fail_memory(call->error);
    }
    for (size_t i = 0; i < census->row_count; i++) {
        census->total.objects += census->rows[i].objects;
        census->total.bytes += census->rows[i].bytes;
        census->total.buffers += census->rows[i].buffers;
        census->total.kept += census->rows[i].kept;
        census->total.tracked += census->rows[i].tracked;
    }
    if (census->row_count) {
        qsort(census->rows, census->row_count, sizeof *census->rows,
              sort->given && strcmp(sort->text, "objects") == 0 ? by_objects : by_bytes);
    }
    karst_best_sort(&census->best);
    return true;
}

/* ---- by type ----------------------------------------------------------------------------------------------
 */

static void write_counts(struct karst_table *table, const struct type_row *row) {
    karst_table_count(table, row->objects);
    karst_table_size(table, row->bytes);
    karst_table_size(table, row->buffers);
    karst_table_count(table, row->tracked);
}

static void write_types(struct census *census) {
    static const struct karst_column columns[] = {{"type", KARST_FLEXIBLE},
                                                  {"objects", KARST_RIGHT},
                                                  {"bytes", KARST_RIGHT},
                                                  {"buffers", KARST_RIGHT | KARST_NEED_5},
                                                  {"tracked", KARST_RIGHT | KARST_NEED_6}};
    struct karst_writer *writer = &census->call->writer;
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    size_t shown = 0;
    for (; shown < census->row_count && shown < limit_of(census->call); shown++) {
        karst_table_text(table, KARST_STYLE_SYMBOL, "%s", census->rows[shown].type->name);
        write_counts(table, &census->rows[shown]);
    }
    if (shown < census->row_count) {
        struct type_row rest = census->total;
        for (size_t i = 0; i < shown; i++) {
            rest.objects -= census->rows[i].objects;
            rest.bytes -= census->rows[i].bytes;
            rest.buffers -= census->rows[i].buffers;
            rest.tracked -= census->rows[i].tracked;
        }
        karst_table_text(table, KARST_STYLE_DIM, "%s other types",
                         karst_count_text(census->row_count - shown).text);
        write_counts(table, &rest);
    }
    karst_table_text(table, KARST_STYLE_TITLE, "all objects");
    write_counts(table, &census->total);
    karst_table_text(table, KARST_STYLE_DIM, "no objects");
    karst_table_count(table, census->other_blocks);
    karst_table_size(table, census->other_bytes);
    karst_table_empty(table);
    karst_table_empty(table);
    karst_table_close(table);
    karst_print_styled(writer, KARST_STYLE_DIM,
                       "no objects: blocks in pools that hold buffers, tables and what else is no object\n");
    if (census->total.kept) {
        karst_print(writer,
                    "%s object%s nobody refers to: kept by the interpreter for the next of their type\n",
                    karst_count_text(census->total.kept).text, karst_plural(census->total.kept));
    }
    if (census->tracked.damaged || census->tracked.unknown) {
        karst_print_styled(writer, KARST_STYLE_WARNING, "%s: `tracked` is not all\n",
                           census->tracked.unknown ? "the collector's lists were not found"
                                                   : "a list of the collector's is damaged");
    }
}

static json_t *row_json(struct karst_writer *writer, const struct type_row *row) {
    json_t *one = karst_json_object(writer);
    karst_json_set_number(writer, one, "objects", row->objects);
    karst_json_set_number(writer, one, "bytes", row->bytes);
    karst_json_set_number(writer, one, "buffer_bytes", row->buffers);
    karst_json_set_number(writer, one, "tracked", row->tracked);
    karst_json_set_number(writer, one, "kept", row->kept);
    return one;
}

static void set_types(struct census *census, json_t *root) {
    struct karst_writer *writer = &census->call->writer;
    json_t *list = karst_json_array(writer), *other = karst_json_object(writer);
    size_t shown = 0;
    for (; shown < census->row_count && shown < limit_of(census->call); shown++) {
        json_t *one = row_json(writer, &census->rows[shown]);
        karst_json_set_text(writer, one, "type", census->rows[shown].type->name);
        karst_json_set_address(writer, one, "address", census->rows[shown].type->address);
        karst_json_append(writer, list, one);
    }
    karst_json_set(writer, root, "types", list);
    karst_json_set_number(writer, root, "shown", shown);
    karst_json_set_number(writer, root, "matched", census->row_count);
    karst_json_set(writer, root, "total", row_json(writer, &census->total));
    karst_json_set_number(writer, other, "blocks", census->other_blocks);
    karst_json_set_number(writer, other, "bytes", census->other_bytes);
    karst_json_set(writer, root, "no_objects", other);
    karst_json_set_flag(writer, root, "lists_damaged", census->tracked.damaged);
    karst_json_set_flag(writer, root, "lists_found", !census->tracked.unknown);
}

/* ---- single objects ---------------------------------------------------------------------------------------
 */

static void write_found(struct census *census) {
    static const struct karst_column columns[] = {{"address", KARST_LEFT},
                                                  {"bytes", KARST_RIGHT | KARST_NEED_5},
                                                  {"buffers", KARST_RIGHT | KARST_NEED_6},
                                                  {"references", KARST_RIGHT | KARST_SPARE},
                                                  {"object", KARST_FLEXIBLE}};
    struct karst_writer *writer = &census->call->writer;
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < census->best.count; i++) {
        const struct found *found = karst_best_item(&census->best, i);
        char text[300];
        cpython_describe(census->python, found->address, text, sizeof text);
        karst_table_address(table, found->address);
        karst_table_size(table, found->bytes);
        karst_table_size(table, found->buffers);
        if (found->references >= UINT32_MAX) {
            karst_table_text(table, KARST_STYLE_DIM, "immortal");
        } else {
            karst_table_count(table, found->references);
        }
        karst_table_text(table, KARST_STYLE_SYMBOL, "%s%s", text, found->kept ? " (kept for reuse)" : "");
        census->call->last_address = found->address;
    }
    karst_table_close(table);
    if (census->best.count < census->matched) {
        karst_print(writer, "%s of %s objects shown, ", karst_count_text(census->best.count).text,
                    karst_count_text(census->matched).text);
    } else {
        karst_print(writer, "%s object%s, ", karst_count_text(census->matched).text,
                    karst_plural(census->matched));
    }
    karst_print(writer, "%s in all\n", karst_size_text(writer, census->matched_bytes).text);
}

static void set_found(struct census *census, json_t *root) {
    struct karst_writer *writer = &census->call->writer;
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < census->best.count; i++) {
        const struct found *found = karst_best_item(&census->best, i);
        char text[300];
        json_t *one = karst_json_object(writer);
        cpython_value(census->python, found->address, text, sizeof text);
        karst_json_set_address(writer, one, "address", found->address);
        karst_json_set_text(writer, one, "type", found->type->name);
        karst_json_set_number(writer, one, "bytes", found->bytes);
        karst_json_set_number(writer, one, "buffer_bytes", found->buffers);
        karst_json_set(writer, one, "references",
                       found->references >= UINT32_MAX ? json_null()
                                                       : json_integer((json_int_t)found->references));
        karst_json_set_text(writer, one, "value", *text ? text : NULL);
        karst_json_append(writer, list, one);
    }
    karst_json_set(writer, root, "objects", list);
    karst_json_set_number(writer, root, "shown", census->best.count);
    karst_json_set_number(writer, root, "matched", census->matched);
    karst_json_set_number(writer, root, "bytes", census->matched_bytes);
}

/* ---- referrers --------------------------------------------------------------------------------------------
 */

struct where {
    struct karst_call *call;
    uint64_t shown, count, limit;
    json_t *list; /* NULL: text */
};

static bool take_referrer(void *context, const struct cpython_referrer *referrer) {
    struct where *where = context;
    struct karst_writer *writer = &where->call->writer;
    where->count++;
    if (where->shown >= where->limit) {
        return where->count < REFERRERS_MAX;
    }
    where->shown++;
    if (where->list) {
        json_t *one = karst_json_object(writer);
        karst_json_set_address(writer, one, "address", referrer->address);
        karst_json_set_text(writer, one, "type", referrer->type ? referrer->type->name : NULL);
        karst_json_set_text(writer, one, "text", referrer->text);
        karst_json_append(writer, where->list, one);
        return true;
    }
    karst_print(writer, "  ");
    karst_print_address(writer, referrer->address);
    karst_print(writer, " %s\n", referrer->text);
    return !writer->closed;
}

static bool run_where(struct karst_call *call, struct cpython *python, json_t *root) {
    uint64_t address = call->options[OPTION_WHERE].number;
    struct where where = {.call = call, .limit = limit_of(call)};
    char text[300];
    if (!cpython_type_of(python, address)) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND,
                          "no Python object at 0x%" PRIx64 "; `karst block 0x%" PRIx64 "` says what is there",
                          address, address);
    }
    cpython_describe(python, address, text, sizeof text);
    if (root) {
        where.list = karst_json_array(&call->writer);
        karst_json_set_address(&call->writer, root, "object", address);
        karst_json_set_text(&call->writer, root, "text", text);
    } else {
        karst_print_address(&call->writer, address);
        karst_print(&call->writer, " %s, referred to by\n", text);
    }
    if (!cpython_each_referrer(python, address, 1, take_referrer, &where, call->error)) {
        json_decref(where.list);
        return false;
    }
    if (root) {
        karst_json_set(&call->writer, root, "referrers", where.list);
        karst_json_set_number(&call->writer, root, "shown", where.shown);
        karst_json_set_number(&call->writer, root, "matched", where.count);
    } else if (where.count == 0) {
        karst_print(&call->writer,
                    "  no container, instance or frame: C code may have it, or it is garbage\n");
    } else if (where.count > where.shown) {
        karst_print(&call->writer, "  %s%s more; --all shows them\n",
                    karst_count_text(where.count - where.shown).text,
                    where.count >= REFERRERS_MAX ? " or" : "");
    }
    return true;
}

/* ---- the verb ---------------------------------------------------------------------------------------------
 */

static bool run_census(struct karst_call *call, struct cpython *python, json_t *root) {
    bool single = call->options[OPTION_TYPE].given || call->options[OPTION_LARGEST].given;
    size_t limit = limit_of(call) < LARGEST_MAX ? limit_of(call) : LARGEST_MAX;
    struct census census = {.call = call, .python = python, .wanted = call->options[OPTION_TYPE].text};
    karst_best_open(&census.best, sizeof(struct found), single ? limit : 0);
    bool counted = count(&census);
    if (counted && single && census.wanted && census.matched == 0) {
        counted = karst_fail(call->error, KARST_ERROR_NOT_FOUND,
                             "no objects of type '%s'; `py-objects --all` lists the types", census.wanted);
    } else if (counted && root) {
        (single ? set_found : set_types)(&census, root);
    } else if (counted) {
        (single ? write_found : write_types)(&census);
    }
    karst_best_close(&census.best);
    free(census.rows);
    return counted;
}

static bool run_one(struct karst_call *call, struct cpython *python, json_t *runtimes) {
    if (python->free_threaded) {
        return karst_fail(
            call->error, KARST_ERROR_UNSUPPORTED,
            "CPython %s without GIL keeps objects in mimalloc and in no lists: its stacks can be "
            "told (py-stack), its objects can't",
            python->version);
    }
    json_t *root = runtimes ? karst_json_object(&call->writer) : NULL;
    if (root) {
        karst_json_set_text(&call->writer, root, "version", python->version);
        karst_json_set_text(&call->writer, root, "module", python->module->path);
        karst_json_set_flag(&call->writer, root, "version_known", python->layout_known);
    } else if (!call->options[OPTION_WHERE].given) {
        karst_print_title(&call->writer, "CPython %s in %s", python->version, call->session->target->name);
        if (!python->layout_known) {
            karst_print_styled(
                &call->writer, KARST_STYLE_WARNING,
                "this version is not known: objects are read as those of 3.%d, and may be told wrong\n",
                CPYTHON_LAST);
        }
    }
    bool done =
        call->options[OPTION_WHERE].given ? run_where(call, python, root) : run_census(call, python, root);
    if (done && runtimes) {
        karst_json_append(&call->writer, runtimes, root);
    } else {
        json_decref(root);
    }
    return done;
}

static bool run(struct karst_call *call) {
    struct cpython_set *set = cpython_need(call->session, call->error);
    if (!set) {
        return false;
    }
    json_t *runtimes = call->json ? karst_json_array(&call->writer) : NULL;
    for (size_t i = 0; i < set->count; i++) {
        if (!run_one(call, &set->items[i], runtimes)) {
            json_decref(runtimes);
            return false;
        }
    }
    if (call->json) {
        json_t *root = karst_json_object(&call->writer);
        karst_json_set(&call->writer, root, "runtimes", runtimes);
        karst_call_write_json(call, root);
    } else {
        karst_call_write_caution(call);
    }
    return true;
}

const struct karst_verb karst_verb_py_objects = {
    .name = "py-objects",
    .group = KARST_GROUP_PYTHON,
    .summary = "Python objects by type, the largest, and who refers to one",
    .help =
        "Looks into every live block, of pymalloc and of any other allocator, for a Python object: ints, "
        "strings, "
        "floats and tuples as well as what the collector knows. One row a type: how many there are, the "
        "bytes of "
        "their blocks, and the buffers that are theirs alone (a list's items, the table of a dict or set, "
        "the "
        "bytes of a bytearray). `tracked` counts those in the collector's lists, as gc.get_objects() does.\n"
        "\n"
        "--type TYPE shows the objects of one type, --largest those of all types, the largest first. --where "
        "ADDR looks for who refers to an object: containers and instances in any block, and local variables "
        "of "
        "the frames on all stacks. Pointers in C code's own memory are not looked at; `karst refs` does "
        "that.\n"
        "\n"
        "An object that nobody refers to is kept by the interpreter, in a free list, for the next of its "
        "type.",
    .json = "{\"runtimes\": [...], \"target\"}. Each of runtimes: {\"version\", \"module\", "
            "\"version_known\"} and {\"types\": "
            "[{\"type\", "
            "\"address\", \"objects\", \"bytes\", \"buffer_bytes\", \"tracked\", \"kept\"}], \"shown\", "
            "\"matched\" (types), "
            "\"total\" (as each of types), \"no_objects\": {\"blocks\", \"bytes\"}, \"lists_damaged\", "
            "\"lists_found\"}; with "
            "--type or --largest: {\"objects\": [{\"address\", \"type\", \"bytes\", \"buffer_bytes\", "
            "\"references\" (null: "
            "immortal), \"value\" (or null)}], \"shown\", \"matched\", \"bytes\"}; with --where: "
            "{\"object\", \"text\", "
            "\"referrers\": [{\"address\", \"type\" (null: a frame), \"text\"}], \"shown\", \"matched\"}.",
    .options = options,
    .needs = KARST_NEEDS_TARGET,
    .run = run,
};
