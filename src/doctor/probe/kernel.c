/* Counters, port states and neighbour entries, by rtnetlink. */
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/gen_stats.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/probe/internal.h"

#define NEIGHBOURS_MAX 65536

struct link_reading {
    struct probe_link_counters counters;
    uint8_t port_state;
    bool is_port;
};

static void read_port(const struct nlattr *attr, void *data) {
    struct link_reading *reading = data;
    if (mnl_attr_get_type(attr) == IFLA_BRPORT_STATE)
        reading->port_state = rtnl_attr_u8(attr);
}

static void read_info(const struct nlattr *attr, void *data) {
    struct link_reading *reading = data;
    char kind[16] = "";
    if (mnl_attr_get_type(attr) == IFLA_INFO_SLAVE_KIND) {
        rtnl_attr_text(attr, kind, sizeof kind);
        reading->is_port = strcmp(kind, "bridge") == 0;
    }
    if (mnl_attr_get_type(attr) == IFLA_INFO_SLAVE_DATA && reading->is_port)
        rtnl_each_nested(attr, read_port, reading);
}

static void read_link_attr(const struct nlattr *attr, void *data) {
    struct link_reading *reading = data;
    struct rtnl_link_stats64 stats = {0};
    size_t len = mnl_attr_get_payload_len(attr);
    if (mnl_attr_get_type(attr) == IFLA_LINKINFO)
        rtnl_each_nested(attr, read_info, reading);
    if (mnl_attr_get_type(attr) != IFLA_STATS64)
        return;
    memcpy(&stats, mnl_attr_get_payload(attr), len < sizeof stats ? len : sizeof stats);
    reading->counters = (struct probe_link_counters){
        .known = true,
        .rx_packets = stats.rx_packets,
        .tx_packets = stats.tx_packets,
        .rx_bytes = stats.rx_bytes,
        .tx_bytes = stats.tx_bytes,
        .rx_dropped = stats.rx_dropped,
        .tx_dropped = stats.tx_dropped,
        .rx_errors = stats.rx_errors,
        .tx_errors = stats.tx_errors,
    };
}

static int parse_link(const struct nlmsghdr *nlh, void *ret) {
    struct link_reading reading = {.port_state = KERNEL_NO_PORT};
    if (nlh->nlmsg_type != RTM_NEWLINK || !rtnl_each_msg_attr(nlh, sizeof(struct ifinfomsg), read_link_attr, &reading))
        return 0;
    *(struct link_reading *)ret = reading;
    return 1;
}

/* ip -s -d link show dev INDEX */
static int read_link(struct rtnl *rtnl, int32_t ifindex, struct link_reading *ret) {
    struct rtnl_msg msg;
    struct ifinfomsg *ifi = rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof *ifi);
    ifi->ifi_index = ifindex;
    return rtnl_ask(rtnl, &msg, parse_link, ret, NULL);
}

int kernel_port_state(struct rtnl *rtnl, int32_t ifindex, uint8_t *ret_state) {
    struct link_reading reading;
    int r = read_link(rtnl, ifindex, &reading);
    if (r == 0)
        *ret_state = reading.port_state;
    return r;
}

static void read_stats(const struct nlattr *attr, void *data) {
    struct probe_qdisc_counters *counters = data;
    struct gnet_stats_basic basic = {0};
    struct gnet_stats_queue queue = {0};
    size_t len = mnl_attr_get_payload_len(attr);
    if (mnl_attr_get_type(attr) == TCA_STATS_BASIC) {
        memcpy(&basic, mnl_attr_get_payload(attr), len < sizeof basic ? len : sizeof basic);
        counters->packets += basic.packets;
    }
    if (mnl_attr_get_type(attr) == TCA_STATS_QUEUE) {
        memcpy(&queue, mnl_attr_get_payload(attr), len < sizeof queue ? len : sizeof queue);
        counters->drops += queue.drops;
        counters->overlimits += queue.overlimits;
        counters->backlog_packets += queue.qlen;
        counters->backlog_bytes += queue.backlog;
    }
}

static void read_qdisc_attr(const struct nlattr *attr, void *data) {
    if (mnl_attr_get_type(attr) == TCA_STATS2)
        rtnl_each_nested(attr, read_stats, data);
}

static int parse_qdisc(const struct nlmsghdr *nlh, void *ret) {
    struct probe_qdisc_counters counters = {.known = true};
    if (nlh->nlmsg_type != RTM_NEWQDISC || !rtnl_each_msg_attr(nlh, sizeof(struct tcmsg), read_qdisc_attr, &counters))
        return 0;
    *(struct probe_qdisc_counters *)ret = counters;
    return 1;
}

