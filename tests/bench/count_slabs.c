/* The engine's walk over jemalloc's regions with the least possible consumer, and the bare loop to hold it
 * against.
 *
 *   count_slabs karst CORE        the engine: opens the core, finds the heap, walks it; caches included
 *   count_slabs bare CORE LIST    reads the headers and bitmaps in LIST (from `runs`: header, first region,
 * regions, size, in hexadecimal, a line each) and looks at each region's bit
 *
 * Either prints: regions in use, their bytes, CPU seconds that the loop took (the engine: all it did). */
#include <elf.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "karst.h"

struct total {
    uint64_t regions, bytes;
};

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static bool count(void *context, const struct karst_block *blocks, size_t number) {
    struct total *total = context;
    for (size_t i = 0; i < number; i++) {
        bool used = (blocks[i].flags & KARST_BLOCK_REGION) && blocks[i].state != KARST_STATE_FREE;
        total->regions += used;
        total->bytes += used ? blocks[i].size : 0;
    }
    return true;
}

static int walk(const char *path, struct total *total) {
    struct karst_error error = {0};
    struct karst *session = karst_open_core(path, NULL, &error);
    if (!session || !karst_for_each_block(session, count, total, &error)) {
        fprintf(stderr, "count_slabs: %s\n", error.text);
        return 2;
    }
    karst_close(session);
    return 0;
}

struct slab {
    uint64_t header, first, regions, size;
};

static const uint8_t *at(const uint8_t *file, uint64_t address) {
    static const Elf64_Phdr *last;
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    const Elf64_Phdr *segments = (const Elf64_Phdr *)(file + header->e_phoff);
    if (last && address - last->p_vaddr < last->p_filesz) {
        return file + last->p_offset + (address - last->p_vaddr);
    }
    for (unsigned i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type == PT_LOAD && address - segments[i].p_vaddr < segments[i].p_filesz) {
            last = &segments[i];
            return file + last->p_offset + (address - last->p_vaddr);
        }
    }
    return NULL;
}

static struct slab *read_list(const char *path, size_t *slabs) {
    FILE *list = fopen(path, "r");
    struct slab *all = NULL, one;
    size_t room = 0;
    while (list && fscanf(list, "%" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64, &one.header, &one.first,
                          &one.regions, &one.size) == 4) {
        if (*slabs == room) {
            room = room ? 2 * room : 4096;
            all = realloc(all, room * sizeof *all);
            if (!all) {
                exit(2);
            }
        }
        all[(*slabs)++] = one;
    }
    if (list) {
        fclose(list);
    }
    return all;
}

/* The extent says again what the list says (edata_t: address, size), which is read as the engine has to. */
static bool loop(const uint8_t *file, const struct slab *slabs, size_t number, struct total *total) {
    for (size_t i = 0; i < number; i++) {
        const uint8_t *header = at(file, slabs[i].header);
        uint64_t start, words[8], address = slabs[i].first;
        if (!header) {
            return false;
        }
        memcpy(&start, header + 8, sizeof start);
        memcpy(words, header + 64, sizeof words);
        if (start != address) {
            return false;
        }
        for (uint64_t region = 0; region < slabs[i].regions; region++, address += slabs[i].size) {
            uint64_t used = !(words[region / 64] >> region % 64 & 1);
            total->regions += used;
            total->bytes += used * slabs[i].size;
            __asm__ volatile("" : : "r"(address)); /* each region is looked at by itself */
        }
    }
    return true;
}

static int bare(const char *core, const char *list, struct total *total, double *seconds) {
    size_t number = 0;
    struct slab *slabs = read_list(list, &number);
    int descriptor = open(core, O_RDONLY);
    struct stat status;
    if (!slabs || descriptor < 0 || fstat(descriptor, &status) != 0) {
        fprintf(stderr, "count_slabs: no list, or no core\n");
        return 2;
    }
    *seconds = cpu_seconds();
    const uint8_t *file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (file == MAP_FAILED || !loop(file, slabs, number, total)) {
        fprintf(stderr, "count_slabs: the core has not what the list says\n");
        return 2;
    }
    free(slabs);
    return 0;
}

int main(int argc, char **argv) {
    struct total total = {0};
    double start = cpu_seconds();
    int status = argc == 3 && strcmp(argv[1], "karst") == 0  ? walk(argv[2], &total)
                 : argc == 4 && strcmp(argv[1], "bare") == 0 ? bare(argv[2], argv[3], &total, &start)
                                                             : 2;
    if (status == 0) {
        printf("%" PRIu64 " %" PRIu64 " %.4f\n", total.regions, total.bytes, cpu_seconds() - start);
    }
    return status;
}
