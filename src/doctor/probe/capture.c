/* One AF_PACKET socket for all devices of the namespace: every frame with its device, its direction and one clock.
 *
 * A filter in the kernel keeps a busy host's traffic out: ARP, ICMP and the beginnings and ends of TCP connections of
 * the addresses that are asked about, and what is odd on the TAPs. Direction: PACKET_OUTGOING is what the host gives to
 * the device. The device number comes with each frame, so a capture cannot be of a stale device.
 *
 * Source: packet(7), Documentation/networking/filter.rst. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/fd.h"
#include "doctor/probe/internal.h"
#include "netlink/netns.h"

#define RECEIVE_BUFFER (4 * 1024 * 1024)
#define PROGRAM_MAX 200
#define TAKE 262144

/* A program in the making. Jumps to "take" and "leave" are patched at the end: they are the last two instructions. */
struct program {
    struct sock_filter code[PROGRAM_MAX];
    uint16_t length;
};

#define TO_TAKE 254
#define TO_LEAVE 253

static void put(struct program *program, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf) {
    if (program->length < PROGRAM_MAX)
        program->code[program->length++] = (struct sock_filter){code, jt, jf, k};
}

static void load_half(struct program *program, uint32_t at) {
    put(program, BPF_LD | BPF_H | BPF_ABS, at, 0, 0);
}

static void load_word(struct program *program, uint32_t at) {
    put(program, BPF_LD | BPF_W | BPF_ABS, at, 0, 0);
}

/* Unless A is `value`, skip `skip` instructions. */
static void unless_equal(struct program *program, uint32_t value, uint8_t skip) {
    put(program, BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip);
}

static void put_addresses(struct program *program, const struct capture_filter *filter, uint32_t source,
                          uint32_t destination, uint8_t after, uint8_t hit) {
    /* hit: TO_TAKE, or 0: go on behind this block. `after` is used when nothing hits. */
    uint8_t n = (uint8_t)filter->address_count;
    load_word(program, source);
    for (uint8_t i = 0; i < n; i++)
        put(program, BPF_JMP | BPF_JEQ | BPF_K, filter->addresses[i], hit ? hit : (uint8_t)(2 * n + 1 - i), 0);
    load_word(program, destination);
    for (uint8_t i = 0; i < n; i++)
        put(program, BPF_JMP | BPF_JEQ | BPF_K, filter->addresses[i], hit ? hit : (uint8_t)(n - i), 0);
    put(program, BPF_JMP | BPF_JA, after, 0, 0);
}

/* Jumps farther than 8 bits are not needed: the whole is shorter than that, but for the two ends, which are patched. */
static void patch(struct program *program) {
    uint16_t take = (uint16_t)(program->length - 2), leave = (uint16_t)(program->length - 1);
    for (uint16_t i = 0; i < program->length; i++) {
        struct sock_filter *insn = &program->code[i];
        if (BPF_CLASS(insn->code) != BPF_JMP)
            continue;
        if (insn->code == (BPF_JMP | BPF_JA)) {
            if (insn->k == TO_LEAVE)
                insn->k = leave - i - 1U;
            continue;
        }
        uint8_t to_take = (uint8_t)(take - i - 1), to_leave = (uint8_t)(leave - i - 1);
        insn->jt = insn->jt == TO_TAKE ? to_take : insn->jt == TO_LEAVE ? to_leave : insn->jt;
        insn->jf = insn->jf == TO_TAKE ? to_take : insn->jf == TO_LEAVE ? to_leave : insn->jf;
    }
}

static void put_odd(struct program *program, const struct capture_filter *filter) {
    /* Of the TAPs: whatever is not IPv4, IPv6 or ARP, or has a source that no card has. */
    put(program, BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_IFINDEX), 0, 0);
    uint8_t n = (uint8_t)filter->tap_count;
    for (uint8_t i = 0; i < n; i++)
        put(program, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)filter->taps[i], TO_TAKE, 0);
    put(program, BPF_JMP | BPF_JA, TO_LEAVE, 0, 0);
}

