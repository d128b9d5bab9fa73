/* Makes a template: boots a VM that nobody can reach, lets it settle, stops and keeps it. Minutes under emulation; for a worker. The
 * VMM ends with the worker's thread, so a daemon that dies leaves a folder alone, and of a VMM in its jailer, which is let off when it
 * becomes the VM's user, that too, with its TAP: template_sweep() removes it, with template_boot_release(). */
#pragma once

#include <stdatomic.h>

#include "vm/machine.h"
#include "vm/template.h"

struct template_boot {
    struct vms *vms;
    const struct template_wish *wish;
    int jail_fd;                    /* confine_jail(); 0: none */
    const atomic_bool *is_unwanted; /* somebody else needs the room: it is broken off */
};

/* Errors: "template.unwanted" -EINTR; "warm.not-here" (this VMM cannot, with words); "template.unsettled" (it did not come up, with what it waited for); those of the VMM. */
int template_make(const struct template_boot *params, struct template *ret_template, struct err *err);

/* Ends the VMM of one that was being made when a daemon died, and removes its TAP and its control group; userdata: the vms.
 * Return: 0, or -errno where something stays, with a word in the log. */
int template_boot_release(void *userdata, enum vm_type type, const char *vm_id, const char *folder);
