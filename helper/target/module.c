/* Modules: which mappings are an executable or library, and the file that goes with each. */
#include "clean.h"
#include "parts.h"
#include "symbols.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEGMENTS_MAX    128
#define NOTES_MAX       16384
#define MODULE_SIZE_MAX ((uint64_t)1 << 40)
#define MODULES_MAX     65536

/* The program headers of an ELF image in the target's memory. */
struct image {
    Elf64_Ehdr header;
    Elf64_Phdr segments[SEGMENTS_MAX];
    size_t segment_count;
};

enum image_kind { IMAGE_NONE, IMAGE_UNREADABLE, IMAGE_ELF };

static enum image_kind read_image(struct karst_target *target, uint64_t start, struct image *image) {
    if (!karst_target_read_all(target, start, &image->header, sizeof image->header)) {
        return IMAGE_UNREADABLE;
    }
    const Elf64_Ehdr *header = &image->header;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_ident[EI_CLASS] != ELFCLASS64 ||
        header->e_ident[EI_DATA] != ELFDATA2LSB || (header->e_type != ET_EXEC && header->e_type != ET_DYN) ||
        header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum == 0 || header->e_phnum > SEGMENTS_MAX ||
        header->e_phoff > UINT64_MAX - start) {
        return IMAGE_NONE;
    }
    image->segment_count = header->e_phnum;
    return karst_target_read_all(target, start + header->e_phoff, image->segments,
                                 image->segment_count * sizeof(Elf64_Phdr))
               ? IMAGE_ELF
               : IMAGE_NONE;
}

static bool same_name(const struct karst_mapping *a, const struct karst_mapping *b) {
    return a->name && b->name && (a->name == b->name || strcmp(a->name, b->name) == 0);
}

/* A file may also be mapped as mere data: a loaded one has its code mapped where its headers say, in a
 * mapping that may be executed, or that at least begins there. */
static bool is_loaded(const struct karst_target *target, const struct karst_mapping *first,
                      const struct image *image, uint64_t bias) {
    for (size_t i = 0; i < image->segment_count; i++) {
        const Elf64_Phdr *segment = &image->segments[i];
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X)) {
            continue;
        }
        uint64_t address = bias + segment->p_vaddr;
        const struct karst_mapping *code = karst_target_mapping(target, address);
        if (!code || !same_name(code, first)) {
            return false;
        }
        return code->permissions & KARST_MAPPING_UNKNOWN ? address - code->start < target->page_size
                                                         : (code->permissions & KARST_MAPPING_EXECUTE) != 0;
    }
    return true;
}

uint32_t karst_segment_permissions(uint32_t flags) {
    return (flags & PF_R ? KARST_MAPPING_READ : 0u) | (flags & PF_W ? KARST_MAPPING_WRITE : 0u) |
           (flags & PF_X ? KARST_MAPPING_EXECUTE : 0u);
}

/* Tells the permissions of a module's mappings where only its headers know them. */
static void set_permissions(const struct karst_target *target, const struct image *image, uint64_t bias) {
    for (size_t i = 0; i < image->segment_count; i++) {
        const Elf64_Phdr *segment = &image->segments[i];
        if (segment->p_type != PT_LOAD || segment->p_filesz == 0) {
            continue;
        }
        uint64_t start = bias + segment->p_vaddr, end = start + segment->p_filesz;
        const struct karst_mapping *last = target->mappings + target->mapping_count;
        struct karst_mapping *mapping = (struct karst_mapping *)karst_target_mapping_after(target, start);
        for (; mapping && mapping < last && mapping->start < end; mapping++) {
            if (mapping->permissions & KARST_MAPPING_UNKNOWN) {
                mapping->permissions = karst_segment_permissions(segment->p_flags);
            }
        }
    }
}

