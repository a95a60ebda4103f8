/* Verbs: what can be asked of a session. One file a verb, each with the table from which its arguments are
 * parsed and its help is made; the table of all of them is in verbs.c. */
#ifndef KARST_VERB_VERB_H
#define KARST_VERB_VERB_H

#include "nearest.h"
#include "session.h"
#include "writer.h"

enum karst_value_kind {
    KARST_VALUE_FLAG,    /* an option without a value */
    KARST_VALUE_COUNT,   /* 20, 1,000 */
    KARST_VALUE_SIZE,    /* 4096, 0x1000, 64K, 8M, 1G */
    KARST_VALUE_RANGE,   /* a size, MIN:MAX, MIN: or :MAX; both ends are meant */
    KARST_VALUE_ADDRESS, /* 0x7f..., or decimal */
    KARST_VALUE_ARENA,   /* name, index or address of an arena, see karst_arena_matches() */
    KARST_VALUE_BIN,     /* name or kind of a bin, see karst_bin_matches() */
    KARST_VALUE_STATE,   /* live, free, ... */
    KARST_VALUE_FILE,    /* path of a file */
    KARST_VALUE_TEXT,    /* one of the words in choices, or anything if that is NULL */
    KARST_VALUE_KINDS
};

struct karst_verb_argument {
    const char *name; /* "ADDRESS"; NULL ends the table */
    enum karst_value_kind kind;
    bool required;
    const char *help; /* one line */
};

struct karst_verb_option {
    const char *name; /* "limit"; NULL ends the table */
    char letter;      /* 'n', or 0; p, c, e, h, j and b are taken */
    enum karst_value_kind kind;
    const char *value;   /* what stands for its value in help: "N"; NULL for flags */
    const char *help;    /* one line */
    const char *choices; /* for KARST_VALUE_TEXT: "address|size"; NULL: any text */
};

/* A value as parsed. */
struct karst_value {
    bool given;
    const char *text;  /* as typed; NULL unless given */
    uint64_t number;   /* counts, sizes, addresses, the state; a range's smallest */
    uint64_t greatest; /* of a range */
};

#define KARST_ARGUMENTS_MAX 4
#define KARST_OPTIONS_MAX   24

/* One verb under way. */
struct karst_call {
    struct karst *session;
    const struct karst_verb *verb;
    struct karst_value arguments[KARST_ARGUMENTS_MAX]; /* in the order of the verb's table */
    struct karst_value options[KARST_OPTIONS_MAX];     /* in the order of the verb's table */
    bool json;
    bool help;
    bool found_something;  /* set by `check`: exit status 1 */
    uint64_t last_address; /* set by whoever shows a block */
    struct karst_writer writer;
    struct karst_error *error;
};

enum karst_needs {
    KARST_NEEDS_MEMORY, /* no heaps are looked for */
    KARST_NEEDS_TARGET, /* heaps are looked for, but there may be none */
    KARST_NEEDS_HEAPS,  /* at least one heap */
    KARST_NEEDS_BINS,   /* and the bins' counts; free blocks then carry their bin */
    KARST_NEEDS_PROCESS /* a live process, whether its memory may be read or not; no heaps are looked for */
};

enum karst_verb_group {
    KARST_GROUP_OVERVIEW,
    KARST_GROUP_BLOCKS,
    KARST_GROUP_HOLES,
    KARST_GROUP_DAMAGE,
    KARST_GROUP_PYTHON,
    KARST_GROUPS
};

struct karst_verb {
    const char *name;
    enum karst_verb_group group;
    const char *summary; /* one line, no full stop */
    const char *help;    /* paragraphs, an empty line between them; lines are broken when shown */
    const char *json;    /* the keys of its JSON, paragraphs; NULL: nothing to say */
    const struct karst_verb_argument *arguments; /* may be NULL */
    const struct karst_verb_option *options;     /* may be NULL */
    enum karst_needs needs;
    /* Answers to call->writer: JSON if call->json, else text. False: not answered, call->error says why. */
    bool (*run)(struct karst_call *call);
};

/* All verbs, in the order of help; NULL at the end. */
extern const struct karst_verb *const karst_verbs[];
/* The options every verb has: --json, --bytes, --help. */
extern const struct karst_verb_option karst_common_options[];

/* By name; NULL with an error that names the nearest one. */
const struct karst_verb *karst_verb_find(const char *name, struct karst_error *error);
/* The help of one verb, and the list of all. program: what stands before the verb, "karst ". */
void karst_verb_write_help(const struct karst_verb *verb, const char *program, struct karst_writer *writer);
void karst_verb_write_list(struct karst_writer *writer);

/* ---- for run functions -------------------------------------------------------------------------- */

/* Adds "target" to root (an object), writes it and lets it go. */
void karst_call_write_json(struct karst_call *call, json_t *root);

/* Whether text (an option's or argument's value) means this arena (KARST_NONE: the blocks with mappings
 * of their own, "mapped"): its name, its index, its address, or name or index behind the heap's,
 * "glibc/main". */
bool karst_arena_matches(const struct karst_heap *heap, uint32_t arena, const char *text);
/* Whether text means this bin: its name, its kind, or "kind 0x40" for a size that it takes. */
bool karst_bin_matches(const struct karst_heap *heap, uint32_t bin, const char *text);
/* True if value was not given, or some arena (bin) matches; else false and an error that lists them. */
bool karst_call_check_arena(struct karst_call *call, const struct karst_value *value);
bool karst_call_check_bin(struct karst_call *call, const struct karst_value *value);
/* Text: a line each if a heap stood between two states when it was read, or if memory is missing. */
void karst_call_write_caution(struct karst_call *call);
/* The style a state is shown in. */
enum karst_style karst_state_style(enum karst_state state);

/* ---- parsing, for the command line -------------------------------------------------------------- */

/* Parses what follows the verb into call->arguments and options; NONE of it is kept but pointers into
 * argv. argv[0] is the verb's name. */
bool karst_call_parse(struct karst_call *call, int argc, const char *const *argv);
bool karst_parse_value(enum karst_value_kind kind, const char *text, struct karst_value *value,
                       struct karst_error *error);

#endif
