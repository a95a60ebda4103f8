#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "call_site.h"
#include "flight.h"
#include "marker_report.h"
#include "recorded.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_SIZE, OPTION_THREAD, OPTION_LAST, OPTION_ALL, OPTION_STACKS, OPTION_FILES, OPTION_PROCESS };

#define DEFAULT_LAST 30

static const struct karst_verb_argument arguments[] = {
    {"ADDRESS", KARST_VALUE_ADDRESS, false, "only events of blocks that held this address"},
    {0},
};

static const struct karst_verb_option options[] = {
    [OPTION_SIZE] = {"size", 0, KARST_VALUE_RANGE, "RANGE", "only events that asked for so many bytes", NULL},
    [OPTION_THREAD] = {"thread", 't', KARST_VALUE_COUNT, "TID", "only events of this thread", NULL},
    [OPTION_LAST] = {"last", 'n', KARST_VALUE_COUNT, "N", "show the last N events (30)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all events that were kept", NULL},
    [OPTION_STACKS] = {"stacks", 0, KARST_VALUE_FLAG, NULL,
                       "show all frames of each event, where they were kept", NULL},
    [OPTION_FILES] = {"files", 0, KARST_VALUE_FILE, "DIR",
                      "read the recorder's files there, of a process that is gone; no -p or -c then", NULL},
    [OPTION_PROCESS] = {"process", 0, KARST_VALUE_COUNT, "PID", "with --files: of this process", NULL},
    {0},
};

/* What is asked, and the block that holds the address at this point of history. */
struct question {
    const struct karst_value *values; /* of the options; NULL: none */
    const struct karst_flight *flight;
    uint64_t address; /* 0: any */
    uint64_t block;   /* that holds it now; 0: none */
};

static bool covers(const struct karst_flight_event *event, uint64_t address) {
    return event->address && address >= event->address &&
           (address - event->address < event->size || address == event->address);
}

/* In the order of history: a free says no size, so the block is known from when it was handed out. */
static bool concerns_address(struct question *question, const struct karst_flight_event *event) {
    uint64_t address = question->address;
    bool takes = event->kind == KARST_FLIGHT_ALLOCATE || event->kind == KARST_FLIGHT_MOVED;
    uint64_t gives =
        event->kind == KARST_FLIGHT_FREE || event->kind == KARST_FLIGHT_MOVE ? event->address : event->old;
    bool hit = gives && (gives == address || gives == question->block);
    if (hit && event->kind != KARST_FLIGHT_MOVE && !(event->kind == KARST_FLIGHT_MOVED && !event->address)) {
        question->block = 0;
    }
    if (takes && covers(event, address)) {
        question->block = event->address;
        hit = true;
    }
    return hit;
}

static bool matches_options(const struct question *question, const struct karst_flight_event *event) {
    const struct karst_value *values = question->values;
    const struct karst_flight_ring *ring = &question->flight->rings[event->ring];
    bool sized = event->kind == KARST_FLIGHT_ALLOCATE || event->kind == KARST_FLIGHT_MOVED ||
                 event->kind == KARST_FLIGHT_MOVE;
    return (!values[OPTION_SIZE].given || (sized && event->size >= values[OPTION_SIZE].number &&
                                           event->size <= values[OPTION_SIZE].greatest)) &&
           (!values[OPTION_THREAD].given || (uint64_t)ring->header.thread == values[OPTION_THREAD].number);
}

static bool matches(struct question *question, const struct karst_flight_event *event) {
    bool hit = question->address == 0 || concerns_address(question, event);
    if (event->kind == KARST_FLIGHT_MOVE && event->ended) {
        return false; /* its second half tells all */
    }
    return hit && (!question->values || matches_options(question, event));
}

/* The numbers of the last events that match; false: no memory. */
struct selection {
    size_t *numbers; /* a ring of capacity */
    size_t capacity;
    uint64_t matched;
};

static bool select_events(struct question *question, struct selection *selection) {
    const struct karst_value *values = question->values;
    uint64_t wanted = values[OPTION_ALL].given    ? UINT64_MAX
                      : values[OPTION_LAST].given ? values[OPTION_LAST].number
                                                  : DEFAULT_LAST;
    size_t count = question->flight->count;
    selection->capacity = wanted < count ? (size_t)wanted : count;
    selection->numbers = malloc((selection->capacity + 1) * sizeof *selection->numbers);
    if (!selection->numbers) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (matches(question, karst_flight_at(question->flight, i))) {
            if (selection->capacity) {
                selection->numbers[selection->matched % selection->capacity] = i;
            }
            selection->matched++;
        }
    }
    return true;
}

