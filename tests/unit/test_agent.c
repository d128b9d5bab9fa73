/* The guest's agent and the host's side of it, as they are meant to be used. Argument: the agent's program. Nothing here
 * needs root; what only root may do is expected to be refused for others. */
#include "agent_rig.h"

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
        "{\"op\":\"random.seed\",\"seed\":\"00\"}",
        "{\"op\":\"random.seed\",\"seed\":\"not hex, and as long as it has to be, or even longer than that\"}",
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

/* ---- a program's $BROWSER ---- */

struct told {
    struct call call; /* first: what on_data() and on_done() take */
    struct strbuf urls;
};

static void on_event(void *userdata, json_t *event) {
    struct told *told = userdata;
    told->urls.max = 65536;
    strbuf_addf(&told->urls, "[%s]", json_string_value(json_object_get(event, "url")));
}

static void browse(struct rig *rig, struct told *told, const char *script) {
    static const struct agent_handler handler = {
        .data = on_data, .event = on_event, .credit = on_credit, .done = on_done};
    *told = (struct told){0};
    assert_int_equal(
        agent_begin(rig->agent,
                    json_pack("{s:s, s:[s,s,s], s:b}", "op", "exec", "argv", "/bin/sh", "-c", script, "browser", 1),
                    20000, &handler, told, &told->call.job, NULL),
        0);
    finish(rig, &told->call);
}

static void told_free(struct told *told) {
    call_free(&told->call);
    strbuf_free(&told->urls);
}

static void a_program_gives_its_browser_addresses(void **state) {
    struct rig *rig = *state;
    struct told told;
    browse(rig, &told,
           "\"$BROWSER\" 'https://a.example/?q=1&r=$(id)'; echo $? $BROWSER; $BROWSER --new-window https://b.example");
    assert_string_equal(told.urls.data, "[https://a.example/?q=1&r=$(id)][https://b.example]");
    assert_int_equal(number(told.call.ok, "status"), 0);
    assert_true(str_starts(told.call.text[AGENT_STDOUT].data, "0 /tmp/mc-browser-"));
    char folder[40];
    snprintf(folder, sizeof folder, "%.22s", told.call.text[AGENT_STDOUT].data + 2);
    assert_int_equal(access(folder, F_OK), -1); /* nothing stays */
    told_free(&told);
    /* Its last words count, also of a child that it leaves behind. */
    browse(rig, &told, "i=0; while [ $i -lt 40 ]; do $BROWSER x; i=$((i+1)); done");
    assert_int_equal(told.urls.len, 32 * 3);
    told_free(&told);
    browse(rig, &told,
           "$BROWSER \"$(printf 'https://\\377')\"; $BROWSER \"$(head -c 4097 /dev/zero | tr '\\0' x)\"; $BROWSER");
    assert_string_equal(told.urls.data, "[][][]");
    told_free(&told);
    browse(rig, &told, "rm -r ${BROWSER%/*}; $BROWSER https://a.example/?SECRET; echo $?");
    assert_null(told.urls.data);
    assert_string_equal(told.call.text[AGENT_STDOUT].data, "127\n");
    told_free(&told);
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
        cmocka_unit_test_setup_teardown(a_program_gives_its_browser_addresses, setup, teardown),
        cmocka_unit_test_setup_teardown(programs_are_bounded_in_number, setup, teardown),
        cmocka_unit_test_setup_teardown(files_stay_within_the_list, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
