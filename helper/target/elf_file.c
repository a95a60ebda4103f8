#include "elf_file.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool inside(const struct karst_elf_file *file, uint64_t offset, uint64_t size) {
    return offset <= file->size && size <= file->size - offset;
}

/* Tables have to be aligned to be used in place; every linker aligns them. */
static const void *table(const struct karst_elf_file *file, uint64_t offset, uint64_t count,
                         uint64_t entry_size) {
    if (count == 0 || offset % _Alignof(Elf64_Phdr) != 0 || count > file->size / entry_size ||
        !inside(file, offset, count * entry_size)) {
        return NULL;
    }
    return file->data + offset;
}

static bool parse(struct karst_elf_file *file) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)(const void *)file->data;
    if (file->size < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
        header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB) {
        return false;
    }
    file->header = header;
    if (header->e_shentsize == sizeof(Elf64_Shdr) && header->e_shoff != 0) {
        const Elf64_Shdr *first = table(file, header->e_shoff, 1, sizeof(Elf64_Shdr));
        /* More than 65,279 sections: the count is in the first one's size (gABI). */
        uint64_t count = first && header->e_shnum == 0 ? first->sh_size : header->e_shnum;
        file->sections = table(file, header->e_shoff, count, sizeof(Elf64_Shdr));
        file->section_count = file->sections ? (size_t)count : 0;
    }
    if (header->e_phentsize == sizeof(Elf64_Phdr)) {
        file->segments = table(file, header->e_phoff, header->e_phnum, sizeof(Elf64_Phdr));
        file->segment_count = file->segments ? header->e_phnum : 0;
    }
    return true;
}

bool karst_elf_open(struct karst_elf_file *file, int descriptor) {
    memset(file, 0, sizeof *file);
    file->descriptor = descriptor;
    struct stat status;
    if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
        status.st_size >= (off_t)sizeof(Elf64_Ehdr)) {
        void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (data != MAP_FAILED) {
            file->data = data;
            file->size = (size_t)status.st_size;
            if (parse(file)) {
                return true;
            }
            munmap(data, file->size);
        }
    }
    close(descriptor);
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
    return false;
}

void karst_elf_close(struct karst_elf_file *file) {
    if (file->data) {
        munmap((void *)file->data, file->size);
        close(file->descriptor);
    }
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
}

const uint8_t *karst_elf_section_data(const struct karst_elf_file *file, const Elf64_Shdr *section,
                                      size_t *size) {
    if (section->sh_type == SHT_NOBITS || section->sh_type == SHT_NULL ||
        !inside(file, section->sh_offset, section->sh_size)) {
        return NULL;
    }
    *size = (size_t)section->sh_size;
    return file->data + section->sh_offset;
}

static const Elf64_Shdr *name_section(const struct karst_elf_file *file) {
    size_t index = file->header->e_shstrndx;
    if (index == SHN_XINDEX && file->section_count > 0) {
        index = file->sections[0].sh_link;
    }
    return index < file->section_count ? &file->sections[index] : NULL;
}

const uint8_t *karst_elf_section(const struct karst_elf_file *file, const char *name, size_t *size) {
    size_t names_size = 0, length = strlen(name);
    const Elf64_Shdr *section = name_section(file);
    const uint8_t *names = section ? karst_elf_section_data(file, section, &names_size) : NULL;
    if (!names) {
        return NULL;
    }
    for (size_t i = 0; i < file->section_count; i++) {
        size_t at = file->sections[i].sh_name;
        if (at < names_size && names_size - at > length && memcmp(names + at, name, length + 1) == 0) {
            const uint8_t *data = karst_elf_section_data(file, &file->sections[i], size);
            if (data) {
                return data;
            }
        }
    }
    return NULL;
}

static size_t align4(size_t size) {
    return (size + 3) & ~(size_t)3;
}

bool karst_note_next(const uint8_t *notes, size_t size, size_t *offset, struct karst_note *note) {
    Elf64_Nhdr header;
    if (*offset > size || size - *offset < sizeof header) {
        return false;
    }
    memcpy(&header, notes + *offset, sizeof header);
    size_t at = *offset + sizeof header;
    if (header.n_namesz > size - at) {
        return false;
    }
    note->type = header.n_type;
    note->name = (const char *)notes + at;
    note->name_size = header.n_namesz;
    size_t padded = align4(header.n_namesz);
    at = padded > size - at ? size : at + padded;
    if (header.n_descsz > size - at) {
        return false;
    }
    note->data = notes + at;
    note->size = header.n_descsz;
    padded = align4(header.n_descsz);
    *offset = padded > size - at ? size : at + padded;
    return true;
}

bool karst_note_is(const struct karst_note *note, const char *name, uint32_t type) {
    size_t length = strlen(name);
    return note->type == type && note->name_size >= length && note->name_size <= length + 1 &&
           memcmp(note->name, name, length) == 0;
}

size_t karst_notes_build_id(const uint8_t *notes, size_t size, uint8_t *build_id, size_t capacity) {
    struct karst_note note;
    for (size_t offset = 0; karst_note_next(notes, size, &offset, &note);) {
        if (karst_note_is(&note, "GNU", NT_GNU_BUILD_ID)) {
            size_t taken = note.size < capacity ? note.size : capacity;
            memcpy(build_id, note.data, taken);
            return taken;
        }
    }
    return 0;
}

size_t karst_elf_build_id(const struct karst_elf_file *file, uint8_t *build_id, size_t capacity) {
    /* Sections first: the segments of a separate debug file point at nothing. */
    for (size_t i = 0; i < file->section_count; i++) {
        size_t size, found;
        const uint8_t *notes = file->sections[i].sh_type == SHT_NOTE
                                   ? karst_elf_section_data(file, &file->sections[i], &size)
                                   : NULL;
        if (notes && (found = karst_notes_build_id(notes, size, build_id, capacity)) != 0) {
            return found;
        }
    }
    for (size_t i = 0; i < file->segment_count; i++) {
        const Elf64_Phdr *segment = &file->segments[i];
        if (segment->p_type == PT_NOTE && inside(file, segment->p_offset, segment->p_filesz)) {
            size_t found = karst_notes_build_id(file->data + segment->p_offset, (size_t)segment->p_filesz,
                                                build_id, capacity);
            if (found != 0) {
                return found;
            }
        }
    }
    return 0;
}
