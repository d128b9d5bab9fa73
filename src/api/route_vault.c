/* What is known of the vault and of the credentials in it. Nothing here opens one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "model/provider.h"

static json_t *text_or_null(const char *text) {
    return *text ? json_string(text) : json_null();
}

static json_t *credential_json(const struct credential *c) {
    char key[2 * CREDENTIAL_KEY_ID + 1];
    str_hex(c->key_id, sizeof c->key_id, key);
    return json_pack("{s:s, s:s, s:I, s:o, s:o, s:o, s:s, s:o}", "user", c->user, "provider", c->provider, "version",
                     (json_int_t)c->version, "owner_vm", text_or_null(c->owner_vm), "created_at",
                     api_time(c->created_ms), "updated_at", api_time(c->updated_ms), "key_id", key, "logged_out_at",
                     api_time(c->logged_out_ms));
}

/* Those of one user, or all (NULL). Answers and returns NULL when they cannot be read. */
static json_t *credentials_json(struct api *api, struct http_request *req, const char *user) {
    _cleanup_free_ struct credential *list = NULL;
    size_t n;
    struct err err = {0};
    if (store_credential_list(api->store, user, &list, &n, &err) < 0) {
        api_fail(req, &err);
        return NULL;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(array, credential_json(&list[i]));
    return array;
}

static json_t *problem_json(const struct err *err) {
    if (!err->errnum)
        return json_null();
    return json_pack("{s:s, s:s, s:s}", "code", err->code, "detail", err->detail, "hint", err->hint);
}

void route_vault_get(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct vault_status status;
    struct err err = {0};
    char key[2 * CREDENTIAL_KEY_ID + 1] = "";
    if (vault_look(api->vault, &status, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    json_t *credentials = credentials_json(api, req, NULL);
    if (!credentials)
        return;
    if (status.keys)
        str_hex(status.key_id, sizeof status.key_id, key);
    api_json(req, 200,
             json_pack("{s:{s:s, s:s, s:i, s:o, s:i, s:i, s:o}, s:o}", "vault", "key_source",
                       status.place.from_systemd ? "systemd" : "file", "key_path", status.place.path, "keys",
                       (int)status.keys, "key_id", text_or_null(key), "credentials", (int)status.credentials,
                       "other_key", (int)status.other_key, "problem", problem_json(&status.err), "credentials",
                       credentials));
}

void route_vault_rotate(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct vault_rotation rotation;
    struct err err = {0};
    char actor[STORE_ACTOR_MAX];
    api_actor(api, req, actor);
    if (vault_rotate(api->vault, &rotation, &err) < 0) {
        log_error("the vault's key was not rotated for %s: %s", actor, err.detail);
        api_fail(req, &err);
        return;
    }
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "vault-rotated"},
              "by %s: %u credentials have the new key, %u could not be opened%s", actor, rotation.rewrapped,
              rotation.unopened, rotation.done ? "" : "; the old keys stay");
    api_json(req, 200,
             json_pack("{s:{s:i, s:i, s:b}}", "rotation", "rewrapped", (int)rotation.rewrapped, "unopened",
                       (int)rotation.unopened, "done", rotation.done));
}

/* Answers and returns false when the user is not the caller's. */
static bool may_see(struct api *api, struct http_request *req, const char *user) {
    struct err err = {0};
    if (vm_user_check(user, strlen(user), &err) < 0)
        api_fail(req, &err);
    else if (!api_may_see(api, user))
        http_problem(req, 404, "user.not-found", NULL, "there is no such user", NULL);
    else
        return true;
    return false;
}

void route_credentials_list(struct http_request *req, const struct http_match *match, void *userdata) {
    const char *user = http_match_param(match, "user");
    if (!may_see(userdata, req, user))
        return;
    json_t *credentials = credentials_json(userdata, req, user);
    if (credentials)
        api_json(req, 200, json_pack("{s:o}", "credentials", credentials));
}

void route_credential_forget(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    const char *user = http_match_param(match, "user"), *provider = http_match_param(match, "provider");
    char actor[STORE_ACTOR_MAX];
    struct err err = {0};
    if (!may_see(api, req, user))
        return;
    int r = provider_name_is_valid(provider) ? store_credential_remove(api->store, user, provider, &err)
                                             : err_set(&err, ENOENT, "vault.none", "there is no such credential");
    if (r < 0) {
        api_fail(req, &err);
        return;
    }
    api_actor(api, req, actor);
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "credential-forgotten"}, "of user %s for %s, by %s", user,
              provider, actor);
    api_json(req, 200, json_pack("{s:{s:s, s:s}}", "forgotten", "user", user, "provider", provider));
}

/* Whether the login of this session has come to a credential, as far as its page may know. */
void api_credential_status(struct api *api, struct http_request *req, const struct session *session) {
    _cleanup_free_ struct credential *list = NULL;
    size_t n;
    struct err err = {0};
    if (store_credential_list(api->store, session->user, &list, &n, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    const struct credential *found = NULL;
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].provider, session->provider) == 0)
            found = &list[i];
    bool stored = found && found->updated_ms >= session->created_ms;
    char vm_id[VM_ID_TEXT] = "";
    if (stored)
        sessions_credential_where(api->sessions, found->user, found->provider, found->version, vm_id);
    api_json(req, 200,
             json_pack("{s:s, s:b, s:o, s:o, s:o}", "status", session_status_name(session->status), "stored", stored,
                       "version", found ? json_integer((json_int_t)found->version) : json_null(), "updated_at",
                       found ? api_time(found->updated_ms) : json_null(), "in_vm", text_or_null(vm_id)));
}
