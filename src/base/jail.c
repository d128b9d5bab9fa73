#include "base/jail.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

/* Everything here up to jail_make() runs in a child that has forked from a process with threads: system calls alone. */

static int bind_read_only(const char *from, const char *to) {
    if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) < 0 ||
        mount(NULL, to, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return -errno;
    return 0;
}

static int touch(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
    if (fd < 0)
        return -errno;
    close(fd);
    return 0;
}

/* A file of the host, where it has it, at the same place. */
static int bind_file(const char *path, bool read_only) {
    if (access(path, F_OK) < 0)
        return 0;
    int r = touch(path + 1);
    if (r == 0 && read_only)
        r = bind_read_only(path, path + 1);
    else if (r == 0 && mount(path, path + 1, NULL, MS_BIND, NULL) < 0)
        r = -errno;
    return r;
}

/* /lib and the like: links into /usr on a host of today, folders of their own on an older one. */
static int system_folder(const char *path) {
    char target[PATH_MAX];
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n >= 0) {
        target[n] = '\0';
        return symlink(target, path + 1) < 0 ? -errno : 0;
    }
    if (errno != EINVAL)
        return 0; /* it is not there */
    return mkdir(path + 1, 0755) < 0 ? -errno : bind_read_only(path, path + 1);
}

static int make_devices(void) {
    static const char *const devices[] = {"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/kvm"};
    int r = mkdir("dev", 0755) < 0 || symlink("/proc/self/fd", "dev/fd") < 0 ? -errno : 0;
    for (size_t i = 0; r == 0 && i < sizeof devices / sizeof *devices; i++)
        r = bind_file(devices[i], false);
    return r;
}

/* /dev/net/tun for any uid, whatever the host lets its users do: a VMM that opens its TAP by name can attach to what is
 * owned by its uid, and make none. On a file system of its own, because the jail's has no devices; where the host does
 * not allow the node, there is none. */
static int make_tun(void) {
    if (mkdir("dev/net", 0755) < 0 || mount("tun", "dev/net", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=4k,mode=0755") < 0)
        return -errno;
    if (mknod("dev/net/tun", S_IFCHR | 0666, makedev(10, 200)) < 0 || chmod("dev/net/tun", 0666) < 0)
        return errno == EPERM ? 0 : -errno;
    return mount(NULL, "dev/net", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) < 0 ? -errno
                                                                                                            : 0;
}

/* Its own processes alone, and nothing of the kernel's switches, where the kernel can leave those out (since 5.8). */
static int make_proc(void) {
    if (mkdir("proc", 0555) < 0)
        return -errno;
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (mount("proc", "proc", "proc", flags, "hidepid=2,subset=pid") == 0 ||
        mount("proc", "proc", "proc", flags, "hidepid=2") == 0)
        return 0;
    return -errno;
}

static int add_program(const char *program) {
    char path[PATH_MAX];
    if (str_starts(program, "/usr/"))
        return 0;
    if (!str_copy(path, sizeof path, program))
        return -ENAMETOOLONG;
    for (char *p = path + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(path + 1, 0755) < 0 && errno != EEXIST)
            return -errno;
        *p = '/';
    }
    return bind_file(program, true);
}

static int put_together(const char *program, bool with_tun) {
    static const char *const folders[] = {"/bin", "/sbin", "/lib", "/lib64"};
    int r = mkdir("usr", 0755) < 0 ? -errno : bind_read_only("/usr", "usr");
    for (size_t i = 0; r == 0 && i < sizeof folders / sizeof *folders; i++)
        r = system_folder(folders[i]);
    if (r == 0 && mkdir("etc", 0755) < 0)
        r = -errno;
    if (r == 0)
        r = bind_file("/etc/ld.so.cache", true);
    if (r == 0)
        r = make_devices();
    if (r == 0 && with_tun)
        r = make_tun();
    if (r == 0)
        r = make_proc();
    return r < 0 ? r : add_program(program);
}

static int enter(const char *scratch, const char *program, bool with_tun) {
    umask(0022);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("jail", scratch, "tmpfs", MS_NOSUID | MS_NODEV, "size=256k,mode=0755") < 0 || chdir(scratch) < 0)
        return -errno;
    int r = put_together(program, with_tun);
    if (r < 0)
        return r;
    /* The old root ends up above the new one, and is let go. Source: pivot_root(2), "pivot_root(".", ".")". */
    if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0 ||
        mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return -errno;
    return 0;
}

/* It goes with its parent: a copy of the parent's sockets in a child that nobody knows would keep clients waiting. */
static void __attribute__((noreturn))
child(const char *scratch, const char *program, bool with_tun, pid_t parent, int result_fd) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    int r = enter(scratch, program, with_tun);
    if (write(result_fd, &r, sizeof r) != sizeof r)
        _exit(1);
    for (;;)
        pause(); /* until its namespace has been opened */
}

int jail_make(const char *scratch, const char *program, bool with_tun, int *ret_fd, struct err *err) {
    int pipe_fds[2], r = -EPIPE;
    char path[64];
    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return err_sys(err, errno, "process.jail", "make a private view of the files");
    _cleanup_close_ int read_fd = pipe_fds[0], write_fd = pipe_fds[1];
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        return err_sys(err, errno, "process.jail", "make a private view of the files");
    if (pid == 0)
        child(scratch, program, with_tun, parent, write_fd);
    fd_close(&write_fd);
    if (read(read_fd, &r, sizeof r) != (ssize_t)sizeof r)
        r = -EPIPE;
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
    int fd = r == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (r == 0 && fd < 0)
        r = -errno;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    if (r < 0)
        return err_sys(err, -r, "process.jail", "make a private view of the files");
    *ret_fd = fd;
    return 0;
}
