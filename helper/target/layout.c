/* Layouts: where the members of a struct are, by DWARF. */
#include "symbols.h"

#include "parts.h"

#include <dwarf.h>
#include <stdlib.h>
#include <string.h>

/* Anonymous structs and unions inside each other, and typedefs of typedefs, this deep at most. */
#define DEPTH_MAX 16

/* The definition found for a type name, or that there is none. */
struct karst_layout {
    struct karst_layout *next;
    bool found;
    bool shared; /* in the file that several debug files share (.gnu_debugaltlink) */
    Dwarf_Off offset;
    char name[];
};

struct karst_layout_cache {
    struct karst_layout *first;
};

void karst_symbols_free_layouts(struct karst_symbols *symbols) {
    while (symbols->layouts && symbols->layouts->first) {
        struct karst_layout *layout = symbols->layouts->first;
        symbols->layouts->first = layout->next;
        free(layout);
    }
    free(symbols->layouts);
    dwarf_end(symbols->dwarf);
    elf_end(symbols->elf);
    symbols->layouts = NULL;
    symbols->dwarf = NULL;
    symbols->elf = NULL;
}

static bool has_dwarf(const struct karst_elf_file *file) {
    size_t size;
    return file &&
           (karst_elf_section(file, ".debug_info", &size) || karst_elf_section(file, ".zdebug_info", &size));
}

/* DWARF of the module's own file, else of its debug file. */
static Dwarf *open_dwarf(struct karst_target *target, struct karst_module *module) {
    struct karst_symbols *symbols = karst_module_symbols(target, module);
    if (!symbols || symbols->dwarf_looked_for) {
        return symbols ? symbols->dwarf : NULL;
    }
    symbols->dwarf_looked_for = true;
    const struct karst_elf_file *file = module->file_matches ? &symbols->file : NULL;
    if (!has_dwarf(file)) {
        file = karst_module_debug_file(target, module);
    }
    if (!has_dwarf(file) || elf_version(EV_CURRENT) == EV_NONE) {
        return NULL;
    }
    symbols->elf = elf_begin(file->descriptor, ELF_C_READ_MMAP, NULL);
    symbols->dwarf = symbols->elf ? dwarf_begin_elf(symbols->elf, DWARF_C_READ, NULL) : NULL;
    return symbols->dwarf;
}

static bool is_aggregate(int tag) {
    return tag == DW_TAG_structure_type || tag == DW_TAG_union_type || tag == DW_TAG_class_type;
}

static bool type_of(Dwarf_Die *die, Dwarf_Die *type) {
    Dwarf_Attribute attribute;
    return dwarf_attr_integrate(die, DW_AT_type, &attribute) && dwarf_formref_die(&attribute, type);
}

/* Follows typedefs and qualifiers to a complete struct, union or class. */
static bool peel(Dwarf_Die *die) {
    for (int depth = 0; depth < DEPTH_MAX; depth++) {
        int tag = dwarf_tag(die);
        if (is_aggregate(tag)) {
            return !dwarf_hasattr(die, DW_AT_declaration);
        }
        Dwarf_Die type;
        if ((tag != DW_TAG_typedef && tag != DW_TAG_const_type && tag != DW_TAG_volatile_type) ||
            !type_of(die, &type)) {
            return false;
        }
        *die = type;
    }
    return false;
}

/* A definition of name among the direct children of a unit. */
static bool find_in_unit(Dwarf_Die *unit, const char *name, Dwarf_Die *found) {
    Dwarf_Die child;
    if (dwarf_child(unit, &child) != 0) {
        return false;
    }
    do {
        int tag = dwarf_tag(&child);
        if (!is_aggregate(tag) && tag != DW_TAG_typedef) {
            continue;
        }
        const char *found_name = dwarf_diename(&child);
        if (found_name && strcmp(found_name, name) == 0) {
            *found = child;
            if (peel(found)) {
                return true;
            }
        }
    } while (dwarf_siblingof(&child, &child) == 0);
    return false;
}

/* Where the type found last is, the next one often is, too: a large program has thousands of units. */
static bool find_beside_last(const struct karst_symbols *symbols, Dwarf *dwarf, const char *name,
                             Dwarf_Die *found) {
    const struct karst_layout *last = symbols->layouts->first;
    Dwarf_Die type, unit;
    while (last && (!last->found || last->shared)) {
        last = last->next;
    }
    return last && dwarf_offdie(dwarf, last->offset, &type) && dwarf_diecu(&type, &unit, NULL, NULL) &&
           find_in_unit(&unit, name, found);
}

