#include "marker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE           4096u
#define LOOK_INTO      (UINT64_C(1) << 20) /* of other mappings, at most */
#define CONTROL_LEAST  offsetof(struct karst_control, directory)
#define FOOTER_OFFSETS (UINT64_C(1) << 42)

/* ---- finding --------------------------------------------------------------------------------------- */

static void terminate(char *text, size_t size) {
    text[size - 1] = '\0';
}

/* What is read is bounded once, here. */
static bool take_control(struct karst *session, struct karst_marker *marker, uint64_t address) {
    struct karst_control *control = &marker->control;
    memset(control, 0, sizeof *control);
    size_t got = karst_target_read(session->target, address, control, sizeof *control);
    if (got < CONTROL_LEAST || control->magic != KARST_ABI_MAGIC || control->self != address ||
        control->version != KARST_ABI_VERSION || control->size < CONTROL_LEAST) {
        return false;
    }
    terminate(control->allocator, sizeof control->allocator);
    terminate(control->allocator_version, sizeof control->allocator_version);
    terminate(control->allocator_path, sizeof control->allocator_path);
    terminate(control->directory, sizeof control->directory);
    for (size_t i = 0; i < sizeof control->roots / sizeof *control->roots; i++) {
        terminate(control->roots[i].name, sizeof control->roots[i].name);
    }
    for (size_t i = 0; i < KARST_TRAPS; i++) {
        terminate(control->traps[i].text, sizeof control->traps[i].text);
    }
    uint64_t most = sizeof control->roots / sizeof *control->roots;
    control->root_count = control->root_count < most ? control->root_count : (uint32_t)most;
    marker->address = address;
    return true;
}

static bool search(struct karst *session, struct karst_marker *marker, uint64_t start, uint64_t end) {
    struct karst_window window;
    karst_window_open(&window, session->target, 65536);
    for (uint64_t at = (start + PAGE - 1) & ~(uint64_t)(PAGE - 1); at < end && !marker->address; at += PAGE) {
        uint64_t untouched = karst_target_untouched(session->target, at, end) / PAGE;
        if (untouched) {
            at += (untouched - 1) * PAGE;
            continue;
        }
        const uint8_t *bytes = karst_window_at(&window, at, 3 * sizeof(uint64_t));
        uint64_t words[3] = {0, 0, 0};
        if (bytes) {
            memcpy(words, bytes, sizeof words);
        }
        if (words[0] == KARST_ABI_MAGIC && words[2] == at) {
            take_control(session, marker, at);
        }
    }
    karst_window_close(&window);
    return marker->address != 0;
}

static bool is_named(const struct karst_mapping *mapping) {
    return mapping->name && strcmp(mapping->name, "[anon:" KARST_ABI_NAME "]") == 0;
}

static bool may_hold(const struct karst_mapping *mapping) {
    uint32_t wanted = KARST_MAPPING_READ | KARST_MAPPING_WRITE;
    return (mapping->permissions & wanted) == wanted && !(mapping->permissions & KARST_MAPPING_SHARED);
}

