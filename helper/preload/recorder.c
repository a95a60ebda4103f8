#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "recorder.h"

/* What a thread without a ring has: its cursor is always 0. */
static struct ring_head no_head;
_Thread_local struct ring_head *recorder_head = &no_head;

/* Heads come out of one mapping, which a forked child finds zeroed: `alive` says so. */
struct head_pool {
    uint64_t alive;
    uint64_t used;
    uint64_t unused[6];
    struct ring_head heads[];
};

#define POOL_BYTES (UINT64_C(1) << 20)
#define POOL_HEADS ((POOL_BYTES - sizeof(struct head_pool)) / sizeof(struct ring_head))

static struct head_pool *pool;
static uint32_t ring_count; /* of this process */
static uint32_t file_number, image;
static uint32_t opening; /* a thread is at it */
static bool failed;      /* no memory, or no file: told once, not tried again */
static long file_error;  /* why there was no file: a negative errno; 0: no memory */
static _Thread_local bool clockless __attribute__((tls_model("initial-exec")));
static bool beyond_limit;                       /* a file became too large: that raised SIGXFSZ */
static uint64_t first_ticks, first_nanoseconds; /* the clocks at the process's first ring */

/* From so many rings on a new thread takes over that of a thread which is gone, if there is one. */
#define RINGS_KEPT 32
/* Ticks between two looks at the clock; a tenth of a second or so. */
#define CALIBRATE_TICKS (UINT64_C(1) << 28)

uint16_t recorder_tags[RECORDER_TAGS];

#define TICKS_MASK ((UINT64_C(1) << 60) - 1)

/* Not before what is read ahead of it, and not after anything behind it was begun: for a thread that follows
 * another one. Waits for all memory that was asked for. */
static uint64_t ticks_now(void) {
    uint64_t ticks = 0;
#if defined(__x86_64__)
    __builtin_ia32_lfence();
    ticks = __builtin_ia32_rdtsc();
    __builtin_ia32_lfence();
#elif defined(__aarch64__)
    __asm__ volatile("isb\n mrs %0, cntvct_el0\n isb" : "=r"(ticks)::"memory");
#endif
    return ticks & TICKS_MASK;
}

/* About now, by what the processor does ahead of its turn; but not before an earlier ticks_now(), and not
 * after anything that another thread could know of what follows. Enough where a thread follows itself. */
static uint64_t ticks_about(void) {
    uint64_t ticks = 0;
#if defined(__x86_64__)
    ticks = __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks)::"memory");
#endif
    return ticks & TICKS_MASK;
}

/* The tag becomes this thread's, and then the clock is read; again if another thread took the tag meanwhile:
 * who has it last has the later clock. So the event of a thread that finds its own tag at a place has a clock
 * behind those of all events of others that were there before. A thread that is stopped in here keeps nobody
 * waiting. */
static uint64_t take_tag(uint16_t *tag, uint64_t own) {
    uint64_t ticks;
    do {
        __atomic_store_n(tag, (uint16_t)own, __ATOMIC_SEQ_CST);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        ticks = ticks_now();
    } while (__atomic_load_n(tag, __ATOMIC_SEQ_CST) != own);
    return ticks;
}

/* ---- rings ----------------------------------------------------------------------------------------- */

static uint64_t ring_bytes(void) {
    uint64_t data = karst_control.recorder_bytes & ~(uint64_t)(KARST_RING_HEADER - 1);
    return KARST_RING_HEADER + (data ? data : KARST_RING_HEADER);
}

/* Shared memory of a file, all of it there from the start (a full disk would be a SIGBUS later), out of reach
 * of forked children. NULL: could not be had. */
