/* The data plane: the bridge with its address, a TAP for every VM, the way out. Where and how a VM is attached is known
 * only here.
 *
 * What the configuration says is brought about by network_start(); it may be called again after a crash or an upgrade
 * and takes over what it finds of its own, with the TAPs that VMs hold untouched. Our own things are known by their
 * marks: the bridge by its alias "master-controller", a namespace by that alias of its lo, a TAP by the VM's id as its
 * alias, the nftables tables by their name, "master_controller" (ruleset.h says what they do).
 *
 * All functions but network_start(), network_free() may be called from several threads; one at a time gets in to change
 * something. They block for as long as the kernel needs, normally far below a millisecond; to remove a TAP 16 to 31 ms,
 * for which nobody else waits. Those that only ask (network_stopped(), network_check_room(), network_address_in_use(),
 * network_mac_in_use(), network_describe(), network_look(), network_heard()) do not wait for those that change something,
 * and are for an event loop.
 *
 * Error codes (beside netlink/'s own, with a prefix that says what was being done):
 *   network.no-permission     -EPERM   not root, or CAP_NET_ADMIN (or, with a namespace, CAP_SYS_ADMIN) is missing
 *   network.no-tun            -ENODEV  /dev/net/tun is missing or not usable
 *   network.bad-name          -EINVAL  bridge, uplink, namespace, TAP or VM id cannot be such a name
 *   network.bridge-foreign    -EEXIST  a device of the bridge's name is there and not ours
 *   network.bridge-missing    -ENODEV  somebody deleted the bridge since the start
 *   network.bridge-full       -EXFULL  it has no port left
 *   network.address-in-use    -EBUSY   our bridge has another address than configured, and ports that rely on it
 *   network.pool-overlap      -EADDRINUSE  another address or route has a part of the pool
 *   network.uplink-missing    -ENODEV
 *   network.no-nftables       as nft_check()
 *   network.tap-exists        -EEXIST  a device of that name, or with that alternative name, is there
 *   network.address-taken     -EEXIST  another VM has this TAP's name, address or MAC, or the bridge has the MAC
 *   network.tap-missing       -ENODEV
 *   network.tap-foreign       -EPERM   it is not that VM's
 *   network.tap-held          -EBUSY   a process holds it (named)
 *   network.in-use            -EBUSY   network_remove() while a VM holds a TAP
 *   network.unreachable       what connect(2) or sendto(2) said at once
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "model/config.h"
#include "model/net.h"
#include "model/vm.h"
#include "network/icmp.h"
#include "network/ruleset.h"

#define NETWORK_MARK "master-controller"
#define NETWORK_TAP_PREFIX VM_TAP_PREFIX
#define NETWORK_PORTS_MAX 1023 /* of one Linux bridge: BR_MAX_PORTS less one */
#define NETWORK_NO_OWNER UINT32_MAX

struct network;

/* A VM's side of its TAP. */
struct network_nic {
    char tap[VM_TAP_TEXT];
    char vm_id[VM_ID_TEXT];
    struct net_mac mac; /* the guest's */
    uint32_t ip;
    uid_t owner_uid; /* who may attach besides root */
};

/* Brings about what the configuration says. Everything is checked before the first change; a change that fails takes
 * back the ones before it. A namespace that does not exist is made. ip_forward is set where there is an uplink.
 * `nics` are the VMs that there are, by the records: the firewall is replaced in one transaction with these in it, so
 * that none of them loses a packet, and what earlier ones left is gone. The caller frees *ret. */
int network_start(const struct config_network *cfg, const struct network_nic *nics, size_t count, struct network **ret,
                  struct err *err);

/* Says that the namespace's bridge and tables are this process's, for as long as it lives: of two controllers, each would
 * give out the addresses of the other's VMs, and replace the other's firewall. The claim is a name in the namespace and
 * leaves nothing behind. Error: "network.bridge-claimed" -EBUSY. */
int network_claim(struct network *network, struct err *err);

/* Frees memory and descriptors; what is in the kernel stays. */
void network_free(struct network *network);

