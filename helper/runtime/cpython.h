/* CPython: the interpreter's own structures in a target, read without running anything in it. Which are where
 * by version: cpython_layout.c; finding them: cpython_find.c; objects: cpython_object.c; threads and frames:
 * cpython_frames.c; line tables: cpython_lines.c. pymalloc, its allocator, is in helper/allocator. */
#ifndef KARST_RUNTIME_CPYTHON_H
#define KARST_RUNTIME_CPYTHON_H

#include "cache.h"
#include "session.h"

#define CPYTHON_FIRST 9  /* 3.9 */
#define CPYTHON_LAST  15 /* 3.15 */
#define CPYTHON_NONE  UINT32_MAX

/* How a code object tells lines. */
enum cpython_lines {
    CPYTHON_LNOTAB,    /* 3.9: Objects/lnotab_notes.txt */
    CPYTHON_LINETABLE, /* 3.10: PEP 626 */
    CPYTHON_LOCATIONS  /* 3.11 and later: Objects/locations.md */
};

/* How a thread leads to its frames. */
enum cpython_frames {
    CPYTHON_FRAME_OBJECTS, /* tstate.frame, a PyFrameObject (to 3.10) */
    CPYTHON_BY_CFRAME,     /* tstate.cframe.current_frame (3.11, 3.12) */
    CPYTHON_BY_THREAD      /* tstate.current_frame (3.13 and later) */
};

/* Byte offsets in the structures of one version, 64-bit. */
struct cpython_layout {
    uint32_t minor;
    enum cpython_lines lines;
    enum cpython_frames frames;
    uint32_t runtime_interpreters; /* _PyRuntimeState.interpreters.head; main stands behind it */
    uint32_t runtime_current;      /* .gilstate.tstate_current, CPYTHON_NONE since 3.12 */
    struct {
        uint32_t next, id, threads, runtime, modules, gc;
        uint32_t obmalloc;     /* CPYTHON_NONE: pymalloc's state is static (to 3.11) */
        bool obmalloc_pointer; /* since 3.13 */
        uint32_t gil;          /* .ceval.gil, CPYTHON_NONE before 3.12 */
        uint32_t size;         /* about, for searches in it */
    } interp;
    struct {
        uint32_t generations; /* three of 24 bytes each; the permanent one is gc_permanent */
        uint32_t permanent;
    } gc;
    struct {
        uint32_t next, interp, thread_id, native_id /* CPYTHON_NONE before 3.11 */, frame;
    } thread;
    uint32_t cframe_current;
    struct {
        uint32_t code, previous, instruction, locals, globals, localsplus;
        uint32_t owner; /* CPYTHON_NONE before 3.11 */
        uint32_t entry; /* .is_entry, 3.11 only */
        uint32_t shim;  /* owners from this one on are no Python frames (3.12 and later) */
    } frame;
    struct {
        uint32_t filename, name, qualname /* CPYTHON_NONE before 3.11 */, first_line, lines;
        uint32_t bytes;           /* .co_code (an object), since 3.11 .co_code_adaptive (in place) */
        uint32_t first_traceable; /* CPYTHON_NONE before 3.11 */
        uint32_t flags;
        uint32_t names, kinds;            /* .co_localsplusnames, -kinds since 3.11 */
        uint32_t variables, cells, frees; /* .co_varnames ... before */
    } code;
    uint32_t heap_type_qualname;
    uint32_t heap_type_keys; /* PyHeapTypeObject.ht_cached_keys: names of its instances' attributes */
    uint32_t ascii_size, compact_size; /* of PyASCIIObject, PyCompactUnicodeObject */
    uint32_t tuple_items;
    bool tagged_int;                /* PyLongObject.lv_tag (3.12 and later), else ob_size counts digits */
    bool packed_keys;               /* PyDictKeysObject with log2 sizes and kinds (3.11 and later) */
    uint32_t pool_bits, arena_bits; /* log2 of pymalloc's sizes */
};

/* NULL: unknown. */
const struct cpython_layout *cpython_layout_for(uint32_t minor);
/* What the interpreter whose _PyRuntime is at runtime says of itself (_Py_DebugOffsets, 3.13 and later), over
 * the table of its version or the newest one known; version: as sys.hexversion. False: it says nothing. */
