/* karst: the public C API of the engine.
 *
 * A session is one target (a core file, a live process, or memory that a debugger lends by callbacks)
 * and the heaps found in it. Sizes are bytes, addresses are the target's. A session belongs to one
 * thread at a time; different sessions are independent. Nothing here writes to the target, exits, or
 * prints: text goes to the caller's output, errors come back as values.
 */
#ifndef KARST_H
#define KARST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KARST_VERSION "0.1.0"
/* Raised whenever a struct or a function below changes shape or is added; the Python binding refuses another.
 */
#define KARST_API_VERSION 4

#define KARST_EXPORT  __attribute__((visibility("default")))
#define KARST_CHECKED __attribute__((warn_unused_result))

/* ---- errors ---------------------------------------------------------------------------------- */

enum karst_error_code {
    KARST_ERROR_NONE,
    KARST_ERROR_USAGE,       /* a wrong word, option or number */
    KARST_ERROR_NOT_FOUND,   /* a file, process, heap or block that is not there */
    KARST_ERROR_PERMISSION,  /* the system said no; the text says what would help */
    KARST_ERROR_FORMAT,      /* a file that is not what it should be */
    KARST_ERROR_UNSUPPORTED, /* known, but not handled: an unknown allocator version, say */
    KARST_ERROR_INTERRUPTED, /* the caller's poll callback asked to stop */
    KARST_ERROR_SYSTEM,      /* a system call failed for another reason */
    KARST_ERROR_MEMORY       /* no memory for the engine itself */
};

/* One line for a person: what is wrong and what would help, without a newline. */
struct karst_error {
    enum karst_error_code code;
    char text[1000];
};

/* ---- what a target is made of ---------------------------------------------------------------- */

enum { KARST_MAPPING_READ = 1, KARST_MAPPING_WRITE = 2, KARST_MAPPING_EXECUTE = 4, KARST_MAPPING_SHARED = 8 };

/* One mapping of the target's address space, [start, end). name: the file's path, "[heap]", "[stack]",
 * "[anon:...]" or NULL for plain anonymous memory. inode: 0 if unknown or none. */
struct karst_mapping {
    uint64_t start;
    uint64_t end;
    uint64_t file_offset;
    uint64_t inode;
    uint32_t permissions;
    const char *name;
};

/* General registers, in the order of the kernel's user_regs_struct of the target's machine. */
#define KARST_REGISTERS_MAX 40

struct karst_thread {
    int64_t tid;
    uint64_t thread_pointer; /* fs base on x86-64, tpidr_el0 on aarch64; 0: unknown */
    uint64_t stack_pointer;  /* 0: unknown */
    uint64_t program_counter;
    int32_t signal;          /* the signal this thread died or was stopped of; 0: none */
    uint32_t register_count; /* 0: registers unknown */
    uint64_t registers[KARST_REGISTERS_MAX];
    char name[16];
};

/* A symbol as found: for thread-local ones address is the offset in the module's TLS block. */
struct karst_symbol {
    uint64_t address;
    uint64_t size;
    bool thread_local_;
};

/* ---- targets that a debugger lends ------------------------------------------------------------ */

/* Every callback gets the caller's context. They are called on the thread that calls into the engine. */
struct karst_callbacks {
    void *context;
    uint64_t page_size; /* 0: 4096 */
    int64_t pid;        /* 0: unknown; only for messages */
    /* Reads up to size bytes at address and returns how many could be read from the start on; memory
     * that is not there ends the read, it is never filled with zeros. Required. */
    size_t (*read)(void *context, uint64_t address, void *buffer, size_t size);
    /* Return mapping or thread number index; false: there are no more. mappings is required; the
     * strings have to stay valid until the next call. */
    bool (*mapping)(void *context, size_t index, struct karst_mapping *mapping);
    bool (*thread)(void *context, size_t index, struct karst_thread *thread);
    /* A symbol by name in the module mapped from module_path (NULL: any). May be NULL. */
    bool (*symbol)(void *context, const char *module_path, const char *name, struct karst_symbol *symbol);
    /* Offset and size of a member of a struct. May be NULL. */
    bool (*member)(void *context, const char *module_path, const char *type, const char *member,
                   uint64_t *offset, uint64_t *size);
    /* Bytes of [start, end) that are resident, or UINT64_MAX when it can't be told. May be NULL. */
    uint64_t (*resident)(void *context, uint64_t start, uint64_t end);
};

