/* What /proc says of a process's memory, and which of its figures this kernel counts exactly. */
#ifndef KARST_TARGET_RSS_H
#define KARST_TARGET_RSS_H

#include "error.h"
#include "karst.h"

/* The places that tell how much of a process is resident. */
enum karst_rss_source {
    KARST_RSS_ROLLUP, /* smaps_rollup, else the sum over smaps: counted page by page in the page tables */
    KARST_RSS_STATUS, /* status: VmRSS */
    KARST_RSS_STATM,  /* statm: the second field */
    KARST_RSS_STAT,   /* stat: the 24th field; ps and top read one of these three */
    KARST_RSS_SOURCES
};

/* Bytes; UINT64_MAX: not told. */
struct karst_rss {
    int64_t pid, parent;
    char name[64];
    bool has_memory; /* false: a kernel thread, or it has ended */
    uint64_t resident[KARST_RSS_SOURCES];
    uint64_t mapped; /* VSS: all that it has mapped, whether there are pages or not (statm's first field) */
    /* status: the kernel's counters by kind, what is swapped out, the highest VmRSS so far */
    uint64_t anonymous, file, shmem, swap, peak;
    /* smaps_rollup: mapped by this process alone, or by several; PSS shares each page out among them */
    uint64_t pss, private_clean, private_dirty, shared_clean, shared_dirty, swap_pss, huge, locked;
    /* smaps, when asked for: anonymous memory that a fork shares, as nobody has written to it since */
    uint64_t forked;
    int rollup_error; /* errno of smaps_rollup and smaps; 0: read */
};

/* Reads the files of process pid one after the other: of a process that runs they tell of different moments.
 * with_forked: smaps too, which takes about as long as smaps_rollup. NOT_FOUND if there is no such process;
 * what a figure's file keeps from us stays UINT64_MAX. */
bool karst_rss_read(int64_t pid, bool with_forked, struct karst_rss *rss, struct karst_error *error);

/* The process that started pid, -1: there is no such process. */
int64_t karst_rss_parent(int64_t pid);

/* Private bytes (USS), or UINT64_MAX. */
uint64_t karst_rss_private(const struct karst_rss *rss);

/* What a trial on pages of our own showed of this kernel. */
struct karst_rss_trial {
    bool known;                    /* false: it could not be made */
    bool exact[KARST_RSS_SOURCES]; /* the figure followed each single page */
    uint32_t batch;                /* pages at which a lagging counter moved; 0: it did not, or none lags */
    uint32_t cpus;                 /* that are online */
};

/* Touches fresh pages one by one and looks what each source says then. Which sources are exact has changed
 * between kernels, and such changes went into stable releases and distributions' kernels: so ask the kernel,
 * not its version. Takes a few milliseconds and a megabyte of memory for that time. */
void karst_rss_try(struct karst_rss_trial *trial);

#endif
