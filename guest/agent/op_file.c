/* Files, within a list of paths that the request itself carries: a mistake in one place of the host cannot become the
 * reading of any file. An entry that ends in / allows what is below it, another one exactly itself. No symbolic link is
 * followed anywhere on the way, so a path is what it says. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"

#define FILE_MAX (16 << 20)
#define ALLOW_MAX 32

static bool path_is_plain(const char *path) {
    return path[0] == '/' && strlen(path) < 1024 && !strstr(path, "/../") && !strstr(path, "/./") &&
           !strstr(path, "//") && !(strlen(path) >= 3 && strcmp(path + strlen(path) - 3, "/..") == 0);
}

static bool is_allowed(const char *path, json_t *allow) {
    size_t i;
    json_t *entry;
    json_array_foreach(allow, i, entry) {
        const char *text = json_string_value(entry);
        size_t len = text ? strlen(text) : 0;
        if (len == 0 || text[0] != '/' || i >= ALLOW_MAX)
            return false;
        if (text[len - 1] == '/' ? strncmp(path, text, len) == 0 && path[len] : strcmp(path, text) == 0)
            return true;
    }
    return false;
}

static int check_path(const char *path, json_t *allow, struct err *err) {
    if (!path_is_plain(path))
        return err_set(err, EINVAL, "bad-request", "path is not an absolute path without . and ..");
    if (!is_allowed(path, allow))
        return err_set(err, EACCES, "file.not-allowed", "%s is not in the request's list of allowed paths", path);
    return 0;
}

static int open_plain(const char *path, uint64_t flags, int *ret_fd, struct err *err) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    long fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
    if (fd < 0)
        return err_sys(err, errno, "file.failed", "open %s", path);
    *ret_fd = (int)fd;
    return 0;
}

static void free_data(struct job *job) {
    free(job->data);
}

static void on_read(struct job *job) {
    const int64_t *size = job->data;
    job_answer(job, json_pack("{s:I}", "size", (json_int_t)*size));
}

/* {"op":"file.read","path":"/var/log/x","allow":["/var/log/"],"offset":0,"max":65536}: the content as AGENT_STDOUT,
 * and {"size"}, the file's as it was opened. offset below 0 counts from the end. */
int op_file_read(struct job *job, json_t *request, struct err *err) {
    const char *path;
    json_t *allow;
    json_int_t offset = 0, max = FILE_MAX;
    struct stat st = {0};
    _cleanup_close_ int fd = -1;
    int r = request_unpack(request, err, "{s:s, s:o, s?I, s?I}", "path", &path, "allow", &allow, "offset", &offset,
                           "max", &max);
    if (r == 0 && (max < 1 || max > FILE_MAX))
        r = err_set(err, EINVAL, "bad-request", "max is from 1 to %d", FILE_MAX);
    if (r == 0)
        r = check_path(path, allow, err);
    if (r == 0)
        r = open_plain(path, O_RDONLY | O_NOCTTY | O_NONBLOCK, &fd, err);
    if (r == 0 && (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)))
        r = err_set(err, EINVAL, "file.failed", "%s is not a regular file", path);
    if (r < 0)
        return r;
    if (offset < 0)
        offset = st.st_size + offset > 0 ? st.st_size + offset : 0;
    if (offset > 0 && lseek(fd, offset, SEEK_SET) < 0)
        return err_sys(err, errno, "file.failed", "go to byte %lld of %s", (long long)offset, path);
    int64_t *size = malloc(sizeof *size);
    if (!size)
        return err_sys(err, ENOMEM, "file.failed", "read %s", path);
    *size = st.st_size;
    job->data = size;
    job->on_free = free_data;
    job->out_left = (size_t)max;
    job->on_done = on_read;
    job->out[0].fd = fd_steal(&fd);
    return 0;
}

/* A file that is being written under another name. */
struct written {
    int folder, file; /* descriptors; the file's own one stays when job->in_fd is closed at the input's end */
    char name[256], hidden[272];
};

