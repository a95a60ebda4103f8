/* Core files: hostile and damaged ones made up here, and real ones by the kernel and by gcore. */
#include <fcntl.h>
#include <stdarg.h>

#include "check.h"
#include "core_writer.h"
#include "target.h"
#include "victim.h"

#include <sys/stat.h>

static struct core_writer writer;

static struct karst_target *open_core(const char *path, const struct karst_options *options) {
    struct karst_error error = {0};
    struct karst_target *target = karst_core_open(path, options, &error);
    if (!CHECK(target != NULL)) {
        fprintf(stderr, "    %s\n", error.text);
    }
    return target;
}

static bool has_remark(const struct karst_target *target, const char *part) {
    for (size_t i = 0; i < target->remark_count; i++) {
        if (strstr(target->remarks[i], part)) {
            return true;
        }
    }
    return false;
}

static void refuse(const char *path, enum karst_error_code code, const char *text) {
    struct karst_error error = {0};
    struct karst_target *target = karst_core_open(path, NULL, &error);
    CHECK(target == NULL);
    CHECK_EQUAL(error.code, code);
    CHECK_HAS(error.text, text);
    CHECK(strchr(error.text, '\n') == NULL);
    karst_target_close(target);
}

static void refuse_bytes(const void *bytes, size_t size, enum karst_error_code code, const char *text) {
    writer_begin(&writer);
    memcpy(writer.bytes, bytes, size);
    refuse(writer_file(&writer, size), code, text);
}

static void test_no_core(void) {
    refuse("/no/such/core", KARST_ERROR_NOT_FOUND, "cannot open /no/such/core");
    refuse("/tmp", KARST_ERROR_FORMAT, "is a directory");
    refuse("/dev/null", KARST_ERROR_FORMAT, "no regular file");
    refuse("/proc/self/exe", KARST_ERROR_FORMAT, "not a core file");
    refuse_bytes("", 0, KARST_ERROR_FORMAT, "is empty");
    refuse_bytes("just text\n", 10, KARST_ERROR_FORMAT, "no ELF file");
    refuse_bytes("\x28\xb5\x2f\xfd....", 8, KARST_ERROR_FORMAT, "zstd -d");
    refuse_bytes("\xfd\x37zXZ\0....", 10, KARST_ERROR_FORMAT, "xz -dk");
    refuse_bytes("\x04\x22\x4d\x18....", 8, KARST_ERROR_FORMAT, "lz4 -d");
    refuse_bytes("\x1f\x8b....", 6, KARST_ERROR_FORMAT, "gzip -dk");
    refuse_bytes("KDUMP   ....", 12, KARST_ERROR_UNSUPPORTED, "dump of a kernel");
    refuse_bytes(ELFMAG "\2\1\1", 7, KARST_ERROR_FORMAT, "cut off");
    writer_begin(&writer);
    writer_header(&writer)->e_ident[EI_CLASS] = ELFCLASS32;
    refuse(writer_file(&writer, writer.size), KARST_ERROR_UNSUPPORTED, "32-bit little-endian");
    writer_begin(&writer);
    writer_header(&writer)->e_machine = EM_S390;
    refuse(writer_file(&writer, writer.size), KARST_ERROR_UNSUPPORTED, "only x86-64 and aarch64");
    writer_begin(&writer);
    writer_header(&writer)->e_phentsize = 32;
    refuse(writer_file(&writer, writer.size), KARST_ERROR_FORMAT, "damaged");
    writer_begin(&writer);
    refuse(writer_file(&writer, sizeof(Elf64_Ehdr)), KARST_ERROR_FORMAT, "no program headers");
    writer_begin(&writer);
    writer_note(&writer, "VMCOREINFO", 0, "x", 1);
    refuse(writer_file(&writer, writer.size), KARST_ERROR_UNSUPPORTED, "dump of a kernel");
}

