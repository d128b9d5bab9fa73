/* The host's own layer 3: routes, rules, neighbours, sysctls. */
#include <errno.h>
#include <linux/fib_rules.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

#define FLOWS_ROUTED (FLOW(PROBE_ARP_KERNEL) | FLOWS_IP)

static const struct snap_lookup *lookup_of(const struct snapshot *s, uint32_t to) {
    for (uint32_t i = 0; i < s->lookups_count; i++)
        if (s->lookups[i].to == to && !s->lookups[i].iif)
            return &s->lookups[i];
    return NULL;
}

/* The route of a table that takes an address: the longest, then the one of the least metric. */
static const struct snap_route *route_in(const struct snapshot *s, uint32_t table, uint32_t to) {
    const struct snap_route *best = NULL;
    for (uint32_t i = 0; i < s->routes_count; i++) {
        const struct snap_route *r = &s->routes[i];
        struct net_prefix p = {r->to, r->length};
        if (r->table != table || !net_contains(p, to) || (r->flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN)))
            continue;
        if (!best || r->length > best->length || (r->length == best->length && r->metric < best->metric))
            best = r;
    }
    return best;
}

static bool policy_takes(const struct snap_policy *p, uint32_t to) {
    struct net_prefix prefix = {p->to, p->to_length};
    bool takes = (p->to_length == 0 || net_contains(prefix, to)) && p->from_length == 0 && !*p->iif && !*p->oif &&
                 (p->mask & p->mark) == 0 && !p->protocol && !p->port_first && !p->more;
    return takes != (p->invert != 0);
}

/* As the kernel walks them: the first rule that takes the packet and whose table has a route for it. */
static const struct snap_policy *deciding_policy(const struct snapshot *s, uint32_t to, const struct snap_route **ret) {
    *ret = NULL;
    for (uint32_t i = 0; i < s->policies_count; i++) {
        const struct snap_policy *p = &s->policies[i];
        if (!policy_takes(p, to))
            continue;
        if (p->action != FR_ACT_TO_TBL && p->action != FR_ACT_NOP && p->action != FR_ACT_GOTO)
            return p;
        *ret = p->action == FR_ACT_TO_TBL ? route_in(s, p->table, to) : NULL;
        if (*ret)
            return p;
    }
    return NULL;
}

static const char *type_name(uint8_t type) {
    switch (type) {
    case RTN_BLACKHOLE:
        return "blackhole";
    case RTN_UNREACHABLE:
        return "unreachable";
    case RTN_PROHIBIT:
        return "prohibit";
    case RTN_LOCAL:
        return "local";
    case RTN_THROW:
        return "throw";
    }
    return "unicast";
}

static void route_text(const struct snapshot *s, const struct snap_route *r, char *dst, size_t size) {
    char via[40] = "", dev[32] = "", table[24] = "";
    if (r->gateway)
        snprintf(via, sizeof via, " via %s", ip_text(r->gateway).text);
    if (r->link)
        snprintf(dev, sizeof dev, " dev %s", snap_link_name(s, r->link));
    if (r->table != RT_TABLE_MAIN)
        snprintf(table, sizeof table, " table %u", r->table);
    snprintf(dst, size, "%s%s%s/%u%s%s%s", r->type == RTN_UNICAST ? "" : type_name(r->type),
             r->type == RTN_UNICAST ? "" : " ", ip_text(r->to).text, r->length, via, dev, table);
}

static void step_route_delete(struct judge *j, struct cause *c, const struct snap_route *r) {
    struct repair_step *step = cause_step(c, REPAIR_ROUTE_DELETE, snap_link_name(j->s, r->link));
    step->prefix = (struct net_prefix){r->to, r->length};
    step->gateway = r->gateway;
    step->route_table = r->table;
    step->route_metric = r->metric;
    step->route_source = r->source;
    step->route_type = r->type;
    step->route_protocol = r->protocol;
    step->route_scope = r->scope;
}

static void lookup_evidence(struct judge *j, struct cause *c, const struct snap_lookup *l) {
    if (l->error)
        cause_evidence(c, "route", ip_text(l->to).text, "the kernel's own lookup says: %s", strerror(l->error));
    else
        cause_evidence(c, "route", ip_text(l->to).text, "the kernel's own lookup says: %s dev %s%s%s",
                       type_name(l->type), snap_link_name(j->s, l->link), l->gateway ? " via " : "",
                       l->gateway ? ip_text(l->gateway).text : "");
}

static void rule_policy(struct judge *j, const struct snap_lookup *l, const struct snap_policy *p,
                        const struct snap_route *r) {
    char route[128] = "";
    if (r)
        route_text(j->s, r, route, sizeof route);
    struct cause *c = cause_add(j, "host.policy-rule", FLOWS_ROUTED, FLOWS_EGRESS | FLOWS_TO_HOST,
                                "policy rule %u sends %s to table %u, away from %s", p->priority, ip_text(l->to).text,
                                p->table, j->target->bridge);
    cause_evidence(c, "rule", "ip rule", "priority %u to %s/%u lookup %u%s%s", p->priority, ip_text(p->to).text,
                   p->to_length, p->table, *route ? ": " : "", route);
    lookup_evidence(j, c, l);
    cause_step(c, REPAIR_POLICY_DELETE, "")->value = p->priority;
}

