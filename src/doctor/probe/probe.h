/* Asks the path: sends frames to guests in every way that can die differently, looks at bridge, TAPs and everything
 * else at once while they travel, and says in plain data what was sent, seen, answered and lost. It judges nothing.
 *
 * All questions of one run share one clock, one capture and one trace, and are asked of all targets at once: the time
 * is bounded by PROBE_DEADLINE_MS however many do not answer (but see light, and a guest that is slow is waited for). When all answer it is over in a fraction of that.
 *
 *   host → guest      ARP by our own frame on the bridge's local output path (a neighbour entry cannot hide a fault),
 *                     ARP by the kernel (an entry that is not permanent is asked to be verified), ICMP echo, a burst of
 *                     them, a large one with DF, TCP connect, and a TCP SYN whose checksum is complete
 *   canary            a TAP of our own on the same bridge, with an address that is asked for first and must be free: is
 *                     it the bridge or the target's TAP? It asks the host (a guest's way in), and the guests (VM to VM)
 *   egress            the canary sends an echo request through the host to an address beyond it
 *
 * What is left behind: nothing. The canary's TAP, the sockets, the trace and its table go with the process.
 * Everything runs in the namespace of the request; the calling thread is where it was afterwards.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "doctor/trace/trace.h"
#include "model/net.h"

#define PROBE_NAME 16 /* a device's name with its NUL: IF_NAMESIZE, without net/if.h, which not all headers like */
#define PROBE_DEADLINE_MS 1300 /* one retry of ARP, which comes after a second */
#define PROBE_TARGETS_MAX 1024
#define PROBE_FRAMES_MAX 4096
#define PROBE_SNAP 192 /* bytes of a frame that are kept */
#define PROBE_MACS_MAX 4
#define PROBE_ELSEWHERE_MAX 4
#define PROBE_BURST 8 /* echo requests of the burst */

enum probe_kind {
    PROBE_ARP,              /* our own who-has, through the bridge's output path */
    PROBE_ARP_UNICAST,      /* the same to the guest's MAC, where it is known: reaches one port only */
    PROBE_ARP_KERNEL,       /* the kernel's own who-has: through its ARP hooks */
    PROBE_ICMP,             /* echo by the kernel's route */
    PROBE_BURST_ICMP,       /* PROBE_BURST echoes in a row: is only the first one good? */
    PROBE_LARGE,            /* echo of PROBE_LARGE_SIZE or the path's MTU with DF */
    PROBE_TCP,              /* connect() to the port; refused is answered, with errno */
    PROBE_TCP_RAW,          /* SYN with a complete checksum; asked only when PROBE_TCP got no answer */
    PROBE_CANARY_ARP,       /* canary → guest: who-has */
    PROBE_CANARY_ICMP,      /* canary → guest: echo (unicast both ways; the guest must find the canary by ARP) */
    PROBE_KIND_GUEST_COUNT, /* the kinds above are asked of each target, those below once */
    PROBE_CANARY_ARP_HOST = PROBE_KIND_GUEST_COUNT, /* canary → host: who-has the bridge's address */
    PROBE_CANARY_ICMP_HOST,                         /* canary → host: echo */
    PROBE_HOST_ICMP_CANARY, /* host → canary: echo by the kernel's route, with the kernel's ARP before it */
    PROBE_EGRESS,           /* canary → beyond the host: echo */
    PROBE_KIND_COUNT,
};
const char *probe_kind_name(enum probe_kind kind);

/* What a captured frame is. */
enum probe_frame_kind {
    PROBE_FRAME_OTHER,
    PROBE_FRAME_WHO_HAS,
    PROBE_FRAME_IS_AT,
    PROBE_FRAME_ECHO,
    PROBE_FRAME_ECHO_REPLY,
    PROBE_FRAME_ICMP_ERROR,
    PROBE_FRAME_SYN,
    PROBE_FRAME_SYN_ACK,
    PROBE_FRAME_RST,
    PROBE_FRAME_TCP,
    PROBE_FRAME_GARBLED, /* from the TAP: no source MAC that can be, or no EtherType that is known */
    PROBE_FRAME_KIND_COUNT,
};
const char *probe_frame_kind_name(enum probe_frame_kind kind);

#define PROBE_LARGE_SIZE 1500 /* bytes of an IP packet */

