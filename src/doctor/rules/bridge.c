/* The bridge, its port, its table. */
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

#define PERMANENT 0x80
#define NOARP_STATE 0x40
#define AGEING_DEFAULT 30000 /* hundredths of a second: the kernel's own */

static bool is_our_port(const struct judge *j) {
    return j->tap && j->bridge && j->tap->master == j->bridge->index;
}

/* The kernel's own ARP goes to the device's broadcast address, whatever that is. */
static void rule_broadcast(struct judge *j) {
    static const struct net_mac all = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}, none = {{0}};
    const struct snap_link *b = j->bridge;
    if (mac_equal(b->broadcast, all) || mac_equal(b->broadcast, none))
        return;
    struct cause *c = cause_add(j, "bridge.broadcast-address", FLOW(PROBE_ARP_KERNEL) | FLOW_OTHER, FLOWS_IP,
                                "%s takes %s for the broadcast address", b->name, mac_text(b->broadcast).text);
    if (!c)
        return;
    cause_evidence(c, "link", b->name, "its broadcast address (brd) is %s, not ff:ff:ff:ff:ff:ff",
                   mac_text(b->broadcast).text);
    cause_plan(c, "ip link set %s broadcast ff:ff:ff:ff:ff:ff", b->name);
    c->policy = true;
    c->refutable = false; /* whoever asks the host first is known for a while */
}

/* A macvlan on top of the bridge device in passthru mode takes what is meant for the host. */
static void rule_macvlan(struct judge *j) {
    for (uint32_t i = 0; i < j->s->links_count; i++) {
        const struct snap_link *link = &j->s->links[i];
        const struct snap_attr *mode = snap_attr_get(j->s, link, SNAP_ATTR_KIND, IFLA_MACVLAN_MODE);
        bool is_macvlan = strcmp(link->kind, "macvlan") == 0 || strcmp(link->kind, "macvtap") == 0;
        if (!is_macvlan || link->lower != j->bridge->index || !(link->flags & IFF_UP) || !mode ||
            mode->value != MACVLAN_MODE_PASSTHRU)
            continue;
        struct cause *c = cause_add(j, "bridge.macvlan-passthru", FLOW(PROBE_ARP_KERNEL) | FLOW_OTHER,
                                    FLOWS_IP | FLOWS_TO_HOST | FLOWS_EGRESS, "%s takes what %s should get", link->name,
                                    j->bridge->name);
        if (!c)
            return;
        cause_evidence(c, "link", link->name, "a %s in passthru mode on %s: all unicast frames for the host go to it",
                       link->kind, j->bridge->name);
        cause_plan(c, "ip link set %s down", link->name);
        c->policy = true;
        c->refutable = false; /* its frames reach the host's IP all the same, and whoever asks first is known */
    }
}

static void rule_bridge(struct judge *j) {
    const struct snap_link *b = j->bridge;
    struct cause *c;
    if (!b) {
        c = cause_add(j, "bridge.missing", FLOWS_GUEST | FLOWS_TO_HOST, 0, "there is no bridge %s", j->target->bridge);
        cause_evidence(c, "link", j->target->bridge, "no such bridge");
        return;
    }
    if (!(b->flags & IFF_UP)) {
        c = cause_add(j, "bridge.down", FLOWS_ALL, 0, "%s is down", b->name);
        cause_evidence(c, "link", b->name, "administratively down (IFF_UP is clear)");
        cause_step(c, REPAIR_LINK_UP, b->name);
    }
    if (b->proto_down) {
        c = cause_add(j, "bridge.proto-down", FLOWS_ALL, 0, "%s is held down by protodown", b->name);
        cause_evidence(c, "link", b->name, "protodown is on");
        cause_step(c, REPAIR_LINK_PROTO_UP, b->name);
    }
    if (b->flags & IFF_NOARP) {
        c = cause_add(j, "bridge.noarp", FLOW(PROBE_ARP_KERNEL) | FLOW(PROBE_CANARY_ARP_HOST), FLOWS_IP | FLOWS_TO_HOST,
                      "ARP is switched off on %s (noarp)", b->name);
        cause_evidence(c, "link", b->name, "IFF_NOARP is set");
        cause_step(c, REPAIR_LINK_ARP, b->name)->value = 1;
    }
    rule_broadcast(j);
    rule_macvlan(j);
    const struct snap_link *master = snap_link_by_index(j->s, b->master);
    if (master && strcmp(master->kind, "vrf") != 0) {
        c = cause_add(j, "bridge.enslaved", FLOWS_HOST | FLOWS_TO_HOST, 0, "%s is itself a part of %s", b->name,
                      master->name);
        cause_evidence(c, "link", b->name, "master is %s (%s)", master->name, master->kind);
    }
}

