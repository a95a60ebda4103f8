#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "error.h"
#include "process_tree.h"
#include "rss.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_TREE };

static const struct {
    const char *file, *field;
} sources[KARST_RSS_SOURCES] = {
    [KARST_RSS_ROLLUP] = {"smaps_rollup", "Rss"},
    [KARST_RSS_STATUS] = {"status", "VmRSS"},
    [KARST_RSS_STATM] = {"statm", "field 2"},
    [KARST_RSS_STAT] = {"stat", "field 24"},
};

/* ---- one process ------------------------------------------------------------------------------- */

/* "+0 B", "-48.0 KB": what a source shows against the page tables; "" if either is not known. */
static struct karst_text difference(const struct karst_writer *writer, uint64_t shown, uint64_t counted) {
    struct karst_text text = {""};
    if (shown != UINT64_MAX && counted != UINT64_MAX) {
        bool less = shown < counted;
        struct karst_text size = karst_size_text(writer, less ? counted - shown : shown - counted);
        snprintf(text.text, sizeof text.text, "%c%.30s", less ? '-' : '+', size.text);
    }
    return text;
}

static void write_sources(struct karst_writer *writer, const struct karst_rss *rss,
                          const struct karst_rss_trial *trial) {
    static const struct karst_column columns[] = {{"source", KARST_LEFT},
                                                  {"figure", KARST_LEFT | KARST_NEED_6},
                                                  {"resident", KARST_RIGHT},
                                                  {"difference", KARST_RIGHT | KARST_NEED_7},
                                                  {"on this kernel", KARST_LEFT}};
    struct karst_table *table = karst_table_open(writer, columns, 5);
    for (int source = 0; source < KARST_RSS_SOURCES; source++) {
        bool exact = trial->exact[source];
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", sources[source].file);
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", sources[source].field);
        karst_table_known_size(table, rss->resident[source]);
        karst_table_text(
            table, KARST_STYLE_PLAIN, "%s",
            source == KARST_RSS_ROLLUP
                ? ""
                : difference(writer, rss->resident[source], rss->resident[KARST_RSS_ROLLUP]).text);
        karst_table_text(table, exact ? KARST_STYLE_GOOD : KARST_STYLE_WARNING, "%s",
                         !trial->known ? "not known"
                         : exact       ? "exact"
                                       : "approximate");
    }
    karst_table_close(table);
}

struct figure {
    const char *name;
    uint64_t bytes;
    const char *means;
};

static void write_figures(struct karst_writer *writer, const struct karst_rss *rss) {
    const struct figure figures[] = {
        {"private (USS)", karst_rss_private(rss), "mapped by no other process: what its end would free"},
        {"  clean", rss->private_clean, "as in its file"},
        {"  dirty", rss->private_dirty, "written to"},
        {"shared clean", rss->shared_clean, "mapped by others too"},
        {"shared dirty", rss->shared_dirty, "mapped by others too, and written to"},
        {"PSS", rss->pss, "private, and its part of what is shared"},
        {"mapped (VSS)", rss->mapped, "address space, with what has no page and takes no memory"},
        {"anonymous", rss->anonymous, "heaps, stacks, data written to (RssAnon)"},
        {"file", rss->file, "of mapped files (RssFile)"},
        {"shared memory", rss->shmem, "shmem, tmpfs, memfd (RssShmem)"},
        {"huge pages", rss->huge, "anonymous memory in huge pages"},
        {"swap", rss->swap, "swapped out (VmSwap)"},
        {"swap PSS", rss->swap_pss, "its part of what is swapped out"},
        {"peak", rss->peak, "the most that VmRSS was (VmHWM)"},
    };
    static const struct karst_column columns[] = {
        {"kind", KARST_LEFT}, {"bytes", KARST_RIGHT}, {"what it is", KARST_WRAPPED}};
    struct karst_table *table = karst_table_open(writer, columns, 3);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        karst_table_text(table, KARST_STYLE_PLAIN, "%s", figures[i].name);
        karst_table_known_size(table, figures[i].bytes);
        karst_table_text(table, KARST_STYLE_DIM, "%s", figures[i].means);
    }
    karst_table_close(table);
}

