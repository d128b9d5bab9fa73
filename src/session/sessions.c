#include "session/sessions.h"

#include <jansson.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "session/custody.h"
#include "session/providers.h"

#define CONTROLLER "controller"
/* Deadlines are real time, as people read them: after a step of the clock they are looked at again this soon. */
#define LOOK_AGAIN_MS 30000

/* A session whose tool is at work. */
struct running {
    struct running *next;
    struct login *login;
};

struct sessions {
    struct store *store;
    struct vms *vms;
    struct vault *vault;
    struct custody *custody;
    struct running *logins;
    struct loop *loop;
    const struct config *config;
    struct sessions_listener listener;
    struct loop_timer *timer; /* for the next deadline of all sessions */
    int64_t started_ms;       /* no page can have told a daemon that was not there */
    bool armed;
    int64_t armed_ms; /* real time, when armed */
};

static void log_change(const struct session *before, const struct session *next, const char *actor) {
    log_event(
        next->status == SESSION_FAILED ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO,
        (struct log_about){.event = "session", .session_id = next->id, .vm_id = *next->vm_id ? next->vm_id : NULL},
        "%s -> %s by %s%s%s", session_status_name(before->status), session_status_name(next->status), actor,
        *next->reason ? ": " : "", next->reason);
}

static struct store_event event_of(const struct session *next, const char *name, const char *actor) {
    struct store_event e = {.at_ms = time_realtime_ms()};
    str_copy(e.actor, sizeof e.actor, actor);
    str_copy(e.event, sizeof e.event, name);
    str_copy(e.to, sizeof e.to, session_status_name(next->status));
    str_copy(e.reason, sizeof e.reason, next->reason);
    return e;
}

/* Its VM. The id that a session has before its VM is made may be that of one in the pool: where it is not given that one,
 * it is nobody's, and then another user's. */
static int get_vm(struct sessions *all, const struct session *session, struct vm *ret_vm, struct err *err) {
    struct vm vm;
    int r = store_vm_get(all->store, session->vm_id, &vm, err);
    if (r == 0 && strcmp(vm.user, session->user) != 0)
        r = err_set(err, ENOENT, "vm.not-found", "session %s has no VM", session->id);
    if (r == 0)
        *ret_vm = vm;
    return r;
}

/* The one place where a session's status changes: the status and its event are one transaction. */
static int change(struct sessions *all, struct session *session, enum session_event event, const char *actor,
                  const char *reason, struct err *err) {
    struct session next = *session;
    if (session_transition(session->status, event, &next.status) < 0)
        return err_set(err, EPROTO, "session.state", "session %s is %s: that cannot happen to it now", session->id,
                       session_status_name(session->status));
    str_escape(reason, strlen(reason), next.reason, sizeof next.reason);
    if (event == SESSION_EVENT_DESKTOP_READY && all->config->session.timeout_ms)
        next.timeout_ms = time_realtime_ms() + all->config->session.timeout_ms;
    struct store_event e = event_of(&next, session_event_name(event), actor);
    str_copy(e.from, sizeof e.from, session_status_name(session->status));
    struct vm vm;
    if (session_status_is_end(next.status) && get_vm(all, &next, &vm, NULL) == 0)
        snprintf(e.evidence, sizeof e.evidence, "evidence/%s", vm.id);
    int r = store_session_update(all->store, &next, &e, err);
    if (r < 0)
        return r;
    log_change(session, &next, actor);
    *session = next;
    return 0;
}

/* Into the VM's folder, which becomes its evidence. What cannot be written is only missed there: the store has it. */
static void write_evidence(struct sessions *all, const struct session *session, const char *actor) {
    char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 16], at[TIME_RFC3339_SIZE];
    struct vm vm;
    if (get_vm(all, session, &vm, NULL) != 0 || vm_state_is_end(vm.state))
        return;
    vms_folder(all->vms, &vm, folder);
    snprintf(path, sizeof path, "%s/session.json", folder);
    time_format_rfc3339(time_realtime_ms(), at);
    json_t *document = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "id", session->id, "user", session->user,
                                 "provider", session->provider, "status", session_status_name(session->status),
                                 "ended_at", at, "actor", actor, "reason", session->reason);
    char *text = document ? json_dumps(document, JSON_INDENT(2)) : NULL;
    int r = text ? file_write_atomic(path, text, strlen(text), 0600) : -ENOMEM;
    if (r < 0)
        log_warning("session %s: %s: %s", session->id, path, strerror(-r));
    json_decref(document);
    free(text);
}

