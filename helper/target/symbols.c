/* Symbols: names to addresses and back, from .symtab, the separate debug file and .dynsym. */
#include "symbols.h"

#include "demangle.h"
#include "parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_SIZE 1024

/* An address range with a name, that of a symbol of the first table. */
struct karst_place {
    uint64_t start;
    uint64_t end;
    uint32_t symbol;
    uint8_t weight; /* which of several names of one address to show: the lowest */
};

/* ---- tables and index -------------------------------------------------------------------------- */

static bool load_table(const struct karst_elf_file *file, uint32_t type, struct karst_symbol_table *table) {
    for (size_t i = 0; i < file->section_count; i++) {
        const Elf64_Shdr *section = &file->sections[i];
        size_t size;
        const uint8_t *data = section->sh_type == type ? karst_elf_section_data(file, section, &size) : NULL;
        if (!data || section->sh_link >= file->section_count ||
            section->sh_offset % _Alignof(Elf64_Sym) != 0) {
            continue;
        }
        const uint8_t *names =
            karst_elf_section_data(file, &file->sections[section->sh_link], &table->names_size);
        if (names && size >= sizeof(Elf64_Sym)) {
            table->symbols = (const Elf64_Sym *)(const void *)data;
            table->count = size / sizeof(Elf64_Sym);
            /* Both tables together are numbered with 32 bits. */
            table->count = table->count < INT32_MAX ? table->count : INT32_MAX;
            table->names = (const char *)names;
            return true;
        }
    }
    return false;
}

/* The name of a symbol, NULL: it leaves its table. */
static const char *symbol_name(const struct karst_symbol_table *table, const Elf64_Sym *symbol) {
    if (symbol->st_name >= table->names_size ||
        !memchr(table->names + symbol->st_name, '\0', table->names_size - symbol->st_name)) {
        return NULL;
    }
    return table->names + symbol->st_name;
}

static bool is_usable(const Elf64_Sym *symbol) {
    unsigned type = ELF64_ST_TYPE(symbol->st_info);
    return symbol->st_shndx != SHN_UNDEF && symbol->st_name != 0 && type != STT_SECTION && type != STT_FILE;
}

/* The length of a name without its version ("@@GLIBC_2.2.5") and without what link-time optimisation and
 * cloning add: ".lto_priv.0", ".constprop.0", ".isra.0", ".part.0", ".cold". */
static size_t stem_length(const char *name) {
    static const char *const suffixes[] = {".lto_priv", ".constprop", ".isra", ".part", ".cold"};
    size_t length = strcspn(name, "@");
    for (size_t at = 1; at < length; at++) {
        for (size_t i = 0; name[at] == '.' && i < sizeof suffixes / sizeof *suffixes; i++) {
            size_t behind = at + strlen(suffixes[i]);
            if (behind <= length && memcmp(name + at, suffixes[i], behind - at) == 0 &&
                (behind == length || name[behind] == '.')) {
                return at;
            }
        }
    }
    return length;
}

static uint64_t hash(const char *text, size_t length) {
    uint64_t value = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++) {
        value = (value ^ (uint8_t)text[i]) * 0x100000001b3u;
    }
    return value ^ value >> 32;
}

/* The symbol with a number of the index. */
static const Elf64_Sym *numbered(const struct karst_symbols *symbols, uint32_t number,
                                 const struct karst_symbol_table **table) {
    size_t index = number - 1;
    *table = &symbols->tables[0];
    if (index >= symbols->tables[0].count) {
        index -= symbols->tables[0].count;
        *table = &symbols->tables[1];
    }
    return &(*table)->symbols[index];
}

static void index_symbols(struct karst_symbols *symbols, size_t count) {
    for (uint32_t number = 1; number <= count; number++) {
        const struct karst_symbol_table *table;
        const Elf64_Sym *symbol = numbered(symbols, number, &table);
        const char *name = is_usable(symbol) ? symbol_name(table, symbol) : NULL;
        if (name) {
            uint32_t *chain = &symbols->chains[hash(name, stem_length(name)) & (symbols->chain_count - 1)];
            symbols->nexts[number] = *chain;
            *chain = number;
        }
    }
}

