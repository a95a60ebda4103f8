/* Names of C++ and Rust, whole, too long, made up to explode. */
#include "check.h"
#include "demangle.h"

static char text[200];

static const char *readable(const char *name, size_t size) {
    return karst_demangle(name, text, size) ? text : "(none)";
}

static void append(char *to, size_t size, const char *more) {
    size_t used = strlen(to);
    snprintf(to + used, size - used, "%s", more);
}

static void check_names(void) {
    static const char *const names[][2] = {
        {"_ZN3abc3addEi", "abc::add(int)"},
        {"_ZN3abc3addIlEET_S1_", "abc::add<long>(long)"},
        {"_Znwm", "operator new(unsigned long)"},
        {"_ZTVN3foo3BarE", "vtable for foo::Bar"},
        {"_ZN3fooIiE3barEv.cold", "foo<int>::bar() [clone .cold]"},
        {"_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"},
        {"malloc", "(none)"},
        {"", "(none)"},
        {"_", "(none)"},
        {"_Z", "(none)"},
        {"_ZN3abc", "(none)"},
        {"_ZN99999999999999999999abcEv", "(none)"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        CHECK_HAS(readable(names[i][0], sizeof text), names[i][1]);
        CHECK_EQUAL(strlen(readable(names[i][0], sizeof text)), strlen(names[i][1]));
    }
}

/* Names of many pieces are told with less: their arguments go, then those of their templates. */
static void check_long_names(void) {
    char name[300] = "_ZN5queue4pushE", wanted[300] = "queue::push(";
    for (int i = 0; i < 20; i++) {
        append(name, sizeof name, "5Thing");
        append(wanted, sizeof wanted, i ? ", Thing" : "Thing");
    }
    append(wanted, sizeof wanted, ")");
    CHECK(strcmp(readable(name, sizeof text), wanted) == 0);
    append(name, sizeof name, "5Thing5Thing");
    CHECK(strcmp(readable(name, sizeof text), "queue::push") == 0);
    CHECK(strcmp(readable("_ZNSt8_Rb_treeIjSt4pairIKjNSt7__cxx1112basic_stringIcSt11char_"
                          "traitsIcESaIcEEEESt10_Select1stIS8_"
                          "ESt4lessIjESaIS8_EE5eraseERS1_",
                          sizeof text),
                 "std::_Rb_tree<...>::erase") == 0);
    CHECK(strcmp(readable("_ZlsRSoRKSt6vectorISt6vectorISt6vectorISt6vectorISt6vectorIiSaIiEESaIS2_EESaIS4_"
                          "EESaIS6_EESaIS8_EE",
                          sizeof text),
                 "operator<<") == 0);
}

static void check_cuts(void) {
    const char *name = "_ZN3abc3addEiPKcd"; /* abc::add(int, char const*, double) */
    CHECK_HAS(readable(name, 35), "abc::add(int, char const*, double)");
    CHECK_HAS(readable(name, 34), "abc::add");
    CHECK_EQUAL(strlen(text), 8);
    CHECK_HAS(readable(name, 8), "abc:...");
    CHECK_HAS(readable(name, 4), "(none)");
}

/* f(A<A<A<...>, A<...>>, A<...>>): each level names the one before twice. */
static void check_explosion(void) {
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    char name[1000] = "_ZN1a1bI1AIiiE", before[4] = "S1_";
    for (int level = 2; level < 34; level++) {
        size_t used = strlen(name);
        snprintf(name + used, sizeof name - used, "S0_I%s%sE", before, before);
        snprintf(before, sizeof before, "S%c_", digits[level]);
    }
    append(name, sizeof name, "EEvv");
    CHECK(strcmp(readable(name, sizeof text), "a::b<...") == 0);
    memset(name + 2, 'P', sizeof name - 3); /* a pointer to a pointer to ... */
    name[sizeof name - 1] = '\0';
    CHECK_HAS(readable(name, sizeof text), "(none)");
}

int main(void) {
    check_names();
    check_long_names();
    check_cuts();
    check_explosion();
    return checks_done();
}
