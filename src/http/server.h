/* The HTTP/1.1 server: libmicrohttpd inside the caller's sd-event loop, made strict. It knows paths and bytes, and
 * nothing of what they are about.
 *
 * Theory of operation. We accept connections ourselves and give them to one MHD daemon, whose epoll descriptor is a
 * source of the loop; everything here runs on the loop's thread. A request reaches the handler when its whole body is
 * there and its head has passed strict.h; what does not pass is refused with a problem document (RFC 9457) and the
 * connection is closed, without the handler. What libmicrohttpd 0.9.75 leaves to us, and where it is done:
 *
 *   two Content-Length or Host, Content-Length with Transfer-Encoding, bare LF, NUL, folded lines   strict.c, request.c
 *   no deadline but "idle": one byte now and then keeps a connection for ever                       server.c, sweep
 *   at its connection limit nobody is answered; accept() with no descriptor left spins              listen.c
 *   a client that hangs up while its request is suspended is not seen                               request.c, watch
 *   a response before the end of the upload is lost in a reset                                      linger.c
 *   the socket stays its own after an upgrade                                                       respond.c, upgrade
 *   a line of a chunked body that fills its buffer makes it spin                                    server.c, arm
 *   stopping it with a suspended request aborts the process                                         server.c, free
 *
 * Its own few answers (a line without a colon, a head that does not fit its memory) are HTML, not problem documents.
 *
 * A handler must, before it returns, either answer (http_respond() and its friends) or call http_request_defer(). A
 * request that it leaves with neither is answered with 500.
 *
 * Nothing here may be called from another thread; http_server_free() not from inside a handler or callback either. */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/ws_accept.h"

struct http_server;
struct http_request;

struct http_limits {
    size_t header_bytes;          /* request line and header fields together; more is 431 */
    size_t body_bytes;            /* one request's body; more is 413 */
    size_t stream_bytes;          /* what a streamed answer may hold back for a client that does not read */
    int header_deadline_ms;       /* from accept, or from the request line of a later request, to the end of its head */
    int body_deadline_ms;         /* from the end of the head to the end of the body */
    int idle_ms;                  /* from the end of an answer to the next request line */
    int write_stall_ms;           /* between two blocks of an answer that the client takes */
    unsigned connections;         /* open at a time over TCP, and as many again over unix sockets */
    unsigned connections_per_ip;  /* of one remote address (IPv6: one /64) */
    unsigned requests_per_second; /* of one remote address; 0: no limit. The unix socket is exempt from both */
    unsigned burst;
    const char *always_path; /* answered at the connection limit and the rate limit too, such as "/health"; or NULL */
};

/* Above `connections` there are 32 more, for 503 and always_path alone, closed after one answer and 2 s for their head;
 * one address gets 8 of them. Beyond, connections wait in the kernel's queue. Upgraded connections do not count. */

/* Sensible values for a controller on one host. */
extern const struct http_limits http_limits_default;

/* Called on the loop's thread once the whole body is there. */
typedef void http_handler_fn(struct http_request *req, void *userdata);

/* limits is copied (always_path must live as long as the server). Return: 0 or -errno. */
int http_server_new(sd_event *loop, const struct http_limits *limits, http_handler_fn *handler, void *userdata,
                    struct http_server **ret_server, struct err *err);

/* address: "127.0.0.1:4000" or "[::1]:4000", numbers only; port 0 takes a free one. The socket lives in the network
 * namespace of the calling thread.
 * Errors: "api.bad-address", "api.port-in-use" (EADDRINUSE; names the process that holds it when /proc tells),
 * "api.address-not-here" (EADDRNOTAVAIL), "api.listen-failed". */
int http_server_listen_tcp(struct http_server *server, const char *address, struct err *err);

/* A socket file that a dead process left is replaced; one that answers is refused ("api.socket-live", EADDRINUSE), and
 * so is a file of another kind ("api.socket-not-a-socket", EEXIST). The file gets exactly mode and gid ((gid_t)-1:
 * leave it) before anybody can connect, and is removed with the server. */
int http_server_listen_unix(struct http_server *server, const char *path, mode_t mode, gid_t gid, struct err *err);

/* The port of the first TCP listener, 0 without one. */
uint16_t http_server_port(const struct http_server *server);

/* Closes the listening sockets and removes the socket files. Connections that are open go on. */
void http_server_stop_accepting(struct http_server *server);

/* Ends everything at once: owners of deferred requests and streams are told through their gone callback. Takes NULL. */
void http_server_free(struct http_server *server);
void http_server_freep(struct http_server **server);

struct http_server_stats {
    unsigned connections_tcp, connections_unix, connections_lingering; /* now */
    uint64_t accepted, requests, refused;                              /* since the start; refused by this room */
    uint64_t timed_out, rate_limited, over_limit, gone;
    uint64_t runs; /* turns of libmicrohttpd's loop: an idle server does not make any */
};
void http_server_stats(const struct http_server *server, struct http_server_stats *ret_stats);

