/* Sessions over a real store and loop, with VMs that are records alone, and a clock that the test moves. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "cmocka_all.h"
#include "session/sessions.h"

#define NOW 1700000000000

/* --- what stands in for vm/ and the clock --- */

static struct {
    int64_t now_ms;
    struct store *store;
    vms_changed_fn *changed, *over;
    void *userdata;
    char folder[96];
    unsigned made, destroyed;
    char destroy_reason[VM_REASON_MAX], destroy_actor[STORE_ACTOR_MAX];
    int create_fails;
    bool is_pooled; /* a VM waits, of no user's */
} fake;

int64_t __wrap_time_realtime_ms(void);
int64_t __wrap_time_realtime_ms(void) {
    return fake.now_ms;
}

void __wrap_vms_on_change(struct vms *vms, vms_changed_fn *fn, void *userdata);
void __wrap_vms_on_change(struct vms *vms, vms_changed_fn *fn, void *userdata) {
    fake.changed = fn;
    fake.userdata = userdata;
}

void __wrap_vms_on_over(struct vms *vms, vms_changed_fn *fn, void *userdata);
void __wrap_vms_on_over(struct vms *vms, vms_changed_fn *fn, void *userdata) {
    fake.over = fn;
}

static struct vm claim(const char *user, const char *id, const char *actor) {
    struct vm vm = {.type = VM_TYPE_BROWSER,
                    .state = VM_STATE_CREATING,
                    .created_ms = fake.now_ms,
                    .ip = 0xc0a80002 + fake.made,
                    .mac = {{2, 0xfc, 0, 0, 0, (uint8_t)fake.made}},
                    .uid = 2000 + fake.made};
    str_copy(vm.id, sizeof vm.id, id);
    str_copy(vm.user, sizeof vm.user, user);
    vm_tap_from_id(vm.id, vm.tap);
    assert_int_equal(store_vm_claim(fake.store, &vm, 100, actor, NULL), 0);
    return vm;
}

int __wrap_vms_new_id_for(struct vms *vms, enum vm_type type, const char *user, char ret_id[VM_ID_TEXT],
                          struct err *err);
int __wrap_vms_new_id_for(struct vms *vms, enum vm_type type, const char *user, char ret_id[VM_ID_TEXT],
                          struct err *err) {
    uint8_t random[16] = {(uint8_t)++fake.made};
    vm_id_from_random(random, ret_id);
    if (fake.is_pooled)
        claim("(pool)", ret_id, "controller");
    return 0;
}

int __wrap_vms_create(struct vms *vms, const struct vms_request *request, const char *actor, struct vm *ret_vm,
                      struct err *err);
int __wrap_vms_create(struct vms *vms, const struct vms_request *request, const char *actor, struct vm *ret_vm,
                      struct err *err) {
    if (fake.create_fails)
        return err_set(err, fake.create_fails, "image.missing", "there is no image");
    struct vm vm;
    if (!fake.is_pooled) {
        vm = claim(request->user, request->id, actor);
    } else {
        assert_int_equal(store_vm_get(fake.store, request->id, &vm, err), 0);
        str_copy(vm.user, sizeof vm.user, request->user);
        assert_int_equal(store_vm_take(fake.store, &vm, 100, actor, err), 0);
    }
    *ret_vm = vm;
    return 0;
}

static void vm_becomes(const char *id, enum vm_state state, const char *reason) {
    struct vm vm;
    assert_int_equal(store_vm_get(fake.store, id, &vm, NULL), 0);
    vm.state = state;
    str_copy(vm.reason, sizeof vm.reason, reason);
    assert_int_equal(store_vm_update(fake.store, &vm, NULL, NULL), 0);
    if (fake.changed)
        fake.changed(fake.userdata, &vm);
}

int __wrap_vms_destroy(struct vms *vms, const char *id, const char *actor, const char *reason, struct vm *ret_vm,
                       struct err *err);
int __wrap_vms_destroy(struct vms *vms, const char *id, const char *actor, const char *reason, struct vm *ret_vm,
                       struct err *err) {
    int r = store_vm_get(fake.store, id, ret_vm, err);
    if (r < 0)
        return r;
    if (vm_state_is_end(ret_vm->state))
        return err_set(err, EALREADY, "vm.ended", "it is over");
    fake.destroyed++;
    str_copy(fake.destroy_reason, sizeof fake.destroy_reason, reason);
    str_copy(fake.destroy_actor, sizeof fake.destroy_actor, actor);
    vm_becomes(id, VM_STATE_STOPPED, reason);
    return 0;
}