static const struct snap_addr *addr_containing(const struct snapshot *s, int32_t link, uint32_t ip) {
    for (uint32_t i = 0; i < s->addrs_count; i++) {
        struct net_prefix p = {s->addrs[i].ip, s->addrs[i].length};
        if (s->addrs[i].link == link && net_contains(p, ip) && s->addrs[i].length < 32)
            return &s->addrs[i];
    }
    return NULL;
}

static const struct snap_addr *any_addr(const struct snapshot *s, int32_t link) {
    for (uint32_t i = 0; i < s->addrs_count; i++)
        if (s->addrs[i].link == link)
            return &s->addrs[i];
    return NULL;
}

static void rule_local(struct judge *j, const struct snap_lookup *l) {
    const char *dev = "the host";
    for (uint32_t i = 0; i < j->s->addrs_count; i++)
        if (j->s->addrs[i].ip == l->to)
            dev = snap_link_name(j->s, j->s->addrs[i].link);
    struct cause *c = cause_add(j, "host.address-conflict", FLOWS_ROUTED, FLOWS_PEER, "%s has the guest's address %s",
                                dev, ip_text(l->to).text);
    cause_evidence(c, "addr", dev, "%s is an address of the host itself", ip_text(l->to).text);
    lookup_evidence(j, c, l);
}

static void rule_blackhole(struct judge *j, const struct snap_lookup *l, const struct snap_route *r) {
    char route[128];
    route_text(j->s, r, route, sizeof route);
    struct cause *c = cause_add(j, "host.blackhole-route", FLOWS_ROUTED, FLOWS_EGRESS | FLOWS_TO_HOST,
                                "route \"%s\" throws packets for %s away", route, ip_text(l->to).text);
    cause_evidence(c, "route", route, "a %s route", type_name(r->type));
    lookup_evidence(j, c, l);
    step_route_delete(j, c, r);
}

/* Whether a guest of this bridge has the address. */
static bool is_a_guests(const struct judge *j, uint32_t ip) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; i < j->s->vms_count; i++)
        if (j->s->vms[i].ip == ip)
            return true;
    for (uint32_t i = 0; after && i < after->heard_count; i++)
        if (after->heard[i].source_ip == ip)
            return true;
    return ip == j->target->ip;
}

/* The address that the guest takes for the host's: it asks for it, and it is nobody's. 0: it was not heard to. The
 * prefix is the smallest usual one that holds both. */
static struct net_prefix address_that_is_missed(const struct judge *j, struct snap_heard *ret_asked) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; after && j->tap && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        if (h->kind != SNAP_HEARD_WHO_HAS || h->link != j->tap->index || h->source_ip != j->target->ip ||
            !h->destination_ip || is_a_guests(j, h->destination_ip))
            continue;
        for (uint8_t length = 24; length >= 8; length -= 8)
            if (net_contains((struct net_prefix){h->destination_ip, length}, j->target->ip)) {
                *ret_asked = *h;
                return (struct net_prefix){h->destination_ip, length};
            }
    }
    return (struct net_prefix){0};
}

static void offer_address(const struct judge *j, struct cause *c) {
    struct snap_heard asked;
    struct net_prefix prefix = address_that_is_missed(j, &asked);
    if (!prefix.address) {
        cause_plan(c, "ip addr add GATEWAY/LENGTH dev %s: the address that the VMs have for their gateway",
                   j->bridge->name);
        return;
    }
    cause_evidence(c, "probe", j->tap->name, "the guest asks who has %s, and nobody has it",
                   ip_text(prefix.address).text);
    cause_step(c, REPAIR_ADDRESS_ADD, j->bridge->name)->prefix = prefix;
    cause_plan(c, "the length /%u is the smallest that holds gateway and guest: see that it holds all VMs",
               prefix.length);
}

/* The bridge's own address does not lead to the guest, and nothing else does what it should. */
static void rule_bridge_address(struct judge *j, const struct snap_lookup *l, const char *leaves_by) {
    const struct snap_addr *addr = any_addr(j->s, j->bridge->index);
    if (!addr) {
        struct cause *c =
            cause_add(j, "host.no-address", FLOWS_ROUTED | FLOWS_TO_HOST, FLOWS_EGRESS, "%s has no IPv4 address%s%s",
                      j->bridge->name, *leaves_by ? "; packets for the guest leave by " : "", leaves_by);
        cause_evidence(c, "addr", j->bridge->name, "no IPv4 address");
        lookup_evidence(j, c, l);
        offer_address(j, c);
        return;
    }
    char prefix[24];
    snprintf(prefix, sizeof prefix, "%s/%u", ip_text(addr->ip).text, addr->length);
    struct cause *c =
        cause_add(j, addr_containing(j->s, j->bridge->index, l->to) ? "host.no-route" : "host.wrong-prefix",
                  FLOWS_ROUTED, FLOWS_TO_HOST | FLOWS_EGRESS, "%s on %s does not lead to %s%s%s", prefix,
                  j->bridge->name, ip_text(l->to).text, *leaves_by ? "; packets for it leave by " : "", leaves_by);
    cause_evidence(c, "addr", j->bridge->name, "its address is %s", prefix);
    lookup_evidence(j, c, l);
}

