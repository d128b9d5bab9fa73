/* What a session's page asks of the login in the VM. Addresses may hold codes and tokens: none of them is logged, or told
 * again in an error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/str.h"
#include "session/providers.h"

#define OPEN_TIMEOUT_MS 180000 /* a program as large as a browser starts first, in a guest that may be emulated */

/* One a session: a guest takes few operations at a time, and its login needs some of them. */
struct opening {
    struct opening *next;
    struct api *api;
    struct http_request *req; /* NULL: the caller has gone */
    struct agent_job *job;
    char session_id[SESSION_ID_TEXT];
};

static void drop(struct opening *o) {
    for (struct opening **at = &o->api->openings; *at; at = &(*at)->next)
        if (*at == o) {
            *at = o->next;
            break;
        }
    free(o);
}

void api_openings_free(struct api *api) {
    while (api->openings) {
        agent_job_cancel(api->openings->job);
        drop(api->openings);
    }
}

static bool is_opening(const struct api *api, const char *session_id) {
    for (const struct opening *o = api->openings; o; o = o->next)
        if (strcmp(o->session_id, session_id) == 0)
            return true;
    return false;
}

static void on_gone(struct http_request *req, void *userdata) {
    struct opening *o = userdata;
    o->req = NULL;
}

/* The guest's own words are left out: it has the address, and may say anything. */
static void on_done(void *userdata, json_t *ok, const struct err *err) {
    struct opening *o = userdata;
    if (o->req && ok)
        api_json(o->req, 200, json_pack("{s:b}", "opened", 1));
    else if (o->req)
        http_problem(o->req, err->errnum == ETIMEDOUT ? 504 : 502, err->code, NULL,
                     "the browser in the VM did not open the address", "look at the desktop: is its browser there?");
    drop(o);
}

/* Takes the reference of request. */
static void open_in_guest(struct api *api, struct http_request *req, const struct session *session, struct agent *agent,
                          json_t *request) {
    static const struct agent_handler handler = {.done = on_done};
    struct err err = {0};
    struct opening *o = calloc(1, sizeof *o);
    if (!o || !request) {
        free(o);
        json_decref(request);
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
        return;
    }
    if (agent_begin(agent, request, OPEN_TIMEOUT_MS, &handler, o, &o->job, &err) < 0) {
        free(o);
        http_problem(req, 503, err.code, NULL, err.detail, "try again in a moment");
        return;
    }
    o->next = api->openings;
    o->api = api;
    o->req = req;
    str_copy(o->session_id, sizeof o->session_id, session->id);
    api->openings = o;
    http_request_defer(req, on_gone, o);
}

/* Whether the session's user may be sent to url now, and by which agent. */
static int may_open(struct api *api, const struct session *session, const char *url, size_t len,
                    struct agent **ret_agent, struct err *err) {
    struct provider provider;
    if (session_status_is_end(session->status))
        return err_set(err, EALREADY, "session.ended", "session %s is %s already", session->id,
                       session_status_name(session->status));
    int r = provider_load(api->config->session.providers, session->provider, &provider, err);
    if (r == 0)
        r = provider_url_check(&provider, url, len, err);
    if (r < 0)
        return r;
    if (session->status != SESSION_AWAITING_USER_AUTH && session->status != SESSION_AUTHENTICATING)
        return err_set(err, EPROTO, "session.state", "session %s is %s: its desktop cannot be used yet", session->id,
                       session_status_name(session->status));
    if (is_opening(api, session->id)) {
        err_set(err, EALREADY, "url.opening", "another address is being opened on the desktop of session %s",
                session->id);
        return err_hint(err, "wait for its answer: the browser there may have to start first");
    }
    *ret_agent = vms_agent(api->vms, session->vm_id);
    if (*ret_agent)
        return 0;
    return err_set(err, EALREADY, "agent.none", "the image of VM %s has no agent", session->vm_id);
}

void route_session_open_url(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"url", NULL};
    struct api *api = userdata;
    struct session session;
    struct agent *agent = NULL;
    struct err err = {0};
    const char *url;
    size_t len;
    json_t *body = api_session_of(api, req, match, &session) ? api_body(req, known) : NULL;
    if (!body)
        return;
    if (json_unpack(body, "{s:s%}", "url", &url, &len) < 0)
        http_problem(req, 400, "body.bad-value", NULL, "url is missing or not a text", NULL);
    else if (may_open(api, &session, url, len, &agent, &err) < 0)
        api_fail(req, &err);
    else
        open_in_guest(api, req, &session, agent, json_pack("{s:s, s:s}", "op", "browser.open", "url", url));
    json_decref(body);
}

/* --- what the login tool wants --- */

json_t *api_login_json(struct api *api, const struct session *session) {
    struct login_view view;
    if (sessions_login(api->sessions, session, &view, NULL) < 0)
        return json_null();
    return json_pack("{s:s, s:s, s:b, s:o, s:b}", "flow", provider_flow_name(view.flow), "words", view.words, "opened",
                     view.is_opened, "user_code", *view.user_code ? json_string(view.user_code) : json_null(),
                     "takes_code", view.takes_code);
}

void route_session_oauth_url(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct session session;
    struct login_view view;
    struct err err = {0};
    if (!api_session_of(api, req, match, &session))
        return;
    bool is_early = session.status == SESSION_STARTED || session.status == SESSION_VM_CREATED;
    int r = sessions_login(api->sessions, &session, &view, &err);
    if (r < 0 && !is_early)
        api_fail(req, &err);
    else if (r < 0)
        api_json(req, 202, json_pack("{s:n, s:s}", "url", "words", "The desktop is starting"));
    else if (!view.url)
        api_json(req, 202, json_pack("{s:n, s:s}", "url", "words", view.words));
    else
        api_json(req, 200,
                 json_pack("{s:s%, s:b, s:o, s:s}", "url", view.url, view.url_len, "opened", view.is_opened,
                           "user_code", *view.user_code ? json_string(view.user_code) : json_null(), "words",
                           view.words));
}

void route_session_code(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"code", NULL};
    struct api *api = userdata;
    struct session session;
    struct err err = {0};
    const char *code;
    size_t len;
    json_t *body = api_session_of(api, req, match, &session) ? api_body(req, known) : NULL;
    if (!body)
        return;
    if (json_unpack(body, "{s:s%}", "code", &code, &len) < 0)
        http_problem(req, 400, "body.bad-value", NULL, "code is missing or not a text", NULL);
    else if (sessions_input(api->sessions, &session, code, len, &err) < 0)
        api_fail(req, &err);
    else
        api_json(req, 200, json_pack("{s:b}", "given", 1));
    json_decref(body);
}
