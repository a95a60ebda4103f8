#include "draw.h"

#include <cairo-svg.h>
#include <cairo.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clean.h"
#include "writer.h"

/* All in pixels. */
#define PAGE_WIDTH   1600
#define MARGIN       40
#define ADDRESS_ROOM 140 /* left of the strips */
#define STRIP_HEIGHT 16
#define ROW_HEIGHT   30
#define HEADER_ROOM  36 /* an extent's own line */
#define TEXT_SIZE    13.0
#define LINE_HEIGHT  20
#define PLOT_LEFT    (MARGIN + ADDRESS_ROOM)
#define PLOT_RIGHT   (PLOT_LEFT + (int)KARST_DRAW_COLUMNS)
#define TOP_ROOM     172 /* title, totals, legend, axis */

/* ---- colours: told apart by brightness, texture and their order in a column, too --------------------- */

enum texture { TEXTURE_PLAIN, TEXTURE_DIAGONAL, TEXTURE_LINES, TEXTURE_CROSSED, TEXTURE_DOTS };

struct paint {
    const char *name;
    uint32_t color, second; /* 0xrrggbb */
    enum texture texture;
};

static const struct paint paints[KARST_PICTURE_STATES] = {
    [KARST_STATE_LIVE] = {"live", 0x1d3f63, 0x1d3f63, TEXTURE_PLAIN},
    [KARST_STATE_FREE] = {"free", 0xf2b84b, 0xf2b84b, TEXTURE_PLAIN},
    [KARST_STATE_CACHED] = {"cached", 0xb04f9f, 0xe3b5da, TEXTURE_DIAGONAL},
    [KARST_STATE_TOP] = {"top", 0xe3e8ec, 0xbcc6ce, TEXTURE_LINES},
    [KARST_STATE_METADATA] = {"metadata", 0x70767c, 0x70767c, TEXTURE_PLAIN},
    [KARST_STATE_UNKNOWN] = {"damaged or missing", 0xd7261e, 0xffffff, TEXTURE_CROSSED},
    [KARST_PICTURE_ABSENT] = {"free, not resident", 0xfcf2dc, 0xf2cf8d, TEXTURE_DOTS},
};

/* From the bottom of a column up. */
static const uint8_t stack_order[KARST_PICTURE_STATES] = {
    KARST_STATE_UNKNOWN, KARST_STATE_LIVE,     KARST_STATE_METADATA, KARST_STATE_CACHED,
    KARST_STATE_FREE,    KARST_PICTURE_ABSENT, KARST_STATE_TOP};

static uint32_t paint_at(const struct paint *paint, int x, int y) {
    bool second = false;
    switch (paint->texture) {
    case TEXTURE_DIAGONAL:
        second = ((x + y) & 3) == 0;
        break;
    case TEXTURE_LINES:
        second = (y & 3) == 1;
        break;
    case TEXTURE_CROSSED:
        second = ((x + y) & 7) == 0 || ((x - y) & 7) == 0;
        break;
    case TEXTURE_DOTS:
        second = (y & 3) == 2 && (x & 3) == (y & 4 ? 0 : 2);
        break;
    default:
        break;
    }
    return second ? paint->second : paint->color;
}

/* ---- text -------------------------------------------------------------------------------------------- */

struct page {
    cairo_t *cairo;
    const struct karst_picture *picture;
    struct karst_output output; /* for sizes as text */
    struct karst_writer writer;
    int height;
};

enum font { FONT_TEXT, FONT_BOLD, FONT_FIXED };

static void set_color(cairo_t *cairo, uint32_t color) {
    cairo_set_source_rgb(cairo, (color >> 16 & 255) / 255.0, (color >> 8 & 255) / 255.0,
                         (color & 255) / 255.0);
}

