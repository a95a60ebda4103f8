#include "jemalloc.h"
bool jemalloc_find_chunks(struct karst *session, struct karst_error *error) {
    (void)session;
    (void)error;
    return true;
}
bool jemalloc_walk_chunks(struct jemalloc_heap *j, uint64_t start, uint64_t end, jemalloc_run_fn *visit,
                          void *context) {
    (void)j;
    (void)start;
    (void)end;
    (void)visit;
    (void)context;
    return true;
}
bool jemalloc_chunk_run_of(struct jemalloc_heap *j, uint64_t a, struct jemalloc_run *run) {
    (void)j;
    (void)a;
    (void)run;
    return false;
}
