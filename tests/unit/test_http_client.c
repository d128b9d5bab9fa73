/* The HTTP client against our own server in another thread, and against sockets that do not behave. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/time.h"
#include "cmocka_all.h"
#include "http/client.h"
#include "http/server.h"

static struct {
    pthread_t thread;
    sd_event *loop;
    struct http_server *server;
    int stop[2]; /* a byte ends the thread */
    char dir[64], socket[100], host[40];
    struct http_request *stream;
    sd_event_source *tick;
    int lines;
} t;

/* ---- the server's thread ---- */

static void on_gone(struct http_request *req, void *userdata) {
    t.stream = NULL;
}

static int on_tick(sd_event_source *source, uint64_t usec, void *userdata) {
    char line[32];
    if (!t.stream)
        return 0;
    int n = snprintf(line, sizeof line, "line %d\n", ++t.lines);
    if (http_stream_write(t.stream, line, (size_t)n) < 0 || t.lines == 5) {
        if (t.lines == 5)
            http_stream_end(t.stream);
        t.stream = NULL;
        return 0;
    }
    sd_event_source_set_time_relative(source, 5000);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static void seen(struct http_request *req) {
    char text[600];
    size_t len;
    const char *body = http_request_body(req, &len), *type = http_request_header(req, "Content-Type");
    const char *x = http_request_header(req, "X-Test"), *expect = http_request_header(req, "Expect");
    const char *empty = http_request_header(req, "X-Empty");
    snprintf(text, sizeof text, "%s %s body=%zu:%.20s type=%s x=%s empty=%s expect=%s", http_request_method(req),
             http_request_target(req), len, body, type ? type : "-", x ? x : "-", empty ? "yes" : "-",
             expect ? expect : "-");
    http_respond(req, 200, &(struct http_response){.content_type = "text/plain", .body = text, .len = strlen(text)});
}

static void handler(struct http_request *req, void *userdata) {
    const char *target = http_request_target(req);
    static char big[100000];
    if (strcmp(target, "/big") == 0)
        http_respond(req, 200, &(struct http_response){.body = big, .len = sizeof big});
    else if (strcmp(target, "/none") == 0)
        http_respond(req, 204, NULL);
    else if (strcmp(target, "/moved") == 0) {
        const struct http_header to = {"Location", "/none"};
        http_respond(req, 302, &(struct http_response){.headers = &to, .n_headers = 1});
    } else if (strcmp(target, "/never") == 0)
        http_request_defer(req, NULL, NULL);
    else if (strcmp(target, "/stream") == 0) {
        t.stream = req;
        t.lines = 0;
        http_request_defer(req, on_gone, NULL);
        http_stream_begin(req, 200, NULL);
        sd_event_source_set_time_relative(t.tick, 0);
        sd_event_source_set_enabled(t.tick, SD_EVENT_ONESHOT);
    } else if (strcmp(target, "/missing") == 0)
        http_problem(req, 404, "vm.unknown", NULL, "no such VM", NULL);
    else
        seen(req);
}

static int on_stop(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    return sd_event_exit(t.loop, 0);
}

static void *serve(void *arg) {
    sd_event_loop(t.loop);
    return NULL;
}

static int start(void **state) {
    struct err err = {0};
    struct http_limits limits = http_limits_default;
    limits.requests_per_second = 0;
    limits.body_bytes = 1024 * 1024;
    strcpy(t.dir, "/tmp/mc-httpc-XXXXXX");
    if (!mkdtemp(t.dir) || pipe(t.stop) < 0)
        return -1;
    snprintf(t.socket, sizeof t.socket, "%s/s", t.dir);
    sd_event_new(&t.loop);
    sd_event_add_io(t.loop, NULL, t.stop[0], EPOLLIN, on_stop, NULL);
    sd_event_add_time_relative(t.loop, &t.tick, CLOCK_MONOTONIC, 0, 1000, on_tick, NULL);
    sd_event_source_set_enabled(t.tick, SD_EVENT_OFF);
    if (http_server_new(t.loop, &limits, handler, NULL, &t.server, &err) < 0 ||
        http_server_listen_tcp(t.server, "127.0.0.1:0", &err) < 0 ||
        http_server_listen_unix(t.server, t.socket, 0600, (gid_t)-1, &err) < 0)
        return -1;
    snprintf(t.host, sizeof t.host, "127.0.0.1:%u", http_server_port(t.server));
    return pthread_create(&t.thread, NULL, serve, NULL);
}

static int stop(void **state) {
    if (write(t.stop[1], "x", 1) != 1)
        return -1;
    pthread_join(t.thread, NULL);
    http_server_free(t.server);
    sd_event_source_unref(t.tick);
    sd_event_unref(t.loop);
    close(t.stop[0]);
    close(t.stop[1]);
    return dir_remove(t.dir);
}

/* ---- tests ---- */

static void get_post_and_the_rest(void **state) {
    for (int tcp = 0; tcp < 2; tcp++) {
        struct err err = {0};
        struct http_client_request rq = {.path = "/x?a=%20", .timeout_ms = 5000};
        if (tcp)
            rq.host = t.host;
        else
            rq.unix_socket = t.socket;
        struct http_client_response rs = {0};
        assert_int_equal(http_client_request(&rq, &rs, &err), 0);
        assert_int_equal(rs.status, 200);
        assert_string_equal(rs.content_type, "text/plain");
        assert_string_equal(rs.body, "GET /x?a=%20 body=0: type=- x=- empty=- expect=-");
        assert_int_equal(rs.len, strlen(rs.body));
        http_client_response_free(&rs);

        const struct http_client_header headers[] = {{"X-Test", "one two"}, {"X-Empty", ""}};
        static char body[5000];
        memset(body, 'b', sizeof body);
        rq.headers = headers;
        rq.n_headers = 2;
        rq.body = body;
        rq.body_len = sizeof body;
        assert_int_equal(http_client_request(&rq, &rs, &err), 0);
        assert_string_equal(
            rs.body, "POST /x?a=%20 body=5000:bbbbbbbbbbbbbbbbbbbb type=application/json x=one two empty=yes expect=-");
        http_client_response_free(&rs);

        rq = (struct http_client_request){
            .unix_socket = rq.unix_socket, .host = rq.host, .path = "/y", .timeout_ms = 5000};
        const char *methods[] = {"PUT", "DELETE", "PATCH", "POST"};
        for (size_t i = 0; i < 4; i++) {
            char wanted[20];
            rq.method = methods[i];
            rq.body = i % 2 ? NULL : "{}";
            rq.body_len = i % 2 ? 0 : 2;
            assert_int_equal(http_client_request(&rq, &rs, &err), 0);
            snprintf(wanted, sizeof wanted, "%s /y body=%d:", methods[i], i % 2 ? 0 : 2);
            assert_non_null(strstr(rs.body, wanted));
            http_client_response_free(&rs);
        }
        rq = (struct http_client_request){
            .unix_socket = rq.unix_socket, .host = rq.host, .path = "/big", .method = "HEAD", .timeout_ms = 5000};
        assert_int_equal(http_client_request(&rq, &rs, &err), 0);
        assert_int_equal(rs.len, 0);
        http_client_response_free(&rs);
    }
}

static void other_answers_are_answers(void **state) {
    struct err err = {0};
    _cleanup_http_response_ struct http_client_response rs = {0};
    struct http_client_request rq = {.unix_socket = t.socket, .path = "/missing", .timeout_ms = 5000};
    assert_int_equal(http_client_request(&rq, &rs, &err), 0);
    assert_int_equal(rs.status, 404);
    assert_string_equal(rs.content_type, "application/problem+json");
    assert_non_null(strstr(rs.body, "vm.unknown"));
    http_client_response_free(&rs);
    rq.path = "/none";
    assert_int_equal(http_client_request(&rq, &rs, &err), 0);
    assert_int_equal(rs.status, 204);
    assert_string_equal(rs.body, "");
    http_client_response_free(&rs);
    rq.path = "/moved"; /* is told, not followed */
    assert_int_equal(http_client_request(&rq, &rs, &err), 0);
    assert_int_equal(rs.status, 302);
}

static void failures_have_names(void **state) {
    struct err err = {0};
    struct http_client_response rs = {0};
    char nowhere[120];
    snprintf(nowhere, sizeof nowhere, "%s/nowhere", t.dir);
    struct http_client_request rq = {.unix_socket = nowhere, .path = "/", .timeout_ms = 5000};
    assert_int_equal(http_client_request(&rq, &rs, &err), -ENOENT);
    assert_string_equal(err.code, "http.unreachable");
    assert_non_null(strstr(err.detail, nowhere));

    rq = (struct http_client_request){.host = "127.0.0.1:1", .path = "/", .timeout_ms = 5000};
    assert_int_equal(http_client_request(&rq, &rs, &err), -ECONNREFUSED);
    assert_string_equal(err.code, "http.unreachable");

    rq = (struct http_client_request){.unix_socket = t.socket, .path = "/never", .timeout_ms = 100};
    int64_t began_ms = time_monotonic_ms();
    assert_int_equal(http_client_request(&rq, &rs, &err), -ETIMEDOUT);
    assert_string_equal(err.code, "http.timeout");
    assert_in_range(time_monotonic_ms() - began_ms, 90, 3000);

    rq = (struct http_client_request){
        .unix_socket = t.socket, .path = "/big", .timeout_ms = 5000, .max_response_bytes = 99999};
    assert_int_equal(http_client_request(&rq, &rs, &err), -EFBIG);
    assert_string_equal(err.code, "http.too-large");
    rq.max_response_bytes = 100000;
    assert_int_equal(http_client_request(&rq, &rs, &err), 0);
    assert_int_equal(rs.len, 100000);
    http_client_response_free(&rs);
}

static void arguments_are_checked(void **state) {
    struct err err = {0};
    struct http_client_response rs = {0};
    const struct http_client_header evil = {"X", "a\r\nY: b"};
    char longer[200];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    const struct http_client_request bad[] = {
        {.unix_socket = t.socket, .path = "x"},
        {.unix_socket = t.socket, .path = "/a b"},
        {.unix_socket = t.socket, .path = "/a\r\nX: y"},
        {.unix_socket = t.socket, .path = "/\xc3\xa4"},
        {.unix_socket = t.socket},
        {.path = "/"},
        {.unix_socket = t.socket, .host = "a", .path = "/"},
        {.host = "user@evil", .path = "/"},
        {.host = "a/b", .path = "/"},
        {.unix_socket = t.socket, .path = "/", .method = "G T"},
        {.unix_socket = t.socket, .path = "/", .headers = &evil, .n_headers = 1},
        {.unix_socket = t.socket, .path = "/", .headers = &evil, .n_headers = 17},
        {.unix_socket = longer, .path = "/"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(http_client_request(&bad[i], &rs, &err) < 0);
        assert_string_equal(err.code, "http.bad-request");
    }
}

static void the_environments_proxy_is_not_used(void **state) {
    struct err err = {0};
    _cleanup_http_response_ struct http_client_response rs = {0};
    setenv("http_proxy", "http://127.0.0.1:1", 1);
    setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
    struct http_client_request rq = {.host = t.host, .path = "/x", .timeout_ms = 5000};
    int r = http_client_request(&rq, &rs, &err);
    unsetenv("http_proxy");
    unsetenv("ALL_PROXY");
    assert_int_equal(r, 0);
}

static char heard[200];

static int hear(const char *data, size_t len, void *userdata) {
    strncat(heard, data, len);
    return *(int *)userdata && strstr(heard, "line 2") ? -ECANCELED : 0;
}

static void streams_are_read_as_they_come(void **state) {
    struct err err = {0};
    struct http_client_response rs = {0};
    int stop_early = 0;
    struct http_client_request rq = {.unix_socket = t.socket, .path = "/stream"};
    heard[0] = '\0';
    assert_int_equal(http_client_stream(&rq, hear, &stop_early, &rs, &err), 0);
    assert_string_equal(heard, "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_int_equal(rs.status, 200);
    assert_string_equal(rs.body, "");
    http_client_response_free(&rs);
    stop_early = 1;
    heard[0] = '\0';
    assert_int_equal(http_client_stream(&rq, hear, &stop_early, &rs, &err), -ECANCELED);
    assert_string_equal(err.code, "http.stopped");
    heard[0] = '\0';
    rq.path = "/missing"; /* a problem is kept, not streamed */
    assert_int_equal(http_client_stream(&rq, hear, &stop_early, &rs, &err), 0);
    assert_int_equal(rs.status, 404);
    assert_non_null(strstr(rs.body, "vm.unknown"));
    assert_string_equal(heard, "");
    http_client_response_free(&rs);
}

/* A peer that sends these bytes to whoever comes, and closes. */
struct liar {
    int fd;
    const char *says;
};

static void *lie(void *arg) {
    struct liar *liar = arg;
    char buf[4096];
    int c = accept(liar->fd, NULL, NULL);
    if (recv(c, buf, sizeof buf, 0) > 0)
        send(c, liar->says, strlen(liar->says), MSG_NOSIGNAL);
    close(c);
    return NULL;
}

static void lies_are_found_out(void **state) {
    static const char *const lies[] = {
        "SSH-2.0-OpenSSH\r\n",
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    };
    char path[120];
    snprintf(path, sizeof path, "%s/liar", t.dir);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    struct liar liar = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    assert_int_equal(bind(liar.fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(liar.fd, 1), 0);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        pthread_t thread;
        struct err err = {0};
        struct http_client_response rs = {.status = 77};
        struct http_client_request rq = {.unix_socket = path, .path = "/", .timeout_ms = 5000};
        liar.says = lies[i];
        assert_int_equal(pthread_create(&thread, NULL, lie, &liar), 0);
        assert_int_equal(http_client_request(&rq, &rs, &err), -EPROTO);
        assert_string_equal(err.code, "http.bad-answer");
        assert_int_equal(rs.status, 77); /* untouched */
        pthread_join(thread, NULL);
    }
    close(liar.fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(get_post_and_the_rest),
        cmocka_unit_test(other_answers_are_answers),
        cmocka_unit_test(failures_have_names),
        cmocka_unit_test(arguments_are_checked),
        cmocka_unit_test(the_environments_proxy_is_not_used),
        cmocka_unit_test(streams_are_read_as_they_come),
        cmocka_unit_test(lies_are_found_out),
    };
    return cmocka_run_group_tests_name("http_client", tests, start, stop);
}
