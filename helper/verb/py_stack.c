#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cpython.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_LOCALS, OPTION_THREAD, OPTION_LIMIT, OPTION_ALL };

#define DEFAULT_LIMIT 100

static const struct karst_verb_option options[] = {
    [OPTION_LOCALS] = {"locals", 'l', KARST_VALUE_FLAG, NULL, "the local variables of each frame, too", NULL},
    [OPTION_THREAD] = {"thread", 't', KARST_VALUE_COUNT, "TID", "only this thread", NULL},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show the N newest frames of each thread (100)",
                      NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all frames", NULL},
    {0},
};

/* The frames of one thread on their way out. */
struct listing {
    struct karst_call *call;
    struct cpython *python;
    uint64_t limit, shown, count;
    json_t *frames; /* NULL: as text */
    json_t *locals; /* of the frame under way */
};

/* ---- locals ------------------------------------------------------------------------------------------- */

static bool write_local(void *context, const struct cpython_local *local) {
    struct listing *listing = context;
    struct karst_writer *writer = &listing->call->writer;
    const struct cpython_type *type = cpython_type_of(listing->python, local->value);
    char value[220] = "";
    cpython_value(listing->python, local->value, value, sizeof value);
    if (listing->frames) {
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "name", local->name);
        karst_json_set_text(writer, one, "type", type ? type->name : NULL);
        karst_json_set_known_address(writer, one, "address", local->value);
        karst_json_set_text(writer, one, "value", *value ? value : NULL);
        karst_json_append(writer, listing->locals, one);
        return !writer->closed;
    }
    karst_print(writer, "      %s: ", local->name);
    if (local->value == 0) {
        karst_print_styled(writer, KARST_STYLE_DIM, "unbound\n");
        return !writer->closed;
    }
    karst_print(writer, "%s", type ? type->name : "no object");
    if (*value) {
        karst_print(writer, type && type->flags & (CPYTHON_TYPE_TYPE) ? " %s" : " = %s", value);
    }
    karst_print(writer, " at ");
    karst_print_address(writer, local->value);
    karst_print(writer, "\n");
    return !writer->closed;
}

/* ---- frames ------------------------------------------------------------------------------------------- */

static void write_frame(struct listing *listing, const struct cpython_frame *frame) {
    struct karst_writer *writer = &listing->call->writer;
    karst_print_styled(writer, KARST_STYLE_DIM, "  #%-3" PRIu64, listing->shown);
    karst_print_styled(writer, KARST_STYLE_SYMBOL, " %s", *frame->function ? frame->function : "?");
    karst_print(writer, " at ");
    karst_print_styled(writer, KARST_STYLE_FILE, "%s", *frame->file ? frame->file : "?");
    if (frame->line > 0) {
        karst_print(writer, ":%" PRId64, frame->line);
    }
    karst_print(writer, "\n");
    if (listing->call->options[OPTION_LOCALS].given) {
        cpython_each_local(listing->python, frame, write_local, listing);
    }
}

static void add_frame(struct listing *listing, const struct cpython_frame *frame) {
    struct karst_writer *writer = &listing->call->writer;
    json_t *one = karst_json_object(writer);
    karst_json_set_text(writer, one, "function", frame->function);
    karst_json_set_text(writer, one, "file", frame->file);
    karst_json_set(writer, one, "line", frame->line > 0 ? json_integer(frame->line) : json_null());
    karst_json_set_address(writer, one, "frame", frame->address);
    karst_json_set_address(writer, one, "code", frame->code);
    karst_json_set_flag(writer, one, "from_c", frame->entry);
    if (listing->call->options[OPTION_LOCALS].given) {
        listing->locals = karst_json_array(writer);
        cpython_each_local(listing->python, frame, write_local, listing);
        karst_json_set(writer, one, "locals", listing->locals);
    }
    karst_json_append(writer, listing->frames, one);
}

static bool take_frame(void *context, const struct cpython_frame *frame) {
    struct listing *listing = context;
    listing->count++;
    if (listing->shown < listing->limit) {
        if (listing->frames) {
            add_frame(listing, frame);
        } else {
            write_frame(listing, frame);
        }
        listing->shown++;
    }
    return !listing->call->writer.closed;
}

