/* How far each question came, from what was captured, traced and counted. */
#include <errno.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

#define HOPS_TO_BRIDGE (HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_HOST_OUTPUT) | HOPBIT(HOP_BRIDGE_DEV))
#define HOPS_TO_PORT (HOPBIT(HOP_BRIDGE_FORWARD) | HOPBIT(HOP_BRIDGE_PORT) | HOPBIT(HOP_TAP_DEV))
#define HOPS_TO_TAP (HOPS_TO_PORT | HOPBIT(HOP_BRIDGE_OUTPUT) | HOPBIT(HOP_TAP_EGRESS))
#define HOPS_QUEUE (HOPBIT(HOP_TAP_QUEUE) | HOPBIT(HOP_VMM))
#define HOPS_GUEST                                                                                                     \
    (HOPBIT(HOP_GUEST_NIC) | HOPBIT(HOP_GUEST_IP) | HOPBIT(HOP_GUEST_FIREWALL) | HOPBIT(HOP_GUEST_SERVICE))

const char *path_words(enum probe_kind kind) {
    static const char *const words[PROBE_KIND_COUNT] = {
        [PROBE_ARP] = "ARP",
        [PROBE_ARP_UNICAST] = "ARP to the guest's MAC",
        [PROBE_ARP_KERNEL] = "the kernel's ARP",
        [PROBE_ICMP] = "ping",
        [PROBE_BURST_ICMP] = "a series of pings",
        [PROBE_LARGE] = "a large ping",
        [PROBE_TCP] = "TCP",
        [PROBE_TCP_RAW] = "a TCP SYN with a checksum",
        [PROBE_CANARY_ARP] = "ARP from another port",
        [PROBE_CANARY_ICMP] = "ping from another port",
        [PROBE_CANARY_ARP_HOST] = "a port's ARP to the host",
        [PROBE_CANARY_ICMP_HOST] = "a port's ping to the host",
        [PROBE_HOST_ICMP_CANARY] = "the host's ping to another port",
        [PROBE_EGRESS] = "ping to the outside",
    };
    return words[kind];
}

static void path_evidence(struct path *p, const char *source, const char *where, const char *fact, ...)
    __attribute__((format(printf, 4, 5)));

static void path_evidence(struct path *p, const char *source, const char *where, const char *fact, ...) {
    char text[224];
    va_list ap;
    if (p->evidence_count == sizeof p->evidence / sizeof *p->evidence)
        return;
    va_start(ap, fact);
    vsnprintf(text, sizeof text, fact, ap);
    va_end(ap);
    evidence_set(&p->evidence[p->evidence_count++], source, where, "%s", text);
}

static void dies(struct path *p, enum hop hop, uint32_t hops, bool exact) {
    p->dies = hop;
    p->hops = hops | HOPBIT(hop);
    p->exact = exact;
}

static bool is_dev(const char *name, const struct snap_link *link) {
    return link && strcmp(name, link->name) == 0;
}

/* The hop of a drop that the kernel told. */
static enum hop hop_of_drop(const struct judge *j, const struct trace_where *w, bool back, bool to_guest) {
    const char *hook = w->drop_hook;
    if (str_starts(w->drop_location, "tun_net_xmit"))
        return HOP_TAP_QUEUE;
    bool at_bridge = (is_dev(w->drop_dev, j->bridge) || !*w->drop_dev) && !w->drop_at_port;
    if (strcmp(hook, "tc.egress") == 0 || strcmp(hook, "netdev.egress") == 0 || strcmp(hook, "qdisc") == 0 ||
        strcmp(hook, "device") == 0)
        return at_bridge ? HOP_BRIDGE_DEV
               : back    ? HOP_TAP_INGRESS /* it came in there, and tc has sent it out elsewhere */
                         : HOP_TAP_EGRESS;
    if (strcmp(hook, "tc.ingress") == 0 || strcmp(hook, "netdev.ingress") == 0 || strcmp(hook, "xdp") == 0)
        return is_dev(w->drop_dev, j->bridge) ? HOP_BRIDGE_INPUT : HOP_TAP_INGRESS;
    if (strcmp(hook, "bridge.prerouting") == 0 || strcmp(hook, "br_netfilter.prerouting") == 0)
        return HOP_TAP_INGRESS;
    if (strcmp(hook, "bridge.input") == 0 || strcmp(hook, "br_netfilter.input") == 0)
        return HOP_BRIDGE_INPUT;
    if (strcmp(hook, "bridge.output") == 0)
        return HOP_BRIDGE_OUTPUT;
    if (strcmp(hook, "bridge.postrouting") == 0 || strcmp(hook, "br_netfilter.postrouting") == 0)
        return HOP_BRIDGE_OUTPUT;
    if (strcmp(hook, "bridge.forward") == 0 || strcmp(hook, "br_netfilter.forward") == 0)
        return HOP_BRIDGE_FORWARD;
    if (strcmp(hook, "bridge.port") == 0)
        return strstr(w->drop_reason, "MAC_INVALID") ? HOP_TAP_INGRESS : HOP_BRIDGE_PORT;
    if (strcmp(hook, "bridge.fdb") == 0)
        return back && !to_guest ? HOP_BRIDGE_INPUT : HOP_BRIDGE_FORWARD;
    if (strcmp(hook, "tap.queue") == 0)
        return HOP_TAP_QUEUE;
    if (strcmp(hook, "tap.write") == 0)
        return HOP_TAP_DEV;
    if (strcmp(hook, "neighbour") == 0)
        return HOP_HOST_NEIGH;
    if (strcmp(hook, "ip.forward") == 0)
        return HOP_HOST_FORWARD;
    if (strcmp(hook, "ip.route") == 0)
        return back ? HOP_HOST_INPUT : HOP_HOST_ROUTE;
    if (strcmp(hook, "ip.output") == 0 || strcmp(hook, "arp.output") == 0 || strcmp(hook, "ip.postrouting") == 0)
        return HOP_HOST_OUTPUT;
    if (strcmp(hook, "xfrm") == 0 && !back)
        return HOP_HOST_OUTPUT;
    if (str_starts(hook, "ip.") || str_starts(hook, "arp") || strcmp(hook, "socket") == 0 || strcmp(hook, "xfrm") == 0)
        return HOP_HOST_INPUT;
    return HOP_COUNT;
}

