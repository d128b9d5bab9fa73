/* The HTTP server, spoken to over raw sockets. Everything happens in this one thread: pump() turns the server's loop
 * while the clients' sockets are looked at. */
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

static void on_gone(struct http_request *req, void *userdata) {
    assert_ptr_equal(req, t.later);
    t.later = NULL;
    t.gone++;
}

static void on_upgraded(void *userdata, int fd, const void *early, size_t early_len) {
    t.upgrades++;
    t.upgraded_fd = fd;
    t.early_len = early_len < sizeof t.early ? early_len : sizeof t.early;
    if (t.early_len > 0)
        memcpy(t.early, early, t.early_len);
}

static void echo(struct http_request *req) {
    struct http_response r = {.content_type = "text/plain"};
    r.body = http_request_body(req, &r.len);
    assert_int_equal(http_respond(req, 200, &r), 0);
}

static void big(struct http_request *req) {
    struct http_response r = {.len = 8 * 1024 * 1024};
    _cleanup_free_ char *body = malloc(r.len);
    memset(body, 'x', r.len);
    r.body = body;
    assert_int_equal(http_respond(req, 200, &r), 0);
}

static void websocket(struct http_request *req) {
    struct http_websocket ws;
    struct err err;
    if (http_websocket_check(req, &ws, &err) < 0)
        http_websocket_refuse(req, &err);
    else
        assert_int_equal(
            http_websocket_upgrade(req, &ws, http_websocket_offers(&ws, "binary") ? "binary" : NULL, on_upgraded, NULL),
            0);
}

static void bad_header(struct http_request *req) {
    const struct http_header h = {"X-Bad", "a\r\nSet-Cookie: evil=1"};
    assert_int_equal(http_respond(req, 200, &(struct http_response){.headers = &h, .n_headers = 1}), -EINVAL);
}

static void who(struct http_request *req) {
    char text[200];
    const struct http_peer *p = http_request_peer(req);
    snprintf(text, sizeof text, "local=%d uid=%d pid=%d ip=%s", p->local, (int)p->uid, (int)p->pid, p->ip);
    http_respond(req, 200, &(struct http_response){.body = text, .len = strlen(text)});
}

static void seen(struct http_request *req) {
    char text[400], query[64] = "-", cookie[64] = "-";
    const char *odd = http_request_header(req, "x-odd");
    http_request_query(req, "q", query, sizeof query);
    http_request_cookie(req, "mc_session", cookie, sizeof cookie);
    snprintf(text, sizeof text, "method=%s odd=[%s] q=[%s] cookie=[%s]", http_request_method(req), odd ? odd : "",
             query, cookie);
    http_respond(req, 200, &(struct http_response){.content_type = "text/plain", .body = text, .len = strlen(text)});
}