static bool find_in_units(Dwarf *dwarf, const char *name, Dwarf_Die *found) {
    Dwarf_CU *unit = NULL;
    Dwarf_Die die;
    while (dwarf_get_units(dwarf, unit, &unit, NULL, NULL, &die, NULL) == 0) {
        if (find_in_unit(&die, name, found)) {
            return true;
        }
    }
    return false;
}

/* Looks up what was found for name before; NULL: it was not asked for. */
static const struct karst_layout *known_layout(const struct karst_symbols *symbols, const char *name) {
    const struct karst_layout *layout = symbols->layouts->first;
    while (layout && strcmp(layout->name, name) != 0) {
        layout = layout->next;
    }
    return layout;
}

/* The complete definition of a type, remembered. */
static bool find_type(struct karst_symbols *symbols, Dwarf *dwarf, const char *name, Dwarf_Die *found) {
    if (!symbols->layouts && !(symbols->layouts = calloc(1, sizeof *symbols->layouts))) {
        return false;
    }
    const struct karst_layout *known = known_layout(symbols, name);
    if (known) {
        Dwarf *holder = known->shared ? dwarf_getalt(dwarf) : dwarf;
        return known->found && dwarf_offdie(holder, known->offset, found) != NULL;
    }
    bool shared = false;
    bool there = find_beside_last(symbols, dwarf, name, found) || find_in_units(dwarf, name, found);
    if (!there) {
        Dwarf *alternative = dwarf_getalt(dwarf);
        there = shared = alternative && find_in_units(alternative, name, found);
    }
    size_t name_size = strlen(name) + 1;
    struct karst_layout *layout = malloc(sizeof *layout + name_size);
    if (layout) {
        layout->next = symbols->layouts->first;
        layout->found = there;
        layout->shared = shared;
        layout->offset = there ? dwarf_dieoffset(found) : 0;
        memcpy(layout->name, name, name_size);
        symbols->layouts->first = layout;
    }
    return there;
}

static bool member_offset(Dwarf_Die *member, uint64_t *offset) {
    Dwarf_Attribute attribute;
    Dwarf_Word word;
    *offset = 0;
    if (!dwarf_attr_integrate(member, DW_AT_data_member_location, &attribute)) {
        return true; /* of a union */
    }
    if (dwarf_formudata(&attribute, &word) == 0) {
        *offset = word;
        return true;
    }
    Dwarf_Op *operations;
    size_t count;
    if (dwarf_getlocation(&attribute, &operations, &count) == 0 && count == 1 &&
        operations[0].atom == DW_OP_plus_uconst) {
        *offset = operations[0].number;
        return true;
    }
    return false;
}

static bool find_member(Dwarf_Die *aggregate, const char *name, int depth, uint64_t *offset, uint64_t *size) {
    Dwarf_Die child;
    if (depth > DEPTH_MAX || dwarf_child(aggregate, &child) != 0) {
        return false;
    }
    do {
        Dwarf_Die type;
        uint64_t at;
        if (dwarf_tag(&child) != DW_TAG_member || !type_of(&child, &type) || !member_offset(&child, &at)) {
            continue;
        }
        const char *found = dwarf_diename(&child);
        Dwarf_Word bytes;
        if (found && strcmp(found, name) == 0) {
            *offset = at;
            *size = dwarf_aggregate_size(&type, &bytes) == 0 ? bytes : 0;
            return true;
        }
        if (!found && peel(&type) && find_member(&type, name, depth + 1, offset, size)) {
            *offset += at;
            return true;
        }
    } while (dwarf_siblingof(&child, &child) == 0);
    return false;
}

bool karst_module_member(struct karst_target *target, struct karst_module *module, const char *type,
                         const char *member, uint64_t *offset, uint64_t *size) {
    if (target->no_symbols) {
        return false;
    }
    Dwarf *dwarf = open_dwarf(target, module);
    Dwarf_Die found;
    bool there = dwarf && find_type(module->symbols, dwarf, type, &found);
    Dwarf_Word whole;
    if (there && !*member && dwarf_aggregate_size(&found, &whole) == 0) {
        *offset = 0;
        *size = whole;
        return true;
    }
    if (there && find_member(&found, member, 0, offset, size)) {
        return true;
    }
    const struct karst_callbacks *callbacks = target->callbacks;
    return callbacks && callbacks->member &&
           callbacks->member(callbacks->context, module->path, type, member, offset, size);
}
