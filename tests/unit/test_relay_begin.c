/* How connections begin, or do not: the handshake with the VM, joining the browser, refusing it. */
#include "relay_rig.h"

static void early_bytes_are_kept(void **state) {
    struct rig rig;
    struct ends e;
    struct ws_bytes vm = {0}, browser = {0};
    uint64_t seed = 3;
    rig_open(&rig, &slow);
    ws_frame(&vm, 0x82, false, "RFB 003.008\n", 12);
    ws_frame_claim(&vm, 0x82, false, "he", 2, 5);
    ws_random_stream(&browser, &seed, true, 30000, 9000);
    ws_frame_claim(&browser, 0x82, true, "x", 1, 1000);
    struct ws_decoder direct = {.masked = true};
    ws_decode(&direct, browser.data, browser.len);
    rig_dial_well(&rig, &e, 1, vm.data, vm.len);
    rig_join(&rig, &e, browser.data, browser.len);
    read_messages(e.browser, &e.at_browser, 1);
    read_messages(e.vm, &e.at_vm, direct.messages);
    assert_true(e.at_vm.digest == direct.digest);
    send_text(e.vm, "llo");
    read_messages(e.browser, &e.at_browser, 2);
    assert_memory_equal(e.at_browser.message.data, "hello", 5);
    assert_int_equal(relay_join(rig.relay, e.conn, 0, 0, browser.data, (size_t)1024 * 1024 + 1), -E2BIG);
    assert_int_equal(relay_join(rig.relay, e.conn, 0, -1, NULL, 0), -EINVAL);
    ws_bytes_free(&vm);
    ws_bytes_free(&browser);
    ws_decoder_free(&direct);
    ends_close(&e);
    rig_close(&rig);
}

static void an_early_close_is_answered(void **state) {
    struct rig rig;
    struct ends e;
    struct ws_bytes b = {0};
    rig_open(&rig, &slow);
    ws_close_frame(&b, false, 1011, "no display");
    rig_dial_well(&rig, &e, 1, b.data, b.len);
    rig_join(&rig, &e, NULL, 0);
    expect_close(e.browser, &e.at_browser, 1011, "no display");
    ends_close(&e);
    ws_bytes_free(&b);
    ws_close_frame(&b, true, 1001, "");
    rig_dial_well(&rig, &e, 1, NULL, 0);
    rig_join(&rig, &e, b.data, b.len);
    expect_close(e.browser, &e.at_browser, 1001, "");
    ends_close(&e);
    ws_bytes_free(&b);
    rig_close(&rig);
}

static void a_refused_browser_is_told_why(void **state) {
    struct rig rig;
    rig_open(&rig, &slow);
    for (int answer = 0; answer < 2; answer++) {
        int pair[2];
        tcp_pair(pair);
        struct ws_bytes early = {0};
        ws_frame(&early, 0x82, true, "hello", 5);
        assert_int_equal(relay_refuse(rig.relay, pair[1], early.data, early.len, 1013, "The VM is still booting."), 0);
        struct ends e = {.browser = pair[0], .vm = -1};
        expect_close(e.browser, &e.at_browser, 1013, "The VM is still booting.");
        if (answer)
            finish_browser(&e);
        ends_close(&e);
        ws_bytes_free(&early);
    }
    rig_close(&rig);
    assert_int_equal(rig.ended_len, 0);
}

static void a_refused_browser_that_never_answers_is_let_go(void **state) {
    struct rig rig;
    rig_open(&rig, &quick);
    int pair[2];
    tcp_pair(pair);
    assert_int_equal(relay_refuse(rig.relay, pair[1], NULL, 0, 1013, "x"), 0);
    for (int i = 0; i < 200 && relay_count(rig.relay) > 0; i++)
        send_frame(pair[0], 0x82, true, "on and on", 9), poll(NULL, 0, 25);
    assert_int_equal(relay_count(rig.relay), 0);
    close(pair[0]);
    rig_close(&rig);
}