bool cpython_layout_told(struct karst_target *target, uint64_t runtime, struct cpython_layout *layout,
                         uint32_t *version, bool *free_threaded);

/* Type flags that have been the same since 3.0 (Include/object.h), but for the managed ones. */
#define CPYTHON_TYPE_HEAP  (1u << 9)
#define CPYTHON_TYPE_GC    (1u << 14)
#define CPYTHON_TYPE_READY (1u << 12)
#define CPYTHON_TYPE_INT   (1u << 24)
#define CPYTHON_TYPE_LIST  (1u << 25)
#define CPYTHON_TYPE_TUPLE (1u << 26)
#define CPYTHON_TYPE_BYTES (1u << 27)
#define CPYTHON_TYPE_STR   (1u << 28)
#define CPYTHON_TYPE_DICT  (1u << 29)
#define CPYTHON_TYPE_TYPE  (1u << 31)

/* A type met in the target. */
struct cpython_type {
    uint64_t address;
    uint64_t flags;
    uint64_t basic_size, item_size; /* bytes; item_size 0: objects of one size */
    uint32_t before; /* bytes in front of an object: the collector's header, managed pointers */
    bool unnamed;    /* its name is missing: it stands in a file that is not here */
    char name[96];   /* "int", "collections.deque", "__main__.Parser" */
    uint64_t slot;   /* for whoever counts by type: 1 + a row's index, 0: none yet */
};

/* A hash table by address; capacity is a power of two. Addresses that are no types are remembered as long as
 * there is room: words of a heap that holds no objects are many. */
struct cpython_types {
    struct cpython_type **slots; /* owned */
    size_t count, capacity;
    uint64_t *refused; /* NULL until there is one */
};

struct cpython_interpreter {
    uint64_t address;
    int64_t id;
    uint64_t generations; /* address of the collector's; 0: unknown */
};

/* One runtime: an executable or libpython that was found to be running in the target. */
struct cpython {
    struct karst *session;
    struct karst_target *target;
    struct karst_module *module; /* that has it */
    uint64_t runtime;            /* &_PyRuntime */
    uint32_t minor;              /* 3.minor */
    uint32_t told_minor;         /* by the module's data or name, 0: not told */
    char version[32];            /* "3.11.2", "3.11" */
    struct cpython_layout layout;
    bool layout_known; /* of this version; else it is the newest one's with what the target says of itself */
    bool free_threaded;
    bool dressed; /* by the debug hooks (PYTHONMALLOC=debug): objects begin 16 bytes into what malloc gave */
    struct karst_facts facts; /* for `info`: where it was found, what is not known */
    struct cpython_interpreter *interpreters;
    size_t interpreter_count;
    struct karst_cache cache;
    struct cpython_types types;
    bool out_of_memory;
};

/* All of a session; found once. */
struct cpython_set {
    struct cpython *items;
    size_t count;
    size_t looked_in;   /* modules */
    char unusable[200]; /* what was met but can't be read: "CPython 3.8 ..."; "": nothing */
};

/* Looks for runtimes, once, and gives the session's set; NULL with error. None found is no error. */
struct cpython_set *cpython_find(struct karst *session, struct karst_error *error);
/* The same, and an error that says what was looked for when there is none. */
struct cpython_set *cpython_need(struct karst *session, struct karst_error *error);
void cpython_set_close(struct cpython_set *set);

/* Calls visit for a module's writable data, piece by piece with 256 bytes of overlap, each at most 64 KiB;
 * true from it ends, and is returned. */
bool cpython_each_piece(struct cpython *python, struct karst_module *module,
                        bool (*visit)(void *context, const uint8_t *bytes, size_t size, uint64_t start),
                        void *context);

/* ---- reading ---------------------------------------------------------------------------------------- */

static inline uint64_t cpython_word(const uint8_t *bytes) {
    uint64_t word;
    __builtin_memcpy(&word, bytes, sizeof word);
    return word;
}
/* 0 also when it can't be read. */
uint64_t cpython_u64(struct cpython *python, uint64_t address);
uint32_t cpython_u32(struct cpython *python, uint64_t address);
bool cpython_read(struct cpython *python, uint64_t address, uint64_t *word);

