/* A step as the command that a person would type. */
#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/netfilter.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <string.h>

#include "doctor/repair/internal.h"

const char *repair_action_name(enum repair_action action) {
    static const char *const names[REPAIR_ACTION_COUNT] = {
        [REPAIR_NONE] = "none",
        [REPAIR_LINK_UP] = "link-up",
        [REPAIR_LINK_DOWN] = "link-down",
        [REPAIR_LINK_MASTER] = "link-master",
        [REPAIR_LINK_MAC] = "link-mac",
        [REPAIR_LINK_MTU] = "link-mtu",
        [REPAIR_LINK_XDP_OFF] = "link-xdp-off",
        [REPAIR_LINK_PROTO_UP] = "link-proto-up",
        [REPAIR_LINK_MODE] = "link-mode",
        [REPAIR_LINK_TXQLEN] = "link-txqlen",
        [REPAIR_LINK_ARP] = "link-arp",
        [REPAIR_PORT_ATTR] = "port-attr",
        [REPAIR_BRIDGE_ATTR] = "bridge-attr",
        [REPAIR_FDB_DELETE] = "fdb-delete",
        [REPAIR_ADDRESS_ADD] = "address-add",
        [REPAIR_ADDRESS_DELETE] = "address-delete",
        [REPAIR_ROUTE_ADD] = "route-add",
        [REPAIR_ROUTE_DELETE] = "route-delete",
        [REPAIR_POLICY_DELETE] = "policy-delete",
        [REPAIR_NEIGHBOUR_DELETE] = "neighbour-delete",
        [REPAIR_SYSCTL] = "sysctl",
        [REPAIR_NFT_RULE_DELETE] = "nft-rule-delete",
        [REPAIR_NFT_CHAIN_POLICY] = "nft-chain-policy",
        [REPAIR_MASQUERADE_ADD] = "masquerade-add",
        [REPAIR_QDISC_DELETE] = "qdisc-delete",
        [REPAIR_FILTER_DELETE] = "filter-delete",
        [REPAIR_TCX_DETACH] = "tcx-detach",
        [REPAIR_TAP_OFFLOAD] = "tap-offload",
        [REPAIR_GUEST_LINK_UP] = "guest-link-up",
        [REPAIR_GUEST_ADDRESS_ADD] = "guest-address-add",
        [REPAIR_GUEST_ADDRESS_DELETE] = "guest-address-delete",
        [REPAIR_GUEST_ROUTE] = "guest-route",
        [REPAIR_GUEST_UNIT_RESTART] = "guest-unit-restart",
    };
    return (unsigned int)action < REPAIR_ACTION_COUNT ? names[action] : "unknown";
}

const char *repair_state_name(enum repair_state state) {
    static const char *const names[REPAIR_STATE_COUNT] = {
        [REPAIR_STATE_APPLYING] = "applying", [REPAIR_STATE_APPLIED] = "applied", [REPAIR_STATE_PROVEN] = "proven",
        [REPAIR_STATE_FAILED] = "failed",     [REPAIR_STATE_UNDONE] = "undone",
    };
    return (unsigned int)state < REPAIR_STATE_COUNT ? names[state] : "unknown";
}

struct attr_name {
    uint16_t attr;
    const char *name;
    bool on_off; /* bridge(8) and ip(8) say on and off */
};

