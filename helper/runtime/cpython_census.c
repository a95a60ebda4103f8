/* Objects in blocks. An object of a type that the collector knows stands behind the collector's header, one
 * with a managed dict or weak references behind two more words (_PyType_PreHeaderSize,
 * Include/internal/pycore_object.h). */
#include "cpython_census.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define OB_TYPE    8
#define OB_SIZE    16
#define BEFORE_MAX 32u
#define DRESS      16u /* what the debug hooks put before an object */
/* A count of references beyond this may be a pointer, and is looked at as one. */
#define REFERENCES_LOOK 4096u
#define ATTRIBUTES_MAX  4096u
#define DEQUE_BLOCK     528u /* Modules/_collectionsmodule.c: 64 items and two links */
#define DEQUE_ITEMS     64u

/* ---- objects in blocks ------------------------------------------------------------------------------------
 */

/* The smallest that an object of the type takes. */
static uint64_t least_size(const struct cpython *python, const struct cpython_type *type) {
    return type->flags & CPYTHON_TYPE_STR ? python->layout.ascii_size + 1u : type->basic_size;
}

/* Since 3.12 the lower half counts, all ones or the top bits of which mean that it never ends; 3.14 has flags
 * in the upper. False: no object has such a word. */
static bool read_references(struct cpython *python, uint64_t word, struct cpython_object *object) {
    if (python->layout.minor >= 12) {
        uint64_t upper = word >> 32;
        if (python->layout.minor >= 14 ? (upper & 0xffff) != 0 : upper != 0) {
            return false;
        }
        word &= UINT32_MAX;
        object->references = word >= (uint64_t)1 << 31 ? UINT32_MAX : word;
    } else {
        object->references = word;
        if (word >> 40 != 0) {
            return false;
        }
    }
    object->kept = word == 0;
    /* A table of pointers has the type of some object at the place of its type, now and then. */
    return object->references < REFERENCES_LOOK || object->references == UINT32_MAX ||
           !cpython_type_of(python, object->references);
}

static bool object_at(struct cpython *python, const struct karst_block *block, uint64_t base,
                      struct cpython_object *object) {
    uint64_t end = block->address + block->usable;
    const uint8_t *bytes =
        base < end && end - base >= 16
            ? karst_cache_at(&python->cache, base, end - base < 48 ? (size_t)(end - base) & ~7u : 48)
            : NULL;
    if (!bytes) {
        return false;
    }
    uint64_t words[6] = {0};
    memcpy(words, bytes, end - base < 48 ? (size_t)(end - base) & ~7u : 48);
    for (uint32_t before = 0; before <= BEFORE_MAX && base + before + 16 <= end; before += 16) {
        struct cpython_type *type = cpython_type_at(python, words[before / 8 + 1]);
        if (type && type->before == before && base + before + least_size(python, type) <= end &&
            read_references(python, words[before / 8], object)) {
            object->address = base + before;
            object->type = type;
            /* Two low bits are the collector's. */
            object->tracked = (type->flags & CPYTHON_TYPE_GC) && words[before / 8 - 2] & ~(uint64_t)3;
            object->block = *block;
            return true;
        }
    }
    return false;
}

bool cpython_object_in(struct cpython *python, const struct karst_block *block,
                       struct cpython_object *object) {
    *object = (struct cpython_object){0};
    return object_at(python, block, block->address, object) ||
           (python->dressed && object_at(python, block, block->address + DRESS, object));
}

/* ---- buffers ----------------------------------------------------------------------------------------------
 */

static unsigned add_buffer(struct cpython *python, struct cpython_buffer *buffers, unsigned count,
                           uint64_t start, uint64_t size, const char *what) {
    if (start && size && size < (uint64_t)1 << 46 && karst_session_extent(python->session, start)) {
        buffers[count++] = (struct cpython_buffer){start, size, what};
    }
    return count;
}

