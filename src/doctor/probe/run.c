/* The run: stages of questions with a short wait after each, then waiting for whoever has not answered, until all have
 * or the deadline. Sends are one after the other and each is timed, so that the trace's events of our own thread can be
 * told apart by time alone. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/neighbour.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/probe/run.h"
#include "netlink/link.h"
#include "netlink/neigh.h"
#include "netlink/netns.h"

#define RAW_ICMP_FILTER 1 /* linux/icmp.h does not go together with netinet/ip_icmp.h */

void run_pump(struct run *run, int timeout_ms) {
    size_t n = 0;
    run->poll[n++] = (struct pollfd){.fd = run->capture, .events = POLLIN};
    run->poll[n++] = (struct pollfd){.fd = run->icmp, .events = POLLIN};
    run->poll[n++] = (struct pollfd){.fd = run->large, .events = POLLIN};
    run->poll[n++] = (struct pollfd){.fd = run->canary.fd, .events = POLLIN};
    for (size_t i = 0; i < run->request->target_count; i++)
        run->poll[n++] = (struct pollfd){.fd = run->tcp[i], .events = POLLOUT};
    poll(run->poll, n, timeout_ms);
    if (run->capture >= 0)
        run_read_capture(run);
    run_read_icmp(run, run->icmp);
    if (run->large >= 0)
        run_read_icmp(run, run->large);
    if (run->canary.fd >= 0)
        run_read_canary(run);
    for (size_t i = 0; i < run->request->target_count; i++)
        if (run->tcp[i] >= 0 && run->poll[4 + i].revents)
            run_read_tcp(run, i);
    if (run->trace)
        trace_poll(run->trace);
    run_canary_step(run);
}

static bool is_open(const struct probe_answer *answer) {
    return answer->asked && answer->sent && !answer->answered;
}

static bool all_answered(struct run *run, enum probe_kind kind) {
    if (kind >= PROBE_KIND_GUEST_COUNT)
        return !is_open(run_answer(run, 0, kind));
    for (size_t i = 0; i < run->request->target_count; i++)
        if (is_open(run_answer(run, i, kind)))
            return false;
    return true;
}

static void stage(struct run *run, enum probe_kind kind) {
    int64_t end_ns = run_now_ns() + STAGE_MS * 1000000LL;
    while (!all_answered(run, kind) && run_now_ns() < end_ns)
        run_pump(run, 2);
}

/* An entry that is there and not permanent is asked to be verified: the kernel sends its own who-has at once. */
static void stage_kernel_arp(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct probe_target_result *target = &run->result->targets[i];
        struct probe_answer *answer = run_answer(run, i, PROBE_ARP_KERNEL);
        const struct probe_neighbour *entry = &target->neighbour_before;
        if (!target->target.guest_ip || entry->ifindex != run->request->bridge) {
            run_why_not(answer, "no entry on the bridge: a send by the kernel's route asks for it");
            continue;
        }
        if (entry->state & (NUD_PERMANENT | NUD_NOARP)) {
            run_why_not(answer, "the neighbour entry is permanent: the kernel never asks");
            continue;
        }
        if (!entry->has_mac || !(entry->state & (NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE)))
            continue;
        int64_t from_ns = run_now_ns();
        int r = kernel_neighbour_set(run->rtnl, entry->ifindex, target->target.guest_ip, entry->mac, NUD_PROBE);
        run_note_sent(run, i, PROBE_ARP_KERNEL, from_ns, r);
    }
    int64_t end_ns = run_now_ns() + 4 * 1000000LL; /* the kernel's timer runs at its next tick */
    while (run_now_ns() < end_ns)
        run_pump(run, 1);
}

/* A broadcast is a copy for every port: a thousand questions to a thousand ports are a million frames. With many targets
 * only those are asked so whose MAC nobody knows. */
static struct net_mac arp_goes_to(struct run *run, size_t target) {
    struct net_mac mac;
    return run->request->light && run_guest_mac(run, target, &mac) ? mac : FRAME_BROADCAST;
}

