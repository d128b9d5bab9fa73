/* Credentials in users' CLI VMs, with the real agent as a process, a real store and a real vault (guest_rig.h). Argument: the
 * agent's program. */
#include "guest_rig.h"
#include "session/custody.h"

#define BROWSER "vm-00000000-0000-4000-8000-000000000001"
#define CLI "vm-10000000-0000-4000-8000-000000000002"
#define OTHER "vm-20000000-0000-4000-8000-000000000003"

static int64_t skew_ms; /* so that nobody waits for the next look */

int64_t __real_time_monotonic_ms(void);
int64_t __wrap_time_monotonic_ms(void);
int64_t __wrap_time_monotonic_ms(void) {
    return __real_time_monotonic_ms() + skew_ms;
}

struct fixture {
    struct world w;
    struct custody *custody;
};

static void start_custody(struct fixture *f) {
    struct custody_params params = {
        .loop = f->w.rig.loop, .store = f->w.store, .vault = f->w.vault, .providers = f->w.dir};
    assert_int_equal(custody_new(&params, &f->custody, NULL), 0);
}

/* A login works but where its file says otherwise; each check leaves a line. */
static void write_profile(struct fixture *f) {
    char path[128], text[800];
    snprintf(path, sizeof path, "%s/mine.conf", f->w.dir);
    int n = snprintf(text, sizeof text,
                     "[provider]\ntitle = Mine\nenabled = yes\n[login]\nflow = authorization-code\n"
                     "command = /bin/false\nenvironment = HOME=%s\n[credential]\nfile = .tool/deep/one 0640\n"
                     "check = /bin/sh -c \"echo >>$HOME/checks; ! grep -q broken $HOME/.tool/deep/one\"\n"
                     "[open-url]\nhost = login.example.test\n",
                     guest.home);
    assert_int_equal(file_write_atomic(path, text, (size_t)n, 0600), 0);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    skew_ms = 0;
    world_begin(&f->w);
    guest_wait(&f->w);
    write_profile(f);
    start_custody(f);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    custody_free(f->custody);
    world_end(&f->w);
    free(f);
    return 0;
}

static void vm_is_made(struct fixture *f, const char *id, enum vm_type type, unsigned n) {
    struct vm vm = {.type = type,
                    .state = VM_STATE_CREATING,
                    .ip = 0xc0a80002 + n,
                    .mac = {{2, 0xfc, 0, 0, 0, (uint8_t)n}},
                    .uid = 2000 + n};
    str_copy(vm.id, sizeof vm.id, id);
    strcpy(vm.user, "ann");
    vm_tap_from_id(vm.id, vm.tap);
    assert_int_equal(store_vm_claim(f->w.store, &vm, 100, "tester", NULL), 0);
}

static void vm_becomes(struct fixture *f, const char *id, enum vm_state state) {
    struct vm vm;
    assert_int_equal(store_vm_get(f->w.store, id, &vm, NULL), 0);
    vm.state = state;
    assert_int_equal(store_vm_update(f->w.store, &vm, NULL, NULL), 0);
    custody_vm_changed(f->custody, &vm);
}

/* A login in the browser VM has come to this. */
static void log_in(struct fixture *f, const char *text, bool is_released) {
    struct bundle b;
    struct provider_file file = {.path = ".tool/deep/one", .mode = 0640};
    size_t room;
    uint64_t version;
    assert_int_equal(bundle_new(&b, NULL), 0);
    memcpy(bundle_room(&b, &room), text, strlen(text));
    assert_int_equal(bundle_add(&b, &file, strlen(text), NULL), 0);
    assert_int_equal(vault_put(f->w.vault, "ann", "mine", BROWSER, b.memory.data, b.len, &version, NULL), 0);
    bundle_free(&b);
    if (is_released)
        assert_int_equal(vault_release(f->w.vault, BROWSER, NULL), 0);
    custody_stored(f->custody, "ann");
}

static char *guest_file(const char *text) {
    static char data[256];
    char path[160];
    _cleanup_free_ char *found = NULL;
    snprintf(path, sizeof path, "%s/.tool/deep/one", guest.home);
    if (text)
        assert_int_equal(file_write_atomic(path, text, strlen(text), 0640), 0);
    else if (file_read(path, sizeof data, &found, NULL) < 0)
        return NULL;
    str_copy(data, sizeof data, found ? found : text);
    return data;
}

