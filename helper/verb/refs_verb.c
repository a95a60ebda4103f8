#include <inttypes.h>
#include <stdio.h>

#include "block_row.h"
#include "place.h"
#include "refs.h"
#include "threads.h"
#include "verb.h"
#include "verbs.h"

#define DEFAULT_LIMIT 50

enum { OPTION_LIMIT, OPTION_ALL };

/* ---- text ---------------------------------------------------------------------------------------- */

/* What holds the pointer, as a person says it. */
static void where_text(struct karst_call *call, const struct karst_refs *refs, const struct karst_ref *ref,
                       char *text, size_t size) {
    const struct karst_target *target = call->session->target;
    const char *name;
    const char *sign = ref->offset < 0 ? "-" : "+";
    uint64_t offset = ref->offset < 0 ? -(uint64_t)ref->offset : (uint64_t)ref->offset;
    switch (ref->kind) {
    case KARST_REF_REGISTER:
        name = karst_register_name(target, ref->reg);
        snprintf(text, size, "register %s of thread %" PRId64, name ? name : "?", ref->tid);
        break;
    case KARST_REF_STACK:
    case KARST_REF_DEAD_STACK:
        snprintf(text, size, "stack of thread %" PRId64 ", sp%s0x%" PRIx64, ref->tid, sign, offset);
        break;
    case KARST_REF_THREAD:
        snprintf(text, size, "own data of thread %" PRId64 ", tp%s0x%" PRIx64, ref->tid, sign, offset);
        break;
    case KARST_REF_GLOBAL:
    case KARST_REF_OTHER:
        karst_place_text(call->session, ref->address, text, size);
        break;
    default:
        if (refs->has_block && ref->block.start == refs->block.start) {
            snprintf(text, size, "itself %s0x%" PRIx64, sign, offset);
        } else {
            snprintf(text, size, "%s %s-byte block 0x%" PRIx64 " %s0x%" PRIx64,
                     karst_state_name((enum karst_state)ref->block.state),
                     karst_count_text(ref->block.usable ? ref->block.usable : ref->block.size).text,
                     ref->block.address, sign, offset);
        }
    }
}

static void write_target_cell(const struct karst_refs *refs, struct karst_table *table, uint64_t value) {
    uint64_t base = refs->has_block ? refs->block.address : refs->address;
    if (value == base) {
        karst_table_text(table, KARST_STYLE_PLAIN, "start");
    } else if (value < base) {
        karst_table_text(table, KARST_STYLE_DIM, "-0x%" PRIx64 ", header", base - value);
    } else {
        karst_table_text(table, KARST_STYLE_PLAIN, "+0x%" PRIx64, value - base);
    }
}

static bool is_stale(enum karst_ref_kind kind) {
    return kind >= KARST_REF_FREED;
}

static void write_rows(struct karst_call *call, const struct karst_refs *refs) {
    static const struct karst_column columns[] = {{"pointer at", KARST_LEFT},
                                                  {"points to", KARST_LEFT},
                                                  {"kind", KARST_LEFT | KARST_NEED_6},
                                                  {"in", KARST_FLEXIBLE}};
    struct karst_table *table = karst_table_open(&call->writer, columns, sizeof columns / sizeof *columns);
    for (size_t i = 0; i < refs->refs.count; i++) {
        const struct karst_ref *ref = karst_best_item(&refs->refs, i);
        char where[600];
        where_text(call, refs, ref, where, sizeof where);
        if (ref->address) {
            karst_table_address(table, ref->address);
            call->last_address = ref->has_block ? ref->block.address : ref->address;
        } else {
            karst_table_text(table, KARST_STYLE_DIM, "-");
        }
        write_target_cell(refs, table, ref->value);
        karst_table_text(table, is_stale(ref->kind) ? KARST_STYLE_WARNING : KARST_STYLE_PLAIN, "%s%s",
                         is_stale(ref->kind) ? "stale: " : "", karst_ref_kind_name(ref->kind));
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", where);
    }
    karst_table_close(table);
}

