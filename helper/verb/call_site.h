/* Call sites in the answers of verbs: their stacks, and their names, kept for who asks millions of times. */
#ifndef KARST_VERB_CALL_SITE_H
#define KARST_VERB_CALL_SITE_H

#include "marker.h"
#include "verb.h"

/* The frames of a site, one a line, the innermost first. */
void karst_site_write_stack(struct karst_call *call, uint64_t site);
/* The same: [{"address", "text"}]. */
json_t *karst_site_stack_json(struct karst_call *call, uint64_t site);

struct karst_site_name {
    uint64_t site; /* 0: the slot is empty */
    char *text;    /* as karst_site_summary() has it, for people */
    char *quoted;  /* as the linker has it, a JSON string */
};

/* A name for each of the sites asked for last. All zeros but for the session is none. */
struct karst_site_names {
    struct karst *session;
    struct karst_site_name *slots;
};

/* The name of a site of the session's marker, until the next one is asked for. NULL: no memory. */
const struct karst_site_name *karst_site_names_get(struct karst_site_names *names, uint64_t site);
void karst_site_names_close(struct karst_site_names *names);

#endif
