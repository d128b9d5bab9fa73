/* Packet filters: every packet under test is led through every hook on its way, over the rules as they were read. */
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/netfilter.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

enum place { AT_NONE, AT_TAP, AT_BRIDGE, AT_PEER, AT_UPLINK };

struct hook {
    uint8_t family, hook;
    enum place device, iif, oif;
    enum hop hop;
    enum place physin, physout; /* ports that br_netfilter tells */
    bool local;                 /* the host itself sends it: to the kernel that is no broadcast, whatever its address */
};

#define BR_PRE 0
#define BR_IN 1
#define BR_FORWARD 2
#define BR_OUT 3
#define BR_POST 4
#define ARP_IN 0
#define ARP_OUT 1
#define DEV_IN 0
#define DEV_OUT 1
#define IP_PRE 0
#define IP_IN 1
#define IP_FORWARD 2
#define IP_OUT 3
#define IP_POST 4

static const struct hook to_tap[] = {
    {NFPROTO_NETDEV, DEV_OUT, AT_BRIDGE, AT_NONE, AT_BRIDGE, HOP_BRIDGE_DEV},
    {NFPROTO_BRIDGE, BR_OUT, AT_NONE, AT_NONE, AT_TAP, HOP_BRIDGE_OUTPUT, .local = true},
    {NFPROTO_BRIDGE, BR_POST, AT_NONE, AT_NONE, AT_TAP, HOP_BRIDGE_OUTPUT, .local = true},
    {NFPROTO_NETDEV, DEV_OUT, AT_TAP, AT_NONE, AT_TAP, HOP_TAP_EGRESS},
};
static const struct hook from_tap[] = {
    {NFPROTO_NETDEV, DEV_IN, AT_TAP, AT_TAP, AT_NONE, HOP_TAP_INGRESS},
    {NFPROTO_BRIDGE, BR_PRE, AT_NONE, AT_TAP, AT_NONE, HOP_TAP_INGRESS},
    {NFPROTO_BRIDGE, BR_IN, AT_NONE, AT_TAP, AT_NONE, HOP_BRIDGE_INPUT},
    {NFPROTO_NETDEV, DEV_IN, AT_BRIDGE, AT_BRIDGE, AT_NONE, HOP_BRIDGE_INPUT},
};
static const struct hook from_peer[] = {
    {NFPROTO_NETDEV, DEV_IN, AT_PEER, AT_PEER, AT_NONE, HOP_BRIDGE_INPUT},
    {NFPROTO_BRIDGE, BR_PRE, AT_NONE, AT_PEER, AT_NONE, HOP_BRIDGE_INPUT},
    {NFPROTO_BRIDGE, BR_IN, AT_NONE, AT_PEER, AT_NONE, HOP_BRIDGE_INPUT},
    {NFPROTO_NETDEV, DEV_IN, AT_BRIDGE, AT_BRIDGE, AT_NONE, HOP_BRIDGE_INPUT},
};
static const struct hook to_peer[] = {
    {NFPROTO_NETDEV, DEV_OUT, AT_BRIDGE, AT_NONE, AT_BRIDGE, HOP_BRIDGE_DEV},
    {NFPROTO_BRIDGE, BR_OUT, AT_NONE, AT_NONE, AT_PEER, HOP_BRIDGE_OUTPUT, .local = true},
    {NFPROTO_BRIDGE, BR_POST, AT_NONE, AT_NONE, AT_PEER, HOP_BRIDGE_OUTPUT, .local = true},
};
static const struct hook peer_to_tap[] = {
    {NFPROTO_NETDEV, DEV_IN, AT_PEER, AT_PEER, AT_NONE, HOP_BRIDGE_FORWARD},
    {NFPROTO_BRIDGE, BR_PRE, AT_NONE, AT_PEER, AT_NONE, HOP_BRIDGE_FORWARD},
    {NFPROTO_BRIDGE, BR_FORWARD, AT_NONE, AT_PEER, AT_TAP, HOP_BRIDGE_FORWARD},
    {NFPROTO_BRIDGE, BR_POST, AT_NONE, AT_NONE, AT_TAP, HOP_BRIDGE_FORWARD},
    {NFPROTO_NETDEV, DEV_OUT, AT_TAP, AT_NONE, AT_TAP, HOP_TAP_EGRESS},
};
static const struct hook tap_to_peer[] = {
    {NFPROTO_NETDEV, DEV_IN, AT_TAP, AT_TAP, AT_NONE, HOP_TAP_INGRESS},
    {NFPROTO_BRIDGE, BR_PRE, AT_NONE, AT_TAP, AT_NONE, HOP_TAP_INGRESS},
    {NFPROTO_BRIDGE, BR_FORWARD, AT_NONE, AT_TAP, AT_PEER, HOP_BRIDGE_FORWARD},
    {NFPROTO_BRIDGE, BR_POST, AT_NONE, AT_NONE, AT_PEER, HOP_BRIDGE_FORWARD},
};
/* br_netfilter lends the bridge's frames to the host's rules. */
#define LENT(from, to)                                                                                                 \
    {                                                                                                                  \
        {NFPROTO_IPV4, IP_PRE, AT_NONE, AT_BRIDGE, AT_NONE, HOP_BRIDGE_FORWARD, from, AT_NONE},                        \
            {NFPROTO_IPV4, IP_FORWARD, AT_NONE, AT_BRIDGE, AT_BRIDGE, HOP_BRIDGE_FORWARD, from, to},                   \
            {NFPROTO_IPV4, IP_POST, AT_NONE, AT_NONE, AT_BRIDGE, HOP_BRIDGE_FORWARD, from, to},                        \
    }