/* Ends the VM of a session that has ended. Not being there any more is fine. */
static void end_vm(struct sessions *all, const struct session *session, const char *actor) {
    char reason[VM_REASON_MAX];
    struct vm vm;
    struct err err = {0};
    if (get_vm(all, session, &vm, NULL) == -ENOENT)
        return;
    snprintf(reason, sizeof reason, "its session %s%s%.300s",
             session->status == SESSION_COMPLETED   ? "was completed"
             : session->status == SESSION_CANCELLED ? "was cancelled"
             : session->status == SESSION_TIMEOUT   ? "timed out"
                                                    : "failed",
             *session->reason ? ": " : "", session->reason);
    int r = vms_destroy(all->vms, session->vm_id, actor, reason, &vm, &err);
    if (r < 0 && r != -ENOENT && r != -EALREADY)
        log_warning("session %s: %s", session->id, err.detail);
}

static void stop_login(struct sessions *all, const char *id) {
    for (struct running **at = &all->logins; *at; at = &(*at)->next) {
        struct running *found = *at;
        if (strcmp(login_session(found->login), id) != 0)
            continue;
        *at = found->next;
        login_free(found->login);
        free(found);
        return;
    }
}

static struct login *find_login(struct sessions *all, const char *id) {
    for (struct running *r = all->logins; r; r = r->next)
        if (strcmp(login_session(r->login), id) == 0)
            return r->login;
    return NULL;
}

static int end(struct sessions *all, struct session *session, enum session_event event, const char *actor,
               const char *reason, struct err *err) {
    int r = change(all, session, event, actor, reason, err);
    if (r < 0)
        return r;
    stop_login(all, session->id);
    write_evidence(all, session, actor);
    if (all->listener.ended)
        all->listener.ended(all->listener.userdata, session);
    end_vm(all, session, actor);
    return 0;
}

/* For ends that nobody waits for. One that cannot be stored is tried again by the timer, or at the next start. */
static void end_alone(struct sessions *all, struct session *session, enum session_event event, const char *reason) {
    struct err err = {0};
    if (end(all, session, event, CONTROLLER, reason, &err) < 0)
        log_error("session %s: %s", session->id, err.detail);
}

/* --- deadlines --- */

/* When the session's page counts as gone; 0: never. */
static int64_t abandoned_ms(const struct sessions *all, const struct session *session) {
    if (!session->seen_ms || !all->config->session.abandoned_ms)
        return 0;
    int64_t since = session->seen_ms > all->started_ms ? session->seen_ms : all->started_ms;
    return since + all->config->session.abandoned_ms;
}

static void on_timer(void *userdata);

/* Sees to it that the timer comes at due_ms or before. */
static void arm(struct sessions *all, int64_t due_ms) {
    if (!due_ms || (all->armed && all->armed_ms <= due_ms))
        return;
    int64_t delay = due_ms - time_realtime_ms();
    delay = delay < 1 ? 1 : delay > LOOK_AGAIN_MS ? LOOK_AGAIN_MS : delay;
    if (all->timer)
        loop_timer_again(all->timer, delay);
    else if (loop_timer_new(all->loop, delay, on_timer, all, &all->timer) < 0)
        return;
    all->armed = true;
    all->armed_ms = due_ms;
}

static void check_page(struct sessions *all, struct session *session, int64_t now_ms) {
    char reason[120];
    int64_t due = abandoned_ms(all, session);
    if (!due || due > now_ms)
        return;
    if (all->listener.watched && all->listener.watched(all->listener.userdata, session->id)) {
        if (store_session_seen(all->store, session->id, now_ms, NULL) == 0)
            session->seen_ms = now_ms;
        return;
    }
    snprintf(reason, sizeof reason, "its page was closed: no sign of it for %u s",
             all->config->session.abandoned_ms / 1000);
    end_alone(all, session, SESSION_EVENT_CANCEL, reason);
}

static void check_deadlines(struct sessions *all, struct session *session, int64_t now_ms) {
    char reason[120];
    const struct login *login = find_login(all, session->id);
    if (login && login_is_done(login)) /* in time; that the login works is still found out */
        return;
    if (session->timeout_ms && session->timeout_ms <= now_ms) {
        snprintf(reason, sizeof reason, "nobody had logged in %u s after the desktop could be used",
                 all->config->session.timeout_ms / 1000);
        end_alone(all, session, SESSION_EVENT_TIMEOUT, reason);
    } else {
        check_page(all, session, now_ms);
    }
}