/* Between many sends, so that nothing is lost to a full buffer. */
static void hear_now_and_then(struct run *run, size_t target) {
    if (target % 16 == 15)
        run_pump(run, 0);
}

static void stage_arp(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        if (!run->request->targets[i].guest_ip)
            run_why_not(run_answer(run, i, PROBE_ARP), "the guest's address is not known");
        else if (run->packet < 0 || !run->request->bridge)
            run_why_not(run_answer(run, i, PROBE_ARP), run->packet < 0 ? "no packet socket" : "there is no bridge");
        else
            run_ask_arp(run, i, PROBE_ARP, arp_goes_to(run, i));
        hear_now_and_then(run, i);
    }
    stage(run, PROBE_ARP);
}

static void stage_arp_unicast(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct net_mac mac;
        struct probe_answer *answer = run_answer(run, i, PROBE_ARP_UNICAST);
        if (!run->request->targets[i].guest_ip || run->packet < 0 || !run->request->bridge)
            run_why_not(answer, "as for the broadcast");
        else if (!run_guest_mac(run, i, &mac))
            run_why_not(answer, "the guest's MAC is not known");
        else
            run_ask_arp(run, i, PROBE_ARP_UNICAST, mac);
    }
    stage(run, PROBE_ARP_UNICAST);
}

static bool has_entry(const struct run *run, size_t target) {
    const struct probe_neighbour *entry = &run->result->targets[target].neighbour_before;
    return entry->has_mac && entry->ifindex == run->request->bridge;
}

/* With many targets the kernel's neighbour table (gc_thresh3: 1,024 entries) must not be filled by us: a guest that has no
 * entry is asked by a frame of our own, whose answer goes through the host's stack all the same. */
static void stage_icmp(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        uint32_t ip = run->request->targets[i].guest_ip;
        bool alive = run_answer(run, i, PROBE_ARP)->answered;
        if (ip && (!run->request->light || has_entry(run, i)))
            run_ask_echo(run, i, PROBE_ICMP, ip, 1, ECHO_PAYLOAD);
        else if (ip && alive)
            run_ask_echo_by_frame(run, i);
        else if (ip)
            run_why_not(run_answer(run, i, PROBE_ICMP), "ARP is not answered");
        hear_now_and_then(run, i);
    }
    stage(run, PROBE_ICMP);
}

static void stage_tcp(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        const struct probe_target *target = &run->request->targets[i];
        struct probe_answer *answer = run_answer(run, i, PROBE_TCP);
        bool alive = run_answer(run, i, PROBE_ARP)->answered || run_answer(run, i, PROBE_ICMP)->answered;
        if (!target->guest_ip || !target->port)
            run_why_not(answer, "no port is known");
        else if (run->request->light && !alive)
            run_why_not(answer, "nothing else was answered");
        else if (run->request->light && !has_entry(run, i))
            run_why_not(answer, "the host has no neighbour entry for it, and we make none for so many");
        else if (run->tcp_open >= TCP_MAX)
            run_why_not(answer, "too many connections at once");
        else
            run_ask_tcp(run, i);
    }
    stage(run, PROBE_TCP);
}

static void stage_large(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++)
        if (run->request->targets[i].guest_ip && run->large >= 0)
            run_ask_large(run, i);
        else
            run_why_not(run_answer(run, i, PROBE_LARGE), "no socket for it, or no address");
    stage(run, PROBE_LARGE);
}

static bool burst_is_open(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        const struct probe_answer *answer = run_answer(run, i, PROBE_BURST_ICMP);
        if (answer->asked && answer->answers < answer->sends)
            return true;
    }
    return false;
}

/* Of those that answer, and were not asked yet: an echo that was answered late, or the second time, is no reason to take
 * the way for good. */