/* Whether what lies under the other name is still our file: the folder may be somebody's who is not root. */
static bool is_ours(const struct written *w) {
    struct stat ours, there;
    return fstat(w->file, &ours) == 0 && fstatat(w->folder, w->hidden, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
           ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

static void free_written(struct job *job) {
    struct written *w = job->data;
    if (*w->hidden && is_ours(w))
        unlinkat(w->folder, w->hidden, 0);
    fd_close(&w->file);
    fd_close(&w->folder);
    free(w);
}

static void on_written(struct job *job) {
    struct written *w = job->data;
    struct err err = {0};
    if (!is_ours(w))
        err_set(&err, EBUSY, "file.failed", "write %s: somebody in the guest took the new file away", w->name);
    else if (fsync(w->file) < 0 || renameat(w->folder, w->hidden, w->folder, w->name) < 0)
        err_sys(&err, errno, "file.failed", "write %s", w->name);
    if (err.errnum) {
        job_fail(job, &err);
        return;
    }
    w->hidden[0] = '\0';
    job_answer(job, json_object());
}

/* Opens the folder part by part, and makes what is missing of it for its owner alone; only inside of folders that are
 * that user's already. */
static int make_folders(const char *folder, uid_t uid, gid_t gid, int *ret_fd, struct err *err) {
    const struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                                 .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    _cleanup_close_ int at = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (const char *part = folder + 1; *part && at >= 0;) {
        char name[256];
        struct stat st;
        size_t len = strcspn(part, "/");
        snprintf(name, sizeof name, "%.*s", (int)len, part);
        long next = syscall(SYS_openat2, at, name, &how, sizeof how);
        bool is_missing = next < 0 && errno == ENOENT && fstat(at, &st) == 0 && st.st_uid == uid;
        if (is_missing && mkdirat(at, name, 0700) == 0) {
            next = syscall(SYS_openat2, at, name, &how, sizeof how);
            /* By its descriptor: a folder for sure, whatever is at its name by now. */
            if (next >= 0 && fchownat((int)next, "", uid, gid, AT_EMPTY_PATH) < 0)
                close((int)next), next = -1;
        }
        if (next < 0)
            return err_sys(err, errno, "file.failed", "open or make %.*s", (int)(part + len - folder), folder);
        fd_close(&at);
        at = (int)next;
        part += len + (part[len] == '/');
    }
    if (at < 0)
        return err_sys(err, errno, "file.failed", "open %s", folder);
    *ret_fd = fd_steal(&at);
    return 0;
}

static int open_folder(struct job *job, const char *path, const char *maker, struct err *err) {
    char folder[1024];
    uid_t uid;
    gid_t gid;
    const char *name = strrchr(path, '/') + 1;
    struct written *w = calloc(1, sizeof *w);
    if (!w)
        return err_sys(err, ENOMEM, "file.failed", "write %s", path);
    w->folder = w->file = -1;
    job->data = w;
    job->on_free = free_written;
    snprintf(folder, sizeof folder, "%.*s", name - path > 1 ? (int)(name - path - 1) : 1, path);
    if (!*name || strcmp(name, ".") == 0 || !str_copy(w->name, sizeof w->name, name))
        return err_set(err, EINVAL, "bad-request", "path does not name a file");
    if (!maker)
        return open_plain(folder, O_PATH | O_DIRECTORY, &w->folder, err);
    int r = child_user(maker, &uid, &gid, err);
    return r < 0 ? r : make_folders(folder, uid, gid, &w->folder, err);
}

static int make_file(struct job *job, const char *path, mode_t mode, const char *user, struct err *err) {
    struct written *w = job->data;
    uid_t uid = (uid_t)-1;
    gid_t gid = (gid_t)-1;
    int r = user ? child_user(user, &uid, &gid, err) : 0;
    if (r < 0)
        return r;
    snprintf(w->hidden, sizeof w->hidden, ".%.200s.%u.new", w->name, (unsigned)getpid() + job->id);
    job->in_fd = openat(w->folder, w->hidden, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    w->file = job->in_fd < 0 ? -1 : fcntl(job->in_fd, F_DUPFD_CLOEXEC, 3);
    if (w->file < 0)
        return err_sys(err, errno, "file.failed", "make a file beside %s", path);
    /* The owner before the mode: no moment in which another than the owner has more than nothing. */
    if ((user && fchown(w->file, uid, gid) < 0) || fchmod(w->file, mode) < 0)
        return err_sys(err, errno, "file.failed", "set owner and mode of %s", path);
    return 0;
}

/* {"op":"file.write","path":"/home/desktop/x","allow":["/home/desktop/"],"mode":384,"user":"desktop","folders":true}:
 * AGENT_STDIN until its end becomes the file, in one step; what was there is replaced. user: who it will belong to, else
 * root. folders: those of the path that are missing are made for that user. */
int op_file_write(struct job *job, json_t *request, struct err *err) {
    const char *path, *user = NULL;
    json_t *allow;
    int mode = 0600, folders = 0;
    int r = request_unpack(request, err, "{s:s, s:o, s?i, s?s, s?b}", "path", &path, "allow", &allow, "mode", &mode,
                           "user", &user, "folders", &folders);
    if (r == 0 && folders && !user)
        r = err_set(err, EINVAL, "bad-request", "folders are made for a user");
    if (r == 0 && (mode < 0 || mode > 0777))
        r = err_set(err, EINVAL, "bad-request", "mode is from 0 to 511 (0777)");
    if (r == 0)
        r = check_path(path, allow, err);
    if (r == 0)
        r = open_folder(job, path, folders ? user : NULL, err);
    if (r == 0)
        r = make_file(job, path, (mode_t)mode, user, err);
    job->in_left = FILE_MAX;
    job->on_done = on_written;
    return r;
}
