/* The HTTP server, spoken to over raw sockets, for tests. Everything happens in this one thread: pump() turns the server's
 * loop while the clients' sockets are looked at. */
#pragma once

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/time.h"
#include "cmocka_all.h"
#include "http/server.h"
#include "http/websocket.h"

#define ENOUGH_MS 5000 /* for what must happen */
#define LATE_MS 2000   /* what a busy machine may add to a deadline */

/* ---- the server under test ---- */

static struct {
    sd_event *loop;
    struct http_server *server;
    char dir[64];
    char socket[100];
    struct http_request *later; /* deferred by /later or /stream */
    int gone, handled;
    int upgraded_fd, upgrades;
    char early[256];
    size_t early_len;
} t;

static const struct http_limits quick = {
    .header_bytes = 8192,
    .body_bytes = 4096,
    .stream_bytes = 64 * 1024,
    .header_deadline_ms = 200,
    .body_deadline_ms = 200,
    .idle_ms = 400,
    .write_stall_ms = 300,
    .connections = 20,
    .connections_per_ip = 20,
    .always_path = "/health",
};

static inline void on_gone(struct http_request *req, void *userdata) {
    assert_ptr_equal(req, t.later);
    t.later = NULL;
    t.gone++;
}

static inline void on_upgraded(void *userdata, int fd, const void *early, size_t early_len) {
    t.upgrades++;
    t.upgraded_fd = fd;
    t.early_len = early_len < sizeof t.early ? early_len : sizeof t.early;
    if (t.early_len > 0)
        memcpy(t.early, early, t.early_len);
}

static inline void echo(struct http_request *req) {
    struct http_response r = {.content_type = "text/plain"};
    r.body = http_request_body(req, &r.len);
    assert_int_equal(http_respond(req, 200, &r), 0);
}

static inline void big(struct http_request *req) {
    struct http_response r = {.len = 8 * 1024 * 1024};
    _cleanup_free_ char *body = malloc(r.len);
    memset(body, 'x', r.len);
    r.body = body;
    assert_int_equal(http_respond(req, 200, &r), 0);
}

static inline void websocket(struct http_request *req) {
    struct http_websocket ws;
    struct err err;
    if (http_websocket_check(req, &ws, &err) < 0)
        http_websocket_refuse(req, &err);
    else
        assert_int_equal(http_websocket_upgrade(req, &ws,
                                                ws.protocols && strstr(ws.protocols, "binary") ? "binary" : NULL,
                                                on_upgraded, NULL),
                         0);
}

static inline void bad_header(struct http_request *req) {
    const struct http_header h = {"X-Bad", "a\r\nSet-Cookie: evil=1"};
    assert_int_equal(http_respond(req, 200, &(struct http_response){.headers = &h, .n_headers = 1}), -EINVAL);
}

static inline void who(struct http_request *req) {
    char text[200];
    const struct http_peer *p = http_request_peer(req);
    snprintf(text, sizeof text, "local=%d uid=%d pid=%d ip=%s", p->local, (int)p->uid, (int)p->pid, p->ip);
    http_respond(req, 200, &(struct http_response){.body = text, .len = strlen(text)});
}

static inline void seen(struct http_request *req) {
    char text[400], query[64] = "-", cookie[64] = "-";
    const char *odd = http_request_header(req, "x-odd");
    http_request_query(req, "q", query, sizeof query);
    http_request_cookie(req, "mc_session", cookie, sizeof cookie);
    snprintf(text, sizeof text, "method=%s odd=[%s] q=[%s] cookie=[%s]", http_request_method(req), odd ? odd : "",
             query, cookie);
    http_respond(req, 200, &(struct http_response){.content_type = "text/plain", .body = text, .len = strlen(text)});
}

static inline void handler(struct http_request *req, void *userdata) {
    const char *path = http_request_target(req);
    t.handled++;
    if (strcmp(path, "/health") == 0)
        http_respond(req, 200, &(struct http_response){.content_type = "text/plain", .body = "ok", .len = 2});
    else if (strcmp(path, "/echo") == 0)
        echo(req);
    else if (strcmp(path, "/big") == 0)
        big(req);
    else if (strcmp(path, "/ws") == 0)
        websocket(req);
    else if (strcmp(path, "/bad-header") == 0)
        bad_header(req);
    else if (strcmp(path, "/who") == 0)
        who(req);
    else if (strncmp(path, "/seen", 5) == 0)
        seen(req);
    else if (strcmp(path, "/none") == 0)
        http_respond(req, 204, NULL);
    else if (strcmp(path, "/forget") == 0)
        return;
    else if (strcmp(path, "/later") == 0 || strcmp(path, "/stream") == 0) {
        assert_null(t.later);
        t.later = req;
        http_request_defer(req, on_gone, NULL);
        if (strcmp(path, "/stream") == 0)
            assert_int_equal(http_stream_begin(req, 200, &(struct http_response){.content_type = "text/plain"}), 0);
    } else
        http_problem(req, 404, "api.not-found", NULL, path, "look elsewhere");
}