static const struct hook lent_to_tap[] = LENT(AT_PEER, AT_TAP), lent_to_peer[] = LENT(AT_TAP, AT_PEER);
static const struct hook arp_out[] = {
    {NFPROTO_ARP, ARP_OUT, AT_NONE, AT_NONE, AT_BRIDGE, HOP_HOST_OUTPUT, .local = true}};
static const struct hook arp_in[] = {{NFPROTO_ARP, ARP_IN, AT_NONE, AT_BRIDGE, AT_NONE, HOP_HOST_INPUT}};
static const struct hook ip_out[] = {
    {NFPROTO_IPV4, IP_OUT, AT_NONE, AT_NONE, AT_BRIDGE, HOP_HOST_OUTPUT},
    {NFPROTO_IPV4, IP_POST, AT_NONE, AT_NONE, AT_BRIDGE, HOP_HOST_OUTPUT},
};
static const struct hook ip_in[] = {
    {NFPROTO_IPV4, IP_PRE, AT_NONE, AT_BRIDGE, AT_NONE, HOP_HOST_INPUT},
    {NFPROTO_IPV4, IP_IN, AT_NONE, AT_BRIDGE, AT_NONE, HOP_HOST_INPUT},
};
static const struct hook egress_out[] = {
    {NFPROTO_IPV4, IP_PRE, AT_NONE, AT_BRIDGE, AT_NONE, HOP_HOST_INPUT},
    {NFPROTO_IPV4, IP_FORWARD, AT_NONE, AT_BRIDGE, AT_UPLINK, HOP_HOST_FORWARD},
    {NFPROTO_IPV4, IP_POST, AT_NONE, AT_NONE, AT_UPLINK, HOP_HOST_NAT},
    {NFPROTO_NETDEV, DEV_OUT, AT_UPLINK, AT_NONE, AT_UPLINK, HOP_HOST_UPLINK},
};
static const struct hook egress_back[] = {
    {NFPROTO_NETDEV, DEV_IN, AT_UPLINK, AT_UPLINK, AT_NONE, HOP_HOST_UPLINK},
    {NFPROTO_IPV4, IP_PRE, AT_NONE, AT_UPLINK, AT_NONE, HOP_HOST_FORWARD},
    {NFPROTO_IPV4, IP_FORWARD, AT_NONE, AT_UPLINK, AT_BRIDGE, HOP_HOST_FORWARD},
};
#define COUNT(a) (sizeof(a) / sizeof *(a))

/* Who is at the places, for one kind of traffic. */
struct scene {
    const char *tap, *bridge, *peer, *uplink;
    int32_t tap_index, bridge_index, peer_index, uplink_index;
    struct packet_ends there, back; /* of the request and of the answer */
};

static const char *name_at(const struct scene *scene, enum place place, int32_t *ret_index) {
    static const char nowhere[] = "";
    *ret_index = 0;
    switch (place) {
    case AT_NONE:
        return nowhere;
    case AT_TAP:
        *ret_index = scene->tap_index;
        return scene->tap;
    case AT_BRIDGE:
        *ret_index = scene->bridge_index;
        return scene->bridge;
    case AT_PEER:
        *ret_index = scene->peer_index;
        return scene->peer ? scene->peer : nowhere;
    case AT_UPLINK:
        *ret_index = scene->uplink_index;
        return scene->uplink ? scene->uplink : nowhere;
    }
    return nowhere;
}

/* --- who is to blame --- */

static bool is_ebtables(const struct snap_nft_chain *chain) {
    static const char *const chains[] = {"INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING", "BROUTING"};
    static const char *const tables[] = {"filter", "nat", "broute"};
    bool table = false, name = !chain->base; /* user chains hang below */
    for (size_t i = 0; i < COUNT(tables); i++)
        table = table || strcmp(chain->table, tables[i]) == 0;
    for (size_t i = 0; i < COUNT(chains); i++)
        name = name || strcmp(chain->name, chains[i]) == 0;
    return chain->family == NFPROTO_BRIDGE && table && name;
}

static const char *id_of(const struct snap_nft_chain *base, bool policy, enum hop hop) {
    if (base->family == NFPROTO_BRIDGE && is_ebtables(base))
        return policy ? "ebtables.policy-drop" : "ebtables.drop";
    if (base->family == NFPROTO_BRIDGE)
        return "nft.bridge-drop";
    if (base->family == NFPROTO_ARP)
        return "nft.arp-drop";
    if (base->family == NFPROTO_NETDEV || (base->family == NFPROTO_INET && base->hook == NF_INET_INGRESS))
        return "nft.netdev-drop";
    switch (base->hook) {
    case IP_IN:
        return "netfilter.input-drop";
    case IP_OUT:
        return "netfilter.output-drop";
    case IP_FORWARD:
        return hop == HOP_BRIDGE_FORWARD ? "netfilter.bridge-forward-drop" : "netfilter.forward-drop";
    case IP_POST:
        return "netfilter.postrouting-drop";
    }
    return "netfilter.prerouting-drop";
}

static void escape(const char *text, char *dst, size_t size) {
    str_escape(text, strlen(text), dst, size);
}

