/* Pointers found and mappings told apart, in an address space made up here. */
#include <elf.h>

#include "check.h"
#include "fake_heap.h"
#include "maps.h"
#include "refs.h"
#include "threads.h"

/* ---- an address space -------------------------------------------------------------------------- */

#define HEAP  UINT64_C(0x500000)
#define DATA  UINT64_C(0x700000)
#define OTHER UINT64_C(0x710000)
#define STACK UINT64_C(0x900000)
#define ARENA UINT64_C(0xa00000)
#define LARGE (UINT64_C(1) << 40) /* zeros, more than can be searched before somebody asks to stop */

enum { RW = KARST_MAPPING_READ | KARST_MAPPING_WRITE };

static struct karst_mapping mappings[] = {
    {.start = 0x400000,
     .end = 0x401000,
     .permissions = KARST_MAPPING_READ | KARST_MAPPING_EXECUTE,
     .name = "/bin/victim"},
    {.start = HEAP, .end = HEAP + 0x8000, .permissions = RW, .name = "[heap]"},
    {.start = DATA, .end = DATA + 0x1000, .permissions = RW, .name = "/bin/victim", .inode = 7},
    {.start = DATA + 0x1000, .end = DATA + 0x2000, .permissions = RW}, /* its bss */
    {.start = OTHER, .end = OTHER + 0x2000, .permissions = RW},
    {.start = OTHER + 0x3000, .end = OTHER + 0x4000, .permissions = RW},                 /* behind a gap */
    {.start = OTHER + 0x4000, .end = OTHER + 0x5000, .permissions = KARST_MAPPING_READ}, /* mprotect */
    {.start = OTHER + 0x5000, .end = OTHER + 0x6000, .permissions = RW, .name = "[anon:pool]"},
    {.start = OTHER + 0x6000, .end = OTHER + 0x7000, .permissions = RW, .name = "[anon:other]"},
    {.start = OTHER + 0x7000, .end = OTHER + 0x8000, .permissions = RW, .name = "[anon:other]"},
    {.start = OTHER + 0x9000,
     .end = OTHER + 0xa000,
     .permissions = RW | KARST_MAPPING_SHARED,
     .name = "/dev/shm/x"},
    {.start = STACK - 0x1000, .end = STACK, .permissions = 0}, /* guard */
    {.start = STACK, .end = STACK + 0x4000, .permissions = RW},
    {.start = ARENA, .end = ARENA + 0x2000, .permissions = RW},
    {.start = ARENA + 0x2000, .end = ARENA + 0x10000, .permissions = 0}, /* its tail */
    {.start = 0xb00000,
     .end = 0xb01000,
     .permissions = KARST_MAPPING_READ | KARST_MAPPING_EXECUTE,
     .name = "[vdso]"},
    {.start = UINT64_C(0xffffffffff600000),
     .end = UINT64_C(0xffffffffff601000),
     .permissions = KARST_MAPPING_EXECUTE,
     .name = "[vsyscall]"},
};
#define MAPPINGS (sizeof mappings / sizeof *mappings)

static struct karst_thread threads[] = {
    {.tid = 11,
     .stack_pointer = STACK + 0x1000,
     .thread_pointer = STACK + 0x3800,
     .register_count = 27,
     .name = "worker"},
};
static struct karst_module modules[] = {{.path = "/bin/victim", .start = 0x400000, .end = DATA + 0x2000}};
static uint8_t memory[MAPPINGS][0x10000];
static struct fake_heap fake;
static uint64_t unreadable; /* a page that can't be read; 0: none */

static size_t read_memory(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    (void)target;
    if (address >= LARGE && address < 2 * LARGE) {
        memset(buffer, 0, size);
        return size;
    }
    for (size_t i = 0; i < MAPPINGS; i++) {
        uint64_t end = mappings[i].end;
        if (unreadable >= mappings[i].start && unreadable < end && address < unreadable + FAKE_PAGE) {
            if (address >= unreadable) {
                return 0;
            }
            end = unreadable;
        }
        if (address >= mappings[i].start && address < end && mappings[i].permissions & KARST_MAPPING_READ) {
            size = end - address < size ? (size_t)(end - address) : size;
            memcpy(buffer, memory[i] + (address - mappings[i].start), size);
            return size;
        }
    }
    return 0;
}

static void put(uint64_t address, uint64_t value) {
    for (size_t i = 0; i < MAPPINGS; i++) {
        if (address >= mappings[i].start && address < mappings[i].end) {
            memcpy(memory[i] + (address - mappings[i].start), &value, sizeof value);
        }
    }
}