static struct listing list(struct karst_call *call, struct cpython *python) {
    const struct karst_value *limit = &call->options[OPTION_LIMIT];
    return (struct listing){
        .call = call,
        .python = python,
        .limit = call->options[OPTION_ALL].given ? UINT64_MAX
                 : limit->given                  ? limit->number
                                                 : DEFAULT_LIMIT,
    };
}

/* ---- threads ------------------------------------------------------------------------------------------ */

static void write_thread(struct karst_call *call, struct cpython *python,
                         const struct cpython_thread *thread) {
    struct karst_writer *writer = &call->writer;
    struct listing listing = list(call, python);
    bool damaged = false;
    karst_print(writer, "\n");
    karst_print_styled(writer, KARST_STYLE_TITLE, "thread %" PRId64, thread->tid);
    if (thread->thread && thread->thread->name[0]) {
        karst_print(writer, " (%.16s)", thread->thread->name);
    }
    if (thread->interpreter_id) {
        karst_print(writer, ", interpreter %" PRId64, thread->interpreter_id);
    }
    if (!thread->thread) {
        karst_print(writer, ", not among the threads of the process");
    }
    karst_print(writer, "%s\n", thread->holds_gil ? ", holds the GIL" : "");
    if (thread->frame) {
        cpython_each_frame(python, thread, take_frame, &listing, &damaged);
    }
    if (listing.count > listing.shown) {
        uint64_t older = listing.count - listing.shown;
        karst_print(writer, "  %s older frame%s not shown; --all shows all\n", karst_count_text(older).text,
                    older == 1 ? " is" : "s are");
    }
    if (damaged) {
        karst_print_styled(writer, KARST_STYLE_WARNING, "  the stack is damaged here: no frame follows\n");
    } else if (listing.count == 0) {
        karst_print_styled(writer, KARST_STYLE_DIM, "  runs no Python code\n");
    }
}

static json_t *thread_json(struct karst_call *call, struct cpython *python,
                           const struct cpython_thread *thread) {
    struct karst_writer *writer = &call->writer;
    struct listing listing = list(call, python);
    bool damaged = false;
    json_t *one = karst_json_object(writer);
    listing.frames = karst_json_array(writer);
    if (thread->frame) {
        cpython_each_frame(python, thread, take_frame, &listing, &damaged);
    }
    karst_json_set(writer, one, "tid", thread->tid ? json_integer(thread->tid) : json_null());
    karst_json_set_text(writer, one, "name", thread->thread ? thread->thread->name : NULL);
    karst_json_set(writer, one, "interpreter", json_integer(thread->interpreter_id));
    karst_json_set_address(writer, one, "state", thread->state);
    karst_json_set_flag(writer, one, "holds_gil", thread->holds_gil);
    karst_json_set(writer, one, "frames", listing.frames);
    karst_json_set_number(writer, one, "frame_count", listing.count);
    karst_json_set_flag(writer, one, "damaged", damaged);
    return one;
}

static bool is_wanted(const struct karst_call *call, const struct cpython_thread *thread) {
    const struct karst_value *tid = &call->options[OPTION_THREAD];
    return !tid->given || thread->tid == (int64_t)tid->number;
}

/* ---- runtimes ----------------------------------------------------------------------------------------- */

static json_t *runtime_json(struct karst_call *call, struct cpython *python,
                            const struct cpython_threads *threads) {
    struct karst_writer *writer = &call->writer;
    json_t *one = karst_json_object(writer), *list_json = karst_json_array(writer);
    karst_json_set_text(writer, one, "version", python->version);
    karst_json_set_text(writer, one, "module", python->module->path);
    karst_json_set_flag(writer, one, "version_known", python->layout_known);
    karst_json_set_address(writer, one, "address", python->runtime);
    karst_json_set_number(writer, one, "interpreters", python->interpreter_count);
    for (size_t i = 0; i < threads->count; i++) {
        if (is_wanted(call, &threads->items[i])) {
            karst_json_append(writer, list_json, thread_json(call, python, &threads->items[i]));
        }
    }
    karst_json_set(writer, one, "threads", list_json);
    karst_json_set_flag(writer, one, "damaged", threads->damaged);
    return one;
}