static void *map_file(const char *path, uint64_t bytes, long *error) {
    long file = system_call(SYS_openat, AT_FDCWD, (long)path,
                            O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600, 0, 0);
    if (file < 0) {
        *error = file;
        return NULL;
    }
    long address = system_call(SYS_fallocate, file, 0, 0, (long)bytes, 0, 0);
    beyond_limit |= address == -EFBIG;
    if (address == 0) {
        address = system_call(SYS_mmap, 0, (long)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    system_call(SYS_close, file, 0, 0, 0, 0, 0);
    if (address < 0 && address > -4096) {
        system_call(SYS_unlinkat, AT_FDCWD, (long)path, 0, 0, 0, 0);
        *error = address;
        return NULL;
    }
    system_call(SYS_madvise, address, (long)bytes, MADV_DONTFORK, 0, 0, 0);
    return (void *)address;
}

static void file_path(struct karst_line *line, const char *what, uint64_t number) {
    karst_line_add(line, karst_control.directory);
    karst_line_add(line, "/karst-");
    karst_line_add_number(line, (uint64_t)karst_control.pid);
    karst_line_add(line, "-");
    karst_line_add_number(line, number);
    karst_line_add(line, what);
}

/* A file of a number that is free: programs that this process ran before have left theirs. */
static void *map_new_file(uint64_t bytes) {
    for (uint32_t tries = 0; tries < 10000; tries++) {
        char path[400];
        struct karst_line line = {path, sizeof path, 0};
        file_path(&line, ".ring", ++file_number);
        file_error = 0;
        void *memory = map_file(path, bytes, &file_error);
        if (memory || file_error != -EEXIST) {
            return memory;
        }
    }
    return NULL;
}

static void *map_ring(uint64_t bytes) {
    if (*karst_control.directory) {
        return map_new_file(bytes);
    }
    void *memory = system_map(bytes);
    if (memory) {
        system_call(SYS_madvise, (long)memory, (long)bytes, MADV_WIPEONFORK, 0, 0, 0);
    }
    return memory;
}

/* Where things are, for call sites: the recorder's files are read when the process is gone. */
static void write_maps(void) {
    char path[400], buffer[4096];
    struct karst_line line = {path, sizeof path, 0};
    if (!*karst_control.directory) {
        return;
    }
    file_path(&line, ".maps", image);
    long to = system_call(SYS_openat, AT_FDCWD, (long)path,
                          O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600, 0, 0);
    long from = system_call(SYS_openat, AT_FDCWD, (long)"/proc/self/maps", O_RDONLY | O_CLOEXEC, 0, 0, 0);
    long part = 0, written = 0;
    while (to >= 0 && from >= 0 && written >= 0 &&
           (part = system_call(SYS_read, from, (long)buffer, sizeof buffer, 0, 0, 0)) > 0) {
        written = system_call(SYS_write, to, (long)buffer, part, 0, 0, 0);
    }
    beyond_limit |= written == -EFBIG;
    if (to >= 0) {
        system_call(SYS_close, to, 0, 0, 0, 0, 0);
    }
    if (from >= 0) {
        system_call(SYS_close, from, 0, 0, 0, 0, 0);
    }
}

/* A second moment on both clocks, which gives the ticks' rate. */
static void calibrate(struct ring_head *head, uint64_t ticks) {
    struct karst_ring *ring = head->ring;
    head->calibrated = ticks;
    ring->nanoseconds[1] = system_clock_ns();
    ring->ticks[1] = ticks_now();
    ring->groups = head->group;
}

/* The first two moments lie a tenth of a millisecond apart: a process that lives for no longer than the
 * recorder's next look at the clock is dated well enough by them. */
static void begin_clock(struct karst_ring *ring) {
    if (!first_ticks) {
        first_nanoseconds = system_clock_ns();
        first_ticks = ticks_now();
        while (system_clock_ns() - first_nanoseconds < 100000) {
        }
    }
    ring->ticks[0] = first_ticks;
    ring->nanoseconds[0] = first_nanoseconds;
    ring->nanoseconds[1] = system_clock_ns();
    ring->ticks[1] = ticks_now();
}

static void fill_ring(struct karst_ring *ring, uint64_t data_bytes) {
    ring->version = KARST_ABI_VERSION;
    ring->header_bytes = KARST_RING_HEADER;
    ring->self = (uint64_t)(uintptr_t)ring;
    ring->data_bytes = data_bytes;
    ring->pid = karst_control.pid;
    ring->thread = thread_id();
    ring->site_kind = *karst_control.directory ? KARST_SITE_ADDRESS : karst_control.site_kind;
    ring->group_bytes = KARST_GROUP_BYTES;
    ring->image = image;
    long size = system_read_file("/proc/thread-self/comm", ring->name, sizeof ring->name - 1);
    if (size > 0 && ring->name[size - 1] == '\n') {
        ring->name[size - 1] = '\0';
    }
    system_program(ring->executable, sizeof ring->executable);
    begin_clock(ring);
    __atomic_store_n(&ring->magic, KARST_RING_MAGIC, __ATOMIC_RELEASE);
}

static bool thread_is_gone(const struct karst_ring *ring) {
    return ring->thread == thread_id() ||
           system_call(SYS_tgkill, karst_control.pid, ring->thread, 0, 0, 0, 0) == -ESRCH;
}

static void empty_ring(struct karst_ring *ring) {
    char *data = (char *)ring + KARST_RING_HEADER;
    if (*karst_control.directory) {
        memset(data, 0, ring->data_bytes);
    } else {
        system_call(SYS_madvise, (long)data, (long)ring->data_bytes, MADV_DONTNEED, 0, 0, 0);
    }
}

/* The ring of a thread that is gone, the one that was written longest ago; emptied. NULL: none, or not enough
 * of them yet. */
static struct karst_ring *take_over(void) {
    struct karst_ring *oldest = NULL;
    if (ring_count < RINGS_KEPT) {
        return NULL;
    }
    for (struct karst_ring *ring = (void *)(uintptr_t)karst_control.rings; ring;
         ring = (void *)(uintptr_t)ring->next) {
        if ((!oldest || ring->ticks[1] < oldest->ticks[1]) && thread_is_gone(ring)) {
            oldest = ring;
        }
    }
    if (oldest) {
        __atomic_store_n(&oldest->magic, 0, __ATOMIC_RELEASE);
        empty_ring(oldest);
    }
    return oldest;
}

static struct karst_ring *new_ring(void) {
    uint64_t bytes = ring_bytes();
    struct karst_ring *ring = map_ring(bytes);
    if (!ring) {
        return NULL;
    }
    ring_count++;
    image = image ? image : file_number;
    ring->next = karst_control.rings;
    fill_ring(ring, bytes - KARST_RING_HEADER);
    __atomic_store_n(&karst_control.rings, (uint64_t)(uintptr_t)ring, __ATOMIC_RELEASE);
    return ring;
}

/* ---- heads ----------------------------------------------------------------------------------------- */

/* The memory behind our parent's rings is zeroed or gone here. */
static void forget_parent(void) {
    karst_control.rings = 0;
    karst_control.pid = (int32_t)system_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
    thread_state.thread = 0;
    ring_count = file_number = image = 0;
    recorder_head = &no_head;
}

static bool prepare_pool(void) {
    if (!pool) {
        pool = system_map(POOL_BYTES);
        if (!pool) {
            return false;
        }
        system_call(SYS_madvise, (long)pool, POOL_BYTES, MADV_WIPEONFORK, 0, 0, 0);
    } else if (!pool->alive) {
        forget_parent();
    }
    pool->alive = 1;
    return true;
}

/* A head of a thread that is gone can't be told from another's: they are used up, at 64 bytes a thread, and
 * then looked for by the rings that were taken over. */
static struct ring_head *head_for(const struct karst_ring *ring) {
    for (uint64_t i = 0; i < pool->used; i++) {
        if (pool->heads[i].ring == ring) {
            return &pool->heads[i];
        }
    }
    return pool->used < POOL_HEADS ? &pool->heads[pool->used++] : NULL;
}

static void open_ring(void) {
    struct karst_ring *ring = take_over();
    if (ring) {
        fill_ring(ring, ring->data_bytes);
    } else if (!(ring = new_ring())) {
        failed = true;
        return;
    }
    struct ring_head *head = head_for(ring);
    if (!head) {
        failed = true;
        return;
    }
    *head = (struct ring_head){.ring = ring,
                               .tag = (uint64_t)(head - pool->heads) % (UINT16_MAX - 1) + 1,
                               .data_end = (uint64_t)(uintptr_t)ring + KARST_RING_HEADER + ring->data_bytes};
    recorder_head = head;
    write_maps();
}

/* A thread that is not of this process: its parent's, when it was forked in the middle of opening a ring
 * there. */
static bool is_gone(int32_t thread) {
    long pid = system_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
    return system_call(SYS_tgkill, pid, thread, 0, 0, 0, 0) == -ESRCH;
}

static const char *reason(long error) {
    switch (-error) {
    case ENOENT:
    case ENOTDIR:
        return "there is no such directory";
    case EACCES:
    case EPERM:
        return "it may not be written to";
    case EROFS:
        return "it is read-only";
    case ENOSPC:
    case EDQUOT:
        return "there is no space left";
    case EFBIG:
        return "it would be larger than files may be (ulimit -f)";
    case EMFILE:
    case ENFILE:
        return "too many files are open";
    case EOPNOTSUPP:
        return "its file system can't reserve space";
    default:
        return "the system refused";
    }
}

static void tell_failure(void) {
    char text[500];
    struct karst_line line = {text, sizeof text, 0};
    if (file_error) {
        karst_line_add(&line, "the flight recorder has no file for a thread in ");
        karst_line_add(&line, karst_control.directory);
        karst_line_add(&line, ": ");
        karst_line_add(&line, reason(file_error));
    } else {
        karst_line_add(&line, "the flight recorder has no memory for a thread");
    }
    karst_line_add(&line, "; it records no more threads");
    system_say(text);
}

/* Waits until no other thread opens a ring. False: this one is at it already, and a signal handler or a
 * debugger made a call in the middle of that. */
static bool begin_opening(void) {
    uint32_t nobody = 0, own = (uint32_t)thread_id();
    for (uint32_t tries = 0;
         !__atomic_compare_exchange_n(&opening, &nobody, own, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
         tries++) {
        if (nobody == own) {
            return false;
        }
        if (tries % 64 != 63 || !is_gone((int32_t)nobody)) {
            nobody = 0; /* else it is taken over */
        }
        system_call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
    }
    return true;
}

/* Signals that come from outside. The others are the thread's own: it can't go on without their handlers. */
#define FROM_OUTSIDE                                                                                         \
    ~(SIGNAL_BIT(SIGSEGV) | SIGNAL_BIT(SIGBUS) | SIGNAL_BIT(SIGILL) | SIGNAL_BIT(SIGFPE) |                   \
      SIGNAL_BIT(SIGTRAP) | SIGNAL_BIT(SIGSYS))

/* One thread at a time. Signals wait meanwhile: their handlers may never return to here, and the other
 * threads would wait for ever. */
static void open_alone(void) {
    struct signals_held held;
    system_hold_signals(&held, FROM_OUTSIDE);
    if (begin_opening()) {
        beyond_limit = false;
        if (prepare_pool()) {
            open_ring();
        } else {
            failed = true;
        }
        if (failed) {
            tell_failure();
        }
        uint64_t raised = beyond_limit ? SIGNAL_BIT(SIGXFSZ) : 0;
        __atomic_store_n(&opening, 0, __ATOMIC_RELEASE);
        system_release_signals(&held, raised);
    } else {
        system_release_signals(&held, 0);
    }
}

static void tell_end(void) {
    char text[200];
    struct karst_line line = {text, sizeof text, 0};
    karst_line_add(&line, "the flight recorder does not go on in thread ");
    karst_line_add_number(&line, (uint64_t)thread_id());
    karst_line_add(&line, ", which may not read the processor's clock (PR_SET_TSC, strict seccomp)");
    system_say(text);
}

/* A thread begins as the one that made it is. Where there is no such setting it is not told. */
static bool may_read_clock(void) {
    int setting = PR_TSC_ENABLE;
    system_call(SYS_prctl, PR_GET_TSC, (long)&setting, 0, 0, 0, 0);
    if (setting == PR_TSC_SIGSEGV) {
        clockless = true;
        tell_end();
    }
    return !clockless;
}

void recorder_lose_clock(void) {
    bool records = recorder_head->ring;
    clockless = true;
    recorder_head = &no_head;
    if (records) {
        tell_end();
    }
}

/* True: the thread has a ring now. */
static bool ensure_ring(void) {
    if (pool && !pool->alive) { /* forked */
        __atomic_store_n(&opening, 0, __ATOMIC_RELAXED);
    }
    if (!failed && !clockless && may_read_clock()) {
        open_alone();
    }
    return recorder_head->ring;
}

void recorder_in_child(void) {
    __atomic_store_n(&opening, 0, __ATOMIC_RELAXED);
    if (pool) {
        forget_parent();
    }
}

/* ---- groups ---------------------------------------------------------------------------------------- */

/* Begins the group at start, behind which another one was, and returns where the cursor is then. */
static uint64_t next_group(struct ring_head *head, uint64_t start, uint64_t ticks) {
    if (start == 0 || start == head->data_end) {
        start = (uint64_t)(uintptr_t)head->ring + KARST_RING_HEADER;
    }
    uint64_t *words = (uint64_t *)(uintptr_t)start;
    __atomic_store_n(&words[0], 0, __ATOMIC_RELEASE);
    words[1] = ++head->group;
    words[KARST_RECORD_BYTES / sizeof *words] = 0; /* the end */
    __atomic_store_n(&words[0], (uint64_t)KARST_EVENT_CLOCK << 60 | ticks, __ATOMIC_RELEASE);
    head->cursor = start + 2 * KARST_RECORD_BYTES;
    if (UNLIKELY(ticks - head->calibrated > CALIBRATE_TICKS)) {
        calibrate(head, ticks);
    }
    return start + 2 * KARST_RECORD_BYTES;
}

static uint64_t put(struct ring_head *head, uint64_t cursor, uint64_t first, uint64_t second) {
    recorder_put(head, cursor, first, second);
    return cursor + KARST_RECORD_BYTES;
}

/* The cursor is read once: a signal handler in the middle of this may move it, and what is worked out from
 * two of its places could be outside of the ring. What such a handler recorded is then written over. */
void recorder_write_slow(enum karst_event_kind kind, uint64_t address, uint64_t size, uint64_t site) {
    if ((!recorder_head->ring || !pool->alive) && !ensure_ring()) {
        return;
    }
    struct ring_head *head = recorder_head;
    uint16_t *tag = &recorder_tags[address >> RECORDER_SHIFT & (RECORDER_TAGS - 1)];
    uint64_t wide_size = size >> 28, wide_address = address >> KARST_SITE_BITS;
    bool wide = wide_size || wide_address, foreign = *tag != head->tag;
    uint64_t cursor = __atomic_load_n(&head->cursor, __ATOMIC_RELAXED), left = -cursor % KARST_GROUP_BYTES;
    uint64_t ticks = foreign ? take_tag(tag, head->tag) : ticks_about();
    if (left < (1u + wide + foreign) * KARST_RECORD_BYTES) {
        cursor = next_group(head, cursor + left, ticks); /* the rest of the last one stays empty */
    } else if (foreign) {
        cursor = put(head, cursor, (uint64_t)KARST_EVENT_CLOCK << 60 | ticks, head->group);
    }
    if (wide) {
        cursor = put(head, cursor, (uint64_t)KARST_EVENT_WIDE << 60 | wide_address, wide_size);
    }
    put(head, cursor, (uint64_t)kind << 60 | (size >> 16 & 0xfff) << 48 | (address & KARST_SITE_MASK),
        size << 48 | (site & KARST_SITE_MASK));
}
