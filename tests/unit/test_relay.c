/* How connections begin and end. What happens in between is in test_relay_stream.c. */
#include "relay_rig.h"

static const struct relay_config quick = {
    .threads = 2,
    .handshake_timeout_ms = 500,
    .half_close_ms = 200,
    .linger_ms = 400,
    .dead_after_ms = 500,
    .ping_after_ms = -1,
};

/* With deadlines that only a test that hangs would reach. */
static const struct relay_config slow = {.threads = 2, .ping_after_ms = -1};

/* The browser answers the Close, and the connection ends as it should. */
static void finish_browser(struct ends *e) {
    send_close(e->browser, true, e->at_browser.code ? e->at_browser.code : 1000, "");
    assert_int_equal(read_to_end(e->browser, &e->at_browser), READ_FIN);
    close(e->browser);
    e->browser = -1;
}

static void finish_vm(struct ends *e) {
    send_close(e->vm, false, e->at_vm.code ? e->at_vm.code : 1000, "");
    assert_int_equal(read_to_end(e->vm, &e->at_vm), READ_FIN);
    close(e->vm);
    e->vm = -1;
}

static void expect_close(int fd, struct ws_decoder *d, uint16_t code, const char *reason_has) {
    read_close(fd, d);
    assert_int_equal(d->code, code);
    if (!strstr(d->reason, reason_has))
        fail_msg("\"%s\" does not say \"%s\"", d->reason, reason_has);
    assert_true(strlen(d->reason) <= RELAY_REASON_MAX);
}

static void configuration_is_checked(void **state) {
    static const struct relay_config bad[] = {
        {.threads = 100},
        {.buffer_bytes = 100},
        {.buffer_bytes = (size_t)1 << 30},
        {.linger_ms = -1},
    };
    struct relay_callbacks none = {0};
    struct relay *relay = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(relay_new(&bad[i], &none, NULL, &relay, NULL), -EINVAL);
    assert_null(relay);
    relay_shutdown(NULL, 1012, "", 0);
}

static void messages_go_both_ways(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig_connect(&rig, &e, 7);
    send_frame(e.vm, 0x82, false, "RFB 003.008\n", 12);
    read_messages(e.browser, &e.at_browser, 1);
    assert_memory_equal(e.at_browser.message.data, "RFB 003.008\n", 12);
    send_frame(e.browser, 0x81, true, "h\xc3\xa4llo", 6);
    read_messages(e.vm, &e.at_vm, 1);
    assert_memory_equal(e.at_vm.message.data, "h\xc3\xa4llo", 6);
    send_close(e.browser, true, 1000, "bye");
    expect_close(e.browser, &e.at_browser, 1000, "");
    expect_close(e.vm, &e.at_vm, 1000, "bye");
    finish_vm(&e);
    assert_int_equal(read_to_end(e.browser, &e.at_browser), READ_FIN);
    close(e.browser);
    e.browser = -1;
    struct relay_ended ended = rig_wait_ended(&rig, 1);
    assert_int_equal(ended.end, RELAY_END_BROWSER_CLOSED);
    assert_int_equal(ended.code, 1000);
    assert_true(ended.tag == 7 && ended.conn == e.conn);
    assert_int_equal(ended.from_upstream_bytes, 14 + 4);
    assert_int_equal(ended.from_browser_bytes, 12 + 11);
    assert_int_equal(rig_count(&rig, &rig.why_len), 0);
    ends_close(&e);
    rig_close(&rig);
}

static void the_vms_close_reaches_the_browser(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig_connect(&rig, &e, 1);
    send_frame(e.vm, 0x82, false, "x", 1);
    send_close(e.vm, false, 1011, "no such display");
    expect_close(e.browser, &e.at_browser, 1011, "no such display");
    assert_int_equal(e.at_browser.messages, 1);
    expect_close(e.vm, &e.at_vm, 1011, "");
    finish_browser(&e);
    assert_int_equal(read_to_end(e.vm, &e.at_vm), READ_FIN);
    close(e.vm);
    e.vm = -1;
    assert_int_equal(rig_wait_ended(&rig, 1).end, RELAY_END_UPSTREAM_CLOSED);
    assert_int_equal(rig.why_end, RELAY_END_UPSTREAM_CLOSED);
    ends_close(&e);
    rig_close(&rig);
}

