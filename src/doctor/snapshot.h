/* What the doctor knows about a host at one moment: plain data, filled by collect/, never changed afterwards, judged by
 * rules/, saved and loaded as JSON (snapshot_json.h).
 *
 * Everything is in flat tables: struct snapshot holds an array and a count for each. Where a row has several of
 * something (a link its attributes, a rule its expressions), it names the first and how many.
 *
 * What could not be read is a fact too: snap_gap. A rule that needs what is missing says "unknown", not "all is well".
 *
 * IPv4 addresses are in host byte order; names are as the kernel has them and may hold odd bytes: whoever prints them
 * escapes them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "doctor/guest_facts.h"
#include "model/net.h"

/* Hard limits: more rows than this are dropped and a gap says so. */
#define SNAP_LINKS_MAX 16384
#define SNAP_FDB_MAX 65536
#define SNAP_ROUTES_MAX 65536
#define SNAP_NEIGH_MAX 65536
#define SNAP_RULES_MAX 65536
#define SNAP_EXPRS_MAX 1048576
#define SNAP_ELEMS_MAX 262144
#define SNAP_ROWS_MAX 65536
#define SNAP_GUESTS_MAX 64
#define SNAP_GUEST_ROWS_MAX 8192 /* of all guests together */

/* A network device. */
struct snap_link {
    int32_t index;
    char name[SNAP_NAME];
    char kind[SNAP_NAME];       /* "bridge", "tun", "veth"; empty for hardware and lo */
    char slave_kind[SNAP_NAME]; /* what it is a port of: "bridge", "bond", "vrf" */
    char alias[SNAP_TEXT];      /* cut */
    char altname[SNAP_TEXT];    /* the first, cut */
    struct net_mac mac;
    struct net_mac broadcast; /* where the kernel sends what is for all; ff:ff:ff:ff:ff:ff */
    uint32_t flags;           /* IFF_… of netdevice(7) */
    uint32_t mtu;             /* bytes */
    int32_t master;           /* 0: none */
    int32_t lower;            /* IFLA_LINK: of a VLAN, macvlan or veth; 0: none */
    uint8_t operstate;        /* IF_OPER_… */
    uint8_t linkmode;         /* 1: dormant */
    bool carrier;
    bool proto_down;
    uint32_t txqueuelen;
    char qdisc[SNAP_NAME];
    uint64_t rx_packets, tx_packets, rx_dropped, tx_dropped, rx_errors, tx_errors;
    uint64_t rx_nohandler, rx_otherhost, rx_frame_errors;
    uint8_t xdp_mode;
    uint32_t xdp_prog;
    bool is_tap; /* kind tun, of the Ethernet sort */
    bool tun_pi, tun_vnet_hdr, tun_persist, tun_multi_queue;
    uint32_t tun_queues, tun_queues_off;
    uint32_t tun_owner;                /* UINT32_MAX: anybody */
    int32_t offload_csum, offload_tso; /* 1 on, 0 off, -1 could not be read */
    struct snap_range attrs;           /* of its bridge, if it is one, and of its port, if it is a bridge's */
};

/* IFLA_BR_*, IFLA_BRPORT_*, and of devices that are neither bridge nor TAP those of their kind (IFLA_MACVLAN_*, …). */
enum snap_attr_space { SNAP_ATTR_BRIDGE, SNAP_ATTR_PORT, SNAP_ATTR_KIND };

/* One attribute, known to us or not. */
struct snap_attr {
    uint8_t space;
    uint16_t type;
    uint16_t len;   /* bytes */
    uint64_t value; /* the first 8 bytes as a number of len bytes */
};

/* Those of bridge ports that 6.1's headers do not name yet. Source: include/uapi/linux/if_link.h of 6.18. */
#define SNAP_BRPORT_MAB 40
#define SNAP_BRPORT_MCAST_N_GROUPS 41
#define SNAP_BRPORT_MCAST_MAX_GROUPS 42
#define SNAP_BRPORT_NEIGH_VLAN_SUPPRESS 43
#define SNAP_BRPORT_BACKUP_NHID 44
#define SNAP_BR_FDB_N_LEARNED 48
#define SNAP_BR_FDB_MAX_LEARNED 49