static void handler(struct http_request *req, void *userdata) {
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

static void start(const struct http_limits *limits) {
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

static void stop(void) {
    http_server_free(t.server);
    t.server = NULL;
    sd_event_unref(t.loop);
    fd_close(&t.upgraded_fd);
    assert_int_equal(access(t.socket, F_OK), -1);
    dir_remove(t.dir);
}

static int setup(void **state) {
    start(&quick);
    return 0;
}

static int teardown(void **state) {
    stop();
    return 0;
}

static void pump(int ms) {
    int64_t end = time_monotonic_ms() + ms;
    do
        assert_true(sd_event_run(t.loop, 5000) >= 0);
    while (time_monotonic_ms() < end);
}

static struct http_server_stats stats(void) {
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

static struct client dial(void) {
    struct client c = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons(http_server_port(t.server));
    assert_int_equal(connect(c.fd, (struct sockaddr *)&a, sizeof a), 0);
    return c;
}

static struct client dial_unix(const char *path) {
    struct client c = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    assert_int_equal(connect(c.fd, (struct sockaddr *)&a, sizeof a), 0);
    return c;
}

static void hang_up(struct client *c) {
    fd_close(&c->fd);
    free(c->data);
    *c = (struct client){.fd = -1};
}

static void say_bytes(struct client *c, const char *data, size_t len) {
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

static void say(struct client *c, const char *text) {
    say_bytes(c, text, strlen(text));
}

static void take(struct client *c) {
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

static bool hears(struct client *c, const char *text) {
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

static bool hears_end(struct client *c) {
    for (int64_t end = time_monotonic_ms() + ENOUGH_MS; !c->eof && time_monotonic_ms() < end;) {
        take(c);
        if (!c->eof)
            pump(0);
    }
    return c->eof;
}

static int count(const struct client *c, const char *text) {
    int n = 0;
    for (const char *p = c->data; p && (p = strstr(p, text)); p += strlen(text))
        n++;
    return n;
}

static int status_of(const struct client *c) {
    int status = 0;
    return c->data && sscanf(c->data, "HTTP/1.1 %d ", &status) == 1 ? status : -1;
}

static void until(const int *value, int wanted) {
    for (int64_t end = time_monotonic_ms() + ENOUGH_MS; *value < wanted && time_monotonic_ms() < end;)
        pump(0);
    assert_int_equal(*value, wanted);
}

/* Sends one request that ends its connection and returns its status. */
static int ask_bytes(const char *request, size_t len, const char *code) {
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

static int ask(const char *request, const char *code) {
    return ask_bytes(request, strlen(request), code);
}

static int open_fds(void) {
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"
#define GET_CLOSE(path) "GET " path " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

/* ---- answers ---- */

static void answers_and_its_headers(void **state) {
    struct client c = dial();
    say(&c, GET("/health"));
    assert_true(hears(&c, "\r\n\r\nok"));
    assert_int_equal(status_of(&c), 200);
    assert_non_null(strstr(c.data, "X-Content-Type-Options: nosniff\r\n"));
    assert_non_null(strstr(c.data, "Referrer-Policy: no-referrer\r\n"));
    assert_non_null(strstr(c.data, "Cache-Control: no-store\r\n"));
    assert_non_null(strstr(c.data, "Content-Length: 2\r\n"));
    say(&c, GET("/nowhere")); /* on the same connection */
    assert_true(hears(&c, "\"hint\":\"look elsewhere\"}"));
    assert_non_null(strstr(c.data, "{\"type\":\"about:blank\",\"title\":\"Not Found\",\"status\":404,"
                                   "\"detail\":\"/nowhere\",\"code\":\"api.not-found\""));
    assert_int_equal(stats().accepted, 1);
    hang_up(&c);
}

static void head_has_no_body(void **state) {
    struct client c = dial();
    say(&c, "HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n" GET_CLOSE("/none"));
    assert_true(hears_end(&c));
    assert_int_equal(count(&c, "HTTP/1.1 "), 2);
    assert_non_null(strstr(c.data, "Content-Length: 2\r\n"));
    assert_null(strstr(c.data, "\r\n\r\nok"));
    assert_non_null(strstr(c.data, "\r\n\r\nHTTP/1.1 204 ")); /* nothing between them */
    hang_up(&c);
}

static void head_of_a_stream_ends(void **state) {
    struct client c = dial();
    say(&c, "HEAD /stream HTTP/1.1\r\nHost: a\r\n\r\n" GET_CLOSE("/none"));
    assert_true(hears_end(&c));
    assert_int_equal(t.gone, 1); /* the owner is told that nobody listens */
    assert_int_equal(count(&c, "HTTP/1.1 "), 2);
    assert_non_null(strstr(c.data, "\r\n\r\nHTTP/1.1 204 "));
    hang_up(&c);
}

static void bodies(void **state) {
    struct client c = dial();
    say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_true(hears(&c, "\r\n\r\nhello"));
    say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
    assert_true(hears(&c, "\r\n\r\nabcdefg"));
    say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_true(hears(&c, "100 Continue"));
    say(&c, "late");
    assert_true(hears(&c, "\r\n\r\nlate"));
    hang_up(&c);
}

static void pipelining_keeps_the_order(void **state) {
    struct client c = dial();
    say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none" GET(
                "/later") "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nthree");
    assert_true(hears(&c, "\r\n\r\none"));
    for (int i = 0; i < 100 && !t.later; i++)
        pump(1);
    assert_non_null(t.later);
    assert_int_equal(count(&c, "HTTP/1.1 200"), 1); /* the third waits for the second */
    assert_int_equal(http_respond(t.later, 200, &(struct http_response){.body = "two", .len = 3}), 0);
    assert_true(hears_end(&c));
    assert_int_equal(count(&c, "HTTP/1.1 200"), 3);
    assert_true(strstr(c.data, "\r\n\r\none") < strstr(c.data, "\r\n\r\ntwo"));
    assert_true(strstr(c.data, "\r\n\r\ntwo") < strstr(c.data, "\r\n\r\nthree"));
    hang_up(&c);
}

static void accessors(void **state) {
    struct client c = dial();
    say(&c, "BREW /seen?x=1&q=a%20b+c HTTP/1.1\r\nHost: a\r\nX-Odd: \t two words \t\r\n"
            "Cookie: a=b; mc_session=s3cret; c=d\r\n\r\n");
    assert_true(hears(&c, "method=BREW odd=[two words] q=[a b c] cookie=[s3cret]"));
    hang_up(&c);
}

static void peers(void **state) {
    char wanted[100];
    struct client c = dial_unix(t.socket);
    say(&c, GET("/who"));
    snprintf(wanted, sizeof wanted, "local=1 uid=%d pid=%d ip=", (int)getuid(), (int)getpid());
    assert_true(hears(&c, wanted));
    hang_up(&c);
    c = dial();
    say(&c, GET("/who"));
    assert_true(hears(&c, "local=0 uid=-1 pid=0 ip=127.0.0.1"));
    hang_up(&c);
}

static void a_handler_that_forgets_is_500(void **state) {
    assert_int_equal(ask(GET_CLOSE("/forget"), "http.unanswered"), 500);
    assert_int_equal(ask(GET_CLOSE("/bad-header"), "http.bad-answer"), 500);
}

static void options_and_unknown_methods_reach_the_handler(void **state) {
    assert_int_equal(ask("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "api.not-found"), 404);
    assert_int_equal(ask("BREW /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", NULL), 200);
    assert_int_equal(t.handled, 2);
}

/* ---- strictness ---- */

static void smuggling_shapes_are_refused(void **state) {
    static const struct {
        int status;
        const char *code, *request;
    } shapes[] = {
        {400, "http.two-content-lengths",
         "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"},
        {400, "http.two-content-lengths",
         "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"},
        {400, "http.length-and-coding",
         "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
        {501, "http.unknown-transfer-coding",
         "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
        {501, "http.unknown-transfer-coding",
         "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
        {400, "http.two-transfer-codings",
         "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
         "identity\r\n\r\n0\r\n\r\n"},
        {400, "http.coding-in-1.0", "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
        {400, "http.two-hosts", "GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
        {400, "http.no-host", "GET /health HTTP/1.1\r\n\r\n"},
        {400, "http.bad-host", "GET /health HTTP/1.1\r\nHost: a b\r\n\r\n"},
        {400, "http.bad-host", "GET /health HTTP/1.1\r\nHost: a@b\r\n\r\n"},
        {400, "http.bad-field-name", "GET /health HTTP/1.1\r\nHost: a\r\nX Y: 1\r\n\r\n"},
        {400, "http.bad-field-name", "GET /health HTTP/1.1\r\nHost : a\r\n\r\n"},
        {400, "http.bad-field-value",
         "GET /health HTTP/1.1\r\nHost: a\r\nX: a\x01"
         "b\r\n\r\n"},
        {400, "http.bad-field-value", "GET /health HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"},
        {400, "http.bad-head", "GET /health HTTP/1.1\nHost: a\n\n"},
        {400, "http.bad-head", "GET /health HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"},
        {400, "http.bad-head", "GET /health HTTP/1.1\r\nHost: a\r\nX: b\r\n c: d\r\n\r\n"},
        {400, "http.bad-head", "GET  /health HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-target", "GET /health  HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-target", "GET /he alth HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-target", "GET /h\xc3\xa4lth HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET http://a/health HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET /a//b HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET /a/../health HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET /a/%2e%2e/health HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-path", "GET /a%4 HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-query", "GET /health?a=%0a HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.bad-method", "G@T /health HTTP/1.1\r\nHost: a\r\n\r\n"},
        {400, "http.repeated-field", "GET /health HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nAuthorization: y\r\n\r\n"},
        {417, "http.expectation", "GET /health HTTP/1.1\r\nHost: a\r\nExpect: a-miracle\r\n\r\n"},
        {413, "http.body-too-large", "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4097\r\n\r\n"},
        {413, "http.body-too-large",
         "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4097\r\nExpect: 100-continue\r\n\r\n"},
        {505, "http.version", "GET /health HTTP/1.2\r\nHost: a\r\n\r\n"},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (ask(shapes[i].request, shapes[i].code) != shapes[i].status)
            fail_msg("%s: not %d", shapes[i].request, shapes[i].status);
    assert_int_equal(t.handled, 0);
    assert_int_equal(stats().refused, sizeof shapes / sizeof *shapes);
}

/* libmicrohttpd 0.9.75 answers this by itself, with its head twice, and closes. */
static void a_bad_content_length_is_refused(void **state) {
    static const char *const bad[] = {"5, 5", "+5", "-5", "0x5", "5 5", "", "5;"};
    char request[200];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(request, sizeof request, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\nhello", bad[i]);
        assert_int_equal(ask(request, NULL), 400);
    }
    assert_int_equal(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", NULL),
                     413);
    assert_int_equal(t.handled, 0);
}

static void nul_bytes_are_refused(void **state) {
#define WITH_NUL(s) ask_bytes(s, sizeof s - 1, NULL)
    assert_int_equal(WITH_NUL("GET /health HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"), 400);
    assert_int_equal(WITH_NUL("GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n"), 400);
    assert_int_equal(WITH_NUL("GET /health HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n"), 400);
    assert_int_equal(WITH_NUL("GET /health\0x HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    assert_int_equal(WITH_NUL("GET\0X /health HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    /* libmicrohttpd would take this for the end of the head, and the rest for the next request. */
    assert_int_equal(WITH_NUL("POST /echo HTTP/1.1\r\nHost: a\r\n\0\r\nContent-Length: 3\r\n\r\nabc"), 400);
    assert_int_equal(WITH_NUL("POST /echo HTTP/1.1\r\nHost: a\r\n\0X: y\r\nContent-Length: 3\r\n\r\nabc"), 400);
    assert_int_equal(t.handled, 0);
}

static void what_is_behind_a_refused_request_is_not_read(void **state) {
    struct client c = dial();
    say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello" GET("/health"));
    assert_true(hears_end(&c));
    assert_int_equal(count(&c, "HTTP/1.1"), 1);
    assert_int_equal(t.handled, 0);
    hang_up(&c);
}

static void a_head_as_large_as_allowed_is_taken(void **state) {
    char request[9000], *p = request + sprintf(request, "POST /echo?");
    for (int i = 0; i < 50; i++)
        p += sprintf(p, "a%d=b&", i);
    p += sprintf(p, " HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4096\r\n");
    for (int i = 0; i < 97; i++)
        p += sprintf(p, "X-Field-%d: %040d\r\n", i, i);
    int left = (int)quick.header_bytes - (int)(p - request) - 2;
    assert_in_range(left, 10, 4000);
    p[-2] = '\0';
    for (p -= 2; left > 0; left--)
        *p++ = 'x';
    p += sprintf(p, "\r\n\r\n");
    assert_int_equal(p - request, quick.header_bytes);
    struct client c = dial();
    static char body[4096];
    memset(body, 'b', sizeof body);
    say(&c, request);
    pump(20);
    say_bytes(&c, body, sizeof body);
    assert_true(hears_end(&c));
    assert_int_equal(status_of(&c), 404); /* it has a query, which the handler here does not know */
    hang_up(&c);
}

static void large_heads_are_refused(void **state) {
    static char request[200 * 1024];
    char *p = request + sprintf(request, "GET /health HTTP/1.1\r\nHost: a\r\n");
    char *fields = p;
    memset(p, 'x', 9000);
    memcpy(p, "X: ", 3);
    strcpy(p + 9000, "\r\n\r\n");
    assert_int_equal(ask(request, "http.head-too-large"), 431);
    for (int i = 0; i < 101; i++)
        p += sprintf(p, "X: y\r\n");
    strcpy(p, "\r\n");
    assert_int_equal(ask(request, "http.too-many-fields"), 431);
    memset(fields, 'x', 150000); /* libmicrohttpd's own limit: HTML */
    memcpy(fields, "X: ", 3);
    strcpy(fields + 150000, "\r\n\r\n");
    assert_int_equal(ask(request, NULL), 431);
    p = request + sprintf(request, "GET /");
    memset(p, 'x', 5000);
    strcpy(p + 5000, " HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_int_equal(ask(request, "http.target-too-long"), 414);
    strcpy(p + 3000, " HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_int_equal(ask(request, "http.path-too-long"), 414);
    p = request + sprintf(request, "GET ");
    for (int i = 0; i < 17; i++)
        p += sprintf(p, "/a");
    strcpy(p, " HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_int_equal(ask(request, "http.path-too-deep"), 414);
    assert_int_equal(t.handled, 0);
}

/* The answer arrives although the client is in the middle of a long upload, and what it sends meanwhile does not reset
 * the connection: many clients look for an answer only when they have sent everything. */
static void a_large_body_is_refused_without_reading_it(void **state) {
    static const char *const heads[] = {
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
    };
    static char half[50000];
    memset(half, 'x', sizeof half);
    for (int i = 0; i < 2; i++) {
        struct client c = dial();
        say(&c, heads[i]);
        say_bytes(&c, half, sizeof half);
        assert_true(hears(&c, "http.body-too-large"));
        assert_int_equal(status_of(&c), 413);
        say_bytes(&c, half, sizeof half);
        pump(20);
        say(&c, "\r\n0\r\n\r\n");
        assert_true(hears_end(&c));
        assert_false(c.reset);
        hang_up(&c);
    }
    assert_int_equal(t.handled, 0);
    for (int i = 0; i < 200 && stats().connections_lingering > 0; i++)
        pump(5);
    assert_int_equal(stats().connections_lingering, 0);
}

/* ---- slow clients ---- */

static void a_slow_head_is_ended(void **state) {
    static const char head[] =
        "GET /health HTTP/1.1\r\nHost: a\r\nX: abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
    struct client c = dial();
    int64_t began_ms = time_monotonic_ms();
    for (size_t i = 0; !c.eof && i < sizeof head - 1; i++) { /* a byte each 20 ms: never idle */
        say_bytes(&c, head + i, 1);
        pump(20);
        take(&c);
    }
    assert_true(hears_end(&c));
    int64_t took_ms = time_monotonic_ms() - began_ms;
    assert_in_range(took_ms, quick.header_deadline_ms, quick.header_deadline_ms + LATE_MS);
    assert_int_equal(status_of(&c), 408);
    assert_int_equal(t.handled, 0);
    assert_int_equal(stats().timed_out, 1);
    hang_up(&c);
}

static void a_slow_second_head_is_ended_too(void **state) {
    struct client c = dial();
    say(&c, GET("/health"));
    assert_true(hears(&c, "ok"));
    say(&c, "GET /health HTTP/1.1\r\nHost: a\r\n");
    int64_t began_ms = time_monotonic_ms();
    while (!c.eof && time_monotonic_ms() - began_ms < ENOUGH_MS) {
        say(&c, "X: y\r\n");
        pump(20);
        take(&c);
    }
    assert_true(c.eof);
    assert_true(time_monotonic_ms() - began_ms < quick.header_deadline_ms + LATE_MS);
    assert_int_equal(t.handled, 1);
    hang_up(&c);
}

static void a_slow_body_is_ended(void **state) {
    struct client c = dial();
    say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n");
    int64_t began_ms = time_monotonic_ms();
    while (!c.eof && time_monotonic_ms() - began_ms < ENOUGH_MS) {
        say(&c, "x");
        pump(20);
        take(&c);
    }
    assert_true(c.eof);
    assert_int_equal(status_of(&c), 408);
    assert_true(time_monotonic_ms() - began_ms < quick.body_deadline_ms + LATE_MS);
    assert_int_equal(t.handled, 0);
    hang_up(&c);
}

/* `printf 'GET …' | nc -N`: the end comes together with the request. */
static void a_half_closed_connection_is_not_kept(void **state) {
    stop();
    struct http_limits limits = quick;
    limits.idle_ms = 30000;
    start(&limits);
    struct client c = dial();
    int64_t began_ms = time_monotonic_ms();
    say(&c, GET("/health"));
    shutdown(c.fd, SHUT_WR);
    assert_true(hears_end(&c));
    assert_non_null(strstr(c.data, "\r\n\r\nok"));
    assert_true(time_monotonic_ms() - began_ms < LATE_MS);
    hang_up(&c);
}

static void an_idle_connection_is_closed(void **state) {
    struct client silent = dial(), idle = dial();
    say(&idle, GET("/health"));
    assert_true(hears(&idle, "ok"));
    int64_t began_ms = time_monotonic_ms();
    assert_true(hears_end(&silent));
    assert_true(hears_end(&idle));
    assert_in_range(time_monotonic_ms() - began_ms, quick.idle_ms - 50, quick.idle_ms + LATE_MS);
    for (int i = 0; i < 100 && stats().connections_tcp > 0; i++)
        pump(1);
    assert_int_equal(stats().connections_tcp, 0);
    hang_up(&silent);
    hang_up(&idle);
}

/* A chunk extension without end: libmicrohttpd's buffer is full and it would turn at full speed. */
static void an_endless_chunk_line_does_not_spin(void **state) {
    static char line[100000];
    memset(line, 'x', sizeof line);
    struct client c = dial();
    say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;");
    for (size_t sent = 0; sent < sizeof line;) {
        ssize_t n = send(c.fd, line, sizeof line - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n <= 0)
            break;
        sent += (size_t)n;
    }
    pump(20);
    uint64_t before = stats().runs;
    pump(100);
    assert_true(stats().runs - before < 200); /* and not tens of thousands */
    assert_true(hears_end(&c));               /* by the body's deadline */
    hang_up(&c);
}

static void waiting_costs_nothing(void **state) {
    struct client a = dial(), b = dial();
    say(&a, GET("/later"));
    say(&b, "GET /health HTTP/1.1\r\n");
    until(&t.handled, 1);
    pump(20);
    uint64_t before = stats().runs;
    pump(100);
    assert_true(stats().runs - before < 5);
    hang_up(&a);
    hang_up(&b);
    until(&t.gone, 1);
}

/* ---- later, gone ---- */

static void answers_later(void **state) {
    for (int unix_socket = 0; unix_socket < 2; unix_socket++) {
        struct client c = unix_socket ? dial_unix(t.socket) : dial();
        say(&c, GET("/later"));
        until(&t.handled, 1);
        pump(450); /* longer than every deadline: the client is not the one who is slow */
        take(&c);
        assert_int_equal(c.len, 0);
        assert_int_equal(http_problem(t.later, 503, "vm.booting", "Still booting", "wait", NULL), 0);
        t.later = NULL;
        assert_true(hears(&c, "\"code\":\"vm.booting\"}"));
        assert_non_null(strstr(c.data, "\"title\":\"Still booting\""));
        say(&c, GET("/health")); /* and the connection goes on */
        assert_true(hears(&c, "\r\n\r\nok"));
        hang_up(&c);
        t.handled = 0;
    }
    assert_int_equal(t.gone, 0);
}

static void the_owner_is_told_when_the_client_goes(void **state) {
    for (int how = 0; how < 4; how++) {
        struct client c = how & 1 ? dial_unix(t.socket) : dial();
        say(&c, GET("/later"));
        until(&t.handled, how + 1);
        if (how & 2)
            shutdown(c.fd, SHUT_WR);
        else
            hang_up(&c);
        until(&t.gone, how + 1);
        for (int i = 0; i < 100 && stats().connections_tcp + stats().connections_unix > 0; i++)
            pump(1);
        assert_int_equal(stats().connections_tcp + stats().connections_unix, 0);
        hang_up(&c);
    }
}

static void the_owner_is_told_when_the_server_goes(void **state) {
    struct client a = dial();
    say(&a, GET("/later"));
    until(&t.handled, 1);
    http_server_free(t.server);
    t.server = NULL;
    assert_int_equal(t.gone, 1);
    take(&a);
    assert_true(a.eof);
    hang_up(&a);
}

static void a_server_with_everything_under_way_is_freed(void **state) {
    struct client c[6];
    for (int i = 0; i < 6; i++)
        c[i] = dial();
    say(&c[0], "GET /hea");
    say(&c[1], "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe");
    say(&c[2], GET("/big"));
    say(&c[3], GET("/stream"));
    say(&c[4], "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\nhe");
    pump(50);
    http_stream_write(t.later, "x", 1);
    http_server_free(t.server);
    t.server = NULL;
    assert_int_equal(t.gone, 1);
    for (int i = 0; i < 6; i++)
        hang_up(&c[i]);
}

/* ---- streams ---- */

static void streams(void **state) {
    struct client c = dial();
    say(&c, GET("/stream"));
    assert_true(hears(&c, "\r\n\r\n"));
    assert_non_null(strstr(c.data, "Transfer-Encoding: chunked"));
    assert_int_equal(http_stream_write(t.later, "first ", 6), 0);
    assert_int_equal(http_stream_write(t.later, "line\n", 5), 0);
    assert_true(hears(&c, "first line\n"));
    pump(350);
    assert_int_equal(http_stream_write(t.later, "second line\n", 12), 0);
    assert_true(hears(&c, "second line\n"));
    http_stream_end(t.later);
    assert_true(hears(&c, "\r\n0\r\n\r\n"));
    say(&c, GET_CLOSE("/health"));
    assert_true(hears(&c, "ok"));
    assert_int_equal(t.gone, 0);
    hang_up(&c);
}

static void a_stream_to_http10_ends_with_the_connection(void **state) {
    struct client c = dial();
    say(&c, "GET /stream HTTP/1.0\r\n\r\n");
    assert_true(hears(&c, "\r\n\r\n"));
    http_stream_write(t.later, "all", 3);
    http_stream_end(t.later);
    assert_true(hears_end(&c));
    assert_string_equal(strstr(c.data, "\r\n\r\n"), "\r\n\r\nall");
    hang_up(&c);
}

static void a_reader_that_never_reads_is_dropped(void **state) {
    static char block[16 * 1024];
    struct client c = dial();
    say(&c, GET("/stream"));
    until(&t.handled, 1);
    int r = 0, blocks = 0;
    for (; r == 0 && blocks < 10000; blocks++) {
        r = http_stream_write(t.later, block, sizeof block);
        pump(0);
        if (t.gone)
            break; /* or by the stall deadline */
    }
    assert_true(r == -ENOBUFS || t.gone == 1);
    assert_true(blocks < 10000);
    t.later = NULL;
    for (int i = 0; i < 200 && stats().connections_tcp > 0; i++)
        pump(5);
    assert_int_equal(stats().connections_tcp, 0);
    hang_up(&c);
}

static void a_stream_write_that_is_too_large_at_once_is_refused(void **state) {
    static char block[64 * 1024 + 1];
    struct client c = dial();
    say(&c, GET("/stream"));
    until(&t.handled, 1);
    assert_int_equal(http_stream_write(t.later, block, sizeof block), -ENOBUFS);
    assert_true(hears_end(&c));
    assert_int_equal(t.gone, 0); /* told by the return value */
    hang_up(&c);
}

static void a_stream_whose_reader_goes_is_told(void **state) {
    struct client c = dial();
    say(&c, GET("/stream"));
    assert_true(hears(&c, "\r\n\r\n"));
    hang_up(&c);
    until(&t.gone, 1);
}

static void a_stalled_download_is_ended(void **state) {
    struct client c = dial();
    say(&c, GET("/big"));
    until(&t.handled, 1);
    int64_t began_ms = time_monotonic_ms();
    while (stats().connections_tcp > 0 && time_monotonic_ms() - began_ms < ENOUGH_MS)
        pump(5);
    assert_int_equal(stats().connections_tcp, 0);
    assert_int_equal(stats().timed_out, 1);
    hang_up(&c);
}

/* Longer than the deadline for a stall as a whole, and never without progress. */
static void a_slow_download_goes_on(void **state) {
    struct client c = dial();
    int small = 32 * 1024;
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    say(&c, GET_CLOSE("/big"));
    size_t got = 0;
    char buf[128 * 1024];
    int64_t began_ms = time_monotonic_ms();
    while (time_monotonic_ms() - began_ms < 20000) {
        ssize_t n = recv(c.fd, buf, sizeof buf, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            break;
        got += n > 0 ? (size_t)n : 0;
        pump(got < 4 * 1024 * 1024 ? 8 : 0);
    }
    assert_true(got > 8 * 1024 * 1024);
    assert_true(time_monotonic_ms() - began_ms > quick.write_stall_ms);
    hang_up(&c);
}

/* ---- upgrade ---- */

#define WS_HEAD                                                                                                        \
    "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"                         \
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"

static void upgrades_with_early_bytes(void **state) {
    for (int unix_socket = 0; unix_socket < 2; unix_socket++) {
        struct client c = unix_socket ? dial_unix(t.socket) : dial();
        say(&c, WS_HEAD "Sec-WebSocket-Protocol: base64, binary\r\n\r\nearly bytes");
        until(&t.upgrades, unix_socket + 1);
        assert_true(t.upgraded_fd >= 0);
        assert_int_equal(t.early_len, 11);
        assert_memory_equal(t.early, "early bytes", 11);
        assert_true(hears(&c, "\r\n\r\n"));
        assert_int_equal(status_of(&c), 101);
        assert_non_null(strstr(c.data, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert_non_null(strstr(c.data, "Sec-WebSocket-Protocol: binary\r\n"));
        assert_non_null(strstr(c.data, "Upgrade: websocket\r\n"));
        assert_true(fcntl(t.upgraded_fd, F_GETFD) & FD_CLOEXEC);
        assert_true(fcntl(t.upgraded_fd, F_GETFL) & O_NONBLOCK);
        pump(450); /* longer than every deadline: it is not the server's any more */
        assert_int_equal(stats().connections_tcp + stats().connections_unix, 0);
        assert_int_equal(write(t.upgraded_fd, "down", 4), 4);
        assert_true(hears(&c, "down"));
        say(&c, "up");
        char buf[8];
        assert_int_equal(read(t.upgraded_fd, buf, sizeof buf), 2);
        fd_close(&t.upgraded_fd);
        assert_true(hears_end(&c));
        hang_up(&c);
    }
}

static void upgraded_connections_outlive_the_server(void **state) {
    struct client c = dial();
    say(&c, WS_HEAD "\r\n");
    until(&t.upgrades, 1);
    assert_null(c.data);
    http_server_free(t.server);
    t.server = NULL;
    assert_int_equal(write(t.upgraded_fd, "down", 4), 4);
    take(&c);
    assert_non_null(strstr(c.data, "down"));
    assert_null(strstr(c.data, "Sec-WebSocket-Protocol"));
    hang_up(&c);
}

static void bad_handshakes_are_refused(void **state) {
    static const char *const bad[] = {
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        "dGhlIHNhbXBsZSBub25jZR==\r\n",
        "Upgrade: websocket\r\nConnection: close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        "dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        "dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Upgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: "
        "13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    };
    char request[1024];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(request, sizeof request, "GET /ws HTTP/1.1\r\nHost: a\r\n%s\r\n", bad[i]);
        struct client c = dial();
        say(&c, request);
        assert_true(hears(&c, "websocket.bad-handshake"));
        assert_int_equal(status_of(&c), 400);
        hang_up(&c);
    }
    struct client c = dial();
    say(&c, "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    assert_true(hears(&c, "websocket.version"));
    assert_non_null(strstr(c.data, "Sec-WebSocket-Version: 13\r\n"));
    hang_up(&c);
    assert_int_equal(t.upgrades, 0);
}

/* ---- limits ---- */

static void at_the_connection_limit_health_is_answered(void **state) {
    struct client idle[20];
    for (int i = 0; i < 20; i++) {
        idle[i] = dial();
        say(&idle[i], "GET /health HTTP/1.1\r\n");
    }
    pump(20);
    assert_int_equal(ask(GET("/echo"), "http.too-many-connections"), 503);
    assert_int_equal(ask(GET("/health"), NULL), 200); /* and closes, to make room */
    struct client local = dial_unix(t.socket);        /* the operator has room of his own */
    say(&local, GET("/echo"));
    assert_true(hears(&local, "200 OK"));
    hang_up(&local);
    hang_up(&idle[0]);
    pump(20);
    struct client c = dial();
    say(&c, GET("/echo"));
    assert_true(hears(&c, "200 OK"));
    hang_up(&c);
    for (int i = 1; i < 20; i++)
        hang_up(&idle[i]);
}

static void one_address_cannot_take_all(void **state) {
    struct client many[40];
    for (int i = 0; i < 40; i++)
        many[i] = dial();
    pump(50);
    assert_true(stats().connections_tcp <= 20 + 8);
    assert_true(stats().over_limit >= 12);
    for (int i = 0; i < 40; i++)
        hang_up(&many[i]);
    for (int i = 0; i < 200 && stats().connections_tcp > 0; i++)
        pump(5);
    assert_int_equal(stats().connections_tcp, 0);
    assert_int_equal(ask(GET_CLOSE("/echo"), NULL), 200);
}

static void idle_connections_make_room(void **state) {
    stop();
    struct http_limits limits = quick;
    limits.idle_ms = 30000;
    start(&limits);
    struct client idle[21];
    for (int i = 0; i < 20; i++) {
        idle[i] = dial();
        say(&idle[i], GET("/health"));
        assert_true(hears(&idle[i], "ok"));
    }
    idle[20] = dial();
    int64_t began_ms = time_monotonic_ms();
    assert_true(hears_end(&idle[0]));
    assert_true(time_monotonic_ms() - began_ms < LATE_MS);
    for (int i = 0; i < 21; i++)
        hang_up(&idle[i]);
}

static void the_rate_limit_tells_when(void **state) {
    stop();
    struct http_limits limits = quick;
    limits.requests_per_second = 1;
    limits.burst = 3;
    start(&limits);
    struct client c = dial();
    for (int i = 0; i < 3; i++)
        say(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    until(&t.handled, 3);
    say(&c, GET("/echo"));
    assert_true(hears_end(&c));
    assert_int_equal(count(&c, "200 OK"), 3);
    assert_int_equal(count(&c, "429 Too Many Requests"), 1);
    assert_non_null(strstr(c.data, "\r\nRetry-After: 1\r\n"));
    hang_up(&c);
    assert_int_equal(ask(GET("/echo"), "http.rate-limit"), 429);
    assert_int_equal(ask(GET_CLOSE("/health"), NULL), 200);
    c = dial_unix(t.socket);
    for (int i = 0; i < 10; i++)
        say(&c, GET("/echo"));
    until(&t.handled, 14);
    hang_up(&c);
}

static void without_descriptors_it_waits_and_recovers(void **state) {
    struct rlimit old, tight;
    struct client a = dial();
    say(&a, GET("/health"));
    assert_true(hears(&a, "ok"));
    struct client b = dial(); /* in the backlog */
    getrlimit(RLIMIT_NOFILE, &old);
    tight = old;
    int top = dup(0);
    close(top);
    tight.rlim_cur = (rlim_t)top;
    setrlimit(RLIMIT_NOFILE, &tight);
    say(&b, GET("/health"));
    int64_t began_ms = time_monotonic_ms();
    int turns = 0;
    while (time_monotonic_ms() - began_ms < 80) {
        sd_event_run(t.loop, 5000);
        turns++;
    }
    setrlimit(RLIMIT_NOFILE, &old);
    assert_int_equal(stats().accepted, 1);
    assert_true(turns < 60);
    assert_true(hears(&b, "ok"));
    hang_up(&a);
    hang_up(&b);
}

/* ---- listening ---- */

static void a_port_in_use_is_named(void **state) {
    char address[40], owner[40];
    struct err err = {0};
    snprintf(address, sizeof address, "127.0.0.1:%u", http_server_port(t.server));
    assert_int_equal(http_server_listen_tcp(t.server, address, &err), -EADDRINUSE);
    assert_string_equal(err.code, "api.port-in-use");
    assert_non_null(strstr(err.detail, address));
    snprintf(owner, sizeof owner, "(process %d)", (int)getpid());
    assert_non_null(strstr(err.detail, owner));
    assert_true(err.hint[0] != '\0');
    const char *bad[] = {"",         "4000",  "127.0.0.1",      "127.0.0.1:", "127.0.0.1:70000",
                         "::1:4000", "[::1]", "localhost:4000", ":4000",      "[]:1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(http_server_listen_tcp(t.server, bad[i], &err), -EINVAL);
        assert_string_equal(err.code, "api.bad-address");
    }
    assert_int_equal(http_server_listen_tcp(t.server, "192.0.2.1:0", &err), -EADDRNOTAVAIL);
    assert_string_equal(err.code, "api.address-not-here");
}

static void listens_on_ipv6(void **state) {
    struct err err = {0};
    int r = http_server_listen_tcp(t.server, "[::1]:0", &err);
    if (r == -EADDRNOTAVAIL || r == -EAFNOSUPPORT)
        skip(); /* a machine without IPv6 */
    assert_int_equal(r, 0);
}

static void unix_sockets_stale_live_and_other(void **state) {
    struct err err = {0};
    char path[120];
    struct stat st;
    assert_int_equal(stat(t.socket, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);
    /* live */
    assert_int_equal(http_server_listen_unix(t.server, t.socket, 0600, (gid_t)-1, &err), -EADDRINUSE);
    assert_string_equal(err.code, "api.socket-live");
    struct client c = dial_unix(t.socket);
    say(&c, GET("/health"));
    assert_true(hears(&c, "ok"));
    hang_up(&c);
    /* stale: bound by somebody who is gone */
    snprintf(path, sizeof path, "%s/stale.sock", t.dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    close(fd);
    assert_int_equal(http_server_listen_unix(t.server, path, 0600, getgid(), &err), 0);
    c = dial_unix(path);
    say(&c, GET("/health"));
    assert_true(hears(&c, "ok"));
    hang_up(&c);
    /* not a socket */
    snprintf(path, sizeof path, "%s/file", t.dir);
    assert_int_equal(file_write_atomic(path, "x", 1, 0600), 0);
    assert_int_equal(http_server_listen_unix(t.server, path, 0600, (gid_t)-1, &err), -EEXIST);
    assert_string_equal(err.code, "api.socket-not-a-socket");
    assert_int_equal(access(path, F_OK), 0);
    /* too long */
    char longer[200];
    memset(longer, 'a', sizeof longer - 1);
    longer[0] = '/';
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(http_server_listen_unix(t.server, longer, 0600, (gid_t)-1, &err), -ENAMETOOLONG);
    /* no folder */
    assert_int_equal(http_server_listen_unix(t.server, "/tmp/mc-no-such-folder/s", 0600, (gid_t)-1, &err), -ENOENT);
}

static void a_successors_socket_is_left_alone(void **state) {
    struct err err = {0};
    assert_int_equal(unlink(t.socket), 0);
    struct http_server *next = NULL;
    assert_int_equal(http_server_new(t.loop, &quick, handler, NULL, &next, &err), 0);
    assert_int_equal(http_server_listen_unix(next, t.socket, 0600, (gid_t)-1, &err), 0);
    http_server_stop_accepting(t.server);
    assert_int_equal(access(t.socket, F_OK), 0);
    http_server_free(next);
}

static void after_stop_accepting_open_connections_go_on(void **state) {
    struct client c = dial();
    say(&c, GET("/later"));
    until(&t.handled, 1);
    uint16_t port = http_server_port(t.server);
    http_server_stop_accepting(t.server);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), -1);
    close(fd);
    http_respond(t.later, 200, &(struct http_response){.body = "done", .len = 4});
    assert_true(hears(&c, "\r\n\r\ndone"));
    hang_up(&c);
}

static void limits_are_checked(void **state) {
    struct err err = {0};
    struct http_server *none = NULL;
    struct http_limits limits = quick;
    limits.header_deadline_ms = 0;
    assert_int_equal(http_server_new(t.loop, &limits, handler, NULL, &none, &err), -EINVAL);
    assert_null(none);
}

/* ---- many ---- */

static void garbage_does_no_harm(void **state) {
    static const char alphabet[] =
        "GETPOS /:\r\n\r\n\r\nHTTP/1.1 Content-Length: 5 Transfer-Encoding: chunked\0\xff%00;=";
    unsigned seed = 20251024;
    char buf[600];
    for (int i = 0; i < 1500; i++) {
        size_t len = (size_t)(rand_r(&seed) % (int)sizeof buf), at = 0;
        if (i % 3 == 0)
            at = (size_t)sprintf(buf, "POST /echo HTTP/1.1\r\nHost: a\r\n");
        if (i % 6 == 0)
            at += (size_t)sprintf(buf + at, "Transfer-Encoding: chunked\r\n\r\n");
        for (; at < len; at++)
            buf[at] = i % 2 ? (char)rand_r(&seed) : alphabet[(size_t)rand_r(&seed) % sizeof alphabet];
        struct client c = dial();
        say_bytes(&c, buf, at);
        if (i % 5 == 0)
            shutdown(c.fd, SHUT_WR);
        for (int turn = 0; turn < 4; turn++)
            sd_event_run(t.loop, 0);
        take(&c);
        hang_up(&c);
        for (int turn = 0; turn < 1000 && stats().connections_tcp > 5; turn++)
            sd_event_run(t.loop, 1000);
        assert_true(stats().connections_tcp <= 5);
    }
    assert_int_equal(stats().over_limit, 0); /* all of it was read */
    struct client c = dial();
    say(&c, GET("/health"));
    assert_true(hears(&c, "\r\n\r\nok"));
    hang_up(&c);
}

static void a_thousand_requests_leak_no_descriptor(void **state) {
    int before = open_fds();
    for (int i = 0; i < 500; i++) {
        assert_int_equal(ask(GET_CLOSE("/health"), NULL), 200);
        if (i % 50 == 0)
            assert_int_equal(ask("GET /health HTTP/1.1\r\n\r\n", "http.no-host"), 400);
    }
    struct client c = dial();
    for (int i = 0; i < 500; i++) {
        c.len = 0;
        say(&c, GET("/health"));
        assert_true(hears(&c, "\r\n\r\nok"));
    }
    hang_up(&c);
    for (int i = 0; i < 200 && stats().connections_tcp + stats().connections_lingering > 0; i++)
        pump(5);
    assert_int_equal(open_fds(), before);
    assert_int_equal(stats().connections_tcp, 0);
}

#define SERVER_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        SERVER_TEST(answers_and_its_headers),
        SERVER_TEST(head_has_no_body),
        SERVER_TEST(head_of_a_stream_ends),
        SERVER_TEST(bodies),
        SERVER_TEST(pipelining_keeps_the_order),
        SERVER_TEST(accessors),
        SERVER_TEST(peers),
        SERVER_TEST(a_handler_that_forgets_is_500),
        SERVER_TEST(options_and_unknown_methods_reach_the_handler),
        SERVER_TEST(smuggling_shapes_are_refused),
        SERVER_TEST(a_bad_content_length_is_refused),
        SERVER_TEST(nul_bytes_are_refused),
        SERVER_TEST(what_is_behind_a_refused_request_is_not_read),
        SERVER_TEST(a_head_as_large_as_allowed_is_taken),
        SERVER_TEST(large_heads_are_refused),
        SERVER_TEST(a_large_body_is_refused_without_reading_it),
        SERVER_TEST(a_slow_head_is_ended),
        SERVER_TEST(a_slow_second_head_is_ended_too),
        SERVER_TEST(a_slow_body_is_ended),
        SERVER_TEST(a_half_closed_connection_is_not_kept),
        SERVER_TEST(an_idle_connection_is_closed),
        SERVER_TEST(an_endless_chunk_line_does_not_spin),
        SERVER_TEST(waiting_costs_nothing),
        SERVER_TEST(answers_later),
        SERVER_TEST(the_owner_is_told_when_the_client_goes),
        SERVER_TEST(the_owner_is_told_when_the_server_goes),
        SERVER_TEST(a_server_with_everything_under_way_is_freed),
        SERVER_TEST(streams),
        SERVER_TEST(a_stream_to_http10_ends_with_the_connection),
        SERVER_TEST(a_reader_that_never_reads_is_dropped),
        SERVER_TEST(a_stream_write_that_is_too_large_at_once_is_refused),
        SERVER_TEST(a_stream_whose_reader_goes_is_told),
        SERVER_TEST(a_stalled_download_is_ended),
        SERVER_TEST(a_slow_download_goes_on),
        SERVER_TEST(upgrades_with_early_bytes),
        SERVER_TEST(upgraded_connections_outlive_the_server),
        SERVER_TEST(bad_handshakes_are_refused),
        SERVER_TEST(at_the_connection_limit_health_is_answered),
        SERVER_TEST(one_address_cannot_take_all),
        SERVER_TEST(idle_connections_make_room),
        SERVER_TEST(the_rate_limit_tells_when),
        SERVER_TEST(without_descriptors_it_waits_and_recovers),
        SERVER_TEST(a_port_in_use_is_named),
        SERVER_TEST(listens_on_ipv6),
        SERVER_TEST(unix_sockets_stale_live_and_other),
        SERVER_TEST(a_successors_socket_is_left_alone),
        SERVER_TEST(after_stop_accepting_open_connections_go_on),
        SERVER_TEST(limits_are_checked),
        SERVER_TEST(garbage_does_no_harm),
        SERVER_TEST(a_thousand_requests_leak_no_descriptor),
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
