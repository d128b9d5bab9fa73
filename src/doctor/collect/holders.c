/* Who holds a TAP: /proc/PID/fdinfo/FD has a line "iff:\tNAME" for descriptors of /dev/net/tun.
 * Source: drivers/net/tun.c (tun_chr_show_fdinfo), proc(5). */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"
#include "doctor/collect/collect.h"
#include "netlink/netns.h"

#ifndef TUNGETDEVNETNS
#define TUNGETDEVNETNS _IO('T', 227)
#endif

struct scan {
    struct snapshot *s;
    int nsfd;
    uint32_t closed; /* processes that we may not look into */
};

static bool read_interface(int proc_pid, const char *fd_name, char ret_name[SNAP_NAME]) {
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
        found = str_copy(ret_name, SNAP_NAME, line + 5); /* empty: its device is gone, or it never had one */
    }
    fclose(f);
    return found;
}

/* Asks the holder's own descriptor. Everything here only reads. */
static bool ask_descriptor(struct scan *scan, int pidfd, struct snap_holder *holder) {
    struct ifreq request = {0};
    struct sock_fprog filter = {0};
    _cleanup_close_ int copy = pidfd_getfd(pidfd, holder->fd, 0);
    if (copy < 0)
        return true;
    _cleanup_close_ int ns = ioctl(copy, TUNGETDEVNETNS);
    if (ns >= 0 && !netns_is_same(ns, scan->nsfd))
        return false;
    holder->dev_known = ns >= 0;
    holder->details = ioctl(copy, TUNGETIFF, &request) == 0;
    holder->tun_flags = (uint16_t)request.ifr_flags;
    if (ioctl(copy, TUNGETVNETHDRSZ, &holder->vnet_hdr_size) < 0)
        holder->vnet_hdr_size = -1;
    if (ioctl(copy, TUNGETSNDBUF, &holder->sndbuf) < 0)
        holder->sndbuf = -1;
    /* Of a TAP this gives its attached classic filter: length and address only. */
    if (ioctl(copy, TUNGETFILTER, &filter) == 0)
        holder->filtered = filter.filter != NULL && filter.len > 0;
    return true;
}

static char state_of(const char *path, char *ret_comm) {
    char line[512];
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    if (!f || !fgets(line, sizeof line, f))
        return 0;
    char *open = strchr(line, '('), *close = strrchr(line, ')');
    if (!open || !close || close < open || close[1] != ' ')
        return 0;
    *close = '\0';
    if (ret_comm)
        str_copy(ret_comm, SNAP_NAME, open + 1);
    return close[2];
}

static void read_threads(struct snap_holder *holder) {
    char path[600];
    snprintf(path, sizeof path, "/proc/%d/stat", holder->pid);
    holder->state = state_of(path, holder->comm);
    snprintf(path, sizeof path, "/proc/%d/task", holder->pid);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (!isdigit((unsigned char)*e->d_name))
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/stat", holder->pid, e->d_name);
        char state = state_of(path, NULL);
        holder->threads++;
        holder->threads_stopped += state == 'T' || state == 't';
    }
    if (dir)
        closedir(dir);
}

static void read_io(struct snap_holder *holder) {
    char path[64], line[128];
    unsigned long long value;
    snprintf(path, sizeof path, "/proc/%d/io", holder->pid);
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "syscw: %llu", &value) == 1)
            holder->writes = value;
        if (sscanf(line, "wchar: %llu", &value) == 1)
            holder->written = value;
    }
}

/* A frozen cgroup shows neither in the state letter nor anywhere else in /proc/PID. Both hierarchies are asked. */
static bool is_frozen(pid_t pid) {
    char path[PATH_MAX], line[512];
    snprintf(path, sizeof path, "/proc/%d/cgroup", pid);
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        bool v2 = controllers[1] == '\0';
        if (!v2 && !strstr(controllers, "freezer"))
            continue;
        snprintf(path, sizeof path, v2 ? "/sys/fs/cgroup%s/cgroup.freeze" : "/sys/fs/cgroup/freezer%s/freezer.state",
                 group);
        char value[16] = "";
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && read(fd, value, sizeof value - 1) > 0 && (value[0] == '1' || str_starts(value, "FR")))
            return true;
    }
    return false;
}