static void a_close_without_a_code_stays_one(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig_connect(&rig, &e, 1);
    send_frame(e.vm, 0x88, false, "", 0);
    expect_close(e.browser, &e.at_browser, 0, "");
    expect_close(e.vm, &e.at_vm, 0, "");
    send_frame(e.browser, 0x88, true, "", 0);
    ends_close(&e);
    rig_close(&rig);
}

/* Ways in which a VM can go away, and what the browser must be told. `start` is sent before. */
enum death { DEATH_FIN, DEATH_RESET };

static void vm_dies(const struct ws_bytes *start, enum death death, uint16_t code, enum relay_end end,
                    size_t messages) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &quick);
    rig_connect(&rig, &e, 1);
    send_all(e.vm, start->data, start->len);
    if (death == DEATH_FIN)
        shutdown(e.vm, SHUT_WR);
    else
        tcp_reset(e.vm);
    expect_close(e.browser, &e.at_browser, code, "VM");
    assert_int_equal(e.at_browser.messages, messages);
    finish_browser(&e);
    if (death == DEATH_FIN) {
        read_close(e.vm, &e.at_vm);
        assert_int_equal(read_to_end(e.vm, &e.at_vm), READ_FIN);
        close(e.vm);
    }
    e.vm = -1;
    struct relay_ended ended = rig_wait_ended(&rig, 1);
    assert_int_equal(ended.end, end);
    assert_int_equal(ended.code, code);
    ends_close(&e);
    rig_close(&rig);
}

static void a_lost_vm_is_told_whatever_it_was_sending(void **state) {
    static uint8_t big[100000];
    for (int death = DEATH_FIN; death <= DEATH_RESET; death++) {
        struct ws_bytes start = {0};
        vm_dies(&start, death, 1011, RELAY_END_UPSTREAM_LOST, 0);
        ws_frame(&start, 0x82, false, "whole", 5);
        vm_dies(&start, death, 1011, RELAY_END_UPSTREAM_LOST, 1);
        ws_add(&start, "\x82", 1); /* within a header */
        vm_dies(&start, death, 1011, RELAY_END_UPSTREAM_LOST, 1);
        start.len--;
        ws_frame_claim(&start, 0x82, false, big, 100, 200); /* within a short frame */
        vm_dies(&start, death, 1011, RELAY_END_UPSTREAM_LOST, 1);
        start.len -= 100 + 4;
        ws_frame_claim(&start, 0x82, false, big, sizeof big, 1 << 30); /* within a long one */
        vm_dies(&start, death, 1011, RELAY_END_UPSTREAM_LOST, 1);
        start.len = 0;
        ws_frame(&start, 0x02, false, "part", 4); /* within a message */
        vm_dies(&start, death, 1011, RELAY_END_UPSTREAM_LOST, 0);
        ws_bytes_free(&start);
    }
}

static void a_vm_that_breaks_the_protocol_is_told_and_so_is_the_browser(void **state) {
    static const struct {
        const char *data;
        size_t len;
        uint16_t vm_code;
    } bad[] = {
        {"\x82\x81\x01\x02\x03\x04x", 7, 1002},
        {"\xf2\x01x", 3, 1002},
        {"\x83\x00", 2, 1002},
        {"\x82\x7f\xff", 3, 1002},
        {"\x09\x00", 2, 1002},
        {"\x88\x02\x03\xee", 4, 1002},
        {"\x88\x01x", 3, 1002},
        {"\x81\x01\xff", 3, 1007},
        {"\x80\x00", 2, 1002},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rig rig;
        struct ends e;
        struct ws_bytes start = {0};
        rig_open(&rig, &quick);
        rig_connect(&rig, &e, 1);
        ws_frame(&start, 0x82, false, "good", 4);
        ws_add(&start, bad[i].data, bad[i].len);
        ws_add(&start, "\0\0\0\0\0\0\0\0", 8);
        send_bytes(e.vm, &start);
        expect_close(e.browser, &e.at_browser, 1014, "protocol");
        assert_int_equal(e.at_browser.messages, 1);
        expect_close(e.vm, &e.at_vm, bad[i].vm_code, "");
        finish_browser(&e);
        finish_vm(&e);
        assert_int_equal(rig_wait_ended(&rig, 1).end, RELAY_END_UPSTREAM_PROTOCOL);
        ends_close(&e);
        rig_close(&rig);
    }
}

