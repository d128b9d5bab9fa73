/* Ready VMs that nobody has taken yet ([warm] pool_cli, pool_browser): each has been made up to the point at which its machine is
 * loaded and stands still, with a record, whose user is POOL_USER, and the state "creating": so a crash ends it like any VM that is
 * half made. Whoever creates a VM of that type and size gets it, and only what makes it a machine of its own is left to do.
 *
 * They are never in a user's way: an admission does not count them, and as many end as stand in its way. They are refilled one by
 * one while no other VM is on its way up or down and the host has room. */
#pragma once

#include "vm/machine.h"

#define POOL_USER "(pool)" /* no user's id: vm_user_check() */

/* Refills, and ends what does not fit any more. To be called now and then. */
void pool_check(struct vms *vms);

/* One could not be made: none is for a while, or there would be one failure after the other. */
void pool_put_off(struct vms *vms, enum vm_type type);

/* One that can be taken for this VM; NULL: there is none. */
struct machine *pool_find(struct vms *vms, const struct vm *wanted, const char *id);

/* A VM that was admitted is about to be made or brought back: ends those for which the host has no room beside it. NULL: beside
 * those that there are. */
void pool_yield(struct vms *vms, const struct vm *vm, uint32_t overhead_mib);

/* It is ready: it is looked after from here until it is taken. */
void pool_keep(struct machine *m);

unsigned pool_count(const struct vms *vms, enum vm_type type, bool only_ready);
unsigned pool_wanted(const struct vms *vms, enum vm_type type);
