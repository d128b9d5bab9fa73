/* What of the HTTP room is pure: targets, cookies, the strict head, routing, the table of addresses, problem documents,
 * the WebSocket key. */
#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/ws_accept.h"
#include "cmocka_all.h"
#include "http/port_owner.h"
#include "http/problem.h"
#include "http/remote.h"
#include "http/router.h"
#include "http/strict.h"
#include "http/target.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- target.h ---- */

static void paths_are_split_and_decoded(void **state) {
    struct http_path p;
    assert_int_equal(http_path_parse("/api/vms/vm%2D1%20x/?a=/b/c", &p), 0);
    assert_int_equal(p.segments, 3);
    assert_string_equal(http_path_segment(&p, 0), "api");
    assert_string_equal(http_path_segment(&p, 2), "vm-1 x");
    assert_null(http_path_segment(&p, 3));
    assert_true(p.trailing_slash);
    assert_int_equal(http_path_parse("/", &p), 0);
    assert_int_equal(p.segments, 0);
    assert_true(p.trailing_slash);
    assert_int_equal(http_path_parse("/a+b%e2%82%ac", &p), 0);
    assert_string_equal(http_path_segment(&p, 0), "a+b\xe2\x82\xac"); /* a plus is a plus in a path */
    assert_false(p.trailing_slash);
    assert_int_equal(http_path_parse("/...", &p), 0);
}

static void bad_paths_are_refused(void **state) {
    static const char *const bad[] = {"",     "a",       "?a",    "//",     "/a//b", "/a//",    "/.",         "/..",
                                      "/%2e", "/a/%2E.", "/a%2f", "/a%2Fb", "/a%5c", "/a\\b",   "/%00",       "/a%",
                                      "/a%4", "/a%4g",   "/%0a",  "/%7f",   "/%ff",  "/%c0%af", "/%ed%a0%80", "/%C3"};
    struct http_path p = {.segments = 77};
    for (size_t i = 0; i < COUNT(bad); i++)
        if (http_path_parse(bad[i], &p) != -EINVAL)
            fail_msg("\"%s\" was taken", bad[i]);
    char deep[100] = "", longer[HTTP_PATH_BYTES + 2];
    for (int i = 0; i < 17; i++)
        strcat(deep, "/a");
    assert_int_equal(http_path_parse(deep, &p), -E2BIG);
    memset(longer, 'a', sizeof longer);
    longer[0] = '/';
    longer[HTTP_PATH_BYTES] = '\0';
    assert_int_equal(http_path_parse(longer, &p), -ENAMETOOLONG);
    assert_int_equal(p.segments, 77); /* untouched */
    longer[HTTP_PATH_BYTES - 1] = '\0';
    assert_int_equal(http_path_parse(longer, &p), 0);
}

static void queries(void **state) {
    char v[16];
    assert_int_equal(http_query_get("/a?wait=ready&x=%26%3d&y=a+b&flag&e=", "wait", v, sizeof v), 1);
    assert_string_equal(v, "ready");
    assert_int_equal(http_query_get("/a?wait=ready&x=%26%3d", "x", v, sizeof v), 1);
    assert_string_equal(v, "&=");
    assert_int_equal(http_query_get("/a?y=a+b&", "y", v, sizeof v), 1);
    assert_string_equal(v, "a b");
    assert_int_equal(http_query_get("/a?flag&e=", "flag", v, sizeof v), 1);
    assert_string_equal(v, "");
    assert_int_equal(http_query_get("/a?w%61it=1", "wait", v, sizeof v), 1);
    assert_int_equal(http_query_get("/a?a=b=c", "a", v, sizeof v), 1);
    assert_string_equal(v, "b=c");
    assert_int_equal(http_query_get("/a?b=1", "a", v, sizeof v), 0);
    assert_int_equal(http_query_get("/a", "a", v, sizeof v), 0);
    assert_int_equal(http_query_get("/a?a=1&a=2", "a", v, sizeof v), -EINVAL);
    assert_int_equal(http_query_get("/a?a=%00", "a", v, sizeof v), -EINVAL);
    assert_int_equal(http_query_get("/a?a=0123456789abcdef", "a", v, sizeof v), -ENAMETOOLONG);
    assert_true(http_query_valid("/a?b=%20"));
    assert_false(http_query_valid("/a?b=%2"));
    assert_false(http_query_valid("/a?%00=1"));
    const char *known[] = {"wait", "reason", NULL};
    char unknown[32];
    assert_int_equal(http_query_check("/a?reason=x&wait=", known, unknown, sizeof unknown), 0);
    assert_int_equal(http_query_check("/a?reason=x&wiat=1", known, unknown, sizeof unknown), -EINVAL);
    assert_string_equal(unknown, "wiat");
}

