#include "finding.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"

const char *karst_finding_code_name(enum karst_finding_code code) {
    static const char *const names[KARST_FINDING_CODES] = {
        "double-free", "overlap",          "run-overlap", "bad-size",    "bad-link",
        "wrong-bin",   "misaligned",       "lost-free",   "uncoalesced", "bad-count",
        "overflow",    "write-after-free", "bad-root",
    };
    return code < KARST_FINDING_CODES ? names[code] : "?";
}

void karst_findings_add(struct karst_findings *findings, enum karst_finding_code code,
                        enum karst_severity severity, uint16_t heap, uint64_t address, uint64_t size,
                        const char *format, ...) {
    if (findings->per_code[code]++ >= KARST_FINDINGS_KEPT) {
        findings->dropped++;
        return;
    }
    struct karst_finding *items = realloc(findings->items, (findings->count + 1) * sizeof *items);
    if (!items) {
        findings->out_of_memory = true;
        return;
    }
    findings->items = items;
    char *text;
    KARST_FORMAT(text, format);
    if (!text) {
        findings->out_of_memory = true;
        return;
    }
    char *tab = strchr(text, '\t');
    char *evidence = strdup(tab ? tab + 1 : "");
    if (!evidence) {
        free(text);
        findings->out_of_memory = true;
        return;
    }
    if (tab) {
        *tab = '\0';
    }
    items[findings->count++] = (struct karst_finding){code, severity, heap, address, size, text, evidence};
}

static int compare_findings(const void *a, const void *b) {
    const struct karst_finding *x = a, *y = b;
    if (x->severity != y->severity) {
        return x->severity < y->severity ? -1 : 1;
    }
    if (x->address != y->address) {
        return x->address < y->address ? -1 : 1;
    }
    return x->code < y->code ? -1 : x->code > y->code;
}

void karst_findings_sort(struct karst_findings *findings) {
    if (findings->count) {
        qsort(findings->items, findings->count, sizeof *findings->items, compare_findings);
    }
}

void karst_findings_clear(struct karst_findings *findings) {
    for (size_t i = 0; i < findings->count; i++) {
        free(findings->items[i].text);
        free(findings->items[i].evidence);
    }
    free(findings->items);
    *findings = (struct karst_findings){0};
}
