/* The operator's dashboard: its page, who may see through it, and the picture of the bridge. */
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/time.h"

#define COOKIE_LIFE_S (12 * 3600)

void route_dashboard(struct http_request *req, const struct http_match *match, void *userdata) {
    api_page_serve(userdata, req, "dashboard.html");
}

/* A page of another origin is told where this one may be opened: "localhost" is not "127.0.0.1". */
static bool is_from_here(struct api *api, struct http_request *req) {
    char hint[CONFIG_TEXT + 32];
    if (api_origin_is_ours(api, req, false))
        return true;
    snprintf(hint, sizeof hint, "open the dashboard at %s/", api->base_url);
    http_problem(req, 403, "origin.foreign", NULL, "this request comes from another site", hint);
    return false;
}

static void answer_cookie(struct api *api, struct http_request *req, const char *cookie, unsigned life_s) {
    char value[256];
    snprintf(value, sizeof value, "mc_admin=%s; Path=/api; Max-Age=%u; HttpOnly; SameSite=Strict%s", cookie, life_s,
             strncmp(api->base_url, "https:", 6) == 0 ? "; Secure" : "");
    struct http_header header = {"Set-Cookie", value};
    struct http_response response = {.headers = &header, .n_headers = 1};
    http_respond(req, 204, &response);
    sodium_memzero(value, sizeof value);
}

/* The admin token, once, for a cookie that only reads. */
void route_dashboard_open(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"token", NULL};
    struct api *api = userdata;
    const char *token = NULL;
    char cookie[API_COOKIE_TEXT];
    struct err err = {0};
    json_t *body = is_from_here(api, req) ? api_body(req, known) : NULL;
    if (!body)
        return;
    int r = json_unpack(body, "{s:s}", "token", &token) < 0 || !api_is_admin_token(api, token)
                ? -EACCES
                : api_cookie_make(api, COOKIE_LIFE_S, cookie, &err);
    json_decref(body);
    if (r == -EACCES)
        http_problem(req, 403, "auth.wrong-token", NULL, "this is not the admin token",
                     "it is the one line of the file that [api] admin_token_file names, on the controller's host");
    else if (r < 0)
        api_fail(req, &err);
    else
        answer_cookie(api, req, cookie, COOKIE_LIFE_S);
    sodium_memzero(cookie, sizeof cookie);
}

void route_dashboard_close(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct err err = {0};
    if (!is_from_here(api, req))
        return;
    if (api_cookie_forget(api, req, &err) < 0)
        api_fail(req, &err);
    else
        answer_cookie(api, req, "", 0);
}

static void answer_network(struct api *api, struct http_request *req, const struct api_inventory *inventory) {
    api_json(req, 200,
             json_pack("{s:o, s:o}", "network", api_network_json(&inventory->net), "ports", api_ports_json(inventory)));
}

void route_network(struct http_request *req, const struct http_match *match, void *userdata) {
    api_inventory_take(userdata, req, answer_network);
}