static unsigned dict_buffers(struct cpython *python, uint64_t object, struct cpython_buffer *buffers) {
    struct cpython_dict dict;
    if (!cpython_dict_open(python, object, &dict)) {
        return 0;
    }
    if (!dict.shared) {
        return add_buffer(python, buffers, 0, dict.keys, dict.keys_size, "table");
    }
    /* Values beside the keys of a type; since 3.13 they may lie in the object that has the dict. */
    return python->layout.minor >= 13 ? 0
                                      : add_buffer(python, buffers, 0, dict.values, 8 * dict.count, "values");
}

#define STR_STATE   32
#define STR_COMPACT 0x20u
#define STR_ASCII   0x40u

/* A str of a subclass has its characters elsewhere; any that is not ASCII may keep its UTF-8. */
static unsigned str_buffers(struct cpython *python, uint64_t object, struct cpython_buffer *buffers) {
    uint32_t state = cpython_u32(python, object + STR_STATE), ascii_size = python->layout.ascii_size;
    uint64_t data = cpython_u64(python, object + python->layout.compact_size);
    unsigned count = 0;
    if (!(state & STR_COMPACT)) {
        count = add_buffer(python, buffers, count, data,
                           (cpython_u64(python, object + OB_SIZE) + 1) * (state >> 2 & 7), "characters");
    }
    uint64_t utf8 =
        state & STR_COMPACT && state & STR_ASCII ? 0 : cpython_u64(python, object + ascii_size + 8);
    return utf8 == data ? count
                        : add_buffer(python, buffers, count, utf8,
                                     cpython_u64(python, object + ascii_size) + 1, "UTF-8");
}

static bool is_named(const struct cpython_type *type, const char *name) {
    return strcmp(type->name, name) == 0;
}

unsigned cpython_buffers(struct cpython *python, const struct cpython_object *object,
                         struct cpython_buffer buffers[CPYTHON_BUFFERS_MAX]) {
    const struct cpython_type *type = object->type;
    uint64_t at = object->address;
    if (type->flags & CPYTHON_TYPE_DICT) {
        return dict_buffers(python, at, buffers);
    }
    if (type->flags & CPYTHON_TYPE_STR) {
        return str_buffers(python, at, buffers);
    }
    if (type->flags & CPYTHON_TYPE_LIST) {
        uint64_t allocated = cpython_u64(python, at + 32);
        return allocated >> 40
                   ? 0
                   : add_buffer(python, buffers, 0, cpython_u64(python, at + 24), 8 * allocated, "items");
    }
    if (is_named(type, "set") || is_named(type, "frozenset")) {
        uint64_t table = cpython_u64(python, at + 40), mask = cpython_u64(python, at + 32);
        return table == at + 64 || mask >> 40
                   ? 0
                   : add_buffer(python, buffers, 0, table, 16 * (mask + 1), "table");
    }
    struct cpython_dict dict;
    if (python->layout.minor <= 12 && cpython_instance_open(python, at, type, &dict)) {
        return add_buffer(python, buffers, 0, dict.values, 8 * dict.count, "attributes");
    }
    if (is_named(type, "bytearray")) {
        /* Since 3.15 its bytes are a bytes object, which counts as that. */
        return python->layout.minor >= 15 ? 0
                                          : add_buffer(python, buffers, 0, cpython_u64(python, at + 32),
                                                       cpython_u64(python, at + 24), "bytes");
    }
    if (is_named(type, "array.array")) {
        uint64_t item = cpython_u32(python, cpython_u64(python, at + 40) + 4),
                 allocated = cpython_u64(python, at + 32);
        return item > 16 || allocated >> 40
                   ? 0
                   : add_buffer(python, buffers, 0, cpython_u64(python, at + 24), item * allocated, "items");
    }
    if (is_named(type, "collections.deque")) {
        uint64_t items = cpython_u64(python, at + OB_SIZE), first = cpython_u64(python, at + 40);
        uint64_t blocks =
            items >> 40 || first >= DEQUE_ITEMS ? 0 : (first + items + DEQUE_ITEMS - 1) / DEQUE_ITEMS;
        return add_buffer(python, buffers, 0, cpython_u64(python, at + 24),
                          DEQUE_BLOCK * (blocks ? blocks : 1), "items");
    }
    return 0;
}

