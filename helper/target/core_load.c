/* Opening a core file: is it one, its notes, and its segments and mapped files merged into mappings and
 * regions. Nothing of what the headers say is believed before it was held against the file's size. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#define NOTES_MAX ((uint64_t)1 << 30)
/* Together with the files of NT_FILE they make fewer than KARST_MAPPINGS_MAX pieces. */
#define SEGMENTS_MAX ((size_t)1 << 21)

/* ---- opening: is it a core? -------------------------------------------------------------------- */

struct magic {
    const char *bytes;
    size_t size;
    const char *kind;
    const char *command;
};

static bool refuse_by_magic(const uint8_t *start, size_t size, const char *path, struct karst_error *error) {
    static const struct magic compressed[] = {
        {"\x28\xb5\x2f\xfd", 4, "zstd", "zstd -d"}, {"\xfd\x37zXZ", 6, "xz", "xz -dk"},
        {"\x04\x22\x4d\x18", 4, "lz4", "lz4 -d"},   {"\x1f\x8b", 2, "gzip", "gzip -dk"},
        {"BZh", 3, "bzip2", "bzip2 -dk"},
    };
    for (size_t i = 0; i < sizeof compressed / sizeof *compressed; i++) {
        if (size >= compressed[i].size && memcmp(start, compressed[i].bytes, compressed[i].size) == 0) {
            return karst_fail(error, KARST_ERROR_FORMAT, "%s is compressed (%s); decompress it first: %s %s",
                              path, compressed[i].kind, compressed[i].command, path);
        }
    }
    if (size >= 8 && (memcmp(start, "KDUMP   ", 8) == 0 || memcmp(start, "makedump", 8) == 0)) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s is a dump of a kernel, not the core of a process; drgn opens it", path);
    }
    return true;
}

static bool check_header(const Elf64_Ehdr *header, const char *path, struct karst_error *error) {
    static const char *const kinds[] = {"an ELF file of no type", "an object file", "a program",
                                        "a program or library"};
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s is a %s-bit %s-endian ELF file; only 64-bit little-endian cores can be read",
                          path, header->e_ident[EI_CLASS] == ELFCLASS32 ? "32" : "64",
                          header->e_ident[EI_DATA] == ELFDATA2MSB ? "big" : "little");
    }
    if (header->e_type != ET_CORE) {
        return karst_fail(
            error, KARST_ERROR_FORMAT, "%s is %s, not a core file%s", path,
            header->e_type < sizeof kinds / sizeof *kinds ? kinds[header->e_type]
                                                          : "an ELF file of unknown type",
            header->e_type == ET_EXEC || header->e_type == ET_DYN ? " (-e names the program of a core)" : "");
    }
    if (header->e_machine != EM_X86_64 && header->e_machine != EM_AARCH64) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s is a core of ELF machine %u; only x86-64 and aarch64 are known", path,
                          header->e_machine);
    }
    if (header->e_phentsize != sizeof(Elf64_Phdr)) {
        return karst_fail(error, KARST_ERROR_FORMAT, "%s is damaged: its program headers are %u bytes each",
                          path, header->e_phentsize);
    }
    return true;
}

