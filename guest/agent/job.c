#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"
#include "base/time.h"

#define READ_SIZE AGENT_DATA_MAX
#define OUT_PAUSE ((size_t)256 * 1024) /* while more waits for the channel, programs wait */
/* A program may leave something behind that keeps its output open. Its own end counts: what was written is sent, and
 * after a moment of silence no more is waited for. */
#define QUIET_MS 500

struct job *job_new(struct agent *agent, uint32_t id) {
    struct job *job = agent->job_count < AGENT_JOBS_MAX ? calloc(1, sizeof *job) : NULL;
    if (!job)
        return NULL;
    *job = (struct job){.next = agent->jobs,
                        .agent = agent,
                        .id = id,
                        .out = {{-1, AGENT_WINDOW}, {-1, AGENT_WINDOW}},
                        .capture = {.max = AGENT_CAPTURE_MAX},
                        .in = {.max = AGENT_WINDOW},
                        .in_fd = -1,
                        .pty_fd = -1,
                        .wait_fd = -1};
    agent->jobs = job;
    agent->job_count++;
    return job;
}

struct job *job_find(struct agent *agent, uint32_t id) {
    for (struct job *job = agent->jobs; job; job = job->next)
        if (job->id == id && !job->is_over)
            return job;
    return NULL;
}

void job_answer(struct job *job, json_t *ok) {
    struct agent *agent = job->agent;
    if (job->is_over) {
        json_decref(ok);
        return;
    }
    job->is_over = true;
    int r = agent_outbox_json(&agent->out, agent->session, job->id, ok ? json_pack("{s:o}", "ok", ok) : NULL);
    if (r < 0)
        agent_outbox_json(&agent->out, agent->session, job->id,
                          json_pack("{s:{s:s, s:s}}", "error", "code", r == -EMSGSIZE ? "too-large" : "internal",
                                    "detail", r == -EMSGSIZE ? "the answer is too large" : "out of memory"));
}

void job_fail(struct job *job, const struct err *err) {
    struct agent *agent = job->agent;
    char detail[sizeof err->detail];
    if (job->is_over)
        return;
    job->is_over = true;
    str_escape(err->detail, strlen(err->detail), detail, sizeof detail);
    agent_outbox_json(&agent->out, agent->session, job->id,
                      json_pack("{s:{s:s, s:s}}", "error", "code", err->code, "detail", detail));
}

static void job_signal(struct job *job, int signal_number) {
    if (job->pid <= 0)
        return;
    /* Its own process group; on a terminal the one that has it now, as a key there would reach. */
    pid_t group = job->pty_fd >= 0 ? tcgetpgrp(job->pty_fd) : job->pid;
    if (kill(-(group > 0 ? group : job->pid), signal_number) < 0)
        kill(job->pid, signal_number);
}

static void job_free(struct job *job) {
    if (job->on_free)
        job->on_free(job);
    if (job->pid > 0) {
        job_signal(job, SIGKILL);
        kill(-job->pid, SIGKILL);
    }
    for (int i = 0; i < 2; i++)
        fd_close(&job->out[i].fd);
    fd_close(&job->in_fd);
    fd_close(&job->pty_fd);
    fd_close(&job->wait_fd);
    strbuf_free(&job->capture);
    strbuf_free(&job->in);
    free(job);
}

void job_free_over(struct agent *agent) {
    for (struct job **at = &agent->jobs; *at;) {
        struct job *job = *at;
        if (!job->is_over) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        agent->job_count--;
        job_free(job);
    }
}

void job_free_all(struct agent *agent) {
    for (struct job *job = agent->jobs; job; job = job->next)
        job->is_over = true;
    job_free_over(agent);
}

