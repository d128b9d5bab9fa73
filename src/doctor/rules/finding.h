/* What the doctor says: hops with verdicts, findings with their evidence. Plain data; rules/ fills it, repair/ adds what
 * it did, report/ prints it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "doctor/repair/repair.h"
#include "model/net.h"

/* The way, in order: host to guest's service, the way back, and egress. Names in finding_hop_name(). */
enum hop {
    HOP_HOST_ROUTE,
    HOP_HOST_NEIGH,
    HOP_HOST_OUTPUT,
    HOP_BRIDGE_DEV,
    HOP_BRIDGE_OUTPUT,
    HOP_BRIDGE_FORWARD,
    HOP_BRIDGE_PORT,
    HOP_TAP_EGRESS,
    HOP_TAP_DEV,
    HOP_TAP_QUEUE,
    HOP_VMM,
    HOP_GUEST_NIC,
    HOP_GUEST_IP,
    HOP_GUEST_FIREWALL,
    HOP_GUEST_SERVICE,
    HOP_TAP_INGRESS,
    HOP_BRIDGE_INPUT,
    HOP_HOST_INPUT,
    HOP_HOST_FORWARD,
    HOP_HOST_NAT,
    HOP_HOST_UPLINK,
};
#define HOP_COUNT 21

enum verdict { VERDICT_UNKNOWN, VERDICT_PASS, VERDICT_FAIL, VERDICT_NOT_REACHED };
enum role { ROLE_ROOT_CAUSE, ROLE_CONTRIBUTING, ROLE_SYMPTOM, ROLE_NOTE };

#define FINDING_EVIDENCE_MAX 8
#define FINDING_PLAN_MAX 4
#define FINDINGS_MAX 48 /* of one target */
#define HOP_EVIDENCE_MAX 3

struct evidence {
    char source
        [16]; /* nft, link, bridge-port, fdb, neigh, route, qdisc, tc, xdp, sysctl, fdinfo, probe, trace, record */
    char where[96]; /* "bridge filter OUTPUT handle 4" */
    char fact[224];
};

/* What is wrong, why it is believed, what to do. steps belong to the finding's judgement. */
struct finding {
    char id[48];
    enum role role;
    enum hop hop;
    char layer[4];
    char title[192];
    char explanation[640];
    char advice[320]; /* what to do */
    struct evidence evidence[FINDING_EVIDENCE_MAX];
    uint8_t evidence_count;
    double confidence;
    bool safe;                 /* may be repaired without being asked */
    struct repair_step *steps; /* NULL: nothing that a program can do */
    uint8_t step_count;
    char plan[FINDING_PLAN_MAX][192]; /* what only a person or the VMM can do, in words */
    uint8_t plan_count;
    bool applied;
    char journal[REPAIR_ID_SIZE]; /* of what was applied; empty */
    char repair_error[160];       /* why it was not; empty */
    int8_t proven;                /* 1 yes, 0 no, -1 not tried */
};

struct hop_verdict {
    enum verdict verdict;
    struct evidence *evidence; /* up to HOP_EVIDENCE_MAX; NULL: none. Not an array: most hops of a sweep have none */
    uint8_t evidence_count;
};

/* What is looked at. */
struct target {
    char tap[16];
    char bridge[16]; /* that it should be a port of */
    char vm_id[40];  /* empty: no record */
    uint32_t ip;     /* 0: not known */
    bool has_mac;
    struct net_mac mac; /* of the guest */
    uint16_t port;      /* 0: none to be probed */
    bool named;         /* asked for by --tap or --vm */
    bool bridge_given;  /* by --bridge or the record: not guessed */
    bool ip_given;      /* by --guest-ip or the record: not guessed */
    bool mac_given;
};

#define ENDS_MAX 8
#define END_TEXT 128

/* One thing from both ends. agree: 1 yes, 0 no, -1 cannot be said. */
struct end_row {
    char what[16];
    enum hop hop;
    char host[END_TEXT], guest[END_TEXT];
    int8_t agree;
};

/* What is said about one target. findings and the hops' evidence are the judge's own memory: judgement_free(). */
struct judgement {
    struct target target;
    int8_t reachable; /* 1, 0, -1: not known */
    struct hop_verdict hops[HOP_COUNT];
    struct finding *findings;
    uint32_t findings_count;
    struct end_row *ends; /* NULL: the guest did not tell its end */
    uint8_t ends_count;
    int8_t guest_state; /* enum snap_guest_state; -1: nobody wanted to ask it */
    char guest_words[160];
    bool unjudged; /* it could not be judged at all: hints why */
};

const char *finding_hop_name(enum hop hop);
const char *finding_verdict_name(enum verdict verdict);
const char *finding_role_name(enum role role);
int finding_hop_parse(const char *name, enum hop *ret);
void judgement_free(struct judgement *j);