/* A frame seen by AF_PACKET. */
struct probe_frame {
    int64_t at_ns; /* CLOCK_MONOTONIC */
    int32_t ifindex;
    bool outgoing; /* PACKET_OUTGOING: the host gives it to the device; on a TAP that is towards the guest */
    enum probe_frame_kind kind;
    int32_t tag; /* probe_tag(), TRACE_NO_TAG: not an answer or question of ours */
    bool reply;  /* towards the one who asked */
    struct net_mac source, destination;
    uint16_t ethertype;
    uint32_t source_ip, destination_ip; /* of IPv4 or ARP, host byte order */
    uint8_t icmp_type, icmp_code;
    uint16_t echo_id, echo_sequence;        /* of an ICMP error: those of the packet that it is about */
    uint16_t source_port, destination_port; /* TCP */
    uint32_t length;                        /* bytes on the wire */
    uint32_t kept;
    uint8_t data[PROBE_SNAP];
};

/* Frames of one question seen at one place. */
struct probe_seen {
    uint32_t count;
    int64_t first_ns; /* 0: never */
};

/* Somewhere else: another port of the bridge, another device. */
struct probe_elsewhere {
    int32_t ifindex;
    char name[PROBE_NAME];
    uint32_t count;
};

struct probe_answer {
    bool asked;       /* it was tried; the rest is empty otherwise */
    char why_not[96]; /* not asked: why */
    bool sent;        /* at least one frame was taken by the socket */
    int send_errno;   /* positive; of the first refusal: ENETUNREACH, EPERM, EMSGSIZE, … */
    uint32_t sends;
    bool answered;    /* the one who asked has it: the socket read it, the neighbour entry took it, the canary got it */
    uint32_t answers; /* distinct ones */
    int answer_errno; /* PROBE_TCP: ECONNREFUSED and others; ICMP: what an ICMP error said; 0: a good answer */
    int64_t rtt_us;   /* of the first; -1: none */
    int64_t sent_ns;  /* CLOCK_MONOTONIC, first send */

    struct probe_seen request_bridge; /* on the bridge device, outgoing (for the canary's questions: incoming) */
    struct probe_seen request_tap;    /* on the target's TAP, outgoing */
    struct probe_seen reply_tap;      /* on the target's TAP, incoming */
    struct probe_seen reply_bridge;   /* on the bridge device, incoming */
    struct probe_seen request_canary, reply_canary;                /* canary's questions: on the canary's TAP */
    struct probe_elsewhere request_elsewhere[PROBE_ELSEWHERE_MAX]; /* flooded to, or routed by, another device */
    uint32_t request_elsewhere_count;
    struct probe_elsewhere reply_elsewhere[PROBE_ELSEWHERE_MAX]; /* an answer that came in on another port */
    uint32_t reply_elsewhere_count;
    struct net_mac macs[PROBE_MACS_MAX]; /* distinct Ethernet (ARP: sender hardware) addresses that answered */
    uint32_t mac_count;
    uint32_t mtu;  /* PROBE_LARGE: what the route told after EMSGSIZE; 0: not told */
    uint32_t size; /* PROBE_LARGE: bytes of the largest IP packet that was sent */
};

struct probe_link_counters {
    bool known;
    uint64_t rx_packets, tx_packets, rx_bytes, tx_bytes, rx_dropped, tx_dropped, rx_errors, tx_errors;
};

/* All qdiscs of a device together. */
struct probe_qdisc_counters {
    bool known;
    uint64_t packets, drops, overlimits;
    uint32_t backlog_packets, backlog_bytes;
};

struct probe_counters {
    struct probe_link_counters link;
    struct probe_qdisc_counters qdisc;
};

/* An echo request of our own making to a known MAC, which tells what the guest does on its own; nobody waits for it and
 * without an answer nothing is dead yet.
 *   first    from the bridge's address, before any ARP of ours could refresh what the guest remembers: its answer goes to
 *            the MAC that it takes for the host's (an old one: a black hole), or it asks for it first (guest_asks_host)
 *   outside  from an address of the host that is not in the bridge's network: a guest without a default route is silent */
struct probe_hint {
    bool asked;
    char why_not[64];
    uint32_t from; /* source address */
    uint32_t sends;
    uint32_t on_tap;            /* requests seen on the TAP */
    uint32_t answers;           /* seen on the TAP */
    struct net_mac answered_to; /* where the first went, when there is one */
};

/* A neighbour entry of the host for one address, on any device; state as in linux/neighbour.h, 0: none. */
struct probe_neighbour {
    uint16_t state;
    int32_t ifindex;
    bool has_mac;
    struct net_mac mac;
};