static void rule_elsewhere(struct judge *j, const struct snap_lookup *l, const struct snap_route *r) {
    const char *dev = snap_link_name(j->s, l->link);
    const struct snap_addr *theirs = addr_containing(j->s, l->link, l->to);
    const struct snap_addr *ours = addr_containing(j->s, j->bridge->index, l->to);
    char route[128] = "?";
    if (r)
        route_text(j->s, r, route, sizeof route);
    if (theirs && r && r->protocol == RTPROT_KERNEL) {
        struct cause *c = cause_add(j, "host.overlapping-prefix", FLOWS_ROUTED, FLOWS_EGRESS | FLOWS_TO_HOST,
                                    "%s on %s contains %s as well", route, dev, ip_text(l->to).text);
        cause_evidence(c, "addr", dev, "its address is %s/%u", ip_text(theirs->ip).text, theirs->length);
        lookup_evidence(j, c, l);
        return;
    }
    bool is_default = r && r->length == 0;
    if (!ours || is_default) {
        rule_bridge_address(j, l, dev);
        return;
    }
    struct cause *c = cause_add(j, "host.route-elsewhere", FLOWS_ROUTED, FLOWS_EGRESS | FLOWS_TO_HOST,
                                "route \"%s\" sends packets for %s to %s", route, ip_text(l->to).text, dev);
    cause_evidence(c, "route", route, "more specific than the bridge's own %s/%u", ip_text(ours->ip).text,
                   ours->length);
    lookup_evidence(j, c, l);
    if (r)
        step_route_delete(j, c, r);
}

static void rule_route(struct judge *j) {
    const struct snap_route *r = NULL;
    const struct snap_lookup *l = j->target->ip ? lookup_of(j->s, j->target->ip) : NULL;
    if (!l || !j->bridge)
        return;
    bool bridge_up = (j->bridge->flags & IFF_UP) != 0;
    if (!l->error && l->link == j->bridge->index && l->type == RTN_UNICAST && !l->gateway)
        return;
    const struct snap_policy *p = deciding_policy(j->s, l->to, &r);
    bool usual = !p || p->priority == 0 || p->priority == 32766 || p->priority == 32767;
    if (!l->error && l->type == RTN_LOCAL) {
        rule_local(j, l);
    } else if (!usual) {
        rule_policy(j, l, p, r);
    } else if (r && (r->type == RTN_BLACKHOLE || r->type == RTN_UNREACHABLE || r->type == RTN_PROHIBIT)) {
        rule_blackhole(j, l, r);
    } else if (!l->error && l->link == j->bridge->index) {
        struct cause *c = cause_add(j, "host.route-elsewhere", 0, FLOWS_ROUTED, "packets for %s go by gateway %s",
                                    ip_text(l->to).text, ip_text(l->gateway).text);
        lookup_evidence(j, c, l);
        if (r)
            step_route_delete(j, c, r);
    } else if (!bridge_up) {
        /* bridge.down says it. */
    } else if (l->error) {
        rule_bridge_address(j, l, "");
    } else {
        rule_elsewhere(j, l, r);
    }
}

/* What the host sends to the guest, as a policy rule with more selectors than the destination sees it. */
struct sent {
    uint8_t protocol;
    uint16_t port;
    bool has_source; /* an unbound socket's first lookup has none: only TCP asks again, and answers know theirs */
    uint32_t flows;
};

static bool policy_takes_sent(const struct snap_policy *p, const struct judge *j, const struct sent *sent) {
    struct net_prefix to = {p->to, p->to_length}, from = {p->from, p->from_length};
    bool takes = (p->to_length == 0 || net_contains(to, j->target->ip)) &&
                 (p->from_length == 0 || (sent->has_source && net_contains(from, j->bridge_address.address))) &&
                 !*p->iif && !*p->oif && (!p->protocol || p->protocol == sent->protocol) &&
                 (!p->port_first || (sent->port >= p->port_first && sent->port <= p->port_last));
    return takes != (p->invert != 0);
}

/* Whether a rule that takes a packet leads it away from the bridge. Without a route in its table the next rule is asked. */
static bool policy_misleads(const struct judge *j, const struct snap_policy *p, char *dst, size_t size) {
    str_copy(dst, size, "refuses it");
    if (p->action == FR_ACT_BLACKHOLE || p->action == FR_ACT_UNREACHABLE || p->action == FR_ACT_PROHIBIT)
        return true;
    const struct snap_route *r = p->action == FR_ACT_TO_TBL ? route_in(j->s, p->table, j->target->ip) : NULL;
    if (!r || r->type == RTN_THROW || (r->type == RTN_UNICAST && r->link == j->bridge->index && !r->gateway))
        return false;
    route_text(j->s, r, dst, size);
    return true;
}

