/* The host's own networks, which no VM reaches, though their addresses may be public: what its links are connected to, all
 * but our bridge. Where the data plane has a namespace of its own, those of the namespace in which the daemon runs are the
 * host's too: the uplink leads there, or past it. */
#include <errno.h>
#include <stdlib.h>

#include "base/fd.h"
#include "netlink/netns.h"
#include "network/private.h"

/* Opens the daemon's own namespace. *ret_fd is -1 where it is that of the data plane. */
static int open_home(int nsfd, int *ret_fd, struct err *err) {
    _cleanup_close_ int home = -1;
    int r = netns_open("", &home, err);
    if (r == 0 && !netns_is_same(home, nsfd))
        *ret_fd = fd_steal(&home);
    return r;
}

static void set_stale(struct network *network, bool are_stale) {
    pthread_mutex_lock(&network->watch_lock);
    network->networks_are_stale = are_stale;
    pthread_mutex_unlock(&network->watch_lock);
}

/* Adds what links are connected to, but for one (0: none is left out). */
static int add_networks(int nsfd, int but, struct ruleset_networks *to, struct err *err) {
    _cleanup_rtnl_close_ struct rtnl *rtnl = NULL;
    _cleanup_free_ struct addr *addrs = NULL;
    size_t count = 0;
    int r = rtnl_open(nsfd, &rtnl, err);
    if (r == 0)
        r = addr_dump(rtnl, &addrs, &count, err);
    if (r < 0)
        return r;
    struct net_prefix *bigger = reallocarray(to->prefixes, to->count + count + 1, sizeof *bigger);
    if (!bigger)
        return err_sys(err, ENOMEM, "network.failed", "list the networks");
    to->prefixes = bigger;
    for (size_t i = 0; i < count; i++)
        if (addrs[i].link != but)
            bigger[to->count++] = addrs[i].prefix;
    return 0;
}

int own_networks_read(struct network *network, int nsfd, struct ruleset_networks *ret, struct err *err) {
    struct ruleset_networks found = {0};
    _cleanup_close_ int home = -1;
    set_stale(network, false); /* what changes from here on is heard */
    int r = add_networks(nsfd, network->bridge, &found, err);
    if (r == 0)
        r = open_home(nsfd, &home, err);
    if (r == 0 && home >= 0)
        r = add_networks(home, 0, &found, err);
    if (r < 0) {
        set_stale(network, true);
        free(found.prefixes);
        err_prefix(err, "read the host's own networks");
        return r;
    }
    ruleset_networks_tidy(&found);
    *ret = found;
    return 0;
}

int own_networks_watch(struct network *network, int nsfd, struct err *err) {
    _cleanup_close_ int home = -1;
    int r = open_home(nsfd, &home, err);
    if (r == 0)
        r = addr_watch_open(nsfd, &network->addrs_fd[0], err);
    if (r == 0 && home >= 0)
        r = addr_watch_open(home, &network->addrs_fd[1], err);
    return r;
}
