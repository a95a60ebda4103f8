/* karst: what libkarst-preload.so leaves in a process, for debuggers and the engine.
 *
 * One struct karst_control, the marker, begins on a page boundary of the library's .bss (exported as
 * `karst_control`, but it is found without symbols: magic, version and self pointer). Everything else is
 * reached from it. All numbers are in the byte order of the machine; offsets are from the start of the
 * marker. A reader checks magic, self and version, and takes sizes and offsets from the marker's header, so
 * that a later version may make structs longer: what is there keeps its place. version is raised when that
 * can't be kept.
 *
 * Everything read from here belongs to a target that may be damaged: check before use.
 * docs/markers.md says more.
 */
#ifndef KARST_ABI_H
#define KARST_ABI_H

#include <stdint.h>

#define KARST_ABI_VERSION 3u
#define KARST_ABI_MAGIC   UINT64_C(0x314b524d5453524b) /* "KRSTMRK1" in memory */
#define KARST_ABI_NAME    "karst" /* of the mapping, where the kernel has names: [anon:karst] */

/* ---- functions ------------------------------------------------------------------------------------ */

/* The functions that are interposed; indexes of gates, bits of karst_trap.functions. The names are what
 * people type: malloc, ..., new, new[], delete, delete[]. */
enum karst_function {
    KARST_MALLOC,
    KARST_CALLOC,
    KARST_REALLOC,
    KARST_REALLOCARRAY,
    KARST_MEMALIGN,
    KARST_POSIX_MEMALIGN,
    KARST_ALIGNED_ALLOC,
    KARST_VALLOC,
    KARST_PVALLOC,
    KARST_NEW,
    KARST_NEW_ARRAY,
    KARST_FREE,
    KARST_DELETE,
    KARST_DELETE_ARRAY,
    KARST_FUNCTIONS,
    KARST_GATES = 16
};

#define KARST_ALLOCATING ((1u << KARST_FREE) - 1)
#define KARST_FREEING    (1u << KARST_FREE | 1u << KARST_DELETE | 1u << KARST_DELETE_ARRAY)

/* Bits of a gate. A function whose gate is KARST_GATE_READY goes straight to the allocator; any other value
 * sends it the long way. Whoever changes traps or `wanted` from outside then sets KARST_GATE_CHANGED in
 * every gate (gate | KARST_GATE_CHANGED): the next call of any of the functions takes the change in, works
 * out all gates anew and adds one to `generation`. */
enum {
    KARST_GATE_READY = 1,
    KARST_GATE_CHANGED = 2,
    KARST_GATE_SIZE = 4, /* traps on a range of sizes: size_low and size_span say whether to look closer */
    KARST_GATE_TRAP = 8, /* traps that every call has to be held against */
    KARST_GATE_RECORD = 16,
    KARST_GATE_MARK = 32,
    KARST_GATE_STACK = 64 /* sites are stacks */
};

/* ---- traps ---------------------------------------------------------------------------------------- */

enum karst_trap_state {
    KARST_TRAP_EMPTY,    /* the slot is not used */
    KARST_TRAP_ARMED,    /* written last, after all other fields */
    KARST_TRAP_DISABLED, /* kept, does nothing */
    KARST_TRAP_SPENT     /* fired `count` times; does nothing */
};

/* Conditions; a call has to meet all of a trap's. KARST_IF_FAULT traps are met by faults only. */
enum karst_trap_condition {
    KARST_IF_SIZE = 1,      /* size_low <= size <= size_high. Size is what the caller asked for */
    KARST_IF_SIZES = 2,     /* size is one of sizes[0 .. size_count) */
    KARST_IF_THREAD = 4,    /* called by this thread */
    KARST_IF_CALLER = 8,    /* caller_low <= return address < caller_high */
    KARST_IF_EVENT = 16,    /* the process's event number is `event` */
    KARST_IF_RETURNED = 32, /* address_low <= address returned <= address_high */
    KARST_IF_FREED = 64,    /* address_low <= address freed (or handed to realloc) <= address_high */
    KARST_IF_GROWTH = 128,  /* the allocator got memory from the system during the call */
    KARST_IF_FAULT = 256    /* one of the faults whose bits are in `faults` (1 << enum karst_fault) */
};
/* With both KARST_IF_RETURNED and KARST_IF_FREED one of the two is enough. */

