/* Firecracker's machine put into two files, and taken out of them: over its API, by a conversation that waits for each answer.
 *
 * It opens them by name and as the VM's uid, like everything else, so they stand in its root folder as hard links for as long
 * as it is spoken to about them. The files themselves lie in the VM's folder, which it does not reach; those that it loads
 * belong to root, and it may only read them: what it maps must never change. A template's are so for good, and many VMs' at once.
 * Source: Firecracker, firecracker.yaml (/vm, /snapshot/create, /snapshot/load), docs/snapshotting/snapshot-support.md: before
 * a load only logger, metrics and serial may be set; network_overrides since 1.12; the vsock is reset; a failed load ends it. */
#pragma once

#include "vmm/vmm.h"

/* As the operations of struct vmm_ops. */
int fc_save(const struct vmm_saved *saved, char ret_version[VMM_VERSION_MAX], struct err *err);
int fc_load(const struct vmm_saved *saved, const char *version, struct err *err);
int fc_go(const struct vmm_saved *saved, struct err *err);
int fc_check_shape(const struct vmm_saved *saved, struct err *err);