static void write_headline(struct karst_call *call, const struct karst_refs *refs) {
    struct karst_writer *writer = &call->writer;
    if (refs->has_block) {
        const struct karst_block *block = &refs->block;
        karst_print(writer, "%s-byte block ",
                    karst_count_text(block->usable ? block->usable : block->size).text);
        karst_print_address(writer, block->address);
        karst_print(writer, ", ");
        karst_print_styled(writer, karst_state_style((enum karst_state)block->state), "%s",
                           karst_state_name((enum karst_state)block->state));
        karst_print(writer, ", arena %s\n", karst_arena_text(call->session, block->heap, block->arena).text);
        call->last_address = block->address;
        return;
    }
    char place[600];
    karst_place_text(call->session, refs->address, place, sizeof place);
    karst_print_address(writer, refs->address);
    karst_print(writer, " is in no heap but in %s; pointers to just that address:\n", place);
}

static uint64_t total(const struct karst_refs *refs) {
    uint64_t sum = 0;
    for (size_t i = 0; i < KARST_REF_KINDS; i++) {
        sum += refs->counts[i].exact + refs->counts[i].interior;
    }
    return sum;
}

static void write_counts(struct karst_call *call, const struct karst_refs *refs) {
    struct karst_writer *writer = &call->writer;
    uint64_t exact = 0, stale = 0, all = total(refs);
    for (size_t i = 0; i < KARST_REF_KINDS; i++) {
        exact += refs->counts[i].exact;
        stale += is_stale(i) ? refs->counts[i].exact + refs->counts[i].interior : 0;
    }
    if (all == 0) {
        karst_print(writer, "nothing points there: no register, stack, global or block (%s searched)\n",
                    karst_size_text(writer, refs->scanned).text);
    } else {
        karst_print(writer, "%s pointer%s", karst_count_text(all).text, karst_plural(all));
        if (refs->has_block) {
            karst_print(writer, ", %s to the start", karst_count_text(exact).text);
        }
        if (stale) {
            karst_print(writer, ", %s stale: in memory that is not in use any more",
                        karst_count_text(stale).text);
        }
        if (refs->refs.count < all) {
            karst_print(writer, "; %zu shown, --all shows the rest", refs->refs.count);
        }
        karst_print(writer, "\n");
    }
    if (refs->unreadable) {
        karst_print_styled(writer, KARST_STYLE_WARNING, "%s could not be read and searched\n",
                           karst_size_text(writer, refs->unreadable).text);
    }
}

