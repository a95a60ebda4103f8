/* Windows over views and over buffers, and memory that a debugger lends. */
#include "check.h"
#include "core_writer.h"
#include "target.h"

/* A made-up address space: [BASE, BASE + SIZE) without the page at GAP; each byte is a function of its
 * address. The reader may be stingy and give no more than `most` bytes at once. */
#define BASE 0x100000u
#define SIZE 0x80000u
#define GAP  (BASE + 0x41000u)
#define PAGE 0x1000u

struct lender {
    size_t reads;
    size_t most;
    uint64_t odd_start; /* reads that begin below fail: a mapping that begins within a page */
    size_t mappings;
};

static uint8_t byte_at(uint64_t address) {
    return (uint8_t)(address * 7 + (address >> 8) + (address >> 16));
}

static size_t lend(void *context, uint64_t address, void *buffer, size_t size) {
    struct lender *lender = context;
    uint8_t *bytes = buffer;
    size_t done = 0;
    lender->reads++;
    size = lender->most && size > lender->most ? lender->most : size;
    for (; done < size; done++) {
        uint64_t at = address + done;
        if (at < BASE || at < lender->odd_start || at >= BASE + SIZE || at - GAP < PAGE) {
            break;
        }
        bytes[done] = byte_at(at);
    }
    return done;
}

static bool lend_mapping(void *context, size_t index, struct karst_mapping *mapping) {
    struct lender *lender = context;
    static char name[16]; /* another one with the next call */
    static const struct karst_mapping all[] = {
        {.start = GAP + PAGE, .end = BASE + SIZE, .permissions = KARST_MAPPING_READ | KARST_MAPPING_WRITE},
        {.start = BASE, .end = GAP, .permissions = KARST_MAPPING_READ | KARST_MAPPING_WRITE},
        {.start = 5, .end = 5},
        {.start = 10, .end = 4},
        {.start = BASE + 16, .end = BASE + 32},
    };
    if (index >= lender->mappings) {
        return false;
    }
    *mapping = all[index];
    snprintf(name, sizeof name, index == 1 ? "[heap]" : "[other]");
    mapping->name = index == 1 ? name : NULL;
    return true;
}

static bool lend_thread(void *context, size_t index, struct karst_thread *thread) {
    (void)context;
    *thread = (struct karst_thread){.tid = 5 + (int64_t)index, .register_count = 1000};
    memset(thread->name, 'x', sizeof thread->name);
    return index < 2;
}

static uint64_t lend_resident(void *context, uint64_t start, uint64_t end) {
    (void)context;
    return start == BASE ? 10 * (end - start) : UINT64_MAX;
}

static struct lender lender;

static struct karst_target *open_lent(void) {
    struct karst_error error = {0};
    struct karst_callbacks callbacks = {.context = &lender,
                                        .pid = 9,
                                        .read = lend,
                                        .mapping = lend_mapping,
                                        .thread = lend_thread,
                                        .resident = lend_resident};
    lender = (struct lender){.mappings = 5};
    struct karst_target *target = karst_callbacks_open(&callbacks, NULL, &error);
    if (!CHECK(target != NULL)) {
        fprintf(stderr, "    %s\n", error.text);
    }
    lender.reads = 0;
    return target;
}

static void test_lent(void) {
    struct karst_target *target = open_lent();
    if (!target) {
        return;
    }
    CHECK_EQUAL(target->mapping_count, 2);
    CHECK_EQUAL(target->mappings[0].start, BASE);
    CHECK_HAS(target->mappings[0].name, "[heap]");
    CHECK_EQUAL(target->remark_count, 1);
    CHECK_EQUAL(target->thread_count, 2);
    CHECK_EQUAL(strlen(target->threads[1].name), sizeof target->threads[1].name - 1);
    CHECK(target->threads[1].register_count <= KARST_REGISTERS_MAX);
    CHECK_EQUAL(karst_target_resident(target, BASE, BASE + 100), 100);
    CHECK_EQUAL(karst_target_resident(target, BASE + 1, BASE + 100), UINT64_MAX);
    CHECK_EQUAL(karst_target_resident(target, BASE + 1, BASE + 1), 0);
    CHECK_HAS(target->name, "9");
    karst_target_close(target);
}

static void test_lent_refusals(void) {
    struct karst_error error = {0};
    struct karst_callbacks callbacks = {.context = &lender, .read = lend};
    lender.mappings = 0;
    CHECK(karst_callbacks_open(NULL, NULL, &error) == NULL);
    CHECK(karst_callbacks_open(&callbacks, NULL, &error) == NULL);
    CHECK_EQUAL(error.code, KARST_ERROR_USAGE);
    callbacks.mapping = lend_mapping;
    CHECK(karst_callbacks_open(&callbacks, NULL, &error) == NULL);
    CHECK_EQUAL(error.code, KARST_ERROR_NOT_FOUND);
    callbacks.page_size = 1000;
    CHECK(karst_callbacks_open(&callbacks, NULL, &error) == NULL);
    CHECK_EQUAL(error.code, KARST_ERROR_USAGE);
}

static bool is_right(const uint8_t *bytes, uint64_t address, size_t size) {
    for (size_t i = 0; bytes && i < size; i++) {
        if (bytes[i] != byte_at(address + i)) {
            return false;
        }
    }
    return bytes != NULL;
}