struct snap_addr {
    int32_t link;
    uint32_t ip;
    uint8_t length; /* prefix, bits */
    uint8_t scope;
    uint32_t flags; /* IFA_F_… */
    char label[SNAP_NAME];
};

struct snap_route {
    uint32_t table;
    uint32_t to;
    uint8_t length;
    uint8_t type; /* RTN_… */
    uint8_t protocol, scope;
    uint32_t flags;   /* RTNH_F_… */
    int32_t link;     /* 0: none */
    uint32_t gateway; /* 0: on the link */
    uint32_t source;
    uint32_t metric;
    uint32_t mtu;       /* RTAX_MTU; 0: none */
    uint32_t hops;      /* next hops among which packets are shared out; 0: one */
    int32_t other_link; /* of the first one by another device than link; 0: none */
};

/* ip rule */
struct snap_policy {
    uint32_t priority, table;
    uint32_t from, to;
    uint8_t from_length, to_length;
    uint8_t action; /* FR_ACT_… */
    uint8_t invert; /* FIB_RULE_INVERT */
    uint32_t mark, mask;
    char iif[SNAP_NAME], oif[SNAP_NAME];
    uint8_t protocol;               /* IPPROTO_…; 0: any */
    uint16_t port_first, port_last; /* destination's; 0: any */
    bool has_uids;                  /* only for what these users send */
    uint32_t uid_first, uid_last;
    uint32_t go_to;     /* of FR_ACT_GOTO: priority of the rule that is next */
    uint8_t suppresses; /* routes whose prefix is shorter than this are passed over; 0: none */
    bool more;          /* it has other selectors too */
};

/* What the kernel said to a route lookup. */
struct snap_lookup {
    uint32_t to, from; /* from 0: the host's own choice */
    int32_t iif;       /* 0: sent by the host itself */
    int32_t error;     /* 0 or a positive errno */
    uint8_t type;
    int32_t link;
    uint32_t gateway, source, table;
    uint32_t mtu; /* learned or set on the route; 0: none */
};

struct snap_neigh {
    int32_t link;
    uint32_t ip;
    uint16_t state; /* NUD_… */
    uint8_t flags;  /* NTF_… */
    bool has_mac;
    struct net_mac mac;
    uint32_t probes;
};

struct snap_fdb {
    int32_t link;   /* the port, or the bridge itself */
    int32_t master; /* the bridge; 0: the device's own list */
    struct net_mac mac;
    uint16_t vlan;
    uint16_t state; /* NUD_PERMANENT: local; NUD_NOARP: static; NUD_REACHABLE: learned */
    uint8_t flags;  /* NTF_… */
    uint32_t ext_flags;
    uint32_t updated_s; /* since it was seen */
};

struct snap_qdisc {
    int32_t link;
    uint32_t handle, parent;
    bool is_class;
    char kind[SNAP_NAME];
    uint64_t bytes, packets, drops, overlimits, backlog_bytes, backlog_packets;
    uint32_t limit;    /* packets or bytes, of pfifo, bfifo, netem, tbf; UINT32_MAX: not known */
    uint64_t rate_bps; /* bytes a second, of tbf; 0: not known */
    uint32_t loss;     /* of netem, UINT32_MAX is 100 % */
    uint64_t delay_ns; /* of netem */
};

/* A tc filter or a tcx program. */
struct snap_filter {
    int32_t link;
    uint32_t parent; /* TC_H_CLSACT and TC_H_MIN_EGRESS and so on; 0: tcx */
    bool egress;     /* seen from the device */
    bool is_tcx;
    uint16_t priority;
    uint16_t protocol; /* ETH_P_…, 3: all */
    uint32_t handle, chain;
    char kind[SNAP_NAME];
    int32_t action;          /* TC_ACT_… of the last action, -1 unspec, -2: none, -3: a program decides */
    char actions[SNAP_TEXT]; /* "gact drop", "mirred redirect", "police" */
    int32_t to_link;         /* of mirred; 0 */
    bool conditional;        /* it does not match every frame */
    bool direct_action;      /* bpf da */
    uint32_t prog_id;
    uint32_t block;          /* that the device shares with others, and to which the filter belongs; 0 */
    uint32_t link_id;        /* of a tcx program that hangs there by a link; 0 */
    uint64_t packets, drops; /* of its actions */
};

