/* The guest judged from inside. */
#include "doctor/rules/guest_inside.h"

#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

/* With what the host saw of it in front. Where nothing was asked, what the guest says of itself must do for the loss. */
static struct cause *add_inside(struct judge *j, const char *id, uint32_t flows, const char *title,
                                const char *detail) {
    static const enum probe_kind order[] = {PROBE_ARP, PROBE_ICMP, PROBE_TCP};
    bool asked = (j->asked & FLOWS_HOST) != 0;
    struct cause *c = cause_add(j, id, asked ? 0 : flows, asked ? flows : 0, "%s%s", title, detail);
    if (!c)
        return NULL;
    c->seen = asked;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        const struct path *p = &j->paths[order[i]];
        if (!(flows & j->dead & FLOW(order[i])))
            continue;
        for (uint8_t e = 0; e < p->evidence_count; e++)
            cause_evidence(c, p->evidence[e].source, p->evidence[e].where, "%s", p->evidence[e].fact);
        break;
    }
    return c;
}

static void nic_evidence(const struct judge *j, struct cause *c, const struct snap_guest_link *nic) {
    const struct snap_guest_link *before = inside_nic_before(j);
    cause_evidence(c, "agent", nic->name, "the guest says: it is %s, %s, MAC %s", nic->up ? "up" : "down",
                   nic->carrier ? "has a carrier" : "has no carrier", mac_text(nic->mac).text);
    if (before && j->t)
        cause_evidence(c, "agent", nic->name, "the guest says: while we asked it received %llu frames and sent %llu",
                       (unsigned long long)(nic->rx_packets - before->rx_packets),
                       (unsigned long long)(nic->tx_packets - before->tx_packets));
}

/* --- both say something else --- */

/* One finding for all of them; it changes nothing by itself. */
static void contradict(struct judge *j, enum hop hop, const char *says, const char *sees) {
    struct cause *c = NULL;
    for (uint32_t i = 0; i < j->causes_count; i++)
        if (strcmp(j->causes[i].finding.id, "guest.contradiction") == 0)
            c = &j->causes[i];
    if (!c) {
        c = cause_add(j, "guest.contradiction", 0, 0, "the guest says that %s; the host sees that %s", says, sees);
        if (!c)
            return;
        c->note = true;
        c->finding.hop = hop;
        c->finding.confidence = 0.9;
    }
    cause_evidence(c, "agent", finding_hop_name(hop), "the guest says: %s", says);
    cause_evidence(c, "probe", finding_hop_name(hop), "the host sees: %s", sees);
}

/* --- it does not answer ARP --- */

static bool inside_no_nic(struct judge *j) {
    if (inside_nic(j))
        return false;
    struct cause *c = add_inside(j, "guest.no-nic", FLOWS_GUEST, "the guest has no network card that could be behind ",
                                 j->target->tap);
    cause_evidence(c, "agent", j->target->tap, "the guest says: %u links, none with MAC %s", j->guest->links.count,
                   j->has_mac ? mac_text(j->mac).text : "(not known)");
    return true;
}

/* heard: frames come out of it, so it cannot be down. */
static bool inside_nic_dead(struct judge *j, const struct snap_guest_link *nic, bool heard) {
    char title[160];
    struct cause *c;
    if (!nic->up && !heard) {
        snprintf(title, sizeof title, "%.15s inside the guest behind %s is down", nic->name, j->target->tap);
        c = add_inside(j, "guest.nic-down", FLOWS_GUEST, title, "");
        inside_mend_link(j, c, nic);
    } else if (!nic->carrier && !heard) {
        snprintf(title, sizeof title, "the VMM has the link of %s off: %.15s has no carrier in the guest",
                 j->target->tap, nic->name);
        c = add_inside(j, "vmm.link-off", FLOWS_GUEST, title, "");
    } else if (nic->noarp) {
        snprintf(title, sizeof title, "ARP is off on %.15s inside the guest behind %s", nic->name, j->target->tap);
        c = add_inside(j, "guest.nic-noarp", FLOWS_GUEST, title, "");
    } else {
        return false;
    }
    if (!c)
        return true;
    nic_evidence(j, c, nic);
    return true;
}