/* Three segments, the first two adjacent in memory but not in the file. */
static void write_plain(void) {
    writer_begin(&writer);
    writer_process(&writer, 77, "some program");
    writer_thread(&writer, 77, SIGSEGV, 0x30010);
    writer_thread(&writer, 78, 0, 0);
    writer_load(&writer, 0x11000, 4096, 4096, PF_R | PF_W, 2);
    writer_load(&writer, 0x10000, 4096, 4096, PF_R | PF_W, 1);
    writer_load(&writer, 0x30000, 4096, 16384, PF_R | PF_W, 3);
    writer_load(&writer, 0x50000, 0, 8192, PF_R | PF_W, 0);
}

static void test_plain(void) {
    write_plain();
    struct karst_target *target = open_core(writer_file(&writer, writer.size), NULL);
    uint8_t bytes[16384];
    if (!target) {
        return;
    }
    CHECK_HAS(target->name, "core of some program (pid 77)");
    CHECK(target->stopped && !target->missing_memory && target->machine == EM_X86_64);
    CHECK_EQUAL((uint64_t)target->pid, 77);
    CHECK_EQUAL((uint64_t)target->signal, SIGSEGV);
    CHECK_EQUAL(target->thread_count, 2);
    CHECK_EQUAL((uint64_t)target->threads[1].tid, 78);
    CHECK_EQUAL(target->threads[1].thread_pointer, 0x7000 + 78);
    CHECK_EQUAL(target->mapping_count, 4);
    CHECK_EQUAL(target->mappings[0].start, 0x10000);
    CHECK_HAS(target->mappings[2].name, "[stack]");
    CHECK(!karst_mapping_is_anonymous(&target->mappings[2]) &&
          karst_mapping_is_anonymous(&target->mappings[0]));
    CHECK_EQUAL(karst_target_read(target, 0x10ff0, bytes, 32), 32);
    CHECK(bytes[15] == 1 && bytes[16] == 2);
    CHECK_EQUAL(karst_target_read(target, 0x10000, bytes, sizeof bytes), 8192);
    /* What was not saved is not there: neither zeros nor anything else. */
    CHECK_EQUAL(karst_target_read(target, 0x30ff8, bytes, 16), 8);
    CHECK_EQUAL(karst_target_read(target, 0x31000, bytes, 1), 0);
    CHECK_EQUAL(karst_target_read(target, 0x50000, bytes, 1), 0);
    CHECK_EQUAL(karst_target_read(target, 0xffff, bytes, 16), 0);
    CHECK_EQUAL(karst_target_read(target, UINT64_MAX, bytes, 16), 0);
    CHECK_EQUAL(karst_target_read(target, 0x10000, bytes, 0), 0);
    CHECK(karst_target_mapping(target, 0x12000) == NULL);
    CHECK(karst_target_mapping_after(target, 0x12000) == &target->mappings[2]);
    CHECK(karst_target_mapping_after(target, 0x52000) == NULL);
    CHECK(karst_target_mapping(target, 0x33fff) == &target->mappings[2]);
    karst_target_close(target);
}

static void test_truncated(void) {
    write_plain();
    uint64_t third = writer_segment(&writer, 3)->p_offset;
    struct karst_target *target = open_core(writer_file(&writer, third + 100), NULL);
    uint8_t bytes[256];
    if (target) {
        CHECK(target->missing_memory);
        CHECK(has_remark(target, "cut off: 3.9 KB of its memory are missing"));
        CHECK_EQUAL(karst_target_read(target, 0x30000, bytes, sizeof bytes), 100);
        CHECK_EQUAL(karst_target_read(target, 0x11000, bytes, sizeof bytes), sizeof bytes);
        CHECK_EQUAL(target->thread_count, 2);
        karst_target_close(target);
    }
    for (size_t size = 0; size < third + 4096; size += 37) {
        struct karst_error error = {0};
        target = karst_core_open(writer_file(&writer, size), NULL, &error);
        CHECK((target != NULL) == (error.code == KARST_ERROR_NONE));
        CHECK(!target || target->missing_memory);
        karst_target_close(target);
    }
}

