/* What only the frames themselves tell: the VMM, the guest, its service. Named only where nothing that was read explains
 * the loss. And for what is left, the hop alone. */
#include <errno.h>
#include <linux/netfilter.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

#define HOPS_BEHIND_TAP                                                                                                \
    (HOPBIT(HOP_TAP_QUEUE) | HOPBIT(HOP_VMM) | HOPBIT(HOP_GUEST_NIC) | HOPBIT(HOP_GUEST_IP) |                          \
     HOPBIT(HOP_GUEST_FIREWALL) | HOPBIT(HOP_GUEST_SERVICE))

static uint64_t grown(uint64_t before, uint64_t after) {
    return after > before ? after - before : 0;
}

/* --- headers that do not fit --- */

/* Where in a frame an Ethernet frame's type and what follows it really begins: an ARP for IPv4, or an IPv4 header. */
static int find_ethertype(const uint8_t *f, int len) {
    static const uint8_t arp[] = {0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 0x06, 0x04};
    for (int at = 0; at + 8 <= len && at <= 40; at++)
        if (memcmp(f + at, arp, sizeof arp) == 0 ||
            (f[at] == 0x08 && f[at + 1] == 0x00 && f[at + 2] == 0x45 && f[at + 3] == 0x00))
            return at;
    return -1;
}

static const char *id_of_shift(int shift) {
    switch (shift) {
    case 12:
    case 10:
        return "tap.vnet-hdr-missing";
    case 2:
    case -2:
        return "tap.vnet-hdr-size";
    case 4:
    case -4:
        return "tap.packet-info";
    case -12:
    case -10:
        return "tap.vnet-hdr-unexpected";
    }
    return NULL;
}

static void holder_evidence(struct judge *j, struct cause *c) {
    const struct snap_holder *h = j->holder;
    if (h && h->details)
        cause_evidence(c, "fdinfo", j->tap->name, "held by process %d (%s): vnet header %s, size %d, packet info %s",
                       h->pid, h->comm, j->tap->tun_vnet_hdr ? "on" : "off", h->vnet_hdr_size,
                       j->tap->tun_pi ? "on" : "off");
}

/* Return: whether the frames from the TAP are shifted. */
static bool rule_shifted(struct judge *j) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        int at = h->link == j->tap->index ? find_ethertype(h->data, sizeof h->data) : -1;
        const char *id = at >= 0 && at != 12 ? id_of_shift(at - 12) : NULL;
        if (!id)
            continue;
        /* Already told by the TAP's flags. */
        for (uint32_t c = 0; c < j->causes_count; c++)
            if (strcmp(j->causes[c].finding.id, id) == 0)
                return true;
        struct cause *c =
            cause_add(j, id, 0, FLOWS_GUEST, "frames from %s are shifted by %d bytes", j->tap->name, at - 12);
        if (!c)
            return true;
        c->seen = true;
        cause_evidence(c, "probe", j->tap->name, "the frame type stands at byte %d of what the VMM writes, not at 12",
                       at);
        holder_evidence(j, c);
        return true;
    }
    return false;
}

/* Writes of the VMM that the kernel refused as malformed. */
static uint64_t count_refused(const struct judge *j) {
    const struct trace_result *trace = j->probe->trace;
    uint64_t count = 0;
    for (size_t i = 0; j->holder && trace && i < trace->event_count; i++)
        count += trace->events[i].kind == TRACE_REFUSED && trace->events[i].rc == -EINVAL &&
                 (trace->events[i].tid == j->holder->pid || j->probe->target_count == 1);
    return count;
}

/* The kernel refuses a frame without the virtio header that the TAP expects. */
static bool rule_refused(struct judge *j) {
    const struct snap_link *after = judge_after(j, j->tap);
    uint64_t errors = after ? grown(j->tap->rx_frame_errors, after->rx_frame_errors) : 0;
    uint64_t written = after ? grown(j->tap->rx_packets, after->rx_packets) : 0;
    if (!errors)
        errors = count_refused(j);
    if (!j->tap->tun_vnet_hdr || written || !errors)
        return false;
    struct cause *c = cause_add(j, "tap.vnet-hdr-unexpected", 0, FLOWS_GUEST,
                                "%s expects a virtio header that its VMM does not write", j->tap->name);
    if (!c)
        return true;
    c->seen = true;
    cause_evidence(c, "counters", j->tap->name, "%llu writes refused as badly framed during the probe",
                   (unsigned long long)errors);
    holder_evidence(j, c);
    return true;
}

/* --- what its console says --- */

