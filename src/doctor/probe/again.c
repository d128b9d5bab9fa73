/* A second look at the kernel's own ARP. Our questions make the guest ask for the host, and its request fills the host's
 * neighbour table: an ARP that is dead from the host's side is healed for a while, and everything else is answered. So an
 * entry that was not there before is taken away again, and the kernel has to ask by itself.
 *
 * Only an entry of our own making is touched: what was there before stays. An answer puts it into the state reachable, a
 * request of the guest's own only into stale. */
#include <linux/neighbour.h>

#include "doctor/probe/run.h"
#include "netlink/neigh.h"

#define LOOKS 3 /* one frame may be lost by chance */
#define LOOK_MS 200

#define UNANSWERED (NUD_INCOMPLETE | NUD_FAILED | NUD_NONE)

static bool is_asked(const struct run *run, size_t i) {
    const struct probe_target_result *target = &run->result->targets[i];
    const struct probe_answer *icmp = &target->answer[PROBE_ICMP];
    return target->target.guest_ip && !target->neighbour_before.has_mac && icmp->answered &&
           target->answer[PROBE_ARP].answered && run->request->bridge;
}

/* Return: whether somebody has to be asked still. */
static bool look(struct run *run, bool first) {
    bool open = false;
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct probe_neighbour now = {0};
        if (!is_asked(run, i) || run->second[i] == SECOND_GOOD)
            continue;
        if (kernel_neighbour(run->rtnl, run->request->targets[i].guest_ip, run->request->bridge, false, &now) < 0)
            continue;
        if (now.state & NUD_REACHABLE)
            run->second[i] = SECOND_GOOD;
        else if (!first && now.has_mac)
            run->second[i] = SECOND_UNCLEAR;
        open = open || run->second[i] != SECOND_GOOD;
    }
    return open;
}

static void ask(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        uint32_t ip = run->request->targets[i].guest_ip;
        if (!is_asked(run, i) || run->second[i] == SECOND_GOOD)
            continue;
        if (neigh_delete(run->rtnl, run->request->bridge, ip, NULL) < 0)
            continue;
        if (run->second[i] == SECOND_NONE)
            run->second[i] = SECOND_DEAD;
        run_ask_echo(run, i, PROBE_ARP_KERNEL, ip, 1, ECHO_PAYLOAD);
    }
}

void run_stage_again(struct run *run) {
    if (!look(run, true)) /* the kernel's own question was answered */
        return;
    for (int n = 0; n < LOOKS && look(run, n == 0); n++) {
        ask(run);
        int64_t end_ns = run_now_ns() + LOOK_MS * 1000000LL;
        while (look(run, false) && run_now_ns() < end_ns)
            run_pump(run, 3);
    }
}