/* Indexes the tables; without memory for it there are no symbols. */
static void build_index(struct karst_symbols *symbols) {
    size_t count = symbols->tables[0].count + symbols->tables[1].count, chains = 16;
    while (chains < count) {
        chains *= 2;
    }
    symbols->chains = calloc(chains, sizeof *symbols->chains);
    symbols->nexts = calloc(count + 1, sizeof *symbols->nexts);
    if (!symbols->chains || !symbols->nexts) {
        symbols->table_count = 0;
        return;
    }
    symbols->chain_count = chains;
    index_symbols(symbols, count);
}

/* Loads the tables and indexes them. */
static struct karst_symbols *load_symbols(struct karst_target *target, struct karst_module *module) {
    struct karst_symbols *symbols = karst_module_symbols(target, module);
    if (!symbols || symbols->loaded) {
        return symbols;
    }
    symbols->loaded = true;
    bool full = false;
    if (!target->no_symbols && module->file_matches) {
        full = load_table(&symbols->file, SHT_SYMTAB, &symbols->tables[0]);
    }
    if (!full && !target->no_symbols) {
        const struct karst_elf_file *debug = karst_module_debug_file(target, module);
        full = debug && load_table(debug, SHT_SYMTAB, &symbols->tables[0]);
    }
    symbols->table_count = full ? 1 : 0;
    if (module->file_matches &&
        load_table(&symbols->file, SHT_DYNSYM, &symbols->tables[symbols->table_count])) {
        symbols->table_count++;
    }
    build_index(symbols);
    return symbols;
}

void karst_symbols_free_index(struct karst_symbols *symbols) {
    free(symbols->chains);
    free(symbols->nexts);
    free(symbols->places);
}

/* ---- lookups ----------------------------------------------------------------------------------- */

/* How well a symbol answers to a name: the exact name before one with a suffix, global before local. */
static int rank(const Elf64_Sym *symbol, const char *found, const char *wanted) {
    return (strcmp(found, wanted) == 0 ? 2 : 0) + (ELF64_ST_BIND(symbol->st_info) != STB_LOCAL ? 1 : 0);
}

static const Elf64_Sym *find_symbol(const struct karst_symbols *symbols, const char *name) {
    const Elf64_Sym *best = NULL;
    int best_rank = -1;
    size_t length = stem_length(name);
    if (symbols->chain_count == 0) {
        return NULL;
    }
    uint32_t number = symbols->chains[hash(name, length) & (symbols->chain_count - 1)];
    for (; number != 0; number = symbols->nexts[number]) {
        const struct karst_symbol_table *table;
        const Elf64_Sym *symbol = numbered(symbols, number, &table);
        const char *found = symbol_name(table, symbol);
        bool same =
            found && (name[length] == '\0' ? strncmp(found, name, length) == 0 && stem_length(found) == length
                                           : strcmp(found, name) == 0);
        if (same && rank(symbol, found, name) > best_rank) {
            best = symbol;
            best_rank = rank(symbol, found, name);
        }
    }
    return best;
}

/* What the debugger says, if that lies in the module: of two libraries with one path it may mean the
 * other. */
static bool lent_symbol(struct karst_target *target, const struct karst_module *module, const char *name,
                        struct karst_symbol *symbol) {
    const struct karst_callbacks *callbacks = target->callbacks;
    if (!callbacks || !callbacks->symbol || target->no_symbols ||
        !callbacks->symbol(callbacks->context, module->path, name, symbol)) {
        return false;
    }
    return symbol->thread_local_ || (symbol->address >= module->start && symbol->address < module->end);
}

