/* The TAP and who holds it. */
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

#define PORTS_MAX 1023 /* BR_MAX_PORTS less one */
#define OPER_UP 6      /* IF_OPER_UP; 0: unknown */

static uint32_t count_ports(const struct snapshot *s, int32_t bridge, bool taps_only) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->links_count; i++)
        count += snap_is_port(&s->links[i], bridge) && (!taps_only || s->links[i].is_tap);
    return count;
}

/* With an address of its own. */
static bool is_routed(const struct snapshot *s, const struct snap_link *link) {
    for (uint32_t i = 0; i < s->addrs_count; i++)
        if (s->addrs[i].link == link->index)
            return true;
    return false;
}

/* A VM that is being made, or waits for a user, has no bridge yet, and the one that becomes a template never
 * (vm/template_boot.c): nobody is to reach them. */
static bool is_kept_apart(const struct snapshot *s, const struct snap_link *link) {
    const struct snap_vm *vm = snap_vm_of_tap(s, link->name);
    return str_starts(link->name, "mc-warm-") || (vm && strcmp(vm->state, "creating") == 0);
}

/* That has lost its bridge. */
static bool is_orphan(const struct snapshot *s, const struct snap_link *link) {
    return snap_is_tap(link) && link->master == 0 && !is_routed(s, link) && !is_kept_apart(s, link);
}

static uint32_t count_orphans(const struct snapshot *s) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->links_count; i++)
        count += is_orphan(s, &s->links[i]);
    return count;
}

static void blame_netns(struct judge *j, const struct snap_elsewhere *e) {
    const char *here = j->s->host.netns;
    struct cause *c =
        cause_add(j, "tap.other-netns", FLOWS_GUEST, 0, "%s is in another network namespace: %s", e->tap, e->netns);
    cause_evidence(c, "link", e->tap, "no such device here; one of that name is in network namespace %s", e->netns);
    if (e->pid) /* it has no name */
        cause_plan(c, "nsenter -t %d -n ip link set %s netns %s", e->pid, e->tap, *here ? here : "1");
    else
        cause_plan(c, "ip -n %s link set %s netns %s", e->netns, e->tap, *here ? here : "1");
    cause_plan(c, "ip %s%s%slink set %s master %s up", *here ? "-n " : "", here, *here ? " " : "", e->tap,
               j->target->bridge);
}

static void rule_missing(struct judge *j) {
    const struct snapshot *s = j->s;
    const char *tap = j->target->tap;
    for (uint32_t i = 0; i < s->elsewhere_count; i++)
        if (strcmp(s->elsewhere[i].tap, tap) == 0) {
            blame_netns(j, &s->elsewhere[i]);
            return;
        }
    struct cause *c = cause_add(j, "tap.missing", FLOWS_GUEST, 0, "there is no TAP %s", tap);
    cause_evidence(c, "link", tap, "no such device");
    for (uint32_t i = 0; i < s->claimants_count; i++)
        if (strcmp(s->claimants[i].tap, tap) == 0)
            cause_evidence(c, "proc", "claimant", "process %d (%s) speaks of it%s", s->claimants[i].pid,
                           s->claimants[i].comm,
                           s->claimants[i].orphaned ? " and holds the descriptor of a device that is gone" : "");
    cause_plan(c, "make the TAP again and restart its VM");
}

static void rule_down(struct judge *j) {
    if (j->tap->flags & IFF_UP)
        return;
    struct cause *c = cause_add(j, "tap.down", FLOWS_GUEST, 0, "%s is down", j->tap->name);
    cause_evidence(c, "link", j->tap->name, "administratively down (IFF_UP is clear)");
    cause_step(c, REPAIR_LINK_UP, j->tap->name);
}

/* Nobody said that this is the TAP's bridge, and neither its name nor its network does. */
static bool is_guessed(const struct judge *j) {
    bool holds = j->target->ip && j->bridge_address.address && net_contains(j->bridge_address, j->target->ip);
    return !j->target->bridge_given && !j->s->host.managed && !holds && strcmp(j->target->bridge, "br0") != 0;
}