static void test_hostile_segments(void) {
    uint8_t bytes[8192];
    write_plain();
    writer_load(&writer, 0x10800, 4096, 8192, PF_R, 9)->p_memsz = 0x1800;      /* in others */
    writer_load(&writer, UINT64_MAX - 100, 4096, 4096, PF_R, 9);               /* around the end */
    writer_load(&writer, 0x70000, UINT64_MAX - 5, UINT64_MAX - 5, PF_R, 9);    /* too large for any file */
    writer_load(&writer, 0x80000, 4096, 4096, PF_R, 9)->p_offset = UINT64_MAX; /* nowhere */
    writer_load(&writer, 0x90000, 4096, 4096, PF_R, 9)->p_offset = 1u << 30;   /* beyond the end */
    struct karst_target *target = open_core(writer_file(&writer, writer.size), NULL);
    if (!target) {
        return;
    }
    CHECK(has_remark(target, "damaged"));
    CHECK(has_remark(target, "overlap"));
    CHECK(has_remark(target, "cut off"));
    CHECK_EQUAL(karst_target_read(target, 0x10000, bytes, sizeof bytes), 0x1800);
    CHECK(bytes[0x7ff] == 1 && bytes[0x800] == 1 && bytes[0x1000] == 9 && bytes[0x17ff] == 9);
    CHECK_EQUAL(karst_target_read(target, 0x90000, bytes, 1), 0);
    CHECK_EQUAL(karst_target_read(target, 0x80000, bytes, 1), 0);
    for (size_t i = 1; i < target->mapping_count; i++) {
        CHECK(target->mappings[i - 1].end <= target->mappings[i].start);
    }
    karst_target_close(target);
}

/* A segment that claims to reach over all others does not hide them. */
static void test_swollen_segment(void) {
    uint8_t bytes[8192];
    write_plain();
    writer_segment(&writer, 2)->p_memsz = (uint64_t)1 << 46;
    struct karst_target *target = open_core(writer_file(&writer, writer.size), NULL);
    if (target) {
        CHECK(has_remark(target, "overlap"));
        CHECK_EQUAL(karst_target_read(target, 0x10000, bytes, sizeof bytes), 8192);
        CHECK_EQUAL(karst_target_read(target, 0x30000, bytes, sizeof bytes), 4096);
        karst_target_close(target);
    }
}

/* More segments than 16 bits can count: the first section header tells. */
static void test_many_segments(void) {
    enum { SEGMENTS = 70000 };
    size_t size = sizeof(Elf64_Ehdr) + SEGMENTS * sizeof(Elf64_Phdr) + sizeof(Elf64_Shdr);
    uint8_t *bytes = calloc(1, size);
    char path[] = "/tmp/karst-test-XXXXXX";
    int descriptor = mkstemp(path);
    if (!CHECK(bytes && descriptor >= 0)) {
        return;
    }
    writer_begin(&writer);
    memcpy(bytes, writer.bytes, sizeof(Elf64_Ehdr));
    Elf64_Ehdr *header = (Elf64_Ehdr *)(void *)bytes;
    header->e_phnum = PN_XNUM;
    header->e_shnum = 1;
    header->e_shoff = size - sizeof(Elf64_Shdr);
    ((Elf64_Shdr *)(void *)(bytes + header->e_shoff))->sh_info = SEGMENTS;
    Elf64_Phdr *segments = (Elf64_Phdr *)(void *)(bytes + sizeof *header);
    for (uint64_t i = 0; i < SEGMENTS; i++) {
        segments[i] = (Elf64_Phdr){.p_type = PT_LOAD,
                                   .p_flags = PF_R | PF_W,
                                   .p_vaddr = (i + 1) * 8192,
                                   .p_memsz = 4096,
                                   .p_filesz = 8};
    }
    CHECK(write(descriptor, bytes, size) == (ssize_t)size);
    struct karst_target *target = open_core(path, NULL);
    uint64_t value = 0;
    if (target) {
        CHECK_EQUAL(target->mapping_count, SEGMENTS);
        CHECK(karst_target_read_u64(target, (uint64_t)SEGMENTS * 8192, &value));
        CHECK(memcmp(&value, ELFMAG, SELFMAG) == 0);
        karst_target_close(target);
    }
    close(descriptor);
    unlink(path);
    free(bytes);
}

