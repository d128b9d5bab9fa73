/* The codecs without a kernel: its answers are written here. The linker puts __wrap_mnl_socket_sendto and
 * __wrap_mnl_socket_recvfrom in libmnl's place (meson.build). */
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "cmocka_all.h"
#include "netlink/addr.h"
#include "netlink/link.h"
#include "netlink/neigh.h"
#include "netlink/netns.h"
#include "netlink/route.h"
#include "netlink/rtnl.h"

/* ---- a kernel made of answers */

struct answer {
    char data[8192]; /* one datagram */
    size_t len;
    int errnum; /* instead of a datagram */
};

static struct answer answers[64];
static int answer_count, answer_next;
static char sent[RTNL_MSG_SIZE];
static size_t sent_len;
static int sent_count;

ssize_t __wrap_mnl_socket_sendto(const struct mnl_socket *nl, const void *req, size_t len);
ssize_t __wrap_mnl_socket_sendto(const struct mnl_socket *nl, const void *req, size_t len) {
    assert_true(len <= sizeof sent);
    memcpy(sent, req, len);
    sent_len = len;
    sent_count++;
    return (ssize_t)len;
}

/* Sequence number 0 in an answer stands for that of the request; 1000000 for a wrong one. */
ssize_t __wrap_mnl_socket_recvfrom(const struct mnl_socket *nl, void *buf, size_t size);
ssize_t __wrap_mnl_socket_recvfrom(const struct mnl_socket *nl, void *buf, size_t size) {
    assert_true(answer_next < answer_count);
    const struct answer *a = &answers[answer_next++];
    if (a->errnum) {
        errno = a->errnum;
        return -1;
    }
    assert_true(a->len <= size);
    memcpy(buf, a->data, a->len);
    int left = (int)a->len;
    for (struct nlmsghdr *nlh = buf; mnl_nlmsg_ok(nlh, left); nlh = mnl_nlmsg_next(nlh, &left))
        if (nlh->nlmsg_seq == 0)
            nlh->nlmsg_seq = ((struct nlmsghdr *)sent)->nlmsg_seq;
    return (ssize_t)a->len;
}

static struct answer *new_answer(void) {
    assert_true(answer_count < (int)(sizeof answers / sizeof *answers));
    answers[answer_count] = (struct answer){0};
    return &answers[answer_count++];
}

/* Appends a message to a datagram. Return: the header; its attributes may follow with mnl_attr_put(). */
static struct nlmsghdr *begin(struct answer *a, uint16_t type, uint16_t flags, const void *header, size_t size) {
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(a->data + a->len);
    nlh->nlmsg_type = type;
    nlh->nlmsg_flags = flags;
    memcpy(mnl_nlmsg_put_extra_header(nlh, size), header, size);
    return nlh;
}

static void end(struct answer *a, const struct nlmsghdr *nlh) {
    a->len += MNL_ALIGN(nlh->nlmsg_len);
}

static void add_result(struct answer *a, int error, const char *words) {
    struct nlmsgerr e = {.error = -error};
    struct nlmsghdr *nlh = begin(a, NLMSG_ERROR, NLM_F_CAPPED | (words ? NLM_F_ACK_TLVS : 0), &e, sizeof e);
    if (words)
        mnl_attr_put_strz(nlh, NLMSGERR_ATTR_MSG, words);
    end(a, nlh);
}

static void add_done(struct answer *a, uint16_t flags) {
    int32_t error = 0;
    struct nlmsghdr *nlh = begin(a, NLMSG_DONE, NLM_F_MULTI | flags, &error, sizeof error);
    end(a, nlh);
}

static void add_link(struct answer *a, int index, const char *name, uint16_t flags) {
    struct ifinfomsg ifi = {.ifi_index = index};
    struct nlmsghdr *nlh = begin(a, RTM_NEWLINK, NLM_F_MULTI | flags, &ifi, sizeof ifi);
    mnl_attr_put_strz(nlh, IFLA_IFNAME, name);
    end(a, nlh);
}

static struct rtnl *rtnl;

static int setup(void **state) {
    int nsfd = -1;
    answer_count = answer_next = sent_count = 0;
    assert_int_equal(netns_open("", &nsfd, NULL), 0);
    assert_int_equal(rtnl_open(nsfd, &rtnl, NULL), 0);
    fd_close(&nsfd);
    return 0;
}