bool core_map_file(struct core *core, const char *path, struct karst_error *error) {
    core->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (core->descriptor < 0) {
        return karst_fail_errno(error, errno, "cannot open %s", path);
    }
    struct stat status;
    if (fstat(core->descriptor, &status) != 0) {
        return karst_fail_errno(error, errno, "cannot look at %s", path);
    }
    if (!S_ISREG(status.st_mode)) {
        return karst_fail(error, KARST_ERROR_FORMAT, "%s is %s, not a core file", path,
                          S_ISDIR(status.st_mode) ? "a directory" : "no regular file");
    }
    if (status.st_size == 0) {
        return karst_fail(error, KARST_ERROR_FORMAT,
                          "%s is empty: was the core limited (ulimit -c) or the disk full?", path);
    }
    struct statfs system;
    core->looking_fills_holes = fstatfs(core->descriptor, &system) == 0 &&
                                (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
    core->size = (uint64_t)status.st_size;
    core->written = status.st_mtim;
    void *data = core->size > SIZE_MAX ? MAP_FAILED
                                       : mmap(NULL, (size_t)core->size, PROT_READ,
                                              MAP_PRIVATE | MAP_NORESERVE, core->descriptor, 0);
    if (data == MAP_FAILED) {
        return karst_fail_errno(error, errno, "cannot map %s", path);
    }
    core->data = data;
    if (!refuse_by_magic(core->data, (size_t)core->size, path, error)) {
        return false;
    }
    if (core->size < SELFMAG || memcmp(core->data, ELFMAG, SELFMAG) != 0) {
        return karst_fail(error, KARST_ERROR_FORMAT, "%s is not a core file: it is no ELF file at all", path);
    }
    if (core->size < sizeof(Elf64_Ehdr)) {
        return karst_fail(error, KARST_ERROR_FORMAT, "%s is cut off within its first header", path);
    }
    return check_header((const Elf64_Ehdr *)(const void *)core->data, path, error);
}

/* ---- opening: segments ------------------------------------------------------------------------- */

/* The program headers that are there; *missing: how many more there should be. */
static size_t find_headers(const struct core *core, uint64_t *offset, uint64_t *missing) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)(const void *)core->data;
    uint64_t count = header->e_phnum;
    if (count == PN_XNUM && header->e_shoff <= core->size &&
        core->size - header->e_shoff >= sizeof(Elf64_Shdr)) {
        Elf64_Shdr section;
        memcpy(&section, core->data + header->e_shoff, sizeof section);
        count = section.sh_info;
    }
    *offset = header->e_phoff;
    uint64_t room = *offset <= core->size ? (core->size - *offset) / sizeof(Elf64_Phdr) : 0;
    room = room < SEGMENTS_MAX ? room : SEGMENTS_MAX;
    *missing = count > room ? count - room : 0;
    return (size_t)(count < room ? count : room);
}

static Elf64_Phdr header_at(const struct core *core, uint64_t offset, size_t index) {
    Elf64_Phdr header;
    memcpy(&header, core->data + offset + index * sizeof header, sizeof header);
    return header;
}

static bool read_all_notes(struct core *core, uint64_t offset, size_t count, struct karst_error *error) {
    uint64_t budget = NOTES_MAX;
    for (size_t i = 0; i < count && budget > 0; i++) {
        Elf64_Phdr header = header_at(core, offset, i);
        if (header.p_type != PT_NOTE || header.p_offset >= core->size) {
            continue;
        }
        uint64_t size = core->size - header.p_offset;
        size = size < header.p_filesz ? size : header.p_filesz;
        size = size < budget ? size : budget;
        budget -= size;
        if (!core_read_notes(core, core->data + header.p_offset, (size_t)size)) {
            return karst_fail_memory(error);
        }
    }
    return true;
}

/* A PT_LOAD as it will be used: address range checked, disjoint from the others. */
struct segment {
    uint64_t start, end;
    uint64_t offset;
    uint64_t saved; /* bytes from start on that the headers say are in the core */
    uint32_t permissions;
    uint32_t order;
};

static int compare_segments(const void *a, const void *b) {
    const struct segment *x = a, *y = b;
    if (x->start != y->start) {
        return x->start < y->start ? -1 : 1;
    }
    return x->order < y->order ? -1 : x->order > y->order;
}

/* Makes sorted segments disjoint; returns how many were cut or dropped. What the first one has saved
 * counts; where it only claims to go on without contents, the next one does. */
static size_t make_disjoint(struct segment *segments, size_t *count) {
    size_t kept = 0, cut = 0;
    for (size_t i = 0; i < *count; i++) {
        struct segment segment = segments[i];
        struct segment *last = kept > 0 ? &segments[kept - 1] : NULL;
        if (last && segment.start < last->end) {
            cut++;
            if (segment.start - last->start >= last->saved && segment.start > last->start) {
                last->end = segment.start;
            } else if (segment.end <= last->end) {
                continue;
            } else {
                uint64_t skip = last->end - segment.start;
                segment.start = last->end;
                segment.offset += skip;
                segment.saved = segment.saved > skip ? segment.saved - skip : 0;
            }
        }
        segments[kept++] = segment;
    }
    *count = kept;
    return cut;
}

