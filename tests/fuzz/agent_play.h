/* What the fuzz targets of the guest's side share: a host's end that reads and throws away, and the agent's loop, once round. */
#pragma once

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "agent_script.h"

struct rig {
    struct agent agent;
    int host_fd;
    int64_t now_ms;
};

static inline void check(bool good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "fuzz of the agent: %s\n", what);
    abort();
}

static inline void rig_open(struct rig *rig) {
    int pair[2];
    signal(SIGPIPE, SIG_IGN);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0, "socketpair");
    *rig = (struct rig){.agent = {.fd = -1}, .host_fd = pair[1], .now_ms = 1};
    agent_open(&rig->agent, pair[0]);
}

static inline void rig_turn(struct rig *rig) {
    uint8_t drain[65536];
    for (struct job *job = rig->agent.jobs; job; job = job->next) {
        struct pollfd polled[JOB_POLL];
        job_poll(job, polled);
        poll(polled, JOB_POLL, 0);
        job_io(job, polled);
    }
    job_free_over(&rig->agent);
    check(rig->agent.job_count <= AGENT_JOBS_MAX, "too many jobs");
    if (rig->agent.fd >= 0)
        agent_outbox_flush(&rig->agent.out, rig->agent.fd);
    while (read(rig->host_fd, drain, sizeof drain) > 0) {
    }
}

static inline void rig_deliver(struct rig *rig, const uint8_t *data, size_t len) {
    if (write(rig->host_fd, data, len) < 0)
        check(errno == EAGAIN || errno == EPIPE, "write");
    if (rig->agent.fd >= 0 && agent_read(&rig->agent) < 0)
        agent_close(&rig->agent);
    rig_turn(rig);
}

/* A second goes by after each piece. */
static inline void rig_play(struct rig *rig, const uint8_t *script, size_t size) {
    uint8_t piece[AGENT_HEADER_SIZE + SCRIPT_PIECE_MAX];
    for (size_t len; (len = script_next(&script, &size, 5, piece)) > 0;) {
        rig_deliver(rig, piece, len);
        agent_tick(&rig->agent, rig->now_ms += 1000);
    }
}

static inline void rig_close(struct rig *rig) {
    struct agent *agent = &rig->agent;
    agent_close(agent);
    check(agent->job_count == 0 && !agent->jobs && !agent->in.data && !agent->out.data, "something is left");
    close(rig->host_fd);
}