static size_t shown(const struct selection *selection) {
    return selection->matched < selection->capacity ? (size_t)selection->matched : selection->capacity;
}

static size_t selected(const struct selection *selection, size_t index) {
    return selection->matched <= selection->capacity
               ? selection->numbers[index]
               : selection->numbers[(selection->matched + index) % selection->capacity];
}

static const char *event_name(const struct karst_flight_event *event) {
    static const char *const names[] = {"alloc", "free", "realloc", "realloc", "realloc"};
    return event->kind < sizeof names / sizeof *names ? names[event->kind] : "?";
}

/* ---- text ------------------------------------------------------------------------------------------ */

static struct karst_text clock_text(uint64_t nanoseconds) {
    struct karst_text text = {""};
    time_t seconds = (time_t)(nanoseconds / 1000000000u);
    struct tm parts;
    char clock[16] = "?";
    if (localtime_r(&seconds, &parts)) {
        strftime(clock, sizeof clock, "%H:%M:%S", &parts);
    }
    snprintf(text.text, sizeof text.text, "%s.%06u", clock, (unsigned)(nanoseconds % 1000000000u / 1000));
    return text;
}

static void add_address(struct karst_table *table, uint64_t address) {
    if (address) {
        karst_table_address(table, address);
    } else {
        karst_table_empty(table);
    }
}

/* What an event gave, or why it gave nothing. */
static void add_result(struct karst_table *table, const struct karst_flight_event *event) {
    if (event->kind == KARST_FLIGHT_MOVE) {
        karst_table_text(table, KARST_STYLE_WARNING, "did not return");
    } else if (event->kind == KARST_FLIGHT_RELEASED) {
        karst_table_text(table, KARST_STYLE_PLAIN, "freed");
    } else if (event->kind == KARST_FLIGHT_FREE) {
        karst_table_empty(table);
    } else if (event->address == 0) {
        karst_table_text(table, KARST_STYLE_WARNING, "failed");
    } else {
        karst_table_address(table, event->address);
    }
}

static void add_row(struct karst_call *call, struct karst_table *table, const struct karst_flight *flight,
                    const struct karst_flight_event *event) {
    const struct karst_marker *marker = karst_session_marker(call->session);
    bool gives = event->kind == KARST_FLIGHT_FREE || event->kind == KARST_FLIGHT_MOVE;
    char site[400];
    karst_site_summary(marker, call->session, event->site, KARST_SYMBOL_READABLE, site, sizeof site);
    karst_table_text(table, KARST_STYLE_DIM, "%s", clock_text(karst_flight_time(flight, event)).text);
    karst_table_text(table, KARST_STYLE_PLAIN, "%" PRId32, flight->rings[event->ring].header.thread);
    karst_table_text(table, KARST_STYLE_PLAIN, "%s", event_name(event));
    if (event->kind == KARST_FLIGHT_FREE || event->kind == KARST_FLIGHT_RELEASED) {
        karst_table_empty(table);
    } else {
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", karst_count_text(event->size).text);
    }
    add_address(table, gives ? event->address : event->old);
    add_result(table, event);
    karst_table_text(table, KARST_STYLE_SYMBOL, "%s", site);
    call->last_address = event->address ? event->address : event->old;
}

static void write_losses(struct karst_call *call, const struct karst_flight *flight) {
    struct karst_writer *writer = &call->writer;
    for (size_t i = 0; i < flight->ring_count; i++) {
        const struct karst_flight_ring *ring = &flight->rings[i];
        if (ring->overwritten) {
            karst_print(writer, "thread %" PRId32 " (%s): about %s older events were overwritten\n",
                        ring->header.thread, ring->header.name, karst_count_text(ring->overwritten).text);
        }
    }
    if (flight->disorder) {
        karst_print(
            writer,
            "%s event%s contradict%s what was recorded of %s block before: some of history is missing\n",
            karst_count_text(flight->disorder).text, karst_plural(flight->disorder),
            flight->disorder == 1 ? "s" : "", flight->disorder == 1 ? "its" : "their");
    }
}

