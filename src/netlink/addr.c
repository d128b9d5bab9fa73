#include "netlink/addr.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "netlink/netns.h"

struct addresses {
    uint32_t local, address;
    bool has_local;
};

static void parse_attr(const struct nlattr *attr, void *data) {
    struct addresses *a = data;
    if (mnl_attr_get_type(attr) == IFA_ADDRESS)
        a->address = rtnl_attr_ip(attr);
    if (mnl_attr_get_type(attr) == IFA_LOCAL) {
        a->local = rtnl_attr_ip(attr);
        a->has_local = true;
    }
}

int addr_parse(const struct nlmsghdr *nlh, void *ret_addr) {
    struct addresses a = {0};
    if (nlh->nlmsg_type != RTM_NEWADDR)
        return 0;
    const struct ifaddrmsg *ifa = rtnl_each_msg_attr(nlh, sizeof *ifa, parse_attr, &a);
    if (!ifa)
        return -EBADMSG;
    if (ifa->ifa_family != AF_INET || ifa->ifa_prefixlen > 32)
        return 0;
    /* On a point-to-point link IFA_ADDRESS is the other end, and the prefix belongs to that. */
    bool other_end = a.has_local && a.address != a.local;
    *(struct addr *)ret_addr = (struct addr){
        .link = (int)ifa->ifa_index,
        .prefix = {.address = other_end || !a.has_local ? a.address : a.local, .length = ifa->ifa_prefixlen}};
    return 1;
}

static int change(struct rtnl *rtnl, uint16_t type, uint16_t flags, int link, struct net_prefix prefix,
                  struct err *err) {
    struct rtnl_msg msg;
    struct ifaddrmsg *ifa = rtnl_msg_begin(&msg, type, flags, sizeof *ifa);
    ifa->ifa_family = AF_INET;
    ifa->ifa_prefixlen = prefix.length;
    ifa->ifa_index = (uint32_t)link;
    rtnl_put_ip(&msg, IFA_LOCAL, prefix.address);
    rtnl_put_ip(&msg, IFA_ADDRESS, prefix.address);
    return rtnl_change(rtnl, &msg, err);
}

/* ip address add PREFIX dev LINK */
int addr_add(struct rtnl *rtnl, int link, struct net_prefix prefix, struct err *err) {
    return change(rtnl, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, link, prefix, err);
}

/* ip address del PREFIX dev LINK */
int addr_delete(struct rtnl *rtnl, int link, struct net_prefix prefix, struct err *err) {
    return change(rtnl, RTM_DELADDR, 0, link, prefix, err);
}

/* ip -4 address show */
int addr_dump(struct rtnl *rtnl, struct addr **ret, size_t *ret_count, struct err *err) {
    struct rtnl_msg msg;
    struct rtnl_list list = {.item_size = sizeof(struct addr), .max = ADDR_MAX};
    struct ifaddrmsg *ifa = rtnl_msg_begin(&msg, RTM_GETADDR, 0, sizeof *ifa);
    ifa->ifa_family = AF_INET;
    int r = rtnl_dump(rtnl, &msg, addr_parse, &list, err);
    if (r < 0) {
        free(list.items);
        return r;
    }
    *ret = (struct addr *)list.items;
    *ret_count = list.count;
    return 0;
}

int addr_watch_open(int nsfd, int *ret_fd, struct err *err) {
    struct sockaddr_nl addr = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR};
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE, &fd);
    if (r == 0 && bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0)
        r = -errno;
    if (r < 0)
        return err_sys(err, -r, "netlink.failed", "listen to changes of addresses");
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* What exactly was heard does not matter: whoever cares reads all addresses anew. */
bool addr_watch_read(int fd) {
    char message[512];
    bool heard = false;
    for (;;) {
        ssize_t n = recv(fd, message, sizeof message, MSG_DONTWAIT);
        if (n <= 0 && errno != EINTR && errno != ENOBUFS)
            return heard;
        heard = heard || n > 0 || errno == ENOBUFS;
    }
}
