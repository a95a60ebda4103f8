#include "facts_report.h"

json_t *karst_facts_json(struct karst_writer *writer, const struct karst_facts *facts) {
    json_t *list = karst_json_array(writer);
    for (size_t i = 0; i < facts->count; i++) {
        const struct karst_fact *fact = &facts->items[i];
        json_t *one = karst_json_object(writer);
        karst_json_set_text(writer, one, "name", fact->name);
        karst_json_set_known_address(writer, one, "address", fact->address);
        karst_json_set_text(writer, one, "text", fact->text);
        karst_json_append(writer, list, one);
    }
    return list;
}