static void cookies(void **state) {
    char v[8];
    assert_int_equal(http_cookie_get("a=1; mc=xyz ; b=2", "mc", v, sizeof v), 1);
    assert_string_equal(v, "xyz");
    assert_int_equal(http_cookie_get("xmc=1;mc=2;mc=3", "mc", v, sizeof v), 1);
    assert_string_equal(v, "2");
    assert_int_equal(http_cookie_get("mc=", "mc", v, sizeof v), 1);
    assert_string_equal(v, "");
    assert_int_equal(http_cookie_get("a=mc=1; mcx=1; mc", "mc", v, sizeof v), 0);
    assert_int_equal(http_cookie_get(NULL, "mc", v, sizeof v), 0);
    assert_int_equal(http_cookie_get("mc=12345678", "mc", v, sizeof v), -ENAMETOOLONG);
}

/* ---- strict.h; the rest of it is tested over the wire in test_http.c ---- */

static void framing_is_told(void **state) {
    struct http_field fields[] = {{"Host", "[::1]:4000"}, {"content-length", "42"}};
    struct http_head head = {"POST", "/a", "HTTP/1.1", fields, 2, 100};
    struct http_framing framing = {0};
    struct http_refusal refusal = {0};
    assert_int_equal(http_strict_check(&head, 1000, 42, &framing, &refusal), 0);
    assert_int_equal(framing.content_length, 42);
    assert_false(framing.chunked);
    assert_int_equal(http_strict_check(&head, 1000, 41, &framing, &refusal), -EPROTO);
    assert_int_equal(refusal.status, 413);
    assert_int_equal(http_strict_check(&head, 99, 42, &framing, &refusal), -EPROTO);
    assert_int_equal(refusal.status, 431);
    fields[1] = (struct http_field){"Transfer-Encoding", "Chunked"};
    assert_int_equal(http_strict_check(&head, 1000, 42, &framing, &refusal), 0);
    assert_true(framing.chunked);
    static const char *const bad[] = {"", "5 ", "+5", "-1", "0x5", "5,5"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        fields[1] = (struct http_field){"Content-Length", bad[i]};
        assert_int_equal(http_strict_check(&head, 1000, 42, &framing, &refusal), -EPROTO);
        assert_string_equal(refusal.code, "http.bad-content-length");
    }
}

static void lists_and_tokens(void **state) {
    assert_true(http_list_has("keep-alive, Upgrade", "upgrade"));
    assert_true(http_list_has("Upgrade\t,x", "upgrade"));
    assert_false(http_list_has("upgraded", "upgrade"));
    assert_false(http_list_has("up grade", "upgrade"));
    assert_false(http_list_has("", "upgrade"));
    assert_true(http_is_token("X-Y_z"));
    assert_false(http_is_token(""));
    assert_false(http_is_token("a b"));
    assert_false(http_is_token("a\xc3"));
    assert_true(http_is_field_value("a\tb \xc3\xa4"));
    assert_false(http_is_field_value("a\rb"));
}

/* ---- router.h ---- */

static const struct http_route routes[] = {
    {.method = "GET", .pattern = "/"},
    {.method = "GET", .pattern = "/api/vms"},
    {.method = "GET", .pattern = "/api/vms/stats", .flags = 7},
    {.method = "GET", .pattern = "/api/vms/{id}"},
    {.method = "DELETE", .pattern = "/api/vms/{id}"},
    {.method = "GET", .pattern = "/api/vms/{id}/events/{n}"},
    {.method = "POST", .pattern = "/api/auth/start"},
    {.method = "GET", .pattern = "/web/"},
};

static struct http_match match;

static int row(const char *method, const char *target) {
    switch (http_router_match(routes, COUNT(routes), method, target, &match)) {
    case HTTP_ROUTE_FOUND:
        return (int)(match.route - routes);
    case HTTP_ROUTE_BAD_PATH:
        return -400;
    case HTTP_ROUTE_UNKNOWN:
        return -404;
    case HTTP_ROUTE_OTHER_METHOD:
        return -405;
    case HTTP_ROUTE_UNKNOWN_METHOD:
        return -501;
    }
    return 0;
}