static void write_text(struct karst_call *call, const struct karst_refs *refs) {
    write_headline(call, refs);
    if (refs->refs.count) {
        write_rows(call, refs);
    }
    write_counts(call, refs);
    karst_call_write_caution(call);
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static json_t *ref_json(struct karst_call *call, const struct karst_refs *refs, const struct karst_ref *ref) {
    struct karst_writer *writer = &call->writer;
    uint64_t base = refs->has_block ? refs->block.address : refs->address;
    char where[600];
    where_text(call, refs, ref, where, sizeof where);
    json_t *one = karst_json_object(writer);
    karst_json_set_text(writer, one, "kind", karst_ref_kind_name(ref->kind));
    karst_json_set_flag(writer, one, "stale", is_stale(ref->kind));
    karst_json_set_known_address(writer, one, "address", ref->address);
    karst_json_set_address(writer, one, "value", ref->value);
    karst_json_set_flag(writer, one, "exact", ref->value == base);
    karst_json_set(writer, one, "into", json_integer((json_int_t)(ref->value - base)));
    karst_json_set(writer, one, "thread", ref->tid ? json_integer(ref->tid) : json_null());
    karst_json_set_text(writer, one, "register",
                        ref->kind == KARST_REF_REGISTER ? karst_register_name(call->session->target, ref->reg)
                                                        : NULL);
    karst_json_set(writer, one, "offset",
                   ref->has_block || (ref->tid && ref->address) ? json_integer(ref->offset) : json_null());
    karst_json_set(writer, one, "block", ref->has_block ? karst_block_json(call, &ref->block) : json_null());
    karst_json_set_text(writer, one, "in", where);
    return one;
}

static void write_json(struct karst_call *call, const struct karst_refs *refs) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *list = karst_json_array(writer),
           *counts = karst_json_object(writer);
    for (size_t i = 0; i < KARST_REF_KINDS; i++) {
        json_t *one = karst_json_object(writer);
        karst_json_set_number(writer, one, "exact", refs->counts[i].exact);
        karst_json_set_number(writer, one, "interior", refs->counts[i].interior);
        karst_json_set(writer, counts, karst_ref_kind_name(i), one);
    }
    for (size_t i = 0; i < refs->refs.count; i++) {
        karst_json_append(writer, list, ref_json(call, refs, karst_best_item(&refs->refs, i)));
    }
    karst_json_set_address(writer, root, "address", refs->address);
    karst_json_set(writer, root, "block",
                   refs->has_block ? karst_block_json(call, &refs->block) : json_null());
    karst_json_set_number(writer, root, "total", total(refs));
    karst_json_set_number(writer, root, "shown", refs->refs.count);
    karst_json_set(writer, root, "counts", counts);
    karst_json_set(writer, root, "refs", list);
    karst_json_set_number(writer, root, "searched_bytes", refs->scanned);
    karst_json_set_number(writer, root, "unreadable_bytes", refs->unreadable);
    karst_call_write_json(call, root);
}

static bool run(struct karst_call *call) {
    const struct karst_value *limit = &call->options[OPTION_LIMIT];
    size_t kept = call->options[OPTION_ALL].given ? SIZE_MAX : limit->given ? limit->number : DEFAULT_LIMIT;
    struct karst_refs refs;
    if (!karst_refs_find(call->session, call->arguments[0].number, kept, &refs, call->error)) {
        return false;
    }
    if (call->json) {
        write_json(call, &refs);
    } else {
        write_text(call, &refs);
    }
    karst_refs_close(&refs);
    return true;
}

static const struct karst_verb_argument refs_arguments[] = {
    {"ADDRESS", KARST_VALUE_ADDRESS, true, "any address in the block"}, {0}};

static const struct karst_verb_option refs_options[] = {
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N pointers (50)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all pointers", NULL},
    {0},
};

const struct karst_verb karst_verb_refs = {
    .name = "refs",
    .group = KARST_GROUP_BLOCKS,
    .summary = "where pointers into a block are: registers, stacks, globals, other blocks",
    .help =
        "Looks for pointers into the block that holds ADDRESS in the registers of all threads and, at "
        "addresses "
        "that are multiples of 8, in all private memory that can be read and written: stacks (from their "
        "stack "
        "pointers up), threads' own data, globals, other blocks. A pointer that only looks like one, because "
        "some number happens to have that value, can't be told from a real one.\n"
        "\n"
        "Pointers to the start are what malloc returned; others point into the middle, or, with -0x10, to "
        "the "
        "block's header, as the allocator's own lists do. Pointers that are left in freed blocks and below "
        "stack pointers are stale: nothing can follow them, but they tell who knew the block.\n"
        "\n"
        "For an address that is in no heap, pointers to just that address are looked for.",
    .json = "{\"address\", \"block\" (or null), \"total\", \"shown\", \"counts\": {KIND: {\"exact\", "
            "\"interior\"}}, \"refs\": [...], \"searched_bytes\", "
            "\"unreadable_bytes\", \"target\"}. Each of refs has kind (register, stack, thread, global, "
            "block, ...), stale, address (of the pointer; "
            "null in a register), value, exact (it points to the start), into (how far behind the start), "
            "thread, register, offset and block "
            "(the block that holds the pointer), in (the place in words).",
    .arguments = refs_arguments,
    .options = refs_options,
    .needs = KARST_NEEDS_TARGET,
    .run = run,
};