static int teardown(void **state) {
    rtnl_close(rtnl);
    return 0;
}

/* ---- the conversation */

static void a_refusal_carries_the_kernels_words(void **state) {
    struct err err;
    add_result(new_answer(), EOPNOTSUPP, "Device\x1b does not do that");
    assert_int_equal(link_delete(rtnl, 7, &err), -EOPNOTSUPP);
    assert_string_equal(err.code, "netlink.refused");
    assert_non_null(strstr(err.detail, "the kernel says: Device\\x1b does not do that"));
    add_result(new_answer(), ENODEV, NULL);
    assert_int_equal(link_delete(rtnl, 7, &err), -ENODEV);
    assert_string_equal(err.detail, "No such device");
    add_result(new_answer(), 0, NULL);
    assert_int_equal(link_delete(rtnl, 7, &err), 0);
}

static void words_behind_the_whole_request_are_found(void **state) {
    struct err err;
    struct answer *a = new_answer();
    struct nlmsgerr e = {.error = -EINVAL, .msg.nlmsg_len = 64};
    struct nlmsghdr *nlh = begin(a, NLMSG_ERROR, NLM_F_ACK_TLVS, &e, sizeof e);
    mnl_nlmsg_put_extra_header(nlh, 64 - sizeof e.msg); /* the request, given back: not capped */
    mnl_attr_put_strz(nlh, NLMSGERR_ATTR_MSG, "behind");
    end(a, nlh);
    assert_int_equal(link_delete(rtnl, 7, &err), -EINVAL);
    assert_non_null(strstr(err.detail, "behind"));
}

static void answers_to_other_requests_are_passed_over(void **state) {
    struct link link;
    struct answer *a = new_answer();
    add_link(a, 1, "stale", 0);
    ((struct nlmsghdr *)a->data)->nlmsg_seq = 1000000;
    a = new_answer();
    add_link(a, 2, "mine", 0);
    add_result(a, 0, NULL);
    assert_int_equal(link_get_by_name(rtnl, "mine", &link, NULL), 0);
    assert_int_equal(link.index, 2);
    assert_string_equal(link.name, "mine");
}

static void an_answer_without_content_is_an_error(void **state) {
    struct link link = {.index = 99};
    struct err err;
    add_result(new_answer(), 0, NULL);
    assert_int_equal(link_get_by_index(rtnl, 2, &link, &err), -EBADMSG);
    assert_string_equal(err.code, "netlink.failed");
    assert_int_equal(link.index, 99);
}

static void silence_and_short_answers_are_errors(void **state) {
    struct err err;
    new_answer()->errnum = EINTR; /* only a signal: goes on */
    new_answer()->errnum = EAGAIN;
    assert_int_equal(link_delete(rtnl, 7, &err), -ETIMEDOUT);
    struct answer *a = new_answer();
    int32_t half = 0;
    struct nlmsghdr *nlh = begin(a, NLMSG_ERROR, 0, &half, sizeof half);
    end(a, nlh);
    assert_int_equal(link_delete(rtnl, 7, &err), -EBADMSG);
    a = new_answer();
    add_result(a, 0, NULL);
    ((struct nlmsgerr *)(a->data + sizeof(struct nlmsghdr)))->error = INT32_MIN; /* no errno at all */
    assert_int_equal(link_delete(rtnl, 7, &err), -EPROTO);
}

static void a_dump_that_was_interrupted_is_made_again(void **state) {
    _cleanup_free_ struct link *links = NULL;
    size_t count = 0;
    struct answer *a = new_answer();
    add_link(a, 1, "old", 0);
    add_link(a, 2, "gone", NLM_F_DUMP_INTR);
    a = new_answer();
    add_done(a, NLM_F_DUMP_INTR);
    new_answer()->errnum = ENOBUFS; /* the second attempt overruns the socket */
    add_done(new_answer(), 0);
    a = new_answer();
    add_link(a, 1, "new", 0);
    a = new_answer();
    add_link(a, 3, "more", 0);
    add_done(a, 0);
    assert_int_equal(link_dump(rtnl, &links, &count, NULL), 0);
    assert_int_equal(sent_count, 3);
    assert_int_equal(count, 2);
    assert_string_equal(links[0].name, "new");
    assert_string_equal(links[1].name, "more");
}

