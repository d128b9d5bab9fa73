#include "network/ruleset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A frame of 64 KiB must pass a limit of bytes whole: with offloads a VM sends such. */
#define BYTES_BURST_MIN (256 * 1024)
#define FRAGMENTS_PER_SECOND 1000 /* the host holds what it cannot put together yet */

const struct ruleset_set ruleset_sets[RULESET_SETS] = {
    {false, "vm_macs", RULESET_TAP_MAC, RULESET_MEMBER},
    {false, "vm_addresses", RULESET_TAP_MAC_IP, RULESET_MEMBER},
    {false, "stopped_mac", RULESET_TAP, RULESET_MAC},
    {false, "stopped_ip", RULESET_TAP, RULESET_IP},
    {false, "stopped_arp", RULESET_TAP, RULESET_ARP},
    {false, "stopped_protocol", RULESET_TAP, RULESET_PROTOCOL},
    {false, "stopped_neighbour", RULESET_TAP, RULESET_NEIGHBOUR},
    {false, "over_fragments", RULESET_TAP, RULESET_FRAGMENTS},
    {false, "over_arp", RULESET_TAP, RULESET_ARP_RATE},
    {false, "over_packets", RULESET_TAP, RULESET_RATE},
    {false, "over_bytes_out", RULESET_TAP, RULESET_RATE},
    {false, "over_bytes_in", RULESET_TAP, RULESET_RATE},
    {true, "stopped_host", RULESET_ADDRESS, RULESET_HOST},
    {true, "stopped_metadata", RULESET_ADDRESS, RULESET_METADATA},
    {true, "stopped_private", RULESET_ADDRESS, RULESET_PRIVATE},
    {true, "stopped_neighbour", RULESET_ADDRESS, RULESET_NEIGHBOUR},
    {true, "stopped_invalid", RULESET_ADDRESS, RULESET_INVALID},
    {true, "over_new_connections", RULESET_ADDRESS, RULESET_CONNECTIONS},
    {true, "stopped_connections", RULESET_ADDRESS, RULESET_CONNECTIONS},
    {true, "stopped_group", RULESET_TAP, RULESET_PROTOCOL},
    {true, "vm_pairs", RULESET_ADDRESS_TWICE, RULESET_MEMBER},
};

static const struct {
    const char *name, *words;
} reasons[RULESET_REASONS] = {
    [RULESET_MEMBER] = {"", ""},
    [RULESET_MAC] = {"mac", "frames with another MAC than its own"},
    [RULESET_IP] = {"ip", "packets with another address than its own"},
    [RULESET_ARP] = {"arp", "ARP that claims another's address or MAC"},
    [RULESET_PROTOCOL] = {"protocol", "what is neither IPv4 to one receiver nor ARP: IPv6, VLAN tags, multicast, DHCP"},
    [RULESET_NEIGHBOUR] = {"neighbour", "for another VM, or another port of the bridge"},
    [RULESET_HOST] = {"host", "for the host itself"},
    [RULESET_METADATA] = {"metadata", "for link-local addresses, such as a cloud's metadata service"},
    [RULESET_PRIVATE] = {"private", "for private networks, or the host's own"},
    [RULESET_INVALID] = {"invalid", "packets of no known connection, and errors about another's"},
    [RULESET_FRAGMENTS] = {"fragments", "fragments above the limit"},
    [RULESET_ARP_RATE] = {"arp-rate", "ARP above the limit"},
    [RULESET_RATE] = {"rate", "packets or bytes above the limit"},
    [RULESET_CONNECTIONS] = {"connections", "new connections above the limit"},
};

const char *ruleset_reason_name(enum ruleset_reason reason) {
    return reasons[reason].name;
}

const char *ruleset_reason_words(enum ruleset_reason reason) {
    return reasons[reason].words;
}

bool ruleset_name_is_plain(const char *name) {
    for (; *name; name++)
        if (*name <= ' ' || *name > '~' || strchr("\"\\*;{}$", *name))
            return false;
    return true;
}

/* --- sets --- */

#define STATEMENTS_MAX 128

