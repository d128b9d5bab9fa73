#include "nl.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/fd.h"

#define MESSAGES_MAX 65536 /* of one dump: a guest may have many routes, but not for ever */

void *nl_begin(struct nl_msg *msg, uint16_t type, uint16_t flags, size_t header_size) {
    memset(msg, 0, sizeof *msg);
    struct nlmsghdr *h = (struct nlmsghdr *)msg->data;
    *h = (struct nlmsghdr){.nlmsg_len = (uint32_t)NLMSG_SPACE(header_size),
                           .nlmsg_type = type,
                           .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags),
                           .nlmsg_seq = 1};
    return msg->data + NLMSG_HDRLEN;
}

void nl_put(struct nl_msg *msg, uint16_t type, const void *data, size_t len) {
    struct nlmsghdr *h = (struct nlmsghdr *)msg->data;
    if (h->nlmsg_len + NLA_HDRLEN + NLA_ALIGN(len) > sizeof msg->data)
        return;
    struct nlattr attr = {.nla_len = (uint16_t)(NLA_HDRLEN + len), .nla_type = type};
    memcpy(msg->data + h->nlmsg_len, &attr, sizeof attr);
    memcpy(msg->data + h->nlmsg_len + NLA_HDRLEN, data, len);
    h->nlmsg_len += (uint32_t)(NLA_HDRLEN + NLA_ALIGN(len));
}

static int send_request(int protocol, const struct nl_msg *msg, int *ret_fd) {
    const struct nlmsghdr *h = (const struct nlmsghdr *)msg->data;
    struct timeval timeout = {.tv_sec = 2};
    _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) < 0 ||
        send(fd, msg->data, h->nlmsg_len, 0) < 0)
        return -errno;
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* Return: 1 to go on, 0 at the end, -errno of the kernel. */
static int take(const struct nlmsghdr *h, nl_each *each, void *data) {
    if (h->nlmsg_type == NLMSG_DONE)
        return 0;
    if (h->nlmsg_type == NLMSG_ERROR) {
        int error = -EIO;
        if (h->nlmsg_len >= NLMSG_LENGTH(sizeof error))
            memcpy(&error, NLMSG_DATA(h), sizeof error);
        return error;
    }
    if (each)
        each(h, data);
    return 1;
}

static int receive(int fd, nl_each *each, void *data) {
    static _Alignas(struct nlmsghdr) char buffer[65536];
    for (int messages = 0; messages < MESSAGES_MAX;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? -ETIMEDOUT : -errno;
        int len = (int)n;
        for (struct nlmsghdr *h = (struct nlmsghdr *)buffer; NLMSG_OK(h, (unsigned)len); h = NLMSG_NEXT(h, len)) {
            messages++;
            int r = take(h, each, data);
            if (r <= 0)
                return r;
        }
    }
    return -E2BIG;
}

int nl_dump(int protocol, struct nl_msg *msg, nl_each *each, void *data) {
    struct nlmsghdr *h = (struct nlmsghdr *)msg->data;
    _cleanup_close_ int fd = -1;
    h->nlmsg_flags |= NLM_F_DUMP;
    int r = send_request(protocol, msg, &fd);
    return r < 0 ? r : receive(fd, each, data);
}

int nl_change(int protocol, struct nl_msg *msg) {
    struct nlmsghdr *h = (struct nlmsghdr *)msg->data;
    _cleanup_close_ int fd = -1;
    h->nlmsg_flags |= NLM_F_ACK;
    int r = send_request(protocol, msg, &fd);
    return r < 0 ? r : receive(fd, NULL, NULL);
}

struct nl_attrs nl_attrs_of(const struct nlmsghdr *message, size_t header_size) {
    size_t skip = NLMSG_SPACE(header_size);
    if (message->nlmsg_len < skip)
        return (struct nl_attrs){0};
    return (struct nl_attrs){(const char *)message + skip, message->nlmsg_len - skip};
}

bool nl_next(struct nl_attrs *attrs, uint16_t *ret_type, const void **ret_data, size_t *ret_len) {
    struct nlattr attr;
    if (attrs->len < sizeof attr)
        return false;
    memcpy(&attr, attrs->at, sizeof attr);
    if (attr.nla_len < NLA_HDRLEN || attr.nla_len > attrs->len)
        return false;
    *ret_type = attr.nla_type & NLA_TYPE_MASK;
    *ret_data = attrs->at + NLA_HDRLEN;
    *ret_len = attr.nla_len - (size_t)NLA_HDRLEN;
    size_t step = NLA_ALIGN(attr.nla_len);
    step = step > attrs->len ? attrs->len : step;
    attrs->at += step;
    attrs->len -= step;
    return true;
}

const void *nl_find(struct nl_attrs attrs, uint16_t type, size_t min, size_t *ret_len) {
    uint16_t found;
    const void *data;
    size_t len;
    while (nl_next(&attrs, &found, &data, &len))
        if (found == type && len >= min) {
            if (ret_len)
                *ret_len = len;
            return data;
        }
    return NULL;
}

const char *nl_text(struct nl_attrs attrs, uint16_t type) {
    size_t len;
    const char *text = nl_find(attrs, type, 1, &len);
    return text && text[len - 1] == '\0' ? text : "";
}

uint32_t nl_u32(struct nl_attrs attrs, uint16_t type) {
    const void *data = nl_find(attrs, type, sizeof(uint32_t), NULL);
    uint32_t value = 0;
    if (data)
        memcpy(&value, data, sizeof value);
    return value;
}

uint32_t nl_be32(struct nl_attrs attrs, uint16_t type) {
    return be32toh(nl_u32(attrs, type));
}

uint64_t nl_be64(struct nl_attrs attrs, uint16_t type) {
    const void *data = nl_find(attrs, type, sizeof(uint64_t), NULL);
    uint64_t value = 0;
    if (data)
        memcpy(&value, data, sizeof value);
    return be64toh(value);
}

struct nl_attrs nl_nest(struct nl_attrs attrs, uint16_t type) {
    size_t len = 0;
    const void *data = nl_find(attrs, type, 0, &len);
    return (struct nl_attrs){data, data ? len : 0};
}
