/* Fills a snapshot: one file a noun. Nothing is changed on the host. What cannot be read becomes a gap in the snapshot,
 * never a failure of the whole; only a namespace that cannot be entered is an error.
 *
 * Source: rtnetlink(7), Documentation/networking/bridge.rst, include/uapi/linux/ of 6.18. */
#pragma once

#include "base/err.h"
#include "doctor/snapshot.h"
#include "netlink/rtnl.h"

struct collect_options {
    int nsfd;            /* the target namespace */
    const char *netns;   /* its name; "" for the doctor's own */
    const char *bridge;  /* asked for; "" to find it */
    const char *tap;     /* asked for; "" all */
    const uint32_t *ips; /* route lookups are made for these too */
    size_t ip_count;
    const char *state_dir; /* of the controller, for VM records and consoles; may not exist */
    bool light;            /* again after a change: without records, consoles, other namespaces */
};

int collect_snapshot(const struct collect_options *options, struct snapshot **ret, struct err *err);

/* Listens to TAPs from heard_open() until heard_take(): every frame that a VM sends, whoever it is for. Each guest whose
 * MAC is known is sent one IPv6 neighbour solicitation for its own link-local address: a guest that lost its IPv4
 * address still answers that. Failure to listen is a gap. */
struct heard;
struct heard_tap {
    int32_t link;
    bool has_mac;
    struct net_mac mac; /* of the guest */
};
struct heard *heard_open(struct snapshot *s, int nsfd, const struct heard_tap *taps, size_t count);
void heard_again(struct heard *heard, const struct snapshot *s); /* asks once more and waits for 150 ms */
/* Asks a guest by an echo request that comes from SNAP_BEYOND; its answer, if it has a way back, is heard. */
void heard_beyond(struct heard *heard, const struct snapshot *s, int32_t tap, struct net_mac guest, uint32_t ip);
void heard_take(struct heard *heard, struct snapshot *s); /* frees heard; NULL is no error */
/* Asks by ARP who has an address on a device, waits for up to 0.4 s, and adds the first answer to what was heard. */
void heard_who_has(struct snapshot *s, int nsfd, const struct snap_link *link, uint32_t source, uint32_t ip);
/* The host itself pings a neighbour behind a device, waits for up to 0.4 s, and adds that it asked (SNAP_HEARD_ASKED of
 * this device), and the answer, to what was heard. */
void heard_ping(struct snapshot *s, int nsfd, const struct snap_link *link, uint32_t ip);

/* --- the nouns; each adds a gap of its name where it fails --- */

void collect_links(struct snapshot *s, struct rtnl *rtnl);
void collect_offloads(struct snapshot *s, int nsfd);
void collect_addrs(struct snapshot *s, struct rtnl *rtnl);
void collect_ipv6(struct snapshot *s, struct rtnl *rtnl); /* whether the bridge speaks it */
void collect_routes(struct snapshot *s, struct rtnl *rtnl);
void collect_policies(struct snapshot *s, struct rtnl *rtnl);
/* The kernel's answer for one destination; from and iif 0: sent by the host. */
void collect_lookup(struct snapshot *s, struct rtnl *rtnl, uint32_t to, uint32_t from, int32_t iif);
void collect_neighs(struct snapshot *s, struct rtnl *rtnl);
void collect_fdb(struct snapshot *s, struct rtnl *rtnl);
void collect_qdiscs(struct snapshot *s, struct rtnl *rtnl);
void collect_filters(struct snapshot *s, struct rtnl *rtnl);
void collect_progs(struct snapshot *s, int nsfd);
void collect_nft(struct snapshot *s, int nsfd);
void collect_hooks(struct snapshot *s, int nsfd);
void collect_xfrm(struct snapshot *s, int nsfd);
void collect_sysctls(struct snapshot *s, int nsfd);
void collect_tables(struct snapshot *s, int nsfd); /* fill of conntrack and neighbour tables, legacy xtables */
void collect_holders(struct snapshot *s, int nsfd);
void collect_claimants(struct snapshot *s, const char *tap);
void collect_elsewhere(struct snapshot *s, int nsfd, const char *tap);
void collect_records(struct snapshot *s, int nsfd, const char *state_dir);
void collect_consoles(struct snapshot *s, const char *state_dir);

/* What the VMM that holds a TAP says of itself: a Firecracker in its file of metrics, a QEMU over its QMP socket, where that
 * is free; a gap "firecracker" or "qmp" where there is one that cannot be read. Reads only, for a second at most. */
void collect_vmm(struct snapshot *s, const char *tap, const char *state_dir);
void collect_firecracker(struct snapshot *s, const struct snap_holder *h, const char *state_dir); /* its own part */

/* A dump over another netlink protocol (netfilter, xfrm): sends nlh (in a buffer of its own) and calls each() for every
 * message; repeated when the kernel says that it was interrupted, after restart(data).
 * each() returns 0 or -errno. Return: 0 or -errno. */
struct collect_dump {
    int nsfd, protocol;
    int (*each)(const struct nlmsghdr *nlh, void *data);
    void (*restart)(void *data); /* forgets what the interrupted dump gave; may be NULL */
    void *data;
};
int collect_dump_run(const struct collect_dump *dump, struct nlmsghdr *nlh);
