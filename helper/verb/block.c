#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block_row.h"
#include "content.h"
#include "facts_report.h"
#include "marker_report.h"
#include "nested.h"
#include "place.h"
#include "verb.h"
#include "verbs.h"

enum { OPTION_DUMP };

#define DEFAULT_DUMP 64
#define DUMP_MAX     (1u << 20)
#define LABEL        10 /* columns of what stands before a line's text */

static const struct karst_verb_argument arguments[] = {
    {"ADDRESS", KARST_VALUE_ADDRESS, true, "any address in the block, its header included"},
    {0},
};

static const struct karst_verb_option options[] = {
    [OPTION_DUMP] = {"dump", 'd', KARST_VALUE_SIZE, "N", "show the first N bytes of it (64)", NULL},
    {0},
};

/* What can be said of one block; filled by find(), released by release(). */
struct report {
    uint64_t asked;
    struct karst_neighbourhood place;
    struct karst_facts facts;
    uint8_t *bytes; /* from block.address on */
    size_t byte_count;
    char explanation[400];
    char content[300]; /* what the bytes look like; "": nothing in particular */
};

/* ---- what the contents look like ------------------------------------------------------------------ */

static bool looks_like_text(const struct report *report, size_t *length) {
    size_t count = 0;
    while (count < report->byte_count &&
           (isprint(report->bytes[count]) || report->bytes[count] == '\n' || report->bytes[count] == '\t')) {
        count++;
    }
    *length = count;
    return count >= 6 || (count >= 4 && count < report->byte_count && report->bytes[count] == '\0');
}

static void say_text(struct report *report, size_t length) {
    char *out = report->content;
    size_t used = (size_t)snprintf(out, sizeof report->content, "text \"");
    for (size_t i = 0; i < length && used + 12 < sizeof report->content; i++) {
        uint8_t byte = report->bytes[i];
        if (byte == '\n' || byte == '\t') {
            out[used++] = '\\';
        }
        out[used++] = (char)(byte == '\n' ? 'n' : byte == '\t' ? 't' : byte);
    }
    snprintf(out + used, sizeof report->content - used, "%s\"",
             length == report->byte_count && length < report->place.block.usable ? "\xe2\x80\xa6" : "");
}

static void say_pointers(struct karst *session, struct report *report) {
    size_t words = report->byte_count / 8, pointers = 0;
    char symbol[200] = "";
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, report->bytes + 8 * i, sizeof word);
        pointers += karst_session_extent(session, word) != NULL;
        if (i == 0 && karst_target_module(session->target, word) &&
            !karst_target_symbolize(session->target, word, KARST_SYMBOL_READABLE, symbol, sizeof symbol)) {
            karst_place_text(session, word, symbol, sizeof symbol);
        }
    }
    char *out = report->content;
    if (*symbol) {
        snprintf(out, sizeof report->content, "begins with a pointer to %s", symbol);
    }
    if (pointers) {
        size_t used = strlen(out);
        snprintf(out + used, sizeof report->content - used, "%s%zu of its first %zu words point into heaps",
                 used ? "; " : "", pointers, words);
    }
}

static void guess_content(struct karst *session, struct report *report) {
    size_t length = 0, zeros = 0;
    while (zeros < report->byte_count && report->bytes[zeros] == 0) {
        zeros++;
    }
    if (zeros == report->byte_count) {
        snprintf(report->content, sizeof report->content, zeros ? "zeros" : "");
    } else if (looks_like_text(report, &length)) {
        say_text(report, length);
    } else {
        say_pointers(session, report);
    }
}

/* ---- finding --------------------------------------------------------------------------------------- */

static bool read_bytes(struct karst_call *call, struct report *report) {
    const struct karst_block *block = &report->place.block;
    uint64_t wanted = call->options[OPTION_DUMP].given ? call->options[OPTION_DUMP].number : DEFAULT_DUMP;
    uint64_t end = block->start + block->size, most = end > block->address ? end - block->address : 0;
    uint64_t usable = block->usable && block->usable < most ? block->usable : most;
    wanted = wanted < usable ? wanted : usable;
    wanted = wanted < DUMP_MAX ? wanted : DUMP_MAX;
    report->bytes = malloc(wanted + 1);
    if (!report->bytes) {
        return karst_fail_memory(call->error);
    }
    report->byte_count =
        karst_target_read(call->session->target, block->address, report->bytes, (size_t)wanted);
    return true;
}

/* Why the address asked for is no block's, in the allocator's words. */
static void explain(struct karst_call *call, struct report *report) {
    const struct karst_block *block = &report->place.block;
    struct karst_heap *heap = call->session->heaps[block->heap];
    if (heap->allocator->explain) {
        heap->allocator->explain(heap, block, report->asked, report->explanation, sizeof report->explanation);
    }
}