static void on_timer(void *userdata) {
    struct sessions *all = userdata;
    _cleanup_free_ struct session *list = NULL;
    size_t n;
    struct err err = {0};
    int64_t now_ms = time_realtime_ms();
    all->armed = false;
    if (store_session_list(all->store, STORE_LIVE, &list, &n, &err) < 0) {
        log_error("%s", err.detail);
        arm(all, now_ms + 1000);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        check_deadlines(all, &list[i], now_ms);
        if (session_status_is_end(list[i].status))
            continue;
        /* What is due and could not be stored: once a second. */
        int64_t soon = now_ms + 1000, timeout = list[i].timeout_ms, page = abandoned_ms(all, &list[i]);
        arm(all, timeout && timeout < soon ? soon : timeout);
        arm(all, page && page < soon ? soon : page);
    }
}

/* --- its login --- */

/* Return: whether there is such a session, which has not ended. */
static bool get_active(struct sessions *all, const char *id, struct session *ret_session) {
    struct err err = {0};
    if (store_session_get(all->store, id, ret_session, &err) == 0)
        return !session_status_is_end(ret_session->status);
    log_error("session %s: %s", id, err.detail);
    return false;
}

static void on_login_begun(void *userdata, const char *id) {
    struct sessions *all = userdata;
    struct session session;
    struct err err = {0};
    if (get_active(all, id, &session) && session.status == SESSION_AWAITING_USER_AUTH &&
        change(all, &session, SESSION_EVENT_LOGIN_BEGUN, CONTROLLER, "", &err) < 0)
        log_error("session %s: %s", id, err.detail);
}

static void on_login_again(void *userdata, const char *id, const char *why) {
    struct sessions *all = userdata;
    struct session session;
    struct err err = {0};
    if (get_active(all, id, &session) && session.status == SESSION_AUTHENTICATING &&
        change(all, &session, SESSION_EVENT_LOGIN_AGAIN, CONTROLLER, why, &err) < 0)
        log_error("session %s: %s", id, err.detail);
}

/* The login tool is gone: the next VM may have the credential. Where that cannot be stored it has it when this one has ended. */
static void complete(struct sessions *all, struct session *session) {
    struct err err = {0};
    end_alone(all, session, SESSION_EVENT_COMPLETE, "the login works, and its credential is in the vault");
    if (session_status_is_end(session->status) && vault_release(all->vault, session->vm_id, &err) < 0)
        log_warning("session %s: %s", session->id, err.detail);
    custody_stored(all->custody, session->user);
}

/* Where the end cannot be stored now, the session's time limit tries again. */
static void on_login_ended(void *userdata, const char *session_id, const struct err *why) {
    struct sessions *all = userdata;
    char id[SESSION_ID_TEXT], reason[VM_REASON_MAX];
    struct session session;
    str_copy(id, sizeof id, session_id);
    snprintf(reason, sizeof reason, "%.340s%s%.50s", why ? why->detail : "", why && *why->hint ? "; " : "",
             why ? why->hint : "");
    stop_login(all, id);
    if (!get_active(all, id, &session))
        return;
    if (why)
        end_alone(all, &session, SESSION_EVENT_FAIL, reason);
    else
        complete(all, &session);
}

static void run_login(struct sessions *all, const struct session *session, const struct provider *provider) {
    static const struct login_owner owner = {.begun = on_login_begun, .again = on_login_again, .ended = on_login_ended};
    struct login_params params = {.loop = all->loop,
                                  .vms = all->vms,
                                  .vault = all->vault,
                                  .provider = provider,
                                  .session_id = session->id,
                                  .user = session->user,
                                  .vm_id = session->vm_id,
                                  .is_resumed = session->status == SESSION_AUTHENTICATING,
                                  .owner = &owner,
                                  .userdata = all};
    struct err err = {0};
    struct running *running = calloc(1, sizeof *running);
    if (!running || login_new(&params, &running->login, &err) < 0) {
        free(running);
        log_error("session %s: its login is not started: %s", session->id, *err.detail ? err.detail : "out of memory");
        return;
    }
    running->next = all->logins;
    all->logins = running;
}

