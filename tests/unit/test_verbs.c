/* Verbs, tables, numbers and option parsing, on a heap made up here: a session whose allocator yields a
 * fixed list of blocks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clean.h"
#include "session.h"
#include "verb.h"

static int failures;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                                           \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

static void check_text(int line, const char *got, const char *wanted) {
    if (strcmp(got, wanted) != 0) {
        printf("%s:%d: got\n%s\nwanted\n%s\n", __FILE__, line, got, wanted);
        failures++;
    }
}

#define CHECK_TEXT(got, wanted) check_text(__LINE__, got, wanted)

static void check_has(int line, const char *got, const char *part) {
    if (!strstr(got, part)) {
        printf("%s:%d: no '%s' in\n%s\n", __FILE__, line, part, got);
        failures++;
    }
}

#define CHECK_HAS(got, part) check_has(__LINE__, got, part)

/* ---- an output that collects ---------------------------------------------------------------------- */

struct collected {
    char text[65536];
    size_t size;
    size_t most; /* refuses what comes once it has so much; 0: never */
};

static bool collect(void *context, enum karst_style style, const char *text, size_t size) {
    struct collected *collected = context;
    (void)style;
    if (collected->most && collected->size >= collected->most) {
        return false;
    }
    if (size > sizeof collected->text - 1 - collected->size) {
        return false;
    }
    memcpy(collected->text + collected->size, text, size);
    collected->size += size;
    collected->text[collected->size] = '\0';
    return true;
}

static struct collected collected;

static struct karst_output output_of(uint32_t width, bool unicode) {
    collected = (struct collected){.size = 0};
    return (struct karst_output){.context = &collected, .write = collect, .width = width, .unicode = unicode};
}

/* ---- a heap that is a list ------------------------------------------------------------------------- */

#define BASE 0x10000u

static struct karst_extent extents[] = {
    {.start = BASE, .end = BASE + 0x5000, .kind = KARST_EXTENT_BRK},
    {.start = 0x900000, .end = 0x902000, .arena = KARST_NONE, .kind = KARST_EXTENT_MAPPED}};
static struct karst_arena arenas[] = {{.name = "main", .address = 0x5000, .attached_threads = 2}};
static struct karst_bin bins[] = {
    {.name = "unsorted main", .kind = "unsorted", .smallest = 32, .largest = UINT64_MAX, .blocks = 2},
    {.name = "tcache 0x20 thread 7",
     .kind = "tcache",
     .arena = KARST_NONE,
     .owner = 7,
     .smallest = 32,
     .largest = 32,
     .cache = true,
     .blocks = 1,
     .bytes = 32},
    {.name = "small 0x40 main", .kind = "small", .smallest = 64, .largest = 64}};

/* live, free, cached, free, live, metadata, live, free (no hole: top follows), top; then a mapped one. */
static const struct {
    uint64_t offset, size;
    enum karst_state state;
    uint32_t bin;
} plan[] = {
    {0x0000, 0x0100, KARST_STATE_LIVE, KARST_NONE}, {0x0100, 0x1000, KARST_STATE_FREE, 0},
    {0x1100, 0x0020, KARST_STATE_CACHED, 1},        {0x1120, 0x1ee0, KARST_STATE_FREE, 0},
    {0x3000, 0x0100, KARST_STATE_LIVE, KARST_NONE}, {0x3100, 0x0020, KARST_STATE_METADATA, KARST_NONE},
    {0x3120, 0x00e0, KARST_STATE_LIVE, KARST_NONE}, {0x3200, 0x0e00, KARST_STATE_FREE, 0},
    {0x4000, 0x1000, KARST_STATE_TOP, KARST_NONE},
};

#define BRK_BLOCKS (sizeof plan / sizeof *plan)

