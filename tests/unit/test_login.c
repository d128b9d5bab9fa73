/* A login's life with the real agent as a process, a real store and a real vault (guest_rig.h); its tool is a shell. Argument:
 * the agent's program. */
#include "guest_rig.h"
#include "session/login.h"

#define SECRET "pLaNtEd4711"
#define ADDRESS "https://login.example.test/authorize?state=" SECRET

static bool is_at_rest;

bool __wrap_vms_is_at_rest(struct vms *vms, const char *id);
bool __wrap_vms_is_at_rest(struct vms *vms, const char *id) {
    return is_at_rest;
}

/* --- the fixture --- */

struct fixture {
    struct world w;
    struct provider provider;
    struct login *login;
    unsigned begun, again;
    bool is_over;
    struct err err; /* of its end */
};

static void on_begun(void *userdata, const char *session_id) {
    ((struct fixture *)userdata)->begun++;
}

static void on_again(void *userdata, const char *session_id, const char *why) {
    ((struct fixture *)userdata)->again++;
}

static void on_ended(void *userdata, const char *session_id, const struct err *err) {
    struct fixture *f = userdata;
    assert_false(f->is_over);
    f->is_over = true;
    f->err = err ? *err : (struct err){0};
    assert_null(strstr(f->err.detail, SECRET));
    login_free(f->login);
    f->login = NULL;
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    is_at_rest = false;
    world_begin(&f->w);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    login_free(f->login);
    world_end(&f->w);
    free(f);
    return 0;
}

static void set(struct fixture *f, const char *section, const char *key, const char *value) {
    struct err err = {0};
    if (provider_set(&f->provider, section, key, value, &err) < 0)
        fail_msg("%s", err.detail);
}

static void start_login(struct fixture *f, bool is_resumed) {
    static const struct login_owner owner = {.begun = on_begun, .again = on_again, .ended = on_ended};
    struct login_params params = {.loop = f->w.rig.loop,
                                  .vault = f->w.vault,
                                  .provider = &f->provider,
                                  .session_id = "0123456789abcdef0123456789abcdef",
                                  .user = "ann",
                                  .vm_id = "vm-00000000-0000-4000-8000-000000000001",
                                  .is_resumed = is_resumed,
                                  .owner = &owner,
                                  .userdata = f};
    assert_int_equal(login_new(&params, &f->login, NULL), 0);
}

/* script: what the tool does; it has $HOME, and $ADDRESS. */
static void begin_login(struct fixture *f, const char *flow, const char *script, const char *check, bool is_resumed) {
    char words[900], home[128];
    provider_init(&f->provider, "mine");
    set(f, "provider", "title", "Test");
    set(f, "login", "flow", flow);
    snprintf(words, sizeof words, "/bin/sh -c \"%s\"", script);
    set(f, "login", "command", words);
    snprintf(home, sizeof home, "HOME=%s", guest.home);
    set(f, "login", "environment", home);
    set(f, "login", "environment", "ADDRESS=" ADDRESS);
    set(f, "credential", "file", ".tool/one");
    set(f, "credential", "file", ".tool/two 0640");
    snprintf(words, sizeof words, "/bin/sh -c \"%s\"", check);
    set(f, "credential", "check", words);
    set(f, "open-url", "host", "login.example.test");
    start_login(f, is_resumed);
}

/* The login that was just begun is one whose tool goes on when its files are there. */
static void is_done_by_files(struct fixture *f) {
    login_free(f->login);
    set(f, "login", "done", "files");
    start_login(f, false);
}

static void wait_end(struct fixture *f) {
    for (int64_t end = time_monotonic_ms() + WAIT_MS; !f->is_over && time_monotonic_ms() < end;)
        turn(&f->w.rig);
    assert_true(f->is_over);
}

static struct login_view view(struct fixture *f) {
    struct login_view v;
    assert_non_null(f->login);
    login_look(f->login, &v);
    return v;
}

