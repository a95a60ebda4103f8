/* libFuzzer: the input is a process's memory, lent by callbacks: nothing but the walker is in the way.
 *
 *   u8 segments, u8 threads, 6 bytes unused
 *   a thread:  u64 thread pointer, u64 stack pointer
 *   a segment: u64 address, u64 size, u32 bytes of it that are there, u8 kind, u8 permissions as in an ELF
 *              program header, 2 bytes unused. kind 0: anonymous, 1: of libc, 2: [heap], 3: [stack]
 *   then the bytes of all segments
 *
 * cut_seeds.py makes such inputs from cores. What is missing of either is not there.
 */
#include <string.h>

#include "run_verbs.h"

#define SEGMENTS_MAX 32
#define THREADS_MAX  8

struct segment {
    uint64_t address, size;
    uint32_t stored;
    uint8_t kind, permissions, unused[2];
};

struct memory {
    struct segment segments[SEGMENTS_MAX];
    const uint8_t *bytes[SEGMENTS_MAX];
    size_t segment_count;
    uint64_t threads[THREADS_MAX][2];
    size_t thread_count;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool take(const uint8_t **data, size_t *left, void *to, size_t size) {
    if (*left < size) {
        return false;
    }
    memcpy(to, *data, size);
    *data += size;
    *left -= size;
    return true;
}

static bool parse(struct memory *memory, const uint8_t *data, size_t left) {
    uint8_t head[8];
    if (!take(&data, &left, head, sizeof head)) {
        return false;
    }
    memory->segment_count = head[0] % (SEGMENTS_MAX + 1);
    memory->thread_count = head[1] % (THREADS_MAX + 1);
    if (!take(&data, &left, memory->threads, memory->thread_count * sizeof *memory->threads) ||
        !take(&data, &left, memory->segments, memory->segment_count * sizeof *memory->segments)) {
        return false;
    }
    for (size_t i = 0; i < memory->segment_count; i++) {
        struct segment *segment = &memory->segments[i];
        segment->stored = segment->stored < left ? segment->stored : (uint32_t)left;
        memory->bytes[i] = data;
        data += segment->stored;
        left -= segment->stored;
    }
    return true;
}

static size_t read_memory(void *context, uint64_t address, void *buffer, size_t size) {
    const struct memory *memory = context;
    for (size_t i = 0; i < memory->segment_count; i++) {
        const struct segment *segment = &memory->segments[i];
        if (address >= segment->address && address - segment->address < segment->stored) {
            size_t there = segment->stored - (size_t)(address - segment->address);
            there = there < size ? there : size;
            memcpy(buffer, memory->bytes[i] + (address - segment->address), there);
            return there;
        }
    }
    return 0;
}

static bool tell_mapping(void *context, size_t index, struct karst_mapping *mapping) {
    static const char *const names[] = {NULL, "/nonexistent/libc.so.6", "[heap]", "[stack]"};
    const struct memory *memory = context;
    if (index >= memory->segment_count) {
        return false;
    }
    const struct segment *segment = &memory->segments[index];
    uint32_t permissions = segment->permissions;
    *mapping = (struct karst_mapping){.start = segment->address,
                                      .end = segment->address + segment->size,
                                      .inode = segment->kind % 4 == 1,
                                      .name = names[segment->kind % 4],
                                      .permissions = (permissions & 4 ? KARST_MAPPING_READ : 0u) |
                                                     (permissions & 2 ? KARST_MAPPING_WRITE : 0u) |
                                                     (permissions & 1 ? KARST_MAPPING_EXECUTE : 0u)};
    return true;
}

static bool tell_thread(void *context, size_t index, struct karst_thread *thread) {
    const struct memory *memory = context;
    if (index >= memory->thread_count) {
        return false;
    }
    *thread = (struct karst_thread){.tid = 100 + (int64_t)index,
                                    .thread_pointer = memory->threads[index][0],
                                    .stack_pointer = memory->threads[index][1]};
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct memory memory;
    memset(&memory, 0, sizeof memory);
    if (!parse(&memory, data, size)) {
        return 0;
    }
    struct karst_options options = {.no_symbols = true};
    struct karst_callbacks callbacks = {
        .context = &memory, .read = read_memory, .mapping = tell_mapping, .thread = tell_thread};
    struct karst *session = karst_open_callbacks(&callbacks, &options, NULL);
    if (session) {
        run_verbs(session, UINT32_MAX, 0x55555555a000);
        karst_close(session);
    }
    return 0;
}
