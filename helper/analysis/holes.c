#include "holes.h"

struct finder {
    struct karst_run_consumer consumer; /* first */
    struct karst_holes *holes;
};

static void take_part(struct karst_run_consumer *consumer, const struct karst_part *part) {
    struct karst_holes *holes = ((struct finder *)consumer)->holes;
    karst_pins_part(&holes->pins, part);
    if (holes->has_fit) {
        karst_fit_part(&holes->fit, part);
    }
}

static void add_known(uint64_t *sum, uint64_t more) {
    *sum = *sum == UINT64_MAX || more == UINT64_MAX ? UINT64_MAX : *sum + more;
}

static void keep_if_big(struct karst_holes *holes, const struct karst_run *run, uint64_t resident) {
    struct karst_listed_hole *kept = karst_best_offer(&holes->biggest, run->hole.end - run->hole.start);
    if (kept) {
        *kept = (struct karst_listed_hole){.hole = run->hole,
                                           .blocks = run->blocks,
                                           .resident_bytes = resident,
                                           .arena = run->extent->arena,
                                           .heap = run->extent->heap,
                                           .before = run->before,
                                           .after = run->after};
    }
}

static void take_run(struct karst_run_consumer *consumer, const struct karst_run *run) {
    struct karst_holes *holes = ((struct finder *)consumer)->holes;
    const struct karst_hole *hole = &run->hole;
    uint64_t size = hole->end - hole->start;
    if (!karst_run_is_hole(run)) {
        holes->edge_free_bytes += hole->free_bytes;
        holes->edge_cached_bytes += hole->cached_bytes;
        return;
    }
    if (size == 0) {
        return;
    }
    uint64_t resident = karst_target_resident(holes->session->target, hole->start, hole->end);
    struct karst_hole_class *of = &holes->census[63 - (unsigned)__builtin_clzll(size)];
    of->holes++;
    of->bytes += size;
    add_known(&of->resident_bytes, resident);
    holes->holes++;
    holes->bytes += size;
    holes->free_bytes += hole->free_bytes;
    holes->cached_bytes += hole->cached_bytes;
    add_known(&holes->resident_bytes, resident);
    holes->largest = holes->largest > size ? holes->largest : size;
    holes->largest_usable = holes->largest_usable > hole->usable ? holes->largest_usable : hole->usable;
    keep_if_big(holes, run, resident);
}

/* Lost for lack of memory: an answer without it would be wrong. */
static bool lost_some(const struct karst_holes *holes) {
    return holes->biggest.out_of_memory || holes->pins.pins.out_of_memory || holes->pins.tops.out_of_memory ||
           (holes->has_fit && holes->fit.nearest.out_of_memory);
}

bool karst_holes_find(struct karst *session, const struct karst_holes_options *options,
                      struct karst_holes *holes, struct karst_error *error) {
    *holes = (struct karst_holes){.session = session};
    if (options->fit && !karst_fit_open(&holes->fit, session, options->request, options->count, error)) {
        return false;
    }
    holes->has_fit = options->fit;
    karst_best_open(&holes->biggest, sizeof(struct karst_listed_hole), options->count);
    karst_pins_open(&holes->pins, session, options->pins, options->tops);
    struct finder finder = {{take_part, take_run}, holes};
    struct karst_run_reader reader;
    karst_run_reader_open(&reader, session, &finder.consumer);
    reader.wanted = options->wanted;
    reader.wanted_context = options->wanted_context;
    bool walked = karst_run_reader_walk(&reader, "walking the heap", error);
    if (walked && lost_some(holes)) {
        walked = karst_fail_memory(error);
    }
    if (!walked) {
        karst_holes_close(holes);
        return false;
    }
    holes->totals = reader.totals;
    karst_best_sort(&holes->biggest);
    karst_pins_finish(&holes->pins);
    if (holes->has_fit) {
        karst_fit_finish(&holes->fit);
    }
    return true;
}

void karst_holes_close(struct karst_holes *holes) {
    karst_best_close(&holes->biggest);
    karst_pins_close(&holes->pins);
    if (holes->has_fit) {
        karst_fit_close(&holes->fit);
        holes->has_fit = false;
    }
}