/* What each element of a set counts and limits. Return: false when the configuration switches the set off. */
static bool statements_of(const struct config_network *cfg, const struct ruleset_set *set, char dst[STATEMENTS_MAX]) {
    uint64_t bytes = (uint64_t)cfg->megabits_per_second * 125000;
    uint64_t burst = bytes / 10 > BYTES_BURST_MIN ? bytes / 10 : BYTES_BURST_MIN;
    uint32_t rate = 0;
    *dst = '\0';
    if (set->reason == RULESET_MEMBER)
        return true;
    if (!str_starts(set->name, "over_")) {
        str_copy(dst, STATEMENTS_MAX, "counter");
        return true;
    }
    if (str_starts(set->name, "over_bytes")) {
        snprintf(dst, STATEMENTS_MAX, "limit rate over %llu bytes/second burst %llu bytes counter",
                 (unsigned long long)bytes, (unsigned long long)burst);
        return bytes > 0;
    }
    if (strcmp(set->name, "over_packets") == 0)
        rate = cfg->packets_per_second;
    else if (strcmp(set->name, "over_arp") == 0)
        rate = cfg->arp_per_second;
    else if (strcmp(set->name, "over_new_connections") == 0)
        rate = cfg->connections_per_second;
    else
        rate = FRAGMENTS_PER_SECOND;
    snprintf(dst, STATEMENTS_MAX, "limit rate over %u/second burst %u packets counter", rate,
             rate / 2 > 5 ? rate / 2 : 5);
    return rate > 0;
}

bool ruleset_has(const struct config_network *cfg, size_t set) {
    char statements[STATEMENTS_MAX];
    return statements_of(cfg, &ruleset_sets[set], statements);
}

static void write_element(const struct ruleset_set *set, const char *statements, const struct ruleset_vm *vm,
                          struct ruleset_count count, struct strbuf *text) {
    char mac[NET_MAC_TEXT], ip[NET_IP_TEXT];
    net_format_mac(vm->mac, mac);
    net_format_ip(vm->ip, ip);
    switch (set->key) {
    case RULESET_TAP:
        strbuf_addf(text, "\"%s\"", vm->tap);
        break;
    case RULESET_TAP_MAC:
        strbuf_addf(text, "\"%s\" . %s", vm->tap, mac);
        break;
    case RULESET_TAP_MAC_IP:
        strbuf_addf(text, "\"%s\" . %s . %s", vm->tap, mac, ip);
        break;
    case RULESET_ADDRESS:
        strbuf_addf(text, "%s", ip);
        break;
    case RULESET_ADDRESS_TWICE:
        strbuf_addf(text, "%s . %s", ip, ip);
        break;
    }
    if (*statements)
        strbuf_addf(text, " %s packets %llu bytes %llu", statements, (unsigned long long)count.packets,
                    (unsigned long long)count.bytes);
}

static void write_set(const struct config_network *cfg, size_t at, const struct ruleset_vm *vms, size_t count,
                      struct strbuf *text) {
    static const char *const types[] = {
        [RULESET_TAP] = "ifname",
        [RULESET_TAP_MAC] = "ifname . ether_addr",
        [RULESET_TAP_MAC_IP] = "ifname . ether_addr . ipv4_addr",
        [RULESET_ADDRESS] = "ipv4_addr",
        [RULESET_ADDRESS_TWICE] = "ipv4_addr . ipv4_addr",
    };
    const struct ruleset_set *set = &ruleset_sets[at];
    char statements[STATEMENTS_MAX];
    if (!statements_of(cfg, set, statements))
        return;
    strbuf_addf(text, "    set %s {\n        type %s\n", set->name, types[set->key]);
    if (*statements)
        strbuf_addf(text, "        %s\n", statements);
    if (count > 0)
        strbuf_addf(text, "        elements = { ");
    for (size_t i = 0; i < count; i++) {
        write_element(set, statements, &vms[i], vms[i].count[at], text);
        strbuf_addf(text, i + 1 < count ? ",\n            " : " }\n");
    }
    strbuf_addf(text, "    }\n");
}

