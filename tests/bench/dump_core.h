/* Cores of heaps made to order. */
#ifndef DUMP_CORE_H
#define DUMP_CORE_H

#include <stdbool.h>

/* Runs build(context) in a child and dumps that child's core to path, a name in the working directory: by
 * the kernel, or by gcore where /proc/sys/kernel/core_pattern hands cores to somebody else. The kernel names
 * its core "core" or "core.PID": no other may be made there at the same time. false: standard error says
 * why. */
bool dump_core(const char *path, void (*build)(void *context), void *context);

#endif
