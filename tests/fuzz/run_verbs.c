/* With FUZZ_PRINT in the environment the answers are shown. */
#include "run_verbs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static bool take(void *context, enum karst_style style, const char *text, size_t size) {
    uint64_t *left = context;
    (void)style;
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)text[i] < ' ' && text[i] != '\n') {
            abort(); /* a target's bytes must not reach the terminal as they are */
        }
    }
    if (getenv("FUZZ_PRINT")) {
        fwrite(text, 1, size, stdout);
    }
    *left -= size < *left ? size : *left;
    return *left > 0;
}

void run_verbs(struct karst *session, uint32_t choice, uint64_t address) {
    char text[32];
    snprintf(text, sizeof text, "0x%" PRIx64, address);
    const char *const verbs[][3] = {
        {"check", NULL, NULL},          {"summary", NULL, NULL},     {"holes", "--fit", "1000"},
        {"bins", "--json", NULL},       {"pins", NULL, NULL},        {"block", text, "--json"},
        {"blocks", "--all", "--json"},  {"refs", text, NULL},        {"sizes", NULL, NULL},
        {"maps", NULL, NULL},           {"info", "--json", NULL},    {"arenas", NULL, NULL},
        {"blocks", "--all", "--bytes"}, {"map", NULL, NULL},         {"sites", "--all", NULL},
        {"history", "--all", NULL},     {"history", text, "--json"},
    };
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        uint64_t left = 64u << 20;
        struct karst_output output = {.context = &left, .write = take, .width = 100};
        struct karst_error error = {0};
        int count = 0;
        while (count < 3 && verbs[i][count]) {
            count++;
        }
        if (choice & 1u << i) {
            int status = karst_run(session, count, verbs[i], &output, NULL, &error);
            if (status < 0 || status > 2 || (status == 2 && !error.text[0]) || left == 0) {
                abort();
            }
        }
    }
}