/* What a marked heap finds wrong at a call. */
enum karst_fault {
    KARST_FAULT_NONE,
    KARST_FAULT_DOUBLE_FREE, /* freed before, and not handed out since */
    KARST_FAULT_FOREIGN,     /* freed, but never came from the allocator */
    KARST_FAULT_INTERIOR,    /* freed, but points into the middle of a live block */
    KARST_FAULT_OVERFLOW,    /* freed (or realloc'ed) block was written beyond its end */
    KARST_FAULTS
};

enum karst_action {
    KARST_ACTION_DEFAULT, /* of a trap: karst_control.action; of that: log */
    KARST_ACTION_LOG,     /* a line on standard error, and go on */
    KARST_ACTION_STOP,    /* a line, and SIGSTOP: wait for a debugger; SIGCONT goes on */
    KARST_ACTION_CORE,    /* a line, a core of a forked copy, and go on */
    KARST_ACTION_ABORT,   /* a line, and SIGABRT */
    KARST_ACTIONS
};
/* The action is taken when no debugger is attached. With one, the thread runs into the trap instruction of
 * karst_trap_stop(). */

#define KARST_TRAPS      16
#define KARST_TRAP_SIZES 8

struct karst_trap {
    uint32_t state;      /* enum karst_trap_state */
    uint32_t number;     /* what people call it: 1, 2, ...; given by who adds it */
    uint32_t functions;  /* bits 1 << enum karst_function; 0: none, the trap never fires */
    uint32_t conditions; /* enum karst_trap_condition; 0: every call of the functions */
    uint32_t action;     /* enum karst_action */
    uint32_t before; /* 1: fire before the allocator is called; then no address is known. Frees always do */
    uint64_t size_low, size_high;
    uint64_t sizes[KARST_TRAP_SIZES];
    uint32_t size_count;
    int32_t thread;
    uint64_t caller_low, caller_high;
    uint64_t address_low, address_high;
    uint64_t event;
    uint64_t skip;   /* so many matches do not fire; counted in hits all the same */
    uint64_t count;  /* fire so many times, then be spent; 0: always */
    uint64_t hits;   /* calls that met the conditions; written by the library */
    uint64_t fired;  /* times it fired; written by the library */
    uint32_t faults; /* bits 1 << enum karst_fault */
    uint32_t reserved;
    char caller[64]; /* name of a module as given ("libfoo.so"): the library fills in caller_low and
                        caller_high when it is loaded; empty: they are as given */
    char text[96];   /* the trap as it was typed; for lists */
};

#define KARST_WHY_MAGIC UINT64_C(0x31595748544b524b)

/* Why a thread stopped. karst_trap_stop(const struct karst_why *) gets it as its only argument: at the stop
 * it is in the first argument register (x86-64: rdi), and the program counter is behind the trap instruction,
 * in karst_control.trap_stop .. trap_stop_end. The record lies on the thread's stack. Continuing goes on. */
struct karst_why {
    uint64_t magic;       /* KARST_WHY_MAGIC */
    uint32_t size_of;     /* of this struct */
    uint32_t trap;        /* index of the slot; KARST_WHY_NO_TRAP: a fault that no trap asked for */
    uint32_t function;    /* enum karst_function */
    uint32_t fault;       /* enum karst_fault */
    uint32_t before;      /* 1: the allocator was not called yet */
    int32_t thread;       /* thread id */
    uint64_t size;        /* bytes asked for; of a free: of the block, where known, else 0 */
    uint64_t address;     /* what the allocator returned; 0: NULL, or not called yet */
    uint64_t old_address; /* what is freed, or handed to realloc; else 0 */
    uint64_t alignment;   /* asked for; 0: none */
    uint64_t event;       /* number of the event, from 1; 0: not counted */
    uint64_t caller;      /* return address: where the program called the function */
    uint64_t stack;       /* stack pointer at the call, before it: the caller's frame */
    uint64_t hits;        /* of the trap, this one included */
    uint64_t grown;       /* bytes obtained from the system during the call, of a growth trap */
    /* Of a fault: the block concerned (interior: the live one around; double free: the freed one). */
    uint64_t block, block_size;
    uint64_t allocated_at, freed_at; /* return addresses; 0: unknown */
    int32_t allocated_by, freed_by;  /* thread ids; 0: unknown */
};

