/* A request from its first line to its end: libmicrohttpd's callbacks, and the accessors. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "http/internal.h"
#include "http/problem.h"
#include "http/target.h"

/* ---- refusing ---- */

void http_conn_refuse(struct http_conn *conn, bool head_only, int status, const char *code, const char *detail,
                      unsigned retry_after_s) {
    size_t len = 0;
    _cleanup_free_ char *answer = http_problem_answer(status, code, detail, retry_after_s, &len);
    conn->refused = true;
    conn->server->stats.refused++;
    if (!answer)
        return;
    if (head_only)
        len = (size_t)(strstr(answer, "\r\n\r\n") + 4 - answer);
    /* A client whose receive window is full of earlier answers does not get this one. */
    ssize_t n = send(conn->fd, answer, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)n;
}

static enum MHD_Result refuse(struct http_request *req, int status, const char *code, const char *detail) {
    bool head_only = req->method && strcmp(req->method, "HEAD") == 0;
    http_conn_refuse(req->conn, head_only, status, code, detail, status == 503 ? 1 : 0);
    return MHD_NO; /* libmicrohttpd closes the connection; linger.c sees to it that the answer arrives */
}

/* ---- the head ---- */

struct raw_field {
    const char *name, *value;
    size_t name_len, value_len;
};

struct raw_head {
    const char *method, *version;
    size_t n;
    struct raw_field field[HTTP_FIELDS_MAX + 1];
};

static enum MHD_Result add_raw_field(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_len,
                                     const char *value, size_t value_len) {
    struct raw_head *head = cls;
    if (!value) {
        value = "";
        value_len = 0;
    }
    head->field[head->n++] = (struct raw_field){name, value, name_len, value_len};
    return head->n <= HTTP_FIELDS_MAX ? MHD_YES : MHD_NO;
}

static size_t head_bytes(struct MHD_Connection *mhd) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    return info ? info->header_size : 0;
}

/* libmicrohttpd 0.9.75 cuts a line at a NUL, takes a line that begins with one for the end of the head, takes a bare LF
 * for an end of line and drops what a folded line continues, and tells nothing of it. But it parses in place: it puts
 * NULs into its receive buffer and hands out pointers into it. So in a head with nothing odd in it each part begins
 * exactly where the one before ended, with CRLF between lines, and the head is exactly as long as its parts.
 * From 0.9.78 on its parser refuses these by itself when it is told to be strict, and trims values. */
static bool head_is_plain(const struct http_request *req, const struct raw_head *head) {
#if MHD_VERSION > 0x00097700
    return true;
#else
    uintptr_t at = (uintptr_t)head->method;
    uintptr_t end = at + head_bytes(req->mhd);
    at += strlen(head->method) + 1;
    if (at != (uintptr_t)req->raw_target)
        return false;
    at += strlen(req->target) + 1;
    if (at != (uintptr_t)head->version)
        return false;
    at += strlen(head->version) + 2;
    for (size_t i = 0; i < head->n; i++) {
        const struct raw_field *f = &head->field[i];
        if (at != (uintptr_t)f->name || (uintptr_t)f->value <= at + f->name_len)
            return false;
        at = (uintptr_t)f->value + f->value_len + 2;
    }
    return at + 2 == end;
#endif
}

static char *put(char **at, const char *text, size_t len) {
    char *start = *at;
    memcpy(start, text, len);
    start[len] = '\0';
    *at += len + 1;
    return start;
}

/* Copies: libmicrohttpd's buffer is not ours to trim, nor to keep. */
static int copy_head(struct http_request *req, const struct raw_head *head) {
    size_t size = strlen(head->method) + 1;
    for (size_t i = 0; i < head->n; i++)
        size += head->field[i].name_len + head->field[i].value_len + 2;
    req->arena = malloc(size);
    req->arena_size = size;
    req->fields = calloc(head->n + 1, sizeof *req->fields);
    if (!req->arena || !req->fields)
        return -ENOMEM;
    char *at = req->arena;
    req->method = put(&at, head->method, strlen(head->method));
    for (size_t i = 0; i < head->n; i++) {
        const struct raw_field *f = &head->field[i];
        size_t len = f->value_len;
        while (len > 0 && (f->value[len - 1] == ' ' || f->value[len - 1] == '\t'))
            len--;
        req->fields[i].name = put(&at, f->name, f->name_len);
        req->fields[i].value = put(&at, f->value, len);
    }
    req->n_fields = head->n;
    return 0;
}

