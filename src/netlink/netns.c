#include "netlink/netns.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define PATH_SIZE (sizeof NETNS_DIR + 1 + NETNS_NAME_MAX)

bool netns_name_is_valid(const char *name) {
    size_t len = strnlen(name, NETNS_NAME_MAX + 1);
    if (len == 0 || len > NETNS_NAME_MAX || *name == '.')
        return false;
    for (; *name; name++)
        if (!isascii(*name) || (!isalnum((unsigned char)*name) && !strchr("._-", *name)))
            return false;
    return true;
}

static int path_of(const char *name, char ret_path[PATH_SIZE], struct err *err) {
    if (!netns_name_is_valid(name)) {
        char shown[100];
        str_escape(name, strnlen(name, 80), shown, sizeof shown);
        err_set(err, EINVAL, "netns.bad-name", "\"%s\" is not a name for a network namespace", shown);
        err_hint(err, "right would be 1 to %d of A-Z a-z 0-9 . _ -, not beginning with a dot", NETNS_NAME_MAX);
        return -EINVAL;
    }
    snprintf(ret_path, PATH_SIZE, "%s/%s", NETNS_DIR, name);
    return 0;
}

static int open_own(int *ret_fd) {
    int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

static bool is_namespace(int fd) {
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && fs.f_type == NSFS_MAGIC;
}

int netns_open(const char *name, int *ret_fd, struct err *err) {
    if (*name == '\0') {
        int r = open_own(ret_fd);
        return r < 0 ? err_sys(err, -r, "netns.failed", "open this thread's network namespace") : 0;
    }
    char path[PATH_SIZE];
    int r = path_of(name, path, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return err_set(err, ENOENT, "netns.missing", "there is no network namespace \"%s\" (%s)", name, path);
    if (fd < 0)
        return err_sys(err, errno, "netns.failed", "open network namespace %s", path);
    struct stat st;
    bool stale = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0;
    if (!is_namespace(fd) && stale)
        return err_set(err, ENOENT, "netns.missing", "%s is an empty file, with no network namespace on it", path);
    if (!is_namespace(fd)) {
        err_set(err, ESTALE, "netns.not-a-namespace", "%s exists, but it is no network namespace", path);
        err_hint(err, "remove the file (ip netns del %s), or use another name", name);
        return -ESTALE;
    }
    *ret_fd = fd_steal(&fd);
    return 0;
}

bool netns_is_same(int a, int b) {
    struct stat sa, sb;
    return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

int netns_enter(int nsfd, struct netns_scope *ret_scope) {
    _cleanup_close_ int home = -1;
    int r = open_own(&home);
    if (r < 0)
        return r;
    if (netns_is_same(nsfd, home))
        return 0;
    if (setns(nsfd, CLONE_NEWNET) < 0)
        return -errno;
    ret_scope->home = fd_steal(&home);
    return 0;
}

void netns_leave(struct netns_scope *scope) {
    if (scope->home < 0)
        return;
    int saved = errno;
    /* Who could go in may go back; only memory can be short for a moment. */
    for (int attempt = 0; setns(scope->home, CLONE_NEWNET) < 0; attempt++) {
        if (errno != ENOMEM || attempt == 100)
            abort();
        usleep(10 * 1000);
    }
    fd_close(&scope->home);
    errno = saved;
}

/* Makes /run/netns a shared mount, so that a name made or removed in one mount namespace shows in all. Takes the lock
 * that ip-netns(8) takes for this. */
static int share_dir(int *ret_lock, struct err *err) {
    if (mkdir(NETNS_DIR, 0755) < 0 && errno != EEXIST)
        return err_sys(err, errno, "netns.failed", "make %s", NETNS_DIR);
    _cleanup_close_ int lock = open(NETNS_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX) < 0)
        return err_sys(err, errno, "netns.failed", "lock %s", NETNS_DIR);
    if (mount("", NETNS_DIR, "none", MS_SHARED | MS_REC, NULL) < 0) {
        if (errno != EINVAL) /* EINVAL: not a mount point yet */
            return err_sys(err, errno, "netns.failed", "mount --make-shared %s", NETNS_DIR);
        if (mount(NETNS_DIR, NETNS_DIR, "none", MS_BIND | MS_REC, NULL) < 0)
            return err_sys(err, errno, "netns.failed", "mount --bind %s on itself", NETNS_DIR);
        if (mount("", NETNS_DIR, "none", MS_SHARED | MS_REC, NULL) < 0)
            return err_sys(err, errno, "netns.failed", "mount --make-shared %s", NETNS_DIR);
    }
    *ret_lock = fd_steal(&lock);
    return 0;
}

/* unshare(2) takes the calling thread along, so this goes there and back. */
static int new_namespace(int *ret_fd) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    _cleanup_close_ int home = -1;
    int r = open_own(&home);
    if (r < 0)
        return r;
    if (unshare(CLONE_NEWNET) < 0)
        return -errno;
    scope.home = fd_steal(&home);
    return open_own(ret_fd);
}

/* Return: 0 when the name is free (an empty file left by a crash is taken away). */
static int check_free(const char *name, const char *path, struct err *err) {
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "netns.failed", "look at %s", path);
    struct statfs fs;
    bool stale = S_ISREG(st.st_mode) && st.st_size == 0 && statfs(path, &fs) == 0 && fs.f_type != NSFS_MAGIC;
    if (stale && unlink(path) == 0)
        return 0;
    return err_set(err, EEXIST, "netns.exists", "there is already a network namespace \"%s\"", name);
}

