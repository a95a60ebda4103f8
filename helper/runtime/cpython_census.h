/* Objects in the blocks of a heap: which there are, what belongs to them, who refers to them. */
#ifndef KARST_RUNTIME_CPYTHON_CENSUS_H
#define KARST_RUNTIME_CPYTHON_CENSUS_H

#include "cpython.h"

/* An object that was found in a live block. */
struct cpython_object {
    uint64_t address;
    struct cpython_type *type;
    uint64_t references; /* UINT32_MAX and more: it is immortal */
    bool kept;           /* nobody refers to it: the interpreter keeps it for the next of its type */
    bool tracked;        /* by the collector */
    struct karst_block block;
};

/* The object in a live block, if there is one. Told by a type where an object has it, at the place that
 * objects of that type have in a block, and a count of references that can be one. */
bool cpython_object_in(struct cpython *python, const struct karst_block *block,
                       struct cpython_object *object);

/* Memory outside of an object that is its own: a list's items, a dict's table, the bytes of a bytearray. */
struct cpython_buffer {
    uint64_t start, size; /* bytes, without what malloc adds */
    const char *what;     /* "items", "table", "bytes" ...; static */
};
#define CPYTHON_BUFFERS_MAX 2
/* How many there are; only those that lie in a heap. */
unsigned cpython_buffers(struct cpython *python, const struct cpython_object *object,
                         struct cpython_buffer buffers[CPYTHON_BUFFERS_MAX]);
/* "str, 8,880,443 characters", "list, 3 items". */
void cpython_describe(struct cpython *python, uint64_t object, char *text, size_t size);

/* Each live block of all heaps: with its object, or NULL where there is none. False from visit ends it, which
 * is no error. */
bool cpython_each_block(struct cpython *python,
                        bool (*visit)(void *context, const struct karst_block *block,
                                      const struct cpython_object *object),
                        void *context, struct karst_error *error);
/* The objects in the collector's lists, as gc.get_objects() has them. damaged: a list could not be followed
 * to its end; unknown: there are no lists that make sense. */
struct cpython_tracked {
    uint64_t count;
    bool damaged, unknown;
};
bool cpython_each_tracked(struct cpython *python, bool (*visit)(void *context, uint64_t object),
                          void *context, struct cpython_tracked *tracked, struct karst_error *error);

/* Where a pointer to an object is. */
struct cpython_referrer {
    uint64_t address;                /* of the object that refers, of a frame, 0: neither */
    const struct cpython_type *type; /* NULL: a frame's local */
    char text[300]; /* "item 12 of list, 300 items", "global cache of module service", "local x of f" ... */
};
/* Objects and frames that refer to [low, low + size), in address order, frames first. False from visit ends
 * it. */
bool cpython_each_referrer(struct cpython *python, uint64_t low, uint64_t size,
                           bool (*visit)(void *context, const struct cpython_referrer *referrer),
                           void *context, struct karst_error *error);

#endif
