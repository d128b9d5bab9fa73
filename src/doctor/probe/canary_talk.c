/* What the canary says and hears. */
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

static void canary_answers(struct run *run, const struct probe_frame *frame) {
    uint8_t reply[FRAME_MAX];
    struct frame_ends ends = {.source_mac = run->tagger.canary_mac,
                              .destination_mac = frame->source,
                              .source_ip = run->canary.ip,
                              .destination_ip = frame->source_ip};
    if (frame->destination_ip != run->canary.ip || !run->canary.settled)
        return;
    if (frame->kind == PROBE_FRAME_WHO_HAS)
        canary_send(&run->canary, reply, frame_is_at(reply, &ends));
    if (frame->kind == PROBE_FRAME_ECHO)
        canary_send(&run->canary, reply,
                    frame_echo(reply, &ends, 0, frame->echo_id, frame->echo_sequence, ECHO_PAYLOAD));
}

static void canary_learns(struct run *run, struct probe_frame *frame) {
    tag_frame(&run->tagger, frame);
    enum probe_kind kind = (enum probe_kind)(frame->tag % PROBE_KIND_COUNT);
    /* What is flooded to it is not for it: an answer to the host's own question is no answer to the canary's. */
    bool own = kind == PROBE_CANARY_ARP || kind == PROBE_CANARY_ICMP || kind == PROBE_CANARY_ARP_HOST ||
               kind == PROBE_CANARY_ICMP_HOST || kind == PROBE_EGRESS;
    if (frame->tag == TRACE_NO_TAG || !frame->reply || !own)
        return;
    if (kind == PROBE_CANARY_ARP && frame->kind == PROBE_FRAME_IS_AT && frame->kept >= 28) {
        struct net_mac named;
        memcpy(&named, frame->data + 22, sizeof named);
        count_mac(run_answer(run, (size_t)frame->tag / PROBE_KIND_COUNT, kind), named);
    }
    run_note_answer(run, (size_t)frame->tag / PROBE_KIND_COUNT, kind, run_now_ns(),
                    frame->kind == PROBE_FRAME_ICMP_ERROR ? run_errno_of_icmp(frame->icmp_type, frame->icmp_code) : 0);
}

void run_read_canary(struct run *run) {
    struct probe_frame frame;
    for (int i = 0; i < 512; i++) {
        int r = canary_receive(&run->canary, &frame);
        if (r == 0)
            return;
        if (r < 0 && r != -EBADMSG)
            return;
        if (r > 0) {
            canary_answers(run, &frame);
            canary_learns(run, &frame);
        }
    }
}

static void canary_frame(struct run *run, size_t target, enum probe_kind kind, const uint8_t *frame, size_t length) {
    int64_t from_ns = run_now_ns();
    run_note_sent(run, target, kind, from_ns, canary_send(&run->canary, frame, length));
}

static struct frame_ends canary_ends(const struct run *run, struct net_mac mac, uint32_t ip) {
    return (struct frame_ends){.source_mac = run->tagger.canary_mac,
                               .destination_mac = mac,
                               .source_ip = run->canary.ip,
                               .destination_ip = ip};
}

void run_canary_asks_arp(struct run *run, size_t target, enum probe_kind kind, uint32_t ip) {
    uint8_t frame[FRAME_MAX];
    struct frame_ends ends = canary_ends(run, FRAME_BROADCAST, ip);
    canary_frame(run, target, kind, frame, frame_who_has(frame, &ends));
}

void run_canary_asks_echo(struct run *run, size_t target, enum probe_kind kind, struct net_mac mac, uint32_t ip) {
    uint8_t frame[FRAME_MAX];
    struct frame_ends ends = canary_ends(run, mac, ip);
    size_t length = frame_echo(frame, &ends, 8, (uint16_t)(run->tagger.id_base | kind), 1, ECHO_PAYLOAD);
    canary_frame(run, target, kind, frame, length);
}

/* What it knows of a guest's MAC: by its own question, by the host's, or as told. */
bool run_guest_mac(struct run *run, size_t target, struct net_mac *ret) {
    static const enum probe_kind kinds[] = {PROBE_CANARY_ARP, PROBE_ARP, PROBE_ARP_UNICAST};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct probe_answer *answer = run_answer(run, target, kinds[i]);
        if (answer->mac_count) {
            /* The frame's own source comes first, then whom the answer names: that is whom a VM would send to. */
            *ret = answer->macs[kinds[i] == PROBE_CANARY_ARP && answer->mac_count > 1];
            return true;
        }
    }
    const struct probe_target_result *known = &run->result->targets[target];
    *ret = known->target.has_mac ? known->target.guest_mac : known->neighbour_before.mac;
    return known->target.has_mac || known->neighbour_before.has_mac;
}