static struct credential record(struct fixture *f) {
    struct credential *list, c;
    size_t n;
    assert_int_equal(store_credential_list(f->w.store, "ann", &list, &n, NULL), 0);
    assert_int_equal(n, 1);
    c = list[0];
    free(list);
    return c;
}

static void turns(struct fixture *f, int64_t ms) {
    for (int64_t end = __real_time_monotonic_ms() + ms; __real_time_monotonic_ms() < end;)
        sd_event_run(loop_event(f->w.rig.loop), 20000);
}

static void wait_file(struct fixture *f, const char *text) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS; __real_time_monotonic_ms() < end;) {
        const char *now = guest_file(NULL);
        if (now && strcmp(now, text) == 0)
            return;
        sd_event_run(loop_event(f->w.rig.loop), 20000);
    }
    fail_msg("the guest has %s, not %s", guest_file(NULL) ?: "nothing", text);
}

static bool is_there(struct fixture *f, uint64_t version) {
    char vm[VM_ID_TEXT] = "";
    return custody_where(f->custody, "ann", "mine", version, vm) && strcmp(vm, CLI) == 0;
}

static void wait_there(struct fixture *f, uint64_t version) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS; !is_there(f, version) && __real_time_monotonic_ms() < end;)
        sd_event_run(loop_event(f->w.rig.loop), 20000);
    assert_true(is_there(f, version));
}

static void wait_version(struct fixture *f, uint64_t version) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS;
         record(f).version != version && __real_time_monotonic_ms() < end;) {
        skew_ms += 1000;
        sd_event_run(loop_event(f->w.rig.loop), 20000);
    }
    assert_int_equal(record(f).version, version);
}

static void wait_let_go(struct fixture *f) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS;
         custody_is_looking(f->custody, CLI) && __real_time_monotonic_ms() < end;)
        sd_event_run(loop_event(f->w.rig.loop), 20000);
    assert_false(custody_is_looking(f->custody, CLI));
}

static int mkdir_of_file(void) {
    char path[160];
    snprintf(path, sizeof path, "%s/.tool", guest.home);
    int r = mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/.tool/deep", guest.home);
    return r < 0 ? r : mkdir(path, 0700);
}

static void both_vms(struct fixture *f) {
    vm_is_made(f, BROWSER, VM_TYPE_BROWSER, 1);
    vm_is_made(f, CLI, VM_TYPE_CLI, 2);
    vm_becomes(f, BROWSER, VM_STATE_RUNNING);
}

static void it_is_put_into_a_vm_that_runs(void **state) {
    struct fixture *f = *state;
    struct stat st;
    char path[160];
    both_vms(f);
    log_in(f, "first", true);
    turns(f, 700);
    assert_null(guest_file(NULL)); /* it does not run */
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    wait_file(f, "first");
    wait_there(f, 1);
    assert_string_equal(record(f).owner_vm, CLI);
    snprintf(path, sizeof path, "%s/.tool/deep", guest.home);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    snprintf(path, sizeof path, "%s/.tool/deep/one", guest.home);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    /* A new login while it runs. */
    log_in(f, "second", true);
    wait_file(f, "second");
    wait_there(f, 2);
}

static void one_vm_owns_it_at_a_time(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", false);
    turns(f, 1500);
    assert_null(guest_file(NULL));
    assert_string_equal(record(f).owner_vm, BROWSER);
    vm_becomes(f, BROWSER, VM_STATE_STOPPED);
    wait_file(f, "first");
}

static void what_a_tool_renews_is_taken_back(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    guest_file("renewed");
    wait_version(f, 2);
    wait_there(f, 2);
    assert_string_equal(record(f).owner_vm, CLI);
    /* Nothing new, no new version. */
    skew_ms += 20000;
    turns(f, 1500);
    assert_int_equal(record(f).version, 2);
    guest_file("last");
    vm_becomes(f, CLI, VM_STATE_STOPPING);
    wait_let_go(f);
    assert_int_equal(record(f).version, 3);
    vm_becomes(f, CLI, VM_STATE_STOPPED);
    assert_false(is_there(f, 3));
    /* The next one gets what the last one left. */
    guest_empty_home();
    vm_is_made(f, OTHER, VM_TYPE_CLI, 3);
    vm_becomes(f, OTHER, VM_STATE_RUNNING);
    wait_file(f, "last");
}

