#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/time.h"
#include "doctor/collect/collect.h"
#include "doctor/probe/frame.h"
#include "netlink/netns.h"

#define TAPS_MAX 32
#define FRAMES_MAX 256 /* of one TAP */
#define FRAME_KEPT 128 /* bytes that the kernel copies */
#define BUFFER (8 << 20)
#define SOLICITATION_SIZE 86
#define AGAIN_MS 40
#define SILENT_MS 150 /* for one who has said nothing so far */
#define ECHO_SIZE 60
#define WHO_HAS_MS 200 /* for an answer; asked twice */
#define ECHO_MS 200    /* the same */

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

/* The first TAP has a socket of its own, so that nobody's noise drowns it; the others share one. Not one each: the
 * kernel waits for all CPUs (synchronize_net(), some 15 ms) at each close of such a socket. */
enum { FIRST, OTHERS, SOCKETS };

struct heard {
    int nsfd;
    struct heard_tap taps[TAPS_MAX];
    size_t count;
    int fd[SOCKETS];         /* -1: none */
    int32_t asked[TAPS_MAX]; /* by heard_beyond() */
    size_t asked_count;
};

/* "Is it of one of these devices": load the device's index, compare with each, take or leave. */
static int filter_devices(int fd, const struct heard_tap *taps, size_t count) {
    struct sock_filter code[TAPS_MAX + 3] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_IFINDEX))};
    struct sock_fprog program = {.len = (unsigned short)(count + 3), .filter = code};
    for (size_t i = 0; i < count; i++)
        code[1 + i] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)taps[i].link, (uint8_t)(count - i), 0);
    code[count + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
    code[count + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, FRAME_KEPT);
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ? -errno : 0;
}

static int listen_to(int nsfd, const struct heard_tap *taps, size_t count, int *ret_fd) {
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int on = 1, buffer = BUFFER;
    _cleanup_close_ int fd = -1;
    int r = netns_socket(nsfd, AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0, &fd);
    if (r < 0)
        return r;
    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on);
    setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &on, sizeof on);
    if (count > 1)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    else
        address.sll_ifindex = taps[0].link;
    r = filter_devices(fd, taps, count);
    if (r < 0)
        return r;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* --- one neighbour solicitation; RFC 4861 4.3, RFC 4291 2.5.6 --- */

static void link_local(struct net_mac mac, uint8_t ret[16]) {
    static const uint8_t prefix[8] = {0xfe, 0x80};
    const uint8_t id[8] = {mac.byte[0] ^ 2, mac.byte[1], mac.byte[2], 0xff, 0xfe,
                           mac.byte[3],     mac.byte[4], mac.byte[5]};
    memcpy(ret, prefix, sizeof prefix);
    memcpy(ret + 8, id, sizeof id);
}

static uint16_t checksum(const uint8_t *packet, size_t len) {
    uint32_t sum = 58 + (uint32_t)len; /* pseudo header: next header and length; the addresses are in front */
    const uint8_t *addresses = packet - 32;
    for (size_t i = 0; i < 32 + len; i += 2)
        sum += (uint32_t)(addresses[i] << 8 | addresses[i + 1]);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void build_solicitation(struct net_mac from, struct net_mac to, uint8_t f[SOLICITATION_SIZE]) {
    memset(f, 0, SOLICITATION_SIZE);
    memcpy(f, to.byte, 6);
    memcpy(f + 6, from.byte, 6);
    f[12] = 0x86;
    f[13] = 0xdd;
    uint8_t *ip = f + 14, *icmp = f + 54;
    ip[0] = 0x60;
    ip[5] = 32;
    ip[6] = 58;
    ip[7] = 255;
    link_local(from, ip + 8);
    link_local(to, icmp + 8); /* the target */
    link_local(to, ip + 24);
    icmp[0] = 135;
    icmp[24] = 1; /* source link-layer address */
    icmp[25] = 1;
    memcpy(icmp + 26, from.byte, 6);
    uint16_t sum = checksum(icmp, 32);
    icmp[2] = (uint8_t)(sum >> 8);
    icmp[3] = (uint8_t)sum;
}

static void solicit(const struct snapshot *s, int nsfd, const struct heard_tap *taps, size_t count) {
    const struct snap_link *bridge = snap_link_by_index(s, s->host.bridge_index);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IPV6), .sll_halen = 6};
    _cleanup_close_ int fd = -1;
    uint8_t frame[SOLICITATION_SIZE];
    if (!bridge || netns_socket(nsfd, AF_PACKET, SOCK_RAW, 0, &fd) < 0)
        return;
    address.sll_ifindex = bridge->index;
    for (size_t i = 0; i < count; i++) {
        if (!taps[i].has_mac)
            continue;
        build_solicitation(bridge->mac, taps[i].mac, frame);
        if (sendto(fd, frame, sizeof frame, MSG_DONTWAIT, (struct sockaddr *)&address, sizeof address) < 0)
            return; /* the way is dead: the probes will say where */
    }
}

