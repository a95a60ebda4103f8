/* `holes --fit`: whether a request of some size would fit, and if not, what is in the way. */
#ifndef KARST_VERB_FIT_REPORT_H
#define KARST_VERB_FIT_REPORT_H

#include "fit.h"
#include "verb.h"

void karst_fit_write(struct karst_call *call, const struct karst_fit *fit);
/* {"request", "fits", "best", "nearest", "top", ...} */
json_t *karst_fit_json(struct karst_call *call, const struct karst_fit *fit);

#endif
