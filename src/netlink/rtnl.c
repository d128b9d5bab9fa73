#include "netlink/rtnl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "netlink/netns.h"

#define REPLY_SIZE 32768 /* the kernel fills at most this much at once in a dump: MNL_SOCKET_DUMP_SIZE */
#define RECEIVE_BUFFER (1024 * 1024)
#define ANSWER_TIMEOUT_S 5
#define DUMP_ATTEMPTS 20

struct rtnl {
    struct mnl_socket *socket;
    uint32_t sequence;
    char reply[REPLY_SIZE];
};

static void set_options(int fd) {
    int on = 1, size = RECEIVE_BUFFER;
    struct timeval timeout = {.tv_sec = ANSWER_TIMEOUT_S};
    /* An old kernel without one of these still answers, in fewer words. */
    setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
    setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

int rtnl_open(int nsfd, struct rtnl **ret, struct err *err) {
    struct rtnl *rtnl = calloc(1, sizeof *rtnl);
    if (!rtnl)
        return err_sys(err, ENOMEM, "netlink.failed", "open an rtnetlink socket");
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE, &fd);
    if (r == 0) {
        set_options(fd);
        rtnl->socket = mnl_socket_fdopen(fd);
        if (rtnl->socket)
            fd_steal(&fd);
        if (!rtnl->socket || mnl_socket_bind(rtnl->socket, 0, MNL_SOCKET_AUTOPID) < 0)
            r = -errno;
    }
    if (r < 0) {
        rtnl_close(rtnl);
        return err_sys(err, -r, "netlink.failed", "open an rtnetlink socket");
    }
    *ret = rtnl;
    return 0;
}

void rtnl_close(struct rtnl *rtnl) {
    if (!rtnl)
        return;
    if (rtnl->socket)
        mnl_socket_close(rtnl->socket);
    free(rtnl);
}

void rtnl_closep(struct rtnl **rtnl) {
    rtnl_close(*rtnl);
}

static struct nlmsghdr *header(struct rtnl_msg *msg) {
    return (struct nlmsghdr *)msg->data;
}

void *rtnl_msg_begin(struct rtnl_msg *msg, uint16_t type, uint16_t flags, size_t header_size) {
    msg->overflow = false;
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(msg->data);
    nlh->nlmsg_type = type;
    nlh->nlmsg_flags = NLM_F_REQUEST | flags;
    return mnl_nlmsg_put_extra_header(nlh, header_size);
}

void rtnl_put(struct rtnl_msg *msg, uint16_t type, const void *data, size_t len) {
    if (!mnl_attr_put_check(header(msg), sizeof msg->data, type, len, data))
        msg->overflow = true;
}

void rtnl_put_u8(struct rtnl_msg *msg, uint16_t type, uint8_t value) {
    rtnl_put(msg, type, &value, sizeof value);
}

void rtnl_put_u32(struct rtnl_msg *msg, uint16_t type, uint32_t value) {
    rtnl_put(msg, type, &value, sizeof value);
}

void rtnl_put_text(struct rtnl_msg *msg, uint16_t type, const char *text) {
    rtnl_put(msg, type, text, strlen(text) + 1);
}

void rtnl_put_ip(struct rtnl_msg *msg, uint16_t type, uint32_t ip) {
    rtnl_put_u32(msg, type, htonl(ip));
}

struct nlattr *rtnl_nest_begin(struct rtnl_msg *msg, uint16_t type) {
    struct nlattr *nest = mnl_attr_nest_start_check(header(msg), sizeof msg->data, type);
    if (!nest)
        msg->overflow = true;
    return nest;
}

void rtnl_nest_end(struct rtnl_msg *msg, struct nlattr *nest) {
    if (nest)
        mnl_attr_nest_end(header(msg), nest);
}

/* One conversation: the request's sequence number and what became of it. */
struct talk {
    uint32_t sequence;
    rtnl_parse *parse;
    void *item;             /* of a question; NULL in a dump */
    struct rtnl_list *list; /* of a dump */
    bool taken;             /* a question was answered */
    bool interrupted;       /* NLM_F_DUMP_INTR was seen */
    int failed;             /* -errno of our own; the rest is still read, so that the socket stays usable */
    struct err *err;
};

static int list_room(struct rtnl_list *list) {
    if (list->count >= list->max)
        return -E2BIG;
    if (list->count < list->cap)
        return 0;
    size_t cap = list->cap ? list->cap * 2 : 32;
    char *bigger = reallocarray(list->items, cap, list->item_size);
    if (!bigger)
        return -ENOMEM;
    list->items = bigger;
    list->cap = cap;
    return 0;
}

