#include "base/proc.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

/* Theory of operation. The child is made as vfork(2) makes one: it runs in our memory, on a stack of its own, and this
 * thread waits until it has executed its program or failed. A fork(2) would copy the page tables of a daemon with a
 * thousand VMs for a child that throws them away at once: about half of what starting a process costs. So between clone
 * and execve the child does nothing but system calls. Above all not the libc's setuid() and its like: they change the
 * user of all threads of a process, and would take this one's for the child's.
 * Source: vfork(2), clone(2), nptl(7). */

#define STACK_SIZE (128 * 1024)

/* Where in the child a start failed. */
enum stage {
    STAGE_GROUP,
    STAGE_FDS,
    STAGE_JAIL,
    STAGE_PLACE,
    STAGE_LIMITS,
    STAGE_USER,
    STAGE_EXEC,
};

struct failure {
    enum stage stage;
    int errnum;
};

static const char *stage_words(enum stage stage) {
    switch (stage) {
    case STAGE_GROUP:
        return "join its control group";
    case STAGE_JAIL:
        return "enter its private view of the files";
    case STAGE_LIMITS:
        return "set its limits";
    case STAGE_FDS:
        return "set up its file descriptors";
    case STAGE_PLACE:
        return "enter its network namespace and folder";
    case STAGE_USER:
        return "drop privileges";
    case STAGE_EXEC:
        return "execute it";
    }
    return "start";
}

/* Puts the wanted descriptors at 0, 1, 2, 3, …: first all above the range, then down, so that none is overwritten. */
static int child_fds(const struct proc_spec *spec, int null_fd) {
    int wanted = 3 + spec->fd_count;
    int high[3 + 16];
    int source[3 + 16] = {null_fd, spec->output_fd >= 0 ? spec->output_fd : null_fd,
                          spec->error_fd > 0     ? spec->error_fd
                          : spec->output_fd >= 0 ? spec->output_fd
                                                 : null_fd};
    for (int i = 0; i < spec->fd_count; i++)
        source[3 + i] = spec->fds[i];
    for (int i = 0; i < wanted; i++) {
        high[i] = fcntl(source[i], F_DUPFD_CLOEXEC, wanted + 1);
        if (high[i] < 0)
            return -errno;
    }
    for (int i = 0; i < wanted; i++)
        if (dup2(high[i], i) < 0)
            return -errno;
    return 0;
}

static int child_group(const struct proc_spec *spec) {
    for (int i = 0; i < spec->group_count; i++)
        if (write(spec->group_fds[i], "0", 1) < 0)
            return -errno;
    return 0;
}

/* The jail's own namespace is everybody's: what this child sees is a copy, and what happens there stays there. */
static int child_jail(const struct proc_spec *spec) {
    if (spec->jail_fd > 0 && (setns(spec->jail_fd, CLONE_NEWNS) < 0 || unshare(CLONE_NEWNS) < 0))
        return -errno;
    return 0;
}

static int child_limits(const struct proc_spec *spec) {
    for (int i = 0; i < spec->limit_count; i++) {
        struct rlimit limit = {.rlim_cur = spec->limits[i].max, .rlim_max = spec->limits[i].max};
        if (setrlimit(spec->limits[i].resource, &limit) < 0)
            return -errno;
    }
    return 0;
}

/* While it is still root: neither may be open to the user that it becomes. */
static int child_place(const struct proc_spec *spec) {
    if (spec->netns_fd > 0 && setns(spec->netns_fd, CLONE_NEWNET) < 0)
        return -errno;
    return spec->cwd_fd > 0 && fchdir(spec->cwd_fd) < 0 ? -errno : 0;
}

