/* From method and path to one row of a table. Pure: it calls nobody. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "http/server.h"
#include "http/target.h"

struct http_match;

typedef void http_route_fn(struct http_request *req, const struct http_match *match, void *userdata);

/* pattern: "/api/vms/{id}/events": each segment is a literal or one {name}, which matches any one segment that is not
 * empty. A path with a trailing slash matches only a pattern with one. Of two rows that match, the first counts: put
 * "/api/vms/stats" before "/api/vms/{id}". */
struct http_route {
    const char *method;
    const char *pattern;
    http_route_fn *handler;
    uint32_t flags; /* the caller's own meaning, such as who may call */
    void *userdata;
};

enum http_route_result {
    HTTP_ROUTE_FOUND,
    HTTP_ROUTE_BAD_PATH,       /* 400: the target does not decode */
    HTTP_ROUTE_UNKNOWN,        /* 404 */
    HTTP_ROUTE_OTHER_METHOD,   /* 405: allow says which there are */
    HTTP_ROUTE_UNKNOWN_METHOD, /* 501: not a method of HTTP (RFC 9110, RFC 5789) */
};

struct http_match {
    const struct http_route *route; /* when FOUND */
    char allow[96];                 /* the value of Allow when OTHER_METHOD: "GET, HEAD, DELETE" */
    struct http_path path;
};

/* HEAD matches a row of GET where it has none of its own. *ret_match is always written. */
enum http_route_result http_router_match(const struct http_route *routes, size_t n, const char *method,
                                         const char *target, struct http_match *ret_match);

/* The decoded value of {name}; NULL when the pattern has no such part. */
const char *http_match_param(const struct http_match *match, const char *name);
