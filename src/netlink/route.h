/* IPv4 routes. See rtnl.h for the errors. */
#pragma once

#include "model/net.h"
#include "netlink/rtnl.h"

#define ROUTE_MAX (1024 * 1024) /* in one dump: a full Internet table */

struct route {
    struct net_prefix to;
    uint32_t table; /* RT_TABLE_MAIN, RT_TABLE_LOCAL, … */
    uint8_t type;   /* RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE, … */
    uint8_t protocol;
    uint8_t scope;
    int link;         /* index of the device, of the first next hop where there are several; 0: none */
    uint32_t gateway; /* 0: on the link */
    uint32_t source;  /* that the host prefers; 0: none given */
    uint32_t metric;
};

/* All IPv4 routes of all tables, the local one too; the caller frees *ret. */
int route_dump(struct rtnl *rtnl, struct route **ret, size_t *ret_count, struct err *err);

/* The kernel's own answer where a packet to this address goes. Errors also: -ENETUNREACH, -EHOSTUNREACH, -EACCES,
 * -EINVAL: what a sender would get (no route, unreachable, prohibit, blackhole). */
int route_get(struct rtnl *rtnl, uint32_t destination, struct route *ret, struct err *err);

/* Reads one RTM_NEWROUTE: an rtnl_parse for struct route. */
int route_parse(const struct nlmsghdr *nlh, void *ret_route);
