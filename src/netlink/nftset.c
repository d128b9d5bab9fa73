#include "netlink/nftset.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/fd.h"
#include "base/str.h"
#include "netlink/netns.h"

#define BATCH_SIZE 16384
#define REPLY_SIZE 32768 /* MNL_SOCKET_DUMP_SIZE */
#define ANSWER_TIMEOUT_S 5
#define WATCH_BUFFER (1024 * 1024)

struct nftset {
    struct mnl_socket *socket;
    uint32_t sequence;
    _Alignas(struct nlmsghdr) char reply[REPLY_SIZE];
};

static int open_socket(int nsfd, int type, struct mnl_socket **ret, struct err *err) {
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_NETLINK, SOCK_RAW | type, NETLINK_NETFILTER, &fd);
    if (r < 0)
        return err_sys(err, -r, "nft.unavailable", "open an nftables socket");
    struct mnl_socket *socket = mnl_socket_fdopen(fd);
    if (!socket)
        return err_sys(err, errno, "nft.unavailable", "open an nftables socket");
    fd_steal(&fd);
    if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0) {
        r = err_sys(err, errno, "nft.unavailable", "bind an nftables socket");
        mnl_socket_close(socket);
        return r;
    }
    *ret = socket;
    return 0;
}

int nftset_open(int nsfd, struct nftset **ret, struct err *err) {
    struct timeval timeout = {.tv_sec = ANSWER_TIMEOUT_S};
    struct nftset *nftset = calloc(1, sizeof *nftset);
    if (!nftset)
        return err_sys(err, ENOMEM, "nft.unavailable", "open an nftables socket");
    int r = open_socket(nsfd, 0, &nftset->socket, err);
    if (r < 0) {
        free(nftset);
        return r;
    }
    setsockopt(mnl_socket_get_fd(nftset->socket), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    *ret = nftset;
    return 0;
}

void nftset_close(struct nftset *nftset) {
    if (!nftset)
        return;
    mnl_socket_close(nftset->socket);
    free(nftset);
}

void nftset_key_add(struct nftset_key *key, const void *part, size_t len) {
    size_t padded = (len + 3) & ~(size_t)3;
    if (key->len + padded > sizeof key->data)
        return;
    memcpy(key->data + key->len, part, len);
    key->len += padded;
}

/* --- messages --- */

static struct nlmsghdr *put_header(char *at, uint16_t type, uint16_t flags, uint8_t family, uint16_t resource,
                                   uint32_t sequence) {
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(at);
    nlh->nlmsg_type = type;
    nlh->nlmsg_flags = NLM_F_REQUEST | flags;
    nlh->nlmsg_seq = sequence;
    struct nfgenmsg *nfg = mnl_nlmsg_put_extra_header(nlh, sizeof *nfg);
    nfg->nfgen_family = family;
    nfg->version = NFNETLINK_V0;
    nfg->res_id = htons(resource);
    return nlh;
}

static struct nlmsghdr *put_request(char *at, uint8_t message, uint16_t flags, uint8_t family, const char *table,
                                    const char *set, uint32_t sequence) {
    struct nlmsghdr *nlh = put_header(at, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | message), flags, family, 0, sequence);
    mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_TABLE, table);
    mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_SET, set);
    return nlh;
}

static void put_key(struct nlmsghdr *nlh, const struct nftset_key *key) {
    struct nlattr *list = mnl_attr_nest_start(nlh, NFTA_SET_ELEM_LIST_ELEMENTS);
    struct nlattr *element = mnl_attr_nest_start(nlh, NFTA_LIST_ELEM);
    struct nlattr *nest = mnl_attr_nest_start(nlh, NFTA_SET_ELEM_KEY);
    mnl_attr_put(nlh, NFTA_DATA_VALUE, key->len, key->data);
    mnl_attr_nest_end(nlh, nest);
    mnl_attr_nest_end(nlh, element);
    mnl_attr_nest_end(nlh, list);
}

