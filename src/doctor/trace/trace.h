/* What the kernel itself says about packets: tracefs (where a packet was queued, sent, received, dropped and why) and
 * nftrace (which nftables rule decided). Both are private to the run, need no module and no BPF, and are gone when
 * the process is: the trace instance of a dead doctor is removed by the next one, the nftables table is owned by a
 * socket and dies with it.
 *
 * An event carries a tag that the prober gives it (trace_tag_window(), trace_tag_moment()): which of its questions
 * the event belongs to. Sending runs in the sender's thread from the socket down to the TAP's queue, so a time window
 * around one send holds exactly that frame's events.
 *
 * Source: Documentation/trace/events.rst, nft(8) "meta nftrace", include/uapi/linux/netfilter/nf_tables.h.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define TRACE_NAME 16  /* a device's name with its NUL */
#define TRACE_WORD 48  /* a function or a reason, with its NUL */
#define TRACE_STACK 20 /* functions of a drop's call chain that are kept */
#define TRACE_EVENTS_MAX 8192
#define TRACE_STACKS_MAX 512
#define TRACE_RULES_MAX 4096
#define TRACE_RULE_TEXT 65
#define TRACE_TIDS_MAX 1024
#define TRACE_ADDRESSES_MAX 16          /* that nftrace can follow at once; with more, nothing is traced in nftables */
#define TRACE_TABLE_PREFIX "mc-doctor-" /* our own nftables tables: not part of the host's rules */
#define TRACE_NO_TAG (-1)

enum trace_kind {
    TRACE_QUEUED,    /* net_dev_queue: handed to the device's qdisc */
    TRACE_XMIT,      /* net_dev_start_xmit: handed to the driver */
    TRACE_XMIT_DONE, /* net_dev_xmit: the driver's answer, rc */
    TRACE_RECEIVED,  /* netif_receive_skb: came in on the device */
    TRACE_DROPPED,   /* kfree_skb: location, reason, call chain */
    TRACE_CONSUMED,  /* consume_skb: location; at tun_do_read: the VMM has read it */
    TRACE_NEIGHBOUR, /* neigh_update: reason holds "old->new" */
    TRACE_REFUSED,   /* a write of a VMM's thread that the kernel refused; rc: the negative errno */
    TRACE_KIND_COUNT,
};
const char *trace_kind_name(enum trace_kind kind);

struct trace_event {
    enum trace_kind kind;
    int64_t at_ns;        /* CLOCK_MONOTONIC */
    pid_t tid;            /* in whose context it happened */
    int32_t tag;          /* TRACE_NO_TAG: none of ours */
    bool reply;           /* on the way back from the guest */
    bool noise;           /* seen on healthy paths too: no evidence */
    char dev[TRACE_NAME]; /* of a drop: the last device on which this packet, or the one it is a copy of, was seen;
                           * empty: not known */
    uint64_t skb;
    uint32_t length;   /* bytes without the Ethernet header where the kernel has taken it off; 0: not told */
    uint16_t protocol; /* EtherType; 0: not told */
    int32_t rc;
    char location[TRACE_WORD];
    char reason[TRACE_WORD];
    int32_t stack; /* index into stacks; -1: none */
};

/* A drop's call chain, innermost function first; empty strings behind the last. */
struct trace_stack {
    char function[TRACE_STACK][TRACE_WORD];
};

enum trace_rule_kind {
    TRACE_RULE_MATCHED, /* a rule was evaluated and its verdict is `verdict` */
    TRACE_RULE_POLICY,  /* the chain's end: its policy */
    TRACE_RULE_RETURN,
};

/* One step of a packet through nftables. */
struct trace_rule {
    enum trace_rule_kind kind;
    int64_t at_ns;
    int32_t tag;
    bool reply;
    uint32_t id; /* the same for all steps of one packet */
    char family[8];
    char table[TRACE_RULE_TEXT], chain[TRACE_RULE_TEXT];
    uint64_t handle;               /* of the rule; 0 for a policy */
    char verdict[TRACE_RULE_TEXT]; /* "drop", "accept", "continue", "jump", … */
    char jump_to[TRACE_RULE_TEXT];
    char iif[TRACE_NAME], oif[TRACE_NAME];
    bool has_macs; /* of the link layer's header, where the hook has one */
    uint8_t source_mac[6], destination_mac[6];
    uint16_t ethertype;
    uint8_t ip_protocol;          /* 0: not IP */
    uint32_t source, destination; /* IPv4 or ARP protocol addresses, host byte order; 0: not told */
    uint16_t arp_operation;
    uint16_t source_port, destination_port; /* TCP and UDP */
    uint16_t echo_id;
    uint8_t icmp_type;
};

/* What one of the two could do: 0, or the errno and a sentence why not. */
struct trace_had {
    bool had;
    int errnum;
    char why[160];
};

struct trace_result {
    struct trace_had tracefs, nftrace;
    struct trace_event *events;
    size_t event_count;
    struct trace_stack *stacks;
    size_t stack_count;
    struct trace_rule *rules;
    size_t rule_count;
    bool truncated; /* more was seen than is kept */
};

