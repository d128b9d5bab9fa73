#include "netlink/neigh.h"

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