static const struct karst_target_ops ops = {.read = read_memory, .resident = fake_resident};
static uint64_t target_block, live_block, free_block, cached_block, top_block, arena_block;

/* live (the one that is looked for), live, free, cached, damaged, top; one live in another arena's heap. */
static void begin(void) {
    memset(memory, 0, sizeof memory);
    unreadable = 0;
    fake_begin(&fake);
    fake_extent(&fake, HEAP, KARST_EXTENT_BRK, 0);
    target_block = fake_live(&fake, 0x100)->start;
    live_block = fake_live(&fake, 0x1000)->start;
    free_block = fake_free(&fake, 0x800)->start;
    cached_block = fake_add(&fake, KARST_STATE_CACHED, 0x40, FAKE_TCACHE)->start;
    fake_add(&fake, KARST_STATE_UNKNOWN, 0x40, KARST_NONE);
    top_block = fake_add(&fake, KARST_STATE_TOP, HEAP + 0x8000 - fake.next, KARST_NONE)->start;
    fake_extent(&fake, ARENA, KARST_EXTENT_HEAP, 1);
    arena_block = fake_live(&fake, 0x2000)->start;
    fake.target.ops = &ops;
    fake.target.kind = KARST_TARGET_CALLBACKS;
    fake.target.machine = EM_X86_64;
    fake.target.mappings = mappings;
    fake.target.mapping_count = MAPPINGS;
    fake.target.threads = threads;
    fake.target.thread_count = sizeof threads / sizeof *threads;
    fake.target.modules = modules;
    fake.target.module_count = sizeof modules / sizeof *modules;
    fake.target.executable = (char *)modules[0].path;
    fake.target.name = (char *)"made up";
    memset(threads[0].registers, 0, sizeof threads[0].registers);
}

static bool find(struct karst_refs *refs, uint64_t address, size_t limit) {
    struct karst_error error = {0};
    bool found = karst_refs_find(&fake.session, address, limit, refs, &error);
    if (!CHECK(found)) {
        fprintf(stderr, "    %s\n", error.text);
    }
    return found;
}

/* ---- refs ---------------------------------------------------------------------------------------- */

static void check_ref(const struct karst_refs *refs, size_t index, enum karst_ref_kind kind, uint64_t address,
                      uint64_t value, int64_t offset) {
    if (!CHECK(index < refs->refs.count)) {
        return;
    }
    const struct karst_ref *ref = karst_best_item(&refs->refs, index);
    bool good = CHECK_EQUAL(ref->kind, kind);
    good &= CHECK_EQUAL(ref->address, address);
    good &= CHECK_EQUAL(ref->value, value);
    good &= CHECK_EQUAL((uint64_t)ref->offset, (uint64_t)offset);
    if (!good) {
        fprintf(stderr, "    reference %zu\n", index);
    }
}

