/* The engine's walk over jemalloc's regions with the least possible consumer, and the bare loop to hold it
 * against.
 *
 *   count_slabs karst CORE        the engine: opens the core, finds the heap, walks it; caches included
 *   count_slabs bulk CORE         the engine once it has found the heap: walks it, slabs as wholes
 *   count_slabs bare CORE LIST    reads the headers and bitmaps in LIST (from `runs`: header, first region,
 *                                 regions, size, in hexadecimal, a line each) and looks at each region's bit
 *   count_slabs words CORE LIST   the same, and counts bits by words
 *   count_slabs tree CORE ROOT    has no list: finds the slabs as the engine has to, by jemalloc's radix tree
 * (of 5.3, 48-bit addresses, whose root stands at ROOT, in hexadecimal), and counts bits by words
 *
 * Each prints: regions in use, their bytes, CPU seconds that the loop took (karst: all it did). */
#include <elf.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "session.h"

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

struct counting_sink {
    struct karst_sink sink;
    struct total total;
};

static bool count_blocks(struct karst_sink *sink, const struct karst_block *blocks, size_t number) {
    return count(&((struct counting_sink *)sink)->total, blocks, number);
}

static bool count_regions(struct karst_sink *base, const struct karst_regions *regions) {
    struct total *total = &((struct counting_sink *)base)->total;
    uint64_t used = regions->count;
    for (uint32_t word = 0; word * 64 < regions->count; word++) {
        used -= (uint64_t)__builtin_popcountll(regions->free[word]);
    }
    total->regions += used;
    total->bytes += used * regions->size;
    return true;
}

static int walk_in_bulk(const char *path, struct total *total, double *start) {
    struct karst_error error = {0};
    struct counting_sink sink = {
        .sink = {.blocks = count_blocks, .regions = count_regions, .regions_below = UINT64_MAX}};
    struct karst *session = karst_open_core(path, NULL, &error);
    if (!session || !karst_session_find_heaps(session, &error)) {
        fprintf(stderr, "count_slabs: %s\n", error.text);
        return 2;
    }
    *start = cpu_seconds();
    if (!karst_session_walk(session, 0, UINT64_MAX, &sink.sink, &error)) {
        fprintf(stderr, "count_slabs: %s\n", error.text);
        return 2;
    }
    *total = sink.total;
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
static bool loop(const uint8_t *file, const struct slab *slabs, size_t number, bool by_words,
                 struct total *total) {
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
        for (uint64_t word = 0; by_words && word * 64 < slabs[i].regions; word++) {
            uint64_t rest = slabs[i].regions - word * 64;
            uint64_t used =
                (uint64_t)__builtin_popcountll(~words[word] & (rest < 64 ? (1ull << rest) - 1 : UINT64_MAX));
            total->regions += used;
            total->bytes += used * slabs[i].size;
        }
        for (uint64_t region = 0; !by_words && region < slabs[i].regions;
             region++, address += slabs[i].size) {
            uint64_t used = !(words[region / 64] >> region % 64 & 1);
            total->regions += used;
            total->bytes += used * slabs[i].size;
            __asm__ volatile("" : : "r"(address)); /* each region is looked at by itself */
        }
    }
    return true;
}

#define TREE_ENTRIES (1u << 18) /* of the root, and of a leaf: rtree.h */
#define PAGE_SHIFT   12

static uint64_t class_size(unsigned index) {
    return index == 0   ? 8
           : index <= 8 ? 16ull * index
                        : (128ull << (index - 9) / 4) / 4 * ((index - 9) % 4 + 5);
}

/* One extent, by its element in the tree; how many pages it takes, 0: it is not there. Elements are left
 * behind by extents that are gone, or have grown: they lead to one that begins elsewhere. */
