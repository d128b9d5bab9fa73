#include <string.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"

void route_health(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    api_json(req, 200,
             json_pack("{s:s, s:s, s:I}", "status", "ok", "version", MC_VERSION, "uptime_s",
                       (json_int_t)((time_realtime_ms() - api->started_ms) / 1000)));
}

struct counts {
    unsigned state[VM_STATE_COUNT];
    unsigned unreachable;
};

static void count(const struct vm *vms, size_t n, struct counts *ret_counts) {
    for (size_t i = 0; i < n; i++) {
        ret_counts->state[vms[i].state]++;
        ret_counts->unreachable += vms[i].reachable == 0;
    }
}

static int count_vms(struct api *api, struct counts *ret_counts, struct err *err) {
    _cleanup_free_ struct vm *vms = NULL;
    size_t n;
    int r = store_vm_list(api->store, NULL, STORE_LIVE, &vms, &n, err);
    if (r == 0)
        count(vms, n, ret_counts);
    return r;
}

void route_metrics(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct counts counts = {0};
    struct err err = {0};
    if (count_vms(api, &counts, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    struct strbuf text = {.max = 16384};
    strbuf_addf(&text, "# TYPE mc_vms gauge\n");
    for (int i = 0; i < VM_STATE_COUNT; i++)
        strbuf_addf(&text, "mc_vms{state=\"%s\"} %u\n", vm_state_name((enum vm_state)i), counts.state[i]);
    strbuf_addf(&text, "# TYPE mc_vms_unreachable gauge\nmc_vms_unreachable %u\n", counts.unreachable);
    strbuf_addf(&text, "# TYPE mc_vms_paused gauge\nmc_vms_paused %u\n", vms_halted(api->vms));
    strbuf_addf(&text, "# TYPE mc_state_free_bytes gauge\nmc_state_free_bytes %llu\n",
                (unsigned long long)vms_disk(api->vms).free_bytes);
    strbuf_addf(&text, "# TYPE mc_relay_connections gauge\nmc_relay_connections %u\n", relay_count(api->relay));
    strbuf_addf(&text, "# TYPE mc_relay_buffered_bytes gauge\nmc_relay_buffered_bytes %zu\n",
                relay_buffered_bytes(api->relay));
    struct http_response response = {
        .content_type = "text/plain; version=0.0.4; charset=utf-8", .body = text.data, .len = text.len};
    http_respond(req, 200, &response);
    strbuf_free(&text);
}

static json_t *vmm_json(struct api *api) {
    struct vmm_choice choice;
    struct err err = {0};
    if (vms_vmm(api->vms, &choice, &err) < 0)
        return json_pack("{s:n, s:n, s:s}", "name", "accel", "reason", err.detail);
    return json_pack("{s:s, s:s, s:s}", "name", choice.ops->name, "accel", choice.accel, "reason", choice.reason);
}

static json_t *image_json(struct api *api) {
    struct err err = {0};
    char name[96];
    if (vms_image(api->vms, name, sizeof name, &err) < 0)
        return json_pack("{s:n, s:s}", "name", "problem", err.detail);
    return json_pack("{s:s, s:n}", "name", name, "problem");
}

static json_t *warm_json(struct api *api) {
    struct vms_warm warm[VM_TYPE_COUNT];
    json_t *all = json_array();
    size_t n = vms_warm(api->vms, warm);
    for (size_t i = 0; i < n; i++) {
        const struct vms_warm *w = &warm[i];
        char at[TIME_RFC3339_SIZE] = "";
        if (w->is_ready)
            time_format_rfc3339(w->made_ms, at);
        json_array_append_new(all, json_pack("{s:s, s:b, s:s?, s:s?, s:I, s:I, s:s?, s:I, s:i, s:i, s:s?}", "type",
                                             vm_type_name(w->type), "ready", w->is_ready, "template",
                                             w->is_ready ? w->name : NULL, "image", w->is_ready ? w->image : NULL,
                                             "memory_bytes", (json_int_t)w->ram_bytes, "disk_bytes",
                                             (json_int_t)w->disk_bytes, "made_at", w->is_ready ? at : NULL, "took_ms",
                                             (json_int_t)w->took_ms, "pool_ready", (int)w->pool_ready, "pool_wanted",
                                             (int)w->pool_wanted, "problem", w->is_ready ? NULL : w->words));
    }
    return all;
}

static json_t *disk_json(struct api *api) {
    struct vms_disk disk = vms_disk(api->vms);
    char words[512];
    snprintf(words, sizeof words, "it is full: VMs stop when they write, until %llu MiB are free",
             (unsigned long long)(disk.enough_bytes >> 20) + 1);
    return json_pack("{s:s, s:I, s:o}", "folder", vms_state_dir(api->vms), "free_mib",
                     (json_int_t)(disk.free_bytes >> 20), "problem", disk.is_full ? json_string(words) : json_null());
}

const char *api_network_problem(const struct network_status *net) {
    if (net->bridge_index == 0)
        return "the bridge is gone: no VM has a network until the controller is started again, which makes it anew";
    if (!net->up)
        return "the bridge is down: set it up, or start the controller again";
    if (!net->address_present)
        return "the bridge has lost its address, the VMs' gateway: start the controller again, which gives it back";
    return NULL;
}

json_t *api_network_json(const struct network_status *net) {
    char address[NET_IP_TEXT], mac[NET_MAC_TEXT];
    net_format_ip(net->address.address, address);
    net_format_mac(net->mac, mac);
    return json_pack("{s:s, s:s, s:s, s:i, s:s, s:i, s:s, s:b, s:b, s:b, s:s?}", "namespace", net->namespace, "bridge",
                     net->bridge, "address", address, "prefix_length", net->address.length, "mac", mac, "ports",
                     (int)net->ports, "uplink", net->uplink, "forwarding", net->forward, "masquerade", net->masquerade,
                     "isolated", net->isolated, "problem", api_network_problem(net));
}

static void answer_status(struct api *api, struct http_request *req, const struct api_inventory *inventory) {
    struct counts counts = {0};
    count(inventory->vms, inventory->n_vms, &counts);
    json_t *states = json_object();
    for (int i = 0; i < VM_STATE_COUNT; i++)
        json_object_set_new(states, vm_state_name((enum vm_state)i), json_integer(counts.state[i]));
    api_json(req, 200,
             json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:i, s:i, s:i, s:o}", "version", MC_VERSION, "url",
                       api->base_url, "vmm", vmm_json(api), "image", image_json(api), "warm", warm_json(api), "network",
                       api_network_json(&inventory->net), "disk", disk_json(api), "vms", states, "unreachable",
                       (int)counts.unreachable, "paused", (int)vms_halted(api->vms), "desktops",
                       (int)relay_count(api->relay), "findings", api_findings_json(api, inventory)));
}

void route_status(struct http_request *req, const struct http_match *match, void *userdata) {
    api_inventory_take(userdata, req, answer_status);
}