static bool inside_no_address(struct judge *j, const struct snap_guest_link *nic) {
    const struct snap_guest_addr *other = inside_other_address(j);
    struct ip_text ip = ip_text(j->target->ip), as = ip_text(other ? other->ip : 0);
    char title[160];
    if (inside_address(j))
        return false;
    snprintf(title, sizeof title, "the guest behind %s has %s, not %s", j->target->tap, other ? as.text : "no address",
             ip.text);
    struct cause *c = add_inside(j, "guest.no-address", FLOWS_GUEST, title, "");
    if (!c)
        return true;
    cause_evidence(c, "record", j->target->tap, "it should have %s/%u", ip.text, j->bridge_address.length);
    if (other)
        cause_evidence(c, "agent", nic->name, "the guest says: it has %s/%u", as.text, other->length);
    else
        cause_evidence(c, "agent", nic->name, "the guest says: it has no IPv4 address");
    nic_evidence(j, c, nic);
    inside_mend_address(j, c, nic, false);
    return true;
}

static bool inside_filters(struct judge *j, enum packet_kind kind, uint32_t flows) {
    struct inside_hit hit;
    char title[192];
    struct ip_text ip = ip_text(j->target->ip);
    if (!inside_find_filter(j, kind, &hit))
        return false;
    bool sure = hit.outcome == NFT_DROPS;
    snprintf(title, sizeof title, "%s: the guest's own packet filter %s %s (%.90s)", ip.text,
             hit.rejects ? "refuses"
             : sure      ? "drops"
                         : "may drop",
             packet_kind_name(hit.kind), hit.where);
    struct cause *c = add_inside(j, "guest.firewall", flows, title, "");
    if (!c)
        return true;
    c->finding.confidence = sure ? 0.95 : 0.6;
    cause_evidence(c, "agent", hit.where, "the guest says: %s", hit.text);
    if (hit.counted)
        cause_evidence(c, "agent", hit.where, "the guest says: its counter went from %llu to %llu while we asked",
                       (unsigned long long)hit.before, (unsigned long long)hit.packets);
    if (j->vm)
        cause_plan(c, "if nobody needs it: mctl vm exec %s -- %s", j->vm->id, hit.verb);
    return true;
}

static struct cause *find_cause(struct judge *j, const char *id) {
    for (uint32_t i = 0; i < j->causes_count; i++)
        if (strcmp(j->causes[i].finding.id, id) == 0)
            return &j->causes[i];
    return NULL;
}

/* The host may have heard it claim the address: then this is what the claim does to the guest itself. */
static bool inside_owns_gateway(struct judge *j) {
    uint32_t host = j->bridge_address.address;
    for (uint32_t i = 0; host && i < j->guest->addrs.count; i++) {
        const struct snap_guest_addr *addr = &j->guest_s->guest_addrs[j->guest->addrs.first + i];
        if (addr->ip != host)
            continue;
        struct ip_text text = ip_text(host);
        struct cause *c = find_cause(j, "guest.owns-gateway");
        if (c)
            c->may |= FLOWS_GUEST;
        else
            c = add_inside(j, "guest.owns-gateway", FLOWS_GUEST,
                           "the guest has the gateway's own address, and answers itself: ", text.text);
        cause_evidence(c, "agent", addr->link, "the guest says: it has %s/%u", text.text, addr->length);
        if (c) { /* it dies there, and not at another one's entry */
            c->seen = true;
            c->finding.hop = HOP_GUEST_IP;
        }
        return true;
    }
    return false;
}

/* The larger of the card's own and that of all counts. 1 and 2 refuse nothing that is asked for the card's own address
 * (2: by who is in its network).
 * Source: Documentation/networking/ip-sysctl.rst, arp_ignore. */
static bool inside_ignores_arp(struct judge *j, const struct snap_guest_link *nic) {
    const struct snap_guest_addr *addr = inside_address(j);
    bool own = nic->arp_ignore > j->guest->arp_ignore, has = addr && strcmp(addr->link, nic->name) == 0;
    int32_t value = own ? nic->arp_ignore : j->guest->arp_ignore;
    bool answers =
        value <= 0 || (value == 1 && has) ||
        (value == 2 && has && net_contains((struct net_prefix){addr->ip, addr->length}, j->bridge_address.address));
    if (answers)
        return false;
    struct cause *c = add_inside(j, "guest.arp-ignore", FLOWS_GUEST, "the guest is told not to answer ARP for ",
                                 ip_text(j->target->ip).text);
    cause_evidence(c, "agent", "sysctl", "the guest says: net.ipv4.conf.%s.arp_ignore is %d", own ? nic->name : "all",
                   value);
    return true;
}

