/* What network_start() checks before it changes anything. */
#include <errno.h>
#include <linux/capability.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "netlink/netns.h"
#include "netlink/nft.h"
#include "netlink/route.h"
#include "netlink/tun.h"
#include "network/names.h"
#include "network/private.h"
#include "network/ruleset.h"

#define SHOWN 64

static const char *show(const char *text, char buffer[SHOWN]) {
    return str_escape(text, strlen(text), buffer, SHOWN);
}

static int check_name(const char *what, const char *name, struct err *err) {
    char shown[SHOWN];
    if (link_name_is_valid(name) && ruleset_name_is_plain(name))
        return 0;
    err_set(err, EINVAL, "network.bad-name", "[network] %s = \"%s\" cannot be a network interface", what,
            show(name, shown));
    return err_hint(err, "right would be 1 to 15 letters, digits, dots or dashes, such as br0");
}

static int check_config(const struct config_network *cfg, struct err *err) {
    int r = check_name("bridge", cfg->bridge, err);
    if (r == 0 && *cfg->uplink)
        r = check_name("uplink", cfg->uplink, err);
    if (r < 0)
        return r;
    char shown[SHOWN];
    if (*cfg->namespace && !netns_name_is_valid(cfg->namespace)) {
        err_set(err, EINVAL, "network.bad-name", "[network] namespace = \"%s\" cannot be a network namespace",
                show(cfg->namespace, shown));
        return err_hint(err, "right would be 1 to %d of A-Z a-z 0-9 . _ -, not beginning with a dot", NETNS_NAME_MAX);
    }
    return 0;
}

/* The kernel is asked for the effective set; a capability that is there but of no use in this user namespace shows
 * at the first change. */
static int check_privilege(const struct config_network *cfg, struct err *err) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    if (syscall(SYS_capget, &header, data) < 0)
        return err_sys(err, errno, "network.no-permission", "read this process's capabilities");
    bool net = data[0].effective & (1U << CAP_NET_ADMIN);
    bool sys = data[0].effective & (1U << CAP_SYS_ADMIN);
    if (net && (sys || !*cfg->namespace))
        return 0;
    err_set(err, EPERM, "network.no-permission", "the network cannot be set up: this process (uid %u) lacks %s",
            geteuid(), net ? "CAP_SYS_ADMIN, which a namespace needs" : "CAP_NET_ADMIN");
    return err_hint(err, "run as root");
}

static int check_tun(struct err *err) {
    int r = tun_check(err);
    if (r < 0 && err)
        str_copy(err->code, sizeof err->code, r == -ENODEV ? "network.no-tun" : "network.no-permission");
    return r;
}

static int open_namespace(const struct config_network *cfg, struct plan *plan, struct err *err) {
    int r = netns_open(cfg->namespace, &plan->nsfd, err);
    if (r == -ENOENT && *cfg->uplink) {
        err_set(err, ENODEV, "network.uplink-missing",
                "[network] uplink = %s: there is no such device, because namespace %s does not exist yet", cfg->uplink,
                cfg->namespace);
        return err_hint(err, "make the namespace and put the uplink into it first, or leave uplink empty");
    }
    if (r == -ENOENT)
        return 0;
    return r < 0 ? r : rtnl_open(plan->nsfd, &plan->rtnl, err);
}

/* lo carries our mark in a namespace that we made. */
static int check_namespace(const struct config_network *cfg, struct plan *plan, struct err *err) {
    struct link lo;
    int r = link_get_by_name(plan->rtnl, "lo", &lo, err);
    if (r < 0) {
        err_prefix(err, "look at lo in namespace \"%s\"", cfg->namespace);
        return r;
    }
    plan->namespace_is_ours = *cfg->namespace && strcmp(lo.alias, NETWORK_MARK) == 0;
    return 0;
}

static int check_uplink(const struct config_network *cfg, struct plan *plan, struct err *err) {
    struct link uplink;
    if (!*cfg->uplink)
        return 0;
    int r = link_get_by_name(plan->rtnl, cfg->uplink, &uplink, err);
    if (r < 0 && r != -ENODEV) {
        err_prefix(err, "look for uplink %s", cfg->uplink);
        return r;
    }
    char shown[SHOWN];
    if (r == -ENODEV)
        err_set(err, ENODEV, "network.uplink-missing", "[network] uplink = %s: there is no such device%s%s",
                cfg->uplink, *cfg->namespace ? " in namespace " : "", cfg->namespace);
    else if (strcmp(uplink.name, cfg->uplink) != 0)
        err_set(err, ENODEV, "network.uplink-missing", "[network] uplink = %s is only another name of %s", cfg->uplink,
                show(uplink.name, shown));
    else
        return 0;
    return err_hint(err, "name the device that the default route uses (ip route), or leave uplink empty");
}