static inline void start(const struct http_limits *limits) {
    struct err err = {0};
    strcpy(t.dir, "/tmp/mc-http-XXXXXX");
    assert_non_null(mkdtemp(t.dir));
    snprintf(t.socket, sizeof t.socket, "%s/api.sock", t.dir);
    t.later = NULL;
    t.gone = t.handled = t.upgrades = 0;
    t.upgraded_fd = -1;
    assert_true(sd_event_new(&t.loop) >= 0);
    assert_int_equal(http_server_new(t.loop, limits, handler, NULL, &t.server, &err), 0);
    assert_int_equal(http_server_listen_tcp(t.server, "127.0.0.1:0", &err), 0);
    assert_int_equal(http_server_listen_unix(t.server, t.socket, 0660, (gid_t)-1, &err), 0);
}

static inline void stop(void) {
    http_server_free(t.server);
    t.server = NULL;
    sd_event_unref(t.loop);
    fd_close(&t.upgraded_fd);
    assert_int_equal(access(t.socket, F_OK), -1);
    dir_remove(t.dir);
}

static inline int setup(void **state) {
    start(&quick);
    return 0;
}

static inline int teardown(void **state) {
    stop();
    return 0;
}

static inline void pump(int ms) {
    int64_t end = time_monotonic_ms() + ms;
    do
        assert_true(sd_event_run(t.loop, 5000) >= 0);
    while (time_monotonic_ms() < end);
}

static inline struct http_server_stats stats(void) {
    struct http_server_stats s;
    http_server_stats(t.server, &s);
    return s;
}

/* ---- a client ---- */

struct client {
    int fd;
    char *data;
    size_t len, cap;
    bool eof, reset; /* reset: the end was not a clean one */
};

static inline struct client dial(void) {
    struct client c = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons(http_server_port(t.server));
    assert_int_equal(connect(c.fd, (struct sockaddr *)&a, sizeof a), 0);
    return c;
}

static inline struct client dial_unix(const char *path) {
    struct client c = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    assert_int_equal(connect(c.fd, (struct sockaddr *)&a, sizeof a), 0);
    return c;
}

static inline void hang_up(struct client *c) {
    fd_close(&c->fd);
    free(c->data);
    *c = (struct client){.fd = -1};
}

static inline void say_bytes(struct client *c, const char *data, size_t len) {
    while (len > 0) {
        ssize_t n = send(c->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) {
            c->reset = true;
            return; /* closed by the server: the test will see what it said */
        }
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        }
        if (len > 0)
            pump(0);
    }
}

static inline void say(struct client *c, const char *text) {
    say_bytes(c, text, strlen(text));
}

static inline void take(struct client *c) {
    char buf[65536];
    for (ssize_t n; (n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT)) != -1 || errno != EAGAIN;) {
        if (n <= 0) {
            c->eof = true;
            c->reset |= n < 0;
            return;
        }
        if (c->len + (size_t)n + 1 > c->cap) {
            c->cap = (c->len + (size_t)n + 1) * 2;
            c->data = realloc(c->data, c->cap);
        }
        memcpy(c->data + c->len, buf, (size_t)n);
        c->len += (size_t)n;
        c->data[c->len] = '\0';
    }
}

static inline bool hears(struct client *c, const char *text) {
    for (int64_t end = time_monotonic_ms() + ENOUGH_MS; time_monotonic_ms() < end;) {
        take(c);
        if (c->data && strstr(c->data, text))
            return true;
        if (c->eof)
            return false;
        pump(0);
    }
    return false;
}

static inline bool hears_end(struct client *c) {
    for (int64_t end = time_monotonic_ms() + ENOUGH_MS; !c->eof && time_monotonic_ms() < end;) {
        take(c);
        if (!c->eof)
            pump(0);
    }
    return c->eof;
}

static inline int count(const struct client *c, const char *text) {
    int n = 0;
    for (const char *p = c->data; p && (p = strstr(p, text)); p += strlen(text))
        n++;
    return n;
}

static inline int status_of(const struct client *c) {
    int status = 0;
    return c->data && sscanf(c->data, "HTTP/1.1 %d ", &status) == 1 ? status : -1;
}

static inline void until(const int *value, int wanted) {
    for (int64_t end = time_monotonic_ms() + ENOUGH_MS; *value < wanted && time_monotonic_ms() < end;)
        pump(0);
    assert_int_equal(*value, wanted);
}

/* Sends one request that ends its connection and returns its status. */
static inline int ask_bytes(const char *request, size_t len, const char *code) {
    struct client c = dial();
    say_bytes(&c, request, len);
    assert_true(hears_end(&c));
    int status = status_of(&c);
    if (code && (!c.data || !strstr(c.data, code)))
        fail_msg("%s is not in: %s", code, c.data ? c.data : "nothing");
    if (code)
        assert_non_null(strstr(c.data, "application/problem+json"));
    hang_up(&c);
    return status;
}

static inline int ask(const char *request, const char *code) {
    return ask_bytes(request, strlen(request), code);
}

static inline int open_fds(void) {
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"
#define GET_CLOSE(path) "GET " path " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

#define SERVER_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
