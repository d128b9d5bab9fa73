/* The VMM of the lab: holds a TAP of the host's namespace as Firecracker or QEMU do, and is the cable to a TAP in the
 * guest's namespace, whose kernel is then the guest: its addresses, routes, services and firewall are real ones.
 *
 * usage: wire HOST-NETNS GUEST-NETNS TAP [option=value …]
 *   eth=NAME      the guest's interface (eth0); mac=MAC its address; mtu=N
 *   pi=1          opens the host TAP without IFF_NO_PI (4 bytes of packet information before each frame)
 *   vnet=0        opens it without IFF_VNET_HDR
 *   mq=1          opens it with IFF_MULTI_QUEUE
 *   idle=N        with mq=1: opens so many more queues, and never looks at them
 *   size=N        TUNSETVNETHDRSZ; 0 leaves what the device has
 *   believe=N     bytes of header that this VMM takes for granted, whatever the TAP has
 *   offload=N     TUNSETOFFLOAD flags, which the guest then ignores
 *   uid=N         changes to this user before the TAP is opened
 *   asleep=1      never reads nor writes a frame: a guest whose driver was not loaded
 *   keep=1        stays alive when the TAP cannot be opened
 *
 * Standard input takes commands, one a line, each answered by "ok" or "error N text" on standard output:
 *   stall, stallrx, discard, resume        what happens to frames
 *   serve PORT [ADDRESS], unserve PORT     a TCP service in the guest that says "hello" (UDP: echoed on the same port)
 *   persist 0|1, carrier 0|1               of the host TAP
 *   txfilter MAC, sockfilter BYTES, sndbuf N    TUNSETTXFILTER, TUNATTACHFILTER (accept so many bytes), TUNSETSNDBUF
 *   reopen TAP                             lets the TAP go and attaches to another
 *   detach                                 takes the queue of a TAP made with mq=1 off (IFF_DETACH_QUEUE)
 *   longest N                              frames of more bytes are lost, both ways
 * The first line is "ready PID" or "error N text". It ends at end of file on standard input, or with its parent.
 *
 * Source: Documentation/networking/tuntap.rst, drivers/net/tun.c. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEADER_MAX = 64,
    FRAME_MAX = 65536,
    SERVICES_MAX = 8,
    FIXED_FDS = 3, /* standard input, the host's TAP, the guest's */
};

enum state { STATE_FLOW, STATE_STALL, STATE_STALL_RX, STATE_DISCARD };

struct wire {
    int host_ns, guest_ns;
    const char *tap, *eth;
    const char *mac;
    int mtu, pi, vnet, multi_queue, idle, size, believe, uid, keep, longest;
    unsigned offload;
    enum state state;
    int tap_fd, eth_fd;
    int services[SERVICES_MAX], ports[SERVICES_MAX], service_count;
};

static int answer(int result) {
    if (result < 0)
        printf("error %d %s\n", -result, strerror(-result));
    else
        printf("ok\n");
    fflush(stdout);
    return result;
}

static int netns_open(const char *name) {
    char path[256];

    snprintf(path, sizeof path, "/run/netns/%s", name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* A TAP of the namespace that this thread is in. Return: its fd or -errno. */
static int tap_open(const char *name, short flags) {
    struct ifreq ifr = {.ifr_flags = (short)(IFF_TAP | flags)};
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), r;

    if (fd < 0)
        return -errno;
    strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &ifr) == 0)
        return fd;
    r = -errno;
    close(fd);
    return r;
}

