/* The host's side of the channel to the agent in one guest (frame.h is the protocol, guest/agent the other end): finds
 * it, greets it, asks it, notices when it falls silent, and begins anew for as long as the VM lives.
 *
 * The guest is hostile: nothing it sends makes this side grow, wait, or spend more than a share of the loop's time, and
 * what it says is only data. Whoever takes a member out of an answer checks its type and escapes its text.
 *
 * Everything of one agent runs on the thread of its loop; agents of different loops know nothing of each other. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "agent/frame.h"
#include "base/err.h"
#include "loop/loop.h"

#define AGENT_WORDS_MAX 240

struct agent;
struct agent_job;

enum agent_state {
    AGENT_CONNECTING,   /* it has not answered yet, or not any more */
    AGENT_READY,        /* greeted, and it answers */
    AGENT_INCOMPATIBLE, /* it answers, but no version of the protocol is common */
};

const char *agent_state_name(enum agent_state state);

/* Called when the state changes, with what there is to say, safe to show. May free the agent. */
typedef void agent_changed_fn(void *userdata, enum agent_state state, const char *words);

struct agent_params {
    struct loop *loop;
    const char *folder;  /* of the VM */
    const char *socket;  /* the name of the channel's unix socket in it */
    uint32_t vsock_port; /* Firecracker's socket wants "CONNECT port" first; 0: QEMU's is the channel itself */
    uint32_t uid;        /* whose the socket's other end must be; another's is not spoken to */
    pid_t pid;           /* and of which process; 0: any of that uid */
    int fd;              /* a connected socket, taken over: instead of a folder (tests), or until it is lost; else -1 */
    int interval_ms;     /* how often it is asked whether it lives; 0: 10000. Silent for three of them, it is lost */
    agent_changed_fn *changed;
    void *userdata;
};

/* Begins at once; it is no error that nobody is there yet. Return: 0 or -ENOMEM and its like. */
int agent_new(const struct agent_params *params, struct agent **ret_agent, struct err *err);

/* Ends every job with "agent.gone". Takes NULL. */
void agent_free(struct agent *agent);

enum agent_state agent_state(const struct agent *agent);

/* A duplicate of its connection, for another agent_new(): whoever connects anew waits until the guest's agent has noticed that
 * somebody has hung up. Not of vsock, which does not outlive its machine. Return: the caller's, or -1. */
int agent_connection(const struct agent *agent);

/* Connects to the channel itself, where that is no vsock, of whom agent_params says. For agent_new(), later. */
int agent_connect(const char *folder, const char *socket, uint32_t uid, pid_t pid, int *ret_fd);

/* What there is to say about the state: "ready: agent 0.1.0, protocol 1", "has not answered yet". */
const char *agent_words(const struct agent *agent);

/* The last answer to "health", NULL before the first; borrowed, valid until the loop goes on. */
json_t *agent_health(const struct agent *agent);

/* The guest's uptime in milliseconds at which its agent started; -1 while that is not known. A guest may lie. */
int64_t agent_started_ms(const struct agent *agent);

/* What a request calls. Any but done may be NULL. */
struct agent_handler {
    /* Bytes of AGENT_STDOUT or AGENT_STDERR; none: its end. The guest may send AGENT_WINDOW bytes a stream, and more
     * when agent_job_credit() says so. */
    void (*data)(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len);
    /* The object of an "event" (borrowed), such as an address that a program gives its $BROWSER. */
    void (*event)(void *userdata, json_t *event);
    /* The guest took so many bytes of standard input more. */
    void (*credit)(void *userdata, uint32_t bytes);
    /* Last, and once: the object of "ok" (borrowed), or NULL and err: "agent.timeout", "agent.gone", "agent.flow", or
     * "guest." with the agent's own code. The job is gone already. */
    void (*done)(void *userdata, json_t *ok, const struct err *err);
};

/* Asks. request is taken. timeout_ms 0: waits for ever (exec). done is never called from in here.
 * Errors: "agent.not-ready" (-EAGAIN, with what is known), "agent.busy" (-EBUSY), -EMSGSIZE, -ENOMEM. */
int agent_begin(struct agent *agent, json_t *request, int timeout_ms, const struct agent_handler *handler,
                void *userdata, struct agent_job **ret_job, struct err *err);

/* Standard input; len 0 is its end. Return: 0; -EAGAIN when the guest has not taken enough yet (nothing was sent). */
int agent_job_write(struct agent_job *job, const void *data, size_t len);

/* How many bytes agent_job_write() takes now. */
size_t agent_job_window(const struct agent_job *job);

/* So many bytes of a stream were used up. */
void agent_job_credit(struct agent_job *job, enum agent_stream stream, uint32_t bytes);

void agent_job_signal(struct agent_job *job, int signal_number);
void agent_job_resize(struct agent_job *job, int rows, int columns);

/* The guest is told to end it; nothing is called any more. Takes NULL. */
void agent_job_cancel(struct agent_job *job);
