/* The members of the snapshot's rows by name: so that saving and loading are one loop each. */
#pragma once

#include "doctor/snapshot.h"

enum snapshot_kind { F_U8, F_U16, F_U32, F_U64, F_I32, F_I64, F_BOOL, F_TEXT, F_BYTES, F_RANGE };

struct snapshot_field {
    const char *name; /* NULL: the end */
    enum snapshot_kind kind;
    size_t offset, size; /* bytes */
};

struct snapshot_table {
    const char *name; /* NULL: the end */
    const struct snapshot_field *fields;
    size_t offset, count_offset, cap_offset; /* in struct snapshot */
    size_t row_size;
    uint32_t max; /* rows */
};

extern const struct snapshot_table snapshot_tables[];
extern const struct snapshot_field snap_host_fields[];
