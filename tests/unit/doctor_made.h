/* A made host for the doctor's rules: br0 192.168.0.1/16, two TAPs that processes hold, no faults. */
#pragma once

#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/judge.h"

#define BRIDGE 2
#define TAP 3
#define OTHER 4
#define UPLINK 5
#define GUEST 0xc0a80002
#define HOST 0xc0a80001
#define WORLD 0x08080808

static const struct net_mac guest_mac = {{2, 0xfc, 0, 0, 0, 1}};

static inline struct snap_link *made_link(struct snapshot *s, int index, const char *name, const char *kind) {
    struct snap_link *l = SNAP_PUSH(s, links, SNAP_LINKS_MAX);
    l->index = index;
    str_copy(l->name, sizeof l->name, name);
    str_copy(l->kind, sizeof l->kind, kind);
    l->flags = IFF_UP | IFF_RUNNING;
    l->mtu = 1500;
    l->carrier = true;
    l->operstate = 6;
    l->txqueuelen = 1000;
    l->tun_owner = UINT32_MAX;
    l->mac = (struct net_mac){{0xfe, 0, 0, 0, 0, (uint8_t)index}};
    return l;
}

static inline void made_attr(struct snapshot *s, struct snap_link *l, enum snap_attr_space space, uint16_t type,
                             uint64_t value) {
    struct snap_attr *a = SNAP_PUSH(s, attrs, 1000);
    if (l->attrs.count == 0)
        l->attrs.first = s->attrs_count - 1;
    l->attrs.count++;
    *a = (struct snap_attr){.space = (uint8_t)space, .type = type, .len = 1, .value = value};
}

static inline void made_tap(struct snapshot *s, int index, const char *name, int pid) {
    struct snap_link *l = made_link(s, index, name, "tun");
    l->is_tap = l->tun_persist = l->tun_vnet_hdr = true;
    l->master = BRIDGE;
    str_copy(l->slave_kind, sizeof l->slave_kind, "bridge");
    static const uint16_t on[] = {IFLA_BRPORT_LEARNING, IFLA_BRPORT_UNICAST_FLOOD, IFLA_BRPORT_MCAST_FLOOD,
                                  IFLA_BRPORT_BCAST_FLOOD};
    made_attr(s, l, SNAP_ATTR_PORT, IFLA_BRPORT_STATE, 3);
    for (size_t i = 0; i < sizeof on / sizeof *on; i++)
        made_attr(s, l, SNAP_ATTR_PORT, on[i], 1);
    made_attr(s, l, SNAP_ATTR_PORT, IFLA_BRPORT_ISOLATED, 0);
    made_attr(s, l, SNAP_ATTR_PORT, IFLA_BRPORT_LOCKED, 0);
    made_attr(s, l, SNAP_ATTR_PORT, IFLA_BRPORT_PROXYARP, 0);
    struct snap_holder *h = SNAP_PUSH(s, holders, 100);
    *h = (struct snap_holder){.pid = pid, .comm = "vmm", .state = 'S', .threads = 1, .vnet_hdr_size = 12};
    str_copy(h->tap, sizeof h->tap, name);
}

