/* The measure of speed: reads the chunk headers of the heaps that make_core described, from the same
 * mapped core file, and counts. No walker can do less than this.
 *
 *   bare_loop CORE LAYOUT      prints: chunks in-use
 */
#include <elf.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint8_t *file;
static uint64_t file_size;

static const uint8_t *at(uint64_t start, uint64_t end) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    const Elf64_Phdr *segments = (const Elf64_Phdr *)(file + header->e_phoff);
    for (unsigned i = 0; i < header->e_phnum; i++) {
        const Elf64_Phdr *segment = &segments[i];
        if (segment->p_type == PT_LOAD && start >= segment->p_vaddr &&
            end <= segment->p_vaddr + segment->p_filesz &&
            segment->p_offset + segment->p_filesz <= file_size) {
            return file + segment->p_offset + (start - segment->p_vaddr);
        }
    }
    fprintf(stderr, "bare_loop: %" PRIx64 " to %" PRIx64 " is not in the core\n", start, end);
    exit(2);
}

static uint64_t chunks, in_use;

/* A chunk is in use if the next one's header says so; so one word is read of each. What fences off the end
 * of a heap is no chunk of anybody's: sizes of 16, or up to 32 before a header of size 0. */
static void count(const uint8_t *chunk, const uint8_t *end) {
    uint64_t seen = 0, used = 0;
    bool counted = false; /* the one before */
    while (chunk < end) {
        uint64_t word;
        memcpy(&word, chunk + 8, sizeof word);
        uint64_t size = word & ~(uint64_t)7;
        if (size == 0) {
            seen -= counted;
            break;
        }
        used += counted && (word & 1);
        counted = size > 16;
        seen += counted;
        chunk += size;
    }
    if (chunk > end) {
        fprintf(stderr, "bare_loop: a heap does not end where it should\n");
        exit(2);
    }
    chunks += seen;
    in_use += used;
}

int main(int argc, char **argv) {
    int descriptor = argc == 3 ? open(argv[1], O_RDONLY) : -1;
    FILE *layout = argc == 3 ? fopen(argv[2], "r") : NULL;
    struct stat status;
    if (descriptor < 0 || !layout || fstat(descriptor, &status) != 0) {
        fprintf(stderr, "usage: bare_loop CORE LAYOUT\n");
        return 2;
    }
    file_size = (uint64_t)status.st_size;
    file = mmap(NULL, file_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (file == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    char kind[16];
    uint64_t start, end;
    while (fscanf(layout, "%15s %" SCNx64 " %" SCNx64, kind, &start, &end) == 3) {
        const uint8_t *chunk = at(start, end);
        if (strcmp(kind, "mapped") == 0) {
            chunks++;
            in_use++;
        } else {
            count(chunk, chunk + (end - start));
        }
    }
    printf("%" PRIu64 " %" PRIu64 "\n", chunks, in_use);
    return 0;
}
