/* The notes of a core: threads, registers, mapped files, the process. Layouts: Linux
 * include/uapi/linux/elfcore.h (struct elf_prstatus, elf_prpsinfo) and fs/binfmt_elf.c (fill_files_note). */
#include "core.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* Offsets in struct elf_prstatus and elf_prpsinfo, the same on 64-bit x86 and ARM. */
enum {
    PRSTATUS_SIGNAL = 12,
    PRSTATUS_PID = 32,
    PRSTATUS_REGISTERS = 112,
    PRSTATUS_BEHIND = 8, /* pr_fpvalid and padding */
    PRPSINFO_PID = 24,
    PRPSINFO_NAME = 40,
    PRPSINFO_NAME_SIZE = 16,
    PRPSINFO_ARGUMENTS = 56,
    PRPSINFO_ARGUMENTS_SIZE = 80
};

#define CORE_FILES_MAX ((size_t)1 << 20)

static uint64_t word_at(const uint8_t *data, size_t offset) {
    uint64_t value;
    memcpy(&value, data + offset, sizeof value);
    return value;
}

static int32_t int_at(const uint8_t *data, size_t offset) {
    int32_t value;
    memcpy(&value, data + offset, sizeof value);
    return value;
}

/* The signals whose default is to dump core; a debugger's core may carry the one it stopped at. */
static bool dumps_core(int signal) {
    switch (signal) {
    case SIGQUIT:
    case SIGILL:
    case SIGABRT:
    case SIGBUS:
    case SIGFPE:
    case SIGSEGV:
    case SIGXCPU:
    case SIGXFSZ:
    case SIGSYS:
        return true;
    default:
        return false;
    }
}

static bool read_status(struct core *core, const struct karst_note *note) {
    if (note->size < PRSTATUS_REGISTERS + PRSTATUS_BEHIND) {
        core->notes_damaged = true;
        return true;
    }
    struct karst_target *target = &core->target;
    if (target->thread_count >= KARST_THREADS_MAX) {
        core->notes_damaged = true;
        return true;
    }
    struct karst_thread *thread = karst_target_add_thread(target);
    if (!thread) {
        return false;
    }
    int16_t signal;
    memcpy(&signal, note->data + PRSTATUS_SIGNAL, sizeof signal);
    thread->signal = signal;
    thread->tid = int_at(note->data, PRSTATUS_PID);
    karst_thread_set_registers(thread, target->machine, note->data + PRSTATUS_REGISTERS,
                               note->size - PRSTATUS_REGISTERS - PRSTATUS_BEHIND);
    if (target->thread_count == 1) {
        target->signal = dumps_core(signal) || (signal == SIGTRAP && !core->by_debugger) ? signal : 0;
    }
    return true;
}

static void read_process(struct core *core, const struct karst_note *note) {
    if (note->size < PRPSINFO_ARGUMENTS + PRPSINFO_ARGUMENTS_SIZE) {
        core->notes_damaged = true;
        return;
    }
    core->has_process_note = true;
    core->target.pid = int_at(note->data, PRPSINFO_PID);
    memcpy(core->command, note->data + PRPSINFO_NAME, PRPSINFO_NAME_SIZE);
    memcpy(core->arguments, note->data + PRPSINFO_ARGUMENTS, PRPSINFO_ARGUMENTS_SIZE);
    for (char *c = core->command; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f) {
            *c = '?';
        }
    }
}

static void read_auxiliary(struct core *core, const struct karst_note *note) {
    for (size_t i = 0; i + 16 <= note->size; i += 16) {
        uint64_t value = word_at(note->data, i + 8);
        switch (word_at(note->data, i)) {
        case AT_PHDR:
            core->auxv_phdr = value;
            break;
        case AT_ENTRY:
            core->auxv_entry = value;
            break;
        case AT_EXECFN:
            core->auxv_execfn = value;
            break;
        case AT_RANDOM:
            core->auxv_random = value;
            break;
        case AT_SYSINFO_EHDR:
            core->auxv_vdso = value;
            break;
        case AT_PAGESZ:
            core->auxv_page_size = value;
            break;
        default:
            break;
        }
    }
}

/* count, page size, count times {start, end, offset in pages}, then the paths. */
static bool read_files(struct core *core, const struct karst_note *note) {
    if (core->files || note->size < 16) {
        core->notes_damaged |= !core->files;
        return true;
    }
    uint64_t count = word_at(note->data, 0), unit = word_at(note->data, 8);
    if (count > (note->size - 16) / 24 || count > CORE_FILES_MAX) {
        core->notes_damaged = true;
        return true;
    }
    core->files = calloc(count ? count : 1, sizeof *core->files);
    if (!core->files) {
        return false;
    }
    size_t at = 16 + 24 * (size_t)count;
    for (size_t i = 0; i < count; i++) {
        const char *path = (const char *)note->data + at;
        size_t length = strnlen(path, note->size - at);
        if (length == note->size - at) {
            core->notes_damaged = true;
            break;
        }
        at += length + 1;
        struct core_file *file = &core->files[core->file_count];
        file->start = word_at(note->data, 16 + 24 * i);
        file->end = word_at(note->data, 24 + 24 * i);
        if (file->start >= file->end ||
            __builtin_mul_overflow(word_at(note->data, 32 + 24 * i), unit, &file->offset)) {
            core->notes_damaged = true;
            continue;
        }
        file->path = karst_target_string(&core->target, path, length);
        if (!file->path) {
            return false;
        }
        core->file_count++;
    }
    return true;
}

static void read_siginfo(struct core *core, const struct karst_note *note) {
    int signal = note->size >= 4 ? int_at(note->data, 0) : 0;
    if (core->target.signal == 0 && core->target.thread_count <= 1 && dumps_core(signal)) {
        core->target.signal = signal;
    }
}

bool core_read_notes(struct core *core, const uint8_t *notes, size_t size) {
    struct karst_target *target = &core->target;
    struct karst_note note;
    bool enough_memory = true;
    for (size_t offset = 0; enough_memory && karst_note_next(notes, size, &offset, &note);) {
        if (karst_note_is(&note, "CORE", NT_PRSTATUS)) {
            enough_memory = read_status(core, &note);
        } else if (karst_note_is(&note, "CORE", NT_PRPSINFO)) {
            read_process(core, &note);
        } else if (karst_note_is(&note, "CORE", NT_AUXV)) {
            read_auxiliary(core, &note);
        } else if (karst_note_is(&note, "CORE", NT_FILE)) {
            enough_memory = read_files(core, &note);
        } else if (karst_note_is(&note, "CORE", NT_SIGINFO)) {
            read_siginfo(core, &note);
        } else if (karst_note_is(&note, "LINUX", NT_ARM_TLS) && note.size >= 8 && target->thread_count > 0) {
            target->threads[target->thread_count - 1].thread_pointer = word_at(note.data, 0);
        } else if (note.name_size >= 10 && memcmp(note.name, "VMCOREINFO", 10) == 0) {
            core->kernel_dump = true;
        }
    }
    return enough_memory;
}
