/* Names of C++ and Rust as people write them. */
#ifndef KARST_TARGET_DEMANGLE_H
#define KARST_TARGET_DEMANGLE_H

#include <stdbool.h>
#include <stddef.h>

/* "_ZN3abc3addEi" is "abc::add(int)": writes that to text, of size bytes. What does not fit is told without
 * its arguments, then cut and ended by "...". False, and text is not touched, if name is no such name; names
 * of more than 1,000 characters are not taken apart. */
bool karst_demangle(const char *name, char *text, size_t size);

#endif
