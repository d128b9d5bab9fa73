/* The guest's agent against a bad host, and the host's side against a bad guest: both are written by hand here. Argument:
 * the agent's program. */
#include "agent_rig.h"

/* ---- a bad host, by hand ---- */

struct raw {
    int fd;
    pid_t pid;
    struct agent_decoder in;
};

static void raw_open(struct raw *raw) {
    *raw = (struct raw){0};
    raw->pid = start_agent(&raw->fd);
}

static void raw_close(struct raw *raw) {
    close(raw->fd);
    agent_decoder_free(&raw->in);
    end_agent(raw->pid);
}

static void raw_write(struct raw *raw, const void *data, size_t len) {
    assert_int_equal(fd_write_all(raw->fd, data, len), 0);
}

static size_t raw_frame(uint8_t *to, uint32_t session, uint32_t id, const char *text) {
    struct agent_frame frame = {
        .kind = AGENT_FRAME_JSON, .session = session, .id = id, .payload = (const uint8_t *)text, .len = strlen(text)};
    agent_frame_header(&frame, to);
    memcpy(to + AGENT_HEADER_SIZE, text, frame.len);
    return AGENT_HEADER_SIZE + frame.len;
}

static void raw_send(struct raw *raw, uint32_t session, uint32_t id, const char *text) {
    uint8_t frame[1024];
    raw_write(raw, frame, raw_frame(frame, session, id, text));
}

/* The next frame, or a failure. */
static struct agent_frame raw_read(struct raw *raw) {
    struct agent_frame frame;
    uint8_t buffer[4096];
    while (agent_decoder_next(&raw->in, &frame) == 0) {
        struct pollfd p = {.fd = raw->fd, .events = POLLIN};
        assert_int_equal(poll(&p, 1, WAIT_MS), 1);
        ssize_t n = read(raw->fd, buffer, sizeof buffer);
        assert_true(n > 0);
        assert_int_equal(agent_decoder_push(&raw->in, buffer, (size_t)n), 0);
    }
    return frame;
}

static void raw_expect(struct raw *raw, uint32_t session, uint32_t id, const char *part) {
    struct agent_frame frame = raw_read(raw);
    assert_int_equal(frame.session, session);
    assert_int_equal(frame.id, id);
    if (!memmem(frame.payload, frame.len, part, strlen(part)))
        print_error("no %s in %.*s\n", part, (int)frame.len, (const char *)frame.payload);
    assert_non_null(memmem(frame.payload, frame.len, part, strlen(part)));
}

#define HELLO "{\"hello\":{\"min\":1,\"max\":1}}"

static void versions_are_agreed_on(void **state) {
    struct raw raw;
    raw_open(&raw);
    raw_send(&raw, 5, 1, "{\"op\":\"health\"}"); /* before any greeting */
    raw_expect(&raw, 5, 0, "\"code\":\"session\"");
    raw_send(&raw, 5, 0, "{\"hello\":{\"min\":2,\"max\":9}}");
    raw_expect(&raw, 5, 0, "\"code\":\"version\"");
    raw_send(&raw, 5, 0, "{\"hello\":{\"min\":0,\"max\":4}}");
    raw_expect(&raw, 5, 0, "\"version\":1");
    raw_send(&raw, 5, 1, "{\"op\":\"health\"}");
    raw_expect(&raw, 5, 1, "\"ok\"");
    raw_send(&raw, 6, 2, "{\"op\":\"health\"}"); /* stale: passed over */
    raw_send(&raw, 5, 3, "{\"op\":\"health\"}");
    raw_expect(&raw, 5, 3, "\"ok\"");
    raw_close(&raw);
}

static void a_new_session_ends_the_old_ones_programs(void **state) {
    struct raw raw;
    raw_open(&raw);
    raw_send(&raw, 5, 0, HELLO);
    raw_expect(&raw, 5, 0, "\"hello\"");
    raw_send(&raw, 5, 1, "{\"op\":\"exec\",\"argv\":[\"sh\",\"-c\",\"echo $$; sleep 1000\"]}");
    struct agent_frame frame = raw_read(&raw);
    assert_int_equal(frame.kind, AGENT_FRAME_DATA);
    char text[16] = "";
    memcpy(text, frame.payload, frame.len < 15 ? frame.len : 15);
    assert_true(is_alive(atoi(text)));
    raw_send(&raw, 9, 0, HELLO);
    raw_expect(&raw, 9, 0, "\"hello\"");
    for (int i = 0; i < 300 && is_alive(atoi(text)); i++)
        usleep(100000);
    assert_false(is_alive(atoi(text)));
    raw_close(&raw);
}

