/* Sending. Every send is timed: see events.c. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/neighbour.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/probe/run.h"
#include "netlink/link.h"
#include "netlink/neigh.h"
#include "netlink/netns.h"

int64_t run_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int64_t run_realtime_offset(void) {
    struct timespec real;
    int64_t before = run_now_ns();
    clock_gettime(CLOCK_REALTIME, &real);
    return real.tv_sec * 1000000000LL + real.tv_nsec - (before + run_now_ns()) / 2;
}

struct probe_answer *run_answer(struct run *run, size_t target, enum probe_kind kind) {
    return (struct probe_answer *)probe_answer(run->result, target, kind);
}

void run_why_not(struct probe_answer *answer, const char *why) {
    if (!answer->asked)
        str_copy(answer->why_not, sizeof answer->why_not, why);
}

void run_note_sent(struct run *run, size_t target, enum probe_kind kind, int64_t from_ns, int r) {
    struct probe_answer *answer = run_answer(run, target, kind);
    int64_t to_ns = run_now_ns();
    answer->asked = true;
    answer->sends++;
    *answer->why_not = '\0';
    if (!answer->sent_ns)
        answer->sent_ns = from_ns;
    if (r >= 0)
        answer->sent = true;
    else if (!answer->send_errno)
        answer->send_errno = -r;
    if (run->window_count < run->window_max)
        run->windows[run->window_count++] =
            (struct window){.from_ns = from_ns, .to_ns = to_ns, .tag = probe_tag(target, kind), .tid = gettid()};
    if (run->trace)
        trace_poll(run->trace);
}

/* Through the bridge device's own output, as the kernel's ARP goes (but for the ARP hooks of netfilter). */
int run_send_packet(struct run *run, const uint8_t *frame, size_t length) {
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = run->request->bridge, .sll_halen = 6};
    to.sll_protocol = htons((uint16_t)(frame[12] << 8 | frame[13]));
    memcpy(to.sll_addr, frame, 6);
    return sendto(run->packet, frame, length, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to) < 0 ? -errno : 0;
}

struct frame_ends run_ends_to(const struct run *run, struct net_mac mac, uint32_t ip) {
    return (struct frame_ends){.source_mac = run->tagger.bridge_mac,
                               .destination_mac = mac,
                               .source_ip = run->request->bridge_address.address,
                               .destination_ip = ip};
}

void run_ask_arp(struct run *run, size_t target, enum probe_kind kind, struct net_mac to) {
    uint8_t frame[FRAME_MAX];
    struct frame_ends ends = run_ends_to(run, to, run->request->targets[target].guest_ip);
    size_t length = frame_who_has(frame, &ends);
    int64_t from_ns = run_now_ns();
    run_note_sent(run, target, kind, from_ns, run_send_packet(run, frame, length));
}

static int send_echo(int fd, uint32_t ip, uint16_t id, uint16_t sequence, size_t payload) {
    uint8_t packet[FRAME_MAX];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(ip)};
    size_t length = frame_icmp_echo(packet, id, sequence, payload);
    return sendto(fd, packet, length, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to) < 0 ? -errno : 0;
}

void run_ask_echo(struct run *run, size_t target, enum probe_kind kind, uint32_t ip, uint16_t sequence,
                  size_t payload) {
    int64_t from_ns = run_now_ns();
    int fd = kind == PROBE_LARGE ? run->large : run->icmp;
    if (fd < 0) { /* that we may not ask tells nothing of the way */
        run_why_not(run_answer(run, target, kind), "no raw socket: only root may send it");
        return;
    }
    int r = send_echo(fd, ip, (uint16_t)(run->tagger.id_base | kind), sequence, payload);
    run_note_sent(run, target, kind, from_ns, r);
}

void run_ask_echo_by_frame(struct run *run, size_t target) {
    uint8_t frame[FRAME_MAX];
    struct net_mac mac;
    if (!run_guest_mac(run, target, &mac))
        return;
    struct frame_ends ends = run_ends_to(run, mac, run->request->targets[target].guest_ip);
    size_t length = frame_echo(frame, &ends, 8, (uint16_t)(run->tagger.id_base | PROBE_ICMP), 1, ECHO_PAYLOAD);
    int64_t from_ns = run_now_ns();
    run_note_sent(run, target, PROBE_ICMP, from_ns, run_send_packet(run, frame, length));
}