static bool stage_burst(struct run *run) {
    bool asked = false;
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct probe_answer *burst = run_answer(run, i, PROBE_BURST_ICMP);
        if (burst->asked)
            continue;
        if (!run_answer(run, i, PROBE_ICMP)->answered) {
            run_why_not(burst, "not even the first was answered");
            continue;
        }
        burst->why_not[0] = '\0';
        asked = true;
        for (uint16_t n = 1; n <= PROBE_BURST; n++)
            run_ask_echo(run, i, PROBE_BURST_ICMP, run->request->targets[i].guest_ip, n, ECHO_PAYLOAD);
    }
    int64_t end_ns = run_now_ns() + STAGE_MS * 1000000LL;
    while (burst_is_open(run) && run_now_ns() < end_ns)
        run_pump(run, 2);
    return asked;
}

static void ask_raw_where_needed(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        const struct probe_answer *tcp = run_answer(run, i, PROBE_TCP);
        struct probe_answer *raw = run_answer(run, i, PROBE_TCP_RAW);
        struct net_mac mac;
        if (!is_open(tcp) || raw->asked || *raw->why_not)
            continue;
        if (run_now_ns() - tcp->sent_ns < RAW_AFTER_MS * 1000000LL)
            continue;
        if (run->packet >= 0 && run->request->bridge && run->request->bridge_address.address &&
            run_guest_mac(run, i, &mac))
            run_ask_tcp_raw(run, i);
        else
            run_why_not(raw, "the guest's MAC or the bridge's address is not known");
    }
}

static void ask_again(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct net_mac mac;
        uint32_t ip = run->request->targets[i].guest_ip;
        if (is_open(run_answer(run, i, PROBE_ARP)))
            run_ask_arp(run, i, PROBE_ARP, arp_goes_to(run, i));
        if (is_open(run_answer(run, i, PROBE_ARP_UNICAST)) && run_guest_mac(run, i, &mac))
            run_ask_arp(run, i, PROBE_ARP_UNICAST, mac);
        if (is_open(run_answer(run, i, PROBE_ICMP)) && (!run->request->light || has_entry(run, i)))
            run_ask_echo(run, i, PROBE_ICMP, ip, 2, ECHO_PAYLOAD);
        if (is_open(run_answer(run, i, PROBE_LARGE)))
            run_ask_echo(run, i, PROBE_LARGE, ip, 3, LARGE_PAYLOAD((size_t)run_answer(run, i, PROBE_LARGE)->size));
        if (is_open(run_answer(run, i, PROBE_CANARY_ARP)))
            run_canary_asks_arp(run, i, PROBE_CANARY_ARP, ip);
        if (is_open(run_answer(run, i, PROBE_CANARY_ICMP)) && run_guest_mac(run, i, &mac))
            run_canary_asks_echo(run, i, PROBE_CANARY_ICMP, mac, ip);
    }
    if (is_open(run_answer(run, 0, PROBE_CANARY_ARP_HOST)))
        run_canary_asks_arp(run, 0, PROBE_CANARY_ARP_HOST, run->request->bridge_address.address);
    if (is_open(run_answer(run, 0, PROBE_CANARY_ICMP_HOST)))
        run_canary_asks_echo(run, 0, PROBE_CANARY_ICMP_HOST, run->tagger.bridge_mac,
                             run->request->bridge_address.address);
    if (is_open(run_answer(run, 0, PROBE_EGRESS)))
        run_canary_asks_echo(run, 0, PROBE_EGRESS, run->tagger.bridge_mac, run->request->egress_to);
    if (is_open(run_answer(run, 0, PROBE_HOST_ICMP_CANARY)))
        run_ask_echo(run, 0, PROBE_HOST_ICMP_CANARY, run->canary.ip, 2, ECHO_PAYLOAD);
    run->retried = true;
}

static bool anything_open(struct run *run) {
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
        if (kind != PROBE_ARP_KERNEL && !all_answered(run, (enum probe_kind)kind))
            return true;
    return burst_is_open(run) || run_canary_is_busy(run);
}