static bool find(struct karst_call *call, struct report *report) {
    if (call->options[OPTION_DUMP].number > DUMP_MAX) {
        return karst_fail(call->error, KARST_ERROR_USAGE, "--dump shows %u bytes at most", DUMP_MAX);
    }
    report->asked = call->arguments[0].number;
    if (!karst_find_neighbourhood(call->session, report->asked, &report->place, call->error)) {
        return false;
    }
    struct karst_heap *heap = call->session->heaps[report->place.block.heap];
    if (heap->allocator->describe &&
        !heap->allocator->describe(heap, &report->place.block, &report->facts, call->error)) {
        return false;
    }
    if (!karst_describe_nested(call->session, &report->place.block, &report->facts)) {
        return karst_fail_memory(call->error);
    }
    if (!karst_describe_content(call->session, &report->place.block, report->asked, &report->facts,
                                call->error)) {
        return false;
    }
    if (!karst_marker_describe(call->session, &report->place.block, &report->facts)) {
        return karst_fail_memory(call->error);
    }
    if (!karst_history_describe(call->session, report->place.block.address, &report->facts, call->error)) {
        return false;
    }
    if (!read_bytes(call, report)) {
        return false;
    }
    explain(call, report);
    if (report->place.block.state == KARST_STATE_LIVE) {
        guess_content(call->session, report);
    }
    call->last_address = report->place.block.address;
    return true;
}

static void release(struct report *report) {
    karst_facts_clear(&report->facts);
    free(report->bytes);
}

/* ---- text ------------------------------------------------------------------------------------------ */

static void write_label(struct karst_writer *writer, const char *label) {
    karst_print_styled(writer, KARST_STYLE_DIM, "  %-*s", LABEL, label);
}

/* Where in the block the address is that was asked for. */
static void write_offset(struct karst_writer *writer, const struct report *report) {
    const struct karst_block *block = &report->place.block;
    if (report->asked == block->address) {
        return;
    }
    write_label(writer, "you asked");
    karst_print_address(writer, report->asked);
    if (report->asked < block->address) {
        karst_print(writer, ", in the block's header\n");
    } else if (report->asked - block->address < block->usable) {
        karst_print(writer, ", %s bytes into it\n", karst_count_text(report->asked - block->address).text);
    } else {
        karst_print(writer, ", behind the bytes it may use\n");
    }
}

static void write_neighbour(struct karst_call *call, const char *label, bool has,
                            const struct karst_block *block) {
    struct karst_writer *writer = &call->writer;
    write_label(writer, label);
    if (!has) {
        karst_print(writer, "none: it is the %s of its extent\n", *label == 'b' ? "first" : "last");
        return;
    }
    karst_print_address(writer, block->address);
    karst_print(writer, " ");
    karst_print_styled(writer, karst_state_style(block->state), "%s", karst_state_name(block->state));
    karst_print(writer, ", %s\n", karst_size_text(writer, block->size).text);
}

static void write_facts(struct karst_writer *writer, const struct karst_facts *facts) {
    for (size_t i = 0; i < facts->count; i++) {
        const struct karst_fact *fact = &facts->items[i];
        write_label(writer, fact->name);
        size_t column = 2 + (strlen(fact->name) > LABEL ? strlen(fact->name) : LABEL);
        if (strlen(fact->name) >= LABEL) {
            karst_print(writer, " ");
            column++;
        }
        if (fact->address) {
            karst_print_address(writer, fact->address);
            karst_print(writer, " ");
            column += 15;
        }
        karst_print_wrapped(writer, column, 2 + LABEL, fact->text);
    }
}

#define DUMP_LINE 16u

/* Bytes a line: an address of up to 14 characters, three for each byte, and one for each as a character. */
static size_t dump_line(const struct karst_writer *writer) {
    size_t bytes = DUMP_LINE, width = writer->output->width;
    while (width && bytes > 4 && 2 + 14 + 1 + 4 * bytes + 2 > width) {
        bytes /= 2;
    }
    return bytes;
}

static void write_dump(struct karst_writer *writer, const struct report *report) {
    size_t most = dump_line(writer);
    for (size_t line = 0; line < report->byte_count; line += most) {
        size_t count = report->byte_count - line < most ? report->byte_count - line : most;
        char ascii[DUMP_LINE + 1] = "";
        karst_print(writer, "  ");
        karst_print_address(writer, report->place.block.address + line);
        karst_print(writer, " ");
        for (size_t i = 0; i < most; i++) {
            uint8_t byte = i < count ? report->bytes[line + i] : 0;
            karst_print(writer, i < count ? " %02x" : "   ", byte);
            if (i < count) {
                ascii[i] = isprint(byte) ? (char)byte : '.';
            }
        }
        karst_print(writer, "  %s\n", ascii);
    }
}

