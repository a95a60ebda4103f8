/* Finding CPython: &_PyRuntime by its symbol (.dynsym has it, also in stripped executables), else by content:
 * the cookie of _Py_DebugOffsets (3.13 and later), or an interpreter that leads back to the runtime. Nothing
 * is taken for a runtime whose interpreters and threads do not lead back. */
#include "cpython.h"
#include "parts.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INTERPRETERS_MAX 4096u
#define THREADS_CHECKED  64u
/* Of writable data that is searched in one module. */
#define SEARCH_MAX (64u << 20)
#define PIECE      (64u << 10)
/* Bytes of a collector's state that are looked at for generation0. */
#define GC_STATE_MAX 272u

/* ---- reading ---------------------------------------------------------------------------------------- */

bool cpython_read(struct cpython *python, uint64_t address, uint64_t *word) {
    const uint8_t *bytes = karst_cache_at(&python->cache, address, sizeof *word);
    if (bytes) {
        memcpy(word, bytes, sizeof *word);
    }
    return bytes != NULL;
}

uint64_t cpython_u64(struct cpython *python, uint64_t address) {
    uint64_t word;
    return cpython_read(python, address, &word) ? word : 0;
}

uint32_t cpython_u32(struct cpython *python, uint64_t address) {
    uint32_t word = 0;
    const uint8_t *bytes = karst_cache_at(&python->cache, address, sizeof word);
    if (bytes) {
        memcpy(&word, bytes, sizeof word);
    }
    return word;
}

/* ---- is it one ---------------------------------------------------------------------------------------- */

static bool add_interpreter(struct cpython *python, uint64_t address) {
    for (size_t i = 0; i < python->interpreter_count; i++) {
        if (python->interpreters[i].address == address) {
            return false;
        }
    }
    struct cpython_interpreter *items =
        realloc(python->interpreters, (python->interpreter_count + 1) * sizeof *items);
    if (!items) {
        python->out_of_memory = true;
        return false;
    }
    python->interpreters = items;
    items[python->interpreter_count++] = (struct cpython_interpreter){
        .address = address, .id = (int64_t)cpython_u64(python, address + python->layout.interp.id)};
    return true;
}

/* Threads from an interpreter that lead back to it. */
static unsigned count_threads(struct cpython *python, uint64_t interpreter) {
    uint64_t thread = cpython_u64(python, interpreter + python->layout.interp.threads);
    unsigned count = 0;
    while (thread && count < THREADS_CHECKED &&
           cpython_u64(python, thread + python->layout.thread.interp) == interpreter) {
        thread = cpython_u64(python, thread + python->layout.thread.next);
        count++;
    }
    return count;
}

/* Fills the interpreters. False: at least one of them has to have a thread, and all lead back here. */
static bool list_interpreters(struct cpython *python) {
    const struct cpython_layout *layout = &python->layout;
    uint64_t at = cpython_u64(python, python->runtime + layout->runtime_interpreters);
    unsigned threads = 0;
    python->interpreter_count = 0;
    for (unsigned i = 0; at && i < INTERPRETERS_MAX; i++) {
        /* The offset of .runtime is in no _Py_DebugOffsets: of an unknown version it can't be asked for. */
        if (python->layout_known && cpython_u64(python, at + layout->interp.runtime) != python->runtime) {
            break;
        }
        threads += count_threads(python, at);
        if (!add_interpreter(python, at)) {
            break;
        }
        at = cpython_u64(python, at + layout->interp.next);
    }
    return threads > 0;
}

static bool is_ring_head(struct cpython *python, uint64_t head) {
    /* Two low bits of a link are the collector's. */
    uint64_t next = cpython_u64(python, head) & ~(uint64_t)3,
             previous = cpython_u64(python, head + 8) & ~(uint64_t)3;
    return next && previous && (cpython_u64(python, next + 8) & ~(uint64_t)3) == head &&
           (cpython_u64(python, previous) & ~(uint64_t)3) == head;
}

/* Where the three generations begin: generation0 points to the first of them, and stands behind them. Most
 * builds have them 24 bytes into the collector's state, Debian's 3.13.5 has them at 20, without alignment. */
static uint64_t first_generation(struct cpython *python, uint64_t gc) {
    for (uint64_t at = gc + 80; at < gc + GC_STATE_MAX; at += 8) {
        uint64_t word = cpython_u64(python, at);
        if (word >= gc + 8 && word <= gc + 40) {
            return word;
        }
    }
    return gc + python->layout.gc.generations; /* 3.14.0 has no generation0 */
}

