/* Network devices: what they are, bridges, and the changes that wiring a VM needs. See rtnl.h for the errors. */
#pragma once

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/net.h"
#include "netlink/rtnl.h"

#define LINK_NAME_TEXT 16
#define LINK_ALIAS_TEXT 256
#define LINK_ALTNAME_TEXT 128 /* ALTIFNAMSIZ */
#define LINK_ALTNAMES 4       /* that are kept; altname_count tells how many there are */
#define LINK_MAX 16384        /* in one dump */
#define LINK_NO_OWNER UINT32_MAX

struct link {
    int index;
    char name[LINK_NAME_TEXT];
    char alias[LINK_ALIAS_TEXT];
    char altname[LINK_ALTNAMES][LINK_ALTNAME_TEXT];
    uint32_t altname_count;
    char kind[16]; /* "bridge", "tun", "veth"; empty for hardware and lo */
    struct net_mac mac;
    uint32_t flags;       /* IFF_UP and so on, netdevice(7) */
    uint32_t mtu;         /* bytes */
    int master;           /* index of the bridge that it is a port of; 0: none */
    uint16_t port_number; /* of a bridge's port, by the bridge; 0: it is none */
    uint8_t port_state;   /* of a bridge's port: BR_STATE_FORWARDING and so on, linux/if_bridge.h */
    uint8_t operstate;
    bool carrier;
    bool is_tap;        /* kind "tun" and of the Ethernet sort */
    uint32_t tun_owner; /* uid; LINK_NO_OWNER: anyone may attach */
};

/* What the kernel takes as an interface's name, without '%', which it would replace by a number. */
bool link_name_is_valid(const char *name);

/* Error also: -ENODEV. An alternative name finds its link too. */
int link_get_by_name(struct rtnl *rtnl, const char *name, struct link *ret, struct err *err);
int link_get_by_index(struct rtnl *rtnl, int index, struct link *ret, struct err *err);

/* Bytes that it has carried, both ways. Error also: -ENODEV. */
int link_traffic(struct rtnl *rtnl, const char *name, uint64_t *ret_bytes, struct err *err);

/* All links of the namespace; the caller frees *ret. */
int link_dump(struct rtnl *rtnl, struct link **ret, size_t *ret_count, struct err *err);

/* Makes a bridge, down, STP off. A MAC that is given at birth is pinned: no port that comes or goes moves it.
 * Error also: -EEXIST. */
int link_bridge_create(struct rtnl *rtnl, const char *name, struct net_mac mac, struct err *err);

/* Keeps a bridge from learning MACs from frames to its own group addresses (01:80:c2:00:00:0x), which no filter of the
 * bridge sees. A kernel that cannot is no error. */
int link_bridge_no_linklocal_learn(struct rtnl *rtnl, int index, struct err *err);

/* What to change; what is not named stays. */
struct link_change {
    const char *alias;         /* NULL: stays */
    const struct net_mac *mac; /* NULL: stays; setting it pins a bridge's */
    uint32_t mtu;              /* 0: stays */
    int master;                /* index of a bridge; 0: stays */
    bool up, down;
};

/* Error also: -EXFULL, the bridge has no port left. What came before the failing part has been done then. */
int link_set(struct rtnl *rtnl, int index, const struct link_change *change, struct err *err);

/* Keeps IPv6 from giving the link an address by itself: to be called while it is down. Without IPv6 in the kernel
 * there is nothing to do, and that is no error. */
int link_ipv6_autoconf_off(struct rtnl *rtnl, int index, struct err *err);

/* Error also: -EEXIST, some link has that name or alternative name. */
int link_altname_add(struct rtnl *rtnl, int index, const char *altname, struct err *err);

/* Whether a bridge's port reaches only ports that are not isolated. */
int link_port_isolate(struct rtnl *rtnl, int index, bool isolated, struct err *err);

int link_delete(struct rtnl *rtnl, int index, struct err *err);

/* Reads one RTM_NEWLINK: an rtnl_parse for struct link. */
int link_parse(const struct nlmsghdr *nlh, void *ret_link);