static void console_evidence(struct judge *j, struct cause *c) {
    for (uint32_t i = 0; i < j->s->consoles_count; i++)
        if (strcmp(j->s->consoles[i].tap, j->target->tap) == 0 && strcmp(j->s->consoles[i].sort, "last") == 0)
            cause_evidence(c, "console", j->s->consoles[i].vm_id, "last line: %.150s", j->s->consoles[i].line);
}

/* A service that is not there may have been killed for its memory. */
static void oom_evidence(struct judge *j, struct cause *c) {
    const struct snap_console *found = NULL;
    for (uint32_t i = 0; i < j->s->consoles_count; i++)
        if (strcmp(j->s->consoles[i].tap, j->target->tap) == 0 && strcmp(j->s->consoles[i].sort, "oom") == 0)
            found = &j->s->consoles[i];
    if (found)
        cause_evidence(c, "console", found->vm_id, "%.200s", found->line);
}

static bool rule_panic(struct judge *j) {
    for (uint32_t i = 0; i < j->s->consoles_count; i++) {
        const struct snap_console *line = &j->s->consoles[i];
        bool end = strcmp(line->sort, "panic") == 0, nic = strcmp(line->sort, "no-nic") == 0;
        if (strcmp(line->tap, j->target->tap) != 0 || (!end && !nic))
            continue;
        struct cause *c = cause_add(j, nic ? "guest.no-nic" : "guest.panic", 0, FLOWS_GUEST, "the guest behind %s %s",
                                    line->tap, nic ? "has found no network card" : "has stopped");
        if (!c)
            return true;
        c->seen = true;
        cause_evidence(c, "console", line->vm_id, "%.200s", line->line);
        return true;
    }
    return false;
}

/* --- nobody reads --- */

/* A filter at the TAP itself: the kernel says so. */
static bool rule_tap_filter(struct judge *j, const struct path *path) {
    const struct trace_where *w = &path->out;
    bool attached = j->holder && j->holder->filtered;
    if (!path->has_trace || !w->dropped || !str_starts(w->drop_location, "tun_net_xmit") ||
        !strstr(w->drop_reason, "FILTER"))
        return false;
    for (uint32_t i = 0; i < j->causes_count; i++)
        if (strcmp(j->causes[i].finding.id, "tap.filter") == 0) {
            j->causes[i].seen = true;
            cause_evidence(&j->causes[i], "trace", j->tap->name, "dropped, reason %s, in %s", w->drop_reason,
                           w->drop_location);
            return true;
        }
    struct cause *c =
        cause_add(j, "tap.filter", 0, FLOWS_GUEST, "a %s filter on %s throws frames away, held by process %d (%s)",
                  strstr(w->drop_reason, "TX") ? "transmit" : "socket", j->tap->name, j->holder ? j->holder->pid : 0,
                  j->holder ? j->holder->comm : "?");
    if (!c)
        return true;
    c->seen = true;
    cause_evidence(c, "trace", j->tap->name, "dropped, reason %s, in %s", w->drop_reason, w->drop_location);
    if (attached)
        cause_evidence(c, "fdinfo", j->tap->name, "a filter is attached to the descriptor");
    return true;
}

static void rule_unread(struct judge *j, const struct path *path) {
    const struct probe_link_counters *before = &j->t->tap_before.link, *after = &j->t->tap_after.link;
    const struct snap_holder *h = j->holder;
    uint64_t written = grown(before->rx_packets, after->rx_packets);
    uint64_t dropped = grown(before->tx_dropped, after->tx_dropped);
    const char *id = before->tx_packets <= 1 && before->rx_packets == 0 && written == 0 ? "guest.not-booted"
                     : written                                                          ? "vmm.rx-stalled"
                                                                                        : "vmm.stalled";
    if (judge_is_explained(j, PROBE_ARP, HOPS_BEHIND_TAP))
        return;
    /* Its VMM runs, and nobody has given it a buffer since. */
    if (!(h && (h->state == 'T' || h->frozen)) && rule_panic(j))
        return;
    /* Dropped at the ring from the first frame on, and nobody says why: full, or filtered. */
    if (dropped && !path->out.dropped && !(h && h->state == 'T'))
        return;
    /* Of several queues, one that is not read, while others are, looks the same. */
    if (written && j->tap->tun_queues > 1)
        return;
    struct cause *c = cause_add(j, id, 0, FLOWS_GUEST, "nobody reads %s, which process %d (%s) holds", j->tap->name,
                                h ? h->pid : 0, h ? h->comm : "not known");
    if (!c)
        return;
    c->seen = true;
    cause_evidence(c, "counters", j->tap->name, "frames given to it: seen; read by its holder: 0; written by it: %llu",
                   (unsigned long long)written);
    cause_evidence(c, "counters", j->tap->name, "read before in all: %llu, written %llu%s",
                   (unsigned long long)before->tx_packets, (unsigned long long)before->rx_packets,
                   dropped ? "; the rest is dropped, the ring is full" : "");
    if (h)
        cause_evidence(c, "proc", "stat", "process %d is in state %c, %u threads, %u stopped", h->pid, h->state,
                       h->threads, h->threads_stopped);
}