/* Bytes by which a figure that lags may be off: each CPU holds back less than a batch of each kind of page
 * (file, anonymous, shared memory). UINT64_MAX: not known. */
static uint64_t bound(const struct karst *session, const struct karst_rss_trial *trial) {
    return trial->batch ? (uint64_t)(trial->batch - 1) * trial->cpus * 3 * session->target->page_size
                        : UINT64_MAX;
}

static void write_reason(struct karst_call *call, const struct karst_rss_trial *trial) {
    struct karst_writer *writer = &call->writer;
    char text[800];
    if (!trial->known) {
        karst_print_wrapped(writer, 0, 0, "Which of these is exact on this kernel could not be tried.");
        return;
    }
    karst_print_wrapped(
        writer, 0, 0,
        "exact: tried just now, it followed each single page of karst's own memory. smaps_rollup looks at "
        "the page "
        "tables; the others show counts of which each CPU (before Linux 6.2: each thread) keeps a part. A "
        "source that adds up all parts is exact, one that does not is approximate.");
    uint64_t most = bound(call->session, trial);
    if (most != UINT64_MAX) {
        snprintf(text, sizeof text,
                 "A part was added in here once it had %" PRIu32
                 " pages. On %s CPU%s an approximate figure can so be off by %s, in "
                 "either direction.",
                 trial->batch, karst_count_text(trial->cpus).text, karst_plural(trial->cpus),
                 karst_size_text(writer, most).text);
        karst_print_wrapped(writer, 0, 0, text);
    }
}

/* ---- the tree ---------------------------------------------------------------------------------- */

struct tree_totals {
    uint64_t processes, unread, rss, pss, private_bytes, shared, forked, swap_pss;
};

static uint64_t shared_bytes(const struct karst_rss *rss) {
    return rss->shared_clean == UINT64_MAX || rss->shared_dirty == UINT64_MAX
               ? UINT64_MAX
               : rss->shared_clean + rss->shared_dirty;
}

/* The exact figure where it can be had, else the best there is. */
static uint64_t best_resident(const struct karst_rss *rss, const struct karst_rss_trial *trial) {
    for (int source = 0; source < KARST_RSS_SOURCES; source++) {
        if (trial->exact[source] && rss->resident[source] != UINT64_MAX) {
            return rss->resident[source];
        }
    }
    return rss->resident[KARST_RSS_STATM];
}

static void add_known(uint64_t *sum, uint64_t bytes) {
    *sum += bytes == UINT64_MAX ? 0 : bytes;
}

static void count_in(struct tree_totals *totals, const struct karst_rss *rss,
                     const struct karst_rss_trial *trial) {
    totals->processes++;
    totals->unread += rss->rollup_error != 0;
    add_known(&totals->rss, best_resident(rss, trial));
    add_known(&totals->pss, rss->pss);
    add_known(&totals->private_bytes, karst_rss_private(rss));
    add_known(&totals->shared, shared_bytes(rss));
    add_known(&totals->forked, rss->forked);
    add_known(&totals->swap_pss, rss->swap_pss);
}

static void write_member(struct karst_table *table, const struct karst_tree_process *process,
                         const struct karst_rss *rss, const struct karst_rss_trial *trial) {
    unsigned indent = process->depth < 20 ? 2 * process->depth : 40;
    karst_table_text(table, KARST_STYLE_PLAIN, "%" PRId64, process->pid);
    karst_table_known_size(table, rss->mapped);
    karst_table_known_size(table, best_resident(rss, trial));
    karst_table_known_size(table, rss->pss);
    karst_table_known_size(table, karst_rss_private(rss));
    karst_table_known_size(table, shared_bytes(rss));
    karst_table_known_size(table, rss->forked);
    karst_table_known_size(table, rss->swap);
    karst_table_text(table, KARST_STYLE_PLAIN, "%*s%s", (int)indent, "", rss->name);
}

