/* Writes small core files of any shape, right or wrong, into memory files. */
#ifndef KARST_TESTS_CORE_WRITER_H
#define KARST_TESTS_CORE_WRITER_H

#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WRITER_SIZE 262144

struct core_writer {
    uint8_t bytes[WRITER_SIZE];
    size_t size; /* of the file */
    size_t notes, note_size;
    int descriptor; /* of the last file made of it, 0: none */
    char path[64];
};

enum { WRITER_HEADERS = 32, WRITER_NOTES_AT = 4096, WRITER_DATA_AT = 16384 };

static inline Elf64_Ehdr *writer_header(struct core_writer *writer) {
    return (Elf64_Ehdr *)(void *)writer->bytes;
}

static inline Elf64_Phdr *writer_segment(struct core_writer *writer, size_t index) {
    return (Elf64_Phdr *)(void *)(writer->bytes + sizeof(Elf64_Ehdr)) + index;
}

static inline void writer_end(struct core_writer *writer) {
    if (writer->descriptor > 0) {
        close(writer->descriptor);
        writer->descriptor = 0;
    }
}

/* An x86-64 core with a PT_NOTE, segment 0, and nothing else. */
static inline void writer_begin(struct core_writer *writer) {
    writer_end(writer);
    memset(writer, 0, sizeof *writer);
    Elf64_Ehdr *header = writer_header(writer);
    memcpy(header->e_ident, ELFMAG, SELFMAG);
    header->e_ident[EI_CLASS] = ELFCLASS64;
    header->e_ident[EI_DATA] = ELFDATA2LSB;
    header->e_ident[EI_VERSION] = EV_CURRENT;
    header->e_type = ET_CORE;
    header->e_machine = EM_X86_64;
    header->e_version = EV_CURRENT;
    header->e_phoff = sizeof *header;
    header->e_ehsize = sizeof *header;
    header->e_phentsize = sizeof(Elf64_Phdr);
    header->e_phnum = 1;
    *writer_segment(writer, 0) = (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = WRITER_NOTES_AT};
    writer->size = WRITER_DATA_AT;
}

static inline void writer_note(struct core_writer *writer, const char *name, uint32_t type, const void *data,
                               size_t size) {
    uint8_t *at = writer->bytes + WRITER_NOTES_AT + writer->note_size;
    Elf64_Nhdr header = {(uint32_t)strlen(name) + 1, (uint32_t)size, type};
    memcpy(at, &header, sizeof header);
    memcpy(at + sizeof header, name, header.n_namesz);
    memcpy(at + sizeof header + (header.n_namesz + 3) / 4 * 4, data, size);
    writer->note_size += sizeof header + (header.n_namesz + 3) / 4 * 4 + (size + 3) / 4 * 4;
    writer_segment(writer, 0)->p_filesz = writer->note_size;
}

static inline void writer_thread(struct core_writer *writer, int32_t tid, int16_t signal, uint64_t sp) {
    uint8_t status[336] = {0};
    uint64_t fs_base = 0x7000 + (uint64_t)tid;
    memcpy(status + 12, &signal, sizeof signal);
    memcpy(status + 32, &tid, sizeof tid);
    memcpy(status + 112 + 19 * 8, &sp, sizeof sp);
    memcpy(status + 112 + 21 * 8, &fs_base, sizeof fs_base);
    writer_note(writer, "CORE", NT_PRSTATUS, status, sizeof status);
}

static inline void writer_process(struct core_writer *writer, int32_t pid, const char *command) {
    uint8_t info[136] = {0};
    memcpy(info + 24, &pid, sizeof pid);
    snprintf((char *)info + 40, 16, "%s", command);
    writer_note(writer, "CORE", NT_PRPSINFO, info, sizeof info);
}

/* Adds a PT_LOAD; its saved bytes are `fill` all over and follow what is there. */
static inline Elf64_Phdr *writer_load(struct core_writer *writer, uint64_t address, uint64_t saved,
                                      uint64_t memory, uint32_t flags, uint8_t fill) {
    Elf64_Phdr *segment = writer_segment(writer, writer_header(writer)->e_phnum++);
    *segment = (Elf64_Phdr){.p_type = PT_LOAD,
                            .p_flags = flags,
                            .p_offset = writer->size,
                            .p_vaddr = address,
                            .p_filesz = saved,
                            .p_memsz = memory,
                            .p_align = 4096};
    if (saved <= WRITER_SIZE - writer->size) {
        memset(writer->bytes + writer->size, fill, saved);
        writer->size += saved;
    }
    return segment;
}

/* The first size bytes as a file; its path stays valid until the next one. */
static inline const char *writer_file(struct core_writer *writer, size_t size) {
    writer_end(writer);
    writer->descriptor = memfd_create("core", MFD_CLOEXEC);
    if (writer->descriptor < 0 || write(writer->descriptor, writer->bytes, size) != (ssize_t)size) {
        perror("memfd");
        exit(2);
    }
    snprintf(writer->path, sizeof writer->path, "/proc/self/fd/%d", writer->descriptor);
    return writer->path;
}

#endif
