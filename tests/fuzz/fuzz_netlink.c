/* What the kernel, or whoever got into its place, may answer over netlink: links, addresses, routes, neighbours, elements
 * of nftables sets, notices. The linker puts the functions below in libmnl's place (meson.build), so no answer comes from a
 * kernel.
 * Input: one byte says who asks; then datagrams, each with its length in two bytes (0xffff: the socket was overrun). A
 * message with sequence number 0 gets that of the request. Behind the last one nothing comes any more. */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "netlink/addr.h"
#include "netlink/link.h"
#include "netlink/neigh.h"
#include "netlink/nftset.h"
#include "netlink/route.h"
#include "netlink/rtnl.h"

#define OVERRUN 0xffff
#define DATAGRAM_MAX 8192

static struct {
    const uint8_t *data;
    size_t len;
    uint32_t sequence;
    unsigned tries; /* a dump that is made again gets all of it again, and must come to an end */
    const uint8_t *again;
    size_t again_len;
} in;

ssize_t __wrap_mnl_socket_sendto(const struct mnl_socket *nl, const void *request, size_t len);
ssize_t __wrap_mnl_socket_sendto(const struct mnl_socket *nl, const void *request, size_t len) {
    const struct nlmsghdr *nlh = request;
    if (len < sizeof *nlh || ++in.tries > 64)
        abort();
    in.sequence = nlh->nlmsg_seq;
    in.data = in.again;
    in.len = in.again_len;
    return (ssize_t)len;
}

static ssize_t next_datagram(void *ret, size_t size) {
    if (in.len < 2) {
        errno = EAGAIN;
        return -1;
    }
    size_t len = (size_t)in.data[0] << 8 | in.data[1];
    in.data += 2;
    in.len -= 2;
    if (len == OVERRUN) {
        errno = ENOBUFS;
        return -1;
    }
    len = len < in.len ? len : in.len;
    len = len < size ? len : size;
    memcpy(ret, in.data, len);
    in.data += len;
    in.len -= len;
    return (ssize_t)len;
}

ssize_t __wrap_mnl_socket_recvfrom(const struct mnl_socket *nl, void *buffer, size_t size);
ssize_t __wrap_mnl_socket_recvfrom(const struct mnl_socket *nl, void *buffer, size_t size) {
    ssize_t n = next_datagram(buffer, size);
    int left = (int)n;
    for (struct nlmsghdr *nlh = buffer; NLMSG_OK(nlh, left); nlh = mnl_nlmsg_next(nlh, &left))
        if (nlh->nlmsg_seq == 0)
            nlh->nlmsg_seq = in.sequence;
    return n;
}

/* The pauses between two attempts of a dump. */
int __wrap_usleep(useconds_t usec);
int __wrap_usleep(useconds_t usec) {
    return 0;
}

static void use_element(const struct nftset_element *element, void *data) {
    if (element->key.len > sizeof element->key.data)
        abort();
    *(uint64_t *)data += element->packets + element->bytes + element->key.data[0];
}

static void is_text(const char *text, size_t size) {
    if (strnlen(text, size) == size)
        abort();
}

static void use_links(struct rtnl *rtnl) {
    struct link *links = NULL, one;
    size_t count = 0;
    if (link_dump(rtnl, &links, &count, NULL) == 0)
        for (size_t i = 0; i < count; i++) {
            is_text(links[i].name, sizeof links[i].name);
            is_text(links[i].alias, sizeof links[i].alias);
            is_text(links[i].kind, sizeof links[i].kind);
            for (size_t k = 0; k < LINK_ALTNAMES && k < links[i].altname_count; k++)
                is_text(links[i].altname[k], sizeof links[i].altname[k]);
        }
    free(links);
    in.tries = 0;
    link_get_by_name(rtnl, "br0", &one, NULL);
}

static void use_rest(struct rtnl *rtnl) {
    struct addr *addrs = NULL;
    struct route *routes = NULL;
    struct neigh neigh;
    size_t count = 0;
    struct err err = {0};
    if (addr_dump(rtnl, &addrs, &count, &err) == 0)
        free(addrs);
    in.tries = 0;
    if (route_dump(rtnl, &routes, &count, &err) == 0)
        free(routes);
    in.tries = 0;
    neigh_get(rtnl, 1, 0xc0a80001, &neigh, &err);
    in.tries = 0;
    link_altname_add(rtnl, 1, "other", &err);
    is_text(err.detail, sizeof err.detail);
}

