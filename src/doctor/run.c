#include <errno.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "doctor/collect/collect.h"
#include "doctor/doctor.h"
#include "doctor/guests.h"
#include "doctor/rules/judge.h"
#include "netlink/netns.h"

#define TARGETS_MAX PROBE_TARGETS_MAX
#define MANY 24 /* more targets than this are asked the plain questions only */
#define WORLD 0x08080808U
#define BUSY_FRAMES 2000 /* on a TAP during the probe */
#define BUSY_AGAIN 3
#define VMMS_MAX 8        /* that are asked what ails them */
#define ELSEWHERE_MAX 8   /* TAPs that are looked for in other namespaces */
#define TURN_WAIT_MS 5000 /* for another doctor: it needs 2 s at most, or a sweep's time */

void doctor_case_free(struct doctor_case *c) {
    if (!c)
        return;
    for (uint32_t i = 0; c->judgements && i < c->count; i++)
        judgement_free(&c->judgements[i]);
    free(c->judgements);
    free(c->targets);
    free(c->probe_indexes);
    probe_result_free(c->probe);
    snapshot_free(c->before);
    snapshot_free(c->after);
    free(c);
}

void doctor_case_freep(struct doctor_case **c) {
    doctor_case_free(*c);
}

/* --- whom to look at --- */

static bool is_learned(const struct snap_fdb *fdb, const struct snap_link *tap) {
    return fdb->link == tap->index && fdb->master && !(fdb->state & NUD_PERMANENT);
}

/* Without a record: the MAC that the bridge learned behind the TAP, and the address that the host knows for it. */
static void guess_guest(const struct snapshot *s, struct target *target) {
    const struct snap_link *tap = snap_link_by_name(s, target->tap);
    for (uint32_t i = 0; tap && i < s->fdbs_count; i++) {
        if (!is_learned(&s->fdbs[i], tap))
            continue;
        for (uint32_t n = 0; n < s->neighs_count && !target->ip; n++) {
            const struct snap_neigh *neigh = &s->neighs[n];
            if (neigh->has_mac && neigh->link == tap->master && !(neigh->flags & NTF_PROXY) &&
                memcmp(&neigh->mac, &s->fdbs[i].mac, sizeof neigh->mac) == 0)
                target->ip = neigh->ip;
        }
    }
}

static void take_record(const struct snap_vm *vm, struct target *target) {
    str_copy(target->vm_id, sizeof target->vm_id, vm->id);
    str_copy(target->bridge, sizeof target->bridge, vm->bridge);
    target->bridge_given = *vm->bridge != '\0';
    target->ip = vm->ip;
    target->ip_given = vm->ip != 0;
    target->mac = vm->mac;
    target->has_mac = target->mac_given = true;
    target->port = vm->port;
}

static int add_target(struct doctor_case *c, const char *tap, const struct doctor_options *o, bool named) {
    struct target *grown = reallocarray(c->targets, c->count + 1, sizeof *grown);
    if (!grown)
        return -ENOMEM;
    c->targets = grown;
    struct target *target = &grown[c->count++];
    *target = (struct target){.named = named, .bridge_given = *o->bridge != '\0'};
    str_copy(target->tap, sizeof target->tap, tap);
    str_copy(target->bridge, sizeof target->bridge, c->before->host.bridge);
    const struct snap_vm *vm = snap_vm_of_tap(c->before, tap);
    if (vm)
        take_record(vm, target);
    if (named && *o->bridge) {
        str_copy(target->bridge, sizeof target->bridge, o->bridge);
        target->bridge_given = true;
    }
    if (named && o->guest_ip) {
        target->ip = o->guest_ip;
        target->ip_given = true;
    }
    if (named && o->has_mac) {
        target->mac = o->guest_mac;
        target->has_mac = target->mac_given = true;
    }
    if (named && o->guest_port)
        target->port = o->guest_port;
    if (!target->ip)
        guess_guest(c->before, target);
    return 0;
}

/* Put to rest, or on its way to it or back: it has no TAP, and misses none. */
static bool is_away(const struct snap_vm *vm) {
    return strcmp(vm->state, "hibernated") == 0 || strcmp(vm->state, "hibernating") == 0 ||
           strcmp(vm->state, "resuming") == 0;
}

