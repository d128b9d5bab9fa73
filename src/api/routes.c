#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/str.h"
#include "base/time.h"

/* The whole table. Who may call is the fourth column: a route without it is public, so it is always written. */
static const struct http_route routes[] = {
    {"GET", "/", route_dashboard, API_PUBLIC, NULL},
    {"GET", "/health", route_health, API_PUBLIC, NULL},
    {"GET", "/metrics", route_metrics, API_ADMIN, NULL},
    {"GET", "/api/status", route_status, API_ADMIN, NULL},
    {"GET", "/api/network", route_network, API_ADMIN, NULL},
    {"GET", "/api/events/stream", route_stream, API_ADMIN, NULL},
    {"POST", "/api/admin/dashboard", route_dashboard_open, API_PUBLIC, NULL},
    {"DELETE", "/api/admin/dashboard", route_dashboard_close, API_PUBLIC, NULL},
    {"POST", "/api/users/{user}/vm", route_user_vm_create, API_USER, NULL},
    {"GET", "/api/users/{user}/vm", route_user_vm_get, API_USER, NULL},
    {"DELETE", "/api/users/{user}/vm", route_user_vm_delete, API_USER, NULL},
    {"POST", "/api/users/{user}/vm/hibernate", route_user_vm_hibernate, API_USER, NULL},
    {"POST", "/api/users/{user}/vm/resume", route_user_vm_resume, API_USER, NULL},
    {"GET", "/api/vms", route_vms_list, API_USER, NULL},
    {"GET", "/api/vms/{id}", route_vm_get, API_USER, NULL},
    {"DELETE", "/api/vms/{id}", route_vm_delete, API_USER, NULL},
    {"POST", "/api/vms/{id}/hibernate", route_vm_hibernate, API_USER, NULL},
    {"POST", "/api/vms/{id}/resume", route_vm_resume, API_USER, NULL},
    {"GET", "/api/vms/{id}/events", route_vm_events, API_USER, NULL},
    {"GET", "/api/vms/{id}/console", route_vm_console, API_USER, NULL},
    {"GET", "/api/vms/{id}/evidence", route_vm_evidence, API_USER, NULL},
    {"GET", "/api/vms/{id}/diagnostics", route_vm_diagnostics, API_USER, NULL},
    {"GET", "/api/admin/health/network", route_health_network, API_ADMIN, NULL},
    {"POST", "/api/admin/doctor", route_doctor, API_ADMIN, NULL},
    {"GET", "/api/vms/{id}/agent", route_vm_agent, API_USER, NULL},
    {"POST", "/api/vms/{id}/agent", route_vm_agent_ask, API_USER, NULL},
    {"GET", "/api/vms/{id}/exec", route_vm_exec, API_USER, NULL},
    {"POST", "/api/auth/start", route_auth_start, API_USER, NULL},
    {"POST", "/api/tokens", route_token_create, API_ADMIN, NULL},
    {"GET", "/api/tokens", route_tokens_list, API_ADMIN, NULL},
    {"DELETE", "/api/tokens/{id}", route_token_revoke, API_ADMIN, NULL},
    {"GET", "/api/vault", route_vault_get, API_ADMIN, NULL},
    {"POST", "/api/vault/rotate", route_vault_rotate, API_ADMIN, NULL},
    {"GET", "/api/users/{user}/credentials", route_credentials_list, API_USER, NULL},
    {"DELETE", "/api/users/{user}/credentials/{provider}", route_credential_forget, API_USER, NULL},
    {"GET", "/api/auth/sessions", route_sessions_list, API_USER, NULL},
    {"GET", "/api/auth/session/{id}", route_session_get, API_SESSION, NULL},
    {"POST", "/api/auth/session/{id}/cancel", route_session_cancel, API_SESSION, NULL},
    {"POST", "/api/auth/session/{id}/heartbeat", route_session_heartbeat, API_SESSION, NULL},
    {"POST", "/api/auth/session/{id}/wake", route_session_wake, API_SESSION, NULL},
    {"GET", "/api/auth/session/{id}/oauth-url", route_session_oauth_url, API_SESSION, NULL},
    {"POST", "/api/auth/session/{id}/code", route_session_code, API_SESSION, NULL},
    {"POST", "/api/auth/session/{id}/open-url", route_session_open_url, API_SESSION, NULL},
    {"GET", "/api/auth/session/{id}/credentials/status", route_session_credentials, API_SESSION, NULL},
    {"GET", "/api/auth/session/{id}/events", route_session_events, API_USER, NULL},
    {"POST", "/api/auth/session/{id}/ticket", route_session_ticket, API_PUBLIC, NULL},
    {"GET", "/api/auth/session/{id}/novnc", route_session_page, API_PUBLIC, NULL},
    /* Public here: a browser sees 1006 for a refused upgrade, so its handler accepts and then closes with a code. */
    {"GET", "/api/auth/session/{id}/novnc/websock", route_session_websock, API_PUBLIC, NULL},
};

