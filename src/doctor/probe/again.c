/* A second look at the kernel's own ARP. Our questions make the guest ask for the host, and its request and its answers to
 * us fill the host's neighbour table: an ARP that is dead from the host's side is healed for a while, and everything else
 * is answered. So where the kernel was not seen to ask it has to ask now, while nothing of ours is under way: an entry
 * that was not there before is taken away again, one that was is asked to be verified.
 *
 * An answer puts the entry into the state reachable, a request of the guest's own only into stale. */
#include <linux/neighbour.h>

#include "doctor/probe/run.h"
#include "netlink/neigh.h"

#define LOOKS 3 /* one frame may be lost by chance */
#define LOOK_MS 200
#define LOOK_SLOW_MS 800
#define AGAIN_SEQUENCE 9

static bool is_warm(const struct probe_target_result *target) {
    return target->neighbour_before.has_mac;
}

static bool is_asked(const struct run *run, size_t i) {
    const struct probe_target_result *target = &run->result->targets[i];
    const struct probe_neighbour *before = &target->neighbour_before;
    bool fixed = before->state & (NUD_PERMANENT | NUD_NOARP),
         elsewhere = before->has_mac && before->ifindex != run->request->bridge;
    return target->target.guest_ip && !fixed && !elsewhere && target->answer[PROBE_ICMP].answered &&
           target->answer[PROBE_ARP].answered && run->request->bridge && !run->result->capture_errno;
}

static bool was_seen_to_ask(const struct run *run, size_t i) {
    return run->result->targets[i].answer[PROBE_ARP_KERNEL].request_bridge.count > 0;
}

/* Return: whether somebody has to be asked still. */
static bool look(struct run *run) {
    bool open = false;
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct probe_neighbour now = {0};
        if (!is_asked(run, i) || run->second[i] == SECOND_GOOD)
            continue;
        kernel_neighbour(run->rtnl, run->request->targets[i].guest_ip, run->request->bridge, false, &now);
        bool asked = run->second[i] != SECOND_NONE || was_seen_to_ask(run, i);
        if (asked && (now.state & NUD_REACHABLE))
            run->second[i] = SECOND_GOOD;
        else if (run->second[i] != SECOND_NONE && now.has_mac &&
                 (!is_warm(&run->result->targets[i]) || was_seen_to_ask(run, i)))
            run->second[i] = SECOND_UNCLEAR;
        open = open || run->second[i] != SECOND_GOOD;
    }
    return open;
}

static void ask(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        const struct probe_target_result *target = &run->result->targets[i];
        struct probe_answer *arp = run_answer(run, i, PROBE_ARP_KERNEL);
        uint32_t ip = target->target.guest_ip;
        if (!is_asked(run, i) || run->second[i] == SECOND_GOOD)
            continue;
        int r = is_warm(target)
                    ? kernel_neighbour_set(run->rtnl, run->request->bridge, ip, target->neighbour_before.mac, NUD_PROBE)
                    : neigh_delete(run->rtnl, run->request->bridge, ip, NULL);
        if (r < 0)
            continue;
        if (run->second[i] == SECOND_NONE)
            run->second[i] = SECOND_DEAD;
        arp->asked = arp->sent = true;
        arp->sends++;
        if (!is_warm(target))
            run_ask_echo(run, i, PROBE_ICMP, ip, AGAIN_SEQUENCE, ECHO_PAYLOAD);
    }
}

void run_stage_again(struct run *run) {
    for (int n = 0; n < LOOKS && look(run); n++) {
        ask(run);
        int64_t end_ns = run_now_ns() + (run_is_slow(run) ? LOOK_SLOW_MS : LOOK_MS) * 1000000LL;
        while (look(run) && run_now_ns() < end_ns)
            run_pump(run, 3);
    }
}