/* --- the guest is silent --- */

/* What the guest said of itself while we asked. */
struct said {
    uint32_t frames, as; /* all that it sent; an address that it uses, 0: none */
    bool six;            /* it answers for its IPv6 link-local address */
};

static struct said guest_said(const struct judge *j) {
    const struct snapshot *after = j->host->after;
    struct said said = {0};
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        if (h->link != j->tap->index)
            continue;
        said.frames++;
        said.six = said.six || h->kind == SNAP_HEARD_NEIGHBOUR6;
        bool arp = h->kind == SNAP_HEARD_WHO_HAS || h->kind == SNAP_HEARD_IS_AT;
        if (h->source_ip && (arp || h->kind == SNAP_HEARD_IPV4) && said.as != j->target->ip)
            said.as = h->source_ip;
    }
    return said;
}

/* Frames of its own, and with the address that it should have. */
static bool was_heard(const struct judge *j, bool as_told) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        if (h->link == j->tap->index && h->kind != SNAP_HEARD_ASKED && (!as_told || h->source_ip == j->target->ip))
            return true;
    }
    return false;
}

/* All that the guest says by ARP and IPv4 bears a VLAN's tag, and a bridge that does not know VLANs hands it to nobody who has none. */
static bool rule_tagged(struct judge *j) {
    const struct snapshot *after = j->host->after;
    uint32_t tagged = 0;
    uint16_t vlan = 0;
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        bool says = h->kind == SNAP_HEARD_WHO_HAS || h->kind == SNAP_HEARD_IS_AT || h->kind == SNAP_HEARD_IPV4;
        if (h->link != j->tap->index || !says)
            continue;
        if (!h->vlan)
            return false;
        vlan = h->vlan & 0xfff;
        tagged++;
    }
    struct cause *c = !tagged
                          ? NULL
                          : cause_add(j, "guest.vlan-tagged", 0, FLOWS_GUEST,
                                      "the guest behind %s puts VLAN %u's tag on what it sends", j->tap->name, vlan);
    if (!c)
        return false;
    c->seen = true;
    cause_evidence(c, "probe", j->tap->name,
                   "%u of its frames of ARP and IPv4 bore the tag of VLAN %u, none was without", tagged, vlan);
    return true;
}

static void rule_silent(struct judge *j) {
    struct said said = guest_said(j);
    struct ip_text ip = ip_text(j->target->ip), as = ip_text(said.as);
    struct cause *c;
    if (inside_silent(j, was_heard(j, false), was_heard(j, true)) || rule_panic(j) || rule_tagged(j))
        return;
    if (said.as && said.as != j->target->ip) {
        c = cause_add(j, "guest.no-address", 0, FLOWS_GUEST, "the guest behind %s has %s, not %s", j->tap->name,
                      as.text, ip.text);
        cause_evidence(c, "probe", j->tap->name, "its frames come from %s; nobody answers for %s", as.text, ip.text);
    } else if (said.frames && !said.as && said.six) {
        c = cause_add(j, "guest.no-address", 0, FLOWS_GUEST, "the guest behind %s is alive and does not have %s",
                      j->tap->name, ip.text);
        cause_evidence(c, "probe", j->tap->name, "it answers for its IPv6 link-local address, not for %s", ip.text);
    } else {
        return;
    }
    if (c)
        c->seen = true;
    console_evidence(j, c);
}

/* --- ARP is well, the rest is not --- */

/* Whether another VM, too, sends to this MAC what is for the host: then it is the host's MAC that is new. */
static bool others_send_to(const struct judge *j, struct net_mac mac) {
    const struct snapshot *after = j->host->after;
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        if (h->link != j->tap->index && mac_equal(h->destination, mac) &&
            h->destination_ip == j->bridge_address.address)
            return true;
    }
    return false;
}