/* "bridge filter OUTPUT handle 4", "… policy" */
static void where_of(const struct snap_nft_chain *chain, const struct snap_nft_rule *rule, char *dst, size_t size) {
    char table[64], name[64];
    escape(chain->table, table, sizeof table);
    escape(rule ? rule->chain : chain->name, name, sizeof name);
    int n = snprintf(dst, size, "%s %.30s %.30s ", nft_family_name(chain->family), table, name);
    if (rule && n > 0 && (size_t)n < size)
        snprintf(dst + n, size - (size_t)n, "handle %llu", (unsigned long long)rule->handle);
    else if (n > 0 && (size_t)n < size)
        snprintf(dst + n, size - (size_t)n, "policy drop");
}

/* The same rule or policy that was met before, at the same sort of hop. */
static struct cause *find_cause(struct judge *j, const char *id, const char *where) {
    for (uint32_t i = 0; i < j->causes_count; i++) {
        struct finding *f = &j->causes[i].finding;
        if (strcmp(f->id, id) == 0 && f->evidence_count && strcmp(f->evidence[0].where, where) == 0)
            return &j->causes[i];
    }
    return NULL;
}

static const struct snap_nft_rule *same_rule(const struct snapshot *s, const struct snap_nft_rule *rule) {
    for (uint32_t i = 0; s && i < s->rules_count; i++)
        if (s->rules[i].handle == rule->handle && s->rules[i].family == rule->family &&
            strcmp(s->rules[i].table, rule->table) == 0 && strcmp(s->rules[i].chain, rule->chain) == 0)
            return &s->rules[i];
    return NULL;
}

static void describe_rule(struct judge *j, struct cause *c, const char *where, const struct snap_nft_chain *base,
                          const struct snap_nft_rule *rule) {
    char text[160];
    if (!rule) {
        cause_evidence(c, "nft", where, "policy drop: what no rule accepts is dropped");
        struct repair_step *step = cause_step(c, REPAIR_NFT_CHAIN_POLICY, "");
        step->nft_family = base->family;
        str_copy(step->nft_table, sizeof step->nft_table, base->table);
        str_copy(step->nft_chain, sizeof step->nft_chain, base->name);
        str_copy(step->text, sizeof step->text, "accept");
        return;
    }
    nft_rule_text(j->s, rule, text, sizeof text);
    const struct snap_nft_rule *after = same_rule(j->host->after, rule);
    uint64_t more = after && rule->counted && after->packets > rule->packets ? after->packets - rule->packets : 0;
    if (more) {
        cause_evidence(c, "nft", where, "%s; %llu packets more during the probe", text, (unsigned long long)more);
        c->seen = true;
    } else {
        cause_evidence(c, "nft", where, "%s", text);
    }
    struct repair_step *step = cause_step(c, REPAIR_NFT_RULE_DELETE, "");
    step->nft_family = rule->family;
    str_copy(step->nft_table, sizeof step->nft_table, rule->table);
    str_copy(step->nft_chain, sizeof step->nft_chain, rule->chain);
    step->handle = rule->handle;
}

struct cause *judge_nft_cause(struct judge *j, const char *id, uint32_t may, const struct snap_nft_rule *rule,
                              const char *what) {
    char where[96];
    struct snap_nft_chain chain = {.family = rule->family};
    str_copy(chain.table, sizeof chain.table, rule->table);
    where_of(&chain, rule, where, sizeof where);
    struct cause *c = cause_add(j, id, 0, may, "%s %s", where, what);
    if (c)
        describe_rule(j, c, where, &chain, rule);
    return c;
}

#define FLOWS_OF_CANARY (FLOWS_CANARY | FLOWS_TO_HOST | FLOW(PROBE_EGRESS))

static void entitle(struct cause *c, const char *where, const char *verb, const char *what) {
    snprintf(c->finding.title, sizeof c->finding.title, "%s%s %s", where, verb, what);
    c->guessed = false;
}

static void blame(struct judge *j, const struct nft_result *result, enum hop hop, uint32_t flow,
                  const struct packet *packet, bool sure) {
    char where[96];
    bool policy = !result->rule;
    const struct snap_nft_chain *base = result->chain;
    const char *id = id_of(base, policy, hop);
    where_of(base, result->rule, where, sizeof where);
    struct cause *c = find_cause(j, id, where);
    const char *verb = policy ? ": no rule accepts" : result->rejects ? " rejects" : " drops";
    if (!c) {
        c = cause_add(j, id, 0, 0, "%s", where);
        if (!c)
            return;
        entitle(c, where, verb, packet_kind_name(packet->kind));
        c->guessed = !sure;
        c->finding.hop = hop;
        c->hidden = true;
        describe_rule(j, c, where, base, result->rule);
    }
    if (sure && c->guessed)
        entitle(c, where, verb, packet_kind_name(packet->kind));
    /* A rule may know the canary for a stranger, and be right. */
    if (flow & ~FLOWS_OF_CANARY)
        c->hidden = false;
    *(sure ? &c->kills : &c->may) |= flow;
}

/* A wrong MAC in an answer misleads all that follows, until the guest asks by itself: what lives now is no proof. */
static void rewrites_arp(struct judge *j, struct cause *c) {
    struct net_mac named;
    c->may |= FLOWS_IP;
    if (c->policy || !judge_odd_answer(j, &named) || !j->has_mac || mac_equal(named, j->mac))
        return;
    cause_evidence(c, "probe", "ARP", "the guest's answer names %s, its MAC is %s", mac_text(named).text,
                   mac_text(j->mac).text);
    c->kills |= FLOW_OTHER;
    c->seen = c->policy = true;
    c->refutable = false;
}

