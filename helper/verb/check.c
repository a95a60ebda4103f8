#include <inttypes.h>
#include <string.h>

#include "marker_report.h"
#include "nested.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_CODE, OPTION_LIMIT, OPTION_ALL };

#define DEFAULT_LIMIT 10 /* findings of one code shown as text */

static const struct karst_verb_option options[] = {
    [OPTION_CODE] = {"code", 0, KARST_VALUE_TEXT, "CODE", "show only findings of this code",
                     "double-free|overlap|run-overlap|bad-size|bad-link|wrong-bin|misaligned|lost-free|"
                     "uncoalesced|bad-count|overflow|write-after-free|bad-root"},
    [OPTION_LIMIT] = {"limit", 'n', KARST_VALUE_COUNT, "N", "show N findings of each code (10)", NULL},
    [OPTION_ALL] = {"all", 'a', KARST_VALUE_FLAG, NULL, "show all findings that were kept (200 of each code)",
                    NULL},
    {0},
};

/* Two heaps cannot own the same bytes: a root of one of them is wrong, or its extents are. */
static void check_extents(const struct karst *session, struct karst_findings *findings) {
    const struct karst_extent *reaching = NULL; /* of those before, the one that ends last */
    for (size_t i = 0; i < session->extent_count; i++) {
        const struct karst_extent *extent = &session->extents[i];
        if (reaching && extent->start < reaching->end && extent->heap != reaching->heap && !extent->outer) {
            uint64_t end = extent->end < reaching->end ? extent->end : reaching->end;
            karst_findings_add(findings, KARST_FINDING_OVERLAP, KARST_SEVERITY_CORRUPT, extent->heap,
                               extent->start, end - extent->start,
                               "%s and %s both claim these bytes\t%s 0x%" PRIx64 " to 0x%" PRIx64
                               ", %s 0x%" PRIx64 " to 0x%" PRIx64,
                               session->heaps[extent->heap]->name, session->heaps[reaching->heap]->name,
                               session->heaps[extent->heap]->name, extent->start, extent->end,
                               session->heaps[reaching->heap]->name, reaching->start, reaching->end);
        }
        if (!reaching || extent->end > reaching->end) {
            reaching = extent;
        }
    }
}

static bool check(struct karst *session, struct karst_findings *findings, struct karst_error *error) {
    karst_session_begin(session, "checking the heap", karst_session_bytes(session));
    for (size_t i = 0; i < session->heap_count; i++) {
        if (!session->heaps[i]->allocator->check(session->heaps[i], findings, error)) {
            return false;
        }
    }
    check_extents(session, findings);
    if (!karst_check_nested(session, findings, error)) {
        return false;
    }
    if (!karst_marker_check(session, findings, error)) {
        return false;
    }
    if (findings->out_of_memory) {
        return karst_fail(error, KARST_ERROR_MEMORY, "out of memory for what was found");
    }
    karst_findings_sort(findings);
    return true;
}

static bool is_wanted(const struct karst_call *call, enum karst_finding_code code) {
    const struct karst_value *wanted = &call->options[OPTION_CODE];
    return !wanted->given || strcmp(wanted->text, karst_finding_code_name(code)) == 0;
}

/* What limits the answer, a sentence; NULL: nothing. */
static const char *reservation(const struct karst *session) {
    if (session->heap_count == 0) {
        return "No heap that can be walked was found: only the marks of the preload library were checked.";
    }
    if (session->target->missing_memory) {
        return "Parts of the target's memory are missing: only what is there was checked.";
    }
    if (!session->target->stopped) {
        return "The target runs while it is read: what is between two states may look damaged.";
    }
    for (size_t i = 0; i < session->heap_count; i++) {
        if (session->heaps[i]->in_flux) {
            return "A thread was inside the allocator: what it was changing may look damaged, and is only "
                   "called suspect.";
        }
    }
    return NULL;
}

/* ---- text ------------------------------------------------------------------------------------------ */

static uint64_t count_severity(const struct karst_findings *findings, enum karst_severity severity) {
    uint64_t count = 0;
    for (size_t i = 0; i < findings->count; i++) {
        count += findings->items[i].severity == severity;
    }
    return count;
}

static void write_finding(struct karst_call *call, const struct karst_finding *finding) {
    struct karst_writer *writer = &call->writer;
    bool corrupt = finding->severity == KARST_SEVERITY_CORRUPT;
    karst_print(writer, "\n");
    karst_print_styled(writer, corrupt ? KARST_STYLE_BAD : KARST_STYLE_WARNING, "%s %s",
                       corrupt ? "corrupt" : "suspect", karst_finding_code_name(finding->code));
    karst_print(writer, " at ");
    karst_print_address(writer, finding->address);
    if (finding->size) {
        karst_print(writer, ", %s", karst_size_text(writer, finding->size).text);
    }
    if (call->session->heap_count > 1 && finding->heap < call->session->heap_count) {
        karst_print(writer, ", in %s", call->session->heaps[finding->heap]->name);
    }
    karst_print(writer, "\n");
    karst_print_wrapped(writer, 0, 2, finding->text);
    if (*finding->evidence) {
        karst_print_wrapped(writer, 0, 4, finding->evidence);
    }
    call->last_address = finding->address;
}

