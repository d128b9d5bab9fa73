/* Inside of vm/template: which files a template has beside its memory and its manifest, for each sort of VMM.
 *
 *     QEMU          state/memory    the rest of the machine
 *                   template.qcow2  what the guest has written to its disk, over base.ext4, the image
 *                   overlay.qcow2   an empty overlay over that: each VM gets a copy
 *     Firecracker   state/machine.state
 *                   overlay.ext4    what the guest has written to its disk, beside base.ext4, the image; or disk.ext4, both, where
 *                                   the file system has reflinks: each VM gets a copy
 *
 * All but the copies are the same files in the template's folder and in its VMs', and never change. */
#pragma once

#include <jansson.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/err.h"
#include "vmm/vmm.h"

/* Makes them of what a machine that was saved, and has ended, has left in its folder. disk_bytes: of its disk. */
int layout_settle(const struct vmm_ops *ops, const char *folder, uint64_t disk_bytes, struct err *err);

/* {"state/memory":{"bytes":…,"sha256":…}, …}, and what of all of them is not zero. The image's part has digests of its own.
 * Errors: "template.broken", "template.unwanted" -EINTR. */
int layout_digest(const struct vmm_ops *ops, const char *folder, const atomic_bool *is_unwanted, json_t *ret_files,
                  uint64_t *ret_bytes, struct err *err);

/* Puts them, and the memory where the VMM maps it from a file, into a VM's folder. */
int layout_clone(const struct vmm_ops *ops, const char *template_folder, const char *folder, struct err *err);