static struct repair_step *port_step(struct cause *c, const char *dev, uint16_t attr, uint64_t value) {
    struct repair_step *step = cause_step(c, REPAIR_PORT_ATTR, dev);
    step->attr = attr;
    step->attr_size = 1;
    step->value = value;
    return step;
}

static void rule_state(struct judge *j) {
    static const char *const states[] = {"disabled", "listening", "learning", "forwarding", "blocking"};
    const struct snap_link *tap = j->tap;
    uint64_t state = snap_port_attr(j->s, tap, IFLA_BRPORT_STATE, 3);
    bool stp = snap_bridge_attr(j->s, j->bridge, IFLA_BR_STP_STATE, 0) != 0;
    bool alive = (tap->flags & IFF_UP) && tap->carrier && (tap->operstate == 6 || tap->operstate == 0);
    if (state == 3 || !alive || !(j->bridge->flags & IFF_UP))
        return;
    bool waits = stp && (state == 1 || state == 2);
    struct cause *c = cause_add(j, waits ? "bridge.stp-delay" : "bridge.port-not-forwarding", FLOWS_GUEST, 0,
                                waits ? "spanning tree on %s keeps port %s %s" : "on %s, port %s is %s",
                                j->bridge->name, tap->name, state < 5 ? states[state] : "not forwarding");
    cause_evidence(c, "bridge-port", tap->name, "state %llu (%s), forwarding is 3", (unsigned long long)state,
                   state < 5 ? states[state] : "?");
    if (waits) {
        cause_evidence(c, "bridge", j->bridge->name, "STP is on, forward delay %llu s, twice",
                       (unsigned long long)snap_bridge_attr(j->s, j->bridge, IFLA_BR_FORWARD_DELAY, 1500) / 100);
        struct repair_step *step = cause_step(c, REPAIR_BRIDGE_ATTR, j->bridge->name);
        step->attr = IFLA_BR_STP_STATE;
        step->attr_size = 4;
    }
    port_step(c, tap->name, IFLA_BRPORT_STATE, 3);
}

static const struct snap_link *other_isolated(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->links_count; i++) {
        const struct snap_link *link = &j->s->links[i];
        if (link != j->tap && snap_is_port(link, j->bridge->index) && link->carrier &&
            snap_port_attr(j->s, link, IFLA_BRPORT_ISOLATED, 0))
            return link;
    }
    return NULL;
}

static void rule_isolated(struct judge *j) {
    if (!snap_port_attr(j->s, j->tap, IFLA_BRPORT_ISOLATED, 0) || policy_separates_vms(j))
        return;
    const struct snap_link *other = other_isolated(j);
    if (!other)
        return;
    struct cause *c =
        cause_add(j, "bridge.port-isolated", FLOWS_PEER, 0, "%s and %s are both isolated", j->tap->name, other->name);
    if (!c)
        return;
    cause_evidence(c, "bridge-port", j->tap->name, "isolated is on");
    cause_evidence(c, "bridge-port", other->name, "isolated is on");
    c->policy = true;
    port_step(c, j->tap->name, IFLA_BRPORT_ISOLATED, 0);
}

/* Where the bridge believes a MAC to be. */
static const struct snap_fdb *fdb_of(const struct snapshot *s, int32_t bridge, struct net_mac mac) {
    for (uint32_t i = 0; i < s->fdbs_count; i++) {
        const struct snap_fdb *fdb = &s->fdbs[i];
        bool here = fdb->master == bridge || (fdb->link == bridge && fdb->state & PERMANENT);
        if (here && mac_equal(fdb->mac, mac) && !(fdb->flags & NTF_SELF && !fdb->master && fdb->link != bridge))
            return fdb;
    }
    return NULL;
}

static bool is_known_here(const struct judge *j) {
    const struct snap_fdb *fdb = j->has_mac ? fdb_of(j->s, j->bridge->index, j->mac) : NULL;
    return fdb && fdb->link == j->tap->index;
}

