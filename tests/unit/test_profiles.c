/* The shipped profiles whose tools are not in the images, each read from its file and gone through by a login with the real
 * agent, and with a stand-in for the vendor's tool (vendor/): command, environment, terminal, hosts, files and check are the
 * profile's. The vendors' own tools are not run. Arguments: the agent's program, the profiles' folder, the stand-ins'. */
#include "guest_rig.h"
#include "session/login.h"
#include "session/providers.h"

#define PLANTED "pLaNtEd4711"
#define BROWSER "vm-00000000-0000-4000-8000-000000000001"

static const char *profiles;

bool __wrap_vms_is_at_rest(struct vms *vms, const char *id);
bool __wrap_vms_is_at_rest(struct vms *vms, const char *id) {
    return false;
}

struct fixture {
    struct world w;
    struct provider provider;
    struct login *login;
    unsigned begun;
    bool is_over;
    struct err err;
};

static void on_begun(void *userdata, const char *session_id) {
    ((struct fixture *)userdata)->begun++;
}

static void on_again(void *userdata, const char *session_id, const char *why) {
    fail_msg("%s", why);
}

static void on_ended(void *userdata, const char *session_id, const struct err *err) {
    struct fixture *f = userdata;
    f->is_over = true;
    f->err = err ? *err : (struct err){0};
    login_free(f->login);
    f->login = NULL;
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
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

/* Whose home it is, and a secret to look for, is all that is added to the profile. */
static void load(struct fixture *f, const char *name) {
    struct err err = {0};
    char word[160];
    if (provider_load(profiles, name, &f->provider, &err) < 0)
        fail_msg("%s", err.detail);
    assert_false(f->provider.enabled);
    snprintf(word, sizeof word, "HOME=%s", guest.home);
    assert_int_equal(provider_set(&f->provider, "login", "environment", word, &err), 0);
    assert_int_equal(provider_set(&f->provider, "login", "environment", "PLANTED=" PLANTED, &err), 0);
}

static void log_in(struct fixture *f, const char *address, const char *consent) {
    static const struct login_owner owner = {.begun = on_begun, .again = on_again, .ended = on_ended};
    struct login_params params = {.loop = f->w.rig.loop,
                                  .vault = f->w.vault,
                                  .provider = &f->provider,
                                  .session_id = "0123456789abcdef0123456789abcdef",
                                  .user = "ann",
                                  .vm_id = BROWSER,
                                  .owner = &owner,
                                  .userdata = f};
    struct login_view view = {0};
    char path[160];
    f->begun = 0;
    f->is_over = false;
    assert_int_equal(login_new(&params, &f->login, NULL), 0);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; f->login && !view.url && time_monotonic_ms() < end;) {
        turn(&f->w.rig);
        if (f->login)
            login_look(f->login, &view);
    }
    if (!f->login)
        fail_msg("%s", f->err.detail);
    assert_non_null(view.url);
    assert_int_equal(strncmp(view.url, address, strlen(address)), 0);
    assert_non_null(strstr(view.url, PLANTED));
    assert_int_equal(f->begun, 1);
    snprintf(path, sizeof path, "%s/consent", guest.home);
    assert_int_equal(file_write_atomic(path, consent, strlen(consent), 0600), 0);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; !f->is_over && time_monotonic_ms() < end;)
        turn(&f->w.rig);
    assert_true(f->is_over);
    assert_null(strstr(f->err.detail, PLANTED));
}

static void vault_has(struct fixture *f, const char *name, const char *path) {
    struct secret text = {0};
    struct bundle_file file;
    uint64_t version;
    size_t at = 0;
    assert_int_equal(vault_open(f->w.vault, "ann", name, BROWSER, &text, &version, NULL), 0);
    assert_int_equal(bundle_next(text.data, text.len, &at, &file), 1);
    assert_string_equal(file.file.path, path);
    assert_int_equal(file.file.mode, 0600);
    assert_non_null(memmem(file.data, file.len, PLANTED, strlen(PLANTED)));
    assert_int_equal(bundle_next(text.data, text.len, &at, &file), 0);
    secret_free(&text);
}

static void each_profile_logs_its_tool_in(void **state) {
    struct fixture *f = *state;
    static const struct {
        const char *name, *address, *path;
    } cases[] = {
        {"claude-code", "https://claude.ai/oauth/authorize?", ".claude/.credentials.json"},
        {"codex", "https://auth.openai.com/oauth/authorize?", ".codex/auth.json"},
        {"gemini", "https://accounts.google.com/o/oauth2/v2/auth?", ".gemini/oauth_creds.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        load(f, cases[i].name);
        /* A file that is there is not yet a login that works. (One that goes on running is checked again for a while.) */
        if (f->provider.done == PROVIDER_DONE_EXIT) {
            log_in(f, cases[i].address, "is refused");
            assert_string_equal(f->err.code, "login.check");
            guest_empty_home();
        }
        log_in(f, cases[i].address, "works");
        if (f->err.errnum)
            fail_msg("%s: %s", cases[i].name, f->err.detail);
        vault_has(f, cases[i].name, cases[i].path);
        guest_empty_home();
    }
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    agent_program = argv[1];
    profiles = argv[2];
    char path[400]; /* of the agent: it looks there for what it is asked to run */
    snprintf(path, sizeof path, "%s:/usr/bin:/bin", argv[3]);
    setenv("PATH", path, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(each_profile_logs_its_tool_in, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
