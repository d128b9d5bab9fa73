/* Which of our questions the trace's events belong to.
 *
 * Three ways, from sure to likely. Our own thread between the start and the end of one send: that is the frame's way from
 * the socket to the TAP's queue. A captured frame has a device, a direction and a time: so has its event. And what is
 * left on a TAP, or in a thread that holds it, belongs to the last question asked of that target: so are frames found
 * that die before a capture sees them (XDP) or that no filter knows (a broken header). */
#include <net/ethernet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/probe/internal.h"

#define SLACK_NS 300000

static const char *name_of(const struct tagger *tagger, int32_t ifindex) {
    if (ifindex == tagger->request->bridge)
        return tagger->request->bridge_name;
    if (tagger->has_canary && ifindex == tagger->result->canary.ifindex)
        return tagger->result->canary.name;
    for (size_t i = 0; i < tagger->request->target_count; i++)
        if (tagger->request->targets[i].tap == ifindex)
            return tagger->request->targets[i].tap_name;
    return NULL;
}

/* Its write goes all the way up into the host's stack, and the host's answer comes back in the same call. */
static bool is_by_canary(enum probe_kind kind) {
    return kind == PROBE_CANARY_ARP || kind == PROBE_CANARY_ICMP || kind == PROBE_CANARY_ARP_HOST ||
           kind == PROBE_CANARY_ICMP_HOST || kind == PROBE_EGRESS;
}

static void tag_windows(const struct tagger *tagger, const struct window *windows, size_t count) {
    for (size_t i = 0; i < count; i++) {
        size_t target = (size_t)windows[i].tag / PROBE_KIND_COUNT;
        if (is_by_canary((enum probe_kind)(windows[i].tag % PROBE_KIND_COUNT)))
            continue;
        const char *devices[3] = {tagger->request->bridge_name, tagger->result->canary.name};
        size_t n = 2;
        if (target < tagger->request->target_count && windows[i].tag % PROBE_KIND_COUNT < PROBE_KIND_GUEST_COUNT)
            devices[n++] = tagger->request->targets[target].tap_name;
        trace_tag_window(tagger->result->trace, windows[i].tid, windows[i].from_ns, windows[i].to_ns, devices, n,
                         windows[i].tag, false);
    }
}

/* A frame that left on a device: the event of its handing over, and what becomes of the same packet in that thread. */
static void tag_sent(struct trace_result *trace, const char *dev, const struct probe_frame *frame) {
    for (size_t i = 0; i < trace->event_count; i++) {
        struct trace_event *first = &trace->events[i];
        int64_t apart = first->at_ns - frame->at_ns;
        if (first->kind != TRACE_XMIT || first->tag != TRACE_NO_TAG || strcmp(first->dev, dev) != 0 ||
            first->length != frame->length || apart < -SLACK_NS || apart > SLACK_NS)
            continue;
        for (size_t j = i ? i - 1 : 0; j < trace->event_count; j++) {
            struct trace_event *event = &trace->events[j];
            if (event->tid != first->tid || event->skb != first->skb || event->tag != TRACE_NO_TAG)
                continue;
            if (event->at_ns - first->at_ns > 1000000)
                break;
            event->tag = frame->tag;
            event->reply = frame->reply;
        }
        return;
    }
}

/* What leaves first: an answer that the host sends while it takes a frame in is not a part of that frame's way. */
static void tag_frames(const struct tagger *tagger, bool outgoing) {
    struct probe_result *result = tagger->result;
    for (size_t i = 0; i < result->frame_count; i++) {
        const struct probe_frame *frame = &result->frames[i];
        const char *dev = name_of(tagger, frame->ifindex);
        if (!dev || frame->tag == TRACE_NO_TAG || frame->outgoing != outgoing)
            continue;
        if (outgoing)
            tag_sent(result->trace, dev, frame);
        else if (frame->ifindex != tagger->request->bridge) /* on the bridge it is the end of the port's own way */
            trace_tag_received(result->trace, dev, frame->at_ns, frame->tag, frame->reply);
    }
}

static long target_of_event(const struct tagger *tagger, const struct trace_event *event) {
    for (size_t i = 0; i < tagger->request->target_count; i++) {
        const struct probe_target *target = &tagger->request->targets[i];
        if (event->kind == TRACE_RECEIVED && target->tap && strcmp(event->dev, target->tap_name) == 0)
            return (long)i;
        for (size_t j = 0; event->kind == TRACE_DROPPED && j < target->thread_count; j++)
            if (target->threads[j] == event->tid)
                return (long)i;
    }
    return -1;
}

