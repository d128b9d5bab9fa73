#include "netlink/tun.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "netlink/link.h"
#include "netlink/netns.h"

static int cannot_open(int errnum, struct err *err) {
    if (errnum == EPERM || errnum == EACCES) {
        err_sys(err, errnum, "tun.no-permission", "open %s", TUN_DEVICE);
        err_hint(err, "run as root, or with CAP_NET_ADMIN and access to %s", TUN_DEVICE);
        return -errnum;
    }
    if (errnum != ENOENT && errnum != ENODEV && errnum != ENXIO && errnum != ENOTTY)
        return err_sys(err, errnum, "tun.failed", "open %s", TUN_DEVICE);
    err_set(err, ENODEV, "tun.missing", "%s is %s, so no TAP can be made", TUN_DEVICE,
            errnum == ENOENT   ? "missing"
            : errnum == ENOTTY ? "not the TUN device"
                               : "there, but the kernel has no TUN driver");
    err_hint(err,
             "modprobe tun; in a container also: mkdir -p /dev/net && mknod %s c 10 200 (and let the "
             "container have that device)",
             TUN_DEVICE);
    return -ENODEV;
}

/* The device remembers the namespace of the thread that opens it. */
static int tun_open(int nsfd, int *ret_fd, struct err *err) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    int r = netns_enter(nsfd, &scope);
    if (r < 0)
        return err_sys(err, -r, "tun.failed", "enter the network namespace");
    int fd = open(TUN_DEVICE, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return cannot_open(errno, err);
    *ret_fd = fd;
    return 0;
}

int tun_check(struct err *err) {
    unsigned int features;
    _cleanup_close_ int fd = open(TUN_DEVICE, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || ioctl(fd, TUNGETFEATURES, &features) < 0)
        return cannot_open(errno, err);
    return 0;
}

static int request_for(const char *name, int flags, struct ifreq *ret, struct err *err) {
    if (!link_name_is_valid(name)) {
        char shown[40];
        str_escape(name, strnlen(name, 20), shown, sizeof shown);
        return err_set(err, EINVAL, "tun.bad-name", "\"%s\" is not a name for a TAP", shown);
    }
    *ret = (struct ifreq){.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags)};
    str_copy(ret->ifr_name, sizeof ret->ifr_name, name);
    return 0;
}

static int set_header_size(int fd, struct err *err) {
    int size = TAP_VNET_HDR_SIZE;
    if (ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
        return err_sys(err, errno, "tun.failed", "set a TAP's header size");
    return 0;
}

/* ip tuntap add NAME mode tap vnet_hdr user UID (but for its persistence) */
int tap_create(int nsfd, const char *name, uid_t owner_uid, int *ret_fd, struct err *err) {
    struct ifreq request;
    _cleanup_close_ int fd = -1;
    /* Without EXCL an existing TAP of that name, another VM's, would be attached to. */
    int r = request_for(name, IFF_TUN_EXCL, &request, err);
    if (r < 0)
        return r;
    r = tun_open(nsfd, &fd, err);
    if (r < 0)
        return r;
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        if (errno == EBUSY || errno == EEXIST)
            return err_set(err, EEXIST, "tun.exists", "a network device \"%s\" is already there", name);
        return err_sys(err, errno, errno == EPERM ? "tun.no-permission" : "tun.failed", "make TAP %s", name);
    }
    if (ioctl(fd, TUNSETOWNER, (unsigned long)owner_uid) < 0)
        return err_sys(err, errno, "tun.failed", "give TAP %s to uid %u", name, owner_uid);
    r = set_header_size(fd, err);
    if (r < 0)
        return r;
    *ret_fd = fd_steal(&fd);
    return 0;
}

int tap_persist(int fd, struct err *err) {
    if (ioctl(fd, TUNSETPERSIST, 1UL) < 0)
        return err_sys(err, errno, "tun.failed", "make a TAP stay");
    return 0;
}

static int cannot_attach(int errnum, const char *name, struct err *err) {
    if (errnum == EBUSY)
        return err_set(err, EBUSY, "tun.held", "TAP %s is held by a process", name);
    if (errnum == EINVAL || errnum == EEXIST)
        return err_set(err, EINVAL, "tun.not-a-tap", "%s is not a TAP with a single queue", name);
    return err_sys(err, errnum, errnum == EPERM ? "tun.no-permission" : "tun.failed", "attach to TAP %s", name);
}