/* Behind the choice of the port a changed frame still comes to the TAP: one that was not seen there was not lost by it. */
static uint32_t flows_unchanged(const struct judge *j, enum hop hop) {
    uint32_t flows = 0;
    for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT && (hop == HOP_BRIDGE_OUTPUT || hop == HOP_TAP_EGRESS); kind++)
        if (j->paths[kind].asked && !judge_answer(j, (enum probe_kind)kind)->request_tap.count)
            flows |= FLOW(kind);
    return flows;
}

/* It rewrites addresses, or sends the packet elsewhere: that kills only if the new way is wrong. */
static void blame_change(struct judge *j, const struct nft_result *result, enum hop hop, uint32_t flow) {
    char where[96];
    if (hop == HOP_HOST_INPUT && flow && !(flow & ~FLOWS_EGRESS))
        hop = HOP_HOST_NAT; /* another destination for what only passes through */
    const struct snap_nft_chain like = {.family = result->changes->family};
    struct snap_nft_chain chain = like;
    str_copy(chain.table, sizeof chain.table, result->changes->table);
    where_of(&chain, result->changes, where, sizeof where);
    struct cause *c = find_cause(j, "nft.rewrites", where);
    if (!c) {
        c = cause_add(j, "nft.rewrites", 0, 0, "%s changes where packets go", where);
        if (!c)
            return;
        c->finding.hop = hop;
        describe_rule(j, c, where, &chain, result->changes);
    }
    c->may |= flow;
    if (flow & FLOWS_ARP)
        rewrites_arp(j, c);
    if (hop == HOP_HOST_OUTPUT && (flow & FLOW(PROBE_ICMP)))
        c->may |= FLOW(PROBE_ARP_KERNEL);
}

/* --- leading packets through --- */

static bool is_hidden(const struct scene *scene, enum place place) {
    return place == AT_PEER && !scene->peer;
}

static void lead_one(struct judge *j, const struct scene *scene, const struct hook *hook, const struct packet *p,
                     uint32_t flow) {
    struct packet packet = *p;
    struct nft_result result;
    int32_t ignored;
    str_copy(packet.iif, sizeof packet.iif, name_at(scene, hook->iif, &packet.iif_index));
    str_copy(packet.oif, sizeof packet.oif, name_at(scene, hook->oif, &packet.oif_index));
    str_copy(packet.physin, sizeof packet.physin, name_at(scene, hook->physin, &ignored));
    str_copy(packet.physout, sizeof packet.physout, name_at(scene, hook->physout, &ignored));
    packet.iif_hidden = is_hidden(scene, hook->iif) || is_hidden(scene, hook->physin);
    packet.oif_hidden = is_hidden(scene, hook->oif) || is_hidden(scene, hook->physout);
    if (hook->family == NFPROTO_BRIDGE) {
        str_copy(packet.ibr, sizeof packet.ibr, hook->iif == AT_NONE ? "" : scene->bridge);
        str_copy(packet.obr, sizeof packet.obr, hook->oif == AT_NONE ? "" : scene->bridge);
    }
    packet.local_out = hook->family == NFPROTO_IPV4 && hook->hook == IP_OUT;
    if (hook->local)
        packet.pkttype = 0; /* PACKET_HOST */
    if (hook->family == NFPROTO_IPV4 && packet_is_arp(&packet))
        return;
    if (hook->family == NFPROTO_ARP && !packet_is_arp(&packet))
        return;
    nft_eval_hook(&j->host->index, hook->family, hook->hook, name_at(scene, hook->device, &ignored), &packet,
                  POLICY_TABLE, &result);
    if (result.changes && !(result.outcome == NFT_DROPS && result.rule == result.changes))
        blame_change(j, &result, hook->hop, flow & ~flows_unchanged(j, hook->hop));
    if (result.outcome != NFT_PASSES)
        blame(j, &result, hook->hop, flow, &packet, result.outcome == NFT_DROPS);
}

static void lead(struct judge *j, const struct scene *scene, const struct hook *hooks, size_t count,
                 enum packet_kind kind, bool back, uint32_t flow) {
    struct packet packet;
    packet_build(kind, back ? &scene->back : &scene->there, &packet);
    for (size_t i = 0; i < count; i++)
        lead_one(j, scene, &hooks[i], &packet, flow);
}

/* A request one way and its answer the other, each through two groups of hooks. */
struct trip {
    const struct hook *first;
    size_t first_count;
    const struct hook *second;
    size_t second_count;
    const struct hook *back_first;
    size_t back_first_count;
    const struct hook *back_second;
    size_t back_second_count;
};

static void travel(struct judge *j, const struct scene *scene, const struct trip *trip, enum packet_kind request,
                   enum packet_kind answer, uint32_t flow) {
    lead(j, scene, trip->first, trip->first_count, request, false, flow);
    lead(j, scene, trip->second, trip->second_count, request, false, flow);
    lead(j, scene, trip->back_first, trip->back_first_count, answer, true, flow);
    lead(j, scene, trip->back_second, trip->back_second_count, answer, true, flow);
}

#define GROUP(a) a, COUNT(a)

