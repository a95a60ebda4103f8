#include "fit.h"

#include <stdlib.h>

static bool open_need(struct karst_fit_need *need, struct karst_heap *heap, uint64_t request) {
    bool ignored = false;
    need->block = heap->allocator->block_size(heap, request, &need->mapped);
    need->smallest = heap->allocator->block_size(heap, 0, &ignored);
    need->arena_count = heap->arena_count;
    need->arenas = calloc(heap->arena_count + 1, sizeof *need->arenas);
    return need->arenas != NULL;
}

bool karst_fit_open(struct karst_fit *fit, struct karst *session, uint64_t request, size_t count,
                    struct karst_error *error) {
    *fit = (struct karst_fit){.request = request};
    karst_best_open(&fit->nearest, sizeof(struct karst_near_miss), count);
    fit->needs = calloc(session->heap_count + 1, sizeof *fit->needs);
    if (!fit->needs) {
        return karst_fail_memory(error);
    }
    fit->need_count = session->heap_count;
    for (size_t i = 0; i < session->heap_count; i++) {
        if (!open_need(&fit->needs[i], session->heaps[i], request)) {
            karst_fit_close(fit);
            return karst_fail_memory(error);
        }
    }
    return true;
}

void karst_fit_close(struct karst_fit *fit) {
    for (size_t i = 0; i < fit->need_count; i++) {
        free(fit->needs[i].arenas);
    }
    free(fit->needs);
    fit->needs = NULL;
    fit->need_count = 0;
    karst_best_close(&fit->nearest);
}

static void take_fitting(struct karst_fit *fit, struct karst_fit_need *need, const struct karst_part *part) {
    fit->fitting_parts++;
    if (part->extent->arena < need->arena_count && !need->arenas[part->extent->arena]) {
        need->arenas[part->extent->arena] = true;
        fit->fitting_arenas++;
    }
    /* malloc takes the smallest that is large enough, and the top last. */
    bool better = !fit->fits || (part->top == 0 && fit->best.top != 0) ||
                  ((part->top == 0) == (fit->best.top == 0) &&
                   part->end - part->start < fit->best.end - fit->best.start);
    if (better) {
        fit->best = *part;
    }
    fit->fits = true;
}

static void take_miss(struct karst_fit *fit, const struct karst_fit_need *need, uint64_t needed,
                      const struct karst_part *part) {
    uint64_t size = part->end - part->start;
    struct karst_near_miss *miss = NULL;
    if (part->top == 0) {
        miss = karst_best_offer(&fit->nearest, size);
        fit->has_previous = miss != NULL;
        fit->previous_address = part->start;
    } else if (size > fit->top.size) {
        miss = &fit->top;
    }
    if (miss) {
        *miss = (struct karst_near_miss){.address = part->start,
                                         .size = size,
                                         .needed = need->block,
                                         .short_by = needed - size,
                                         .arena = part->extent->arena,
                                         .heap = part->extent->heap,
                                         .has_blocker = part->has_behind,
                                         .blocker = part->behind};
    }
}

/* part begins right behind the block that is in the way of the near miss met last. */
static void look_behind_blocker(struct karst_fit *fit, const struct karst_part *part) {
    for (size_t i = 0; i < fit->nearest.count; i++) {
        struct karst_near_miss *miss = karst_best_item(&fit->nearest, i);
        if (miss->address == fit->previous_address && miss->has_blocker &&
            miss->blocker.start + miss->blocker.size == part->start) {
            miss->behind_blocker = part->end - part->start;
        }
    }
}

void karst_fit_part(struct karst_fit *fit, const struct karst_part *part) {
    if (part->extent->heap >= fit->need_count) {
        return;
    }
    struct karst_fit_need *need = &fit->needs[part->extent->heap];
    if (fit->has_previous && part->gap.after_part) {
        look_behind_blocker(fit, part);
    }
    fit->has_previous = false;
    /* The top is never used up: a smallest block stays. */
    uint64_t needed = need->block;
    if (part->top && __builtin_add_overflow(needed, need->smallest, &needed)) {
        return;
    }
    if (need->block == 0) {
        return;
    }
    if (part->end - part->start >= needed) {
        take_fitting(fit, need, part);
    } else {
        take_miss(fit, need, needed, part);
    }
}

void karst_fit_finish(struct karst_fit *fit) {
    karst_best_sort(&fit->nearest);
}

uint64_t karst_near_miss_joined(const struct karst_near_miss *miss) {
    return miss->has_blocker ? miss->size + miss->blocker.size + miss->behind_blocker : miss->size;
}