static void a_browser_that_breaks_the_protocol_is_told_and_so_is_the_vm(void **state) {
    static const struct {
        const char *data;
        size_t len;
    } bad[] = {{"\x82\x01x", 3},
               {"\xc2\x81\1\1\1\1x", 7},
               {"\x8b\x80", 2},
               {"\x82\xff\x80\0\0\0\0\0\0\0\1\1\1\1", 14},
               {"\x80\x80\1\1\1\1", 6}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rig rig;
        struct ends e;
        struct ws_bytes start = {0};
        rig_open(&rig, &quick);
        rig_connect(&rig, &e, 1);
        ws_frame(&start, 0x82, true, "good", 4);
        ws_add(&start, bad[i].data, bad[i].len);
        send_bytes(e.browser, &start);
        expect_close(e.browser, &e.at_browser, 1002, "");
        expect_close(e.vm, &e.at_vm, 1001, "");
        assert_int_equal(e.at_vm.messages, 1);
        finish_browser(&e);
        finish_vm(&e);
        assert_int_equal(rig_wait_ended(&rig, 1).end, RELAY_END_BROWSER_PROTOCOL);
        ends_close(&e);
        rig_close(&rig);
    }
}

static void browser_goes(const struct ws_bytes *start, enum death death, size_t messages) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &quick);
    rig_connect(&rig, &e, 1);
    send_all(e.browser, start->data, start->len);
    if (death == DEATH_FIN)
        shutdown(e.browser, SHUT_WR);
    else
        tcp_reset(e.browser);
    expect_close(e.vm, &e.at_vm, 1001, "");
    assert_int_equal(e.at_vm.messages, messages);
    finish_vm(&e);
    if (death == DEATH_FIN)
        expect_close(e.browser, &e.at_browser, 1001, "");
    else
        e.browser = -1;
    assert_int_equal(rig_wait_ended(&rig, 1).end, RELAY_END_BROWSER_LOST);
    ends_close(&e);
    rig_close(&rig);
}

static void a_lost_browser_is_told_to_the_vm(void **state) {
    for (int death = DEATH_FIN; death <= DEATH_RESET; death++) {
        struct ws_bytes start = {0};
        browser_goes(&start, death, 0);
        ws_frame(&start, 0x82, true, "whole", 5);
        browser_goes(&start, death, 1);
        ws_frame_claim(&start, 0x82, true, "half", 4, 10000);
        browser_goes(&start, death, 1);
        ws_bytes_free(&start);
    }
}

static void fin_one_way_is_not_the_end_of_the_other(void **state) {
    struct rig rig;
    struct ends e;
    struct relay_config config = slow;
    config.half_close_ms = 1000;
    rig_open(&rig, &config);
    rig_connect(&rig, &e, 1);
    shutdown(e.vm, SHUT_WR);
    poll(NULL, 0, 50);
    for (size_t i = 1; i <= 5; i++) {
        send_frame(e.browser, 0x82, true, "still", 5);
        read_messages(e.vm, &e.at_vm, i);
    }
    assert_false(readable(e.browser, 50));
    expect_close(e.browser, &e.at_browser, 1011, "VM");
    finish_browser(&e);
    ends_close(&e);
    rig_connect(&rig, &e, 1);
    shutdown(e.browser, SHUT_WR);
    poll(NULL, 0, 50);
    for (size_t i = 1; i <= 5; i++) {
        send_frame(e.vm, 0x82, false, "still", 5);
        read_messages(e.browser, &e.at_browser, i);
    }
    send_close(e.vm, false, 1000, "done");
    expect_close(e.browser, &e.at_browser, 1000, "done");
    ends_close(&e);
    rig_close(&rig);
}

/* The browser sends all the time, so that there is unread input when the connection ends: no reset may follow. */
static void a_close_is_not_lost_to_a_reset(void **state) {
    static uint8_t payload[30000];
    for (int round = 0; round < 20; round++) {
        struct rig rig;
        struct ends e;
        rig_open(&rig, &slow);
        rig_connect(&rig, &e, 1);
        for (int i = 0; i < 60; i++) { /* the VM does not read */
            struct ws_bytes b = {0};
            ws_frame(&b, 0x82, true, payload, sizeof payload);
            (void)!send(e.browser, b.data, b.len, MSG_NOSIGNAL | MSG_DONTWAIT);
            ws_bytes_free(&b);
        }
        assert_int_equal(relay_close(rig.relay, e.conn, 4408, "Time is up."), 0);
        poll(NULL, 0, round);
        expect_close(e.browser, &e.at_browser, 4408, "Time is up.");
        shutdown(e.browser, SHUT_WR);
        assert_int_equal(read_to_end(e.browser, &e.at_browser), READ_FIN);
        ends_close(&e);
        rig_close(&rig);
    }
}