void cpython_describe(struct cpython *python, uint64_t object, char *text, size_t size) {
    const struct cpython_type *type = cpython_type_of(python, object);
    char value[240] = "";
    cpython_value(python, object, value, sizeof value);
    if (!type) {
        snprintf(text, size, "no object");
    } else if (*value && type->flags & CPYTHON_TYPE_TYPE) {
        snprintf(text, size, "%s %s", type->name, value);
    } else {
        snprintf(text, size, "%s%s%s", type->name, *value ? ", " : "", value);
    }
}

/* ---- walks ------------------------------------------------------------------------------------------------
 */

struct block_sink {
    struct karst_sink sink;
    struct cpython *python;
    bool (*visit)(void *context, const struct karst_block *block, const struct cpython_object *object);
    void *context;
};

static bool take_blocks(struct karst_sink *base, const struct karst_block *blocks, size_t count) {
    struct block_sink *sink = (struct block_sink *)base;
    struct cpython_object object;
    for (size_t i = 0; i < count; i++) {
        if (blocks[i].state != KARST_STATE_LIVE) {
            continue;
        }
        bool is_object = cpython_object_in(sink->python, &blocks[i], &object);
        if (!sink->visit(sink->context, &blocks[i], is_object ? &object : NULL)) {
            return false;
        }
    }
    return !sink->python->out_of_memory;
}

bool cpython_each_block(struct cpython *python,
                        bool (*visit)(void *context, const struct karst_block *block,
                                      const struct cpython_object *object),
                        void *context, struct karst_error *error) {
    struct block_sink sink = {
        .sink = {.blocks = take_blocks}, .python = python, .visit = visit, .context = context};
    karst_session_begin(python->session, "looking for Python objects", karst_session_bytes(python->session));
    if (!karst_session_walk(python->session, 0, UINT64_MAX, &sink.sink, error)) {
        return false;
    }
    return !python->out_of_memory || karst_fail_memory(error);
}

#define COLLECTOR_HEADER 16u

static bool follow_generation(struct cpython *python, uint64_t head,
                              bool (*visit)(void *context, uint64_t object), void *context,
                              struct cpython_tracked *tracked, struct karst_error *error) {
    uint64_t at = cpython_u64(python, head) & ~(uint64_t)3, tortoise = 0, steps = 0, limit = 1;
    while (at != head) {
        uint64_t next;
        if (at == 0 || at == tortoise || !cpython_read(python, at, &next)) {
            tracked->damaged = true;
            return true;
        }
        tracked->count++;
        if (!visit(context, at + COLLECTOR_HEADER)) {
            return true;
        }
        if (++steps == limit) {
            tortoise = at;
            steps = 0;
            limit *= 2;
        }
        if (tracked->count % 4096 == 0 && !karst_session_progress(python->session, 4096 * 64, error)) {
            return false;
        }
        at = next & ~(uint64_t)3;
    }
    return true;
}

bool cpython_each_tracked(struct cpython *python, bool (*visit)(void *context, uint64_t object),
                          void *context, struct cpython_tracked *tracked, struct karst_error *error) {
    *tracked = (struct cpython_tracked){0};
    karst_session_begin(python->session, "following the collector's lists", 0);
    for (size_t i = 0; i < python->interpreter_count; i++) {
        uint64_t generations = python->interpreters[i].generations;
        tracked->unknown |= generations == 0;
        for (unsigned k = 0; generations && k < 3; k++) {
            if (!follow_generation(python, generations + 24 * k, visit, context, tracked, error)) {
                return false;
            }
        }
    }
    return true;
}

/* ---- referrers --------------------------------------------------------------------------------------------
 */

struct search {
    struct cpython *python;
    uint64_t low, size;
    bool (*visit)(void *context, const struct cpython_referrer *referrer);
    void *context;
    bool ended;
    const struct cpython_frame *frame; /* under way */
};

static bool is_wanted(const struct search *search, uint64_t word) {
    return (word & ~(uint64_t)3) - search->low < search->size;
}

