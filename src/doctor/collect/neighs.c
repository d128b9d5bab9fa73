#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/collect/collect.h"

#define NDA_FLAGS_EXT_ATTR 15 /* since 5.16 */

static void parse_neigh_attr(const struct nlattr *attr, void *data) {
    struct snap_neigh *neigh = data;
    switch (mnl_attr_get_type(attr)) {
    case NDA_DST:
        if (mnl_attr_get_payload_len(attr) == 4)
            neigh->ip = rtnl_attr_ip(attr);
        break;
    case NDA_LLADDR:
        neigh->has_mac = mnl_attr_get_payload_len(attr) == sizeof neigh->mac;
        if (neigh->has_mac)
            memcpy(&neigh->mac, mnl_attr_get_payload(attr), sizeof neigh->mac);
        break;
    case NDA_PROBES:
        neigh->probes = rtnl_attr_u32(attr);
        break;
    }
}

static int parse_neigh(const struct nlmsghdr *nlh, void *ret) {
    struct snap_neigh *neigh = ret;
    if (nlh->nlmsg_type != RTM_NEWNEIGH)
        return 0;
    memset(neigh, 0, sizeof *neigh);
    const struct ndmsg *ndm = rtnl_each_msg_attr(nlh, sizeof *ndm, parse_neigh_attr, neigh);
    if (!ndm || ndm->ndm_family != AF_INET)
        return ndm ? 0 : -EBADMSG;
    neigh->link = ndm->ndm_ifindex;
    neigh->state = ndm->ndm_state;
    neigh->flags = ndm->ndm_flags;
    return neigh->ip != 0;
}

/* ip -4 neigh; with NTF_PROXY ip neigh show proxy */
static int dump_neighs(struct snapshot *s, struct rtnl *rtnl, uint8_t flags, struct err *err) {
    struct rtnl_msg msg;
    struct rtnl_list list = {.item_size = sizeof(struct snap_neigh), .max = SNAP_NEIGH_MAX};
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_GETNEIGH, 0, sizeof *ndm);
    ndm->ndm_family = AF_INET;
    ndm->ndm_flags = flags;
    int r = rtnl_dump(rtnl, &msg, parse_neigh, &list, err);
    for (size_t i = 0; r == 0 && i < list.count; i++) {
        struct snap_neigh *neigh = SNAP_PUSH(s, neighs, SNAP_NEIGH_MAX);
        if (neigh)
            *neigh = ((struct snap_neigh *)list.items)[i];
    }
    free(list.items);
    return r;
}

void collect_neighs(struct snapshot *s, struct rtnl *rtnl) {
    struct err err = {0};
    int r = dump_neighs(s, rtnl, 0, &err);
    if (r == 0)
        r = dump_neighs(s, rtnl, NTF_PROXY, &err);
    if (r < 0)
        snapshot_gap(s, "neighs", r, "%s", err.detail);
}

static void parse_fdb_attr(const struct nlattr *attr, void *data) {
    struct snap_fdb *fdb = data;
    struct nda_cacheinfo cache;
    switch (mnl_attr_get_type(attr)) {
    case NDA_LLADDR:
        if (mnl_attr_get_payload_len(attr) == sizeof fdb->mac)
            memcpy(&fdb->mac, mnl_attr_get_payload(attr), sizeof fdb->mac);
        break;
    case NDA_VLAN:
        if (mnl_attr_get_payload_len(attr) >= sizeof fdb->vlan)
            fdb->vlan = mnl_attr_get_u16(attr);
        break;
    case NDA_MASTER:
        fdb->master = (int32_t)rtnl_attr_u32(attr);
        break;
    case NDA_FLAGS_EXT_ATTR:
        fdb->ext_flags = rtnl_attr_u32(attr);
        break;
    case NDA_CACHEINFO:
        if (mnl_attr_get_payload_len(attr) >= sizeof cache) {
            memcpy(&cache, mnl_attr_get_payload(attr), sizeof cache);
            fdb->updated_s = cache.ndm_updated / 100; /* clock_t: hundredths of a second */
        }
        break;
    }
}

static int parse_fdb(const struct nlmsghdr *nlh, void *ret) {
    struct snap_fdb *fdb = ret;
    if (nlh->nlmsg_type != RTM_NEWNEIGH)
        return 0;
    memset(fdb, 0, sizeof *fdb);
    const struct ndmsg *ndm = rtnl_each_msg_attr(nlh, sizeof *ndm, parse_fdb_attr, fdb);
    if (!ndm || ndm->ndm_family != AF_BRIDGE)
        return ndm ? 0 : -EBADMSG;
    fdb->link = ndm->ndm_ifindex;
    fdb->state = ndm->ndm_state;
    fdb->flags = ndm->ndm_flags;
    return 1;
}

/* bridge -d -s fdb show */
void collect_fdb(struct snapshot *s, struct rtnl *rtnl) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct rtnl_list list = {.item_size = sizeof(struct snap_fdb), .max = SNAP_FDB_MAX};
    struct ndmsg *ndm = rtnl_msg_begin(&msg, RTM_GETNEIGH, 0, sizeof *ndm);
    ndm->ndm_family = AF_BRIDGE;
    int r = rtnl_dump(rtnl, &msg, parse_fdb, &list, &err);
    if (r < 0) {
        snapshot_gap(s, "fdb", r, "%s", err.detail);
        free(list.items);
        return;
    }
    s->fdbs = (struct snap_fdb *)list.items;
    s->fdbs_count = (uint32_t)list.count;
    s->fdbs_cap = (uint32_t)list.cap;
}
