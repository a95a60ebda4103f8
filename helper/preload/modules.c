#include <elf.h>
#include <link.h>
#include <string.h>
#include <sys/auxv.h>

#include "preload.h"

/* The loader's own list of modules, in the order of symbol search for those that are there from the start.
 * Read without locks: dlsym() and dl_iterate_phdr() may allocate or wait. A module that is just being loaded
 * or unloaded by another thread is the risk; at start, when this matters, there is no other thread. */

extern const char __ehdr_start[] __attribute__((visibility("hidden")));

static const struct link_map *first_module(void) {
    return _r_debug.r_map;
}

/* The tables of a module that symbols are found by. */
struct tables {
    const Elf64_Sym *symbols;
    const char *strings;
    const uint32_t *gnu_hash, *hash;
    const uint16_t *versions;
};

/* The loader has added the bias to the pointers in the dynamic section, but not in all modules (the vDSO). */
static const void *dynamic_pointer(const struct link_map *map, Elf64_Addr value) {
    return (const void *)(value < map->l_addr ? value + map->l_addr : value);
}

static bool open_tables(const struct link_map *map, struct tables *tables) {
    *tables = (struct tables){0};
    for (const Elf64_Dyn *entry = map->l_ld; entry && entry->d_tag != DT_NULL; entry++) {
        const void *pointer = dynamic_pointer(map, entry->d_un.d_ptr);
        switch (entry->d_tag) {
        case DT_SYMTAB:
            tables->symbols = pointer;
            break;
        case DT_STRTAB:
            tables->strings = pointer;
            break;
        case DT_GNU_HASH:
            tables->gnu_hash = pointer;
            break;
        case DT_HASH:
            tables->hash = pointer;
            break;
        case DT_VERSYM:
            tables->versions = pointer;
            break;
        default:
            break;
        }
    }
    return tables->symbols && tables->strings && (tables->gnu_hash || tables->hash);
}

/* How many symbols a table has: by the chain of the last bucket (the GNU hash table has no count). */
static uint32_t symbol_count(const struct tables *tables) {
    if (tables->hash) {
        return tables->hash[1];
    }
    const uint32_t *header = tables->gnu_hash;
    if (!header) {
        return 0;
    }
    uint32_t buckets = header[0], offset = header[1], bloom = header[2], last = 0;
    const uint32_t *bucket = header + 4 + bloom * (sizeof(Elf64_Addr) / 4), *chain = bucket + buckets;
    for (uint32_t i = 0; i < buckets; i++) {
        last = bucket[i] > last ? bucket[i] : last;
    }
    if (last < offset) {
        return offset;
    }
    while (!(chain[last - offset] & 1)) {
        last++;
    }
    return last + 1;
}

static bool is_function(const struct tables *tables, uint32_t index) {
    const Elf64_Sym *symbol = &tables->symbols[index];
    int type = ELF64_ST_TYPE(symbol->st_info), bind = ELF64_ST_BIND(symbol->st_info);
    return symbol->st_shndx != SHN_UNDEF && symbol->st_value && type == STT_FUNC &&
           (bind == STB_GLOBAL || bind == STB_WEAK) &&
           !(tables->versions && tables->versions[index] & 0x8000);
}

static uint32_t gnu_hash_of(const char *name) {
    uint32_t hash = 5381;
    for (; *name; name++) {
        hash = hash * 33 + (uint8_t)*name;
    }
    return hash;
}

/* The index of an exported function; 0: none. */
static uint32_t find_symbol(const struct tables *tables, const char *name) {
    if (!tables->gnu_hash) {
        uint32_t count = symbol_count(tables);
        for (uint32_t i = 1; i < count; i++) {
            if (is_function(tables, i) && strcmp(tables->strings + tables->symbols[i].st_name, name) == 0) {
                return i;
            }
        }
        return 0;
    }
    const uint32_t *header = tables->gnu_hash;
    uint32_t buckets = header[0], offset = header[1], hash = gnu_hash_of(name);
    const uint32_t *bucket = header + 4 + header[2] * (sizeof(Elf64_Addr) / 4), *chain = bucket + buckets;
    uint32_t i = buckets ? bucket[hash % buckets] : 0;
    for (; i >= offset && i; i++) {
        if ((chain[i - offset] | 1) == (hash | 1) && is_function(tables, i) &&
            strcmp(tables->strings + tables->symbols[i].st_name, name) == 0) {
            return i;
        }
        if (chain[i - offset] & 1) {
            break;
        }
    }
    return 0;
}

/* The program headers of a module: in its first page, and of the program as the kernel says, which may be
 * linked to a fixed place. NULL: unknown. */
static const Elf64_Phdr *parts_of(const struct link_map *map, size_t *count) {
    if (map == first_module()) {
        *count = getauxval(AT_PHNUM);
        return (const void *)getauxval(AT_PHDR);
    }
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)map->l_addr;
    if (!header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) {
        return NULL;
    }
    *count = header->e_phnum;
    return (const void *)((const char *)header + header->e_phoff);
}