/* One guest to ask. */
struct probe_target {
    int32_t tap; /* ifindex; 0: the TAP is not there */
    char tap_name[PROBE_NAME];
    uint32_t guest_ip; /* host byte order; 0: not known, then only the frames on the TAP are watched */
    bool has_mac;
    struct net_mac guest_mac;
    uint16_t port;        /* TCP; 0: none */
    const pid_t *threads; /* of the processes that hold the TAP */
    size_t thread_count;
};

struct probe_request {
    int nsfd;
    int32_t bridge; /* ifindex; 0: there is none, then only the kernel's own path is asked */
    char bridge_name[PROBE_NAME];
    struct net_prefix bridge_address; /* .address 0: none */
    uint32_t bridge_mtu;
    bool bridge_stp; /* a canary would wait for 30 s: none is made */
    uint32_t bridge_ports;
    const struct probe_target *targets;
    size_t target_count;
    bool no_canary, no_trace;
    /* For many targets: ARP (to the guest's MAC where it is known), ICMP, and TCP where the host has a neighbour entry;
     * no canary, no trace, no entry is made in the host's table. Goes on beyond PROBE_DEADLINE_MS, to 4 s at most, while
     * answers come. With capture_lost an ARP answer may have been missed: ask the silent ones again without it. */
    bool light;
    uint32_t egress_to; /* an address beyond the host that would answer, such as the default gateway; 0: none */
    int32_t egress_ifindex;
    const uint32_t *taken; /* addresses that are known to be somebody's: no canary takes them */
    size_t taken_count;
};

struct probe_target_result {
    struct probe_target target; /* as asked; threads is NULL */
    struct probe_answer answer[PROBE_KIND_GUEST_COUNT];
    struct probe_counters tap_before, tap_after;
    struct probe_neighbour neighbour_before, neighbour_after;
    uint32_t guest_asks_host;    /* who-has for the bridge's address from the guest, seen on its TAP */
    uint32_t host_answers_guest; /* is-at towards it */
    uint32_t guest_frames;       /* all frames that were kept from the TAP, incoming */
    uint32_t garbled_frames;
    struct probe_hint first, outside;
    uint32_t guest_asks_canary; /* who-has for the canary's address */
};

struct probe_canary {
    bool made;
    char why_not[160];
    char name[PROBE_NAME];
    int32_t ifindex;
    uint32_t ip;
    struct net_mac mac;
    uint8_t port_state; /* of the bridge: 3 forwarding */
    int64_t ready_us;   /* from its making to its forwarding */
};

struct probe_result {
    struct probe_target_result *targets;
    size_t target_count;
    struct probe_answer common[PROBE_KIND_COUNT - PROBE_KIND_GUEST_COUNT]; /* by probe_answer() */
    struct probe_canary canary;
    struct probe_counters bridge_before, bridge_after;
    int32_t bridge;
    char bridge_name[PROBE_NAME];
    struct probe_frame *frames; /* by time */
    size_t frame_count;
    bool frames_truncated;
    uint32_t capture_lost;      /* frames that the kernel could not keep for us */
    int capture_errno;          /* positive: there is no capture (not root); 0 */
    struct trace_result *trace; /* NULL: not asked for */
    int64_t began_ns, ended_ns; /* CLOCK_MONOTONIC */
    int64_t realtime_offset_ns; /* CLOCK_REALTIME minus CLOCK_MONOTONIC */
};

/* The tag of a question, in frames and in the trace. */
static inline int32_t probe_tag(size_t target, enum probe_kind kind) {
    return (int32_t)(target * PROBE_KIND_COUNT + kind);
}

/* The answer to one question; `target` is not looked at for those that are asked once. */
const struct probe_answer *probe_answer(const struct probe_result *result, size_t target, enum probe_kind kind);

/* Waits until no other doctor asks in this namespace, at most wait_ms, and makes the others wait until the caller closes
 * *ret_fd, or ends. Return: 0; -EBUSY: one still does; or -errno. */
int probe_turn_take(int nsfd, int wait_ms, int *ret_fd);

/* Asks everything. What could not be asked is told by the answers (why_not), what could not be seen by capture_errno
 * and the trace's own words. Return: 0 with a result that the caller frees, or -errno ("probe.failed": no sockets at
 * all, no memory, the namespace cannot be entered). */
int probe_run(const struct probe_request *request, struct probe_result **ret, struct err *err);
void probe_result_free(struct probe_result *result);
void probe_result_freep(struct probe_result **result);
#define _cleanup_probe_result_free_ __attribute__((cleanup(probe_result_freep)))