/* The collector's generations of each interpreter. One that is being collected has other things in its links,
 * so that not each of the four lists has to close. */
static void find_generations(struct cpython *python) {
    for (size_t i = 0; i < python->interpreter_count; i++) {
        struct cpython_interpreter *interpreter = &python->interpreters[i];
        uint64_t gc = interpreter->address + python->layout.interp.gc, first = first_generation(python, gc);
        unsigned rings = is_ring_head(python, gc + python->layout.gc.permanent);
        for (unsigned k = 0; k < 3; k++) {
            rings += is_ring_head(python, first + 24 * k);
        }
        interpreter->generations = rings >= 2 && !python->free_threaded ? first : 0;
    }
}

/* Fills python for a runtime at address in module, by what it says of itself or by layout (NULL: any that
 * fits, of the version that was told if one was). False: it is none. */
static bool try_runtime(struct cpython *python, struct karst_module *module, uint64_t address,
                        const struct cpython_layout *layout) {
    uint32_t version = 0;
    python->module = module;
    python->runtime = address;
    if (cpython_layout_told(python->target, address, &python->layout, &version, &python->free_threaded)) {
        python->minor = version >> 16 & 0xff;
        python->layout_known = cpython_layout_for(python->minor) != NULL;
        if (!*python->version) {
            snprintf(python->version, sizeof python->version, "3.%u.%u", python->minor, version >> 8 & 0xff);
        }
        return list_interpreters(python);
    }
    for (uint32_t minor = CPYTHON_FIRST; minor < 13; minor++) {
        if ((layout && layout->minor != minor) || (python->told_minor && python->told_minor != minor)) {
            continue;
        }
        python->layout = *cpython_layout_for(minor);
        python->layout_known = true;
        python->minor = minor;
        if (list_interpreters(python)) {
            return true;
        }
    }
    return false;
}

/* ---- by content --------------------------------------------------------------------------------------- */

/* Whether interpreters.head may stand at place: head, main and next_id, and head leads back. */
static const struct cpython_layout *layout_at(struct cpython *python, const uint8_t *bytes, uint64_t place) {
    uint64_t head = cpython_word(bytes), main = cpython_word(bytes + 8), next_id = cpython_word(bytes + 16);
    if (head == 0 || main == 0 || head % 8 != 0 || main % 8 != 0 || next_id == 0 || next_id > INT32_MAX) {
        return NULL;
    }
    for (uint32_t minor = CPYTHON_FIRST; minor < 13; minor++) {
        const struct cpython_layout *layout = cpython_layout_for(minor);
        if (cpython_u64(python, head + layout->interp.runtime) == place - layout->runtime_interpreters) {
            return layout;
        }
    }
    return NULL;
}

static bool is_cookie(const uint8_t *bytes) {
    return memcmp(bytes, "xdebugpy", 8) == 0;
}

static bool find_cookie(void *context, const uint8_t *bytes, size_t size, uint64_t start) {
    (void)context;
    (void)start;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        if (is_cookie(bytes + i)) {
            return true;
        }
    }
    return false;
}

static bool try_places(void *context, const uint8_t *bytes, size_t size, uint64_t start) {
    struct cpython *python = context;
    struct karst_module *module = python->module;
    for (size_t i = 0; i + 24 <= size; i += 8) {
        if (is_cookie(bytes + i) && try_runtime(python, module, start + i, NULL)) {
            return true;
        }
        const struct cpython_layout *layout = layout_at(python, bytes + i, start + i);
        if (layout && try_runtime(python, module, start + i - layout->runtime_interpreters, layout)) {
            return true;
        }
    }
    return false;
}

/* Where a module's data end. Its zeros (.bss) follow in anonymous memory, of which a module whose headers
 * can't be read, here or in its file, does not know. */
static uint64_t data_end(const struct karst_target *target, const struct karst_module *module) {
    const struct karst_mapping *next = karst_target_mapping(target, module->end);
    bool zeros = next && next->start == module->end && karst_mapping_is_anonymous(next) && !next->name;
    return zeros ? next->end : module->end;
}

