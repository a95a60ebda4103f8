/* Layouts of 64-bit glibc's malloc by version, read from the debug info of Debian's 2.31, 2.36, 2.41,
 * 2.43 and 2.44 and from the sources of the versions between (malloc/malloc.c, malloc/arena.c). */
#include "glibc.h"

#include <stdlib.h>

#define STATE_WITH_FASTBINS                                                                                  \
    .state_size = 2200, .state_mutex = 0, .state_flags = 4, .state_fastbins = 16, .state_top = 96,           \
    .state_last_remainder = 104, .state_bins = 112, .state_next = 2160, .state_attached = 2176,              \
    .state_system_mem = 2184, .state_max_system_mem = 2192

#define PAR_UNTIL_2_34                                                                                       \
    .par_size = 112, .par_top_pad = 8, .par_mmap_threshold = 16, .par_arena_test = 24, .par_n_mmaps = 40,    \
    .par_n_mmaps_max = 44, .par_mmapped_mem = 56, .par_max_mmapped_mem = 64, .par_sbrk_base = 72,            \
    .par_tcache_bins = 80, .par_tcache_max_bytes = 88, .par_tcache_count = 96, .heap_info_size = 32

#define PAR_SINCE_2_35                                                                                       \
    .par_size = 136, .par_top_pad = 8, .par_mmap_threshold = 16, .par_arena_test = 24, .par_n_mmaps = 60,    \
    .par_n_mmaps_max = 64, .par_mmapped_mem = 80, .par_max_mmapped_mem = 88, .par_sbrk_base = 96,            \
    .par_tcache_bins = 104, .par_tcache_max_bytes = 112, .par_tcache_count = 120, .heap_info_size = 48

#define TCACHE_UNTIL_2_41 .tcache_size = 640, .tcache_bins = 64, .tcache_entries = 128
#define TCACHE_SINCE_2_42                                                                                    \
    .tcache_size = 760, .tcache_bins = 76, .tcache_entries = 152, .tcache_counts_slots = true

const struct glibc_layout glibc_layouts[] = {
    {.first = 30, .last = 31, STATE_WITH_FASTBINS, PAR_UNTIL_2_34, TCACHE_UNTIL_2_41},
    {.first = 32, .last = 33, STATE_WITH_FASTBINS, PAR_UNTIL_2_34, TCACHE_UNTIL_2_41, .safe_linking = true},
    {.first = 34,
     .last = 34,
     STATE_WITH_FASTBINS,
     PAR_UNTIL_2_34,
     TCACHE_UNTIL_2_41,
     .safe_linking = true,
     .tcache_key_random = true},
    {.first = 35,
     .last = 41,
     STATE_WITH_FASTBINS,
     PAR_SINCE_2_35,
     TCACHE_UNTIL_2_41,
     .safe_linking = true,
     .tcache_key_random = true},
    {.first = 42,
     .last = 42,
     STATE_WITH_FASTBINS,
     PAR_SINCE_2_35,
     TCACHE_SINCE_2_42,
     .safe_linking = true,
     .tcache_key_random = true},
    {.first = 43,
     .last = 44,
     .state_size = 2112,
     .state_mutex = 0,
     .state_flags = 4,
     .state_fastbins = 0,
     .state_top = 8,
     .state_last_remainder = 16,
     .state_bins = 24,
     .state_next = 2072,
     .state_attached = 2088,
     .state_system_mem = 2096,
     .state_max_system_mem = 2104,
     .par_size = 136, /* 2.43 has one member more, tcache_unsorted_limit */
     .par_top_pad = 8,
     .par_mmap_threshold = 16,
     .par_arena_test = 24,
     .par_n_mmaps = 68,
     .par_n_mmaps_max = 72,
     .par_mmapped_mem = 88,
     .par_max_mmapped_mem = 96,
     .par_sbrk_base = 104,
     .par_tcache_bins = 112,
     .par_tcache_max_bytes = 120,
     .par_tcache_count = 128,
     .heap_info_size = 48,
     TCACHE_SINCE_2_42,
     .safe_linking = true,
     .tcache_key_random = true,
     .mapped_size_excludes_header = true},
};
const size_t glibc_layout_count = sizeof glibc_layouts / sizeof *glibc_layouts;

const struct glibc_layout *glibc_layout_for(unsigned minor) {
    for (size_t i = 0; i < glibc_layout_count; i++) {
        if (minor >= glibc_layouts[i].first && minor <= glibc_layouts[i].last) {
            return &glibc_layouts[i];
        }
    }
    return NULL;
}

