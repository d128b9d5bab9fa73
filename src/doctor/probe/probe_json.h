/* What a probe has seen, as JSON and back: for `mctl doctor --save` and `--from`. Members that are zero are left out.
 * Loading takes nothing for granted: the text may be anybody's. */
#pragma once

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"
#include "doctor/probe/probe.h"

/* The caller decrefs. NULL without memory. */
json_t *probe_to_json(const struct probe_result *result);

/* Error: "doctor.bad-file" -EBADMSG, with the member that is wrong. */
int probe_from_json(const json_t *json, struct probe_result **ret, struct err *err);