/* A drop that the kernel told is exact. Return: whether there was one that means something. */
static bool take_drop(const struct judge *j, struct path *p, const struct trace_where *w, bool back) {
    if (!w->dropped)
        return false;
    enum hop hop = hop_of_drop(j, w, back, false);
    /* A write that a TAP refuses because it is down: not ours, if ours is up. */
    if (strcmp(w->drop_hook, "tap.write") == 0 && j->tap && (j->tap->flags & IFF_UP))
        return false;
    path_evidence(p, "trace", *w->drop_dev ? w->drop_dev : "kernel", "dropped, reason %s, in %s%s%s", w->drop_reason,
                  w->drop_location, *w->drop_hook ? ", at " : "", w->drop_hook);
    if (hop == (enum hop)HOP_COUNT)
        return false;
    /* What a port is refused for shows at the frame's way in as well. */
    /* No port was chosen: which of its attributes it was is not told. */
    bool port = hop == HOP_BRIDGE_PORT || strcmp(w->drop_hook, "bridge.fdb") == 0;
    dies(p, hop,
         port                                            ? HOPS_TO_PORT | HOPBIT(HOP_VMM) | HOPBIT(HOP_HOST_NEIGH)
         : hop == HOP_TAP_QUEUE                          ? HOPBIT(HOP_VMM)
         : strstr(w->drop_reason, "MAC_INVALID") != NULL ? HOPBIT(HOP_TAP_QUEUE)
                                                         : 0,
         true);
    return true;
}

static bool sees_bridge(const struct judge *j) {
    return j->probe && !j->probe->capture_errno;
}

/* A bridge has a carrier as long as one of its ports forwards: without any, what it is given is dropped at the device,
 * and the ports are why. */
static bool has_no_port_that_forwards(const struct judge *j) {
    return j->bridge && (j->bridge->flags & IFF_UP) && !j->bridge->carrier && !j->bridge->proto_down;
}

/* Nothing was seen on the bridge device. */
static void lost_before_bridge(const struct judge *j, struct path *p, const struct probe_answer *a, bool own_frame) {
    if (take_drop(j, p, &p->out, false)) {
        /* It was lost on the other device to which it was routed. */
        if (!own_frame && p->dies > HOP_BRIDGE_DEV)
            dies(p, HOP_HOST_ROUTE, HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_HOST_NEIGH) | HOPBIT(HOP_HOST_OUTPUT), true);
        if (p->dies == HOP_BRIDGE_DEV && has_no_port_that_forwards(j)) {
            path_evidence(p, "link", j->bridge->name, "no carrier (NO-CARRIER): none of its ports forwards");
            dies(p, HOP_BRIDGE_PORT, HOPS_TO_PORT | HOPBIT(HOP_BRIDGE_DEV) | HOPBIT(HOP_VMM), false);
        }
        return;
    }
    if (a->request_elsewhere_count && !own_frame) {
        path_evidence(p, "probe", a->request_elsewhere[0].name, "the request left by this device instead");
        dies(p, HOP_HOST_ROUTE, HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_HOST_NEIGH), true);
        return;
    }
    path_evidence(p, "probe", j->bridge ? j->bridge->name : "bridge", "%u sent, none seen on the bridge", a->sends);
    if (own_frame) {
        dies(p, HOP_BRIDGE_DEV, HOPBIT(HOP_BRIDGE_DEV), true);
        return;
    }
    bool unresolved = j->t && !(j->t->neighbour_after.state &
                                (NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE));
    /* The kernel asks for a MAC when routing, filters and policies are done with the packet that waits for it. */
    if (unresolved && judge_answer(j, PROBE_ARP_KERNEL)->request_bridge.count) {
        p->passed |= HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_HOST_OUTPUT);
        dies(p, HOP_HOST_NEIGH, HOPBIT(HOP_HOST_NEIGH), false);
        return;
    }
    dies(p, unresolved ? HOP_HOST_NEIGH : HOP_HOST_OUTPUT, HOPS_TO_BRIDGE | HOPBIT(HOP_HOST_NEIGH), false);
}