void job_message(struct job *job, json_t *message) {
    json_int_t signal_number = 0, rows = 0, columns = 0;
    if (json_is_true(json_object_get(message, "cancel"))) {
        job->is_over = true;
    } else if (json_unpack(message, "{s:I}", "signal", &signal_number) == 0) {
        if (signal_number > 0 && signal_number < NSIG)
            job_signal(job, (int)signal_number);
    } else if (json_unpack(message, "{s:[I,I]}", "resize", &rows, &columns) == 0 && job->pty_fd >= 0) {
        struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
        if (rows > 0 && rows <= UINT16_MAX && columns > 0 && columns <= UINT16_MAX)
            ioctl(job->pty_fd, TIOCSWINSZ, &size);
    }
}

/* ---- standard input ---- */

static void credit_host(struct job *job, size_t bytes) {
    if (bytes > 0)
        agent_outbox_credit(&job->agent->out, job->agent->session, job->id, AGENT_STDIN, (uint32_t)bytes);
}

static void input_close(struct job *job) {
    credit_host(job, job->in.len - job->in_at);
    strbuf_free(&job->in);
    job->in_at = 0;
    fd_close(&job->in_fd);
}

static void input_flush(struct job *job) {
    while (job->in_fd >= 0 && job->in_at < job->in.len) {
        ssize_t n = write(job->in_fd, job->in.data + job->in_at, job->in.len - job->in_at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            input_close(job); /* it does not read any more: what comes is thrown away, as a pipe would */
            return;
        }
        job->in_at += (size_t)n;
        credit_host(job, (size_t)n);
    }
    strbuf_free(&job->in);
    job->in_at = 0;
    if (job->in_ended)
        fd_close(&job->in_fd);
}

/* Return: false when the job was failed: more came than may. */
static bool input_add(struct job *job, const char *data, size_t len) {
    struct err err = {0};
    size_t waiting = job->in.len - job->in_at;
    if (waiting + len > AGENT_WINDOW)
        err_set(&err, EPROTO, "flow", "the host sent more of standard input than it was given credit for");
    else if (job->in_left > 0 && len >= job->in_left)
        err_set(&err, EFBIG, "too-large", "more was sent than this operation takes");
    if (err.errnum) {
        job_fail(job, &err);
        return false;
    }
    if (job->in_left > 0)
        job->in_left -= len;
    if (job->in_at > 0) {
        memmove(job->in.data, job->in.data + job->in_at, waiting);
        job->in.len = waiting;
        job->in_at = 0;
    }
    strbuf_add(&job->in, data, len);
    return true;
}

void job_data(struct job *job, const uint8_t *data, size_t len) {
    if (job->in_ended)
        return;
    if (len == 0) {
        job->in_ended = true;
        /* What a terminal takes for the end of its input. */
        if (job->pty_fd >= 0 && job->in_fd >= 0)
            strbuf_add(&job->in, "", 1);
    } else if (job->in_fd < 0) {
        credit_host(job, len);
    } else if (!input_add(job, (const char *)data, len)) {
        return;
    }
    input_flush(job);
    if (job->pid == 0 && !job->exited && job->in_ended && job->in_fd < 0 && job->on_done)
        job->on_done(job); /* a file that was written */
}

/* ---- output ---- */

void job_credit(struct job *job, enum agent_stream stream, uint32_t bytes) {
    if (stream == AGENT_STDIN)
        return;
    struct job_stream *out = &job->out[stream - AGENT_STDOUT];
    out->window += bytes;
    if (out->window > AGENT_WINDOW)
        out->window = AGENT_WINDOW;
}

static void send_data(struct job *job, int i, const uint8_t *data, size_t len) {
    struct agent *agent = job->agent;
    struct agent_frame frame = {.kind = AGENT_FRAME_DATA,
                                .stream = AGENT_STDOUT + (unsigned)i,
                                .session = agent->session,
                                .id = job->id,
                                .payload = data,
                                .len = len};
    agent_outbox_frame(&agent->out, &frame);
}

static void output_end(struct job *job, int i) {
    if (job->out[i].fd < 0)
        return;
    fd_close(&job->out[i].fd);
    if (!job->is_captured)
        send_data(job, i, NULL, 0);
}