bool inside_silent(struct judge *j, bool heard, bool heard_as) {
    const struct snap_guest_link *nic = inside_nic(j);
    if (!inside_has_told(j))
        return false;
    if (!heard && inside_no_nic(j))
        return true;
    if (!nic)
        return false;
    if (inside_nic_dead(j, nic, heard))
        return true;
    if (!heard_as && nic->up && inside_no_address(j, nic))
        return true;
    if (inside_owns_gateway(j) || inside_filters(j, PACKET_ARP_REQUEST, FLOWS_GUEST))
        return true;
    return inside_ignores_arp(j, nic);
}

/* --- it answers ARP, and nothing else --- */

static void route_words(const struct snap_guest_route *route, char *ret, size_t size) {
    struct ip_text to = ip_text(route->to), via = ip_text(route->gateway);
    const char *type = route->type == RTN_BLACKHOLE     ? "blackhole "
                       : route->type == RTN_UNREACHABLE ? "unreachable "
                       : route->type == RTN_PROHIBIT    ? "prohibit "
                                                        : "";
    snprintf(ret, size, "%s%s/%u%s%s%s%.15s", type, to.text, route->length, route->gateway ? " via " : "",
             route->gateway ? via.text : "", *route->link ? " dev " : "", route->link);
}

/* Its prefix leaves the host outside: the incident's mask. */
static bool inside_wrong_prefix(struct judge *j, const struct snap_guest_link *nic) {
    const struct snap_guest_addr *addr = inside_address(j);
    uint32_t host = j->bridge_address.address;
    struct ip_text ip = ip_text(j->target->ip), at = ip_text(host);
    char title[192];
    if (!addr || net_contains((struct net_prefix){addr->ip, addr->length}, host) || inside_route(j, host))
        return false;
    snprintf(title, sizeof title, "%s takes %s for a stranger: its prefix is /%u, the bridge's is /%u", ip.text,
             at.text, addr->length, j->bridge_address.length);
    struct cause *c = add_inside(j, "guest.wrong-prefix", FLOWS_IP | FLOW(PROBE_CANARY_ICMP), title, "");
    if (!c)
        return true;
    cause_evidence(c, "agent", nic->name, "the guest says: it has %s/%u, and no route to %s", ip.text, addr->length,
                   at.text);
    inside_mend_address(j, c, nic, false);
    inside_mend_route(j, c, nic); /* goes with the address */
    return true;
}

/* No way back to the host, or one that leads elsewhere. */
static bool inside_no_route(struct judge *j, const struct snap_guest_link *nic) {
    uint32_t host = j->bridge_address.address;
    const struct snap_guest_route *route = inside_route(j, host);
    struct ip_text ip = ip_text(j->target->ip), at = ip_text(host);
    char title[192], words[96] = "none";
    if (route)
        route_words(route, words, sizeof words);
    if (route && route->type == RTN_UNICAST && strcmp(route->link, nic->name) == 0 &&
        (!route->gateway || route->gateway == host))
        return false;
    snprintf(title, sizeof title, "%s has no way back to %s (its route: %s)", ip.text, at.text, words);
    struct cause *c = add_inside(j, "guest.no-route", FLOWS_IP | FLOW(PROBE_CANARY_ICMP), title, "");
    if (!c)
        return true;
    cause_evidence(c, "agent", nic->name, "the guest says: its route to %s is: %s", at.text, words);
    if (j->vm && !route)
        inside_mend_address(j, c, nic, true);
    else if (j->vm)
        cause_plan(c, "if nobody needs it: mctl vm exec %s -- ip route del %s", j->vm->id, words);
    return true;
}