static bool is_there(uint64_t address, size_t size) {
    return address >= BASE && address + size <= BASE + SIZE &&
           (address + size <= GAP || address >= GAP + PAGE);
}

/* Every answer is right, wherever it is asked for. */
static void check_places(struct karst_window *window, int places) {
    uint64_t state = 12345;
    for (int i = 0; i < places; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint64_t address = BASE - 2 * PAGE + (state >> 33) % (SIZE + 4 * PAGE);
        size_t size = 1 + (state >> 20) % 4096;
        const uint8_t *bytes = karst_window_at(window, address, size);
        if (is_there(address, size) ? !is_right(bytes, address, size) : bytes != NULL) {
            CHECK(is_there(address, size) ? is_right(bytes, address, size) : bytes == NULL);
            break;
        }
    }
}

static void test_buffered(void) {
    struct karst_target *target = open_lent();
    struct karst_window window;
    static const size_t capacities[] = {0, 1, 4096, 65536, 1 << 20};
    for (size_t i = 0; target && i < 5; i++) {
        karst_window_open(&window, target, capacities[i]);
        check_places(&window, capacities[i] > 4096 ? 500 : 20000);
        CHECK(karst_window_at(&window, BASE, 4097) == NULL || is_right(window.bytes, BASE, 4097));
        CHECK(karst_window_at(&window, UINT64_MAX, 1) == NULL);
        CHECK(karst_window_at(&window, UINT64_MAX - 7, 8) == NULL);
        CHECK(karst_window_at(&window, 0, 8) == NULL);
        CHECK(karst_window_at(&window, BASE, SIZE_MAX) == NULL);
        karst_window_close(&window);
    }
    karst_target_close(target);
}

/* A walk reads each byte about once, in large pieces. */
static void test_walk(void) {
    struct karst_target *target = open_lent();
    struct karst_window window;
    if (!target) {
        return;
    }
    karst_window_open(&window, target, 65536);
    for (uint64_t at = BASE; at + 24 <= GAP; at += 24) {
        if (!is_right(karst_window_at(&window, at, 24), at, 24)) {
            CHECK(is_right(karst_window_at(&window, at, 24), at, 24));
            break;
        }
    }
    CHECK(lender.reads <= 10);
    karst_window_close(&window);
    karst_target_close(target);
}

/* A memory that begins within a page, and a lender that gives little at a time. */
static void test_odd_lender(void) {
    struct karst_target *target = open_lent();
    struct karst_window window;
    if (!target) {
        return;
    }
    karst_window_open(&window, target, 65536);
    lender.odd_start = BASE + 100;
    CHECK(is_right(karst_window_at(&window, BASE + 100, 50), BASE + 100, 50));
    CHECK(karst_window_at(&window, BASE + 99, 50) == NULL);
    lender.odd_start = 0;
    lender.most = 512;
    for (uint64_t at = BASE + 3; at < BASE + 3 * PAGE; at += 111) {
        CHECK(is_right(karst_window_at(&window, at, 200), at, 200));
    }
    karst_window_close(&window);
    karst_target_close(target);
}

/* Segments that touch in memory but not in the file: views end there, requests do not. */
static void test_views(size_t capacity) {
    static struct core_writer writer;
    struct karst_window window;
    writer_begin(&writer);
    writer_load(&writer, BASE + PAGE, PAGE, PAGE, PF_R | PF_W, 0);
    writer_load(&writer, BASE, PAGE, PAGE, PF_R | PF_W, 0);
    writer_load(&writer, BASE + 2 * PAGE, 4 * PAGE, 4 * PAGE, PF_R | PF_W, 0);
    for (size_t i = 1; i <= 3; i++) {
        const Elf64_Phdr *segment = writer_segment(&writer, i);
        for (uint64_t k = 0; k < segment->p_filesz; k++) {
            writer.bytes[segment->p_offset + k] = byte_at(segment->p_vaddr + k);
        }
    }
    struct karst_target *target = karst_core_open(writer_file(&writer, writer.size), NULL, NULL);
    if (!CHECK(target != NULL)) {
        return;
    }
    karst_window_open(&window, target, capacity);
    for (uint64_t at = BASE; at + 4096 <= BASE + 6 * PAGE; at += 333) {
        CHECK(is_right(karst_window_at(&window, at, 16), at, 16));
        CHECK(is_right(karst_window_at(&window, at, 4096), at, 4096));
    }
    for (uint64_t at = BASE + 5 * PAGE; at > BASE; at -= 100) {
        CHECK(is_right(karst_window_at(&window, at, 100), at, 100));
    }
    CHECK(karst_window_at(&window, BASE + 6 * PAGE - 8, 16) == NULL);
    CHECK(is_right(karst_window_at(&window, BASE + 6 * PAGE - 8, 8), BASE + 6 * PAGE - 8, 8));
    CHECK(karst_window_at(&window, BASE - 8, 16) == NULL);
    karst_window_close(&window);
    karst_target_close(target);
    writer_end(&writer);
}

int main(void) {
    test_lent();
    test_lent_refusals();
    test_buffered();
    test_walk();
    test_odd_lender();
    test_views(4096);
    test_views(1 << 20);
    return checks_done();
}
