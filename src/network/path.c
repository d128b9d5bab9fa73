/* What the host sends to guests, and how things are. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/neighbour.h>
#include <linux/netfilter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "netlink/neigh.h"
#include "netlink/netns.h"
#include "network/private.h"
#include "network/ruleset.h"

#define COUNT_PAUSE_MS 1 /* for each link that there was: counting takes microseconds for each */
#define PORTS_NEAR 32    /* so near to the limit, others' ports are counted each time */

static struct sockaddr_in address_of(uint32_t ip, uint16_t port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(ip)};
}

static int open_bound(struct network *network, int type, int protocol, int *ret_fd, struct err *err) {
    const char *bridge = network->cfg.bridge;
    _cleanup_close_ int fd = -1;
    int r = netns_socket(network->nsfd, AF_INET, type | SOCK_NONBLOCK, protocol, &fd);
    if (r < 0)
        return err_sys(err, -r, "network.failed", "open a socket in the VMs' network");
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, bridge, (socklen_t)strlen(bridge) + 1) < 0)
        return err_sys(err, errno, errno == ENODEV ? "network.bridge-missing" : "network.failed",
                       "bind a socket to bridge %s", bridge);
    *ret_fd = fd_steal(&fd);
    return 0;
}

int network_connect_tcp(struct network *network, uint32_t ip, uint16_t port, int *ret_fd, struct err *err) {
    struct sockaddr_in to = address_of(ip, port);
    char text[NET_IP_TEXT];
    int on = 1;
    _cleanup_close_ int fd = -1;
    net_format_ip(ip, text);
    int r = open_bound(network, SOCK_STREAM, 0, &fd, err);
    if (r < 0) {
        err_prefix(err, "connect to %s:%u", text, port);
        return r;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
        return err_sys(err, errno, "network.unreachable", "connect to %s:%u", text, port);
    *ret_fd = fd_steal(&fd);
    return 0;
}

int network_icmp_socket(struct network *network, int *ret_fd, struct err *err) {
    _cleanup_close_ int fd = -1;
    int r = open_bound(network, SOCK_RAW, IPPROTO_ICMP, &fd, err);
    if (r == 0) {
        r = icmp_only_replies(fd);
        if (r < 0)
            err_sys(err, -r, "network.failed", "filter a raw socket");
    }
    if (r < 0) {
        err_prefix(err, "open a socket to ping with");
        return r;
    }
    *ret_fd = fd_steal(&fd);
    return 0;
}

int network_icmp_send(int fd, uint32_t ip, struct icmp_echo echo, struct err *err) {
    struct sockaddr_in to = address_of(ip, 0);
    uint8_t packet[ICMP_ECHO_SIZE];
    char text[NET_IP_TEXT];
    icmp_echo_write(echo, packet);
    if (sendto(fd, packet, sizeof packet, MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof to) >= 0)
        return 0;
    net_format_ip(ip, text);
    return err_sys(err, errno, "network.unreachable", "ping %s", text);
}

int network_address_in_use(struct network *network, uint32_t ip) {
    if (members_have_address(network, ip))
        return 1;
    _cleanup_unlock_ pthread_mutex_t *held = network_lock_asking(network);
    struct neigh neigh;
    int r = neigh_get(network->asking_rtnl, network->bridge, ip, &neigh, NULL);
    if (r == -ENOENT || r == -ENODEV) /* without a bridge nobody is there; whoever needs it will say so */
        return 0;
    if (r < 0)
        return r;
    return neigh.has_mac && (neigh.state & (NUD_REACHABLE | NUD_PERMANENT));
}

int network_mac_in_use(struct network *network, struct net_mac mac) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock_asking(network);
    return fdb_knows(network->asking_rtnl, network->bridge, mac, NULL);
}

int network_neighbour_forget(struct network *network, uint32_t ip, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    int r = neigh_delete(network->rtnl, network->bridge, ip, err);
    if (r == -ENOENT)
        return 0;
    if (r < 0) {
        char text[NET_IP_TEXT];
        net_format_ip(ip, text);
        err_prefix(err, "forget neighbour %s", text);
    }
    return r;
}