bool cpython_each_piece(struct cpython *python, struct karst_module *module,
                        bool (*visit)(void *context, const uint8_t *bytes, size_t size, uint64_t start),
                        void *context) {
    struct karst_target *target = python->target;
    const size_t overlap = 256;
    uint64_t done = 0, module_end = data_end(target, module);
    bool found = false;
    uint8_t *buffer = malloc(PIECE);
    for (size_t i = 0; buffer && i < target->mapping_count && !found; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (mapping->end <= module->start || mapping->start >= module_end ||
            !(mapping->permissions & KARST_MAPPING_WRITE)) {
            continue;
        }
        uint64_t at = mapping->start, end = mapping->end < module_end ? mapping->end : module_end;
        while (at < end && done < SEARCH_MAX && !found) {
            uint64_t untouched = karst_target_untouched(target, at, end); /* zeros */
            if (untouched) {
                at += untouched;
                continue;
            }
            size_t wanted = end - at < PIECE ? (size_t)(end - at) : PIECE;
            size_t got = karst_target_read(target, at, buffer, wanted);
            found = got && visit(context, buffer, got, at);
            uint64_t step = got == wanted && wanted == PIECE ? got - overlap
                            : got == wanted                  ? got
                                                             : got + karst_target_missing(target, at + got);
            step = step ? step : target->page_size;
            done += step;
            at = step < end - at ? at + step : end;
        }
    }
    python->out_of_memory |= !buffer;
    free(buffer);
    return found;
}

/* ---- versions ----------------------------------------------------------------------------------------- */

/* "3.11.2" of "3.11.2 (main, ...": what sys.version is made of stands in a static buffer. */
static bool find_version(void *context, const uint8_t *bytes, size_t size, uint64_t start) {
    struct cpython *python = context;
    (void)start;
    for (size_t i = 0; i + 40 < size; i++) {
        if (bytes[i] != '3' || bytes[i + 1] != '.' || (i && bytes[i - 1] != 0)) {
            continue;
        }
        unsigned minor, micro;
        char text[40], rest[12] = "";
        memcpy(text, bytes + i, sizeof text - 1);
        text[sizeof text - 1] = '\0';
        size_t length = strcspn(text, " ");
        if (length >= 4 && length < 20 && text[length] == ' ' && text[length + 1] == '(' &&
            sscanf(text, "3.%2u.%3u%11[a-z0-9+]", &minor, &micro, rest) >= 2) {
            python->told_minor = minor;
            snprintf(python->version, sizeof python->version, "%.*s", (int)length, text);
            return true;
        }
    }
    return false;
}

/* The minor version by Py_Version (3.11 and later), else by sys.version's buffer, else by the file's name; 0:
 * not told. */
static void tell_version(struct cpython *python, struct karst_module *module) {
    struct karst_symbol symbol;
    uint32_t version;
    if (cpython_each_piece(python, module, find_version, python)) {
        return;
    }
    if (karst_module_symbol(python->target, module, "Py_Version", &symbol) && !symbol.thread_local_ &&
        karst_target_read_u32(python->target, symbol.address, &version) && version >> 24 == 3) {
        python->told_minor = version >> 16 & 0xff;
        snprintf(python->version, sizeof python->version, "3.%u.%u", python->told_minor, version >> 8 & 0xff);
        return;
    }
    const char *place = strstr(karst_base_name(module->path), "python3.");
    if (place && isdigit((unsigned char)place[8])) {
        python->told_minor = (uint32_t)strtoul(place + 8, NULL, 10);
        snprintf(python->version, sizeof python->version, "3.%u", python->told_minor);
    }
}

/* ---- modules ------------------------------------------------------------------------------------------ */

static bool is_named_python(const struct karst_module *module) {
    return strstr(karst_base_name(module->path), "python") != NULL;
}

static void reset(struct cpython *python) {
    free(python->interpreters);
    python->interpreters = NULL;
    python->interpreter_count = 0;
}

static bool find_by_symbol(struct cpython *python, struct karst_module *module) {
    struct karst_symbol symbol;
    return is_named_python(module) && karst_module_symbol(python->target, module, "_PyRuntime", &symbol) &&
           !symbol.thread_local_ && try_runtime(python, module, symbol.address, NULL);
}

/* A version was told, but no runtime of it was found. */
static void note_unusable(const struct cpython *python, const struct karst_module *module,
                          struct cpython_set *set) {
    if (python->told_minor < CPYTHON_FIRST || python->told_minor > CPYTHON_LAST) {
        snprintf(
            set->unusable, sizeof set->unusable,
            "CPython %.20s in %.60s is not known: stacks and objects of 3.%d to 3.%d are; its memory can "
            "still be looked at",
            python->version, karst_base_name(module->path), CPYTHON_FIRST, CPYTHON_LAST);
    } else {
        snprintf(set->unusable, sizeof set->unusable,
                 "CPython %.20s in %.60s does not run here: no interpreter with a thread leads back to it",
                 python->version, karst_base_name(module->path));
    }
}