/* A guest that takes its time for an ARP takes it for the rest as well: it is busy, or its host is. */
bool run_is_slow(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        const struct probe_answer *arp = run_answer(run, i, PROBE_ARP);
        if (arp->answered && arp->rtt_us > SLOW_US)
            return true;
    }
    return false;
}

/* Where many answer, as long as answers come. */
static int64_t end_of(struct run *run) {
    int64_t more_ns = run->answered_ns + STILL_MS * 1000000LL, most_ns = run->began_ns + LIGHT_MS * 1000000LL;
    if (!run->request->light && run_is_slow(run))
        return run->began_ns + SLOW_MS * 1000000LL > run->end_ns ? run->began_ns + SLOW_MS * 1000000LL : run->end_ns;
    if (!run->request->light || more_ns < run->end_ns)
        return run->end_ns;
    return more_ns < most_ns ? more_ns : most_ns;
}

static void wait_for_all(struct run *run) {
    while (run_now_ns() < end_of(run) && (anything_open(run) | run_outside_is_open(run))) {
        run_pump(run, 3);
        ask_raw_where_needed(run);
        if (!run->retried && run_now_ns() - run->began_ns > RETRY_MS * 1000000LL)
            ask_again(run);
    }
    int64_t end_ns = run_now_ns() + SETTLE_MS * 1000000LL;
    while (run_now_ns() < end_ns)
        run_pump(run, 1);
}

static int open_icmp(int nsfd, bool df, int *ret_fd) {
    uint32_t filter = 1U << ICMP_ECHO; /* struct icmp_filter: what others ask us is not for us */
    int discover = IP_PMTUDISC_DO;
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMP, &fd);
    if (r < 0)
        return r;
    setsockopt(fd, SOL_RAW, RAW_ICMP_FILTER, &filter, sizeof filter);
    if (df)
        setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &discover, sizeof discover);
    *ret_fd = fd_steal(&fd);
    return 0;
}

static void choose_filter(const struct run *run, struct capture_filter *filter) {
    const struct probe_request *request = run->request;
    uint32_t canary = canary_choose(request, 0);
    for (int i = 0; canary && i < FREE_TRIES; i++, canary = canary_choose(request, canary))
        filter->addresses[filter->address_count++] = canary;
    if (request->egress_to)
        filter->addresses[filter->address_count++] = request->egress_to;
    size_t room = CAPTURE_ADDRESSES - filter->address_count;
    for (size_t i = 0; i < request->target_count && request->target_count <= room; i++) {
        if (request->targets[i].guest_ip)
            filter->addresses[filter->address_count++] = request->targets[i].guest_ip;
        if (request->targets[i].tap)
            filter->taps[filter->tap_count++] = request->targets[i].tap;
    }
    filter->few_copies = request->light || request->bridge_ports > PORTS_MANY;
    filter->no_arp_copies = request->light;
    filter->copies[filter->copy_count++] = request->bridge;
    if (run->tagger.has_canary)
        filter->copies[filter->copy_count++] = run->result->canary.ifindex;
    for (size_t i = 0; i < filter->tap_count; i++)
        filter->copies[filter->copy_count++] = filter->taps[i];
    if (request->target_count > room) /* all that the host itself says and hears */
        filter->addresses[filter->address_count++] = request->bridge_address.address;
}

static int allocate(struct run *run) {
    const struct probe_request *request = run->request;
    size_t n = request->target_count ? request->target_count : 1;
    run->window_max = n * (PROBE_KIND_COUNT * 2 + PROBE_BURST);
    run->tcp = calloc(n, sizeof *run->tcp);
    run->reserved = calloc(n, sizeof *run->reserved);
    run->tcp_port = calloc(n, sizeof *run->tcp_port);
    run->raw_port = calloc(n, sizeof *run->raw_port);
    run->second = calloc(n, sizeof *run->second);
    run->poll = calloc(n + 4, sizeof *run->poll);
    run->windows = calloc(run->window_max, sizeof *run->windows);
    run->result = calloc(1, sizeof *run->result);
    if (run->result)
        run->result->targets = calloc(n, sizeof *run->result->targets);
    if (!run->tcp || !run->reserved || !run->tcp_port || !run->raw_port || !run->second || !run->poll ||
        !run->windows || !run->result || !run->result->targets)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        run->tcp[i] = run->reserved[i] = -1;
    return 0;
}

