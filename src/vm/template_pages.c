#include "vm/template_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define CHUNK 65536U

static bool is_zero(const uint8_t *data, size_t len) {
    return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

int pages_broken_off(struct err *err) {
    return err_set(err, EINTR, "template.unwanted", "it was broken off: it is not wanted now");
}

int pages_copy(int from, int to, uint64_t size, const atomic_bool *is_unwanted, struct pages *ret_pages) {
    _cleanup_free_ uint8_t *data = malloc(CHUNK);
    struct sha256_ctx sha;
    uint8_t digest[SHA256_DIGEST_SIZE];
    uint64_t bytes = 0;
    sha256_init(&sha);
    off_t at = 0;
    while (data && (at = lseek(from, at, SEEK_DATA)) >= 0 && (uint64_t)at < size) {
        at -= at % CHUNK;
        if (is_unwanted && atomic_load(is_unwanted))
            return -EINTR;
        ssize_t n = pread(from, data, CHUNK, at);
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        if (!is_zero(data, (size_t)n)) {
            uint64_t where = (uint64_t)at;
            sha256_update(&sha, sizeof where, (const uint8_t *)&where);
            sha256_update(&sha, (size_t)n, data);
            bytes += (uint64_t)n;
            ssize_t written = to < 0 ? n : pwrite(to, data, (size_t)n, at);
            if (written != n)
                return written < 0 ? -errno : -ENOSPC;
        }
        at += n;
    }
    if (!data)
        return -ENOMEM;
    if (at < 0 && errno != ENXIO) /* which says that only a hole is left */
        return -errno;
    sha256_digest(&sha, sizeof digest, digest);
    str_hex(digest, sizeof digest, ret_pages->digest);
    ret_pages->bytes = bytes;
    return 0;
}

int pages_digest(const char *path, const atomic_bool *is_unwanted, struct pages *ret_pages, uint64_t *ret_size,
                 struct err *err) {
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "template.broken", "open %s", path);
    int r = S_ISREG(st.st_mode) ? pages_copy(fd, -1, (uint64_t)st.st_size, is_unwanted, ret_pages) : -EINVAL;
    if (r == -EINTR)
        return pages_broken_off(err);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r < 0)
        return err_sys(err, -r, "template.broken", "read %s", path);
    *ret_size = (uint64_t)st.st_size;
    return 0;
}
