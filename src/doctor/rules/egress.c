/* The way from the guest to the outside. Judged only where there is one: a host without an uplink, or with forwarding
 * that nobody wants, is not ill. */
#include <linux/neighbour.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

#define WORLD 0x08080808U

/* A rule that gives another source address, and the output device that it demands. */
struct nat_rule {
    const struct snap_nft_rule *rule;
    char oif[SNAP_NAME]; /* empty: any */
};

static bool has_nat(const struct snapshot *s, const struct snap_nft_rule *rule, char oif[SNAP_NAME]) {
    bool nat = false;
    int32_t key = -1;
    *oif = '\0';
    for (uint32_t i = 0; i < rule->exprs.count; i++) {
        const struct snap_nft_expr *x = &s->exprs[rule->exprs.first + i];
        if (x->op == SNAP_NFT_META)
            key = x->key;
        if (x->op == SNAP_NFT_CMP && key == NFT_META_OIFNAME && x->cmp == NFT_CMP_EQ) {
            memcpy(oif, x->data, SNAP_NAME - 1);
            oif[SNAP_NAME - 1] = '\0';
        }
        nat = nat || (x->op == SNAP_NFT_NAT && (strcmp(x->name, "masq") == 0 || strcmp(x->name, "snat") == 0)) ||
              (x->op == SNAP_NFT_TARGET && (strcmp(x->name, "MASQUERADE") == 0 || strcmp(x->name, "SNAT") == 0));
    }
    return nat;
}

static uint32_t find_nat(const struct snapshot *s, struct nat_rule *ret) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->rules_count; i++) {
        struct nat_rule one = {.rule = &s->rules[i]};
        if (has_nat(s, one.rule, one.oif) && count++ == 0)
            *ret = one;
    }
    return count;
}

static const struct snap_lookup *world(const struct judge *j, bool from_guest) {
    for (uint32_t i = 0; i < j->s->lookups_count; i++) {
        const struct snap_lookup *l = &j->s->lookups[i];
        if (l->to == WORLD && (l->iif != 0) == from_guest)
            return l;
    }
    return NULL;
}

/* The rule that takes what ip sends to the outside from connection tracking, and so from NAT. NULL: none. */
static const struct snap_nft_rule *untracks(const struct judge *j, uint32_t ip) {
    struct packet packet;
    struct nft_result result;
    struct packet_ends ends = {.source = ip, .destination = WORLD, .port = 443};
    packet_build(PACKET_ECHO, &ends, &packet);
    str_copy(packet.iif, sizeof packet.iif, j->bridge->name);
    packet.iif_index = j->bridge->index;
    nft_eval_hook(&j->host->index, NFPROTO_IPV4, NF_INET_PRE_ROUTING, "", &packet, NULL, &result);
    return result.untracks;
}

/* What becomes of a packet from ip as it leaves by the uplink. */
static struct nft_result postrouting_of(const struct judge *j, const struct snap_link *uplink, uint32_t ip) {
    struct packet packet;
    struct nft_result result;
    struct packet_ends ends = {.source = ip, .destination = WORLD, .port = 443};
    packet_build(PACKET_ECHO, &ends, &packet);
    str_copy(packet.oif, sizeof packet.oif, uplink->name);
    packet.oif_index = uplink->index;
    nft_eval_hook(&j->host->index, NFPROTO_IPV4, NF_INET_POST_ROUTING, "", &packet, NULL, &result);
    return result;
}

/* Whether the guest's packets would get another source. */
static enum { NAT_NO, NAT_MAY, NAT_YES } nat_for(const struct judge *j, const struct snap_link *uplink, uint32_t ip) {
    struct nft_result result = postrouting_of(j, uplink, ip);
    return untracks(j, ip) ? NAT_NO : result.nat ? NAT_YES : result.nat_may ? NAT_MAY : NAT_NO;
}

static int nat_of(const struct judge *j, const struct snap_link *uplink) {
    return (int)nat_for(j, uplink, j->target->ip);
}

