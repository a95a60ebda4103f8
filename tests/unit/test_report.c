/* Lines and tables on outputs of many widths: what is broken where, what is left out, and that it is said. */
#include <stdlib.h>

#include "check.h"
#include "writer.h"

struct collected {
    char text[8192];
    char styles[8192]; /* of each byte */
    size_t size;
};

static struct collected collected;
static struct karst_writer *writer;

static bool collect(void *context, enum karst_style style, const char *text, size_t size) {
    struct collected *all = context;
    if (size > sizeof all->text - 1 - all->size) {
        return false;
    }
    memcpy(all->text + all->size, text, size);
    memset(all->styles + all->size, '0' + (int)style, size);
    all->size += size;
    all->text[all->size] = '\0';
    return true;
}

static void open_writer(uint32_t width, bool unicode) {
    static struct karst_output output;
    collected = (struct collected){.size = 0};
    output =
        (struct karst_output){.context = &collected, .write = collect, .width = width, .unicode = unicode};
    karst_writer_open(writer, &output, false);
}

static void check_text(int line, const char *wanted) {
    CHECK(karst_writer_finish(writer, NULL));
    if (!CHECK(strcmp(collected.text, wanted) == 0)) {
        fprintf(stderr, "line %d: got\n%s\nwanted\n%s\n", line, collected.text, wanted);
    }
}

#define CHECK_TEXT(wanted) check_text(__LINE__, wanted)

/* ---- lines ---------------------------------------------------------------------------------------- */

static void test_lines(void) {
    open_writer(20, false);
    karst_print(writer, "as long as the width\n");
    karst_print(writer, "one more than is wide\n\n  set in: goes on behind\n");
    karst_print(writer, "/a/word/that/is/longer/than/that ok\n");
    CHECK_TEXT("as long as the width\n"
               "one more than is\nwide\n\n"
               "  set in: goes on\n    behind\n"
               "/a/word/that/is/longer/than/that\nok\n");
    open_writer(0, false);
    karst_print(writer, "one more than is wide  \n");
    CHECK_TEXT("one more than is wide  \n");
}

/* A word is not broken where its style changes, and keeps its styles. */
static void test_styles(void) {
    open_writer(12, true);
    karst_print(writer, "pinned ");
    karst_print_styled(writer, KARST_STYLE_BAD, "\xe2\x96\x88\xe2\x96\x88");
    karst_print_address(writer, 0x12);
    karst_print(writer, ", x\n");
    CHECK_TEXT("pinned\n\xe2\x96\x88\xe2\x96\x88"
               "0x12, x\n");
    CHECK(collected.styles[7] == '0' + KARST_STYLE_BAD);
    CHECK(collected.styles[13] == '0' + KARST_STYLE_ADDRESS);
    CHECK(collected.styles[17] == '0' + KARST_STYLE_PLAIN);
}

