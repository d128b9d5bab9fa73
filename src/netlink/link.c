#include "netlink/link.h"

#include <ctype.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

bool link_name_is_valid(const char *name) {
    size_t len = strnlen(name, LINK_NAME_TEXT);
    if (len == 0 || len >= LINK_NAME_TEXT || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (; *name; name++)
        if (isspace((unsigned char)*name) || strchr("/:%", *name))
            return false;
    return true;
}

static void parse_tun(const struct nlattr *attr, void *data) {
    struct link *link = data;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_TUN_TYPE:
        link->is_tap = rtnl_attr_u8(attr) == IFF_TAP;
        break;
    case IFLA_TUN_OWNER:
        link->tun_owner = rtnl_attr_u32(attr);
        break;
    }
}

static void parse_port(const struct nlattr *attr, void *data) {
    struct link *link = data;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_BRPORT_NO:
        link->port_number = mnl_attr_get_payload_len(attr) >= sizeof(uint16_t) ? mnl_attr_get_u16(attr) : 0;
        break;
    case IFLA_BRPORT_STATE:
        link->port_state = rtnl_attr_u8(attr);
        break;
    }
}

struct link_info {
    struct link *link;
    char port_kind[16];
    const struct nlattr *data, *port_data;
};

static void parse_info(const struct nlattr *attr, void *data) {
    struct link_info *info = data;
    if (mnl_attr_get_type(attr) == IFLA_INFO_KIND)
        rtnl_attr_text(attr, info->link->kind, sizeof info->link->kind);
    if (mnl_attr_get_type(attr) == IFLA_INFO_DATA)
        info->data = attr;
    if (mnl_attr_get_type(attr) == IFLA_INFO_SLAVE_KIND)
        rtnl_attr_text(attr, info->port_kind, sizeof info->port_kind);
    if (mnl_attr_get_type(attr) == IFLA_INFO_SLAVE_DATA)
        info->port_data = attr;
}

static void parse_altname(const struct nlattr *attr, void *data) {
    struct link *link = data;
    if (mnl_attr_get_type(attr) != IFLA_ALT_IFNAME)
        return;
    if (link->altname_count < LINK_ALTNAMES)
        rtnl_attr_text(attr, link->altname[link->altname_count], LINK_ALTNAME_TEXT);
    link->altname_count++;
}

static void parse_attr(const struct nlattr *attr, void *data) {
    struct link *link = data;
    struct link_info info = {.link = link};
    switch (mnl_attr_get_type(attr)) {
    case IFLA_IFNAME:
        rtnl_attr_text(attr, link->name, sizeof link->name);
        break;
    case IFLA_IFALIAS:
        rtnl_attr_text(attr, link->alias, sizeof link->alias);
        break;
    case IFLA_PROP_LIST:
        rtnl_each_nested(attr, parse_altname, link);
        break;
    case IFLA_ADDRESS:
        if (mnl_attr_get_payload_len(attr) == sizeof link->mac)
            memcpy(&link->mac, mnl_attr_get_payload(attr), sizeof link->mac);
        break;
    case IFLA_MTU:
        link->mtu = rtnl_attr_u32(attr);
        break;
    case IFLA_MASTER:
        link->master = (int)rtnl_attr_u32(attr);
        break;
    case IFLA_OPERSTATE:
        link->operstate = rtnl_attr_u8(attr);
        break;
    case IFLA_CARRIER:
        link->carrier = rtnl_attr_u8(attr) != 0;
        break;
    case IFLA_LINKINFO:
        rtnl_each_nested(attr, parse_info, &info);
        if (info.data && strcmp(link->kind, "tun") == 0)
            rtnl_each_nested(info.data, parse_tun, link);
        if (info.port_data && strcmp(info.port_kind, "bridge") == 0)
            rtnl_each_nested(info.port_data, parse_port, link);
        break;
    }
}

int link_parse(const struct nlmsghdr *nlh, void *ret_link) {
    struct link link = {.tun_owner = LINK_NO_OWNER};
    if (nlh->nlmsg_type != RTM_NEWLINK)
        return 0;
    const struct ifinfomsg *ifi = rtnl_each_msg_attr(nlh, sizeof *ifi, parse_attr, &link);
    if (!ifi || ifi->ifi_index <= 0 || !*link.name)
        return -EBADMSG;
    link.index = ifi->ifi_index;
    link.flags = ifi->ifi_flags;
    *(struct link *)ret_link = link;
    return 1;
}

