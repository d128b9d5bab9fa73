#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/collect/collect.h"

/* --- addresses --- */

static void parse_addr_attr(const struct nlattr *attr, void *data) {
    struct snap_addr *addr = data;
    switch (mnl_attr_get_type(attr)) {
    case IFA_LOCAL:
        addr->ip = rtnl_attr_ip(attr);
        break;
    case IFA_FLAGS:
        addr->flags = rtnl_attr_u32(attr);
        break;
    case IFA_LABEL:
        rtnl_attr_text(attr, addr->label, sizeof addr->label);
        break;
    }
}

static int parse_addr(const struct nlmsghdr *nlh, void *ret) {
    struct snap_addr *addr = ret;
    if (nlh->nlmsg_type != RTM_NEWADDR)
        return 0;
    memset(addr, 0, sizeof *addr);
    const struct ifaddrmsg *ifa = rtnl_each_msg_attr(nlh, sizeof *ifa, parse_addr_attr, addr);
    if (!ifa || ifa->ifa_family != AF_INET)
        return ifa ? 0 : -EBADMSG;
    addr->link = (int32_t)ifa->ifa_index;
    addr->length = ifa->ifa_prefixlen;
    addr->scope = ifa->ifa_scope;
    return 1;
}

/* ip -4 addr */
void collect_addrs(struct snapshot *s, struct rtnl *rtnl) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct rtnl_list list = {.item_size = sizeof(struct snap_addr), .max = SNAP_ROWS_MAX};
    struct ifaddrmsg *ifa = rtnl_msg_begin(&msg, RTM_GETADDR, 0, sizeof *ifa);
    ifa->ifa_family = AF_INET;
    int r = rtnl_dump(rtnl, &msg, parse_addr, &list, &err);
    if (r < 0) {
        snapshot_gap(s, "addrs", r, "%s", err.detail);
        free(list.items);
        return;
    }
    s->addrs = (struct snap_addr *)list.items;
    s->addrs_count = (uint32_t)list.count;
    s->addrs_cap = (uint32_t)list.cap;
}

static int parse_addr6(const struct nlmsghdr *nlh, void *ret) {
    struct ifaddrmsg *copy = ret;
    if (nlh->nlmsg_type != RTM_NEWADDR || mnl_nlmsg_get_payload_len(nlh) < sizeof *copy)
        return 0;
    memcpy(copy, mnl_nlmsg_get_payload(nlh), sizeof *copy);
    return copy->ifa_family == AF_INET6 && copy->ifa_scope < RT_SCOPE_LINK;
}

/* ip -6 addr show dev BRIDGE */
void collect_ipv6(struct snapshot *s, struct rtnl *rtnl) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct rtnl_list list = {.item_size = sizeof(struct ifaddrmsg), .max = SNAP_ROWS_MAX};
    struct ifaddrmsg *ifa = rtnl_msg_begin(&msg, RTM_GETADDR, 0, sizeof *ifa);
    ifa->ifa_family = AF_INET6;
    int r = rtnl_dump(rtnl, &msg, parse_addr6, &list, &err);
    for (size_t i = 0; r == 0 && i < list.count; i++)
        if ((int32_t)((struct ifaddrmsg *)list.items)[i].ifa_index == s->host.bridge_index)
            s->host.ipv6 = true;
    free(list.items);
}

/* --- routes --- */

static void parse_metric(const struct nlattr *attr, void *data) {
    if (mnl_attr_get_type(attr) == RTAX_MTU)
        *(uint32_t *)data = rtnl_attr_u32(attr);
}

static void parse_multipath(const struct nlattr *attr, struct snap_route *route) {
    const uint8_t *at = mnl_attr_get_payload(attr), *end = at + mnl_attr_get_payload_len(attr);
    struct rtnexthop hop;
    while (at + sizeof hop <= end) {
        memcpy(&hop, at, sizeof hop);
        if (hop.rtnh_len < sizeof hop)
            return;
        if (!route->link)
            route->link = hop.rtnh_ifindex;
        else if (!route->other_link && hop.rtnh_ifindex != route->link)
            route->other_link = hop.rtnh_ifindex;
        route->hops++;
        at += RTNH_ALIGN(hop.rtnh_len);
    }
}

