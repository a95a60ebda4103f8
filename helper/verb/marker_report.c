#include "marker_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trap_spec.h"

/* ---- info ------------------------------------------------------------------------------------------ */

static void write_label(struct karst_writer *writer, const char *label) {
    karst_print(writer, "  %-16s  ", label);
}

static void write_parts(struct karst_writer *writer, const struct karst_control *control) {
    write_label(writer, "marks");
    karst_print(writer, "%s\n",
                !control->map          ? "off"
                : control->marked_from ? "in all blocks since the program's start"
                                       : "in blocks that came after they were turned on");
    write_label(writer, "flight recorder");
    if (!control->rings) {
        karst_print(writer, "off\n");
    } else {
        karst_print(writer, "%s for each thread%s%s\n", karst_size_text(writer, control->recorder_bytes).text,
                    *control->directory ? ", in files of " : "", control->directory);
    }
    if (control->site_kind == KARST_SITE_STACK) {
        write_label(writer, "call sites");
        karst_print(writer, "stacks of up to %" PRIu32 " frames", control->stack_depth);
        if (control->site_drops) {
            karst_print(writer, "; %" PRIu32 " calls found no room for theirs", control->site_drops);
        }
        karst_print(writer, "\n");
    }
}

static const char *trap_state(const struct karst_trap *trap) {
    static const char *const names[] = {"empty", "armed", "disabled", "done"};
    return trap->state < sizeof names / sizeof *names ? names[trap->state] : "?";
}

static void write_traps(struct karst_writer *writer, const struct karst_control *control) {
    for (size_t i = 0; i < KARST_TRAPS; i++) {
        const struct karst_trap *trap = &control->traps[i];
        if (trap->state == KARST_TRAP_EMPTY) {
            continue;
        }
        write_label(writer, "trap");
        karst_print(writer, "%" PRIu32 " %s: %s, met %s time%s, fired %s\n", trap->number, trap->text,
                    trap_state(trap), karst_count_text(trap->hits).text, karst_plural(trap->hits),
                    karst_count_text(trap->fired).text);
    }
}

void karst_marker_write(struct karst_call *call) {
    struct karst_marker *marker = karst_session_marker(call->session);
    struct karst_writer *writer = &call->writer;
    if (!marker) {
        return;
    }
    const struct karst_control *control = &marker->control;
    karst_print(writer, "\n");
    karst_print_title(writer, "preload library");
    write_label(writer, "marker");
    karst_print_address(writer, marker->address);
    karst_print(writer, ", version %" PRIu32 "\n", control->version);
    write_label(writer, "calls go to");
    karst_print(writer, "%s %s", *control->allocator ? control->allocator : "?", control->allocator_version);
    if (*control->allocator_path) {
        karst_print(writer, ", ");
        karst_print_styled(writer, KARST_STYLE_FILE, "%s", control->allocator_path);
    } else if (control->allocator_malloc) {
        karst_print(writer, ", in the program itself, whose own calls do not pass the library");
    }
    karst_print(writer, "\n");
    for (uint32_t i = 0; i < control->root_count; i++) {
        write_label(writer, i == 0 ? "root" : "");
        karst_print(writer, "%s at ", control->roots[i].name);
        karst_print_address(writer, control->roots[i].address);
        karst_print(writer, "\n");
    }
    write_parts(writer, control);
    write_traps(writer, control);
}

json_t *karst_marker_json(struct karst_call *call) {
    struct karst_marker *marker = karst_session_marker(call->session);
    struct karst_writer *writer = &call->writer;
    if (!marker) {
        return json_null();
    }
    const struct karst_control *control = &marker->control;
    json_t *root = karst_json_object(writer), *traps = karst_json_array(writer);
    karst_json_set_address(writer, root, "address", marker->address);
    karst_json_set_number(writer, root, "version", control->version);
    karst_json_set_text(writer, root, "allocator", control->allocator);
    karst_json_set_text(writer, root, "allocator_version", control->allocator_version);
    karst_json_set_text(writer, root, "allocator_path", control->allocator_path);
    json_t *roots = karst_json_object(writer);
    for (uint32_t i = 0; i < control->root_count; i++) {
        karst_json_set_address(writer, roots, control->roots[i].name, control->roots[i].address);
    }
    karst_json_set(writer, root, "roots", roots);
    karst_json_set_flag(writer, root, "marks", control->map != 0);
    karst_json_set_flag(writer, root, "all_marked", control->map && control->marked_from);
    karst_json_set_flag(writer, root, "recorder", control->rings != 0);
    karst_json_set_number(writer, root, "recorder_bytes", control->recorder_bytes);
    karst_json_set_text(writer, root, "recorder_directory", *control->directory ? control->directory : NULL);
    karst_json_set_flag(writer, root, "stacks", control->site_kind == KARST_SITE_STACK);
    for (size_t i = 0; i < KARST_TRAPS; i++) {
        const struct karst_trap *trap = &control->traps[i];
        if (trap->state == KARST_TRAP_EMPTY) {
            continue;
        }
        json_t *one = karst_json_object(writer);
        karst_json_set_number(writer, one, "number", trap->number);
        karst_json_set_text(writer, one, "text", trap->text);
        karst_json_set_text(writer, one, "state", trap_state(trap));
        karst_json_set_number(writer, one, "hits", trap->hits);
        karst_json_set_number(writer, one, "fired", trap->fired);
        karst_json_append(writer, traps, one);
    }
    karst_json_set(writer, root, "traps", traps);
    return root;
}

/* ---- one block -------------------------------------------------------------------------------------- */

/* The marker, if it has marks. */
static struct karst_marker *marks_of(struct karst *session) {
    struct karst_marker *marker = karst_session_marker(session);
    return marker && marker->control.map ? marker : NULL;
}

