/* The parts of karst.h about what the preload library is asked for, for front ends that start or change
 * programs with it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "karst.h"
#include "nearest.h"
#include "trap_spec.h"

#define RING_BYTES_MAX (UINT64_C(1) << 40)
#define DEPTH_MAX      64u
#define TRIES_MAX      1000u
/* Digits of a number that is larger than any that may be asked for, whatever its unit. */
#define DIGITS_MAX 13u
/* What names of files within it need. */
#define NAME_ROOM 64u

static bool read_number(const char *text, uint64_t *number) {
    const char *end = text;
    return karst_trap_parse_size(text, number, &end) && !*end;
}

bool karst_read_ring_bytes(const char *text, uint64_t *bytes, struct karst_error *error) {
    bool is_number = read_number(text, bytes);
    if (is_number ? *bytes > RING_BYTES_MAX : strspn(text, "0123456789") > DIGITS_MAX) {
        return karst_fail(error, KARST_ERROR_USAGE,
                          "--recorder: '%s' is too much; a thread may keep up to 1T", text);
    }
    if (!is_number || *bytes == 0) {
        return karst_fail(error, KARST_ERROR_USAGE,
                          "--recorder: '%s' is no size; sizes are like 256K, 1M or 16M", text);
    }
    return true;
}

bool karst_read_stack_depth(const char *text, uint32_t *depth, struct karst_error *error) {
    uint64_t number = 0;
    if (!read_number(text, &number) || number == 0 || number > DEPTH_MAX) {
        return karst_fail(error, KARST_ERROR_USAGE,
                          "--stacks: '%s' is no number of frames; 1 to %u may be kept", text, DEPTH_MAX);
    }
    *depth = (uint32_t)number;
    return true;
}

bool karst_check_action(const char *text, struct karst_error *error) {
    struct karst_nearest nearest = {.word = text};
    for (uint32_t i = KARST_ACTION_LOG; i < KARST_ACTIONS; i++) {
        if (strcmp(text, karst_action_name(i)) == 0) {
            return true;
        }
        karst_nearest_offer(&nearest, karst_action_name(i));
    }
    return karst_fail(error, KARST_ERROR_USAGE,
                      nearest.nearest ? "--action takes no '%s'; did you mean %s?"
                                      : "--action takes log, stop, core or abort, not '%s'",
                      text, nearest.nearest);
}

/* ---- the recorder's directory ------------------------------------------------------------------------ */

/* False: error says why there is no directory of that name. */
static bool make_directory(const char *directory, struct karst_error *error) {
    struct stat status;
    if (mkdir(directory, 0700) != 0 && errno != EEXIST) {
        return karst_fail_errno(error, errno, "--recorder-dir: %s can't be made", directory);
    }
    if (stat(directory, &status) != 0 || !S_ISDIR(status.st_mode)) {
        return karst_fail(error, KARST_ERROR_USAGE, "--recorder-dir: %s is no directory", directory);
    }
    return true;
}

/* By making one: permissions alone don't tell, not for root and not in file systems like /proc. */
static bool check_files_can_be_made(const char *directory, struct karst_error *error) {
    char path[PATH_MAX + NAME_ROOM];
    int file = -1;
    for (unsigned tries = 0; tries < TRIES_MAX && file < 0; tries++) {
        snprintf(path, sizeof path, "%s/karst-%ld-%u.try", directory, (long)getpid(), tries);
        file = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (file < 0 && errno != EEXIST) {
            break;
        }
    }
    if (file < 0) {
        return karst_fail_errno(error, errno, "--recorder-dir: no file can be made in %s", directory);
    }
    close(file);
    unlink(path);
    return true;
}

bool karst_prepare_ring_directory(const char *directory, char *path, size_t size, struct karst_error *error) {
    const size_t most = sizeof((struct karst_control *)NULL)->directory - NAME_ROOM - 1;
    if (!*directory) {
        return karst_fail(error, KARST_ERROR_USAGE, "--recorder-dir takes a directory, not ''");
    }
    if (!make_directory(directory, error)) {
        return false;
    }
    char *whole = realpath(directory, NULL);
    if (!whole) {
        return karst_fail_errno(error, errno, "--recorder-dir: %s", directory);
    }
    bool fits = strlen(whole) <= most && strlen(whole) < size;
    if (fits) {
        memcpy(path, whole, strlen(whole) + 1);
    } else {
        karst_fail(error, KARST_ERROR_USAGE,
                   "--recorder-dir: a path may have %zu characters; that of %s has %zu", most, directory,
                   strlen(whole));
    }
    free(whole);
    return fits && check_files_can_be_made(path, error);
}