static bool tell(struct search *search, struct cpython_referrer *referrer) {
    search->ended |= !search->visit(search->context, referrer);
    return !search->ended;
}

/* "dict, 3 items", or "module service" if it is the names of one. */
static void name_dict(struct cpython *python, uint64_t object, const struct cpython_dict *dict, char *text,
                      size_t size) {
    for (uint64_t i = 0; i < dict->count && i < 8; i++) {
        uint64_t key, value;
        char name[24];
        if (cpython_dict_entry(python, dict, i, &key, &value) &&
            cpython_text(python, key, name, sizeof name) && strcmp(name, "__name__") == 0 &&
            cpython_text(python, value, name, sizeof name)) {
            char module[120];
            cpython_text(python, value, module, sizeof module);
            snprintf(text, size, "module %s", module);
            return;
        }
    }
    cpython_describe(python, object, text, size);
}

static void search_dict(struct search *search, const struct cpython_object *object) {
    struct cpython *python = search->python;
    struct cpython_dict dict;
    if (!cpython_dict_open(python, object->address, &dict)) {
        return;
    }
    for (uint64_t i = 0; i < dict.count && !search->ended; i++) {
        uint64_t key, value;
        if (!cpython_dict_entry(python, &dict, i, &key, &value) ||
            (!is_wanted(search, key) && !is_wanted(search, value))) {
            continue;
        }
        struct cpython_referrer referrer = {.address = object->address, .type = object->type};
        char owner[140], name[100] = "";
        name_dict(python, object->address, &dict, owner, sizeof owner);
        cpython_value(python, key, name, sizeof name);
        if (is_wanted(search, value)) {
            snprintf(referrer.text, sizeof referrer.text, "value of %s in %s", *name ? name : "a key", owner);
        } else {
            snprintf(referrer.text, sizeof referrer.text, "key of %s", owner);
        }
        tell(search, &referrer);
    }
}

static void search_attributes(struct search *search, const struct cpython_object *object,
                              const struct cpython_dict *dict) {
    for (uint64_t i = 0; i < dict->count && i < ATTRIBUTES_MAX && !search->ended; i++) {
        uint64_t key, value;
        char name[100];
        if (cpython_dict_entry(search->python, dict, i, &key, &value) && is_wanted(search, value)) {
            struct cpython_referrer referrer = {.address = object->address, .type = object->type};
            cpython_text(search->python, key, name, sizeof name);
            snprintf(referrer.text, sizeof referrer.text, "attribute %s of %s", name, object->type->name);
            tell(search, &referrer);
        }
    }
}

/* Pointers in [start, end), told as items of object, or as its words from object's address on. */
static void search_words(struct search *search, const struct cpython_object *object, uint64_t start,
                         uint64_t end, const char *item) {
    for (uint64_t at = start; at + 8 <= end && !search->ended;) {
        size_t piece = (size_t)(KARST_CACHE_PIECE - at % KARST_CACHE_PIECE);
        piece = piece < 2048 ? piece : 2048;
        piece = end - at < piece ? (size_t)(end - at) & ~(size_t)7 : piece;
        const uint8_t *bytes = karst_cache_at(&search->python->cache, at, piece);
        uint64_t hits[4] = {0};
        unsigned count = 0;
        for (size_t i = 0; bytes && i + 8 <= piece && count < 4; i += 8) {
            if (is_wanted(search, cpython_word(bytes + i))) {
                hits[count++] = at + i;
            }
        }
        for (unsigned i = 0; i < count && !search->ended; i++) {
            struct cpython_referrer referrer = {.address = object->address, .type = object->type};
            char owner[200];
            cpython_describe(search->python, object->address, owner, sizeof owner);
            if (item) {
                snprintf(referrer.text, sizeof referrer.text, "%s %" PRIu64 " of %s", item,
                         (hits[i] - start) / 8, owner);
            } else {
                snprintf(referrer.text, sizeof referrer.text, "at +%" PRIu64 " in %s",
                         hits[i] - object->address, owner);
            }
            tell(search, &referrer);
        }
        at = count == 4 ? hits[3] + 8 : at + piece;
    }
}

