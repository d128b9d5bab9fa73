/* How connections end. How they begin is in test_relay_begin.c, what they carry in test_relay_stream.c. */
#include "relay_rig.h"

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

static void fin_within_a_frame_is_the_end_at_once(void **state) {
    struct rig rig;
    struct ends e;
    struct relay_config config = slow;
    config.half_close_ms = 60000;
    rig_open(&rig, &config);
    rig_connect(&rig, &e, 1);
    send_text(e.vm, "\x82\x05x");
    shutdown(e.vm, SHUT_WR);
    expect_close(e.browser, &e.at_browser, 1011, "lost");
    ends_close(&e);
    rig_connect(&rig, &e, 1);
    send_text(e.browser, "\x82\x85x");
    shutdown(e.browser, SHUT_WR);
    expect_close(e.vm, &e.at_vm, 1001, "");
    ends_close(&e);
    rig_close(&rig);
}

static void nothing_follows_a_close(void **state) {
    struct rig rig;
    struct ends e;
    rig_open(&rig, &slow);
    rig_connect(&rig, &e, 1);
    relay_close(rig.relay, e.conn, 4408, "Time is up.");
    read_close(e.browser, &e.at_browser);
    read_close(e.vm, &e.at_vm);
    send_frame(e.vm, 0x82, false, "more", 4);
    send_frame(e.browser, 0x82, true, "more", 4);
    send_close(e.vm, false, 1000, "");
    send_close(e.browser, true, 1000, "");
    /* The decoder fails on what follows a Close. */
    assert_int_equal(read_to_end(e.browser, &e.at_browser), READ_FIN);
    assert_int_equal(read_to_end(e.vm, &e.at_vm), READ_FIN);
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
        /* Until a frame goes out cut: another one behind that would break the protocol. */
        for (int i = 0; i < 400 && send(from, b.data, b.len, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)b.len; i++) {
        }
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
        cmocka_unit_test(fin_within_a_frame_is_the_end_at_once),
        cmocka_unit_test(nothing_follows_a_close),
        cmocka_unit_test(a_close_is_not_lost_to_a_reset),
        cmocka_unit_test(relay_close_ends_a_connection_in_words),
        cmocka_unit_test(an_end_that_nobody_answers_is_bounded),
        cmocka_unit_test(why_may_choose_the_words),
        cmocka_unit_test(why_may_take_its_time),
        cmocka_unit_test(the_browser_is_pinged_when_it_is_still),
        cmocka_unit_test(many_pongs_in_one_read_are_all_swallowed),
        cmocka_unit_test(a_peer_that_takes_nothing_is_given_up),
        cmocka_unit_test(shutdown_tells_everyone),
        cmocka_unit_test(shutdown_does_not_wait_for_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
