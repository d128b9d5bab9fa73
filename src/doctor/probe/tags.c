/* Which question a frame belongs to, and what each place has seen of it. */
#include <string.h>

#include "doctor/probe/internal.h"

static bool same_mac(const struct net_mac *a, const struct net_mac *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

/* Return: the target with this address, or -1. */
static long find_target(const struct tagger *tagger, uint32_t ip) {
    for (size_t i = 0; ip && i < tagger->request->target_count; i++)
        if (tagger->request->targets[i].guest_ip == ip)
            return (long)i;
    return -1;
}

static void set_tag(struct probe_frame *frame, long target, enum probe_kind kind, bool reply) {
    frame->tag = probe_tag(target < 0 ? 0 : (size_t)target, kind);
    frame->reply = reply;
}

static bool from_canary(const struct tagger *tagger, const struct probe_frame *frame) {
    return tagger->has_canary && same_mac(&frame->source, &tagger->canary_mac);
}

static void tag_who_has(const struct tagger *tagger, struct probe_frame *frame) {
    long target = find_target(tagger, frame->destination_ip);
    if (target >= 0 && from_canary(tagger, frame))
        set_tag(frame, target, PROBE_CANARY_ARP, false);
    else if (target >= 0 && frame->source_ip != frame->destination_ip && find_target(tagger, frame->source_ip) < 0) {
        bool light = tagger->request->light; /* all of its questions are one kind */
        enum probe_kind ours = light || same_mac(&frame->destination, &FRAME_BROADCAST) ? PROBE_ARP : PROBE_ARP_UNICAST;
        set_tag(frame, target, frame->length >= FRAME_ARP_PADDED ? ours : PROBE_ARP_KERNEL, false);
    } else if (from_canary(tagger, frame) && frame->destination_ip == tagger->request->bridge_address.address)
        set_tag(frame, -1, PROBE_CANARY_ARP_HOST, false);
    else if (tagger->canary_ip && frame->destination_ip == tagger->canary_ip &&
             find_target(tagger, frame->source_ip) < 0)
        set_tag(frame, -1, PROBE_HOST_ICMP_CANARY, false);
}

/* The answers to broadcast, unicast and the kernel's own question look alike: it is the one that was asked last and
 * has no answer here yet, else the last at all. */
static enum probe_kind latest_asked(const struct tagger *tagger, size_t target, int32_t ifindex) {
    static const enum probe_kind kinds[] = {PROBE_ARP, PROBE_ARP_UNICAST, PROBE_ARP_KERNEL};
    enum probe_kind best = PROBE_ARP;
    int64_t best_ns = -1;
    bool best_open = false;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct probe_answer *answer = &tagger->result->targets[target].answer[kinds[i]];
        const struct probe_seen *seen = ifindex == tagger->request->bridge ? &answer->reply_bridge : &answer->reply_tap;
        int64_t at_ns = answer->sent_ns;
        if (kinds[i] == PROBE_ARP_KERNEL) /* the kernel asks when it likes */
            at_ns = answer->request_bridge.first_ns;
        bool open = at_ns > 0 && seen->count < answer->request_bridge.count;
        if (at_ns <= 0 || (best_open && !open))
            continue;
        if ((open && !best_open) || at_ns > best_ns) {
            best = kinds[i];
            best_ns = at_ns;
            best_open = open;
        }
    }
    return best;
}

static bool names_another(const struct probe_frame *frame) {
    return frame->kept >= 28 && memcmp(frame->data + 22, &frame->source, sizeof frame->source) != 0;
}

/* One who was not asked by unicast has heard the broadcast: a second owner of the address, who may answer late. */
static enum probe_kind question_of(const struct tagger *tagger, const struct probe_frame *frame, size_t target) {
    enum probe_kind kind = latest_asked(tagger, target, frame->ifindex);
    const struct probe_answer *broadcast = &tagger->result->targets[target].answer[PROBE_ARP];
    bool known = broadcast->mac_count == 0;
    for (uint32_t i = 0; i < broadcast->mac_count;
         i++) /* the first answer may have borne two: its own, and one it named */
        known = known || (same_mac(&broadcast->macs[i], &frame->source) && (i == 0 || names_another(frame)));
    return kind == PROBE_ARP_UNICAST && !known ? PROBE_ARP : kind;
}

