/* Lets pytest call the network room: one command a line on standard input, one answer a line on standard output,
 * "ok<TAB>…" or "err<TAB>code<TAB>detail<TAB>hint". It lives until its input ends, and so holds what it opened.
 *
 * "fail N" makes the Nth change to the kernel from now on fail with EIO, "die N" kills the process in its place: the
 * linker puts the __wrap_ functions below between the rooms and what changes the kernel (see meson.build). */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "netlink/netns.h"
#include "netlink/nft.h"
#include "netlink/nftset.h"
#include "netlink/rtnl.h"
#include "netlink/tun.h"
#include "network/network.h"

#define WORDS 8
#define BENCH_MAX 1000
#define ANSWER_TIMEOUT_MS 1500

static int changes, fail_at, die_at;

static bool change_fails(void) {
    changes++;
    if (changes == die_at)
        kill(getpid(), SIGKILL);
    return changes == fail_at;
}

static int injected(struct err *err) {
    return err_set(err, EIO, "test.injected", "injected");
}

int __real_rtnl_change(struct rtnl *rtnl, struct rtnl_msg *msg, struct err *err);
int __wrap_rtnl_change(struct rtnl *rtnl, struct rtnl_msg *msg, struct err *err);
int __wrap_rtnl_change(struct rtnl *rtnl, struct rtnl_msg *msg, struct err *err) {
    return change_fails() ? injected(err) : __real_rtnl_change(rtnl, msg, err);
}

int __real_nft_run(int nsfd, const char *commands, struct strbuf *output, struct err *err);
int __wrap_nft_run(int nsfd, const char *commands, struct strbuf *output, struct err *err);
int __wrap_nft_run(int nsfd, const char *commands, struct strbuf *output, struct err *err) {
    return change_fails() ? injected(err) : __real_nft_run(nsfd, commands, output, err);
}

int __real_nftset_apply(struct nftset *nftset, const struct nftset_change *change, size_t count, struct err *err);
int __wrap_nftset_apply(struct nftset *nftset, const struct nftset_change *change, size_t count, struct err *err);
int __wrap_nftset_apply(struct nftset *nftset, const struct nftset_change *change, size_t count, struct err *err) {
    return change_fails() ? injected(err) : __real_nftset_apply(nftset, change, count, err);
}

int __real_netns_sysctl_write(int nsfd, const char *key, const char *value);
int __wrap_netns_sysctl_write(int nsfd, const char *key, const char *value);
int __wrap_netns_sysctl_write(int nsfd, const char *key, const char *value) {
    return change_fails() ? -EIO : __real_netns_sysctl_write(nsfd, key, value);
}

int __real_mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int __wrap_mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int __wrap_mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data) {
    if (change_fails()) {
        errno = EIO;
        return -1;
    }
    return __real_mount(source, target, type, flags, data);
}

/* Those of /dev/net/tun, but for questions (_IOR). */
int __real_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg) {
    bool change = _IOC_TYPE(request) == 'T' && _IOC_DIR(request) == _IOC_WRITE;
    if (change && change_fails()) {
        errno = EIO;
        return -1;
    }
    return __real_ioctl(fd, request, arg);
}

static struct network *network;

static int number(const char *word) {
    uint64_t value = 0;
    str_to_u64(word, 0, INT32_MAX, &value);
    return (int)value;
}

