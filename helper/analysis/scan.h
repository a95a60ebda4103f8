/* Scanning memory for pointers into a range. */
#ifndef KARST_ANALYSIS_SCAN_H
#define KARST_ANALYSIS_SCAN_H

#include "session.h"

/* Looks for 8-byte aligned words with a value in [low, low + size). */
struct karst_scan {
    struct karst *session;
    uint64_t low, size;
    struct karst_window window;
    uint64_t unreadable; /* bytes that could not be had */
    /* Told of each in rising order of address; false ends the scan. */
    bool (*found)(void *context, uint64_t address, uint64_t value);
    void *context;
    bool stopped; /* found() returned false */
};

void karst_scan_open(struct karst_scan *scan, struct karst *session, uint64_t low, uint64_t size);
void karst_scan_close(struct karst_scan *scan);
/* Scans [start, end). False: interrupted. Tells the session's progress, if asked to. */
bool karst_scan_range(struct karst_scan *scan, uint64_t start, uint64_t end, bool progress,
                      struct karst_error *error);

#endif