static void garbage_and_half_frames_do_not_stop_it(void **state) {
    struct raw raw;
    uint8_t block[65536], frame[1024];
    raw_open(&raw);
    srand(1);
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < sizeof block; i++)
            block[i] = round % 2 ? (uint8_t)rand() : (uint8_t) "\xf5MCa"[i % 4];
        raw_write(&raw, block, sizeof block);
    }
    raw_send(&raw, 5, 0, HELLO);
    raw_expect(&raw, 5, 0, "\"hello\"");
    /* A frame whose rest never comes: after a moment the next one counts. */
    size_t len = raw_frame(frame, 5, 1, "{\"op\":\"health\",\"pad\":\"0123456789\"}");
    struct agent_frame big = {.kind = AGENT_FRAME_JSON, .session = 5, .id = 1, .payload = block, .len = 60000};
    agent_frame_header(&big, frame);
    raw_write(&raw, frame, len);
    raw_send(&raw, 5, 2, "{\"op\":\"health\"}");
    raw_expect(&raw, 5, 2, "\"ok\"");
    /* What is framed well and means nothing. */
    raw_send(&raw, 5, 3, "[]");
    raw_expect(&raw, 5, 3, "bad-request");
    raw_send(&raw, 5, 0, "{\"hello\":7}");
    raw_send(&raw, 5, 4, "{\"op\":\"health\"}");
    raw_expect(&raw, 5, 4, "\"ok\"");
    raw_close(&raw);
}

/* Requests without end, nobody reads the answers: the agent stops to take them, and goes on when it is read. */
static void a_flood_of_requests_is_held_up(void **state) {
    struct raw raw;
    uint8_t frame[1024];
    raw_open(&raw);
    raw_send(&raw, 5, 0, HELLO);
    raw_expect(&raw, 5, 0, "\"hello\"");
    fcntl(raw.fd, F_SETFL, O_NONBLOCK);
    unsigned sent = 0;
    /* Until the channel is full for a while, in whole frames. */
    for (int idle = 0; idle < 10 && sent < 200000;) {
        struct pollfd p = {.fd = raw.fd, .events = POLLOUT};
        size_t len = raw_frame(frame, 5, sent + 1, "{\"op\":\"none\"}");
        ssize_t n = poll(&p, 1, 100) == 1 ? write(raw.fd, frame, len) : -1;
        if (n > 0 && (size_t)n < len) {
            fcntl(raw.fd, F_SETFL, 0);
            sent++;
            break; /* the rest goes below, while the answers are read */
        }
        idle = n > 0 ? 0 : idle + 1;
        sent += n > 0;
    }
    assert_true(sent > 100 && sent < 200000);
    fcntl(raw.fd, F_SETFL, 0);
    struct agent_frame answer = raw_read(&raw);
    assert_int_equal(answer.id, 1);
    raw_close(&raw);
}

/* ---- a bad guest, by hand: the host's side against what we write ---- */

struct bad_guest {
    struct rig rig;
    int fd;
    struct agent_decoder in;
    uint32_t session;
};

static void bad_open(struct bad_guest *g) {
    int pair[2];
    struct err err = {0};
    *g = (struct bad_guest){0};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    g->fd = pair[1];
    assert_int_equal(loop_new(&g->rig.loop, &err), 0);
    struct agent_params params = {
        .loop = g->rig.loop, .fd = pair[0], .interval_ms = 200, .changed = on_changed, .userdata = &g->rig};
    assert_int_equal(agent_new(&params, &g->rig.agent, &err), 0);
}

static void bad_close(struct bad_guest *g) {
    agent_free(g->rig.agent);
    loop_free(g->rig.loop);
    agent_decoder_free(&g->in);
    close(g->fd);
}

/* Return: whether the host sent one. */
static bool bad_read(struct bad_guest *g, struct agent_frame *frame) {
    uint8_t buffer[4096];
    for (int64_t end = time_monotonic_ms() + WAIT_MS; time_monotonic_ms() < end;) {
        if (agent_decoder_next(&g->in, frame) == 1)
            return true;
        ssize_t n = read(g->fd, buffer, sizeof buffer);
        if (n > 0)
            agent_decoder_push(&g->in, buffer, (size_t)n);
        else
            turn(&g->rig);
    }
    return false;
}

