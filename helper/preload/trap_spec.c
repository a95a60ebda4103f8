#include "trap_spec.h"

#include <string.h>

#include "nearest.h"

/* ---- text ------------------------------------------------------------------------------------------ */

void karst_line_add(struct karst_line *line, const char *text) {
    while (*text && line->used + 1 < line->size) {
        line->text[line->used++] = *text++;
    }
    line->text[line->used] = '\0';
}

void karst_line_add_number(struct karst_line *line, uint64_t number) {
    char digits[24];
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    karst_line_add(line, digits + at);
}

void karst_line_add_hex(struct karst_line *line, uint64_t number) {
    char digits[24];
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do {
        digits[--at] = "0123456789abcdef"[number & 15];
        number >>= 4;
    } while (number);
    karst_line_add(line, "0x");
    karst_line_add(line, digits + at);
}

/* ---- names ----------------------------------------------------------------------------------------- */

static const char *const function_names[KARST_FUNCTIONS] = {
    [KARST_MALLOC] = "malloc",
    [KARST_CALLOC] = "calloc",
    [KARST_REALLOC] = "realloc",
    [KARST_REALLOCARRAY] = "reallocarray",
    [KARST_MEMALIGN] = "memalign",
    [KARST_POSIX_MEMALIGN] = "posix_memalign",
    [KARST_ALIGNED_ALLOC] = "aligned_alloc",
    [KARST_VALLOC] = "valloc",
    [KARST_PVALLOC] = "pvalloc",
    [KARST_NEW] = "new",
    [KARST_NEW_ARRAY] = "new[]",
    [KARST_FREE] = "free",
    [KARST_DELETE] = "delete",
    [KARST_DELETE_ARRAY] = "delete[]",
};

static const char *const fault_names[KARST_FAULTS] = {
    [KARST_FAULT_NONE] = "no fault",     [KARST_FAULT_DOUBLE_FREE] = "double-free",
    [KARST_FAULT_FOREIGN] = "foreign",   [KARST_FAULT_INTERIOR] = "interior",
    [KARST_FAULT_OVERFLOW] = "overflow",
};

static const char *const action_names[KARST_ACTIONS] = {
    [KARST_ACTION_DEFAULT] = "default", [KARST_ACTION_LOG] = "log",     [KARST_ACTION_STOP] = "stop",
    [KARST_ACTION_CORE] = "core",       [KARST_ACTION_ABORT] = "abort",
};

const char *karst_function_name(uint32_t function) {
    return function < KARST_FUNCTIONS ? function_names[function] : "?";
}

const char *karst_action_name(uint32_t action) {
    return action < KARST_ACTIONS ? action_names[action] : NULL;
}

/* ---- parsing --------------------------------------------------------------------------------------- */

/* One word of the text. */
struct word {
    const char *text;
    size_t length;
};

struct parser {
    const char *at;
    struct karst_trap *trap;
    struct karst_line error;
    bool failed;
};

static bool fail(struct parser *parser, const char *before, struct word word, const char *behind) {
    char text[64];
    size_t length = word.length < sizeof text - 1 ? word.length : sizeof text - 1;
    memcpy(text, word.text, length);
    text[length] = '\0';
    karst_line_add(&parser->error, before);
    if (word.length) {
        karst_line_add(&parser->error, "'");
        karst_line_add(&parser->error, text);
        karst_line_add(&parser->error, "'");
    }
    karst_line_add(&parser->error, behind);
    parser->failed = true;
    return false;
}

/* As fail(), with the one of names that may have been meant; all says what there is if none is near. */
static bool fail_meant(struct parser *parser, struct word word, const char *const *names, size_t count,
                       const char *all) {
    char typed[64];
    size_t length = word.length < sizeof typed - 1 ? word.length : sizeof typed - 1;
    memcpy(typed, word.text, length);
    typed[length] = '\0';
    struct karst_nearest nearest = {.word = typed};
    for (size_t i = 0; i < count; i++) {
        karst_nearest_offer(&nearest, names[i]);
    }
    if (!nearest.nearest) {
        return fail(parser, "", word, all);
    }
    fail(parser, "", word, " is unknown; did you mean ");
    karst_line_add(&parser->error, nearest.nearest);
    karst_line_add(&parser->error, "?");
    return false;
}

