/* The desktop's WebSocket: from a browser's upgrade request to a joined relay connection, and its end.
 *
 * A browser shows its page only 1006 for an upgrade that is refused, so every request that is a WebSocket upgrade is
 * accepted: what cannot go on is then closed with a code and a sentence. The VM is dialed first, because the answer to
 * the browser names the subprotocol that the VM chose; meanwhile the request is deferred.
 *
 * The relay calls from its own threads: what it says is posted to the loop, where everything here lives. A desktop is
 * found again by its tag, a number that is used once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "http/websocket.h"

#define RELAY_THREADS 2
#define SERVICE_PATH "/websockify"
/* How long a browser waits for the reason when the VM's side is lost: the end of a VMM is known after that. */
#define VERDICT_WAIT_MS 1500
/* How long the controller goes on for browsers that wait for their desktop when it is told to stop. */
#define STOP_WAIT_MS 1000
/* And for those that are slow to take what comes before their Close; who takes nothing is let go sooner. */
#define LAST_WORDS_MS 10000
#define RESTARTS "The controller restarts. The page comes back by itself."

struct desktop {
    struct desktop *next;
    struct api *api;
    uint64_t tag;
    uint64_t conn;            /* the relay's; 0: there is none */
    struct http_request *req; /* NULL once answered or gone */
    bool upgrading;           /* answered with 101, which is on its way */
    struct http_websocket websocket;
    struct relay_verdict verdict; /* code 0: none */
    struct loop_timer *verdict_timer;
    char vm_id[VM_ID_TEXT];
    char session_id[SESSION_ID_TEXT];
    struct api_credential by;
};

/* What a relay thread says. */
struct message {
    struct api *api;
    uint64_t tag;
    enum {
        SAYS_DIALED,
        SAYS_LOST,
        SAYS_ENDED,
    } says;
    enum relay_end end;
    char protocol[128];
    struct relay_verdict verdict;
    struct relay_ended ended;
};

static struct desktop *desktop_find(struct api *api, uint64_t tag) {
    for (struct desktop *d = api->desktops; d; d = d->next)
        if (d->tag == tag)
            return d;
    return NULL;
}

/* The last browser that waited has been told. */
static void stop_when_told(struct api *api) {
    if (!api->stop_timer)
        return;
    for (struct desktop *d = api->desktops; d; d = d->next)
        if (d->req || d->upgrading)
            return;
    loop_quit(api->loop);
}

static void desktop_free(struct desktop *d) {
    struct api *api = d->api;
    for (struct desktop **at = &d->api->desktops; *at; at = &(*at)->next)
        if (*at == d) {
            *at = d->next;
            break;
        }
    loop_timer_free(d->verdict_timer);
    free(d);
    stop_when_told(api);
}