static bool output_may_read(const struct job *job, int i) {
    return job->out[i].fd >= 0 &&
           (job->is_captured || (job->out[i].window > 0 && agent_outbox_waiting(&job->agent->out) < OUT_PAUSE));
}

static void output_read(struct job *job, int i) {
    static uint8_t buffer[READ_SIZE];
    size_t most = sizeof buffer;
    if (!job->is_captured && job->out[i].window < most)
        most = job->out[i].window;
    if (i == 0 && job->out_left > 0 && job->out_left < most)
        most = job->out_left;
    ssize_t n = read(job->out[i].fd, buffer, most);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    /* A terminal that nobody has open any more reads as EIO. */
    if (n <= 0) {
        output_end(job, i);
        return;
    }
    job->quiet_at_ms = 0;
    if (job->is_captured) {
        strbuf_add(&job->capture, (const char *)buffer, (size_t)n);
        return;
    }
    job->out[i].window -= (size_t)n;
    send_data(job, i, buffer, (size_t)n);
    if (i == 0 && job->out_left > 0 && (job->out_left -= (size_t)n) == 0)
        output_end(job, i);
}

static void finish_if_done(struct job *job) {
    bool open = job->out[0].fd >= 0 || job->out[1].fd >= 0;
    bool waits = job->in_fd >= 0 || job->wait_fd >= 0 || job->on_ready;
    if (!job->is_over && !open && job->pid == 0 && job->on_done && (job->exited || !waits))
        job->on_done(job);
}

/* ---- the loop ---- */

void job_poll(struct job *job, struct pollfd ret[JOB_POLL]) {
    bool has_input = job->in_at < job->in.len;
    for (int i = 0; i < 2; i++)
        ret[i] = (struct pollfd){.fd = output_may_read(job, i) ? job->out[i].fd : -1, .events = POLLIN};
    ret[2] = (struct pollfd){.fd = has_input ? job->in_fd : -1, .events = POLLOUT};
    ret[3] = (struct pollfd){.fd = job->wait_fd, .events = job->wait_events};
}

void job_io(struct job *job, const struct pollfd polled[JOB_POLL]) {
    for (int i = 0; i < 2 && !job->is_over; i++)
        if (polled[i].revents && output_may_read(job, i))
            output_read(job, i);
    if (!job->is_over && polled[2].revents)
        input_flush(job);
    if (!job->is_over && polled[3].revents && job->on_ready)
        job->on_ready(job, polled[3].revents);
    finish_if_done(job);
}

static void tick_deadline(struct job *job, int64_t now_ms) {
    if (job->deadline_ms == 0 || now_ms < job->deadline_ms || job->is_over)
        return;
    job->deadline_ms = 0;
    if (job->on_deadline) {
        job->on_deadline(job);
        return;
    }
    struct err err = {0};
    err_set(&err, ETIMEDOUT, "timeout", "it did not end within the time that was given to it");
    job_fail(job, &err);
}

void job_tick(struct job *job, int64_t now_ms) {
    tick_deadline(job, now_ms);
    if (job->is_over || !job->exited)
        return;
    bool held_up = false;
    for (int i = 0; i < 2; i++)
        held_up = held_up || (job->out[i].fd >= 0 && !output_may_read(job, i));
    if (job->quiet_at_ms == 0 || held_up)
        job->quiet_at_ms = now_ms;
    else if (now_ms - job->quiet_at_ms >= QUIET_MS)
        for (int i = 0; i < 2; i++)
            output_end(job, i);
    finish_if_done(job);
}

bool job_needs_tick(const struct job *job) {
    return job->deadline_ms > 0 || job->exited;
}

void job_reap(struct agent *agent) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (struct job *job = agent->jobs; job; job = job->next)
            if (job->pid == pid) {
                job->pid = 0;
                job->exited = true;
                job->wait_status = status;
            }
}
