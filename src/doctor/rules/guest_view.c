/* Looking things up in what the guest told. */
#include <linux/netfilter.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/guest_inside.h"

bool inside_has_told(const struct judge *j) {
    return j->guest && j->guest->state == SNAP_GUEST_TOLD;
}

bool inside_is_complete(const struct judge *j) {
    return inside_has_told(j) && j->guest->complete && j->guest->firewall_known && !*j->guest->firewall_words;
}

static const struct snap_guest_addr *find_addr(const struct snapshot *s, const struct snap_guest *g, uint32_t ip) {
    for (uint32_t i = 0; i < g->addrs.count; i++)
        if (s->guest_addrs[g->addrs.first + i].ip == ip)
            return &s->guest_addrs[g->addrs.first + i];
    return NULL;
}

static const struct snap_guest_link *find_nic(const struct judge *j, const struct snapshot *s,
                                              const struct snap_guest *g) {
    const struct snap_guest_link *only = NULL;
    const struct snap_guest_addr *addr = find_addr(s, g, j->target->ip);
    static const struct net_mac none;
    uint32_t cards = 0;
    for (uint32_t i = 0; i < g->links.count; i++) {
        const struct snap_guest_link *link = &s->guest_links[g->links.first + i];
        if (j->has_mac && mac_equal(link->mac, j->mac) && !*link->kind)
            return link;
        if (!*link->kind && strcmp(link->name, "lo") != 0 && !mac_equal(link->mac, none)) {
            only = link;
            cards++;
        }
    }
    for (uint32_t i = 0; addr && i < g->links.count; i++)
        if (strcmp(s->guest_links[g->links.first + i].name, addr->link) == 0 && strcmp(addr->link, "lo") != 0)
            return &s->guest_links[g->links.first + i];
    return cards == 1 ? only : NULL;
}

const struct snap_guest_link *inside_nic(const struct judge *j) {
    return inside_has_told(j) ? find_nic(j, j->guest_s, j->guest) : NULL;
}

static const struct snap_guest *told_before(const struct judge *j) {
    const struct snap_guest *g = snap_guest_of_tap(j->s, j->target->tap);
    return j->guest_s != j->s && g && g->state == SNAP_GUEST_TOLD ? g : NULL;
}

const struct snap_guest_link *inside_nic_before(const struct judge *j) {
    const struct snap_guest *g = told_before(j);
    return g ? find_nic(j, j->s, g) : NULL;
}

const struct snap_guest_addr *inside_address(const struct judge *j) {
    return inside_has_told(j) ? find_addr(j->guest_s, j->guest, j->target->ip) : NULL;
}

const struct snap_guest_addr *inside_other_address(const struct judge *j) {
    const struct snap_guest_link *nic = inside_nic(j);
    for (uint32_t i = 0; nic && i < j->guest->addrs.count; i++) {
        const struct snap_guest_addr *addr = &j->guest_s->guest_addrs[j->guest->addrs.first + i];
        if (addr->ip != j->target->ip && strcmp(addr->link, nic->name) == 0)
            return addr;
    }
    return NULL;
}

const struct snap_guest_route *inside_route(const struct judge *j, uint32_t to) {
    const struct snap_guest_route *best = NULL;
    for (uint32_t i = 0; inside_has_told(j) && i < j->guest->routes.count; i++) {
        const struct snap_guest_route *route = &j->guest_s->guest_routes[j->guest->routes.first + i];
        struct net_prefix prefix = {route->to, route->length};
        if ((route->table != RT_TABLE_MAIN && route->table != RT_TABLE_DEFAULT) || !net_contains(prefix, to))
            continue;
        if (!best || route->length > best->length || (route->length == best->length && route->metric < best->metric))
            best = route;
    }
    return best;
}

const struct snap_guest_listener *inside_listener(const struct judge *j, bool loopback) {
    for (uint32_t i = 0; inside_has_told(j) && i < j->guest->listeners.count; i++) {
        const struct snap_guest_listener *l = &j->guest_s->guest_listeners[j->guest->listeners.first + i];
        bool reached = l->any || l->ip == j->target->ip;
        if (str_starts(l->protocol, "tcp") && l->port == j->target->port && (loopback ? l->loopback : reached))
            return l;
    }
    return NULL;
}

/* --- its packet filter --- */

/* The guest's tables as a snapshot of their own: borrowed rows, nothing to free. */
static struct snapshot view_of(const struct snapshot *s, const struct snap_guest *g) {
    return (struct snapshot){.chains = s->guest_chains + g->chains.first,
                             .chains_count = g->chains.count,
                             .rules = s->guest_rules + g->rules.first,
                             .rules_count = g->rules.count,
                             .exprs = s->guest_exprs,
                             .exprs_count = s->guest_exprs_count};
}

/* Where a packet comes by in the guest, in order. */
struct place {
    uint8_t family, hook;
    bool out;
};

