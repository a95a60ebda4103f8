/* Which pages of the heaps a fork still shares, and which the process has copied by writing to them. */
#include "pools_pages.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpython_census.h"
#include "cpython_copied.h"

struct group {
    char name[60];
    size_t extents;
    struct cpython_copied_bytes bytes;
};

/* pymalloc's arenas, malloc's heaps, blocks with mappings of their own; of a few allocators at most. */
#define GROUPS_MAX 32u

struct pages {
    struct karst_call *call;
    struct cpython *python;
    struct cpython_copied copied;
    struct group groups[GROUPS_MAX];
    size_t group_count;
    struct cpython_copied_bytes total;
};

/* ---- groups -------------------------------------------------------------------------------------- */

static const char *kind_text(enum karst_extent_kind kind) {
    return kind == KARST_EXTENT_MAPPED  ? "mapped blocks"
           : kind == KARST_EXTENT_PAGES ? "arenas"
           : kind == KARST_EXTENT_OWN   ? "own tables"
                                        : "heaps";
}

static void group_rows(struct pages *pages) {
    struct karst_heap *const *heaps = pages->call->session->heaps;
    for (size_t i = 0; i < pages->copied.count; i++) {
        const struct cpython_copied_row *row = &pages->copied.rows[i];
        char name[sizeof pages->groups[0].name];
        size_t k = 0;
        snprintf(name, sizeof name, "%s %s", heaps[row->extent->heap]->name, kind_text(row->extent->kind));
        while (k < pages->group_count && strcmp(pages->groups[k].name, name) != 0) {
            k++;
        }
        cpython_copied_add(&pages->total, &row->bytes);
        if (k == GROUPS_MAX) {
            continue; /* the total has it */
        }
        if (k == pages->group_count) {
            memcpy(pages->groups[pages->group_count++].name, name, sizeof name);
        }
        pages->groups[k].extents++;
        cpython_copied_add(&pages->groups[k].bytes, &row->bytes);
    }
}

static int most_own(const void *a, const void *b) {
    const struct cpython_copied_row *x = a, *y = b;
    if (x->bytes.own != y->bytes.own) {
        return x->bytes.own > y->bytes.own ? -1 : 1;
    }
    return x->extent->start < y->extent->start ? -1 : x->extent->start > y->extent->start;
}

/* "list, 100,000 items: its items", "" if nothing is known. */
static void describe(struct pages *pages, const struct cpython_copied_row *row, char *text, size_t size) {
    char object[260];
    text[0] = '\0';
    if (row->object) {
        cpython_describe(pages->python, row->object, object, sizeof object);
        snprintf(text, size, "%s%s%s", row->what ? row->what : "", row->what ? " of " : "", object);
    }
}

/* ---- text ---------------------------------------------------------------------------------------- */

static void add_bytes(struct karst_table *table, const struct cpython_copied_bytes *bytes) {
    karst_table_size(table, bytes->resident);
    karst_table_size(table, bytes->resident - bytes->own);
    karst_table_size(table, bytes->own);
    for (unsigned i = 0; i < CPYTHON_COPIED_KINDS; i++) {
        karst_table_size(table, bytes->own_by[i]);
    }
}

static void write_groups(struct pages *pages) {
    static const struct karst_column columns[] = {{"memory", KARST_FLEXIBLE},
                                                  {"extents", KARST_RIGHT | KARST_SPARE},
                                                  {"resident", KARST_RIGHT},
                                                  {"shared", KARST_RIGHT | KARST_NEED_5},
                                                  {"own", KARST_RIGHT},
                                                  {"collector", KARST_RIGHT | KARST_NEED_8},
                                                  {"counts", KARST_RIGHT | KARST_NEED_8},
                                                  {"writes", KARST_RIGHT | KARST_NEED_8}};
    struct karst_table *table =
        karst_table_open(&pages->call->writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < pages->group_count; i++) {
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", pages->groups[i].name);
        karst_table_count(table, pages->groups[i].extents);
        add_bytes(table, &pages->groups[i].bytes);
    }
    karst_table_text(table, KARST_STYLE_PLAIN, "in all");
    karst_table_count(table, pages->copied.count);
    add_bytes(table, &pages->total);
    karst_table_close(table);
    karst_print_wrapped(
        &pages->call->writer, 0, 0,
        "own: pages that no other process has, by what is on them. collector: headers of "
        "objects that a collection goes through and writes to; counts: no such, but counts of "
        "references, which change when an object is looked at; writes: no object begins there, "
        "so that only a change made them the process's own.");
    karst_print(&pages->call->writer, "\n");
}

static void write_rows(struct pages *pages, size_t limit) {
    static const struct karst_column columns[] = {{"start", KARST_LEFT},
                                                  {"memory", KARST_LEFT | KARST_NEED_5},
                                                  {"resident", KARST_RIGHT | KARST_NEED_6},
                                                  {"shared", KARST_RIGHT | KARST_NEED_7},
                                                  {"own", KARST_RIGHT},
                                                  {"collector", KARST_RIGHT | KARST_SPARE},
                                                  {"counts", KARST_RIGHT | KARST_SPARE},
                                                  {"writes", KARST_RIGHT | KARST_SPARE},
                                                  {"what it is", KARST_FLEXIBLE | KARST_NEED_4}};
    struct karst_call *call = pages->call;
    struct karst_table *table = karst_table_open(&call->writer, columns, sizeof columns / sizeof *columns);
    size_t shown = 0;
    for (; shown < pages->copied.count && shown < limit; shown++) {
        const struct cpython_copied_row *row = &pages->copied.rows[shown];
        char text[300];
        describe(pages, row, text, sizeof text);
        karst_table_address(table, row->extent->start);
        karst_table_text(table, KARST_STYLE_PLAIN, "%s %s", call->session->heaps[row->extent->heap]->name,
                         karst_extent_kind_name(row->extent->kind));
        add_bytes(table, &row->bytes);
        karst_table_text(table, KARST_STYLE_SYMBOL, "%s", text);
        call->last_address = row->extent->start;
    }
    karst_table_close(table);
    if (shown < pages->copied.count) {
        karst_print(&call->writer, "%s of %s extents shown; --all shows the others\n",
                    karst_count_text(shown).text, karst_count_text(pages->copied.count).text);
    }
}