static void rule_floods(struct judge *j) {
    const struct snap_link *tap = j->tap;
    bool learning = snap_port_attr(j->s, tap, IFLA_BRPORT_LEARNING, 1) != 0;
    bool known = is_known_here(j);
    struct cause *c;
    if (!snap_port_attr(j->s, tap, IFLA_BRPORT_UNICAST_FLOOD, 1) && !known) {
        uint32_t flows = FLOWS_UNICAST | FLOW(PROBE_CANARY_ICMP) | FLOW_PEER_UNICAST;
        c = cause_add(j, "bridge.flood-off", learning ? 0 : flows, flows,
                      "%s is not flooded to, and its VM's MAC is not in the bridge's table", tap->name);
        cause_evidence(c, "bridge-port", tap->name, "flood is off, learning is %s", learning ? "on" : "off");
        if (j->has_mac)
            cause_evidence(c, "fdb", j->bridge->name, "no entry for %s on this port", mac_text(j->mac).text);
        port_step(c, tap->name, IFLA_BRPORT_UNICAST_FLOOD, 1);
        if (!learning)
            port_step(c, tap->name, IFLA_BRPORT_LEARNING, 1);
    }
    if (!snap_port_attr(j->s, tap, IFLA_BRPORT_BCAST_FLOOD, 1)) {
        c = cause_add(j, "bridge.bcast-flood-off", FLOW(PROBE_CANARY_ARP) | FLOW_PEER, FLOW(PROBE_CANARY_ICMP),
                      "broadcasts are not flooded to %s", tap->name);
        cause_evidence(c, "bridge-port", tap->name, "bcast_flood is off");
        if (c)
            c->policy = true;
        port_step(c, tap->name, IFLA_BRPORT_BCAST_FLOOD, 1);
    }
    if (!snap_port_attr(j->s, tap, IFLA_BRPORT_MCAST_FLOOD, 1)) {
        c = cause_add(j, "bridge.mcast-flood-off", j->s->host.ipv6 ? FLOW_OTHER : 0, 0,
                      "multicast is not flooded to %s", tap->name);
        cause_evidence(c, "bridge-port", tap->name, "mcast_flood is off");
        if (c) {
            c->note = !j->s->host.ipv6;
            c->policy = true;
        }
        if (j->s->host.ipv6)
            cause_evidence(c, "addr", j->bridge->name, "IPv6 is in use on this bridge");
        port_step(c, tap->name, IFLA_BRPORT_MCAST_FLOOD, 1);
    }
    if (!learning) {
        c = cause_add(j, "bridge.learning-off", 0, 0, "nothing is learned on %s", tap->name);
        cause_evidence(c, "bridge-port", tap->name, "learning is off");
        if (c)
            c->note = true;
        port_step(c, tap->name, IFLA_BRPORT_LEARNING, 1);
    }
}

static void rule_guards(struct judge *j) {
    const struct snap_link *tap = j->tap;
    struct cause *c;
    if (snap_port_attr(j->s, tap, IFLA_BRPORT_LOCKED, 0)) {
        bool known = is_known_here(j);
        c = cause_add(j, "bridge.port-locked", known || !j->has_mac ? 0 : FLOWS_GUEST, FLOWS_GUEST, "port %s is locked",
                      tap->name);
        cause_evidence(c, "bridge-port", tap->name, "locked is on, and the VM's MAC is %s",
                       known ? "in the table" : "not in the table for this port");
        port_step(c, tap->name, IFLA_BRPORT_LOCKED, 0);
    }
    if (snap_port_attr(j->s, tap, IFLA_BRPORT_PROXYARP, 0)) {
        c = cause_add(j, "bridge.port-proxyarp", FLOWS_ARP | FLOW(PROBE_CANARY_ARP) | FLOW_PEER, FLOWS_IP,
                      "port %s has proxy ARP on", tap->name);
        cause_evidence(c, "bridge-port", tap->name, "proxy_arp is on: nothing is flooded to this port");
        port_step(c, tap->name, IFLA_BRPORT_PROXYARP, 0);
    }
    if (snap_bridge_attr(j->s, j->bridge, IFLA_BR_VLAN_FILTERING, 0)) {
        c = cause_add(j, "bridge.vlan-filtering", 0, FLOWS_GUEST, "%s filters by VLAN", j->bridge->name);
        cause_evidence(c, "bridge", j->bridge->name, "vlan_filtering is on");
    }
    if (snap_bridge_attr(j->s, j->bridge, IFLA_BR_AGEING_TIME, AGEING_DEFAULT) == 0) {
        c = cause_add(j, "bridge.ageing-zero", 0, 0, "%s forgets MACs at once (ageing time 0)", j->bridge->name);
        if (!c)
            return;
        cause_evidence(c, "bridge", j->bridge->name, "ageing_time is 0");
        c->note = true;
        struct repair_step *step = cause_step(c, REPAIR_BRIDGE_ATTR, j->bridge->name);
        step->attr = IFLA_BR_AGEING_TIME;
        step->attr_size = sizeof(uint32_t);
        step->value = AGEING_DEFAULT;
    }
}