/* Sets bias and end from the program headers; false: they make no sense here. */
static bool place(const struct karst_target *target, const struct karst_mapping *first,
                  const struct image *image, struct karst_module *module) {
    bool found = false;
    uint64_t end = 0;
    for (size_t i = 0; i < image->segment_count; i++) {
        const Elf64_Phdr *segment = &image->segments[i];
        if (segment->p_type != PT_LOAD) {
            continue;
        }
        if (!found) {
            if (segment->p_offset >= target->page_size) {
                return false;
            }
            module->bias = first->start - (segment->p_vaddr - segment->p_offset);
            found = true;
        }
        uint64_t from = module->bias + segment->p_vaddr;
        if (from < first->start || from - first->start > MODULE_SIZE_MAX ||
            segment->p_memsz > MODULE_SIZE_MAX) {
            return false;
        }
        uint64_t to = (from + segment->p_memsz + target->page_size - 1) & ~(target->page_size - 1);
        end = to > end ? to : end;
    }
    module->start = first->start;
    module->end = end;
    return found && end > first->start && is_loaded(target, first, image, module->bias);
}

static void read_build_id(struct karst_target *target, const struct image *image,
                          struct karst_module *module) {
    uint8_t notes[NOTES_MAX];
    for (size_t i = 0; i < image->segment_count && module->build_id_size == 0; i++) {
        const Elf64_Phdr *segment = &image->segments[i];
        if (segment->p_type != PT_NOTE) {
            continue;
        }
        size_t size = segment->p_filesz < sizeof notes ? (size_t)segment->p_filesz : sizeof notes;
        size = karst_target_read(target, module->bias + segment->p_vaddr, notes, size);
        module->build_id_size = karst_notes_build_id(notes, size, module->build_id, sizeof module->build_id);
    }
}

/* Without headers to read, the neighbouring mappings of one file are a module if some are code. */
static bool place_by_names(const struct karst_target *target, size_t first, struct karst_module *module) {
    const struct karst_mapping *mappings = target->mappings;
    bool code = false;
    size_t last = first;
    for (size_t i = first; i < target->mapping_count && same_name(&mappings[i], &mappings[first]); i++) {
        code |= (mappings[i].permissions & KARST_MAPPING_EXECUTE) != 0;
        last = i;
    }
    module->start = module->bias = mappings[first].start;
    module->end = mappings[last].end;
    return code;
}

static bool add_module(struct karst_target *target, const struct karst_module *module) {
    size_t count = target->module_count;
    if ((count & (count - 1)) == 0) {
        struct karst_module *modules =
            realloc(target->modules, (count == 0 ? 1 : 2 * count) * sizeof *modules);
        if (!modules) {
            return false;
        }
        target->modules = modules;
    }
    target->modules[target->module_count++] = *module;
    return true;
}

bool karst_target_find_modules(struct karst_target *target) {
    struct image image;
    uint64_t end = 0;
    for (size_t i = 0; i < target->mapping_count && target->module_count < MODULES_MAX; i++) {
        const struct karst_mapping *mapping = &target->mappings[i];
        if (!mapping->name || mapping->name[0] != '/' || mapping->file_offset != 0 || mapping->start < end) {
            continue;
        }
        struct karst_module module = {.path = mapping->name};
        enum image_kind kind = read_image(target, mapping->start, &image);
        if (kind == IMAGE_NONE || (kind == IMAGE_ELF && !place(target, mapping, &image, &module)) ||
            (kind == IMAGE_UNREADABLE && !place_by_names(target, i, &module))) {
            continue;
        }
        if (kind == IMAGE_ELF) {
            read_build_id(target, &image, &module);
            set_permissions(target, &image, module.bias);
            if (target->machine == EM_NONE) {
                target->machine = image.header.e_machine;
            }
        }
        if (!add_module(target, &module)) {
            return false;
        }
        end = module.end;
    }
    for (size_t i = 0; i < target->mapping_count; i++) {
        if (target->mappings[i].permissions & KARST_MAPPING_UNKNOWN) {
            target->mappings[i].permissions = KARST_MAPPING_READ;
        }
    }
    return true;
}