void __wrap_vms_folder(struct vms *vms, const struct vm *vm, char ret_path[VMS_PATH_MAX]);
void __wrap_vms_folder(struct vms *vms, const struct vm *vm, char ret_path[VMS_PATH_MAX]) {
    snprintf(ret_path, VMS_PATH_MAX, "%s", fake.folder);
}

/* --- the fixture --- */

struct fixture {
    char dir[64], path[96];
    struct loop *loop;
    struct store *store;
    struct config config;
    struct sessions *sessions;
    bool watched;
    unsigned ended;
    struct session last_ended;
};

static bool is_watched(void *userdata, const char *id) {
    return ((struct fixture *)userdata)->watched;
}

static void on_ended(void *userdata, const struct session *session) {
    struct fixture *f = userdata;
    struct vm vm;
    f->ended++;
    f->last_ended = *session;
    /* Who looks at the desktop is told before it goes. */
    if (session->status != SESSION_FAILED) {
        assert_int_equal(store_vm_get(f->store, session->vm_id, &vm, NULL), 0);
        assert_false(vm_state_is_end(vm.state));
    }
}

static void open_all(struct fixture *f) {
    struct err err = {0};
    assert_int_equal(loop_new(&f->loop, &err), 0);
    assert_int_equal(store_open(f->path, "host", &f->store, &err), 0);
    fake.store = f->store;
    fake.changed = NULL;
    struct sessions_params params = {.loop = f->loop, .store = f->store, .config = &f->config};
    assert_int_equal(sessions_new(&params, &f->sessions, &err), 0);
    sessions_listen(f->sessions, &(struct sessions_listener){.watched = is_watched, .ended = on_ended, .userdata = f});
}

static void close_all(struct fixture *f) {
    sessions_free(f->sessions);
    store_close(f->store);
    loop_free(f->loop);
}

/* As a daemon that was killed and started again. */
static void restart(struct fixture *f) {
    close_all(f);
    open_all(f);
}

/* Lets the loop do what is due at now_ms. */
static void at(struct fixture *f, int64_t now_ms) {
    /* The loop's own clock does not move with ours: a new daemon looks at once. */
    fake.now_ms = now_ms;
    restart(f);
    for (int i = 0; i < 20; i++)
        sd_event_run(loop_event(f->loop), 5000);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    memset(&fake, 0, sizeof fake);
    fake.now_ms = NOW;
    strcpy(f->dir, "/tmp/mc-session-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof f->path, "%s/db", f->dir);
    snprintf(fake.folder, sizeof fake.folder, "%s/vm", f->dir);
    assert_int_equal(mkdir(fake.folder, 0700), 0);
    config_defaults(&f->config);
    open_all(f);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    close_all(f);
    dir_remove(f->dir);
    free(f);
    return 0;
}

static struct session start(struct fixture *f, const char *user) {
    struct session session;
    struct err err = {0};
    bool is_new = false;
    assert_int_equal(sessions_start(f->sessions, user, "demo", "tester", &session, &is_new, &err), 0);
    assert_true(is_new);
    return session;
}

static struct session get(struct fixture *f, const char *id) {
    struct session session;
    assert_int_equal(sessions_get(f->sessions, id, &session, NULL), 0);
    return session;
}

static struct store_event last_event(struct fixture *f, const char *id) {
    struct store_event *events, last;
    size_t n;
    assert_int_equal(store_events(f->store, id, &events, &n, NULL), 0);
    assert_true(n > 0);
    last = events[n - 1];
    free(events);
    return last;
}

/* --- the tests --- */

static void the_story_has_every_step(void **state) {
    struct fixture *f = *state;
    struct session s = start(f, "u");
    assert_int_equal(s.status, SESSION_VM_CREATED);
    assert_true(session_id_is_valid(s.id));
    assert_int_equal(s.timeout_ms, 0);
    vm_becomes(s.vm_id, VM_STATE_BOOTING, "");
    fake.now_ms += 100000; /* a slow boot takes nothing from the user's time */
    vm_becomes(s.vm_id, VM_STATE_RUNNING, "");
    s = get(f, s.id);
    assert_int_equal(s.status, SESSION_AWAITING_USER_AUTH);
    assert_int_equal(s.timeout_ms, NOW + 100000 + 300000);
    assert_int_equal(sessions_cancel(f->sessions, s.id, "ann", "enough", &s, NULL), 0);
    static const char *const steps[][4] = {{"started", "", "started", "tester"},
                                           {"vm-created", "started", "vm_created", "tester"},
                                           {"desktop-ready", "vm_created", "awaiting_user_auth", "controller"},
                                           {"cancelled", "awaiting_user_auth", "cancelled", "ann"}};
    struct store_event *events;
    size_t n;
    assert_int_equal(store_events(f->store, s.id, &events, &n, NULL), 0);
    assert_int_equal(n, 4);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(events[i].event, steps[i][0]);
        assert_string_equal(events[i].from, steps[i][1]);
        assert_string_equal(events[i].to, steps[i][2]);
        assert_string_equal(events[i].actor, steps[i][3]);
    }
    assert_string_equal(events[3].reason, "enough");
    assert_string_equal(events[2].evidence, "");
    char evidence[64];
    snprintf(evidence, sizeof evidence, "evidence/%s", s.vm_id);
    assert_string_equal(events[3].evidence, evidence);
    free(events);
    assert_int_equal(fake.destroyed, 1);
    assert_string_equal(fake.destroy_actor, "ann");
    assert_string_equal(fake.destroy_reason, "its session was cancelled: enough");
    char path[128];
    snprintf(path, sizeof path, "%s/session.json", fake.folder);
    assert_int_equal(access(path, F_OK), 0);
    struct err err;
    assert_int_equal(sessions_cancel(f->sessions, s.id, "bob", "again", &s, &err), -EALREADY);
    assert_string_equal(err.code, "session.ended");
}