static bool walk(struct karst_heap *heap, const struct karst_extent *extent, struct karst_sink *sink,
                 struct karst_error *error) {
    struct karst_block blocks[BRK_BLOCKS];
    size_t count = 0;
    (void)heap;
    (void)error;
    if (extent->kind == KARST_EXTENT_MAPPED) {
        blocks[count++] = (struct karst_block){.start = extent->start,
                                               .size = extent->end - extent->start,
                                               .address = extent->start + 16,
                                               .usable = 0x1ff0,
                                               .arena = KARST_NONE,
                                               .bin = KARST_NONE,
                                               .state = KARST_STATE_LIVE,
                                               .flags = KARST_BLOCK_MAPPED};
    }
    for (size_t i = 0; extent->kind == KARST_EXTENT_BRK && i < BRK_BLOCKS; i++) {
        blocks[count++] = (struct karst_block){.start = BASE + plan[i].offset,
                                               .size = plan[i].size,
                                               .address = BASE + plan[i].offset + 16,
                                               .usable = plan[i].size - 8,
                                               .bin = plan[i].bin,
                                               .state = (uint8_t)plan[i].state};
    }
    return sink->blocks(sink, blocks, count);
}

static bool load_bins(struct karst_heap *heap, struct karst_error *error) {
    (void)heap;
    (void)error;
    return true;
}

static unsigned findings_to_make;

static bool check_heap(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error) {
    (void)error;
    findings->blocks_checked += 10;
    for (unsigned i = 0; i < findings_to_make; i++) {
        karst_findings_add(findings, KARST_FINDING_BAD_LINK, KARST_SEVERITY_CORRUPT, heap->index,
                           BASE + 16 * i, 32, "the link is bad\tfd is 0x%x", i);
    }
    return true;
}

static size_t read_memory(struct karst_target *target, uint64_t address, void *buffer, size_t size) {
    (void)target;
    if (address < BASE || address >= BASE + 0x5000) {
        return 0;
    }
    memset(buffer, 'a', size);
    return size;
}

/* Every second page is resident. */
static uint64_t resident(struct karst_target *target, uint64_t start, uint64_t end) {
    uint64_t bytes = 0;
    (void)target;
    for (uint64_t page = start & ~UINT64_C(4095); page < end; page += 4096) {
        bytes += page % 8192 ? 0 : 4096;
    }
    return bytes;
}

static const struct karst_target_ops ops = {.read = read_memory, .resident = resident};
static char hostile_name[] = "core of \033[31mevil\xff (pid 7)";
static struct karst_target target = {
    .ops = &ops, .stopped = true, .page_size = 4096, .pid = 7, .name = hostile_name};
static const struct karst_allocator allocator = {
    .name = "list", .walk = walk, .load_bins = load_bins, .check = check_heap};
static struct karst_heap heap = {.allocator = &allocator,
                                 .target = &target,
                                 .name = "list",
                                 .version = "1",
                                 .arenas = arenas,
                                 .arena_count = 1,
                                 .bins = bins,
                                 .bin_count = 3,
                                 .extents = extents,
                                 .extent_count = 2};
static struct karst_heap *heaps[] = {&heap};
static struct karst session = {.target = &target,
                               .searched = true,
                               .heaps = heaps,
                               .heap_count = 1,
                               .extents = extents,
                               .extent_count = 2};

/* Runs the words of line, which are split at blanks; the text is in collected, the error in error. */
static struct karst_error error;
static uint64_t last_address;

static int run_width(uint32_t width, bool unicode, const char *line) {
    static char copy[400];
    const char *words[32];
    int count = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
        words[count++] = word;
    }
    struct karst_output output = output_of(width, unicode);
    return karst_run(&session, count, words, &output, &last_address, &error);
}

static int run(const char *line) {
    return run_width(0, true, line);
}

static json_t *run_json(const char *line) {
    char words[400];
    snprintf(words, sizeof words, "%s --json", line);
    CHECK(run(words) == 0);
    json_t *root = json_loads(collected.text, 0, NULL);
    CHECK(root != NULL);
    return root;
}

static json_int_t number_at(json_t *object, const char *key) {
    return json_integer_value(json_object_get(object, key));
}

