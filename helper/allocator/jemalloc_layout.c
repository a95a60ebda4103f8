/* jemalloc: layouts of its versions, as data. Sources: include/jemalloc/internal of the releases named (5.1.0
 * and 5.2.1: extent_structs.h, arena_structs_b.h, base_structs.h, tcache_structs.h, rtree.h; 5.3.0 and 5.3.1:
 * edata.h, arena_structs.h, base.h, tcache_structs.h, cache_bin.h, rtree.h), and the debug info of builds of
 * them with default options, with --enable-prof, and with --with-lg-vaddr=57. Profiling moves nothing that is
 * used here. Of 3.x and 4.x: arena.h, extent.h and tcache.h
 * of 3.5.1, 3.6.0, 4.0.4, 4.1.1, 4.2.1, 4.3.1, 4.4.0 and 4.5.0.
 */
#include "jemalloc.h"

#define NONE16 (JEMALLOC_NOT_THERE & 0xffff)

/* clang-format off */
#define EXTENT .extent_address = 8, .extent_size = 16, .extent_bitmap = 64
#define E_BITS_5_1 .state_shift = 16, .state_bits = 2, .szind_shift = 18, .nfree_shift = 26, .shard_shift = 0
#define E_BITS_5_2 .state_shift = 16, .state_bits = 2, .szind_shift = 18, .nfree_shift = 26, .shard_shift = 36
#define E_BITS_5_3 .state_shift = 17, .state_bits = 3, .szind_shift = 20, .nfree_shift = 28, .shard_shift = 38

#define LAYOUT_5_1 .version = "5.1.0", .major = 5, .rtree_root = 104, .muzzy_resident = true, E_BITS_5_1, EXTENT, .lru_link = 24, .heap_link = 40, .full_link = 24, \
    .arena_mapped = 16, .arena_internal = 16 + 72, .arena_tcaches = 7008, .arena_index = JEMALLOC_NOT_THERE, .arena_base = 25848, \
    .arena_bins = 16344, .arena_bin_size = 264, .bin_slabcur = 104, .bin_nonfull = 112, .bin_full = 120, \
    .arena_lru = {7288 + 1736, 9048 + 1736, 10808 + 1736}, \
    .arena_npages = {7288 + 1744, 9048 + 1744, 10808 + 1744}, .arena_mutex = {7288, 9048, 10808}, \
    .base_blocks = 136, .base_allocated = 2000, .base_mapped = 2016, .mutex_locked = NONE16, \
    .ring_link = 880, .ring_to_tcache = NONE16, .own_stack = NONE16, \
    .own_data = -8, .ring_arena = 928, .tcache_self = 896 + 16, .tcache_bins = 16, .tcache_large = 976, .tcache_bin_size = 24, .tcache_bin_stack = 16, .tcache_bin_count = 4, .tcache_classes = 232

#define LAYOUT_5_2 .version = "5.2.1", .major = 5, .rtree_root = 112, .muzzy_resident = true, E_BITS_5_2, EXTENT, .lru_link = 24, .heap_link = 40, .full_link = 24, \
    .arena_mapped = 24, .arena_internal = 24 + 80, .arena_tcaches = 10184, .arena_index = JEMALLOC_NOT_THERE, .arena_base = 29480, \
    .arena_bins = 29192, .arena_bin_size = 280, .bin_slabcur = 112, .bin_nonfull = 120, .bin_full = 128, .bins_apart = true, \
    .arena_lru = {10472 + 4944, 15440 + 4944, 20408 + 4944}, \
    .arena_npages = {10472 + 4952, 15440 + 4952, 20408 + 4952}, .arena_mutex = {10472, 15440, 20408}, \
    .base_blocks = 144, .base_allocated = 2008, .base_mapped = 2024, .mutex_locked = 104, \
    .ring_link = 880, .ring_to_tcache = NONE16, .own_stack = NONE16, \
    .own_data = -48, .ring_arena = 952, .tcache_self = 920 + 16, .tcache_bins = 16, .tcache_large = 1000, .tcache_bin_size = 24, .tcache_bin_stack = 16, .tcache_bin_count = 4, .tcache_classes = 232

