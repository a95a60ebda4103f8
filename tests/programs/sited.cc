// sited: allocates at known places by every function there is, from several threads, frees and moves most of
// it, and says what is left of each place: lines "site FUNCTION BLOCKS BYTES" (bytes asked for). Then "ready
// PID", and it waits; with "abort" as the last word it dies for a core.
//
// sited THREADS ROUNDS [late] [abort]; late: marks are turned on in the middle, by the library's control
// block.
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "../../helper/include/karst-abi.h"
#include "splitmix.h"

static const size_t SITES = 14, SLOTS = 600, THREADS_MAX = 16;

struct block {
    void *address;
    size_t size;
    int site; // -1: from before the marks
};

static const char *const names[SITES] = {
    "by_malloc",         "by_calloc",        "by_realloc",     "by_reallocarray", "by_memalign",
    "by_posix_memalign", "by_aligned_alloc", "by_valloc",      "by_pvalloc",      "by_new",
    "by_new_array",      "by_new_aligned",   "by_new_nothrow", "by_realloc_null"};

extern "C" {
#define PLACE __attribute__((noinline)) void *
PLACE by_malloc(size_t size) {
    return malloc(size);
}
PLACE by_calloc(size_t size) {
    void *block = calloc(1, size);
    for (size_t i = 0; i < size; i++) {
        if (static_cast<char *>(block)[i]) {
            abort(); // not zeroed
        }
    }
    return block;
}
PLACE by_realloc(void *old, size_t size) {
    return realloc(old, size);
}
PLACE by_reallocarray(void *old, size_t size) {
    return reallocarray(old, size, 1);
}
PLACE by_memalign(size_t size) {
    return memalign(256, size);
}
PLACE by_posix_memalign(size_t size) {
    void *block = nullptr;
    return posix_memalign(&block, 64, size) ? nullptr : block;
}
PLACE by_aligned_alloc(size_t size) {
    return aligned_alloc(32, size);
}
PLACE by_valloc(size_t size) {
    return valloc(size);
}
PLACE by_pvalloc(size_t size) {
    return pvalloc(size);
}
PLACE by_new(size_t size) {
    return operator new(size);
}
PLACE by_new_array(size_t size) {
    return operator new[](size);
}
PLACE by_new_aligned(size_t size) {
    return operator new(size, std::align_val_t(128));
}
PLACE by_new_nothrow(size_t size) {
    return operator new(size, std::nothrow);
}
PLACE by_realloc_null(size_t size) {
    return realloc(nullptr, size);
}
}

static size_t rounds;
static bool no_pvalloc; // jemalloc has none: libc's would give blocks that jemalloc is to free
static pthread_barrier_t barrier;
static block slots[THREADS_MAX][SLOTS];

static size_t random_size(uint64_t *state) {
    uint64_t kind = next_random(state) % 1000;
    uint64_t most = kind < 700 ? 100 : kind < 950 ? 2000 : kind < 998 ? 40000 : 400000;
    return next_random(state) % most;
}

static bool is_operator(int site) {
    return site >= 9 && site <= 12;
}

static void *allocate(int site, size_t size) {
    static void *(*const places[SITES])(size_t) = {
        by_malloc, by_calloc,  nullptr, nullptr,      by_memalign,    by_posix_memalign, by_aligned_alloc,
        by_valloc, by_pvalloc, by_new,  by_new_array, by_new_aligned, by_new_nothrow,    by_realloc_null};
    return places[site](size);
}

static void release(const block &slot) {
    switch (slot.site) {
    case 9:
    case 12:
        operator delete(slot.address);
        break;
    case 10:
        operator delete[](slot.address);
        break;
    case 11:
        operator delete(slot.address, std::align_val_t(128));
        break;
    default:
        free(slot.address);
    }
}