/* A BPF program that is attached to one of the above. */
struct snap_prog {
    uint32_t id;
    uint32_t type;
    char name[SNAP_NAME];
    char tag[20];
};

struct snap_hook {
    uint8_t family; /* NFPROTO_… */
    uint8_t hook;
    int32_t priority;
    int32_t link; /* netdev hooks; 0 */
    char function[SNAP_TEXT];
    char module[SNAP_NAME];
    char chain[SNAP_TEXT]; /* "bridge filter OUTPUT" of nft base chains */
    uint32_t prog_id;      /* of a BPF program, in this network namespace or another's; 0 */
    uint32_t link_id;      /* by which it hangs there */
};

struct snap_nft_chain {
    uint8_t family; /* NFPROTO_ARP, _BRIDGE, _NETDEV, _INET, _IPV4, _IPV6 */
    char table[SNAP_TEXT];
    char name[SNAP_TEXT];
    uint64_t handle;
    bool base;
    uint8_t hook; /* NF_…; of netdev: NF_NETDEV_INGRESS 0, EGRESS 1 */
    int32_t priority;
    char type[SNAP_NAME];
    uint8_t policy;              /* NF_DROP 0, NF_ACCEPT 1 */
    char devices[SNAP_TEXT * 2]; /* of netdev: names, space between */
    uint64_t packets, bytes;     /* of the policy, where it is counted */
    bool counted;
    bool dormant; /* its table is switched off */
    bool owned;   /* its table belongs to a living process */
};

enum snap_nft_op {
    SNAP_NFT_OTHER, /* not known here: what it does to the packet cannot be told */
    SNAP_NFT_META,
    SNAP_NFT_PAYLOAD,
    SNAP_NFT_CMP,
    SNAP_NFT_BITWISE,
    SNAP_NFT_RANGE,
    SNAP_NFT_LOOKUP,
    SNAP_NFT_IMMEDIATE, /* a value */
    SNAP_NFT_VERDICT,   /* immediate verdict */
    SNAP_NFT_COUNTER,
    SNAP_NFT_LIMIT,
    SNAP_NFT_QUOTA,
    SNAP_NFT_REJECT,
    SNAP_NFT_CT,
    SNAP_NFT_MATCH,  /* xt */
    SNAP_NFT_TARGET, /* xt */
    SNAP_NFT_NAT,    /* nat, masq, redir */
    SNAP_NFT_NOTE,   /* log, notrack, mark set: changes nothing that decides here */
    SNAP_NFT_FIB,
    SNAP_NFT_BYTEORDER,
    SNAP_NFT_FWD, /* fwd, dup, queue: takes the packet elsewhere */
};

struct snap_nft_expr {
    uint8_t op;   /* enum snap_nft_op */
    uint8_t cmp;  /* NFT_CMP_…, or NFT_RANGE_…; of a lookup 1: inverted; of limit and quota 1: over */
    uint8_t sreg; /* in units of 4 bytes, 0 is the first data register */
    uint8_t dreg;
    uint8_t len;  /* bytes */
    uint8_t base; /* of payload: NFT_PAYLOAD_…_HEADER */
    uint16_t offset;
    int32_t key;                 /* NFT_META_…, NFT_CT_…, or a verdict: NF_DROP, NF_ACCEPT, NFT_JUMP … */
    bool set;                    /* meta and payload: writes to the packet instead of reading; physdev: was read */
    uint8_t data[16], data2[16]; /* compared with; mask and xor; from and to */
    char name[SNAP_TEXT];        /* chain of a jump, set of a lookup, name of an xt match, kind of "other" */
    uint64_t value;              /* limit's rate and so on; of NAT the type */
};