/* What may only be done by name: whoever has a TAP of his own with an address would be cut off. */
static void enslave_only_if_asked(const struct judge *j, struct cause *c) {
    bool guessed = is_guessed(j), routed = is_routed(j->s, j->tap), apart = is_kept_apart(j->s, j->tap);
    if (!c || (!guessed && !routed && !apart))
        return;
    c->finding.safe = false;
    if (guessed)
        cause_evidence(c, "link", j->target->bridge, "nobody said that it is the bridge of %s (--bridge does)",
                       j->tap->name);
    if (routed)
        cause_evidence(c, "addr", j->tap->name, "it has an address of its own: the host may route to it");
    if (apart)
        cause_evidence(c, "record", j->tap->name, "its VM is still being made, and is not to be reached yet");
}

static void enslave(const struct judge *j, struct cause *c, const char *tap) {
    struct repair_step *step = cause_step(c, REPAIR_LINK_MASTER, tap);
    str_copy(step->object, sizeof step->object, j->bridge ? j->bridge->name : j->target->bridge);
}

static void rule_exhausted(struct judge *j, uint32_t ports) {
    struct cause *c = cause_add(j, "bridge.ports-exhausted", FLOWS_GUEST, 0, "%s has no room for %s: %u ports",
                                j->bridge->name, j->tap->name, ports);
    cause_evidence(c, "link", j->tap->name, "is a port of no bridge");
    cause_evidence(c, "link", j->bridge->name, "has %u ports, %u is the most that a bridge can have", ports, PORTS_MAX);
}

static void rule_recreated(struct judge *j, uint32_t orphans) {
    struct cause *c = cause_add(j, "bridge.recreated", FLOWS_GUEST, 0,
                                "%s has no TAP at all, %s and %u others are ports of nothing: it was made again",
                                j->bridge->name, j->tap->name, orphans - 1);
    cause_evidence(c, "link", j->bridge->name, "no TAP is a port of it");
    cause_evidence(c, "link", j->tap->name, "is a port of no bridge, and so are %u other TAPs", orphans - 1);
    enslave(j, c, j->tap->name);
    for (uint32_t i = 0; i < j->s->links_count; i++)
        if (is_orphan(j->s, &j->s->links[i]) && &j->s->links[i] != j->tap)
            enslave(j, c, j->s->links[i].name);
    enslave_only_if_asked(j, c);
}

static void rule_master(struct judge *j) {
    const struct snapshot *s = j->s;
    if (j->bridge && j->tap->master == j->bridge->index)
        return;
    if (j->tap->master == 0) {
        if (!j->bridge)
            return;
        uint32_t ports = count_ports(s, j->bridge->index, false), orphans = count_orphans(s);
        if (ports >= PORTS_MAX) {
            rule_exhausted(j, ports);
        } else if (orphans > 1 && count_ports(s, j->bridge->index, true) == 0) {
            rule_recreated(j, orphans);
        } else {
            struct cause *c =
                cause_add(j, "tap.not-enslaved", FLOWS_GUEST, 0, "%s is a port of no bridge", j->tap->name);
            cause_evidence(c, "link", j->tap->name, "has no master; %s was expected", j->bridge->name);
            enslave(j, c, j->tap->name);
            enslave_only_if_asked(j, c);
        }
        return;
    }
    const struct snap_link *master = snap_link_by_index(s, j->tap->master);
    bool bridge = master && strcmp(master->kind, "bridge") == 0;
    struct cause *c =
        cause_add(j, bridge ? "tap.wrong-bridge" : "tap.wrong-master", FLOWS_GUEST, 0, "%s is a port of %s, not of %s",
                  j->tap->name, master ? master->name : "another device", j->target->bridge);
    cause_evidence(c, "link", j->tap->name, "master is %s (%s)", master ? master->name : "?",
                   master ? master->kind : "not known");
    enslave(j, c, j->tap->name);
}

/* --- no carrier --- */

static const struct snap_claimant *find_claimant(const struct judge *j, bool orphaned) {
    for (uint32_t i = 0; i < j->s->claimants_count; i++)
        if (strcmp(j->s->claimants[i].tap, j->tap->name) == 0 && j->s->claimants[i].orphaned == orphaned)
            return &j->s->claimants[i];
    return NULL;
}

/* Other TAPs that are held are of a single queue: whoever opens them does not ask for more. */
static bool others_are_single(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->links_count; i++) {
        const struct snap_link *link = &j->s->links[i];
        if (snap_is_tap(link) && link != j->tap && link->carrier && !link->tun_multi_queue)
            return true;
    }
    return false;
}