static bool inside_stale_gateway(struct judge *j) {
    for (uint32_t i = 0; i < j->guest->neighs.count; i++) {
        const struct snap_guest_neigh *n = &j->guest_s->guest_neighs[j->guest->neighs.first + i];
        if (n->ip != j->bridge_address.address || !n->has_mac || mac_equal(n->mac, j->bridge->mac))
            continue;
        struct mac_text old = mac_text(n->mac), now = mac_text(j->bridge->mac);
        struct cause *c = add_inside(j, "guest.gateway-mac-stale", FLOWS_IP | FLOWS_EGRESS,
                                     "the guest sends to a MAC that is not the bridge's: ", old.text);
        cause_evidence(c, "agent", n->link, "the guest says: %s is at %s (%s)", ip_text(n->ip).text, old.text,
                       n->state);
        cause_evidence(c, "link", j->bridge->name, "its MAC is %s", now.text);
        if (j->vm)
            cause_plan(c, "mctl vm exec %s -- ip neigh del %s dev %s", j->vm->id, ip_text(n->ip).text, n->link);
        return true;
    }
    return false;
}

static bool inside_ignores_ping(struct judge *j) {
    if (j->guest->ignores_ping <= 0 || j->paths[PROBE_TCP].asked)
        return false;
    struct cause *c = cause_add(j, "guest.ignores-ping", FLOW(PROBE_ICMP) | FLOW(PROBE_BURST_ICMP) | FLOW(PROBE_LARGE),
                                FLOW(PROBE_CANARY_ICMP), "%s is told to ignore ping", ip_text(j->target->ip).text);
    cause_evidence(c, "agent", "sysctl", "the guest says: net.ipv4.icmp_echo_ignore_all is 1; it answers ARP");
    if (c)
        c->note = true;
    return true;
}

bool inside_deaf(struct judge *j) {
    const struct snap_guest_link *nic = inside_nic(j);
    if (!nic || !j->bridge_address.address)
        return false;
    return inside_owns_gateway(j) || inside_wrong_prefix(j, nic) || inside_no_route(j, nic) ||
           inside_stale_gateway(j) || inside_filters(j, PACKET_ECHO, FLOWS_IP | FLOW(PROBE_CANARY_ICMP)) ||
           inside_ignores_ping(j) ||
           (j->paths[PROBE_TCP].asked && inside_filters(j, PACKET_SYN, FLOWS_IP | FLOW(PROBE_CANARY_ICMP)));
}

bool inside_says_well(const struct judge *j) {
    const struct snap_guest_link *nic = inside_nic(j);
    return inside_is_complete(j) && nic && nic->up && nic->carrier && inside_address(j);
}

/* --- the service --- */

static void unit_evidence(struct judge *j, struct cause *c) {
    const char *mend = NULL;
    for (uint32_t i = 0; i < j->guest->units.count; i++) {
        const struct snap_guest_unit *unit = &j->guest_s->guest_units[j->guest->units.first + i];
        cause_evidence(c, "agent", unit->name, "the guest says: %s (%s, result %s), %s, restarted %s times",
                       unit->active, unit->sub, unit->result, unit->enabled, unit->restarts);
        if (strcmp(unit->load, "loaded") == 0 && j->vm && strcmp(j->vm->type, "browser") == 0 &&
            strcmp(unit->name, "websockify.service") == 0)
            mend = unit->name;
    }
    if (j->guest->oom_kills > 0)
        cause_evidence(c, "agent", "kernel", "the guest says: it killed %lld processes for lack of memory",
                       (long long)j->guest->oom_kills);
    if (mend)
        inside_mend_unit(j, c, mend);
    else if (j->vm)
        cause_plan(c, "mctl vm exec %s -- systemctl restart UNIT, the one that has port %u", j->vm->id,
                   j->target->port);
}

static bool inside_not_listening(struct judge *j) {
    const struct snap_guest_listener *loopback = inside_listener(j, true);
    struct ip_text ip = ip_text(j->target->ip);
    char title[160];
    struct cause *c;
    if (inside_listener(j, false) || !j->guest->complete)
        return false;
    if (loopback) {
        snprintf(title, sizeof title, "the service of %s port %u listens on the guest's loopback alone", ip.text,
                 j->target->port);
        c = add_inside(j, "guest.service-loopback-only", FLOW(PROBE_TCP), title, "");
        cause_evidence(c, "agent", ip.text,
                       "the guest says: %.31s (pid %d) listens on 127.0.0.1 port %u, nobody elsewhere",
                       loopback->program, loopback->pid, loopback->port);
        return true;
    }
    snprintf(title, sizeof title, "nothing listens on %s port %u", ip.text, j->target->port);
    c = add_inside(j, "guest.service-down", FLOW(PROBE_TCP), title, "");
    if (!c)
        return true;
    cause_evidence(c, "agent", ip.text, "the guest says: nobody listens on port %u", j->target->port);
    unit_evidence(j, c);
    return true;
}

