/* Shared by the files of this folder. */
#pragma once

#include "doctor/rules/catalogue.h"
#include "doctor/rules/judge.h"

/* What can live or die, a bit each: the probe's questions, and paths that are only read. */
#define FLOW(kind) (1U << (kind))
enum {
    FLOW_PEER_BIT = PROBE_KIND_COUNT, /* another VM's first contact with this one */
    FLOW_PEER_UNICAST_BIT,            /* and what follows */
    FLOW_EGRESS_GUEST_BIT,            /* an echo from the guest itself */
    FLOW_EGRESS_TCP_BIT,
    FLOW_EGRESS_DNS_BIT,
    FLOW_SERVES_OTHERS_BIT, /* IPv6, neighbours' right to be private, … */
    FLOW_BITS,
};
#define FLOW_PEER (1U << FLOW_PEER_BIT)
#define FLOW_PEER_UNICAST (1U << FLOW_PEER_UNICAST_BIT)
#define FLOW_EGRESS_GUEST (1U << FLOW_EGRESS_GUEST_BIT)
#define FLOW_EGRESS_TCP (1U << FLOW_EGRESS_TCP_BIT)
#define FLOW_EGRESS_DNS (1U << FLOW_EGRESS_DNS_BIT)
#define FLOW_OTHER (1U << FLOW_SERVES_OTHERS_BIT)

#define FLOWS_ARP (FLOW(PROBE_ARP) | FLOW(PROBE_ARP_KERNEL))
#define FLOWS_IP (FLOW(PROBE_ICMP) | FLOW(PROBE_BURST_ICMP) | FLOW(PROBE_LARGE) | FLOW(PROBE_TCP) | FLOW(PROBE_TCP_RAW))
#define FLOWS_UNICAST (FLOWS_IP | FLOW(PROBE_ARP_UNICAST))
#define FLOWS_HOST (FLOWS_ARP | FLOWS_UNICAST)           /* host and this guest */
#define FLOWS_KERNEL (FLOW(PROBE_ARP_KERNEL) | FLOWS_IP) /* by the host's own routing */
#define FLOWS_CANARY (FLOW(PROBE_CANARY_ARP) | FLOW(PROBE_CANARY_ICMP))
#define FLOWS_PEER (FLOW_PEER | FLOW_PEER_UNICAST)
#define FLOWS_ROUTED (FLOW(PROBE_ARP_KERNEL) | FLOWS_IP)
#define FLOWS_GUEST (FLOWS_HOST | FLOWS_CANARY | FLOWS_PEER)
#define FLOWS_TO_HOST (FLOW(PROBE_CANARY_ARP_HOST) | FLOW(PROBE_CANARY_ICMP_HOST) | FLOW(PROBE_HOST_ICMP_CANARY))
#define FLOWS_EGRESS (FLOW(PROBE_EGRESS) | FLOW_EGRESS_GUEST | FLOW_EGRESS_TCP | FLOW_EGRESS_DNS)
#define FLOWS_ALL ((1U << FLOW_BITS) - 1)

#define HOPBIT(hop) (1U << (hop))

/* How far one question came. */
struct path {
    bool asked, alive;
    bool exact;      /* the kernel itself said where it died, or it was seen */
    enum hop dies;   /* the likeliest */
    uint32_t hops;   /* all hops that fit what was seen, HOPBIT() */
    uint32_t passed; /* hops that it was seen to pass */
    struct trace_where out, back;
    bool has_trace;
    bool unread; /* it rests in a queue of the TAP, while others are read */
    struct evidence evidence[3];
    uint8_t evidence_count;
};

/* A cause that may be. */
struct cause {
    struct finding finding;
    uint32_t kills, may; /* flows */
    bool note;           /* told even if nothing is dead, and never a cause by itself */
    bool guessed;        /* its title speaks of a packet that it only may drop */
    bool hidden;         /* it explains what the canary met, and does nothing to a VM: not told */
    bool seen;           /* the trace, or a counter that moved, shows it at work: a may is as good as a kill */
    bool refutable;      /* a living flow that it would kill proves it wrong (most) */
    bool policy;         /* root cause though nothing was asked: the state itself is the hurt */
};

struct judge {
    const struct judge_host *host;
    const struct snapshot *s;
    const struct probe_result *probe;
    const struct probe_target_result *t; /* NULL: not asked */
    size_t t_index;
    struct judgement *out;
    const struct target *target;
    const struct snap_link *tap, *bridge;
    const struct snap_holder *holder;
    const struct snap_vm *vm;
    const struct snap_guest *guest;   /* what its agent told, or why it did not; NULL: nobody asked it */
    const struct snapshot *guest_s;   /* that it stands in */
    struct net_prefix bridge_address; /* .address 0: none */
    bool has_mac;
    struct net_mac mac; /* of the guest, as far as known */
    struct path paths[PROBE_KIND_COUNT];
    uint32_t asked, alive, dead; /* flows */
    struct cause *causes;
    uint32_t causes_count, causes_cap;
};

/* --- judge.c --- */

/* A cause of the catalogue. The pointer is good until the next one is added. NULL without memory. */
struct cause *cause_add(struct judge *j, const char *id, uint32_t kills, uint32_t may, const char *title, ...)
    __attribute__((format(printf, 5, 6)));
void cause_evidence(struct cause *c, const char *source, const char *where, const char *fact, ...)
    __attribute__((format(printf, 4, 5)));
