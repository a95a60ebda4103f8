/* `pools --pages`. */
#ifndef KARST_VERB_POOLS_PAGES_H
#define KARST_VERB_POOLS_PAGES_H

#include "verb.h"

/* Answers for each Python of the target; at most limit rows each. */
bool karst_pools_write_pages(struct karst_call *call, size_t limit);

#endif