static struct cause *no_holder_cause(struct judge *j) {
    const char *tap = j->tap->name;
    const struct snap_claimant *orphan = find_claimant(j, true), *claimant = find_claimant(j, false);
    struct cause *c;
    if (orphan) {
        c = cause_add(j, "tap.recreated", FLOWS_GUEST, 0,
                      "%s was made again under process %d (%s), which still holds the one that is gone", tap,
                      orphan->pid, orphan->comm);
        cause_evidence(c, "fdinfo", "/dev/net/tun", "process %d (%s) has it open without a device behind it",
                       orphan->pid, orphan->comm);
        return c;
    }
    if (claimant && claimant->uid != 0 && !claimant->net_admin && j->tap->tun_owner != claimant->uid &&
        j->tap->tun_owner != UINT32_MAX) {
        c = cause_add(j, "tap.not-permitted", FLOWS_GUEST, 0, "%s belongs to uid %u, its VMM %d (%s) runs as uid %u",
                      tap, j->tap->tun_owner, claimant->pid, claimant->comm, claimant->uid);
        cause_evidence(c, "proc", tap, "process %d speaks of the TAP, runs as uid %u without CAP_NET_ADMIN",
                       claimant->pid, claimant->uid);
        cause_evidence(c, "link", tap, "the TAP's owner is uid %u", j->tap->tun_owner);
        return c;
    }
    if (j->tap->tun_multi_queue && (claimant || others_are_single(j))) {
        c = cause_add(j, "tap.multi-queue-mismatch", FLOWS_GUEST, 0,
                      "%s was made with multi_queue, and nobody could open it", tap);
        cause_evidence(c, "link", tap, "multi_queue is on; other TAPs in use here have a single queue");
        return c;
    }
    c = cause_add(j, "tap.no-holder", FLOWS_GUEST, 0, "no process holds %s", tap);
    if (claimant)
        cause_evidence(c, "proc", tap, "process %d (%s) speaks of it but has not opened it", claimant->pid,
                       claimant->comm);
    if (j->vm && j->vm->pid)
        cause_evidence(c, "record", j->vm->id, "its VMM was process %d", j->vm->pid);
    return c;
}

bool rules_leaked(struct judge *j) {
    bool wanted = j->target->named || j->vm;
    if (wanted || !j->tap || j->holder || j->tap->carrier)
        return false;
    /* Down, a held one has no carrier either: only a full view of the processes tells. */
    if (!(j->tap->flags & IFF_UP) && snap_gap_of(j->s, "holders") && !j->s->host.root)
        return false;
    struct cause *c = cause_add(j, "tap.leaked", 0, 0, "%s has no holder and no VM", j->tap->name);
    cause_evidence(c, "link", j->tap->name, "no carrier, no process has it open");
    if (c)
        c->note = true;
    return true;
}

static void rule_no_holder(struct judge *j) {
    const struct snap_gap *gap = snap_gap_of(j->s, "holders");
    struct cause *c = no_holder_cause(j);
    if (!c)
        return;
    cause_evidence(c, "link", j->tap->name, "no carrier (NO-CARRIER), so the bridge's port is disabled");
    if (gap && !j->s->host.root)
        cause_evidence(c, "gap", "holders", "%s", gap->detail);
    else
        cause_evidence(c, "fdinfo", j->tap->name, "no process has it open");
    c->finding.safe = false;
    cause_plan(c, "restart the VM of %s", j->tap->name);
}

