/* Holes, pins, fits and trims on made-up heaps: cases that can be checked by eye, and random ones against a
 * slow and plain way to tell the same. */
#include "check.h"
#include "fake_heap.h"
#include "holes.h"
#include "summary.h"

static struct fake_heap fake;

static bool find(struct karst_holes *holes, size_t count, bool fit, uint64_t request) {
    struct karst_holes_options options = {
        .count = count, .pins = count, .tops = count, .fit = fit, .request = request};
    struct karst_error error = {0};
    bool found = karst_holes_find(&fake.session, &options, holes, &error);
    if (!CHECK(found)) {
        fprintf(stderr, "    %s\n", error.text);
    }
    return found;
}

/* ---- the greatest few --------------------------------------------------------------------------- */

static void test_best(void) {
    uint64_t random = 7, keys[300];
    struct karst_best best;
    karst_best_open(&best, sizeof(uint64_t), 20);
    for (uint64_t i = 0; i < 300; i++) {
        keys[i] = fake_random(&random) % 100;
        uint64_t *item = karst_best_offer(&best, keys[i]);
        if (item) {
            CHECK_EQUAL(*item, 0);
            *item = i;
        }
    }
    karst_best_sort(&best);
    CHECK_EQUAL(best.count, 20);
    for (size_t i = 0; i < best.count; i++) {
        /* Of the keys as great, or as great and earlier, there are just i. */
        uint64_t index = *(uint64_t *)karst_best_item(&best, i), before = 0;
        for (uint64_t k = 0; k < 300; k++) {
            before += keys[k] > keys[index] || (keys[k] == keys[index] && k < index);
        }
        CHECK_EQUAL(before, i);
    }
    karst_best_close(&best);
    karst_best_open(&best, 8, 0);
    CHECK(karst_best_offer(&best, 5) == NULL);
    karst_best_close(&best);
}

/* ---- holes by eye ------------------------------------------------------------------------------- */

static void test_definition(void) {
    struct karst_holes holes;
    fake_begin(&fake);
    fake_extent(&fake, 0x10000, KARST_EXTENT_BRK, 0);
    fake_free(&fake, 0x100); /* at the edge: no hole */
    fake_live(&fake, 0x20);
    const struct karst_block *first = fake_free(&fake, 0x1000);
    fake_add(&fake, KARST_STATE_CACHED, 0x40, FAKE_TCACHE);
    fake_free(&fake, 0x2000);
    const struct karst_block *behind = fake_live(&fake, 0x20);
    fake_free(&fake, 0x300);
    fake_add(&fake, KARST_STATE_UNKNOWN, 0x50, KARST_NONE); /* ends one hole, begins another */
    fake_free(&fake, 0x400);
    fake_add(&fake, KARST_STATE_METADATA, 0x20, KARST_NONE);
    fake_add(&fake, KARST_STATE_CACHED, 0x30, FAKE_TCACHE); /* under the top: no hole */
    fake_add(&fake, KARST_STATE_TOP, 0x5000, KARST_NONE);
    fake_extent(&fake, 0x90000, KARST_EXTENT_MAPPED, KARST_NONE);
    fake_live(&fake, 0x3000);
    if (!find(&holes, 10, false, 0)) {
        return;
    }
    CHECK_EQUAL(holes.holes, 3);
    CHECK_EQUAL(holes.bytes, 0x3040 + 0x300 + 0x400);
    CHECK_EQUAL(holes.cached_bytes, 0x40);
    CHECK_EQUAL(holes.largest, 0x3040);
    CHECK_EQUAL(holes.largest_usable, 0x2000);
    CHECK_EQUAL(holes.edge_free_bytes, 0x100);
    CHECK_EQUAL(holes.edge_cached_bytes, 0x30);
    CHECK_EQUAL(holes.totals.top_bytes, 0x5000);
    CHECK_EQUAL(holes.totals.unknown_ranges, 1);
    CHECK_EQUAL(holes.totals.unknown_bytes, 0x50);
    CHECK_EQUAL(holes.totals.live_blocks, 2);
    CHECK_EQUAL(holes.census[13].holes, 1);
    CHECK_EQUAL(holes.census[9].holes, 1);
    CHECK_EQUAL(holes.census[10].bytes, 0x400);
    CHECK_EQUAL(holes.biggest.count, 3);
    const struct karst_listed_hole *one = karst_best_item(&holes.biggest, 0);
    CHECK_EQUAL(one->hole.start, first->start);
    CHECK_EQUAL(one->hole.usable_start, first->start + 0x1040);
    CHECK_EQUAL(one->blocks, 3);
    CHECK_EQUAL(one->before.start, first->start - 0x20);
    CHECK_EQUAL(one->after.start, behind->start);
    karst_holes_close(&holes);
}