static void write_runtime(struct karst_call *call, struct cpython *python,
                          const struct cpython_threads *threads) {
    struct karst_writer *writer = &call->writer;
    karst_print_title(writer, "CPython %s in %s, %zu thread%s", python->version, call->session->target->name,
                      threads->count, karst_plural(threads->count));
    if (!python->layout_known) {
        karst_print_styled(writer, KARST_STYLE_WARNING,
                           "this version is not known: read by what it says of itself, and as 3.%d\n",
                           CPYTHON_LAST);
    }
    for (size_t i = 0; i < threads->count; i++) {
        if (is_wanted(call, &threads->items[i])) {
            write_thread(call, python, &threads->items[i]);
        }
    }
    if (threads->damaged) {
        karst_print_styled(writer, KARST_STYLE_WARNING,
                           "\nthe list of threads is damaged: there may be more\n");
    }
}

/* One of the runtimes: *matched counts threads. */
static bool run_one(struct karst_call *call, struct cpython *python, json_t *runtimes, size_t *matched) {
    struct cpython_threads threads;
    if (!cpython_list_threads(python, &threads, call->error)) {
        return false;
    }
    size_t wanted = 0;
    for (size_t i = 0; i < threads.count; i++) {
        wanted += is_wanted(call, &threads.items[i]);
    }
    *matched += wanted;
    if (runtimes) {
        karst_json_append(&call->writer, runtimes, runtime_json(call, python, &threads));
    } else if (wanted) {
        write_runtime(call, python, &threads);
    }
    cpython_threads_clear(&threads);
    return true;
}

static bool run(struct karst_call *call) {
    struct cpython_set *set = cpython_need(call->session, call->error);
    if (!set) {
        return false;
    }
    json_t *root = call->json ? karst_json_object(&call->writer) : NULL;
    json_t *runtimes = call->json ? karst_json_array(&call->writer) : NULL;
    size_t matched = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (!run_one(call, &set->items[i], runtimes, &matched)) {
            json_decref(root);
            json_decref(runtimes);
            return false;
        }
    }
    if (root) {
        karst_json_set(&call->writer, root, "runtimes", runtimes);
        karst_call_write_json(call, root);
    }
    if (matched == 0 && call->options[OPTION_THREAD].given) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND,
                          "no Python thread %s; without --thread all of them are shown",
                          call->options[OPTION_THREAD].text);
    }
    return true;
}

const struct karst_verb karst_verb_py_stack = {
    .name = "py-stack",
    .group = KARST_GROUP_PYTHON,
    .summary = "the Python stack of every thread: function, file, line",
    .help =
        "Reads the interpreter's own frames, the newest first: nothing runs in the process, no debug symbols "
        "are needed, and a core will do. CPython 3.9 to 3.15; of a newer one as far as it describes itself.\n"
        "\n"
        "--locals adds the local variables with their types, short values and addresses, which `karst block` "
        "tells more of. A function that a cell holds for another (a closure's variable) is shown as what is "
        "in "
        "the cell.\n"
        "\n"
        "Frames are those that traceback.print_stack() shows in the thread itself.",
    .json =
        "{\"runtimes\": [{\"version\", \"module\", \"version_known\", \"address\" (of _PyRuntime), "
        "\"interpreters\", "
        "\"threads\", "
        "\"damaged\" (the list of threads)}], \"target\"}. Each of threads: {\"tid\" (or null), \"name\", "
        "\"interpreter\", \"state\" (address of its PyThreadState), \"holds_gil\", \"frames\", "
        "\"frame_count\", "
        "\"damaged\"}; each of frames, the newest first: {\"function\", \"file\", \"line\" (or null), "
        "\"frame\", "
        "\"code\" (addresses), \"from_c\" (called by C code: it begins a new C frame of the interpreter), "
        "\"locals\": [{\"name\", \"type\", \"address\", \"value\"}] with --locals}.",
    .options = options,
    .needs = KARST_NEEDS_MEMORY,
    .run = run,
};
