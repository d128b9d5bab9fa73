/* The server's life, libmicrohttpd inside the loop, and the deadlines. */
#include "http/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/time.h"
#include "http/internal.h"

const struct http_limits http_limits_default = {
    .header_bytes = 16 * 1024,
    .body_bytes = 64 * 1024,
    .stream_bytes = 256 * 1024,
    .header_deadline_ms = 10 * 1000,
    .body_deadline_ms = 30 * 1000,
    .idle_ms = 60 * 1000,
    .write_stall_ms = 30 * 1000,
    .connections = 256,
    .connections_per_ip = 64,
    .requests_per_second = 50,
    .burst = 200,
    .always_path = "/health",
};

/* Never at once: the caller may be inside one of libmicrohttpd's callbacks. */
void server_kick(struct http_server *server) {
    sd_event_source_set_enabled(server->kick, SD_EVENT_ONESHOT);
}

/* After each turn libmicrohttpd says when it wants the next one. It says "at once" for ever about a connection whose
 * buffer is full and whose next line is not complete (an endless chunk extension), so turns that led to no callback are
 * spread out, slowly: some of them read a long head. Input wakes it all the same. */
static void arm(struct http_server *server) {
    MHD_UNSIGNED_LONG_LONG wait_ms;
    sd_event_source_set_enabled(server->timer, SD_EVENT_OFF);
    if (MHD_get_timeout(server->mhd, &wait_ms) != MHD_YES)
        return;
    server->fruitless = server->progress == server->progress_seen ? server->fruitless + 1 : 0;
    server->progress_seen = server->progress;
    if (wait_ms == 0)
        wait_ms = server->fruitless / 64 < 50 ? server->fruitless / 64 : 50;
    if (wait_ms == 0) {
        server_kick(server);
        return;
    }
    sd_event_source_set_time_relative(server->timer, wait_ms * 1000);
    sd_event_source_set_enabled(server->timer, SD_EVENT_ONESHOT);
}

static void run(struct http_server *server) {
    server->stats.runs++;
    MHD_run(server->mhd);
    arm(server);
}

static int on_epoll(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    run(userdata);
    return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
    run(userdata);
    return 0;
}

static int on_kick(sd_event_source *source, void *userdata) {
    run(userdata);
    return 0;
}

/* ---- deadlines ---- */

static int phase_deadline_ms(const struct http_conn *conn) {
    const struct http_limits *l = &conn->server->limits;
    switch (conn->phase) {
    case PHASE_FIRST_HEAD:
        if (conn->spare && l->header_deadline_ms > SPARE_HEADER_DEADLINE_MS)
            return SPARE_HEADER_DEADLINE_MS;
        return l->header_deadline_ms;
    case PHASE_HEAD:
        return l->header_deadline_ms;
    case PHASE_BODY:
        return l->body_deadline_ms;
    case PHASE_IDLE:
        return l->idle_ms;
    case PHASE_SENDING:
        return l->write_stall_ms;
    case PHASE_OWNER:
        return -1;
    }
    return -1;
}

/* libmicrohttpd waits for an edge of its epoll, and an end that came together with the bytes before it makes none: it
 * would keep a half-closed connection until a deadline. */