static void build(const struct judge *j, const struct snap_guest_link *nic, enum packet_kind kind, bool out,
                  struct packet *ret) {
    struct packet_ends in = {.source = j->bridge_address.address,
                             .destination = j->target->ip,
                             .source_mac = j->bridge ? j->bridge->mac : (struct net_mac){{0}},
                             .destination_mac = nic->mac,
                             .port = j->target->port};
    struct packet_ends back = {.source = in.destination,
                               .destination = in.source,
                               .source_mac = in.destination_mac,
                               .destination_mac = in.source_mac,
                               .port = in.port};
    packet_build(kind, out ? &back : &in, ret);
    str_copy(out ? ret->oif : ret->iif, sizeof ret->iif, nic->name);
    *(out ? &ret->oif_index : &ret->iif_index) = nic->index;
}

static const struct snap_nft_rule *same_rule_before(const struct judge *j, const struct snap_nft_rule *rule) {
    const struct snap_guest *g = told_before(j);
    for (uint32_t i = 0; g && i < g->rules.count; i++) {
        const struct snap_nft_rule *r = &j->s->guest_rules[g->rules.first + i];
        if (r->family == rule->family && r->handle == rule->handle && strcmp(r->table, rule->table) == 0 &&
            strcmp(r->chain, rule->chain) == 0)
            return r;
    }
    return NULL;
}

static void describe(const struct judge *j, const struct snapshot *view, const struct nft_result *r,
                     struct inside_hit *hit) {
    const struct snap_nft_chain *in = r->in ? r->in : r->chain;
    const char *family = nft_family_name(in->family);
    hit->outcome = r->outcome;
    hit->rejects = r->rejects;
    if (!r->rule) {
        snprintf(hit->where, sizeof hit->where, "%s %.28s %.28s", family, in->table, in->name);
        snprintf(hit->text, sizeof hit->text, "policy drop, and no rule accepts it");
        snprintf(hit->verb, sizeof hit->verb, "nft chain %s %.32s %.32s '{ policy accept; }'", family, in->table,
                 in->name);
        return;
    }
    const struct snap_nft_rule *before = same_rule_before(j, r->rule);
    snprintf(hit->where, sizeof hit->where, "%s %.28s %.28s handle %llu", family, in->table, in->name,
             (unsigned long long)r->rule->handle);
    nft_rule_text(view, r->rule, hit->text, sizeof hit->text);
    snprintf(hit->verb, sizeof hit->verb, "nft delete rule %s %.32s %.32s handle %llu", family, in->table, in->name,
             (unsigned long long)r->rule->handle);
    hit->counted = r->rule->counted && before && before->counted;
    hit->packets = r->rule->packets;
    hit->before = before ? before->packets : 0;
}

static void try_place(const struct judge *j, const struct nft_index *index, const struct place *place,
                      const struct snap_guest_link *nic, enum packet_kind kind, struct inside_hit *best) {
    struct packet packet;
    struct nft_result r;
    build(j, nic, kind, place->out, &packet);
    nft_eval_hook(index, place->family, place->hook, nic->name, &packet, NULL, &r);
    if (r.outcome <= best->outcome)
        return;
    *best = (struct inside_hit){.kind = kind};
    describe(j, index->s, &r, best);
}

bool inside_find_filter(const struct judge *j, enum packet_kind kind, struct inside_hit *ret) {
    static const struct place arp_places[] = {
        {NFPROTO_NETDEV, 0, false}, {NFPROTO_ARP, 0, false}, {NFPROTO_ARP, 1, true}, {NFPROTO_NETDEV, 1, true}};
    static const struct place ip_places[] = {{NFPROTO_NETDEV, 0, false},
                                             {NFPROTO_IPV4, NF_INET_PRE_ROUTING, false},
                                             {NFPROTO_IPV4, NF_INET_LOCAL_IN, false},
                                             {NFPROTO_IPV4, NF_INET_LOCAL_OUT, true},
                                             {NFPROTO_IPV4, NF_INET_POST_ROUTING, true},
                                             {NFPROTO_NETDEV, 1, true}};
    bool arp = kind == PACKET_ARP_REQUEST;
    enum packet_kind back = arp ? PACKET_ARP_REPLY : kind == PACKET_SYN ? PACKET_SYN_ACK : PACKET_ECHO_REPLY;
    const struct place *places = arp ? arp_places : ip_places;
    size_t count = arp ? sizeof arp_places / sizeof *arp_places : sizeof ip_places / sizeof *ip_places;
    const struct snap_guest_link *nic = inside_nic(j);
    struct inside_hit best = {.outcome = NFT_PASSES};
    struct nft_index index;
    if (!nic || !j->guest->chains.count)
        return false;
    struct snapshot view = view_of(j->guest_s, j->guest);
    if (nft_index_make(&view, &index) < 0)
        return false;
    for (size_t i = 0; i < count; i++)
        try_place(j, &index, &places[i], nic, places[i].out ? back : kind, &best);
    nft_index_free(&index);
    if (best.outcome == NFT_PASSES)
        return false;
    *ret = best;
    return true;
}