/* ---- tests ------------------------------------------------------------------------------------------ */

static void test_numbers(void) {
    struct karst_writer *writer = calloc(1, sizeof *writer);
    CHECK_TEXT(karst_count_text(0).text, "0");
    CHECK_TEXT(karst_count_text(999).text, "999");
    CHECK_TEXT(karst_count_text(39332).text, "39,332");
    CHECK_TEXT(karst_count_text(UINT64_MAX).text, "18,446,744,073,709,551,615");
    CHECK_TEXT(karst_size_text(writer, 1023).text, "1023 B");
    CHECK_TEXT(karst_size_text(writer, 8880480).text, "8.5 MB");
    CHECK_TEXT(karst_size_text(writer, (1 << 20) - 1).text, "1.0 MB");
    CHECK_TEXT(karst_size_text(writer, UINT64_MAX).text, "16.0 EB");
    writer->exact = true;
    CHECK_TEXT(karst_size_text(writer, 8880480).text, "8,880,480");
    CHECK_TEXT(karst_share_text(1, 0).text, "-");
    CHECK_TEXT(karst_share_text(1, 3).text, "33 %");
    CHECK_TEXT(karst_share_text(1, 1000000).text, "<0.1 %");
    free(writer);
}

static void test_clean(void) {
    char clean[100];
    const char hostile[] = "a\033[2J\x9b\xc2\x9b\n\xe2\x80\xa6\xe2\x80\xae\xff\xc0\x80z";
    size_t size = karst_clean(hostile, sizeof hostile - 1, true, false, clean);
    clean[size] = '\0';
    CHECK_TEXT(clean, "a?[2J???\xe2\x80\xa6?\?\?\?z");
    size = karst_clean(hostile, sizeof hostile - 1, false, true, clean);
    clean[size] = '\0';
    CHECK_TEXT(clean, "a?[2J??\n...?\?\?\?z");
    CHECK(karst_columns("\xe2\x80\xa6x", 4) == 2);
    karst_fail(&error, KARST_ERROR_NOT_FOUND, "no %s", hostile);
    CHECK_TEXT(error.text, "no a?[2J???\xe2\x80\xa6?\?\?\?z");
}

static void test_values(void) {
    struct karst_value value;
    CHECK(karst_parse_value(KARST_VALUE_SIZE, "64K", &value, NULL) && value.number == 65536);
    CHECK(karst_parse_value(KARST_VALUE_SIZE, "8MiB", &value, NULL) && value.number == 8 << 20);
    CHECK(karst_parse_value(KARST_VALUE_SIZE, "0x1000", &value, NULL) && value.number == 4096);
    CHECK(karst_parse_value(KARST_VALUE_SIZE, "8,880,819", &value, NULL) && value.number == 8880819);
    CHECK(!karst_parse_value(KARST_VALUE_SIZE, "16777216T", &value, NULL));
    CHECK(!karst_parse_value(KARST_VALUE_SIZE, "18446744073709551616", &value, NULL));
    CHECK(!karst_parse_value(KARST_VALUE_SIZE, "-1", &value, NULL));
    CHECK(!karst_parse_value(KARST_VALUE_SIZE, "", &value, NULL));
    CHECK(!karst_parse_value(KARST_VALUE_SIZE, "1 K", &value, NULL));
    CHECK(!karst_parse_value(KARST_VALUE_COUNT, "4K", &value, NULL));
    CHECK(karst_parse_value(KARST_VALUE_RANGE, "64", &value, NULL) && value.number == 64 &&
          value.greatest == 64);
    CHECK(karst_parse_value(KARST_VALUE_RANGE, "1K:", &value, NULL) && value.number == 1024 &&
          value.greatest == UINT64_MAX);
    CHECK(karst_parse_value(KARST_VALUE_RANGE, ":1K", &value, NULL) && value.number == 0 &&
          value.greatest == 1024);
    CHECK(!karst_parse_value(KARST_VALUE_RANGE, ":", &value, NULL));
    CHECK(!karst_parse_value(KARST_VALUE_RANGE, "2:1", &value, NULL));
    CHECK(!karst_parse_value(KARST_VALUE_ADDRESS, "7fff0000", &value, &error));
    CHECK_HAS(error.text, "did you mean 0x7fff0000?");
}