static void a_former_logins_files_are_not_taken(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    guest_file("renewed");
    log_in(f, "second", true);
    wait_file(f, "second");
    skew_ms += 20000;
    turns(f, 1500);
    assert_int_equal(record(f).version, 2);
    assert_string_equal(guest_file(NULL), "second");
}

static void a_new_daemon_compares_and_overwrites_nothing(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    custody_free(f->custody);
    guest_file("renewed");
    start_custody(f);
    wait_version(f, 2);
    assert_string_equal(guest_file(NULL), "renewed");
}

static void restart_custody(struct fixture *f) {
    custody_free(f->custody);
    start_custody(f);
}

static void wait_logged_out(struct fixture *f, bool is_out) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS;
         (record(f).logged_out_ms != 0) != is_out && __real_time_monotonic_ms() < end;) {
        skew_ms += 1000;
        sd_event_run(loop_event(f->w.rig.loop), 20000);
    }
    assert_int_equal(record(f).logged_out_ms != 0, is_out);
}

static void who_has_logged_out_stays_logged_out(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    guest_empty_home();
    wait_logged_out(f, true);
    assert_false(is_there(f, 1));
    for (int i = 0; i < 3; i++) { /* by the next daemon, too */
        restart_custody(f);
        skew_ms += 20000;
        turns(f, 700);
    }
    assert_null(guest_file(NULL));
    assert_int_equal(record(f).version, 1);
    /* They come back where they were: then nobody has. */
    assert_int_equal(mkdir_of_file(), 0);
    guest_file("first");
    wait_logged_out(f, false);
    assert_true(is_there(f, 1));
    guest_empty_home();
    wait_logged_out(f, true);
    /* The next VM does not get them either. */
    vm_becomes(f, CLI, VM_STATE_STOPPED);
    vm_is_made(f, OTHER, VM_TYPE_CLI, 3);
    vm_becomes(f, OTHER, VM_STATE_RUNNING);
    skew_ms += 20000;
    turns(f, 1500);
    assert_null(guest_file(NULL));
    /* Until its user logs in anew. */
    log_in(f, "second", true);
    wait_file(f, "second");
    assert_int_equal(record(f).logged_out_ms, 0);
}

/* A tool that writes its file anew may have none for a moment. */
static void a_file_that_is_away_for_a_moment_is_no_logout(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    guest_empty_home();
    skew_ms += 15000;
    turns(f, 700);
    assert_int_equal(mkdir_of_file(), 0);
    guest_file("renewed");
    wait_version(f, 2);
    assert_int_equal(record(f).logged_out_ms, 0);
}

static unsigned checks(void) {
    char path[160];
    _cleanup_free_ char *text = NULL;
    size_t len = 0;
    snprintf(path, sizeof path, "%s/checks", guest.home);
    return file_read(path, 4096, &text, &len) < 0 ? 0 : (unsigned)len;
}

static void wait_checks(struct fixture *f, unsigned n) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS; checks() < n && __real_time_monotonic_ms() < end;) {
        skew_ms += 500;
        sd_event_run(loop_event(f->w.rig.loop), 20000);
    }
    assert_true(checks() >= n);
}

static void what_does_not_work_replaces_nothing(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    guest_file("broken");
    wait_checks(f, 1);
    turns(f, 700);
    unsigned before = checks();
    skew_ms += 20000; /* it is looked at, and not checked again at once */
    turns(f, 1500);
    assert_int_equal(checks(), before);
    wait_checks(f, before + 1); /* but after a while */
    turns(f, 700);
    assert_int_equal(record(f).version, 1);
    /* The VM's end changes nothing about it. */
    vm_becomes(f, CLI, VM_STATE_HIBERNATING);
    wait_let_go(f);
    assert_int_equal(record(f).version, 1);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    guest_file("mended");
    wait_version(f, 2);
    assert_true(is_there(f, 2));
    /* Without a profile nothing can be checked. */
    char path[128];
    snprintf(path, sizeof path, "%s/mine.conf", f->w.dir);
    assert_int_equal(unlink(path), 0);
    guest_file("unknown");
    for (int i = 0; i < 3; i++) {
        skew_ms += 20000;
        turns(f, 700);
    }
    assert_int_equal(record(f).version, 2);
    write_profile(f);
    wait_version(f, 3);
}

