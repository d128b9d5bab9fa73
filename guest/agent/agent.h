/* The guest agent: answers the host over a channel that needs no network (virtio-serial under QEMU, vsock under
 * Firecracker). The protocol is in src/agent/frame.h.
 *
 * One thread, one poll(2) loop. What is asked runs as a job: most are answered at once, others hold a child, a socket
 * or a file. Nothing that the host or a program does can make it grow: jobs, what waits to be sent and what waits to be
 * read are bounded, and while the channel is full neither requests nor programs' output are read. */
#pragma once

#include <jansson.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/frame.h"
#include "agent/outbox.h"
#include "base/err.h"
#include "base/str.h"

#define AGENT_JOBS_MAX 16
#define AGENT_TIMEOUT_MS 300000 /* the longest that an operation may ask for, but for exec, which has no limit */
#define AGENT_CAPTURE_MAX ((size_t)64 * 1024)

struct job;

struct agent {
    int fd; /* the channel; -1: there is none now */
    struct agent_decoder in;
    struct agent_outbox out;
    uint32_t session;      /* 0: not greeted */
    int64_t partial_at_ms; /* since when the rest of a frame is waited for; 0: it is not */
    int64_t started_ms;    /* monotonic: since the kernel's start */
    struct job *jobs;
    unsigned job_count;
};

struct job_stream {
    int fd;        /* -1: at its end */
    size_t window; /* bytes that the host still takes */
};

/* A request that is being answered. */
struct job {
    struct job *next;
    struct agent *agent;
    uint32_t id;
    bool is_over; /* answered, or given up: freed at the end of the turn */
    int64_t deadline_ms;

    pid_t pid; /* 0: no child, or it was reaped */
    bool exited;
    int wait_status;
    int64_t quiet_at_ms;      /* the child is gone and its output rests since then; 0: no */
    struct job_stream out[2]; /* what goes out as AGENT_STDOUT and AGENT_STDERR */
    size_t out_left;          /* bytes of AGENT_STDOUT that are given out at most; 0: no limit */
    bool is_captured;         /* standard output goes into capture instead */
    struct strbuf capture;

    int in_fd; /* what gets AGENT_STDIN; -1: nothing is taken any more */
    bool in_ended;
    size_t in_left;   /* bytes that are taken at most; 0: no limit */
    struct strbuf in; /* what waits for it */
    size_t in_at;
    int pty_fd; /* for its size; -1 */

    int wait_fd; /* a socket of a probe; -1 */
    short wait_events;
    void (*on_ready)(struct job *job, short revents);
    void (*on_done)(struct job *job);     /* the streams are at their end, the child is gone: answers */
    void (*on_deadline)(struct job *job); /* NULL: answers with "timeout" */
    void (*on_free)(struct job *job);
    void *data;
};

/* ---- agent.c: the channel ---- */

void agent_open(struct agent *agent, int fd);   /* takes over fd */
void agent_close(struct agent *agent);          /* ends the session and all its jobs */
int agent_read(struct agent *agent);            /* Return: 0, or -errno when the channel is gone */
bool agent_may_read(const struct agent *agent); /* not while the host does not take what it was sent */
void agent_tick(struct agent *agent, int64_t now_ms);

/* ---- job.c ---- */

struct job *job_new(struct agent *agent, uint32_t id);
struct job *job_find(struct agent *agent, uint32_t id);
void job_answer(struct job *job, json_t *ok); /* takes the reference; the job is over */
void job_fail(struct job *job, const struct err *err);
void job_free_over(struct agent *agent);
void job_free_all(struct agent *agent);
void job_message(struct job *job, json_t *message); /* signal, resize, cancel */
void job_data(struct job *job, const uint8_t *data, size_t len);
void job_credit(struct job *job, enum agent_stream stream, uint32_t bytes);
void job_tick(struct job *job, int64_t now_ms);
bool job_needs_tick(const struct job *job); /* something of it happens by time alone */
void job_reap(struct agent *agent);         /* after SIGCHLD */

/* Fills JOB_POLL entries; those of no interest now have a negative descriptor. job_io() gets them back. */
#define JOB_POLL 4
void job_poll(struct job *job, struct pollfd ret[JOB_POLL]);
void job_io(struct job *job, const struct pollfd polled[JOB_POLL]);

/* ---- child.c: programs ---- */

struct child_spec {
    const char *const *argv;
    json_t *env;      /* object of strings, over the defaults; or NULL */
    const char *cwd;  /* NULL: the user's home */
    const char *user; /* NULL: root, or who the agent is */
    bool has_stdin, has_pty;
    int rows, columns;
    const char *term;
};

/* Starts a program with its streams on the job. Errors: "exec.failed". */
int child_start(struct job *job, const struct child_spec *spec, struct err *err);

/* Ids of a user of the guest. Errors: "exec.failed", there is none. */
int child_user(const char *user, uid_t *ret_uid, gid_t *ret_gid, struct err *err);

/* Starts one whose output is kept in job->capture, and whose end calls on_done. */
int child_capture(struct job *job, const char *const *argv, void (*on_done)(struct job *job), struct err *err);

/* ---- browser.c: a program's $BROWSER ---- */

/* Puts BROWSER into env: addresses that it is called with become {"event":{"url"}} of the job. user as in child_spec.
 * Errors: "exec.failed". */
int browser_prepare(struct job *job, const char *user, json_t *env, struct err *err);
void browser_drain(struct job *job); /* tells what waits, before the job's end is told */
bool browser_is_called(const char *self);
int browser_main(int argc, char **argv); /* Return: the exit status */

/* The agent's program as the desktop's user: gives a page to the Chromium that runs. Return: the exit status. */
#define BROWSER_OPEN "--open-page"
#define BROWSER_NOT_READY 3
int browser_open_main(const char *url);

/* ---- ops.c: what can be asked ---- */

void agent_request(struct agent *agent, uint32_t id, json_t *request);
json_t *agent_operations(void); /* an array of names */

/* Answers at once. Return: an object, or NULL with err set. */
typedef json_t *op_now(struct agent *agent, json_t *request, struct err *err);
/* Begins a job. Return: 0 or -errno. */
typedef int op_begin(struct job *job, json_t *request, struct err *err);

op_now op_health, op_network, op_kernel_log, op_clock_set, op_random_seed, op_net_link, op_net_address, op_net_route;
op_begin op_units, op_unit_log, op_unit_restart, op_ping, op_connect, op_exec, op_file_read, op_file_write;
op_begin op_browser_open, op_identity_set;

/* Reads the members of a request as json_unpack() does, strictly: what is not named in fmt is an error, "bad-request".
 * "op" and "timeout_ms" are passed over. */
int request_unpack(json_t *request, struct err *err, const char *fmt, ...);

/* Text from a file of the kernel or the system as a JSON string: at most max bytes, control bytes escaped but for line
 * ends and tabs. null when it cannot be read. */
json_t *text_of_file(const char *path, size_t max);
json_t *text_json(const char *data, size_t len);

json_t *net_facts_firewall(void);  /* nft.c */
json_t *net_facts_listeners(void); /* listeners.c */