static void test_unknown_residency(void) {
    struct karst_holes holes;
    fake_random_heap(&fake, 5);
    fake.residency_unknown = true;
    if (find(&holes, 3, false, 0)) {
        CHECK_EQUAL(holes.resident_bytes, UINT64_MAX);
        CHECK_EQUAL(holes.pins.trim.resident, UINT64_MAX);
        karst_holes_close(&holes);
    }
}

/* ---- random heaps ------------------------------------------------------------------------------- */

static bool is_used(size_t i) {
    enum karst_state state = fake.blocks[i].state;
    return state == KARST_STATE_LIVE || state == KARST_STATE_METADATA || state == KARST_STATE_UNKNOWN;
}

static const struct karst_extent *extent_of(size_t i) {
    return karst_session_extent(&fake.session, fake.blocks[i].start);
}

static bool same_extent(size_t i, size_t k) {
    return k < fake.block_count && extent_of(i) == extent_of(k);
}

/* All holes, one after the other: for each block in use look for the next one. */
static void check_holes(const struct karst_holes *holes) {
    uint64_t count = 0, bytes = 0, largest = 0, usable = 0, resident = 0;
    for (size_t i = 0; i < fake.block_count; i++) {
        size_t k = i + 1;
        uint64_t free_run = 0, best_run = 0;
        bool top = false;
        if (!is_used(i) || extent_of(i)->kind == KARST_EXTENT_MAPPED) {
            continue;
        }
        for (; same_extent(i, k) && !is_used(k); k++) {
            top |= fake.blocks[k].state == KARST_STATE_TOP;
            free_run = fake.blocks[k].state == KARST_STATE_FREE ? free_run + fake.blocks[k].size : 0;
            best_run = best_run > free_run ? best_run : free_run;
        }
        if (k == i + 1 || !same_extent(i, k) || top) {
            continue;
        }
        uint64_t start = fake.blocks[i].start + fake.blocks[i].size, size = fake.blocks[k].start - start;
        count++;
        bytes += size;
        largest = largest > size ? largest : size;
        usable = usable > best_run ? usable : best_run;
        resident += fake_resident(&fake.target, start, start + size);
    }
    CHECK_EQUAL(holes->holes, count);
    CHECK_EQUAL(holes->bytes, bytes);
    CHECK_EQUAL(holes->largest, largest);
    CHECK_EQUAL(holes->largest_usable, usable);
    CHECK_EQUAL(holes->resident_bytes, resident);
    CHECK_EQUAL(holes->free_bytes + holes->cached_bytes, bytes);
}

static void check_census(const struct karst_holes *holes) {
    uint64_t count = 0, bytes = 0, resident = 0, last = UINT64_MAX;
    for (size_t i = 0; i < KARST_HOLE_CLASSES; i++) {
        const struct karst_hole_class *of = &holes->census[i];
        count += of->holes;
        bytes += of->bytes;
        resident += of->resident_bytes;
        CHECK(of->bytes >= of->holes << i && of->bytes <= of->holes * ((UINT64_C(2) << i) - 1));
    }
    CHECK_EQUAL(count, holes->holes);
    CHECK_EQUAL(bytes, holes->bytes);
    CHECK_EQUAL(resident, holes->resident_bytes);
    for (size_t i = 0; i < holes->biggest.count; i++) {
        const struct karst_listed_hole *one = karst_best_item(&holes->biggest, i);
        CHECK(one->hole.end - one->hole.start <= last);
        last = one->hole.end - one->hole.start;
        CHECK_EQUAL(one->before.start + one->before.size, one->hole.start);
        CHECK_EQUAL(one->after.start, one->hole.end);
    }
    const struct karst_run_totals *totals = &holes->totals;
    uint64_t in_all = 0;
    for (size_t i = 0; i < fake.session.extent_count; i++) {
        const struct karst_extent *extent = &fake.extents[i];
        in_all += extent->kind == KARST_EXTENT_MAPPED ? 0 : extent->end - extent->start;
    }
    CHECK_EQUAL(totals->bytes, in_all);
    CHECK_EQUAL(totals->free_bytes, holes->free_bytes + holes->edge_free_bytes);
    CHECK_EQUAL(totals->cached_bytes, holes->cached_bytes + holes->edge_cached_bytes);
}

