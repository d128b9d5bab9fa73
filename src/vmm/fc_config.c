#include "vmm/fc_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"

/* Any will do: every Firecracker has a vsock of its own. Source: vsock(7), 0 to 2 are taken. */
#define GUEST_CID 3
#define CONFIG_MAX (256 * 1024)

/* Where each part of the file goes. The order is that in which a failure says most: a log first, the NIC before what
 * needs nothing of the host. `id`: the part is a list, and each item goes to path/<its id>. */
static const struct {
    const char *key, *path, *id;
} parts[] = {
    {"logger", "/logger", NULL},
    {"metrics", "/metrics", NULL},
    {"machine-config", "/machine-config", NULL},
    {"boot-source", "/boot-source", NULL},
    {"drives", "/drives", "drive_id"},
    {"network-interfaces", "/network-interfaces", "iface_id"},
    {"entropy", "/entropy", NULL},
    {"vsock", "/vsock", NULL},
};

static json_t *path_in(const char *folder, const char *name) {
    return json_sprintf("%s/" FC_ROOT "/%s", folder, name);
}

static json_t *drive(const char *id, json_t *path, bool is_root, bool read_only) {
    return json_pack("{s:s, s:o, s:b, s:b}", "drive_id", id, "path_on_host", path, "is_root_device", is_root,
                     "is_read_only", read_only);
}

static json_t *drives(const char *folder, bool shared_base) {
    json_t *list = json_array();
    if (shared_base) {
        json_array_append_new(list, drive("rootfs", path_in(folder, FC_BASE), true, true));
        json_array_append_new(list, drive("overlay", path_in(folder, FC_OVERLAY), false, false));
    } else {
        json_array_append_new(list, drive("rootfs", path_in(folder, FC_DISK), true, false));
    }
    return list;
}

/* Firecracker itself adds "root=/dev/vda ro" (or rw). */
static json_t *boot_source(const struct vmm_spec *spec, bool shared_base) {
    return json_pack("{s:o, s:o, s:o}", "kernel_image_path", path_in(spec->folder, FC_KERNEL), "initrd_path",
                     path_in(spec->folder, FC_INITRD), "boot_args",
                     json_sprintf("%s reboot=k%s", spec->cmdline, shared_base ? " mc.overlay=/dev/vdb" : ""));
}

json_t *fc_config_make(const struct vmm_spec *spec, bool shared_base) {
    char mac[NET_MAC_TEXT];
    net_format_mac(spec->vm->mac, mac);
    return json_pack("{s:o, s:o, s:[{s:s, s:s, s:s}], s:{s:i, s:i}, s:{}, s:{s:i, s:o}, s:{s:o, s:s, s:b}, s:{s:o}}",
                     "boot-source", boot_source(spec, shared_base), "drives", drives(spec->folder, shared_base),
                     "network-interfaces", "iface_id", FC_NIC, "guest_mac", mac, "host_dev_name", spec->vm->tap,
                     "machine-config", "vcpu_count", (int)spec->vm->vcpus, "mem_size_mib", (int)spec->vm->memory_mib,
                     "entropy", "vsock", "guest_cid", GUEST_CID, "uds_path", path_in(spec->folder, FC_VSOCK), "logger",
                     "log_path", path_in(spec->folder, FC_LOG), "level", "Info", "show_level", 1, "metrics",
                     "metrics_path", path_in(spec->folder, FC_METRICS));
}

/* "FOLDER/root/vmlinux" becomes "vmlinux": what Firecracker sees, jailed or not. */
static json_t *relative(const json_t *object, const char *folder) {
    char prefix[1024];
    const char *key;
    json_t *value, *copy = json_deep_copy(object);
    size_t len = (size_t)snprintf(prefix, sizeof prefix, "%s/" FC_ROOT "/", folder);
    json_object_foreach(copy, key, value) {
        const char *text = json_string_value(value);
        if (text && len < sizeof prefix && strncmp(text, prefix, len) == 0)
            json_object_set_new(copy, key, json_string(text + len));
    }
    return copy;
}

static int add(struct fc_request *requests, size_t *n, const char *path, const char *id, json_t *body) {
    if (*n == FC_PARTS_MAX || !body) {
        json_decref(body);
        return -EINVAL;
    }
    struct fc_request *rq = &requests[(*n)++];
    *rq = (struct fc_request){.method = "PUT", .body = body};
    return snprintf(rq->path, sizeof rq->path, "%s%s%s", path, id ? "/" : "", id ? id : "") < (int)sizeof rq->path
               ? 0
               : -EINVAL;
}

int fc_config_requests(const json_t *config, const char *folder, struct fc_request *ret_requests, size_t *ret_n) {
    struct fc_request requests[FC_PARTS_MAX];
    size_t n = 0, index;
    int r = json_is_object(config) ? 0 : -EINVAL;
    for (size_t i = 0; r == 0 && i < sizeof parts / sizeof *parts; i++) {
        json_t *part = json_object_get(config, parts[i].key), *item;
        if (!parts[i].id) {
            r = json_is_object(part) ? add(requests, &n, parts[i].path, NULL, relative(part, folder)) : -EINVAL;
            continue;
        }
        r = json_is_array(part) ? 0 : -EINVAL;
        json_array_foreach(part, index, item) {
            const char *id = json_string_value(json_object_get(item, parts[i].id));
            if (r == 0)
                r = id ? add(requests, &n, parts[i].path, id, relative(item, folder)) : -EINVAL;
        }
    }
    if (r == 0)
        r = add(requests, &n, "/actions", NULL, json_pack("{s:s}", "action_type", "InstanceStart"));
    for (size_t i = 0; r < 0 && i < n; i++)
        json_decref(requests[i].body);
    if (r < 0)
        return r;
    memcpy(ret_requests, requests, n * sizeof *requests);
    *ret_n = n;
    return 0;
}

int fc_config_read(const char *folder, struct fc_request *ret_requests, size_t *ret_n, struct err *err) {
    char path[1024];
    _cleanup_free_ char *text = NULL;
    size_t len;
    snprintf(path, sizeof path, "%s/vm-config.json", folder);
    int r = file_read(path, CONFIG_MAX, &text, &len);
    if (r < 0)
        return err_sys(err, -r, "vmm.start", "read %s", path);
    json_t *config = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    r = fc_config_requests(config, folder, ret_requests, ret_n);
    json_decref(config);
    return r < 0 ? err_set(err, -r, "vmm.start", "%s is not a machine as the controller writes it", path) : 0;
}

bool fc_version_is_at_least(const char *version, unsigned major, unsigned minor) {
    unsigned long its_major, its_minor;
    char *end;
    version += *version == 'v';
    its_major = strtoul(version, &end, 10);
    if (*end != '.')
        return false;
    its_minor = strtoul(end + 1, &end, 10);
    return its_major > major || (its_major == major && its_minor >= minor);
}