static void parse_route_attr(const struct nlattr *attr, void *data) {
    struct snap_route *route = data;
    switch (mnl_attr_get_type(attr)) {
    case RTA_DST:
        route->to = rtnl_attr_ip(attr);
        break;
    case RTA_TABLE:
        route->table = rtnl_attr_u32(attr);
        break;
    case RTA_OIF:
        route->link = (int32_t)rtnl_attr_u32(attr);
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
    case RTA_MULTIPATH:
        parse_multipath(attr, route);
        break;
    case RTA_METRICS:
        rtnl_each_attr(mnl_attr_get_payload(attr), mnl_attr_get_payload_len(attr), parse_metric, &route->mtu);
        break;
    }
}

static int parse_route(const struct nlmsghdr *nlh, void *ret) {
    struct snap_route *route = ret;
    if (nlh->nlmsg_type != RTM_NEWROUTE)
        return 0;
    memset(route, 0, sizeof *route);
    const struct rtmsg *rtm = rtnl_each_msg_attr(nlh, sizeof *rtm, parse_route_attr, route);
    if (!rtm || rtm->rtm_family != AF_INET)
        return rtm ? 0 : -EBADMSG;
    if (route->table == 0)
        route->table = rtm->rtm_table;
    route->length = rtm->rtm_dst_len;
    route->type = rtm->rtm_type;
    route->protocol = rtm->rtm_protocol;
    route->scope = rtm->rtm_scope;
    route->flags = rtm->rtm_flags;
    return 1;
}

/* ip -4 route show table all */
void collect_routes(struct snapshot *s, struct rtnl *rtnl) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct rtnl_list list = {.item_size = sizeof(struct snap_route), .max = SNAP_ROUTES_MAX};
    struct rtmsg *rtm = rtnl_msg_begin(&msg, RTM_GETROUTE, 0, sizeof *rtm);
    rtm->rtm_family = AF_INET;
    int r = rtnl_dump(rtnl, &msg, parse_route, &list, &err);
    if (r < 0) {
        snapshot_gap(s, "routes", r, "%s", err.detail);
        free(list.items);
        return;
    }
    s->routes = (struct snap_route *)list.items;
    s->routes_count = (uint32_t)list.count;
    s->routes_cap = (uint32_t)list.cap;
}

/* ip route get TO [from FROM iif IIF] */
void collect_lookup(struct snapshot *s, struct rtnl *rtnl, uint32_t to, uint32_t from, int32_t iif) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct snap_route route = {0};
    for (uint32_t i = 0; i < s->lookups_count; i++)
        if (s->lookups[i].to == to && s->lookups[i].from == from && s->lookups[i].iif == iif)
            return;
    struct rtmsg *rtm = rtnl_msg_begin(&msg, RTM_GETROUTE, 0, sizeof *rtm);
    rtm->rtm_family = AF_INET;
    rtm->rtm_dst_len = 32;
    rtnl_put_ip(&msg, RTA_DST, to);
    if (from) {
        rtm->rtm_src_len = 32;
        rtnl_put_ip(&msg, RTA_SRC, from);
    }
    if (iif)
        rtnl_put_u32(&msg, RTA_IIF, (uint32_t)iif);
    int r = rtnl_ask(rtnl, &msg, parse_route, &route, &err);
    struct snap_lookup *lookup = SNAP_PUSH(s, lookups, SNAP_ROWS_MAX);
    if (!lookup)
        return;
    *lookup = (struct snap_lookup){.to = to,
                                   .from = from,
                                   .iif = iif,
                                   .error = r < 0 ? -r : 0,
                                   .type = route.type,
                                   .link = route.link,
                                   .gateway = route.gateway,
                                   .source = route.source,
                                   .table = route.table,
                                   .mtu = route.mtu};
}

/* --- policy rules --- */

static void parse_ports(const struct nlattr *attr, struct snap_policy *policy) {
    struct fib_rule_port_range range;
    if (mnl_attr_get_payload_len(attr) < sizeof range)
        return;
    memcpy(&range, mnl_attr_get_payload(attr), sizeof range);
    policy->port_first = range.start;
    policy->port_last = range.end;
}

