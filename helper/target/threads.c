#include "threads.h"

#include <elf.h>
#include <stddef.h>

#define PROGRAM_HEADERS_MAX 64u

/* In the order of the kernel's struct user_regs_struct. */
static const char *const x86_64_names[] = {"r15",     "r14",      "r13", "r12", "rbp",    "rbx", "r11",
                                           "r10",     "r9",       "r8",  "rax", "rcx",    "rdx", "rsi",
                                           "rdi",     "orig_rax", "rip", "cs",  "eflags", "rsp", "ss",
                                           "fs_base", "gs_base",  "ds",  "es",  "fs",     "gs"};
static const char *const aarch64_names[] = {"x0",  "x1",  "x2",  "x3",  "x4",  "x5",  "x6",    "x7",  "x8",
                                            "x9",  "x10", "x11", "x12", "x13", "x14", "x15",   "x16", "x17",
                                            "x18", "x19", "x20", "x21", "x22", "x23", "x24",   "x25", "x26",
                                            "x27", "x28", "x29", "x30", "sp",  "pc",  "pstate"};

const char *karst_register_name(const struct karst_target *target, uint32_t index) {
    if (target->machine == EM_X86_64 && index < sizeof x86_64_names / sizeof *x86_64_names) {
        return x86_64_names[index];
    }
    if (target->machine == EM_AARCH64 && index < sizeof aarch64_names / sizeof *aarch64_names) {
        return aarch64_names[index];
    }
    return NULL;
}

/* What module takes of each thread's block of thread-local storage. */
static uint64_t module_storage(struct karst_target *target, const struct karst_module *module) {
    Elf64_Ehdr header;
    if (!karst_target_read_all(target, module->start, &header, sizeof header) ||
        header.e_ident[0] != ELFMAG0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_phentsize != sizeof(Elf64_Phdr)) {
        return 0;
    }
    for (unsigned i = 0; i < header.e_phnum && i < PROGRAM_HEADERS_MAX; i++) {
        Elf64_Phdr program;
        if (!karst_target_read_all(target, module->start + header.e_phoff + i * sizeof program, &program,
                                   sizeof program)) {
            return 0;
        }
        if (program.p_type == PT_TLS && program.p_memsz < (UINT64_C(1) << 24) &&
            program.p_align < (UINT64_C(1) << 16)) {
            return program.p_memsz + program.p_align;
        }
    }
    return 0;
}

uint64_t karst_thread_storage(struct karst_target *target) {
    uint64_t sum = 0;
    for (size_t i = 0; i < target->module_count; i++) {
        sum += module_storage(target, &target->modules[i]);
    }
    return sum;
}
