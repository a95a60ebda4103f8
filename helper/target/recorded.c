#include "recorded.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "karst-abi.h"
#include "parts.h"
#include "process.h"

#define MAPS_MAX  (64u << 20)
#define FILES_MAX (1u << 20)

struct recorded {
    struct karst_target target;
    char **files;
    size_t file_count;
    int open_file; /* of the mapping that was read last; -1: none */
    const char *open_name;
};

/* One ring's file in the directory. */
struct entry {
    int64_t pid;
    uint32_t image, number;
    char name[64];
};

struct entries {
    struct entry *items;
    size_t count;
};

/* ---- memory: the modules' files --------------------------------------------------------------------- */

static size_t recorded_read(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    struct recorded *recorded = (struct recorded *)target;
    size_t done = 0;
    while (done < size) {
        const struct karst_mapping *mapping = karst_target_mapping(target, address + done);
        if (!mapping || !mapping->name || mapping->name[0] != '/' ||
            mapping->permissions & KARST_MAPPING_WRITE) {
            break; /* what the program may have written is not there */
        }
        if (mapping->name != recorded->open_name) {
            if (recorded->open_file >= 0) {
                close(recorded->open_file);
            }
            recorded->open_file = open(mapping->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
            recorded->open_name = mapping->name;
        }
        uint64_t offset = address + done - mapping->start, left = mapping->end - (address + done);
        size_t part = left < size - done ? (size_t)left : size - done;
        ssize_t got = recorded->open_file < 0 ? -1
                                              : pread(recorded->open_file, (char *)buffer + done, part,
                                                      (off_t)(mapping->file_offset + offset));
        if (got <= 0) {
            break;
        }
        done += (size_t)got;
    }
    return done;
}

static uint64_t recorded_resident(struct karst_target *target, uint64_t start, uint64_t end) {
    (void)target;
    (void)start;
    (void)end;
    return UINT64_MAX;
}

static void recorded_close(struct karst_target *target) {
    struct recorded *recorded = (struct recorded *)target;
    if (recorded->open_file >= 0) {
        close(recorded->open_file);
    }
    for (size_t i = 0; i < recorded->file_count; i++) {
        free(recorded->files[i]);
    }
    free(recorded->files);
    karst_target_free_parts(target);
    free(recorded);
}

static const struct karst_target_ops recorded_ops = {
    .read = recorded_read, .resident = recorded_resident, .close = recorded_close};

size_t karst_recorded_count(const struct karst_target *target) {
    return target->ops == &recorded_ops ? ((const struct recorded *)target)->file_count : 0;
}

const char *karst_recorded_file(const struct karst_target *target, size_t index) {
    return ((const struct recorded *)target)->files[index];
}

/* ---- the directory ---------------------------------------------------------------------------------- */

/* Reads the header of a ring; false: it is none. */
static bool read_header(const char *directory, const char *name, struct karst_ring *header) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path) {
        return false;
    }
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool done = file >= 0 && read(file, header, sizeof *header) == (ssize_t)sizeof *header &&
                header->magic == KARST_RING_MAGIC && header->version == KARST_ABI_VERSION;
    if (file >= 0) {
        close(file);
    }
    header->executable[sizeof header->executable - 1] = '\0';
    return done;
}

static bool add_entry(struct entries *entries, const char *directory, const char *name) {
    struct entry entry = {0};
    struct karst_ring header;
    int end = 0;
    if (strlen(name) >= sizeof entry.name ||
        sscanf(name, "karst-%" SCNd64 "-%" SCNu32 ".ring%n", &entry.pid, &entry.number, &end) != 2 ||
        name[end] || entry.pid <= 0 || !read_header(directory, name, &header)) {
        return true;
    }
    if (entries->count == FILES_MAX) {
        return false;
    }
    if ((entries->count & (entries->count - 1)) == 0) {
        size_t capacity = entries->count ? entries->count * 2 : 1;
        struct entry *items = realloc(entries->items, capacity * sizeof *items);
        if (!items) {
            return false;
        }
        entries->items = items;
    }
    entry.image = header.image;
    memcpy(entry.name, name, strlen(name));
    entries->items[entries->count++] = entry;
    return true;
}

static bool list_rings(const char *directory, struct entries *entries, struct karst_error *error) {
    DIR *open_directory = opendir(directory);
    if (!open_directory) {
        return karst_fail_errno(error, errno, "%s", directory);
    }
    bool done = true;
    for (const struct dirent *one; done && (one = readdir(open_directory));) {
        done = add_entry(entries, directory, one->d_name);
    }
    closedir(open_directory);
    if (!done) {
        return karst_fail_memory(error);
    }
    return entries->count != 0 ||
           karst_fail(error, KARST_ERROR_NOT_FOUND,
                      "%s holds no files of the flight recorder (karst-PID-N.ring)", directory);
}