static bool is_private(uint32_t ip) {
    return ip >> 24 == 10 || ip >> 20 == 0xac1 || ip >> 16 == 0xc0a8 || ip >> 22 == (0x64400000U >> 22);
}

static bool forwards(const struct judge *j, const char *link) {
    char key[128];
    snprintf(key, sizeof key, "net/ipv4/conf/%s/forwarding", link);
    return snap_sysctl_int(j->s, key, 1) != 0;
}

/* By which the controller was told to let its VMs out. */
static bool is_declared(const struct judge *j, const char *uplink) {
    return j->s->host.managed_ip && strcmp(j->s->host.managed_uplink, uplink) == 0;
}

static void rule_forwarding(struct judge *j, const char *uplink, bool wanted) {
    char key[96] = "net/ipv4/ip_forward";
    if (snap_sysctl_int(j->s, key, 1) != 0) {
        const char *off = !forwards(j, j->bridge->name) ? j->bridge->name : !forwards(j, uplink) ? uplink : NULL;
        if (!off)
            return;
        snprintf(key, sizeof key, "net/ipv4/conf/%s/forwarding", off);
    }
    struct cause *c = cause_add(j, "host.ip-forward-off", FLOWS_EGRESS, 0, "forwarding is off (%s)", key);
    cause_evidence(c, "sysctl", key, "is 0");
    if (!c)
        return;
    c->policy = wanted;
    struct repair_step *step = cause_step(c, REPAIR_SYSCTL, "");
    str_copy(step->object, sizeof step->object, key);
    str_copy(step->text, sizeof step->text, "1");
    c->finding.safe = is_declared(j, uplink); /* ours to forward */
}

static bool left_unchanged(const struct judge *j, const struct snap_link *uplink) {
    const struct probe_answer *a = judge_answer(j, PROBE_EGRESS);
    for (uint32_t i = 0; i < a->request_elsewhere_count; i++)
        if (a->request_elsewhere[i].ifindex == uplink->index)
            return true;
    return false;
}

static bool has_public_address(const struct judge *j, const struct snap_link *link) {
    for (uint32_t i = 0; i < j->s->addrs_count; i++)
        if (j->s->addrs[i].link == link->index && !is_private(j->s->addrs[i].ip))
            return true;
    return false;
}

static void rule_nat(struct judge *j, const struct snap_link *uplink, const struct nat_rule *nat, uint32_t nat_count) {
    if (!is_private(j->target->ip) || nat_of(j, uplink) != NAT_NO)
        return;
    const struct snap_nft_rule *rule = untracks(j, j->target->ip);
    struct cause *c;
    bool other = nat_count && *nat->oif && strcmp(nat->oif, uplink->name) != 0 && !snap_link_by_name(j->s, nat->oif);
    if (rule) {
        c = judge_nft_cause(j, "nft.notrack", FLOWS_EGRESS, rule,
                            "keeps what is for the outside from being given another source");
    } else if (other) {
        char where[96], shown[48];
        str_escape(nat->oif, strlen(nat->oif), shown, sizeof shown);
        snprintf(where, sizeof where, "%s %.30s %.30s handle %llu", nft_family_name(nat->rule->family),
                 nat->rule->table, nat->rule->chain, (unsigned long long)nat->rule->handle);
        c = cause_add(j, "host.masquerade-wrong-oif", 0, FLOWS_EGRESS, "masquerade is for %s, packets leave by %s",
                      shown, uplink->name);
        cause_evidence(c, "nft", where, "oifname %s masquerade", shown);
        cause_evidence(c, "route", "default", "packets leave by %s", uplink->name);
    } else {
        c = cause_add(j, "host.no-masquerade", 0, FLOWS_EGRESS, "nothing masquerades %s on %s",
                      ip_text(j->target->ip).text, uplink->name);
        cause_evidence(c, "nft", "postrouting", "no rule gives packets from %s that leave by %s another source",
                       ip_text(j->target->ip).text, uplink->name);
    }
    if (!c)
        return;
    /* Others of its network get another source, this one does not: what the canary is answered proves nothing. */
    if (j->probe && j->probe->canary.made && nat_for(j, uplink, j->probe->canary.ip) == NAT_YES) {
        cause_evidence(c, "nft", "postrouting", "%s, in the same network, would get one",
                       ip_text(j->probe->canary.ip).text);
        c->kills = FLOW_EGRESS_GUEST | FLOW_EGRESS_TCP | FLOW_EGRESS_DNS;
        c->may = 0;
        c->policy = true;
    }
    c->seen = left_unchanged(j, uplink);
    if (c->seen)
        cause_evidence(c, "probe", uplink->name, "our request left here with its private source, no answer came");
    /* A gateway that ignores pings is no witness. To a public one a private source is lost all the same. */
    if (judge_answer(j, PROBE_EGRESS)->asked && !j->paths[PROBE_EGRESS].asked && has_public_address(j, uplink)) {
        c->kills |= FLOW_EGRESS_GUEST;
        c->policy = true;
    }
    if (!j->bridge_address.address || rule)
        return;
    cause_step(c, REPAIR_MASQUERADE_ADD, uplink->name)->prefix =
        (struct net_prefix){j->bridge_address.address & net_mask(j->bridge_address.length), j->bridge_address.length};
    c->finding.safe = j->s->host.managed_masquerade && is_declared(j, uplink->name);
}

