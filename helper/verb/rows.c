#include "rows.h"

static void set_tally(struct karst_writer *writer, json_t *object, const char *key,
                      const struct karst_tally *tally) {
    json_t *one = karst_json_object(writer);
    karst_json_set_number(writer, one, "blocks", tally->blocks);
    karst_json_set_number(writer, one, "bytes", tally->bytes);
    karst_json_set(writer, object, key, one);
}

static json_t *largest_json(struct karst_writer *writer, const struct karst_hole *hole) {
    if (hole->end == 0) {
        return json_null();
    }
    json_t *one = karst_json_object(writer);
    karst_json_set_address(writer, one, "address", hole->start);
    karst_json_set_number(writer, one, "size", hole->end - hole->start);
    karst_json_set_number(writer, one, "usable_bytes", hole->usable);
    karst_json_set_known_address(writer, one, "usable_address", hole->usable ? hole->usable_start : 0);
    karst_json_set_number(writer, one, "free_bytes", hole->free_bytes);
    karst_json_set_number(writer, one, "cached_bytes", hole->cached_bytes);
    return one;
}

uint64_t karst_row_live_resident(const struct karst_summary_row *row) {
    uint64_t rest = row->resident_bytes;
    for (int state = 0; state < KARST_STATES && rest != UINT64_MAX; state++) {
        uint64_t part = row->resident[state];
        rest = part == UINT64_MAX ? UINT64_MAX : rest > part ? rest - part : 0;
    }
    return rest;
}

void karst_row_set_json(struct karst_writer *writer, json_t *object, const struct karst_summary_row *row) {
    karst_json_set_number(writer, object, "extents", row->extents);
    karst_json_set_number(writer, object, "system_bytes", row->system_bytes);
    for (enum karst_state state = 0; state < KARST_STATES; state++) {
        set_tally(writer, object, karst_state_name(state), &row->states[state]);
    }
    karst_json_set_number(writer, object, "metadata_bytes", row->states[KARST_STATE_METADATA].bytes);
    karst_json_set_number(writer, object, "unknown_bytes", row->states[KARST_STATE_UNKNOWN].bytes);
    set_tally(writer, object, "mapped", &row->mapped);
    karst_json_set_number(writer, object, "holes", row->holes);
    karst_json_set_number(writer, object, "hole_bytes", row->hole_bytes);
    karst_json_set(writer, object, "largest_hole", largest_json(writer, &row->largest));
    karst_json_set_known(writer, object, "resident_bytes", row->resident_bytes);
    karst_json_set_known(writer, object, "live_resident_bytes", karst_row_live_resident(row));
    karst_json_set_known(writer, object, "free_resident_bytes", row->resident[KARST_STATE_FREE]);
    karst_json_set_known(writer, object, "cached_resident_bytes", row->resident[KARST_STATE_CACHED]);
    karst_json_set_known(writer, object, "top_resident_bytes", row->resident[KARST_STATE_TOP]);
}