static void test_mistakes(void) {
    static const struct {
        const char *line, *says;
    } mistakes[] = {
        {"sumary", "did you mean summary?"},
        {"xyzzy", "no verb 'xyzzy'"},
        {"", "no verb ''"},
        {"blocks --limt 3", "did you mean --limit?"},
        {"blocks -q", "no option -q"},
        {"blocks --limit", "--limit needs a value"},
        {"blocks -n", "-n needs a value"},
        {"blocks --all=3", "takes no value"},
        {"blocks --a", "--a may be any of 2 options"},
        {"blocks --limit x", "--limit: 'x' is no count"},
        {"blocks --state lvie", "did you mean live?"},
        {"blocks --sort name", "takes one of address, size"},
        {"blocks --arena thread", "there are: main, mapped"},
        {"blocks --bin fast", "kinds: unsorted, tcache, small"},
        {"blocks --from 0x20 --to 0x10", "below"},
        {"blocks --all --sort size", "--limit"},
        {"blocks --json --limit 1000000", "--all writes them line by line"},
        {"block", "block needs ADDRESS"},
        {"block 0x10 0x20", "what is '0x20'?"},
        {"block 0x10", "0x10 is in no heap"},
        {"summary extra", "what is 'extra'?"},
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        error = (struct karst_error){0};
        CHECK(run(mistakes[i].line) == 2);
        CHECK_HAS(error.text, mistakes[i].says);
        CHECK(!strchr(error.text, '\n'));
        CHECK(collected.size == 0);
    }
}

static void test_options_anywhere(void) {
    CHECK(run("blocks --state live -n1") == 0);
    CHECK_HAS(collected.text, "1 of 4 blocks shown");
    CHECK(run("blocks --sta=live --lim 1") == 0);
    CHECK_HAS(collected.text, "1 of 4 blocks shown");
    CHECK(run("block -d 16 -- 0x10010") == 0);
    setenv("POSIXLY_CORRECT", "1", 1);
    CHECK(run("block 0x10010 --dump=0x10") == 0);
    unsetenv("POSIXLY_CORRECT");
    CHECK(last_address == 0x10010);
}

static void test_summary(void) {
    json_t *root = run_json("summary");
    json_t *row = json_array_get(json_object_get(root, "allocators"), 0);
    CHECK(number_at(row, "system_bytes") == 0x7000);
    CHECK(number_at(json_object_get(row, "live"), "blocks") == 4);
    CHECK(number_at(json_object_get(row, "live"), "bytes") == 0x22e0);
    CHECK(number_at(json_object_get(row, "free"), "bytes") == 0x3ce0);
    CHECK(number_at(json_object_get(row, "cached"), "bytes") == 0x20);
    CHECK(number_at(json_object_get(row, "top"), "bytes") == 0x1000);
    CHECK(number_at(row, "metadata_bytes") == 0x20);
    CHECK(number_at(json_object_get(row, "mapped"), "bytes") == 0x2000);
    /* Metadata is no hole, nor is free memory before the top. */
    CHECK(number_at(row, "holes") == 1);
    CHECK(number_at(row, "hole_bytes") == 0x2f00);
    json_t *largest = json_object_get(row, "largest_hole");
    CHECK(number_at(largest, "size") == 0x2f00);
    CHECK(number_at(largest, "usable_bytes") == 0x1ee0);
    CHECK(number_at(largest, "cached_bytes") == 0x20);
    CHECK_TEXT(json_string_value(json_object_get(largest, "usable_address")), "0x11120");
    /* Pages 0x10000, 0x12000, 0x14000 of the heap, 0x900000 of the mapping; whole in free: 0x12000. */
    CHECK(number_at(row, "resident_bytes") == 4 * 4096);
    CHECK(number_at(row, "free_resident_bytes") == 4096);
    CHECK(number_at(row, "top_resident_bytes") == 4096);
    CHECK(number_at(row, "live_resident_bytes") == 2 * 4096);
    CHECK(json_equal(json_object_get(row, "live"), json_object_get(json_object_get(root, "total"), "live")));
    json_decref(root);
    CHECK(run("summary") == 0);
    CHECK_HAS(collected.text, "core of ?[31mevil? (pid 7)");
}

