#include "facts.h"

#include <stdio.h>
#include <stdlib.h>

#include "format.h"

bool karst_facts_add(struct karst_facts *facts, const char *name, uint64_t address, const char *format, ...) {
    struct karst_fact *items = realloc(facts->items, (facts->count + 1) * sizeof *items);
    if (!items) {
        return false;
    }
    facts->items = items;
    struct karst_fact *fact = &items[facts->count];
    KARST_FORMAT(fact->text, format);
    if (!fact->text) {
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