static void rule_carrier(struct judge *j) {
    const struct snap_link *tap = j->tap;
    struct cause *c = NULL;
    if (tap->proto_down) {
        c = cause_add(j, "tap.proto-down", FLOWS_GUEST, 0, "%s is held down by protodown", tap->name);
        cause_evidence(c, "link", tap->name, "protodown is on, so it has no carrier");
        cause_step(c, REPAIR_LINK_PROTO_UP, tap->name);
    } else if (!tap->carrier && (tap->flags & IFF_UP) && !tap->is_tap) {
        c = cause_add(j, "tap.carrier-off", FLOWS_GUEST, 0, "%s has no carrier: its other end is down, or gone",
                      tap->name);
        cause_evidence(c, "link", tap->name, "NO-CARRIER; it is no TAP but a %s",
                       *tap->kind ? tap->kind : "network card");
    } else if (!tap->carrier && (tap->flags & IFF_UP)) {
        /* Without all of /proc the lack of a carrier still tells: a TAP has one as long as it is held. */
        if (!j->holder) {
            rule_no_holder(j);
            return;
        }
        c = cause_add(j, "tap.carrier-off", FLOWS_GUEST, 0, "%s has no carrier though process %d (%s) holds it",
                      tap->name, j->holder->pid, j->holder->comm);
        cause_evidence(c, "link", tap->name, "carrier is off");
        cause_evidence(c, "fdinfo", tap->name, "held by process %d (%s)", j->holder->pid, j->holder->comm);
        cause_plan(c, "ip link set dev %s carrier on", tap->name);
    } else if (tap->carrier && tap->operstate != OPER_UP && tap->operstate != 0 && (tap->flags & IFF_UP)) {
        c = cause_add(j, "tap.dormant", FLOWS_GUEST, 0, "%s is up but its operational state is not (%s)", tap->name,
                      tap->operstate == 5   ? "dormant"
                      : tap->operstate == 4 ? "testing"
                                            : "down");
        cause_evidence(c, "link", tap->name, "operational state %u, link mode %u", tap->operstate, tap->linkmode);
        cause_step(c, REPAIR_LINK_MODE, tap->name)->value = 0;
    } else if (!j->holder && !tap->carrier && !(tap->flags & IFF_UP) && tap->is_tap &&
               (j->s->host.root || !snap_gap_of(j->s, "holders"))) {
        rule_no_holder(j);
    }
}

static void rule_queue(struct judge *j) {
    const struct snap_link *tap = j->tap;
    if (!tap->is_tap) /* a veth with no queue of its own is as it should be */
        return;
    if (tap->txqueuelen == 0) {
        struct cause *c =
            cause_add(j, "tap.txqueuelen-zero", FLOWS_GUEST, 0, "%s has a ring of no frames (txqueuelen 0)", tap->name);
        cause_evidence(c, "link", tap->name, "txqueuelen 0");
        cause_step(c, REPAIR_LINK_TXQLEN, tap->name)->value = 1000;
    }
    if (tap->tun_multi_queue && tap->tun_queues == 0 && tap->tun_queues_off > 0) {
        struct cause *c = cause_add(j, "tap.queue-detached", FLOWS_GUEST, 0, "all %u queues of %s are detached",
                                    tap->tun_queues_off, tap->name);
        cause_evidence(c, "link", tap->name, "0 queues attached, %u detached", tap->tun_queues_off);
    }
}

static void rule_unread_queue(struct judge *j) {
    uint32_t flows = 0;
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
        flows |= j->paths[kind].unread ? FLOW(kind) : 0;
    if (!flows)
        return;
    struct cause *c = cause_add(j, "tap.queue-unread", flows, FLOWS_GUEST,
                                "%s has %u queues, and not all of them are read", j->tap->name, j->tap->tun_queues);
    if (!c)
        return;
    c->seen = true;
    cause_evidence(c, "link", j->tap->name, "multi_queue, %u queues attached, %u detached", j->tap->tun_queues,
                   j->tap->tun_queues_off);
    cause_evidence(c, "trace", j->tap->name, "some frames were read from it, and of ours some never were");
    if (j->holder)
        cause_evidence(c, "fdinfo", j->tap->name, "held by process %d (%s)", j->holder->pid, j->holder->comm);
}

static uint64_t grown(uint64_t before, uint64_t after) {
    return after > before ? after - before : 0;
}

/* Whether the kernel told that a filter of the TAP took a question. ret_has_trace: it would have told. */
static bool filter_was_seen(const struct judge *j, bool *ret_has_trace) {
    *ret_has_trace = false;
    for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++) {
        const struct path *p = &j->paths[kind];
        *ret_has_trace = *ret_has_trace || p->has_trace;
        if (p->has_trace && p->out.dropped && str_starts(p->out.drop_location, "tun_net_xmit") &&
            strstr(p->out.drop_reason, "FILTER"))
            return true;
    }
    return false;
}

/* One that lets whole frames through is not what is wrong. A TUN counts what its filter takes as dropped; frames that it
 * cut are fewer bytes. */
