#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/doctor.h"
#include "doctor/probe/probe_json.h"
#include "doctor/snapshot_json.h"

#define CASE_SCHEMA "doctor-case/1"
#define TARGETS_MAX 4096

/* --- out --- */

static json_t *name_out(const char *name) {
    char hex[2 * 64 + 1];
    if (str_is_utf8(name, strlen(name)))
        return json_string(name);
    str_hex(name, strnlen(name, 64), hex);
    return json_pack("{s:s}", "hex", hex);
}

static json_t *target_out(const struct target *t, int probe_index) {
    char ip[NET_IP_TEXT], mac[NET_MAC_TEXT];
    net_format_ip(t->ip, ip);
    net_format_mac(t->mac, mac);
    return json_pack("{s:o,s:o,s:s,s:s,s:o,s:i,s:b,s:b,s:b,s:b,s:i}", "tap", name_out(t->tap), "bridge",
                     name_out(t->bridge), "vm_id", t->vm_id, "ip", ip, "mac",
                     t->has_mac ? json_string(mac) : json_null(), "port", t->port, "named", t->named, "bridge_given",
                     t->bridge_given, "ip_given", t->ip_given, "mac_given", t->mac_given, "probe", probe_index);
}

char *doctor_case_save(const struct doctor_case *c, size_t *ret_len) {
    json_t *targets = json_array();
    for (uint32_t i = 0; i < c->count; i++)
        json_array_append_new(targets, target_out(&c->targets[i], c->probe_indexes[i]));
    json_t *document = json_pack(
        "{s:s,s:o,s:o,s:o,s:o,s:b,s:I}", "schema", CASE_SCHEMA, "before", snapshot_to_json(c->before), "after",
        c->after ? snapshot_to_json(c->after) : json_null(), "probe", c->probe ? probe_to_json(c->probe) : json_null(),
        "targets", targets, "wanted_probe", c->wanted_probe, "duration_ms", (json_int_t)c->duration_ms);
    char *text = document ? json_dumps(document, JSON_INDENT(1)) : NULL;
    json_decref(document);
    if (text)
        *ret_len = strlen(text);
    return text;
}

/* --- in --- */

static int bad(const char *what, struct err *err) {
    return err_set(err, EINVAL, "doctor.bad-snapshot", "the file's %s is missing or not what it should be", what);
}

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool name_in(const json_t *value, char *dst, size_t size) {
    const char *hex = json_string_value(json_object_get(value, "hex"));
    if (json_is_string(value))
        return str_copy(dst, size, json_string_value(value));
    if (!hex || strlen(hex) % 2 || strlen(hex) / 2 >= size)
        return false;
    for (size_t i = 0; hex[i]; i += 2) {
        if (digit(hex[i]) < 0 || digit(hex[i + 1]) < 0)
            return false;
        dst[i / 2] = (char)(digit(hex[i]) << 4 | digit(hex[i + 1]));
    }
    return true;
}

static bool target_in(const json_t *object, struct target *t, int *ret_probe) {
    const char *ip = json_string_value(json_object_get(object, "ip"));
    const char *mac = json_string_value(json_object_get(object, "mac"));
    const char *vm = json_string_value(json_object_get(object, "vm_id"));
    json_int_t port = json_integer_value(json_object_get(object, "port"));
    if (!name_in(json_object_get(object, "tap"), t->tap, sizeof t->tap) ||
        !name_in(json_object_get(object, "bridge"), t->bridge, sizeof t->bridge) || !ip ||
        net_parse_ip(ip, &t->ip) < 0 || port < 0 || port > 65535 || !str_copy(t->vm_id, sizeof t->vm_id, vm ? vm : ""))
        return false;
    if (mac && net_parse_mac(mac, &t->mac) < 0)
        return false;
    t->has_mac = mac != NULL;
    t->port = (uint16_t)port;
    t->named = json_is_true(json_object_get(object, "named"));
    t->bridge_given = json_is_true(json_object_get(object, "bridge_given"));
    t->ip_given = json_is_true(json_object_get(object, "ip_given"));
    t->mac_given = json_is_true(json_object_get(object, "mac_given"));
    *ret_probe = (int)json_integer_value(json_object_get(object, "probe"));
    return true;
}

static int targets_in(const json_t *array, struct doctor_case *c, struct err *err) {
    size_t i, count = json_array_size(array);
    json_t *object;
    if (!json_is_array(array) || count > TARGETS_MAX)
        return bad("list of targets", err);
    c->targets = calloc(count ? count : 1, sizeof *c->targets);
    c->probe_indexes = calloc(count ? count : 1, sizeof *c->probe_indexes);
    if (!c->targets || !c->probe_indexes)
        return err_sys(err, ENOMEM, "doctor.failed", "load a file");
    json_array_foreach(array, i, object) {
        if (!target_in(object, &c->targets[i], &c->probe_indexes[i]))
            return bad("target", err);
        c->count++;
    }
    return 0;
}

static int case_in(const json_t *document, struct doctor_case *c, struct err *err) {
    const char *schema = json_string_value(json_object_get(document, "schema"));
    const json_t *after = json_object_get(document, "after"), *probe = json_object_get(document, "probe");
    if (!schema || strcmp(schema, CASE_SCHEMA) != 0)
        return err_set(err, EINVAL, "doctor.bad-snapshot", "this is no file of the doctor (schema \"%s\")",
                       CASE_SCHEMA);
    int r = snapshot_from_json(json_object_get(document, "before"), &c->before, err);
    if (r == 0 && json_is_object(after))
        r = snapshot_from_json(after, &c->after, err);
    if (r == 0 && json_is_object(probe))
        r = probe_from_json(probe, &c->probe, err);
    if (r == 0)
        r = targets_in(json_object_get(document, "targets"), c, err);
    c->wanted_probe = json_is_true(json_object_get(document, "wanted_probe"));
    c->duration_ms = json_integer_value(json_object_get(document, "duration_ms"));
    return r;
}

int doctor_case_load(const char *text, size_t len, struct doctor_case **ret, struct err *err) {
    json_error_t error;
    _cleanup_doctor_case_ struct doctor_case *c = calloc(1, sizeof *c);
    if (!c)
        return err_sys(err, ENOMEM, "doctor.failed", "load a file");
    json_t *document = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!document)
        return err_set(err, EINVAL, "doctor.bad-snapshot", "line %d: %s", error.line, error.text);
    int r = case_in(document, c, err);
    json_decref(document);
    if (r == 0)
        r = doctor_case_judge(c, err);
    if (r < 0)
        return r;
    *ret = c;
    c = NULL;
    return 0;
}
