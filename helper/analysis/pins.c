#include "pins.h"

static uint64_t minimum(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t part_size(const struct karst_part *part) {
    return part->end - part->start;
}

void karst_pins_open(struct karst_pins *pins, struct karst *session, size_t count, size_t tops) {
    *pins = (struct karst_pins){.session = session};
    karst_best_open(&pins->pins, sizeof(struct karst_pin), count);
    karst_best_open(&pins->tops, sizeof(struct karst_top_pins), tops);
    for (size_t i = 0; i < session->heap_count; i++) {
        pins->trim.possible |= session->heaps[i]->allocator->trim != NULL;
    }
}

void karst_pins_close(struct karst_pins *pins) {
    karst_best_close(&pins->pins);
    karst_best_close(&pins->tops);
}

void karst_pins_finish(struct karst_pins *pins) {
    karst_best_sort(&pins->pins);
    karst_best_sort(&pins->tops);
}

/* ---- trim ------------------------------------------------------------------------------------- */

static bool trim_range(const struct karst_pins *pins, const struct karst_extent *extent, uint64_t start,
                       uint64_t end, bool is_top, uint64_t *from, uint64_t *to) {
    struct karst_heap *heap = pins->session->heaps[extent->heap];
    return heap->allocator->trim &&
           heap->allocator->trim(heap, extent, start, end - start, is_top, from, to) && *from < *to;
}

static void add_known(uint64_t *sum, uint64_t more) {
    *sum = *sum == UINT64_MAX || more == UINT64_MAX ? UINT64_MAX : *sum + more;
}

static void count_trim(struct karst_pins *pins, const struct karst_part *part) {
    uint64_t from, to;
    if (part_size(part) < pins->session->target->page_size ||
        !trim_range(pins, part->extent, part->start, part->end, part->top != 0, &from, &to)) {
        return;
    }
    pins->trim.ranges++;
    pins->trim.bytes += to - from;
    pins->trim.top_bytes += part->top ? to - from : 0;
    add_known(&pins->trim.resident, karst_target_resident(pins->session->target, from, to));
}

/* ---- pins between two parts ------------------------------------------------------------------- */

/* Offers what keeps the part of step and this one apart: blocks in a row, with no more than crumbs of free
 * memory between them. */
static void consider(struct karst_pins *pins, const struct karst_pin_step *step,
                     const struct karst_part *part) {
    uint64_t size = part_size(part), between = part->start - (step->start + step->size);
    uint64_t free_between = pins->usable - step->usable;
    uint64_t taken = between - free_between;
    uint64_t attached = minimum(size, step->size) + free_between;
    uint64_t joined = size + step->size + between;
    if (taken > joined / KARST_PIN_SHARE || taken > attached || free_between > attached / 4) {
        return;
    }
    struct karst_pin *pin = karst_best_offer(&pins->pins, attached);
    if (pin) {
        *pin = (struct karst_pin){.first = step->behind,
                                  .last = part->gap.last,
                                  .blocks = pins->blocks - step->blocks,
                                  .cached = pins->cached - step->cached,
                                  .size = between,
                                  .taken = taken,
                                  .before_start = step->start,
                                  .before_bytes = step->size,
                                  .after_start = part->start,
                                  .after_bytes = size,
                                  .joined = joined,
                                  .gained = joined - (size > step->size ? size : step->size)};
    }
}

static void drop_oldest_steps(struct karst_pins *pins, size_t count) {
    pins->step_count -= count;
    __builtin_memmove(pins->steps, pins->steps + count, pins->step_count * sizeof *pins->steps);
}

/* Part is compared with the parts before it up to the nearest that is larger: two parts with a larger one
 * between them are not each other's neighbours. The steps left are so in falling order of size, and no
 * more than a pin may have blocks, since there is a block between any two. */
static void find_pins(struct karst_pins *pins, const struct karst_part *part) {
    uint64_t size = part_size(part);
    while (pins->step_count) {
        size_t last = pins->step_count - 1;
        const struct karst_pin_step *step = &pins->steps[last];
        if (pins->blocks - step->blocks > KARST_PIN_BLOCKS || pins->other != step->other) {
            drop_oldest_steps(pins, pins->step_count);
            break;
        }
        consider(pins, step, part);
        if (step->size > size) {
            break;
        }
        pins->step_count--;
    }
}

static void push_step(struct karst_pins *pins, const struct karst_part *part) {
    if (!part->has_behind) {
        return;
    }
    if (pins->step_count == sizeof pins->steps / sizeof *pins->steps) {
        drop_oldest_steps(pins, 1);
    }
    pins->steps[pins->step_count++] = (struct karst_pin_step){.start = part->start,
                                                              .size = part_size(part),
                                                              .behind = part->behind,
                                                              .blocks = pins->blocks,
                                                              .cached = pins->cached,
                                                              .other = pins->other,
                                                              .usable = pins->usable};
}

/* The sum over all pins between neighbours. */
static void count_pin(struct karst_pins *pins, const struct karst_part *part) {
    const struct karst_part *previous =
        &pins->recent[(pins->recent_count + KARST_TOP_PIN_DEPTH - 1) % KARST_TOP_PIN_DEPTH];
    const struct karst_gap *gap = &part->gap;
    bool counted = false;
    if (gap->after_part && pins->recent_count && gap->other == 0 &&
        gap->live + gap->cached <= KARST_PIN_BLOCKS) {
        uint64_t taken = gap->end - gap->start, size = part_size(part), before = part_size(previous);
        uint64_t lesser = minimum(size, before);
        if (lesser >= pins->session->target->page_size && taken <= lesser &&
            taken <= (size + taken + before) / KARST_PIN_SHARE) {
            counted = true;
            pins->pin_count++;
            pins->pin_bytes += taken;
            pins->pinned_bytes += size + (pins->counted_previous ? 0 : before);
        }
    }
    pins->counted_previous = counted;
}

/* ---- pins under a top ------------------------------------------------------------------------- */

/* What else a trim gives back once the top begins at start instead of before; *rest moves along. */
static void measure_release(const struct karst_pins *pins, struct karst_top_pin *pin, uint64_t start,
                            uint64_t end, uint64_t *rest) {
    uint64_t from, to;
    if (!trim_range(pins, pin->extent, start, end, true, &from, &to)) {
        return;
    }
    to = *rest ? minimum(*rest, to) : to;
    if (from < to) {
        pin->to_system = to - from;
        pin->resident = karst_target_resident(pins->session->target, from, to);
    }
    *rest = from;
}

/* Fills pin with what lies directly under a top: all of the gap, if that is few blocks and free memory is
 * below it (*more), else its last block. Returns where the top would begin. */
static uint64_t describe_gap(struct karst_top_pin *pin, const struct karst_gap *gap,
                             const struct karst_part *below, bool *more) {
    uint64_t blocks = gap->live + gap->cached;
    *pin = (struct karst_top_pin){.first = gap->last, .last = gap->last, .blocks = 1};
    *more = gap->other == 0 && blocks <= KARST_PIN_BLOCKS && below;
    if (*more) {
        pin->first = gap->first;
        pin->blocks = blocks;
        pin->cached = gap->cached;
        return below->start;
    }
    pin->cached = gap->last.state == KARST_STATE_CACHED;
    pin->metadata = gap->last.state != KARST_STATE_LIVE && !pin->cached;
    return gap->last.start;
}

static void find_top_pins(struct karst_pins *pins, const struct karst_part *top) {
    struct karst_top_pins found = {0};
    uint64_t start = top->start, rest = 0, to = 0;
    if (!trim_range(pins, top->extent, top->start, top->end, true, &rest, &to)) {
        rest = 0;
    }
    const struct karst_gap *gap = &top->gap;
    uint64_t recent = pins->recent_count;
    bool more = gap->live + gap->cached + gap->other != 0;
    while (more && found.count < KARST_TOP_PIN_DEPTH) {
        bool has_below = gap->after_part && recent > 0 && pins->recent_count - recent < KARST_TOP_PIN_DEPTH;
        const struct karst_part *below = has_below ? &pins->recent[(recent - 1) % KARST_TOP_PIN_DEPTH] : NULL;
        struct karst_top_pin *pin = &found.pins[found.count++];
        uint64_t next = describe_gap(pin, gap, below, &more);
        pin->extent = top->extent;
        pin->top_start = top->end - top->top;
        pin->to_top = start - next;
        measure_release(pins, pin, next, top->end, &rest);
        const struct karst_top_pin *above = found.count > 1 ? pin - 1 : NULL;
        pin->total_to_top = pin->to_top + (above ? above->total_to_top : 0);
        pin->total_to_system = pin->to_system + (above ? above->total_to_system : 0);
        pin->total_resident = above ? above->total_resident : 0;
        add_known(&pin->total_resident, pin->resident);
        start = next;
        /* The heap's own header at its start: nothing to be done about. */
        if (pin->metadata && !gap->after_part) {
            found.count--;
        }
        if (more) {
            gap = &below->gap;
            recent--;
            more = gap->live + gap->cached + gap->other != 0;
        }
    }
    if (found.count) {
        struct karst_top_pins *kept = karst_best_offer(&pins->tops, found.pins[found.count - 1].total_to_top);
        if (kept) {
            *kept = found;
        }
    }
}

void karst_pins_part(struct karst_pins *pins, const struct karst_part *part) {
    if (part->extent->heap >= pins->session->heap_count) {
        return;
    }
    if (!part->gap.after_part) {
        pins->step_count = 0;
        pins->recent_count = 0;
        pins->blocks = pins->cached = pins->other = pins->usable = 0;
        pins->counted_previous = false;
    }
    pins->blocks += part->gap.live + part->gap.cached;
    pins->cached += part->gap.cached;
    pins->other += part->gap.other;
    if (pins->step_count && pins->steps[pins->step_count - 1].behind.state != KARST_STATE_LIVE) {
        pins->steps[pins->step_count - 1].behind = part->gap.first; /* not a run's header, or a free region */
    }
    count_trim(pins, part);
    if (part->top) {
        find_top_pins(pins, part);
        pins->step_count = 0;
        pins->recent_count = 0;
        return;
    }
    find_pins(pins, part);
    count_pin(pins, part);
    pins->usable += part_size(part);
    push_step(pins, part);
    pins->recent[pins->recent_count++ % KARST_TOP_PIN_DEPTH] = *part;
}