static bool filter_is_suspect(const struct judge *j) {
    const struct probe_link_counters *before = j->t ? &j->t->tap_before.link : NULL;
    const struct probe_link_counters *after = j->t ? &j->t->tap_after.link : NULL;
    uint64_t given = 0, given_bytes = 0;
    bool has_trace;
    if (!before || !before->known || !after->known || filter_was_seen(j, &has_trace))
        return true;
    for (size_t i = 0; i < j->probe->frame_count; i++)
        if (j->probe->frames[i].ifindex == j->tap->index && j->probe->frames[i].outgoing) {
            given++;
            given_bytes += j->probe->frames[i].length;
        }
    uint64_t read = grown(before->tx_packets, after->tx_packets), bytes = grown(before->tx_bytes, after->tx_bytes);
    if (read == 0)
        return !has_trace && grown(before->tx_dropped, after->tx_dropped);
    return read >= given && bytes < given_bytes;
}

/* Frames that the VMM wrote: how many, and how many of them are well-formed, as only one writes that knows what stands in
 * front of a frame. */
static uint32_t frames_written(const struct judge *j, uint32_t *ret_whole) {
    const struct snapshot *after = j->host->after;
    uint32_t count = 0;
    *ret_whole = 0;
    for (uint32_t i = 0; after && i < after->heard_count; i++) {
        const struct snap_heard *h = &after->heard[i];
        if (h->link != j->tap->index || h->kind == SNAP_HEARD_ASKED)
            continue;
        count++;
        *ret_whole += h->kind != SNAP_HEARD_OTHER;
    }
    return count;
}

/* The holder's descriptor: a VMM hardly ever wants packet information. */
static void rule_descriptor(struct judge *j) {
    const struct snap_holder *h = j->holder;
    bool pi = j->tap->tun_pi || (h && h->details && !(h->tun_flags & IFF_NO_PI));
    uint32_t whole, written = frames_written(j, &whole);
    if (h && pi && !whole) {
        struct cause *c = cause_add(j, "tap.packet-info", 0, FLOWS_GUEST,
                                    "%s was opened with packet information (no IFF_NO_PI) by process %d (%s)",
                                    j->tap->name, h->pid, h->comm);
        if (!c)
            return;
        cause_evidence(c, "link", j->tap->name, "pi is on: 4 bytes stand in front of each frame");
        c->seen = written > 0;
    }
    if (h && h->filtered && filter_is_suspect(j)) {
        struct cause *c = cause_add(j, "tap.filter", 0, FLOWS_GUEST, "process %d (%s) attached a socket filter to %s",
                                    h->pid, h->comm, j->tap->name);
        cause_evidence(c, "fdinfo", j->tap->name, "a filter is attached to the TAP (TUNATTACHFILTER)");
    }
}

static void rule_stopped(struct judge *j) {
    const struct snap_holder *h = j->holder;
    if (!h || h->gone)
        return;
    bool stopped = h->state == 'T' || h->state == 't' || (h->threads && h->threads_stopped == h->threads);
    if (!stopped && !h->frozen && h->state != 'Z')
        return;
    struct cause *c = cause_add(j, "vmm.stalled", FLOWS_GUEST, 0, "the VMM of %s, process %d (%s), is %s", j->tap->name,
                                h->pid, h->comm,
                                h->frozen         ? "frozen"
                                : h->state == 't' ? "stopped by a debugger"
                                : h->state == 'Z' ? "dead"
                                                  : "stopped");
    cause_evidence(c, "proc", "stat", "process %d is in state %c, %u of %u threads are stopped%s", h->pid, h->state,
                   h->threads_stopped, h->threads, h->frozen ? ", its cgroup is frozen" : "");
    cause_plan(c, h->frozen ? "thaw the cgroup of process %d" : "kill -CONT %d", h->pid);
}

/* The kernel told of a drop by XDP there, of ARP or IPv4. */
static bool xdp_was_seen_to_drop(const struct judge *j, const struct snap_link *link) {
    const struct trace_result *trace = j->probe ? j->probe->trace : NULL;
    for (size_t i = 0; trace && i < trace->event_count; i++) {
        const struct trace_event *e = &trace->events[i];
        const struct trace_stack *stack = e->stack >= 0 ? &trace->stacks[e->stack] : NULL;
        if (e->kind == TRACE_DROPPED && strcmp(e->dev, link->name) == 0 && e->protocol != ETH_P_IPV6 &&
            strcmp(trace_hook_of(e, stack), "xdp") == 0)
            return true;
    }
    return false;
}