/* Source: bridge(8), ip-link(8), include/uapi/linux/if_link.h of 6.18 (numbers above 39 are not in 6.1's). */
static const struct attr_name port_names[] = {
    {IFLA_BRPORT_STATE, "state", false},
    {IFLA_BRPORT_PRIORITY, "priority", false},
    {IFLA_BRPORT_COST, "cost", false},
    {IFLA_BRPORT_MODE, "hairpin", true},
    {IFLA_BRPORT_GUARD, "guard", true},
    {IFLA_BRPORT_PROTECT, "root_block", true},
    {IFLA_BRPORT_FAST_LEAVE, "fastleave", true},
    {IFLA_BRPORT_LEARNING, "learning", true},
    {IFLA_BRPORT_UNICAST_FLOOD, "flood", true},
    {IFLA_BRPORT_PROXYARP, "proxy_arp", true},
    {IFLA_BRPORT_LEARNING_SYNC, "learning_sync", true},
    {IFLA_BRPORT_PROXYARP_WIFI, "proxy_arp_wifi", true},
    {IFLA_BRPORT_MULTICAST_ROUTER, "mcast_router", false},
    {IFLA_BRPORT_MCAST_FLOOD, "mcast_flood", true},
    {IFLA_BRPORT_MCAST_TO_UCAST, "mcast_to_unicast", true},
    {IFLA_BRPORT_VLAN_TUNNEL, "vlan_tunnel", true},
    {IFLA_BRPORT_BCAST_FLOOD, "bcast_flood", true},
    {IFLA_BRPORT_GROUP_FWD_MASK, "group_fwd_mask", false},
    {IFLA_BRPORT_NEIGH_SUPPRESS, "neigh_suppress", true},
    {IFLA_BRPORT_ISOLATED, "isolated", true},
    {IFLA_BRPORT_LOCKED, "locked", true},
    {40, "mab", true},
    {42, "mcast_max_groups", false},
    {43, "neigh_vlan_suppress", true},
};

static const struct attr_name bridge_names[] = {
    {IFLA_BR_FORWARD_DELAY, "forward_delay", false},
    {IFLA_BR_HELLO_TIME, "hello_time", false},
    {IFLA_BR_MAX_AGE, "max_age", false},
    {IFLA_BR_AGEING_TIME, "ageing_time", false},
    {IFLA_BR_STP_STATE, "stp_state", false},
    {IFLA_BR_PRIORITY, "priority", false},
    {IFLA_BR_VLAN_FILTERING, "vlan_filtering", false},
    {IFLA_BR_VLAN_PROTOCOL, "vlan_protocol", false},
    {IFLA_BR_GROUP_FWD_MASK, "group_fwd_mask", false},
    {IFLA_BR_MCAST_SNOOPING, "mcast_snooping", false},
    {IFLA_BR_MCAST_QUERIER, "mcast_querier", false},
    {IFLA_BR_NF_CALL_IPTABLES, "nf_call_iptables", false},
    {IFLA_BR_NF_CALL_IP6TABLES, "nf_call_ip6tables", false},
    {IFLA_BR_NF_CALL_ARPTABLES, "nf_call_arptables", false},
    {IFLA_BR_VLAN_DEFAULT_PVID, "vlan_default_pvid", false},
    {49, "fdb_max_learned", false},
};

const char *repair_port_attr_name(uint16_t type) {
    for (size_t i = 0; i < sizeof port_names / sizeof *port_names; i++)
        if (port_names[i].attr == type)
            return port_names[i].name;
    return NULL;
}

static void put_attr(struct strbuf *text, const struct attr_name *names, size_t count, const struct repair_step *step) {
    for (size_t i = 0; i < count; i++) {
        if (names[i].attr != step->attr)
            continue;
        if (names[i].on_off && step->value <= 1)
            strbuf_addf(text, " %s %s", names[i].name, step->value ? "on" : "off");
        else
            strbuf_addf(text, " %s %llu", names[i].name, (unsigned long long)step->value);
        return;
    }
    strbuf_addf(text, " (attribute %u) %llu", step->attr, (unsigned long long)step->value);
}

static void put_safe(struct strbuf *text, const char *name) {
    char shown[REPAIR_VALUE];
    str_escape(name, strlen(name), shown, sizeof shown);
    if (*shown && !strpbrk(shown, " \t\"'\\$`;&|<>(){}*?!#~"))
        strbuf_addf(text, "%s", shown);
    else
        strbuf_addf(text, "'%s'", shown);
}

static void put_prefix(struct strbuf *text, struct net_prefix prefix) {
    char ip[NET_IP_TEXT];
    net_format_ip(prefix.address, ip);
    strbuf_addf(text, "%s/%u", ip, prefix.length);
}

static const char *family_name(uint8_t family) {
    switch (family) {
    case NFPROTO_INET:
        return "inet";
    case NFPROTO_IPV4:
        return "ip";
    case NFPROTO_IPV6:
        return "ip6";
    case NFPROTO_ARP:
        return "arp";
    case NFPROTO_BRIDGE:
        return "bridge";
    case NFPROTO_NETDEV:
        return "netdev";
    default:
        return "?";
    }
}