static bool is_misaddressed(const struct judge *j, enum probe_kind kind, const struct snap_link *at,
                            struct net_mac *ret_mac);

/* Seen on the bridge, not on the TAP. */
static void lost_before_tap(const struct judge *j, struct path *p, const struct probe_answer *a, enum probe_kind kind) {
    const char *tap = j->target->tap;
    bool broadcast = kind == PROBE_ARP || kind == PROBE_ARP_KERNEL;
    struct net_mac to;
    bool whole = !j->probe->capture_lost && !j->probe->frames_truncated;
    path_evidence(p, "probe", tap, "%u seen on %s, none on the TAP%s", a->request_bridge.count,
                  j->bridge ? j->bridge->name : "the bridge", whole ? "" : "; but not every frame could be kept");
    if (take_drop(j, p, &p->out, false))
        return;
    if (!broadcast && is_misaddressed(j, kind, j->bridge, &to)) {
        path_evidence(p, "probe", j->bridge->name, "the frame is for %s, the guest is %s", mac_text(to).text,
                      mac_text(j->mac).text);
        dies(p, HOP_HOST_NEIGH,
             HOPBIT(HOP_HOST_OUTPUT) | HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_GUEST_IP) | HOPBIT(HOP_TAP_INGRESS) |
                 HOPBIT(HOP_BRIDGE_INPUT),
             true);
        return;
    }
    if (p->has_trace && p->out.last == TRACE_AT_QUEUE && strcmp(p->out.dev, tap) == 0) {
        path_evidence(p, "trace", tap, "handed to the TAP's qdisc and never sent by it");
        dies(p, HOP_TAP_EGRESS, HOPBIT(HOP_TAP_EGRESS), true);
        return;
    }
    uint32_t hops = p->has_trace ? HOPS_TO_PORT | HOPBIT(HOP_VMM) | HOPBIT(HOP_TAP_EGRESS) | HOPBIT(HOP_HOST_NEIGH)
                                 : HOPS_TO_TAP | HOPBIT(HOP_VMM) | HOPBIT(HOP_HOST_NEIGH);
    bool elsewhere = a->request_elsewhere_count > 0;
    if (p->has_trace)
        path_evidence(p, "trace", tap, "never handed to the TAP, and no drop told: the bridge did not choose the port");
    dies(p, broadcast || !elsewhere ? HOP_BRIDGE_PORT : HOP_BRIDGE_FORWARD, hops, false);
}

static uint64_t grown(uint64_t before, uint64_t after) {
    return after > before ? after - before : 0;
}

/* The MAC to which a question went at one place; false: it was not seen, or is right. */
static bool is_misaddressed(const struct judge *j, enum probe_kind kind, const struct snap_link *at,
                            struct net_mac *ret_mac) {
    int32_t tag = probe_tag(j->t_index, kind);
    for (size_t i = 0; at && j->has_mac && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        if (f->ifindex != at->index || !f->outgoing || f->tag != tag || f->reply || f->destination.byte[0] & 1)
            continue;
        *ret_mac = f->destination;
        return !mac_equal(f->destination, j->mac);
    }
    return false;
}

static bool was_named(const struct probe_answer *a, struct net_mac mac) {
    for (uint32_t i = 0; i < a->mac_count && i < PROBE_MACS_MAX; i++)
        if (mac_equal(a->macs[i], mac))
            return true;
    return false;
}

/* It reached the TAP under an address that is not the guest's: wrong from the start, or rewritten on the way. */
static bool take_misaddressed(const struct judge *j, struct path *p, enum probe_kind kind) {
    struct net_mac at_tap, at_bridge;
    if (!is_misaddressed(j, kind, j->tap, &at_tap))
        return false;
    /* Another VM sends to whom it was told by ARP. */
    bool told = kind >= PROBE_CANARY_ARP && was_named(judge_answer(j, PROBE_CANARY_ARP), at_tap);
    bool early = told || is_misaddressed(j, kind, j->bridge, &at_bridge);
    path_evidence(p, "probe", j->tap->name, "the frame on the TAP is for %s, the guest is %s%s", mac_text(at_tap).text,
                  mac_text(j->mac).text,
                  told    ? ", as an answer to ARP named it"
                  : early ? ""
                          : "; on the bridge it was still right");
    if (early) /* wrong in the table, or as the route has it; or ARP itself was answered so, by the guest or on its way */
        dies(p, told ? HOP_TAP_INGRESS : HOP_HOST_NEIGH,
             HOPBIT(HOP_HOST_OUTPUT) | HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_GUEST_IP) | HOPBIT(HOP_TAP_INGRESS) |
                 HOPBIT(HOP_BRIDGE_INPUT),
             true);
    else
        dies(p, HOP_BRIDGE_OUTPUT, HOPBIT(HOP_BRIDGE_OUTPUT) | HOPBIT(HOP_TAP_EGRESS), true);
    return true;
}

/* The question as it was on a device is not the one that was asked: it goes to another port of the guest. */
static bool is_redirected(const struct judge *j, enum probe_kind kind, const struct snap_link *at, uint16_t *ret_port) {
    int32_t tag = probe_tag(j->t_index, kind);
    for (size_t i = 0; at && j->target->port && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        if (f->ifindex == at->index && f->outgoing && f->tag == tag && !f->reply && f->kind == PROBE_FRAME_SYN) {
            *ret_port = f->destination_port;
            return f->destination_port != j->target->port;
        }
    }
    return false;
}