static void host_to_guest(struct judge *j, const struct scene *scene) {
    static const struct trip raw = {NULL, 0, GROUP(to_tap), GROUP(from_tap), NULL, 0};
    static const struct trip arp = {GROUP(arp_out), GROUP(to_tap), GROUP(from_tap), GROUP(arp_in)};
    static const struct trip ip = {GROUP(ip_out), GROUP(to_tap), GROUP(from_tap), GROUP(ip_in)};
    travel(j, scene, &raw, PACKET_ARP_REQUEST, PACKET_ARP_REPLY, FLOW(PROBE_ARP) | FLOW(PROBE_ARP_UNICAST));
    travel(j, scene, &arp, PACKET_ARP_REQUEST, PACKET_ARP_REPLY, FLOW(PROBE_ARP_KERNEL));
    travel(j, scene, &ip, PACKET_ECHO, PACKET_ECHO_REPLY,
           FLOW(PROBE_ICMP) | FLOW(PROBE_BURST_ICMP) | FLOW(PROBE_LARGE));
    if (j->target->port)
        travel(j, scene, &ip, PACKET_SYN, PACKET_SYN_ACK, FLOW(PROBE_TCP) | FLOW(PROBE_TCP_RAW));
}

static void swap_ends(struct scene *scene) {
    scene->back = (struct packet_ends){.source = scene->there.destination,
                                       .destination = scene->there.source,
                                       .source_mac = scene->there.destination_mac,
                                       .destination_mac = scene->there.source_mac,
                                       .port = scene->there.port};
}

/* br_netfilter, for all bridges or for this one. */
static bool lends(const struct judge *j) {
    return snap_sysctl_int(j->s, "net/bridge/bridge-nf-call-iptables", 0) ||
           snap_bridge_attr(j->s, j->bridge, IFLA_BR_NF_CALL_IPTABLES, 0);
}

/* A VM and this one. */
static void peer_to_guest(struct judge *j, const struct scene *scene, uint32_t arp, uint32_t unicast, bool tcp) {
    static const struct trip l2 = {NULL, 0, GROUP(peer_to_tap), GROUP(tap_to_peer), NULL, 0};
    static const struct trip l3 = {GROUP(lent_to_tap), GROUP(peer_to_tap), GROUP(tap_to_peer), GROUP(lent_to_peer)};
    const struct trip *ip = lends(j) ? &l3 : &l2;
    travel(j, scene, &l2, PACKET_ARP_REQUEST, PACKET_ARP_REPLY, arp);
    travel(j, scene, ip, PACKET_ECHO, PACKET_ECHO_REPLY, unicast);
    if (tcp)
        travel(j, scene, ip, PACKET_SYN, PACKET_SYN_ACK, unicast);
}

static const struct snap_link *find_peer(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->links_count; i++) {
        const struct snap_link *link = &j->s->links[i];
        if (link != j->tap && link->is_tap && snap_is_port(link, j->bridge->index) && link->carrier)
            return link;
    }
    return NULL;
}

/* Who is behind another VM's TAP: by its record, else the one MAC that the bridge learned there and the address that
 * the host knows for it. What is not known stays zero: a rule that allows only what is the VM's own must not be tried
 * with what is not. */
static void describe_peer(const struct judge *j, const struct snap_link *peer, struct packet_ends *ends) {
    const struct snap_vm *vm = peer ? snap_vm_of_tap(j->s, peer->name) : NULL;
    uint32_t learned = 0;
    if (vm) {
        ends->source = vm->ip;
        ends->source_mac = vm->mac;
        return;
    }
    for (uint32_t i = 0; peer && i < j->s->fdbs_count; i++) {
        const struct snap_fdb *fdb = &j->s->fdbs[i];
        if (fdb->link != peer->index || !fdb->master || (fdb->state & NUD_PERMANENT) || mac_equal(fdb->mac, peer->mac))
            continue;
        ends->source_mac = fdb->mac;
        learned++;
    }
    if (learned != 1) {
        ends->source_mac = (struct net_mac){{0}};
        return;
    }
    for (uint32_t i = 0; i < j->s->neighs_count; i++) {
        const struct snap_neigh *n = &j->s->neighs[i];
        if (n->has_mac && n->link == j->bridge->index && !(n->flags & NTF_PROXY) && mac_equal(n->mac, ends->source_mac))
            ends->source = n->ip;
    }
}

/* The guest asks for the host, as it does before it sends anything. */
static void guest_asks(struct judge *j, const struct scene *scene) {
    static const struct trip arp = {GROUP(from_tap), GROUP(arp_in), GROUP(arp_out), GROUP(to_tap)};
    struct scene turned = *scene;
    turned.there = scene->back;
    turned.back = scene->there;
    travel(j, &turned, &arp, PACKET_ARP_REQUEST, PACKET_ARP_REPLY, FLOW_OTHER);
}

