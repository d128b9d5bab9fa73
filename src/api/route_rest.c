/* VMs put to rest and brought back: by the user whose CLI VM it is, and by id. */
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

static void hibernate(struct api *api, struct http_request *req, const struct vm *vm) {
    static const char *const parameters[] = {"reason", NULL};
    char reason[VM_REASON_MAX], actor[STORE_ACTOR_MAX];
    struct vm going;
    struct err err = {0};
    if (!api_query_known(req, parameters) || !reason_of(req, "it was asked for", reason))
        return;
    api_actor(api, req, actor);
    if (vms_hibernate(api->vms, vm->id, actor, reason, &going, &err) < 0)
        api_fail(req, &err);
    else
        api_wait(api, req, vm->id, WAIT_AT_REST, 200, NULL);
}

static void resume(struct api *api, struct http_request *req, const struct vm *vm) {
    static const char *const parameters[] = {"reason", "cold", NULL};
    char reason[VM_REASON_MAX], actor[STORE_ACTOR_MAX], cold[8] = "";
    struct vm coming;
    struct err err = {0};
    if (!api_query_known(req, parameters) || !reason_of(req, "it was asked for", reason))
        return;
    if (http_request_query(req, "cold", cold, sizeof cold) < 0 || (*cold && strcmp(cold, "1") != 0)) {
        http_problem(req, 400, "query.bad-value", NULL, "the parameter cold is 1 or not there", NULL);
        return;
    }
    api_actor(api, req, actor);
    if (vms_resume(api->vms, vm->id, *cold != '\0', actor, reason, &coming, &err) < 0)
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
