/* The two ends of the guest agent's protocol, for tests: the host's side on a loop, and the agent as a process of its own
 * over a socket pair. */
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent/outbox.h"
#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "cmocka_all.h"

#define WAIT_MS 30000

static const char *agent_program;

static inline pid_t start_agent(int *ret_fd) {
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(pair[1], 3);
        execl(agent_program, agent_program, "--fd", "3", NULL);
        _exit(126);
    }
    close(pair[1]);
    *ret_fd = pair[0];
    return pid;
}

static inline void end_agent(pid_t pid) {
    int status = 0;
    /* It ends with its channel; a sanitizer that found something makes another exit status. */
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- through the host's side ---- */

struct rig {
    struct loop *loop;
    struct agent *agent;
    pid_t pid;
    enum agent_state state;
};

struct call {
    struct agent_job *job;
    json_t *ok;
    struct err err;
    bool is_done, holds_back;
    struct strbuf text[AGENT_STREAMS];
    size_t got[AGENT_STREAMS];
    bool ended[AGENT_STREAMS];
    const char *input; /* what is still to be written */
    size_t input_len;
    bool input_ended;
};

static inline void on_changed(void *userdata, enum agent_state state, const char *words) {
    ((struct rig *)userdata)->state = state;
}

static inline void turn(struct rig *rig) {
    assert_true(sd_event_run(loop_event(rig->loop), 100 * 1000) >= 0);
}

static inline int setup(void **state) {
    struct rig *rig = calloc(1, sizeof *rig);
    struct err err = {0};
    int fd;
    assert_int_equal(loop_new(&rig->loop, &err), 0);
    rig->pid = start_agent(&fd);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct agent_params params = {.loop = rig->loop, .fd = fd, .changed = on_changed, .userdata = rig};
    assert_int_equal(agent_new(&params, &rig->agent, &err), 0);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; rig->state != AGENT_READY && time_monotonic_ms() < end;)
        turn(rig);
    assert_int_equal(rig->state, AGENT_READY);
    *state = rig;
    return 0;
}

static inline int teardown(void **state) {
    struct rig *rig = *state;
    agent_free(rig->agent);
    end_agent(rig->pid);
    loop_free(rig->loop);
    free(rig);
    return 0;
}

static inline void feed(struct call *c) {
    while (c->input_len > 0 && agent_job_window(c->job) > 0) {
        size_t n = agent_job_window(c->job) < c->input_len ? agent_job_window(c->job) : c->input_len;
        assert_int_equal(agent_job_write(c->job, c->input, n), 0);
        c->input += n;
        c->input_len -= n;
    }
    if (c->input_len == 0 && c->input && !c->input_ended) {
        c->input_ended = true;
        assert_int_equal(agent_job_write(c->job, NULL, 0), 0);
    }
}

static inline void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct call *c = userdata;
    assert_false(c->is_done);
    c->got[stream] += len;
    c->ended[stream] = len == 0;
    c->text[stream].max = (size_t)16 << 20;
    strbuf_add(&c->text[stream], len > 0 ? (const char *)data : "", len);
    if (len > 0 && !c->holds_back)
        agent_job_credit(c->job, stream, (uint32_t)len);
}

static inline void on_credit(void *userdata, uint32_t bytes) {
    feed(userdata);
}

static inline void on_done(void *userdata, json_t *ok, const struct err *err) {
    struct call *c = userdata;
    c->is_done = true;
    c->job = NULL;
    c->ok = json_incref(ok);
    if (err)
        c->err = *err;
}

static inline void begin(struct rig *rig, struct call *c, json_t *request, int timeout_ms) {
    static const struct agent_handler handler = {.data = on_data, .credit = on_credit, .done = on_done};
    struct err err = {0};
    assert_non_null(request);
    int r = agent_begin(rig->agent, request, timeout_ms, &handler, c, &c->job, &err);
    if (r < 0)
        print_error("%s\n", err.detail);
    assert_int_equal(r, 0);
}

static inline void finish(struct rig *rig, struct call *c) {
    for (int64_t end = time_monotonic_ms() + WAIT_MS; !c->is_done && time_monotonic_ms() < end;)
        turn(rig);
    if (!c->is_done)
        print_error("it goes on, after: %s\n", c->text[AGENT_STDOUT].data ? c->text[AGENT_STDOUT].data : "");
    assert_true(c->is_done);
}

static inline void call_free(struct call *c) {
    json_decref(c->ok);
    for (int i = 0; i < AGENT_STREAMS; i++)
        strbuf_free(&c->text[i]);
    *c = (struct call){0};
}

static inline void ask(struct rig *rig, struct call *c, json_t *request) {
    *c = (struct call){0};
    begin(rig, c, request, 20000);
    finish(rig, c);
}

/* The answer's object; the test fails when it was refused. */
static inline json_t *ask_ok(struct rig *rig, struct call *c, json_t *request) {
    ask(rig, c, request);
    if (!c->ok)
        print_error("%s: %s\n", c->err.code, c->err.detail);
    assert_non_null(c->ok);
    return c->ok;
}

static inline void ask_refused(struct rig *rig, json_t *request, const char *code) {
    struct call c;
    ask(rig, &c, request);
    assert_null(c.ok);
    assert_string_equal(c.err.code, code);
    call_free(&c);
}

static inline json_t *shell(const char *script) {
    return json_pack("{s:s, s:[s,s,s]}", "op", "exec", "argv", "/bin/sh", "-c", script);
}

static inline json_int_t number(json_t *object, const char *name) {
    json_t *value = json_object_get(object, name);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static inline bool is_alive(pid_t pid) {
    char path[64];
    _cleanup_free_ char *stat = NULL;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    return file_read(path, 4096, &stat, NULL) == 0 && !strstr(stat, ") Z ");
}

static inline void wait_until_dead(struct rig *rig, pid_t pid) {
    for (int64_t end = time_monotonic_ms() + WAIT_MS; is_alive(pid) && time_monotonic_ms() < end;)
        turn(rig);
    assert_false(is_alive(pid));
}