/* tc -s qdisc show dev INDEX root. A root's numbers hold its children's. Not by a dump: that is always of all devices,
 * and there may be a thousand. One without a queue is not told at all. */
static void read_qdisc(struct rtnl *rtnl, int32_t ifindex, struct probe_qdisc_counters *ret) {
    struct rtnl_msg msg;
    struct tcmsg *tcm = rtnl_msg_begin(&msg, RTM_GETQDISC, 0, sizeof *tcm);
    tcm->tcm_ifindex = ifindex;
    tcm->tcm_parent = TC_H_ROOT;
    int r = rtnl_ask(rtnl, &msg, parse_qdisc, ret, NULL);
    if (r == -EBADMSG)
        *ret = (struct probe_qdisc_counters){.known = true};
}

int kernel_counters(struct rtnl *rtnl, int32_t ifindex, struct probe_counters *ret) {
    struct link_reading reading;
    struct probe_counters counters = {0};
    int r = ifindex ? read_link(rtnl, ifindex, &reading) : -ENODEV;
    if (r < 0)
        return r;
    counters.link = reading.counters;
    read_qdisc(rtnl, ifindex, &counters.qdisc);
    *ret = counters;
    return 0;
}

/* --- neighbours --- */

struct neigh_reading {
    uint32_t ip;
    struct probe_neighbour entry;
};

static void read_neigh_attr(const struct nlattr *attr, void *data) {
    struct neigh_reading *reading = data;
    if (mnl_attr_get_type(attr) == NDA_DST)
        reading->ip = rtnl_attr_ip(attr);
    if (mnl_attr_get_type(attr) == NDA_LLADDR && mnl_attr_get_payload_len(attr) == 6) {
        memcpy(&reading->entry.mac, mnl_attr_get_payload(attr), 6);
        reading->entry.has_mac = true;
    }
}

static int parse_neigh(const struct nlmsghdr *nlh, void *ret) {
    struct neigh_reading reading = {0};
    if (nlh->nlmsg_type != RTM_NEWNEIGH)
        return 0;
    const struct ndmsg *ndm = rtnl_each_msg_attr(nlh, sizeof *ndm, read_neigh_attr, &reading);
    if (!ndm || ndm->ndm_family != AF_INET || (ndm->ndm_flags & NTF_PROXY))
        return 0;
    reading.entry.ifindex = ndm->ndm_ifindex;
    reading.entry.state = ndm->ndm_state;
    *(struct neigh_reading *)ret = reading;
    return 1;
}

/* ip neigh get IP dev INDEX */
static int ask_neigh(struct rtnl *rtnl, uint32_t ip, int32_t ifindex, struct neigh_reading *ret) {
    struct rtnl_msg msg;
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_GETNEIGH, 0, sizeof *ndm);
    ndm->ndm_family = AF_INET;
    ndm->ndm_ifindex = ifindex;
    rtnl_put_ip(&msg, NDA_DST, ip);
    return rtnl_ask(rtnl, &msg, parse_neigh, ret, NULL);
}

int kernel_neighbour(struct rtnl *rtnl, uint32_t ip, int32_t preferred, bool elsewhere, struct probe_neighbour *ret) {
    struct rtnl_msg msg;
    struct neigh_reading one;
    struct rtnl_list list = {.item_size = sizeof one, .max = NEIGHBOURS_MAX};
    struct probe_neighbour found = {0};
    if (preferred && ask_neigh(rtnl, ip, preferred, &one) == 0) {
        *ret = one.entry;
        return 0;
    }
    if (preferred && !elsewhere) {
        *ret = found;
        return 0;
    }
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_GETNEIGH, 0, sizeof *ndm);
    ndm->ndm_family = AF_INET;
    int r = rtnl_dump(rtnl, &msg, parse_neigh, &list, NULL);
    const struct neigh_reading *readings = (const void *)list.items;
    for (size_t i = 0; r == 0 && i < list.count; i++)
        if (readings[i].ip == ip)
            found = readings[i].entry;
    free(list.items);
    if (r == 0)
        *ret = found;
    return r;
}

int kernel_neighbour_set(struct rtnl *rtnl, int32_t ifindex, uint32_t ip, struct net_mac mac, uint16_t state) {
    struct rtnl_msg msg;
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_NEWNEIGH, NLM_F_REPLACE, sizeof *ndm);
    ndm->ndm_family = AF_INET;
    ndm->ndm_ifindex = ifindex;
    ndm->ndm_state = state;
    rtnl_put_ip(&msg, NDA_DST, ip);
    rtnl_put(&msg, NDA_LLADDR, &mac, sizeof mac);
    return rtnl_change(rtnl, &msg, NULL);
}