static void write_files(uint64_t count, uint64_t start, uint64_t end) {
    uint64_t words[2 + 6] = {count, 4096, start, end, 1, 0x80000, 0x90000, UINT64_MAX};
    uint8_t note[sizeof words + 20] = {0};
    memcpy(note, words, sizeof words);
    memcpy(note + sizeof words, "/some/file\0/other", 17);
    writer_note(&writer, "CORE", NT_FILE, note, sizeof note);
}

static void test_notes(void) {
    write_plain();
    write_files(2, 0x10800, 0x11800);
    struct karst_target *target = open_core(writer_file(&writer, writer.size), NULL);
    if (target) {
        CHECK(has_remark(target, "notes are damaged")); /* the second file's offset */
        CHECK_EQUAL(target->mapping_count, 6);
        CHECK_EQUAL(target->mappings[1].start, 0x10800);
        CHECK_HAS(target->mappings[1].name, "/some/file");
        CHECK_EQUAL(target->mappings[1].file_offset, 4096);
        CHECK_EQUAL(target->mappings[2].file_offset, 4096 + 0x800);
        CHECK(target->mappings[3].name == NULL);
        karst_target_close(target);
    }
    static const uint64_t counts[] = {0, 3, 1000, UINT64_MAX, UINT64_MAX / 24 + 2};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        write_plain();
        write_files(counts[i], 0x10800, 0x11800);
        target = open_core(writer_file(&writer, writer.size), NULL);
        CHECK(target && (counts[i] == 0 || has_remark(target, "notes are damaged")));
        karst_target_close(target);
    }
}

/* A core of 64-bit ARM: other registers, the thread pointer in a note of its own. */
static void test_aarch64(void) {
    uint8_t status[392] = {0};
    uint64_t sp = 0x30010, pc = 0x1234, thread_pointer = 0x7700;
    int32_t tid = 77;
    write_plain();
    writer.note_size = 0;
    writer_header(&writer)->e_machine = EM_AARCH64;
    memcpy(status + 32, &tid, sizeof tid);
    memcpy(status + 112 + 31 * 8, &sp, sizeof sp);
    memcpy(status + 112 + 32 * 8, &pc, sizeof pc);
    writer_process(&writer, 77, "arm");
    writer_note(&writer, "CORE", NT_PRSTATUS, status, sizeof status);
    writer_note(&writer, "LINUX", NT_ARM_TLS, &thread_pointer, sizeof thread_pointer);
    struct karst_target *target = open_core(writer_file(&writer, writer.size), NULL);
    if (target) {
        CHECK_EQUAL(target->machine, EM_AARCH64);
        CHECK_EQUAL(target->thread_count, 1);
        CHECK_EQUAL(target->threads[0].stack_pointer, sp);
        CHECK_EQUAL(target->threads[0].program_counter, pc);
        CHECK_EQUAL(target->threads[0].thread_pointer, thread_pointer);
        CHECK_EQUAL(target->threads[0].register_count, 34);
        karst_target_close(target);
    }
}

/* Bytes turned at random, with a fixed seed: no crash, no endless work; all that was opened can be read. */
static void test_mutations(int rounds) {
    uint64_t state = 0x9e3779b97f4a7c15u;
    static uint8_t bytes[65536];
    int opened = 0;
    for (int i = 0; i < rounds; i++) {
        write_plain();
        write_files(2, 0x10800, 0x11800);
        for (int k = 0; k < 1 + i % 8; k++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            size_t range = state & 1 ? 64 + 6 * 56 : WRITER_NOTES_AT + writer.note_size;
            writer.bytes[(state >> 8) % range] = (uint8_t)(state >> 48);
        }
        struct karst_target *target = karst_core_open(writer_file(&writer, writer.size), NULL, NULL);
        if (!target) {
            continue;
        }
        opened++;
        for (size_t k = 0; k < target->mapping_count; k++) {
            const struct karst_mapping *mapping = &target->mappings[k];
            if (k > 0 && mapping->start < target->mappings[k - 1].end) {
                CHECK(mapping->start >= target->mappings[k - 1].end);
            }
            karst_target_read(target, mapping->start, bytes, sizeof bytes);
            karst_target_read(target, mapping->end - 10, bytes, 10);
            karst_target_resident(target, mapping->start, mapping->end);
        }
        karst_target_close(target);
    }
    CHECK(opened > rounds / 4);
}

