/* What the preload library's marker says, in the answers of `info`, `block`, `blocks` and `check`. */
#ifndef KARST_VERB_MARKER_REPORT_H
#define KARST_VERB_MARKER_REPORT_H

#include "marker.h"
#include "verb.h"

/* `info`: text of its own, nothing if there is no marker; and JSON, null then. */
void karst_marker_write(struct karst_call *call);
json_t *karst_marker_json(struct karst_call *call);
/* `block`: facts of its mark. False: no memory. */
bool karst_marker_describe(struct karst *session, const struct karst_block *block, struct karst_facts *facts);
/* `block`: a fact of what the flight recorder kept of an address, if anything; in history.c. */
bool karst_history_describe(struct karst *session, uint64_t address, struct karst_facts *facts,
                            struct karst_error *error);
/* Blocks are marked in the program. */
bool karst_marker_has_marks(struct karst *session);
/* What was asked for a block, where and when, if it is live and marked; else false. */
bool karst_marker_asked(struct karst *session, const struct karst_block *block, struct karst_mark_of *mark);
/* `blocks`: adds "requested", "site" and "sequence" to a block's object if there are marks. */
void karst_marker_set_json(struct karst_call *call, const struct karst_block *block, json_t *object);
/* `check`: blocks that were written beyond their end. */
bool karst_marker_check(struct karst *session, struct karst_findings *findings, struct karst_error *error);

#endif
