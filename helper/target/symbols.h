/* What is known of a module's files; private to this folder. */
#ifndef KARST_TARGET_SYMBOLS_H
#define KARST_TARGET_SYMBOLS_H

#include "elf_file.h"
#include "target.h"

#include <elfutils/libdw.h>

/* A symbol table with its names, in the module's file or its debug file. */
struct karst_symbol_table {
    const Elf64_Sym *symbols;
    size_t count;
    const char *names;
    size_t names_size;
};

struct karst_layout_cache;

struct karst_symbols {
    struct karst_elf_file file;  /* the module's own; data NULL: not here */
    struct karst_elf_file debug; /* its separate debug file; data NULL: none */
    bool debug_looked_for;
    bool loaded; /* tables and index are there */
    struct karst_symbol_table tables[2];
    size_t table_count;
    /* Chains of symbols whose names have the same hash: the numbers of the first ones, and for each symbol
     * that of the next. Numbers count through both tables from 1; 0 ends a chain. */
    uint32_t *chains;
    size_t chain_count; /* a power of two, 0: no index */
    uint32_t *nexts;
    /* Functions and objects in order of address, for names of addresses; built at the first question. */
    struct karst_place *places;
    size_t place_count;
    bool placed;
    Elf *elf;
    Dwarf *dwarf;
    bool dwarf_looked_for;
    struct karst_layout_cache *layouts;
};

/* The symbols of module, with its file opened if it is here; NULL: out of memory. */
struct karst_symbols *karst_module_symbols(struct karst_target *target, struct karst_module *module);
/* The separate debug file if there is one with the right build id or checksum; NULL: none. */
const struct karst_elf_file *karst_module_debug_file(struct karst_target *target,
                                                     struct karst_module *module);
void karst_symbols_free_index(struct karst_symbols *symbols);
void karst_symbols_free_layouts(struct karst_symbols *symbols);

#endif
