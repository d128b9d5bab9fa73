/* Echo requests that show what a guest knows: probe_hint. They go to its MAC by a frame of ours, so that neither the
 * host's routes nor its neighbour table have a say, and no ARP comes before them. */
#include <linux/neighbour.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/probe/run.h"
#include "netlink/addr.h"

static void send_hint(struct run *run, size_t target, struct probe_hint *hint, unsigned int id, struct net_mac to) {
    uint8_t frame[FRAME_MAX];
    struct frame_ends ends = run_ends_to(run, to, run->request->targets[target].guest_ip);
    ends.source_ip = hint->from;
    size_t length =
        frame_echo(frame, &ends, 8, (uint16_t)(run->tagger.id_base | id), (uint16_t)++hint->sends, ECHO_PAYLOAD);
    hint->asked = true;
    run_send_packet(run, frame, length);
    if (run->trace)
        trace_poll(run->trace);
}

static void why(struct probe_hint *hint, const char *text) {
    str_copy(hint->why_not, sizeof hint->why_not, text);
}

/* What is known before anything was asked: as told, or the host's own entry, unless somebody has fixed that. */
static bool mac_beforehand(const struct probe_target_result *target, struct net_mac *ret) {
    bool fixed = target->neighbour_before.state & (NUD_PERMANENT | NUD_NOARP);
    *ret = target->target.has_mac ? target->target.guest_mac : target->neighbour_before.mac;
    return target->target.has_mac || (target->neighbour_before.has_mac && !fixed);
}

static bool can_send(const struct run *run, size_t target, struct probe_hint *hint) {
    if (run->packet >= 0 && run->capture >= 0 && run->request->bridge && run->request->targets[target].guest_ip &&
        run->request->targets[target].tap)
        return true;
    why(hint, "no packet socket, no bridge, no TAP or no address");
    return false;
}

static bool first_is_open(const struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        const struct probe_hint *hint = &run->result->targets[i].first;
        if (hint->asked && hint->answers == 0)
            return true;
    }
    return false;
}

void run_stage_first(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct probe_hint *hint = &run->result->targets[i].first;
        struct net_mac mac;
        hint->from = run->request->bridge_address.address;
        if (!can_send(run, i, hint))
            continue;
        if (!hint->from)
            why(hint, "the bridge has no address");
        else if (!mac_beforehand(&run->result->targets[i], &mac))
            why(hint, "the guest's MAC was not known");
        else
            send_hint(run, i, hint, ID_FIRST, mac);
    }
    int64_t end_ns = run_now_ns() + STAGE_MS * 1000000LL;
    while (first_is_open(run) && run_now_ns() < end_ns)
        run_pump(run, 2);
}

/* An address of the host to which no guest has a route of its own: the answer comes back to us and goes no further. */
static uint32_t find_outside(const struct run *run) {
    struct addr *addrs = NULL;
    size_t count = 0;
    uint32_t found = 0;
    if (addr_dump(run->rtnl, &addrs, &count, NULL) < 0)
        return 0;
    for (size_t i = 0; i < count && !found; i++) {
        uint32_t ip = addrs[i].prefix.address, top = ip >> 24;
        bool near = net_overlaps(addrs[i].prefix, run->request->bridge_address);
        bool usable = top != 127 && top != 0 && top < 224 && ip >> 16 != 0xa9fe; /* loopback, multicast, link-local */
        if (addrs[i].link != run->request->bridge && usable && !near)
            found = ip;
    }
    free(addrs);
    return found;
}

void run_stage_outside(struct run *run) {
    run->outside = run->request->bridge_address.address ? find_outside(run) : 0;
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct probe_hint *hint = &run->result->targets[i].outside;
        struct net_mac mac;
        hint->from = run->outside;
        if (!can_send(run, i, hint))
            continue;
        if (!run->outside)
            why(hint, "the host has no address beyond the bridge's network");
        else if (!run_answer(run, i, PROBE_ICMP)->answered)
            why(hint, "it does not answer from within");
        else if (run_guest_mac(run, i, &mac))
            send_hint(run, i, hint, ID_OUTSIDE, mac);
    }
    run->outside_ns = run_now_ns();
}

bool run_outside_is_open(struct run *run) {
    int64_t waited_ms = (run_now_ns() - run->outside_ns) / 1000000;
    bool open = false;
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct probe_hint *hint = &run->result->targets[i].outside;
        struct net_mac mac;
        if (!hint->asked || hint->answers)
            continue;
        if (hint->sends == 1 && waited_ms > OUTSIDE_AGAIN_MS && run_guest_mac(run, i, &mac))
            send_hint(run, i, hint, ID_OUTSIDE, mac);
        open |= waited_ms < OUTSIDE_MS;
    }
    return open;
}