/* Its TAP comes to the bridge last; a VM that waits until somebody takes it has one that is a port of nothing all the while. */
static bool is_being_made(const struct snap_vm *vm) {
    return strcmp(vm->state, "creating") == 0;
}

static int find_vm(struct doctor_case *c, const struct doctor_options *o, struct err *err) {
    const struct snap_vm *found = NULL;
    for (uint32_t i = 0; i < c->before->vms_count; i++) {
        const struct snap_vm *vm = &c->before->vms[i];
        if (!str_starts(vm->id, o->vm) && !(str_starts(vm->id, "vm-") && str_starts(vm->id + 3, o->vm)))
            continue;
        if (found)
            return err_set(err, ENOTUNIQ, "vm.ambiguous", "more than one VM's id begins with %s", o->vm);
        found = vm;
    }
    if (!found) {
        err_set(err, ENOENT, "doctor.no-such-vm", "no living VM is recorded whose id begins with %s", o->vm);
        return err_hint(err, "--state-dir says where the controller keeps its records; --tap and --guest-ip need none");
    }
    if (is_away(found) && !snap_link_by_name(c->before, found->tap)) {
        err_set(err, EALREADY, "vm.hibernated", "VM %s is %s: it has no TAP until it is brought back", found->id,
                found->state);
        return err_hint(err, "mctl vm resume %s", found->id);
    }
    return add_target(c, found->tap, o, true) < 0 ? err_sys(err, ENOMEM, "doctor.failed", "find the VM") : 0;
}

static bool is_target(const struct doctor_case *c, const char *tap) {
    for (uint32_t i = 0; i < c->count; i++)
        if (strcmp(c->targets[i].tap, tap) == 0)
            return true;
    return false;
}

/* Every TAP of the bridge; TAPs of recorded VMs that have been made, wherever they are; and when the bridge has none at all,
 * those that are ports of nothing: it may have been made again. */
static int find_taps(struct doctor_case *c, const struct doctor_options *o) {
    const struct snapshot *s = c->before;
    uint32_t ports = 0;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < s->links_count && c->count < TARGETS_MAX; i++) {
        const struct snap_link *link = &s->links[i];
        bool port = link->is_tap && snap_is_port(link, s->host.bridge_index);
        const struct snap_vm *vm = link->is_tap && !port ? snap_vm_of_tap(s, link->name) : NULL;
        ports += port;
        if (port || (vm && !is_being_made(vm)))
            r = add_target(c, link->name, o, false);
    }
    for (uint32_t i = 0; r == 0 && ports == 0 && s->host.bridge_index && i < s->links_count; i++)
        if (s->links[i].is_tap && !s->links[i].master && !snap_vm_of_tap(s, s->links[i].name) &&
            str_starts(s->links[i].name, "fc-vm-") && c->count < TARGETS_MAX)
            r = add_target(c, s->links[i].name, o, false);
    for (uint32_t i = 0; r == 0 && i < s->vms_count && c->count < TARGETS_MAX; i++)
        if (!snap_link_by_name(s, s->vms[i].tap) && s->vms[i].pid && !is_away(&s->vms[i]))
            r = add_target(c, s->vms[i].tap, o, false);
    for (uint32_t i = 0; r == 0 && i < o->keep_count && c->count < TARGETS_MAX; i++)
        if (!is_target(c, o->keep[i].tap))
            r = add_target(c, o->keep[i].tap, o, false);
    return r;
}

static bool can_be_a_vms(const struct doctor_case *c, const char *tap) {
    const struct snap_link *link = snap_link_by_name(c->before, tap);
    return !link || (!(link->flags & IFF_LOOPBACK) && strcmp(link->kind, "bridge") != 0);
}

static int find_targets(struct doctor_case *c, const struct doctor_options *o, struct err *err) {
    int r;
    if (*o->vm)
        r = find_vm(c, o, err);
    else if (*o->tap)
        r = can_be_a_vms(c, o->tap)
                ? add_target(c, o->tap, o, true)
                : err_set(err, ENOENT, "doctor.no-tap", "%s is there, and no VM can be behind it", o->tap);
    else
        r = find_taps(c, o);
    if (r == -ENOMEM)
        return err_sys(err, ENOMEM, "doctor.failed", "list the TAPs");
    return r;
}