/* By a socket of its own: a raw one that was connected once hears nothing any more when that is undone. */
static int route_mtu(int nsfd, uint32_t ip) {
    int mtu = 0;
    socklen_t length = sizeof mtu;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(ip)};
    _cleanup_close_ int fd = -1;
    if (netns_socket(nsfd, AF_INET, SOCK_DGRAM, 0, &fd) < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0 ||
        getsockopt(fd, IPPROTO_IP, IP_MTU, &mtu, &length) < 0)
        return 0;
    return mtu;
}

/* The largest that Ethernet has; where the route has less, that too, so that both can be seen. */
void run_ask_large(struct run *run, size_t target) {
    struct probe_answer *answer = run_answer(run, target, PROBE_LARGE);
    uint32_t ip = run->request->targets[target].guest_ip;
    answer->size = PROBE_LARGE_SIZE;
    run_ask_echo(run, target, PROBE_LARGE, ip, 1, LARGE_PAYLOAD(PROBE_LARGE_SIZE));
    if (answer->send_errno != EMSGSIZE || answer->sent)
        return;
    int mtu = route_mtu(run->request->nsfd, ip);
    if (mtu < 576 || mtu >= PROBE_LARGE_SIZE)
        return;
    answer->mtu = (uint32_t)mtu;
    answer->size = (uint32_t)mtu;
    run_ask_echo(run, target, PROBE_LARGE, ip, 2, LARGE_PAYLOAD((size_t)mtu));
}

void run_ask_tcp(struct run *run, size_t target) {
    const struct probe_target *to = &run->request->targets[target];
    struct probe_answer *answer = run_answer(run, target, PROBE_TCP);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(to->port), .sin_addr.s_addr = htonl(to->guest_ip)};
    struct sockaddr_in own = {0};
    socklen_t length = sizeof own;
    _cleanup_close_ int fd = -1;
    int r = netns_socket(run->request->nsfd, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0, &fd);
    if (r < 0) {
        run_why_not(answer, strerror(-r));
        return;
    }
    int64_t from_ns = run_now_ns();
    r = connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
    if (getsockname(fd, (struct sockaddr *)&own, &length) == 0)
        run->tcp_port[target] = ntohs(own.sin_port);
    run_note_sent(run, target, PROBE_TCP, from_ns, r == -EINPROGRESS ? 0 : r);
    if (r == -EINPROGRESS) {
        run->tcp[target] = fd_steal(&fd);
        run->tcp_open++;
    }
    if (r == 0 || r == -ECONNREFUSED) {
        answer->answered = true;
        answer->answers = 1;
        answer->answer_errno = -r;
        answer->rtt_us = (run_now_ns() - from_ns) / 1000;
    }
}

/* The kernel leaves the checksum of its own segments to the device; this one is complete. The port is held by a socket
 * of ours, so that nobody else's connection is meant. */
void run_ask_tcp_raw(struct run *run, size_t target) {
    const struct probe_target *to = &run->request->targets[target];
    struct sockaddr_in own = {.sin_family = AF_INET};
    socklen_t length = sizeof own;
    uint8_t frame[FRAME_MAX];
    uint32_t sequence = 0;
    struct net_mac mac;
    if (!run_guest_mac(run, target, &mac))
        return;
    if (netns_socket(run->request->nsfd, AF_INET, SOCK_STREAM, 0, &run->reserved[target]) < 0 ||
        bind(run->reserved[target], (struct sockaddr *)&own, sizeof own) < 0 ||
        getsockname(run->reserved[target], (struct sockaddr *)&own, &length) < 0) {
        run_why_not(run_answer(run, target, PROBE_TCP_RAW), "no port for it");
        return;
    }
    run->raw_port[target] = ntohs(own.sin_port);
    getrandom(&sequence, sizeof sequence, GRND_NONBLOCK);
    struct frame_ends ends = run_ends_to(run, mac, to->guest_ip);
    size_t size = frame_syn(frame, &ends, run->raw_port[target], to->port, sequence);
    int64_t from_ns = run_now_ns();
    run_note_sent(run, target, PROBE_TCP_RAW, from_ns, run_send_packet(run, frame, size));
}