/* Its folder is sealed before the record says that it has ended. */
static void a_vm_that_was_killed_has_its_sessions_end_in_its_folder(void **state) {
    struct fixture *f = *state;
    struct session s = start(f, "u");
    struct vm vm;
    char path[128];
    _cleanup_free_ char *text = NULL;
    vm_becomes(s.vm_id, VM_STATE_RUNNING, "");
    assert_int_equal(store_vm_get(f->store, s.vm_id, &vm, NULL), 0);
    vm.state = VM_STATE_FAILED;
    strcpy(vm.reason, "its VMM was killed by signal 9");
    fake.over(fake.userdata, &vm);
    s = get(f, s.id);
    assert_int_equal(s.status, SESSION_FAILED);
    assert_string_equal(s.reason, "its VM failed: its VMM was killed by signal 9");
    snprintf(path, sizeof path, "%s/session.json", fake.folder);
    assert_int_equal(file_read(path, 4096, &text, NULL), 0);
    assert_non_null(strstr(text, "\"status\": \"failed\""));
    assert_non_null(strstr(text, s.reason));
    vm_becomes(s.vm_id, VM_STATE_FAILED, "its VMM was killed by signal 9");
    assert_int_equal(f->ended, 1);
}

static void the_limit_counts_from_the_desktop(void **state) {
    struct fixture *f = *state;
    struct session s = start(f, "u");
    at(f, NOW + 3600000); /* still booting: the VM's own deadline is not ours */
    assert_int_equal(get(f, s.id).status, SESSION_VM_CREATED);
    vm_becomes(s.vm_id, VM_STATE_RUNNING, "");
    at(f, NOW + 3600000 + 299999);
    assert_int_equal(get(f, s.id).status, SESSION_AWAITING_USER_AUTH);
    at(f, NOW + 3600000 + 300000);
    s = get(f, s.id);
    assert_int_equal(s.status, SESSION_TIMEOUT);
    assert_non_null(strstr(s.reason, "300 s"));
    assert_string_equal(last_event(f, s.id).actor, "controller");
    assert_int_equal(f->ended, 1);
    assert_int_equal(f->last_ended.status, SESSION_TIMEOUT);
    assert_int_equal(fake.destroyed, 1);
    assert_non_null(strstr(fake.destroy_reason, "timed out"));
}

static void no_limit_where_there_is_none(void **state) {
    struct fixture *f = *state;
    f->config.session.timeout_ms = 0;
    struct session s = start(f, "u");
    vm_becomes(s.vm_id, VM_STATE_RUNNING, "");
    at(f, NOW + 86400000LL * 10);
    assert_int_equal(get(f, s.id).status, SESSION_AWAITING_USER_AUTH);
    assert_int_equal(get(f, s.id).timeout_ms, 0);
}