static void wait_url(struct fixture *f) {
    for (int64_t end = time_monotonic_ms() + WAIT_MS; f->login && !view(f).url && time_monotonic_ms() < end;)
        turn(&f->w.rig);
    assert_int_equal(view(f).url_len, strlen(ADDRESS));
    assert_memory_equal(view(f).url, ADDRESS, strlen(ADDRESS));
}

static void touch(const char *name) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s", guest.home, name);
    assert_int_equal(file_write_atomic(path, "x", 1, 0600), 0);
}

#define SAVE "mkdir -p $HOME/.tool; printf " SECRET " >$HOME/.tool/one; printf 22 >$HOME/.tool/two"
#define CONSENT "until [ -e $HOME/consent ]; do sleep 0.05; done"
#define GOOD "grep -q " SECRET " $HOME/.tool/one"

static void vault_has(struct fixture *f, const char *one, const char *two) {
    struct secret text = {0};
    struct bundle_file file;
    struct err err = {0};
    uint64_t version;
    size_t at = 0;
    assert_int_equal(
        vault_open(f->w.vault, "ann", "mine", "vm-00000000-0000-4000-8000-000000000002", &text, &version, &err), 0);
    assert_int_equal(bundle_next(text.data, text.len, &at, &file), 1);
    assert_string_equal(file.file.path, ".tool/one");
    assert_int_equal(file.file.mode, 0600);
    assert_int_equal(file.len, strlen(one));
    assert_memory_equal(file.data, one, file.len);
    assert_int_equal(bundle_next(text.data, text.len, &at, &file), 1);
    assert_string_equal(file.file.path, ".tool/two");
    assert_int_equal(file.file.mode, 0640);
    assert_memory_equal(file.data, two, file.len);
    assert_int_equal(bundle_next(text.data, text.len, &at, &file), 0);
    secret_free(&text);
}

static void ended_well(struct fixture *f) {
    if (f->err.errnum)
        print_error("%s\n", f->err.detail);
    assert_int_equal(f->err.errnum, 0);
    vault_has(f, SECRET, "22");
}

static void ended_with(struct fixture *f, const char *code, const char *words) {
    assert_string_equal(f->err.code, code);
    if (!strstr(f->err.detail, words))
        print_error("%s\n", f->err.detail);
    assert_non_null(strstr(f->err.detail, words));
    struct vault_status status;
    assert_int_equal(vault_look(f->w.vault, &status, NULL), 0);
    assert_int_equal(status.credentials, 0);
}

/* --- the tests --- */

static void a_code_comes_by_the_browser(void **state) {
    struct fixture *f = *state;
    begin_login(f, "authorization-code", "$BROWSER $ADDRESS; " CONSENT "; " SAVE, "sleep 0.3; " GOOD, false);
    wait_url(f);
    assert_int_equal(f->begun, 1);
    assert_false(view(f).takes_code);
    assert_int_equal(login_input(f->login, "x", 1, NULL), -EPROTO);
    assert_false(login_is_done(f->login));
    touch("consent");
    for (int64_t end = time_monotonic_ms() + WAIT_MS;
         f->login && !login_is_done(f->login) && time_monotonic_ms() < end;)
        turn(&f->w.rig);
    assert_non_null(f->login); /* its check takes its time, which is not the user's */
    wait_end(f);
    ended_well(f);
    assert_int_equal(f->again, 0);
}

