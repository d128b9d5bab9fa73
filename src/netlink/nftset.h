/* Elements of nftables sets by netlink messages of our own: no text is parsed, so adding a VM costs tens of microseconds
 * where libnftables (nft.h) would first read the whole ruleset. Sets and rules themselves are text's work.
 *
 * One thread at a time uses a socket: the owner locks.
 *
 * Errors: "nft.unavailable", "nft.refused" with the kernel's errno: -ENOENT means that table, set or element is not there.
 *
 * Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; net/netfilter/nfnetlink.c for when a batch is
 * answered.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define NFTSET_KEY_MAX 64     /* bytes of a key, every part of it padded to four */
#define NFTSET_CHANGES_MAX 64 /* in one transaction */
#define NFTSET_ELEMENTS_MAX 65536

struct nftset;

/* Opens a socket in a namespace (netns.h). The caller closes it. */
int nftset_open(int nsfd, struct nftset **ret, struct err *err);
void nftset_close(struct nftset *nftset);

/* A key as the kernel keeps it. Zero-initialise; the parts in the order of the set's type. */
struct nftset_key {
    uint8_t data[NFTSET_KEY_MAX];
    size_t len;
};

/* Adds a part: an interface's name as 16 bytes with NULs, everything else in network byte order. */
void nftset_key_add(struct nftset_key *key, const void *part, size_t len);

struct nftset_change {
    bool remove;
    uint8_t family; /* NFPROTO_BRIDGE and so on */
    const char *table, *set;
    struct nftset_key key;
};

/* nft add element …, delete element …: all of them or none. An element that is there already stays as it is, with its
 * counters; a new one gets the set's own statements (counter, limit). */
int nftset_apply(struct nftset *nftset, const struct nftset_change *changes, size_t count, struct err *err);

struct nftset_element {
    struct nftset_key key;
    uint64_t packets, bytes; /* of its counter; 0 without one */
};

/* nft get element: one, by its key. Errors also: -ENOENT. */
int nftset_get(struct nftset *nftset, uint8_t family, const char *table, const char *set, const struct nftset_key *key,
               struct nftset_element *ret, struct err *err);

/* nft list set: calls each() for every element. */
int nftset_each(struct nftset *nftset, uint8_t family, const char *table, const char *set,
                void (*each)(const struct nftset_element *element, void *data), void *data, struct err *err);

/* nft list chain, counted: how many rules it has; 0 too where there is no such chain. */
int nftset_count_rules(struct nftset *nftset, uint8_t family, const char *table, const char *chain, uint32_t *ret_count,
                       struct err *err);

/* A socket that hears of every change to nftables in a namespace: non-blocking, the caller's. */
int nftset_watch_open(int nsfd, int *ret_fd, struct err *err);

/* Reads what a watch has heard. Return: whether something of a table of this name was changed by another socket than
 * `self` (NULL: whoever's), or that may be so because messages were lost. */
bool nftset_watch_read(int fd, const char *table, const struct nftset *self);
