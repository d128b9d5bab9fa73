/* Inside of api/: what the route files share. */
#pragma once

#include <jansson.h>

#include "api/api.h"
#include "http/router.h"
#include "loop/workers.h"
#include "relay/relay.h"

/* Who may call a route; the flags of struct http_route. */
enum api_access {
    API_PUBLIC,  /* anybody */
    API_ADMIN,   /* the unix socket, or the admin token */
    API_USER,    /* these, or a user's token; what is not that user's is not there for it: the handler asks */
    API_SESSION, /* these, or the cookie of the session {id} */
};

/* What a connection was begun with that outlives its request and can be revoked: a user's token, or the dashboard's cookie.
 * Zeros: neither. */
struct api_credential {
    uint8_t id[STORE_HASH_SIZE];
};

/* Who a request is from. */
struct api_caller {
    enum api_role {
        CALLER_NOBODY,
        CALLER_PAGE,      /* a session's cookie: that session alone */
        CALLER_DASHBOARD, /* the dashboard's cookie: an administrator who only reads */
        CALLER_USER,      /* a user's token */
        CALLER_ADMIN,     /* the unix socket, or the admin token */
    } role;
    struct token token;           /* CALLER_USER */
    struct api_credential cookie; /* CALLER_DASHBOARD */
};

#define API_COOKIE_TEXT 65 /* 256 random bits in hex */
#define API_TOKEN_TEXT 69  /* "mct_" and 256 random bits in hex */

struct waiter;
struct follower;
struct desktop;
struct exec;
struct static_files;
struct doctor_run;
struct stream;

struct api {
    struct loop *loop;
    struct store *store;
    struct network *network;
    struct vms *vms;
    struct sessions *sessions;
    struct vault *vault;
    const struct config *config;
    struct relay *relay;
    struct static_files *files;
    struct waiter *waiters;     /* requests that wait for a VM's state */
    struct follower *followers; /* consoles that are streamed */
    struct exec *execs;         /* programs that run in guests for somebody */
    struct opening *openings;   /* addresses on their way to a guest's browser */
    struct desktop *desktops;   /* browsers that see one, or are about to */
    struct loop_timer *follow_timer;
    struct loop_timer *stop_timer;            /* api_stop() was called */
    struct workers *lookers;                  /* NULL until somebody looks at the bridge */
    struct stream *stream;                    /* who listens to what happens; NULL until somebody does */
    struct doctor_run *doctors;               /* at work */
    char token_hash[2 * STORE_HASH_SIZE + 1]; /* hex */
    char base_url[CONFIG_TEXT + 8];           /* http://127.0.0.1:4000, without a slash at its end */
    int64_t started_ms;
    uint64_t next_tag;
    struct api_caller caller; /* of the request whose handler runs; a request that waits asks no more */
};

/* auth.c */
int api_token_load(struct api *api, struct err *err);
/* Fills in the token's id and gives the secret; only its hash is stored. */
int api_token_make(struct api *api, struct token *token, char ret_secret[API_TOKEN_TEXT], struct err *err);
bool api_is_admin_token(struct api *api, const char *text);
/* The dashboard's cookie: kept as a hash, and of no use once there is another admin token. */
int api_cookie_make(struct api *api, unsigned life_s, char ret_cookie[API_COOKIE_TEXT], struct err *err);
int api_cookie_forget(struct api *api, struct http_request *req, struct err *err);
/* That of the request whose handler runs, and of a token. */
struct api_credential api_credential(const struct api *api);
struct api_credential api_credential_of_token(const struct token *token);
bool api_credential_is(const struct api_credential *a, const struct api_credential *b);
/* It is of no use any more: the connections that were begun with it end. */
void api_revoked(struct api *api, const struct api_credential *credential);
/* Finds out who calls. Answers the request itself when the caller may not go on. Return: whether it may. */
bool api_allowed(struct api *api, struct http_request *req, const struct http_match *match);
/* Whose things the caller may see: a user's id, or NULL for everybody's. */
const char *api_only_user(const struct api *api);
/* Whether what belongs to the user is there for the caller. */
bool api_may_see(const struct api *api, const char *user);
bool api_has_cookie(struct api *api, struct http_request *req, const char *session_id);
/* Whether the request's Origin is exactly our own address; required false: an absent one is fine. */
bool api_origin_is_ours(struct api *api, struct http_request *req, bool required);
/* "uid 0 (unix socket)", "admin token from 127.0.0.1": who did it, for events. */
void api_actor(struct api *api, struct http_request *req, char ret_actor[STORE_ACTOR_MAX]);

