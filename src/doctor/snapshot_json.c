#include "doctor/snapshot_json.h"

#include <string.h>

#include "base/str.h"
#include "doctor/snapshot_fields.h"

/* --- out --- */

static bool is_zero(const void *data, size_t len) {
    const uint8_t *byte = data;
    for (size_t i = 0; i < len; i++)
        if (byte[i])
            return false;
    return true;
}

static json_t *hex_out(const void *data, size_t len) {
    char hex[2 * 256 + 1];
    if (len > 256)
        len = 256;
    str_hex(data, len, hex);
    return json_string(hex);
}

/* A name that is not UTF-8 cannot be a JSON string: it is kept as bytes. */
static json_t *text_out(const char *text, size_t size) {
    size_t len = strnlen(text, size);
    if (str_is_utf8(text, len))
        return json_stringn(text, len);
    return json_pack("{s:o}", "hex", hex_out(text, len));
}

static uint64_t number_of(const void *at, size_t size) {
    uint64_t value = 0;
    memcpy(&value, at, size);
    return value;
}

static json_t *field_out(const struct snapshot_field *field, const void *at) {
    struct snap_range range;
    int32_t i32;
    switch (field->kind) {
    case F_U8:
    case F_U16:
    case F_U32:
    case F_U64:
    case F_I64:
        return json_integer((json_int_t)number_of(at, field->size));
    case F_I32:
        memcpy(&i32, at, sizeof i32);
        return json_integer(i32);
    case F_BOOL:
        return json_boolean(*(const bool *)at);
    case F_TEXT:
        return text_out(at, field->size);
    case F_BYTES:
        return hex_out(at, field->size);
    case F_RANGE:
        memcpy(&range, at, sizeof range);
        return json_pack("[I,I]", (json_int_t)range.first, (json_int_t)range.count);
    }
    return NULL;
}

static json_t *row_out(const struct snapshot_field *fields, const void *row) {
    json_t *object = json_object();
    for (const struct snapshot_field *f = fields; f->name; f++) {
        const char *at = (const char *)row + f->offset;
        if (!is_zero(at, f->size))
            json_object_set_new(object, f->name, field_out(f, at));
    }
    return object;
}

json_t *snapshot_to_json(const struct snapshot *s) {
    json_t *document = json_pack("{s:s,s:o}", "schema", SNAPSHOT_SCHEMA, "host", row_out(snap_host_fields, &s->host));
    for (const struct snapshot_table *t = snapshot_tables; document && t->name; t++) {
        const char *rows = *(const char *const *)((const char *)s + t->offset);
        uint32_t count = *(const uint32_t *)((const char *)s + t->count_offset);
        json_t *array = json_array();
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(array, row_out(t->fields, rows + i * t->row_size));
        json_object_set_new(document, t->name, array);
    }
    return document;
}

/* --- in --- */

