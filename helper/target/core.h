/* A core file; private to this folder. core.c reads its memory, core_load.c opens it, core_notes.c reads
 * its notes. */
#ifndef KARST_TARGET_CORE_H
#define KARST_TARGET_CORE_H

#include "parts.h"

#include <elf.h>
#include <time.h>

/* A file mapping by NT_FILE. */
struct core_file {
    uint64_t start;
    uint64_t end;
    uint64_t offset; /* bytes */
    const char *path;
};

enum core_region_kind {
    CORE_REGION_SAVED,  /* in the core at offset */
    CORE_REGION_CUT,    /* was in the core, which ends before it */
    CORE_REGION_FILE,   /* left out, read from the mapped file at offset */
    CORE_REGION_OMITTED /* left out */
};

/* Part of the address space with one source of its contents. */
struct core_region {
    uint64_t start;
    uint64_t end;
    uint64_t offset;
    enum core_region_kind kind;
};

struct core {
    struct karst_target target;
    const uint8_t *data; /* the whole file, mapped */
    uint64_t size;
    struct timespec written; /* when the file's contents changed last */
    int descriptor;
    struct core_region *regions; /* sorted, disjoint */
    size_t region_count;
    size_t last_region; /* where the last question was answered */
    struct core_file *files;
    size_t file_count;
    /* The piece of the file that the last question about residency fell into: all data or all hole. */
    uint64_t extent_start, extent_end;
    bool extent_is_data;
    bool residency_known;     /* holes in the file are never-touched pages */
    bool looking_fills_holes; /* by a look through `data`: the file is in memory */
    bool by_debugger;         /* written by gcore, not by the kernel */
    bool anonymous_saved;     /* private anonymous memory is in the core at all */
    /* From the notes. */
    uint64_t auxv_phdr, auxv_entry, auxv_execfn, auxv_random, auxv_vdso, auxv_page_size;
    char command[17];
    char arguments[81];
    bool has_process_note;
    bool kernel_dump; /* a VMCOREINFO note: a dump of the kernel */
    bool notes_damaged;
};

/* Opens and maps the file, if it is a core that we can read. */
bool core_map_file(struct core *core, const char *path, struct karst_error *error);
/* Fills threads, mappings and regions from a mapped file. */
bool core_load(struct core *core, const char *path, struct karst_error *error);
/* Reads one PT_NOTE's contents. false: out of memory. */
bool core_read_notes(struct core *core, const uint8_t *notes, size_t size);

#endif
