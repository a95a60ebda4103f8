/* References: where pointers into a block are. Registers, stacks from their stack pointers up, the data of
 * modules, other blocks, and what else is readable and writable and private. One pass over that memory;
 * blocks that hold a pointer are found by walking the heaps along with it. */
#ifndef KARST_ANALYSIS_REFS_H
#define KARST_ANALYSIS_REFS_H

#include "best.h"
#include "session.h"

enum karst_ref_kind {
    KARST_REF_REGISTER,
    KARST_REF_STACK,
    KARST_REF_THREAD, /* at or near a thread pointer: thread-local storage, the thread's own data */
    KARST_REF_GLOBAL,
    KARST_REF_LIVE, /* in a live block */
    KARST_REF_METADATA,
    KARST_REF_OTHER, /* in a mapping that no allocator claims */
    /* Stale: the program can't follow these any more. */
    KARST_REF_FREED,      /* in a free or cached block, or a top */
    KARST_REF_DEAD_STACK, /* below a stack pointer */
    KARST_REF_UNKNOWN,    /* in a damaged part of a heap */
    KARST_REF_KINDS
};

/* "register", "stack", "thread", "global", "block", "metadata", "other", "freed block", "dead stack",
 * "damaged" */
const char *karst_ref_kind_name(enum karst_ref_kind kind);

struct karst_ref {
    uint8_t kind;
    bool has_block;   /* the pointer is in block */
    uint64_t address; /* where the pointer is; 0: in a register */
    uint64_t value;   /* the pointer */
    int64_t tid;      /* of the thread, for registers, stacks and threads' data */
    uint32_t reg;     /* index in karst_thread.registers */
    int64_t offset;   /* from the stack pointer, thread pointer, or the block's address */
    struct karst_block block;
};

struct karst_ref_count {
    uint64_t exact;    /* to where the block begins for the program */
    uint64_t interior; /* anywhere else in it */
};

struct karst_refs {
    struct karst *session;
    bool has_block;
    struct karst_block block; /* what is pointed into */
    uint64_t address;         /* as asked */
    uint64_t low, size;       /* pointers into [low, low + size) count */
    struct karst_ref_count counts[KARST_REF_KINDS];
    struct karst_best refs;       /* struct karst_ref, by kind, then address */
    uint64_t scanned, unreadable; /* bytes */
};

/* Looks for pointers into the block that holds address, or, if it is in no heap, for pointers to just that
 * address. At most limit are kept, all are counted. On success refs is to be closed. */
bool karst_refs_find(struct karst *session, uint64_t address, size_t limit, struct karst_refs *refs,
                     struct karst_error *error);
void karst_refs_close(struct karst_refs *refs);

#endif