static void test_blocks(void) {
    CHECK(run("blocks --json --all") == 0);
    size_t lines = 0;
    for (const char *at = collected.text; (at = strchr(at, '\n')); at++) {
        lines++;
    }
    CHECK(lines == BRK_BLOCKS + 1);
    static const char first[] = "{\"address\":\"0x10010\",\"size\":256,\"usable\":248,\"state\":\"live\","
                                "\"allocator\":\"list\",\"arena\":\"main\",\"bin\":null}\n";
    CHECK(strncmp(collected.text, first, sizeof first - 1) == 0);
    CHECK_HAS(collected.text,
              "\"state\":\"cached\",\"allocator\":\"list\",\"arena\":\"main\",\"bin\":\"tcache "
              "0x20 thread 7\"}\n");
    CHECK_HAS(collected.text, "\"arena\":null,\"bin\":null}\n");
    json_t *root = run_json("blocks --skip 1 --limit 2 --state free");
    CHECK(number_at(root, "matched") == 3);
    CHECK(number_at(root, "shown") == 2);
    CHECK(number_at(root, "matched_bytes") == 0x3ce0);
    json_decref(root);
    root = run_json("blocks --sort size -n 1 --arena 0");
    CHECK(number_at(json_array_get(json_object_get(root, "blocks"), 0), "size") == 0x1ee0);
    CHECK(number_at(root, "matched") == 9);
    json_decref(root);
    root = run_json("blocks --from 0x100ff --to 0x10101");
    CHECK(number_at(root, "matched") == 2);
    json_decref(root);
    root = run_json("blocks --bin tcache");
    CHECK(number_at(root, "matched") == 1);
    json_decref(root);
    root = run_json("blocks --arena mapped --size 8K");
    CHECK(number_at(root, "matched") == 1);
    json_decref(root);
    CHECK(run("blocks --size 1G:") == 0);
    CHECK_TEXT(collected.text, "no such block\n");
}

static void test_block(void) {
    json_t *root = run_json("block 0x11105");
    CHECK(number_at(root, "offset") == -11);
    CHECK_TEXT(json_string_value(json_object_get(json_object_get(root, "block"), "state")), "cached");
    CHECK_TEXT(json_string_value(json_object_get(json_object_get(root, "before"), "address")), "0x10110");
    CHECK_TEXT(json_string_value(json_object_get(json_object_get(root, "after"), "address")), "0x11130");
    json_decref(root);
    CHECK(run("block 0x10000") == 0);
    CHECK_HAS(collected.text, "first of its extent");
    CHECK_HAS(collected.text, "in the block's header");
    CHECK_HAS(collected.text, "text \"aaaa");
}

static void test_sizes(void) {
    json_t *root = run_json("sizes --exact --sort blocks");
    json_t *first = json_array_get(json_object_get(root, "sizes"), 0);
    CHECK(number_at(first, "min") == 0x100 && number_at(first, "max") == 0x100);
    CHECK(number_at(first, "blocks") == 2);
    CHECK(number_at(root, "matched") == 3);
    json_decref(root);
    root = run_json("sizes --state free");
    CHECK(json_array_size(json_object_get(root, "sizes")) == 2);
    first = json_array_get(json_object_get(root, "sizes"), 0);
    CHECK(number_at(first, "min") == 2048 && number_at(first, "max") == 4095);
    json_decref(root);
}