bool karst_module_symbol(struct karst_target *target, struct karst_module *module, const char *name,
                         struct karst_symbol *symbol) {
    memset(symbol, 0, sizeof *symbol);
    const struct karst_symbols *symbols = load_symbols(target, module);
    const Elf64_Sym *found = symbols ? find_symbol(symbols, name) : NULL;
    if (!found) {
        return lent_symbol(target, module, name, symbol);
    }
    symbol->thread_local_ = ELF64_ST_TYPE(found->st_info) == STT_TLS;
    symbol->address = found->st_value + (symbol->thread_local_ ? 0 : module->bias);
    symbol->size = found->st_size;
    return true;
}

/* ---- addresses to names ------------------------------------------------------------------------ */

static int compare_places(const void *a, const void *b) {
    const struct karst_place *x = a, *y = b;
    if (x->start != y->start) {
        return x->start < y->start ? -1 : 1;
    }
    if (x->weight != y->weight) {
        return x->weight < y->weight ? -1 : 1;
    }
    return x->symbol < y->symbol ? -1 : x->symbol > y->symbol;
}

static bool is_place(const Elf64_Sym *symbol) {
    unsigned type = ELF64_ST_TYPE(symbol->st_info);
    return is_usable(symbol) && symbol->st_shndx != SHN_ABS &&
           (type == STT_FUNC || type == STT_OBJECT || type == STT_GNU_IFUNC) &&
           symbol->st_value <= UINT64_MAX - symbol->st_size;
}

/* Names to show in the first place: global, without leading underscores. Lower is better. */
static uint8_t weight_of(const Elf64_Sym *symbol, const char *name) {
    size_t underscores = strspn(name, "_");
    return (uint8_t)((ELF64_ST_BIND(symbol->st_info) == STB_LOCAL ? 8 : 0) +
                     (underscores < 7 ? underscores : 7));
}

/* Sorts functions and objects by address. A table of all symbols makes the dynamic one superfluous. */
static void load_places(struct karst_symbols *symbols) {
    symbols->placed = true;
    if (symbols->table_count == 0) {
        return;
    }
    const struct karst_symbol_table *table = &symbols->tables[0];
    size_t count = 0;
    for (size_t i = 0; i < table->count; i++) {
        count += is_place(&table->symbols[i]);
    }
    symbols->places = calloc(count ? count : 1, sizeof *symbols->places);
    if (!symbols->places) {
        return;
    }
    for (size_t i = 0; i < table->count; i++) {
        const Elf64_Sym *symbol = &table->symbols[i];
        const char *name = is_place(symbol) ? symbol_name(table, symbol) : NULL;
        if (name) {
            symbols->places[symbols->place_count++] = (struct karst_place){
                symbol->st_value, symbol->st_value + symbol->st_size, (uint32_t)i, weight_of(symbol, name)};
        }
    }
    qsort(symbols->places, symbols->place_count, sizeof *symbols->places, compare_places);
}

/* The best place that holds value: the nearest start, and of one start the best name. Symbols may lie
 * inside others, so a few before the nearest start are looked at. */
static const struct karst_place *find_place(const struct karst_symbols *symbols, uint64_t value) {
    size_t low = 0, high = symbols->place_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (symbols->places[middle].start > value) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    const struct karst_place *best = NULL;
    for (size_t i = low, looked = 0; i-- > 0 && looked < 64; looked++) {
        const struct karst_place *place = &symbols->places[i];
        if (best && place->start != best->start) {
            break;
        }
        /* A symbol of no size, from hand-written assembly, reaches to the next one. */
        if (value < place->end || (place->start == place->end && i + 1 == low)) {
            best = place;
        }
    }
    return best;
}

