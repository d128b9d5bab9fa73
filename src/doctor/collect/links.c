#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/collect/collect.h"
#include "netlink/netns.h"

#define ATTRS_MAX 112

struct item {
    struct snap_link link;
    struct snap_attr attrs[ATTRS_MAX];
    uint32_t attr_count;
    uint8_t space; /* of the attributes that are being read */
};

static uint64_t first_bytes(const struct nlattr *attr) {
    uint64_t value = 0;
    size_t len = mnl_attr_get_payload_len(attr);
    memcpy(&value, mnl_attr_get_payload(attr), len < sizeof value ? len : sizeof value);
    return value;
}

/* Every attribute is kept, also those that this program has never heard of. */
static void keep_attr(const struct nlattr *attr, void *data) {
    struct item *item = data;
    if (item->attr_count == ATTRS_MAX)
        return;
    item->attrs[item->attr_count++] = (struct snap_attr){
        .space = item->space,
        .type = mnl_attr_get_type(attr),
        .len = mnl_attr_get_payload_len(attr),
        .value = first_bytes(attr),
    };
}

static void parse_tun(const struct nlattr *attr, void *data) {
    struct snap_link *link = data;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_TUN_TYPE:
        link->is_tap = rtnl_attr_u8(attr) == IFF_TAP;
        break;
    case IFLA_TUN_PI:
        link->tun_pi = rtnl_attr_u8(attr) != 0;
        break;
    case IFLA_TUN_VNET_HDR:
        link->tun_vnet_hdr = rtnl_attr_u8(attr) != 0;
        break;
    case IFLA_TUN_PERSIST:
        link->tun_persist = rtnl_attr_u8(attr) != 0;
        break;
    case IFLA_TUN_MULTI_QUEUE:
        link->tun_multi_queue = rtnl_attr_u8(attr) != 0;
        break;
    case IFLA_TUN_NUM_QUEUES:
        link->tun_queues = rtnl_attr_u32(attr);
        break;
    case IFLA_TUN_NUM_DISABLED_QUEUES:
        link->tun_queues_off = rtnl_attr_u32(attr);
        break;
    case IFLA_TUN_OWNER:
        link->tun_owner = rtnl_attr_u32(attr);
        break;
    }
}

struct info {
    struct item *item;
    const struct nlattr *data, *slave_data;
};

static void find_info(const struct nlattr *attr, void *data) {
    struct info *info = data;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_INFO_KIND:
        rtnl_attr_text(attr, info->item->link.kind, sizeof info->item->link.kind);
        break;
    case IFLA_INFO_SLAVE_KIND:
        rtnl_attr_text(attr, info->item->link.slave_kind, sizeof info->item->link.slave_kind);
        break;
    case IFLA_INFO_DATA:
        info->data = attr;
        break;
    case IFLA_INFO_SLAVE_DATA:
        info->slave_data = attr;
        break;
    }
}

static void parse_info(const struct nlattr *attr, struct item *item) {
    struct info info = {.item = item};
    rtnl_each_nested(attr, find_info, &info);
    if (info.data && strcmp(item->link.kind, "tun") == 0)
        rtnl_each_nested(info.data, parse_tun, &item->link);
    if (info.data) {
        item->space = strcmp(item->link.kind, "bridge") == 0 ? SNAP_ATTR_BRIDGE : SNAP_ATTR_KIND;
        rtnl_each_nested(info.data, keep_attr, item);
    }
    if (info.slave_data && strcmp(item->link.slave_kind, "bridge") == 0) {
        item->space = SNAP_ATTR_PORT;
        rtnl_each_nested(info.slave_data, keep_attr, item);
    }
}

static void parse_xdp(const struct nlattr *attr, void *data) {
    struct snap_link *link = data;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_XDP_ATTACHED:
        link->xdp_mode = rtnl_attr_u8(attr);
        break;
    case IFLA_XDP_PROG_ID:
    case IFLA_XDP_DRV_PROG_ID:
    case IFLA_XDP_SKB_PROG_ID:
        link->xdp_prog = rtnl_attr_u32(attr);
        break;
    }
}

static void parse_altname(const struct nlattr *attr, void *data) {
    struct snap_link *link = data;
    if (mnl_attr_get_type(attr) == IFLA_ALT_IFNAME && !*link->altname)
        rtnl_attr_text(attr, link->altname, sizeof link->altname);
}

static void parse_stats(const struct nlattr *attr, struct snap_link *link) {
    struct rtnl_link_stats64 stats = {0};
    size_t len = mnl_attr_get_payload_len(attr);
    memcpy(&stats, mnl_attr_get_payload(attr), len < sizeof stats ? len : sizeof stats);
    link->rx_packets = stats.rx_packets;
    link->tx_packets = stats.tx_packets;
    link->rx_dropped = stats.rx_dropped;
    link->tx_dropped = stats.tx_dropped;
    link->rx_errors = stats.rx_errors;
    link->tx_errors = stats.tx_errors;
    link->rx_nohandler = stats.rx_nohandler;
    link->rx_otherhost = stats.rx_otherhost_dropped;
    link->rx_frame_errors = stats.rx_frame_errors;
}

