#include "core_image.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096u

uint64_t below(uint64_t *state, uint64_t limit) {
    return next_random(state) % limit;
}

/* ---- reading ------------------------------------------------------------------------------------ */

static bool complain(const char *path, const char *what) {
    fprintf(stderr, "%s: %s\n", path, what);
    return false;
}

/* Holes stay holes: to the engine they are pages that were never touched. */
static bool copy_sparsely(struct core_image *image, int file) {
    off_t at = 0, end = (off_t)image->size;
    while (at < end) {
        off_t data = lseek(file, at, SEEK_DATA);
        if (data < 0) {
            return errno == ENXIO; /* only a hole is left */
        }
        off_t hole = lseek(file, data, SEEK_HOLE);
        if (hole < 0) {
            return false;
        }
        size_t length = (size_t)(hole - data);
        if (pread(file, image->pristine + data, length, data) != (ssize_t)length ||
            pwrite(image->copy, image->pristine + data, length, data) != (ssize_t)length) {
            return false;
        }
        memset(image->has_data + data / PAGE, 1, (length + PAGE - 1) / PAGE);
        at = hole;
    }
    return true;
}

static bool read_file(struct core_image *image, const char *path) {
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0 || status.st_size < (off_t)sizeof(Elf64_Ehdr)) {
        if (file >= 0) {
            close(file);
        }
        return complain(path, "cannot be read as a core");
    }
    image->size = (uint64_t)status.st_size;
    image->pristine = calloc(1, image->size);
    image->copy = memfd_create("core", MFD_CLOEXEC);
    image->has_data = calloc(1, image->size / PAGE + 1);
    bool copied = image->pristine && image->has_data && image->copy >= 0 &&
                  ftruncate(image->copy, status.st_size) == 0 && copy_sparsely(image, file);
    close(file);
    snprintf(image->path, sizeof image->path, "/proc/self/fd/%d", image->copy);
    return copied || complain(path, "cannot be copied");
}

static bool note_segments(struct core_image *image, const char *path) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)image->pristine;
    image->headers_end = header->e_phoff + (uint64_t)header->e_phnum * sizeof(Elf64_Phdr);
    image->segments = calloc(header->e_phnum + 1u, sizeof *image->segments);
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || image->headers_end > image->size ||
        !image->segments) {
        return complain(path, "is no core");
    }
    const Elf64_Phdr *programs = (const Elf64_Phdr *)(image->pristine + header->e_phoff);
    for (size_t i = 0; i < header->e_phnum; i++) {
        const Elf64_Phdr *program = &programs[i];
        if (program->p_offset > image->size || program->p_filesz > image->size - program->p_offset) {
            return complain(path, "is cut off");
        }
        if (program->p_type == PT_NOTE) {
            image->notes_start = program->p_offset;
            image->notes_end = program->p_offset + program->p_filesz;
        } else if (program->p_type == PT_LOAD && program->p_filesz > 0) {
            image->segments[image->segment_count++] =
                (struct image_segment){program->p_vaddr, program->p_offset, program->p_filesz};
        }
    }
    return image->segment_count > 0 || complain(path, "has no memory in it");
}

static uint64_t word_at(const struct core_image *image, uint64_t offset) {
    uint64_t word;
    memcpy(&word, image->pristine + offset, sizeof word);
    return word;
}

/* The file offset of address; image->size: it is not in the core. */
static uint64_t offset_of(const struct core_image *image, uint64_t address) {
    for (size_t i = 0; i < image->segment_count; i++) {
        const struct image_segment *segment = &image->segments[i];
        if (address >= segment->address && address - segment->address < segment->size) {
            return segment->offset + (address - segment->address);
        }
    }
    return image->size;
}

static bool note_pointers(struct core_image *image, const char *path) {
    size_t capacity = 0;
    for (size_t i = 0; i < image->segment_count; i++) {
        const struct image_segment *segment = &image->segments[i];
        for (uint64_t at = segment->offset; at + 8 <= segment->offset + segment->size; at += 8) {
            if (offset_of(image, word_at(image, at)) == image->size) {
                continue;
            }
            if (image->pointer_count == capacity) {
                capacity = capacity ? capacity * 2 : 1024;
                uint64_t *more = realloc(image->pointers, capacity * sizeof *more);
                if (!more) {
                    return complain(path, "out of memory");
                }
                image->pointers = more;
            }
            image->pointers[image->pointer_count++] = at;
        }
    }
    return image->pointer_count > 0 || complain(path, "has no pointers in it");
}

bool image_open(struct core_image *image, const char *path) {
    *image = (struct core_image){.name = path, .copy = -1};
    return read_file(image, path) && note_segments(image, path) && note_pointers(image, path);
}

void image_close(struct core_image *image) {
    if (image->copy >= 0) {
        close(image->copy);
    }
    free(image->pristine);
    free(image->has_data);
    free(image->segments);
    free(image->blocks);
    free(image->pointers);
    free(image->changes);
    *image = (struct core_image){.copy = -1};
}