struct trace_request {
    int nsfd;
    const pid_t *tids; /* besides the calling thread: the VMMs' processes, each with all of its threads */
    size_t tid_count;
    const uint32_t *addresses; /* whose packets nftrace follows, host byte order */
    size_t address_count;
    const char *const *devices; /* whose netdev hooks it looks into (bridge, TAP), may be NULL */
    size_t device_count;
};

struct trace;

/* Starts both. Never fails for want of permission or of a kernel feature: what could not be had is told by the
 * result. Return: 0 or -ENOMEM. */
int trace_start(const struct trace_request *request, struct trace **ret);

/* Takes what nftrace has told so far, so that its socket does not overflow: call it now and then. */
void trace_poll(struct trace *trace);

/* Adds an address for nftrace to follow while running (a canary's). Return: 0 or -errno. */
int trace_follow(struct trace *trace, uint32_t address);

/* Stops, removes the instance and the table, and gives what was seen; the caller frees it. */
int trace_stop(struct trace *trace, struct trace_result **ret);
void trace_result_free(struct trace_result *result);
void trace_result_freep(struct trace_result **result);
#define _cleanup_trace_result_free_ __attribute__((cleanup(trace_result_freep)))

/* Everything that happened in thread tid (0: any) between the two moments, on one of these devices or on none that is
 * known, belongs to this tag. */
void trace_tag_window(struct trace_result *result, pid_t tid, int64_t from_ns, int64_t to_ns,
                      const char *const *devices, size_t device_count, int32_t tag, bool reply);

/* A frame was received on a device at about this moment: its event and those that follow it in the same thread, until
 * the next frame, get the tag. Return: whether such an event was there. */
bool trace_tag_received(struct trace_result *result, const char *dev, int64_t at_ns, int32_t tag, bool reply);

/* Reads of a TAP get the tag of what was sent to it. To be called after the windows are tagged. */
void trace_tag_readers(struct trace_result *result);

/* --- what follows from it: plain facts --- */

enum trace_point {
    TRACE_AT_NOTHING, /* no event of it */
    TRACE_AT_QUEUE,   /* the last thing seen is its queueing on `dev` */
    TRACE_AT_DRIVER,  /* handed to dev's driver, which took it (rc 0) */
    TRACE_AT_READER,  /* read from dev's TAP by `tid` */
    TRACE_AT_RECEIVE, /* came in on dev */
};
const char *trace_point_name(enum trace_point point);

struct trace_where {
    enum trace_point last;
    char dev[TRACE_NAME]; /* of the last point */
    pid_t tid;
    bool dropped; /* with the first drop that is not noise: */
    char drop_dev[TRACE_NAME];
    char drop_reason[TRACE_WORD];
    char drop_location[TRACE_WORD];
    const struct trace_stack *drop_stack; /* NULL: not known; belongs to the result */
    char drop_hook[28];                   /* trace_hook_of() */
    bool drop_at_port;             /* the call chain goes through a port of a bridge: not at the bridge device itself */
    bool legacy_table;             /* dropped by an xtables (legacy) hook, not by nftables */
    const struct trace_rule *rule; /* the nftables rule or policy that dropped it; NULL: none seen */
};

/* What became of the packets with this tag on their way there (reply false) or back. `dev` is the
 * device that was reached last: when a bridge hands a frame to its port, the port, though the bridge ends later. */
void trace_where(const struct trace_result *result, int32_t tag, bool reply, struct trace_where *ret);

/* --- parsing, pure --- */

/* Reads one line of a trace file. Fields are found by their names. Return: 1 for an event, 2 for a line of a call chain
 * (its function in ret->location), 0 for a line that is neither. */
int trace_parse_line(const char *line, size_t length, struct trace_event *ret);

/* Whether a drop is one that healthy paths have too. */
bool trace_is_noise(const struct trace_event *event);

/* Where in the stack of layers a drop happened, as its call chain, location and reason tell:
 *   netfilter  "bridge.prerouting", "bridge.input", "bridge.forward", "bridge.output", "bridge.postrouting";
 *              "ip.prerouting", "ip.input", "ip.forward", "ip.output", "ip.postrouting"; "arp.input", "arp.output";
 *              "br_netfilter.prerouting", "br_netfilter.forward", "br_netfilter.input", "br_netfilter.postrouting" (ip
 *              rules that see bridged packets); "netdev.ingress", "netdev.egress"
 *   other      "tc.ingress", "tc.egress", "qdisc", "xdp", "tap.queue" (TUN takes the frame for its reader), "tap.write"
 *              (TUN takes a frame from the VMM), "bridge.port" (state, source address), "bridge.fdb" (no port to go to),
 *              "ip.route", "ip.options", "neighbour", "device" (down, no carrier), "socket"
 *   ""         none of these: location, reason and call chain are all there is */
const char *trace_hook_of(const struct trace_event *event, const struct trace_stack *stack);