/* ---- the request. Everything returned lives until the request is answered or gone. ---- */

struct http_peer {
    bool local; /* over the unix socket; uid, gid and pid are then those of connect(), by SO_PEERCRED, unix(7) */
    uid_t uid;
    gid_t gid;
    pid_t pid;
    char ip[INET6_ADDRSTRLEN]; /* empty when local */
};

const struct http_peer *http_request_peer(const struct http_request *req);

/* As sent, such as "GET", "HEAD"; any token is possible. An answer to HEAD is sent without its body by itself. */
const char *http_request_method(const struct http_request *req);

/* The raw target, "/a%20b?x=1". Path and query were checked (see target.h), so http_path_parse() succeeds on it. */
const char *http_request_target(const struct http_request *req);

/* The value without surrounding white space, or NULL. Of several fields of that name the first; Host, Content-Length,
 * Transfer-Encoding, Authorization, Cookie, Origin, Content-Type and Expect cannot be there twice. */
const char *http_request_header(const struct http_request *req, const char *name);
unsigned http_request_header_count(const struct http_request *req, const char *name);
bool http_request_is_http11(const struct http_request *req);

/* As http_query_get() and http_cookie_get() in target.h: 1 found, 0 absent, -errno. */
int http_request_query(const struct http_request *req, const char *name, char *dst, size_t size);
int http_request_cookie(const struct http_request *req, const char *name, char *dst, size_t size);

/* The body, with a NUL behind it that does not count. Never NULL. */
const char *http_request_body(const struct http_request *req, size_t *ret_len);

/* ---- the answer ---- */

struct http_header {
    const char *name, *value;
};

#define HTTP_RESPONSE_HEADERS_MAX 16

struct http_response {
    const char *content_type; /* NULL: none */
    const void *body;         /* copied */
    size_t len;
    const struct http_header *headers; /* copied; at most HTTP_RESPONSE_HEADERS_MAX; framing fields are refused */
    size_t n_headers;
    const char *cache; /* Cache-Control; NULL: "no-store" */
};

/* Answers. Every answer also carries X-Content-Type-Options: nosniff and Referrer-Policy: no-referrer; a header of the
 * same name replaces them. response may be NULL (no body). The request is not the caller's any more afterwards,
 * whatever is returned.
 * Return: 0, or -EINVAL (a header with control bytes, a framing field, a status outside 200 to 599) or -ENOMEM: the
 * client then got a 500. */
int http_respond(struct http_request *req, int status, const struct http_response *response);

/* Answers with {"type":"about:blank","title","status","detail","code","hint"}, application/problem+json.
 * title NULL: the status's own phrase; hint NULL or empty: none. Bytes that are not UTF-8 are shown as \xNN.
 * Source: RFC 9457. */
int http_problem(struct http_request *req, int status, const char *code, const char *title, const char *detail,
                 const char *hint);
int http_problem_with(struct http_request *req, int status, const char *code, const char *title, const char *detail,
                      const char *hint, const struct http_header *headers, size_t n_headers);

/* ---- answering later ---- */

/* The client hung up (or half-closed: nobody can tell these apart), or the server is being freed. The request must not
 * be touched any more. It may be called at any time but from inside a call that the owner makes itself. */
typedef void http_gone_fn(struct http_request *req, void *userdata);

/* Keeps the request for an answer after the handler has returned. gone is called at most once, and never after the
 * request was answered. */
void http_request_defer(struct http_request *req, http_gone_fn *gone, void *userdata);

/* ---- streaming (console --follow, server-sent events); the request must have been deferred ---- */

/* Bytes of a stream that wait for the client to take them. */
size_t http_stream_waiting(const struct http_request *req);

/* Sends the head; body and len of response are ignored. Return as http_respond(). */
int http_stream_begin(struct http_request *req, int status, const struct http_response *response);

/* Return: 0, or -ENOBUFS: the client does not read, stream_bytes are waiting; it was dropped. After a failure the
 * request is not the caller's any more and gone is not called. */
int http_stream_write(struct http_request *req, const void *data, size_t len);

/* Ends the stream once what waits was sent. The request is not the caller's any more. */
void http_stream_end(struct http_request *req);

/* ---- upgrade ---- */

/* Called exactly once. fd: the connection, non-blocking, close-on-exec, the callee's to close; -1 when the client went
 * away before. early: bytes that the client sent behind its request, valid during the call: the beginning of the new
 * protocol's stream. */
typedef void http_upgrade_fn(void *userdata, int fd, const void *early, size_t early_len);

/* Answers 101 with these headers (Upgrade must be among them; Connection is added) and hands the connection over. It
 * does not count as one of the server's connections afterwards. Return as http_respond(); fn is not called then. */
int http_upgrade(struct http_request *req, const struct http_header *headers, size_t n_headers, http_upgrade_fn *fn,
                 void *userdata);