/* A bridge that was made but, because of a crash, not marked yet is known by what only ours can be: this very MAC,
 * and nothing else done to it. */
bool plan_bridge_is_ours(const struct link *link, const struct config_network *cfg) {
    struct net_mac born = names_bridge_mac(cfg);
    if (strcmp(link->kind, "bridge") != 0 || strcmp(link->name, cfg->bridge) != 0)
        return false;
    if (strcmp(link->alias, NETWORK_MARK) == 0)
        return true;
    return !*link->alias && !(link->flags & IFF_UP) && memcmp(&link->mac, &born, sizeof born) == 0;
}

static int foreign_bridge(const struct config_network *cfg, const struct link *link, struct err *err) {
    char shown[SHOWN];
    if (strcmp(link->name, cfg->bridge) != 0)
        err_set(err, EEXIST, "network.bridge-foreign", "[network] bridge = %s is already another name of device %s",
                cfg->bridge, show(link->name, shown));
    else if (strcmp(link->kind, "bridge") != 0)
        err_set(err, EEXIST, "network.bridge-foreign",
                "[network] bridge = %s: a device of that name is there, and "
                "it is not a bridge (%s)",
                cfg->bridge, *link->kind ? show(link->kind, shown) : "hardware");
    else
        err_set(err, EEXIST, "network.bridge-foreign",
                "[network] bridge = %s: a bridge of that name is there that was not made by us (its alias is \"%s\", "
                "not \"%s\")",
                cfg->bridge, show(link->alias, shown), NETWORK_MARK);
    return err_hint(err,
                    "give [network] bridge another name, or delete that device if nobody needs it (ip link del "
                    "%s)",
                    cfg->bridge);
}

