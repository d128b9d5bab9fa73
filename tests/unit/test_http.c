/* The HTTP server: what it answers, and what it refuses to take for a request. */
#include <sys/mman.h>
#include <sys/random.h>

#include "http_rig.h"

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

#define MASK 0x5a /* so that what is searched for is not the search's own */
#define SECRET_LEN 40

static bool is_at(const char *at, const char masked[SECRET_LEN]) {
    for (size_t i = 0; i < SECRET_LEN; i++)
        if ((at[i] ^ MASK) != masked[i])
            return false;
    return true;
}

static bool is_in(const char *data, size_t len, const char masked[SECRET_LEN]) {
    for (size_t at = 0; at + SECRET_LEN <= len; at++)
        if (is_at(data + at, masked))
            return true;
    return false;
}

/* Whether it is in what this process can write to. */
static bool is_in_memory(const char masked[SECRET_LEN]) {
    FILE *maps = fopen("/proc/self/maps", "re");
    _cleanup_close_ int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    char line[512], flags[8];
    unsigned long from, to;
    bool found = false;
    assert_true(maps && mem >= 0);
    while (!found && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %7s", &from, &to, flags) != 3 || strncmp(flags, "rw", 2) != 0 ||
            to - from > 64UL << 20)
            continue;
        /* Not of the heap: what has been freed there must not be written over. */
        char *copy = mmap(NULL, to - from, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ssize_t len = pread(mem, copy, to - from, (off_t)from);
        found = len > 0 && is_in(copy, (size_t)len, masked);
        munmap(copy, to - from);
    }
    fclose(maps);
    return found;
}

static void plant(char *ret_secret, char ret_masked[SECRET_LEN]) {
    assert_int_equal(getrandom(ret_secret, SECRET_LEN, 0), SECRET_LEN);
    for (size_t i = 0; i < SECRET_LEN; i++) {
        ret_secret[i] = (char)('a' + (ret_secret[i] & 15));
        ret_masked[i] = (char)(ret_secret[i] ^ MASK);
    }
}

/* Sends it and throws the answer away. */
static void ask_and_forget(const char *request, size_t len) {
    char answer[4096];
    ssize_t n;
    struct client c = dial();
    say_bytes(&c, request, len);
    for (int64_t end = time_monotonic_ms() + ENOUGH_MS; (n = recv(c.fd, answer, sizeof answer, MSG_DONTWAIT)) != 0;) {
        assert_true(n > 0 || errno == EAGAIN);
        assert_true(time_monotonic_ms() < end);
        pump(0);
    }
    explicit_bzero(answer, sizeof answer);
    hang_up(&c);
    for (int64_t end = time_monotonic_ms() + ENOUGH_MS; stats().connections_tcp > 0 && time_monotonic_ms() < end;)
        pump(0);
    assert_int_equal(stats().connections_tcp, 0);
}

static void nothing_of_a_request_stays_in_memory(void **state) {
    static const size_t body_len = 3000; /* its secret is far in it: what is freed is soon begun to be written over */
    char request[4096], masked[2][SECRET_LEN];
    int len = snprintf(request, sizeof request,
                       "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %zu\r\n"
                       "Authorization: Bearer ",
                       body_len);
    size_t at = (size_t)len;
    plant(request + at, masked[0]);
    at += SECRET_LEN;
    memcpy(request + at, "\r\n\r\n", 4);
    at += 4;
    memset(request + at, 'x', body_len);
    at += body_len;
    plant(request + at - SECRET_LEN, masked[1]);
    assert_true(is_in_memory(masked[0]) && is_in_memory(masked[1]));
    ask_and_forget(request, at);
    assert_int_equal(t.handled, 1);
    explicit_bzero(request, sizeof request);
    assert_false(is_in_memory(masked[0]));
    assert_false(is_in_memory(masked[1]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        SERVER_TEST(nothing_of_a_request_stays_in_memory),
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
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
