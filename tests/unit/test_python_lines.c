/* The lines of each instruction of all functions in some of Python's own modules are those that Python itself
 * tells. KARST_PYTHON: another interpreter than the system's. */
#include "check.h"
#include "cpython.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A line for each code object: minor version, first line, the table in hexadecimal, then "offset:line" for
 * each instruction; line 0: none. */
static const char script[] =
    "import argparse, ast, collections, decimal, email.message, inspect, json.decoder, sys, textwrap, "
    "threading, types\n"
    "import typing, unittest.mock\n"
    "seen = set()\n"
    "def lines(code):\n"
    "    if hasattr(code, 'co_lines'):\n"
    "        return {at: line or 0 for start, end, line in code.co_lines() for at in range(start, end, 2)}\n"
    "    import dis\n"
    "    starts, told, line = dict(dis.findlinestarts(code)), {}, code.co_firstlineno\n"
    "    for at in range(0, len(code.co_code), 2):\n"
    "        line = starts.get(at, line)\n"
    "        told[at] = line\n"
    "    return told\n"
    "def tell(code):\n"
    "    if code in seen:\n"
    "        return\n"
    "    seen.add(code)\n"
    "    table = code.co_linetable if hasattr(code, 'co_linetable') else code.co_lnotab\n"
    "    print(sys.version_info[1], code.co_firstlineno, table.hex() or '-',\n"
    "          ' '.join('%d:%d' % pair for pair in lines(code).items()))\n"
    "    for constant in code.co_consts:\n"
    "        if isinstance(constant, types.CodeType):\n"
    "            tell(constant)\n"
    "for module in list(sys.modules.values()):\n"
    "    source = getattr(getattr(module, '__spec__', None), 'loader', None)\n"
    "    get = getattr(source, 'get_code', None)\n"
    "    try:\n"
    "        code = get(module.__spec__.name) if get else None\n"
    "    except ImportError:\n"
    "        code = None\n"
    "    if code:\n"
    "        tell(code)\n";

static size_t read_hexadecimal(const char *text, uint8_t *table) {
    size_t size = 0;
    unsigned byte;
    while (*text != '-' && sscanf(text, "%2x", &byte) == 1) {
        table[size++] = (uint8_t)byte;
        text += 2;
    }
    return size;
}

/* The instructions of one code object; how many are told otherwise. */
static unsigned long compare(char *line, unsigned long *instructions) {
    unsigned long wrong = 0;
    char *rest = NULL, *minor = strtok_r(line, " ", &rest), *first = strtok_r(NULL, " ", &rest),
         *hexadecimal = strtok_r(NULL, " ", &rest);
    uint8_t *table = malloc(hexadecimal ? strlen(hexadecimal) + 1 : 1);
    if (!table || !minor || !first || !hexadecimal) {
        free(table);
        return 1;
    }
    const struct cpython_layout *layout = cpython_layout_for((uint32_t)atoi(minor));
    size_t size = read_hexadecimal(hexadecimal, table);
    for (char *pair = strtok_r(NULL, " \n", &rest); pair && layout; pair = strtok_r(NULL, " \n", &rest)) {
        long offset, expected;
        if (sscanf(pair, "%ld:%ld", &offset, &expected) == 2) {
            ++*instructions;
            wrong += cpython_line(layout->lines, table, size, atoi(first), offset) != expected;
        }
    }
    free(table);
    return wrong + !layout;
}

static void test_modules(void) {
    const char *python = getenv("KARST_PYTHON");
    char command[sizeof script + 300];
    snprintf(command, sizeof command, "%s - <<'END'\n%sEND\n", python ? python : "/usr/bin/python3", script);
    FILE *told = popen(command, "r");
    unsigned long codes = 0, instructions = 0, wrong = 0;
    char *line = NULL;
    size_t room = 0;
    while (told && getline(&line, &room, told) > 0) {
        unsigned long mistakes = compare(line, &instructions);
        wrong += mistakes;
        codes++;
    }
    free(line);
    CHECK(told && pclose(told) == 0);
    CHECK(codes > 2000 && instructions > 100000);
    CHECK(wrong == 0);
    printf("%lu code objects, %lu instructions, %lu wrong\n", codes, instructions, wrong);
}

/* Tables that end in the middle, or never say that they do. */
static void test_damaged(void) {
    uint8_t table[64];
    for (int kind = CPYTHON_LNOTAB; kind <= CPYTHON_LOCATIONS; kind++) {
        for (int byte = 0; byte < 256; byte++) {
            memset(table, byte, sizeof table);
            for (size_t size = 0; size <= sizeof table; size++) {
                (void)cpython_line((enum cpython_lines)kind, table, size, 1, INT32_MAX);
            }
        }
        CHECK(cpython_line((enum cpython_lines)kind, table, sizeof table, 7, -1) == 7);
    }
}

int main(void) {
    test_modules();
    test_damaged();
    return checks_done();
}
