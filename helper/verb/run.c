#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "verb.h"

#define ANSWERED     0
#define FOUND        1
#define NOT_ANSWERED 2

/* Words that are no verbs, and what is. */
static const char *const elsewhere[][2] = {
    {"trap", "traps are set by `karst run --trap SPEC COMMAND`, or in GDB by `karst trap add SPEC`"},
    {"inject", "the library is put into a process in GDB, by `karst inject`"},
    {"run", "`run` begins: `karst run [OPTIONS] COMMAND` starts a target of its own"},
    {"help", "`karst --help` lists the verbs, `karst VERB --help` tells more of one"},
};

const struct karst_verb *karst_verb_find(const char *name, struct karst_error *error) {
    struct karst_nearest nearest = {.word = name};
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++) {
        if (strcmp(elsewhere[i][0], name) == 0) {
            karst_fail(error, KARST_ERROR_USAGE, "%s", elsewhere[i][1]);
            return NULL;
        }
        karst_nearest_offer(&nearest, elsewhere[i][0]);
    }
    for (size_t i = 0; karst_verbs[i]; i++) {
        if (strcmp(karst_verbs[i]->name, name) == 0) {
            return karst_verbs[i];
        }
        karst_nearest_offer(&nearest, karst_verbs[i]->name);
    }
    if (nearest.nearest) {
        karst_fail(error, KARST_ERROR_USAGE, "no verb '%s'; did you mean %s?", name, nearest.nearest);
    } else {
        karst_fail(error, KARST_ERROR_USAGE, "no verb '%s'; the verbs are listed by --help", name);
    }
    return NULL;
}

static bool meet_needs(struct karst_call *call) {
    struct karst *session = call->session;
    switch (call->verb->needs) {
    case KARST_NEEDS_PROCESS:
    case KARST_NEEDS_MEMORY:
        return true;
    case KARST_NEEDS_TARGET:
        return karst_session_find_heaps(session, call->error);
    case KARST_NEEDS_HEAPS:
        return karst_session_need_heaps(session, call->error);
    default:
        return karst_session_need_heaps(session, call->error) &&
               karst_session_load_bins(session, call->error);
    }
}

static bool answer(struct karst_call *call, int argc, const char *const *argv) {
    if (!karst_call_parse(call, argc, argv)) {
        return false;
    }
    if (call->help) {
        karst_verb_write_help(call->verb, "karst ", &call->writer);
        return true;
    }
    if (!call->session) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND, "%s needs a target", call->verb->name);
    }
    return karst_target_is_whole(call->session->target, call->error) && meet_needs(call) &&
           call->verb->run(call);
}

int karst_run(struct karst *session, int argc, const char *const *argv, const struct karst_output *output,
              uint64_t *last_address, struct karst_error *error) {
    struct karst_error own = {0};
    if (last_address) {
        *last_address = 0;
    }
    const struct karst_verb *verb = karst_verb_find(argc > 0 ? argv[0] : "", &own);
    struct karst_call *call = verb ? calloc(1, sizeof *call) : NULL;
    int status = NOT_ANSWERED;
    if (call) {
        *call = (struct karst_call){.session = session, .verb = verb, .error = &own};
        karst_writer_open(&call->writer, output, false);
        bool answered = answer(call, argc, argv);
        answered = (!session || karst_target_is_whole(session->target, &own)) && answered;
        struct karst_error at_end = {0};
        if (!karst_writer_finish(&call->writer, &at_end) && answered) {
            own = at_end;
            answered = false;
        }
        status = !answered ? NOT_ANSWERED : call->found_something ? FOUND : ANSWERED;
        if (last_address) {
            *last_address = call->last_address;
        }
        free(call);
    } else if (verb) {
        karst_fail_memory(&own);
    }
    if (error) {
        *error = own;
    }
    return status;
}