static void put_route(struct strbuf *text, const struct repair_step *step) {
    static const char *const types[] = {[RTN_BLACKHOLE] = "blackhole ",
                                        [RTN_UNREACHABLE] = "unreachable ",
                                        [RTN_PROHIBIT] = "prohibit ",
                                        [RTN_THROW] = "throw "};
    char ip[NET_IP_TEXT];
    strbuf_addf(text, "ip route %s ", step->action == REPAIR_ROUTE_ADD ? "add" : "del");
    if (step->route_type < sizeof types / sizeof *types && types[step->route_type])
        strbuf_addf(text, "%s", types[step->route_type]);
    put_prefix(text, step->prefix);
    if (step->gateway) {
        net_format_ip(step->gateway, ip);
        strbuf_addf(text, " via %s", ip);
    }
    if (*step->dev) {
        strbuf_addf(text, " dev ");
        put_safe(text, step->dev);
    }
    if (step->route_table && step->route_table != RT_TABLE_MAIN)
        strbuf_addf(text, " table %u", step->route_table);
    if (step->route_metric)
        strbuf_addf(text, " metric %u", step->route_metric);
}

static void put_dev(struct strbuf *text, const char *before, const struct repair_step *step, const char *behind) {
    strbuf_addf(text, "%s ", before);
    put_safe(text, step->dev);
    strbuf_addf(text, "%s", behind);
}

static void put_nft(struct strbuf *text, const char *verb, const struct repair_step *step) {
    strbuf_addf(text, "nft %s %s ", verb, family_name(step->nft_family));
    put_safe(text, step->nft_table);
    strbuf_addf(text, " ");
    put_safe(text, step->nft_chain);
}

/* One line for a shell: nft takes semicolons. */
static void put_masquerade(struct strbuf *text, const struct repair_step *step) {
    struct strbuf commands = {.max = REPAIR_COMMAND_SIZE - 16};
    repair_masquerade_commands(step, &commands);
    strbuf_addf(text, "nft '");
    for (const char *line = commands.data ? commands.data : ""; *line;
         line += strcspn(line, "\n"), line += *line == '\n')
        strbuf_addf(text, "%s%.*s", line == commands.data ? "" : "; ", (int)strcspn(line, "\n"), line);
    strbuf_addf(text, "'");
    strbuf_free(&commands);
}

static void put_filter(struct strbuf *text, const struct repair_step *step) {
    put_dev(text, "tc filter del dev", step, "");
    if (step->parent == TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS))
        strbuf_addf(text, " egress");
    else if (step->parent == TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS))
        strbuf_addf(text, " ingress");
    else
        strbuf_addf(text, " parent %x:%x", step->parent >> 16, step->parent & 0xffff);
    if (step->priority)
        strbuf_addf(text, " pref %u", step->priority);
}

static void put_qdisc(struct strbuf *text, const struct repair_step *step) {
    put_dev(text, "tc qdisc del dev", step, "");
    if (step->parent == TC_H_ROOT)
        strbuf_addf(text, " root");
    else if (step->parent == TC_H_CLSACT)
        strbuf_addf(text, step->handle == TC_H_MAKE(TC_H_CLSACT, 0) ? " clsact" : " ingress");
    else
        strbuf_addf(text, " parent %x:%x", step->parent >> 16, step->parent & 0xffff);
}

static void put_link(struct strbuf *text, const struct repair_step *step) {
    char mac[NET_MAC_TEXT];
    put_dev(text, "ip link set dev", step, " ");
    net_format_mac(step->mac, mac);
    if (step->action == REPAIR_LINK_UP || step->action == REPAIR_LINK_DOWN)
        strbuf_addf(text, step->action == REPAIR_LINK_UP ? "up" : "down");
    else if (step->action == REPAIR_LINK_MASTER && *step->object) {
        strbuf_addf(text, "master ");
        put_safe(text, step->object);
    } else if (step->action == REPAIR_LINK_MASTER)
        strbuf_addf(text, "nomaster");
    else if (step->action == REPAIR_LINK_MAC)
        strbuf_addf(text, "address %s", mac);
    else if (step->action == REPAIR_LINK_MTU)
        strbuf_addf(text, "mtu %llu", (unsigned long long)step->value);
    else if (step->action == REPAIR_LINK_XDP_OFF)
        strbuf_addf(text, "xdp off");
    else if (step->action == REPAIR_LINK_PROTO_UP)
        strbuf_addf(text, "protodown off");
    else if (step->action == REPAIR_LINK_MODE)
        strbuf_addf(text, "mode %s", step->value ? "dormant" : "default");
    else if (step->action == REPAIR_LINK_TXQLEN)
        strbuf_addf(text, "txqueuelen %llu", (unsigned long long)step->value);
    else if (step->action == REPAIR_LINK_ARP)
        strbuf_addf(text, "arp %s", step->value ? "on" : "off");
}