static int digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int hex_in(const json_t *value, void *dst, size_t size, bool whole) {
    const char *hex = json_string_value(value);
    size_t len = json_string_length(value);
    if (!hex || len % 2 || len / 2 > size || (whole && len / 2 != size))
        return -EINVAL;
    for (size_t i = 0; i < len; i += 2) {
        int high = digit(hex[i]), low = digit(hex[i + 1]);
        if (high < 0 || low < 0)
            return -EINVAL;
        ((uint8_t *)dst)[i / 2] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

static int text_in(const json_t *value, char *dst, size_t size) {
    if (json_is_object(value))
        return hex_in(json_object_get(value, "hex"), dst, size - 1, false);
    if (!json_is_string(value) || json_string_length(value) >= size ||
        strlen(json_string_value(value)) != json_string_length(value))
        return -EINVAL;
    memcpy(dst, json_string_value(value), json_string_length(value));
    return 0;
}

static int unsigned_in(const json_t *value, void *dst, size_t size) {
    json_int_t number = json_integer_value(value);
    uint64_t as = (uint64_t)number;
    if (!json_is_integer(value) || (size < 8 && (number < 0 || as >> (size * 8))))
        return -EINVAL;
    memcpy(dst, &as, size);
    return 0;
}

static int signed_in(const json_t *value, void *dst) {
    json_int_t number = json_integer_value(value);
    int32_t as = (int32_t)number;
    if (!json_is_integer(value) || number != as)
        return -EINVAL;
    memcpy(dst, &as, sizeof as);
    return 0;
}

static int range_in(const json_t *value, void *dst) {
    struct snap_range range;
    if (!json_is_array(value) || json_array_size(value) != 2 ||
        unsigned_in(json_array_get(value, 0), &range.first, sizeof range.first) < 0 ||
        unsigned_in(json_array_get(value, 1), &range.count, sizeof range.count) < 0)
        return -EINVAL;
    memcpy(dst, &range, sizeof range);
    return 0;
}

static int field_in(const struct snapshot_field *field, const json_t *value, void *dst) {
    switch (field->kind) {
    case F_U8:
    case F_U16:
    case F_U32:
    case F_U64:
    case F_I64:
        return unsigned_in(value, dst, field->size);
    case F_I32:
        return signed_in(value, dst);
    case F_BOOL:
        *(bool *)dst = json_is_true(value);
        return json_is_boolean(value) ? 0 : -EINVAL;
    case F_TEXT:
        return text_in(value, dst, field->size);
    case F_BYTES:
        return hex_in(value, dst, field->size, true);
    case F_RANGE:
        return range_in(value, dst);
    }
    return -EINVAL;
}

static int row_in(const char *table, const struct snapshot_field *fields, const json_t *object, void *row,
                  struct err *err) {
    if (!json_is_object(object))
        return err_set(err, EINVAL, "doctor.bad-snapshot", "the snapshot's \"%s\" is not what it should be", table);
    for (const struct snapshot_field *f = fields; f->name; f++) {
        const json_t *value = json_object_get(object, f->name);
        if (value && field_in(f, value, (char *)row + f->offset) < 0)
            return err_set(err, EINVAL, "doctor.bad-snapshot", "the snapshot's %s.%s has no value that it could have",
                           table, f->name);
    }
    return 0;
}

static int table_in(const struct snapshot_table *t, const json_t *array, struct snapshot *s, struct err *err) {
    size_t i;
    json_t *object;
    if (!array)
        return 0;
    if (!json_is_array(array) || json_array_size(array) > t->max)
        return err_set(err, EINVAL, "doctor.bad-snapshot", "the snapshot's \"%s\" is no list, or too long", t->name);
    json_array_foreach(array, i, object) {
        void *row = snapshot_push((char *)s + t->offset, (uint32_t *)((char *)s + t->count_offset),
                                  (uint32_t *)((char *)s + t->cap_offset), t->row_size, t->max);
        if (!row)
            return err_sys(err, ENOMEM, "doctor.bad-snapshot", "load a snapshot");
        int r = row_in(t->name, t->fields, object, row, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool range_is_in(struct snap_range range, uint32_t count) {
    return range.first <= count && range.count <= count - range.first;
}

static bool expr_is_sound(const struct snap_nft_expr *x) {
    return x->len <= 32 && x->sreg < 64 && x->dreg < 64;
}

static bool guest_is_in(const struct snapshot *s, const struct snap_guest *g) {
    return range_is_in(g->links, s->guest_links_count) && range_is_in(g->addrs, s->guest_addrs_count) &&
           range_is_in(g->routes, s->guest_routes_count) && range_is_in(g->neighs, s->guest_neighs_count) &&
           range_is_in(g->listeners, s->guest_listeners_count) && range_is_in(g->units, s->guest_units_count) &&
           range_is_in(g->chains, s->guest_chains_count) && range_is_in(g->rules, s->guest_rules_count) &&
           range_is_in(g->facts, s->guest_facts_count);
}

/* What rules rely on without looking again. */
static int check_references(const struct snapshot *s, struct err *err) {
    bool ok = true;
    for (uint32_t i = 0; i < s->links_count; i++)
        ok = ok && range_is_in(s->links[i].attrs, s->attrs_count);
    for (uint32_t i = 0; i < s->rules_count; i++)
        ok = ok && range_is_in(s->rules[i].exprs, s->exprs_count);
    for (uint32_t i = 0; i < s->sets_count; i++)
        ok = ok && range_is_in(s->sets[i].elems, s->elems_count);
    for (uint32_t i = 0; i < s->exprs_count; i++)
        ok = ok && expr_is_sound(&s->exprs[i]);
    for (uint32_t i = 0; i < s->guests_count; i++)
        ok = ok && guest_is_in(s, &s->guests[i]);
    for (uint32_t i = 0; i < s->guest_rules_count; i++)
        ok = ok && range_is_in(s->guest_rules[i].exprs, s->guest_exprs_count);
    for (uint32_t i = 0; i < s->guest_exprs_count; i++)
        ok = ok && expr_is_sound(&s->guest_exprs[i]);
    for (uint32_t i = 0; i < s->sets_count; i++)
        ok = ok && s->sets[i].key_len <= 32 && s->sets[i].data_len <= 16;
    return ok ? 0 : err_set(err, EINVAL, "doctor.bad-snapshot", "the snapshot refers to rows that it does not have");
}

int snapshot_from_json(const json_t *document, struct snapshot **ret, struct err *err) {
    _cleanup_snapshot_ struct snapshot *s = snapshot_new();
    const char *schema = json_string_value(json_object_get(document, "schema"));
    if (!s)
        return err_sys(err, ENOMEM, "doctor.bad-snapshot", "load a snapshot");
    if (!schema || strcmp(schema, SNAPSHOT_SCHEMA) != 0)
        return err_set(err, EINVAL, "doctor.bad-snapshot", "this is no snapshot of the doctor (schema \"%s\")",
                       SNAPSHOT_SCHEMA);
    int r = row_in("host", snap_host_fields, json_object_get(document, "host"), &s->host, err);
    for (const struct snapshot_table *t = snapshot_tables; r == 0 && t->name; t++)
        r = table_in(t, json_object_get(document, t->name), s, err);
    if (r == 0)
        r = check_references(s, err);
    if (r < 0)
        return r;
    *ret = s;
    s = NULL;
    return 0;
}