/* The PT_LOADs, sorted and disjoint. NULL with *count 0: none; out of memory sets *failed. */
static struct segment *load_segments(struct core *core, uint64_t offset, size_t headers, size_t *count,
                                     bool *failed) {
    *count = 0;
    struct segment *segments = calloc(headers ? headers : 1, sizeof *segments);
    if (!segments) {
        *failed = true;
        return NULL;
    }
    size_t damaged = 0;
    bool sorted = true;
    for (size_t i = 0; i < headers; i++) {
        Elf64_Phdr header = header_at(core, offset, i);
        uint64_t memory = header.p_memsz;
        if (header.p_type != PT_LOAD || (memory == 0 && header.p_filesz == 0)) {
            continue;
        }
        if (memory > UINT64_MAX - header.p_vaddr || header.p_filesz > memory ||
            header.p_filesz > UINT64_MAX - header.p_offset) {
            damaged++;
            continue;
        }
        struct segment *segment = &segments[*count];
        *segment = (struct segment){header.p_vaddr,
                                    header.p_vaddr + memory,
                                    header.p_offset,
                                    header.p_filesz,
                                    karst_segment_permissions(header.p_flags),
                                    (uint32_t)i};
        sorted &= *count == 0 || segment[-1].start <= segment->start;
        (*count)++;
    }
    if (!sorted) {
        qsort(segments, *count, sizeof *segments, compare_segments);
    }
    if (damaged) {
        karst_target_remark(&core->target,
                            "%zu segments of the core are damaged (impossible sizes): left out", damaged);
    }
    size_t cut = make_disjoint(segments, count);
    if (cut) {
        karst_target_remark(&core->target, "%zu segments of the core overlap others: the first one counts",
                            cut);
    }
    return segments;
}

/* ---- opening: mappings and regions ------------------------------------------------------------- */

static bool add_region(struct core *core, uint64_t start, uint64_t end, uint64_t offset,
                       enum core_region_kind kind) {
    if (start >= end) {
        return true;
    }
    size_t count = core->region_count;
    if ((count & (count - 1)) == 0) {
        struct core_region *regions = realloc(core->regions, (count ? 2 * count : 1) * sizeof *regions);
        if (!regions) {
            return false;
        }
        core->regions = regions;
    }
    core->regions[core->region_count++] = (struct core_region){start, end, offset, kind};
    return true;
}

/* Adds [start, end), which is part of segment (NULL: of none) and of file (NULL: of none). */
static bool add_piece(struct core *core, uint64_t start, uint64_t end, const struct segment *segment,
                      const struct core_file *file) {
    struct karst_mapping *mapping = karst_target_add_mapping(&core->target);
    if (!mapping) {
        return false;
    }
    mapping->start = start;
    mapping->end = end;
    mapping->permissions = segment ? segment->permissions : KARST_MAPPING_UNKNOWN;
    uint64_t file_offset = 0;
    if (file) {
        mapping->name = file->path;
        mapping->file_offset = file_offset = file->offset + (start - file->start);
    }
    uint64_t saved_end = start, present_end = start;
    if (segment) {
        uint64_t saved = segment->start + segment->saved;
        uint64_t room = segment->offset < core->size ? core->size - segment->offset : 0;
        uint64_t present = segment->start + (room < segment->saved ? room : segment->saved);
        saved_end = saved < start ? start : saved < end ? saved : end;
        present_end = present < start ? start : present < end ? present : end;
    }
    bool from_file = file && !(mapping->permissions & KARST_MAPPING_WRITE);
    uint64_t core_offset = segment ? segment->offset + (start - segment->start) : 0;
    core->anonymous_saved |= present_end > start && karst_mapping_is_anonymous(mapping);
    return add_region(core, start, present_end, core_offset, CORE_REGION_SAVED) &&
           add_region(core, present_end, saved_end, file_offset + (present_end - start),
                      from_file ? CORE_REGION_FILE : CORE_REGION_CUT) &&
           add_region(core, saved_end, end, file_offset + (saved_end - start),
                      from_file ? CORE_REGION_FILE : CORE_REGION_OMITTED);
}