static bool take_redirected(const struct judge *j, struct path *p, enum probe_kind kind) {
    uint16_t port, early_port;
    if (!is_redirected(j, kind, j->tap, &port))
        return false;
    bool early = is_redirected(j, kind, j->bridge, &early_port);
    path_evidence(p, "probe", j->tap->name, "asked for port %u, the segment on the TAP is for port %u%s",
                  j->target->port, port, early ? "" : "; on the bridge it was still right");
    dies(p, early ? HOP_HOST_OUTPUT : HOP_BRIDGE_OUTPUT, early ? HOPBIT(HOP_HOST_NAT) : HOPBIT(HOP_TAP_EGRESS), true);
    return true;
}

/* Seen on the TAP, no answer on it. */
static void lost_behind_tap(const struct judge *j, struct path *p, const struct probe_answer *a, enum probe_kind kind) {
    bool arp = kind == PROBE_ARP || kind == PROBE_ARP_UNICAST || kind == PROBE_ARP_KERNEL || kind == PROBE_CANARY_ARP;
    const struct probe_link_counters *before = &j->t->tap_before.link, *after = &j->t->tap_after.link;
    uint64_t read = grown(before->tx_packets, after->tx_packets);
    uint64_t dropped = grown(before->tx_dropped, after->tx_dropped);
    uint64_t written = grown(before->rx_packets, after->rx_packets);
    if (read == 0 && take_drop(j, p, &p->out, false))
        return;
    if (before->known && read == 0) {
        path_evidence(p, "counters", j->target->tap, "%u frames were given to the TAP, its reader took none%s",
                      a->request_tap.count, dropped ? ", the ring is full" : "");
        dies(p, dropped ? HOP_TAP_QUEUE : HOP_VMM, HOPS_QUEUE | HOPBIT(HOP_GUEST_NIC), true);
        return;
    }
    if (take_misaddressed(j, p, kind))
        return;
    p->passed |= HOPBIT(HOP_TAP_QUEUE) | HOPBIT(HOP_VMM);
    path_evidence(p, "counters", j->target->tap, "the VMM read %llu frames, wrote %llu; no answer was seen on the TAP",
                  (unsigned long long)read, (unsigned long long)written);
    /* What is dropped behind the VMM is the guest's own doing. */
    enum hop back = p->back.dropped ? hop_of_drop(j, &p->back, true, false) : HOP_COUNT;
    if ((back == HOP_TAP_INGRESS || back == HOP_TAP_DEV) && take_drop(j, p, &p->back, true))
        return;
    uint32_t hops = HOPS_GUEST | HOPBIT(HOP_TAP_QUEUE) | HOPBIT(HOP_VMM) | (arp ? 0 : HOPBIT(HOP_HOST_NEIGH));
    /* Only XDP takes a frame before a capture on the TAP sees it, or a header that does not fit makes it unreadable. */
    if (j->tap->xdp_prog || j->t->garbled_frames || j->probe->capture_lost || j->probe->frames_truncated)
        hops |= HOPBIT(HOP_TAP_INGRESS);
    dies(p, arp ? HOP_GUEST_NIC : HOP_GUEST_FIREWALL, hops, false);
}

/* Answered on the TAP, not seen on the bridge, or seen there and not received. */
static void lost_on_the_way_back(const struct judge *j, struct path *p, const struct probe_answer *a) {
    bool on_bridge = a->reply_bridge.count > 0;
    path_evidence(p, "probe", j->target->tap, "the guest's answer is on the TAP%s",
                  on_bridge ? " and on the bridge" : "");
    if (take_drop(j, p, &p->back, true))
        return;
    if (on_bridge) {
        p->passed |= HOPBIT(HOP_TAP_INGRESS);
        dies(p, HOP_HOST_INPUT, HOPBIT(HOP_HOST_INPUT) | HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_HOST_NEIGH), false);
        return;
    }
    dies(p, HOP_BRIDGE_INPUT,
         HOPBIT(HOP_TAP_INGRESS) | HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_BRIDGE_PORT) | HOPBIT(HOP_BRIDGE_FORWARD),
         false);
}

/* The host's own question by ARP names a MAC that is not the bridge's: whoever believes it answers elsewhere. */
static bool take_forged(const struct judge *j, struct path *p) {
    int32_t tag = probe_tag(j->t_index, PROBE_ARP_KERNEL);
    for (size_t i = 0; j->bridge && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        struct net_mac named;
        if (f->ifindex != j->bridge->index || !f->outgoing || f->tag != tag || f->reply || f->kept < 28 ||
            f->kind != PROBE_FRAME_WHO_HAS)
            continue;
        memcpy(&named, f->data + 22, sizeof named);
        if (mac_equal(named, j->bridge->mac))
            return false;
        path_evidence(p, "probe", j->bridge->name, "the kernel's who-has names %s for its sender, %s is %s",
                      mac_text(named).text, j->bridge->name, mac_text(j->bridge->mac).text);
        dies(p, HOP_HOST_OUTPUT, HOPBIT(HOP_HOST_OUTPUT), true);
        return true;
    }
    return false;
}