static void write_totals(struct karst_table *table, const struct tree_totals *totals) {
    karst_table_text(table, KARST_STYLE_PLAIN, "in all");
    karst_table_text(table, KARST_STYLE_DIM, "-");
    karst_table_text(table, KARST_STYLE_DIM, "-");
    karst_table_size(table, totals->pss);
    karst_table_size(table, totals->private_bytes);
    karst_table_text(table, KARST_STYLE_DIM, "-");
    karst_table_text(table, KARST_STYLE_DIM, "-");
    karst_table_text(table, KARST_STYLE_DIM, "-");
    karst_table_text(table, KARST_STYLE_PLAIN, "%s process%s", karst_count_text(totals->processes).text,
                     totals->processes == 1 ? "" : "es");
}

static void write_tree(struct karst_call *call, const struct karst_process_tree *tree,
                       const struct karst_rss_trial *trial) {
    static const struct karst_column columns[] = {{"pid", KARST_RIGHT},
                                                  {"VSS", KARST_RIGHT | KARST_NEED_8},
                                                  {"RSS", KARST_RIGHT},
                                                  {"PSS", KARST_RIGHT | KARST_NEED_3},
                                                  {"USS", KARST_RIGHT | KARST_NEED_4},
                                                  {"shared", KARST_RIGHT | KARST_NEED_5},
                                                  {"forked", KARST_RIGHT | KARST_NEED_6},
                                                  {"swap", KARST_RIGHT | KARST_NEED_7},
                                                  {"process", KARST_FLEXIBLE}};
    struct karst_writer *writer = &call->writer;
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    struct tree_totals totals = {0};
    for (size_t i = 0; i < tree->member_count; i++) {
        struct karst_rss rss;
        struct karst_error gone;
        if (karst_rss_read(tree->members[i].pid, true, &rss, &gone) && rss.has_memory) {
            count_in(&totals, &rss, trial);
            write_member(table, &tree->members[i], &rss, trial);
        }
    }
    write_totals(table, &totals);
    karst_table_close(table);
    karst_print_wrapped(
        writer, 0, 0,
        "VSS: all that is mapped, page or no page; USS: private, what its end would free; forked: anonymous "
        "memory that a fork shares as nobody has written to it since; part of shared. The "
        "sum of PSS counts each page once (but for what processes outside of the tree map too), a sum of RSS "
        "would count shared pages once for each process.");
    if (totals.unread) {
        karst_print(writer, "%s of them may not be read: the totals lack them\n",
                    karst_count_text(totals.unread).text);
    }
}

/* ---- JSON -------------------------------------------------------------------------------------- */

static json_t *process_json(struct karst_writer *writer, const struct karst_rss *rss,
                            const struct karst_rss_trial *trial) {
    json_t *one = karst_json_object(writer);
    karst_json_set(writer, one, "pid", json_integer(rss->pid));
    karst_json_set(writer, one, "parent", json_integer(rss->parent));
    karst_json_set_text(writer, one, "name", rss->name);
    karst_json_set_known(writer, one, "vss_bytes", rss->mapped);
    karst_json_set_known(writer, one, "rss_bytes", best_resident(rss, trial));
    karst_json_set_known(writer, one, "pss_bytes", rss->pss);
    karst_json_set_known(writer, one, "uss_bytes", karst_rss_private(rss));
    karst_json_set_known(writer, one, "private_clean_bytes", rss->private_clean);
    karst_json_set_known(writer, one, "private_dirty_bytes", rss->private_dirty);
    karst_json_set_known(writer, one, "shared_clean_bytes", rss->shared_clean);
    karst_json_set_known(writer, one, "shared_dirty_bytes", rss->shared_dirty);
    karst_json_set_known(writer, one, "forked_bytes", rss->forked);
    karst_json_set_known(writer, one, "anonymous_bytes", rss->anonymous);
    karst_json_set_known(writer, one, "file_bytes", rss->file);
    karst_json_set_known(writer, one, "shmem_bytes", rss->shmem);
    karst_json_set_known(writer, one, "huge_bytes", rss->huge);
    karst_json_set_known(writer, one, "locked_bytes", rss->locked);
    karst_json_set_known(writer, one, "swap_bytes", rss->swap);
    karst_json_set_known(writer, one, "swap_pss_bytes", rss->swap_pss);
    karst_json_set_known(writer, one, "peak_bytes", rss->peak);
    return one;
}

