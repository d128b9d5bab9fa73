/* Steps on devices: flags, master, address, attributes of bridges and ports, XDP, offloads; and sysctls. */
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "doctor/repair/internal.h"
#include "netlink/netns.h"

#define ATTRS_MAX 64
#define NO_VALUE "none"

/* --- reading --- */

struct attr_value {
    bool there;
    uint16_t len;
    uint64_t value;
};

struct facts {
    uint32_t flags, txqlen;
    uint8_t linkmode, proto_down;
    char kind[16], slave_kind[16];
    struct attr_value bridge[ATTRS_MAX], port[ATTRS_MAX];
    uint8_t xdp_mode;
    uint32_t xdp_prog, xdp_skb, xdp_drv, xdp_hw;
};

static void read_value(const struct nlattr *attr, void *data) {
    struct attr_value *values = data;
    uint16_t type = mnl_attr_get_type(attr), len = mnl_attr_get_payload_len(attr);
    if (type >= ATTRS_MAX)
        return;
    values[type].there = true;
    values[type].len = len;
    memcpy(&values[type].value, mnl_attr_get_payload(attr), len < 8 ? len : 8); /* little endian, as all we run on */
}

static void read_info(const struct nlattr *attr, void *data) {
    struct facts *facts = data;
    uint16_t type = mnl_attr_get_type(attr);
    if (type == IFLA_INFO_KIND)
        rtnl_attr_text(attr, facts->kind, sizeof facts->kind);
    if (type == IFLA_INFO_SLAVE_KIND)
        rtnl_attr_text(attr, facts->slave_kind, sizeof facts->slave_kind);
    if (type == IFLA_INFO_DATA && strcmp(facts->kind, "bridge") == 0)
        rtnl_each_nested(attr, read_value, facts->bridge);
    if (type == IFLA_INFO_SLAVE_DATA && strcmp(facts->slave_kind, "bridge") == 0)
        rtnl_each_nested(attr, read_value, facts->port);
}

static void read_xdp(const struct nlattr *attr, void *data) {
    struct facts *facts = data;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_XDP_ATTACHED:
        facts->xdp_mode = rtnl_attr_u8(attr);
        break;
    case IFLA_XDP_PROG_ID:
        facts->xdp_prog = rtnl_attr_u32(attr);
        break;
    case IFLA_XDP_SKB_PROG_ID:
        facts->xdp_skb = rtnl_attr_u32(attr);
        break;
    case IFLA_XDP_DRV_PROG_ID:
        facts->xdp_drv = rtnl_attr_u32(attr);
        break;
    case IFLA_XDP_HW_PROG_ID:
        facts->xdp_hw = rtnl_attr_u32(attr);
        break;
    }
}

static void read_fact(const struct nlattr *attr, void *data) {
    struct facts *facts = data;
    switch (mnl_attr_get_type(attr)) {
    case IFLA_LINKINFO:
        rtnl_each_nested(attr, read_info, facts);
        break;
    case IFLA_XDP:
        rtnl_each_nested(attr, read_xdp, facts);
        break;
    case IFLA_TXQLEN:
        facts->txqlen = rtnl_attr_u32(attr);
        break;
    case IFLA_LINKMODE:
        facts->linkmode = rtnl_attr_u8(attr);
        break;
    case IFLA_PROTO_DOWN:
        facts->proto_down = rtnl_attr_u8(attr);
        break;
    }
}

static int parse_facts(const struct nlmsghdr *nlh, void *ret) {
    struct facts *facts = ret;
    memset(facts, 0, sizeof *facts);
    const struct ifinfomsg *ifi = rtnl_each_msg_attr(nlh, sizeof *ifi, read_fact, facts);
    if (nlh->nlmsg_type != RTM_NEWLINK || !ifi)
        return 0;
    facts->flags = ifi->ifi_flags;
    return 1;
}

/* ip -d link show dev DEV */
static int get_facts(struct repair *repair, const struct repair_step *step, struct link *link, struct facts *ret,
                     struct err *err) {
    struct rtnl_msg msg;
    int r = repair_find_dev(repair, step, link, err);
    if (r < 0)
        return r;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof *ifi);
    ifi->ifi_index = link->index;
    return rtnl_ask(repair->rtnl, &msg, parse_facts, ret, err);
}

static void say(char *dst, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(char *dst, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(dst, REPAIR_VALUE, fmt, args);
    va_end(args);
}

/* --- up and down --- */

static int up_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    struct link link;
    struct facts facts;
    int r = get_facts(repair, step, &link, &facts, err);
    if (r == 0)
        say(value, facts.flags & 1 ? "up" : "down");
    return r;
}