static void tag_is_at(const struct tagger *tagger, struct probe_frame *frame) {
    long target = find_target(tagger, frame->source_ip);
    bool for_canary = frame->kept >= 38 && memcmp(frame->data + 32, &tagger->canary_mac, 6) == 0; /* sent to all */
    bool to_canary = tagger->has_canary && (for_canary || same_mac(&frame->destination, &tagger->canary_mac));
    if (target >= 0 && to_canary)
        set_tag(frame, target, PROBE_CANARY_ARP, true);
    else if (target >= 0)
        set_tag(frame, target, question_of(tagger, frame, (size_t)target), true);
    else if (to_canary && frame->source_ip == tagger->request->bridge_address.address)
        set_tag(frame, -1, PROBE_CANARY_ARP_HOST, true);
    else if (from_canary(tagger, frame) && find_target(tagger, frame->destination_ip) < 0)
        set_tag(frame, -1, PROBE_HOST_ICMP_CANARY, true);
}

static void tag_icmp(const struct tagger *tagger, struct probe_frame *frame) {
    bool reply = frame->kind != PROBE_FRAME_ECHO;
    uint32_t guest = reply ? frame->source_ip : frame->destination_ip;
    unsigned int kind = frame->echo_id & 15;
    if (tagger->request->egress_to && guest == tagger->request->egress_to) {
        set_tag(frame, -1, PROBE_EGRESS, reply); /* a translated address may have a translated id */
        return;
    }
    if ((frame->echo_id & 0xfff0) != tagger->id_base || kind >= PROBE_KIND_COUNT)
        return;
    long target = find_target(tagger, guest);
    if (frame->kind == PROBE_FRAME_ICMP_ERROR && target < 0)
        target = find_target(tagger, frame->destination_ip);
    if (kind >= PROBE_KIND_GUEST_COUNT || target >= 0)
        set_tag(frame, target, (enum probe_kind)kind, reply);
}

static void tag_tcp(const struct tagger *tagger, struct probe_frame *frame) {
    bool reply = false;
    long target = find_target(tagger, frame->destination_ip);
    uint16_t ours = frame->source_port;
    if (target < 0) {
        target = find_target(tagger, frame->source_ip);
        ours = frame->destination_port;
        reply = true;
    }
    if (target < 0 || !ours)
        return;
    if (tagger->tcp_port[target] == ours)
        set_tag(frame, target, PROBE_TCP, reply);
    if (tagger->raw_port[target] == ours)
        set_tag(frame, target, PROBE_TCP_RAW, reply);
}

void tag_frame(const struct tagger *tagger, struct probe_frame *frame) {
    switch (frame->kind) {
    case PROBE_FRAME_WHO_HAS:
        tag_who_has(tagger, frame);
        break;
    case PROBE_FRAME_IS_AT:
        tag_is_at(tagger, frame);
        break;
    case PROBE_FRAME_ECHO:
    case PROBE_FRAME_ECHO_REPLY:
    case PROBE_FRAME_ICMP_ERROR:
        tag_icmp(tagger, frame);
        break;
    case PROBE_FRAME_SYN:
    case PROBE_FRAME_SYN_ACK:
    case PROBE_FRAME_RST:
    case PROBE_FRAME_TCP:
        tag_tcp(tagger, frame);
        break;
    case PROBE_FRAME_OTHER:
    case PROBE_FRAME_GARBLED:
    case PROBE_FRAME_KIND_COUNT:
        break;
    }
}

/* --- counting --- */

static void see(struct probe_seen *seen, int64_t at_ns) {
    if (seen->count++ == 0)
        seen->first_ns = at_ns;
}

static void see_elsewhere(struct probe_elsewhere *list, uint32_t *count, int32_t ifindex) {
    for (uint32_t i = 0; i < *count; i++)
        if (list[i].ifindex == ifindex) {
            list[i].count++;
            return;
        }
    if (*count < PROBE_ELSEWHERE_MAX)
        list[(*count)++] = (struct probe_elsewhere){.ifindex = ifindex, .count = 1};
}

void count_mac(struct probe_answer *answer, struct net_mac mac) {
    for (uint32_t i = 0; i < answer->mac_count; i++)
        if (same_mac(&answer->macs[i], &mac))
            return;
    if (answer->mac_count < PROBE_MACS_MAX)
        answer->macs[answer->mac_count++] = mac;
}

/* In which direction a frame of this sort crosses a device on its way: into the host's stack on the bridge when a guest
 * or the canary sends, out of it on the TAP that it goes to. */