static void put_neighbour(struct strbuf *text, const struct repair_step *step) {
    char ip[NET_IP_TEXT], mac[NET_MAC_TEXT];
    net_format_ip(step->prefix.address, ip);
    net_format_mac(step->mac, mac);
    if (step->action == REPAIR_NEIGHBOUR_DELETE) {
        strbuf_addf(text, "ip neigh del %s dev ", ip);
        put_safe(text, step->dev);
        return;
    }
    strbuf_addf(text, "bridge fdb del %s dev ", mac);
    put_safe(text, step->dev);
    strbuf_addf(text, strcmp(step->object, "self") == 0 ? " self" : " master");
    if (step->value)
        strbuf_addf(text, " vlan %llu", (unsigned long long)step->value);
}

/* As much of it as ip(8) needs to tell it from others of its priority. */
static void put_rule(struct strbuf *text, const struct repair_step *step) {
    static const char *const actions[] = {
        [FR_ACT_BLACKHOLE] = " blackhole", [FR_ACT_UNREACHABLE] = " unreachable", [FR_ACT_PROHIBIT] = " prohibit"};
    strbuf_addf(text, "ip rule del pref %llu", (unsigned long long)step->value);
    if (step->route_scope) {
        strbuf_addf(text, " from ");
        put_prefix(text, (struct net_prefix){step->gateway, step->route_scope});
    }
    if (step->prefix.length) {
        strbuf_addf(text, " to ");
        put_prefix(text, step->prefix);
    }
    if (*step->object) {
        strbuf_addf(text, " iif ");
        put_safe(text, step->object);
    }
    if (step->parent)
        strbuf_addf(text, " fwmark 0x%x", step->parent);
    if (step->protocol)
        strbuf_addf(text, " ipproto %u", step->protocol);
    if (step->route_type == FR_ACT_TO_TBL && step->route_table)
        strbuf_addf(text, " lookup %u", step->route_table);
    else if (step->route_type < sizeof actions / sizeof *actions && actions[step->route_type])
        strbuf_addf(text, "%s", actions[step->route_type]);
}

static void put_key(struct strbuf *text, const struct repair_step *step) {
    char key[sizeof step->object];
    str_copy(key, sizeof key, step->object);
    /* sysctl(8) takes both, and a dot in a device's name only so */
    strbuf_addf(text, "sysctl -w ");
    put_safe(text, key);
    strbuf_addf(text, "=");
    put_safe(text, step->text);
}

/* By the same agent, so without the network. */
static void put_guest(struct strbuf *text, const struct repair_step *step) {
    char via[NET_IP_TEXT];
    strbuf_addf(text, "mctl vm exec ");
    put_safe(text, step->object);
    strbuf_addf(text, " -- ");
    net_format_ip(step->gateway, via);
    if (step->action == REPAIR_GUEST_UNIT_RESTART) {
        strbuf_addf(text, "systemctl restart ");
        put_safe(text, step->text);
        return;
    }
    if (step->action == REPAIR_GUEST_LINK_UP)
        put_dev(text, "ip link set dev", step, " up");
    if (step->action == REPAIR_GUEST_ADDRESS_ADD || step->action == REPAIR_GUEST_ADDRESS_DELETE) {
        strbuf_addf(text, "ip addr %s ", step->action == REPAIR_GUEST_ADDRESS_ADD ? "add" : "del");
        put_prefix(text, step->prefix);
        put_dev(text, " dev", step, "");
    }
    if (step->action == REPAIR_GUEST_ROUTE) {
        strbuf_addf(text, "ip route replace ");
        if (step->prefix.length)
            put_prefix(text, step->prefix);
        else
            strbuf_addf(text, "default");
        strbuf_addf(text, " via %s", via);
        put_dev(text, " dev", step, "");
    }
}