struct heard *heard_open(struct snapshot *s, int nsfd, const struct heard_tap *taps, size_t count) {
    struct heard *heard = calloc(1, sizeof *heard);
    if (!heard)
        return NULL;
    *heard = (struct heard){.nsfd = nsfd, .count = count < TAPS_MAX ? count : TAPS_MAX, .fd = {-1, -1}};
    memcpy(heard->taps, taps, heard->count * sizeof *taps);
    int r = heard->count ? listen_to(nsfd, taps, 1, &heard->fd[FIRST]) : 0;
    if ((r == 0 || r == -ENODEV) && heard->count > 1)
        r = listen_to(nsfd, taps + 1, heard->count - 1, &heard->fd[OTHERS]);
    if (r < 0 && r != -ENODEV)
        snapshot_gap(s, "heard", r, "no TAP can be listened to");
    if (heard->fd[FIRST] >= 0 || heard->fd[OTHERS] >= 0)
        solicit(s, nsfd, taps, heard->count);
    return heard;
}

void heard_again(struct heard *heard, const struct snapshot *s) {
    if (!heard || !heard->count)
        return;
    solicit(s, heard->nsfd, heard->taps, heard->count);
    usleep(SILENT_MS * 1000);
}

static void put32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint16_t plain_checksum(const uint8_t *data, size_t len) {
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i += 2)
        sum += (uint32_t)(data[i] << 8 | data[i + 1]);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* RFC 791, RFC 792 */
static void build_echo(struct net_mac from, struct net_mac to, uint32_t ip, uint8_t f[ECHO_SIZE]) {
    memset(f, 0, ECHO_SIZE);
    memcpy(f, to.byte, 6);
    memcpy(f + 6, from.byte, 6);
    f[12] = 0x08;
    uint8_t *h = f + 14, *icmp = f + 34;
    h[0] = 0x45;
    h[3] = ECHO_SIZE - 14;
    h[8] = 64;
    h[9] = IPPROTO_ICMP;
    put32(h + 12, SNAP_BEYOND);
    put32(h + 16, ip);
    uint16_t sum = plain_checksum(h, 20);
    h[10] = (uint8_t)(sum >> 8);
    h[11] = (uint8_t)sum;
    icmp[0] = 8;
    icmp[4] = 0x6d;
    icmp[5] = 0x63;
    sum = plain_checksum(icmp, ECHO_SIZE - 34);
    icmp[2] = (uint8_t)(sum >> 8);
    icmp[3] = (uint8_t)sum;
}

void heard_beyond(struct heard *heard, const struct snapshot *s, int32_t tap, struct net_mac guest, uint32_t ip) {
    const struct snap_link *bridge = snap_link_by_index(s, s->host.bridge_index);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_halen = 6};
    _cleanup_close_ int fd = -1;
    uint8_t frame[ECHO_SIZE];
    if (!heard || !bridge || heard->asked_count == TAPS_MAX ||
        netns_socket(heard->nsfd, AF_PACKET, SOCK_RAW, 0, &fd) < 0)
        return;
    address.sll_ifindex = bridge->index;
    build_echo(bridge->mac, guest, ip, frame);
    for (int i = 0; i < 2; i++)
        if (sendto(fd, frame, sizeof frame, MSG_DONTWAIT, (struct sockaddr *)&address, sizeof address) < 0)
            return;
    heard->asked[heard->asked_count++] = tap;
    usleep(AGAIN_MS * 1000);
}

