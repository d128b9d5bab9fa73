/* Begin and end of the data plane. */
#include "network/network.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "netlink/netns.h"
#include "netlink/nft.h"
#include "network/names.h"
#include "network/private.h"
#include "network/ruleset.h"

#define CLAIM_ATTEMPTS 20
#define CLAIM_PAUSE_US 50000

#define FORWARD "net/ipv4/ip_forward"

pthread_mutex_t *network_lock(struct network *network) {
    pthread_mutex_lock(&network->lock);
    return &network->lock;
}

pthread_mutex_t *network_lock_asking(struct network *network) {
    pthread_mutex_lock(&network->asking_lock);
    return &network->asking_lock;
}

void network_unlock(pthread_mutex_t **held) {
    pthread_mutex_unlock(*held);
}

/* What network_start() changed so far, to take it back. */
struct made {
    bool namespace;
    bool bridge;          /* made */
    bool adopted;         /* was there and was touched */
    size_t address_count; /* of plan->old that were removed */
    bool address;
    bool forward;
};

/* ip link set lo up alias master-controller: without lo the namespace's own addresses do not answer themselves. */
static int prepare_namespace(int nsfd, void *data, struct err *err) {
    struct rtnl *rtnl = NULL;
    struct link lo;
    int r = rtnl_open(nsfd, &rtnl, err);
    if (r == 0)
        r = link_get_by_name(rtnl, "lo", &lo, err);
    if (r == 0)
        r = link_set(rtnl, lo.index, &(struct link_change){.alias = NETWORK_MARK, .up = true}, err);
    rtnl_close(rtnl);
    if (r < 0)
        err_prefix(err, "set up lo");
    return r;
}

static int apply_namespace(struct network *network, struct plan *plan, struct made *made, struct err *err) {
    const char *name = network->cfg.namespace;
    if (plan->nsfd >= 0)
        return 0;
    int r = netns_make(name, prepare_namespace, NULL, err);
    if (r == 0) {
        made->namespace = true;
        plan->namespace_is_ours = true;
        r = netns_open(name, &plan->nsfd, err);
    }
    if (r == 0)
        r = rtnl_open(plan->nsfd, &plan->rtnl, err);
    if (r < 0)
        err_prefix(err, "make network namespace %s", name);
    return r;
}

/* The MAC is pinned even on a bridge that we find. Ports mean guests that remember the one that it has now. */
static int apply_bridge(struct network *network, struct plan *plan, struct made *made, struct err *err) {
    const char *name = network->cfg.bridge;
    struct net_mac mac = plan->a_port.index ? plan->bridge.mac : names_bridge_mac(&network->cfg);
    struct link bridge = plan->bridge;
    int r = 0;
    if (!plan->bridge_exists) {
        r = link_bridge_create(plan->rtnl, name, mac, err);
        made->bridge = r == 0;
        if (r == 0)
            r = link_get_by_name(plan->rtnl, name, &bridge, err);
    }
    if (r == 0) {
        network->bridge = bridge.index;
        network->mtu = bridge.mtu;
        network->bridge_mac = mac;
        made->adopted = plan->bridge_exists;
        r = link_set(plan->rtnl, bridge.index, &(struct link_change){.alias = NETWORK_MARK, .mac = &mac, .up = true},
                     err);
    }
    if (r == 0)
        r = link_bridge_no_linklocal_learn(plan->rtnl, bridge.index, err);
    if (r < 0)
        err_prefix(err, "%s bridge %s", plan->bridge_exists ? "take over" : "make", name);
    return r;
}

static int apply_address(struct network *network, struct plan *plan, struct made *made, struct err *err) {
    int r = 0;
    for (size_t i = 0; i < plan->old_count && r == 0; i++) {
        r = addr_delete(plan->rtnl, network->bridge, plan->old[i], err);
        if (r == -EADDRNOTAVAIL) /* a secondary one that went with its primary */
            r = 0;
        if (r == 0)
            made->address_count = i + 1;
    }
    if (r == 0 && !plan->address_present) {
        r = addr_add(plan->rtnl, network->bridge, network->cfg.address, err);
        made->address = r == 0;
    }
    if (r < 0) {
        char ip[NET_IP_TEXT];
        net_format_ip(network->cfg.address.address, ip);
        err_prefix(err, "give bridge %s its address %s/%u", network->cfg.bridge, ip, network->cfg.address.length);
    }
    return r;
}

