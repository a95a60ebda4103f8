/* glibc malloc: threads that are inside it, and what they may have half changed. */
#include "glibc_find.h"
#include "inside.h"

#include <inttypes.h>

#define STATIC_TEXT     0x5000u  /* how much of malloc's text is before its first public function, at most */
#define MALLOC_TEXT_MAX 0x20000u /* more than all of it: what has that name here is not malloc/malloc.c's */

/* Where a libc's malloc is: malloc/malloc.c makes one piece of text, its public functions behind the static
 * ones that they call (or, in some versions, jump to), which no dynamic symbol names. False: not known. */
static bool text_of_malloc(struct glibc_heap *glibc, uint64_t *start, uint64_t *end) {
    static const char *const functions[] = {"malloc",      "free",           "calloc",        "realloc",
                                            "memalign",    "posix_memalign", "aligned_alloc", "malloc_trim",
                                            "malloc_info", "mallinfo2"};
    *start = UINT64_MAX;
    *end = 0;
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        struct karst_symbol symbol;
        if (!karst_module_symbol(glibc->heap.target, glibc->module, functions[f], &symbol) ||
            symbol.size == 0) {
            continue;
        }
        *start = symbol.address < *start ? symbol.address : *start;
        *end = symbol.address + symbol.size > *end ? symbol.address + symbol.size : *end;
    }
    *start -= *start > STATIC_TEXT ? STATIC_TEXT : 0;
    return *end > *start && *end - *start <= MALLOC_TEXT_MAX;
}

/* A thread that is, or may be, inside malloc. */
static bool thread_inside(struct glibc_heap *glibc, const struct karst_thread *thread) {
    uint64_t start, end;
    return text_of_malloc(glibc, &start, &end) &&
           karst_thread_in_text(glibc->heap.target, thread, start, end);
}

static bool died_inside(struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    return karst_died_of_signal(target) && thread_inside(glibc, &target->threads[0]);
}

/* How many threads are inside, the one that died left out, each told among the facts. false: out of memory.
 */
static bool count_threads_inside(struct glibc_heap *glibc, bool died, size_t *inside) {
    const struct karst_target *target = glibc->heap.target;
    *inside = 0;
    for (size_t i = died ? 1 : 0; i < target->thread_count; i++) {
        const struct karst_thread *thread = &target->threads[i];
        if (!thread_inside(glibc, thread)) {
            continue;
        }
        ++*inside;
        if (!karst_facts_add(&glibc->heap.facts, "inside malloc", 0,
                             "thread %" PRId64 " is, or was a moment ago, inside the allocator",
                             thread->tid)) {
            return false;
        }
    }
    return true;
}

static bool is_running(const struct karst_target *target) {
    return !target->stopped && target->kind == KARST_TARGET_PROCESS;
}

/* Which arenas may be half changed. A single thread takes no locks (SINGLE_THREAD_P), so its being inside
 * counts for the arenas. */
bool glibc_note_arenas_in_flux(struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    bool running = is_running(target), died = died_inside(glibc);
    size_t inside, locked = 0;
    if (!count_threads_inside(glibc, died, &inside) ||
        (died &&
         !karst_facts_add(&glibc->heap.facts, "died", 0, "inside malloc, most likely of damage it met"))) {
        return false;
    }
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        locked += glibc->heap.arenas[i].locked;
    }
    glibc->heap.in_flux = running || inside;
    for (size_t i = 0; i < glibc->heap.arena_count; i++) {
        struct glibc_arena *arena = &glibc->arenas[i];
        bool others = glibc->heap.arenas[i].locked && !(died && locked == 1);
        arena->in_flux = running || others || (inside && target->thread_count == 1);
        glibc->heap.in_flux = glibc->heap.in_flux || arena->in_flux;
        if (others && !karst_facts_add(&glibc->heap.facts, "locked", arena->address,
                                       "arena %s: a thread was at work in it", glibc->heap.arenas[i].name)) {
            return false;
        }
    }
    return true;
}

/* Which caches may be half changed: those of threads inside. */
void glibc_note_tcaches_in_flux(struct glibc_heap *glibc) {
    const struct karst_target *target = glibc->heap.target;
    bool running = is_running(target);
    for (size_t t = 0; t < glibc->tcache_count_found; t++) {
        glibc->tcaches[t].in_flux = running;
    }
    for (size_t i = died_inside(glibc) ? 1 : 0; i < target->thread_count && glibc->heap.in_flux; i++) {
        if (!thread_inside(glibc, &target->threads[i])) {
            continue;
        }
        for (size_t t = 0; t < glibc->tcache_count_found; t++) {
            glibc->tcaches[t].in_flux |= glibc->tcaches[t].tid == target->threads[i].tid;
        }
    }
}