void karst_target_find_executable(struct karst_target *target) {
    for (size_t i = 0; target->executable && i < target->module_count && !target->executable_module; i++) {
        if (strcmp(target->modules[i].path, target->executable) == 0) {
            target->executable_module = &target->modules[i];
        }
    }
}

/* ---- the file of a module ---------------------------------------------------------------------- */

static void hexadecimal(const uint8_t *bytes, size_t size, char *text, size_t capacity) {
    text[0] = '\0';
    for (size_t i = 0; i < size && 2 * i + 3 <= capacity; i++) {
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
}

enum verdict { SAME, DIFFERENT, UNKNOWN };

/* Is this the file that the target has mapped? By build id; a file without one by its first page, which
 * has its headers and is the same in memory. */
static enum verdict compare_file(struct karst_target *target, const struct karst_module *module,
                                 const struct karst_elf_file *file) {
    uint8_t build_id[sizeof module->build_id];
    size_t size = karst_elf_build_id(file, build_id, sizeof build_id);
    if (module->build_id_size != 0) {
        return size == module->build_id_size && memcmp(build_id, module->build_id, size) == 0 ? SAME
                                                                                              : DIFFERENT;
    }
    uint8_t page[4096];
    size_t there = karst_target_read(target, module->start, page, sizeof page);
    there = there < file->size ? there : file->size;
    if (there < sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr)) {
        return UNKNOWN;
    }
    return memcmp(page, file->data, there) == 0 ? SAME : DIFFERENT;
}

static const char *target_word(const struct karst_target *target) {
    return target->kind == KARST_TARGET_CORE ? "core" : "process";
}

static void remark_difference(struct karst_target *target, const struct karst_module *module,
                              const struct karst_elf_file *file, const char *path) {
    char here[2 * sizeof module->build_id + 1], there[2 * sizeof module->build_id + 1];
    uint8_t build_id[sizeof module->build_id];
    hexadecimal(build_id, karst_elf_build_id(file, build_id, sizeof build_id), here, sizeof here);
    hexadecimal(module->build_id, module->build_id_size, there, sizeof there);
    if (module->build_id_size == 0) {
        karst_target_remark(target, "%s: %s is another build than the %s's: not used",
                            karst_base_name(module->path), path, target_word(target));
    } else if (here[0] == '\0') {
        karst_target_remark(target, "%s: %s has no build id, the %s has %s: not used",
                            karst_base_name(module->path), path, target_word(target), there);
    } else {
        karst_target_remark(target, "%s: %s has build id %s, the %s %s: not used",
                            karst_base_name(module->path), path, here, target_word(target), there);
    }
}

/* What a missing file means, and what would help. A process has its code in memory, a core has not. */
static const char *missing_means(const struct karst_target *target) {
    if (target->kind != KARST_TARGET_CORE) {
        return "symbols may be unknown (a file that was deleted or replaced can still be read by root)";
    }
    return target->sysroot
               ? "code and constants are unknown, and symbols without a debug file"
               : "code and constants are unknown, and symbols without a debug file (--sysroot DIR names a "
                 "copy of the file system)";
}

/* Keeps one remark up to date instead of adding one per file. */
static void remark_missing(struct karst_target *target, const struct karst_module *module) {
    target->files_missing++;
    if (target->files_missing == 1) {
        target->files_missing_remark = target->remark_count;
        karst_target_remark(target, "%s is not here: its %s", module->path, missing_means(target));
        return;
    }
    char *text = NULL;
    if (target->files_missing_remark < target->remark_count &&
        asprintf(&text, "%zu files of the %s are not here, %s for one: their %s", target->files_missing,
                 target_word(target), module->path, missing_means(target)) >= 0) {
        karst_clean_line(text);
        free(target->remarks[target->files_missing_remark]);
        target->remarks[target->files_missing_remark] = text;
    }
}