bool karst_marker_describe(struct karst *session, const struct karst_block *block,
                           struct karst_facts *facts) {
    struct karst_marker *marker = marks_of(session);
    struct karst_mark_of mark = {.state = KARST_MARK_NONE};
    if (marker) {
        mark = karst_marker_mark(marker, block->address);
    }
    if (mark.state == KARST_MARK_NONE ||
        (mark.state == KARST_MARK_LIVE && block->state != KARST_STATE_LIVE)) {
        return true;
    }
    if (!mark.readable) {
        return karst_facts_add(facts, "mark", mark.footer,
                               mark.overwritten
                                   ? "the footer was written over; the block had about %" PRIu64 " bytes"
                                   : "the footer can't be read; the block had about %" PRIu64 " bytes",
                               mark.size);
    }
    char site[400], freed[400];
    karst_site_summary(marker, session, mark.site, KARST_SYMBOL_READABLE, site, sizeof site);
    bool live = mark.state == KARST_MARK_LIVE;
    bool done = karst_facts_add(facts, "asked for", 0, "%" PRIu64 " bytes%s%s", mark.size,
                                live ? "" : ", when it was live",
                                live && !mark.whole ? "; written beyond its end" : "") &&
                karst_facts_add(facts, "allocated", 0, "by %s at %s, thread %" PRId64 ", number %" PRIu64,
                                karst_function_name(mark.function), site, mark.thread, mark.sequence);
    if (done && mark.freed_at) {
        karst_site_summary(marker, session, mark.freed_at, KARST_SYMBOL_READABLE, freed, sizeof freed);
        done = karst_facts_add(facts, "freed", 0, "at %s", freed);
    }
    return done;
}

bool karst_marker_has_marks(struct karst *session) {
    return marks_of(session) != NULL;
}

bool karst_marker_asked(struct karst *session, const struct karst_block *block, struct karst_mark_of *mark) {
    struct karst_marker *marker = marks_of(session);
    if (!marker || block->state != KARST_STATE_LIVE) {
        return false;
    }
    *mark = karst_marker_mark(marker, block->address);
    return mark->state == KARST_MARK_LIVE && mark->readable;
}

void karst_marker_set_json(struct karst_call *call, const struct karst_block *block, json_t *object) {
    struct karst_mark_of mark;
    char site[400];
    if (!karst_marker_has_marks(call->session)) {
        return;
    }
    bool known = karst_marker_asked(call->session, block, &mark);
    if (known) {
        karst_site_summary(marks_of(call->session), call->session, mark.site, KARST_SYMBOL_LINKED, site,
                           sizeof site);
    }
    karst_json_set_known(&call->writer, object, "requested", known ? mark.size : UINT64_MAX);
    karst_json_set_text(&call->writer, object, "site", known ? site : NULL);
    karst_json_set_known(&call->writer, object, "sequence", known ? mark.sequence : UINT64_MAX);
}

/* ---- check ------------------------------------------------------------------------------------------ */

struct checking {
    struct karst *session;
    struct karst_marker *marker;
    struct karst_findings *findings;
};

/* "00 61 ...": up to 32 bytes. */
static void dump_bytes(struct karst *session, uint64_t address, char *text, size_t size) {
    uint8_t bytes[32];
    size_t used = 0, got = karst_target_read(session->target, address, bytes, sizeof bytes);
    text[0] = '\0';
    for (size_t i = 0; i < got && used + 4 < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%02x", i ? " " : "", bytes[i]);
    }
}

/* Where karst can walk the heap it is asked: a block that was given back past the library's functions left
 * its mark behind. Where the walk is stopped by damage the mark is believed. */
static bool is_block(struct karst *session, uint64_t address) {
    struct karst_block block;
    struct karst_error ignored = {0};
    return !karst_session_extent(session, address) || !karst_find_block(session, address, &block, &ignored) ||
           (block.address == address && block.state == KARST_STATE_LIVE);
}

static bool check_block(void *context, uint64_t address, const struct karst_mark_of *mark) {
    struct checking *checking = context;
    struct karst *session = checking->session;
    checking->findings->blocks_checked += session->heap_count == 0; /* else walks count */
    if (mark->whole || !is_block(session, address)) {
        return true;
    }
    char bytes[200], site[400];
    const struct karst_extent *extent = karst_session_extent(session, address);
    uint32_t heap = extent ? extent->heap : 0;
    dump_bytes(session, mark->readable ? address + mark->size : mark->footer, bytes, sizeof bytes);
    if (mark->readable) {
        karst_site_summary(checking->marker, session, mark->site, KARST_SYMBOL_READABLE, site, sizeof site);
        karst_findings_add(checking->findings, KARST_FINDING_OVERFLOW, KARST_SEVERITY_CORRUPT, heap, address,
                           mark->size,
                           "written beyond the end of a block of %" PRIu64 " bytes, which thread %" PRId64
                           " allocated at %s: its mark is damaged\tbehind its last byte: %s",
                           mark->size, mark->thread, site, bytes);
    } else {
        karst_findings_add(checking->findings, KARST_FINDING_OVERFLOW, KARST_SEVERITY_CORRUPT, heap, address,
                           mark->size,
                           "written beyond the end of a block of about %" PRIu64
                           " bytes: nothing is left of its mark\tin the mark's place: %s",
                           mark->size, bytes);
    }
    return true;
}

bool karst_marker_check(struct karst *session, struct karst_findings *findings, struct karst_error *error) {
    struct checking checking = {.session = session, .marker = marks_of(session), .findings = findings};
    return !checking.marker || karst_marker_each(checking.marker, session, check_block, &checking, error);
}