/* TAPs that are not here may have been moved to another namespace. */
static void look_elsewhere(struct doctor_case *c, int nsfd) {
    int looked = 0;
    for (uint32_t i = 0; i < c->count && looked < ELSEWHERE_MAX; i++)
        if (!snap_link_by_name(c->before, c->targets[i].tap)) {
            collect_elsewhere(c->before, nsfd, c->targets[i].tap);
            looked++;
        }
}

/* --- asking --- */

static const struct snap_lookup *to_world(const struct snapshot *s) {
    for (uint32_t i = 0; i < s->lookups_count; i++)
        if (s->lookups[i].to == WORLD && !s->lookups[i].iif && !s->lookups[i].error)
            return &s->lookups[i];
    return NULL;
}

static struct net_prefix bridge_address(const struct snapshot *s, uint32_t guest) {
    struct net_prefix first = {0};
    for (uint32_t i = 0; i < s->addrs_count; i++) {
        struct net_prefix p = {s->addrs[i].ip, s->addrs[i].length};
        if (s->addrs[i].link != s->host.bridge_index)
            continue;
        if (guest && net_contains(p, guest))
            return p;
        if (!first.address)
            first = p;
    }
    return first;
}

static pid_t *threads_of(const struct snapshot *s, const char *tap, size_t *ret_count) {
    pid_t *threads = NULL;
    size_t count = 0;
    for (uint32_t i = 0; i < s->holders_count && count < 64; i++) {
        if (strcmp(s->holders[i].tap, tap) != 0 || s->holders[i].gone)
            continue;
        pid_t *grown = reallocarray(threads, count + 1, sizeof *grown);
        if (!grown)
            break;
        threads = grown;
        threads[count++] = s->holders[i].pid;
    }
    *ret_count = count;
    return threads;
}

static int fill_targets(struct doctor_case *c, struct probe_target *asked) {
    int n = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        const struct target *t = &c->targets[i];
        const struct snap_link *tap = snap_link_by_name(c->before, t->tap);
        struct probe_target *p = &asked[n];
        c->probe_indexes[i] = -1;
        if (!t->ip && !tap)
            continue;
        c->probe_indexes[i] = n++;
        *p = (struct probe_target){.tap = tap ? tap->index : 0,
                                   .guest_ip = t->ip,
                                   .has_mac = t->has_mac,
                                   .guest_mac = t->mac,
                                   .port = t->port};
        str_copy(p->tap_name, sizeof p->tap_name, t->tap);
        p->threads = threads_of(c->before, t->tap, &p->thread_count);
    }
    return n;
}

static size_t fill_taken(const struct doctor_case *c, uint32_t *taken, size_t max) {
    size_t n = 0;
    for (uint32_t i = 0; i < c->count && n < max; i++)
        if (c->targets[i].ip)
            taken[n++] = c->targets[i].ip;
    for (uint32_t i = 0; i < c->before->neighs_count && n < max; i++)
        taken[n++] = c->before->neighs[i].ip;
    for (uint32_t i = 0; i < c->before->vms_count && n < max; i++)
        taken[n++] = c->before->vms[i].ip;
    for (uint32_t i = 0; i < c->before->addrs_count && n < max; i++)
        taken[n++] = c->before->addrs[i].ip;
    return n;
}

static void describe_bridge(const struct doctor_case *c, struct probe_request *request) {
    const struct snapshot *s = c->before;
    const struct snap_link *bridge = snap_link_by_index(s, s->host.bridge_index);
    const struct snap_lookup *world = to_world(s);
    if (bridge) {
        request->bridge = bridge->index;
        str_copy(request->bridge_name, sizeof request->bridge_name, bridge->name);
        request->bridge_address = bridge_address(s, c->count ? c->targets[0].ip : 0);
        request->bridge_mtu = bridge->mtu;
        request->bridge_stp = snap_bridge_attr(s, bridge, IFLA_BR_STP_STATE, 0) != 0;
        for (uint32_t i = 0; i < s->links_count; i++)
            request->bridge_ports += snap_is_port(&s->links[i], bridge->index);
    }
    if (world && world->link != s->host.bridge_index) {
        request->egress_to = world->gateway;
        request->egress_ifindex = world->link;
    }
}