/* ---- real cores -------------------------------------------------------------------------------- */

static char folder[32];

/* Runs command with the shell in the folder. */
__attribute__((format(printf, 1, 2))) static bool run(const char *format, ...) {
    char text[600], command[700];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(command, sizeof command, "cd %s && { %s; } >/dev/null 2>&1", folder, text);
    return system(command) == 0;
}

/* The kernel's core of a victim run from a copy of this program in a new folder, which is the folder from
 * here on. */
static bool make_core(const char *where, char path[64], struct victim_facts *facts) {
    char program[64];
    struct victim victim;
    snprintf(folder, sizeof folder, "%s/karst-test-XXXXXX", where);
    CHECK(mkdtemp(folder) != NULL);
    snprintf(program, sizeof program, "%s/program", folder);
    snprintf(path, 64, "%s/core", folder);
    if (!run("cp /proc/%d/exe program", getpid()) || !victim_start(&victim, program, folder)) {
        return false;
    }
    *facts = victim.facts;
    CHECK(write(victim.to, "a", 1) == 1);
    waitpid(victim.pid, NULL, 0);
    close(victim.to);
    close(victim.from);
    /* core_uses_pid adds the process id. */
    run("test -e core || mv core.* core");
    return access(path, R_OK) == 0;
}

static void check_memory(struct karst_target *target, const struct victim_facts *facts) {
    uint8_t bytes[2 * VICTIM_PAGE];
    for (uint64_t i = 0; i < VICTIM_PAGES; i += 2) {
        CHECK_EQUAL(karst_target_read(target, facts->pattern + i * VICTIM_PAGE, bytes, sizeof bytes),
                    sizeof bytes);
        CHECK(bytes[0] == i + 1 && bytes[VICTIM_PAGE - 1] == i + 1 && bytes[VICTIM_PAGE] == 0);
    }
    for (size_t i = 0; i <= VICTIM_THREADS; i++) {
        bool found = false;
        for (size_t k = 0; k < target->thread_count; k++) {
            found |= target->threads[k].tid == facts->tids[i] &&
                     target->threads[k].thread_pointer == facts->thread_pointers[i];
        }
        CHECK(found);
    }
    struct karst_symbol symbol;
    CHECK(target->executable_module &&
          karst_module_symbol(target, target->executable_module, "victim_variable", &symbol) &&
          symbol.address == facts->variable);
}

static void test_kernel_core(const char *path, const struct victim_facts *facts) {
    struct karst_target *target = open_core(path, NULL);
    uint8_t code[16];
    struct stat before, after;
    if (!target) {
        return;
    }
    CHECK(stat(path, &before) == 0);
    check_memory(target, facts);
    CHECK(stat(path, &after) == 0);
    CHECK_EQUAL((uint64_t)after.st_blocks, (uint64_t)before.st_blocks); /* a look at holes fills none */
    CHECK_EQUAL((uint64_t)target->signal, SIGABRT);
    CHECK_HAS(target->executable, "/program");
    CHECK(!target->missing_memory);
    CHECK_EQUAL(target->remark_count, 0);
    uint64_t half = VICTIM_PAGES / 2 * VICTIM_PAGE, start = facts->pattern;
    CHECK_EQUAL(karst_target_resident(target, start, start + 2 * half), half);
    CHECK_EQUAL(karst_target_resident(target, start + VICTIM_PAGE - 1, start + 2 * VICTIM_PAGE + 2), 3);
    /* Code is not in the core: it comes from the program's file. */
    CHECK(karst_target_read_all(target, facts->function, code, sizeof code));
    CHECK(memcmp(code, (const void *)(uintptr_t)&victim_function, sizeof code) == 0);
    bool stack = false, vdso = false;
    for (size_t i = 0; i < target->mapping_count; i++) {
        const char *name = target->mappings[i].name;
        stack |= name && strcmp(name, "[stack]") == 0;
        vdso |= name && strcmp(name, "[vdso]") == 0;
        CHECK(!name || strcmp(name, "[vvar]") != 0 ||
              karst_target_read(target, target->mappings[i].start, code, 1) == 0);
    }
    CHECK(stack && vdso);
    karst_target_close(target);
}