static int host_attach(struct wire *w) {
    short flags =
        (short)((w->pi ? 0 : IFF_NO_PI) | (w->vnet ? IFF_VNET_HDR : 0) | (w->multi_queue ? IFF_MULTI_QUEUE : 0));
    int fd;

    if (setns(w->host_ns, CLONE_NEWNET) < 0)
        return -errno;
    if (w->uid && (setgid((gid_t)w->uid) < 0 || setuid((uid_t)w->uid) < 0))
        return -errno;
    /* Changing the user clears it. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fd = tap_open(w->tap, flags);
    if (fd < 0)
        return fd;
    if ((w->vnet && w->size && ioctl(fd, TUNSETVNETHDRSZ, &w->size) < 0) ||
        ioctl(fd, TUNSETOFFLOAD, (unsigned long)w->offload) < 0) {
        int r = -errno;
        close(fd);
        return r;
    }
    w->tap_fd = fd;
    for (int i = 0; i < w->idle; i++)
        if (tap_open(w->tap, flags) < 0)
            return -errno;
    return 0;
}

static int guest_plug(struct wire *w) {
    struct ifreq ifr = {0};
    _Bool ok = true;
    int s;

    if (setns(w->guest_ns, CLONE_NEWNET) < 0)
        return -errno;
    w->eth_fd = tap_open(w->eth, IFF_NO_PI);
    if (w->eth_fd < 0)
        return w->eth_fd;
    s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strncpy(ifr.ifr_name, w->eth, IFNAMSIZ - 1);
    if (w->mac) {
        unsigned char *m = (unsigned char *)ifr.ifr_hwaddr.sa_data;
        ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
        ok = sscanf(w->mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", m, m + 1, m + 2, m + 3, m + 4, m + 5) == 6 &&
             ioctl(s, SIOCSIFHWADDR, &ifr) == 0;
    }
    if (ok && w->mtu) {
        ifr.ifr_mtu = w->mtu;
        ok = ioctl(s, SIOCSIFMTU, &ifr) == 0;
    }
    s = ok ? close(s) : -errno;
    return s;
}

/* One frame from one TAP to the other. Return: false when there is none. */
static bool frame_move(int from, int strip, int to, int prepend, int longest) {
    static unsigned char buffer[HEADER_MAX + FRAME_MAX];
    ssize_t n;

    n = read(from, buffer + HEADER_MAX, FRAME_MAX);
    if (n <= 0)
        return false;
    if (to < 0 || n <= strip || n - strip > longest)
        return true;
    memset(buffer, 0, HEADER_MAX);
    if (prepend)
        memset(buffer + HEADER_MAX + strip - prepend, 0, (size_t)prepend);
    /* A link that is down or a header that the TAP does not like loses the frame, as it does in a VMM. */
    if (write(to, buffer + HEADER_MAX + strip - prepend, (size_t)(n - strip + prepend)) < 0)
        return true;
    return true;
}

static void frames_move(struct wire *w, bool from_host, bool from_guest) {
    int to_guest = w->state == STATE_DISCARD ? -1 : w->eth_fd, to_host = w->state == STATE_DISCARD ? -1 : w->tap_fd;

    for (int i = 0; from_host && i < 64 && frame_move(w->tap_fd, w->believe, to_guest, 0, w->longest); i++)
        ;
    for (int i = 0; from_guest && i < 64 && frame_move(w->eth_fd, 0, to_host, w->believe, w->longest); i++)
        ;
}

static int service_open(struct wire *w, int type, int port, const char *address) {
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int s, one = 1, r = 0;

    if (w->service_count >= SERVICES_MAX)
        return -ENOSPC;
    inet_pton(AF_INET, address, &sin.sin_addr);
    s = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s, (struct sockaddr *)&sin, sizeof sin) < 0 || (type == SOCK_STREAM && listen(s, 16) < 0)) {
        r = -errno;
        close(s);
        return r;
    }
    w->services[w->service_count] = s;
    w->ports[w->service_count++] = port;
    return 0;
}

static int serve(struct wire *w, int port, const char *address) {
    int r;

    /* As a user without rights it is in the host's namespace for good. */
    if (setns(w->guest_ns, CLONE_NEWNET) < 0)
        return -errno;
    r = service_open(w, SOCK_STREAM, port, address);
    if (r == 0)
        r = service_open(w, SOCK_DGRAM, port, address);
    return setns(w->host_ns, CLONE_NEWNET) < 0 ? -errno : r;
}

static void unserve(struct wire *w, int port) {
    for (int i = 0; i < w->service_count;) {
        if (w->ports[i] != port) {
            i++;
            continue;
        }
        close(w->services[i]);
        w->service_count--;
        w->services[i] = w->services[w->service_count];
        w->ports[i] = w->ports[w->service_count];
    }
}