/* --- the table --- */

static void rule_mac_equal(struct judge *j) {
    struct cause *c =
        cause_add(j, "tap.mac-equals-guest", FLOW(PROBE_CANARY_ICMP) | FLOW_PEER_UNICAST, FLOW(PROBE_CANARY_ARP),
                  "%s has the guest's own MAC %s", j->tap->name, mac_text(j->mac).text);
    cause_evidence(c, "link", j->tap->name, "its MAC is %s, and so is the guest's", mac_text(j->mac).text);
    if (c) {
        c->policy = true;
        c->refutable = false; /* the host may route it back: that hides it */
    }
    struct repair_step *step = cause_step(c, REPAIR_LINK_MAC, j->tap->name);
    step->mac = j->mac;
    step->mac.byte[0] = 0xfe;
}

/* A port where the guest's MAC was seen to come in. */
static void count_frame(const struct judge *j, int32_t index, const char **ret_name, uint32_t *here, uint32_t *there) {
    const struct snap_link *link = snap_link_by_index(j->s, index);
    if (!link || !snap_is_port(link, j->bridge->index))
        return;
    if (link == j->tap) {
        (*here)++;
        return;
    }
    (*there)++;
    *ret_name = link->name;
}

/* Frames from the guest's MAC that came in on its port and on others: of the probe, and of what was heard besides. They
 * may be the same frames, so the larger count is taken. */
static uint32_t frames_elsewhere(const struct judge *j, const char **ret_name, uint32_t *ret_here) {
    const struct snapshot *after = j->host->after;
    uint32_t here = 0, there = 0, heard_here = 0, heard_there = 0;
    for (size_t i = 0; j->probe && i < j->probe->frame_count; i++)
        if (!j->probe->frames[i].outgoing && mac_equal(j->probe->frames[i].source, j->mac))
            count_frame(j, j->probe->frames[i].ifindex, ret_name, &here, &there);
    for (uint32_t i = 0; after && i < after->heard_count; i++)
        if (after->heard[i].kind != SNAP_HEARD_ASKED && mac_equal(after->heard[i].source, j->mac))
            count_frame(j, after->heard[i].link, ret_name, &heard_here, &heard_there);
    *ret_here = here > heard_here ? here : heard_here;
    return there > heard_there ? there : heard_there;
}

/* Another device of the bridge has the guest's MAC: its own entry is in the way. */
static void rule_mac_of_other(struct judge *j, const struct snap_link *other) {
    struct mac_text mac = mac_text(j->mac);
    uint32_t flows = FLOWS_UNICAST | FLOW(PROBE_CANARY_ICMP) | FLOW_PEER_UNICAST;
    struct cause *c = cause_add(j, other == j->bridge ? "bridge.mac-equals-guest" : "tap.mac-equals-guest", flows, 0,
                                "%s has the guest's own MAC %s", other->name, mac.text);
    cause_evidence(c, "link", other->name, "its MAC is %s, and so is the guest's", mac.text);
    cause_evidence(c, "fdb", other->name, "%s is local here (permanent); the guest is behind %s", mac.text,
                   j->tap->name);
    cause_plan(c, "ip link set %s address %s", other->name,
               other == j->bridge ? "MAC: the one that the guests know" : "MAC: one that nobody has (fe:…)");
}

/* What came from the guest on its own port has not moved the entry: learning is off there, or the entry is told to stay. */
static bool is_stuck(const struct judge *j, const struct snap_fdb *fdb) {
    const struct snap_fdb *after = j->host->after ? fdb_of(j->host->after, j->bridge->index, j->mac) : NULL;
    const char *elsewhere = NULL;
    uint32_t here = 0, there = frames_elsewhere(j, &elsewhere, &here);
    return after && after->link == fdb->link && here && !there;
}

