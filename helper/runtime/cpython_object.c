/* CPython's objects: types, and short words on values. Offsets that have been the same from 3.9 to 3.15 on
 * 64-bit machines stand here, the others in cpython_layout.c (Include/cpython/object.h, unicodeobject.h,
 * longintrepr.h, dictobject.h, Include/internal/pycore_dict.h). */
#include "cpython.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OB_TYPE          8
#define OB_SIZE          16
#define TYPE_NAME        24
#define TYPE_BASIC_SIZE  32
#define TYPE_ITEM_SIZE   40
#define TYPE_FLAGS       168
#define TYPE_DICT        264
#define TYPE_SIZE_READ   272
#define STR_LENGTH       16
#define STR_STATE        32
#define STR_COMPACT      0x20u
#define STR_ASCII        0x40u
#define COLLECTOR_HEADER 16

#define MANAGED_DICT    (1u << 4) /* 3.11 and later */
#define MANAGED_WEAKREF (1u << 3) /* 3.12 and later */

#define BASIC_SIZE_MAX (1u << 20)
#define TYPES_MAX      (1u << 20)
#define REFUSED        (1u << 16) /* addresses that are no types, remembered */
#define MODULE_ENTRIES 4096u      /* of a type's dict that are looked at for __module__ */

/* ---- types ------------------------------------------------------------------------------------------- */

static uint64_t hash_of(uint64_t address) {
    return (address >> 3) * 0x9e3779b97f4a7c15u >> 32;
}

static size_t slot_of(const struct cpython_types *types, uint64_t address) {
    size_t at = (size_t)hash_of(address) & (types->capacity - 1);
    while (types->slots[at] && types->slots[at]->address != address) {
        at = (at + 1) & (types->capacity - 1);
    }
    return at;
}

static bool grow_types(struct cpython *python) {
    struct cpython_types *types = &python->types, bigger = *types;
    bigger.capacity = types->capacity ? types->capacity * 2 : 1024;
    bigger.slots = calloc(bigger.capacity, sizeof *bigger.slots);
    if (!bigger.slots) {
        python->out_of_memory = true;
        return false;
    }
    for (size_t i = 0; i < types->capacity; i++) {
        if (types->slots[i]) {
            bigger.slots[slot_of(&bigger, types->slots[i]->address)] = types->slots[i];
        }
    }
    free(types->slots);
    *types = bigger;
    return true;
}

static void refuse(struct cpython *python, uint64_t address) {
    struct cpython_types *types = &python->types;
    if (!types->refused) {
        types->refused = calloc(REFUSED, sizeof *types->refused);
        python->out_of_memory |= !types->refused;
    }
    if (types->refused) {
        types->refused[hash_of(address) % REFUSED] = address;
    }
}

enum string { STRING_NONE, STRING_READ, STRING_MISSING };

/* A name that a static type has in its module's constants, which a core may lack. */
static enum string read_c_string(struct cpython *python, uint64_t address, char *text, size_t size) {
    size_t used = 0;
    while (used + 1 < size) {
        const uint8_t *byte = karst_cache_at(&python->cache, address + used, 1);
        if (!byte) {
            return karst_target_module(python->target, address) ? STRING_MISSING : STRING_NONE;
        }
        if (*byte != 0 && (*byte < ' ' || *byte >= 127)) {
            return STRING_NONE;
        }
        if (*byte == 0) {
            break;
        }
        text[used++] = (char)*byte;
    }
    text[used] = '\0';
    return used > 0 ? STRING_READ : STRING_NONE;
}

static uint64_t flags_at(struct cpython *python, uint64_t type) {
    return cpython_u64(python, type + TYPE_FLAGS);
}

