/* A small core file that is damaged and mended again, case after case, without ever touching the disk. */
#ifndef CORE_IMAGE_H
#define CORE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../programs/splitmix.h"

#define IMAGE_PATH_SIZE 64

struct image_block {
    uint64_t start, address, size;
};

/* The pristine core, what is known of it, and the copy that a case damages. */
struct core_image {
    const char *name;
    uint8_t *pristine;
    uint64_t size;
    uint8_t *has_data; /* a page each; 0: a hole in the file */
    int copy;          /* a memfd */
    char path[IMAGE_PATH_SIZE];
    struct image_segment {
        uint64_t address, offset, size;
    } * segments;
    size_t segment_count;
    uint64_t headers_end;            /* ELF and program headers are [0, headers_end) */
    uint64_t notes_start, notes_end; /* offsets */
    struct image_block *blocks;      /* as a walk of the pristine core gave them */
    size_t block_count;
    uint64_t *pointers; /* offsets of aligned words that point into the core's memory */
    size_t pointer_count;
    struct image_change {
        uint64_t offset, size;
    } * changes;
    size_t change_count, change_capacity;
    bool truncated;
};

/* A number below limit; limit may not be 0. */
uint64_t below(uint64_t *state, uint64_t limit);

/* Reads the core at path; false: standard error says why. blocks are added with image_add_block(). */
bool image_open(struct core_image *image, const char *path);
void image_close(struct core_image *image);
bool image_add_block(struct core_image *image, const struct image_block *block);
/* Damages the copy in one to four ways. */
void image_damage(struct core_image *image, uint64_t *state);
/* Makes the copy pristine again. */
void image_mend(struct core_image *image);
/* Writes the copy as it is to path; usable while the process is dying. */
void image_save(const struct core_image *image, const char *path);

#endif
