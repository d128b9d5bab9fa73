/* Credentials in users' CLI VMs, with the real agent as a process, a real store and a real vault. VMs are records; the
 * guest is a folder, its user is who runs this test. Argument: the agent's program. */
#include <pwd.h>

#include "agent_rig.h"
#include "session/bundle.h"
#include "session/custody.h"
#include "session/guest_home.h"

#define BROWSER "vm-00000000-0000-4000-8000-000000000001"
#define CLI "vm-10000000-0000-4000-8000-000000000002"
#define OTHER "vm-20000000-0000-4000-8000-000000000003"

static struct {
    struct agent *agent;
    char home[96], user[64];
    int64_t skew_ms; /* so that nobody waits for the next look */
} fake;

int64_t __real_time_monotonic_ms(void);
int64_t __wrap_time_monotonic_ms(void);
int64_t __wrap_time_monotonic_ms(void) {
    return __real_time_monotonic_ms() + fake.skew_ms;
}

struct agent *__wrap_vms_agent(struct vms *vms, const char *id);
struct agent *__wrap_vms_agent(struct vms *vms, const char *id) {
    return fake.agent;
}

struct guest_home __wrap_guest_home(enum vm_type type);
struct guest_home __wrap_guest_home(enum vm_type type) {
    return (struct guest_home){fake.user, fake.home};
}

struct fixture {
    struct rig rig;
    char dir[64];
    struct store *store;
    struct vault *vault;
    struct custody *custody;
};

static void start_custody(struct fixture *f) {
    struct custody_params params = {.loop = f->rig.loop, .store = f->store, .vault = f->vault};
    assert_int_equal(custody_new(&params, &f->custody, NULL), 0);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    char path[128];
    struct passwd *p = getpwuid(getuid());
    int fd;
    assert_non_null(p);
    memset(&fake, 0, sizeof fake);
    str_copy(fake.user, sizeof fake.user, p->pw_name);
    strcpy(f->dir, "/tmp/mc-custody-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(fake.home, sizeof fake.home, "%s/home", f->dir);
    assert_int_equal(mkdir(fake.home, 0700), 0);
    assert_int_equal(loop_new(&f->rig.loop, NULL), 0);
    snprintf(path, sizeof path, "%s/db", f->dir);
    assert_int_equal(store_open(path, "host", &f->store, NULL), 0);
    snprintf(path, sizeof path, "%s/key", f->dir);
    assert_int_equal(vault_new(f->store, path, &f->vault, NULL), 0);
    f->rig.pid = start_agent(&fd);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct agent_params params = {.loop = f->rig.loop, .fd = fd, .changed = on_changed, .userdata = &f->rig};
    assert_int_equal(agent_new(&params, &f->rig.agent, NULL), 0);
    for (int64_t end = time_monotonic_ms() + WAIT_MS; f->rig.state != AGENT_READY && time_monotonic_ms() < end;)
        turn(&f->rig);
    fake.agent = f->rig.agent;
    start_custody(f);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    custody_free(f->custody);
    agent_free(f->rig.agent);
    end_agent(f->rig.pid);
    vault_free(f->vault);
    store_close(f->store);
    loop_free(f->rig.loop);
    dir_remove(f->dir);
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
    assert_int_equal(store_vm_claim(f->store, &vm, 100, "tester", NULL), 0);
}

static void vm_becomes(struct fixture *f, const char *id, enum vm_state state) {
    struct vm vm;
    assert_int_equal(store_vm_get(f->store, id, &vm, NULL), 0);
    vm.state = state;
    assert_int_equal(store_vm_update(f->store, &vm, NULL, NULL), 0);
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
    assert_int_equal(vault_put(f->vault, "ann", "mine", BROWSER, b.memory.data, b.len, &version, NULL), 0);
    bundle_free(&b);
    if (is_released)
        assert_int_equal(vault_release(f->vault, BROWSER, NULL), 0);
    custody_stored(f->custody, "ann");
}

static char *guest_file(const char *text) {
    static char data[256];
    char path[160];
    _cleanup_free_ char *found = NULL;
    snprintf(path, sizeof path, "%s/.tool/deep/one", fake.home);
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
    assert_int_equal(store_credential_list(f->store, "ann", &list, &n, NULL), 0);
    assert_int_equal(n, 1);
    c = list[0];
    free(list);
    return c;
}

static void turns(struct fixture *f, int64_t ms) {
    for (int64_t end = __real_time_monotonic_ms() + ms; __real_time_monotonic_ms() < end;)
        sd_event_run(loop_event(f->rig.loop), 20000);
}

static void wait_file(struct fixture *f, const char *text) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS; __real_time_monotonic_ms() < end;) {
        const char *now = guest_file(NULL);
        if (now && strcmp(now, text) == 0)
            return;
        sd_event_run(loop_event(f->rig.loop), 20000);
    }
    fail_msg("the guest has %s, not %s", guest_file(NULL) ?: "nothing", text);
}

