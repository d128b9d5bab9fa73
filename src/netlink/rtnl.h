/* rtnetlink: one socket in one namespace, requests, dumps. The nouns (link.h, addr.h, route.h, neigh.h) build the
 * messages; nobody else needs to.
 *
 * Every request is acknowledged, and a refusal carries the kernel's own words (extended ACK) in the error. Dumps are
 * strict. One thread at a time uses a socket: the owner locks.
 *
 * Errors of every function that speaks to the kernel: "netlink.refused" with the kernel's errno; "netlink.failed" for
 * the conversation itself (-ETIMEDOUT: no answer within 5 s; -EBUSY: a dump was interrupted by changes too often).
 *
 * Source: rtnetlink(7), Documentation/userspace-api/netlink/intro.rst.
 */
#pragma once

#include <linux/netlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RTNL_MSG_SIZE 2048

struct rtnl;

/* Opens a socket in a namespace (netns.h). The caller closes it. */
int rtnl_open(int nsfd, struct rtnl **ret, struct err *err);
void rtnl_close(struct rtnl *rtnl);
void rtnl_closep(struct rtnl **rtnl);
#define _cleanup_rtnl_close_ __attribute__((cleanup(rtnl_closep)))

/* A request in the making. What does not fit is noticed when it is sent (-EMSGSIZE). */
struct rtnl_msg {
    _Alignas(struct nlmsghdr) char data[RTNL_MSG_SIZE];
    bool overflow;
};

/* Begins a message. Return: the zeroed family header of header_size bytes (struct ifinfomsg and so on). */
void *rtnl_msg_begin(struct rtnl_msg *msg, uint16_t type, uint16_t flags, size_t header_size);

void rtnl_put(struct rtnl_msg *msg, uint16_t type, const void *data, size_t len);
void rtnl_put_u8(struct rtnl_msg *msg, uint16_t type, uint8_t value);
void rtnl_put_u32(struct rtnl_msg *msg, uint16_t type, uint32_t value);
void rtnl_put_text(struct rtnl_msg *msg, uint16_t type, const char *text); /* with its NUL */
void rtnl_put_ip(struct rtnl_msg *msg, uint16_t type, uint32_t ip);        /* host byte order, as everywhere */

/* A nested attribute: what is put between begin and end is inside it. */
struct nlattr *rtnl_nest_begin(struct rtnl_msg *msg, uint16_t type);
void rtnl_nest_end(struct rtnl_msg *msg, struct nlattr *nest);

/* Reads one reply message into an item. Must survive anything: a reply is input.
 * Return: 1 to keep the item, 0 to skip it, -errno. */
typedef int rtnl_parse(const struct nlmsghdr *nlh, void *ret_item);

/* Sends a change and waits for its acknowledgement. */
int rtnl_change(struct rtnl *rtnl, struct rtnl_msg *msg, struct err *err);

/* Sends a question that has one answer. Error also: "netlink.failed" -EBADMSG when parse takes none. */
int rtnl_ask(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_parse *parse, void *ret_item, struct err *err);

/* What a dump is collected into: zero-initialise with item_size and max set; the caller frees items. */
struct rtnl_list {
    char *items;
    size_t count, cap;
    size_t item_size; /* bytes */
    size_t max;       /* items; more is -E2BIG */
};

/* Sends a dump request and collects every item that parse keeps. A dump during which the tables changed
 * (NLM_F_DUMP_INTR) or that overran the socket (ENOBUFS) is thrown away and made again, a few times. */
int rtnl_dump(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_parse *parse, struct rtnl_list *list, struct err *err);

/* Calls each(attribute, data) for the well-formed attributes at `data`, `len` bytes. */
void rtnl_each_attr(const void *attrs, size_t len, void (*each)(const struct nlattr *attr, void *data), void *data);

/* The same for those nested in an attribute. */
void rtnl_each_nested(const struct nlattr *nest, void (*each)(const struct nlattr *attr, void *data), void *data);

/* The same for those behind the family header of a message. Return: the header, or NULL when the message is too short
 * to hold one (nothing is called then). */
const void *rtnl_each_msg_attr(const struct nlmsghdr *nlh, size_t header_size,
                               void (*each)(const struct nlattr *attr, void *data), void *data);

/* Values of an attribute; what is absent or too short is 0. Text is cut to dst and always terminated. */
uint8_t rtnl_attr_u8(const struct nlattr *attr);
uint32_t rtnl_attr_u32(const struct nlattr *attr);
uint32_t rtnl_attr_ip(const struct nlattr *attr);
void rtnl_attr_text(const struct nlattr *attr, char *dst, size_t dst_size);