/* To the targets, and to the other TAPs of the bridge: who answers in whose place. */
static struct heard *listen_in(struct doctor_case *c, int nsfd) {
    struct heard_tap taps[32];
    size_t count = 0, max = sizeof taps / sizeof *taps, targets;
    const struct snapshot *s = c->before;
    for (uint32_t i = 0; i < c->count && count < max; i++) {
        const struct snap_link *tap = snap_link_by_name(s, c->targets[i].tap);
        if (tap)
            taps[count++] = (struct heard_tap){tap->index, c->targets[i].has_mac, c->targets[i].mac};
    }
    targets = count;
    for (uint32_t i = 0; i < s->links_count && count < max; i++) {
        bool known = !s->links[i].is_tap || !snap_is_port(&s->links[i], s->host.bridge_index);
        for (size_t t = 0; !known && t < targets; t++)
            known = taps[t].link == s->links[i].index;
        if (!known)
            taps[count++] = (struct heard_tap){.link = s->links[i].index};
    }
    return heard_open(c->before, nsfd, taps, count);
}

static bool somebody_is_silent(const struct doctor_case *c) {
    for (size_t i = 0; c->probe && i < c->probe->target_count; i++)
        if (c->probe->targets[i].answer[PROBE_ARP].asked && !c->probe->targets[i].answer[PROBE_ARP].answered)
            return true;
    return false;
}

/* What could not be asked stays without an answer: the state is judged all the same. */
static void ask(struct doctor_case *c, const struct doctor_options *o, int nsfd) {
    struct probe_target *asked = calloc(c->count ? c->count : 1, sizeof *asked);
    uint32_t *taken = calloc(65536, sizeof *taken);
    int n = asked && taken ? fill_targets(c, asked) : 0;
    if (n > 0) {
        struct probe_request request = {.nsfd = nsfd,
                                        .targets = asked,
                                        .target_count = (size_t)n,
                                        .no_trace = o->no_trace,
                                        .light = n > MANY,
                                        .taken = taken,
                                        .taken_count = fill_taken(c, taken, 65536)};
        describe_bridge(c, &request);
        if (probe_run(&request, &c->probe, &c->probe_error) < 0)
            c->probe = NULL;
        else
            c->probe_error.errnum = 0;
    }
    for (int i = 0; i < n; i++)
        free((void *)asked[i].threads);
    free(asked);
    free(taken);
}

int doctor_case_judge(struct doctor_case *c, struct err *err) {
    struct judge_host host;
    for (uint32_t i = 0; c->judgements && i < c->count; i++)
        judgement_free(&c->judgements[i]);
    free(c->judgements);
    c->judgements = calloc(c->count ? c->count : 1, sizeof *c->judgements);
    if (!c->judgements || judge_open(c->before, c->after, c->probe, &host) < 0)
        return err_sys(err, ENOMEM, "doctor.failed", "judge");
    host.disabled = c->disabled;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < c->count; i++)
        r = judge_target(&host, &c->targets[i], c->probe_indexes[i], &c->judgements[i]);
    judge_close(&host);
    return r < 0 ? err_sys(err, -r, "doctor.failed", "judge") : 0;
}

/* Guests that answer the host: do they know a way to the outside? Only where there is one, made for them. */
static void ask_from_beyond(const struct doctor_case *c, struct heard *heard) {
    const struct snapshot *s = c->before;
    const struct snap_lookup *world = to_world(s);
    int asked = 0;
    bool forwards = snap_sysctl_int(s, "net/ipv4/ip_forward", 0) != 0;
    for (uint32_t i = 0; world && forwards && world->link != s->host.bridge_index && i < c->count && asked < 4; i++) {
        const struct snap_link *tap = snap_link_by_name(s, c->targets[i].tap);
        int at = c->probe_indexes[i];
        if (!c->probe || at < 0 || !tap)
            continue;
        const struct probe_answer *arp = &c->probe->targets[at].answer[PROBE_ARP];
        if (c->probe->targets[at].answer[PROBE_ICMP].answered && arp->mac_count == 1) {
            heard_beyond(heard, s, tap->index, arp->macs[0], c->targets[i].ip);
            asked++;
        }
    }
}