/* A module's own data, and anonymous memory that follows it without a gap: its .bss. */
static bool is_of_module(const struct karst_target *target, size_t index) {
    const struct karst_mapping *mapping = &target->mappings[index];
    for (size_t i = index; i > 0 && target->mappings[i - 1].end == target->mappings[i].start; i--) {
        if (target->mappings[i - 1].inode ||
            (target->mappings[i - 1].name && target->mappings[i - 1].name[0] == '/')) {
            return true;
        }
    }
    return mapping->name && mapping->name[0] == '/';
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Other memory than that of modules is only looked at where modules are not known. */
static void find(struct karst *session, struct karst_marker *marker) {
    const struct karst_target *target = session->target;
    int passes = target->module_count ? 2 : 3;
    for (int pass = 0; pass < passes; pass++) {
        for (size_t i = 0; i < target->mapping_count; i++) {
            const struct karst_mapping *mapping = &target->mappings[i];
            bool named = is_named(mapping), of_module = is_of_module(target, i);
            int of_pass = named ? 0 : of_module ? 1 : 2;
            if (of_pass == pass && may_hold(mapping) &&
                search(session, marker, mapping->start, least(mapping->end, mapping->start + LOOK_INTO))) {
                return;
            }
        }
    }
}

struct karst_marker *karst_session_marker(struct karst *session) {
    if (!session->marker) {
        session->marker = calloc(1, sizeof *session->marker);
        if (!session->marker) {
            return NULL;
        }
        karst_window_open(&session->marker->directory, session->target, 65536);
        karst_window_open(&session->marker->leaves, session->target, 65536);
        karst_window_open(&session->marker->footers, session->target, 65536);
        find(session, session->marker);
    }
    return session->marker->address ? session->marker : NULL;
}

static bool is_likely(const struct karst_target *target) {
    for (size_t i = 0; i < target->module_count; i++) {
        if (strstr(target->modules[i].path, "libkarst-preload")) {
            return true;
        }
    }
    for (size_t i = 0; i < target->mapping_count; i++) {
        if (is_named(&target->mappings[i])) {
            return true;
        }
    }
    return false;
}

uint64_t karst_marker_root(struct karst *session, const struct karst_module *module, const char *name) {
    const struct karst_marker *marker = is_likely(session->target) ? karst_session_marker(session) : NULL;
    const struct karst_control *control = marker ? &marker->control : NULL;
    if (!control || control->allocator_base != module->start) {
        return 0;
    }
    for (uint32_t i = 0; i < control->root_count; i++) {
        if (strcmp(control->roots[i].name, name) == 0) {
            return control->roots[i].address;
        }
    }
    return 0;
}

void karst_marker_close(struct karst_marker *marker) {
    if (marker) {
        karst_window_close(&marker->directory);
        karst_window_close(&marker->leaves);
        karst_window_close(&marker->footers);
        free(marker);
    }
}

/* ---- marks ----------------------------------------------------------------------------------------- */

static uint64_t read_word(struct karst_window *window, uint64_t address) {
    const uint8_t *bytes = karst_window_at(window, address, sizeof(uint64_t));
    uint64_t word = 0;
    if (bytes) {
        memcpy(&word, bytes, sizeof word);
    }
    return word;
}

/* Where the leaf is for a span of address space; 0: there is none. */
static uint64_t leaf_of(struct karst_marker *marker, uint64_t number) {
    uint64_t base = read_word(&marker->directory, marker->control.map + number * sizeof(uint64_t));
    return base ? base + number * KARST_MAP_LEAF : 0;
}

/* The entry of the map at a place of a leaf. */
static enum karst_mark read_entry(struct karst_marker *marker, uint64_t place, uint64_t *offset) {
    uint64_t entry = read_word(&marker->leaves, place) & UINT16_MAX;
    *offset = entry & ~(uint64_t)KARST_MAP_STATE;
    if (*offset == KARST_MAP_LARGE) {
        uint64_t low = karst_map_gather(read_word(&marker->leaves, place + 2)),
                 high = karst_map_gather(read_word(&marker->leaves, place + 10));
        *offset = low << 3 | high << 35;
    }
    return entry & KARST_MAP_STATE;
}

static uint64_t footer_offset(uint64_t size) {
    return size < 16 ? 16 : (size + 7) & ~UINT64_C(7);
}

/* Nothing between the block's last byte and its footer was written over. */
static bool gap_is_whole(struct karst_marker *marker, uint64_t address, uint64_t size, uint64_t offset) {
    uint64_t gap = offset - size;
    const uint8_t *bytes = gap ? karst_window_at(&marker->footers, address + size, gap) : NULL;
    for (uint64_t i = 0; bytes && i < gap; i++) {
        if (bytes[i] != KARST_FOOTER_FILL) {
            return false;
        }
    }
    return true;
}

/* A footer whose canary was written over may be one as well as what the program wrote there. */
static bool is_likely_site(const struct karst_marker *marker, uint64_t site) {
    const struct karst_control *control = &marker->control;
    if (control->site_kind == KARST_SITE_STACK && site & KARST_SITE_STACK_BIT) {
        return (site & ~KARST_SITE_STACK_BIT) < control->sites_used / 8;
    }
    const struct karst_mapping *mapping = karst_target_mapping(marker->footers.target, site);
    return mapping && mapping->permissions & KARST_MAPPING_EXECUTE;
}

static bool is_likely_footer(const struct karst_marker *marker, const struct karst_footer *footer) {
    return footer->sequence >> KARST_FOOTER_SEQUENCE_BITS && footer->sequence & KARST_FOOTER_SEQUENCE &&
           footer->site >> KARST_SITE_BITS < KARST_FUNCTIONS &&
           is_likely_site(marker, footer->site & KARST_SITE_MASK);
}

static void take_footer(struct karst_marker *marker, uint64_t address, uint64_t offset,
                        struct karst_mark_of *mark) {
    struct karst_footer footer;
    const uint8_t *bytes = karst_window_at(&marker->footers, address + offset, sizeof footer);
    if (!bytes) {
        return;
    }
    memcpy(&footer, bytes, sizeof footer);
    uint64_t size = footer.size;
    bool live = footer.canary == (marker->control.canary ^ address);
    bool freed = (footer.canary & ~KARST_SITE_MASK) == KARST_FOOTER_FREED;
    if (footer_offset(size) != offset || (!live && !is_likely_footer(marker, &footer))) {
        mark->overwritten = true;
        return;
    }
    /* The thread that frees it was stopped before it changed the map. */
    mark->state = freed ? KARST_MARK_FREED : mark->state;
    mark->readable = true;
    mark->size = size;
    mark->site = footer.site & KARST_SITE_MASK;
    mark->function = (uint32_t)(footer.site >> KARST_SITE_BITS);
    mark->thread = (int64_t)(footer.sequence >> KARST_FOOTER_SEQUENCE_BITS);
    mark->sequence = footer.sequence & KARST_FOOTER_SEQUENCE;
    if (mark->state == KARST_MARK_LIVE) {
        mark->whole = live && gap_is_whole(marker, address, size, offset);
    } else if (freed) {
        mark->freed_at = footer.canary & KARST_SITE_MASK;
    }
}

struct karst_mark_of karst_marker_mark(struct karst_marker *marker, uint64_t address) {
    struct karst_mark_of mark = {.state = KARST_MARK_NONE};
    uint64_t leaf, offset;
    if (!marker->control.map || address % KARST_MAP_GRAIN || address >> KARST_SITE_BITS ||
        !(leaf = leaf_of(marker, address / KARST_MAP_SPAN))) {
        return mark;
    }
    mark.state = read_entry(marker, leaf + address % KARST_MAP_SPAN / KARST_MAP_GRAIN, &offset);
    if (mark.state != KARST_MARK_LIVE && mark.state != KARST_MARK_FREED) {
        mark.state = KARST_MARK_NONE;
    } else if (offset >= 16 && offset < FOOTER_OFFSETS) {
        mark.footer = address + offset;
        mark.size = offset; /* about, until the footer says it */
        take_footer(marker, address, offset, &mark);
    }
    return mark;
}

/* ---- all of them ------------------------------------------------------------------------------------ */

struct sweep {
    struct karst_marker *marker;
    struct karst *session;
    bool (*block)(void *context, uint64_t address, const struct karst_mark_of *mark);
    void *context;
    struct karst_error *error;
    bool enough;
    uint64_t left; /* bytes of leaves that may still be read: no more than there is memory */
};

/* A directory that leads to the same leaves again and again would have no end. */
static bool take_leaf(struct sweep *sweep) {
    if (sweep->left < KARST_MAP_LEAF) {
        return karst_fail(
            sweep->error, KARST_ERROR_FORMAT,
            "the directory of the marks' map is damaged: it leads to more memory than there is");
    }
    sweep->left -= KARST_MAP_LEAF;
    return true;
}

static uint64_t mapped_bytes(const struct karst_target *target) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < target->mapping_count; i++) {
        bool writable = target->mappings[i].permissions & KARST_MAPPING_WRITE;
        bytes += writable ? target->mappings[i].end - target->mappings[i].start : 0;
    }
    return bytes;
}