static void the_timer_comes_by_itself(void **state) {
    struct fixture *f = *state;
    f->config.session.timeout_ms = 10;
    struct session s = start(f, "u");
    vm_becomes(s.vm_id, VM_STATE_RUNNING, "");
    fake.now_ms += 10;
    for (int i = 0; i < 1000 && get(f, s.id).status != SESSION_TIMEOUT; i++)
        sd_event_run(loop_event(f->loop), 10000);
    assert_int_equal(get(f, s.id).status, SESSION_TIMEOUT);
}

static void a_heartbeat_extends_nothing(void **state) {
    struct fixture *f = *state;
    struct session s = start(f, "u");
    vm_becomes(s.vm_id, VM_STATE_RUNNING, "");
    int64_t timeout_ms = get(f, s.id).timeout_ms;
    for (int i = 1; i <= 29; i++) {
        fake.now_ms = NOW + 10000 * i;
        assert_int_equal(sessions_heartbeat(f->sessions, s.id, &s, NULL), 0);
        assert_int_equal(s.timeout_ms, timeout_ms);
        assert_int_equal(s.seen_ms, fake.now_ms);
    }
    at(f, NOW + 300000);
    assert_int_equal(get(f, s.id).status, SESSION_TIMEOUT);
    struct err err;
    assert_int_equal(sessions_heartbeat(f->sessions, s.id, &s, &err), -EALREADY);
    assert_int_equal(sessions_heartbeat(f->sessions, "0123456789abcdef0123456789abcdef", &s, &err), -ENOENT);
}

/* The restart in at() gives pages another 120 s, so time passes in two steps. */
static void a_page_that_is_gone_is_noticed(void **state) {
    struct fixture *f = *state;
    f->config.session.timeout_ms = 0;
    struct session never = start(f, "never"), gone = start(f, "gone");
    assert_int_equal(sessions_heartbeat(f->sessions, gone.id, &gone, NULL), 0);
    f->config.session.abandoned_ms = 10;
    fake.now_ms += 10;
    assert_int_equal(sessions_heartbeat(f->sessions, gone.id, &gone, NULL), 0); /* arms anew */
    fake.now_ms += 10;
    for (int i = 0; i < 1000 && get(f, gone.id).status != SESSION_CANCELLED; i++)
        sd_event_run(loop_event(f->loop), 10000);
    gone = get(f, gone.id);
    assert_int_equal(gone.status, SESSION_CANCELLED);
    assert_non_null(strstr(gone.reason, "its page was closed"));
    assert_string_equal(last_event(f, gone.id).actor, "controller");
    assert_int_equal(get(f, never.id).status, SESSION_VM_CREATED);
}

static void who_sees_the_desktop_is_there(void **state) {
    struct fixture *f = *state;
    f->config.session.abandoned_ms = 10;
    struct session s = start(f, "u");
    f->watched = true;
    assert_int_equal(sessions_heartbeat(f->sessions, s.id, &s, NULL), 0);
    fake.now_ms += 50;
    for (int i = 0; i < 1000 && get(f, s.id).seen_ms != fake.now_ms; i++)
        sd_event_run(loop_event(f->loop), 10000);
    assert_int_equal(get(f, s.id).seen_ms, fake.now_ms);
    assert_int_equal(get(f, s.id).status, SESSION_VM_CREATED);
    f->watched = false;
    fake.now_ms += 50;
    for (int i = 0; i < 1000 && get(f, s.id).status == SESSION_VM_CREATED; i++)
        sd_event_run(loop_event(f->loop), 10000);
    assert_int_equal(get(f, s.id).status, SESSION_CANCELLED);
}

static void a_page_could_not_tell_a_daemon_that_was_away(void **state) {
    struct fixture *f = *state;
    f->config.session.timeout_ms = 0;
    struct session s = start(f, "u");
    assert_int_equal(sessions_heartbeat(f->sessions, s.id, &s, NULL), 0);
    at(f, NOW + 1000000);
    assert_int_equal(get(f, s.id).status, SESSION_VM_CREATED);
}