#define KARST_WHY_NO_TRAP UINT32_MAX

/* ---- marks ---------------------------------------------------------------------------------------- */

/* In mark mode each block ends in a footer, and a map says where blocks begin. The map has a leaf of
 * KARST_MAP_LEAF bytes for each KARST_MAP_SPAN bytes of address space that blocks begin in, one byte for each
 * KARST_MAP_GRAIN. Its directory has KARST_MAP_ENTRIES words, one for each span: what has to be added to
 * (address / KARST_MAP_GRAIN) for the place in the leaf (modulo 2^64; 0: there is no leaf). There stands, for
 * a block's first byte, a little-endian 16-bit entry: the offset of the footer from the block's address,
 * which is a multiple of 8 below KARST_MAP_SHORT, with the state (enum karst_mark) in its lower three bits.
 * KARST_MAP_LARGE stands for an offset that follows in the next 16 bytes of the leaf: its eighth, four bits
 * to a byte, in the upper half of each, the lowest first. So no byte but an entry's first has a mark's state
 * in its lower three bits, and what is left of the entries of freed blocks, which stay until their places are
 * used anew, is never taken for the entry of a live one. */
#define KARST_MAP_GRAIN   16u
#define KARST_MAP_SPAN    (UINT64_C(1) << 28)
#define KARST_MAP_ENTRIES (UINT64_C(1) << 20)
#define KARST_MAP_LEAF    (KARST_MAP_SPAN / KARST_MAP_GRAIN)
#define KARST_MAP_STATE   0x7u
#define KARST_MAP_SHORT   0x600u
#define KARST_MAP_LARGE   0x8000u

/* The lower three bits of the upper byte of a short offset, and of KARST_MAP_LARGE, are less than both. */
enum karst_mark { KARST_MARK_NONE, KARST_MARK_FREED = 6, KARST_MARK_LIVE = 7 };

/* Four bits to a byte: what 8 bytes of a large entry hold of its number, and the number out of them. */
static inline uint64_t karst_map_spread(uint32_t number) {
    uint64_t word = number;
    word = (word | word << 16) & UINT64_C(0x0000ffff0000ffff);
    word = (word | word << 8) & UINT64_C(0x00ff00ff00ff00ff);
    word = (word | word << 4) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return word << 4;
}

static inline uint32_t karst_map_gather(uint64_t word) {
    word = word >> 4 & UINT64_C(0x0f0f0f0f0f0f0f0f);
    word = (word | word >> 4) & UINT64_C(0x00ff00ff00ff00ff);
    word = (word | word >> 8) & UINT64_C(0x0000ffff0000ffff);
    return (uint32_t)(word | word >> 16);
}

/* At the 8-byte boundary at or behind the last byte asked for, at least 16 bytes behind the block's address.
 * Bytes between are KARST_FOOTER_FILL. size and sequence stay when the block is freed. */
struct karst_footer {
    uint64_t canary;   /* live: karst_control.canary ^ address of the block; freed: KARST_FOOTER_FREED | site
                          where it was freed */
    uint64_t size;     /* asked for */
    uint64_t site;     /* where it was allocated, in the lower 48 bits; above: enum karst_function */
    uint64_t sequence; /* in the lower 42 bits a number that rises with time: exact within a thread, near
                          enough between threads; above: id of the thread that allocated it */
};

