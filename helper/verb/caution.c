#include "verb.h"

void karst_call_write_caution(struct karst_call *call) {
    struct karst_writer *writer = &call->writer;
    bool in_flux = false;
    for (size_t i = 0; i < call->session->heap_count; i++) {
        in_flux |= call->session->heaps[i]->in_flux;
    }
    if (in_flux) {
        karst_print_styled(writer, KARST_STYLE_WARNING,
                           "somebody was inside the allocator, or the target runs: figures may be torn\n");
    }
    if (call->session->target->missing_memory) {
        karst_print_styled(writer, KARST_STYLE_WARNING,
                           "parts of the target's memory are missing: totals may be low\n");
    }
}