static void one_active_session_a_user_and_provider(void **state) {
    struct fixture *f = *state;
    struct session s = start(f, "u"), again;
    bool is_new = true;
    assert_int_equal(sessions_start(f->sessions, "u", "demo", "x", &again, &is_new, NULL), 0);
    assert_false(is_new);
    assert_string_equal(again.id, s.id);
    struct session other = start(f, "v");
    assert_string_not_equal(other.id, s.id);
    assert_int_equal(sessions_cancel(f->sessions, s.id, "x", "", &s, NULL), 0);
    again = start(f, "u");
    assert_string_not_equal(again.id, s.id);
    assert_int_equal(fake.made, 3);
}

static void ends_with_its_vm(void **state) {
    struct fixture *f = *state;
    struct session s = start(f, "u");
    vm_becomes(s.vm_id, VM_STATE_FAILED, "the guest's kernel panicked");
    s = get(f, s.id);
    assert_int_equal(s.status, SESSION_FAILED);
    assert_string_equal(s.reason, "its VM failed: the guest's kernel panicked");
    assert_int_equal(fake.destroyed, 0);
    assert_int_equal(f->ended, 1);
    /* What comes late changes nothing. */
    vm_becomes(s.vm_id, VM_STATE_RUNNING, "");
    assert_int_equal(get(f, s.id).status, SESSION_FAILED);
}

static void a_vm_that_cannot_be_made(void **state) {
    struct fixture *f = *state;
    struct session s;
    struct err err = {0};
    bool is_new;
    fake.create_fails = ENOENT;
    assert_int_equal(sessions_start(f->sessions, "u", "demo", "x", &s, &is_new, &err), -ENOENT);
    assert_string_equal(err.code, "image.missing");
    struct session *list;
    size_t n;
    assert_int_equal(store_session_list(f->store, STORE_ALL, &list, &n, NULL), 0);
    assert_int_equal(n, 1);
    assert_int_equal(list[0].status, SESSION_FAILED);
    assert_string_equal(list[0].reason, "there is no image");
    assert_string_equal(list[0].vm_id, "");
    free(list);
    fake.create_fails = 0;
    start(f, "u");
}

/* It waits on for whoever comes next, and what becomes of it then is not this session's. */
static void a_vm_of_the_pool_that_it_does_not_get(void **state) {
    struct fixture *f = *state;
    struct session s, *list;
    struct vm vm, *vms;
    struct err err = {0};
    size_t n;
    bool is_new;
    char path[128];
    fake.is_pooled = true;
    fake.create_fails = EDQUOT;
    assert_int_equal(sessions_start(f->sessions, "u", "demo", "x", &s, &is_new, &err), -EDQUOT);
    assert_int_equal(store_session_list(f->store, STORE_ALL, &list, &n, NULL), 0);
    assert_int_equal(n, 1);
    s = list[0];
    free(list);
    assert_int_equal(s.status, SESSION_FAILED);
    assert_string_equal(last_event(f, s.id).evidence, "");
    snprintf(path, sizeof path, "%s/session.json", fake.folder);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(sessions_vm(f->sessions, &s, &vm, &err), -ENOENT);
    /* It is given to the same user, without a session. */
    assert_int_equal(store_vm_list(f->store, "(pool)", STORE_LIVE, &vms, &n, NULL), 0);
    assert_int_equal(n, 1);
    vm = vms[0];
    free(vms);
    str_copy(vm.user, sizeof vm.user, "u");
    assert_int_equal(store_vm_take(f->store, &vm, 100, "x", NULL), 0);
    restart(f);
    assert_int_equal(fake.destroyed, 0);
    fake.create_fails = 0;
    s = start(f, "u");
    assert_int_equal(sessions_vm(f->sessions, &s, &vm, &err), 0);
    assert_string_equal(vm.id, s.vm_id);
    assert_int_equal(sessions_cancel(f->sessions, s.id, "u", "enough", &s, NULL), 0);
    assert_int_equal(fake.destroyed, 1);
}

