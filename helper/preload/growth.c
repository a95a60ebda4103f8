#include "preload.h"

/* The sixth number of /proc/self/statm: pages of private writable memory. It rises with brk, with writable
 * mmap, and where a heap of a glibc thread arena makes more of its 64 MiB accessible. What another thread
 * obtains during the call is taken for this one's. */
uint64_t growth_now(void) {
    char text[128];
    long size = system_read_file("/proc/self/statm", text, sizeof text);
    uint64_t pages = 0;
    int field = 0;
    for (long i = 0; i < size && field < 6; i++) {
        if (text[i] == ' ') {
            field++;
        } else if (field == 5 && text[i] >= '0' && text[i] <= '9') {
            pages = pages * 10 + (uint64_t)(text[i] - '0');
        }
    }
    return pages * karst_control.page_size;
}