#define KARST_FOOTER_BYTES         32u
#define KARST_FOOTER_FILL          0xa7u
#define KARST_FOOTER_FREED         (UINT64_C(0xf4ee) << 48)
#define KARST_FOOTER_SEQUENCE_BITS 42
#define KARST_FOOTER_SEQUENCE      ((UINT64_C(1) << KARST_FOOTER_SEQUENCE_BITS) - 1)
#define KARST_SITE_BITS            48
#define KARST_SITE_MASK            ((UINT64_C(1) << KARST_SITE_BITS) - 1)

/* ---- the flight recorder -------------------------------------------------------------------------- */

/* One ring for each thread: a header of KARST_RING_HEADER bytes, then groups of KARST_GROUP_BYTES. Rings
 * are private memory, or files of the recorder's directory (karst-PID-N.ring) that are the same byte for
 * byte. A group begins with a clock record; the records behind it are 16 bytes each, until the
 * group's end or the first one whose kind is 0: what is behind that is left of an older lap. The group with
 * the highest number is the newest; its successor in the ring, if it is not 0, the oldest.
 *
 * Order: an event is not before the last clock record ahead of it in its ring. A thread that meets a place
 * (64 KiB, say) of memory which another thread's event was last about takes the clock first, so that of two
 * events about one address the earlier one always has the earlier clock: all events of all threads, sorted by
 * their clocks and within a thread by their places, are in an order that happened. */
#define KARST_RING_MAGIC   UINT64_C(0x31474e5254535241)
#define KARST_RING_HEADER  4096u
#define KARST_GROUP_BYTES  1024u
#define KARST_RECORD_BYTES 16u

enum karst_event_kind {
    KARST_EVENT_NONE,
    KARST_EVENT_CLOCK,    /* the clock's ticks; second word: number of the group, from 1 */
    KARST_EVENT_ALLOCATE, /* a block was handed out; address 0: the request failed. Recorded after the call */
    KARST_EVENT_FREE,     /* about to be freed. Recorded before the call */
    KARST_EVENT_MOVE,     /* about to be handed to realloc; size: the new size that the program asks for.
                             Recorded before the call. What came of it is in the thread's next
                             KARST_EVENT_MOVED or KARST_EVENT_RELEASED */
    KARST_EVENT_MOVED, /* what realloc gave: a new place or the old one, 0: it failed, the old block lives on
                        */
    KARST_EVENT_RELEASED, /* realloc(block, 0) freed it: the end of a move */
    KARST_EVENT_WIDE,     /* the upper bits of the next record: address in the first word, size in the
                             second, each shifted down by what the record itself holds */
    KARST_EVENT_KINDS
};

/* A record. first: kind in bits 60..63, size bits 16..27 in 48..59, address in 0..47; second: size bits 0..15
 * in 48..63, site in 0..47. A group's clock record: kind in 60..63, ticks in 0..59; number. */
struct karst_record {
    uint64_t first;
    uint64_t second;
};

struct karst_ring {
    uint64_t magic;
    uint32_t version; /* KARST_ABI_VERSION */
    uint32_t header_bytes;
    uint64_t self; /* address of the ring in its process */
    uint64_t data_bytes;
    int32_t pid;
    int32_t thread;  /* id of the thread whose events these are */
    uint64_t groups; /* groups begun so far, about: for what was overwritten */
    uint64_t next;   /* address of the next ring; 0: the last */
    uint64_t ended;  /* 1: another thread was seen to take its place, the thread is gone */
    uint32_t site_kind;
    uint32_t group_bytes;
    uint32_t image; /* number of the first ring of this program in the process: exec begins another. A file
                       karst-PID-IMAGE.maps beside the rings is its /proc/PID/maps */
    uint32_t reserved;
    /* Two moments on both clocks: ticks of the records' clock, and nanoseconds since 1970. */
    uint64_t ticks[2];
    uint64_t nanoseconds[2];
    char name[16]; /* of the thread, when it began */
    char executable[256];
};

/* ---- call sites ----------------------------------------------------------------------------------- */