struct snap_nft_rule {
    uint8_t family;
    char table[SNAP_TEXT];
    char chain[SNAP_TEXT];
    uint64_t handle;
    bool counted;
    uint64_t packets, bytes; /* of its first counter */
    struct snap_range exprs;
};

struct snap_nft_set {
    uint8_t family;
    char table[SNAP_TEXT];
    char name[SNAP_TEXT];
    uint32_t flags; /* NFT_SET_… */
    uint8_t key_len, data_len;
    bool verdicts; /* a verdict map */
    bool complete; /* all elements are here */
    struct snap_range elems;
};

struct snap_nft_elem {
    uint32_t flags; /* NFT_SET_ELEM_INTERVAL_END, _CATCHALL */
    uint8_t key[32], key_end[32];
    bool has_end;
    uint8_t data[16];
    int32_t verdict; /* of a verdict map */
    char chain[SNAP_TEXT];
};

/* "net/ipv4/conf/br0/rp_filter" = "1" */
struct snap_sysctl {
    char key[96];
    char value[SNAP_TEXT];
};

/* A process that has a TAP open. */
struct snap_holder {
    char tap[SNAP_NAME];
    int32_t pid;
    char comm[SNAP_NAME];
    char state; /* of /proc/PID/stat: R S D T t Z */
    uint32_t threads, threads_stopped;
    int32_t fd;
    uint64_t start_ticks;
    bool dev_known;        /* by the descriptor itself that it is this namespace's device */
    bool details;          /* what follows could be read from the descriptor */
    int32_t vnet_hdr_size; /* bytes */
    int32_t sndbuf;
    uint32_t tun_flags;       /* IFF_VNET_HDR, IFF_NO_PI, IFF_PERSIST … */
    bool filtered;            /* a socket filter is attached (TUNATTACHFILTER) */
    bool frozen;              /* its cgroup is */
    uint64_t writes, written; /* system calls and bytes of the whole process: /proc/PID/io */
    bool gone;                /* attached to a device that no longer exists: it has the name, the kernel says EBADFD */
};

/* An address of nobody (TEST-NET-1, RFC 5737): a guest's answer to it needs a default route. */
#define SNAP_BEYOND 0xc000024dU

/* A frame that came out of a VM while our questions were under way. */
enum snap_heard_kind {
    SNAP_HEARD_OTHER,
    SNAP_HEARD_WHO_HAS,
    SNAP_HEARD_IS_AT,
    SNAP_HEARD_IPV4,
    SNAP_HEARD_IPV6,
    SNAP_HEARD_NEIGHBOUR6, /* the answer to our neighbour solicitation */
    SNAP_HEARD_ASKED,      /* no frame: this guest was asked from SNAP_BEYOND */
};
struct snap_heard {
    int32_t link;
    uint8_t kind; /* enum snap_heard_kind */
    uint16_t ethertype;
    struct net_mac source, destination;
    uint32_t source_ip, destination_ip; /* of IPv4 and ARP */
    uint8_t data[64];                   /* its beginning */
    uint32_t length;                    /* bytes on the wire */
    uint16_t vlan;                      /* 0x1000 | id of the VLAN whose tag it bore; 0: no tag */
};

/* A living process that speaks of a TAP in its command line and does not hold it. */
struct snap_claimant {
    char tap[SNAP_NAME];
    int32_t pid;
    char comm[SNAP_NAME];
    uint32_t uid;
    bool net_admin; /* it may do what it likes with network devices */
    bool orphaned;  /* it holds a descriptor whose device is gone */
};

/* A TAP of the same name somewhere else. */
struct snap_elsewhere {
    char tap[SNAP_NAME];
    char netns[SNAP_TEXT]; /* name, or "pid 123" */
    int32_t pid;
};

struct snap_vm {
    char id[40];
    char user[SNAP_TEXT];
    char type[16], state[16];
    char tap[SNAP_NAME], bridge[SNAP_NAME], vmm[16];
    uint32_t ip;
    struct net_mac mac;
    int32_t pid;
    uint64_t pid_start;
    uint16_t port;    /* that its service has; 0: not known */
    char paused[224]; /* why its VMM has stopped it, as the controller was told; empty: it has not, or it runs again */
};