static void parse_words(const struct nlattr *attr, struct snap_link *link) {
    switch (mnl_attr_get_type(attr)) {
    case IFLA_IFNAME:
        rtnl_attr_text(attr, link->name, sizeof link->name);
        break;
    case IFLA_IFALIAS:
        rtnl_attr_text(attr, link->alias, sizeof link->alias);
        break;
    case IFLA_QDISC:
        rtnl_attr_text(attr, link->qdisc, sizeof link->qdisc);
        break;
    case IFLA_PROP_LIST:
        rtnl_each_nested(attr, parse_altname, link);
        break;
    case IFLA_ADDRESS:
        if (mnl_attr_get_payload_len(attr) == sizeof link->mac)
            memcpy(&link->mac, mnl_attr_get_payload(attr), sizeof link->mac);
        break;
    case IFLA_BROADCAST:
        if (mnl_attr_get_payload_len(attr) == sizeof link->broadcast)
            memcpy(&link->broadcast, mnl_attr_get_payload(attr), sizeof link->broadcast);
        break;
    case IFLA_XDP:
        rtnl_each_nested(attr, parse_xdp, link);
        break;
    case IFLA_STATS64:
        parse_stats(attr, link);
        break;
    }
}

static void parse_attr(const struct nlattr *attr, void *data) {
    struct item *item = data;
    struct snap_link *link = &item->link;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_MTU:
        link->mtu = rtnl_attr_u32(attr);
        break;
    case IFLA_MASTER:
        link->master = (int32_t)rtnl_attr_u32(attr);
        break;
    case IFLA_LINK:
        link->lower = (int32_t)rtnl_attr_u32(attr);
        break;
    case IFLA_OPERSTATE:
        link->operstate = rtnl_attr_u8(attr);
        break;
    case IFLA_LINKMODE:
        link->linkmode = rtnl_attr_u8(attr);
        break;
    case IFLA_CARRIER:
        link->carrier = rtnl_attr_u8(attr) != 0;
        break;
    case IFLA_PROTO_DOWN:
        link->proto_down = rtnl_attr_u8(attr) != 0;
        break;
    case IFLA_TXQLEN:
        link->txqueuelen = rtnl_attr_u32(attr);
        break;
    case IFLA_LINKINFO:
        parse_info(attr, item);
        break;
    default:
        parse_words(attr, link);
        break;
    }
}

static int parse_link(const struct nlmsghdr *nlh, void *ret) {
    struct item *item = ret;
    if (nlh->nlmsg_type != RTM_NEWLINK)
        return 0;
    memset(item, 0, sizeof *item);
    item->link.tun_owner = UINT32_MAX;
    item->link.offload_csum = item->link.offload_tso = -1;
    const struct ifinfomsg *info = rtnl_each_msg_attr(nlh, sizeof *info, parse_attr, item);
    if (!info)
        return -EBADMSG;
    item->link.index = info->ifi_index;
    item->link.flags = info->ifi_flags;
    return 1;
}

static void add_link(struct snapshot *s, const struct item *item) {
    struct snap_link *link = SNAP_PUSH(s, links, SNAP_LINKS_MAX);
    if (!link)
        return;
    *link = item->link;
    link->attrs.first = s->attrs_count;
    for (uint32_t i = 0; i < item->attr_count; i++) {
        struct snap_attr *attr = SNAP_PUSH(s, attrs, SNAP_EXPRS_MAX);
        if (!attr)
            return;
        *attr = item->attrs[i];
        link->attrs.count++;
    }
}

/* ip -d -s link */
void collect_links(struct snapshot *s, struct rtnl *rtnl) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct rtnl_list list = {.item_size = sizeof(struct item), .max = SNAP_LINKS_MAX};
    struct ifinfomsg *info = rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof *info);
    info->ifi_family = AF_UNSPEC;
    int r = rtnl_dump(rtnl, &msg, parse_link, &list, &err);
    if (r < 0)
        snapshot_gap(s, "links", r, "%s", err.detail);
    for (size_t i = 0; r == 0 && i < list.count; i++)
        add_link(s, (const struct item *)(list.items + i * list.item_size));
    free(list.items);
}

static int32_t ethtool_value(int fd, const char *name, uint32_t command) {
    struct ethtool_value value = {.cmd = command};
    struct ifreq request = {0};
    str_copy(request.ifr_name, sizeof request.ifr_name, name);
    request.ifr_data = (char *)&value;
    return ioctl(fd, SIOCETHTOOL, &request) < 0 ? -1 : (int32_t)(value.data != 0);
}

/* ethtool -k: what the holder of a TAP said by TUNSETOFFLOAD shows here. */
void collect_offloads(struct snapshot *s, int nsfd) {
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_INET, SOCK_DGRAM, 0, &fd);
    if (r < 0) {
        snapshot_gap(s, "offloads", r, "no socket");
        return;
    }
    for (uint32_t i = 0; i < s->links_count; i++) {
        struct snap_link *link = &s->links[i];
        if (!link->is_tap)
            continue;
        link->offload_csum = ethtool_value(fd, link->name, ETHTOOL_GTXCSUM);
        link->offload_tso = ethtool_value(fd, link->name, ETHTOOL_GTSO);
    }
}