/* What has a type's header: its metatype is a type whose type is one. */
static bool is_type(struct cpython *python, uint64_t address, uint8_t *header) {
    const uint8_t *bytes =
        address % 8 == 0 && address ? karst_cache_at(&python->cache, address, TYPE_SIZE_READ) : NULL;
    if (!bytes) {
        return false;
    }
    memcpy(header, bytes, TYPE_SIZE_READ);
    uint64_t meta = cpython_word(header + OB_TYPE), basic_size = cpython_word(header + TYPE_BASIC_SIZE);
    if (!(cpython_word(header + TYPE_FLAGS) & CPYTHON_TYPE_READY) || basic_size < 16 ||
        basic_size > BASIC_SIZE_MAX || cpython_word(header + TYPE_ITEM_SIZE) > BASIC_SIZE_MAX || meta == 0 ||
        meta % 8 != 0) {
        return false;
    }
    uint64_t over = cpython_u64(python, meta + OB_TYPE);
    return over && flags_at(python, meta) & CPYTHON_TYPE_TYPE && flags_at(python, over) & CPYTHON_TYPE_TYPE;
}

/* What __module__ in a type's dict says. */
static void read_module(struct cpython *python, uint64_t dict_object, char *text, size_t size) {
    struct cpython_dict dict;
    text[0] = '\0';
    if (!cpython_dict_open(python, dict_object, &dict)) {
        return;
    }
    for (uint64_t i = 0; i < dict.count && i < MODULE_ENTRIES; i++) {
        uint64_t key, value;
        char name[24];
        if (cpython_dict_entry(python, &dict, i, &key, &value) &&
            cpython_text(python, key, name, sizeof name) && strcmp(name, "__module__") == 0) {
            cpython_text(python, value, text, size);
            return;
        }
    }
}

/* False: no type has such a name. */
static bool name_type(struct cpython *python, struct cpython_type *type, const uint8_t *header) {
    char name[sizeof type->name], module[sizeof type->name];
    switch (read_c_string(python, cpython_word(header + TYPE_NAME), name, sizeof name)) {
    case STRING_NONE:
        return false;
    case STRING_READ:
        snprintf(type->name, sizeof type->name, "%s", name);
        break;
    default:
        type->unnamed = true;
        snprintf(type->name, sizeof type->name, "type 0x%" PRIx64, type->address);
    }
    if (type->flags & CPYTHON_TYPE_HEAP) {
        cpython_text(python, cpython_u64(python, type->address + python->layout.heap_type_qualname), name,
                     sizeof name);
        read_module(python, cpython_word(header + TYPE_DICT), module, sizeof module);
        if (*module && *name && strcmp(module, "builtins") != 0) {
            snprintf(type->name, sizeof type->name, "%.40s.%.54s", module, name);
        }
    }
    return true;
}

static uint32_t bytes_before(const struct cpython *python, uint64_t flags) {
    uint32_t before = flags & CPYTHON_TYPE_GC ? COLLECTOR_HEADER : 0;
    uint64_t managed = python->layout.minor >= 12   ? MANAGED_DICT | MANAGED_WEAKREF
                       : python->layout.minor == 11 ? MANAGED_DICT
                                                    : 0;
    return flags & managed ? before + 16 : before;
}

static struct cpython_type *make_type(struct cpython *python, uint64_t address, const uint8_t *header) {
    struct cpython_type *type = calloc(1, sizeof *type);
    if (!type) {
        python->out_of_memory = true;
        return NULL;
    }
    type->address = address;
    type->flags = cpython_word(header + TYPE_FLAGS);
    type->basic_size = cpython_word(header + TYPE_BASIC_SIZE);
    type->item_size = cpython_word(header + TYPE_ITEM_SIZE);
    type->before = bytes_before(python, type->flags);
    return type;
}

