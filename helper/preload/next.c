#include <string.h>

#include "preload.h"

struct next_functions next;
enum operators next_operators;
bool next_frees_at_zero;

static struct module allocator; /* that has the malloc we hand on to */

#define FIND(member, name) (next.member = (__typeof__(next.member))module_find(name, &where))

bool next_find(void) {
    struct module where;
    FIND(calloc, "calloc");
    FIND(realloc, "realloc");
    FIND(reallocarray, "reallocarray");
    FIND(memalign, "memalign");
    FIND(posix_memalign, "posix_memalign");
    FIND(aligned_alloc, "aligned_alloc");
    FIND(valloc, "valloc");
    FIND(pvalloc, "pvalloc");
    FIND(free, "free");
    FIND(malloc_usable_size, "malloc_usable_size");
    FIND(malloc, "malloc");
    allocator = where;
    next_frees_at_zero =
        module_export(&allocator, "gnu_get_libc_version") || module_export(&allocator, "tc_version");
    return next.malloc && next.calloc && next.realloc && next.free;
}

static enum operators operators_kind(const struct module *module) {
    if (strstr(module->path, "/libstdc++.so") || strstr(module->path, "/libc++abi.so") ||
        strstr(module->path, "/libc++.so")) {
        return OPERATORS_MALLOC;
    }
    return module->dynamic == allocator.dynamic ? OPERATORS_MALLOC : OPERATORS_FOREIGN;
}

/* The names are those of the Itanium C++ ABI for 64-bit size_t. */
void next_find_operators(void) {
    struct module where;
    FIND(new_array, "_Znam");
    FIND(new_nothrow, "_ZnwmRKSt9nothrow_t");
    FIND(new_array_nothrow, "_ZnamRKSt9nothrow_t");
    FIND(new_aligned, "_ZnwmSt11align_val_t");
    FIND(new_array_aligned, "_ZnamSt11align_val_t");
    FIND(new_aligned_nothrow, "_ZnwmSt11align_val_tRKSt9nothrow_t");
    FIND(new_array_aligned_nothrow, "_ZnamSt11align_val_tRKSt9nothrow_t");
    FIND(delete, "_ZdlPv");
    FIND(delete_array, "_ZdaPv");
    FIND(delete_nothrow, "_ZdlPvRKSt9nothrow_t");
    FIND(delete_array_nothrow, "_ZdaPvRKSt9nothrow_t");
    FIND(delete_sized, "_ZdlPvm");
    FIND(delete_array_sized, "_ZdaPvm");
    FIND(delete_aligned, "_ZdlPvSt11align_val_t");
    FIND(delete_array_aligned, "_ZdaPvSt11align_val_t");
    FIND(delete_sized_aligned, "_ZdlPvmSt11align_val_t");
    FIND(delete_array_sized_aligned, "_ZdaPvmSt11align_val_t");
    FIND(delete_aligned_nothrow, "_ZdlPvSt11align_val_tRKSt9nothrow_t");
    FIND(delete_array_aligned_nothrow, "_ZdaPvSt11align_val_tRKSt9nothrow_t");
    if (FIND(new, "_Znwm")) {
        next_operators = operators_kind(&where);
    }
}

/* ---- what the marker says of the allocator --------------------------------------------------------- */

static void copy_text(char *to, size_t size, const char *text) {
    struct karst_line line = {to, size, 0};
    karst_line_add(&line, text);
}

static void describe_glibc(struct karst_control *control) {
    const char *(*version)(void) = (const char *(*)(void))module_export(&allocator, "gnu_get_libc_version");
    copy_text(control->allocator, sizeof control->allocator, "glibc");
    copy_text(control->allocator_version, sizeof control->allocator_version, version ? version() : "");
}

/* jemalloc(3): mallctl("version") gives a const char *. */
static void describe_jemalloc(struct karst_control *control, void *function) {
    int (*mallctl)(const char *, void *, size_t *, void *, size_t) =
        (int (*)(const char *, void *, size_t *, void *, size_t))function;
    const char *version = NULL;
    size_t size = sizeof version;
    bool told = mallctl("version", &version, &size, NULL, 0) == 0 && version;
    copy_text(control->allocator, sizeof control->allocator, "jemalloc");
    copy_text(control->allocator_version, sizeof control->allocator_version, told ? version : "");
}

/* gperftools: const char *tc_version(int *major, int *minor, const char **patch). */
static void describe_tcmalloc(struct karst_control *control, void *function) {
    const char *(*version)(int *, int *, const char **) =
        (const char *(*)(int *, int *, const char **))function;
    int major = 0, minor = 0;
    const char *patch = NULL;
    const char *text = version(&major, &minor, &patch);
    const char *word = text ? strrchr(text, ' ') : NULL;
    copy_text(control->allocator, sizeof control->allocator, "tcmalloc");
    copy_text(control->allocator_version, sizeof control->allocator_version,
              word   ? word + 1
              : text ? text
                     : "");
}

/* mimalloc: int mi_version(void), 209 for 2.0.9 (from 2.1 on: 2109 and the like are not used; 212 is 2.1.2).
 */
static void describe_mimalloc(struct karst_control *control, void *function) {
    int version = ((int (*)(void))function)();
    struct karst_line line = {control->allocator_version, sizeof control->allocator_version, 0};
    karst_line_add_number(&line, (uint64_t)(version / 100));
    karst_line_add(&line, ".");
    karst_line_add_number(&line, (uint64_t)(version / 10 % 10));
    karst_line_add(&line, ".");
    karst_line_add_number(&line, (uint64_t)(version % 10));
    copy_text(control->allocator, sizeof control->allocator, "mimalloc");
}

void next_describe(void) {
    struct karst_control *control = &karst_control;
    void *function;
    copy_text(control->allocator_path, sizeof control->allocator_path, allocator.path);
    control->allocator_base = allocator.start;
    control->allocator_malloc = (uint64_t)(uintptr_t)next.malloc;
    if (allocator.build_id && allocator.build_id_bytes <= sizeof control->allocator_build_id) {
        memcpy(control->allocator_build_id, allocator.build_id, allocator.build_id_bytes);
        control->allocator_build_id_bytes = allocator.build_id_bytes;
    }
    if (module_export(&allocator, "gnu_get_libc_version")) {
        describe_glibc(control);
    } else if ((function = module_export(&allocator, "mallctl"))) {
        describe_jemalloc(control, function);
    } else if ((function = module_export(&allocator, "tc_version"))) {
        describe_tcmalloc(control, function);
    } else if ((function = module_export(&allocator, "mi_version"))) {
        describe_mimalloc(control, function);
    } else {
        copy_text(control->allocator, sizeof control->allocator, "unknown");
    }
    roots_learn(&allocator);
}