static void write_sets(const struct config_network *cfg, bool inet, const struct ruleset_vm *vms, size_t count,
                       struct strbuf *text) {
    for (size_t i = 0; i < RULESET_SETS; i++)
        if (ruleset_sets[i].inet == inet)
            write_set(cfg, i, vms, count, text);
}

/* What is stopped is counted for its VM; the second rule is for what belongs to none. */
static void write_stops(bool inet, struct strbuf *text) {
    for (size_t i = 0; i < RULESET_SETS; i++) {
        const struct ruleset_set *set = &ruleset_sets[i];
        if (set->inet == inet && str_starts(set->name, "stopped_"))
            strbuf_addf(text, "    chain stop_%s {\n        %s @%s drop\n        counter drop\n    }\n",
                        set->name + strlen("stopped_"), set->key == RULESET_ADDRESS ? "ip saddr" : "iifname",
                        set->name);
    }
}

/* A rule for a limit, where the configuration has it. */
static void write_limit(const struct config_network *cfg, const char *set, const char *match, struct strbuf *text) {
    for (size_t i = 0; i < RULESET_SETS; i++)
        if (strcmp(ruleset_sets[i].name, set) == 0 && ruleset_has(cfg, i))
            strbuf_addf(text, "        %s @%s drop\n", match, set);
}

/* --- rules --- */

#define TAPS "\"" VM_TAP_PREFIX "*\""
#define CANARIES "\"" NET_CANARY_PORT "*\""
#define TO_CANARY "ether daddr & ff:ff:ff:00:00:00 == 02:fd:ff:00:00:00"
#define FROM_CANARY "ether saddr & ff:ff:ff:00:00:00 == 02:fd:ff:00:00:00"

/* chain from_vm_arp: who asks or answers must be the VM itself, and by default only the gateway is asked for. Matches are
 * positive, so that a frame that is cut short, which matches nothing, reaches the last line. An ARP probe (RFC 5227)
 * claims nothing and asks for the own address; an announcement says the own one. */
static void write_arp(const struct config_network *cfg, const char *gateway, const char *bridge, struct strbuf *text) {
    strbuf_addf(text, "    chain from_vm_arp {\n");
    write_limit(cfg, "over_arp", "iifname", text);
    strbuf_addf(text,
                "        arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . arp saddr ether @vm_macs goto "
                "from_vm_arp_sender\n"
                "        goto stop_arp\n"
                "    }\n"
                "    chain from_vm_arp_sender {\n"
                "        arp saddr ip 0.0.0.0 iifname . ether saddr . arp daddr ip @vm_addresses accept\n"
                "        iifname . arp saddr ether . arp saddr ip @vm_addresses goto from_vm_arp_own\n"
                "        goto stop_arp\n"
                "    }\n"
                "    chain from_vm_arp_own {\n"
                "        iifname . ether saddr . arp daddr ip @vm_addresses accept\n"
                "        arp operation request arp daddr ip %s accept\n"
                "        arp operation { request, reply } " TO_CANARY " accept\n"
                "        arp operation reply ether daddr %s accept\n",
                gateway, bridge);
    if (cfg->vm_to_vm)
        strbuf_addf(text, "        arp operation { request, reply } accept\n");
    strbuf_addf(text, "        arp operation request goto stop_neighbour\n"
                      "        goto stop_arp\n"
                      "    }\n");
}

/* chain from_vm: "ether type" is read from the frame itself, where a VLAN's tag still is. */
static void write_from_vm(const struct config_network *cfg, const char *bridge, struct strbuf *text) {
    strbuf_addf(text, "    chain from_vm {\n");
    write_limit(cfg, "over_packets", "iifname", text);
    write_limit(cfg, "over_bytes_out", "iifname", text);
    strbuf_addf(text, "        iifname . ether saddr @vm_macs goto from_vm_own\n"
                      "        goto stop_mac\n"
                      "    }\n"
                      "    chain from_vm_own {\n"
                      "        @ll,96,16 0x0806 goto from_vm_arp\n"
                      "        @ll,96,16 0x0800 goto from_vm_ip\n"
                      "        goto stop_protocol\n"
                      "    }\n"
                      "    chain from_vm_ip {\n"
                      "        iifname . ether saddr . ip saddr @vm_addresses goto from_vm_ip_own\n"
                      "        ip saddr 0.0.0.0 udp dport 67 goto stop_protocol\n"
                      "        goto stop_ip\n"
                      "    }\n"
                      "    chain from_vm_ip_own {\n");
    write_limit(cfg, "over_fragments", "ip frag-off & 0x3fff != 0 iifname", text);
    strbuf_addf(text,
                "        ip daddr { 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4, 255.255.255.255 } goto stop_protocol\n"
                "        ether daddr %s accept\n"
                "        " TO_CANARY " accept\n"
                "        ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 goto stop_protocol\n"
                "        %s\n"
                "    }\n",
                bridge, cfg->vm_to_vm ? "accept" : "goto stop_neighbour");
}