static bool is_piece(size_t i) {
    enum karst_state state = fake.blocks[i].state;
    return state == KARST_STATE_FREE || state == KARST_STATE_TOP ||
           (state == KARST_STATE_CACHED && fake.blocks[i].bin == FAKE_FASTBIN);
}

/* The pieces that malloc could use, one after the other. False: there are no more. */
static bool next_piece(size_t *i, uint64_t *start, uint64_t *end, bool *top) {
    while (*i < fake.block_count && !is_piece(*i)) {
        ++*i;
    }
    if (*i >= fake.block_count) {
        return false;
    }
    size_t first = *i;
    *start = fake.blocks[first].start;
    *top = false;
    do {
        *top |= fake.blocks[*i].state == KARST_STATE_TOP;
        *end = fake.blocks[*i].start + fake.blocks[*i].size;
        ++*i;
    } while (*i < fake.block_count && is_piece(*i) && same_extent(first, *i));
    return true;
}

static void check_trim_and_fit(const struct karst_holes *holes, uint64_t request) {
    uint64_t bytes = 0, resident = 0, start, end, from, to, fitting = 0, largest = 0;
    bool top, mapped;
    uint64_t needed = fake_block_size(&fake.heap, request, &mapped);
    for (size_t i = 0; next_piece(&i, &start, &end, &top);) {
        if (fake_trim(&fake.heap, karst_session_extent(&fake.session, start), start, end - start, top, &from,
                      &to)) {
            bytes += to - from;
            resident += fake_resident(&fake.target, from, to);
        }
        bool fits = end - start >= needed + (top ? 32 : 0);
        fitting += fits;
        largest = !fits && !top && end - start > largest ? end - start : largest;
    }
    CHECK_EQUAL(holes->pins.trim.bytes, bytes);
    CHECK_EQUAL(holes->pins.trim.resident, resident);
    CHECK_EQUAL(holes->fit.fitting_parts, fitting);
    CHECK_EQUAL(holes->fit.fits, fitting != 0);
    if (largest && CHECK(holes->fit.nearest.count > 0)) {
        const struct karst_near_miss *miss = karst_best_item(&holes->fit.nearest, 0);
        CHECK_EQUAL(miss->size, largest);
        CHECK_EQUAL(miss->short_by, needed - largest);
    }
}

/* Every two pieces of an extent with no larger one between them. */
static uint64_t best_pin(void) {
    uint64_t best = 0, start, end, next_start, next_end;
    bool top, next_top;
    for (size_t i = 0; next_piece(&i, &start, &end, &top);) {
        uint64_t crumbs = 0, taken = 0;
        size_t at = i, blocks = 0;
        for (size_t k = i;
             !top && next_piece(&k, &next_start, &next_end, &next_top) && !next_top &&
             karst_session_extent(&fake.session, start) == karst_session_extent(&fake.session, next_start);) {
            bool pure = true;
            for (; fake.blocks[at].start < next_start; at++) {
                bool counts = !is_piece(at);
                blocks += counts;
                taken += counts ? fake.blocks[at].size : 0;
                pure &= !counts || fake.blocks[at].state == KARST_STATE_LIVE ||
                        fake.blocks[at].state == KARST_STATE_CACHED;
            }
            uint64_t a = end - start, b = next_end - next_start, lesser = a < b ? a : b;
            if (!pure || blocks > KARST_PIN_BLOCKS) {
                break;
            }
            uint64_t attached = lesser + crumbs;
            if (taken <= (next_end - start) / KARST_PIN_SHARE && taken <= attached &&
                crumbs <= attached / 4 && attached > best) {
                best = attached;
            }
            if (b >= a) {
                break; /* what lies behind is its neighbour, not ours */
            }
            crumbs += b;
        }
    }
    return best;
}

