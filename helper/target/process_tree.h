/* A process of this machine and all that descend from it, by /proc. */
#ifndef KARST_TARGET_PROCESS_TREE_H
#define KARST_TARGET_PROCESS_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "karst.h"

struct karst_tree_process {
    int64_t pid, parent;
    unsigned depth;
    bool taken; /* while the members are looked for */
};

struct karst_process_tree {
    struct karst_tree_process *all; /* of this machine, by parent, then number */
    size_t all_count;
    struct karst_tree_process *members; /* the root and what descends from it, a parent before its children */
    size_t member_count;
};

/* Fills tree, all zeros before. It has to be cleared in any case. */
bool karst_process_tree_find(struct karst_process_tree *tree, int64_t root, struct karst_error *error);
void karst_process_tree_clear(struct karst_process_tree *tree);

#endif