/* reply.c */
void api_json(struct http_request *req, int status, json_t *body); /* takes the reference */
void api_fail(struct http_request *req, const struct err *err);
/* A body that must be a JSON object with no other fields than `known` (ending in NULL); an empty body is {}. Answers
 * the request itself when it is not. The caller decrefs. Return: NULL then. */
json_t *api_body(struct http_request *req, const char *const *known);
/* Answers and returns false when the query has another parameter than `known`. */
bool api_query_known(struct http_request *req, const char *const *known);
json_t *api_time(int64_t realtime_ms); /* RFC 3339, null for 0 */
json_t *api_vm_json(const struct vm *vm);
/* vm_network.c: null where the VM is not on the bridge, such as after its end. */
json_t *api_vm_network_json(struct api *api, const struct vm *vm);
/* The caller's VM of {id}, which may be any unique prefix. Error: "vm.not-found", for another's VM too. */
int api_vm_find(struct api *api, const struct http_match *match, struct vm *ret_vm, struct err *err);
/* The same, and the CLI VM of {user}; answer and return false when there is none. */
bool api_vm_of(struct api *api, struct http_request *req, const struct http_match *match, struct vm *ret_vm);
bool api_user_vm_of(struct api *api, struct http_request *req, const struct http_match *match, struct vm *ret_vm);
/* The caller's session of {id}. Answers and returns false when there is none, or it is another's. */
bool api_session_of(struct api *api, struct http_request *req, const struct http_match *match,
                    struct session *ret_session);
json_t *api_events_json(const struct store_event *events, size_t n);
json_t *api_session_json(struct api *api, const struct session *session);

/* inventory.c: the bridge's ports and what is wrong, as they are now. */
struct api_inventory {
    struct network_status net;
    struct vm *vms; /* that live, newest first */
    size_t n_vms;
    struct network_port *ports;
    size_t n_ports;
};
/* Defers the request, takes it and calls then, which answers; it is freed after that. Where it cannot be had the request is
 * answered. */
typedef void api_inventory_fn(struct api *api, struct http_request *req, const struct api_inventory *inventory);
void api_inventory_take(struct api *api, struct http_request *req, api_inventory_fn *then);
/* Who waits for the kernel, which needs tens of milliseconds to tell of a thousand ports; NULL: there cannot be any. */
struct workers *api_lookers(struct api *api);
void api_inventory_done(struct api_inventory *inventory);
json_t *api_ports_json(const struct api_inventory *inventory);
json_t *api_findings_json(struct api *api, const struct api_inventory *inventory);

/* stream.c */
void api_stream_revoked(struct api *api, const struct api_credential *credential);
void api_stream_free(struct api *api);

/* route_health.c */
json_t *api_network_json(const struct network_status *net);
/* What is wrong with the bridge, in words; NULL: nothing. */
const char *api_network_problem(const struct network_status *net);

/* wait.c */
enum wait_for {
    WAIT_MADE,  /* its VMM runs, or it could not be made */
    WAIT_READY, /* running, or at an end, or hibernated and not brought back */
    WAIT_ENDED,
    WAIT_AT_REST, /* hibernated, or it runs on */
};
/* Defers the request until the VM is there; then answers with the body, whose reference it takes, or {"vm":…} where that
 * is NULL; status for success. */