bool inside_tcp(struct judge *j, bool refused) {
    const struct snap_guest_listener *l = inside_listener(j, false);
    if (!inside_has_told(j) || !inside_nic(j))
        return false;
    struct inside_hit hit;
    if (inside_find_filter(j, PACKET_SYN, &hit) && (hit.rejects || !refused))
        return inside_filters(j, PACKET_SYN, FLOW(PROBE_TCP) | FLOW(PROBE_TCP_RAW));
    if (refused)
        return inside_not_listening(j);
    if (!l || !l->queue)
        return false;
    char title[160];
    snprintf(title, sizeof title, "%s port %u: %.31s does not accept the connections that wait for it",
             ip_text(j->target->ip).text, j->target->port, l->program);
    struct cause *c = add_inside(j, "guest.service-stalled", FLOW(PROBE_TCP) | FLOW(PROBE_TCP_RAW), title, "");
    cause_evidence(c, "agent", l->program, "the guest says: %u connections wait in the queue of port %u (pid %d)",
                   l->queue, l->port, l->pid);
    return true;
}

/* --- the way out --- */

static bool is_failed_neigh(const struct judge *j, uint32_t ip) {
    for (uint32_t i = 0; i < j->guest->neighs.count; i++) {
        const struct snap_guest_neigh *n = &j->guest_s->guest_neighs[j->guest->neighs.first + i];
        if (n->ip == ip)
            return strcmp(n->state, "failed") == 0 || strcmp(n->state, "incomplete") == 0;
    }
    return false;
}

static bool has_mac_of(const struct judge *j, uint32_t ip) {
    for (uint32_t i = 0; i < j->guest->neighs.count; i++) {
        const struct snap_guest_neigh *n = &j->guest_s->guest_neighs[j->guest->neighs.first + i];
        if (n->ip == ip)
            return n->has_mac;
    }
    return false;
}

/* An address of the bridge's network that neither the host nor a VM nor, as far as anybody knows, another one has. Behind
 * a port that is no TAP there may be others. */
static bool is_nobodys(const struct judge *j, uint32_t ip) {
    if (!net_contains(j->bridge_address, ip) || has_mac_of(j, ip))
        return false;
    for (uint32_t i = 0; i < j->s->links_count; i++)
        if (snap_is_port(&j->s->links[i], j->bridge->index) && !j->s->links[i].is_tap)
            return false;
    for (uint32_t i = 0; i < j->s->addrs_count; i++)
        if (j->s->addrs[i].ip == ip)
            return false;
    for (uint32_t i = 0; i < j->s->vms_count; i++)
        if (j->s->vms[i].ip == ip)
            return false;
    for (uint32_t i = 0; i < j->s->neighs_count; i++)
        if (j->s->neighs[i].ip == ip && j->s->neighs[i].has_mac)
            return false;
    return true;
}

bool inside_egress(struct judge *j, uint32_t unanswered) {
    const struct snap_guest_link *nic = inside_nic(j);
    const struct snap_guest_route *route = inside_route(j, SNAP_BEYOND);
    struct ip_text ip = ip_text(j->target->ip), via = ip_text(route ? route->gateway : 0);
    struct cause *c = NULL;
    char words[96];
    if (!nic || !nic->up || !inside_address(j) || !j->vm)
        return false;
    bool leads = route && route->type == RTN_UNICAST, via_host = leads && route->gateway == j->bridge_address.address;
    bool nobody = leads && !via_host && route->gateway &&
                  (route->gateway == unanswered || is_failed_neigh(j, route->gateway) || is_nobodys(j, route->gateway));
    if (leads && !nobody)
        return via_host;
    if (!leads) {
        c = cause_add(j, "guest.no-default-route", FLOW_EGRESS_GUEST, 0, "%s has no way to the outside", ip.text);
        if (route)
            route_words(route, words, sizeof words);
        cause_evidence(c, "agent", nic->name, "the guest says: %u routes, none of them leads to the outside%s%s",
                       j->guest->routes.count, route ? ": " : "", route ? words : "");
    } else {
        c = cause_add(j, "guest.wrong-gateway", FLOW_EGRESS_GUEST, 0, "%s sends to the outside by %s, which nobody has",
                      ip.text, via.text);
        cause_evidence(c, "agent", nic->name, "the guest says: its default route is by %s, whose MAC it does not know",
                       via.text);
    }
    cause_evidence(c, "record", j->target->tap, "its gateway is %s", ip_text(j->bridge_address.address).text);
    if (!c)
        return true;
    c->seen = c->policy = true;
    c->finding.confidence = 0.9;
    inside_mend_route(j, c, nic);
    return true;
}

