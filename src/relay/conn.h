/* One relayed connection: two sides, what is being tried, and why it ended. Everything here runs on the thread that
 * the connection belongs to. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ws_accept.h"
#include "relay/handshake.h"
#include "relay/relay.h"
#include "relay/side.h"
#include "relay/timers.h"

struct thread;

enum conn_state {
    CONN_DIALING,  /* the handshake with the VM */
    CONN_DIALED,   /* done; waits for the browser */
    CONN_RELAYING, /* both sides, or what is left of them while it ends */
    CONN_OVER,     /* may be freed */
};

/* What is needed only until the VM has answered. */
struct dialing {
    bool connected;
    char accept[WS_ACCEPT_SIZE];
    char protocols[HANDSHAKE_PROTOCOLS_MAX + 1]; /* as offered */
    size_t request_len;
    char request[HANDSHAKE_REQUEST_MAX];
};

struct conn {
    struct thread *thread;
    uint64_t id, tag;
    struct conn *next_in_bucket, *next_ready;
    bool ready;  /* is in the thread's ready list */
    bool joined; /* `ended` is owed */
    enum conn_state state;
    enum relay_end end;
    uint16_t code; /* what the browser was told, or told us */
    struct timer timer;
    struct side browser, upstream;
    struct dialing *dialing;
    struct relay_verdict *verdict; /* to be told to the browser when it joins, or at verdict_ms */
    struct side *first_eof;        /* the side that sent FIN without a Close, while the other goes on until eof_ms */
    int64_t verdict_ms, eof_ms;
    int64_t wait_ms; /* CONN_DIALING, CONN_DIALED: how long */
    int64_t start_ms;
    int64_t ping_ms; /* when the ping was sent that nothing has come after, 0: none */
};

/* Return: NULL when there is no memory. Its memory is all that is freed by conn_free(); its sides must be dropped. */
struct conn *conn_new(struct thread *thread, uint64_t id, uint64_t tag);
void conn_free(struct conn *c);

/* Prepares the request, on the thread of the caller of relay_dial(). */
int conn_prepare_dial(struct conn *c, const struct relay_dial *dial, struct err *err);

/* What others asked for; conn_run() must follow each. They own fd. */
void conn_dial(struct conn *c, int fd);
void conn_join(struct conn *c, int fd, const void *early, size_t early_len);
void conn_refuse(struct conn *c, int fd, const void *early, size_t early_len, const struct relay_verdict *verdict);
void conn_tell(struct conn *c, const struct relay_verdict *verdict);
void conn_cancel(struct conn *c);

/* Does what can be done now, without waiting. Return: whether there is more to do that must wait for its turn. */
bool conn_run(struct conn *c);

/* When conn_run() must be called at the latest; INT64_MAX: never. */
int64_t conn_deadline_ms(const struct conn *c);

/* Calls `ended`, where there is such. */
void conn_tell_ended(const struct relay *relay, const struct relay_ended *ended);

/* Ends it at once, with the callbacks that are owed. */
void conn_abort(struct conn *c);

/* dial.c: the part of conn_run() while CONN_DIALING, and its failure. */
void dial_run(struct conn *c);
void dial_fail(struct conn *c, enum relay_end end, int error, const struct relay_verdict *verdict);

/* A verdict that may go out on the wire. */
void verdict_set(struct relay_verdict *v, uint16_t code, const char *reason);