/* The desktop can be used. */
static void begin_login(struct sessions *all, struct session *session) {
    struct provider provider = {0};
    struct err err = {0};
    bool may_begin = session->status == SESSION_AWAITING_USER_AUTH || session->status == SESSION_AUTHENTICATING;
    if (!all->vault || !may_begin || find_login(all, session->id))
        return;
    if (provider_load(all->config->session.providers, session->provider, &provider, &err) < 0)
        end_alone(all, session, SESSION_EVENT_FAIL, err.detail);
    else if (provider.flow != PROVIDER_FLOW_NONE)
        run_login(all, session, &provider);
}

/* --- its VM --- */

/* What a VM's state means for the session that it serves. */
static void follow_vm(struct sessions *all, struct session *session, const struct vm *vm) {
    struct err err = {0};
    char reason[VM_REASON_MAX];
    if (vm->state == VM_STATE_RUNNING && session->status == SESSION_VM_CREATED) {
        if (change(all, session, SESSION_EVENT_DESKTOP_READY, CONTROLLER, "", &err) < 0)
            log_error("session %s: %s", session->id, err.detail);
        arm(all, session->timeout_ms);
    }
    if (vm->state == VM_STATE_RUNNING) {
        begin_login(all, session);
    } else if (vm_state_is_end(vm->state)) {
        snprintf(reason, sizeof reason, "its VM %s: %.360s", vm->state == VM_STATE_FAILED ? "failed" : "was stopped",
                 vm->reason);
        end_alone(all, session, SESSION_EVENT_FAIL, reason);
    }
}

/* It has this state, or will have it in a moment: its folder is still there then, for the session's end in it. */
static void follow_session_of(struct sessions *all, const struct vm *vm) {
    struct session session;
    struct err err = {0};
    if (vm->type != VM_TYPE_BROWSER)
        return;
    int r = store_session_of_vm(all->store, vm->id, &session, &err);
    if (r == 0 && !session_status_is_end(session.status))
        follow_vm(all, &session, vm);
    else if (r < 0 && r != -ENOENT)
        log_error("%s", err.detail);
}

static void on_vm_over(void *userdata, const struct vm *vm) {
    follow_session_of(userdata, vm);
}

static void on_vm_changed(void *userdata, const struct vm *vm) {
    struct sessions *all = userdata;
    if (all->custody)
        custody_vm_changed(all->custody, vm);
    follow_session_of(all, vm);
}

static bool is_looked_at(void *userdata, const struct vm *vm) {
    const struct sessions *all = userdata;
    return custody_is_looking(all->custody, vm->id);
}

/* --- a new daemon --- */

static void catch_up_with(struct sessions *all, struct session *session) {
    struct vm vm;
    struct err err = {0};
    if (session->status == SESSION_STARTED) {
        end_alone(all, session, SESSION_EVENT_FAIL, "the controller ended while it was started");
        return;
    }
    int r = get_vm(all, session, &vm, &err);
    if (r == 0)
        follow_vm(all, session, &vm);
    else if (r == -ENOENT)
        end_alone(all, session, SESSION_EVENT_FAIL, "there is no record of its VM");
    else
        log_error("session %s: %s", session->id, err.detail);
}

/* VMs whose session ended, and then the daemon before it could end them too. */
static int end_leftovers(struct sessions *all, struct err *err) {
    _cleanup_free_ struct vm *vms = NULL;
    size_t n;
    struct session session;
    int r = store_vm_list(all->store, NULL, STORE_LIVE, &vms, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++)
        if (vms[i].type == VM_TYPE_BROWSER && store_session_of_vm(all->store, vms[i].id, &session, NULL) == 0 &&
            session_status_is_end(session.status))
            end_vm(all, &session, CONTROLLER);
    return r;
}

static int catch_up(struct sessions *all, struct err *err) {
    _cleanup_free_ struct session *list = NULL;
    size_t n;
    int r = store_session_list(all->store, STORE_LIVE, &list, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++)
        catch_up_with(all, &list[i]);
    return r < 0 ? r : end_leftovers(all, err);
}

static void warn_of_provider(void *userdata, const char *name, const struct provider *provider, const struct err *err) {
    if (err)
        log_warning("the provider %s cannot be used: %s", name, err->detail);
}

