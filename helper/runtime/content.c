#include "content.h"

const struct karst_content_source *const karst_content_sources[] = {&karst_content_cpython, NULL};

bool karst_describe_content(struct karst *session, const struct karst_block *block, uint64_t address,
                            struct karst_facts *facts, struct karst_error *error) {
    for (size_t i = 0; karst_content_sources[i]; i++) {
        if (!karst_content_sources[i]->describe(session, block, address, facts, error)) {
            return false;
        }
    }
    return true;
}

bool karst_introduce_contents(struct karst *session, struct karst_facts *facts, struct karst_error *error) {
    for (size_t i = 0; karst_content_sources[i]; i++) {
        if (!karst_content_sources[i]->introduce(session, facts, error)) {
            return false;
        }
    }
    return true;
}