/* What a QEMU says of itself over QMP, or a Firecracker in its metrics. Asked only for a VM that does not answer. */
struct snap_vmm {
    char tap[SNAP_NAME];
    int32_t pid;
    int32_t error; /* 0, or a positive errno: EBUSY, its monitor has another client */
    char socket[96];
    char status[24];                         /* of query-status: "running", "paused", "io-error", … */
    char nic[SNAP_TEXT], backend[SNAP_TEXT]; /* the device's id, or the name that QEMU gave it; the netdev's id */
    struct net_mac mac;
    int32_t link;    /* 1 on, 0 off, -1 could not be read */
    char words[256]; /* of Firecracker: what it has counted; socket is the file that says so then */
};

/* Last lines of a VM's console that mean something. */
struct snap_console {
    char vm_id[40];
    char tap[SNAP_NAME];
    char line[256];
    char sort[16]; /* panic, oom, no-nic, ip, booting, login */
};

struct snap_table_fill {
    char name[16]; /* conntrack, neigh */
    uint64_t used, max, full_events;
};

struct snap_xfrm {
    uint8_t dir; /* 0 in, 1 out, 2 forward */
    bool block;
    uint32_t from, to;
    uint8_t from_length, to_length;
    uint32_t priority, index;
    uint32_t templates;
};

/* Something that could not be read. */
struct snap_gap {
    char what[SNAP_TEXT]; /* nft, fdb, holders, … */
    int32_t errnum;
    char detail[160];
};

struct snap_host {
    char name[SNAP_TEXT];
    char kernel[SNAP_TEXT];
    char netns[SNAP_TEXT]; /* as asked for; empty: the doctor's own */
    char bridge[SNAP_NAME];
    int32_t bridge_index; /* 0: there is none */
    bool root;
    int64_t taken_ms;    /* real time */
    bool legacy_xtables; /* one of the files /proc/net/…_tables_names has something */
    char legacy_tables[SNAP_TEXT];
    bool managed; /* the bridge is this controller's: alias "master-controller" */
    /* What our configuration says of it, where that is known. */
    uint32_t managed_ip; /* 0: not known, nor is what follows */
    uint8_t managed_length;
    struct net_mac managed_mac;     /* that the bridge was made with */
    char managed_uplink[SNAP_NAME]; /* empty: none */
    bool managed_masquerade;
    bool ipv6; /* the bridge has an IPv6 address of more than link scope */
};

#define SNAP_TABLE(type, name)                                                                                         \
    type *name;                                                                                                        \
    uint32_t name##_count, name##_cap

struct snapshot {
    struct snap_host host;
    SNAP_TABLE(struct snap_link, links);
    SNAP_TABLE(struct snap_attr, attrs);
    SNAP_TABLE(struct snap_addr, addrs);
    SNAP_TABLE(struct snap_route, routes);
    SNAP_TABLE(struct snap_policy, policies);
    SNAP_TABLE(struct snap_lookup, lookups);
    SNAP_TABLE(struct snap_neigh, neighs);
    SNAP_TABLE(struct snap_fdb, fdbs);
    SNAP_TABLE(struct snap_qdisc, qdiscs);
    SNAP_TABLE(struct snap_filter, filters);
    SNAP_TABLE(struct snap_prog, progs);
    SNAP_TABLE(struct snap_hook, hooks);
    SNAP_TABLE(struct snap_nft_chain, chains);
    SNAP_TABLE(struct snap_nft_rule, rules);
    SNAP_TABLE(struct snap_nft_expr, exprs);
    SNAP_TABLE(struct snap_nft_set, sets);
    SNAP_TABLE(struct snap_nft_elem, elems);
    SNAP_TABLE(struct snap_sysctl, sysctls);
    SNAP_TABLE(struct snap_holder, holders);
    SNAP_TABLE(struct snap_heard, heard);
    SNAP_TABLE(struct snap_claimant, claimants);
    SNAP_TABLE(struct snap_elsewhere, elsewhere);
    SNAP_TABLE(struct snap_vm, vms);
    SNAP_TABLE(struct snap_vmm, vmms);
    SNAP_TABLE(struct snap_console, consoles);
    SNAP_TABLE(struct snap_table_fill, fills);
    SNAP_TABLE(struct snap_xfrm, xfrms);
    SNAP_TABLE(struct snap_guest, guests);
    SNAP_TABLE(struct snap_guest_link, guest_links);
    SNAP_TABLE(struct snap_guest_addr, guest_addrs);
    SNAP_TABLE(struct snap_guest_route, guest_routes);
    SNAP_TABLE(struct snap_guest_neigh, guest_neighs);
    SNAP_TABLE(struct snap_guest_listener, guest_listeners);
    SNAP_TABLE(struct snap_guest_unit, guest_units);
    SNAP_TABLE(struct snap_nft_chain, guest_chains);
    SNAP_TABLE(struct snap_nft_rule, guest_rules);
    SNAP_TABLE(struct snap_nft_expr, guest_exprs);
    SNAP_TABLE(struct snap_guest_fact, guest_facts);
    SNAP_TABLE(struct snap_gap, gaps);
};