void api_wait(struct api *api, struct http_request *req, const char *vm_id, enum wait_for what, int status,
              json_t *body);
void api_wait_changed(struct api *api, const struct vm *vm);
/* Where that VM lacks nothing but room, and would have if idle ones were hibernated: begins that, and the request is handled anew
 * when one of them is. Return: whether that was so; the handler returns then. */
bool api_make_room(struct api *api, struct http_request *req, const struct vms_request *request);
/* Whether somebody uses a VM through this API, or for a session. */
bool api_in_use(void *userdata, const struct vm *vm);

/* The same in words; NULL: nobody uses it. */
const char *api_use_words(struct api *api, const struct vm *vm);
bool api_exec_runs(const struct api *api, const char *vm_id);
bool api_desktop_shows(const struct api *api, const char *vm_id);
/* Brings a VM back that is hibernated, or about to be, for a request that needs it: the request is handled anew when it runs,
 * or told why it does not come. Return: whether that was necessary; the handler returns then. */
bool api_wake(struct api *api, struct http_request *req, const struct vm *vm, const char *why);

/* follow.c */
void api_follow_console(struct api *api, struct http_request *req, const struct vm *vm);
void api_follow_revoked(struct api *api, const struct api_credential *credential);
void api_follow_free(struct api *api);

/* desktop.c */
int api_relay_start(struct api *api, struct err *err);
void api_relay_stop(struct api *api);
void api_desktop_vm_changed(struct api *api, const struct vm *vm);
void api_desktop_revoked(struct api *api, const struct api_credential *credential);
void api_desktop_session_ended(struct api *api, const struct session *session);
/* Whether somebody is connected to the session's desktop. */
bool api_desktop_is_watched(struct api *api, const char *session_id);

/* doctor.c */
void api_doctor_free(struct api *api);

/* exec.c */
void api_exec_revoked(struct api *api, const struct api_credential *credential);
void api_exec_free(struct api *api);

/* route_login.c */
void api_openings_free(struct api *api);

/* route_login.c: null where no tool is at work. */
json_t *api_login_json(struct api *api, const struct session *session);

/* route_vault.c */
void api_credential_status(struct api *api, struct http_request *req, const struct session *session);

/* files.c */
int api_files_load(const char *web_dir, struct static_files **ret_files, struct err *err);
void api_files_free(struct static_files *files);
/* Answers with the file of that path below /static/, or 404. */
void api_files_serve(struct api *api, struct http_request *req, const char *name);
/* name: "session.html" or "dashboard.html". */
void api_page_serve(struct api *api, struct http_request *req, const char *name);

/* The handlers of the table in routes.c. */
http_route_fn route_health, route_metrics, route_status;
http_route_fn route_user_vm_create, route_user_vm_get, route_user_vm_delete;
http_route_fn route_user_vm_hibernate, route_user_vm_resume, route_vm_hibernate, route_vm_resume;
http_route_fn route_vms_list, route_vm_get, route_vm_delete, route_vm_events, route_vm_console, route_vm_evidence;
http_route_fn route_vm_exec, route_vm_agent, route_vm_agent_ask;
http_route_fn route_auth_start, route_session_get, route_session_cancel, route_session_ticket, route_sessions_list;
http_route_fn route_vm_diagnostics, route_health_network, route_doctor;
http_route_fn route_vault_get, route_vault_rotate, route_credentials_list, route_credential_forget;
http_route_fn route_session_credentials, route_session_open_url, route_session_oauth_url, route_session_code;
http_route_fn route_token_create, route_tokens_list, route_token_revoke;
http_route_fn route_session_heartbeat, route_session_events, route_session_wake;
http_route_fn route_session_page, route_session_websock;
http_route_fn route_dashboard, route_dashboard_open, route_dashboard_close, route_network, route_stream;
