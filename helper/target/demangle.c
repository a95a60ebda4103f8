#include "demangle.h"

#include <setjmp.h>
#include <string.h>

#include <libiberty/demangle.h>

/* libiberty's own limit to a name's pieces, which bounds its recursion and what it takes of the stack, is at
 * 1,024 characters (binutils 2.40, libiberty/cp-demangle.c, DEMANGLE_RECURSION_LIMIT). */
#define NAME_MAX_SIZE 1000

/* What a person reads at a glance; longer names are told with less. */
#define WITH_ARGUMENTS_MAX 160
#define WHOLE_NAME_MAX     100

struct demangled {
    char text[4096];
    size_t used;
    jmp_buf full;
};

/* A name of a few hundred characters can stand for more text than there is memory, as pieces may be named
 * again and again: no more of it is made than there is room for. */
static void take_piece(const char *piece, size_t size, void *context) {
    struct demangled *out = context;
    size_t left = sizeof out->text - 1 - out->used, part = size < left ? size : left;
    memcpy(out->text + out->used, piece, part);
    out->used += part;
    if (part < size) {
        longjmp(out->full, 1);
    }
}

/* False: it is no such name. */
static bool take_apart(const char *name, int options, struct demangled *out) {
    out->used = 0;
    if (setjmp(out->full)) {
        return true;
    }
    /* Rust's older names look like C++'s, and would be shown with their hash. Its newer ones (_R) are left as
     * they are: libiberty holds memory while it writes them, which must not be jumped out of. */
    if (rust_demangle_callback(name, options, take_piece, out)) {
        return true;
    }
    out->used = 0;
    return cplus_demangle_v3_callback(name, options, take_piece, out);
}

/* "operator<<" at at: its length up to the last sign; 0: something else. */
static size_t operator_size(const char *at) {
    static const char word[] = "operator";
    size_t size = sizeof word - 1;
    return strncmp(at, word, size) == 0 ? size + strspn(at + size, "<>-=") : 0;
}

/* "std::map<int, char>::at" becomes "std::map<...>::at". */
static void leave_out_template_arguments(struct demangled *out) {
    char whole[sizeof out->text];
    size_t depth = 0, used = 0;
    memcpy(whole, out->text, out->used);
    whole[out->used] = '\0';
    for (const char *at = whole; *at;) {
        size_t size = operator_size(at);
        if (size == 0) {
            size = 1;
            depth -= *at == '>' && depth > 0;
        }
        if (used + size + 3 >= sizeof out->text) { /* "<>" is shorter than "<...>" */
            break;
        }
        if (depth == 0) {
            memcpy(out->text + used, at, size);
            used += size;
        }
        if (size == 1 && *at == '<' && depth++ == 0) {
            memcpy(out->text + used, "...", 3);
            used += 3;
        }
        at += size;
    }
    out->used = used;
}

bool karst_demangle(const char *name, char *text, size_t size) {
    static const char ellipsis[] = "...";
    struct demangled out;
    if (strncmp(name, "_Z", 2) != 0 || strlen(name) > NAME_MAX_SIZE || size <= sizeof ellipsis ||
        !take_apart(name, DMGL_PARAMS | DMGL_ANSI | DMGL_RET_DROP, &out)) {
        return false;
    }
    if (out.used >= size || out.used > WITH_ARGUMENTS_MAX) {
        take_apart(name, DMGL_ANSI, &out);
    }
    if (out.used >= size || out.used > WHOLE_NAME_MAX) {
        leave_out_template_arguments(&out);
    }
    size_t shown = out.used < size ? out.used : size - 1;
    memcpy(text, out.text, shown);
    text[shown] = '\0';
    if (shown < out.used) {
        memcpy(text + shown - (sizeof ellipsis - 1), ellipsis, sizeof ellipsis);
    }
    return true;
}