bool image_add_block(struct core_image *image, const struct image_block *block) {
    if ((image->block_count & (image->block_count - 1)) == 0) {
        size_t capacity = image->block_count ? image->block_count * 2 : 1;
        struct image_block *more = realloc(image->blocks, capacity * sizeof *more);
        if (!more) {
            return false;
        }
        image->blocks = more;
    }
    image->blocks[image->block_count++] = *block;
    return true;
}

/* ---- changing ----------------------------------------------------------------------------------- */

static void change(struct core_image *image, uint64_t offset, const void *bytes, uint64_t size) {
    if (offset >= image->size || size > image->size - offset) {
        return;
    }
    if (image->change_count == image->change_capacity) {
        size_t capacity = image->change_capacity ? image->change_capacity * 2 : 64;
        struct image_change *more = realloc(image->changes, capacity * sizeof *more);
        if (!more) {
            return;
        }
        image->changes = more;
        image->change_capacity = capacity;
    }
    if (pwrite(image->copy, bytes, size, (off_t)offset) == (ssize_t)size) {
        image->changes[image->change_count++] = (struct image_change){offset, size};
    }
}

static void change_word(struct core_image *image, uint64_t offset, uint64_t word) {
    change(image, offset, &word, sizeof word);
}

static uint64_t random_offset(const struct core_image *image, uint64_t *state) {
    const struct image_segment *segment = &image->segments[below(state, image->segment_count)];
    return segment->offset + below(state, segment->size);
}

static const struct image_block *random_block(const struct core_image *image, uint64_t *state) {
    return &image->blocks[below(state, image->block_count)];
}

/* Numbers that length and offset arithmetic gets wrong. */
static uint64_t awkward_number(const struct core_image *image, uint64_t *state, uint64_t old) {
    static const uint64_t numbers[] = {
        0,          1,          8,           15,         16,         17,         31,
        32,         33,         0x21,        0x1000,     0xfff,      0x7fffffff, 0x80000000,
        0xffffffff, UINT64_MAX, INT64_MAX,   1ull << 63, 1ull << 47, 1ull << 48, UINT64_MAX - 7,
        1ull << 32, 0x100001,   (1ull << 40)};
    switch (below(state, 8)) {
    case 0:
        return old ^ 1ull << below(state, 64);
    case 1:
        return old + 8 * (below(state, 33) - 16);
    case 2:
        return next_random(state);
    case 3:
        return next_random(state) >> below(state, 64);
    case 4:
        return image->size + below(state, 65) - 32;
    case 5:
        return (old & 7) | below(state, 4096) << 4;
    case 6:
        return old ^ below(state, 8);
    default:
        return numbers[below(state, sizeof numbers / sizeof *numbers)];
    }
}

static uint64_t awkward_address(const struct core_image *image, uint64_t *state, uint64_t old) {
    const struct image_segment *segment = &image->segments[below(state, image->segment_count)];
    const struct image_block *block = image->block_count ? random_block(image, state) : NULL;
    uint64_t address = segment->address + (below(state, segment->size) & ~15ull);
    switch (below(state, 10)) {
    case 0:
        return segment->address + segment->size - 8 * below(state, 6);
    case 1:
        return segment->address - 16 + 8 * below(state, 4);
    case 2:
        return address;
    case 3:
        return old + below(state, 16);
    case 4:
        return block ? block->start : address;
    case 5:
        return word_at(image, image->pointers[below(state, image->pointer_count)]);
    case 6:
        /* As glibc's safe-linking writes it, for a link that stands close by. */
        return (block ? block->address : address) ^ (old ? old : address) >> 12;
    case 7:
        return awkward_number(image, state, old);
    default:
        return block ? block->address : address;
    }
}

/* ---- the kinds of damage -------------------------------------------------------------------------- */

static void random_bytes(struct core_image *image, uint64_t *state) {
    uint8_t bytes[64];
    for (uint64_t i = below(state, 8) + 1; i > 0; i--) {
        uint64_t size = 1 + below(state, below(state, 4) ? 8 : sizeof bytes);
        for (uint64_t k = 0; k < size; k++) {
            bytes[k] = (uint8_t)next_random(state);
        }
        change(image, below(state, 8) ? random_offset(image, state) : below(state, image->size), bytes, size);
    }
}

static void chunk_headers(struct core_image *image, uint64_t *state) {
    if (image->block_count == 0) {
        return;
    }
    for (uint64_t i = below(state, 6) + 1; i > 0; i--) {
        const struct image_block *block = random_block(image, state);
        uint64_t offset = offset_of(image, block->start + (below(state, 5) ? 8 : 0));
        if (offset >= image->size - 8) {
            continue;
        }
        uint64_t old = word_at(image, offset), value = awkward_number(image, state, old);
        if (below(state, 4) == 0) { /* exactly up to another chunk */
            value = (random_block(image, state)->start - block->start) | (old & 7);
        }
        change_word(image, offset, value);
    }
}

