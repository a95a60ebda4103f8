/* The picture of the heaps as a page: PNG or SVG, from the same drawing. */
#ifndef KARST_REPORT_DRAW_H
#define KARST_REPORT_DRAW_H

#include "picture.h"

/* Columns and rows a picture should have to be drawn here. */
#define KARST_DRAW_COLUMNS 1280u
#define KARST_DRAW_ROWS    48u
#define KARST_DRAW_MARKS   5u

struct karst_drawing {
    const char *path;  /* ends in .png or .svg */
    int width, height; /* as drawn; pixels, points */
};

/* False, with an error that says what would help, if path ends otherwise. */
bool karst_draw_check(const char *path, struct karst_error *error);
/* Writes the file. */
bool karst_draw(const struct karst_picture *picture, struct karst_drawing *drawing,
                struct karst_error *error);

#endif
