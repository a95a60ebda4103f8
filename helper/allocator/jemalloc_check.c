#include "jemalloc.h"
bool jemalloc_check(struct karst_heap *heap, struct karst_findings *findings, struct karst_error *error) {
    (void)heap;
    (void)findings;
    (void)error;
    return true;
}