static void a_dump_that_is_always_interrupted_ends(void **state) {
    struct link *links = (void *)1;
    size_t count = 77;
    struct err err;
    for (int i = 0; i < 60; i++)
        add_done(new_answer(), NLM_F_DUMP_INTR);
    assert_int_equal(link_dump(rtnl, &links, &count, &err), -EBUSY);
    assert_string_equal(err.code, "netlink.failed");
    assert_in_range(sent_count, 5, 60);
    assert_ptr_equal(links, (void *)1);
    assert_int_equal(count, 77);
}

static void a_bad_item_ends_a_dump_but_it_is_read_to_its_end(void **state) {
    _cleanup_free_ struct link *links = NULL;
    size_t count = 0;
    struct err err;
    struct answer *a = new_answer();
    add_link(a, 0, "no-index", 0);
    add_link(a, 1, "fine", 0);
    add_done(new_answer(), 0);
    assert_int_equal(link_dump(rtnl, &links, &count, &err), -EBADMSG);
    assert_int_equal(answer_next, answer_count);
    assert_null(links);
}

static int keep(const struct nlmsghdr *nlh, void *ret_item) {
    *(int *)ret_item = 1;
    return 1;
}

static void a_list_has_a_limit(void **state) {
    struct rtnl_msg msg;
    struct rtnl_list list = {.item_size = sizeof(int), .max = 100};
    for (int d = 0; d < 2; d++) {
        struct answer *a = new_answer();
        for (int i = 0; i < 51; i++)
            add_link(a, i + 1, "x", 0);
    }
    add_done(new_answer(), 0);
    rtnl_msg_begin(&msg, RTM_GETLINK, 0, sizeof(struct ifinfomsg));
    assert_int_equal(rtnl_dump(rtnl, &msg, keep, &list, NULL), -E2BIG);
    free(list.items);
}

static void a_request_that_does_not_fit_is_not_sent(void **state) {
    char alias[RTNL_MSG_SIZE + 1];
    struct err err;
    memset(alias, 'a', sizeof alias - 1);
    alias[sizeof alias - 1] = '\0';
    assert_int_equal(link_set(rtnl, 1, &(struct link_change){.alias = alias}, &err), -EMSGSIZE);
    assert_int_equal(sent_count, 0);
}

/* ---- what is sent */

static const struct nlattr *find(const void *attrs, size_t len, uint16_t type) {
    const char *end_of = (const char *)attrs + len;
    for (const struct nlattr *a = attrs; mnl_attr_ok(a, (int)(end_of - (const char *)a)); a = mnl_attr_next(a))
        if (mnl_attr_get_type(a) == type)
            return a;
    return NULL;
}

static const struct nlattr *sent_attr(size_t header_size, uint16_t type) {
    const struct nlmsghdr *nlh = (const struct nlmsghdr *)sent;
    size_t at = MNL_NLMSG_HDRLEN + MNL_ALIGN(header_size);
    assert_int_equal(nlh->nlmsg_len, sent_len);
    return find(sent + at, sent_len - at, type);
}

static const struct nlattr *inside(const struct nlattr *nest, uint16_t type) {
    assert_non_null(nest);
    return find(mnl_attr_get_payload(nest), mnl_attr_get_payload_len(nest), type);
}

