/* Kills the daemon at its Nth change to the world: preloaded into it (LD_PRELOAD), counts the calls by which a program
 * makes, changes or removes something that outlives it, and sends itself SIGKILL in front of the one that it was told.
 *
 * MC_DIE_FILE names a file of one int64_t, which the test writes: how many such calls there are to go; 0 or less: count
 * on below zero, so that the test can read how many there were. Children of the daemon are not counted. */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic int64_t *to_go;
static pid_t daemon_pid;

static void __attribute__((constructor)) start(void) {
    const char *path = getenv("MC_DIE_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = mmap(NULL, sizeof *to_go, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED)
        to_go = map;
    daemon_pid = getpid();
    unsetenv("LD_PRELOAD");
}

static void step(void) {
    if (to_go && getpid() == daemon_pid && atomic_fetch_sub(to_go, 1) == 1)
        kill(daemon_pid, SIGKILL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int mkdir(const char *path, mode_t mode) {
    step();
    return REAL(mkdir)(path, mode);
}

int link(const char *from, const char *to) {
    step();
    return REAL(link)(from, to);
}

int symlink(const char *from, const char *to) {
    step();
    return REAL(symlink)(from, to);
}

int rename(const char *from, const char *to) {
    step();
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    step();
    return REAL(unlink)(path);
}

int unlinkat(int fd, const char *path, int flags) {
    step();
    return REAL(unlinkat)(fd, path, flags);
}

int rmdir(const char *path) {
    step();
    return REAL(rmdir)(path);
}

int chmod(const char *path, mode_t mode) {
    step();
    return REAL(chmod)(path, mode);
}

int fchmod(int fd, mode_t mode) {
    step();
    return REAL(fchmod)(fd, mode);
}

int chown(const char *path, uid_t uid, gid_t gid) {
    step();
    return REAL(chown)(path, uid, gid);
}

int fchown(int fd, uid_t uid, gid_t gid) {
    step();
    return REAL(fchown)(fd, uid, gid);
}

int ftruncate64(int fd, off64_t len) {
    step();
    return REAL(ftruncate64)(fd, len);
}

int bind(int fd, const struct sockaddr *addr, socklen_t len) {
    step();
    return REAL(bind)(fd, addr, len);
}

static mode_t step_to_open(int flags, va_list ap) {
    if (!(flags & O_CREAT))
        return 0;
    step();
    return va_arg(ap, mode_t);
}

int open64(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    mode_t mode = step_to_open(flags, ap);
    va_end(ap);
    return REAL(open64)(path, flags, mode);
}

int openat64(int fd, const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    mode_t mode = step_to_open(flags, ap);
    va_end(ap);
    return REAL(openat64)(fd, path, flags, mode);
}

/* Signals to processes that the caller has by their pidfd have no function of their own. */
long syscall(long number, ...) {
    long arg[6];
    va_list ap;
    va_start(ap, number);
    for (int i = 0; i < 6; i++)
        arg[i] = va_arg(ap, long);
    va_end(ap);
    if (number == SYS_pidfd_send_signal)
        step();
    return REAL(syscall)(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

int ioctl(int fd, unsigned long request, ...) {
    va_list ap;
    va_start(ap, request);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    step();
    return REAL(ioctl)(fd, request, arg);
}

ssize_t sendto(int fd, const void *data, size_t len, int flags, const struct sockaddr *to, socklen_t to_len) {
    step();
    return REAL(sendto)(fd, data, len, flags, to, to_len);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    step();
    return REAL(sendmsg)(fd, message, flags);
}

ssize_t write(int fd, const void *data, size_t len) {
    step();
    return REAL(write)(fd, data, len);
}

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at) {
    step();
    return REAL(pwrite64)(fd, data, len, at);
}

/* The first call of a child that proc_start() makes: it is there, and nobody has written down that it is. It runs in its
 * parent's memory, and so counts for it. */
pid_t setsid(void) {
    if (to_go && getppid() == daemon_pid && atomic_fetch_sub(to_go, 1) == 1)
        kill(daemon_pid, SIGKILL);
    return REAL(setsid)();
}