static void write_text(struct karst_call *call, const struct karst_flight *flight,
                       const struct selection *selection) {
    static const struct karst_column columns[] = {{"time", KARST_LEFT | KARST_SPARE},
                                                  {"thread", KARST_RIGHT | KARST_NEED_8},
                                                  {"event", KARST_LEFT},
                                                  {"size", KARST_RIGHT | KARST_NEED_7},
                                                  {"block", KARST_LEFT},
                                                  {"gave", KARST_LEFT},
                                                  {"site", KARST_FLEXIBLE | KARST_NEED_6}};
    struct karst_writer *writer = &call->writer;
    struct karst_table *table = karst_table_open(writer, columns, 7);
    for (size_t i = 0; i < shown(selection); i++) {
        const struct karst_flight_event *event = karst_flight_at(flight, selected(selection, i));
        add_row(call, table, flight, event);
        if (call->options[OPTION_STACKS].given) {
            karst_table_flush(table);
            karst_site_write_stack(call, event->site);
        } else if (i % 1000 == 999) {
            karst_table_flush(table);
        }
    }
    karst_table_close(table);
    karst_print(writer, "%s of %s event%s shown; %s thread%s kept %s\n",
                karst_count_text(shown(selection)).text, karst_count_text(selection->matched).text,
                karst_plural(selection->matched), karst_count_text(flight->ring_count).text,
                karst_plural(flight->ring_count), karst_count_text(flight->count).text);
    write_losses(call, flight);
}

/* ---- JSON ------------------------------------------------------------------------------------------ */

static json_t *event_json(struct karst_call *call, const struct karst_flight *flight, size_t number) {
    struct karst_writer *writer = &call->writer;
    const struct karst_flight_event *event = karst_flight_at(flight, number);
    bool gives = event->kind == KARST_FLIGHT_FREE || event->kind == KARST_FLIGHT_MOVE;
    bool sized = event->kind != KARST_FLIGHT_FREE && event->kind != KARST_FLIGHT_RELEASED;
    uint64_t block = gives ? event->address : event->old, gave = gives ? 0 : event->address;
    json_t *one = karst_json_object(writer);
    karst_json_set_number(writer, one, "number", number);
    karst_json_set_number(writer, one, "time_ns", karst_flight_time(flight, event));
    karst_json_set_number(writer, one, "thread", (uint64_t)flight->rings[event->ring].header.thread);
    karst_json_set_text(writer, one, "event", event_name(event));
    if (sized) {
        karst_json_set_number(writer, one, "size", event->size);
    } else {
        karst_json_set(writer, one, "size", json_null());
    }
    karst_json_set_known_address(writer, one, "block", block);
    karst_json_set_known_address(writer, one, "gave", gave);
    karst_json_set(writer, one, "stack", karst_site_stack_json(call, event->site));
    return one;
}

static void write_json(struct karst_call *call, const struct karst_flight *flight,
                       const struct selection *selection) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *events = karst_json_array(writer),
           *threads = karst_json_array(writer);
    for (size_t i = 0; i < shown(selection); i++) {
        karst_json_append(writer, events, event_json(call, flight, selected(selection, i)));
    }
    for (size_t i = 0; i < flight->ring_count; i++) {
        const struct karst_flight_ring *ring = &flight->rings[i];
        json_t *one = karst_json_object(writer);
        karst_json_set_number(writer, one, "thread", (uint64_t)ring->header.thread);
        karst_json_set_text(writer, one, "name", ring->header.name);
        karst_json_set_number(writer, one, "events", ring->count);
        karst_json_set_number(writer, one, "overwritten", ring->overwritten);
        karst_json_set_text(writer, one, "file", ring->file);
        karst_json_append(writer, threads, one);
    }
    karst_json_set(writer, root, "events", events);
    karst_json_set_number(writer, root, "shown", shown(selection));
    karst_json_set_number(writer, root, "matched", selection->matched);
    karst_json_set_number(writer, root, "kept", flight->count);
    karst_json_set_number(writer, root, "disorder", flight->disorder);
    karst_json_set(writer, root, "threads", threads);
    karst_call_write_json(call, root);
}

/* ---- reading --------------------------------------------------------------------------------------- */