/* An empty one; NULL without memory. */
struct snapshot *snapshot_new(void);
void snapshot_free(struct snapshot *s);
void snapshot_freep(struct snapshot **s);
#define _cleanup_snapshot_ __attribute__((cleanup(snapshot_freep)))

/* Room for one more zeroed row at the end of a table. Return: the row, or NULL when the table is at `max` rows or there
 * is no memory. Use: struct snap_gap *g = SNAP_PUSH(s, gaps, SNAP_ROWS_MAX); */
void *snapshot_push(void *table, uint32_t *count, uint32_t *cap, size_t row_size, uint32_t max);
#define SNAP_PUSH(s, name, max)                                                                                        \
    ((__typeof__((s)->name))snapshot_push(&(s)->name, &(s)->name##_count, &(s)->name##_cap, sizeof *(s)->name, max))

void snapshot_gap(struct snapshot *s, const char *what, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* --- Questions that many rules ask. NULL or the default when there is no such thing. --- */

const struct snap_link *snap_link_by_index(const struct snapshot *s, int32_t index);
const struct snap_link *snap_link_by_name(const struct snapshot *s, const char *name); /* or alternative name */
const char *snap_link_name(const struct snapshot *s, int32_t index);                   /* "" when unknown */
const struct snap_attr *snap_attr_get(const struct snapshot *s, const struct snap_link *link,
                                      enum snap_attr_space space, uint16_t type);
uint64_t snap_port_attr(const struct snapshot *s, const struct snap_link *link, uint16_t type, uint64_t otherwise);
uint64_t snap_bridge_attr(const struct snapshot *s, const struct snap_link *link, uint16_t type, uint64_t otherwise);
const char *snap_sysctl_get(const struct snapshot *s, const char *key);
/* conf of an interface or "all": max of both, as the kernel combines rp_filter, arp_ignore and most others. */
int snap_conf(const struct snapshot *s, const char *link, const char *name, int otherwise);
int snap_sysctl_int(const struct snapshot *s, const char *key, int otherwise);
const struct snap_holder *snap_holder_of(const struct snapshot *s, const char *tap);
/* The host's entry for an address on a device that the kernel never verifies: somebody has fixed it. */
const struct snap_neigh *snap_neigh_fixed(const struct snapshot *s, int32_t link, uint32_t ip);
const struct snap_gap *snap_gap_of(const struct snapshot *s, const char *what);
const struct snap_prog *snap_prog_get(const struct snapshot *s, uint32_t id);
const struct snap_vm *snap_vm_of_tap(const struct snapshot *s, const char *tap);
const struct snap_guest *snap_guest_of_tap(const struct snapshot *s, const char *tap);
/* Whether it is a bridge's port for somebody's use: the canary of another doctor, which is gone in a moment, is not. */
bool snap_is_port(const struct snap_link *link, int32_t bridge);
bool snap_is_tap(const struct snap_link *link); /* likewise */
