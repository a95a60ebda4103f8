#include <inttypes.h>
#include <string.h>

#include "content.h"
#include "facts_report.h"
#include "marker_report.h"
#include "verb.h"
#include "verbs.h"

static void write_facts(struct karst_writer *writer, const struct karst_facts *facts) {
    for (size_t i = 0; i < facts->count; i++) {
        const struct karst_fact *fact = &facts->items[i];
        karst_print(writer, "  %-16s", fact->name);
        size_t column = 2 + (strlen(fact->name) > 16 ? strlen(fact->name) : 16);
        karst_print(writer, "  ");
        column += 2;
        if (fact->address) {
            karst_print_address(writer, fact->address);
            karst_print(writer, " ");
            column += 15;
        }
        karst_print_wrapped(writer, column, 20, fact->text);
    }
}

static void write_target(struct karst_writer *writer, const struct karst_target *target) {
    karst_print_title(writer, "%s", target->name);
    if (target->executable) {
        karst_print(writer, "  %-16s  %s\n", "executable", target->executable);
    }
    if (target->signal) {
        karst_print(writer, "  %-16s  %d (%s)\n", "signal", target->signal, strsignal(target->signal));
    }
    karst_print(writer, "  %-16s  %zu\n", "threads", target->thread_count);
    karst_print(writer, "  %-16s  %s\n", "stopped",
                target->stopped ? "yes: nothing changes while it is read"
                                : "no: it runs on while it is read, what is told may be torn");
    if (target->missing_memory) {
        karst_print(writer, "  %-16s  %s\n", "memory", "parts are missing: totals may be low");
    }
}

/* What went wrong with a module's file; NULL: nothing, or nobody looked. */
static const char *module_problem(const struct karst_module *module) {
    if (!module->file_checked || module->file_matches) {
        return NULL;
    }
    return "the file is not there, or of another build: no symbols from it";
}

static void write_modules(struct karst_writer *writer, const struct karst_target *target) {
    karst_print(writer, "  %-16s  %zu\n", "modules", target->module_count);
    for (size_t i = 0; i < target->module_count; i++) {
        const char *problem = module_problem(&target->modules[i]);
        if (problem) {
            karst_print(writer, "  %-16s  ", "");
            karst_print_styled(writer, KARST_STYLE_FILE, "%s", target->modules[i].path);
            karst_print(writer, ": %s\n", problem);
        }
    }
}

static void write_heap(struct karst_writer *writer, const struct karst_heap *heap) {
    karst_print(writer, "\n");
    karst_print_title(writer, "%s %s", heap->name, heap->version);
    karst_print(writer, "  %-16s  %zu\n", "arenas", heap->arena_count);
    karst_print(writer, "  %-16s  %zu\n", "extents", heap->extent_count);
    write_facts(writer, &heap->facts);
    if (heap->in_flux) {
        karst_print(writer, "  %-16s  ", "in flux");
        karst_print_wrapped(writer, 20, 20,
                            "somebody was inside the allocator, or the target runs: a block or a list may "
                            "stand between two states");
    }
}

static json_t *heap_json(struct karst_writer *writer, const struct karst_heap *heap) {
    json_t *root = karst_json_object(writer);
    karst_json_set_text(writer, root, "name", heap->name);
    karst_json_set_text(writer, root, "allocator", heap->allocator->name);
    karst_json_set_text(writer, root, "version", heap->version);
    karst_json_set_number(writer, root, "arenas", heap->arena_count);
    karst_json_set_number(writer, root, "bins", heap->bin_count);
    karst_json_set_number(writer, root, "extents", heap->extent_count);
    karst_json_set_flag(writer, root, "in_flux", heap->in_flux);
    karst_json_set(writer, root, "facts", karst_facts_json(writer, &heap->facts));
    return root;
}

