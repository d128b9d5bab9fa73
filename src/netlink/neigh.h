/* The neighbour table: which MAC an address was last seen at. See rtnl.h for the errors. */
#pragma once

#include <stdint.h>

#include "netlink/rtnl.h"

/* Forgets what is known about an IPv4 address on a link. Error also: -ENOENT, nothing was known. */
int neigh_delete(struct rtnl *rtnl, int link, uint32_t ip, struct err *err);