static bool is_there(struct fixture *f, uint64_t version) {
    char vm[VM_ID_TEXT] = "";
    return custody_where(f->custody, "ann", "mine", version, vm) && strcmp(vm, CLI) == 0;
}

static void wait_there(struct fixture *f, uint64_t version) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS; !is_there(f, version) && __real_time_monotonic_ms() < end;)
        sd_event_run(loop_event(f->rig.loop), 20000);
    assert_true(is_there(f, version));
}

static void wait_version(struct fixture *f, uint64_t version) {
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS;
         record(f).version != version && __real_time_monotonic_ms() < end;) {
        fake.skew_ms += 1000;
        sd_event_run(loop_event(f->rig.loop), 20000);
    }
    assert_int_equal(record(f).version, version);
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
    snprintf(path, sizeof path, "%s/.tool/deep", fake.home);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    snprintf(path, sizeof path, "%s/.tool/deep/one", fake.home);
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
    fake.skew_ms += 20000;
    turns(f, 1500);
    assert_int_equal(record(f).version, 2);
    /* A VM that stops is looked at once more, at once. */
    guest_file("last");
    vm_becomes(f, CLI, VM_STATE_STOPPING);
    for (int64_t end = __real_time_monotonic_ms() + WAIT_MS;
         record(f).version != 3 && __real_time_monotonic_ms() < end;)
        sd_event_run(loop_event(f->rig.loop), 20000);
    assert_int_equal(record(f).version, 3);
    vm_becomes(f, CLI, VM_STATE_STOPPED);
    assert_false(is_there(f, 3));
    /* The next one gets what the last one left. */
    dir_remove(fake.home);
    assert_int_equal(mkdir(fake.home, 0700), 0);
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
    fake.skew_ms += 20000;
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
    /* The last one owned it, and died before the files were there. */
    custody_free(f->custody);
    dir_remove(fake.home);
    assert_int_equal(mkdir(fake.home, 0700), 0);
    start_custody(f);
    wait_file(f, "renewed");
    wait_there(f, 2);
    /* Logged out in the VM while we look: it is not put there again. */
    dir_remove(fake.home);
    assert_int_equal(mkdir(fake.home, 0700), 0);
    fake.skew_ms += 20000;
    turns(f, 1500);
    assert_null(guest_file(NULL));
}

static void restart_custody(struct fixture *f) {
    custody_free(f->custody);
    start_custody(f);
}

/* What the VM has of a revoked login must not become the newest version, whoever looks at it next. */
static void a_new_login_that_could_not_be_put_is_not_overwritten(void **state) {
    struct fixture *f = *state;
    both_vms(f);
    vm_becomes(f, CLI, VM_STATE_RUNNING);
    log_in(f, "first", true);
    wait_there(f, 1);
    strcpy(fake.user, "nobody-there");
    log_in(f, "second", true);
    turns(f, 1500);
    assert_false(is_there(f, 2));
    assert_string_equal(guest_file(NULL), "first");
    assert_string_equal(record(f).owner_vm, "");
    restart_custody(f);
    for (int i = 0; i < 4; i++) {
        fake.skew_ms += 20000;
        turns(f, 700);
    }
    assert_int_equal(record(f).version, 2);
    strcpy(fake.user, getpwuid(getuid())->pw_name);
    fake.skew_ms += 61000;
    wait_file(f, "second");
    wait_there(f, 2);
    assert_int_equal(record(f).version, 2);
}

static void key_mode(struct fixture *f, mode_t mode) {
    char path[128];
    snprintf(path, sizeof path, "%s/key", f->dir);
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
        fake.skew_ms += 20000;
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
    strcpy(fake.user, "nobody-there");
    log_in(f, "first", true);
    turns(f, 1500);
    assert_false(is_there(f, 1));
    strcpy(fake.user, getpwuid(getuid())->pw_name);
    fake.skew_ms += 61000;
    wait_file(f, "first");
    /* Forgotten meanwhile. */
    assert_int_equal(store_credential_remove(f->store, "ann", "mine", NULL), 0);
    guest_file("renewed");
    fake.skew_ms += 20000;
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
        cmocka_unit_test_setup_teardown(a_new_login_that_could_not_be_put_is_not_overwritten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_cannot_be_compared_is_not_overwritten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_key_that_is_unsafe_for_a_while_loses_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_cannot_be_put_stops_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