/* What the target was asked last before this moment. */
static int32_t last_question(const struct window *windows, size_t count, size_t target, int64_t at_ns) {
    int32_t tag = TRACE_NO_TAG;
    for (size_t i = 0; i < count && windows[i].from_ns <= at_ns; i++)
        if ((size_t)windows[i].tag / PROBE_KIND_COUNT == target &&
            windows[i].tag % PROBE_KIND_COUNT < PROBE_KIND_GUEST_COUNT)
            tag = windows[i].tag;
    return tag;
}

/* A drop in the holder's thread is on the way in only if it came in on the TAP or died in the driver before that: in a
 * laboratory the "guest" is a network stack of the same kernel, and its drops are its own. */
static bool is_on_the_way_in(const struct trace_event *event, const struct trace_stack *stack) {
    return strcmp(event->location, "tun_get_user") == 0 || strcmp(event->reason, "MAC_INVALID_SOURCE") == 0 ||
           (stack && strcmp(trace_hook_of(event, stack), "xdp") == 0);
}

static void tag_rest(const struct tagger *tagger, const struct window *windows, size_t count) {
    struct trace_result *trace = tagger->result->trace;
    for (size_t i = 0; i < trace->event_count; i++) {
        struct trace_event *event = &trace->events[i];
        const struct trace_stack *stack = event->stack >= 0 ? &trace->stacks[event->stack] : NULL;
        if (event->tag != TRACE_NO_TAG)
            continue;
        if (event->kind == TRACE_DROPPED && *event->dev == '\0' && !is_on_the_way_in(event, stack))
            continue;
        long target = target_of_event(tagger, event);
        int32_t tag = target < 0 ? TRACE_NO_TAG : last_question(windows, count, (size_t)target, event->at_ns);
        if (tag == TRACE_NO_TAG)
            continue;
        if (event->kind == TRACE_RECEIVED) {
            trace_tag_received(trace, event->dev, event->at_ns, tag, true);
        } else if (strcmp(event->dev, tagger->request->targets[target].tap_name) == 0 || *event->dev == '\0') {
            event->tag = tag;
            event->reply = true;
        }
    }
}

static bool is_a_tap(const struct tagger *tagger, const char *dev) {
    for (size_t i = 0; i < tagger->request->target_count; i++)
        if (strcmp(dev, tagger->request->targets[i].tap_name) == 0)
            return true;
    return false;
}

/* A broadcast goes everywhere: what happens to the copies that are for somebody else says nothing about this one's. */
static bool is_on_the_way(const struct tagger *tagger, enum probe_kind kind, const char *dev) {
    bool on_bridge = strcmp(dev, tagger->request->bridge_name) == 0;
    bool on_canary = strcmp(dev, tagger->result->canary.name) == 0;
    if (!*dev)
        return true;
    if (kind >= PROBE_KIND_GUEST_COUNT) /* between the host and the canary */
        return !is_a_tap(tagger, dev);
    if (kind == PROBE_CANARY_ARP || kind == PROBE_CANARY_ICMP)
        return !on_bridge;
    return !on_canary;
}

static void drop_strays(const struct tagger *tagger) {
    struct trace_result *trace = tagger->result->trace;
    for (size_t i = 0; i < trace->event_count; i++) {
        struct trace_event *event = &trace->events[i];
        if (event->tag != TRACE_NO_TAG &&
            !is_on_the_way(tagger, (enum probe_kind)(event->tag % PROBE_KIND_COUNT), event->dev))
            event->tag = TRACE_NO_TAG;
    }
}

/* A send by the kernel's route may begin with the kernel's own who-has: that is another question. */
static void split_arp(const struct tagger *tagger) {
    struct trace_result *trace = tagger->result->trace;
    for (size_t i = 0; i < trace->event_count; i++) {
        struct trace_event arp = trace->events[i];
        enum probe_kind kind = (enum probe_kind)(arp.tag % PROBE_KIND_COUNT);
        if (arp.tag == TRACE_NO_TAG || arp.protocol != ETHERTYPE_ARP || arp.reply ||
            (kind != PROBE_ICMP && kind != PROBE_BURST_ICMP && kind != PROBE_LARGE && kind != PROBE_TCP))
            continue;
        int32_t tag = probe_tag((size_t)arp.tag / PROBE_KIND_COUNT, PROBE_ARP_KERNEL);
        for (size_t j = 0; j < trace->event_count; j++)
            if (trace->events[j].tag == arp.tag && trace->events[j].skb == arp.skb && !trace->events[j].reply)
                trace->events[j].tag = tag;
    }
}