/* Frames to the bridge's own group addresses (01:80:c2:00:00:0x) are not bridged and never pass the prerouting hook: the
 * host would take them from the TAP itself. Most pass the input hook; those to …:0e pass none, so the inet table has a
 * rule too. Source: net/bridge/br_input.c, br_handle_frame(). */
static void write_bridge_table(const struct config_network *cfg, struct net_mac bridge, const struct ruleset_vm *vms,
                               size_t count, struct strbuf *text) {
    char gateway[NET_IP_TEXT], mac[NET_MAC_TEXT];
    net_format_ip(cfg->address.address, gateway);
    net_format_mac(bridge, mac);
    strbuf_addf(text, "table bridge %s {\n    comment \"master-controller: isolation of VMs on %s\"\n", RULESET_NAME,
                cfg->bridge);
    write_sets(cfg, false, vms, count, text);
    write_stops(false, text);
    write_arp(cfg, gateway, mac, text);
    write_from_vm(cfg, mac, text);
    strbuf_addf(text,
                "    chain prerouting {\n"
                "        type filter hook prerouting priority -300; policy accept;\n"
                "        iifname " TAPS " goto from_vm\n"
                "    }\n"
                "    chain input {\n"
                "        type filter hook input priority -300; policy accept;\n"
                "        iifname " TAPS " ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto stop_protocol\n"
                "    }\n"
                "    chain forward {\n"
                "        type filter hook forward priority -300; policy accept;\n");
    if (!cfg->vm_to_vm)
        strbuf_addf(text, "        iifname " TAPS " oifname != " CANARIES " goto stop_neighbour\n"
                          "        oifname " TAPS " iifname != " CANARIES " counter drop\n");
    strbuf_addf(text, "    }\n"
                      "    chain postrouting {\n"
                      "        type filter hook postrouting priority -300; policy accept;\n");
    write_limit(cfg, "over_bytes_in", "oifname", text);
    strbuf_addf(text, "    }\n}\n");
}

/* chain to_host: answers to pings of the doctor's own making, which the kernel knows no connection of, may come in. */
static void write_input(const struct config_network *cfg, const char *gateway, struct strbuf *text) {
    const char *ports = cfg->host_ports;
    struct config_port port;
    uint32_t dns = 0;
    strbuf_addf(text,
                "    chain input {\n"
                "        type filter hook input priority filter; policy accept;\n"
                "        iifname " TAPS " goto stop_group\n"
                "        iifname \"%s\" meta nfproto ipv4 goto to_host\n"
                "    }\n"
                "    chain to_host {\n"
                "        ct state established accept\n"
                "        " FROM_CANARY " accept\n"
                "        ct state related goto about_own\n"
                "        ip daddr 169.254.0.0/16 goto stop_metadata\n"
                "        ip daddr %s icmp type { echo-request, echo-reply } goto connect\n"
                "        ct state invalid goto stop_invalid\n",
                cfg->bridge, gateway);
    if (*cfg->dns && net_parse_ip(cfg->dns, &dns) == 0 && dns == cfg->address.address)
        strbuf_addf(text, "        ip daddr %s meta l4proto { tcp, udp } th dport 53 goto connect\n", gateway);
    while (config_next_port(&ports, &port) > 0)
        strbuf_addf(text, "        ip daddr %s %s dport %u goto connect\n", gateway, port.udp ? "udp" : "tcp",
                    port.port);
    strbuf_addf(text, "        goto stop_host\n    }\n");
}