/* A copy that filled the holes can't tell what was resident, nor can one that makes no difference. */
static void test_copied_core(const struct victim_facts *facts) {
    char path[64];
    snprintf(path, sizeof path, "%s/copy", folder);
    CHECK(run("cat core > copy"));
    struct karst_target *target = open_core(path, NULL);
    if (target) {
        CHECK_EQUAL(karst_target_resident(target, facts->pattern, facts->pattern + 8), UINT64_MAX);
        check_memory(target, facts);
        karst_target_close(target);
    }
    CHECK(run("head -c 200000 core > copy"));
    target = open_core(path, NULL);
    if (target) {
        CHECK(target->missing_memory && has_remark(target, "cut off"));
        karst_target_close(target);
    }
}

/* The program is elsewhere, missing, or another one. */
static void test_executable(const char *path, const struct victim_facts *facts) {
    char elsewhere[64], sysroot[64];
    uint8_t code[16];
    struct karst_symbol symbol;
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", folder);
    snprintf(sysroot, sizeof sysroot, "%s/root", folder);
    CHECK(run("mv program elsewhere && mkdir -p root%s && cp elsewhere root%s/program", folder, folder));
    struct karst_options none = {0}, right = {.executable = elsewhere}, root = {.sysroot = sysroot};
    struct karst_options wrong = {.executable = "/bin/true"}, absent = {.executable = "/no/such/file"};
    const struct karst_options *cases[] = {&none, &right, &root, &wrong};
    for (size_t i = 0; i < 4; i++) {
        struct karst_target *target = open_core(path, cases[i]);
        if (!target) {
            continue;
        }
        bool there = i == 1 || i == 2;
        CHECK_EQUAL(karst_target_read(target, facts->function, code, sizeof code), there ? sizeof code : 0);
        CHECK(karst_module_symbol(target, target->executable_module, "victim_variable", &symbol) == there);
        CHECK_EQUAL(target->remark_count, there ? 0 : 1);
        CHECK(i != 0 || has_remark(target, "/program is not here"));
        CHECK(i != 3 || has_remark(target, "/bin/true has build id"));
        karst_target_close(target);
    }
    struct karst_error error = {0};
    CHECK(karst_core_open(path, &absent, &error) == NULL);
    CHECK_EQUAL(error.code, KARST_ERROR_NOT_FOUND);
    CHECK_HAS(error.text, "/no/such/file");
    CHECK(run("mv elsewhere program"));
}

/* The program's build id as text, with separator behind its first byte. */
static void print_build_id(const char *separator, char id[100]) {
    char command[200];
    snprintf(command, sizeof command, "readelf -nW %s/whole | sed -n 's|.*Build ID: \\(..\\)|\\1%s|p'",
             folder, separator);
    FILE *file = popen(command, "re");
    CHECK(file && fgets(id, 100, file));
    id[strcspn(id, "\n")] = '\0';
    pclose(file);
}

static void check_debug_file(const char *path, const struct karst_options *options, bool found) {
    struct karst_symbol symbol;
    uint64_t offset, size;
    struct karst_target *target = open_core(path, options);
    if (target) {
        struct karst_module *module = target->executable_module;
        CHECK(karst_module_symbol(target, module, "victim_variable", &symbol) == found);
        CHECK(karst_module_member(target, module, "victim_layout", "last", &offset, &size) == found);
        karst_target_close(target);
    }
}

