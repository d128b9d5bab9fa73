/* The host's own layer 3, but for its routes: neighbours, addresses, sysctls, tables, IPsec. */
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

/* --- neighbours --- */

/* Without ARP on the device, or for what its routes call a broadcast address, the kernel makes an entry by itself. */
static bool is_kernels_own(const struct judge *j, const struct snap_neigh *n) {
    const struct snap_lookup *l = judge_lookup(j->s, n->ip);
    bool broadcast = l && !l->error && l->type != RTN_UNICAST && mac_equal(n->mac, j->bridge->broadcast);
    return (n->state & NUD_NOARP) && (broadcast || (j->bridge->flags & IFF_NOARP));
}

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
        if (is_kernels_own(j, n))
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
    int asks[2] = {3, 3};
    static const char *const kinds[] = {"mcast_solicit", "app_solicit"};
    for (size_t i = 0; j->bridge && i < 2; i++) {
        snprintf(key, sizeof key, "net/ipv4/neigh/%s/%s", j->bridge->name, kinds[i]);
        asks[i] = snap_sysctl_int(j->s, key, 3);
    }
    if (!j->bridge || asks[0] > 0)
        return;
    /* A daemon may do it instead (arpd), if there is one. */
    bool left = asks[1] > 0;
    struct cause *c = cause_add(j, "host.neigh-solicit", left ? 0 : FLOW_OTHER, FLOWS_ROUTED,
                                left ? "ARP on %s is left to a daemon, the kernel sends no request"
                                     : "no ARP request is ever sent on %s",
                                j->bridge->name);
    if (c && !left) {
        c->policy = true;
        c->refutable = false; /* whoever asks the host first is known for a while */
    }
    cause_evidence(c, "sysctl", "mcast_solicit", "net.ipv4.neigh.%s.mcast_solicit is 0", j->bridge->name);
    if (left)
        cause_evidence(c, "sysctl", "app_solicit", "net.ipv4.neigh.%s.app_solicit is %d", j->bridge->name, asks[1]);
    struct repair_step *step = cause_step(c, REPAIR_SYSCTL, "");
    snprintf(step->object, sizeof step->object, "net/ipv4/neigh/%s/mcast_solicit", j->bridge->name);
    str_copy(step->text, sizeof step->text, "3");
    if (!left)
        return;
    step = cause_step(c, REPAIR_SYSCTL, ""); /* the daemon would still be asked first, and waited for */
    snprintf(step->object, sizeof step->object, "net/ipv4/neigh/%s/app_solicit", j->bridge->name);
    str_copy(step->text, sizeof step->text, "0");
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

/* What was said of the guest's MAC, by the record or the one who asks, is not so. */
static void rule_other_mac(struct judge *j) {
    if (!j->target->has_mac || mac_equal(j->mac, j->target->mac))
        return;
    struct cause *c = cause_add(j, "guest.mac-differs", 0, 0, "the guest's MAC is %s, not %s", mac_text(j->mac).text,
                                mac_text(j->target->mac).text);
    cause_evidence(c, "probe", j->target->tap, "%s answers ARP for %s here", mac_text(j->mac).text,
                   ip_text(j->target->ip).text);
    cause_evidence(c, "record", j->vm ? j->vm->id : "--guest-mac", "says %s", mac_text(j->target->mac).text);
    if (c)
        c->note = true;
}

static void rule_two_macs(struct judge *j) {
    struct net_mac named;
    const struct probe_frame *f = judge_odd_answer(j, &named);
    if (!f || !j->tap || f->ifindex != j->tap->index) /* else the rule that rewrites it is to blame */
        return;
    struct cause *c = cause_add(j, "guest.arp-wrong", 0, FLOWS_IP | FLOWS_CANARY,
                                "the guest says by ARP that its MAC is %s, and sends from %s", mac_text(named).text,
                                mac_text(f->source).text);
    if (!c)
        return;
    c->seen = true;
    cause_evidence(c, "probe", j->tap->name, "its ARP answer names %s, the frame that carries it comes from %s",
                   mac_text(named).text, mac_text(f->source).text);
    cause_plan(c, "look in the guest for what answers ARP there (nft list ruleset, arptables, keepalived)");
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
    struct net_mac named;
    if (a->mac_count < 2 || (a->mac_count == 2 && judge_odd_answer(j, &named)))
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
    judge_lookup_evidence(j, c, l);
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
    const struct snap_lookup *l = j->target->ip ? judge_lookup(j->s, j->target->ip) : NULL;
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
    const struct snap_lookup *l = j->target->ip ? judge_lookup(j->s, j->target->ip) : NULL;
    return !l || (!l->error && l->link == j->bridge->index);
}

static void rule_rp_filter(struct judge *j) {
    int value = snap_conf(j->s, j->bridge->name, "rp_filter", 0);
    const struct snap_lookup *l = j->target->ip ? judge_lookup(j->s, j->target->ip) : NULL;
    if (value == 0 || !l || answers_by_bridge(j) || (value == 2 && !l->error))
        return;
    struct cause *c = cause_add(j, "host.rp-filter", FLOWS_IP | FLOW_OTHER, FLOWS_EGRESS,
                                "rp_filter on %s refuses what %s sends", j->bridge->name, ip_text(j->target->ip).text);
    cause_evidence(c, "sysctl", "rp_filter", "net.ipv4.conf.%s.rp_filter with all is %d", j->bridge->name, value);
    judge_lookup_evidence(j, c, l);
    if (c)
        c->policy = true;
}

/* A VM asked who has it. */
static bool is_asked_for(const struct judge *j, uint32_t ip) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; after && i < after->heard_count; i++)
        if (after->heard[i].kind == SNAP_HEARD_WHO_HAS && after->heard[i].destination_ip == ip)
            return true;
    return false;
}

/* An address of the bridge's network that is on another device: with arp_ignore 1 nobody answers for it. One with a
 * network of its own there is that network's (a virbr0 inside the bridge's /16), unless a VM asks for it. */
static const struct snap_addr *gateway_elsewhere(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->addrs_count; i++) {
        const struct snap_addr *a = &j->s->addrs[i];
        const struct snap_link *link = snap_link_by_index(j->s, a->link);
        bool single = a->length == 32 || (link && (link->flags & IFF_LOOPBACK)) || is_asked_for(j, a->ip);
        if (a->link != j->bridge->index && j->bridge_address.address && net_contains(j->bridge_address, a->ip) &&
            single)
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
    bool all_out = (x->to_length == 0 || x->from_length == 0) && judge_lookup(j->s, 0x08080808) &&
                   !judge_lookup(j->s, 0x08080808)->error && snap_sysctl_int(j->s, "net/ipv4/ip_forward", 0);
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

void rules_host(struct judge *j) {
    if (!j->bridge)
        return;
    rule_source(j);
    rule_not_local(j);
    rule_neigh(j);
    rule_solicit(j);
    rule_duplicate_ip(j);
    rule_two_macs(j);
    rule_other_mac(j);
    rule_owns_gateway(j);
    rule_rp_filter(j);
    rule_arp_ignore(j);
    rule_arp_filter(j);
    rule_ping(j);
    rule_tables(j);
    rule_xfrm(j);
}