static void a_bridge_is_born_with_its_mac(void **state) {
    struct net_mac mac = {{2, 0xfc, 1, 2, 3, 4}};
    add_result(new_answer(), 0, NULL);
    assert_int_equal(link_bridge_create(rtnl, "br0", mac, NULL), 0);
    const struct nlmsghdr *nlh = (const struct nlmsghdr *)sent;
    assert_int_equal(nlh->nlmsg_type, RTM_NEWLINK);
    assert_int_equal(nlh->nlmsg_flags, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
    size_t size = sizeof(struct ifinfomsg);
    assert_string_equal(mnl_attr_get_str(sent_attr(size, IFLA_IFNAME)), "br0");
    assert_memory_equal(mnl_attr_get_payload(sent_attr(size, IFLA_ADDRESS)), &mac, 6);
    const struct nlattr *info = sent_attr(size, IFLA_LINKINFO);
    assert_string_equal(mnl_attr_get_str(inside(info, IFLA_INFO_KIND)), "bridge");
    assert_int_equal(mnl_attr_get_u32(inside(inside(info, IFLA_INFO_DATA), IFLA_BR_STP_STATE)), 0);
}

static void a_change_says_only_what_changes(void **state) {
    size_t size = sizeof(struct ifinfomsg);
    add_result(new_answer(), 0, NULL);
    assert_int_equal(link_set(rtnl, 5, &(struct link_change){.mtu = 1400}, NULL), 0);
    const struct ifinfomsg *ifi = (const void *)(sent + MNL_NLMSG_HDRLEN);
    assert_int_equal(ifi->ifi_index, 5);
    assert_int_equal(ifi->ifi_change, 0);
    assert_int_equal(mnl_attr_get_u32(sent_attr(size, IFLA_MTU)), 1400);
    assert_null(sent_attr(size, IFLA_MASTER));
    assert_null(sent_attr(size, IFLA_IFALIAS));
    assert_null(sent_attr(size, IFLA_ADDRESS));
    add_result(new_answer(), 0, NULL);
    assert_int_equal(link_set(rtnl, 5, &(struct link_change){.down = true, .alias = ""}, NULL), 0);
    assert_int_equal(ifi->ifi_change, IFF_UP);
    assert_int_equal(ifi->ifi_flags & IFF_UP, 0);
    assert_int_equal(mnl_attr_get_payload_len(sent_attr(size, IFLA_IFALIAS)), 0);
}

static void addresses_are_sent_in_network_order(void **state) {
    size_t size = sizeof(struct ifaddrmsg);
    add_result(new_answer(), EEXIST, NULL);
    assert_int_equal(addr_add(rtnl, 3, (struct net_prefix){0xc0a80001, 16}, NULL), -EEXIST);
    assert_memory_equal(mnl_attr_get_payload(sent_attr(size, IFA_LOCAL)), "\xc0\xa8\x00\x01", 4);
    const struct ifaddrmsg *ifa = (const void *)(sent + MNL_NLMSG_HDRLEN);
    assert_int_equal(ifa->ifa_prefixlen, 16);
    assert_int_equal(ifa->ifa_index, 3);
    add_result(new_answer(), ENOENT, NULL);
    assert_int_equal(neigh_delete(rtnl, 3, 0xc0a80002, NULL), -ENOENT);
    assert_memory_equal(mnl_attr_get_payload(sent_attr(sizeof(struct ndmsg), NDA_DST)), "\xc0\xa8\x00\x02", 4);
}

static void ipv6_that_is_not_there_needs_no_switching_off(void **state) {
    struct err err = {0};
    add_result(new_answer(), EAFNOSUPPORT, NULL);
    assert_int_equal(link_ipv6_autoconf_off(rtnl, 3, &err), 0);
    assert_int_equal(err.errnum, 0);
    add_result(new_answer(), EPERM, NULL);
    assert_int_equal(link_ipv6_autoconf_off(rtnl, 3, &err), -EPERM);
    assert_int_equal(err.errnum, EPERM);
}

/* ---- what is read */

static struct nlmsghdr *a_tap(struct answer *a) {
    struct ifinfomsg ifi = {.ifi_index = 12, .ifi_flags = IFF_UP};
    struct nlmsghdr *nlh = begin(a, RTM_NEWLINK, 0, &ifi, sizeof ifi);
    mnl_attr_put_strz(nlh, IFLA_IFNAME, "fc-vm-69fac6733");
    mnl_attr_put(nlh, IFLA_IFALIAS, 4, "vm-1"); /* without its NUL, as the kernel may */
    mnl_attr_put(nlh, IFLA_ADDRESS, 6, "\xfe\xfc\x01\x02\x03\x04");
    mnl_attr_put_u32(nlh, IFLA_MTU, 1500);
    mnl_attr_put_u32(nlh, IFLA_MASTER, 3);
    mnl_attr_put_u8(nlh, IFLA_OPERSTATE, 6);
    mnl_attr_put_u8(nlh, IFLA_CARRIER, 1);
    mnl_attr_put_u32(nlh, 999, 7); /* of a later kernel */
    struct nlattr *names = mnl_attr_nest_start(nlh, IFLA_PROP_LIST);
    for (int i = 0; i < LINK_ALTNAMES + 2; i++)
        mnl_attr_put_strz(nlh, IFLA_ALT_IFNAME, "another-name-that-is-longer-than-fifteen");
    mnl_attr_nest_end(nlh, names);
    struct nlattr *info = mnl_attr_nest_start(nlh, IFLA_LINKINFO);
    mnl_attr_put_strz(nlh, IFLA_INFO_KIND, "tun");
    mnl_attr_put_strz(nlh, IFLA_INFO_SLAVE_KIND, "bridge");
    struct nlattr *port = mnl_attr_nest_start(nlh, IFLA_INFO_SLAVE_DATA);
    mnl_attr_put_u8(nlh, IFLA_BRPORT_STATE, 3);
    mnl_attr_put_u16(nlh, IFLA_BRPORT_NO, 7);
    mnl_attr_nest_end(nlh, port);
    struct nlattr *data = mnl_attr_nest_start(nlh, IFLA_INFO_DATA);
    mnl_attr_put_u8(nlh, IFLA_TUN_TYPE, IFF_TAP);
    mnl_attr_put_u32(nlh, IFLA_TUN_OWNER, 4000);
    mnl_attr_nest_end(nlh, data);
    mnl_attr_nest_end(nlh, info);
    return nlh;
}

static void a_tap_is_read(void **state) {
    struct answer a = {0};
    struct link link;
    assert_int_equal(link_parse(a_tap(&a), &link), 1);
    assert_int_equal(link.index, 12);
    assert_string_equal(link.name, "fc-vm-69fac6733");
    assert_string_equal(link.alias, "vm-1");
    assert_string_equal(link.kind, "tun");
    assert_true(link.is_tap && link.carrier && link.flags == IFF_UP);
    assert_int_equal(link.mtu, 1500);
    assert_int_equal(link.master, 3);
    assert_int_equal(link.port_number, 7);
    assert_int_equal(link.port_state, 3);
    assert_int_equal(link.operstate, 6);
    assert_int_equal(link.tun_owner, 4000);
    assert_int_equal(link.altname_count, LINK_ALTNAMES + 2);
    assert_string_equal(link.altname[LINK_ALTNAMES - 1], "another-name-that-is-longer-than-fifteen");
    assert_memory_equal(&link.mac, "\xfe\xfc\x01\x02\x03\x04", 6);
}

static void names_that_are_too_long_are_cut(void **state) {
    struct answer a = {0};
    struct link link;
    char big[300];
    memset(big, 'x', sizeof big);
    struct ifinfomsg ifi = {.ifi_index = 1};
    struct nlmsghdr *nlh = begin(&a, RTM_NEWLINK, 0, &ifi, sizeof ifi);
    mnl_attr_put(nlh, IFLA_IFNAME, sizeof big, big);
    mnl_attr_put(nlh, IFLA_IFALIAS, sizeof big, big);
    mnl_attr_put(nlh, IFLA_ADDRESS, 20, big); /* InfiniBand */
    mnl_attr_put(nlh, IFLA_MTU, 2, big);
    assert_int_equal(link_parse(nlh, &link), 1);
    assert_int_equal(strlen(link.name), LINK_NAME_TEXT - 1);
    assert_int_equal(strlen(link.alias), LINK_ALIAS_TEXT - 1);
    assert_memory_equal(&link.mac, "\0\0\0\0\0\0", 6);
    assert_int_equal(link.mtu, 0);
    assert_false(link.is_tap);
    assert_int_equal(link.tun_owner, LINK_NO_OWNER);
}

static void addresses_are_read(void **state) {
    struct answer a = {0};
    struct addr addr;
    struct ifaddrmsg ifa = {.ifa_family = AF_INET, .ifa_prefixlen = 24, .ifa_index = 4};
    struct nlmsghdr *nlh = begin(&a, RTM_NEWADDR, 0, &ifa, sizeof ifa);
    mnl_attr_put(nlh, IFA_ADDRESS, 4, "\x0a\x00\x00\x09"); /* the other end of a tunnel */
    mnl_attr_put(nlh, IFA_LOCAL, 4, "\x0a\x01\x00\x01");
    assert_int_equal(addr_parse(nlh, &addr), 1);
    assert_int_equal(addr.prefix.address, 0x0a000009);
    assert_int_equal(addr.prefix.length, 24);
    assert_int_equal(addr.link, 4);
    ((struct ifaddrmsg *)mnl_nlmsg_get_payload(nlh))->ifa_prefixlen = 33;
    assert_int_equal(addr_parse(nlh, &addr), 0);
    ((struct ifaddrmsg *)mnl_nlmsg_get_payload(nlh))->ifa_family = AF_INET6;
    assert_int_equal(addr_parse(nlh, &addr), 0);
}

static void routes_are_read(void **state) {
    struct answer a = {0};
    struct route route;
    struct rtmsg rtm = {.rtm_family = AF_INET, .rtm_dst_len = 12, .rtm_table = RT_TABLE_MAIN, .rtm_type = RTN_UNICAST};
    struct rtnexthop hop = {.rtnh_len = sizeof hop, .rtnh_ifindex = 9};
    struct nlmsghdr *nlh = begin(&a, RTM_NEWROUTE, 0, &rtm, sizeof rtm);
    mnl_attr_put(nlh, RTA_DST, 4, "\xac\x10\x00\x00");
    mnl_attr_put(nlh, RTA_GATEWAY, 4, "\x0a\x00\x00\x01");
    mnl_attr_put(nlh, RTA_PREFSRC, 4, "\x0a\x00\x00\x02");
    mnl_attr_put_u32(nlh, RTA_PRIORITY, 600);
    mnl_attr_put(nlh, RTA_MULTIPATH, sizeof hop, &hop);
    assert_int_equal(route_parse(nlh, &route), 1);
    assert_int_equal(route.to.address, 0xac100000);
    assert_int_equal(route.to.length, 12);
    assert_int_equal(route.table, RT_TABLE_MAIN);
    assert_int_equal(route.link, 9);
    assert_int_equal(route.gateway, 0x0a000001);
    assert_int_equal(route.source, 0x0a000002);
    assert_int_equal(route.metric, 600);
    mnl_attr_put_u32(nlh, RTA_TABLE, 1000);
    mnl_attr_put_u32(nlh, RTA_OIF, 2);
    assert_int_equal(route_parse(nlh, &route), 1);
    assert_int_equal(route.table, 1000);
    assert_int_equal(route.link, 2);
}

static void other_messages_are_passed_over(void **state) {
    struct answer a = {0};
    union {
        struct link link;
        struct addr addr;
        struct route route;
    } item;
    struct nlmsghdr *nlh = a_tap(&a);
    nlh->nlmsg_type = RTM_NEWNEIGH;
    assert_int_equal(link_parse(nlh, &item), 0);
    assert_int_equal(addr_parse(nlh, &item), 0);
    assert_int_equal(route_parse(nlh, &item), 0);
}

/* Whatever is in a message, the readers stay inside it: it lies at the end of an allocation of its very size. */
static void nothing_is_read_past_a_broken_message(void **state) {
    static rtnl_parse *const parsers[] = {link_parse, addr_parse, route_parse};
    static const uint16_t types[] = {RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE};
    struct answer a = {0};
    const struct nlmsghdr *whole = a_tap(&a);
    uint32_t random = 1;
    for (size_t round = 0; round < 20000; round++) {
        size_t len = round % (whole->nlmsg_len + 1);
        if (len < sizeof(struct nlmsghdr))
            continue;
        struct nlmsghdr *copy = malloc(len);
        assert_non_null(copy);
        memcpy(copy, whole, len);
        for (int i = 0; round >= 2000 && i < 4; i++) {
            random = random * 1664525 + 1013904223;
            ((uint8_t *)copy)[random % len] = (uint8_t)(random >> 24);
        }
        copy->nlmsg_len = (uint32_t)len;
        copy->nlmsg_type = types[round % 3];
        union {
            struct link link;
            struct addr addr;
            struct route route;
        } item = {0};
        int r = parsers[round % 3](copy, &item);
        assert_in_range(r + 200, 0, 201);
        if (r > 0 && round % 3 == 0)
            assert_in_range(strlen(item.link.name), 1, LINK_NAME_TEXT - 1);
        free(copy);
    }
}

/* ---- names */

static void names_of_links(void **state) {
    static const char *const good[] = {"br0", "fc-vm-69fac6733", "a", "eth0.100", "br@x"};
    static const char *const bad[] = {"", ".", "..", "sixteen-bytes-xx", "a b", "a/b", "a:b", "tap%d", "a\tb"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(link_name_is_valid(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(link_name_is_valid(bad[i]));
}

static void names_of_namespaces(void **state) {
    char name[NETNS_NAME_MAX + 2];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_false(netns_name_is_valid(name));
    name[NETNS_NAME_MAX] = '\0';
    assert_true(netns_name_is_valid(name));
    assert_true(netns_name_is_valid("mc_1.x-2"));
    static const char *const bad[] = {"", ".", "..", ".hidden", "a/b", "a b", "a\n", "\xc3\xa4", "a;b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(netns_name_is_valid(bad[i]));
    int fd = 99;
    struct err err;
    assert_int_equal(netns_open("../proc", &fd, &err), -EINVAL);
    assert_int_equal(netns_make("a\x1b/", NULL, NULL, &err), -EINVAL);
    assert_null(strchr(err.detail, '\x1b'));
    assert_int_equal(netns_open("nt-there-is-no-such-one", &fd, &err), -ENOENT);
    assert_string_equal(err.code, "netns.missing");
    assert_int_equal(fd, 99);
}

/* Without privilege: in the namespace where one already is there is nothing to enter. */
static void ones_own_namespace(void **state) {
    _cleanup_close_ int own = -1, again = -1, socket_fd = -1;
    char value[32], tiny[1];
    assert_int_equal(netns_open("", &own, NULL), 0);
    assert_int_equal(netns_open("", &again, NULL), 0);
    assert_true(netns_is_same(own, again));
    struct netns_scope scope = NETNS_SCOPE_NONE;
    assert_int_equal(netns_enter(own, &scope), 0);
    assert_int_equal(scope.home, -1);
    netns_leave(&scope);
    assert_int_equal(netns_socket(own, AF_INET, SOCK_DGRAM, 0, &socket_fd), 0);
    assert_false(netns_is_same(own, socket_fd));
    assert_int_equal(netns_sysctl_read(own, "net/ipv4/ip_forward", value, sizeof value), 0);
    assert_true(strcmp(value, "0") == 0 || strcmp(value, "1") == 0);
    assert_int_equal(netns_sysctl_read(own, "net/ipv4/ip_forward", tiny, sizeof tiny), -ENOBUFS);
    assert_int_equal(netns_sysctl_read(own, "net/ipv4/no_such_thing", value, sizeof value), -ENOENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_refusal_carries_the_kernels_words, setup, teardown),
        cmocka_unit_test_setup_teardown(words_behind_the_whole_request_are_found, setup, teardown),
        cmocka_unit_test_setup_teardown(answers_to_other_requests_are_passed_over, setup, teardown),
        cmocka_unit_test_setup_teardown(an_answer_without_content_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(silence_and_short_answers_are_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(a_dump_that_was_interrupted_is_made_again, setup, teardown),
        cmocka_unit_test_setup_teardown(a_dump_that_is_always_interrupted_ends, setup, teardown),
        cmocka_unit_test_setup_teardown(a_bad_item_ends_a_dump_but_it_is_read_to_its_end, setup, teardown),
        cmocka_unit_test_setup_teardown(a_list_has_a_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(a_request_that_does_not_fit_is_not_sent, setup, teardown),
        cmocka_unit_test_setup_teardown(a_bridge_is_born_with_its_mac, setup, teardown),
        cmocka_unit_test_setup_teardown(a_change_says_only_what_changes, setup, teardown),
        cmocka_unit_test_setup_teardown(addresses_are_sent_in_network_order, setup, teardown),
        cmocka_unit_test_setup_teardown(ipv6_that_is_not_there_needs_no_switching_off, setup, teardown),
        cmocka_unit_test(a_tap_is_read),
        cmocka_unit_test(names_that_are_too_long_are_cut),
        cmocka_unit_test(addresses_are_read),
        cmocka_unit_test(routes_are_read),
        cmocka_unit_test(other_messages_are_passed_over),
        cmocka_unit_test(nothing_is_read_past_a_broken_message),
        cmocka_unit_test(names_of_links),
        cmocka_unit_test(names_of_namespaces),
        cmocka_unit_test(ones_own_namespace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
