/* mc-agent: finds its channel and serves it, for ever. `mc-agent --fd N` serves a descriptor that it was given (tests),
 * and ends with it.
 *
 * The channel: the virtio-serial port of our name, looked for in /sys, because not every guest has a udev that makes
 * links; without one, vsock, where the newest connection counts. Both may come late: they are looked for again. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"
#include "base/time.h"

#define PORTS_DIR "/sys/class/virtio-ports"
#define LOOK_MS 250 /* how often a channel that is not there is looked for */
#define POLL_MAX (3 + JOB_POLL * AGENT_JOBS_MAX)
#define TICK_MS 50

struct server {
    struct agent agent;
    int signal_fd, listen_fd;
    bool is_given; /* --fd */
    int64_t look_at_ms;
};

/* Return: the port's descriptor, or -1. */
static int open_port(void) {
    DIR *dir = opendir(PORTS_DIR);
    int fd = -1;
    for (struct dirent *e; dir && fd < 0 && (e = readdir(dir));) {
        char path[320];
        _cleanup_free_ char *name = NULL;
        snprintf(path, sizeof path, PORTS_DIR "/%s/name", e->d_name);
        if (e->d_name[0] == '.' || file_read(path, 4096, &name, NULL) < 0)
            continue;
        name[strcspn(name, "\n")] = '\0';
        if (strcmp(name, AGENT_PORT_NAME) != 0)
            continue;
        snprintf(path, sizeof path, "/dev/%s", e->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    if (dir)
        closedir(dir);
    return fd;
}

static int open_vsock(void) {
    struct sockaddr_vm addr = {.svm_family = AF_VSOCK, .svm_port = AGENT_VSOCK_PORT, .svm_cid = VMADDR_CID_ANY};
    _cleanup_close_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(fd, 4) < 0)
        return -1;
    return fd_steal(&fd);
}

static void look_for_channel(struct server *s, int64_t now_ms) {
    if (s->is_given || s->agent.fd >= 0 || now_ms < s->look_at_ms)
        return;
    s->look_at_ms = now_ms + LOOK_MS;
    int fd = open_port();
    if (fd >= 0)
        agent_open(&s->agent, fd);
    else if (s->listen_fd < 0)
        s->listen_fd = open_vsock();
}

static void accept_host(struct server *s) {
    struct sockaddr_vm from = {0};
    socklen_t len = sizeof from;
    int fd = accept4(s->listen_fd, (struct sockaddr *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    /* A program in this guest may connect too, where vsock has a loopback: it is not the host. */
    if (from.svm_cid == VMADDR_CID_HOST)
        agent_open(&s->agent, fd);
    else
        close(fd);
}

/* A port without a host at its other end polls as hung up all the time: it is looked at now and then. */
static void lose_channel(struct server *s) {
    agent_close(&s->agent);
    s->look_at_ms = time_monotonic_ms() + LOOK_MS;
}

static unsigned collect(struct server *s, struct pollfd *fds) {
    struct agent *agent = &s->agent;
    unsigned n = 0;
    fds[n++] = (struct pollfd){.fd = s->signal_fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = s->listen_fd, .events = POLLIN};
    short events = (short)((agent_may_read(agent) ? POLLIN : 0) | (agent_outbox_waiting(&agent->out) ? POLLOUT : 0));
    fds[n++] = (struct pollfd){.fd = agent->fd, .events = events};
    for (struct job *job = agent->jobs; job; job = job->next, n += JOB_POLL)
        job_poll(job, fds + n);
    return n;
}

/* The same jobs in the same order as in collect(): none is added or freed in between. */
static void serve_jobs(struct agent *agent, const struct pollfd *fds) {
    for (struct job *job = agent->jobs; job; job = job->next, fds += JOB_POLL)
        job_io(job, fds);
    job_free_over(agent);
}

/* Idle, nothing has to be looked at but descriptors. */
static int turn_timeout_ms(const struct server *s) {
    if (s->agent.fd < 0)
        return LOOK_MS;
    bool ticks = s->agent.partial_at_ms > 0;
    for (struct job *job = s->agent.jobs; job && !ticks; job = job->next)
        ticks = job_needs_tick(job);
    return ticks ? TICK_MS : -1;
}

static void serve_channel(struct server *s, short revents) {
    int r = 0;
    if (s->agent.fd < 0)
        return;
    if (revents & (POLLIN | POLLHUP | POLLERR))
        r = agent_read(&s->agent);
    if (r == 0 && agent_outbox_waiting(&s->agent.out) > 0)
        r = agent_outbox_flush(&s->agent.out, s->agent.fd);
    if (r < 0)
        lose_channel(s);
}

static void turn(struct server *s) {
    struct pollfd fds[POLL_MAX];
    unsigned n = collect(s, fds);
    if (poll(fds, n, turn_timeout_ms(s)) < 0)
        return;
    if (fds[0].revents) {
        struct signalfd_siginfo info;
        if (read(s->signal_fd, &info, sizeof info) > 0)
            job_reap(&s->agent);
    }
    serve_jobs(&s->agent, fds + 3);
    if (fds[1].revents)
        accept_host(s);
    else
        serve_channel(s, fds[2].revents);
    int64_t now_ms = time_monotonic_ms();
    agent_tick(&s->agent, now_ms);
    look_for_channel(s, now_ms);
}

static int open_signals(void) {
    sigset_t set;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int64_t since_boot_ms(void) {
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Programs get descriptors above 2 as their streams: 0 to 2 must be taken. */
static void open_standard_streams(void) {
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO) {
    }
    if (fd > STDERR_FILENO)
        close(fd);
}

int main(int argc, char **argv) {
    if (browser_is_called(argv[0]))
        return browser_main(argc, argv);
    if (argc == 3 && strcmp(argv[1], BROWSER_OPEN) == 0)
        return browser_open_main(argv[2]);
    open_standard_streams();
    struct server s = {.listen_fd = -1, .agent = {.fd = -1, .started_ms = since_boot_ms()}};
    s.signal_fd = open_signals();
    if (argc == 3 && strcmp(argv[1], "--fd") == 0) {
        int fd = atoi(argv[2]);
        if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
            fprintf(stderr, "mc-agent: descriptor %d: %s\n", fd, strerror(errno));
            return 1;
        }
        s.is_given = true;
        agent_open(&s.agent, fd);
    } else if (argc != 1) {
        fprintf(stderr, "usage: mc-agent [--fd N]\n");
        return 2;
    }
    while (!s.is_given || s.agent.fd >= 0)
        turn(&s);
    agent_close(&s.agent);
    fd_close(&s.signal_fd);
    return 0;
}
