/* The request target ("/api/vms/vm-1?wait=ready") and cookies: decoding with strict rules. Pure.
 * Source: RFC 3986 (2.1, 3.3, 3.4), RFC 6265 (4.2.1), and the URL standard's application/x-www-form-urlencoded. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_TARGET_BYTES 4096 /* the longest target that is taken */
#define HTTP_PATH_BYTES 2048
#define HTTP_PATH_SEGMENTS 16

/* A path, split and decoded. "/a/b/" has two segments and a trailing slash, "/" has none and a trailing slash. */
struct http_path {
    unsigned segments;
    bool trailing_slash;
    uint16_t at[HTTP_PATH_SEGMENTS]; /* offsets into text */
    char text[HTTP_PATH_BYTES];
};

/* The i-th segment, decoded; NULL beyond the last. */
const char *http_path_segment(const struct http_path *path, unsigned i);

/* Splits and decodes what stands before the '?'.
 * Return: 0; -EINVAL: not beginning with '/', an empty segment, "." or "..", a '%' without two hex digits, a decoded
 * '/', '\', NUL or other control byte, or not UTF-8; -ENAMETOOLONG; -E2BIG: too many segments. */
int http_path_parse(const char *target, struct http_path *ret_path);

/* Whether every name and value of the query decodes. */
bool http_query_valid(const char *target);

/* Looks a query parameter up and decodes its value ('+' is a space). A name without '=' has the empty value.
 * Return: 1 found; 0 absent; -EINVAL: malformed as above, or given twice; -ENAMETOOLONG: does not fit in dst. */
int http_query_get(const char *target, const char *name, char *dst, size_t size);

/* Whether every parameter is one of known (ending in NULL). Return: 0, or -EINVAL with the first other name, escaped
 * for a person, in ret_unknown. */
int http_query_check(const char *target, const char *const *known, char *ret_unknown, size_t size);

/* Looks a cookie up in the value of a Cookie header (NULL: none). The first of that name counts: browsers send the
 * one with the longest path first. Quotes are part of the value.
 * Return: 1 found; 0 absent; -ENAMETOOLONG: does not fit in dst. */
int http_cookie_get(const char *header, const char *name, char *dst, size_t size);