static void add_holder(struct scan *scan, struct snap_holder *holder, int pidfd) {
    holder->gone = *holder->tap == '\0';
    if (!holder->gone && pidfd >= 0 && !ask_descriptor(scan, pidfd, holder))
        return;
    read_threads(holder);
    read_io(holder);
    holder->frozen = is_frozen(holder->pid);
    proc_start_time(holder->pid, &holder->start_ticks);
    struct snap_holder *row = SNAP_PUSH(scan->s, holders, SNAP_ROWS_MAX);
    if (row)
        *row = *holder;
}

/* Return: false when the process is not ours to look into. */
static bool scan_descriptors(struct scan *scan, int proc_pid, DIR *fds, pid_t pid) {
    _cleanup_close_ int pidfd = -1;
    for (struct dirent *e; (e = readdir(fds));) {
        char target[512];
        struct snap_holder holder = {.pid = pid, .vnet_hdr_size = -1, .sndbuf = -1};
        if (!isdigit((unsigned char)*e->d_name))
            continue;
        ssize_t len = readlinkat(dirfd(fds), e->d_name, target, sizeof target - 1);
        if (len < 0 && errno == EACCES)
            return false;
        target[len < 0 ? 0 : len] = '\0';
        /* A jail has the device under a longer path, or shows it as deleted. fdinfo decides. */
        if (!strstr(target, "/net/tun") || !read_interface(proc_pid, e->d_name, holder.tap))
            continue;
        if (pidfd < 0)
            pidfd = pidfd_open(pid, 0);
        holder.fd = atoi(e->d_name);
        add_holder(scan, &holder, pidfd);
    }
    return true;
}

static void scan_process(struct scan *scan, int proc, const char *pid_name) {
    _cleanup_close_ int proc_pid = openat(proc, pid_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = proc_pid < 0 ? -1 : openat(proc_pid, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *fds = fd < 0 ? NULL : fdopendir(fd);
    if (!fds) {
        scan->closed += errno == EACCES;
        fd_close(&fd);
        return;
    }
    if (!scan_descriptors(scan, proc_pid, fds, atoi(pid_name)))
        scan->closed++;
    closedir(fds);
}

void collect_holders(struct snapshot *s, int nsfd) {
    struct scan scan = {.s = s, .nsfd = nsfd};
    DIR *proc = opendir("/proc");
    if (!proc) {
        snapshot_gap(s, "holders", errno, "/proc cannot be read");
        return;
    }
    for (struct dirent *e; (e = readdir(proc));)
        if (isdigit((unsigned char)*e->d_name))
            scan_process(&scan, dirfd(proc), e->d_name);
    closedir(proc);
    if (scan.closed)
        snapshot_gap(s, "holders", EACCES, "%u processes could not be looked into%s", scan.closed,
                     geteuid() ? ": run as root to see all holders" : "");
}

/* --- who speaks of a TAP and does not hold it --- */

static bool has_word(const char *text, size_t len, const char *word) {
    size_t n = strlen(word);
    for (const char *at = text; (at = memmem(at, (size_t)(text + len - at), word, n)); at++) {
        bool begins = at == text || !isalnum((unsigned char)at[-1]);
        bool ends = at + n == text + len || !(isalnum((unsigned char)at[n]) || at[n] == '-' || at[n] == '_');
        if (begins && ends)
            return true;
    }
    return false;
}

static void read_status(struct snap_claimant *claimant) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/status", claimant->pid);
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (str_starts(line, "Uid:"))
            sscanf(line, "Uid: %*u %u", &claimant->uid);
        if (str_starts(line, "CapEff:"))
            claimant->net_admin = strtoull(line + 7, NULL, 16) >> 12 & 1; /* CAP_NET_ADMIN */
        if (str_starts(line, "Name:"))
            sscanf(line, "Name: %15[^\n]", claimant->comm);
    }
}

static bool is_orphaned(const struct snapshot *s, pid_t pid) {
    for (uint32_t i = 0; i < s->holders_count; i++)
        if (s->holders[i].pid == pid && s->holders[i].gone)
            return true;
    return false;
}

static bool holds_any(const struct snapshot *s, pid_t pid) {
    for (uint32_t i = 0; i < s->holders_count; i++)
        if (s->holders[i].pid == pid && !s->holders[i].gone)
            return true;
    return false;
}