static bool read_flight(struct karst_call *call, struct karst_flight *flight) {
    struct karst *session = call->session;
    size_t files = karst_recorded_count(session->target);
    for (size_t i = 0; i < files; i++) {
        if (!karst_flight_read_file(karst_recorded_file(session->target, i), flight, call->error)) {
            return false;
        }
    }
    if (files) {
        return karst_flight_merge(flight, call->error);
    }
    if (call->options[OPTION_FILES].given) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--files is of the command line, without -p or -c");
    }
    struct karst_marker *marker = karst_session_marker(session);
    if (!marker || !marker->control.rings) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND,
                          "%s: the past is kept if the program was started with `karst run --recorder`",
                          marker ? "nothing was recorded in this target"
                                 : "the preload library is not in this target");
    }
    return karst_flight_read(session, marker, flight, call->error) && karst_flight_merge(flight, call->error);
}

static bool run(struct karst_call *call) {
    struct karst_flight flight = {0};
    struct selection selection = {0};
    struct question question = {
        .values = call->options, .flight = &flight, .address = call->arguments[0].number};
    bool done = read_flight(call, &flight);
    if (done && !select_events(&question, &selection)) {
        done = karst_fail_memory(call->error);
    }
    if (done && call->json) {
        write_json(call, &flight, &selection);
    } else if (done) {
        write_text(call, &flight, &selection);
    }
    free(selection.numbers);
    karst_flight_clear(&flight);
    return done;
}

bool karst_history_describe(struct karst *session, uint64_t address, struct karst_facts *facts,
                            struct karst_error *error) {
    struct karst_marker *marker = karst_session_marker(session);
    struct karst_flight flight = {0};
    struct question question = {.flight = &flight, .address = address};
    const struct karst_flight_event *last = NULL;
    uint64_t matched = 0;
    if (!marker || !marker->control.rings) {
        return true;
    }
    struct karst_error own = {0};
    bool done = karst_flight_read(session, marker, &flight, &own) && karst_flight_merge(&flight, &own);
    if (!done && own.code == KARST_ERROR_FORMAT) {
        karst_flight_clear(&flight); /* what is known of the block is told all the same; `history` says why */
        return true;
    }
    if (!done && error) {
        *error = own;
    }
    for (size_t i = 0; done && i < flight.count; i++) {
        const struct karst_flight_event *event = karst_flight_at(&flight, i);
        if (matches(&question, event)) {
            last = event;
            matched++;
        }
    }
    if (last) {
        char site[400];
        karst_site_summary(marker, session, last->site, KARST_SYMBOL_READABLE, site, sizeof site);
        done = karst_facts_add(facts, "history", 0,
                               "%s event%s kept, see `history`; the last: %s by thread %" PRId32 " at %s",
                               karst_count_text(matched).text, karst_plural(matched), event_name(last),
                               flight.rings[last->ring].header.thread, site) ||
               karst_fail_memory(error);
    }
    karst_flight_clear(&flight);
    return done;
}

const struct karst_verb karst_verb_history = {
    .name = "history",
    .group = KARST_GROUP_BLOCKS,
    .summary = "what the flight recorder kept: allocations and frees, of an address, a size, a thread",
    .help = "In a program started with `karst run --recorder` each thread keeps its last events: what was "
            "asked for, what "
            "was given, what was given back, where and when. This lists them, all threads in one order, the "
            "newest at "
            "the end: of the blocks that held ADDRESS, of a size, of a thread, or all.\n"
            "\n"
            "It works in a live process, in a core, and with --files after the process was killed, if it was "
            "started "
            "with --recorder-dir. What was overwritten since is told under the list.",
    .json = "{\"events\": [{\"number\" (place in the order of all), \"time_ns\" (since 1970), \"thread\", "
            "\"event\" "
            "(alloc, free, realloc), \"size\" (asked for; null for frees), \"block\" (given back or handed "
            "to realloc, or "
            "null), \"gave\" (or null), \"stack\": [{\"address\", \"text\", \"demangled\"}]}], \"shown\", "
            "\"matched\", "
            "\"kept\", "
            "\"disorder\", \"threads\": [{\"thread\", \"name\", \"events\", \"overwritten\", \"file\"}], "
            "\"target\"}.",
    .arguments = arguments,
    .options = options,
    .needs = KARST_NEEDS_MEMORY,
    .run = run,
};