static uint32_t be32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void parse(const uint8_t *f, size_t len, struct snap_heard *row) {
    row->ethertype = (uint16_t)(f[12] << 8 | f[13]);
    memcpy(&row->destination, f, 6);
    memcpy(&row->source, f + 6, 6);
    if (row->ethertype == 0x0806 && len >= 42) {
        row->kind = f[21] == 1 ? SNAP_HEARD_WHO_HAS : SNAP_HEARD_IS_AT;
        row->source_ip = be32(f + 28);
        row->destination_ip = be32(f + 38);
    } else if (row->ethertype == 0x0800 && len >= 34 && f[14] >> 4 == 4 && (f[14] & 15) >= 5) {
        row->kind = SNAP_HEARD_IPV4;
        row->source_ip = be32(f + 26);
        row->destination_ip = be32(f + 30);
    } else if (row->ethertype == 0x86dd && len >= 55) {
        row->kind = f[20] == 58 && f[54] == 136 ? SNAP_HEARD_NEIGHBOUR6 : SNAP_HEARD_IPV6;
    }
}

static void add_frame(struct snapshot *s, int32_t link, const uint8_t *frame, size_t length, uint16_t vlan) {
    size_t kept = length < FRAME_KEPT ? length : FRAME_KEPT;
    struct snap_heard *row = SNAP_PUSH(s, heard, SNAP_ROWS_MAX);
    if (!row)
        return;
    row->link = link;
    row->length = (uint32_t)length;
    row->vlan = vlan;
    memcpy(row->data, frame, kept < sizeof row->data ? kept : sizeof row->data);
    parse(frame, kept, row);
}

union aux {
    struct cmsghdr head; /* for its alignment */
    uint8_t room[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
};

/* The kernel takes a VLAN tag off a frame before anybody sees it. Source: packet(7), PACKET_AUXDATA */
static uint16_t vlan_of(struct msghdr *msg) {
    struct tpacket_auxdata aux;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA || c->cmsg_len < CMSG_LEN(sizeof aux))
            continue;
        memcpy(&aux, CMSG_DATA(c), sizeof aux);
        return aux.tp_status & TP_STATUS_VLAN_VALID ? (uint16_t)(0x1000 | (aux.tp_vlan_tci & 0xfff)) : 0;
    }
    return 0;
}

static void drain(const struct heard *heard, int fd, struct snapshot *s) {
    uint8_t frame[FRAME_KEPT];
    size_t taken[TAPS_MAX] = {0};
    struct sockaddr_ll from = {0};
    for (size_t i = 0; fd >= 0 && i < FRAMES_MAX * heard->count; i++) {
        union aux aux;
        struct iovec part = {frame, sizeof frame};
        struct msghdr msg = {.msg_name = &from,
                             .msg_namelen = sizeof from,
                             .msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &aux,
                             .msg_controllen = sizeof aux};
        ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_TRUNC);
        if (n < 0)
            return;
        size_t tap = 0;
        while (tap < heard->count && heard->taps[tap].link != from.sll_ifindex)
            tap++;
        if (n >= 14 && tap < heard->count && taken[tap]++ < FRAMES_MAX)
            add_frame(s, from.sll_ifindex, frame, (size_t)n, vlan_of(&msg));
    }
}

/* Return: whether the answer came. */
static bool hear_is_at(struct snapshot *s, int fd, int32_t link, uint32_t ip) {
    uint8_t frame[FRAME_KEPT];
    int64_t end_ms = time_monotonic_ms() + WHO_HAS_MS, left_ms;
    while ((left_ms = end_ms - time_monotonic_ms()) > 0) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        struct snap_heard row = {0};
        if (poll(&ready, 1, (int)left_ms) <= 0)
            return false;
        ssize_t n = recv(fd, frame, sizeof frame, MSG_DONTWAIT);
        if (n < 42)
            continue;
        parse(frame, (size_t)n, &row);
        if (row.kind == SNAP_HEARD_IS_AT && row.source_ip == ip) {
            add_frame(s, link, frame, (size_t)n, 0);
            return true;
        }
    }
    return false;
}

