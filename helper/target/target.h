/* A target answers four questions: read memory, list mappings, find a symbol, find a struct's layout.
 * core.c, process.c and callbacks.c make one each; module.c finds symbols and layouts for all of them. */
#ifndef KARST_TARGET_TARGET_H
#define KARST_TARGET_TARGET_H

#include "error.h"
#include "karst.h"

struct karst_target;
struct karst_symbols; /* the opened ELF and debug files of a module, symbols.c */

enum karst_target_kind { KARST_TARGET_CORE, KARST_TARGET_PROCESS, KARST_TARGET_CALLBACKS };

/* An executable or library as mapped. */
struct karst_module {
    const char *path;              /* as the target names it; owned by the target */
    uint64_t start;                /* of its first mapping */
    uint64_t end;                  /* of its last mapping or its .bss, gaps between included */
    uint64_t bias;                 /* what to add to its file's virtual addresses */
    uint8_t build_id[64];          /* as read from the target's memory, else from the file */
    size_t build_id_size;          /* 0: unknown */
    bool file_checked;             /* the file was looked for */
    bool file_matches;             /* it is there and has the target's build id */
    struct karst_symbols *symbols; /* opened at the first question */
};

struct karst_target_ops {
    /* As karst_target_read(). */
    size_t (*read)(struct karst_target *target, uint64_t address, void *buffer, size_t size);
    /* As karst_target_peek(). May be NULL. */
    size_t (*peek)(struct karst_target *target, uint64_t address, void *buffer, size_t size);
    /* A pointer to target memory at address without copying, and how far it goes from there in *size;
     * NULL where that can't be had. It stays valid until the target is closed. May be NULL. */
    const uint8_t *(*view)(struct karst_target *target, uint64_t address, size_t *size);
    /* Bytes of [start, end) that are resident, UINT64_MAX: can't be told. Calls come mostly in rising
     * order of address. */
    uint64_t (*resident)(struct karst_target *target, uint64_t start, uint64_t end);
    /* As karst_target_own(). May be NULL. */
    uint64_t (*own)(struct karst_target *target, uint64_t start, uint64_t end);
    /* A file descriptor of the module's file by a way of its own (a process's /proc), -1: there is none;
     * the paths are tried then. May be NULL. */
    int (*open_module)(struct karst_target *target, const struct karst_module *module);
    /* As karst_target_untouched(). May be NULL. */
    uint64_t (*untouched)(struct karst_target *target, uint64_t address, uint64_t end);
    /* As karst_target_missing(); 0: nothing is known. May be NULL. */
    uint64_t (*missing)(struct karst_target *target, uint64_t address);
    /* Is the file that is read still as it was when it was opened? May be NULL: there is none. */
    bool (*unchanged)(struct karst_target *target);
    void (*close)(struct karst_target *target);
};

/* The first member of each kind's own struct. Arrays are filled when the target is opened, are sorted
 * by address (threads: as the kernel lists them, the first one first) and belong to the target. */
struct karst_target {
    const struct karst_target_ops *ops;
    enum karst_target_kind kind;
    bool stopped; /* nothing changes while we read */
    uint64_t page_size;
    uint16_t machine; /* EM_X86_64, EM_AARCH64; 0: unknown */
    int64_t pid;      /* 0: unknown */
    int32_t signal;   /* a core: what killed it; 0: none, or taken alive */
    char *name;       /* "core of python3 (pid 12)", "process 12 (redis-server)" */
    char *executable; /* path as the target names it; NULL: unknown */
    struct karst_mapping *mappings;
    size_t mapping_count;
    struct karst_thread *threads;
    size_t thread_count;
    struct karst_module *modules;
    size_t module_count;
    struct karst_module *executable_module; /* one of modules; NULL: unknown */
    char **remarks; /* what a reader of any answer has to know: "12 MB of the core are missing" */
    size_t remark_count;
    int read_error;      /* a core's file can't be read any more: an errno; ENODATA: it became shorter */
    bool missing_memory; /* parts of the target's private memory could not be had: totals may be low */
    char *sysroot, *debug_directory; /* from the options; may be NULL */
    char *executable_file;           /* the same: where the executable is here */
    char **strings;                  /* what the names and paths above point to */
    size_t string_count;
    size_t files_missing;        /* modules whose files were asked for and are not here */
    size_t files_missing_remark; /* the remark that tells so */
    bool no_symbols;
    const struct karst_callbacks *callbacks; /* lent symbols and layouts; NULL: none */
};

/* Opening. NULL with error filled. The target is closed with karst_target_close(). */
struct karst_target *karst_core_open(const char *path, const struct karst_options *options,
                                     struct karst_error *error);
struct karst_target *karst_process_open(int64_t pid, const struct karst_options *options,
                                        struct karst_error *error);
/* A process that the system keeps us from reading, for which error says why on entry: its number and name
 * alone. */
struct karst_target *karst_process_open_unread(int64_t pid, struct karst_error *error);
struct karst_target *karst_callbacks_open(const struct karst_callbacks *callbacks,
                                          const struct karst_options *options, struct karst_error *error);
void karst_target_close(struct karst_target *target);

#define KARST_CORE_CHANGED                                                                                   \
    "the core file was changed after it was opened: nothing to rely on can be told. Open it again when it "  \
    "is complete"
