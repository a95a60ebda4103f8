/* jemalloc: the layout by the library's own debug info, where it has some: what a build was configured or
 * patched to be counts then, not what its version is known for. What no debug info tells stays as the row of
 * the table has it: where the fields of e_bits begin, for those are macros, and so
 * it is with the bits of 3.x's and 4.x's page maps. */
#include "jemalloc.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define EXTENT_READ_MAX 512u /* jemalloc_at() */
#define CHUNK_HEAD_MAX  512u /* 3.x, 4.x: what no build comes near */
#define MAP_ENTRY_MAX   256u
#define MISC_MAX        512u

/* A member's offset is the sum over "struct.member" steps; a step after '-' is taken off. Several rows may be
 * for one field, of several versions: a version has one of them. */
struct row {
    uint16_t field, width; /* in struct jemalloc_layout */
    const char *path;
};

#define ROW(field, path)                                                                                     \
    { offsetof(struct jemalloc_layout, field), sizeof((struct jemalloc_layout *)NULL)->field, path }
#define TSD            "cant_access_tsd_items_directly_use_a_getter_or_setter_"
#define ECACHE(state)  "arena_s.pa_shard pa_shard_s.pac pac_s.ecache_" state " "
#define EXTENTS(state) "arena_s.extents_" state " extents_s."

static const struct row rows[] = {
    ROW(rtree_root, "rtree_s.root"),
    /* extent_s until 5.2, then edata_s */
    ROW(extent_address, "extent_s.e_addr"),
    ROW(extent_address, "edata_s.e_addr"),
    ROW(extent_size, "extent_s.e_size_esn"),
    ROW(extent_size, "edata_s.e_size_esn"),
    ROW(extent_bitmap, "extent_s.e_slab_data"),
    ROW(extent_bitmap, "edata_s.e_slab_data"),
    ROW(lru_link, "extent_s.ql_link"),
    ROW(lru_link, "edata_s.ql_link_inactive"),
    ROW(heap_link, "extent_s.ph_link"),
    ROW(heap_link, "edata_s.heap_link"),
    ROW(full_link, "extent_s.ql_link"),
    ROW(full_link, "edata_s.ql_link_active"),
    ROW(arena_threads, "arena_s.nthreads"),
    ROW(arena_internal, "arena_s.stats arena_stats_s.internal"),
    ROW(arena_mapped, "arena_s.stats arena_stats_s.mapped"),
    /* 5.3 has both, and this one counts */
    ROW(arena_mapped, "arena_s.stats arena_stats_s.pa_shard_stats pa_shard_stats_s.pac_stats "
                      "pac_stats_s.pac_mapped"),
    ROW(arena_tcaches, "arena_s.tcache_ql"),
    ROW(arena_index, "arena_s.ind"),
    ROW(arena_base, "arena_s.base"),
    ROW(arena_bins, "arena_s.bins"),
    ROW(arena_lru[0], EXTENTS("dirty") "lru"),
    ROW(arena_lru[1], EXTENTS("muzzy") "lru"),
    ROW(arena_lru[2], EXTENTS("retained") "lru"),
    ROW(arena_lru[0], ECACHE("dirty") "ecache_s.eset eset_s.lru"),
    ROW(arena_lru[1], ECACHE("muzzy") "ecache_s.eset eset_s.lru"),
    ROW(arena_lru[2], ECACHE("retained") "ecache_s.eset eset_s.lru"),
    ROW(arena_npages[0], EXTENTS("dirty") "npages"),
    ROW(arena_npages[1], EXTENTS("muzzy") "npages"),
    ROW(arena_npages[2], EXTENTS("retained") "npages"),
    ROW(arena_npages[0], ECACHE("dirty") "ecache_s.eset eset_s.npages"),
    ROW(arena_npages[1], ECACHE("muzzy") "ecache_s.eset eset_s.npages"),
    ROW(arena_npages[2], ECACHE("retained") "ecache_s.eset eset_s.npages"),
    ROW(to_guarded, "ecache_s.guarded_eset -ecache_s.eset"),
    ROW(arena_mutex[0], EXTENTS("dirty") "mtx"),
    ROW(arena_mutex[1], EXTENTS("muzzy") "mtx"),
    ROW(arena_mutex[2], EXTENTS("retained") "mtx"),
    ROW(arena_mutex[0], ECACHE("dirty") "ecache_s.mtx"),
    ROW(arena_mutex[1], ECACHE("muzzy") "ecache_s.mtx"),
    ROW(arena_mutex[2], ECACHE("retained") "ecache_s.mtx"),
    ROW(mutex_locked, "malloc_mutex_s.locked"),
    ROW(base_blocks, "base_s.blocks"),
    ROW(base_allocated, "base_s.allocated"),
    ROW(base_mapped, "base_s.mapped"),
    ROW(bin_slabcur, "bin_s.slabcur"),
    ROW(bin_nonfull, "bin_s.slabs_nonfull"),
    ROW(bin_full, "bin_s.slabs_full"),
    ROW(arena_bin_size, "bin_s."),
    /* The struct with the ring of an arena's tcaches: tcache_s until 5.2, then tcache_slow_s */
    ROW(ring_link, "tcache_s.link"),
    ROW(ring_link, "tcache_slow_s.link"),
    ROW(ring_arena, "tcache_s.arena"),
    ROW(ring_arena, "tcache_slow_s.arena"),
    ROW(ring_to_tcache, "tcache_slow_s.tcache"),
    ROW(own_stack, "tcache_slow_s.dyn_alloc"),
    ROW(own_data, "tsd_s." TSD "arenas_tdata -tsd_s." TSD "tcache"),
    ROW(tcache_self, "tcache_s.cache_bin_array_descriptor cache_bin_array_descriptor_s.bins_small"),
    ROW(tcache_bins, "tcache_s.bins_small"),
    ROW(tcache_bins, "tcache_s.bins"),
    ROW(tcache_large, "tcache_s.bins_large"),
    ROW(tcache_bin_size, "cache_bin_s."),
    ROW(tcache_bin_stack, "cache_bin_s.avail"),
    ROW(tcache_bin_stack, "cache_bin_s.stack_head"),
    ROW(tcache_bin_count, "cache_bin_s.ncached"),
    ROW(tcache_bin_count, "cache_bin_s.low_bits_empty"),
    ROW(tcache_bin_full, "cache_bin_s.low_bits_full"),
};

