/* Which of /proc's figures are exact on this kernel, found out on pages of our own.
 *
 * The kernel counts a process's pages in parts, one for each CPU (Linux 6.2 on, include/linux/mm.h and
 * percpu_counter.h) or thread (before, mm/memory.c), and adds a part to the common count once it is large.
 * Some files of /proc show the common count alone, some add up all the parts, smaps and smaps_rollup look at
 * the page tables. */
#include "process.h"
#include "rss.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pages that are touched to see which figures follow each: fewer than any part that is held back. */
#define STEPS 12
/* The largest part looked for: batches are twice the CPUs. */
#define PAGES_MAX 2048

static const char *const files[KARST_RSS_SOURCES] = {"smaps_rollup", "status", "statm", "stat"};

struct trial {
    struct karst_rss_trial *result;
    int files[KARST_RSS_SOURCES];
    uint8_t *pages;
    size_t page_size, used;
    char text[4096]; /* touched before the first look */
};

/* The figure now, in pages; -1: unknown. Takes no memory: that would count too. */
static int64_t figure(struct trial *trial, enum karst_rss_source source) {
    ssize_t got = pread(trial->files[source], trial->text, sizeof trial->text - 1, 0);
    if (got <= 0) {
        return -1;
    }
    trial->text[got] = '\0';
    int64_t kilobytes = (int64_t)(trial->page_size / 1024);
    const char *at = trial->text;
    switch (source) {
    case KARST_RSS_ROLLUP:
        at = strstr(at, "\nRss:");
        return at ? strtoll(at + 5, NULL, 10) / kilobytes : -1;
    case KARST_RSS_STATUS:
        at = strstr(at, "\nVmRSS:");
        return at ? strtoll(at + 7, NULL, 10) / kilobytes : -1;
    case KARST_RSS_STATM:
        at = strchr(at, ' ');
        return at ? strtoll(at, NULL, 10) : -1;
    default:
        at = strrchr(at, ')');
        for (int field = 3; at && field <= 24; field++) {
            at = strchr(at + 1, ' ');
        }
        return at ? strtoll(at, NULL, 10) : -1;
    }
}

static void touch(struct trial *trial) {
    *(volatile uint8_t *)(trial->pages + trial->page_size * trial->used++) = 1;
}

/* Other threads of this program may touch pages meanwhile: a figure counts as exact if it moved with nearly
 * each of our pages; one that is held back moves once, if at all. */
static void step(struct trial *trial) {
    unsigned moved[KARST_RSS_SOURCES] = {0};
    for (int i = 0; i < STEPS; i++) {
        int64_t before[KARST_RSS_SOURCES];
        for (int source = 0; source < KARST_RSS_SOURCES; source++) {
            before[source] = figure(trial, source);
        }
        touch(trial);
        for (int source = 0; source < KARST_RSS_SOURCES; source++) {
            moved[source] += before[source] >= 0 && figure(trial, source) > before[source];
        }
    }
    trial->result->known = true;
    for (int source = 0; source < KARST_RSS_SOURCES; source++) {
        trial->result->exact[source] = moved[source] > STEPS / 2;
    }
}

/* How many pages the count lags behind at most before it moves. */
static void find_batch(struct trial *trial) {
    int64_t last = figure(trial, KARST_RSS_STAT);
    while (last >= 0 && trial->used < PAGES_MAX) {
        touch(trial);
        int64_t now = figure(trial, KARST_RSS_STAT);
        int64_t moved = now > last ? now - last : 0;
        last = now;
        trial->result->batch = moved > trial->result->batch ? (uint32_t)moved : trial->result->batch;
        /* Twice: the first move may be of what other CPUs or earlier faults had left. */
        if (trial->result->batch && trial->used > STEPS + 3 * (size_t)trial->result->batch) {
            return;
        }
    }
}

/* On a thread of its own: kernels may count a process of one thread exactly, at no cost, and others not. */
static void *work(void *context) {
    struct trial *trial = context;
    for (int source = 0; source < KARST_RSS_SOURCES; source++) {
        figure(trial, source); /* whatever a first look takes is taken */
    }
    step(trial);
    if (!trial->result->exact[KARST_RSS_STAT]) {
        find_batch(trial);
    }
    return NULL;
}

static void run(struct trial *trial) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all); /* a debugger's signals are for its own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, work, trial) == 0) {
        pthread_join(thread, NULL);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void karst_rss_try(struct karst_rss_trial *result) {
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    *result = (struct karst_rss_trial){.cpus = cpus > 0 ? (uint32_t)cpus : 1};
    struct trial *trial = calloc(1, sizeof *trial);
    if (!trial) {
        return;
    }
    trial->result = result;
    trial->page_size = (size_t)sysconf(_SC_PAGESIZE);
    for (int source = 0; source < KARST_RSS_SOURCES; source++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/%s", files[source]);
        trial->files[source] = open(path, O_RDONLY | O_CLOEXEC);
    }
    size_t size = trial->page_size * PAGES_MAX;
    void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages != MAP_FAILED) {
        trial->pages = pages;
        madvise(pages, size, MADV_NOHUGEPAGE); /* one page a fault; fails on kernels without huge pages */
        run(trial);
        munmap(pages, size);
    }
    for (int source = 0; source < KARST_RSS_SOURCES; source++) {
        if (trial->files[source] >= 0) {
            close(trial->files[source]);
        }
    }
    free(trial);
}
