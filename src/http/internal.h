/* What the files of the server share among themselves; nobody else includes it. server.h tells how they work together.
 * One connection has at most one request at a time; libmicrohttpd tells when either begins and ends, and only then are
 * they made and freed. */
#pragma once

#include <microhttpd.h>

#include "http/remote.h"
#include "http/server.h"
#include "http/strict.h"

#define SPARE_CONNECTIONS 32 /* above the limit, to answer 503 and always_path */
#define SPARE_PER_REMOTE 8
#define SPARE_HEADER_DEADLINE_MS 2000
#define ACCEPT_BATCH 16
#define ACCEPT_PAUSE_MS 100
#define LINGER_MAX 64
#define LINGER_MS 2000
#define LINGER_BYTES (1024 * 1024)
#define RESPONSE_BLOCK_BYTES (16 * 1024)
/* What the kernel may hold of an answer besides what the client's window takes: else it grows to megabytes, and a slow
 * client looks like one that has stopped. Source: TCP_NOTSENT_LOWAT, tcp(7). */
#define UNSENT_BYTES (128 * 1024)

/* What a connection is waiting for; since_ms says since when. */
enum conn_phase {
    PHASE_FIRST_HEAD, /* accepted, its first head is not complete */
    PHASE_IDLE,       /* answered; the next request line is not complete */
    PHASE_HEAD,       /* a later request's line is there, its head is not complete */
    PHASE_BODY,
    PHASE_OWNER,   /* us: no deadline of the client's */
    PHASE_SENDING, /* the client takes the answer */
};

struct http_conn {
    struct http_server *server;
    struct http_conn *prev, *next;
    int fd; /* libmicrohttpd's; never closed here */
    struct http_peer peer;
    struct http_remote *remote; /* NULL when local */
    struct http_request *req;
    enum conn_phase phase;
    int64_t since_ms;
    bool spare;    /* was above a limit when it came */
    bool refused;  /* our last words were written past libmicrohttpd */
    bool upgraded; /* the socket lives on with somebody else */
    bool shut;     /* shutdown(2) was called: libmicrohttpd will close it */
};

struct http_request {
    struct http_conn *conn;
    struct MHD_Connection *mhd;

    const char *raw_target; /* where it lies in libmicrohttpd's buffer: only for its address */
    char *target;
    char *arena; /* method, names and values, copied */
    size_t arena_size;
    const char *method;
    bool http11;
    struct http_field *fields;
    size_t n_fields;
    char *body;
    size_t body_len, body_cap;

    bool head_seen, dispatched;
    bool suspended;
    bool doomed;            /* the connection is to be closed, not answered */
    sd_event_source *watch; /* of the socket while suspended */

    bool held; /* the handler's side owes an answer and will be told when the client goes */
    http_gone_fn *gone;
    void *gone_userdata;

    struct MHD_Response *response; /* made, not yet given to libmicrohttpd */
    unsigned status;
    bool answered;
    bool streaming, ended;
    char *out; /* [out_at, out_len) is to be sent */
    size_t out_at, out_len, out_cap;

    http_upgrade_fn *upgrade;
    void *upgrade_userdata;
};

struct http_listener {
    struct http_server *server;
    struct http_listener *next;
    int fd;
    sd_event_source *io;
    bool local;
    uint16_t port;
    char path[108]; /* of a unix socket, with the identity of the file that we made */
    dev_t dev;
    ino_t ino;
};

struct http_linger {
    struct http_server *server;
    struct http_linger *prev, *next;
    int fd;
    sd_event_source *io;
    int64_t deadline_ms;
    size_t bytes;
};

struct http_server {
    sd_event *loop;
    struct http_limits limits;
    http_handler_fn *handler;
    void *userdata;
    struct MHD_Daemon *mhd;
    sd_event_source *epoll_io, *timer, *kick, *sweep;
    uint64_t progress, progress_seen; /* counts callbacks; see arm() */
    unsigned fruitless;
    struct http_listener *listeners;
    int64_t accept_paused_until_ms; /* 0: not paused */
    struct http_conn *conns;
    struct http_conn *incoming; /* being given to libmicrohttpd right now */
    struct http_linger *lingers;
    struct http_remotes *remotes;
    struct http_server_stats stats;
};

/* server.c */
void server_kick(struct http_server *server);        /* runs libmicrohttpd soon */
void server_sweep_start(struct http_server *server); /* deadlines are looked at while there is anything to look at */

/* listen.c */
void listeners_update(struct http_server *server); /* accepts or not, by the counts */
void listeners_close(struct http_server *server);
void conn_set_phase(struct http_conn *conn, enum conn_phase phase);
void http_conn_free(struct http_conn *conn);
bool conn_is_over_limit(const struct http_conn *conn);

/* request.c: libmicrohttpd's callbacks */
void *request_on_uri(void *cls, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result request_on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **ctx);
void request_on_completed(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_RequestTerminationCode why);

bool request_suspend(struct http_request *req); /* false: it could not be watched and must be dropped */
void request_resume(struct http_request *req);
void request_drop(struct http_request *req);      /* closes its connection */
void request_tell_gone(struct http_request *req); /* calls gone, once, if an answer is owed */

/* Writes a problem document on the socket itself and marks the connection. Only while libmicrohttpd has nothing to
 * write, that is before the request was dispatched. */
void http_conn_refuse(struct http_conn *conn, bool head_only, int status, const char *code, const char *detail,
                      unsigned retry_after_s);

/* linger.c */
void linger_take(struct http_server *server, int fd); /* keeps a copy of fd until the client has closed its side */
void linger_sweep(struct http_server *server, int64_t now_ms);
void linger_free_all(struct http_server *server);
