/* The guest's side against a host that sends anything: channel, sessions, jobs, streams and flow. Operations are
 * replaced by one that runs nothing: its output is a pipe that holds some bytes, its input /dev/null. Input: a script
 * (agent_script.h). */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "agent_script.h"

static void check(bool good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "fuzz_agent_guest: %s\n", what);
    abort();
}

json_t *agent_operations(void) {
    return json_array();
}

static void on_done(struct job *job) {
    job_answer(job, json_object());
}

void agent_request(struct agent *agent, uint32_t id, json_t *request) {
    int fds[2];
    job_free_over(agent);
    struct job *job = json_object_get(request, "op") ? job_new(agent, id) : NULL;
    if (!job || pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return;
    check(write(fds[1], "0123456789", 10) == 10, "pipe");
    close(fds[1]);
    job->out[id % 2].fd = fds[0];
    job->in_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    job->in_left = 1000;
    job->on_done = on_done;
}

static void turn(struct agent *agent, int host_fd) {
    uint8_t drain[65536];
    for (struct job *job = agent->jobs; job; job = job->next) {
        struct pollfd polled[JOB_POLL];
        job_poll(job, polled);
        poll(polled, JOB_POLL, 0);
        job_io(job, polled);
    }
    job_free_over(agent);
    check(agent->job_count <= AGENT_JOBS_MAX, "too many jobs");
    if (agent->fd >= 0)
        agent_outbox_flush(&agent->out, agent->fd);
    while (read(host_fd, drain, sizeof drain) > 0) {
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t piece[AGENT_HEADER_SIZE + SCRIPT_PIECE_MAX];
    struct agent agent = {.fd = -1};
    int pair[2];
    int64_t now_ms = 1;
    signal(SIGPIPE, SIG_IGN);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0, "socketpair");
    agent_open(&agent, pair[0]);
    for (size_t len; (len = script_next(&data, &size, 5, piece)) > 0;) {
        if (write(pair[1], piece, len) < 0)
            check(errno == EAGAIN || errno == EPIPE, "write");
        if (agent.fd >= 0 && agent_read(&agent) < 0)
            agent_close(&agent);
        turn(&agent, pair[1]);
        agent_tick(&agent, now_ms += 1000);
    }
    agent_close(&agent);
    check(agent.job_count == 0 && !agent.jobs && !agent.in.data && !agent.out.data, "something is left");
    close(pair[1]);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const texts[] = {
        "{\"op\":\"x\"}",    "{\"signal\":9}",     "input", "\x10\0\0",
        "{\"cancel\":true}", "{\"resize\":[2,3]}", "",      "{\"hello\":{\"min\":1,\"max\":1}}"};
    size_t len = script_add(ret, 0, AGENT_FRAME_JSON, 0, 0, "{\"hello\":{\"min\":1,\"max\":1}}");
    len = script_add(ret, len, AGENT_FRAME_JSON, 0, 1, "{\"op\":\"x\"}");
    for (unsigned i = 0; i < number % 9; i++)
        len = script_add(ret, len, (number * 7 + i * 3) % 4, i % 3, (uint8_t)((number + i) % 4),
                         texts[(number + i * 5) % 8]);
    return len;
}
