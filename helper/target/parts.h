/* What core.c, process.c and callbacks.c share to build a target from its parts; private to this folder. */
#ifndef KARST_TARGET_PARTS_H
#define KARST_TARGET_PARTS_H

#include "elf_file.h"
#include "target.h"

/* The largest counts of mappings and threads that are believed. */
#define KARST_MAPPINGS_MAX ((size_t)1 << 23)
#define KARST_THREADS_MAX  ((size_t)1 << 18)

/* Among the permissions of a mapping until the modules are found: what it may do is not known (gcore
 * leaves out mappings that it does not save). */
#define KARST_MAPPING_UNKNOWN ((uint32_t)1 << 31)

/* Fills the common part of a zeroed target; false: out of memory. */
bool karst_target_init(struct karst_target *target, const struct karst_target_ops *ops,
                       enum karst_target_kind kind, const struct karst_options *options,
                       struct karst_error *error);
/* Frees the common part; for ops->close(). */
void karst_target_free_parts(struct karst_target *target);

/* A copy of size bytes of text that lives as long as the target, NULL: out of memory. The same text as
 * last time gives the same pointer, so that equal neighbours can be told by their pointers. */
const char *karst_target_string(struct karst_target *target, const char *text, size_t size);

/* Append a zeroed mapping or thread, NULL: out of memory or too many. */
struct karst_mapping *karst_target_add_mapping(struct karst_target *target);
struct karst_thread *karst_target_add_thread(struct karst_target *target);
/* Sorts the mappings by address and cuts off what overlaps an earlier one. Returns how many did. */
size_t karst_target_sort_mappings(struct karst_target *target);

/* General registers of a thread in the kernel's order for machine: fills registers, thread, stack
 * pointer and program counter. size: bytes at words. */
void karst_thread_set_registers(struct karst_thread *thread, uint16_t machine, const void *words,
                                size_t size);
/* Hands over the threads that a debugger knows. false: out of memory. */
bool karst_target_lent_threads(struct karst_target *target,
                               bool (*next)(void *context, size_t index, struct karst_thread *thread),
                               void *context);
/* EM_* of the machine this runs on. */
uint16_t karst_host_machine(void);

/* Finds the executable and libraries among the mappings: bias, extent and build id from the target's
 * memory; no file is opened. Gives mappings of unknown permissions those of their segment, or mere
 * reading. false: out of memory. */
bool karst_target_find_modules(struct karst_target *target);
/* Sets the executable's module by its path. */
void karst_target_find_executable(struct karst_target *target);
/* The module's file here, if it is the one the target has mapped; NULL otherwise, and a remark why if
 * that is worth knowing. Opened once. */
const struct karst_elf_file *karst_module_file(struct karst_target *target, struct karst_module *module);
void karst_module_close(struct karst_module *module);
/* KARST_MAPPING_* for PF_*. */
uint32_t karst_segment_permissions(uint32_t flags);
/* The part of a path behind its last slash. */
const char *karst_base_name(const char *path);
/* Bytes as people read them: "12.3 MB". Returns text. */
const char *karst_rounded_size(uint64_t bytes, char text[24]);

#endif