static bool is_always_path(const struct http_request *req) {
    const char *path = req->conn->server->limits.always_path;
    return path && strcspn(req->target, "?") == strlen(path) && strncmp(req->target, path, strlen(path)) == 0;
}

static enum MHD_Result check_head(struct http_request *req, const struct raw_head *raw) {
    const struct http_limits *limits = &req->conn->server->limits;
    struct http_head head = {req->method, req->target, raw->version, req->fields, req->n_fields, head_bytes(req->mhd)};
    struct http_framing framing;
    struct http_refusal refusal;
    if (http_strict_check(&head, limits->header_bytes, limits->body_bytes, &framing, &refusal) < 0)
        return refuse(req, refusal.status, refusal.code, refusal.detail);
    if (req->conn->spare)
        req->conn->spare = conn_is_over_limit(req->conn);
    if (req->conn->spare && !is_always_path(req)) {
        req->conn->server->stats.over_limit++;
        return refuse(req, 503, "http.too-many-connections", "too many connections are open");
    }
    conn_set_phase(req->conn, PHASE_BODY);
    return MHD_YES;
}

static enum MHD_Result on_head(struct http_request *req, const char *method, const char *version) {
    struct http_server *server = req->conn->server;
    struct raw_head raw = {.method = method, .version = version};
    req->head_seen = true;
    server->stats.requests++;
    if (req->conn->remote && !is_always_path(req)) {
        unsigned wait_s = http_remote_take(req->conn->remote, server->limits.requests_per_second, server->limits.burst,
                                           time_monotonic_ms());
        if (wait_s > 0) {
            server->stats.rate_limited++;
            http_conn_refuse(req->conn, strcmp(method, "HEAD") == 0, 429, "http.rate-limit",
                             "this address sends requests too fast", wait_s);
            return MHD_NO;
        }
    }
    MHD_get_connection_values_n(req->mhd, MHD_HEADER_KIND, add_raw_field, &raw);
    if (raw.n <= HTTP_FIELDS_MAX && !head_is_plain(req, &raw))
        return refuse(req, 400, "http.bad-head",
                      "the request's head has a NUL, a bare LF, a folded line or extra spaces");
    if (copy_head(req, &raw) < 0)
        return MHD_NO;
    req->http11 = strcmp(version, "HTTP/1.1") == 0;
    return check_head(req, &raw);
}

/* ---- the body ---- */

static enum MHD_Result on_body(struct http_request *req, const char *data, size_t *size) {
    size_t need = req->body_len + *size + 1;
    /* A Content-Length was checked before; this is for chunks, whose sum nobody announces. */
    if (need > req->conn->server->limits.body_bytes + 1)
        return refuse(req, 413, "http.body-too-large", "the request's body is too large");
    if (need > req->body_cap) {
        size_t cap = req->body_cap ? req->body_cap * 2 : 1024;
        cap = cap < need ? need : cap;
        char *bigger = malloc(cap);
        if (!bigger)
            return MHD_NO;
        if (req->body_len > 0)
            memcpy(bigger, req->body, req->body_len);
        mem_free(req->body, req->body_cap);
        req->body = bigger;
        req->body_cap = cap;
    }
    memcpy(req->body + req->body_len, data, *size);
    req->body_len += *size;
    req->body[req->body_len] = '\0';
    *size = 0;
    return MHD_YES;
}

/* ---- suspension ---- */

static int on_watch(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct http_request *req = userdata;
    req->conn->server->stats.gone++;
    request_tell_gone(req);
    request_drop(req);
    return 0;
}

/* libmicrohttpd does not look at a suspended connection, so we do: not for input (the next request may wait there) but
 * for its end. */
bool request_suspend(struct http_request *req) {
    if (sd_event_add_io(req->conn->server->loop, &req->watch, req->conn->fd, EPOLLRDHUP, on_watch, req) < 0)
        return false;
    req->suspended = true;
    MHD_suspend_connection(req->mhd);
    return true;
}

void request_resume(struct http_request *req) {
    if (!req->suspended)
        return;
    req->suspended = false;
    req->watch = sd_event_source_disable_unref(req->watch); /* before libmicrohttpd may close the descriptor */
    MHD_resume_connection(req->mhd);
    server_kick(req->conn->server);
}

void request_drop(struct http_request *req) {
    req->doomed = true;
    if (req->suspended) {
        request_resume(req);
    } else {
        req->conn->shut = true;
        shutdown(req->conn->fd, SHUT_RDWR);
    }
}