/* ---- objects ---------------------------------------------------------------------------------------- */

/* The type at address, NULL: there is none. It stays where it is. */
struct cpython_type *cpython_type_at(struct cpython *python, uint64_t address);
/* The type of the object at address, NULL: it is none. */
struct cpython_type *cpython_type_of(struct cpython *python, uint64_t object);
/* A str as UTF-8, cut off with an ellipsis; false and "" if it is none. */
bool cpython_text(struct cpython *python, uint64_t object, char *text, size_t size);
/* A few words on an object's value: "5", "'abc'", "3 items", "8,880,443 characters"; "" where there is
 * nothing short to say. */
void cpython_value(struct cpython *python, uint64_t object, char *text, size_t size);
/* Items of a tuple; 0 if it is none. */
uint64_t cpython_tuple_size(struct cpython *python, uint64_t tuple);
uint64_t cpython_tuple_item(struct cpython *python, uint64_t tuple, uint64_t index);

/* Entries of a dict in their order. */
struct cpython_dict {
    uint64_t entries; /* address */
    uint64_t values;  /* of a split table; 0: in the entries */
    uint64_t count;   /* entries, unused ones too */
    uint32_t entry_size, key_at, value_at;
    uint64_t keys, keys_size; /* the table's block, in bytes */
    bool shared;              /* the keys belong to a type */
};
bool cpython_dict_open(struct cpython *python, uint64_t object, struct cpython_dict *dict);
/* The attributes of an instance that has no dict: names in its type, values in the instance or beside it. */
bool cpython_instance_open(struct cpython *python, uint64_t object, const struct cpython_type *type,
                           struct cpython_dict *dict);
/* False: entry index is not used, or not there. */
bool cpython_dict_entry(struct cpython *python, const struct cpython_dict *dict, uint64_t index,
                        uint64_t *key, uint64_t *value);

/* ---- threads and frames ------------------------------------------------------------------------------ */

struct cpython_thread {
    uint64_t state; /* address of its PyThreadState */
    uint64_t interpreter;
    int64_t interpreter_id;
    int64_t tid;                       /* 0: not known */
    const struct karst_thread *thread; /* NULL: not among the target's */
    bool holds_gil;
    uint64_t frame; /* the newest; 0: it runs no Python code */
};

struct cpython_threads {
    struct cpython_thread *items;
    size_t count;
    bool damaged; /* a list of them could not be followed to its end */
};

bool cpython_list_threads(struct cpython *python, struct cpython_threads *threads, struct karst_error *error);
void cpython_threads_clear(struct cpython_threads *threads);

struct cpython_frame {
    uint64_t address;
    uint64_t code;
    int64_t line; /* 0: none is told */
    bool entry;   /* C code called it: the frames before it, up to the next such, share one C frame */
    char function[160], file[400];
};

/* The frames of a thread, from the newest on; false from frame ends it. damaged: the chain could not be
 * followed to its end. */
void cpython_each_frame(struct cpython *python, const struct cpython_thread *thread,
                        bool (*frame)(void *context, const struct cpython_frame *frame), void *context,
                        bool *damaged);

/* The frame object at address (3.9, 3.10: frames of generators that stand still are on no thread's stack);
 * false: there is none. */
bool cpython_frame_object(struct cpython *python, uint64_t address, struct cpython_frame *frame);

struct cpython_local {
    char name[96];
    uint64_t value; /* address; 0: unbound */
};
/* The local variables of a frame: its fast ones, or, at the level of a module or class, its names. */
void cpython_each_local(struct cpython *python, const struct cpython_frame *frame,
                        bool (*local)(void *context, const struct cpython_local *local), void *context);

/* The line of an instruction, by a code object's table of size bytes. offset: of the instruction in bytes,
 * -1: before the first. 0: none. */
int64_t cpython_line(enum cpython_lines kind, const uint8_t *table, size_t size, int64_t first_line,
                     int64_t offset);

#endif