static bool is_word(struct word word, const char *name) {
    return strlen(name) == word.length && memcmp(word.text, name, word.length) == 0;
}

/* Words are separated by blanks. */
static bool next_word(struct parser *parser, struct word *word) {
    while (*parser->at == ' ' || *parser->at == '\t') {
        parser->at++;
    }
    word->text = parser->at;
    while (*parser->at && *parser->at != ' ' && *parser->at != '\t') {
        parser->at++;
    }
    word->length = (size_t)(parser->at - word->text);
    return word->length > 0;
}

static int digit_value(char digit, int base) {
    int value = digit >= '0' && digit <= '9'   ? digit - '0'
                : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                               : 99;
    return value < base ? value : -1;
}

bool karst_trap_parse_size(const char *text, uint64_t *size, const char **end) {
    int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
    const char *at = text + (base == 16 ? 2 : 0), *first = at;
    *size = 0;
    for (; digit_value(*at, base) >= 0 || (*at == ',' && at != first && digit_value(at[1], 10) >= 0); at++) {
        if (*at != ',' && (__builtin_mul_overflow(*size, (uint64_t)base, size) ||
                           __builtin_add_overflow(*size, (uint64_t)digit_value(*at, base), size))) {
            return false;
        }
    }
    if (at == first) {
        return false;
    }
    static const char units[] = "KMGTkmgt";
    const char *unit = *at ? strchr(units, *at) : NULL;
    if (unit) {
        uint64_t factor = UINT64_C(1) << 10 * ((unit - units) % 4 + 1);
        if (__builtin_mul_overflow(*size, factor, size)) {
            return false;
        }
        at += 1 + (at[1] == 'i');
    }
    *end = at + (*at == 'B' || *at == 'b');
    return true;
}

/* "A", "A:B", "A:", ":B". */
static bool parse_range(const char *text, const char *end, uint64_t *low, uint64_t *high) {
    *low = 0;
    *high = UINT64_MAX;
    if (*text != ':') {
        if (!karst_trap_parse_size(text, low, &text)) {
            return false;
        }
        if (text == end) {
            *high = *low;
            return true;
        }
        if (*text != ':') {
            return false;
        }
    } else if (text + 1 == end) {
        return false;
    }
    text++;
    return text == end || (karst_trap_parse_size(text, high, &text) && text == end && *low <= *high);
}

/* "64/128/256" */
static bool parse_set(struct parser *parser, struct word word) {
    struct karst_trap *trap = parser->trap;
    const char *at = word.text, *end = word.text + word.length;
    trap->size_count = 0;
    for (;; at++) {
        if (trap->size_count == KARST_TRAP_SIZES) {
            return fail(parser, "", word, " has more than 8 sizes; take a range, or several traps");
        }
        if (!karst_trap_parse_size(at, &trap->sizes[trap->size_count], &at) || (at != end && *at != '/')) {
            return fail(parser, "", word, " is no set of sizes; sets are like 64/128/4K");
        }
        trap->size_count++;
        if (at == end) {
            trap->conditions |= KARST_IF_SIZES;
            return true;
        }
    }
}

static bool parse_sizes(struct parser *parser, struct word word) {
    struct karst_trap *trap = parser->trap;
    if (trap->conditions & (KARST_IF_SIZE | KARST_IF_SIZES)) {
        return fail(parser, "a second size ", word, "; a set is written 64/128, a range 64:128");
    }
    if (memchr(word.text, '/', word.length)) {
        return parse_set(parser, word);
    }
    if (!parse_range(word.text, word.text + word.length, &trap->size_low, &trap->size_high)) {
        return fail(parser, "", word, " is no size; sizes are like 4096, 64K, 1M:2M, 1M: or 64/128");
    }
    trap->conditions |= KARST_IF_SIZE;
    return true;
}

static const struct {
    const char *name;
    uint32_t bits;
} groups[] = {
    {"any", KARST_ALLOCATING | KARST_FREEING},
    {"all", KARST_ALLOCATING | KARST_FREEING},
    {"alloc", KARST_ALLOCATING},
    {"frees", KARST_FREEING},
    {"operators", 1u << KARST_NEW | 1u << KARST_NEW_ARRAY | 1u << KARST_DELETE | 1u << KARST_DELETE_ARRAY}};