/* Is what was read, and will be, of one state of the target? false with error when a core's file became
 * another since it was opened, as by the next crash, or can't be read any more. For the start of a question,
 * as a look at what a mapped file has lost is a SIGBUS, and for its end. */
bool karst_target_is_whole(struct karst_target *target, struct karst_error *error);

/* Reads up to size bytes at address and returns how many were there from the start on. What the target
 * does not have ends the read; it is never zero-filled. */
size_t karst_target_read(struct karst_target *target, uint64_t address, void *buffer, size_t size);
/* The same, for looks at few bytes that are far between: a core that is mapped would map much around each.
 * All of it, or false. */
bool karst_target_peek(struct karst_target *target, uint64_t address, void *buffer, size_t size);
/* All of it, or false. */
bool karst_target_read_all(struct karst_target *target, uint64_t address, void *buffer, size_t size);
bool karst_target_read_u64(struct karst_target *target, uint64_t address, uint64_t *value);
bool karst_target_read_u32(struct karst_target *target, uint64_t address, uint32_t *value);

/* How many bytes from address on, up to end, are pages that the program never touched: nothing but zeros, and
 * need not be read. 0: none, or it can't be told; there may be more behind them. */
uint64_t karst_target_untouched(struct karst_target *target, uint64_t address, uint64_t end);

/* For an address that could not be read: how many bytes from there on cannot be read either. At least the
 * rest of the page, and never beyond the address space. */
uint64_t karst_target_missing(struct karst_target *target, uint64_t address);

/* The mapping that holds address, or NULL. mapping_after: the first one that ends after address. */
const struct karst_mapping *karst_target_mapping(const struct karst_target *target, uint64_t address);
const struct karst_mapping *karst_target_mapping_after(const struct karst_target *target, uint64_t address);
struct karst_module *karst_target_module(const struct karst_target *target, uint64_t address);
/* Anonymous private readable and writable memory: no file, no shared mapping, not [stack], [vvar] ...;
 * "[heap]" and "[anon:...]" count. */
bool karst_mapping_is_anonymous(const struct karst_mapping *mapping);

/* Bytes of [start, end) in resident pages; UINT64_MAX: the target can't tell. */
uint64_t karst_target_resident(struct karst_target *target, uint64_t start, uint64_t end);

/* Bytes of [start, end) in resident pages that no other process has: not shared with a parent or child since
 * a fork. UINT64_MAX: the target can't tell. */
uint64_t karst_target_own(struct karst_target *target, uint64_t start, uint64_t end);

/* Adds a line to the target's remarks; losing one for lack of memory is no error. */
void karst_target_remark(struct karst_target *target, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Symbols and layouts; false: not known. Asked are the module's .symtab, its separate debug file (build
 * id, .gnu_debuglink), .dynsym, then what a debugger lends. Local names match with the
 * suffixes of link-time optimisation cut off. address is in the target (bias added) unless
 * thread_local_. */
bool karst_module_symbol(struct karst_target *target, struct karst_module *module, const char *name,
                         struct karst_symbol *symbol);
/* Byte offset and size of type.member by the module's DWARF; member "": the size of type itself. */
bool karst_module_member(struct karst_target *target, struct karst_module *module, const char *type,
                         const char *member, uint64_t *offset, uint64_t *size);
enum karst_symbol_form {
    KARST_SYMBOL_READABLE, /* C++ and Rust demangled, for people: "abc::add(int)" */
    KARST_SYMBOL_LINKED    /* as the linker has it: "_ZN3abc3addEi" */
};

/* The name and offset of the function or object that holds address: "malloc+0x15". false: unknown. */
bool karst_target_symbolize(struct karst_target *target, uint64_t address, enum karst_symbol_form form,
                            char *text, size_t size);
/* The first place where needle stands in the module's file (its loaded sections), or without the file in
 * what can be read of the module; copies up to size - 1 bytes from there up to the first byte below ' ' and
 * terminates. For version strings. */
bool karst_module_find_text(struct karst_target *target, struct karst_module *module, const char *needle,
                            char *text, size_t size);

/* ---- windows: fast sequential or local reads --------------------------------------------------- */

/* A view of part of the target; small reads inside it cost a compare. Each reader has its own. */
struct karst_window {
    struct karst_target *target;
    uint64_t start, end; /* what bytes covers */
    const uint8_t *bytes;
    uint8_t *buffer; /* owned; NULL while all came from views */
    size_t capacity; /* how much to read at once, at most */
    size_t ahead;    /* how much to read next */
};

/* capacity: 64 KiB and more for walks, which read ahead once they prove to be walks; a page for pointer
 * chasing, which uses views where it can. No memory is taken before it is needed. */
void karst_window_open(struct karst_window *window, struct karst_target *target, size_t capacity);
void karst_window_close(struct karst_window *window);
/* The slow path of karst_window_at(). */
const uint8_t *karst_window_fill(struct karst_window *window, uint64_t address, size_t size);

/* size bytes at address, NULL if not all of them are there. size is at most 4096. Valid until the next
 * call on the same window. */
static inline const uint8_t *karst_window_at(struct karst_window *window, uint64_t address, size_t size) {
    if (address >= window->start && address < window->end && window->end - address >= size) {
        return window->bytes + (address - window->start);
    }
    return karst_window_fill(window, address, size);
}

#endif