/* 3.x, 4.x. A field has what its first path that there is leads to, or several of them: a version has one. */
static const struct row chunk_rows[] = {
    ROW(map, "arena_chunk_s.map"),
    ROW(map, "arena_chunk_s.map_bits"),
    ROW(map_entry, "arena_chunk_map_s."),
    ROW(map_entry, "arena_chunk_map_bits_s."),
    ROW(map_bits, "arena_chunk_map_s.bits"),
    ROW(map_bits, "arena_chunk_map_bits_s.bits"),
    ROW(misc, "arena_chunk_map_misc_s."),
    ROW(misc_run, "arena_chunk_map_misc_s.run"),
    ROW(chunk_self, "arena_chunk_s.node extent_node_s.en_addr"),
    ROW(chunk_is_arenas, "arena_chunk_s.node extent_node_s.en_achunk"),
    ROW(arena_bins, "arena_s.bins"),
    ROW(arena_bin_size, "arena_bin_s."),
    ROW(arena_tcaches, "arena_s.tcache_ql"),
    ROW(arena_huge, "arena_s.huge"),
    ROW(huge_link, "extent_node_s.ql_link"),
    ROW(arena_mapped, "arena_s.stats arena_stats_s.mapped"),
    ROW(arena_retained, "arena_s.stats arena_stats_s.retained"),
    ROW(arena_metadata_mapped, "arena_s.stats arena_stats_s.metadata_mapped"),
    ROW(arena_metadata_allocated, "arena_s.stats arena_stats_s.metadata_allocated"),
    ROW(arena_dirty, "arena_s.ndirty"),
    ROW(tcache_bins, "tcache_s.tbins"),
    ROW(tcache_bin_size, "tcache_bin_s."),
    ROW(tcache_bin_stack, "tcache_bin_s.avail"),
    ROW(tcache_bin_count, "tcache_bin_s.ncached"),
};