static void check_pins(const struct karst_holes *holes) {
    uint64_t best = best_pin();
    if (best == 0) {
        CHECK_EQUAL(holes->pins.pins.count, 0);
        return;
    }
    if (!CHECK(holes->pins.pins.count > 0)) {
        return;
    }
    const struct karst_pin *pin = karst_best_item(&holes->pins.pins, 0);
    uint64_t lesser = pin->before_bytes < pin->after_bytes ? pin->before_bytes : pin->after_bytes;
    CHECK_EQUAL(lesser + pin->size - pin->taken, best);
    for (size_t i = 0; i < holes->pins.pins.count; i++) {
        pin = karst_best_item(&holes->pins.pins, i);
        CHECK_EQUAL(pin->before_start + pin->before_bytes, pin->first.start);
        CHECK_EQUAL(pin->last.start + pin->last.size, pin->after_start);
        CHECK_EQUAL(pin->after_start - pin->first.start, pin->size);
        CHECK_EQUAL(pin->joined, pin->before_bytes + pin->size + pin->after_bytes);
        CHECK(pin->blocks >= 1 && pin->blocks <= KARST_PIN_BLOCKS);
    }
}

/* The summary counts the same holes. */
static void check_summary(const struct karst_holes *holes) {
    struct karst_summary summary;
    struct karst_error error = {0};
    if (CHECK(karst_summarize(&fake.session, &summary, &error))) {
        CHECK_EQUAL(summary.total.holes, holes->holes);
        CHECK_EQUAL(summary.total.hole_bytes, holes->bytes);
        CHECK_EQUAL(summary.total.largest.usable, holes->largest_usable);
    }
    karst_summary_clear(&summary);
}

static void test_random_heaps(void) {
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct karst_holes holes;
        fake_random_heap(&fake, seed);
        uint64_t request = seed * 977 % 140000;
        if (find(&holes, seed % 17 + 1, true, request)) {
            int failed = checks_failed;
            check_holes(&holes);
            check_census(&holes);
            check_trim_and_fit(&holes, request);
            check_pins(&holes);
            check_summary(&holes);
            if (checks_failed != failed) {
                fprintf(stderr, "    seed %" PRIu64 "\n", seed);
            }
            karst_holes_close(&holes);
        }
    }
}

/* ---- does it fit? ------------------------------------------------------------------------------- */

static void test_pinned_hole(void) {
    struct karst_holes holes;
    fake_begin(&fake);
    fake_extent(&fake, 0x10000, KARST_EXTENT_BRK, 0);
    fake_live(&fake, 1216);
    const struct karst_block *hole = fake_free(&fake, 8880480);
    const struct karst_block *pin = fake_live(&fake, 240);
    fake_free(&fake, 16400);
    fake_live(&fake, 1216);
    fake_add(&fake, KARST_STATE_TOP, 100000, KARST_NONE);
    if (!find(&holes, 5, true, 8880819)) {
        return;
    }
    CHECK(!holes.fit.fits);
    CHECK_EQUAL(holes.fit.nearest.count, 2);
    const struct karst_near_miss *miss = karst_best_item(&holes.fit.nearest, 0);
    CHECK_EQUAL(miss->address, hole->start);
    CHECK_EQUAL(miss->size, 8880480);
    CHECK_EQUAL(miss->needed, 8880832);
    CHECK_EQUAL(miss->short_by, 352);
    CHECK_EQUAL(miss->blocker.address, pin->address);
    CHECK_EQUAL(karst_near_miss_joined(miss), 8880480 + 240 + 16400);
    CHECK_EQUAL(holes.fit.top.size, 100000);
    CHECK_EQUAL(holes.fit.top.short_by, 8880832 + 32 - 100000);
    karst_holes_close(&holes);
    if (find(&holes, 5, true, 8880480 - 8)) {
        CHECK(holes.fit.fits);
        CHECK_EQUAL(holes.fit.best.start, hole->start);
        karst_holes_close(&holes);
    }
}

