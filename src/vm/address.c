/* Which address a VM gets: the first free one behind the last one given, that nobody on the bridge uses, and whose last
 * VM is gone for a while: what others remember of that one (connections, caches, a user's bookmarks) must not meet the
 * new one. Only where all others are in use is one given before its time. */
#include <errno.h>

#include "base/str.h"
#include "base/time.h"
#include "network/ipam.h"
#include "vm/machine.h"

void address_rest(struct vms *vms, uint32_t ip, int64_t since_ms) {
    vms->resting[vms->rest_next] = (struct resting){.ip = ip, .since_ms = since_ms};
    vms->rest_next = (vms->rest_next + 1) % RESTING_MAX;
}

int address_load(struct vms *vms, struct err *err) {
    struct store_rest rest[RESTING_MAX];
    size_t n;
    int r = store_vm_last_ip(vms->store, &vms->ip_cursor, err);
    if (r == 0)
        r = store_vm_ended_since(vms->store, time_realtime_ms() - vms->config->network.address_rest_ms, rest,
                                 RESTING_MAX, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++)
        address_rest(vms, rest[i].ip, rest[i].ended_ms);
    return r;
}

struct search {
    struct vms *vms;
    bool may_rest;
    int64_t rested_ms; /* whose VM ended before this has rested; a clock that was set back makes nobody wait longer */
    int64_t now_ms;
};

static bool is_resting(const struct search *search, uint32_t ip) {
    const struct vms *vms = search->vms;
    for (size_t i = 0; !search->may_rest && i < RESTING_MAX; i++) {
        int64_t since_ms = vms->resting[i].since_ms;
        if (vms->resting[i].ip == ip && since_ms > search->rested_ms && since_ms <= search->now_ms)
            return true;
    }
    return false;
}

/* Every live VM has a machine. */
static int is_used(uint32_t ip, void *data) {
    const struct search *search = data;
    for (struct machine *m = search->vms->first; m; m = m->next)
        if (m->vm.ip == ip)
            return 1;
    return is_resting(search, ip) ? 1 : network_address_in_use(search->vms->network, ip);
}

int address_pick(struct vms *vms, uint32_t *ret_ip, struct err *err) {
    int64_t now_ms = time_realtime_ms();
    struct search search = {.vms = vms, .now_ms = now_ms, .rested_ms = now_ms - vms->config->network.address_rest_ms};
    int r = ipam_pick(vms->config->network.address, vms->ip_cursor, is_used, &search, ret_ip, err);
    if (r == -ENOSPC) {
        search.may_rest = true;
        r = ipam_pick(vms->config->network.address, vms->ip_cursor, is_used, &search, ret_ip, err);
    }
    if (r == 0)
        vms->ip_cursor = *ret_ip;
    return r;
}
