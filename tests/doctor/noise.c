/* A kernel that changes while it is read: of the datagrams of netlink dumps that a program receives, each NOISE-th is one of
 * a dump that was interrupted (NLM_F_DUMP_INTR), or the socket has overrun (ENOBUFS), in turn. For LD_PRELOAD. */
#include <dlfcn.h>
#include <errno.h>
#include <linux/netlink.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>

typedef ssize_t receive(int fd, struct msghdr *msg, int flags);

static bool is_netlink(int fd) {
    int domain = 0;
    socklen_t size = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_NETLINK;
}

ssize_t recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t recvmsg(int fd, struct msghdr *msg, int flags) {
    static atomic_uint count;
    receive *real = (receive *)dlsym(RTLD_NEXT, "recvmsg");
    const char *text = getenv("NOISE");
    unsigned int every = text ? (unsigned int)atoi(text) : 0;
    struct nlmsghdr *nlh = msg->msg_iovlen ? msg->msg_iov[0].iov_base : NULL;
    if (!every || !nlh || (flags & MSG_PEEK) || !is_netlink(fd))
        return real(fd, msg, flags);
    struct msghdr look = *msg; /* an overrun is told before what is there, and takes none of it */
    ssize_t n = real(fd, &look, flags | MSG_PEEK);
    bool dump = n >= (ssize_t)sizeof *nlh && (nlh->nlmsg_flags & NLM_F_MULTI);
    unsigned int now = dump ? ++count : 1;
    bool hit = dump && now % every == 0, overrun = hit && now / every % 2 == 0;
    static _Thread_local bool told; /* once: the next one is read */
    if (overrun && !told) {
        told = true;
        errno = ENOBUFS;
        return -1;
    }
    told = false;
    n = real(fd, msg, flags);
    if (hit && n >= (ssize_t)sizeof *nlh)
        nlh->nlmsg_flags |= NLM_F_DUMP_INTR;
    return n;
}