static bool client_has_ended(const struct http_conn *conn) {
    char byte;
    bool waits = conn->phase != PHASE_OWNER && conn->phase != PHASE_SENDING;
    return waits && recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static void close_soon(struct http_conn *conn) {
    conn->shut = true;
    shutdown(conn->fd, SHUT_RDWR); /* wakes libmicrohttpd, which closes it */
}

static void time_out(struct http_conn *conn) {
    if (conn->phase == PHASE_FIRST_HEAD || conn->phase == PHASE_HEAD)
        http_conn_refuse(conn, false, 408, "http.header-timeout", "the request's head did not arrive in time", 0);
    else if (conn->phase == PHASE_BODY)
        http_conn_refuse(conn, false, 408, "http.body-timeout", "the request's body did not arrive in time", 0);
    if (conn->phase != PHASE_IDLE)
        conn->server->stats.timed_out++;
    close_soon(conn);
}

static int sweep_interval_ms(const struct http_limits *l) {
    int shortest = l->header_deadline_ms;
    const int others[] = {l->body_deadline_ms, l->idle_ms, l->write_stall_ms};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (others[i] < shortest)
            shortest = others[i];
    return shortest / 4 < 20 ? 20 : shortest / 4 > 500 ? 500 : shortest / 4;
}

void server_sweep_start(struct http_server *server) {
    int enabled;
    if (sd_event_source_get_enabled(server->sweep, &enabled) >= 0 && enabled != SD_EVENT_OFF)
        return;
    sd_event_source_set_time_relative(server->sweep, (uint64_t)sweep_interval_ms(&server->limits) * 1000);
    sd_event_source_set_enabled(server->sweep, SD_EVENT_ONESHOT);
}

static void look_at(struct http_conn *conn, int64_t now_ms, bool full) {
    int deadline_ms = phase_deadline_ms(conn);
    /* Those who only keep a connection for later make room for those who wait. */
    if (client_has_ended(conn) || (full && conn->phase == PHASE_IDLE))
        close_soon(conn);
    else if (deadline_ms >= 0 && now_ms - conn->since_ms >= deadline_ms)
        time_out(conn);
}

static int on_sweep(sd_event_source *source, uint64_t usec, void *userdata) {
    struct http_server *server = userdata;
    int64_t now_ms = time_monotonic_ms();
    bool full = server->stats.connections_tcp > server->limits.connections ||
                server->stats.connections_unix > server->limits.connections;
    for (struct http_conn *c = server->conns; c; c = c->next)
        if (!c->shut && !c->upgraded)
            look_at(c, now_ms, full);
    linger_sweep(server, now_ms);
    if (server->accept_paused_until_ms && now_ms >= server->accept_paused_until_ms) {
        server->accept_paused_until_ms = 0;
        listeners_update(server);
    }
    if (server->conns || server->lingers || server->accept_paused_until_ms)
        server_sweep_start(server);
    return 0;
}

/* ---- life ---- */

static void drop_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void drop_log(void *cls, const char *fmt, va_list ap) {
}

/* The path stays as it was sent: target.h decodes, strictly. */
static size_t keep_escapes(void *cls, struct MHD_Connection *mhd, char *text) {
    return strlen(text);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_ConnectionNotificationCode code) {
    struct http_server *server = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *ctx = server->incoming;
        server->incoming = NULL;
    } else if (*ctx) {
        struct http_conn *conn = *ctx;
        char byte;
        if (!conn->upgraded && !conn->shut && (conn->refused || recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0))
            linger_take(server, conn->fd);
        http_conn_free(conn);
        *ctx = NULL;
    }
}

/* Up to 0.9.77 being strict only means a check or two that strict.c does with a better answer; see head_is_plain() in
 * request.c for how later versions differ. */
#if MHD_VERSION > 0x00097700
#define STRICT 1
#else
#define STRICT 0
#endif

/* Up to this many bytes are from the heap, where what was in them stays when the connection has gone: tokens, tickets, codes.
 * Above, they are pages of the connection's own, which go with it. Source: libmicrohttpd, MHD_pool_create(). */
#define HEAP_BYTES_MAX ((size_t)32 * 1024)

/* The head, libmicrohttpd's records of it, and room to read a body and to write an answer's head. */
static size_t connection_bytes(const struct http_limits *l) {
    size_t bytes = l->header_bytes + (size_t)20 * 1024;
    return bytes > HEAP_BYTES_MAX ? bytes : HEAP_BYTES_MAX + 1;
}

static struct MHD_Daemon *start_mhd(struct http_server *server) {
    const struct http_limits *l = &server->limits;
    return MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_ALLOW_UPGRADE, 0, NULL, NULL,
        request_on_access, server, MHD_OPTION_EXTERNAL_LOGGER, drop_log, NULL, MHD_OPTION_URI_LOG_CALLBACK,
        request_on_uri, server, MHD_OPTION_NOTIFY_COMPLETED, request_on_completed, server, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, server, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL, MHD_OPTION_CONNECTION_LIMIT,
        2 * (l->connections + SPARE_CONNECTIONS) + 1, MHD_OPTION_CONNECTION_TIMEOUT, 0U, MHD_OPTION_STRICT_FOR_CLIENT,
        STRICT, MHD_OPTION_CONNECTION_MEMORY_LIMIT, connection_bytes(l), MHD_OPTION_END);
}

