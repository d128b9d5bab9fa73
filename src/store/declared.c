#include "store/declared.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"

#define FILE_NAME "declared.json"
#define FILE_MAX 4096
#define PATH_SIZE 512

static json_t *network_to_json(const struct declared_network *n) {
    char ip[NET_IP_TEXT], address[NET_IP_TEXT + 4];
    net_format_ip(n->address.address, ip);
    snprintf(address, sizeof address, "%s/%u", ip, n->address.length);
    return json_pack("{s:s, s:s, s:s, s:s, s:b}", "namespace", n->namespace, "bridge", n->bridge, "address", address,
                     "uplink", n->uplink, "masquerade", n->masquerade);
}

/* {"store": "/var/lib/…/master-controller.db", "ports": {"cli": 0, "browser": 6080}, "network": {"namespace": "",
 * "bridge": "br0", "address": "192.168.0.1/16", "uplink": "eth0", "masquerade": true}} */
int declared_write(const char *state_dir, const struct declared *declared, struct err *err) {
    char path[PATH_SIZE];
    json_t *ports = json_object();
    for (int type = 0; type < VM_TYPE_COUNT; type++)
        json_object_set_new(ports, vm_type_name((enum vm_type)type), json_integer(declared->port[type]));
    json_t *root = json_pack("{s:s, s:o, s:o}", "store", declared->store_file, "ports", ports, "network",
                             network_to_json(&declared->network));
    _cleanup_free_ char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    int n = snprintf(path, sizeof path, "%s/" FILE_NAME, state_dir);
    int r = !text ? -ENOMEM : n >= (int)sizeof path ? -ENAMETOOLONG : 0;
    if (r == 0)
        r = file_write_atomic(path, text, strlen(text), 0644);
    return r < 0 ? err_sys(err, -r, "store.declare", "write %s", path) : 0;
}

static bool take_text(json_t *object, const char *key, char *dst, size_t size) {
    json_t *text = json_object_get(object, key);
    return json_is_string(text) && str_copy(dst, size, json_string_value(text));
}

static bool take_network(json_t *object, struct declared_network *ret) {
    char address[NET_IP_TEXT + 4];
    json_t *masquerade = json_object_get(object, "masquerade");
    ret->masquerade = json_is_true(masquerade);
    return json_is_boolean(masquerade) && take_text(object, "namespace", ret->namespace, sizeof ret->namespace) &&
           take_text(object, "bridge", ret->bridge, sizeof ret->bridge) &&
           take_text(object, "uplink", ret->uplink, sizeof ret->uplink) &&
           take_text(object, "address", address, sizeof address) && net_parse_prefix(address, &ret->address) == 0;
}

static int take(json_t *root, struct declared *ret) {
    json_t *store = json_object_get(root, "store"), *ports = json_object_get(root, "ports");
    json_t *network = json_object_get(root, "network"); /* one that was written by an older daemon has none */
    if (!json_is_string(store) || *json_string_value(store) != '/' ||
        !str_copy(ret->store_file, sizeof ret->store_file, json_string_value(store)))
        return -EBADMSG;
    for (int type = 0; type < VM_TYPE_COUNT; type++) {
        json_t *port = json_object_get(ports, vm_type_name((enum vm_type)type));
        if (!json_is_integer(port) || json_integer_value(port) < 0 || json_integer_value(port) > UINT16_MAX)
            return -EBADMSG;
        ret->port[type] = (uint16_t)json_integer_value(port);
    }
    return !network || take_network(network, &ret->network) ? 0 : -EBADMSG;
}

int declared_read(const char *state_dir, struct declared *ret) {
    struct declared usual = {.store_file = ""}, found;
    struct config config;
    char path[PATH_SIZE];
    _cleanup_free_ char *text = NULL;
    size_t len = 0;
    config_defaults(&config);
    for (int type = 0; type < VM_TYPE_COUNT; type++)
        usual.port[type] = config.vm.type[type].port;
    if (snprintf(usual.store_file, sizeof usual.store_file, "%s/master-controller.db", state_dir) >=
            (int)sizeof usual.store_file ||
        snprintf(path, sizeof path, "%s/" FILE_NAME, state_dir) >= (int)sizeof path)
        return -ENAMETOOLONG;
    found = usual;
    *ret = usual;
    int r = file_read(path, FILE_MAX, &text, &len);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    r = take(root, &found);
    json_decref(root);
    if (r == 0)
        *ret = found;
    return r;
}