static void selectors_text(const struct snap_policy *p, char *dst, size_t size) {
    char from[32] = "", to[32] = "", protocol[24] = "", port[32] = "", mark[32] = "";
    if (p->from_length)
        snprintf(from, sizeof from, " from %s/%u", ip_text(p->from).text, p->from_length);
    if (p->to_length)
        snprintf(to, sizeof to, " to %s/%u", ip_text(p->to).text, p->to_length);
    if (p->protocol)
        snprintf(protocol, sizeof protocol, " ipproto %u", p->protocol);
    if (p->port_first)
        snprintf(port, sizeof port, " dport %u-%u", p->port_first, p->port_last);
    if (p->mask)
        snprintf(mark, sizeof mark, " fwmark %#x/%#x", p->mark, p->mask);
    snprintf(dst, size, "priority %u%s%s%s%s%s%s", p->priority, p->invert ? " not" : "", from, to, protocol, port,
             mark);
}

static void blame_policy(struct judge *j, const struct snap_policy *p, const struct sent *sent, const char *leads) {
    char selectors[160];
    bool sure = !p->mask && !p->more;
    for (uint32_t i = 0; i < j->causes_count; i++) {
        struct cause *known = &j->causes[i];
        if (strcmp(known->finding.id, "host.policy-rule") == 0 && known->finding.step_count &&
            known->finding.steps[0].value == p->priority) {
            *(sure ? &known->kills : &known->may) |= sent->flows;
            return;
        }
    }
    selectors_text(p, selectors, sizeof selectors);
    struct cause *c = cause_add(j, "host.policy-rule", sure ? sent->flows : 0, sure ? 0 : sent->flows,
                                "policy rule %u takes what the host sends to %s: %s", p->priority,
                                ip_text(j->target->ip).text, leads);
    cause_evidence(c, "rule", "ip rule", "%s%s: %s", selectors, p->more ? " and more" : "", leads);
    cause_step(c, REPAIR_POLICY_DELETE, "")->value = p->priority;
    /* Who gets its mark in the output hook is routed again there. */
    if (c && p->mask && (sent->flows & j->dead & FLOW(PROBE_ICMP)) && j->paths[PROBE_ICMP].dies == HOP_HOST_OUTPUT)
        c->finding.hop = HOP_HOST_OUTPUT;
}

/* Rules for one protocol, port, source or mark: a plain lookup does not meet them. */
static void rule_selective(struct judge *j) {
    const struct snap_lookup *l = j->target->ip ? lookup_of(j->s, j->target->ip) : NULL;
    const struct snap_route *r;
    char leads[128];
    if (!l || l->error || l->link != j->bridge->index)
        return;
    const struct sent sent[] = {
        {IPPROTO_ICMP, 0, false, FLOW(PROBE_ICMP) | FLOW(PROBE_BURST_ICMP) | FLOW(PROBE_LARGE)},
        {IPPROTO_TCP, j->target->port, true, FLOW(PROBE_TCP)},
        {IPPROTO_ICMP, 0, true, FLOW(PROBE_CANARY_ICMP_HOST)},
    };
    const struct snap_policy *deciding = deciding_policy(j->s, j->target->ip, &r);
    for (uint32_t i = 0; i < j->s->policies_count; i++) {
        const struct snap_policy *p = &j->s->policies[i];
        if (p == deciding)
            return;
        for (size_t k = 0; k < sizeof sent / sizeof *sent; k++)
            if (policy_takes_sent(p, j, &sent[k]) && policy_misleads(j, p, leads, sizeof leads))
                blame_policy(j, p, &sent[k], leads);
    }
}

/* --- neighbours --- */

static void rule_neigh(struct judge *j) {
    for (uint32_t i = 0; j->bridge && j->target->ip && i < j->s->neighs_count; i++) {
        const struct snap_neigh *n = &j->s->neighs[i];
        if (n->ip != j->target->ip || n->link != j->bridge->index)
            continue;
        if (n->flags & NTF_PROXY) {
            struct cause *c =
                cause_add(j, "host.neigh-proxy", FLOW_PEER, FLOW(PROBE_CANARY_ARP) | FLOW(PROBE_CANARY_ICMP),
                          "the host answers ARP for %s on %s", ip_text(n->ip).text, j->bridge->name);
            cause_evidence(c, "neigh", j->bridge->name, "proxy entry for %s", ip_text(n->ip).text);
            continue;
        }
        if (n != snap_neigh_fixed(j->s, n->link, n->ip) || !j->has_mac || mac_equal(n->mac, j->mac))
            continue;
        struct cause *c =
            cause_add(j, "host.neigh-wrong", FLOWS_IP, FLOW(PROBE_ARP_KERNEL),
                      "a fixed neighbour entry says that %s is %s", ip_text(n->ip).text, mac_text(n->mac).text);
        cause_evidence(c, "neigh", j->bridge->name, "%s lladdr %s %s; the guest's MAC is %s", ip_text(n->ip).text,
                       mac_text(n->mac).text,
                       n->state & NUD_PERMANENT ? "PERMANENT"
                       : n->state & NUD_NOARP   ? "NOARP"
                                                : "extern_learn",
                       mac_text(j->mac).text);
        struct repair_step *step = cause_step(c, REPAIR_NEIGHBOUR_DELETE, j->bridge->name);
        step->prefix = (struct net_prefix){n->ip, 32};
    }
}