static void what_goes_wrong_is_said(void **state) {
    struct fixture *f = *state;
    static const struct {
        const char *script, *check, *code, *words;
    } cases[] = {
        {"$BROWSER $ADDRESS; echo error=access_denied " SECRET "; exit 1", "true", "login.tool", "access_denied"},
        {"echo " SECRET " wrong state >&2; exit 1", "true", "login.tool", "wrong state"},
        {"echo " SECRET "; exit 9", "true", "login.tool", "exit status 9"},
        {"kill -9 $$", "true", "login.tool", "signal 9"},
        {"$BROWSER https://evil.example/?" SECRET "; sleep 100", "true", "url.refused", "evil.example:443"},
        {"$BROWSER https://127.0.0.1/?" SECRET "; sleep 100", "true", "url.refused", "its host is an address"},
        {"$BROWSER http://login.example.test/?" SECRET "; sleep 100", "true", "url.refused", "https://"},
        {SAVE, "echo " SECRET "; exit 1", "login.check", "the login does not work"},
        {"true", "true", "login.no-file", ".tool/one"},
        {SAVE "; >$HOME/.tool/two", "true", "login.no-file", ".tool/two is empty"},
        {SAVE "; head -c 65537 /dev/zero >$HOME/.tool/two", "true", "login.too-large", ".tool/two"},
        {SAVE "; rm $HOME/.tool/two; ln -s one $HOME/.tool/two", "true", "login.no-file", ".tool/two"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        f->is_over = false;
        begin_login(f, "authorization-code", cases[i].script, cases[i].check, false);
        wait_end(f);
        ended_with(f, cases[i].code, cases[i].words);
        guest_empty_home();
    }
}

static void a_tool_that_is_not_there(void **state) {
    struct fixture *f = *state;
    begin_login(f, "authorization-code", "true", "true", false);
    login_free(f->login);
    set(f, "login", "command", "no-such-tool login");
    start_login(f, false);
    wait_end(f);
    ended_with(f, "login.tool", "no-such-tool cannot be run");
}

static void a_device_shows_its_code(void **state) {
    struct fixture *f = *state;
    /* More than the agent may send at once comes before it. */
    begin_login(f, "device-code",
                "head -c 600000 /dev/zero; echo go to $ADDRESS and type WDJB-MJHT; " CONSENT "; " SAVE, GOOD, false);
    wait_url(f);
    assert_string_equal(view(f).user_code, "WDJB-MJHT");
    touch("consent");
    wait_end(f);
    ended_well(f);
}

static void a_code_is_pasted(void **state) {
    struct fixture *f = *state;
    begin_login(f, "paste", "$BROWSER $ADDRESS; read code; [ $code = " SECRET "-code ] && { " SAVE "; }", GOOD, false);
    wait_url(f);
    assert_true(view(f).takes_code);
    struct err err = {0};
    assert_int_equal(login_input(f->login, "a\nb", 3, &err), -EINVAL);
    assert_int_equal(login_input(f->login, "", 0, &err), -EINVAL);
    assert_int_equal(login_input(f->login, SECRET "-code", strlen(SECRET "-code"), &err), 0);
    wait_end(f);
    ended_well(f);
}

static void a_tool_that_goes_on_is_ended(void **state) {
    struct fixture *f = *state;
    char pid_path[128];
    _cleanup_free_ char *pid = NULL;
    begin_login(f, "authorization-code",
                "echo $$ >$HOME/pid; $BROWSER $ADDRESS; " CONSENT "; " SAVE "; exec sleep 1000", GOOD, false);
    is_done_by_files(f);
    wait_url(f);
    touch("consent");
    wait_end(f);
    ended_well(f);
    snprintf(pid_path, sizeof pid_path, "%s/pid", guest.home);
    assert_int_equal(file_read(pid_path, 32, &pid, NULL), 0);
    wait_until_dead(&f->w.rig, atoi(pid));
}

static void a_lost_agent_begins_it_anew(void **state) {
    struct fixture *f = *state;
    begin_login(f, "authorization-code", "$BROWSER $ADDRESS; " CONSENT "; " SAVE, GOOD, false);
    wait_url(f);
    guest_stop(&f->w);
    assert_null(view(f).url);
    assert_int_equal(f->again, 0); /* it may be the end of the VM */
    guest_start(&f->w);
    wait_url(f);
    assert_int_equal(f->again, 1);
    touch("consent");
    wait_end(f);
    ended_well(f);
}

/* Its agent is away as often and as long as that is. */
static void a_hibernated_vm_is_waited_for(void **state) {
    struct fixture *f = *state;
    begin_login(f, "authorization-code", "$BROWSER $ADDRESS; " CONSENT "; " SAVE, GOOD, false);
    for (unsigned i = 0; i < 6; i++) {
        wait_url(f);
        assert_int_equal(f->again, i);
        is_at_rest = true;
        guest_stop(&f->w);
        for (int64_t end_ms = time_monotonic_ms() + 600; time_monotonic_ms() < end_ms;)
            sd_event_run(loop_event(f->w.rig.loop), 20000);
        assert_false(f->is_over);
        guest_start(&f->w);
        is_at_rest = false;
    }
    wait_url(f);
    touch("consent");
    wait_end(f);
    ended_well(f);
}

/* One that was begun by an earlier daemon has never seen its agent. */
static void a_hibernated_vm_may_still_get_its_agent(void **state) {
    struct fixture *f = *state;
    struct agent *agent = guest.agent;
    guest.agent = NULL;
    is_at_rest = true;
    begin_login(f, "authorization-code", "$BROWSER $ADDRESS; " CONSENT "; " SAVE, GOOD, true);
    for (int64_t end_ms = time_monotonic_ms() + 600; time_monotonic_ms() < end_ms;)
        sd_event_run(loop_event(f->w.rig.loop), 20000);
    assert_false(f->is_over);
    guest.agent = agent;
    is_at_rest = false;
    wait_url(f);
}

static void a_new_daemon_looks_whether_it_is_done(void **state) {
    struct fixture *f = *state;
    /* An earlier one had it done, and died before it was in the vault. */
    begin_login(f, "authorization-code", SAVE, GOOD, false);
    wait_end(f);
    ended_well(f);
    f->is_over = false;
    begin_login(f, "authorization-code", "exit 1", GOOD, true);
    wait_end(f);
    assert_int_equal(f->err.errnum, 0);
    assert_int_equal(f->again, 0);
    /* Or had it begun: it begins anew. */
    f->is_over = false;
    guest_empty_home();
    begin_login(f, "authorization-code", "$BROWSER $ADDRESS; " CONSENT "; " SAVE, GOOD, true);
    wait_url(f);
    assert_int_equal(f->again, 1);
    touch("consent");
    wait_end(f);
    assert_int_equal(f->err.errnum, 0);
}

static void on_filler(void *userdata, json_t *ok, const struct err *err) {
    *(struct agent_job **)userdata = NULL;
}

/* Until the host's side gives it no more. */
static void fill_agent(struct agent_job *jobs[16]) {
    static const struct agent_handler handler = {.done = on_filler};
    struct err err = {0};
    for (unsigned n = 0; n < 16 && !*err.code; n++)
        if (!jobs[n])
            agent_begin(guest.agent, json_pack("{s:s, s:[s, s]}", "op", "exec", "argv", "/bin/sleep", "1000"), 0,
                        &handler, &jobs[n], &jobs[n], &err);
    assert_string_equal(err.code, "agent.busy");
}

static void a_busy_guest_is_not_the_end(void **state) {
    struct fixture *f = *state;
    static struct agent_job *jobs[16];
    memset(jobs, 0, sizeof jobs);
    begin_login(f, "authorization-code", "$BROWSER $ADDRESS; " CONSENT "; " SAVE "; exec sleep 1000", GOOD, false);
    is_done_by_files(f);
    wait_url(f);
    fill_agent(jobs);
    touch("consent");
    for (int64_t end = time_monotonic_ms() + 5000; time_monotonic_ms() < end; fill_agent(jobs))
        turn(&f->w.rig); /* an event at a time: what ends leaves its place to nobody else */
    assert_false(f->is_over);
    assert_string_equal(view(f).words, "The provider's page is being opened");
    for (unsigned i = 0; i < 16; i++)
        agent_job_cancel(jobs[i]);
    wait_end(f);
    ended_well(f);
    assert_int_equal(f->again, 0);
}

static void an_agent_lost_in_the_check_loses_no_login(void **state) {
    struct fixture *f = *state;
    _cleanup_free_ char *runs = NULL;
    char path[128];
    size_t len = 0;
    begin_login(f, "authorization-code", "echo >>$HOME/runs; $BROWSER $ADDRESS; " SAVE,
                "[ -e $HOME/looked ] || { >$HOME/looked; sleep 1000; }; " GOOD, false);
    snprintf(path, sizeof path, "%s/looked", guest.home);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; access(path, F_OK) < 0 && time_monotonic_ms() < end;)
        turn(&f->w.rig);
    assert_true(login_is_done(f->login));
    guest_stop(&f->w);
    guest_start(&f->w);
    wait_end(f);
    ended_well(f);
    assert_int_equal(f->again, 0);
    snprintf(path, sizeof path, "%s/runs", guest.home);
    assert_int_equal(file_read(path, 32, &runs, &len), 0);
    assert_int_equal(len, 1);
}

