#include "network/ipam.h"

#include <errno.h>

static uint32_t first_host(struct net_prefix pool) {
    return (pool.address & net_mask(pool.length)) + 1;
}

static uint32_t last_host(struct net_prefix pool) {
    return (pool.address | ~net_mask(pool.length)) - 1;
}

bool ipam_is_assignable(struct net_prefix pool, uint32_t ip) {
    if (pool.length == 0 || pool.length > 30) /* no room for network, broadcast, gateway and a VM */
        return false;
    return ip >= first_host(pool) && ip <= last_host(pool) && ip != pool.address;
}

uint32_t ipam_size(struct net_prefix pool) {
    if (pool.length == 0 || pool.length > 30)
        return 0;
    uint32_t hosts = last_host(pool) - first_host(pool) + 1;
    bool gateway_inside = pool.address >= first_host(pool) && pool.address <= last_host(pool);
    return gateway_inside ? hosts - 1 : hosts;
}

static int exhausted(struct net_prefix pool, struct err *err) {
    char network[NET_IP_TEXT];
    net_format_ip(pool.address & net_mask(pool.length), network);
    err_set(err, ENOSPC, "network.pool-exhausted", "all %u addresses of %s/%u are in use", ipam_size(pool), network,
            pool.length);
    err_hint(err, "end VMs that are no longer needed, or give [network] address a shorter prefix length");
    return -ENOSPC;
}

int ipam_pick(struct net_prefix pool, uint32_t after, int (*is_used)(uint32_t ip, void *data), void *data,
              uint32_t *ret_ip, struct err *err) {
    uint32_t size = ipam_size(pool), first = first_host(pool), last = last_host(pool);
    uint32_t ip = after >= first && after < last ? after + 1 : first;
    /* One more than there are, because the bridge's own is stepped over on the way. */
    for (uint32_t tried = 0; size > 0 && tried <= size; tried++, ip = ip == last ? first : ip + 1) {
        if (!ipam_is_assignable(pool, ip))
            continue;
        int r = is_used(ip, data);
        if (r < 0)
            return err_sys(err, -r, "network.pool-unknown", "find out whether an address is in use");
        if (r == 0) {
            *ret_ip = ip;
            return 0;
        }
    }
    return exhausted(pool, err);
}