static json_t *sources_json(struct karst_writer *writer, const struct karst_rss *rss,
                            const struct karst_rss_trial *trial) {
    json_t *list = karst_json_array(writer);
    uint64_t counted = rss->resident[KARST_RSS_ROLLUP];
    for (int source = 0; source < KARST_RSS_SOURCES; source++) {
        json_t *one = karst_json_object(writer);
        uint64_t shown = rss->resident[source];
        bool comparable = shown != UINT64_MAX && counted != UINT64_MAX;
        karst_json_set_text(writer, one, "source", sources[source].file);
        karst_json_set_text(writer, one, "figure", sources[source].field);
        karst_json_set_known(writer, one, "bytes", shown);
        karst_json_set(writer, one, "difference_bytes",
                       comparable ? json_integer((json_int_t)(shown - counted)) : json_null());
        karst_json_set(writer, one, "exact", trial->known ? json_boolean(trial->exact[source]) : json_null());
        karst_json_append(writer, list, one);
    }
    return list;
}

static json_t *kernel_json(struct karst_call *call, const struct karst_rss_trial *trial) {
    json_t *one = karst_json_object(&call->writer);
    struct utsname name;
    karst_json_set_text(&call->writer, one, "release", uname(&name) == 0 ? name.release : NULL);
    karst_json_set_number(&call->writer, one, "cpus", trial->cpus);
    karst_json_set(&call->writer, one, "batch_pages",
                   trial->batch ? json_integer(trial->batch) : json_null());
    karst_json_set_known(&call->writer, one, "bound_bytes", bound(call->session, trial));
    return one;
}

static json_t *totals_json(struct karst_writer *writer, const struct tree_totals *totals) {
    json_t *one = karst_json_object(writer);
    karst_json_set_number(writer, one, "processes", totals->processes);
    karst_json_set_number(writer, one, "unread", totals->unread);
    karst_json_set_number(writer, one, "rss_bytes", totals->rss);
    karst_json_set_number(writer, one, "pss_bytes", totals->pss);
    karst_json_set_number(writer, one, "uss_bytes", totals->private_bytes);
    karst_json_set_number(writer, one, "shared_bytes", totals->shared);
    karst_json_set_number(writer, one, "forked_bytes", totals->forked);
    karst_json_set_number(writer, one, "swap_pss_bytes", totals->swap_pss);
    return one;
}

static void add_tree_json(struct karst_writer *writer, json_t *root, const struct karst_process_tree *tree,
                          const struct karst_rss_trial *trial) {
    json_t *list = karst_json_array(writer);
    struct tree_totals totals = {0};
    for (size_t i = 0; i < tree->member_count; i++) {
        struct karst_rss rss;
        struct karst_error gone;
        if (karst_rss_read(tree->members[i].pid, true, &rss, &gone) && rss.has_memory) {
            count_in(&totals, &rss, trial);
            karst_json_append(writer, list, process_json(writer, &rss, trial));
        }
    }
    karst_json_set(writer, root, "tree", list);
    karst_json_set(writer, root, "totals", totals_json(writer, &totals));
}

/* ---- the verb ---------------------------------------------------------------------------------- */

static void answer(struct karst_call *call, const struct karst_rss *rss, const struct karst_rss_trial *trial,
                   const struct karst_process_tree *tree) {
    struct karst_writer *writer = &call->writer;
    bool with_tree = call->options[OPTION_TREE].given;
    if (call->json) {
        json_t *root = process_json(writer, rss, trial);
        karst_json_set(writer, root, "sources", sources_json(writer, rss, trial));
        karst_json_set(writer, root, "kernel", kernel_json(call, trial));
        if (with_tree) {
            add_tree_json(writer, root, tree, trial);
        }
        karst_call_write_json(call, root);
    } else if (with_tree) {
        write_tree(call, tree, trial);
    } else {
        karst_print_title(writer, "%s", call->session->target->name);
        write_sources(writer, rss, trial);
        if (rss->rollup_error) {
            karst_print(writer, "smaps_rollup can't be read: %s\n", strerror(rss->rollup_error));
        }
        write_reason(call, trial);
        karst_print(writer, "\n");
        write_figures(writer, rss);
    }
}