static void the_check_decides_over_a_tool_that_ends_meanwhile(void **state) {
    struct fixture *f = *state;
    begin_login(f, "authorization-code",
                SAVE "; $BROWSER $ADDRESS; until [ -e $HOME/looked ]; do sleep 0.05; done; exit 3",
                ">$HOME/looked; sleep 1; " GOOD, false);
    is_done_by_files(f);
    wait_end(f);
    ended_well(f);
}

/* Its end is told while it is still looked whether its files are there. */
static void a_tool_that_ends_while_its_files_are_looked_for(void **state) {
    struct fixture *f = *state;
    begin_login(f, "authorization-code", "mkdir -p $HOME/.tool; printf 1 >$HOME/.tool/one; $BROWSER $ADDRESS; " CONSENT,
                "true", false);
    is_done_by_files(f);
    wait_url(f);
    kill(f->w.rig.pid, SIGSTOP);
    touch("consent");
    for (int64_t end = time_monotonic_ms() + 3000; time_monotonic_ms() < end;)
        turn(&f->w.rig);
    kill(f->w.rig.pid, SIGCONT);
    wait_end(f);
    ended_with(f, "login.no-file", ".tool/two");
}

static void a_tool_that_ends_in_the_check_is_checked_again(void **state) {
    struct fixture *f = *state;
    begin_login(f, "authorization-code",
                "mkdir -p $HOME/.tool; for i in one two; do printf 1 >$HOME/.tool/$i; done; $BROWSER $ADDRESS; "
                "until [ -e $HOME/looked ]; do sleep 0.05; done; " SAVE,
                GOOD "; r=$?; >$HOME/looked; sleep 1; exit $r", false);
    is_done_by_files(f);
    wait_end(f);
    ended_well(f);
}

