/* The columns that `summary` and `arenas` share. */
#ifndef KARST_VERB_ROWS_H
#define KARST_VERB_ROWS_H

#include "summary.h"
#include "writer.h"

/* Sets the keys of a row in an object: system_bytes, live, cached, free, top, metadata_bytes, ... */
void karst_row_set_json(struct karst_writer *writer, json_t *object, const struct karst_summary_row *row);
/* What is resident beyond whole pages of free, cached and top blocks; UINT64_MAX: can't be told. */
uint64_t karst_row_live_resident(const struct karst_summary_row *row);

#endif