int sessions_new(const struct sessions_params *params, struct sessions **ret_sessions, struct err *err) {
    struct sessions *all = calloc(1, sizeof *all);
    if (!all || sodium_init() < 0) {
        free(all);
        return err_set(err, ENOMEM, "session.start", "start the session manager");
    }
    *all = (struct sessions){.store = params->store,
                             .vms = params->vms,
                             .vault = params->vault,
                             .loop = params->loop,
                             .config = params->config,
                             .started_ms = time_realtime_ms()};
    struct custody_params custody = {.loop = params->loop,
                                     .store = params->store,
                                     .vault = params->vault,
                                     .vms = params->vms,
                                     .providers = params->config->session.providers};
    int r = all->vault ? custody_new(&custody, &all->custody, err) : 0;
    if (r == 0)
        r = catch_up(all, err);
    if (r < 0) {
        sessions_free(all);
        return r;
    }
    vms_on_change(all->vms, on_vm_changed, all);
    vms_on_over(all->vms, on_vm_over, all);
    if (all->custody)
        vms_set_last_look(all->vms, is_looked_at, all);
    provider_each(all->config->session.providers, warn_of_provider, NULL);
    arm(all, all->started_ms + 1);
    *ret_sessions = all;
    return 0;
}

void sessions_free(struct sessions *all) {
    if (!all)
        return;
    while (all->logins)
        stop_login(all, login_session(all->logins->login));
    custody_free(all->custody);
    loop_timer_free(all->timer);
    free(all);
}

void sessions_listen(struct sessions *all, const struct sessions_listener *listener) {
    all->listener = *listener;
}

/* --- what callers want --- */

static void random_hex(char *ret_text, size_t bytes) {
    uint8_t random[32];
    randombytes_buf(random, bytes);
    str_hex(random, bytes, ret_text);
    sodium_memzero(random, sizeof random);
}

static int make_vm(struct sessions *all, struct session *session, const char *actor, struct err *err) {
    struct vms_request request = {.user = session->user, .type = VM_TYPE_BROWSER, .id = session->vm_id};
    struct vm vm;
    struct err own = {0};
    int r = vms_create(all->vms, &request, actor, &vm, &own);
    if (r < 0) /* one of the pool that it does not get may be given to the same user later, for something else */
        session->vm_id[0] = '\0';
    else
        r = change(all, session, SESSION_EVENT_VM_CREATED, actor, "", &own);
    if (r < 0)
        end_alone(all, session, SESSION_EVENT_FAIL, own.detail);
    if (r < 0 && err)
        *err = own;
    return r;
}

/* The VM's id first: a crash never leaves a VM that no session knows. */
static int add(struct sessions *all, struct session *session, const char *actor, struct err *err) {
    random_hex(session->id, 16);
    int r = vms_new_id_for(all->vms, VM_TYPE_BROWSER, session->user, session->vm_id, err);
    struct store_event event = event_of(session, "started", actor);
    return r < 0 ? r : store_session_add(all->store, session, &event, err);
}

int sessions_start(struct sessions *all, const char *user, const char *provider, const char *actor,
                   struct session *ret_session, bool *ret_is_new, struct err *err) {
    struct provider profile;
    int r = provider_use(all->config->session.providers, provider, &profile, err);
    if (r < 0)
        return r;
    struct session session = {.status = SESSION_STARTED, .created_ms = time_realtime_ms()};
    struct session former;
    r = store_session_find(all->store, user, provider, &former, err);
    if (r == 0 && former.status != SESSION_STARTED) {
        *ret_is_new = false;
        *ret_session = former;
        return 0;
    }
    if (r < 0 && r != -ENOENT)
        return r;
    if (r == 0) /* nobody is at work on it: this function starts them in one go */
        end_alone(all, &former, SESSION_EVENT_FAIL, "it was not started to its end");
    str_copy(session.user, sizeof session.user, user);
    str_copy(session.provider, sizeof session.provider, provider);
    r = add(all, &session, actor, err);
    if (r == 0)
        r = make_vm(all, &session, actor, err);
    if (r < 0)
        return r;
    *ret_is_new = true;
    *ret_session = session;
    return 0;
}

int sessions_get(struct sessions *all, const char *id, struct session *ret_session, struct err *err) {
    return store_session_get(all->store, id, ret_session, err);
}

int sessions_vm(struct sessions *all, const struct session *session, struct vm *ret_vm, struct err *err) {
    return get_vm(all, session, ret_vm, err);
}

static int get_live(struct sessions *all, const char *id, struct session *ret_session, struct err *err) {
    struct session session;
    int r = sessions_get(all, id, &session, err);
    if (r < 0)
        return r;
    if (session_status_is_end(session.status))
        return err_set(err, EALREADY, "session.ended", "session %s is %s already", id,
                       session_status_name(session.status));
    *ret_session = session;
    return 0;
}

