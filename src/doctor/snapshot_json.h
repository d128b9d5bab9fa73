/* A snapshot as JSON and back: what --save writes and --from reads on another machine. The document is
 * {"schema":"doctor-snapshot/1","host":{…},"links":[…],…}, one array a table of struct snapshot, members named as the
 * struct's. What an older program did not know is left out and zero; unknown members are ignored. */
#pragma once

#include <jansson.h>

#include "doctor/snapshot.h"

#define SNAPSHOT_SCHEMA "doctor-snapshot/1"
#define SNAPSHOT_FILE_MAX (256U * 1024 * 1024) /* bytes */

/* The caller decrefs. NULL without memory. */
json_t *snapshot_to_json(const struct snapshot *s);

/* Takes anything: wrong kinds, sizes and references are refused. The caller frees *ret.
 * Error: "doctor.bad-snapshot" -EINVAL with the member that is wrong. */
int snapshot_from_json(const json_t *document, struct snapshot **ret, struct err *err);