#define GROUPS (sizeof groups / sizeof *groups)

static uint32_t function_bits(struct word word) {
    for (size_t i = 0; i < GROUPS; i++) {
        if (is_word(word, groups[i].name)) {
            return groups[i].bits;
        }
    }
    for (uint32_t i = 0; i < KARST_FUNCTIONS; i++) {
        if (is_word(word, function_names[i])) {
            return 1u << i;
        }
    }
    return 0;
}

/* "malloc,calloc"; 0: it is something else, or one of the names is none, which is left in *unknown. */
static uint32_t parse_functions(struct word word, struct word *unknown) {
    uint32_t bits = 0;
    for (size_t from = 0; from <= word.length;) {
        struct word one = {word.text + from, 0};
        while (from + one.length < word.length && one.text[one.length] != ',') {
            one.length++;
        }
        uint32_t bit = function_bits(one);
        if (!bit) {
            *unknown = one;
            return 0;
        }
        bits |= bit;
        from += one.length + 1;
    }
    return bits;
}

static bool parse_count(struct parser *parser, struct word word, struct word value, uint64_t *number) {
    const char *end = NULL;
    if (!karst_trap_parse_size(value.text, number, &end) || end != value.text + value.length) {
        return fail(parser, "", word, ": a number is wanted");
    }
    return true;
}

static bool parse_addresses(struct parser *parser, struct word word, struct word value, uint32_t conditions) {
    struct karst_trap *trap = parser->trap;
    if (trap->conditions & (KARST_IF_RETURNED | KARST_IF_FREED)) {
        return fail(parser, "a second address ", word, "; a range is written LOW:HIGH");
    }
    if (!parse_range(value.text, value.text + value.length, &trap->address_low, &trap->address_high)) {
        return fail(parser, "", word, ": an address is wanted, like 0x7f0123456780, or a range of two");
    }
    trap->conditions |= conditions;
    return true;
}

static bool parse_action(struct parser *parser, struct word value) {
    for (uint32_t i = 0; i < KARST_ACTIONS; i++) {
        if (is_word(value, action_names[i])) {
            parser->trap->action = i;
            return true;
        }
    }
    return fail_meant(parser, value, action_names, KARST_ACTIONS,
                      " is no action; actions are log, stop, core and abort");
}

static bool parse_caller(struct parser *parser, struct word word, struct word value) {
    struct karst_trap *trap = parser->trap;
    trap->conditions |= KARST_IF_CALLER;
    if (value.length && value.text[0] == '0' &&
        parse_range(value.text, value.text + value.length, &trap->caller_low, &trap->caller_high)) {
        trap->caller_high += trap->caller_high != UINT64_MAX;
        return true;
    }
    if (value.length == 0 || value.length >= sizeof trap->caller) {
        return fail(parser, "", word,
                    ": the name of a module is wanted, like libfoo.so, or addresses LOW:HIGH");
    }
    memcpy(trap->caller, value.text, value.length);
    return true;
}

static bool parse_pair(struct parser *parser, struct word word, const char *equals) {
    struct karst_trap *trap = parser->trap;
    struct word key = {word.text, (size_t)(equals - word.text)};
    struct word value = {equals + 1, word.length - key.length - 1};
    uint64_t number = 0;
    if (is_word(key, "thread")) {
        if (!parse_count(parser, word, value, &number) || number == 0 || number > INT32_MAX) {
            return parser->failed ? false : fail(parser, "", word, ": a thread id is wanted");
        }
        trap->thread = (int32_t)number;
        trap->conditions |= KARST_IF_THREAD;
        return true;
    }
    if (is_word(key, "event")) {
        trap->conditions |= KARST_IF_EVENT;
        return parse_count(parser, word, value, &trap->event);
    }
    if (is_word(key, "skip")) {
        return parse_count(parser, word, value, &trap->skip);
    }
    if (is_word(key, "count")) {
        return parse_count(parser, word, value, &trap->count);
    }
    if (is_word(key, "size")) {
        return parse_sizes(parser, value);
    }
    if (is_word(key, "returned")) {
        return parse_addresses(parser, word, value, KARST_IF_RETURNED);
    }
    if (is_word(key, "freed")) {
        return parse_addresses(parser, word, value, KARST_IF_FREED);
    }
    if (is_word(key, "address")) {
        return parse_addresses(parser, word, value, KARST_IF_RETURNED | KARST_IF_FREED);
    }
    if (is_word(key, "caller")) {
        return parse_caller(parser, word, value);
    }
    if (is_word(key, "action")) {
        return parse_action(parser, value);
    }
    static const char *const keys[] = {"size=",  "thread=",  "caller=", "event=", "returned=",
                                       "freed=", "address=", "skip=",   "count=", "action="};
    struct word typed = {key.text, key.length + 1};
    return fail_meant(
        parser, typed, keys, sizeof keys / sizeof *keys,
        " is unknown; there are size, thread, caller, event, returned, freed, address, skip, count "
        "and action");
}