/* --- state alone, and what does not fit --- */

void inside_state(struct judge *j) {
    if (!inside_has_told(j) || !j->vm)
        return;
    const struct snap_guest_link *nic = inside_nic(j);
    if (!nic)
        inside_no_nic(j);
    else if (!inside_nic_dead(j, nic, false) && !inside_no_address(j, nic) && !inside_wrong_prefix(j, nic) &&
             !inside_no_route(j, nic))
        inside_egress(j, 0);
}

static void contradictions_of_silence(struct judge *j, const struct snap_guest_link *nic, bool heard, bool heard_as) {
    const struct snap_guest_link *before = inside_nic_before(j);
    struct ip_text ip = ip_text(j->target->ip);
    char says[160], sees[160];
    bool well = nic->up && nic->carrier && inside_address(j);
    if (heard && !(nic->up && nic->carrier)) {
        snprintf(says, sizeof says, "%.15s is %s", nic->name, nic->up ? "without a carrier" : "down");
        contradict(j, HOP_GUEST_NIC, says, "frames from it come out of its TAP");
    } else if (heard_as && !inside_address(j)) {
        snprintf(says, sizeof says, "it does not have %s", ip.text);
        snprintf(sees, sizeof sees, "it sends frames from %s", ip.text);
        contradict(j, HOP_GUEST_IP, says, sees);
    }
    const struct path *arp = &j->paths[PROBE_ARP];
    if (!(j->dead & FLOW(PROBE_ARP)) || !well || !(arp->passed & HOPBIT(HOP_VMM)) ||
        judge_is_explained(j, PROBE_ARP, arp->hops))
        return;
    snprintf(says, sizeof says, "%.15s is up and has %s", nic->name, ip.text);
    contradict(j, HOP_GUEST_NIC, says, "it does not answer ARP, though its VMM reads the requests");
    if (before && nic->rx_packets == before->rx_packets)
        contradict(j, HOP_GUEST_NIC, "it received no frame while we asked", "its VMM read frames from the TAP");
}

void inside_contradictions(struct judge *j, bool heard, bool heard_as) {
    const struct snap_guest_link *nic = inside_nic(j);
    const struct path *tcp = &j->paths[PROBE_TCP], *icmp = &j->paths[PROBE_ICMP];
    char says[160], sees[160];
    struct inside_hit hit;
    if (!nic)
        return;
    if (j->target->mac_given && !mac_equal(nic->mac, j->target->mac)) {
        snprintf(says, sizeof says, "its card has MAC %s", mac_text(nic->mac).text);
        snprintf(sees, sizeof sees, "its record has %s", mac_text(j->target->mac).text);
        contradict(j, HOP_GUEST_NIC, says, sees);
    }
    contradictions_of_silence(j, nic, heard, heard_as);
    snprintf(says, sizeof says, "nobody listens on port %u", j->target->port);
    snprintf(sees, sizeof sees, "a connection to it was accepted");
    if (tcp->asked && tcp->alive && j->guest->complete && !inside_listener(j, false))
        contradict(j, HOP_GUEST_SERVICE, says, sees);
    snprintf(says, sizeof says, "it listens on port %u and no rule of its filter refuses", j->target->port);
    if (tcp->asked && !tcp->alive && judge_answer(j, PROBE_TCP)->answer_errno && inside_is_complete(j) &&
        inside_listener(j, false) && !inside_find_filter(j, PACKET_SYN, &hit))
        contradict(j, HOP_GUEST_SERVICE, says, "a connection to it was refused");
    if ((j->alive & FLOW(PROBE_ARP)) && icmp->asked && !icmp->alive && inside_is_complete(j) &&
        (icmp->passed & HOPBIT(HOP_VMM)) && !judge_is_explained(j, PROBE_ICMP, icmp->hops))
        contradict(j, HOP_GUEST_FIREWALL, "it has a route back and no rule of its filter against it",
                   "echo requests are read by its VMM and not answered");
}
