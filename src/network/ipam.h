/* Which address the next VM gets. Pure: who has which address is asked of the caller. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/net.h"

/* Whether an address may be a VM's: inside the pool, and neither the network's, the broadcast nor the bridge's own.
 * The pool is the bridge's address with its prefix length. */
bool ipam_is_assignable(struct net_prefix pool, uint32_t ip);

/* How many addresses a pool has for VMs. */
uint32_t ipam_size(struct net_prefix pool);

/* Picks the first free address behind `after`, the one given last (0: none yet), going round at the end of the pool:
 * an address that became free waits as long as it can before somebody else has it, so that what is left of its last
 * owner (neighbour caches, connections) has aged out.
 *
 *   is_used  1: somebody has the address, 0: it is free, -errno: cannot tell, which ends the search with that
 *
 * Error: "network.pool-exhausted" -ENOSPC, with the numbers. */
int ipam_pick(struct net_prefix pool, uint32_t after, int (*is_used)(uint32_t ip, void *data), void *data,
              uint32_t *ret_ip, struct err *err);