static int up_set(struct repair *repair, const struct repair_step *step, bool up, struct err *err) {
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    return r < 0 ? r : link_set(repair->rtnl, link.index, &(struct link_change){.up = up, .down = !up}, err);
}

static int up_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return up_set(repair, step, step->action == REPAIR_LINK_UP, err);
}

static int up_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                      struct err *err) {
    return up_set(repair, step, strcmp(before, "up") == 0, err);
}

const struct repair_op repair_op_up = {up_read, up_apply, up_restore};

/* --- master --- */

/* A device that leaves a bridge loses how its port was set: kept in the journal, and given back with the bridge. */
struct port_setting {
    uint16_t type, len;
    uint64_t value;
};

static char *keep_port(const struct facts *facts) {
    static const uint16_t types[] = {
        IFLA_BRPORT_PRIORITY,        IFLA_BRPORT_COST,           IFLA_BRPORT_MODE,
        IFLA_BRPORT_GUARD,           IFLA_BRPORT_PROTECT,        IFLA_BRPORT_FAST_LEAVE,
        IFLA_BRPORT_LEARNING,        IFLA_BRPORT_UNICAST_FLOOD,  IFLA_BRPORT_PROXYARP,
        IFLA_BRPORT_PROXYARP_WIFI,   IFLA_BRPORT_MCAST_TO_UCAST, IFLA_BRPORT_MCAST_FLOOD,
        IFLA_BRPORT_BCAST_FLOOD,     IFLA_BRPORT_VLAN_TUNNEL,    IFLA_BRPORT_GROUP_FWD_MASK,
        IFLA_BRPORT_NEIGH_SUPPRESS,  IFLA_BRPORT_ISOLATED,       IFLA_BRPORT_LOCKED,
        IFLA_BRPORT_MULTICAST_ROUTER};
    struct port_setting kept[sizeof types / sizeof *types] = {0};
    size_t count = 0;
    for (size_t i = 0; strcmp(facts->slave_kind, "bridge") == 0 && i < sizeof types / sizeof *types; i++) {
        const struct attr_value *v = &facts->port[types[i]];
        if (v->there && v->len <= sizeof v->value)
            kept[count++] = (struct port_setting){types[i], v->len, v->value};
    }
    return count ? repair_hex(kept, count * sizeof *kept) : NULL;
}

/* bridge link set dev DEV priority N cost N hairpin … */
static int give_port_back(struct repair *repair, const struct repair_step *step, const char *raw, struct err *err) {
    size_t len = 0;
    struct link link;
    struct rtnl_msg msg;
    _cleanup_free_ struct port_setting *kept = raw ? repair_unhex(raw, &len) : NULL;
    int r = kept ? repair_find_dev(repair, step, &link, err) : -ENOENT;
    if (r < 0)
        return kept ? r : 0;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_SETLINK, 0, sizeof *ifi);
    ifi->ifi_index = link.index;
    ifi->ifi_family = AF_BRIDGE;
    struct nlattr *nest = rtnl_nest_begin(&msg, IFLA_PROTINFO | NLA_F_NESTED);
    for (size_t i = 0; i < len / sizeof *kept; i++)
        if (kept[i].len <= sizeof kept[i].value)
            rtnl_put(&msg, kept[i].type, &kept[i].value, kept[i].len);
    rtnl_nest_end(&msg, nest);
    return rtnl_change(repair->rtnl, &msg, err);
}

static int master_read(struct repair *repair, const struct repair_step *step, char *value, char **raw,
                       struct err *err) {
    struct link link, master;
    struct facts facts;
    int r = get_facts(repair, step, &link, &facts, err);
    if (r < 0)
        return r;
    if (raw)
        *raw = keep_port(&facts);
    say(value, NO_VALUE);
    if (link.master && link_get_by_index(repair->rtnl, link.master, &master, NULL) == 0)
        say(value, "%s", master.name);
    return 0;
}

/* ip link set dev DEV master NAME; ip link set dev DEV nomaster */
static int master_set(struct repair *repair, const struct repair_step *step, const char *name, struct err *err) {
    struct link link, master = {.index = 0};
    struct rtnl_msg msg;
    int r = repair_find_dev(repair, step, &link, err);
    if (r == 0 && *name && strcmp(name, NO_VALUE) != 0)
        r = link_get_by_name(repair->rtnl, name, &master, err);
    if (r < 0)
        return r;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_SETLINK, 0, sizeof *ifi);
    ifi->ifi_index = link.index;
    rtnl_put_u32(&msg, IFLA_MASTER, (uint32_t)master.index);
    return rtnl_change(repair->rtnl, &msg, err);
}