/* The guest answers to a MAC that is not the bridge's. */
static bool rule_stale_gateway(struct judge *j) {
    for (size_t i = 0; i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        bool unicast = !(f->destination.byte[0] & 1);
        if (f->ifindex != j->tap->index || f->outgoing || !unicast || f->destination_ip != j->bridge_address.address ||
            !f->destination_ip || f->kind == PROBE_FRAME_WHO_HAS || mac_equal(f->destination, j->bridge->mac))
            continue;
        struct mac_text now = mac_text(j->bridge->mac), old = mac_text(f->destination);
        const struct snap_link *owner = NULL;
        for (uint32_t n = 0; n < j->s->links_count; n++)
            if (snap_is_port(&j->s->links[n], j->bridge->index) && mac_equal(j->s->links[n].mac, j->bridge->mac))
                owner = &j->s->links[n];
        bool changed = owner || others_send_to(j, f->destination);
        struct cause *c =
            cause_add(j, changed ? "bridge.mac-changed" : "guest.gateway-mac-stale", 0, FLOWS_IP | FLOWS_EGRESS,
                      "the guest sends to %s, but %s has %s", old.text, j->bridge->name, now.text);
        if (!c)
            return true;
        c->seen = true;
        if (!changed) {
            cause_evidence(c, "probe", j->tap->name, "%s to %s goes to %s", probe_frame_kind_name(f->kind),
                           ip_text(f->destination_ip).text, old.text);
            cause_evidence(c, "link", j->bridge->name, "its MAC is %s, and that of no port", now.text);
            return true;
        }
        cause_evidence(c, "probe", j->tap->name, "%s to %s goes to %s", probe_frame_kind_name(f->kind),
                       ip_text(f->destination_ip).text, old.text);
        cause_evidence(c, "link", j->bridge->name, "its MAC is %s%s%s", now.text,
                       owner ? ", taken over from port " : "", owner ? owner->name : "");
        struct repair_step *step = cause_step(c, REPAIR_LINK_MAC, j->bridge->name);
        step->mac = f->destination;
        c->finding.safe = j->s->host.managed_ip && mac_equal(f->destination, j->s->host.managed_mac);
        return true;
    }
    return false;
}

static bool same_24(uint32_t a, uint32_t b) {
    return a >> 8 == b >> 8;
}

/* Behind the TAP, and ARP is answered: no way back, a firewall, or a path that only IP takes. */
static void rule_deaf(struct judge *j) {
    const struct path *icmp = &j->paths[PROBE_ICMP], *tcp = &j->paths[PROBE_TCP];
    const struct probe_answer *refused = judge_answer(j, PROBE_TCP);
    bool answers_tcp = (tcp->asked && tcp->alive) || (refused->asked && refused->answered);
    uint32_t host = j->bridge_address.address, guest = j->target->ip;
    if (!icmp->asked || icmp->alive || judge_is_explained(j, PROBE_ICMP, icmp->hops))
        return;
    if (!(icmp->hops & HOPBIT(HOP_GUEST_FIREWALL)))
        return;
    if (answers_tcp) {
        struct cause *c =
            cause_add(j, "guest.ignores-ping", FLOW(PROBE_ICMP) | FLOW(PROBE_BURST_ICMP) | FLOW(PROBE_LARGE),
                      FLOW(PROBE_CANARY_ICMP), "%s ignores ping but answers TCP", ip_text(guest).text);
        cause_evidence(c, "probe", ip_text(guest).text, "echo requests reach it unanswered, TCP port %u answers",
                       j->target->port);
        if (c)
            c->note = true;
        return;
    }
    if ((icmp->passed & HOPBIT(HOP_VMM)) && (inside_deaf(j) || inside_says_well(j)))
        return;
    const struct probe_answer *ping = judge_answer(j, PROBE_ICMP);
    if (ping->answered && ping->answer_errno) {
        struct cause *c = cause_add(j, "guest.firewall", FLOWS_IP, FLOW(PROBE_CANARY_ICMP),
                                    "%s refuses ping by an ICMP error", ip_text(guest).text);
        cause_evidence(c, "probe", ip_text(guest).text, "to an echo request an ICMP error came back: %s",
                       strerror(ping->answer_errno));
        return;
    }
    const struct path *canary = &j->paths[PROBE_CANARY_ICMP];
    bool canary_near = j->probe->canary.made && same_24(j->probe->canary.ip, guest);
    bool host_far = !same_24(host, guest);
    bool wrong = host_far && canary_near && canary->asked && canary->alive;
    const struct snap_console *told = NULL;
    for (uint32_t i = 0; i < j->s->consoles_count; i++)
        if (strcmp(j->s->consoles[i].tap, j->target->tap) == 0 && strcmp(j->s->consoles[i].sort, "ip") == 0)
            told = &j->s->consoles[i];
    wrong = wrong || (host_far && told && strstr(told->line, "mask=255.255.255.0"));
    if (wrong) {
        struct cause *c = cause_add(j, "guest.wrong-prefix", 0, FLOWS_IP | FLOW(PROBE_CANARY_ICMP),
                                    "%s takes %s for a stranger: its prefix is longer than /%u", ip_text(guest).text,
                                    ip_text(host).text, j->bridge_address.length);
        if (!c)
            return;
        c->seen = true;
        cause_evidence(c, "probe", ip_text(guest).text, "it answers ARP, and an echo from its own /24, not one from %s",
                       ip_text(host).text);
        if (told)
            cause_evidence(c, "console", told->vm_id, "%.200s", told->line);
        return;
    }
    if (host_far && !(canary_near && canary->asked))
        return; /* either: unknown.guest.ip says so */
    struct cause *c =
        cause_add(j, "guest.firewall", 0, FLOWS_IP | FLOW(PROBE_CANARY_ICMP),
                  "%s answers ARP and nothing else: its packet filter drops the rest, or it has no route back",
                  ip_text(guest).text);
    if (!c)
        return;
    c->seen = true;
    c->finding.confidence = 0.6;
    str_copy(
        c->finding.explanation, sizeof c->finding.explanation,
        "What is sent reaches the guest, and no answer comes out of it. From outside two causes look the same: its "
        "packet filter throws the packets or its answers away, or it has no route back to who asks. The "
        "guest's agent could tell them apart; here nobody asked it, or what it told was not enough.");
    str_copy(c->finding.advice, sizeof c->finding.advice,
             "Look inside the guest at both: its packet filter (nft list ruleset) and its routes (ip route).");
    cause_evidence(c, "probe", ip_text(guest).text, "echo requests were read by its VMM, no answer was written");
    if (tcp->asked)
        cause_evidence(c, "probe", ip_text(guest).text, "TCP port %u: no answer either", j->target->port);
}

