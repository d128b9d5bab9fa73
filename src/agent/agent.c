/* Theory of operation. One socket; a timer that ticks while something is waited for. Connecting, the agent is greeted
 * with a session number of ours, again and again, until it answers: it may start long after the VMM, and a VMM keeps
 * what is sent before that. So a greeting is repeated only when the one before has left our socket. Ready, it is asked
 * for its health every interval; silence for three of them ends the connection, and all begins anew.
 *
 * A guest that floods: garbage, and frames that nobody waits for, are counted by the byte. Above NOISE_MAX a second the
 * socket is not read for a while. What a job takes is bounded by its window, and it gets one answer. */
#include "agent/agent.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/outbox.h"
#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"

#define INTERVAL_DEFAULT_MS 10000
#define SILENT_INTERVALS 3
#define TICK_MS 250
#define TICK_SLOW_MS 2000 /* for a guest that has been silent for SLOW_AFTER_MS */
#define SLOW_AFTER_MS 120000
#define GREET_INTERVAL_MS 300
/* A guest that was stopped in the middle of a frame of a host's before us takes greetings for the rest of it, unless it waits for that
 * in vain for AGENT_STALL_MS. */
#define GREETINGS_IN_A_ROW 3
#define GREET_PAUSE_MS (AGENT_STALL_MS + 500)
#define OUT_MAX ((size_t)1024 * 1024)
#define READ_SIZE 65536
#define NOISE_MAX ((size_t)512 * 1024) /* bytes a second */
#define MUTE_MS 1000
#define JOBS_MAX 12           /* less than the agent takes: its own health is always among them */
#define TIMEOUT_SLACK_MS 3000 /* the agent itself says when time is up; after this much more it is not believed to */
#define VSOCK_LINE_MAX 32
#define FOLDER_SIZE 384
#define SOCKET_SIZE 64
#define PATH_SIZE (FOLDER_SIZE + SOCKET_SIZE)

struct agent {
    struct loop *loop;
    char folder[FOLDER_SIZE], socket[SOCKET_SIZE];
    uint32_t vsock_port;
    uint32_t uid;
    pid_t pid;
    int interval_ms;
    agent_changed_fn *changed;
    void *userdata;

    int fd;        /* -1: not connected */
    bool is_given; /* nothing else is dialled */
    sd_event_source *io;
    struct loop_timer *tick;
    struct agent_decoder in;
    struct agent_outbox out;
    bool vsock_waits; /* for the answer to CONNECT */
    char vsock_line[VSOCK_LINE_MAX];
    size_t vsock_len;

    enum agent_state state;
    char words[AGENT_WORDS_MAX];
    uint32_t session, last_id;
    unsigned greetings; /* in a row, without an answer */
    int64_t connecting_since_ms, greeted_at_ms, heard_at_ms, asked_at_ms, partial_at_ms;
    int64_t started_ms; /* as the guest says; -1: not known */
    json_t *health;
    struct agent_job *health_job;

    struct agent_job *jobs;
    unsigned job_count;
    size_t noise;
    int64_t noise_since_ms, muted_until_ms;
    int in_use; /* calls into the owner's functions under way: freed after them */
    bool is_freed;
};

struct agent_job {
    struct agent_job *next;
    struct agent *agent;
    uint32_t id;
    struct agent_handler handler;
    void *userdata;
    int64_t deadline_ms;              /* 0: none */
    size_t out_window[AGENT_STREAMS]; /* bytes that the guest may still send */
    size_t in_window;                 /* bytes that it still takes */
};

const char *agent_state_name(enum agent_state state) {
    switch (state) {
    case AGENT_CONNECTING:
        return "connecting";
    case AGENT_READY:
        return "ready";
    case AGENT_INCOMPATIBLE:
        return "incompatible";
    }
    return "connecting";
}

enum agent_state agent_state(const struct agent *agent) {
    return agent->state;
}

const char *agent_words(const struct agent *agent) {
    return agent->words;
}

json_t *agent_health(const struct agent *agent) {
    return agent->health;
}

int64_t agent_started_ms(const struct agent *agent) {
    return agent->started_ms;
}

static void release(struct agent *agent) {
    if (agent->in_use > 0 || !agent->is_freed)
        return;
    sd_event_source_disable_unref(agent->io);
    loop_timer_free(agent->tick);
    agent_decoder_free(&agent->in);
    agent_outbox_clear(&agent->out);
    fd_close(&agent->fd);
    json_decref(agent->health);
    free(agent);
}

