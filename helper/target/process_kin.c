/* Whether a process may share anonymous memory with another one: with its parent or children since a fork. */
#include "process.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool executable_of(int64_t id, struct stat *about) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%lld/exe", (long long)id);
    return stat(path, about) == 0;
}

/* A fork without exec runs the same executable. Of a process whose executable we may not see the name has to
 * do. */
static bool may_be_kin(const struct stat *own, const char *own_name, int64_t other) {
    struct stat about;
    struct process_status status;
    if (executable_of(other, &about)) {
        return about.st_dev == own->st_dev && about.st_ino == own->st_ino;
    }
    return (errno == EACCES || errno == EPERM) && process_read_status(other, &status) && status.has_memory &&
           strcmp(status.name, own_name) == 0;
}

bool process_may_share(int64_t id, const char *name) {
    struct stat own;
    DIR *directory = executable_of(id, &own) ? opendir("/proc") : NULL;
    bool kin = directory == NULL;
    const struct dirent *entry;
    while (directory && !kin && (entry = readdir(directory)) != NULL) {
        char *end;
        long long other = strtoll(entry->d_name, &end, 10);
        kin = *end == '\0' && other > 0 && other != id && may_be_kin(&own, name, other);
    }
    if (directory) {
        closedir(directory);
    }
    return kin;
}
