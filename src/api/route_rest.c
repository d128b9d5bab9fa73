/* VMs put to rest and brought back: by the user whose CLI VM it is, and by id. */
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/str.h"

/* The parameter reason, or its default. Answers and returns false for one that cannot be. */
static bool reason_of(struct http_request *req, const char *otherwise, char ret_reason[VM_REASON_MAX]) {
    str_copy(ret_reason, VM_REASON_MAX, otherwise);
    int r = http_request_query(req, "reason", ret_reason, VM_REASON_MAX);
    if (r == 0 || (r == 1 && *ret_reason))
        return true;
    http_problem(req, 400, "query.bad-value", NULL, "the parameter reason is empty, too long or not UTF-8",
                 "give a sentence of at most 399 bytes");
    return false;
}

/* A parameter that is 1 or not there. Answers and returns false for one that cannot be. */
static bool flag_of(struct http_request *req, const char *name, bool *ret_flag) {
    char value[8] = "", detail[64];
    if (http_request_query(req, name, value, sizeof value) >= 0 && (!*value || strcmp(value, "1") == 0)) {
        *ret_flag = *value != '\0';
        return true;
    }
    snprintf(detail, sizeof detail, "the parameter %s is 1 or not there", name);
    http_problem(req, 400, "query.bad-value", NULL, detail, NULL);
    return false;
}

/* What somebody is busy with is not taken away unless that is what is wanted. */
static bool is_free(struct api *api, struct http_request *req, const struct vm *vm) {
    const char *use = vm->state == VM_STATE_RUNNING ? api_use_words(api, vm) : NULL;
    char detail[160];
    if (!use)
        return true;
    snprintf(detail, sizeof detail, "VM %s is in use: %s", vm->id, use);
    http_problem(
        req, 409, "vm.in-use", NULL, detail,
        "wait until that is over; or hibernate it with force=1 (mctl vm hibernate --force): a program of an exec "
        "loses its caller then, and a desktop comes back when its page is opened");
    return false;
}

static void hibernate(struct api *api, struct http_request *req, const struct vm *vm) {
    static const char *const parameters[] = {"reason", "force", NULL};
    char reason[VM_REASON_MAX], actor[STORE_ACTOR_MAX];
    bool is_forced;
    struct vm going;
    struct err err = {0};
    if (!api_query_known(req, parameters) || !reason_of(req, "it was asked for", reason) ||
        !flag_of(req, "force", &is_forced) || (!is_forced && !is_free(api, req, vm)))
        return;
    api_actor(api, req, actor);
    if (vms_hibernate(api->vms, vm->id, actor, reason, &going, &err) < 0)
        api_fail(req, &err);
    else
        api_wait(api, req, vm->id, WAIT_AT_REST, 200, NULL);
}

static void resume(struct api *api, struct http_request *req, const struct vm *vm) {
    static const char *const parameters[] = {"reason", "cold", NULL};
    char reason[VM_REASON_MAX], actor[STORE_ACTOR_MAX];
    bool is_cold;
    struct vm coming;
    struct err err = {0};
    if (!api_query_known(req, parameters) || !reason_of(req, "it was asked for", reason) ||
        !flag_of(req, "cold", &is_cold))
        return;
    api_actor(api, req, actor);
    if (vms_resume(api->vms, vm->id, is_cold, actor, reason, &coming, &err) < 0)
        api_fail(req, &err);
    else
        api_wait(api, req, vm->id, WAIT_READY, 200, NULL);
}

void route_vm_hibernate(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_vm_of(userdata, req, match, &vm))
        hibernate(userdata, req, &vm);
}

void route_vm_resume(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_vm_of(userdata, req, match, &vm))
        resume(userdata, req, &vm);
}

void route_user_vm_hibernate(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_user_vm_of(userdata, req, match, &vm))
        hibernate(userdata, req, &vm);
}

void route_user_vm_resume(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_user_vm_of(userdata, req, match, &vm))
        resume(userdata, req, &vm);
}