static int master_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return master_set(repair, step, step->object, err);
}

static int master_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                          struct err *err) {
    int r = master_set(repair, step, before, err);
    return r < 0 || strcmp(before, NO_VALUE) == 0 ? r : give_port_back(repair, step, raw, err);
}

const struct repair_op repair_op_master = {master_read, master_apply, master_restore};

/* --- MAC --- */

static int mac_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    if (r == 0)
        net_format_mac(link.mac, value);
    return r;
}

static int mac_set(struct repair *repair, const struct repair_step *step, struct net_mac mac, struct err *err) {
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    return r < 0 ? r : link_set(repair->rtnl, link.index, &(struct link_change){.mac = &mac}, err);
}

static int mac_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return mac_set(repair, step, step->mac, err);
}

static int mac_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                       struct err *err) {
    struct net_mac mac;
    if (net_parse_mac(before, &mac) < 0)
        return err_set(err, EBADMSG, "repair.journal", "\"%s\" is no MAC", before);
    return mac_set(repair, step, mac, err);
}

const struct repair_op repair_op_mac = {mac_read, mac_apply, mac_restore};

/* --- MTU --- */

static int mtu_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    if (r == 0)
        say(value, "%u", link.mtu);
    return r;
}

static int mtu_set(struct repair *repair, const struct repair_step *step, uint64_t mtu, struct err *err) {
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    return r < 0 ? r : link_set(repair->rtnl, link.index, &(struct link_change){.mtu = (uint32_t)mtu}, err);
}

static int mtu_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return mtu_set(repair, step, step->value, err);
}

static int read_number(const char *text, uint64_t *ret, struct err *err) {
    if (str_to_u64(text, 0, UINT64_MAX, ret) < 0)
        return err_set(err, EBADMSG, "repair.journal", "\"%s\" is no number", text);
    return 0;
}

static int mtu_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                       struct err *err) {
    uint64_t mtu;
    int r = read_number(before, &mtu, err);
    return r < 0 ? r : mtu_set(repair, step, mtu, err);
}

const struct repair_op repair_op_mtu = {mtu_read, mtu_apply, mtu_restore};

/* --- proto_down, mode, queue length, ARP flag --- */

static int number_read(struct repair *repair, const struct repair_step *step, char *value, char **raw,
                       struct err *err) {
    struct link link;
    struct facts facts;
    int r = get_facts(repair, step, &link, &facts, err);
    if (r < 0)
        return r;
    uint32_t number = facts.txqlen;
    if (step->action == REPAIR_LINK_PROTO_UP)
        number = facts.proto_down;
    if (step->action == REPAIR_LINK_MODE)
        number = facts.linkmode;
    if (step->action == REPAIR_LINK_ARP)
        number = !(facts.flags & IFF_NOARP);
    say(value, "%u", number);
    return 0;
}

static int number_set(struct repair *repair, const struct repair_step *step, uint64_t value, struct err *err) {
    struct link link;
    struct rtnl_msg msg;
    int r = repair_find_dev(repair, step, &link, err);
    if (r < 0)
        return r;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_SETLINK, 0, sizeof *ifi);
    ifi->ifi_index = link.index;
    if (step->action == REPAIR_LINK_PROTO_UP)
        rtnl_put_u8(&msg, IFLA_PROTO_DOWN, (uint8_t)value);
    if (step->action == REPAIR_LINK_MODE)
        rtnl_put_u8(&msg, IFLA_LINKMODE, (uint8_t)value);
    if (step->action == REPAIR_LINK_TXQLEN)
        rtnl_put_u32(&msg, IFLA_TXQLEN, (uint32_t)value);
    if (step->action == REPAIR_LINK_ARP) {
        ifi->ifi_change = IFF_NOARP;
        ifi->ifi_flags = value ? 0 : IFF_NOARP;
    }
    return rtnl_change(repair->rtnl, &msg, err);
}

static int number_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return number_set(repair, step, step->action == REPAIR_LINK_PROTO_UP ? 0 : step->value, err);
}

static int number_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                          struct err *err) {
    uint64_t value;
    int r = read_number(before, &value, err);
    return r < 0 ? r : number_set(repair, step, value, err);
}

const struct repair_op repair_op_number = {number_read, number_apply, number_restore};