/* sysctl net.ipv4.ip_forward=1, in the data plane's namespace and only where there is a way out. */
static int apply_forward(struct network *network, struct plan *plan, struct made *made, struct err *err) {
    char now[8] = "";
    if (!*network->cfg.uplink)
        return 0;
    int r = netns_sysctl_read(plan->nsfd, FORWARD, now, sizeof now);
    if (r == 0 && strcmp(now, "1") == 0)
        return 0;
    if (r == 0)
        r = netns_sysctl_write(plan->nsfd, FORWARD, "1");
    if (r < 0)
        return err_sys(err, -r, "network.failed", "set sysctl %s to 1", FORWARD);
    made->forward = true;
    return 0;
}

static int remove_ruleset(struct network *network, struct err *err) {
    _cleanup_strbuf_ struct strbuf text = {.max = 512};
    ruleset_write_removal(&text);
    if (!text.data || text.truncated)
        return err_sys(err, ENOMEM, "network.failed", "write the nftables rules");
    return nft_run(network->nsfd, text.data, NULL, err);
}

/* One descriptor for all that is heard. */
static int open_watch(struct network *network, struct err *err) {
    int fds[1 + NETWORK_SPACES] = {network->rules_fd};
    memcpy(fds + 1, network->addrs_fd, sizeof network->addrs_fd);
    network->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0 && epoll_ctl(network->watch_fd, EPOLL_CTL_ADD, fds[i], &(struct epoll_event){EPOLLIN}) < 0)
            return err_sys(err, errno, "network.failed", "listen to changes of the network");
    return 0;
}

/* The last step, and one transaction: it needs no undo. */
static int apply_ruleset(struct network *network, struct plan *plan, struct made *made, struct err *err) {
    int r = nftset_open(plan->nsfd, &network->nftset, err);
    if (r == 0)
        r = nftset_open(plan->nsfd, &network->asking_nftset, err);
    if (r == 0)
        r = rtnl_open(plan->nsfd, &network->asking_rtnl, err);
    if (r == 0)
        r = nftset_watch_open(plan->nsfd, &network->rules_fd, err);
    if (r == 0)
        r = own_networks_watch(network, plan->nsfd, err);
    if (r == 0)
        r = open_watch(network, err);
    return r < 0 ? r : members_write(network, plan->nsfd, err);
}

/* Errors here have nowhere to go: the caller is being told the first one. */
static void take_back(struct network *network, struct plan *plan, const struct made *made) {
    if (made->forward)
        netns_sysctl_write(plan->nsfd, FORWARD, "0");
    if (made->bridge)
        link_delete(plan->rtnl, network->bridge, NULL);
    if (made->address && !made->bridge)
        addr_delete(plan->rtnl, network->bridge, network->cfg.address, NULL);
    for (size_t i = 0; i < made->address_count; i++)
        addr_add(plan->rtnl, network->bridge, plan->old[i], NULL);
    if (made->adopted) {
        struct link_change back = {
            .alias = plan->bridge.alias, .mac = &plan->bridge.mac, .down = !(plan->bridge.flags & IFF_UP)};
        link_set(plan->rtnl, network->bridge, &back, NULL);
    }
    if (made->namespace)
        netns_remove(network->cfg.namespace, NULL);
}

static int apply(struct network *network, struct plan *plan, struct made *made, struct err *err) {
    static int (*const steps[])(struct network *, struct plan *, struct made *, struct err *) = {
        apply_namespace, apply_bridge, apply_address, apply_forward, apply_ruleset,
    };
    int r = 0;
    for (size_t i = 0; i < sizeof steps / sizeof *steps && r == 0; i++)
        r = steps[i](network, plan, made, err);
    return r;
}

int network_start(const struct config_network *cfg, const struct network_nic *nics, size_t count, struct network **ret,
                  struct err *err) {
    struct err unheard;
    struct plan plan;
    struct made made = {0};
    if (!err)
        err = &unheard;
    struct network *network = calloc(1, sizeof *network);
    if (!network)
        return err_sys(err, ENOMEM, "network.failed", "set up the network");
    network->cfg = *cfg;
    network->nsfd = -1;
    network->claim_fd = -1;
    network->rules_fd = network->watch_fd = -1;
    for (size_t i = 0; i < NETWORK_SPACES; i++)
        network->addrs_fd[i] = -1;
    pthread_mutex_init(&network->lock, NULL);
    pthread_mutex_init(&network->asking_lock, NULL);
    pthread_mutex_init(&network->memory_lock, NULL);
    pthread_mutex_init(&network->watch_lock, NULL);
    int r = plan_make(cfg, &plan, err);
    if (r == 0)
        r = members_take_all(network, nics, count, err);
    if (r == 0) {
        r = apply(network, &plan, &made, err);
        if (r < 0)
            take_back(network, &plan, &made);
    }
    if (r == 0) {
        network->nsfd = fd_steal(&plan.nsfd);
        network->rtnl = ptr_steal(plan.rtnl);
        network->namespace_is_ours = plan.namespace_is_ours;
        *ret = network;
    } else {
        network_free(network);
    }
    plan_free(&plan);
    return r;
}