/* "growth,malloc" */
static bool fail_joined(struct parser *parser, struct word word) {
    return fail(parser, "", word, " stands apart, with a blank: only functions are joined by commas");
}

static bool fail_unknown(struct parser *parser, struct word word, bool joined) {
    static const char *const others[] = {"growth", "before", "faults"};
    const char *names[KARST_FUNCTIONS + KARST_FAULTS + GROUPS + sizeof others / sizeof *others];
    size_t count = 0;
    for (size_t i = 0; i < KARST_FUNCTIONS; i++) {
        names[count++] = function_names[i];
    }
    for (size_t i = KARST_FAULT_NONE + 1; i < KARST_FAULTS; i++) {
        names[count++] = fault_names[i];
    }
    for (size_t i = 0; i < GROUPS; i++) {
        names[count++] = groups[i].name;
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        names[count++] = others[i];
    }
    if (joined && word.length == 0) {
        return fail(parser, "a comma with no function beside it", word, "");
    }
    if (joined && word.text[0] >= '0' && word.text[0] <= '9') {
        return fail_joined(parser, word);
    }
    for (size_t i = 0; joined && i < count; i++) {
        if (is_word(word, names[i])) {
            return fail_joined(parser, word);
        }
    }
    return fail_meant(parser, word, names, count,
                      " is neither a function, a size, growth, double-free, foreign, interior, overflow "
                      "nor KEY=VALUE");
}

static bool parse_word(struct parser *parser, struct word word) {
    struct karst_trap *trap = parser->trap;
    const char *equals = memchr(word.text, '=', word.length);
    if (equals) {
        return parse_pair(parser, word, equals);
    }
    if ((word.text[0] >= '0' && word.text[0] <= '9') || word.text[0] == ':') {
        return parse_sizes(parser, word);
    }
    struct word unknown = word;
    uint32_t functions = parse_functions(word, &unknown);
    if (functions) {
        trap->functions |= functions;
        return true;
    }
    if (is_word(word, "growth")) {
        trap->conditions |= KARST_IF_GROWTH;
        return true;
    }
    if (is_word(word, "before")) {
        trap->before = 1;
        return true;
    }
    bool known = false;
    for (uint32_t i = 1; i < KARST_FAULTS; i++) {
        if (is_word(word, fault_names[i]) || is_word(word, "faults")) {
            trap->conditions |= KARST_IF_FAULT;
            trap->faults |= 1u << i;
            known = true;
        }
    }
    return known || fail_unknown(parser, unknown, memchr(word.text, ',', word.length));
}

/* What no call can meet is told at once; functions not named are those that can meet it. */
static bool finish(struct parser *parser) {
    struct karst_trap *trap = parser->trap;
    uint32_t can = KARST_ALLOCATING | KARST_FREEING;
    uint32_t moves = 1u << KARST_REALLOC | 1u << KARST_REALLOCARRAY;
    struct word none = {"", 0};
    if (trap->conditions & (KARST_IF_SIZE | KARST_IF_SIZES | KARST_IF_GROWTH)) {
        can &= KARST_ALLOCATING;
    }
    if (trap->conditions & (KARST_IF_RETURNED | KARST_IF_FREED)) {
        can &= (trap->conditions & KARST_IF_RETURNED ? KARST_ALLOCATING : 0) |
               (trap->conditions & KARST_IF_FREED ? KARST_FREEING | moves : 0);
    }
    if (trap->conditions & KARST_IF_FAULT) {
        can &= KARST_FREEING | moves;
    }
    if (trap->functions == 0) {
        trap->functions = can;
    }
    if ((trap->functions & can) == 0) {
        return fail(parser,
                    "no call can meet this: sizes, growth and returned= are of functions that allocate, "
                    "freed= and faults of those that free",
                    none, "");
    }
    trap->functions &= can;
    if (trap->before && trap->conditions & (KARST_IF_RETURNED | KARST_IF_GROWTH)) {
        return fail(parser, "before the call neither the address returned nor growth is known", none, "");
    }
    return true;
}

