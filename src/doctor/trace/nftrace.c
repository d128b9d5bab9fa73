/* nftrace: a table of our own marks the packets of a few addresses at every hook where a packet enters netfilter; the
 * kernel then tells which rule of which chain decided about each of them.
 *
 *   table bridge mc-doctor-123 {        # and inet, arp, netdev
 *     flags owner
 *     chain prerouting { type filter hook prerouting priority -2147483648;
 *       ip saddr 192.168.0.2 meta nftrace set 1 … } }
 *
 * The mark stays on the packet and its copies, so hooks inside (forward, input, postrouting) need no chain. `flags owner`
 * ties the table to the netlink socket that made it: it goes when we close it or die. That is why this is not done by
 * libnftables text: the owner is one socket, which must stay open, and which every later change must come from.
 *
 * Source: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_trace.c (headers come with the first message of each chain only). */
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/table.h>
#include <libnftnl/trace.h>
#include <limits.h>
#include <linux/if_ether.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_arp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "doctor/trace/internal.h"
#include "netlink/netns.h"

/* linux/netfilter_bridge.h does not go together with net/if.h. */
#define BRIDGE_PRE_ROUTING 0
#define BRIDGE_LOCAL_OUT 3

#define BATCH_SIZE (256 * 1024)
#define RECEIVE_BUFFER (2 * 1024 * 1024)
#define DEVICES_MAX 8 /* with hooks of their own */
#define REMEMBERED 64 /* packets whose headers are known */

/* Where packets enter. */
struct place {
    uint8_t family;
    uint32_t hook;
    char chain[24];
    char device[TRACE_NAME]; /* of netdev */
};

struct seen_packet {
    uint32_t id;
    struct trace_rule headers;
};

struct nftrace {
    int control, listen;
    uint32_t sequence, port;
    char table[32];
    struct place places[6 + 2 * DEVICES_MAX];
    size_t place_count;
    struct seen_packet seen[REMEMBERED];
    size_t seen_next;
    char batch[BATCH_SIZE];
    size_t used;
};

static int open_socket(int nsfd, int *ret_fd, uint32_t *ret_port) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    socklen_t length = sizeof address;
    struct timeval timeout = {.tv_sec = 2};
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER, &fd);
    if (r < 0)
        return r;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    *ret_port = address.nl_pid;
    *ret_fd = fd_steal(&fd);
    return 0;
}