static void use_sets(struct nftset *nftset) {
    struct nftset_change change = {.family = 7, .table = "t", .set = "s"};
    struct nftset_element element;
    uint64_t sum = 0;
    uint32_t rules = 0;
    nftset_key_add(&change.key, "fc-vm-0", 7);
    nftset_each(nftset, 7, "t", "s", use_element, &sum, NULL);
    in.tries = 0;
    if (nftset_get(nftset, 7, "t", "s", &change.key, &element, NULL) == 0)
        use_element(&element, &sum);
    in.tries = 0;
    nftset_apply(nftset, &change, 1, NULL);
    in.tries = 0;
    nftset_count_rules(nftset, 7, "t", "c", &rules, NULL);
}

/* Notices come by recv(2). */
static void use_watch(void) {
    int pair[2];
    char datagram[DATAGRAM_MAX];
    ssize_t n;
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return;
    in.data = in.again;
    in.len = in.again_len;
    while ((n = next_datagram(datagram, sizeof datagram)) > 0 && send(pair[0], datagram, (size_t)n, 0) == n) {
    }
    nftset_watch_read(pair[1], "master_controller", NULL);
    close(pair[0]);
    close(pair[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct rtnl *rtnl;
    static struct nftset *nftset;
    if (size < 1)
        return 0;
    if (!rtnl) {
        int ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
        if (ns < 0 || rtnl_open(ns, &rtnl, NULL) < 0 || nftset_open(ns, &nftset, NULL) < 0)
            abort();
        close(ns);
    }
    in.tries = 0;
    in.again = data + 1;
    in.again_len = size - 1;
    switch (data[0] % 4) {
    case 0:
        use_links(rtnl);
        break;
    case 1:
        use_rest(rtnl);
        break;
    case 2:
        use_sets(nftset);
        break;
    case 3:
        use_watch();
        break;
    }
    return 0;
}

/* ---- where to begin ---- */

static struct nlmsghdr *begin(char *at, uint16_t type, uint16_t flags, const void *header, size_t len) {
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(at);
    nlh->nlmsg_type = type;
    nlh->nlmsg_flags = flags;
    memcpy(mnl_nlmsg_put_extra_header(nlh, len), header, len);
    return nlh;
}

static size_t put_link(char *at, unsigned number) {
    struct ifinfomsg info = {.ifi_index = (int)number + 1, .ifi_flags = 0x1043};
    struct nlmsghdr *nlh = begin(at, RTM_NEWLINK, NLM_F_MULTI, &info, sizeof info);
    mnl_attr_put_strz(nlh, IFLA_IFNAME, "fc-vm-000000001");
    mnl_attr_put_strz(nlh, IFLA_IFALIAS, "vm-00000000-0000-4000-8000-000000000000");
    mnl_attr_put(nlh, IFLA_ADDRESS, 6, "\x02\xfc\x00\x00\x00\x01");
    mnl_attr_put_u32(nlh, IFLA_MASTER, 7);
    mnl_attr_put_u32(nlh, IFLA_MTU, 1500);
    struct nlattr *nest = mnl_attr_nest_start(nlh, IFLA_LINKINFO);
    mnl_attr_put_strz(nlh, IFLA_INFO_KIND, number & 4 ? "bridge" : "tun");
    struct nlattr *data = mnl_attr_nest_start(nlh, IFLA_INFO_DATA);
    mnl_attr_put_u32(nlh, 1, 4000);
    mnl_attr_put_u8(nlh, 3, 2);
    mnl_attr_nest_end(nlh, data);
    mnl_attr_nest_end(nlh, nest);
    nest = mnl_attr_nest_start(nlh, IFLA_PROP_LIST);
    mnl_attr_put_strz(nlh, IFLA_ALT_IFNAME, "vm-00000000-0000-4000-8000-000000000000");
    mnl_attr_nest_end(nlh, nest);
    return nlh->nlmsg_len;
}

static size_t put_route(char *at, unsigned number) {
    struct rtmsg route = {
        .rtm_family = AF_INET, .rtm_dst_len = 16, .rtm_table = RT_TABLE_MAIN, .rtm_type = RTN_UNICAST};
    struct ndmsg neigh = {.ndm_family = AF_INET, .ndm_ifindex = 1, .ndm_state = 2};
    struct ifaddrmsg addr = {.ifa_family = AF_INET, .ifa_prefixlen = 16, .ifa_index = 1};
    struct nlmsghdr *nlh = number % 3 == 0   ? begin(at, RTM_NEWROUTE, NLM_F_MULTI, &route, sizeof route)
                           : number % 3 == 1 ? begin(at, RTM_NEWNEIGH, 0, &neigh, sizeof neigh)
                                             : begin(at, RTM_NEWADDR, NLM_F_MULTI, &addr, sizeof addr);
    mnl_attr_put_u32(nlh, 1, 0x0000a8c0);
    mnl_attr_put(nlh, 2, number % 3 == 1 ? 6 : 4, "\xc0\xa8\x00\x01\x00\x01");
    mnl_attr_put_u32(nlh, 4, 1);
    return nlh->nlmsg_len;
}

static size_t put_element(char *at, unsigned number) {
    struct nfgenmsg nfg = {.nfgen_family = 7};
    uint16_t type = NFNL_SUBSYS_NFTABLES << 8 | (number & 8 ? NFT_MSG_NEWRULE : NFT_MSG_NEWSETELEM);
    struct nlmsghdr *nlh = begin(at, type, NLM_F_MULTI, &nfg, sizeof nfg);
    mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_TABLE, "master_controller");
    mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_SET, "s");
    struct nlattr *list = mnl_attr_nest_start(nlh, NFTA_SET_ELEM_LIST_ELEMENTS);
    struct nlattr *element = mnl_attr_nest_start(nlh, NFTA_LIST_ELEM);
    struct nlattr *nest = mnl_attr_nest_start(nlh, NFTA_SET_ELEM_KEY);
    mnl_attr_put(nlh, NFTA_DATA_VALUE, 16, "fc-vm-000000001");
    mnl_attr_nest_end(nlh, nest);
    nest = mnl_attr_nest_start(nlh, NFTA_SET_ELEM_EXPR);
    mnl_attr_put_strz(nlh, NFTA_EXPR_NAME, "counter");
    struct nlattr *data = mnl_attr_nest_start(nlh, NFTA_EXPR_DATA);
    mnl_attr_put_u64(nlh, NFTA_COUNTER_BYTES, 42);
    mnl_attr_put_u64(nlh, NFTA_COUNTER_PACKETS, 7);
    mnl_attr_nest_end(nlh, data);
    mnl_attr_nest_end(nlh, nest);
    mnl_attr_nest_end(nlh, element);
    mnl_attr_nest_end(nlh, list);
    return nlh->nlmsg_len;
}

/* The end: a dump's, or a result with the kernel's words. */
static size_t put_end(char *at, unsigned number) {
    struct nlmsgerr error = {.error = number & 16 ? -ENODEV : 0, .msg = {.nlmsg_len = sizeof error.msg}};
    int32_t none = 0;
    if (number & 1)
        return begin(at, NLMSG_DONE, NLM_F_MULTI, &none, sizeof none)->nlmsg_len;
    struct nlmsghdr *nlh = begin(at, NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, &error, sizeof error);
    mnl_attr_put_strz(nlh, NLMSGERR_ATTR_MSG, "Device does not exist");
    return nlh->nlmsg_len;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static size_t (*const put[])(char *at, unsigned number) = {put_link, put_route, put_element, put_element};
    _Alignas(struct nlmsghdr) char datagram[DATAGRAM_MAX];
    size_t len = put[number % 4](datagram, number / 4), used = MNL_ALIGN(len);
    used += put_end(datagram + used, number / 4);
    if (size < used + 3)
        return 0;
    ret[0] = (uint8_t)(number % 4);
    ret[1] = (uint8_t)(used >> 8);
    ret[2] = (uint8_t)used;
    memcpy(ret + 3, datagram, used);
    return used + 3;
}
