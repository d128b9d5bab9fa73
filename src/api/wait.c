#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/str.h"

/* Each waits on the VM's own deadlines: a boot ends in running or failed, a stop in stopped, and to
 * put to rest or to bring back in hibernated or running. */
struct waiter {
    struct waiter *next;
    struct api *api;
    struct http_request *req;
    char vm_id[VM_ID_TEXT];
    enum wait_for what;
    int status;
    json_t *body;  /* the answer when all went well; NULL: the VM */
    bool is_again; /* the request is handled anew then, in the place of an answer */
};

static void drop(struct waiter *w) {
    for (struct waiter **at = &w->api->waiters; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    json_decref(w->body);
    free(w);
}

static void on_gone(struct http_request *req, void *userdata) {
    drop(userdata);
}

static bool is_there(struct api *api, const struct vm *vm, enum wait_for what) {
    bool is_kept = vm->state == VM_STATE_HIBERNATED && !vms_is_wanted(api->vms, vm->id);
    return vm_state_is_end(vm->state) || (what == WAIT_READY && (vm->state == VM_STATE_RUNNING || is_kept)) ||
           (what == WAIT_MADE && vm->state != VM_STATE_CREATING) ||
           (what == WAIT_AT_REST && vm->state != VM_STATE_HIBERNATING);
}

/* Whether it has not become what was waited for. */
static bool is_other(const struct vm *vm, enum wait_for what) {
    switch (what) {
    case WAIT_MADE:
        return vm_state_is_end(vm->state);
    case WAIT_READY:
        return vm->state != VM_STATE_RUNNING;
    case WAIT_AT_REST:
        return vm->state == VM_STATE_RUNNING || vm->state == VM_STATE_STOPPING || vm_state_is_end(vm->state);
    case WAIT_ENDED:
        return false;
    }
    return false;
}

/* Takes the reference of body. */
static void answer(struct api *api, struct http_request *req, const struct vm *vm, enum wait_for what, int status,
                   json_t *body) {
    const struct err *why = vms_create_error(api->vms, vm->id);
    if (is_other(vm, what) && why) {
        json_decref(body);
        api_fail(req, why);
        return;
    }
    if (is_other(vm, what)) {
        struct err err;
        err_set(&err, EIO, "vm.failed", "VM %s is %s: %s", vm->id, vm_state_name(vm->state), vm->reason);
        err_hint(&err, "mctl vm why %s tells its story", vm->id);
        json_decref(body);
        api_fail(req, &err);
        return;
    }
    api_json(req, status, body ? body : json_pack("{s:o}", "vm", api_vm_json(vm)));
}

static struct waiter *add(struct api *api, struct http_request *req, const char *vm_id, enum wait_for what) {
    struct waiter *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    *w = (struct waiter){.next = api->waiters, .api = api, .req = req, .what = what};
    str_copy(w->vm_id, sizeof w->vm_id, vm_id);
    api->waiters = w;
    http_request_defer(req, on_gone, w);
    return w;
}

bool api_make_room(struct api *api, struct http_request *req, const struct vms_request *request) {
    char id[VM_ID_TEXT];
    if (vms_make_room(api->vms, request, id) == 0)
        return false;
    struct waiter *w = add(api, req, id, WAIT_AT_REST);
    if (w)
        w->is_again = true;
    else
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
    return true;
}

const char *api_use_words(struct api *api, const struct vm *vm) {
    struct session session;
    if (api_exec_runs(api, vm->id))
        return "a program of mctl vm exec runs in it";
    if (api_desktop_shows(api, vm->id))
        return "its desktop is shown to somebody";
    bool has_session = vm->type == VM_TYPE_BROWSER && store_session_of_vm(api->store, vm->id, &session, NULL) == 0 &&
                       !session_status_is_end(session.status);
    return has_session ? "its login session is open" : NULL;
}

bool api_in_use(void *userdata, const struct vm *vm) {
    return api_use_words(userdata, vm) != NULL;
}

bool api_wake(struct api *api, struct http_request *req, const struct vm *vm, const char *why) {
    char actor[STORE_ACTOR_MAX];
    struct vm coming;
    struct err err = {0};
    bool is_away =
        vm->state == VM_STATE_HIBERNATING || vm->state == VM_STATE_HIBERNATED || vm->state == VM_STATE_RESUMING;
    if (!is_away || vms_is_over(api->vms, vm->id))
        return false;
    api_actor(api, req, actor);
    if (vms_resume(api->vms, vm->id, false, actor, why, &coming, &err) < 0) {
        api_fail(req, &err);
        return true;
    }
    struct waiter *w = add(api, req, vm->id, WAIT_READY);
    if (w)
        w->is_again = true;
    else
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
    return true;
}

void api_wait(struct api *api, struct http_request *req, const char *vm_id, enum wait_for what, int status,
              json_t *body) {
    struct vm vm;
    struct err err = {0};
    if (store_vm_get(api->store, vm_id, &vm, &err) < 0) {
        json_decref(body);
        api_fail(req, &err);
        return;
    }
    if (is_there(api, &vm, what)) {
        answer(api, req, &vm, what, status, body);
        return;
    }
    struct waiter *w = add(api, req, vm_id, what);
    if (!w) {
        json_decref(body);
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
        return;
    }
    w->status = status;
    w->body = body;
}

void api_wait_changed(struct api *api, const struct vm *vm) {
    for (struct waiter *w = api->waiters, *next; w; w = next) {
        next = w->next;
        struct err stuck;
        bool is_stuck = strcmp(w->vm_id, vm->id) == 0 && vms_stuck(api->vms, vm->id, &stuck) < 0;
        if (strcmp(w->vm_id, vm->id) != 0 || (!is_there(api, vm, w->what) && !is_stuck))
            continue;
        struct http_request *req = w->req;
        enum wait_for what = w->what;
        int status = w->status;
        bool is_again = w->is_again && !is_stuck && (what == WAIT_AT_REST || !is_other(vm, what));
        json_t *body = json_incref(w->body);
        drop(w);
        if (is_again) {
            api_handle(req, api);
            next = api->waiters; /* it may have added and ended others */
            continue;
        }
        if (!is_stuck) {
            answer(api, req, vm, what, status, body);
            continue;
        }
        json_decref(body);
        api_fail(req, &stuck);
    }
}