static void rule_uplink(struct judge *j, const struct snap_link *uplink) {
    if (!uplink || ((uplink->flags & IFF_UP) && uplink->carrier))
        return;
    struct cause *c = cause_add(j, "host.uplink-down", FLOWS_EGRESS, 0, "%s is %s", uplink->name,
                                uplink->flags & IFF_UP ? "without a carrier" : "down");
    cause_evidence(c, "link", uplink->name, "%s", uplink->flags & IFF_UP ? "NO-CARRIER" : "administratively down");
    if (c)
        c->policy = true;
}

/* Without a default route the uplink is the device that a default route or the masquerading speaks of, or the one
 * other device that has an address. */
static const struct snap_link *guess_uplink(const struct judge *j, const struct nat_rule *nat, uint32_t nat_count) {
    const struct snap_link *found = nat_count && *nat->oif ? snap_link_by_name(j->s, nat->oif) : NULL;
    for (uint32_t i = 0; !found && nat_count && i < j->s->addrs_count; i++) {
        const struct snap_link *link = snap_link_by_index(j->s, j->s->addrs[i].link);
        if (link && link != j->bridge && !(link->flags & IFF_LOOPBACK) && !link->is_tap &&
            strcmp(link->kind, "bridge") != 0)
            found = link;
    }
    return found;
}

static void rule_no_default(struct judge *j, const struct snap_lookup *out, const struct nat_rule *nat,
                            uint32_t nat_count) {
    const struct snap_link *uplink = guess_uplink(j, nat, nat_count);
    if (!uplink || nat_of(j, uplink) == NAT_NO)
        return;
    if (!(uplink->flags & IFF_UP) || !uplink->carrier) {
        rule_uplink(j, uplink);
        return;
    }
    struct cause *c = judge_thrown_away(j, out);
    if (!c) {
        c = cause_add(j, "host.no-default-route", FLOWS_EGRESS, 0, "the host has no default route");
        cause_evidence(c, "route", "default", "no route to the outside (%s is up)", uplink->name);
    }
    if (c)
        c->policy = true;
}

