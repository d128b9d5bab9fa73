/* What is odd about a bridge's port, also in attributes that nobody here knows: in what it differs from the bridge's other
 * ports, which agree among themselves. No cause: evidence for what has none. */
#include <linux/if_link.h>

#include "doctor/rules/internal.h"

#define SHOWN_MAX 4

/* What says which port it is, counts or runs, and what only spanning tree asks for. */
static bool is_its_own(uint16_t type) {
    static const uint16_t types[] = {
        IFLA_BRPORT_PRIORITY,
        IFLA_BRPORT_COST,
        IFLA_BRPORT_ROOT_ID,
        IFLA_BRPORT_BRIDGE_ID,
        IFLA_BRPORT_ID,
        IFLA_BRPORT_NO,
        IFLA_BRPORT_DESIGNATED_PORT,
        IFLA_BRPORT_PAD,
        IFLA_BRPORT_DESIGNATED_COST,
        IFLA_BRPORT_CONFIG_PENDING,
        IFLA_BRPORT_MESSAGE_AGE_TIMER,
        IFLA_BRPORT_FORWARD_DELAY_TIMER,
        IFLA_BRPORT_HOLD_TIMER,
        IFLA_BRPORT_TOPOLOGY_CHANGE_ACK,
        IFLA_BRPORT_MCAST_EHT_HOSTS_CNT,
        SNAP_BRPORT_MCAST_N_GROUPS,
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i] == type)
            return true;
    return false;
}

/* Return: how many other ports have it, all with the same value; 0: none, or they differ. */
static uint32_t others_agree(const struct judge *j, uint16_t type, uint64_t *ret_value) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < j->s->links_count; i++) {
        const struct snap_link *link = &j->s->links[i];
        const struct snap_attr *attr = snap_attr_get(j->s, link, SNAP_ATTR_PORT, type);
        if (link == j->tap || !attr || !link->carrier || !snap_is_port(link, j->bridge->index))
            continue;
        if (count && attr->value != *ret_value)
            return 0;
        *ret_value = attr->value;
        count++;
    }
    return count;
}

void odd_port_evidence(const struct judge *j, struct cause *c) {
    uint64_t theirs = 0;
    uint32_t shown = 0;
    if (!j->tap || !j->bridge || !snap_is_port(j->tap, j->bridge->index))
        return;
    for (uint32_t i = 0; i < j->tap->attrs.count && shown < SHOWN_MAX; i++) {
        const struct snap_attr *attr = &j->s->attrs[j->tap->attrs.first + i];
        uint32_t others = 0;
        if (attr->space != SNAP_ATTR_PORT || is_its_own(attr->type))
            continue;
        if ((others = others_agree(j, attr->type, &theirs)) == 0 || theirs == attr->value)
            continue;
        const char *name = repair_port_attr_name(attr->type);
        cause_evidence(c, "bridge-port", j->tap->name,
                       "%s (attribute %u) is %llu; on the bridge's other ports (%u) it is %llu",
                       name ? name : "one that is not known here", attr->type, (unsigned long long)attr->value, others,
                       (unsigned long long)theirs);
        shown++;
    }
}
