#include <errno.h>
#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "error.h"

#define PROGRESS_AFTER_NS UINT64_C(1000000000)

volatile sig_atomic_t interrupted;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static const char *style_sequence(enum karst_style style) {
    static const char *const sequences[KARST_STYLES] = {
        [KARST_STYLE_TITLE] = "\033[1m",   [KARST_STYLE_ADDRESS] = "\033[34m",
        [KARST_STYLE_SYMBOL] = "\033[36m", [KARST_STYLE_FILE] = "\033[32m",
        [KARST_STYLE_GOOD] = "\033[32m",   [KARST_STYLE_WARNING] = "\033[33m",
        [KARST_STYLE_BAD] = "\033[1;31m",  [KARST_STYLE_DIM] = "\033[2m",
    };
    return style < KARST_STYLES ? sequences[style] : NULL;
}

/* Writes size bytes, with a style's sequence around them or none. */
static bool put(FILE *file, const char *sequence, const char *text, size_t size) {
    return (!sequence || fputs(sequence, file) >= 0) && fwrite(text, 1, size, file) == size &&
           (!sequence || fputs("\033[0m", file) >= 0);
}

static bool write_text(void *context, enum karst_style style, const char *text, size_t size) {
    struct terminal *terminal = context;
    terminal_wipe_progress(terminal);
    const char *sequence = terminal->color ? style_sequence(style) : NULL;
    terminal->in_line = size && text[size - 1] != '\n';
    errno = 0;
    bool written = put(terminal->spool ? terminal->spool : stdout, sequence, text, size);
    if (!written) {
        terminal->write_error = errno ? errno : EIO;
    }
    return written && !interrupted;
}

static uint32_t terminal_width(int file) {
    const char *columns = getenv("COLUMNS");
    if (columns) {
        char *end = NULL;
        unsigned long width = strtoul(columns, &end, 10);
        if (end != columns && *end == '\0' && width > 0 && width < 10000) {
            return (uint32_t)width;
        }
    }
    struct winsize size;
    return ioctl(file, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

void terminal_open(struct terminal *terminal, enum color_mode color) {
    bool tty = isatty(STDOUT_FILENO);
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    bool dumb = !term || strcmp(term, "dumb") == 0;
    setlocale(LC_CTYPE, "");
    *terminal = (struct terminal){
        .output = {.write = write_text,
                   .width = tty ? terminal_width(STDOUT_FILENO) : 0,
                   .unicode = strcmp(nl_langinfo(CODESET), "UTF-8") == 0},
        .color = color == COLOR_ALWAYS || (color == COLOR_AUTO && tty && !dumb && !(no_color && *no_color)),
        .tty = tty,
        .progress = isatty(STDERR_FILENO),
        .start_ns = now_ns(),
    };
    terminal->output.context = terminal;
}

void terminal_keep_back(struct terminal *terminal) {
    terminal->spool = tmpfile();
}

void terminal_hand_on(struct terminal *terminal) {
    char piece[65536];
    FILE *spool = terminal->spool;
    if (!spool) {
        return;
    }
    terminal->spool = NULL;
    errno = 0;
    bool fine = fseeko(spool, 0, SEEK_SET) == 0;
    while (fine && !interrupted && !terminal->write_error) {
        size_t size = fread(piece, 1, sizeof piece, spool);
        if (size == 0) {
            fine = !ferror(spool);
            break;
        }
        fine = put(stdout, NULL, piece, size);
    }
    if (!fine && !terminal->write_error) {
        terminal->write_error = errno ? errno : EIO;
    }
    fclose(spool);
}

void terminal_wipe_progress(struct terminal *terminal) {
    if (terminal->shown) {
        fprintf(stderr, "\r%*s\r", (int)terminal->shown, "");
        fflush(stderr);
        terminal->shown = 0;
    }
}

bool terminal_poll(void *context, const char *what, uint64_t done, uint64_t total) {
    struct terminal *terminal = context;
    if (terminal->progress && now_ns() - terminal->start_ns >= PROGRESS_AFTER_NS) {
        char text[64];
        int size = snprintf(text, sizeof text, "%.30s", what);
        if (total) {
            size += snprintf(text + size, sizeof text - (size_t)size, ": %.0f %% of %.1f GB",
                             100.0 * (double)(done < total ? done : total) / (double)total,
                             (double)total / (1 << 30));
        }
        int width = (int)terminal_width(STDERR_FILENO); /* a line that goes on below is not wiped by \r */
        size = width && size >= width ? width - 1 : size;
        int rest = (int)terminal->shown > size ? (int)terminal->shown - size : 0;
        fprintf(stderr, "\r%.*s%*s", size, text, rest, "");
        fflush(stderr);
        terminal->shown = (size_t)size + (size_t)rest;
    }
    return !interrupted;
}

bool terminal_close(struct terminal *terminal, struct karst_error *error) {
    terminal_wipe_progress(terminal);
    errno = 0;
    if (terminal->tty && terminal->in_line) { /* cut off: what follows gets a line of its own */
        putchar('\n');
    }
    if (fflush(stdout) && !terminal->write_error) {
        terminal->write_error = errno ? errno : EIO;
    }
    if (terminal->write_error && terminal->write_error != EPIPE) {
        return karst_fail_errno(error, terminal->write_error, "can't write the answer");
    }
    return true;
}