static void write_text(struct karst_call *call, const struct report *report) {
    struct karst_writer *writer = &call->writer;
    const struct karst_block *block = &report->place.block;
    const struct karst_extent *extent = report->place.extent;
    const struct karst_heap *heap = call->session->heaps[block->heap];
    karst_print_address(writer, block->address);
    karst_print(writer, " ");
    karst_print_styled(writer, karst_state_style(block->state), "%s", karst_state_name(block->state));
    karst_print(writer, ", %s bytes usable, %s with its header\n", karst_count_text(block->usable).text,
                karst_count_text(block->size).text);
    write_offset(writer, report);
    write_label(writer, "in");
    karst_print(writer, "%s %s, arena %s", heap->name, heap->version,
                karst_arena_text(call->session, block->heap, block->arena).text);
    karst_print(writer, ", %s 0x%" PRIx64 " to 0x%" PRIx64 "\n", karst_extent_kind_name(extent->kind),
                extent->start, extent->end);
    if (report->place.has_outer) {
        const struct karst_block *outer = &report->place.outer;
        write_label(writer, "within");
        karst_print(writer, "%s block ", call->session->heaps[outer->heap]->name);
        karst_print_address(writer, outer->address);
        karst_print(writer, ", %s bytes\n", karst_count_text(outer->size).text);
    }
    if (block->bin < heap->bin_count) {
        write_label(writer, "bin");
        karst_print(writer, "%s\n", heap->bins[block->bin].name);
    }
    if (*report->explanation) {
        write_label(writer, "why");
        karst_print_wrapped(writer, 2 + LABEL, 2 + LABEL, report->explanation);
    }
    write_facts(writer, &report->facts);
    if (!(block->flags & KARST_BLOCK_MAPPED)) {
        write_neighbour(call, "before", report->place.has_before, &report->place.before);
        write_neighbour(call, "after", report->place.has_after, &report->place.after);
    }
    if (*report->content) {
        write_label(writer, "content");
        karst_print(writer, "%s\n", report->content);
    }
    write_dump(writer, report);
}

/* ---- JSON ------------------------------------------------------------------------------------------ */

static json_t *bytes_json(const struct report *report) {
    char *hex = malloc(2 * report->byte_count + 1);
    if (!hex) {
        return NULL;
    }
    hex[0] = '\0';
    for (size_t i = 0; i < report->byte_count; i++) {
        snprintf(hex + 2 * i, 3, "%02x", report->bytes[i]);
    }
    json_t *value = json_string(hex);
    free(hex);
    return value;
}

static void write_json(struct karst_call *call, const struct report *report) {
    struct karst_writer *writer = &call->writer;
    const struct karst_neighbourhood *place = &report->place;
    const struct karst_block *block = &place->block;
    json_t *root = karst_json_object(writer), *one = karst_block_json(call, block),
           *extent = karst_json_object(writer);
    karst_json_set_address(writer, one, "start", block->start);
    karst_json_set_flag(writer, one, "mapped", block->flags & KARST_BLOCK_MAPPED);
    karst_json_set_address(writer, extent, "start", place->extent->start);
    karst_json_set_address(writer, extent, "end", place->extent->end);
    karst_json_set_text(writer, extent, "kind", karst_extent_kind_name(place->extent->kind));
    karst_json_set_address(writer, root, "asked", report->asked);
    /* Below zero: in the header. */
    karst_json_set(writer, root, "offset", json_integer((json_int_t)(report->asked - block->address)));
    karst_json_set(writer, root, "block", one);
    karst_json_set(writer, root, "before",
                   place->has_before ? karst_block_json(call, &place->before) : json_null());
    karst_json_set(writer, root, "after",
                   place->has_after ? karst_block_json(call, &place->after) : json_null());
    karst_json_set(writer, root, "within",
                   place->has_outer ? karst_block_json(call, &place->outer) : json_null());
    karst_json_set(writer, root, "extent", extent);
    karst_json_set(writer, root, "facts", karst_facts_json(writer, &report->facts));
    karst_json_set_text(writer, root, "explanation", *report->explanation ? report->explanation : NULL);
    karst_json_set_text(writer, root, "content", *report->content ? report->content : NULL);
    karst_json_set(writer, root, "bytes", bytes_json(report));
    karst_call_write_json(call, root);
}

static bool run(struct karst_call *call) {
    struct report report = {0};
    bool found = find(call, &report);
    if (found && call->json) {
        write_json(call, &report);
    } else if (found) {
        write_text(call, &report);
    }
    release(&report);
    return found;
}

const struct karst_verb karst_verb_block = {
    .name = "block",
    .group = KARST_GROUP_BLOCKS,
    .summary = "all about the block that holds an address",
    .help =
        "Takes any address in a block: its start, a byte in its middle, its header. Says its state, size, "
        "arena and bin, what the allocator's own words in it are, the blocks before and behind it, what "
        "its contents look like, and shows its first bytes.\n"
        "\n"
        "An address in no heap is no answer (exit status 2); the error says what it is in instead: a "
        "stack, a module's data, a mapping.",
    .json =
        "{\"asked\", \"offset\" (from the block's address; below zero in its header), \"block\" (as in "
        "`blocks`, "
        "and start, mapped), \"before\", \"after\" (blocks or null), \"extent\": {\"start\", \"end\", "
        "\"kind\"}, \"facts\": [{\"name\", \"address\", \"text\"}], \"explanation\" (why the address is no "
        "block's start, or null), \"content\" (or null), \"within\" (the block "
        "of another allocator that the extent lies in, or null), \"bytes\" (hex), \"target\"}.",
    .arguments = arguments,
    .options = options,
    .needs = KARST_NEEDS_BINS,
    .run = run,
};
