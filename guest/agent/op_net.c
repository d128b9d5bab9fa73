/* The network as this guest sees it, and what may be changed in it. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "nl.h"

/* Of each list; what is more is only counted. */
#define LIST_MAX 128

struct list {
    json_t *items;
    size_t more;
};

static void list_add(struct list *list, json_t *item) {
    if (json_array_size(list->items) < LIST_MAX) {
        json_array_append_new(list->items, item);
        return;
    }
    json_decref(item);
    list->more++;
}

static const char *address_text(int family, const void *data, char text[INET6_ADDRSTRLEN]) {
    if (!data || !inet_ntop(family, data, text, INET6_ADDRSTRLEN))
        return "";
    return text;
}

static size_t address_size(int family) {
    return family == AF_INET ? 4 : 16;
}

static const char *find_address(struct nl_attrs attrs, int family, uint16_t type, char text[INET6_ADDRSTRLEN]) {
    return address_text(family, nl_find(attrs, type, address_size(family), NULL), text);
}

static const char *mac_text(struct nl_attrs attrs, uint16_t type, char text[18]) {
    const uint8_t *m = nl_find(attrs, type, 6, NULL);
    text[0] = '\0';
    if (m)
        snprintf(text, 18, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
    return text;
}

static json_t *name_of(int index) {
    char name[IF_NAMESIZE];
    return index > 0 && if_indextoname((unsigned)index, name) ? json_string(name) : json_null();
}

static json_t *sysctl_json(const char *path) {
    char value[32] = "";
    FILE *f = fopen(path, "re");
    bool read = f && fgets(value, sizeof value, f);
    if (f)
        fclose(f);
    return read ? json_integer(strtoll(value, NULL, 10)) : json_null();
}

/* Of this card; the kernel takes the larger of it and that of "all". */
static json_t *arp_ignore_json(const char *link) {
    char path[sizeof "/proc/sys/net/ipv4/conf//arp_ignore" + IF_NAMESIZE];
    snprintf(path, sizeof path, "/proc/sys/net/ipv4/conf/%.15s/arp_ignore", link);
    return sysctl_json(path);
}

/* ip -s -d link, and of each card its arp_ignore */
static void each_link(const struct nlmsghdr *m, void *data) {
    const struct ifinfomsg *info = NLMSG_DATA(m);
    struct nl_attrs attrs = nl_attrs_of(m, sizeof *info);
    struct rtnl_link_stats64 stats = {0};
    char mac[18];
    const uint8_t *carrier = nl_find(attrs, IFLA_CARRIER, 1, NULL);
    const void *found = nl_find(attrs, IFLA_STATS64, sizeof stats, NULL);
    if (m->nlmsg_type != RTM_NEWLINK)
        return;
    if (found)
        memcpy(&stats, found, sizeof stats);
    list_add(data,
             json_pack("{s:s, s:i, s:b, s:b, s:b, s:o, s:s, s:I, s:s, s:{s:I, s:I, s:I, s:I, s:I, s:I}}", "name",
                       nl_text(attrs, IFLA_IFNAME), "index", info->ifi_index, "up", (info->ifi_flags & IFF_UP) != 0,
                       "carrier", carrier && *carrier, "noarp", (info->ifi_flags & IFF_NOARP) != 0, "arp_ignore",
                       arp_ignore_json(nl_text(attrs, IFLA_IFNAME)), "mac", mac_text(attrs, IFLA_ADDRESS, mac), "mtu",
                       (json_int_t)nl_u32(attrs, IFLA_MTU), "kind",
                       nl_text(nl_nest(attrs, IFLA_LINKINFO), IFLA_INFO_KIND), "counters", "rx_packets",
                       (json_int_t)stats.rx_packets, "tx_packets", (json_int_t)stats.tx_packets, "rx_dropped",
                       (json_int_t)stats.rx_dropped, "tx_dropped", (json_int_t)stats.tx_dropped, "rx_errors",
                       (json_int_t)stats.rx_errors, "tx_errors", (json_int_t)stats.tx_errors));
}

/* ip address */
static void each_address(const struct nlmsghdr *m, void *data) {
    const struct ifaddrmsg *info = NLMSG_DATA(m);
    struct nl_attrs attrs = nl_attrs_of(m, sizeof *info);
    char text[INET6_ADDRSTRLEN];
    if (m->nlmsg_type != RTM_NEWADDR || (info->ifa_family != AF_INET && info->ifa_family != AF_INET6))
        return;
    const char *address = find_address(attrs, info->ifa_family, IFA_LOCAL, text);
    if (!*address)
        address = find_address(attrs, info->ifa_family, IFA_ADDRESS, text);
    list_add(data, json_pack("{s:o, s:s, s:i, s:i}", "link", name_of((int)info->ifa_index), "address", address,
                             "prefix", info->ifa_prefixlen, "scope", info->ifa_scope));
}

static const char *route_type(uint8_t type) {
    switch (type) {
    case RTN_UNICAST:
        return "unicast";
    case RTN_BLACKHOLE:
        return "blackhole";
    case RTN_UNREACHABLE:
        return "unreachable";
    case RTN_PROHIBIT:
        return "prohibit";
    default:
        return "other";
    }
}

/* ip route, ip -6 route: not the local table, not what the kernel keeps for a moment */
static void each_route(const struct nlmsghdr *m, void *data) {
    const struct rtmsg *info = NLMSG_DATA(m);
    struct nl_attrs attrs = nl_attrs_of(m, sizeof *info);
    char to[INET6_ADDRSTRLEN], via[INET6_ADDRSTRLEN], source[INET6_ADDRSTRLEN];
    uint32_t table = nl_u32(attrs, RTA_TABLE);
    table = table ? table : info->rtm_table;
    if (m->nlmsg_type != RTM_NEWROUTE || table == RT_TABLE_LOCAL || (info->rtm_flags & RTM_F_CLONED) ||
        (info->rtm_family != AF_INET && info->rtm_family != AF_INET6))
        return;
    const char *destination = find_address(attrs, info->rtm_family, RTA_DST, to);
    list_add(data,
             json_pack("{s:i, s:s, s:i, s:s, s:o, s:s, s:I, s:s, s:I}", "family", info->rtm_family == AF_INET6 ? 6 : 4,
                       "to", *destination ? destination : "default", "prefix", info->rtm_dst_len, "via",
                       find_address(attrs, info->rtm_family, RTA_GATEWAY, via), "link",
                       name_of((int)nl_u32(attrs, RTA_OIF)), "source",
                       find_address(attrs, info->rtm_family, RTA_PREFSRC, source), "metric",
                       (json_int_t)nl_u32(attrs, RTA_PRIORITY), "type", route_type(info->rtm_type), "table",
                       (json_int_t)table));
}

static const char *neighbour_state(uint16_t state) {
    static const struct {
        uint16_t bit;
        const char *name;
    } names[] = {{NUD_REACHABLE, "reachable"}, {NUD_STALE, "stale"},           {NUD_DELAY, "delay"},
                 {NUD_PROBE, "probe"},         {NUD_INCOMPLETE, "incomplete"}, {NUD_FAILED, "failed"},
                 {NUD_PERMANENT, "permanent"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (state & names[i].bit)
            return names[i].name;
    return "none";
}

/* ip neighbour */
static void each_neighbour(const struct nlmsghdr *m, void *data) {
    const struct ndmsg *info = NLMSG_DATA(m);
    struct nl_attrs attrs = nl_attrs_of(m, sizeof *info);
    char address[INET6_ADDRSTRLEN], mac[18];
    if (m->nlmsg_type != RTM_NEWNEIGH || info->ndm_state == NUD_NOARP ||
        (info->ndm_family != AF_INET && info->ndm_family != AF_INET6))
        return;
    list_add(data, json_pack("{s:s, s:s, s:o, s:s}", "address", find_address(attrs, info->ndm_family, NDA_DST, address),
                             "mac", mac_text(attrs, NDA_LLADDR, mac), "link", name_of(info->ndm_ifindex), "state",
                             neighbour_state(info->ndm_state)));
}

/* Adds one table to the facts; one that cannot be read is a fact too. */
static void add_table(json_t *facts, const char *name, uint16_t type, size_t header_size, nl_each *each) {
    struct nl_msg msg;
    char key[48];
    struct list list = {.items = json_array()};
    nl_begin(&msg, type, 0, header_size);
    int r = nl_dump(NETLINK_ROUTE, &msg, each, &list);
    json_object_set_new(facts, name, list.items);
    if (r < 0) {
        snprintf(key, sizeof key, "%s_error", name);
        json_object_set_new(facts, key, json_string(strerror(-r)));
    } else if (list.more > 0) {
        snprintf(key, sizeof key, "%s_more", name);
        json_object_set_new(facts, key, json_integer((json_int_t)list.more));
    }
}

static json_t *resolver_json(void) {
    char target[256];
    ssize_t n = readlink("/etc/resolv.conf", target, sizeof target - 1);
    return json_pack("{s:o, s:o}", "link", n > 0 ? text_json(target, (size_t)n) : json_null(), "text",
                     text_of_file("/etc/resolv.conf", 4096));
}

json_t *op_network(struct agent *agent, json_t *request, struct err *err) {
    if (request_unpack(request, err, "{}") < 0)
        return NULL;
    json_t *facts = json_object();
    add_table(facts, "links", RTM_GETLINK, sizeof(struct ifinfomsg), each_link);
    add_table(facts, "addresses", RTM_GETADDR, sizeof(struct ifaddrmsg), each_address);
    add_table(facts, "routes", RTM_GETROUTE, sizeof(struct rtmsg), each_route);
    add_table(facts, "neighbours", RTM_GETNEIGH, sizeof(struct ndmsg), each_neighbour);
    json_object_set_new(facts, "listeners", net_facts_listeners());
    json_object_set_new(facts, "firewall", net_facts_firewall());
    json_object_set_new(facts, "resolver", resolver_json());
    json_object_set_new(facts, "sysctls",
                        json_pack("{s:o, s:o, s:o, s:o}", "net.ipv4.icmp_echo_ignore_all",
                                  sysctl_json("/proc/sys/net/ipv4/icmp_echo_ignore_all"), "net.ipv4.ip_forward",
                                  sysctl_json("/proc/sys/net/ipv4/ip_forward"), "net.ipv4.conf.all.rp_filter",
                                  sysctl_json("/proc/sys/net/ipv4/conf/all/rp_filter"), "net.ipv4.conf.all.arp_ignore",
                                  sysctl_json("/proc/sys/net/ipv4/conf/all/arp_ignore")));
    return facts;
}

/* ---- changes ---- */

static int find_link(const char *name, int *ret_index, struct err *err) {
    *ret_index = (int)if_nametoindex(name);
    return *ret_index > 0 ? 0 : err_set(err, ENODEV, "net.no-link", "the guest has no link %s", name);
}

static json_t *changed(int r, struct err *err, const char *what, const char *object) {
    if (r == 0)
        return json_object();
    err_sys(err, -r, "net.refused", "%s %s", what, object);
    return NULL;
}

/* {"op":"net.link","name":"eth0","up":true}: ip link set eth0 up */
json_t *op_net_link(struct agent *agent, json_t *request, struct err *err) {
    const char *name;
    int up, index;
    struct nl_msg msg;
    if (request_unpack(request, err, "{s:s, s:b}", "name", &name, "up", &up) < 0 || find_link(name, &index, err) < 0)
        return NULL;
    struct ifinfomsg *info = nl_begin(&msg, RTM_NEWLINK, 0, sizeof *info);
    info->ifi_index = index;
    info->ifi_change = IFF_UP;
    info->ifi_flags = up ? IFF_UP : 0;
    return changed(nl_change(NETLINK_ROUTE, &msg), err, up ? "link up" : "link down", name);
}

/* "192.168.0.2/16". Return: 0 or -EINVAL. */
static int parse_prefix(const char *text, struct in_addr *ret_address, uint8_t *ret_length, struct err *err) {
    char address[INET_ADDRSTRLEN];
    uint64_t length;
    const char *slash = strchr(text, '/');
    if (slash && (size_t)(slash - text) < sizeof address && str_to_u64(slash + 1, 0, 32, &length) == 0) {
        memcpy(address, text, (size_t)(slash - text));
        address[slash - text] = '\0';
        if (inet_pton(AF_INET, address, ret_address) == 1) {
            *ret_length = (uint8_t)length;
            return 0;
        }
    }
    return err_set(err, EINVAL, "bad-request", "%s is not an IPv4 address with its prefix, as 192.168.0.2/16", text);
}

/* {"op":"net.address","link":"eth0","address":"192.168.0.2/16","delete":false}: ip address replace … */
json_t *op_net_address(struct agent *agent, json_t *request, struct err *err) {
    const char *link, *text;
    int remove = 0, index;
    struct in_addr address = {0};
    uint8_t length = 0;
    struct nl_msg msg;
    if (request_unpack(request, err, "{s:s, s:s, s?b}", "link", &link, "address", &text, "delete", &remove) < 0 ||
        find_link(link, &index, err) < 0 || parse_prefix(text, &address, &length, err) < 0)
        return NULL;
    struct ifaddrmsg *info =
        nl_begin(&msg, remove ? RTM_DELADDR : RTM_NEWADDR, remove ? 0 : NLM_F_CREATE | NLM_F_REPLACE, sizeof *info);
    *info = (struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = length, .ifa_index = (unsigned)index};
    nl_put(&msg, IFA_LOCAL, &address, sizeof address);
    nl_put(&msg, IFA_ADDRESS, &address, sizeof address);
    if (!remove && length < 31) {
        uint32_t broadcast = address.s_addr | htonl(length ? UINT32_MAX >> length : UINT32_MAX);
        nl_put(&msg, IFA_BROADCAST, &broadcast, sizeof broadcast);
    }
    return changed(nl_change(NETLINK_ROUTE, &msg), err, remove ? "remove address" : "add address", text);
}

/* {"op":"net.route","to":"0.0.0.0/0","via":"192.168.0.1","link":"eth0","delete":false}: ip route replace … */
json_t *op_net_route(struct agent *agent, json_t *request, struct err *err) {
    const char *text, *via_text = NULL, *link = NULL;
    int remove = 0, index = 0;
    struct in_addr to = {0}, via = {0};
    uint8_t length = 0;
    struct nl_msg msg;
    if (request_unpack(request, err, "{s:s, s?s, s?s, s?b}", "to", &text, "via", &via_text, "link", &link, "delete",
                       &remove) < 0 ||
        parse_prefix(text, &to, &length, err) < 0 || (link && find_link(link, &index, err) < 0))
        return NULL;
    if ((via_text && inet_pton(AF_INET, via_text, &via) != 1) || (!via_text && !link)) {
        err_set(err, EINVAL, "bad-request", "a route needs via, an IPv4 address, or link");
        return NULL;
    }
    struct rtmsg *info =
        nl_begin(&msg, remove ? RTM_DELROUTE : RTM_NEWROUTE, remove ? 0 : NLM_F_CREATE | NLM_F_REPLACE, sizeof *info);
    *info = (struct rtmsg){.rtm_family = AF_INET,
                           .rtm_dst_len = length,
                           .rtm_table = RT_TABLE_MAIN,
                           .rtm_protocol = remove ? RTPROT_UNSPEC : RTPROT_STATIC,
                           .rtm_scope = remove     ? RT_SCOPE_NOWHERE
                                        : via_text ? RT_SCOPE_UNIVERSE
                                                   : RT_SCOPE_LINK,
                           .rtm_type = remove ? RTN_UNSPEC : RTN_UNICAST};
    nl_put(&msg, RTA_DST, &to, sizeof to);
    if (via_text)
        nl_put(&msg, RTA_GATEWAY, &via, sizeof via);
    if (link)
        nl_put(&msg, RTA_OIF, &index, sizeof index);
    return changed(nl_change(NETLINK_ROUTE, &msg), err, remove ? "remove route" : "add route", text);
}
