/* The neighbour table: which MAC an address was last seen at. See rtnl.h for the errors. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/net.h"
#include "netlink/rtnl.h"

/* What is known about an IPv4 address on a link. */
struct neigh {
    uint16_t state; /* NUD_REACHABLE and so on, linux/neighbour.h */
    bool has_mac;
};

/* Error also: -ENOENT, nothing is. */
int neigh_get(struct rtnl *rtnl, int link, uint32_t ip, struct neigh *ret, struct err *err);

/* Whether a bridge knows a MAC: one of its own or its ports', one that somebody entered, or one that it learned and has
 * not forgotten yet. Return: 1, 0 (also where the bridge is gone), -errno. */
int fdb_knows(struct rtnl *rtnl, int bridge, struct net_mac mac, struct err *err);

/* Forgets what is known about an IPv4 address on a link. Error also: -ENOENT, nothing was known. */
int neigh_delete(struct rtnl *rtnl, int link, uint32_t ip, struct err *err);