/* arena_t.pa_shard.pac.ecache_dirty; an ecache_t is 19440 bytes, its eset 112 in, lru and npages 9632 and 9640 in; behind
 * that, guarded_eset is another. */
#define ESET_5_3 9656
#define DIRTY_5_3_0 (10648 + 24 + 56)
#define DIRTY_5_3_1 (12288 + 24 + 40)
#define ECACHE(dirty, offset) {(dirty) + (offset), (dirty) + 19440 + (offset), (dirty) + 38880 + (offset)}

#define BINS_5_3 .arena_bin_size = 224, .bin_slabcur = 192, .bin_nonfull = 200, .bin_full = 216

#define LAYOUT_5_3_0 .version = "5.3.0", .major = 5, .leaf_has_state = true, .rtree_root = 120, E_BITS_5_3, EXTENT, \
    .lru_link = 64, .heap_link = 40, .full_link = 40, .arena_mapped = 24 + 152, .arena_internal = 24 + 32, .arena_tcaches = 10392, .arena_index = 78928, .arena_base = 78936, \
    .arena_bins = 78952, BINS_5_3, \
    .arena_lru = ECACHE(DIRTY_5_3_0, 112 + 9632), .arena_npages = ECACHE(DIRTY_5_3_0, 112 + 9640), \
    .arena_mutex = ECACHE(DIRTY_5_3_0, 0), .to_guarded = ESET_5_3, \
    .base_blocks = 160, .base_allocated = 3880, .base_mapped = 3896, .mutex_locked = 104, \
    .ring_link = 0, .ring_arena = 40, .ring_to_tcache = 168, .own_stack = 160, \
    .tcache_bins = 8, .tcache_large = NONE16, .tcache_bin_size = 24, .tcache_bin_stack = 0, .tcache_bin_count = 20, .tcache_bin_full = 18, .tcache_classes = 73, .stack_by_head = true

#define LAYOUT_5_3_1 .version = "5.3.1", .major = 5, .leaf_has_state = true, .page_classes = true, .sampled_in_pages = true, .rtree_root = 120, E_BITS_5_3, EXTENT, \
    .lru_link = 64, .heap_link = 40, .full_link = 40, .arena_mapped = 24 + 168, .arena_internal = 24 + 48, .arena_tcaches = 11976, .arena_index = 80640, .arena_base = 80648, \
    .arena_bins = 80704, BINS_5_3, \
    .arena_lru = ECACHE(DIRTY_5_3_1, 112 + 9632), .arena_npages = ECACHE(DIRTY_5_3_1, 112 + 9640), \
    .arena_mutex = ECACHE(DIRTY_5_3_1, 0), .to_guarded = ESET_5_3, \
    .base_blocks = 160, .base_allocated = 3896, .base_mapped = 3928, .mutex_locked = 64, \
    .ring_link = 0, .ring_arena = 40, .ring_to_tcache = 232, .own_stack = 224, \
    .tcache_bins = 8, .tcache_large = NONE16, .tcache_bin_size = 24, .tcache_bin_stack = 0, .tcache_bin_count = 20, .tcache_bin_full = 18, .tcache_classes = 41, .stack_by_head = true

#define VADDR_48 .lg_vaddr = 48, .configuration = "48-bit addresses"
#define VADDR_57 .lg_vaddr = 57, .configuration = "57-bit addresses"

const struct jemalloc_layout jemalloc_layouts[] = {
    {LAYOUT_5_1, VADDR_48},   {LAYOUT_5_1, VADDR_57},
    {LAYOUT_5_2, VADDR_48},   {LAYOUT_5_2, VADDR_57},
    {LAYOUT_5_3_0, VADDR_48}, {LAYOUT_5_3_0, VADDR_57},
    {LAYOUT_5_3_1, VADDR_48}, {LAYOUT_5_3_1, VADDR_57},
};
/* clang-format on */
const size_t jemalloc_layout_count = sizeof jemalloc_layouts / sizeof *jemalloc_layouts;

/* ---- 3.x, 4.x ---------------------------------------------------------------------------------------- */

