#include "process_tree.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "error.h"
#include "rss.h"

static int by_parent(const void *a, const void *b) {
    const struct karst_tree_process *x = a, *y = b;
    if (x->parent != y->parent) {
        return x->parent < y->parent ? -1 : 1;
    }
    return x->pid < y->pid ? -1 : x->pid > y->pid;
}

static bool add_process(struct karst_process_tree *tree, size_t *capacity, int64_t pid,
                        struct karst_error *error) {
    int64_t parent = karst_rss_parent(pid);
    if (parent < 0) {
        return true; /* it has just ended */
    }
    if (tree->all_count == *capacity) {
        size_t larger = *capacity ? 2 * *capacity : 1024;
        struct karst_tree_process *all = realloc(tree->all, larger * sizeof *all);
        if (!all) {
            return karst_fail_memory(error);
        }
        tree->all = all;
        *capacity = larger;
    }
    tree->all[tree->all_count++] = (struct karst_tree_process){.pid = pid, .parent = parent};
    return true;
}

static bool list_all(struct karst_process_tree *tree, struct karst_error *error) {
    DIR *folder = opendir("/proc");
    if (!folder) {
        return karst_fail_errno(error, errno, "cannot list /proc");
    }
    size_t capacity = 0;
    bool listed = true;
    for (struct dirent *entry; listed && (entry = readdir(folder));) {
        char *end;
        int64_t pid = strtoll(entry->d_name, &end, 10);
        if (pid > 0 && *end == '\0') {
            listed = add_process(tree, &capacity, pid, error);
        }
    }
    closedir(folder);
    if (listed && tree->all_count) {
        qsort(tree->all, tree->all_count, sizeof *tree->all, by_parent);
    }
    return listed;
}

/* The first of all whose parent is this one, all_count if there is none. */
static size_t first_child(const struct karst_process_tree *tree, int64_t parent) {
    size_t low = 0, high = tree->all_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (tree->all[middle].parent < parent) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* All but the one that looks. Each process is taken once, so that a number given out anew meanwhile makes no
 * circle. The members behind `done` wait on a stack at the array's end, the next one first. */
static bool take_members(struct karst_process_tree *tree, int64_t root, struct karst_error *error) {
    size_t capacity = tree->all_count + 1, waiting = capacity;
    tree->members = calloc(capacity, sizeof *tree->members);
    if (!tree->members) {
        return karst_fail_memory(error);
    }
    tree->members[--waiting] = (struct karst_tree_process){.pid = root};
    while (waiting < capacity) {
        struct karst_tree_process one = tree->members[waiting++];
        tree->members[tree->member_count++] = one;
        size_t first = first_child(tree, one.pid), after = first;
        while (after < tree->all_count && tree->all[after].parent == one.pid) {
            after++;
        }
        for (; after > first; after--) {
            struct karst_tree_process *child = &tree->all[after - 1];
            if (!child->taken && child->pid != root && child->pid != getpid()) {
                child->taken = true;
                child->depth = one.depth + 1;
                tree->members[--waiting] = *child;
            }
        }
    }
    return true;
}

bool karst_process_tree_find(struct karst_process_tree *tree, int64_t root, struct karst_error *error) {
    return list_all(tree, error) && take_members(tree, root, error);
}

void karst_process_tree_clear(struct karst_process_tree *tree) {
    free(tree->all);
    free(tree->members);
}
