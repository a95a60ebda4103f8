/* Core files: read in place, whatever their size; nothing here is proportional to it.
 *
 * Residency: the kernel leaves pages that were never touched as holes in the file (they read as zeros,
 * which is what the program would have seen), so SEEK_DATA/SEEK_HOLE tell which pages were there; pages
 * that were swapped out count as there, dumping fetches them. A copy by a tool that fills holes loses
 * that: such a file has no hole at all, while a core by the kernel has some in practice always (the
 * stack's mapping is larger than what was used). So a file without a hole can't tell. Neither can one by
 * gcore, which writes zeros for what it could not read, or makes holes of whatever is zero (GDB 15). A tool
 * that makes holes of zeros in a core by the kernel (systemd-coredump, cp --sparse=always) goes unnoticed:
 * pages that were touched and hold zeros then count as not there.
 *
 * In tmpfs and ramfs a look at a hole through a mapping makes a page there: that would take as much memory as
 * the core says the process had, and the holes would be gone. Cores there are read by system calls alone. */
#include "core.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- reading ----------------------------------------------------------------------------------- */

/* The first region that ends after address, region_count: none. */
static size_t region_after(const struct core *core, uint64_t address) {
    size_t low = 0, high = core->region_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (core->regions[middle].end > address) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static const struct core_region *region_at(struct core *core, uint64_t address) {
    if (core->last_region < core->region_count) {
        const struct core_region *last = &core->regions[core->last_region];
        if (address >= last->start && address < last->end) {
            return last;
        }
    }
    size_t found = region_after(core, address);
    if (found >= core->region_count || core->regions[found].start > address) {
        return NULL;
    }
    core->last_region = found;
    return &core->regions[found];
}

/* Where in the mapped core, or in the file of a module, the bytes at address are, and how many follow; NULL:
 * nowhere. */
static const uint8_t *locate(struct core *core, uint64_t address, size_t *size) {
    struct karst_target *target = &core->target;
    const struct core_region *region = region_at(core, address);
    if (!region) {
        return NULL;
    }
    uint64_t skip = address - region->start;
    if (region->kind == CORE_REGION_SAVED) {
        *size = (size_t)(region->end - address);
        return core->data + region->offset + skip;
    }
    if (region->kind != CORE_REGION_FILE) {
        return NULL;
    }
    struct karst_module *module = karst_target_module(target, region->start);
    const struct karst_elf_file *file = module ? karst_module_file(target, module) : NULL;
    if (!file || region->offset + skip >= file->size) {
        return NULL;
    }
    uint64_t left = file->size - (region->offset + skip);
    *size = (size_t)(region->end - address < left ? region->end - address : left);
    return file->data + region->offset + skip;
}

static bool is_in_core(const struct core *core, const uint8_t *bytes) {
    return bytes >= core->data && bytes < core->data + core->size;
}

static const uint8_t *core_view(struct karst_target *target, uint64_t address, size_t *size) {
    struct core *core = (struct core *)target;
    const uint8_t *bytes = locate(core, address, size);
    return bytes && core->looking_fills_holes && is_in_core(core, bytes) ? NULL : bytes;
}

/* Large pieces are copied by the kernel, which does without a page fault for each 64 KiB. */
#define COPY_BY_SYSTEM_CALL 16384

static size_t copy_saved(struct core *core, const uint8_t *from, uint8_t *to, size_t size,
                         bool by_system_call) {
    if (!by_system_call) {
        memcpy(to, from, size);
        return size;
    }
    size_t done = 0;
    while (done < size) {
        ssize_t got =
            pread(core->descriptor, to + done, size - done, (off_t)(from - core->data) + (off_t)done);
        if (got <= 0 && !(got < 0 && errno == EINTR)) {
            core->target.read_error = got < 0 ? errno : ENODATA;
            break;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return done;
}

static size_t read_core(struct karst_target *target, uint64_t address, void *buffer, size_t size,
                        bool by_system_call) {
    struct core *core = (struct core *)target;
    size_t done = 0;
    while (done < size) {
        size_t there = 0;
        const uint8_t *bytes = locate(core, address + done, &there);
        if (!bytes) {
            break;
        }
        size_t piece = there < size - done ? there : size - done, copied = piece;
        if (is_in_core(core, bytes)) {
            copied = copy_saved(core, bytes, (uint8_t *)buffer + done, piece,
                                by_system_call || core->looking_fills_holes || piece >= COPY_BY_SYSTEM_CALL);
        } else {
            memcpy((uint8_t *)buffer + done, bytes, piece);
        }
        done += copied;
        if (copied < piece) {
            break;
        }
    }
    return done;
}

static size_t core_read(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    return read_core(target, address, buffer, size, false);
}

static size_t core_peek(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    return read_core(target, address, buffer, size, true);
}

/* To the end of the region, or of the gap between two. */
static uint64_t core_missing(struct karst_target *target, uint64_t address) {
    struct core *core = (struct core *)target;
    size_t size, next = region_after(core, address);
    if (locate(core, address, &size)) {
        return 0;
    }
    if (next >= core->region_count) {
        return UINT64_MAX - address;
    }
    const struct core_region *region = &core->regions[next];
    return (region->start > address ? region->start : region->end) - address;
}

/* Moves the cached extent to the one that holds offset of the file; false: can't be told. */
static bool seek_extent(struct core *core, uint64_t offset) {
    if (offset >= core->extent_start && offset < core->extent_end) {
        return true;
    }
    off_t data = lseek(core->descriptor, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno != ENXIO) {
        return false;
    }
    core->extent_start = offset;
    core->extent_is_data = data == (off_t)offset;
    if (core->extent_is_data) {
        off_t hole = lseek(core->descriptor, (off_t)offset, SEEK_HOLE);
        core->extent_end = hole > (off_t)offset ? (uint64_t)hole : core->size;
    } else {
        core->extent_end = data > (off_t)offset ? (uint64_t)data : core->size;
    }
    return core->extent_end > offset;
}

static uint64_t resident_in_file(struct core *core, uint64_t start, uint64_t end) {
    uint64_t resident = 0;
    while (start < end) {
        if (!seek_extent(core, start)) {
            return UINT64_MAX;
        }
        uint64_t to = core->extent_end < end ? core->extent_end : end;
        resident += core->extent_is_data ? to - start : 0;
        start = to;
    }
    return resident;
}

static uint64_t core_untouched(struct karst_target *target, uint64_t address, uint64_t end) {
    struct core *core = (struct core *)target;
    const struct core_region *region = region_at(core, address);
    if (!core->residency_known || !region) {
        return 0;
    }
    end = region->end < end ? region->end : end;
    if (region->kind == CORE_REGION_OMITTED) {
        return core->anonymous_saved ? end - address : 0;
    }
    uint64_t offset = region->offset + (address - region->start);
    if (region->kind != CORE_REGION_SAVED || !seek_extent(core, offset) || core->extent_is_data) {
        return 0;
    }
    uint64_t hole = core->extent_end - offset;
    return hole < end - address ? hole : end - address;
}

static uint64_t core_resident(struct karst_target *target, uint64_t start, uint64_t end) {
    struct core *core = (struct core *)target;
    uint64_t resident = 0;
    if (!core->residency_known) {
        return UINT64_MAX;
    }
    for (size_t i = region_after(core, start); i < core->region_count; i++) {
        const struct core_region *region = &core->regions[i];
        if (region->start >= end) {
            break;
        }
        uint64_t from = start > region->start ? start : region->start;
        uint64_t to = end < region->end ? end : region->end;
        if (region->kind == CORE_REGION_SAVED) {
            uint64_t bytes = resident_in_file(core, region->offset + (from - region->start),
                                              region->offset + (to - region->start));
            if (bytes == UINT64_MAX) {
                return UINT64_MAX;
            }
            resident += bytes;
        } else if (region->kind != CORE_REGION_OMITTED || !core->anonymous_saved) {
            return UINT64_MAX;
        }
        /* The kernel leaves out what was never touched: not resident. */
    }
    return resident;
}

static void core_close(struct karst_target *target) {
    struct core *core = (struct core *)target;
    karst_target_free_parts(target);
    free(core->regions);
    free(core->files);
    if (core->data) {
        munmap((void *)core->data, (size_t)core->size);
    }
    if (core->descriptor >= 0) {
        close(core->descriptor);
    }
    free(core);
}

static bool core_unchanged(struct karst_target *target) {
    const struct core *core = (const struct core *)target;
    struct stat now;
    return fstat(core->descriptor, &now) == 0 && (uint64_t)now.st_size == core->size &&
           now.st_mtim.tv_sec == core->written.tv_sec && now.st_mtim.tv_nsec == core->written.tv_nsec;
}

static const struct karst_target_ops core_ops = {.read = core_read,
                                                 .peek = core_peek,
                                                 .view = core_view,
                                                 .resident = core_resident,
                                                 .untouched = core_untouched,
                                                 .missing = core_missing,
                                                 .unchanged = core_unchanged,
                                                 .close = core_close};

/* ---- opening: names ---------------------------------------------------------------------------- */

static struct karst_mapping *mapping_at(struct core *core, uint64_t address) {
    return (struct karst_mapping *)karst_target_mapping(&core->target, address);
}

static void name_stack(struct core *core) {
    const struct karst_target *target = &core->target;
    uint64_t inside[3] = {core->auxv_execfn, core->auxv_random, 0};
    for (size_t i = 0; i < target->thread_count; i++) {
        if (target->threads[i].tid == target->pid) {
            inside[2] = target->threads[i].stack_pointer;
            break;
        }
    }
    for (size_t i = 0; i < 3; i++) {
        struct karst_mapping *mapping = inside[i] ? mapping_at(core, inside[i]) : NULL;
        if (mapping && !mapping->name) {
            mapping->name = "[stack]";
            return;
        }
    }
}

/* [vvar] is the kernel's data before [vdso]: what a core has of it is not what was there. */
static void name_vdso(struct core *core) {
    struct karst_mapping *vdso = core->auxv_vdso ? mapping_at(core, core->auxv_vdso) : NULL;
    if (!vdso || vdso->name) {
        return;
    }
    vdso->name = "[vdso]";
    struct karst_mapping *first = core->target.mappings;
    for (struct karst_mapping *before = vdso;
         before > first && before[-1].end == before->start && !before[-1].name &&
         before[-1].permissions == KARST_MAPPING_READ;
         before--) {
        before[-1].name = "[vvar]";
        for (size_t i = region_after(core, before[-1].start);
             i < core->region_count && core->regions[i].start < before[-1].end; i++) {
            core->regions[i].kind = CORE_REGION_OMITTED;
        }
    }
}

static void name_others(struct core *core) {
    struct karst_mapping *vsyscall = mapping_at(core, 0xffffffffff600000u);
    if (core->target.machine == EM_X86_64 && vsyscall && !vsyscall->name) {
        vsyscall->name = "[vsyscall]";
    }
}

static bool find_executable(struct core *core, const struct karst_options *options,
                            struct karst_error *error) {
    struct karst_target *target = &core->target;
    uint64_t inside[2] = {core->auxv_phdr, core->auxv_entry};
    for (size_t i = 0; i < 2 && !target->executable_module; i++) {
        target->executable_module = inside[i] ? karst_target_module(target, inside[i]) : NULL;
    }
    if (target->executable_module) {
        target->executable = strdup(target->executable_module->path);
        if (!target->executable) {
            return karst_fail_memory(error);
        }
    }
    if (!options || !options->executable) {
        return true;
    }
    if (access(options->executable, R_OK) != 0) {
        return karst_fail_errno(error, errno, "cannot read the executable %s", options->executable);
    }
    if (!target->executable_module) {
        karst_target_remark(target, "the core does not tell its executable: %s is not used",
                            options->executable);
        return true;
    }
    karst_module_file(target, target->executable_module);
    return true;
}

/* The kernel tells the name of the first thread only. */
static void name_thread(struct core *core) {
    struct karst_target *target = &core->target;
    for (size_t i = 0; i < target->thread_count; i++) {
        struct karst_thread *thread = &target->threads[i];
        if (thread->tid == target->pid) {
            memcpy(thread->name, core->command, sizeof thread->name - 1);
        }
    }
}

/* A name for people: the executable's, else the command's. */
static bool name_core(struct core *core, struct karst_error *error) {
    struct karst_target *target = &core->target;
    const char *who = target->executable ? karst_base_name(target->executable)
                      : core->command[0] ? core->command
                                         : "an unknown program";
    int length = target->pid > 0
                     ? asprintf(&target->name, "core of %s (pid %lld)", who, (long long)target->pid)
                     : asprintf(&target->name, "core of %s", who);
    if (length < 0) {
        target->name = NULL;
        return karst_fail_memory(error);
    }
    return true;
}

/* ---- opening ----------------------------------------------------------------------------------- */

static void find_residency(struct core *core) {
    off_t hole = lseek(core->descriptor, 0, SEEK_HOLE);
    core->residency_known = !core->by_debugger && hole >= 0 && (uint64_t)hole < core->size;
}

static void remark_contents(struct core *core) {
    struct karst_target *target = &core->target;
    if (core->notes_damaged) {
        karst_target_remark(target,
                            "the core's notes are damaged: threads or names of mappings may be missing");
    }
    if (target->thread_count == 0) {
        karst_target_remark(target, "the core has no threads: caches of threads may be missing");
    }
    if (!core->files) {
        karst_target_remark(target, "the core does not name its mapped files (no NT_FILE note)");
    }
    if (!core->anonymous_saved) {
        target->missing_memory = true;
        karst_target_remark(target,
                            "the core holds no private memory at all: see coredump_filter in core(5)");
    }
}

struct karst_target *karst_core_open(const char *path, const struct karst_options *options,
                                     struct karst_error *error) {
    struct core *core = calloc(1, sizeof *core);
    if (!core) {
        karst_fail_memory(error);
        return NULL;
    }
    struct karst_target *target = &core->target;
    core->descriptor = -1;
    target->stopped = true;
    if (!karst_target_init(target, &core_ops, KARST_TARGET_CORE, options, error) ||
        !core_map_file(core, path, error) || !core_load(core, path, error)) {
        core_close(target);
        return NULL;
    }
    find_residency(core);
    name_thread(core);
    name_stack(core);
    name_vdso(core);
    name_others(core);
    remark_contents(core);
    bool found = karst_target_find_modules(target) || karst_fail_memory(error);
    if (!found || !find_executable(core, options, error) || !name_core(core, error)) {
        core_close(target);
        return NULL;
    }
    return target;
}