static void add_prefix(struct net_prefix prefix, struct strbuf *text) {
    char ip[NET_IP_TEXT];
    net_format_ip(prefix.address, ip);
    strbuf_addf(text, "%s/%u", ip, prefix.length);
}

/* --- the host's own networks --- */

static int compare_prefixes(const void *a, const void *b) {
    const struct net_prefix *p = a, *q = b;
    if (p->address != q->address)
        return p->address < q->address ? -1 : 1;
    return (int)p->length - (int)q->length;
}

/* Of two prefixes that share an address one is within the other, and here the shorter one comes first. 0.0.0.0/n is no
 * network that the kernel would make a route to. */
void ruleset_networks_tidy(struct ruleset_networks *networks) {
    struct net_prefix *p = networks->prefixes;
    size_t kept = 0;
    for (size_t i = 0; i < networks->count; i++)
        p[i].address &= net_mask(p[i].length);
    if (networks->count > 1)
        qsort(p, networks->count, sizeof *p, compare_prefixes);
    for (size_t i = 0; i < networks->count; i++)
        if (p[i].address != 0 && (kept == 0 || !net_contains(p[kept - 1], p[i].address)))
            p[kept++] = p[i];
    networks->count = kept;
}

static void write_networks(const struct ruleset_networks *networks, struct strbuf *text) {
    strbuf_addf(text, "    set host_networks {\n        type ipv4_addr\n        flags interval\n");
    for (size_t i = 0; i < networks->count; i++) {
        strbuf_addf(text, i == 0 ? "        elements = { " : ",\n            ");
        add_prefix(networks->prefixes[i], text);
    }
    strbuf_addf(text, networks->count > 0 ? " }\n    }\n" : "    }\n");
}

/* One rule for each network that is allowed. */
static void write_allowed(const struct config_network *cfg, const char *before, const char *after,
                          struct strbuf *text) {
    const char *allow = cfg->allow;
    struct net_prefix prefix;
    while (config_next_prefix(&allow, &prefix) > 0) {
        strbuf_addf(text, "        %sip daddr ", before);
        add_prefix(prefix, text);
        strbuf_addf(text, " %s\n", after);
    }
}

/* The kernel counts the connections of who has some, and removes who has none: its elements come and go by themselves. */
static void write_connections(const struct config_network *cfg, struct strbuf *text) {
    if (cfg->connections > 0)
        strbuf_addf(
            text, "    set connections {\n        type ipv4_addr\n        size 65535\n        flags dynamic\n    }\n");
}

/* chain about_own: the kernel takes an ICMP error for "related" to a connection by the packet inside alone, whoever sends
 * it: a VM could end or slow down its neighbours' connections, to the host and, translated, to the outside. Source:
 * net/netfilter/nf_conntrack_proto_icmp.c, nf_conntrack_inet_error().
 *
 * chain connect: what a VM may reach, as often as it may. The packets of a flow without an answer are all "new"; only one
 * that is not confirmed is its first. */
static void write_common(const struct config_network *cfg, struct strbuf *text) {
    strbuf_addf(text, "    chain about_own {\n"
                      "        ip saddr . ct original ip saddr @vm_pairs accept\n"
                      "        ip saddr . ct original ip daddr @vm_pairs accept\n"
                      "        goto stop_invalid\n"
                      "    }\n"
                      "    chain connect {\n");
    write_limit(cfg, "over_new_connections", "ct state new ct status & confirmed == 0 ip saddr", text);
    if (cfg->connections > 0)
        strbuf_addf(text, "        ct state new add @connections { ip saddr ct count over %u } goto stop_connections\n",
                    cfg->connections);
    strbuf_addf(text, "        accept\n"
                      "    }\n");
}

