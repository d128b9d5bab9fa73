#include "netlink/addr.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>

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
