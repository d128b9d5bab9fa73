#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "session/providers.h"

#define TICKET_MAX_S 3600

static void no_session(struct http_request *req) {
    http_problem(req, 404, "session.not-found", NULL, "there is no such session", NULL);
}

bool api_session_of(struct api *api, struct http_request *req, const struct http_match *match,
                    struct session *ret_session) {
    const char *id = http_match_param(match, "id");
    struct err err = {0};
    struct session session;
    int r = session_id_is_valid(id) ? sessions_get(api->sessions, id, &session, &err) : -ENOENT;
    if (r == 0 && !api_may_see(api, session.user))
        r = -ENOENT;
    if (r == 0)
        *ret_session = session;
    else if (r == -ENOENT)
        no_session(req);
    else
        api_fail(req, &err);
    return r == 0;
}

void route_auth_start(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"userId", "provider", "ticketLifetime", NULL};
    struct api *api = userdata;
    const char *user = NULL, *provider = NULL;
    size_t user_len = 0, provider_len = 0;
    json_int_t lifetime_s = api->config->session.ticket_ms / 1000;
    struct session session;
    struct provider profile;
    struct err err = {0};
    char actor[STORE_ACTOR_MAX], ticket[SESSIONS_SECRET_TEXT], url[CONFIG_TEXT + 192];
    bool is_new;
    json_t *body = api_body(req, known);
    if (!body)
        return;
    if (json_unpack(body, "{s:s%, s:s%, s?I}", "userId", &user, &user_len, "provider", &provider, &provider_len,
                    "ticketLifetime", &lifetime_s) < 0 ||
        strlen(provider) != provider_len || provider_len > SESSION_PROVIDER_MAX || lifetime_s < 1 ||
        lifetime_s > TICKET_MAX_S) {
        json_decref(body);
        http_problem(req, 400, "body.bad-value", NULL, "userId, provider or ticketLifetime is missing or not valid",
                     "userId and provider are texts, ticketLifetime is from 1 to 3600 seconds");
        return;
    }
    api_actor(api, req, actor);
    int r = vm_user_check(user, user_len, &err);
    if (r == 0 && !api_may_see(api, user))
        r = err_set(&err, ENOENT, "user.not-found", "there is no such user");
    bool is_there = r == 0 && store_session_find(api->store, user, provider, &session, NULL) == 0;
    struct vms_request request = {.user = user, .type = VM_TYPE_BROWSER};
    if (r == 0)
        r = provider_use(api->config->session.providers, provider, &profile, &err);
    if (r == 0 && !is_there && api_make_room(api, req, &request)) {
        json_decref(body);
        return;
    }
    if (r == 0)
        r = sessions_start(api->sessions, user, provider, actor, &session, &is_new, &err);
    json_decref(body);
    if (r == 0)
        r = sessions_ticket(api->sessions, &session, lifetime_s * 1000, ticket, &err);
    if (r < 0) {
        api_fail(req, &err);
        return;
    }
    snprintf(url, sizeof url, "%s/api/auth/session/%s/novnc#ticket=%s", api->base_url, session.id, ticket);
    sodium_memzero(ticket, sizeof ticket);
    json_t *answer = json_pack("{s:s, s:s, s:s, s:o, s:o}", "sessionId", session.id, "status",
                               session_status_name(session.status), "novncURL", url, "timeoutAt",
                               api_time(session.timeout_ms), "session", api_session_json(api, &session));
    sodium_memzero(url, sizeof url);
    if (is_new)
        api_wait(api, req, session.vm_id, WAIT_MADE, 201, answer);
    else
        api_json(req, 200, answer);
}