static void test_check(void) {
    findings_to_make = 0;
    CHECK(run("check") == 0);
    CHECK_TEXT(collected.text, "no damage found in 10 blocks\n");
    findings_to_make = 300;
    CHECK(run("check") == 1);
    CHECK_HAS(collected.text, "200 corrupt, 0 suspect, 100 more not kept in 10 blocks");
    CHECK_HAS(collected.text, "\ncorrupt bad-link at 0x10000, 32 B\n  the link is bad\n    fd is 0x0\n");
    CHECK_HAS(collected.text, "10 of 300 bad-link shown; --all shows more");
    CHECK(last_address == BASE + 16 * 9);
    CHECK(run("check --json") == 1);
    json_t *root = json_loads(collected.text, 0, NULL);
    CHECK(json_is_false(json_object_get(root, "healthy")));
    CHECK(json_array_size(json_object_get(root, "findings")) == 200);
    CHECK(number_at(root, "dropped") == 100);
    json_decref(root);
    findings_to_make = 0;
    extents[1].start = BASE + 0x4000; /* two heaps claim the same bytes */
    extents[1].heap = 1;
    struct karst_heap *two[] = {&heap, &heap};
    session.heaps = two;
    session.heap_count = 2;
    CHECK(run("check") == 1);
    CHECK_HAS(collected.text, "corrupt overlap at 0x14000, 4.0 KB");
    session.heaps = heaps;
    session.heap_count = 1;
    extents[1].start = 0x900000;
    extents[1].heap = 0;
}

static void test_closed_output(void) {
    struct karst_output output = output_of(0, true);
    collected.most = 1;
    const char *words[] = {"blocks", "--all"};
    CHECK(karst_run(&session, 2, words, &output, NULL, &error) == 0);
    CHECK(collected.size < 20);
}

static void test_every_verb_helps(void) {
    json_t *verbs = json_loads(karst_verbs_json(), 0, NULL);
    CHECK(json_array_size(verbs) > 0);
    for (size_t i = 0; karst_verbs[i]; i++) {
        const struct karst_verb *verb = karst_verbs[i];
        char line[100];
        size_t options = 0;
        snprintf(line, sizeof line, "%s --help", verb->name);
        CHECK(run_width(60, false, line) == 0);
        for (; verb->options && verb->options[options].name; options++) {
            const struct karst_verb_option *option = &verb->options[options];
            snprintf(line, sizeof line, "--%s", option->name);
            CHECK_HAS(collected.text, line);
            CHECK((option->value != NULL) == (option->kind != KARST_VALUE_FLAG));
            CHECK(!option->letter || !strchr("pcehjb", option->letter));
            /* The command line has to know where an option ends before it knows the verb. */
            for (size_t k = 0; karst_verbs[k]; k++) {
                for (const struct karst_verb_option *other = karst_verbs[k]->options; other && other->name;
                     other++) {
                    bool same = strcmp(other->name, option->name) == 0;
                    bool flags = (other->kind == KARST_VALUE_FLAG) == (option->kind == KARST_VALUE_FLAG);
                    CHECK(!same || flags);
                    CHECK(!other->letter || other->letter != option->letter || flags);
                }
            }
        }
        CHECK(options <= KARST_OPTIONS_MAX);
        CHECK(json_array_size(json_object_get(json_array_get(verbs, i), "options")) == options + 3);
        for (const char *at = collected.text; *at;) {
            size_t length = strcspn(at, "\n");
            if (length > 60) {
                printf("%s: %.*s\n", verb->name, (int)length, at);
                failures++;
            }
            at += length + (at[length] == '\n');
        }
    }
    json_decref(verbs);
}

int main(void) {
    test_numbers();
    test_clean();
    test_values();
    test_mistakes();
    test_options_anywhere();
    test_summary();
    test_blocks();
    test_block();
    test_sizes();
    test_check();
    test_closed_output();
    test_every_verb_helps();
    printf("%s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