/* The type at an address that was not met yet. */
static struct cpython_type *add_type(struct cpython *python, uint64_t address) {
    struct cpython_types *types = &python->types;
    uint8_t header[TYPE_SIZE_READ];
    if (!karst_target_mapping(python->target, address)) {
        return NULL;
    }
    struct cpython_type *type = types->count < TYPES_MAX && is_type(python, address, header)
                                    ? make_type(python, address, header)
                                    : NULL;
    if (!type || !name_type(python, type, header)) {
        free(type);
        refuse(python, address);
        return NULL;
    }
    if (2 * types->count >= types->capacity && !grow_types(python)) {
        free(type);
        return NULL;
    }
    types->slots[slot_of(types, address)] = type;
    types->count++;
    return type;
}

struct cpython_type *cpython_type_at(struct cpython *python, uint64_t address) {
    const struct cpython_types *types = &python->types;
    if (address == 0 || address % 8 != 0) {
        return NULL;
    }
    struct cpython_type *type = types->capacity ? types->slots[slot_of(types, address)] : NULL;
    if (type) {
        return type;
    }
    bool refused = types->refused && types->refused[hash_of(address) % REFUSED] == address;
    return refused ? NULL : add_type(python, address);
}

struct cpython_type *cpython_type_of(struct cpython *python, uint64_t object) {
    uint64_t type;
    return object && object % 8 == 0 && cpython_read(python, object + OB_TYPE, &type)
               ? cpython_type_at(python, type)
               : NULL;
}

/* Whether object is of a type with one of these flags. Types are read, not looked up: naming one asks this.
 */
static bool has_flag(struct cpython *python, uint64_t object, uint64_t flag) {
    uint64_t type;
    return object && object % 8 == 0 && cpython_read(python, object + OB_TYPE, &type) && type &&
           type % 8 == 0 && (flags_at(python, type) & flag) != 0;
}

/* ---- text ---------------------------------------------------------------------------------------------- */

static size_t put_utf8(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        if (c >= 0xd800 && c < 0xe000) {
            c = 0xfffd;
        }
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | (c >> 18 & 7));
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* Where a str's characters are; 0: it is no str, or has none. kind: bytes a character. */
static uint64_t characters_of(struct cpython *python, uint64_t object, uint64_t *length, unsigned *kind) {
    if (!has_flag(python, object, CPYTHON_TYPE_STR)) {
        return 0;
    }
    uint32_t state = cpython_u32(python, object + STR_STATE);
    *length = cpython_u64(python, object + STR_LENGTH);
    *kind = state >> 2 & 7;
    if (*length > (uint64_t)1 << 48 || (*kind != 1 && *kind != 2 && *kind != 4)) {
        return 0;
    }
    if (!(state & STR_COMPACT)) {
        return cpython_u64(python, object + python->layout.compact_size);
    }
    return object + (state & STR_ASCII ? python->layout.ascii_size : python->layout.compact_size);
}

static const char ellipsis[] = "\xe2\x80\xa6";

bool cpython_text(struct cpython *python, uint64_t object, char *text, size_t size) {
    uint64_t length;
    unsigned kind;
    uint64_t at = characters_of(python, object, &length, &kind);
    size_t used = 0;
    text[0] = '\0';
    for (uint64_t i = 0; at && i < length; i++) {
        const uint8_t *bytes = karst_cache_at(&python->cache, at + i * kind, kind);
        uint32_t c = 0;
        if (!bytes) {
            return used > 0;
        }
        memcpy(&c, bytes, kind);
        if (used + 4 + sizeof ellipsis > size) {
            memcpy(text + used, ellipsis, sizeof ellipsis);
            return true;
        }
        used += put_utf8(text + used, c > 0x10ffff || c == 0 ? 0xfffd : c);
        text[used] = '\0';
    }
    return at != 0;
}

/* ---- values -------------------------------------------------------------------------------------------- */

static void put_count(char *text, size_t size, uint64_t count, const char *what) {
    char digits[32], grouped[44];
    size_t length = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, count), used = 0;
    for (size_t i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) {
            grouped[used++] = ',';
        }
        grouped[used++] = digits[i];
    }
    grouped[used] = '\0';
    snprintf(text, size, "%s %s%s", grouped, what, count == 1 ? "" : "s");
}