/* What came in on a device is captured behind its XDP program. */
static uint32_t frames_behind_xdp(const struct judge *j, const struct snap_link *link) {
    const struct snapshot *after = j->host->after;
    uint32_t count = 0;
    for (size_t i = 0; i < j->probe->frame_count; i++)
        count += j->probe->frames[i].ifindex == link->index && !j->probe->frames[i].outgoing;
    for (uint32_t i = 0; after && i < after->heard_count; i++)
        count += after->heard[i].link == link->index && after->heard[i].kind != SNAP_HEARD_ASKED;
    return count;
}

/* Most programs count, or steer, and let pass. One is suspected where the kernel told of its drops, or where nothing at
 * all is seen behind it though something came in. A TUN counts what a native one drops as dropped, and not as received. */
static bool xdp_is_suspect(const struct judge *j, const struct snap_link *link, bool *ret_seen) {
    const struct snap_link *after = judge_after(j, link);
    uint64_t dropped = after ? grown(link->rx_dropped, after->rx_dropped) : 0;
    uint64_t came = after ? grown(link->rx_packets, after->rx_packets) + dropped : 0;
    if (!j->probe)
        return false;
    *ret_seen = xdp_was_seen_to_drop(j, link);
    if (*ret_seen || frames_behind_xdp(j, link))
        return *ret_seen || (link == j->tap && link->xdp_mode != XDP_ATTACHED_SKB && dropped);
    *ret_seen = link == j->tap && came;
    return link != j->tap || came;
}

static void rule_xdp(struct judge *j) {
    const struct {
        const struct snap_link *link;
        const char *id;
        uint32_t flows;
    } places[] = {
        {j->tap, "tap.xdp-drop", FLOWS_GUEST},
        {j->bridge, "bridge.xdp-drop", FLOWS_HOST | FLOWS_TO_HOST | FLOWS_EGRESS},
        {judge_uplink(j), "host.uplink-xdp", FLOWS_EGRESS},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const struct snap_link *link = places[i].link;
        bool seen = false;
        if (!link || !link->xdp_prog || (i == 2 && (link == j->bridge || link == j->tap)) ||
            !xdp_is_suspect(j, link, &seen))
            continue;
        const struct snap_prog *prog = snap_prog_get(j->s, link->xdp_prog);
        struct cause *c = cause_add(j, places[i].id, 0, places[i].flows, "XDP program %u \"%s\" on %s", link->xdp_prog,
                                    prog ? prog->name : "?", link->name);
        cause_evidence(c, "xdp", link->name, "program %u, name \"%s\", tag %s, attached as %s", link->xdp_prog,
                       prog ? prog->name : "?", prog ? prog->tag : "?",
                       link->xdp_mode == XDP_ATTACHED_SKB ? "generic" : "native");
        if (c)
            c->seen = seen;
        if (seen)
            cause_evidence(c, "counters", link->name, "%s",
                           frames_behind_xdp(j, link) ? "the kernel told of frames that it dropped"
                                                      : "frames came in, none was seen behind the program");
        cause_step(c, REPAIR_LINK_XDP_OFF, link->name);
    }
}

static void rule_collision(struct judge *j) {
    const struct snap_vm *first = NULL;
    for (uint32_t i = 0; i < j->s->vms_count; i++) {
        const struct snap_vm *vm = &j->s->vms[i];
        if (strcmp(vm->tap, j->target->tap) != 0)
            continue;
        if (!first) {
            first = vm;
            continue;
        }
        struct cause *c = cause_add(j, "tap.name-collision", 0, FLOWS_GUEST, "two VMs claim %s: %s and %s",
                                    j->target->tap, first->id, vm->id);
        if (!c)
            return;
        cause_evidence(c, "record", first->id, "its TAP is %s", j->target->tap);
        cause_evidence(c, "record", vm->id, "its TAP is %s too", j->target->tap);
        c->kills = FLOWS_GUEST;
        c->refutable = false;
        c->policy = true;
        return;
    }
}

void rules_links(struct judge *j) {
    rule_collision(j);
    if (!j->tap) {
        rule_missing(j);
        return;
    }
    rule_down(j);
    rule_master(j);
    rule_carrier(j);
    rule_queue(j);
    rule_unread_queue(j);
    rule_descriptor(j);
    rule_stopped(j);
    rule_xdp(j);
}
