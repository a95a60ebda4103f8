#include "verbs.h"

#include <stddef.h>

/* In the order of help, group by group. */
/* clang-format off */
const struct karst_verb *const karst_verbs[] = {
    &karst_verb_summary,
    &karst_verb_arenas,
    &karst_verb_bins,
    &karst_verb_maps,
    &karst_verb_rss,
    &karst_verb_info,
    &karst_verb_blocks,
    &karst_verb_block,
    &karst_verb_sizes,
    &karst_verb_sites,
    &karst_verb_history,
    &karst_verb_runs,
    &karst_verb_refs,
    &karst_verb_holes,
    &karst_verb_pins,
    &karst_verb_map,
    &karst_verb_check,
    &karst_verb_pools,
    &karst_verb_py_stack,
    &karst_verb_py_objects,
    NULL,
};
/* clang-format on */

const struct karst_verb_option karst_common_options[] = {
    {"json", 'j', KARST_VALUE_FLAG, NULL, "answer as JSON; sizes are bytes, addresses \"0x...\"", NULL},
    {"bytes", 'b', KARST_VALUE_FLAG, NULL, "exact sizes in bytes, not 8.5 MB (1 KB is 1,024 bytes)", NULL},
    {"help", 'h', KARST_VALUE_FLAG, NULL, "say what the verb does, and all its options", NULL},
    {0},
};
