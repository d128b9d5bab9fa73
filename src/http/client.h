/* The HTTP client: libcurl, one request at a time, blocking. For mctl, for a VMM's API socket, for health checks. It
 * speaks plain HTTP only, follows no redirect, uses no proxy and no environment. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define HTTP_CLIENT_HEADERS_MAX 16

struct http_client_header {
    const char *name, *value;
};

struct http_client_request {
    const char *unix_socket; /* path of a unix socket; NULL: TCP */
    const char *host;        /* TCP: "127.0.0.1:4000"; NULL with a unix socket */
    const char *path;        /* "/api/vms?x=1", percent-encoded; sent as it is */
    const char *method;      /* NULL: GET, or POST with a body */
    const void *body;
    size_t body_len;
    const char *content_type; /* of the body; NULL: application/json */
    const struct http_client_header *headers;
    size_t n_headers;
    long timeout_ms;           /* of everything; 0: none, for streams */
    long connect_timeout_ms;   /* 0: 5000 */
    size_t max_response_bytes; /* of a body that is kept; 0: 1 MiB. A longer one is an error */
};

struct http_client_response {
    int status;
    char *body; /* NUL-terminated, never NULL after success */
    size_t len;
    char content_type[128]; /* empty when there was none */
};

void http_client_response_free(struct http_client_response *response); /* its contents; takes a zeroed one */
#define _cleanup_http_response_ __attribute__((cleanup(http_client_response_free)))

/* Any status is success: the caller reads it. An answer that breaks off is a failure.
 * Errors: "http.unreachable" (ENOENT, ECONNREFUSED, EACCES, …: as connect(2) said), "http.timeout" (ETIMEDOUT),
 * "http.too-large" (EFBIG), "http.bad-answer" (EPROTO), "http.bad-request" (EINVAL: the arguments). */
int http_client_request(const struct http_client_request *request, struct http_client_response *ret_response,
                        struct err *err);

/* Called with each piece of a body. Return: 0 to go on; a negative errno ends the transfer. */
typedef int http_client_write_fn(const char *data, size_t len, void *userdata);

/* As above, but the body of a 2xx answer goes to write as it comes, without a limit, and ret_response->body is then
 * empty. Bodies of other answers are kept, so that a problem document can be shown. What write returned is returned,
 * with "http.stopped". */
int http_client_stream(const struct http_client_request *request, http_client_write_fn *write, void *userdata,
                       struct http_client_response *ret_response, struct err *err);
