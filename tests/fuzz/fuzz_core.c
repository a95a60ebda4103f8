/* libFuzzer: the input is a core file. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "run_verbs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct karst_options options = {.no_symbols = true, .sysroot = "/nonexistent"};
    char path[64];
    int file = memfd_create("core", MFD_CLOEXEC);
    if (file < 0 || write(file, data, size) != (ssize_t)size) {
        abort();
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    struct karst *session = karst_open_core(path, &options, NULL);
    if (session) {
        run_verbs(session, UINT32_MAX, 0x55555555a000);
        karst_close(session);
    }
    close(file);
    return 0;
}
