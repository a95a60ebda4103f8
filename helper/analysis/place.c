#include "place.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct karst_thread *thread_of_stack(const struct karst_target *target,
                                                  const struct karst_mapping *mapping) {
    for (size_t i = 0; i < target->thread_count; i++) {
        uint64_t pointer = target->threads[i].stack_pointer;
        if (pointer >= mapping->start && pointer < mapping->end) {
            return &target->threads[i];
        }
    }
    return NULL;
}

static void mapping_text(const struct karst_target *target, const struct karst_mapping *mapping, char *text,
                         size_t size) {
    const struct karst_thread *thread = thread_of_stack(target, mapping);
    if (thread) {
        snprintf(text, size, "the stack of thread %" PRId64, thread->tid);
    } else if (mapping->name) {
        snprintf(text, size, "the mapping %s at 0x%" PRIx64, mapping->name, mapping->start);
    } else {
        snprintf(text, size, "anonymous memory at 0x%" PRIx64 " to 0x%" PRIx64 " that no allocator claims",
                 mapping->start, mapping->end);
    }
}

void karst_place_text(struct karst *session, uint64_t address, char *text, size_t size) {
    struct karst_target *target = session->target;
    const struct karst_mapping *mapping = karst_target_mapping(target, address);
    const struct karst_module *module = karst_target_module(target, address);
    char symbol[200];
    if (!mapping) {
        snprintf(text, size, "unmapped memory");
    } else if (module &&
               karst_target_symbolize(target, address, KARST_SYMBOL_READABLE, symbol, sizeof symbol)) {
        snprintf(text, size, "%s in %s", symbol, module->path);
    } else if (module) {
        snprintf(text, size, "%s+0x%" PRIx64, module->path, address - module->start);
    } else {
        mapping_text(target, mapping, text, size);
    }
}

struct find_sink {
    struct karst_sink sink;
    uint64_t address;
    struct karst_neighbourhood *found;
};

static bool begin_extent(struct karst_sink *base, const struct karst_extent *extent) {
    struct find_sink *sink = (struct find_sink *)base;
    if (sink->found->has_block) {
        return false; /* extents that overlap: the first one that has it */
    }
    sink->found->extent = extent;
    sink->found->has_before = false;
    return true;
}

static bool take_blocks(struct karst_sink *base, const struct karst_block *blocks, size_t count) {
    struct find_sink *sink = (struct find_sink *)base;
    struct karst_neighbourhood *found = sink->found;
    for (size_t i = 0; i < count; i++) {
        if (found->has_block) {
            found->after = blocks[i];
            found->has_after = true;
            return false;
        }
        if (sink->address - blocks[i].start < blocks[i].size) {
            found->block = blocks[i];
            found->has_block = true;
        } else {
            found->before = blocks[i];
            found->has_before = true;
        }
    }
    return true;
}

/* Looks in one extent. */
static bool walk_one(struct karst *session, const struct karst_extent *extent, struct find_sink *sink,
                     struct karst_error *error) {
    struct karst_heap *heap = session->heaps[extent->heap];
    const struct karst_allocator *allocator = heap->allocator;
    struct karst_error own = {0};
    if (!begin_extent(&sink->sink, extent)) {
        return true;
    }
    bool walked = allocator->walk_near ? allocator->walk_near(heap, extent, sink->address, &sink->sink, &own)
                                       : allocator->walk(heap, extent, &sink->sink, &own);
    if (walked || own.code == KARST_ERROR_NONE) {
        return true;
    }
    if (error) {
        *error = own;
    }
    return false;
}

/* Looks in all extents that hold the address, in address order. */
static bool walk_all(struct karst *session, struct find_sink *sink, struct karst_error *error) {
    for (size_t i = 0; i < session->extent_count; i++) {
        const struct karst_extent *extent = &session->extents[i];
        bool holds = extent->start <= sink->address && sink->address < extent->end;
        if (holds && !walk_one(session, extent, sink, error)) {
            return false;
        }
    }
    return true;
}

/* The block of another heap that the extent lies in. */
static bool find_outer(struct karst *session, uint64_t address, const struct karst_extent *extent,
                       struct karst_neighbourhood *found, struct karst_error *error) {
    struct karst_neighbourhood around = {0};
    struct find_sink sink = {
        .sink = {.extent = begin_extent, .blocks = take_blocks}, .address = address, .found = &around};
    if (!walk_one(session, &session->extents[extent->outer - 1], &sink, error)) {
        return false;
    }
    found->outer = around.block;
    found->has_outer = around.has_block;
    return true;
}

bool karst_find_neighbourhood(struct karst *session, uint64_t address, struct karst_neighbourhood *found,
                              struct karst_error *error) {
    *found = (struct karst_neighbourhood){0};
    struct find_sink sink = {
        .sink = {.extent = begin_extent, .blocks = take_blocks}, .address = address, .found = found};
    const struct karst_extent *extent = karst_session_extent(session, address);
    karst_session_begin(session, "looking for the block", 0);
    /* Of extents that lie in one another the innermost one says most. */
    if (extent && extent->outer) {
        if (!walk_one(session, extent, &sink, error)) {
            return false;
        }
    } else if (!walk_all(session, &sink, error)) {
        return false;
    }
    if (found->has_block && found->extent) {
        return !extent || !extent->outer || find_outer(session, address, extent, found, error);
    }
    char place[400];
    if (!karst_target_mapping(session->target, address)) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND,
                          "0x%" PRIx64 " is in no heap: nothing is mapped there", address);
    }
    karst_place_text(session, address, place, sizeof place);
    return karst_fail(error, KARST_ERROR_NOT_FOUND, "0x%" PRIx64 " is in no heap: it is in %s", address,
                      place);
}