static void write_from_vms(const struct config_network *cfg, struct strbuf *text) {
    uint32_t dns = 0;
    strbuf_addf(text,
                "    chain from_vms {\n"
                "        ct state established accept\n"
                "        " FROM_CANARY " accept\n"
                "        ct state related goto about_own\n"
                "        ip daddr 169.254.0.0/16 goto stop_metadata\n"
                "        oifname \"%s\" " TO_CANARY " accept\n"
                "        oifname \"%s\" %s\n"
                "        ct state invalid goto stop_invalid\n",
                cfg->bridge, cfg->bridge, cfg->vm_to_vm ? "accept" : "goto stop_neighbour");
    write_allowed(cfg, "", "goto connect", text);
    if (*cfg->dns && net_parse_ip(cfg->dns, &dns) == 0)
        strbuf_addf(text, "        ip daddr %s meta l4proto { tcp, udp } th dport 53 goto connect\n", cfg->dns);
    strbuf_addf(text, "        ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 172.16.0.0/12, "
                      "192.168.0.0/16, 224.0.0.0/3 } goto stop_private\n"
                      "        ip daddr @host_networks goto stop_private\n");
    if (*cfg->uplink)
        strbuf_addf(text, "        oifname \"%s\" goto connect\n", cfg->uplink);
    strbuf_addf(text, "        goto stop_private\n    }\n");
}

/* To VMs only answers come in: with ip_forward on, a neighbour on any of the host's networks could route packets to
 * them. Without a masquerade the VMs' addresses are meant to be reached by the uplink. */
static void write_forward(const struct config_network *cfg, struct strbuf *text) {
    strbuf_addf(text, "    chain to_vms {\n"
                      "        ct state established,related accept\n");
    if (*cfg->uplink && !cfg->masquerade)
        strbuf_addf(text, "        iifname \"%s\" accept\n", cfg->uplink);
    strbuf_addf(text,
                "        counter drop\n"
                "    }\n"
                "    chain forward {\n"
                "        type filter hook forward priority filter; policy accept;\n"
                "        iifname " TAPS " goto stop_group\n"
                "        iifname \"%s\" meta nfproto ipv4 goto from_vms\n"
                "        oifname \"%s\" meta nfproto ipv4 goto to_vms\n"
                "    }\n",
                cfg->bridge, cfg->bridge);
}

static void write_masquerade(const struct config_network *cfg, struct strbuf *text) {
    char network[NET_IP_TEXT], before[96];
    if (!*cfg->uplink || !cfg->masquerade)
        return;
    net_format_ip(cfg->address.address & net_mask(cfg->address.length), network);
    snprintf(before, sizeof before, "ip saddr %s/%u oifname != \"%s\" ", network, cfg->address.length, cfg->bridge);
    strbuf_addf(text,
                "    chain postrouting {\n"
                "        type nat hook postrouting priority srcnat; policy accept;\n"
                "        ip saddr %s/%u oifname \"%s\" masquerade\n",
                network, cfg->address.length, cfg->uplink);
    write_allowed(cfg, before, "masquerade", text);
    strbuf_addf(text, "    }\n");
}

/* "add" first, because "delete" of what is not there would fail. */
void ruleset_write_removal(struct strbuf *text) {
    static const char *const families[] = {"bridge", "inet"};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        strbuf_addf(text, "add table %s %s\ndelete table %s %s\n", families[i], RULESET_NAME, families[i],
                    RULESET_NAME);
}

void ruleset_write(const struct config_network *cfg, struct net_mac bridge, const struct ruleset_vm *vms, size_t count,
                   const struct ruleset_networks *networks, struct strbuf *text) {
    char gateway[NET_IP_TEXT];
    net_format_ip(cfg->address.address, gateway);
    ruleset_write_removal(text);
    write_bridge_table(cfg, bridge, vms, count, text);
    strbuf_addf(text, "table inet %s {\n    comment \"master-controller: what VMs on %s may reach\"\n", RULESET_NAME,
                cfg->bridge);
    write_sets(cfg, true, vms, count, text);
    write_networks(networks, text);
    write_connections(cfg, text);
    write_stops(true, text);
    write_common(cfg, text);
    write_input(cfg, gateway, text);
    write_from_vms(cfg, text);
    write_forward(cfg, text);
    write_masquerade(cfg, text);
    strbuf_addf(text, "}\n");
}