static void relay_close_ends_a_connection_in_words(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig_connect(&rig, &e, 1);
    assert_int_equal(relay_close(rig.relay, e.conn + 1, 4404, "another"), 0);
    assert_int_equal(relay_close(rig.relay, 0, 4404, "none"), 0);
    char long_reason[400];
    for (size_t i = 0; i + 2 < sizeof long_reason; i += 2)
        memcpy(long_reason + i, "ä", 3);
    assert_int_equal(relay_close(rig.relay, e.conn, 4408, long_reason), 0);
    assert_int_equal(relay_close(rig.relay, e.conn, 4404, "too late"), 0);
    expect_close(e.browser, &e.at_browser, 4408, "ä");
    assert_int_equal(strlen(e.at_browser.reason), RELAY_REASON_MAX);
    expect_close(e.vm, &e.at_vm, 1001, "");
    finish_browser(&e);
    finish_vm(&e);
    assert_int_equal(rig_wait_ended(&rig, 1).end, RELAY_END_TOLD);
    assert_int_equal(rig.ended[0].code, 4408);
    assert_int_equal(relay_close(rig.relay, e.conn, 4408, "gone"), 0);
    assert_int_equal(relay_cancel(rig.relay, e.conn), 0);
    ends_close(&e);
    rig_close(&rig);
}

static void a_tag_ends_all_of_its_connections_and_no_other(void **state) {
    struct rig rig;
    struct ends e[6];
    rig_open(&rig, &slow);
    for (size_t i = 0; i < 6; i++)
        rig_connect(&rig, &e[i], i % 2);
    assert_int_equal(relay_close_tag(rig.relay, 1, 1011, "The VM was lost."), 0);
    for (size_t i = 1; i < 6; i += 2) {
        expect_close(e[i].browser, &e[i].at_browser, 1011, "The VM was lost.");
        finish_browser(&e[i]);
        finish_vm(&e[i]);
    }
    rig_wait(&rig, &rig.ended_len, 3);
    for (size_t i = 0; i < 6; i += 2) {
        send_frame(e[i].vm, 0x82, false, "on", 2);
        read_messages(e[i].browser, &e[i].at_browser, 1);
    }
    assert_int_equal(relay_count(rig.relay), 3);
    for (size_t i = 0; i < 6; i++)
        ends_close(&e[i]);
    rig_close(&rig);
}

/* A silent end of either side, where it counts: nobody answers the Close. */
static void an_end_that_nobody_answers_is_bounded(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &quick);
    rig_connect(&rig, &e, 1);
    int64_t start_ms = time_monotonic_ms();
    relay_close(rig.relay, e.conn, 4408, "Time is up.");
    rig_wait_ended(&rig, 1);
    int64_t took_ms = time_monotonic_ms() - start_ms;
    assert_true(took_ms >= 2 * quick.linger_ms - 20 && took_ms < 10 * quick.linger_ms);
    expect_close(e.browser, &e.at_browser, 4408, "Time is up.");
    ends_close(&e);
    rig_close(&rig);
}

static void why_may_choose_the_words(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig.why_says = (struct relay_verdict){1014, "An ebtables rule drops ARP."};
    rig_connect(&rig, &e, 42);
    tcp_reset(e.vm);
    e.vm = -1;
    expect_close(e.browser, &e.at_browser, 1014, "An ebtables rule drops ARP.");
    assert_int_equal(rig.why_len, 1);
    assert_int_equal(rig.why_end, RELAY_END_UPSTREAM_LOST);
    assert_int_equal(rig.why_given.code, 1011);
    finish_browser(&e);
    ends_close(&e);
    rig_close(&rig);
}

static void why_may_take_its_time(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig.why_patience_ms = 2000;
    rig_connect(&rig, &e, 42);
    tcp_reset(e.vm);
    e.vm = -1;
    rig_wait(&rig, &rig.why_len, 1);
    assert_false(readable(e.browser, 50));
    relay_close(rig.relay, e.conn, 1014, "The doctor says so.");
    expect_close(e.browser, &e.at_browser, 1014, "The doctor says so.");
    finish_browser(&e);
    assert_int_equal(rig_wait_ended(&rig, 1).end, RELAY_END_UPSTREAM_LOST);
    assert_int_equal(rig.ended[0].code, 1014);
    ends_close(&e);
    rig.why_patience_ms = 100; /* the doctor says nothing in time */
    rig_connect(&rig, &e, 42);
    tcp_reset(e.vm);
    e.vm = -1;
    expect_close(e.browser, &e.at_browser, 1011, "lost");
    finish_browser(&e);
    ends_close(&e);
    rig.why_patience_ms = 10000; /* the browser does not wait for it */
    rig_connect(&rig, &e, 42);
    tcp_reset(e.vm);
    e.vm = -1;
    rig_wait(&rig, &rig.why_len, 3);
    send_close(e.browser, true, 1000, "");
    expect_close(e.browser, &e.at_browser, 1011, "lost");
    ends_close(&e);
    rig_close(&rig);
}