static void take_note(struct module *module, const uint8_t *note, const uint8_t *end) {
    while ((size_t)(end - note) >= sizeof(Elf64_Nhdr)) {
        const Elf64_Nhdr *header = (const void *)note;
        const uint8_t *name = note + sizeof *header, *text = name + ((header->n_namesz + 3) & ~3u);
        if (header->n_type == NT_GNU_BUILD_ID && header->n_namesz == 4 && memcmp(name, "GNU", 4) == 0) {
            module->build_id = text;
            module->build_id_bytes = header->n_descsz;
            return;
        }
        note = text + ((header->n_descsz + 3) & ~3u);
    }
}

static void describe(const struct link_map *map, struct module *module) {
    size_t count = 0;
    const Elf64_Phdr *parts = parts_of(map, &count);
    *module = (struct module){.path = map->l_name ? map->l_name : "", .bias = map->l_addr, .dynamic = map};
    module->start = UINT64_MAX;
    for (size_t i = 0; parts && i < count; i++) {
        uint64_t start = map->l_addr + parts[i].p_vaddr, end = start + parts[i].p_memsz;
        if (parts[i].p_type == PT_LOAD) {
            module->start = start < module->start ? start : module->start;
            module->end = end > module->end ? end : module->end;
        } else if (parts[i].p_type == PT_NOTE && !module->build_id) {
            take_note(module, (const uint8_t *)(uintptr_t)start, (const uint8_t *)(uintptr_t)end);
        }
    }
}

bool module_data(const struct module *module, uint64_t *start, uint64_t *end) {
    size_t count = 0;
    const Elf64_Phdr *parts = parts_of(module->dynamic, &count);
    for (size_t i = 0; parts && i < count; i++) {
        if (parts[i].p_type == PT_LOAD && parts[i].p_flags & PF_W) {
            *start = module->bias + parts[i].p_vaddr;
            *end = *start + parts[i].p_filesz;
            return true;
        }
    }
    return false;
}

bool module_at(uint64_t address, struct module *module) {
    for (const struct link_map *map = first_module(); map; map = map->l_next) {
        describe(map, module);
        if (address >= module->start && address < module->end) {
            return true;
        }
    }
    return false;
}

bool module_named(const char *name, struct module *module) {
    size_t length = strlen(name);
    for (const struct link_map *map = first_module(); map; map = map->l_next) {
        char program[256] = "";
        if (map == first_module()) {
            system_program(program, sizeof program);
        }
        const char *path = map == first_module() ? program : map->l_name ? map->l_name : "";
        size_t have = strlen(path);
        if (have >= length && strcmp(path + have - length, name) == 0 &&
            (have == length || path[have - length - 1] == '/')) {
            describe(map, module);
            return true;
        }
    }
    return false;
}

static bool is_ours(const struct link_map *map) {
    return map->l_addr == (Elf64_Addr)(uintptr_t)__ehdr_start;
}

void *module_export(const struct module *module, const char *name) {
    const struct link_map *map = module->dynamic;
    struct tables tables;
    uint32_t index = open_tables(map, &tables) ? find_symbol(&tables, name) : 0;
    return index ? (void *)(uintptr_t)(map->l_addr + tables.symbols[index].st_value) : NULL;
}

void *module_find(const char *name, struct module *module) {
    for (const struct link_map *map = first_module(); map; map = map->l_next) {
        struct tables tables;
        uint32_t index = !is_ours(map) && open_tables(map, &tables) ? find_symbol(&tables, name) : 0;
        if (index) {
            describe(map, module);
            return (void *)(uintptr_t)(map->l_addr + tables.symbols[index].st_value);
        }
    }
    return NULL;
}

/* The exported function that starts nearest below an address. */
static const char *nearest_name(const struct link_map *map, uint64_t address, uint64_t *offset) {
    struct tables tables;
    const char *name = NULL;
    uint32_t count = open_tables(map, &tables) ? symbol_count(&tables) : 0;
    for (uint32_t i = 1; i < count; i++) {
        uint64_t start = map->l_addr + tables.symbols[i].st_value;
        if (is_function(&tables, i) && address >= start && address < start + tables.symbols[i].st_size) {
            name = tables.strings + tables.symbols[i].st_name;
            *offset = address - start;
        }
    }
    return name;
}

void module_symbolize(struct karst_line *line, uint64_t address) {
    struct module module;
    if (!module_at(address, &module)) {
        return;
    }
    uint64_t offset = 0;
    const char *name = nearest_name(module.dynamic, address, &offset);
    char program[256] = "";
    if (!*module.path) {
        system_program(program, sizeof program);
        module.path = program;
    }
    const char *slash = strrchr(module.path, '/');
    const char *file = slash ? slash + 1 : module.path;
    karst_line_add(line, " (");
    if (name) {
        karst_line_add(line, name);
        karst_line_add(line, "+");
        karst_line_add_hex(line, offset);
        karst_line_add(line, " in ");
    }
    karst_line_add(line, file);
    if (!name) {
        karst_line_add(line, "+");
        karst_line_add_hex(line, address - module.bias);
    }
    karst_line_add(line, ")");
}