enum karst_site_kind {
    KARST_SITE_ADDRESS, /* a site is the return address; 0: unknown */
    KARST_SITE_STACK    /* a site with bit KARST_SITE_STACK_BIT, whose other bits times 8 are an offset in the
                           table of stacks, stands for the struct karst_stack there; any other is an address */
};

#define KARST_SITE_STACK_BIT (UINT64_C(1) << 47)

struct karst_stack {
    uint32_t hash;
    uint32_t depth;
    uint64_t frames[]; /* return addresses, the innermost first */
};

/* ---- roots ---------------------------------------------------------------------------------------- */

/* Names in karst_control.roots: where data of the allocator's own lies, as far as it could be learned when
 * the library was loaded. */
#define KARST_ROOT_MAIN_ARENA   "main_arena"      /* glibc's */
#define KARST_ROOT_ARENA_ACTIVE "arena 0 nactive" /* jemalloc's: a field of arena 0 */
#define KARST_ROOT_DEFAULT_HEAP "default heap"    /* mimalloc's, of the thread that loaded the library */

/* ---- the marker ----------------------------------------------------------------------------------- */

struct karst_control {
    uint64_t magic;   /* written last */
    uint32_t version; /* KARST_ABI_VERSION */
    uint32_t size;    /* of this struct */
    uint64_t self;    /* its own address */
    int32_t pid;
    uint32_t page_size;
    uint32_t gates_offset, gate_count; /* of gates[], 4 bytes each */
    uint32_t traps_offset, trap_count;
    uint32_t trap_bytes, why_bytes;
    uint64_t library_start, library_end; /* of the preload library as mapped */
    uint64_t trap_stop, trap_stop_end;   /* the function that holds the trap instruction */

    /* May be written from outside; see KARST_GATE_CHANGED. */
    uint32_t wanted;         /* KARST_GATE_RECORD, KARST_GATE_MARK: parts that are on */
    uint32_t action;         /* enum karst_action without a debugger, of traps that name none and of faults */
    uint32_t count_events;   /* 1: number events from the next one on. Set by itself for event traps */
    uint32_t stack_depth;    /* frames to keep of each call; 0: the return address only */
    uint64_t recorder_bytes; /* of a thread's ring */

    /* Written by the library. */
    uint64_t generation; /* changes taken in */
    uint64_t events;     /* numbered so far */
    uint64_t map;        /* the marks' directory; 0: none */
    uint64_t canary;
    uint64_t marked_from; /* 1: all blocks since the program's start are marked */
    uint64_t rings;       /* address of the newest ring; 0: none */
    uint64_t sites;       /* the table of stacks; 0: none */
    uint64_t sites_bytes, sites_used;
    uint32_t site_kind;  /* enum karst_site_kind */
    uint32_t site_drops; /* stacks that found no room */
    /* A function without arguments. Who sets stack_depth in a running process calls it afterwards, from where
     * a library may be loaded: until then sites are return addresses. */
    uint64_t begin_stacks;
    uint64_t reserved;

    /* The allocator that calls are handed to. */
    uint64_t allocator_malloc; /* address of its malloc */
    uint64_t allocator_base;   /* load address of its module */
    char allocator[24];        /* "glibc", "jemalloc", "tcmalloc", "mimalloc", "unknown" */
    char allocator_version[40];
    char allocator_path[256];
    uint8_t allocator_build_id[32];
    uint32_t allocator_build_id_bytes;
    uint32_t root_count;
    struct {
        char name[24];
        uint64_t address;
    } roots[8]; /* addresses of the allocator's own data that could be learned */

    char directory[256]; /* of the recorder's files; empty: rings are private memory */

    /* Hot: read by every call. */
    uint32_t gates[KARST_GATES] __attribute__((aligned(64)));
    uint64_t size_low[KARST_GATES] __attribute__((aligned(64)));
    uint64_t size_span[KARST_GATES];

    struct karst_trap traps[KARST_TRAPS] __attribute__((aligned(64)));
};

#endif
