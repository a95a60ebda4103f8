/* glibc malloc: thread control blocks, beside which threads keep the words that lead to their caches: those
 * that the threads point at, and those whose thread is gone (a forked child has its parent's), which are
 * found in memory, for what their caches hold is lost. */
#include "glibc_find.h"

#include <stdlib.h>

#define TCB_SPAN       16384u /* how far into a mapping thread control blocks are looked for */
#define TCB_LINKS      0x240u /* where in struct pthread its list of stacks and its thread id are, about */
#define TCB_LINKS_SIZE 0x100u
#define TCBS_FOLLOWED  16384u

static bool add_tcb(struct glibc_tcb_list *list, uint64_t address, int64_t tid) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].address == address) {
            return true;
        }
    }
    struct glibc_tcb *items = realloc(list->items, (list->count + 1) * sizeof *items);
    if (!items) {
        return false;
    }
    list->items = items;
    items[list->count++] = (struct glibc_tcb){address, tid};
    return true;
}

/* Which thread a control block belongs to, when its registers are not known: struct pthread keeps the
 * thread id about 0x2d0 bytes in (nptl/descr.h). */
static int64_t tid_of_tcb(struct karst_target *target, uint64_t address) {
    uint32_t words[TCB_LINKS_SIZE / 4];
    if (!karst_target_read_all(target, address + TCB_LINKS, words, sizeof words)) {
        return -1;
    }
    for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
        for (size_t t = 0; t < target->thread_count; t++) {
            if (words[w] == (uint32_t)target->threads[t].tid && !target->threads[t].thread_pointer) {
                return target->threads[t].tid;
            }
        }
    }
    return -1;
}

/* x86-64: tcbhead_t points at itself at 0 and 16 (sysdeps/x86_64/nptl/tls.h), 64-byte aligned. */
static bool scan_for_tcbs(struct glibc_heap *glibc, uint64_t start, uint64_t end,
                          struct glibc_tcb_list *list) {
    for (uint64_t at = (start + 63) & ~63ull; at + 24 <= end; at += 64) {
        const uint8_t *bytes = karst_window_at(&glibc->lists, at, 24);
        if (!bytes) {
            return true;
        }
        if (glibc_word(bytes) == at && glibc_word(bytes + 16) == at &&
            !add_tcb(list, at, tid_of_tcb(glibc->heap.target, at))) {
            return false;
        }
    }
    return true;
}

/* struct pthread is in a list of stacks: the control blocks that the one at address is linked with. From 2.42
 * on stacks have no mapping for a guard between them, so that only the last of a run is at a mapping's end.
 */
static bool follow_tcb_links(struct glibc_heap *glibc, uint64_t address, struct glibc_tcb_list *list) {
    struct karst_target *target = glibc->heap.target;
    uint64_t links[TCB_LINKS_SIZE / 8], words[3];
    if (!karst_target_read_all(target, address + TCB_LINKS, links, sizeof links)) {
        return true;
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        for (unsigned back = 0; back <= 8; back += 8) {
            /* next leads to the same field of the neighbour, and so does prev, a word behind it. */
            uint64_t other = links[i] - (TCB_LINKS + 8 * i - back);
            if (other % 64 == 0 && links[i] > 0x1000 &&
                karst_target_read_all(target, other, words, sizeof words) && words[0] == other &&
                words[2] == other && !add_tcb(list, other, tid_of_tcb(target, other))) {
                return false;
            }
        }
    }
    return true;
}

bool glibc_find_tcbs(struct glibc_heap *glibc, struct glibc_tcb_list *list) {
    struct karst_target *target = glibc->heap.target;
    for (size_t i = 0; i < target->thread_count; i++) {
        if (target->threads[i].thread_pointer &&
            !add_tcb(list, target->threads[i].thread_pointer, target->threads[i].tid)) {
            return false;
        }
    }
    for (size_t i = 0; i < target->mapping_count; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        uint64_t behind;
        if (!karst_mapping_is_anonymous(mapping) ||
            glibc_overlaps_extent(glibc, mapping->start, mapping->start + 1, &behind)) {
            continue;
        }
        uint64_t size = mapping->end - mapping->start;
        uint64_t head = size < 2 * TCB_SPAN ? size : TCB_SPAN;
        if (!scan_for_tcbs(glibc, mapping->start, mapping->start + head, list) ||
            (size > head && !scan_for_tcbs(glibc, mapping->end - TCB_SPAN, mapping->end, list))) {
            return false;
        }
    }
    for (size_t i = 0; i < list->count && list->count < TCBS_FOLLOWED; i++) {
        if (!follow_tcb_links(glibc, list->items[i].address, list)) {
            return false;
        }
    }
    return true;
}
