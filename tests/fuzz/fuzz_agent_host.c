/* The host's side against a guest that sends anything: it must not crash, must end each job at most once, and must give
 * out no more than a job's window. Input: a script (agent_script.h). */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent_script.h"

struct watched {
    struct agent_job *job;
    size_t got[AGENT_STREAMS];
    int done;
};

static void check(bool good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "fuzz_agent_host: %s\n", what);
    abort();
}

static void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct watched *w = userdata;
    w->got[stream] += len;
    check(w->done == 0 && w->got[stream] <= AGENT_WINDOW, "more than the window");
}

static void on_credit(void *userdata, uint32_t bytes) {
    struct watched *w = userdata;
    check(agent_job_window(w->job) <= AGENT_WINDOW, "a window that grew");
}

static void on_done(void *userdata, json_t *ok, const struct err *err) {
    struct watched *w = userdata;
    check(++w->done == 1, "ended twice");
    check(ok ? json_is_object(ok) : err && err->errnum && *err->code, "ended with nothing");
}

static void turn(struct loop *loop) {
    while (sd_event_run(loop_event(loop), 0) > 0) {
    }
}

/* The session is random: it is in the host's greeting. */
static uint32_t read_session(int fd) {
    uint8_t buffer[4096];
    struct agent_decoder d = {0};
    struct agent_frame frame = {0};
    ssize_t n = read(fd, buffer, sizeof buffer);
    check(n > 0 && agent_decoder_push(&d, buffer, (size_t)n) == 0 && agent_decoder_next(&d, &frame) == 1,
          "no greeting");
    agent_decoder_free(&d);
    return frame.session;
}

static void send_piece(int fd, const uint8_t *data, size_t len) {
    uint8_t drain[4096];
    while (read(fd, drain, sizeof drain) > 0) {
    }
    if (write(fd, data, len) < 0)
        check(errno == EAGAIN || errno == EPIPE, "write");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct agent_handler streams = {.data = on_data, .credit = on_credit, .done = on_done};
    static const struct agent_handler plain = {.done = on_done}; /* whose output nobody takes */
    static const char hello[] = "{\"hello\":{\"version\":1,\"agent\":\"x\"}}";
    uint8_t piece[AGENT_HEADER_SIZE + SCRIPT_PIECE_MAX], script[64];
    struct watched watched[3] = {0};
    struct agent *agent;
    struct loop *loop;
    int pair[2];
    signal(SIGPIPE, SIG_IGN);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0 && loop_new(&loop, NULL) == 0,
          "set-up");
    struct agent_params params = {.loop = loop, .fd = pair[0]};
    check(agent_new(&params, &agent, NULL) == 0, "agent_new");
    turn(loop);
    uint32_t session = read_session(pair[1]);
    /* One in four begins before the greeting. */
    if (size == 0 || data[size - 1] % 4 != 0) {
        const uint8_t *at = script;
        size_t left = script_add(script, 0, AGENT_FRAME_JSON, 0, 0, hello);
        send_piece(pair[1], piece, script_next(&at, &left, session, piece));
        turn(loop);
        check(agent_state(agent) == AGENT_READY, "not greeted");
        for (int i = 0; i < 3; i++)
            check(agent_begin(agent, json_pack("{s:s}", "op", "x"), 0, i == 2 ? &plain : &streams, &watched[i],
                              &watched[i].job, NULL) == 0,
                  "agent_begin");
    }
    for (size_t len; (len = script_next(&data, &size, session, piece)) > 0;) {
        send_piece(pair[1], piece, len);
        turn(loop);
    }
    agent_free(agent);
    turn(loop);
    for (int i = 0; i < 3; i++)
        check(!watched[i].job || watched[i].done == 1, "a job without an end");
    loop_free(loop);
    close(pair[1]);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const texts[] = {"{\"ok\":{}}",
                                        "{\"error\":{\"code\":\"x\",\"detail\":\"y\"}}",
                                        "some output",
                                        "\x10\0\0",
                                        "{\"event\":{}}",
                                        "{\"hello\":{\"version\":1}}",
                                        "{\"error\":{\"code\":\"session\"}}"};
    size_t len = 0;
    for (unsigned i = 0; i < 2 + number % 7; i++)
        len = script_add(ret, len, (number * 7 + i * 3) % 4, i % 3, (uint8_t)(number + i), texts[(number + i * 5) % 7]);
    ret[len] = (uint8_t)number;
    return len + 1;
}