unsigned glibc_layout_from_debug_info(struct karst_target *target, struct karst_module *module,
                                      struct glibc_layout *layout) {
    const struct {
        const char *type, *member;
        uint16_t *field;
    } members[] = {
        {"malloc_state", "flags", &layout->state_flags},
        {"malloc_state", "fastbinsY", &layout->state_fastbins},
        {"malloc_state", "top", &layout->state_top},
        {"malloc_state", "last_remainder", &layout->state_last_remainder},
        {"malloc_state", "bins", &layout->state_bins},
        {"malloc_state", "next", &layout->state_next},
        {"malloc_state", "attached_threads", &layout->state_attached},
        {"malloc_state", "system_mem", &layout->state_system_mem},
        {"malloc_state", "max_system_mem", &layout->state_max_system_mem},
        {"malloc_par", "top_pad", &layout->par_top_pad},
        {"malloc_par", "mmap_threshold", &layout->par_mmap_threshold},
        {"malloc_par", "arena_test", &layout->par_arena_test},
        {"malloc_par", "n_mmaps", &layout->par_n_mmaps},
        {"malloc_par", "n_mmaps_max", &layout->par_n_mmaps_max},
        {"malloc_par", "mmapped_mem", &layout->par_mmapped_mem},
        {"malloc_par", "max_mmapped_mem", &layout->par_max_mmapped_mem},
        {"malloc_par", "sbrk_base", &layout->par_sbrk_base},
        {"malloc_par", "tcache_max_bytes", &layout->par_tcache_max_bytes},
        {"malloc_par", "tcache_count", &layout->par_tcache_count},
        {"tcache_perthread_struct", "entries", &layout->tcache_entries},
    };
    unsigned told = 0;
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        uint64_t offset, size;
        if (karst_module_member(target, module, members[i].type, members[i].member, &offset, &size) &&
            offset < 4096) {
            *members[i].field = (uint16_t)offset;
            told++;
        }
    }
    return told;
}

unsigned glibc_bin_index(uint64_t size) {
    if (size < 1024) {
        return (unsigned)(size >> 4);
    }
    if (size >> 6 <= 48) {
        return 48 + (unsigned)(size >> 6);
    }
    if (size >> 9 <= 20) {
        return 91 + (unsigned)(size >> 9);
    }
    if (size >> 12 <= 10) {
        return 110 + (unsigned)(size >> 12);
    }
    if (size >> 15 <= 4) {
        return 119 + (unsigned)(size >> 15);
    }
    if (size >> 18 <= 2) {
        return 124 + (unsigned)(size >> 18);
    }
    return 126;
}

uint64_t glibc_bin_smallest(unsigned index) {
    if (index >= GLIBC_BINS) {
        return UINT64_MAX;
    }
    /* The index never falls as the size grows, so the first size of a bin can be searched for. */
    uint64_t low = GLIBC_MIN_CHUNK / GLIBC_ALIGN, high = (1u << 20) / GLIBC_ALIGN;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (glibc_bin_index(middle * GLIBC_ALIGN) >= index) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low * GLIBC_ALIGN;
}

unsigned glibc_tcache_index(const struct glibc_layout *layout, uint64_t size) {
    uint64_t index = (size - GLIBC_MIN_CHUNK) / GLIBC_ALIGN;
    if (index < GLIBC_TCACHE_SMALL_BINS || layout->tcache_bins == GLIBC_TCACHE_SMALL_BINS) {
        return index > UINT16_MAX ? UINT16_MAX : (unsigned)index;
    }
    /* 2.42 and later, large_csize2tidx(): one bin for each power of two above 1040. */
    return GLIBC_TCACHE_SMALL_BINS + (unsigned)(__builtin_clzll(1040) - __builtin_clzll(size));
}

void glibc_tcache_range(const struct glibc_layout *layout, unsigned index, uint64_t *smallest,
                        uint64_t *largest) {
    if (index < GLIBC_TCACHE_SMALL_BINS || layout->tcache_bins == GLIBC_TCACHE_SMALL_BINS) {
        *smallest = *largest = GLIBC_MIN_CHUNK + (uint64_t)index * GLIBC_ALIGN;
        return;
    }
    unsigned power = index - GLIBC_TCACHE_SMALL_BINS + 10;
    *smallest = power == 10 ? 1040 + GLIBC_ALIGN : 1ull << power;
    *largest = (2ull << power) - GLIBC_ALIGN;
}