static void rule_solicit(struct judge *j) {
    char key[128];
    int total = 0;
    static const char *const kinds[] = {"mcast_solicit", "app_solicit"};
    for (size_t i = 0; j->bridge && i < 2; i++) {
        snprintf(key, sizeof key, "net/ipv4/neigh/%s/%s", j->bridge->name, kinds[i]);
        total += snap_sysctl_int(j->s, key, 3);
    }
    if (!j->bridge || total > 0)
        return;
    struct cause *c = cause_add(j, "host.neigh-solicit", FLOW_OTHER, FLOWS_ROUTED, "no ARP request is ever sent on %s",
                                j->bridge->name);
    if (c) {
        c->policy = true;
        c->refutable = false; /* whoever asks the host first is known for a while */
    }
    cause_evidence(c, "sysctl", "mcast_solicit", "net.ipv4.neigh.%s.mcast_solicit is 0", j->bridge->name);
    struct repair_step *step = cause_step(c, REPAIR_SYSCTL, "");
    snprintf(step->object, sizeof step->object, "net/ipv4/neigh/%s/mcast_solicit", j->bridge->name);
    str_copy(step->text, sizeof step->text, "3");
}

/* A MAC that said on the wire that it has an address, other than `known`. */
static const struct snap_heard *heard_claim(const struct judge *j, uint32_t ip, struct net_mac known) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; after && ip && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        bool arp = h->kind == SNAP_HEARD_IS_AT || h->kind == SNAP_HEARD_WHO_HAS;
        if (arp && h->source_ip == ip && !mac_equal(h->source, known))
            return h;
    }
    return NULL;
}

/* Who answered for an address, besides the one who should. */
static void rule_duplicate_ip(struct judge *j) {
    const struct probe_answer *a = judge_answer(j, PROBE_ARP), *k = judge_answer(j, PROBE_ARP_KERNEL);
    if (k->mac_count > a->mac_count)
        a = k;
    const struct snap_heard *other = a->mac_count == 1 ? heard_claim(j, j->target->ip, a->macs[0]) : NULL;
    struct probe_answer both = *a;
    if (other) {
        both.macs[both.mac_count++] = other->source;
        a = &both;
    }
    if (a->mac_count < 2)
        return;
    struct cause *c =
        cause_add(j, "guest.duplicate-ip", FLOW_OTHER, FLOWS_GUEST, "%u machines answer for %s: %s and %s",
                  a->mac_count, ip_text(j->target->ip).text, mac_text(a->macs[0]).text, mac_text(a->macs[1]).text);
    if (!c)
        return;
    uint32_t stopped = 0;
    for (uint32_t i = 0; i < a->mac_count && i < PROBE_MACS_MAX; i++)
        stopped += policy_stops_claim(j, a->macs[i], j->target->ip);
    /* A VM may say what it likes where the controller's firewall does not let it through. */
    c->note = a->mac_count - stopped < 2;
    c->policy = !c->note;
    c->refutable = false;
    for (uint32_t i = 0; i < a->mac_count && i < PROBE_MACS_MAX; i++)
        cause_evidence(c, "probe", "ARP", "%s says that it has %s", mac_text(a->macs[i]).text,
                       ip_text(j->target->ip).text);
}

/* The host may answer by another of its own devices. */
static bool is_host_mac(const struct snapshot *s, struct net_mac mac) {
    for (uint32_t i = 0; i < s->links_count; i++)
        if (mac_equal(s->links[i].mac, mac) && !s->links[i].is_tap)
            return true;
    return false;
}

static void blame_owner(struct judge *j, struct net_mac mac) {
    uint32_t ip = j->bridge_address.address;
    struct cause *c = cause_add(j, "guest.owns-gateway", FLOW_OTHER, FLOWS_TO_HOST | FLOWS_EGRESS,
                                "%s answers for the gateway's address %s", mac_text(mac).text, ip_text(ip).text);
    if (!c)
        return;
    c->policy = true;
    c->refutable = false;
    cause_evidence(c, "probe", "ARP", "%s says that it has %s; the bridge is %s", mac_text(mac).text, ip_text(ip).text,
                   mac_text(j->bridge->mac).text);
    for (uint32_t f = 0; f < j->s->fdbs_count; f++)
        if (mac_equal(j->s->fdbs[f].mac, mac) && j->s->fdbs[f].master)
            cause_evidence(c, "fdb", snap_link_name(j->s, j->s->fdbs[f].link), "%s is behind this port",
                           mac_text(mac).text);
}

