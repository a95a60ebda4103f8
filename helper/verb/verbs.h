/* One line a verb; see also the table in verbs.c. */
#ifndef KARST_VERB_VERBS_H
#define KARST_VERB_VERBS_H

#include "verb.h"

extern const struct karst_verb karst_verb_summary;
extern const struct karst_verb karst_verb_arenas;
extern const struct karst_verb karst_verb_bins;
extern const struct karst_verb karst_verb_info;
extern const struct karst_verb karst_verb_blocks;
extern const struct karst_verb karst_verb_block;
extern const struct karst_verb karst_verb_sizes;
extern const struct karst_verb karst_verb_sites;
extern const struct karst_verb karst_verb_history;
extern const struct karst_verb karst_verb_runs;
extern const struct karst_verb karst_verb_check;
extern const struct karst_verb karst_verb_holes;
extern const struct karst_verb karst_verb_pins;
extern const struct karst_verb karst_verb_refs;
extern const struct karst_verb karst_verb_map;
extern const struct karst_verb karst_verb_maps;
extern const struct karst_verb karst_verb_rss;
extern const struct karst_verb karst_verb_pools;
extern const struct karst_verb karst_verb_py_stack;
extern const struct karst_verb karst_verb_py_objects;

#endif
