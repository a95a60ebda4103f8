/* What can say what a block holds: a language runtime that knows its objects. Verbs ask all there are and
 * know none by name. */
#ifndef KARST_RUNTIME_CONTENT_H
#define KARST_RUNTIME_CONTENT_H

#include "session.h"

struct karst_content_source {
    const char *name;
    /* Adds facts on what a live block holds, and on who holds it; nothing if it has nothing to say. address:
     * which byte was asked for. False: error. */
    bool (*describe)(struct karst *session, const struct karst_block *block, uint64_t address,
                     struct karst_facts *facts, struct karst_error *error);
    /* Adds what was found of it in the target, or was met but is not known. False: error. */
    bool (*introduce)(struct karst *session, struct karst_facts *facts, struct karst_error *error);
};

/* All sources, NULL at the end. */
extern const struct karst_content_source *const karst_content_sources[];
extern const struct karst_content_source karst_content_cpython;

/* Asks each of them. */
bool karst_describe_content(struct karst *session, const struct karst_block *block, uint64_t address,
                            struct karst_facts *facts, struct karst_error *error);
/* Asks each of them what it found. */
bool karst_introduce_contents(struct karst *session, struct karst_facts *facts, struct karst_error *error);

#endif
