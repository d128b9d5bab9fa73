/* Answers: whole, streamed, and the upgrade. All of them are made by a callback that copies from the request's own
 * buffer, so that what the client takes can be seen (the deadline for a client that does not read) and bounded. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "http/internal.h"
#include "http/problem.h"

/* What a response of libmicrohttpd's is made from. */
struct source {
    struct http_request *req;
    char *block; /* of the response itself, where a whole answer goes through; NULL: nothing has yet */
    size_t len;
};

/* The block goes to the heap behind this, and an answer may be a token, a ticket, an address with a code in it. */
static void free_source(void *cls) {
    struct source *source = cls;
    if (source->block)
        explicit_bzero(source->block, source->len);
    free(source);
}

static ssize_t read_out(void *cls, uint64_t pos, char *buf, size_t max) {
    struct source *source = cls;
    struct http_request *req = source->req;
    req->conn->server->progress++;
    conn_set_phase(req->conn, PHASE_SENDING);
    if (req->doomed)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = req->out_len - req->out_at < max ? req->out_len - req->out_at : max;
    if (n == 0) {
        if (req->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        conn_set_phase(req->conn, PHASE_OWNER);
        return request_suspend(req) ? 0 : MHD_CONTENT_READER_END_WITH_ERROR;
    }
    memcpy(buf, req->out + req->out_at, n);
    req->out_at += n;
    if (!req->streaming) { /* a stream's is the connection's */
        source->block = buf;
        source->len = source->len > n ? source->len : n;
    }
    return (ssize_t)n;
}

/* Return: 0, -ENOBUFS (more than max would wait), -ENOMEM. */
static int put_out(struct http_request *req, const void *data, size_t len, size_t max) {
    size_t waiting = req->out_len - req->out_at;
    if (len > max || waiting > max - len)
        return -ENOBUFS;
    if (req->out_len + len > req->out_cap) {
        if (waiting > 0)
            memmove(req->out, req->out + req->out_at, waiting);
        req->out_at = 0;
        req->out_len = waiting;
    }
    if (req->out_len + len > req->out_cap) {
        size_t cap = req->out_cap * 2 > waiting + len ? req->out_cap * 2 : waiting + len;
        char *bigger = realloc(req->out, cap);
        if (!bigger)
            return -ENOMEM;
        req->out = bigger;
        req->out_cap = cap;
    }
    if (len > 0)
        memcpy(req->out + req->out_len, data, len);
    req->out_len += len;
    return 0;
}

/* ---- heads ---- */

static bool is_ours(const char *name) {
    static const char *const ours[] = {"Connection", "Content-Length", "Transfer-Encoding", "Date", "Trailer"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (strcasecmp(name, ours[i]) == 0)
            return true;
    return false;
}

static int add_header(struct MHD_Response *response, const char *name, const char *value) {
    if (!http_is_token(name) || !http_is_field_value(value))
        return -EINVAL;
    return MHD_add_response_header(response, name, value) == MHD_YES ? 0 : -ENOMEM;
}

static int add_headers(struct MHD_Response *response, const struct http_header *headers, size_t n) {
    if (n > HTTP_RESPONSE_HEADERS_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        int r = is_ours(headers[i].name) ? -EINVAL : add_header(response, headers[i].name, headers[i].value);
        if (r < 0)
            return r;
    }
    return 0;
}

static int add_defaults(struct MHD_Response *response, const struct http_response *head, bool close) {
    const struct http_header defaults[] = {
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {"Cache-Control", head->cache ? head->cache : "no-store"},
        {"Content-Type", head->content_type},
        {"Connection", close ? "close" : NULL},
    };
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++) {
        if (!defaults[i].value || MHD_get_response_header(response, defaults[i].name))
            continue;
        int r = add_header(response, defaults[i].name, defaults[i].value);
        if (r < 0)
            return r;
    }
    return 0;
}

static int make_response(struct http_request *req, int status, const struct http_response *head, uint64_t size,
                         struct MHD_Response **ret_response) {
    if (status < 200 || status > 599)
        return -EINVAL;
    struct source *source = malloc(sizeof *source);
    if (!source)
        return -ENOMEM;
    *source = (struct source){.req = req};
    struct MHD_Response *response =
        MHD_create_response_from_callback(size, RESPONSE_BLOCK_BYTES, read_out, source, free_source);
    if (!response) {
        free(source);
        return -ENOMEM;
    }
    int r = add_headers(response, head->headers, head->n_headers);
    if (r == 0)
        r = add_defaults(response, head, req->conn->spare);
    if (r < 0) {
        MHD_destroy_response(response);
        return r;
    }
    *ret_response = response;
    return 0;
}

static void deliver(struct http_request *req, unsigned status, struct MHD_Response *response) {
    req->status = status;
    req->response = response;
    req->answered = true;
    request_resume(req);
}

/* The owner could not be obeyed; the client still gets an end. */
static int fail(struct http_request *req, int r) {
    static char text[] = "{\"type\":\"about:blank\",\"title\":\"Internal Server Error\",\"status\":500,"
                         "\"code\":\"http.bad-answer\",\"detail\":\"the answer could not be made\"}";
    req->held = false;
    struct MHD_Response *response = MHD_create_response_from_buffer(sizeof text - 1, text, MHD_RESPMEM_PERSISTENT);
    if (!response) {
        request_drop(req);
        return r;
    }
    const struct http_response head = {.content_type = "application/problem+json"};
    add_defaults(response, &head, true);
    deliver(req, 500, response);
    return r;
}

/* ---- whole answers ---- */

int http_respond(struct http_request *req, int status, const struct http_response *response) {
    static const struct http_response empty = {0};
    const struct http_response *head = response ? response : &empty;
    struct MHD_Response *made = NULL;
    if (req->answered)
        return -EINVAL;
    size_t len = status == 204 || status == 304 ? 0 : head->len;
    int r = put_out(req, head->body, len, len);
    if (r == 0)
        r = make_response(req, status, head, len, &made);
    if (r < 0)
        return fail(req, r);
    req->ended = true;
    req->held = false;
    deliver(req, (unsigned)status, made);
    return 0;
}

int http_problem_with(struct http_request *req, int status, const char *code, const char *title, const char *detail,
                      const char *hint, const struct http_header *headers, size_t n_headers) {
    struct http_response response = {
        .content_type = "application/problem+json", .headers = headers, .n_headers = n_headers};
    _cleanup_free_ char *body = http_problem_json(status, code, title, detail, hint, &response.len);
    if (!body)
        return req->answered ? -EINVAL : fail(req, -ENOMEM);
    response.body = body;
    return http_respond(req, status, &response);
}

int http_problem(struct http_request *req, int status, const char *code, const char *title, const char *detail,
                 const char *hint) {
    return http_problem_with(req, status, code, title, detail, hint, NULL, 0);
}

/* ---- streams ---- */

int http_stream_begin(struct http_request *req, int status, const struct http_response *response) {
    static const struct http_response empty = {0};
    const struct http_response *head = response ? response : &empty;
    struct MHD_Response *made = NULL;
    if (req->answered)
        return -EINVAL;
    int r = req->held ? make_response(req, status, head, MHD_SIZE_UNKNOWN, &made) : -EINVAL;
    if (r < 0)
        return fail(req, r);
    req->streaming = true;
    deliver(req, (unsigned)status, made);
    return 0;
}

size_t http_stream_waiting(const struct http_request *req) {
    return req->out_len - req->out_at;
}

int http_stream_write(struct http_request *req, const void *data, size_t len) {
    int r = put_out(req, data, len, req->conn->server->limits.stream_bytes);
    if (r < 0) {
        req->conn->server->stats.gone++;
        req->held = false;
        request_drop(req);
        return r;
    }
    request_resume(req);
    return 0;
}

void http_stream_end(struct http_request *req) {
    req->ended = true;
    req->held = false;
    request_resume(req);
}

/* ---- upgrade ---- */

static void on_upgraded(void *cls, struct MHD_Connection *mhd, void *ctx, const char *early, size_t early_len,
                        MHD_socket sock, struct MHD_UpgradeResponseHandle *urh) {
    struct http_request *req = cls;
    http_upgrade_fn *fn = ptr_steal(req->upgrade);
    int fd = fcntl(sock, F_DUPFD_CLOEXEC, 3);
    if (fd >= 0) {
        int on = 1;
        req->conn->upgraded = true;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* refused by a unix socket, which has no delay */
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    }
    /* The socket stays libmicrohttpd's: closing it ourselves would make it abort. It closes its own descriptor now, and
     * ours, a copy, keeps the connection. */
    MHD_upgrade_action(urh, MHD_UPGRADE_ACTION_CLOSE);
    server_kick(req->conn->server);
    fn(req->upgrade_userdata, fd, early, early_len);
}

int http_upgrade(struct http_request *req, const struct http_header *headers, size_t n_headers, http_upgrade_fn *fn,
                 void *userdata) {
    if (req->answered)
        return -EINVAL;
    struct MHD_Response *response = req->http11 ? MHD_create_response_for_upgrade(on_upgraded, req) : NULL;
    if (!response)
        return fail(req, req->http11 ? -ENOMEM : -EINVAL);
    int r = add_headers(response, headers, n_headers);
    if (r == 0 && !MHD_get_response_header(response, "Upgrade"))
        r = -EINVAL;
    if (r < 0) {
        MHD_destroy_response(response);
        return fail(req, r);
    }
    req->held = false;
    req->upgrade = fn;
    req->upgrade_userdata = userdata;
    deliver(req, 101, response);
    return 0;
}