static void write_findings(struct karst_call *call, const struct karst_findings *findings) {
    uint64_t limit = call->options[OPTION_ALL].given     ? UINT64_MAX
                     : call->options[OPTION_LIMIT].given ? call->options[OPTION_LIMIT].number
                                                         : DEFAULT_LIMIT;
    uint64_t shown[KARST_FINDING_CODES] = {0};
    for (size_t i = 0; i < findings->count; i++) {
        const struct karst_finding *finding = &findings->items[i];
        if (is_wanted(call, finding->code) && shown[finding->code] < limit) {
            write_finding(call, finding);
            shown[finding->code]++;
        }
    }
    bool more = false;
    for (int code = 0; code < KARST_FINDING_CODES; code++) {
        if (is_wanted(call, code) && shown[code] < findings->per_code[code]) {
            karst_print(&call->writer, "%s%s of %s %s shown", more ? "" : "\n",
                        karst_count_text(shown[code]).text, karst_count_text(findings->per_code[code]).text,
                        karst_finding_code_name(code));
            bool kept_more = shown[code] < KARST_FINDINGS_KEPT;
            karst_print(&call->writer, "%s\n", kept_more ? "; --all shows more" : "; no more were kept");
            more = true;
        }
    }
}

static void write_text(struct karst_call *call, const struct karst_findings *findings) {
    struct karst_writer *writer = &call->writer;
    const char *but = reservation(call->session);
    struct karst_text blocks = karst_count_text(findings->blocks_checked);
    if (findings->count == 0) {
        karst_print_styled(writer, KARST_STYLE_GOOD, "no damage found");
        karst_print(writer, " in %s block%s\n", blocks.text, karst_plural(findings->blocks_checked));
    } else {
        uint64_t corrupt = count_severity(findings, KARST_SEVERITY_CORRUPT);
        uint64_t suspect = count_severity(findings, KARST_SEVERITY_SUSPECT);
        karst_print(writer, "%s corrupt, %s suspect", karst_count_text(corrupt).text,
                    karst_count_text(suspect).text);
        if (findings->dropped) {
            karst_print(writer, ", %s more not kept", karst_count_text(findings->dropped).text);
        }
        karst_print(writer, " in %s block%s\n", blocks.text, karst_plural(findings->blocks_checked));
    }
    if (but) {
        karst_print_wrapped(writer, 0, 0, but);
    }
    write_findings(call, findings);
}

/* ---- JSON ------------------------------------------------------------------------------------------ */

static json_t *finding_json(struct karst_call *call, const struct karst_finding *finding) {
    struct karst_writer *writer = &call->writer;
    const struct karst *session = call->session;
    json_t *one = karst_json_object(writer);
    karst_json_set_text(writer, one, "code", karst_finding_code_name(finding->code));
    karst_json_set_text(writer, one, "severity",
                        finding->severity == KARST_SEVERITY_CORRUPT ? "corrupt" : "suspect");
    karst_json_set_text(writer, one, "allocator",
                        finding->heap < session->heap_count ? session->heaps[finding->heap]->name : NULL);
    karst_json_set_address(writer, one, "address", finding->address);
    karst_json_set_number(writer, one, "size", finding->size);
    karst_json_set_text(writer, one, "text", finding->text);
    karst_json_set_text(writer, one, "evidence", finding->evidence);
    return one;
}

static void write_json(struct karst_call *call, const struct karst_findings *findings) {
    struct karst_writer *writer = &call->writer;
    json_t *root = karst_json_object(writer), *list = karst_json_array(writer),
           *counts = karst_json_object(writer);
    for (size_t i = 0; i < findings->count; i++) {
        if (is_wanted(call, findings->items[i].code)) {
            karst_json_append(writer, list, finding_json(call, &findings->items[i]));
            call->last_address = findings->items[i].address;
        }
    }
    for (int code = 0; code < KARST_FINDING_CODES; code++) {
        if (findings->per_code[code]) {
            karst_json_set_number(writer, counts, karst_finding_code_name(code), findings->per_code[code]);
        }
    }
    karst_json_set_flag(writer, root, "healthy", findings->count == 0);
    karst_json_set_number(writer, root, "blocks_checked", findings->blocks_checked);
    karst_json_set(writer, root, "findings", list);
    karst_json_set(writer, root, "counts", counts);
    karst_json_set_number(writer, root, "dropped", findings->dropped);
    karst_json_set_text(writer, root, "reservation", reservation(call->session));
    karst_call_write_json(call, root);
}

static bool run(struct karst_call *call) {
    struct karst_findings findings = {0};
    if (!karst_marker_has_marks(call->session) && !karst_session_need_heaps(call->session, call->error)) {
        return false;
    }
    bool checked = check(call->session, &findings, call->error);
    if (checked && call->json) {
        write_json(call, &findings);
    } else if (checked) {
        write_text(call, &findings);
    }
    call->found_something = checked && findings.count > 0;
    karst_findings_clear(&findings);
    return checked;
}

const struct karst_verb karst_verb_check = {
    .name = "check",
    .group = KARST_GROUP_DAMAGE,
    .summary = "what is wrong: double frees, overlaps, overflows, broken lists",
    .help = "Walks all blocks and follows all lists, and holds one against the other. Each finding has a "
            "code, an address, what is wrong and the words that prove it. `corrupt` is what no legal state "
            "looks like; `suspect` is what a legal state could look like too, and the text says which.\n"
            "\n"
            "After damage the walk finds its way back and goes on, so that one broken header does not hide "
            "the rest. Exit status: 0 nothing found, 1 something found, 2 not answered.",
    .json = "{\"healthy\", \"blocks_checked\", \"findings\": [{\"code\", \"severity\", \"allocator\", "
            "\"address\", "
            "\"size\", \"text\", \"evidence\"}], \"counts\" (by code, those not kept too), \"dropped\" (how "
            "many were "
            "not kept), \"reservation\" (what limits the answer, or null), \"target\"}. size 0: not told.",
    .options = options,
    .needs = KARST_NEEDS_TARGET,
    .run = run,
};
