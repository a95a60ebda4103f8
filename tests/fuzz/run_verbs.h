/* What both fuzzers do with a session. */
#ifndef RUN_VERBS_H
#define RUN_VERBS_H

#include <stdint.h>

#include "karst.h"

/* Runs the verbs that choice selects, one bit each, about address. */
void run_verbs(struct karst *session, uint32_t choice, uint64_t address);

#endif