static void rule_fdb(struct judge *j) {
    const struct snap_fdb *fdb = j->has_mac ? fdb_of(j->s, j->bridge->index, j->mac) : NULL;
    if (j->has_mac && mac_equal(j->mac, j->tap->mac)) {
        rule_mac_equal(j);
        return;
    }
    bool fixed = fdb && (fdb->state & (PERMANENT | NOARP_STATE));
    if (!fdb || fdb->link == j->tap->index || (!fixed && !is_stuck(j, fdb)))
        return;
    bool local = (fdb->state & PERMANENT) != 0;
    const struct snap_link *at = snap_link_by_index(j->s, fdb->link);
    if (local && at && mac_equal(at->mac, j->mac)) {
        rule_mac_of_other(j, at);
        return;
    }
    const char *where = snap_link_name(j->s, fdb->link);
    uint32_t flows = FLOWS_UNICAST | FLOW(PROBE_CANARY_ICMP) | FLOW_PEER_UNICAST;
    struct cause *c = cause_add(j, "bridge.fdb-wrong", flows, 0, "%s entry sends frames for %s to %s",
                                fixed ? "a fixed" : "a stuck", mac_text(j->mac).text, local ? "the host" : where);
    cause_evidence(c, "fdb", where, "%s is %s here; the guest is behind %s", mac_text(j->mac).text,
                   local   ? "local (permanent)"
                   : fixed ? "static"
                           : "as if learned, and frames from the guest did not move it",
                   j->tap->name);
    if (!fixed || fdb->link == j->bridge->index) { /* not an object of its own; or only by "self" */
        cause_plan(c, "bridge fdb del %s dev %s %s", mac_text(j->mac).text, where, fixed ? "self local" : "master");
        return;
    }
    struct repair_step *step = cause_step(c, REPAIR_FDB_DELETE, where);
    step->mac = j->mac;
    step->value = fdb->vlan;
}

/* Whoever replaced the bridge's own entry and took his away again has left none: frames for the host are flooded. */
static void rule_fdb_lost(struct judge *j) {
    if (!j->s->fdbs_count || snap_gap_of(j->s, "fdb"))
        return;
    struct cause *c = cause_add(j, "bridge.fdb-wrong", 0, FLOWS_HOST | FLOWS_TO_HOST | FLOWS_EGRESS,
                                "the table of %s does not have the bridge's own MAC %s", j->bridge->name,
                                mac_text(j->bridge->mac).text);
    if (!c)
        return;
    c->finding.hop = HOP_BRIDGE_INPUT;
    cause_evidence(c, "fdb", j->bridge->name,
                   "no entry for %s: what is sent to it is flooded, the host does not get it",
                   mac_text(j->bridge->mac).text);
    cause_plan(c, "bridge fdb replace %s dev %s self permanent", mac_text(j->bridge->mac).text, j->bridge->name);
}

/* The same for the bridge's own MAC: what guests send to the host goes to a port. Deleting the entry would not do: the
 * bridge does not bring its own back. */
static void rule_fdb_own(struct judge *j) {
    const struct snap_fdb *fdb = fdb_of(j->s, j->bridge->index, j->bridge->mac);
    if (!fdb)
        rule_fdb_lost(j);
    if (!fdb || fdb->link == j->bridge->index || (fdb->state & PERMANENT))
        return;
    bool fixed = (fdb->state & NOARP_STATE) != 0;
    const char *where = snap_link_name(j->s, fdb->link);
    struct cause *c =
        cause_add(j, "bridge.fdb-wrong", FLOWS_HOST | FLOWS_TO_HOST | FLOWS_EGRESS, 0,
                  "%s sends frames for the bridge's own %s to %s", fixed ? "a fixed entry" : "an entry of the table",
                  mac_text(j->bridge->mac).text, where);
    if (!c)
        return;
    c->finding.hop = HOP_BRIDGE_INPUT;
    cause_evidence(c, "fdb", where, "%s is %s here, and is %s's own MAC", mac_text(j->bridge->mac).text,
                   fixed ? "static" : "as if learned", j->bridge->name);
    cause_plan(c, "bridge fdb replace %s dev %s self permanent", mac_text(j->bridge->mac).text, j->bridge->name);
}