void finding_evidence(struct finding *f, const char *source, const char *where, const char *fact, ...)
    __attribute__((format(printf, 4, 5)));
struct repair_step *cause_step(struct cause *c, enum repair_action action, const char *dev);
void cause_plan(struct cause *c, const char *text, ...) __attribute__((format(printf, 2, 3)));
void evidence_set(struct evidence *e, const char *source, const char *where, const char *fact, ...)
    __attribute__((format(printf, 4, 5)));

/* Text of addresses, in buffers of the caller's expression. */
struct ip_text {
    char text[NET_IP_TEXT];
};
struct mac_text {
    char text[NET_MAC_TEXT];
};
struct ip_text ip_text(uint32_t ip);
struct mac_text mac_text(struct net_mac mac);
bool mac_equal(struct net_mac a, struct net_mac b);

const struct probe_answer *judge_answer(const struct judge *j, enum probe_kind kind);
const struct snap_link *judge_after(const struct judge *j, const struct snap_link *link);

/* An ARP answer whose frame comes from one MAC and that names another: one machine, and somebody rewrites what it says,
 * or it does so itself. NULL: there was none. */
const struct probe_frame *judge_odd_answer(const struct judge *j, struct net_mac *ret_named);

/* A question in words: "TCP", "a port's ping to the host". */
const char *path_words(enum probe_kind kind);

/* The kernel's own answer for what the host itself sends. NULL: it was not asked. */
const struct snap_lookup *judge_lookup(const struct snapshot *s, uint32_t to);
void judge_lookup_evidence(const struct judge *j, struct cause *c, const struct snap_lookup *l);
/* egress.c: the device that leads to the outside. NULL: none. And what the gateway behind it said to the host, asked where
 * a VM got no answer from it. */
const struct snap_link *judge_uplink(const struct judge *j);
enum gateway_word { GATEWAY_NOT_ASKED, GATEWAY_SILENT, GATEWAY_ANSWERS_ARP, GATEWAY_ANSWERS_PING };
enum gateway_word judge_gateway(const struct judge *j, struct net_mac *ret_mac);

/* filters.c: a rule of nftables as a cause, with its text and the step that deletes it; title: "<where> <what>". */
struct cause *judge_nft_cause(struct judge *j, const char *id, uint32_t may, const struct snap_nft_rule *rule,
                              const char *what);

/* routes.c: the outside is thrown away by a route of the host's. NULL: it is not. */
struct cause *judge_thrown_away(struct judge *j, const struct snap_lookup *l);

#define POLICY_TABLE "master_controller" /* the controller's own, of the bridge and the inet family */

/* Whether VMs may not reach each other because the controller wants it so. */
bool policy_separates_vms(const struct judge *j);

/* Whether the controller's firewall stops a VM with this MAC that claims this address, because it is another's. */
bool policy_stops_claim(const struct judge *j, struct net_mac mac, uint32_t ip);

/* --- the rules --- */
void path_trace_all(struct judge *j);
bool rules_leaked(struct judge *j); /* whether it is a TAP that a dead VM left: the others are not to be run then */
void rules_links(struct judge *j);
void rules_bridge(struct judge *j);
void rules_policy(struct judge *j);
void rules_filters(struct judge *j);
void rules_tc(struct judge *j);
void rules_routes(struct judge *j);
void rules_host(struct judge *j);
void rules_egress(struct judge *j);
void rules_vmm(struct judge *j);
void rules_guest(struct judge *j);   /* after the others: what only the way of the frames tells */
void rules_unknown(struct judge *j); /* last */
void rules_counted(struct judge *j); /* what the VMM has counted, to the causes at its hops and behind */

/* --- guest_inside.c: the guest's word, where the host saw frames go in and nothing come back. heard: frames came out of
 * the VM meanwhile; heard_as: with the address that it should have. Return: whether that was all there is to say. --- */
bool inside_silent(struct judge *j, bool heard, bool heard_as);
bool inside_deaf(struct judge *j);
bool inside_says_well(const struct judge *j); /* it has told all there is, and nothing of it explains a loss */
bool inside_tcp(struct judge *j, bool refused);
bool inside_egress(struct judge *j, uint32_t unanswered); /* a gateway that it asked for, and nobody answered */
void inside_state(struct judge *j);                       /* where nothing was asked */
void inside_contradictions(struct judge *j, bool heard, bool heard_as);
void guest_ends(struct judge *j); /* guest_ends.c */

/* Whether a cause that was added so far explains this flow at one of these hops. */
bool judge_is_explained(const struct judge *j, enum probe_kind kind, uint32_t hops);
bool cause_counts(const struct judge *j, const struct cause *c);

void odd_port_evidence(const struct judge *j, struct cause *c); /* odd.c */

/* --- acquit.c: which flows, and which programs, are not to be suspected at a device --- */
uint32_t acquit_flows_left(const struct judge *j, const struct snap_link *link);     /* behind its qdisc and tc */
uint32_t acquit_flows_not_come(const struct judge *j, const struct snap_link *link); /* never in front of tc */
bool acquit_program(const struct judge *j, const struct snap_link *link, bool egress);
bool acquit_by_gateway(const struct judge *j, const struct snap_link *link, bool egress);
void acquit_rules(struct judge *j); /* of nftables: what the trace followed past them */

/* --- rank.c --- */
int rank_findings(struct judge *j);
void rank_hops(struct judge *j);
void rank_reachable(struct judge *j);