/* The controller was killed, or could not write, before it was known that the session does not get it. */
static void a_vm_of_the_pool_that_somebody_else_gets(void **state) {
    struct fixture *f = *state;
    struct session s = {.user = "u", .provider = "demo", .id = "00000000000000000000000000000001"};
    struct store_event event = {.event = "started", .to = "started"};
    struct vm vm;
    struct err err = {0};
    fake.is_pooled = true;
    assert_int_equal(__wrap_vms_new_id_for(NULL, VM_TYPE_BROWSER, s.user, s.vm_id, NULL), 0);
    assert_int_equal(store_session_add(f->store, &s, &event, NULL), 0);
    assert_int_equal(store_vm_get(f->store, s.vm_id, &vm, NULL), 0);
    str_copy(vm.user, sizeof vm.user, "other");
    assert_int_equal(store_vm_take(f->store, &vm, 100, "x", NULL), 0);
    assert_int_equal(sessions_vm(f->sessions, &s, &vm, &err), -ENOENT);
    assert_string_equal(err.code, "vm.not-found");
    start(f, "u"); /* which ends the one that was not started to its end */
    assert_int_equal(get(f, s.id).status, SESSION_FAILED);
    restart(f);
    assert_int_equal(fake.destroyed, 0);
}

static void a_new_daemon_takes_them_up(void **state) {
    struct fixture *f = *state;
    struct session live = start(f, "live"), ready = start(f, "ready"), lost = start(f, "lost"), done = start(f, "done");
    fake.changed = NULL; /* from here on the daemon is dead */
    vm_becomes(ready.vm_id, VM_STATE_RUNNING, "");
    vm_becomes(lost.vm_id, VM_STATE_FAILED, "its VMM was gone");
    /* Killed between the session's end and its VM's. */
    struct session ended = done;
    struct store_event event = {.event = "cancelled"};
    ended.status = SESSION_CANCELLED;
    assert_int_equal(store_session_update(f->store, &ended, &event, NULL), 0);
    fake.now_ms += 5000;
    restart(f);
    assert_int_equal(get(f, live.id).status, SESSION_VM_CREATED);
    assert_int_equal(get(f, ready.id).status, SESSION_AWAITING_USER_AUTH);
    assert_int_equal(get(f, ready.id).timeout_ms, NOW + 5000 + 300000);
    assert_string_equal(get(f, lost.id).reason, "its VM failed: its VMM was gone");
    struct vm vm;
    assert_int_equal(store_vm_get(f->store, done.vm_id, &vm, NULL), 0);
    assert_int_equal(vm.state, VM_STATE_STOPPED);
    assert_int_equal(fake.destroyed, 1);
    assert_int_equal(store_vm_get(f->store, live.vm_id, &vm, NULL), 0);
    assert_int_equal(vm.state, VM_STATE_CREATING);
}

static void tickets_and_cookies(void **state) {
    struct fixture *f = *state;
    struct session s = start(f, "u"), other = start(f, "v");
    char ticket[SESSIONS_SECRET_TEXT], cookie[SESSIONS_SECRET_TEXT];
    assert_int_equal(sessions_ticket(f->sessions, &s, 60000, ticket, NULL), 0);
    assert_int_equal(sessions_redeem(f->sessions, other.id, ticket, cookie, NULL), -ENOENT);
    assert_int_equal(sessions_redeem(f->sessions, s.id, ticket, cookie, NULL), 0);
    assert_int_equal(sessions_redeem(f->sessions, s.id, ticket, cookie, NULL), -ENOENT);
    assert_int_equal(sessions_check_cookie(f->sessions, s.id, cookie, NULL), 0);
    assert_int_equal(sessions_check_cookie(f->sessions, other.id, cookie, NULL), -ENOENT);
    assert_int_equal(sessions_ticket(f->sessions, &s, 60000, ticket, NULL), 0);
    fake.now_ms += 60000;
    assert_int_equal(sessions_redeem(f->sessions, s.id, ticket, cookie, NULL), -ENOENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_story_has_every_step, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_vm_that_was_killed_has_its_sessions_end_in_its_folder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_limit_counts_from_the_desktop, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_limit_where_there_is_none, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_timer_comes_by_itself, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_heartbeat_extends_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_page_that_is_gone_is_noticed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_sees_the_desktop_is_there, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_page_could_not_tell_a_daemon_that_was_away, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_active_session_a_user_and_provider, set_up, tear_down),
        cmocka_unit_test_setup_teardown(ends_with_its_vm, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_vm_that_cannot_be_made, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_vm_of_the_pool_that_it_does_not_get, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_vm_of_the_pool_that_somebody_else_gets, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_new_daemon_takes_them_up, set_up, tear_down),
        cmocka_unit_test_setup_teardown(tickets_and_cookies, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