static void test_every_kind(void) {
    struct karst_refs refs;
    begin();
    uint64_t exact = target_block + 16, interior = target_block + 0x30, header = target_block;
    threads[0].registers[14] = exact; /* rdi */
    put(STACK + 0x1008, interior);
    put(STACK + 0x0800, exact); /* below the stack pointer */
    put(STACK + 0x3900, exact); /* the thread's own */
    put(DATA + 0x40, exact);
    put(DATA + 0x1040, header); /* bss */
    put(OTHER + 0x18, interior);
    put(live_block + 0x20, exact);
    put(free_block + 0x20, exact);
    put(cached_block + 0x10, exact);
    put(top_block + 0x10, exact);
    put(cached_block + 0x40, exact); /* damaged */
    put(arena_block + 0x1ff8, exact);
    put(target_block + 0x18, interior);      /* itself */
    put(OTHER + 0x9000, exact);              /* shared: not looked at */
    put(OTHER + 0x4000, exact);              /* can't be written: not looked at */
    put(OTHER + 0x24, exact);                /* not aligned */
    put(OTHER + 0x40, target_block + 0x100); /* just behind it */
    put(OTHER + 0x48, target_block - 1);
    if (!find(&refs, target_block + 0x50, 100)) {
        return;
    }
    CHECK(refs.has_block && refs.block.start == target_block);
    check_ref(&refs, 0, KARST_REF_REGISTER, 0, exact, 0);
    CHECK(strcmp(karst_register_name(&fake.target, ((struct karst_ref *)karst_best_item(&refs.refs, 0))->reg),
                 "rdi") == 0);
    check_ref(&refs, 1, KARST_REF_STACK, STACK + 0x1008, interior, 8);
    check_ref(&refs, 2, KARST_REF_THREAD, STACK + 0x3900, exact, 0x100);
    check_ref(&refs, 3, KARST_REF_GLOBAL, DATA + 0x40, exact, 0);
    check_ref(&refs, 4, KARST_REF_GLOBAL, DATA + 0x1040, header, 0);
    check_ref(&refs, 5, KARST_REF_LIVE, target_block + 0x18, interior, 8);
    check_ref(&refs, 6, KARST_REF_LIVE, live_block + 0x20, exact, 0x10);
    check_ref(&refs, 7, KARST_REF_LIVE, arena_block + 0x1ff8, exact, 0x1fe8);
    check_ref(&refs, 8, KARST_REF_OTHER, OTHER + 0x18, interior, 0);
    check_ref(&refs, 9, KARST_REF_FREED, free_block + 0x20, exact, 0x10);
    check_ref(&refs, 10, KARST_REF_FREED, cached_block + 0x10, exact, 0);
    check_ref(&refs, 11, KARST_REF_FREED, top_block + 0x10, exact, 0);
    check_ref(&refs, 12, KARST_REF_DEAD_STACK, STACK + 0x800, exact, -0x800);
    check_ref(&refs, 13, KARST_REF_UNKNOWN, cached_block + 0x40, exact, -0x10);
    CHECK_EQUAL(refs.refs.count, 14);
    CHECK_EQUAL(refs.counts[KARST_REF_GLOBAL].exact, 1);
    CHECK_EQUAL(refs.counts[KARST_REF_GLOBAL].interior, 1);
    CHECK_EQUAL(refs.unreadable, 0);
    karst_refs_close(&refs);
}

/* All are counted, few are kept; random places in heaps of any shape, handed over in batches of any size. */
static void test_counts(void) {
    uint64_t random = 3;
    for (unsigned round = 0; round < 30; round++) {
        struct karst_refs refs;
        uint64_t planted = 0;
        begin();
        fake.batch = round % 4;
        for (unsigned i = 0; i < round * 20; i++) {
            uint64_t base = i % 3 == 0 ? HEAP : i % 3 == 1 ? ARENA : OTHER;
            put(base + fake_random(&random) % 0x2000 / 8 * 8, target_block + fake_random(&random) % 0x100);
        }
        for (size_t i = 0; i < MAPPINGS; i++) {
            for (uint64_t at = 0; at < mappings[i].end - mappings[i].start; at += 8) {
                uint64_t word;
                memcpy(&word, memory[i] + at, sizeof word);
                planted += word - target_block < 0x100;
            }
        }
        if (find(&refs, target_block, 5)) {
            uint64_t counted = 0;
            for (size_t kind = 0; kind < KARST_REF_KINDS; kind++) {
                counted += refs.counts[kind].exact + refs.counts[kind].interior;
            }
            CHECK_EQUAL(counted, planted);
            CHECK_EQUAL(refs.refs.count, planted < 5 ? planted : 5);
            karst_refs_close(&refs);
        }
    }
}

static void test_outside_heaps(void) {
    struct karst_refs refs;
    begin();
    put(OTHER + 0x100, 0xdead0000);
    put(OTHER + 0x108, 0xdead0001);
    put(HEAP + 0x108, 0xdead0000);
    if (find(&refs, 0xdead0000, 10)) {
        CHECK(!refs.has_block);
        CHECK_EQUAL(refs.refs.count, 2);
        check_ref(&refs, 0, KARST_REF_LIVE, HEAP + 0x108, 0xdead0000,
                  (int64_t)(HEAP + 0x108 - live_block - 16));
        check_ref(&refs, 1, KARST_REF_OTHER, OTHER + 0x100, 0xdead0000, 0);
        karst_refs_close(&refs);
    }
}

static void test_unreadable(void) {
    struct karst_refs refs;
    begin();
    unreadable = OTHER;
    put(OTHER + 0x18, target_block);
    put(OTHER + 0x1018, target_block);
    if (find(&refs, target_block, 10)) {
        CHECK_EQUAL(refs.refs.count, 1);
        check_ref(&refs, 0, KARST_REF_OTHER, OTHER + 0x1018, target_block, 0);
        CHECK_EQUAL(refs.unreadable, FAKE_PAGE);
        karst_refs_close(&refs);
    }
}

static bool stop(void *context, const char *what, uint64_t done, uint64_t total) {
    (void)context;
    (void)what;
    (void)done;
    (void)total;
    return false;
}

