/* Processes: starting one with nothing inherited, and naming one for good. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* What the program and its children may use at most. Source: setrlimit(2). */
struct proc_limit {
    int resource; /* RLIMIT_… */
    uint64_t max;
};

/* A program to start. argv[0] is its path; there is no search and no shell. */
struct proc_spec {
    const char *const *argv;
    const char *const *env; /* NULL: an empty environment with PATH alone */
    uint32_t uid, gid;      /* 0: stays root */
    uint32_t extra_gid;     /* one supplementary group; 0: none */
    const int *fds;         /* become descriptors 3, 4, … of the child; standard input is /dev/null */
    int fd_count;
    int output_fd; /* standard output and error; -1: /dev/null */
    int error_fd;  /* standard error, where it is to be another; 0: as output_fd */
    int cwd_fd;    /* the folder it starts in; 0: ours */
    int netns_fd;  /* the network namespace it starts in; 0: ours */
    bool no_new_privs;
    bool ends_with_us; /* it is killed when the thread that starts it ends, however it ends */
    const struct proc_limit *limits;
    int limit_count;
    const int *group_fds; /* cgroup.procs of the groups that it joins before anything else: cgroup_make() */
    int group_count;
    int jail_fd; /* a jail_make(); it gets a copy. 0: sees what its parent sees */
};

/* Starts it in a session of its own. Should the caller die on the way, the child ends before it executes anything, or is
 * found in its group. Any thread may call it. Return: 0 with the pid and a pidfd (the caller owns it), or -errno: the child's
 * own failure to drop privileges or to exec is reported here too, with what failed. */
int proc_start(const struct proc_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct err *err);

/* The start time of a process in clock ticks since boot: a pid and its start time name one process for good.
 * Source: proc(5), stat field 22. Return: 0 or -ESRCH. */
int proc_start_time(pid_t pid, uint64_t *ret_ticks);

/* How long ago that was. No change of the clock moves it; a suspended host's time counts. */
int64_t proc_age_ms(uint64_t start_ticks);

/* A pidfd of exactly the process with this pid and start time. Return: 0, or -ESRCH when it is gone. */
int proc_open(pid_t pid, uint64_t start_ticks, int *ret_pidfd);

int proc_signal(int pidfd, int signal);

/* How a child ended, by its pidfd. Return: 1 with the status in words ("exit status 1", "killed by signal 9 (Killed)"),
 * 0 while it runs, -ECHILD when it is not our child (then how it ended cannot be known). */
int proc_reap(int pidfd, char *ret_words, size_t size);
