#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmocka_all.h"
#include "relay/handshake.h"

/* The example of RFC 6455 section 1.3. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#define GOOD                                                                                                           \
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " ACCEPT   \
    "\r\n"

static int judge(const char *text, const char *protocols, struct handshake_answer *ret) {
    struct err err = {0};
    int r = handshake_judge(text, strlen(text), ACCEPT, protocols, ret, &err);
    if (r == -EPROTO)
        assert_true(strlen(err.detail) > 10);
    return r;
}

static void a_request_says_what_the_rfc_asks_for(void **state) {
    char text[HANDSHAKE_REQUEST_MAX];
    struct handshake_request r = {.host = "192.168.0.2:6080", .path = "/websockify?a=b", .key = KEY};
    int len = handshake_build(&r, text, NULL);
    assert_int_equal(len, strlen(text));
    assert_string_equal(text, "GET /websockify?a=b HTTP/1.1\r\nHost: 192.168.0.2:6080\r\nUpgrade: websocket\r\n"
                              "Connection: Upgrade\r\nSec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n\r\n");
    r.protocols = "binary, base64";
    r.origin = "https://a.example";
    handshake_build(&r, text, NULL);
    assert_non_null(strstr(text, "\r\nSec-WebSocket-Protocol: binary, base64\r\n"));
    assert_non_null(strstr(text, "\r\nOrigin: https://a.example\r\n\r\n"));
    r.protocols = " , ";
    handshake_build(&r, text, NULL);
    assert_null(strstr(text, "Protocol"));
}

static void a_request_cannot_be_smuggled(void **state) {
    static const struct handshake_request bad[] = {
        {.host = "a b", .path = "/", .key = KEY},
        {.host = "a\r\nX: y", .path = "/", .key = KEY},
        {.host = "", .path = "/", .key = KEY},
        {.path = "/", .key = KEY},
        {.host = "a", .path = "x", .key = KEY},
        {.host = "a", .path = "/ HTTP/1.1\r\n", .key = KEY},
        {.host = "a", .path = "/#f", .key = KEY},
        {.host = "a", .path = "/\xc3\xa4", .key = KEY},
        {.host = "a", .key = KEY},
        {.host = "a", .path = "/", .key = KEY, .protocols = "a\r\nX: y"},
        {.host = "a", .path = "/", .key = KEY, .protocols = "a b"},
        {.host = "a", .path = "/", .key = KEY, .protocols = "a,(b)"},
        {.host = "a", .path = "/", .key = KEY, .origin = "https://a\r\nX: y"},
    };
    char text[HANDSHAKE_REQUEST_MAX];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = {0};
        assert_int_equal(handshake_build(&bad[i], text, &err), -EINVAL);
        assert_true(strlen(err.detail) > 10);
    }
    char big[HANDSHAKE_REQUEST_MAX + 1];
    memset(big, 'a', sizeof big);
    big[sizeof big - 1] = '\0';
    big[0] = '/';
    struct handshake_request r = {.host = "a", .path = big, .key = KEY};
    assert_int_equal(handshake_build(&r, text, NULL), -EINVAL);
    r.path = "/";
    r.protocols = big + 1;
    assert_int_equal(handshake_build(&r, text, NULL), -EINVAL);
    big[1 + HANDSHAKE_PROTOCOL_SIZE] = '\0';
    assert_int_equal(handshake_build(&r, text, NULL), -EINVAL);
    big[HANDSHAKE_PROTOCOL_SIZE] = '\0';
    assert_true(handshake_build(&r, text, NULL) > 0);
}

static void a_good_answer_is_taken(void **state) {
    struct handshake_answer a;
    assert_int_equal(judge(GOOD "\r\nRFB 003.008", NULL, &a), 0);
    assert_int_equal(a.size, strlen(GOOD) + 2);
    assert_string_equal(a.protocol, "");
    assert_int_equal(judge("HTTP/1.1 101\r\nserver:x\r\nUPGRADE:WebSocket\r\ncOnNeCtIoN: keep-alive , UPGRADE \t\r\n"
                           "sec-websocket-accept: \t" ACCEPT " \r\nSec-WebSocket-Protocol: binary\r\n"
                           "Sec-WebSocket-Extensions: \r\n\r\n",
                           "base64,binary", &a),
                     0);
    assert_string_equal(a.protocol, "binary");
}

static void an_answer_may_come_byte_by_byte(void **state) {
    struct handshake_answer a;
    const char *text = GOOD "\r\n";
    for (size_t len = 0; len < strlen(text); len++)
        assert_int_equal(handshake_judge(text, len, ACCEPT, NULL, &a, NULL), -EAGAIN);
    assert_int_equal(handshake_judge(text, strlen(text), ACCEPT, NULL, &a, NULL), 0);
}

static void a_bad_answer_is_refused(void **state) {
    static const struct {
        const char *text, *protocols;
    } bad[] = {
        {"SSH-2.0-OpenSSH\r\n", NULL},
        {"RFB 003.008\n", NULL},
        {"HTTP/1.0 101 x\r\n\r\n", NULL},
        {"HTTP/1.1 1010 x\r\n\r\n", NULL},
        {"HTTP/1.1 101x\r\n\r\n", NULL},
        {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", NULL},
        {"HTTP/1.1 401 no\r\n\r\n", NULL},
        {"HTTP/1.1 101 x\r\n\r\n", NULL},
        {"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", NULL},
        {"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " ACCEPT "\r\n\r\n", NULL},
        {"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " ACCEPT "\r\n\r\n", NULL},
        {"HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " ACCEPT "\r\n\r\n", NULL},
        {"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
         "S3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
         NULL},
        {GOOD "Sec-WebSocket-Accept: " ACCEPT "\r\n\r\n", NULL},
        {GOOD "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", NULL},
        {GOOD "Sec-WebSocket-Protocol: binary\r\n\r\n", NULL},
        {GOOD "Sec-WebSocket-Protocol: binary\r\n\r\n", "base64"},
        {GOOD "Sec-WebSocket-Protocol: Binary\r\n\r\n", "binary"},
        {GOOD "Sec-WebSocket-Protocol: a, b\r\n\r\n", "a, b"},
        {GOOD "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n\r\n", "a, b"},
        {GOOD "Sec-WebSocket-Protocol: \r\n\r\n", "a, b"},
        {GOOD "\r\n", "binary"},
        {GOOD "no colon\r\n\r\n", NULL},
        {GOOD ": nameless\r\n\r\n", NULL},
        {GOOD "X : y\r\n\r\n", NULL},
        {GOOD " folded: y\r\n\r\n", NULL},
        {GOOD "X: y\nZ: z\r\n\r\n", NULL},
        {GOOD "X: y\rZ: z\r\n\r\n", NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct handshake_answer a;
        int r = judge(bad[i].text, bad[i].protocols, &a);
        if (r != -EPROTO)
            fail_msg("taken (%d): %s", r, bad[i].text);
    }
    struct handshake_answer a;
    static const char nul[] = GOOD "X: \0\r\n\r\n";
    assert_int_equal(handshake_judge(nul, sizeof nul - 1, ACCEPT, NULL, &a, NULL), -EPROTO);
}

static void headers_have_an_end(void **state) {
    static char text[3 * HANDSHAKE_RESPONSE_MAX];
    struct handshake_answer a;
    size_t len = (size_t)sprintf(text, "HTTP/1.1 101 x\r\n");
    while (len + 10 < sizeof text)
        len += (size_t)sprintf(text + len, "X: yyyy\r\n");
    assert_int_equal(handshake_judge(text, HANDSHAKE_RESPONSE_MAX - 1, ACCEPT, NULL, &a, NULL), -EAGAIN);
    assert_int_equal(handshake_judge(text, HANDSHAKE_RESPONSE_MAX, ACCEPT, NULL, &a, NULL), -EPROTO);
    memcpy(text + len, "\r\n", 3);
    assert_int_equal(handshake_judge(text, len + 2, ACCEPT, NULL, &a, NULL), -EPROTO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_says_what_the_rfc_asks_for),
        cmocka_unit_test(a_request_cannot_be_smuggled),
        cmocka_unit_test(a_good_answer_is_taken),
        cmocka_unit_test(an_answer_may_come_byte_by_byte),
        cmocka_unit_test(a_bad_answer_is_refused),
        cmocka_unit_test(headers_have_an_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
