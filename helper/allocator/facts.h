/* A short list of named facts for a person and for JSON: ("roots", "structural search"). */
#ifndef KARST_ALLOCATOR_FACTS_H
#define KARST_ALLOCATOR_FACTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct karst_fact {
    char name[32];
    char *text;
    uint64_t address; /* shown as an address in front of text; 0: none */
};

struct karst_facts {
    struct karst_fact *items;
    size_t count;
};

/* Adds a fact; false: out of memory. */
bool karst_facts_add(struct karst_facts *facts, const char *name, uint64_t address, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void karst_facts_clear(struct karst_facts *facts);

#endif
