/* The HTTP server with clients that are slow, go away, or read for long; and what it hands over. */
#include "http_rig.h"

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
    assert_int_equal(http_stream_waiting(t.later), 12);
    assert_true(hears(&c, "second line\n"));
    assert_int_equal(http_stream_waiting(t.later), 0);
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

int main(void) {
    const struct CMUnitTest tests[] = {
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
    };
    return cmocka_run_group_tests_name("http_flow", tests, NULL, NULL);
}
