/* IPv4 addresses of links. See rtnl.h for the errors. */
#pragma once

#include "model/net.h"
#include "netlink/rtnl.h"

#define ADDR_MAX 65536 /* in one dump */

struct addr {
    int link;                 /* index */
    struct net_prefix prefix; /* the host's own address and the length of its network */
};

/* Error also: -EEXIST. */
int addr_add(struct rtnl *rtnl, int link, struct net_prefix prefix, struct err *err);

/* Error also: -EADDRNOTAVAIL. The kernel removes the secondary addresses of the same network along with it. */
int addr_delete(struct rtnl *rtnl, int link, struct net_prefix prefix, struct err *err);

/* All IPv4 addresses of the namespace; the caller frees *ret. */
int addr_dump(struct rtnl *rtnl, struct addr **ret, size_t *ret_count, struct err *err);

/* A socket that hears of every IPv4 address that a link of the namespace gets or loses: non-blocking, the caller's. */
int addr_watch_open(int nsfd, int *ret_fd, struct err *err);

/* Takes what a watch has heard. Return: whether that was anything, or may have been, because messages were lost. */
bool addr_watch_read(int fd);

/* Reads one RTM_NEWADDR: an rtnl_parse for struct addr. */
int addr_parse(const struct nlmsghdr *nlh, void *ret_addr);
