/* Checks for the unit tests: each says where it failed and what was there, the test goes on. */
#ifndef KARST_TESTS_CHECK_H
#define KARST_TESTS_CHECK_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int checks_passed, checks_failed;

static inline bool check_that(bool good, const char *file, int line, const char *text) {
    if (good) {
        checks_passed++;
    } else {
        checks_failed++;
        fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
    }
    return good;
}

static inline bool check_equal(uint64_t is, uint64_t should_be, const char *file, int line,
                               const char *text) {
    bool good = check_that(is == should_be, file, line, text);
    if (!good) {
        fprintf(stderr, "    is 0x%" PRIx64 " (%" PRIu64 "), should be 0x%" PRIx64 " (%" PRIu64 ")\n", is, is,
                should_be, should_be);
    }
    return good;
}

static inline bool check_has(const char *text, const char *part, const char *file, int line) {
    bool good = check_that(text && strstr(text, part), file, line, part);
    if (!good) {
        fprintf(stderr, "    is not in: %s\n", text ? text : "(nothing)");
    }
    return good;
}

#define CHECK(condition)           check_that((condition), __FILE__, __LINE__, #condition)
#define CHECK_EQUAL(is, should_be) check_equal((is), (should_be), __FILE__, __LINE__, #is " == " #should_be)
#define CHECK_HAS(text, part)      check_has((text), (part), __FILE__, __LINE__)

/* For the end of main(): prints the count, returns the exit status. */
static inline int checks_done(void) {
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed == 0 ? 0 : 1;
}

#endif