static int listen_open(struct nftrace *nft, int nsfd) {
    int group = NFNLGRP_NFTRACE, size = RECEIVE_BUFFER;
    uint32_t port;
    int r = open_socket(nsfd, &nft->listen, &port);
    if (r < 0)
        return r;
    if (setsockopt(nft->listen, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
        return -errno;
    if (setsockopt(nft->listen, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(nft->listen, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    return 0;
}

/* --- the batch --- */

static void *room(struct nftrace *nft) {
    return nft->batch + nft->used;
}

static void batch_begin(struct nftrace *nft) {
    nft->used = 0;
    struct nlmsghdr *nlh = nftnl_batch_begin(room(nft), nft->sequence++);
    nft->used += nlh->nlmsg_len;
}

static struct nlmsghdr *batch_message(struct nftrace *nft, uint16_t type, uint16_t family, uint16_t flags) {
    return nftnl_nlmsg_build_hdr(room(nft), type, family, flags, nft->sequence++);
}

/* Sends the batch and waits for the answer of its last message but one, the only one that asks for it. Return: 0 or
 * -errno: the kernel tells the first refusal, and none of the batch is done. */
static int batch_send(struct nftrace *nft, uint32_t last) {
    char answer[8192];
    struct nlmsghdr *end = nftnl_batch_end(room(nft), nft->sequence++);
    nft->used += end->nlmsg_len;
    int size = BATCH_SIZE * 2;
    setsockopt(nft->control, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    if (send(nft->control, nft->batch, nft->used, 0) < 0)
        return -errno;
    for (;;) {
        ssize_t n = recv(nft->control, answer, sizeof answer, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? -ETIMEDOUT : -errno;
        int left = (int)n;
        for (const struct nlmsghdr *nlh = (void *)answer; NLMSG_OK(nlh, left); nlh = mnl_nlmsg_next(nlh, &left)) {
            const struct nlmsgerr *error = mnl_nlmsg_get_payload(nlh);
            if (nlh->nlmsg_type != NLMSG_ERROR || mnl_nlmsg_get_payload_len(nlh) < sizeof *error)
                continue;
            if (error->error < 0 || nlh->nlmsg_seq == last)
                return error->error;
        }
    }
}

static int add_table(struct nftrace *nft, uint8_t family) {
    struct nftnl_table *table = nftnl_table_alloc();
    if (!table)
        return -ENOMEM;
    nftnl_table_set_u32(table, NFTNL_TABLE_FAMILY, family);
    nftnl_table_set_str(table, NFTNL_TABLE_NAME, nft->table);
    nftnl_table_set_u32(table, NFTNL_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    struct nlmsghdr *nlh = batch_message(nft, NFT_MSG_NEWTABLE, family, NLM_F_CREATE | NLM_F_EXCL);
    nftnl_table_nlmsg_build_payload(nlh, table);
    nft->used += nlh->nlmsg_len;
    nftnl_table_free(table);
    return 0;
}

static int add_chain(struct nftrace *nft, const struct place *place, bool ack, uint32_t *ret_sequence) {
    struct nftnl_chain *chain = nftnl_chain_alloc();
    if (!chain)
        return -ENOMEM;
    nftnl_chain_set_str(chain, NFTNL_CHAIN_TABLE, nft->table);
    nftnl_chain_set_str(chain, NFTNL_CHAIN_NAME, place->chain);
    nftnl_chain_set_str(chain, NFTNL_CHAIN_TYPE, "filter");
    nftnl_chain_set_u32(chain, NFTNL_CHAIN_HOOKNUM, place->hook);
    nftnl_chain_set_s32(chain, NFTNL_CHAIN_PRIO, INT_MIN);
    if (*place->device)
        nftnl_chain_set_str(chain, NFTNL_CHAIN_DEV, place->device);
    struct nlmsghdr *nlh = batch_message(nft, NFT_MSG_NEWCHAIN, place->family, NLM_F_CREATE | (ack ? NLM_F_ACK : 0));
    nftnl_chain_nlmsg_build_payload(nlh, chain);
    *ret_sequence = nlh->nlmsg_seq;
    nft->used += nlh->nlmsg_len;
    nftnl_chain_free(chain);
    return 0;
}

static struct nftnl_expr *new_expr(struct nftnl_rule *rule, const char *name) {
    struct nftnl_expr *expr = nftnl_expr_alloc(name);
    if (expr)
        nftnl_rule_add_expr(rule, expr);
    return expr;
}

static bool put_cmp(struct nftnl_rule *rule, const void *data, uint32_t len) {
    struct nftnl_expr *expr = new_expr(rule, "cmp");
    if (!expr)
        return false;
    nftnl_expr_set_u32(expr, NFTNL_EXPR_CMP_SREG, NFT_REG_1);
    nftnl_expr_set_u32(expr, NFTNL_EXPR_CMP_OP, NFT_CMP_EQ);
    nftnl_expr_set(expr, NFTNL_EXPR_CMP_DATA, data, len);
    return true;
}

static bool put_protocol(struct nftnl_rule *rule, uint16_t ethertype) {
    uint16_t wire = htons(ethertype);
    struct nftnl_expr *expr = new_expr(rule, "meta");
    if (!expr)
        return false;
    nftnl_expr_set_u32(expr, NFTNL_EXPR_META_KEY, NFT_META_PROTOCOL);
    nftnl_expr_set_u32(expr, NFTNL_EXPR_META_DREG, NFT_REG_1);
    return put_cmp(rule, &wire, sizeof wire);
}

static bool put_address(struct nftnl_rule *rule, uint32_t offset, uint32_t address) {
    uint32_t wire = htonl(address);
    struct nftnl_expr *expr = new_expr(rule, "payload");
    if (!expr)
        return false;
    nftnl_expr_set_u32(expr, NFTNL_EXPR_PAYLOAD_DREG, NFT_REG_1);
    nftnl_expr_set_u32(expr, NFTNL_EXPR_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
    nftnl_expr_set_u32(expr, NFTNL_EXPR_PAYLOAD_OFFSET, offset);
    nftnl_expr_set_u32(expr, NFTNL_EXPR_PAYLOAD_LEN, sizeof wire);
    return put_cmp(rule, &wire, sizeof wire);
}

static bool put_mark(struct nftnl_rule *rule) {
    uint8_t on = 1;
    struct nftnl_expr *value = new_expr(rule, "immediate"), *meta = value ? new_expr(rule, "meta") : NULL;
    if (!meta)
        return false;
    nftnl_expr_set_u32(value, NFTNL_EXPR_IMM_DREG, NFT_REG_1);
    nftnl_expr_set(value, NFTNL_EXPR_IMM_DATA, &on, sizeof on);
    nftnl_expr_set_u32(meta, NFTNL_EXPR_META_KEY, NFT_META_NFTRACE);
    nftnl_expr_set_u32(meta, NFTNL_EXPR_META_SREG, NFT_REG_1);
    return true;
}

/* ip saddr ADDRESS meta nftrace set 1 */
static int add_rule(struct nftrace *nft, const struct place *place, uint16_t ethertype, uint32_t offset,
                    uint32_t address, bool ack, uint32_t *ret_sequence) {
    struct nftnl_rule *rule = nftnl_rule_alloc();
    if (!rule)
        return -ENOMEM;
    nftnl_rule_set_str(rule, NFTNL_RULE_TABLE, nft->table);
    nftnl_rule_set_str(rule, NFTNL_RULE_CHAIN, place->chain);
    int r = -ENOMEM;
    if (put_protocol(rule, ethertype) && put_address(rule, offset, address) && put_mark(rule)) {
        struct nlmsghdr *nlh =
            batch_message(nft, NFT_MSG_NEWRULE, place->family, NLM_F_CREATE | NLM_F_APPEND | (ack ? NLM_F_ACK : 0));
        nftnl_rule_nlmsg_build_payload(nlh, rule);
        *ret_sequence = nlh->nlmsg_seq;
        nft->used += nlh->nlmsg_len;
        r = 0;
    }
    nftnl_rule_free(rule);
    return r;
}

static int add_rules(struct nftrace *nft, const struct place *place, uint32_t address, bool ack, uint32_t *last) {
    static const struct {
        uint16_t ethertype;
        uint32_t offset; /* of the address in the header: IPv4's two, ARP's two */
    } fields[] = {{ETH_P_IP, 12}, {ETH_P_IP, 16}, {ETH_P_ARP, 14}, {ETH_P_ARP, 24}};
    int r = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields && r == 0; i++) {
        bool is_arp = fields[i].ethertype == ETH_P_ARP;
        if ((place->family == NFPROTO_INET && is_arp) || (place->family == NFPROTO_ARP && !is_arp))
            continue;
        if (nft->used > BATCH_SIZE - 4096)
            return -EMSGSIZE;
        r = add_rule(nft, place, fields[i].ethertype, fields[i].offset, address, ack, last);
    }
    return r;
}

/* --- which places --- */

static void add_place(struct nftrace *nft, uint8_t family, uint32_t hook, const char *chain, const char *device) {
    struct place *place = &nft->places[nft->place_count++];
    *place = (struct place){.family = family, .hook = hook};
    str_copy(place->chain, sizeof place->chain, chain);
    str_copy(place->device, sizeof place->device, device);
}

static void choose_places(struct nftrace *nft, const struct trace_request *request) {
    add_place(nft, NFPROTO_BRIDGE, BRIDGE_PRE_ROUTING, "prerouting", "");
    add_place(nft, NFPROTO_BRIDGE, BRIDGE_LOCAL_OUT, "output", "");
    add_place(nft, NFPROTO_INET, NF_INET_PRE_ROUTING, "prerouting", "");
    add_place(nft, NFPROTO_INET, NF_INET_LOCAL_OUT, "output", "");
    add_place(nft, NFPROTO_ARP, NF_ARP_IN, "input", "");
    add_place(nft, NFPROTO_ARP, NF_ARP_OUT, "output", "");
    static const char *const ingress[DEVICES_MAX] = {"in0", "in1", "in2", "in3", "in4", "in5", "in6", "in7"};
    static const char *const egress[DEVICES_MAX] = {"out0", "out1", "out2", "out3", "out4", "out5", "out6", "out7"};
    for (size_t i = 0; i < request->device_count && i < DEVICES_MAX; i++) {
        add_place(nft, NFPROTO_NETDEV, NF_NETDEV_INGRESS, ingress[i], request->devices[i]);
        add_place(nft, NFPROTO_NETDEV, NF_NETDEV_EGRESS, egress[i], request->devices[i]);
    }
}

/* One family in one transaction: a kernel without one of them still traces the others. */
static int make_family(struct nftrace *nft, uint8_t family, const uint32_t *addresses, size_t count) {
    uint32_t last = 0;
    batch_begin(nft);
    int r = add_table(nft, family);
    for (size_t i = 0; i < nft->place_count && r == 0; i++)
        if (nft->places[i].family == family)
            r = add_chain(nft, &nft->places[i], true, &last);
    for (size_t i = 0; i < nft->place_count && r == 0; i++)
        for (size_t j = 0; j < count && r == 0; j++)
            if (nft->places[i].family == family)
                r = add_rules(nft, &nft->places[i], addresses[j], true, &last);
    return r == 0 ? batch_send(nft, last) : r;
}

static void drop_family(struct nftrace *nft, uint8_t family) {
    size_t kept = 0;
    for (size_t i = 0; i < nft->place_count; i++)
        if (nft->places[i].family != family)
            nft->places[kept++] = nft->places[i];
    nft->place_count = kept;
}

static int make_all(struct nftrace *nft, const struct trace_request *request) {
    static const uint8_t families[] = {NFPROTO_BRIDGE, NFPROTO_INET, NFPROTO_ARP, NFPROTO_NETDEV};
    int first = 0;
    for (size_t i = 0; i < sizeof families; i++) {
        if (families[i] == NFPROTO_NETDEV && request->device_count == 0)
            continue;
        int r = make_family(nft, families[i], request->addresses, request->address_count);
        if (r < 0) {
            drop_family(nft, families[i]);
            first = first ? first : r;
        }
    }
    return nft->place_count ? 0 : first;
}

static void say(char *why, size_t size, const char *step, int r) {
    struct strbuf text = {.max = size - 1};
    strbuf_addf(&text, "cannot %s: %s", step, strerror(-r));
    str_copy(why, size, text.data ? text.data : step);
    strbuf_free(&text);
}

int nftrace_start(const struct trace_request *request, struct nftrace **ret, char *why, size_t why_size) {
    if (request->address_count == 0 || request->address_count > TRACE_ADDRESSES_MAX) {
        str_copy(why, why_size, request->address_count ? "too many addresses to follow" : "no address to follow");
        return -EINVAL;
    }
    struct nftrace *nft = calloc(1, sizeof *nft);
    if (!nft)
        return -ENOMEM;
    nft->control = nft->listen = -1;
    nft->sequence = (uint32_t)time_monotonic_ms();
    struct strbuf name = {.max = sizeof nft->table - 1};
    strbuf_addf(&name, "%s%d", TRACE_TABLE_PREFIX, (int)getpid());
    str_copy(nft->table, sizeof nft->table, name.data ? name.data : TRACE_TABLE_PREFIX);
    strbuf_free(&name);
    choose_places(nft, request);
    const char *step = "open an nftables socket";
    int r = open_socket(request->nsfd, &nft->control, &nft->port);
    if (r == 0)
        r = listen_open(nft, request->nsfd);
    if (r == 0) {
        step = "make a table that goes with its owner";
        r = make_all(nft, request);
    }
    if (r < 0) {
        say(why, why_size, step, r);
        nftrace_stop(nft);
        return r;
    }
    *ret = nft;
    return 0;
}

int nftrace_follow(struct nftrace *nft, uint32_t address) {
    uint32_t last = 0;
    int r = 0;
    batch_begin(nft);
    for (size_t i = 0; i < nft->place_count && r == 0; i++)
        r = add_rules(nft, &nft->places[i], address, true, &last);
    return r == 0 ? batch_send(nft, last) : r;
}

int nftrace_fd(const struct nftrace *nft) {
    return nft->listen;
}

void nftrace_stop(struct nftrace *nft) {
    if (!nft)
        return;
    fd_close(&nft->listen);
    fd_close(&nft->control); /* the tables go with it */
    free(nft);
}

/* --- what it tells --- */

static const char *family_name(uint8_t family) {
    switch (family) {
    case NFPROTO_INET:
        return "inet";
    case NFPROTO_IPV4:
        return "ip";
    case NFPROTO_IPV6:
        return "ip6";
    case NFPROTO_ARP:
        return "arp";
    case NFPROTO_BRIDGE:
        return "bridge";
    case NFPROTO_NETDEV:
        return "netdev";
    default:
        return "?";
    }
}

static uint16_t get16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t get32(const uint8_t *at) {
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void read_transport(const struct nftnl_trace *trace, struct trace_rule *rule) {
    uint32_t len = 0;
    const uint8_t *data = nftnl_trace_get_data(trace, NFTNL_TRACE_TRANSPORT_HEADER, &len);
    if (!data || len < 8)
        return;
    if (rule->ip_protocol == IPPROTO_ICMP) {
        rule->icmp_type = data[0];
        rule->echo_id = get16(data + 4);
    } else if (rule->ip_protocol == IPPROTO_TCP || rule->ip_protocol == IPPROTO_UDP) {
        rule->source_port = get16(data);
        rule->destination_port = get16(data + 2);
    }
}

/* In the bridge and netdev families the link layer's header tells what the network's is; in the others the family. */
static void read_headers(const struct nftnl_trace *trace, uint8_t family, struct trace_rule *rule) {
    uint32_t len = 0;
    const uint8_t *data = nftnl_trace_get_data(trace, NFTNL_TRACE_LL_HEADER, &len);
    if (data && len >= 14) {
        rule->ethertype = get16(data + 12);
        memcpy(rule->destination_mac, data, 6);
        memcpy(rule->source_mac, data + 6, 6);
        rule->has_macs = true;
    } else
        rule->ethertype = family == NFPROTO_ARP ? ETH_P_ARP : ETH_P_IP;
    data = nftnl_trace_get_data(trace, NFTNL_TRACE_NETWORK_HEADER, &len);
    if (!data)
        return;
    if (rule->ethertype == ETH_P_ARP && len >= 28) {
        rule->arp_operation = get16(data + 6);
        rule->source = get32(data + 14);
        rule->destination = get32(data + 24);
    } else if (rule->ethertype == ETH_P_IP && len >= 20) {
        rule->ip_protocol = data[9];
        rule->source = get32(data + 12);
        rule->destination = get32(data + 16);
        read_transport(trace, rule);
    }
}

static void device_name(const struct nftrace *nft, const struct nftnl_trace *trace, uint16_t attr, char *dst) {
    struct ifreq request = {.ifr_ifindex = nftnl_trace_is_set(trace, attr) ? (int)nftnl_trace_get_u32(trace, attr) : 0};
    if (request.ifr_ifindex > 0 && ioctl(nft->listen, SIOCGIFNAME, &request) == 0)
        str_copy(dst, TRACE_NAME, request.ifr_name);
}

static void read_verdict(const struct nftnl_trace *trace, struct trace_rule *rule) {
    uint32_t type = nftnl_trace_get_u32(trace, NFTNL_TRACE_TYPE);
    uint32_t code = 0;
    if (type == NFT_TRACETYPE_POLICY) {
        rule->kind = TRACE_RULE_POLICY;
        code = nftnl_trace_get_u32(trace, NFTNL_TRACE_POLICY);
    } else {
        rule->kind = type == NFT_TRACETYPE_RETURN ? TRACE_RULE_RETURN : TRACE_RULE_MATCHED;
        rule->handle = nftnl_trace_get_u64(trace, NFTNL_TRACE_RULE_HANDLE);
        code = nftnl_trace_get_u32(trace, NFTNL_TRACE_VERDICT);
    }
    static const struct {
        uint32_t code;
        const char *name;
    } names[] = {
        {NF_DROP, "drop"},
        {NF_ACCEPT, "accept"},
        {NF_STOLEN, "stolen"},
        {NF_QUEUE, "queue"},
        {NF_REPEAT, "repeat"},
        {(uint32_t)NFT_CONTINUE, "continue"},
        {(uint32_t)NFT_BREAK, "break"},
        {(uint32_t)NFT_JUMP, "jump"},
        {(uint32_t)NFT_GOTO, "goto"},
        {(uint32_t)NFT_RETURN, "return"},
    };
    str_copy(rule->verdict, sizeof rule->verdict, "other");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) /* the upper half of queue and drop holds a number */
        if (names[i].code == code || (code <= 0x7fffffff && (code & 0xff) == names[i].code))
            str_copy(rule->verdict, sizeof rule->verdict, names[i].name);
    const char *target = nftnl_trace_get_str(trace, NFTNL_TRACE_JUMP_TARGET);
    if (target)
        str_copy(rule->jump_to, sizeof rule->jump_to, target);
}

static void remember(struct nftrace *nft, const struct trace_rule *rule) {
    struct seen_packet *packet = &nft->seen[nft->seen_next++ % REMEMBERED];
    packet->id = rule->id;
    packet->headers = *rule;
}

static void recall(const struct nftrace *nft, struct trace_rule *rule) {
    for (size_t i = 0; i < REMEMBERED; i++) {
        const struct trace_rule *known = &nft->seen[(nft->seen_next - 1 - i) % REMEMBERED].headers;
        if (nft->seen_next <= i || known->id != rule->id)
            continue;
        struct trace_rule copy = *known;
        memcpy(copy.family, rule->family, sizeof copy.family);
        memcpy(copy.table, rule->table, sizeof copy.table);
        memcpy(copy.chain, rule->chain, sizeof copy.chain);
        copy.at_ns = rule->at_ns;
        *rule = copy;
        return;
    }
}

static void take(struct nftrace *nft, const struct nftnl_trace *trace, int64_t now_ns, struct trace_result *result) {
    struct trace_rule rule = {.tag = TRACE_NO_TAG, .at_ns = now_ns};
    uint32_t family = nftnl_trace_get_u32(trace, NFTNL_TRACE_FAMILY);
    const char *table = nftnl_trace_get_str(trace, NFTNL_TRACE_TABLE);
    const char *chain = nftnl_trace_get_str(trace, NFTNL_TRACE_CHAIN);
    rule.id = nftnl_trace_get_u32(trace, NFTNL_TRACE_ID);
    str_copy(rule.family, sizeof rule.family, family_name((uint8_t)family));
    str_copy(rule.table, sizeof rule.table, table ? table : "");
    str_copy(rule.chain, sizeof rule.chain, chain ? chain : "");
    device_name(nft, trace, NFTNL_TRACE_IIF, rule.iif);
    device_name(nft, trace, NFTNL_TRACE_OIF, rule.oif);
    if (nftnl_trace_is_set(trace, NFTNL_TRACE_NETWORK_HEADER)) {
        read_headers(trace, (uint8_t)family, &rule);
        remember(nft, &rule);
    } else {
        recall(nft, &rule);
    }
    read_verdict(trace, &rule);
    /* Our own table's; and the end of a chain, which is told once as a rule without a handle and then as the policy. */
    if (str_starts(rule.table, TRACE_TABLE_PREFIX) || (rule.kind == TRACE_RULE_MATCHED && rule.handle == 0))
        return;
    struct trace_rule *kept = trace_result_add_rule(result);
    if (kept)
        *kept = rule;
}

void nftrace_drain(struct nftrace *nft, struct trace_result *result) {
    char data[16384];
    struct timespec now;
    for (;;) {
        ssize_t n = recv(nft->listen, data, sizeof data, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == ENOBUFS) {
            result->truncated = true;
            continue;
        }
        if (n <= 0)
            return;
        clock_gettime(CLOCK_MONOTONIC, &now);
        int left = (int)n;
        for (const struct nlmsghdr *nlh = (void *)data; NLMSG_OK(nlh, left); nlh = mnl_nlmsg_next(nlh, &left)) {
            struct nftnl_trace *trace = nftnl_trace_alloc();
            if (trace && nlh->nlmsg_type == ((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_TRACE) &&
                nftnl_trace_nlmsg_parse(nlh, trace) == 0)
                take(nft, trace, now.tv_sec * 1000000000LL + now.tv_nsec, result);
            if (trace)
                nftnl_trace_free(trace);
        }
    }
}