static void routes_are_found(void **state) {
    assert_int_equal(row("GET", "/"), 0);
    assert_int_equal(row("GET", "/?x"), 0);
    assert_int_equal(row("GET", "/api/vms?x=1"), 1);
    assert_int_equal(row("GET", "/api/vms/stats"), 2);
    assert_int_equal(match.route->flags, 7);
    assert_int_equal(row("GET", "/api/vms/vm%2d1"), 3);
    assert_string_equal(http_match_param(&match, "id"), "vm-1");
    assert_null(http_match_param(&match, "n"));
    assert_int_equal(row("DELETE", "/api/vms/vm-1"), 4);
    assert_int_equal(row("GET", "/api/vms/a/events/b"), 5);
    assert_string_equal(http_match_param(&match, "id"), "a");
    assert_string_equal(http_match_param(&match, "n"), "b");
    assert_int_equal(row("HEAD", "/api/vms/x"), 3);
    assert_int_equal(row("GET", "/web/"), 7);
}

static void routes_are_not_found(void **state) {
    static const char *const unknown[] = {"/api", "/api/vms/", "/api/vms/a/b", "/web", "/API/vms", "/api/vms/a/events"};
    for (size_t i = 0; i < COUNT(unknown); i++)
        assert_int_equal(row("GET", unknown[i]), -404);
    assert_int_equal(row("GET", "/api/../x"), -400);
    assert_int_equal(row("GET", "*"), -400);
    assert_int_equal(row("PUT", "/api/vms/x"), -405);
    assert_string_equal(match.allow, "GET, HEAD, DELETE");
    assert_null(http_match_param(&match, "id"));
    assert_int_equal(row("HEAD", "/api/auth/start"), -405);
    assert_string_equal(match.allow, "POST");
    assert_int_equal(row("DELETE", "/api/vms/stats"), 4); /* a parameter takes what no literal wants */
    assert_int_equal(row("OPTIONS", "/api/vms"), -405);
    assert_int_equal(row("BREW", "/api/vms"), -501);
    assert_int_equal(row("BREW", "/nothing"), -404);
}

/* ---- remote.h ---- */

static struct http_remote *open4(struct http_remotes *table, uint32_t ip, int64_t now_ms) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(ip)};
    return http_remotes_open(table, (struct sockaddr *)&a, now_ms);
}

static struct http_remote *open6(struct http_remotes *table, const char *ip) {
    struct sockaddr_in6 a = {.sin6_family = AF_INET6};
    assert_int_equal(inet_pton(AF_INET6, ip, &a.sin6_addr), 1);
    return http_remotes_open(table, (struct sockaddr *)&a, 0);
}

static void buckets_fill_with_time(void **state) {
    struct http_remotes *table = NULL;
    assert_int_equal(http_remotes_new(4, &table), 0);
    struct http_remote *r = open4(table, 1, 1000);
    for (int i = 0; i < 10; i++)
        assert_int_equal(http_remote_take(r, 5, 10, 1000), 0);
    assert_int_equal(http_remote_take(r, 5, 10, 1000), 1);
    assert_int_equal(http_remote_take(r, 5, 10, 1199), 1);
    assert_int_equal(http_remote_take(r, 5, 10, 1200), 0); /* asking in vain costs nothing */
    assert_int_equal(http_remote_take(r, 5, 10, 1200), 1);
    for (int i = 0; i < 10; i++)
        assert_int_equal(http_remote_take(r, 5, 10, 100000), 0);
    assert_int_equal(http_remote_take(r, 5, 10, 100000), 1); /* never more than the burst */
    for (int i = 0; i < 100; i++)
        assert_int_equal(http_remote_take(r, 0, 0, 100000), 0);
    http_remotes_free(table);
}

