/* What is known of threads beyond their struct. */
#ifndef KARST_TARGET_THREADS_H
#define KARST_TARGET_THREADS_H

#include "target.h"

/* "rax", "x7"; NULL if the target's machine or the index is not known. */
const char *karst_register_name(const struct karst_target *target, uint32_t index);
/* Bytes of thread-local storage that the modules want for each thread, which lie below (x86-64) or above its
 * thread pointer: an upper bound, padding included. */
uint64_t karst_thread_storage(struct karst_target *target);

#endif