/* The name of the symbol that holds address, and how far behind its start that is; NULL: unknown. */
static const char *name_of(struct karst_target *target, uint64_t address, uint64_t *offset) {
    struct karst_module *module = karst_target_module(target, address);
    struct karst_symbols *symbols = module ? load_symbols(target, module) : NULL;
    if (!symbols) {
        return NULL;
    }
    if (!symbols->placed) {
        load_places(symbols);
    }
    uint64_t value = address - module->bias;
    const struct karst_place *place = find_place(symbols, value);
    const struct karst_symbol_table *table = &symbols->tables[0];
    *offset = place ? value - place->start : 0;
    return place ? symbol_name(table, &table->symbols[place->symbol]) : NULL;
}

bool karst_target_symbolize(struct karst_target *target, uint64_t address, enum karst_symbol_form form,
                            char *text, size_t size) {
    char distance[24] = "", linked[NAME_MAX_SIZE];
    uint64_t offset = 0;
    const char *name = name_of(target, address, &offset);
    if (!name || size <= sizeof distance) {
        return false;
    }
    if (offset) {
        snprintf(distance, sizeof distance, "+0x%" PRIx64, offset);
    }
    size_t room = size - strlen(distance);
    snprintf(linked, sizeof linked, "%.*s", (int)strcspn(name, "@"), name);
    if (form == KARST_SYMBOL_LINKED || !karst_demangle(linked, text, room)) {
        bool fits = strlen(linked) < room;
        snprintf(text, room, "%.*s%s", (int)(fits ? room : room - 4), linked, fits ? "" : "...");
    }
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s", distance);
    return true;
}

/* ---- texts in a file --------------------------------------------------------------------------- */

static void copy_text(const uint8_t *from, size_t there, char *text, size_t size) {
    size_t length = 0;
    while (length < there && length + 1 < size && from[length] >= ' ') {
        text[length] = (char)from[length];
        length++;
    }
    text[length] = '\0';
}

/* Searches what of the module is readable in the target's memory, in pieces that overlap. */
static bool find_text_in_memory(struct karst_target *target, const struct karst_module *module,
                                const char *needle, char *text, size_t size) {
    const size_t piece = 65536, length = strlen(needle), overlap = length + size;
    if (overlap >= piece) {
        return false;
    }
    uint8_t *buffer = malloc(piece);
    bool found = false;
    for (uint64_t at = module->start; buffer && !found && at < module->end;) {
        size_t wanted = module->end - at < piece ? (size_t)(module->end - at) : piece;
        size_t got = karst_target_read(target, at, buffer, wanted);
        const uint8_t *place = memmem(buffer, got, needle, length);
        if (place) {
            copy_text(place, got - (size_t)(place - buffer), text, size);
            found = true;
        } else if (got > overlap && got == wanted) {
            at += got - overlap;
            at = wanted < piece ? module->end : at;
        } else {
            at += got;
            at += karst_target_missing(target, at);
        }
    }
    free(buffer);
    return found;
}

static bool find_text_in(const uint8_t *data, size_t there, const char *needle, char *text, size_t size) {
    const uint8_t *place = data ? memmem(data, there, needle, strlen(needle)) : NULL;
    if (place) {
        copy_text(place, there - (size_t)(place - data), text, size);
    }
    return place != NULL;
}

bool karst_module_find_text(struct karst_target *target, struct karst_module *module, const char *needle,
                            char *text, size_t size) {
    if (size == 0 || *needle == '\0') {
        return false;
    }
    const struct karst_elf_file *file = karst_module_file(target, module);
    if (!file) {
        return find_text_in_memory(target, module, needle, text, size);
    }
    bool found = false;
    for (size_t i = 0; i < file->section_count && !found; i++) {
        const Elf64_Shdr *section = &file->sections[i];
        size_t there = 0;
        const uint8_t *data =
            section->sh_flags & SHF_ALLOC ? karst_elf_section_data(file, section, &there) : NULL;
        found = find_text_in(data, there, needle, text, size);
    }
    /* A file may do without a section table. */
    return found || (file->section_count == 0 && find_text_in(file->data, file->size, needle, text, size));
}