/* ip link show master BRIDGE, counted: all ports but those of VMs that are known. What an ended VM has left is not. */
static int count_foreign(struct network *network, struct err *err) {
    _cleanup_free_ struct link *links = NULL;
    size_t count = 0, ports = 0, taps = 0, known = members_count(network);
    int r = link_dump(network->asking_rtnl, &links, &count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++) {
        if (links[i].master != network->bridge)
            continue;
        ports++;
        taps += links[i].is_tap && vm_id_is_valid(links[i].alias);
    }
    network->counted_links = count;
    network->foreign_ports = ports - (taps < known ? taps : known);
    network->counted_ms = time_monotonic_ms();
    return 0;
}

int network_check_room(struct network *network, size_t vm_count, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock_asking(network);
    int64_t age_ms = time_monotonic_ms() - network->counted_ms;
    bool is_near = vm_count + network->foreign_ports + PORTS_NEAR >= NETWORK_PORTS_MAX;
    int64_t pause_ms = is_near ? 0 : (int64_t)network->counted_links * COUNT_PAUSE_MS;
    int r = network->counted_ms == 0 || age_ms >= pause_ms ? count_foreign(network, err) : 0;
    if (r < 0)
        return r;
    if (vm_count + network->foreign_ports < NETWORK_PORTS_MAX)
        return 0;
    err_set(err, EXFULL, "network.bridge-full",
            "a VM needs a port of bridge %s, and its %d ports are taken: %zu by VMs, %zu by others",
            network->cfg.bridge, NETWORK_PORTS_MAX, vm_count, network->foreign_ports);
    return err_hint(err, NETWORK_FULL_HINT);
}

static void describe_bridge(const struct network *network, const struct link *links, size_t count,
                            struct network_status *status) {
    for (size_t i = 0; i < count; i++) {
        if (links[i].master == network->bridge)
            status->ports++;
        if (links[i].index != network->bridge)
            continue;
        status->bridge_index = links[i].index;
        status->mac = links[i].mac;
        status->up = links[i].flags & IFF_UP;
    }
}

static bool has_address(struct network *network) {
    _cleanup_free_ struct addr *addrs = NULL;
    struct net_prefix wanted = network->cfg.address;
    size_t count = 0;
    bool found = false;
    addr_dump(network->asking_rtnl, &addrs, &count, NULL);
    for (size_t i = 0; i < count && !found; i++)
        found = addrs[i].link == network->bridge && addrs[i].prefix.address == wanted.address &&
                addrs[i].prefix.length == wanted.length;
    return found;
}

static bool has_rules(struct network *network, uint8_t family, const char *chain) {
    uint32_t count = 0;
    return nftset_count_rules(network->asking_nftset, family, RULESET_NAME, chain, &count, NULL) == 0 && count > 0;
}

int network_look(struct network *network, struct network_status *ret, struct network_port **ret_ports,
                 size_t *ret_count, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock_asking(network);
    _cleanup_free_ struct link *links = NULL;
    size_t count = 0;
    struct network_status status = {.address = network->cfg.address, .ports_max = NETWORK_PORTS_MAX};
    char forward[8] = "";
    str_copy(status.namespace, sizeof status.namespace, network->cfg.namespace);
    str_copy(status.bridge, sizeof status.bridge, network->cfg.bridge);
    str_copy(status.uplink, sizeof status.uplink, network->cfg.uplink);
    int r = link_dump(network->asking_rtnl, &links, &count, err);
    if (r == 0)
        describe_bridge(network, links, count, &status);
    status.address_present = has_address(network);
    netns_sysctl_read(network->nsfd, "net/ipv4/ip_forward", forward, sizeof forward);
    status.forward = strcmp(forward, "1") == 0;
    status.masquerade =
        *network->cfg.uplink && network->cfg.masquerade && has_rules(network, NFPROTO_INET, "postrouting");
    status.isolated = has_rules(network, NFPROTO_BRIDGE, "prerouting") &&
                      has_rules(network, NFPROTO_BRIDGE, "from_vm") && has_rules(network, NFPROTO_INET, "forward");
    *ret = status;
    if (r == 0 && ret_ports)
        r = network_ports_of(network, links, count, ret_ports, ret_count, err);
    return r < 0 ? err_prefix(err, "look at bridge %s", network->cfg.bridge), r : 0;
}

void network_describe(struct network *network, struct network_status *ret) {
    network_look(network, ret, NULL, NULL, NULL);
}