static void peers(struct judge *j, struct scene scene) {
    const struct snap_link *peer = find_peer(j);
    /* With no other VM here, one of whom nothing is known. */
    scene.peer = peer ? peer->name : NULL;
    scene.peer_index = peer ? peer->index : 0;
    scene.there =
        (struct packet_ends){.destination = j->target->ip, .destination_mac = j->mac, .port = j->target->port};
    describe_peer(j, peer, &scene.there);
    swap_ends(&scene);
    peer_to_guest(j, &scene, FLOW_PEER, FLOW_PEER_UNICAST, true);
    if (!j->probe || !j->probe->canary.made)
        return;
    const struct probe_canary *canary = &j->probe->canary;
    scene.peer = canary->name;
    scene.peer_index = canary->ifindex;
    scene.there = (struct packet_ends){
        .source = canary->ip, .destination = j->target->ip, .source_mac = canary->mac, .destination_mac = j->mac};
    swap_ends(&scene);
    peer_to_guest(j, &scene, FLOW(PROBE_CANARY_ARP), FLOW(PROBE_CANARY_ICMP), false);
    /* The canary and the host. */
    static const struct trip arp = {GROUP(from_peer), GROUP(arp_in), GROUP(arp_out), GROUP(to_peer)};
    static const struct trip ip = {GROUP(from_peer), GROUP(ip_in), GROUP(ip_out), GROUP(to_peer)};
    scene.there.destination = j->bridge_address.address;
    scene.there.destination_mac = j->bridge->mac;
    swap_ends(&scene);
    travel(j, &scene, &arp, PACKET_ARP_REQUEST, PACKET_ARP_REPLY, FLOW(PROBE_CANARY_ARP_HOST));
    travel(j, &scene, &ip, PACKET_ECHO, PACKET_ECHO_REPLY, FLOW(PROBE_CANARY_ICMP_HOST));
}

static const struct snap_lookup *world(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->lookups_count; i++)
        if (j->s->lookups[i].to == 0x08080808 && !j->s->lookups[i].from)
            return &j->s->lookups[i];
    return NULL;
}

static void egress(struct judge *j, struct scene scene) {
    static const struct trip trip = {GROUP(from_tap), GROUP(egress_out), GROUP(egress_back), GROUP(to_tap)};
    const struct snap_lookup *out = world(j);
    const struct snap_link *uplink = out && !out->error ? snap_link_by_index(j->s, out->link) : NULL;
    if (!uplink || uplink == j->bridge)
        return;
    scene.uplink = uplink->name;
    scene.uplink_index = uplink->index;
    scene.there = (struct packet_ends){.source = j->target->ip,
                                       .destination = 0x08080808,
                                       .source_mac = j->mac,
                                       .destination_mac = j->bridge->mac,
                                       .port = 443};
    swap_ends(&scene);
    travel(j, &scene, &trip, PACKET_ECHO, PACKET_ECHO_REPLY, FLOW_EGRESS_GUEST);
    travel(j, &scene, &trip, PACKET_SYN, PACKET_SYN_ACK, FLOW_EGRESS_TCP);
    travel(j, &scene, &trip, PACKET_DNS, PACKET_DNS_REPLY, FLOW_EGRESS_DNS);
    if (!j->probe || !j->probe->canary.made)
        return;
    static const struct trip canary = {GROUP(from_peer), GROUP(egress_out), GROUP(egress_back), GROUP(to_peer)};
    scene.peer = j->probe->canary.name;
    scene.peer_index = j->probe->canary.ifindex;
    scene.there.source = j->probe->canary.ip;
    scene.there.source_mac = j->probe->canary.mac;
    swap_ends(&scene);
    travel(j, &scene, &canary, PACKET_ECHO, PACKET_ECHO_REPLY, FLOW(PROBE_EGRESS));
}

/* --- what the trace saw --- */

static uint8_t family_of(const char *name) {
    static const uint8_t families[] = {NFPROTO_INET, NFPROTO_IPV4, NFPROTO_ARP, NFPROTO_NETDEV, NFPROTO_BRIDGE};
    for (size_t i = 0; i < COUNT(families); i++)
        if (strcmp(name, nft_family_name(families[i])) == 0)
            return families[i];
    return NFPROTO_IPV6;
}

static const struct snap_nft_chain *chain_of(const struct snapshot *s, const struct trace_rule *seen) {
    uint8_t family = family_of(seen->family);
    for (uint32_t i = 0; i < s->chains_count; i++)
        if (s->chains[i].family == family && strcmp(s->chains[i].name, seen->chain) == 0 &&
            strcmp(s->chains[i].table, seen->table) == 0)
            return &s->chains[i];
    return NULL;
}

static const struct snap_nft_rule *rule_of(const struct snapshot *s, const struct trace_rule *seen) {
    uint8_t family = family_of(seen->family);
    for (uint32_t i = 0; seen->handle && i < s->rules_count; i++)
        if (s->rules[i].handle == seen->handle && s->rules[i].family == family &&
            strcmp(s->rules[i].chain, seen->chain) == 0 && strcmp(s->rules[i].table, seen->table) == 0)
            return &s->rules[i];
    return NULL;
}

/* A user chain has no hook: the hook comes from where the packet died. */
static const char *id_of_hop(uint8_t family, enum hop hop) {
    struct snap_nft_chain like = {.family = family, .base = true, .hook = IP_PRE};
    if (hop == HOP_HOST_INPUT)
        like.hook = IP_IN;
    else if (hop == HOP_HOST_OUTPUT)
        like.hook = IP_OUT;
    else if (hop == HOP_HOST_FORWARD || hop == HOP_BRIDGE_FORWARD)
        like.hook = IP_FORWARD;
    return id_of(&like, false, hop);
}

static bool is_filter_hop(enum hop hop) {
    return hop == HOP_HOST_INPUT || hop == HOP_HOST_OUTPUT || hop == HOP_HOST_FORWARD || hop == HOP_BRIDGE_FORWARD ||
           hop == HOP_BRIDGE_OUTPUT || hop == HOP_BRIDGE_INPUT || hop == HOP_TAP_INGRESS || hop == HOP_TAP_EGRESS ||
           hop == HOP_BRIDGE_DEV || hop == HOP_HOST_NAT || hop == HOP_HOST_UPLINK;
}

