/* What an operator sees at a glance: who hangs on which port of the bridge, and all that is not as it should be. Taken
 * from the store and the kernel anew each time, so nothing of it can be stale. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/fd.h"

struct look {
    struct api *api;
    struct http_request *req; /* NULL: the caller has gone */
    api_inventory_fn *then;
    struct api_inventory found;
    int r;
    struct err err;
};

struct workers *api_lookers(struct api *api) {
    if (!api->lookers)
        workers_new(api->loop, "mc-picture", 1, &api->lookers, NULL);
    return api->lookers;
}

/* On a worker's thread. */
static void look(void *userdata) {
    struct look *l = userdata;
    l->r = network_look(l->api->network, &l->found.net, &l->found.ports, &l->found.n_ports, &l->err);
}

static void looked(void *userdata) {
    struct look *l = userdata;
    if (l->r == 0)
        l->r = store_vm_list(l->api->store, NULL, STORE_LIVE, &l->found.vms, &l->found.n_vms, &l->err);
    if (l->req && l->r < 0)
        api_fail(l->req, &l->err);
    else if (l->req)
        l->then(l->api, l->req, &l->found);
    api_inventory_done(&l->found);
    free(l);
}

static void on_gone(struct http_request *req, void *userdata) {
    ((struct look *)userdata)->req = NULL;
}

void api_inventory_take(struct api *api, struct http_request *req, api_inventory_fn *then) {
    struct look *l = calloc(1, sizeof *l);
    if (l)
        *l = (struct look){.api = api, .req = req, .then = then};
    if (!l || !api_lookers(api) || workers_submit(api->lookers, look, looked, l) < 0) {
        free(l);
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
        return;
    }
    http_request_defer(req, on_gone, l);
}

void api_inventory_done(struct api_inventory *inventory) {
    free(inventory->vms);
    free(inventory->ports);
    *inventory = (struct api_inventory){0};
}

/* ---- ports ---- */

static int by_id(const void *a, const void *b) {
    return strcmp(((const struct vm *)a)->id, ((const struct vm *)b)->id);
}

static int by_port_vm(const void *a, const void *b) {
    const struct network_port *const *p = a, *const *q = b;
    return strcmp((*p)->vm_id, (*q)->vm_id);
}

/* A VM that is being made or ended, or sleeps, may have a TAP that is half there. */
static bool needs_port(const struct vm *vm) {
    return vm->state == VM_STATE_BOOTING || vm->state == VM_STATE_RUNNING;
}

/* vm: whose port it is; NULL: nobody's who lives. */
static const char *port_problem(const struct network_port *port, const struct vm *vm) {
    if (!*port->vm_id)
        return NULL;
    if (!vm)
        return "is left over: its VM does not live any more";
    if (!needs_port(vm))
        return NULL;
    if (port->number == 0)
        return "was taken off the bridge: nothing reaches the VM";
    if (!port->up)
        return "is down: nothing reaches the VM";
    if (!port->carrier)
        return "is held by nobody: the VM's process does not use it";
    if (!port->forwards)
        return "is blocked by the bridge: no frame passes it";
    return NULL;
}

static const char gone[] = "is gone: the VM has no network";

static json_t *text_or_null(const char *text) {
    return text && *text ? json_string(text) : json_null();
}

static json_t *port_json(const struct network_port *port, const char *problem) {
    return json_pack("{s:s, s:s, s:o, s:o, s:b, s:b, s:b, s:o}", "name", port->name, "kind", port->kind, "number",
                     port->number ? json_integer(port->number) : json_null(), "vm_id", text_or_null(port->vm_id), "up",
                     port->up, "carrier", port->carrier, "forwards", port->forwards, "problem", text_or_null(problem));
}

/* Which VM has which port; sorted, so that a thousand of each are joined in a moment. */
struct joined {
    struct vm *vms; /* by id */
    size_t n_vms;
    const struct network_port **ports; /* those of VMs, by the VM's id */
    size_t n_ports;
};

static int join(const struct api_inventory *inventory, struct joined *ret) {
    struct joined j = {.n_vms = inventory->n_vms,
                       .vms = calloc(inventory->n_vms + 1, sizeof *j.vms),
                       .ports = calloc(inventory->n_ports + 1, sizeof *j.ports)};
    if (!j.vms || !j.ports) {
        free(j.vms);
        free(j.ports);
        return -ENOMEM;
    }
    if (j.n_vms > 0)
        memcpy(j.vms, inventory->vms, j.n_vms * sizeof *j.vms);
    for (size_t i = 0; i < inventory->n_ports; i++)
        if (*inventory->ports[i].vm_id)
            j.ports[j.n_ports++] = &inventory->ports[i];
    qsort(j.vms, j.n_vms, sizeof *j.vms, by_id);
    qsort(j.ports, j.n_ports, sizeof *j.ports, by_port_vm);
    *ret = j;
    return 0;
}