/* --- what comes back --- */

typedef void each_element(const struct nftset_element *element, void *data);

struct talk {
    uint32_t first, last; /* sequence numbers of the request's messages */
    each_element *each;
    void *data;
    int errnum;     /* the first that was told; 0: none */
    uint32_t rules; /* that came */
};

static uint64_t read_be64(const struct nlattr *attr) {
    uint8_t b[8] = {0};
    uint64_t value = 0;
    if (mnl_attr_get_payload_len(attr) >= sizeof b)
        memcpy(b, mnl_attr_get_payload(attr), sizeof b);
    for (size_t i = 0; i < sizeof b; i++)
        value = value << 8 | b[i];
    return value;
}

static void take_counter(const struct nlattr *data, struct nftset_element *element) {
    const struct nlattr *attr;
    mnl_attr_for_each_nested(attr, data) {
        if (mnl_attr_get_type(attr) == NFTA_COUNTER_PACKETS)
            element->packets = read_be64(attr);
        if (mnl_attr_get_type(attr) == NFTA_COUNTER_BYTES)
            element->bytes = read_be64(attr);
    }
}

static void take_expression(const struct nlattr *expression, struct nftset_element *element) {
    const struct nlattr *attr, *data = NULL;
    char name[16] = "";
    mnl_attr_for_each_nested(attr, expression) {
        if (mnl_attr_get_type(attr) == NFTA_EXPR_NAME) {
            size_t len = mnl_attr_get_payload_len(attr);
            memcpy(name, mnl_attr_get_payload(attr), len < sizeof name ? len : sizeof name - 1);
        }
        if (mnl_attr_get_type(attr) == NFTA_EXPR_DATA)
            data = attr;
    }
    if (data && strcmp(name, "counter") == 0)
        take_counter(data, element);
}

static void take_key(const struct nlattr *nest, struct nftset_element *element) {
    const struct nlattr *attr;
    mnl_attr_for_each_nested(attr, nest) {
        size_t len = mnl_attr_get_payload_len(attr);
        if (mnl_attr_get_type(attr) != NFTA_DATA_VALUE || len > sizeof element->key.data)
            continue;
        memcpy(element->key.data, mnl_attr_get_payload(attr), len);
        element->key.len = len;
    }
}

static void take_element(const struct nlattr *nest, const struct talk *talk) {
    struct nftset_element element = {0};
    const struct nlattr *attr, *expression;
    mnl_attr_for_each_nested(attr, nest) {
        switch (mnl_attr_get_type(attr)) {
        case NFTA_SET_ELEM_KEY:
            take_key(attr, &element);
            break;
        case NFTA_SET_ELEM_EXPR:
            take_expression(attr, &element);
            break;
        case NFTA_SET_ELEM_EXPRESSIONS:
            mnl_attr_for_each_nested(expression, attr) take_expression(expression, &element);
            break;
        }
    }
    if (element.key.len && talk->each)
        talk->each(&element, talk->data);
}

static void take_elements(const struct nlmsghdr *nlh, const struct talk *talk) {
    const struct nlattr *attr, *element;
    if (nlh->nlmsg_type != (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM) ||
        mnl_nlmsg_get_payload_len(nlh) < sizeof(struct nfgenmsg))
        return;
    mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg)) {
        if (mnl_attr_get_type(attr) == NFTA_SET_ELEM_LIST_ELEMENTS)
            mnl_attr_for_each_nested(element, attr) take_element(element, talk);
    }
}

/* Return: 1 to read on, 0 when all is answered, -errno. A batch that was refused as a whole is answered at its first
 * message, one of its messages at that message, and all of it at its last one. */