static void put_few_copies(struct program *program, const struct capture_filter *filter) {
    uint8_t n = (uint8_t)filter->copy_count;
    put(program, BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_PKTTYPE), 0, 0);
    unless_equal(program, PACKET_OUTGOING, (uint8_t)(n + 3));
    put(program, BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_IFINDEX), 0, 0);
    for (uint8_t i = 0; i < n; i++)
        put(program, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)filter->copies[i], (uint8_t)(n - i + 1), 0);
    if (filter->no_arp_copies) {
        load_half(program, 12);
        put(program, BPF_JMP | BPF_JEQ | BPF_K, ETH_P_ARP, TO_LEAVE, 0);
        return;
    }
    put(program, BPF_LD | BPF_B | BPF_ABS, 0, 0, 0); /* a group address? */
    put(program, BPF_JMP | BPF_JSET | BPF_K, 1, TO_LEAVE, 0);
}

static int build(const struct capture_filter *filter, struct program *program) {
    uint8_t n = (uint8_t)filter->address_count;
    uint8_t block = (uint8_t)(2 * n + 3);
    if (filter->address_count > CAPTURE_ADDRESSES || filter->tap_count > CAPTURE_ADDRESSES)
        return -E2BIG;
    if (filter->few_copies)
        put_few_copies(program, filter);
    load_half(program, 12);
    /* ARP: sender's or target's protocol address; reports and replies alike */
    unless_equal(program, ETH_P_ARP, block);
    put_addresses(program, filter, 28, 38, TO_LEAVE, TO_TAKE);
    /* IPv4 of theirs: ICMP, and TCP with SYN or RST */
    unless_equal(program, ETH_P_IP, (uint8_t)(block + 7));
    put_addresses(program, filter, 26, 30, TO_LEAVE, 0);
    put(program, BPF_LD | BPF_B | BPF_ABS, 23, 0, 0);
    put(program, BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_ICMP, TO_TAKE, 0);
    put(program, BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 0, TO_LEAVE);
    put(program, BPF_LDX | BPF_B | BPF_MSH, 14, 0, 0);
    put(program, BPF_LD | BPF_B | BPF_IND, 14 + 13, 0, 0);
    put(program, BPF_JMP | BPF_JSET | BPF_K, 2 | 4, TO_TAKE, TO_LEAVE);
    put(program, BPF_JMP | BPF_JA, TO_LEAVE, 0, 0);
    unless_equal(program, ETH_P_IPV6, 1);
    put(program, BPF_JMP | BPF_JA, TO_LEAVE, 0, 0);
    put_odd(program, filter);
    put(program, BPF_RET | BPF_K, TAKE, 0, 0);
    put(program, BPF_RET | BPF_K, 0, 0, 0);
    if (program->length >= PROGRAM_MAX)
        return -E2BIG;
    patch(program);
    return 0;
}

int capture_open(int nsfd, const struct capture_filter *filter, int *ret_fd) {
    struct program program = {.length = 0};
    struct sockaddr_ll all = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int size = RECEIVE_BUFFER, on = 1;
    _cleanup_close_ int fd = -1;
    int r = build(filter, &program);
    if (r == 0)
        r = netns_socket(nsfd, AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0, &fd);
    if (r < 0)
        return r;
    struct sock_fprog attach = {.len = program.length, .filter = program.code};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &attach, sizeof attach) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&all, sizeof all) < 0)
        return -errno;
    *ret_fd = fd_steal(&fd);
    return 0;
}

static int64_t stamp_of(struct msghdr *message) {
    struct timespec stamp;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS)
            continue;
        memcpy(&stamp, CMSG_DATA(c), sizeof stamp);
        return stamp.tv_sec * 1000000000LL + stamp.tv_nsec;
    }
    return 0;
}

int capture_next(int fd, int64_t realtime_offset_ns, struct probe_frame *ret) {
    uint8_t data[2048];
    _Alignas(struct cmsghdr) char control[256];
    struct sockaddr_ll from = {0};
    struct iovec iov = {data, sizeof data};
    struct msghdr message = {.msg_name = &from,
                             .msg_namelen = sizeof from,
                             .msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    frame_parse(data, (size_t)n < sizeof data ? (size_t)n : sizeof data, (size_t)n, ret);
    ret->ifindex = from.sll_ifindex;
    ret->outgoing = from.sll_pkttype == PACKET_OUTGOING;
    ret->at_ns = stamp_of(&message) - realtime_offset_ns;
    return 1;
}

uint32_t capture_lost(int fd) {
    struct tpacket_stats stats = {0};
    socklen_t length = sizeof stats;
    return getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &length) == 0 ? stats.tp_drops : 0;
}
