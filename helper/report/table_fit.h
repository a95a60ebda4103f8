/* How a table's columns share the width of the output. */
#ifndef KARST_REPORT_TABLE_FIT_H
#define KARST_REPORT_TABLE_FIT_H

#include "writer.h"

#define KARST_TABLE_GAP 2 /* spaces between columns */

struct karst_column_fit {
    size_t width;  /* of the widest cell so far */
    size_t shown;  /* what it gets */
    bool left_out; /* there is no room for it */
};

/* Sets what each column gets of limit characters (0: as many as there are). may_leave_out: none was printed
 * yet. False: it does not fit whatever is left out, and shown is what each column wants. */
bool karst_table_fit(const struct karst_column *columns, struct karst_column_fit *fits, size_t count,
                     size_t limit, bool may_leave_out);

#endif
