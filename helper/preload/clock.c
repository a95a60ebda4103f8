#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "recorder.h"

/* libc's prctl(), which has to be seen: it can forbid a thread to read the processor's clock. In the kernel
 * seccomp's strict mode does so too (kernel/seccomp.c, seccomp_set_mode_strict()). */
EXPORT int watched_prctl(int option, unsigned long first, unsigned long second, unsigned long third,
                         unsigned long fourth) __asm__("prctl");
int watched_prctl(int option, unsigned long first, unsigned long second, unsigned long third,
                  unsigned long fourth) {
    if ((option == PR_SET_TSC && first == PR_TSC_SIGSEGV) ||
        (option == PR_SET_SECCOMP && first == SECCOMP_MODE_STRICT)) {
        recorder_lose_clock();
    }
    return (int)syscall(SYS_prctl, option, first, second, third, fourth);
}