/* What it has is taken first; a guest that does not answer costs nothing, or seconds. */
static void a_vm_that_is_put_to_rest_is_looked_at_first(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    assert_false(custody_is_looking(f->custody, CLI));
    guest_file("renewed");
    vm_becomes(f, CLI, VM_STATE_HIBERNATING);
    assert_true(custody_is_looking(f->custody, CLI));
    assert_false(custody_is_looking(f->custody, OTHER));
    wait_let_go(f);
    assert_int_equal(record(f).version, 2);
    vm_becomes(f, CLI, VM_STATE_HIBERNATED);
    assert_false(custody_is_looking(f->custody, CLI));
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    kill(f->w.rig.pid, SIGSTOP);
    int64_t began_ms = __real_time_monotonic_ms();
    vm_becomes(f, CLI, VM_STATE_STOPPING);
    wait_let_go(f);
    assert_true(__real_time_monotonic_ms() - began_ms < 10000);
    kill(f->w.rig.pid, SIGCONT);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    guest_stop(&f->w);
    vm_becomes(f, CLI, VM_STATE_STOPPING);
    assert_false(custody_is_looking(f->custody, CLI));
    assert_int_equal(record(f).version, 2);
}

/* What the VM has of a revoked login must not become the newest version, whoever looks at it next. */
static void a_new_login_that_could_not_be_put_is_not_overwritten(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    strcpy(guest.user, "nobody-there");
    log_in(f, "second", true);
    turns(f, 1500);
    assert_false(is_there(f, 2));
    assert_string_equal(guest_file(NULL), "first");
    assert_string_equal(record(f).owner_vm, "");
    restart_custody(f);
    for (int i = 0; i < 4; i++) {
        skew_ms += 20000;
        turns(f, 700);
    }
    assert_int_equal(record(f).version, 2);
    str_copy(guest.user, sizeof guest.user, guest_own_user());
    skew_ms += 61000;
    wait_file(f, "second");
    wait_there(f, 2);
    assert_int_equal(record(f).version, 2);
}

static void key_mode(struct fixture *f, mode_t mode) {
    char path[128];
    snprintf(path, sizeof path, "%s/key", f->w.dir);
    assert_int_equal(chmod(path, mode), 0);
}

/* A new daemon cannot open the vault at first, and a tool has renewed what the VM has. */
static void what_cannot_be_compared_is_not_overwritten(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    guest_file("renewed");
    key_mode(f, 0644);
    restart_custody(f);
    turns(f, 1200);
    assert_false(is_there(f, 1));
    key_mode(f, 0600);
    wait_version(f, 2);
    assert_string_equal(guest_file(NULL), "renewed");
}

static void a_key_that_is_unsafe_for_a_while_loses_nothing(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    key_mode(f, 0644);
    guest_file("renewed");
    for (int i = 0; i < 3; i++) {
        skew_ms += 20000;
        turns(f, 700);
    }
    assert_int_equal(record(f).version, 1);
    assert_true(is_there(f, 1));
    key_mode(f, 0600);
    wait_version(f, 2);
}

static void what_cannot_be_put_stops_nothing(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    strcpy(guest.user, "nobody-there");
    log_in(f, "first", true);
    turns(f, 1500);
    assert_false(is_there(f, 1));
    str_copy(guest.user, sizeof guest.user, guest_own_user());
    skew_ms += 61000;
    wait_file(f, "first");
    /* Forgotten meanwhile. */
    assert_int_equal(store_credential_remove(f->w.store, "ann", "mine", NULL), 0);
    guest_file("renewed");
    skew_ms += 20000;
    turns(f, 2500);
    assert_false(is_there(f, 1));
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    agent_program = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_is_put_into_a_vm_that_runs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_vm_owns_it_at_a_time, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_a_tool_renews_is_taken_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_former_logins_files_are_not_taken, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_new_daemon_compares_and_overwrites_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_has_logged_out_stays_logged_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_file_that_is_away_for_a_moment_is_no_logout, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_does_not_work_replaces_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_vm_that_is_put_to_rest_is_looked_at_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_new_login_that_could_not_be_put_is_not_overwritten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_cannot_be_compared_is_not_overwritten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_key_that_is_unsafe_for_a_while_loses_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_cannot_be_put_stops_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
