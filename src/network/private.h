/* Shared by this folder's files alone. */
#pragma once

#include <pthread.h>

#include "netlink/addr.h"
#include "netlink/link.h"
#include "netlink/nftset.h"
#include "netlink/rtnl.h"
#include "network/network.h"

/* Namespaces in which the host has networks of its own: that of the data plane, and where that is another one, that in
 * which the daemon runs. */
#define NETWORK_SPACES 2

/* Several locks, so that who only asks (the daemon's loop) never waits for who changes something: that can take as long as
 * the kernel and libnftables like. Taken in the order in which they stand here. */
struct network {
    struct config_network cfg;
    pthread_mutex_t lock; /* of rtnl, nftset and libnftables: changes */
    struct rtnl *rtnl;
    struct nftset *nftset;
    pthread_mutex_t asking_lock; /* of asking_rtnl and asking_nftset: questions, and of what was counted */
    struct rtnl *asking_rtnl;
    struct nftset *asking_nftset;
    size_t foreign_ports;        /* of the bridge: not VMs' */
    size_t counted_links;        /* of the namespace, then */
    int64_t counted_ms;          /* monotonic: when; 0: never */
    pthread_mutex_t memory_lock; /* of vms, whose names and number change under `lock` too; held for copies only */
    struct ruleset_vm *vms;      /* that our tables should have */
    size_t vm_count, vm_cap;
    struct ruleset_networks networks; /* of the host, that our tables have; under `lock` */
    pthread_mutex_t watch_lock;       /* of reading what hears, and of the three below; held for that only */
    bool is_writing;                  /* the tables are being replaced: what is heard is our own doing */
    bool rules_are_stale;             /* the tables may not be what they should be */
    bool networks_are_stale;          /* the host may have other networks now */
    int rules_fd;                     /* hears of changes to nftables; -1: not yet */
    int addrs_fd[NETWORK_SPACES];     /* hear of changes to addresses; -1: not yet, or not needed */
    int watch_fd;                     /* an epoll(7) of these; -1: not yet */
    struct net_mac bridge_mac;
    int nsfd;
    int bridge; /* index */
    uint32_t mtu;
    bool namespace_is_ours;
    int claim_fd; /* -1: not claimed */
};

/* Holds the lock until the end of the scope:
 *     _cleanup_unlock_ pthread_mutex_t *held = network_lock(network); */
pthread_mutex_t *network_lock(struct network *network);
pthread_mutex_t *network_lock_asking(struct network *network);
void network_unlock(pthread_mutex_t **held);
#define _cleanup_unlock_ __attribute__((cleanup(network_unlock), unused))

#define NETWORK_FULL_HINT                                                                                              \
    "end VMs that nobody needs (mctl vm list), take other ports off the bridge (bridge link), or create this VM on "   \
    "another host"
#define OLD_ADDRESSES_MAX 16

/* What network_start() found, and so what there is to do. */
struct plan {
    int nsfd;          /* -1: the namespace is to be made */
    struct rtnl *rtnl; /* NULL then */
    bool namespace_is_ours;
    bool bridge_exists;   /* ours, or it would have been an error */
    struct link bridge;   /* as it was found */
    struct link a_port;   /* one of its ports, for words; index 0: it has none */
    bool address_present; /* the bridge has the configured one */
    struct net_prefix old[OLD_ADDRESSES_MAX];
    size_t old_count; /* other addresses that have to go */
};

void plan_free(struct plan *plan);

/* Checks everything that can be known before something is changed. */
int plan_make(const struct config_network *cfg, struct plan *plan, struct err *err);

/* Whether a link of the bridge's name is our bridge. */
bool plan_bridge_is_ours(const struct link *link, const struct config_network *cfg);

/* Removes a TAP that nobody, or nobody but this process, holds. rtnl: whichever is the caller's. */
int network_tap_take_away(struct network *network, struct rtnl *rtnl, const struct link *link, struct err *err);

/* network_tap_list() without the lock; with all_of_bridge also those TAPs of the bridge that are not ours. */
int network_tap_list_unlocked(struct network *network, bool all_of_bridge, struct network_tap **ret, size_t *ret_count,
                              struct err *err);

/* members.c: VMs in our tables. Takes them into memory alone. */
int members_take_all(struct network *network, const struct network_nic *nics, size_t count, struct err *err);

/* Replaces our tables by what should be there, in one transaction, counters included. */
int members_write(struct network *network, int nsfd, struct err *err);

/* One VM, in one transaction. Error of members_add(): "network.address-taken" -EEXIST. */
int members_add(struct network *network, const struct network_nic *nic, struct err *err);
void members_remove(struct network *network, const char *tap);

/* The tables may not be what they should be: network_heard() will say so. Any thread, with any lock but watch_lock. */
void members_distrust(struct network *network);

/* How many there are. Any thread, with any lock but memory_lock. */
size_t members_count(struct network *network);

/* Whether one of them has the address. Likewise. */
bool members_have_address(struct network *network, uint32_t ip);

/* own.c: the host's own networks, as they are now. The caller frees ret->prefixes. */
int own_networks_read(struct network *network, int nsfd, struct ruleset_networks *ret, struct err *err);

/* Opens what hears of a change of theirs. */
int own_networks_watch(struct network *network, int nsfd, struct err *err);

/* ports.c: the ports among the links of the namespace. */
int network_ports_of(const struct network *network, const struct link *links, size_t link_count,
                     struct network_port **ret, size_t *ret_count, struct err *err);

bool network_tap_is_ours(const struct network *network, const struct link *link);