static void prepare_result(struct run *run) {
    struct probe_result *result = run->result;
    const struct probe_request *request = run->request;
    result->target_count = request->target_count;
    result->bridge = request->bridge;
    memcpy(result->bridge_name, request->bridge_name, sizeof result->bridge_name);
    result->realtime_offset_ns = run_realtime_offset();
    for (size_t i = 0; i < request->target_count; i++) {
        struct probe_target_result *target = &result->targets[i];
        target->target = request->targets[i];
        target->target.threads = NULL;
        target->target.thread_count = 0;
        for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++)
            target->answer[kind].rtt_us = -1;
        if (target->target.guest_ip)
            kernel_neighbour(run->rtnl, target->target.guest_ip, request->bridge, !request->light,
                             &target->neighbour_before);
        kernel_counters(run->rtnl, target->target.tap, &target->tap_before);
    }
    for (int kind = PROBE_KIND_GUEST_COUNT; kind < PROBE_KIND_COUNT; kind++)
        run_answer(run, 0, (enum probe_kind)kind)->rtt_us = -1;
    kernel_counters(run->rtnl, request->bridge, &result->bridge_before);
}

static void prepare_tags(struct run *run) {
    struct link bridge;
    uint16_t id = 0;
    getrandom(&id, sizeof id, GRND_NONBLOCK);
    run->tagger = (struct tagger){
        .request = run->request,
        .result = run->result,
        .id_base = id & 0xfff0,
        .tcp_port = run->tcp_port,
        .raw_port = run->raw_port,
    };
    if (run->request->bridge && link_get_by_index(run->rtnl, run->request->bridge, &bridge, NULL) == 0)
        run->tagger.bridge_mac = bridge.mac;
}

static void begin_canary(struct run *run) {
    struct probe_canary *told = &run->result->canary;
    run->canary.made_ns = run_now_ns();
    if (run->request->no_canary || run->request->light)
        str_copy(told->why_not, sizeof told->why_not, "not asked for");
    else if (run->packet < 0)
        str_copy(told->why_not, sizeof told->why_not, "no packet socket, so no address could be proven free");
    else if (canary_choose(run->request, 0) == 0)
        str_copy(told->why_not, sizeof told->why_not, "the bridge has no address, or no free one near the guest's");
    else if (canary_make(run->request, run->rtnl, &run->canary, told) == 0) {
        run->tagger.has_canary = true;
        run->tagger.canary_mac = told->mac;
    }
}

static int begin_trace(struct run *run) {
    const struct probe_request *request = run->request;
    const char *devices[PROBE_TARGETS_MAX + 2];
    uint32_t addresses[PROBE_TARGETS_MAX];
    pid_t tids[TRACE_TIDS_MAX];
    size_t device_count = 0, address_count = 0, tid_count = 0;
    if (request->no_trace || request->light)
        return 0;
    if (request->bridge)
        devices[device_count++] = request->bridge_name;
    for (size_t i = 0; i < request->target_count; i++) {
        if (request->targets[i].tap)
            devices[device_count++] = request->targets[i].tap_name;
        if (request->targets[i].guest_ip)
            addresses[address_count++] = request->targets[i].guest_ip;
        for (size_t j = 0; j < request->targets[i].thread_count && tid_count < TRACE_TIDS_MAX; j++)
            tids[tid_count++] = request->targets[i].threads[j];
    }
    if (run->tagger.has_canary)
        devices[device_count++] = run->result->canary.name;
    return trace_start(&(struct trace_request){.nsfd = request->nsfd,
                                               .tids = tids,
                                               .tid_count = tid_count,
                                               .addresses = addresses,
                                               .address_count = address_count,
                                               .devices = devices,
                                               .device_count = device_count},
                       &run->trace);
}

