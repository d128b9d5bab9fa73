/* All that the doctor can name: one row each. A finding's title names the object; what it means and what to do is said
 * here once. */
#pragma once

#include "doctor/rules/finding.h"

struct catalogue_row {
    const char *id;
    enum hop hop;      /* where it bites, unless the rule says otherwise */
    const char *layer; /* L1 to L7 */
    bool safe;         /* may be repaired without being asked */
    const char *means, *advice;
};

/* Return: the row, or NULL. "unknown.<hop>" has none. */
const struct catalogue_row *catalogue_find(const char *id);

/* The rows, in order; NULL behind the last. */
const struct catalogue_row *catalogue_at(size_t i);