/* Where the table puts the MAC, now and a moment later. */
static const struct snap_link *learned_elsewhere(const struct judge *j, bool *ret_flips) {
    const struct snap_fdb *before = fdb_of(j->s, j->bridge->index, j->mac);
    const struct snap_fdb *after = j->host->after ? fdb_of(j->host->after, j->bridge->index, j->mac) : NULL;
    const struct snap_fdb *other = before && before->link != j->tap->index ? before
                                   : after && after->link != j->tap->index ? after
                                                                           : NULL;
    *ret_flips = before && after && before->link != after->link;
    if (!other || (other->state & (PERMANENT | NOARP_STATE)))
        return NULL;
    const struct snap_link *link = snap_link_by_index(j->s, other->link);
    return link && link->is_tap ? link : NULL;
}

static void rule_two_ports(struct judge *j) {
    const char *seen_at = NULL;
    uint32_t here = 0;
    bool flips = false;
    if (!j->has_mac)
        return;
    uint32_t there = frames_elsewhere(j, &seen_at, &here);
    const struct snap_link *learned = learned_elsewhere(j, &flips);
    if (!there && !learned)
        return;
    const char *other = seen_at ? seen_at : learned->name;
    struct cause *c;
    if ((there && here) || flips) {
        c = cause_add(j, "bridge.duplicate-mac", FLOWS_PEER, FLOWS_GUEST, "%s is behind %s and behind %s",
                      mac_text(j->mac).text, j->tap->name, other);
    } else if (j->target->mac_given && !here) {
        c = cause_add(j, "tap.swapped", 0, FLOWS_GUEST, "the guest %s is behind %s, not behind %s",
                      mac_text(j->mac).text, other, j->tap->name);
    } else {
        return;
    }
    if (!c)
        return;
    if (there)
        cause_evidence(c, "probe", other, "%u frames from %s came in here, %u on %s", there, mac_text(j->mac).text,
                       here, j->tap->name);
    if (learned)
        cause_evidence(c, "fdb", learned->name, "the bridge has %s here", mac_text(j->mac).text);
    c->policy = true;
    c->refutable = false;
    if (strcmp(c->finding.id, "tap.swapped") == 0) {
        c->kills = FLOW_OTHER;
        const struct snap_holder *theirs = snap_holder_of(j->s, other);
        if (theirs)
            cause_evidence(c, "fdinfo", other, "held by process %d (%s)", theirs->pid, theirs->comm);
    }
}

/* --- MTU --- */

/* The guest's own MTU, as its answer to a SYN tells it (RFC 9293 3.7.1: the maximum segment size is that less 40 bytes).
 * 0: not told. */
static uint32_t mtu_of_guest(const struct judge *j) {
    for (size_t i = 0; j->probe && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        const uint8_t *tcp = f->data + 14 + (f->data[14] & 15) * 4;
        const uint8_t *end = f->data + f->kept;
        if (f->kind != PROBE_FRAME_SYN_ACK || f->ifindex != j->tap->index || f->outgoing ||
            f->source_ip != j->target->ip || tcp + 20 > end)
            continue;
        const uint8_t *last = tcp + (tcp[12] >> 4) * 4;
        for (const uint8_t *at = tcp + 20; at + 4 <= last && at + 4 <= end && *at != 0;) {
            if (at[0] == 2)
                return (uint32_t)(at[2] << 8 | at[3]) + 40;
            if (at[0] != 1 && at[1] < 2)
                break;
            at += at[0] == 1 ? 1 : at[1];
        }
    }
    return 0;
}

/* All of the host's devices agree, and the guest has more. */
static void rule_mtu_of_guest(struct judge *j) {
    const struct snap_link *b = j->bridge, *tap = j->tap, *small = tap->mtu <= b->mtu ? tap : b;
    uint32_t guest = mtu_of_guest(j);
    if (guest <= small->mtu)
        return;
    struct cause *c = cause_add(j, "bridge.mtu-mismatch", FLOW(PROBE_LARGE), 0, "%s has MTU %u, the guest behind it %u",
                                small->name, small->mtu, guest);
    if (!c)
        return;
    cause_evidence(c, "link", b->name, "MTU %u", b->mtu);
    cause_evidence(c, "link", tap->name, "MTU %u", tap->mtu);
    cause_evidence(c, "probe", tap->name, "the guest's answer to a SYN speaks of an MTU of %u", guest);
    c->policy = true;
    c->refutable = false;
    cause_step(c, REPAIR_LINK_MTU, tap->name)->value = guest;
    cause_step(c, REPAIR_LINK_MTU, b->name)->value = guest;
}