/* --- attributes of a bridge or of its port --- */

static int attr_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    struct link link;
    struct facts facts;
    int r = get_facts(repair, step, &link, &facts, err);
    if (r < 0)
        return r;
    bool port = step->action == REPAIR_PORT_ATTR;
    const struct attr_value *values = port ? facts.port : facts.bridge;
    if (step->attr >= ATTRS_MAX || !values[step->attr].there)
        return err_set(err, ENOENT, "repair.gone", "%s is no %s with attribute %u", step->dev,
                       port ? "bridge port" : "bridge", step->attr);
    say(value, "%llu", (unsigned long long)values[step->attr].value);
    return 0;
}

/* bridge link set dev DEV NAME VALUE; ip link set dev DEV type bridge NAME VALUE */
static int attr_set(struct repair *repair, const struct repair_step *step, uint64_t value, struct err *err) {
    struct link link;
    struct rtnl_msg msg;
    int r = repair_find_dev(repair, step, &link, err);
    if (r < 0)
        return r;
    if (step->attr_size != 1 && step->attr_size != 2 && step->attr_size != 4 && step->attr_size != 8)
        return err_set(err, EINVAL, "repair.failed", "an attribute of %u bytes", step->attr_size);
    bool port = step->action == REPAIR_PORT_ATTR;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, port ? RTM_SETLINK : RTM_NEWLINK, 0, sizeof *ifi);
    ifi->ifi_index = link.index;
    if (port) {
        ifi->ifi_family = AF_BRIDGE;
        struct nlattr *nest = rtnl_nest_begin(&msg, IFLA_PROTINFO | NLA_F_NESTED);
        rtnl_put(&msg, step->attr, &value, step->attr_size);
        rtnl_nest_end(&msg, nest);
        return rtnl_change(repair->rtnl, &msg, err);
    }
    struct nlattr *info = rtnl_nest_begin(&msg, IFLA_LINKINFO | NLA_F_NESTED);
    rtnl_put_text(&msg, IFLA_INFO_KIND, "bridge");
    struct nlattr *data = rtnl_nest_begin(&msg, IFLA_INFO_DATA | NLA_F_NESTED);
    rtnl_put(&msg, step->attr, &value, step->attr_size);
    rtnl_nest_end(&msg, data);
    rtnl_nest_end(&msg, info);
    return rtnl_change(repair->rtnl, &msg, err);
}

static int attr_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return attr_set(repair, step, step->value, err);
}

static int attr_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                        struct err *err) {
    uint64_t value;
    int r = read_number(before, &value, err);
    return r < 0 ? r : attr_set(repair, step, value, err);
}

const struct repair_op repair_op_attr = {attr_read, attr_apply, attr_restore};

/* --- XDP --- */

static int xdp_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    struct link link;
    struct facts facts;
    int r = get_facts(repair, step, &link, &facts, err);
    if (r < 0)
        return r;
    uint32_t skb = facts.xdp_skb, drv = facts.xdp_drv, hw = facts.xdp_hw;
    if (facts.xdp_mode == XDP_ATTACHED_SKB)
        skb = facts.xdp_prog;
    if (facts.xdp_mode == XDP_ATTACHED_DRV)
        drv = facts.xdp_prog;
    if (facts.xdp_mode == XDP_ATTACHED_HW)
        hw = facts.xdp_prog;
    say(value, "generic %u native %u offloaded %u", skb, drv, hw);
    return 0;
}

/* ip link set dev DEV xdpgeneric|xdpdrv|xdpoffload fd FD; -1: off */
static int xdp_set(struct repair *repair, const struct repair_step *step, int fd, uint32_t mode, struct err *err) {
    struct link link;
    struct rtnl_msg msg;
    int r = repair_find_dev(repair, step, &link, err);
    if (r < 0)
        return r;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_SETLINK, 0, sizeof *ifi);
    ifi->ifi_index = link.index;
    struct nlattr *nest = rtnl_nest_begin(&msg, IFLA_XDP | NLA_F_NESTED);
    rtnl_put_u32(&msg, IFLA_XDP_FD, (uint32_t)fd);
    rtnl_put_u32(&msg, IFLA_XDP_FLAGS, mode);
    rtnl_nest_end(&msg, nest);
    return rtnl_change(repair->rtnl, &msg, err);
}

static const uint32_t xdp_modes[3] = {XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE, XDP_FLAGS_HW_MODE};