/* Counters of every link make a dump half as long again, and nobody here reads them. */
static void put_filter(struct rtnl_msg *msg) {
    rtnl_put_u32(msg, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
}

/* ip link show NAME */
int link_get_by_name(struct rtnl *rtnl, const char *name, struct link *ret, struct err *err) {
    struct rtnl_msg msg;
    rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof(struct ifinfomsg));
    put_filter(&msg);
    rtnl_put_text(&msg, strlen(name) < LINK_NAME_TEXT ? IFLA_IFNAME : IFLA_ALT_IFNAME, name);
    return rtnl_ask(rtnl, &msg, link_parse, ret, err);
}

int link_get_by_index(struct rtnl *rtnl, int index, struct link *ret, struct err *err) {
    struct rtnl_msg msg;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof *ifi);
    ifi->ifi_index = index;
    put_filter(&msg);
    return rtnl_ask(rtnl, &msg, link_parse, ret, err);
}

static void parse_stats(const struct nlattr *attr, void *data) {
    struct rtnl_link_stats64 stats;
    if (mnl_attr_get_type(attr) != IFLA_STATS64 ||
        mnl_attr_get_payload_len(attr) < offsetof(struct rtnl_link_stats64, rx_errors))
        return;
    memcpy(&stats, mnl_attr_get_payload(attr), offsetof(struct rtnl_link_stats64, rx_errors));
    *(uint64_t *)data = stats.rx_bytes + stats.tx_bytes;
}

static int traffic_parse(const struct nlmsghdr *nlh, void *ret_bytes) {
    uint64_t bytes = 0;
    if (nlh->nlmsg_type != RTM_NEWLINK)
        return 0;
    if (!rtnl_each_msg_attr(nlh, sizeof(struct ifinfomsg), parse_stats, &bytes))
        return -EBADMSG;
    *(uint64_t *)ret_bytes = bytes;
    return 1;
}

/* ip -s link show NAME */
int link_traffic(struct rtnl *rtnl, const char *name, uint64_t *ret_bytes, struct err *err) {
    struct rtnl_msg msg;
    rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof(struct ifinfomsg));
    rtnl_put_text(&msg, IFLA_IFNAME, name);
    return rtnl_ask(rtnl, &msg, traffic_parse, ret_bytes, err);
}

/* ip link show */
int link_dump(struct rtnl *rtnl, struct link **ret, size_t *ret_count, struct err *err) {
    struct rtnl_msg msg;
    struct rtnl_list list = {.item_size = sizeof(struct link), .max = LINK_MAX};
    rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof(struct ifinfomsg));
    put_filter(&msg);
    int r = rtnl_dump(rtnl, &msg, link_parse, &list, err);
    if (r < 0) {
        free(list.items);
        return r;
    }
    *ret = (struct link *)list.items;
    *ret_count = list.count;
    return 0;
}

/* ip link add NAME address MAC type bridge stp_state 0 */
int link_bridge_create(struct rtnl *rtnl, const char *name, struct net_mac mac, struct err *err) {
    struct rtnl_msg msg;
    rtnl_msg_begin(&msg, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof(struct ifinfomsg));
    rtnl_put_text(&msg, IFLA_IFNAME, name);
    rtnl_put(&msg, IFLA_ADDRESS, &mac, sizeof mac);
    struct nlattr *info = rtnl_nest_begin(&msg, IFLA_LINKINFO);
    rtnl_put_text(&msg, IFLA_INFO_KIND, "bridge");
    struct nlattr *data = rtnl_nest_begin(&msg, IFLA_INFO_DATA);
    rtnl_put_u32(&msg, IFLA_BR_STP_STATE, 0);
    rtnl_nest_end(&msg, data);
    rtnl_nest_end(&msg, info);
    return rtnl_change(rtnl, &msg, err);
}

