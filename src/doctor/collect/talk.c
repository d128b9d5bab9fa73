#include <errno.h>
#include <libmnl/libmnl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/fd.h"
#include "doctor/collect/collect.h"
#include "netlink/netns.h"

#define ATTEMPTS 10
#define BUFFER_SIZE 65536

struct round {
    const struct collect_dump *dump;
    int failed;
    bool interrupted;
};

static int take(const struct nlmsghdr *nlh, void *data) {
    struct round *round = data;
    if (nlh->nlmsg_flags & NLM_F_DUMP_INTR)
        round->interrupted = true;
    if (round->failed == 0)
        round->failed = round->dump->each(nlh, round->dump->data);
    return MNL_CB_OK;
}

static int read_all(struct mnl_socket *socket, uint32_t sequence, char *buffer, struct round *round) {
    for (;;) {
        ssize_t n = mnl_socket_recvfrom(socket, buffer, BUFFER_SIZE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        int r = mnl_cb_run(buffer, (size_t)n, sequence, mnl_socket_get_portid(socket), take, round);
        if (r < 0 && errno == EINTR) { /* libmnl's word for NLM_F_DUMP_INTR */
            round->interrupted = true;
            return 0;
        }
        if (r < 0)
            return -errno;
        if (r == MNL_CB_STOP)
            return 0;
    }
}

static int open_socket(const struct collect_dump *dump, struct mnl_socket **ret) {
    _cleanup_close_ int fd = -1;
    struct timeval timeout = {.tv_sec = 5};
    int size = 4 * 1024 * 1024;
    int r = netns_socket(dump->nsfd, AF_NETLINK, SOCK_RAW, dump->protocol, &fd);
    if (r < 0)
        return r;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    struct mnl_socket *socket = mnl_socket_fdopen(fd);
    if (!socket)
        return -ENOMEM;
    fd_steal(&fd);
    if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0) {
        r = -errno;
        mnl_socket_close(socket);
        return r;
    }
    *ret = socket;
    return 0;
}

/* A socket of its own each time: what an interrupted dump still sends goes with it. */
static int run_once(const struct collect_dump *dump, struct nlmsghdr *nlh, char *buffer, struct round *round) {
    static uint32_t sequence;
    struct mnl_socket *socket = NULL;
    int r = open_socket(dump, &socket);
    if (r < 0)
        return r;
    nlh->nlmsg_seq = ++sequence;
    r = mnl_socket_sendto(socket, nlh, nlh->nlmsg_len) < 0 ? -errno : read_all(socket, nlh->nlmsg_seq, buffer, round);
    mnl_socket_close(socket);
    return r < 0 ? r : round->failed;
}

int collect_dump_run(const struct collect_dump *dump, struct nlmsghdr *nlh) {
    _cleanup_free_ char *buffer = malloc(BUFFER_SIZE);
    if (!buffer)
        return -ENOMEM;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        struct round round = {.dump = dump};
        int r = run_once(dump, nlh, buffer, &round);
        if (r != -ENOBUFS && !round.interrupted)
            return r;
        if (dump->restart)
            dump->restart(dump->data);
        usleep((useconds_t)attempt * 2000);
    }
    return -EBUSY;
}
