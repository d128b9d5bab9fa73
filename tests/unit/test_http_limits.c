/* The HTTP server at its limits, where it listens, and with very much of everything. */
#include "http_rig.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
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
    return cmocka_run_group_tests_name("http_limits", tests, NULL, NULL);
}