/* ---- sessions --------------------------------------------------------------------------------- */

struct karst; /* a session */

struct karst_options {
    const char *executable;      /* a core: where it is now, NULL: as the core says; callbacks: which it is */
    const char *sysroot;         /* prefix for the paths a core names; NULL: none */
    const char *debug_directory; /* where separate debug files are, ':' separated; NULL: /usr/lib/debug */
    bool no_stop;                /* live process: read it while it runs */
    bool no_symbols;             /* find everything by structure, as on a stripped system (tests) */
    /* Called about four times a second while the engine works, NULL: never. done and total are bytes of
     * heap read (total 0: unknown). Returning false ends the work with KARST_ERROR_INTERRUPTED. */
    bool (*poll)(void *context, const char *what, uint64_t done, uint64_t total);
    void *poll_context;
    /* The threads of the process as a debugger that is attached knows them; NULL: the engine looks. */
    bool (*thread)(void *context, size_t index, struct karst_thread *thread);
    void *thread_context;
    /* Symbols and layouts that a debugger knows, asked for what the files of a module don't say; only its
     * context, symbol and member are used. Has to outlive the session. NULL: none. */
    const struct karst_callbacks *lent;
};

/* Open a target. NULL on failure, with error filled. The strings in options are copied. The session
 * belongs to the caller, who ends it with karst_close(); a process is let go of there, unharmed. */
KARST_EXPORT struct karst *karst_open_core(const char *path, const struct karst_options *options,
                                           struct karst_error *error);
KARST_EXPORT struct karst *karst_open_process(int64_t pid, const struct karst_options *options,
                                              struct karst_error *error);
KARST_EXPORT struct karst *karst_open_callbacks(const struct karst_callbacks *callbacks,
                                                const struct karst_options *options,
                                                struct karst_error *error);
KARST_EXPORT void karst_close(struct karst *session);
KARST_EXPORT const char *karst_version(void);
KARST_EXPORT uint32_t karst_api_version(void);

/* ---- blocks ----------------------------------------------------------------------------------- */

enum karst_state {
    KARST_STATE_LIVE,     /* the program holds it */
    KARST_STATE_FREE,     /* reusable for any request that fits */
    KARST_STATE_CACHED,   /* freed, set aside for one size class or one thread */
    KARST_STATE_TOP,      /* the unused end of a heap */
    KARST_STATE_METADATA, /* the allocator's own */
    KARST_STATE_UNKNOWN,  /* damaged or missing: could not be read or made sense of */
    KARST_STATES
};

/* Flags of a block. */
enum {
    KARST_BLOCK_MAPPED = 1,    /* has a mapping of its own; counts as live too */
    KARST_BLOCK_FOREIGN = 2,   /* state UNKNOWN, yet no damage: not the allocator's (a foreign sbrk) */
    KARST_BLOCK_REGION = 4,    /* lies in a page run cut into regions: when free, good for its class alone */
    KARST_BLOCK_RUN = 8,       /* the first block of such a run: nothing before it merges with it */
    KARST_BLOCK_UNDECIDED = 16 /* state UNKNOWN, yet no damage: live, or cached in a list that is missing */
};

/* No arena, no bin. */
#define KARST_NONE UINT32_MAX

/* [start, start + size) are the bytes it takes, headers included; blocks of an extent tile it. address
 * is what the program holds (or held), usable the bytes it may use there. heap, arena and bin index the
 * session's tables. */
struct karst_block {
    uint64_t start;
    uint64_t size;
    uint64_t address;
    uint64_t usable;
    uint32_t arena;
    uint32_t bin;
    uint16_t heap;
    uint8_t state;
    uint8_t flags;
};

KARST_EXPORT const char *karst_state_name(enum karst_state state);

/* Walks all blocks in address order, in batches that are only valid during the call. blocks returning
 * false ends the walk early, which is no error. */
KARST_EXPORT bool karst_for_each_block(struct karst *session,
                                       bool (*blocks)(void *context, const struct karst_block *blocks,
                                                      size_t count),
                                       void *context, struct karst_error *error) KARST_CHECKED;
