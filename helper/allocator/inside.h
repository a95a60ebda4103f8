/* Threads that are inside an allocator: what they were at work on may be half done. */
#ifndef KARST_ALLOCATOR_INSIDE_H
#define KARST_ALLOCATOR_INSIDE_H

#include "target.h"

/* Is, or was a moment ago, the thread inside one of the functions (names, NULL at the end), which module
 * exports? By its program counter, or by a return address into one of them on top of its stack, unless it
 * waits in a system call that no allocator makes. whole: the module is an allocator and nothing else, so that
 * anywhere in it is inside. */
bool karst_thread_inside(struct karst_target *target, struct karst_module *module,
                         const struct karst_thread *thread, const char *const *functions, bool whole);

/* The same of a piece of text, [start, end). */
bool karst_thread_in_text(struct karst_target *target, const struct karst_thread *thread, uint64_t start,
                          uint64_t end);

/* Did the program die there, by the allocator's own abort or a fault? What it was at work on is damaged, not
 * half done. A core's first thread is the one that died; the signal stands at all of them. */
bool karst_died_of_signal(const struct karst_target *target);

#endif
