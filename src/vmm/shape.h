/* What has to be the same in a machine that saves and in those that load it, as one digest (vmm_ops.shape). */
#pragma once

#include <nettle/sha2.h>

#include "vmm/vmm.h"

struct shape {
    struct sha256_ctx sha;
};

void shape_begin(struct shape *shape);
void shape_add(struct shape *shape, const char *text);

/* What KVM gives a guest of the host: the processor's features, its microcode's and the kernel's word on them. They are others
 * after a reboot into another kernel, and in a folder that came from another machine. Source: proc(5), cpuinfo. */
void shape_add_host(struct shape *shape);

void shape_finish(struct shape *shape, char ret_digest[VMM_SHAPE_TEXT]);