static void check_fit(uint64_t request, bool fits, uint64_t at) {
    struct karst_holes holes;
    if (find(&holes, 5, true, request)) {
        CHECK_EQUAL(holes.fit.fits, fits);
        CHECK(!fits || holes.fit.best.start == at);
        karst_holes_close(&holes);
    }
}

static void test_fits(void) {
    fake_begin(&fake);
    fake_extent(&fake, 0x10000, KARST_EXTENT_HEAP, 1);
    const struct karst_block *edge = fake_free(&fake, 0x400);
    fake_live(&fake, 0x20);
    const struct karst_block *merged = fake_free(&fake, 0x200);
    fake_add(&fake, KARST_STATE_CACHED, 0x100, FAKE_FASTBIN);
    fake_free(&fake, 0x200);
    fake_add(&fake, KARST_STATE_CACHED, 0x1000, FAKE_TCACHE);
    fake_live(&fake, 0x20);
    const struct karst_block *top = fake_add(&fake, KARST_STATE_TOP, 0x1000, KARST_NONE);
    check_fit(0x400 - 8, true, edge->start);
    check_fit(0x500 - 8, true, merged->start);
    check_fit(0x501 - 8, true, top->start);
    /* A smallest block stays at the top; what the thread's cache has, no other request gets. */
    check_fit(0x1000 - 0x20 - 8, true, top->start);
    check_fit(0x1000 - 0x20 - 7, false, 0);
    check_fit(UINT64_MAX, false, 0);
    check_fit(INT64_MAX, false, 0);
    struct karst_holes holes;
    if (find(&holes, 5, true, FAKE_MAPPED)) {
        CHECK(!holes.fit.fits && holes.fit.needs[0].mapped);
        karst_holes_close(&holes);
    }
    if (find(&holes, 5, true, 0x100)) {
        CHECK_EQUAL(holes.fit.fitting_arenas, 1);
        CHECK(holes.fit.needs[0].arenas[1] && !holes.fit.needs[0].arenas[0]);
        karst_holes_close(&holes);
    }
}

/* ---- pins by eye -------------------------------------------------------------------------------- */

static void test_short_run(void) {
    struct karst_holes holes;
    fake_begin(&fake);
    fake_extent(&fake, 0x10000, KARST_EXTENT_BRK, 0);
    fake_live(&fake, 0x20);
    fake_free(&fake, 0x100000);
    const struct karst_block *first = fake_live(&fake, 0x40);
    fake_free(&fake, 0x20);
    const struct karst_block *second = fake_add(&fake, KARST_STATE_CACHED, 0x40, FAKE_TCACHE);
    fake_free(&fake, 0x200000);
    fake_live(&fake, 0x80000); /* large: no pin */
    fake_free(&fake, 0x100000);
    fake_live(&fake, 0x20);
    if (!find(&holes, 10, false, 0)) {
        return;
    }
    const struct karst_pin *pin = karst_best_item(&holes.pins.pins, 0);
    if (CHECK(holes.pins.pins.count > 0)) {
        CHECK_EQUAL(pin->first.start, first->start);
        CHECK_EQUAL(pin->last.start, second->start);
        CHECK_EQUAL(pin->blocks, 2);
        CHECK_EQUAL(pin->cached, 1);
        CHECK_EQUAL(pin->taken, 0x80);
        CHECK_EQUAL(pin->joined, 0x100000 + 0xa0 + 0x200000);
        CHECK_EQUAL(pin->gained, 0x100000 + 0xa0);
    }
    CHECK_EQUAL(holes.pins.pins.count, 1);
    karst_holes_close(&holes);
}

