/* Waits for the kernel to say that something changed, lets it settle for a moment, looks again: at the state alone, which
 * is quick and tells most of what a change breaks; then by asking the path, which takes longer and tells the rest.
 * Between changes it sleeps in poll(): nothing wakes it.
 *
 * Of sysctls the kernel tells nothing (of a few it does); but who writes one writes a file, and that inotify tells.
 *
 * Asking makes changes of its own (the canary's port, the trace's table): their messages are thrown away, and the state
 * is looked at once more, so that somebody else's change in that time is not lost. */
#include <errno.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/filter.h>
#include <linux/neighbour.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "doctor/doctor.h"
#include "netlink/netns.h"

#define SETTLE_MS 60
#define SETTLE_MAX_MS 400
#define RECEIVE_BUFFER (1024 * 1024)
#define ECHO_MS 2500  /* the kernel tells of a carrier up to a second later; twice that, on a busy host */
#define TOLD_MAX 4096 /* findings that are compared */
#define KEYS_MAX 128  /* sysctls that are followed */

/* Neighbours and FDB entries that the kernel learns come and go all day: only those that somebody set are let through.
 * nlmsghdr: length 0, type 4 (in this machine's order: its low byte is first); ndmsg behind it at 16: state at 24. */
static int keep_fixed_neighbours(int fd) {
    static struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RTM_NEWNEIGH & 0xff, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RTM_DELNEIGH & 0xff, 0, 2),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 24),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NUD_PERMANENT | NUD_NOARP, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ? -errno : 0;
}

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

/* What asking never does: addresses and policy rules are somebody else's change for sure. */
static bool holds_foreign(const char *buffer, ssize_t size) {
    int left = (int)size;
    for (const struct nlmsghdr *nlh = (const void *)buffer; NLMSG_OK(nlh, left); nlh = mnl_nlmsg_next(nlh, &left))
        if (nlh->nlmsg_type == RTM_NEWADDR || nlh->nlmsg_type == RTM_DELADDR || nlh->nlmsg_type == RTM_NEWRULE ||
            nlh->nlmsg_type == RTM_DELRULE)
            return true;
    return false;
}

/* Lost messages are a change as well. Return: whether there was anything. */
static bool drain(int fd, bool *foreign) {
    char buffer[32768] __attribute__((aligned(8)));
    bool any = false;
    if (fd < 0)
        return false;
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (n < 0 && errno != ENOBUFS)
            return any;
        any = true;
        *foreign = *foreign || (n > 0 && holds_foreign(buffer, n));
    }
}

enum { FD_ROUTE, FD_NEIGH, FD_NFT, FD_SYSCTLS, FD_CHANGES, FD_OUT = FD_CHANGES, FD_COUNT };

struct watch {
    const struct doctor_options *options;
    int nsfd;
    struct pollfd fds[FD_COUNT];
    int keys[KEYS_MAX]; /* the followed sysctls' files: open ones keep the inodes on which inotify waits */
    size_t keys_count;
    uint64_t keys_hash;
    bool (*told)(const struct doctor_case *c, void *data);
    void *data;
    uint64_t *last, state; /* what was told, a number a finding; the state's findings, as one number */
    size_t last_count;
    int64_t asked_ms; /* when asking ended */
    bool foreign;     /* a change since then that asking cannot have made */
};

/* Asking writes none: it was somebody else. */
static bool drain_sysctls(struct watch *w) {
    char buffer[4096];
    bool any = false;
    while (w->fds[FD_SYSCTLS].fd >= 0 && read(w->fds[FD_SYSCTLS].fd, buffer, sizeof buffer) > 0)
        any = w->foreign = true;
    return any;
}

static bool drain_all(struct watch *w) {
    bool any = drain(w->fds[FD_ROUTE].fd, &w->foreign), nowhere = false; /* nft's types are another protocol's */
    any = drain(w->fds[FD_NEIGH].fd, &nowhere) || any;
    any = drain_sysctls(w) || any;
    return drain(w->fds[FD_NFT].fd, &nowhere) || any;
}

/* Waits for a change and then until there is none for a moment. Return: 0, -EPIPE: nobody reads any more; or -errno. */
static int wait_for_change(struct watch *w) {
    do {
        if (poll(w->fds, FD_COUNT, -1) < 0)
            return errno == EINTR ? 0 : -errno;
        if (w->fds[FD_OUT].revents & (POLLERR | POLLHUP | POLLNVAL))
            return -EPIPE;
    } while (!drain_all(w));
    int64_t end_ms = time_monotonic_ms() + SETTLE_MAX_MS;
    int r = 1;
    while (r > 0 && time_monotonic_ms() < end_ms) {
        r = poll(w->fds, FD_CHANGES, SETTLE_MS);
        drain_all(w);
    }
    return r < 0 && errno != EINTR ? -errno : 0;
}