static void set_state(struct agent *agent, enum agent_state state, const char *words) {
    bool changed = agent->state != state;
    agent->state = state;
    str_escape(words, strlen(words), agent->words, sizeof agent->words);
    if (changed && agent->changed && !agent->is_freed)
        agent->changed(agent->userdata, state, agent->words);
}

/* ---- jobs ---- */

static struct agent_job *job_find(struct agent *agent, uint32_t id) {
    for (struct agent_job *job = agent->jobs; job; job = job->next)
        if (job->id == id)
            return job;
    return NULL;
}

static void job_unlink(struct agent_job *job) {
    struct agent *agent = job->agent;
    for (struct agent_job **at = &agent->jobs; *at; at = &(*at)->next)
        if (*at == job) {
            *at = job->next;
            agent->job_count--;
            break;
        }
    if (agent->health_job == job)
        agent->health_job = NULL;
}

static void job_end(struct agent_job *job, json_t *ok, const struct err *err) {
    job_unlink(job);
    job->handler.done(job->userdata, ok, err);
    free(job);
}

static void end_jobs(struct agent *agent, const char *why) {
    struct err err = {0};
    err_set(&err, ECONNRESET, "agent.gone", "the agent in the guest: %s", why);
    while (agent->jobs)
        job_end(agent->jobs, NULL, &err);
}

static void tell_guest(struct agent *agent, uint32_t id, json_t *message) {
    /* Best effort: a channel that takes nothing is found out by the health. */
    agent_outbox_json(&agent->out, agent->session, id, message);
}

static void watch(struct agent *agent);

/* When to look again: seldom while nothing is under way, because there are many VMs. */
static void arm(struct agent *agent) {
    int64_t now_ms = time_monotonic_ms(), delay_ms = TICK_MS;
    if (agent->state != AGENT_READY)
        delay_ms = now_ms - agent->connecting_since_ms > SLOW_AFTER_MS ? TICK_SLOW_MS : TICK_MS;
    else if (!agent->jobs && agent->partial_at_ms == 0 && agent->muted_until_ms < now_ms)
        delay_ms = agent->asked_at_ms + agent->interval_ms - now_ms;
    loop_timer_again(agent->tick, delay_ms > 0 ? delay_ms : 0);
}

static void job_drop(struct agent_job *job) {
    tell_guest(job->agent, job->id, json_pack("{s:b}", "cancel", 1));
    watch(job->agent);
}

static void job_timeouts(struct agent *agent, int64_t now_ms) {
    struct err err = {0};
    for (struct agent_job *job = agent->jobs, *next; job; job = next) {
        next = job->next;
        if (job->deadline_ms == 0 || now_ms < job->deadline_ms)
            continue;
        err_set(&err, ETIMEDOUT, "agent.timeout", "the agent in the guest did not answer in time");
        job_drop(job);
        job_end(job, NULL, &err);
        next = agent->jobs; /* the owner may have ended others */
    }
}

/* ---- the connection ---- */

static void disconnect(struct agent *agent, const char *why) {
    sd_event_source_disable_unref(agent->io);
    agent->io = NULL;
    fd_close(&agent->fd);
    agent_decoder_free(&agent->in);
    agent->in = (struct agent_decoder){0};
    agent_outbox_clear(&agent->out);
    agent->partial_at_ms = 0;
    agent->session = 0;
    agent->connecting_since_ms = time_monotonic_ms();
    set_state(agent, AGENT_CONNECTING, why);
    end_jobs(agent, why);
    if (!agent->is_freed)
        arm(agent);
}

static void greet(struct agent *agent, int64_t now_ms) {
    int waiting = 0;
    bool is_pause = agent->greetings >= GREETINGS_IN_A_ROW;
    if (agent->vsock_waits || now_ms - agent->greeted_at_ms < (is_pause ? GREET_PAUSE_MS : GREET_INTERVAL_MS))
        return;
    if (agent_outbox_waiting(&agent->out) > 0 || (ioctl(agent->fd, SIOCOUTQ, &waiting) == 0 && waiting > 0))
        return; /* nobody has read the last one yet */
    while (agent->session == 0)
        if (getrandom(&agent->session, sizeof agent->session, 0) != sizeof agent->session)
            return;
    agent->greeted_at_ms = now_ms;
    agent->greetings = is_pause ? 1 : agent->greetings + 1;
    agent_outbox_json(&agent->out, agent->session, 0,
                      json_pack("{s:{s:i, s:i}}", "hello", "min", AGENT_VERSION, "max", AGENT_VERSION));
    watch(agent);
}