static void ok(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void ok(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    printf("ok\t");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
}

static void answer(int r, const struct err *err) {
    if (r >= 0)
        ok("%d", r);
    else if (r != -err->errnum)
        printf("err\ttool.mismatch\treturned %d but err says %d\t\n", r, err->errnum);
    else
        printf("err\t%s\t%s\t%s\n", err->code, err->detail, err->hint);
}

static const char *optional(const char *word) {
    return strcmp(word, "-") == 0 ? "" : word;
}

/* set KEY VALUE…: of the [network] section, for the next start. */
static struct config config;

static void set_key(char **w, struct err *err) {
    char value[256] = "";
    for (int i = 2; i < WORDS && *w[i]; i++)
        snprintf(value + strlen(value), sizeof value - strlen(value), "%s%s", i > 2 ? " " : "", w[i]);
    answer(config_set(&config, "network", w[1], value, err), err);
}

/* A VM by the first eight digits of its TAP's name: the nth has the address 8 + n of the pool and a MAC that ends
 * likewise. */
static struct network_nic nic_of(const char *tap, const char *id, uint32_t owner) {
    struct network_nic nic = {.owner_uid = owner};
    char digits[9] = "";
    if (strlen(tap) > strlen(NETWORK_TAP_PREFIX))
        str_copy(digits, sizeof digits, tap + strlen(NETWORK_TAP_PREFIX));
    uint32_t n = (uint32_t)strtoul(digits, NULL, 16);
    if (n >= 0x10000)
        n = n * 2654435761U >> 18;
    nic.ip = (config.network.address.address & net_mask(config.network.address.length)) + 8 + n;
    nic.mac = (struct net_mac){{0x02, 0xfc, 0, 0, (uint8_t)((n + 8) >> 8), (uint8_t)(n + 8)}};
    if (!str_copy(nic.tap, sizeof nic.tap, tap))
        str_copy(nic.tap, sizeof nic.tap, "/"); /* as wrong as one that does not fit */
    str_copy(nic.vm_id, sizeof nic.vm_id, id);
    return nic;
}

#define KNOWN_MAX 1024
static struct network_nic known[KNOWN_MAX];
static size_t known_count;

/* start NAMESPACE|- BRIDGE PREFIX UPLINK|- yes|no: with the VMs that "know" has named. */
static void start(char **w, struct err *err) {
    struct config_network cfg = config.network;
    cfg.masquerade = strcmp(w[5], "yes") == 0;
    *cfg.namespace = '\0';
    str_copy(cfg.namespace, sizeof cfg.namespace, optional(w[1]));
    str_copy(cfg.bridge, sizeof cfg.bridge, w[2]);
    net_parse_prefix(w[3], &cfg.address);
    str_copy(cfg.uplink, sizeof cfg.uplink, optional(w[4]));
    config.network.address = cfg.address;
    network_free(network);
    network = NULL;
    answer(network_start(&cfg, known, known_count, &network, err), err);
}

static void list(struct err *err) {
    _cleanup_free_ struct network_tap *taps = NULL;
    size_t count = 0;
    int r = network_tap_list(network, &taps, &count, err);
    if (r < 0) {
        answer(r, err);
        return;
    }
    printf("ok\t");
    for (size_t i = 0; i < count; i++) {
        char mac[NET_MAC_TEXT];
        net_format_mac(taps[i].mac, mac);
        printf("%s,%s,%s,%u,%d,%d,%d ", taps[i].name, taps[i].vm_id, mac, taps[i].owner_uid, (int)taps[i].holder_pid,
               taps[i].on_bridge, taps[i].up);
    }
    printf("\n");
}

static void describe(void) {
    struct network_status s;
    char mac[NET_MAC_TEXT], ip[NET_IP_TEXT];
    network_describe(network, &s);
    net_format_mac(s.mac, mac);
    net_format_ip(s.address.address, ip);
    ok("namespace=%s bridge=%s index=%d mac=%s address=%s/%u present=%d up=%d ports=%u/%u uplink=%s forward=%d "
       "masquerade=%d isolated=%d",
       s.namespace, s.bridge, s.bridge_index, mac, ip, s.address.length, s.address_present, s.up, s.ports, s.ports_max,
       s.uplink, s.forward, s.masquerade, s.isolated);
}

static bool wait_for(int fd, short events, int timeout_ms) {
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, timeout_ms) == 1;
}

