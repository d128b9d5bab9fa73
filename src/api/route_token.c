/* Users' tokens: made, listed and revoked by an administrator. */
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"

#define LIFETIME_DEFAULT_DAYS 90
#define LIFETIME_MAX_DAYS 3650
#define DAY_MS 86400000LL

static json_t *token_json(const struct token *t) {
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:b}", "id", t->id, "user", t->user, "note", t->note, "created_at",
                     api_time(t->created_ms), "expires_at", api_time(t->expires_ms), "last_used_at",
                     api_time(t->used_ms), "expired", t->expires_ms <= time_realtime_ms());
}

/* Reads {"user","note","lifetime_days"}. Answers and returns false for something else. */
static bool token_of(struct http_request *req, json_t *body, struct token *ret_token) {
    const char *user = NULL, *note = "";
    size_t user_len = 0, note_len = 0;
    json_int_t days = LIFETIME_DEFAULT_DAYS;
    struct err err = {0};
    struct token token = {.created_ms = time_realtime_ms()};
    if (json_unpack(body, "{s:s%, s?s%, s?I}", "user", &user, &user_len, "note", &note, &note_len, "lifetime_days",
                    &days) < 0 ||
        strlen(note) != note_len || note_len > TOKEN_NOTE_MAX || days < 1 || days > LIFETIME_MAX_DAYS) {
        http_problem(req, 400, "body.bad-value", NULL, "user, note or lifetime_days is missing or not valid",
                     "note is a text of at most 80 bytes, lifetime_days is from 1 to 3650");
        return false;
    }
    if (vm_user_check(user, user_len, &err) < 0) {
        api_fail(req, &err);
        return false;
    }
    str_copy(token.user, sizeof token.user, user);
    str_copy(token.note, sizeof token.note, note);
    token.expires_ms = token.created_ms + days * DAY_MS;
    *ret_token = token;
    return true;
}

void route_token_create(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"user", "note", "lifetime_days", NULL};
    struct api *api = userdata;
    struct token token;
    struct err err = {0};
    char secret[API_TOKEN_TEXT], actor[STORE_ACTOR_MAX];
    json_t *body = api_body(req, known);
    bool good = body && token_of(req, body, &token);
    json_decref(body);
    if (!good)
        return;
    if (api_token_make(api, &token, secret, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    api_actor(api, req, actor);
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "token-created"}, "token %s of user %s, by %s", token.id,
              token.user, actor);
    api_json(req, 201, json_pack("{s:o, s:s}", "token", token_json(&token), "secret", secret));
    sodium_memzero(secret, sizeof secret);
}

void route_tokens_list(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const parameters[] = {"user", NULL};
    struct api *api = userdata;
    char user[VM_USER_MAX + 1] = "";
    _cleanup_free_ struct token *tokens = NULL;
    size_t n;
    struct err err = {0};
    if (!api_query_known(req, parameters))
        return;
    if (http_request_query(req, "user", user, sizeof user) < 0) {
        http_problem(req, 400, "query.bad-value", NULL, "the parameter user is not a user id", NULL);
        return;
    }
    if (store_token_list(api->store, *user ? user : NULL, &tokens, &n, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, token_json(&tokens[i]));
    api_json(req, 200, json_pack("{s:o}", "tokens", list));
}

void route_token_revoke(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct token token;
    struct err err = {0};
    char actor[STORE_ACTOR_MAX];
    if (store_token_remove(api->store, http_match_param(match, "id"), &token, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    struct api_credential credential = api_credential_of_token(&token);
    api_revoked(api, &credential);
    api_actor(api, req, actor);
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "token-revoked"}, "token %s of user %s, by %s", token.id,
              token.user, actor);
    api_json(req, 200, json_pack("{s:o}", "token", token_json(&token)));
}