static void set_font(cairo_t *cairo, enum font font, double size) {
    cairo_select_font_face(cairo, font == FONT_FIXED ? "monospace" : "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           font == FONT_BOLD ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cairo, size);
}

/* align: 0 left of what follows, 0.5 centred, 1 ends at x. Returns where it ends. */
static double put_text(struct page *page, double x, double y, double align, uint32_t color,
                       const char *format, ...) __attribute__((format(printf, 6, 7)));

static double put_text(struct page *page, double x, double y, double align, uint32_t color,
                       const char *format, ...) {
    char text[400], clean[3 * sizeof text + 1];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    size_t size = length < 0 ? 0 : (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
    /* The target's names may hold anything; cairo takes nothing but UTF-8. */
    clean[karst_clean(text, size, true, false, clean)] = '\0';
    cairo_text_extents_t extents;
    cairo_text_extents(page->cairo, clean, &extents);
    set_color(page->cairo, color);
    cairo_move_to(page->cairo, x - align * extents.x_advance, y);
    cairo_show_text(page->cairo, clean);
    return x + (1 - align) * extents.x_advance;
}

static const char *size_text(struct page *page, uint64_t size, struct karst_text *room) {
    *room = karst_size_text(&page->writer, size);
    return room->text;
}

static uint64_t drawn_bytes(const uint64_t bytes[KARST_PICTURE_STATES]) {
    uint64_t sum = 0;
    for (size_t state = 0; state < KARST_PICTURE_STATES; state++) {
        sum += bytes[state];
    }
    return sum;
}

/* ---- strips ------------------------------------------------------------------------------------------ */

/* Fills one column of pixels: each state's share of the height, with the colours of a pixel that several
 * share mixed by what each has of it. */
static void draw_column(uint32_t *pixels, size_t stride, int x, const struct karst_picture_cell *cell) {
    double total = (double)karst_picture_cell_bytes(cell), from = 0;
    double channels[STRIP_HEIGHT][4] = {{0}};
    if (total <= 0) {
        return;
    }
    for (size_t i = 0; i < KARST_PICTURE_STATES; i++) {
        const struct paint *paint = &paints[stack_order[i]];
        double share = cell->bytes[stack_order[i]] / total * STRIP_HEIGHT;
        /* Damage has to be seen, however little it is. */
        if (stack_order[i] == KARST_STATE_UNKNOWN && share > 0 && share < 4) {
            share = 4;
        }
        double to = fmin(from + share, STRIP_HEIGHT);
        for (int y = (int)from; y < STRIP_HEIGHT && y < to; y++) {
            double part = fmin(to, y + 1) - fmax(from, y);
            uint32_t color = paint_at(paint, x, y);
            channels[y][0] += part * (color >> 16 & 255);
            channels[y][1] += part * (color >> 8 & 255);
            channels[y][2] += part * (color & 255);
            channels[y][3] += part;
        }
        from = to;
    }
    for (int y = 0; y < STRIP_HEIGHT; y++) {
        uint32_t color = 0;
        for (int k = 0; k < 3; k++) {
            double value = channels[y][3] > 0 ? channels[y][k] / channels[y][3] : 255;
            color = color << 8 | (uint32_t)(value + 0.5);
        }
        pixels[(size_t)(STRIP_HEIGHT - 1 - y) * stride + (size_t)x] = 0xff000000u | color;
    }
}

static void draw_strip(struct page *page, size_t row, double y) {
    const struct karst_picture *picture = page->picture;
    int columns = (int)picture->columns;
    cairo_surface_t *image = cairo_image_surface_create(CAIRO_FORMAT_ARGB32, columns, STRIP_HEIGHT);
    if (cairo_surface_status(image) == CAIRO_STATUS_SUCCESS) {
        cairo_surface_flush(image);
        uint32_t *pixels = (uint32_t *)(void *)cairo_image_surface_get_data(image);
        size_t stride = (size_t)cairo_image_surface_get_stride(image) / sizeof *pixels;
        for (int x = 0; x < columns; x++) {
            draw_column(pixels, stride, x, karst_picture_cell(picture, row, (size_t)x));
        }
        cairo_surface_mark_dirty(image);
        cairo_set_source_surface(page->cairo, image, PLOT_LEFT, y);
        cairo_pattern_set_filter(cairo_get_source(page->cairo), CAIRO_FILTER_NEAREST);
        cairo_paint(page->cairo);
    }
    cairo_surface_destroy(image);
}

static double strip_y(const struct karst_picture *picture, size_t row) {
    double y = TOP_ROOM + (double)row * ROW_HEIGHT;
    for (size_t i = 0; i < picture->band_count && picture->bands[i].first_row <= row; i++) {
        y += HEADER_ROOM;
    }
    return y;
}

static void draw_row_labels(struct page *page, const struct karst_picture_band *band, size_t row, double y) {
    const struct karst_picture *picture = page->picture;
    uint64_t live = 0, bytes = 0;
    for (size_t x = 0; x < picture->columns; x++) {
        const struct karst_picture_cell *cell = karst_picture_cell(picture, row, x);
        live += cell->bytes[KARST_STATE_LIVE];
        bytes += karst_picture_cell_bytes(cell);
    }
    set_font(page->cairo, FONT_FIXED, TEXT_SIZE);
    put_text(page, PLOT_LEFT - 10, y + STRIP_HEIGHT - 4, 1, 0x333333, "0x%" PRIx64,
             karst_picture_row_address(picture, band, row));
    set_font(page->cairo, FONT_TEXT, TEXT_SIZE);
    put_text(page, PAGE_WIDTH - MARGIN, y + STRIP_HEIGHT - 4, 1, 0x333333, "%s live",
             karst_share_text(live, bytes).text);
}

static void draw_band(struct page *page, const struct karst_picture_band *band) {
    const struct karst_picture *picture = page->picture;
    struct karst_text size, live, unused;
    double y = strip_y(picture, band->first_row) - 12;
    const struct karst_picture_extent *first = &picture->extents[band->first_extent];
    const struct karst_picture_extent *last = first + band->extent_count - 1;
    set_font(page->cairo, FONT_BOLD, TEXT_SIZE + 1);
    double x = put_text(page, PLOT_LEFT, y, 0, 0x111111, "%s",
                        karst_arena_text(picture->session, band->heap, band->arena).text);
    if (band->extent_count == 1) {
        x = put_text(page, x, y, 0, 0x111111, ", %s", karst_extent_kind_name(first->extent->kind));
    } else {
        x = put_text(page, x, y, 0, 0x111111, ", %zu segments", band->extent_count);
    }
    set_font(page->cairo, FONT_TEXT, TEXT_SIZE);
    put_text(page, x + 12, y, 0, 0x444444, "%s from 0x%" PRIx64 " to 0x%" PRIx64 ": %s live, %s free",
             size_text(page, drawn_bytes(band->bytes), &size), first->start, last->end,
             size_text(page, band->bytes[KARST_STATE_LIVE], &live),
             size_text(page, band->bytes[KARST_STATE_FREE] + band->bytes[KARST_PICTURE_ABSENT], &unused));
    for (size_t row = band->first_row; row < band->first_row + band->rows; row++) {
        draw_strip(page, row, strip_y(picture, row));
        draw_row_labels(page, band, row, strip_y(picture, row));
    }
}

/* ---- head -------------------------------------------------------------------------------------------- */

static void draw_swatch(struct page *page, double x, double y, const struct paint *paint) {
    cairo_surface_t *image = cairo_image_surface_create(CAIRO_FORMAT_RGB24, 28, 14);
    if (cairo_surface_status(image) == CAIRO_STATUS_SUCCESS) {
        cairo_surface_flush(image);
        uint32_t *pixels = (uint32_t *)(void *)cairo_image_surface_get_data(image);
        size_t stride = (size_t)cairo_image_surface_get_stride(image) / sizeof *pixels;
        for (int row = 0; row < 14; row++) {
            for (int column = 0; column < 28; column++) {
                pixels[(size_t)row * stride + (size_t)column] = paint_at(paint, column, 13 - row);
            }
        }
        cairo_surface_mark_dirty(image);
        cairo_set_source_surface(page->cairo, image, x, y);
        cairo_pattern_set_filter(cairo_get_source(page->cairo), CAIRO_FILTER_NEAREST);
        cairo_paint(page->cairo);
    }
    cairo_surface_destroy(image);
    set_color(page->cairo, 0x888888);
    cairo_set_line_width(page->cairo, 1);
    cairo_rectangle(page->cairo, x - 0.5, y - 0.5, 29, 15);
    cairo_stroke(page->cairo);
}

static void draw_legend(struct page *page, double y) {
    static const uint8_t order[] = {KARST_STATE_LIVE,   KARST_STATE_FREE, KARST_PICTURE_ABSENT,
                                    KARST_STATE_CACHED, KARST_STATE_TOP,  KARST_STATE_METADATA,
                                    KARST_STATE_UNKNOWN};
    uint64_t whole = drawn_bytes(page->picture->bytes);
    double x = PLOT_LEFT;
    set_font(page->cairo, FONT_TEXT, TEXT_SIZE);
    for (size_t i = 0; i < sizeof order; i++) {
        uint64_t bytes = page->picture->bytes[order[i]];
        struct karst_text size;
        if (bytes == 0) {
            continue;
        }
        draw_swatch(page, x, y - 12, &paints[order[i]]);
        x = put_text(page, x + 36, y, 0, 0x222222, "%s %s (%s)", paints[order[i]].name,
                     size_text(page, bytes, &size), karst_share_text(bytes, whole).text) +
            24;
    }
}

/* Offsets in a row, every 256 columns: a power of two each. */
static void draw_axis(struct page *page, double y) {
    const struct karst_picture *picture = page->picture;
    set_font(page->cairo, FONT_TEXT, TEXT_SIZE - 2);
    for (size_t column = 0; column <= picture->columns; column += 256) {
        struct karst_text size;
        double x = PLOT_LEFT + (double)column;
        set_color(page->cairo, 0x999999);
        cairo_set_line_width(page->cairo, 1);
        cairo_move_to(page->cairo, x + 0.5, y + 4);
        cairo_line_to(page->cairo, x + 0.5, y + 10);
        cairo_stroke(page->cairo);
        put_text(page, x, y,
                 column == 0                  ? 0
                 : column == picture->columns ? 1
                                              : 0.5,
                 0x666666, "+%s", size_text(page, column * picture->cell_size, &size));
    }
    cairo_move_to(page->cairo, PLOT_LEFT, y + 10.5);
    cairo_line_to(page->cairo, PLOT_RIGHT, y + 10.5);
    set_color(page->cairo, 0x999999);
    cairo_stroke(page->cairo);
}

static void draw_head(struct page *page) {
    const struct karst_picture *picture = page->picture;
    struct karst_text a, b, c;
    set_font(page->cairo, FONT_BOLD, 22);
    put_text(page, PLOT_LEFT, 46, 0, 0x111111, "Heaps of %s", picture->session->target->name);
    set_font(page->cairo, FONT_TEXT, TEXT_SIZE + 1);
    put_text(page, PLOT_LEFT, 72, 0, 0x444444,
             "%s drawn; a row is %s, a column of pixels %s, filled from the bottom by what is in it",
             size_text(page, drawn_bytes(picture->bytes), &a),
             size_text(page, picture->cell_size * picture->columns, &b),
             size_text(page, picture->cell_size, &c));
    double x = PLOT_LEFT;
    if (picture->mapped) {
        x = put_text(page, x, 92, 0, 0x444444, "not drawn: %s live blocks with mappings of their own, %s  ",
                     karst_count_text(picture->mapped).text, size_text(page, picture->mapped_bytes, &a));
    }
    if (picture->left_out) {
        put_text(page, x, 92, 0, 0x444444, "no room for %s smaller arenas, %s",
                 karst_count_text(picture->left_out).text, size_text(page, picture->left_out_bytes, &a));
    }
    draw_legend(page, 122);
    draw_axis(page, 152);
}

/* ---- marks ------------------------------------------------------------------------------------------- */

static void draw_tag(struct page *page, double x, double y, const char *text, uint32_t color) {
    cairo_new_path(page->cairo);
    cairo_arc(page->cairo, x, y, 8, 0, 2 * M_PI);
    set_color(page->cairo, 0xffffff);
    cairo_fill_preserve(page->cairo);
    set_color(page->cairo, color);
    cairo_set_line_width(page->cairo, 1.5);
    cairo_stroke(page->cairo);
    set_font(page->cairo, FONT_BOLD, 11);
    put_text(page, x, y + 4, 0.5, color, "%s", text);
}

#define HOLE_COLOR 0x8a2b06u
#define PIN_COLOR  0x0a6b3du

/* A line under what the hole takes of its first row (and to the row's end if it goes on). */
static void mark_hole(struct page *page, const struct karst_hole *hole, size_t number) {
    const struct karst_picture *picture = page->picture;
    size_t row, column, last_row, last_column;
    char text[24];
    if (!karst_picture_locate(picture, hole->start, &row, &column)) {
        return;
    }
    if (!karst_picture_locate(picture, hole->end - 1, &last_row, &last_column)) {
        last_row = row;
        last_column = column;
    }
    set_color(page->cairo, HOLE_COLOR);
    cairo_set_line_width(page->cairo, 2);
    for (size_t at = row; at <= last_row; at++) {
        double y = strip_y(picture, at) + STRIP_HEIGHT + 2;
        double from = at == row ? (double)column : 0,
               to = at == last_row ? (double)last_column + 1 : (double)picture->columns;
        cairo_move_to(page->cairo, PLOT_LEFT + from, y);
        cairo_line_to(page->cairo, PLOT_LEFT + fmax(to, from + 2), y);
        cairo_stroke(page->cairo);
    }
    snprintf(text, sizeof text, "%zu", number);
    draw_tag(page, PLOT_LEFT + (double)column + 4, strip_y(picture, row) + STRIP_HEIGHT + 5, text,
             HOLE_COLOR);
}

static void mark_pin(struct page *page, uint64_t address, size_t number) {
    size_t row, column;
    char text[2] = {(char)('A' + number), '\0'};
    if (!karst_picture_locate(page->picture, address, &row, &column)) {
        return;
    }
    double x = PLOT_LEFT + (double)column + 0.5, y = strip_y(page->picture, row);
    set_color(page->cairo, PIN_COLOR);
    cairo_move_to(page->cairo, x, y + 1);
    cairo_line_to(page->cairo, x - 4, y - 7);
    cairo_line_to(page->cairo, x + 4, y - 7);
    cairo_close_path(page->cairo);
    cairo_fill(page->cairo);
    set_font(page->cairo, FONT_BOLD, 11);
    put_text(page, x + 6, y - 1, 0, PIN_COLOR, "%s", text);
}

static void list_holes(struct page *page, double x, double y) {
    const struct karst_best *biggest = &page->picture->holes.biggest;
    set_font(page->cairo, FONT_BOLD, TEXT_SIZE + 1);
    if (biggest->count == 0) {
        put_text(page, x, y, 0, HOLE_COLOR, "No holes");
        return;
    }
    put_text(page, x, y, 0, HOLE_COLOR, "The biggest of %s holes, %s in all",
             karst_count_text(page->picture->holes.holes).text,
             karst_size_text(&page->writer, page->picture->holes.bytes).text);
    for (size_t i = 0; i < biggest->count; i++) {
        const struct karst_listed_hole *one = karst_best_item(biggest, i);
        struct karst_text size, resident;
        size_text(page, one->hole.end - one->hole.start, &size);
        if (one->resident_bytes == UINT64_MAX) {
            snprintf(resident.text, sizeof resident.text, "unknown");
        } else {
            size_text(page, one->resident_bytes, &resident);
        }
        y += LINE_HEIGHT;
        char number[24];
        snprintf(number, sizeof number, "%zu", i + 1);
        draw_tag(page, x + 8, y - 4, number, HOLE_COLOR);
        set_font(page->cairo, FONT_TEXT, TEXT_SIZE);
        put_text(page, x + 24, y, 0, 0x222222, "%s at 0x%" PRIx64 ", resident: %s", size.text,
                 one->hole.start, resident.text);
        mark_hole(page, &one->hole, i + 1);
    }
}

static void list_pins(struct page *page, double x, double y) {
    const struct karst_pins *pins = &page->picture->holes.pins;
    size_t number = 0;
    struct karst_text a, b;
    set_font(page->cairo, FONT_BOLD, TEXT_SIZE + 1);
    if (pins->tops.count + pins->pins.count == 0) {
        put_text(page, x, y, 0, PIN_COLOR, "No pins: no few small blocks keep free memory apart");
        return;
    }
    put_text(page, x, y, 0, PIN_COLOR, "Pins: what keeps heaps from shrinking, and free memory apart");
    for (size_t i = 0; i < pins->tops.count && number < KARST_DRAW_MARKS; i++) {
        const struct karst_top_pins *tops = karst_best_item(&pins->tops, i);
        const struct karst_top_pin *pin = &tops->pins[0];
        y += LINE_HEIGHT;
        set_font(page->cairo, FONT_BOLD, TEXT_SIZE);
        put_text(page, x, y, 0, PIN_COLOR, "%c", (char)('A' + number));
        set_font(page->cairo, FONT_TEXT, TEXT_SIZE);
        put_text(page, x + 24, y, 0, 0x222222, "%s at 0x%" PRIx64 " under a top: keeps %s from it",
                 size_text(page, pin->last.start + pin->last.size - pin->first.start, &a), pin->last.address,
                 size_text(page, pin->to_top, &b));
        mark_pin(page, pin->last.start, number++);
    }
    for (size_t i = 0; i < pins->pins.count && number < (size_t)2 * KARST_DRAW_MARKS; i++) {
        const struct karst_pin *pin = karst_best_item(&pins->pins, i);
        y += LINE_HEIGHT;
        set_font(page->cairo, FONT_BOLD, TEXT_SIZE);
        put_text(page, x, y, 0, PIN_COLOR, "%c", (char)('A' + number));
        set_font(page->cairo, FONT_TEXT, TEXT_SIZE);
        put_text(page, x + 24, y, 0, 0x222222,
                 "%s at 0x%" PRIx64 " between free memory: without it %s in one piece",
                 size_text(page, pin->taken, &a), pin->first.address, size_text(page, pin->joined, &b));
        mark_pin(page, pin->first.start, number++);
    }
}

/* ---- the file ---------------------------------------------------------------------------------------- */

static int page_height(const struct karst_picture *picture) {
    double rows = picture->rows ? strip_y(picture, picture->rows - 1) + ROW_HEIGHT : TOP_ROOM;
    const struct karst_holes *holes = &picture->holes;
    size_t pins = holes->pins.tops.count + holes->pins.pins.count;
    size_t lines = 2 + (pins > holes->biggest.count ? pins : holes->biggest.count);
    return (int)rows + 20 + (int)lines * LINE_HEIGHT + MARGIN / 2;
}

static bool discard(void *context, enum karst_style style, const char *text, size_t size) {
    (void)context;
    (void)style;
    (void)text;
    (void)size;
    return true;
}

static void draw_page(struct page *page) {
    cairo_set_source_rgb(page->cairo, 1, 1, 1);
    cairo_paint(page->cairo);
    draw_head(page);
    for (size_t i = 0; i < page->picture->band_count; i++) {
        draw_band(page, &page->picture->bands[i]);
    }
    double y =
        page->picture->rows ? strip_y(page->picture, page->picture->rows - 1) + ROW_HEIGHT + 24 : TOP_ROOM;
    list_holes(page, PLOT_LEFT, y);
    list_pins(page, PLOT_LEFT + 620, y);
}

static cairo_status_t write_bytes(void *context, const unsigned char *bytes, unsigned size) {
    return fwrite(bytes, 1, size, context) == size ? CAIRO_STATUS_SUCCESS : CAIRO_STATUS_WRITE_ERROR;
}

static bool is_svg(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot && strcmp(dot, ".svg") == 0;
}

bool karst_draw_check(const char *path, struct karst_error *error) {
    const char *dot = strrchr(path, '.');
    return (dot && (strcmp(dot, ".png") == 0 || strcmp(dot, ".svg") == 0)) ||
           karst_fail(error, KARST_ERROR_USAGE,
                      "the picture's file name has to end in .png or .svg, not as '%s'", path);
}

/* What went wrong with cairo or the file. */
static bool fail(const char *path, cairo_status_t status, int number, struct karst_error *error) {
    if (status == CAIRO_STATUS_NO_MEMORY) {
        return karst_fail_memory(error);
    }
    if (status == CAIRO_STATUS_WRITE_ERROR || status == CAIRO_STATUS_SUCCESS) {
        return karst_fail_errno(error, number, "cannot write %s", path);
    }
    return karst_fail(error, KARST_ERROR_SYSTEM, "cannot draw %s: %s", path, cairo_status_to_string(status));
}

static cairo_status_t draw_to(FILE *file, bool svg, struct page *page) {
    cairo_surface_t *surface =
        svg ? cairo_svg_surface_create_for_stream(write_bytes, file, PAGE_WIDTH, page->height)
            : cairo_image_surface_create(CAIRO_FORMAT_RGB24, PAGE_WIDTH, page->height);
    page->cairo = cairo_create(surface);
    draw_page(page);
    cairo_status_t status = cairo_status(page->cairo);
    cairo_destroy(page->cairo);
    if (status == CAIRO_STATUS_SUCCESS && !svg) {
        status = cairo_surface_write_to_png_stream(surface, write_bytes, file);
    }
    cairo_surface_finish(surface);
    if (status == CAIRO_STATUS_SUCCESS) {
        status = cairo_surface_status(surface);
    }
    cairo_surface_destroy(surface);
    return status;
}

bool karst_draw(const struct karst_picture *picture, struct karst_drawing *drawing,
                struct karst_error *error) {
    struct page page = {.picture = picture, .output = {.write = discard, .unicode = true}};
    karst_writer_open(&page.writer, &page.output, false);
    page.height = page_height(picture);
    drawing->width = PAGE_WIDTH;
    drawing->height = page.height;
    FILE *file = fopen(drawing->path, "wbe");
    if (!file) {
        return karst_fail_errno(error, errno, "cannot write %s", drawing->path);
    }
    errno = 0;
    cairo_status_t status = draw_to(file, is_svg(drawing->path), &page);
    int number = errno;
    if (fclose(file) != 0 && status == CAIRO_STATUS_SUCCESS) {
        return fail(drawing->path, CAIRO_STATUS_SUCCESS, errno, error);
    }
    return status == CAIRO_STATUS_SUCCESS || fail(drawing->path, status, number, error);
}