/* What a service on the VM's port may answer, and what is to be said then. NULL: closes at once. */
static void the_handshake_of_a_bad_service_fails_in_words(void **state) {
    static const struct {
        const char *answer, *says;
        int error;
    } bad[] = {
        {"HTTP/1.1 200 OK\r\n\r\n", "200", -EPROTO},
        {"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "401", -EPROTO},
        {"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: "
         "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
         "accept key", -EPROTO},
        {"RFB 003.008\n", "HTTP", -EPROTO},
        {"HTTP/1.1 101 x\r\nUpgr", "does not answer", -ETIMEDOUT},
        {"", "does not answer", -ETIMEDOUT},
        {NULL, "closed", -ECONNRESET},
    };
    struct rig rig;
    rig_open(&rig, &quick);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ends e;
        char request[4096];
        rig_dial(&rig, &e, 9, NULL, request);
        if (bad[i].answer) {
            send_text(e.vm, bad[i].answer);
        } else {
            close(e.vm);
            e.vm = -1;
        }
        rig_wait(&rig, &rig.dialed_len, i + 1);
        struct relay_dialed d = rig_last_dialed(&rig);
        assert_int_equal(d.end, RELAY_END_UPSTREAM_REFUSED);
        assert_int_equal(d.error, bad[i].error);
        assert_true(d.conn == e.conn && d.tag == 9);
        assert_int_equal(d.verdict.code, 1014);
        if (!strstr(d.verdict.reason, bad[i].says))
            fail_msg("\"%s\" does not say \"%s\"", d.verdict.reason, bad[i].says);
        ends_close(&e);
    }
    rig_close(&rig);
}

static void the_handshake_may_come_in_pieces(void **state) {
    struct rig rig;
    struct ends e;
    char request[4096], answer[1024];
    rig_open(&rig, &slow);
    rig_dial(&rig, &e, 9, NULL, request);
    good_answer(request, NULL, answer);
    for (const char *p = answer; *p; p++) {
        send_all(e.vm, p, 1);
        if ((p - answer) % 16 == 0)
            poll(NULL, 0, 1);
    }
    rig_wait(&rig, &rig.dialed_len, 1);
    assert_int_equal(rig_last_dialed(&rig).end, RELAY_END_NONE);
    ends_close(&e);
    relay_cancel(rig.relay, e.conn);
    rig_close(&rig);
}

static void endless_and_dripping_headers_have_an_end(void **state) {
    struct rig rig;
    struct ends e;
    char request[4096];
    rig_open(&rig, &quick);
    rig_dial(&rig, &e, 9, NULL, request);
    send_text(e.vm, "HTTP/1.1 101 x\r\n");
    for (int i = 0; i < 2000; i++)
        if (send(e.vm, "X: yyyy\r\n", 9, MSG_NOSIGNAL) < 0)
            break;
    rig_wait(&rig, &rig.dialed_len, 1);
    assert_int_equal(rig_last_dialed(&rig).error, -EPROTO);
    ends_close(&e);
    rig_dial(&rig, &e, 9, NULL, request);
    int64_t start_ms = time_monotonic_ms();
    for (int i = 0; i < 100 && relay_count(rig.relay) > 0; i++) {
        (void)!send(e.vm, &"HTTP/1.1 101 Switching Protocols and so on and on"[i % 40], 1, MSG_NOSIGNAL);
        poll(NULL, 0, 10);
    }
    rig_wait(&rig, &rig.dialed_len, 2);
    assert_true(time_monotonic_ms() - start_ms < 3 * quick.handshake_timeout_ms);
    ends_close(&e);
    rig_close(&rig);
}

static void a_vm_that_is_not_there_is_told(void **state) {
    struct rig rig;
    rig_open(&rig, &quick);
    struct sockaddr_in address;
    int listener = tcp_listen(&address);
    struct relay_dial dial = {.host = "a", .path = "/"};
    uint64_t conn;
    /* A full accept queue drops the SYN: as silent as a VM that is not there. */
    int full[200];
    assert_int_equal(listen(listener, 0), 0);
    for (int i = 0; i < 4; i++)
        full[i] = tcp_connect(&address);
    assert_int_equal(relay_dial(rig.relay, tcp_connect(&address), &dial, &conn, NULL), 0);
    rig_wait(&rig, &rig.dialed_len, 1);
    struct relay_dialed d = rig_last_dialed(&rig);
    assert_int_equal(d.end, RELAY_END_UPSTREAM_UNREACHABLE);
    assert_int_equal(d.error, -ETIMEDOUT);
    assert_int_equal(d.verdict.code, 1014);
    for (int i = 0; i < 4; i++)
        close(full[i]);
    close(listener);
    assert_int_equal(relay_dial(rig.relay, tcp_connect(&address), &dial, &conn, NULL), 0);
    rig_wait(&rig, &rig.dialed_len, 2);
    d = rig_last_dialed(&rig);
    assert_int_equal(d.end, RELAY_END_UPSTREAM_UNREACHABLE);
    assert_int_equal(d.error, -ECONNREFUSED);
    assert_non_null(strstr(d.verdict.reason, "service"));
    rig_close(&rig);
}