/* A stripped program and its symbols in a file of their own, found by build id and by name. */
static void test_debug_files(const char *path) {
    char debug[64], cache[64], slashed[100] = "", plain[100] = "";
    snprintf(debug, sizeof debug, "%s/debug", folder);
    snprintf(cache, sizeof cache, "%s/cache", folder);
    if (!run("objcopy --only-keep-debug program program.debug && cp program whole && strip program && "
             "objcopy --add-gnu-debuglink=program.debug program && mkdir -p debug%s",
             folder)) {
        printf("skipped: no objcopy, no separate debug files\n");
        return;
    }
    struct karst_options options = {.debug_directory = debug};
    print_build_id("/", slashed);
    print_build_id("", plain);
    setenv("DEBUGINFOD_CACHE_PATH", cache, 1);
    char places[5][200] = {"program.debug", ".debug/program.debug"};
    snprintf(places[2], sizeof places[2], "debug/%s/program.debug", folder);
    snprintf(places[3], sizeof places[3], "debug/.build-id/%s.debug", slashed);
    snprintf(places[4], sizeof places[4], "cache/%s/debuginfo", plain);
    CHECK(run("mv program.debug kept"));
    check_debug_file(path, &options, false);
    for (size_t i = 0; i < 5; i++) {
        CHECK(run("mkdir -p $(dirname %s) && cp kept %s", places[i], places[i]));
        check_debug_file(path, &options, true);
        CHECK(run("rm %s", places[i]));
    }
    CHECK(run("cp /bin/true program.debug")); /* another build's */
    check_debug_file(path, &options, false);
    CHECK(run("mv whole program"));
}

static void test_gcore(void) {
    struct victim victim;
    char program[64], path[64];
#ifdef __SANITIZE_ADDRESS__
    printf("skipped: gcore, which would save the sanitizer's terabytes\n");
    return;
#endif
    snprintf(program, sizeof program, "%s/program", folder);
    if (system("command -v gcore >/dev/null 2>&1") != 0) {
        printf("skipped: no gcore\n");
        return;
    }
    if (!CHECK(victim_start(&victim, program, folder))) {
        return;
    }
    snprintf(path, sizeof path, "%s/g.%d", folder, victim.pid);
    CHECK(run("gcore -o g %d", victim.pid));
    struct karst_target *target = open_core(path, NULL);
    uint8_t code[16];
    if (target) {
        check_memory(target, &victim.facts);
        CHECK_EQUAL((uint64_t)target->signal, 0);
        CHECK_EQUAL(karst_target_resident(target, victim.facts.pattern, victim.facts.pattern + 8),
                    UINT64_MAX);
        CHECK(karst_target_read_all(target, victim.facts.function, code, sizeof code));
        karst_target_close(target);
    }
    victim_end(&victim);
}

/* In memory, where pages that are not there are made by a look at them. */
static void test_core_in_memory(void) {
    struct victim_facts facts;
    char path[64];
    if (make_core("/dev/shm", path, &facts)) {
        test_kernel_core(path, &facts);
    } else {
        printf("skipped: no core could be made in /dev/shm\n");
    }
    run("rm -rf %s", folder);
}

static void test_real_cores(void) {
    struct victim_facts facts;
    char path[64];
    if (make_core("/tmp", path, &facts)) {
        test_kernel_core(path, &facts);
        test_copied_core(&facts);
        test_executable(path, &facts);
        test_debug_files(path);
    } else {
        printf("skipped: the kernel writes no cores into the current folder (kernel.core_pattern)\n");
        run("cp /proc/%d/exe program", getpid());
    }
    test_gcore();
    run("rm -rf %s", folder);
}

int main(int argc, char **argv) {
    victim_here(argc, argv);
    test_no_core();
    test_plain();
    test_truncated();
    test_hostile_segments();
    test_swollen_segment();
    test_many_segments();
    test_notes();
    test_aarch64();
    test_mutations(argc == 2 ? atoi(argv[1]) : 5000);
    writer_end(&writer);
    test_real_cores();
    test_core_in_memory();
    return checks_done();
}