/* More than is kept of a word, in more styles than are kept. */
static void test_long_word(void) {
    char word[1401], wanted[1500];
    memset(word, 'x', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    open_writer(30, false);
    karst_print(writer, "before %s after\n", word);
    snprintf(wanted, sizeof wanted, "before\n%s\nafter\n", word);
    CHECK_TEXT(wanted);
    open_writer(30, false);
    for (int i = 0; i < 40; i++) {
        karst_print_styled(writer, i % 2 ? KARST_STYLE_GOOD : KARST_STYLE_BAD, "%c", 'a' + i % 26);
    }
    karst_print(writer, "\n");
    CHECK_TEXT("abcdefghijklmnopqrstuvwxyzabcdefghijklmn\n");
}

static void test_json_is_one_line(void) {
    open_writer(20, false);
    json_t *root = karst_json_object(writer);
    karst_json_set_text(writer, root, "text", "longer than the output is wide");
    karst_json_write(writer, root);
    CHECK_TEXT("{\"text\":\"longer than the output is wide\"}\n");
}

/* ---- tables --------------------------------------------------------------------------------------- */

static const struct karst_column columns[] = {{"name", KARST_FLEXIBLE},
                                              {"address", KARST_LEFT},
                                              {"spare", KARST_RIGHT | KARST_SPARE},
                                              {"size", KARST_RIGHT | KARST_NEED_1},
                                              {"note", KARST_LEFT | KARST_NEED_8}};

static void write_table(uint32_t width, bool unicode) {
    open_writer(width, unicode);
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    karst_table_text(table, KARST_STYLE_PLAIN, "a very long name indeed\n");
    karst_table_address(table, 0x7f0012345670);
    karst_table_count(table, 1000);
    karst_table_size(table, 1 << 20);
    karst_table_empty(table);
    karst_table_text(table, KARST_STYLE_PLAIN, "b");
    karst_table_address(table, 0x10);
    karst_table_count(table, 3);
    karst_table_known_size(table, UINT64_MAX);
    karst_table_text(table, KARST_STYLE_PLAIN, "x");
    karst_table_close(table);
}

static void test_tables(void) {
    static const char whole[] = "name                      address         spare    size  note\n"
                                "a very long name indeed?  0x7f0012345670  1,000  1.0 MB\n"
                                "b                         0x10                3       ?  x\n";
    write_table(0, false);
    CHECK_TEXT(whole);
    write_table(61, false);
    CHECK_TEXT(whole);
    write_table(60, false); /* the spare one goes, and that is enough */
    CHECK_TEXT("name                      address           size  note\n"
               "a very long name indeed?  0x7f0012345670  1.0 MB\n"
               "b                         0x10                 ?  x\n"
               "(left out to fit: spare; --json has all)\n");
    write_table(44, true);
    CHECK_TEXT("name            address           size  note\n"
               "a very long n\xe2\x80\xa6  0x7f0012345670  1.0 MB\n"
               "b               0x10                 ?  x\n"
               "(left out to fit: spare; --json has all)\n");
    write_table(40, false); /* before names become too short to tell anything another goes */
    CHECK_TEXT("name              address           size\n"
               "a very long n...  0x7f0012345670  1.0 MB\n"
               "b                 0x10                 ?\n"
               "(left out to fit: spare, note; --json\nhas all)\n");
    write_table(24, false); /* at the very last they do: no address is cut */
    CHECK_TEXT("name      address\n"
               "a ver...  0x7f0012345670\n"
               "b         0x10\n"
               "(left out to fit: spare,\nsize, note; --json has\nall)\n");
    write_table(23, false); /* a row no longer fits at all */
    CHECK_TEXT("name       a very long\n           name indeed?\n"
               "  address  0x7f0012345670\n"
               "  spare    1,000\n"
               "  size     1.0 MB\n"
               "name       b\n"
               "  address  0x10\n"
               "  spare    3\n"
               "  size     ?\n"
               "  note     x\n");
}

static void test_wrapped_column(void) {
    static const struct karst_column two[] = {{"bytes", KARST_RIGHT}, {"what it is", KARST_WRAPPED}};
    open_writer(30, false);
    struct karst_table *table = karst_table_open(writer, two, 2);
    karst_table_count(table, 7);
    karst_table_text(table, KARST_STYLE_PLAIN, "anonymous memory that nobody has written to");
    karst_table_count(table, 12345);
    karst_table_empty(table);
    karst_table_close(table);
    CHECK_TEXT(" bytes  what it is\n"
               "     7  anonymous memory that\n"
               "        nobody has written to\n"
               "12,345\n");
}

/* More rows under a header that was printed keep its columns. */
static void test_flushed_rows(void) {
    open_writer(40, false);
    struct karst_table *table = karst_table_open(writer, columns, sizeof columns / sizeof *columns);
    for (int i = 0; i < 2; i++) {
        karst_table_text(table, KARST_STYLE_PLAIN, i ? "a name that is longer" : "short");
        karst_table_address(table, 0x7f0012345670);
        karst_table_count(table, 1);
        karst_table_count(table, 2);
        karst_table_text(table, KARST_STYLE_PLAIN, "note");
        karst_table_flush(table);
    }
    karst_table_close(table);
    CHECK_TEXT("name   address         spare  size  note\n"
               "short  0x7f0012345670      1     2  note\n"
               "a nam...  0x7f0012345670      1     2\nnote\n"
               "(shortened to fit; --json has all)\n");
}

int main(void) {
    writer = calloc(1, sizeof *writer);
    if (!writer) {
        return 1;
    }
    test_lines();
    test_styles();
    test_long_word();
    test_json_is_one_line();
    test_tables();
    test_wrapped_column();
    test_flushed_rows();
    free(writer);
    return checks_done();
}