static void test_interrupt(void) {
    static struct karst_mapping large[] = {{.start = LARGE, .end = 2 * LARGE, .permissions = RW}};
    struct karst_refs refs;
    struct karst_error error = {0};
    begin();
    fake.target.mappings = large;
    fake.target.mapping_count = 1;
    fake.session.options.poll = stop;
    CHECK(!karst_refs_find(&fake.session, target_block, 5, &refs, &error));
    CHECK_EQUAL(error.code, KARST_ERROR_INTERRUPTED);
}

/* ---- maps ---------------------------------------------------------------------------------------- */

struct listing {
    struct karst_map maps[MAPPINGS];
    size_t count;
};

static bool list(void *context, const struct karst_map *map) {
    struct listing *listing = context;
    listing->maps[listing->count++] = *map;
    return true;
}

static void test_maps(void) {
    static const struct {
        enum karst_map_owner owner;
        enum karst_map_reason reason;
    } expected[MAPPINGS] = {
        {KARST_MAP_EXECUTABLE_TEXT, KARST_MAP_OF_FILE}, {KARST_MAP_BRK, KARST_MAP_FIRST},
        {KARST_MAP_EXECUTABLE_DATA, KARST_MAP_OF_FILE}, {KARST_MAP_EXECUTABLE_BSS, KARST_MAP_OF_FILE},
        {KARST_MAP_ANONYMOUS, KARST_MAP_GAP},           {KARST_MAP_ANONYMOUS, KARST_MAP_GAP},
        {KARST_MAP_ANONYMOUS, KARST_MAP_PROTECTED},     {KARST_MAP_ANONYMOUS, KARST_MAP_PROTECTED},
        {KARST_MAP_ANONYMOUS, KARST_MAP_NAMED},         {KARST_MAP_ANONYMOUS, KARST_MAP_HIDDEN},
        {KARST_MAP_SHARED, KARST_MAP_SHARED_MEMORY},    {KARST_MAP_GUARD, KARST_MAP_OF_GUARD},
        {KARST_MAP_STACK, KARST_MAP_OF_STACK},          {KARST_MAP_ARENA, KARST_MAP_OF_ARENA},
        {KARST_MAP_ARENA_TAIL, KARST_MAP_OF_ARENA},     {KARST_MAP_KERNEL, KARST_MAP_OF_KERNEL},
        {KARST_MAP_KERNEL, KARST_MAP_OF_KERNEL}};
    struct listing listing = {.count = 0};
    struct karst_maps maps;
    struct karst_error error = {0};
    begin();
    if (!CHECK(karst_maps_count(&fake.session, &maps, list, &listing, &error))) {
        return;
    }
    uint64_t reasons = 0, owners = 0, bytes = 0;
    CHECK_EQUAL(listing.count, MAPPINGS);
    for (size_t i = 0; i < MAPPINGS; i++) {
        bool good = CHECK_EQUAL(listing.maps[i].owner, expected[i].owner);
        good &= CHECK_EQUAL(listing.maps[i].reason, expected[i].reason);
        if (!good) {
            fprintf(stderr, "    mapping %zu at 0x%" PRIx64 "\n", i, mappings[i].start);
        }
        bytes += i + 1 < MAPPINGS ? mappings[i].end - mappings[i].start : 0;
    }
    for (size_t i = 0; i < KARST_MAP_REASONS; i++) {
        reasons += maps.reasons[i];
    }
    for (size_t i = 0; i < KARST_MAP_OWNERS; i++) {
        owners += maps.owners[i].mappings;
    }
    /* The vsyscall page is no mapping of the process. */
    CHECK_EQUAL(maps.total.mappings, MAPPINGS - 1);
    CHECK_EQUAL(maps.total.bytes, bytes);
    CHECK_EQUAL(reasons, MAPPINGS - 1);
    CHECK_EQUAL(owners, MAPPINGS - 1);
    CHECK_EQUAL((uint64_t)listing.maps[12].thread->tid, 11);
    CHECK_EQUAL((uint64_t)listing.maps[11].thread->tid, 11);
    CHECK(!maps.limit_is_known);
    CHECK_EQUAL(maps.limit, 65530);
    CHECK_EQUAL(maps.gap_bytes, 0x1000 + (OTHER - DATA - 0x2000));
}

int main(void) {
    test_every_kind();
    test_counts();
    test_outside_heaps();
    test_unreadable();
    test_interrupt();
    test_maps();
    return checks_done();
}