static void connect_to(uint32_t ip, uint16_t port, struct err *err) {
    _cleanup_close_ int fd = -1;
    int so_error = 0;
    socklen_t len = sizeof so_error;
    int r = network_connect_tcp(network, ip, port, &fd, err);
    if (r < 0)
        answer(r, err);
    else if (!wait_for(fd, POLLOUT, ANSWER_TIMEOUT_MS))
        ok("timeout");
    else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &so_error, &len) == 0)
        ok("%s", so_error ? strerror(so_error) : "connected");
}

static void ping(uint32_t ip, struct err *err) {
    struct icmp_echo echo = {.id = (uint16_t)getpid(), .sequence = 1, .nonce = (uint64_t)time_monotonic_ms()}, got;
    _cleanup_close_ int fd = -1;
    char packet[256];
    uint32_t from;
    int r = network_icmp_socket(network, &fd, err);
    if (r == 0)
        r = network_icmp_send(fd, ip, echo, err);
    if (r < 0) {
        answer(r, err);
        return;
    }
    int64_t deadline = time_monotonic_ms() + ANSWER_TIMEOUT_MS;
    while (time_monotonic_ms() < deadline && wait_for(fd, POLLIN, ANSWER_TIMEOUT_MS)) {
        ssize_t n = recv(fd, packet, sizeof packet, 0);
        if (n > 0 && icmp_echo_read(packet, (size_t)n, &from, &got) && from == ip && got.id == echo.id &&
            got.sequence == echo.sequence && got.nonce == echo.nonce) {
            ok("reply");
            return;
        }
    }
    ok("silence");
}

static void vm_id_of(unsigned int n, char id[VM_ID_TEXT]) {
    snprintf(id, VM_ID_TEXT, "vm-%08x-%x000-4000-8000-000000000000", n, n & 15);
}

static int compare_ms(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int bench_attach(size_t count, double *ms, struct err *err) {
    char id[VM_ID_TEXT], tap[VM_TAP_TEXT];
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++) {
        vm_id_of((unsigned int)i, id);
        vm_tap_from_id(id, tap);
        struct network_nic nic = nic_of(tap, id, 4000);
        double begin = now_ms();
        _cleanup_close_ int fd = -1; /* goes to the VMM */
        r = network_tap_create(network, &nic, &fd, err);
        ms[i] = now_ms() - begin;
    }
    return r;
}

static int bench_release(size_t count, double *ms, struct err *err) {
    char id[VM_ID_TEXT], tap[VM_TAP_TEXT];
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++) {
        vm_id_of((unsigned int)i, id);
        vm_tap_from_id(id, tap);
        double begin = now_ms();
        r = network_tap_remove(network, tap, id, err);
        ms[i] = now_ms() - begin;
    }
    return r;
}

/* bench COUNT: attach that many TAPs, then remove them. Answers p50 and p99 of both in milliseconds a TAP; with a second
 * word it leaves them and answers what each attach took. */
static void bench(size_t count, bool all, struct err *err) {
    static double attach[BENCH_MAX], release[BENCH_MAX];
    if (count > BENCH_MAX)
        count = BENCH_MAX;
    int r = bench_attach(count, attach, err);
    if (r == 0 && !all)
        r = bench_release(count, release, err);
    if (r < 0) {
        answer(r, err);
        return;
    }
    if (all) {
        printf("ok\t");
        for (size_t i = 0; i < count; i++)
            printf("%.3f ", attach[i]);
        printf("\n");
        return;
    }
    qsort(attach, count, sizeof *attach, compare_ms);
    qsort(release, count, sizeof *release, compare_ms);
    ok("%.3f %.3f %.3f %.3f", attach[count / 2], attach[count * 99 / 100], release[count / 2],
       release[count * 99 / 100]);
}