static inline struct snapshot *made_host(void) {
    struct snapshot *s = snapshot_new();
    str_copy(s->host.bridge, sizeof s->host.bridge, "br0");
    s->host.bridge_index = BRIDGE;
    struct snap_link *b = made_link(s, BRIDGE, "br0", "bridge");
    made_attr(s, b, SNAP_ATTR_BRIDGE, IFLA_BR_AGEING_TIME, 30000);
    made_attr(s, b, SNAP_ATTR_BRIDGE, IFLA_BR_STP_STATE, 0);
    made_tap(s, TAP, "tap1", 101);
    made_tap(s, OTHER, "tap2", 102);
    *SNAP_PUSH(s, addrs, 100) = (struct snap_addr){.link = BRIDGE, .ip = HOST, .length = 16};
    *SNAP_PUSH(s, routes, 100) = (struct snap_route){.table = RT_TABLE_MAIN,
                                                     .to = 0xc0a80000,
                                                     .length = 16,
                                                     .type = RTN_UNICAST,
                                                     .protocol = RTPROT_KERNEL,
                                                     .link = BRIDGE};
    static const uint32_t tables[] = {RT_TABLE_LOCAL, RT_TABLE_MAIN, RT_TABLE_DEFAULT}, prios[] = {0, 32766, 32767};
    for (size_t i = 0; i < 3; i++)
        *SNAP_PUSH(s, policies, 100) = (struct snap_policy){.priority = prios[i], .table = tables[i], .action = 1};
    *SNAP_PUSH(s, lookups, 100) = (struct snap_lookup){.to = GUEST, .type = RTN_UNICAST, .link = BRIDGE};
    *SNAP_PUSH(s, lookups, 100) = (struct snap_lookup){.to = WORLD, .error = 101};
    return s;
}

/* With a way to the outside that is in order. */
static inline struct snapshot *made_router(void) {
    struct snapshot *s = made_host();
    made_link(s, UPLINK, "wan0", "veth");
    s->lookups[1] = (struct snap_lookup){.to = WORLD, .type = RTN_UNICAST, .link = UPLINK, .gateway = 0xcb007101};
    *SNAP_PUSH(s, addrs, 100) = (struct snap_addr){.link = UPLINK, .ip = 0xcb007102, .length = 24};
    return s;
}

static inline void made_sysctl(struct snapshot *s, const char *key, const char *value) {
    struct snap_sysctl *row = SNAP_PUSH(s, sysctls, 100);
    str_copy(row->key, sizeof row->key, key);
    str_copy(row->value, sizeof row->value, value);
}

static inline struct snap_link *made_find(struct snapshot *s, int index) {
    return (struct snap_link *)snap_link_by_index(s, index);
}

static inline void made_set_port(struct snapshot *s, int index, uint16_t type, uint64_t value) {
    struct snap_attr *a = (struct snap_attr *)snap_attr_get(s, made_find(s, index), SNAP_ATTR_PORT, type);
    a->value = value;
}

/* Judges tap1 by its state alone. The caller frees the judgement. */
static inline struct judgement made_judge(const struct snapshot *s) {
    struct judge_host host;
    struct judgement j = {0};
    struct target target = {.tap = "tap1",
                            .bridge = "br0",
                            .ip = GUEST,
                            .has_mac = true,
                            .mac = guest_mac,
                            .port = 6080,
                            .named = true,
                            .mac_given = true};
    if (judge_open(s, NULL, NULL, &host) < 0 || judge_target(&host, &target, -1, &j) < 0)
        abort();
    judge_close(&host);
    return j;
}

/* --- nftables --- */

static inline struct snap_nft_chain *made_chain(struct snapshot *s, uint8_t family, const char *table, const char *name,
                                                int hook, int policy) {
    struct snap_nft_chain *c = SNAP_PUSH(s, chains, 100);
    c->family = family;
    str_copy(c->table, sizeof c->table, table);
    str_copy(c->name, sizeof c->name, name);
    c->base = hook >= 0;
    c->hook = hook < 0 ? 0 : (uint8_t)hook;
    c->policy = (uint8_t)policy;
    return c;
}

static inline struct snap_nft_rule *made_rule(struct snapshot *s, const struct snap_nft_chain *c, uint64_t handle) {
    struct snap_nft_rule *r = SNAP_PUSH(s, rules, 100000);
    r->family = c->family;
    memcpy(r->table, c->table, sizeof r->table);
    memcpy(r->chain, c->name, sizeof r->chain);
    r->handle = handle;
    r->exprs.first = s->exprs_count;
    return r;
}

static inline void made_expr(struct snapshot *s, struct snap_nft_expr x) {
    *SNAP_PUSH(s, exprs, SNAP_EXPRS_MAX) = x;
    s->rules[s->rules_count - 1].exprs.count++;
}