static void an_image_without_an_agent(void **state) {
    struct fixture *f = *state;
    struct agent *agent = guest.agent;
    guest.agent = NULL;
    begin_login(f, "authorization-code", "true", "true", false);
    wait_end(f);
    ended_with(f, "agent.none", "has no agent");
    guest.agent = agent;
}

static void a_login_can_be_left_at_any_time(void **state) {
    struct fixture *f = *state;
    for (int turns = 0; turns < 40; turns++) {
        f->is_over = false;
        begin_login(f, "authorization-code", "$BROWSER $ADDRESS; " SAVE, GOOD, false);
        for (int i = 0; i < turns && f->login; i++)
            sd_event_run(loop_event(f->w.rig.loop), 20000);
        login_free(f->login);
        f->login = NULL;
        guest_empty_home();
    }
}

/* --- what needs no guest --- */

static void words(void **state) {
    char code[LOGIN_CODE_MAX];
    const char *at;
    size_t pos = 0;
    static const struct {
        const char *text, *code;
    } codes[] = {{"type WDJB-MJHT now", "WDJB-MJHT"},
                 {"\x1b[94mABCD-12345\x1b[0m", "ABCD-12345"},
                 {"AAA-BBB-CCC.", "AAA-BBB-CCC"},
                 {"first AAAA-BBBB then CCCC-DDDD", "CCCC-DDDD"},
                 {"UTF-8 or AB-8628", ""},
                 {"X-AAAA-BBBB", ""},
                 {"AAAA-BBBBc", ""},
                 {"AAAA-BBBB-", ""},
                 {"AAAAAAAAA-BBBB", ""},
                 {"0A1B2C3D-4E5F-6789-ABCD-0123456789AB", ""},
                 {"", ""}};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        strcpy(code, "");
        size_t len = login_words_code(codes[i].text, strlen(codes[i].text), code);
        assert_string_equal(code, codes[i].code);
        assert_int_equal(len, strlen(codes[i].code));
    }
    assert_null(login_words_reason("nothing known " SECRET, 20));
    /* What mc-oidc says, as tests/e2e/test_oidc_tool.py hears it. */
    static const struct {
        const char *said, *sentence;
    } ends[] = {
        {"mc-oidc: the answer carries a wrong state: it does not belong to this login",
         "the answer that came back does not belong to this login (wrong state)"},
        {"mc-oidc: the provider says access_denied", "access was refused at the provider (access_denied)"},
        {"mc-oidc: the provider says invalid_grant",
         "the provider did not take the code that came back (invalid_grant)"},
        {"mc-oidc: the provider localhost:443 cannot be reached: ConnectionRefusedError",
         "the provider could not be reached"},
    };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        assert_string_equal(login_words_reason(ends[i].said, strlen(ends[i].said)), ends[i].sentence);
    static const char two[] = "x https://a.example/?q\nhttps://b.example/\thttps://cut";
    assert_int_equal(login_words_address(two, strlen(two), &pos, &at), strlen("https://a.example/?q"));
    assert_int_equal(login_words_address(two, strlen(two), &pos, &at), strlen("https://b.example/"));
    assert_int_equal(login_words_address(two, strlen(two), &pos, &at), 0);
}