static void claim(struct snapshot *s, pid_t pid, const char *tap) {
    struct snap_claimant *claimant = SNAP_PUSH(s, claimants, 4096);
    if (!claimant)
        return;
    claimant->pid = pid;
    str_copy(claimant->tap, sizeof claimant->tap, tap);
    read_status(claimant);
    claimant->orphaned = is_orphaned(s, pid);
}

/* Tools that are asked about a TAP name it too: ours, and ip, tcpdump and the like. Only what lives longer than a
 * moment and has /dev/net/tun open, or is called like a VMM, is a claimant. */
static void read_claims(struct snapshot *s, pid_t pid, const char *const *taps, size_t count) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (len <= 0 || pid == getpid() || pid == getppid() || memmem(text, (size_t)len, "doctor\0", 7))
        return;
    for (size_t i = 0; i < count; i++)
        if (has_word(text, (size_t)len, taps[i]) && (!holds_any(s, pid) || is_orphaned(s, pid)))
            claim(s, pid, taps[i]);
}

void collect_claimants(struct snapshot *s, const char *tap) {
    const char *taps[64];
    size_t count = 0;
    if (*tap && !snap_holder_of(s, tap))
        taps[count++] = tap;
    for (uint32_t i = 0; i < s->links_count && count < sizeof taps / sizeof *taps; i++)
        if (snap_is_tap(&s->links[i]) && !s->links[i].carrier && strcmp(s->links[i].name, tap) != 0)
            taps[count++] = s->links[i].name;
    DIR *proc = count ? opendir("/proc") : NULL;
    for (struct dirent *e; proc && (e = readdir(proc));)
        if (isdigit((unsigned char)*e->d_name))
            read_claims(s, atoi(e->d_name), taps, count);
    if (proc)
        closedir(proc);
}

/* --- the same name in another namespace --- */

static bool has_link(int nsfd, const char *tap) {
    struct ifreq request = {0};
    _cleanup_close_ int fd = -1;
    str_copy(request.ifr_name, sizeof request.ifr_name, tap);
    return netns_socket(nsfd, AF_INET, SOCK_DGRAM, 0, &fd) == 0 && ioctl(fd, SIOCGIFINDEX, &request) == 0;
}

static void look_into(struct snapshot *s, int here, const char *path, const char *name, pid_t pid, const char *tap) {
    _cleanup_close_ int nsfd = open(path, O_RDONLY | O_CLOEXEC);
    if (nsfd < 0 || netns_is_same(nsfd, here) || !has_link(nsfd, tap))
        return;
    for (uint32_t i = 0; i < s->elsewhere_count; i++)
        if (strcmp(s->elsewhere[i].netns, name) == 0 && strcmp(s->elsewhere[i].tap, tap) == 0)
            return;
    struct snap_elsewhere *row = SNAP_PUSH(s, elsewhere, 256);
    if (!row)
        return;
    str_copy(row->tap, sizeof row->tap, tap);
    str_copy(row->netns, sizeof row->netns, name);
    row->pid = pid;
}

/* Named namespaces, then those of the processes, each once. */
void collect_elsewhere(struct snapshot *s, int nsfd, const char *tap) {
    char path[600], name[32];
    ino_t seen[256];
    size_t seen_count = 0;
    uint32_t before = s->elsewhere_count;
    DIR *dir = opendir(NETNS_DIR);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (*e->d_name == '.')
            continue;
        snprintf(path, sizeof path, NETNS_DIR "/%s", e->d_name);
        look_into(s, nsfd, path, e->d_name, 0, tap);
    }
    if (dir)
        closedir(dir);
    if (s->elsewhere_count > before)
        return;
    dir = opendir("/proc");
    for (struct dirent *e; dir && (e = readdir(dir));) {
        struct stat st;
        if (!isdigit((unsigned char)*e->d_name))
            continue;
        snprintf(path, sizeof path, "/proc/%s/ns/net", e->d_name);
        bool known = stat(path, &st) < 0 || seen_count == sizeof seen / sizeof *seen;
        for (size_t i = 0; !known && i < seen_count; i++)
            known = seen[i] == st.st_ino;
        if (known)
            continue;
        seen[seen_count++] = st.st_ino;
        snprintf(name, sizeof name, "pid %.12s", e->d_name);
        look_into(s, nsfd, path, name, atoi(e->d_name), tap);
    }
    if (dir)
        closedir(dir);
}
