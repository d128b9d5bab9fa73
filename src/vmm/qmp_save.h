/* QEMU's machine put into a file, and taken out of it: migration to and from a descriptor, over a conversation of its own
 * that waits for each answer. QEMU speaks to one client at a time: qmp.c's must have hung up.
 * Source: QEMU, docs/devel/migration.rst; qapi/migration.json; "migrate" takes "fd:NAME" of a descriptor that "getfd"
 * handed over, and a descriptor needs neither a program (exec:, which its sandbox denies) nor a path that QEMU may see. */
#pragma once

#include "vmm/vmm.h"

/* As the operations of struct vmm_ops. */
int qmp_save(const struct vmm_saved *saved, char ret_version[VMM_VERSION_MAX], struct err *err);
int qmp_load(const struct vmm_saved *saved, const char *version, struct err *err);
int qmp_go(const struct vmm_saved *saved, struct err *err);