static void parse_uids(const struct nlattr *attr, struct snap_policy *policy) {
    struct fib_rule_uid_range range;
    if (mnl_attr_get_payload_len(attr) < sizeof range)
        return;
    memcpy(&range, mnl_attr_get_payload(attr), sizeof range);
    policy->uid_first = range.start;
    policy->uid_last = range.end;
    policy->has_uids = range.start > 0 || range.end < UINT32_MAX;
}

static void parse_policy_attr(const struct nlattr *attr, void *data) {
    struct snap_policy *policy = data;
    switch (mnl_attr_get_type(attr)) {
    case FRA_DST:
        policy->to = rtnl_attr_ip(attr);
        break;
    case FRA_SRC:
        policy->from = rtnl_attr_ip(attr);
        break;
    case FRA_IIFNAME:
        rtnl_attr_text(attr, policy->iif, sizeof policy->iif);
        break;
    case FRA_OIFNAME:
        rtnl_attr_text(attr, policy->oif, sizeof policy->oif);
        break;
    case FRA_PRIORITY:
        policy->priority = rtnl_attr_u32(attr);
        break;
    case FRA_FWMARK:
        policy->mark = rtnl_attr_u32(attr);
        break;
    case FRA_FWMASK:
        policy->mask = rtnl_attr_u32(attr);
        break;
    case FRA_TABLE:
        policy->table = rtnl_attr_u32(attr);
        break;
    case FRA_IP_PROTO:
        policy->protocol = mnl_attr_get_payload_len(attr) >= 1 ? mnl_attr_get_u8(attr) : 0;
        break;
    case FRA_DPORT_RANGE:
        parse_ports(attr, policy);
        break;
    case FRA_UID_RANGE:
        parse_uids(attr, policy);
        break;
    case FRA_GOTO:
        policy->go_to = rtnl_attr_u32(attr);
        break;
    case FRA_SUPPRESS_PREFIXLEN:
        policy->suppresses = rtnl_attr_u32(attr) <= 32 ? (uint8_t)(rtnl_attr_u32(attr) + 1) : 0;
        break;
    case FRA_SPORT_RANGE:
    case FRA_TUN_ID:
    case FRA_L3MDEV:
    case FRA_SUPPRESS_IFGROUP:
        policy->more =
            policy->more || mnl_attr_get_type(attr) != FRA_SUPPRESS_IFGROUP || rtnl_attr_u32(attr) != UINT32_MAX;
        break;
    }
}

static int parse_policy(const struct nlmsghdr *nlh, void *ret) {
    struct snap_policy *policy = ret;
    if (nlh->nlmsg_type != RTM_NEWRULE)
        return 0;
    memset(policy, 0, sizeof *policy);
    const struct fib_rule_hdr *rule = rtnl_each_msg_attr(nlh, sizeof *rule, parse_policy_attr, policy);
    if (!rule || rule->family != AF_INET)
        return rule ? 0 : -EBADMSG;
    if (policy->table == 0)
        policy->table = rule->table;
    policy->more = policy->more || rule->tos;
    policy->action = rule->action;
    policy->to_length = rule->dst_len;
    policy->from_length = rule->src_len;
    policy->invert = (rule->flags & FIB_RULE_INVERT) != 0;
    return 1;
}

/* ip -4 rule */
void collect_policies(struct snapshot *s, struct rtnl *rtnl) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct rtnl_list list = {.item_size = sizeof(struct snap_policy), .max = SNAP_ROWS_MAX};
    struct fib_rule_hdr *rule = rtnl_msg_begin(&msg, RTM_GETRULE, 0, sizeof *rule);
    rule->family = AF_INET;
    int r = rtnl_dump(rtnl, &msg, parse_policy, &list, &err);
    if (r < 0) {
        snapshot_gap(s, "policies", r, "%s", err.detail);
        free(list.items);
        return;
    }
    s->policies = (struct snap_policy *)list.items;
    s->policies_count = (uint32_t)list.count;
    s->policies_cap = (uint32_t)list.cap;
}