static int name_it(int nsfd, const char *path, struct err *err) {
    char source[32];
    _cleanup_close_ int file = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
    if (file < 0)
        return err_sys(err, errno, errno == EEXIST ? "netns.exists" : "netns.failed", "make %s", path);
    snprintf(source, sizeof source, "/proc/self/fd/%d", nsfd);
    if (mount(source, path, "none", MS_BIND, NULL) == 0)
        return 0;
    int r = err_sys(err, errno, "netns.failed", "mount a network namespace on %s", path);
    unlink(path);
    return r;
}

static bool dir_is_empty(const char *path) {
    DIR *dir = opendir(path);
    if (!dir)
        return false;
    bool empty = true;
    for (struct dirent *e; empty && (e = readdir(dir));)
        empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    closedir(dir);
    return empty;
}

static bool is_mount_point(const char *path) {
    _cleanup_fclose_ FILE *f = fopen("/proc/self/mountinfo", "re");
    _cleanup_free_ char *line = NULL;
    size_t cap = 0;
    while (f && getline(&line, &cap, f) > 0) {
        char *save = NULL, *field = strtok_r(line, " ", &save);
        for (int i = 1; field && i < 5; i++) /* the fifth field is the mount point */
            field = strtok_r(NULL, " ", &save);
        if (field && strcmp(field, path) == 0)
            return true;
    }
    return false;
}

/* Only a hint to the kernel: EBUSY or a lost race leaves the directory as ip-netns(8) would. */
static void unshare_dir_if_empty(void) {
    if (dir_is_empty(NETNS_DIR) && is_mount_point(NETNS_DIR))
        umount2(NETNS_DIR, UMOUNT_NOFOLLOW);
}

/* ip netns add NAME */
int netns_make(const char *name, int (*prepare)(int nsfd, void *data, struct err *err), void *data, struct err *err) {
    char path[PATH_SIZE];
    int r = path_of(name, path, err);
    if (r < 0)
        return r;
    _cleanup_close_ int lock = -1, nsfd = -1;
    r = share_dir(&lock, err);
    if (r < 0)
        return r;
    r = check_free(name, path, err);
    if (r < 0)
        return r;
    r = new_namespace(&nsfd);
    if (r < 0)
        r = err_sys(err, -r, "netns.failed", "make network namespace %s", name);
    if (r == 0 && prepare)
        r = prepare(nsfd, data, err);
    if (r == 0)
        r = name_it(nsfd, path, err);
    if (r < 0) {
        fd_close(&lock); /* an open directory would keep the mount busy */
        unshare_dir_if_empty();
    }
    return r;
}

/* ip netns del NAME */
int netns_remove(const char *name, struct err *err) {
    char path[PATH_SIZE];
    int r = path_of(name, path, err);
    if (r < 0)
        return r;
    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && errno != EINVAL && errno != ENOENT)
        return err_sys(err, errno, "netns.failed", "unmount %s", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, errno, "netns.failed", "remove %s", path);
    unshare_dir_if_empty();
    return 0;
}

int netns_socket(int nsfd, int domain, int type, int protocol, int *ret_fd) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    int r = netns_enter(nsfd, &scope);
    if (r < 0)
        return r;
    int fd = socket(domain, type | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

/* /proc/sys/net shows the namespace of the thread that opens the file. */
static int sysctl_open(int nsfd, const char *key, int flags, int *ret_fd) {
    char path[256];
    if ((size_t)snprintf(path, sizeof path, "/proc/sys/%s", key) >= sizeof path)
        return -ENAMETOOLONG;
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    int r = netns_enter(nsfd, &scope);
    if (r < 0)
        return r;
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

int netns_sysctl_write(int nsfd, const char *key, const char *value) {
    _cleanup_close_ int fd = -1;
    int r = sysctl_open(nsfd, key, O_WRONLY, &fd);
    return r < 0 ? r : fd_write_all(fd, value, strlen(value));
}

int netns_sysctl_read(int nsfd, const char *key, char *dst, size_t dst_size) {
    char value[256];
    _cleanup_close_ int fd = -1;
    int r = sysctl_open(nsfd, key, O_RDONLY, &fd);
    if (r < 0)
        return r;
    ssize_t n = read(fd, value, sizeof value - 1);
    if (n < 0)
        return -errno;
    while (n > 0 && value[n - 1] == '\n')
        n--;
    if ((size_t)n + 1 > dst_size)
        return -ENOBUFS;
    memcpy(dst, value, (size_t)n);
    dst[n] = '\0';
    return 0;
}