static int begin(struct run *run, struct err *err) {
    struct capture_filter filter = {.address_count = 0};
    int nsfd = run->request->nsfd;
    int r = allocate(run);
    if (r < 0)
        return err_sys(err, -r, "probe.failed", "prepare the probe");
    r = rtnl_open(nsfd, &run->rtnl, err);
    if (r < 0)
        return r;
    prepare_result(run);
    prepare_tags(run);
    netns_socket(nsfd, AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0, &run->packet);
    begin_canary(run);
    choose_filter(run, &filter);
    r = capture_open(nsfd, &filter, &run->capture);
    run->result->capture_errno = -r;
    open_icmp(nsfd, false, &run->icmp);
    open_icmp(nsfd, true, &run->large);
    r = begin_trace(run);
    if (r < 0)
        return err_sys(err, -r, "probe.failed", "prepare the trace");
    return 0;
}

static void ask_everything(struct run *run) {
    run->began_ns = run->result->began_ns = run_now_ns();
    run->end_ns = run->began_ns + PROBE_DEADLINE_MS * 1000000LL;
    if (run->canary.fd >= 0)
        run_canary_try_next(run);
    if (!run->request->light)
        run_stage_first(run);
    if (!run->request->light)
        stage_kernel_arp(run);
    stage_arp(run);
    if (!run->request->light)
        stage_arp_unicast(run);
    stage_icmp(run);
    if (!run->request->light)
        run_stage_outside(run);
    stage_tcp(run);
    if (!run->request->light) {
        stage_large(run);
        stage_burst(run);
    }
    wait_for_all(run);
    if (!run->request->light) {
        run->end_ns = run_now_ns() + LATE_MS * 1000000LL;
        if (stage_burst(run))
            wait_for_all(run);
        run_stage_again(run);
    }
}

/* The kernel's question was answered when its entry says so. A question of ours that made an entry doubtful is taken
 * back: what was there before is put there again. */
static void judge_kernel_arp(struct run *run, size_t i) {
    struct probe_target_result *target = &run->result->targets[i];
    struct probe_answer *answer = &target->answer[PROBE_ARP_KERNEL];
    const struct probe_neighbour *before = &target->neighbour_before, *after = &target->neighbour_after;
    bool told = answer->asked;
    if (answer->request_bridge.count) {
        answer->asked = answer->sent = true;
        answer->sends = answer->sends ? answer->sends : answer->request_bridge.count;
        answer->sent_ns = answer->sent_ns ? answer->sent_ns : answer->request_bridge.first_ns;
    } else if (after->state & (NUD_INCOMPLETE | NUD_FAILED)) {
        answer->asked = true; /* it wanted to: no question of its own was seen to leave */
    }
    /* Who asks by himself is known, and tells nothing of our own asking, unless that never left. */
    if (run->second[i] == SECOND_UNCLEAR &&
        (answer->request_bridge.count || run->result->capture_errno || run->result->frames_truncated))
        answer->asked = false;
    /* Seen to be good is good: whoever looks after the table may have taken the entry away since. */
    bool good = (after->state & NUD_REACHABLE) || run->second[i] == SECOND_GOOD;
    answer->answered = answer->asked && good && run->second[i] != SECOND_DEAD;
    answer->answers = answer->answered;
    if (answer->answered && answer->reply_bridge.first_ns && answer->request_bridge.first_ns)
        answer->rtt_us = (answer->reply_bridge.first_ns - answer->request_bridge.first_ns) / 1000;
    if (told && before->has_mac && !(after->state & NUD_REACHABLE))
        kernel_neighbour_set(run->rtnl, before->ifindex, target->target.guest_ip, before->mac, NUD_STALE);
}