static void the_browser_is_pinged_when_it_is_still(void **state) {
    struct rig rig;
    struct ends e;
    struct relay_config config = slow;
    config.ping_after_ms = 50;
    config.dead_after_ms = 1000;
    rig_open(&rig, &config);
    rig_connect(&rig, &e, 1);
    for (size_t i = 1; i <= 22; i++) { /* longer than dead_after_ms in all */
        while (e.at_browser.pings < i)
            assert_int_equal(read_once(e.browser, &e.at_browser, RIG_PATIENCE_MS), READ_MORE);
        send_frame(e.browser, 0x8a, true, e.at_browser.last_ping, e.at_browser.last_ping_len);
    }
    /* Its answers do not go to the VM; what the browser says by itself does. */
    send_frame(e.browser, 0x8a, true, "mine", 4);
    send_frame(e.browser, 0x82, true, "x", 1);
    read_messages(e.vm, &e.at_vm, 1);
    assert_int_equal(e.at_vm.pongs, 1);
    assert_int_equal(e.at_vm.pings, 0);
    assert_int_equal(rig_count(&rig, &rig.ended_len), 0);
    /* It answers no more. */
    expect_close(e.browser, &e.at_browser, 1001, "answer");
    expect_close(e.vm, &e.at_vm, 1001, "");
    ends_close(&e);
    assert_int_equal(rig_wait_ended(&rig, 1).end, RELAY_END_BROWSER_LOST);
    rig_close(&rig);
}

static void many_pongs_in_one_read_are_all_swallowed(void **state) {
    struct rig rig;
    struct ends e;
    struct relay_config config = slow;
    config.ping_after_ms = 30;
    rig_open(&rig, &config);
    rig_connect(&rig, &e, 1);
    while (e.at_browser.pings < 1)
        assert_int_equal(read_once(e.browser, &e.at_browser, RIG_PATIENCE_MS), READ_MORE);
    struct ws_bytes b = {0};
    for (int i = 0; i < 100; i++) {
        ws_frame(&b, 0x8a, true, e.at_browser.last_ping, e.at_browser.last_ping_len);
        ws_frame(&b, 0x82, true, &i, sizeof i);
    }
    send_bytes(e.browser, &b);
    read_messages(e.vm, &e.at_vm, 100);
    assert_int_equal(e.at_vm.pongs, 0);
    ends_close(&e);
    rig_close(&rig);
}

static void a_peer_that_takes_nothing_is_given_up(void **state) {
    static uint8_t payload[60000];
    for (int stuck_vm = 0; stuck_vm < 2; stuck_vm++) {
        struct rig rig;
        struct ends e;
        rig_open(&rig, &quick);
        rig_connect(&rig, &e, 1);
        int from = stuck_vm ? e.browser : e.vm;
        struct ws_bytes b = {0};
        ws_frame(&b, 0x82, stuck_vm, payload, sizeof payload);
        for (int i = 0; i < 400; i++)
            (void)!send(from, b.data, b.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        ws_bytes_free(&b);
        if (stuck_vm)
            expect_close(e.browser, &e.at_browser, 1011, "lost");
        struct relay_ended ended;
        if (stuck_vm)
            finish_browser(&e);
        ended = rig_wait_ended(&rig, 1);
        assert_int_equal(ended.end, stuck_vm ? RELAY_END_UPSTREAM_LOST : RELAY_END_BROWSER_LOST);
        ends_close(&e);
        rig_close(&rig);
    }
}

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
    assert_int_equal(relay_join(rig.relay, e.conn, 0, browser.data, (size_t)65 * 1024), -E2BIG);
    assert_int_equal(relay_join(rig.relay, e.conn, -1, NULL, 0), -EINVAL);
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
    relay_close_tag(rig.relay, 5, 4408, "Time is up.");
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
    rig_join(&rig, &e, NULL, 0);
    expect_close(e.browser, &e.at_browser, 1014, "given up");
    finish_browser(&e);
    ends_close(&e);
    rig_close(&rig);
    assert_int_equal(rig.ended_len, 0);
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
    assert_int_equal(relay_refuse(rig.relay, pair[0], NULL, 0, 1013, ""), -ENOBUFS);
    close(pair[0]);
    close(pair[1]);
    ends_close(&e[0]);
    rig_wait_ended(&rig, 1);
    while (relay_count(rig.relay) > 1)
        poll(NULL, 0, 1);
    rig_connect(&rig, &e[2], 1);
    ends_close(&e[1]);
    ends_close(&e[2]);
    rig_close(&rig);
}