static void canary_asks_all(struct run *run) {
    const struct probe_request *request = run->request;
    uint32_t host = request->bridge_address.address;
    run_canary_asks_arp(run, 0, PROBE_CANARY_ARP_HOST, host);
    run_canary_asks_echo(run, 0, PROBE_CANARY_ICMP_HOST, run->tagger.bridge_mac, host);
    if (request->egress_to)
        run_canary_asks_echo(run, 0, PROBE_EGRESS, run->tagger.bridge_mac, request->egress_to);
    run_ask_echo(run, 0, PROBE_HOST_ICMP_CANARY, run->canary.ip, 1, ECHO_PAYLOAD);
    for (size_t i = 0; i < request->target_count; i++)
        if (request->targets[i].guest_ip)
            run_canary_asks_arp(run, i, PROBE_CANARY_ARP, request->targets[i].guest_ip);
    run->canary_asked = true;
}

static void canary_asks_more(struct run *run) {
    for (size_t i = 0; i < run->request->target_count; i++) {
        struct net_mac mac;
        uint32_t ip = run->request->targets[i].guest_ip;
        const struct probe_answer *arp = run_answer(run, i, PROBE_CANARY_ARP);
        bool late = arp->asked && run_now_ns() - arp->sent_ns > STAGE_MS * 1000000LL;
        if (ip && !run_answer(run, i, PROBE_CANARY_ICMP)->asked && (arp->answered || late) &&
            run_guest_mac(run, i, &mac))
            run_canary_asks_echo(run, i, PROBE_CANARY_ICMP, mac, ip);
    }
}

static void ask_for_address(struct run *run) {
    uint8_t frame[FRAME_MAX];
    struct frame_ends ends = run_ends_to(run, FRAME_BROADCAST, run->canary.ip);
    ends.source_ip = 0; /* RFC 5227: a question that claims nothing */
    run_send_packet(run, frame, frame_who_has(frame, &ends));
    run->canary.asks++;
}

void run_canary_try_next(struct run *run) {
    run->canary.ip = run->canary.candidates < FREE_TRIES ? canary_choose(run->request, run->canary.ip) : 0;
    run->canary.candidates++;
    run->canary.denied = false;
    run->canary.asks = 0;
    run->canary.asked_ns = run_now_ns();
    if (run->canary.ip)
        ask_for_address(run);
    else
        str_copy(run->result->canary.why_not, sizeof run->result->canary.why_not, "no free address for it");
}

static void canary_ready(struct run *run) {
    uint8_t state = KERNEL_NO_PORT;
    if (run->canary.ready || kernel_port_state(run->rtnl, run->result->canary.ifindex, &state) < 0)
        return;
    run->result->canary.port_state = state;
    if (state != 3)
        return;
    run->canary.ready = true;
    run->result->canary.ready_us = (run_now_ns() - run->canary.made_ns) / 1000;
}

/* Moves it on: first an address that nobody claims, and a port that forwards; then its questions. */
void run_canary_step(struct run *run) {
    struct canary *canary = &run->canary;
    if (canary->fd < 0 || !canary->ip)
        return;
    int64_t waited_ns = run_now_ns() - canary->asked_ns;
    canary_ready(run);
    if (!canary->settled && canary->denied)
        run_canary_try_next(run);
    else if (!canary->settled && canary->asks == 1 && waited_ns > FREE_AGAIN_MS * 1000000LL)
        ask_for_address(run);
    else if (!canary->settled && waited_ns > FREE_MS * 1000000LL) {
        canary->settled = true;
        run->result->canary.ip = run->tagger.canary_ip = canary->ip;
        if (run->trace)
            trace_follow(run->trace, canary->ip);
    }
    if (canary->settled && canary->ready && !run->canary_asked)
        canary_asks_all(run);
    if (run->canary_asked)
        canary_asks_more(run);
}

bool run_canary_is_busy(const struct run *run) {
    return run->canary.fd >= 0 && run->canary.ip && !run->canary_asked &&
           run_now_ns() - run->began_ns < CANARY_MS * 1000000LL;
}