static void join_done(struct joined *j) {
    free(j->vms);
    free(j->ports);
}

static const struct vm *vm_of(const struct joined *j, const struct network_port *port) {
    struct vm key;
    memcpy(key.id, port->vm_id, sizeof key.id);
    return bsearch(&key, j->vms, j->n_vms, sizeof *j->vms, by_id);
}

static const struct network_port *port_of(const struct joined *j, const struct vm *vm) {
    struct network_port key;
    const struct network_port *at = &key, **found;
    memcpy(key.vm_id, vm->id, sizeof key.vm_id);
    found = bsearch(&at, j->ports, j->n_ports, sizeof *j->ports, by_port_vm);
    return found ? *found : NULL;
}

json_t *api_ports_json(const struct api_inventory *inventory) {
    struct joined j;
    json_t *list = json_array();
    if (join(inventory, &j) < 0)
        return list;
    for (size_t i = 0; i < inventory->n_ports; i++) {
        const struct network_port *port = &inventory->ports[i];
        json_array_append_new(list, port_json(port, port_problem(port, vm_of(&j, port))));
    }
    for (size_t i = 0; i < j.n_vms; i++) {
        if (!needs_port(&j.vms[i]) || port_of(&j, &j.vms[i]))
            continue;
        struct network_port missing = {.kind = "tun"};
        memcpy(missing.name, j.vms[i].tap, sizeof missing.name);
        memcpy(missing.vm_id, j.vms[i].id, sizeof missing.vm_id);
        json_array_append_new(list, port_json(&missing, gone));
    }
    join_done(&j);
    return list;
}

/* ---- findings ---- */

static void add(json_t *list, const char *code, const char *about, const char *words, const char *hint) {
    json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:o}", "code", code, "about", about, "words", words, "hint",
                                          text_or_null(hint)));
}

static void add_host(struct api *api, json_t *list) {
    struct vmm_choice choice;
    struct err err = {0};
    char name[96];
    if (vms_vmm(api->vms, &choice, &err) < 0)
        add(list, err.code, "host", err.detail, err.hint);
    if (vms_image(api->vms, name, sizeof name, &err) < 0)
        add(list, err.code, "host", err.detail, err.hint);
    if (vms_disk(api->vms).is_full)
        add(list, "disk.full", "host", "the file system of the state folder is full: VMs stop when they write",
            "make room: mctl status says how much is free, and below which folder");
}

static void add_bridge(const struct network_status *net, json_t *list) {
    const char *problem = api_network_problem(net);
    if (problem)
        add(list, "bridge.broken", net->bridge, problem, NULL);
    if (!net->isolated)
        add(list, "firewall.missing", net->bridge, "the firewall that keeps VMs apart is gone",
            "the daemon puts it back by itself; if this stays, its log says why not");
}

static void add_vm(const struct joined *j, const struct vm *vm, json_t *list) {
    const struct network_port *port = port_of(j, vm);
    const char *problem = port ? port_problem(port, vm) : needs_port(vm) ? gone : NULL;
    char words[VM_REASON_MAX + 160], hint[VM_ID_TEXT + 64];
    if (!problem && vm->reachable != 0)
        return;
    snprintf(words, sizeof words, "%s%s%s%s%s", problem ? "its port " : "", problem ? vm->tap : "", problem ? " " : "",
             problem ? problem : "", problem && vm->reachable == 0 ? ". " : "");
    size_t len = strlen(words);
    if (vm->reachable == 0)
        snprintf(words + len, sizeof words - len, "%s", *vm->reason ? vm->reason : "it cannot be reached");
    snprintf(hint, sizeof hint, "mctl doctor --vm %s finds the cause", vm->id);
    add(list, problem ? "port.broken" : "vm.unreachable", vm->id, words, hint);
}

json_t *api_findings_json(struct api *api, const struct api_inventory *inventory) {
    struct joined j;
    json_t *list = json_array();
    add_host(api, list);
    add_bridge(&inventory->net, list);
    if (join(inventory, &j) < 0)
        return list;
    for (size_t i = 0; i < j.n_vms; i++)
        add_vm(&j, &j.vms[i], list);
    for (size_t i = 0; i < j.n_ports; i++)
        if (!vm_of(&j, j.ports[i]))
            add(list, "port.left-over", j.ports[i]->name, port_problem(j.ports[i], NULL),
                "the daemon takes it away at its next start");
    join_done(&j);
    return list;
}