#define TINY 128 /* bytes: an ordinary ping is as long */

static void rule_mtu(struct judge *j) {
    const struct snap_link *b = j->bridge, *tap = j->tap, *least = NULL;
    uint32_t most = 0;
    for (uint32_t i = 0; i < j->s->links_count; i++) {
        const struct snap_link *link = &j->s->links[i];
        if (!snap_is_port(link, b->index))
            continue;
        if (!least || link->mtu < least->mtu)
            least = link;
        if (link->mtu > most)
            most = link->mtu;
    }
    /* A larger bridge or larger TAPs do no harm as long as all that is sent fits: the bridge's own MTU is what counts
     * for the host, the smallest of the two ports' for VMs. */
    if (!least || (tap->mtu == most && b->mtu >= most)) {
        rule_mtu_of_guest(j);
        return;
    }
    bool tap_small = tap->mtu < most;
    const struct snap_link *small = tap_small ? tap : least->mtu < most ? least : b;
    uint32_t guest = mtu_of_guest(j);
    bool ordinary = small->mtu >= ETH_DATA_LEN && (j->alive & FLOW(PROBE_LARGE));
    /* Room that nobody uses: the guest says so, or what is usual passes. */
    if ((guest || ordinary) && guest <= small->mtu && !(j->dead & FLOW(PROBE_LARGE)))
        return;
    struct cause *c =
        cause_add(j, "bridge.mtu-mismatch", FLOW(PROBE_LARGE),
                  small->mtu < TINY ? FLOWS_IP | FLOW(PROBE_CANARY_ICMP) : 0, "%s has MTU %u, %s %u, other ports %u",
                  small->name, small->mtu, small == b ? tap->name : b->name, small == b ? tap->mtu : b->mtu, most);
    if (!c)
        return;
    cause_evidence(c, "link", b->name, "MTU %u", b->mtu);
    cause_evidence(c, "link", tap->name, "MTU %u", tap->mtu);
    if (small != b && small != tap)
        cause_evidence(c, "link", small->name, "MTU %u: the bridge took it over", small->mtu);
    c->policy = true;
    c->refutable = false;
    /* A bridge of ours, and all of its ports, have the kernel's own MTU. */
    c->finding.safe = j->s->host.managed && most == ETH_DATA_LEN;
    cause_step(c, REPAIR_LINK_MTU, small->name)->value = most;
    if (small != b)
        cause_step(c, REPAIR_LINK_MTU, b->name)->value = most;
}

/* What the host or the canary asked comes in again by another port: somewhere behind two of them is one wire. */
static bool rule_loop(struct judge *j) {
    const struct snap_link *by = NULL;
    uint32_t count = 0;
    for (size_t i = 0; j->probe && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        const struct snap_link *link = snap_link_by_index(j->s, f->ifindex);
        bool ours = mac_equal(f->source, j->bridge->mac) ||
                    (j->probe->canary.made && mac_equal(f->source, j->probe->canary.mac));
        if (f->outgoing || f->reply || f->tag == TRACE_NO_TAG || !ours || !link ||
            !snap_is_port(link, j->bridge->index))
            continue;
        by = link;
        count++;
    }
    struct cause *c = !by ? NULL
                          : cause_add(j, "bridge.loop", FLOW_OTHER, FLOWS_GUEST | FLOWS_TO_HOST | FLOWS_EGRESS,
                                      "%s is in a loop: what it sends comes back by %s", j->bridge->name, by->name);
    if (!c)
        return false;
    c->seen = c->policy = true;
    c->refutable = false;
    cause_evidence(c, "probe", by->name, "%u of our own questions came in here again", count);
    cause_plan(c, "ip link set %s nomaster, or spanning tree on all bridges of the loop", by->name);
    return true;
}

void rules_bridge(struct judge *j) {
    rule_bridge(j);
    if (!is_our_port(j))
        return;
    rule_state(j);
    rule_isolated(j);
    rule_floods(j);
    rule_guards(j);
    rule_fdb(j);
    rule_fdb_own(j);
    if (!rule_loop(j)) /* by which every MAC is seen on two ports */
        rule_two_ports(j);
    rule_mtu(j);
}