static int xdp_programs(const char *value, uint32_t ret_ids[3], struct err *err) {
    if (sscanf(value, "generic %u native %u offloaded %u", &ret_ids[0], &ret_ids[1], &ret_ids[2]) == 3)
        return 0;
    return err_set(err, EBADMSG, "repair.journal", "\"%s\" names no programs", value);
}

static int xdp_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    char value[REPAIR_VALUE];
    uint32_t ids[3];
    int r = xdp_read(repair, step, value, NULL, err);
    if (r == 0)
        r = xdp_programs(value, ids, err);
    for (int i = 0; i < 3 && r == 0; i++) {
        if (!ids[i])
            continue;
        repair_hold(repair, ids[i]);
        r = xdp_set(repair, step, -1, xdp_modes[i], err);
    }
    return r;
}

static int xdp_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                       struct err *err) {
    uint32_t ids[3];
    int r = xdp_programs(before, ids, err);
    for (int i = 0; i < 3 && r == 0; i++) {
        int fd = ids[i] ? repair_held(repair, ids[i]) : -1;
        if (ids[i] && fd < 0)
            r = err_set(err, ESTALE, "repair.irreversible", "BPF program %u is gone: load it again", ids[i]);
        else if (ids[i])
            r = xdp_set(repair, step, fd, xdp_modes[i], err);
    }
    return r;
}

const struct repair_op repair_op_xdp = {xdp_read, xdp_apply, xdp_restore};

/* --- offload --- */

/* ethtool -k DEV; ethtool -K DEV tx on|off */
static int offload_talk(struct repair *repair, const struct repair_step *step, uint32_t command, uint32_t *value,
                        struct err *err) {
    struct ethtool_value data = {.cmd = command, .data = *value};
    struct ifreq request = {.ifr_data = (void *)&data};
    _cleanup_close_ int fd = -1;
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    if (r < 0)
        return r;
    str_copy(request.ifr_name, sizeof request.ifr_name, link.name);
    r = netns_socket(repair->nsfd, AF_INET, SOCK_DGRAM, 0, &fd);
    if (r == 0 && ioctl(fd, SIOCETHTOOL, &request) < 0)
        r = -errno;
    if (r < 0)
        return err_sys(err, -r, "repair.failed", "checksum offload of %s", step->dev);
    *value = data.data;
    return 0;
}

static int offload_read(struct repair *repair, const struct repair_step *step, char *value, char **raw,
                        struct err *err) {
    uint32_t on = 0;
    int r = offload_talk(repair, step, ETHTOOL_GTXCSUM, &on, err);
    if (r == 0)
        say(value, "%u", on);
    return r;
}

static int offload_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    uint32_t on = step->value ? 1 : 0;
    return offload_talk(repair, step, ETHTOOL_STXCSUM, &on, err);
}

static int offload_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                           struct err *err) {
    uint32_t on = strcmp(before, "0") != 0;
    return offload_talk(repair, step, ETHTOOL_STXCSUM, &on, err);
}

const struct repair_op repair_op_offload = {offload_read, offload_apply, offload_restore};

/* --- sysctl --- */

/* Below /proc/sys/net only, and nowhere else by "..": a plan is data, and data may come from a file. */
static int sysctl_check(const struct repair_step *step, struct err *err) {
    const char *key = step->object;
    if (!str_starts(key, "net/") || strstr(key, "..") || strstr(key, "//"))
        return err_set(err, EINVAL, "repair.failed", "\"%s\" is not a network sysctl", key);
    return 0;
}

static int sysctl_read(struct repair *repair, const struct repair_step *step, char *value, char **raw,
                       struct err *err) {
    int r = sysctl_check(step, err);
    if (r < 0)
        return r;
    r = netns_sysctl_read(repair->nsfd, step->object, value, REPAIR_VALUE);
    return r < 0 ? err_sys(err, -r, "repair.gone", "read sysctl %s", step->object) : 0;
}

static int sysctl_set(struct repair *repair, const struct repair_step *step, const char *value, struct err *err) {
    int r = sysctl_check(step, err);
    if (r < 0)
        return r;
    r = netns_sysctl_write(repair->nsfd, step->object, value);
    return r < 0 ? err_sys(err, -r, "repair.failed", "write sysctl %s", step->object) : 0;
}

static int sysctl_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return sysctl_set(repair, step, step->text, err);
}

static int sysctl_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                          struct err *err) {
    return sysctl_set(repair, step, before, err);
}

const struct repair_op repair_op_sysctl = {sysctl_read, sysctl_apply, sysctl_restore};
