/* A process that is gone, as the files of its flight recorder tell: where its modules were, and its rings. Of
 * its memory there is only what its modules' files hold. */
#ifndef KARST_TARGET_RECORDED_H
#define KARST_TARGET_RECORDED_H

#include "target.h"

/* The recorder's files in directory, of process pid (0: the only one there). Of a process that ran several
 * programs by exec, the last one's. NULL with an error that lists the processes if there are several. */
struct karst_target *karst_recorded_open(const char *directory, int64_t pid,
                                         const struct karst_options *options, struct karst_error *error);
/* The files of the rings; 0 for other targets. */
size_t karst_recorded_count(const struct karst_target *target);
const char *karst_recorded_file(const struct karst_target *target, size_t index);

#endif