/* --- what is new --- */

#define HASH_BEGIN 14695981039346656037ULL /* FNV-1a */

static uint64_t hash_text(uint64_t hash, const char *text) {
    for (const char *at = text; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 1099511628211ULL;
    return hash;
}

/* A finding as a number. */
static uint64_t number_of(const char *tap, const struct finding *f) {
    return hash_text(hash_text(hash_text(HASH_BEGIN, tap), f->id), f->title);
}

static int compare(const void *a, const void *b) {
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* The case's findings, sorted; only_causes: without what is but noted. */
static size_t numbers_of(const struct doctor_case *c, bool only_causes, uint64_t *ret) {
    size_t count = 0;
    for (uint32_t i = 0; i < c->count; i++)
        for (uint32_t f = 0; f < c->judgements[i].findings_count && count < TOLD_MAX; f++) {
            const struct finding *one = &c->judgements[i].findings[f];
            if (!only_causes || one->role == ROLE_ROOT_CAUSE)
                ret[count++] = number_of(c->targets[i].tap, one);
        }
    qsort(ret, count, sizeof *ret, compare);
    return count;
}

static uint64_t digest(const struct doctor_case *c) {
    uint64_t numbers[TOLD_MAX], hash = c->count;
    size_t count = numbers_of(c, false, numbers);
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ numbers[i]) * 1099511628211ULL;
    return hash;
}

/* The state alone does not show what only asking shows: that something is missing there says nothing. */
static bool has_new_cause(const struct watch *w, const struct doctor_case *c) {
    uint64_t numbers[TOLD_MAX];
    size_t count = numbers_of(c, true, numbers);
    for (size_t i = 0; i < count; i++)
        if (!bsearch(&numbers[i], w->last, w->last_count, sizeof *w->last, compare))
            return true;
    return false;
}

static bool is_as_told(const struct watch *w, const struct doctor_case *c) {
    uint64_t numbers[TOLD_MAX];
    size_t count = numbers_of(c, false, numbers);
    return count == w->last_count && memcmp(numbers, w->last, count * sizeof *numbers) == 0;
}

static int tell(struct watch *w, const struct doctor_case *c) {
    w->last_count = numbers_of(c, false, w->last);
    return w->told(c, w->data) ? 0 : -EPIPE;
}

/* --- sysctls --- */

/* Those of the whole namespace, of all devices, and of the bridge. */
static bool is_followed(const struct snapshot *s, const char *key) {
    const char *name = str_starts(key, "net/ipv4/conf/")    ? key + strlen("net/ipv4/conf/")
                       : str_starts(key, "net/ipv4/neigh/") ? key + strlen("net/ipv4/neigh/")
                                                            : NULL;
    size_t len = strlen(s->host.bridge);
    return !name || str_starts(name, "all/") || (strncmp(name, s->host.bridge, len) == 0 && name[len] == '/');
}

static void forget_sysctls(struct watch *w) {
    fd_close(&w->fds[FD_SYSCTLS].fd);
    while (w->keys_count)
        fd_close(&w->keys[--w->keys_count]);
}

static void follow_sysctl(struct watch *w, const char *key) {
    char path[160];
    snprintf(path, sizeof path, "/proc/sys/%s", key);
    int fd = w->keys_count < KEYS_MAX ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    w->keys[w->keys_count++] = fd;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    inotify_add_watch(w->fds[FD_SYSCTLS].fd, path, IN_MODIFY);
}

/* Those that were read. Return: whether they are others than before, and what was read may be old. */
static bool follow_sysctls(struct watch *w, const struct snapshot *s) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    uint64_t hash = HASH_BEGIN ^ (uint32_t)s->host.bridge_index; /* made again, it has other files */
    for (uint32_t i = 0; i < s->sysctls_count; i++)
        if (is_followed(s, s->sysctls[i].key))
            hash = hash_text(hash, s->sysctls[i].key);
    if (hash == w->keys_hash)
        return false;
    forget_sysctls(w);
    w->keys_hash = hash;
    w->fds[FD_SYSCTLS].fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (w->fds[FD_SYSCTLS].fd < 0 || netns_enter(w->nsfd, &scope) < 0)
        return false;
    for (uint32_t i = 0; i < s->sysctls_count; i++)
        if (is_followed(s, s->sysctls[i].key))
            follow_sysctl(w, s->sysctls[i].key);
    return true;
}

/* --- looking --- */

