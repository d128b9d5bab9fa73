#include "agent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/time.h"

/* While more than this waits to be sent, nothing new is taken on; an answer to what runs may still be added. */
#define OUT_BUSY ((size_t)256 * 1024)
#define OUT_MAX ((size_t)4 * 1024 * 1024)
#define READ_SIZE 65536

void agent_open(struct agent *agent, int fd) {
    agent_close(agent);
    agent->fd = fd;
    agent->out.max = OUT_MAX;
}

static void end_session(struct agent *agent) {
    job_free_all(agent);
    agent_outbox_clear(&agent->out);
    agent->session = 0;
}

void agent_close(struct agent *agent) {
    end_session(agent);
    agent_decoder_free(&agent->in);
    agent->in = (struct agent_decoder){0};
    agent->partial_at_ms = 0;
    fd_close(&agent->fd);
}

bool agent_may_read(const struct agent *agent) {
    return agent_outbox_waiting(&agent->out) < OUT_BUSY;
}

static void refuse_version(struct agent *agent, uint32_t session, json_int_t min, json_int_t max) {
    char detail[160];
    snprintf(detail, sizeof detail, "this agent speaks version %d of the protocol, the host from %lld to %lld",
             AGENT_VERSION, (long long)min, (long long)max);
    agent_outbox_json(&agent->out, session, 0,
                      json_pack("{s:{s:s, s:s, s:i, s:i}}", "error", "code", "version", "detail", detail, "min",
                                AGENT_VERSION, "max", AGENT_VERSION));
}

/* The greeting of a session that is here already is only answered again: the host repeats it until it hears us. */
static void greet(struct agent *agent, uint32_t session, json_t *message) {
    json_int_t min, max;
    if (session == 0 || json_unpack(message, "{s:{s:I, s:I}}", "hello", "min", &min, "max", &max) < 0)
        return;
    if (session != agent->session)
        end_session(agent);
    if (min > AGENT_VERSION || max < AGENT_VERSION) {
        refuse_version(agent, session, min, max);
        return;
    }
    agent->session = session;
    agent_outbox_json(&agent->out, session, 0,
                      json_pack("{s:{s:i, s:s, s:I, s:I, s:o}}", "hello", "version", AGENT_VERSION, "agent", MC_VERSION,
                                "started_ms", (json_int_t)agent->started_ms, "pid", (json_int_t)getpid(), "operations",
                                agent_operations()));
}

static void on_json(struct agent *agent, const struct agent_frame *frame) {
    json_t *message = agent_frame_json(frame);
    struct job *job = frame->id ? job_find(agent, frame->id) : NULL;
    if (message && frame->id == 0)
        greet(agent, frame->session, message);
    else if (message && job)
        job_message(job, message);
    else if (frame->id != 0 && frame->session == agent->session && !job)
        agent_request(agent, frame->id, message); /* NULL too: it is answered with what is wrong */
    json_decref(message);
}

static void on_frame(struct agent *agent, const struct agent_frame *frame) {
    if (frame->id != 0 && (agent->session == 0 || frame->session != agent->session)) {
        /* The host does not know yet that it talks to another process than before. */
        if (frame->kind == AGENT_FRAME_JSON && agent->session == 0)
            agent_outbox_json(&agent->out, frame->session, 0,
                              json_pack("{s:{s:s, s:s}}", "error", "code", "session", "detail", "not greeted"));
        return;
    }
    struct job *job = frame->id ? job_find(agent, frame->id) : NULL;
    switch (frame->kind) {
    case AGENT_FRAME_JSON:
        on_json(agent, frame);
        return;
    case AGENT_FRAME_DATA:
        if (job && frame->stream == AGENT_STDIN)
            job_data(job, frame->payload, frame->len);
        return;
    case AGENT_FRAME_CREDIT:
        if (job)
            job_credit(job, frame->stream, agent_frame_credit(frame));
        return;
    }
}

static void take_frames(struct agent *agent) {
    struct agent_frame frame;
    /* All of them, whatever waits to go out: requests are few (AGENT_JOBS_MAX), and each answer is small. */
    while (agent_decoder_next(&agent->in, &frame) == 1)
        on_frame(agent, &frame);
    if (!agent_decoder_waits(&agent->in))
        agent->partial_at_ms = 0;
    else if (agent->partial_at_ms == 0)
        agent->partial_at_ms = time_monotonic_ms();
}

int agent_read(struct agent *agent) {
    static uint8_t buffer[READ_SIZE];
    ssize_t n = read(agent->fd, buffer, sizeof buffer);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (n == 0)
        return -EPIPE;
    agent->partial_at_ms = 0;
    if (agent_decoder_push(&agent->in, buffer, (size_t)n) < 0)
        return -ENOBUFS;
    take_frames(agent);
    return 0;
}

void agent_tick(struct agent *agent, int64_t now_ms) {
    if (agent->partial_at_ms > 0 && now_ms - agent->partial_at_ms >= AGENT_STALL_MS) {
        agent->partial_at_ms = 0;
        agent_decoder_give_up(&agent->in);
        take_frames(agent);
    }
    for (struct job *job = agent->jobs; job; job = job->next)
        job_tick(job, now_ms);
    job_free_over(agent);
}