static void service_answer(int s) {
    struct sockaddr_in peer;
    socklen_t len = sizeof peer;
    char text[2048];
    int c = accept4(s, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    ssize_t n;

    if (c >= 0) {
        if (send(c, "hello\n", 6, MSG_NOSIGNAL) < 0)
            perror("wire: send");
        close(c);
        return;
    }
    n = recvfrom(s, text, sizeof text, 0, (struct sockaddr *)&peer, &len);
    if (n > 0 && sendto(s, text, (size_t)n, 0, (struct sockaddr *)&peer, len) < 0)
        perror("wire: sendto");
}

static int txfilter_set(int fd, const char *mac) {
    struct {
        struct tun_filter head;
        unsigned char address[6];
    } filter = {.head = {.count = 1}};
    unsigned char *m = filter.address;

    if (sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
        return -EINVAL;
    return ioctl(fd, TUNSETTXFILTER, &filter) < 0 ? -errno : 0;
}

static int sockfilter_set(int fd, unsigned bytes) {
    struct sock_filter code = {.code = BPF_RET | BPF_K, .k = bytes};
    struct sock_fprog program = {.len = 1, .filter = &code};

    return ioctl(fd, TUNATTACHFILTER, &program) < 0 ? -errno : 0;
}

static int reopen(struct wire *w, const char *tap) {
    close(w->tap_fd);
    w->tap_fd = -1;
    w->tap = strdup(tap);
    return host_attach(w);
}

static int command_run(struct wire *w, char *line) {
    static const char *const states[] = {"resume", "stall", "stallrx", "discard"};
    char word[16] = "", a[64] = "", b[64] = "0.0.0.0";
    int n;

    if (sscanf(line, "%15s %63s %63s", word, a, b) < 1)
        return -EINVAL;
    n = atoi(a);
    for (int i = 0; i < 4; i++)
        if (strcmp(word, states[i]) == 0) {
            w->state = (enum state)i;
            return 0;
        }
    if (strcmp(word, "serve") == 0)
        return serve(w, n, b);
    if (strcmp(word, "unserve") == 0)
        return unserve(w, n), 0;
    if (strcmp(word, "detach") == 0) {
        struct ifreq ifr = {.ifr_flags = IFF_DETACH_QUEUE};
        return ioctl(w->tap_fd, TUNSETQUEUE, &ifr) < 0 ? -errno : 0;
    }
    if (strcmp(word, "longest") == 0)
        return w->longest = n, 0;
    if (strcmp(word, "reopen") == 0)
        return reopen(w, a);
    if (strcmp(word, "txfilter") == 0)
        return txfilter_set(w->tap_fd, a);
    if (strcmp(word, "sockfilter") == 0)
        return sockfilter_set(w->tap_fd, (unsigned)n);
    if (strcmp(word, "persist") == 0)
        return ioctl(w->tap_fd, TUNSETPERSIST, (unsigned long)n) < 0 ? -errno : 0;
    if (strcmp(word, "carrier") == 0)
        return ioctl(w->tap_fd, TUNSETCARRIER, &n) < 0 ? -errno : 0;
    if (strcmp(word, "sndbuf") == 0)
        return ioctl(w->tap_fd, TUNSETSNDBUF, &n) < 0 ? -errno : 0;
    return -EINVAL;
}

static void commands_read(struct wire *w) {
    char line[256];
    ssize_t n = read(STDIN_FILENO, line, sizeof line - 1);

    if (n <= 0)
        exit(0);
    line[n] = '\0';
    for (char *save, *one = strtok_r(line, "\n", &save); one; one = strtok_r(NULL, "\n", &save))
        answer(command_run(w, one));
}

static void loop(struct wire *w) {
    for (;;) {
        bool to_guest = w->state == STATE_FLOW || w->state == STATE_DISCARD, to_host = w->state != STATE_STALL;
        struct pollfd fds[FIXED_FDS + SERVICES_MAX] = {
            {.fd = STDIN_FILENO, .events = POLLIN},
            {.fd = to_guest ? w->tap_fd : -1, .events = POLLIN},
            {.fd = to_host ? w->eth_fd : -1, .events = POLLIN},
        };
        int n = FIXED_FDS;

        for (int i = 0; i < w->service_count; i++)
            fds[n++] = (struct pollfd){.fd = w->services[i], .events = POLLIN};
        if (poll(fds, (nfds_t)n, -1) < 0)
            continue;
        /* A TAP that was deleted under its holder is readable with an error for ever. */
        if (fds[1].revents & POLLERR)
            w->state = STATE_STALL;
        frames_move(w, fds[1].revents & POLLIN, fds[2].revents & POLLIN);
        for (int i = FIXED_FDS; i < n; i++)
            if (fds[i].revents)
                service_answer(fds[i].fd);
        if (fds[0].revents)
            commands_read(w);
    }
}

static bool option_take(struct wire *w, char *option) {
    char *value = strchr(option, '=');
    struct {
        const char *name;
        int *number;
    } numbers[] = {
        {"mtu", &w->mtu},   {"pi", &w->pi},     {"vnet", &w->vnet},       {"mq", &w->multi_queue},
        {"idle", &w->idle}, {"size", &w->size}, {"believe", &w->believe}, {"offload", (int *)&w->offload},
        {"uid", &w->uid},   {"keep", &w->keep},
    };

    if (!value)
        return false;
    *value++ = '\0';
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(option, numbers[i].name) == 0) {
            *numbers[i].number = atoi(value);
            return true;
        }
    if (strcmp(option, "eth") == 0)
        w->eth = value;
    else if (strcmp(option, "mac") == 0)
        w->mac = value;
    else if (strcmp(option, "asleep") == 0)
        w->state = STATE_STALL;
    else
        return false;
    return true;
}

int main(int argc, char **argv) {
    struct wire w = {
        .eth = "eth0", .vnet = 1, .size = 12, .believe = 12, .longest = FRAME_MAX, .tap_fd = -1, .eth_fd = -1};
    int r;

    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc < 4) {
        fprintf(stderr, "usage: wire HOST-NETNS GUEST-NETNS TAP [option=value ...]\n");
        return 2;
    }
    w.host_ns = netns_open(argv[1]);
    w.guest_ns = netns_open(argv[2]);
    w.tap = argv[3];
    for (int i = 4; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0) { /* and its value: a VMM's own, for who reads the command line */
            i++;
            continue;
        }
        char *copy = strdup(argv[i]);
        if (!copy || !option_take(&w, copy)) {
            fprintf(stderr, "wire: %s?\n", argv[i]);
            return 2;
        }
    }
    r = guest_plug(&w);
    if (r == 0)
        r = host_attach(&w);
    if (r < 0 && !w.keep)
        return answer(r), 1;
    if (r < 0)
        answer(r);
    else
        printf("ready %d\n", getpid());
    fflush(stdout);
    loop(&w);
}
