/* What a child sees of the file system: /usr read-only, the devices that any program needs, its own processes in /proc,
 * and nothing else. Made once as a mount namespace; each child that is started in it (proc_spec.jail_fd) gets a copy of
 * its own, so that none changes another's.
 *
 *     mount -t tmpfs … ; mount --bind -o ro /usr … ; mount -t proc -o subset=pid,hidepid=2 … ; pivot_root
 *
 * Source: mount_namespaces(7), pivot_root(2), Documentation/filesystems/proc.rst. */
#pragma once

#include <stdbool.h>

#include "base/err.h"

/* Makes one. `scratch` is an empty folder in which it is put together (nothing of that is seen outside, or stays);
 * `program` a program to be had in it, where it does not lie in /usr; with_tun: /dev/net/tun too. *ret_fd is the namespace, the caller's.
 * Of the main thread. Error: "process.jail", where the host does not allow it. */
int jail_make(const char *scratch, const char *program, bool with_tun, int *ret_fd, struct err *err);
