/* Traps as text: "realloc 8880819", "malloc,calloc 1M: thread=1234 skip=2 action=core", "double-free". Used
 * by the preload library, which may not allocate, and by the engine, so that all front ends take the same
 * words. */
#ifndef KARST_PRELOAD_TRAP_SPEC_H
#define KARST_PRELOAD_TRAP_SPEC_H

#include <stdbool.h>
#include <stddef.h>

#include "karst-abi.h"

/* Text that is put together without allocating; what does not fit is cut off. */
struct karst_line {
    char *text;
    size_t size; /* of the buffer, at least 1 */
    size_t used; /* without the terminating zero */
};

void karst_line_add(struct karst_line *line, const char *text);
void karst_line_add_number(struct karst_line *line, uint64_t number);
void karst_line_add_hex(struct karst_line *line, uint64_t number); /* "0x..." */

/* Fills trap from text, with state KARST_TRAP_ARMED and number 0. False: error, a buffer of error_size bytes,
 * says what is wrong in one line; trap is then of no use. */
bool karst_trap_parse(const char *text, struct karst_trap *trap, char *error, size_t error_size);

/* A size ("4096", "0x1000", "64K", "1,000,000") from text on; *end is where it ends. False: there is none. */
bool karst_trap_parse_size(const char *text, uint64_t *size, const char **end);

/* "malloc"; "?" for a number that is none. */
const char *karst_function_name(uint32_t function);
/* "stop"; NULL for a number that is none. */
const char *karst_action_name(uint32_t action);

/* Why a thread stopped, as one line without its end: "realloc(0x..., 8880819) = 0x... in thread 12, called
 * from 0x...". symbol may say more of a call site, by adding to line; it may be NULL. */
void karst_why_describe(const struct karst_why *why, struct karst_line *line,
                        void (*symbol)(struct karst_line *line, uint64_t address));

#endif
