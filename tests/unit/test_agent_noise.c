/* A guest whose agent talks without end about what nobody asked: the host's side reads a bounded share of it, whatever
 * the frames belong to. The guest is this test; the frames are well-formed. */
#include "agent/agent.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/time.h"
#include "cmocka_all.h"

#define WAIT_MS 30000
#define FLOOD_MS 2500
/* The host takes 512 KiB a second of what is of no use. Twice that, what the socket holds, and a piece. */
#define MAX_BYTES_A_MS 1024
#define SLACK_BYTES ((size_t)2 << 20)

struct guest {
    struct loop *loop;
    struct agent *agent;
    int fd;
    struct agent_decoder in;
    uint32_t session;
    bool is_done;
};

static void turn(struct guest *g) {
    assert_true(sd_event_run(loop_event(g->loop), 10 * 1000) >= 0);
}

/* Waits for a frame of the host that holds part. Return: its id. */
static uint32_t await(struct guest *g, const char *part) {
    struct agent_frame frame;
    uint8_t buffer[4096];
    for (int64_t end = time_monotonic_ms() + WAIT_MS; time_monotonic_ms() < end;) {
        while (agent_decoder_next(&g->in, &frame) == 1) {
            g->session = frame.session;
            if (memmem(frame.payload, frame.len, part, strlen(part)))
                return frame.id;
        }
        ssize_t n = read(g->fd, buffer, sizeof buffer);
        if (n > 0)
            assert_int_equal(agent_decoder_push(&g->in, buffer, (size_t)n), 0);
        else
            turn(g);
    }
    fail_msg("the host did not say %s", part);
    return 0;
}

static size_t make(struct guest *g, uint8_t *to, enum agent_frame_kind kind, uint32_t id, const void *data,
                   size_t len) {
    struct agent_frame frame = {.kind = kind,
                                .stream = kind == AGENT_FRAME_DATA ? AGENT_STDOUT : AGENT_STDIN,
                                .session = g->session,
                                .id = id,
                                .payload = data,
                                .len = len};
    agent_frame_header(&frame, to);
    memcpy(to + AGENT_HEADER_SIZE, data, len);
    return AGENT_HEADER_SIZE + len;
}

static void say(struct guest *g, uint32_t id, const char *text) {
    uint8_t frame[1024];
    size_t len = make(g, frame, AGENT_FRAME_JSON, id, text, strlen(text));
    assert_int_equal(write(g->fd, frame, len), len);
}

static void guest_open(struct guest *g, const char *greeting) {
    int pair[2];
    *g = (struct guest){0};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(loop_new(&g->loop, NULL), 0);
    g->fd = pair[1];
    struct agent_params params = {.loop = g->loop, .fd = pair[0]};
    assert_int_equal(agent_new(&params, &g->agent, NULL), 0);
    assert_int_equal(await(g, "hello"), 0);
    if (greeting)
        say(g, 0, greeting);
}

static void guest_close(struct guest *g) {
    agent_free(g->agent);
    loop_free(g->loop);
    agent_decoder_free(&g->in);
    close(g->fd);
}

/* Sends the frame again and again. Return: whether the host took no more of it than its share. */
static bool is_held_up(struct guest *g, const uint8_t *frame, size_t len) {
    size_t taken = 0, at = 0;
    int64_t began = time_monotonic_ms(), now = began;
    for (; now - began < FLOOD_MS; now = time_monotonic_ms()) {
        for (ssize_t n; (n = write(g->fd, frame + at, len - at)) > 0;) {
            taken += (size_t)n;
            at = (at + (size_t)n) % len;
            if (at == 0 && taken % (64 * 1024) < len)
                break;
        }
        turn(g);
    }
    print_message("%zu kB in %lld ms\n", taken / 1024, (long long)(now - began));
    assert_true(taken > len); /* it is not deaf */
    return taken < (size_t)(now - began) * MAX_BYTES_A_MS + SLACK_BYTES;
}

static void on_done(void *userdata, json_t *ok, const struct err *err) {
    ((struct guest *)userdata)->is_done = true;
}

/* A request that takes no streams, as "health" and "ping" are. */
static uint32_t ask(struct guest *g) {
    static const struct agent_handler handler = {.done = on_done};
    struct agent_job *job;
    for (int i = 0; i < 100 && agent_state(g->agent) != AGENT_READY; i++)
        turn(g);
    assert_int_equal(agent_begin(g->agent, json_pack("{s:s}", "op", "network"), 0, &handler, g, &job, NULL), 0);
    return await(g, "\"network\"");
}

