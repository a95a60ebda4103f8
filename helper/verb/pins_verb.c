#include "holes.h"
#include "pins_report.h"
#include "verb.h"
#include "verbs.h"

#define DEFAULT_COUNT 10
#define SHOWN_DEPTH   4 /* pins under each top; JSON has them all */

enum { OPTION_LIMIT, OPTION_ARENA };

static bool is_wanted(void *context, const struct karst_extent *extent) {
    const struct karst_call *call = context;
    const struct karst_value *arena = &call->options[OPTION_ARENA];
    return karst_arena_matches(call->session->heaps[extent->heap], extent->arena, arena->text);
}

static bool run(struct karst_call *call) {
    const struct karst_value *count = &call->options[OPTION_LIMIT], *arena = &call->options[OPTION_ARENA];
    size_t limit = count->given ? count->number : DEFAULT_COUNT;
    struct karst_holes_options options = {
        .pins = limit, .tops = limit, .wanted = arena->given ? is_wanted : NULL, .wanted_context = call};
    struct karst_holes holes;
    if (!karst_call_check_arena(call, arena) ||
        !karst_holes_find(call->session, &options, &holes, call->error)) {
        return false;
    }
    if (call->json) {
        json_t *root = karst_json_object(&call->writer);
        karst_pins_set_json(call, root, &holes.pins);
        karst_call_write_json(call, root);
    } else {
        karst_pins_write_tops(call, &holes.pins, SHOWN_DEPTH);
        karst_print(&call->writer, "\n");
        karst_pins_write_between(call, &holes.pins);
        karst_print(&call->writer, "\n");
        karst_pins_write_trim(call, &holes.pins);
        karst_call_write_caution(call);
    }
    karst_holes_close(&holes);
    return true;
}

static const struct karst_verb_option pins_options[] = {
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show so many pins (10)", NULL},
    [OPTION_ARENA] = {"arena", 'A', KARST_VALUE_ARENA, "ARENA", "of this arena only", NULL},
    {0},
};

const struct karst_verb karst_verb_pins = {
    .name = "pins",
    .group = KARST_GROUP_HOLES,
    .summary = "the few blocks that keep the most free memory apart, or a heap from shrinking",
    .help =
        "First what lies directly under each heap's top: free memory below it can't go back to the system by "
        "shrinking the heap while it is there. For each it says how much would join the top if it went (and "
        "those above it had gone), and how much of that a trim would then give back, whole pages, and what "
        "of those is resident. What would be next under the top follows, as `then`. A cached block pins, "
        "too, until its thread uses it again or ends; memory of "
        "the allocator's own (metadata) can't be freed by the program.\n"
        "\n"
        "Then pins between free memory: a live or cached block, or up to 16 of them, small (at most an "
        "eighth) against what would be one piece without them, by how much would be joined to the larger "
        "side. `before` and `behind` are the free memory on both sides, `joined` is all of it in one piece.\n"
        "\n"
        "Last what a trim (malloc_trim(0)) would return now.",
    .json = "{\"pins\": [...], \"pinned\": {\"pins\", \"bytes\", \"free_bytes\"} (of all between free "
            "memory, shown or not), "
            "\"trim\": {\"bytes\", \"resident_bytes\", \"pieces\", \"top_bytes\"} (what malloc_trim(0) would "
            "return now), \"target\"}.\n\n"
            "A pin has kind, address, last (of the last block in it), size, blocks, state, arena; of kind "
            "top (under a top) also depth (1 is next to it), "
            "top, to_top_bytes, to_system_bytes, resident_bytes, and total_... with those above it; others "
            "taken_bytes, before and after "
            "({\"address\", \"size\"}), joined_bytes, gained_bytes.",
    .options = pins_options,
    .needs = KARST_NEEDS_HEAPS,
    .run = run,
};
