/* A valid case in which values were exchanged: what bytes at random do not come to, as JSON and its schema stand before
 * it. The input is a list of changes: whereto in the document, then what. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/snapshot_fields.h"
#include "doctor_case.h"
#include "fuzz.h"

#define CHANGES_MAX 24
#define DEPTH_MAX 12
#define ROW_FIELDS 8

struct input {
    const uint8_t *data;
    size_t left;
};

static unsigned take(struct input *in) {
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->data++;
}

static json_int_t a_number(struct input *in) {
    static const json_int_t odd[] = {0,
                                     1,
                                     2,
                                     3,
                                     4,
                                     7,
                                     8,
                                     16,
                                     31,
                                     32,
                                     33,
                                     64,
                                     127,
                                     128,
                                     255,
                                     256,
                                     1023,
                                     1500,
                                     65535,
                                     65536,
                                     INT32_MAX,
                                     UINT32_MAX,
                                     -1,
                                     -2,
                                     -128,
                                     INT32_MIN,
                                     INT64_MAX,
                                     INT64_MIN,
                                     (json_int_t)1 << 32};
    unsigned byte = take(in);
    return byte < 200 ? odd[byte % (sizeof odd / sizeof *odd)] : (json_int_t)(take(in) << 8 | take(in));
}

static json_t *a_text(struct input *in) {
    static const char *const odd[] = {
        "",       "br0",     "lo",      "tap1",       "drop",     "accept",       "\x1b[31m",    "\xc3\xa9",
        "bridge", "tun",     "ipv4",    "00",         "deadbeef", "ffffffffffff", "192.168.0.2", "net/ipv4/ip_forward",
        "0",      "1",       "jump",    "masquerade", "cmp",      "payload",      "meta",        "immediate",
        "lookup", "bitwise", "verdict", "limit"};
    unsigned byte = take(in);
    if (byte < 250)
        return json_string(odd[byte % (sizeof odd / sizeof *odd)]);
    char text[400];
    memset(text, 'x', sizeof text);
    return json_stringn(text, byte == 250 ? sizeof text : (byte - 250) * 16);
}

static json_t *a_value(struct input *in) {
    switch (take(in) % 10) {
    case 0:
        return a_text(in);
    case 1:
        return json_boolean(take(in) % 2);
    case 2:
        return json_null();
    case 3:
        return json_array();
    case 4:
        return json_pack("[I,I]", a_number(in), a_number(in));
    case 5:
        return json_object();
    default:
        return json_integer(a_number(in));
    }
}

/* Of the sort that the field has, mostly. */
static json_t *a_field(struct input *in, const struct snapshot_field *field) {
    if (take(in) > 230)
        return a_value(in);
    switch (field->kind) {
    case F_BOOL:
        return json_boolean(take(in) % 2);
    case F_TEXT:
        return a_text(in);
    case F_BYTES: {
        char hex[513];
        memset(hex, take(in) % 2 ? 'f' : '0', sizeof hex);
        return json_stringn(hex, field->size * 2 < 512 ? field->size * 2 : 512);
    }
    case F_RANGE:
        return json_pack("[I,I]", (json_int_t)(take(in) % 8), (json_int_t)(take(in) % 8));
    case F_U8:
    case F_U16:
    case F_U32:
    case F_U64:
    case F_I32:
    case F_I64:
        return json_integer(a_number(in));
    }
    return json_null();
}

/* One more row in one of the snapshot's tables. */
static void add_row(struct input *in, json_t *document) {
    json_t *snapshot = json_object_get(document, take(in) % 4 ? "before" : "after"), *row = json_object();
    size_t tables = 0, fields = 0;
    while (snapshot_tables[tables].name)
        tables++;
    const struct snapshot_table *table = &snapshot_tables[take(in) % tables];
    while (table->fields[fields].name)
        fields++;
    for (unsigned i = 0; i < ROW_FIELDS && fields; i++) {
        const struct snapshot_field *field = &table->fields[take(in) % fields];
        json_object_set_new(row, field->name, a_field(in, field));
    }
    json_t *rows = json_object_get(snapshot, table->name);
    if (!json_is_array(rows)) {
        rows = json_array();
        json_object_set_new(snapshot, table->name, rows);
    }
    json_array_append_new(rows, row);
}

static void change_array(struct input *in, json_t *array) {
    size_t at = (take(in) << 8 | take(in)) % json_array_size(array);
    unsigned what = take(in) % 6;
    if (what == 0)
        json_array_remove(array, at);
    else if (what == 1)
        json_array_append_new(array, json_deep_copy(json_array_get(array, at)));
    else if (what == 2)
        json_array_clear(array);
    else
        json_array_set_new(array, at, a_value(in));
}

static const char *key_at(json_t *object, size_t n) {
    void *i = json_object_iter(object);
    while (n-- > 0)
        i = json_object_iter_next(object, i);
    return json_object_iter_key(i);
}

static void change_member(struct input *in, json_t *object, const char *key) {
    json_t *now = json_object_get(object, key);
    unsigned what = take(in) % 8;
    if (what == 0)
        json_object_del(object, key);
    else if (what == 1)
        json_object_set_new(object, key, a_value(in));
    else if (json_is_integer(now))
        json_object_set_new(
            object, key,
            json_integer(what < 4 ? a_number(in) : (json_int_t)((uint64_t)json_integer_value(now) + what - 5)));
    else if (json_is_string(now))
        json_object_set_new(object, key, a_text(in));
    else if (json_is_boolean(now))
        json_object_set_new(object, key, json_boolean(!json_is_true(now)));
}

static void change(struct input *in, json_t *document) {
    json_t *at = document;
    if (take(in) % 4 == 0) {
        add_row(in, document);
        return;
    }
    for (int depth = 0; depth < DEPTH_MAX; depth++) {
        if (json_is_array(at) && json_array_size(at)) {
            json_t *next = json_array_get(at, (take(in) << 8 | take(in)) % json_array_size(at));
            if (take(in) > 230 || !(json_is_object(next) || json_is_array(next))) {
                change_array(in, at);
                return;
            }
            at = next;
        } else if (json_is_object(at) && json_object_size(at)) {
            const char *key = key_at(at, take(in) % json_object_size(at));
            json_t *next = json_object_get(at, key);
            if (take(in) > 250 || !(json_is_object(next) || (json_is_array(next) && json_array_size(next)))) {
                change_member(in, at, key);
                return;
            }
            at = next;
        } else {
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    size_t len;
    const char *seed = doctor_case_seed(take(&in), &len);
    json_t *document = json_loadb(seed, len, 0, NULL);
    if (!document)
        abort();
    for (int i = 0; i < CHANGES_MAX && in.left; i++)
        change(&in, document);
    char *text = json_dumps(document, JSON_COMPACT);
    json_decref(document);
    if (text)
        doctor_case_exercise(text, strlen(text));
    free(text);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    uint64_t seed = number * 2654435761U + 1;
    size_t len = 16 + number % 200;
    for (size_t i = 0; i < len && i < size; i++) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        ret[i] = (uint8_t)(seed >> 56);
    }
    return len < size ? len : size;
}