/* Removes what network_start() and network_tap_create() made: our TAPs, the bridge, the table, the namespace if it was
 * made by us. Refused, and nothing changed, while a process holds a TAP of the bridge. ip_forward stays as it is, where
 * the namespace stays: others may have come to rely on it. Only network_free() may follow a success. */
int network_remove(struct network *network, struct err *err);

/* Makes a VM's TAP: persistent, a port of the bridge (isolated from the others, unless VMs may reach each other), up,
 * marked with the VM's id (alias and alternative name), to be attached to by its owner and root alone; and lets what
 * bears the VM's MAC and address pass the firewall. On failure, and at a crash on the way, there is no TAP.
 * ret_fd: where not NULL, the TAP stays attached, and this is what network_tap_open() would give. */
int network_tap_create(struct network *network, const struct network_nic *nic, int *ret_fd, struct err *err);

/* Makes a VM's TAP again what network_tap_create() made it: a port of the bridge, up, with its own MAC. For one that
 * somebody took off or down, or whose bridge was made anew; its holder keeps it. Errors: "network.tap-missing",
 * "network.tap-foreign". */
int network_tap_restore(struct network *network, const char *name, const char *vm_id, struct err *err);

/* Attaches to a TAP to hand it to a VMM. *ret_fd is the caller's: closed on exec, non-blocking, 12 bytes of vnet
 * header. While it is open anywhere, no second one can be had. */
int network_tap_open(struct network *network, const char *name, int *ret_fd, struct err *err);

/* The namespace in which the TAPs are, for a VMM that opens its TAP by name: a descriptor, the network's own, and a path
 * that lasts. *ret_path is empty where it is the one that the daemon runs in. */
int network_namespace(const struct network *network, char *ret_path, size_t size);

/* Removes a VM's TAP, if its alias says that it is this VM's and no process but this one holds it, and then what the
 * firewall had of it. One that does not exist is no error. */
int network_tap_remove(struct network *network, const char *name, const char *vm_id, struct err *err);

struct network_tap {
    char name[VM_TAP_TEXT];
    char vm_id[VM_ID_TEXT]; /* by its alias; empty: the alias is not a VM's id */
    struct net_mac mac;     /* the TAP's own, not the guest's */
    uint32_t owner_uid;     /* NETWORK_NO_OWNER: anyone may attach */
    pid_t holder_pid;       /* 0: none that this process can see */
    bool on_bridge;
    bool on_other_bridge;
    bool up;
};

/* All TAPs that are ours by name (fc-vm-…) on our bridge, or by alias. The caller frees *ret. */
int network_tap_list(struct network *network, struct network_tap **ret, size_t *ret_count, struct err *err);

/* Whether the bridge has a port left for one more than vm_count VMs, of which some may not have theirs yet, before
 * anything is made for it. Others' ports are counted again once that is cheap against the time since they were. Error: "network.bridge-full" -EXFULL. */
int network_check_room(struct network *network, size_t vm_count, struct err *err);

/* What was stopped of what a VM sent (or was sent to it above a limit), since it was made; the index is an enum
 * ruleset_reason. Error: -ENOENT, no VM with this TAP is here. */
struct network_stopped {
    uint64_t packets, bytes;
};
int network_stopped(struct network *network, const char *tap, struct network_stopped ret[RULESET_REASONS],
                    struct err *err);

/* Bytes that a VM's TAP has carried, both ways, since it was made. For an event loop, as the one above. */
int network_traffic(struct network *network, const char *tap, uint64_t *ret_bytes, struct err *err);

/* A descriptor that becomes readable when somebody changes nftables in the namespace, or an address of the host:
 * network_heard() is to be called then, and now and then. */
int network_watch_fd(const struct network *network);

/* Takes what the descriptor says, without waiting. Return: whether our tables may not be what they should be, or may not
 * know all of the host's own networks: then network_guard() is to be called. */
bool network_heard(struct network *network);

/* Writes our tables anew when others have changed them, or when the host has other networks than they know of; with a
 * thousand VMs in them that takes some 0.3 s. Return: what was so, or -errno (the next call tries again). */