static void the_subprotocol_is_the_vms_choice_of_the_browsers_offer(void **state) {
    static const struct {
        const char *offer, *choice;
        bool good;
    } cases[] = {
        {"binary, base64", "base64", true}, {"binary", "binary", true}, {NULL, NULL, true}, {"", NULL, true},
        {"binary", "base64", false},        {"binary", NULL, false},    {NULL, "x", false},
    };
    struct rig rig;
    rig_open(&rig, &quick);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ends e;
        char request[4096], answer[1024];
        rig_dial(&rig, &e, 9, cases[i].offer, request);
        assert_int_equal(strstr(request, "Sec-WebSocket-Protocol: ") != NULL, cases[i].offer && *cases[i].offer);
        assert_null(strstr(request, "Origin"));
        assert_null(strstr(request, "Extensions"));
        good_answer(request, cases[i].choice, answer);
        send_text(e.vm, answer);
        rig_wait(&rig, &rig.dialed_len, i + 1);
        struct relay_dialed d = rig_last_dialed(&rig);
        assert_int_equal(d.end == RELAY_END_NONE, cases[i].good);
        if (cases[i].good) {
            assert_string_equal(rig.protocol, cases[i].choice ? cases[i].choice : "");
            assert_int_equal(relay_cancel(rig.relay, e.conn), 0);
            expect_close(e.vm, &e.at_vm, 1001, "");
        }
        ends_close(&e);
    }
    struct relay_dial bad = {.host = "a", .path = "/", .protocols = "a\r\nX: y"};
    uint64_t conn;
    int pair[2];
    tcp_pair(pair);
    assert_int_equal(relay_dial(rig.relay, pair[0], &bad, &conn, NULL), -EINVAL);
    assert_int_equal(fcntl(pair[0], F_GETFD) >= 0, 1);
    close(pair[0]);
    close(pair[1]);
    rig_close(&rig);
}

static void what_happens_between_dial_and_join_is_told_at_join(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig_dial_well(&rig, &e, 1, NULL, 0); /* the VM is lost */
    tcp_reset(e.vm);
    e.vm = -1;
    poll(NULL, 0, 20);
    rig_join(&rig, &e, NULL, 0);
    expect_close(e.browser, &e.at_browser, 1011, "lost");
    finish_browser(&e);
    ends_close(&e);
    rig_dial_well(&rig, &e, 5, NULL, 0); /* the session ends */
    relay_close(rig.relay, e.conn, 4408, "Time is up.");
    expect_close(e.vm, &e.at_vm, 1001, "");
    rig_join(&rig, &e, NULL, 0);
    expect_close(e.browser, &e.at_browser, 4408, "Time is up.");
    finish_browser(&e);
    ends_close(&e);
    assert_int_equal(rig_wait_ended(&rig, 2).end, RELAY_END_TOLD);
    rig_close(&rig);
}

static void a_dial_can_be_given_up(void **state) {
    struct rig rig;
    struct ends e;
    char request[4096];
    rig_open(&rig, &slow);
    rig_dial(&rig, &e, 1, NULL, request);
    relay_cancel(rig.relay, e.conn);
    rig_wait(&rig, &rig.dialed_len, 1);
    assert_int_equal(rig_last_dialed(&rig).error, -ECANCELED);
    ends_close(&e);
    rig_dial(&rig, &e, 1, NULL, request);
    relay_close(rig.relay, e.conn, 4408, "Time is up.");
    rig_wait(&rig, &rig.dialed_len, 2);
    assert_int_equal(rig_last_dialed(&rig).end, RELAY_END_TOLD);
    assert_int_equal(rig_last_dialed(&rig).verdict.code, 4408);
    assert_string_equal(rig_last_dialed(&rig).verdict.reason, "Time is up.");
    ends_close(&e);
    rig_close(&rig);
    assert_int_equal(rig.ended_len, 0);
}

/* While the relay keeps plenty of others: a read is then shorter than what is held here. */
static void a_connection_that_is_given_up_forgets_what_it_held(void **state) {
    static uint8_t screen[50000];
    struct rig rig;
    struct ends e;
    struct ws_bytes b = {0};
    struct relay_config config = slow;
    config.plenty_bytes = 1;
    rig_open(&rig, &config);
    ws_frame(&b, 0x82, false, screen, sizeof screen);
    rig_dial_well(&rig, &e, 1, b.data, b.len);
    assert_true(relay_buffered_bytes(rig.relay) > 0);
    assert_int_equal(relay_cancel(rig.relay, e.conn), 0);
    expect_close(e.vm, &e.at_vm, 1001, "");
    send_bytes(e.vm, &b);
    finish_vm(&e);
    ends_close(&e);
    rig_close(&rig);
}