/* ip link set dev INDEX type bridge no_linklocal_learn 1. Source: linux/if_bridge.h, since Linux 5.0. */
int link_bridge_no_linklocal_learn(struct rtnl *rtnl, int index, struct err *err) {
    struct br_boolopt_multi options = {.optval = 1U << BR_BOOLOPT_NO_LL_LEARN, .optmask = 1U << BR_BOOLOPT_NO_LL_LEARN};
    struct rtnl_msg msg;
    struct err ignored;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_NEWLINK, 0, sizeof *ifi);
    ifi->ifi_index = index;
    struct nlattr *info = rtnl_nest_begin(&msg, IFLA_LINKINFO);
    rtnl_put_text(&msg, IFLA_INFO_KIND, "bridge");
    struct nlattr *data = rtnl_nest_begin(&msg, IFLA_INFO_DATA);
    rtnl_put(&msg, IFLA_BR_MULTI_BOOLOPT, &options, sizeof options);
    rtnl_nest_end(&msg, data);
    rtnl_nest_end(&msg, info);
    int r = rtnl_change(rtnl, &msg, &ignored);
    if (r == -EOPNOTSUPP || r == -EINVAL)
        return 0;
    if (r < 0 && err)
        *err = ignored;
    return r;
}

/* ip link set dev INDEX alias TEXT address MAC mtu BYTES master INDEX up|down */
int link_set(struct rtnl *rtnl, int index, const struct link_change *change, struct err *err) {
    struct rtnl_msg msg;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_SETLINK, 0, sizeof *ifi);
    ifi->ifi_index = index;
    if (change->up || change->down) {
        ifi->ifi_change = IFF_UP;
        ifi->ifi_flags = change->up ? IFF_UP : 0;
    }
    if (change->alias)
        rtnl_put(&msg, IFLA_IFALIAS, change->alias, strlen(change->alias));
    if (change->mac)
        rtnl_put(&msg, IFLA_ADDRESS, change->mac, sizeof *change->mac);
    if (change->mtu)
        rtnl_put_u32(&msg, IFLA_MTU, change->mtu);
    if (change->master)
        rtnl_put_u32(&msg, IFLA_MASTER, (uint32_t)change->master);
    return rtnl_change(rtnl, &msg, err);
}

/* ip link set dev INDEX addrgenmode none */
int link_ipv6_autoconf_off(struct rtnl *rtnl, int index, struct err *err) {
    struct rtnl_msg msg;
    struct err ignored;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_SETLINK, 0, sizeof *ifi);
    ifi->ifi_index = index;
    struct nlattr *families = rtnl_nest_begin(&msg, IFLA_AF_SPEC);
    struct nlattr *inet6 = rtnl_nest_begin(&msg, AF_INET6);
    rtnl_put_u8(&msg, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
    rtnl_nest_end(&msg, inet6);
    rtnl_nest_end(&msg, families);
    int r = rtnl_change(rtnl, &msg, &ignored);
    if (r == -EAFNOSUPPORT)
        return 0;
    if (r < 0 && err)
        *err = ignored;
    return r;
}

/* ip link property add dev INDEX altname TEXT */
int link_altname_add(struct rtnl *rtnl, int index, const char *altname, struct err *err) {
    struct rtnl_msg msg;
    struct ifinfomsg *ifi =
        rtnl_msg_begin(&msg, RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND, sizeof *ifi);
    ifi->ifi_index = index;
    struct nlattr *properties = rtnl_nest_begin(&msg, IFLA_PROP_LIST | NLA_F_NESTED);
    rtnl_put_text(&msg, IFLA_ALT_IFNAME, altname);
    rtnl_nest_end(&msg, properties);
    return rtnl_change(rtnl, &msg, err);
}

/* bridge link set dev INDEX isolated on|off */
int link_port_isolate(struct rtnl *rtnl, int index, bool isolated, struct err *err) {
    struct rtnl_msg msg;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_SETLINK, 0, sizeof *ifi);
    ifi->ifi_family = AF_BRIDGE;
    ifi->ifi_index = index;
    struct nlattr *port = rtnl_nest_begin(&msg, IFLA_PROTINFO | NLA_F_NESTED);
    rtnl_put_u8(&msg, IFLA_BRPORT_ISOLATED, isolated);
    rtnl_nest_end(&msg, port);
    return rtnl_change(rtnl, &msg, err);
}

/* ip link del dev INDEX */
int link_delete(struct rtnl *rtnl, int index, struct err *err) {
    struct rtnl_msg msg;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_DELLINK, 0, sizeof *ifi);
    ifi->ifi_index = index;
    return rtnl_change(rtnl, &msg, err);
}