static void links(struct core_image *image, uint64_t *state) {
    if (image->block_count == 0) {
        return;
    }
    for (uint64_t i = below(state, 6) + 1; i > 0; i--) {
        uint64_t offset = offset_of(image, random_block(image, state)->start + 16 + 8 * below(state, 4));
        if (offset < image->size - 8) {
            change_word(image, offset, awkward_address(image, state, word_at(image, offset)));
        }
    }
}

static void pointers(struct core_image *image, uint64_t *state) {
    for (uint64_t i = below(state, 6) + 1; i > 0; i--) {
        uint64_t offset = image->pointers[below(state, image->pointer_count)];
        change_word(image, offset, awkward_address(image, state, word_at(image, offset)));
    }
}

/* Any aligned word close to a pointer: arenas, mp_, tcaches, heap_infos, link maps are where these are. */
static void fields(struct core_image *image, uint64_t *state) {
    for (uint64_t i = below(state, 6) + 1; i > 0; i--) {
        uint64_t offset = image->pointers[below(state, image->pointer_count)] + 8 * below(state, 33) - 128;
        if (offset < image->size - 8) {
            change_word(image, offset, awkward_number(image, state, word_at(image, offset)));
        }
    }
}

static void header_fields(struct core_image *image, uint64_t start, uint64_t end, uint64_t *state) {
    if (end - start < 16) {
        return;
    }
    for (uint64_t i = below(state, 4) + 1; i > 0; i--) {
        uint64_t size = 1ull << (1 + below(state, 3)); /* 2, 4 or 8 bytes */
        uint64_t offset = start + below(state, (end - start) / size) * size;
        uint64_t value = awkward_number(image, state, word_at(image, offset < image->size - 8 ? offset : 0));
        change(image, offset, &value, size);
    }
}

static void copy_range(struct core_image *image, uint64_t *state) {
    uint64_t from = random_offset(image, state) & ~7ull, to = random_offset(image, state) & ~7ull;
    uint64_t size = 8 * (1 + below(state, 512));
    if (size <= image->size - from) {
        change(image, to, image->pristine + from, size);
    }
}

/* Only ever the last damage of a case: what lies behind cannot be changed any more. */
static void truncate_copy(struct core_image *image, uint64_t *state) {
    uint64_t kept = below(state, 3) ? below(state, image->size) : below(state, image->headers_end + 8192);
    image->truncated = ftruncate(image->copy, (off_t)(kept < image->size ? kept : image->size)) == 0;
}

void image_damage(struct core_image *image, uint64_t *state) {
    for (uint64_t i = below(state, 4) + 1; i > 0; i--) {
        switch (below(state, 16)) {
        case 0:
        case 1:
            random_bytes(image, state);
            break;
        case 2:
        case 3:
        case 4:
            chunk_headers(image, state);
            break;
        case 5:
        case 6:
        case 7:
            links(image, state);
            break;
        case 8:
        case 9:
            pointers(image, state);
            break;
        case 10:
        case 11:
            fields(image, state);
            break;
        case 12:
            header_fields(image, 0, image->headers_end, state);
            break;
        case 13:
            header_fields(image, image->notes_start, image->notes_end, state);
            break;
        case 14:
            copy_range(image, state);
            break;
        default:
            if (i == 1) {
                truncate_copy(image, state);
            }
            break;
        }
    }
}

/* Page by page, so that holes become holes again: a case may not depend on those before it. */
static void mend_range(struct core_image *image, uint64_t offset, uint64_t size) {
    for (uint64_t page = offset / PAGE * PAGE; page < offset + size; page += PAGE) {
        uint64_t length = image->size - page < PAGE ? image->size - page : PAGE;
        bool mended =
            image->has_data[page / PAGE]
                ? pwrite(image->copy, image->pristine + page, length, (off_t)page) == (ssize_t)length
                : fallocate(image->copy, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page, PAGE) == 0;
        if (!mended) {
            perror("mending the core");
            abort();
        }
    }
}

void image_mend(struct core_image *image) {
    if (image->truncated && ftruncate(image->copy, (off_t)image->size) == 0) {
        mend_range(image, 0, image->size);
    }
    for (size_t i = 0; i < image->change_count; i++) {
        mend_range(image, image->changes[i].offset, image->changes[i].size);
    }
    image->change_count = 0;
    image->truncated = false;
}

void image_save(const struct core_image *image, const char *path) {
    static uint8_t buffer[1 << 16];
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    off_t at = 0;
    for (ssize_t got; file >= 0 && (got = pread(image->copy, buffer, sizeof buffer, at)) > 0; at += got) {
        if (pwrite(file, buffer, (size_t)got, at) != got) {
            break;
        }
    }
    if (file >= 0) {
        close(file);
    }
}