static void take_seen(struct judge *j, enum probe_kind kind, const struct trace_rule *seen) {
    struct path *path = &j->paths[kind];
    if (strcmp(seen->table, POLICY_TABLE) == 0)
        return;
    const struct snap_nft_chain *chain = chain_of(j->s, seen);
    const struct snap_nft_rule *rule = rule_of(j->s, seen);
    struct snap_nft_chain unknown = {.family = family_of(seen->family), .base = true};
    struct cause *c = NULL;
    char where[96];
    if (!chain) {
        str_copy(unknown.table, sizeof unknown.table, seen->table);
        str_copy(unknown.name, sizeof unknown.name, seen->chain);
        chain = &unknown;
    }
    where_of(chain, rule, where, sizeof where);
    enum hop hop = is_filter_hop(path->dies) ? path->dies : HOP_HOST_OUTPUT;
    const char *id = chain->base && chain != &unknown ? id_of(chain, !rule, hop) : id_of_hop(chain->family, hop);
    if (!chain->base && is_ebtables(chain))
        id = "ebtables.drop";
    for (uint32_t i = 0; i < j->causes_count && !c; i++)
        if (j->causes[i].finding.evidence_count && strcmp(j->causes[i].finding.evidence[0].where, where) == 0 &&
            (((j->causes[i].kills | j->causes[i].may) & FLOW(kind)) ||
             (j->causes[i].finding.hop == hop && strcmp(j->causes[i].finding.id, id) == 0)))
            c = &j->causes[i];
    if (!c) {
        c = cause_add(j, id, 0, 0, "%s drops %s", where, path_words(kind));
        if (!c)
            return;
        c->finding.hop = hop;
        c->hidden = (FLOW(kind) & FLOWS_OF_CANARY) != 0;
        describe_rule(j, c, where, chain, rule);
    }
    if (!(FLOW(kind) & FLOWS_OF_CANARY))
        c->hidden = false;
    if (c->guessed)
        entitle(c, where, rule ? " drops" : ": no rule accepts", path_words(kind));
    if (!c->seen)
        cause_evidence(c, "trace", where, "nftrace: verdict \"%s\" on our own packet (%s)", seen->verdict,
                       path_words(kind));
    c->seen = true;
    c->kills |= FLOW(kind);
    if (path->dies != c->finding.hop)
        path->hops |= HOPBIT(c->finding.hop);
}

static const char *legacy_id(const char *hook) {
    if (str_starts(hook, "bridge."))
        return "ebtables.drop";
    if (str_starts(hook, "arp."))
        return "nft.arp-drop";
    if (strcmp(hook, "ip.input") == 0)
        return "netfilter.input-drop";
    if (strcmp(hook, "ip.output") == 0)
        return "netfilter.output-drop";
    if (strcmp(hook, "ip.forward") == 0)
        return "netfilter.forward-drop";
    if (strcmp(hook, "br_netfilter.forward") == 0)
        return "netfilter.bridge-forward-drop";
    return "netfilter.prerouting-drop";
}

/* hook: "ip.input", "br_netfilter.forward" */
static bool is_hook(uint8_t number, const char *hook) {
    static const char *const names[] = {"prerouting", "input", "forward", "output", "postrouting"};
    const char *dot = strchr(hook, '.');
    return dot && number < sizeof names / sizeof *names && strcmp(dot + 1, names[number]) == 0;
}

static const struct snap_hook *hook_like(const struct snapshot *s, const char *hook, bool bpf) {
    uint8_t family = str_starts(hook, "bridge.") ? NFPROTO_BRIDGE
                     : str_starts(hook, "arp.")  ? NFPROTO_ARP
                                                 : NFPROTO_IPV4;
    for (uint32_t i = 0; i < s->hooks_count; i++) {
        const struct snap_hook *h = &s->hooks[i];
        bool xt = strstr(h->function, "ebt_") || strstr(h->function, "arpt_") || strstr(h->function, "ipt_") ||
                  strstr(h->function, "ebtable") || strstr(h->function, "arptable") || strstr(h->function, "iptable");
        if (h->family == family && (bpf ? h->prog_id && is_hook(h->hook, hook) : xt))
            return h;
    }
    return NULL;
}

static void describe_bpf(const struct judge *j, struct cause *c, const struct snap_hook *hook) {
    const struct snap_prog *prog = snap_prog_get(j->s, hook->prog_id);
    cause_evidence(c, "bpf", "netfilter",
                   "program %u \"%s\", tag %s, hangs there at priority %d by link %u, in this namespace or "
                   "another's",
                   hook->prog_id, prog ? prog->name : "?", prog ? prog->tag : "?", hook->priority, hook->link_id);
    if (c)
        c->finding.confidence = 0.7;
    cause_plan(c, "bpftool link detach id %u, if nobody needs it", hook->link_id);
}