enum network_guarded {
    NETWORK_GUARDED_NOTHING,
    NETWORK_GUARDED_RULES,    /* others had changed them */
    NETWORK_GUARDED_NETWORKS, /* the host has other networks */
};
int network_guard(struct network *network, struct err *err);

/* Whether an address is in use: by a TAP that is there still, though its VM may have ended, or by some device on the
 * bridge, by what the kernel knows: it answered within the last half minute, or has an entry that an operator made. A
 * VM's entry goes with its TAP. Return: 1, 0, -errno. */
int network_address_in_use(struct network *network, uint32_t ip);

/* Whether something on the bridge has a MAC, by what the bridge knows: a port, or who is behind one. Return: 1, 0,
 * -errno. */
int network_mac_in_use(struct network *network, struct net_mac mac);

/* A VM that must not be reached yet: its TAP is there, and on no bridge and in no set, so nothing passes it either way.
 * network_tap_connect() makes it what network_tap_create() makes, and leaves it in no set on an error; both are undone by
 * network_tap_remove(). *ret_fd as there; NULL for a VMM that opens it by its name. */
int network_tap_create_apart(struct network *network, const struct network_nic *nic, int *ret_fd, struct err *err);
int network_tap_connect(struct network *network, const struct network_nic *nic, struct err *err);

/* A TAP that never has a network, of that name (none of a VM's), for the uid and the id. It goes with *ret_fd; ret_fd NULL, for a VMM
 * that opens it by its name: with network_tap_remove_idle(), which takes one of that id alone, and none that is held. */
int network_tap_create_idle(struct network *network, const char *name, const char *id, uint32_t uid, int *ret_fd,
                            struct err *err);
int network_tap_remove_idle(struct network *network, const char *name, const char *id, struct err *err);

/* Forgets which MAC an address had, before another VM gets it. Nothing known is no error. */
int network_neighbour_forget(struct network *network, uint32_t ip, struct err *err);

/* Begins a TCP connection to a guest; writable tells that it is decided (SO_ERROR). It leaves by the bridge or not at
 * all: with the bridge's address gone, a plain socket would follow the default route to a stranger.
 * *ret_fd is the caller's: closed on exec, non-blocking. */
int network_connect_tcp(struct network *network, uint32_t ip, uint16_t port, int *ret_fd, struct err *err);

/* A raw ICMP socket, likewise bound to the bridge, that delivers echo replies alone: non-blocking, the caller's. */
int network_icmp_socket(struct network *network, int *ret_fd, struct err *err);

/* Sends one echo request. The reply is to be read with recv(2) and icmp_echo_read(). */
int network_icmp_send(int fd, uint32_t ip, struct icmp_echo echo, struct err *err);

struct network_status {
    char namespace[64];
    char bridge[16];
    int bridge_index; /* 0: it is gone */
    struct net_mac mac;
    struct net_prefix address; /* as configured */
    bool address_present;
    bool up;
    uint32_t ports, ports_max;
    char uplink[16];
    bool forward;    /* ip_forward is on, now */
    bool masquerade; /* our table has its rule, now */
    bool isolated;   /* our tables keep VMs apart, now */
};

/* Reads how it is now; what cannot be read is as if it were not there. */
void network_describe(struct network *network, struct network_status *ret);

/* A port of the bridge, whoever's it is; or a TAP of ours that is on no bridge, or on another. */
struct network_port {
    char name[16];
    char kind[16];          /* "tun", "veth"; empty for hardware */
    char vm_id[VM_ID_TEXT]; /* by its alias; empty: not a VM's */
    uint16_t number;        /* that the bridge gave it; 0: it is not on our bridge */
    bool up, carrier;       /* a TAP has carrier while somebody holds it */
    bool forwards;          /* the bridge lets frames through: its state is "forwarding" */
};

/* The same with the ports, in the order of their numbers, those without one last. The caller frees *ret_ports. Where the
 * links cannot be read, *ret is as of network_describe(), and there are no ports. */
int network_look(struct network *network, struct network_status *ret, struct network_port **ret_ports,
                 size_t *ret_count, struct err *err);