static void rule_owns_gateway(struct judge *j) {
    const struct probe_answer *a = judge_answer(j, PROBE_CANARY_ARP_HOST);
    for (uint32_t i = 0; i < a->mac_count && i < PROBE_MACS_MAX; i++)
        if (!mac_equal(a->macs[i], j->bridge->mac) && !is_host_mac(j->s, a->macs[i])) {
            blame_owner(j, a->macs[i]);
            return;
        }
    const struct snap_heard *h = heard_claim(j, j->bridge_address.address, j->bridge->mac);
    if (h && !is_host_mac(j->s, h->source))
        blame_owner(j, h->source);
}

/* --- the host's own address --- */

static void rule_not_local(struct judge *j) {
    const struct snap_lookup *l = NULL;
    bool rule = false, route = false;
    uint32_t own = j->bridge_address.address;
    for (uint32_t i = 0; own && i < j->s->lookups_count; i++)
        if (j->s->lookups[i].to == own && j->s->lookups[i].iif == j->bridge->index)
            l = &j->s->lookups[i];
    /* Refused for its source (rp_filter, a rule): that is another matter. */
    bool routed_on = l && !l->error && l->type != RTN_LOCAL;
    for (uint32_t i = 0; i < j->s->policies_count; i++)
        rule = rule || (j->s->policies[i].table == RT_TABLE_LOCAL && j->s->policies[i].action == FR_ACT_TO_TBL);
    for (uint32_t i = 0; i < j->s->routes_count; i++)
        route = route || (j->s->routes[i].table == RT_TABLE_LOCAL && j->s->routes[i].type == RTN_LOCAL &&
                          net_contains((struct net_prefix){j->s->routes[i].to, j->s->routes[i].length}, own));
    if (!l || (rule && route) || (!routed_on && !l->error) || !j->s->routes_count || !j->s->policies_count)
        return;
    struct cause *c = cause_add(j, "host.not-local", FLOWS_IP, FLOWS_TO_HOST | FLOWS_EGRESS | FLOW(PROBE_ARP_KERNEL),
                                "the host does not take %s for its own address: %s is gone", ip_text(own).text,
                                rule ? "its local route" : "the rule that leads to the table local");
    if (rule)
        cause_evidence(c, "route", ip_text(own).text, "no local route for it in the table local");
    else
        cause_evidence(c, "rule", "ip rule", "no rule looks into the table local");
    lookup_evidence(j, c, l);
}

/* --- the source --- */

/* The address that our echo had on the guest's TAP, where it is none of the bridge's. */
static uint32_t foreign_source(const struct judge *j) {
    int32_t tag = probe_tag(j->t_index, PROBE_ICMP);
    for (size_t i = 0; j->t && j->tap && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        bool ours = f->ifindex == j->tap->index && f->outgoing && f->tag == tag && f->kind == PROBE_FRAME_ECHO;
        for (uint32_t a = 0; ours && a < j->s->addrs_count; a++)
            ours = j->s->addrs[a].link != j->bridge->index || j->s->addrs[a].ip != f->source_ip;
        if (ours)
            return f->source_ip;
    }
    return 0;
}

static void rule_source(struct judge *j) {
    uint32_t source = foreign_source(j);
    const struct snap_lookup *l = j->target->ip ? lookup_of(j->s, j->target->ip) : NULL;
    if (!source || !j->bridge_address.address || net_contains(j->bridge_address, source))
        return;
    struct cause *c = cause_add(j, "host.wrong-source", 0, FLOWS_IP | FLOW(PROBE_ARP_KERNEL),
                                "the host sends to %s from %s, not from %s", ip_text(j->target->ip).text,
                                ip_text(source).text, ip_text(j->bridge_address.address).text);
    if (!c)
        return;
    c->seen = true;
    cause_evidence(c, "probe", j->tap->name, "our echo requests came here from %s", ip_text(source).text);
    if (l && l->source == source)
        cause_evidence(c, "route", ip_text(l->to).text, "the kernel's own lookup says: src %s", ip_text(source).text);
    for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++) /* it came as far as the guest, which answers elsewhere */
        if (j->paths[kind].asked && !j->paths[kind].alive && (c->may & FLOW(kind)))
            j->paths[kind].hops |= HOPBIT(c->finding.hop);
}

/* --- sysctls --- */

static bool answers_by_bridge(const struct judge *j) {
    const struct snap_lookup *l = j->target->ip ? lookup_of(j->s, j->target->ip) : NULL;
    return !l || (!l->error && l->link == j->bridge->index);
}

static void rule_rp_filter(struct judge *j) {
    int value = snap_conf(j->s, j->bridge->name, "rp_filter", 0);
    const struct snap_lookup *l = j->target->ip ? lookup_of(j->s, j->target->ip) : NULL;
    if (value == 0 || !l || answers_by_bridge(j) || (value == 2 && !l->error))
        return;
    struct cause *c = cause_add(j, "host.rp-filter", FLOWS_IP | FLOW_OTHER, FLOWS_EGRESS,
                                "rp_filter on %s refuses what %s sends", j->bridge->name, ip_text(j->target->ip).text);
    cause_evidence(c, "sysctl", "rp_filter", "net.ipv4.conf.%s.rp_filter with all is %d", j->bridge->name, value);
    lookup_evidence(j, c, l);
    if (c)
        c->policy = true;
}