static void say_int(struct cpython *python, const struct cpython_type *type, uint64_t object, char *text,
                    size_t size) {
    uint64_t tag = cpython_u64(python, object + OB_SIZE), digits;
    bool negative;
    if (python->layout.tagged_int) {
        digits = tag >> 3;
        negative = (tag & 3) == 2;
    } else {
        negative = (int64_t)tag < 0;
        digits = negative ? -tag : tag;
    }
    if (digits > 2) {
        put_count(text, size, digits > UINT32_MAX ? 0 : digits * 30, "bit");
        return;
    }
    uint64_t value = digits > 0 ? cpython_u32(python, object + 24) : 0;
    value |= digits > 1 ? (uint64_t)cpython_u32(python, object + 28) << 30 : 0;
    if (strcmp(type->name, "bool") == 0) {
        snprintf(text, size, "%s", value ? "True" : "False");
    } else {
        snprintf(text, size, "%s%" PRIu64, negative && value ? "-" : "", value);
    }
}

static void say_str(struct cpython *python, uint64_t object, char *text, size_t size) {
    uint64_t length;
    unsigned kind;
    if (!characters_of(python, object, &length, &kind)) {
        text[0] = '\0';
    } else if (length > 40) {
        put_count(text, size, length, "character");
    } else {
        char own[180];
        cpython_text(python, object, own, sizeof own);
        snprintf(text, size, "'%s'", own);
    }
}

void cpython_value(struct cpython *python, uint64_t object, char *text, size_t size) {
    const struct cpython_type *type = cpython_type_of(python, object);
    text[0] = '\0';
    if (!type) {
        return;
    }
    uint64_t count = cpython_u64(python, object + OB_SIZE);
    count = count > (uint64_t)1 << 48 ? 0 : count;
    if (type->flags & CPYTHON_TYPE_STR) {
        say_str(python, object, text, size);
    } else if (type->flags & CPYTHON_TYPE_INT) {
        say_int(python, type, object, text, size);
    } else if (type->flags & CPYTHON_TYPE_BYTES || strcmp(type->name, "bytearray") == 0) {
        put_count(text, size, count, "byte");
    } else if (type->flags & (CPYTHON_TYPE_LIST | CPYTHON_TYPE_TUPLE | CPYTHON_TYPE_DICT) ||
               strcmp(type->name, "collections.deque") == 0) {
        put_count(text, size, count, "item");
    } else if (strcmp(type->name, "set") == 0 || strcmp(type->name, "frozenset") == 0) {
        put_count(text, size, cpython_u64(python, object + 24), "item");
    } else if (strcmp(type->name, "float") == 0) {
        uint64_t word = cpython_u64(python, object + 16);
        double value;
        memcpy(&value, &word, sizeof value);
        snprintf(text, size, "%.12g", value);
    } else if (type->flags & CPYTHON_TYPE_TYPE) {
        const struct cpython_type *own = cpython_type_at(python, object);
        snprintf(text, size, "%s", own ? own->name : "");
    }
}

/* ---- containers ---------------------------------------------------------------------------------------- */

uint64_t cpython_tuple_size(struct cpython *python, uint64_t tuple) {
    uint64_t size = has_flag(python, tuple, CPYTHON_TYPE_TUPLE) ? cpython_u64(python, tuple + OB_SIZE) : 0;
    return size < (uint64_t)1 << 40 ? size : 0;
}

uint64_t cpython_tuple_item(struct cpython *python, uint64_t tuple, uint64_t index) {
    return cpython_u64(python, tuple + python->layout.tuple_items + 8 * index);
}

