/* Makes a template: boots a VM that nobody can reach, lets it settle, stops and keeps it. Minutes under emulation; for a worker. The
 * VMM ends with the worker's thread, so a daemon that dies leaves a folder alone, which template_sweep() removes. */
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

/* Errors: "template.unwanted" -EINTR; "template.unsettled" (it did not come up, with what it waited for); those of the VMM. */
int template_make(const struct template_boot *params, struct template *ret_template, struct err *err);