static void take_message(struct talk *talk, const struct nlmsghdr *nlh) {
    if (talk->failed < 0 || talk->interrupted || !talk->parse || (talk->item && talk->taken))
        return;
    void *at = talk->item;
    if (talk->list) {
        talk->failed = list_room(talk->list);
        if (talk->failed < 0)
            return;
        at = talk->list->items + talk->list->count * talk->list->item_size;
    }
    int r = talk->parse(nlh, at);
    if (r < 0)
        talk->failed = r;
    if (r > 0 && talk->list)
        talk->list->count++;
    if (r > 0)
        talk->taken = true;
}

struct kernel_words {
    char text[256];
};

static void find_words(const struct nlattr *attr, void *data) {
    struct kernel_words *words = data;
    if (mnl_attr_get_type(attr) == NLMSGERR_ATTR_MSG)
        rtnl_attr_text(attr, words->text, sizeof words->text);
}

/* The result of a request: an errno and, behind it, the kernel's words. Return: 0 or -errno. */
static int read_result(const struct nlmsghdr *nlh, size_t fixed, int32_t error, struct err *err) {
    struct kernel_words words = {""};
    size_t len = mnl_nlmsg_get_payload_len(nlh);
    if (error == 0)
        return 0;
    if ((nlh->nlmsg_flags & NLM_F_ACK_TLVS) && len > fixed)
        rtnl_each_attr((const char *)mnl_nlmsg_get_payload(nlh) + fixed, len - fixed, find_words, &words);
    int errnum = error < 0 && error > -4096 ? -error : EPROTO;
    if (!*words.text)
        return err_set(err, errnum, "netlink.refused", "%s", strerror(errnum));
    char shown[sizeof words.text];
    str_escape(words.text, strlen(words.text), shown, sizeof shown);
    return err_set(err, errnum, "netlink.refused", "%s (the kernel says: %s)", strerror(errnum), shown);
}

static int read_error(const struct nlmsghdr *nlh, struct err *err) {
    struct nlmsgerr e;
    if (mnl_nlmsg_get_payload_len(nlh) < sizeof e)
        return err_set(err, EBADMSG, "netlink.failed", "the kernel's answer was cut short");
    memcpy(&e, mnl_nlmsg_get_payload(nlh), sizeof e);
    size_t fixed = sizeof e;
    if (!(nlh->nlmsg_flags & NLM_F_CAPPED) && e.msg.nlmsg_len > sizeof e.msg)
        fixed += MNL_ALIGN(e.msg.nlmsg_len) - sizeof e.msg;
    return read_result(nlh, fixed, e.error, err);
}

static int read_done(const struct nlmsghdr *nlh, struct err *err) {
    int32_t error = 0;
    if (mnl_nlmsg_get_payload_len(nlh) >= sizeof error)
        memcpy(&error, mnl_nlmsg_get_payload(nlh), sizeof error);
    return read_result(nlh, sizeof error, error, err);
}

/* Return: 1 to read on, 0 when the conversation is over, -errno. */
static int read_message(struct talk *talk, const struct nlmsghdr *nlh) {
    if (nlh->nlmsg_flags & NLM_F_DUMP_INTR)
        talk->interrupted = true;
    if (nlh->nlmsg_type == NLMSG_ERROR)
        return read_error(nlh, talk->err);
    if (nlh->nlmsg_type == NLMSG_DONE)
        return read_done(nlh, talk->err);
    if (nlh->nlmsg_type >= NLMSG_MIN_TYPE)
        take_message(talk, nlh);
    return 1;
}

static int read_reply(struct rtnl *rtnl, struct talk *talk) {
    for (;;) {
        ssize_t n = mnl_socket_recvfrom(rtnl->socket, rtnl->reply, sizeof rtnl->reply);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == ENOBUFS && talk->list) {
            talk->interrupted = true;
            continue;
        }
        if (n < 0)
            return err_sys(talk->err, errno == EAGAIN ? ETIMEDOUT : errno, "netlink.failed",
                           "read the kernel's answer");
        int left = (int)n;
        /* Not mnl_nlmsg_ok(): that takes a length above INT_MAX for a negative one, and so for short enough. */
        for (const struct nlmsghdr *nlh = (void *)rtnl->reply; NLMSG_OK(nlh, left); nlh = mnl_nlmsg_next(nlh, &left)) {
            if (nlh->nlmsg_seq != talk->sequence) /* of a request that we gave up */
                continue;
            int r = read_message(talk, nlh);
            if (r <= 0)
                return r;
        }
    }
}

