/* An ELF file mapped into memory and read with every offset checked. 64-bit little-endian only. */
#ifndef KARST_TARGET_ELF_FILE_H
#define KARST_TARGET_ELF_FILE_H

#include <elf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct karst_elf_file {
    const uint8_t *data; /* NULL: not open */
    size_t size;
    const Elf64_Ehdr *header;
    const Elf64_Phdr *segments; /* segment_count of them, all inside data */
    size_t segment_count;
    const Elf64_Shdr *sections; /* the same for sections */
    size_t section_count;
    int descriptor;
};

/* Maps the file that descriptor is open on, and owns descriptor from then on, also when it fails. */
bool karst_elf_open(struct karst_elf_file *file, int descriptor);
void karst_elf_close(struct karst_elf_file *file);

/* The contents of a section in the file, NULL: none or outside. */
const uint8_t *karst_elf_section_data(const struct karst_elf_file *file, const Elf64_Shdr *section,
                                      size_t *size);
/* The first section of that name that has contents, NULL: none. */
const uint8_t *karst_elf_section(const struct karst_elf_file *file, const char *name, size_t *size);
/* The build id, at most capacity bytes of it; returns its size, 0: none. */
size_t karst_elf_build_id(const struct karst_elf_file *file, uint8_t *build_id, size_t capacity);
/* The same from notes in memory (a PT_NOTE's contents). */
size_t karst_notes_build_id(const uint8_t *notes, size_t size, uint8_t *build_id, size_t capacity);

/* One note at *offset of notes, which is moved behind it. false: no more. name is not terminated. */
struct karst_note {
    uint32_t type;
    size_t name_size;
    const char *name;
    size_t size;
    const uint8_t *data;
};
bool karst_note_next(const uint8_t *notes, size_t size, size_t *offset, struct karst_note *note);
bool karst_note_is(const struct karst_note *note, const char *name, uint32_t type);

#endif