static enum hop hop_of_errno(int error) {
    switch (error) {
    case EPERM:
    case ENOBUFS:
        return HOP_HOST_OUTPUT;
    case ENETDOWN:
    case ENXIO:
    case ENODEV:
        return HOP_BRIDGE_DEV;
    }
    return HOP_HOST_ROUTE;
}

static bool is_own_frame(enum probe_kind kind) {
    return kind == PROBE_ARP || kind == PROBE_ARP_UNICAST;
}

static bool is_arp(enum probe_kind kind) {
    return kind == PROBE_ARP || kind == PROBE_ARP_UNICAST || kind == PROBE_ARP_KERNEL;
}

/* The socket did not take it. */
static void lost_in_socket(const struct judge *j, struct path *p, const struct probe_answer *a, enum probe_kind kind) {
    bool own = is_own_frame(kind);
    if (!take_drop(j, p, &p->out, false))
        dies(p, own ? HOP_BRIDGE_DEV : hop_of_errno(a->send_errno), HOPS_TO_BRIDGE | HOPBIT(HOP_HOST_NEIGH), false);
    else if (!own && p->dies > HOP_BRIDGE_DEV && !a->request_bridge.count)
        dies(p, HOP_HOST_ROUTE, HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_HOST_NEIGH) | HOPBIT(HOP_HOST_OUTPUT), true);
    if (a->send_errno)
        path_evidence(p, "probe", path_words(kind), "could not be sent: %s", strerror(a->send_errno));
}

static void mark_passed(struct path *p, const struct probe_answer *a, enum probe_kind kind) {
    if (a->request_bridge.count)
        p->passed |=
            HOPBIT(HOP_BRIDGE_DEV) | (is_own_frame(kind) ? 0 : HOPBIT(HOP_HOST_OUTPUT) | HOPBIT(HOP_HOST_ROUTE));
    if (a->request_tap.count)
        p->passed |= HOPS_TO_TAP;
    if (a->reply_tap.count)
        p->passed |=
            HOPS_QUEUE | HOPBIT(HOP_GUEST_NIC) | HOPBIT(HOP_GUEST_IP) | (is_arp(kind) ? 0 : HOPBIT(HOP_GUEST_FIREWALL));
    if (a->reply_bridge.count)
        p->passed |= HOPBIT(HOP_TAP_INGRESS);
}

/* An answer came, and neither the question nor the answer crossed the guest's TAP: it is not the guest's. */
static bool is_answered_by_another(const struct judge *j, const struct probe_answer *a, enum probe_kind kind) {
    bool captured =
        sees_bridge(j) && !j->probe->capture_lost && !j->probe->frames_truncated && j->tap && j->tap->carrier;
    return captured && a->answered && !is_arp(kind) && !a->request_tap.count && !a->reply_tap.count;
}

static void answered_by_another(struct path *p, const struct judge *j, const struct probe_answer *a) {
    const char *elsewhere = a->request_elsewhere_count ? a->request_elsewhere[0].name : "";
    path_evidence(p, "probe", j->tap->name, "an answer came, but neither it nor the request was seen on this TAP%s%s",
                  *elsewhere ? "; the request went to " : ": it is not the guest who answers", elsewhere);
    uint32_t hops = HOPS_TO_BRIDGE | HOPBIT(HOP_HOST_NEIGH);
    if (a->request_bridge.count)
        dies(p, HOP_BRIDGE_FORWARD, HOPS_TO_TAP | HOPBIT(HOP_HOST_NEIGH) | HOPBIT(HOP_HOST_OUTPUT), false);
    else
        dies(p, HOP_HOST_OUTPUT, hops, false);
}

#define LOST_BY_CHANCE 1 /* frames of a burst */

/* Some of a burst came back and some not. Whom a guest answers, and how often, is its own choice; what the host lost on
 * its own part of the way is not. Return: whether there was more of that than by chance. */
static bool take_partial_loss(const struct judge *j, struct path *p, const struct probe_answer *a) {
    const struct {
        uint32_t before, after;
        enum hop hop;
        uint32_t hops;
        const char *first, *then;
    } parts[] = {
        {a->sends, a->request_bridge.count, HOP_HOST_OUTPUT, HOPS_TO_BRIDGE, "requests sent", "seen on the bridge"},
        {a->request_bridge.count, a->request_tap.count, HOP_BRIDGE_PORT, HOPS_TO_TAP, "requests on the bridge",
         "on the TAP"},
        {a->reply_tap.count, a->reply_bridge.count, HOP_BRIDGE_INPUT, HOPBIT(HOP_TAP_INGRESS) | HOPBIT(HOP_BRIDGE_PORT),
         "answers on the TAP", "on the bridge"},
        {a->reply_bridge.count, a->answers, HOP_HOST_INPUT, HOPBIT(HOP_BRIDGE_INPUT), "answers on the bridge",
         "arrived"},
    };
    bool whole = sees_bridge(j) && !j->probe->capture_lost && !j->probe->frames_truncated;
    for (size_t i = 0; whole && i < sizeof parts / sizeof *parts; i++) {
        if (parts[i].before <= parts[i].after + LOST_BY_CHANCE)
            continue;
        path_evidence(p, "probe", j->target->tap, "of a series, %u %s, %u %s: the others are lost between",
                      parts[i].before, parts[i].first, parts[i].after, parts[i].then);
        if (!take_drop(j, p, i < 2 ? &p->out : &p->back, i >= 2))
            dies(p, parts[i].hop, parts[i].hops, false);
        return true;
    }
    return false;
}