/* nftrace is read right after each send, so a who-has belongs to the last one before it; the ARP family sees only the
 * kernel's own. */
static void tag_arp_rule(const struct tagger *tagger, const struct window *windows, size_t count,
                         struct trace_rule *rule) {
    uint32_t guest = rule->arp_operation == 1 ? rule->destination : rule->source;
    for (size_t i = 0; i < tagger->request->target_count; i++) {
        if (tagger->request->targets[i].guest_ip != guest)
            continue;
        int32_t tag = last_question(windows, count, i, rule->at_ns);
        enum probe_kind kind = (enum probe_kind)(tag % PROBE_KIND_COUNT);
        bool ours =
            tag != TRACE_NO_TAG && (kind == PROBE_ARP || kind == PROBE_ARP_UNICAST) && strcmp(rule->family, "arp") != 0;
        bool canary = rule->has_macs && tagger->has_canary &&
                      (memcmp(rule->source_mac, &tagger->canary_mac, 6) == 0 ||
                       memcmp(rule->destination_mac, &tagger->canary_mac, 6) == 0);
        rule->tag = canary ? probe_tag(i, PROBE_CANARY_ARP) : ours ? tag : probe_tag(i, PROBE_ARP_KERNEL);
        rule->reply = rule->arp_operation != 1;
    }
}

static bool is_ours(const struct tagger *tagger, const char *dev) {
    return !*dev || strcmp(dev, tagger->request->bridge_name) == 0 || strcmp(dev, tagger->result->canary.name) == 0 ||
           is_a_tap(tagger, dev);
}

/* nftrace's messages hold the packet's headers: the same rules as for a frame. Those about a copy for another port of
 * the bridge are about another port. */
static void tag_rules(const struct tagger *tagger, const struct window *windows, size_t count) {
    struct trace_result *trace = tagger->result->trace;
    for (size_t i = 0; i < trace->rule_count; i++) {
        struct trace_rule *rule = &trace->rules[i];
        bool on_port = strcmp(rule->family, "bridge") == 0 || strcmp(rule->family, "netdev") == 0;
        if (on_port && !is_ours(tagger, rule->oif))
            continue;
        if (rule->ethertype == ETHERTYPE_ARP)
            tag_arp_rule(tagger, windows, count, rule);
        if (rule->tag != TRACE_NO_TAG)
            continue;
        struct probe_frame frame = {
            .tag = TRACE_NO_TAG,
            .length = FRAME_ARP_PADDED,
            .source_ip = rule->source,
            .destination_ip = rule->destination,
            .echo_id = rule->echo_id,
            .source_port = rule->source_port,
            .destination_port = rule->destination_port,
            .destination = FRAME_BROADCAST,
        };
        memcpy(&frame.source, rule->source_mac, sizeof frame.source);
        if (rule->ethertype == ETHERTYPE_ARP)
            frame.kind = rule->arp_operation == 1 ? PROBE_FRAME_WHO_HAS : PROBE_FRAME_IS_AT;
        else if (rule->ip_protocol == IPPROTO_ICMP)
            frame.kind = rule->icmp_type == 8 ? PROBE_FRAME_ECHO : PROBE_FRAME_ECHO_REPLY;
        else if (rule->ip_protocol == IPPROTO_TCP)
            frame.kind = PROBE_FRAME_SYN;
        tag_frame(tagger, &frame);
        rule->tag = frame.tag;
        rule->reply = frame.reply;
    }
    for (size_t i = 0; i < trace->rule_count; i++) {
        struct trace_rule *rule = &trace->rules[i];
        if (rule->tag != TRACE_NO_TAG && strcmp(rule->family, "bridge") == 0 &&
            !is_on_the_way(tagger, (enum probe_kind)(rule->tag % PROBE_KIND_COUNT), rule->oif))
            rule->tag = TRACE_NO_TAG;
    }
}

void tag_trace(const struct tagger *tagger, const struct window *windows, size_t window_count) {
    if (!tagger->result->trace)
        return;
    tag_windows(tagger, windows, window_count);
    split_arp(tagger);
    tag_frames(tagger, true);
    tag_frames(tagger, false);
    tag_rest(tagger, windows, window_count);
    trace_tag_readers(tagger->result->trace);
    drop_strays(tagger);
    tag_rules(tagger, windows, window_count);
}