/* Without ARP the gateway's MAC is not asked for. Not so where there is none to ask for: a tunnel. */
static void rule_uplink_noarp(struct judge *j, const struct snap_link *uplink, uint32_t gateway) {
    static const struct net_mac none = {{0}};
    if (!(uplink->flags & IFF_NOARP) || !gateway || mac_equal(uplink->mac, none))
        return;
    struct cause *c =
        cause_add(j, "host.uplink-noarp", 0, FLOWS_EGRESS, "ARP is switched off on %s (noarp)", uplink->name);
    cause_evidence(c, "link", uplink->name, "IFF_NOARP is set: the MAC of the gateway %s is never asked for",
                   ip_text(gateway).text);
    cause_plan(c, "ip link set %s arp on", uplink->name);
}

/* The gateway does not even answer ARP. */
static void rule_gateway(struct judge *j, const struct snap_link *uplink, uint32_t gateway) {
    const struct snapshot *s = j->host->after;
    for (uint32_t i = 0; i < j->causes_count; i++)
        if (j->causes[i].finding.hop == HOP_HOST_UPLINK && ((j->causes[i].kills | j->causes[i].may) & FLOWS_EGRESS))
            return; /* a filter on the uplink keeps ARP away as well */
    for (uint32_t i = 0; s && gateway && i < s->neighs_count; i++) {
        const struct snap_neigh *n = &s->neighs[i];
        if (n->ip != gateway || n->link != uplink->index || !(n->state & (NUD_INCOMPLETE | NUD_FAILED)))
            continue;
        struct cause *c = cause_add(j, "host.uplink-silent", 0, FLOWS_EGRESS,
                                    "the gateway %s on %s does not answer ARP", ip_text(gateway).text, uplink->name);
        cause_evidence(c, "neigh", uplink->name, "%s is %s", ip_text(gateway).text,
                       n->state & NUD_FAILED ? "FAILED" : "INCOMPLETE");
        if (c)
            c->seen = true;
    }
}

const struct snap_link *judge_uplink(const struct judge *j) {
    const struct snap_lookup *out = world(j, false);
    return out && !out->error ? snap_link_by_index(j->s, out->link) : NULL;
}

enum gateway_word judge_gateway(const struct judge *j, struct net_mac *ret_mac) {
    const struct snapshot *after = j->host->after;
    const struct snap_lookup *out = world(j, false);
    enum gateway_word word = GATEWAY_NOT_ASKED;
    for (uint32_t i = 0; after && out && !out->error && out->gateway && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        enum gateway_word says = h->kind == SNAP_HEARD_ASKED    ? GATEWAY_SILENT
                                 : h->source_ip != out->gateway ? GATEWAY_NOT_ASKED
                                 : h->kind == SNAP_HEARD_IS_AT  ? GATEWAY_ANSWERS_ARP
                                 : h->kind == SNAP_HEARD_IPV4   ? GATEWAY_ANSWERS_PING
                                                                : GATEWAY_NOT_ASKED;
        if (h->link != out->link)
            continue;
        if (says == GATEWAY_ANSWERS_ARP)
            *ret_mac = h->source;
        word = says > word ? says : word;
    }
    return word;
}

/* Whether what should go to the outside was seen to leave for this MAC. */
static bool left_for(const struct judge *j, const struct snap_link *uplink, struct net_mac mac) {
    for (size_t i = 0; j->probe && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        if (f->ifindex == uplink->index && f->outgoing && f->tag == probe_tag(0, PROBE_EGRESS) && !f->reply &&
            mac_equal(f->destination, mac))
            return true;
    }
    return false;
}

/* Somebody has fixed the gateway's MAC, and the gateway itself says another. It may have two: only where nothing comes
 * back. */