/* Where nothing comes back from the outside, the gateway is a witness: does it answer ARP, and the host's own ping? One
 * that ignores pings tells nothing of those that a VM sends. */
static void ask_gateway(const struct doctor_case *c, int nsfd) {
    const struct snap_lookup *world = to_world(c->before);
    const struct probe_answer *egress = c->probe ? probe_answer(c->probe, 0, PROBE_EGRESS) : NULL;
    const struct snap_link *uplink = world ? snap_link_by_index(c->before, world->link) : NULL;
    if (!egress || !egress->asked || egress->answered || !uplink || !world->gateway || !(uplink->flags & IFF_UP) ||
        (uplink->flags & IFF_NOARP))
        return;
    heard_who_has(c->after, nsfd, uplink, world->source, world->gateway);
    heard_ping(c->after, nsfd, uplink, world->gateway);
}

/* The VMMs of VMs that do not answer, or that are asked for where nothing is sent, are asked themselves. */
static void ask_vmms(struct doctor_case *c, const char *state_dir) {
    c->before->vmms_count = 0;
    for (uint32_t i = 0; i < c->count && c->before->vmms_count < VMMS_MAX; i++) {
        int at = c->probe_indexes[i];
        const struct probe_answer *arp = c->probe && at >= 0 ? &c->probe->targets[at].answer[PROBE_ARP] : NULL;
        if (arp ? arp->asked && !arp->answered : c->targets[i].named)
            collect_vmm(c->before, c->targets[i].tap, state_dir);
    }
}

/* Asks, collects again, judges. */
static int examine(struct doctor_case *c, const struct doctor_options *o, int nsfd, struct collect_options collect,
                   struct err *err) {
    struct heard *heard = listen_in(c, nsfd);
    probe_result_free(c->probe);
    c->probe = NULL;
    ask(c, o, nsfd);
    ask_from_beyond(c, heard);
    if (somebody_is_silent(c)) /* one who just booted may have had no address when it was asked */
        heard_again(heard, c->before);
    snapshot_free(c->after);
    c->after = NULL;
    collect.light = true;
    int r = collect_snapshot(&collect, &c->after, err);
    heard_take(heard, c->after);
    if (r == 0) {
        ask_gateway(c, nsfd);
        ask_vmms(c, o->state_dir);
        doctor_ask_guests(c, o->socket, c->after);
    }
    return r < 0 ? r : doctor_case_judge(c, err);
}

/* A TAP that carried much else while we asked may have lost our few frames by chance; and of a storm not every frame could
 * be kept, so that what was not seen may have been there. */
static bool was_too_busy(const struct doctor_case *c) {
    for (uint32_t i = 0; i < c->count; i++) {
        const struct judgement *j = &c->judgements[i];
        int at = c->probe_indexes[i];
        if (j->reachable != 0 || !c->probe || at < 0)
            continue;
        if (c->probe->capture_lost || c->probe->frames_truncated)
            return true;
        const struct probe_link_counters *before = &c->probe->targets[at].tap_before.link;
        const struct probe_link_counters *after = &c->probe->targets[at].tap_after.link;
        uint64_t frames = after->tx_packets - before->tx_packets + after->rx_packets - before->rx_packets;
        if (before->known && after->known && frames > BUSY_FRAMES)
            return true;
    }
    return false;
}

/* A bridge that is gone is a finding where a VM is asked about; a device that is no bridge is a mistake. */
static bool is_bridge_to_look_at(const struct snapshot *s, const struct doctor_options *o) {
    const struct snap_link *link = snap_link_by_name(s, o->bridge);
    if (link)
        return strcmp(link->kind, "bridge") == 0;
    return *o->tap || *o->vm || snap_gap_of(s, "links");
}