static void output_of_what_has_none(void **state) {
    static uint8_t frame[AGENT_HEADER_SIZE + AGENT_DATA_MAX], data[AGENT_DATA_MAX];
    struct guest g;
    guest_open(&g, "{\"hello\":{\"version\":1}}");
    uint32_t id = ask(&g);
    size_t len = make(&g, frame, AGENT_FRAME_DATA, id, data, sizeof data);
    assert_true(is_held_up(&g, frame, len));
    assert_false(g.is_done);
    guest_close(&g);
}

static void answers_that_are_none(void **state) {
    static const char text[] = "{\"event\":{\"a\":[1,2,3,4,5,6,7,8,9,10]}}";
    uint8_t frame[256];
    struct guest g;
    guest_open(&g, "{\"hello\":{\"version\":1}}");
    uint32_t id = ask(&g);
    size_t len = make(&g, frame, AGENT_FRAME_JSON, id, text, sizeof text - 1);
    assert_true(is_held_up(&g, frame, len));
    assert_false(g.is_done);
    guest_close(&g);
}

static void greetings_that_are_none(void **state) {
    static const char *const texts[] = {"{\"hello\":{\"version\":77}}",
                                        "{\"error\":{\"code\":\"version\",\"detail\":\"x\"}}"};
    uint8_t frame[256];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct guest g;
        guest_open(&g, NULL);
        size_t len = make(&g, frame, AGENT_FRAME_JSON, 0, texts[i], strlen(texts[i]));
        assert_true(is_held_up(&g, frame, len));
        assert_int_not_equal(agent_state(g.agent), AGENT_READY);
        guest_close(&g);
    }
}

/* ---- two at once ---- */

#define LETTERS_FRAMES 2000

struct letters {
    struct guest guest;
    struct agent_job *job;
    uint8_t letter;
    size_t received, wrong;
    bool is_done;
};

static void on_letters(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct letters *l = userdata;
    for (size_t i = 0; i < len; i++)
        l->wrong += data[i] != l->letter;
    l->received += len;
    agent_job_credit(l->job, stream, (uint32_t)len);
}

static void on_letters_done(void *userdata, json_t *ok, const struct err *err) {
    ((struct letters *)userdata)->is_done = true;
}

static void letters_open(struct letters *l, uint8_t letter) {
    static const struct agent_handler handler = {.data = on_letters, .done = on_letters_done};
    *l = (struct letters){.letter = letter};
    guest_open(&l->guest, "{\"hello\":{\"version\":1}}");
    for (int i = 0; i < 100 && agent_state(l->guest.agent) != AGENT_READY; i++)
        turn(&l->guest);
    assert_int_equal(agent_begin(l->guest.agent, json_pack("{s:s}", "op", "letters"), 0, &handler, l, &l->job, NULL),
                     0);
}

/* Both ends of one conversation, in a thread of its own. */
static void *talk_in_letters(void *userdata) {
    struct letters *l = userdata;
    struct guest *g = &l->guest;
    static const size_t len = AGENT_HEADER_SIZE + AGENT_DATA_MAX;
    uint8_t data[AGENT_DATA_MAX], frame[AGENT_HEADER_SIZE + AGENT_DATA_MAX], credits[4096];
    size_t at = 0;
    int sent = 0;
    memset(data, l->letter, sizeof data);
    make(g, frame, AGENT_FRAME_DATA, await(g, "\"letters\""), data, sizeof data);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; !l->is_done && time_monotonic_ms() < end;) {
        for (ssize_t n; sent < LETTERS_FRAMES && (n = write(g->fd, frame + at, len - at)) > 0;) {
            at = (at + (size_t)n) % len;
            sent += at == 0;
        }
        if (l->received == LETTERS_FRAMES * AGENT_DATA_MAX)
            break;
        while (read(g->fd, credits, sizeof credits) > 0) {
        }
        turn(g);
    }
    return NULL;
}

/* VMs that are being made have their agents on workers' threads, others on the loop's. */
static void what_two_threads_hear_is_not_mixed(void **state) {
    struct letters both[2];
    pthread_t thread[2];
    for (int i = 0; i < 2; i++)
        letters_open(&both[i], (uint8_t)('a' + i));
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, talk_in_letters, &both[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(both[i].wrong, 0);
        assert_int_equal(both[i].received, LETTERS_FRAMES * AGENT_DATA_MAX);
        guest_close(&both[i].guest);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_two_threads_hear_is_not_mixed),
        cmocka_unit_test(output_of_what_has_none),
        cmocka_unit_test(answers_that_are_none),
        cmocka_unit_test(greetings_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