void route_sessions_list(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    _cleanup_free_ struct session *list = NULL;
    size_t n;
    struct err err = {0};
    if (store_session_list(api->store, STORE_LIVE, &list, &n, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++)
        if (api_may_see(api, list[i].user))
            json_array_append_new(array, api_session_json(api, &list[i]));
    api_json(req, 200, json_pack("{s:o}", "sessions", array));
}

/* What the page shows of the VM; less than an operator sees. */
static json_t *session_vm_json(struct api *api, const struct session *session) {
    struct vm vm;
    char line[VMS_LINE_MAX], probe[VMS_LINE_MAX];
    if (sessions_vm(api->sessions, session, &vm, NULL) < 0)
        return json_null();
    vms_console_line(api->vms, vm.id, line);
    vms_last_probe(api->vms, vm.id, probe, sizeof probe);
    const char *finding = vm.reachable == 0 ? vm.reason : probe;
    return json_pack("{s:s, s:s, s:o, s:s, s:o, s:o, s:s, s:o}", "id", vm.id, "state", vm_state_name(vm.state),
                     "state_since", api_time(vm.state_since_ms), "reason", vm.reason, "reachable",
                     vm.reachable < 0 ? json_null() : json_boolean(vm.reachable), "finding",
                     *finding ? json_string(finding) : json_null(), "console_line", line, "boot_deadline_at",
                     api_time(vms_boot_deadline_ms(api->vms, &vm)));
}

/* By the controller's clock: a browser's may be wrong. Null while no limit counts. */
static json_t *seconds_left(const struct session *session) {
    int64_t left_ms = session->timeout_ms - time_realtime_ms();
    if (!session->timeout_ms || session_status_is_end(session->status))
        return json_null();
    return json_integer(left_ms > 0 ? (left_ms + 999) / 1000 : 0);
}

static void tell(struct api *api, struct http_request *req, const struct session *session) {
    api_json(req, 200,
             json_pack("{s:o, s:o, s:o, s:o}", "session", api_session_json(api, session), "seconds_left",
                       seconds_left(session), "vm", session_vm_json(api, session), "login",
                       api_login_json(api, session)));
}

void route_session_get(struct http_request *req, const struct http_match *match, void *userdata) {
    struct session session;
    if (api_session_of(userdata, req, match, &session))
        tell(userdata, req, &session);
}

/* Somebody looks at the page: not merely a page that is open, which asks for the status alone. */
void route_session_wake(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct session session;
    struct vm vm;
    if (!api_session_of(api, req, match, &session))
        return;
    bool goes_on = !session_status_is_end(session.status);
    bool has_vm = goes_on && sessions_vm(api->sessions, &session, &vm, NULL) == 0;
    if (!has_vm || !api_wake(api, req, &vm, "its desktop is wanted"))
        tell(api, req, &session);
}

void route_session_heartbeat(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct session session;
    struct err err = {0};
    if (!api_session_of(api, req, match, &session))
        return;
    if (sessions_heartbeat(api->sessions, session.id, &session, &err) < 0)
        api_fail(req, &err);
    else
        api_json(req, 200,
                 json_pack("{s:o, s:o}", "session", api_session_json(api, &session), "seconds_left",
                           seconds_left(&session)));
}

void route_session_credentials(struct http_request *req, const struct http_match *match, void *userdata) {
    struct session session;
    if (api_session_of(userdata, req, match, &session))
        api_credential_status(userdata, req, &session);
}

/* Who did what and why, and where the files of its VM are. */
void route_session_events(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct session session;
    struct vm vm;
    _cleanup_free_ struct store_event *events = NULL;
    size_t n;
    struct err err = {0};
    char folder[VMS_PATH_MAX] = "";
    if (!api_session_of(api, req, match, &session))
        return;
    if (store_events(api->store, session.id, &events, &n, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    if (sessions_vm(api->sessions, &session, &vm, NULL) == 0)
        vms_folder(api->vms, &vm, folder);
    api_json(req, 200,
             json_pack("{s:o, s:o, s:o}", "session", api_session_json(api, &session), "events",
                       api_events_json(events, n), "files", *folder ? json_string(folder) : json_null()));
}

void route_session_cancel(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"reason", NULL};
    struct api *api = userdata;
    struct session session;
    struct err err = {0};
    const char *reason = "it was cancelled";
    char actor[STORE_ACTOR_MAX];
    json_t *body = api_session_of(api, req, match, &session) ? api_body(req, known) : NULL;
    if (!body)
        return;
    if (json_unpack(body, "{s?s}", "reason", &reason) < 0 || strlen(reason) >= VM_REASON_MAX) {
        json_decref(body);
        http_problem(req, 400, "body.bad-value", NULL, "reason is not a text of at most 399 bytes", NULL);
        return;
    }
    api_actor(api, req, actor);
    int r = sessions_cancel(api->sessions, session.id, actor, reason, &session, &err);
    json_decref(body);
    if (r < 0)
        api_fail(req, &err);
    else
        api_json(req, 200, json_pack("{s:o}", "session", api_session_json(api, &session)));
}

/* Somebody has opened the page: its desktop is wanted, and the page waits for it. */
static void wake_desktop(struct api *api, const char *session_id) {
    struct session session;
    struct vm vm;
    struct err err = {0};
    if (sessions_get(api->sessions, session_id, &session, NULL) < 0 || session_status_is_end(session.status) ||
        sessions_vm(api->sessions, &session, &vm, NULL) < 0 ||
        (vm.state != VM_STATE_HIBERNATED && vm.state != VM_STATE_HIBERNATING))
        return;
    if (vms_resume(api->vms, vm.id, false, "the session's page", "its page was opened", &vm, &err) < 0)
        log_warning("%s: %s", vm.id, err.detail);
}

void route_session_ticket(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"ticket", NULL};
    struct api *api = userdata;
    const char *id = http_match_param(match, "id"), *ticket = NULL;
    char cookie[SESSIONS_SECRET_TEXT], value[512];
    struct err err = {0};
    if (!api_origin_is_ours(api, req, false)) {
        http_problem(req, 403, "origin.foreign", NULL, "this request comes from another site", NULL);
        return;
    }
    json_t *body = api_body(req, known);
    if (!body)
        return;
    bool good = json_unpack(body, "{s:s}", "ticket", &ticket) == 0;
    int r = !good || !session_id_is_valid(id) ? -ENOENT : sessions_redeem(api->sessions, id, ticket, cookie, &err);
    json_decref(body);
    if (r == -ENOENT) {
        http_problem(req, 403, "session.no-credential", NULL, "this link has been used, is too old or is not of here",
                     "ask for a new one: mctl auth start");
        return;
    }
    if (r < 0) {
        api_fail(req, &err);
        return;
    }
    snprintf(value, sizeof value, "mc_session=%s; Path=/api/auth/session/%s; Max-Age=%u; HttpOnly; SameSite=Strict%s",
             cookie, id, api->config->session.cookie_ms / 1000, str_starts(api->base_url, "https:") ? "; Secure" : "");
    struct http_header header = {"Set-Cookie", value};
    struct http_response response = {.headers = &header, .n_headers = 1};
    http_respond(req, 204, &response);
    wake_desktop(api, id);
    sodium_memzero(cookie, sizeof cookie);
    sodium_memzero(value, sizeof value);
}

void route_session_page(struct http_request *req, const struct http_match *match, void *userdata) {
    api_page_serve(userdata, req, "session.html");
}