static void addresses_are_told_apart_and_forgotten(void **state) {
    struct http_remotes *table = NULL;
    assert_int_equal(http_remotes_new(3, &table), 0);
    struct http_remote *a = open4(table, 0x7f000001, 1), *b = open4(table, 0x7f000002, 2);
    assert_ptr_not_equal(a, b);
    assert_ptr_equal(open4(table, 0x7f000001, 3), a);
    assert_int_equal(http_remote_connections(a), 2);
    struct http_remote *c = open6(table, "2001:db8::1");
    assert_ptr_equal(open6(table, "2001:db8::ffff:1"), c); /* one /64 */
    assert_null(open6(table, "2001:db8:0:1::1"));          /* full of the living */
    assert_int_equal(http_remote_take(b, 1, 1, 10), 0);
    http_remotes_close(b);
    assert_ptr_equal(open4(table, 0x7f000002, 20), b); /* remembered while nobody needs its place */
    assert_int_equal(http_remote_take(b, 1, 1, 20), 1);
    http_remotes_close(b);
    assert_ptr_equal(open4(table, 0x7f000003, 30), b);
    assert_int_equal(http_remote_connections(b), 1);
    struct sockaddr unix_address = {.sa_family = AF_UNIX};
    assert_null(http_remotes_open(table, &unix_address, 0));
    http_remotes_free(table);
}

/* ---- problem.h ---- */

static void problems_are_json_whatever_is_in_them(void **state) {
    size_t len = 0;
    char *huge = malloc(100000);
    memset(huge, '"', 99999);
    huge[99999] = '\0';
    const char *details[] = {"plain", "quote \" and \\ and \n", "\xff\xfe not utf-8", "\xf0\x9f\x98\x80", huge};
    for (size_t i = 0; i < COUNT(details); i++) {
        _cleanup_free_ char *text = http_problem_json(404, "a.b", NULL, details[i], "", &len);
        assert_non_null(text);
        assert_int_equal(strlen(text), len);
        json_t *json = json_loads(text, 0, NULL);
        assert_non_null(json);
        assert_string_equal(json_string_value(json_object_get(json, "title")), "Not Found");
        assert_string_equal(json_string_value(json_object_get(json, "type")), "about:blank");
        assert_int_equal(json_integer_value(json_object_get(json, "status")), 404);
        assert_null(json_object_get(json, "hint"));
        json_decref(json);
    }
    free(huge);
    _cleanup_free_ char *odd = http_problem_json(400, "a", "t", "\xff", "do", &len);
    assert_string_equal(
        odd, "{\"type\":\"about:blank\",\"title\":\"t\",\"status\":400,\"detail\":\"\\\\xff\",\"code\":\"a\","
             "\"hint\":\"do\"}");
}

/* ---- the rest ---- */

static void websocket_keys(void **state) {
    char accept[WS_ACCEPT_SIZE] = "untouched", key[WS_KEY_LEN + 1];
    assert_int_equal(ws_accept("dGhlIHNhbXBsZSBub25jZQ==", accept), 0); /* RFC 6455, 1.3 */
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    static const char *const bad[] = {"",
                                      "dGhlIHNhbXBsZSBub25jZQ=",
                                      "dGhlIHNhbXBsZSBub25jZQ===",
                                      "dGhlIHNhbXBsZSBub25jZR==",
                                      "dGhlIHNhbXBsZSBub25jZSE=",
                                      "dGhlIHNhbXBsZSBub25jZSEh",
                                      "dGhl IHNhbXBsZSBub25jZQ=",
                                      "dGhlIHNhbXBsZSBub25jZQ\n=",
                                      "************************"};
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_int_equal(ws_accept(bad[i], accept), -EINVAL);
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_int_equal(ws_key_new(key), 0);
    assert_int_equal(ws_accept(key, accept), 0);
}

static void a_ports_owner_is_found(void **state) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    struct port_owner owner = {0};
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    assert_int_equal(port_owner_find(ntohs(a.sin_port), &owner), -ENOENT); /* bound, but nobody listens */
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(port_owner_find(ntohs(a.sin_port), &owner), 0);
    assert_int_equal(owner.pid, getpid());
    assert_string_equal(owner.name, "test_http_parts");
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paths_are_split_and_decoded),
        cmocka_unit_test(bad_paths_are_refused),
        cmocka_unit_test(queries),
        cmocka_unit_test(cookies),
        cmocka_unit_test(framing_is_told),
        cmocka_unit_test(lists_and_tokens),
        cmocka_unit_test(routes_are_found),
        cmocka_unit_test(routes_are_not_found),
        cmocka_unit_test(buckets_fill_with_time),
        cmocka_unit_test(addresses_are_told_apart_and_forgotten),
        cmocka_unit_test(problems_are_json_whatever_is_in_them),
        cmocka_unit_test(websocket_keys),
        cmocka_unit_test(a_ports_owner_is_found),
    };
    return cmocka_run_group_tests_name("http_parts", tests, NULL, NULL);
}