static void trace_host_path(struct judge *j, enum probe_kind kind) {
    const struct probe_answer *a = judge_answer(j, kind);
    struct path *p = &j->paths[kind];
    bool arp = is_arp(kind);
    mark_passed(p, a, kind);
    if (is_answered_by_another(j, a, kind)) {
        answered_by_another(p, j, a);
        return;
    }
    if (!(a->answered && !a->answer_errno) && take_redirected(j, p, kind))
        return;
    if (kind == PROBE_TCP && a->answered && a->answer_errno) {
        path_evidence(p, "probe", path_words(kind), "refused: %s", strerror(a->answer_errno));
        dies(p, HOP_GUEST_SERVICE, HOPBIT(HOP_GUEST_SERVICE) | HOPBIT(HOP_GUEST_FIREWALL), true);
        return;
    }
    if (a->answered && a->answer_errno && !arp && (a->reply_tap.count || a->request_tap.count)) {
        path_evidence(p, "probe", path_words(kind), "refused by ICMP: %s", strerror(a->answer_errno));
        dies(p, HOP_GUEST_FIREWALL, HOPBIT(HOP_GUEST_FIREWALL) | HOPBIT(HOP_GUEST_IP), true);
        return;
    }
    if (kind == PROBE_BURST_ICMP && a->answered && take_partial_loss(j, p, a))
        return;
    if (a->answered && (kind != PROBE_TCP || a->answer_errno == 0)) {
        p->alive = true;
        p->passed |= HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_TAP_INGRESS) | HOPBIT(HOP_HOST_INPUT);
        p->passed |= HOPBIT(HOP_BRIDGE_DEV) | HOPS_TO_TAP | HOPS_QUEUE | HOPBIT(HOP_GUEST_NIC) | HOPBIT(HOP_GUEST_IP);
        if (!is_own_frame(kind))
            p->passed |= HOPBIT(HOP_HOST_ROUTE) | HOPBIT(HOP_HOST_NEIGH) | HOPBIT(HOP_HOST_OUTPUT);
        if (!arp)
            p->passed |= HOPBIT(HOP_GUEST_FIREWALL);
        if (kind == PROBE_TCP)
            p->passed |= HOPBIT(HOP_GUEST_SERVICE);
        return;
    }
    if (!a->sent) {
        lost_in_socket(j, p, a, kind);
        return;
    }
    if (kind == PROBE_ARP_KERNEL && take_forged(j, p))
        return;
    if (a->reply_tap.count || a->reply_bridge.count)
        lost_on_the_way_back(j, p, a);
    else if (a->request_tap.count)
        lost_behind_tap(j, p, a, kind);
    else if (a->request_bridge.count)
        lost_before_tap(j, p, a, kind);
    else if (sees_bridge(j))
        lost_before_bridge(j, p, a, is_own_frame(kind));
    else
        dies(p, HOP_GUEST_IP, UINT32_MAX, false);
}

/* Only a MAC that is neither the guest's nor the host's answered for it. */
static bool is_answered_for(const struct judge *j, const struct probe_answer *a, struct net_mac *ret_mac) {
    for (uint32_t i = 0; i < a->mac_count && i < PROBE_MACS_MAX; i++) {
        if (mac_equal(a->macs[i], j->mac))
            return false;
        for (uint32_t n = 0; n < j->s->links_count; n++)
            if (mac_equal(a->macs[i], j->s->links[n].mac))
                return false;
        *ret_mac = a->macs[i];
    }
    return j->has_mac && a->mac_count;
}

/* Another VM's questions: they come in at the canary's port. */
static void trace_canary_path(struct judge *j, enum probe_kind kind) {
    const struct probe_answer *a = judge_answer(j, kind);
    struct path *p = &j->paths[kind];
    struct net_mac other;
    if (a->answered && kind == PROBE_CANARY_ARP && is_answered_for(j, a, &other)) {
        path_evidence(p, "probe", j->target->tap, "asked by another port of the bridge, %s says that it has %s",
                      mac_text(other).text, ip_text(j->target->ip).text);
        dies(p, HOP_BRIDGE_FORWARD, HOPBIT(HOP_BRIDGE_FORWARD) | HOPBIT(HOP_TAP_INGRESS) | HOPBIT(HOP_HOST_NEIGH),
             false);
        return;
    }
    if (a->answered) {
        p->alive = true;
        return;
    }
    if (a->reply_tap.count) {
        path_evidence(p, "probe", j->target->tap, "the guest's answer to another VM is on its TAP");
        if (!take_drop(j, p, &p->back, true))
            dies(p, HOP_BRIDGE_FORWARD, HOPBIT(HOP_TAP_INGRESS) | HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_BRIDGE_PORT),
                 false);
    } else if (a->request_tap.count) {
        lost_behind_tap(j, p, a, kind);
    } else {
        path_evidence(p, "probe", j->target->tap, "asked by another port of the bridge, nothing came to the TAP");
        if (!take_drop(j, p, &p->out, false))
            dies(p, HOP_BRIDGE_FORWARD, HOPS_TO_TAP | HOPBIT(HOP_VMM), false);
    }
}