static void bad_say(struct bad_guest *g, uint32_t id, const char *text) {
    uint8_t frame[2048];
    size_t len = raw_frame(frame, g->session, id, text);
    assert_int_equal(write(g->fd, frame, len), len);
}

static void bad_greet(struct bad_guest *g, const char *answer) {
    struct agent_frame frame = {0};
    assert_true(bad_read(g, &frame));
    assert_int_equal(frame.id, 0);
    g->session = frame.session;
    bad_say(g, 0, answer);
    for (int i = 0; i < 50 && g->rig.state == AGENT_CONNECTING; i++)
        turn(&g->rig);
}

static void a_guest_of_another_version_is_told(void **state) {
    struct bad_guest g;
    bad_open(&g);
    bad_greet(&g, "{\"error\":{\"code\":\"version\",\"detail\":\"I speak 2\\u001b[31m\"}}");
    assert_int_equal(g.rig.state, AGENT_INCOMPATIBLE);
    assert_string_equal(agent_words(g.rig.agent), "no common version: I speak 2\\x1b[31m");
    bad_close(&g);
    bad_open(&g);
    bad_greet(&g, "{\"hello\":{\"version\":2}}");
    assert_int_equal(g.rig.state, AGENT_CONNECTING);
    struct agent_job *job;
    struct err err = {0};
    static const struct agent_handler handler = {.done = on_done};
    assert_int_equal(agent_begin(g.rig.agent, shell("true"), 0, &handler, NULL, &job, &err), -EAGAIN);
    assert_string_equal(err.code, "agent.not-ready");
    bad_close(&g);
}

/* Return: the id under which the host asks for something that is not its health. */
static uint32_t bad_request_id(struct bad_guest *g, const char *part) {
    struct agent_frame frame;
    while (bad_read(g, &frame))
        if (memmem(frame.payload, frame.len, part, strlen(part)))
            return frame.id;
    assert_true(false);
    return 0;
}

static void answers_of_every_wrong_shape_are_survived(void **state) {
    static const char *const answers[] = {
        "{\"ok\":1}", "{\"ok\":null}", "{}", "{\"error\":[]}", "{\"error\":{}}", "{\"error\":{\"code\":7}}",
        "[]",         "{\"event\":{}}"};
    struct bad_guest g;
    struct call c = {0};
    bad_open(&g);
    bad_greet(&g, "{\"hello\":{\"version\":1,\"agent\":\"x\",\"started_ms\":-5}}");
    assert_int_equal(g.rig.state, AGENT_READY);
    assert_int_equal(agent_started_ms(g.rig.agent), -1);
    begin(&g.rig, &c, json_pack("{s:s}", "op", "network"), 0);
    uint32_t id = bad_request_id(&g, "\"network\"");
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        bad_say(&g, id, answers[i]);
    bad_say(&g, 4711, "{\"ok\":{}}");
    for (int i = 0; i < 5; i++)
        turn(&g.rig);
    assert_false(c.is_done);
    bad_say(&g, id, "{\"error\":{\"code\":\"\\u001b\",\"detail\":\"\\u0007bell\"}}");
    finish(&g.rig, &c);
    assert_string_equal(c.err.code, "guest.\\x1b");
    assert_string_equal(c.err.detail, "the agent in the guest: \\x07bell");
    bad_say(&g, id, "{\"ok\":{}}"); /* once is enough */
    turn(&g.rig);
    call_free(&c);
    bad_close(&g);
}

static void more_than_the_window_ends_the_job(void **state) {
    struct bad_guest g;
    struct call c = {.holds_back = true};
    static uint8_t data[AGENT_DATA_MAX];
    bad_open(&g);
    bad_greet(&g, "{\"hello\":{\"version\":1}}");
    begin(&g.rig, &c, shell("x"), 0);
    uint32_t id = bad_request_id(&g, "\"exec\"");
    fcntl(g.fd, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 1000 && !c.is_done; i++) {
        struct agent_frame frame = {.kind = AGENT_FRAME_DATA,
                                    .stream = AGENT_STDOUT,
                                    .session = g.session,
                                    .id = id,
                                    .payload = data,
                                    .len = sizeof data};
        uint8_t header[AGENT_HEADER_SIZE];
        agent_frame_header(&frame, header);
        assert_int_equal(write(g.fd, header, sizeof header), sizeof header);
        assert_int_equal(write(g.fd, data, sizeof data), sizeof data);
        turn(&g.rig);
    }
    assert_true(c.is_done);
    assert_string_equal(c.err.code, "agent.flow");
    assert_int_equal(c.got[AGENT_STDOUT], AGENT_WINDOW);
    call_free(&c);
    bad_close(&g);
}