static void say(struct relay_verdict *verdict, uint16_t code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void say(struct relay_verdict *verdict, uint16_t code, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    verdict->code = code;
    str_copy(verdict->reason, sizeof verdict->reason, text);
}

/* The socket is the relay's from here, or closed. */
static void on_upgraded(void *userdata, int fd, const void *early, size_t early_len) {
    struct desktop *d = userdata;
    struct relay *relay = d->api->relay;
    bool relayed = false;
    d->upgrading = false;
    if (fd >= 0 && d->conn && !d->verdict.code)
        relayed = relay_join(relay, d->conn, d->tag, fd, early, early_len) == 0;
    else if (fd >= 0 && relay_refuse(relay, fd, early, early_len, d->verdict.code, d->verdict.reason) == 0)
        fd = -1;
    if (relayed) {
        stop_when_told(d->api);
        return;
    }
    if (d->conn)
        relay_cancel(relay, d->conn);
    fd_close(&fd);
    desktop_free(d);
}

/* The first subprotocol that was offered: a Close can only be delivered on a connection that the browser takes.
 * Return: NULL when none was; the caller frees. */
static char *first_offered(const struct http_websocket *websocket) {
    const char *list = websocket->protocols ? websocket->protocols : "";
    list += strspn(list, ", \t");
    size_t len = strcspn(list, ", \t");
    return len > 0 ? strndup(list, len) : NULL;
}

static void upgrade(struct desktop *d, const char *protocol) {
    struct http_request *req = d->req;
    d->req = NULL;
    d->upgrading = true;
    if (http_websocket_upgrade(req, &d->websocket, protocol, on_upgraded, d) < 0) {
        if (d->conn)
            relay_cancel(d->api->relay, d->conn);
        desktop_free(d);
    }
}

static void refuse(struct desktop *d) {
    _cleanup_free_ char *protocol = first_offered(&d->websocket);
    upgrade(d, protocol);
}

static void on_gone(struct http_request *req, void *userdata) {
    struct desktop *d = userdata;
    d->req = NULL;
    /* The relay answers a cancelled dial, or has answered it: then nothing refers to it any more. */
    relay_cancel(d->api->relay, d->conn);
    desktop_free(d);
}

/* What a browser reads when the session is over. */
static void say_ended(struct relay_verdict *verdict, const struct session *session) {
    say(verdict, session->status == SESSION_TIMEOUT ? 4408 : 1011, "The session has ended: %s",
        *session->reason ? session->reason : session_status_name(session->status));
}

/* Says by what the session and its VM are whether the browser may go on; code 0: it may. */
static void judge(struct api *api, struct desktop *d, struct session *session, struct vm *vm) {
    char line[VMS_LINE_MAX];
    if (session_status_is_end(session->status)) {
        say_ended(&d->verdict, session);
        return;
    }
    if (sessions_vm(api->sessions, session, vm, NULL) < 0) {
        say(&d->verdict, 1013, "The session has no VM yet.");
        return;
    }
    str_copy(d->vm_id, sizeof d->vm_id, vm->id);
    switch (vm->state) {
    case VM_STATE_CREATING:
    case VM_STATE_BOOTING:
        vms_console_line(api->vms, vm->id, line);
        say(&d->verdict, 1013, "The VM is still booting: %s", *line ? line : "its console is empty yet");
        return;
    case VM_STATE_RUNNING:
        return;
    case VM_STATE_RESUMING:
        say(&d->verdict, 1013, "The VM wakes up.");
        return;
    case VM_STATE_HIBERNATING:
    case VM_STATE_HIBERNATED:
        say(&d->verdict, 1013, "The VM is hibernated.");
        return;
    case VM_STATE_STOPPING:
    case VM_STATE_STOPPED:
    case VM_STATE_FAILED:
        say(&d->verdict, 1011, "The VM was lost: %s", *vm->reason ? vm->reason : "it was stopped");
        return;
    }
}

/* Who asks, and for what. A cookie counts only from our own page. */
static void judge_request(struct api *api, struct http_request *req, const char *id, struct desktop *d, struct vm *vm) {
    struct session session;
    bool bearer = api->caller.role == CALLER_ADMIN || api->caller.role == CALLER_USER;
    bool may = bearer ? api_origin_is_ours(api, req, false)
                      : api_origin_is_ours(api, req, true) && api_has_cookie(api, req, id);
    if (!may)
        say(&d->verdict, 4401, "No credential was given. Ask for a new link: mctl auth start");
    else if (!session_id_is_valid(id) || sessions_get(api->sessions, id, &session, NULL) < 0 ||
             !api_may_see(api, session.user))
        say(&d->verdict, 4404, "There is no such session.");
    else
        judge(api, d, &session, vm);
    if (may)
        str_copy(d->session_id, sizeof d->session_id, id);
}

/* A page that is opened again and again, or a program, is not to take all of the relay. */
static void judge_number(struct desktop *d) {
    uint32_t most = d->api->config->session.desktops, n = 0;
    if (most == 0)
        return;
    for (const struct desktop *other = d->api->desktops; other; other = other->next)
        n += other != d && !other->verdict.code && strcmp(other->session_id, d->session_id) == 0;
    if (n >= most)
        say(&d->verdict, 1014, "The desktop is open %u times already. Close a page that shows it.", n);
}

static int dial(struct desktop *d, const struct vm *vm, struct err *err) {
    char ip[NET_IP_TEXT], host[32];
    uint16_t port = d->api->config->vm.type[vm->type].port;
    _cleanup_close_ int fd = -1;
    net_format_ip(vm->ip, ip);
    snprintf(host, sizeof host, "%s:%u", ip, port);
    int r = network_connect_tcp(d->api->network, vm->ip, port, &fd, err);
    if (r < 0)
        return r;
    struct relay_dial dial = {.tag = d->tag, .host = host, .path = SERVICE_PATH, .protocols = d->websocket.protocols};
    r = relay_dial(d->api->relay, fd, &dial, &d->conn, err);
    if (r == 0)
        fd_steal(&fd);
    return r;
}

void route_session_websock(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct http_websocket websocket;
    struct err err = {0};
    struct vm vm = {0};
    if (http_websocket_check(req, &websocket, &err) < 0) {
        http_websocket_refuse(req, &err);
        return;
    }
    struct desktop *d = calloc(1, sizeof *d);
    if (!d) {
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
        return;
    }
    *d = (struct desktop){.next = api->desktops,
                          .api = api,
                          .tag = ++api->next_tag,
                          .req = req,
                          .websocket = websocket,
                          .by = api_credential(api)};
    api->desktops = d;
    if (api->stop_timer)
        say(&d->verdict, 1012, RESTARTS);
    else
        judge_request(api, req, http_match_param(match, "id"), d, &vm);
    if (!d->verdict.code)
        judge_number(d);
    if (!d->verdict.code && dial(d, &vm, &err) < 0)
        say(&d->verdict, 1014, "The VM cannot be reached: %s", err.detail);
    if (d->verdict.code)
        refuse(d);
    else
        http_request_defer(req, on_gone, d);
}

/* What the doctor found, where it looked at the VM already: that says more than what the relay saw of it.
 * Return: whether there is such. */
static bool say_finding(struct desktop *d, struct relay_verdict *verdict) {
    struct vm vm;
    if (store_vm_get(d->api->store, d->vm_id, &vm, NULL) < 0 || vm.state != VM_STATE_RUNNING || vm.reachable != 0 ||
        !*vm.reason)
        return false;
    say(verdict, 1014, "The VM cannot be reached: %s", vm.reason);
    return true;
}

static void on_dialed(struct desktop *d, const struct message *m) {
    if (m->end == RELAY_END_NONE) {
        upgrade(d, *m->protocol ? m->protocol : NULL);
        return;
    }
    d->conn = 0;
    if (!d->verdict.code && (m->end != RELAY_END_UPSTREAM_UNREACHABLE || !say_finding(d, &d->verdict)))
        d->verdict = m->verdict;
    refuse(d);
}

/* The VM still runs: then it is its service that ended, or the way to it. */
static void on_verdict_timer(void *userdata) {
    struct desktop *d = userdata;
    struct relay_verdict verdict;
    if (!say_finding(d, &verdict))
        say(&verdict, 1014, "The desktop's service in the VM closed the connection.");
    relay_close(d->api->relay, d->conn, verdict.code, verdict.reason);
}

static void on_lost(struct desktop *d) {
    struct vm vm;
    if (store_vm_get(d->api->store, d->vm_id, &vm, NULL) == 0)
        api_desktop_vm_changed(d->api, &vm);
    if (!d->verdict_timer)
        loop_timer_new(d->api->loop, VERDICT_WAIT_MS / 2, on_verdict_timer, d, &d->verdict_timer);
}

static void on_ended(struct desktop *d, const struct relay_ended *ended) {
    log_event(LOG_LEVEL_INFO,
              (struct log_about){.event = "desktop-closed", .vm_id = d->vm_id, .session_id = d->session_id},
              "%s, code %u, after %lld s, %llu bytes to the VM, %llu from it", relay_end_name(ended->end), ended->code,
              (long long)ended->duration_ms / 1000, (unsigned long long)ended->from_browser_bytes,
              (unsigned long long)ended->from_upstream_bytes);
    desktop_free(d);
}

static void on_message(void *userdata) {
    struct message *m = userdata;
    struct desktop *d = desktop_find(m->api, m->tag);
    if (d && m->says == SAYS_DIALED && d->req)
        on_dialed(d, m);
    else if (d && m->says == SAYS_LOST)
        on_lost(d);
    else if (d && m->says == SAYS_ENDED)
        on_ended(d, &m->ended);
    free(m);
}

static void post(struct api *api, struct message message) {
    struct message *m = malloc(sizeof *m);
    if (!m)
        return;
    *m = message;
    m->api = api;
    if (loop_post(api->loop, on_message, m) == -ENOMEM)
        free(m);
}

static void relay_dialed(void *userdata, const struct relay_dialed *dialed) {
    struct message m = {.tag = dialed->tag, .says = SAYS_DIALED, .end = dialed->end, .verdict = dialed->verdict};
    str_copy(m.protocol, sizeof m.protocol, dialed->protocol ? dialed->protocol : "");
    post(userdata, m);
}

/* Only the loop knows whether the VM or just its service is gone: the browser waits for that. */
static int relay_why(void *userdata, uint64_t conn, uint64_t tag, enum relay_end end, struct relay_verdict *inout) {
    if (end != RELAY_END_UPSTREAM_LOST && end != RELAY_END_UPSTREAM_CLOSED)
        return 0;
    post(userdata, (struct message){.tag = tag, .says = SAYS_LOST});
    return VERDICT_WAIT_MS;
}

static void relay_ended(void *userdata, const struct relay_ended *ended) {
    post(userdata, (struct message){.tag = ended->tag, .says = SAYS_ENDED, .ended = *ended});
}

int api_relay_start(struct api *api, struct err *err) {
    struct relay_config config = {.threads = RELAY_THREADS};
    struct relay_callbacks callbacks = {.dialed = relay_dialed, .why = relay_why, .ended = relay_ended};
    return relay_new(&config, &callbacks, api, &api->relay, err);
}

void api_desktop_vm_changed(struct api *api, const struct vm *vm) {
    struct relay_verdict verdict;
    if (vm->state == VM_STATE_HIBERNATING)
        say(&verdict, 1012, "The VM is put to rest. The page comes back when it is woken.");
    else if (vm->state == VM_STATE_STOPPING || vm_state_is_end(vm->state))
        say(&verdict, 1011, "The VM was lost: %s", *vm->reason ? vm->reason : "it was stopped");
    else
        return;
    for (struct desktop *d = api->desktops; d; d = d->next)
        if (d->conn && !d->verdict.code && strcmp(d->vm_id, vm->id) == 0)
            relay_close(api->relay, d->conn, verdict.code, verdict.reason);
}

void api_desktop_session_ended(struct api *api, const struct session *session) {
    if (session->status == SESSION_FAILED) /* its VM was lost, or is ended now: that is said, with the reason */
        return;
    for (struct desktop *d = api->desktops; d; d = d->next) {
        if (d->verdict.code || strcmp(d->session_id, session->id) != 0)
            continue;
        say_ended(&d->verdict, session);
        if (d->conn)
            relay_close(api->relay, d->conn, d->verdict.code, d->verdict.reason);
    }
}

void api_desktop_revoked(struct api *api, const struct api_credential *credential) {
    for (struct desktop *d = api->desktops; d; d = d->next) {
        if (d->verdict.code || !api_credential_is(&d->by, credential))
            continue;
        say(&d->verdict, 4401, "The token that this was begun with was revoked.");
        if (d->conn)
            relay_close(api->relay, d->conn, d->verdict.code, d->verdict.reason);
    }
}

bool api_desktop_is_watched(struct api *api, const char *session_id) {
    for (struct desktop *d = api->desktops; d; d = d->next)
        if (d->conn && strcmp(d->session_id, session_id) == 0)
            return true;
    return false;
}

bool api_desktop_shows(const struct api *api, const char *vm_id) {
    for (const struct desktop *d = api->desktops; d; d = d->next)
        if (d->conn && strcmp(d->vm_id, vm_id) == 0)
            return true;
    return false;
}

static void on_stop_timer(void *userdata) {
    struct api *api = userdata;
    loop_quit(api->loop);
}

void api_stop(struct api *api) {
    if (loop_timer_new(api->loop, STOP_WAIT_MS, on_stop_timer, api, &api->stop_timer) < 0) {
        loop_quit(api->loop);
        return;
    }
    for (struct desktop *d = api->desktops, *next; d; d = next) {
        next = d->next;
        if (!d->req)
            continue;
        relay_cancel(api->relay, d->conn);
        d->conn = 0;
        say(&d->verdict, 1012, RESTARTS);
        refuse(d);
    }
    stop_when_told(api);
}

void api_relay_stop(struct api *api) {
    loop_timer_free(ptr_steal(api->stop_timer));
    relay_shutdown(api->relay, 1012, RESTARTS, LAST_WORDS_MS);
    api->relay = NULL;
    loop_drain(api->loop);
    while (api->desktops)
        desktop_free(api->desktops);
}
