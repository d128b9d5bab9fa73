/* The canary: a TAP of our own on the bridge under test. It behaves as a guest would, in user space: asks, answers ARP
 * for its address and echo requests to it. It is never made persistent, so it goes with the process.
 *
 * It must change nothing for the others on the bridge: its MTU is the bridge's (a smaller one would lower the bridge's),
 * its MAC is the highest there is (a bridge whose MAC is not pinned takes the lowest of its ports'), a bridge without a
 * port gets none, nor one that runs STP (a topology change for all, and 30 s of waiting). */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/probe/internal.h"
#include "netlink/link.h"
#include "netlink/tun.h"

#define TRIES_MAX 200 /* addresses looked at */

static bool is_taken(const struct probe_request *request, uint32_t ip) {
    struct net_prefix bridge = request->bridge_address;
    uint32_t mask = net_mask(bridge.length), low = ip & 0xff;
    if (!net_contains(bridge, ip) || ip == bridge.address || (ip & ~mask) == 0 || (ip | mask) == UINT32_MAX ||
        low == 0 || low == 255)
        return true;
    for (size_t i = 0; i < request->taken_count; i++)
        if (request->taken[i] == ip)
            return true;
    for (size_t i = 0; i < request->target_count; i++)
        if (request->targets[i].guest_ip == ip)
            return true;
    return false;
}

uint32_t canary_choose(const struct probe_request *request, uint32_t after) {
    /* From the top down: addresses are mostly given from the bottom up. A guest whose mask is too narrow still answers
     * a neighbour in its own /24. */
    uint32_t near = request->bridge_address.address;
    if (request->target_count && request->targets[0].guest_ip)
        near = request->targets[0].guest_ip;
    if (request->bridge_address.address == 0 || !net_contains(request->bridge_address, near))
        return 0;
    uint32_t first = (near & 0xffffff00) | 254;
    if (request->bridge_address.length > 24) /* the last but one of the network */
        first = (near | ~net_mask(request->bridge_address.length)) - 1;
    uint32_t ip = after ? after - 1 : first;
    for (int tries = 0; tries < TRIES_MAX && (ip & 0xffffff00) == (near & 0xffffff00); tries++, ip--)
        if (!is_taken(request, ip))
            return ip;
    return 0;
}

static int refuse(struct probe_canary *ret, int r, const char *why) {
    str_copy(ret->why_not, sizeof ret->why_not, why);
    return r;
}

static int attach(const struct probe_request *request, struct rtnl *rtnl, const char *name, struct probe_canary *ret,
                  struct err *err) {
    struct link link;
    struct net_mac mac = {{0xfe, 0xff, 0xff}};
    int r = link_get_by_name(rtnl, name, &link, err);
    if (r < 0)
        return r;
    getrandom(mac.byte + 3, 3, GRND_NONBLOCK);
    link_ipv6_autoconf_off(rtnl, link.index, NULL);
    r = link_set(rtnl, link.index,
                 &(struct link_change){.mac = &mac, .mtu = request->bridge_mtu, .alias = "master-controller doctor"},
                 err);
    if (r == 0)
        r = link_set(rtnl, link.index, &(struct link_change){.master = request->bridge, .up = true}, err);
    ret->ifindex = link.index;
    /* The guest at the other end of the canary's cable has a MAC of its own: the TAP's belongs to the host. */
    memcpy(mac.byte, (const uint8_t[])NET_CANARY_MAC, 3);
    ret->mac = mac;
    return r;
}

int canary_make(const struct probe_request *request, struct rtnl *rtnl, struct canary *canary,
                struct probe_canary *ret) {
    struct err err = {0};
    char name[PROBE_NAME];
    if (!request->bridge)
        return refuse(ret, -ENODEV, "there is no bridge");
    if (request->bridge_stp)
        return refuse(ret, -EBUSY, "the bridge runs STP: a new port would wait for 30 s, and all others notice");
    if (request->bridge_ports == 0)
        return refuse(ret, -EBUSY, "the bridge has no other port: a canary's MAC could become the bridge's");
    struct strbuf text = {.max = PROBE_NAME - 1};
    strbuf_addf(&text, NET_CANARY_PORT "%x", (unsigned int)getpid());
    bool fits = text.data && !text.truncated && str_copy(name, sizeof name, text.data);
    strbuf_free(&text);
    if (!fits)
        return refuse(ret, -ENAMETOOLONG, "no name for it");
    _cleanup_close_ int fd = -1;
    int r = tap_create(request->nsfd, name, 0, &fd, &err);
    if (r == 0)
        r = attach(request, rtnl, name, ret, &err);
    if (r < 0)
        return refuse(ret, r, err.detail);
    str_copy(ret->name, sizeof ret->name, name);
    ret->made = true;
    canary->fd = fd_steal(&fd);
    return 0;
}

void canary_close(struct canary *canary) {
    fd_close(&canary->fd);
}

int canary_send(const struct canary *canary, const uint8_t *frame, size_t length) {
    uint8_t header[TAP_VNET_HDR_SIZE] = {0};
    struct iovec iov[2] = {{header, sizeof header}, {(void *)frame, length}};
    return writev(canary->fd, iov, 2) < 0 ? -errno : 0;
}

int canary_receive(const struct canary *canary, struct probe_frame *ret) {
    uint8_t data[TAP_VNET_HDR_SIZE + 65536];
    ssize_t n = read(canary->fd, data, sizeof data);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if ((size_t)n <= TAP_VNET_HDR_SIZE)
        return -EBADMSG;
    size_t length = (size_t)n - TAP_VNET_HDR_SIZE;
    frame_parse(data + TAP_VNET_HDR_SIZE, length, length, ret);
    return 1;
}
