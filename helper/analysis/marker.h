/* What libkarst-preload.so left in the target, karst-abi.h: the marker, marks of single blocks, call sites.
 */
#ifndef KARST_ANALYSIS_MARKER_H
#define KARST_ANALYSIS_MARKER_H

#include "karst-abi.h"
#include "session.h"

/* The marker as read, and readers for what it leads to. */
struct karst_marker {
    struct karst_control control; /* texts are terminated, counts bounded */
    struct karst_window directory, leaves, footers;
    uint64_t address; /* 0: there is none */
};

/* Looks for the marker, once: in mappings of its name, in modules' data and what follows it, then in all
 * other writable memory of a MiB and less. NULL: there is none, or no memory. It belongs to the session. */
struct karst_marker *karst_session_marker(struct karst *session);
void karst_marker_close(struct karst_marker *marker);

/* Where the marker says that a root of the allocator in module is (KARST_ROOT_...); 0: it does not, or there
 * is none. The marker is looked for only where a library of its name is, or memory of its name. What it says
 * is a hint, to be validated. */
uint64_t karst_marker_root(struct karst *session, const struct karst_module *module, const char *name);

/* What a mark says of a block. */
struct karst_mark_of {
    enum karst_mark state; /* KARST_MARK_NONE: the block is not marked */
    uint64_t size;         /* asked for; about, unless readable */
    uint64_t footer;       /* address; 0: what the map says can't be */
    bool whole;            /* live: nothing behind its end was written over */
    bool overwritten;      /* what stands in the footer's place is none */
    bool readable;         /* the rest below is known; if it is not overwritten either, memory is missing */
    uint64_t site, freed_at;
    uint32_t function;
    int64_t thread;    /* that allocated it */
    uint64_t sequence; /* 0: unknown */
};

/* The mark of the block at address, as the program knows it. */
struct karst_mark_of karst_marker_mark(struct karst_marker *marker, uint64_t address);

/* All marked live blocks in address order, those with an overwritten footer, too; block returning false ends
 * it. False: error (interrupted). */
bool karst_marker_each(struct karst_marker *marker, struct karst *session,
                       bool (*block)(void *context, uint64_t address, const struct karst_mark_of *mark),
                       void *context, struct karst_error *error) KARST_CHECKED;

#define KARST_SITE_FRAMES 64

/* The return addresses of a site, the innermost first; how many. 0: the site is unknown. */
size_t karst_marker_frames(const struct karst_marker *marker, struct karst *session, uint64_t site,
                           uint64_t frames[KARST_SITE_FRAMES]);
/* One frame for a person: "read_message+0x12 in mailbox", or the module and offset where there are no
 * symbols. */
void karst_site_text(struct karst *session, uint64_t address, enum karst_symbol_form form, char *text,
                     size_t size);
/* The innermost frame of a site, "?" if it is unknown. */
void karst_site_summary(const struct karst_marker *marker, struct karst *session, uint64_t site,
                        enum karst_symbol_form form, char *text, size_t size);

#endif
