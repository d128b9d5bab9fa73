#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/str.h"

#define CONSOLE_DEFAULT_BYTES 65536
#define CONSOLE_MAX_BYTES (4U << 20)

/* Answers and returns false when it is no user id, or not the caller's. */
static bool user_of(struct api *api, struct http_request *req, const char *user) {
    struct err err;
    if (vm_user_check(user, strlen(user), &err) < 0)
        api_fail(req, &err);
    else if (!api_may_see(api, user))
        http_problem(req, 404, "user.not-found", NULL, "there is no such user", NULL);
    else
        return true;
    return false;
}

/* Whether the request wants to wait: ?wait=ready. Answers and returns false for another value. */
static bool wait_of(struct http_request *req, bool *ret_wait) {
    char value[16];
    int r = http_request_query(req, "wait", value, sizeof value);
    *ret_wait = r == 1;
    if (r == 0 || (r == 1 && strcmp(value, "ready") == 0))
        return true;
    http_problem(req, 400, "query.bad-value", NULL, "the parameter wait has an unknown value", "right is wait=ready");
    return false;
}

/* Reads {"type","memory_mib","vcpus"}. Answers and returns false for something else. */
static bool request_of(struct http_request *req, struct vms_request *request) {
    static const char *const known[] = {"type", "memory_mib", "vcpus", NULL};
    json_t *body = api_body(req, known);
    if (!body)
        return false;
    const char *type = "cli";
    json_int_t memory = 0, vcpus = 0;
    bool good = json_unpack(body, "{s?s, s?I, s?I}", "type", &type, "memory_mib", &memory, "vcpus", &vcpus) == 0 &&
                vm_type_parse(type, &request->type) == 0 && memory >= 0 && memory <= UINT32_MAX && vcpus >= 0 &&
                vcpus <= UINT32_MAX;
    request->memory_mib = (uint32_t)memory;
    request->vcpus = (uint32_t)vcpus;
    json_decref(body);
    if (!good)
        http_problem(req, 400, "body.bad-value", NULL, "type, memory_mib or vcpus is not valid",
                     "type is cli or browser, memory_mib and vcpus are whole numbers");
    return good;
}

/* The user's one CLI VM. Return: 0 or -ENOENT, or another -errno. */
static int find_cli_vm(struct api *api, const char *user, struct vm *ret_vm, struct err *err) {
    _cleanup_free_ struct vm *vms = NULL;
    size_t n;
    int r = store_vm_list(api->store, user, STORE_LIVE, &vms, &n, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (vms[i].type == VM_TYPE_CLI && vms[i].state != VM_STATE_STOPPING) {
            *ret_vm = vms[i];
            return 0;
        }
    return err_set(err, ENOENT, "vm.not-found", "user %s has no CLI VM", user);
}

void route_user_vm_create(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const parameters[] = {"wait", NULL};
    struct api *api = userdata;
    const char *user = http_match_param(match, "user");
    struct vms_request request = {.user = user};
    struct vm vm;
    struct err err = {0};
    bool wait;
    int status = 200;
    if (!user_of(api, req, user) || !api_query_known(req, parameters) || !wait_of(req, &wait) ||
        !request_of(req, &request))
        return;
    int r = request.type == VM_TYPE_CLI ? find_cli_vm(api, user, &vm, &err) : -ENOENT;
    if (r == -ENOENT || (r == 0 && vms_is_over(api->vms, vm.id))) {
        char actor[STORE_ACTOR_MAX];
        if (api_make_room(api, req, &request))
            return;
        api_actor(api, req, actor);
        status = 201;
        r = vms_create(api->vms, &request, actor, &vm, &err);
    }
    if (r < 0)
        api_fail(req, &err);
    else if (!api_wake(api, req, &vm, "its user asks for it"))
        api_wait(api, req, vm.id, wait ? WAIT_READY : WAIT_MADE, status, NULL);
}

static void destroy(struct api *api, struct http_request *req, const struct vm *vm) {
    static const char *const parameters[] = {"reason", NULL};
    char reason[VM_REASON_MAX] = "no reason was given", actor[STORE_ACTOR_MAX];
    struct vm stopping;
    struct err err = {0};
    if (!api_query_known(req, parameters))
        return;
    int r = http_request_query(req, "reason", reason, sizeof reason);
    if (r < 0 || (r == 1 && !*reason)) {
        http_problem(req, 400, "query.bad-value", NULL, "the parameter reason is empty, too long or not UTF-8",
                     "give a sentence of at most 399 bytes");
        return;
    }
    api_actor(api, req, actor);
    r = vms_destroy(api->vms, vm->id, actor, reason, &stopping, &err);
    if (r < 0)
        api_fail(req, &err);
    else
        api_wait(api, req, vm->id, WAIT_ENDED, 200, NULL);
}

bool api_user_vm_of(struct api *api, struct http_request *req, const struct http_match *match, struct vm *ret_vm) {
    const char *user = http_match_param(match, "user");
    struct err err = {0};
    if (!user_of(api, req, user))
        return false;
    if (find_cli_vm(api, user, ret_vm, &err) == 0)
        return true;
    api_fail(req, &err);
    return false;
}

void route_user_vm_get(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_user_vm_of(userdata, req, match, &vm))
        api_json(req, 200, json_pack("{s:o}", "vm", api_vm_json(&vm)));
}

void route_user_vm_delete(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_user_vm_of(userdata, req, match, &vm))
        destroy(userdata, req, &vm);
}

