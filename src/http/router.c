#include "http/router.h"

#include <stdbool.h>
#include <string.h>

#include "http/strict.h"

/* One segment of a pattern: a literal, or a name in braces. */
struct part {
    const char *text;
    size_t len;
    bool is_param;
};

static bool next_part(const char **pattern, struct part *ret) {
    const char *p = *pattern;
    if (*p == '/')
        p++;
    size_t len = strcspn(p, "/");
    if (len == 0)
        return false;
    *pattern = p + len;
    bool is_param = p[0] == '{' && p[len - 1] == '}';
    *ret = is_param ? (struct part){p + 1, len - 2, true} : (struct part){p, len, false};
    return true;
}

static bool equal(const char *s, const char *text, size_t len) {
    return strncmp(s, text, len) == 0 && s[len] == '\0';
}

static bool path_matches(const char *pattern, const struct http_path *path) {
    if (path->trailing_slash != (pattern[strlen(pattern) - 1] == '/'))
        return false;
    struct part part;
    unsigned i = 0;
    for (; next_part(&pattern, &part); i++) {
        const char *segment = http_path_segment(path, i);
        if (!segment || (!part.is_param && !equal(segment, part.text, part.len)))
            return false;
    }
    return i == path->segments;
}

static bool method_matches(const char *route, const char *method) {
    return strcmp(route, method) == 0 || (strcmp(method, "HEAD") == 0 && strcmp(route, "GET") == 0);
}

static void allow_one(char *allow, size_t size, const char *method) {
    size_t used = strlen(allow), len = strlen(method);
    if (http_list_has(allow, method) || used + len + 3 > size)
        return;
    if (used > 0) {
        memcpy(allow + used, ", ", 2);
        used += 2;
    }
    memcpy(allow + used, method, len + 1);
}

static bool is_known_method(const char *method) {
    return http_list_has("GET,HEAD,POST,PUT,DELETE,CONNECT,OPTIONS,TRACE,PATCH", method);
}

enum http_route_result http_router_match(const struct http_route *routes, size_t n, const char *method,
                                         const char *target, struct http_match *ret_match) {
    ret_match->route = NULL;
    ret_match->allow[0] = '\0';
    if (http_path_parse(target, &ret_match->path) < 0)
        return HTTP_ROUTE_BAD_PATH;
    const struct http_route *get_for_head = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!path_matches(routes[i].pattern, &ret_match->path))
            continue;
        if (strcmp(routes[i].method, method) == 0) {
            ret_match->route = &routes[i];
            return HTTP_ROUTE_FOUND;
        }
        if (!get_for_head && method_matches(routes[i].method, method))
            get_for_head = &routes[i];
        allow_one(ret_match->allow, sizeof ret_match->allow, routes[i].method);
        if (strcmp(routes[i].method, "GET") == 0)
            allow_one(ret_match->allow, sizeof ret_match->allow, "HEAD");
    }
    ret_match->route = get_for_head;
    if (get_for_head)
        return HTTP_ROUTE_FOUND;
    if (ret_match->allow[0] == '\0')
        return HTTP_ROUTE_UNKNOWN;
    return is_known_method(method) ? HTTP_ROUTE_OTHER_METHOD : HTTP_ROUTE_UNKNOWN_METHOD;
}

const char *http_match_param(const struct http_match *match, const char *name) {
    const char *pattern = match->route ? match->route->pattern : "";
    struct part part;
    for (unsigned i = 0; next_part(&pattern, &part); i++)
        if (part.is_param && equal(name, part.text, part.len))
            return http_path_segment(&match->path, i);
    return NULL;
}