static void check(const block &slot, bool fill) {
    unsigned char *bytes = static_cast<unsigned char *>(slot.address);
    unsigned char mark = static_cast<unsigned char>(reinterpret_cast<uintptr_t>(bytes) >> 4);
    if (fill) {
        memset(bytes, mark, slot.size);
    } else if (slot.size && (bytes[0] != mark || bytes[slot.size - 1] != mark)) {
        abort(); // overwritten
    }
}

static void work_slot(block &slot, uint64_t *random) {
    size_t size = random_size(random);
    bool moves = slot.address && !is_operator(slot.site) && next_random(random) % 3 == 0;
    if (moves) {
        int site = 2 + static_cast<int>(next_random(random) % 2);
        size_t bytes = size ? size : 1;
        check(slot, false);
        slot.address = site == 2 ? by_realloc(slot.address, bytes) : by_reallocarray(slot.address, bytes);
        slot.size = bytes;
        slot.site = site;
    } else {
        if (slot.address) {
            check(slot, false);
            release(slot);
        }
        int site;
        do {
            site = static_cast<int>(next_random(random) % SITES);
        } while (site == 2 || site == 3 || (site == 8 && (no_pvalloc || next_random(random) % 8)));
        slot.address = allocate(site, size);
        slot.size = site == 8 ? (size + 4095) / 4096 * 4096 : size;
        slot.site = site;
    }
    if (!slot.address) {
        abort();
    }
    check(slot, true);
}

static void *work(void *argument) {
    block *mine = static_cast<block *>(argument);
    uint64_t random = static_cast<uint64_t>(mine - slots[0]) + 1;
    for (size_t i = 0; i < rounds; i++) {
        work_slot(mine[next_random(&random) % SLOTS], &random);
    }
    pthread_barrier_wait(&barrier);
    for (;;) {
        pause();
    }
    return nullptr;
}

// What a debugger does to a running process.
static void turn_marks_on() {
    auto *control = static_cast<karst_control *>(dlsym(RTLD_DEFAULT, "karst_control"));
    if (!control) {
        return;
    }
    control->wanted |= KARST_GATE_MARK;
    for (unsigned i = 0; i < KARST_GATES; i++) {
        __atomic_or_fetch(&control->gates[i], KARST_GATE_CHANGED, __ATOMIC_SEQ_CST);
    }
}

int main(int argc, char **argv) {
    size_t threads = argc > 1 ? strtoul(argv[1], nullptr, 0) : 2;
    bool late = argc > 3 && strcmp(argv[3], "late") == 0,
         dies = argc > 3 && strcmp(argv[argc - 1], "abort") == 0;
    rounds = argc > 2 ? strtoul(argv[2], nullptr, 0) : 10000;
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    no_pvalloc = getenv("SITED_NO_PVALLOC") != nullptr;
    pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(threads) + 1);
    if (late) {
        uint64_t random = 99;
        for (size_t thread = 0; thread < threads; thread++) {
            for (size_t i = 0; i < SLOTS; i++) {
                slots[thread][i].size = random_size(&random) + 1;
                slots[thread][i].address = malloc(slots[thread][i].size);
                slots[thread][i].site = -1;
                check(slots[thread][i], true);
            }
        }
        turn_marks_on();
    }
    for (size_t i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, work, slots[i])) {
            return 3;
        }
    }
    pthread_barrier_wait(&barrier);
    size_t blocks[SITES] = {}, bytes[SITES] = {};
    for (size_t i = 0; i < threads * SLOTS; i++) {
        const block &slot = slots[i / SLOTS][i % SLOTS];
        if (slot.address && slot.site >= 0) {
            check(slot, false);
            blocks[slot.site]++;
            bytes[slot.site] += slot.size;
        }
    }
    for (size_t i = 0; i < SITES; i++) {
        printf("site %s %zu %zu\n", names[i], blocks[i], bytes[i]);
    }
    printf("ready %d\n", getpid());
    fflush(stdout);
    if (dies) {
        abort();
    }
    pause();
}
