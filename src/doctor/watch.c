/* Waits for the kernel to say that something changed, lets it settle for a moment, looks again. */
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/time.h"
#include "doctor/doctor.h"
#include "netlink/netns.h"

#define SETTLE_MS 60
#define SETTLE_MAX_MS 400
#define RECEIVE_BUFFER (1024 * 1024)

static int subscribe(int nsfd, int protocol, const int *groups, size_t count, int *ret_fd) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    int size = RECEIVE_BUFFER;
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, protocol, &fd);
    if (r < 0)
        return r;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    for (size_t i = 0; i < count; i++)
        if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &groups[i], sizeof groups[i]) < 0)
            return -errno;
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* Lost messages are a change as well. Return: whether there was anything. */
static bool drain(int fd) {
    char buffer[32768];
    bool any = false;
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (n < 0 && errno != ENOBUFS)
            return any;
        any = true;
    }
}

/* Waits for a change and then until there is none for a moment. Return: 0 or -errno. */
static int wait_for_change(struct pollfd *fds, nfds_t count) {
    if (poll(fds, count, -1) < 0)
        return -errno;
    int64_t end_ms = time_monotonic_ms() + SETTLE_MAX_MS;
    int r = 1;
    while (r > 0 && time_monotonic_ms() < end_ms) {
        for (nfds_t i = 0; i < count; i++)
            drain(fds[i].fd);
        r = poll(fds, count, SETTLE_MS);
    }
    return r < 0 ? -errno : 0;
}

/* The findings as one number: enough to tell whether they are others than before. FNV-1a. */
static uint64_t digest(const struct doctor_case *c) {
    uint64_t hash = 14695981039346656037ULL;
    for (uint32_t i = 0; i < c->count; i++)
        for (uint32_t f = 0; f < c->judgements[i].findings_count; f++) {
            const struct finding *one = &c->judgements[i].findings[f];
            const char *parts[] = {c->targets[i].tap, one->id, one->title};
            for (size_t p = 0; p < sizeof parts / sizeof *parts; p++)
                for (const char *at = parts[p]; *at; at++)
                    hash = (hash ^ (unsigned char)*at) * 1099511628211ULL;
        }
    return hash;
}

static int follow(const struct doctor_options *first, struct pollfd *fds,
                  bool (*told)(const struct doctor_case *c, void *data), void *data, struct err *err) {
    struct doctor_options options = *first;
    uint64_t last = 0;
    for (bool begun = false;; begun = true) {
        _cleanup_doctor_case_ struct doctor_case *c = NULL;
        int r = doctor_run(&options, &c, err);
        if (r < 0)
            return r;
        uint64_t now = digest(c);
        if ((!begun || now != last) && !told(c, data))
            return err_set(err, EPIPE, "doctor.failed", "nobody listens any more");
        last = now;
        options.no_probe = true;
        if (!begun)
            for (int i = 0; i < 2; i++)
                drain(fds[i].fd); /* what the probe itself did */
        r = wait_for_change(fds, 2);
        if (r < 0)
            return err_sys(err, -r, "doctor.failed", "wait for a change");
    }
}

int doctor_watch(const struct doctor_options *options, bool (*told)(const struct doctor_case *c, void *data),
                 void *data, struct err *err) {
    static const int route_groups[] = {RTNLGRP_LINK,      RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
                                       RTNLGRP_IPV4_RULE, RTNLGRP_TC,          RTNLGRP_IPV4_NETCONF};
    static const int nft_groups[] = {NFNLGRP_NFTABLES};
    _cleanup_close_ int nsfd = -1, route = -1, nft = -1;
    int r = netns_open(options->netns, &nsfd, err);
    if (r < 0)
        return r;
    r = subscribe(nsfd, NETLINK_ROUTE, route_groups, sizeof route_groups / sizeof *route_groups, &route);
    if (r == 0)
        r = subscribe(nsfd, NETLINK_NETFILTER, nft_groups, 1, &nft);
    if (r < 0)
        return err_sys(err, -r, "doctor.failed", "follow the kernel's changes");
    struct pollfd fds[] = {{.fd = route, .events = POLLIN}, {.fd = nft, .events = POLLIN}};
    return follow(options, fds, told, data, err);
}
