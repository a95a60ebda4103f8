/* Figures of /proc/PID; see proc(5) and Documentation/filesystems/proc.rst of Linux. */
#include "rss.h"
#include "process.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KB 1024u

/* Lines "Name:   123 kB" are added up in *sum, which begins as UINT64_MAX: none met yet. */
struct wanted {
    const char *name;
    uint64_t *sum;
};

static void add(uint64_t *sum, uint64_t bytes) {
    *sum = *sum == UINT64_MAX ? bytes : *sum + bytes;
}

static void take_line(const char *line, const struct wanted *wanted) {
    size_t length = strcspn(line, ":\n");
    for (; wanted->name; wanted++) {
        if (strlen(wanted->name) == length && strncmp(line, wanted->name, length) == 0 &&
            line[length] == ':') {
            add(wanted->sum, strtoull(line + length + 1, NULL, 10) * KB);
            return;
        }
    }
}

static void take_lines(const char *text, const struct wanted *wanted) {
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        take_line(line, wanted);
    }
}

/* false with errno set. */
static bool read_fields(int64_t task, const char *name, const struct wanted *wanted) {
    size_t size;
    char *text = process_file(task, name, &size);
    if (text) {
        take_lines(text, wanted);
    }
    free(text);
    return text != NULL;
}

/* smaps_rollup came with Linux 4.14; its lines are the sums over those of smaps. */
static void read_rollup(int64_t task, struct karst_rss *rss) {
    const struct wanted wanted[] = {{"Rss", &rss->resident[KARST_RSS_ROLLUP]},
                                    {"Pss", &rss->pss},
                                    {"Private_Clean", &rss->private_clean},
                                    {"Private_Dirty", &rss->private_dirty},
                                    {"Shared_Clean", &rss->shared_clean},
                                    {"Shared_Dirty", &rss->shared_dirty},
                                    {"SwapPss", &rss->swap_pss},
                                    {"AnonHugePages", &rss->huge},
                                    {"Locked", &rss->locked},
                                    {0}};
    bool got =
        read_fields(task, "smaps_rollup", wanted) || (errno == ENOENT && read_fields(task, "smaps", wanted));
    rss->rollup_error = got ? 0 : errno;
}

static void read_status(int64_t task, struct karst_rss *rss) {
    const struct wanted wanted[] = {{"VmRSS", &rss->resident[KARST_RSS_STATUS]},
                                    {"RssAnon", &rss->anonymous},
                                    {"RssFile", &rss->file},
                                    {"RssShmem", &rss->shmem},
                                    {"VmSwap", &rss->swap},
                                    {"VmHWM", &rss->peak},
                                    {0}};
    read_fields(task, "status", wanted);
}

/* The pages at field number index (from 0) of text. */
static uint64_t pages_at(const char *text, unsigned index) {
    for (; index > 0 && *text; index--) {
        text += strcspn(text, " \n");
        text += strspn(text, " ");
    }
    char *end;
    uint64_t pages = strtoull(text, &end, 10);
    return end == text ? UINT64_MAX : pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void read_pages(int64_t task, struct karst_rss *rss) {
    size_t size;
    char *statm = process_file(task, "statm", &size);
    if (statm) {
        rss->mapped = pages_at(statm, 0);
        rss->resident[KARST_RSS_STATM] = pages_at(statm, 1);
    }
    free(statm);
    char *stat = process_file(task, "stat", &size);
    /* "12 (any name) S ...": the third field stands behind the last parenthesis. */
    const char *rest = stat ? strrchr(stat, ')') : NULL;
    if (rest && rest[1] == ' ') {
        rss->resident[KARST_RSS_STAT] = pages_at(rest + 2, 24 - 3);
    }
    free(stat);
}

/* Whether line begins a mapping of private memory of no file: "start-end rw-p 00000000 00:00 0   [heap]". The
 * file's offset need not be 0 in front of an inode that is. */
static bool is_private_anonymous(const char *line) {
    uint64_t inode = 1;
    char permissions[5] = "";
    return sscanf(line, "%*x-%*x %4s %*x %*s %" SCNu64, permissions, &inode) == 2 && permissions[3] == 'p' &&
           inode == 0;
}

static void read_forked(int64_t task, struct karst_rss *rss) {
    size_t size;
    char *text = process_file(task, "smaps", &size);
    const struct wanted wanted[] = {{"Shared_Clean", &rss->forked}, {"Shared_Dirty", &rss->forked}, {0}};
    bool counts = false;
    if (text) {
        rss->forked = 0;
    }
    for (const char *line = text; line && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (*line >= 'A' && *line <= 'Z') {
            if (counts) {
                take_line(line, wanted);
            }
        } else {
            counts = is_private_anonymous(line);
        }
    }
    free(text);
}

bool karst_rss_read(int64_t pid, bool with_forked, struct karst_rss *rss, struct karst_error *error) {
    struct process_status status;
    if (!process_read_status(pid, &status)) {
        return karst_fail(error, KARST_ERROR_NOT_FOUND, "there is no process %" PRId64, pid);
    }
    *rss = (struct karst_rss){.pid = pid,
                              .parent = status.parent,
                              .has_memory = status.has_memory,
                              .resident = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX},
                              .mapped = UINT64_MAX,
                              .anonymous = UINT64_MAX,
                              .file = UINT64_MAX,
                              .shmem = UINT64_MAX,
                              .swap = UINT64_MAX,
                              .peak = UINT64_MAX,
                              .pss = UINT64_MAX,
                              .private_clean = UINT64_MAX,
                              .private_dirty = UINT64_MAX,
                              .shared_clean = UINT64_MAX,
                              .shared_dirty = UINT64_MAX,
                              .swap_pss = UINT64_MAX,
                              .huge = UINT64_MAX,
                              .locked = UINT64_MAX,
                              .forked = UINT64_MAX};
    memcpy(rss->name, status.name, sizeof rss->name);
    int64_t task = pid;
    if (!status.has_memory && status.state == 'Z' && status.threads > 1) { /* its first thread alone ended */
        task = process_live_thread((pid_t)pid);
        rss->has_memory = task != 0;
    }
    if (!rss->has_memory) {
        return true;
    }
    read_pages(task, rss);
    read_status(task, rss);
    read_rollup(task, rss);
    if (with_forked && !rss->rollup_error) {
        read_forked(task, rss);
    }
    return true;
}

int64_t karst_rss_parent(int64_t pid) {
    struct process_status status;
    return process_read_status(pid, &status) ? status.parent : -1;
}

uint64_t karst_rss_private(const struct karst_rss *rss) {
    return rss->private_clean == UINT64_MAX || rss->private_dirty == UINT64_MAX
               ? UINT64_MAX
               : rss->private_clean + rss->private_dirty;
}
