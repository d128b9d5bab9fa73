/* One doctor at a time in a network namespace. Two that ask at once disturb each other: one's canary is a port to the
 * other, each forgets the neighbour entry whose answer the other waits for, and both may choose the same free address.
 *
 * A name in the abstract namespace of unix sockets belongs to a network namespace, needs no file and no privilege, and
 * goes with the process. Source: unix(7). */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/time.h"
#include "doctor/probe/probe.h"
#include "netlink/netns.h"

#define TURN_NAME "master-controller doctor"
#define TURN_LOOK_MS 10

int probe_turn_take(int nsfd, int wait_ms, int *ret_fd) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int64_t end_ms = time_monotonic_ms() + wait_ms;
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_UNIX, SOCK_DGRAM, 0, &fd);
    if (r < 0)
        return r;
    memcpy(address.sun_path + 1, TURN_NAME, sizeof TURN_NAME - 1);
    socklen_t len = offsetof(struct sockaddr_un, sun_path) + sizeof TURN_NAME;
    while (bind(fd, (const struct sockaddr *)&address, len) < 0) {
        if (errno != EADDRINUSE)
            return -errno;
        if (time_monotonic_ms() >= end_ms)
            return -EBUSY;
        usleep(TURN_LOOK_MS * 1000);
    }
    *ret_fd = fd_steal(&fd);
    return 0;
}
