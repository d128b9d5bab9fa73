#include "base/sandbox.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

#define SCRATCH "/tmp"

static int refused(struct err *err, const char *what) {
    int errnum = errno;
    err_sys(err, errnum, "sandbox.refused", "%s", what);
    if (geteuid() != 0 || errnum == EPERM || errnum == EACCES)
        err_hint(err, "run it as root (sudo); in a container, one that may make namespaces and mounts");
    return -errnum;
}

/* ---------------------------------------------------------------- the parent's side */

/* echo "0 UID 1" >/proc/self/uid_map */
static int become_root(struct err *err) {
    char line[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();
    if (unshare(CLONE_NEWUSER) < 0)
        return refused(err, "this is not root, and a user namespace cannot be had");
    snprintf(line, sizeof line, "0 %u 1", uid);
    int r = file_write_value("/proc/self/setgroups", "deny");
    if (r == 0)
        r = file_write_value("/proc/self/uid_map", line);
    snprintf(line, sizeof line, "0 %u 1", gid);
    if (r == 0)
        r = file_write_value("/proc/self/gid_map", line);
    errno = -r;
    return r < 0 ? refused(err, "this is not root, and cannot become it in a user namespace") : 0;
}

/* ---------------------------------------------------------------- the child's side */

static int set_up(const struct sandbox_params *params, struct sandbox *ret, struct err *err) {
    char options[64];
    *ret = (struct sandbox){.folder_fd = -1, .scratch = SCRATCH};
    if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC) < 0)
        return refused(err, "namespaces of its own cannot be had");
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
        return refused(err, "mounts cannot be kept apart from the host's");
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return refused(err, "/proc of a process namespace of its own cannot be mounted");
    if (params->folder) {
        ret->folder_fd = open(params->folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (ret->folder_fd < 0)
            return err_sys(err, errno, "sandbox.refused", "open %s", params->folder);
    }
    snprintf(options, sizeof options, "size=%um,mode=0711", params->scratch_mib);
    if (mount("scratch", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0)
        return refused(err, "a tmpfs for its files cannot be mounted");
    return 0;
}

static void __attribute__((noreturn))
child(const struct sandbox_params *params, const sigset_t *signals, pid_t parent, int error_fd) {
    struct sandbox sandbox;
    struct err err = {0};
    /* A process group of its own: a terminal's ^C is the parent's to answer. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    sigprocmask(SIG_UNBLOCK, signals, NULL);
    /* In a new process namespace the parent has no number; it is ours that must not have changed hands. */
    if (getppid() != 0 && getppid() != parent)
        _exit(EXIT_FAILURE);
    if (set_up(params, &sandbox, &err) < 0) {
        fd_write_all(error_fd, &err, sizeof err);
        _exit(EXIT_FAILURE);
    }
    close(error_fd);
    int status = params->fn(params->data, &sandbox);
    fflush(NULL);
    _exit(status);
}

/* ---------------------------------------------------------------- waiting */

static int killed(int signal_number, struct err *err) {
    return err_set(err, EIO, "sandbox.killed", "its process was ended by signal %d (%s)", signal_number,
                   strsignal(signal_number));
}

/* Return: the signal that asks for the end, 0 when the child has ended. */
static int wait_for(int pidfd, int signal_fd) {
    struct pollfd fds[] = {{.fd = pidfd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return 0;
        if ((fds[1].revents & POLLIN) && read(signal_fd, &info, sizeof info) == sizeof info)
            return (int)info.ssi_signo;
        if (fds[0].revents)
            return 0;
    }
}

static int finish(pid_t pid, int error_fd, const sigset_t *signals, int *ret_status, struct err *err) {
    struct err said;
    int status = 0, asked = 0;
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    _cleanup_close_ int signal_fd = signalfd(-1, signals, SFD_CLOEXEC);
    if (pidfd >= 0 && signal_fd >= 0)
        asked = wait_for(pidfd, signal_fd);
    if (asked)
        kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (asked) {
        *ret_status = 128 + asked;
        return err_set(err, EINTR, "sandbox.interrupted", "ended by signal %d (%s)", asked, strsignal(asked));
    }
    if (read(error_fd, &said, sizeof said) == sizeof said) {
        if (err)
            *err = said;
        return -said.errnum;
    }
    if (WIFSIGNALED(status))
        return killed(WTERMSIG(status), err);
    *ret_status = WEXITSTATUS(status);
    return 0;
}

int sandbox_run(const struct sandbox_params *params, int *ret_status, struct err *err) {
    sigset_t signals, before;
    int fds[2];
    if (geteuid() != 0 && become_root(err) < 0)
        return -EPERM;
    if (unshare(CLONE_NEWPID) < 0)
        return refused(err, "a process namespace of its own cannot be had");
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_sys(err, errno, "sandbox.refused", "make a pipe");
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &signals, &before);
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        close(fds[0]);
        child(params, &signals, parent, fds[1]);
    }
    int r = pid < 0 ? err_sys(err, errno, "sandbox.refused", "start a process") : 0;
    close(fds[1]);
    if (r == 0)
        r = finish(pid, fds[0], &signals, ret_status, err);
    close(fds[0]);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return r;
}