static void write_text(struct pages *pages, size_t limit) {
    karst_print_title(&pages->call->writer, "heap pages of CPython %s in %s", pages->python->version,
                      pages->call->session->target->name);
    write_groups(pages);
    write_rows(pages, limit);
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static void set_bytes(struct karst_writer *writer, json_t *object, const struct cpython_copied_bytes *bytes) {
    json_t *own = karst_json_object(writer), *shared = karst_json_object(writer);
    karst_json_set_number(writer, object, "resident_bytes", bytes->resident);
    karst_json_set_number(writer, object, "shared_bytes", bytes->resident - bytes->own);
    karst_json_set_number(writer, object, "own_bytes", bytes->own);
    for (unsigned i = 0; i < CPYTHON_COPIED_KINDS; i++) {
        karst_json_set_number(writer, own, cpython_copied_name(i), bytes->own_by[i]);
        karst_json_set_number(writer, shared, cpython_copied_name(i), bytes->shared_by[i]);
    }
    karst_json_set(writer, object, "own", own);
    karst_json_set(writer, object, "shared", shared);
}

static json_t *rows_json(struct pages *pages, size_t limit) {
    struct karst_writer *writer = &pages->call->writer;
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < pages->copied.count && i < limit; i++) {
        const struct cpython_copied_row *row = &pages->copied.rows[i];
        json_t *one = karst_json_object(writer);
        char text[300];
        describe(pages, row, text, sizeof text);
        karst_json_set_address(writer, one, "address", row->extent->start);
        karst_json_set_number(writer, one, "size", row->extent->end - row->extent->start);
        karst_json_set_text(writer, one, "allocator", pages->call->session->heaps[row->extent->heap]->name);
        karst_json_set_text(writer, one, "kind", karst_extent_kind_name(row->extent->kind));
        set_bytes(writer, one, &row->bytes);
        karst_json_set_text(writer, one, "text", *text ? text : NULL);
        karst_json_append(writer, list, one);
    }
    return list;
}

static json_t *groups_json(struct pages *pages) {
    struct karst_writer *writer = &pages->call->writer;
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < pages->group_count; i++) {
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "memory", pages->groups[i].name);
        karst_json_set_number(writer, one, "extents", pages->groups[i].extents);
        set_bytes(writer, one, &pages->groups[i].bytes);
        karst_json_append(writer, list, one);
    }
    return list;
}

static json_t *make_json(struct pages *pages, size_t limit) {
    struct karst_writer *writer = &pages->call->writer;
    json_t *root = karst_json_object(writer), *total = karst_json_object(writer);
    karst_json_set_text(writer, root, "version", pages->python->version);
    set_bytes(writer, total, &pages->total);
    karst_json_set(writer, root, "total", total);
    karst_json_set(writer, root, "groups", groups_json(pages));
    karst_json_set(writer, root, "extents", rows_json(pages, limit));
    karst_json_set_number(writer, root, "shown", limit < pages->copied.count ? limit : pages->copied.count);
    karst_json_set_number(writer, root, "matched", pages->copied.count);
    return root;
}

/* ---- the option ---------------------------------------------------------------------------------- */

static bool write_one(struct karst_call *call, struct cpython *python, size_t limit, json_t *list) {
    struct pages *pages = calloc(1, sizeof *pages);
    if (!pages) {
        return karst_fail_memory(call->error);
    }
    pages->call = call;
    pages->python = python;
    bool found = cpython_copied_find(python, &pages->copied, call->error);
    if (found) {
        group_rows(pages);
        if (pages->copied.count) {
            qsort(pages->copied.rows, pages->copied.count, sizeof *pages->copied.rows, most_own);
        }
        if (list) {
            karst_json_append(&call->writer, list, make_json(pages, limit));
        } else {
            write_text(pages, limit);
        }
        cpython_copied_clear(&pages->copied);
    }
    free(pages);
    return found;
}

bool karst_pools_write_pages(struct karst_call *call, size_t limit) {
    struct cpython_set *set = cpython_need(call->session, call->error);
    json_t *list = set && call->json ? karst_json_array(&call->writer) : NULL;
    for (size_t i = 0; set && i < set->count; i++) {
        if (i && !list) {
            karst_print(&call->writer, "\n");
        }
        if (!write_one(call, &set->items[i], limit, list)) {
            json_decref(list);
            return false;
        }
    }
    if (list) {
        json_t *root = karst_json_object(&call->writer);
        karst_json_set(&call->writer, root, "runtimes", list);
        karst_call_write_json(call, root);
    } else if (set) {
        karst_call_write_caution(call);
    }
    return set != NULL;
}