/* --- TCP alone --- */

static bool was_rejected(const struct judge *j) {
    int32_t tag = probe_tag(j->t_index, PROBE_TCP);
    for (size_t i = 0; i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        if (f->ifindex == j->tap->index && !f->outgoing && f->kind == PROBE_FRAME_ICMP_ERROR &&
            (f->tag == tag || f->source_ip == j->target->ip))
            return true;
    }
    return false;
}

static void rule_refuses(struct judge *j, const struct probe_answer *a) {
    struct ip_text text = ip_text(j->target->ip);
    const char *ip = text.text;
    struct cause *c;
    if (inside_tcp(j, true))
        return;
    if (was_rejected(j) || a->answer_errno != ECONNREFUSED) {
        c = cause_add(j, "guest.firewall", 0, FLOW(PROBE_TCP), "%s refuses TCP port %u by ICMP", ip, j->target->port);
        cause_evidence(c, "probe", ip, "an ICMP error came back: its packet filter rejects (%s)",
                       strerror(a->answer_errno));
    } else {
        c = cause_add(j, "guest.service-down", 0, FLOW(PROBE_TCP),
                      "%s refuses TCP port %u: nothing listens there, or its packet filter resets it", ip,
                      j->target->port);
        cause_evidence(c, "probe", ip, "TCP port %u: connection refused (RST)", j->target->port);
        oom_evidence(j, c);
    }
    if (c)
        c->seen = true;
}

static void rule_tcp(struct judge *j) {
    const struct probe_answer *a = judge_answer(j, PROBE_TCP), *raw = judge_answer(j, PROBE_TCP_RAW);
    const struct path *tcp = &j->paths[PROBE_TCP];
    struct ip_text ip = ip_text(j->target->ip);
    if (!tcp->asked || tcp->alive || judge_is_explained(j, PROBE_TCP, tcp->hops))
        return;
    if (a->answered && tcp->dies != HOP_GUEST_SERVICE)
        return;
    if (a->answered && a->answer_errno) {
        if (tcp->hops & HOPBIT(HOP_GUEST_SERVICE))
            rule_refuses(j, a);
        return;
    }
    bool ip_works = (j->alive & FLOW(PROBE_ICMP)) != 0;
    if (raw->asked && raw->answered && ip_works && !a->reply_tap.count && j->tap->offload_csum != 0) {
        struct cause *c =
            cause_add(j, "tap.offload-mismatch", 0, FLOW(PROBE_TCP),
                      "%s: the guest takes no TCP segment whose checksum the host left open", j->tap->name);
        if (!c)
            return;
        c->seen = true;
        cause_evidence(c, "probe", ip.text, "a SYN with a complete checksum is answered, the kernel's own is not");
        cause_evidence(c, "link", j->tap->name, "transmit checksum offload is %s",
                       j->tap->offload_csum == 1 ? "on" : "not known");
        cause_step(c, REPAIR_TAP_OFFLOAD, j->tap->name)->value = 0;
        return;
    }
    if (!ip_works || !(tcp->hops & HOPBIT(HOP_GUEST_FIREWALL)))
        return;
    if ((tcp->passed & HOPBIT(HOP_VMM)) && inside_tcp(j, false))
        return;
    bool rejected = was_rejected(j);
    struct cause *c =
        cause_add(j, "guest.firewall", 0, FLOW(PROBE_TCP) | FLOW(PROBE_TCP_RAW),
                  rejected ? "%s refuses TCP port %u by ICMP" : "%s answers ping, its TCP port %u is silent", ip.text,
                  j->target->port);
    if (!c)
        return;
    c->seen = true;
    cause_evidence(c, "probe", ip.text, "SYNs were read by its VMM, %s",
                   rejected ? "an ICMP error came back: its packet filter rejects" : "neither accepted nor refused");
}