static void shutdown_tells_everyone(void **state) {
    enum { N = 50 };
    struct rig rig;
    static struct ends e[N];
    struct ends half;
    char request[4096];
    rig_open(&rig, &slow);
    for (size_t i = 0; i < N; i++)
        rig_connect(&rig, &e[i], i);
    rig_dial(&rig, &half, 1, NULL, request);
    /* Most peers do not answer: it goes on without them after the time it was given. */
    int64_t start_ms = time_monotonic_ms();
    relay_shutdown(rig.relay, 1012, "The controller restarts.", 200);
    int64_t took_ms = time_monotonic_ms() - start_ms;
    assert_true(took_ms >= 190 && took_ms < 1500);
    for (size_t i = 0; i < N; i++) {
        expect_close(e[i].browser, &e[i].at_browser, 1012, "The controller restarts.");
        expect_close(e[i].vm, &e[i].at_vm, 1001, "");
        ends_close(&e[i]);
    }
    assert_int_equal(rig.ended_len, N);
    assert_int_equal(rig.dialed_len, N + 1);
    assert_int_equal(rig_last_dialed(&rig).error, -ECANCELED);
    ends_close(&half);
}

static void shutdown_does_not_wait_for_nothing(void **state) {
    struct rig rig;
    rig_open(&rig, &slow);
    int64_t start_ms = time_monotonic_ms();
    relay_shutdown(rig.relay, 1012, "x", 10000);
    assert_true(time_monotonic_ms() - start_ms < 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configuration_is_checked),
        cmocka_unit_test(messages_go_both_ways),
        cmocka_unit_test(the_vms_close_reaches_the_browser),
        cmocka_unit_test(a_close_without_a_code_stays_one),
        cmocka_unit_test(a_lost_vm_is_told_whatever_it_was_sending),
        cmocka_unit_test(a_vm_that_breaks_the_protocol_is_told_and_so_is_the_browser),
        cmocka_unit_test(a_browser_that_breaks_the_protocol_is_told_and_so_is_the_vm),
        cmocka_unit_test(a_lost_browser_is_told_to_the_vm),
        cmocka_unit_test(fin_one_way_is_not_the_end_of_the_other),
        cmocka_unit_test(a_close_is_not_lost_to_a_reset),
        cmocka_unit_test(relay_close_ends_a_connection_in_words),
        cmocka_unit_test(a_tag_ends_all_of_its_connections_and_no_other),
        cmocka_unit_test(an_end_that_nobody_answers_is_bounded),
        cmocka_unit_test(why_may_choose_the_words),
        cmocka_unit_test(why_may_take_its_time),
        cmocka_unit_test(the_browser_is_pinged_when_it_is_still),
        cmocka_unit_test(many_pongs_in_one_read_are_all_swallowed),
        cmocka_unit_test(a_peer_that_takes_nothing_is_given_up),
        cmocka_unit_test(early_bytes_are_kept),
        cmocka_unit_test(an_early_close_is_answered),
        cmocka_unit_test(a_refused_browser_is_told_why),
        cmocka_unit_test(a_refused_browser_that_never_answers_is_let_go),
        cmocka_unit_test(the_handshake_of_a_bad_service_fails_in_words),
        cmocka_unit_test(endless_and_dripping_headers_have_an_end),
        cmocka_unit_test(a_vm_that_is_not_there_is_told),
        cmocka_unit_test(the_subprotocol_is_the_vms_choice_of_the_browsers_offer),
        cmocka_unit_test(what_happens_between_dial_and_join_is_told_at_join),
        cmocka_unit_test(a_dial_can_be_given_up),
        cmocka_unit_test(a_join_that_comes_too_late_is_told),
        cmocka_unit_test(connections_have_a_maximum),
        cmocka_unit_test(shutdown_tells_everyone),
        cmocka_unit_test(shutdown_does_not_wait_for_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