/* Takes the file that descriptor is open on if it is the module's. *differs: it was a file, but another. */
static bool take_file(struct karst_target *target, struct karst_module *module, int descriptor,
                      const char *path, bool named_by_user, bool *differs) {
    struct karst_elf_file *file = &module->symbols->file;
    if (descriptor < 0) {
        return false;
    }
    if (!karst_elf_open(file, descriptor)) {
        if (named_by_user) {
            karst_target_remark(target, "%s is no 64-bit ELF file: not used", path);
        }
        return false;
    }
    enum verdict verdict = compare_file(target, module, file);
    if (verdict == SAME || (verdict == UNKNOWN && named_by_user)) {
        if (verdict == UNKNOWN) {
            karst_target_remark(target, "%s could not be held against the %s, which lacks its headers", path,
                                target_word(target));
        }
        return true;
    }
    if (verdict == UNKNOWN) {
        karst_target_remark(
            target,
            "%s: the %s has neither its build id nor its headers to tell whether %s is the same: not used",
            karst_base_name(module->path), target_word(target), path);
    } else {
        remark_difference(target, module, file, path);
    }
    *differs = true;
    karst_elf_close(file);
    return false;
}

static int open_file(const char *path) {
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
}

/* The path without the " (deleted)" that the kernel puts behind it; false: too long. */
static bool plain_path(const char *path, char plain[PATH_MAX]) {
    static const char mark[] = " (deleted)";
    size_t length = strlen(path), mark_length = sizeof mark - 1;
    if (length > mark_length && strcmp(path + length - mark_length, mark) == 0) {
        length -= mark_length;
    }
    if (length >= PATH_MAX) {
        return false;
    }
    memcpy(plain, path, length);
    plain[length] = '\0';
    return true;
}

/* Tries the places where the file may be, the most telling one first. */
static bool find_file(struct karst_target *target, struct karst_module *module, bool *differs) {
    char plain[PATH_MAX], path[2 * PATH_MAX];
    if (target->ops->open_module &&
        take_file(target, module, target->ops->open_module(target, module), module->path, false, differs)) {
        return true;
    }
    if (module == target->executable_module && target->executable_file &&
        take_file(target, module, open_file(target->executable_file), target->executable_file, true,
                  differs)) {
        return true;
    }
    if (!plain_path(module->path, plain)) {
        return false;
    }
    if (target->sysroot) {
        snprintf(path, sizeof path, "%s%s", target->sysroot, plain);
        if (take_file(target, module, open_file(path), path, false, differs)) {
            return true;
        }
        /* A mere folder full of libraries will do as well. */
        snprintf(path, sizeof path, "%s/%s", target->sysroot, karst_base_name(plain));
        if (take_file(target, module, open_file(path), path, false, differs)) {
            return true;
        }
    }
    return take_file(target, module, open_file(plain), plain, false, differs);
}

struct karst_symbols *karst_module_symbols(struct karst_target *target, struct karst_module *module) {
    if (module->file_checked) {
        return module->symbols;
    }
    /* First of all: the comparison reads the target, which may ask for this very file. */
    module->file_checked = true;
    module->symbols = calloc(1, sizeof *module->symbols);
    if (!module->symbols) {
        return NULL;
    }
    module->symbols->file.descriptor = module->symbols->debug.descriptor = -1;
    bool differs = false;
    module->file_matches = find_file(target, module, &differs);
    if (!module->file_matches && !differs) {
        remark_missing(target, module);
    }
    if (module->file_matches && module->build_id_size == 0) {
        module->build_id_size =
            karst_elf_build_id(&module->symbols->file, module->build_id, sizeof module->build_id);
    }
    return module->symbols;
}

const struct karst_elf_file *karst_module_file(struct karst_target *target, struct karst_module *module) {
    const struct karst_symbols *symbols = karst_module_symbols(target, module);
    return symbols && module->file_matches ? &symbols->file : NULL;
}

void karst_module_close(struct karst_module *module) {
    if (module->symbols) {
        karst_symbols_free_layouts(module->symbols);
        karst_symbols_free_index(module->symbols);
        karst_elf_close(&module->symbols->file);
        karst_elf_close(&module->symbols->debug);
        free(module->symbols);
        module->symbols = NULL;
    }
}