void heard_who_has(struct snapshot *s, int nsfd, const struct snap_link *link, uint32_t source, uint32_t ip) {
    struct heard_tap device = {.link = link->index};
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP), .sll_ifindex = link->index};
    struct frame_ends ends = {link->mac, FRAME_BROADCAST, source, ip};
    uint8_t frame[FRAME_MAX];
    size_t length = frame_who_has(frame, &ends);
    _cleanup_close_ int fd = -1;
    int r = listen_to(nsfd, &device, 1, &fd);
    for (int i = 0; r == 0 && i < 2; i++) {
        if (sendto(fd, frame, length, MSG_DONTWAIT, (const struct sockaddr *)&to, sizeof to) < 0 ||
            hear_is_at(s, fd, link->index, ip))
            return;
    }
}

/* Return: whether an echo came back; then it is in `row`. */
static bool hear_echo(int fd, uint32_t ip, struct snap_heard *row) {
    uint8_t packet[ECHO_SIZE];
    int64_t end_ms = time_monotonic_ms() + ECHO_MS, left_ms;
    while ((left_ms = end_ms - time_monotonic_ms()) > 0) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, (int)left_ms) <= 0)
            return false;
        ssize_t n = recv(fd, packet, sizeof packet, MSG_DONTWAIT);
        size_t head = n > 0 ? (packet[0] & 15) * 4U : 0;
        bool echo = n >= 28 && (size_t)n >= head + 8 && packet[head] == 0 && packet[head + 4] == 0x6d;
        if (!echo || be32(packet + 12) != ip)
            continue;
        row->kind = SNAP_HEARD_IPV4;
        row->source_ip = ip;
        row->destination_ip = be32(packet + 16);
        return true;
    }
    return false;
}

void heard_ping(struct snapshot *s, int nsfd, const struct snap_link *link, uint32_t ip) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(ip)};
    struct snap_heard answer = {.link = link->index}, asked = {.link = link->index, .kind = SNAP_HEARD_ASKED};
    uint8_t icmp[8] = {8, 0, 0, 0, 0x6d, 0x64}; /* "md" */
    _cleanup_close_ int fd = -1;
    if (netns_socket(nsfd, AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMP, &fd) < 0)
        return;
    bool heard = false;
    for (int i = 0; i < 2 && !heard; i++) {
        icmp[7] = (uint8_t)i;
        icmp[2] = icmp[3] = 0;
        uint16_t sum = plain_checksum(icmp, sizeof icmp);
        icmp[2] = (uint8_t)(sum >> 8);
        icmp[3] = (uint8_t)sum;
        if (sendto(fd, icmp, sizeof icmp, MSG_DONTWAIT, (const struct sockaddr *)&to, sizeof to) < 0)
            break;
        heard = hear_echo(fd, ip, &answer);
    }
    struct snap_heard *row = SNAP_PUSH(s, heard, SNAP_ROWS_MAX);
    if (row)
        *row = asked;
    row = heard ? SNAP_PUSH(s, heard, SNAP_ROWS_MAX) : NULL;
    if (row)
        *row = answer;
}

void heard_take(struct heard *heard, struct snapshot *s) {
    for (size_t i = 0; heard && i < SOCKETS; i++) {
        if (s)
            drain(heard, heard->fd[i], s);
        fd_close(&heard->fd[i]);
    }
    for (size_t i = 0; heard && s && i < heard->asked_count; i++) {
        struct snap_heard *row = SNAP_PUSH(s, heard, SNAP_ROWS_MAX);
        if (row)
            *row = (struct snap_heard){.link = heard->asked[i], .kind = SNAP_HEARD_ASKED};
    }
    free(heard);
}