static int take_message(const struct nlmsghdr *nlh, struct talk *talk) {
    int32_t error = 0;
    if (nlh->nlmsg_type == NLMSG_DONE)
        return 0;
    if (nlh->nlmsg_type != NLMSG_ERROR) {
        talk->rules += nlh->nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE);
        take_elements(nlh, talk);
        return 1;
    }
    if (mnl_nlmsg_get_payload_len(nlh) < sizeof error)
        return -EBADMSG;
    memcpy(&error, mnl_nlmsg_get_payload(nlh), sizeof error);
    if (error && !talk->errnum)
        talk->errnum = error < 0 && error > -4096 ? -error : EPROTO;
    bool over = nlh->nlmsg_seq == talk->last || (error && nlh->nlmsg_seq == talk->first);
    return over ? 0 : 1;
}

static int converse(struct nftset *nftset, const void *request, size_t len, struct talk *talk) {
    if (mnl_socket_sendto(nftset->socket, request, len) < 0)
        return -errno;
    for (;;) {
        ssize_t n = mnl_socket_recvfrom(nftset->socket, nftset->reply, sizeof nftset->reply);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? -ETIMEDOUT : -errno;
        int left = (int)n; /* NLMSG_OK: see rtnl.c */
        for (const struct nlmsghdr *nlh = (void *)nftset->reply; NLMSG_OK(nlh, left);
             nlh = mnl_nlmsg_next(nlh, &left)) {
            if (nlh->nlmsg_seq - talk->first > talk->last - talk->first) /* of a request that we gave up */
                continue;
            int r = take_message(nlh, talk);
            if (r <= 0)
                return r < 0 ? r : -talk->errnum;
        }
    }
}

int nftset_apply(struct nftset *nftset, const struct nftset_change *changes, size_t count, struct err *err) {
    _Alignas(struct nlmsghdr) char batch[BATCH_SIZE];
    size_t used = 0;
    if (count == 0)
        return 0;
    if (count > NFTSET_CHANGES_MAX)
        return err_sys(err, E2BIG, "nft.refused", "change %zu elements at once", count);
    uint32_t sequence = nftset->sequence + 1;
    struct talk talk = {.first = sequence, .last = sequence + (uint32_t)count};
    used += put_header(batch, NFNL_MSG_BATCH_BEGIN, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, sequence)->nlmsg_len;
    for (size_t i = 0; i < count; i++) {
        const struct nftset_change *c = &changes[i];
        uint16_t flags = (uint16_t)((c->remove ? 0 : NLM_F_CREATE) | (i + 1 == count ? NLM_F_ACK : 0));
        if (strlen(c->table) > NFT_TABLE_MAXNAMELEN / 4 || strlen(c->set) > NFT_SET_MAXNAMELEN / 4)
            return err_sys(err, ENAMETOOLONG, "nft.refused", "change elements");
        struct nlmsghdr *nlh = put_request(batch + used, c->remove ? NFT_MSG_DELSETELEM : NFT_MSG_NEWSETELEM, flags,
                                           c->family, c->table, c->set, ++sequence);
        put_key(nlh, &c->key);
        used += nlh->nlmsg_len;
    }
    used += put_header(batch + used, NFNL_MSG_BATCH_END, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, ++sequence)->nlmsg_len;
    nftset->sequence = sequence;
    int r = converse(nftset, batch, used, &talk);
    return r < 0 ? err_sys(err, -r, "nft.refused", "change elements of nftables sets") : 0;
}

static void keep_element(const struct nftset_element *element, void *data) {
    *(struct nftset_element *)data = *element;
}

int nftset_get(struct nftset *nftset, uint8_t family, const char *table, const char *set, const struct nftset_key *key,
               struct nftset_element *ret, struct err *err) {
    _Alignas(struct nlmsghdr) char request[1024];
    struct nftset_element element = {0};
    uint32_t sequence = ++nftset->sequence;
    struct talk talk = {.first = sequence, .last = sequence, .each = keep_element, .data = &element};
    struct nlmsghdr *nlh = put_request(request, NFT_MSG_GETSETELEM, NLM_F_ACK, family, table, set, sequence);
    put_key(nlh, key);
    int r = converse(nftset, nlh, nlh->nlmsg_len, &talk);
    if (r == 0 && element.key.len == 0)
        r = -ENOENT;
    if (r < 0)
        return err_sys(err, -r, "nft.refused", "read an element of set %s", set);
    *ret = element;
    return 0;
}