/* Include/internal/pycore_dict.h (3.11 and later), Objects/dict-common.h (before). */
static bool open_keys(struct cpython *python, uint64_t keys, struct cpython_dict *dict) {
    const uint8_t *bytes = karst_cache_at(&python->cache, keys, 40);
    if (!bytes) {
        return false;
    }
    uint64_t usable, index_bytes, header;
    bool pairs;
    if (python->layout.packed_keys) {
        unsigned log2_bytes = bytes[9], kind = bytes[10];
        if (bytes[8] > 40 || log2_bytes > 43 || kind > 2) {
            return false;
        }
        index_bytes = (uint64_t)1 << log2_bytes;
        usable = cpython_word(bytes + 16);
        dict->count = cpython_word(bytes + 24);
        pairs = kind != 0;
        header = 32;
    } else {
        uint64_t size = cpython_word(bytes + 8);
        if (size == 0 || (size & (size - 1)) != 0 || size > (uint64_t)1 << 40) {
            return false;
        }
        index_bytes = size * (size <= 0xff ? 1 : size <= 0xffff ? 2 : size <= UINT32_MAX ? 4 : 8);
        usable = cpython_word(bytes + 24);
        dict->count = cpython_word(bytes + 32);
        pairs = false;
        header = 40;
    }
    if (dict->count > (uint64_t)1 << 40 || usable > (uint64_t)1 << 40) {
        return false;
    }
    dict->entry_size = pairs ? 16 : 24;
    dict->key_at = pairs ? 0 : 8;
    dict->value_at = dict->key_at + 8;
    dict->keys = keys;
    dict->entries = keys + header + index_bytes;
    dict->keys_size = header + index_bytes + (dict->count + usable) * dict->entry_size;
    return true;
}

bool cpython_dict_open(struct cpython *python, uint64_t object, struct cpython_dict *dict) {
    *dict = (struct cpython_dict){0};
    if (!has_flag(python, object, CPYTHON_TYPE_DICT)) {
        return false;
    }
    dict->values = cpython_u64(python, object + 40);
    dict->shared = dict->values != 0;
    if (dict->values && python->layout.minor >= 13) {
        dict->values += 8;
    }
    return open_keys(python, cpython_u64(python, object + 32), dict);
}

#define INLINE_VALUES (1u << 2) /* type flag, 3.13 and later */

bool cpython_instance_open(struct cpython *python, uint64_t object, const struct cpython_type *type,
                           struct cpython_dict *dict) {
    *dict = (struct cpython_dict){0};
    if (python->layout.minor < 11 || !(type->flags & CPYTHON_TYPE_HEAP) || !(type->flags & MANAGED_DICT)) {
        return false;
    }
    uint64_t values = 0;
    if (python->layout.minor == 11) {
        values = cpython_u64(python, object - 32);
    } else if (python->layout.minor == 12) {
        /* One less than the address: the lowest bit tells it from a dict. */
        uint64_t word = cpython_u64(python, object - 24);
        values = word & 1 ? word + 1 : 0;
    } else if (type->flags & INLINE_VALUES) {
        const uint8_t *header = karst_cache_at(&python->cache, object + type->basic_size, 4);
        values = header && header[3] /* valid */ ? object + type->basic_size + 8 : 0;
    }
    if (!values || values % 8 != 0 ||
        !open_keys(python, cpython_u64(python, type->address + python->layout.heap_type_keys), dict)) {
        return false;
    }
    dict->values = values;
    dict->shared = true;
    return true;
}

bool cpython_dict_entry(struct cpython *python, const struct cpython_dict *dict, uint64_t index,
                        uint64_t *key, uint64_t *value) {
    const uint8_t *bytes =
        karst_cache_at(&python->cache, dict->entries + index * dict->entry_size, dict->entry_size);
    if (!bytes) {
        return false;
    }
    *key = cpython_word(bytes + dict->key_at);
    *value = dict->values ? 0 : cpython_word(bytes + dict->value_at);
    if (dict->values) {
        *value = cpython_u64(python, dict->values + 8 * index);
    }
    return *key != 0 && *value != 0;
}
