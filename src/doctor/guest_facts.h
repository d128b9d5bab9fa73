/* What the agent in a guest said of its own network, as rows of the snapshot. It came over a channel that needs no
 * network, by way of the daemon that holds it.
 *
 * All of it is the word of a guest that may lie: it explains what the host saw go into the guest and not come back, and
 * is never believed over what the host saw itself. Every list is cut at a hard limit (GUEST_…_MAX); names and texts are
 * the guest's bytes, cut to the member's size: whoever prints them escapes them. */
#pragma once

#include "model/net.h"

#define SNAP_NAME 16 /* an interface's, with the NUL */
#define SNAP_TEXT 64

/* Rows `first` to `first + count - 1` of another table. */
struct snap_range {
    uint32_t first, count;
};

/* Of one guest. */
#define GUEST_LINKS_MAX 32
#define GUEST_ADDRS_MAX 64
#define GUEST_ROUTES_MAX 128
#define GUEST_NEIGHS_MAX 128
#define GUEST_LISTENERS_MAX 128
#define GUEST_UNITS_MAX 32
#define GUEST_CHAINS_MAX 64
#define GUEST_RULES_MAX 128
#define GUEST_EXPRS_MAX 2048
#define GUEST_FACTS_MAX 128

enum snap_guest_state {
    SNAP_GUEST_UNASKED,   /* there is no daemon to ask, or it does not know the VM */
    SNAP_GUEST_NO_AGENT,  /* its image has none */
    SNAP_GUEST_NOT_READY, /* it does not answer the daemon */
    SNAP_GUEST_SILENT,    /* it was ready, and did not answer this question */
    SNAP_GUEST_TOLD,      /* what it said is here */
};

/* One guest that was to be asked. Numbers that it did not tell are -1. */
struct snap_guest {
    char vm_id[40];
    char tap[SNAP_NAME];
    uint8_t state;   /* enum snap_guest_state */
    bool complete;   /* none of its lists was cut, on either side */
    char words[160]; /* about its agent, or why it was not asked */
    int64_t uptime_s, oom_kills;
    int32_t ignores_ping, rp_filter, arp_ignore; /* of "all" */
    bool firewall_known;                         /* its nftables rules could be read there */
    char firewall_words[SNAP_TEXT];              /* why not; legacy tables in use */
    struct snap_range links, addrs, routes, neighs, listeners, units, chains, rules, facts;
};

struct snap_guest_link {
    char name[SNAP_NAME], kind[SNAP_NAME];
    int32_t index;
    bool up, carrier, noarp;
    int32_t arp_ignore; /* its own; the larger of it and that of "all" counts. -1: not told */
    struct net_mac mac;
    uint32_t mtu; /* bytes */
    uint64_t rx_packets, tx_packets, rx_dropped, tx_dropped, rx_errors, tx_errors;
};

struct snap_guest_addr {
    char link[SNAP_NAME];
    uint32_t ip;
    uint8_t length; /* prefix, bits */
};

struct snap_guest_route {
    uint32_t to;
    uint8_t length;
    uint8_t type;     /* RTN_…; RTN_UNSPEC: another one */
    uint32_t gateway; /* 0: on the link */
    char link[SNAP_NAME];
    uint32_t source, metric, table;
};

struct snap_guest_neigh {
    uint32_t ip;
    char link[SNAP_NAME];
    bool has_mac;
    struct net_mac mac;
    char state[16];
};

/* Who listens; IPv6 sockets only where they take IPv4 as well, or the loopback's. */
struct snap_guest_listener {
    char protocol[8]; /* tcp, tcp6, udp, udp6 */
    bool any, loopback;
    uint32_t ip; /* where it is neither */
    uint16_t port;
    uint32_t queue; /* connections that wait to be accepted */
    int32_t pid;    /* 0: not known */
    char program[32];
};

/* A unit of systemd that failed, or that is the service's own. */
struct snap_guest_unit {
    char name[SNAP_TEXT];
    char load[16], active[16], sub[24], result[24], enabled[16];
    char restarts[16];
};

/* Something that it said and that nobody here knows what to do with: kept for who reads the snapshot. */
struct snap_guest_fact {
    char name[96]; /* "network.resolver.text" */
    char value[160];
};