void route_vms_list(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const parameters[] = {"all", "user", NULL};
    struct api *api = userdata;
    char all[8] = "", user[VM_USER_MAX + 1] = "";
    _cleanup_free_ struct vm *vms = NULL;
    size_t n;
    struct err err = {0};
    if (!api_query_known(req, parameters))
        return;
    if (http_request_query(req, "all", all, sizeof all) < 0 || (*all && strcmp(all, "1") != 0) ||
        http_request_query(req, "user", user, sizeof user) < 0) {
        http_problem(req, 400, "query.bad-value", NULL, "the parameter all is 1 or not there, user is a user id", NULL);
        return;
    }
    /* Somebody else's are as none. */
    const char *only = api_only_user(api), *whose = *user ? user : NULL;
    if (only && whose && strcmp(only, whose) != 0) {
        api_json(req, 200, json_pack("{s:[]}", "vms"));
        return;
    }
    if (store_vm_list(api->store, only ? only : whose, *all ? STORE_ALL : STORE_LIVE, &vms, &n, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, api_vm_json(&vms[i]));
    api_json(req, 200, json_pack("{s:o}", "vms", list));
}

int api_vm_find(struct api *api, const struct http_match *match, struct vm *ret_vm, struct err *err) {
    return store_vm_find(api->store, http_match_param(match, "id"), api_only_user(api), ret_vm, err);
}

bool api_vm_of(struct api *api, struct http_request *req, const struct http_match *match, struct vm *ret_vm) {
    struct err err = {0};
    if (api_vm_find(api, match, ret_vm, &err) == 0)
        return true;
    api_fail(req, &err);
    return false;
}

void route_vm_get(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_vm_of(userdata, req, match, &vm))
        api_json(req, 200,
                 json_pack("{s:o, s:o}", "vm", api_vm_json(&vm), "network", api_vm_network_json(userdata, &vm)));
}

void route_vm_delete(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    if (api_vm_of(userdata, req, match, &vm))
        destroy(userdata, req, &vm);
}

/* What the evidence says of the cause; null where there is none. */
static json_t *cause_of(const struct vm *vm, const char *folder) {
    char path[VMS_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/summary.json", folder);
    json_t *summary = vm_state_is_end(vm->state) ? json_load_file(path, 0, NULL) : NULL;
    json_t *cause = json_incref(json_object_get(summary, "cause"));
    json_decref(summary);
    return cause ? cause : json_null();
}

void route_vm_events(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct vm vm;
    _cleanup_free_ struct store_event *events = NULL;
    size_t n;
    struct err err = {0};
    char folder[VMS_PATH_MAX];
    if (!api_vm_of(api, req, match, &vm))
        return;
    if (store_events(api->store, vm.id, &events, &n, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    json_t *list = api_events_json(events, n);
    vms_folder(api->vms, &vm, folder);
    api_json(req, 200,
             json_pack("{s:o, s:o, s:o, s:s}", "vm", api_vm_json(&vm), "cause", cause_of(&vm, folder), "events", list,
                       "files", folder));
}

/* What a folder holds: a name and a size each. Return: 0 or -errno. */
static int list_files(const char *folder, json_t *ret_files) {
    DIR *dir = opendir(folder);
    if (!dir)
        return -errno;
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat st;
        if (e->d_name[0] != '.' && fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            json_array_append_new(ret_files,
                                  json_pack("{s:s, s:I}", "name", e->d_name, "bytes", (json_int_t)st.st_size));
    }
    closedir(dir);
    return 0;
}

/* What an ended VM left. A living one has none yet. */
void route_vm_evidence(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct vm vm;
    char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 16];
    if (!api_vm_of(api, req, match, &vm))
        return;
    json_t *files = json_array();
    vms_folder(api->vms, &vm, folder);
    if (!vm_state_is_end(vm.state) || list_files(folder, files) < 0) {
        json_decref(files);
        http_problem(req, 404, "evidence.none", NULL,
                     "there is no evidence of this VM: it has not ended, or its evidence was removed", NULL);
        return;
    }
    snprintf(path, sizeof path, "%s/summary.json", folder);
    json_t *summary = json_load_file(path, 0, NULL);
    api_json(req, 200,
             json_pack("{s:s, s:s, s:o, s:o}", "id", vm.id, "folder", folder, "files", files, "summary",
                       summary ? summary : json_null()));
}

void route_vm_console(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const parameters[] = {"follow", "bytes", NULL};
    struct api *api = userdata;
    struct vm vm;
    char follow[8] = "", bytes_text[16] = "";
    uint64_t bytes = CONSOLE_DEFAULT_BYTES;
    _cleanup_free_ char *text = NULL;
    size_t len;
    if (!api_vm_of(api, req, match, &vm) || !api_query_known(req, parameters))
        return;
    if (http_request_query(req, "follow", follow, sizeof follow) < 0 || (*follow && strcmp(follow, "1") != 0) ||
        http_request_query(req, "bytes", bytes_text, sizeof bytes_text) < 0 ||
        (*bytes_text && str_to_u64(bytes_text, 1, CONSOLE_MAX_BYTES, &bytes) < 0)) {
        http_problem(req, 400, "query.bad-value", NULL, "follow is 1 or not there, bytes is from 1 to 4194304", NULL);
        return;
    }
    if (*follow) {
        api_follow_console(api, req, &vm);
        return;
    }
    if (vms_console(api->vms, vm.id, bytes, &text, &len) < 0) {
        http_problem(req, 404, "console.none", NULL, "there is no console log of this VM", NULL);
        return;
    }
    struct http_response response = {.content_type = "text/plain; charset=utf-8", .body = text, .len = len};
    http_respond(req, 200, &response);
}