static int converse(struct rtnl *rtnl, struct rtnl_msg *msg, struct talk *talk) {
    struct nlmsghdr *nlh = header(msg);
    if (msg->overflow)
        return err_sys(talk->err, EMSGSIZE, "netlink.failed", "build a request");
    nlh->nlmsg_seq = talk->sequence = ++rtnl->sequence;
    if (mnl_socket_sendto(rtnl->socket, nlh, nlh->nlmsg_len) < 0)
        return err_sys(talk->err, errno, "netlink.failed", "send a request");
    int r = read_reply(rtnl, talk);
    if (r == 0 && talk->failed < 0)
        r = err_sys(talk->err, -talk->failed, "netlink.failed", "take the kernel's answer");
    return r;
}

int rtnl_change(struct rtnl *rtnl, struct rtnl_msg *msg, struct err *err) {
    struct talk talk = {.err = err};
    header(msg)->nlmsg_flags |= NLM_F_ACK;
    return converse(rtnl, msg, &talk);
}

int rtnl_ask(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_parse *parse, void *ret_item, struct err *err) {
    struct talk talk = {.err = err, .parse = parse, .item = ret_item};
    /* With an acknowledgement the end is known whatever the answer looks like. */
    header(msg)->nlmsg_flags |= NLM_F_ACK;
    int r = converse(rtnl, msg, &talk);
    if (r == 0 && !talk.taken)
        r = err_set(err, EBADMSG, "netlink.failed", "the kernel's answer was not understood");
    return r;
}

int rtnl_dump(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_parse *parse, struct rtnl_list *list, struct err *err) {
    header(msg)->nlmsg_flags |= NLM_F_DUMP;
    for (int attempt = 0; attempt < DUMP_ATTEMPTS; attempt++) {
        struct talk talk = {.err = err, .parse = parse, .list = list};
        list->count = 0;
        int r = converse(rtnl, msg, &talk);
        if (r < 0 || !talk.interrupted)
            return r;
        usleep(attempt * 1000U);
    }
    return err_set(err, EBUSY, "netlink.failed", "the kernel's tables changed %d times while they were being read",
                   DUMP_ATTEMPTS);
}

void rtnl_each_attr(const void *attrs, size_t len, void (*each)(const struct nlattr *attr, void *data), void *data) {
    const char *end = (const char *)attrs + len;
    for (const struct nlattr *attr = attrs; mnl_attr_ok(attr, (int)(end - (const char *)attr));
         attr = mnl_attr_next(attr))
        each(attr, data);
}

void rtnl_each_nested(const struct nlattr *nest, void (*each)(const struct nlattr *attr, void *data), void *data) {
    rtnl_each_attr(mnl_attr_get_payload(nest), mnl_attr_get_payload_len(nest), each, data);
}

const void *rtnl_each_msg_attr(const struct nlmsghdr *nlh, size_t header_size,
                               void (*each)(const struct nlattr *attr, void *data), void *data) {
    size_t len = mnl_nlmsg_get_payload_len(nlh);
    const char *payload = mnl_nlmsg_get_payload(nlh);
    if (nlh->nlmsg_len < MNL_NLMSG_HDRLEN || len < header_size)
        return NULL;
    size_t offset = MNL_ALIGN(header_size);
    if (len > offset)
        rtnl_each_attr(payload + offset, len - offset, each, data);
    return payload;
}

uint8_t rtnl_attr_u8(const struct nlattr *attr) {
    return mnl_attr_get_payload_len(attr) >= 1 ? mnl_attr_get_u8(attr) : 0;
}

uint32_t rtnl_attr_u32(const struct nlattr *attr) {
    uint32_t value = 0;
    if (mnl_attr_get_payload_len(attr) >= sizeof value)
        memcpy(&value, mnl_attr_get_payload(attr), sizeof value);
    return value;
}

uint32_t rtnl_attr_ip(const struct nlattr *attr) {
    return ntohl(rtnl_attr_u32(attr));
}

void rtnl_attr_text(const struct nlattr *attr, char *dst, size_t dst_size) {
    size_t len = strnlen(mnl_attr_get_payload(attr), mnl_attr_get_payload_len(attr));
    if (len >= dst_size)
        len = dst_size - 1;
    memcpy(dst, mnl_attr_get_payload(attr), len);
    dst[len] = '\0';
}