/* Rules on the way to the TAP might not like a foreign source: then nothing can be concluded. */
static bool is_filtered_on_the_way(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->chains_count; i++) {
        const struct snap_nft_chain *c = &j->s->chains[i];
        bool bridge = c->family == NFPROTO_BRIDGE && (c->hook == 3 || c->hook == 4);
        bool device = c->family == NFPROTO_NETDEV && c->hook == 1;
        if (c->base && !c->dormant && (bridge || device))
            return true;
    }
    return false;
}

static bool has_nat(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->exprs_count; i++)
        if (j->s->exprs[i].op == SNAP_NFT_NAT)
            return true;
    return false;
}

/* For whom the guest asked when it had something to send to the outside, and nobody answered. 0: for nobody. */
static uint32_t asked_gateway(const struct judge *j) {
    const struct snapshot *after = j->host->after;
    uint32_t found = 0;
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        bool canary = j->probe->canary.made && h->destination_ip == j->probe->canary.ip;
        if (h->link == j->tap->index && h->kind == SNAP_HEARD_WHO_HAS && h->source_ip == j->target->ip &&
            h->destination_ip != j->target->ip && h->destination_ip != j->bridge_address.address && !canary)
            found = h->destination_ip;
    }
    for (uint32_t i = 0; found && i < after->heard_count; i++)
        if (after->heard[i].kind == SNAP_HEARD_IS_AT && after->heard[i].source_ip == found)
            return 0;
    return found;
}

/* What else loses frames on that way: a single answer that is missing says nothing then. */
static bool is_lossy(const struct judge *j) {
    for (uint32_t i = 0; i < j->causes_count; i++) {
        const struct cause *c = &j->causes[i];
        if (c->seen && cause_counts(j, c) && ((c->kills | c->may) & FLOW(PROBE_ICMP)))
            return true;
    }
    return false;
}

static void rule_default_route(struct judge *j) {
    const struct snapshot *after = j->host->after;
    if ((j->alive & (FLOW(PROBE_ICMP) | FLOW(PROBE_TCP))) && inside_egress(j, asked_gateway(j)))
        return;
    bool asked = false, answered = false;
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        if (h->link != j->tap->index)
            continue;
        asked = asked || h->kind == SNAP_HEARD_ASKED;
        answered = answered || (h->kind == SNAP_HEARD_IPV4 && h->destination_ip == SNAP_BEYOND);
    }
    if (!asked || answered || !(j->alive & FLOW(PROBE_ICMP)) || !has_nat(j) || is_filtered_on_the_way(j))
        return;
    struct ip_text ip = ip_text(j->target->ip), gateway = ip_text(asked_gateway(j));
    if (asked_gateway(j)) {
        struct cause *w = cause_add(j, "guest.wrong-gateway", FLOW_EGRESS_GUEST, 0,
                                    "%s sends to the outside by %s, which nobody has", ip.text, gateway.text);
        if (!w)
            return;
        w->seen = w->policy = true;
        w->finding.confidence = 0.8;
        cause_evidence(w, "probe", ip.text, "asked from another network (%s), it asks who has %s, and gets no answer",
                       ip_text(SNAP_BEYOND).text, gateway.text);
        return;
    }
    if (is_lossy(j))
        return;
    struct cause *c =
        cause_add(j, "guest.no-default-route", FLOW_EGRESS_GUEST, 0, "%s has no way to the outside", ip.text);
    if (!c)
        return;
    c->seen = c->policy = true;
    c->finding.confidence = 0.8;
    cause_evidence(c, "probe", ip.text, "it answers the host's echo, and not one from another network (%s)",
                   ip_text(SNAP_BEYOND).text);
}

