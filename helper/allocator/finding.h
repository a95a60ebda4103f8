/* Findings: what `check` says is wrong. Never a guess dressed as fact, see severity. */
#ifndef KARST_ALLOCATOR_FINDING_H
#define KARST_ALLOCATOR_FINDING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum karst_finding_code {
    KARST_FINDING_DOUBLE_FREE,
    KARST_FINDING_OVERLAP,
    KARST_FINDING_RUN_OVERLAP,
    KARST_FINDING_BAD_SIZE,
    KARST_FINDING_BAD_LINK,
    KARST_FINDING_WRONG_BIN,
    KARST_FINDING_MISALIGNED,
    KARST_FINDING_LOST_FREE,
    KARST_FINDING_UNCOALESCED,
    KARST_FINDING_BAD_COUNT,
    KARST_FINDING_OVERFLOW,
    KARST_FINDING_WRITE_AFTER_FREE,
    KARST_FINDING_BAD_ROOT,
    KARST_FINDING_CODES
};

enum karst_severity {
    KARST_SEVERITY_CORRUPT, /* no legal state looks like this */
    KARST_SEVERITY_SUSPECT  /* a legal state could look alike: the text says which */
};

struct karst_finding {
    enum karst_finding_code code;
    enum karst_severity severity;
    uint16_t heap;
    uint64_t address; /* the block's address as the program knows it, or of the field */
    uint64_t size;    /* bytes concerned; 0: not told */
    char *text;       /* one line: what is wrong, likely cause */
    char *evidence;   /* the words read and what they should be */
};

/* At most KARST_FINDINGS_KEPT are kept per code; beyond that they are counted in dropped. */
#define KARST_FINDINGS_KEPT 200

struct karst_findings {
    struct karst_finding *items;
    size_t count;
    uint64_t per_code[KARST_FINDING_CODES]; /* all that were met, kept or not */
    uint64_t dropped;
    uint64_t blocks_checked;
    bool out_of_memory;
};

/* "double-free", ... */
const char *karst_finding_code_name(enum karst_finding_code code);
/* Adds a finding; text and evidence are formatted: "text\tevidence" split at the first tab. */
void karst_findings_add(struct karst_findings *findings, enum karst_finding_code code,
                        enum karst_severity severity, uint16_t heap, uint64_t address, uint64_t size,
                        const char *format, ...) __attribute__((format(printf, 7, 8)));
/* By severity, then address. */
void karst_findings_sort(struct karst_findings *findings);
void karst_findings_clear(struct karst_findings *findings);

#endif