int sessions_cancel(struct sessions *all, const char *id, const char *actor, const char *reason,
                    struct session *ret_session, struct err *err) {
    struct session session = {0};
    int r = get_live(all, id, &session, err);
    if (r == 0)
        r = end(all, &session, SESSION_EVENT_CANCEL, actor, reason, err);
    if (r == 0)
        *ret_session = session;
    return r;
}

int sessions_heartbeat(struct sessions *all, const char *id, struct session *ret_session, struct err *err) {
    struct session session = {0};
    int r = get_live(all, id, &session, err);
    if (r < 0)
        return r;
    session.seen_ms = time_realtime_ms();
    r = store_session_seen(all->store, id, session.seen_ms, err);
    if (r < 0)
        return r;
    arm(all, abandoned_ms(all, &session));
    *ret_session = session;
    return 0;
}

static int get_login(struct sessions *all, const struct session *session, struct login **ret_login, struct err *err) {
    struct login *login = find_login(all, session->id);
    if (session_status_is_end(session->status))
        return err_set(err, EALREADY, "session.ended", "session %s is %s already", session->id,
                       session_status_name(session->status));
    if (!login)
        return err_set(err, ENOENT, "session.no-login", "no login tool is at work in session %s", session->id);
    *ret_login = login;
    return 0;
}

int sessions_login(struct sessions *all, const struct session *session, struct login_view *ret_view, struct err *err) {
    struct login *login = NULL;
    int r = get_login(all, session, &login, err);
    if (r == 0)
        login_look(login, ret_view);
    return r;
}

int sessions_input(struct sessions *all, const struct session *session, const char *text, size_t len, struct err *err) {
    struct login *login = NULL;
    int r = get_login(all, session, &login, err);
    return r < 0 ? r : login_input(login, text, len, err);
}

bool sessions_credential_where(struct sessions *all, const char *user, const char *provider, uint64_t version,
                               char ret_vm[VM_ID_TEXT]) {
    return all->custody && custody_where(all->custody, user, provider, version, ret_vm);
}

static void hash_secret(const char *secret, uint8_t ret_hash[STORE_HASH_SIZE]) {
    crypto_generichash(ret_hash, STORE_HASH_SIZE, (const uint8_t *)secret, strlen(secret), NULL, 0);
}

static int make_secret(struct sessions *all, enum store_secret kind, const char *session_id, int64_t lifetime_ms,
                       char ret_secret[SESSIONS_SECRET_TEXT], struct err *err) {
    char secret[SESSIONS_SECRET_TEXT];
    uint8_t hash[STORE_HASH_SIZE];
    random_hex(secret, 32);
    hash_secret(secret, hash);
    int r = store_secret_add(all->store, kind, hash, session_id, time_realtime_ms() + lifetime_ms, err);
    if (r == 0)
        memcpy(ret_secret, secret, sizeof secret);
    sodium_memzero(secret, sizeof secret);
    return r;
}

static int use_secret(struct sessions *all, enum store_secret kind, const char *session_id, const char *secret,
                      struct err *err) {
    uint8_t hash[STORE_HASH_SIZE];
    hash_secret(secret, hash);
    return store_secret_use(all->store, kind, hash, session_id, time_realtime_ms(), err);
}

int sessions_ticket(struct sessions *all, const struct session *session, int64_t lifetime_ms,
                    char ret_ticket[SESSIONS_SECRET_TEXT], struct err *err) {
    if (session_status_is_end(session->status))
        return err_set(err, EALREADY, "session.ended", "session %s is %s already", session->id,
                       session_status_name(session->status));
    return make_secret(all, STORE_TICKET, session->id, lifetime_ms, ret_ticket, err);
}

int sessions_redeem(struct sessions *all, const char *id, const char *ticket, char ret_cookie[SESSIONS_SECRET_TEXT],
                    struct err *err) {
    int r = use_secret(all, STORE_TICKET, id, ticket, err);
    return r < 0 ? r : make_secret(all, STORE_COOKIE, id, all->config->session.cookie_ms, ret_cookie, err);
}

int sessions_check_cookie(struct sessions *all, const char *id, const char *cookie, struct err *err) {
    return use_secret(all, STORE_COOKIE, id, cookie, err);
}