void rules_guest(struct judge *j) {
    if (!j->t && j->tap && j->bridge && j->target->ip)
        inside_state(j);
    if (!j->t || !j->tap || !j->bridge || !j->target->ip)
        return;
    const struct path *arp = &j->paths[PROBE_ARP];
    bool behind =
        arp->asked && !arp->alive && (arp->hops & HOPS_BEHIND_TAP) && judge_answer(j, PROBE_ARP)->request_tap.count;
    bool shifted = arp->asked && !arp->alive && (rule_shifted(j) || rule_refused(j));
    bool filtered = behind && rule_tap_filter(j, arp);
    if (behind && !shifted && !filtered && !judge_is_explained(j, PROBE_ARP, arp->hops)) {
        if (arp->hops & HOPBIT(HOP_VMM) && !(arp->passed & HOPBIT(HOP_VMM)))
            rule_unread(j, arp);
        else
            rule_silent(j);
    }
    if (arp->asked && arp->alive) {
        rule_stale_gateway(j);
        rule_deaf(j);
        rule_tcp(j);
        rule_default_route(j);
    }
    inside_contradictions(j, was_heard(j, false), was_heard(j, true));
}

/* --- what is left --- */

static const char *summary(enum hop hop) {
    switch (hop) {
    case HOP_GUEST_NIC:
        return "the VMM reads the frames, and the guest behind it is silent";
    case HOP_GUEST_IP:
        return "the guest does not answer";
    case HOP_GUEST_FIREWALL:
        return "the guest gets it and does not answer";
    case HOP_BRIDGE_PORT:
    case HOP_BRIDGE_FORWARD:
        return "the bridge does not hand it to the TAP";
    case HOP_VMM:
    case HOP_TAP_QUEUE:
        return "nobody takes it from the TAP";
    case HOP_HOST_ROUTE:
    case HOP_HOST_NEIGH:
    case HOP_HOST_OUTPUT:
    case HOP_BRIDGE_DEV:
        return "it does not come as far as the bridge";
    case HOP_BRIDGE_OUTPUT:
    case HOP_TAP_EGRESS:
    case HOP_TAP_DEV:
        return "it is lost between bridge and TAP";
    case HOP_GUEST_SERVICE:
        return "the service does not answer";
    case HOP_TAP_INGRESS:
    case HOP_BRIDGE_INPUT:
    case HOP_HOST_INPUT:
        return "the answer is lost on its way back";
    case HOP_HOST_FORWARD:
    case HOP_HOST_NAT:
    case HOP_HOST_UPLINK:
        return "it does not come back from the outside";
    }
    return "";
}

static const char *layer_of(enum hop hop) {
    uint32_t device = HOPBIT(HOP_TAP_DEV) | HOPBIT(HOP_TAP_QUEUE) | HOPBIT(HOP_VMM) | HOPBIT(HOP_GUEST_NIC);
    uint32_t bridge = HOPBIT(HOP_BRIDGE_DEV) | HOPBIT(HOP_BRIDGE_OUTPUT) | HOPBIT(HOP_BRIDGE_FORWARD) |
                      HOPBIT(HOP_BRIDGE_PORT) | HOPBIT(HOP_BRIDGE_INPUT) | HOPBIT(HOP_TAP_EGRESS) |
                      HOPBIT(HOP_TAP_INGRESS);
    return HOPBIT(hop) & device ? "L1" : HOPBIT(hop) & bridge ? "L2" : hop == HOP_GUEST_SERVICE ? "L7" : "L3";
}

static void add_unknown(struct judge *j, enum probe_kind kind) {
    const struct path *p = &j->paths[kind];
    char id[48];
    snprintf(id, sizeof id, "unknown.%s", finding_hop_name(p->dies));
    for (uint32_t i = 0; i < j->causes_count; i++)
        if (strcmp(j->causes[i].finding.id, id) == 0) {
            j->causes[i].may |= FLOW(kind);
            return;
        }
    struct cause *c = cause_add(j, id, 0, FLOW(kind), "%s dies at %s: %s", path_words(kind), finding_hop_name(p->dies),
                                summary(p->dies));
    if (!c)
        return;
    c->seen = true;
    c->finding.hop = p->dies;
    c->finding.confidence = p->exact ? 0.7 : 0.4;
    str_copy(c->finding.layer, sizeof c->finding.layer, layer_of(p->dies));
    str_copy(c->finding.explanation, sizeof c->finding.explanation,
             "No attribute, rule, program or counter that could be read explains it. What was seen is below.");
    str_copy(c->finding.advice, sizeof c->finding.advice,
             "Look at this place by hand; the evidence says what was seen.");
    for (uint8_t i = 0; i < p->evidence_count; i++)
        cause_evidence(c, p->evidence[i].source, p->evidence[i].where, "%s", p->evidence[i].fact);
    console_evidence(j, c);
    if (p->dies >= HOP_BRIDGE_OUTPUT && (p->dies <= HOP_TAP_QUEUE || p->dies >= HOP_TAP_INGRESS) &&
        p->dies <= HOP_BRIDGE_INPUT)
        odd_port_evidence(j, c);
    if (*j->s->host.legacy_tables && p->dies != HOP_HOST_ROUTE &&
        (p->dies <= HOP_TAP_EGRESS || p->dies >= HOP_TAP_INGRESS))
        cause_evidence(c, "proc", "legacy tables",
                       "%s: rules that cannot be read here (iptables-legacy-save shows them)",
                       j->s->host.legacy_tables);
}

