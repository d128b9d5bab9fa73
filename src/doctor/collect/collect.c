#include "doctor/collect/collect.h"

#include <errno.h>
#include <linux/neighbour.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "netlink/netns.h"

#define LOOKUPS_MAX 2048

static void describe_host(struct snapshot *s, const struct collect_options *options) {
    struct utsname name;
    if (uname(&name) == 0) {
        str_copy(s->host.name, sizeof s->host.name, name.nodename);
        str_copy(s->host.kernel, sizeof s->host.kernel, name.release);
    }
    str_copy(s->host.netns, sizeof s->host.netns, options->netns ? options->netns : "");
    s->host.root = geteuid() == 0;
    s->host.taken_ms = time_realtime_ms();
}

static bool is_bridge(const struct snap_link *link) {
    return link && strcmp(link->kind, "bridge") == 0;
}

static uint32_t taps_of(const struct snapshot *s, int32_t bridge) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->links_count; i++)
        count += snap_is_tap(&s->links[i]) && s->links[i].master == bridge;
    return count;
}

static bool holds_guest(const struct snapshot *s, const struct snap_link *bridge, uint32_t guest) {
    for (uint32_t i = 0; guest && i < s->addrs_count; i++)
        if (s->addrs[i].link == bridge->index &&
            net_contains((struct net_prefix){s->addrs[i].ip, s->addrs[i].length}, guest))
            return true;
    return false;
}

/* The one that was asked for; else the TAP's own; else br0; else the one whose network has the guest; else the one with
 * the most TAPs. One without any, in whose network the guest is not, is somebody else's (docker0). */
static const struct snap_link *choose_bridge(const struct snapshot *s, const struct collect_options *options) {
    const struct snap_link *best = NULL, *found = NULL;
    if (options->bridge && *options->bridge)
        return snap_link_by_name(s, options->bridge);
    const struct snap_link *tap = options->tap ? snap_link_by_name(s, options->tap) : NULL;
    if (tap && is_bridge(snap_link_by_index(s, tap->master)))
        return snap_link_by_index(s, tap->master);
    found = snap_link_by_name(s, "br0");
    if (is_bridge(found))
        return found;
    uint32_t guest = options->ip_count ? options->ips[0] : 0;
    for (uint32_t i = 0; i < s->links_count; i++) {
        const struct snap_link *link = &s->links[i];
        if (is_bridge(link) && holds_guest(s, link, guest))
            return link;
        if (is_bridge(link) &&
            (best ? taps_of(s, link->index) > taps_of(s, best->index) : !guest || taps_of(s, link->index) > 0))
            best = link;
    }
    return best;
}

static void find_bridge(struct snapshot *s, const struct collect_options *options) {
    const struct snap_link *bridge = choose_bridge(s, options);
    str_copy(s->host.bridge, sizeof s->host.bridge,
             bridge                                ? bridge->name
             : options->bridge && *options->bridge ? options->bridge
                                                   : "br0");
    s->host.bridge_index = bridge ? bridge->index : 0;
    s->host.managed = bridge && strcmp(bridge->alias, "master-controller") == 0;
}

static uint32_t address_of(const struct snapshot *s, int32_t link) {
    for (uint32_t i = 0; i < s->addrs_count; i++)
        if (s->addrs[i].link == link)
            return s->addrs[i].ip;
    return 0;
}

/* To every address that might be a guest's; from a guest to the world, and back. */
static void make_lookups(struct snapshot *s, struct rtnl *rtnl, const struct collect_options *options) {
    int32_t bridge = s->host.bridge_index;
    uint32_t own = address_of(s, bridge), guest;
    collect_lookup(s, rtnl, 0x08080808, 0, 0); /* any address of the world: nothing is sent to it */
    for (size_t i = 0; i < options->ip_count; i++)
        collect_lookup(s, rtnl, options->ips[i], 0, 0);
    for (uint32_t i = 0; i < s->vms_count && s->lookups_count < LOOKUPS_MAX; i++)
        collect_lookup(s, rtnl, s->vms[i].ip, 0, 0);
    for (uint32_t i = 0; i < s->neighs_count && s->lookups_count < LOOKUPS_MAX; i++)
        if (s->neighs[i].link == bridge && !(s->neighs[i].flags & NTF_PROXY))
            collect_lookup(s, rtnl, s->neighs[i].ip, 0, 0);
    uint32_t guests = s->lookups_count;
    for (uint32_t i = 1; bridge && own && i < guests && s->lookups_count < LOOKUPS_MAX; i++) {
        guest = s->lookups[i].to;
        collect_lookup(s, rtnl, own, guest, bridge); /* as arp_process() and ip_rcv() ask */
        collect_lookup(s, rtnl, 0x08080808, guest, bridge);
    }
}

int collect_snapshot(const struct collect_options *options, struct snapshot **ret, struct err *err) {
    _cleanup_snapshot_ struct snapshot *s = snapshot_new();
    _cleanup_rtnl_close_ struct rtnl *rtnl = NULL;
    if (!s)
        return err_sys(err, ENOMEM, "doctor.failed", "collect facts");
    int r = rtnl_open(options->nsfd, &rtnl, err);
    if (r < 0)
        return r;
    describe_host(s, options);
    collect_links(s, rtnl);
    collect_addrs(s, rtnl);
    find_bridge(s, options);
    collect_offloads(s, options->nsfd);
    collect_ipv6(s, rtnl);
    collect_routes(s, rtnl);
    collect_policies(s, rtnl);
    collect_neighs(s, rtnl);
    collect_fdb(s, rtnl);
    collect_qdiscs(s, rtnl);
    collect_filters(s, rtnl);
    collect_nft(s, options->nsfd);
    collect_hooks(s, options->nsfd);
    collect_progs(s, options->nsfd);
    collect_xfrm(s, options->nsfd);
    collect_sysctls(s, options->nsfd);
    collect_tables(s, options->nsfd);
    collect_holders(s, options->nsfd);
    collect_claimants(s, options->tap ? options->tap : "");
    if (options->state_dir && !options->light) {
        collect_records(s, options->nsfd, options->state_dir);
        collect_consoles(s, options->state_dir);
    }
    make_lookups(s, rtnl, options);
    *ret = s;
    s = NULL;
    return 0;
}