#define SHAPE_3(built, entry, bits, bins, bin_size)                                                          \
    {                                                                                                        \
        .version = "3.6.0", .major = 3, .configuration = (built), .arena_tcaches = 120,                      \
        .ring_to_tcache = NONE16, .own_stack = NONE16, .mutex_locked = NONE16, .tcache_bins = 40,            \
        .tcache_large = NONE16, .tcache_bin_size = 32, .tcache_bin_stack = 24, .tcache_bin_count = 16,       \
        .tcache_classes = 36, .lg_chunk = 22, .map = 48, .map_entry = (entry), .map_bits = (bits),           \
        .flag_dirty = 8, .class_shift = 4, .pages_shift = 12, .arena_bins = (bins),                          \
        .arena_bin_size = (bin_size)                                                                         \
    }

#define COUNTS_4_0                                                                                           \
    .arena_mapped = 48, .arena_retained = NONE16, .arena_metadata_mapped = 80,                               \
    .arena_metadata_allocated = 88, .arena_dirty = 232
#define COUNTS_4_2(dirty)                                                                                    \
    .arena_mapped = 96, .arena_retained = 104, .arena_metadata_mapped = 136,                                 \
    .arena_metadata_allocated = 144, .arena_dirty = (dirty)

#define SHAPE_4(name, misc_size, misc_offset_of_run, tcaches, huge_list, huge_next, self, below, bins, ...)  \
    {                                                                                                        \
        .version = (name), .major = 4, .configuration = "", .arena_tcaches = (tcaches),                      \
        .ring_to_tcache = NONE16, .own_stack = NONE16, .mutex_locked = NONE16, .tcache_bins = (bins),        \
        .tcache_large = NONE16, .tcache_bin_size = 32, .tcache_bin_stack = 24, .tcache_bin_count = 16,       \
        .tcache_classes = 41, .stack_below = (below), .arena_index = 0, .lg_chunk = 21, .map = (self),       \
        .map_entry = 8, .map_bits = 0, .flag_dirty = 0x10, .class_shift = 5, .pages_shift = 13,              \
        .misc = (misc_size), .misc_run = (misc_offset_of_run), .chunk_self = 8,                              \
        .chunk_is_arenas = (self) >= 120 ? 34 : 26, .arena_huge = (huge_list), .huge_link = (huge_next),     \
        __VA_ARGS__                                                                                          \
    }

const struct jemalloc_layout jemalloc_chunk_layouts[] = {
    SHAPE_3("", 24, 16, 288, 152),
    SHAPE_3(", built with profiling", 32, 24, 304, 160),
    SHAPE_4("4.5.0", 96, 24, 224, 2088, 80, 120, true, 40, COUNTS_4_2(304)),
    SHAPE_4("4.3.1", 96, 24, 224, 2072, 72, 104, true, 40, COUNTS_4_2(296)),
    SHAPE_4("4.2.1", 96, 24, 224, 2080, 72, 104, true, 40, COUNTS_4_2(296)),
    SHAPE_4("4.1.1", 88, 16, 168, 2016, 72, 104, true, 40, COUNTS_4_0),
    SHAPE_4("4.0.4", 96, 16, 168, 464, 72, 104, false, 32, COUNTS_4_0),
};
const size_t jemalloc_chunk_layout_count = sizeof jemalloc_chunk_layouts / sizeof *jemalloc_chunk_layouts;

/* ---- size classes ------------------------------------------------------------------------------------ */

/* src/sc.c: 8, then multiples of 16 up to 128, then four to each doubling. */
uint64_t jemalloc_class_size(uint32_t index) {
    if (index == 0) {
        return 8;
    }
    if (index <= 8) {
        return 16ull * index;
    }
    if (index >= JEMALLOC_CLASSES) {
        return UINT64_MAX;
    }
    unsigned group = (index - 9) / 4, step = (index - 9) % 4 + 1;
    return (128ull << group) + step * (32ull << group);
}

uint64_t jemalloc_sampled_size(const struct jemalloc_layout *layout, uint32_t class_) {
    uint64_t pages = (jemalloc_class_size(class_) + 4095) & ~4095ull;
    return jemalloc_class_size(layout->sampled_in_pages ? jemalloc_class_of(pages) : JEMALLOC_SMALL_BINS);
}

uint32_t jemalloc_class_of(uint64_t size) {
    uint32_t low = 0, high = JEMALLOC_CLASSES;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (jemalloc_class_size(middle) < size) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}
