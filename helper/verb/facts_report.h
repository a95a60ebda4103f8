/* Facts of an allocator or a block, as `info` and `block` have them in JSON: [{name, address, text}]. */
#ifndef KARST_VERB_FACTS_REPORT_H
#define KARST_VERB_FACTS_REPORT_H

#include "facts.h"
#include "writer.h"

json_t *karst_facts_json(struct karst_writer *writer, const struct karst_facts *facts);

#endif
