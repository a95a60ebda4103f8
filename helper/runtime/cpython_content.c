/* What a block holds for CPython: an object, or the buffer of one, and who refers to it. */
#include <inttypes.h>
#include <stdio.h>

#include "content.h"
#include "cpython_census.h"

#define REFERRERS_SHOWN 4u
/* Looking for referrers means to look at all objects: a second for some hundred MB. */
#define HEAP_MAX (1ull << 30)

struct telling {
    struct cpython *python;
    struct karst_facts *facts;
    const char *label;
    uint64_t block, size; /* looked for */
    uint64_t shown, enough;
    bool failed;
};

static bool tell_referrer(void *context, const struct cpython_referrer *referrer) {
    struct telling *telling = context;
    telling->failed |=
        !karst_facts_add(telling->facts, telling->label, referrer->address, "%s", referrer->text);
    return !telling->failed && ++telling->shown < telling->enough;
}

static bool tell_owner(void *context, const struct karst_block *block, const struct cpython_object *object) {
    struct telling *telling = context;
    struct cpython_buffer buffers[CPYTHON_BUFFERS_MAX];
    unsigned count = object ? cpython_buffers(telling->python, object, buffers) : 0;
    (void)block;
    for (unsigned i = 0; i < count; i++) {
        if (buffers[i].start - telling->block < telling->size) {
            char text[300];
            cpython_describe(telling->python, object->address, text, sizeof text);
            telling->failed |= !karst_facts_add(telling->facts, "holds", object->address, "the %s of %s",
                                                buffers[i].what, text);
            telling->shown++;
            return false;
        }
    }
    return true;
}

static bool say_object(struct telling *telling, const struct cpython_object *object) {
    char text[300], count[60];
    cpython_describe(telling->python, object->address, text, sizeof text);
    if (object->references >= UINT32_MAX) {
        snprintf(count, sizeof count, "immortal");
    } else if (object->kept) {
        snprintf(count, sizeof count, "kept by the interpreter for the next of its type");
    } else {
        snprintf(count, sizeof count, "%" PRIu64 " reference%s", object->references,
                 object->references == 1 ? "" : "s");
    }
    if (!karst_facts_add(telling->facts, "object", object->address, "%s; %s", text, count)) {
        return false;
    }
    struct cpython_buffer buffers[CPYTHON_BUFFERS_MAX];
    unsigned buffer_count = object->kept ? 0 : cpython_buffers(telling->python, object, buffers);
    for (unsigned i = 0; i < buffer_count; i++) {
        if (!karst_facts_add(telling->facts, "buffer", buffers[i].start, "its %s, %" PRIu64 " bytes",
                             buffers[i].what, buffers[i].size)) {
            return false;
        }
    }
    return true;
}

static bool describe_in(struct cpython *python, const struct karst_block *block, struct karst_facts *facts,
                        struct karst_error *error) {
    struct telling telling = {.python = python, .facts = facts, .block = block->start, .size = block->size};
    struct cpython_object object;
    bool is_object = cpython_object_in(python, block, &object);
    if (is_object && !say_object(&telling, &object)) {
        return karst_fail_memory(error);
    }
    if (python->free_threaded || (is_object && (object.kept || object.references >= UINT32_MAX))) {
        return true;
    }
    if (karst_session_bytes(python->session) > HEAP_MAX) {
        return !is_object ||
               karst_facts_add(facts, "referred by", 0,
                               "`py-objects --where 0x%" PRIx64 "` tells: the "
                               "heap is large",
                               object.address) ||
               karst_fail_memory(error);
    }
    bool done;
    if (is_object) {
        telling.label = "referred by";
        telling.enough = object.references < REFERRERS_SHOWN ? object.references : REFERRERS_SHOWN;
        done = cpython_each_referrer(python, object.address, 1, tell_referrer, &telling, error);
    } else {
        done = cpython_each_block(python, tell_owner, &telling, error);
    }
    return done && (!telling.failed || karst_fail_memory(error));
}

static bool describe(struct karst *session, const struct karst_block *block, uint64_t address,
                     struct karst_facts *facts, struct karst_error *error) {
    (void)address;
    struct cpython_set *set = block->state == KARST_STATE_LIVE ? cpython_find(session, error) : NULL;
    for (size_t i = 0; set && i < set->count; i++) {
        size_t before = facts->count;
        if (!describe_in(&set->items[i], block, facts, error)) {
            return false;
        }
        if (facts->count > before) {
            break;
        }
    }
    return block->state != KARST_STATE_LIVE || set != NULL;
}

static bool introduce(struct karst *session, struct karst_facts *facts, struct karst_error *error) {
    const struct cpython_set *set = cpython_find(session, error);
    for (size_t i = 0; set && i < set->count; i++) {
        const struct cpython *python = &set->items[i];
        if (!karst_facts_add(facts, "CPython", python->runtime, "%s, %zu interpreter%s%s", python->version,
                             python->interpreter_count, python->interpreter_count == 1 ? "" : "s",
                             python->layout_known ? "" : "; this version is not known")) {
            return karst_fail_memory(error);
        }
        for (size_t k = 0; k < python->facts.count; k++) {
            const struct karst_fact *fact = &python->facts.items[k];
            if (!karst_facts_add(facts, fact->name, fact->address, "%s", fact->text)) {
                return karst_fail_memory(error);
            }
        }
    }
    if (set && *set->unusable && !karst_facts_add(facts, "CPython", 0, "%s", set->unusable)) {
        return karst_fail_memory(error);
    }
    return set != NULL;
}

const struct karst_content_source karst_content_cpython = {
    .name = "CPython", .describe = describe, .introduce = introduce};
