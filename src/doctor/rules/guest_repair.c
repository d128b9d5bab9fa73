/* What the agent may put back: only in a VM that the controller has a record of, and only to what the record and the
 * bridge say. */
#include <string.h>

#include "base/str.h"
#include "doctor/rules/guest_inside.h"

bool inside_may_mend(const struct judge *j) {
    return inside_has_told(j) && j->vm && j->vm->ip == j->target->ip && j->bridge_address.address;
}

static struct repair_step *add_step(struct judge *j, struct cause *c, enum repair_action action, const char *dev) {
    struct repair_step *step = cause_step(c, action, dev);
    str_copy(step->object, sizeof step->object, j->vm->id);
    if (c)
        c->finding.safe = true;
    return step;
}

void inside_mend_link(struct judge *j, struct cause *c, const struct snap_guest_link *nic) {
    if (inside_may_mend(j))
        add_step(j, c, REPAIR_GUEST_LINK_UP, nic->name);
}

/* Another address of the bridge's network goes first: as the older of two it would take ours with it. anew: ours goes as
 * well, and brings the network's route when it comes back. */
void inside_mend_address(struct judge *j, struct cause *c, const struct snap_guest_link *nic, bool anew) {
    if (!inside_may_mend(j))
        return;
    for (uint32_t i = 0; i < j->guest->addrs.count; i++) {
        const struct snap_guest_addr *addr = &j->guest_s->guest_addrs[j->guest->addrs.first + i];
        bool ours = addr->ip == j->vm->ip, right = ours && !anew && addr->length == j->bridge_address.length;
        if (strcmp(addr->link, nic->name) == 0 && !right && (ours || net_contains(j->bridge_address, addr->ip)) &&
            (!c || c->finding.step_count < REPAIR_STEPS_MAX - 2))
            add_step(j, c, REPAIR_GUEST_ADDRESS_DELETE, nic->name)->prefix =
                (struct net_prefix){addr->ip, addr->length};
    }
    add_step(j, c, REPAIR_GUEST_ADDRESS_ADD, nic->name)->prefix =
        (struct net_prefix){j->vm->ip, j->bridge_address.length};
}

/* The default route, by way of the bridge. */
void inside_mend_route(struct judge *j, struct cause *c, const struct snap_guest_link *nic) {
    if (!inside_may_mend(j))
        return;
    struct repair_step *step = add_step(j, c, REPAIR_GUEST_ROUTE, nic->name);
    step->prefix = (struct net_prefix){0};
    step->gateway = j->bridge_address.address;
}

void inside_mend_unit(struct judge *j, struct cause *c, const char *unit) {
    if (!inside_may_mend(j))
        return;
    struct repair_step *step = add_step(j, c, REPAIR_GUEST_UNIT_RESTART, "");
    str_copy(step->text, sizeof step->text, unit);
}