static void join_too_late(struct rig *rig, struct ends *e, uint64_t tag) {
    int pair[2];
    tcp_pair(pair);
    e->browser = pair[0];
    assert_int_equal(relay_join(rig->relay, e->conn, tag, pair[1], NULL, 0), 0);
    expect_close(e->browser, &e->at_browser, 1014, "given up");
    finish_browser(e);
}

static void a_join_that_comes_too_late_is_told(void **state) {
    struct rig rig;
    struct ends e;
    struct relay_config config = slow;
    config.handshake_timeout_ms = 60;
    rig_open(&rig, &config);
    rig_dial_well(&rig, &e, 1, NULL, 0);
    expect_close(e.vm, &e.at_vm, 1001, "");
    finish_vm(&e);
    while (relay_count(rig.relay) > 0)
        poll(NULL, 0, 1);
    join_too_late(&rig, &e, 7);
    assert_true(rig_wait_ended(&rig, 1).tag == 7);
    ends_close(&e);
    rig_dial_well(&rig, &e, 1, NULL, 0); /* the VM is still being seen off */
    expect_close(e.vm, &e.at_vm, 1001, "");
    join_too_late(&rig, &e, 8);
    assert_true(rig_wait_ended(&rig, 2).tag == 8);
    assert_true(rig.ended[1].conn == e.conn);
    finish_vm(&e);
    ends_close(&e);
    rig_close(&rig);
    assert_int_equal(rig.ended_len, 2);
}

static void connections_have_a_maximum(void **state) {
    struct rig rig;
    struct ends e[3];
    struct relay_config config = slow;
    config.max_connections = 2;
    rig_open(&rig, &config);
    rig_connect(&rig, &e[0], 1);
    rig_connect(&rig, &e[1], 1);
    int pair[2];
    tcp_pair(pair);
    struct relay_dial dial = {.host = "a", .path = "/"};
    uint64_t conn = 77;
    struct err err;
    assert_int_equal(relay_dial(rig.relay, pair[0], &dial, &conn, &err), -ENOBUFS);
    assert_int_equal(conn, 77);
    /* That can be told, to a good many at a time. */
    assert_int_equal(relay_refuse(rig.relay, pair[1], NULL, 0, 1014, "All are taken."), 0);
    struct ends full = {.browser = pair[0], .vm = -1};
    expect_close(full.browser, &full.at_browser, 1014, "All are taken.");
    static int told[RELAY_REFUSED_MAX + 1];
    size_t n = 0;
    int r;
    do {
        tcp_pair(pair);
        told[n] = pair[0];
        r = relay_refuse(rig.relay, pair[1], NULL, 0, 1014, "");
    } while (r == 0 && ++n <= RELAY_REFUSED_MAX);
    assert_int_equal(r, -ENOBUFS);
    close(pair[0]);
    close(pair[1]);
    assert_true(n >= RELAY_REFUSED_MAX - 1);
    for (size_t i = 0; i < n; i++)
        close(told[i]);
    ends_close(&full);
    ends_close(&e[0]);
    rig_wait_ended(&rig, 1);
    while (relay_count(rig.relay) > 1)
        poll(NULL, 0, 1);
    rig_connect(&rig, &e[2], 1);
    ends_close(&e[1]);
    ends_close(&e[2]);
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(early_bytes_are_kept),
        cmocka_unit_test(an_early_close_is_answered),
        cmocka_unit_test(a_refused_browser_is_told_why),
        cmocka_unit_test(a_refused_browser_that_never_answers_is_let_go),
        cmocka_unit_test(the_handshake_of_a_bad_service_fails_in_words),
        cmocka_unit_test(the_handshake_may_come_in_pieces),
        cmocka_unit_test(endless_and_dripping_headers_have_an_end),
        cmocka_unit_test(a_vm_that_is_not_there_is_told),
        cmocka_unit_test(the_subprotocol_is_the_vms_choice_of_the_browsers_offer),
        cmocka_unit_test(what_happens_between_dial_and_join_is_told_at_join),
        cmocka_unit_test(a_dial_can_be_given_up),
        cmocka_unit_test(a_connection_that_is_given_up_forgets_what_it_held),
        cmocka_unit_test(a_join_that_comes_too_late_is_told),
        cmocka_unit_test(connections_have_a_maximum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
