/* The two ends of the guest agent's protocol: the host's side on a loop, and the agent as a process of its own over a
 * socket pair. Argument: the agent's program. Nothing here needs root; what only root may do is expected to be refused
 * for others. */
#include "agent/agent.h"

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

#include "agent/outbox.h"
#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "cmocka_all.h"

#define WAIT_MS 30000

static const char *agent_program;

static pid_t start_agent(int *ret_fd) {
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

static void end_agent(pid_t pid) {
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

static void on_changed(void *userdata, enum agent_state state, const char *words) {
    ((struct rig *)userdata)->state = state;
}

static void turn(struct rig *rig) {
    assert_true(sd_event_run(loop_event(rig->loop), 100 * 1000) >= 0);
}

static int setup(void **state) {
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

static int teardown(void **state) {
    struct rig *rig = *state;
    agent_free(rig->agent);
    end_agent(rig->pid);
    loop_free(rig->loop);
    free(rig);
    return 0;
}

static void feed(struct call *c) {
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

static void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct call *c = userdata;
    assert_false(c->is_done);
    c->got[stream] += len;
    c->ended[stream] = len == 0;
    c->text[stream].max = (size_t)16 << 20;
    strbuf_add(&c->text[stream], len > 0 ? (const char *)data : "", len);
    if (len > 0 && !c->holds_back)
        agent_job_credit(c->job, stream, (uint32_t)len);
}

static void on_credit(void *userdata, uint32_t bytes) {
    feed(userdata);
}

static void on_done(void *userdata, json_t *ok, const struct err *err) {
    struct call *c = userdata;
    c->is_done = true;
    c->job = NULL;
    c->ok = json_incref(ok);
    if (err)
        c->err = *err;
}

static void begin(struct rig *rig, struct call *c, json_t *request, int timeout_ms) {
    static const struct agent_handler handler = {.data = on_data, .credit = on_credit, .done = on_done};
    struct err err = {0};
    assert_non_null(request);
    int r = agent_begin(rig->agent, request, timeout_ms, &handler, c, &c->job, &err);
    if (r < 0)
        print_error("%s\n", err.detail);
    assert_int_equal(r, 0);
}

static void finish(struct rig *rig, struct call *c) {
    for (int64_t end = time_monotonic_ms() + WAIT_MS; !c->is_done && time_monotonic_ms() < end;)
        turn(rig);
    if (!c->is_done)
        print_error("it goes on, after: %s\n", c->text[AGENT_STDOUT].data ? c->text[AGENT_STDOUT].data : "");
    assert_true(c->is_done);
}

static void call_free(struct call *c) {
    json_decref(c->ok);
    for (int i = 0; i < AGENT_STREAMS; i++)
        strbuf_free(&c->text[i]);
    *c = (struct call){0};
}

static void ask(struct rig *rig, struct call *c, json_t *request) {
    *c = (struct call){0};
    begin(rig, c, request, 20000);
    finish(rig, c);
}

/* The answer's object; the test fails when it was refused. */
static json_t *ask_ok(struct rig *rig, struct call *c, json_t *request) {
    ask(rig, c, request);
    if (!c->ok)
        print_error("%s: %s\n", c->err.code, c->err.detail);
    assert_non_null(c->ok);
    return c->ok;
}

static void ask_refused(struct rig *rig, json_t *request, const char *code) {
    struct call c;
    ask(rig, &c, request);
    assert_null(c.ok);
    assert_string_equal(c.err.code, code);
    call_free(&c);
}

static json_t *shell(const char *script) {
    return json_pack("{s:s, s:[s,s,s]}", "op", "exec", "argv", "/bin/sh", "-c", script);
}

static json_int_t number(json_t *object, const char *name) {
    json_t *value = json_object_get(object, name);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

/* ---- facts ---- */

static void health_is_told(void **state) {
    struct rig *rig = *state;
    struct call c;
    json_t *ok = ask_ok(rig, &c, json_pack("{s:s}", "op", "health"));
    assert_true(number(ok, "uptime_s") >= 0);
    assert_true(number(json_object_get(ok, "memory"), "available_bytes") > 0);
    assert_true(number(json_object_get(ok, "root"), "bytes") > 0);
    assert_true(labs((long)(number(ok, "realtime_ms") - time_realtime_ms())) < 60000);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; !agent_health(rig->agent) && time_monotonic_ms() < end;)
        turn(rig);
    assert_non_null(agent_health(rig->agent)); /* asked by itself */
    assert_true(agent_started_ms(rig->agent) > 0);
    assert_true(str_starts(agent_words(rig->agent), "ready: agent "));
    call_free(&c);
}

static json_t *find(json_t *list, const char *name, const char *value) {
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) {
        const char *text = json_string_value(json_object_get(item, name));
        if (text && strcmp(text, value) == 0)
            return item;
    }
    return NULL;
}

static int listen_local(uint16_t *ret_port) {
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(listen(fd, 5), 0);
    getsockname(fd, (struct sockaddr *)&addr, &len);
    *ret_port = ntohs(addr.sin_port);
    return fd;
}

static void the_network_is_told(void **state) {
    struct rig *rig = *state;
    struct call c;
    uint16_t port;
    int fd = listen_local(&port);
    json_t *ok = ask_ok(rig, &c, json_pack("{s:s}", "op", "network"));
    json_t *lo = find(json_object_get(ok, "links"), "name", "lo");
    assert_non_null(lo);
    assert_true(json_is_boolean(json_object_get(lo, "up")));
    assert_true(json_is_array(json_object_get(ok, "addresses")));
    assert_true(json_is_array(json_object_get(ok, "routes")));
    assert_true(json_is_array(json_object_get(ok, "neighbours")));
    assert_true(json_is_string(json_object_get(json_object_get(ok, "resolver"), "text")));
    assert_true(json_is_array(json_object_get(json_object_get(ok, "firewall"), "chains")));
    size_t i;
    json_t *item, *listeners = json_object_get(ok, "listeners");
    bool found = false;
    json_array_foreach(listeners, i, item) if (number(item, "port") == port) {
        found = true;
        assert_string_equal(json_string_value(json_object_get(item, "address")), "127.0.0.1");
        assert_int_equal(number(item, "pid"), getpid());
        assert_string_equal(json_string_value(json_object_get(item, "protocol")), "tcp");
    }
    assert_true(found || json_array_size(listeners) == 64);
    call_free(&c);

    ok = ask_ok(rig, &c, json_pack("{s:s, s:s, s:i}", "op", "connect", "address", "127.0.0.1", "port", port));
    assert_true(json_is_true(json_object_get(ok, "answered")));
    call_free(&c);
    close(fd);
    ok = ask_ok(rig, &c, json_pack("{s:s, s:s, s:i}", "op", "connect", "address", "127.0.0.1", "port", port));
    assert_true(json_is_false(json_object_get(ok, "answered")));
    assert_string_equal(json_string_value(json_object_get(ok, "why")), "Connection refused");
    call_free(&c);
}

static void ping_and_kernel_log_need_root_and_say_so(void **state) {
    struct rig *rig = *state;
    struct call c;
    ask(rig, &c, json_pack("{s:s, s:s}", "op", "ping", "address", "127.0.0.1"));
    if (c.ok)
        assert_true(json_is_boolean(json_object_get(c.ok, "answered")));
    else
        assert_string_equal(c.err.code, "guest.probe.failed");
    call_free(&c);
    ask(rig, &c, json_pack("{s:s, s:i}", "op", "kernel.log", "lines", 5));
    if (c.ok)
        assert_true(json_array_size(json_object_get(c.ok, "lines")) <= 5);
    else
        assert_string_equal(c.err.code, "guest.kernel.log");
    call_free(&c);
}

static void what_is_wrong_is_refused(void **state) {
    struct rig *rig = *state;
    static const char *const requests[] = {
        "{\"op\":\"health\",\"x\":1}",
        "{\"op\":7}",
        "{}",
        "{\"op\":\"kernel.log\",\"lines\":0}",
        "{\"op\":\"kernel.log\",\"lines\":\"5\"}",
        "{\"op\":\"connect\",\"address\":\"::1\",\"port\":1}",
        "{\"op\":\"connect\",\"address\":\"127.0.0.1\",\"port\":70000}",
        "{\"op\":\"ping\"}",
        "{\"op\":\"clock.set\",\"realtime_ms\":5}",
        "{\"op\":\"net.address\",\"link\":\"lo\",\"address\":\"1.2.3.4\"}",
        "{\"op\":\"net.address\",\"link\":\"lo\",\"address\":\"1.2.3.4/33\"}",
        "{\"op\":\"net.route\",\"to\":\"0.0.0.0/0\"}",
        "{\"op\":\"units\",\"names\":[\"--version\"]}",
        "{\"op\":\"units\",\"names\":[1]}",
        "{\"op\":\"unit.log\",\"name\":\"a b.service\"}",
        "{\"op\":\"unit.restart\",\"name\":\"-x.service\"}",
        "{\"op\":\"exec\"}",
        "{\"op\":\"exec\",\"argv\":[]}",
        "{\"op\":\"exec\",\"argv\":[1]}",
        "{\"op\":\"exec\",\"argv\":[\"/bin/true\"],\"env\":{\"a=b\":\"c\"}}",
        "{\"op\":\"exec\",\"argv\":[\"/bin/true\"],\"env\":[]}",
        "{\"op\":\"exec\",\"argv\":[\"/bin/true\"],\"pty\":{\"rows\":0,\"columns\":1}}",
        "{\"op\":\"exec\",\"argv\":[\"/bin/true\"],\"timeout_ms\":0}",
        "{\"op\":\"file.read\",\"path\":\"relative\",\"allow\":[\"relative\"]}",
        "{\"op\":\"file.read\",\"path\":\"/etc/../etc/passwd\",\"allow\":[\"/etc/\"]}",
        "{\"op\":\"file.write\",\"path\":\"/tmp/x\",\"allow\":[\"/tmp/\"],\"mode\":4095}",
        "{\"op\":\"browser.open\",\"url\":\"file:///etc/passwd\"}",
        "{\"op\":\"browser.open\",\"url\":\"--no-sandbox\"}",
        "{\"op\":\"browser.open\",\"url\":\"https://a b\"}",
    };
    static const struct agent_handler handler = {.data = on_data, .done = on_done};
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        struct call c = {0};
        struct err err = {0};
        json_t *request = json_loads(requests[i], 0, NULL);
        assert_non_null(request);
        assert_int_equal(agent_begin(rig->agent, request, 0, &handler, &c, &c.job, &err), 0);
        finish(rig, &c);
        if (c.ok || strcmp(c.err.code, "guest.bad-request") != 0)
            print_error("%s: %s\n", requests[i], c.err.code);
        assert_null(c.ok);
        assert_string_equal(c.err.code, "guest.bad-request");
        call_free(&c);
    }
    ask_refused(rig, json_pack("{s:s}", "op", "format.disk"), "guest.unknown-op");
    ask_refused(rig, json_pack("{s:s, s:s, s:b}", "op", "net.link", "name", "none0", "up", 1), "guest.net.no-link");
}

/* ---- exec ---- */

static void exec_tells_output_and_status(void **state) {
    struct rig *rig = *state;
    struct call c;
    json_t *ok = ask_ok(rig, &c, shell("echo out; echo err >&2; exit 7"));
    assert_int_equal(number(ok, "status"), 7);
    assert_string_equal(c.text[AGENT_STDOUT].data, "out\n");
    assert_string_equal(c.text[AGENT_STDERR].data, "err\n");
    assert_true(c.ended[AGENT_STDOUT] && c.ended[AGENT_STDERR]);
    call_free(&c);
    ok = ask_ok(rig, &c, shell("kill -SEGV $$"));
    assert_int_equal(number(ok, "signal"), SIGSEGV);
    call_free(&c);
    ok = ask_ok(rig, &c, shell("cat; echo \"$HOME|$USER|$LANG|$(pwd)\"")); /* without standard input: its end at once */
    assert_int_equal(number(ok, "status"), 0);
    assert_non_null(strstr(c.text[AGENT_STDOUT].data, "|C.UTF-8|/"));
    call_free(&c);
    ask_refused(rig, json_pack("{s:s, s:[s]}", "op", "exec", "argv", "/no/such"), "guest.exec.failed");
    ask_refused(rig, json_pack("{s:s, s:[s], s:s}", "op", "exec", "argv", "true", "cwd", "/no/such"),
                "guest.exec.failed");
    ask_refused(rig, json_pack("{s:s, s:[s], s:s}", "op", "exec", "argv", "true", "user", "no-such-user"),
                "guest.exec.failed");
    ok = ask_ok(rig, &c,
                json_pack("{s:s, s:[s,s,s], s:{s:s}, s:s}", "op", "exec", "argv", "sh", "-c", "echo $A; pwd", "env",
                          "A", "b c; d", "cwd", "/usr"));
    assert_string_equal(c.text[AGENT_STDOUT].data, "b c; d\n/usr\n");
    call_free(&c);
}

static void exec_streams_ten_megabytes_each_way(void **state) {
    struct rig *rig = *state;
    struct call c = {0};
    const size_t size = (size_t)10 << 20;
    char *data = malloc(size);
    for (size_t i = 0; i < size; i++)
        data[i] = (char)(i * 2654435761U >> 13);
    c.input = data;
    c.input_len = size;
    begin(rig, &c, json_pack("{s:s, s:[s], s:b}", "op", "exec", "argv", "/bin/cat", "stdin", 1), 0);
    feed(&c);
    finish(rig, &c);
    assert_non_null(c.ok);
    assert_int_equal(c.got[AGENT_STDOUT], size);
    assert_memory_equal(c.text[AGENT_STDOUT].data, data, size);
    free(data);
    call_free(&c);
}

/* A reader that takes nothing holds up its own program and nobody else; the agent's memory and the channel stay free. */
static void a_slow_reader_holds_up_only_itself(void **state) {
    struct rig *rig = *state;
    struct call slow = {.holds_back = true}, c;
    begin(rig, &slow, shell("yes"), 0);
    for (int64_t end = time_monotonic_ms() + WAIT_MS;
         slow.got[AGENT_STDOUT] < AGENT_WINDOW && time_monotonic_ms() < end;)
        turn(rig);
    for (int i = 0; i < 5; i++) {
        ask_ok(rig, &c, shell("echo here"));
        assert_string_equal(c.text[AGENT_STDOUT].data, "here\n");
        call_free(&c);
    }
    assert_int_equal(slow.got[AGENT_STDOUT], AGENT_WINDOW);
    agent_job_credit(slow.job, AGENT_STDOUT, 1000);
    for (int64_t end = time_monotonic_ms() + WAIT_MS;
         slow.got[AGENT_STDOUT] < AGENT_WINDOW + 1000 && time_monotonic_ms() < end;)
        turn(rig);
    assert_int_equal(slow.got[AGENT_STDOUT], AGENT_WINDOW + 1000);
    agent_job_signal(slow.job, SIGTERM);
    /* Its output is kept for the reader, for as long as it does not read. */
    agent_job_credit(slow.job, AGENT_STDOUT, (uint32_t)AGENT_WINDOW);
    slow.holds_back = false;
    finish(rig, &slow);
    assert_int_equal(number(slow.ok, "signal"), SIGTERM);
    call_free(&slow);
}

static void wait_for_text(struct rig *rig, struct call *c, const char *text) {
    struct strbuf *out = &c->text[AGENT_STDOUT];
    for (int64_t end = time_monotonic_ms() + WAIT_MS; time_monotonic_ms() < end && !c->is_done;) {
        if (out->data && strstr(out->data, text))
            return;
        turn(rig);
    }
    if (!out->data || !strstr(out->data, text))
        print_error("no \"%s\" in: %s\n", text, out->data ? out->data : "");
    assert_true(out->data && strstr(out->data, text));
}

static void signals_reach_the_whole_group(void **state) {
    struct rig *rig = *state;
    struct call c = {0};
    begin(rig, &c,
          shell("trap 'echo got usr1' USR1; sleep 1000 & until grep -q sleep /proc/$!/comm; do :; done; "
                "echo up; wait; echo still; wait; echo gone"),
          0);
    wait_for_text(rig, &c, "up\n");
    agent_job_signal(c.job, SIGUSR1);
    finish(rig, &c);
    wait_for_text(rig, &c, "got usr1\nstill\ngone\n"); /* the sleep had the signal too */
    call_free(&c);
}

static void what_a_program_leaves_behind_does_not_hold_its_end(void **state) {
    struct rig *rig = *state;
    struct call c;
    char path[64];
    json_t *ok = ask_ok(rig, &c, shell("sleep 1000 & echo $!; exit 3"));
    assert_int_equal(number(ok, "status"), 3);
    snprintf(path, sizeof path, "/proc/%d/stat", atoi(c.text[AGENT_STDOUT].data));
    kill(atoi(c.text[AGENT_STDOUT].data), SIGKILL);
    call_free(&c);
}

static bool is_alive(pid_t pid) {
    char path[64];
    _cleanup_free_ char *stat = NULL;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    return file_read(path, 4096, &stat, NULL) == 0 && !strstr(stat, ") Z ");
}

static void wait_until_dead(struct rig *rig, pid_t pid) {
    for (int64_t end = time_monotonic_ms() + WAIT_MS; is_alive(pid) && time_monotonic_ms() < end;)
        turn(rig);
    assert_false(is_alive(pid));
}

static void cancel_and_timeout_end_the_program(void **state) {
    struct rig *rig = *state;
    struct call c = {0};
    begin(rig, &c, shell("echo $$; sleep 1000"), 0);
    wait_for_text(rig, &c, "\n");
    pid_t pid = atoi(c.text[AGENT_STDOUT].data);
    agent_job_cancel(c.job);
    wait_until_dead(rig, pid);
    assert_false(c.is_done);
    call_free(&c);
    begin(rig, &c, shell("echo $$; sleep 1000"), 300);
    finish(rig, &c);
    assert_string_equal(c.err.code, "guest.timeout");
    wait_until_dead(rig, atoi(c.text[AGENT_STDOUT].data));
    call_free(&c);
}

static void a_terminal_is_one(void **state) {
    struct rig *rig = *state;
    struct call c = {0};
    begin(rig, &c,
          json_pack("{s:s, s:[s,s,s], s:{s:i, s:i, s:s}}", "op", "exec", "argv", "/bin/sh", "-c",
                    "trap 'stty size' WINCH; test -t 0 && test -t 1 && test -t 2 && echo tty $TERM; stty size; "
                    "while :; do sleep 0.1; done",
                    "pty", "rows", 33, "columns", 111, "term", "xterm"),
          0);
    wait_for_text(rig, &c, "tty xterm\r\n33 111\r\n");
    agent_job_resize(c.job, 44, 99);
    wait_for_text(rig, &c, "44 99\r\n");
    assert_int_equal(agent_job_write(c.job, "\3", 1), 0); /* ^C: the terminal makes it a signal */
    finish(rig, &c);
    assert_non_null(c.ok);
    assert_true(json_object_get(c.ok, "signal") ? number(c.ok, "signal") == SIGINT : number(c.ok, "status") == 130);
    call_free(&c);
    c.input = "one\ntwo\n";
    c.input_len = 8;
    begin(rig, &c, json_pack("{s:s, s:[s], s:{s:i, s:i}}", "op", "exec", "argv", "cat", "pty", "rows", 2, "columns", 9),
          0);
    feed(&c);
    finish(rig, &c);
    assert_int_equal(number(c.ok, "status"), 0);
    assert_non_null(strstr(c.text[AGENT_STDOUT].data, "two\r\n"));
    call_free(&c);
}

static void programs_are_bounded_in_number(void **state) {
    struct rig *rig = *state;
    struct call many[12] = {0};
    struct agent_job *job;
    struct err err = {0};
    static const struct agent_handler handler = {.done = on_done};
    for (size_t i = 0; i < 12; i++)
        begin(rig, &many[i], shell("sleep 1000"), 0);
    assert_int_equal(agent_begin(rig->agent, shell("true"), 0, &handler, NULL, &job, &err), -EBUSY);
    assert_string_equal(err.code, "agent.busy");
    for (size_t i = 0; i < 12; i++)
        agent_job_cancel(many[i].job);
    struct call c;
    ask_ok(rig, &c, shell("true"));
    call_free(&c);
}

/* ---- files ---- */

static void files_stay_within_the_list(void **state) {
    struct rig *rig = *state;
    char folder[] = "/tmp/test-agent-XXXXXX", inside[64], link[64], text[64];
    struct call c = {0};
    assert_non_null(mkdtemp(folder));
    snprintf(inside, sizeof inside, "%s/a", folder);
    snprintf(link, sizeof link, "%s/link", folder);
    snprintf(text, sizeof text, "%s/", folder);
    c.input = "content\n";
    c.input_len = 8;
    begin(rig, &c, json_pack("{s:s, s:s, s:[s], s:i}", "op", "file.write", "path", inside, "allow", text, "mode", 0640),
          20000);
    feed(&c);
    finish(rig, &c);
    assert_string_equal(c.err.detail, "");
    call_free(&c);
    struct stat st;
    assert_int_equal(stat(inside, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    ask_ok(rig, &c, json_pack("{s:s, s:s, s:[s]}", "op", "file.read", "path", inside, "allow", inside));
    assert_string_equal(c.text[AGENT_STDOUT].data, "content\n");
    call_free(&c);
    ask_ok(rig, &c,
           json_pack("{s:s, s:s, s:[s], s:i, s:i}", "op", "file.read", "path", inside, "allow", text, "offset", -5,
                     "max", 3));
    assert_string_equal(c.text[AGENT_STDOUT].data, "ten");
    call_free(&c);

    assert_int_equal(symlink("/etc/passwd", link), 0);
    ask_refused(rig, json_pack("{s:s, s:s, s:[s]}", "op", "file.read", "path", link, "allow", text),
                "guest.file.failed");
    ask_refused(rig, json_pack("{s:s, s:s, s:[s]}", "op", "file.read", "path", "/etc/passwd", "allow", text),
                "guest.file.not-allowed");
    ask_refused(rig, json_pack("{s:s, s:s, s:[]}", "op", "file.read", "path", "/etc/passwd", "allow"),
                "guest.file.not-allowed");
    ask_refused(rig, json_pack("{s:s, s:s, s:[s]}", "op", "file.read", "path", folder, "allow", folder),
                "guest.file.failed");
    /* Cancelled: neither a file nor half of one. */
    begin(rig, &c, json_pack("{s:s, s:s, s:[s]}", "op", "file.write", "path", inside, "allow", inside), 0);
    assert_int_equal(agent_job_write(c.job, "half", 4), 0);
    agent_job_cancel(c.job);
    call_free(&c);
    ask_ok(rig, &c, json_pack("{s:s, s:[s,s,s]}", "op", "exec", "argv", "ls", "-A", folder));
    assert_string_equal(c.text[AGENT_STDOUT].data, "a\nlink\n");
    call_free(&c);
    unlink(inside);
    unlink(link);
    rmdir(folder);
}

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
    struct agent_frame frame;
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

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    agent_program = argv[1];
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(health_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(the_network_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(ping_and_kernel_log_need_root_and_say_so, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_wrong_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(exec_tells_output_and_status, setup, teardown),
        cmocka_unit_test_setup_teardown(exec_streams_ten_megabytes_each_way, setup, teardown),
        cmocka_unit_test_setup_teardown(a_slow_reader_holds_up_only_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(signals_reach_the_whole_group, setup, teardown),
        cmocka_unit_test_setup_teardown(what_a_program_leaves_behind_does_not_hold_its_end, setup, teardown),
        cmocka_unit_test_setup_teardown(cancel_and_timeout_end_the_program, setup, teardown),
        cmocka_unit_test_setup_teardown(a_terminal_is_one, setup, teardown),
        cmocka_unit_test_setup_teardown(programs_are_bounded_in_number, setup, teardown),
        cmocka_unit_test_setup_teardown(files_stay_within_the_list, setup, teardown),
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
