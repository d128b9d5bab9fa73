/* What connections carry: that it arrives as it was sent, how much the relay keeps of it, and what is put in between. */
#include "relay_rig.h"

#include <malloc.h>

#include "relay/conn.h"

/* One peer of a differential run: sends a stream in random pieces at random times and reads in random pieces. */
struct player {
    int fd;
    struct ws_bytes out;
    size_t at;
    struct ws_decoder in;
    bool lazy; /* reads little and seldom */
};

static void play_write(struct player *p, uint64_t *seed) {
    size_t n = 1 + (ws_random(seed) % 4 == 0 ? ws_random(seed) % 100 : ws_random(seed) % 200000);
    n = n > p->out.len - p->at ? p->out.len - p->at : n;
    ssize_t sent = n > 0 ? send(p->fd, p->out.data + p->at, n, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    p->at += sent > 0 ? (size_t)sent : 0;
}

static void play_read(struct player *p, uint64_t *seed) {
    static uint8_t buffer[200000];
    if (p->lazy && ws_random(seed) % 8)
        return;
    ssize_t n = recv(p->fd, buffer, 1 + ws_random(seed) % (p->lazy ? 3000 : sizeof buffer), MSG_DONTWAIT);
    if (n > 0)
        ws_decode(&p->in, buffer, (size_t)n);
    if (p->in.error)
        fail_msg("%s", p->in.error);
}

static void differential(uint64_t seed, size_t buffer_bytes, size_t bytes, size_t longest, bool lazy) {
    struct rig rig;
    struct ends e;
    struct relay_config config = slow;
    config.buffer_bytes = buffer_bytes;
    config.ping_after_ms = seed % 2 ? 5 : -1; /* between the messages there may be pings; nobody answers them */
    rig_open(&rig, &config);
    rig_connect(&rig, &e, 1);
    int small = 40000;
    if (seed % 3 == 0)
        setsockopt(e.browser, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    struct player browser = {.fd = e.browser, .lazy = lazy}, vm = {.fd = e.vm, .in.masked = true};
    ws_random_stream(&browser.out, &seed, true, bytes, longest);
    ws_random_stream(&vm.out, &seed, false, bytes, longest);
    struct ws_decoder to_vm = {.masked = true}, to_browser = {0};
    ws_decode(&to_vm, browser.out.data, browser.out.len);
    ws_decode(&to_browser, vm.out.data, vm.out.len);
    int64_t until_ms = time_monotonic_ms() + 20000;
    while ((browser.in.messages < to_browser.messages || vm.in.messages < to_vm.messages) &&
           time_monotonic_ms() < until_ms) {
        play_write(&browser, &seed);
        play_read(&vm, &seed);
        play_write(&vm, &seed);
        play_read(&browser, &seed);
        assert_true(relay_buffered_bytes(rig.relay) <= 2 * (buffer_bytes + 8192));
    }
    assert_int_equal(browser.in.messages, to_browser.messages);
    assert_int_equal(vm.in.messages, to_vm.messages);
    assert_true(browser.in.digest == to_browser.digest);
    assert_true(vm.in.digest == to_vm.digest);
    assert_true(vm.in.controls == to_vm.controls);
    if (config.ping_after_ms < 0)
        assert_true(browser.in.controls == to_browser.controls);
    struct player *players[] = {&browser, &vm};
    for (size_t i = 0; i < 2; i++) {
        ws_bytes_free(&players[i]->out);
        ws_decoder_free(&players[i]->in);
    }
    ws_decoder_free(&to_vm);
    ws_decoder_free(&to_browser);
    ends_close(&e);
    rig_close(&rig);
}

static void random_streams_arrive_as_they_were_sent(void **state) {
    for (uint64_t seed = 0; seed < 6; seed++) {
        differential(seed, 16384, 1500000, 100000, false);
        differential(seed + 100, 65536, 3000000, 400000, false);
    }
}

static void random_streams_arrive_at_a_slow_reader(void **state) {
    for (uint64_t seed = 0; seed < 2; seed++)
        differential(seed, 16384, 400000, 30000, true);
}

/* Sends frames until the relay takes no more. Return: bytes of payload sent; *ret_rest what the last frame lacks. */
static size_t send_until_full(int fd, bool masked, struct ws_bytes *ret_rest) {
    static uint8_t payload[50000];
    size_t total = 0;
    int64_t quiet_since_ms = time_monotonic_ms();
    struct ws_bytes frame = {0};
    ws_frame(&frame, 0x82, masked, payload, sizeof payload);
    size_t at = 0;
    while (time_monotonic_ms() - quiet_since_ms < 100) {
        ssize_t n = send(fd, frame.data + at, frame.len - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n <= 0) {
            poll(NULL, 0, 1);
            continue;
        }
        quiet_since_ms = time_monotonic_ms();
        at += (size_t)n;
        if (at == frame.len) {
            at = 0;
            total += sizeof payload;
        }
    }
    if (at > 0) {
        ws_add(ret_rest, frame.data + at, frame.len - at);
        total += sizeof payload;
    }
    ws_bytes_free(&frame);
    return total;
}

static void a_sender_is_held_back_while_nobody_reads(void **state) {
    struct rig rig;
    struct ends e;
    struct ws_bytes rest[2] = {0};
    struct relay_config config = slow;
    config.threads = 1;
    config.buffer_bytes = 32768;
    rig_open(&rig, &config);
    rig_connect(&rig, &e, 1);
    size_t to_browser = send_until_full(e.vm, false, &rest[0]);
    size_t buffered = relay_buffered_bytes(rig.relay);
    assert_true(buffered > 0 && buffered <= config.buffer_bytes + 4200);
    size_t to_vm = send_until_full(e.browser, true, &rest[1]);
    assert_true(relay_buffered_bytes(rig.relay) <= 2 * (config.buffer_bytes + 4200));
    /* One that is stuck does not hold up others of its thread. */
    struct ends other;
    rig_connect(&rig, &other, 2);
    send_frame(other.vm, 0x82, false, "quick", 5);
    read_messages(other.browser, &other.at_browser, 1);
    ends_close(&other);
    /* It goes on where it stood. */
    read_messages(e.browser, &e.at_browser, to_browser / 50000 - (rest[0].len > 0));
    read_messages(e.vm, &e.at_vm, to_vm / 50000 - (rest[1].len > 0));
    if (rest[0].len > 0)
        send_bytes(e.vm, &rest[0]);
    if (rest[1].len > 0)
        send_bytes(e.browser, &rest[1]);
    read_messages(e.browser, &e.at_browser, to_browser / 50000);
    read_messages(e.vm, &e.at_vm, to_vm / 50000);
    assert_int_equal(relay_buffered_bytes(rig.relay), 0);
    ends_close(&e);
    rig_close(&rig);
}

/* What the relay keeps once it has stopped reading. */
static size_t settled_bytes(struct relay *relay) {
    size_t last = relay_buffered_bytes(relay);
    for (int64_t since_ms = time_monotonic_ms(); time_monotonic_ms() - since_ms < 200; poll(NULL, 0, 5)) {
        size_t now = relay_buffered_bytes(relay);
        if (now != last)
            since_ms = time_monotonic_ms();
        last = now;
    }
    return last;
}

static void together_they_keep_little(void **state) {
    enum { N = 32 };
    struct rig rig;
    struct ends e[N];
    struct relay_config config = slow;
    config.buffer_bytes = (size_t)64 * 1024;
    config.plenty_bytes = (size_t)256 * 1024;
    rig_open(&rig, &config);
    for (size_t i = 0; i < N; i++) {
        struct ws_bytes rest = {0};
        int pair[2], small = 4096;
        rig_dial_well(&rig, &e[i], i, NULL, 0);
        send_until_full(e[i].vm, false, &rest); /* so that there is much to read at once, and nowhere to put it */
        ws_bytes_free(&rest);
        tcp_pair(pair);
        setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        setsockopt(pair[0], SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        e[i].browser = pair[0];
        assert_int_equal(relay_join(rig.relay, e[i].conn, 0, pair[1], NULL, 0), 0);
        assert_true(readable(e[i].browser, RIG_PATIENCE_MS));
    }
    size_t buffered = settled_bytes(rig.relay);
    assert_true(buffered > config.plenty_bytes);
    assert_true(buffered <= config.plenty_bytes + config.buffer_bytes + 4200 + N * (size_t)(16384 + 4200));
    for (size_t i = 0; i < N; i++)
        ends_close(&e[i]);
    rig_close(&rig);
}

static void a_close_fits_into_a_frame_that_has_not_ended(void **state) {
    static uint8_t part[3000000];
    for (int round = 0; round < 3; round++) {
        struct rig rig;
        struct ends e;
        struct ws_bytes b = {0};
        rig_open(&rig, &slow);
        rig_connect(&rig, &e, 1);
        ws_frame_claim(&b, 0x82, false, part, sizeof part, (uint64_t)1 << 40);
        if (round == 1) { /* the browser reads only afterwards */
            (void)!send(e.vm, b.data, b.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        } else {
            for (size_t at = 0; at < b.len; at += 100000) {
                send_all(e.vm, b.data + at, b.len - at < 100000 ? b.len - at : 100000);
                while (read_once(e.browser, &e.at_browser, 0) == READ_MORE) {
                }
            }
            /* The last of it waits until more of the frame comes: a part of a message is of no use to anybody. */
            while (e.at_browser.message.len < sizeof part - 150000)
                assert_int_equal(read_once(e.browser, &e.at_browser, RIG_PATIENCE_MS), READ_MORE);
        }
        ws_bytes_free(&b);
        /* Towards the VM too. */
        ws_frame_claim(&b, 0x82, true, part, 99999, (uint64_t)1 << 40);
        send_bytes(e.browser, &b);
        while (e.at_vm.message.len < 99999 - 4100)
            assert_int_equal(read_once(e.vm, &e.at_vm, RIG_PATIENCE_MS), READ_MORE);
        if (round < 2)
            relay_close(rig.relay, e.conn, 4408, "Time is up.");
        else
            shutdown(e.vm, SHUT_WR);
        read_close(e.browser, &e.at_browser);
        assert_int_equal(e.at_browser.code, round < 2 ? 4408 : 1011);
        assert_true(e.at_browser.message.len > 0 && e.at_browser.messages == 0);
        read_close(e.vm, &e.at_vm);
        assert_int_equal(e.at_vm.messages, 0);
        ends_close(&e);
        rig_close(&rig);
    }
}

/* Much waits in the kernel before the Close, for a browser that reads slowly, slower than linger_ms. */
static void a_slow_browser_gets_its_close(void **state) {
    struct rig rig;
    struct ends e;
    struct ws_bytes rest = {0};
    struct relay_config config = slow;
    config.linger_ms = 200;
    rig_open(&rig, &config);
    rig_connect(&rig, &e, 1);
    int small = 100000; /* so that what is not read is the relay's kernel's to keep */
    setsockopt(e.browser, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    send_until_full(e.vm, false, &rest);
    ws_bytes_free(&rest);
    int64_t start_ms = time_monotonic_ms();
    relay_close(rig.relay, e.conn, 4408, "Time is up.");
    static uint8_t buffer[60000];
    while (!e.at_browser.closed) {
        poll(NULL, 0, 20);
        ssize_t n = recv(e.browser, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0)
            fail_msg("the browser would see 1006: %zd", n);
        ws_decode(&e.at_browser, buffer, (size_t)n);
        /* And it is not silent itself, so a socket closed too early would answer with a reset. */
        uint8_t masked_ping[] = {0x89, 0x80, 1, 2, 3, 4};
        (void)!send(e.browser, masked_ping, sizeof masked_ping, MSG_NOSIGNAL);
    }
    assert_true(time_monotonic_ms() - start_ms > 2 * config.linger_ms); /* else this test shows nothing */
    assert_int_equal(e.at_browser.code, 4408);
    assert_null(e.at_browser.error);
    ends_close(&e);
    rig_close(&rig);
}

/* The page stands still for longer than it would have for an answer. One that never goes on is let go. */
static void a_browser_that_stood_still_gets_its_close(void **state) {
    for (int goes_on = 0; goes_on < 2; goes_on++) {
        struct rig rig;
        struct ends e;
        struct ws_bytes rest = {0};
        struct relay_config config = slow;
        config.linger_ms = goes_on ? 200 : 20;
        rig_open(&rig, &config);
        rig_connect(&rig, &e, 1);
        int small = 100000;
        setsockopt(e.browser, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        send_until_full(e.vm, false, &rest);
        ws_bytes_free(&rest);
        relay_close(rig.relay, e.conn, 4408, "Time is up.");
        if (goes_on) {
            poll(NULL, 0, 5 * config.linger_ms);
            expect_close(e.browser, &e.at_browser, 4408, "Time is up.");
        } else {
            assert_int_equal(rig_wait_ended(&rig, 1).code, 4408);
        }
        ends_close(&e);
        rig_close(&rig);
    }
}

/* Bytes of heap that are in use. */
static size_t heap_bytes(void) {
    return mallinfo2().uordblks;
}

static void an_idle_connection_costs_almost_nothing(void **state) {
    enum { N = 100 };
    struct rig rig;
    static struct ends e[N];
    assert_true(sizeof(struct conn) < 1024);
    rig_open(&rig, &slow);
    size_t before = heap_bytes();
    for (size_t i = 0; i < N; i++) {
        rig_connect(&rig, &e[i], i);
        send_frame(e[i].vm, 0x82, false, "x", 1);
        read_messages(e[i].browser, &e[i].at_browser, 1);
        ws_decoder_free(&e[i].at_browser);
    }
    assert_int_equal(relay_buffered_bytes(rig.relay), 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* their heap is another */
    assert_true(heap_bytes() > before);
    if (heap_bytes() - before > N * (size_t)1200)
        fail_msg("%zu bytes a connection", (heap_bytes() - before) / N);
#endif
    (void)before;
    for (size_t i = 0; i < N; i++)
        ends_close(&e[i]);
    rig_close(&rig);
}

/* Others may call at any time, about connections that are there, begin, end or are gone. */
static void *disturb(void *userdata) {
    struct rig *rig = userdata;
    uint64_t seed = 99;
    for (int i = 0; i < 3000; i++) {
        uint64_t conn = 1 + ws_random(&seed) % 60;
        switch (ws_random(&seed) % 5) {
        case 0:
            relay_close(rig->relay, conn, 4408, "Time is up.");
            break;
        case 1:
            relay_close(rig->relay, conn, 1011, "The VM was lost.");
            break;
        case 2:
            relay_cancel(rig->relay, conn);
            break;
        default:
            (void)relay_count(rig->relay);
            (void)relay_buffered_bytes(rig->relay);
        }
        if (i % 50 == 0)
            poll(NULL, 0, 1);
    }
    return NULL;
}

static void calls_from_other_threads_do_no_harm(void **state) {
    struct rig rig;
    struct relay_config config = slow;
    config.linger_ms = 50;
    config.half_close_ms = 20;
    config.ping_after_ms = 1;
    config.handshake_timeout_ms = 200;
    rig_open(&rig, &config);
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, disturb, &rig), 0);
    for (size_t i = 0; i < 60; i++) {
        struct sockaddr_in address;
        int listener = tcp_listen(&address), pair[2];
        struct relay_dial dial = {.tag = i, .host = "a", .path = "/"};
        uint64_t conn;
        assert_int_equal(relay_dial(rig.relay, tcp_connect(&address), &dial, &conn, NULL), 0);
        int vm = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        char request[4096] = "", answer[1024];
        /* It may have been given up already. */
        if (recv(vm, request, sizeof request - 1, 0) > 0) {
            good_answer(request, NULL, answer);
            (void)!send(vm, answer, strlen(answer), MSG_NOSIGNAL);
        }
        rig_wait(&rig, &rig.dialed_len, (unsigned)i + 1);
        tcp_pair(pair);
        if (rig_last_dialed(&rig).end == RELAY_END_NONE)
            assert_int_equal(relay_join(rig.relay, conn, 0, pair[1], NULL, 0), 0);
        else
            close(pair[1]);
        (void)!send(vm, "\x82\x01x", 3, MSG_NOSIGNAL);
        readable(pair[0], i % 2 ? 1 : 20);
        close(pair[0]);
        close(vm);
        close(listener);
    }
    pthread_join(other, NULL);
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_streams_arrive_as_they_were_sent),
        cmocka_unit_test(random_streams_arrive_at_a_slow_reader),
        cmocka_unit_test(a_sender_is_held_back_while_nobody_reads),
        cmocka_unit_test(together_they_keep_little),
        cmocka_unit_test(a_close_fits_into_a_frame_that_has_not_ended),
        cmocka_unit_test(a_slow_browser_gets_its_close),
        cmocka_unit_test(a_browser_that_stood_still_gets_its_close),
        cmocka_unit_test(an_idle_connection_costs_almost_nothing),
        cmocka_unit_test(calls_from_other_threads_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