/* False: error. */
static bool sweep_leaf(struct sweep *sweep, uint64_t leaf, uint64_t first) {
    struct karst_window window;
    bool going = true;
    karst_window_open(&window, sweep->session->target, 65536);
    for (uint64_t at = 0; at < KARST_MAP_LEAF && going && !sweep->enough;) {
        if (at % PAGE == 0) {
            uint64_t untouched =
                karst_target_untouched(sweep->session->target, leaf + at, leaf + KARST_MAP_LEAF);
            if (untouched >= PAGE) { /* a damaged core's segments may end anywhere */
                at += untouched & ~(uint64_t)(PAGE - 1);
                continue;
            }
            going = karst_session_progress(sweep->session, PAGE, sweep->error);
        }
        const uint8_t *bytes = karst_window_at(&window, leaf + at, 1);
        if (!bytes) {
            at = (at / PAGE + 1) * PAGE;
            continue;
        }
        if ((*bytes & KARST_MAP_STATE) != KARST_MARK_LIVE) {
            at++;
            continue;
        }
        uint64_t address = first + at * KARST_MAP_GRAIN;
        struct karst_mark_of mark = karst_marker_mark(sweep->marker, address);
        if (mark.state == KARST_MARK_LIVE && (mark.readable || mark.overwritten)) {
            sweep->enough = !sweep->block(sweep->context, address, &mark);
        }
        at += mark.readable ? (mark.footer - address + KARST_FOOTER_BYTES) / KARST_MAP_GRAIN : 1;
    }
    karst_window_close(&window);
    return going;
}

