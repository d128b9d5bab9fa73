/* Network namespaces: names under /run/netns as ip-netns(8) keeps them, sockets and sysctls inside one, and going into
 * one for a moment.
 *
 * A namespace is handled as a descriptor. A socket belongs to the namespace in which it was made, for good, so a
 * thread needs to be inside only while it makes one.
 *
 * Source: ip-netns(8), setns(2), network_namespaces(7), mount_namespaces(7).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define NETNS_NAME_MAX 63
#define NETNS_DIR "/run/netns"

/* 1 to 63 of A-Z a-z 0-9 . _ -, not beginning with a dot. */
bool netns_name_is_valid(const char *name);

/* Opens the namespace of that name; "" is the calling thread's own. The caller closes *ret_fd.
 * Errors: "netns.bad-name" -EINVAL; "netns.missing" -ENOENT, also for the empty file that a crash of netns_make() leaves;
 * "netns.not-a-namespace" -ESTALE, something else has that name; "netns.failed". */
int netns_open(const char *name, int *ret_fd, struct err *err);

/* Makes a namespace of that name. `prepare` (may be NULL) is called with it before it has its name, so that nobody,
 * not even after a crash, ever sees it half made. An empty file that a crash left under the name is replaced.
 * Errors: "netns.bad-name" -EINVAL; "netns.exists" -EEXIST; "netns.failed"; what prepare said. Nothing is left then. */
int netns_make(const char *name, int (*prepare)(int nsfd, void *data, struct err *err), void *data, struct err *err);

/* Takes the name away; the namespace itself ends with its last process, socket and descriptor. When /run/netns is then
 * empty, the bind mount of itself that the first namespace needed goes too. A name that does not exist is no error. */
int netns_remove(const char *name, struct err *err);

/* The calling thread inside a namespace. Use it as
 *     _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
 *     r = netns_enter(nsfd, &scope);
 * Entering the namespace in which the thread already is needs no privilege. */
struct netns_scope {
    int home; /* descriptor of the namespace to go back to; -1: nothing to undo */
};
#define NETNS_SCOPE_NONE                                                                                               \
    { .home = -1 }

/* Return: 0 or -errno (-EPERM without CAP_SYS_ADMIN). */
int netns_enter(int nsfd, struct netns_scope *ret_scope);

/* Goes back. The process is aborted when that is impossible: a thread that stays in the wrong namespace would go on
 * to open listeners and connections where nobody expects them. */
void netns_leave(struct netns_scope *scope);
#define _cleanup_netns_leave_ __attribute__((cleanup(netns_leave)))

/* Whether two descriptors mean the same namespace. */
bool netns_is_same(int a, int b);

/* socket(2) in a namespace, close-on-exec. Return: 0 or -errno. */
int netns_socket(int nsfd, int domain, int type, int protocol, int *ret_fd);

/* A sysctl of a namespace, by its path below /proc/sys, such as "net/ipv4/ip_forward". Reading writes the value
 * without its newline to dst. Return: 0 or -errno; -ENOBUFS when dst is too small. */
int netns_sysctl_write(int nsfd, const char *key, const char *value);
int netns_sysctl_read(int nsfd, const char *key, char *dst, size_t dst_size);