/* Each question needs the ones before it: an echo that cannot be sent without ARP is no second loss. */
static bool follows_from(const struct judge *j, enum probe_kind kind) {
    uint32_t arp = j->dead & FLOWS_ARP, icmp = j->dead & FLOW(PROBE_ICMP);
    switch (kind) {
    case PROBE_ARP:
        return false;
    case PROBE_ARP_UNICAST:
    case PROBE_ARP_KERNEL:
        return (j->dead & FLOW(PROBE_ARP)) != 0;
    case PROBE_ICMP:
        return arp != 0;
    case PROBE_BURST_ICMP:
    case PROBE_LARGE:
    case PROBE_TCP:
        return arp || icmp;
    case PROBE_TCP_RAW:
        return arp || icmp || (j->dead & FLOW(PROBE_TCP));
    case PROBE_CANARY_ARP:
        return (j->dead & FLOW(PROBE_ARP)) != 0;
    case PROBE_CANARY_ICMP:
        return (j->dead & (FLOWS_ARP | FLOW(PROBE_ICMP) | FLOW(PROBE_CANARY_ARP))) != 0;
    case PROBE_CANARY_ARP_HOST:
        return false;
    case PROBE_CANARY_ICMP_HOST:
    case PROBE_HOST_ICMP_CANARY:
        return (j->dead & FLOW(PROBE_CANARY_ARP_HOST)) != 0;
    case PROBE_EGRESS:
        return (j->dead & (FLOW(PROBE_CANARY_ARP_HOST) | FLOW(PROBE_CANARY_ICMP_HOST))) != 0;
    case PROBE_KIND_COUNT:
        break;
    }
    return true;
}

#define BUSY_FRAMES 500

/* A TAP that carries much else may lose one of our few frames by chance. */
static bool is_busy(const struct judge *j) {
    const struct probe_link_counters *before = j->t ? &j->t->tap_before.link : NULL,
                                     *after = j->t ? &j->t->tap_after.link : NULL;
    return before && before->known && after->known &&
           grown(before->tx_packets, after->tx_packets) + grown(before->rx_packets, after->rx_packets) > BUSY_FRAMES;
}

/* Not worth a finding of its own when nobody knows why: the gateway of the outside may ignore ping, a guest may as
 * well. */
static bool is_telling(const struct judge *j, enum probe_kind kind) {
    bool tcp_alive = (j->alive & FLOW(PROBE_TCP)) != 0;
    /* Whom else a guest answers that answers the host is its own choice. */
    if (kind == PROBE_CANARY_ICMP && (j->alive & FLOW(PROBE_ICMP)) && j->paths[kind].dies == HOP_GUEST_FIREWALL)
        return false;
    /* How many pings in a second as well: a limit in its packet filter is usual. */
    if (kind == PROBE_BURST_ICMP && tcp_alive && j->paths[kind].dies == HOP_GUEST_FIREWALL)
        return false;
    if (kind != PROBE_ARP && kind != PROBE_ICMP && kind != PROBE_TCP && (j->alive & FLOW(PROBE_ICMP)) && is_busy(j) &&
        !j->paths[kind].exact)
        return false;
    if (kind == PROBE_EGRESS)
        return (j->paths[kind].out.dropped || j->paths[kind].exact) && j->paths[kind].dies != HOP_HOST_UPLINK;
    if (kind == PROBE_ICMP || kind == PROBE_BURST_ICMP || kind == PROBE_LARGE || kind == PROBE_CANARY_ICMP)
        return !tcp_alive || (j->alive & FLOW(PROBE_ICMP));
    if (kind == PROBE_ARP_UNICAST)
        return (j->dead & FLOW(PROBE_ICMP)) != 0;
    if (kind == PROBE_HOST_ICMP_CANARY || kind == PROBE_TCP_RAW)
        return false;
    return true;
}

void rules_unknown(struct judge *j) {
    for (int k = 0; k < PROBE_KIND_COUNT; k++) {
        enum probe_kind kind = (enum probe_kind)k;
        const struct path *p = &j->paths[kind];
        if (!p->asked || p->alive || follows_from(j, kind) || !is_telling(j, kind))
            continue;
        if (!judge_is_explained(j, kind, p->exact ? p->hops : UINT32_MAX))
            add_unknown(j, kind);
    }
}