static void stopped(const char *tap, struct err *err) {
    struct network_stopped found[RULESET_REASONS];
    int r = network_stopped(network, tap, found, err);
    if (r < 0) {
        answer(r, err);
        return;
    }
    printf("ok\t");
    for (int i = 1; i < RULESET_REASONS; i++)
        printf("%s=%llu ", ruleset_reason_name((enum ruleset_reason)i), (unsigned long long)found[i].packets);
    printf("\n");
}

static void mac_used(const char *text) {
    struct net_mac mac;
    if (net_parse_mac(text, &mac) == 0)
        ok("%d", network_mac_in_use(network, mac));
    else
        printf("err\ttool.usage\tno MAC %s\t\n", text);
}

static void tap_command(char **w, struct err *err) {
    int fd = -1;
    struct network_nic nic = nic_of(w[1], w[2], (uint32_t)number(w[3]));
    if (strcmp(w[0], "create") == 0)
        answer(network_tap_create(network, &nic, NULL, err), err);
    else if (strcmp(w[0], "know") == 0)
        ok("%zu", known_count < KNOWN_MAX ? (known[known_count] = nic, ++known_count) : 0);
    else if (strcmp(w[0], "stopped") == 0)
        stopped(w[1], err);
    else if (strcmp(w[0], "restore") == 0)
        answer(network_tap_restore(network, w[1], w[2], err), err);
    else if (strcmp(w[0], "guard") == 0)
        answer(network_guard(network, err), err);
    else if (strcmp(w[0], "room") == 0)
        answer(network_check_room(network, strtoul(w[1], NULL, 10), err), err);
    else if (strcmp(w[0], "set") == 0)
        set_key(w, err);
    else if (strcmp(w[0], "take") == 0)
        answer(network_tap_remove(network, w[1], w[2], err), err);
    else if (strcmp(w[0], "open") == 0) {
        int r = network_tap_open(network, w[1], &fd, err);
        answer(r < 0 ? r : fd, err);
    } else if (strcmp(w[0], "close") == 0)
        answer(close(number(w[1])), err);
    else if (strcmp(w[0], "bench") == 0)
        bench((size_t)number(w[1]), *w[2], err);
    else
        printf("err\ttool.usage\tno command %s\t\n", w[0]);
}

static void command(char **w, struct err *err) {
    uint32_t ip = 0;
    net_parse_ip(w[1], &ip); /* where it is one */
    if (strcmp(w[0], "start") == 0)
        start(w, err);
    else if (strcmp(w[0], "free") == 0) {
        network_free(network);
        network = NULL;
        ok("freed");
    } else if (strcmp(w[0], "remove") == 0)
        answer(network_remove(network, err), err);
    else if (strcmp(w[0], "list") == 0)
        list(err);
    else if (strcmp(w[0], "describe") == 0)
        describe();
    else if (strcmp(w[0], "connect") == 0)
        connect_to(ip, (uint16_t)number(w[2]), err);
    else if (strcmp(w[0], "ping") == 0)
        ping(ip, err);
    else if (strcmp(w[0], "forget") == 0)
        answer(network_neighbour_forget(network, ip, err), err);
    else if (strcmp(w[0], "mac-used") == 0)
        mac_used(w[1]);
    else if (strcmp(w[0], "fail") == 0)
        ok("%d", fail_at = changes + number(w[1]));
    else if (strcmp(w[0], "die") == 0)
        ok("%d", die_at = changes + number(w[1]));
    else if (strcmp(w[0], "changes") == 0)
        ok("%d", changes);
    else
        tap_command(w, err);
}

int main(void) {
    char line[1024];
    config_defaults(&config);
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        static char empty[] = "";
        char *words[WORDS], *save = NULL;
        struct err err = {0};
        line[strcspn(line, "\n")] = '\0';
        for (int i = 0; i < WORDS; i++) {
            char *word = strtok_r(i == 0 ? line : NULL, " ", &save);
            words[i] = word ? word : empty;
        }
        if (*words[0])
            command(words, &err);
    }
    network_free(network);
    return 0;
}
