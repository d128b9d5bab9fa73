/* A function run in a process of its own that nothing outside sees and nothing outlives: namespaces of its own for
 * network, mounts and processes, which end with it, and a tmpfs for its files. Whatever ends the process or its parent,
 * SIGKILL included, the kernel takes all of that away.
 *
 *     unshare --pid --fork --kill-child --net --mount --mount-proc; mount -t tmpfs … /tmp
 *
 * Without root it is tried in a user namespace (user_namespaces(7)), in which the function is root. Source:
 * pid_namespaces(7): when a namespace's first process ends, the kernel kills all others in it. */
#pragma once

#include "base/err.h"

struct sandbox {
    int folder_fd;       /* the folder that was asked for, O_PATH, in the new mount namespace; -1: none was */
    const char *scratch; /* a tmpfs, empty, of this process alone */
};

/* Runs in the sandbox, as its first process. Return: the exit status. */
typedef int sandbox_fn(void *data, const struct sandbox *sandbox);

struct sandbox_params {
    const char *folder; /* to be had in there whatever is mounted; NULL: none */
    unsigned scratch_mib;
    sandbox_fn *fn;
    void *data;
};

/* Waits for its end. SIGINT, SIGTERM and SIGHUP end it at once. The caller has no other threads, and no other children
 * afterwards: they would be born into the dead process namespace.
 * Return: 0 with the exit status, or -errno: "sandbox.refused" (this host does not allow it), "sandbox.killed",
 * -EINTR "sandbox.interrupted" with *ret_status 128 + the signal. */
int sandbox_run(const struct sandbox_params *params, int *ret_status, struct err *err);