int tap_open(int nsfd, const char *name, int *ret_fd, struct err *err) {
    struct ifreq request, is;
    _cleanup_close_ int fd = -1, probe = -1;
    int r = request_for(name, 0, &request, err);
    if (r < 0)
        return r;
    r = netns_socket(nsfd, AF_INET, SOCK_DGRAM, 0, &probe);
    if (r < 0)
        return err_sys(err, -r, "tun.failed", "enter the network namespace");
    is = request;
    if (ioctl(probe, SIOCGIFINDEX, &is) < 0)
        return err_set(err, ENODEV, "tun.no-such-tap", "there is no TAP %s", name);
    r = tun_open(nsfd, &fd, err);
    if (r < 0)
        return r;
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        return cannot_attach(errno, name, err);
    /* If it went between the look and the attaching, a new one was made, which is not persistent and goes with fd. */
    if (ioctl(fd, TUNGETIFF, &is) < 0 || !(is.ifr_flags & IFF_PERSIST))
        return err_set(err, ENODEV, "tun.no-such-tap", "there is no TAP %s that stays", name);
    r = set_header_size(fd, err);
    if (r < 0)
        return r;
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* The name of the device that a descriptor of /dev/net/tun is attached to. */
static bool read_interface(int proc_pid, const char *fd_name, char ret_name[TAP_NAME_TEXT]) {
    char path[64], line[128];
    snprintf(path, sizeof path, "fdinfo/%.32s", fd_name);
    int fd = openat(proc_pid, path, O_RDONLY | O_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    if (!f) {
        fd_close(&fd);
        return false;
    }
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        if (!str_starts(line, "iff:\t"))
            continue;
        line[strcspn(line, "\n")] = '\0';
        found = line[5] != '\0' && str_copy(ret_name, TAP_NAME_TEXT, line + 5);
    }
    fclose(f);
    return found;
}

/* Names are unique only within a namespace, so the descriptor itself is asked in which one its device is. */
static bool is_elsewhere(int pidfd, const char *fd_name, int nsfd) {
    uint64_t number;
    if (str_to_u64(fd_name, 0, INT_MAX, &number) < 0)
        return false;
    _cleanup_close_ int copy = pidfd_getfd(pidfd, (int)number, 0);
    _cleanup_close_ int ns = copy < 0 ? -1 : ioctl(copy, TUNGETDEVNETNS);
    return ns >= 0 && !netns_is_same(ns, nsfd);
}

struct holders {
    struct tap_holder *items;
    size_t count, cap;
};

static int holders_add(struct holders *holders, const struct tap_holder *holder) {
    if (holders->count == TAP_HOLDERS_MAX)
        return -E2BIG;
    if (holders->count == holders->cap) {
        size_t cap = holders->cap ? holders->cap * 2 : 16;
        struct tap_holder *bigger = reallocarray(holders->items, cap, sizeof *bigger);
        if (!bigger)
            return -ENOMEM;
        holders->items = bigger;
        holders->cap = cap;
    }
    holders->items[holders->count++] = *holder;
    return 0;
}

static int scan_descriptors(int proc_pid, DIR *fds, pid_t pid, int nsfd, struct holders *holders) {
    _cleanup_close_ int pidfd = -1;
    for (struct dirent *e; (e = readdir(fds));) {
        char target[512];
        struct tap_holder holder = {.pid = pid};
        if (!isdigit((unsigned char)*e->d_name))
            continue;
        ssize_t len = readlinkat(dirfd(fds), e->d_name, target, sizeof target - 1);
        if (len < 0 && errno == EACCES) /* not ours to look into, none of them */
            return 0;
        target[len < 0 ? 0 : len] = '\0';
        /* A jail has the device under a longer path, or shows it as deleted. fdinfo decides. */
        if (!strstr(target, "/net/tun") || !read_interface(proc_pid, e->d_name, holder.name))
            continue;
        if (pidfd < 0)
            pidfd = pidfd_open(pid, 0);
        if (pidfd >= 0 && is_elsewhere(pidfd, e->d_name, nsfd))
            continue;
        int r = holders_add(holders, &holder);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A process that ends meanwhile, or that we may not look into, holds nothing that we could tell. */
static int scan_process(int proc, const char *pid_name, int nsfd, struct holders *holders) {
    uint64_t pid;
    if (str_to_u64(pid_name, 1, INT_MAX, &pid) < 0) /* not a process: /proc/net and so on */
        return 0;
    _cleanup_close_ int proc_pid = openat(proc, pid_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = proc_pid < 0 ? -1 : openat(proc_pid, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *fds = fd < 0 ? NULL : fdopendir(fd);
    if (!fds) {
        fd_close(&fd);
        return 0;
    }
    int r = scan_descriptors(proc_pid, fds, (pid_t)pid, nsfd, holders);
    closedir(fds);
    return r;
}

int tap_holders(int nsfd, struct tap_holder **ret, size_t *ret_count) {
    struct holders holders = {0};
    DIR *proc = opendir("/proc");
    if (!proc)
        return -errno;
    int r = 0;
    for (struct dirent *e; r == 0 && (e = readdir(proc));)
        r = scan_process(dirfd(proc), e->d_name, nsfd, &holders);
    closedir(proc);
    if (r < 0) {
        free(holders.items);
        return r;
    }
    *ret = holders.items;
    *ret_count = holders.count;
    return 0;
}

pid_t tap_holder_find(int nsfd, const char *name, pid_t except) {
    _cleanup_free_ struct tap_holder *holders = NULL;
    size_t count = 0;
    int r = tap_holders(nsfd, &holders, &count);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++)
        if (strcmp(holders[i].name, name) == 0 && holders[i].pid != except)
            return holders[i].pid;
    return 0;
}
