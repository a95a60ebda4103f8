/* The separate debug file of a module: in the debug directories by build id or by the name in
 * .gnu_debuglink, and in the cache of debuginfod, of what somebody had it fetch before. Nothing is fetched
 * here: a process would stand still meanwhile. */
#include "parts.h"
#include "symbols.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_DEBUG_DIRECTORY "/usr/lib/debug"

/* The checksum of .gnu_debuglink: CRC-32 as in ISO 3309, bit by bit reversed. */
static uint32_t checksum(const uint8_t *data, size_t size) {
    uint32_t table[256];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) {
            value = value & 1 ? value >> 1 ^ 0xedb88320u : value >> 1;
        }
        table[i] = value;
    }
    uint32_t sum = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        sum = sum >> 8 ^ table[(sum ^ data[i]) & 0xff];
    }
    return ~sum;
}

/* Takes the file at path if it belongs to module: by build id, without one by checksum. */
static bool take_debug_file(struct karst_module *module, const char *path, const uint32_t *crc) {
    struct karst_elf_file *debug = &module->symbols->debug;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor < 0 || !karst_elf_open(debug, descriptor)) {
        return false;
    }
    uint8_t build_id[sizeof module->build_id];
    size_t size = karst_elf_build_id(debug, build_id, sizeof build_id);
    bool right = module->build_id_size != 0
                     ? size == module->build_id_size && memcmp(build_id, module->build_id, size) == 0
                     : crc && checksum(debug->data, debug->size) == *crc;
    if (!right) {
        karst_elf_close(debug);
    }
    return right;
}

/* Writes the build id from byte first on; false: it has no more bytes, or no room. */
static bool print_build_id(const struct karst_module *module, size_t first, char *text, size_t size) {
    if (module->build_id_size <= first || 2 * (module->build_id_size - first) >= size) {
        return false;
    }
    for (size_t i = first; i < module->build_id_size; i++) {
        text += sprintf(text, "%02x", module->build_id[i]);
    }
    return true;
}

static bool debug_file_by_build_id(struct karst_module *module, const char *directory) {
    char path[PATH_MAX], id[2 * sizeof module->build_id + 1];
    return print_build_id(module, 1, id, sizeof id) &&
           snprintf(path, sizeof path, "%s/.build-id/%02x/%s.debug", directory, module->build_id[0], id) <
               (int)sizeof path &&
           take_debug_file(module, path, NULL);
}

/* As debuginfod-find(1) says where its cache is. */
static bool debug_file_in_cache(struct karst_module *module) {
    const char *cache = getenv("DEBUGINFOD_CACHE_PATH"), *user = getenv("XDG_CACHE_HOME"),
               *home = getenv("HOME");
    char directory[PATH_MAX], path[PATH_MAX], id[2 * sizeof module->build_id + 1];
    int size = cache && *cache ? snprintf(directory, sizeof directory, "%s", cache)
               : user && *user ? snprintf(directory, sizeof directory, "%s/debuginfod_client", user)
               : home && *home ? snprintf(directory, sizeof directory, "%s/.cache/debuginfod_client", home)
                               : (int)sizeof directory;
    return size < (int)sizeof directory && print_build_id(module, 0, id, sizeof id) &&
           snprintf(path, sizeof path, "%s/%s/debuginfo", directory, id) < (int)sizeof path &&
           take_debug_file(module, path, NULL);
}

static bool debug_file_by_link(struct karst_module *module, const char *directory, const char *prefix) {
    size_t size = 0;
    const uint8_t *link = module->symbols->file.data
                              ? karst_elf_section(&module->symbols->file, ".gnu_debuglink", &size)
                              : NULL;
    size_t length = link ? strnlen((const char *)link, size) : 0;
    size_t at = (length + 4) & ~(size_t)3;
    if (length == 0 || length > NAME_MAX || at + sizeof(uint32_t) > size ||
        memchr(link, '/', length) != NULL) {
        return false;
    }
    uint32_t crc;
    memcpy(&crc, link + at, sizeof crc);
    size_t folder = (size_t)(karst_base_name(module->path) - module->path);
    static const char *const forms[] = {"%s%.*s%s", "%s%.*s.debug/%s"};
    char path[3 * PATH_MAX];
    for (size_t i = 0; i < 2 && folder < PATH_MAX; i++) {
        snprintf(path, sizeof path, forms[i], prefix, (int)folder, module->path, (const char *)link);
        if (take_debug_file(module, path, &crc)) {
            return true;
        }
    }
    snprintf(path, sizeof path, "%s%.*s%s", directory, (int)folder, module->path, (const char *)link);
    return folder < PATH_MAX && take_debug_file(module, path, &crc);
}

/* Looks in one directory, below the sysroot first. */
static bool find_debug_file_in(struct karst_target *target, struct karst_module *module,
                               const char *directory) {
    char path[PATH_MAX];
    if (target->sysroot &&
        snprintf(path, sizeof path, "%s%s", target->sysroot, directory) < (int)sizeof path &&
        (debug_file_by_build_id(module, path) || debug_file_by_link(module, path, target->sysroot))) {
        return true;
    }
    return debug_file_by_build_id(module, directory) || debug_file_by_link(module, directory, "");
}

const struct karst_elf_file *karst_module_debug_file(struct karst_target *target,
                                                     struct karst_module *module) {
    struct karst_symbols *symbols = karst_module_symbols(target, module);
    if (!symbols || target->no_symbols) {
        return NULL;
    }
    if (!symbols->debug_looked_for) {
        symbols->debug_looked_for = true;
        const char *directories = target->debug_directory ? target->debug_directory : DEFAULT_DEBUG_DIRECTORY;
        char directory[PATH_MAX];
        for (const char *at = directories; *at && !symbols->debug.data;) {
            size_t length = strcspn(at, ":");
            if (length > 0 && length < sizeof directory) {
                memcpy(directory, at, length);
                directory[length] = '\0';
                find_debug_file_in(target, module, directory);
            }
            at += length + (at[length] == ':');
        }
        if (!symbols->debug.data) {
            debug_file_in_cache(module);
        }
    }
    return symbols->debug.data ? &symbols->debug : NULL;
}
