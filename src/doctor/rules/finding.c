#include "doctor/rules/finding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const hop_names[HOP_COUNT] = {
    [HOP_HOST_ROUTE] = "host.route",
    [HOP_HOST_NEIGH] = "host.neigh",
    [HOP_HOST_OUTPUT] = "host.output",
    [HOP_BRIDGE_DEV] = "bridge.dev",
    [HOP_BRIDGE_OUTPUT] = "bridge.output",
    [HOP_BRIDGE_FORWARD] = "bridge.forward",
    [HOP_BRIDGE_PORT] = "bridge.port",
    [HOP_TAP_EGRESS] = "tap.egress",
    [HOP_TAP_DEV] = "tap.dev",
    [HOP_TAP_QUEUE] = "tap.queue",
    [HOP_VMM] = "vmm",
    [HOP_GUEST_NIC] = "guest.nic",
    [HOP_GUEST_IP] = "guest.ip",
    [HOP_GUEST_FIREWALL] = "guest.firewall",
    [HOP_GUEST_SERVICE] = "guest.service",
    [HOP_TAP_INGRESS] = "tap.ingress",
    [HOP_BRIDGE_INPUT] = "bridge.input",
    [HOP_HOST_INPUT] = "host.input",
    [HOP_HOST_FORWARD] = "host.forward",
    [HOP_HOST_NAT] = "host.nat",
    [HOP_HOST_UPLINK] = "host.uplink",
};

static const char *const verdict_names[] = {
    [VERDICT_UNKNOWN] = "unknown",
    [VERDICT_PASS] = "pass",
    [VERDICT_FAIL] = "fail",
    [VERDICT_NOT_REACHED] = "not-reached",
};

static const char *const role_names[] = {
    [ROLE_ROOT_CAUSE] = "root-cause",
    [ROLE_CONTRIBUTING] = "contributing",
    [ROLE_SYMPTOM] = "symptom",
    [ROLE_NOTE] = "note",
};

const char *finding_hop_name(enum hop hop) {
    return hop_names[hop];
}

const char *finding_verdict_name(enum verdict verdict) {
    return verdict_names[verdict];
}

const char *finding_role_name(enum role role) {
    return role_names[role];
}

int finding_hop_parse(const char *name, enum hop *ret) {
    for (size_t i = 0; i < HOP_COUNT; i++)
        if (strcmp(hop_names[i], name) == 0) {
            *ret = (enum hop)i;
            return 0;
        }
    return -EINVAL;
}

void judgement_free(struct judgement *j) {
    for (uint32_t i = 0; i < j->findings_count; i++)
        free(j->findings[i].steps);
    free(j->findings);
    j->findings = NULL;
    j->findings_count = 0;
    free(j->ends);
    j->ends = NULL;
    j->ends_count = 0;
    for (int hop = 0; hop < HOP_COUNT; hop++) {
        free(j->hops[hop].evidence);
        j->hops[hop] = (struct hop_verdict){.verdict = VERDICT_UNKNOWN};
    }
}