/* With what there is instead. */
static int no_such_bridge(const struct snapshot *s, const struct doctor_options *o, struct err *err) {
    struct strbuf there = {.max = 160};
    for (uint32_t i = 0; i < s->links_count; i++)
        if (strcmp(s->links[i].kind, "bridge") == 0)
            strbuf_addf(&there, "%s%s", there.len ? ", " : "", s->links[i].name);
    err_set(err, ENOENT, "doctor.no-such-bridge", "there is %s \"%s\" %s%s",
            snap_link_by_name(s, o->bridge) ? "a device, but no bridge" : "no bridge", o->bridge,
            *o->netns ? "in network namespace " : "here", o->netns);
    if (there.len)
        err_hint(err, "there is: %s", there.data);
    else
        err_hint(err, "there is no bridge at all; --netns NAME looks into another network namespace");
    strbuf_free(&there);
    return -ENOENT;
}

int doctor_run(const struct doctor_options *o, struct doctor_case **ret, struct err *err) {
    int64_t began_ms = time_monotonic_ms();
    _cleanup_close_ int nsfd = -1;
    int r = netns_open(o->netns, &nsfd, err);
    if (r == -ENOENT)
        err_hint(err, "ip netns list shows those that there are");
    if (r < 0)
        return r;
    _cleanup_doctor_case_ struct doctor_case *c = calloc(1, sizeof *c);
    if (!c)
        return err_sys(err, ENOMEM, "doctor.failed", "begin");
    c->disabled = o->disabled;
    struct collect_options collect = {.nsfd = nsfd,
                                      .netns = o->netns,
                                      .bridge = o->bridge,
                                      .tap = o->tap,
                                      .ips = &o->guest_ip,
                                      .ip_count = o->guest_ip != 0,
                                      .state_dir = o->state_dir};
    /* One that holds its turn and does not end (stopped, say) costs the time, not the answer. */
    _cleanup_close_ int turn = -1;
    if (!o->no_probe)
        probe_turn_take(nsfd, TURN_WAIT_MS, &turn);
    r = collect_snapshot(&collect, &c->before, err);
    if (r < 0)
        return r;
    if (*o->bridge && !is_bridge_to_look_at(c->before, o))
        return no_such_bridge(c->before, o, err);
    r = find_targets(c, o, err);
    if (r < 0)
        return r;
    look_elsewhere(c, nsfd);
    c->probe_indexes = calloc(c->count ? c->count : 1, sizeof *c->probe_indexes);
    if (!c->probe_indexes)
        return err_sys(err, ENOMEM, "doctor.failed", "begin");
    for (uint32_t i = 0; i < c->count; i++)
        c->probe_indexes[i] = -1;
    c->wanted_probe = !o->no_probe;
    if (o->no_probe)
        ask_vmms(c, o->state_dir);
    doctor_ask_guests(c, o->socket, c->before);
    r = o->no_probe ? doctor_case_judge(c, err) : examine(c, o, nsfd, collect, err);
    for (int again = 0; r == 0 && again < BUSY_AGAIN && was_too_busy(c); again++)
        r = examine(c, o, nsfd, collect, err);
    if (r < 0)
        return r;
    c->duration_ms = time_monotonic_ms() - began_ms;
    *ret = c;
    c = NULL;
    return 0;
}

/* --- the verdict --- */

bool doctor_is_healthy(const struct doctor_case *c) {
    for (uint32_t i = 0; i < c->count; i++)
        for (uint32_t f = 0; f < c->judgements[i].findings_count; f++)
            if (c->judgements[i].findings[f].role == ROLE_ROOT_CAUSE)
                return false;
    return true;
}

static bool all_repaired(const struct doctor_case *c) {
    for (uint32_t i = 0; i < c->count; i++)
        for (uint32_t f = 0; f < c->judgements[i].findings_count; f++)
            if (c->judgements[i].findings[f].role == ROLE_ROOT_CAUSE && c->judgements[i].findings[f].proven != 1)
                return false;
    return true;
}

/* Whether anything that was to be asked could be asked. */
static bool was_blind(const struct doctor_case *c) {
    return c->wanted_probe && (c->probe_error.errnum || snap_gap_of(c->before, "links"));
}

int doctor_exit_status(const struct doctor_case *c) {
    if (!doctor_is_healthy(c))
        return all_repaired(c) ? 11 : 10;
    return was_blind(c) ? 1 : 0;
}