/* An interpreter that runs has written what sys.version is made of, since 3.13 it has a cookie: where there
 * is neither, nothing is worth the many small reads of a search by structure. */
static bool may_have_one(struct cpython *python, struct karst_module *module) {
    return python->told_minor || is_named_python(module) ||
           cpython_each_piece(python, module, find_cookie, python);
}

/* Looks in one module; true: python is filled. */
static bool find_in(struct cpython *python, struct karst_module *module, struct cpython_set *set) {
    if (!is_named_python(module) && module != python->target->executable_module) {
        return false;
    }
    set->looked_in++;
    python->module = module;
    tell_version(python, module);
    if (!may_have_one(python, module)) {
        return false;
    }
    bool by_symbol = find_by_symbol(python, module);
    if (!by_symbol && !cpython_each_piece(python, module, try_places, python)) {
        if (python->told_minor) {
            note_unusable(python, module, set);
        }
        return false;
    }
    if (!*python->version) {
        snprintf(python->version, sizeof python->version, "3.%u", python->minor);
    }
    find_generations(python);
    return karst_facts_add(&python->facts, "runtime", python->runtime, "_PyRuntime in %s, %s",
                           karst_base_name(module->path), by_symbol ? "by symbol" : "by structural search");
}

static bool describe_layout(struct cpython *python) {
    if (!python->layout_known) {
        return karst_facts_add(
            &python->facts, "layout", 0,
            "CPython %s is not known (known: 3.%d to 3.%d); offsets by what it says of itself "
            "and, beyond that, those of 3.%d: stacks can be told, what objects hold only in part",
            python->version, CPYTHON_FIRST, CPYTHON_LAST, CPYTHON_LAST);
    }
    if (python->free_threaded &&
        !karst_facts_add(&python->facts, "free-threaded", 0,
                         "a build without GIL: it uses mimalloc and no lists of objects; stacks only")) {
        return false;
    }
    return karst_facts_add(&python->facts, "layout", 0, "of CPython 3.%u%s", python->minor,
                           python->minor >= 13 ? ", with what the interpreter says of itself" : "");
}

static bool add_runtime(struct cpython_set *set, struct cpython *python) {
    struct cpython *items = realloc(set->items, (set->count + 1) * sizeof *items);
    if (!items) {
        return false;
    }
    set->items = items;
    items[set->count++] = *python;
    return true;
}

static void clear(struct cpython *python) {
    for (size_t i = 0; i < python->types.capacity; i++) {
        free(python->types.slots[i]);
    }
    free(python->types.slots);
    free(python->types.refused);
    reset(python);
    karst_facts_clear(&python->facts);
    karst_cache_close(&python->cache);
}

struct cpython_set *cpython_find(struct karst *session, struct karst_error *error) {
    if (session->cpython) {
        return session->cpython;
    }
    struct cpython_set *set = calloc(1, sizeof *set);
    if (!set) {
        karst_fail_memory(error);
        return NULL;
    }
    struct karst_target *target = session->target;
    bool fine = true;
    for (size_t i = 0; i < target->module_count && fine; i++) {
        struct cpython python = {.session = session, .target = target};
        karst_cache_open(&python.cache, target);
        bool found = find_in(&python, &target->modules[i], set);
        fine = !python.out_of_memory && (!found || (describe_layout(&python) && add_runtime(set, &python)));
        if (!found || !fine) {
            clear(&python);
        }
    }
    if (!fine) {
        cpython_set_close(set);
        karst_fail_memory(error);
        return NULL;
    }
    session->cpython = set;
    return set;
}

struct cpython_set *cpython_need(struct karst *session, struct karst_error *error) {
    struct cpython_set *set = cpython_find(session, error);
    if (!set || set->count) {
        return set;
    }
    if (*set->unusable) {
        karst_fail(error, KARST_ERROR_UNSUPPORTED, "%s", set->unusable);
    } else {
        karst_fail(error, KARST_ERROR_NOT_FOUND, "no Python in %s: no running CPython in its executable%s%s",
                   session->target->name, set->looked_in > 1 ? " and libpython" : ", and no libpython",
                   session->target->missing_memory ? "; parts of the target's memory are missing" : "");
    }
    return NULL;
}

void cpython_set_close(struct cpython_set *set) {
    for (size_t i = 0; set && i < set->count; i++) {
        clear(&set->items[i]);
    }
    if (set) {
        free(set->items);
    }
    free(set);
}