/* Return: whether it was an agent's greeting that we can talk with. */
static bool on_hello(struct agent *agent, json_t *message) {
    json_int_t version = 0, started = -1;
    const char *text = "?", *detail = "";
    char words[AGENT_WORDS_MAX];
    if (json_unpack(message, "{s:{s:I, s?s, s?I}}", "hello", "version", &version, "agent", &text, "started_ms",
                    &started) == 0 &&
        version == AGENT_VERSION) {
        agent->started_ms = started >= 0 ? started : -1;
        agent->asked_at_ms = 0;
        snprintf(words, sizeof words, "ready: agent %.32s, protocol %d", text, AGENT_VERSION);
        set_state(agent, AGENT_READY, words);
        return true;
    }
    if (json_unpack(message, "{s:{s:s}}", "error", "detail", &detail) == 0) {
        snprintf(words, sizeof words, "no common version: %.160s", detail);
        set_state(agent, AGENT_INCOMPATIBLE, words);
    }
    return false;
}

/* ---- frames ---- */

/* Return: whether it was an answer; only one can come for a job. */
static bool on_answer(struct agent_job *job, json_t *message) {
    struct err err = {0};
    const char *code = "", *detail = "";
    char safe[600], safe_code[40];
    json_t *ok = json_object_get(message, "ok");
    if (json_is_object(ok)) {
        job_end(job, ok, NULL);
        return true;
    }
    if (json_unpack(message, "{s:{s:s, s?s}}", "error", "code", &code, "detail", &detail) == 0) {
        str_escape(detail, strnlen(detail, 512), safe, sizeof safe);
        str_escape(code, strnlen(code, 36), safe_code, sizeof safe_code);
        err_set(&err, EREMOTEIO, "guest", "the agent in the guest: %s", safe);
        snprintf(err.code, sizeof err.code, "guest.%s", safe_code);
        job_end(job, NULL, &err);
        return true;
    }
    json_t *event = json_object_get(message, "event");
    if (json_is_object(event) && job->handler.event)
        job->handler.event(job->userdata, event);
    return false;
}

/* Return: whether the guest paid for it: by the job's window, which only the job's owner opens again. */
static bool on_data(struct agent_job *job, const struct agent_frame *frame) {
    struct err err = {0};
    size_t *window = &job->out_window[frame->stream];
    if (frame->stream == AGENT_STDIN || frame->len > *window) {
        err_set(&err, EPROTO, "agent.flow", "the agent in the guest sent more than it was given credit for");
        job_drop(job);
        job_end(job, NULL, &err);
        return true;
    }
    if (!job->handler.data)
        return false;
    *window -= frame->len;
    job->handler.data(job->userdata, frame->stream, frame->payload, frame->len);
    return frame->len > 0; /* empty ones cost no window */
}

static void on_credit(struct agent_job *job, const struct agent_frame *frame) {
    uint32_t bytes = agent_frame_credit(frame);
    if (frame->stream != AGENT_STDIN || bytes == 0 || job->in_window + bytes > AGENT_WINDOW)
        return;
    job->in_window += bytes;
    if (job->handler.credit)
        job->handler.credit(job->userdata, bytes);
}

/* The agent does not know our session: it is another process than the one that was greeted. */
static bool is_other_session(json_t *message) {
    const char *code = "";
    return json_unpack(message, "{s:{s:s}}", "error", "code", &code) == 0 && strcmp(code, "session") == 0;
}

/* Return: whether it was of use to somebody: what is not is counted as noise, whatever it belongs to. */
static bool on_frame(struct agent *agent, const struct agent_frame *frame) {
    struct agent_job *job = frame->id ? job_find(agent, frame->id) : NULL;
    if (agent->session == 0 || frame->session != agent->session || (frame->id != 0 && !job))
        return false;
    agent->heard_at_ms = time_monotonic_ms();
    if (job && frame->kind == AGENT_FRAME_DATA)
        return on_data(job, frame);
    if (job && frame->kind == AGENT_FRAME_CREDIT) {
        on_credit(job, frame);
        return false; /* as cheap to send as they are to take: counted */
    }
    if (frame->kind != AGENT_FRAME_JSON)
        return false;
    json_t *message = agent_frame_json(frame);
    bool expected = false;
    if (message && job)
        expected = on_answer(job, message);
    else if (message && agent->state != AGENT_READY)
        expected = on_hello(agent, message);
    else if (message && is_other_session(message))
        disconnect(agent, "it was started anew");
    json_decref(message);
    return expected;
}

