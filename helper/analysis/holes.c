#include "holes.h"

static void take_part(struct karst_run_consumer *consumer, const struct karst_part *part) {
    struct karst_holes *holes = ((struct karst_holes_finder *)consumer)->holes;
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
    struct karst_holes *holes = ((struct karst_holes_finder *)consumer)->holes;
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
    holes->region_holes += hole->regions;
    holes->region_bytes += hole->regions ? size : 0;
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

struct karst_sink *karst_holes_begin(struct karst_holes_finder *finder, struct karst *session,
                                     const struct karst_holes_options *options, struct karst_holes *holes) {
    *holes = (struct karst_holes){.session = session};
    karst_best_open(&holes->biggest, sizeof(struct karst_listed_hole), options->count);
    karst_pins_open(&holes->pins, session, options->pins, options->tops);
    finder->consumer = (struct karst_run_consumer){take_part, take_run};
    finder->holes = holes;
    karst_run_reader_open(&finder->reader, session, &finder->consumer);
    finder->reader.wanted = options->wanted;
    finder->reader.wanted_context = options->wanted_context;
    return &finder->reader.sink;
}

bool karst_holes_finish(struct karst_holes_finder *finder, struct karst_error *error) {
    struct karst_holes *holes = finder->holes;
    karst_run_reader_finish(&finder->reader);
    if (lost_some(holes)) {
        return karst_fail_memory(error);
    }
    holes->totals = finder->reader.totals;
    karst_best_sort(&holes->biggest);
    karst_pins_finish(&holes->pins);
    if (holes->has_fit) {
        karst_fit_finish(&holes->fit);
    }
    return true;
}

bool karst_holes_find(struct karst *session, const struct karst_holes_options *options,
                      struct karst_holes *holes, struct karst_error *error) {
    struct karst_holes_finder finder;
    struct karst_sink *sink = karst_holes_begin(&finder, session, options, holes);
    bool done = true;
    if (options->fit) {
        done = holes->has_fit = karst_fit_open(&holes->fit, session, options->request, options->count, error);
    }
    karst_session_begin(session, "walking the heap", karst_session_bytes(session));
    done =
        done && karst_session_walk(session, 0, UINT64_MAX, sink, error) && karst_holes_finish(&finder, error);
    if (!done) {
        karst_holes_close(holes);
    }
    return done;
}

void karst_holes_close(struct karst_holes *holes) {
    karst_best_close(&holes->biggest);
    karst_pins_close(&holes->pins);
    if (holes->has_fit) {
        karst_fit_close(&holes->fit);
        holes->has_fit = false;
    }
}