static void bundles(void **state) {
    struct bundle b;
    struct bundle_file file;
    struct provider_file f = {.path = ".a/b", .mode = 0600};
    size_t room, at = 0;
    assert_int_equal(bundle_new(&b, NULL), 0);
    memcpy(bundle_room(&b, &room), "1 2\n3", 5);
    assert_int_equal(bundle_add(&b, &f, 5, NULL), 0);
    assert_int_equal(bundle_add(&b, &f, 0, NULL), 0);
    bundle_room(&b, &room);
    assert_int_equal(bundle_add(&b, &f, room + 1, NULL), -EMSGSIZE);
    assert_int_equal(bundle_add(&b, &f, room, NULL), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(bundle_next(b.memory.data, b.len, &at, &file), 1);
    assert_int_equal(bundle_next(b.memory.data, b.len, &at, &file), 0);
    bundle_free(&b);
    static const char *const bad[] = {"",
                                      "mc-files/2\n",
                                      "mc-files/1\na 0600 5\nxxxx",
                                      "mc-files/1\na 0600\n",
                                      "mc-files/1\na 600 1\nx",
                                      "mc-files/1\na 0600 -1\n",
                                      "mc-files/1\na 0600 1",
                                      "mc-files/1\nx"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        at = 0;
        assert_int_equal(bundle_next((const uint8_t *)bad[i], strlen(bad[i]), &at, &file), -EBADMSG);
    }
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    agent_program = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_code_comes_by_the_browser, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_goes_wrong_is_said, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_tool_that_is_not_there, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_device_shows_its_code, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_code_is_pasted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_tool_that_goes_on_is_ended, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_lost_agent_begins_it_anew, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_hibernated_vm_is_waited_for, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_hibernated_vm_may_still_get_its_agent, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_new_daemon_looks_whether_it_is_done, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_busy_guest_is_not_the_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_agent_lost_in_the_check_loses_no_login, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_check_decides_over_a_tool_that_ends_meanwhile, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_tool_that_ends_while_its_files_are_looked_for, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_tool_that_ends_in_the_check_is_checked_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_image_without_an_agent, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_login_can_be_left_at_any_time, set_up, tear_down),
        cmocka_unit_test(words),
        cmocka_unit_test(bundles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