/* One step, "struct.member"; "struct." is the struct's size. */
static bool step_offset(struct karst_target *target, struct karst_module *module, const char *step,
                        size_t length, int64_t *offset) {
    char text[128];
    uint64_t at, size;
    if (length >= sizeof text) {
        return false;
    }
    memcpy(text, step, length);
    text[length] = '\0';
    char *member = strchr(text, '.');
    if (!member) {
        return false;
    }
    *member++ = '\0';
    if (!karst_module_member(target, module, text, member, &at, &size) || at > UINT32_MAX ||
        size > UINT32_MAX) {
        return false;
    }
    *offset = (int64_t)(*member ? at : size);
    return true;
}

static bool path_offset(struct karst_target *target, struct karst_module *module, const char *path,
                        int64_t *offset) {
    *offset = 0;
    while (*path) {
        bool taken_off = *path == '-';
        int64_t more;
        path += taken_off;
        size_t length = strcspn(path, " ");
        if (!step_offset(target, module, path, length, &more)) {
            return false;
        }
        *offset += taken_off ? -more : more;
        path += length + (path[length] == ' ');
    }
    return true;
}

/* Does value fit the field? Those of 16 bits have no room for more than what the table's are, either. */
static bool set_field(struct jemalloc_layout *layout, const struct row *row, int64_t value) {
    uint8_t *field = (uint8_t *)layout + row->field;
    if (row->field == offsetof(struct jemalloc_layout, own_data)) {
        int16_t offset = (int16_t)value;
        memcpy(field, &offset, sizeof offset);
        return offset == value;
    }
    if (row->width == sizeof(uint16_t)) {
        uint16_t offset = (uint16_t)value;
        memcpy(field, &offset, sizeof offset);
        return offset == value && offset != (JEMALLOC_NOT_THERE & 0xffff);
    }
    uint32_t offset = (uint32_t)value;
    memcpy(field, &offset, sizeof offset);
    return offset == value && offset != JEMALLOC_NOT_THERE;
}

/* Is what is read of structs inside what is read? */
static bool is_sensible(const struct jemalloc_layout *layout) {
    uint32_t extent = layout->extent_bitmap + JEMALLOC_SLAB_BITMAP;
    bool tcaches = layout->tcache_bin_size <= 64 &&
                   layout->tcache_bin_stack + 8u <= layout->tcache_bin_size &&
                   layout->tcache_bin_count + 4u <= layout->tcache_bin_size &&
                   layout->tcache_bin_full + 2u <= layout->tcache_bin_size;
    if (layout->major < 5) {
        return tcaches && layout->map <= CHUNK_HEAD_MAX && layout->map_entry >= 8 &&
               layout->map_entry <= MAP_ENTRY_MAX && layout->map_bits + 8u <= layout->map_entry &&
               layout->misc <= MISC_MAX && layout->misc_run < MISC_MAX;
    }
    return tcaches && extent <= EXTENT_READ_MAX && layout->extent_address + 8u <= extent &&
           layout->extent_size + 8u <= extent;
}

static unsigned apply_rows(struct karst_target *target, struct karst_module *module, const struct row *list,
                           size_t count, struct jemalloc_layout *layout) {
    unsigned told = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t value;
        if (!path_offset(target, module, list[i].path, &value)) {
            continue;
        }
        if (!set_field(layout, &list[i], value)) {
            return 0;
        }
        told++;
    }
    return is_sensible(layout) ? told : 0;
}

unsigned jemalloc_layout_from_debug_info(struct karst_target *target, struct karst_module *module,
                                         struct jemalloc_layout *layout) {
    uint64_t offset, size;
    /* Without these there is no debug info of such a jemalloc, and no need to look for the others. */
    if (layout->major >= 5) {
        return karst_module_member(target, module, "arena_s", "base", &offset, &size)
                   ? apply_rows(target, module, rows, sizeof rows / sizeof *rows, layout)
                   : 0;
    }
    const char *map = layout->major == 3 ? "map" : "map_bits";
    return karst_module_member(target, module, "arena_chunk_s", map, &offset, &size)
               ? apply_rows(target, module, chunk_rows, sizeof chunk_rows / sizeof *chunk_rows, layout)
               : 0;
}
