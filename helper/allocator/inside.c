#include "inside.h"

#include <elf.h>
#include <signal.h>

#define WORDS_LOOKED_AT   256u /* of the stack's top, for a return address into a function */
#define RETURNS_LOOKED_AT 32u  /* the same, into any function of a library that is an allocator's */
#define SYS_FUTEX         202u /* of x86-64 */

/* linux/futex.h, without the flags. glibc waits so for conditions, and where there is a limit of time
 * (futex_abstimed_wait()), but for a mutex by FUTEX_WAIT (lowlevellock.h): jemalloc's background threads,
 * which sleep on a condition, are inside only while they work. */
#define FUTEX_WAIT_BITSET 9u

/* A thread that waits in a system call which malloc does not make is not inside, whatever old return
 * addresses still stand on its stack. */
static bool waits_elsewhere(struct karst_target *target, const struct karst_thread *thread) {
    /* mmap, mprotect, munmap, brk, sched_yield, mremap, madvise, prctl, futex, getrandom; write, when it
     * complains. */
    static const uint16_t own[] = {1, 9, 10, 11, 12, 20, 24, 25, 28, 157, SYS_FUTEX, 318};
    const unsigned rsi = 13, orig_rax = 15;
    uint8_t instruction[2];
    if (target->machine != EM_X86_64 || thread->register_count <= orig_rax ||
        thread->registers[orig_rax] > 1023 ||
        !karst_target_read_all(target, thread->program_counter - 2, instruction, 2) ||
        instruction[0] != 0x0f || instruction[1] != 0x05) {
        return false;
    }
    if (thread->registers[orig_rax] == SYS_FUTEX && (thread->registers[rsi] & 0x7f) == FUTEX_WAIT_BITSET) {
        return true;
    }
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        if (thread->registers[orig_rax] == own[i]) {
            return false;
        }
    }
    return true;
}

static size_t words_of_stack(struct karst_target *target, const struct karst_thread *thread,
                             uint64_t *words) {
    return thread->stack_pointer
               ? karst_target_read(target, thread->stack_pointer, words, WORDS_LOOKED_AT * sizeof *words) /
                     sizeof *words
               : 0;
}

static bool in_module(const struct karst_module *module, const struct karst_thread *thread,
                      const uint64_t *words, size_t count) {
    bool inside = thread->program_counter - module->start < module->end - module->start;
    for (size_t i = 0; i < count && i < RETURNS_LOOKED_AT; i++) {
        inside = inside || words[i] - module->start < module->end - module->start;
    }
    return inside;
}

static bool in_function(const struct karst_symbol *function, const struct karst_thread *thread,
                        const uint64_t *words, size_t count) {
    bool inside = thread->program_counter - function->address < function->size;
    for (size_t i = 0; i < count; i++) {
        inside = inside || words[i] - function->address - 1 < function->size;
    }
    return inside;
}

bool karst_thread_inside(struct karst_target *target, struct karst_module *module,
                         const struct karst_thread *thread, const char *const *functions, bool whole) {
    uint64_t words[WORDS_LOOKED_AT];
    if (!module || waits_elsewhere(target, thread)) {
        return false;
    }
    size_t count = words_of_stack(target, thread, words);
    if (whole && in_module(module, thread, words, count)) {
        return true;
    }
    for (; *functions; functions++) {
        struct karst_symbol symbol;
        if (karst_module_symbol(target, module, *functions, &symbol) && symbol.size != 0 &&
            in_function(&symbol, thread, words, count)) {
            return true;
        }
    }
    return false;
}

bool karst_thread_in_text(struct karst_target *target, const struct karst_thread *thread, uint64_t start,
                          uint64_t end) {
    uint64_t words[WORDS_LOOKED_AT];
    if (waits_elsewhere(target, thread)) {
        return false;
    }
    size_t count = words_of_stack(target, thread, words);
    bool inside = thread->program_counter >= start && thread->program_counter < end;
    for (size_t i = 0; i < count; i++) {
        inside = inside || (words[i] > start && words[i] < end);
    }
    return inside;
}

bool karst_died_of_signal(const struct karst_target *target) {
    return target->kind == KARST_TARGET_CORE && target->thread_count != 0 &&
           (target->threads[0].signal == SIGABRT || target->threads[0].signal == SIGSEGV ||
            target->threads[0].signal == SIGBUS);
}