void request_tell_gone(struct http_request *req) {
    if (!req->held)
        return;
    req->held = false;
    if (req->gone)
        req->gone(req, req->gone_userdata);
}

void http_request_defer(struct http_request *req, http_gone_fn *gone, void *userdata) {
    req->held = true;
    req->gone = gone;
    req->gone_userdata = userdata;
}

/* ---- libmicrohttpd's callbacks ---- */

void *request_on_uri(void *cls, const char *uri, struct MHD_Connection *mhd) {
    struct http_server *server = cls;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct http_conn *conn = info ? info->socket_context : NULL;
    struct http_request *req = conn && uri ? calloc(1, sizeof *req) : NULL;
    if (!req)
        return NULL;
    req->target = strdup(uri);
    if (!req->target) {
        free(req);
        return NULL;
    }
    req->conn = conn;
    req->mhd = mhd;
    req->raw_target = uri;
    conn->req = req;
    if (conn->phase == PHASE_IDLE)
        conn_set_phase(conn, PHASE_HEAD);
    server->progress++;
    return req;
}

/* The whole request is there. Called again after each resumption until there is an answer. */
static enum MHD_Result on_complete(struct http_request *req) {
    if (!req->dispatched) {
        struct http_server *server = req->conn->server;
        req->dispatched = true;
        conn_set_phase(req->conn, PHASE_OWNER);
        server->handler(req, server->userdata);
        if (!req->answered && !req->held && !req->doomed)
            http_problem(req, 500, "http.unanswered", NULL, "the request was left without an answer", NULL);
    }
    if (req->doomed)
        return MHD_NO;
    if (!req->response) {
        if (request_suspend(req))
            return MHD_YES;
        request_tell_gone(req);
        return MHD_NO;
    }
    conn_set_phase(req->conn, PHASE_SENDING);
    struct MHD_Response *response = ptr_steal(req->response);
    enum MHD_Result r = MHD_queue_response(req->mhd, req->status, response);
    MHD_destroy_response(response);
    return r;
}

enum MHD_Result request_on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **ctx) {
    struct http_server *server = cls;
    struct http_request *req = *ctx;
    server->progress++;
    if (!req)
        return MHD_NO;
    if (!req->head_seen)
        return on_head(req, method, version);
    if (*size > 0)
        return on_body(req, data, size);
    return on_complete(req);
}

void request_on_completed(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_RequestTerminationCode why) {
    struct http_server *server = cls;
    struct http_request *req = *ctx;
    server->progress++;
    *ctx = NULL;
    if (!req)
        return;
    if (req->held)
        server->stats.gone++;
    request_tell_gone(req);
    if (req->upgrade)
        req->upgrade(req->upgrade_userdata, -1, NULL, 0);
    req->conn->req = NULL;
    conn_set_phase(req->conn, PHASE_IDLE);
    sd_event_source_disable_unref(req->watch);
    if (req->response)
        MHD_destroy_response(req->response);
    free(req->fields);
    /* Codes, tokens and tickets come and go in them. */
    mem_free(req->target, strlen(req->target));
    mem_free(req->arena, req->arena_size);
    mem_free(req->body, req->body_cap);
    mem_free(req->out, req->out_cap);
    free(req);
}

/* ---- accessors ---- */

const struct http_peer *http_request_peer(const struct http_request *req) {
    return &req->conn->peer;
}

const char *http_request_method(const struct http_request *req) {
    return req->method;
}

const char *http_request_target(const struct http_request *req) {
    return req->target;
}

const char *http_request_header(const struct http_request *req, const char *name) {
    return http_field_find(req->fields, req->n_fields, name, NULL);
}

unsigned http_request_header_count(const struct http_request *req, const char *name) {
    unsigned count;
    http_field_find(req->fields, req->n_fields, name, &count);
    return count;
}

bool http_request_is_http11(const struct http_request *req) {
    return req->http11;
}

int http_request_query(const struct http_request *req, const char *name, char *dst, size_t size) {
    return http_query_get(req->target, name, dst, size);
}

int http_request_cookie(const struct http_request *req, const char *name, char *dst, size_t size) {
    return http_cookie_get(http_request_header(req, "Cookie"), name, dst, size);
}

const char *http_request_body(const struct http_request *req, size_t *ret_len) {
    *ret_len = req->body_len;
    return req->body ? req->body : "";
}