static void dispatch(struct api *api, struct http_request *req, const struct http_match *match) {
    if (api_allowed(api, req, match))
        match->route->handler(req, match, api);
}

void api_handle(struct http_request *req, void *userdata) {
    struct api *api = userdata;
    const char *target = http_request_target(req);
    bool is_get = strcmp(http_request_method(req), "GET") == 0 || strcmp(http_request_method(req), "HEAD") == 0;
    if (is_get && str_starts(target, "/static/")) {
        api_files_serve(api, req, target + strlen("/static/"));
        return;
    }
    struct http_match match;
    struct http_header allow = {"Allow", match.allow};
    switch (http_router_match(routes, sizeof routes / sizeof *routes, http_request_method(req), target, &match)) {
    case HTTP_ROUTE_FOUND:
        dispatch(api, req, &match);
        return;
    case HTTP_ROUTE_BAD_PATH:
        http_problem(req, 400, "http.bad-path", NULL, "the path does not decode", NULL);
        return;
    case HTTP_ROUTE_UNKNOWN:
        http_problem(req, 404, "http.no-route", NULL, "there is nothing at this path", "doc/openapi.yaml lists all");
        return;
    case HTTP_ROUTE_OTHER_METHOD:
        http_problem_with(req, 405, "http.method", NULL, "this path does not take that method", NULL, &allow, 1);
        return;
    case HTTP_ROUTE_UNKNOWN_METHOD:
        http_problem(req, 501, "http.method", NULL, "that is not a method of HTTP", NULL);
        return;
    }
}

static void on_vm_changed(void *userdata, const struct vm *vm) {
    struct api *api = userdata;
    api_wait_changed(api, vm);
    api_desktop_vm_changed(api, vm);
}

static bool is_watched(void *userdata, const char *id) {
    return api_desktop_is_watched(userdata, id);
}

static void on_session_ended(void *userdata, const struct session *session) {
    api_desktop_session_ended(userdata, session);
}

int api_new(const struct api_params *params, struct api **ret_api, struct err *err) {
    struct api *api = calloc(1, sizeof *api);
    if (!api)
        return err_sys(err, ENOMEM, "api.start", "start the API");
    *api = (struct api){.loop = params->loop,
                        .store = params->store,
                        .network = params->network,
                        .vms = params->vms,
                        .sessions = params->sessions,
                        .vault = params->vault,
                        .config = params->config,
                        .started_ms = time_realtime_ms()};
    const struct config_api *config = &params->config->api;
    snprintf(api->base_url, sizeof api->base_url, "%s%s", *config->public_url ? "" : "http://",
             *config->public_url ? config->public_url : config->listen);
    /* Browsers leave the scheme's own port out of an Origin. */
    const char *usual = str_starts(api->base_url, "https:") ? ":443" : ":80";
    size_t len = strlen(api->base_url), usual_len = strlen(usual);
    if (len > usual_len && strcmp(api->base_url + len - usual_len, usual) == 0)
        api->base_url[len - usual_len] = '\0';
    int r = api_token_load(api, err);
    if (r == 0)
        r = api_files_load(config->web_dir, &api->files, err);
    if (r == 0)
        r = api_relay_start(api, err);
    if (r < 0) {
        api_free(api);
        return r;
    }
    vms_on_change(params->vms, on_vm_changed, api);
    vms_set_use(params->vms, api_in_use, api);
    sessions_listen(params->sessions,
                    &(struct sessions_listener){.watched = is_watched, .ended = on_session_ended, .userdata = api});
    *ret_api = api;
    return 0;
}

void api_free(struct api *api) {
    if (!api)
        return;
    vms_set_use(api->vms, NULL, NULL);
    api_relay_stop(api);
    api_follow_free(api);
    api_exec_free(api);
    api_openings_free(api);
    api_stream_free(api);
    api_doctor_free(api);
    api_files_free(api->files);
    free(api);
}