bool karst_trap_parse(const char *text, struct karst_trap *trap, char *error, size_t error_size) {
    struct parser parser = {.at = text, .trap = trap, .error = {error, error_size, 0}};
    error[0] = '\0';
    memset(trap, 0, sizeof *trap);
    struct word word;
    bool any = false;
    while (next_word(&parser, &word)) {
        any = true;
        if (!parse_word(&parser, word)) {
            return false;
        }
    }
    if (!any) {
        return fail(&parser, "an empty trap; try one like realloc 8880819", (struct word){"", 0}, "");
    }
    struct karst_line typed = {trap->text, sizeof trap->text, 0};
    karst_line_add(&typed, text);
    trap->state = KARST_TRAP_ARMED;
    return finish(&parser);
}

/* ---- why ------------------------------------------------------------------------------------------- */

static void add_site(struct karst_line *line, uint64_t address,
                     void (*symbol)(struct karst_line *line, uint64_t address)) {
    karst_line_add_hex(line, address);
    if (symbol) {
        symbol(line, address);
    }
}

static void add_arguments(struct karst_line *line, const struct karst_why *why) {
    bool frees = 1u << why->function & KARST_FREEING;
    bool moves = why->function == KARST_REALLOC || why->function == KARST_REALLOCARRAY;
    karst_line_add(line, "(");
    if (frees || moves) {
        if (why->old_address) {
            karst_line_add_hex(line, why->old_address);
        } else {
            karst_line_add(line, "NULL");
        }
    }
    if (moves) {
        karst_line_add(line, ", ");
    }
    if (!frees) {
        karst_line_add_number(line, why->size);
    }
    if (why->alignment) {
        karst_line_add(line, ", aligned to ");
        karst_line_add_number(line, why->alignment);
    }
    karst_line_add(line, ")");
    if (!frees && !why->before) {
        karst_line_add(line, " = ");
        if (why->address) {
            karst_line_add_hex(line, why->address);
        } else {
            karst_line_add(line, "NULL");
        }
    }
}

static void add_fault(struct karst_line *line, const struct karst_why *why,
                      void (*symbol)(struct karst_line *line, uint64_t address)) {
    static const char *const says[KARST_FAULTS] = {
        "", "double free: ", "foreign pointer: ", "pointer into a block: ", "overflow: "};
    karst_line_add(line, why->fault < KARST_FAULTS ? says[why->fault] : "");
    karst_line_add(line, karst_function_name(why->function));
    add_arguments(line, why);
    if (why->block) {
        karst_line_add(line, ", block ");
        karst_line_add_hex(line, why->block);
        karst_line_add(line, " of ");
        karst_line_add_number(line, why->block_size);
        karst_line_add(line, " bytes");
    }
    if (why->allocated_at) {
        karst_line_add(line, ", allocated at ");
        add_site(line, why->allocated_at, symbol);
    }
    if (why->freed_at) {
        karst_line_add(line, ", first freed at ");
        add_site(line, why->freed_at, symbol);
    }
}

void karst_why_describe(const struct karst_why *why, struct karst_line *line,
                        void (*symbol)(struct karst_line *line, uint64_t address)) {
    if (why->fault) {
        add_fault(line, why, symbol);
    } else {
        karst_line_add(line, karst_function_name(why->function));
        add_arguments(line, why);
    }
    if (why->grown) {
        karst_line_add(line, ", the heap grew by ");
        karst_line_add_number(line, why->grown);
        karst_line_add(line, " bytes");
    }
    karst_line_add(line, ", thread ");
    karst_line_add_number(line, (uint64_t)why->thread);
    if (why->event) {
        karst_line_add(line, ", event ");
        karst_line_add_number(line, why->event);
    }
    karst_line_add(line, ", called at ");
    add_site(line, why->caller, symbol);
}
