/* The WebSocket relay: joins a browser's WebSocket with one in a VM, and when that ends, for whatever reason, tells
 * the browser a code and a sentence. It knows no session, no VM and no HTTP server. Its threads do all the work; every
 * function here returns at once but relay_shutdown(), and may be called from any thread, callbacks included.
 *
 * The life of a connection:
 *   1. relay_dial()   upgrades a TCP socket to the VM; `dialed` is called once, with success or with what to tell
 *   2.                the HTTP server answers the browser 101, with the subprotocol that `dialed` named
 *   3. relay_join()   the browser's socket; from here frames are relayed both ways
 *   4. `ended`        is called once, when both sockets are closed
 * Where 1 fails, or there is no VM to dial: answer 101 with the first subprotocol that the browser offered (else it
 * sees 1006), then relay_refuse() with the code and the sentence.
 *
 * Connection numbers are never used twice: a call about a connection that has ended does nothing.
 * Callbacks run on the relay's threads, hold up all connections of theirs and so must not wait for anything. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RELAY_REASON_MAX 120 /* bytes of UTF-8: INTERFACE.md; a WebSocket would take 123 */

/* Connections above max_connections that can still be refused, so that who comes to a full relay is told. */
#define RELAY_REFUSED_MAX 256

struct relay;

/* A member that is 0 takes the default. */
struct relay_config {
    unsigned threads;         /* one for each CPU, at most 4 */
    size_t buffer_bytes;      /* 1 MiB, at least 16 KiB: what may be in hand of one connection in one direction */
    size_t plenty_bytes;      /* 64 MiB: while more than this is kept of all, each gets no more than 16 KiB in hand */
    unsigned max_connections; /* 10000, refused ones included */
    int handshake_timeout_ms; /* 10000: from relay_dial() to the VM's answer, and from there to relay_join() */
    int ping_after_ms;        /* 25000 of silence in either direction, then the browser is pinged; -1: never */
    int dead_after_ms;        /* 60000: a ping without an answer, or a peer that takes nothing of what waits for it */
    int half_close_ms;        /* 2000: how long the other direction goes on after a FIN without a Close */
    /* 2000: for each step of an end: to take our Close, to answer it, to send FIN; up to 15 times as long where the browser
     * has not taken all that it was sent */
    int linger_ms;
};

/* Why a connection ended, or could not begin. */
enum relay_end {
    RELAY_END_NONE,
    RELAY_END_BROWSER_CLOSED,       /* the browser sent a Close */
    RELAY_END_BROWSER_LOST,         /* reset, FIN without a Close, silent for too long */
    RELAY_END_BROWSER_PROTOCOL,     /* the browser broke the protocol: 1002 */
    RELAY_END_UPSTREAM_CLOSED,      /* the VM's service sent a Close */
    RELAY_END_UPSTREAM_LOST,        /* reset, FIN without a Close, takes nothing any more: 1011 */
    RELAY_END_UPSTREAM_PROTOCOL,    /* the VM's service broke the protocol: 1014 */
    RELAY_END_UPSTREAM_UNREACHABLE, /* no TCP connection to the VM: 1014 */
    RELAY_END_UPSTREAM_REFUSED,     /* a connection, but no WebSocket: 1014 */
    RELAY_END_TOLD,                 /* relay_close() and its like */
};

const char *relay_end_name(enum relay_end end);

/* What a browser is told. A code that must not be on the wire becomes 1011; a reason is made valid UTF-8 and cut at
 * RELAY_REASON_MAX. Code 0 is a Close without a code and reason (the browser's page then sees 1005). */
struct relay_verdict {
    uint16_t code;
    char reason[RELAY_REASON_MAX + 1];
};

struct relay_dialed {
    uint64_t conn, tag;
    enum relay_end end;           /* RELAY_END_NONE: success */
    int error;                    /* 0 or -errno: -ECONNREFUSED, -EHOSTUNREACH, -ETIMEDOUT, -EPROTO, -ECANCELED, … */
    const char *protocol;         /* on success: what the VM's service chose; "" where nothing was offered */
    struct relay_verdict verdict; /* on failure: for relay_refuse(), as it is or in better words */
};