/* Return: 0, or -errno with err set; -EPIPE: nobody reads. */
static int look_at_state(struct watch *w, bool tell_news, struct err *err) {
    struct doctor_options options = *w->options;
    _cleanup_doctor_case_ struct doctor_case *c = NULL;
    options.no_probe = true;
    options.socket = NULL; /* guests answer slower than the kernel */
    int r = doctor_run(&options, &c, err);
    if (r == 0 && follow_sysctls(w, c->before)) {
        doctor_case_free(ptr_steal(c));
        r = doctor_run(&options, &c, err);
    }
    if (r < 0)
        return r;
    w->state = digest(c);
    return tell_news && has_new_cause(w, c) ? tell(w, c) : 0;
}

static int look_at_all(struct watch *w, bool first, struct err *err) {
    _cleanup_doctor_case_ struct doctor_case *c = NULL;
    int r = doctor_run(w->options, &c, err);
    if (r < 0)
        return r;
    return first || !is_as_told(w, c) ? tell(w, c) : 0;
}

/* Asks until nothing changed meanwhile. */
static int ask(struct watch *w, bool first, struct err *err) {
    uint64_t before;
    int r;
    do {
        before = w->state;
        w->foreign = false;
        r = look_at_all(w, first, err);
        drain_all(w);
        if (r == 0 && !w->options->no_probe)
            r = look_at_state(w, true, err);
        first = false;
    } while (r == 0 && !w->options->no_probe && (w->state != before || w->foreign));
    w->asked_ms = time_monotonic_ms();
    return r;
}

/* After a change. Late news of what asking itself did must not make it ask again, and so on for ever: so soon after it
 * only a change that the state shows is one. */
static int look_again(struct watch *w, struct err *err) {
    uint64_t before = w->state;
    bool may_be_ours = time_monotonic_ms() - w->asked_ms < ECHO_MS;
    int r = look_at_state(w, true, err);
    return r < 0 || (may_be_ours && !w->foreign && w->state == before) ? r : ask(w, false, err);
}

static int follow(struct watch *w, struct err *err) {
    int r = look_at_state(w, false, err);
    if (r == 0)
        r = ask(w, true, err);
    while (r == 0) {
        if ((r = wait_for_change(w)) < 0 && r != -EPIPE)
            return err_sys(err, -r, "doctor.failed", "wait for a change");
        if (r == 0)
            r = look_again(w, err);
    }
    return r == -EPIPE ? err_set(err, EPIPE, "doctor.output", "nobody reads any more") : r;
}

/* A socket for each sort of message, in w->fds. */
static int subscribe_all(struct watch *w, int nsfd) {
    static const int route[] = {RTNLGRP_LINK,      RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
                                RTNLGRP_IPV4_RULE, RTNLGRP_TC,          RTNLGRP_IPV4_NETCONF};
    static const int neigh[] = {RTNLGRP_NEIGH}, nft[] = {NFNLGRP_NFTABLES};
    int r = subscribe(nsfd, NETLINK_ROUTE, route, sizeof route / sizeof *route, &w->fds[FD_ROUTE].fd);
    if (r == 0)
        r = subscribe(nsfd, NETLINK_ROUTE, neigh, 1, &w->fds[FD_NEIGH].fd);
    if (r == 0)
        r = keep_fixed_neighbours(w->fds[FD_NEIGH].fd);
    if (r == 0) /* a kernel without nftables has no changes of them: poll() passes over -1 */
        subscribe(nsfd, NETLINK_NETFILTER, nft, 1, &w->fds[FD_NFT].fd);
    return r;
}

int doctor_watch(const struct doctor_options *options, int out_fd,
                 bool (*told)(const struct doctor_case *c, void *data), void *data, struct err *err) {
    _cleanup_close_ int nsfd = -1;
    _cleanup_free_ uint64_t *last = calloc(TOLD_MAX, sizeof *last);
    struct watch w = {.options = options, .told = told, .data = data, .last = last};
    for (int i = 0; i < FD_CHANGES; i++)
        w.fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    w.fds[FD_OUT] = (struct pollfd){.fd = out_fd}; /* its hanging up is told unasked */
    if (!last)
        return err_sys(err, ENOMEM, "doctor.failed", "watch");
    int r = netns_open(options->netns, &nsfd, err);
    if (r < 0)
        return r;
    w.nsfd = nsfd;
    r = subscribe_all(&w, nsfd);
    r = r < 0 ? err_sys(err, -r, "doctor.failed", "follow the kernel's changes") : follow(&w, err);
    forget_sysctls(&w);
    for (int i = 0; i < FD_CHANGES; i++)
        fd_close(&w.fds[i].fd);
    return r;
}
