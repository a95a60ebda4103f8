#include "facts.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool karst_facts_add(struct karst_facts *facts, const char *name, uint64_t address, const char *format, ...) {
    struct karst_fact *items = realloc(facts->items, (facts->count + 1) * sizeof *items);
    if (!items) {
        return false;
    }
    facts->items = items;
    struct karst_fact *fact = &items[facts->count];
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&fact->text, format, arguments);
    va_end(arguments);
    if (length < 0) {
        return false;
    }
    snprintf(fact->name, sizeof fact->name, "%s", name);
    fact->address = address;
    facts->count++;
    return true;
}

void karst_facts_clear(struct karst_facts *facts) {
    for (size_t i = 0; i < facts->count; i++) {
        free(facts->items[i].text);
    }
    free(facts->items);
    *facts = (struct karst_facts){0};
}