/* A name of the abstract kind belongs to one network namespace and goes with its process. Source: unix(7). After a kill -9 that may
 * be a VMM's process, until it executes its program. */
int network_claim(struct network *network, struct err *err) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int len = snprintf(addr.sun_path + 1, sizeof addr.sun_path - 1, "%s", NETWORK_MARK);
    _cleanup_close_ int fd = -1;
    int r = netns_socket(network->nsfd, AF_UNIX, SOCK_STREAM, 0, &fd);
    if (r < 0)
        return err_sys(err, -r, "network.failed", "claim bridge %s", network->cfg.bridge);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
    int attempts = CLAIM_ATTEMPTS;
    while ((r = bind(fd, (struct sockaddr *)&addr, size)) < 0 && errno == EADDRINUSE && --attempts > 0)
        usleep(CLAIM_PAUSE_US);
    if (r < 0) {
        int errnum = errno == EADDRINUSE ? EBUSY : errno;
        err_set(err, errnum, "network.bridge-claimed",
                "bridge %s: another master-controller runs in this network namespace", network->cfg.bridge);
        err_hint(err, "stop that one, or give this one a [network] namespace of its own");
        return -errnum;
    }
    network->claim_fd = fd_steal(&fd);
    return 0;
}

void network_free(struct network *network) {
    if (!network)
        return;
    rtnl_close(network->rtnl);
    rtnl_close(network->asking_rtnl);
    nftset_close(network->nftset);
    nftset_close(network->asking_nftset);
    free(network->vms);
    free(network->networks.prefixes);
    fd_close(&network->watch_fd);
    fd_close(&network->rules_fd);
    for (size_t i = 0; i < NETWORK_SPACES; i++)
        fd_close(&network->addrs_fd[i]);
    fd_close(&network->claim_fd);
    fd_close(&network->nsfd);
    pthread_mutex_destroy(&network->lock);
    pthread_mutex_destroy(&network->asking_lock);
    pthread_mutex_destroy(&network->memory_lock);
    pthread_mutex_destroy(&network->watch_lock);
    free(network);
}

static int check_unused(const struct network_tap *taps, size_t count, struct err *err) {
    const struct network_tap *held = NULL;
    size_t held_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (taps[i].holder_pid == 0 || taps[i].on_other_bridge)
            continue;
        held = &taps[i];
        held_count++;
    }
    if (!held)
        return 0;
    err_set(err, EBUSY, "network.in-use", "TAP %s is held by process %d%s", held->name, (int)held->holder_pid,
            held_count > 1 ? ", and it is not the only one" : "");
    err_hint(err, "end the VMs first (mctl vm list, mctl vm destroy)");
    return -EBUSY;
}

/* A TAP that is a port of another bridge may be another controller's. */
static int remove_tap(struct network *network, const struct network_tap *tap, struct err *err) {
    struct link link;
    if (tap->on_other_bridge)
        return 0;
    int r = link_get_by_name(network->rtnl, tap->name, &link, err);
    if (r == 0 && network_tap_is_ours(network, &link))
        r = network_tap_take_away(network, network->rtnl, &link, err);
    return r == -ENODEV ? 0 : r;
}

/* A namespace takes all of it along, in one go; TAP by TAP the kernel waits for its readers each time (16 ms). */
static int remove_taps(struct network *network, struct err *err) {
    _cleanup_free_ struct network_tap *taps = NULL;
    size_t count = 0;
    int r = network_tap_list_unlocked(network, true, &taps, &count, err);
    if (r == 0)
        r = check_unused(taps, count, err);
    for (size_t i = 0; i < count && r == 0 && !network->namespace_is_ours; i++)
        r = remove_tap(network, &taps[i], err);
    return r;
}

static int remove_bridge(struct network *network, struct err *err) {
    struct link bridge;
    int r = link_get_by_index(network->rtnl, network->bridge, &bridge, err);
    if (r == 0 && plan_bridge_is_ours(&bridge, &network->cfg))
        r = link_delete(network->rtnl, network->bridge, err);
    return r == -ENODEV ? 0 : r;
}

int network_remove(struct network *network, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    int r = remove_taps(network, err);
    if (r == 0 && network->namespace_is_ours) {
        r = netns_remove(network->cfg.namespace, err);
    } else if (r == 0) {
        if (nft_check(network->nsfd) == 0)
            r = remove_ruleset(network, err);
        if (r == 0)
            r = remove_bridge(network, err);
    }
    if (r < 0)
        err_prefix(err, "remove the network of bridge %s", network->cfg.bridge);
    return r;
}