static void count_noise(struct agent *agent, size_t bytes) {
    int64_t now_ms = time_monotonic_ms();
    if (now_ms - agent->noise_since_ms > 1000) {
        agent->noise_since_ms = now_ms;
        agent->noise = 0;
    }
    agent->noise += bytes;
    if (agent->noise <= NOISE_MAX)
        return;
    agent->muted_until_ms = now_ms + MUTE_MS;
    arm(agent);
}

static void take_frames(struct agent *agent) {
    struct agent_frame frame;
    uint64_t skipped = agent->in.skipped;
    /* disconnect() empties the decoder. */
    while (!agent->is_freed && agent->fd >= 0 && agent_decoder_next(&agent->in, &frame) == 1) {
        size_t size = AGENT_HEADER_SIZE + frame.len;
        if (!on_frame(agent, &frame))
            count_noise(agent, size);
    }
    if (agent->is_freed || agent->fd < 0)
        return;
    if (agent->in.skipped > skipped)
        count_noise(agent, agent->in.skipped - skipped);
    if (!agent_decoder_waits(&agent->in))
        agent->partial_at_ms = 0;
    else if (agent->partial_at_ms == 0)
        agent->partial_at_ms = time_monotonic_ms();
    arm(agent);
}

/* "OK 1073741824\n", read byte by byte: what follows is the channel's.
 * Source: Firecracker, docs/vsock.md. Return: 1 connected, 0 more is needed, -errno. */
static int read_vsock_line(struct agent *agent) {
    for (char c;;) {
        ssize_t n = recv(agent->fd, &c, 1, 0);
        if (n <= 0)
            return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -ECONNRESET;
        if (c == '\n')
            break;
        if (agent->vsock_len == sizeof agent->vsock_line - 1)
            return -EPROTO;
        agent->vsock_line[agent->vsock_len++] = c;
    }
    agent->vsock_line[agent->vsock_len] = '\0';
    agent->vsock_waits = false;
    return str_starts(agent->vsock_line, "OK ") ? 1 : -EPROTO;
}

/* The buffer is each thread's own: a VM that is being made has its agent on its worker's loop. It is not on the stack, where what
 * handlers leave below it, secrets too, would be overwritten by nothing for long. */