static uint64_t count_extent(const uint8_t *file, uint64_t element, uint64_t page, struct total *total) {
    uint64_t words[8], bits, start, size;
    const uint8_t *header = at(file, element << 16 >> 16 & ~127ull);
    if (!header) {
        return 0;
    }
    memcpy(&bits, header, sizeof bits);
    memcpy(&start, header + 8, sizeof start);
    memcpy(&size, header + 16, sizeof size);
    if (start >> PAGE_SHIFT != page) {
        return 1;
    }
    if (bits >> 12 & 1 && (bits >> 17 & 7) == 0) { /* a slab, in use */
        uint64_t region = class_size((unsigned)(element >> 48)),
                 regions = (size >> PAGE_SHIFT << PAGE_SHIFT) / region;
        memcpy(words, header + 64, sizeof words);
        for (uint64_t word = 0; word * 64 < regions; word++) {
            uint64_t rest = regions - word * 64;
            uint64_t used =
                (uint64_t)__builtin_popcountll(~words[word] & (rest < 64 ? (1ull << rest) - 1 : UINT64_MAX));
            total->regions += used;
            total->bytes += used * region;
        }
    }
    return size >> PAGE_SHIFT;
}

static bool climb(const uint8_t *file, uint64_t root, struct total *total) {
    const uint64_t *leaves = (const uint64_t *)at(file, root);
    for (size_t i = 0; leaves && i < TREE_ENTRIES; i++) {
        const uint64_t *leaf = leaves[i] ? (const uint64_t *)at(file, leaves[i]) : NULL;
        if (leaves[i] && !leaf) {
            return false;
        }
        for (size_t page = 0; leaf && page < TREE_ENTRIES;) {
            uint64_t pages =
                leaf[page] << 16 ? count_extent(file, leaf[page], i * TREE_ENTRIES + page, total) : 1;
            if (pages == 0) {
                return false;
            }
            page += pages;
        }
    }
    return leaves != NULL;
}

static int bare_tree(const char *core, const char *root, struct total *total, double *start) {
    int descriptor = open(core, O_RDONLY);
    struct stat status;
    if (descriptor < 0 || fstat(descriptor, &status) != 0) {
        fprintf(stderr, "count_slabs: no core\n");
        return 2;
    }
    struct total first = {0};
    const uint8_t *file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    bool fine = file != MAP_FAILED && climb(file, strtoull(root, NULL, 16), &first);
    *start = cpu_seconds();
    if (!fine || !climb(file, strtoull(root, NULL, 16), total)) {
        fprintf(stderr, "count_slabs: there is no radix tree of jemalloc 5.3\n");
        return 2;
    }
    return 0;
}

static int bare(const char *core, const char *list, bool by_words, struct total *total, double *start) {
    size_t number = 0;
    struct slab *slabs = read_list(list, &number);
    int descriptor = open(core, O_RDONLY);
    struct stat status;
    if (!slabs || descriptor < 0 || fstat(descriptor, &status) != 0) {
        fprintf(stderr, "count_slabs: no list, or no core\n");
        return 2;
    }
    struct total first = {0};
    const uint8_t *file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    bool fine = file != MAP_FAILED && loop(file, slabs, number, by_words, &first);
    *start = cpu_seconds(); /* all is mapped by now, as it is for a walk once the heap was found */
    if (!fine || !loop(file, slabs, number, by_words, total)) {
        fprintf(stderr, "count_slabs: the core has not what the list says\n");
        return 2;
    }
    free(slabs);
    return 0;
}

int main(int argc, char **argv) {
    struct total total = {0};
    double start = cpu_seconds();
    const char *what = argc > 1 ? argv[1] : "";
    int status = 2;
    if (argc == 3 && strcmp(what, "karst") == 0) {
        status = walk(argv[2], &total);
    } else if (argc == 3 && strcmp(what, "bulk") == 0) {
        status = walk_in_bulk(argv[2], &total, &start);
    } else if (argc == 4 && (strcmp(what, "bare") == 0 || strcmp(what, "words") == 0)) {
        status = bare(argv[2], argv[3], strcmp(what, "words") == 0, &total, &start);
    }
    if (argc == 4 && strcmp(what, "tree") == 0) {
        status = bare_tree(argv[2], argv[3], &total, &start);
    }
    if (status == 0) {
        printf("%" PRIu64 " %" PRIu64 " %.4f\n", total.regions, total.bytes, cpu_seconds() - start);
    }
    return status;
}