/* An address of the bridge's network that is on another device: with arp_ignore 1 nobody answers for it. */
static const struct snap_addr *gateway_elsewhere(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->addrs_count; i++) {
        const struct snap_addr *a = &j->s->addrs[i];
        if (a->link != j->bridge->index && j->bridge_address.address && net_contains(j->bridge_address, a->ip))
            return a;
    }
    return NULL;
}

static void rule_arp_ignore(struct judge *j) {
    int value = snap_conf(j->s, j->bridge->name, "arp_ignore", 0);
    const struct snap_addr *elsewhere = gateway_elsewhere(j);
    bool all = value == 8, foreign = value >= 1 && value < 8 && elsewhere;
    if (!all && !foreign)
        return;
    uint32_t kills = all ? FLOW(PROBE_CANARY_ARP_HOST) | FLOW_OTHER : FLOW_OTHER;
    struct cause *c = cause_add(j, "host.arp-ignore", kills, FLOWS_TO_HOST | FLOWS_EGRESS,
                                "arp_ignore %d on %s: the host does not answer for %s", value, j->bridge->name,
                                ip_text(all ? j->bridge_address.address : elsewhere->ip).text);
    if (!c)
        return;
    c->policy = true;
    cause_evidence(c, "sysctl", "arp_ignore", "net.ipv4.conf.%s.arp_ignore with all is %d", j->bridge->name, value);
    if (foreign)
        cause_evidence(c, "addr", snap_link_name(j->s, elsewhere->link), "%s is here, not on %s",
                       ip_text(elsewhere->ip).text, j->bridge->name);
    struct repair_step *step = cause_step(c, REPAIR_SYSCTL, "");
    snprintf(step->object, sizeof step->object, "net/ipv4/conf/%s/arp_ignore", j->bridge->name);
    str_copy(step->text, sizeof step->text, "0");
}

static void rule_arp_filter(struct judge *j) {
    if (snap_conf(j->s, j->bridge->name, "arp_filter", 0) == 0 || answers_by_bridge(j))
        return;
    struct cause *c = cause_add(j, "host.arp-ignore", 0, FLOWS_TO_HOST | FLOWS_EGRESS,
                                "arp_filter on %s: the host answers only where it would send", j->bridge->name);
    cause_evidence(c, "sysctl", "arp_filter", "net.ipv4.conf.%s.arp_filter with all is 1", j->bridge->name);
}

static void rule_ping(struct judge *j) {
    if (snap_sysctl_int(j->s, "net/ipv4/icmp_echo_ignore_all", 0) == 0)
        return;
    struct cause *c = cause_add(j, "host.ignores-ping", FLOW(PROBE_CANARY_ICMP_HOST), 0, "the host ignores ping");
    cause_evidence(c, "sysctl", "icmp_echo_ignore_all", "net.ipv4.icmp_echo_ignore_all is 1");
    if (c)
        c->note = true;
}

static uint64_t grown_full(const struct judge *j, const struct snap_table_fill *before) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; after && i < after->fills_count; i++)
        if (strcmp(after->fills[i].name, before->name) == 0 && after->fills[i].full_events > before->full_events)
            return after->fills[i].full_events - before->full_events;
    return 0;
}

static void rule_tables(struct judge *j) {
    for (uint32_t i = 0; i < j->s->fills_count; i++) {
        const struct snap_table_fill *f = &j->s->fills[i];
        bool neigh = strcmp(f->name, "neigh") == 0;
        uint64_t refused = neigh ? grown_full(j, f) : 0;
        bool full = f->max && f->used >= f->max;
        if (!full && !refused)
            continue;
        struct cause *c =
            cause_add(j, neigh ? "host.neigh-table-full" : "host.conntrack-full",
                      !full   ? 0 /* it may be full for others only: the table is the whole machine's */
                      : neigh ? FLOW_OTHER
                              : FLOW_EGRESS_TCP,
                      neigh ? FLOWS_ROUTED : FLOWS_IP | FLOWS_EGRESS, "the %s table is full: %llu of %llu",
                      neigh ? "neighbour" : "connection", (unsigned long long)f->used, (unsigned long long)f->max);
        if (!c)
            return;
        c->policy = full;
        c->seen = refused > 0;
        if (refused)
            cause_evidence(c, "proc", f->name, "found full %llu times during the probe", (unsigned long long)refused);
        cause_evidence(c, "proc", f->name, "%llu entries of %llu, found full %llu times", (unsigned long long)f->used,
                       (unsigned long long)f->max, (unsigned long long)f->full_events);
    }
}

static void xfrm_forward(struct judge *j, const struct snap_xfrm *x) {
    bool all_out = (x->to_length == 0 || x->from_length == 0) && lookup_of(j->s, 0x08080808) &&
                   !lookup_of(j->s, 0x08080808)->error && snap_sysctl_int(j->s, "net/ipv4/ip_forward", 0);
    struct cause *c = cause_add(j, "host.xfrm-policy", FLOW_EGRESS_GUEST, FLOWS_EGRESS,
                                "an IPsec policy blocks what is forwarded for %s", ip_text(j->target->ip).text);
    if (!c)
        return;
    c->finding.hop = HOP_HOST_FORWARD;
    c->policy = all_out; /* one for a single network may be wanted */
    cause_evidence(c, "xfrm", "policy", "%s/%u to %s/%u, direction fwd, block", ip_text(x->from).text, x->from_length,
                   ip_text(x->to).text, x->to_length);
}