static void trace_to_host_path(struct judge *j, enum probe_kind kind) {
    const struct probe_answer *a = judge_answer(j, kind);
    struct path *p = &j->paths[kind];
    if (a->answered) {
        p->alive = true;
        p->passed = HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_HOST_INPUT);
        return;
    }
    uint32_t all = HOPBIT(HOP_HOST_INPUT) | HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_HOST_OUTPUT) |
                   HOPBIT(HOP_BRIDGE_DEV) | HOPBIT(HOP_HOST_NEIGH) | HOPBIT(HOP_HOST_ROUTE);
    if (take_drop(j, p, &p->out, true) || take_drop(j, p, &p->back, false)) {
        /* The host's answer, lost on the device to which it is routed. */
        if (!(HOPBIT(p->dies) & all) || strcmp(p->out.drop_hook, "bridge.fdb") == 0)
            dies(p, HOP_HOST_INPUT, all, false);
        p->hops |= all;
        return;
    }
    path_evidence(p, "probe", j->bridge ? j->bridge->name : "bridge", "asked from a port of the bridge (%s), no answer",
                  path_words(kind));
    dies(p, HOP_HOST_INPUT, all, false);
}

/* An ICMP error that the host itself sends is no answer from the outside. */
static bool is_refused_by_host(const struct judge *j, const struct probe_answer *a) {
    int32_t tag = probe_tag(0, PROBE_EGRESS);
    for (size_t i = 0; a->answer_errno && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        for (uint32_t n = 0; f->tag == tag && f->kind == PROBE_FRAME_ICMP_ERROR && n < j->s->addrs_count; n++)
            if (j->s->addrs[n].ip == f->source_ip)
                return true;
    }
    return false;
}

/* Seen to leave by a device that is no port of the bridge: filters, tc and the qdisc are behind it. */
static bool has_left_the_host(const struct judge *j, const struct probe_answer *a) {
    for (uint32_t i = 0; i < a->request_elsewhere_count; i++) {
        const struct snap_link *link = snap_link_by_index(j->s, a->request_elsewhere[i].ifindex);
        if (link && j->bridge && link != j->bridge && link->master != j->bridge->index)
            return true;
    }
    return false;
}

/* Where the request was seen to leave for this MAC, unchanged. */
static bool has_left_for(const struct judge *j, const struct snap_link *uplink, struct net_mac mac) {
    for (size_t i = 0; uplink && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        if (f->ifindex == uplink->index && f->outgoing && f->tag == probe_tag(0, PROBE_EGRESS) && !f->reply &&
            mac_equal(f->destination, mac))
            return true;
    }
    return false;
}

/* No answer to a VM's ping, and none to the host's own, from a gateway that got it and answers ARP: it ignores pings, and
 * nothing is known. One that answers the host, and was not sent what a VM sent: that is lost in the host. */
static void take_gateway(const struct judge *j, struct path *p, const struct probe_answer *a) {
    struct net_mac mac = {{0}};
    enum gateway_word word = judge_gateway(j, &mac);
    if (word == GATEWAY_ANSWERS_ARP && has_left_for(j, judge_uplink(j), mac)) {
        p->asked = false;
        return;
    }
    if (word != GATEWAY_ANSWERS_PING)
        return;
    path_evidence(p, "probe", "gateway", "it answers the host's own ping");
    if (!has_left_the_host(j, a) && a->request_bridge.count)
        dies(p, HOP_HOST_FORWARD, p->hops & ~HOPBIT(HOP_HOST_UPLINK), true);
}

static void trace_egress_path(struct judge *j) {
    const struct probe_answer *a = judge_answer(j, PROBE_EGRESS);
    struct path *p = &j->paths[PROBE_EGRESS];
    uint32_t all = HOPBIT(HOP_HOST_FORWARD) | HOPBIT(HOP_HOST_NAT) | HOPBIT(HOP_HOST_UPLINK) | HOPBIT(HOP_HOST_INPUT) |
                   HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_HOST_ROUTE);
    if (a->answered && is_refused_by_host(j, a)) {
        path_evidence(p, "probe", "egress", "the host itself refuses to forward it: %s", strerror(a->answer_errno));
        dies(p, HOP_HOST_FORWARD, all, true);
        return;
    }
    if (a->answered) {
        p->alive = true;
        p->passed = HOPBIT(HOP_HOST_FORWARD) | HOPBIT(HOP_HOST_NAT) | HOPBIT(HOP_HOST_UPLINK);
        return;
    }
    /* The trace tells of the whole machine: what is behind the uplink may be another namespace of it. */
    if (has_left_the_host(j, a))
        p->out.dropped = false;
    if (p->out.dropped || p->back.dropped) {
        const struct trace_where *w = p->out.dropped ? &p->out : &p->back;
        path_evidence(p, "trace", *w->drop_dev ? w->drop_dev : "kernel", "dropped, reason %s, in %s", w->drop_reason,
                      w->drop_location);
        enum hop hop = hop_of_drop(j, w, true, false);
        dies(p, hop == (enum hop)HOP_COUNT || hop == HOP_HOST_INPUT ? HOP_HOST_FORWARD : hop, all, false);
        return;
    }
    path_evidence(p, "probe", "egress", "an echo request through the host to the outside was not answered");
    dies(p, HOP_HOST_UPLINK, all, false);
    take_gateway(j, p, a);
}