static void count_tagged(const struct tagger *tagger, const struct probe_frame *frame, struct probe_answer *answer,
                         enum probe_kind kind, int32_t tap) {
    bool by_canary = kind == PROBE_CANARY_ARP || kind == PROBE_CANARY_ICMP || kind == PROBE_CANARY_ARP_HOST ||
                     kind == PROBE_CANARY_ICMP_HOST || kind == PROBE_EGRESS;
    int32_t canary = tagger->has_canary ? tagger->result->canary.ifindex : 0;
    bool to_host = frame->reply != by_canary; /* seen from the bridge device: incoming */
    if (frame->ifindex == tagger->request->bridge && frame->outgoing != to_host)
        see(frame->reply ? &answer->reply_bridge : &answer->request_bridge, frame->at_ns);
    else if (tap && frame->ifindex == tap && frame->outgoing == !frame->reply)
        see(frame->reply ? &answer->reply_tap : &answer->request_tap, frame->at_ns);
    else if (canary && frame->ifindex == canary && (by_canary || kind == PROBE_HOST_ICMP_CANARY))
        see(frame->reply ? &answer->reply_canary : &answer->request_canary, frame->at_ns);
    else if (frame->reply && !frame->outgoing)
        see_elsewhere(answer->reply_elsewhere, &answer->reply_elsewhere_count, frame->ifindex);
    else if (!frame->reply && frame->outgoing)
        see_elsewhere(answer->request_elsewhere, &answer->request_elsewhere_count, frame->ifindex);
}

static void count_hint(const struct tagger *tagger, const struct probe_frame *frame, size_t target) {
    bool reply = frame->kind == PROBE_FRAME_ECHO_REPLY;
    unsigned int id = frame->echo_id & 15;
    if ((frame->kind != PROBE_FRAME_ECHO && !reply) || (frame->echo_id & 0xfff0) != tagger->id_base ||
        (id != ID_FIRST && id != ID_OUTSIDE) || frame->outgoing == reply)
        return;
    struct probe_target_result *result = &tagger->result->targets[target];
    struct probe_hint *hint = id == ID_FIRST ? &result->first : &result->outside;
    if ((reply ? frame->source_ip : frame->destination_ip) != result->target.guest_ip)
        return;
    if (!reply)
        hint->on_tap++;
    else if (hint->answers++ == 0)
        hint->answered_to = frame->destination;
}

static void count_guest(const struct tagger *tagger, const struct probe_frame *frame) {
    const struct probe_request *request = tagger->request;
    uint32_t host = request->bridge_address.address;
    for (size_t i = 0; i < request->target_count; i++) {
        struct probe_target_result *target = &tagger->result->targets[i];
        const struct probe_target *asked = &request->targets[i];
        if (asked->tap && frame->ifindex == asked->tap)
            count_hint(tagger, frame, i);
        if (asked->tap && frame->ifindex == asked->tap && !frame->outgoing) {
            target->guest_frames++;
            if (frame->kind == PROBE_FRAME_GARBLED)
                target->garbled_frames++;
            if (frame->kind == PROBE_FRAME_WHO_HAS && host && frame->destination_ip == host)
                target->guest_asks_host++;
            if (frame->kind == PROBE_FRAME_WHO_HAS && tagger->canary_ip && frame->destination_ip == tagger->canary_ip)
                target->guest_asks_canary++;
        }
        if (frame->ifindex == request->bridge && frame->outgoing && frame->kind == PROBE_FRAME_IS_AT && host &&
            frame->source_ip == host && frame->destination_ip == asked->guest_ip)
            target->host_answers_guest++;
    }
}

void count_frame(const struct tagger *tagger, const struct probe_frame *frame) {
    count_guest(tagger, frame);
    if (frame->tag == TRACE_NO_TAG)
        return;
    size_t target = (size_t)frame->tag / PROBE_KIND_COUNT;
    enum probe_kind kind = (enum probe_kind)(frame->tag % PROBE_KIND_COUNT);
    bool common = kind >= PROBE_KIND_GUEST_COUNT;
    struct probe_answer *answer =
        common ? &tagger->result->common[kind - PROBE_KIND_GUEST_COUNT] : &tagger->result->targets[target].answer[kind];
    count_tagged(tagger, frame, answer, kind, common ? 0 : tagger->request->targets[target].tap);
    if (frame->reply && !frame->outgoing)
        count_mac(answer, frame->source);
    /* An ARP answer names an address too: the one that will be used. */
    if (frame->reply && !frame->outgoing && frame->kind == PROBE_FRAME_IS_AT && frame->kept >= 28) {
        struct net_mac named;
        memcpy(&named, frame->data + 22, sizeof named);
        count_mac(answer, named);
    }
}
