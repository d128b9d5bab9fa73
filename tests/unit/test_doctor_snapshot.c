/* Snapshots and cases as JSON: everything comes back, garbage is refused. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/doctor.h"
#include "doctor/snapshot_fields.h"
#include "doctor/snapshot_json.h"

/* Every byte of a row belongs to a field, but for padding in front of an aligned one. */
static void check_fields(const struct snapshot_field *fields, size_t row_size) {
    size_t at = 0;
    for (const struct snapshot_field *f = fields; f->name; f++) {
        assert_true(f->offset >= at);
        assert_true(f->offset - at < 8);
        at = f->offset + f->size;
    }
    assert_true(row_size >= at && row_size - at < 8);
}

static void test_no_member_is_forgotten(void **state) {
    check_fields(snap_host_fields, sizeof(struct snap_host));
    for (const struct snapshot_table *t = snapshot_tables; t->name; t++)
        check_fields(t->fields, t->row_size);
}

static void fill_row(const struct snapshot_field *fields, char *row, unsigned seed) {
    for (const struct snapshot_field *f = fields; f->name; f++) {
        char *at = row + f->offset;
        switch (f->kind) {
        case F_BOOL:
            *(bool *)at = true;
            break;
        case F_TEXT:
            for (size_t i = 0; i + 1 < f->size; i++)
                at[i] = (char)('a' + (i + seed) % 26);
            break;
        case F_RANGE:
            break;
        case F_U8: /* lengths and registers are checked */
            *at = (char)(1 + seed % 15);
            break;
        case F_U16:
        case F_U32:
        case F_U64:
        case F_I32:
        case F_I64:
        case F_BYTES:
            for (size_t i = 0; i < f->size; i++)
                at[i] = (char)(1 + (i * 7 + seed) % 120);
            break;
        }
    }
}

static struct snapshot *full_snapshot(void) {
    struct snapshot *s = snapshot_new();
    fill_row(snap_host_fields, (char *)&s->host, 3);
    for (const struct snapshot_table *t = snapshot_tables; t->name; t++)
        for (unsigned n = 0; n < 3; n++) {
            char *row = snapshot_push((char *)s + t->offset, (uint32_t *)((char *)s + t->count_offset),
                                      (uint32_t *)((char *)s + t->cap_offset), t->row_size, t->max);
            assert_non_null(row);
            fill_row(t->fields, row, n);
        }
    s->links[1].attrs = (struct snap_range){1, 2};
    s->rules[2].exprs = (struct snap_range){0, 3};
    s->sets[0].elems = (struct snap_range){3, 0};
    return s;
}

static void test_round_trip(void **state) {
    struct snapshot *s = full_snapshot(), *back = NULL;
    json_t *document = snapshot_to_json(s);
    assert_int_equal(snapshot_from_json(document, &back, NULL), 0);
    assert_memory_equal(&s->host, &back->host, sizeof s->host);
    for (const struct snapshot_table *t = snapshot_tables; t->name; t++) {
        const char *a = *(char **)((char *)s + t->offset), *b = *(char **)((char *)back + t->offset);
        assert_int_equal(*(uint32_t *)((char *)back + t->count_offset), 3);
        assert_memory_equal(a, b, 3 * t->row_size);
    }
    json_decref(document);
    snapshot_free(s);
    snapshot_free(back);
}

/* A device's name is bytes, not text. */
static void test_odd_names(void **state) {
    struct snapshot *s = snapshot_new(), *back = NULL;
    struct snap_link *link = SNAP_PUSH(s, links, 10);
    memcpy(link->name, "t\xff\x01\"\\", 5);
    json_t *document = snapshot_to_json(s);
    char *text = json_dumps(document, 0);
    json_t *again = json_loads(text, 0, NULL);
    assert_non_null(again);
    assert_int_equal(snapshot_from_json(again, &back, NULL), 0);
    assert_memory_equal(back->links[0].name, link->name, sizeof link->name);
    free(text);
    json_decref(document);
    json_decref(again);
    snapshot_free(s);
    snapshot_free(back);
}

static void refuse(const char *text) {
    struct doctor_case *c = NULL;
    struct err err = {0};
    assert_true(doctor_case_load(text, strlen(text), &c, &err) < 0);
    assert_null(c);
    assert_string_equal(err.code, "doctor.bad-snapshot");
}

static void refuse_snapshot(const char *members) {
    char text[1024];
    snprintf(
        text, sizeof text,
        "{\"schema\":\"doctor-case/1\",\"targets\":[],\"before\":{\"schema\":\"doctor-snapshot/1\",\"host\":{},%s}}",
        members);
    refuse(text);
}

static void test_garbage(void **state) {
    refuse("");
    refuse("[]");
    refuse("{\"schema\":\"doctor-case/1\"}");
    refuse("{\"schema\":\"other\"}");
    refuse_snapshot("\"links\":7");
    refuse_snapshot("\"links\":[7]");
    refuse_snapshot("\"links\":[{\"index\":\"x\"}]");
    refuse_snapshot("\"links\":[{\"index\":99999999999}]");
    refuse_snapshot("\"links\":[{\"name\":\"a-name-of-many-characters\"}]");
    refuse_snapshot("\"links\":[{\"name\":\"a\\u0000b\"}]");
    refuse_snapshot("\"links\":[{\"mac\":\"00\"}]");
    refuse_snapshot("\"links\":[{\"attrs\":[0,1]}]");
    refuse_snapshot("\"links\":[{\"attrs\":[4294967295,2]}]");
    refuse_snapshot("\"rules\":[{\"exprs\":[1,0]}]");
    refuse_snapshot("\"exprs\":[{\"len\":200}]");
    refuse_snapshot("\"exprs\":[{\"sreg\":200}]");
    refuse_snapshot("\"sets\":[{\"key_len\":100}]");
}

/* Cut anywhere, it is an error and nothing worse. */
static void test_cut(void **state) {
    struct snapshot *s = full_snapshot();
    json_t *document = json_pack("{s:s,s:o,s:[]}", "schema", "doctor-case/1", "before", snapshot_to_json(s), "targets");
    char *text = json_dumps(document, JSON_COMPACT);
    size_t len = strlen(text);
    struct doctor_case *c = NULL;
    assert_int_equal(doctor_case_load(text, len, &c, NULL), 0);
    doctor_case_free(c);
    for (size_t cut = 0; cut < len; cut += 97) {
        c = NULL;
        assert_true(doctor_case_load(text, cut, &c, NULL) < 0);
        assert_null(c);
    }
    free(text);
    json_decref(document);
    snapshot_free(s);
}

static void test_push_has_a_limit(void **state) {
    struct snapshot *s = snapshot_new();
    for (int i = 0; i < 5; i++)
        assert_true((SNAP_PUSH(s, gaps, 4) != NULL) == (i < 4));
    snapshot_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_member_is_forgotten),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_odd_names),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_push_has_a_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