/* bpftool knows tcx since its version 7.5. */
static void put_tcx(struct strbuf *text, const struct repair_step *step) {
    if (step->parent)
        strbuf_addf(text, "bpftool link detach id %u", step->parent);
    else
        put_dev(text, step->value ? "bpftool net detach tcx_egress dev" : "bpftool net detach tcx_ingress dev", step,
                "");
}

static void put_step(struct strbuf *text, const struct repair_step *step) {
    switch (step->action) {
    case REPAIR_LINK_UP:
    case REPAIR_LINK_DOWN:
    case REPAIR_LINK_MASTER:
    case REPAIR_LINK_MAC:
    case REPAIR_LINK_MTU:
    case REPAIR_LINK_XDP_OFF:
    case REPAIR_LINK_PROTO_UP:
    case REPAIR_LINK_MODE:
    case REPAIR_LINK_TXQLEN:
    case REPAIR_LINK_ARP:
        put_link(text, step);
        break;
    case REPAIR_PORT_ATTR:
        put_dev(text, "bridge link set dev", step, "");
        put_attr(text, port_names, sizeof port_names / sizeof *port_names, step);
        break;
    case REPAIR_BRIDGE_ATTR:
        put_dev(text, "ip link set dev", step, " type bridge");
        put_attr(text, bridge_names, sizeof bridge_names / sizeof *bridge_names, step);
        break;
    case REPAIR_FDB_DELETE:
    case REPAIR_NEIGHBOUR_DELETE:
        put_neighbour(text, step);
        break;
    case REPAIR_ADDRESS_ADD:
    case REPAIR_ADDRESS_DELETE:
        strbuf_addf(text, "ip addr %s ", step->action == REPAIR_ADDRESS_ADD ? "add" : "del");
        put_prefix(text, step->prefix);
        put_dev(text, " dev", step, "");
        break;
    case REPAIR_ROUTE_ADD:
    case REPAIR_ROUTE_DELETE:
        put_route(text, step);
        break;
    case REPAIR_POLICY_DELETE:
        put_rule(text, step);
        break;
    case REPAIR_SYSCTL:
        put_key(text, step);
        break;
    case REPAIR_NFT_RULE_DELETE:
        put_nft(text, "delete rule", step);
        strbuf_addf(text, " handle %llu", (unsigned long long)step->handle);
        break;
    case REPAIR_NFT_CHAIN_POLICY:
        put_nft(text, "chain", step);
        strbuf_addf(text, " '{ policy %s; }'", strcmp(step->text, "drop") == 0 ? "drop" : "accept");
        break;
    case REPAIR_MASQUERADE_ADD:
        put_masquerade(text, step);
        break;
    case REPAIR_QDISC_DELETE:
        put_qdisc(text, step);
        break;
    case REPAIR_FILTER_DELETE:
        put_filter(text, step);
        break;
    case REPAIR_TCX_DETACH:
        put_tcx(text, step);
        break;
    case REPAIR_TAP_OFFLOAD:
        put_dev(text, "ethtool -K", step, step->value ? " tx on" : " tx off");
        break;
    case REPAIR_GUEST_LINK_UP:
    case REPAIR_GUEST_ADDRESS_ADD:
    case REPAIR_GUEST_ADDRESS_DELETE:
    case REPAIR_GUEST_ROUTE:
    case REPAIR_GUEST_UNIT_RESTART:
        put_guest(text, step);
        break;
    case REPAIR_NONE:
    case REPAIR_ACTION_COUNT:
        break;
    }
}

void repair_step_command(const struct repair_step *step, char ret_command[REPAIR_COMMAND_SIZE]) {
    struct strbuf text = {.max = REPAIR_COMMAND_SIZE - 1};
    put_step(&text, step);
    str_copy(ret_command, REPAIR_COMMAND_SIZE, text.data ? text.data : "");
    strbuf_free(&text);
}