int nftset_each(struct nftset *nftset, uint8_t family, const char *table, const char *set, each_element *each,
                void *data, struct err *err) {
    _Alignas(struct nlmsghdr) char request[1024];
    uint32_t sequence = ++nftset->sequence;
    struct talk talk = {.first = sequence, .last = sequence, .each = each, .data = data};
    struct nlmsghdr *nlh = put_request(request, NFT_MSG_GETSETELEM, NLM_F_DUMP, family, table, set, sequence);
    int r = converse(nftset, nlh, nlh->nlmsg_len, &talk);
    return r < 0 ? err_sys(err, -r, "nft.refused", "read set %s", set) : 0;
}

int nftset_count_rules(struct nftset *nftset, uint8_t family, const char *table, const char *chain, uint32_t *ret_count,
                       struct err *err) {
    _Alignas(struct nlmsghdr) char request[1024];
    uint32_t sequence = ++nftset->sequence;
    struct talk talk = {.first = sequence, .last = sequence};
    struct nlmsghdr *nlh =
        put_header(request, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE), NLM_F_DUMP, family, 0, sequence);
    mnl_attr_put_strz(nlh, NFTA_RULE_TABLE, table);
    mnl_attr_put_strz(nlh, NFTA_RULE_CHAIN, chain);
    int r = converse(nftset, nlh, nlh->nlmsg_len, &talk);
    if (r < 0 && r != -ENOENT)
        return err_sys(err, -r, "nft.refused", "read chain %s", chain);
    *ret_count = r < 0 ? 0 : talk.rules;
    return 0;
}

/* --- hearing of changes --- */

int nftset_watch_open(int nsfd, int *ret_fd, struct err *err) {
    struct sockaddr_nl addr = {.nl_family = AF_NETLINK, .nl_groups = 1U << (NFNLGRP_NFTABLES - 1)};
    int size = WATCH_BUFFER;
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_NETFILTER, &fd);
    if (r < 0)
        return err_sys(err, -r, "nft.unavailable", "open an nftables socket");
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0)
        return err_sys(err, errno, "nft.unavailable", "listen to changes of nftables");
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* Every kind of nftables message has its table's name as attribute 1. */
static bool is_of_table(const struct nlmsghdr *nlh, const char *table) {
    const struct nlattr *attr;
    if (nlh->nlmsg_type >> 8 != NFNL_SUBSYS_NFTABLES || (nlh->nlmsg_type & 0xff) == NFT_MSG_NEWGEN ||
        mnl_nlmsg_get_payload_len(nlh) < sizeof(struct nfgenmsg))
        return false;
    mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg)) {
        size_t len = mnl_attr_get_payload_len(attr);
        if (mnl_attr_get_type(attr) == NFTA_TABLE_NAME)
            return len == strlen(table) + 1 && memcmp(mnl_attr_get_payload(attr), table, len) == 0;
    }
    return false;
}

bool nftset_watch_read(int fd, const char *table, const struct nftset *self) {
    _Alignas(struct nlmsghdr) char data[REPLY_SIZE];
    uint32_t own = self ? mnl_socket_get_portid(self->socket) : 0;
    bool changed = false;
    for (;;) {
        ssize_t n = recv(fd, data, sizeof data, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == ENOBUFS) {
            changed = true;
            continue;
        }
        if (n <= 0)
            return changed;
        int left = (int)n;
        for (const struct nlmsghdr *nlh = (void *)data; NLMSG_OK(nlh, left); nlh = mnl_nlmsg_next(nlh, &left))
            changed = changed || (nlh->nlmsg_pid != own && is_of_table(nlh, table));
    }
}