static bool run(struct karst_call *call) {
    const struct karst_target *target = call->session->target;
    struct karst_rss_trial trial;
    struct karst_rss rss;
    struct karst_process_tree tree = {0};
    if (target->kind == KARST_TARGET_CORE) {
        return karst_fail(
            call->error, KARST_ERROR_USAGE,
            "rss asks /proc, which a core does not hold: give a live process (-p PID); `summary` says "
            "what of the heap was resident");
    }
    if (target->kind != KARST_TARGET_PROCESS) {
        return karst_fail(call->error, KARST_ERROR_USAGE,
                          "rss asks this machine's /proc, and the program does not run here");
    }
    if (!karst_rss_read(target->pid, false, &rss, call->error)) {
        return false;
    }
    if (!rss.has_memory) {
        return karst_fail(call->error, KARST_ERROR_NOT_FOUND, "%s has no memory any more: it is ending",
                          target->name);
    }
    karst_rss_try(&trial);
    bool found =
        !call->options[OPTION_TREE].given || karst_process_tree_find(&tree, target->pid, call->error);
    if (found) {
        answer(call, &rss, &trial, &tree);
    }
    karst_process_tree_clear(&tree);
    return found;
}

static const struct karst_verb_option options[] = {
    [OPTION_TREE] =
        {"tree", 0, KARST_VALUE_FLAG, NULL,
         "the process and all that descend from it, a row each: what is private, what is shared, and "
         "what a fork shares",
         NULL},
    {0},
};

const struct karst_verb karst_verb_rss = {
    .name = "rss",
    .group = KARST_GROUP_OVERVIEW,
    .summary = "resident memory as each file of /proc tells it, and which of them is exact",
    .help =
        "What stat, statm, status and smaps_rollup say of a process's resident memory, how they differ, and "
        "which "
        "of them is exact on this kernel. The kernel counts pages in parts, one for each CPU, and some of "
        "these "
        "files show a count that lags behind the parts; which ones has changed between kernels, so karst "
        "tries "
        "it on a few pages of its own.\n"
        "\n"
        "Then what the memory is: private or shared, clean or dirty, of files or anonymous, swapped out. RSS "
        "counts a shared page in full for each process, PSS shares it out, USS (private) leaves it out. VSS "
        "is "
        "what is mapped, resident or not.\n"
        "\n"
        "With --tree, a row for each process that descends from this one. Only the process itself is stopped "
        "while it is read. No heap is walked; where a process may not be read, what /proc shows to all is "
        "told.",
    .json =
        "{\"pid\", \"parent\", \"name\", \"vss_bytes\", \"rss_bytes\" (the best figure there is), "
        "\"pss_bytes\", "
        "\"uss_bytes\", "
        "\"private_clean_bytes\", \"private_dirty_bytes\", \"shared_clean_bytes\", \"shared_dirty_bytes\", "
        "\"forked_bytes\" (only in tree), \"anonymous_bytes\", \"file_bytes\", \"shmem_bytes\", "
        "\"huge_bytes\", \"locked_bytes\", \"swap_bytes\", \"swap_pss_bytes\", \"peak_bytes\", \"sources\": "
        "[{\"source\", \"figure\", \"bytes\", \"difference_bytes\" (to smaps_rollup), \"exact\"}], "
        "\"kernel\": {\"release\", \"cpus\", \"batch_pages\", \"bound_bytes\" (of an approximate figure)}, "
        "\"target\"}; what is not known is null. With --tree also \"tree\": [the same keys up to "
        "peak_bytes], "
        "\"totals\": {\"processes\", \"unread\", \"rss_bytes\", \"pss_bytes\", \"uss_bytes\", "
        "\"shared_bytes\", \"forked_bytes\", \"swap_pss_bytes\"}.",
    .options = options,
    .needs = KARST_NEEDS_PROCESS,
    .run = run,
};