/* Dropped in netfilter, and not by a rule of nftables. */
static void take_legacy(struct judge *j, enum probe_kind kind, const struct trace_where *w) {
    struct path *path = &j->paths[kind];
    const struct snap_hook *legacy = hook_like(j->s, w->drop_hook, false), *bpf = hook_like(j->s, w->drop_hook, true);
    if (judge_is_explained(j, kind, HOPBIT(path->dies)) || !is_filter_hop(path->dies))
        return;
    if (!legacy && !bpf && !j->s->host.legacy_xtables)
        return;
    const char *id = bpf && !legacy ? "bpf.netfilter-drop" : legacy_id(w->drop_hook);
    struct cause *c = find_cause(j, id, "legacy");
    if (!c) {
        c = cause_add(j, id, 0, 0,
                      bpf && !legacy ? "a BPF program in netfilter at %s drops %s"
                                     : "a legacy xtables rule at %s drops %s",
                      w->drop_hook, path_words(kind));
        cause_evidence(c, "trace", "legacy", "dropped by %s in %s, and by no rule of nftables", w->drop_reason,
                       w->drop_location);
        if (legacy)
            cause_evidence(c, "hooks", w->drop_hook, "hooked in: %s", legacy->function);
        else if (bpf)
            describe_bpf(j, c, bpf);
        if (*j->s->host.legacy_tables)
            cause_evidence(c, "proc", "legacy", "legacy tables: %s", j->s->host.legacy_tables);
        if (legacy || !bpf)
            cause_plan(c, "look at the legacy table (ebtables-legacy, arptables-legacy, iptables-legacy -L -v)");
    }
    if (!c)
        return;
    if (!c->seen)
        c->finding.hop = path->dies;
    c->seen = true;
    c->kills |= FLOW(kind);
    path->hops |= HOPBIT(c->finding.hop);
}

static void take_trace(struct judge *j) {
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++) {
        struct path *path = &j->paths[kind];
        if (!path->asked || path->alive)
            continue;
        if (path->out.rule)
            take_seen(j, (enum probe_kind)kind, path->out.rule);
        if (path->back.rule)
            take_seen(j, (enum probe_kind)kind, path->back.rule);
    }
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++) {
        struct path *path = &j->paths[kind];
        if (!path->asked || path->alive)
            continue;
        if (path->out.dropped && path->out.legacy_table)
            take_legacy(j, (enum probe_kind)kind, &path->out);
        else if (path->back.dropped && path->back.legacy_table)
            take_legacy(j, (enum probe_kind)kind, &path->back);
    }
}

/* Name resolution alone is dead. */
static void rename_dns(struct judge *j) {
    for (uint32_t i = 0; i < j->causes_count; i++) {
        struct cause *c = &j->causes[i];
        if (strcmp(c->finding.id, "netfilter.forward-drop") != 0 || c->kills != FLOW_EGRESS_DNS || c->may)
            continue;
        const struct catalogue_row *row = catalogue_find("guest.dns");
        str_copy(c->finding.id, sizeof c->finding.id, row->id);
        str_copy(c->finding.layer, sizeof c->finding.layer, row->layer);
        str_copy(c->finding.explanation, sizeof c->finding.explanation, row->means);
    }
}

/* Rules and routes that say that egress or VM-to-VM traffic must die are told although nothing was asked. */
static void mark_policies(struct judge *j) {
    for (uint32_t i = 0; i < j->causes_count; i++) {
        struct cause *c = &j->causes[i];
        uint32_t ping = FLOW_EGRESS_GUEST | FLOWS_OF_CANARY;
        /* Who lets everything but ping out has a reason. */
        if ((c->kills & FLOW_EGRESS_GUEST) && !((c->kills | c->may) & ~ping))
            c->hidden = true;
        if (str_starts(c->finding.id, "nft") || str_starts(c->finding.id, "net") || str_starts(c->finding.id, "ebt") ||
            strcmp(c->finding.id, "guest.dns") == 0)
            c->policy = true;
        const uint32_t pings = FLOW(PROBE_CANARY_ICMP_HOST) | FLOW(PROBE_HOST_ICMP_CANARY) | FLOW(PROBE_EGRESS);
        struct cause real = *c;
        /* What cannot be read, and so not led a VM's packet through, is believed for VMs too. */
        bool legacy = c->finding.evidence_count && strcmp(c->finding.evidence[0].where, "legacy") == 0;
        bool unread = legacy || strcmp(c->finding.id, "nft.rewrites") == 0;
        uint32_t canarys = legacy && c->finding.hop == HOP_HOST_FORWARD ? pings & ~FLOW(PROBE_EGRESS)
                           : unread                                     ? pings
                                                                        : FLOWS_OF_CANARY;
        if (c->seen) /* what lives all the same was led through it wrongly, and does not speak for it */
            real.kills &= ~(j->alive & FLOWS_HOST);
        if ((c->may & FLOW_EGRESS_GUEST) && strcmp(c->finding.id, "nft.rewrites") == 0)
            canarys &= ~FLOW(PROBE_EGRESS); /* a guest's packets it would change as well */
        real.kills &= ~canarys;
        real.may &= ~canarys;
        if (c->policy && !cause_counts(j, &real)) /* only the canary's packets are lost */
            c->hidden = true;
    }
}

void rules_filters(struct judge *j) {
    struct scene scene = {.tap = j->target->tap, .bridge = j->bridge ? j->bridge->name : j->target->bridge};
    if (j->tap && j->bridge && j->target->ip) {
        scene.tap_index = j->tap->index;
        scene.bridge_index = j->bridge->index;
        scene.there = (struct packet_ends){.source = j->bridge_address.address,
                                           .destination = j->target->ip,
                                           .source_mac = j->bridge->mac,
                                           .destination_mac = j->mac,
                                           .port = j->target->port};
        swap_ends(&scene);
        host_to_guest(j, &scene);
        guest_asks(j, &scene);
        peers(j, scene);
        egress(j, scene);
    }
    take_trace(j);
    acquit_rules(j);
    rename_dns(j);
    mark_policies(j);
}
