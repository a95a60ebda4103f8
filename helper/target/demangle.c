#include "demangle.h"

#include <setjmp.h>
#include <string.h>

#include <libiberty/demangle.h>

/* libiberty's own limit to a name's pieces, which bounds its recursion and what it takes of the stack, is at
 * 1,024 characters (binutils 2.40, libiberty/cp-demangle.c, DEMANGLE_RECURSION_LIMIT). */
#define NAME_MAX_SIZE 1000

struct demangled {
    char text[400];
    size_t used;
    size_t room;
    jmp_buf full;
};

/* A name of a few hundred characters can stand for more text than there is memory, as pieces may be named
 * again and again: no more of it is made than fits. */
static void take_piece(const char *piece, size_t size, void *context) {
    struct demangled *out = context;
    size_t left = out->room - out->used, part = size < left ? size : left;
    memcpy(out->text + out->used, piece, part);
    out->used += part;
    if (part < size) {
        longjmp(out->full, 1);
    }
}

enum outcome { NO_SUCH_NAME, WHOLE, CUT };

static enum outcome take_apart(const char *name, int options, struct demangled *out) {
    out->used = 0;
    if (setjmp(out->full)) {
        return CUT;
    }
    /* Rust's older names look like C++'s, and would be shown with their hash. Its newer ones (_R) are left as
     * they are: libiberty holds memory while it writes them, which must not be jumped out of. */
    if (rust_demangle_callback(name, options, take_piece, out)) {
        return WHOLE;
    }
    out->used = 0;
    return cplus_demangle_v3_callback(name, options, take_piece, out) ? WHOLE : NO_SUCH_NAME;
}

bool karst_demangle(const char *name, char *text, size_t size) {
    static const char ellipsis[] = "...";
    struct demangled out;
    if (strncmp(name, "_Z", 2) != 0 || strlen(name) > NAME_MAX_SIZE || size <= sizeof ellipsis) {
        return false;
    }
    out.room = size - 1 < sizeof out.text ? size - 1 : sizeof out.text;
    enum outcome outcome = take_apart(name, DMGL_PARAMS | DMGL_ANSI | DMGL_RET_DROP, &out);
    if (outcome == CUT) {
        outcome = take_apart(name, DMGL_ANSI, &out);
    }
    if (outcome == NO_SUCH_NAME) {
        return false;
    }
    memcpy(text, out.text, out.used);
    text[out.used] = '\0';
    if (outcome == CUT) {
        memcpy(text + out.used - (sizeof ellipsis - 1), ellipsis, sizeof ellipsis);
    }
    return true;
}
