/* A host's worth of guests in one process: holds TAPs as VMMs do and answers ARP and ICMP echo for one address behind
 * each. Light enough that a benchmark with 1,000 of them measures the doctor and not the guests.
 *
 * usage: hive NETNS PREFIX COUNT
 *   TAP n (from 0) is PREFIX and n in hexadecimal, three digits; its guest has 192.168.(n/250 + 1).(n%250 + 2) and the
 *   MAC 02:fc:be:e0 and n. The TAPs are made in the network namespace NETNS, are not persistent and end with this
 *   process; who starts it makes them ports and sets them up.
 * Says "ready" on standard output; each line on standard input then makes all guests speak once (an ARP request for
 * 192.168.0.1, so that the bridge learns them), answered by "ok". Ends at end of file there.
 *
 * Source: Documentation/networking/tuntap.rst. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

enum { HEADER = 12, FRAME = 2048, GUESTS_MAX = 1020, FRAMES_AT_ONCE = 16 };

struct guest {
    int fd;
    uint8_t mac[6];
    uint8_t ip[4];
};

static const uint8_t gateway[4] = {192, 168, 0, 1};

static int fail(const char *what) {
    printf("error %d %s\n", errno, what);
    fflush(stdout);
    return 1;
}

static int enter(const char *netns) {
    char path[128];
    snprintf(path, sizeof path, "/run/netns/%s", netns);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int r = fd < 0 ? -1 : setns(fd, CLONE_NEWNET);
    if (fd >= 0)
        close(fd);
    return r;
}

static int open_guest(struct guest *guest, const char *prefix, unsigned n) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int size = HEADER;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s%03x", prefix, n);
    memcpy(guest->mac, (uint8_t[]){0x02, 0xfc, 0xbe, 0xe0, (uint8_t)(n >> 8), (uint8_t)n}, 6);
    memcpy(guest->ip, (uint8_t[]){192, 168, (uint8_t)(n / 250 + 1), (uint8_t)(n % 250 + 2)}, 4);
    guest->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (guest->fd < 0 || ioctl(guest->fd, TUNSETIFF, &request) < 0)
        return -1;
    return ioctl(guest->fd, TUNSETVNETHDRSZ, &size);
}

static void send_frame(const struct guest *guest, uint8_t *frame, size_t len) {
    if (write(guest->fd, frame, len) < 0 && errno != EAGAIN)
        fprintf(stderr, "hive: %s\n", strerror(errno)); /* a TAP that is down: the benchmark is wrong */
}

/* Builds an ARP message behind the header; op 1 asks, 2 answers. */
static void send_arp(const struct guest *guest, uint8_t op, const uint8_t *to_mac, const uint8_t *to_ip) {
    uint8_t frame[HEADER + 42] = {0}, *e = frame + HEADER;
    memcpy(e, to_mac, 6);
    memcpy(e + 6, guest->mac, 6);
    memcpy(e + 12, (uint8_t[]){8, 6, 0, 1, 8, 0, 6, 4, 0, op}, 10);
    memcpy(e + 22, guest->mac, 6);
    memcpy(e + 28, guest->ip, 4);
    memcpy(e + 32, to_mac, 6);
    memcpy(e + 38, to_ip, 4);
    send_frame(guest, frame, sizeof frame);
}

/* Turns an echo request round in place. The checksum changes by the type alone: RFC 1624, equation 3. */
static void answer_echo(const struct guest *guest, uint8_t *frame, size_t len) {
    uint8_t *e = frame + HEADER, *ip = e + 14, *icmp = ip + (ip[0] & 15) * 4;
    uint8_t address[4];
    memcpy(e, e + 6, 6);
    memcpy(e + 6, guest->mac, 6);
    memcpy(address, ip + 12, 4);
    memcpy(ip + 12, ip + 16, 4);
    memcpy(ip + 16, address, 4);
    uint32_t sum = (uint32_t)(uint16_t) ~(icmp[2] << 8 | icmp[3]) + (uint16_t)~0x0800;
    sum = (sum & 0xffff) + (sum >> 16);
    icmp[0] = 0;
    icmp[2] = (uint8_t)(~sum >> 8);
    icmp[3] = (uint8_t)~sum;
    memset(frame, 0, HEADER);
    send_frame(guest, frame, len);
}

static void take(const struct guest *guest, uint8_t *frame, size_t len) {
    const uint8_t *e = frame + HEADER;
    if (len >= HEADER + 42 && e[12] == 8 && e[13] == 6 && e[21] == 1 && memcmp(e + 38, guest->ip, 4) == 0)
        send_arp(guest, 2, e + 22, e + 28);
    else if (len >= HEADER + 42 && e[12] == 8 && e[13] == 0 && e[23] == 1 && e[14 + (e[14] & 15) * 4] == 8 &&
             memcmp(e, guest->mac, 6) == 0)
        answer_echo(guest, frame, len);
}

static int serve(struct guest *guests, int epoll, unsigned count) {
    static const uint8_t everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct epoll_event events[64];
    uint8_t frame[FRAME];
    for (;;) {
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            const struct guest *guest = events[i].data.ptr;
            ssize_t len;
            if (!guest) {
                if (read(STDIN_FILENO, frame, sizeof frame) <= 0)
                    return 0;
                for (unsigned g = 0; g < count; g++)
                    send_arp(&guests[g], 1, everybody, gateway);
                printf("ok\n");
                fflush(stdout);
                continue;
            }
            for (int k = 0; k < FRAMES_AT_ONCE && (len = read(guest->fd, frame, sizeof frame)) > 0; k++)
                take(guest, frame, (size_t)len);
        }
    }
}

int main(int argc, char **argv) {
    static struct guest guests[GUESTS_MAX];
    struct rlimit files = {GUESTS_MAX + 64, GUESTS_MAX + 64};
    unsigned count = argc == 4 ? (unsigned)strtoul(argv[3], NULL, 10) : 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (count == 0 || count > GUESTS_MAX) {
        fprintf(stderr, "usage: hive NETNS PREFIX COUNT, COUNT up to %d\n", GUESTS_MAX);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (setrlimit(RLIMIT_NOFILE, &files) < 0 || enter(argv[1]) < 0)
        return fail(argv[1]);
    for (unsigned n = 0; n < count; n++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &guests[n]};
        if (open_guest(&guests[n], argv[2], n) < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, guests[n].fd, &event) < 0)
            return fail("open a TAP");
    }
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        return fail("standard input");
    printf("ready\n");
    fflush(stdout);
    return serve(guests, epoll, count);
}