struct relay_ended {
    uint64_t conn, tag;
    enum relay_end end;
    uint16_t code; /* that the browser was told, or told us; 0: none */
    uint64_t from_browser_bytes, from_upstream_bytes;
    int64_t duration_ms; /* since relay_join() */
};

/* Any member may be NULL. */
struct relay_callbacks {
    /* Once for every relay_dial() that returned 0. After a failure the connection is gone. */
    void (*dialed)(void *userdata, const struct relay_dialed *dialed);
    /* Before the browser is told of an end that came from the VM's side (RELAY_END_UPSTREAM_…). *inout is what it will
     * be told (of a Close of the VM's: its own words) and may be changed.
     * Return: 0, or for how many ms the browser may be kept waiting for a better verdict, by relay_close(). */
    int (*why)(void *userdata, uint64_t conn, uint64_t tag, enum relay_end end, struct relay_verdict *inout);
    /* Once for every connection that was joined. */
    void (*ended)(void *userdata, const struct relay_ended *ended);
};

/* Starts the threads; they take no signals.
 * Return: 0, -EINVAL for a configuration that cannot be, or -errno. */
int relay_new(const struct relay_config *config, const struct relay_callbacks *callbacks, void *userdata,
              struct relay **ret, struct err *err);

/* Tells every browser the code and the reason, waits until all are gone, at most timeout_ms, ends the threads and
 * frees the relay. Every callback that is owed has come when it returns. Not from a callback, and no other call may
 * be under way or follow. NULL is allowed. */
void relay_shutdown(struct relay *relay, uint16_t code, const char *reason, int timeout_ms);

struct relay_dial {
    uint64_t tag;          /* the caller's own number for it: callbacks tell it */
    const char *host;      /* Host field; "192.168.0.2:6080" */
    const char *path;      /* "/websockify" */
    const char *protocols; /* the browser's Sec-WebSocket-Protocol, or NULL */
    const char *origin;    /* NULL: none is sent */
};

/* Upgrades a TCP socket. The socket was made by the caller, who knows the network namespace: non-blocking, connect()
 * called, finished or still in progress. On success it belongs to the relay, on failure to the caller.
 * Return: 0, -EINVAL (a host, path, origin or subprotocol that cannot be sent), -ENOBUFS at max_connections,
 * -ESHUTDOWN, -ENOMEM. `dialed` may be called before this returns. */
int relay_dial(struct relay *relay, int fd, const struct relay_dial *dial, uint64_t *ret_conn, struct err *err);

/* Gives a dialed connection its browser: a socket on which 101 has been sent. Nobody else may read from it, and no
 * other epoll may watch it.
 * tag    as in relay_dial()
 * early  bytes that were read behind the request, at most buffer_bytes; they are copied
 * If the VM was lost meanwhile, or the connection given up, the browser is told so; `ended` follows in any case. On
 * success the socket belongs to the relay.
 * Return: 0, -EINVAL, -E2BIG (early), -ENOMEM. */
int relay_join(struct relay *relay, uint64_t conn, uint64_t tag, int client_fd, const void *early, size_t early_len);

/* Tells a browser on which 101 has been sent why there will be no connection, and sees it off. As relay_join().
 * Return: also -ENOBUFS at RELAY_REFUSED_MAX above max_connections, -ESHUTDOWN. */
int relay_refuse(struct relay *relay, int client_fd, const void *early, size_t early_len, uint16_t code,
                 const char *reason);

/* Ends a connection: the browser gets the code and the reason behind what it is being sent, the VM a Close 1001.
 * A connection that is still being dialed fails with this verdict; one that was dialed and not yet joined tells it
 * to the browser when it is. Return: 0 or -ENOMEM. */
int relay_close(struct relay *relay, uint64_t conn, uint16_t code, const char *reason);

/* The browser of a dialed connection went away before relay_join(), which will not come. Return: 0 or -ENOMEM. */
int relay_cancel(struct relay *relay, uint64_t conn);

/* Connections that are there, refused ones and those being dialed included. */
unsigned relay_count(const struct relay *relay);

/* Bytes that all connections keep because they could not be sent on at once. */
size_t relay_buffered_bytes(const struct relay *relay);