/* A guest that writes all the time gets only a share: the loop sleeps between. */
static void a_flooding_guest_is_muted(void **state) {
    struct bad_guest g;
    uint8_t block[65536];
    bad_open(&g);
    bad_greet(&g, "{\"hello\":{\"version\":1}}");
    memset(block, 'x', sizeof block);
    size_t taken = 0;
    int64_t began = time_monotonic_ms(), now = began;
    for (; now - began < 3000; now = time_monotonic_ms()) {
        ssize_t n = write(g.fd, block, sizeof block);
        taken += n > 0 ? (size_t)n : 0;
        assert_true(sd_event_run(loop_event(g.rig.loop), 10 * 1000) >= 0);
    }
    /* Unmuted it would be gigabytes. 512 KiB and the socket's buffer a second, and slack for a slow machine. */
    assert_true(taken < (size_t)(now - began) * 4096 + ((size_t)4 << 20));
    assert_true(taken > (size_t)512 * 1024);
    bad_close(&g);
}

static void a_guest_that_falls_silent_is_noticed(void **state) {
    struct bad_guest g;
    struct call c = {0};
    bad_open(&g);
    bad_greet(&g, "{\"hello\":{\"version\":1}}");
    assert_int_equal(g.rig.state, AGENT_READY);
    begin(&g.rig, &c, shell("x"), 0);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; g.rig.state == AGENT_READY && time_monotonic_ms() < end;)
        turn(&g.rig);
    assert_int_equal(g.rig.state, AGENT_CONNECTING);
    assert_string_equal(agent_words(g.rig.agent), "it does not answer any more");
    assert_string_equal(c.err.code, "agent.gone");
    call_free(&c);
    bad_close(&g);
}

static void an_agent_that_was_started_anew_is_noticed(void **state) {
    struct bad_guest g;
    bad_open(&g);
    bad_greet(&g, "{\"hello\":{\"version\":1}}");
    bad_say(&g, 0, "{\"error\":{\"code\":\"session\",\"detail\":\"not greeted\"}}");
    for (int i = 0; i < 50 && g.rig.state == AGENT_READY; i++)
        turn(&g.rig);
    assert_int_equal(g.rig.state, AGENT_CONNECTING);
    assert_string_equal(agent_words(g.rig.agent), "it was started anew");
    bad_close(&g);
}

/* As one is that was put to rest while somebody wrote to it, and wakes with another host at its channel. */
static void an_agent_that_waits_for_the_rest_of_a_frame_is_reached(void **state) {
    struct rig rig = {0};
    struct err err = {0};
    static const uint8_t payload[AGENT_DATA_MAX];
    uint8_t begun[AGENT_HEADER_SIZE + 8] = {0};
    struct agent_frame frame = {
        .kind = AGENT_FRAME_DATA, .session = 7, .id = 7, .payload = payload, .len = AGENT_DATA_MAX};
    int fd;
    assert_int_equal(loop_new(&rig.loop, &err), 0);
    rig.pid = start_agent(&fd);
    agent_frame_header(&frame, begun);
    assert_int_equal(write(fd, begun, sizeof begun), sizeof begun);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct agent_params params = {.loop = rig.loop, .fd = fd, .changed = on_changed, .userdata = &rig};
    assert_int_equal(agent_new(&params, &rig.agent, &err), 0);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; rig.state != AGENT_READY && time_monotonic_ms() < end;)
        turn(&rig);
    assert_int_equal(rig.state, AGENT_READY);
    agent_free(rig.agent);
    end_agent(rig.pid);
    loop_free(rig.loop);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    agent_program = argv[1];
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_are_agreed_on),
        cmocka_unit_test(a_new_session_ends_the_old_ones_programs),
        cmocka_unit_test(garbage_and_half_frames_do_not_stop_it),
        cmocka_unit_test(a_flood_of_requests_is_held_up),
        cmocka_unit_test(a_guest_of_another_version_is_told),
        cmocka_unit_test(answers_of_every_wrong_shape_are_survived),
        cmocka_unit_test(more_than_the_window_ends_the_job),
        cmocka_unit_test(a_flooding_guest_is_muted),
        cmocka_unit_test(a_guest_that_falls_silent_is_noticed),
        cmocka_unit_test(an_agent_that_was_started_anew_is_noticed),
        cmocka_unit_test(an_agent_that_waits_for_the_rest_of_a_frame_is_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
