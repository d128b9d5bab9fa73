#include "netlink/neigh.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

/* ip neighbour del ADDRESS dev LINK */
int neigh_delete(struct rtnl *rtnl, int link, uint32_t ip, struct err *err) {
    struct rtnl_msg msg;
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_DELNEIGH, 0, sizeof *ndm);
    ndm->ndm_family = AF_INET;
    ndm->ndm_ifindex = link;
    rtnl_put_ip(&msg, NDA_DST, ip);
    return rtnl_change(rtnl, &msg, err);
}

static void take_attr(const struct nlattr *attr, void *data) {
    struct neigh *neigh = data;
    if (mnl_attr_get_type(attr) == NDA_LLADDR)
        neigh->has_mac = true;
}

static int parse(const struct nlmsghdr *nlh, void *ret_neigh) {
    struct neigh neigh = {0};
    if (nlh->nlmsg_type != RTM_NEWNEIGH)
        return 0;
    const struct ndmsg *ndm = rtnl_each_msg_attr(nlh, sizeof *ndm, take_attr, &neigh);
    if (!ndm)
        return -EBADMSG;
    neigh.state = ndm->ndm_state;
    *(struct neigh *)ret_neigh = neigh;
    return 1;
}

/* ip neighbour get ADDRESS dev LINK */
int neigh_get(struct rtnl *rtnl, int link, uint32_t ip, struct neigh *ret, struct err *err) {
    struct rtnl_msg msg;
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_GETNEIGH, 0, sizeof *ndm);
    ndm->ndm_family = AF_INET;
    ndm->ndm_ifindex = link;
    rtnl_put_ip(&msg, NDA_DST, ip);
    return rtnl_ask(rtnl, &msg, parse, ret, err);
}

/* bridge fdb get MAC br BRIDGE. An unknown bridge is EINVAL. Source: net/core/rtnetlink.c, rtnl_fdb_get(). */
int fdb_knows(struct rtnl *rtnl, int bridge, struct net_mac mac, struct err *err) {
    struct rtnl_msg msg;
    struct neigh neigh;
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_GETNEIGH, 0, sizeof *ndm);
    ndm->ndm_family = AF_BRIDGE;
    rtnl_put(&msg, NDA_LLADDR, mac.byte, sizeof mac.byte);
    rtnl_put_u32(&msg, NDA_MASTER, (uint32_t)bridge);
    int r = rtnl_ask(rtnl, &msg, parse, &neigh, err);
    return r == 0 ? 1 : r == -ENOENT || r == -EINVAL ? 0 : r;
}
