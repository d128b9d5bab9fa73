#include "session/sessions.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"

struct sessions {
    struct store *store;
    struct vms *vms;
    const struct config *config;
};

/* The one place where a session's status changes. */
static int change(struct sessions *all, struct session *session, enum session_event event, const char *actor,
                  const char *reason, struct err *err) {
    struct session next = *session;
    if (session_transition(session->status, event, &next.status) < 0)
        return err_set(err, EPROTO, "session.state", "session %s is %s: that cannot happen to it now", session->id,
                       session_status_name(session->status));
    str_escape(reason, strlen(reason), next.reason, sizeof next.reason);
    int r = store_session_update(all->store, &next, err);
    if (r < 0)
        return r;
    log_event(event == SESSION_EVENT_FAIL ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO,
              (struct log_about){
                  .event = "session", .session_id = session->id, .vm_id = *session->vm_id ? session->vm_id : NULL},
              "%s -> %s by %s%s%s", session_status_name(session->status), session_status_name(next.status), actor,
              *reason ? ": " : "", reason);
    *session = next;
    return 0;
}

/* A session that did not come to be: its VM, if there is one, ends too. A session that cannot even be written as failed
 * stays "started", and is abandoned again when its user starts another one or the controller does. */
static void abandon(struct sessions *all, struct session *session, const char *reason) {
    struct err err = {0};
    struct vm vm;
    vms_destroy(all->vms, session->vm_id, "controller", "its session did not come to be", &vm, NULL);
    if (change(all, session, SESSION_EVENT_FAIL, "controller", reason, &err) < 0)
        log_error("session %s: %s", session->id, err.detail);
}

/* What a VM's state means for the session that it serves. */
static void follow_vm(struct sessions *all, struct session *session, const struct vm *vm) {
    struct err err = {0};
    char reason[VM_REASON_MAX];
    int r = 0;
    if (vm->state == VM_STATE_RUNNING && session->status == SESSION_VM_CREATED) {
        r = change(all, session, SESSION_EVENT_DESKTOP_READY, "controller", "", &err);
    } else if (vm_state_is_end(vm->state)) {
        snprintf(reason, sizeof reason, "its VM %s: %.360s", vm->state == VM_STATE_FAILED ? "failed" : "was stopped",
                 vm->reason);
        r = change(all, session, SESSION_EVENT_FAIL, "controller", reason, &err);
    }
    if (r < 0)
        log_error("%s", err.detail);
}

static void each_of_vm(struct sessions *all, const struct vm *vm) {
    _cleanup_free_ struct session *list = NULL;
    size_t n;
    struct err err = {0};
    if (store_session_list(all->store, STORE_LIVE, &list, &n, &err) < 0) {
        log_error("%s", err.detail);
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].vm_id, vm->id) == 0)
            follow_vm(all, &list[i], vm);
}

static void on_vm_changed(void *userdata, const struct vm *vm) {
    if (vm->type == VM_TYPE_BROWSER)
        each_of_vm(userdata, vm);
}

static int catch_up(struct sessions *all, struct err *err) {
    _cleanup_free_ struct session *list = NULL;
    size_t n;
    int r = store_session_list(all->store, STORE_LIVE, &list, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++) {
        struct vm vm;
        if (list[i].status == SESSION_STARTED)
            abandon(all, &list[i], "the controller ended while it was started");
        else if (store_vm_get(all->store, list[i].vm_id, &vm, err) == 0)
            follow_vm(all, &list[i], &vm);
    }
    return r;
}

int sessions_new(struct store *store, struct vms *vms, const struct config *config, struct sessions **ret_sessions,
                 struct err *err) {
    struct sessions *all = calloc(1, sizeof *all);
    if (!all || sodium_init() < 0) {
        free(all);
        return err_set(err, ENOMEM, "session.start", "start the session manager");
    }
    *all = (struct sessions){.store = store, .vms = vms, .config = config};
    int r = catch_up(all, err);
    if (r < 0) {
        free(all);
        return r;
    }
    vms_on_change(vms, on_vm_changed, all);
    *ret_sessions = all;
    return 0;
}

void sessions_free(struct sessions *all) {
    free(all);
}

static void random_hex(char *ret_text, size_t bytes) {
    uint8_t random[32];
    randombytes_buf(random, bytes);
    str_hex(random, bytes, ret_text);
    sodium_memzero(random, sizeof random);
}

static int make_vm(struct sessions *all, struct session *session, const char *actor, struct err *err) {
    struct vms_request request = {.user = session->user, .type = VM_TYPE_BROWSER, .id = session->vm_id};
    struct vm vm;
    int r = vms_create(all->vms, &request, actor, &vm, err);
    if (r == 0)
        r = change(all, session, SESSION_EVENT_VM_CREATED, actor, "", err);
    if (r < 0)
        abandon(all, session, err ? err->detail : "no VM could be made");
    return r;
}

int sessions_start(struct sessions *all, const char *user, const char *provider, const char *actor,
                   struct session *ret_session, bool *ret_is_new, struct err *err) {
    if (strcmp(provider, "demo") != 0) {
        char shown[80];
        err_set(err, EINVAL, "provider.unknown", "there is no provider \"%s\"",
                str_escape(provider, strnlen(provider, 40), shown, sizeof shown));
        return err_hint(err, "the providers are: demo (a desktop without a login)");
    }
    struct session session = {.status = SESSION_STARTED, .created_ms = time_realtime_ms()};
    struct session former;
    int r = store_session_find(all->store, user, provider, &former, err);
    if (r == 0 && former.status != SESSION_STARTED) {
        *ret_is_new = false;
        *ret_session = former;
        return 0;
    }
    if (r < 0 && r != -ENOENT)
        return r;
    if (r == 0) /* nobody is at work on it: this function starts them in one go */
        abandon(all, &former, "it was not started to its end");
    *ret_is_new = true;
    random_hex(session.id, 16);
    str_copy(session.user, sizeof session.user, user);
    str_copy(session.provider, sizeof session.provider, provider);
    /* The VM's id first: a crash never leaves a VM that no session knows. */
    r = vms_new_id(session.vm_id, err);
    if (r == 0)
        r = store_session_add(all->store, &session, err);
    if (r == 0)
        r = make_vm(all, &session, actor, err);
    if (r == 0)
        *ret_session = session;
    return r;
}

int sessions_get(struct sessions *all, const char *id, struct session *ret_session, struct err *err) {
    return store_session_get(all->store, id, ret_session, err);
}

int sessions_cancel(struct sessions *all, const char *id, const char *actor, const char *reason,
                    struct session *ret_session, struct err *err) {
    struct session session;
    struct vm vm;
    int r = sessions_get(all, id, &session, err);
    if (r < 0)
        return r;
    if (session_status_is_end(session.status))
        return err_set(err, EALREADY, "session.ended", "session %s is %s already", id,
                       session_status_name(session.status));
    r = change(all, &session, SESSION_EVENT_CANCEL, actor, reason, err);
    if (r < 0)
        return r;
    if (*session.vm_id && vms_destroy(all->vms, session.vm_id, actor, "its session was cancelled", &vm, err) < 0)
        log_warning("session %s: %s", id, err ? err->detail : "its VM could not be ended");
    *ret_session = session;
    return 0;
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