static int compare_files(const void *a, const void *b) {
    const struct core_file *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static void sort_files(struct core *core) {
    size_t kept = 0;
    uint64_t end = 0;
    qsort(core->files, core->file_count, sizeof *core->files, compare_files);
    for (size_t i = 0; i < core->file_count; i++) {
        struct core_file file = core->files[i];
        if (file.start >= end) {
            end = file.end;
            core->files[kept++] = file;
        }
    }
    core->file_count = kept;
}

/* Merges segments and files: every change of either begins a new mapping. */
static bool merge(struct core *core, const struct segment *segments, size_t segment_count) {
    size_t s = 0, f = 0;
    uint64_t at = 0;
    while (s < segment_count || f < core->file_count) {
        const struct segment *segment = s < segment_count ? &segments[s] : NULL;
        const struct core_file *file = f < core->file_count ? &core->files[f] : NULL;
        uint64_t next_segment = segment ? (segment->start > at ? segment->start : at) : UINT64_MAX;
        uint64_t next_file = file ? (file->start > at ? file->start : at) : UINT64_MAX;
        at = next_segment < next_file ? next_segment : next_file;
        bool in_segment = segment && next_segment == at, in_file = file && next_file == at;
        uint64_t end = in_segment ? segment->end : UINT64_MAX;
        end = in_file && file->end < end ? file->end : end;
        end = segment && !in_segment && segment->start < end ? segment->start : end;
        end = file && !in_file && file->start < end ? file->start : end;
        if (!add_piece(core, at, end, in_segment ? segment : NULL, in_file ? file : NULL)) {
            return false;
        }
        at = end;
        s += in_segment && at >= segment->end;
        f += in_file && at >= file->end;
    }
    return true;
}

/* Says what the file lost by being cut off. */
static void remark_cut(struct core *core, const struct segment *segments, size_t count, uint64_t headers) {
    uint64_t missing = 0, whole = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t end = segments[i].offset + segments[i].saved;
        uint64_t room = segments[i].offset < core->size ? core->size - segments[i].offset : 0;
        missing += segments[i].saved > room ? segments[i].saved - room : 0;
        whole = end > whole ? end : whole;
    }
    char missing_text[24], size_text[24], whole_text[24];
    if (headers > 0) {
        core->target.missing_memory = true;
        karst_target_remark(&core->target, "the core is cut off: %llu of its segments are not even listed",
                            (unsigned long long)headers);
    }
    if (missing > 0) {
        core->target.missing_memory = true;
        karst_target_remark(&core->target,
                            "the core is cut off: %s of its memory are missing (the file has %s of %s)",
                            karst_rounded_size(missing, missing_text),
                            karst_rounded_size(core->size, size_text), karst_rounded_size(whole, whole_text));
    }
}

bool core_load(struct core *core, const char *path, struct karst_error *error) {
    struct karst_target *target = &core->target;
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)(const void *)core->data;
    uint64_t offset, missing;
    size_t headers = find_headers(core, &offset, &missing), count;
    target->machine = header->e_machine;
    /* The kernel writes section headers only for PN_XNUM; BFD, and so gcore, always does. */
    core->by_debugger = header->e_shoff != 0 && header->e_phnum != PN_XNUM;
    if (headers == 0) {
        return karst_fail(error, KARST_ERROR_FORMAT, "%s is cut off or damaged: it has no program headers",
                          path);
    }
    if (!read_all_notes(core, offset, headers, error)) {
        return false;
    }
    if (core->kernel_dump) {
        return karst_fail(error, KARST_ERROR_UNSUPPORTED,
                          "%s is a dump of a kernel, not the core of a process; drgn opens it", path);
    }
    if (core->auxv_page_size >= 4096 && core->auxv_page_size <= 65536 &&
        (core->auxv_page_size & (core->auxv_page_size - 1)) == 0) {
        target->page_size = core->auxv_page_size;
    }
    bool failed = false;
    struct segment *segments = load_segments(core, offset, headers, &count, &failed);
    if (failed) {
        return karst_fail_memory(error);
    }
    if (core->file_count > 0) {
        sort_files(core);
    }
    bool merged = merge(core, segments, count);
    remark_cut(core, segments, count, missing);
    free(segments);
    return merged || karst_fail_memory(error);
}
