#include "netlink/route.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

static void parse_next_hop(const struct nlattr *attr, struct route *route) {
    struct rtnexthop hop;
    if (mnl_attr_get_payload_len(attr) < sizeof hop)
        return;
    memcpy(&hop, mnl_attr_get_payload(attr), sizeof hop);
    route->link = hop.rtnh_ifindex;
}

static void parse_attr(const struct nlattr *attr, void *data) {
    struct route *route = data;
    switch (mnl_attr_get_type(attr)) {
    case RTA_DST:
        route->to.address = rtnl_attr_ip(attr);
        break;
    case RTA_TABLE:
        route->table = rtnl_attr_u32(attr);
        break;
    case RTA_OIF:
        route->link = (int)rtnl_attr_u32(attr);
        break;
    case RTA_MULTIPATH:
        parse_next_hop(attr, route);
        break;
    case RTA_GATEWAY:
        route->gateway = rtnl_attr_ip(attr);
        break;
    case RTA_PREFSRC:
        route->source = rtnl_attr_ip(attr);
        break;
    case RTA_PRIORITY:
        route->metric = rtnl_attr_u32(attr);
        break;
    }
}

int route_parse(const struct nlmsghdr *nlh, void *ret_route) {
    struct route route = {0};
    if (nlh->nlmsg_type != RTM_NEWROUTE)
        return 0;
    const struct rtmsg *rtm = rtnl_each_msg_attr(nlh, sizeof *rtm, parse_attr, &route);
    if (!rtm)
        return -EBADMSG;
    if (rtm->rtm_family != AF_INET || rtm->rtm_dst_len > 32)
        return 0;
    route.to.length = rtm->rtm_dst_len;
    if (route.table == 0) /* RTA_TABLE is there for the numbers above 255 */
        route.table = rtm->rtm_table;
    route.type = rtm->rtm_type;
    route.protocol = rtm->rtm_protocol;
    route.scope = rtm->rtm_scope;
    *(struct route *)ret_route = route;
    return 1;
}

/* ip -4 route show table all */
int route_dump(struct rtnl *rtnl, struct route **ret, size_t *ret_count, struct err *err) {
    struct rtnl_msg msg;
    struct rtnl_list list = {.item_size = sizeof(struct route), .max = ROUTE_MAX};
    struct rtmsg *rtm = rtnl_msg_begin(&msg, RTM_GETROUTE, 0, sizeof *rtm);
    rtm->rtm_family = AF_INET;
    int r = rtnl_dump(rtnl, &msg, route_parse, &list, err);
    if (r < 0) {
        free(list.items);
        return r;
    }
    *ret = (struct route *)list.items;
    *ret_count = list.count;
    return 0;
}

/* ip route get ADDRESS */
int route_get(struct rtnl *rtnl, uint32_t destination, struct route *ret, struct err *err) {
    struct rtnl_msg msg;
    struct rtmsg *rtm = rtnl_msg_begin(&msg, RTM_GETROUTE, 0, sizeof *rtm);
    rtm->rtm_family = AF_INET;
    rtm->rtm_dst_len = 32;
    rtm->rtm_flags = RTM_F_LOOKUP_TABLE;
    rtnl_put_ip(&msg, RTA_DST, destination);
    return rtnl_ask(rtnl, &msg, route_parse, ret, err);
}
