#include <stdlib.h>

#include "doctor/probe/probe.h"

const char *probe_kind_name(enum probe_kind kind) {
    static const char *const names[PROBE_KIND_COUNT] = {
        [PROBE_ARP] = "arp",
        [PROBE_ARP_UNICAST] = "arp-unicast",
        [PROBE_ARP_KERNEL] = "arp-kernel",
        [PROBE_ICMP] = "icmp",
        [PROBE_BURST_ICMP] = "icmp-burst",
        [PROBE_LARGE] = "icmp-large",
        [PROBE_TCP] = "tcp",
        [PROBE_TCP_RAW] = "tcp-checksummed",
        [PROBE_CANARY_ARP] = "canary-arp",
        [PROBE_CANARY_ICMP] = "canary-icmp",
        [PROBE_CANARY_ARP_HOST] = "canary-arp-host",
        [PROBE_CANARY_ICMP_HOST] = "canary-icmp-host",
        [PROBE_HOST_ICMP_CANARY] = "host-icmp-canary",
        [PROBE_EGRESS] = "egress",
    };
    return (unsigned int)kind < PROBE_KIND_COUNT ? names[kind] : "unknown";
}

const char *probe_frame_kind_name(enum probe_frame_kind kind) {
    static const char *const names[PROBE_FRAME_KIND_COUNT] = {
        [PROBE_FRAME_OTHER] = "other", [PROBE_FRAME_WHO_HAS] = "who-has",       [PROBE_FRAME_IS_AT] = "is-at",
        [PROBE_FRAME_ECHO] = "echo",   [PROBE_FRAME_ECHO_REPLY] = "echo-reply", [PROBE_FRAME_ICMP_ERROR] = "icmp-error",
        [PROBE_FRAME_SYN] = "syn",     [PROBE_FRAME_SYN_ACK] = "syn-ack",       [PROBE_FRAME_RST] = "rst",
        [PROBE_FRAME_TCP] = "tcp",     [PROBE_FRAME_GARBLED] = "garbled",
    };
    return (unsigned int)kind < PROBE_FRAME_KIND_COUNT ? names[kind] : "unknown";
}

const struct probe_answer *probe_answer(const struct probe_result *result, size_t target, enum probe_kind kind) {
    static const struct probe_answer none = {.rtt_us = -1};
    if (kind >= PROBE_KIND_GUEST_COUNT)
        return kind < PROBE_KIND_COUNT ? &result->common[kind - PROBE_KIND_GUEST_COUNT] : &none;
    return target < result->target_count ? &result->targets[target].answer[kind] : &none;
}

void probe_result_free(struct probe_result *result) {
    if (!result)
        return;
    free(result->targets);
    free(result->frames);
    trace_result_free(result->trace);
    free(result);
}

void probe_result_freep(struct probe_result **result) {
    probe_result_free(*result);
}