static int find_port(struct plan *plan, struct err *err) {
    _cleanup_free_ struct link *links = NULL;
    size_t count = 0;
    int r = link_dump(plan->rtnl, &links, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        if (links[i].master == plan->bridge.index)
            plan->a_port = links[i];
    return r;
}

static int check_bridge(const struct config_network *cfg, struct plan *plan, struct err *err) {
    int r = link_get_by_name(plan->rtnl, cfg->bridge, &plan->bridge, err);
    if (r == -ENODEV)
        return 0;
    if (r == 0 && !plan_bridge_is_ours(&plan->bridge, cfg))
        return foreign_bridge(cfg, &plan->bridge, err);
    if (r == 0)
        r = find_port(plan, err);
    if (r < 0) {
        err_prefix(err, "look at bridge %s", cfg->bridge);
        return r;
    }
    plan->bridge_exists = true;
    return 0;
}

/* A private /16 for the hint: the first of 10.x that shares nothing with what is there. */
static void suggest_pool(const struct addr *addrs, size_t addr_count, const struct route *routes, size_t route_count,
                         struct err *err) {
    for (uint32_t x = 20; x < 250; x++) {
        struct net_prefix p = {.address = 10U << 24 | x << 16 | 1, .length = 16};
        bool taken = false;
        for (size_t i = 0; i < addr_count && !taken; i++)
            taken = net_overlaps(p, addrs[i].prefix);
        for (size_t i = 0; i < route_count && !taken; i++)
            taken = routes[i].to.length > 1 && net_overlaps(p, routes[i].to);
        if (!taken) {
            err_hint(err, "choose another [network] address, for example 10.%u.0.1/16", x);
            return;
        }
    }
    err_hint(err, "choose another [network] address");
}

static int overlap(struct plan *plan, const struct config_network *cfg, const char *what, struct net_prefix with,
                   int link, struct err *err) {
    struct link device = {0};
    char pool[NET_IP_TEXT], other[NET_IP_TEXT], shown[SHOWN];
    net_format_ip(cfg->address.address & net_mask(cfg->address.length), pool);
    net_format_ip(with.address, other);
    if (link)
        link_get_by_index(plan->rtnl, link, &device, NULL);
    return err_set(err, EADDRINUSE, "network.pool-overlap", "the pool %s/%u overlaps the %s %s/%u of %s%s", pool,
                   cfg->address.length, what, other, with.length, device.index ? "device " : "no device",
                   show(device.name, shown));
}

/* Half of the Internet is how a VPN overrides the default route without deleting it: it is a default route. */
static bool is_default(const struct route *route) {
    return route->to.length <= 1;
}

/* The addresses too: those of a device that is down have no route yet. */
static int check_pool(const struct config_network *cfg, struct plan *plan, const struct addr *addrs, size_t addr_count,
                      struct err *err) {
    _cleanup_free_ struct route *routes = NULL;
    size_t route_count = 0;
    int bridge = plan->bridge_exists ? plan->bridge.index : 0;
    int r = route_dump(plan->rtnl, &routes, &route_count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < addr_count; i++)
        if (addrs[i].link != bridge && net_overlaps(cfg->address, addrs[i].prefix))
            r = overlap(plan, cfg, "address", addrs[i].prefix, addrs[i].link, err);
    for (size_t i = 0; r == 0 && i < route_count; i++)
        if (!is_default(&routes[i]) && (!bridge || routes[i].link != bridge) &&
            net_overlaps(cfg->address, routes[i].to))
            r = overlap(plan, cfg, "route", routes[i].to, routes[i].link, err);
    if (r == -EADDRINUSE)
        suggest_pool(addrs, addr_count, routes, route_count, err);
    return r;
}

static bool same_prefix(struct net_prefix a, struct net_prefix b) {
    return a.address == b.address && a.length == b.length;
}

/* Our bridge may have the address of an earlier configuration. With VMs on it, which have the old gateway and the old
 * pool, it stays; without, it is replaced. */
static int check_addresses(const struct config_network *cfg, struct plan *plan, const struct addr *addrs, size_t count,
                           struct err *err) {
    struct net_prefix old[OLD_ADDRESSES_MAX];
    size_t old_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (addrs[i].link != plan->bridge.index)
            continue;
        if (same_prefix(addrs[i].prefix, cfg->address))
            plan->address_present = true;
        else if (old_count < OLD_ADDRESSES_MAX)
            old[old_count++] = addrs[i].prefix;
    }
    if (plan->address_present || old_count == 0)
        return 0;
    char has[NET_IP_TEXT], wanted[NET_IP_TEXT], shown[SHOWN];
    net_format_ip(old[0].address, has);
    net_format_ip(cfg->address.address, wanted);
    if (plan->a_port.index) {
        err_set(err, EBUSY, "network.address-in-use",
                "bridge %s has the address %s/%u, configured is %s/%u, and devices are connected to it (%s)",
                cfg->bridge, has, old[0].length, wanted, cfg->address.length, show(plan->a_port.name, shown));
        return err_hint(err, "set [network] address = %s/%u, or end the VMs and start again", has, old[0].length);
    }
    memcpy(plan->old, old, sizeof old);
    plan->old_count = old_count;
    return 0;
}

static int check_nftables(struct plan *plan, struct err *err) {
    int r = nft_check(plan->nsfd);
    if (r == 0)
        return 0;
    err_sys(err, -r, "network.no-nftables", "VMs are kept apart by nftables, which cannot be reached");
    return err_hint(err, "modprobe nf_tables nf_conntrack nft_ct nft_limit nft_connlimit nft_masq");
}

void plan_free(struct plan *plan) {
    rtnl_close(plan->rtnl);
    plan->rtnl = NULL;
    fd_close(&plan->nsfd);
}

static int check_inside(const struct config_network *cfg, struct plan *plan, struct err *err) {
    _cleanup_free_ struct addr *addrs = NULL;
    size_t count = 0;
    int r = check_namespace(cfg, plan, err);
    if (r == 0)
        r = check_uplink(cfg, plan, err);
    if (r == 0)
        r = check_bridge(cfg, plan, err);
    if (r == 0)
        r = addr_dump(plan->rtnl, &addrs, &count, err);
    if (r == 0)
        r = check_pool(cfg, plan, addrs, count, err);
    if (r == 0 && plan->bridge_exists)
        r = check_addresses(cfg, plan, addrs, count, err);
    return r < 0 ? r : check_nftables(plan, err);
}

int plan_make(const struct config_network *cfg, struct plan *plan, struct err *err) {
    *plan = (struct plan){.nsfd = -1};
    int r = check_config(cfg, err);
    if (r == 0)
        r = check_privilege(cfg, err);
    if (r == 0)
        r = check_tun(err);
    if (r == 0)
        r = open_namespace(cfg, plan, err);
    return r < 0 || !plan->rtnl ? r : check_inside(cfg, plan, err);
}
