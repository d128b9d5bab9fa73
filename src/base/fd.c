#include "base/fd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

void fd_close(int *fd) {
    if (*fd < 0)
        return;
    int saved = errno;
    close(*fd);
    errno = saved;
    *fd = -1;
}

void cleanup_free(void *p) {
    free(*(void **)p);
}

void cleanup_fclose(FILE **f) {
    if (*f)
        fclose(*f);
}

int fd_steal(int *fd) {
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

int fd_write_all(int fd, const void *data, size_t len) {
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int read_upto(int fd, size_t max, char **ret_data, size_t *ret_len) {
    size_t cap = 4096, len = 0;
    _cleanup_free_ char *data = malloc(cap);
    if (!data)
        return -ENOMEM;
    for (;;) {
        if (len + 1 >= cap) {
            cap *= 2;
            char *bigger = realloc(data, cap);
            if (!bigger)
                return -ENOMEM;
            data = bigger;
        }
        ssize_t n = read(fd, data + len, cap - len - 1);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0)
            break;
        len += (size_t)n;
        if (len > max)
            return -EFBIG;
    }
    data[len] = '\0';
    *ret_data = ptr_steal(data);
    if (ret_len)
        *ret_len = len;
    return 0;
}

/* O_NONBLOCK: a FIFO that somebody put there must not hang us; it has no effect on regular files. */
static int open_regular(const char *path, struct stat *ret_st) {
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    if (fstat(fd, ret_st) < 0)
        return -errno;
    if (!S_ISREG(ret_st->st_mode))
        return S_ISDIR(ret_st->st_mode) ? -EISDIR : -EINVAL;
    return fd_steal(&fd);
}

int file_read(const char *path, size_t max, char **ret_data, size_t *ret_len) {
    struct stat st = {0};
    _cleanup_close_ int fd = open_regular(path, &st);
    if (fd < 0)
        return fd;
    return read_upto(fd, max, ret_data, ret_len);
}

int file_read_tail(const char *path, size_t max, char **ret_data, size_t *ret_len) {
    struct stat st = {0};
    _cleanup_close_ int fd = open_regular(path, &st);
    if (fd < 0)
        return fd;
    _cleanup_free_ char *data = malloc(max + 1);
    if (!data)
        return -ENOMEM;
    off_t at = st.st_size > (off_t)max ? st.st_size - (off_t)max : 0;
    size_t len = 0;
    while (len < max) {
        ssize_t n = pread(fd, data + len, max - len, at + (off_t)len);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0)
            break;
        len += (size_t)n;
    }
    data[len] = '\0';
    *ret_data = ptr_steal(data);
    if (ret_len)
        *ret_len = len;
    return 0;
}

int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode) {
    _cleanup_free_ char *tmp = NULL;
    if (asprintf(&tmp, "%s.tmp", path) < 0) {
        tmp = NULL;
        return -ENOMEM;
    }
    unlink(tmp);
    _cleanup_close_ int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return -errno;
    int r = fd_write_all(fd, data, len);
    if (r == 0 && (fchmod(fd, mode) < 0 || fsync(fd) < 0 || rename(tmp, path) < 0))
        r = -errno;
    if (r < 0)
        unlink(tmp);
    return r;
}

int file_write_new(const char *path, const void *data, size_t len, mode_t mode) {
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    return fd < 0 ? -errno : fd_write_all(fd, data, len);
}

int file_write_value(const char *path, const char *value) {
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    return fd_write_all(fd, value, strlen(value));
}

int dir_make(const char *path, mode_t mode) {
    _cleanup_free_ char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    for (char *p = copy + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(copy, 0755) < 0 && errno != EEXIST)
            return -errno;
        *p = '/';
    }
    if (mkdir(copy, mode) < 0 && errno != EEXIST)
        return -errno;
    struct stat st;
    if (stat(copy, &st) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

static int remove_at(int parent, const char *name, dev_t dev) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct stat st;
    if (fstat(fd, &st) < 0 || st.st_dev != dev) {
        close(fd);
        return -EXDEV;
    }
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return -errno;
    }
    int first = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        int r = remove_at(dirfd(dir), e->d_name, dev);
        if (r < 0 && first == 0)
            first = r;
    }
    closedir(dir);
    if (unlinkat(parent, name, AT_REMOVEDIR) < 0 && first == 0)
        first = -errno;
    return first;
}

int dir_remove(const char *path) {
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : -errno;
    return remove_at(AT_FDCWD, path, st.st_dev);
}

int fd_connect_unix(int folder_fd, const char *name, uint32_t uid, pid_t pid, int *ret_fd) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct ucred peer;
    struct stat st;
    socklen_t len = sizeof peer;
    _cleanup_close_ int inode = openat(folder_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (inode < 0 || fstat(inode, &st) < 0)
        return -errno;
    if (!pid && st.st_uid != uid)
        return -EPERM;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d", inode);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
        return -errno;
    if (pid && (peer.uid != uid || peer.pid != pid))
        return -EPERM;
    *ret_fd = fd_steal(&fd);
    return 0;
}