static int child_user(const struct proc_spec *spec) {
    if (spec->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    if (spec->uid == 0)
        return 0;
    gid_t groups[1] = {spec->extra_gid};
    if (syscall(SYS_setgroups, spec->extra_gid ? 1 : 0, groups) < 0 ||
        syscall(SYS_setresgid, spec->gid, spec->gid, spec->gid) < 0 ||
        syscall(SYS_setresuid, spec->uid, spec->uid, spec->uid) < 0)
        return -errno;
    return 0;
}

/* Our handlers first: one that ran in the child would run on our data. */
static void child_signals(void) {
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    sigset_t none;
    for (int s = 1; s < NSIG; s++)
        sigaction(s, &dfl, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

struct child {
    const struct proc_spec *spec;
    pid_t parent;
    int null_fd;
    struct failure failure;
};

/* Return: 0 or the positive errno of the step in *ret_stage. */
static int child_steps(const struct child *c, enum stage *ret_stage) {
    const struct proc_spec *spec = c->spec;
    *ret_stage = STAGE_GROUP;
    int r = child_group(spec);
    /* Who started it died, and may not know it: the next one looks into the group, which it has joined by now. */
    if (r == 0 && getppid() != c->parent)
        r = -ECHILD;
    if (r == 0) {
        *ret_stage = STAGE_JAIL;
        r = child_jail(spec);
    }
    if (r == 0) {
        *ret_stage = STAGE_PLACE;
        r = child_place(spec); /* by number: the next step overwrites the low ones */
    }
    if (r == 0) {
        *ret_stage = STAGE_FDS;
        r = child_fds(spec, c->null_fd);
    }
    if (r == 0) {
        *ret_stage = STAGE_LIMITS;
        r = child_limits(spec);
    }
    if (r == 0) {
        *ret_stage = STAGE_USER;
        r = child_user(spec);
    }
    /* Only now: who becomes another user is let off. Source: prctl(2), PR_SET_PDEATHSIG. */
    if (r == 0 && spec->ends_with_us && (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != c->parent))
        r = -ECHILD;
    return -r;
}

/* Without AddressSanitizer: it would keep this stack's marks, as the function does not return from execve(). */
static int __attribute__((no_sanitize("address"))) child_main(void *data) {
    static const char *const path_only[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    struct child *c = data;
    setsid();
    child_signals();
    c->failure.errnum = child_steps(c, &c->failure.stage);
    if (c->failure.errnum == 0) {
        c->failure.stage = STAGE_EXEC;
        execve(c->spec->argv[0], (char *const *)c->spec->argv,
               (char *const *)(c->spec->env ? c->spec->env : path_only));
        c->failure.errnum = errno;
    }
    return 127;
}

static pid_t spawn(struct child *c, int *ret_pidfd) {
    sigset_t all, before;
    char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return -errno;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = clone(child_main, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, c, ret_pidfd);
    int r = pid < 0 ? -errno : pid;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(stack, STACK_SIZE);
    return r;
}

int proc_start(const struct proc_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct err *err) {
    _cleanup_close_ int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC), pidfd = -1;
    if (null_fd < 0 || spec->fd_count > 16)
        return err_sys(err, null_fd < 0 ? errno : E2BIG, "process.start", "start %s", spec->argv[0]);
    struct child c = {.spec = spec, .parent = getpid(), .null_fd = null_fd};
    pid_t pid = spawn(&c, &pidfd);
    if (pid < 0)
        return err_sys(err, -pid, "process.start", "start %s", spec->argv[0]);
    if (c.failure.errnum) {
        waitpid(pid, NULL, 0);
        return err_sys(err, c.failure.errnum, "process.start", "start %s: %s", spec->argv[0],
                       stage_words(c.failure.stage));
    }
    *ret_pid = pid;
    *ret_pidfd = fd_steal(&pidfd);
    return 0;
}

int proc_start_time(pid_t pid, uint64_t *ret_ticks) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    _cleanup_free_ char *stat = NULL;
    if (file_read(path, 4096, &stat, NULL) < 0)
        return -ESRCH;
    /* The name in field 2 may hold spaces and brackets: count from its last bracket. */
    char *p = strrchr(stat, ')');
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (!p)
        return -ESRCH;
    *ret_ticks = strtoull(p + 1, NULL, 10);
    return 0;
}

int64_t proc_age_ms(uint64_t start_ticks) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 -
           (int64_t)(start_ticks * 1000 / (uint64_t)sysconf(_SC_CLK_TCK));
}

int proc_open(pid_t pid, uint64_t start_ticks, int *ret_pidfd) {
    if (pid <= 0)
        return -ESRCH;
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return -ESRCH;
    /* Read after the pidfd is held: if they agree now, the pidfd is of that process. */
    uint64_t ticks;
    if (proc_start_time(pid, &ticks) < 0 || ticks != start_ticks)
        return -ESRCH;
    *ret_pidfd = fd_steal(&pidfd);
    return 0;
}

int proc_signal(int pidfd, int signal) {
    return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) < 0 ? -errno : 0;
}

int proc_reap(int pidfd, char *ret_words, size_t size) {
    siginfo_t info = {0};
    if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG) < 0)
        return -errno;
    if (info.si_pid == 0)
        return 0;
    if (info.si_code == CLD_EXITED)
        snprintf(ret_words, size, "exit status %d", info.si_status);
    else
        snprintf(ret_words, size, "killed by signal %d (%s)%s", info.si_status, strsignal(info.si_status),
                 info.si_code == CLD_DUMPED ? ", core dumped" : "");
    return 1;
}