static void test_too_many_blocks(void) {
    for (unsigned blocks = KARST_PIN_BLOCKS; blocks <= KARST_PIN_BLOCKS + 1; blocks++) {
        struct karst_holes holes;
        fake_begin(&fake);
        fake_extent(&fake, 0x10000, KARST_EXTENT_BRK, 0);
        fake_free(&fake, 0x100000);
        for (unsigned i = 0; i < blocks; i++) {
            fake_live(&fake, 0x20);
        }
        fake_free(&fake, 0x100000);
        if (find(&holes, 10, false, 0)) {
            CHECK_EQUAL(holes.pins.pins.count, blocks == KARST_PIN_BLOCKS);
            CHECK_EQUAL(holes.pins.pin_count, blocks == KARST_PIN_BLOCKS);
            karst_holes_close(&holes);
        }
    }
}

/* Live, free, live, free, live, cached, top: from the top down the cached block, the last live one, and the
 * one below it, each with what is free under it. */
static void test_top_pins(void) {
    struct karst_holes holes;
    fake_begin(&fake);
    fake_extent(&fake, 0x10000, KARST_EXTENT_BRK, 0);
    for (unsigned i = 0; i < 40; i++) {
        fake_live(&fake, 0x100);
    }
    fake_free(&fake, 0x20000);
    const struct karst_block *lower = fake_live(&fake, 0x30);
    fake_free(&fake, 0x10000);
    const struct karst_block *upper = fake_live(&fake, 0x500);
    const struct karst_block *cached = fake_add(&fake, KARST_STATE_CACHED, 0x40, FAKE_TCACHE);
    const struct karst_block *top = fake_add(&fake, KARST_STATE_TOP, 0x3000, KARST_NONE);
    if (!find(&holes, 10, false, 0) || !CHECK(holes.pins.tops.count == 1)) {
        return;
    }
    const struct karst_top_pins *pins = karst_best_item(&holes.pins.tops, 0);
    CHECK_EQUAL(pins->count, 3);
    const struct karst_top_pin *pin = &pins->pins[0];
    CHECK_EQUAL(pin->first.start, upper->start);
    CHECK_EQUAL(pin->last.start, cached->start);
    CHECK_EQUAL(pin->top_start, top->start);
    CHECK_EQUAL(pin->to_top, 0x10000 + 0x500 + 0x40);
    CHECK_EQUAL(pin->blocks, 2);
    uint64_t from, to, before;
    CHECK(fake_trim(&fake.heap, &fake.extents[0], top->start, top->size, true, &before, &to));
    CHECK(fake_trim(&fake.heap, &fake.extents[0], upper->start - 0x10000, to - (upper->start - 0x10000), true,
                    &from, &to));
    CHECK_EQUAL(pin->to_system, before - from);
    CHECK_EQUAL(pin->resident, fake_resident(&fake.target, from, before));
    CHECK_EQUAL(pins->pins[1].last.start, lower->start);
    CHECK_EQUAL(pins->pins[1].to_top, 0x20000 + 0x30);
    CHECK_EQUAL(pins->pins[1].total_to_top, pin->to_top + 0x20000 + 0x30);
    /* Below that all is live: the last block alone. */
    CHECK_EQUAL(pins->pins[2].blocks, 1);
    CHECK_EQUAL(pins->pins[2].to_top, 0x100);
    karst_holes_close(&holes);
}

static bool is_second_arena(void *context, const struct karst_extent *extent) {
    return extent->arena == *(const uint32_t *)context;
}

static void test_arena(void) {
    uint64_t sum = 0, all = 0;
    struct karst_holes holes;
    fake_random_heap(&fake, 11);
    for (uint32_t arena = 0; arena < 3; arena++) {
        struct karst_holes_options options = {.count = 1};
        struct karst_error error = {0};
        options.wanted = arena < 2 ? is_second_arena : NULL;
        options.wanted_context = &arena;
        if (CHECK(karst_holes_find(&fake.session, &options, &holes, &error))) {
            *(arena < 2 ? &sum : &all) += holes.bytes;
            karst_holes_close(&holes);
        }
    }
    CHECK(sum > 0);
    CHECK_EQUAL(sum, all);
}

int main(void) {
    test_best();
    test_definition();
    test_unknown_residency();
    test_arena();
    test_random_heaps();
    test_pinned_hole();
    test_fits();
    test_short_run();
    test_too_many_blocks();
    test_top_pins();
    return checks_done();
}