static int64_t other_pid(const struct entries *entries, int64_t above) {
    int64_t next = 0;
    for (size_t i = 0; i < entries->count; i++) {
        int64_t pid = entries->items[i].pid;
        next = pid > above && (next == 0 || pid < next) ? pid : next;
    }
    return next;
}

/* Which process is meant. */
static bool choose_process(const char *directory, const struct entries *entries, int64_t *pid,
                           struct karst_error *error) {
    char list[400] = "";
    size_t used = 0, processes = 0;
    for (int64_t at = other_pid(entries, 0); at; at = other_pid(entries, at)) {
        processes++;
        if (at == *pid) {
            return true;
        }
        if (used + 24 < sizeof list) {
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%" PRId64, used ? ", " : "", at);
        }
    }
    if (*pid) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND, "%s has files of process %s, not of %" PRId64,
                          directory, list, *pid);
    }
    *pid = other_pid(entries, 0);
    return processes == 1 || karst_fail(error, KARST_ERROR_USAGE,
                                        "%s has files of %zu processes (%s); say which with --process PID",
                                        directory, processes, list);
}

/* ---- opening ---------------------------------------------------------------------------------------- */

static bool take_maps(struct recorded *recorded, const char *directory, uint32_t image,
                      struct karst_error *error) {
    struct karst_target *target = &recorded->target;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/karst-%" PRId64 "-%" PRIu32 ".maps", directory, target->pid, image);
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char *text = malloc(MAPS_MAX + 1);
    ssize_t size = 0, part = 0;
    while (file >= 0 && text && size < (ssize_t)MAPS_MAX &&
           (part = read(file, text + size, MAPS_MAX - (size_t)size)) > 0) {
        size += part;
    }
    if (file >= 0) {
        close(file);
    } else {
        karst_target_remark(target, "%s is missing: call sites are plain addresses", path);
    }
    bool done = text != NULL;
    if (done) {
        text[size] = '\0';
        done = process_parse_maps(target, text);
    }
    free(text);
    karst_target_sort_mappings(target);
    if (!done || !karst_target_find_modules(target)) {
        return karst_fail_memory(error);
    }
    return true;
}

static bool take_files(struct recorded *recorded, const char *directory, const struct entries *entries,
                       uint32_t *image, struct karst_error *error) {
    int64_t pid = recorded->target.pid;
    for (size_t i = 0; i < entries->count; i++) {
        if (entries->items[i].pid == pid && entries->items[i].image > *image) {
            *image = entries->items[i].image;
        }
    }
    recorded->files = calloc(entries->count + 1, sizeof *recorded->files);
    for (size_t i = 0; recorded->files && i < entries->count; i++) {
        const struct entry *entry = &entries->items[i];
        if (entry->pid != pid || entry->image != *image) {
            continue;
        }
        char **slot = &recorded->files[recorded->file_count];
        if (asprintf(slot, "%s/%s", directory, entry->name) < 0) {
            *slot = NULL;
            return karst_fail_memory(error);
        }
        recorded->file_count++;
    }
    return recorded->files || karst_fail_memory(error);
}

static bool open_recorded(struct recorded *recorded, const char *directory, const struct entries *entries,
                          int64_t pid, const struct karst_options *options, struct karst_error *error) {
    struct karst_target *target = &recorded->target;
    uint32_t image = 0;
    if (!karst_target_init(target, &recorded_ops, KARST_TARGET_CORE, options, error)) {
        return false;
    }
    target->pid = pid;
    target->stopped = true;
    target->missing_memory = true;
    target->machine = karst_host_machine();
    if (!take_files(recorded, directory, entries, &image, error) ||
        !take_maps(recorded, directory, image, error)) {
        return false;
    }
    const char *slash = recorded->file_count ? strrchr(recorded->files[0], '/') : NULL;
    struct karst_ring header;
    if (slash && read_header(directory, slash + 1, &header) &&
        !(target->executable = strdup(header.executable))) {
        return karst_fail_memory(error);
    }
    karst_target_find_executable(target);
    if (asprintf(&target->name, "flight recorder of process %" PRId64 " (%s)", pid,
                 target->executable ? karst_base_name(target->executable) : "?") < 0) {
        target->name = NULL;
        return karst_fail_memory(error);
    }
    return true;
}

struct karst_target *karst_recorded_open(const char *directory, int64_t pid,
                                         const struct karst_options *options, struct karst_error *error) {
    struct entries entries = {0};
    struct recorded *recorded = calloc(1, sizeof *recorded);
    if (!recorded) {
        karst_fail_memory(error);
        return NULL;
    }
    recorded->open_file = -1;
    recorded->target.ops = &recorded_ops;
    bool done = list_rings(directory, &entries, error) && choose_process(directory, &entries, &pid, error) &&
                open_recorded(recorded, directory, &entries, pid, options, error);
    free(entries.items);
    if (!done) {
        recorded_close(&recorded->target);
        return NULL;
    }
    return &recorded->target;
}