/* The block whose bytes hold address; KARST_ERROR_NOT_FOUND says why there is none. */
KARST_EXPORT bool karst_find_block(struct karst *session, uint64_t address, struct karst_block *block,
                                   struct karst_error *error) KARST_CHECKED;
/* "glibc", "main", "tcache 0x40 of thread 1234" ...: names for the indexes of a block. The pointers stay
 * valid until karst_close(); "" where the index is KARST_NONE. */
KARST_EXPORT const char *karst_allocator_name(struct karst *session, const struct karst_block *block);
KARST_EXPORT const char *karst_arena_name(struct karst *session, const struct karst_block *block);
KARST_EXPORT const char *karst_bin_name(struct karst *session, const struct karst_block *block);

/* ---- verbs ------------------------------------------------------------------------------------ */

enum karst_style {
    KARST_STYLE_PLAIN,
    KARST_STYLE_TITLE,
    KARST_STYLE_ADDRESS,
    KARST_STYLE_SYMBOL,
    KARST_STYLE_FILE,
    KARST_STYLE_GOOD,
    KARST_STYLE_WARNING, /* also: suspect */
    KARST_STYLE_BAD,     /* also: corrupt */
    KARST_STYLE_DIM,
    KARST_STYLES
};

struct karst_output {
    void *context;
    /* Takes size bytes of text, not terminated. false: nobody reads any more, the verb ends. */
    bool (*write)(void *context, enum karst_style style, const char *text, size_t size);
    uint32_t width; /* columns, which lines of text keep to; 0: unlimited */
    bool unicode;   /* may use characters beyond ASCII */
};

/* Runs one verb with its arguments, argv[0] being the verb, as the command line would. Text or JSON goes
 * to output. Returns 0 (done and healthy), 1 (`check` found something) or 2 (not answered: error says
 * why). last_address, if not NULL, gets the last block address shown, 0 if none. */
KARST_EXPORT int karst_run(struct karst *session, int argc, const char *const *argv,
                           const struct karst_output *output, uint64_t *last_address,
                           struct karst_error *error);
/* All verbs, their arguments, options and help as JSON, for completion and help in other front ends.
 * Static storage of the library; NULL when there was no memory. */
KARST_EXPORT const char *karst_verbs_json(void);
/* Which of count words was meant by a mistyped one; NULL: none is near enough. For front ends' own words. */
KARST_EXPORT const char *karst_nearest_word(const char *typed, const char *const *words, size_t count);

/* ---- traps ------------------------------------------------------------------------------------ */

/* Traps as people write them, "realloc 8880819", and why a thread stopped at one, as the structs of
 * karst-abi.h, which this header does not need: size is that of the struct where the caller has it. */

/* Fills a struct karst_trap from text; its number stays 0. False: the text is no trap, error says why. */
KARST_EXPORT bool karst_read_trap(const char *text, void *trap, size_t size,
                                  struct karst_error *error) KARST_CHECKED;
/* Says in one line what a struct karst_why tells; cut where text, of text_size bytes, is full. False: size is
 * not that of the struct. */
KARST_EXPORT bool karst_say_why(const void *why, size_t size, char *text, size_t text_size) KARST_CHECKED;

/* ---- what the preload library is asked for ---------------------------------------------------- */

/* Values of the options of `karst run` and `karst inject`, as typed. False: error says what is wrong with
 * one. */

/* --recorder: bytes of each thread's ring. */
KARST_EXPORT bool karst_read_ring_bytes(const char *text, uint64_t *bytes,
                                        struct karst_error *error) KARST_CHECKED;
/* --stacks: frames of each call. */
KARST_EXPORT bool karst_read_stack_depth(const char *text, uint32_t *depth,
                                         struct karst_error *error) KARST_CHECKED;
/* --action. */
KARST_EXPORT bool karst_check_action(const char *text, struct karst_error *error) KARST_CHECKED;
/* --recorder-dir: makes the directory if it is not there, sees that files can be made in it, and fills path,
 * of size bytes, with its absolute path. */
KARST_EXPORT bool karst_prepare_ring_directory(const char *directory, char *path, size_t size,
                                               struct karst_error *error) KARST_CHECKED;

#ifdef __cplusplus
}
#endif
#endif