static void name_elsewhere(struct run *run, struct probe_elsewhere *list, uint32_t count) {
    struct link link;
    for (uint32_t i = 0; i < count; i++)
        if (link_get_by_index(run->rtnl, list[i].ifindex, &link, NULL) == 0)
            str_copy(list[i].name, sizeof list[i].name, link.name);
}

/* The kernel stamps a frame where it first sees it and hands it over later, on the bridge for instance. */
static void sort_frames(struct probe_result *result) {
    for (size_t i = 1; i < result->frame_count; i++) {
        struct probe_frame frame = result->frames[i];
        size_t at = i;
        for (; at > 0 && result->frames[at - 1].at_ns > frame.at_ns; at--)
            result->frames[at] = result->frames[at - 1];
        result->frames[at] = frame;
    }
}

static void end(struct run *run) {
    struct probe_result *result = run->result;
    result->ended_ns = run_now_ns();
    sort_frames(result);
    for (size_t i = 0; i < result->target_count; i++) {
        struct probe_target_result *target = &result->targets[i];
        if (target->target.guest_ip) {
            kernel_neighbour(run->rtnl, target->target.guest_ip, result->bridge, !run->request->light,
                             &target->neighbour_after);
            judge_kernel_arp(run, i);
        }
        kernel_counters(run->rtnl, target->target.tap, &target->tap_after);
        for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++) {
            name_elsewhere(run, target->answer[kind].request_elsewhere, target->answer[kind].request_elsewhere_count);
            name_elsewhere(run, target->answer[kind].reply_elsewhere, target->answer[kind].reply_elsewhere_count);
        }
    }
    for (int kind = PROBE_KIND_GUEST_COUNT; kind < PROBE_KIND_COUNT; kind++) {
        struct probe_answer *answer = run_answer(run, 0, (enum probe_kind)kind);
        name_elsewhere(run, answer->request_elsewhere, answer->request_elsewhere_count);
        name_elsewhere(run, answer->reply_elsewhere, answer->reply_elsewhere_count);
        run_why_not(answer, kind == PROBE_EGRESS && !run->request->egress_to ? "nowhere to send to" : "no canary");
    }
    kernel_counters(run->rtnl, result->bridge, &result->bridge_after);
    if (run->capture >= 0)
        result->capture_lost = capture_lost(run->capture);
    if (run->trace) {
        trace_stop(run->trace, &result->trace);
        run->trace = NULL;
    }
    tag_trace(&run->tagger, run->windows, run->window_count);
    if (run->canary_asked)
        neigh_delete(run->rtnl, result->bridge, run->canary.ip, NULL);
}

static void dispose(struct run *run) {
    struct trace_result *unread = NULL;
    if (run->trace && trace_stop(run->trace, &unread) == 0)
        trace_result_free(unread);
    canary_close(&run->canary);
    for (size_t i = 0; i < run->request->target_count && run->tcp && run->reserved; i++) {
        fd_close(&run->tcp[i]);
        fd_close(&run->reserved[i]);
    }
    fd_close(&run->capture);
    fd_close(&run->packet);
    fd_close(&run->icmp);
    fd_close(&run->large);
    rtnl_close(run->rtnl);
    free(run->tcp);
    free(run->reserved);
    free(run->tcp_port);
    free(run->raw_port);
    free(run->second);
    free(run->poll);
    free(run->windows);
    probe_result_free(run->result);
}

int probe_run(const struct probe_request *request, struct probe_result **ret, struct err *err) {
    struct run run = {.request = request, .capture = -1, .packet = -1, .icmp = -1, .large = -1, .canary.fd = -1};
    if (request->target_count > PROBE_TARGETS_MAX)
        return err_set(err, E2BIG, "probe.failed", "more than %d targets", PROBE_TARGETS_MAX);
    int r = begin(&run, err);
    if (r == 0) {
        ask_everything(&run);
        end(&run);
        *ret = ptr_steal(run.result);
    }
    dispose(&run);
    return r;
}