static json_t *modules_json(struct karst_writer *writer, const struct karst_target *target) {
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < target->module_count; i++) {
        const struct karst_module *module = &target->modules[i];
        char build_id[2 * sizeof module->build_id + 1] = "";
        for (size_t k = 0; k < module->build_id_size; k++) {
            static const char digits[] = "0123456789abcdef";
            build_id[2 * k] = digits[module->build_id[k] >> 4];
            build_id[2 * k + 1] = digits[module->build_id[k] & 15];
        }
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "path", module->path);
        karst_json_set_address(writer, one, "start", module->start);
        karst_json_set_text(writer, one, "build_id", *build_id ? build_id : NULL);
        karst_json_set_text(writer, one, "problem", module_problem(module));
        karst_json_append(writer, list, one);
    }
    return list;
}

static json_t *answer_json(struct karst_call *call, const struct karst_facts *runtimes) {
    struct karst_writer *writer = &call->writer;
    const struct karst *session = call->session;
    json_t *root = karst_json_object(writer), *heaps = karst_json_array(writer);
    for (size_t i = 0; i < session->heap_count; i++) {
        karst_json_append(writer, heaps, heap_json(writer, session->heaps[i]));
    }
    karst_json_set(writer, root, "allocators", heaps);
    karst_json_set(writer, root, "marker", karst_marker_json(call));
    karst_json_set(writer, root, "runtimes", karst_facts_json(writer, runtimes));
    karst_json_set(writer, root, "modules", modules_json(writer, session->target));
    return root;
}

static void write_text(struct karst_call *call, const struct karst_facts *runtimes) {
    struct karst_writer *writer = &call->writer;
    const struct karst *session = call->session;
    write_target(writer, session->target);
    write_modules(writer, session->target);
    for (size_t i = 0; i < session->heap_count; i++) {
        write_heap(writer, session->heaps[i]);
    }
    if (session->heap_count == 0) {
        karst_print(writer, "\n");
        karst_print_styled(writer, KARST_STYLE_WARNING, "no heap found");
        karst_print(writer, ": no module has what glibc's malloc or jemalloc leaves in its data\n");
    }
    if (runtimes->count) {
        karst_print(writer, "\n");
        karst_print_title(writer, "language runtimes");
        write_facts(writer, runtimes);
    }
    karst_marker_write(call);
}

static bool run(struct karst_call *call) {
    struct karst_facts runtimes = {0};
    bool introduced = karst_introduce_contents(call->session, &runtimes, call->error);
    if (introduced && call->json) {
        karst_call_write_json(call, answer_json(call, &runtimes));
    } else if (introduced) {
        write_text(call, &runtimes);
    }
    karst_facts_clear(&runtimes);
    return introduced;
}

const struct karst_verb karst_verb_info = {
    .name = "info",
    .group = KARST_GROUP_OVERVIEW,
    .summary = "what was found: allocators, versions, where that is known from, what can't be told",
    .help = "Tells what the target is and whether it stands still, which modules' files are missing or of "
            "another build, and for each allocator its version, how its roots and layouts were found "
            "(debug info, symbols, a table by version, a search by structure), and what can't be told.\n"
            "\n"
            "Read it when an answer surprises you.",
    .json =
        "{\"allocators\": [{\"name\", \"allocator\", \"version\", \"arenas\", \"bins\", \"extents\", "
        "\"in_flux\", "
        "\"facts\": [{\"name\", \"address\", \"text\"}]}], \"runtimes\" (of languages: CPython; as facts), "
        "\"modules\": [{\"path\", \"start\", "
        "\"build_id\", \"problem\"}], \"marker\" (what the preload library left, null: nothing: "
        "{\"address\", "
        "\"version\", \"allocator\", \"allocator_version\", \"allocator_path\", \"roots\" (addresses by "
        "name), "
        "\"marks\", \"all_marked\", "
        "\"recorder\", \"recorder_bytes\", \"recorder_directory\", \"stacks\", \"traps\": [{\"number\", "
        "\"text\", \"state\", \"hits\", \"fired\"}]}), \"target\"}.\n"
        "\n"
        "Every verb's JSON has target: {\"kind\" (core, process or callbacks), \"name\", \"pid\", "
        "\"executable\", \"signal\", \"threads\", \"stopped\", \"missing_memory\", \"remarks\"}.",
    .needs = KARST_NEEDS_TARGET,
    .run = run,
};