/* A frame that is handed to the device meets none of the host's own layers: a drop there, at the same time, is that of
 * another packet, such as an echo that waited for an answer to ARP. */
static void disown_drop(enum probe_kind kind, struct trace_where *out) {
    static const char *const layers[] = {"neighbour", "xfrm", "ip.", "arp.output"};
    for (size_t i = 0; is_own_frame(kind) && i < sizeof layers / sizeof *layers; i++)
        if (str_starts(out->drop_hook, layers[i]))
            out->dropped = false;
}

static void trace_kind(struct judge *j, enum probe_kind kind) {
    const struct probe_answer *a = judge_answer(j, kind);
    struct path *p = &j->paths[kind];
    if (!a->asked)
        return;
    p->asked = true;
    if (j->probe->trace && (j->probe->trace->tracefs.had || j->probe->trace->nftrace.had)) {
        p->has_trace = j->probe->trace->tracefs.had;
        int32_t tag = probe_tag(kind < PROBE_KIND_GUEST_COUNT ? j->t_index : 0, kind);
        trace_where(j->probe->trace, tag, false, &p->out);
        trace_where(j->probe->trace, tag, true, &p->back);
        disown_drop(kind, &p->out);
    }
    if (kind < PROBE_CANARY_ARP)
        trace_host_path(j, kind);
    else if (kind < PROBE_KIND_GUEST_COUNT)
        trace_canary_path(j, kind);
    else if (kind == PROBE_EGRESS)
        trace_egress_path(j);
    else
        trace_to_host_path(j, kind);
    if (!p->asked) /* nothing can be concluded */
        return;
    if (p->alive)
        j->alive |= FLOW(kind);
    else
        j->dead |= FLOW(kind);
    j->asked |= FLOW(kind);
}

/* Whether its reader has read something, and less than what we alone gave to the TAP. */
static bool reads_in_part(const struct judge *j) {
    uint64_t read = grown(j->t->tap_before.link.tx_packets, j->t->tap_after.link.tx_packets), given = 0;
    for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++)
        given += judge_answer(j, kind)->request_tap.count;
    return j->t->tap_before.link.known && read > 0 && read < given;
}

/* A TAP of several queues, and one of them is not read: what the flow's hash puts there rests, the other flows live. Only
 * where a reader was seen, by the trace or, where it read none of ours, by its counters. */
static void find_unread(struct judge *j) {
    if (!j->tap || !j->t || j->tap->tun_queues < 2)
        return;
    bool reads = reads_in_part(j);
    for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++)
        reads = reads || (j->paths[kind].has_trace && j->paths[kind].out.last == TRACE_AT_READER);
    for (int kind = 0; reads && kind < PROBE_KIND_GUEST_COUNT; kind++) {
        struct path *p = &j->paths[kind];
        if (!p->asked || p->alive || p->out.dropped || p->out.last != TRACE_AT_DRIVER ||
            strcmp(p->out.dev, j->tap->name) != 0)
            continue;
        p->unread = true;
        p->passed &= ~HOPS_QUEUE;
        p->evidence_count = 0;
        path_evidence(p, "trace", j->tap->name, "handed to the TAP and never read; other frames were");
        dies(p, HOP_VMM, HOPS_QUEUE, true);
    }
}

/* Only one reply in a burst, or one that was lost by chance, is no dead path. */
static void soften_burst(struct judge *j) {
    const struct probe_answer *a = judge_answer(j, PROBE_BURST_ICMP);
    if (!a->asked || a->answers < PROBE_BURST || (j->dead & FLOW(PROBE_BURST_ICMP)))
        return;
    j->alive |= FLOW(PROBE_BURST_ICMP);
}

/* The bridge answers ARP in the guest's stead where it may and knows it: then the guest is never asked. */
static void forgive_suppression(struct judge *j) {
    uint32_t arp = FLOW(PROBE_ARP) | FLOW(PROBE_CANARY_ARP);
    bool on = snap_port_attr(j->s, j->tap, IFLA_BRPORT_NEIGH_SUPPRESS, 0) != 0;
    bool lives = j->alive & (FLOW(PROBE_ICMP) | FLOW(PROBE_TCP) | FLOW(PROBE_ARP_UNICAST));
    if (!on || !lives || !(j->dead & arp))
        return;
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
        if (FLOW(kind) & arp & j->dead) {
            j->paths[kind].asked = false;
            j->asked &= ~FLOW(kind);
        }
    j->dead &= ~arp;
    j->alive |= FLOW(PROBE_ARP);
}

void path_trace_all(struct judge *j) {
    if (!j->probe)
        return;
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
        trace_kind(j, (enum probe_kind)kind);
    find_unread(j);
    soften_burst(j);
    forgive_suppression(j);
}
