/* Netlink by hand: libmnl has no static library in Debian. Requests of one kind at a time, on a socket of their own. */
#pragma once

#include <linux/netlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NL_MSG_SIZE 512

struct nl_msg {
    _Alignas(struct nlmsghdr) char data[NL_MSG_SIZE];
};

/* Begins a message. Return: the zeroed family header. */
void *nl_begin(struct nl_msg *msg, uint16_t type, uint16_t flags, size_t header_size);
/* Messages here are a few dozen bytes: what does not fit is a mistake of ours, and is left out. */
void nl_put(struct nl_msg *msg, uint16_t type, const void *data, size_t len);

/* Asks for a table and calls each() for every message. Return: 0 or -errno. */
typedef void nl_each(const struct nlmsghdr *message, void *data);
int nl_dump(int protocol, struct nl_msg *msg, nl_each *each, void *data);

/* Makes a change and waits for its acknowledgement. Return: 0 or -errno. */
int nl_change(int protocol, struct nl_msg *msg);

/* The attributes behind the family header of a message. */
struct nl_attrs {
    const char *at;
    size_t len;
};
struct nl_attrs nl_attrs_of(const struct nlmsghdr *message, size_t header_size);

/* Walks. Return: whether there was one more. */
bool nl_next(struct nl_attrs *attrs, uint16_t *ret_type, const void **ret_data, size_t *ret_len);

/* Return: the attribute's value of at least `min` bytes, or NULL. */
const void *nl_find(struct nl_attrs attrs, uint16_t type, size_t min, size_t *ret_len);
const char *nl_text(struct nl_attrs attrs, uint16_t type); /* "" without one */
uint32_t nl_u32(struct nl_attrs attrs, uint16_t type);     /* 0 without one */
uint32_t nl_be32(struct nl_attrs attrs, uint16_t type);
uint64_t nl_be64(struct nl_attrs attrs, uint16_t type);
struct nl_attrs nl_nest(struct nl_attrs attrs, uint16_t type);