static bool search_local(void *context, const struct cpython_local *local) {
    struct search *search = context;
    if (local->value && is_wanted(search, local->value)) {
        struct cpython_referrer referrer = {.address = search->frame->address};
        snprintf(referrer.text, sizeof referrer.text, "local %.80s of %.100s, line %" PRId64, local->name,
                 search->frame->function, search->frame->line);
        tell(search, &referrer);
    }
    return !search->ended;
}

static bool search_frame(void *context, const struct cpython_frame *frame) {
    struct search *search = context;
    search->frame = frame;
    cpython_each_local(search->python, frame, search_local, search);
    return !search->ended;
}

/* Where its own words end: its block is rounded up, and has old words there. */
static uint64_t object_end(struct cpython *python, const struct cpython_object *object) {
    uint64_t limit = object->block.address + object->block.usable,
             end = object->address + object->type->basic_size;
    if (object->type->item_size) {
        uint64_t items = cpython_u64(python, object->address + OB_SIZE);
        items = (int64_t)items < 0 ? -items : items;
        end += items < (limit - object->address) / object->type->item_size ? items * object->type->item_size
                                                                           : limit - object->address;
    }
    return end < limit ? end : limit;
}

static bool search_block(void *context, const struct karst_block *block,
                         const struct cpython_object *object) {
    struct search *search = context;
    struct cpython_buffer buffers[CPYTHON_BUFFERS_MAX];
    /* What is kept for reuse refers to nobody, though the words of what it was may still stand there. */
    if (!object || object->kept || !(object->type->flags & CPYTHON_TYPE_GC)) {
        return true;
    }
    struct cpython_frame frame;
    if (is_named(object->type, "frame") && cpython_frame_object(search->python, object->address, &frame)) {
        return search_frame(search, &frame);
    }
    const struct cpython_type *type = object->type;
    uint64_t start = object->address + 16, end = object_end(search->python, object);
    (void)block;
    if (type->flags & CPYTHON_TYPE_TUPLE && type->item_size) {
        uint64_t items = object->address + search->python->layout.tuple_items,
                 count = cpython_tuple_size(search->python, object->address);
        search_words(search, object, items, items + 8 * count < end ? items + 8 * count : end, "item");
        return !search->ended;
    }
    struct cpython_dict dict;
    if (cpython_instance_open(search->python, object->address, type, &dict)) {
        search_attributes(search, object, &dict);
    }
    /* Its managed words, too: a dict of its own. */
    start = type->before > COLLECTOR_HEADER ? object->address - type->before : start;
    search_words(search, object, start, end, NULL);
    if (type->flags & CPYTHON_TYPE_DICT) {
        search_dict(search, object);
        return !search->ended;
    }
    unsigned count =
        dict.values || is_named(type, "bytearray") ? 0 : cpython_buffers(search->python, object, buffers);
    for (unsigned i = 0; i < count; i++) {
        search_words(search, object, buffers[i].start, buffers[i].start + buffers[i].size,
                     type->flags & CPYTHON_TYPE_LIST ? "item" : "place");
    }
    return !search->ended;
}

bool cpython_each_referrer(struct cpython *python, uint64_t low, uint64_t size,
                           bool (*visit)(void *context, const struct cpython_referrer *referrer),
                           void *context, struct karst_error *error) {
    struct search search = {.python = python, .low = low, .size = size, .visit = visit, .context = context};
    struct cpython_threads threads;
    if (!cpython_list_threads(python, &threads, error)) {
        return false;
    }
    /* Where frames are objects they are met as such. */
    bool on_stacks = python->layout.frames != CPYTHON_FRAME_OBJECTS;
    for (size_t i = 0; on_stacks && i < threads.count && !search.ended; i++) {
        bool damaged;
        cpython_each_frame(python, &threads.items[i], search_frame, &search, &damaged);
    }
    cpython_threads_clear(&threads);
    return search.ended || cpython_each_block(python, search_block, &search, error);
}
