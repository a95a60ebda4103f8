/* Pins, tops and trims as `holes` and `pins` show them. */
#ifndef KARST_VERB_PINS_REPORT_H
#define KARST_VERB_PINS_REPORT_H

#include "pins.h"
#include "verb.h"

/* Pins between free memory as a table, and the sum over those not listed. Prints a line if there is none. */
void karst_pins_write_between(struct karst_call *call, const struct karst_pins *pins);
/* What keeps heaps from shrinking; at most depth pins under each top. */
void karst_pins_write_tops(struct karst_call *call, const struct karst_pins *pins, size_t depth);
/* "A trim would return ..." */
void karst_pins_write_trim(struct karst_call *call, const struct karst_pins *pins);
/* Sets "pins" (of both kinds), "pinned" and "trim". */
void karst_pins_set_json(struct karst_call *call, json_t *root, const struct karst_pins *pins);

#endif
