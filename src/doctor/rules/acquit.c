/* What speaks for a suspect. Being there is no guilt: a packet that the trace followed past a rule, or that a capture saw
 * behind a program, was not lost there. */
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

/* A capture sees what leaves by a device behind its qdisc and filters: what was seen was not lost there. Of a series all. */
uint32_t acquit_flows_left(const struct judge *j, const struct snap_link *link) {
    uint32_t flows = 0;
    for (int kind = 0; kind < PROBE_KIND_COUNT && (link == j->tap || link == j->bridge); kind++) {
        const struct probe_answer *a = judge_answer(j, (enum probe_kind)kind);
        bool answers = kind == PROBE_CANARY_ARP_HOST || kind == PROBE_CANARY_ICMP_HOST || kind == PROBE_EGRESS;
        uint32_t seen = link == j->tap ? a->request_tap.count
                        : answers      ? a->reply_bridge.count
                                       : a->request_bridge.count;
        if (a->asked && seen && (kind != PROBE_BURST_ICMP || seen >= a->sends))
            flows |= FLOW(kind);
    }
    return flows;
}

/* Copies for the bridge's other ports are usual, as broadcasts have. */
static bool was_elsewhere(const struct judge *j, const struct probe_answer *a) {
    const struct probe_elsewhere *const lists[] = {a->request_elsewhere, a->reply_elsewhere};
    const uint32_t counts[] = {a->request_elsewhere_count, a->reply_elsewhere_count};
    for (size_t k = 0; k < 2; k++)
        for (uint32_t i = 0; i < counts[k]; i++) {
            const struct snap_link *link = snap_link_by_index(j->s, lists[k][i].ifindex);
            if (!link || !j->bridge || link->master != j->bridge->index)
                return true;
        }
    return false;
}

/* What a program decides is not told by netlink. The trace tells what it drops or steals, and a frame that it sends
 * elsewhere is seen there: without any of that it lets pass. */
bool acquit_program(const struct judge *j, const struct snap_link *link, bool egress) {
    static const char *const thieves[] = {"__dev_queue_xmit", "__netif_receive_skb_core", "sch_handle_egress",
                                          "sch_handle_ingress", "__netif_receive_skb_list_core"};
    const struct trace_result *trace = j->probe ? j->probe->trace : NULL;
    if (!trace || !trace->tracefs.had || trace->truncated)
        return false;
    for (int kind = 0; kind < PROBE_EGRESS; kind++) /* which leaves by another device as it should */
        if ((j->dead & FLOW(kind)) && was_elsewhere(j, judge_answer(j, (enum probe_kind)kind)))
            return false;
    bool watched = egress; /* what comes in does so in a thread of the VMM's, which may not be known */
    for (size_t i = 0; i < trace->event_count; i++) {
        const struct trace_event *e = &trace->events[i];
        const struct trace_stack *stack = e->stack >= 0 ? &trace->stacks[e->stack] : NULL;
        watched = watched || (e->kind == TRACE_RECEIVED && strcmp(e->dev, link->name) == 0);
        if (e->kind == TRACE_DROPPED && strcmp(trace_hook_of(e, stack), egress ? "tc.egress" : "tc.ingress") == 0)
            return false;
        for (size_t k = 0; e->kind == TRACE_CONSUMED && k < sizeof thieves / sizeof *thieves; k++)
            if (strcmp(e->location, thieves[k]) == 0)
                return false;
    }
    return watched;
}

/* A capture sees what comes in on a device before tc does: of what was not seen, tc has taken nothing. */
uint32_t acquit_flows_not_come(const struct judge *j, const struct snap_link *link) {
    uint32_t flows = 0;
    if (!j->probe || j->probe->capture_errno || j->probe->capture_lost || j->probe->frames_truncated)
        return 0;
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++) {
        const struct probe_answer *a = judge_answer(j, (enum probe_kind)kind);
        bool by_canary = kind == PROBE_CANARY_ARP_HOST || kind == PROBE_CANARY_ICMP_HOST || kind == PROBE_EGRESS;
        const struct probe_seen *seen = link == j->tap ? &a->reply_tap
                                        : by_canary    ? &a->request_bridge
                                                       : &a->reply_bridge;
        if (a->asked && !seen->count && (link == j->tap || link == j->bridge))
            flows |= FLOW(kind);
    }
    return flows;
}

/* What the gateway answered the host went through the uplink's programs: ARP on its way out, and a ping back in. */
bool acquit_by_gateway(const struct judge *j, const struct snap_link *link, bool egress) {
    struct net_mac mac;
    return link == judge_uplink(j) && link != j->bridge &&
           judge_gateway(j, &mac) >= (egress ? GATEWAY_ANSWERS_ARP : GATEWAY_ANSWERS_PING);
}

/* A packet that was followed through the rules, and that none of them dropped, was dropped by none of them. */
static uint32_t flows_followed(const struct judge *j) {
    const struct trace_result *trace = j->probe ? j->probe->trace : NULL;
    uint32_t followed = 0;
    for (size_t i = 0; trace && !trace->truncated && i < trace->rule_count; i++)
        for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
            if (trace->rules[i].tag == probe_tag(kind < PROBE_KIND_GUEST_COUNT ? j->t_index : 0, (enum probe_kind)kind))
                followed |= FLOW(kind);
    return followed;
}

void acquit_rules(struct judge *j) {
    uint32_t followed = flows_followed(j);
    for (uint32_t i = 0; i < j->causes_count; i++) {
        struct cause *c = &j->causes[i];
        bool drops = str_starts(c->finding.id, "nft.") || str_starts(c->finding.id, "netfilter.") ||
                     str_starts(c->finding.id, "ebtables.");
        if (drops && !c->seen && strcmp(c->finding.id, "nft.rewrites") != 0)
            c->may &= ~followed;
    }
}
