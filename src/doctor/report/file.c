#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "doctor/report/report.h"

static const char *hint_of(int errnum) {
    switch (errnum) {
    case ENOSPC:
    case EDQUOT:
        return "the disk is full: give another path, or make room";
    case ENOENT:
        return "the folder does not exist";
    case EISDIR:
        return "it is a folder: give the path of a file in it";
    case EROFS:
        return "the file system is read-only: give another path";
    case EPERM:
    case EACCES:
        return "you may not write there: give another path";
    }
    return "give another path";
}

static int write_into(const char *path, const void *data, size_t len) {
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    return fd < 0 ? -errno : fd_write_all(fd, data, len);
}

int report_write_file(const char *path, const void *data, size_t len, const char *code, struct err *err) {
    struct stat st;
    int r;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        r = -EISDIR;
    else if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) /* replacing it would take it away from everybody */
        r = write_into(path, data, len);
    else
        r = file_write_atomic(path, data, len, 0600);
    if (r == 0)
        return 0;
    err_sys(err, -r, code, "write %s", path);
    return err_hint(err, "%s; nothing else was changed", hint_of(-r));
}