static int add_sources(struct http_server *server) {
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(server->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    if (!info)
        return -EIO;
    int r = sd_event_add_io(server->loop, &server->epoll_io, info->epoll_fd, EPOLLIN, on_epoll, server);
    if (r >= 0)
        r = sd_event_add_time_relative(server->loop, &server->timer, CLOCK_MONOTONIC, 0, 1000, on_timer, server);
    if (r >= 0)
        r = sd_event_source_set_enabled(server->timer, SD_EVENT_OFF);
    if (r >= 0)
        r = sd_event_add_time_relative(server->loop, &server->sweep, CLOCK_MONOTONIC, 0, 10 * 1000, on_sweep, server);
    if (r >= 0)
        r = sd_event_source_set_enabled(server->sweep, SD_EVENT_OFF);
    if (r >= 0)
        r = sd_event_add_defer(server->loop, &server->kick, on_kick, server);
    if (r >= 0)
        r = sd_event_source_set_enabled(server->kick, SD_EVENT_OFF);
    return r < 0 ? r : 0;
}

static bool limits_are_sane(const struct http_limits *l) {
    return l->header_bytes >= 1024 && l->stream_bytes > 0 && l->header_deadline_ms > 0 && l->body_deadline_ms > 0 &&
           l->idle_ms > 0 && l->write_stall_ms > 0 && l->connections > 0 && l->connections <= 65536 &&
           l->connections_per_ip > 0;
}

int http_server_new(sd_event *loop, const struct http_limits *limits, http_handler_fn *handler, void *userdata,
                    struct http_server **ret_server, struct err *err) {
    if (!limits_are_sane(limits))
        return err_set(err, EINVAL, "api.bad-limits", "a limit of the HTTP server is zero or out of range");
    __attribute__((cleanup(http_server_freep))) struct http_server *server = calloc(1, sizeof *server);
    if (!server)
        return err_set(err, ENOMEM, "api.no-memory", "no memory for the HTTP server");
    server->loop = sd_event_ref(loop);
    server->limits = *limits;
    server->handler = handler;
    server->userdata = userdata;
    int r = http_remotes_new(limits->connections + SPARE_CONNECTIONS + 512, &server->remotes);
    if (r < 0)
        return err_sys(err, -r, "api.no-memory", "the HTTP server's table of addresses");
    server->mhd = start_mhd(server);
    if (!server->mhd)
        return err_set(err, EIO, "api.start-failed", "libmicrohttpd did not start");
    r = add_sources(server);
    if (r < 0)
        return err_sys(err, -r, "api.start-failed", "the HTTP server's event sources");
    *ret_server = ptr_steal(server);
    return 0;
}

uint16_t http_server_port(const struct http_server *server) {
    uint16_t port = 0;
    for (const struct http_listener *l = server->listeners; l; l = l->next)
        if (!l->local)
            port = l->port; /* the list's last is the first that was made */
    return port;
}

void http_server_stop_accepting(struct http_server *server) {
    listeners_close(server);
}

void http_server_stats(const struct http_server *server, struct http_server_stats *ret_stats) {
    *ret_stats = server->stats;
}

/* libmicrohttpd aborts the process when it is stopped with a suspended connection. */
static void release_requests(struct http_server *server) {
    for (struct http_conn *c = server->conns; c; c = c->next) {
        if (!c->req || c->upgraded)
            continue;
        request_tell_gone(c->req);
        request_drop(c->req);
    }
}

void http_server_free(struct http_server *server) {
    if (!server)
        return;
    listeners_close(server);
    if (server->mhd) {
        release_requests(server);
        sd_event_source_disable_unref(server->epoll_io); /* before its descriptor closes */
        MHD_stop_daemon(server->mhd);
    }
    linger_free_all(server);
    sd_event_source_disable_unref(server->timer);
    sd_event_source_disable_unref(server->kick);
    sd_event_source_disable_unref(server->sweep);
    http_remotes_free(server->remotes);
    sd_event_unref(server->loop);
    free(server);
}

void http_server_freep(struct http_server **server) {
    http_server_free(*server);
}