static void rule_xfrm(struct judge *j) {
    for (uint32_t i = 0; j->target->ip && i < j->s->xfrms_count; i++) {
        const struct snap_xfrm *x = &j->s->xfrms[i];
        struct net_prefix to = {x->to, x->to_length}, from = {x->from, x->from_length};
        bool out = x->dir == 1 && net_contains(to, j->target->ip);
        bool in = x->dir == 0 && net_contains(from, j->target->ip);
        if (x->dir == 2 && x->block && (net_contains(to, j->target->ip) || net_contains(from, j->target->ip))) {
            xfrm_forward(j, x);
            continue;
        }
        if ((!out && !in) || (!x->block && !x->templates))
            continue;
        struct cause *c =
            cause_add(j, "host.xfrm-policy", x->block ? FLOWS_IP : 0, FLOWS_IP, "an IPsec policy %s packets %s %s",
                      x->block ? "blocks" : "demands encryption of", out ? "to" : "from", ip_text(j->target->ip).text);
        if (!c)
            return;
        if (in)
            c->finding.hop = HOP_HOST_INPUT;
        cause_evidence(c, "xfrm", "policy", "%s/%u to %s/%u, direction %s, %s", ip_text(x->from).text, x->from_length,
                       ip_text(x->to).text, x->to_length, out ? "out" : "in",
                       x->block ? "block" : "allow with template");
    }
}

/* A route that lets only small packets through. */
static void rule_route_mtu(struct judge *j) {
    const struct snap_lookup *l = j->target->ip ? lookup_of(j->s, j->target->ip) : NULL;
    if (!l || l->error || !l->mtu || !j->bridge || l->link != j->bridge->index || l->mtu >= j->bridge->mtu)
        return;
    struct cause *c = cause_add(j, "host.route-mtu", FLOW(PROBE_LARGE), 0, "the route to %s has mtu %u, %s has %u",
                                ip_text(l->to).text, l->mtu, j->bridge->name, j->bridge->mtu);
    if (!c)
        return;
    c->policy = true;
    c->refutable = false;
    cause_evidence(c, "route", ip_text(l->to).text, "mtu %u", l->mtu);
}

static bool policy_takes_from(const struct snap_policy *p, uint32_t from, const char *iif) {
    struct net_prefix prefix = {p->from, p->from_length};
    return (p->from_length == 0 || net_contains(prefix, from)) && (!*p->iif || strcmp(p->iif, iif) == 0) &&
           (p->from_length || *p->iif);
}

/* What the guest sends through the host is refused by the host's routing, though the host's own is not. */
static void rule_refused_through(struct judge *j) {
    const struct snap_lookup *own = lookup_of(j->s, 0x08080808), *through = NULL;
    for (uint32_t i = 0; i < j->s->lookups_count; i++)
        if (j->s->lookups[i].to == 0x08080808 && j->s->lookups[i].iif == j->bridge->index &&
            j->s->lookups[i].from == j->target->ip)
            through = &j->s->lookups[i];
    if (!through || !through->error || !own || own->error || !j->target->ip)
        return;
    for (uint32_t i = 0; i < j->s->policies_count; i++) {
        const struct snap_policy *p = &j->s->policies[i];
        if (!policy_takes_from(p, j->target->ip, j->bridge->name))
            continue;
        struct cause *c =
            cause_add(j, "host.policy-rule", FLOW_EGRESS_GUEST, FLOWS_EGRESS,
                      "policy rule %u refuses what %s sends to the outside", p->priority, ip_text(j->target->ip).text);
        if (!c)
            return;
        c->finding.hop = HOP_HOST_FORWARD;
        c->policy = true;
        cause_evidence(c, "rule", "ip rule", "priority %u from %s/%u%s%s", p->priority, ip_text(p->from).text,
                       p->from_length, *p->iif ? " iif " : "", p->iif);
        cause_evidence(c, "route", "lookup", "from %s by %s to the outside: %s", ip_text(j->target->ip).text,
                       j->bridge->name, strerror(through->error));
        cause_step(c, REPAIR_POLICY_DELETE, "")->value = p->priority;
        return;
    }
}

void rules_host(struct judge *j) {
    rule_route(j);
    rule_route_mtu(j);
    if (!j->bridge)
        return;
    rule_selective(j);
    rule_source(j);
    rule_not_local(j);
    rule_refused_through(j);
    rule_neigh(j);
    rule_solicit(j);
    rule_duplicate_ip(j);
    rule_owns_gateway(j);
    rule_rp_filter(j);
    rule_arp_ignore(j);
    rule_arp_filter(j);
    rule_ping(j);
    rule_tables(j);
    rule_xfrm(j);
}