static void rule_gateway_fixed(struct judge *j, const struct snap_link *uplink, uint32_t gateway) {
    const struct snapshot *after = j->host->after;
    const struct snap_neigh *n = after && gateway ? snap_neigh_fixed(after, uplink->index, gateway) : NULL;
    const struct snap_heard *says = NULL;
    for (uint32_t i = 0; n && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        if (h->link != uplink->index || h->kind != SNAP_HEARD_IS_AT || h->source_ip != gateway)
            continue;
        if (mac_equal(h->source, n->mac))
            return;
        says = h;
    }
    if (!says)
        return;
    struct cause *c = cause_add(j, "host.neigh-wrong", 0, FLOWS_EGRESS,
                                "a fixed neighbour entry on %s says that the gateway %s is %s", uplink->name,
                                ip_text(gateway).text, mac_text(n->mac).text);
    if (!c)
        return;
    c->finding.hop = HOP_HOST_UPLINK;
    c->seen = left_for(j, uplink, n->mac);
    str_copy(c->finding.explanation, sizeof c->finding.explanation,
             "A fixed neighbour entry sends what leaves for the outside to a MAC that is not the gateway's.");
    cause_evidence(c, "neigh", uplink->name, "%s lladdr %s %s", ip_text(gateway).text, mac_text(n->mac).text,
                   n->state & NUD_PERMANENT ? "PERMANENT"
                   : n->state & NUD_NOARP   ? "NOARP"
                                            : "extern_learn");
    cause_evidence(c, "probe", uplink->name, "asked by ARP, %s says that it is %s", ip_text(gateway).text,
                   mac_text(says->source).text);
    if (c->seen)
        cause_evidence(c, "probe", uplink->name, "our request to the outside left for %s, no answer came",
                       mac_text(n->mac).text);
    cause_step(c, REPAIR_NEIGHBOUR_DELETE, uplink->name)->prefix = (struct net_prefix){gateway, 32};
}

/* SNAT of what the guest sends to an address that is nobody's here: the answers go elsewhere, or nowhere. */
static void rule_snat(struct judge *j, const struct snap_link *uplink) {
    struct nft_result result = postrouting_of(j, uplink, j->target->ip);
    const struct snap_nft_rule *rule = result.nat_rule;
    uint32_t to = 0;
    bool snat = false;
    for (uint32_t n = 0; rule && n < rule->exprs.count; n++) {
        const struct snap_nft_expr *x = &j->s->exprs[rule->exprs.first + n];
        if (x->op == SNAP_NFT_IMMEDIATE && x->len == 4)
            to = (uint32_t)x->data[0] << 24 | (uint32_t)x->data[1] << 16 | (uint32_t)x->data[2] << 8 | x->data[3];
        snat = snat || (x->op == SNAP_NFT_NAT && strcmp(x->name, "snat") == 0);
    }
    for (uint32_t a = 0; a < j->s->addrs_count; a++)
        snat = snat && j->s->addrs[a].ip != to;
    if (!snat || !to)
        return;
    char where[96];
    snprintf(where, sizeof where, "%s %.30s %.30s handle %llu", nft_family_name(rule->family), rule->table, rule->chain,
             (unsigned long long)rule->handle);
    struct cause *c =
        cause_add(j, "host.snat-wrong", 0, FLOWS_EGRESS, "%s gives packets the source %s, which is not %s's", where,
                  ip_text(to).text, uplink->name);
    cause_evidence(c, "nft", where, "snat to %s", ip_text(to).text);
}

void rules_egress(struct judge *j) {
    struct nat_rule nat = {0};
    uint32_t nat_count = find_nat(j->s, &nat);
    const struct snap_lookup *out = world(j, false);
    if (!j->bridge || !j->target->ip || !out)
        return;
    const struct snap_link *uplink = out->error ? NULL : snap_link_by_index(j->s, out->link);
    if (uplink == j->bridge)
        return;
    if (!uplink) {
        rule_no_default(j, out, &nat, nat_count);
        return;
    }
    rule_uplink(j, uplink);
    rule_forwarding(j, uplink->name, nat_of(j, uplink) != NAT_NO);
    if ((uplink->flags & IFF_UP) && uplink->carrier)
        rule_nat(j, uplink, &nat, nat_count);
    rule_uplink_noarp(j, uplink, out->gateway);
    rule_gateway(j, uplink, out->gateway);
    rule_gateway_fixed(j, uplink, out->gateway);
    rule_snat(j, uplink);
}