static int receive(struct agent *agent) {
    static _Thread_local uint8_t buffer[READ_SIZE];
    if (agent->vsock_waits) {
        int r = read_vsock_line(agent);
        return r < 0 ? r : 0;
    }
    ssize_t n = recv(agent->fd, buffer, sizeof buffer, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (n == 0)
        return -ECONNRESET;
    agent->partial_at_ms = 0;
    int r = agent_decoder_push(&agent->in, buffer, (size_t)n);
    explicit_bzero(buffer, (size_t)n); /* there are credentials among it */
    if (r == 0)
        take_frames(agent);
    return r;
}

static void watch(struct agent *agent) {
    if (!agent->io)
        return;
    bool is_muted = agent->muted_until_ms > time_monotonic_ms();
    uint32_t events =
        (is_muted ? 0U : (uint32_t)EPOLLIN) | (agent_outbox_waiting(&agent->out) > 0 ? (uint32_t)EPOLLOUT : 0U);
    sd_event_source_set_io_events(agent->io, events);
    /* A hang-up would be told even without events. */
    sd_event_source_set_enabled(agent->io, events ? SD_EVENT_ON : SD_EVENT_OFF);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct agent *agent = userdata;
    int r = 0;
    agent->in_use++;
    if (revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
        r = receive(agent);
    if (r == 0 && agent->fd >= 0 && !agent->is_freed)
        r = agent_outbox_flush(&agent->out, agent->fd);
    if (r < 0 && agent->fd >= 0)
        disconnect(agent, agent->state == AGENT_CONNECTING ? "has not answered yet" : "the channel to it was closed");
    watch(agent);
    agent->in_use--;
    release(agent);
    return 0;
}

/* ---- time ---- */

static int attach(struct agent *agent) {
    int r = sd_event_add_io(loop_event(agent->loop), &agent->io, agent->fd, EPOLLIN, on_io, agent);
    if (r < 0) {
        fd_close(&agent->fd);
        return r;
    }
    /* A guest that talks all the time comes after everything else. */
    sd_event_source_set_priority(agent->io, SD_EVENT_PRIORITY_NORMAL + 10);
    agent->greeted_at_ms = 0;
    agent->greetings = 0;
    agent->heard_at_ms = agent->asked_at_ms = time_monotonic_ms();
    agent->vsock_waits = agent->vsock_port != 0;
    agent->vsock_len = 0;
    return 0;
}

int agent_connect(const char *folder, const char *socket, uint32_t uid, pid_t pid, int *ret_fd) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", folder, socket);
    char *slash = strrchr(path, '/');
    *slash = '\0';
    _cleanup_close_ int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return dir < 0 ? -errno : fd_connect_unix(dir, slash + 1, uid, pid, ret_fd);
}

static void dial(struct agent *agent) {
    _cleanup_close_ int fd = -1;
    int r = agent_connect(agent->folder, agent->socket, agent->uid, agent->pid, &fd);
    if (r == -EPERM)
        set_state(agent, AGENT_CONNECTING, "somebody else than the VM's own VMM listens at its channel");
    if (r < 0)
        return;
    agent->fd = fd_steal(&fd);
    if (attach(agent) < 0 || agent->vsock_port == 0)
        return;
    char line[32];
    int n = snprintf(line, sizeof line, "CONNECT %u\n", agent->vsock_port);
    if (send(agent->fd, line, (size_t)n, MSG_NOSIGNAL) != n)
        disconnect(agent, "has not answered yet");
}

static void on_health(void *userdata, json_t *ok, const struct err *err) {
    struct agent *agent = userdata;
    if (!ok)
        return;
    json_decref(agent->health);
    agent->health = json_incref(ok);
}

static void ask_health(struct agent *agent, int64_t now_ms) {
    static const struct agent_handler handler = {.done = on_health};
    if (agent->health_job || now_ms - agent->asked_at_ms < agent->interval_ms)
        return;
    agent->asked_at_ms = now_ms;
    agent_begin(agent, json_pack("{s:s}", "op", "health"), agent->interval_ms * SILENT_INTERVALS, &handler, agent,
                &agent->health_job, NULL);
}

static void look_after_ready(struct agent *agent, int64_t now_ms) {
    /* Asked and not heard of since: anything that it says counts. */
    if (agent->health_job && agent->heard_at_ms < agent->asked_at_ms &&
        now_ms - agent->asked_at_ms >= (int64_t)agent->interval_ms * SILENT_INTERVALS) {
        disconnect(agent, "it does not answer any more");
        return;
    }
    ask_health(agent, now_ms);
}

static void tick(struct agent *agent) {
    int64_t now_ms = time_monotonic_ms();
    if (agent->partial_at_ms > 0 && now_ms - agent->partial_at_ms >= AGENT_STALL_MS) {
        agent->partial_at_ms = 0;
        agent_decoder_give_up(&agent->in);
        take_frames(agent);
    }
    if (!agent->is_freed)
        job_timeouts(agent, now_ms);
    if (agent->is_freed)
        return;
    if (agent->fd < 0 && !agent->is_given)
        dial(agent);
    if (agent->fd >= 0 && agent->state != AGENT_READY)
        greet(agent, now_ms);
    else if (agent->fd >= 0)
        look_after_ready(agent, now_ms);
    watch(agent);
}

static void on_tick(void *userdata) {
    struct agent *agent = userdata;
    agent->in_use++;
    tick(agent);
    if (!agent->is_freed)
        arm(agent);
    agent->in_use--;
    release(agent);
}

/* ---- for the owner ---- */

int agent_new(const struct agent_params *params, struct agent **ret_agent, struct err *err) {
    struct agent *agent = calloc(1, sizeof *agent);
    if (!agent) {
        if (params->fd >= 0)
            close(params->fd);
        return err_sys(err, ENOMEM, "agent.start", "watch the guest's agent");
    }
    *agent = (struct agent){.loop = params->loop,
                            .vsock_port = params->vsock_port,
                            .uid = params->uid,
                            .pid = params->pid,
                            .interval_ms = params->interval_ms ? params->interval_ms : INTERVAL_DEFAULT_MS,
                            .changed = params->changed,
                            .userdata = params->userdata,
                            .fd = params->fd,
                            .is_given = params->fd >= 0 && !params->folder,
                            .out = {.max = OUT_MAX},
                            .started_ms = -1,
                            .connecting_since_ms = time_monotonic_ms(),
                            .words = "has not answered yet"};
    bool fits = agent->is_given || (str_copy(agent->folder, sizeof agent->folder, params->folder) &&
                                    str_copy(agent->socket, sizeof agent->socket, params->socket));
    int r = fits ? 0 : -ENAMETOOLONG;
    if (r == 0 && agent->fd >= 0)
        r = attach(agent);
    if (r == 0)
        r = loop_timer_new(agent->loop, 0, on_tick, agent, &agent->tick);
    if (r < 0) {
        agent_free(agent);
        return err_sys(err, -r, "agent.start", "watch the guest's agent");
    }
    *ret_agent = agent;
    return 0;
}

int agent_connection(const struct agent *agent) {
    return agent->fd < 0 || agent->vsock_port ? -1 : fcntl(agent->fd, F_DUPFD_CLOEXEC, 3);
}

void agent_free(struct agent *agent) {
    if (!agent)
        return;
    agent->in_use++;
    agent->is_freed = true;
    agent->changed = NULL;
    end_jobs(agent, "the VM is not looked after any more");
    agent->in_use--;
    release(agent);
}

int agent_begin(struct agent *agent, json_t *request, int timeout_ms, const struct agent_handler *handler,
                void *userdata, struct agent_job **ret_job, struct err *err) {
    int r = 0;
    if (agent->state != AGENT_READY || agent->is_freed)
        r = err_set(err, EAGAIN, "agent.not-ready", "the agent in the guest %s", agent->words);
    else if (agent->job_count >= JOBS_MAX)
        r = err_set(err, EBUSY, "agent.busy", "the agent in the guest has %d operations under way already", JOBS_MAX);
    struct agent_job *job = r == 0 ? calloc(1, sizeof *job) : NULL;
    if (!job) {
        json_decref(request);
        return r < 0 ? r : err_sys(err, ENOMEM, "agent.failed", "ask the agent in the guest");
    }
    if (++agent->last_id == 0)
        agent->last_id = 1;
    *job = (struct agent_job){.agent = agent,
                              .id = agent->last_id,
                              .handler = *handler,
                              .userdata = userdata,
                              .deadline_ms = timeout_ms ? time_monotonic_ms() + timeout_ms + TIMEOUT_SLACK_MS : 0,
                              .out_window = {0, AGENT_WINDOW, AGENT_WINDOW},
                              .in_window = AGENT_WINDOW};
    if (timeout_ms > 0)
        json_object_set_new(request, "timeout_ms", json_integer(timeout_ms));
    r = agent_outbox_json(&agent->out, agent->session, job->id, request);
    if (r < 0) {
        free(job);
        return err_sys(err, -r, "agent.busy", "send a request to the agent in the guest");
    }
    job->next = agent->jobs;
    agent->jobs = job;
    agent->job_count++;
    watch(agent);
    arm(agent);
    *ret_job = job;
    return 0;
}

size_t agent_job_window(const struct agent_job *job) {
    return job->in_window;
}

int agent_job_write(struct agent_job *job, const void *data, size_t len) {
    struct agent *agent = job->agent;
    if (len > job->in_window)
        return -EAGAIN;
    const uint8_t *at = data;
    size_t left = len;
    int r = 0;
    do {
        size_t n = left < AGENT_DATA_MAX ? left : AGENT_DATA_MAX;
        struct agent_frame frame = {
            .kind = AGENT_FRAME_DATA, .session = agent->session, .id = job->id, .payload = at, .len = n};
        r = agent_outbox_frame(&agent->out, &frame);
        if (r < 0)
            break;
        job->in_window -= n;
        left -= n;
        at = n > 0 ? at + n : at;
    } while (left > 0);
    watch(agent);
    return r;
}

void agent_job_credit(struct agent_job *job, enum agent_stream stream, uint32_t bytes) {
    struct agent *agent = job->agent;
    size_t *window = &job->out_window[stream];
    if (stream == AGENT_STDIN || bytes == 0 || *window + bytes > AGENT_WINDOW)
        return;
    *window += bytes;
    agent_outbox_credit(&agent->out, agent->session, job->id, stream, bytes);
    watch(agent);
}

void agent_job_signal(struct agent_job *job, int signal_number) {
    tell_guest(job->agent, job->id, json_pack("{s:i}", "signal", signal_number));
    watch(job->agent);
}

void agent_job_resize(struct agent_job *job, int rows, int columns) {
    tell_guest(job->agent, job->id, json_pack("{s:[i,i]}", "resize", rows, columns));
    watch(job->agent);
}

void agent_job_cancel(struct agent_job *job) {
    if (!job)
        return;
    job_drop(job);
    job_unlink(job);
    free(job);
}
