/* Shared by the files of this folder. */
#pragma once

#include "doctor/probe/frame.h"
#include "doctor/probe/probe.h"
#include "netlink/rtnl.h"

/* --- kernel.c: what rtnetlink tells and is told --- */

#define KERNEL_NO_PORT 255

int kernel_counters(struct rtnl *rtnl, int32_t ifindex, struct probe_counters *ret);

/* The state of a bridge port (0 to 4), KERNEL_NO_PORT when it is none. Return: 0 or -errno. */
int kernel_port_state(struct rtnl *rtnl, int32_t ifindex, uint8_t *ret_state);

/* The entry for an address: the one on the preferred device, else, if `elsewhere`, one on any. */
int kernel_neighbour(struct rtnl *rtnl, uint32_t ip, int32_t preferred, bool elsewhere, struct probe_neighbour *ret);

/* ip neigh replace IP lladdr MAC dev DEV nud STATE */
int kernel_neighbour_set(struct rtnl *rtnl, int32_t ifindex, uint32_t ip, struct net_mac mac, uint16_t state);

/* --- capture.c --- */

struct capture;

#define CAPTURE_ADDRESSES 24

struct capture_filter {
    uint32_t addresses[CAPTURE_ADDRESSES];
    size_t address_count;
    int32_t taps[CAPTURE_ADDRESSES]; /* of which odd frames are wanted */
    size_t tap_count;
    /* On a bridge with many ports a broadcast leaves as a copy for each: on other devices than these, what leaves by
     * broadcast is not wanted then. */
    bool few_copies;
    bool no_arp_copies; /* nor ARP to one MAC, which is flooded too when the bridge does not know it */
    int32_t copies[CAPTURE_ADDRESSES + 2];
    size_t copy_count;
};

/* Sees every device of the namespace. Return: 0 or -errno. */
int capture_open(int nsfd, const struct capture_filter *filter, int *ret_fd);

/* The next frame. Return: 1, 0 when there is none now, -errno. */
int capture_next(int fd, int64_t realtime_offset_ns, struct probe_frame *ret);
uint32_t capture_lost(int fd);

/* --- canary.c --- */

struct canary {
    int fd; /* of the TAP; -1: none */
    int64_t made_ns;
    bool ready;   /* the bridge forwards */
    bool settled; /* the address is ours */
    uint32_t ip;
    uint32_t candidates; /* tried */
    int64_t asked_ns;    /* when the address was first asked for */
    int asks;
    bool denied; /* somebody has it */
};

int canary_make(const struct probe_request *request, struct rtnl *rtnl, struct canary *canary,
                struct probe_canary *ret);
void canary_close(struct canary *canary);

/* The next address to try: in the guest's own /24, inside the bridge's network, known to be nobody's. 0: none. */
uint32_t canary_choose(const struct probe_request *request, uint32_t after);

int canary_send(const struct canary *canary, const uint8_t *frame, size_t length);
/* A frame that the bridge gave to the canary. Return: 1, 0 when there is none, -errno. */
int canary_receive(const struct canary *canary, struct probe_frame *ret);

/* --- tags.c --- */

/* What the run needs to know its own frames again. */
struct tagger {
    const struct probe_request *request;
    struct probe_result *result;
    struct net_mac bridge_mac, canary_mac;
    bool has_canary;
    uint32_t canary_ip;
    uint16_t id_base;         /* ICMP id of a kind: id_base | kind */
    const uint16_t *tcp_port; /* our ports, a target each; 0: none */
    const uint16_t *raw_port;
};

/* ICMP ids of what is no question: probe_hint. */
#define ID_FIRST 14
#define ID_OUTSIDE 15
_Static_assert(PROBE_KIND_COUNT <= ID_FIRST, "a kind is the low four bits of an ICMP id");

/* Sets tag and reply of a frame; for an answer to ARP it looks at which question was asked last (answers of result). */
void tag_frame(const struct tagger *tagger, struct probe_frame *frame);

/* Counts a tagged frame at its place, and what guests ask on their own. */
void count_frame(const struct tagger *tagger, const struct probe_frame *frame);
void count_mac(struct probe_answer *answer, struct net_mac mac); /* one more that answered, if it is new */

/* --- events.c --- */

struct window {
    int64_t from_ns, to_ns;
    int32_t tag;
    pid_t tid;
};

/* Gives tags to what the trace has seen. */
void tag_trace(const struct tagger *tagger, const struct window *windows, size_t window_count);