bool karst_marker_each(struct karst_marker *marker, struct karst *session,
                       bool (*block)(void *context, uint64_t address, const struct karst_mark_of *mark),
                       void *context, struct karst_error *error) {
    struct sweep sweep = {.marker = marker,
                          .session = session,
                          .block = block,
                          .context = context,
                          .error = error,
                          .left = mapped_bytes(session->target)};
    uint64_t start = marker->control.map, end = start + KARST_MAP_ENTRIES * sizeof(uint64_t);
    karst_session_begin(session, "reading marks", 0);
    for (uint64_t at = start; start && at < end && !sweep.enough;) {
        uint64_t untouched =
            at % PAGE == 0 ? karst_target_untouched(session->target, at, end) & ~UINT64_C(7) : 0;
        if (untouched) {
            at += untouched;
            continue;
        }
        if (!karst_window_at(&marker->directory, at, sizeof(uint64_t))) {
            at = (at / PAGE + 1) * PAGE;
            continue;
        }
        uint64_t number = (at - start) / sizeof(uint64_t), leaf = leaf_of(marker, number);
        if (leaf && (!take_leaf(&sweep) || !sweep_leaf(&sweep, leaf, number * KARST_MAP_SPAN))) {
            return false;
        }
        at += sizeof(uint64_t);
    }
    return true;
}

/* ---- call sites ------------------------------------------------------------------------------------- */

size_t karst_marker_frames(const struct karst_marker *marker, struct karst *session, uint64_t site,
                           uint64_t frames[KARST_SITE_FRAMES]) {
    uint64_t offset = (site & ~KARST_SITE_STACK_BIT) * 8;
    const struct karst_control *control = marker ? &marker->control : NULL;
    if (!site) {
        return 0;
    }
    if (!control || control->site_kind != KARST_SITE_STACK || !(site & KARST_SITE_STACK_BIT) ||
        offset >= control->sites_used) {
        frames[0] = site;
        return 1;
    }
    uint32_t head[2];
    if (!karst_target_read_all(session->target, control->sites + offset, head, sizeof head)) {
        return 0;
    }
    size_t depth = head[1] < KARST_SITE_FRAMES ? head[1] : KARST_SITE_FRAMES;
    size_t got = karst_target_read(session->target, control->sites + offset + sizeof head, frames, depth * 8);
    return got / 8;
}

/* A return address is behind the call: the byte before it is in the calling function. */
void karst_site_text(struct karst *session, uint64_t address, enum karst_symbol_form form, char *text,
                     size_t size) {
    char symbol[300];
    const struct karst_module *module = karst_target_module(session->target, address - 1);
    const char *slash = module ? strrchr(module->path, '/') : NULL;
    const char *file = slash ? slash + 1 : module ? module->path : NULL;
    if (module && karst_target_symbolize(session->target, address - 1, form, symbol, sizeof symbol)) {
        snprintf(text, size, "%s in %s", symbol, file);
    } else if (module) {
        snprintf(text, size, "%s+0x%" PRIx64, file, address - module->bias);
    } else {
        snprintf(text, size, "0x%" PRIx64, address);
    }
}

void karst_site_summary(const struct karst_marker *marker, struct karst *session, uint64_t site,
                        enum karst_symbol_form form, char *text, size_t size) {
    uint64_t frames[KARST_SITE_FRAMES];
    if (karst_marker_frames(marker, session, site, frames)) {
        karst_site_text(session, frames[0], form, text, size);
    } else {
        snprintf(text, size, "?");
    }
}
