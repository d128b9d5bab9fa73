/* A machine as Firecracker takes it: vm-config.json, and the requests that say the same over its API. Pure but for
 * reading and writing that one file.
 * Source: firecracker.yaml; Firecracker's config-file format, whose top-level keys are kebab-case. */
#pragma once

#include <jansson.h>

#include "vmm/fc_talk.h"

/* The folder that Firecracker sees as its own (its working directory, and its root when it is jailed), below the VM's;
 * a symbolic link of ours to where the jailer wants it, when it is jailed. */
#define FC_ROOT "root"

/* Names in there. vmm.log and metrics.json are hard links: the VM's folder has them too, out of reach of the VMM. */
#define FC_KERNEL "vmlinux"
#define FC_INITRD "initrd.img"
#define FC_BASE "base.ext4" /* the disks, as image_clone_raw() calls them: either the first two, or the last */
#define FC_OVERLAY "overlay.ext4"
#define FC_DISK "disk.ext4"
#define FC_LOG "vmm.log"
#define FC_METRICS "metrics.json"
#define FC_VSOCK "vsock.sock"
#define FC_NIC "eth0" /* its id */

/* In the VM's folder: the machine that it runs was loaded from a template's. What Firecracker thinks of it (the MAC that it was
 * configured with) is the template's then, and vm-config.json is what a cold start would make of it. */
#define FC_CLONE_MARK ".clone"

/* The machine, with paths of the host: who starts Firecracker with it by hand, as root, gets the same machine.
 * shared_base: the root drive is the image itself, read-only, and a second drive takes what the guest writes; else the
 * root drive is the VM's own. Return: NULL when out of memory. */
json_t *fc_config_make(const struct vmm_spec *spec, bool shared_base);

#define FC_PARTS_MAX (FC_REQUESTS_MAX - 3) /* requests of one machine; three more are asked before them */

/* The requests that configure such a machine, in the order in which Firecracker takes them, and InstanceStart at their
 * end. Paths become relative to FC_ROOT. The caller owns the bodies (fc_talk_start() takes them).
 * Return: 0 with at most FC_PARTS_MAX, or -EINVAL: the file is not one of ours. */
int fc_config_requests(const json_t *config, const char *folder, struct fc_request *ret_requests, size_t *ret_n);

/* The same of the file in the VM's folder. Return: 0 or -errno. */
int fc_config_read(const char *folder, struct fc_request *ret_requests, size_t *ret_n, struct err *err);

/* Any text is taken ("1.17.0-dev"). */
bool fc_version_is_at_least(const char *version, unsigned major, unsigned minor);
