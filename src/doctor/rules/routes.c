/* The host's routes and policy rules, as the kernel walks them. */
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

const struct snap_lookup *judge_lookup(const struct snapshot *s, uint32_t to) {
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

/* The device that a rule says a packet comes in by: lo is what the host itself sends. */
static bool is_own(const char *iif) {
    return !*iif || strcmp(iif, "lo") == 0;
}

/* What the doctor sends is root's. */
static bool is_of_users(const struct snap_policy *p) {
    return !p->has_uids || p->uid_first == 0;
}

static bool policy_takes(const struct snap_policy *p, uint32_t to) {
    struct net_prefix prefix = {p->to, p->to_length};
    bool takes = (p->to_length == 0 || net_contains(prefix, to)) && p->from_length == 0 && is_own(p->iif) && !*p->oif &&
                 (p->mask & p->mark) == 0 && !p->protocol && !p->port_first && is_of_users(p) && !p->more;
    return takes != (p->invert != 0);
}

/* The way of a lookup through the rules. */
struct walk {
    const struct snap_policy *decides; /* NULL: none did */
    const struct snap_policy *jumped;  /* the last goto that was followed; NULL */
    const struct snap_route *route;    /* of the table that the deciding rule looks into */
};

/* As the kernel walks them: the first rule that takes the packet and whose table has a route for it.
 * Source: net/core/fib_rules.c, net/ipv4/fib_rules.c. */
static struct walk walk_policies(const struct snapshot *s, uint32_t to) {
    struct walk walk = {0};
    uint32_t from = 0; /* rules of a lower priority are skipped */
    for (uint32_t i = 0; i < s->policies_count; i++) {
        const struct snap_policy *p = &s->policies[i];
        if (p->priority < from || !policy_takes(p, to))
            continue;
        if (p->action == FR_ACT_GOTO) {
            from = p->go_to;
            walk.jumped = p;
            continue;
        }
        if (p->action == FR_ACT_NOP)
            continue;
        const struct snap_route *r = p->action == FR_ACT_TO_TBL ? route_in(s, p->table, to) : NULL;
        if (p->action == FR_ACT_TO_TBL && (!r || r->type == RTN_THROW || r->length < p->suppresses))
            continue;
        walk.decides = p;
        walk.route = r;
        break;
    }
    return walk;
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
    case RTN_BROADCAST:
        return "broadcast";
    case RTN_ANYCAST:
        return "anycast";
    case RTN_MULTICAST:
        return "multicast";
    case RTN_NAT:
        return "nat";
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

void judge_lookup_evidence(const struct judge *j, struct cause *c, const struct snap_lookup *l) {
    if (l->error)
        cause_evidence(c, "route", ip_text(l->to).text, "the kernel's own lookup says: %s", strerror(l->error));
    else
        cause_evidence(c, "route", ip_text(l->to).text, "the kernel's own lookup says: %s dev %s%s%s",
                       type_name(l->type), snap_link_name(j->s, l->link), l->gateway ? " via " : "",
                       l->gateway ? ip_text(l->gateway).text : "");
}

static void step_policy_delete(struct cause *c, const struct snap_policy *p) {
    struct repair_step *step = cause_step(c, REPAIR_POLICY_DELETE, "");
    step->value = p->priority;
    step->prefix = (struct net_prefix){p->to, p->to_length};
    step->gateway = p->from;
    step->route_scope = p->from_length;
    step->parent = p->mark;
    step->protocol = p->protocol;
    step->route_table = p->table;
    step->route_type = p->action;
    str_copy(step->object, sizeof step->object, p->iif);
}

static const char *refusal(uint8_t action) {
    switch (action) {
    case FR_ACT_BLACKHOLE:
        return "throws it away (blackhole)";
    case FR_ACT_UNREACHABLE:
        return "refuses it (unreachable)";
    case FR_ACT_PROHIBIT:
        return "refuses it (prohibit)";
    }
    return NULL;
}

static void selectors_text(const struct snap_policy *p, char *dst, size_t size) {
    char from[32] = "", to[32] = "", iif[24] = "", protocol[24] = "", port[32] = "", mark[32] = "", uids[40] = "";
    if (p->from_length)
        snprintf(from, sizeof from, " from %s/%u", ip_text(p->from).text, p->from_length);
    if (p->to_length)
        snprintf(to, sizeof to, " to %s/%u", ip_text(p->to).text, p->to_length);
    if (*p->iif)
        snprintf(iif, sizeof iif, " iif %s", p->iif);
    if (p->protocol)
        snprintf(protocol, sizeof protocol, " ipproto %u", p->protocol);
    if (p->port_first)
        snprintf(port, sizeof port, " dport %u-%u", p->port_first, p->port_last);
    if (p->mask)
        snprintf(mark, sizeof mark, " fwmark %#x/%#x", p->mark, p->mask);
    if (p->has_uids)
        snprintf(uids, sizeof uids, " uidrange %u-%u", p->uid_first, p->uid_last);
    snprintf(dst, size, "priority %u%s%s%s%s%s%s%s%s", p->priority, p->invert ? " not" : "", from, to, iif, protocol,
             port, mark, uids);
}

static void rule_policy(struct judge *j, const struct snap_lookup *l, const struct walk *walk, bool jumped) {
    const struct snap_policy *p = jumped ? walk->jumped : walk->decides;
    const char *refuses = refusal(p->action);
    char leads[160], route[128] = "", selectors[200];
    if (jumped)
        snprintf(leads, sizeof leads, "skips the tables that lead to %s (goto %u)", j->target->bridge, p->go_to);
    else if (refuses)
        str_copy(leads, sizeof leads, refuses);
    else if (walk->route)
        route_text(j->s, walk->route, route, sizeof route);
    if (!jumped && !refuses)
        snprintf(leads, sizeof leads, "sends it to table %u, away from %s%s%s", p->table, j->target->bridge,
                 *route ? ": " : "", route);
    struct cause *c =
        cause_add(j, "host.policy-rule", FLOWS_ROUTED, FLOWS_EGRESS | FLOWS_TO_HOST,
                  "policy rule %u takes what the host sends to %s and %s", p->priority, ip_text(l->to).text, leads);
    selectors_text(p, selectors, sizeof selectors);
    cause_evidence(c, "rule", "ip rule", "%s: %s", selectors, leads);
    judge_lookup_evidence(j, c, l);
    step_policy_delete(c, p);
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
    bool address = false;
    for (uint32_t i = 0; i < j->s->addrs_count; i++)
        if (j->s->addrs[i].ip == l->to) {
            dev = snap_link_name(j->s, j->s->addrs[i].link);
            address = true;
        }
    struct cause *c = cause_add(j, "host.address-conflict", FLOWS_ROUTED, FLOWS_PEER, "%s has the guest's address %s",
                                dev, ip_text(l->to).text);
    if (address)
        cause_evidence(c, "addr", dev, "%s is an address of the host itself", ip_text(l->to).text);
    else
        cause_evidence(c, "route", ip_text(l->to).text, "a local route says that it is an address of the host");
    judge_lookup_evidence(j, c, l);
}

static bool throws_away(const struct snap_route *r) {
    return r && (r->type == RTN_BLACKHOLE || r->type == RTN_UNREACHABLE || r->type == RTN_PROHIBIT);
}

static struct cause *rule_blackhole(struct judge *j, const struct snap_lookup *l, const struct snap_route *r,
                                    uint32_t kills, uint32_t may) {
    char route[128];
    route_text(j->s, r, route, sizeof route);
    struct cause *c = cause_add(j, "host.blackhole-route", kills, may, "route \"%s\" throws packets for %s away", route,
                                ip_text(l->to).text);
    cause_evidence(c, "route", route, "a %s route", type_name(r->type));
    judge_lookup_evidence(j, c, l);
    step_route_delete(j, c, r);
    return c;
}

struct cause *judge_thrown_away(struct judge *j, const struct snap_lookup *l) {
    const struct snap_route *r = walk_policies(j->s, l->to).route;
    struct cause *c = throws_away(r) ? rule_blackhole(j, l, r, FLOWS_EGRESS, 0) : NULL;
    if (c)
        c->finding.hop = HOP_HOST_UPLINK;
    return c;
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

/* What the controller's configuration says is its to put back. Return: whether that is known, and holds the guest. */
static bool offer_declared(const struct judge *j, struct cause *c) {
    struct net_prefix declared = {j->s->host.managed_ip, j->s->host.managed_length};
    if (!c || !declared.address || !net_contains(declared, j->target->ip))
        return false;
    cause_evidence(c, "record", "declared.json", "the controller gave %s the address %s/%u", j->bridge->name,
                   ip_text(declared.address).text, declared.length);
    cause_step(c, REPAIR_ADDRESS_ADD, j->bridge->name)->prefix = declared;
    c->finding.safe = true;
    return true;
}

static void offer_address(const struct judge *j, struct cause *c) {
    struct snap_heard asked;
    if (offer_declared(j, c))
        return;
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
        judge_lookup_evidence(j, c, l);
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
    judge_lookup_evidence(j, c, l);
    if (!addr_containing(j->s, j->bridge->index, l->to))
        offer_declared(j, c);
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
        judge_lookup_evidence(j, c, l);
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
    judge_lookup_evidence(j, c, l);
    if (r)
        step_route_delete(j, c, r);
}

static void rule_route(struct judge *j) {
    const struct snap_lookup *l = j->target->ip ? judge_lookup(j->s, j->target->ip) : NULL;
    if (!l || !j->bridge)
        return;
    bool bridge_up = (j->bridge->flags & IFF_UP) != 0;
    if (!l->error && l->link == j->bridge->index && l->type == RTN_UNICAST && !l->gateway)
        return;
    struct walk walk = walk_policies(j->s, l->to);
    const struct snap_policy *p = walk.decides;
    const struct snap_route *r = walk.route;
    bool usual = !p || p->priority == 0 || p->priority == 32766 || p->priority == 32767;
    if (!l->error && l->type == RTN_LOCAL && (usual || l->table == RT_TABLE_LOCAL)) {
        rule_local(j, l);
    } else if (!usual || walk.jumped) {
        rule_policy(j, l, &walk, usual);
    } else if (throws_away(r)) {
        rule_blackhole(j, l, r, FLOWS_ROUTED, FLOWS_EGRESS | FLOWS_TO_HOST);
    } else if (!l->error && l->link == j->bridge->index) {
        struct cause *c =
            l->gateway ? cause_add(j, "host.route-elsewhere", FLOWS_ROUTED, 0, "packets for %s go by gateway %s",
                                   ip_text(l->to).text, ip_text(l->gateway).text)
                       : cause_add(j, "host.route-elsewhere", FLOWS_ROUTED, 0, "the host takes %s for a %s address",
                                   ip_text(l->to).text, type_name(l->type));
        judge_lookup_evidence(j, c, l);
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

/* One route by several devices: which of them a flow takes is the kernel's choice, and only the bridge leads there. */
static void rule_shared_route(struct judge *j) {
    const struct snap_lookup *l = j->target->ip ? judge_lookup(j->s, j->target->ip) : NULL;
    const struct snap_route *r = l && !l->error ? walk_policies(j->s, l->to).route : NULL;
    if (!r || !r->other_link || !j->bridge)
        return;
    char route[128];
    route_text(j->s, r, route, sizeof route);
    const char *other = snap_link_name(j->s, r->link == j->bridge->index ? r->other_link : r->link);
    struct cause *c = cause_add(j, "host.route-elsewhere", 0, FLOWS_ROUTED,
                                "route \"%s\" shares packets for %s out among %u ways, one of them %s", route,
                                ip_text(l->to).text, r->hops, other);
    cause_evidence(c, "route", route, "next hops by %s and %s", snap_link_name(j->s, r->link),
                   snap_link_name(j->s, r->other_link));
    judge_lookup_evidence(j, c, l);
    if (c)
        cause_plan(c, "ip route del %s/%u: it has more next hops than the one by %s", ip_text(r->to).text, r->length,
                   j->bridge->name);
}

/* What the host sends to the guest, as a policy rule with more selectors than the destination sees it. */
struct sent {
    uint8_t protocol;
    uint16_t port;
    bool has_source; /* an unbound socket's first lookup has none: only TCP asks again, and answers know theirs */
    uint32_t flows;
};

/* A mark that nothing gives: what the host sends has none before it is routed but by a rule of nftables, or by who sends. */
static bool is_never_marked(const struct judge *j, const struct snap_policy *p) {
    return (p->mark & p->mask) && !p->invert && !j->host->index.marks;
}

static bool policy_takes_sent(const struct snap_policy *p, const struct judge *j, const struct sent *sent) {
    if (is_never_marked(j, p) || (p->mask && (sent->flows & FLOW(PROBE_CANARY_ICMP_HOST))))
        return false; /* an answer's mark would be that of the question */
    struct net_prefix to = {p->to, p->to_length}, from = {p->from, p->from_length};
    bool takes = (p->to_length == 0 || net_contains(to, j->target->ip)) &&
                 (p->from_length == 0 || (sent->has_source && net_contains(from, j->bridge_address.address))) &&
                 is_own(p->iif) && !*p->oif && is_of_users(p) && (!p->protocol || p->protocol == sent->protocol) &&
                 (!p->port_first || (sent->port >= p->port_first && sent->port <= p->port_last));
    return takes != (p->invert != 0);
}

/* Whether a rule that takes a packet leads it away from the bridge. Without a route in its table the next rule is asked. */
static bool policy_misleads(const struct judge *j, const struct snap_policy *p, char *dst, size_t size) {
    const char *refuses = refusal(p->action);
    str_copy(dst, size, refuses ? refuses : "");
    if (refuses)
        return true;
    const struct snap_route *r = p->action == FR_ACT_TO_TBL ? route_in(j->s, p->table, j->target->ip) : NULL;
    if (!r || r->type == RTN_THROW || r->length < p->suppresses ||
        (r->type == RTN_UNICAST && r->link == j->bridge->index && !r->gateway))
        return false;
    route_text(j->s, r, dst, size);
    return true;
}

static void blame_policy(struct judge *j, const struct snap_policy *p, const struct sent *sent, const char *leads) {
    char selectors[200];
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
    step_policy_delete(c, p);
    /* Who gets its mark in the output hook is routed again there. */
    if (c && p->mask && (sent->flows & j->dead & FLOW(PROBE_ICMP)) && j->paths[PROBE_ICMP].dies == HOP_HOST_OUTPUT)
        c->finding.hop = HOP_HOST_OUTPUT;
}

/* Rules for one protocol, port, source or mark: a plain lookup does not meet them. */
static void rule_selective(struct judge *j) {
    const struct snap_lookup *l = j->target->ip ? judge_lookup(j->s, j->target->ip) : NULL;
    char leads[128];
    if (!l || l->error || l->link != j->bridge->index)
        return;
    const struct sent sent[] = {
        {IPPROTO_ICMP, 0, false, FLOW(PROBE_ICMP) | FLOW(PROBE_BURST_ICMP) | FLOW(PROBE_LARGE)},
        {IPPROTO_TCP, j->target->port, true, FLOW(PROBE_TCP)},
        {IPPROTO_ICMP, 0, true, FLOW(PROBE_CANARY_ICMP_HOST)},
    };
    const struct snap_policy *deciding = walk_policies(j->s, j->target->ip).decides;
    for (uint32_t i = 0; i < j->s->policies_count; i++) {
        const struct snap_policy *p = &j->s->policies[i];
        if (p == deciding)
            return;
        for (size_t k = 0; k < sizeof sent / sizeof *sent; k++)
            if (policy_takes_sent(p, j, &sent[k]) && policy_misleads(j, p, leads, sizeof leads))
                blame_policy(j, p, &sent[k], leads);
    }
}

/* --- what guests send through the host --- */

static bool policy_takes_from(const struct snap_policy *p, uint32_t from, const char *iif) {
    struct net_prefix prefix = {p->from, p->from_length};
    return (p->from_length == 0 || net_contains(prefix, from)) && (!*p->iif || strcmp(p->iif, iif) == 0) &&
           (p->from_length || *p->iif);
}

/* What the guest sends through the host is refused by the host's routing, though the host's own is not. */
static void rule_refused_through(struct judge *j) {
    const struct snap_lookup *own = judge_lookup(j->s, 0x08080808), *through = NULL;
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
        step_policy_delete(c, p);
        return;
    }
}

/* A route that lets only small packets through. */
static void rule_route_mtu(struct judge *j) {
    const struct snap_lookup *l = j->target->ip ? judge_lookup(j->s, j->target->ip) : NULL;
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

void rules_routes(struct judge *j) {
    rule_route(j);
    rule_shared_route(j);
    rule_route_mtu(j);
    if (!j->bridge)
        return;
    rule_selective(j);
    rule_refused_through(j);
}
