/* What makes the copy of a machine a machine of its own: random numbers, clock, host name, machine-id, SSH host keys, MAC, address,
 * gateway, resolver, all by one request to its agent, while nobody can reach it. */
#pragma once

#include "vm/machine.h"

/* The machine in folder runs, and its VMM's socket to the agent is there. Blocks; for a worker. *fd: a connection to it, or -1; it is
 * taken, and afterwards there is agent_connection(). Errors: "warm.identity", the agent's own. */
int identity_give(const struct vms *vms, const char *folder, const struct vm *vm, int *fd, struct err *err);
